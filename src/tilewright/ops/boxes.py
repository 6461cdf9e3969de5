"""Non-maximum suppression, on the host: how many boxes stay is known only afterwards.

NumPy finds the candidates of each class in order; one kernel instance per image and class goes
through them and compares each with those that were kept, a vector of them at a time.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from typing import Final

import numpy as np

from tilewright.lang import (
    Array,
    Const,
    any,
    arange,
    boolean,
    f32,
    maximum,
    minimum,
    program_id,
    zeros,
)
from tilewright.ops.layout_kernels import divide
from tilewright.runtime.launch import kernel

__all__ = ["non_max_suppression"]

_LANES: Final = 16


@kernel
def suppress(
    boxes: Array,
    order: Array,
    counts: Array,
    images: Array,
    kept: Array,
    found: Array,
    places: Array,
    iou: f32,
    LANES: Const,
):
    """For each row the boxes that are kept, best first, and how many (see the module).

    boxes (N, 4, B): smaller and larger y, smaller and larger x; order (R, M) candidates, counts
    and images (R,); kept (R, 5, limit + LANES) is room for the kept ones' corners and areas.
    """
    r = program_id(0)
    n = images[r]
    total = counts[r] * 0
    limit = places.shape[1]
    for i in range(counts[r]):
        if total < limit:
            j = order[r, i]
            y1, y2, x1, x2 = boxes[n, 0, j], boxes[n, 1, j], boxes[n, 2, j], boxes[n, 3, j]
            area = (y2 - y1) * (x2 - x1)
            covered = zeros((LANES,), boolean)
            for k in range(0, total, LANES):
                high = minimum(kept[r, 1, k : k + LANES], y2)
                low = maximum(kept[r, 0, k : k + LANES], y1)
                right = minimum(kept[r, 3, k : k + LANES], x2)
                left = maximum(kept[r, 2, k : k + LANES], x1)
                common = (right - left) * (high - low)
                other = kept[r, 4, k : k + LANES]
                whole = area + other - common
                real = (right > left) & (high > low) & (common > 0.0) & (whole > 0.0)
                real = real & (other > 0.0) & (k + arange(LANES) < total)
                covered = covered | (real & (common / whole > iou))
            if not (any(covered) & (area > 0.0)):
                kept[r, 0, total] = y1
                kept[r, 1, total] = y2
                kept[r, 2, total] = x1
                kept[r, 3, total] = x2
                kept[r, 4, total] = area
                places[r, total] = j
                total = total + 1
    found[r] = total


def _sides(boxes: np.ndarray, center_point: bool) -> np.ndarray:
    """boxes (N, B, 4) as (N, 4, B): smaller and larger y, smaller and larger x."""
    if center_point:
        x, y, w, h = (boxes[..., i] for i in range(4))
        half = np.float32(2)
        parts = (y - h / half, y + h / half, x - w / half, x + w / half)
    else:
        y1, x1, y2, x2 = (boxes[..., i] for i in range(4))
        parts = (np.minimum(y1, y2), np.maximum(y1, y2), np.minimum(x1, x2), np.maximum(x1, x2))
    return np.ascontiguousarray(np.stack(parts, 1), np.float32)


def _best(scores: np.ndarray, least: float | None, most: int) -> np.ndarray:
    """Indices of scores above ``least``, descending, of equal ones the first one first.

    At least ``most`` of them if there are as many.
    """
    able = np.arange(len(scores)) if least is None else np.flatnonzero(scores > least)
    if len(able) > 2 * most:
        values = scores[able]
        edge = np.partition(values, len(values) - most)[len(values) - most]
        able = able[~(values < edge)]
    return able[np.argsort(-scores[able], kind="stable")]


def non_max_suppression(
    boxes: np.ndarray,
    scores: np.ndarray,
    most: int,
    iou_threshold: float = 0.0,
    score_threshold: float | None = None,
    center_point: bool = False,
) -> np.ndarray:
    """boxes (N, B, 4), scores (N, C, B) -> (kept, 3) i64: image, class and box.

    Per image and class, by descending score: a box goes when one that was kept covers it by more
    than ``iou_threshold`` of their union. Boxes are two corners (y, x, y, x), or with
    ``center_point`` (x, y, width, height). ONNX NonMaxSuppression; areas are f32.
    """
    images, classes, count = scores.shape
    limit = min(most, count)
    rows = images * classes
    if limit <= 0 or not rows:
        return np.zeros((0, 3), np.int64)
    flat = scores.reshape(rows, count)
    sides = _sides(boxes, center_point)
    kept = np.empty((rows, 5, divide(limit, _LANES) * _LANES), np.float32)
    places, found = np.zeros((rows, limit), np.int32), np.zeros(rows, np.int32)
    todo, ahead = np.arange(rows), 4 * limit
    while len(todo):
        lists = [_best(flat[r], score_threshold, ahead) for r in todo]
        counts = np.array([len(one) for one in lists], np.int32)
        order = np.zeros((len(todo), max(int(counts.max()), 1)), np.int32)
        for row, one in zip(order, lists):
            row[: len(one)] = one
        image = (todo // classes).astype(np.int32)
        part, number = np.zeros((len(todo), limit), np.int32), np.zeros(len(todo), np.int32)
        work = kept[: len(todo)]
        suppress[len(todo)](
            sides, order, counts, image, work, number, part, np.float32(iou_threshold),
            LANES=_LANES,
        )  # fmt: skip
        places[todo], found[todo] = part, number
        # those that ran out of candidates, and have more of them, look at all
        short = (number < limit) & (counts >= ahead) & (counts < count)
        todo, ahead = todo[short], count
    row = np.repeat(np.arange(rows), found)
    inside = np.arange(limit) < found[:, None]
    return np.stack([row // classes, row % classes, places[inside]], 1).astype(np.int64)

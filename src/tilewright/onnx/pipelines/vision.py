"""Images in, classes, boxes or other images out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tilewright.data.images import read_image
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.onnx.pipelines.images import Preprocess, resize
from tilewright.onnx.session import Session, ValueSpec

__all__ = ["Box", "classify", "detect", "draw", "probabilities", "transform"]

_MARGIN: Final = 8  # pixels around a tile that its middle may depend on
_COLOURS: Final = ((230, 60, 60), (60, 160, 230), (70, 190, 90), (240, 170, 40), (170, 90, 220))

Image = str | os.PathLike[str] | np.ndarray


def _image_input(session: Session) -> ValueSpec:
    if len(session.inputs) != 1:
        names = ", ".join(s.name for s in session.inputs)
        raise UnsupportedError(f"the model takes {names}; one input, an image, is wanted")
    return session.inputs[0]


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Scores of classes (last axis) as float64 probabilities; those that are some stay as they are.

    Probabilities are what is not negative and sums to one, up to 2 %.
    """
    values = scores.astype(np.float64)
    if values.size and (values.min() < 0 or abs(values.sum(-1) - 1).max() > 0.02):
        values = np.exp(values - values.max(-1, keepdims=True))
        values /= values.sum(-1, keepdims=True)
    return values


def classify(
    session: Session, image: Image, steps: Preprocess | None = None, top: int = 5
) -> list[tuple[int, float]]:
    """The likeliest classes of an image: (number, probability), best first.

    Args:
        session: takes one image, and gives scores or probabilities, one a class.
        image: a file, or uint8 pixels (height, width, 3).
        steps: how the image is prepared; layout and sizes come from the model.

    Raises ShapeError when the model's first output is not one row of scores.
    """
    spec = _image_input(session)
    values = (steps or Preprocess()).to_fit(spec.shape, spec.dtype)(image)
    scores = next(iter(session.run({spec.name: values}).values()))
    if scores.size != scores.shape[min(1, scores.ndim - 1)]:
        raise ShapeError(f"one score for each class is wanted, the output is {scores.shape}")
    shares = probabilities(scores.reshape(-1))
    order = np.argsort(-shares, kind="stable")[:top]
    return [(int(i), float(shares[i])) for i in order]


# --- detection -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """A found object: corners in pixels of the image, its class, its probability."""

    left: float
    top: float
    right: float
    bottom: float
    label: int
    score: float


def detect(
    session: Session,
    image: Image,
    steps: Preprocess | None = None,
    threshold: float = 0.7,
    overlap: float = 0.3,
) -> list[Box]:
    """Objects in an image, the surest first.

    For models that give scores ``(1, n, classes)``, class 0 being nothing, and boxes ``(1, n, 4)``
    with corners (left, top, right, bottom) as shares of the image, as SSD heads do. The image is
    scaled to the model's size whatever its proportions.

    Args:
        threshold: least probability.
        overlap: of two boxes of one class that share more than this (intersection over union) the
            surer one stays.

    Raises UnsupportedError when there are no such outputs.
    """
    spec = _image_input(session)
    sides = spec.shape[-2:] if spec.shape is not None and len(spec.shape) == 4 else ()
    height, width = (n if isinstance(n, int) else 0 for n in sides or (0, 0))
    made = steps or Preprocess()
    if height and width and not (made.size or made.shortest or made.crop):
        made = Preprocess(**{**vars(made), "size": (height, width)})
    pixels = image if isinstance(image, np.ndarray) else read_image(image)
    values = made.to_fit(spec.shape, spec.dtype)(pixels)
    results = [v for v in session.run({spec.name: values}).values() if isinstance(v, np.ndarray)]
    boxes = next((v for v in results if v.ndim == 3 and v.shape[2] == 4), None)
    scores = next((v for v in results if v is not boxes and v.ndim == 3), None)
    if boxes is None or scores is None or scores.shape[1] != boxes.shape[1]:
        shapes = ", ".join(str(v.shape) for v in results)
        raise UnsupportedError(
            f"scores (1, n, classes) and boxes (1, n, 4) are wanted, the outputs are {shapes}"
        )
    size = np.array([pixels.shape[1], pixels.shape[0]] * 2, np.float64)
    return _selected(boxes[0].astype(np.float64) * size, scores[0], threshold, overlap)


def _selected(
    corners: np.ndarray, scores: np.ndarray, threshold: float, overlap: float
) -> list[Box]:
    found = []
    for label in range(1, scores.shape[1]):
        sure = np.flatnonzero(scores[:, label] >= threshold)
        order = sure[np.argsort(-scores[sure, label], kind="stable")]
        while order.size:
            best, order = order[0], order[1:]
            left, top, right, bottom = (float(v) for v in corners[best])
            found.append(Box(left, top, right, bottom, label, float(scores[best, label])))
            order = order[_overlaps(corners[best], corners[order]) <= overlap]
    return sorted(found, key=lambda b: -b.score)


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box with each of others."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return shared / np.maximum(np.prod(box[2:] - box[:2]) + areas - shared, 1e-12)


def draw(pixels: np.ndarray, boxes: Sequence[Box], labels: Sequence[str] | None = None) -> Any:
    """A Pillow image of uint8 pixels (height, width, 3) with boxes, their names and shares."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    for box in reversed(boxes):
        colour = _COLOURS[box.label % len(_COLOURS)]
        width = max(2, min(image.size) // 200)
        pen.rectangle((box.left, box.top, box.right, box.bottom), outline=colour, width=width)
        name = labels[box.label] if labels and box.label < len(labels) else str(box.label)
        pen.text((box.left + width + 1, box.top + width), f"{name} {box.score:.2f}", fill=colour)
    return image


# --- image to image ------------------------------------------------------------------------------


def transform(session: Session, image: Image, fit: bool = False) -> np.ndarray:
    """What a model of images makes of one: uint8 (height, width, 3), or (height, width) for grey.

    For models from one NCHW image to one, values from 0 to 1. One channel is taken as brightness
    (Y of YCbCr); the colours of a larger result are scaled beside it. A model of a fixed size sees
    the image in tiles that overlap; with ``fit`` the whole image, scaled to that size.

    Raises UnsupportedError for models of other inputs or outputs.
    """
    spec = _image_input(session)
    shape = spec.shape
    if shape is None or len(shape) != 4 or shape[1] not in (1, 3):
        raise UnsupportedError(f"an image (N, 1 or 3, height, width) is wanted, input is {spec}")
    pixels = image if isinstance(image, np.ndarray) else read_image(image)
    if fit and all(isinstance(n, int) for n in shape[2:]):
        pixels = resize(pixels, (int(shape[2]), int(shape[3])), "bicubic")  # type: ignore[arg-type]
    planes = _luma(pixels) if shape[1] == 1 else pixels.astype(np.float32) / 255
    made = _tiled(session, spec, planes.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))
    values = np.rint(np.clip(made, 0, 1) * 255).astype(np.uint8)
    if shape[1] == 3:
        return np.ascontiguousarray(values.transpose(1, 2, 0))
    return _coloured(values[0], pixels)


def _luma(pixels: np.ndarray) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).convert("YCbCr"))[..., 0].astype(np.float32) / 255


def _coloured(luma: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Brightness with the colours of an image, scaled to its size."""
    from PIL import Image

    colours = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
    if not (colours[..., 1:] != 128).any():
        return luma
    height, width = luma.shape
    planes = (np.ascontiguousarray(colours[..., i]) for i in (1, 2))
    larger = [resize(plane, (height, width), "bicubic") for plane in planes]
    return np.asarray(Image.fromarray(np.stack([luma, *larger], -1), "YCbCr").convert("RGB"))


def _tiled(session: Session, spec: ValueSpec, planes: np.ndarray) -> np.ndarray:
    """The result for planes (C, H, W), put together from tiles of the model's size."""
    assert spec.shape is not None
    size = [n if isinstance(n, int) else m for n, m in zip(spec.shape[2:], planes.shape[1:])]
    height, width = planes.shape[1:]
    tops = _starts(height, size[0])
    lefts = _starts(width, size[1])
    padded = np.pad(
        planes,
        [(0, 0), (0, max(size[0] - height, 0)), (0, max(size[1] - width, 0))],
        mode="edge",
    )
    out: np.ndarray | None = None
    factor = 1
    for top, keep_top, low in tops:
        for left, keep_left, right in lefts:
            tile = padded[None, :, top : top + size[0], left : left + size[1]]
            feeds = {spec.name: np.ascontiguousarray(tile, spec.dtype)}
            made = next(iter(session.run(feeds).values()))
            if made.ndim != 4 or made.shape[2] % size[0] or made.shape[2] // size[0] < 1:
                raise UnsupportedError(
                    f"an image (N, C, height, width) is wanted, got {made.shape}"
                )
            if out is None:
                factor = made.shape[2] // size[0]
                out = np.zeros((made.shape[1], height * factor, width * factor), np.float32)
            part = made[0][:, (keep_top - top) * factor :, (keep_left - left) * factor :]
            at = out[:, keep_top * factor : low * factor, keep_left * factor : right * factor]
            at[...] = part[:, : at.shape[1], : at.shape[2]]
    assert out is not None
    return out


def _starts(n: int, size: int) -> list[tuple[int, int, int]]:
    """Tiles of ``size`` over ``n``: where each begins, and what part of the whole it decides."""
    if n <= size:
        return [(0, 0, n)]
    margin = min(_MARGIN, (size - 1) // 2)
    tiles = []
    at = 0
    while True:
        start = max(min(at - margin, n - size), 0)
        end = n if start + size >= n else start + size - margin
        tiles.append((start, at, end))
        if end == n:
            return tiles
        at = end

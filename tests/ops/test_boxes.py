"""Non-maximum suppression against the plain algorithm, box by box."""

import numpy as np
import pytest

from tilewright.ops.boxes import non_max_suppression


def plain(boxes, scores, most, iou, least):
    """One box after the other, each compared with those that were kept."""
    found = []
    f = np.float32
    for n, c in np.ndindex(scores.shape[:2]):
        order = sorted(range(scores.shape[2]), key=lambda i: (-scores[n, c, i], i))
        kept = []
        for i in order:
            if len(kept) >= most or (least is not None and not scores[n, c, i] > f(least)):
                break
            y1, x1, y2, x2 = boxes[n, i]
            y1, y2, x1, x2 = min(y1, y2), max(y1, y2), min(x1, x2), max(x1, x2)
            for v1, u1, v2, u2 in boxes[n, kept]:
                v1, v2, u1, u2 = min(v1, v2), max(v1, v2), min(u1, u2), max(u1, u2)
                h, w = min(y2, v2) - max(y1, v1), min(x2, u2) - max(x1, u1)
                a, b = (y2 - y1) * (x2 - x1), (v2 - v1) * (u2 - u1)
                if h > 0 and w > 0 and a > 0 and b > 0:
                    common = w * h
                    if common / (a + b - common) > f(iou):
                        break
            else:
                kept.append(i)
                found.append((n, c, i))
    return np.array(found, np.int64).reshape(-1, 3)


@pytest.mark.parametrize("most", [1, 7, 40, 1000])
@pytest.mark.parametrize("iou", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("least", [None, 0.5])
def test_it_is_the_plain_algorithm(most, iou, least):
    rng = np.random.default_rng(most)
    boxes = rng.random((2, 150, 4), np.float32)
    boxes[1, :100] = boxes[1, 0] + 0.01 * rng.random((100, 4), np.float32)  # a crowd
    boxes[0, 5, 2:] = boxes[0, 5, :2]  # no area
    scores = np.round(rng.random((2, 3, 150)), 1).astype(np.float32)  # with ties
    got = non_max_suppression(boxes, scores, most, iou, least)
    np.testing.assert_array_equal(got, plain(boxes, scores, most, iou, least))


@pytest.mark.parametrize("shape", [(0, 1, 3), (1, 0, 3), (1, 2, 0)])
def test_empty_axes(shape):
    n, c, b = shape
    boxes, scores = np.zeros((n, b, 4), np.float32), np.zeros((n, c, b), np.float32)
    assert non_max_suppression(boxes, scores, 5).shape == (0, 3)

"""Sampling between pixels and pooling over regions, against references, PyTorch and ONNX."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from tests.ops.gradcheck import check_gradient, compiled, data
from tests.ops.node_calls import LAYOUTS, check, leaf
from tests.ops.test_images import onnx

from tilewright.dtypes import DType, bf16, f16, f32, f64, i32
from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.ops.roi import max_roi_pool, roi_align
from tilewright.ops.sampling import deform_conv, grid_sample, weighted_gather

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 5, 6)).astype(np.float32)
GRID = (RNG.random((2, 4, 7, 2)) * 4 - 2).astype(np.float32)
ROIS = np.array([[0, 0, 5, 4], [1.3, 0.7, 3.1, 9.5], [-2, -3, 2, 2], [4, 4, 3, 3]], np.float32)
BATCH = np.array([1, 0, 1, 0])


def value(node: Node) -> np.ndarray:
    return compiled([node])[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", [(2, 3, 9, 4, 20), (1, 18, 7, 9, 40), (0, 2, 3, 2, 3)])
def test_weighted_gather(sizes: tuple[int, ...], layout: str) -> None:
    n, c, p, k, q = sizes
    rng = np.random.default_rng(0)
    ids = leaf(rng.integers(-2, p + 2, (n, k, q)), i32, layout)
    for dtype in (f32, f64):
        x = leaf(rng.standard_normal((n, c, p)), dtype, layout)
        weights = leaf(rng.standard_normal((n, k, q)), dtype, layout)
        check(weighted_gather(x, ids, weights), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_grid_sample_is_what_onnx_and_torch_say(mode: str, padding: str) -> None:
    torch = pytest.importorskip("torch")
    for align in (False, True):
        got = value(grid_sample(data(X), data(GRID), mode, padding, align))
        attrs = {"mode": mode, "padding_mode": padding, "align_corners": int(align)}
        np.testing.assert_allclose(got, onnx("GridSample", X, GRID, **attrs), 1e-4, 2e-5)
        if mode == "cubic" and padding != "zeros":
            continue  # PyTorch moves the taps inside, ONNX the position first
        want = torch.nn.functional.grid_sample(
            torch.from_numpy(X),
            torch.from_numpy(GRID),
            {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode),
            padding,
            align,
        )
        np.testing.assert_allclose(got, want.numpy(), 1e-4, 2e-5)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_grid_sample_of_volumes(mode: str) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 2, 3, 4, 5), np.float32)
    grid = (rng.random((1, 2, 3, 4, 3)) * 3 - 1.5).astype(np.float32)
    for padding, align in product(("zeros", "border", "reflection"), (False, True)):
        got = value(grid_sample(data(x), data(grid), mode, padding, align))
        want = torch.nn.functional.grid_sample(
            torch.from_numpy(x),
            torch.from_numpy(grid),
            {"linear": "bilinear"}.get(mode, mode),
            padding,
            align,
        )
        np.testing.assert_allclose(got, want.numpy(), 1e-4, 2e-5)


@pytest.mark.parametrize("dtype", [f64, f16, bf16], ids=str)
def test_dtypes(dtype: DType) -> None:
    x, grid = leaf(X, dtype), leaf(GRID, dtype)
    got = grid_sample(x, grid)
    assert got.dtype is dtype
    check(got, rtol=2e-2 if dtype is bf16 else 1e-2, atol=2e-2)


def test_gradients() -> None:
    rng = np.random.default_rng(2)
    x, grid = rng.standard_normal((1, 2, 4, 5)), rng.random((1, 3, 3, 2)) * 1.2 - 0.6
    check_gradient(grid_sample, x, grid)
    check_gradient(lambda a, b: grid_sample(a, b, "cubic", "border"), x, grid)


@pytest.mark.parametrize("settings", [{}, {"groups": 2, "offset_groups": 2}, {"strides": 2}])
def test_deform_conv(settings: dict[str, Any]) -> None:
    pytest.importorskip("onnx")
    rng = np.random.default_rng(3)
    groups, og = settings.get("groups", 1), settings.get("offset_groups", 1)
    step = settings.get("strides", 1)
    x = rng.standard_normal((2, 4, 6, 7), np.float32)
    w = rng.standard_normal((6, 4 // groups, 3, 2), np.float32)
    out = ((6 + 2 - 3) // step + 1, (7 + 1 - 3) // step + 1)
    offset = rng.standard_normal((2, og * 12, *out), np.float32) * 2
    mask = rng.random((2, og * 6, *out)).astype(np.float32)
    bias = rng.standard_normal(6).astype(np.float32)
    want = onnx(
        "DeformConv",
        x,
        w,
        offset,
        bias,
        mask,
        pads=[1, 0, 1, 1],
        dilations=[1, 2],
        strides=[step, step],
        group=groups,
        offset_group=og,
    )
    got = deform_conv(
        data(x),
        data(w),
        data(offset),
        data(bias),
        data(mask),
        step,
        ((1, 1), (0, 1)),
        (1, 2),
        groups,
        og,
    )
    np.testing.assert_allclose(value(got), want, 1e-4, 1e-4)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("half", [False, True])
def test_roi_align(mode: str, ratio: int, half: bool) -> None:
    # the last two regions are degenerate: ONNX's own definition divides by zero samples there
    node = roi_align(data(X), data(ROIS), data(BATCH), (3, 9), ratio, 0.8, mode, half)
    check(node, rtol=1e-4, atol=1e-5)
    want = onnx(
        "RoiAlign",
        X,
        ROIS[:3],
        BATCH[:3],
        output_height=3,
        output_width=9,
        sampling_ratio=ratio,
        spatial_scale=0.8,
        mode=mode,
        coordinate_transformation_mode="half_pixel" if half else "output_half_pixel",
    )
    np.testing.assert_allclose(value(node)[:3], want, 1e-4, 1e-5)


def test_max_roi_pool() -> None:
    rois = np.concatenate([BATCH[:, None], ROIS], 1).astype(np.float32)
    node = max_roi_pool(data(X), data(rois), (2, 3), 0.5)
    check(node)
    whole = np.array([[1, 0, 0, 5, 4]], np.float32)
    got = value(max_roi_pool(data(X), data(whole), (1, 1)))
    np.testing.assert_array_equal(got[0, :, 0, 0], X[1].max((1, 2)))


def test_no_regions() -> None:
    none = data(np.zeros((0, 4), np.float32))
    assert value(roi_align(data(X), none, data(np.zeros(0, np.int64)), (2, 2))).shape[0] == 0
    assert value(max_roi_pool(data(X), data(np.zeros((0, 5), np.float32)), (2, 2))).shape[0] == 0


def test_what_does_not_fit_is_refused() -> None:
    x, grid, rois, batch = data(X), data(GRID), data(ROIS), data(BATCH)
    w = data(np.zeros((4, 3, 2, 2), np.float32))
    for call in (
        lambda: grid_sample(x, grid, "bilinear"),
        lambda: grid_sample(x, rois),
        lambda: deform_conv(x, w, grid),
        lambda: roi_align(x, grid, batch, (2, 2)),
        lambda: roi_align(x, rois, batch, (2, 2), mode="sum"),
        lambda: roi_align(x, rois, data(BATCH[:2]), (2, 2)),
        lambda: max_roi_pool(x, rois, (2, 2)),
    ):
        with pytest.raises(ShapeError):
            call()

"""Resizing: kernels against references, values against ONNX's definition and PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.ops.gradcheck import check_gradient, compiled, data
from tests.ops.node_calls import LAYOUTS, check, leaf

from tilewright.dtypes import DType, bf16, f16, f32, f64, i32, u8
from tilewright.errors import ShapeError
from tilewright.ops.blocked import from_blocked, to_blocked
from tilewright.ops.resize import COORDINATES, NEAREST, resample, resize
from tilewright.ops.table import make

X = np.random.default_rng(0).standard_normal((2, 3, 7, 10), np.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 9, 40), (5, 9, 1), (1, 4, 1), (0, 4, 3), (2, 3, 0)])
@pytest.mark.parametrize(("out", "taps"), [(7, 4), (33, 12), (0, 2)])
def test_resample(shape: tuple[int, ...], out: int, taps: int, layout: str) -> None:
    rng = np.random.default_rng(0)
    ids = leaf(rng.integers(0, shape[1], (out, taps)), i32, layout)
    for dtype, tolerance in ((f32, 1e-5), (f64, 1e-13)):
        weights = leaf(rng.standard_normal((out, taps)), dtype, layout)
        x = leaf(rng.standard_normal(shape), dtype, layout)
        check(resample(x, ids, weights), rtol=tolerance, atol=tolerance)


def onnx_resize(x: np.ndarray, scales: Any, sizes: Any, roi: Any, **attrs: Any) -> np.ndarray:
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    feeds = {"x": x}
    names = ["x"]
    for name, value, dtype in (
        ("roi", roi, np.float32),
        ("scales", scales, np.float32),
        ("sizes", sizes, np.int64),
    ):
        names.append("" if value is None else name)
        if value is not None:
            feeds[name] = np.asarray(value, dtype)
    node = helper.make_node("Resize", names, ["y"], **attrs)
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in feeds.items()
    ]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", infos, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    return ReferenceEvaluator(model).run(None, feeds)[0]  # type: ignore[no-any-return]


def ours(x: np.ndarray, *args: Any, **attrs: Any) -> np.ndarray:
    return compiled([resize(data(x), *args, **attrs)])[0]


@pytest.mark.parametrize("coordinates", [c for c in COORDINATES if c != "tf_half_pixel_for_nn"])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_interpolation_is_what_onnx_defines(mode: str, coordinates: str) -> None:
    pytest.importorskip("onnx")
    roi = [0.25, 0.125, 1.125, 0.75] if coordinates == "tf_crop_and_resize" else None
    for scales, sizes, extra in (
        ([1.7, 0.6], None, {}),
        (None, [4, 21], {"exclude_outside": 1}),
        (None, [1, 3], {"antialias": 1}),
        ([0.4375, 2.0], None, {"antialias": 1, "exclude_outside": 1}),
        (None, [5, 5], {"keep_aspect_ratio_policy": "not_smaller"}),
    ):
        attrs: dict[str, Any] = {
            "axes": [3, 2],
            "mode": mode,
            "coordinate_transformation_mode": coordinates,
            "cubic_coeff_a": -0.6,
            "extrapolation_value": 7.5,
            **extra,
        }
        want = onnx_resize(X, scales, sizes, roi, **attrs)
        got = ours(X, scales, sizes, roi=roi, **attrs)
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, 2e-5, 2e-5)


@pytest.mark.parametrize("coordinates", [c for c in COORDINATES if c != "tf_half_pixel_for_nn"])
@pytest.mark.parametrize("nearest", NEAREST)
def test_nearest_is_what_onnx_defines(nearest: str, coordinates: str) -> None:
    pytest.importorskip("onnx")
    roi = [0.25, 0.125, 1.125, 0.75] if coordinates == "tf_crop_and_resize" else None
    attrs: dict[str, Any] = {
        "axes": [1, 3],
        "nearest_mode": nearest,
        "coordinate_transformation_mode": coordinates,
    }
    for scales, sizes in (([2.0, 0.5], None), (None, [7, 3]), (None, [1, 20])):
        want = onnx_resize(X, scales, sizes, roi, **attrs)
        np.testing.assert_array_equal(ours(X, scales, sizes, roi=roi, **attrs), want)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest-exact"])
@pytest.mark.parametrize("antialias", [False, True])
def test_torch_agrees(mode: str, antialias: bool) -> None:
    torch = pytest.importorskip("torch")
    if antialias and mode == "nearest-exact":
        return
    for size in ((14, 20), (4, 23), (3, 5)):
        kwargs = {} if mode == "nearest-exact" else {"align_corners": False}
        want = torch.nn.functional.interpolate(
            torch.from_numpy(X), size=size, mode=mode, antialias=antialias, **kwargs
        ).numpy()
        got = ours(
            X,
            None,
            size,
            axes=(2, 3),
            mode={"bilinear": "linear", "bicubic": "cubic"}.get(mode, "nearest"),
            nearest_mode="round_prefer_ceil",
            # torch's antialiasing uses another cubic kernel, and no weight outside the image
            cubic_coeff_a=-0.5 if antialias else -0.75,
            antialias=antialias,
            exclude_outside=antialias,
        )
        np.testing.assert_allclose(got, want, 2e-4, 2e-5)


@pytest.mark.parametrize("dtype", [f64, f16, bf16, u8], ids=str)
def test_dtypes(dtype: DType) -> None:
    x = leaf(np.random.default_rng(1).integers(0, 200, (2, 5, 6)), dtype)
    up = resize(x, [2.0, 1.5], axes=(-1, -2), mode="linear")
    assert up.dtype is dtype
    check(up, rtol=1e-2 if dtype is bf16 else 1e-3, atol=1)
    check(resize(x, [2.0, 1.5], axes=(-1, -2)))


def test_gradient() -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 6))
    for sizes in ((8, 4), (3, 13)):
        for mode in ("linear", "cubic"):
            check_gradient(lambda a: resize(a, None, sizes, axes=(1, 2), mode=mode), x, order=2)  # noqa: B023
    check_gradient(lambda a: resize(a, [2.0, 2.0], axes=(1, 2)), x)
    image = x.reshape(1, 2, 5, 6)
    for mode in ("nearest", "linear"):
        check_gradient(lambda a: resize(a, None, (8, 4), axes=(2, 3), mode=mode), image, order=2)  # noqa: B023


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_images(mode: str, layout: str) -> None:
    rng = np.random.default_rng(0)
    for shape, sizes in (
        ((2, 20, 5, 70), (9, 33)),
        ((1, 3, 40, 6), (7, 80)),
        ((0, 2, 3, 4), (5, 6)),
    ):
        for dtype, tolerance in ((f32, 1e-5), (f64, 1e-12), (f16, 2e-3)):
            x = leaf(rng.standard_normal(shape), dtype, layout)
            check(resize(x, None, sizes, axes=(2, 3), mode=mode, antialias=mode == "cubic"),
                  rtol=tolerance, atol=tolerance)  # fmt: skip


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_blocked_images_have_the_same_bits(mode: str) -> None:
    x = data(np.random.default_rng(0).standard_normal((2, 20, 9, 11), np.float32))
    plain = resize(x, None, (14, 7), axes=(2, 3), mode=mode)
    node = make("resize_image", to_blocked(x), *plain.inputs[1:], **plain.attrs)
    check(node, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(*compiled([from_blocked(node, plain.shape), plain]))


def test_same_bits_in_any_batch() -> None:
    whole = ours(X, [1.0, 1.0, 1.7, 2.3], mode="cubic")
    np.testing.assert_array_equal(ours(X[1:], [1.0, 1.0, 1.7, 2.3], mode="cubic"), whole[1:])


def test_what_does_not_fit_is_refused() -> None:
    x = data(X)
    for wrong in (
        {},
        {"scales": [2.0]},
        {"scales": [1.0] * 4, "sizes": [1] * 4},
        {"scales": [2.0], "axes": [2], "mode": "bilinear"},
        {"scales": [2.0], "axes": [2], "nearest_mode": "up"},
        {"scales": [-1.0], "axes": [2]},
        {"scales": [2.0], "axes": [2], "antialias": True},
        {"scales": [2.0], "axes": [2], "coordinate_transformation_mode": "half"},
        {"sizes": [2], "axes": [2], "keep_aspect_ratio_policy": "fit"},
        {"sizes": [2], "axes": [2], "roi": [0.0]},
    ):
        with pytest.raises(ShapeError, match="resize"):
            resize(x, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="empty"):
        resize(data(np.ones((2, 0), np.float32)), sizes=[2, 3], mode="linear")

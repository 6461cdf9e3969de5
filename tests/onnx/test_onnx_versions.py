"""Old and new versions of operators beside onnxruntime: attributes that became inputs and so on."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
hypothesis = pytest.importorskip("hypothesis")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as some  # noqa: E402
from tests.onnx.oracle import agree, ours, single  # noqa: E402

RNG = np.random.default_rng(0)


def f32(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values, dtype=np.int64):
    return np.array(values, dtype)


X = f32(2, 3, 4, 5)
BINARY = ["Add", "Sub", "Mul", "Div"]


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_of_all_axes_and_of_one(op):
    for axis in (0, 1, 2, 3):
        agree(op, {"x": X}, opset=7, axis=axis)
    for axis in (-1, 2):
        agree(op, {"x": X}, opset=11, axis=axis)
    for axis in (0, 2, -1, -4):
        agree(op, {"x": X}, opset=13, axis=axis)


def test_clip():
    agree("Clip", {"x": X}, opset=7, min=-0.5, max=0.3)
    agree("Clip", {"x": X}, opset=7, max=0.3)
    agree("Clip", {"x": X, "low": None, "high": np.array(0.1, np.float32)}, opset=12)
    agree("Clip", {"x": ints(1, 5, 9), "low": np.array(2)}, opset=12)


REDUCTIONS = [
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare",
]  # fmt: skip


@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions(op):
    x = np.abs(X) + np.float32(0.1)
    for keepdims in (0, 1):
        agree(op, {"x": x}, opset=7, keepdims=keepdims)
        agree(op, {"x": x}, opset=11, axes=[1, -1], keepdims=keepdims)
        agree(op, {"x": x, "axes": ints(0, -2)}, opset=18, keepdims=keepdims)
        agree(op, {"x": x}, opset=18, keepdims=keepdims)
    for dtype in (np.int32, np.int64, np.float64):
        agree(op, {"x": (x * 3).astype(dtype), "axes": ints(1)}, opset=18)
    nothing = np.zeros(0, np.int64)
    agree(op, {"x": x, "axes": nothing}, opset=18, noop_with_empty_axes=1)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_positions_of_extremes(op):
    for opset in (7, 11, 12, 13):
        for axis in (0, 2) if opset < 11 else (0, 2, -1):
            agree(op, {"x": np.round(X)}, opset=opset, axis=axis, keepdims=0)
            if opset >= 12:
                agree(op, {"x": np.round(X)}, opset=opset, axis=axis, select_last_index=1)


SLICES = [
    ([3], [-100], [2], [-1]),
    ([-1], [-7], [-1], [-2]),
    ([0, 4], [1 << 62, -(1 << 62)], [1, 3], [2, -3]),
    ([5], [2], [3], [1]),
    ([2], [1], [2], [-1]),
    ([100], [0], [3], [-2]),
]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_slices(dtype):
    limits = np.iinfo(dtype)
    for parts in SLICES:
        arrays = [np.clip(np.array(p, np.int64), limits.min, limits.max) for p in parts]
        names = ("starts", "ends", "axes", "steps")
        feeds = {"x": X} | {k: a.astype(dtype) for k, a in zip(names, arrays)}
        agree("Slice", feeds, opset=13)
    agree("Slice", {"x": X}, opset=7, starts=[0, -2, 1], ends=[1, 100, -1], axes=[0, 1, 3])
    agree("Slice", {"x": X}, opset=7, starts=[1, 1], ends=[2, 100])
    feeds = {"x": X, "starts": ints(1), "ends": ints(2), "axes": None, "steps": ints(1)}
    agree("Slice", feeds, opset=11)


def test_split():
    agree("Split", {"x": X}, ("a", "b", "c"), opset=7, axis=1)
    agree("Split", {"x": X}, ("a", "b"), opset=7, axis=3, split=[1, 4])
    agree("Split", {"x": X, "sizes": ints(2, 3)}, ("a", "b"), opset=13, axis=-1)
    agree("Split", {"x": X}, ("a", "b"), opset=13, axis=2)
    agree("Split", {"x": X}, ("a", "b"), opset=18, axis=3, num_outputs=2)


def test_margins():
    for mode in ("constant", "reflect", "edge"):
        agree("Pad", {"x": X}, opset=7, pads=[0, 0, 1, 2, 0, 0, 2, 1], mode=mode)
        agree("Pad", {"x": X, "pads": ints(0, 1, 1, 2, 0, 0, 2, 1)}, opset=13, mode=mode)
    agree("Pad", {"x": X}, opset=7, pads=[0, 0, -1, 2, 0, 0, 2, -1], value=2.5)
    seven = np.array(7, np.float32)
    feeds = {"x": X, "pads": ints(0, -1, 2, -2), "value": seven, "axes": ints(1, -1)}
    agree("Pad", feeds, opset=18)
    for pads in ((2, 3), (7, 6)):
        feeds = {"x": X, "pads": ints(*pads), "value": None, "axes": ints(-1)}
        agree("Pad", feeds, opset=19, mode="wrap")
    for mode in ("reflect", "edge"):
        feeds = {"x": X, "pads": ints(-1, 3), "value": None, "axes": ints(-1)}
        agree("Pad", feeds, opset=18, mode=mode)


def test_margins_wider_than_the_inside():
    """Reflections and copies go on, as NumPy's do."""
    for n in (1, 2, 3, 5):
        x = f32(2, n)
        for mode in ("reflect", "edge", "wrap"):
            for low, high in ((1, 0), (n, n - 1), (3 * n + 1, 2 * n), (0, 7)):
                feeds = {"x": x}
                pads = {"pads": ints(0, low, 0, high)}
                model = single("Pad", feeds, opset=19, constants=pads, mode=mode)
                want = np.pad(x, ((0, 0), (low, high)), mode)
                np.testing.assert_array_equal(ours(model, feeds)["y"], want)


def test_axes_of_size_one():
    x = f32(1, 2, 1, 3)
    agree("Squeeze", {"x": x}, opset=7)
    agree("Squeeze", {"x": x}, opset=11, axes=[0, -2])
    agree("Squeeze", {"x": x}, opset=13)
    agree("Unsqueeze", {"x": X}, opset=7, axes=[0, 3])
    agree("Unsqueeze", {"x": X, "axes": ints(-1, 0)}, opset=13)
    for axis in (-1, 0, 2, 4):
        agree("Flatten", {"x": X}, opset=11, axis=axis)


def test_repetition():
    agree("Tile", {"x": X, "repeats": ints(1, 2, 1, 3)}, opset=7)
    agree("Expand", {"x": f32(3, 1), "shape": ints(2, 1, 6)}, opset=8)
    agree("Expand", {"x": f32(3, 4), "shape": ints(1)}, opset=8)


def test_the_largest():
    both = ("values", "places")
    agree("TopK", {"x": X}, both, opset=7, k=3, axis=2)
    agree("TopK", {"x": X, "k": ints(2)}, both, opset=10, axis=1)
    agree("TopK", {"x": X, "k": ints(2)}, both, opset=11, axis=-1, largest=0)
    agree("TopK", {"x": np.round(X), "k": ints(4)}, both, opset=11, axis=-1)


def test_gathers():
    agree("Gather", {"x": X, "at": np.array([[0, 2], [1, 0]])}, opset=7, axis=1)
    agree("Gather", {"x": X, "at": ints(-1, 0, dtype=np.int32)}, opset=11, axis=-2)
    agree("Gather", {"x": X, "at": np.array(1)}, opset=11, axis=3)
    for known in ([0, 2], [2, 1, 0], [1], [-1, -2], [0, 1, 3]):  # constants: some are views
        agree("Gather", {"x": X}, constants={"at": ints(*known)}, opset=11, axis=2)
    agree("GatherElements", {"x": X, "at": RNG.integers(-3, 3, (1, 3, 2, 5))}, opset=13, axis=1)
    agree("GatherND", {"x": X, "at": RNG.integers(-2, 2, (2, 3, 2))}, opset=12, batch_dims=1)
    agree("GatherND", {"x": X, "at": RNG.integers(-2, 2, (6, 2))}, opset=12)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatters(reduction):
    ids = np.argsort(RNG.random((2, 3, 4, 5)), axis=2)
    whole = {"x": X, "at": ids - 4 * (ids > 2), "updates": f32(2, 3, 4, 5)}
    agree("ScatterElements", whole, opset=18, axis=2, reduction=reduction)
    part = {"x": X, "at": ids[:1, :2, :, :3], "updates": f32(1, 2, 4, 3)}
    agree("ScatterElements", part, opset=18, axis=2, reduction=reduction)
    places = {"x": X, "at": np.array([[0, 1], [1, -1]]), "updates": f32(2, 4, 5)}
    agree("ScatterND", places, opset=18, reduction=reduction)
    if reduction == "none":
        agree("Scatter", whole, opset=9, axis=2)


def test_one_hot():
    feeds = {"at": np.array([[0, 2, -1], [5, -7, 1]]), "depth": ints(4), "values": f32(2)}
    agree("OneHot", feeds, opset=11, axis=1)
    feeds = {"at": f32(3).round() % 3, "depth": np.array(3), "values": ints(0, 1)}
    agree("OneHot", feeds, opset=11)


def test_triangles_ranges_and_identities():
    for k in (-1, 0, 2):
        for upper in (0, 1):
            agree("Trilu", {"x": X, "k": np.array(k)}, opset=14, upper=upper)
    agree("EyeLike", {"x": f32(3, 4)}, opset=9, k=1, dtype=7)
    for numbers, dtype in (((1, 5.3, 0.7), np.float32), ((10, -3, -4), np.int32)):
        feeds = {n: np.array(v, dtype) for n, v in zip("abc", numbers)}
        agree("Range", feeds, opset=11)


def test_running_sums():
    for exclusive in (0, 1):
        for reverse in (0, 1):
            feeds = {"x": X, "axis": np.array(-2)}
            agree("CumSum", feeds, opset=14, exclusive=exclusive, reverse=reverse)


def test_sequences_are_reversed():
    agree("ReverseSequence", {"x": f32(4, 3, 2), "n": ints(1, 4, 2)}, opset=10)
    feeds = {"x": f32(3, 4, 2), "n": ints(1, 4, 2)}
    agree("ReverseSequence", feeds, opset=10, batch_axis=0, time_axis=1)


def test_channels_and_space():
    agree("DepthToSpace", {"x": f32(2, 8, 3, 4)}, opset=7, blocksize=2)
    agree("DepthToSpace", {"x": f32(2, 8, 3, 4)}, opset=11, blocksize=2, mode="CRD")
    agree("SpaceToDepth", {"x": f32(2, 2, 4, 6)}, opset=7, blocksize=2)


def test_what_depends_on_data():
    agree("Compress", {"x": X, "c": np.array([True, False, True])}, opset=9, axis=2)
    agree("Compress", {"x": X, "c": RNG.random(40) < 0.5}, opset=9)
    outputs = ("values", "first", "which", "counts")
    for ordered in (0, 1):
        agree("Unique", {"x": np.round(f32(3, 4))}, outputs, opset=11, sorted=ordered)
        agree("Unique", {"x": np.round(f32(3, 4))}, outputs, opset=11, sorted=ordered, axis=1)


@pytest.mark.parametrize("transA", [0, 1])
@pytest.mark.parametrize("transB", [0, 1])
def test_gemm(transA, transB):
    a, b = f32(*((4, 3) if transA else (3, 4))), f32(*((5, 4) if transB else (4, 5)))
    flags = {"transA": transA, "transB": transB}
    for shape in ((5,), (3, 1), (3, 5), ()):
        c = np.asarray(f32(*shape), np.float32)
        agree("Gemm", {"a": a, "b": b, "c": c}, opset=7, alpha=0.5, beta=2.0, **flags)
    agree("Gemm", {"a": a, "b": b}, opset=11, **flags)
    half = {"a": a.astype(np.float16), "b": b.astype(np.float16), "c": f32(5).astype(np.float16)}
    agree("Gemm", half, opset=13, rtol=2e-3, atol=2e-3, **flags)


EQUATIONS = [
    ("ij,jk->ik", [(2, 3), (3, 4)]),
    ("bij,bjk", [(2, 3, 4), (2, 4, 5)]),
    ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)]),
    ("ii->i", [(3, 3)]),
    ("i,j->ij", [(2,), (3,)]),
    ("ijk->ki", [(2, 3, 4)]),
    ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]),
]


@pytest.mark.parametrize(("equation", "shapes"), EQUATIONS)
def test_einsum(equation, shapes):
    feeds = {f"x{i}": f32(*s) for i, s in enumerate(shapes)}
    agree("Einsum", feeds, opset=12, equation=equation)


def test_powers_of_mixed_types():
    kinds = (np.float32, np.float64, np.int32, np.int64)
    for base in kinds:
        for exponent in kinds:
            feeds = {"x": RNG.integers(1, 5, 6).astype(base)}
            feeds["to"] = RNG.integers(0, 4, 6).astype(exponent)
            agree("Pow", feeds, opset=13)
    for number in (0.5, -0.5, 1, 2, 3, -1, 2.5):  # constants: some without a logarithm
        known = {"to": np.array(number, np.float32)}
        agree("Pow", {"x": np.abs(X) + np.float32(0.1)}, constants=known, opset=13)


def test_prelu_with_a_slope_per_channel():
    agree("PRelu", {"x": X, "slope": f32(3, 1, 1)}, opset=7)
    agree("PRelu", {"x": X, "slope": f32(3, 1, 1)}, opset=9)


# --- broadcasting --------------------------------------------------------------------------------

DTYPES = ["int8", "int16", "int32", "int64", "uint8", "uint32", "uint64", "float32", "float64"]


@some.composite
def pair_of_shapes(draw):
    """Two shapes that broadcast."""
    sizes = draw(some.lists(some.integers(0, 4), max_size=4))

    def one():
        kept = draw(some.integers(0, len(sizes)))
        return tuple(1 if draw(some.booleans()) else n for n in sizes[len(sizes) - kept :])

    return one(), one()


@settings(deadline=None, max_examples=40, derandomize=True)
@given(pair_of_shapes(), some.sampled_from(DTYPES), some.sampled_from([*BINARY, "Mod"]))
def test_arithmetic_broadcasts(shapes, dtype, op):
    """All element types; quotients of integers are cut, remainders have the divisor's sign."""
    left, right = shapes
    x = RNG.integers(-100 if dtype[0] != "u" else 0, 100, left).astype(dtype)
    y = RNG.integers(1, 9, right).astype(dtype)
    if dtype[0] != "u":
        y = np.where(RNG.random(right) < 0.5, y, -y).astype(dtype)
    model_attrs = {"fmod": 1} if op == "Mod" and dtype.startswith("float") else {}
    want = {
        "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Mod": np.remainder,
        "Div": lambda a, b: np.trunc(a.astype(np.float64) / b) if dtype[0] != "f" else a / b,
    }[op](x, y)  # fmt: skip
    if model_attrs:
        want = np.fmod(x, y)
    feeds = {"x": np.asarray(x, dtype), "other": np.asarray(y, dtype)}
    got = ours(single(op, feeds, opset=14, **model_attrs), feeds)["y"]
    assert got.dtype == dtype
    np.testing.assert_allclose(got, want.astype(dtype), rtol=1e-6)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(some.lists(some.integers(1, 4), min_size=1, max_size=4), some.data())
def test_broadcasting_by_attributes(shape, data):
    """Before version 7 the second operand lies at ``axis``."""
    first = data.draw(some.integers(0, len(shape) - 1))
    last = data.draw(some.integers(first, len(shape)))
    op = data.draw(some.sampled_from([*BINARY, "Pow", "Greater", "Less"]))
    x = np.abs(f32(*shape)) + np.float32(0.5)
    y = np.abs(f32(*shape[first:last])) + np.float32(0.5)
    feeds = {"x": x, "other": np.asarray(y, np.float32)}
    got = ours(single(op, feeds, opset=6, broadcast=1, axis=first), feeds)["y"]
    laid = feeds["other"].reshape(*y.shape, *(1,) * (len(shape) - first - y.ndim))
    fn = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide,
          "Pow": np.power, "Greater": np.greater, "Less": np.less}[op]  # fmt: skip
    np.testing.assert_allclose(got, fn(x, laid), rtol=1e-5)

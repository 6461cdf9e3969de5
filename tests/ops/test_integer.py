"""8-bit products and convolutions: kernels beside references, builders beside ONNX's definition."""

from __future__ import annotations

from itertools import product as indices
from typing import Any

import numpy as np
import pytest
from tests.ops.node_calls import LAYOUTS, check, compiled, interpreted, leaf, reference

from tilewright.dtypes import DType, f32, i8, i32, u8
from tilewright.errors import DTypeError, ShapeError
from tilewright.graph import Node
from tilewright.ops import integer, qlinear
from tilewright.ops.constants import constant, folded, values
from tilewright.ops.conv_shapes import output_sizes
from tilewright.ops.integer_layout import (
    channels_first,
    channels_last,
    quantize_channels_last,
)
from tilewright.ops.qlinear import Result

Rng = np.random.Generator


def bytes_of(rng: Rng, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    info = np.iinfo(dtype.storage)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype.storage)


def vectors(rng: Rng, groups: int, outputs: int, asym: bool) -> tuple[Node, Node, Node]:
    off = rng.integers(-1000, 1000, (groups, outputs))
    mult = rng.random((groups, outputs)) * 2e-3
    zws = rng.integers(-128, 128, (groups, outputs)) * asym
    return leaf(off, i32), leaf(mult, f32), leaf(zws, i32)


def panels_of(rng: Rng, g: int, k: int, o: int, dtype: DType) -> Node:
    w, zw = leaf(bytes_of(rng, (g, k, o), dtype), dtype), leaf(bytes_of(rng, (g, o), dtype), dtype)
    packed = integer.byte_panels(w, zw)
    check(packed)
    check(integer.byte_sums(packed))
    return leaf(reference(packed), i32)


@pytest.mark.parametrize(
    ("g", "r", "k", "o", "x_dtype", "w_dtype", "mode", "asym"),
    [
        (1, 7, 20, 70, u8, i8, "u8", False),
        (2, 13, 65, 130, i8, u8, "i8", True),
        (1, 1, 8, 5, u8, i8, "i32", True),
        (3, 5, 16, 16, i8, i8, "f32", False),
    ],
)
def test_products(g, r, k, o, x_dtype, w_dtype, mode, asym) -> None:
    rng = np.random.default_rng(0)
    x = leaf(bytes_of(rng, (g, r, -(-k // 4) * 4), x_dtype), x_dtype)
    zp = leaf(bytes_of(rng, (1,), i8 if mode == "i8" else u8), i8 if mode == "i8" else u8)
    panels = panels_of(rng, g, k, o, w_dtype)
    off, mult, zws = vectors(rng, 1, o, asym)
    check(integer.byte_gemm(x, panels, off, mult, zws, zp, outputs=o, mode=mode, asym=asym))


CONVS: list[tuple[Any, ...]] = [
    # x, outputs per group, kernel, strides, dilation, low, high, groups, dtype, mode, asym
    ((2, 1, 9, 10, 8), 13, (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1), 1, u8, "u8", 0),
    ((1, 1, 9, 10, 16), 70, (1, 3, 3), (1, 2, 2), (1, 1, 1), (0, 1, 1), (0, 1, 1), 1, i8, "i8", 1),
    ((2, 4, 6, 7, 24), 10, (2, 3, 2), (1, 2, 1), (1, 1, 2), (1, 0, 1), (0, 1, 1), 2, u8, "u8", 1),
    ((1, 1, 1, 300, 4), 20, (1, 1, 9), (1, 1, 1), (1, 1, 1), (0, 0, 4), (0, 0, 4), 1, u8, "i32", 0),
    ((1, 1, 2, 2, 256), 64, (1, 5, 5), (1, 1, 1), (1, 1, 1), (0, 2, 2), (0, 2, 2), 1, u8, "u8", 0),
]


def conv_node(rng: Rng, case: tuple[Any, ...]) -> Node:
    shape, o, kernel, strides, dilation, low, high, groups, dtype, mode, asym = case
    pairs = tuple(zip(low, high))
    out = output_sizes("conv", shape[1:4], kernel, strides, pairs, dilation)
    x = leaf(bytes_of(rng, shape, dtype), dtype)
    panels = panels_of(rng, groups, int(np.prod(kernel)) * shape[4] // groups, o, i8)
    zp = leaf(bytes_of(rng, (1,), i8 if mode == "i8" else u8), i8 if mode == "i8" else u8)
    zx = leaf(bytes_of(rng, (1,), dtype), dtype)
    return integer.byte_conv(
        x, panels, *vectors(rng, groups, o, bool(asym)), zp, zx,
        outputs=o, groups=groups, kernel=kernel, strides=strides, dilation=dilation, low=low,
        out=out, mode=mode, asym=bool(asym),
    )  # fmt: skip


@pytest.mark.parametrize("case", CONVS)
def test_convolutions(case: tuple[Any, ...]) -> None:
    node = conv_node(np.random.default_rng(1), case)
    real = case[1] * case[7]  # what only fills a word is nobody's business
    np.testing.assert_array_equal(compiled(node)[..., :real], reference(node)[..., :real])


def test_kernels_mean_what_the_interpreter_says() -> None:
    node = conv_node(
        np.random.default_rng(2),
        ((1, 1, 3, 3, 4), 3, (1, 2, 2), (1, 1, 1), (1, 1, 1), (0, 1, 0), (0, 0, 1), 1, i8, "u8", 1),
    )
    np.testing.assert_array_equal(interpreted(node)[..., :3], reference(node)[..., :3])


@pytest.mark.parametrize(
    ("shape", "kernel", "strides", "dilation", "low", "high", "dtype", "mode", "asym"),
    [
        ((2, 9, 10, 20), (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), u8, "u8", False),
        ((2, 14, 15, 68), (5, 3), (2, 2), (1, 1), (2, 1), (1, 0), i8, "i8", True),
        ((1, 1, 30, 16), (1, 7), (1, 1), (1, 2), (0, 3), (0, 5), u8, "i32", False),
        ((1, 7, 5, 4), (3, 3), (2, 2), (2, 1), (1, -1), (2, 0), u8, "u8", True),
    ],
)
def test_depthwise(shape, kernel, strides, dilation, low, high, dtype, mode, asym) -> None:
    rng = np.random.default_rng(3)
    out = output_sizes("conv", shape[1:3], kernel, strides, tuple(zip(low, high)), dilation)
    c = shape[3]
    off, mult, zws = (leaf(reference(v)[0], v.dtype) for v in vectors(rng, 1, c, asym))
    words = leaf(integer.depthwise_words(bytes_of(rng, (c, *kernel), i8)), i32)
    zp = leaf(bytes_of(rng, (1,), i8 if mode == "i8" else u8), i8 if mode == "i8" else u8)
    zx = leaf(bytes_of(rng, (1,), dtype), dtype)
    x = leaf(bytes_of(rng, shape, dtype), dtype)
    node = integer.byte_depthwise(
        x, words, off, mult, zws, zp, zx, kernel=kernel, strides=strides, dilation=dilation,
        low=low, out=out, mode=mode, asym=asym,
    )  # fmt: skip
    check(node)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 70, 20), (2, 4, 1), (1, 5)])
def test_layout(shape: tuple[int, ...], layout: str) -> None:
    x = leaf(bytes_of(np.random.default_rng(4), shape, i8), i8, layout)
    moved = channels_last(x)
    check(moved)
    back = channels_first(moved, shape[1])
    np.testing.assert_array_equal(compiled(back), reference(x))
    assert channels_last(back) is moved


@pytest.mark.parametrize("layout", ["dense", "transposed"])
def test_quantising_moves_few_channels(layout: str) -> None:
    values_ = np.random.default_rng(5).standard_normal((2, 3, 5, 7))
    zero = leaf(np.int8(-3), i8)
    node = quantize_channels_last(leaf(values_, f32, layout), leaf(np.float32(0.02), f32), zero)
    check(node)
    np.testing.assert_array_equal(compiled(node)[..., 3], 0)


# --- what ONNX says ------------------------------------------------------------------------------


def exact_conv(
    x: np.ndarray, w: np.ndarray, zx: int, zw: np.ndarray, strides, padding, dilation, groups
) -> np.ndarray:
    """The sum over taps of (x - zx)(w - zw), channels first, padding zero; int64."""
    out = output_sizes("conv", x.shape[2:], w.shape[2:], strides, padding, dilation)
    wide = np.pad(x.astype(np.int64) - zx, [(0, 0), (0, 0), *padding])
    ws = w.astype(np.int64) - zw.reshape(-1, *(1,) * (w.ndim - 1))
    total = np.zeros((x.shape[0], groups, w.shape[0] // groups, *out), np.int64)
    for tap in indices(*map(range, w.shape[2:])):
        at = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilation, out, strides)
        )
        seen = wide[(..., *at)].reshape(x.shape[0], groups, -1, *out)
        part = ws[(..., *tap)].reshape(groups, -1, w.shape[1])
        total += np.einsum("ngc...,goc->ngo...", seen, part)
    return total.reshape(x.shape[0], w.shape[0], *out)


def requantised(total: np.ndarray, ratio: np.ndarray, zero: np.ndarray) -> np.ndarray:
    info = np.iinfo(zero.dtype)
    scaled = total.astype(np.int32).astype(np.float32) * ratio
    return np.clip(np.rint(scaled).astype(np.int64) + int(zero), info.min, info.max)


QCONVS: list[tuple[Any, ...]] = [
    # x, w, strides, padding, dilation, groups, x dtype, w dtype, zero points per output
    ((2, 3, 9, 8), (7, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, u8, i8, False),
    ((1, 58, 6, 5), (30, 58, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1, u8, i8, False),
    ((1, 8, 6, 5), (64, 8, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1, i8, u8, True),
    ((1, 8, 7, 6), (10, 8, 1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 1, u8, u8, True),
    ((1, 6, 9, 8), (6, 1, 3, 3), (2, 1), ((1, 0), (0, 1)), (1, 1), 6, u8, i8, False),
    ((1, 6, 12), (6, 1, 5), (1,), ((2, 2),), (2,), 6, i8, u8, True),
    ((2, 6, 9), (12, 1, 3), (1,), ((1, 1),), (1,), 6, u8, i8, True),  # two outputs a channel
    ((1, 12, 5, 6), (8, 3, 2, 3), (1, 1), ((0, 1), (1, 1)), (1, 1), 4, u8, u8, True),
    ((1, 4, 4, 5, 6), (6, 2, 2, 3, 3), (1, 2, 1), ((1, 1), (1, 0), (1, 1)), (1,) * 3, 2, u8, i8, 1),
    ((1, 6, 4, 5, 6), (6, 1, 2, 3, 3), (1,) * 3, ((1, 1), (1, 0), (1, 1)), (1,) * 3, 6, i8, i8, 0),
]  # fmt: skip


@pytest.mark.parametrize("case", QCONVS)
def test_qlinear_conv(case: tuple[Any, ...]) -> None:
    shape, w_shape, strides, padding, dilation, groups, xd, wd, asym = case
    rng = np.random.default_rng(5)
    o = w_shape[0]
    x, w = bytes_of(rng, shape, xd), bytes_of(rng, w_shape, wd)
    zx = bytes_of(rng, (), xd)
    zw = bytes_of(rng, (o,), wd) if asym else np.full((), 128 if wd is u8 else 0, wd.storage)
    zy = bytes_of(rng, (), xd)
    bias = rng.integers(-3000, 3000, o).astype(np.int32)
    sx, sw, sy = np.float32(0.02), rng.random(o).astype(np.float32) / 100, np.float32(0.05)
    node = qlinear.qlinear_conv(
        leaf(x, xd), constant(sx), constant(zx), constant(w), constant(sw), constant(zw),
        constant(sy), constant(zy), constant(bias), strides, padding, dilation, groups,
    )  # fmt: skip
    total = exact_conv(x, w, int(zx), zw.astype(np.int64), strides, padding, dilation, groups)
    per_output = (slice(None), *(None,) * (len(shape) - 2))
    want = requantised(total + bias[per_output], (sx * sw / sy)[per_output], zy)
    np.testing.assert_array_equal(compiled(node), want)
    sums = qlinear.conv_integer(
        leaf(x, xd), leaf(w, wd), leaf(zx, xd), leaf(zw, wd), Result(), strides, padding, dilation,
        groups,
    )  # fmt: skip
    np.testing.assert_array_equal(compiled(sums), total)


@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [
        ((5, 7), (7, 9)),
        ((2, 3, 5, 8), (8, 70)),
        ((2, 3, 5, 9), (3, 9, 6)),
        ((6,), (6, 3)),
        ((4, 6), (6,)),
    ],
)
@pytest.mark.parametrize("dtypes", [(u8, i8), (i8, i8), (u8, u8)], ids=str)
def test_matmul(a_shape, b_shape, dtypes) -> None:
    rng = np.random.default_rng(6)
    a, b = bytes_of(rng, a_shape, dtypes[0]), bytes_of(rng, b_shape, dtypes[1])
    za, zb = bytes_of(rng, (), dtypes[0]), bytes_of(rng, (), dtypes[1])
    total = np.matmul(a.astype(np.int64) - int(za), b.astype(np.int64) - int(zb))
    for make in (leaf, lambda v, d: constant(v)):
        node = qlinear.matmul_integer(
            leaf(a, dtypes[0]), make(b, dtypes[1]), leaf(za, dtypes[0]), make(zb, dtypes[1]),
            Result(),
        )  # fmt: skip
        assert node.dtype is i32
        np.testing.assert_array_equal(compiled(node), total)
    sa, sb, sy, zy = np.float32(0.02), np.float32(0.03), np.float32(0.11), bytes_of(rng, (), u8)
    node = qlinear.qlinear_matmul(
        leaf(a, dtypes[0]), constant(sa), constant(za), constant(b), constant(sb), constant(zb),
        constant(sy), constant(zy),
    )  # fmt: skip
    np.testing.assert_array_equal(compiled(node), requantised(total, sa * sb / sy, zy))


def test_nothing_to_multiply() -> None:
    x, w = leaf(np.zeros((0, 4)), u8), constant(np.zeros((4, 3), np.int8))
    node = qlinear.matmul_integer(x, w, None, None, Result())
    assert node.shape == (0, 3)
    assert compiled(node).shape == (0, 3)


def test_extremes_are_exact() -> None:
    k = 4096
    for a, b in ((255, -128), (255, 127), (0, -128)):
        x = leaf(np.full((1, k), a), u8)
        w = constant(np.full((k, 3), b, np.int8))
        node = qlinear.matmul_integer(x, w, None, None, Result())
        np.testing.assert_array_equal(compiled(node), np.full((1, 3), a * b * k))


def test_constants_are_folded_and_inputs_are_not() -> None:
    c = constant(np.arange(3, dtype=np.int32))
    from tilewright.ops.arithmetic import add

    found = values(add(c, c))
    assert found is not None
    np.testing.assert_array_equal(found, [0, 2, 4])
    x = leaf(np.arange(3), i32)
    node = add(c, x)
    assert folded(node) is node
    assert values(node) is None


def test_mistakes_are_named() -> None:
    x, w = leaf(np.zeros((1, 4, 5, 5)), u8), leaf(np.zeros((4, 3, 3, 3)), i8)
    same = ((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    with pytest.raises(ShapeError, match="4 channels to 4"):
        qlinear.conv_integer(x, w, None, None, Result(), *same)
    y = leaf(np.zeros((2, 2)), u8)
    with pytest.raises(DTypeError, match="zero point"):
        qlinear.matmul_integer(y, y, leaf(0, i8), None, Result())

"""Convolution and its gradients: kernels against references, references against PyTorch."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.gradcheck import check_gradient
from tests.ops.gradcheck import compiled as realised
from tests.ops.node_calls import LAYOUTS, check, compiled, leaf, random_values, with_threads

from tilewright.dtypes import DType, bf16, f16, f32, f64, from_float32, i32, to_float32
from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.ops.conv import (
    conv,
    conv_input_gradient,
    conv_transpose,
    conv_weight_gradient,
    same_padding,
)

# x, w, strides, padding, dilation, groups
CASES: list[tuple[Any, ...]] = [
    ((2, 3, 9, 10), (4, 3, 3, 3), 1, 1, 1, 1),
    ((2, 16, 9, 11), (33, 16, 3, 3), 1, 1, 1, 1),
    ((3, 5, 12, 30), (40, 5, 3, 3), 1, 0, 1, 1),
    ((2, 8, 14, 13), (70, 8, 5, 2), (2, 3), ((2, 1), (0, 1)), 1, 1),
    ((2, 4, 9, 10), (6, 2, 3, 2), 2, ((1, 2), (0, 1)), 1, 2),
    ((2, 16, 9, 10), (48, 8, 3, 3), 2, 1, 1, 2),
    ((1, 4, 11, 40), (4, 1, 3, 5), (2, 3), 2, (2, 2), 4),  # depthwise
    ((2, 4, 9, 20), (12, 1, 3, 3), 1, 1, 1, 4),  # depthwise, three outputs a channel
    ((2, 3, 20), (5, 3, 4), 3, ((2, 0),), 2, 1),
    ((2, 20, 50), (17, 20, 7), 2, 3, 1, 1),
    ((1, 2, 5, 6, 7), (3, 2, 2, 3, 3), (1, 2, 3), 1, 1, 1),
    ((2, 9, 4, 6, 7), (10, 9, 3, 3, 3), 1, 1, 1, 1),
    ((2, 24, 9, 11), (16, 24, 1, 1), 1, 0, 1, 1),
    ((2, 67, 3, 5), (9, 67, 1, 1), 1, 0, 1, 1),
    ((2, 8, 9, 11), (12, 8, 1, 1), 2, 0, 1, 1),
    ((2, 3, 16, 16), (12, 3, 4, 4), 4, 0, 1, 1),  # patches
    ((1, 9, 8, 10), (8, 9, 5, 3), (2, 3), 2, (2, 1), 1),
    ((1, 8, 12, 9), (8, 8, 3, 3), (4, 2), 1, (2, 4), 1),  # steps and dilation share a divisor
    ((2, 8, 2, 3), (8, 8, 5, 5), 1, ((2, 2), (1, 3)), 1, 1),  # the kernel is larger than x
    ((2, 8, 9, 9), (8, 8, 3, 3), 1, ((-1, 0), (2, -3)), 1, 1),  # elements left out
    ((3, 1, 28, 28), (32, 1, 3, 3), 1, 0, 1, 1),
    ((1, 12, 5, 1), (20, 12, 5, 1), 1, 0, 1, 1),  # a single output
    ((3, 2, 11, 19), (13, 2, 3, 4), (2, 1), 2, (1, 2), 1),  # few channels
    ((2, 6, 9, 17), (24, 2, 3, 3), 1, 1, 1, 3),
]


def nodes_of(
    case: tuple[Any, ...], dtype: DType = f32, layout: str = "dense", seed: int = 0
) -> tuple[Node, Node, Node]:
    """The three ops of one convolution on random values."""
    x_shape, w_shape, strides, padding, dilation, groups = case
    rng = np.random.default_rng(seed)
    values = partial(random_values, rng, dtype=dtype)
    x, w = leaf(values(x_shape), dtype, layout), leaf(values(w_shape), dtype, layout)
    forward = conv(x, w, strides, padding, dilation, groups)
    y = leaf(values(forward.shape), dtype, layout)
    return (
        forward,
        conv_input_gradient(y, w, x_shape[2:], strides, padding, dilation, groups),
        conv_weight_gradient(x, y, w_shape[2:], strides, padding, dilation, groups),
    )


TOLERANCE = {f64: 1e-12, f32: 1e-5, f16: 2e-3, bf16: 1e-2}


def agree(node: Node) -> None:
    """Kernels and reference, relative to the largest sums of the node's size."""
    rtol = TOLERANCE[node.dtype]
    k = max(np.prod(i.shape) / max(i.shape[0], 1) for i in node.inputs)
    check(node, rtol=rtol, atol=rtol * 16 * float(np.sqrt(k)))


@pytest.mark.parametrize("number", range(len(CASES)))
def test_kernels(number: int) -> None:
    for node in nodes_of(CASES[number], layout=LAYOUTS[number % 4]):
        agree(node)


@pytest.mark.parametrize("layout", ["dense", "transposed"])
@pytest.mark.parametrize("dtype", [f64, f16, bf16], ids=str)
@pytest.mark.parametrize("case", [CASES[i] for i in (5, 6, 12, 22)])
def test_dtypes_and_layouts(case: tuple[Any, ...], dtype: DType, layout: str) -> None:
    for node in nodes_of(case, dtype, layout):
        agree(node)


def in_order(x: np.ndarray, w: np.ndarray, stride: int, pad: int) -> np.ndarray:
    """One accumulator per output, one fused multiply-add per channel and tap, ascending.

    A product of two f32 is exact in float64, and so is its sum with an f32, up to a double
    rounding that is too rare to meet here.
    """
    wide = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))).astype(np.float64)
    kh, kw = w.shape[2:]
    oh, ow = ((n - k) // stride + 1 for n, k in zip(wide.shape[2:], (kh, kw)))
    acc = np.zeros((x.shape[0], w.shape[0], oh, ow), np.float32)
    for c in range(x.shape[1]):
        for i in range(kh):
            for j in range(kw):
                rows = slice(i, i + (oh - 1) * stride + 1, stride)
                columns = slice(j, j + (ow - 1) * stride + 1, stride)
                seen = wide[:, None, c, rows, columns]
                product = seen * w[None, :, c, i, j, None, None].astype(np.float64)
                acc = (product + acc.astype(np.float64)).astype(np.float32)
    return acc


@pytest.mark.parametrize("outputs", [1, 4, 9, 40])
@pytest.mark.parametrize(
    ("kernel", "stride", "pad"), [((3, 3), 1, 1), ((1, 1), 1, 0), ((2, 3), 2, 0), ((1, 1), 2, 0)]
)
def test_order_of_the_sum(outputs: int, kernel: tuple[int, int], stride: int, pad: int) -> None:
    rng = np.random.default_rng(outputs)
    x = rng.standard_normal((2, 35, 9, 14), np.float32)
    w = rng.standard_normal((outputs, 35, *kernel), np.float32)
    got = compiled(conv(leaf(x, f32), leaf(w, f32), stride, pad))
    assert got.tobytes() == in_order(x, w, stride, pad).tobytes()


@pytest.mark.parametrize("channels", [2, 7])
@pytest.mark.parametrize("kernel", [(2, 3), (1, 1)])
def test_order_of_the_sum_of_pairs(channels: int, kernel: tuple[int, int]) -> None:
    """bf16: the second of two channels is added first, each with one rounding."""
    rng = np.random.default_rng(channels)
    x = random_values(rng, (1, channels, 5, 9), bf16)
    w = random_values(rng, (9, channels, *kernel), bf16)
    whole = np.zeros((1, channels + channels % 2, 5, 9), np.float32)
    wide_w = np.zeros((9, whole.shape[1], *kernel), np.float32)
    whole[:, :channels], wide_w[:, :channels] = x, w
    oh, ow = 6 - kernel[0], 10 - kernel[1]
    acc = np.zeros((1, 9, oh, ow), np.float32)
    for c in range(0, whole.shape[1], 2):
        for i, j in np.ndindex(kernel):
            for half in (1, 0):
                seen = whole[:, None, c + half, i : i + oh, j : j + ow].astype(np.float64)
                product = seen * wide_w[None, :, c + half, i, j, None, None]
                acc = (product + acc).astype(np.float32)
    got = compiled(conv(leaf(x, bf16), leaf(w, bf16)))
    np.testing.assert_array_equal(got, to_float32(from_float32(acc)))


@pytest.mark.parametrize("dtype", [f32, bf16], ids=str)
@pytest.mark.parametrize("case", [CASES[i] for i in (1, 6, 12, 22)])
def test_same_bits_for_threads_and_layouts(case: tuple[Any, ...], dtype: DType) -> None:
    def bits(layout: str) -> list[bytes]:
        return [compiled(node).tobytes() for node in nodes_of(case, dtype, layout)]

    expected = with_threads(1, lambda: bits("dense"))
    for threads in (2, 3, 4):
        assert with_threads(threads, lambda: bits("dense")) == expected
    for layout in LAYOUTS[1:]:
        assert bits(layout) == expected


def test_a_batch_is_its_images() -> None:
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((5, 6, 9, 9), np.float32), rng.standard_normal((20, 6, 3, 3))
    whole = compiled(conv(leaf(x, f32), leaf(w, f32), 1, 1))
    for i in range(5):
        alone = compiled(conv(leaf(x[i : i + 1], f32), leaf(w, f32), 1, 1))
        assert alone.tobytes() == whole[i : i + 1].tobytes()


def test_interpreter_agrees_bit_for_bit() -> None:
    from tests.ops.kernel_calls import interpret
    from tests.ops.node_calls import _soiled

    from tilewright.ops import table

    for node in nodes_of(((1, 3, 5, 6), (9, 3, 2, 3), (1, 2), 1, 1, 1)):
        entry = table.get(node.op)
        out = _soiled(node.dtype, node.shape)
        work = [_soiled(*w) for w in entry.workspace(node)]
        interpret(entry.calls(node, [i.value for i in node.inputs], out, work))
        assert out.numpy().tobytes() == compiled(node).tobytes()


@pytest.mark.parametrize("case", CASES)
def test_gradients(case: tuple[Any, ...]) -> None:
    """Values, gradients and their gradients against differences, values and gradients to torch."""
    x_shape, w_shape, strides, padding, dilation, groups = case
    rng = np.random.default_rng(1)
    check_gradient(
        lambda x, w: conv(x, w, strides, padding, dilation, groups),
        rng.standard_normal(x_shape),
        rng.standard_normal(w_shape),
        order=2,
        torch_fn=partial(torch_conv, strides, padding, dilation, groups),
        tolerance=1e-5,
    )


def torch_conv(strides: Any, padding: Any, dilation: Any, groups: int, x: Any, w: Any) -> Any:
    """PyTorch's convolution; it pads evenly only, so padding comes first."""
    import torch

    rank = w.ndim - 2
    pairs = [(padding, padding)] * rank if isinstance(padding, int) else padding
    x = torch.nn.functional.pad(x, [n for pair in reversed(pairs) for n in pair])
    function = (torch.conv1d, torch.conv2d, torch.conv3d)[rank - 1]
    return function(x, w, None, strides, 0, dilation, groups)


def test_gradients_by_kernels() -> None:
    rng = np.random.default_rng(2)
    check_gradient(
        lambda x, w: conv(x, w, (2, 1), 1, 1, 2),
        rng.standard_normal((2, 4, 6, 5)),
        rng.standard_normal((18, 2, 3, 2)),
        order=2,
        torch_fn=partial(torch_conv, (2, 1), 1, 1, 2),
        run=realised,
        tolerance=1e-5,
    )


@pytest.mark.parametrize(
    ("x", "w", "strides", "padding", "dilation", "groups", "extra"),
    [
        ((2, 4, 5, 6), (4, 3, 3, 3), 2, 1, 1, 1, 1),
        ((2, 16, 5, 6), (16, 9, 4, 4), 2, 1, 1, 1, 0),
        ((1, 6, 7), (6, 2, 3), 3, 1, 2, 2, (2,)),
        ((2, 4, 3, 4, 5), (4, 2, 2, 3, 2), (2, 1, 3), 0, 1, 1, (1, 0, 2)),
        ((1, 8, 4, 4), (8, 1, 5, 5), 1, 2, 1, 8, 0),
        ((1, 3, 4, 5), (3, 10, 2, 2), 2, 0, 1, 1, 0),
    ],
)
def test_conv_transpose(
    x: Any, w: Any, strides: Any, padding: Any, dilation: Any, groups: int, extra: Any
) -> None:
    def torch_fn(x: Any, w: Any) -> Any:
        from torch.nn import functional

        name = f"conv_transpose{w.ndim - 2}d"
        fn = getattr(functional, name)
        return fn(x, w, None, strides, padding, extra, groups, dilation)

    rng = np.random.default_rng(4)
    check_gradient(
        lambda a, b: conv_transpose(a, b, strides, padding, dilation, groups, extra),
        rng.standard_normal(x),
        rng.standard_normal(w),
        torch_fn=torch_fn,
        tolerance=1e-5,
    )
    node = conv_transpose(
        leaf(rng.standard_normal(x), f32),
        leaf(rng.standard_normal(w), f32),
        strides,
        padding,
        dilation,
        groups,
        extra,
    )
    agree(node)


def test_empty_batches_and_no_channels() -> None:
    for x, w, groups in [((0, 3, 6, 6), (9, 3, 3, 3), 1), ((0, 4, 6, 6), (4, 1, 3, 3), 4)]:
        for node in nodes_of((x, w, 1, 1, 1, groups)):
            agree(node)
    forward, back, weights = nodes_of(((2, 0, 6, 6), (9, 0, 3, 3), 1, 1, 1, 1))
    np.testing.assert_array_equal(compiled(forward), np.zeros((2, 9, 6, 6)))
    assert compiled(back).shape == (2, 0, 6, 6)
    assert compiled(weights).shape == (9, 0, 3, 3)
    gradient = nodes_of(((0, 3, 6, 6), (9, 3, 3, 3), 1, 1, 1, 1))[2]
    np.testing.assert_array_equal(compiled(gradient), np.zeros((9, 3, 3, 3)))


def test_nan_and_infinity_reach_only_what_sees_them() -> None:
    x = np.ones((1, 2, 8, 9), np.float32)
    x[0, 0, 3, 4] = np.nan
    got = compiled(conv(leaf(x, f32), leaf(np.ones((10, 2, 3, 3)), f32), 1, 1))
    seen = np.zeros((8, 9), bool)
    seen[2:5, 3:6] = True
    assert (np.isnan(got) == seen).all()


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_any_geometry(data: st.DataObject) -> None:
    draw = data.draw
    rank = draw(st.integers(1, 2))
    small = st.integers(1, 3)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = groups * draw(st.integers(1, 5))
    outputs = groups * draw(st.sampled_from([1, 3, 8, 13]))
    kernel = [draw(st.integers(1, 4)) for _ in range(rank)]
    dilation = [draw(small) for _ in range(rank)]
    strides = [draw(st.integers(1, 4)) for _ in range(rank)]
    padding = [(draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(rank)]
    size = [
        max(d * (k - 1) + 1 - a - b, 1) + draw(st.integers(0, 12))
        for k, d, (a, b) in zip(kernel, dilation, padding)
    ]
    case = (
        (draw(st.integers(1, 3)), channels, *size),
        (outputs, channels // groups, *kernel),
        strides,
        padding,
        dilation,
        groups,
    )
    for node in nodes_of(case, layout=draw(st.sampled_from(LAYOUTS))):
        agree(node)


@pytest.mark.parametrize("upper", [True, False])
def test_same_padding(upper: bool) -> None:
    for n in range(1, 12):
        for k, s, d in [(3, 1, 1), (2, 2, 1), (5, 3, 2), (1, 4, 1)]:
            pairs = same_padding([n], [k], [s], [d], upper)
            x = leaf(np.ones((1, 1, n)), f32)
            assert conv(x, leaf(np.ones((1, 1, k)), f32), s, pairs, d).shape[2] == -(-n // s)
            low, high = pairs[0]
            assert 0 <= (high - low if upper else low - high) <= 1


def test_errors() -> None:
    def make(x: Any, w: Any, *args: Any, dtype: DType = f32) -> Node:
        return conv(leaf(np.ones(x), dtype), leaf(np.ones(w), f32), *args)

    with pytest.raises(ShapeError, match="larger than the input"):
        make((1, 2, 4, 4), (3, 2, 5, 5))
    with pytest.raises(ShapeError, match=r"4 channels to 3 in 2 groups"):
        make((1, 4, 4, 4), (3, 2, 1, 1), 1, 0, 1, 2)
    with pytest.raises(ShapeError, match="one float dtype, got f64 and f32"):
        make((1, 2, 4, 4), (3, 2, 1, 1), dtype=f64)
    with pytest.raises(ShapeError, match="one float dtype"):
        conv(leaf(np.ones((1, 1, 3)), i32), leaf(np.ones((1, 1, 3)), i32))
    with pytest.raises(ShapeError, match="two axes and one to three spatial"):
        make((1, 2, 4), (3, 2, 1, 1))
    with pytest.raises(ShapeError, match="at least one"):
        make((1, 2, 4, 4), (3, 2, 1, 1), 0)
    with pytest.raises(ShapeError, match="2 spatial axes want 2 strides"):
        make((1, 2, 4, 4), (3, 2, 1, 1), (1, 1, 1))
    with pytest.raises(ShapeError, match="wants y to be"):
        conv_input_gradient(leaf(np.ones((1, 3, 9)), f32), leaf(np.ones((3, 2, 3)), f32), (7,))
    x, y = leaf(np.ones((1, 3, 9)), f32), leaf(np.ones((1, 3, 9)), f32)
    with pytest.raises(ShapeError, match="want y"):
        conv_weight_gradient(x, y, (3,))

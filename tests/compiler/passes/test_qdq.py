"""Passes over integer networks: what they find, and that values stay what they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.ops.node_calls import leaf, reference

from tilewright.compiler.fusion import pending
from tilewright.compiler.passes.channels import keep_channels_last
from tilewright.compiler.passes.qdq import fuse_quantized
from tilewright.compiler.realize import realize
from tilewright.dtypes import u8
from tilewright.graph import Node
from tilewright.ops import qlinear
from tilewright.ops.activations import relu
from tilewright.ops.arithmetic import add
from tilewright.ops.comparison import clip
from tilewright.ops.constants import constant
from tilewright.ops.conv import conv
from tilewright.ops.gemm import bmm
from tilewright.ops.pool import max_pool
from tilewright.ops.quantize import dequantize, quantize
from tilewright.ops.views import concat, permute, reshape, slice_

RNG = np.random.default_rng(0)
SCALES = {"x": 0.02, "y": 0.03, "z": 0.05}


def scale(name: str) -> Node:
    return constant(np.float32(SCALES[name]))


def zero(value: int, dtype: Any = np.uint8) -> Node:
    return constant(dtype(value))


def image(channels: int) -> Node:
    return leaf(RNG.integers(0, 256, (1, channels, 5, 6)), u8)


def ops_of(node: Node) -> set[str]:
    return {n.op for n in pending([node]) if n.value is None}


def computed(node: Node) -> np.ndarray:
    (buffer,) = realize([node])
    return np.array(buffer.numpy())


def point_conv(x: Node, outputs: int) -> Node:
    """A 1 x 1 convolution of bytes."""
    w = constant(RNG.integers(-128, 128, (outputs, x.shape[1], 1, 1)).astype(np.int8))
    return qlinear.qlinear_conv(
        x, scale("x"), zero(100), w, constant(np.float32(0.01)), None, scale("y"), zero(90), None,
        (1, 1), ((0, 0), (0, 0)), (1, 1),
    )  # fmt: skip


def test_shuffles_between_convolutions_are_joins() -> None:
    a, b = point_conv(image(8), 10), point_conv(image(8), 10)
    real = [dequantize(v, scale("y"), zero(90)) for v in (a, b)]
    both = reshape(concat(real, 1), (1, 2, 10, 5, 6))
    mixed = reshape(permute(both, (0, 2, 1, 3, 4)), (1, 20, 5, 6))
    bytes_ = quantize(mixed, scale("z"), zero(80))
    half = slice_(bytes_, (0, 10, 0, 0), (1, 10, 5, 6))
    out = point_conv(half, 12)
    wanted = reference(out)
    (made,) = keep_channels_last([out])
    assert "byte_join" in ops_of(made)
    assert not {"concat", "permute", "dequantize"} & ops_of(made)
    np.testing.assert_array_equal(computed(made), wanted)
    np.testing.assert_array_equal(computed(out), wanted)


def test_pooling_and_elementwise_ops_stay_inside() -> None:
    x = point_conv(image(8), 10)
    x = max_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)))[0]
    x = quantize(relu(dequantize(x, scale("y"), zero(90))), scale("z"), zero(80))
    out = point_conv(x, 6)
    wanted = reference(out)
    (made,) = keep_channels_last([out])
    assert "byte_max_pool" in ops_of(made)
    assert len([n for n in pending([made]) if n.op == "channels_last"]) == 1
    np.testing.assert_array_equal(computed(made), wanted)


def real_conv(x: Node, bias: bool) -> tuple[Node, Node]:
    """(a convolution of dequantised arrays, the same in integers)."""
    w = constant(RNG.integers(-128, 128, (6, 8, 3, 3)).astype(np.int8))
    sw = constant(RNG.uniform(0.001, 0.01, 6).astype(np.float32))
    zw = constant(np.zeros(6, np.int8))
    wide = [reshape(v, (6, 1, 1, 1)) for v in (sw, zw)]
    y = conv(dequantize(x, scale("x"), zero(100)), dequantize(w, *wide), 1, 1)
    sums = None
    if bias:
        sums = constant(RNG.integers(-500, 500, 6).astype(np.int32))
        steps = constant(np.float32(SCALES["x"]) * sw.value.numpy())
        real = dequantize(sums, steps, constant(np.zeros(6, np.int32)))
        y = add(y, reshape(real, (6, 1, 1)))
    exact = qlinear.qlinear_conv(
        x, scale("x"), zero(100), w, sw, zw, scale("y"), zero(0), sums, (1, 1),
        ((1, 1), (1, 1)), (1, 1),
    )  # fmt: skip
    return y, exact


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("clamp", ["", "relu", "clip"])
def test_qdq_convolutions(bias: bool, clamp: str) -> None:
    y, exact = real_conv(image(8), bias)
    wanted = reference(exact)
    if clamp == "relu":
        y = relu(y)
    if clamp == "clip":
        y = clip(y, constant(np.float32(0.3)), constant(np.float32(1.2)))
        wanted = np.clip(wanted, 10, 40)
    out = quantize(y, scale("y"), zero(0))
    (made,) = fuse_quantized([out], lambda n: not n.attrs.get("constant"))
    assert "byte_conv" in ops_of(made)
    assert "conv" not in ops_of(made)
    np.testing.assert_array_equal(computed(made), wanted)


def test_a_convolution_that_others_read_stays() -> None:
    y, _ = real_conv(image(8), False)
    out = quantize(y, scale("y"), zero(0))
    made = fuse_quantized([out, relu(y)], lambda n: not n.attrs.get("constant"))
    assert "conv" in ops_of(made[0])


def test_qdq_sums_and_products() -> None:
    x, y = image(4), image(4)
    a, b = dequantize(x, scale("x"), zero(100)), dequantize(y, scale("y"), zero(90))
    for node, op in (
        (add(a, b), "quantized_sum"),
        (reshape(permute(a, (0, 2, 3, 1)), (30, 4)), ""),
    ):
        made = fuse_quantized([quantize(node, scale("x"), zero(100))], lambda n: True)[0]
        assert "dequantize" not in ops_of(made)
        assert not op or op in ops_of(made)
    w = constant(RNG.integers(-128, 128, (6, 3)).astype(np.int8))
    sw, zw = constant(np.full((1, 3), 0.01, np.float32)), constant(np.zeros((1, 3), np.int8))
    rows = reshape(a, (20, 6))
    real = bmm(rows, dequantize(w, sw, zw))
    (made,) = fuse_quantized([real], lambda n: not n.attrs.get("constant"))
    assert "byte_gemm" in ops_of(made)
    np.testing.assert_allclose(computed(made), reference(real), rtol=1e-5, atol=1e-5)
    (made,) = fuse_quantized([quantize(real, scale("z"), zero(80))], lambda n: True)
    assert "byte_gemm" in ops_of(made)

"""Quantised sums, products and means of ONNX, element by element, in the layout of their inputs."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from tilewright.dtypes import f32, i32
from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.ops import reductions
from tilewright.ops.arithmetic import add, div, literal, mul, sub
from tilewright.ops.constants import constant, folded, values
from tilewright.ops.creation import cast
from tilewright.ops.integer_layout import channels_first
from tilewright.ops.qlinear import on_channels_last
from tilewright.ops.quantize import dequantize, quantize, quantized_product, quantized_sum
from tilewright.ops.table import make
from tilewright.ops.views import permute, reshape, sizes_of

__all__ = [
    "number",
    "qlinear_add",
    "qlinear_mul",
    "qlinear_plane_mean",
    "qlinear_window_mean",
    "requantize",
]


def number(x: Node) -> Node:
    """A scale or zero point for all elements, 0-d; :class:`ShapeError` if it is for less."""
    if prod(sizes_of(x)) != 1:
        raise ShapeError(f"one scale and zero point for all are wanted, got shape {sizes_of(x)}")
    return reshape(x, ())


def qlinear_add(
    a: Node, sa: Node, za: Node, b: Node, sb: Node, zb: Node, sy: Node, zy: Node
) -> Node:
    """The quantised sum of bytes a and b; scales and zero points 0-d. As ONNX Runtime rounds it."""
    ra, rb = div(sa, sy), div(sb, sy)
    fixed = sub(cast(zy, f32), add(mul(ra, cast(za, f32)), mul(rb, cast(zb, f32))))
    ra, rb, fixed = folded(ra), folded(rb), folded(fixed)
    return on_channels_last(lambda u, v: quantized_sum(u, v, ra, rb, fixed), a, b)


def qlinear_mul(
    a: Node, sa: Node, za: Node, b: Node, sb: Node, zb: Node, sy: Node, zy: Node
) -> Node:
    """The quantised product of bytes a and b; scales and zero points 0-d."""
    ratio = folded(div(mul(sa, sb), sy))
    return on_channels_last(lambda u, v: quantized_product(u, v, za, zb, ratio, zy), a, b)


def qlinear_plane_mean(x: Node, sx: Node, zx: Node, sy: Node, zy: Node) -> Node:
    """The mean of each plane of bytes x (N, C, *size): (N, C, 1, ...), summed exactly."""
    _, c, *size = sizes_of(x)
    count = prod(size)
    if x.op == "channels_first":
        inner = x.inputs[0]
    else:
        inner = permute(x, (0, *range(2, len(x.shape)), 1))
    total = reductions.sum(cast(inner, i32), tuple(range(1, len(size) + 1)), True)
    total = sub(total, mul(cast(zx, i32), literal(count, total)))
    ratio = folded(div(sx, mul(sy, literal(float(count), sy))))
    y = quantize(mul(cast(total, f32), ratio), constant(np.ones((), np.float32)), zy)
    return channels_first(y, c)


def qlinear_window_mean(x: Node, sx: Node, zx: Node, sy: Node, zy: Node, **attrs: Any) -> Node:
    """The mean of each window of bytes x, attrs those of ``avg_pool``.

    As ONNX Runtime computes it: a mean in f32, and the zero point added before it is rounded.
    """
    mean = make("avg_pool", dequantize(x, sx, zx), **attrs)
    shifted = add(div(mean, sy), cast(zy, f32))
    return quantize(
        shifted, constant(np.ones((), np.float32)), constant(np.zeros((), zy.dtype.storage))
    )


def requantize(x: Node, sx: Node, zx: Node, sy: Node, zy: Node) -> Node:
    """Bytes with another scale and zero point; x itself where both are known to be the same."""
    a, b, c, d = (values(v) for v in (sx, sy, zx, zy))
    if all(v is not None for v in (a, b, c, d)) and (a, c) == (b, d):
        return x
    return quantize(dequantize(x, sx, zx), sy, zy)

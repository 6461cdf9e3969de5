"""Channels last and back, for bytes.

``channels_last`` moves planes (N, C, *size) into the layout of :mod:`tilewright.ops.integer`,
(N, *size, C') with C' the channels rounded up to four; the added bytes are zero. ``channels_first``
is the way back, and only a view. Whoever builds on the result of a ``channels_first`` takes what
lies behind it, so consecutive integer ops exchange no planes.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels are checked by the kernel language)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from tilewright import lang as tl
from tilewright.dtypes import DType, f32, i8, i32, u8, u32
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.lang import Array, Const, program_id, unroll
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_shapes import planes
from tilewright.ops.quantize import round_to, rounded
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import reshape_strides, sizes_of
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = ["channels_first", "channels_last", "quantize_channels_last"]


@kernel
def move_channels(x: Array, y: Array, CW: Const, N: Const):
    """Words y (B, D, H, W, C') from bytes x (B, C, D, H, W): four channels a word.

    Grid (W / N, C' / CW, B * D * H).
    """
    at, word = program_id(0) * N, program_id(1) * CW
    line = program_id(2)
    h, plane = line % y.shape[2], line // y.shape[2]
    d, b = plane % y.shape[1], plane // y.shape[1]
    total = tl.zeros((CW, N), u32)
    for j in unroll(4):
        part = x[b, 4 * word + j : 4 * word + j + 4 * CW : 4, d, h, at : at + N].to(u32) & 255
        total = total | (part << (8 * j))
    y[b, d, h, at : at + N, word : word + CW] = total.T


@kernel
def move_few_channels(x: Array, y: Array, N: Const):
    """Words y (B, D, H, W) from bytes x (B, C, D, H, W) of at most four channels.

    Grid (W / N, B * D * H).
    """
    at, line = program_id(0) * N, program_id(1)
    h, plane = line % y.shape[2], line // y.shape[2]
    d, b = plane % y.shape[1], plane // y.shape[1]
    total = tl.zeros((N,), u32)
    for j in unroll(4):  # beyond the last channel is zero
        part = x[b, j, d, h, at : at + N].to(u32) & 255
        total = total | (part << (8 * j))
    y[b, d, h, at : at + N] = total


@kernel
def quantize_few_channels(
    x: Array, scale: Array, zero: Array, y: Array, C: Const, N: Const, D: Const
):
    """Words y (B, D, H, W) of C channels of f32 x (B, C, D, H, W), quantised.

    Grid (W / N, B * D * H).
    """
    at, line = program_id(0) * N, program_id(1)
    h, plane = line % y.shape[2], line // y.shape[2]
    d, b = plane % y.shape[1], plane // y.shape[1]
    s, z = scale[0], zero[0].to(i32)
    low, high = (-128, 127) if D is i8 else (0, 255)
    total = tl.zeros((N,), u32)
    for j in unroll(C):
        q = round_to(x[b, j, d, h, at : at + N] / s, z, low, high, i32)
        total = total | ((q.to(u32) & 255) << (8 * j))
    y[b, d, h, at : at + N] = total


def _last_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    (x,) = inputs
    if x.dtype not in (u8, i8) or len(x.shape) < 2:
        raise ShapeError(f"channels_last wants bytes (N, C, ...), got {x.dtype}{shape_of(x.shape)}")
    return (x.shape[0], *x.shape[2:], -(-sizes_of(x)[1] // 4) * 4), x.dtype


def _last_reference(x: np.ndarray) -> np.ndarray:
    moved = np.moveaxis(x, 1, -1)
    more = -x.shape[1] % 4
    return np.pad(moved, [(0, 0)] * (x.ndim - 1) + [(0, more)])


def _last_calls(node: Node, inputs: Sequence[Buffer], out: Buffer) -> list[KernelCall]:
    (x,) = inputs
    n, words = x.shape[0], out.shape[-1] // 4
    wide = _planes_of(x)
    if words == 1:
        few = out.view((n, *wide.shape[2:]), None, 0, u32)
        lines = (-(-wide.shape[4] // 256), n * wide.shape[2] * wide.shape[3])
        return [KernelCall(move_few_channels, lines, (wide, few), {"N": 256})]
    y = out.view((n, *wide.shape[2:], words), None, 0, u32)
    cw = next(k for k in (16, 8, 4, 2, 1) if k <= max(words, 1))
    lanes = 16 if cw > 1 else 64
    grid = (-(-wide.shape[4] // lanes), -(-words // cw), n * wide.shape[2] * wide.shape[3])
    return [KernelCall(move_channels, grid, (wide, y), {"CW": cw, "N": lanes})]


register(OpDef("channels_last", _last_infer, _last_reference, calls=_last_calls))


def channels_last(x: Node) -> Node:
    """Bytes x (N, C, *size) as (N, *size, C'); what a ``channels_first`` came from, if x is one."""
    if x.op == "channels_first":
        return x.inputs[0]
    return make("channels_last", x)


def _planes_of(x: Buffer) -> Buffer:
    """x (N, C, *size) as (N, C, 1, 1, S), or with its axes where they cannot be one."""
    flat = (*x.shape[:2], 1, 1, prod(x.shape[2:]))
    steps = reshape_strides(x.shape, x.strides, flat)
    return planes(x) if steps is None else x.view(flat, steps)


def _quantized_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    x, scale, zero = inputs
    if x.dtype is not f32 or zero.dtype not in (u8, i8) or scale.shape or zero.shape:
        raise ShapeError(f"quantize_channels_last wants f32 and two numbers, got {inputs}")
    if len(x.shape) < 3 or not 0 < sizes_of(x)[1] <= 4:
        raise ShapeError(f"quantize_channels_last wants up to four channels, got {x!r}")
    return (x.shape[0], *x.shape[2:], 4), zero.dtype


def _quantized_reference(x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    info = np.iinfo(zero.dtype)
    return _last_reference(rounded(x / scale, zero, int(info.min), int(info.max), zero.dtype))


def _quantized_calls(node: Node, inputs: Sequence[Buffer], out: Buffer) -> list[KernelCall]:
    x, scale, zero = inputs
    wide = _planes_of(x)
    y = out.view((out.shape[0], *wide.shape[2:]), None, 0, u32)
    grid = (-(-wide.shape[4] // 128), wide.shape[0] * wide.shape[2] * wide.shape[3])
    consts = {"C": x.shape[1], "N": 128, "D": node.dtype}
    numbers = (scale.view((1,), (1,)), zero.view((1,), (1,)))
    return [KernelCall(quantize_few_channels, grid, (wide, *numbers, y), consts)]


register(
    OpDef("quantize_channels_last", _quantized_infer, _quantized_reference, calls=_quantized_calls)
)


def quantize_channels_last(x: Node, scale: Node, zero: Node) -> Node:
    """``channels_last(quantize(x, scale, zero))`` of f32 x (N, C, *size), up to four channels."""
    return make("quantize_channels_last", x, scale, zero)


def _first_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    (x,) = inputs
    channels = attrs["channels"]
    if not 0 <= channels <= sizes_of(x)[-1]:
        raise ShapeError(f"channels_first: {shape_of(x.shape)} has no {channels} channels")
    return (x.shape[0], channels, *x.shape[1:-1]), x.dtype


def _first_view(node: Node, x: Buffer) -> Buffer:
    shape = (x.shape[0], node.attrs["channels"], *x.shape[1:-1])
    return x.view(shape, (x.strides[0], x.strides[-1], *x.strides[1:-1]))


register(
    OpDef(
        "channels_first",
        _first_infer,
        lambda x, channels: np.moveaxis(x[..., :channels], -1, 1),
        view=_first_view,
    )
)


def channels_first(x: Node, channels: int) -> Node:
    """x (N, *size, C') as (N, channels, *size), without a copy."""
    return make("channels_first", x, channels=channels)

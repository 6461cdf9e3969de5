"""Quantised operators of ai.onnx: linear quantisation, integer products and convolutions.

A tensor of int4, uint4, int2, uint2 or an 8- or 4-bit float exists as a constant or between
programs, as an ml_dtypes array; where it is dequantised it becomes an i8, u8 or f32 tensor, which
holds the same values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import bf16, f16, f32, i32
from tilewright.errors import DTypeError, FormatError, ShapeError, UnsupportedError
from tilewright.graph import Node
from tilewright.onnx.ops.convolution import pad_pairs
from tilewright.onnx.registry import Call, op
from tilewright.onnx.values import dtype_of
from tilewright.ops import qlinear, reductions
from tilewright.ops.arithmetic import div, literal, mul, sub
from tilewright.ops.comparison import eq, maximum, minimum, where
from tilewright.ops.constants import constant, folded
from tilewright.ops.creation import cast
from tilewright.ops.quantize import dequantize, quantize
from tilewright.ops.views import broadcast, reshape, sizes_of
from tilewright.ops.views import slice_ as take_slice
from tilewright.tensor.core import Tensor

__all__ = ["known", "node_of", "per_axis", "small_array"]


# --- what the quantised families share -----------------------------------------------------------


def node_of(ctx: Call, value: Tensor | np.ndarray | None) -> Node:
    """The node of a value, marked as a constant where it depends on no input of the model."""
    if isinstance(value, np.ndarray):
        return constant(value)
    if value is None:
        raise FormatError("an input that has to be there is left out")
    node = value.node
    if ctx.trace.is_constant(node):
        if node.value is None:
            return constant(ctx.value(value), node.dtype)
        return constant(node.value, name=node.name)
    return node


def known(ctx: Call, *values: Tensor | None) -> list[Node | None]:
    """:func:`node_of` of each that is there."""
    return [None if v is None else node_of(ctx, v) for v in values]


def per_axis(value: Node, x: Node, axis: int, block: int = 0) -> Node:
    """A scale or zero point that broadcasts with x: one for all, one per channel or per block."""
    sizes, shape = sizes_of(value), sizes_of(x)
    if not sizes or (sizes == (1,) and not block):
        return reshape(value, ())
    axis += len(shape) if axis < 0 else 0
    if not 0 <= axis < len(shape):
        raise ShapeError(f"axis {axis} of an array of shape {shape}")
    if not block and len(sizes) == 1:
        if sizes[0] != shape[axis]:
            raise ShapeError(f"{sizes[0]} scales for axis {axis} of {shape}")
        return reshape(value, (*(1,) * axis, sizes[0], *(1,) * (len(shape) - axis - 1)))
    if not block:
        raise ShapeError(f"scales of shape {sizes} for {shape} want a block size")
    blocks = -(-shape[axis] // block)
    if sizes != (*shape[:axis], blocks, *shape[axis + 1 :]):
        raise ShapeError(f"scales of shape {sizes} for {shape} in blocks of {block} on axis {axis}")
    wide = reshape(value, (*sizes[: axis + 1], 1, *sizes[axis + 1 :]))
    wide = broadcast(wide, (*sizes[: axis + 1], block, *sizes[axis + 1 :]))
    wide = reshape(wide, (*sizes[:axis], blocks * block, *sizes[axis + 1 :]))
    return take_slice(wide, (0,) * len(shape), shape) if wide.shape != x.shape else wide


def small_array(array: np.ndarray) -> np.ndarray:
    """An ml_dtypes array as what a tensor holds: small integers as i8 or u8, floats as f32."""
    name = array.dtype.name
    if name.startswith("uint"):
        return array.astype(np.uint8)
    if name.startswith("int"):
        return array.astype(np.int8)
    return array.astype(np.float32)


def _widened(ctx: Call, value: Any) -> Any:
    """A value as a node; arrays that no tensor holds by their values."""
    if isinstance(value, np.ndarray) and dtype_of(value.dtype) is None:
        return constant(small_array(value))
    return node_of(ctx, value)


def _to_f32(x: Node) -> Node:
    return cast(x, f32) if x.dtype in (f16, bf16, i32) else x


# --- ai.onnx -------------------------------------------------------------------------------------

_BY_CODE = {
    2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 17: "float8_e4m3fn", 18: "float8_e4m3fnuz",
    19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4_e2m1fn",
    25: "uint2", 26: "int2",
}  # fmt: skip
_LARGEST = {
    "float8_e4m3fn": 448.0, "float8_e4m3fnuz": 240.0, "float8_e5m2": 57344.0,
    "float8_e5m2fnuz": 57344.0, "float4_e2m1fn": 6.0,
}  # fmt: skip
_RANGES = {"int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint2": (0, 3)}
_FLOATS = {1: f32, 10: f16, 16: bf16}


def _target(zero: Any, output_dtype: int) -> np.dtype:
    if zero is not None:
        if isinstance(zero, np.ndarray):
            return zero.dtype
        return np.dtype(zero.dtype.storage)
    name = _BY_CODE.get(output_dtype or 2)
    if name is None:
        raise DTypeError(f"QuantizeLinear to element type {output_dtype}")
    if name in ("uint8", "int8", "uint16", "int16"):
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name))


def _small(x: np.ndarray, target: np.dtype, saturate: bool) -> np.ndarray:
    """f32 values, zero points added, as a small float or integer; half to even."""
    if "float" in target.name:
        limit = np.float32(_LARGEST[target.name])
        if saturate or target.name.startswith("float4"):
            x = np.clip(x, -limit, limit)
        with np.errstate(all="ignore"):
            made: np.ndarray = x.astype(target)
        return made
    low, high = _RANGES[target.name]
    return np.clip(np.rint(x), low, high).astype(np.int8).astype(target)


@op("QuantizeLinear", since=10, raw=True)
@op("QuantizeLinear", domain="com.microsoft", raw=True)
def quantize_linear(
    x: Tensor,
    y_scale: Any,
    y_zero_point: Any = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
    ctx: Call,
) -> Any:
    """saturate(round_half_even(x / y_scale) + y_zero_point); per tensor, axis or block."""
    del precision  # divisions are made in f32
    target = _target(y_zero_point, output_dtype)
    values, scale = _to_f32(node_of(ctx, x)), _to_f32(_widened(ctx, y_scale))
    scale = per_axis(scale, values, axis, block_size)
    dtype = dtype_of(target)
    if dtype is None:
        zero = 0 if y_zero_point is None else small_array(y_zero_point)
        at = per_axis(constant(np.asarray(zero)), values, axis, block_size)
        whole = folded(cast(at, f32))
        array = ctx.value(Tensor(div(values, scale)))
        offset = whole.value.numpy() if whole.value is not None else np.float32(0)
        if "float" not in target.name:
            array = np.rint(array)
        return _small(array + offset, target, bool(saturate))
    if y_zero_point is None:
        zeros = constant(np.zeros((), dtype.storage))
    else:
        zeros = per_axis(node_of(ctx, y_zero_point), values, axis, block_size)
    if scale.shape or zeros.shape:
        return Tensor(quantize(values, scale, zeros))
    return Tensor(qlinear.on_channels_last(lambda v: quantize(v, scale, zeros), values))


@op("DequantizeLinear", since=10, raw=True, fold=False)  # passes look for it
@op("DequantizeLinear", domain="com.microsoft", raw=True, fold=False)
def dequantize_linear(
    x: Any,
    x_scale: Any,
    x_zero_point: Any = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    ctx: Call,
) -> Tensor:
    """(x - x_zero_point) * x_scale; per tensor, axis or block."""
    values, scale = _widened(ctx, x), _widened(ctx, x_scale)
    result = _FLOATS.get(output_dtype, scale.dtype)
    scale = per_axis(_to_f32(scale), values, axis, block_size)
    if values.dtype is f32:  # a small float: no zero point but zero
        return Tensor(cast(mul(values, scale), result))
    if x_zero_point is None:
        zero = constant(np.zeros((), values.dtype.storage))
    else:
        zero = per_axis(_widened(ctx, x_zero_point), values, axis, block_size)
    if scale.shape or zero.shape:
        return Tensor(cast(dequantize(values, scale, zero, **_blocks(x, axis, block_size)), result))
    return Tensor(
        qlinear.on_channels_last(lambda q: cast(dequantize(q, scale, zero), result), values)
    )


def _blocks(x: Any, axis: int, block: int) -> dict[str, int]:
    """What the dequantisation of a constant of few bits notes for passes."""
    bits = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2}.get(x.dtype.name, 0)
    return {"bits": bits, "axis": axis % max(x.ndim, 1), "block": block} if bits else {}


@op("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x as u8 over its range (zero included), the scale and the zero point."""
    y, scale, zero = dynamic_bytes(x.node)
    return Tensor(y), Tensor(scale), Tensor(zero)


def dynamic_bytes(x: Node) -> tuple[Node, Node, Node]:
    """(bytes, scale, zero point) of f32 x, as ONNX's DynamicQuantizeLinear."""
    none = literal(0.0, x)
    flat = reshape(x, (-1,))
    low = minimum(reductions.min(flat), none)
    high = maximum(reductions.max(flat), none)
    scale = div(sub(high, low), literal(255.0, x))
    scale = where(eq(high, low), literal(1.0, x), scale)
    zero = quantize(sub(none, low), scale, constant(np.zeros((), np.uint8)))
    return quantize(x, scale, zero), scale, zero


def conv_sizes(
    x: Tensor, w: Tensor, attrs: dict[str, Any]
) -> tuple[Sequence[int], tuple[tuple[int, int], ...], Sequence[int], int]:
    """(strides, padding, dilation, groups) of a convolution's attributes."""
    rank = x.ndim - 2
    kernel = attrs["kernel_shape"] or w.shape[2:]
    if tuple(kernel) != tuple(w.shape[2:]):
        raise ShapeError(f"kernel_shape {tuple(kernel)} of a weight {tuple(w.shape)}")
    strides = attrs["strides"] or (1,) * rank
    dilation = attrs["dilations"] or (1,) * rank
    pads = pad_pairs(attrs["auto_pad"], attrs["pads"], x.shape[2:], kernel, strides, dilation)
    return strides, pads, dilation, attrs["group"]


@op("QLinearConv", since=10)
def qlinear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    B: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
    ctx: Call,
) -> Tensor:
    """A convolution of bytes, requantised."""
    attrs = {
        "auto_pad": auto_pad, "dilations": dilations, "group": group,
        "kernel_shape": kernel_shape, "pads": pads, "strides": strides,
    }  # fmt: skip
    args = known(ctx, x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, B)
    return Tensor(qlinear.qlinear_conv(*args, *conv_sizes(x, w, attrs)))  # type: ignore[arg-type, call-arg]


@op("ConvInteger", since=10)
def conv_integer(
    x: Tensor,
    w: Tensor,
    x_zero_point: Tensor | None = None,
    w_zero_point: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
    ctx: Call,
) -> Tensor:
    """A convolution of bytes, exact in int32."""
    attrs = {
        "auto_pad": auto_pad, "dilations": dilations, "group": group,
        "kernel_shape": kernel_shape, "pads": pads, "strides": strides,
    }  # fmt: skip
    args = known(ctx, x, w, x_zero_point, w_zero_point)
    return Tensor(qlinear.conv_integer(*args, qlinear.Result(), *conv_sizes(x, w, attrs)))  # type: ignore[arg-type, call-arg]


@op("QLinearMatMul", since=10)
def qlinear_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    *,
    ctx: Call,
) -> Tensor:
    """A product of bytes, requantised."""
    args = known(ctx, a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point)
    if a_scale.size == 1 and a_zero_point.size == 1 and y_scale.size == 1:
        return Tensor(qlinear.qlinear_matmul(*args))  # type: ignore[arg-type]
    if any(s.dtype.name != "float32" for s in (a_scale, b_scale, y_scale)):
        raise UnsupportedError("QLinearMatMul with scales per row wants f32 scales")
    total = cast(_rows_product(args[0], args[3], args[2], args[5]), f32)  # type: ignore[arg-type]
    rows = mul(_column(args[1]), args[4])  # type: ignore[arg-type]
    ratio = div(rows, _column(args[6]))  # type: ignore[arg-type]
    zero = _column(args[7])  # type: ignore[arg-type]
    one = constant(np.ones((), np.float32))
    return Tensor(quantize(mul(total, ratio), one, zero))


def _column(value: Node) -> Node:
    """One number per row of a matrix as something that broadcasts along its rows."""
    return reshape(value, (*value.shape, 1)) if len(value.shape) == 1 else value


def _rows_product(a: Node, b: Node, a_zero: Node, b_zero: Node | None) -> Node:
    """(a - a_zero)(b - b_zero) in int32 with a zero point per row of a."""
    total = qlinear.matmul_integer(a, b, None, b_zero, qlinear.Result())
    wide = cast(b, i32)
    if b_zero is not None:
        wide = sub(wide, cast(b_zero, i32))
    sums = reductions.sum(wide, len(b.shape) - 2, True)
    return sub(total, mul(cast(_column(a_zero), i32), sums))


@op("MatMulInteger", since=10)
def matmul_integer(
    a: Tensor,
    b: Tensor,
    a_zero_point: Tensor | None = None,
    b_zero_point: Tensor | None = None,
    *,
    ctx: Call,
) -> Tensor:
    """A product of bytes, exact in int32."""
    x, y, zx, zy = known(ctx, a, b, a_zero_point, b_zero_point)
    assert x is not None
    assert y is not None
    if zx is not None and a_zero_point is not None and a_zero_point.size > 1:
        return Tensor(_rows_product(x, y, zx, zy))
    return Tensor(qlinear.matmul_integer(x, y, zx, zy, qlinear.Result()))

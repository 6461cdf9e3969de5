"""Quantising and dequantising, element by element, as ONNX defines them.

::

    quantize(x)   = saturate(round_half_even(x / scale) + zero_point)
    dequantize(q) = (q - zero_point) * scale

x / scale is rounded to f32 first, then clamped, then rounded to an integer. Scales and zero points
broadcast with x: one for all, one per channel, or one per block of an axis that the caller has cut
in two. Integers narrower than a byte (int4, uint4, int2, uint2) lie unpacked, one in an i8 or u8,
and ``low``, ``high`` say what they saturate to. A NaN becomes the zero point.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# (the bodies of inline functions are checked by the kernel language)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, f32, i8, i16, i32, u8, u16
from tilewright.errors import DTypeError
from tilewright.graph import Node, Shape
from tilewright.lang import bitcast, where
from tilewright.ops.kernel_functions import kernel_function
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import broadcast_shapes

__all__ = [
    "dequantize",
    "limits",
    "quantize",
    "quantized_product",
    "quantized_sum",
    "round_to",
    "rounded",
]

_NARROW = (u8, i8, u16, i16)


def limits(dtype: DType) -> tuple[int, int]:
    """The least and the largest value of an integer dtype."""
    info = np.iinfo(dtype.storage)
    return int(info.min), int(info.max)


@kernel_function
def round_to(v, zp, low, high, dtype):
    """Inline: saturate(round_half_even(v) + zp) for f32 v, i32 zp of at most 16 bits."""
    least, most = (low - zp).to(f32), (high - zp).to(f32)
    v = where(v == v, v, 0.0)
    v = where(v < least, least, v)
    v = where(v > most, most, v)
    # adding 1.5 * 2^23 rounds to an integer, half to even, and leaves it in the low bits
    return (bitcast(v + 12582912.0, i32) - 0x4B400000 + zp).to(dtype)


def rounded(v: np.ndarray, zp: Any, low: int, high: int, storage: Any) -> np.ndarray:
    """The meaning of :func:`round_to` in NumPy."""
    zero = np.asarray(zp).astype(np.int32)
    least, most = (low - zero).astype(np.float32), (high - zero).astype(np.float32)
    bounded = np.minimum(np.maximum(np.where(np.isnan(v), np.float32(0), v), least), most)
    return (np.rint(bounded).astype(np.int32) + zero).astype(storage)


def _quantize_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    x, scale, zp = inputs
    if x.dtype is not f32 or scale.dtype is not f32 or zp.dtype not in _NARROW:
        raise DTypeError(
            f"quantize wants f32 values and scales and an integer zero point of at most 16 bits, "
            f"got {x.dtype}, {scale.dtype} and {zp.dtype}"
        )
    return broadcast_shapes(broadcast_shapes(x.shape, scale.shape), zp.shape), zp.dtype


def _quantize_reference(
    x: np.ndarray, scale: np.ndarray, zp: np.ndarray, low: int, high: int
) -> np.ndarray:
    return rounded(x / scale, zp, low, high, zp.dtype)


register(
    OpDef(
        "quantize",
        _quantize_infer,
        _quantize_reference,
        expression=lambda node: (
            "round_to({0} / {1}, {2}.to(i32), {low}, {high}, " + node.dtype.name + ")"
        ),
    )
)


def quantize(
    x: Node, scale: Node, zp: Node, low: int | None = None, high: int | None = None
) -> Node:
    """x (f32) as integers of the dtype of ``zp``; all three broadcast.

    ``low`` and ``high`` bound the results; default what the dtype holds.
    """
    least, most = limits(zp.dtype)
    return make(
        "quantize",
        x,
        scale,
        zp,
        low=least if low is None else low,
        high=most if high is None else high,
    )


def _dequantize_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    x, scale, zp = inputs
    if x.dtype not in (*_NARROW, i32) or zp.dtype is not x.dtype or scale.dtype is not f32:
        raise DTypeError(
            f"dequantize wants integers, a zero point of their dtype and f32 scales, got "
            f"{x.dtype}, {zp.dtype} and {scale.dtype}"
        )
    return broadcast_shapes(broadcast_shapes(x.shape, scale.shape), zp.shape), f32


def _dequantize_reference(x: np.ndarray, scale: Any, zp: Any, **blocks: int) -> np.ndarray:
    del blocks
    whole = x.astype(np.int32) - zp.astype(np.int32)
    return np.asarray(whole.astype(np.float32) * scale)


register(
    OpDef(
        "dequantize",
        _dequantize_infer,
        lambda x, scale, zp: (x.astype(np.int32) - zp.astype(np.int32)).astype(np.float32) * scale,
        expression="({0}.to(i32) - {2}.to(i32)).to(f32) * {1}",
    )
)


def dequantize(x: Node, scale: Node, zp: Node, **blocks: Any) -> Node:
    """(x - zp) * scale in f32; all three broadcast.

    ``blocks`` (``bits``, ``axis``, ``block``) notes where x and scale came from, for passes: values
    of few bits, with one scale for so many of them along an axis.
    """
    return make("dequantize", x, scale, zp, **blocks)


# --- sums and products of quantised arrays --------------------------------------------------------


def _bounds(node: Node) -> str:
    """The last arguments of ``round_to``."""
    low, high = limits(node.dtype)
    return f"{low}, {high}, {node.dtype.name})"


def _fused(x: np.ndarray, y: Any, z: Any) -> np.ndarray:
    """``x * y + z`` of f32, rounded once (the product of a byte and an f32 is exact in f64)."""
    return (x.astype(np.float64) * np.float64(y) + np.asarray(z, np.float64)).astype(np.float32)


def _sum_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    a, b, *numbers = inputs
    if a.dtype not in _NARROW or b.dtype is not a.dtype:
        raise DTypeError(f"a quantised sum wants bytes of one dtype, got {a.dtype} and {b.dtype}")
    if any(n.dtype is not f32 or n.shape for n in numbers):
        raise DTypeError(f"a quantised sum wants three f32 numbers, got {numbers}")
    return broadcast_shapes(a.shape, b.shape), a.dtype


def _sum_reference(a: np.ndarray, b: np.ndarray, ra: Any, rb: Any, fixed: Any) -> np.ndarray:
    total = _fused(a.astype(np.float32), ra, _fused(b.astype(np.float32), rb, fixed))
    info = np.iinfo(a.dtype)
    return rounded(total, 0, int(info.min), int(info.max), a.dtype)


register(
    OpDef(
        "quantized_sum",
        _sum_infer,
        _sum_reference,
        expression=lambda node: (
            "round_to(fma({0}.to(f32), {2}, fma({1}.to(f32), {3}, {4})), full((), 0, i32), "
            + _bounds(node)
        ),
    )
)


def quantized_sum(a: Node, b: Node, ratio_a: Node, ratio_b: Node, fixed: Node) -> Node:
    """saturate(round_half_even(a ratio_a + (b ratio_b + fixed))), each sum rounded once.

    With ``ratio = scale / y_scale`` and ``fixed = y_zero - (ratio_a a_zero + ratio_b b_zero)`` that
    is ONNX Runtime's QLinearAdd, in its order.
    """
    return make("quantized_sum", a, b, ratio_a, ratio_b, fixed)


def _product_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    a, b, za, zb, ratio, zy = inputs
    if a.dtype not in _NARROW[:2] or any(n.dtype is not a.dtype for n in (b, za, zb, zy)):
        raise DTypeError(f"a quantised product wants bytes of one dtype, got {inputs}")
    if ratio.dtype is not f32:
        raise DTypeError(f"a quantised product wants an f32 ratio, got {ratio.dtype}")
    return broadcast_shapes(a.shape, b.shape), a.dtype


def _product_reference(
    a: np.ndarray, b: np.ndarray, za: Any, zb: Any, ratio: Any, zy: Any
) -> np.ndarray:
    wide = (a.astype(np.int32) - np.int32(za)) * (b.astype(np.int32) - np.int32(zb))
    info = np.iinfo(a.dtype)
    shifted = wide.astype(np.float32) * ratio + np.float32(zy)
    return rounded(shifted, 0, int(info.min), int(info.max), a.dtype)


register(
    OpDef(
        "quantized_product",
        _product_infer,
        _product_reference,
        expression=lambda node: (
            "round_to((({0}.to(i32) - {2}.to(i32)) * ({1}.to(i32) - {3}.to(i32))).to(f32) * {4}"
            " + {5}.to(f32), full((), 0, i32), " + _bounds(node)
        ),
    )
)


def quantized_product(a: Node, b: Node, za: Node, zb: Node, ratio: Node, zy: Node) -> Node:
    """saturate(round_half_even((a - za)(b - zb) ratio + zy)), the integer product exact.

    With ``ratio = a_scale b_scale / y_scale`` that is ONNX Runtime's QLinearMul: it adds the zero
    point before it rounds.
    """
    return make("quantized_product", a, b, za, zb, ratio, zy)

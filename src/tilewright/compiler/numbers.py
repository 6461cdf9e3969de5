"""Numbers as kernels are handed them."""

from __future__ import annotations

import struct

import numpy as np

from tilewright.dtypes import DType, bf16, boolean, f16, f32, f64, from_float32

__all__ = ["scalar_bits"]

_F32, _U32, _F64, _I64 = (struct.Struct(code) for code in ("<f", "<I", "<d", "<q"))


def scalar_bits(value: bool | int | float, dtype: DType) -> int:
    """A number as the 64-bit slot of a scalar argument."""
    if dtype is f32:
        try:
            return _U32.unpack(_F32.pack(value))[0]
        except OverflowError:  # rounds to infinity
            with np.errstate(over="ignore"):
                return int(np.float32(value).view(np.uint32))
    if dtype is f64:
        return _I64.unpack(_F64.pack(value))[0]
    if dtype is boolean:
        return int(bool(value))
    if dtype is f16:
        with np.errstate(over="ignore"):
            return int(np.float16(value).view(np.uint16))
    if dtype is bf16:
        return int(from_float32(np.array([value], np.float32))[0])
    bits = int(value) & ((1 << dtype.bits) - 1)
    if dtype.kind == "i" and bits >> dtype.bits - 1:
        bits -= 1 << dtype.bits
    return bits - (1 << 64) if bits >= 1 << 63 else bits

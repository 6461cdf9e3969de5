"""One table: every dtype with its NumPy and LLVM spelling.

A :class:`DType` is a singleton; compare with ``is``. The module-level names (``f32``, ``i8``, ...)
double as annotations and cast targets in the kernel language.

bfloat16 has no NumPy dtype: arrays of bf16 are stored as ``uint16`` bit patterns
(:data:`DType.storage`), and :func:`to_float32` / :func:`from_float32` convert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

__all__ = [
    "ALL",
    "DType",
    "bf16",
    "boolean",
    "by_name",
    "f16",
    "f32",
    "f64",
    "from_float32",
    "from_numpy",
    "i8",
    "i16",
    "i32",
    "i64",
    "promote",
    "to_float32",
    "u8",
    "u16",
    "u32",
    "u64",
]


@dataclass(frozen=True, eq=False)
class DType:
    """An element type.

    Attributes:
        name: the short name used everywhere (``"f32"``).
        kind: ``"f"`` float, ``"i"`` signed, ``"u"`` unsigned, ``"b"`` bool.
        bits: storage width; bool is stored in 8 bits.
        storage: the NumPy dtype of an array in memory (``uint16`` for bf16).
        llvm: LLVM's spelling of the value in a register.
    """

    name: str
    kind: str
    bits: int
    storage: np.dtype
    llvm: str

    @property
    def nbytes(self) -> int:
        """Bytes per element in memory."""
        return self.bits // 8

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"

    @property
    def is_signed(self) -> bool:
        return self.kind in "fi"

    def __repr__(self) -> str:
        return self.name


f64: Final = DType("f64", "f", 64, np.dtype(np.float64), "double")
f32: Final = DType("f32", "f", 32, np.dtype(np.float32), "float")
f16: Final = DType("f16", "f", 16, np.dtype(np.float16), "half")
bf16: Final = DType("bf16", "f", 16, np.dtype(np.uint16), "bfloat")
i64: Final = DType("i64", "i", 64, np.dtype(np.int64), "i64")
i32: Final = DType("i32", "i", 32, np.dtype(np.int32), "i32")
i16: Final = DType("i16", "i", 16, np.dtype(np.int16), "i16")
i8: Final = DType("i8", "i", 8, np.dtype(np.int8), "i8")
u64: Final = DType("u64", "u", 64, np.dtype(np.uint64), "i64")
u32: Final = DType("u32", "u", 32, np.dtype(np.uint32), "i32")
u16: Final = DType("u16", "u", 16, np.dtype(np.uint16), "i16")
u8: Final = DType("u8", "u", 8, np.dtype(np.uint8), "i8")
boolean: Final = DType("bool", "b", 8, np.dtype(np.bool_), "i1")

ALL: Final = (f64, f32, f16, bf16, i64, i32, i16, i8, u64, u32, u16, u8, boolean)
_BY_NAME: Final = {d.name: d for d in ALL}
_FROM_NUMPY: Final = {d.storage: d for d in ALL if d is not bf16}


def by_name(name: str) -> DType:
    """The dtype called ``name``; ``KeyError`` when there is none."""
    return _BY_NAME[name]


def from_numpy(dtype: object) -> DType:
    """The dtype of a NumPy array's elements (never bf16, which NumPy cannot name)."""
    return _FROM_NUMPY[np.dtype(dtype)]  # type: ignore[call-overload]


def promote(a: DType, b: DType) -> DType:
    """The result dtype of an arithmetic op on ``a`` and ``b``.

    Equal dtypes stay. A float wins over any integer or bool and keeps its width (an index times an
    f32 is an f32, as in Triton and unlike NumPy's float64). Two floats give the wider; f16 with
    bf16 gives f32. Two integers give the wider; of the same width, unsigned wins. Bool is
    narrowest.
    """
    if a is b:
        return a
    if a.is_float or b.is_float:
        if not a.is_float:
            return b
        if not b.is_float:
            return a
        if a.bits == b.bits:  # f16 with bf16
            return f32
        return a if a.bits > b.bits else b
    if a is boolean:
        return b
    if b is boolean:
        return a
    if a.bits == b.bits:
        return a if a.kind == "u" else b
    return a if a.bits > b.bits else b


def to_float32(bits: np.ndarray) -> np.ndarray:
    """bf16 bit patterns (uint16, any shape) as float32, exactly."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def from_float32(values: np.ndarray) -> np.ndarray:
    """float32 rounded to nearest-even bf16, as uint16 bit patterns; NaN stays a quiet NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    with np.errstate(over="ignore"):
        rounded = (bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> 16
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(nan, quiet, rounded).astype(np.uint16).reshape(np.shape(values))

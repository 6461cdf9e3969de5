"""Which dtype a result has: the Array API standard's table, Python numbers weak.

Within a kind the table is the standard's. Where the standard leaves the result open, floats win
over integers and bool (as in PyTorch) and bool is narrower than anything; ``f16`` with ``bf16``
gives ``f32``; ``i64`` with ``u64`` has no common dtype and raises.

https://data-apis.org/array-api/2024.12/API_specification/type_promotion.html
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tilewright.dtypes import (
    ALL,
    DType,
    bf16,
    boolean,
    f16,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    promote,
    u8,
    u16,
    u32,
    u64,
)
from tilewright.errors import DTypeError
from tilewright.sizes import Real, Size

__all__ = [
    "DEFAULT_FLOAT",
    "DEFAULT_INT",
    "RANGES",
    "Number",
    "as_dtype",
    "promoted",
    "same_kind",
    "scalar_dtype",
]

DEFAULT_FLOAT: Final = f32
DEFAULT_INT: Final = i64

Number = bool | int | float

# what a signed and an unsigned integer have in common, by the unsigned one's width
_NEXT_SIGNED: Final = {8: i16, 16: i32, 32: i64}

RANGES: Final[dict[DType, tuple[int, int]]] = {
    d: (-(2 ** (d.bits - 1)), 2 ** (d.bits - 1) - 1) if d.kind == "i" else (0, 2**d.bits - 1)
    for d in ALL
    if d.is_integer
}

_NAMES: Final[dict[object, DType]] = {
    **{d.name: d for d in ALL},
    "bool": boolean,
    "boolean": boolean,
    "float16": f16,
    "bfloat16": bf16,
    "float32": f32,
    "float64": f64,
    "int8": i8,
    "int16": i16,
    "int32": i32,
    "int64": i64,
    "uint8": u8,
    "uint16": u16,
    "uint32": u32,
    "uint64": u64,
    bool: boolean,
    int: DEFAULT_INT,
    float: DEFAULT_FLOAT,
}


def _common(a: DType, b: DType) -> DType | None:
    if a.is_integer and b.is_integer and a.kind != b.kind:
        signed, unsigned = (a, b) if a.kind == "i" else (b, a)
        wanted = _NEXT_SIGNED.get(unsigned.bits)
        if wanted is None:
            return None
        return wanted if wanted.bits > signed.bits else signed
    return promote(a, b)


_PROMOTED: Final = {(a, b): _common(a, b) for a in ALL for b in ALL}


def promoted(a: DType, b: DType) -> DType:
    """The dtype of a result computed from ``a`` and ``b``; :class:`DTypeError` if there is none."""
    result = _PROMOTED[a, b]
    if result is None:
        raise DTypeError(f"{a} and {b} have no common dtype: cast one of them with astype()")
    return result


def scalar_dtype(value: Number, dtype: DType) -> DType:
    """The dtype of a result computed from a Python number and an array of ``dtype``.

    A number adopts the array's dtype unless it is of a higher kind (bool < int < float): then the
    result has the default dtype of the number's kind.

    Raises ``OverflowError`` when an int does not fit, :class:`DTypeError` for complex numbers.
    """
    if isinstance(value, bool):
        return dtype
    if isinstance(value, (int, Size)):
        if dtype.kind == "b":
            dtype = DEFAULT_INT
        if dtype.kind == "f":
            return dtype
        low, high = RANGES[dtype]
        if not low <= value <= high:
            raise OverflowError(
                f"Python integer {value} does not fit {dtype} ({low} to {high}): "
                "cast the array to a wider dtype first"
            )
        return dtype
    if isinstance(value, (float, Real)):
        return dtype if dtype.kind == "f" else DEFAULT_FLOAT
    raise DTypeError(f"no dtype holds {value!r}: tensors are real numbers or bool")


def as_dtype(dtype: object) -> DType:
    """The dtype that ``dtype`` names.

    Takes a :class:`~tilewright.dtypes.DType`, a name (``"float32"``, ``"f32"``), ``bool``, ``int``
    or ``float`` (the defaults), or a NumPy dtype.
    """
    if isinstance(dtype, DType):
        return dtype
    try:
        found = _NAMES.get(dtype)
    except TypeError:  # unhashable
        found = None
    if found is None and dtype is not None:
        try:
            found = _NAMES.get(np.dtype(dtype).name)  # type: ignore[call-overload]
        except TypeError:
            found = None
    if found is None:
        names = ", ".join(str(d) for d in ALL)
        raise DTypeError(f"no dtype is called {dtype!r}; tensors have: {names}")
    return found


def same_kind(given: DType, wanted: DType) -> bool:
    """Whether an in-place operator may store ``given`` as ``wanted``."""
    order = "biuf"
    return order.index(given.kind) <= order.index(wanted.kind) or (
        given.is_integer and wanted.is_integer
    )

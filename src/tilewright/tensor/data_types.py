"""Data types as the Array API standard has them: casting, limits, kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, bf16, boolean
from tilewright.errors import DTypeError
from tilewright.tensor.core import Tensor, apply
from tilewright.tensor.nodes import cast_node
from tilewright.tensor.promotion import Number, as_dtype, promoted, scalar_dtype

__all__ = [
    "astype",
    "can_cast",
    "finfo",
    "finfo_object",
    "iinfo",
    "iinfo_object",
    "isdtype",
    "result_type",
]


@dataclass(frozen=True)
class finfo_object:
    """Limits of a floating-point dtype; all Python numbers."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: DType


@dataclass(frozen=True)
class iinfo_object:
    """Limits of an integer dtype."""

    bits: int
    max: int
    min: int
    dtype: DType


_KINDS: Final = {
    "bool": "b",
    "signed integer": "i",
    "unsigned integer": "u",
    "integral": "iu",
    "real floating": "f",
    "complex floating": "",
    "numeric": "iuf",
}


def astype(x: Tensor, dtype: Any, /, *, copy: bool = True, device: Any = None) -> Tensor:
    """``x`` as ``dtype``: floats to integers truncate, numbers to bool are ``x != 0``.

    ``copy=False`` returns ``x`` itself when it has the dtype already.
    """
    from tilewright.tensor.creation import check_device

    check_device(device)
    wanted = as_dtype(dtype)
    if x.dtype is wanted:
        return +x if copy else x
    return apply(cast_node, x, dtype=wanted)


def can_cast(from_: Any, to: Any, /) -> bool:
    """Whether the standard's table promotes ``from_`` (a dtype or a tensor) to ``to``.

    The table has no promotions between bool, integers and floats.
    """
    given = from_.dtype if isinstance(from_, Tensor) else as_dtype(from_)
    wanted = as_dtype(to)
    kinds = [d.is_integer or d.kind for d in (given, wanted)]
    if kinds[0] != kinds[1]:
        return False
    try:
        return promoted(given, wanted) is wanted
    except DTypeError:
        return False


def finfo(type: Any, /) -> finfo_object:
    """Limits of a floating-point dtype, given as a dtype or a tensor of it."""
    dtype = type.dtype if isinstance(type, Tensor) else as_dtype(type)
    if not dtype.is_float:
        raise DTypeError(f"finfo is about floating-point dtypes, got {dtype}")
    if dtype is bf16:  # 8 bits of precision, f32's exponents
        return finfo_object(
            16, 2.0**-7, (2 - 2.0**-7) * 2.0**127, -(2 - 2.0**-7) * 2.0**127, 2.0**-126, dtype
        )
    info = np.finfo(dtype.storage)
    return finfo_object(
        dtype.bits, float(info.eps), float(info.max), float(info.min),
        float(info.smallest_normal), dtype,
    )  # fmt: skip


def iinfo(type: Any, /) -> iinfo_object:
    """Limits of an integer dtype, given as a dtype or a tensor of it."""
    dtype = type.dtype if isinstance(type, Tensor) else as_dtype(type)
    if not dtype.is_integer:
        raise DTypeError(f"iinfo is about integer dtypes, got {dtype}")
    info = np.iinfo(dtype.storage)
    return iinfo_object(dtype.bits, int(info.max), int(info.min), dtype)


def isdtype(dtype: Any, kind: Any) -> bool:
    """Whether ``dtype`` is of ``kind``: a dtype, one of the standard's kinds, or a tuple of these.

    Kinds are ``"bool"``, ``"signed integer"``, ``"unsigned integer"``, ``"integral"``,
    ``"real floating"``, ``"complex floating"`` (nothing is) and ``"numeric"``.
    """
    given = as_dtype(dtype)
    if isinstance(kind, tuple):
        return any(isdtype(given, one) for one in kind)
    if isinstance(kind, str):
        if kind not in _KINDS:
            raise ValueError(f"no kind is called {kind!r}; there are {', '.join(_KINDS)}")
        return given.kind in tuple(_KINDS[kind])
    return given is as_dtype(kind)


def result_type(*arrays_and_dtypes: Tensor | Number | DType) -> DType:
    """The dtype of a result computed from tensors, dtypes and Python numbers (which are weak)."""
    numbers = [v for v in arrays_and_dtypes if isinstance(v, (bool, int, float))]
    strong = [
        v.dtype if isinstance(v, Tensor) else as_dtype(v)
        for v in arrays_and_dtypes
        if not isinstance(v, (bool, int, float))
    ]
    if not strong:
        raise DTypeError("result_type wants at least one tensor or dtype")
    dtype = strong[0]
    for other in strong[1:]:
        dtype = promoted(dtype, other)
    for number in numbers:
        dtype = scalar_dtype(number, dtype)
    return dtype


def truth(x: Tensor) -> Tensor:
    """``x`` as bool."""
    return x if x.dtype is boolean else astype(x, boolean)

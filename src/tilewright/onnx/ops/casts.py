"""Changes of the element type, strings and types of a few bits among them.

Between types that tensors have, a cast is a graph operation. Float8, float4 and integers of 4 and 2
bits exist on the host only, as ml_dtypes has them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.errors import UnsupportedError
from tilewright.onnx.ops.common import element_type
from tilewright.onnx.registry import Call, op
from tilewright.onnx.values import dtype_of
from tilewright.ops import elementwise as ew
from tilewright.tensor.core import Tensor, apply

_E8M0 = "float8_e8m0fnu"
_INFINITE = {"float8_e5m2"}
_BITS = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2}


def cast_to(x: Any, to: np.dtype, call: Call, saturate: bool, round_mode: str) -> Any:
    """``x`` with elements of ``to``."""
    wanted = dtype_of(to)
    if isinstance(x, Tensor) and wanted is not None:
        return apply(ew.cast, x, dtype=wanted)
    array = call.value(x)
    if array.dtype == to:
        return array
    if array.dtype == object:
        return _from_strings(array, to, saturate, round_mode)
    if to.hasobject:
        return _to_strings(array)
    if wanted is not None:
        return _plain(array).astype(to)
    return _narrow(_plain(array), to, saturate, round_mode)


def _plain(array: np.ndarray) -> np.ndarray:
    """Elements that NumPy itself can count with: float32, or integers."""
    if array.dtype.kind in "biufc" and array.dtype.name not in _BITS:
        return array
    return array.astype(np.int8 if array.dtype.name in _BITS else np.float32)


def _narrow(array: np.ndarray, to: np.dtype, saturate: bool, round_mode: str) -> np.ndarray:
    """Numbers as a type of a few bits."""
    if to.name in _BITS:
        return _few_bits(array, to)
    if to.kind == "c":
        return array.astype(to)
    if to.name == _E8M0:
        return _powers_of_two(array, to, saturate, round_mode)
    values = array.astype(np.float64 if array.dtype == np.float64 else np.float32)
    with np.errstate(all="ignore"):
        made = values.astype(to)
        if to.name.startswith("float8") and not saturate:
            if to.name not in _INFINITE:
                largest = _largest(to)
                inside = np.abs(made.astype(np.float32)) <= largest
                lost = ~inside & ~np.isnan(values)
                made = np.where(lost, np.copysign(np.float32("nan"), values).astype(to), made)
            return made.reshape(array.shape)
        largest = _largest(to)
        rounded = made.astype(np.float32)
        beyond = ~np.isnan(values) & (~np.isfinite(rounded) | (np.abs(values) > largest))
        limit = np.copysign(np.float32(largest), values).astype(to)
    return np.where(beyond, limit, made).astype(to).reshape(array.shape)


def _largest(to: np.dtype) -> float:
    """The largest number of a small float type."""
    import ml_dtypes

    return float(ml_dtypes.finfo(to).max)  # type: ignore[no-untyped-call]


def _few_bits(array: np.ndarray, to: np.dtype) -> np.ndarray:
    """Integers of 4 or 2 bits: floats lose their fraction, then all lose their high bits."""
    bits = _BITS[to.name]
    with np.errstate(invalid="ignore"):
        whole = array.astype(np.int64) & ((1 << bits) - 1)
    if to.name.startswith("i"):
        whole -= (whole >> (bits - 1)) << bits
    return whole.astype(np.int8).astype(to)


def _powers_of_two(array: np.ndarray, to: np.dtype, saturate: bool, mode: str) -> np.ndarray:
    """float8e8m0: an exponent alone, 2**-127 to 2**127, 255 for NaN."""
    if mode not in ("up", "down", "nearest"):
        raise UnsupportedError(f"round_mode is up, down or nearest, got {mode!r}")
    values = array.astype(np.float32)
    bits = values.view(np.uint32)
    exponent = ((bits >> np.uint32(23)) & np.uint32(0xFF)).astype(np.int32)
    fraction = (bits & np.uint32(0x7FFFFF)).astype(np.int64)
    if mode == "up":
        above = (fraction > 0) & ~((exponent == 0) & (fraction <= 0x400000))
    elif mode == "nearest":
        above = (fraction > 0x400000) | ((fraction == 0x400000) & (exponent > 0))
        above |= (exponent == 0) & (fraction > 0x600000)
    else:
        above = np.zeros(values.shape, bool)
    exponent = exponent + above
    zero = (bits & np.uint32(0x7FFFFFFF)) == 0
    largest = 254 if saturate else 255
    exponent = np.where(np.isinf(values) | (exponent > 254), largest, exponent)
    if not saturate:
        exponent = np.where(zero, 255, exponent)
    exponent = np.where(np.isnan(values), 255, exponent)
    return exponent.astype(np.uint8).view(to).reshape(array.shape)


def _from_strings(array: np.ndarray, to: np.dtype, saturate: bool, mode: str) -> np.ndarray:
    """Numbers written as text."""
    flat = [str(v) for v in array.reshape(-1)]
    if to == np.bool_:
        return np.array([v not in ("", "0", "False", "false") for v in flat]).reshape(array.shape)
    if to.kind in "iu" and to.name not in _BITS:
        numbers = np.array([_whole(v) for v in flat], object)
        return numbers.astype(to).reshape(array.shape)
    wide = np.array([float(v) for v in flat], np.float64).reshape(array.shape)
    if dtype_of(to) is not None:
        return wide.astype(np.float32).astype(to) if to.itemsize < 4 else wide.astype(to)
    return _narrow(wide.astype(np.float32), to, saturate, mode)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return int(float(text))


def _to_strings(array: np.ndarray) -> np.ndarray:
    """Numbers as text: of floats the fewest digits that read back as the same number."""
    if array.dtype.kind in "iub" and array.dtype.name not in _BITS:
        texts = [str(v) for v in array.reshape(-1).tolist()]
    else:
        texts = [_digits(v) for v in _text_source(array).reshape(-1)]
    return np.array(texts, object).reshape(array.shape)


def _text_source(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind == "f" else _plain(array)


def _digits(value: Any) -> str:
    if isinstance(value, np.integer):
        return str(int(value))
    if np.isnan(value):
        return "NaN"
    if np.isinf(value):
        return "INF" if value > 0 else "-INF"
    text = np.format_float_positional(value, trim="-")
    return text if abs(value) < 1e16 else repr(value.item())


@op("Cast", since=6, raw=True)
def cast(x: Any, *, to: int, saturate: int = 1, round_mode: str = "up", ctx: Call) -> Any:
    """The elements as another type, by its number."""
    return cast_to(x, element_type(to), ctx, bool(saturate), round_mode)


@op("Cast", since=1, raw=True)
def cast_1(x: Any, *, to: str, ctx: Call) -> Any:
    """Before version 6 the type was named."""
    import onnx

    try:
        number = onnx.TensorProto.DataType.Value(to.upper())
    except ValueError:
        raise UnsupportedError(f"there is no element type {to!r}") from None
    return cast_to(x, element_type(number), ctx, True, "up")


@op("CastLike", since=15, raw=True)
def cast_like(x: Any, target: Any, *, saturate: int = 1, round_mode: str = "up", ctx: Call) -> Any:
    """The elements as those of ``target``."""
    return cast_to(x, _numpy_dtype(target), ctx, bool(saturate), round_mode)


def _numpy_dtype(value: Any) -> np.dtype:
    if isinstance(value, np.ndarray):
        return value.dtype
    from tilewright.dtypes import bf16
    from tilewright.onnx.values import BFLOAT16

    if value.dtype is bf16:
        assert BFLOAT16 is not None
        return BFLOAT16
    return value.dtype.storage


@op("BitCast", since=26, raw=True)
def bit_cast(x: Any, *, to: int, ctx: Call) -> Any:
    """The bits of each element as another type of the same width."""
    wanted = element_type(to)
    kind = dtype_of(wanted)
    if isinstance(x, Tensor) and kind is not None and "b" not in (kind.kind, x.dtype.kind):
        return apply(ew.bitcast, x, dtype=kind)
    array = np.ascontiguousarray(ctx.value(x))
    if array.dtype.itemsize != wanted.itemsize or wanted.hasobject:
        raise UnsupportedError(f"bits of {array.dtype} are no {wanted}: the widths differ")
    return array.view(wanted).reshape(x.shape)

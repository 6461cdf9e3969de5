"""The value of every IR op, in NumPy: the definition that the targets must agree with.

Values are ndarrays in the dtype's storage, except bf16, which is float32 rounded to bf16 after
every op. ``f32``, ``f16`` and ``bf16`` arithmetic is rounded once; the transcendental functions are
computed in float64 and rounded. Callers silence NumPy's floating-point warnings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, bf16, boolean, f32, f64, from_float32, to_float32
from tilewright.lang.functions import BINARY_FUNCTIONS, UNARY_FUNCTIONS
from tilewright.lang.ir import TileType

__all__ = ["compute_dtype", "convert", "evaluate", "full", "fused_multiply_add", "round_to"]

Arrays = Sequence[np.ndarray]


def compute_dtype(dtype: DType) -> np.dtype:
    """The NumPy dtype that holds tiles of ``dtype``."""
    return np.dtype(np.float32) if dtype is bf16 else dtype.storage


def full(value: Any, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """A tile of one value."""
    return np.full(shape, value, compute_dtype(dtype))


# --- rounding ------------------------------------------------------------------------------------


def _to_odd(rounded: np.ndarray, error: np.ndarray) -> np.ndarray:
    """``rounded`` (nearest) made round-to-odd, given the sign of ``exact - rounded``.

    A value rounded to odd with two spare bits rounds to any narrower format as the exact value
    would (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008).
    """
    bits = rounded.view(np.uint64 if rounded.dtype == np.float64 else np.uint32)
    even = bits % 2 == 0
    fix = even & (error != 0) & np.isfinite(rounded) & np.isfinite(error)
    if not fix.any():
        return rounded
    toward = np.where(error > 0, np.inf, -np.inf).astype(rounded.dtype)
    return np.where(fix, np.nextafter(rounded, toward), rounded)


def round_to(dtype: DType, exact: np.ndarray) -> np.ndarray:
    """float64 (or float32) values rounded once to ``dtype``."""
    if dtype is bf16:
        if exact.dtype == np.float64:
            single = np.asarray(exact.astype(np.float32))
            exact = _to_odd(single, exact - single)
        return to_float32(from_float32(exact))
    return np.asarray(exact).astype(compute_dtype(dtype), copy=False)


def _two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    total = a + b
    kept = total - a
    return total, (a - (total - kept)) + (b - kept)


def fused_multiply_add(dtype: DType, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """``x * y + z`` rounded once to ``dtype``; integers wrap."""
    if not dtype.is_float:
        return np.asarray(x * y + z)
    if dtype is f64:
        return _fma_f64(*(np.array(v) for v in np.broadcast_arrays(x, y, z)))
    product = np.asarray(x.astype(np.float64) * y)  # exact: at most 48 significant bits
    wide = z.astype(np.float64)
    total = np.asarray(product + wide)
    if dtype is f32 and not _near_midpoint(total):
        return np.asarray(total.astype(np.float32))
    _, error = _two_sum(product, wide)
    return round_to(dtype, _to_odd(total, np.asarray(error)))


def _near_midpoint(x: np.ndarray) -> bool:
    """Whether rounding any float64 of ``x`` to f32 might meet a tie, or an f32 subnormal."""
    dropped = x.view(np.uint64) & np.uint64(0x1FFFFFFF)
    tie = dropped == np.uint64(0x10000000)
    return bool((tie | ((np.abs(x) < 2.0**-125) & (x != 0))).any())


def _fma_f64(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    out = x * y + z
    if not out.ndim:
        return np.asarray(_fma_one(float(x), float(y), float(z)), np.float64)
    inexact = np.isfinite(x) & np.isfinite(y) & np.isfinite(z)
    for i in zip(*np.nonzero(inexact)):
        out[i] = _fma_one(float(x[i]), float(y[i]), float(z[i]))
    return out


def _fma_one(x: float, y: float, z: float) -> float:
    if not (math.isfinite(x) and math.isfinite(y) and math.isfinite(z)):
        return x * y + z if not (math.isfinite(x) and math.isfinite(y)) else z
    from fractions import Fraction

    exact = Fraction(x) * Fraction(y) + Fraction(z)
    if exact == 0:
        return x * y + z if x * y == 0 or x * y == -z else 0.0
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


# --- conversions ---------------------------------------------------------------------------------


def convert(x: np.ndarray, source: DType, target: DType) -> np.ndarray:
    """``cast``: see the IR's table."""
    if source is target:
        return x
    if target is boolean:
        return np.asarray(x != 0)
    if target.is_float:
        if target is bf16 and source.is_integer and source.bits > 16:
            return round_to(bf16, _integers_to_odd(x))
        if target is bf16:
            return round_to(bf16, x.astype(np.float64))
        return np.asarray(x).astype(compute_dtype(target))
    if source.is_float:
        return _saturate(x, target)
    return np.asarray(x).astype(target.storage)  # integers wrap, bools are 0 and 1


def _integers_to_odd(x: np.ndarray) -> np.ndarray:
    high = np.asarray(x >> x.dtype.type(16)).astype(np.float64) * 65536.0
    low = np.asarray(x & x.dtype.type(0xFFFF)).astype(np.float64)
    total, error = _two_sum(high, low)
    return _to_odd(np.asarray(total), np.asarray(error))


def _saturate(x: np.ndarray, target: DType) -> np.ndarray:
    info = np.iinfo(target.storage)
    wide = np.trunc(np.asarray(x, np.float64))
    low, high = float(info.min), float(info.max)  # 2**63 - 1 rounds up to 2**63
    inside = (wide >= low) & (wide < high)
    out = np.where(inside, wide, 0.0).astype(target.storage)
    out = np.where(wide >= high, target.storage.type(info.max), out)
    return np.asarray(np.where(wide < low, target.storage.type(info.min), out))


def _bitcast(x: np.ndarray, source: DType, target: DType) -> np.ndarray:
    bits = from_float32(x) if source is bf16 else np.ascontiguousarray(x).reshape(np.shape(x))
    out = bits.view(target.storage)
    return to_float32(out) if target is bf16 else out


# --- elementwise ---------------------------------------------------------------------------------


_SAME: Final[dict[str, Callable[[np.ndarray], Any]]] = {
    "neg": np.negative,
    "not": np.invert,
    "abs": np.abs,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "trunc": np.trunc,
    "isnan": np.isnan,
}
_ARITHMETIC: Final[dict[str, Callable[..., Any]]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "floordiv": np.floor_divide,
    "mod": np.remainder,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
_COMPARE: Final[dict[str, Callable[..., Any]]] = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}


def _unary(name: str, dtype: DType, x: np.ndarray) -> np.ndarray:
    if name in UNARY_FUNCTIONS:
        return round_to(dtype, np.asarray(UNARY_FUNCTIONS[name](x.astype(np.float64))))
    if name == "popcount":
        unsigned = np.ascontiguousarray(x).view(f"u{dtype.nbytes}").reshape(np.shape(x))
        return np.asarray(np.bitwise_count(unsigned)).astype(x.dtype)
    return np.asarray(_SAME[name](x))


def _shift(name: str, dtype: DType, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    unsigned = (
        np.asarray(y).view(f"u{dtype.nbytes}")
        if y.ndim
        else np.asarray(y).astype(f"u{dtype.nbytes}")
    )
    inside = unsigned < dtype.bits
    amount = np.where(inside, y, 0).astype(x.dtype)
    if name == "shl":
        return np.where(inside, x << amount, x.dtype.type(0))
    beyond = (
        np.where(x < 0, x.dtype.type(-1), x.dtype.type(0)) if dtype.is_signed else x.dtype.type(0)
    )
    return np.where(inside, x >> amount, beyond)


def _binary(name: str, dtype: DType, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if name in ("shl", "shr"):
        return np.asarray(_shift(name, dtype, x, y))
    if name in BINARY_FUNCTIONS and dtype.is_float:
        function = BINARY_FUNCTIONS[name]
        return round_to(dtype, np.asarray(function(x.astype(np.float64), y.astype(np.float64))))
    if name == "pow":
        return _integer_power(dtype, x, y)
    out = np.asarray(_ARITHMETIC[name](x, y))
    return round_to(bf16, out) if dtype is bf16 else out


def _integer_power(dtype: DType, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """By squaring, wrapping; negative powers of 1 and -1, all others are 0."""
    x, y = (np.array(v) for v in np.broadcast_arrays(x, y))
    power = np.ones_like(x)
    square, rest = x.copy(), np.where(y < 0, y & y.dtype.type(1), y)
    while rest.any():
        power = np.where(rest & 1, power * square, power).astype(x.dtype)
        square = square * square
        rest = rest >> rest.dtype.type(1)
    if dtype.is_signed:
        unit = (x == 1) | (x == -1)
        power = np.where((y < 0) & ~unit, x.dtype.type(0), power)
    return np.asarray(power)


# --- reductions, scans, products -----------------------------------------------------------------


def _reduce(dtype: DType, x: np.ndarray, fn: str, axis: int | None) -> np.ndarray:
    rows = np.ascontiguousarray(x.reshape(-1) if axis is None else np.moveaxis(x, axis, -1))
    if fn in ("sum", "prod"):
        fold = np.sum if fn == "sum" else np.prod
        if dtype.is_float:
            return round_to(dtype, np.asarray(fold(rows, axis=-1, dtype=np.float64)))
        return np.asarray(fold(rows, axis=-1, dtype=rows.dtype))
    functions: dict[str, Callable[..., Any]] = {
        "max": np.max,
        "min": np.min,
        "any": np.any,
        "all": np.all,
        "argmax": np.argmax,
        "argmin": np.argmin,
    }
    return np.asarray(functions[fn](rows, axis=-1))


def _scan(dtype: DType, x: np.ndarray, fn: str, axis: int, reverse: bool) -> np.ndarray:
    ufunc = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}[fn]
    rows = np.moveaxis(x, axis, 0)
    rows = rows[::-1] if reverse else rows
    out = np.empty_like(rows)
    out[0] = rows[0]
    for i in range(1, len(rows)):
        out[i] = (
            round_to(dtype, ufunc(out[i - 1], rows[i]))
            if dtype is bf16
            else ufunc(out[i - 1], rows[i])
        )
    return np.moveaxis(out[::-1] if reverse else out, 0, axis)


def _dot(dtypes: Sequence[DType], a: np.ndarray, b: np.ndarray, acc: np.ndarray) -> np.ndarray:
    target = dtypes[2]
    a, b = convert(a, dtypes[0], target), convert(b, dtypes[1], target)
    for k in range(a.shape[1]):
        acc = fused_multiply_add(target, a[:, k : k + 1], b[k : k + 1, :], acc)
    return acc


def _dot2(acc: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """VDPBF16PS: the second pair first, each product added with one rounding, no subnormals."""
    total = _flushed(acc, acc)
    for half in (np.uint32(0xFFFF0000), np.uint32(0xFFFF)):
        x, y = (
            (np.asarray(v, np.uint32) & half) << np.uint32(16 if half == 0xFFFF else 0)
            for v in (a, b)
        )
        x, y = (_flushed(v.view(np.float32), v.view(np.float32)) for v in (x, y))
        with np.errstate(all="ignore"):
            exact = x.astype(np.float64) * y + total
        total = _flushed(fused_multiply_add(f32, x, y, total), exact)
    return total


def _flushed(value: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """``value`` with what is below the normal range, before its exponent is cut off, as zero."""
    tiny = np.abs(exact) < 2.0**-126 - 2.0**-151
    return np.where(tiny, np.copysign(np.float32(0), value), value).astype(np.float32)


def _dot4(dtypes: Sequence[DType], acc: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = acc.astype(np.int32)
    shape = np.broadcast_shapes(acc.shape, a.shape, b.shape)
    total = np.array(np.broadcast_to(total, shape))
    for byte in range(4):
        parts = []
        for dtype, packed in zip(dtypes[1:], (a, b)):
            raw = np.asarray(packed).astype(np.uint32) >> np.uint32(8 * byte)
            kind = np.uint8 if dtype.kind == "u" else np.int8
            parts.append(np.asarray(raw).astype(np.uint8).astype(kind).astype(np.int32))
        total = np.asarray(total + parts[0] * parts[1])
    return total


# --- the table -----------------------------------------------------------------------------------


def evaluate(
    name: str,
    args: Arrays,
    dtypes: Sequence[DType],
    result: TileType,
    attrs: dict[str, Any],
) -> np.ndarray:
    """The value of one pure op: ``args`` with their ``dtypes``, and the type of the result."""
    dtype = dtypes[0] if dtypes else result.dtype
    if name in UNARY_FUNCTIONS or name in _SAME or name == "popcount":
        return _unary(name, dtype, args[0])
    if name in _ARITHMETIC or name in BINARY_FUNCTIONS or name in ("shl", "shr"):
        return _binary(name, dtype, args[0], args[1])
    if name in _COMPARE:
        return np.asarray(_COMPARE[name](args[0], args[1]))
    if name == "fma":
        return fused_multiply_add(dtype, *args)
    if name == "cast":
        return convert(args[0], dtype, result.dtype)
    if name == "bitcast":
        return _bitcast(args[0], dtype, result.dtype)
    if name == "where":
        return np.where(args[0], args[1], args[2])
    if name == "arange":
        return np.arange(attrs["start"], attrs["stop"], dtype=np.int64)
    if name == "constant":
        return full(attrs["value"], result.dtype, result.shape)
    if name in ("expand_dims", "reshape"):
        return args[0].reshape(result.shape)
    if name == "broadcast":
        return np.broadcast_to(args[0], result.shape)
    if name == "transpose":
        return np.transpose(args[0], attrs["perm"])
    if name == "slice":
        index = tuple(slice(s, s + n) for s, n in zip(attrs["starts"], result.shape))
        return args[0][index]
    if name == "concat":
        return np.concatenate(args, axis=attrs["axis"])
    if name == "reduce":
        return _reduce(dtype, args[0], attrs["fn"], attrs["axis"])
    if name == "scan":
        return _scan(dtype, args[0], attrs["fn"], attrs["axis"], attrs["reverse"])
    if name == "dot":
        return _dot(dtypes, *args)
    if name == "pack2":
        first, second = (from_float32(_flushed(x, x)).astype(np.uint32) for x in args)
        return np.asarray(first | (second << np.uint32(16)))
    if name == "dot2":
        return _dot2(*args)
    if name == "dot4":
        return _dot4(dtypes, *args)
    raise NotImplementedError(name)

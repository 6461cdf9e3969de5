"""The elementwise functions of the kernel language."""

from __future__ import annotations

import builtins as python
from typing import Any

from tilewright.dtypes import boolean, i64
from tilewright.errors import KernelError
from tilewright.lang.engine import builtin, current
from tilewright.lang.ir import TileType
from tilewright.lang.tile import (
    Tile,
    as_dtype,
    as_tile,
    binary,
    broadcast,
    cast,
    common_dtype,
    compare,
    constant,
    describe,
    float_binary,
    float_unary,
    is_number,
    power,
    ternary,
    unary,
)

__all__ = [
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "bitcast", "cast",
    "ceil", "cos", "cosh", "erf", "erfinv", "exp", "exp2", "expm1", "floor", "fma", "hypot",
    "isnan", "lgamma", "log", "log1p", "log2", "log10", "maximum", "minimum", "popcount", "pow",
    "round", "rsqrt", "sigmoid", "sin", "sinh", "sqrt", "tan", "tanh", "trunc", "where",
]  # fmt: skip


@builtin
def fma(x: Any, y: Any, z: Any) -> Tile:
    """``x * y + z`` rounded once; integers wrap."""
    return ternary("fma", x, y, z)


@builtin
def where(condition: Any, x: Any, y: Any) -> Tile:
    """``x`` where ``condition`` is true, else ``y``, element by element; both are evaluated."""
    c = as_tile(condition)
    if c.dtype is not boolean:
        c = compare("ne", c, 0)
    for value in (x, y):
        if not isinstance(value, Tile) and not is_number(value):
            raise KernelError(f"where wants tiles and numbers, got {describe(value)}")
    dtype = common_dtype((x, y))
    a, b = as_tile(x, dtype), as_tile(y, dtype)
    return current().emit("where", (c, a, b), (TileType(dtype, broadcast("where", c, a, b)),))[0]


@builtin
def minimum(x: Any, y: Any) -> Any:
    """The smaller of two, element by element; NaN wins."""
    if is_number(x) and is_number(y):
        return python.min(x, y)
    return binary("min", x, y)


@builtin
def maximum(x: Any, y: Any) -> Any:
    """The larger of two, element by element; NaN wins."""
    if is_number(x) and is_number(y):
        return python.max(x, y)
    return binary("max", x, y)


@builtin
def pow(x: Any, y: Any) -> Any:
    """``x ** y``. Integers wrap; a negative power is 0 but for bases 1 and -1."""
    return power(x, y)


@builtin
def abs(x: Any) -> Any:
    """The absolute value; the least integer stays as it is."""
    if is_number(x):
        return python.abs(x)
    return unary("abs", cast(x, i64) if isinstance(x, Tile) and x.dtype is boolean else x)


@builtin
def exp(x: Any) -> Tile:
    """e to the power ``x``."""
    return float_unary("exp", x)


@builtin
def exp2(x: Any) -> Tile:
    """2 to the power ``x``."""
    return float_unary("exp2", x)


@builtin
def log(x: Any) -> Tile:
    """The natural logarithm."""
    return float_unary("log", x)


@builtin
def log2(x: Any) -> Tile:
    """The logarithm to base 2."""
    return float_unary("log2", x)


@builtin
def sin(x: Any) -> Tile:
    """The sine of ``x`` radians."""
    return float_unary("sin", x)


@builtin
def cos(x: Any) -> Tile:
    """The cosine of ``x`` radians."""
    return float_unary("cos", x)


@builtin
def tanh(x: Any) -> Tile:
    """The hyperbolic tangent."""
    return float_unary("tanh", x)


@builtin
def erf(x: Any) -> Tile:
    """The error function, 2/sqrt(pi) times the integral of exp(-t*t) from 0 to ``x``."""
    return float_unary("erf", x)


@builtin
def sqrt(x: Any) -> Tile:
    """The square root."""
    return float_unary("sqrt", x)


@builtin
def rsqrt(x: Any) -> Tile:
    """1 / sqrt(x)."""
    return float_unary("rsqrt", x)


@builtin
def sigmoid(x: Any) -> Tile:
    """1 / (1 + exp(-x))."""
    return float_unary("sigmoid", x)


@builtin
def tan(x: Any) -> Tile:
    """The tangent of ``x`` radians."""
    return float_unary("tan", x)


@builtin
def asin(x: Any) -> Tile:
    """The angle in [-pi/2, pi/2] whose sine is ``x``; NaN beyond [-1, 1]."""
    return float_unary("asin", x)


@builtin
def acos(x: Any) -> Tile:
    """The angle in [0, pi] whose cosine is ``x``; NaN beyond [-1, 1]."""
    return float_unary("acos", x)


@builtin
def atan(x: Any) -> Tile:
    """The angle in [-pi/2, pi/2] whose tangent is ``x``."""
    return float_unary("atan", x)


@builtin
def sinh(x: Any) -> Tile:
    """The hyperbolic sine."""
    return float_unary("sinh", x)


@builtin
def cosh(x: Any) -> Tile:
    """The hyperbolic cosine."""
    return float_unary("cosh", x)


@builtin
def asinh(x: Any) -> Tile:
    """The inverse hyperbolic sine."""
    return float_unary("asinh", x)


@builtin
def acosh(x: Any) -> Tile:
    """The inverse hyperbolic cosine; NaN below 1."""
    return float_unary("acosh", x)


@builtin
def atanh(x: Any) -> Tile:
    """The inverse hyperbolic tangent; NaN beyond [-1, 1]."""
    return float_unary("atanh", x)


@builtin
def expm1(x: Any) -> Tile:
    """``exp(x) - 1`` without cancellation near 0."""
    return float_unary("expm1", x)


@builtin
def log1p(x: Any) -> Tile:
    """``log(1 + x)`` without cancellation near 0."""
    return float_unary("log1p", x)


@builtin
def log10(x: Any) -> Tile:
    """The logarithm to base 10."""
    return float_unary("log10", x)


@builtin
def erfinv(x: Any) -> Tile:
    """The inverse of :func:`erf`; NaN beyond [-1, 1]."""
    return float_unary("erfinv", x)


@builtin
def lgamma(x: Any) -> Tile:
    """The logarithm of the absolute value of the gamma function; inf at its poles."""
    return float_unary("lgamma", x)


@builtin
def atan2(y: Any, x: Any) -> Tile:
    """The angle of the point (``x``, ``y``) in [-pi, pi], with C99's special cases."""
    return float_binary("atan2", y, x)


@builtin
def hypot(x: Any, y: Any) -> Tile:
    """``sqrt(x * x + y * y)`` without overflow on the way; infinite if either is."""
    return float_binary("hypot", x, y)


def _rounding(name: str, x: Any) -> Tile:
    tile = as_tile(x)
    return unary(name, tile) if tile.dtype.is_float else tile


@builtin
def floor(x: Any) -> Tile:
    """The largest integer not above ``x``, in ``x``'s dtype."""
    return _rounding("floor", x)


@builtin
def ceil(x: Any) -> Tile:
    """The smallest integer not below ``x``, in ``x``'s dtype."""
    return _rounding("ceil", x)


@builtin
def trunc(x: Any) -> Tile:
    """``x`` without its fraction, in ``x``'s dtype."""
    return _rounding("trunc", x)


@builtin
def round(x: Any, digits: int | None = None) -> Any:
    """The nearest integer, ties to even, in ``x``'s dtype."""
    if isinstance(x, Tile):
        if digits is not None:
            raise KernelError("round(tile) takes no number of digits: round(x * 100) / 100")
        return _rounding("round", x)
    return python.round(x, digits)


@builtin
def isnan(x: Any) -> Tile:
    """Where ``x`` is not a number; a bool tile."""
    tile = as_tile(x)
    if not tile.dtype.is_float:
        return constant(False, boolean, tile.shape)
    return unary("isnan", tile, boolean)


@builtin
def popcount(x: Any) -> Tile:
    """The number of one bits, in ``x``'s integer dtype."""
    tile = as_tile(x)
    if not tile.dtype.is_integer:
        raise KernelError(f"popcount wants an integer, got {describe(tile)}")
    return unary("popcount", tile)


@builtin
def bitcast(x: Any, dtype: Any) -> Tile:
    """The bits of ``x`` as another dtype of the same width."""
    tile, target = as_tile(x), as_dtype(dtype)
    if tile.dtype is target:
        return tile
    if tile.dtype.bits != target.bits or boolean in (tile.dtype, target):
        raise KernelError(
            f"bitcast keeps the width: {tile.dtype} has {tile.dtype.bits} bits, "
            f"{target} has {target.bits}"
        )
    return current().emit("bitcast", (tile,), (TileType(target, tile.shape),))[0]

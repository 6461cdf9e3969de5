"""Functions that are written in the kernel language itself: compositions of its elementwise ops.

They have one meaning on every target, because each op in them has. None of them needs a function
of floating-point numbers of its own: signs and neighbours are bits, the rest follows definitions.
"""

from __future__ import annotations

import math
from typing import Any, Final

from tilewright.dtypes import DType, boolean, f32, i16, i32, i64, u8, u16, u32, u64
from tilewright.errors import KernelError
from tilewright.lang.elementwise import abs, bitcast, cast, exp, log1p, maximum, where
from tilewright.lang.engine import builtin
from tilewright.lang.tile import (
    Tile,
    as_tile,
    binary,
    broadcast,
    common_dtype,
    compare,
    constant,
    describe,
)

__all__ = [
    "copysign",
    "floor_divide",
    "isfinite",
    "isinf",
    "logaddexp",
    "nextafter",
    "reciprocal",
    "remainder",
    "rotl",
    "sign",
    "signbit",
    "square",
]

_BITS: Final = {16: i16, 32: i32, 64: i64}
_UNSIGNED: Final = {8: u8, 16: u16, 32: u32, 64: u64}


def _floats(name: str, *values: Any) -> tuple[Tile, ...]:
    """``values`` as tiles of one float dtype; integers and bools become f32."""
    dtype = common_dtype(values)
    if not dtype.is_float:
        dtype = f32
    tiles = tuple(as_tile(v, dtype) for v in values)
    broadcast(name, *tiles)
    return tiles


def _bits(x: Tile) -> Tile:
    """The bits of a float as a signed integer."""
    return bitcast(x, _BITS[x.dtype.bits])


def _sign_mask(dtype: DType) -> int:
    return -(1 << (dtype.bits - 1))


@builtin
def square(x: Any) -> Tile:
    """``x * x``; integers wrap, bools are counted in i64."""
    tile = as_tile(x)
    return binary("mul", tile, tile)


@builtin
def reciprocal(x: Any) -> Tile:
    """``1 / x``; integers and bools become f32 first."""
    (tile,) = _floats("reciprocal", x)
    return binary("div", 1.0, tile)


@builtin
def sign(x: Any) -> Tile:
    """-1, 0 or 1 in ``x``'s dtype; 0 for both zeros, NaN for NaN; a bool is its own sign."""
    tile = as_tile(x)
    if tile.dtype is boolean:
        return tile
    positive = cast(compare("gt", tile, 0), tile.dtype)
    if tile.dtype.kind == "u":
        return positive
    out = binary("sub", positive, cast(compare("lt", tile, 0), tile.dtype))
    return where(compare("ne", tile, tile), tile, out) if tile.dtype.is_float else out


@builtin
def isinf(x: Any) -> Tile:
    """Where ``x`` is infinite; a bool tile."""
    tile = as_tile(x)
    if not tile.dtype.is_float:
        return constant(False, boolean, tile.shape)
    return compare("eq", abs(tile), math.inf)


@builtin
def isfinite(x: Any) -> Tile:
    """Where ``x`` is neither infinite nor NaN; a bool tile."""
    tile = as_tile(x)
    if not tile.dtype.is_float:
        return constant(True, boolean, tile.shape)
    return compare("lt", abs(tile), math.inf)


@builtin
def signbit(x: Any) -> Tile:
    """Where the sign bit of ``x`` is set (-0.0 and NaN with a sign too); a bool tile."""
    tile = as_tile(x)
    if tile.dtype.is_float:
        tile = _bits(tile)
    if not tile.dtype.is_signed:
        return constant(False, boolean, tile.shape)
    return compare("lt", tile, 0)


@builtin
def copysign(x: Any, y: Any) -> Tile:
    """``x`` with the sign bit of ``y``."""
    size, signed = _floats("copysign", x, y)
    mask = _sign_mask(size.dtype)
    bits = binary("or", binary("and", _bits(size), ~mask), binary("and", _bits(signed), mask))
    return bitcast(bits, size.dtype)


@builtin
def nextafter(x: Any, y: Any) -> Tile:
    """The float next to ``x`` in the direction of ``y``; ``y`` where they are equal."""
    a, b = _floats("nextafter", x, y)
    bits = _bits(a)
    # The bits of a positive float count upwards, those of a negative one away from zero.
    away = compare("eq", compare("gt", b, a), compare("gt", a, 0))
    step = where(away, constant(1, bits.dtype), constant(-1, bits.dtype))
    least = binary("or", binary("and", _bits(b), _sign_mask(a.dtype)), 1)
    out = bitcast(where(compare("eq", a, 0), least, binary("add", bits, step)), a.dtype)
    out = where(compare("eq", a, b), b, out)
    nan = binary("or", compare("ne", a, a), compare("ne", b, b))
    return where(nan, binary("add", a, b), out)


@builtin
def logaddexp(x: Any, y: Any) -> Tile:
    """``log(exp(x) + exp(y))``, from the larger one so that nothing overflows."""
    a, b = _floats("logaddexp", x, y)
    larger = maximum(a, b)
    same = compare("eq", a, b)  # infinities of one sign have no difference
    distance = where(same, 0.0, abs(binary("sub", a, b)))
    return binary("add", larger, log1p(exp(-distance)))


@builtin
def floor_divide(x: Any, y: Any) -> Tile:
    """``x // y``, rounded towards minus infinity. Integers: x // 0 is 0."""
    return binary("floordiv", x, y)


@builtin
def remainder(x: Any, y: Any) -> Tile:
    """``x % y``, with the sign of ``y``. Integers: x % 0 is 0."""
    return binary("mod", x, y)


@builtin
def rotl(x: Any, n: Any) -> Tile:
    """The bits of an integer ``x`` rotated left by ``n`` (taken modulo the width)."""
    tile = as_tile(x)
    if not tile.dtype.is_integer:
        raise KernelError(f"rotl wants an integer, got {describe(tile)}")
    bits, dtype = tile.dtype.bits, tile.dtype
    if isinstance(n, Tile):
        raise KernelError("rotl wants a compile-time amount")
    n = int(n) % bits
    if n == 0:
        return tile
    unsigned = _UNSIGNED[dtype.bits]
    word = tile if dtype.kind == "u" else bitcast(tile, unsigned)
    out = binary("or", binary("shl", word, n), binary("shr", word, bits - n))
    return out if dtype.kind == "u" else bitcast(out, dtype)

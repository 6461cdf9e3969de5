"""Conversions of f16 and bf16 bit patterns, and a fused multiply-add for machines without one."""

from __future__ import annotations

from tilewright.dtypes import DType, bf16
from tilewright.targets.cpu.lowering.context import Context
from tilewright.targets.cpu.lowering.emit import vec

__all__ = ["fma_wide", "from_f32", "from_f64", "to_f32"]


def _all(element: str, value: int | str, width: int) -> str:
    return str(value) if width == 1 else f"splat ({element} {value})"


def to_f32(ctx: Context, dtype: DType, value: str, width: int) -> str:
    """Exact; a signalling NaN may become quiet."""
    em = ctx.em
    i16, i32, f32 = (vec(t, width) for t in ("i16", "i32", "float"))
    if dtype is bf16:
        wide = em.op(f"zext {i16} {value} to {i32}")
        bits = em.op(f"shl {i32} {wide}, {_all('i32', 16, width)}")
        return em.op(f"bitcast {i32} {bits} to {f32}")
    if ctx.machine.has_f16c:
        half = em.op(f"bitcast {i16} {value} to {vec('half', width)}")
        return em.op(f"fpext {vec('half', width)} {half} to {f32}")
    # Shift exponent and mantissa into place and rescale: 2^112 corrects the exponent's bias and
    # normalises subnormals exactly; an all-ones exponent is put back by hand.
    wide = em.op(f"zext {i16} {value} to {i32}")
    low = em.op(f"and {i32} {wide}, {_all('i32', 0x7FFF, width)}")
    placed = em.op(f"shl {i32} {low}, {_all('i32', 13, width)}")
    as_float = em.op(f"bitcast {i32} {placed} to {f32}")
    scale = _all("float", "0x46F0000000000000", width)
    scaled = em.op(f"fmul {f32} {as_float}, {scale}")
    bits = em.op(f"bitcast {f32} {scaled} to {i32}")
    special = em.op(f"icmp uge {i32} {low}, {_all('i32', 0x7C00, width)}")
    full = em.op(f"or {i32} {placed}, {_all('i32', 0x7F800000, width)}")
    bits = em.op(f"select {vec('i1', width)} {special}, {i32} {full}, {i32} {bits}")
    sign = em.op(f"and {i32} {wide}, {_all('i32', 0x8000, width)}")
    sign = em.op(f"shl {i32} {sign}, {_all('i32', 16, width)}")
    return em.op(f"bitcast {i32} {em.op(f'or {i32} {bits}, {sign}')} to {f32}")


def from_f32(ctx: Context, dtype: DType, value: str, width: int) -> str:
    """Rounded to nearest, ties to even; a NaN stays a quiet NaN."""
    em = ctx.em
    i16, i32, f32, flag = (vec(t, width) for t in ("i16", "i32", "float", "i1"))
    if dtype is bf16:
        bits = em.op(f"bitcast {f32} {value} to {i32}")
        high = em.op(f"lshr {i32} {bits}, {_all('i32', 16, width)}")
        odd = em.op(f"and {i32} {high}, {_all('i32', 1, width)}")
        bias = em.op(f"add {i32} {odd}, {_all('i32', 0x7FFF, width)}")
        total = em.op(f"add {i32} {bits}, {bias}")
        rounded = em.op(f"lshr {i32} {total}, {_all('i32', 16, width)}")
        quiet = em.op(f"or {i32} {high}, {_all('i32', 0x40, width)}")
        nan = em.op(f"fcmp uno {f32} {value}, {value}")
        out = em.op(f"select {flag} {nan}, {i32} {quiet}, {i32} {rounded}")
        return em.op(f"trunc {i32} {out} to {i16}")
    if ctx.machine.has_f16c:
        half = em.op(f"fptrunc {f32} {value} to {vec('half', width)}")
        return em.op(f"bitcast {vec('half', width)} {half} to {i16}")
    return _f16_by_hand(ctx, value, width)


def _f16_by_hand(ctx: Context, value: str, width: int) -> str:
    em = ctx.em
    i16, i32, f32, flag = (vec(t, width) for t in ("i16", "i32", "float", "i1"))
    bits = em.op(f"bitcast {f32} {value} to {i32}")
    sign = em.op(f"lshr {i32} {bits}, {_all('i32', 16, width)}")
    sign = em.op(f"and {i32} {sign}, {_all('i32', 0x8000, width)}")
    size = em.op(f"and {i32} {bits}, {_all('i32', 0x7FFFFFFF, width)}")
    # Normal results: rebias the exponent and round the 13 dropped bits in integers.
    odd = em.op(f"lshr {i32} {size}, {_all('i32', 13, width)}")
    odd = em.op(f"and {i32} {odd}, {_all('i32', 1, width)}")
    normal = em.op(f"add {i32} {size}, {_all('i32', 0xFFF - (112 << 23), width)}")
    normal = em.op(f"add {i32} {normal}, {odd}")
    normal = em.op(f"lshr {i32} {normal}, {_all('i32', 13, width)}")
    # Subnormal results: adding 0.5 lets the float adder round at 2^-24.
    magnitude = em.op(f"bitcast {i32} {size} to {f32}")
    shifted = em.op(f"fadd {f32} {magnitude}, {_all('float', '0x3FE0000000000000', width)}")
    small = em.op(f"bitcast {f32} {shifted} to {i32}")
    small = em.op(f"sub {i32} {small}, {_all('i32', 0x3F000000, width)}")
    is_small = em.op(f"icmp ult {i32} {size}, {_all('i32', 113 << 23, width)}")
    out = em.op(f"select {flag} {is_small}, {i32} {small}, {i32} {normal}")
    over = em.op(f"icmp uge {i32} {size}, {_all('i32', 0x477FF000, width)}")
    infinity = _all("i32", 0x7C00, width)
    out = em.op(f"select {flag} {over}, {i32} {infinity}, {i32} {out}")
    payload = em.op(f"lshr {i32} {size}, {_all('i32', 13, width)}")
    payload = em.op(f"and {i32} {payload}, {_all('i32', 0x3FF, width)}")
    payload = em.op(f"or {i32} {payload}, {_all('i32', 0x7E00, width)}")
    nan = em.op(f"icmp ugt {i32} {size}, {_all('i32', 0x7F800000, width)}")
    out = em.op(f"select {flag} {nan}, {i32} {payload}, {i32} {out}")
    return em.op(f"trunc {i32} {em.op(f'or {i32} {out}, {sign}')} to {i16}")


def from_f64(ctx: Context, dtype: DType, value: str, width: int) -> str:
    """Rounded once: the step through f32 rounds to odd, which cannot disturb the second rounding.

    (Boldo and Melquiond, "When double rounding is odd", 2005.)
    """
    em = ctx.em
    i32, f32, f64, flag = (vec(t, width) for t in ("i32", "float", "double", "i1"))
    near = em.op(f"fptrunc {f64} {value} to {f32}")
    back = em.op(f"fpext {f32} {near} to {f64}")
    bits = em.op(f"bitcast {f32} {near} to {i32}")
    low = em.op(f"and {i32} {bits}, {_all('i32', 1, width)}")
    even = em.op(f"icmp eq {i32} {low}, {_all('i32', 0, width)}")
    inexact = em.op(f"fcmp one {f64} {back}, {value}")
    adjust = em.op(f"and {flag} {even}, {inexact}")
    size = em.intrinsic("fabs", "double", width, value)
    size_near = em.intrinsic("fabs", "double", width, back)
    under = em.op(f"fcmp olt {f64} {size_near}, {size}")
    up = em.op(f"add {i32} {bits}, {_all('i32', 1, width)}")
    down = em.op(f"sub {i32} {bits}, {_all('i32', 1, width)}")
    odd = em.op(f"select {flag} {under}, {i32} {up}, {i32} {down}")
    bits = em.op(f"select {flag} {adjust}, {i32} {odd}, {i32} {bits}")
    return from_f32(ctx, dtype, em.op(f"bitcast {i32} {bits} to {f32}"), width)


def fma_wide(ctx: Context, x: str, y: str, z: str, width: int) -> str:
    """``x * y + z`` of f32 operands as an f64 rounded to odd, so that rounding it is exact.

    The product is exact in f64. Knuth's two-sum gives the addition's error; when there is one and
    the sum's last bit is even, the sum moves one unit towards the error.
    """
    em = ctx.em
    f32, f64, i64, flag = (vec(t, width) for t in ("float", "double", "i64", "i1"))
    a, b, c = (em.op(f"fpext {f32} {v} to {f64}") for v in (x, y, z))
    p = em.op(f"fmul {f64} {a}, {b}")
    s = em.op(f"fadd {f64} {p}, {c}")
    c2 = em.op(f"fsub {f64} {s}, {p}")
    p2 = em.op(f"fsub {f64} {s}, {c2}")
    dp = em.op(f"fsub {f64} {p}, {p2}")
    dc = em.op(f"fsub {f64} {c}, {c2}")
    error = em.op(f"fadd {f64} {dp}, {dc}")
    zero = _all("double", "0x0000000000000000", width)
    inexact = em.op(f"fcmp one {f64} {error}, {zero}")  # ordered: infinities stay
    bits = em.op(f"bitcast {f64} {s} to {i64}")
    low = em.op(f"and {i64} {bits}, {_all('i64', 1, width)}")
    even = em.op(f"icmp eq {i64} {low}, {_all('i64', 0, width)}")
    adjust = em.op(f"and {flag} {even}, {inexact}")
    s_up = em.op(f"fcmp ogt {f64} {s}, {zero}")
    e_up = em.op(f"fcmp ogt {f64} {error}, {zero}")
    away = em.op(f"icmp eq {flag} {s_up}, {e_up}")
    more = em.op(f"add {i64} {bits}, {_all('i64', 1, width)}")
    less = em.op(f"sub {i64} {bits}, {_all('i64', 1, width)}")
    moved = em.op(f"select {flag} {away}, {i64} {more}, {i64} {less}")
    bits = em.op(f"select {flag} {adjust}, {i64} {moved}, {i64} {bits}")
    return em.op(f"bitcast {i64} {bits} to {f64}")

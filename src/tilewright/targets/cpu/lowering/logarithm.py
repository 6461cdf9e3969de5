"""Logarithms in f64, and the inverse hyperbolic functions that are made of them.

x = 2^e (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2), and log(1 + f) = f - f^2/2 + s (f^2/2 + R(s^2))
with s = f / (2 + f) (fdlibm, e_log.c). Other bases multiply that, kept in two parts.
"""

from __future__ import annotations

import math

from tilewright.targets.cpu.lowering.vector import Vector

__all__ = ["acosh", "asinh", "atanh", "log", "log1p", "log2", "log10", "log_parts"]

_LN2_HI = 0.6931471803691238
_LN2_LO = 1.9082149292705877e-10
_LG = (
    6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01,
    2.222219843214978396e-01, 1.818357216161805012e-01, 1.531383769920937332e-01,
    1.479819860511658591e-01,
)  # fmt: skip
_SQRT_HALF = 0x3FE6A09E667F3BCD  # bits


def _split(w: Vector, x: str) -> tuple[str, str]:
    """``e`` (a float) and 1 + f of a positive number; nonsense for the others."""
    tiny = w.compare("olt", x, w.constant(2.0**-1022))
    bits = w.bits(w.select(tiny, w.mul(x, w.constant(2.0**54)), x))
    e = w.ashr(w.isub(bits, w.icon(_SQRT_HALF)), w.icon(52))
    m = w.unbits(w.isub(bits, w.shl(e, w.icon(52))))
    return w.sub(w.exponent_to_float(e), w.select(tiny, w.constant(54.0), w.constant(0.0))), m


def _series(w: Vector, f: str) -> tuple[str, str]:
    """``h`` and ``q`` with log(1 + f) = f - h + q, h = f^2 / 2 and q of the order of f^3."""
    s = w.div(f, w.add(f, w.constant(2.0)))
    z = w.mul(s, s)
    h = w.mul(w.mul(f, f), w.constant(0.5))
    return h, w.mul(s, w.add(h, w.mul(z, w.polynomial(z, _LG))))


def _natural(w: Vector, e: str, f: str, extra: str | None = None) -> str:
    """e ln 2 + log(1 + f) + extra."""
    h, q = _series(w, f)
    low = w.mul(e, w.constant(_LN2_LO))
    if extra is not None:
        low = w.add(low, extra)
    inner = w.sub(w.sub(h, w.add(q, low)), f)
    return w.sub(w.mul(e, w.constant(_LN2_HI)), inner)


def _ends(w: Vector, x: str, out: str) -> str:
    """Zero, negative numbers, infinity and NaN."""
    out = w.select(w.compare("oeq", x, w.constant(math.inf)), x, out)
    out = w.select(w.compare("oeq", x, w.constant(0.0)), w.constant(-math.inf), out)
    return w.select(w.compare("oge", x, w.constant(0.0)), out, w.constant(math.nan))


def log(w: Vector, x: str) -> str:
    e, m = _split(w, x)
    return _ends(w, x, _natural(w, e, w.sub(m, w.constant(1.0))))


def _parts(w: Vector, x: str) -> tuple[str, str, str]:
    """``e``, and log(1 + f) in two parts."""
    e, m = _split(w, x)
    f = w.sub(m, w.constant(1.0))
    h, q = _series(w, f)
    high, lost = w.ordered_sum(f, w.neg(h))
    return e, high, w.add(lost, q)


def _based(w: Vector, x: str, factor: tuple[float, float], unit: tuple[float, float]) -> str:
    """log(x) * factor where ``unit`` is log(2) * factor (its first part times e is exact)."""
    e, high, low = _parts(w, x)
    product, lost = w.two_product(high, w.constant(factor[0]))
    lost = w.add(lost, w.fma(low, w.constant(factor[0]), w.mul(high, w.constant(factor[1]))))
    total, error = w.two_sum(w.mul(e, w.constant(unit[0])), product)
    lost = w.add(error, w.fma(e, w.constant(unit[1]), lost))
    return _ends(w, x, w.add(total, lost))


def log2(w: Vector, x: str) -> str:
    return _based(w, x, (1.4426950408889634, 2.0355273740931033e-17), (1.0, 0.0))


def log10(w: Vector, x: str) -> str:
    return _based(
        w,
        x,
        (0.4342944819032518, 1.098319650216765e-17),
        (0.3010299955494702, 1.1451100898021838e-10),
    )


def log1p(w: Vector, x: str, extra: str | None = None) -> str:
    """log(1 + x + extra), where ``extra`` (default 0) is small against x (FreeBSD, s_log1p.c)."""
    one = w.constant(1.0)
    u = w.add(one, x)
    e, m = _split(w, u)
    # What 1 + x lost, relative to it.
    lost = w.select(w.compare("oge", x, one), w.sub(one, w.sub(u, x)), w.sub(x, w.sub(u, one)))
    if extra is not None:
        lost = w.add(lost, extra)
    near = w.compare("oeq", e, w.constant(0.0))
    f = w.select(near, x, w.sub(m, one))
    if extra is not None:
        correction = w.div(lost, u)
        near_extra = w.div(extra, u)
        correction = w.select(near, near_extra, correction)
    else:
        correction = w.select(near, w.constant(0.0), w.div(lost, u))
    out = _ends(w, u, _natural(w, e, f, correction))
    return w.select(w.compare("oeq", x, w.constant(0.0)), x, out)


def _of_large(w: Vector, x: str) -> str:
    """log(2 x)."""
    e, m = _split(w, x)
    out = _natural(w, w.add(e, w.constant(1.0)), w.sub(m, w.constant(1.0)))
    return _ends(w, x, out)


def asinh(w: Vector, x: str) -> str:
    """log1p(|x| + x^2 / (1 + sqrt(1 + x^2)))."""
    size = w.abs(x)
    big = w.compare("ogt", size, w.constant(2.0**28))
    safe = w.select(big, w.constant(1.0), size)
    square = w.mul(safe, safe)
    one = w.constant(1.0)
    root = w.intrinsic("sqrt", w.add(one, square))
    total, lost = w.two_sum(safe, w.div(square, w.add(one, root)))
    out = w.select(big, _of_large(w, size), log1p(w, total, lost))
    return w.copysign(w.select(w.compare("oeq", x, w.constant(0.0)), size, out), x)


def acosh(w: Vector, x: str) -> str:
    """log1p(t + sqrt(t (t + 2))) with t = x - 1; NaN for t < 0."""
    big = w.compare("ogt", x, w.constant(2.0**28))
    t = w.sub(w.select(big, w.constant(2.0), x), w.constant(1.0))
    root = w.intrinsic("sqrt", w.mul(t, w.add(t, w.constant(2.0))))
    total, lost = w.two_sum(root, t)
    out = w.select(big, _of_large(w, x), log1p(w, total, lost))
    return w.select(w.compare("oge", x, w.constant(1.0)), out, w.constant(math.nan))


def atanh(w: Vector, x: str) -> str:
    """log1p(2 |x| / (1 - |x|)) / 2, with the quotient's error."""
    size = w.abs(x)
    one = w.constant(1.0)
    below = w.sub(one, size)
    lost = w.sub(w.sub(one, below), size)  # 1 - |x| = below + lost
    twice = w.add(size, size)
    ratio = w.div(twice, below)
    rest = w.sub(w.remainder_of(twice, ratio, below), w.mul(ratio, lost))
    extra = w.div(rest, below)
    finite = w.compare("olt", size, one)
    extra = w.select(finite, extra, w.constant(0.0))
    out = w.mul(log1p(w, ratio, extra), w.constant(0.5))
    out = w.select(w.compare("oeq", size, one), w.constant(math.inf), out)
    out = w.select(w.compare("ogt", size, one), w.constant(math.nan), out)
    return w.copysign(w.select(w.compare("oeq", x, w.constant(0.0)), size, out), x)


# --- a logarithm to 68 bits, for powers ---


def log_parts(w: Vector, x: str) -> tuple[str, str]:
    """log(x) of a positive finite number in two parts, relative error about 2^-68.

    log m = 2 atanh(s), s = (m - 1) / (m + 1): s and its cube's coefficient in two parts, the rest
    of the series in f64.
    """
    e, m = _split(w, x)
    one = w.constant(1.0)
    above = w.sub(m, one)
    below, below_lost = w.two_sum(m, one)
    s = w.div(above, below)
    rest = w.sub(w.remainder_of(above, s, below), w.mul(s, below_lost))
    s_low = w.div(rest, below)
    z, z_low = w.two_product(s, s)
    z_low = w.fma(w.add(s, s), s_low, z_low)
    # 2/3 z + 2/5 z^2 + ... : the first two terms in two parts
    tail = w.polynomial(z, tuple(2.0 / k for k in range(7, 25, 2)))
    c5, c5_low = _two_parts(2, 5)
    c3, c3_low = _two_parts(2, 3)
    p, p_low = w.two_product(z, tail)
    q, q_low = w.ordered_sum(w.constant(c5), p)
    q_low = w.add(q_low, w.add(p_low, w.constant(c5_low)))
    p, p_low = w.two_product(z, q)
    p_low = w.add(p_low, w.fma(z_low, q, w.mul(z, q_low)))
    q, q_low = w.ordered_sum(w.constant(c3), p)
    q_low = w.add(q_low, w.add(p_low, w.constant(c3_low)))
    # s^3 (c3 + ...)
    cube, cube_low = w.two_product(s, z)
    cube_low = w.add(cube_low, w.fma(s_low, z, w.mul(s, z_low)))
    p, p_low = w.two_product(cube, q)
    p_low = w.add(p_low, w.fma(cube_low, q, w.mul(cube, q_low)))
    twice, twice_low = w.add(s, s), w.add(s_low, s_low)
    head, lost = w.ordered_sum(twice, p)
    low = w.add(w.add(lost, twice_low), p_low)
    # e ln 2, its first part exact
    start = w.mul(e, w.constant(_LN2_HI))
    total, error = w.two_sum(start, head)
    scaled, scaled_low = w.two_product(e, w.constant(_LN2_LO))
    total, more = w.two_sum(total, scaled)
    scaled_low = w.fma(e, w.constant(_LN2_REST), scaled_low)
    low = w.add(w.add(w.add(low, error), more), scaled_low)
    return w.ordered_sum(total, low)


_LN2_REST = 1.1612227229362532e-26  # ln 2 - _LN2_HI - _LN2_LO


def _two_parts(a: int, b: int) -> tuple[float, float]:
    """a / b as an unevaluated sum of two floats."""
    from fractions import Fraction

    high = a / b
    return high, float(Fraction(a, b) - Fraction(high))

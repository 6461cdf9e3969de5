"""Powers, lengths and remainders in f64."""

from __future__ import annotations

import math

from tilewright.targets.cpu.lowering.exponential import clamp, exp_of_sum
from tilewright.targets.cpu.lowering.logarithm import log_parts
from tilewright.targets.cpu.lowering.vector import Vector

__all__ = ["fmod", "hypot", "pow", "power_ends"]


def pow(w: Vector, x: str, y: str) -> str:
    """exp(y log |x|), the logarithm and the product in two parts."""
    size = w.abs(x)
    high, low = log_parts(w, size)
    # Zero and infinity have no logarithm; one a little outside of what doubles hold serves.
    high = w.select(w.compare("oeq", size, w.constant(0.0)), w.constant(-800.0), high)
    high = w.select(w.compare("oeq", size, w.constant(math.inf)), w.constant(800.0), high)
    low = w.select(w.compare("olt", w.abs(high), w.constant(790.0)), low, w.constant(0.0))
    edge = w.either(
        w.compare("oeq", size, w.constant(0.0)), w.compare("oeq", size, w.constant(math.inf))
    )
    # Beyond 2^64 every power but those of 1 is 0 or infinite; products must stay finite.
    by = clamp(w, y, -(2.0**64), 2.0**64)
    product, lost = w.two_product(high, by)
    lost = w.fma(low, by, lost)
    limit = clamp(w, product, -800.0, 800.0)
    inside = w.compare("oeq", limit, product)
    lost = w.select(inside, lost, w.constant(0.0))
    limit, lost = w.ordered_sum(limit, lost)
    out = exp_of_sum(w, limit, lost)
    # A zero or infinite base: any positive power is as zero or infinite, however small.
    grows = w.differ(w.compare("ogt", y, w.constant(0.0)), w.compare("olt", size, w.constant(1.0)))
    end = w.select(grows, w.constant(math.inf), w.constant(0.0))
    return power_ends(w, x, y, w.select(edge, end, out))


def power_ends(v: Vector, x: str, y: str, out: str) -> str:
    """C99's special cases, given |x|**y for what is left."""
    whole = v.compare("oeq", v.intrinsic("trunc", y), y)
    halved = v.mul(y, v.constant(0.5))
    even = v.compare("oeq", v.intrinsic("trunc", halved), halved)
    odd = v.both(whole, v.invert(even))
    out = v.select(v.both(odd, v.negative(x)), v.neg(out), out)
    # A negative, finite, nonzero base wants a whole exponent (infinities count as whole).
    below = v.compare("olt", x, v.constant(0.0))
    finite = v.compare("ogt", x, v.constant(-math.inf))
    bad = v.both(v.both(below, finite), v.invert(whole))
    out = v.select(bad, v.constant(math.nan), out)
    out = v.select(v.compare("uno", x, y), v.constant(math.nan), out)
    endless = v.compare("oeq", v.abs(y), v.constant(math.inf))
    unit = v.compare("oeq", v.abs(x), v.constant(1.0))
    out = v.select(v.both(endless, unit), v.constant(1.0), out)
    out = v.select(v.compare("oeq", x, v.constant(1.0)), v.constant(1.0), out)
    return v.select(v.compare("oeq", y, v.constant(0.0)), v.constant(1.0), out)


def hypot(w: Vector, x: str, y: str) -> str:
    """sqrt(x^2 + y^2), corrected once (C. Borges, "An improved algorithm for hypot", 2019)."""
    p, q = w.abs(x), w.abs(y)
    swap = w.compare("olt", p, q)
    a, b = w.select(swap, q, p), w.select(swap, p, q)
    huge = w.compare("ogt", a, w.constant(2.0**500))
    tiny = w.compare("olt", a, w.constant(2.0**-450))
    one = w.constant(1.0)
    factor = w.select(huge, w.constant(2.0**-600), w.select(tiny, w.constant(2.0**600), one))
    back = w.select(huge, w.constant(2.0**600), w.select(tiny, w.constant(2.0**-600), one))
    a, b = w.mul(a, factor), w.mul(b, factor)
    a2, a2_low = w.two_product(a, a)
    b2, b2_low = w.two_product(b, b)
    total, lost = w.ordered_sum(a2, b2)
    lost = w.add(lost, w.add(a2_low, b2_low))
    h = w.intrinsic("sqrt", total)
    rest = w.add(w.remainder_of(total, h, h), lost)
    out = w.add(h, w.div(rest, w.add(h, h)))
    out = w.select(w.compare("oeq", a, w.constant(0.0)), a, out)
    out = w.mul(out, back)
    infinite = w.either(
        w.compare("oeq", p, w.constant(math.inf)), w.compare("oeq", q, w.constant(math.inf))
    )
    return w.select(
        infinite, w.constant(math.inf), w.select(w.compare("uno", p, q), w.constant(math.nan), out)
    )


def _exponent(w: Vector, x: str) -> str:
    """floor(log2 x) of a positive finite number (i64); anything for the others."""
    tiny = w.compare("olt", x, w.constant(2.0**-1000))
    bits = w.bits(w.select(tiny, w.mul(x, w.constant(2.0**100)), x))
    e = w.lshr(bits, w.icon(52))
    return w.isub(e, w.iselect(tiny, w.icon(1123), w.icon(1023)))


def fmod(w: Vector, x: str, y: str) -> str:
    """The exact remainder with the sign of ``x``: long division, 50 bits of quotient a time.

    Each step takes q y 2^k from what is left, q a whole number below 2^51: that difference is
    exact, and an overestimated q is undone by adding y 2^k back.
    """
    em = w.em
    zero = w.constant(0.0)
    a, b = w.abs(x), w.abs(y)
    finite = w.compare("olt", a, w.constant(math.inf))
    valid = w.both(finite, w.compare("ogt", b, zero))
    left = w.select(valid, a, zero)
    by = w.select(valid, b, w.constant(1.0))
    low = _exponent(w, w.select(w.compare("olt", by, w.constant(math.inf)), by, w.constant(1.0)))
    bits = 50 if w.machine.has_fma else 25
    head, done = em.label("divide"), em.label("divided")
    before = em.block
    em.branch(w.any(w.compare("oge", left, by)), head, done)
    em.start(head)
    rest, line = em.phi(w.type, left, before)
    k = w.isub(_exponent(w, rest), w.iadd(low, w.icon(bits)))
    k = w.iselect(w.em.op(f"icmp sgt {w.itype} {k}, {w.icon(0)}"), k, w.icon(0))
    most = w.icon(2046)  # two factors of 2^1023; the quotient grows a little beyond instead
    k = w.iselect(w.em.op(f"icmp slt {w.itype} {k}, {most}"), k, most)
    half = w.lshr(k, w.icon(1))
    scaled = by
    for part in (half, w.isub(k, half)):
        scaled = w.mul(scaled, w.unbits(w.shl(w.iadd(part, w.icon(1023)), w.icon(52))))
    q = w.intrinsic("trunc", w.div(rest, scaled))
    if w.machine.has_fma:
        after = w.remainder_of(rest, q, scaled)
    else:  # whose parts must not overflow
        huge = w.compare("ogt", rest, w.constant(2.0**500))
        down, up = (w.select(huge, w.constant(f), w.constant(1.0)) for f in (2.0**-99, 2.0**99))
        after = w.mul(w.remainder_of(w.mul(rest, down), q, w.mul(scaled, down)), up)
    after = w.select(w.compare("olt", after, zero), w.add(after, scaled), after)
    after = w.select(w.compare("oge", rest, by), after, rest)
    more = w.any(w.compare("oge", after, by))
    last = em.block
    em.add_incoming(line, after, last)
    em.branch(more, head, done)
    em.start(done)
    out, out_line = em.phi(w.type, left, before)
    em.add_incoming(out_line, after, last)
    return w.select(valid, w.copysign(out, x), w.constant(math.nan))

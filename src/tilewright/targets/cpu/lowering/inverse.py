"""Inverse trigonometric functions in f64.

asin and acos are fdlibm's (e_asin.c, e_acos.c). atan reduces its argument to |z| <= tan(pi/8) by
one division, which also divides the two arguments of atan2; the polynomial is a Chebyshev fit
(relative error 1e-18).
"""

from __future__ import annotations

import math

from tilewright.targets.cpu.lowering.vector import Vector

__all__ = ["acos", "asin", "atan", "atan2"]

_PIO2_HI, _PIO2_LO = 1.5707963267948966, 6.123233995736766e-17
_P = (
    1.66666666666666657415e-01, -3.25565818622400915405e-01, 2.01212532134862925881e-01,
    -4.00555345006794114027e-02, 7.91534994289814532176e-04, 3.47933107596021167570e-05,
)  # fmt: skip
_Q = (
    1.0, -2.40339491173441421878e00, 2.02094576023350569471e00, -6.88283971605453293030e-01,
    7.70381505559019352791e-02,
)  # fmt: skip
# (atan(x) / x - 1) / x^2 in x^2
_ATAN = (
    -0.3333333333333333, 0.19999999999999804, -0.14285714285659729, 0.11111111105145725,
    -0.09090908753017178, 0.07692296361048218, -0.06666424634599337, 0.05878926110528101,
    -0.052304330074828924, 0.0455149623749493, -0.034568068014968874, 0.016282993238924487,
)  # fmt: skip


def _asin_parts(w: Vector, x: str) -> tuple[str, str, str, str]:
    """Whether |x| < 1/2, the root s + c of (1 - |x|) / 2, and R with asin(y) = y + y R(y^2).

    R is that of x^2 for small arguments and that of s^2 for the others.
    """
    size = w.abs(x)
    small = w.compare("olt", size, w.constant(0.5))
    z = w.mul(w.sub(w.constant(1.0), size), w.constant(0.5))
    z = w.select(small, w.mul(x, x), z)
    ratio = w.div(w.mul(z, w.polynomial(z, _P)), w.polynomial(z, _Q))
    s = w.intrinsic("sqrt", z)
    c = w.div(w.remainder_of(z, s, s), w.add(s, s))
    c = w.select(w.compare("oeq", s, w.constant(0.0)), w.constant(0.0), c)
    return small, s, c, ratio


def asin(w: Vector, x: str) -> str:
    small, s, c, ratio = _asin_parts(w, x)
    twice = w.add(s, s)
    head, lost = w.ordered_sum(w.constant(_PIO2_HI), w.neg(twice))
    tail = w.mul(w.fma(s, ratio, c), w.constant(2.0))
    large = w.add(head, w.add(lost, w.sub(w.constant(_PIO2_LO), tail)))
    near = w.fma(x, ratio, x)
    near = w.select(w.compare("oeq", x, w.constant(0.0)), x, near)
    return w.select(small, near, w.copysign(large, x))


def acos(w: Vector, x: str) -> str:
    small, s, c, ratio = _asin_parts(w, x)
    half = w.constant(_PIO2_HI)
    near = w.sub(half, w.sub(x, w.sub(w.constant(_PIO2_LO), w.mul(x, ratio))))
    tail = w.fma(s, ratio, c)
    right = w.mul(w.add(s, tail), w.constant(2.0))
    left = w.sub(half, w.add(s, w.sub(tail, w.constant(_PIO2_LO))))
    left = w.mul(left, w.constant(2.0))
    large = w.select(w.compare("olt", x, w.constant(0.0)), left, right)
    return w.select(small, near, large)


def _angle(w: Vector, a: str, b: str) -> tuple[str, str]:
    """atan(a / b) of numbers that are not negative, in two parts; 0 for a = 0."""
    steep = w.compare("ogt", a, w.mul(b, w.constant(2.414213562373095)))
    flat = w.compare("ole", a, w.mul(b, w.constant(0.41421356237309503)))
    above = w.select(flat, a, w.sub(a, b))
    below = w.select(flat, b, w.add(a, b))
    above = w.select(steep, w.neg(b), above)
    below = w.select(steep, a, below)
    z = w.div(above, below)
    z = w.select(w.compare("oeq", a, w.constant(0.0)), w.mul(a, w.constant(0.0)), z)
    z = w.select(w.compare("uno", a, b), w.constant(math.nan), z)
    square = w.mul(z, z)
    zero = w.constant(0.0)

    def offset(whole: float) -> str:
        middle = w.select(flat, zero, w.constant(whole * 0.5))
        return w.select(steep, w.constant(whole), middle)

    start, start_low = offset(_PIO2_HI), offset(_PIO2_LO)
    # Zero over zero counts as flat.
    tail = w.mul(w.mul(z, square), w.polynomial(square, _ATAN))
    head, lost = w.ordered_sum(start, z)
    return head, w.add(lost, w.add(tail, start_low))


def atan(w: Vector, x: str) -> str:
    size = w.abs(x)
    high, low = _angle(w, size, w.constant(1.0))
    return w.copysign(w.add(high, low), x)


def atan2(w: Vector, y: str, x: str) -> str:
    a, b = w.abs(y), w.abs(x)
    infinite = w.constant(math.inf)
    both = w.both(w.compare("oeq", a, infinite), w.compare("oeq", b, infinite))
    one = w.constant(1.0)
    a, b = w.select(both, one, a), w.select(both, one, b)
    # Sums must not overflow, nor quotients of subnormals lose bits.
    huge = w.compare("ogt", w.intrinsic("maxnum", a, b), w.constant(2.0**1000))
    tiny = w.compare("olt", w.intrinsic("maxnum", a, b), w.constant(2.0**-900))
    factor = w.select(huge, w.constant(2.0**-60), w.select(tiny, w.constant(2.0**100), one))
    high, low = _angle(w, w.mul(a, factor), w.mul(b, factor))
    # Left of the y axis: pi minus the angle.
    pi, pi_low = w.constant(2 * _PIO2_HI), w.constant(2 * _PIO2_LO)
    left, lost = w.ordered_sum(pi, w.neg(high))
    left = w.add(left, w.add(lost, w.sub(pi_low, low)))
    out = w.select(w.negative(x), left, w.add(high, low))
    out = w.select(w.compare("uno", x, y), w.constant(math.nan), out)
    return w.copysign(out, y)

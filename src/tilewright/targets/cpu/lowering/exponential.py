"""Exponentials in f64: exp and what is made of it.

x = n ln 2 + r with |r| <= ln(2)/2, ln 2 in two parts whose first has 32 significant bits, so that n
times it is exact. Polynomials are Chebyshev fits in multiple precision (relative errors of 2e-18
and less for exp and exp2).
"""

from __future__ import annotations

from tilewright.targets.cpu.lowering.vector import Vector

__all__ = ["clamp", "cosh", "exp", "exp2", "exp_of_sum", "expm1", "sigmoid", "sinh", "tanh"]

_LOG2E = 1.4426950408889634
_LN2_HI = 0.6931471803691238
_LN2_LO = 1.9082149292705877e-10
_ROUND = 6755399441055744.0  # 1.5 * 2^52: adding it leaves the nearest integer in the low bits

# (e^r - 1 - r) / r^2
_EXP = (
    0.5, 0.1666666666666667, 0.04166666666666667, 0.008333333333326136, 0.0013888888888883748,
    0.00019841269874820627, 2.4801587325547743e-05, 2.7557255400206422e-06, 2.75572736431103e-07,
    2.5105217004720745e-08, 2.0914686968086876e-09,
)  # fmt: skip
# (2^r - 1) / r for |r| <= 1/2
_EXP2 = (
    0.6931471805599453, 0.24022650695910072, 0.055504108664821625, 0.00961812910762848,
    0.0013333558146406467, 0.00015403530393370732, 1.5252733841561274e-05, 1.321548680870779e-06,
    1.0178057085418509e-07, 7.054897303009422e-09, 4.455818319966744e-10, 2.5729326214820692e-11,
)  # fmt: skip


def clamp(v: Vector, x: str, low: float, high: float) -> str:
    """``x`` limited to [low, high]; NaN stays."""
    x = v.select(v.compare("ogt", x, v.constant(high)), v.constant(high), x)
    return v.select(v.compare("olt", x, v.constant(low)), v.constant(low), x)


def _nearest(w: Vector, x: str) -> tuple[str, str]:
    """The integer nearest to ``x`` (|x| < 2^51), as a float and as an i64."""
    shifted = w.add(x, w.constant(_ROUND))
    return w.sub(shifted, w.constant(_ROUND)), w.isub(w.bits(shifted), w.icon(0x4338000000000000))


def _power(w: Vector, n: str) -> str:
    """2**n for -1022 <= n <= 1023."""
    return w.unbits(w.shl(w.iadd(n, w.icon(1023)), w.icon(52)))


def scale(w: Vector, x: str, n: str) -> str:
    """``x * 2**n`` rounded once, for -2044 <= n <= 2046."""
    half = w.ashr(n, w.icon(1))
    return w.mul(w.mul(x, _power(w, half)), _power(w, w.isub(n, half)))


def _reduce(w: Vector, x: str, extra: str | None = None) -> tuple[str, str, str]:
    """``n`` (i64), ``r`` and ``t`` with e^(x + extra) = 2^n (1 + r + t), t at most about r^2."""
    whole, n = _nearest(w, w.mul(x, w.constant(_LOG2E)))
    high = w.sub(x, w.mul(whole, w.constant(_LN2_HI)))
    low = w.mul(whole, w.constant(_LN2_LO))
    if extra is not None:
        low = w.sub(low, extra)
    r = w.sub(high, low)
    lost = w.sub(w.sub(high, r), low)
    return n, r, w.fma(w.mul(r, r), w.polynomial(r, _EXP), lost)


def exp(w: Vector, x: str) -> str:
    return _exp_half(w, x, 0)


def _exp_half(w: Vector, x: str, shift: int) -> str:
    """e^x * 2**shift without overflow on the way."""
    n, r, t = _reduce(w, clamp(w, x, -746.0, 711.0))
    if shift:
        n = w.iadd(n, w.icon(shift))
    return scale(w, w.add(w.constant(1.0), w.add(r, t)), n)


def exp_of_sum(w: Vector, high: str, low: str) -> str:
    """e^(high + low) for |high| <= 800 and a small ``low``."""
    n, r, t = _reduce(w, high, low)
    head, lost = w.ordered_sum(w.constant(1.0), r)
    return scale(w, w.add(head, w.add(t, lost)), n)


def exp2(w: Vector, x: str) -> str:
    x = clamp(w, x, -1076.0, 1025.0)
    whole, n = _nearest(w, x)
    r = w.sub(x, whole)
    return scale(w, w.fma(w.polynomial(r, _EXP2), r, w.constant(1.0)), n)


def expm1(w: Vector, x: str) -> str:
    """2^n ((1 - 2^-n) + r + t); the first bracket is exact, or rounds where that does not show."""
    n, r, t = _reduce(w, clamp(w, x, -40.0, 711.0))
    many = w.em.op(f"icmp sgt {w.itype} {n}, {w.icon(60)}")
    start = w.sub(w.constant(1.0), _power(w, w.isub(w.icon(0), w.iselect(many, w.icon(60), n))))
    head, lost = w.ordered_sum(start, r)
    out = scale(w, w.add(head, w.add(lost, t)), n)
    return w.select(w.compare("oeq", x, w.constant(0.0)), x, out)


def sinh(w: Vector, x: str) -> str:
    """From t = e^|x| - 1 as (t + t / (t + 1)) / 2; e^|x| / 2 where the rest is lost (fdlibm)."""
    size = w.abs(x)
    one = w.constant(1.0)
    t = expm1(w, clamp(w, size, 0.0, 40.0))
    below = w.add(t, one)
    small = w.sub(w.add(t, t), w.div(w.mul(t, t), below))
    middle = w.add(t, w.div(t, below))
    out = w.select(w.compare("olt", size, one), small, middle)
    large = _exp_half(w, size, -1)
    out = w.mul(out, w.constant(0.5))
    return w.copysign(w.select(w.compare("ogt", size, w.constant(22.0)), large, out), x)


def cosh(w: Vector, x: str) -> str:
    half = _exp_half(w, w.abs(x), -1)
    return w.add(half, w.div(w.constant(0.25), half))


def tanh(w: Vector, x: str) -> str:
    """t / (t + 2) with t = e^2|x| - 1."""
    size = clamp(w, w.abs(x), 0.0, 22.0)
    t = expm1(w, w.add(size, size))
    low = w.div(t, w.add(t, w.constant(2.0)))
    high = w.sub(w.constant(1.0), w.div(w.constant(2.0), w.add(t, w.constant(2.0))))
    return w.copysign(w.select(w.compare("olt", size, w.constant(1.0)), low, high), x)


def sigmoid(w: Vector, x: str) -> str:
    """1 / (1 + e^-x), from e^-|x| so that nothing overflows."""
    e = exp(w, w.neg(w.abs(x)))
    positive = w.compare("oge", x, w.constant(0.0))
    return w.div(w.select(positive, w.constant(1.0), e), w.add(e, w.constant(1.0)))

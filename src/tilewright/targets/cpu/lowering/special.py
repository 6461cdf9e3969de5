"""Special functions in f64."""

from __future__ import annotations

import math

from tilewright.targets.cpu.lowering.exponential import exp
from tilewright.targets.cpu.lowering.logarithm import log
from tilewright.targets.cpu.lowering.trig_wide import sin
from tilewright.targets.cpu.lowering.vector import Vector

__all__ = ["erf", "erfinv", "lgamma"]

# Chebyshev fits in multiple precision: erf(x) / x - 1 in x^2 for |x| < 0.84375, and log(erfc(x))
# around the middles of [0.84, 1.7], [1.7, 3.2] and [3.2, 6].
_ERF = (
    0.12837916709551256, -0.376126389031834, 0.11283791670935311, -0.02686617064077985,
    0.005223977576377844, -0.000854832379116413, 0.00012055199941321885, -1.4922121574443055e-05,
    1.640162967934702e-06, -1.571446067260244e-07, 1.0726571432176348e-08,
)  # fmt: skip
_ERFC_MIDDLES = (1.27, 2.45, 4.6)
_ERFC = (
    (-2.624356725075616, -3.1025953245800655, -0.8727528118363616, -0.032070040130253656,
     0.007632744288793312, -0.0015774259819439599, 0.0002452602649944845,
     -1.170160215542969e-05, -9.926429775730972e-06, 4.882848083356098e-06,
     -1.3919661250371094e-06, 2.502477251818229e-07, -1.0446443671963657e-09,
     -1.772309246017119e-08),
    (-7.541539598585677, -5.258373909217947, -0.9422320069879784, -0.011301886830888924,
     0.0022736552794323833, -0.0004447239890152216, 8.162081805333127e-05,
     -1.3477258983050342e-05, 1.8374068057918051e-06, -1.4804854409607574e-07,
     -1.895551478151115e-08, 1.317694509514442e-08, -4.4544287063863595e-09,
     1.0070798515093411e-09),
    (-23.280794845750137, -9.408157041802156, -0.9791870693158179, -0.002671121114330897,
     0.0003716659691569534, -5.3168679947764884e-05, 7.630426506874909e-06,
     -1.0825978192149857e-06, 1.501556944866311e-07, -2.0133542944235328e-08,
     2.5735686354573242e-09, -3.0755073168677614e-10, 3.270566193809809e-11,
     -2.3957287981380145e-12),
)  # fmt: skip
# lgamma(x) / ((x - 1) (x - 2)) around 1.5, for 1 <= x <= 2 (Chebyshev fit).
_LGAMMA = (
    0.4831289505409809, -0.14595989591430608, 0.06291140107458168, -0.0313084875010217,
    0.01679709862898276, -0.009425622447061077, 0.005446457956850198, -0.003212074148968353,
    0.0019229132430031888, -0.0011644126224041502, 0.0007115650250304279, -0.0004380224528708151,
    0.0002708950296280356, -0.00016865016226225166, 0.00010771545393886628,
    -6.765020809380933e-05, 3.4988964640274815e-05, -2.2062867871136606e-05,
    2.8340547351058232e-05, -1.804276273750087e-05,
)  # fmt: skip
# Bernoulli numbers over 2k (2k - 1): Stirling's series.
_STIRLING = (
    1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400,
)  # fmt: skip

# M. J. Wichura, "Algorithm AS 241: the percentage points of the normal distribution", 1988:
# numerator and denominator near the middle, in the tails, and in the far tails.
_MIDDLE = (
    (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3,
     1.3731693765509461125e4, 4.5921953931549871457e4, 6.7265770927008700853e4,
     3.3430575583588128105e4, 2.5090809287301226727e3),
    (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
     2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4,
     5.2264952788528545610e3),
)  # fmt: skip
_TAIL = (
    (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0,
     3.64784832476320460504e0, 1.27045825245236838258e0, 2.41780725177450611770e-1,
     2.27238449892691845833e-2, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
     1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4,
     1.05075007164441684324e-9),
)  # fmt: skip
_FAR = (
    (6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0,
     2.96560571828504891230e-1, 2.65321895265761230930e-2, 1.24266094738807843860e-3,
     2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
     7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7,
     2.04426310338993978564e-15),
)  # fmt: skip


def erf(w: Vector, x: str) -> str:
    """x + x P(x^2), and 1 - erfc further out."""
    size = w.abs(x)
    z = w.mul(x, x)
    small = w.fma(w.polynomial(z, _ERF), x, x)
    large = w.copysign(w.sub(w.constant(1.0), _erfc(w, size)), x)
    out = w.select(w.compare("olt", size, w.constant(0.84375)), small, large)
    return w.select(w.compare("uno", x, x), x, out)


def _erfc(w: Vector, x: str) -> str:
    """1 - erf(x) for 0.84 <= x, as if x were at most 6."""
    x = w.select(w.compare("ogt", x, w.constant(6.0)), w.constant(6.0), x)
    first = w.compare("olt", x, w.constant(1.7))
    second = w.compare("olt", x, w.constant(3.2))
    one, two, three = (w.constant(m) for m in _ERFC_MIDDLES)
    at = w.sub(x, w.select(first, one, w.select(second, two, three)))
    choices = [(first, _ERFC[0]), (second, _ERFC[1]), (None, _ERFC[2])]
    return exp(w, w.selected_polynomial(at, choices))


def lgamma(w: Vector, x: str) -> str:
    """log |gamma(x)|: Stirling's series from 8 on, products down to [1, 2] below, reflection.

    Relative to 1 rather than to the value near the zeros between negative integers.
    """
    one, two = w.constant(1.0), w.constant(2.0)
    below = w.compare("olt", x, w.constant(0.0))
    y = w.abs(x)
    # In [1, 2] after up to seven steps down, or one up.
    low = w.compare("olt", y, one)
    product = w.select(low, y, one)
    at = w.select(low, w.add(y, one), w.select(w.compare("ogt", y, w.constant(8.0)), two, y))
    for _ in range(6):
        high = w.compare("ogt", at, two)
        at = w.select(high, w.sub(at, one), at)
        product = w.select(high, w.mul(product, at), product)
    logs = log(w, product)
    logs = w.select(low, w.neg(logs), logs)
    # y + 1 may have been rounded: its distances from 1 and 2 are taken from y.
    ends = w.mul(
        w.select(low, y, w.sub(at, one)), w.sub(w.select(low, y, at), w.select(low, one, two))
    )
    middle = w.fma(ends, w.polynomial(w.sub(at, w.constant(1.5)), _LGAMMA), logs)
    # Stirling: (y - 1/2) log y - y + log(2 pi) / 2 + ...
    big = w.select(w.compare("ogt", y, w.constant(8.0)), y, w.constant(9.0))
    inverse = w.div(one, big)
    series = w.mul(inverse, w.polynomial(w.mul(inverse, inverse), _STIRLING))
    log_big = log(w, big)
    main = w.mul(w.sub(big, w.constant(0.5)), w.sub(log_big, one))
    large = w.add(main, w.add(series, w.constant(0.5 * math.log(2 * math.pi) - 0.5)))
    out = w.select(w.compare("ogt", y, w.constant(8.0)), large, middle)
    # gamma(-y) = -pi / (y gamma(y) sin(pi y)); only the distance to the nearest integer counts.
    part = w.abs(w.sub(y, w.intrinsic("roundeven", y)))
    sine = sin(w, w.mul(part, w.constant(math.pi)))
    mirrored = w.sub(w.neg(log(w, w.div(w.mul(sine, y), w.constant(math.pi)))), out)
    mirrored = w.select(w.compare("olt", y, w.constant(1e-20)), out, mirrored)
    out = w.select(below, mirrored, out)
    pole = w.both(w.compare("ole", x, w.constant(0.0)), w.compare("oeq", part, w.constant(0.0)))
    out = w.select(pole, w.constant(math.inf), out)
    out = w.select(w.compare("oeq", y, w.constant(math.inf)), w.constant(math.inf), out)
    return w.select(w.compare("uno", x, x), x, out)


def erfinv(w: Vector, x: str) -> str:
    """The inverse error function: the normal percentage point of (1 + x) / 2 over sqrt(2)."""
    size = w.abs(x)
    q = w.mul(size, w.constant(0.5))
    middle = w.compare("ole", q, w.constant(0.425))
    p = w.sub(w.constant(0.5), q)
    r = w.intrinsic("sqrt", w.neg(log(w, p)))
    tail = w.compare("ole", r, w.constant(5.0))
    start = w.select(tail, w.constant(1.6), w.constant(5.0))
    at = w.select(middle, w.fma(w.neg(q), q, w.constant(0.180625)), w.sub(r, start))
    above, below = (
        w.selected_polynomial(at, [(middle, near), (tail, side), (None, far)])
        for near, side, far in zip(_MIDDLE, _TAIL, _FAR)
    )
    ratio = w.div(above, below)
    out = w.mul(w.select(middle, w.mul(ratio, q), ratio), w.constant(0.7071067811865476))
    # One of Newton's steps; in the tails for the complement, which is known exactly.
    slope = w.mul(exp(w, w.mul(out, out)), w.constant(0.5 * math.sqrt(math.pi)))
    near = w.sub(erf(w, out), size)
    error = w.select(middle, near, w.sub(w.add(p, p), _erfc(w, out)))
    out = w.sub(out, w.mul(error, slope))
    out = w.select(w.compare("oeq", size, w.constant(1.0)), w.constant(float("inf")), out)
    out = w.select(w.compare("ogt", size, w.constant(1.0)), w.constant(float("nan")), out)
    return w.copysign(out, x)

"""Elementary functions as vector code.

Each function is emitted once per module and vector width, inlined where it is called, and performs
the same operations in every width, so a value's result does not depend on where in a tile it
stands. Accuracy of the f32 versions, measured against 50-digit arithmetic over dense samples of
the whole range and all special values (``tests/targets/cpu/test_math.py`` repeats it):

=========  ========  ==============================================================
function   max ulp   notes
=========  ========  ==============================================================
exp        1.0       subnormal results are rounded correctly; exp(0) == 1
exp2       1.0       exact for integers
log        1.0       subnormal arguments too; log(1) == 0
log2       1.0       exact for powers of two
sin, cos   1.5       any finite argument: |x| >= 2^28 is reduced with 192 bits of 2/pi
tanh       2.5
erf        1.5
sigmoid    2.5       down to subnormal results
pow        1.0       through f64; C99's special cases
=========  ========  ==============================================================

rsqrt is a correctly rounded square root and a correctly rounded division. f16 and bf16 are
computed in f32 and rounded. f64 calls the C library's function for each lane. A machine without
fused multiply-add rounds products and sums separately; the figures grow by about one ulp there.
"""

from __future__ import annotations

from collections.abc import Callable

from tilewright.dtypes import DType, f32, f64
from tilewright.targets.cpu.lowering import special, trig
from tilewright.targets.cpu.lowering.context import Context
from tilewright.targets.cpu.lowering.emit import Emitter, reg_type, vec
from tilewright.targets.cpu.lowering.vector import Vector

__all__ = ["call"]


def call(ctx: Context, name: str, dtype: DType, width: int, *args: str) -> str:
    """``name(*args)`` on chunks of f32 or f64."""
    element = reg_type(dtype)
    symbol = f"tw.{name}.{element}.{width}"
    module = ctx.em.module
    if not module.has_helper(symbol):
        em = Emitter(module)
        params = [f"%x{i}" for i in range(len(args))]
        module.helper(symbol, "")  # reserves the name while the body is written
        if dtype is f32 and name not in _F32:
            wide = Vector(em, ctx.machine, f64, width)
            result = wide.narrowed(_f64(name, wide, *map(wide.widened, params)))
        elif dtype is f32:
            result = _F32[name](Vector(em, ctx.machine, f32, width), *params)
        else:
            result = _f64(name, Vector(em, ctx.machine, f64, width), *params)
        type = vec(element, width)
        em.do(f"ret {type} {result}")
        head = ", ".join(f"{type} {p}" for p in params)
        module.helper(
            symbol,
            f"define internal {type} @{symbol}({head}) alwaysinline {{\n{em.body()}\n}}",
        )
    type = vec(element, width)
    # Edges are rare: one copy of the function serves them all.
    attribute = "noinline" if ctx.checked else ""
    return ctx.em.call(symbol, type, [(type, a) for a in args], attribute)


# --- exponentials --------------------------------------------------------------------------------

_LOG2E = 1.4426950408889634
# ln 2 in two parts; the first has 9 significant bits, so that multiples of it are exact.
_LN2_HI = 0.693359375
_LN2_LO = -2.12194440054690581e-4
_ROUND = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer in the low bits


def _nearest(v: Vector, x: str) -> tuple[str, str]:
    """The integer nearest to ``x`` (|x| < 2^22), as a float and as an i32."""
    shifted = v.add(x, v.constant(_ROUND))
    return v.sub(shifted, v.constant(_ROUND)), v.isub(v.bits(shifted), v.icon(0x4B400000))


def _scale(v: Vector, x: str, whole: str, n: str) -> str:
    """``x * 2**n`` rounded once, for -252 <= n <= 254 given as a float and as an i32."""
    if v.machine.has_avx512 and v.width in (8, 16):
        bits = 32 * v.width
        extra = [("i32", "4")] if bits == 512 else []
        return v.em.call(
            f"llvm.x86.avx512.mask.scalef.ps.{bits}",
            v.type,
            [
                (v.type, x),
                (v.type, whole),
                (v.type, v.constant(0.0)),
                (f"i{v.width}", "-1"),
                *extra,
            ],
        )
    half = v.ashr(n, v.icon(1))
    rest = v.isub(n, half)
    first = v.unbits(v.shl(v.iadd(half, v.icon(127)), v.icon(23)))
    second = v.unbits(v.shl(v.iadd(rest, v.icon(127)), v.icon(23)))
    return v.mul(v.mul(x, first), second)


def _clamp(v: Vector, x: str, low: float, high: float) -> str:
    """``x`` limited to [low, high]; NaN stays."""
    x = v.select(v.compare("ogt", x, v.constant(high)), v.constant(high), x)
    return v.select(v.compare("olt", x, v.constant(low)), v.constant(low), x)


# Minimax (Remez) coefficients of (e^r - 1 - r) / r^2 for |r| <= ln(2)/2; relative error 3e-9.
_EXP = (0.5, 0.166665181517601, 0.04166620597243309, 0.008368889801204205, 0.001395049155689776)


def _reduce_exp(v: Vector, x: str) -> tuple[str, str, str]:
    """``n`` (as float and as i32) and ``e^r - 1`` with x = n ln 2 + r."""
    n, whole = _nearest(v, v.mul(x, v.constant(_LOG2E)))
    r = v.fma(n, v.constant(-_LN2_HI), x)
    r = v.fma(n, v.constant(-_LN2_LO), r)
    q = v.polynomial(r, _EXP)
    return n, whole, v.fma(v.mul(r, r), q, r)


def _exp(v: Vector, x: str) -> str:
    x = _clamp(v, x, -104.0, 89.0)
    whole, n, p = _reduce_exp(v, x)
    return _scale(v, v.add(p, v.constant(1.0)), whole, n)


# Minimax coefficients of (2^r - 1) / r for |r| <= 1/2; relative error 2e-9.
_EXP2 = (
    0.6931471824645996, 0.24022650718688965, 0.055503278970718384,
    0.009618003852665424, 0.001340026967227459, 0.00015476300904992968,
)  # fmt: skip


def _exp2(v: Vector, x: str) -> str:
    x = _clamp(v, x, -151.0, 129.0)
    whole, n = _nearest(v, x)
    r = v.sub(x, whole)
    p = v.fma(v.polynomial(r, _EXP2), r, v.constant(1.0))
    return _scale(v, p, whole, n)


def _sigmoid(v: Vector, x: str) -> str:
    """1 / (1 + e^-x), from e^-|x| so that nothing overflows."""
    e = _exp(v, v.neg(v.abs(x)))
    positive = v.compare("oge", x, v.constant(0.0))
    return v.div(v.select(positive, v.constant(1.0), e), v.add(e, v.constant(1.0)))


def _tanh(v: Vector, x: str) -> str:
    """(e^2|x| - 1) / (e^2|x| + 1) with the numerator computed without cancellation."""
    y = v.abs(x)
    y = v.select(v.compare("ogt", y, v.constant(10.0)), v.constant(10.0), y)
    _, n, p = _reduce_exp(v, v.add(y, y))
    power = v.unbits(v.shl(v.iadd(n, v.icon(127)), v.icon(23)))
    less_one = v.fma(power, p, v.sub(power, v.constant(1.0)))
    out = v.div(less_one, v.add(less_one, v.constant(2.0)))
    return v.copysign(out, x)


# erf: odd minimax polynomial below 0.927734375, 1 - exp(polynomial) above.
_ERF_SMALL = (
    1.28379166e-1, -3.76125336e-1, 1.12819925e-1, -2.67681349e-2, 4.99119423e-3, -5.96761703e-4,
)  # fmt: skip
_ERF_LARGE = (
    -1.28717512e-1, -6.34846687e-1, -1.06777877e-1, 2.42546219e-2, -3.88396438e-3,
    3.83197126e-4, -1.72853470e-5,
)  # fmt: skip


def _erf(v: Vector, x: str) -> str:
    size = v.abs(x)
    s = v.mul(x, x)
    small = v.fma(v.polynomial(s, _ERF_SMALL), x, x)
    t = v.select(v.compare("ogt", size, v.constant(4.0)), v.constant(4.0), size)
    exponent = v.fma(v.polynomial(t, _ERF_LARGE), t, v.neg(t))
    large = v.copysign(v.sub(v.constant(1.0), _exp(v, exponent)), x)
    return v.select(v.compare("ogt", size, v.constant(0.927734375)), large, small)


# --- logarithms ----------------------------------------------------------------------------------

# Minimax coefficients of (log(1 + f) - f + f^2/2) / f^3 for |f| <= 1/3; relative error 9e-10.
_LOG = (
    0.3333333432674408, -0.24999819695949554, 0.1999959796667099, -0.1667957901954651,
    0.14304456114768982, -0.12195776402950287, 0.10754239559173584, -0.1284506469964981,
    0.12007138133049011,
)  # fmt: skip


def _reduce_log(v: Vector, x: str) -> tuple[str, str, str]:
    """``e, f, y`` with x = 2^e (1 + f), 2/3 <= 1 + f < 4/3, log(1 + f) = f + y."""
    tiny = v.compare("olt", x, v.constant(2.0**-126))
    scaled = v.select(tiny, v.mul(x, v.constant(2.0**23)), x)
    bits = v.bits(scaled)
    e = v.ashr(v.isub(bits, v.icon(0x3F2AAAAB)), v.icon(23))
    f = v.sub(v.unbits(v.isub(bits, v.shl(e, v.icon(23)))), v.constant(1.0))
    exponent = v.add(v.to_float(e), v.select(tiny, v.constant(-23.0), v.constant(0.0)))
    s = v.mul(f, f)
    y = v.fma(s, v.constant(-0.5), v.mul(v.mul(v.polynomial(f, _LOG), f), s))
    return exponent, f, y


def _log_ends(v: Vector, x: str, out: str) -> str:
    """Zero, negative numbers, infinity and NaN."""
    out = v.select(v.compare("oeq", x, v.constant(float("inf"))), x, out)
    out = v.select(v.compare("oeq", x, v.constant(0.0)), v.constant(float("-inf")), out)
    return v.select(v.compare("oge", x, v.constant(0.0)), out, v.constant(float("nan")))


def _log(v: Vector, x: str) -> str:
    e, f, y = _reduce_log(v, x)
    # Large to small, with the error of the one sum that can lose bits.
    y = v.fma(e, v.constant(_LN2_LO), y)
    head = v.mul(e, v.constant(_LN2_HI))
    total = v.add(head, f)
    lost = v.add(v.sub(head, total), f)
    return _log_ends(v, x, v.add(total, v.add(y, lost)))


_LOG2E_HI = 1.44269502162933349609375  # rounded to f32
_LOG2E_LO = 1.925963033500e-8


def _log2(v: Vector, x: str) -> str:
    e, f, y = _reduce_log(v, x)
    scale = v.constant(_LOG2E_HI)
    high = v.mul(f, scale)
    low = v.fma(f, scale, v.neg(high)) if v.machine.has_fma else v.constant(0.0)
    low = v.fma(f, v.constant(_LOG2E_LO), low)
    low = v.fma(y, scale, low)
    total = v.add(e, high)
    # Zero exponents must not disturb `high`: e - total is exact in both cases.
    lost = v.add(v.sub(e, total), high)
    return _log_ends(v, x, v.add(total, v.add(low, lost)))


# --- powers --------------------------------------------------------------------------------------


def _pow(v: Vector, x: str, y: str) -> str:
    """x**y as exp2(y log2 |x|) in f64, with C99's special cases."""
    w = v.like(f64)
    a, b = w.widened(v.abs(x)), w.widened(y)
    one, zero = w.constant(1.0), w.constant(0.0)
    product = w.mul(b, _log2_f64(w, a))
    product = w.select(w.compare("oeq", a, one), zero, product)
    product = _clamp(w, product, -1000.0, 1000.0)
    out = w.narrowed(_exp2_f64(w, product))
    whole = v.compare("oeq", v.intrinsic("trunc", y), y)
    halved = v.mul(y, v.constant(0.5))
    even = v.compare("oeq", v.intrinsic("trunc", halved), halved)
    odd = v.both(whole, v.invert(even))
    negative = v.negative(x)
    out = v.select(v.both(odd, negative), v.neg(out), out)
    # A negative, finite, nonzero base wants a whole exponent (infinities count as whole).
    below = v.compare("olt", x, v.constant(0.0))
    finite = v.compare("ogt", x, v.constant(float("-inf")))
    bad = v.both(v.both(below, finite), v.invert(whole))
    out = v.select(bad, v.constant(float("nan")), out)
    nan = v.compare("uno", x, y)
    out = v.select(nan, v.constant(float("nan")), out)
    out = v.select(v.compare("oeq", x, v.constant(1.0)), v.constant(1.0), out)
    return v.select(v.compare("oeq", y, v.constant(0.0)), v.constant(1.0), out)


def _log2_f64(w: Vector, x: str) -> str:
    """log2 of a positive f32 value held in f64; relative error about 1e-12."""
    bits = w.bits(x)
    e = w.ashr(w.isub(bits, w.icon(0x3FE6A09E667F3BCD)), w.icon(52))
    m = w.unbits(w.isub(bits, w.shl(e, w.icon(52))))
    one = w.constant(1.0)
    s = w.div(w.sub(m, one), w.add(m, one))
    z = w.mul(s, s)
    series = w.polynomial(z, tuple(2 * _LOG2E / (2 * k + 1) for k in range(8)))
    out = w.fma(series, s, w.exponent_to_float(e))
    out = w.select(w.compare("oeq", x, w.constant(0.0)), w.constant(float("-inf")), out)
    return w.select(w.compare("oeq", x, w.constant(float("inf"))), x, out)


def _exp2_f64(w: Vector, x: str) -> str:
    """2**x for |x| <= 1000; relative error about 1e-12."""
    shift = w.constant(6755399441055744.0)  # 1.5 * 2^52
    shifted = w.add(x, shift)
    r = w.sub(x, w.sub(shifted, shift))
    coefficients: list[float] = []
    term = 1.0
    for k in range(11):
        coefficients.append(term)
        term *= 0.6931471805599453 / (k + 1)
    p = w.polynomial(r, tuple(coefficients))
    n = w.isub(w.bits(shifted), w.icon(0x4338000000000000))
    return w.mul(p, w.unbits(w.shl(w.iadd(n, w.icon(1023)), w.icon(52))))


# --- f64 -----------------------------------------------------------------------------------------


def _f64(name: str, w: Vector, *args: str) -> str:
    if name == "sigmoid":
        return _sigmoid_f64(w, *args)
    if name == "erfinv":
        return special.erfinv(w, args[0], lambda v, x: _c_library(v.em, "log", v.width, x))
    return _c_library(w.em, name, w.width, *args)


def _c_library(em: Emitter, name: str, width: int, *args: str) -> str:
    lanes: list[str] = []
    for lane in range(width):
        values = [("double", em.extract("double", a, width, lane)) for a in args]
        lanes.append(em.call(name, "double", values))
    return em.pack("double", lanes)


def _sigmoid_f64(w: Vector, x: str) -> str:
    e = _c_library(w.em, "exp", w.width, w.neg(w.abs(x)))
    positive = w.compare("oge", x, w.constant(0.0))
    return w.div(w.select(positive, w.constant(1.0), e), w.add(e, w.constant(1.0)))


_F32: dict[str, Callable[..., str]] = {
    "exp": _exp,
    "exp2": _exp2,
    "log": _log,
    "log2": _log2,
    "sin": trig.sin,
    "cos": trig.cos,
    "tanh": _tanh,
    "erf": _erf,
    "sigmoid": _sigmoid,
    "pow": _pow,
}

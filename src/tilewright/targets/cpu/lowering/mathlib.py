"""Elementary functions as vector code.

The f32 versions of the common ones are emitted once per module and vector width, most of them to be
inlined where they are called. All others, and every f64 function, are one function per module for
vectors of the machine's size, which chunks of any width call piece by piece; f32 goes there and
back exactly. Either way the same operations happen in every lane, so a value's result does not
depend on where in a tile it stands. No C library is called.

Largest errors in units of the last place, measured against 80-bit and multiple-precision
arithmetic over the whole range (``tests/targets/cpu/test_math*.py`` repeat it):

============  =====  =====  =====================================================================
function      f32    f64    notes
============  =====  =====  =====================================================================
exp           1.0    0.85   subnormal results are rounded correctly; exp(0) == 1
exp2          1.0    0.9    exact for integers
expm1         1.5    1.0
log           1.0    0.8    subnormal arguments too; log(1) == 0
log2          1.0    0.7    exact for powers of two
log10         0.51   0.6
log1p         0.51   0.8
sin, cos      1.5    0.75   any finite argument
tan           0.51   0.9
asin, acos    0.51   0.8
atan          0.51   1.5
atan2         0.51   1.5    C99's special cases
sinh, cosh    0.51   1.8
tanh          2.5    2.0
asinh, acosh  0.51   1.6
atanh         0.51   0.85
erf           1.5    0.9
erfinv        0.51   2.5
lgamma        0.51   3      f64: of max(1, |result|) for negative arguments
sigmoid       2.5    2.0    down to subnormal results
pow           1.0    0.65   C99's special cases
hypot         0.51   0.51
fmod          0      0      exact
============  =====  =====  =====================================================================

sqrt is correctly rounded, rsqrt a correctly rounded root and quotient. f16 and bf16 are computed in
f32 and rounded. A machine without fused multiply-add rounds products and sums separately; the
figures of the inlined f32 functions grow by about one there, those of the others by 0.3.
"""

from __future__ import annotations

from collections.abc import Callable

from tilewright.dtypes import DType, f32, f64
from tilewright.targets.cpu.lowering import (
    exponential,
    inverse,
    logarithm,
    power,
    special,
    trig,
    trig_wide,
)
from tilewright.targets.cpu.lowering.context import Context
from tilewright.targets.cpu.lowering.emit import Emitter, reg_type, vec
from tilewright.targets.cpu.lowering.vector import Vector

__all__ = ["call"]


def call(ctx: Context, name: str, dtype: DType, width: int, *args: str) -> str:
    """``name(*args)`` on chunks of f32 or f64."""
    if dtype is not f32 or name not in _F32:
        return _call_wide(ctx, name, dtype, width, *args)
    element = reg_type(dtype)
    symbol = f"tw.{name}.{element}.{width}"
    module = ctx.em.module
    type = vec(element, width)
    if not module.has_helper(symbol):
        em = Emitter(module)
        params = [f"%x{i}" for i in range(len(args))]
        module.helper(symbol, "")  # reserves the name while the body is written
        result = _F32[name](Vector(em, ctx.machine, f32, width), *params)
        em.do(f"ret {type} {result}")
        head = ", ".join(f"{type} {p}" for p in params)
        module.helper(
            symbol,
            f"define internal {type} @{symbol}({head}) alwaysinline {{\n{em.body()}\n}}",
        )
    # Edges are rare, and beside a long function a call is nothing: one copy serves them all.
    attribute = "noinline" if ctx.checked or name in _LONG else ""
    return ctx.em.call(symbol, type, [(type, a) for a in args], attribute)


def _call_wide(ctx: Context, name: str, dtype: DType, width: int, *args: str) -> str:
    """In f64, by one function for vectors of the machine's size, however wide the chunk is."""
    em = ctx.em
    w = Vector(em, ctx.machine, f64, width)
    if dtype is f32:
        args = tuple(w.widened(a) for a in args)
    full = max(ctx.machine.lanes // 2, 1)
    symbol = _wide_function(ctx, name, full, len(args))
    type = vec("double", full)
    pieces: list[str] = []
    for start in range(0, width, full):
        cut = [_piece(em, a, width, start, full) for a in args]
        pieces.append(em.call(symbol, type, [(type, c) for c in cut]))
    out = _joined(em, pieces, full, width)
    return w.narrowed(out) if dtype is f32 else out


def _wide_function(ctx: Context, name: str, width: int, operands: int) -> str:
    symbol = f"tw.{name}.double.{width}"
    module = ctx.em.module
    if not module.has_helper(symbol):
        module.helper(symbol, "")  # reserves the name while the body is written
        em = Emitter(module)
        params = [f"%x{i}" for i in range(operands)]
        result = _F64[name](Vector(em, ctx.machine, f64, width), *params)
        type = vec("double", width)
        head = ", ".join(f"{type} {p}" for p in params)
        module.helper(
            symbol,
            f"define internal {type} @{symbol}({head}) noinline {{\n"
            f"{em.body()}\n  ret {type} {result}\n}}",
        )
    return symbol


def _piece(em: Emitter, vector: str, width: int, start: int, full: int) -> str:
    """Lanes ``start`` to ``start + full``; beyond the end the first lane again, a value that is as
    good as any."""
    if width == full:
        return vector
    if width == 1:
        return em.splat("double", vector, full)
    lanes = [lane if lane < width else 0 for lane in range(start, start + full)]
    if full == 1:
        return em.extract("double", vector, width, start)
    return em.shuffle("double", width, vector, "poison", lanes)


def _joined(em: Emitter, pieces: list[str], full: int, width: int) -> str:
    """The first ``width`` lanes of ``pieces`` side by side."""
    if full == 1:
        return em.pack("double", pieces[:width])
    if width == 1:
        return em.extract("double", pieces[0], full, 0)
    while len(pieces) > 1:
        if len(pieces) % 2:
            pieces.append("poison")
        lanes = list(range(2 * full))
        pairs = zip(pieces[::2], pieces[1::2])
        pieces = [em.shuffle("double", full, a, b, lanes) for a, b in pairs]
        full *= 2
    if full == width:
        return pieces[0]
    return em.shuffle("double", full, pieces[0], "poison", list(range(width)))


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


def _expm1(v: Vector, x: str) -> str:
    """2^n ((1 - 2^-n) + (e^r - 1)); the first bracket is exact, or rounds where it is all."""
    whole, n, p = _reduce_exp(v, _clamp(v, x, -20.0, 89.0))
    many = v.em.op(f"icmp sgt {v.itype} {n}, {v.icon(30)}")
    down = v.isub(v.icon(127), v.iselect(many, v.icon(30), n))
    start = v.sub(v.constant(1.0), v.unbits(v.shl(down, v.icon(23))))
    out = _scale(v, v.add(start, p), whole, n)
    return v.select(v.compare("oeq", x, v.constant(0.0)), x, out)


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


def _log_tail(v: Vector, f: str) -> str:
    """log(1 + f) - f for |f| <= 1/3."""
    s = v.mul(f, f)
    return v.fma(s, v.constant(-0.5), v.mul(v.mul(v.polynomial(f, _LOG), f), s))


def _log_split(v: Vector, x: str) -> tuple[str, str]:
    """``e`` (an i32) and ``f`` with x = 2^e (1 + f), 2/3 <= 1 + f < 4/3, for normal numbers."""
    bits = v.bits(x)
    e = v.ashr(v.isub(bits, v.icon(0x3F2AAAAB)), v.icon(23))
    return e, v.sub(v.unbits(v.isub(bits, v.shl(e, v.icon(23)))), v.constant(1.0))


def _reduce_log(v: Vector, x: str) -> tuple[str, str, str]:
    """``e, f, y`` with x = 2^e (1 + f), 2/3 <= 1 + f < 4/3, log(1 + f) = f + y."""
    tiny = v.compare("olt", x, v.constant(2.0**-126))
    e, f = _log_split(v, v.select(tiny, v.mul(x, v.constant(2.0**23)), x))
    exponent = v.add(v.to_float(e), v.select(tiny, v.constant(-23.0), v.constant(0.0)))
    return exponent, f, _log_tail(v, f)


def _log_sum(v: Vector, e: str, f: str, y: str) -> str:
    """e ln 2 + f + y, large to small, with the error of the one sum that can lose bits."""
    y = v.fma(e, v.constant(_LN2_LO), y)
    head = v.mul(e, v.constant(_LN2_HI))
    total = v.add(head, f)
    return v.add(total, v.add(y, v.add(v.sub(head, total), f)))


def _log_ends(v: Vector, x: str, out: str) -> str:
    """Zero, negative numbers, infinity and NaN."""
    out = v.select(v.compare("oeq", x, v.constant(float("inf"))), x, out)
    out = v.select(v.compare("oeq", x, v.constant(0.0)), v.constant(float("-inf")), out)
    return v.select(v.compare("oge", x, v.constant(0.0)), out, v.constant(float("nan")))


def _log(v: Vector, x: str) -> str:
    return _log_ends(v, x, _log_sum(v, *_reduce_log(v, x)))


def _log1p(v: Vector, x: str) -> str:
    """The logarithm of u = 1 + x, corrected by what that sum lost; of x itself near 0."""
    one = v.constant(1.0)
    u = v.add(x, one)
    lost = v.select(v.compare("oge", x, one), v.sub(one, v.sub(u, x)), v.sub(x, v.sub(u, one)))
    n, f = _log_split(v, u)
    e = v.to_float(n)
    near = v.compare("oeq", e, v.constant(0.0))
    f = v.select(near, x, f)
    correction = v.select(near, v.constant(0.0), v.div(lost, u))
    out = _log_sum(v, e, f, v.add(_log_tail(v, f), correction))
    return v.select(v.compare("oeq", x, v.constant(0.0)), x, _log_ends(v, u, out))


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


_LONG = frozenset(["sin", "cos", "pow"])
_F32: dict[str, Callable[..., str]] = {
    "exp": _exp,
    "exp2": _exp2,
    "expm1": _expm1,
    "log": _log,
    "log1p": _log1p,
    "log2": _log2,
    "sin": trig.sin,
    "cos": trig.cos,
    "tanh": _tanh,
    "erf": _erf,
    "sigmoid": _sigmoid,
    "pow": _pow,
}

_F64: dict[str, Callable[..., str]] = {
    "acos": inverse.acos,
    "acosh": logarithm.acosh,
    "asin": inverse.asin,
    "asinh": logarithm.asinh,
    "atan": inverse.atan,
    "atan2": inverse.atan2,
    "atanh": logarithm.atanh,
    "cos": trig_wide.cos,
    "cosh": exponential.cosh,
    "erf": special.erf,
    "erfinv": special.erfinv,
    "exp": exponential.exp,
    "exp2": exponential.exp2,
    "expm1": exponential.expm1,
    "fmod": power.fmod,
    "hypot": power.hypot,
    "lgamma": special.lgamma,
    "log": logarithm.log,
    "log1p": logarithm.log1p,
    "log2": logarithm.log2,
    "log10": logarithm.log10,
    "pow": power.pow,
    "sigmoid": exponential.sigmoid,
    "sin": trig_wide.sin,
    "sinh": exponential.sinh,
    "tan": trig_wide.tan,
    "tanh": exponential.tanh,
}

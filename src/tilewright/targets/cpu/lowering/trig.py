"""Sine and cosine of f32.

The argument is reduced to r = x - n pi/2 with |r| <= pi/4. Up to 2^28 that happens in f64 with pi/2
in three parts of 33, 33 and 53 bits (products with n are exact). Beyond, a branch that is not taken
otherwise multiplies the mantissa by those 96 bits of 2/pi that the exponent selects (M. Payne and
R. Hanek, "Radian reduction for trigonometric functions", 1983).
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.dtypes import f64
from tilewright.targets.cpu.lowering.emit import Emitter
from tilewright.targets.cpu.lowering.vector import Vector

__all__ = ["cos", "sin"]

# pi/2 = A + B + C; A and B have 33 and 33 significant bits (as in fdlibm).
_PIO2 = (1.57079632673412561417, 6.07710050630396597660e-11, 2.02226624879595063154e-21)
_LIMIT = 2.0**28
_EXACT = 2.0**20  # without fused multiply-add: the bits of n that keep n * A exact

# Minimax coefficients of (sin r - r) / r^3 and (cos r - 1 + r^2/2) / r^4 in r^2 for |r| <= pi/4.
_SIN = (-0.1666666716337204, 0.008333329111337662, -0.0001983933470910415, 2.718307996474323e-06)
_COS = (0.0416666679084301, -0.0013888883404433727, 2.4799519451335073e-05, -2.7210202802052663e-07)


def sin(v: Vector, x: str) -> str:
    return _wave(v, x, 0)


def cos(v: Vector, x: str) -> str:
    return _wave(v, x, 1)


def _wave(v: Vector, x: str, quarter: int) -> str:
    """sin(x + quarter * pi/2)."""
    r, n = _reduce(v, x)
    n = v.iadd(n, v.icon(quarter)) if quarter else n
    s = v.mul(r, r)
    sine = v.fma(v.mul(v.polynomial(s, _SIN), s), r, r)
    tail = v.mul(v.mul(s, s), v.polynomial(s, _COS))
    half = v.mul(s, v.constant(0.5))
    top = v.sub(v.constant(1.0), half)
    lost = v.sub(v.sub(v.constant(1.0), top), half)
    cosine = v.add(top, v.add(tail, lost))
    em = v.em
    odd = em.op(f"trunc {v.itype} {n} to {v.flag}")
    out = v.select(odd, cosine, sine)
    sign = v.shl(em.op(f"and {v.itype} {n}, {v.icon(2)}"), v.icon(30))
    out = v.unbits(em.op(f"xor {v.itype} {v.bits(out)}, {sign}"))
    if quarter == 0:
        # sin(-0) is -0: the reduction would lose the sign.
        return v.select(v.compare("oeq", x, v.constant(0.0)), x, out)
    return out


def _reduce(v: Vector, x: str) -> tuple[str, str]:
    """``r`` (f32) and ``n`` modulo 4 (i32)."""
    em = v.em
    w = v.like(f64)
    wide = w.widened(x)
    shift = w.constant(6755399441055744.0)
    shifted = w.add(w.mul(wide, w.constant(0.6366197723675814)), shift)
    whole = w.sub(shifted, shift)
    r = wide
    for part in _PIO2:
        r = w.fma(whole, w.constant(-part), r)
    n = em.op(f"trunc {w.itype} {w.bits(shifted)} to {v.itype}")
    near = w.narrowed(r)
    limit = _LIMIT if v.machine.has_fma else _EXACT
    far = v.compare("oge", v.abs(x), v.constant(limit))
    any_far = far
    if v.width > 1:
        any_far = em.call(f"llvm.vector.reduce.or.v{v.width}i1", "i1", [(v.flag, far)])
    slow, done = em.label("far"), em.label("reduced")
    before = em.block
    em.branch(any_far, slow, done)
    em.start(slow)
    pair = f"{{ {v.type}, {v.itype} }}"
    arguments = f"{v.type} {x}, {v.flag} {far}, {v.type} {near}, {v.itype} {n}"
    fixed = em.op(f"call {pair} @{_far_function(v)}({arguments})")
    rs = em.op(f"extractvalue {pair} {fixed}, 0")
    ns = em.op(f"extractvalue {pair} {fixed}, 1")
    em.jump(done)
    em.start(done)
    out_r, line_r = em.phi(v.type, near, before)
    out_n, line_n = em.phi(v.itype, n, before)
    em.add_incoming(line_r, rs, slow)
    em.add_incoming(line_n, ns, slow)
    return out_r, out_n


def _far_function(v: Vector) -> str:
    """A function that replaces ``r`` and ``n`` in the lanes whose argument is large."""
    _payne_hanek(v)
    name = f"tw.far.{v.width}"
    if not v.em.module.has_helper(name):
        inner = replace(v, em=Emitter(v.em.module))
        rs, ns = "%r", "%n"
        for lane in range(v.width):
            rs, ns = _far_lane(inner, "%x", "%far", rs, ns, lane)
        pair = f"{{ {v.type}, {v.itype} }}"
        half = inner.em.op(f"insertvalue {pair} poison, {v.type} {rs}, 0")
        both = inner.em.op(f"insertvalue {pair} {half}, {v.itype} {ns}, 1")
        head = f"{v.type} %x, {v.flag} %far, {v.type} %r, {v.itype} %n"
        v.em.module.helper(
            name,
            f"define internal {pair} @{name}({head}) noinline {{\n"
            f"{inner.em.body()}\n  ret {pair} {both}\n}}",
        )
    return name


def _far_lane(v: Vector, x: str, far: str, rs: str, ns: str, lane: int) -> tuple[str, str]:
    em = v.em
    value = _lane(v, v.type, x, lane)
    pair = em.op(f"call {{ float, i32 }} @tw.reduce(float {value})")
    r = em.op(f"extractvalue {{ float, i32 }} {pair}, 0")
    n = em.op(f"extractvalue {{ float, i32 }} {pair}, 1")
    use = _lane(v, v.flag, far, lane)
    r = em.op(f"select i1 {use}, float {r}, float {_lane(v, v.type, rs, lane)}")
    n = em.op(f"select i1 {use}, i32 {n}, i32 {_lane(v, v.itype, ns, lane)}")
    if v.width == 1:
        return r, n
    rs = em.op(f"insertelement {v.type} {rs}, float {r}, i64 {lane}")
    ns = em.op(f"insertelement {v.itype} {ns}, i32 {n}, i64 {lane}")
    return rs, ns


def _lane(v: Vector, type: str, value: str, lane: int) -> str:
    return value if v.width == 1 else v.em.op(f"extractelement {type} {value}, i64 {lane}")


def _payne_hanek(v: Vector) -> None:
    """Define the scalar reduction of one large argument."""
    module = v.em.module
    if module.has_helper("tw.reduce"):
        return
    words = [0, 0x28BE60DB, 0x9391054A, 0x7F09D5F4, 0x7D4D3770, 0x36D8A566, 0x4F10E410, 0]
    table = module.constant(
        "tw.two_over_pi", "[8 x i32]", "[" + ", ".join(f"i32 {w}" for w in words) + "]"
    )
    # x = 0.m * 2^e; three words from bit e of 2/pi on; the product's integer part is n.
    module.helper(
        "tw.reduce",
        f"""define internal {{ float, i32 }} @tw.reduce(float %x) noinline {{
entry:
  %bits = bitcast float %x to i32
  %size = and i32 %bits, 2147483647
  %finite = icmp ult i32 %size, 2139095040
  br i1 %finite, label %number, label %nan
nan:
  %bad0 = insertvalue {{ float, i32 }} poison, float 0x7FF8000000000000, 0
  %bad = insertvalue {{ float, i32 }} %bad0, i32 0, 1
  ret {{ float, i32 }} %bad
number:
  %fraction = shl i32 %bits, 8
  %m = or i32 %fraction, -2147483648
  %biased = lshr i32 %size, 23
  %e0 = sub i32 %biased, 126
  %e1 = call i32 @llvm.smax.i32(i32 %e0, i32 0)
  %word = lshr i32 %e1, 5
  %shift = and i32 %e1, 31
  %at = zext i32 %word to i64
  %p0 = getelementptr i32, ptr {table}, i64 %at
  %p1 = getelementptr i32, ptr %p0, i64 1
  %p2 = getelementptr i32, ptr %p0, i64 2
  %p3 = getelementptr i32, ptr %p0, i64 3
  %w0 = load i32, ptr %p0
  %w1 = load i32, ptr %p1
  %w2 = load i32, ptr %p2
  %w3 = load i32, ptr %p3
  %high = call i32 @llvm.fshl.i32(i32 %w0, i32 %w1, i32 %shift)
  %mid = call i32 @llvm.fshl.i32(i32 %w1, i32 %w2, i32 %shift)
  %low = call i32 @llvm.fshl.i32(i32 %w2, i32 %w3, i32 %shift)
  %m64 = zext i32 %m to i64
  %high64 = zext i32 %high to i64
  %mid64 = zext i32 %mid to i64
  %low64 = zext i32 %low to i64
  %a = mul i64 %m64, %low64
  %b = lshr i64 %a, 32
  %c = mul i64 %m64, %mid64
  %d = add i64 %b, %c
  %f = mul i64 %m64, %high64
  %g = shl i64 %f, 32
  %p = add i64 %d, %g
  %q = lshr i64 %p, 62
  %rest = and i64 %p, 4611686018427387903
  %upper = icmp uge i64 %rest, 2305843009213693952
  %lower = sub i64 %rest, 4611686018427387904
  %signed = select i1 %upper, i64 %lower, i64 %rest
  %up = zext i1 %upper to i64
  %n64 = add i64 %q, %up
  %n = trunc i64 %n64 to i32
  %exact = sitofp i64 %signed to double
  %r64 = fmul double %exact, 0x3C1921FB54442D18
  %r = fptrunc double %r64 to float
  %negative = icmp slt i32 %bits, 0
  %rn = fneg float %r
  %nn = sub i32 0, %n
  %rs = select i1 %negative, float %rn, float %r
  %ns = select i1 %negative, i32 %nn, i32 %n
  %out0 = insertvalue {{ float, i32 }} poison, float %rs, 0
  %out = insertvalue {{ float, i32 }} %out0, i32 %ns, 1
  ret {{ float, i32 }} %out
}}""",
    )
    module.declare("llvm.smax.i32", "i32", ["i32", "i32"])
    module.declare("llvm.fshl.i32", "i32", ["i32", "i32", "i32"])

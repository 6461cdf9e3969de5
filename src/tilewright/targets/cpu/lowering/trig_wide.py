"""Sine, cosine and tangent of f64.

The argument is reduced to r = x - n pi/2, |r| <= pi/4, in two parts. Up to 2^20 that takes pi/2 in
three parts of 33 bits and one of 53 (products with n are exact; Cody and Waite). Beyond, a branch
that is not taken otherwise multiplies the mantissa by those 192 bits of 1 / (2 pi) that the
exponent selects (Payne and Hanek, 1983). The polynomials are fdlibm's (k_sin.c, k_cos.c).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tilewright.targets.cpu.lowering.emit import Emitter
from tilewright.targets.cpu.lowering.vector import Vector

__all__ = ["cos", "sin", "tan"]

_PIO2 = (
    1.57079632673412561417, 6.07710050630396597660e-11, 2.02226624871116645580e-21,
    8.4784276603689e-32,
)  # fmt: skip
_LIMIT = 2.0**20
_SIN = (
    -1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04,
    2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10,
)  # fmt: skip
_COS = (
    4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05,
    -2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11,
)  # fmt: skip
# 1 / (2 pi), 1216 bits behind the point.
_OVER_TWO_PI: Final = (
    "28be60db9391054a7f09d5f47d4d377036d8a5664f10e4107f9458eaf7aef1586dc91b8e909374b8"
    "01924bba827464873f877ac72c4a69cfba208d7d4baed1213a671c09ad17df904e64758e60d4ce7d"
    "272117e2ef7e4a0ec7fe25fff7816603fbcbc462d6829b47db4d9fb3c9f2c26dd3d18fd9a797fa8b"
    "5d49eeb1faf97c5ecf41ce7de294a4ba9afed7ec47e357421580cc11bf1edaea"
)


def sin(w: Vector, x: str) -> str:
    sine, cosine, n = _both(w, x)
    out = _signed(w, w.select(_odd(w, n), cosine, sine), n)
    return w.select(w.compare("oeq", x, w.constant(0.0)), x, out)


def cos(w: Vector, x: str) -> str:
    sine, cosine, n = _both(w, x)
    n = w.iadd(n, w.icon(1))
    return _signed(w, w.select(_odd(w, n), cosine, sine), n)


def tan(w: Vector, x: str) -> str:
    """sin / cos or -cos / sin, each in two parts, the quotient corrected once."""
    r, low, n = _reduce(w, x)
    sine, sine_low = w.ordered_sum(r, _sine_tail(w, r, low))
    top, tail = _cosine_parts(w, r, low)
    cosine, cosine_low = w.ordered_sum(top, tail)
    odd = _odd(w, n)
    above, above_low = w.select(odd, cosine, sine), w.select(odd, cosine_low, sine_low)
    below, below_low = w.select(odd, sine, cosine), w.select(odd, sine_low, cosine_low)
    ratio = w.div(above, below)
    rest = w.sub(w.remainder_of(above, ratio, below), w.mul(ratio, below_low))
    out = w.add(ratio, w.div(w.add(rest, above_low), below))
    out = w.select(odd, w.neg(out), out)
    return w.select(w.compare("oeq", x, w.constant(0.0)), x, out)


def _odd(w: Vector, n: str) -> str:
    return w.em.op(f"trunc {w.itype} {n} to {w.flag}")


def _signed(w: Vector, value: str, n: str) -> str:
    """``value``, negated where the second bit of ``n`` is set."""
    sign = w.shl(w.iand(n, w.icon(2)), w.icon(62))
    return w.unbits(w.em.op(f"xor {w.itype} {w.bits(value)}, {sign}"))


def _both(w: Vector, x: str) -> tuple[str, str, str]:
    r, low, n = _reduce(w, x)
    top, tail = _cosine_parts(w, r, low)
    return w.add(r, _sine_tail(w, r, low)), w.add(top, tail), n


def _sine_tail(w: Vector, r: str, low: str) -> str:
    """sin(r + low) - r."""
    z = w.mul(r, r)
    v = w.mul(z, r)
    p = w.polynomial(z, _SIN[1:])
    inner = w.sub(w.mul(low, w.constant(0.5)), w.mul(v, p))
    return w.sub(w.mul(v, w.constant(_SIN[0])), w.sub(w.mul(z, inner), low))


def _cosine_parts(w: Vector, r: str, low: str) -> tuple[str, str]:
    """cos(r + low) as a large and a small part."""
    one = w.constant(1.0)
    z = w.mul(r, r)
    half = w.mul(z, w.constant(0.5))
    top = w.sub(one, half)
    lost = w.sub(w.sub(one, top), half)
    p = w.mul(z, w.polynomial(z, _COS))
    return top, w.add(lost, w.sub(w.mul(z, p), w.mul(r, low)))


def _reduce(w: Vector, x: str) -> tuple[str, str, str]:
    """``r``, its small part and ``n`` modulo 4 (i64)."""
    em = w.em
    far = w.em.op(f"fcmp uge {w.type} {w.abs(x)}, {w.constant(_LIMIT)}")
    near = w.select(far, w.constant(0.0), x)
    shift = w.constant(6755399441055744.0)
    shifted = w.add(w.mul(near, w.constant(0.6366197723675814)), shift)
    whole = w.sub(shifted, shift)
    n = w.bits(shifted)
    r = w.sub(near, w.mul(whole, w.constant(_PIO2[0])))
    r, first = w.two_sum(r, w.neg(w.mul(whole, w.constant(_PIO2[1]))))
    r, second = w.two_sum(r, w.neg(w.mul(whole, w.constant(_PIO2[2]))))
    low = w.add(w.add(first, second), w.mul(whole, w.constant(-_PIO2[3])))
    r, low = w.ordered_sum(r, low)
    slow, done = em.label("far"), em.label("reduced")
    before = em.block
    em.branch(w.any(far), slow, done)
    em.start(slow)
    triple = f"{{ {w.type}, {w.type}, {w.itype} }}"
    arguments = f"{w.type} {x}, {w.flag} {far}, {w.type} {r}, {w.type} {low}, {w.itype} {n}"
    fixed = em.op(f"call {triple} @{_far_function(w)}({arguments})")
    parts = [em.op(f"extractvalue {triple} {fixed}, {i}") for i in range(3)]
    em.jump(done)
    em.start(done)
    merged: list[str] = []
    for kind, old, new in zip((w.type, w.type, w.itype), (r, low, n), parts):
        name, line = em.phi(kind, old, before)
        em.add_incoming(line, new, slow)
        merged.append(name)
    return merged[0], merged[1], merged[2]


def _far_function(w: Vector) -> str:
    """A function that replaces all three in the lanes whose argument is large."""
    name = f"tw.far.wide.{w.width}"
    module = w.em.module
    if not module.has_helper(name):
        module.helper(name, "")  # reserves the name
        scalar = _far_scalar(w)
        em = Emitter(module)
        state = ["%r", "%low", "%n"]
        kinds = (w.type, w.type, w.itype)
        triple = f"{{ {w.type}, {w.type}, {w.itype} }}"
        single = "{ double, double, i64 }"
        for lane in range(w.width):
            value = em.extract("double", "%x", w.width, lane)
            use = em.extract("i1", "%far", w.width, lane)
            got = em.op(f"call {single} @{scalar}(double {value})")
            for i, (kind, element) in enumerate(zip(kinds, ("double", "double", "i64"))):
                new = em.op(f"extractvalue {single} {got}, {i}")
                old = em.extract(element, state[i], w.width, lane)
                chosen = em.op(f"select i1 {use}, {element} {new}, {element} {old}")
                if w.width == 1:
                    state[i] = chosen
                else:
                    state[i] = em.op(
                        f"insertelement {kind} {state[i]}, {element} {chosen}, i64 {lane}"
                    )
        out = "poison"
        for i, kind in enumerate(kinds):
            out = em.op(f"insertvalue {triple} {out}, {kind} {state[i]}, {i}")
        head = f"{w.type} %x, {w.flag} %far, {w.type} %r, {w.type} %low, {w.itype} %n"
        module.helper(
            name,
            f"define internal {triple} @{name}({head}) noinline {{\n"
            f"{em.body()}\n  ret {triple} {out}\n}}",
        )
    return name


def _far_scalar(w: Vector) -> str:
    """The reduction of one large argument; NaN for infinities and NaN."""
    name = "tw.reduce.wide"
    module = w.em.module
    if module.has_helper(name):
        return name
    words = ["0", *(str(int(_OVER_TWO_PI[i : i + 16], 16)) for i in range(0, 304, 16))]
    signed = [str(int(n) - (1 << 64)) if int(n) >> 63 else n for n in words]
    kind = f"[{len(words)} x i64]"
    values = "[" + ", ".join(f"i64 {n}" for n in signed) + "]"
    table = module.constant("tw.over_two_pi", kind, values)
    v = replace(w, em=Emitter(module), width=1)
    em = v.em
    # x = 0.m 2^e; three words of 1 / (2 pi) from bit e on; the product's first two bits are n.
    bits = em.op("bitcast double %x to i64")
    size = em.op(f"and i64 {bits}, 9223372036854775807")
    finite = em.op(f"icmp ult i64 {size}, 9218868437227405312")
    m = em.op(f"or i64 {em.op(f'shl i64 {bits}, 11')}, -9223372036854775808")
    biased = em.op(f"lshr i64 {size}, 52")
    e = em.op(f"sub i64 {em.op(f'select i1 {finite}, i64 {biased}, i64 1022')}, 1022")
    e = em.call("llvm.smax.i64", "i64", [("i64", e), ("i64", "0")])
    at = em.op(f"lshr i64 {e}, 6")
    shift = em.op(f"and i64 {e}, 63")
    pointer = em.op(f"getelementptr i64, ptr {table}, i64 {at}")
    loaded: list[str] = []
    for i in range(4):
        place = em.op(f"getelementptr i64, ptr {pointer}, i64 {i}")
        loaded.append(em.op(f"load i64, ptr {place}, align 8"))
    product = "0"
    for i, distance in enumerate((64, 0, -64)):
        args = [("i64", loaded[i]), ("i64", loaded[i + 1]), ("i64", shift)]
        word = em.call("llvm.fshl.i64", "i64", args)
        wide = em.op(
            f"mul i128 {em.op(f'zext i64 {m} to i128')}, {em.op(f'zext i64 {word} to i128')}"
        )
        if distance > 0:
            wide = em.op(f"shl i128 {wide}, 64")
        elif distance < 0:
            wide = em.op(f"lshr i128 {wide}, 64")
        product = wide if product == "0" else em.op(f"add i128 {product}, {wide}")
    quarter = 1 << 126
    n = em.op(f"trunc i128 {em.op(f'lshr i128 {product}, 126')} to i64")
    rest = em.op(f"and i128 {product}, {quarter - 1}")
    upper = em.op(f"icmp uge i128 {rest}, {quarter >> 1}")
    n = em.op(f"add i64 {n}, {em.op(f'zext i1 {upper} to i64')}")
    other = em.op(f"sub i128 {quarter}, {rest}")
    part = em.op(f"select i1 {upper}, i128 {other}, i128 {rest}")
    # The fraction of a quarter turn as two floats: 53 bits each, behind its leading zeros.
    part = em.op(f"or i128 {part}, 1")
    zeros = em.call("llvm.ctlz.i128", "i128", [("i128", part), ("i1", "false")])
    part = em.op(f"shl i128 {part}, {zeros}")
    high = em.op(f"trunc i128 {em.op(f'lshr i128 {part}, 75')} to i64")
    low = em.op(f"trunc i128 {em.op(f'lshr i128 {part}, 22')} to i64")
    low = em.op(f"and i64 {low}, {(1 << 53) - 1}")
    exponent = em.op(f"sub i64 {1023 + 75 - 126}, {em.op(f'trunc i128 {zeros} to i64')}")
    unit = em.op(f"bitcast i64 {em.op(f'shl i64 {exponent}, 52')} to double")
    a = v.mul(em.op(f"sitofp i64 {high} to double"), unit)
    b = v.mul(v.mul(em.op(f"sitofp i64 {low} to double"), unit), v.constant(2.0**-53))
    half_pi, half_pi_low = v.constant(1.5707963267948966), v.constant(6.123233995736766e-17)
    r, lost = v.two_product(a, half_pi)
    lost = v.add(lost, v.add(v.mul(a, half_pi_low), v.mul(b, half_pi)))
    r, lost = v.ordered_sum(r, lost)
    # The sign of the rest, and that of the argument.
    negative = em.op(f"icmp slt i64 {bits}, 0")
    flip = em.op(f"xor i1 {upper}, {negative}")
    r, lost = (em.op(f"select i1 {flip}, double {v.neg(x)}, double {x}") for x in (r, lost))
    n = em.op(f"select i1 {negative}, i64 {em.op(f'sub i64 0, {n}')}, i64 {n}")
    nan = v.constant(float("nan"))
    r = em.op(f"select i1 {finite}, double {r}, double {nan}")
    triple = "{ double, double, i64 }"
    out = "poison"
    for i, (kind, value) in enumerate((("double", r), ("double", lost), ("i64", n))):
        out = em.op(f"insertvalue {triple} {out}, {kind} {value}, {i}")
    module.helper(
        name,
        f"define internal {triple} @{name}(double %x) noinline {{\n"
        f"{em.body()}\n  ret {triple} {out}\n}}",
    )
    return name

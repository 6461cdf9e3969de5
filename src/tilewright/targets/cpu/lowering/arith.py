"""Elementwise arithmetic, comparisons and casts.

f16 and bf16 values are bit patterns in ``i16`` registers; each op widens them to f32, computes,
and rounds back, which gives the correctly rounded result for every single arithmetic op. Integer
arithmetic wraps; division by zero gives 0 and a shift by the width or more shifts everything out,
as in NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tilewright.dtypes import DType, bf16, boolean, f16, f32, f64, i64
from tilewright.lang import ir
from tilewright.lang.functions import BINARY_FUNCTIONS
from tilewright.targets.cpu.lowering import half, mathlib
from tilewright.targets.cpu.lowering.context import Context, Handler, elementwise, refuse
from tilewright.targets.cpu.lowering.emit import Emitter, literal, reg_type, vec
from tilewright.targets.cpu.lowering.tile import Tile
from tilewright.targets.cpu.lowering.vector import Vector

__all__ = ["HANDLERS", "binary", "cast_tile", "cast_value", "fma_value"]

_COMPARE_FLOAT = {"lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "eq": "oeq", "ne": "une"}


def compute_type(dtype: DType) -> DType:
    """The dtype that arithmetic on ``dtype`` happens in."""
    return f32 if dtype in (f16, bf16) else dtype


def widen(ctx: Context, dtype: DType, value: str, width: int) -> str:
    """A 16-bit float as f32; anything else as it is."""
    if dtype is not f16 and dtype is not bf16:
        return value
    key = ("widen", dtype, value, width)
    found = ctx.em.recall(key)
    if found is None:
        found = half.to_f32(ctx, dtype, value, width)
        ctx.em.remember(key, found)
    return str(found)


def narrow(ctx: Context, dtype: DType, value: str, width: int) -> str:
    """An f32 rounded to ``dtype`` if that is a 16-bit float; anything else as it is."""
    if dtype is not f16 and dtype is not bf16:
        return value
    return half.from_f32(ctx, dtype, value, width)


def splat_of(value: bool | int | float, dtype: DType, width: int) -> str:
    """A constant in every lane."""
    text = literal(value, dtype)
    return text if width == 1 else f"splat ({reg_type(dtype)} {text})"


# --- binary ---


def binary(ctx: Context, name: str, dtype: DType, x: str, y: str, width: int) -> str:
    """``x name y`` on one chunk."""
    if dtype in (f16, bf16):
        a, b = widen(ctx, dtype, x, width), widen(ctx, dtype, y, width)
        return narrow(ctx, dtype, binary(ctx, name, f32, a, b, width), width)
    if dtype.is_float:
        return _float_binary(ctx, name, dtype, x, y, width)
    if dtype is boolean:
        return _bool_binary(ctx, name, x, y, width)
    return _int_binary(ctx, name, dtype, x, y, width)


def _float_binary(ctx: Context, name: str, dtype: DType, x: str, y: str, width: int) -> str:
    em = ctx.em
    type = vec(reg_type(dtype), width)
    plain = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}.get(name)
    if plain:
        return em.op(f"{plain} {type} {x}, {y}")
    if name in ("max", "min"):
        # One max instruction returns its second operand when either is NaN; the select lets a NaN
        # in the first one win, as NumPy's maximum does.
        flag = vec("i1", width)
        order = "ogt" if name == "max" else "olt"
        better = em.op(f"fcmp {order} {type} {x}, {y}")
        best = em.op(f"select {flag} {better}, {type} {x}, {type} {y}")
        nan = em.op(f"fcmp uno {type} {x}, {x}")
        return em.op(f"select {flag} {nan}, {type} {x}, {type} {best}")
    if name in ("floordiv", "mod"):
        return _float_divmod(ctx, name, dtype, x, y, width)
    if name in BINARY_FUNCTIONS:
        return mathlib.call(ctx, name, dtype, width, x, y)
    raise KeyError(name)


def _float_divmod(ctx: Context, name: str, dtype: DType, x: str, y: str, width: int) -> str:
    """NumPy's ``floor_divide`` and ``remainder``, step by step (``npy_divmod``)."""
    v = Vector(ctx.em, ctx.machine, dtype, width)
    zero = v.constant(0.0)
    rest = mathlib.call(ctx, "fmod", dtype, width, x, y)
    nonzero = v.compare("une", rest, zero)
    opposite = v.differ(v.negative(rest), v.compare("olt", y, zero))
    fix = v.both(nonzero, opposite)
    if name == "mod":
        moved = v.select(fix, v.add(rest, y), rest)
        return v.select(v.compare("oeq", rest, zero), v.copysign(zero, y), moved)
    ratio = v.div(x, y)
    quotient = v.div(v.sub(x, rest), y)
    quotient = v.select(fix, v.sub(quotient, v.constant(1.0)), quotient)
    floors = v.intrinsic("floor", quotient)
    gap = v.compare("ogt", v.sub(quotient, floors), v.constant(0.5))
    floors = v.select(gap, v.add(floors, v.constant(1.0)), floors)
    is_zero = v.compare("oeq", quotient, zero)
    out = v.select(is_zero, v.copysign(zero, ratio), floors)
    return v.select(v.compare("oeq", y, zero), ratio, out)


def _int_power(ctx: Context, dtype: DType, x: str, y: str, width: int) -> str:
    """x**y by squaring, in a function with a loop that ends when no lane has bits left."""
    name = f"tw.pow.{dtype.name}.{width}"
    module = ctx.em.module
    element = reg_type(dtype)
    type, flag = vec(element, width), vec("i1", width)
    if not module.has_helper(name):
        em = Emitter(module)
        zero, one = splat_of(0, dtype, width), splat_of(1, dtype, width)
        start = "%y"
        if dtype.is_signed:  # a negative power of 1 or -1 depends on its last bit
            below = em.op(f"icmp slt {type} %y, {zero}")
            last = em.op(f"and {type} %y, {one}")
            start = em.op(f"select {flag} {below}, {type} {last}, {type} %y")
        before, loop, done = em.block, em.label("square"), em.label("done")
        em.jump(loop)
        em.start(loop)
        power, power_line = em.phi(type, one, before)
        square, square_line = em.phi(type, "%x", before)
        rest, rest_line = em.phi(type, start, before)
        odd = em.op(f"trunc {type} {rest} to {flag}")
        product = em.op(f"mul {type} {power}, {square}")
        chosen = em.op(f"select {flag} {odd}, {type} {product}, {type} {power}")
        squared = em.op(f"mul {type} {square}, {square}")
        halved = em.op(f"lshr {type} {rest}, {one}")
        left = halved
        if width > 1:
            left = em.call(f"llvm.vector.reduce.or.v{width}{element}", element, [(type, halved)])
        more = em.op(f"icmp ne {element} {left}, 0")
        for line, value in ((power_line, chosen), (square_line, squared), (rest_line, halved)):
            em.add_incoming(line, value, loop)
        em.branch(more, loop, done)
        em.start(done)
        out = chosen
        if dtype.is_signed:
            plus = em.op(f"icmp eq {type} %x, {one}")
            minus = em.op(f"icmp eq {type} %x, {splat_of(-1, dtype, width)}")
            unit = em.op(f"or {flag} {plus}, {minus}")
            whole = em.op(f"select {flag} {unit}, {type} {out}, {type} {zero}")
            out = em.op(f"select {flag} {below}, {type} {whole}, {type} {out}")
        module.helper(
            name,
            f"define internal {type} @{name}({type} %x, {type} %y) noinline {{\n"
            f"{em.body()}\n  ret {type} {out}\n}}",
        )
    return ctx.em.call(name, type, [(type, x), (type, y)])


def _bool_binary(ctx: Context, name: str, x: str, y: str, width: int) -> str:
    op = {"max": "or", "min": "and"}.get(name, name)
    return ctx.em.op(f"{op} {vec('i1', width)} {x}, {y}")


def _int_binary(ctx: Context, name: str, dtype: DType, x: str, y: str, width: int) -> str:
    em = ctx.em
    element = reg_type(dtype)
    type, flag = vec(element, width), vec("i1", width)
    if width == 1 and dtype is i64 and name in ("add", "mul"):
        return em.add(x, y) if name == "add" else em.mul(x, y)
    if name in ("add", "sub", "mul", "and", "or", "xor"):
        return em.op(f"{name} {type} {x}, {y}")
    signed = dtype.is_signed
    if name in ("max", "min"):
        return em.intrinsic(("s" if signed else "u") + name, element, width, x, y)
    if name in ("shl", "shr"):
        known = _known(y)
        if known is not None and 0 <= known < dtype.bits:
            op = "shl" if name == "shl" else "ashr" if signed else "lshr"
            return em.op(f"{op} {type} {x}, {y}")
        limit = splat_of(dtype.bits - 1, dtype, width)
        inside = em.op(f"icmp ule {type} {y}, {limit}")
        if name == "shr" and signed:
            amount = em.op(f"select {flag} {inside}, {type} {y}, {type} {limit}")
            return em.op(f"ashr {type} {x}, {amount}")
        zero = splat_of(0, dtype, width)
        amount = em.op(f"select {flag} {inside}, {type} {y}, {type} {zero}")
        shifted = em.op(f"{'shl' if name == 'shl' else 'lshr'} {type} {x}, {amount}")
        return em.op(f"select {flag} {inside}, {type} {shifted}, {type} {zero}")
    if name == "pow":
        return _int_power(ctx, dtype, x, y, width)
    if name in ("floordiv", "mod"):
        return _int_divmod(ctx, name, dtype, x, y, width)
    raise KeyError(name)


def _known(operand: str) -> int | None:
    """The integer that every lane of a constant holds; None for other operands."""
    if operand.startswith("splat ("):
        operand = operand[operand.index(" ", 7) + 1 : -1]
    elif operand == "zeroinitializer":
        return 0
    return int(operand) if operand.lstrip("-").isdecimal() else None


def _quotient(ctx: Context, dtype: DType, x: str, y: str, width: int) -> str:
    """``x / y`` without its fraction, for y that is not 0 (nor -1 beside the least integer).

    No machine divides vectors of integers. A float with twice the integers' digits does: an inexact
    quotient lies further from the next integer than its rounding reaches.
    """
    em = ctx.em
    type = vec(reg_type(dtype), width)
    sign = "s" if dtype.is_signed else "u"
    native = dtype.bits <= 16 or (dtype.bits == 32 and (dtype.is_signed or ctx.machine.has_avx512))
    if width == 1 or not native:
        return em.op(f"{sign}div {type} {x}, {y}")
    wide = vec("float" if dtype.bits <= 16 else "double", width)
    a, b = (em.op(f"{sign}itofp {type} {v} to {wide}") for v in (x, y))
    ratio = em.op(f"fdiv {wide} {a}, {b}")
    if dtype.bits == 32:
        return em.op(f"fpto{sign}i {wide} {ratio} to {type}")
    whole = em.op(f"fptosi {wide} {ratio} to {vec('i32', width)}")
    return em.op(f"trunc {vec('i32', width)} {whole} to {type}")


def _int_divmod(ctx: Context, name: str, dtype: DType, x: str, y: str, width: int) -> str:
    em = ctx.em
    element = reg_type(dtype)
    type, flag = vec(element, width), vec("i1", width)
    zero, one = splat_of(0, dtype, width), splat_of(1, dtype, width)
    known = _known(y)
    plain = known is not None and known not in (0, -1)
    divisor = y
    if not plain:
        by_zero = em.op(f"icmp eq {type} {y}, {zero}")
        divisor = em.op(f"select {flag} {by_zero}, {type} {one}, {type} {y}")
    minus = ""
    if dtype.is_signed and not plain:
        # The smallest integer divided by -1 overflows: divide by 1 and negate instead.
        minus = em.op(f"icmp eq {type} {y}, {splat_of(-1, dtype, width)}")
        divisor = em.op(f"select {flag} {minus}, {type} {one}, {type} {divisor}")
    if plain and width > 1:  # by multiplication
        op = "sdiv" if dtype.is_signed else "udiv"
        out = quotient = em.op(f"{op} {type} {x}, {divisor}")
    else:
        out = quotient = _quotient(ctx, dtype, x, divisor, width)
    if name == "mod" or dtype.is_signed:
        back = em.op(f"mul {type} {quotient}, {divisor}")
        rest = em.op(f"sub {type} {x}, {back}")
        if name == "mod":
            out = rest
    if dtype.is_signed:
        nonzero = em.op(f"icmp ne {type} {rest}, {zero}")
        signs = em.op(f"xor {type} {rest}, {divisor}")
        differs = em.op(f"icmp slt {type} {signs}, {zero}")
        fix = em.op(f"and {flag} {nonzero}, {differs}")
        step, other = ("add", divisor) if name == "mod" else ("sub", one)
        fixed = em.op(f"{step} {type} {out}, {other}")
        out = em.op(f"select {flag} {fix}, {type} {fixed}, {type} {out}")
        if minus and name == "floordiv":
            negated = em.op(f"sub {type} {zero}, {x}")
            out = em.op(f"select {flag} {minus}, {type} {negated}, {type} {out}")
    if plain:
        return out
    return em.op(f"select {flag} {by_zero}, {type} {zero}, {type} {out}")


def compare(ctx: Context, name: str, dtype: DType, x: str, y: str, width: int) -> str:
    """``x name y`` on one chunk: i1 lanes."""
    x, y = widen(ctx, dtype, x, width), widen(ctx, dtype, y, width)
    dtype = compute_type(dtype)
    type = vec(reg_type(dtype), width)
    if dtype.is_float:
        return ctx.em.op(f"fcmp {_COMPARE_FLOAT[name]} {type} {x}, {y}")
    if name not in ("eq", "ne"):
        name = ("s" if dtype.is_signed else "u") + name
    return ctx.em.op(f"icmp {name} {type} {x}, {y}")


# --- fused multiply-add ---


def fma_value(ctx: Context, dtype: DType, x: str, y: str, z: str, width: int) -> str:
    """``x * y + z`` rounded once (integers wrap)."""
    em = ctx.em
    element = reg_type(dtype)
    type = vec(element, width)
    if not dtype.is_float:
        product = em.op(f"mul {type} {x}, {y}")
        return em.op(f"add {type} {product}, {z}")
    if dtype in (f16, bf16):
        a, b, c = (widen(ctx, dtype, v, width) for v in (x, y, z))
        return half.from_f64(ctx, dtype, half.fma_wide(ctx, a, b, c, width), width)
    if ctx.machine.has_fma:
        return em.intrinsic("fma", element, width, x, y, z)
    if dtype is f64:
        lanes = []
        for lane in range(width):
            args = [("double", em.extract("double", v, width, lane)) for v in (x, y, z)]
            lanes.append(em.call("fma", "double", args))
        return em.pack("double", lanes)
    return _emulated_fma(ctx, width, x, y, z)


def _emulated_fma(ctx: Context, width: int, *args: str) -> str:
    """f32 in a function of its own: some thirty instructions are too many to inline everywhere."""
    name, type = f"tw.fma.{width}", vec("float", width)
    module = ctx.em.module
    if not module.has_helper(name):
        inner = replace(ctx, em=Emitter(module))
        wide = half.fma_wide(inner, "%x", "%y", "%z", width)
        out = inner.em.op(f"fptrunc {vec('double', width)} {wide} to {type}")
        module.helper(
            name,
            f"define internal {type} @{name}({type} %x, {type} %y, {type} %z) noinline {{\n"
            f"{inner.em.body()}\n  ret {type} {out}\n}}",
        )
    return ctx.em.call(name, type, [(type, a) for a in args])


# --- casts ---


def cast_value(ctx: Context, source: DType, target: DType, value: str, width: int) -> str:
    """One chunk of ``source`` as ``target``."""
    em = ctx.em
    if source is target:
        return value
    if source in (f16, bf16):
        return cast_value(ctx, f32, target, widen(ctx, source, value, width), width)
    have, want = vec(reg_type(source), width), vec(reg_type(target), width)
    if target in (f16, bf16):
        if source is f64:
            return half.from_f64(ctx, target, value, width)
        if target is bf16 and source.is_integer and source.bits > 16:
            # Through f64 so that it rounds once; f16's range is too small to notice.
            return half.from_f64(ctx, target, _exact_f64(ctx, source, value, width), width)
        return narrow(ctx, target, cast_value(ctx, source, f32, value, width), width)
    if target is boolean:
        zero = splat_of(0, source, width)
        test = "fcmp une" if source.is_float else "icmp ne"
        return em.op(f"{test} {have} {value}, {zero}")
    if source.is_float and target.is_float:
        return em.op(f"{'fpext' if target is f64 else 'fptrunc'} {have} {value} to {want}")
    if source.is_float:
        return _float_to_int(ctx, source, target, value, width)
    if target.is_float:
        op = "sitofp" if source.kind == "i" else "uitofp"
        return em.op(f"{op} {have} {value} to {want}")
    if source.bits == target.bits and source is not boolean:
        return value
    if source is boolean or source.bits < target.bits:
        op = "sext" if source.kind == "i" else "zext"
        return em.op(f"{op} {have} {value} to {want}")
    return em.op(f"trunc {have} {value} to {want}")


def _exact_f64(ctx: Context, source: DType, value: str, width: int) -> str:
    """An integer as f64; bits that do not fit are replaced by one sticky bit below them."""
    em = ctx.em
    have, flag = vec(reg_type(source), width), vec("i1", width)
    if source.bits == 64:
        dropped = em.op(f"and {have} {value}, {splat_of(0xFFF, source, width)}")
        any_dropped = em.op(f"icmp ne {have} {dropped}, {splat_of(0, source, width)}")
        kept = em.op(f"and {have} {value}, {splat_of(-0x1000, source, width)}")
        sticky = em.op(f"or {have} {kept}, {splat_of(0x800, source, width)}")
        sticky = em.op(f"select {flag} {any_dropped}, {have} {sticky}, {have} {kept}")
        # Only where 2^52 and more in size: below, every bit fits.
        high = em.op(
            f"{'ashr' if source.is_signed else 'lshr'} {have} {value}, "
            f"{splat_of(52, source, width)}"
        )
        shifted = em.op(
            f"add {have} {high}, {splat_of(1 if source.is_signed else 0, source, width)}"
        )
        limit = splat_of(1 if source.is_signed else 0, source, width)
        large = em.op(f"icmp ugt {have} {shifted}, {limit}")
        value = em.op(f"select {flag} {large}, {have} {sticky}, {have} {value}")
    op = "sitofp" if source.is_signed else "uitofp"
    return em.op(f"{op} {have} {value} to {vec('double', width)}")


def _float_to_int(ctx: Context, source: DType, target: DType, value: str, width: int) -> str:
    em = ctx.em
    have = vec(reg_type(source), width)
    if target.bits < 32:
        # Through i32 with the clamp done in floats: narrower saturating casts are scalarised.
        flag, stem = vec("i1", width), reg_type(source)
        low = -(1 << (target.bits - 1)) if target.is_signed else 0
        high = (1 << (target.bits - (1 if target.is_signed else 0))) - 1
        ordered = em.op(f"fcmp ord {have} {value}, {value}")
        zero = splat_of(0.0, source, width)
        value = em.op(f"select {flag} {ordered}, {have} {value}, {have} {zero}")
        value = em.intrinsic("maxnum", stem, width, value, splat_of(float(low), source, width))
        value = em.intrinsic("minnum", stem, width, value, splat_of(float(high), source, width))
        wide = em.op(f"fptosi {have} {value} to {vec('i32', width)}")
        return em.op(f"trunc {vec('i32', width)} {wide} to {vec(reg_type(target), width)}")
    sign = "s" if target.is_signed else "u"
    want = vec(reg_type(target), width)
    suffix = "" if width == 1 else f"v{width}"
    name = f"llvm.fpto{sign}i.sat.{suffix}{reg_type(target)}.{suffix}{source.name}"
    return em.call(name, want, [(have, value)])


def cast_tile(ctx: Context, source: Tile, dtype: DType) -> Tile:
    """Every chunk of ``source`` as ``dtype``."""
    if source.dtype is dtype:
        return source
    n = len(source.widths)
    vals = [
        cast_value(ctx, source.dtype, dtype, v, source.widths[i % n])
        for i, v in enumerate(source.vals)
    ]
    return Tile(dtype, source.shape, source.width, vals)


# --- handlers ---


def _binary(ctx: Context, op: ir.Op) -> None:
    dtype = op.result.dtype
    if op.name == "div" and not dtype.is_float:
        raise refuse(op, "true division wants floats; use // for integers")
    if op.name in ("and", "or", "xor", "shl", "shr") and dtype.is_float:
        raise refuse(op, "bit operations want integers or bool")
    elementwise(ctx, op, lambda v, w: binary(ctx, op.name, dtype, v[0], v[1], w))


def _compare(ctx: Context, op: ir.Op) -> None:
    dtype = op.operands[0].dtype
    elementwise(ctx, op, lambda v, w: compare(ctx, op.name, dtype, v[0], v[1], w))


def _fma(ctx: Context, op: ir.Op) -> None:
    dtype = op.result.dtype
    elementwise(ctx, op, lambda v, w: fma_value(ctx, dtype, v[0], v[1], v[2], w))


def _where(ctx: Context, op: ir.Op) -> None:
    type = reg_type(op.result.dtype)

    def one(v: Sequence[str], w: int) -> str:
        t = vec(type, w)
        return ctx.em.op(f"select {vec('i1', w)} {v[0]}, {t} {v[1]}, {t} {v[2]}")

    elementwise(ctx, op, one)


def _cast(ctx: Context, op: ir.Op) -> None:
    if op.result in ctx.deferred:
        return
    source, target = op.operands[0].dtype, op.result.dtype
    elementwise(ctx, op, lambda v, w: cast_value(ctx, source, target, v[0], w))


def _bitcast(ctx: Context, op: ir.Op) -> None:
    have, want = reg_type(op.operands[0].dtype), reg_type(op.result.dtype)
    if boolean in (op.operands[0].dtype, op.result.dtype) and have != want:
        raise refuse(op, "a bool has no bits to reinterpret; compare or cast instead")
    if have == want:
        elementwise(ctx, op, lambda v, w: v[0])
    else:
        elementwise(
            ctx, op, lambda v, w: ctx.em.op(f"bitcast {vec(have, w)} {v[0]} to {vec(want, w)}")
        )


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(ir.BINARY, _binary),
    **dict.fromkeys(ir.COMPARE, _compare),
    "fma": _fma,
    "where": _where,
    "cast": _cast,
    "bitcast": _bitcast,
}

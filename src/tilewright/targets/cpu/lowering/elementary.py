"""Unary ops: signs, rounding, square roots, and the elementary functions of :mod:`.mathlib`."""

from __future__ import annotations

from tilewright.dtypes import DType, bf16, boolean, f16, f32
from tilewright.lang import ir
from tilewright.targets.cpu.lowering import arith, mathlib
from tilewright.targets.cpu.lowering.context import Context, Handler, elementwise, refuse
from tilewright.targets.cpu.lowering.emit import reg_type, vec

__all__ = ["HANDLERS"]

_ROUNDING = {"floor": "floor", "ceil": "ceil", "round": "roundeven", "trunc": "trunc"}
_BITS = frozenset({"not", "popcount"})


def unary(ctx: Context, name: str, dtype: DType, x: str, width: int) -> str:
    """``name(x)`` on one chunk; bool for ``isnan``."""
    em = ctx.em
    element = reg_type(dtype)
    type = vec(element, width)
    if name == "isnan":
        if not dtype.is_float:
            return "false" if width == 1 else "zeroinitializer"
        wide = arith.widen(ctx, dtype, x, width)
        compute = vec(reg_type(arith.compute_type(dtype)), width)
        return em.op(f"fcmp uno {compute} {wide}, {wide}")
    if name == "not":
        ones = "true" if dtype is boolean else "-1"
        return em.op(f"xor {type} {x}, {_all(element, ones, width)}")
    if name == "popcount":
        return em.intrinsic("ctpop", element, width, x)
    if dtype in (f16, bf16):
        if name in ("neg", "abs"):
            op, mask = ("xor", "-32768") if name == "neg" else ("and", "32767")
            return em.op(f"{op} {type} {x}, {_all(element, mask, width)}")
        wide = unary(ctx, name, f32, arith.widen(ctx, dtype, x, width), width)
        return arith.narrow(ctx, dtype, wide, width)
    if not dtype.is_float:
        return _integer(ctx, name, dtype, x, width)
    if name == "neg":
        return em.op(f"fneg {type} {x}")
    if name == "abs":
        return em.intrinsic("fabs", element, width, x)
    if name in _ROUNDING:
        return em.intrinsic(_ROUNDING[name], element, width, x)
    if name == "sqrt":
        return em.intrinsic("sqrt", element, width, x)
    if name == "rsqrt":
        root = em.intrinsic("sqrt", element, width, x)
        return em.op(f"fdiv {type} {arith.splat_of(1.0, dtype, width)}, {root}")
    return mathlib.call(ctx, name, dtype, width, x)


def _integer(ctx: Context, name: str, dtype: DType, x: str, width: int) -> str:
    em = ctx.em
    type = vec(reg_type(dtype), width)
    if name == "neg":
        return em.op(f"sub {type} {_all(reg_type(dtype), '0', width)}, {x}")
    if name == "abs" and dtype.kind == "i":
        stem = f"llvm.abs.{'' if width == 1 else f'v{width}'}{reg_type(dtype)}"
        return em.call(stem, type, [(type, x), ("i1", "false")])
    return x  # unsigned abs, and rounding of what has no fraction


def _all(element: str, text: str, width: int) -> str:
    return text if width == 1 else f"splat ({element} {text})"


def _unary(ctx: Context, op: ir.Op) -> None:
    dtype = op.operands[0].dtype
    exact = ("neg", "abs", "isnan", *_ROUNDING)
    if not dtype.is_float and op.name not in exact and op.name not in _BITS:
        raise refuse(op, f"{op.name} wants a float tile; cast with .to(f32) first")
    if dtype.is_float and op.name in _BITS:
        raise refuse(op, f"{op.name} wants integers or bool")
    elementwise(ctx, op, lambda v, w: unary(ctx, op.name, dtype, v[0], w))


HANDLERS: dict[str, Handler] = dict.fromkeys(ir.UNARY, _unary)

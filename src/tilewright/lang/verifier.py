"""The verifier of tile IR: every op against the table in :mod:`tilewright.lang.ir`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tilewright.dtypes import DType, boolean, f32, i32, i64, u32
from tilewright.errors import KernelError
from tilewright.lang.functions import BINARY_FUNCTIONS, UNARY_FUNCTIONS
from tilewright.lang.ir import (
    BINARY,
    COMPARE,
    REDUCTIONS,
    UNARY,
    ArrayType,
    Axis,
    Block,
    Function,
    Gather,
    Op,
    TileType,
    Value,
    access_shape,
    broadcast_shapes,
)

__all__ = ["check_function"]


def check_function(fn: Function) -> None:
    """Check every op of ``fn``; :class:`KernelError` names the first bad one."""
    _verify_block(fn.body, set(fn.params))


def _verify_block(block: Block, outer: set[Value]) -> None:
    known = outer | set(block.args)
    for op in block.ops:
        for operand in op.operands:
            if operand not in known:
                raise _bad(op, "uses a value that is not defined before it")
        try:
            problem = _check(op)
        except ValueError as error:  # shapes that do not broadcast
            problem = str(error)
        if problem:
            raise _bad(op, problem)
        for inner in op.blocks:
            _verify_block(inner, known)
        known |= set(op.results)


def _bad(op: Op, problem: str) -> KernelError:
    types = ", ".join(str(v.type) for v in op.operands)
    where = f"\n{op.loc.caret()}" if op.loc else ""
    return KernelError(f"{op.name}({types}): {problem}{where}")


_FLOAT_ONLY: Final = frozenset(
    ["floor", "ceil", "round", "trunc", "isnan", "div", *UNARY_FUNCTIONS, *BINARY_FUNCTIONS]
) - {"pow"}
_INTEGER_ONLY: Final = frozenset(["shl", "shr", "popcount"])
_NO_FLOAT: Final = frozenset(["and", "or", "xor", "not"])
_NO_BOOL: Final = frozenset(
    ["neg", "abs", "add", "sub", "mul", "fma", "min", "max", "floordiv", "mod", "pow"]
)


def _check(op: Op) -> str:
    """What is wrong with ``op``, or an empty string."""
    name = op.name
    check = _CHECKS.get(name)
    if check is not None:
        return check(op)
    if name in UNARY:
        x, out = op.operands[0], op.result.type
        want = TileType(boolean, x.shape) if name == "isnan" else x.type
        return _check_dtype(name, x.dtype) or ("" if out == want else f"result must be {want}")
    if name in BINARY or name in COMPARE or name == "fma":
        dtype = op.operands[0].dtype
        if any(v.dtype is not dtype for v in op.operands):
            return "operands must share one dtype"
        want_dtype = boolean if name in COMPARE else dtype
        if op.result.dtype is not want_dtype:
            return f"result must be {want_dtype}"
        return _check_dtype(name, dtype) or _check_broadcast(op, [v.shape for v in op.operands])
    return "no such op"


def _check_dtype(name: str, dtype: DType) -> str:
    if name in _FLOAT_ONLY and not dtype.is_float:
        return "wants floats"
    if name in _INTEGER_ONLY and not dtype.is_integer:
        return "wants integers"
    if name in _NO_FLOAT and dtype.is_float:
        return "wants integers or bools"
    if name in _NO_BOOL and dtype is boolean:
        return "wants numbers, not bools"
    return ""


def _check_where(op: Op) -> str:
    c, x, y = op.operands
    if c.dtype is not boolean or x.dtype is not y.dtype or op.result.dtype is not x.dtype:
        return "wants (bool, x, y) with x and y of one dtype"
    return _check_broadcast(op, [v.shape for v in op.operands])


def _check_dot(op: Op) -> str:
    a, b, acc = (v.shape for v in op.operands)
    if len(a) != 2 or len(b) != 2 or a[1] != b[0] or acc != (a[0], b[1]):
        return "wants (m,k), (k,n), (m,n)"
    if op.operands[2].dtype is boolean:
        return "cannot accumulate in bool"
    return "" if op.result.type == op.operands[2].type else "result must have acc's type"


def _check_dot2(op: Op) -> str:
    if op.operands[0].dtype is not f32 or any(v.dtype is not u32 for v in op.operands[1:]):
        return "wants (f32, u32, u32)"
    return _check_broadcast(op, [v.shape for v in op.operands])


def _check_pack2(op: Op) -> str:
    if any(v.dtype is not f32 for v in op.operands) or op.result.dtype is not u32:
        return "wants (f32, f32) -> u32"
    return _check_broadcast(op, [v.shape for v in op.operands])


def _check_dot4(op: Op) -> str:
    if op.operands[0].dtype is not i32 or any(v.dtype not in (i32, u32) for v in op.operands[1:]):
        return "wants (i32, i32|u32, i32|u32)"
    return _check_broadcast(op, [v.shape for v in op.operands])


def _check_for(op: Op) -> str:
    carried = [v.type for v in op.operands[3:]]
    body = op.blocks[0]
    if any(v.type != TileType(i64) for v in op.operands[:3]):
        return "bounds and step must be i64 scalars"
    if not body.ops or body.ops[-1].name != "yield":
        return "the body must end in yield"
    ends = [v.type for v in body.ops[-1].operands]
    if [a.type for a in body.args[1:]] != carried or ends != carried:
        return "carried values change their type"
    return "" if [r.type for r in op.results] == carried else "results must have the carried types"


def _check_if(op: Op) -> str:
    if op.operands[0].type != TileType(boolean):
        return "the condition must be a bool scalar"
    for block in op.blocks:
        if not block.ops or block.ops[-1].name != "yield":
            return "a branch must end in yield"
        if [v.type for v in block.ops[-1].operands] != [r.type for r in op.results]:
            return "the two branches yield different types"
    return ""


def _check_scan_with(op: Op) -> str:
    scalars = [TileType(v.dtype) for v in op.operands]
    block = op.blocks[0]
    if [a.type for a in block.args] != scalars * 2:
        return "the block must take two scalars per operand"
    if not block.ops or [v.type for v in block.ops[-1].operands] != scalars:
        return "the block must yield one scalar per operand"
    return "" if [r.type for r in op.results] == [v.type for v in op.operands] else "types differ"


def _check_reduce(op: Op) -> str:
    x, fn, axis = op.operands[0], op.attrs["fn"], op.attrs["axis"]
    if fn not in REDUCTIONS:
        return f"there is no reduction {fn!r}"
    if axis is not None and not 0 <= axis < len(x.shape):
        return f"axis {axis} is out of range"
    if fn in ("any", "all") and x.dtype is not boolean:
        return "wants bools"
    if fn in ("sum", "prod") and x.dtype is boolean:
        return "wants numbers, not bools"
    shape = () if axis is None else x.shape[:axis] + x.shape[axis + 1 :]
    want = TileType(i64 if fn in ("argmax", "argmin") else x.dtype, shape)
    return "" if op.result.type == want else f"result must be {want}"


def _check_scan(op: Op) -> str:
    x = op.operands[0]
    if op.attrs["fn"] not in ("sum", "prod", "max", "min"):
        return f"there is no scan {op.attrs['fn']!r}"
    if not 0 <= op.attrs["axis"] < len(x.shape):
        return f"axis {op.attrs['axis']} is out of range"
    return "" if op.result.type == x.type else "result must have the operand's type"


def _check_reshape(op: Op) -> str:
    x, out = op.operands[0], op.result
    if x.dtype is not out.dtype:
        return "keeps the dtype"
    if _count(x.shape) != _count(out.shape):
        return f"{_count(x.shape)} elements become {_count(out.shape)}"
    if op.name == "expand_dims":
        axis = op.attrs["axis"]
        if out.shape != x.shape[:axis] + (1,) + x.shape[axis:]:
            return f"result has shape {out.shape}"
    return ""


def _check_conversion(op: Op) -> str:
    x, out = op.operands[0], op.result
    if x.shape != out.shape:
        return f"shape {x.shape} becomes {out.shape}"
    if op.name == "bitcast" and (x.dtype.bits != out.dtype.bits or boolean in (x.dtype, out.dtype)):
        return "bitcast keeps the width"
    return ""


def _check_movement(op: Op) -> str:
    shapes = [v.shape for v in op.operands]
    out = op.result.shape
    if any(v.dtype is not op.result.dtype for v in op.operands):
        return "keeps the dtype"
    if op.name == "broadcast":
        return "" if broadcast_shapes(shapes[0], out) == out else f"does not fill {out}"
    if op.name == "transpose":
        perm = op.attrs["perm"]
        ok = sorted(perm) == list(range(len(shapes[0])))
        return "" if ok and out == tuple(shapes[0][p] for p in perm) else f"perm {perm}, got {out}"
    if op.name == "slice":
        starts = op.attrs["starts"]
        ok = len(starts) == len(out) == len(shapes[0]) and all(
            s >= 0 and n >= 1 and s + n <= size for s, n, size in zip(starts, out, shapes[0])
        )
        return "" if ok else f"starts {starts}, got {out}"
    axis = op.attrs["axis"]
    rest = {s[:axis] + s[axis + 1 :] for s in (*shapes, out)}
    total = sum(s[axis] for s in shapes)
    return "" if len(rest) == 1 and out[axis] == total else f"parts {shapes} do not make {out}"


def _check_source(op: Op) -> str:
    out = op.results[0].type
    if op.name == "scratch":
        ok = isinstance(out, ArrayType) and None not in out.shape
        return "" if ok else "wants a static shape"
    if op.name == "arange":
        n = op.attrs["stop"] - op.attrs["start"]
        return "" if out == TileType(i64, (n,)) and n >= 1 else "result must be i64 (n,)"
    if op.name == "constant":
        return "" if isinstance(out, TileType) else "result must be a tile"
    return "" if out == TileType(i64) else "result must be an i64 scalar"


def _check_broadcast(op: Op, shapes: list[tuple[int, ...]]) -> str:
    try:
        want = broadcast_shapes(*shapes)
    except ValueError as error:
        return str(error)
    got = op.result.shape
    return "" if got == want else f"result has shape {got}, operands broadcast to {want}"


def _check_access(op: Op) -> str:
    array = op.operands[0].type
    if not isinstance(array, ArrayType):
        return "first operand must be an array"
    axes: tuple[Axis, ...] = op.attrs["axes"]
    index = op.operands[1 : 1 + len(axes)]
    if len(axes) != array.ndim or len(index) != array.ndim:
        return f"array has {array.ndim} axes, {len(axes)} are indexed"
    for axis, value in zip(axes, index):
        if isinstance(axis, Gather):
            if not value.dtype.is_integer:
                return "a gather wants an integer tile"
        elif value.type != TileType(i64):
            return "an index or window start must be an i64 scalar"
    shape = access_shape(axes, [v.shape if isinstance(v.type, TileType) else () for v in index])
    if op.name == "load":
        ok = op.result.type == TileType(array.dtype, shape)
        return "" if ok else f"reads {array.dtype}{shape}, result says {op.result.type}"
    value = op.operands[-1]
    ok = value.dtype is array.dtype and broadcast_shapes(value.shape, shape) == shape
    return "" if ok else f"stores {value.type} into a {array.dtype}{shape} window"


def _check_yield(op: Op) -> str:
    return "" if all(isinstance(v.type, TileType) for v in op.operands) else "yields tiles only"


_CHECKS: Final[dict[str, Callable[[Op], str]]] = {
    **dict.fromkeys(["load", "store"], _check_access),
    **dict.fromkeys(["reshape", "expand_dims"], _check_reshape),
    **dict.fromkeys(["cast", "bitcast"], _check_conversion),
    **dict.fromkeys(["broadcast", "transpose", "slice", "concat"], _check_movement),
    **dict.fromkeys(
        ["constant", "arange", "scratch", "dim", "program_id", "num_programs"], _check_source
    ),
    "where": _check_where,
    "dot": _check_dot,
    "dot2": _check_dot2,
    "pack2": _check_pack2,
    "dot4": _check_dot4,
    "for": _check_for,
    "if": _check_if,
    "scan_with": _check_scan_with,
    "reduce": _check_reduce,
    "scan": _check_scan,
    "yield": _check_yield,
}


def _count(shape: tuple[int, ...]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n

"""Which tiles live as scalars instead of vectors, and which loads their user performs itself."""

from __future__ import annotations

from tilewright.dtypes import boolean
from tilewright.lang import ir
from tilewright.lang.functions import BINARY_FUNCTIONS, UNARY_FUNCTIONS

__all__ = ["deferred_loads", "scalar_tiles"]

# Results of these are computed in vectors even if every lane is then broadcast: too dear otherwise.
_VECTOR_ONLY = frozenset(
    ["div", "floordiv", "mod", "dot", "dot2", "pack2", "dot4", *UNARY_FUNCTIONS, *BINARY_FUNCTIONS]
)
_FOLLOW = (
    ir.UNARY | ir.BINARY | ir.COMPARE | {"fma", "where", "cast", "bitcast", "concat", "broadcast"}
)


def uses(fn: ir.Function) -> dict[ir.Value, list[tuple[ir.Op, int]]]:
    """Every (op, operand number) that reads each value."""
    found: dict[ir.Value, list[tuple[ir.Op, int]]] = {}
    for op in fn.body.walk():
        for number, value in enumerate(op.operands):
            found.setdefault(value, []).append((op, number))
    return found


def scalar_tiles(fn: ir.Function) -> frozenset[ir.Value]:
    """Tiles all of whose users want single elements (to broadcast them, mostly).

    Starts from "all" and removes every tile that a user wants as vectors until nothing changes.
    """
    users = uses(fn)
    ties: dict[ir.Value, list[ir.Value]] = {}
    owner: dict[ir.Op, ir.Op] = {}
    chosen: set[ir.Value] = set()
    for op in fn.body.walk():
        for block in op.blocks:
            if block.ops and block.ops[-1].name == "yield":
                owner[block.ops[-1]] = op
        if op.name == "for":
            block = op.blocks[0]
            for initial, carried, final, result in zip(
                op.operands[3:], block.args[1:], block.ops[-1].operands, op.results
            ):
                ties.setdefault(carried, []).append(result)
                ties.setdefault(result, []).append(carried)
                chosen.update(v for v in (carried, result) if _wide(v))
                del initial, final
        if op.name not in _VECTOR_ONLY:
            chosen.update(v for v in op.results if isinstance(v.type, ir.TileType) and _wide(v))
    chosen = {v for v in chosen if users.get(v) or ties.get(v)}
    changed = True
    while changed:
        changed = False
        for value in list(chosen):
            tied = ties.get(value, [])
            keep = all(_as_scalars(op, n, chosen, owner) for op, n in users.get(value, []))
            if not keep or any(t not in chosen for t in tied):
                chosen.discard(value)
                changed = True
    return frozenset(chosen)


def _wide(value: ir.Value) -> bool:
    return bool(value.shape) and value.shape[-1] > 1


def _as_scalars(op: ir.Op, number: int, chosen: set[ir.Value], owner: dict[ir.Op, ir.Op]) -> bool:
    """Whether ``op`` wants its operand ``number`` as scalars."""
    operand = op.operands[number]
    last = operand.shape[-1]
    if op.name == "yield":
        parent = owner.get(op)
        if parent is None or parent.name == "scan_with":
            return False
        target = parent.blocks[0].args[number + 1] if parent.name == "for" else None
        return (target or parent.results[number]) in chosen
    if op.name == "for":
        return op.blocks[0].args[number - 2] in chosen
    if op.name == "store":
        axes = op.attrs["axes"]
        if number == len(op.operands) - 1:
            kind = op.operands[0].type
            assert isinstance(kind, ir.ArrayType)
            return not isinstance(axes[-1], ir.Window) or kind.strides[-1] != 1
        return not isinstance(axes[-1], ir.Gather)
    if op.name == "load":
        return not isinstance(op.attrs["axes"][-1], ir.Gather)
    if op.name in _VECTOR_ONLY or not op.results:
        return False
    result = op.results[0]
    if op.name == "reduce":
        axis = op.attrs["axis"]
        return (
            axis is not None
            and axis % len(operand.shape) != len(operand.shape) - 1
            and (result in chosen)
        )
    if op.name in ("scan", "scan_with"):
        return result in chosen
    if op.name in ("expand_dims", "reshape", "slice") or op.name in _FOLLOW:
        if result.shape and result.shape[-1] == last:
            return result in chosen
        return not _wide(result) or result in chosen
    if op.name == "transpose":
        return result in chosen
    return False


def deferred_loads(fn: ir.Function) -> frozenset[ir.Value]:
    """Loads (and casts of them) whose only user is a ``dot`` that may read memory itself.

    Nothing may be stored between the load and the dot.
    """
    users = uses(fn)
    found: set[ir.Value] = set()

    def visit(block: ir.Block) -> None:
        stores = 0
        when: dict[ir.Value, int] = {}
        for op in block.ops:
            if op.name == "load":
                when[op.result] = stores
            elif op.name == "dot":
                for value in op.operands[:2]:
                    chain = [value]
                    accumulator = op.operands[2].dtype
                    if value.op and value.op.name == "cast" and value.dtype is accumulator:
                        chain.append(value.op.operands[0])
                    source = chain[-1]
                    if (
                        when.get(source) == stores
                        and all(len(users[v]) == 1 for v in chain)
                        and source.dtype is not boolean
                        and not any(isinstance(a, ir.Gather) for a in _axes(source))
                    ):
                        found.update(chain)
            elif op.name == "store" or any(o.name == "store" for b in op.blocks for o in b.walk()):
                stores += 1
            for inner in op.blocks:
                visit(inner)

    visit(fn.body)
    return frozenset(found)


def _axes(value: ir.Value) -> tuple[ir.Axis, ...]:
    assert value.op is not None
    return tuple(value.op.attrs["axes"])

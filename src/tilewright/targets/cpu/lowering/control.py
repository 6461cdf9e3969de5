"""Loops and conditionals: basic blocks whose phis carry tiles in registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.lang import ir
from tilewright.targets.cpu.lowering.context import Context, Handler
from tilewright.targets.cpu.lowering.emit import is_literal, vec
from tilewright.targets.cpu.lowering.tile import Tile, aligned

__all__ = ["HANDLERS", "counted_loop", "lower_block", "phi_types"]


def phi_types(ctx: Context, value: ir.Value) -> list[str]:
    """The LLVM type of each chunk of ``value``."""
    tile = Tile(value.dtype, value.shape, ctx.width(value), ())
    row = [vec(tile.element, w) for w in tile.widths]
    count = 1
    for n in value.shape[:-1]:
        count *= n
    return row * count


def lower_block(ctx: Context, block: ir.Block) -> tuple[ir.Value, ...]:
    """Lower every op; returns the operands of the final ``yield`` (if any)."""
    from tilewright.targets.cpu.lowering import handler_table

    table = handler_table()
    for op in block.ops:
        if op.name == "yield":
            return op.operands
        table[op.name](ctx, op)
    return ()


def counted_loop(
    ctx: Context,
    count: str,
    types: Sequence[str],
    initial: Sequence[str],
    body: Callable[[str, list[str]], Sequence[str]],
) -> list[str]:
    """``for i in range(count)`` with carried operands; returns their final values.

    ``body(i, carried)`` returns the next carried operands. A literal positive ``count`` needs no
    test before the loop.
    """
    em = ctx.em
    head, done = em.label("loop"), em.label("done")
    before = em.block
    known = is_literal(count) and int(count) > 0
    if known:
        em.jump(head)
    else:
        em.branch(em.op(f"icmp sgt i64 {count}, 0"), head, done)
    em.start(head)
    i, i_line = em.phi("i64", "0", before)
    phis = [em.phi(t, v, before) for t, v in zip(types, initial)]
    em.enter()
    nexts = list(body(i, [name for name, _ in phis]))
    em.leave()
    after = em.op(f"add i64 {i}, 1")
    last = em.block
    em.add_incoming(i_line, after, last)
    for (_, line), following in zip(phis, nexts):
        em.add_incoming(line, following, last)
    em.branch(em.op(f"icmp slt i64 {after}, {count}"), head, done)
    em.start(done)
    if known:
        return nexts
    out = []
    for t, first, final in zip(types, initial, nexts):
        name, line = em.phi(t, first, before)
        em.add_incoming(line, final, last)
        out.append(name)
    return out


def _for(ctx: Context, op: ir.Op) -> None:
    em = ctx.em
    block = op.blocks[0]
    lo, hi, step = (ctx.scalar(v) for v in op.operands[:3])
    carried = block.args[1:]
    types: list[str] = []
    initial: list[str] = []
    for value, arg in zip(op.operands[3:], carried):
        types += phi_types(ctx, arg)
        initial += aligned(em, ctx.tile(value), arg.shape, ctx.width(arg))
    head, done = em.label("loop"), em.label("done")
    before = em.block
    known = (
        is_literal(lo) and is_literal(hi) and is_literal(step) and int(lo) < int(hi)
        and int(step) > 0
    )  # fmt: skip
    forward = None if is_literal(step) else em.op(f"icmp sgt i64 {step}, 0")
    if is_literal(step) and int(step) <= 0:
        forward = "false"
    if known:
        em.jump(head)
    else:
        em.branch(_continues(ctx, lo, hi, forward), head, done)
    em.start(head)
    iv, iv_line = em.phi("i64", lo, before)
    phis = [em.phi(t, v, before) for t, v in zip(types, initial)]
    em.enter()
    ctx.set(block.args[0], [iv])
    at = 0
    for arg in carried:
        n = len(phi_types(ctx, arg))
        ctx.set(arg, [name for name, _ in phis[at : at + n]])
        at += n
    nexts: list[str] = []
    for value, arg in zip(lower_block(ctx, block), carried):
        nexts += aligned(em, ctx.tile(value), arg.shape, ctx.width(arg))
    em.leave()
    if ctx.checked or op in ctx.plan.endless:
        after = em.call("llvm.sadd.sat.i64", "i64", [("i64", iv), ("i64", step)])
    else:
        after = em.op(f"add i64 {iv}, {step}")
    last = em.block
    em.add_incoming(iv_line, after, last)
    for (_, line), following in zip(phis, nexts):
        em.add_incoming(line, following, last)
    em.branch(_continues(ctx, after, hi, None), head, done)
    em.start(done)
    finals: list[str] = list(nexts)
    if not known:
        finals = []
        for t, first, final in zip(types, initial, nexts):
            name, line = em.phi(t, first, before)
            em.add_incoming(line, final, last)
            finals.append(name)
    at = 0
    for arg, result in zip(carried, op.results):
        n = len(phi_types(ctx, arg))
        ctx.tiles[result] = Tile(arg.dtype, arg.shape, ctx.width(arg), finals[at : at + n])
        at += n


def _continues(ctx: Context, iv: str, hi: str, forward: str | None) -> str:
    """Whether the loop runs (on) at ``iv``."""
    below = ctx.em.op(f"icmp slt i64 {iv}, {hi}")
    return ctx.em.both(below, forward) or "true"


def _if(ctx: Context, op: ir.Op) -> None:
    em = ctx.em
    yes, no, done = em.label("then"), em.label("else"), em.label("join")
    em.branch(ctx.scalar(op.operands[0]), yes, no)
    ends: list[tuple[str, list[str]]] = []
    for label, block in zip((yes, no), op.blocks):
        em.start(label)
        em.enter()
        values: list[str] = []
        for value, result in zip(lower_block(ctx, block), op.results):
            values += aligned(em, ctx.tile(value), result.shape, ctx.width(result))
        em.leave()
        ends.append((em.block, values))
        em.jump(done)
    em.start(done)
    (yes_block, yes_values), (no_block, no_values) = ends
    at = 0
    for result in op.results:
        vals: list[str] = []
        for type in phi_types(ctx, result):
            name, line = em.phi(type, yes_values[at], yes_block)
            em.add_incoming(line, no_values[at], no_block)
            vals.append(name)
            at += 1
        ctx.set(result, vals)


HANDLERS: dict[str, Handler] = {"for": _for, "if": _if}

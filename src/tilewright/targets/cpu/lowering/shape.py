"""Constants, program ids and movement: what rearranges operands without computing."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tilewright.lang import ir
from tilewright.targets.cpu.lowering.context import Context, Handler
from tilewright.targets.cpu.lowering.emit import literal, reg_type
from tilewright.targets.cpu.lowering.tile import Tile, elements, from_elements, with_width
from tilewright.targets.cpu.lowering.transpose import fits, transposed

__all__ = ["HANDLERS"]


def _constant(ctx: Context, op: ir.Op) -> None:
    result = op.result
    text = literal(op.attrs["value"], result.dtype)
    width = ctx.width(result)
    widths = Tile(result.dtype, result.shape, width, ()).widths
    row = [text if w == 1 else f"splat ({reg_type(result.dtype)} {text})" for w in widths]
    ctx.set(result, row * prod(result.shape[:-1]))


def _program_id(ctx: Context, op: ir.Op) -> None:
    ctx.set(op.result, [ctx.program[op.attrs["axis"]]])


def _num_programs(ctx: Context, op: ir.Op) -> None:
    ctx.set(op.result, [ctx.grid[op.attrs["axis"]]])


def _arange(ctx: Context, op: ir.Op) -> None:
    result = op.result
    widths = Tile(result.dtype, result.shape, ctx.width(result), ()).widths
    vals: list[str] = []
    at = int(op.attrs["start"])
    for w in widths:
        vals.append(ctx.em.iota(w, reg_type(result.dtype), at))
        at += w
    ctx.set(result, vals)


def _broadcast(ctx: Context, op: ir.Op) -> None:
    ctx.set(op.result, ctx.operand(op.operands[0], op.result))


def _reshape(ctx: Context, op: ir.Op) -> None:
    """``reshape`` and ``expand_dims``: the order of elements stays."""
    source, result = ctx.tile(op.operands[0]), op.result
    width = ctx.width(result)
    last = result.shape[-1] if result.shape else 1
    if source.last == last:
        tile = with_width(ctx.em, source, width)
        ctx.set(result, tile.vals)
        return
    # Rows that are whole chunks can be cut or joined without touching lanes.
    lanes = ctx.machine.lanes
    if width > 1 and source.width > 1 and source.last % lanes == 0 and last % lanes == 0:
        ctx.set(result, source.vals)
        return
    if width == 1 and source.width == 1:
        ctx.set(result, source.vals)
        return
    _from_elements(ctx, result, elements(ctx.em, source))


def _from_elements(ctx: Context, result: ir.Value, scalars: Sequence[str]) -> None:
    tile = from_elements(ctx.em, result.dtype, result.shape, ctx.width(result), scalars)
    ctx.set(result, tile.vals)


def _transpose(ctx: Context, op: ir.Op) -> None:
    source, result = ctx.tile(op.operands[0]), op.result
    perm = tuple(op.attrs["perm"])
    rank = len(perm)
    if prod(result.shape) == 0:
        ctx.set(result, [])
        return
    if rank and perm[-1] == rank - 1:
        # Only rows move.
        tile = with_width(ctx.em, source, ctx.width(result))
        rows = tile.rows()
        order = _permuted(source.shape[:-1], perm[:-1])
        ctx.set(result, [v for r in order for v in rows[r]])
        return
    if rank == 2 and fits(ctx, source, ctx.width(result)):
        ctx.set(result, transposed(ctx, source))
        return
    scalars = elements(ctx.em, source)
    order = _permuted(source.shape, perm)
    _from_elements(ctx, result, [scalars[i] for i in order])


def _permuted(shape: tuple[int, ...], perm: tuple[int, ...]) -> list[int]:
    """For each element of the transposed array its row-major position in the source."""
    strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    index = [0]
    for axis in perm:
        index = [i + strides[axis] * k for i in index for k in range(shape[axis])]
    return index


def _slice(ctx: Context, op: ir.Op) -> None:
    source, result = ctx.tile(op.operands[0]), op.result
    starts = tuple(op.attrs["starts"])
    if prod(result.shape) == 0:
        ctx.set(result, [])
        return
    rows = _window_rows(source.shape[:-1], starts[:-1], result.shape[:-1])
    begin, last = starts[-1], result.shape[-1]
    width = ctx.width(result)
    lanes = ctx.machine.lanes
    source_rows = source.rows()
    vals: list[str] = []
    for r in rows:
        row = source_rows[r]
        if source.width == 1:
            part = Tile(source.dtype, (last,), 1, row[begin : begin + last])
            vals += with_width(ctx.em, part, width).vals
        elif width > 1 and begin % lanes == 0:
            vals += _cut_vector(ctx, source, row, begin // lanes, last)
        else:
            scalars = elements(ctx.em, Tile(source.dtype, (source.last,), source.width, row))
            part = Tile(source.dtype, (last,), 1, scalars[begin : begin + last])
            vals += with_width(ctx.em, part, width).vals
    ctx.set(result, vals)


def _cut_vector(ctx: Context, source: Tile, row: Sequence[str], first: int, last: int) -> list[str]:
    """``last`` elements from chunk ``first`` on; the final chunk may lose lanes."""
    lanes = ctx.machine.lanes
    out: list[str] = []
    at = 0
    chunk = first
    while at < last:
        want = min(lanes, last - at)
        have = source.widths[chunk]
        value = row[chunk]
        if want == 1:
            value = ctx.em.extract(source.element, value, have, 0)
        elif want < have:
            value = ctx.em.shuffle(source.element, have, value, "poison", range(want))
        out.append(value)
        at += want
        chunk += 1
    return out


def _window_rows(
    shape: tuple[int, ...], starts: tuple[int, ...], sizes: tuple[int, ...]
) -> list[int]:
    index = [0]
    for axis, (start, size) in enumerate(zip(starts, sizes)):
        stride = prod(shape[axis + 1 :])
        index = [i + stride * (start + k) for i in index for k in range(size)]
    return index


def _concat(ctx: Context, op: ir.Op) -> None:
    result = op.result
    rank = len(result.shape)
    axis = op.attrs["axis"] % rank
    width = ctx.width(result)
    parts = [ctx.tile(v) for v in op.operands]
    if axis < rank - 1:
        tiles = [with_width(ctx.em, p, width) for p in parts]
        chunks = len(Tile(result.dtype, result.shape, width, ()).widths)
        inner = prod(result.shape[axis + 1 : -1]) * chunks
        outer = prod(result.shape[:axis])
        vals: list[str] = []
        for o in range(outer):
            for t in tiles:
                n = t.shape[axis] * inner
                vals += t.vals[o * n : (o + 1) * n]
        ctx.set(result, vals)
        return
    lanes = ctx.machine.lanes
    whole = width > 1 and all(
        (p.width > 1 and p.last % lanes == 0) or p.last == 0 for p in parts[:-1]
    )
    if whole:
        tiles = [with_width(ctx.em, p, width) for p in parts]
        rows = [t.rows() for t in tiles]
        ctx.set(result, [v for r in range(len(rows[0])) for part in rows for v in part[r]])
        return
    lists = [elements(ctx.em, p) for p in parts]
    scalars: list[str] = []
    for r in range(prod(result.shape[:-1])):
        for p, values in zip(parts, lists):
            scalars += values[r * p.last : (r + 1) * p.last]
    _from_elements(ctx, result, scalars)


HANDLERS: dict[str, Handler] = {
    "constant": _constant,
    "program_id": _program_id,
    "num_programs": _num_programs,
    "arange": _arange,
    "broadcast": _broadcast,
    "reshape": _reshape,
    "expand_dims": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "concat": _concat,
}

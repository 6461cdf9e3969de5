"""Reductions and scans.

The order of a reduction depends only on the length of the reduced axis and the machine's lanes,
wherever that axis stands: elements ``l, l + lanes, l + 2 * lanes, ...`` are combined in ascending
order into partial ``l``, then the partials are folded in halves, ``l`` with ``l + h`` for
``h = lanes/2, lanes/4, ...`` (a shorter axis starts at the next power of two and skips what is
missing). Scans go through their axis one element after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from tilewright.dtypes import DType, bf16, f16, f32
from tilewright.lang import ir
from tilewright.targets.cpu.lowering import arith
from tilewright.targets.cpu.lowering.context import Context, Handler, refuse
from tilewright.targets.cpu.lowering.control import lower_block
from tilewright.targets.cpu.lowering.emit import literal, reg_type, vec
from tilewright.targets.cpu.lowering.tile import Tile, elements, from_elements, with_width

__all__ = ["HANDLERS"]

_COMBINE = {
    "sum": "add", "prod": "mul", "max": "max", "min": "min", "any": "or", "all": "and",
}  # fmt: skip


# What may stand in a combining block for several lanes at once.
_LANEWISE = (
    ir.UNARY | ir.BINARY | ir.COMPARE | {"fma", "where", "cast", "bitcast", "constant", "yield"}
)


@dataclass(frozen=True)
class _Item:
    """What is being folded: one operand, or a value with its index (argmax)."""

    value: str
    index: str = ""


def _combine(ctx: Context, fn: str, dtype: DType, index: str, a: _Item, b: _Item, w: int) -> _Item:
    em = ctx.em
    if fn in _COMBINE:
        return _Item(arith.binary(ctx, _COMBINE[fn], dtype, a.value, b.value, w))
    # b replaces a if it is better, or as good and earlier. NaN is better than any number.
    flag = vec("i1", w)
    better = arith.compare(ctx, "gt" if fn == "argmax" else "lt", dtype, b.value, a.value, w)
    same = arith.compare(ctx, "eq", dtype, b.value, a.value, w)
    if dtype.is_float:
        a_nan = arith.compare(ctx, "ne", dtype, a.value, a.value, w)
        b_nan = arith.compare(ctx, "ne", dtype, b.value, b.value, w)
        a_number = em.op(f"xor {flag} {a_nan}, {_true(w)}")
        first_nan = em.op(f"and {flag} {b_nan}, {a_number}")
        better = em.op(f"or {flag} {better}, {first_nan}")
        both_nan = em.op(f"and {flag} {b_nan}, {a_nan}")
        same = em.op(f"or {flag} {same}, {both_nan}")
    earlier = em.op(f"icmp slt {vec(index, w)} {b.index}, {a.index}")
    tie = em.op(f"and {flag} {same}, {earlier}")
    take = em.op(f"or {flag} {better}, {tie}")
    value_type, index_type = vec(reg_type(dtype), w), vec(index, w)
    value = em.op(f"select {flag} {take}, {value_type} {b.value}, {value_type} {a.value}")
    place = em.op(f"select {flag} {take}, {index_type} {b.index}, {index_type} {a.index}")
    return _Item(value, place)


def _true(width: int) -> str:
    return "true" if width == 1 else "splat (i1 true)"


def fold(
    count: int, lanes: int, items: Sequence[_Item], join: Callable[[_Item, _Item], _Item]
) -> _Item:
    """Fold ``items`` (one per element of the reduced axis) in the documented order."""
    partial = list(items[:lanes])
    for at in range(lanes, count):
        partial[at % lanes] = join(partial[at % lanes], items[at])
    half = 1
    while half < len(partial):
        half *= 2
    while half > 1:
        half //= 2
        for lane in range(half):
            if lane + half < len(partial):
                partial[lane] = join(partial[lane], partial[lane + half])
        partial = partial[:half]
    return partial[0]


def _reduce(ctx: Context, op: ir.Op) -> None:
    em = ctx.em
    source, result = ctx.tile(op.operands[0]), op.result
    fn: str = op.attrs["fn"]
    axis: int | None = op.attrs["axis"]
    if axis is None:
        flat = (prod(source.shape),)
        source = _flatten(ctx, source, flat)
        axis = 0
    rank = len(source.shape)
    axis %= rank
    count = source.shape[axis]
    if count == 0:
        _empty(ctx, op, fn)
        return
    if prod(source.shape) == 0:
        ctx.set(result, [])
        return
    if fn in ("sum", "prod") and source.dtype in (f16, bf16) and count > 1:
        # Sixteen-bit sums are rounded once, at the end.
        source = arith.cast_tile(ctx, source, f32)
    index = reg_type(result.dtype) if fn not in _COMBINE else "i64"
    if axis == rank - 1:
        scalars = _reduce_lanes(ctx, source, fn, index)
        dtype = source.dtype if fn in _COMBINE else result.dtype
        out = from_elements(em, dtype, result.shape, ctx.width(result), scalars)
        ctx.set(result, arith.cast_tile(ctx, out, result.dtype).vals)
        return
    # Rows are combined with each other; lanes never meet.
    dtype = source.dtype
    rows = source.rows()
    inner = prod(source.shape[axis + 1 : -1])
    vals: list[str] = []
    for outer in range(prod(source.shape[:axis])):
        for i in range(inner):
            chosen = [rows[(outer * count + k) * inner + i] for k in range(count)]
            for c, w in enumerate(source.widths):
                items = [_Item(row[c], literal_splat(index, k, w)) for k, row in enumerate(chosen)]

                def join(a: _Item, b: _Item, w: int = w) -> _Item:
                    return _combine(ctx, fn, dtype, index, a, b, w)

                best = fold(count, ctx.machine.lanes, items, join)
                vals.append(best.value if fn in _COMBINE else best.index)
    kind = dtype if fn in _COMBINE else result.dtype
    tile = arith.cast_tile(ctx, Tile(kind, result.shape, source.width, vals), result.dtype)
    ctx.set(result, with_width(em, tile, ctx.width(result)).vals)


def literal_splat(element: str, value: int, width: int) -> str:
    return str(value) if width == 1 else f"splat ({element} {value})"


def _reduce_lanes(ctx: Context, source: Tile, fn: str, index: str) -> list[str]:
    """Reduce the last axis: one scalar per row."""
    em = ctx.em
    dtype, element = source.dtype, source.element
    lanes = ctx.machine.lanes
    out: list[str] = []
    for row in source.rows():
        if source.width == 1:
            items = [_Item(v, str(k)) for k, v in enumerate(row)]
            best = fold(
                len(row), lanes, items, lambda a, b: _combine(ctx, fn, dtype, index, a, b, 1)
            )
            out.append(best.value if fn in _COMBINE else best.index)
            continue
        widths = source.widths
        total = _Item(row[0], em.iota(widths[0], index))
        width = widths[0]
        for k, w in enumerate(widths[1:], 1):
            part = _Item(row[k], em.iota(w, index, k * lanes))
            total = _join_prefix(ctx, fn, dtype, index, total, width, part, w)
        half = 1
        while half < width:
            half *= 2
        while width > 1:
            half //= 2
            low = _lanes(ctx, element, index, total, width, 0, half)
            high = _lanes(ctx, element, index, total, width, half, width)
            total = _join_prefix(ctx, fn, dtype, index, low, half, high, width - half)
            width = half
        out.append(total.value if fn in _COMBINE else total.index)
    return out


def _lanes(
    ctx: Context, element: str, index: str, item: _Item, width: int, begin: int, end: int
) -> _Item:
    def cut(type: str, value: str) -> str:
        if not value:
            return ""
        if end - begin == 1:
            return ctx.em.extract(type, value, width, begin)
        return ctx.em.shuffle(type, width, value, "poison", range(begin, end))

    return _Item(cut(element, item.value), cut(index, item.index))


def _join_prefix(
    ctx: Context, fn: str, dtype: DType, index: str, a: _Item, wide: int, b: _Item, narrow: int
) -> _Item:
    """Combine ``b`` into the first ``narrow`` lanes of ``a``."""
    if narrow == wide:
        return _combine(ctx, fn, dtype, index, a, b, wide)
    element = reg_type(dtype)
    head = _lanes(ctx, element, index, a, wide, 0, narrow)
    joined = _combine(ctx, fn, dtype, index, head, b, narrow)

    def put(type: str, whole: str, part: str) -> str:
        if not whole:
            return ""
        em = ctx.em
        if narrow == 1:
            return em.op(f"insertelement {vec(type, wide)} {whole}, {type} {part}, i64 0")
        lanes = [*range(narrow), *([-1] * (wide - narrow))]
        padded = em.shuffle(type, narrow, part, "poison", lanes)
        pick = [*range(wide, wide + narrow), *range(narrow, wide)]
        return em.shuffle(type, wide, whole, padded, pick)

    return _Item(
        put(element, a.value, joined.value),
        put(index, a.index, joined.index) if fn not in _COMBINE else "",
    )


def _flatten(ctx: Context, source: Tile, shape: tuple[int, ...]) -> Tile:
    if source.shape == ():
        return Tile(source.dtype, (1,), 1, source.vals)
    lanes = ctx.machine.lanes
    if source.width > 1 and source.last % lanes == 0:
        return Tile(source.dtype, shape, source.width, source.vals)
    if len(source.shape) == 1:
        return source
    return from_elements(ctx.em, source.dtype, shape, lanes, elements(ctx.em, source))


def _empty(ctx: Context, op: ir.Op, fn: str) -> None:
    identity: dict[str, int] = {"sum": 0, "prod": 1, "any": 0, "all": 1}
    if fn not in identity:
        raise refuse(op, f"{fn} of an axis without elements has no value")
    result = op.result
    text = literal(identity[fn], result.dtype)
    ones = [text] * prod(result.shape)
    tile = from_elements(ctx.em, result.dtype, result.shape, ctx.width(result), ones)
    ctx.set(result, tile.vals)


# --- scans ---


def _scan_axis(
    ctx: Context,
    sources: Sequence[Tile],
    results: Sequence[ir.Value],
    axis: int,
    reverse: bool,
    step: Callable[[Sequence[str], Sequence[str], int], Sequence[str]],
    vector: bool = True,
) -> None:
    """Inclusive scan of several tiles of one shape at once."""
    shape = sources[0].shape
    axis %= len(shape)
    if prod(shape) == 0:
        for result in results:
            ctx.set(result, [])
        return
    last = axis == len(shape) - 1
    width = 1 if last or not vector else ctx.width(results[0])
    cut = [with_width(ctx.em, s, width) for s in sources]
    widths = cut[0].widths
    count = shape[axis]
    # Operands along the axis are `stride` apart in the list of chunks.
    stride = 1 if last else prod(shape[axis + 1 : -1]) * len(widths)
    outs: list[list[str]] = [[""] * len(cut[0].vals) for _ in sources]
    order = range(count - 1, -1, -1) if reverse else range(count)
    for outer in range(prod(shape[:axis])):
        for inner in range(stride):
            w = 1 if last else widths[inner % len(widths)]
            running: Sequence[str] = ()
            for k in order:
                at = (outer * count + k) * stride + inner
                here = [c.vals[at] for c in cut]
                running = step(running, here, w) if running else here
                for out, value in zip(outs, running):
                    out[at] = value
    for result, out in zip(results, outs):
        tile = Tile(result.dtype, shape, width, out)
        ctx.set(result, with_width(ctx.em, tile, ctx.width(result)).vals)


def _scan(ctx: Context, op: ir.Op) -> None:
    fn = _COMBINE.get(op.attrs["fn"])
    if fn is None:
        raise refuse(op, f"no scan called {op.attrs['fn']!r}; known: {', '.join(_COMBINE)}")
    source = ctx.tile(op.operands[0])
    dtype = op.result.dtype

    def step(running: Sequence[str], here: Sequence[str], w: int) -> Sequence[str]:
        return [arith.binary(ctx, fn, dtype, running[0], here[0], w)]

    _scan_axis(ctx, [source], op.results, op.attrs["axis"], bool(op.attrs.get("reverse")), step)


def _scan_with(ctx: Context, op: ir.Op) -> None:
    block = op.blocks[0]
    axis = op.attrs["axis"] % len(op.operands[0].shape)

    def step(running: Sequence[str], here: Sequence[str], w: int) -> Sequence[str]:
        for arg, value in zip(block.args, [*running, *here]):
            ctx.tiles[arg] = Tile(arg.dtype, (), w, [value])
        ctx.block_width = w
        values = lower_block(ctx, block)
        out = ctx.lanes(values, w)
        ctx.block_width = 1
        return out

    sources = [ctx.tile(v) for v in op.operands]
    if any(o.name not in _LANEWISE for o in block.walk()):
        last = [Tile(s.dtype, s.shape, 1, elements(ctx.em, s)) for s in sources]
        sources = last
    reverse = bool(op.attrs.get("reverse"))
    vector = axis < len(op.operands[0].shape) - 1 and sources[0].width > 1
    _scan_axis(ctx, sources, op.results, axis, reverse, step, vector)


HANDLERS: dict[str, Handler] = {"reduce": _reduce, "scan": _scan, "scan_with": _scan_with}

"""Kernels that gather and scatter along axes.

Reads from where no element is give zero, writes to there vanish: the accesses of the kernel
language are total. Scatters set (add, ...) the updates in ascending order of their position, one
program instance per piece of the *output*, so the result does not depend on the threads.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False

from __future__ import annotations

import math
from typing import Any

from tilewright.lang import Array, Const, arange, maximum, minimum, program_id, unroll
from tilewright.ops.calls import KernelCall
from tilewright.ops.layout_kernels import (
    as_bits,
    block_for,
    divide,
    merge_axes,
    product,
    relaid,
    rows_per_program,
    unravel,
)
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel
from tilewright.sizes import hint

__all__ = [
    "gather_nd_calls",
    "scatter_along_calls",
    "scatter_calls",
    "scatter_nd_calls",
    "take_along_calls",
    "take_calls",
]

_SPAN = 1024  # columns of a gather that one program instance takes, at most
_PARTS = 8  # pieces that a scatter's output is cut into when its columns are too few


# --- gathers -------------------------------------------------------------------------------------


@kernel
def take_rows_kernel(
    x: Array, ids: Array, out: Array, O: Const, K: Const, ROWS: Const, SPAN: Const, BLOCK: Const
):
    """``out[o.., k.., i..] = x[o.., ids[k..], i..]``, windows along the last axis.

    ``O`` and ``K`` count the leading axes of x and the axes of ids.
    """
    lead = out.shape[:-1]
    start = program_id(0) * SPAN
    stop = minimum(start + SPAN, out.shape[-1])
    first = program_id(1) * ROWS
    for r in range(first, minimum(first + ROWS, product(lead))):
        at = unravel(r, lead)
        row = ids[*at[O : O + K]]
        for j in range(start, stop, BLOCK):
            out[*at, j : j + BLOCK] = x[*at[:O], row, *at[O + K :], j : j + BLOCK]


@kernel
def take_lanes_kernel(
    x: Array, ids: Array, out: Array, O: Const, ROWS: Const, SPAN: Const, BLOCK: Const
):
    """``out[o.., k..] = x[o.., ids[k..]]``, windows along the last axis of ids."""
    lead = out.shape[:-1]
    start = program_id(0) * SPAN
    stop = minimum(start + SPAN, out.shape[-1])
    first = program_id(1) * ROWS
    for r in range(first, minimum(first + ROWS, product(lead))):
        at = unravel(r, lead)
        for j in range(start, stop, BLOCK):
            out[*at, j : j + BLOCK] = x[*at[:O], ids[*at[O:], j : j + BLOCK]]


@kernel
def take_along_kernel(
    x: Array, ids: Array, out: Array, AXIS: Const, ROWS: Const, SPAN: Const, BLOCK: Const
):
    """``out[o.., k, i..] = x[o.., ids[o.., k, i..], i..]``; ``AXIS`` is the place of k."""
    lead = out.shape[:-1]
    start = program_id(0) * SPAN
    stop = minimum(start + SPAN, out.shape[-1])
    first = program_id(1) * ROWS
    for r in range(first, minimum(first + ROWS, product(lead))):
        at = unravel(r, lead)
        for j in range(start, stop, BLOCK):
            where = ids[*at, j : j + BLOCK]
            if out.ndim - 1 == AXIS:
                out[*at, j : j + BLOCK] = x[*at, where]
            else:
                lanes = j + arange(BLOCK)
                out[*at, j : j + BLOCK] = x[*at[:AXIS], where, *at[AXIS + 1 :], lanes]


@kernel
def gather_nd_kernel(
    x: Array,
    ids: Array,
    out: Array,
    N: Const,
    K: Const,
    LANES: Const,
    ROWS: Const,
    SPAN: Const,
    BLOCK: Const,
):
    """``out[k.., i..] = x[ids[k.., 0], .., ids[k.., N - 1], i..]``.

    ``K`` counts the axes k; ``LANES``: there are no axes i, windows run along the last k.
    """
    lead = out.shape[:-1]
    start = program_id(0) * SPAN
    stop = minimum(start + SPAN, out.shape[-1])
    first = program_id(1) * ROWS
    for r in range(first, minimum(first + ROWS, product(lead))):
        at = unravel(r, lead)
        if LANES:
            for j in range(start, stop, BLOCK):
                index = ids.shape[:0]
                for c in unroll(N):
                    index = (*index, ids[*at, j : j + BLOCK, c])
                out[*at, j : j + BLOCK] = x[*index]
        else:
            index = ids.shape[:0]
            for c in unroll(N):
                index = (*index, ids[*at[:K], c])
            for j in range(start, stop, BLOCK):
                out[*at, j : j + BLOCK] = x[*index, *at[K:], j : j + BLOCK]


def _launch(kernel: Any, args: tuple[Buffer, ...], out: Buffer, **consts: Any) -> list[KernelCall]:
    """``kernel`` over the rows (all axes but the last) of ``out``."""
    *lead, width = out.shape
    rows = math.prod(lead)
    if not rows * width:
        return []
    span = _SPAN if hint(rows) > 8 else 1 << 14
    per = rows_per_program(rows, width, 1 << 13)
    sizes = {"ROWS": per, "SPAN": span, "BLOCK": block_for(width, 64)}
    grid = (divide(width, span), divide(rows, per))
    return [KernelCall(kernel, grid, (*args, out), {**consts, **sizes})]


def take_calls(x: Buffer, ids: Buffer, out: Buffer, axis: int) -> list[KernelCall]:
    """``out = x.take(ids, axis)``; an id that is not there reads zero."""
    x, out = as_bits(x), as_bits(out)
    last = axis + ids.ndim
    outer = merge_axes(x.shape[:axis], x.strides[:axis], out.strides[:axis])
    inner = merge_axes(x.shape[axis + 1 :], x.strides[axis + 1 :], out.strides[last:])
    middle = merge_axes(ids.shape, ids.strides, out.strides[axis:last])
    along = (x.shape[axis : axis + 1], x.strides[axis : axis + 1])
    if not inner[0]:
        middle = _some(middle)
    ids = relaid(ids, *_side(0, _some(middle)))
    x = relaid(x, *_side(0, outer), along, *_side(0, inner))
    out = relaid(out, *_side(1, outer, _some(middle), inner))
    if inner[0]:
        consts = {"O": len(outer[0]), "K": ids.ndim}
        return _launch(take_rows_kernel, (x, ids), out, **consts)
    return _launch(take_lanes_kernel, (x, ids), out, O=len(outer[0]))


Merged = tuple[tuple[int, ...], list[tuple[int, ...]]]


def _some(axes: Merged) -> Merged:
    """At least one axis."""
    sizes, strides = axes
    return axes if sizes else ((1,), [(1,)] * len(strides))


def _side(which: int, *groups: Merged) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Sizes and strides of array ``which`` for each group of merged axes."""
    return [(sizes, strides[which]) for sizes, strides in groups]


def take_along_calls(x: Buffer, ids: Buffer, out: Buffer, axis: int) -> list[KernelCall]:
    """``out = take_along_axis(x, ids, axis)``: the other axes of x and ids are equal."""
    x, out = as_bits(x), as_bits(out)
    outer, inner = _around(axis, x, ids, out)
    one = slice(axis, axis + 1)
    x, ids, out = (
        relaid(a, *_side(i, outer), (a.shape[one], a.strides[one]), *_side(i, inner))
        for i, a in enumerate((x, ids, out))
    )
    return _launch(take_along_kernel, (x, ids), out, AXIS=len(outer[0]))


def _around(axis: int, *arrays: Buffer) -> tuple[Merged, Merged]:
    """The axes before and after ``axis``, merged; they have one size in all arrays."""
    shape = arrays[0].shape
    outer = merge_axes(shape[:axis], *(a.strides[:axis] for a in arrays))
    inner = merge_axes(shape[axis + 1 :], *(a.strides[axis + 1 :] for a in arrays))
    return outer, inner


def gather_nd_calls(x: Buffer, ids: Buffer, out: Buffer) -> list[KernelCall]:
    """``out[k.., i..] = x[*ids[k..], i..]``: ids (K.., n) name elements of the first n axes."""
    x, out = as_bits(x), as_bits(out)
    n = ids.shape[-1]
    k, middle, inner = _nd_axes(x, ids, out)
    lanes = not inner[0]
    if lanes:
        k = _some(k)
    x = relaid(x, (x.shape[:n], x.strides[:n]), *_side(0, inner))
    ids = relaid(ids, *_side(0, k), middle)
    out = relaid(out, *_side(1, k, inner))
    return _launch(gather_nd_kernel, (x, ids), out, N=n, K=len(k[0]), LANES=lanes)


def _nd_axes(
    x: Buffer, ids: Buffer, rows: Buffer
) -> tuple[Merged, tuple[tuple[int, ...], tuple[int, ...]], Merged]:
    """Axes of ids and rows; the last axis of ids; the axes of x and rows that are windows."""
    n, many = ids.shape[-1], ids.ndim - 1
    k = merge_axes(ids.shape[:-1], ids.strides[:-1], rows.strides[:many])
    inner = merge_axes(x.shape[n:], x.strides[n:], rows.strides[many:])
    return k, (ids.shape[-1:], ids.strides[-1:]), inner


# --- scatters ------------------------------------------------------------------------------------


def joined(old, new, MODE):
    """Inline: an element and an update of it."""
    result = new
    if MODE == "add":
        result = old + new
    elif MODE == "mul":
        result = old * new
    elif MODE == "max":
        result = maximum(old, new)
    elif MODE == "min":
        result = minimum(old, new)
    return result


@kernel
def scatter_rows_kernel(
    ids: Array,
    updates: Array,
    out: Array,
    O: Const,
    K: Const,
    MODE: Const,
    PART: Const,
    SPAN: Const,
    BLOCK: Const,
):
    """``out[o.., ids[k..], i..] += updates[o.., k.., i..]`` (``MODE``), k ascending.

    An instance owns SPAN columns, one index (o.., all i but the last), and PART rows.
    """
    start = program_id(0) * SPAN
    stop = minimum(start + SPAN, out.shape[-1])
    others = (*out.shape[:O], *out.shape[O + 1 : out.ndim - 1])
    at = unravel(program_id(1), others)
    low = program_id(2) * PART
    high = minimum(low + PART, out.shape[O])
    many = ids.shape[:]
    for n in range(product(many)):
        k = unravel(n, many)
        row = ids[*k]
        if (row >= low) & (row < high):
            for j in range(start, stop, BLOCK):
                value = updates[*at[:O], *k, *at[O:], j : j + BLOCK]
                if MODE != "set":
                    value = joined(out[*at[:O], row, *at[O:], j : j + BLOCK], value, MODE)
                out[*at[:O], row, *at[O:], j : j + BLOCK] = value.to(out.dtype)


@kernel
def scatter_along_kernel(
    ids: Array,
    updates: Array,
    out: Array,
    AXIS: Const,
    MODE: Const,
    PART: Const,
    BLOCK: Const,
):
    """``out[o.., ids[o.., k, i..], i..] += updates[o.., k, i..]`` (``MODE``), k ascending.

    With i: an instance owns BLOCK columns of one index (o.., all i but the last). Without: one
    index o and PART elements.
    """
    if out.ndim - 1 == AXIS:
        at = unravel(program_id(1), out.shape[:-1])
        low = program_id(2) * PART
        high = minimum(low + PART, out.shape[AXIS])
        for k in range(ids.shape[AXIS]):
            place = ids[*at, k]
            if (place >= low) & (place < high):
                value = updates[*at, k]
                if MODE != "set":
                    value = joined(out[*at, place], value, MODE)
                out[*at, place] = value.to(out.dtype)
    else:
        j = program_id(0) * BLOCK
        lanes = j + arange(BLOCK)
        at = unravel(program_id(1), (*out.shape[:AXIS], *out.shape[AXIS + 1 : out.ndim - 1]))
        for k in range(ids.shape[AXIS]):
            place = ids[*at[:AXIS], k, *at[AXIS:], j : j + BLOCK]
            value = updates[*at[:AXIS], k, *at[AXIS:], j : j + BLOCK]
            if MODE != "set":
                value = joined(out[*at[:AXIS], place, *at[AXIS:], lanes], value, MODE)
            out[*at[:AXIS], place, *at[AXIS:], lanes] = value.to(out.dtype)


@kernel
def scatter_nd_kernel(
    ids: Array,
    updates: Array,
    out: Array,
    N: Const,
    K: Const,
    MODE: Const,
    PART: Const,
    SPAN: Const,
    BLOCK: Const,
):
    """``out[ids[k.., 0], .., ids[k.., N - 1], i..] += updates[k.., i..]`` (``MODE``), k ascending.

    An instance owns SPAN columns, one index (all i but the last), and PART of the first axis.
    """
    start = program_id(0) * SPAN
    stop = minimum(start + SPAN, out.shape[-1])
    at = unravel(program_id(1), out.shape[N : out.ndim - 1])
    low = program_id(2) * PART
    high = minimum(low + PART, out.shape[0])
    many = ids.shape[:K]
    for n in range(product(many)):
        k = unravel(n, many)
        place = ids[*k, 0]
        if (place >= low) & (place < high):
            index = (*ids.shape[:0], place)
            for c in unroll(1, N):
                index = (*index, ids[*k, c])
            for j in range(start, stop, BLOCK):
                value = updates[*k, *at, j : j + BLOCK]
                if MODE != "set":
                    value = joined(out[*index, *at, j : j + BLOCK], value, MODE)
                out[*index, *at, j : j + BLOCK] = value.to(out.dtype)


def _parts(n: int, programs: int, updates: int, span: int) -> int:
    """How many of ``n`` rows an instance owns when ``programs`` instances share all columns.

    Every instance reads all ids, so a scatter of few updates or of short rows is not cut.
    """
    n, programs, updates = hint(n), hint(programs), hint(updates)
    pieces = 1 if updates < 1024 or span < 32 else max(1, min(_PARTS // programs, n))
    return max(1, divide(n, pieces))


def scatter_calls(
    ids: Buffer, updates: Buffer, out: Buffer, axis: int, mode: str
) -> list[KernelCall]:
    """``out[.., ids[k..], ..] += updates[.., k.., ..]`` along ``axis``; ids outside are skipped."""
    if not updates.size * out.size:
        return []
    if mode == "set":
        updates, out = as_bits(updates), as_bits(out)
    last = axis + ids.ndim
    outer = merge_axes(out.shape[:axis], out.strides[:axis], updates.strides[:axis])
    inner = _some(
        merge_axes(out.shape[axis + 1 :], out.strides[axis + 1 :], updates.strides[last:])
    )
    middle = _some(merge_axes(ids.shape, ids.strides, updates.strides[axis:last]))
    n = out.shape[axis]
    along = ((n,), out.strides[axis : axis + 1])
    ids = relaid(ids, *_side(0, middle))
    updates = relaid(updates, *_side(1, outer, middle, inner))
    out = relaid(out, *_side(0, outer), along, *_side(0, inner))
    width = out.shape[-1]
    block = block_for(width, 64)
    span = 4 * block
    others = math.prod(outer[0]) * math.prod(inner[0][:-1])
    part = _parts(n, divide(width, span) * others, ids.size, span)
    consts = {"O": len(outer[0]), "K": ids.ndim, "MODE": mode, "PART": part, "SPAN": span}
    grid = (divide(width, span), others, divide(n, part))
    args = (ids, updates, out)
    return [KernelCall(scatter_rows_kernel, grid, args, {**consts, "BLOCK": block})]


def scatter_along_calls(
    ids: Buffer, updates: Buffer, out: Buffer, axis: int, mode: str
) -> list[KernelCall]:
    """``out[o.., ids[o.., k, i..], i..] += updates[o.., k, i..]`` with k at ``axis``."""
    if not updates.size * out.size:
        return []
    if mode == "set":
        updates, out = as_bits(updates), as_bits(out)
    outer, inner = _around(axis, out, ids, updates)
    one = slice(axis, axis + 1)
    out, ids, updates = (
        relaid(a, *_side(i, outer), (a.shape[one], a.strides[one]), *_side(i, inner))
        for i, a in enumerate((out, ids, updates))
    )
    width = inner[0][-1] if inner[0] else 1
    block = block_for(width, 64)
    others = math.prod(outer[0]) * math.prod(inner[0][:-1])
    n = out.shape[len(outer[0])]
    part = n if inner[0] else _parts(n, others, ids.size, 1)
    consts = {"AXIS": len(outer[0]), "MODE": mode, "PART": part, "BLOCK": block}
    grid = (divide(width, block), others, divide(n, part))
    return [KernelCall(scatter_along_kernel, grid, (ids, updates, out), consts)]


def scatter_nd_calls(ids: Buffer, updates: Buffer, out: Buffer, mode: str) -> list[KernelCall]:
    """``out[*ids[k..], i..] += updates[k.., i..]``: ids (K.., n), n at least 1."""
    if not updates.size * out.size:
        return []
    if mode == "set":
        updates, out = as_bits(updates), as_bits(out)
    n = ids.shape[-1]
    k, middle, inner = _nd_axes(out, ids, updates)
    k, inner = _some(k), _some(inner)
    ids = relaid(ids, *_side(0, k), middle)
    updates = relaid(updates, *_side(1, k, inner))
    out = relaid(out, (out.shape[:n], out.strides[:n]), *_side(0, inner))
    width = out.shape[-1]
    block = block_for(width, 64)
    span = 4 * block
    others = math.prod(inner[0][:-1])
    part = _parts(out.shape[0], divide(width, span) * others, math.prod(k[0]), span)
    consts = {"N": n, "K": len(k[0]), "MODE": mode, "PART": part, "SPAN": span, "BLOCK": block}
    grid = (divide(width, span), others, divide(out.shape[0], part))
    return [KernelCall(scatter_nd_kernel, grid, (ids, updates, out), consts)]

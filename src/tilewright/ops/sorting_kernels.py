"""Kernels that sort: ranks for short rows, radix sort for the others, and binary search.

Every dtype is mapped to unsigned integers of the same order (:func:`sortable`), NaN above
everything, -0.0 equal to 0.0. Rows of up to 64 elements are sorted by counting, for each element,
how many come before it. Longer ones take a least-significant-digit radix sort, eight bits a pass:
stable, without comparisons, the same result for any number of threads.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from tilewright.dtypes import DType
from tilewright.graph import Shape
from tilewright.lang import (
    Array,
    Const,
    any,
    arange,
    bitcast,
    boolean,
    i32,
    i64,
    isnan,
    minimum,
    program_id,
    range,
    scratch,
    sum,
    u16,
    u32,
    u64,
    unroll,
    where,
    zeros,
)
from tilewright.ops.calls import KernelCall
from tilewright.ops.layout_kernels import (
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
from tilewright.sizes import has_value, hint

__all__ = ["argsort_calls", "argsort_workspace", "searchsorted_calls", "sortable"]

_SHORT: Final = 64  # rows up to here are sorted by ranks
_SLOTS: Final = 32  # rows that are in work at the same time, each with memory of its own
_FEW: Final = 8  # the k-th part of a row, from which on its first elements are selected
_GROUP: Final = 16


def sortable(x, descending):
    """Inline: ``x`` as u32 (u64 for 64-bit dtypes) whose order is that of ``x``."""
    kind = x.dtype
    if kind.bits == 64:
        wide = u64
    else:
        wide = u32
    ones = (1 << min(kind.bits, 64)) - 1
    if kind.is_float:
        if kind.bits == 64:
            bits = bitcast(where(x == 0.0, 0.0, x), u64)
        elif kind.bits == 32:
            bits = bitcast(where(x == 0.0, 0.0, x), u32)
        else:
            bits = bitcast(x, u16).to(u32)
            bits = where(bits == 0x8000, 0, bits)
        top = 1 << (kind.bits - 1)
        key = where(bits >= top, bits ^ ones, bits ^ top)
        key = where(isnan(x), ones, key)
    elif kind is boolean:
        key = x.to(u32)
    elif kind.kind == "i":
        key = (x.to(i64 if kind.bits == 64 else i32)).to(wide)
        key = (key + (1 << (kind.bits - 1))) & ones
    else:
        key = x.to(wide)
    if descending:
        key = key ^ ones
    return key


# --- short rows ----------------------------------------------------------------------------------


@kernel
def rank_kernel(x: Array, order: Array, DESCENDING: Const, ROWS: Const, BLOCK: Const):
    """``order[r.., i]``: the index of the i-th element of row r; up to BLOCK columns.

    ``order`` may be shorter than the rows of x: the first places then.
    """
    lead = order.shape[:-1]
    n = x.shape[-1]
    first = program_id(0) * ROWS
    places = arange(BLOCK)
    for r in range(first, minimum(first + ROWS, product(lead))):
        at = unravel(r, lead)
        keys = sortable(x[*at, 0:BLOCK], DESCENDING)
        for i in range(n):
            key = sortable(x[*at, i], DESCENDING)
            before = (keys < key) | ((keys == key) & (places < i))
            rank = sum(where(before & (places < n), 1, 0).to(i32))
            order[*at, rank] = i.to(order.dtype)


# --- long rows -----------------------------------------------------------------------------------


@kernel
def radix_kernel(
    x: Array,
    words: Array,
    indices: Array,
    order: Array,
    DESCENDING: Const,
    PASSES: Const,
    PACKED: Const,
    ROWS: Const,
):
    """Like :func:`rank_kernel` for rows of any length.

    ``words`` (2, slots, n) u64 is working memory. PACKED: a word is a 32-bit key above the
    element's index. Otherwise it is a 64-bit key, and ``indices`` (2, slots, n) u32 the index.
    """
    slot = program_id(0)
    lead = order.shape[:-1]
    n = x.shape[-1]
    counts = scratch((PASSES, 256), i32)
    for r in range(slot * ROWS, minimum((slot + 1) * ROWS, product(lead))):
        at = unravel(r, lead)
        for p in unroll(PASSES):
            counts[p, 0:256] = zeros((256,), i32)
        for i in range(n):
            key = sortable(x[*at, i], DESCENDING)
            put_word(words, indices, counts, slot, i, key, i, PASSES, PACKED)
        source = sort_words(words, indices, counts, slot, n, PASSES, PACKED)
        for i in range(order.shape[-1]):
            order[*at, i] = index_of(words, indices, source, slot, i, PACKED).to(order.dtype)


@kernel
def select_kernel(
    x: Array,
    words: Array,
    indices: Array,
    order: Array,
    DESCENDING: Const,
    PASSES: Const,
    PACKED: Const,
    ROWS: Const,
):
    """Like :func:`radix_kernel` for an ``order`` much shorter than the rows of x.

    Only elements whose highest byte is not above that of the last one wanted are sorted.
    """
    slot = program_id(0)
    lead = order.shape[:-1]
    n = x.shape[-1]
    wanted = order.shape[-1]
    counts = scratch((PASSES, 256), i32)
    high = 8 * (PASSES - 1)
    for r in range(slot * ROWS, minimum((slot + 1) * ROWS, product(lead))):
        at = unravel(r, lead)
        counts[0, 0:256] = zeros((256,), i32)
        for i in range(n):
            digit = sortable(x[*at, i], DESCENDING) >> high
            counts[0, digit] = counts[0, digit] + 1
        total = zeros((), i64)
        limit = zeros((), i64)
        for d in range(256):
            limit = where(total < wanted, d, limit)
            total = total + counts[0, d].to(i64)
        for p in unroll(PASSES):
            counts[p, 0:256] = zeros((256,), i32)
        found = zeros((), i64)
        for j in range(0, n, _GROUP):
            near = (sortable(x[*at, j : j + _GROUP], DESCENDING) >> high).to(i64) <= limit
            if any(near):
                for i in range(j, minimum(j + _GROUP, n)):
                    key = sortable(x[*at, i], DESCENDING)
                    if (key >> high).to(i64) <= limit:
                        put_word(words, indices, counts, slot, found, key, i, PASSES, PACKED)
                        found = found + 1
        source = sort_words(words, indices, counts, slot, found, PASSES, PACKED)
        for i in range(wanted):
            order[*at, i] = index_of(words, indices, source, slot, i, PACKED).to(order.dtype)


def put_word(words, indices, counts, slot, place, key, i, passes, packed):
    """Inline: store element i of a row with its key, and count the key's bytes."""
    for p in unroll(passes):
        digit = (key >> (8 * p)) & 255
        counts[p, digit] = counts[p, digit] + 1
    if packed:
        words[0, slot, place] = (key.to(u64) << 32) | i.to(u64)
    else:
        words[0, slot, place] = key
        indices[0, slot, place] = i.to(u32)


def sort_words(words, indices, counts, slot, n, passes, packed):
    """Inline: sort the first n words by their counted bytes; which half of ``words`` has them."""
    source = zeros((), i64)
    for p in unroll(passes):
        if counts[p, digit_of(words[source, slot, 0], p, packed)] < n:
            total = zeros((), i32)
            for d in range(256):
                here = counts[p, d]
                counts[p, d] = total
                total = total + here
            for i in range(n):
                word = words[source, slot, i]
                digit = digit_of(word, p, packed)
                place = counts[p, digit]
                counts[p, digit] = place + 1
                words[1 - source, slot, place] = word
                if not packed:
                    indices[1 - source, slot, place] = indices[source, slot, i]
            source = 1 - source
    return source


def index_of(words, indices, source, slot, i, packed):
    """Inline: the element that the i-th word stands for."""
    if packed:
        return words[source, slot, i] & 0xFFFFFFFF
    return indices[source, slot, i]


def digit_of(word, p, packed):
    """Inline: the ``p``-th lowest byte of a word's key."""
    return (word >> ((32 if packed else 0) + 8 * p)) & 255


def _passes(dtype: DType) -> int:
    return max(dtype.bits // 8, 1)


def argsort_workspace(dtype: DType, shape: Shape, axis: int) -> list[tuple[DType, Shape]]:
    """The memory that :func:`argsort_calls` wants."""
    from tilewright import dtypes

    sizes = [n for n in shape if has_value(n)]
    n = sizes[axis]
    if n <= _SHORT or 0 in sizes:
        return []
    slots = min(math.prod(sizes) // n, _SLOTS)
    indices = (2, slots, n) if dtype.bits == 64 else (1, 1, 1)
    return [(dtypes.u64, (2, slots, n)), (dtypes.u32, indices)]


def argsort_calls(
    x: Buffer, order: Buffer, axis: int, descending: bool, work: Sequence[Buffer]
) -> list[KernelCall]:
    """``order[.., i, ..]``: index along ``axis`` of the i-th element in order; i32 or i64.

    Equal elements keep their order. ``order`` may be shorter than x along ``axis``.
    """
    if not x.size * order.size:
        return []
    x, order = (_axis_last(a, b, axis) for a, b in ((x, order), (order, x)))
    rows, n = math.prod(x.shape[:-1]), x.shape[-1]
    if n <= _SHORT:
        per = max(1, min(divide(hint(rows), 8), 2048 // n))
        consts = {"DESCENDING": descending, "ROWS": per, "BLOCK": 16 if n <= 16 else _SHORT}
        return [KernelCall(rank_kernel, (divide(rows, per),), (x, order), consts)]
    slots = work[0].shape[1]
    per = divide(rows, slots)
    consts = {
        "DESCENDING": descending,
        "PASSES": _passes(x.dtype),
        "PACKED": x.dtype.bits < 64,
        "ROWS": per,
    }
    which = select_kernel if order.shape[-1] * _FEW <= n else radix_kernel
    return [KernelCall(which, (divide(rows, per),), (x, *work, order), consts)]


def _axis_last(a: Buffer, other: Buffer, axis: int) -> Buffer:
    """``a`` with ``axis`` last and the others merged as far as both arrays allow."""
    rest = [i for i in range(a.ndim) if i != axis]
    sizes, strides = merge_axes(
        [a.shape[i] for i in rest],
        [a.strides[i] for i in rest],
        [other.strides[i] for i in rest],
    )
    if not sizes:
        sizes, strides = (1,), [(0,), (0,)]
    return relaid(a, (sizes, strides[0]), (a.shape[axis : axis + 1], a.strides[axis : axis + 1]))


# --- binary search -------------------------------------------------------------------------------


@kernel
def searchsorted_kernel(
    x: Array,
    values: Array,
    out: Array,
    BATCH: Const,
    RIGHT: Const,
    STEPS: Const,
    ROWS: Const,
    SPAN: Const,
    BLOCK: Const,
):
    """``out[b.., m]``: how many elements of sorted row x[b..] are below ``values[b.., m]``.

    RIGHT counts equal ones too. ``STEPS`` halvings are enough for the row's length.
    """
    lead = out.shape[:-1]
    start = program_id(0) * SPAN
    stop = minimum(start + SPAN, out.shape[-1])
    first = program_id(1) * ROWS
    n = x.shape[-1]
    for r in range(first, minimum(first + ROWS, product(lead))):
        at = unravel(r, lead)
        row = at if BATCH else ()
        for j in range(start, stop, BLOCK):
            key = sortable(values[*at, j : j + BLOCK], False)
            found = zeros((BLOCK,), i64)
            for s in unroll(STEPS):
                step = 1 << (STEPS - 1 - s)
                here = sortable(x[*row, found + (step - 1)], False)
                below = (here <= key) if RIGHT else (here < key)
                found = where(below & (found + step <= n), found + step, found)
            out[*at, j : j + BLOCK] = found.to(out.dtype)


def searchsorted_calls(x: Buffer, values: Buffer, out: Buffer, right: bool) -> list[KernelCall]:
    """``out = searchsorted(x, values)``: x (n,) and values of any shape, or equal leading axes."""
    if not out.size:
        return []
    batch = x.ndim > 1
    if batch:
        lead = merge_axes(x.shape[:-1], x.strides[:-1], values.strides[:-1], out.strides[:-1])
        if not lead[0]:
            lead = ((1,), [(0,)] * 3)
        x, values, out = (
            relaid(a, (lead[0], own), (a.shape[-1:], a.strides[-1:]))
            for a, own in zip((x, values, out), lead[1])
        )
    else:
        sizes, strides = merge_axes(values.shape, values.strides, out.strides)
        if not sizes:
            sizes, strides = (1,), [(1,), (1,)]
        values, out = values.view(sizes, strides[0]), out.view(sizes, strides[1])
    *rest, width = out.shape
    rows = math.prod(rest)
    per = rows_per_program(rows, width, 1 << 10)
    consts = {
        "BATCH": batch,
        "RIGHT": right,
        "STEPS": x.shape[-1].bit_length(),
        "ROWS": per,
        "SPAN": 1024,
        "BLOCK": block_for(width, 32),
    }
    grid = (divide(width, 1024), divide(rows, per))
    return [KernelCall(searchsorted_kernel, grid, (x, values, out), consts)]

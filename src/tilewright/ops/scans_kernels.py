"""Kernels of scans along an axis: one step after the other, many lanes side by side.

An instance owns some lanes and walks the whole axis, so the order of the sums is the order of the
axis for any number of threads, any strides and any target.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tilewright.lang import (
    Array,
    Arrays,
    Const,
    Inline,
    bf16,
    f16,
    f32,
    fma,
    full,
    i32,
    i64,
    inf,
    isnan,
    logaddexp,
    program_id,
    scratch,
    unroll,
    where,
    zeros,
)
from tilewright.ops.calls import KernelCall
from tilewright.ops.layout_kernels import block_for, divide, merge_axes, relaid, unravel
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = [
    "first_extreme",
    "first_linear",
    "first_logsumexp",
    "first_prod",
    "first_sum",
    "scan_calls",
    "step_linear",
    "step_logsumexp",
    "step_max",
    "step_min",
    "step_prod",
    "step_sum",
]


@kernel
def scan_kernel(
    xs: Arrays,
    starts: Arrays,
    y: Array,
    O: Const,
    FIRST: Inline,
    STEP: Inline,
    REVERSE: Const,
    BLOCK: Const,
):
    """``carry, y[o.., t, i..] = STEP(carry, xs[o.., t, i..], t)`` from ``FIRST`` on.

    ``O`` counts the axes before t. ``starts`` are arrays of one element along t, which FIRST gets.
    """
    j = program_id(0) * BLOCK
    n = y.shape[O]
    at = unravel(program_id(1), (*y.shape[:O], *y.shape[O + 1 : y.ndim - 1]))
    given = y.shape[:0]
    for x in unroll(starts):
        given = (*given, x[*at[:O], 0, *at[O:], j : j + BLOCK])
    carry = FIRST(given, (BLOCK,), y.dtype)
    for i in range(n):
        t = (n - 1 - i) if REVERSE else i
        values = y.shape[:0]
        for x in unroll(xs):
            values = (*values, x[*at[:O], t, *at[O:], j : j + BLOCK])
        carry, out = STEP(carry, values, t)
        y[*at[:O], t, *at[O:], j : j + BLOCK] = out.to(y.dtype)


@kernel
def scan_rows_kernel(
    xs: Arrays,
    starts: Arrays,
    y: Array,
    FIRST: Inline,
    STEP: Inline,
    REVERSE: Const,
    ROWS: Const,
    STEPS: Const,
    UNROLLED: Const,
):
    """:func:`scan_kernel` along the last axis of y (o.., r, t): ROWS lanes side by side.

    STEPS elements of each row are read at once and turned, so that memory is read along its lines.
    """
    j = program_id(0) * ROWS
    n = y.shape[y.ndim - 1]
    at = unravel(program_id(1), y.shape[: y.ndim - 2])
    given = y.shape[:0]
    for x in unroll(starts):
        given = (*given, x[*at, j : j + ROWS, 0])
    carry = FIRST(given, (ROWS,), y.dtype)
    turned = y.shape[:0]
    for x in unroll(xs):
        turned = (*turned, scratch((STEPS, ROWS), x.dtype))
    outs = scratch((STEPS, ROWS), y.dtype)
    for block in range((n + STEPS - 1) // STEPS):
        t = (n - STEPS - block * STEPS) if REVERSE else block * STEPS
        for x, tile in unroll(zip(xs, turned)):  # type: ignore[call-overload]
            tile[0:STEPS, 0:ROWS] = x[*at, j : j + ROWS, t : t + STEPS].T
        for i in unroll(STEPS) if UNROLLED else range(STEPS):
            k = STEPS - 1 - i if REVERSE else i
            values = y.shape[:0]
            for x in unroll(turned):
                values = (*values, x[k, 0:ROWS])
            carry, out = STEP(carry, values, t + k)
            outs[k, 0:ROWS] = out.to(y.dtype)
        y[*at, j : j + ROWS, t : t + STEPS] = outs[0:STEPS, 0:ROWS].T


def wide(dtype):
    """Inline: the dtype that a scan of ``dtype`` carries."""
    return f32 if dtype in (f16, bf16) else dtype


def first_sum(given, shape, dtype):
    """Inline: -0.0 leaves every float as it is, its sign too."""
    return (full(shape, -0.0 if dtype.is_float else 0, wide(dtype)),)


def step_sum(carry, values, t):
    """Inline: a running sum."""
    total = carry[0] + values[0].to(carry[0].dtype)
    return (total,), total


def first_prod(given, shape, dtype):
    """Inline: one."""
    return (full(shape, 1, wide(dtype)),)


def step_prod(carry, values, t):
    """Inline: a running product."""
    total = carry[0] * values[0].to(carry[0].dtype)
    return (total,), total


def first_logsumexp(given, shape, dtype):
    """Inline: the logarithm of nothing."""
    return (full(shape, -inf, wide(dtype)),)


def step_logsumexp(carry, values, t):
    """Inline: a running sum of exponentials, as its logarithm."""
    total = logaddexp(carry[0], values[0].to(carry[0].dtype))
    return (total,), total


def first_extreme(given, shape, dtype):
    """Inline: the first element, which the first step finds as good as itself."""
    return (given[0], zeros(shape, i32))


def later_or_better(carry, values, t, better):
    """Inline: the index of the best element so far; a NaN is better than anything."""
    best, index = carry
    x = values[0]
    if x.dtype.is_float:
        better = isnan(x) | (better & ~isnan(best))
    best = where(better, x, best)
    index = where(better, t.to(i32), index)
    return (best, index), index


def step_max(carry, values, t):
    """Inline: a running index of the largest element, the latest of equal ones."""
    return later_or_better(carry, values, t, values[0] >= carry[0])


def step_min(carry, values, t):
    """Inline: a running index of the smallest element, the latest of equal ones."""
    return later_or_better(carry, values, t, values[0] <= carry[0])


def first_linear(given, shape, dtype):
    """Inline: the state before the first step and whether there is one."""
    if given:
        return (given[0].to(wide(dtype)), 1 + zeros((), i64))
    return (zeros(shape, wide(dtype)), zeros((), i64))


def step_linear(carry, values, t):
    """Inline: ``h = a h + b``, fused; ``h = b`` at the first step without a state."""
    h, begun = carry
    a, b = values[0].to(h.dtype), values[1].to(h.dtype)
    h = where(begun == 0, b, fma(a, h, b))
    return (h, begun + 1), h


def scan_calls(
    xs: Sequence[Buffer],
    starts: Sequence[Buffer],
    y: Buffer,
    axis: int,
    reverse: bool,
    first: Callable[..., Any],
    step: Callable[..., Any],
) -> list[KernelCall]:
    """Scan ``xs`` (all of y's shape) along ``axis`` into ``y``.

    ``starts`` have one element along ``axis``. Lanes run along the last axis, or, when that is
    the scanned one, along the last of the others.
    """
    if not y.size:
        return []
    arrays = [y, *xs, *starts]
    rest = [i for i in range(y.ndim) if i != axis]
    outer = merge_axes(y.shape[:axis], *(a.strides[:axis] for a in arrays))
    inner = merge_axes(y.shape[axis + 1 :], *(a.strides[axis + 1 :] for a in arrays))
    if not inner[0]:
        sizes, strides = merge_axes(
            [y.shape[i] for i in rest], *([a.strides[i] for i in rest] for a in arrays)
        )
        if not sizes:
            sizes, strides = (1,), [(1,)] * len(arrays)
        outer = sizes[:-1], [s[:-1] for s in strides]
        inner = sizes[-1:], [s[-1:] for s in strides]
    along = slice(axis, axis + 1)
    parts = [
        ((outer[0], o), (a.shape[along], a.strides[along]), (inner[0], i))
        for a, o, i in zip(arrays, outer[1], inner[1])
    ]
    width, steps = inner[0][-1], y.shape[axis]
    block = block_for(width, 16)
    grid = (divide(width, block), math.prod(outer[0]) * math.prod(inner[0][:-1]))
    consts = {"FIRST": first, "STEP": step, "REVERSE": reverse}
    if width > 1 and steps >= block and y.strides[axis] == 1 and y.strides[rest[-1]] != 1:
        laid = [relaid(a, o, i, t) for a, (o, t, i) in zip(arrays, parts)]
        short = step is not step_logsumexp
        consts |= {"ROWS": block, "STEPS": 16, "UNROLLED": short}
        which = scan_rows_kernel
    else:
        laid = [relaid(a, *own) for a, own in zip(arrays, parts)]
        consts |= {"O": len(outer[0]), "BLOCK": block}
        which = scan_kernel
    args = (tuple(laid[1 : 1 + len(xs)]), tuple(laid[1 + len(xs) :]), laid[0])
    return [KernelCall(which, grid, args, consts)]

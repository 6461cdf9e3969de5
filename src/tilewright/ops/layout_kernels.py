"""What kernels over arrays of any rank and strides share: merging axes, counting through them.

A launch first merges the axes that lie one after the other in memory in every array concerned
(:func:`merge_axes`), which usually leaves one or two; the kernels are written for any number, and
:func:`unravel` turns the number of a row into its index.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tilewright.dtypes import u8, u16, u32, u64
from tilewright.lang import Array, Const, minimum, program_id, unroll, zeros
from tilewright.ops.calls import KernelCall
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel
from tilewright.sizes import hint, roughly

__all__ = [
    "as_bits",
    "block_for",
    "copy_calls",
    "divide",
    "flattened",
    "merge_axes",
    "product",
    "relaid",
    "rows_per_program",
    "transpose_calls",
    "unravel",
    "zero_calls",
]

SPAN = 1024
"""Columns that one program instance takes, at most."""


def merge_axes(
    sizes: Sequence[int], *strides: Sequence[int]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Fewest axes that walk several arrays of shape ``sizes`` in the same order.

    Axes of size 1 vanish, neighbours merge where every array's strides allow it. Returns the
    merged sizes and each array's strides.
    """
    kept = [i for i, n in enumerate(sizes) if n != 1]
    out: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for i in kept:
        if out and all(s[-1] == own[i] * sizes[i] for s, own in zip(steps, strides)):
            out[-1] *= sizes[i]
            for s, own in zip(steps, strides):
                s[-1] = own[i]
        else:
            out.append(sizes[i])
            for s, own in zip(steps, strides):
                s.append(own[i])
    return tuple(out), [tuple(s) for s in steps]


def relaid(buffer: Buffer, *groups: tuple[Sequence[int], Sequence[int]]) -> Buffer:
    """``buffer`` with the axes of ``groups``, pairs of sizes and strides, one after the other."""
    shape = [n for sizes, _ in groups for n in sizes]
    strides = [s for _, steps in groups for s in steps]
    return buffer.view(shape, strides)


def flattened(arrays: Sequence[Buffer]) -> list[Buffer]:
    """Arrays of one shape with as few axes as they allow, at least one."""
    sizes, strides = merge_axes(arrays[0].shape, *(a.strides for a in arrays))
    if not sizes:
        return [a.view((1,), (1,)) for a in arrays]
    return [a.view(sizes, own) for a, own in zip(arrays, strides)]


_BITS = {8: u8, 16: u16, 32: u32, 64: u64}


def as_bits(buffer: Buffer) -> Buffer:
    """The same memory as unsigned integers: what only moves data is compiled once per width."""
    kind = _BITS[buffer.dtype.bits]
    return buffer if buffer.dtype is kind else buffer.view(buffer.shape, buffer.strides, 0, kind)


def divide(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


def block_for(width: int, largest: int = 256) -> int:
    """Window length for rows of ``width``: a power of four, so that few kernels serve all rows."""
    block = 1
    while block < largest and not roughly(width, block, 4):
        block *= 4
    return min(block, largest)


def rows_per_program(rows: int, width: int, work: int = 1 << 14) -> int:
    """How many rows one program instance takes: about ``work`` elements, but at least 8 parts."""
    rows, width = hint(rows), hint(width)  # no choice changes bits
    return max(1, min(work // max(min(width, SPAN), 1), divide(rows, 8)))


def unravel(i, sizes):
    """Inline: the index of element ``i`` of an array of ``sizes``, as a tuple."""
    index = sizes[:0]
    for axis in unroll(len(sizes)):
        n = sizes[len(sizes) - 1 - axis]
        if axis == len(sizes) - 1:
            index = (i, *index)
        else:
            index = (i % n, *index)
            i = i // n
    return index


def product(sizes):
    """Inline: the number of elements of an array of ``sizes``."""
    total = 1
    for n in unroll(sizes):
        total = total * n
    return total


@kernel
def copy_kernel(x: Array, out: Array, ROWS: Const, SPAN: Const, BLOCK: Const):
    """``out = x``, converted; arrays of one shape."""
    lead = out.shape[:-1]
    start = program_id(0) * SPAN
    stop = minimum(start + SPAN, out.shape[-1])
    first = program_id(1) * ROWS
    for r in range(first, minimum(first + ROWS, product(lead))):
        at = unravel(r, lead)
        for j in range(start, stop, BLOCK):
            out[*at, j : j + BLOCK] = x[*at, j : j + BLOCK].to(out.dtype)


@kernel
def zero_kernel(out: Array, ROWS: Const, SPAN: Const, BLOCK: Const):
    """``out = 0``."""
    lead = out.shape[:-1]
    start = program_id(0) * SPAN
    stop = minimum(start + SPAN, out.shape[-1])
    first = program_id(1) * ROWS
    for r in range(first, minimum(first + ROWS, product(lead))):
        at = unravel(r, lead)
        for j in range(start, stop, BLOCK):
            out[*at, j : j + BLOCK] = zeros((BLOCK,), out.dtype)


def _row_call(kernel: Any, arrays: Sequence[Buffer]) -> list[KernelCall]:
    """``kernel`` over the rows of ``arrays``, which have one shape."""
    *lead, width = arrays[0].shape
    rows = math.prod(lead)
    if not rows * width:
        return []
    span = SPAN if hint(rows) > 8 else 1 << 14
    per = rows_per_program(rows, width)
    consts = {"ROWS": per, "SPAN": span, "BLOCK": block_for(width)}
    return [KernelCall(kernel, (divide(width, span), divide(rows, per)), tuple(arrays), consts)]


def copy_calls(x: Buffer, out: Buffer) -> list[KernelCall]:
    """``out = x`` element by element, converted to out's dtype; shapes are equal."""
    if x.dtype is out.dtype:
        x, out = as_bits(x), as_bits(out)
    return _row_call(copy_kernel, flattened([x, out]))


@kernel
def transpose_kernel(x: Array, out: Array, SPAN: Const):
    """out (.., A, B) from x (.., B, A), both contiguous along their last axis.

    Sixteen rows of out, SPAN columns per program: grid (B / SPAN, A / 16, the other axes).
    """
    at = unravel(program_id(2), out.shape[:-2])
    a, start = program_id(1) * 16, program_id(0) * SPAN
    for b in range(start, minimum(start + SPAN, out.shape[-1]), 16):
        out[*at, a : a + 16, b : b + 16] = x[*at, b : b + 16, a : a + 16].T


def transpose_calls(
    sizes: Sequence[int], x: Buffer, x_strides: Sequence[int], out: Buffer, strides: Sequence[int]
) -> list[KernelCall]:
    """A copy from x to out, strides given for axes of ``sizes``, by squares that are turned round.

    Empty where that is not the way: for other than 32-bit elements, and unless the contiguous axes
    of the two are different ones and long.
    """
    merged, (source, target) = merge_axes(sizes, x_strides, strides)
    if x.dtype.bits != 32 or 1 not in source or 1 not in target:
        return []
    a, b = source.index(1), target.index(1)
    if a == b or min(merged[a], merged[b]) < 12:
        return []
    rest = [i for i in range(len(merged)) if i not in (a, b)]
    views = [
        buffer.view([merged[i] for i in order], [own[i] for i in order])
        for buffer, own, order in (
            (as_bits(x), source, (*rest, b, a)),
            (as_bits(out), target, (*rest, a, b)),
        )
    ]
    lead = math.prod(merged[i] for i in rest)
    grid = (divide(merged[b], 128), divide(merged[a], 16), lead)
    return [KernelCall(transpose_kernel, grid, tuple(views), {"SPAN": 128}, smallest=4)]


def zero_calls(out: Buffer) -> list[KernelCall]:
    """``out = 0`` everywhere."""
    return _row_call(zero_kernel, flattened([as_bits(out)]))

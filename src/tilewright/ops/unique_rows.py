"""A sparse gradient with each row once: what an optimiser updates after an embedding's backward."""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, bf16, f16, f32, i32, i64
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.lang import Array, Const, full, minimum, program_id, range, zeros
from tilewright.lang import i64 as index_type
from tilewright.ops import views
from tilewright.ops.calls import KernelCall
from tilewright.ops.layout_kernels import (
    block_for,
    divide,
    merge_axes,
    relaid,
    rows_per_program,
    unravel,
    zero_calls,
)
from tilewright.ops.sorting_kernels import argsort_calls, argsort_workspace
from tilewright.ops.table import OpDef, make_parts, register
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = ["unique_rows"]


def unique_rows(ids: Node, rows: Node) -> tuple[Node, Node, Node]:
    """Each id of a sparse gradient once, with the sum of its rows.

    Args:
        ids: (k..) i32 or i64, with repetitions.
        rows: (k.., i..) floats or integers.

    Returns ``(unique, sums, count)`` of static sizes, m the number of ids: unique (m,) ascending,
    followed by the largest number of their dtype, at which no table has a row; sums (m, i..), each
    added in the order of its rows (16-bit floats in f32), followed by zeros; count () i32.
    """
    if tuple(rows.shape[: len(ids.shape)]) != tuple(ids.shape):
        raise ShapeError(
            f"unique_rows wants ids (k..) and rows (k.., i..), got {ids.dtype}"
            f"{shape_of(ids.shape)} and {rows.dtype}{shape_of(rows.shape)}"
        )
    m = math.prod(views.sizes_of(ids))
    flat = views.reshape(rows, (m, *rows.shape[len(ids.shape) :]))
    unique, sums, count = make_parts("unique_rows", views.reshape(ids, (m,)), flat)
    return unique, sums, count


@kernel
def segments_kernel(
    ids: Array, order: Array, unique: Array, starts: Array, count: Array, END: Const
):
    """Where each id's run begins in ``order``; one instance for all."""
    n = order.shape[0]
    found = full((), -1, index_type)
    before = zeros((), ids.dtype)
    for i in range(n):
        id = ids[order[i]]
        if (i == 0) | (id != before):
            found = found + 1
            unique[found] = id
            starts[found] = i.to(i32)
        before = id
    for s in range(found + 1, n):
        unique[s] = END
    for s in range(found + 1, n + 1):
        starts[s] = n.to(i32)
    count[0] = (found + 1).to(i32)


@kernel
def sums_kernel(
    rows: Array, order: Array, starts: Array, sums: Array, ROWS: Const, SPAN: Const, BLOCK: Const
):
    """``sums[s, i..] =`` the rows of run s, added in order; (m, i..) both."""
    kind = f32 if rows.dtype in (f16, bf16) else rows.dtype
    width = sums.shape[sums.ndim - 1]
    start = program_id(0) * SPAN
    stop = minimum(start + SPAN, width)
    first = program_id(1) * ROWS
    at = unravel(program_id(2), sums.shape[1 : sums.ndim - 1])
    for s in range(first, minimum(first + ROWS, sums.shape[0])):
        low = starts[s].to(index_type)
        high = starts[s + 1].to(index_type)
        for j in range(start, stop, BLOCK):
            total = zeros((BLOCK,), kind)
            for i in range(low, high):
                total = total + rows[order[i], *at, j : j + BLOCK].to(kind)
            sums[s, *at, j : j + BLOCK] = total.to(sums.dtype)


def _infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> Sequence[tuple[Shape, DType]]:
    ids, rows = inputs
    got = f"{ids.dtype}{shape_of(ids.shape)} and {rows.dtype}{shape_of(rows.shape)}"
    if ids.dtype not in (i32, i64) or len(ids.shape) != 1 or rows.shape[:1] != ids.shape:
        raise ShapeError(f"unique_rows wants ids (m,) of i32 or i64 and rows (m, i..), got {got}")
    if rows.dtype.kind == "b":
        raise ShapeError(f"unique_rows adds numbers, got {got}")
    return (ids.shape, ids.dtype), (rows.shape, rows.dtype), ((), i32)


def _reference(ids: np.ndarray, rows: np.ndarray) -> tuple[Any, ...]:
    found, places = np.unique(ids, return_inverse=True)
    unique = np.full(ids.shape, np.iinfo(ids.dtype).max, ids.dtype)
    unique[: len(found)] = found
    sums = np.zeros(rows.shape, np.float32 if rows.dtype == np.float16 else rows.dtype)
    np.add.at(sums, places, rows)
    return unique, sums, np.int32(len(found))


def _workspace(node: Node) -> list[tuple[DType, Shape]]:
    ids = node.inputs[0]
    (m,) = views.sizes_of(ids)
    return [(i32, (m,)), (i32, (m + 1,)), *argsort_workspace(ids.dtype, (m,), 0)]


def _calls(
    node: Node, inputs: Sequence[Any], outs: Sequence[Any], work: Sequence[Any]
) -> list[KernelCall]:
    ids, rows = inputs
    unique, sums, count = outs
    order, starts, *sorting = work
    if not ids.size:
        return zero_calls(count)
    calls = argsort_calls(ids, order, 0, False, sorting)
    end = {"END": int(np.iinfo(ids.dtype.storage).max)}
    args = (ids, order, unique, starts, count.view((1,), (1,)))
    calls.append(KernelCall(segments_kernel, (1,), args, end))
    return calls + _sum_calls(rows, order, starts, sums)


def _sum_calls(rows: Buffer, order: Buffer, starts: Buffer, sums: Buffer) -> list[KernelCall]:
    if not sums.size:
        return []
    sizes, strides = merge_axes(rows.shape[1:], rows.strides[1:], sums.strides[1:])
    if not sizes:
        sizes, strides = (1,), [(1,), (1,)]
    rows, sums = (
        relaid(a, (a.shape[:1], a.strides[:1]), (sizes, own))
        for a, own in zip((rows, sums), strides)
    )
    m, width = sums.shape[0], sizes[-1]
    per = rows_per_program(m, width, 1 << 13)
    consts = {"ROWS": per, "SPAN": 1024, "BLOCK": block_for(width, 64)}
    grid = (divide(width, 1024), divide(m, per), math.prod(sizes[:-1]))
    return [KernelCall(sums_kernel, grid, (rows, order, starts, sums), consts)]


register(
    OpDef(
        "unique_rows",
        lambda inputs, attrs: _infer(inputs, attrs)[0],
        _reference,
        infer_parts=_infer,
        workspace=_workspace,
        calls=_calls,
    )
)

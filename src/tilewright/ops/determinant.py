"""Determinants of stacks of square matrices.

Elimination with the largest pivot of each column (LAPACK's getrf), all in float64 and rounded once.
One program instance does one matrix, so the bits depend on nothing else.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="assignment"

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, f64
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.lang import Array, Const, abs, cast, fma, program_id, where
from tilewright.ops.calls import KernelCall
from tilewright.ops.layout_kernels import block_for, copy_calls
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import sizes_of
from tilewright.runtime.launch import kernel

__all__ = ["det"]


@kernel
def determinant_kernel(a: Array, out: Array, BLOCK: Const):
    """``out[b]`` is the determinant of ``a[b]``, which is used up: grid (matrices,)."""
    b = program_id(0)
    n = a.shape[1]
    total = cast(1.0, f64)
    for k in range(n):
        row = k
        best = abs(a[b, k, k])
        for i in range(k + 1, n):
            larger = abs(a[b, i, k]) > best
            best = where(larger, abs(a[b, i, k]), best)
            row = where(larger, i, row)
        pivot = a[b, row, k]
        total = total * where(row == k, pivot, -pivot)
        for j in range(k, n, BLOCK):
            upper = a[b, k, j : j + BLOCK]
            a[b, k, j : j + BLOCK] = a[b, row, j : j + BLOCK]
            a[b, row, j : j + BLOCK] = upper
        for i in range(k + 1, n):
            factor = where(pivot == 0.0, 0.0, -a[b, i, k] / pivot)
            for j in range(k + 1, n, BLOCK):
                a[b, i, j : j + BLOCK] = fma(a[b, k, j : j + BLOCK], factor, a[b, i, j : j + BLOCK])
    out[b] = total


def _infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    (x,) = inputs
    if not x.dtype.is_float or len(x.shape) < 2 or x.shape[-1] != x.shape[-2]:
        raise ShapeError(f"det wants floats (..., n, n), got {x.dtype}{shape_of(x.shape)}")
    return x.shape[:-2], x.dtype


def _calls(node: Node, inputs: Sequence[Any], out: Any, work: Sequence[Any]) -> list[KernelCall]:
    (x,) = inputs
    *lead, n, _ = x.shape
    many = math.prod(lead)
    if not many:
        return []
    square, flat = work[0].view((many, n, n)), work[1]
    work_on = {"BLOCK": block_for(n)}
    return [
        *copy_calls(x, work[0].view(x.shape)),
        KernelCall(determinant_kernel, (many,), (square, flat), work_on),
        *copy_calls(flat.view(out.shape), out),
    ]


def _workspace(node: Node) -> list[tuple[DType, Shape]]:
    sizes = sizes_of(node.inputs[0])
    return [(f64, (math.prod(sizes),)), (f64, (math.prod(sizes[:-2]),))]


register(
    OpDef(
        "det",
        _infer,
        lambda x: np.linalg.det(x.astype(np.float64)).astype(x.dtype),
        calls=_calls,
        workspace=_workspace,
    )
)


def det(x: Node) -> Node:
    """The determinants of square matrices: x (..., n, n) floats -> (...); no gradient."""
    return make("det", x)

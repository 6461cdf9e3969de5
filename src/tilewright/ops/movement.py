"""Views and row gathers."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, f32, i32
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.lang import Array, Const, program_id
from tilewright.ops.calls import KernelCall
from tilewright.ops.table import OpDef, make, register
from tilewright.runtime.launch import kernel

__all__ = ["columns", "take_rows"]


def _columns_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    (x,) = inputs
    start, stop, width = attrs["start"], attrs["stop"], x.shape[-1]
    if not isinstance(width, int) or not 0 <= start <= stop <= width:
        raise ShapeError(f"columns {start}:{stop} of {shape_of(x.shape)} do not exist")
    return (*x.shape[:-1], stop - start), x.dtype


def _columns_view(node: Node, x: Any) -> Any:
    start = node.attrs["start"]
    shape = (*x.shape[:-1], node.attrs["stop"] - start)
    return x.view(shape, x.strides, start * x.strides[-1])


register(
    OpDef(
        "columns",
        _columns_infer,
        lambda x, start, stop: x[..., start:stop],
        view=_columns_view,
    )
)


def columns(x: Node, start: int, stop: int) -> Node:
    """``x[..., start:stop]`` without a copy."""
    return make("columns", x, start=start, stop=stop)


@kernel
def take_rows_kernel(x: Array, rows: Array, y: Array, BLOCK: Const):
    """Copy row ``rows[i]`` of x (n, width) to row i of y; a row that is not there reads as zero."""
    i = program_id(1)
    j = program_id(0) * BLOCK
    y[i, j : j + BLOCK] = x[rows[i], j : j + BLOCK]


def _take_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    x, rows = inputs
    if rows.dtype is not i32 or len(rows.shape) != 1 or len(x.shape) != 2 or x.dtype is not f32:
        raise ShapeError(
            f"take_rows wants f32 (n, width) and i32 (rows,), got {x.dtype}{shape_of(x.shape)} "
            f"and {rows.dtype}{shape_of(rows.shape)}"
        )
    return (rows.shape[0], x.shape[1]), x.dtype


def _take_calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    x, rows = inputs
    block = 256
    return [
        KernelCall(
            take_rows_kernel,
            (-(-out.shape[1] // block), out.shape[0]),
            (x, rows, out),
            {"BLOCK": block},
        )
    ]


register(OpDef("take_rows", _take_infer, lambda x, rows: np.asarray(x)[rows], calls=_take_calls))


def take_rows(x: Node, rows: Node) -> Node:
    """``x[rows]``: x (n, width) f32, rows (r,) i32 -> (r, width)."""
    return make("take_rows", x, rows)

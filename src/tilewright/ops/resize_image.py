"""Resizing of the last two axes of images at once, by tables (see :mod:`tilewright.ops.resize`).

    y[.., o, p] = sum over l of wide[l, p] * down[.., o, cols[l, p]]
    down[.., o, j] = sum over k of high[k, o] * x[.., rows[k, o], j]

First down the columns, then along the rows, k and l ascending, one fused multiply-add each, in x's
dtype; every sum down is rounded to it. Without weights the pixels are copied (nearest neighbours).
x is (N, C, H, W), or blocked, (N, C / 16, H, W, 16).
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, f32, f64, i32
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.lang import (
    Array,
    Const,
    broadcast_to,
    expand_dims,
    fma,
    minimum,
    program_id,
    reshape,
    scratch,
    unroll,
    zeros,
)
from tilewright.ops.calls import KernelCall
from tilewright.ops.creation import cast
from tilewright.ops.layout_kernels import divide
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import sizes_of
from tilewright.runtime.launch import kernel

__all__ = ["MOST_COLUMNS", "resize_image"]

Attrs = Mapping[str, Any]
MOST_COLUMNS: Final = 4096  # of x: a row waits in scratch memory


def resize_image(
    x: Node, rows: Node, columns: Node, high: Node | None = None, wide: Node | None = None
) -> Node:
    """x (N, C, H, W) -> (N, C, OH, OW), or blocked.

    rows (K, OH) and columns (L, OW) are i32 positions in x; high and wide weights of their shapes
    in x's dtype, f32 or f64. Without weights K and L are 1 and x of any dtype.
    """
    if high is not None and wide is not None:
        return make("resize_image", x, rows, columns, high, wide)
    return make("resize_image", x, rows, columns, repeat=_repeats(columns, sizes_of(x)[3]))


def _repeats(columns: Node, width: int) -> int:
    """How often each column comes, if all come equally often and few times; else 0."""
    if columns.value is None or not width:
        return 0
    positions = columns.value.numpy().ravel()
    times = len(positions) // width
    each = np.arange(width).repeat(max(times, 1))
    return times if 2 <= times <= 4 and np.array_equal(positions, each) else 0


def _infer(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    x, rows, columns, *weights = inputs
    sizes = sizes_of(x)
    if len(sizes) not in (4, 5) or rows.dtype is not i32 or columns.dtype is not i32:
        raise ShapeError(
            f"resize_image wants an image and i32 positions, got {x.dtype}{shape_of(x.shape)}, "
            f"{rows.dtype} and {columns.dtype}"
        )
    if sizes[3] > MOST_COLUMNS or (weights and x.dtype not in (f32, f64)):
        raise ShapeError(
            f"resize_image wants f32 or f64 and at most {MOST_COLUMNS} columns, got "
            f"{x.dtype}{shape_of(x.shape)}"
        )
    for table, weight in zip((rows, columns), weights or (None, None)):
        fits = weight is None and table.shape[0] == 1
        fits = fits or (
            weight is not None and weight.shape == table.shape and weight.dtype is x.dtype
        )
        if len(table.shape) != 2 or not fits:
            raise ShapeError(
                f"resize_image: positions {shape_of(table.shape)} want weights of their shape"
            )
    return (*sizes[:2], sizes_of(rows)[1], sizes_of(columns)[1], *sizes[4:]), x.dtype


def _reference(
    x: np.ndarray, rows: np.ndarray, columns: np.ndarray, *weights: np.ndarray, repeat: int = 0
) -> np.ndarray:
    if not weights:
        return np.asarray(x[:, :, rows[0]][:, :, :, columns[0]])
    high, wide = weights
    tail = (1,) * (x.ndim - 4)
    down = np.zeros((*x.shape[:2], rows.shape[1], *x.shape[3:]))
    for k in range(len(rows)):
        down += high[k].astype(np.float64).reshape(-1, 1, *tail) * x[:, :, rows[k]]
    total = np.zeros((*down.shape[:3], columns.shape[1], *x.shape[4:]))
    for k in range(len(columns)):
        total += wide[k].astype(np.float64).reshape(-1, *tail) * down[:, :, :, columns[k]]
    return total.astype(x.dtype)


def _gradient(node: Node, grad: Node) -> list[Node | None]:
    """By the transposed tables, along the rows first."""
    from tilewright.ops.resize import back_along

    x, rows, columns, *weights = node.inputs
    if len(x.shape) != 4:
        raise ShapeError("resize_image: a blocked image is not differentiable")
    high, wide = weights or (None, None)
    back = back_along(cast(grad, f64 if x.dtype is f64 else f32), 3, columns, wide, sizes_of(x)[3])
    back = back_along(back, 2, rows, high, sizes_of(x)[2])
    return [cast(back, x.dtype), *(None for _ in node.inputs[1:])]


# --- kernels -------------------------------------------------------------------------------------


@kernel
def resize_planes(
    x: Array, rows: Array, columns: Array, y: Array, REPEAT: Const, ROWS: Const, N: Const
):
    """y (N, C, OH, OW) from x (N, C, H, W), nearest neighbours: grid (OH / ROWS, N * C)."""
    first = program_id(0) * ROWS
    n, c = program_id(1) // y.shape[1], program_id(1) % y.shape[1]
    for o in range(first, minimum(first + ROWS, y.shape[2])):
        row = rows[0, o]
        if REPEAT:
            for i in range(0, x.shape[3], 16):
                apart = expand_dims(x[n, c, row, i : i + 16], 1)
                each = reshape(broadcast_to(apart, (16, REPEAT)), (16 * REPEAT,))
                y[n, c, o, i * REPEAT : (i + 16) * REPEAT] = each
        else:
            for i in range(0, y.shape[3], N):
                y[n, c, o, i : i + N] = x[n, c, row, columns[0, i : i + N]]


@kernel
def blend_planes(
    x: Array,
    rows: Array,
    columns: Array,
    high: Array,
    wide: Array,
    y: Array,
    K: Const,
    LINE: Const,
    ROWS: Const,
    N: Const,
):
    """The same with weights; K are the taps down and along, LINE elements hold a row of x."""
    first = program_id(0) * ROWS
    n, c = program_id(1) // y.shape[1], program_id(1) % y.shape[1]
    line = scratch((LINE,), x.dtype)
    for o in range(first, minimum(first + ROWS, y.shape[2])):
        for i in range(0, x.shape[3], 64):
            down = zeros((64,), x.dtype)
            for k in range(K[0]):
                down = fma(high[k, o], x[n, c, rows[k, o], i : i + 64], down)
            line[i : i + 64] = down
        for i in range(0, y.shape[3], N):
            total = zeros((N,), x.dtype)
            if K[1] <= 4:
                for k in unroll(K[1]):
                    total = fma(wide[k, i : i + N], line[columns[k, i : i + N]], total)
            else:
                for k in range(K[1]):
                    total = fma(wide[k, i : i + N], line[columns[k, i : i + N]], total)
            y[n, c, o, i : i + N] = total


@kernel
def resize_blocks(
    x: Array, rows: Array, columns: Array, y: Array, REPEAT: Const, ROWS: Const, N: Const
):
    """y (N, B, OH, OW, 16) from x (N, B, H, W, 16), nearest: grid (OH / ROWS, N * B)."""
    first = program_id(0) * ROWS
    n, b = program_id(1) // y.shape[1], program_id(1) % y.shape[1]
    for o in range(first, minimum(first + ROWS, y.shape[2])):
        row = rows[0, o]
        for i in range(y.shape[3]):
            y[n, b, o, i, 0:16] = x[n, b, row, columns[0, i], 0:16]


@kernel
def blend_blocks(
    x: Array,
    rows: Array,
    columns: Array,
    high: Array,
    wide: Array,
    y: Array,
    K: Const,
    LINE: Const,
    ROWS: Const,
    N: Const,
):
    """The same with weights."""
    first = program_id(0) * ROWS
    n, b = program_id(1) // y.shape[1], program_id(1) % y.shape[1]
    line = scratch((LINE, 16), x.dtype)
    for o in range(first, minimum(first + ROWS, y.shape[2])):
        for i in range(0, x.shape[3], 4):
            down = zeros((4, 16), x.dtype)
            for k in range(K[0]):
                down = fma(high[k, o], x[n, b, rows[k, o], i : i + 4, 0:16], down)
            line[i : i + 4, 0:16] = down
        for i in range(y.shape[3]):
            total = zeros((16,), x.dtype)
            if K[1] <= 4:
                for k in unroll(K[1]):
                    total = fma(wide[k, i], line[columns[k, i], 0:16], total)
            else:
                for k in range(K[1]):
                    total = fma(wide[k, i], line[columns[k, i], 0:16], total)
            y[n, b, o, i, 0:16] = total


def _calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    x, rows, columns, *weights = inputs
    if not out.size:
        return []
    blocked = len(x.shape) == 5
    planes, height = out.shape[0] * out.shape[1], out.shape[2]
    per = max(1, min(height, divide(height * planes, 32)))
    consts: dict[str, Any] = {"ROWS": per, "N": 16 if out.shape[3] > 8 else 8}
    if weights:
        line = divide(max(x.shape[3], 1), 64) * 64
        consts |= {"K": (rows.shape[0], columns.shape[0]), "LINE": line}
    else:
        consts["REPEAT"] = 0 if blocked else node.attrs["repeat"]
    kernels = ((resize_planes, blend_planes), (resize_blocks, blend_blocks))
    args = (x.fix(4) if blocked else x, rows, columns, *weights, out.fix(4) if blocked else out)
    grid = (divide(height, per), planes)
    return [KernelCall(kernels[blocked][bool(weights)], grid, args, consts)]


register(OpDef("resize_image", _infer, _reference, calls=_calls, gradient=_gradient))

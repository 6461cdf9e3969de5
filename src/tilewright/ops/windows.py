"""Sliding windows as an array (im2col) and their sum back into place (col2im).

``windows`` moves no data: it is a view of x in which every output position sees its taps.
``fold`` is its transpose: each element of the result adds what the windows over it hold, taps in
ascending order, in f32 (f64 for f64). Each is the other's gradient.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from tilewright.dtypes import DType, f32, f64
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.lang import Array, Const, arange, i32, program_id, where, zeros
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_shapes import output_sizes, spatial
from tilewright.ops.layout_kernels import block_for
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import pad, reshape, sizes_of, slice_
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = ["col2im", "fold", "im2col", "windows"]

Attrs = Mapping[str, Any]
Numbers = int | Sequence[int]
Padding = int | Sequence[int | tuple[int, int]]


def _each(value: Numbers, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(int(v) for v in value)


def _pairs(value: Padding, rank: int) -> tuple[tuple[int, int], ...]:
    each = (value,) * rank if isinstance(value, int) else value
    return tuple((v, v) if isinstance(v, int) else (int(v[0]), int(v[1])) for v in each)


def windows(
    x: Node,
    kernel: Sequence[int],
    strides: Numbers = 1,
    padding: Padding = 0,
    dilation: Numbers = 1,
) -> Node:
    """x (N, C, *size) -> (N, C, *kernel, *out): tap k of output o is ``x[o * stride + k * dilation
    - low]``, zero in the padding. Any dtype, one to three spatial axes."""
    rank = len(kernel)
    pairs = _pairs(padding, rank)
    if any(low or high for low, high in pairs):
        x = pad(x, ((0, 0), (0, 0), *pairs))
    return make(
        "windows",
        x,
        kernel=tuple(int(k) for k in kernel),
        strides=_each(strides, rank),
        dilation=_each(dilation, rank),
    )


def fold(
    x: Node,
    size: Sequence[int],
    strides: Numbers = 1,
    padding: Padding = 0,
    dilation: Numbers = 1,
) -> Node:
    """The transpose of :func:`windows`: x (N, C, *kernel, *out) -> (N, C, *size), floats."""
    rank = len(size)
    pairs = _pairs(padding, rank)
    wide = tuple(int(n) + low + high for n, (low, high) in zip(size, pairs))
    y = make("fold", x, size=wide, strides=_each(strides, rank), dilation=_each(dilation, rank))
    if not any(low or high for low, high in pairs):
        return y
    lead = sizes_of(x)[:2]
    starts = (0, 0, *(low for low, _ in pairs))
    return slice_(y, starts, (*lead, *(int(n) for n in size)), (1,) * (rank + 2))


def im2col(
    x: Node,
    kernel: Sequence[int],
    strides: Numbers = 1,
    padding: Padding = 0,
    dilation: Numbers = 1,
) -> Node:
    """x (N, C, *size) -> (N, C * taps, positions), as ``torch.nn.Unfold``."""
    seen = windows(x, kernel, strides, padding, dilation)
    n, c, *rest = sizes_of(seen)
    return reshape(seen, (n, c * prod(kernel), prod(rest[len(kernel) :])))


def col2im(
    x: Node,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Numbers = 1,
    padding: Padding = 0,
    dilation: Numbers = 1,
) -> Node:
    """x (N, C * taps, positions) -> (N, C, *size), ONNX Col2Im: :func:`im2col` transposed."""
    rank = len(kernel)
    shape = sizes_of(x)
    if len(size) != rank or len(shape) != 3 or shape[1] % max(prod(kernel), 1):
        raise ShapeError(
            f"col2im wants x (N, C * taps, positions) and as many sizes as kernel axes, got "
            f"{shape}, kernel {tuple(kernel)}, size {tuple(size)}"
        )
    out = output_sizes(
        "col2im", size, kernel, _each(strides, rank), _pairs(padding, rank), _each(dilation, rank)
    )
    if prod(out) != shape[2]:
        raise ShapeError(f"col2im: {out} windows fit an image {tuple(size)}, x has {shape[2]}")
    apart = reshape(x, (shape[0], shape[1] // prod(kernel), *kernel, *out))
    return fold(apart, size, strides, padding, dilation)


# --- table entries -------------------------------------------------------------------------------


def _infer_windows(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    (x,) = inputs
    sizes, rank = sizes_of(x), len(attrs["kernel"])
    if not 1 <= rank <= 3 or len(sizes) != rank + 2:
        raise ShapeError(f"windows wants x (N, C, {rank} spatial axes), got {shape_of(x.shape)}")
    none = ((0, 0),) * rank
    out = output_sizes(
        "windows", sizes[2:], attrs["kernel"], attrs["strides"], none, attrs["dilation"]
    )
    return (*sizes[:2], *attrs["kernel"], *out), x.dtype


def _windows_reference(x: np.ndarray, **attrs: Any) -> np.ndarray:
    rank = len(attrs["kernel"])
    reach = [(k - 1) * d + 1 for k, d in zip(attrs["kernel"], attrs["dilation"])]
    axes = tuple(range(2, 2 + rank))
    seen = np.lib.stride_tricks.sliding_window_view(x, reach, axes)
    outs = tuple(slice(None, None, s) for s in attrs["strides"])
    taps = tuple(slice(None, None, d) for d in attrs["dilation"])
    every: Any = (slice(None), slice(None), *outs, *taps)
    seen = seen[every]
    return np.moveaxis(seen, axes, tuple(range(-rank, 0)))


def _windows_view(node: Node, x: Buffer) -> Buffer:
    steps = x.strides[2:]
    taps = (s * d for s, d in zip(steps, node.attrs["dilation"]))
    outs = (s * t for s, t in zip(steps, node.attrs["strides"]))
    return x.view(sizes_of(node), (*x.strides[:2], *taps, *outs))


def _windows_gradient(node: Node, grad: Node) -> list[Node]:
    size = sizes_of(node.inputs[0])[2:]
    return [fold(grad, size, node.attrs["strides"], 0, node.attrs["dilation"])]


def _infer_fold(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    (x,) = inputs
    sizes, rank = sizes_of(x), len(attrs["size"])
    if not x.dtype.is_float or not 1 <= rank <= 3 or len(sizes) != 2 + 2 * rank:
        raise ShapeError(
            f"fold wants floats (N, C, *kernel, *out) for {rank} spatial axes, got "
            f"{x.dtype}{shape_of(x.shape)}"
        )
    kernel = sizes[2 : 2 + rank]
    none = ((0, 0),) * rank
    out = output_sizes("fold", attrs["size"], kernel, attrs["strides"], none, attrs["dilation"])
    if out != sizes[2 + rank :]:
        raise ShapeError(
            f"fold: {out} windows of {kernel} fit {attrs['size']}, x has {sizes[2 + rank :]}"
        )
    return (*sizes[:2], *attrs["size"]), x.dtype


def _fold_reference(x: np.ndarray, **attrs: Any) -> np.ndarray:
    rank = len(attrs["size"])
    kernel, out = x.shape[2 : 2 + rank], x.shape[2 + rank :]
    total = np.zeros((*x.shape[:2], *attrs["size"]))
    for tap in product(*map(range, kernel)):
        at: Any = tuple(
            slice(k * d, k * d + (n - 1) * s + 1, s)
            for k, d, s, n in zip(tap, attrs["dilation"], attrs["strides"], out)
        )
        one: Any = (slice(None), slice(None), *tap)
        total[(..., *at)] += x[one]
    return total.astype(x.dtype)


def _fold_gradient(node: Node, grad: Node) -> list[Node]:
    kernel = sizes_of(node.inputs[0])[2 : 2 + len(node.attrs["size"])]
    return [windows(grad, kernel, node.attrs["strides"], 0, node.attrs["dilation"])]


@kernel
def fold_rows(x: Array, y: Array, STRIDES: Const, DILATION: Const, N: Const, WIDE: Const):
    """y (B, C, D, H, W) from x (B, C, KD, KH, KW, OD, OH, OW): grid (H, D, B * C)."""
    row, z = program_id(0), program_id(1)
    n, c = program_id(2) // y.shape[1], program_id(2) % y.shape[1]
    for at in range(0, y.shape[4], N):
        total = zeros((N,), WIDE)
        for kd in range(x.shape[2]):
            deep = z - kd * DILATION[0]
            d = where(deep % STRIDES[0] == 0, deep // STRIDES[0], -1)
            for kh in range(x.shape[3]):
                high = row - kh * DILATION[1]
                h = where(high % STRIDES[1] == 0, high // STRIDES[1], -1)
                for kw in range(x.shape[4]):
                    first = at - kw * DILATION[2]
                    if STRIDES[2] == 1:
                        part = x[n, c, kd, kh, kw, d, h, first : first + N]
                    else:
                        wide = first.to(i32) + arange(N).to(i32)
                        w = where(wide % STRIDES[2] == 0, wide // STRIDES[2], -1)
                        part = x[n, c, kd, kh, kw, d, h, w]
                    total = total + part.to(WIDE)
        y[n, c, z, row, at : at + N] = total.to(y.dtype)


def _fold_calls(node: Node, inputs: Sequence[Buffer], out: Buffer) -> list[KernelCall]:
    (x,) = inputs
    rank = len(node.attrs["size"])
    missing = (1,) * (3 - rank), (0,) * (3 - rank)
    cut = 2 + rank
    seen = x.view(
        (*x.shape[:2], *missing[0], *x.shape[2:cut], *missing[0], *x.shape[cut:]),
        (*x.strides[:2], *missing[1], *x.strides[2:cut], *missing[1], *x.strides[cut:]),
    )
    y = out.view(
        (*out.shape[:2], *missing[0], *out.shape[2:]),
        (*out.strides[:2], *missing[1], *out.strides[2:]),
    )
    consts = {
        "STRIDES": spatial(node.attrs["strides"]),
        "DILATION": spatial(node.attrs["dilation"]),
        "N": min(block_for(y.shape[4]), 64),
        "WIDE": f64 if x.dtype is f64 else f32,
    }
    grid = (y.shape[3], y.shape[2], y.shape[0] * y.shape[1])
    return [KernelCall(fold_rows, grid, (seen, y), consts)]


register(
    OpDef(
        "windows",
        _infer_windows,
        _windows_reference,
        view=_windows_view,
        gradient=_windows_gradient,
    )
)
register(OpDef("fold", _infer_fold, _fold_reference, calls=_fold_calls, gradient=_fold_gradient))

"""Values of images between their pixels: grid_sample and deformable convolution.

Both read weighted sums of pixels at positions that are computed. The positions and weights are
elementwise graph code, which the compiler fuses; ``weighted_gather`` applies them::

    y[n, c, q] = sum over k of weights[n, k, q] * x[n, c, ids[n, k, q]]

k ascending, one fused multiply-add each, in f32 (f64 for f64); an id outside x reads zero.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, f32, f64, i32
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, data_node, shape_of
from tilewright.lang import Array, Const, fma, minimum, program_id, unroll, zeros
from tilewright.ops.arithmetic import abs, add, floor, literal, mul, round, scale, sub
from tilewright.ops.calls import KernelCall
from tilewright.ops.comparison import eq, ge, le, logical_and, lt, maximum, where
from tilewright.ops.comparison import minimum as smaller
from tilewright.ops.conv_shapes import output_sizes
from tilewright.ops.creation import cast
from tilewright.ops.gemm import bmm
from tilewright.ops.indexing import scatter_along_axis, take_along_axis
from tilewright.ops.layout_kernels import divide
from tilewright.ops.reductions import sum as sum_
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import broadcast, permute, reshape, sizes_of, slice_
from tilewright.runtime.buffers import from_array
from tilewright.runtime.launch import kernel

__all__ = ["deform_conv", "grid_sample", "weighted_gather"]

Attrs = Mapping[str, Any]
Numbers = int | Sequence[int]

_OFFSETS: Final = {"nearest": (0,), "linear": (0, 1), "cubic": (-1, 0, 1, 2)}
_CUBIC: Final = -0.75  # Keys' a, as in PyTorch and ONNX


# --- grid_sample ---------------------------------------------------------------------------------


def grid_sample(
    x: Node,
    grid: Node,
    mode: str = "linear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Node:
    """x (N, C, *size) at the positions of grid (N, *out, rank) -> (N, C, *out).

    Args:
        grid: along the last axis the position, that on x's last axis first, from -1 to 1: the
            centres of the corner pixels with ``align_corners``, else their outer edges.
        mode: ``nearest`` (halves to even), ``linear`` or ``cubic``; one to three spatial axes.
        padding_mode: what lies outside: ``zeros``, ``border`` or ``reflection``.

    Jaderberg et al. 2015; ``torch.nn.functional.grid_sample``, ONNX GridSample.
    """
    shape, points = sizes_of(x), sizes_of(grid)
    rank = len(shape) - 2
    if mode not in _OFFSETS or padding_mode not in ("zeros", "border", "reflection"):
        raise ShapeError(
            "grid_sample: mode is nearest, linear or cubic and padding_mode zeros, border or "
            f"reflection, got {mode!r} and {padding_mode!r}"
        )
    if not 1 <= rank <= 3 or len(points) != rank + 2 or points[-1] != rank or points[0] != shape[0]:
        raise ShapeError(
            f"grid_sample wants x (N, C, *size) and grid (N, *out, rank), got "
            f"{shape_of(x.shape)} and {shape_of(grid.shape)}"
        )
    wide = _wide(x)
    count = prod(points[1:-1])
    flat = reshape(cast(grid, wide.dtype), (shape[0], 1, count, rank))
    places = []
    for axis in range(rank):
        at = _column(flat, rank - 1 - axis)
        places.append(_place(at, shape[2 + axis], mode, padding_mode, align_corners))
    ids, weights = _taps(places, shape[2:], mode, padding_mode, align_corners)
    y = weighted_gather(reshape(wide, (*shape[:2], prod(shape[2:]))), ids, weights)
    return cast(reshape(y, (*shape[:2], *points[1:-1])), x.dtype)


def _wide(x: Node) -> Node:
    return cast(x, f64 if x.dtype is f64 else f32)


def _column(x: Node, i: int) -> Node:
    """x[..., i]."""
    shape = sizes_of(x)
    starts = (0,) * (len(shape) - 1) + (i,)
    return reshape(slice_(x, starts, (*shape[:-1], 1), (1,) * len(shape)), shape[:-1])


def _borders(size: int, align_corners: bool) -> tuple[float, float]:
    return (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)


def _place(at: Node, size: int, mode: str, padding: str, align_corners: bool) -> Node:
    """Grid positions as positions in pixels, moved inside where the padding asks for it."""
    if align_corners:
        at = scale(scale(add(at, literal(1.0, at)), 0.5), float(size - 1))
    else:
        at = scale(sub(scale(add(at, literal(1.0, at)), float(size)), literal(1.0, at)), 0.5)
    if mode == "nearest":
        at = round(at)
    low, high = _borders(size, align_corners)
    if padding == "border":
        return _inside(at, low, high, smaller(maximum(at, literal(0.0, at)), _top(at, size)))
    if padding == "reflection":
        return _reflected(at, low, high)
    return at


def _top(at: Node, size: int) -> Node:
    return literal(float(size - 1), at)


def _inside(at: Node, low: float, high: float, otherwise: Node) -> Node:
    inside = logical_and(ge(at, literal(low, at)), le(at, literal(high, at)))
    return where(inside, at, otherwise)


def _reflected(at: Node, low: float, high: float) -> Node:
    """``at`` mirrored at the borders until it lies between them."""
    span = high - low
    if span == 0:
        return scale(at, 0.0)
    far = abs(sub(at, literal(low, at)))
    times = floor(scale(far, 1 / span))
    rest = sub(far, scale(times, span))
    even = eq(sub(times, scale(floor(scale(times, 0.5)), 2.0)), literal(0.0, at))
    mirrored = where(even, add(rest, literal(low, at)), sub(literal(high, at), rest))
    return _inside(at, low, high, mirrored)


def _keys(t: Node) -> Node:
    """Keys' cubic kernel at distance t."""
    t, a = abs(t), _CUBIC
    near = mul(sub(scale(t, a + 2), literal(a + 3, t)), mul(t, t))
    far = mul(add(mul(sub(t, literal(5.0, t)), t), literal(8.0, t)), t)
    return where(
        le(t, literal(1.0, t)),
        add(near, literal(1.0, t)),
        sub(scale(far, a), literal(4 * a, t)),
    )


def _taps(
    places: Sequence[Node], size: Sequence[int], mode: str, padding: str, align_corners: bool
) -> tuple[Node, Node]:
    """Ids and weights (N, K, Q) of the pixels around places (N, 1, Q), one per axis."""
    rank = len(places)
    grid = np.array(list(product(_OFFSETS[mode], repeat=rank)), np.float32)
    total: Node | None = None
    weights: Node | None = None
    inside: Node | None = None
    for axis, at in enumerate(places):
        column = grid[:, axis].reshape(1, -1, 1).copy()
        offset = cast(data_node(from_array(column)), at.dtype)
        pixel = add(at if mode == "nearest" else floor(at), offset)
        if mode != "nearest":
            distance = sub(at, pixel)
            share = sub(literal(1.0, at), abs(distance)) if mode == "linear" else _keys(distance)
            weights = share if weights is None else mul(weights, share)
        n = size[axis]
        if padding == "zeros":
            fits = logical_and(ge(pixel, literal(0.0, at)), lt(pixel, literal(float(n), at)))
            inside = fits if inside is None else logical_and(inside, fits)
        elif padding == "reflection":
            pixel = _reflected(pixel, *_borders(n, align_corners))
        pixel = smaller(maximum(pixel, literal(0.0, at)), _top(at, n))
        index = cast(pixel, i32)
        total = index if total is None else add(mul(total, literal(n, index)), index)
    assert total is not None
    if inside is not None:
        total = where(inside, total, literal(-1, total))
    shape = (*sizes_of(total)[:1], len(grid), *sizes_of(total)[2:])
    if weights is None:
        weights = broadcast(literal(1.0, places[0]), shape)
    return broadcast(total, shape), broadcast(weights, shape)


# --- deformable convolution ----------------------------------------------------------------------


def deform_conv(
    x: Node,
    w: Node,
    offset: Node,
    bias: Node | None = None,
    mask: Node | None = None,
    strides: Numbers = 1,
    padding: int | Sequence[int | tuple[int, int]] = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    offset_groups: int = 1,
) -> Node:
    """Convolution whose taps are moved by ``offset`` and scaled by ``mask``.

    x (N, C, H, W), w (O, C/groups, KH, KW), offset (N, offset_groups * KH * KW * 2, OH, OW) with
    the vertical distance first, mask (N, offset_groups * KH * KW, OH, OW), bias (O,) ->
    (N, O, OH, OW). Pixels between positions are interpolated linearly, zero outside. (Dai et al.
    2017, Zhu et al. 2018; ONNX DeformConv, ``torchvision.ops.deform_conv2d``.)
    """
    shape, kernel_shape = sizes_of(x), sizes_of(w)
    if len(shape) != 4 or len(kernel_shape) != 4:
        raise ShapeError(
            f"deform_conv wants x (N, C, H, W) and w (O, C/groups, KH, KW), got "
            f"{shape_of(x.shape)} and {shape_of(w.shape)}"
        )
    n, c, h, wd = shape
    o, per_group, *taps = kernel_shape
    step, dil = _two(strides), _two(dilation)
    each = (padding,) * 2 if isinstance(padding, int) else padding
    pairs = tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in each)
    out = output_sizes("deform_conv", (h, wd), taps, step, pairs, dil)
    t, q = prod(taps), prod(out)
    if groups < 1 or c != per_group * groups or o % groups or c % max(offset_groups, 1):
        raise ShapeError(
            f"deform_conv: {c} channels to {o} in {groups} groups ({offset_groups} of offsets) "
            f"want a weight ({o}, {c}/{groups}, ...), got {kernel_shape}"
        )
    for name, node, width in (("offset", offset, 2 * t), ("mask", mask, t)):
        wanted = (n, offset_groups * width, *out)
        if node is not None and sizes_of(node) != wanted:
            raise ShapeError(f"deform_conv: {name} wants {wanted}, got {shape_of(node.shape)}")
    wide = _wide(x)
    moved = reshape(cast(offset, wide.dtype), (n * offset_groups, t, 2, q))
    moved = permute(moved, (0, 1, 3, 2))
    places = []
    for axis in range(2):
        tap = np.unravel_index(np.arange(t), taps)[axis] * dil[axis] - pairs[axis][0]
        at = np.unravel_index(np.arange(q), out)[axis] * step[axis]
        base = (tap[:, None] + at).astype(np.float32)
        moves = _column(moved, axis)
        start = cast(data_node(from_array(base)), wide.dtype)
        places.append(reshape(add(moves, start), (n * offset_groups, 1, t * q)))
    ids, weights = _taps(places, (h, wd), "linear", "zeros", False)
    if mask is not None:
        scales = reshape(cast(mask, wide.dtype), (n * offset_groups, 1, t * q))
        weights = mul(weights, scales)
    images = reshape(wide, (n * offset_groups, c // offset_groups, h * wd))
    columns = reshape(weighted_gather(images, ids, weights), (n, groups, per_group * t, q))
    matrix = reshape(cast(w, wide.dtype), (groups, o // groups, per_group * t))
    y = reshape(bmm(matrix, columns), (n, o, *out))
    if bias is not None:
        y = add(y, reshape(cast(bias, wide.dtype), (o, 1, 1)))
    return cast(y, x.dtype)


def _two(value: Numbers) -> tuple[int, int]:
    a, b = (value, value) if isinstance(value, int) else value
    return int(a), int(b)


# --- the op --------------------------------------------------------------------------------------


def weighted_gather(x: Node, ids: Node, weights: Node) -> Node:
    """x (N, C, P), ids (N, K, Q) i32, weights (N, K, Q) of x's dtype (f32, f64) -> (N, C, Q)."""
    return make("weighted_gather", x, ids, weights)


def _infer(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    x, ids, weights = inputs
    if x.dtype not in (f32, f64) or weights.dtype is not x.dtype or ids.dtype is not i32:
        raise ShapeError(
            "weighted_gather wants f32 or f64, i32 ids and weights of x's dtype, got "
            f"{x.dtype}, {ids.dtype} and {weights.dtype}"
        )
    if len(x.shape) != 3 or len(ids.shape) != 3 or ids.shape != weights.shape:
        raise ShapeError(
            f"weighted_gather wants x (N, C, P), ids and weights (N, K, Q), got "
            f"{shape_of(x.shape)}, {shape_of(ids.shape)} and {shape_of(weights.shape)}"
        )
    if x.shape[0] != ids.shape[0]:
        raise ShapeError(f"weighted_gather: {x.shape[0]} images and positions for {ids.shape[0]}")
    return (*x.shape[:2], ids.shape[2]), x.dtype


def _reference(x: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total = np.zeros((*x.shape[:2], ids.shape[2]))
    inside = (ids >= 0) & (ids < x.shape[2])
    if x.shape[2]:
        for k in range(ids.shape[1]):
            at = np.where(inside[:, k], ids[:, k], 0)[:, None]
            seen = np.where(inside[:, k][:, None], np.take_along_axis(x, at, 2), 0)
            total += weights[:, k].astype(np.float64)[:, None] * seen
    return total.astype(x.dtype)


def _gradient(node: Node, grad: Node) -> tuple[Node, None, Node]:
    """Through the gathered pixels of every channel."""
    x, ids, weights = node.inputs
    n, c, p = sizes_of(x)
    k, q = sizes_of(ids)[1:]
    where_ = reshape(broadcast(reshape(ids, (n, 1, k, q)), (n, c, k, q)), (n, c, k * q))
    g = reshape(grad, (n, c, 1, q))
    shares = reshape(mul(g, reshape(weights, (n, 1, k, q))), (n, c, k * q))
    dx = scatter_along_axis(where_, shares, p, 2)
    seen = reshape(take_along_axis(x, where_, 2), (n, c, k, q))
    return dx, None, sum_(mul(seen, g), 1)


@kernel
def gather_rows(
    x: Array, ids: Array, weights: Array, y: Array, K: Const, CHANNELS: Const, BLOCK: Const
):
    """Grid (Q / BLOCK, C / CHANNELS, N). K is 0 where it is known at run time only."""
    q, first, n = program_id(0) * BLOCK, program_id(1) * CHANNELS, program_id(2)
    for c in range(first, minimum(first + CHANNELS, y.shape[1])):
        total = zeros((BLOCK,), y.dtype)
        if K:
            for k in unroll(K):
                seen = x[n, c, ids[n, k, q : q + BLOCK]]
                total = fma(weights[n, k, q : q + BLOCK], seen, total)
        else:
            for k in range(ids.shape[1]):
                seen = x[n, c, ids[n, k, q : q + BLOCK]]
                total = fma(weights[n, k, q : q + BLOCK], seen, total)
        y[n, c, q : q + BLOCK] = total


def _calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    x, ids, weights = inputs
    taps = ids.shape[1]
    consts = {"K": taps if taps <= 8 else 0, "CHANNELS": 16, "BLOCK": 32}
    grid = (divide(out.shape[2], 32), divide(out.shape[1], 16), out.shape[0])
    return [KernelCall(gather_rows, grid, (x, ids, weights, out), consts)]


register(OpDef("weighted_gather", _infer, _reference, calls=_calls, gradient=_gradient))

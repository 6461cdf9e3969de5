"""Shapes: views, repetition, slices, pieces, margins. What only moves elements takes any type."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from tilewright.errors import ShapeError, UnsupportedError
from tilewright.graph import Node
from tilewright.onnx.ops.common import axes_in, moves, require_same, tensor_of
from tilewright.onnx.registry import Call, op
from tilewright.ops import elementwise as ew
from tilewright.ops import indexing, views
from tilewright.sizes import length_of, slice_indices, whole
from tilewright.tensor import manipulation
from tilewright.tensor.core import Tensor, apply

# --- axes of size 1, flattening ------------------------------------------------------------------


def _squeezed(x: Tensor, axes: Sequence[int] | None) -> Tensor:
    if axes is None:
        axes = [a for a, n in enumerate(x.shape) if n == 1]
    return apply(views.squeeze, x, axes=axes_in(axes, x.ndim))


@op("Squeeze", since=13, host=(1,), raw=True)
@moves(0)
def squeeze(x: Tensor, axes: np.ndarray | None = None) -> Tensor:
    """Without ``axes``, which have size 1; default all that have."""
    return _squeezed(x, None if axes is None else axes.reshape(-1).tolist())


@op("Squeeze", since=1, raw=True)
@moves(0)
def squeeze_1(x: Tensor, *, axes: Sequence[int] | None = None) -> Any:
    """Before version 13 the axes were an attribute."""
    return _squeezed(x, axes)


def _unsqueezed(x: Tensor, axes: Sequence[int]) -> Tensor:
    places = axes_in(axes, x.ndim + len(axes))
    rest = iter(x.shape)
    shape = [1 if a in places else next(rest) for a in range(x.ndim + len(places))]
    return apply(views.reshape, x, shape=tuple(shape))


@op("Unsqueeze", since=13, host=(1,), raw=True)
@moves(0)
def unsqueeze(x: Tensor, axes: np.ndarray) -> Tensor:
    """With axes of size 1 at ``axes`` of the result."""
    return _unsqueezed(x, axes.reshape(-1).tolist())


@op("Unsqueeze", since=1, raw=True)
@moves(0)
def unsqueeze_1(x: Tensor, *, axes: Sequence[int]) -> Any:
    """Before version 13 the axes were an attribute."""
    return _unsqueezed(x, axes)


@op("Flatten", raw=True)
@moves(0)
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """A matrix: the axes before ``axis``, and those from it on."""
    at = axis if axis == x.ndim else views.normal_axis(axis, x.ndim)
    return apply(views.reshape, x, shape=(math.prod(x.shape[:at]), math.prod(x.shape[at:])))


# --- repetition ----------------------------------------------------------------------------------


@op("Expand", since=8, host=(1,), raw=True)
@moves(0)
def expand(x: Tensor, shape: np.ndarray) -> Tensor:
    """Broadcast with ``shape``; a size of 1 in it leaves the tensor's."""
    wanted = views.broadcast_shapes(x.shape, tuple(whole(n) for n in shape))
    return apply(views.broadcast, x, shape=wanted)


@op("Tile", since=6, host=(1,), raw=True)
@moves(0)
def tile(x: Tensor, repeats: np.ndarray) -> Tensor:
    """Laid side by side ``repeats[i]`` times along axis ``i``."""
    if repeats.shape != (x.ndim,):
        raise ShapeError(f"wants one number of repetitions per axis of {x.shape}, got {repeats}")
    return manipulation.tile(x, tuple(int(n) for n in repeats))


@op("Tile", since=1, host=(1, 2), raw=True)
@moves(0)
def tile_1(x: Tensor, tiles: np.ndarray, axis: np.ndarray) -> Tensor:
    """Before version 6 along one axis."""
    repeats = [1] * x.ndim
    repeats[views.normal_axis(int(axis.reshape(())), x.ndim)] = int(tiles.reshape(()))
    return manipulation.tile(x, tuple(repeats))


# --- slices --------------------------------------------------------------------------------------


def sliced(
    x: Node,
    starts: Sequence[Any],
    ends: Sequence[Any],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> Node:
    """``x[start:end:step]`` along each of ``axes``, limits clamped as NumPy does."""
    rank = len(x.shape)
    along = axes_in(range(len(starts)) if axes is None else axes, rank)
    hops = [1] * len(along) if steps is None else [int(s) for s in steps]
    if not len(starts) == len(ends) == len(along) == len(hops):
        raise ShapeError("wants as many starts as ends, axes and steps")
    if 0 in hops:
        raise ShapeError("a step of a slice is 0")
    first, sizes, strides = [0] * rank, list(views.sizes_of(x)), [1] * rank
    for axis, start, end, hop in zip(along, starts, ends, hops):
        n = sizes[axis]
        # a negative end beyond the front means "to the front", not one from the back
        begin, stop, _ = slice_indices(slice(whole(start), whole(end), hop), n)
        sizes[axis], strides[axis] = length_of(begin, stop, hop), hop
        first[axis] = begin if sizes[axis] != 0 else 0
    return views.slice_(x, first, sizes, strides)


@op("Slice", since=10, host=(1, 2, 3, 4), raw=True)
@moves(0)
def slice_(
    x: Tensor,
    starts: np.ndarray,
    ends: np.ndarray,
    axes: np.ndarray | None = None,
    steps: np.ndarray | None = None,
) -> Tensor:
    """A part of each axis; negative numbers count from the end, steps may go backwards."""
    return apply(
        sliced,
        x,
        starts=starts.tolist(),
        ends=ends.tolist(),
        axes=None if axes is None else axes.tolist(),
        steps=None if steps is None else steps.tolist(),
    )


@op("Slice", since=1, raw=True)
@moves(0)
def slice_1(
    x: Tensor, *, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None = None
) -> Tensor:
    """Before version 10 by attributes, without steps."""
    return apply(sliced, x, starts=starts, ends=ends, axes=axes, steps=None)


# --- pieces --------------------------------------------------------------------------------------


def even_pieces(n: int, count: int) -> list[int]:
    """``count`` sizes that make ``n``, the last ones smaller if it cannot be cut evenly."""
    size = -(-n // count)
    return [max(0, min(size, n - i * size)) for i in range(count)]


def _split(x: Tensor, sizes: Sequence[int] | None, axis: int, count: int) -> tuple[Tensor, ...]:
    at = views.normal_axis(axis, x.ndim)
    n = x.shape[at]
    if sizes is None:
        sizes = even_pieces(n, count)
    if sum(sizes) != n or min(sizes, default=0) < 0:
        raise ShapeError(f"pieces of {list(sizes)} do not make axis {axis} of {x.shape}")
    return manipulation.split(x, list(sizes), axis=at)


@op("Split", since=13, host=(1,), raw=True)
@moves(0)
def split(
    x: Tensor,
    split: np.ndarray | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    ctx: Call,
) -> tuple[Tensor, ...]:
    """Consecutive pieces along an axis: of the sizes ``split``, or equal ones."""
    sizes = None if split is None else [int(n) for n in split]
    return _split(x, sizes, axis, num_outputs or ctx.n_outputs)


@op("Split", since=1, host=(1,), raw=True)
@moves(0)
def split_1(
    x: Tensor,
    sizes: np.ndarray | None = None,
    *,
    split: Sequence[int] | None = None,
    axis: int = 0,
    ctx: Call,
) -> tuple[Tensor, ...]:
    """Before version 13 the sizes were an attribute (in version 1 possibly an input)."""
    wanted = split if sizes is None else [int(n) for n in sizes]
    return _split(x, wanted, axis, ctx.n_outputs)


@op("Concat", since=4, raw=True)
@moves(-1)
def concat(*xs: Tensor, axis: int) -> Tensor:
    """Tensors one after the other along an axis."""
    require_same(*xs)
    return manipulation.concat(xs, axis=axis)


@op("Concat", since=1, raw=True)
@moves(-1)
def concat_1(*xs: Tensor, axis: int = 1) -> Tensor:
    """Before version 4 the axis had a default."""
    require_same(*xs)
    return manipulation.concat(xs, axis=axis)


# --- margins -------------------------------------------------------------------------------------


def _reflected(at: Node, n: int) -> Node:
    """There and back again: positions repeat after ``2 (n - 1)``."""
    period = ew.literal(2 * (n - 1), at)
    forth = ew.remainder(at, period)
    return ew.minimum(forth, ew.sub(period, forth))


_PLACES: Final[dict[str, Callable[[Node, int], Node]]] = {
    "reflect": _reflected,
    "wrap": lambda at, n: ew.remainder(at, ew.literal(n, at)),
}
"""Which of n elements stands at a position, in a margin a negative one or one from n on."""


def padded(x: Node, widths: Sequence[tuple[int, int]], mode: str, value: Any) -> Node:
    """``x`` with margins (negative ones cut off); see :func:`pad`."""
    if mode not in ("constant", "edge", *_PLACES):
        raise UnsupportedError(f"mode is constant, reflect, edge or wrap, got {mode!r}")
    inner = [(max(0, -low), max(0, -high)) for low, high in widths]
    outer = [(max(0, low), max(0, high)) for low, high in widths]
    shape = views.sizes_of(x)
    left = [n - low - high for n, (low, high) in zip(shape, inner)]
    if min(left, default=0) < 0:
        raise ShapeError(f"margins {list(widths)} cut off more than there is of {shape}")
    x = views.slice_(x, [low for low, _ in inner], left)
    if mode == "constant":
        return views.pad(x, outer, value)
    for axis, (low, high) in enumerate(outer):
        if low or high:
            if left[axis] == 0:
                raise ShapeError(f"axis {axis} of {shape} is empty: there is nothing to {mode}")
            n = left[axis]
            around = [x]
            if low:
                around.insert(0, _margin(x, axis, n, low, mode, front=True))
            if high:
                around.append(_margin(x, axis, n, high, mode, front=False))
            x = views.concat(around, axis)
    return x


def _margin(x: Node, axis: int, n: int, count: int, mode: str, front: bool) -> Node:
    """``count`` elements before or behind x: a view of it where that will do."""

    def part(start: int, size: int) -> Node:
        sizes = list(views.sizes_of(x))
        sizes[axis] = size
        return views.slice_(x, [start if a == axis else 0 for a in range(len(sizes))], sizes)

    if mode == "edge":
        shape = list(views.sizes_of(x))
        shape[axis] = count
        return views.broadcast(part(0 if front else n - 1, 1), shape)
    if mode == "reflect" and count < n:
        return views.flip(part(1 if front else n - 1 - count, count), axis)
    if mode == "wrap" and count <= n:
        return part(n - count if front else 0, count)
    places = ew.iota((count,))
    places = ew.add(places, ew.literal(-count if front else n, places))
    return indexing.take(x, _PLACES[mode](places, n), axis)


def margins(pads: Sequence[int], rank: int, axes: Sequence[int] | None) -> list[tuple[int, int]]:
    """(before, after) of every axis from all befores, then all afters of ``axes``."""
    along = axes_in(range(rank) if axes is None else axes, rank)
    if len(pads) != 2 * len(along):
        raise ShapeError(f"wants two margins for each of {len(along)} axes, got {list(pads)}")
    widths = [(0, 0)] * rank
    for i, axis in enumerate(along):
        widths[axis] = int(pads[i]), int(pads[i + len(along)])
    return widths


@op("Pad", since=11, host=(1, 2, 3), raw=True)
def pad(
    x: Any,
    pads: np.ndarray,
    constant_value: np.ndarray | None = None,
    axes: np.ndarray | None = None,
    *,
    mode: str = "constant",
) -> Any:
    """Margins along axes: a constant, the mirrored inside, the edge, or the other end."""
    widths = margins(pads.reshape(-1).tolist(), x.ndim, None if axes is None else axes.tolist())
    value: Any = 0
    if constant_value is not None:
        value = constant_value.reshape(()).item() if constant_value.size else 0
    if isinstance(x, np.ndarray):
        return _pad_array(x, widths, mode, constant_value)
    return apply(padded, x, widths=widths, mode=mode, value=value)


def _pad_array(
    x: np.ndarray, widths: Sequence[tuple[int, int]], mode: str, value: np.ndarray | None
) -> np.ndarray:
    """Margins of what no tensor holds: the number behind the last element is the constant's."""
    fill = np.array("", object) if x.dtype == object else np.zeros((), x.dtype)
    if value is not None and value.size:
        fill = value.reshape(())
    numbers = tensor_of(np.arange(x.size).reshape(x.shape))
    source = np.append(x.reshape(-1), fill.reshape(1)).astype(x.dtype)
    places = apply(padded, numbers, widths=widths, mode=mode, value=x.size)
    return source[places.numpy()]


@op("Pad", since=2)
def pad_2(x: Tensor, *, pads: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Before version 11 by attributes."""
    return apply(padded, x, widths=margins(pads, x.ndim, None), mode=mode, value=value)


@op("Pad", since=1)
def pad_1(
    x: Tensor, *, paddings: Sequence[int], mode: str = "constant", value: float = 0.0
) -> Tensor:
    """Before version 2 the attribute had another name."""
    return pad_2(x, pads=paddings, mode=mode, value=value)


@op("CenterCropPad", since=18, host=(1,))
def center_crop_pad(x: Tensor, shape: np.ndarray, *, axes: Sequence[int] | None = None) -> Tensor:
    """Cut to (or surrounded by zeros up to) ``shape``, the middle staying in the middle."""
    along = axes_in(range(x.ndim) if axes is None else axes, x.ndim)
    if len(along) != shape.size:
        raise ShapeError(f"wants a size for each of {len(along)} axes, got {shape}")
    widths = [(0, 0)] * x.ndim
    for axis, size in zip(along, shape.tolist()):
        more = size - x.shape[axis]
        low = more // 2 if more >= 0 else -(-more // 2)
        widths[axis] = low, more - low
    return apply(padded, x, widths=widths, mode="constant", value=0)


# --- channels and space --------------------------------------------------------------------------


@op("DepthToSpace", raw=True)
@moves(0)
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels to blocks of ``blocksize`` by ``blocksize`` places."""
    from tilewright.ops import images

    return apply(images.depth_to_space, x, block=blocksize, mode=mode)


@op("SpaceToDepth", raw=True)
@moves(0)
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Blocks of ``blocksize`` by ``blocksize`` places to channels."""
    from tilewright.ops import images

    if mode != "DCR":
        return apply(_space_to_depth_crd, x, block=blocksize)
    return apply(images.space_to_depth, x, block=blocksize)


def _space_to_depth_crd(x: Node, block: int) -> Node:
    n, c, h, w = views.sizes_of(x)
    cut = views.reshape(x, (n, c, h // block, block, w // block, block))
    moved = views.permute(cut, (0, 1, 3, 5, 2, 4))
    return views.reshape(moved, (n, c * block * block, h // block, w // block))

"""Gathers and scatters. Negative indices count from the end; indices are int32 or int64."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.errors import DTypeError, ShapeError
from tilewright.graph import Node
from tilewright.onnx.ops.common import moves, require_same, tensor_of
from tilewright.onnx.registry import Call, op
from tilewright.ops import elementwise as ew
from tilewright.ops import indexing, indexing_nd, views
from tilewright.tensor.core import Tensor, apply


def from_the_front(ids: Node, n: int) -> Node:
    """Indices with those below zero counted from the end of ``n`` elements."""
    size, zero = ew.literal(n, ids), ew.literal(0, ids)
    return ew.where(ew.lt(ids, zero), ew.add(ids, size), ids)


def _known_from_the_front(ids: np.ndarray, n: int, axis: int) -> np.ndarray:
    """Known indices, checked."""
    found = np.where(ids < 0, ids + n, ids)
    if found.size and (found.min() < 0 or found.max() >= n):
        raise ShapeError(f"indices reach from {ids.min()} to {ids.max()}, axis {axis} has {n}")
    return found


def _check_ids(ids: Any) -> None:
    if ids.dtype.name not in ("i32", "i64"):
        raise DTypeError(f"indices are int32 or int64, got {ids.dtype}")


def rows_at(table: Tensor, ids: Tensor) -> Tensor:
    """The rows (n, ...) of a table at ids of any shape; an id outside reads zeros."""
    return apply(indexing.take, table, ids, axis=0)


@op("Gather", raw=True)
@moves(0)
def gather(x: Tensor, indices: Tensor, *, axis: int = 0, ctx: Call) -> Tensor:
    """The slices of ``x`` at ``indices`` along an axis."""
    _check_ids(indices)
    at = views.normal_axis(axis, x.ndim)
    n = x.shape[at]
    known = ctx.constant(indices)
    if known is not None and known.size == 1 and known.ndim < 2:
        first = int(known.reshape(()))
        if not -n <= first < n:
            raise ShapeError(f"index {first} of axis {axis}, which has {n}, does not exist")
        shape = known.shape
        return apply(_evenly, x, axis=at, first=first + n if first < 0 else first, shape=shape)
    if known is None or not isinstance(n, int):
        return apply(lambda a, i: indexing.take(a, from_the_front(i, n), at), x, indices)
    places = _known_from_the_front(known, n, at)
    if places.ndim == 1 and places.size:
        flat = places.tolist()
        step = flat[1] - flat[0]
        if step and flat == list(range(flat[0], flat[0] + step * len(flat), step)):
            return apply(_evenly, x, axis=at, first=flat[0], step=step, shape=places.shape)
    ids = indices if np.array_equal(places, known) else tensor_of(places)
    return apply(indexing.take, x, ids, axis=at)


def _evenly(x: Node, axis: int, first: int, shape: tuple[int, ...], step: int = 1) -> Node:
    """Evenly spaced slices, without a copy; ``shape`` is () for a single one without its axis."""
    rank = len(x.shape)
    starts = [first if a == axis else 0 for a in range(rank)]
    sizes = list(views.sizes_of(x))
    sizes[axis] = shape[0] if shape else 1
    part = views.slice_(x, starts, sizes, [step if a == axis else 1 for a in range(rank)])
    return part if shape else views.squeeze(part, axis)


@op("GatherElements", since=11, raw=True)
@moves(0)
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """For each place of ``indices`` the element of ``x`` with that index along an axis."""
    _check_ids(indices)
    at = views.normal_axis(axis, x.ndim)

    def build(node: Node, ids: Node) -> Node:
        node = _corner(node, ids, at)
        return indexing.take_along_axis(node, from_the_front(ids, x.shape[at]), at)

    return apply(build, x, indices)


def _corner(x: Node, ids: Node, axis: int) -> Node:
    """The part of ``x`` that indices of this shape reach: all along ``axis``."""
    if len(x.shape) != len(ids.shape):
        raise ShapeError(f"indices {ids.shape} and data {x.shape} differ in rank")
    sizes = [n if a == axis else m for a, (n, m) in enumerate(zip(x.shape, ids.shape))]
    return views.slice_(x, [0] * len(sizes), sizes)


@op("GatherND", since=11, raw=True)
@moves(0)
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """The slices of ``x`` at tuples of indices, the last axis of ``indices``."""
    _check_ids(indices)
    depth = indices.shape[-1]

    def build(node: Node, ids: Node) -> Node:
        return indexing_nd.gather_nd(node, _coordinates(ids, node.shape, batch_dims, depth))

    return apply(build, x, indices)


def _coordinates(ids: Node, shape: Any, batch: int, depth: int) -> Node:
    """Tuples of indices from the front; with the batch's own indices before them."""
    sizes = tensor_of(np.array(shape[batch : batch + depth], ids.dtype.storage)).node
    zero = ew.literal(0, ids)
    ids = ew.where(ew.lt(ids, zero), ew.add(ids, sizes), ids)
    lead = (*views.sizes_of(ids)[:-1], 1)
    batches = [ew.iota(lead, axis, ids.dtype) for axis in range(batch)]
    return views.concat([*batches, ids], len(lead) - 1) if batch else ids


# --- scatters ------------------------------------------------------------------------------------

_MODES = {"none": "set", "add": "add", "mul": "mul", "max": "max", "min": "min"}


def _mode(reduction: str) -> str:
    if reduction not in _MODES:
        raise ShapeError(f"reduction is {', '.join(_MODES)}, got {reduction!r}")
    return _MODES[reduction]


def _scatter_elements(x: Node, ids: Node, updates: Node, axis: int, mode: str) -> Node:
    shape = views.sizes_of(x)
    if len(ids.shape) != len(shape) or ids.shape != updates.shape:
        raise ShapeError(
            f"indices {ids.shape} and updates {updates.shape} have one shape of {len(shape)} axes"
        )
    ids = from_the_front(ids, shape[axis])
    if all(n == m for a, (n, m) in enumerate(zip(shape, ids.shape)) if a != axis):
        return indexing.put_along_axis(x, ids, updates, axis, mode)
    lead = (*views.sizes_of(ids), 1)
    columns = [
        views.reshape(ids, lead) if a == axis else ew.iota(lead, a, ids.dtype)
        for a in range(len(shape))
    ]
    return indexing_nd.scatter_nd(x, views.concat(columns, len(shape)), updates, mode)


@op("ScatterElements", since=11, raw=True)
@moves(0, 2)
def scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """``x`` with ``updates`` put (or reduced into it) at their indices along an axis."""
    return _put(x, indices, updates, axis, reduction)


def _put(x: Tensor, indices: Tensor, updates: Tensor, axis: int, reduction: str) -> Tensor:
    _check_ids(indices)
    require_same(x, updates)
    at = views.normal_axis(axis, x.ndim)
    return apply(_scatter_elements, x, indices, updates, axis=at, mode=_mode(reduction))


@op("Scatter", since=9, raw=True)
@moves(0, 2)
def scatter(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0) -> Any:
    """The first name of ScatterElements."""
    return _put(x, indices, updates, axis, "none")


@op("ScatterND", since=11, raw=True)
@moves(0, 2)
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """``x`` with slices put (or reduced into it) at tuples of indices."""
    _check_ids(indices)
    require_same(x, updates)
    depth = indices.shape[-1]

    def build(node: Node, ids: Node, values: Node) -> Node:
        places = _coordinates(ids, node.shape, 0, depth)
        return indexing_nd.scatter_nd(node, places, values, _mode(reduction))

    return apply(build, x, indices, updates)


@op("TensorScatter", since=24)
def tensor_scatter(
    past: Tensor,
    update: Tensor,
    write_indices: Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Tensor:
    """A cache with ``update`` written along ``axis`` from each sequence's index on."""
    require_same(past, update)
    at = views.normal_axis(axis, past.ndim)
    n = past.shape[at]
    if mode not in ("linear", "circular"):
        raise ShapeError(f"mode is linear or circular, got {mode!r}")

    def build(cache: Node, new: Node, *first: Node) -> Node:
        places = ew.iota(new.shape, at)  # type: ignore[arg-type]
        if first:
            apart = (-1, *(1,) * (past.ndim - 1))
            places = ew.add(places, views.reshape(ew.cast(first[0], places.dtype), apart))
        if mode == "circular":
            places = ew.remainder(places, ew.literal(n, places))
        return indexing.put_along_axis(cache, places, new, at)

    return apply(build, past, update, *([] if write_indices is None else [write_indices]))


@op("ReverseSequence", since=10, raw=True)
@moves(0)
def reverse_sequence(
    x: Tensor, sequence_lens: Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> Tensor:
    """The first elements of each sequence, as many as it is long, in reverse order."""

    def build(node: Node, lengths: Node) -> Node:
        shape = views.sizes_of(node)
        time = ew.iota(shape, time_axis)
        apart = [1] * len(shape)
        apart[batch_axis] = shape[batch_axis]
        count = views.reshape(ew.cast(lengths, time.dtype), apart)
        turned = ew.sub(ew.sub(count, ew.literal(1, count)), time)
        places = ew.where(ew.lt(time, count), turned, time)
        return indexing.take_along_axis(node, places, time_axis)

    return apply(build, x, sequence_lens)

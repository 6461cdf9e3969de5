"""Shapes and order: views where possible, copies where elements are repeated or joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilewright.errors import BoundsError, DTypeError, ShapeError
from tilewright.graph import Node
from tilewright.ops import views
from tilewright.sizes import has_value, whole
from tilewright.tensor.core import Tensor, apply, source, wrap
from tilewright.tensor.nodes import cast_node
from tilewright.tensor.promotion import promoted

__all__ = [
    "axes_of",
    "axis_of",
    "broadcast_arrays",
    "broadcast_shapes",
    "broadcast_to",
    "concat",
    "expand_dims",
    "flip",
    "matrix_transpose",
    "moveaxis",
    "pad",
    "permute_dims",
    "repeat",
    "reshape",
    "roll",
    "split",
    "squeeze",
    "stack",
    "tile",
    "unstack",
]


def axis_of(axis: int, rank: int, what: str) -> int:
    """``axis`` counted from the front; :class:`BoundsError` when there is no such axis."""
    at = axis.__index__()
    if not -rank <= at < rank:
        raise BoundsError(f"{what}: axis {at} is out of range for {rank} axes")
    return at % rank


def axes_of(axis: int | Sequence[int] | None, rank: int, what: str) -> tuple[int, ...]:
    """Axes counted from the front, in the order given; None is all of them."""
    if axis is None:
        return tuple(range(rank))
    given: Any = (axis,) if hasattr(axis, "__index__") else axis
    found = tuple([axis_of(a, rank, what) for a in given])
    if len(set(found)) != len(found):
        raise ShapeError(f"{what}: {axis} names an axis twice")
    return found


def reshape(x: Tensor, /, shape: Sequence[int], *, copy: bool | None = None) -> Tensor:
    """The same elements in row-major order with other sizes; one size may be -1.

    ``copy=True`` copies; ``copy=False`` raises ``ValueError`` when the layout in memory does not
    allow a view (which realises the tensor).
    """
    sizes = tuple([whole(n) for n in shape])
    if copy:
        return apply(lambda node: views.copy(views.reshape(node, sizes)), x)
    result = apply(views.reshape, x, shape=sizes)
    if copy is False and result.node is not x.node:
        given = x.buffer("reshape(copy=False)")
        if views.reshape_strides(given.shape, given.strides, result.shape) is None:
            raise ValueError(
                f"reshape: {given.shape} with strides {given.strides} cannot be seen as "
                f"{result.shape} without a copy"
            )
    return result


def permute_dims(x: Tensor, /, axes: tuple[int, ...]) -> Tensor:
    """Axis ``i`` of the result is axis ``axes[i]`` of ``x``."""
    order = axes_of(axes, x.ndim, "permute_dims")
    if len(order) != x.ndim:
        raise ShapeError(f"permute_dims: {axes} is no permutation of {x.ndim} axes")
    return apply(views.permute, x, axes=order)


def matrix_transpose(x: Tensor, /) -> Tensor:
    """The last two axes exchanged."""
    return x.mT


def moveaxis(
    x: Tensor,
    source: int | tuple[int, ...],
    destination: int | tuple[int, ...],
    /,
) -> Tensor:
    """Axes ``source`` moved to ``destination``; the others keep their order."""
    taken = axes_of(source, x.ndim, "moveaxis")
    placed = axes_of(destination, x.ndim, "moveaxis")
    if len(taken) != len(placed):
        raise ShapeError(f"moveaxis: {len(taken)} axes to {len(placed)} places")
    order = [a for a in range(x.ndim) if a not in taken]
    for place, axis in sorted(zip(placed, taken)):
        order.insert(place, axis)
    return apply(views.permute, x, axes=tuple(order))


def expand_dims(x: Tensor, /, *, axis: int | tuple[int, ...] = 0) -> Tensor:
    """With a new axis of size 1 at ``axis`` of the result."""
    if isinstance(axis, tuple):
        places = axes_of(axis, x.ndim + len(axis), "expand_dims")
    else:
        places = (axis_of(axis, x.ndim + 1, "expand_dims"),)
    sizes = list(x.shape)
    for place in sorted(places):
        sizes.insert(place, 1)
    return apply(views.reshape, x, shape=tuple(sizes))


def squeeze(x: Tensor, /, axis: int | tuple[int, ...]) -> Tensor:
    """Without ``axis``, which must have size 1 (``ValueError``)."""
    gone = axes_of(axis, x.ndim, "squeeze")
    for a in gone:
        if x.shape[a] != 1:
            raise ValueError(f"squeeze: axis {a} of {x.shape} has size {x.shape[a]}, not 1")
    return apply(views.reshape, x, shape=tuple(n for a, n in enumerate(x.shape) if a not in gone))


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that all of ``shapes`` broadcast to."""
    return views.broadcast_shapes(*[tuple(s) for s in shapes])  # type: ignore[return-value]


def broadcast_to(x: Tensor, /, shape: tuple[int, ...]) -> Tensor:
    """``x`` repeated along axes of size 1 and new leading ones, without a copy."""
    return apply(views.broadcast, x, shape=tuple(shape))


def broadcast_arrays(*arrays: Tensor) -> tuple[Tensor, ...]:
    """The tensors broadcast to one shape."""
    shape = views.broadcast_shapes(*[x.shape for x in arrays])
    return tuple([apply(views.broadcast, x, shape=shape) for x in arrays])


def flip(x: Tensor, /, *, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """The elements along ``axis`` (default all axes) in reverse order, without a copy."""
    return apply(views.flip, x, axes=axes_of(axis, x.ndim, "flip"))


def roll(
    x: Tensor,
    /,
    shift: int | tuple[int, ...],
    *,
    axis: int | tuple[int, ...] | None = None,
) -> Tensor:
    """Elements moved on by ``shift`` along ``axis``; those that fall off come in at the front.

    Without ``axis`` the elements move in row-major order.
    """
    if axis is None:
        total = sum(shift) if isinstance(shift, tuple) else shift
        flat = reshape(x, (-1,)) if x.size else reshape(x, (0,))
        return reshape(roll(flat, total, axis=0), x.shape)
    axes = (axis,) if not isinstance(axis, tuple) else axis
    shifts = shift if isinstance(shift, tuple) else (shift,) * len(axes)
    if len(shifts) != len(axes):
        raise ShapeError(f"roll: {len(shifts)} shifts for {len(axes)} axes")

    def build(node: Node) -> Node:
        for a, by in zip(axes, shifts):
            at = axis_of(a, len(node.shape), "roll")
            n = x.shape[at]
            by = by % n if n else 0
            if by:
                head, tail = views.split(node, [n - by, by], at)
                node = views.concat([tail, head], at)
        return node

    return apply(build, x)


def _common(name: str, arrays: Sequence[Tensor]) -> list[Node]:
    """The nodes of ``arrays`` in their common dtype."""
    if not arrays:
        raise ShapeError(f"{name} wants at least one tensor")
    for x in arrays:
        if not isinstance(x, Tensor):
            raise DTypeError(f"{name} wants tensors, got {type(x).__name__}: use asarray() first")
    dtype = arrays[0].dtype
    for x in arrays[1:]:
        dtype = promoted(dtype, x.dtype)
    return [cast_node(source(x), dtype) for x in arrays]


def concat(arrays: Sequence[Tensor], /, *, axis: int | None = 0) -> Tensor:
    """Tensors one after the other along ``axis``, promoted; flattened first if it is None."""
    arrays = list(arrays)
    nodes = _common("concat", arrays)
    if axis is None:
        nodes = [views.reshape(n, (-1 if 0 not in n.shape else 0,)) for n in nodes]
    at = 0 if axis is None else axis_of(axis, len(nodes[0].shape), "concat")
    return wrap(views.concat(nodes, at), *arrays)


def stack(arrays: Sequence[Tensor], /, *, axis: int = 0) -> Tensor:
    """Tensors of one shape along a new axis, promoted."""
    arrays = list(arrays)
    nodes = _common("stack", arrays)
    for node in nodes[1:]:
        if node.shape != nodes[0].shape:
            raise ShapeError(f"stack: shapes {nodes[0].shape} and {node.shape} differ")
    at = axis_of(axis, len(nodes[0].shape) + 1, "stack")
    return wrap(views.stack(nodes, at), *arrays)


def unstack(x: Tensor, /, *, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices of ``x`` along ``axis``, without copies."""
    at = axis_of(axis, x.ndim, "unstack")
    return tuple([squeeze(piece, at) for piece in split(x, [1] * x.shape[at], axis=at)])


def split(x: Tensor, sizes: int | Sequence[int], /, *, axis: int = 0) -> tuple[Tensor, ...]:
    """Consecutive pieces of ``sizes`` (or one size for all but the last), without copies."""
    at = axis_of(axis, x.ndim, "split")
    n = x.shape[at]
    if has_value(sizes):
        most: Any = sizes
        parts = [min(most, n - i * most) for i in range(-(-n // most))]
    else:
        parts = list(sizes)  # type: ignore[arg-type]
    if sum(parts) != n:
        raise ShapeError(f"split: {tuple(parts)} do not add up to axis {at} of {x.shape}")
    pieces = views.split(source(x), parts, at)
    return tuple([wrap(p, x) for p in pieces])


def pad(
    x: Tensor,
    widths: int | tuple[int, int] | Sequence[tuple[int, int]],
    /,
    *,
    value: bool | int | float = 0,
) -> Tensor:
    """``x`` with ``(before, after)`` elements of ``value`` more along each axis."""
    margins: Any = widths
    if has_value(margins):
        margins = (margins, margins)
    if len(margins) == 2 and all(has_value(w) for w in margins):
        margins = [margins] * x.ndim
    return apply(views.pad, x, widths=tuple([tuple(m) for m in margins]), value=value)


def repeat(x: Tensor, repeats: int | Tensor, /, *, axis: int | None = None) -> Tensor:
    """Each element (along ``axis``, or of the flattened tensor) ``repeats`` times.

    ``repeats`` may say a number for each element (or one for all): then its values are read, for
    they decide the shape of the result.
    """
    from tilewright.tensor.creation import asarray

    if axis is None:
        x, axis = reshape(x, (x.size,)), 0
    at = axis_of(axis, x.ndim, "repeat")
    n = x.shape[at]
    if isinstance(repeats, Tensor):
        counts = repeats.buffer("repeat() with counts in a tensor").numpy().reshape(-1).tolist()
        if len(counts) not in (1, n):
            raise ShapeError(f"repeat: {len(counts)} counts for {n} elements along axis {at}")
        if any(c < 0 for c in counts):
            raise ValueError("repeat: counts are not negative")
        if len(counts) == n:
            from tilewright.tensor.indexing import take

            ids = [i for i, count in enumerate(counts) for _ in range(count)]
            return take(x, asarray(ids, dtype="i64"), axis=at)
        repeats = counts[0]
    count = whole(repeats)
    if count < 0:
        raise ValueError(f"repeat: counts are not negative, got {count}")
    shape = x.shape

    def build(node: Node) -> Node:
        apart = views.reshape(node, (*shape[: at + 1], 1, *shape[at + 1 :]))
        wide = views.broadcast(apart, (*shape[: at + 1], count, *shape[at + 1 :]))
        return views.reshape(wide, (*shape[:at], n * count, *shape[at + 1 :]))

    return apply(build, x)


def tile(x: Tensor, repetitions: tuple[int, ...], /) -> Tensor:
    """``x`` laid side by side ``repetitions[i]`` times along axis ``i`` (counted from the back)."""
    times = tuple(repetitions)
    rank = max(x.ndim, len(times))
    times = (1,) * (rank - len(times)) + times
    sizes = (1,) * (rank - x.ndim) + x.shape
    if any(t < 0 for t in times):
        raise ValueError(f"tile: repetitions are not negative, got {repetitions}")

    def build(node: Node) -> Node:
        apart: list[int] = []
        wide: list[int] = []
        for t, n in zip(times, sizes):
            apart += [1, n]
            wide += [t, n]
        node = views.broadcast(views.reshape(node, tuple(apart)), tuple(wide))
        return views.reshape(node, tuple(t * n for t, n in zip(times, sizes)))

    return apply(build, x)

"""``x[key]`` and ``x[key] = value`` with NumPy's meaning, and ``take``.

Integers, slices, ``None`` and ``...`` make views. Integer tensors gather. Boolean masks decide the
shape of a result, so their values are read; a mask that is assigned a number through is not.
An index out of range raises :class:`BoundsError`: where it is used if its value is known, else by
the program that computes it (see :mod:`tilewright.tensor.bounds`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.dtypes import boolean, i32, i64
from tilewright.errors import BoundsError, DTypeError, ShapeError
from tilewright.graph import Node, scalar_node
from tilewright.ops import elementwise as ew
from tilewright.ops import indexing as ops
from tilewright.ops import views
from tilewright.ops.bounds import known_range
from tilewright.sizes import length_of, slice_indices, whole
from tilewright.tensor.bounds import checked_ids
from tilewright.tensor.core import DERIVED, LEAF, Tensor, apply, source, wrap
from tilewright.tensor.elementwise import check_tensor
from tilewright.tensor.manipulation import axis_of
from tilewright.tensor.modes import mode
from tilewright.tensor.nodes import cast_node, fresh, number_node
from tilewright.tensor.promotion import DEFAULT_INT, scalar_dtype

__all__ = ["getitem", "setitem", "take", "take_along_axis"]


@dataclass(frozen=True)
class _Key:
    """A parsed key.

    Attributes:
        starts, sizes, steps: what is taken of each axis of the tensor; axes with an integer or an
            array keep all (integers beside arrays are arrays).
        kept: axes of the view: a number is the tensor's axis, None a new axis, integers are gone.
        arrays: position in ``kept`` and ids of axes that are gathered.
        together: whether the arrays stand side by side in the key.
    """

    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    kept: tuple[int | None, ...]
    arrays: tuple[tuple[int, Tensor], ...]
    together: bool


def getitem(x: Tensor, key: Any) -> Tensor:
    """``x[key]``."""
    if key.__class__ is int and x.node.shape:
        return _row(x, key)
    if isinstance(key, Tensor) and key.dtype is boolean:
        return _masked(x, key)
    parsed = _parse(x, key if isinstance(key, tuple) else (key,))
    result = apply(_view, x, key=parsed)
    return _gathered(result, parsed) if parsed.arrays else result


def _row(x: Tensor, i: int) -> Tensor:
    shape = x.shape
    n = shape[0]
    if not -n <= i < n:
        raise BoundsError(f"index {i} is out of range for axis 0 of {shape}")
    rest = (0,) * (len(shape) - 1)

    def build(node: Node) -> Node:
        return views.reshape(views.slice_(node, (i % n, *rest), (1, *shape[1:])), shape[1:])

    return apply(build, x)


def _view(node: Node, key: _Key) -> Node:
    node = views.slice_(node, key.starts, key.sizes, key.steps)
    return views.reshape(node, tuple([1 if a is None else key.sizes[a] for a in key.kept]))


def _parse(x: Tensor, key: tuple[Any, ...]) -> _Key:
    """The meaning of ``key`` for ``x``; masks become arrays of ids."""
    items = _without_masks(x, [_item(k) for k in key])
    named = sum(1 for k in items if k is not None and k is not Ellipsis)
    if sum(1 for k in items if k is Ellipsis) > 1:
        raise BoundsError("an index has at most one '...'")
    if named > x.ndim:
        raise BoundsError(f"{named} indices for the {x.ndim} axes of {x.shape}")
    if Ellipsis not in [k for k in items if k is Ellipsis]:
        items.append(Ellipsis)
    gathers = any(isinstance(k, Tensor) for k in items)
    starts, sizes, steps = [0] * x.ndim, list(x.shape), [1] * x.ndim
    kept: list[int | None] = []
    arrays: list[tuple[int, Tensor]] = []
    places: list[int] = []  # where in the key the arrays stand
    axis = 0
    for place, k in enumerate(items):
        if k is None:
            kept.append(None)
            continue
        if k is Ellipsis:
            for _ in range(x.ndim - named):
                kept.append(axis)
                axis += 1
            continue
        n = x.shape[axis]
        if isinstance(k, slice):
            first, stop, step = slice_indices(k, n)
            size = length_of(first, stop, step)
            starts[axis], sizes[axis], steps[axis] = (first if size else 0), size, step
            kept.append(axis)
        elif isinstance(k, Tensor):
            places.append(place)
            arrays.append((len(kept), _ids(k, n, axis, x.shape, "index")))
            kept.append(axis)
        else:
            if not -n <= k < n:
                raise BoundsError(f"index {k} is out of range for axis {axis} of {x.shape}")
            starts[axis], sizes[axis] = k % n, 1
            if gathers:  # an integer beside arrays counts as one
                places.append(place)
        axis += 1
    together = bool(places) and places[-1] - places[0] == len(places) - 1
    return _Key(tuple(starts), tuple(sizes), tuple(steps), tuple(kept), tuple(arrays), together)


def _item(k: Any) -> Any:
    """One index as an int, a slice of ints, None, ``...`` or a tensor."""
    if k is None or k is Ellipsis or isinstance(k, Tensor):
        return k
    if isinstance(k, slice):
        return slice(*[None if v is None else _whole(v) for v in (k.start, k.stop, k.step)])
    if isinstance(k, (bool, np.bool_, list, np.ndarray)):
        from tilewright.tensor.creation import asarray

        found = asarray(k)
        return found.astype(i64) if isinstance(k, list) and not k else found
    return _whole(k)


def _whole(value: Any) -> int:
    try:
        return whole(value)
    except TypeError:
        raise BoundsError(
            "an index is an integer, a slice, None, '...', or a tensor or list of integers or "
            f"bool; got {type(value).__name__}"
        ) from None


def _without_masks(x: Tensor, items: Sequence[Any]) -> list[Any]:
    """``items`` with each mask replaced by the ids of its true elements, one tensor per axis."""
    named = sum(
        max(k.ndim, 0) if isinstance(k, Tensor) and k.dtype is boolean else 1
        for k in items
        if k is not None and k is not Ellipsis
    )
    out: list[Any] = []
    axis = 0
    for k in items:
        if isinstance(k, Tensor) and k.dtype is boolean:
            _check_mask(x, k, axis)
            if k.ndim == 0:
                raise BoundsError("a 0-d mask cannot be combined with other indices: use where()")
            out += _true_ids(k)
            axis += k.ndim
            continue
        out.append(k)
        if k is Ellipsis:
            axis += x.ndim - named
        elif k is not None:
            axis += 1
    return out


def _check_mask(x: Tensor, mask: Tensor, axis: int) -> None:
    if x.shape[axis : axis + mask.ndim] != mask.shape:
        raise BoundsError(
            f"a mask of shape {mask.shape} does not fit axes {axis} to {axis + mask.ndim - 1} of "
            f"{x.shape}"
        )


def _true_ids(mask: Tensor) -> list[Tensor]:
    """Where ``mask`` is true: one tensor of ids per axis."""
    from tilewright.tensor.creation import from_numpy

    values = mask.buffer("a boolean mask as an index").numpy()
    return [from_numpy(ids.astype(np.int64), copy=False) for ids in np.nonzero(values)]


def _ids(k: Tensor, n: int, axis: int, shape: tuple[int, ...], what: str) -> Tensor:
    """Ids into an axis of ``n``, none negative."""
    if not k.dtype.is_integer:
        raise BoundsError(f"an index tensor has integers or bool, got {k.dtype}")
    node = checked_ids(k, -n, n, what, (f"axis {axis} of ", shape)).node
    found = known_range(node)
    if found is None or found[0] >= 0 or _none_negative(node):
        return Tensor(node if node.dtype in (i32, i64) else cast_node(node, i64))
    return Tensor(_from_the_front(node, n))


def _none_negative(node: Node) -> bool:
    """Whether the ids are there, and none is below zero."""
    if node.value is None or mode.trace is not None:
        return False
    values = node.value.numpy()
    return not values.size or int(values.min()) >= 0


def _from_the_front(node: Node, n: int) -> Node:
    """Ids with negative ones counted from the end."""
    kind = node.dtype.kind
    if node.dtype not in (i32, i64):
        node = cast_node(node, i64)
    if kind == "u":
        return node
    size = scalar_node(n, node.dtype)
    return ew.where(ew.lt(node, scalar_node(0, node.dtype)), ew.add(node, size), node)


def _gathered(x: Tensor, key: _Key) -> Tensor:
    """The elements of the view ``x`` at the ids of ``key``."""
    if len(key.arrays) == 1:
        ((place, ids),) = key.arrays
        taken = apply(ops.take, x, ids, axis=place)
        if key.together or place == 0:
            return taken
        moved = tuple(range(place, place + ids.ndim))
        rest = [a for a in range(taken.ndim) if a not in moved]
        return apply(views.permute, taken, axes=(*moved, *rest))
    places = [place for place, _ in key.arrays]
    shape = views.broadcast_shapes(*[ids.shape for _, ids in key.arrays])
    columns = [views.broadcast(cast_node(ids.node, DEFAULT_INT), shape) for _, ids in key.arrays]
    index = views.stack(columns, len(shape))
    rest = [a for a in range(x.ndim) if a not in places]
    first = places[0] if key.together else 0

    def build(node: Node) -> Node:
        taken = ops.gather_nd(views.permute(node, (*places, *rest)), index)
        lead = list(range(len(shape), len(shape) + first))
        tail = list(range(len(shape) + first, len(taken.shape)))
        return views.permute(taken, (*lead, *range(len(shape)), *tail))

    return apply(build, x)


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    """``x[mask]``: the elements (or the rest of the axes) where the mask is true, in order."""
    _check_mask(x, mask, 0)
    flat = _flat_ids(mask)
    rest = x.shape[mask.ndim :]

    def build(node: Node) -> Node:
        return ops.take(views.reshape(node, (math.prod(mask.shape), *rest)), flat.node, 0)

    return apply(build, x)


def _flat_ids(mask: Tensor) -> Tensor:
    from tilewright.tensor.creation import from_numpy

    values = mask.buffer("a boolean mask as an index").numpy()
    return from_numpy(np.flatnonzero(values).astype(np.int64), copy=False)


# assignment


def setitem(x: Tensor, key: Any, value: Any) -> None:
    """``x[key] = value``: gives ``x`` a new value; what was computed from the old one keeps it."""
    given = _value(x, value)
    if x._tracks == LEAF and mode.grad:
        raise DTypeError(
            "a tensor that requires_grad is changed in place, which would be part of its own "
            "history: use where(), or do it under tilewright.no_grad()"
        )
    base, new = source(x), source(given)
    if isinstance(key, Tensor) and key.dtype is boolean:
        node = _set_masked(x, base, key, given, new)
    else:
        parsed = _parse(x, key if isinstance(key, tuple) else (key,))
        if parsed.arrays:
            node = _set_gathered(x, base, parsed, new)
        else:
            sizes = tuple([1 if a is None else parsed.sizes[a] for a in parsed.kept])
            new = views.reshape(_broadcast(new, sizes), parsed.sizes)
            node = _set_slices(base, new, parsed, 0)
    if node is base or node is new:
        node = fresh(node)
    tracks = mode.grad and bool(x._tracks or given._tracks)
    x._rebind(node, LEAF if x._tracks == LEAF else DERIVED if tracks else 0)


def _value(x: Tensor, value: Any) -> Tensor:
    """``value`` in the dtype of ``x``."""
    if isinstance(value, (bool, int, float)):
        if scalar_dtype(value, x.dtype) is not x.dtype:
            raise DTypeError(f"{value!r} does not fit a tensor of {x.dtype}: cast one of them")
        return Tensor(number_node(value, x.dtype))
    if not isinstance(value, Tensor):
        from tilewright.tensor.creation import asarray

        value = asarray(value)
    if value.dtype is x.dtype:
        return value
    order = "biuf"
    lower = order.index(value.dtype.kind) <= order.index(x.dtype.kind)
    if not lower and not (value.dtype.is_integer and x.dtype.is_integer):
        raise DTypeError(f"{value.dtype} does not fit a tensor of {x.dtype}: cast one of them")
    return apply(cast_node, value, dtype=x.dtype)


def _broadcast(node: Node, shape: tuple[int, ...]) -> Node:
    """``node`` in the shape of a selection; leading axes of size 1 too many are dropped."""
    extra = len(node.shape) - len(shape)
    if extra > 0 and all(n == 1 for n in node.shape[:extra]):
        node = views.reshape(node, node.shape[extra:])
    return views.broadcast(node, shape)


def _set_slices(base: Node, new: Node, key: _Key, axis: int) -> Node:
    """``base`` with ``new`` at the places that ``key`` takes, from ``axis`` on."""
    shape: Any = base.shape
    while axis < len(shape) and key.sizes[axis] == shape[axis] and key.steps[axis] == 1:
        axis += 1
    if axis == len(shape) or 0 in new.shape:
        return new if axis == len(shape) else base
    start, size, step = key.starts[axis], key.sizes[axis], key.steps[axis]
    starts, sizes, steps = [0] * len(shape), list(shape), [1] * len(shape)
    starts[axis], sizes[axis], steps[axis] = start, size, step
    inner = _set_slices(views.slice_(base, starts, sizes, steps), new, key, axis + 1)
    if step < 0:
        inner, start, step = views.flip(inner, axis), start + (size - 1) * step, -step
    if step == 1 or size == 1:
        before, _, after = views.split(base, [start, size, shape[axis] - start - size], axis)
        pieces = [p for p in (before, inner, after) if p.shape[axis]]
        return views.concat(pieces, axis)
    ids = ew.iota((size,), 0, DEFAULT_INT)
    ids = ew.add(ew.mul(ids, scalar_node(step, DEFAULT_INT)), scalar_node(start, DEFAULT_INT))
    return ops.scatter(base, ids, inner, axis)


def _set_masked(x: Tensor, base: Node, mask: Tensor, given: Tensor, new: Node) -> Node:
    _check_mask(x, mask, 0)
    rest = x.shape[mask.ndim :]
    if given.size == 1:
        spread = views.reshape(mask.node, (*mask.shape, *(1 for _ in rest)))
        return ew.where(spread, views.reshape(new, ()), base)
    ids = _flat_ids(mask)
    count = math.prod(mask.shape)
    flat = views.reshape(base, (count, *rest))
    filled = ops.scatter(flat, ids.node, _broadcast(new, (*ids.shape, *rest)), 0)
    return views.reshape(filled, x.shape)


def _set_gathered(x: Tensor, base: Node, key: _Key, new: Node) -> Node:
    whole = key.sizes == x.shape and all(s == 1 for s in key.steps) and None not in key.kept
    if whole and len(key.arrays) == 1:
        ((place, ids),) = key.arrays
        shape = (*x.shape[:place], *ids.shape, *x.shape[place + 1 :])
        rows = views.reshape(
            _broadcast(new, shape), (*x.shape[:place], ids.size, *x.shape[place + 1 :])
        )
        return ops.scatter(base, views.reshape(ids.node, (ids.size,)), rows, place)
    # the position of every element that is written, in the order of the selection
    positions = views.reshape(ew.iota((x.size,), 0, DEFAULT_INT), x.shape)
    chosen = _gathered(Tensor(_view(positions, key)), key)
    rows = views.reshape(_broadcast(new, chosen.shape), (chosen.size,))
    flat = views.reshape(base, (x.size,))
    filled = ops.scatter(flat, views.reshape(chosen.node, (chosen.size,)), rows, 0)
    return views.reshape(filled, x.shape)


# functions of the standard


def take(x: Tensor, indices: Tensor, /, *, axis: int | None = None) -> Tensor:
    """The slices of ``x`` at ``indices`` along ``axis`` (which only a vector may leave out).

    x (..., n, ...) and indices of any shape (k...) give (..., k..., ...).
    """
    if axis is None:
        if check_tensor("take", x).ndim != 1:
            raise ShapeError(f"take wants an axis for a tensor of shape {x.shape}")
        axis = 0
    at = axis_of(axis, x.ndim, "take")
    ids = _ids(check_tensor("take", indices), x.shape[at], at, x.shape, "take: index")
    return apply(ops.take, x, ids, axis=at)


def take_along_axis(x: Tensor, indices: Tensor, /, *, axis: int = -1) -> Tensor:
    """For each place of ``indices`` the element of ``x`` with that index along ``axis``.

    The other axes of the two broadcast.
    """
    at = axis_of(axis, check_tensor("take_along_axis", x).ndim, "take_along_axis")
    if check_tensor("take_along_axis", indices).ndim != x.ndim:
        raise ShapeError(
            f"take_along_axis wants as many axes, got {x.shape} and indices {indices.shape}"
        )
    ids = _ids(indices, x.shape[at], at, x.shape, "take_along_axis: index")
    others = views.broadcast_shapes(
        (*x.shape[:at], 1, *x.shape[at + 1 :]), (*ids.shape[:at], 1, *ids.shape[at + 1 :])
    )
    wide = (*others[:at], x.shape[at], *others[at + 1 :])
    spread = views.broadcast(ids.node, (*others[:at], ids.shape[at], *others[at + 1 :]))
    return wrap(ops.take_along_axis(views.broadcast(source(x), wide), spread, at), x)

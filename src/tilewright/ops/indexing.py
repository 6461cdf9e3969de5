"""Gathers and scatters along axes: take, take_along_axis, gather_nd, and what undoes them.

Ids are i32 or i64 and count from zero; a Tensor's negative indices are made positive before. An id
that is not there reads zero and writes nothing, on every target: whoever wants an error checks the
ids first (:mod:`tilewright.ops.bounds`).

Scatters visit the updates in ascending position: sums are added in that order, starting from the
base, and of several values set at one place the last stays. Sums of f16 and bf16 are kept in f32
and rounded once.

Each gather's gradient is a scatter and the other way round, so gradients of any order exist. The
gradient of ``take`` along axis 0 is ``scatter_rows(ids, rows, n)``, which an optimiser may leave
unevaluated: its two inputs are the sparse gradient (see :func:`unique_rows`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.ops import elementwise, views
from tilewright.ops.calls import KernelCall
from tilewright.ops.indexing_kernels import (
    scatter_along_calls,
    scatter_calls,
    take_along_calls,
    take_calls,
)
from tilewright.ops.indexing_nd import gather_nd, scatter_nd, scatter_nd_zeros
from tilewright.ops.indexing_rules import (
    accumulator,
    axis_of,
    check_ids,
    check_updates,
    is_inside,
    marks_for,
    places_along,
    positions,
    put_in_order,
    reduced_gradient,
    scattered,
    size_of,
    sum_dtype,
    where_last,
    zeros_of,
)
from tilewright.ops.table import OpDef, make, register

__all__ = [
    "gather_nd",
    "put_along_axis",
    "scatter",
    "scatter_add",
    "scatter_along_axis",
    "scatter_nd",
    "scatter_nd_zeros",
    "scatter_rows",
    "take",
    "take_along_axis",
]

Inputs = Sequence[Node]
Attrs = Mapping[str, Any]


# --- take and scatter ----------------------------------------------------------------------------


def _take_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    x, ids = inputs
    check_ids("take", ids)
    axis = attrs["axis"]
    return (*x.shape[:axis], *ids.shape, *x.shape[axis + 1 :]), x.dtype


def _take_reference(x: np.ndarray, ids: np.ndarray, axis: int) -> np.ndarray:
    n = x.shape[axis]
    if n == 0:
        return np.zeros((*x.shape[:axis], *ids.shape, *x.shape[axis + 1 :]), x.dtype)
    inside = is_inside(ids, n)
    out = np.take(x, np.where(inside, ids, 0), axis)
    mask = inside.reshape((1,) * axis + ids.shape + (1,) * (x.ndim - axis - 1))
    return np.where(mask, out, np.zeros((), x.dtype))


def _take_calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    x, ids = inputs
    return take_calls(x, ids, out, node.attrs["axis"])


def _take_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    x, ids = node.inputs
    axis = node.attrs["axis"]
    return scatter_rows(ids, grad, size_of(x, axis), axis), None


register(OpDef("take", _take_infer, _take_reference, calls=_take_calls, gradient=_take_gradient))


def take(x: Node, ids: Node, axis: int = 0) -> Node:
    """``x`` at ``ids`` along ``axis``: x (o.., n, i..), ids (k..) -> (o.., k.., i..)."""
    return make("take", x, ids, axis=axis_of("take", x, axis))


def _along_shape(rows: Node, ids: Node, axis: int, n: int) -> tuple[Any, ...]:
    """The shape that ``scatter_rows`` makes."""
    last = axis + len(ids.shape)
    return (*rows.shape[:axis], n, *rows.shape[last:])


def _rows_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    ids, rows = inputs
    check_ids("scatter_rows", ids)
    axis = attrs["axis"]
    last = axis + len(ids.shape)
    want = (*rows.shape[:axis], *ids.shape, *rows.shape[last:])
    if len(rows.shape) < last:
        want = (*rows.shape[:axis], *ids.shape)
    check_updates("scatter_rows", rows, want, rows.dtype, "add")
    return _along_shape(rows, ids, axis, attrs["n"]), rows.dtype


def _rows_reference(ids: np.ndarray, rows: np.ndarray, n: int, axis: int) -> np.ndarray:
    base = np.zeros((*rows.shape[:axis], n, *rows.shape[axis + ids.ndim :]), rows.dtype)
    return _scatter_reference(base, ids, rows, axis, "add")


def _scatter_reference(
    x: np.ndarray, ids: np.ndarray, updates: np.ndarray, axis: int, mode: str
) -> np.ndarray:
    out = np.moveaxis(x.astype(sum_dtype(x)), axis, 0)
    many = range(axis, axis + ids.ndim)
    rows = np.moveaxis(updates, tuple(many), tuple(range(ids.ndim)))
    return np.moveaxis(put_in_order(out, (ids,), rows, mode), 0, axis)


def _rows_calls(node: Node, inputs: Sequence[Any], out: Any, work: Any = ()) -> list[KernelCall]:
    ids, rows = inputs
    axis = node.attrs["axis"]
    return scattered(None, out, work, lambda t: scatter_calls(ids, rows, t, axis, "add"))


def _rows_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    return None, take(grad, node.inputs[0], node.attrs["axis"])


register(
    OpDef(
        "scatter_rows",
        _rows_infer,
        _rows_reference,
        calls=_rows_calls,
        workspace=accumulator,
        gradient=_rows_gradient,
    )
)


def scatter_rows(ids: Node, rows: Node, n: int, axis: int = 0) -> Node:
    """Zeros with ``rows`` added at ``ids`` along ``axis``, the transpose of :func:`take`.

    ids (k..), rows (o.., k.., i..) -> (o.., n, i..). As the gradient of a table's lookup this node
    is a sparse gradient: ``node.inputs`` are the ids and the rows.
    """
    return make("scatter_rows", ids, rows, n=n, axis=axis)


def _scatter_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    x, ids, updates = inputs
    check_ids("scatter", ids)
    axis = attrs["axis"]
    want = (*x.shape[:axis], *ids.shape, *x.shape[axis + 1 :])
    check_updates("scatter", updates, want, x.dtype, attrs["mode"])
    return x.shape, x.dtype


def _scatter_calls(node: Node, inputs: Sequence[Any], out: Any, work: Any = ()) -> list[KernelCall]:
    x, ids, updates = inputs
    axis, mode = node.attrs["axis"], node.attrs["mode"]
    return scattered(x, out, work, lambda t: scatter_calls(ids, updates, t, axis, mode))


def _scatter_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    _, ids, updates = node.inputs
    axis = node.attrs["axis"]
    taken = take(grad, ids, axis)
    if node.attrs["mode"] == "add":
        return grad, None, taken
    if node.attrs["mode"] != "set":
        return reduced_gradient(
            node,
            grad,
            lambda y: take(y, ids, axis),
            lambda y, more: scatter(y, ids, more, axis, "add"),
        )
    places = positions(updates, axis, len(ids.shape))
    marks = take(scatter(marks_for(node), ids, places, axis), ids, axis)
    cleared = scatter(grad, ids, zeros_of(updates), axis)
    return cleared, None, where_last(marks, places, taken)


register(
    OpDef(
        "scatter",
        _scatter_infer,
        _scatter_reference,
        calls=_scatter_calls,
        workspace=accumulator,
        gradient=_scatter_gradient,
    )
)


def scatter(x: Node, ids: Node, updates: Node, axis: int = 0, mode: str = "set") -> Node:
    """``x`` with ``updates`` set (or by ``mode`` add, mul, max, min) at ``ids`` along ``axis``.

    x (o.., n, i..), ids (k..), updates (o.., k.., i..) -> the shape of x. An update that a later
    one overwrites gets no gradient.
    """
    return make("scatter", x, ids, updates, axis=axis_of("scatter", x, axis), mode=mode)


def scatter_add(x: Node, ids: Node, updates: Node, axis: int = 0) -> Node:
    """``x`` plus ``updates`` at ``ids`` along ``axis``; see :func:`scatter`."""
    return scatter(x, ids, updates, axis, "add")


# --- along an axis, one id per element -----------------------------------------------------------


def _check_along(op: str, ids: Node, shape: Sequence[Any], axis: int) -> None:
    check_ids(op, ids)
    rest = (*shape[:axis], *shape[axis + 1 :])
    if (*ids.shape[:axis], *ids.shape[axis + 1 :]) != rest or len(ids.shape) != len(shape):
        raise ShapeError(
            f"{op} along axis {axis} of {shape_of(tuple(shape))} wants ids of the same other "
            f"axes, got {shape_of(ids.shape)}"
        )


def _along_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    x, ids = inputs
    _check_along("take_along_axis", ids, x.shape, attrs["axis"])
    return ids.shape, x.dtype


def _along_reference(x: np.ndarray, ids: np.ndarray, axis: int) -> np.ndarray:
    if x.shape[axis] == 0:
        return np.zeros(ids.shape, x.dtype)
    inside = is_inside(ids, x.shape[axis])
    out = np.take_along_axis(x, np.where(inside, ids, 0), axis)
    return np.where(inside, out, np.zeros((), x.dtype))


def _along_calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    x, ids = inputs
    return take_along_calls(x, ids, out, node.attrs["axis"])


def _along_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    x, ids = node.inputs
    axis = node.attrs["axis"]
    if ids.shape[axis] != 1:
        return scatter_along_axis(ids, grad, size_of(x, axis), axis), None
    # one element of each row: elementwise code, which fuses with what uses it
    places = elementwise.iota(views.sizes_of(x), axis, ids.dtype)
    return elementwise.where(elementwise.eq(places, ids), grad, zeros_of(x)), None


register(
    OpDef(
        "take_along_axis",
        _along_infer,
        _along_reference,
        calls=_along_calls,
        gradient=_along_gradient,
    )
)


def take_along_axis(x: Node, ids: Node, axis: int = -1) -> Node:
    """``out[o, k, i] = x[o, ids[o, k, i], i]``: x (o.., n, i..), ids (o.., k, i..) -> as ids."""
    return make("take_along_axis", x, ids, axis=axis_of("take_along_axis", x, axis))


def _put_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    x, ids, updates = inputs
    _check_along("put_along_axis", ids, x.shape, attrs["axis"])
    check_updates("put_along_axis", updates, ids.shape, x.dtype, attrs["mode"])
    return x.shape, x.dtype


def _put_reference(
    x: np.ndarray, ids: np.ndarray, updates: np.ndarray, axis: int, mode: str
) -> np.ndarray:
    out = x.astype(sum_dtype(x))
    index: list[np.ndarray] = list(np.indices(ids.shape, np.int64))
    index[axis] = ids.astype(np.int64)
    return put_in_order(out, tuple(index), updates, mode)


def _put_calls(node: Node, inputs: Sequence[Any], out: Any, work: Any = ()) -> list[KernelCall]:
    x, ids, updates = inputs
    axis, mode = node.attrs["axis"], node.attrs["mode"]
    return scattered(x, out, work, lambda t: scatter_along_calls(ids, updates, t, axis, mode))


def _put_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    _, ids, updates = node.inputs
    axis = node.attrs["axis"]
    taken = take_along_axis(grad, ids, axis)
    if node.attrs["mode"] == "add":
        return grad, None, taken
    if node.attrs["mode"] != "set":
        return reduced_gradient(
            node,
            grad,
            lambda y: take_along_axis(y, ids, axis),
            lambda y, more: put_along_axis(y, ids, more, axis, "add"),
        )
    places = places_along(updates, axis)
    marks = take_along_axis(put_along_axis(marks_for(node), ids, places, axis), ids, axis)
    cleared = put_along_axis(grad, ids, zeros_of(updates), axis)
    return cleared, None, where_last(marks, places, taken)


register(
    OpDef(
        "put_along_axis",
        _put_infer,
        _put_reference,
        calls=_put_calls,
        workspace=accumulator,
        gradient=_put_gradient,
    )
)


def put_along_axis(x: Node, ids: Node, updates: Node, axis: int = -1, mode: str = "set") -> Node:
    """``x`` with ``out[o, ids[o, k, i], i]`` set to ``updates[o, k, i]``.

    With ``mode`` add, mul, max or min it is combined with them, in order.

    x (o.., n, i..), ids and updates (o.., k, i..) -> the shape of x.
    """
    at = axis_of("put_along_axis", x, axis)
    return make("put_along_axis", x, ids, updates, axis=at, mode=mode)


def _along_zeros_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    ids, updates = inputs
    check_ids("scatter_along_axis", ids)
    check_updates("scatter_along_axis", updates, ids.shape, updates.dtype, "add")
    axis = attrs["axis"]
    return (*ids.shape[:axis], attrs["n"], *ids.shape[axis + 1 :]), updates.dtype


def _along_zeros_reference(ids: np.ndarray, updates: np.ndarray, n: int, axis: int) -> np.ndarray:
    shape = (*ids.shape[:axis], n, *ids.shape[axis + 1 :])
    return _put_reference(np.zeros(shape, updates.dtype), ids, updates, axis, "add")


def _along_zeros_calls(
    node: Node, inputs: Sequence[Any], out: Any, work: Any = ()
) -> list[KernelCall]:
    ids, updates = inputs
    axis = node.attrs["axis"]
    return scattered(None, out, work, lambda t: scatter_along_calls(ids, updates, t, axis, "add"))


def _along_zeros_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    return None, take_along_axis(grad, node.inputs[0], node.attrs["axis"])


register(
    OpDef(
        "scatter_along_axis",
        _along_zeros_infer,
        _along_zeros_reference,
        calls=_along_zeros_calls,
        workspace=accumulator,
        gradient=_along_zeros_gradient,
    )
)


def scatter_along_axis(ids: Node, updates: Node, n: int, axis: int = -1) -> Node:
    """Zeros of size ``n`` along ``axis``, ``updates`` added at ``ids``.

    ids and updates (o.., k, i..) -> (o.., n, i..), the transpose of :func:`take_along_axis`.
    """
    at = axis_of("scatter_along_axis", ids, axis)
    return make("scatter_along_axis", ids, updates, n=n, axis=at)

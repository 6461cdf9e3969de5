"""Gathers and scatters along axes: take, take_along_axis, gather_nd, and what undoes them.

Ids are i32 or i64 and count from zero; a Tensor's negative indices are made positive before. An id
that is not there reads zero and writes nothing, on every target: whoever wants an IndexError checks
the ids first.

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

from tilewright.dtypes import DType, bf16, boolean, f16, f32, i32, i64
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, const_node, shape_of
from tilewright.ops import elementwise, views
from tilewright.ops.calls import KernelCall
from tilewright.ops.indexing_kernels import (
    gather_nd_calls,
    scatter_along_calls,
    scatter_calls,
    scatter_nd_calls,
    take_along_calls,
    take_calls,
)
from tilewright.ops.layout_kernels import copy_calls, zero_calls
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


# --- what the ops share --------------------------------------------------------------------------


def _axis_of(op: str, x: Node, axis: int) -> int:
    rank = len(x.shape)
    if not -rank <= axis < rank:
        raise ShapeError(f"{op}: axis {axis} of {x.dtype}{shape_of(x.shape)} does not exist")
    return axis % rank


def _check_ids(op: str, ids: Node) -> None:
    if ids.dtype not in (i32, i64):
        raise ShapeError(f"{op} wants ids of i32 or i64, got {ids.dtype}{shape_of(ids.shape)}")


def _check_updates(op: str, updates: Node, shape: Sequence[Any], dtype: DType, mode: str) -> None:
    if mode not in ("set", "add"):
        raise ShapeError(f"{op}: the mode is 'set' or 'add', got {mode!r}")
    if mode == "add" and dtype is boolean:
        raise ShapeError(f"{op}: bools cannot be added, mode='set' or another dtype can be used")
    if tuple(updates.shape) != tuple(shape) or updates.dtype is not dtype:
        raise ShapeError(
            f"{op} wants updates {dtype}{shape_of(tuple(shape))}, "
            f"got {updates.dtype}{shape_of(updates.shape)}"
        )


def _wide(dtype: DType) -> DType:
    """The dtype that sums are kept in."""
    return f32 if dtype in (f16, bf16) else dtype


def _sum_dtype(x: np.ndarray) -> Any:
    return np.float32 if x.dtype == np.float16 else x.dtype


def _accumulator(node: Node) -> Sequence[tuple[DType, Shape]]:
    """Memory for the sums of 16-bit floats."""
    add = node.attrs.get("mode", "add") == "add"
    return ((f32, node.shape),) if add and _wide(node.dtype) is not node.dtype else ()


def _scattered(base: Any | None, out: Any, workspace: Sequence[Any], run: Any) -> list[KernelCall]:
    """``run(total)`` between the start values (``base``, else zeros) and ``out``."""
    total = workspace[0] if workspace else out
    calls = zero_calls(total) if base is None else copy_calls(base, total)
    calls += run(total)
    if workspace:
        calls += copy_calls(total, out)
    return calls


def _inside(ids: np.ndarray, n: int) -> np.ndarray:
    return np.asarray((ids >= 0) & (ids < n))


# --- take and scatter ----------------------------------------------------------------------------


def _take_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    x, ids = inputs
    _check_ids("take", ids)
    axis = attrs["axis"]
    return (*x.shape[:axis], *ids.shape, *x.shape[axis + 1 :]), x.dtype


def _take_reference(x: np.ndarray, ids: np.ndarray, axis: int) -> np.ndarray:
    n = x.shape[axis]
    if n == 0:
        return np.zeros((*x.shape[:axis], *ids.shape, *x.shape[axis + 1 :]), x.dtype)
    inside = _inside(ids, n)
    out = np.take(x, np.where(inside, ids, 0), axis)
    mask = inside.reshape((1,) * axis + ids.shape + (1,) * (x.ndim - axis - 1))
    return np.where(mask, out, np.zeros((), x.dtype))


def _take_calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    x, ids = inputs
    return take_calls(x, ids, out, node.attrs["axis"])


def _take_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    x, ids = node.inputs
    axis = node.attrs["axis"]
    return scatter_rows(ids, grad, _size(x, axis), axis), None


def _size(x: Node, axis: int) -> int:
    n = x.shape[axis]
    if not isinstance(n, int):
        raise ShapeError(f"axis {axis} of {x.dtype}{shape_of(x.shape)} has no size yet")
    return n


register(OpDef("take", _take_infer, _take_reference, calls=_take_calls, gradient=_take_gradient))


def take(x: Node, ids: Node, axis: int = 0) -> Node:
    """``x`` at ``ids`` along ``axis``: x (o.., n, i..), ids (k..) -> (o.., k.., i..)."""
    return make("take", x, ids, axis=_axis_of("take", x, axis))


def _along_shape(rows: Node, ids: Node, axis: int, n: int) -> tuple[Any, ...]:
    """The shape that ``scatter_rows`` makes."""
    last = axis + len(ids.shape)
    return (*rows.shape[:axis], n, *rows.shape[last:])


def _rows_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    ids, rows = inputs
    _check_ids("scatter_rows", ids)
    axis = attrs["axis"]
    last = axis + len(ids.shape)
    want = (*rows.shape[:axis], *ids.shape, *rows.shape[last:])
    if len(rows.shape) < last:
        want = (*rows.shape[:axis], *ids.shape)
    _check_updates("scatter_rows", rows, want, rows.dtype, "add")
    return _along_shape(rows, ids, axis, attrs["n"]), rows.dtype


def _rows_reference(ids: np.ndarray, rows: np.ndarray, n: int, axis: int) -> np.ndarray:
    base = np.zeros((*rows.shape[:axis], n, *rows.shape[axis + ids.ndim :]), rows.dtype)
    return _scatter_reference(base, ids, rows, axis, "add")


def _scatter_reference(
    x: np.ndarray, ids: np.ndarray, updates: np.ndarray, axis: int, mode: str
) -> np.ndarray:
    out = np.moveaxis(x.astype(_sum_dtype(x)), axis, 0)
    many = range(axis, axis + ids.ndim)
    rows = np.moveaxis(updates, tuple(many), tuple(range(ids.ndim)))
    return np.moveaxis(_put(out, (ids,), rows, mode), 0, axis)


def _put(out: np.ndarray, index: tuple[np.ndarray, ...], rows: np.ndarray, mode: str) -> np.ndarray:
    """``out[index] = rows`` (or ``+=``) row by row, in order, leaving out what is outside."""
    out = np.ascontiguousarray(out)
    flat = rows.reshape(index[0].size, *rows.shape[index[0].ndim :])
    places = [i.ravel() for i in index]
    inside = np.ones(len(flat), bool)
    for i, n in zip(places, out.shape):
        inside &= _inside(i, n)
    at = tuple(i[inside] for i in places)
    if mode == "add":
        np.add.at(out, at, flat[inside])
    else:
        for *place, row in zip(*at, flat[inside]):
            out[tuple(place)] = row
    return out


def _rows_calls(node: Node, inputs: Sequence[Any], out: Any, work: Any = ()) -> list[KernelCall]:
    ids, rows = inputs
    axis = node.attrs["axis"]
    return _scattered(None, out, work, lambda t: scatter_calls(ids, rows, t, axis, True))


def _rows_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    return None, take(grad, node.inputs[0], node.attrs["axis"])


register(
    OpDef(
        "scatter_rows",
        _rows_infer,
        _rows_reference,
        calls=_rows_calls,
        workspace=_accumulator,
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
    _check_ids("scatter", ids)
    axis = attrs["axis"]
    want = (*x.shape[:axis], *ids.shape, *x.shape[axis + 1 :])
    _check_updates("scatter", updates, want, x.dtype, attrs["mode"])
    return x.shape, x.dtype


def _scatter_calls(node: Node, inputs: Sequence[Any], out: Any, work: Any = ()) -> list[KernelCall]:
    x, ids, updates = inputs
    axis, add = node.attrs["axis"], node.attrs["mode"] == "add"
    return _scattered(x, out, work, lambda t: scatter_calls(ids, updates, t, axis, add))


def _scatter_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    _, ids, updates = node.inputs
    axis = node.attrs["axis"]
    taken = take(grad, ids, axis)
    if node.attrs["mode"] == "add":
        return grad, None, taken
    places = _positions(updates, axis, len(ids.shape))
    marks = take(scatter(_marks(node), ids, places, axis), ids, axis)
    cleared = scatter(grad, ids, _zeros(updates), axis)
    return cleared, None, _where_last(marks, places, taken)


register(
    OpDef(
        "scatter",
        _scatter_infer,
        _scatter_reference,
        calls=_scatter_calls,
        workspace=_accumulator,
        gradient=_scatter_gradient,
    )
)


def scatter(x: Node, ids: Node, updates: Node, axis: int = 0, mode: str = "set") -> Node:
    """``x`` with ``updates`` set (or added) at ``ids`` along ``axis``.

    x (o.., n, i..), ids (k..), updates (o.., k.., i..) -> the shape of x. An update that a later
    one overwrites gets no gradient.
    """
    return make("scatter", x, ids, updates, axis=_axis_of("scatter", x, axis), mode=mode)


def scatter_add(x: Node, ids: Node, updates: Node, axis: int = 0) -> Node:
    """``x`` plus ``updates`` at ``ids`` along ``axis``; see :func:`scatter`."""
    return scatter(x, ids, updates, axis, "add")


# --- along an axis, one id per element -----------------------------------------------------------


def _check_along(op: str, ids: Node, shape: Sequence[Any], axis: int) -> None:
    _check_ids(op, ids)
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
    inside = _inside(ids, x.shape[axis])
    out = np.take_along_axis(x, np.where(inside, ids, 0), axis)
    return np.where(inside, out, np.zeros((), x.dtype))


def _along_calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    x, ids = inputs
    return take_along_calls(x, ids, out, node.attrs["axis"])


def _along_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    x, ids = node.inputs
    axis = node.attrs["axis"]
    if ids.shape[axis] != 1:
        return scatter_along_axis(ids, grad, _size(x, axis), axis), None
    # one element of each row: elementwise code, which fuses with what uses it
    places = elementwise.iota(views.sizes_of(x), axis, ids.dtype)
    return elementwise.where(elementwise.eq(places, ids), grad, _zeros(x)), None


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
    return make("take_along_axis", x, ids, axis=_axis_of("take_along_axis", x, axis))


def _put_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    x, ids, updates = inputs
    _check_along("put_along_axis", ids, x.shape, attrs["axis"])
    _check_updates("put_along_axis", updates, ids.shape, x.dtype, attrs["mode"])
    return x.shape, x.dtype


def _put_reference(
    x: np.ndarray, ids: np.ndarray, updates: np.ndarray, axis: int, mode: str
) -> np.ndarray:
    out = x.astype(_sum_dtype(x))
    index: list[np.ndarray] = list(np.indices(ids.shape, np.int64))
    index[axis] = ids.astype(np.int64)
    return _put(out, tuple(index), updates, mode)


def _put_calls(node: Node, inputs: Sequence[Any], out: Any, work: Any = ()) -> list[KernelCall]:
    x, ids, updates = inputs
    axis, add = node.attrs["axis"], node.attrs["mode"] == "add"
    return _scattered(x, out, work, lambda t: scatter_along_calls(ids, updates, t, axis, add))


def _put_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    _, ids, updates = node.inputs
    axis = node.attrs["axis"]
    taken = take_along_axis(grad, ids, axis)
    if node.attrs["mode"] == "add":
        return grad, None, taken
    places = _iota(updates, axis)
    marks = take_along_axis(put_along_axis(_marks(node), ids, places, axis), ids, axis)
    cleared = put_along_axis(grad, ids, _zeros(updates), axis)
    return cleared, None, _where_last(marks, places, taken)


register(
    OpDef(
        "put_along_axis",
        _put_infer,
        _put_reference,
        calls=_put_calls,
        workspace=_accumulator,
        gradient=_put_gradient,
    )
)


def put_along_axis(x: Node, ids: Node, updates: Node, axis: int = -1, mode: str = "set") -> Node:
    """``x`` with ``out[o, ids[o, k, i], i]`` set to (or increased by) ``updates[o, k, i]``.

    x (o.., n, i..), ids and updates (o.., k, i..) -> the shape of x.
    """
    at = _axis_of("put_along_axis", x, axis)
    return make("put_along_axis", x, ids, updates, axis=at, mode=mode)


def _along_zeros_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    ids, updates = inputs
    _check_ids("scatter_along_axis", ids)
    _check_updates("scatter_along_axis", updates, ids.shape, updates.dtype, "add")
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
    return _scattered(None, out, work, lambda t: scatter_along_calls(ids, updates, t, axis, True))


def _along_zeros_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    return None, take_along_axis(grad, node.inputs[0], node.attrs["axis"])


register(
    OpDef(
        "scatter_along_axis",
        _along_zeros_infer,
        _along_zeros_reference,
        calls=_along_zeros_calls,
        workspace=_accumulator,
        gradient=_along_zeros_gradient,
    )
)


def scatter_along_axis(ids: Node, updates: Node, n: int, axis: int = -1) -> Node:
    """Zeros of size ``n`` along ``axis``, ``updates`` added at ``ids``.

    ids and updates (o.., k, i..) -> (o.., n, i..), the transpose of :func:`take_along_axis`.
    """
    at = _axis_of("scatter_along_axis", ids, axis)
    return make("scatter_along_axis", ids, updates, n=n, axis=at)


# --- several axes at once ------------------------------------------------------------------------


def _check_nd(op: str, ids: Node, shape: Sequence[Any]) -> int:
    """How many axes ``ids`` names."""
    _check_ids(op, ids)
    n = ids.shape[-1] if ids.shape else 0
    if not isinstance(n, int) or not 1 <= n <= len(shape):
        raise ShapeError(
            f"{op} wants ids (k.., n) with 1 <= n <= {len(shape)} axes of "
            f"{shape_of(tuple(shape))}, got {shape_of(ids.shape)}"
        )
    return n


def _nd_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    x, ids = inputs
    n = _check_nd("gather_nd", ids, x.shape)
    return (*ids.shape[:-1], *x.shape[n:]), x.dtype


def _nd_reference(x: np.ndarray, ids: np.ndarray) -> np.ndarray:
    n = ids.shape[-1]
    out = np.zeros((*ids.shape[:-1], *x.shape[n:]), x.dtype)
    inside = np.all((ids >= 0) & (ids < np.array(x.shape[:n])), axis=-1)
    out[inside] = x[tuple(ids[inside][:, c] for c in range(n))]
    return out


def _nd_calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    x, ids = inputs
    return gather_nd_calls(x, ids, out)


def _nd_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    x, ids = node.inputs
    return scatter_nd_zeros(ids, grad, tuple(_size(x, a) for a in range(len(x.shape)))), None


register(OpDef("gather_nd", _nd_infer, _nd_reference, calls=_nd_calls, gradient=_nd_gradient))


def gather_nd(x: Node, ids: Node) -> Node:
    """``out[k.., i..] = x[ids[k.., 0], .., ids[k.., n - 1], i..]``.

    x (d.., i..), ids (k.., n) naming elements of the n axes d -> (k.., i..).
    """
    return make("gather_nd", x, ids)


def _scatter_nd_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    x, ids, updates = inputs
    n = _check_nd("scatter_nd", ids, x.shape)
    want = (*ids.shape[:-1], *x.shape[n:])
    _check_updates("scatter_nd", updates, want, x.dtype, attrs["mode"])
    return x.shape, x.dtype


def _scatter_nd_reference(
    x: np.ndarray, ids: np.ndarray, updates: np.ndarray, mode: str
) -> np.ndarray:
    index = tuple(ids[..., c] for c in range(ids.shape[-1]))
    return _put(x.astype(_sum_dtype(x)), index, updates, mode)


def _scatter_nd_calls(
    node: Node, inputs: Sequence[Any], out: Any, work: Any = ()
) -> list[KernelCall]:
    x, ids, updates = inputs
    add = node.attrs["mode"] == "add"
    return _scattered(x, out, work, lambda t: scatter_nd_calls(ids, updates, t, add))


def _scatter_nd_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    _, ids, updates = node.inputs
    taken = gather_nd(grad, ids)
    if node.attrs["mode"] == "add":
        return grad, None, taken
    places = _positions(updates, 0, len(ids.shape) - 1)
    marks = gather_nd(scatter_nd(_marks(node), ids, places), ids)
    return scatter_nd(grad, ids, _zeros(updates)), None, _where_last(marks, places, taken)


register(
    OpDef(
        "scatter_nd",
        _scatter_nd_infer,
        _scatter_nd_reference,
        calls=_scatter_nd_calls,
        workspace=_accumulator,
        gradient=_scatter_nd_gradient,
    )
)


def scatter_nd(x: Node, ids: Node, updates: Node, mode: str = "set") -> Node:
    """``x`` with ``out[*ids[k..], i..]`` set to (or increased by) ``updates[k.., i..]``.

    x (d.., i..), ids (k.., n) naming elements of the n axes d, updates (k.., i..) -> as x.
    """
    return make("scatter_nd", x, ids, updates, mode=mode)


def _nd_zeros_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    ids, updates = inputs
    n = _check_nd("scatter_nd_zeros", ids, attrs["shape"])
    want = (*ids.shape[:-1], *attrs["shape"][n:])
    _check_updates("scatter_nd_zeros", updates, want, updates.dtype, "add")
    return attrs["shape"], updates.dtype


def _nd_zeros_calls(
    node: Node, inputs: Sequence[Any], out: Any, work: Any = ()
) -> list[KernelCall]:
    ids, updates = inputs
    return _scattered(None, out, work, lambda t: scatter_nd_calls(ids, updates, t, True))


def _nd_zeros_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    return None, gather_nd(grad, node.inputs[0])


register(
    OpDef(
        "scatter_nd_zeros",
        _nd_zeros_infer,
        lambda ids, updates, shape: _scatter_nd_reference(
            np.zeros(shape, updates.dtype), ids, updates, "add"
        ),
        calls=_nd_zeros_calls,
        workspace=_accumulator,
        gradient=_nd_zeros_gradient,
    )
)


def scatter_nd_zeros(ids: Node, updates: Node, shape: Sequence[int]) -> Node:
    """Zeros of ``shape`` with ``updates`` added at ``ids``, the transpose of :func:`gather_nd`."""
    return make("scatter_nd_zeros", ids, updates, shape=tuple(shape))


# --- which of several updates of one place stays -------------------------------------------------


def _iota(x: Node, axis: int) -> Node:
    """The index along ``axis`` at each element of ``x``."""
    return elementwise.iota([_size(x, a) for a in range(len(x.shape))], axis, i32)


def _positions(updates: Node, axis: int, axes: int) -> Node:
    """The number of each update in the order they are written: ascending along ``axes`` axes."""
    total = _zeros(updates, i32)
    for a in range(axis, axis + axes):
        size = const_node(_size(updates, a), i32)
        total = elementwise.add(elementwise.mul(total, size), _iota(updates, a))
    return total


def _marks(like: Node) -> Node:
    """Minus one everywhere: no update has been here."""
    return views.broadcast(const_node(-1, i32), like.shape)


def _zeros(like: Node, dtype: DType | None = None) -> Node:
    return views.broadcast(const_node(0, dtype or like.dtype), like.shape)


def _where_last(marks: Node, places: Node, grad: Node) -> Node:
    """``grad`` where the update's own number is still there."""
    return elementwise.where(elementwise.eq(marks, places), grad, _zeros(grad))

"""Gathers and scatters along several axes at once, what NumPy's advanced indexing needs.

See :mod:`tilewright.ops.indexing` for the rules that all gathers and scatters follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.ops.calls import KernelCall
from tilewright.ops.indexing_kernels import gather_nd_calls, scatter_nd_calls
from tilewright.ops.indexing_rules import (
    accumulator,
    check_ids,
    check_updates,
    marks_for,
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
from tilewright.sizes import has_value

__all__ = ["gather_nd", "scatter_nd", "scatter_nd_zeros"]

Inputs = Sequence[Node]
Attrs = Mapping[str, Any]


def _check_nd(op: str, ids: Node, shape: Sequence[Any]) -> int:
    """How many axes ``ids`` names."""
    check_ids(op, ids)
    n = ids.shape[-1] if ids.shape else 0
    if not has_value(n) or not 1 <= n <= len(shape):
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
    return scatter_nd_zeros(ids, grad, tuple(size_of(x, a) for a in range(len(x.shape)))), None


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
    check_updates("scatter_nd", updates, want, x.dtype, attrs["mode"])
    return x.shape, x.dtype


def _scatter_nd_reference(
    x: np.ndarray, ids: np.ndarray, updates: np.ndarray, mode: str
) -> np.ndarray:
    index = tuple(ids[..., c] for c in range(ids.shape[-1]))
    return put_in_order(x.astype(sum_dtype(x)), index, updates, mode)


def _scatter_nd_calls(
    node: Node, inputs: Sequence[Any], out: Any, work: Any = ()
) -> list[KernelCall]:
    x, ids, updates = inputs
    mode = node.attrs["mode"]
    return scattered(x, out, work, lambda t: scatter_nd_calls(ids, updates, t, mode))


def _scatter_nd_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    _, ids, updates = node.inputs
    taken = gather_nd(grad, ids)
    if node.attrs["mode"] == "add":
        return grad, None, taken
    if node.attrs["mode"] != "set":
        return reduced_gradient(
            node,
            grad,
            lambda y: gather_nd(y, ids),
            lambda y, more: scatter_nd(y, ids, more, "add"),
        )
    places = positions(updates, 0, len(ids.shape) - 1)
    marks = gather_nd(scatter_nd(marks_for(node), ids, places), ids)
    return scatter_nd(grad, ids, zeros_of(updates)), None, where_last(marks, places, taken)


register(
    OpDef(
        "scatter_nd",
        _scatter_nd_infer,
        _scatter_nd_reference,
        calls=_scatter_nd_calls,
        workspace=accumulator,
        gradient=_scatter_nd_gradient,
    )
)


def scatter_nd(x: Node, ids: Node, updates: Node, mode: str = "set") -> Node:
    """``x`` with ``out[*ids[k..], i..]`` set to ``updates[k.., i..]``.

    With ``mode`` add, mul, max or min it is combined with them, in order.

    x (d.., i..), ids (k.., n) naming elements of the n axes d, updates (k.., i..) -> as x.
    """
    return make("scatter_nd", x, ids, updates, mode=mode)


def _nd_zeros_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    ids, updates = inputs
    n = _check_nd("scatter_nd_zeros", ids, attrs["shape"])
    want = (*ids.shape[:-1], *attrs["shape"][n:])
    check_updates("scatter_nd_zeros", updates, want, updates.dtype, "add")
    return attrs["shape"], updates.dtype


def _nd_zeros_calls(
    node: Node, inputs: Sequence[Any], out: Any, work: Any = ()
) -> list[KernelCall]:
    ids, updates = inputs
    return scattered(None, out, work, lambda t: scatter_nd_calls(ids, updates, t, "add"))


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
        workspace=accumulator,
        gradient=_nd_zeros_gradient,
    )
)


def scatter_nd_zeros(ids: Node, updates: Node, shape: Sequence[int]) -> Node:
    """Zeros of ``shape`` with ``updates`` added at ``ids``, the transpose of :func:`gather_nd`."""
    return make("scatter_nd_zeros", ids, updates, shape=tuple(shape))

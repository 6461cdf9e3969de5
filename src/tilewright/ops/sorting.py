"""Sorting along an axis, the k largest, and positions in sorted arrays.

The order is NumPy's: NaN after everything else (first when descending, as in PyTorch), -0.0 equal
to 0.0, and equal elements in the order they stand in, ascending or descending. ``argsort`` is the
one op; sorted values are gathered through it, so their gradient is that of the gather.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, i32, i64
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.ops.calls import KernelCall
from tilewright.ops.indexing import take_along_axis
from tilewright.ops.sorting_kernels import (
    argsort_calls,
    argsort_workspace,
    searchsorted_calls,
)
from tilewright.ops.table import OpDef, make, register
from tilewright.sizes import has_value

__all__ = ["argsort", "searchsorted", "sort", "topk"]


def _argsort_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    (x,) = inputs
    axis, k, dtype = attrs["axis"], attrs["k"], attrs["dtype"]
    n = x.shape[axis]
    if not has_value(n) or n >= 1 << 31:
        raise ShapeError(f"argsort wants an axis of fewer than 2**31 elements, got {n}")
    if dtype not in (i32, i64):
        raise ShapeError(f"argsort gives i32 or i64, not {dtype}")
    if k is None:
        return x.shape, dtype
    if not 0 <= k <= n:
        raise ShapeError(f"the {k} first of {n} elements along axis {axis} do not exist")
    return (*x.shape[:axis], k, *x.shape[axis + 1 :]), dtype


def _argsort_reference(
    x: np.ndarray, axis: int, descending: bool, k: int | None, dtype: DType
) -> np.ndarray:
    if descending:
        # stable from the other end: reverse, sort, reverse the order and count from the front
        flipped = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
        order = np.flip(x.shape[axis] - 1 - flipped, axis)
    else:
        order = np.argsort(x, axis=axis, kind="stable")
    return np.take(order, np.arange(k), axis) if k is not None else order


def _argsort_calls(
    node: Node, inputs: Sequence[Any], out: Any, work: Sequence[Any]
) -> list[KernelCall]:
    return argsort_calls(inputs[0], out, node.attrs["axis"], node.attrs["descending"], work)


register(
    OpDef(
        "argsort",
        _argsort_infer,
        _argsort_reference,
        calls=_argsort_calls,
        workspace=lambda node: argsort_workspace(
            node.inputs[0].dtype, node.inputs[0].shape, node.attrs["axis"]
        ),
        gradient=lambda node, grad: (None,),
    )
)


def _order(x: Node, axis: int, descending: bool, k: int | None, dtype: DType) -> Node:
    rank = len(x.shape)
    if not -rank <= axis < rank:
        raise ShapeError(f"sort: axis {axis} of {x.dtype}{shape_of(x.shape)} does not exist")
    at = axis % rank
    return make("argsort", x, axis=at, descending=bool(descending), k=k, dtype=dtype)


def argsort(x: Node, axis: int = -1, descending: bool = False, dtype: DType = i64) -> Node:
    """The indices that sort ``x`` along ``axis``, stable; i64 (or i32), of the shape of x."""
    return _order(x, axis, descending, None, dtype)


def sort(x: Node, axis: int = -1, descending: bool = False) -> Node:
    """``x`` in ascending (or descending) order along ``axis``."""
    return take_along_axis(x, argsort(x, axis, descending, i32), axis)


def topk(x: Node, k: int, axis: int = -1, largest: bool = True) -> tuple[Node, Node]:
    """The ``k`` largest (or smallest) along ``axis``, best first, and their indices (i64).

    Of equal elements the earlier ones; NaN counts as largest.
    """
    order = _order(x, axis, largest, k, i64)
    return take_along_axis(x, order, axis), order


def _search_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    x, values = inputs
    got = f"{x.dtype}{shape_of(x.shape)} and {values.dtype}{shape_of(values.shape)}"
    if x.dtype is not values.dtype or not x.shape:
        raise ShapeError(f"searchsorted wants arrays of one dtype, the first sorted, got {got}")
    if len(x.shape) > 1 and (not values.shape or x.shape[:-1] != values.shape[:-1]):
        raise ShapeError(f"searchsorted wants one sorted axis or equal leading axes, got {got}")
    return values.shape, i64


def _search_reference(x: np.ndarray, values: np.ndarray, right: bool) -> np.ndarray:
    side = "right" if right else "left"
    if x.ndim == 1:
        return np.asarray(np.searchsorted(x, values, side))  # type: ignore[call-overload]
    out = np.zeros(values.shape, np.int64)
    for at in np.ndindex(values.shape[:-1]):
        out[at] = np.searchsorted(x[at], values[at], side)  # type: ignore[call-overload]
    return out


def _search_calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    x, values = inputs
    return searchsorted_calls(x, values, out, node.attrs["right"])


register(
    OpDef(
        "searchsorted",
        _search_infer,
        _search_reference,
        calls=_search_calls,
        gradient=lambda node, grad: (None, None),
    )
)


def searchsorted(x: Node, values: Node, right: bool = False) -> Node:
    """Where ``values`` would be inserted into sorted ``x`` to keep it sorted, i64.

    Before equal elements, after them when ``right``. x (n,) and values of any shape, or x (b.., n)
    and values (b.., m).
    """
    return make("searchsorted", x, values, right=bool(right))

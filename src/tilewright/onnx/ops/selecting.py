"""Choosing elements by their values: the largest, those that are not zero, distinct ones.

Where the shape of the result depends on the values, the operator runs in NumPy between programs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.errors import ShapeError
from tilewright.onnx.registry import Call, op
from tilewright.ops import sorting, views
from tilewright.tensor.core import Tensor, source, wrap


def _largest(x: Tensor, k: int, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    at = views.normal_axis(axis, x.ndim)
    if not 0 <= k <= x.shape[at]:
        raise ShapeError(f"the {k} first of {x.shape[at]} elements along axis {axis} do not exist")
    values, places = sorting.topk(source(x), k, at, largest)
    return wrap(values, x), Tensor(places)


@op("TopK", since=10, host=(1,))
def top_k(
    x: Tensor, k: np.ndarray, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    """The ``k`` largest (or smallest) elements along an axis, best first, and their indices."""
    return _largest(x, int(k.reshape(())), axis, bool(largest))


@op("TopK", since=1)
def top_k_1(x: Tensor, *, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    """Before version 10 their number was an attribute."""
    return _largest(x, k, axis, True)


@op("NonZero", boundary=True)
def nonzero(x: np.ndarray) -> np.ndarray:
    """Indices of elements that are not zero, one row per axis."""
    if x.ndim == 0:
        return np.zeros((0, int(bool(x))), np.int64)
    if x.dtype == object:
        x = x != ""
    return np.array(np.nonzero(x), np.int64)


@op("Compress", since=9, boundary=True)
def compress(x: np.ndarray, condition: np.ndarray, *, axis: int | None = None) -> np.ndarray:
    """The slices along an axis (or the elements) where the condition holds."""
    return np.compress(condition, x, axis)


@op("Unique", since=11, boundary=True)
def unique(
    x: np.ndarray, *, axis: int | None = None, sorted: int = 1, ctx: Call
) -> tuple[np.ndarray, ...]:
    """Distinct elements (or slices), where each is first, which each element is, how many."""
    if x.dtype.kind == "V":  # bfloat16 has no order of its own in NumPy
        found = unique(x.astype(np.float32), axis=axis, sorted=sorted, ctx=ctx)
        return (found[0].astype(x.dtype), *found[1:])
    values: Any
    values, first, inverse, counts = np.unique(
        x, return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        values = np.take(values, order, 0 if axis is None else axis)
        first, counts, inverse = first[order], counts[order], rank[inverse]
    results = (values, *(a.astype(np.int64) for a in (first, inverse, counts)))
    return tuple(results[: ctx.n_outputs])

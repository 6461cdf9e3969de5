"""Searching: positions of elements, sets. Shapes that depend on values are found on the host."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tilewright.dtypes import bf16, from_float32
from tilewright.errors import ShapeError
from tilewright.ops import sorting as ops
from tilewright.tensor.core import Tensor, apply
from tilewright.tensor.creation import from_numpy
from tilewright.tensor.elementwise import check_tensor
from tilewright.tensor.memory import array_of
from tilewright.tensor.nodes import cast_node
from tilewright.tensor.promotion import promoted

__all__ = [
    "UniqueAll",
    "UniqueCounts",
    "UniqueInverse",
    "nonzero",
    "searchsorted",
    "unique_all",
    "unique_counts",
    "unique_inverse",
    "unique_values",
]


def nonzero(x: Tensor, /) -> tuple[Tensor, ...]:
    """Where ``x`` is not zero: one int64 tensor of indices per axis, in row-major order."""
    if check_tensor("nonzero", x).ndim == 0:
        raise ShapeError("nonzero wants a tensor with axes")
    found = np.nonzero(array_of(x.buffer("nonzero()")))
    return tuple([from_numpy(ids.astype(np.int64), copy=False) for ids in found])


def searchsorted(
    x1: Tensor, x2: Tensor, /, *, side: str = "left", sorter: Tensor | None = None
) -> Tensor:
    """Where each element of ``x2`` goes in the ascending vector ``x1`` to keep it sorted (int64).

    Args:
        side: of equal elements, ``"left"`` stands before the first, ``"right"`` after the last.
        sorter: indices that sort ``x1``, if it is not sorted.
    """
    if side not in ("left", "right"):
        raise ValueError(f'searchsorted: side is "left" or "right", got {side!r}')
    if check_tensor("searchsorted", x1).ndim != 1:
        raise ShapeError(f"searchsorted wants a vector to search in, got shape {x1.shape}")
    if sorter is not None:
        from tilewright.tensor.indexing import take

        x1 = take(x1, sorter)
    dtype = promoted(x1.dtype, check_tensor("searchsorted", x2).dtype)

    def build(a: object, b: object) -> object:
        return ops.searchsorted(cast_node(a, dtype), cast_node(b, dtype), side == "right")  # type: ignore[arg-type]

    return apply(build, x1, x2)  # type: ignore[arg-type]


class UniqueAll(NamedTuple):
    """The result of :func:`unique_all`."""

    values: Tensor
    indices: Tensor
    inverse_indices: Tensor
    counts: Tensor


class UniqueCounts(NamedTuple):
    """The result of :func:`unique_counts`."""

    values: Tensor
    counts: Tensor


class UniqueInverse(NamedTuple):
    """The result of :func:`unique_inverse`."""

    values: Tensor
    inverse_indices: Tensor


def unique_all(x: Tensor, /) -> UniqueAll:
    """The distinct elements, ascending, where each is first, where each element's value is among
    them (of the shape of ``x``), and how often each occurs. Every NaN is distinct."""
    array = array_of(check_tensor("unique_all", x).buffer("unique_all()"))
    values, indices, inverse, counts = np.unique(
        array, return_index=True, return_inverse=True, return_counts=True, equal_nan=False
    )
    return UniqueAll(
        _like(values, x),
        from_numpy(indices.astype(np.int64), copy=False),
        from_numpy(inverse.astype(np.int64).reshape(x.shape)),
        from_numpy(counts.astype(np.int64), copy=False),
    )


def unique_counts(x: Tensor, /) -> UniqueCounts:
    """The distinct elements, ascending, and how often each occurs. Every NaN is distinct."""
    found = unique_all(x)
    return UniqueCounts(found.values, found.counts)


def unique_inverse(x: Tensor, /) -> UniqueInverse:
    """The distinct elements, ascending, and where each element's value is among them."""
    found = unique_all(x)
    return UniqueInverse(found.values, found.inverse_indices)


def unique_values(x: Tensor, /) -> Tensor:
    """The distinct elements, ascending. Every NaN is distinct."""
    array = array_of(check_tensor("unique_values", x).buffer("unique_values()"))
    return _like(np.unique(array, equal_nan=False), x)


def _like(values: np.ndarray, x: Tensor) -> Tensor:
    """An array of values as a tensor of the dtype of ``x``."""
    if x.dtype is bf16:
        return from_numpy(from_float32(values), bf16, copy=False)
    return from_numpy(values, copy=False)

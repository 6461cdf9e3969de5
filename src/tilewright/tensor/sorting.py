"""Order: sorting, the largest few."""

from __future__ import annotations

from tilewright.errors import ShapeError
from tilewright.ops import sorting as ops
from tilewright.tensor.core import Tensor, apply, source, wrap
from tilewright.tensor.elementwise import check_tensor
from tilewright.tensor.manipulation import axis_of

__all__ = ["argsort", "sort", "topk"]


def argsort(
    x: Tensor, /, *, axis: int = -1, descending: bool = False, stable: bool = True
) -> Tensor:
    """The indices (int64) that sort ``x`` along ``axis``; always stable. NaN comes last."""
    return apply(
        ops.argsort, x, axis=axis_of(axis, check_tensor("argsort", x).ndim, "argsort"),
        descending=descending,
    )  # fmt: skip


def sort(x: Tensor, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """``x`` in ascending or descending order along ``axis``. NaN comes last."""
    return apply(
        ops.sort, x, axis=axis_of(axis, check_tensor("sort", x).ndim, "sort"),
        descending=descending,
    )  # fmt: skip


def topk(x: Tensor, k: int, /, *, axis: int = -1, largest: bool = True) -> tuple[Tensor, Tensor]:
    """The ``k`` largest (or smallest) elements along ``axis``, best first, and their indices."""
    at = axis_of(axis, check_tensor("topk", x).ndim, "topk")
    if not 0 <= k <= x.shape[at]:
        raise ShapeError(f"topk: {k} of {x.shape[at]} elements along axis {at}")
    values, ids = ops.topk(source(x), k, at, largest)
    return wrap(values, x), Tensor(ids)

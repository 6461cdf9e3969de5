"""Reductions over axes: statistics, truth, positions of extremes, running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilewright.dtypes import DType, boolean, i64, u64
from tilewright.errors import DTypeError, ShapeError
from tilewright.graph import Node
from tilewright.ops import reductions as ops
from tilewright.ops import views
from tilewright.tensor.core import Tensor, apply
from tilewright.tensor.elementwise import check_tensor, floating
from tilewright.tensor.manipulation import axes_of, axis_of
from tilewright.tensor.methods import Axes
from tilewright.tensor.nodes import cast_node
from tilewright.tensor.promotion import as_dtype

__all__ = [
    "all",
    "any",
    "argmax",
    "argmin",
    "count_nonzero",
    "log_softmax",
    "logsumexp",
    "max",
    "mean",
    "min",
    "prod",
    "softmax",
    "std",
    "sum",
    "var",
]


def total_dtype(dtype: DType, wanted: Any) -> DType:
    """The dtype of a sum or product: 64 bits for integers (and bool) unless told otherwise."""
    if wanted is not None:
        return as_dtype(wanted)
    if dtype.kind == "f":
        return dtype
    return u64 if dtype.kind == "u" else i64


def _total(
    name: str, build: Callable[..., Node], x: Tensor, axis: Axes, dtype: Any, keepdims: bool
) -> Tensor:
    axes = axes_of(axis, check_tensor(name, x).ndim, name)
    wanted = total_dtype(x.dtype, dtype)
    if wanted is boolean:
        raise DTypeError(f"{name}: a total is a number, not bool; any() and all() are")
    return apply(lambda node: build(cast_node(node, wanted), axes, keepdims), x)


def sum(x: Tensor, /, *, axis: Axes = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The sum over ``axis`` (default all): int64 or uint64 for integers, else the dtype of ``x``.

    The order of additions depends on the shape and the axes only.
    """
    return _total("sum", ops.sum, x, axis, dtype, keepdims)


def prod(x: Tensor, /, *, axis: Axes = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The product over ``axis`` (default all); dtypes as for :func:`sum`."""
    return _total("prod", ops.prod, x, axis, dtype, keepdims)


def _extreme(name: str, build: Callable[..., Node], x: Tensor, axis: Axes, keep: bool) -> Tensor:
    axes = axes_of(axis, check_tensor(name, x).ndim, name)
    if 0 in [x.shape[a] for a in axes]:
        raise ShapeError(f"{name} over axes {axes} of {x.shape} has no elements")
    return apply(build, x, axes=axes, keepdims=keep)


def max(x: Tensor, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The greatest element; NaN if there is one. Ties share the gradient."""
    return _extreme("max", ops.max, x, axis, keepdims)


def min(x: Tensor, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The least element; NaN if there is one. Ties share the gradient."""
    return _extreme("min", ops.min, x, axis, keepdims)


def mean(x: Tensor, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The mean over ``axis`` (default all); NaN of no elements."""
    axes = axes_of(axis, check_tensor("mean", x).ndim, "mean")
    return apply(lambda node: ops.mean(floating(node), axes, keepdims), x)


def var(
    x: Tensor, /, *, axis: Axes = None, correction: int | float = 0.0, keepdims: bool = False
) -> Tensor:
    """The variance over ``axis``: squared distances from the mean over ``count - correction``."""
    axes = axes_of(axis, check_tensor("var", x).ndim, "var")
    return apply(lambda node: ops.var(floating(node), axes, correction, keepdims), x)


def std(
    x: Tensor, /, *, axis: Axes = None, correction: int | float = 0.0, keepdims: bool = False
) -> Tensor:
    """The standard deviation: the square root of :func:`var`."""
    from tilewright.tensor.elementwise import sqrt

    return sqrt(var(x, axis=axis, correction=correction, keepdims=keepdims))


def any(x: Tensor, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """Whether an element is true (not zero)."""
    axes = axes_of(axis, check_tensor("any", x).ndim, "any")
    return apply(lambda node: ops.any(cast_node(node, boolean), axes, keepdims), x)


def all(x: Tensor, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """Whether every element is true (not zero)."""
    axes = axes_of(axis, check_tensor("all", x).ndim, "all")
    return apply(lambda node: ops.all(cast_node(node, boolean), axes, keepdims), x)


def count_nonzero(x: Tensor, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """How many elements are not zero (int64)."""
    axes = axes_of(axis, check_tensor("count_nonzero", x).ndim, "count_nonzero")

    def build(node: Node) -> Node:
        return ops.sum(cast_node(cast_node(node, boolean), i64), axes, keepdims)

    return apply(build, x)


def _position(
    name: str, build: Callable[..., Node], x: Tensor, axis: int | None, keepdims: bool
) -> Tensor:
    rank = check_tensor(name, x).ndim
    at = None if axis is None else axis_of(axis, rank, name)
    if (x.size if at is None else x.shape[at]) == 0:
        raise ShapeError(f"{name} over axis {axis} of {x.shape} has no elements")

    def over_axis(node: Node) -> Node:
        if at is not None:
            return build(node, at, keepdims)
        flat = build(views.reshape(node, (x.size,)), 0)
        return views.reshape(flat, (1,) * rank if keepdims else ())

    return apply(over_axis, x)


def argmax(x: Tensor, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The index (int64) of the first greatest element along ``axis`` (default: row-major)."""
    return _position("argmax", ops.argmax, x, axis, keepdims)


def argmin(x: Tensor, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The index (int64) of the first least element along ``axis`` (default: row-major)."""
    return _position("argmin", ops.argmin, x, axis, keepdims)


def softmax(x: Tensor, /, *, axis: int = -1) -> Tensor:
    """``exp(x) / sum(exp(x))`` along ``axis``, without overflow."""
    at = axis_of(axis, check_tensor("softmax", x).ndim, "softmax")
    return apply(lambda node: ops.softmax(floating(node), at), x)


def log_softmax(x: Tensor, /, *, axis: int = -1) -> Tensor:
    """``log(softmax(x))`` along ``axis``, without underflow."""
    at = axis_of(axis, check_tensor("log_softmax", x).ndim, "log_softmax")
    return apply(lambda node: ops.log_softmax(floating(node), at), x)


def logsumexp(x: Tensor, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """``log(sum(exp(x)))`` over ``axis`` (default all), without overflow."""
    axes = axes_of(axis, check_tensor("logsumexp", x).ndim, "logsumexp")
    return apply(lambda node: ops.logsumexp(floating(node), axes, keepdims), x)

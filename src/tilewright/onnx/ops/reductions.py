"""Reductions over axes, positions of extremes, running sums and products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, boolean, f32, f64
from tilewright.graph import Node
from tilewright.onnx.ops.common import axes_in
from tilewright.onnx.registry import op
from tilewright.ops import elementwise as ew
from tilewright.ops import reductions, scans, views
from tilewright.tensor.core import Tensor, apply

Reduce = Callable[[Node, tuple[int, ...], bool], Node]


def _in_floats(build: Reduce) -> Reduce:
    """Integers in float64, 16-bit floats in float32; the result in the element type of x."""

    def reduce(x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
        if x.dtype.is_float and x.dtype.bits > 16:
            return build(x, axes, keepdims)
        wide = f32 if x.dtype.is_float else f64
        return ew.cast(build(ew.cast(x, wide), axes, keepdims), x.dtype)

    return reduce


def _half_as_float(build: Reduce) -> Reduce:
    """16-bit floats in float32, everything else as it is."""

    def reduce(x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
        if x.dtype.is_float and x.dtype.bits == 16:
            return ew.cast(build(ew.cast(x, f32), axes, keepdims), x.dtype)
        return build(x, axes, keepdims)

    return reduce


def _extreme(build: Reduce, of_bools: Reduce, largest: bool) -> Reduce:
    def reduce(x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
        if x.dtype is boolean:
            return of_bools(x, axes, keepdims)
        if 0 in [x.shape[a] for a in axes]:
            value = _limit(x.dtype, not largest)
            shape = reductions.sum(x, axes, keepdims).shape
            return ew.full(shape, value, x.dtype)  # type: ignore[arg-type]
        return build(x, axes, keepdims)

    return reduce


def _limit(dtype: DType, largest: bool) -> float | int:
    """The greatest or least number of a type."""
    if dtype.is_float:
        return float("inf") if largest else float("-inf")
    limits = np.iinfo(dtype.storage)
    return int(limits.max if largest else limits.min)


def _over(name: str, build: Reduce, doc: str, axes_input_since: int = 18) -> None:
    """Register a reduction: its axes are an input from a version on, before an attribute."""

    def as_input(
        x: Tensor,
        axes: np.ndarray | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        over: tuple[int, ...] = tuple(range(x.ndim))
        if axes is not None and axes.size:
            over = tuple(sorted(axes_in(axes.reshape(-1).tolist(), x.ndim)))
        elif noop_with_empty_axes:
            over = ()
        return apply(build, x, axes=over, keepdims=bool(keepdims))

    as_input.__doc__ = doc
    op(name, since=axes_input_since, host=(1,))(as_input)

    def as_attribute(x: Tensor, *, axes: Sequence[int] | None = None, keepdims: int = 1) -> Tensor:
        over = axes_in(axes, x.ndim) if axes else tuple(range(x.ndim))
        return apply(build, x, axes=tuple(sorted(over)), keepdims=bool(keepdims))

    as_attribute.__doc__ = f"Before version {axes_input_since} the axes were an attribute."
    op(name, since=1)(as_attribute)


def _sum(x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    return reductions.sum(x, axes, keepdims)


def _log_sum(x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    return ew.log(_sum(x, axes, keepdims))


def _log_sum_exp(x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    if not axes:
        return x
    if 0 in [x.shape[a] for a in axes]:
        return _log_sum(x, axes, keepdims)
    return reductions.logsumexp(x, axes, keepdims)


def _l1(x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    return _sum(ew.abs(x), axes, keepdims)


def _sum_square(x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    return _sum(ew.square(x), axes, keepdims)


def _l2(x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    return ew.sqrt(_sum_square(x, axes, keepdims))


_max = _extreme(reductions.max, reductions.any, True)
_min = _extreme(reductions.min, reductions.all, False)

_over("ReduceSum", _sum, "The sum.", axes_input_since=13)
_over("ReduceMean", _in_floats(reductions.mean), "The mean.")
_over("ReduceProd", reductions.prod, "The product.")
_over("ReduceMax", _max, "The greatest element; of none the least number there is.")
_over("ReduceMin", _min, "The least element; of none the greatest number there is.")
_over("ReduceL1", _half_as_float(_l1), "The sum of absolute values.")
_over("ReduceL2", _in_floats(_l2), "The square root of the sum of squares.")
_over("ReduceLogSum", _in_floats(_log_sum), "The logarithm of the sum.")
_over("ReduceLogSumExp", _in_floats(_log_sum_exp), "``log(sum(exp(x)))`` without overflow.")
_over("ReduceSumSquare", _half_as_float(_sum_square), "The sum of squares.")


# --- positions of extremes -----------------------------------------------------------------------


def _position(name: str, build: Any, doc: str) -> None:
    def function(
        x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
    ) -> Tensor:
        at = views.normal_axis(axis, x.ndim)

        def position(node: Node) -> Node:
            if not select_last_index:
                return build(node, at, bool(keepdims))
            found = build(views.flip(node, at), at, bool(keepdims))
            return ew.sub(ew.literal(x.shape[at] - 1, found), found)

        return apply(position, x)

    function.__doc__ = doc
    op(name)(function)


_position("ArgMax", reductions.argmax, "Where the greatest element is: the first, or the last.")
_position("ArgMin", reductions.argmin, "Where the least element is: the first, or the last.")


# --- running sums and products -------------------------------------------------------------------


def _running(name: str, build: Any, start: int, since: int, doc: str) -> None:
    def function(x: Tensor, axis: np.ndarray, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
        at = views.normal_axis(int(axis.reshape(())), x.ndim)

        def run(node: Node) -> Node:
            found = build(node, at, bool(reverse))
            n = x.shape[at]
            if not exclusive or n == 0:
                return found
            first = [int(a == at and bool(reverse)) for a in range(x.ndim)]
            sizes = [n - 1 if a == at else size for a, size in enumerate(x.shape)]
            margin = (0, 1) if reverse else (1, 0)
            widths = [margin if a == at else (0, 0) for a in range(x.ndim)]
            return views.pad(views.slice_(found, first, sizes), widths, start)

        return apply(run, x)

    function.__doc__ = doc
    op(name, since=since, host=(1,))(function)


_running("CumSum", scans.cumsum, 0, 11, "Sums of the elements up to each (or before it).")
_running("CumProd", scans.cumprod, 1, 26, "Products of the elements up to each (or before it).")

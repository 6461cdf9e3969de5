"""Scans along an axis: running sums, products, extremes, and linear recurrences.

Every scan goes step by step along its axis (from the end with ``reverse``) and is parallel over the
other axes, so results do not depend on threads. 16-bit floats are carried in f32 and rounded at
each output. All gradients are made of scans again, so they exist to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, boolean, i64
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, const_node, shape_of
from tilewright.ops import elementwise, scans_kernels, views
from tilewright.ops.calls import KernelCall
from tilewright.ops.indexing import take_along_axis
from tilewright.ops.scans_kernels import scan_calls
from tilewright.ops.table import OpDef, make, register
from tilewright.sizes import has_value

__all__ = ["cummax", "cummin", "cumprod", "cumsum", "linear_scan", "logcumsumexp"]

Inputs = Sequence[Node]
Attrs = Mapping[str, Any]


def _axis_of(op: str, x: Node, axis: int) -> int:
    rank = len(x.shape)
    if not -rank <= axis < rank:
        raise ShapeError(f"{op}: axis {axis} of {x.dtype}{shape_of(x.shape)} does not exist")
    return axis % rank


def _same(op: str, floats: bool) -> Callable[[Inputs, Attrs], tuple[Shape, DType]]:
    def infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
        x = inputs[0]
        if x.dtype is boolean or (floats and not x.dtype.is_float):
            kind = "floats" if floats else "numbers"
            raise ShapeError(f"{op} wants {kind}, got {x.dtype}{shape_of(x.shape)}: cast it")
        return x.shape, x.dtype

    return infer


def _in_order(fn: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A reference from ``fn(array, axis)``, with ``reverse`` and 16-bit floats in float32."""

    def reference(x: np.ndarray, axis: int, reverse: bool) -> np.ndarray:
        wide = x.astype(np.float32) if x.dtype == np.float16 else x
        turned = np.flip(wide, axis) if reverse else wide
        out = fn(turned, axis)
        return np.flip(out, axis) if reverse else out

    return reference


def _calls(
    first: Callable[..., Any], step: Callable[..., Any]
) -> Callable[[Node, Sequence[Any], Any], list[KernelCall]]:
    def calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
        axis, reverse = node.attrs["axis"], node.attrs["reverse"]
        return scan_calls(inputs, [], out, axis, reverse, first, step)

    return calls


def _from(x: Node, axis: int, start: int, size: int) -> Node:
    """``size`` elements of ``x`` from ``start`` on along ``axis``."""
    starts = [start if a == axis else 0 for a in range(len(x.shape))]
    return views.slice_(x, starts, (*x.shape[:axis], size, *x.shape[axis + 1 :]))


def _length(x: Node, axis: int) -> int:
    return views.sizes_of(x)[axis]


def _ahead(x: Node, axis: int, reverse: bool) -> Node:
    """Each element's successor in scan order; zero at the end."""
    n = _length(x, axis)
    if n == 0:
        return x
    kept = _from(x, axis, 0 if reverse else 1, n - 1)
    margin = (1, 0) if reverse else (0, 1)
    return views.pad(kept, [margin if a == axis else (0, 0) for a in range(len(x.shape))])


def _behind(x: Node, axis: int, reverse: bool, first: Node) -> Node:
    """Each element's predecessor in scan order; ``first`` (one element along the axis) before."""
    n = _length(x, axis)
    if n == 0:
        return x
    kept = _from(x, axis, 1 if reverse else 0, n - 1)
    return views.concat([kept, first] if reverse else [first, kept], axis)


def _edge(x: Node, axis: int, value: int) -> Node:
    """``value`` with one element along ``axis``."""
    shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    return views.broadcast(const_node(value, x.dtype), shape)


# --- sums and products ---------------------------------------------------------------------------


def _cumsum_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    return (cumsum(grad, node.attrs["axis"], not node.attrs["reverse"]),)


register(
    OpDef(
        "cumsum",
        _same("cumsum", False),
        _in_order(lambda x, axis: np.cumsum(x, axis, dtype=x.dtype)),
        calls=_calls(scans_kernels.first_sum, scans_kernels.step_sum),
        gradient=_cumsum_gradient,
    )
)


def cumsum(x: Node, axis: int = -1, reverse: bool = False) -> Node:
    """Sums of the elements up to each one along ``axis``, in x's dtype."""
    return make("cumsum", x, axis=_axis_of("cumsum", x, axis), reverse=bool(reverse))


def _cumprod_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    """By the recurrence y_t = x_t y_(t-1), which needs no division: zeros are no exception."""
    (x,) = node.inputs
    axis, reverse = node.attrs["axis"], node.attrs["reverse"]
    adjoint = linear_scan(_ahead(x, axis, reverse), grad, None, axis, not reverse)
    return (elementwise.mul(adjoint, _behind(node, axis, reverse, _edge(x, axis, 1))),)


register(
    OpDef(
        "cumprod",
        _same("cumprod", False),
        _in_order(lambda x, axis: np.cumprod(x, axis, dtype=x.dtype)),
        calls=_calls(scans_kernels.first_prod, scans_kernels.step_prod),
        gradient=_cumprod_gradient,
    )
)


def cumprod(x: Node, axis: int = -1, reverse: bool = False) -> Node:
    """Products of the elements up to each one along ``axis``, in x's dtype."""
    return make("cumprod", x, axis=_axis_of("cumprod", x, axis), reverse=bool(reverse))


# --- logcumsumexp --------------------------------------------------------------------------------


def _weights(later: Node, earlier: Node) -> Node:
    """exp(earlier - later), 1 for two equal infinities."""
    gap = elementwise.sub(earlier, later)
    zero = views.broadcast(const_node(0, gap.dtype), gap.shape)
    return elementwise.exp(elementwise.where(elementwise.eq(earlier, later), zero, gap))


def _logcumsumexp_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    """sum_(j >= t) g_j exp(x_t - y_j) as a recurrence in which nothing overflows:

    a_t = g_t + exp(y_t - y_(t+1)) a_(t+1), times exp(x_t - y_t).
    """
    (x,) = node.inputs
    axis, reverse = node.attrs["axis"], node.attrs["reverse"]
    n = _length(x, axis)
    if n == 0:
        return (grad,)
    first, last = _from(node, axis, 0, n - 1), _from(node, axis, 1, n - 1)
    decay = _weights(first, last) if reverse else _weights(last, first)
    margin = (1, 0) if reverse else (0, 1)
    decay = views.pad(decay, [margin if a == axis else (0, 0) for a in range(len(x.shape))])
    adjoint = linear_scan(decay, grad, None, axis, not reverse)
    return (elementwise.mul(adjoint, _weights(node, x)),)


register(
    OpDef(
        "logcumsumexp",
        _same("logcumsumexp", True),
        _in_order(np.logaddexp.accumulate),
        calls=_calls(scans_kernels.first_logsumexp, scans_kernels.step_logsumexp),
        gradient=_logcumsumexp_gradient,
    )
)


def logcumsumexp(x: Node, axis: int = -1, reverse: bool = False) -> Node:
    """``log(cumsum(exp(x)))`` along ``axis`` without overflow; floats."""
    return make("logcumsumexp", x, axis=_axis_of("logcumsumexp", x, axis), reverse=bool(reverse))


# --- extremes ------------------------------------------------------------------------------------


def _extreme_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    (x,) = inputs
    n = x.shape[attrs["axis"]]
    if not has_value(n) or n >= 1 << 31:
        raise ShapeError(f"cummax wants an axis of fewer than 2**31 elements, got {n}")
    return x.shape, i64


def _extreme_reference(x: np.ndarray, axis: int, reverse: bool, largest: bool) -> np.ndarray:
    """The index of the best element so far, step by step."""
    values = np.moveaxis(np.flip(x, axis) if reverse else x, axis, 0)
    out = np.zeros(values.shape, np.int64)
    for t in range(1, len(values)):
        best = np.take_along_axis(values, out[t - 1 : t], 0)[0]
        now = values[t]
        better = (now >= best) if largest else (now <= best)
        better = np.isnan(now) | (better & ~np.isnan(best))
        out[t] = np.where(better, t, out[t - 1])
    places = np.moveaxis(out, 0, axis)
    return np.flip(x.shape[axis] - 1 - places, axis) if reverse else places


def _extreme_calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    axis, reverse = node.attrs["axis"], node.attrs["reverse"]
    largest = node.attrs["largest"]
    (x,) = inputs
    step = scans_kernels.step_max if largest else scans_kernels.step_min
    if not x.size:
        return []
    shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    offset = (x.shape[axis] - 1) * x.strides[axis] if reverse else 0
    start = x.view(shape, x.strides, offset)
    return scan_calls([x], [start], out, axis, reverse, scans_kernels.first_extreme, step)


register(
    OpDef(
        "cumargmax",
        _extreme_infer,
        _extreme_reference,
        calls=_extreme_calls,
        gradient=lambda node, grad: (None,),
    )
)


def _extremes(x: Node, axis: int, reverse: bool, largest: bool) -> tuple[Node, Node]:
    at = _axis_of("cummax" if largest else "cummin", x, axis)
    index = make("cumargmax", x, axis=at, reverse=bool(reverse), largest=largest)
    return take_along_axis(x, index, at), index


def cummax(x: Node, axis: int = -1, reverse: bool = False) -> tuple[Node, Node]:
    """The largest element up to each one along ``axis``, and its index (i64).

    Of equal elements the latest counts, as in PyTorch; a NaN stays the largest.
    """
    return _extremes(x, axis, reverse, True)


def cummin(x: Node, axis: int = -1, reverse: bool = False) -> tuple[Node, Node]:
    """The smallest element up to each one along ``axis``, and its index; see :func:`cummax`."""
    return _extremes(x, axis, reverse, False)


# --- linear recurrences --------------------------------------------------------------------------


def _linear_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    a, b, *start = inputs
    axis = attrs["axis"]
    got = ", ".join(f"{i.dtype}{shape_of(i.shape)}" for i in inputs)
    if any(i.dtype is not b.dtype for i in inputs) or not b.dtype.is_float or a.shape != b.shape:
        raise ShapeError(f"linear_scan wants floats a and b of one dtype and shape, got {got}")
    if start and start[0].shape != (*b.shape[:axis], *b.shape[axis + 1 :]):
        raise ShapeError(
            f"linear_scan along axis {axis} wants a start of the other axes, got {got}"
        )
    return b.shape, b.dtype


def _linear_reference(
    a: np.ndarray, b: np.ndarray, *start: np.ndarray, axis: int, reverse: bool
) -> np.ndarray:
    """In float64, rounded at each step to the dtype (f32 for 16-bit floats), as an FMA does."""
    kind = np.float32 if b.dtype == np.float16 else b.dtype
    gains, inputs = (np.moveaxis(v, axis, 0) for v in (a, b))
    out = np.zeros(inputs.shape, kind)
    order = range(len(out) - 1, -1, -1) if reverse else range(len(out))
    h = start[0].astype(np.float64) if start else None
    for t in order:
        exact = inputs[t].astype(np.float64)
        h = exact if h is None else gains[t].astype(np.float64) * h + exact
        out[t] = h
        h = out[t].astype(np.float64)
    return np.moveaxis(out, 0, axis)


def _linear_calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    axis, reverse = node.attrs["axis"], node.attrs["reverse"]
    a, b, *start = inputs
    shape = (*b.shape[:axis], 1, *b.shape[axis + 1 :])
    starts = [h.view(shape, (*h.strides[:axis], 0, *h.strides[axis:])) for h in start]
    first, step = scans_kernels.first_linear, scans_kernels.step_linear
    return scan_calls([a, b], starts, out, axis, reverse, first, step)


def _linear_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    """With adjoints p_t = g_t + a_(t+1) p_(t+1): da_t = p_t h_(t-1), db = p, dh_0 = a_1 p_1."""
    a, b, *start = node.inputs
    axis, reverse = node.attrs["axis"], node.attrs["reverse"]
    n = _length(b, axis)
    adjoint = linear_scan(_ahead(a, axis, reverse), grad, None, axis, not reverse)
    first = views.expand_dims(start[0], axis) if start else _edge(b, axis, 0)
    found: list[Node | None] = [
        elementwise.mul(adjoint, _behind(node, axis, reverse, first)),
        adjoint,
    ]
    if start:
        if n == 0:
            return (*found, views.broadcast(const_node(0, b.dtype), start[0].shape))
        edge = n - 1 if reverse else 0
        product = elementwise.mul(_from(a, axis, edge, 1), _from(adjoint, axis, edge, 1))
        found.append(views.reshape(product, start[0].shape))
    return found


register(
    OpDef(
        "linear_scan",
        _linear_infer,
        _linear_reference,
        calls=_linear_calls,
        gradient=_linear_gradient,
    )
)


def linear_scan(
    a: Node, b: Node, start: Node | None = None, axis: int = 1, reverse: bool = False
) -> Node:
    """The states of ``h_t = a_t h_(t-1) + b_t`` along ``axis``, one fused multiply-add a step.

    a and b (o.., T, i..) floats; ``start`` (o.., i..) is h before the first step, without one the
    first state is b's. With ``reverse`` time runs from the end.
    """
    at = _axis_of("linear_scan", b, axis)
    inputs = (a, b) if start is None else (a, b, start)
    return make("linear_scan", *inputs, axis=at, reverse=bool(reverse))

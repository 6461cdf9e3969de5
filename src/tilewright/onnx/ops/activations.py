"""Activation functions: of each element, and softmax and its relatives along an axis.

Those with parameters are written as the standard defines them. 16-bit floats are computed in
float32 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tilewright.dtypes import f32, f64
from tilewright.errors import UnsupportedError
from tilewright.graph import Node
from tilewright.onnx.ops.common import aligned, require_same, unary, wide
from tilewright.onnx.registry import op
from tilewright.ops import elementwise as ew
from tilewright.ops import reductions, views
from tilewright.tensor.core import Tensor, apply


def _relu(x: Node) -> Node:
    return ew.relu(x) if x.dtype.is_float else ew.maximum(x, ew.literal(0, x))


def _number(value: float, like: Node) -> Node:
    return ew.literal(float(value), like)


unary("Relu", _relu, "``max(x, 0)``.")
unary("Sigmoid", ew.sigmoid, "``1 / (1 + exp(-x))``.")
unary("Tanh", ew.tanh, "The hyperbolic tangent.")
unary("Softplus", ew.softplus, "``log(1 + exp(x))``.", since=1, old=None)


def _softsign(x: Node) -> Node:
    return ew.div(x, ew.add(ew.abs(x), _number(1, x)))


def _mish(x: Node) -> Node:
    return ew.mul(x, ew.tanh(ew.softplus(x)))


def _hard_swish(x: Node) -> Node:
    return ew.mul(x, _hard_sigmoid(x, 1 / 6, 0.5))


def _hard_sigmoid(x: Node, alpha: float, beta: float) -> Node:
    line = ew.add(ew.mul(x, _number(alpha, x)), _number(beta, x))
    return ew.clip(line, _number(0, x), _number(1, x))


unary("Softsign", wide(_softsign), "``x / (1 + |x|)``.", since=1, old=None)
unary("Mish", wide(_mish), "``x tanh(softplus(x))``.", since=18, old=None)
unary("HardSwish", wide(_hard_swish), "``x max(0, min(1, x / 6 + 1/2))``.", since=14, old=None)


def _with_numbers(x: Tensor, build: Callable[..., Node], *numbers: float) -> Tensor:
    return apply(wide(lambda node: build(node, *numbers)), x)


@op("HardSigmoid")
def hard_sigmoid(
    x: Tensor, *, alpha: float = 0.2, beta: float = 0.5, consumed_inputs: Any = None
) -> Tensor:
    """``max(0, min(1, alpha x + beta))``."""
    return _with_numbers(x, _hard_sigmoid, alpha, beta)


@op("Elu")
def elu(x: Tensor, *, alpha: float = 1.0, consumed_inputs: Any = None) -> Tensor:
    """``x`` where it is positive, else ``alpha (exp(x) - 1)``."""
    return apply(ew.elu, x, alpha=alpha)


def _selu(x: Node, alpha: float, gamma: float) -> Node:
    return ew.mul(ew.elu(x, alpha), _number(gamma, x))


def _selu_op(since: int, default_alpha: float, default_gamma: float) -> None:
    def selu(
        x: Tensor,
        *,
        alpha: float = default_alpha,
        gamma: float = default_gamma,
        consumed_inputs: Any = None,
    ) -> Tensor:
        return _with_numbers(x, _selu, alpha, gamma)

    selu.__doc__ = "``gamma elu(x)``."
    op("Selu", since=since)(selu)


_selu_op(1, 1.6732, 1.0507)
_selu_op(6, 1.67326319217681884765625, 1.05070102214813232421875)


def _celu(x: Node, alpha: float) -> Node:
    zero = _number(0, x)
    below = ew.expm1(ew.div(ew.minimum(x, zero), _number(alpha, x)))
    return ew.add(ew.maximum(x, zero), ew.mul(below, _number(alpha, x)))


@op("Celu", since=12)
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``max(0, x) + min(0, alpha (exp(x / alpha) - 1))``."""
    return _with_numbers(x, _celu, alpha)


@op("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01, consumed_inputs: Any = None) -> Tensor:
    """``x`` where it is not negative, else ``alpha x``."""
    return apply(ew.leaky_relu, x, slope=alpha)


def _thresholded(x: Node, alpha: float) -> Node:
    return ew.where(ew.gt(x, _number(alpha, x)), x, _number(0, x))


@op("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``x`` where it exceeds ``alpha``, else 0."""
    return _with_numbers(x, _thresholded, alpha)


@op("Shrink", since=9)
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """``x + bias`` below ``-lambd``, ``x - bias`` above ``lambd``, else 0."""

    def build(node: Node) -> Node:
        limit = ew.cast(node, f64) if node.dtype.is_integer else node
        up, down = _number(lambd, limit), _number(-lambd, limit)
        by = _number(bias, limit)
        high = ew.where(ew.gt(limit, up), ew.sub(limit, by), _number(0, limit))
        return ew.cast(ew.where(ew.lt(limit, down), ew.add(limit, by), high), node.dtype)

    return apply(wide(build), x)


@op("Gelu", since=20)
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """GELU, exact or in its tanh form."""
    if approximate not in ("none", "tanh"):
        raise UnsupportedError(f'approximate is "none" or "tanh", got {approximate!r}')
    return apply(ew.gelu_erf if approximate == "none" else ew.gelu, x)


def _swish(x: Node, alpha: float) -> Node:
    if alpha == 1:
        return ew.silu(x)
    return ew.mul(x, ew.sigmoid(ew.mul(x, _number(alpha, x))))


@op("Swish", since=24)
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``x sigmoid(alpha x)``."""
    return _with_numbers(x, _swish, alpha)


@op("SwiGLU", since=28)
def swiglu(gate: Tensor, value: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``gate sigmoid(alpha gate) value``."""
    require_same(gate, value)

    def build(a: Node, b: Node) -> Node:
        half = a.dtype.bits == 16
        wide_a, wide_b = (ew.cast(v, f32) if half else v for v in (a, b))
        return ew.cast(ew.mul(_swish(wide_a, alpha), wide_b), a.dtype)

    return apply(build, gate, value)


# --- with a slope --------------------------------------------------------------------------------


def _prelu(x: Node, slope: Node) -> Node:
    return ew.where(ew.lt(x, ew.literal(0, x)), ew.mul(x, slope), x)


@op("PRelu", since=7)
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """``x`` where it is not negative, else ``slope x``; the slope broadcasts to x."""
    require_same(x, slope)
    return apply(_prelu, x, slope)


@op("PRelu", since=1)
def prelu_1(x: Tensor, slope: Tensor, *, consumed_inputs: Any = None) -> Tensor:
    """Before version 7 the slope is one number, or one per channel."""
    require_same(x, slope)
    axis = 1 if slope.ndim == 1 and slope.size > 1 else None
    return apply(lambda a, b: _prelu(a, aligned(b, a, axis)), x, slope)


# --- along an axis -------------------------------------------------------------------------------


def _hardmax(x: Node, axis: int) -> Node:
    first = reductions.argmax(x, axis, keepdims=True)
    places = ew.iota(x.shape, axis, first.dtype)  # type: ignore[arg-type]
    return ew.cast(ew.eq(places, first), x.dtype)


def _along(name: str, build: Callable[[Node, int], Node], doc: str) -> None:
    def function(x: Tensor, *, axis: int = -1) -> Tensor:
        return apply(build, x, axis=views.normal_axis(axis, x.ndim))

    function.__doc__ = doc
    op(name, since=13)(function)

    def flattened(x: Tensor, *, axis: int = 1) -> Tensor:
        at = axis if axis == x.ndim else views.normal_axis(axis, x.ndim)
        flat = (math.prod(x.shape[:at]), math.prod(x.shape[at:]))
        return apply(lambda node: views.reshape(build(views.reshape(node, flat), 1), x.shape), x)

    flattened.__doc__ = "Before version 13 over all axes from ``axis`` on."
    op(name, since=1)(flattened)


_along("Softmax", reductions.softmax, "``exp(x) / sum(exp(x))`` along an axis.")
_along("LogSoftmax", reductions.log_softmax, "The logarithm of softmax.")
_along("Hardmax", _hardmax, "1 at the first largest element along an axis, 0 elsewhere.")

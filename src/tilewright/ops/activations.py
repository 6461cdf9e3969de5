"""Activation functions.

SiLU: Elfwing et al. 2017. GELU: Hendrycks & Gimpel 2016 (``gelu`` is the tanh form that GPT-2 uses,
``gelu_erf`` the exact one). ELU: Clevert et al. 2015. Softplus: Dugas et al. 2001.
"""

from __future__ import annotations

import math

import numpy as np

from tilewright.graph import Node
from tilewright.lang.functions import UNARY_FUNCTIONS
from tilewright.ops.arithmetic import (
    add,
    elementwise,
    in_float64,
    literal,
    mul,
    neg,
    scale,
    square,
    sub,
)
from tilewright.ops.comparison import gt, where
from tilewright.ops.elementwise_math import erf, exp, tanh
from tilewright.ops.table import make

__all__ = [
    "elu",
    "gelu",
    "gelu_erf",
    "leaky_relu",
    "log_sigmoid",
    "relu",
    "sigmoid",
    "silu",
    "softplus",
]

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
_GELU = (
    f"0.5 * {{0}} * (1.0 + tanh({SQRT_2_OVER_PI!r} * ({{0}} + 0.044715 * {{0}} * {{0}} * {{0}})))"
)
_erf = UNARY_FUNCTIONS["erf"]
_sigmoid = UNARY_FUNCTIONS["sigmoid"]


def _np_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x**3)))


def _one_minus(x: Node) -> Node:
    return sub(literal(1, x), x)


def _silu_rule(g: Node, y: Node, x: Node) -> Node:
    """``s + y (1 - s)`` with ``s = sigmoid(x)``."""
    s = sigmoid(x)
    return mul(g, add(s, mul(y, _one_minus(s))))


def _gelu_rule(g: Node, y: Node, x: Node) -> Node:
    """``(1 + t) / 2 + x (1 - t^2) u' / 2`` with ``t = tanh(u(x))``."""
    xx = square(x)
    cubic = add(literal(1, x), scale(xx, 0.044715))
    t = tanh(scale(mul(x, cubic), SQRT_2_OVER_PI))
    slope = scale(add(literal(1, x), scale(xx, 3 * 0.044715)), 0.5 * SQRT_2_OVER_PI)
    left = scale(add(literal(1, x), t), 0.5)
    return mul(g, add(left, mul(mul(x, _one_minus(square(t))), slope)))


def _gelu_erf_rule(g: Node, y: Node, x: Node) -> Node:
    """``Phi(x) + x phi(x)``, the normal distribution and its density."""
    distribution = scale(add(literal(1, x), erf(scale(x, math.sqrt(0.5)))), 0.5)
    density = scale(exp(scale(square(x), -0.5)), 1 / math.sqrt(2 * math.pi))
    return mul(g, add(distribution, mul(x, density)))


elementwise(
    "relu",
    "maximum({0}, 0.0)",
    lambda x: np.maximum(x, x.dtype.type(0)),
    lambda g, y, x: where(gt(x, literal(0, x)), g, literal(0, g)),
)
elementwise(
    "sigmoid", "sigmoid({0})", in_float64(_sigmoid), lambda g, y, x: mul(g, mul(y, _one_minus(y)))
)
elementwise("silu", "{0} * sigmoid({0})", in_float64(lambda x: x * _sigmoid(x)), _silu_rule)
elementwise("gelu", _GELU, in_float64(_np_gelu), _gelu_rule)
elementwise(
    "gelu_erf",
    f"0.5 * {{0}} * (1.0 + erf({{0}} * {math.sqrt(0.5)!r}))",
    in_float64(lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2)))),
    _gelu_erf_rule,
)
elementwise(
    "softplus",
    "maximum({0}, 0.0) + log1p(exp(-abs({0})))",
    in_float64(lambda x: np.logaddexp(x, 0)),
    lambda g, y, x: mul(g, sigmoid(x)),
)
elementwise(
    "leaky_relu",
    "where({0} > 0.0, {0}, {0} * {slope!r})",
    in_float64(lambda x, slope: np.where(x > 0, x, x * slope)),
    lambda g, y, x: where(gt(x, literal(0, x)), g, scale(g, y.attrs["slope"])),
)
elementwise(
    "elu",
    "where({0} > 0.0, {0}, {alpha!r} * expm1(minimum({0}, 0.0)))",
    in_float64(lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))),
    lambda g, y, x: mul(
        g, where(gt(x, literal(0, x)), literal(1, x), add(y, literal(y.attrs["alpha"], y)))
    ),
)


def relu(x: Node) -> Node:
    """``max(x, 0)``; its gradient at 0 is 0."""
    return make("relu", x)


def sigmoid(x: Node) -> Node:
    """``1 / (1 + exp(-x))``."""
    return make("sigmoid", x)


def silu(x: Node) -> Node:
    """``x * sigmoid(x)``."""
    return make("silu", x)


def gelu(x: Node) -> Node:
    """GELU, tanh form: ``0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))``."""
    return make("gelu", x)


def gelu_erf(x: Node) -> Node:
    """GELU, exact: ``0.5 x (1 + erf(x / sqrt 2))``."""
    return make("gelu_erf", x)


def softplus(x: Node) -> Node:
    """``log(1 + exp(x))`` without overflow."""
    return make("softplus", x)


def log_sigmoid(x: Node) -> Node:
    """``log(sigmoid(x))`` without underflow."""
    return neg(softplus(neg(x)))


def leaky_relu(x: Node, slope: float = 0.01) -> Node:
    """``x`` where it is positive, else ``slope * x``."""
    return make("leaky_relu", x, slope=float(slope))


def elu(x: Node, alpha: float = 1.0) -> Node:
    """``x`` where it is positive, else ``alpha * (exp(x) - 1)``."""
    return make("elu", x, alpha=float(alpha))

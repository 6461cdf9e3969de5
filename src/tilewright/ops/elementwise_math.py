"""Elementwise real functions: powers, exponentials, logarithms, trigonometry and their inverses.

The meaning of each is NumPy's function of float64 rounded to the operands' dtype
(:mod:`tilewright.lang.functions`).
"""

from __future__ import annotations

import math

import numpy as np

from tilewright.graph import Node
from tilewright.lang.functions import UNARY_FUNCTIONS
from tilewright.ops.arithmetic import (
    NUMBERS,
    Rule,
    abs,
    add,
    div,
    elementwise,
    in_float64,
    literal,
    mul,
    neg,
    rsqrt,
    scale,
    square,
    sub,
)
from tilewright.ops.comparison import eq, gt, logical_and, logical_not, where, zero_where
from tilewright.ops.table import make

__all__ = [
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "cos",
    "cosh",
    "erf",
    "erfinv",
    "exp",
    "exp2",
    "expm1",
    "hypot",
    "log",
    "log1p",
    "log2",
    "log10",
    "logaddexp",
    "pow",
    "sin",
    "sinh",
    "tan",
    "tanh",
]


def _function(name: str, rule: Rule) -> None:
    """An entry for a function of one float that the kernel language has under the same name."""
    elementwise(name, f"{name}({{0}})", in_float64(UNARY_FUNCTIONS[name]), rule)


def _one_minus_square(x: Node) -> Node:
    return sub(literal(1, x), square(x))


def _one_plus_square(x: Node) -> Node:
    return add(literal(1, x), square(x))


_function("exp", lambda g, y, x: mul(g, y))
_function("exp2", lambda g, y, x: mul(g, scale(y, math.log(2))))
_function("expm1", lambda g, y, x: mul(g, add(y, literal(1, y))))
_function("log", lambda g, y, x: div(g, x))
_function("log2", lambda g, y, x: div(scale(g, 1 / math.log(2)), x))
_function("log10", lambda g, y, x: div(scale(g, 1 / math.log(10)), x))
_function("log1p", lambda g, y, x: div(g, add(x, literal(1, x))))
_function("sin", lambda g, y, x: mul(g, cos(x)))
_function("cos", lambda g, y, x: neg(mul(g, sin(x))))
_function("tan", lambda g, y, x: mul(g, _one_plus_square(y)))
_function("asin", lambda g, y, x: mul(g, rsqrt(_one_minus_square(x))))
_function("acos", lambda g, y, x: neg(mul(g, rsqrt(_one_minus_square(x)))))
_function("atan", lambda g, y, x: div(g, _one_plus_square(x)))
_function("sinh", lambda g, y, x: mul(g, cosh(x)))
_function("cosh", lambda g, y, x: mul(g, sinh(x)))
_function("tanh", lambda g, y, x: mul(g, _one_minus_square(y)))
_function("asinh", lambda g, y, x: mul(g, rsqrt(_one_plus_square(x))))
_function("acosh", lambda g, y, x: mul(g, rsqrt(sub(square(x), literal(1, x)))))
_function("atanh", lambda g, y, x: div(g, _one_minus_square(x)))
_function("erf", lambda g, y, x: mul(scale(g, 2 / math.sqrt(math.pi)), exp(neg(square(x)))))
_function("erfinv", lambda g, y, x: mul(scale(g, math.sqrt(math.pi) / 2), exp(square(y))))


def _pow_base(g: Node, z: Node, x: Node, y: Node) -> Node:
    """``y * x**(y-1)``; an exponent of 0 has no slope even where ``x`` is 0 or NaN."""
    flat = logical_and(eq(y, literal(0, y)), logical_not(gt(abs(x), literal(0, x))))
    return mul(g, mul(y, pow(where(flat, literal(1, x), x), sub(y, literal(1, y)))))


def _pow_exponent(g: Node, z: Node, x: Node, y: Node) -> Node:
    """``x**y * log(x)``; 0 where ``x`` is 0 and the power is finite."""
    flat = logical_and(eq(x, literal(0, x)), logical_not(gt(literal(0, y), y)))
    return mul(g, mul(z, log(where(flat, literal(1, x), x))))


def _logaddexp_share(g: Node, x: Node, y: Node) -> Node:
    """``x``'s share of ``exp(x) + exp(y)``, half of it where both are the same infinity."""
    difference = where(eq(x, y), literal(0, x), sub(x, y))
    return mul(g, make("sigmoid", difference))


def _over_square_sum(g: Node, x: Node, y: Node) -> Node:
    total = add(square(x), square(y))
    none = eq(total, literal(0, x))
    return zero_where(none, div(g, where(none, literal(1, x), total)))


def _hypot_share(g: Node, z: Node, x: Node) -> Node:
    none = eq(z, literal(0, z))
    return zero_where(none, div(mul(g, x), where(none, literal(1, z), z)))


elementwise("pow", "pow({0}, {1})", None or np.power, _pow_base, _pow_exponent, kinds=NUMBERS)
elementwise(
    "logaddexp",
    "logaddexp({0}, {1})",
    in_float64(np.logaddexp),
    lambda g, z, x, y: _logaddexp_share(g, x, y),
    lambda g, z, x, y: _logaddexp_share(g, y, x),
)
elementwise(
    "atan2",
    "atan2({0}, {1})",
    in_float64(np.arctan2),
    lambda g, z, y, x: mul(_over_square_sum(g, x, y), x),
    lambda g, z, y, x: neg(mul(_over_square_sum(g, x, y), y)),
)
elementwise(
    "hypot",
    "hypot({0}, {1})",
    in_float64(np.hypot),
    lambda g, z, x, y: _hypot_share(g, z, x),
    lambda g, z, x, y: _hypot_share(g, z, y),
)


def exp(x: Node) -> Node:
    """e to the power ``x``."""
    return make("exp", x)


def exp2(x: Node) -> Node:
    """2 to the power ``x``."""
    return make("exp2", x)


def expm1(x: Node) -> Node:
    """``exp(x) - 1``, accurate near 0."""
    return make("expm1", x)


def log(x: Node) -> Node:
    """The natural logarithm."""
    return make("log", x)


def log2(x: Node) -> Node:
    """The logarithm to base 2."""
    return make("log2", x)


def log10(x: Node) -> Node:
    """The logarithm to base 10."""
    return make("log10", x)


def log1p(x: Node) -> Node:
    """``log(1 + x)``, accurate near 0."""
    return make("log1p", x)


def sin(x: Node) -> Node:
    """The sine of ``x`` radians."""
    return make("sin", x)


def cos(x: Node) -> Node:
    """The cosine of ``x`` radians."""
    return make("cos", x)


def tan(x: Node) -> Node:
    """The tangent of ``x`` radians."""
    return make("tan", x)


def asin(x: Node) -> Node:
    """The arc sine."""
    return make("asin", x)


def acos(x: Node) -> Node:
    """The arc cosine."""
    return make("acos", x)


def atan(x: Node) -> Node:
    """The arc tangent."""
    return make("atan", x)


def sinh(x: Node) -> Node:
    """The hyperbolic sine."""
    return make("sinh", x)


def cosh(x: Node) -> Node:
    """The hyperbolic cosine."""
    return make("cosh", x)


def tanh(x: Node) -> Node:
    """The hyperbolic tangent."""
    return make("tanh", x)


def asinh(x: Node) -> Node:
    """The inverse of ``sinh``."""
    return make("asinh", x)


def acosh(x: Node) -> Node:
    """The inverse of ``cosh``, not negative."""
    return make("acosh", x)


def atanh(x: Node) -> Node:
    """The inverse of ``tanh``."""
    return make("atanh", x)


def erf(x: Node) -> Node:
    """The error function."""
    return make("erf", x)


def erfinv(x: Node) -> Node:
    """The inverse of ``erf``: what makes normal numbers of uniform ones."""
    return make("erfinv", x)


def pow(x: Node, y: Node) -> Node:
    """``x ** y``; integers wrap, and to a negative power are ``1 / x**n`` without its fraction."""
    return make("pow", x, y)


def logaddexp(x: Node, y: Node) -> Node:
    """``log(exp(x) + exp(y))`` without overflow."""
    return make("logaddexp", x, y)


def atan2(y: Node, x: Node) -> Node:
    """The angle of the point (x, y), in radians from -pi to pi."""
    return make("atan2", y, x)


def hypot(x: Node, y: Node) -> Node:
    """``sqrt(x*x + y*y)`` without overflow."""
    return make("hypot", x, y)

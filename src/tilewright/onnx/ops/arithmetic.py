"""Arithmetic and functions of real numbers, element by element.

Operands have one element type and broadcast as NumPy's arrays (before version 7 only as attributes
say). Integers wrap; their quotients are cut towards zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.dtypes import f32, f64, i64
from tilewright.errors import UnsupportedError
from tilewright.graph import Node
from tilewright.onnx.ops.common import fold, old_pair, pairs, require_same, unary, wide
from tilewright.onnx.registry import Call, op
from tilewright.ops import elementwise as ew
from tilewright.tensor.core import Tensor, apply


def cut_quotient(x: Node, y: Node) -> Node:
    """``x / y``; of integers without its fraction, and 0 by zero."""
    if x.dtype.is_float:
        return ew.div(x, y)
    down = ew.floor_divide(x, y)
    if x.dtype.kind == "u":
        return down
    zero = ew.literal(0, x)
    inexact = ew.ne(ew.mul(down, y), x)
    apart = ew.logical_and(inexact, ew.ne(ew.lt(x, zero), ew.lt(y, zero)))
    up = ew.add(down, ew.cast(apart, x.dtype))
    return ew.where(ew.eq(y, zero), zero, up)


def cut_remainder(x: Node, y: Node) -> Node:
    """What C's ``fmod`` and ``%`` leave: the sign is the dividend's; integers by zero give 0."""
    if x.dtype.is_float:
        return ew.copysign(ew.remainder(ew.abs(x), ew.abs(y)), x)
    rest = ew.remainder(x, y)
    if x.dtype.kind == "u":
        return rest
    zero = ew.literal(0, x)
    other = ew.logical_and(ew.ne(rest, zero), ew.ne(ew.lt(x, zero), ew.lt(rest, zero)))
    return ew.where(other, ew.sub(rest, y), rest)


pairs("Add", ew.add)
pairs("Sub", ew.sub)
pairs("Mul", ew.mul)
pairs("Div", cut_quotient)

unary("Abs", ew.abs, "Absolute values; the least signed integer stays as it is.")
unary("Neg", ew.neg, "``-x``.")
unary("Sign", ew.sign, "-1, 0 or 1.", since=9, old=None)
unary("Floor", ew.floor, "The largest integer not above each element.")
unary("Ceil", ew.ceil, "The smallest integer not below each element.")
unary("Round", ew.round, "The nearest integer, the even one of two.", since=11, old=None)
unary("Sqrt", ew.sqrt, "The square root.")
unary("Reciprocal", ew.reciprocal, "``1 / x``.")
unary("Exp", ew.exp, "e to the power of each element.")
unary("Log", ew.log, "The natural logarithm.")
unary("Erf", ew.erf, "The error function.", since=9, old=None)
unary("Sin", ew.sin, "The sine of radians.", since=7, old=None)
unary("Cos", ew.cos, "The cosine of radians.", since=7, old=None)
unary("Tan", ew.tan, "The tangent of radians.", since=7, old=None)
unary("Asin", ew.asin, "The arc sine.", since=7, old=None)
unary("Acos", ew.acos, "The arc cosine.", since=7, old=None)
unary("Atan", ew.atan, "The arc tangent.", since=7, old=None)
unary("Sinh", ew.sinh, "The hyperbolic sine.", since=9, old=None)
unary("Cosh", ew.cosh, "The hyperbolic cosine.", since=9, old=None)
unary("Asinh", ew.asinh, "The inverse of sinh.", since=9, old=None)
unary("Acosh", ew.acosh, "The inverse of cosh.", since=9, old=None)
unary("Atanh", ew.atanh, "The inverse of tanh.", since=9, old=None)


# --- powers --------------------------------------------------------------------------------------


def power(x: Node, y: Node) -> Node:
    """``x ** y`` in the element type of x, whatever that of y."""
    if x.dtype is y.dtype:
        return ew.pow(x, y)
    if x.dtype.is_float:
        return ew.pow(x, ew.cast(y, x.dtype))
    common = f64 if y.dtype.is_float else i64
    return ew.cast(ew.pow(ew.cast(x, common), ew.cast(y, common)), x.dtype)


def _fixed_power(x: Node, exponent: float) -> Node | None:
    """``x`` to a usual power, without a logarithm."""
    if exponent == 1:
        return x
    if exponent == 2:
        return ew.square(x)
    if exponent == 3:
        return wide(lambda v: ew.mul(ew.square(v), v))(x)
    if not x.dtype.is_float:
        return None
    if exponent == 0.5:
        return ew.sqrt(x)
    if exponent == -0.5:
        return ew.rsqrt(x)
    return ew.reciprocal(x) if exponent == -1 else None


@op("Pow", since=7)
def pow_(x: Tensor, y: Tensor, *, ctx: Call) -> Tensor:
    """``x ** y``, in the element type of x."""
    if y.size == 1 and y.ndim <= x.ndim:
        known = ctx.constant(y)
        if known is not None:
            made = _fixed_power(x.node, float(known.reshape(())))
            if made is not None:
                return apply(lambda node: made, x)
    return apply(power, x, y)


@op("Pow", since=1)
def pow_1(x: Tensor, y: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """Before version 7 operands broadcast as attributes say."""
    return old_pair(power)(x, y, axis=axis, broadcast=broadcast)


# --- remainders ----------------------------------------------------------------------------------


@op("Mod", since=10)
def mod(x: Tensor, y: Tensor, *, fmod: int = 0) -> Tensor:
    """The remainder of a division: with the divisor's sign, with ``fmod`` the dividend's."""
    require_same(x, y)
    return apply(cut_remainder if fmod else ew.remainder, x, y)


# --- of any number of tensors --------------------------------------------------------------------


def _several(name: str, build: Any, doc: str) -> None:
    def function(*xs: Tensor) -> Tensor:
        return fold(build, xs)

    function.__doc__ = doc
    op(name, since=6)(function)

    def first(*xs: Tensor, consumed_inputs: Any = None) -> Tensor:
        return fold(build, xs)

    op(name, since=1)(first)


def _mean(*xs: Node) -> Node:
    """The sum over the number of operands; 16-bit floats in float32."""
    half = xs[0].dtype.bits == 16
    terms = [ew.cast(x, f32) if half else x for x in xs]
    total = terms[0]
    for term in terms[1:]:
        total = ew.add(total, term)
    return ew.cast(ew.div(total, ew.literal(len(xs), total)), xs[0].dtype)


_several("Sum", ew.add, "The sum of all inputs.")
_several("Max", ew.maximum, "The greatest of all inputs, element by element; NaN wins.")
_several("Min", ew.minimum, "The least of all inputs, element by element; NaN wins.")


@op("Mean", since=1)
def mean(*xs: Tensor, consumed_inputs: Any = None) -> Tensor:
    """The mean of all inputs, element by element."""
    require_same(*xs)
    return apply(_mean, *xs)


# --- limits --------------------------------------------------------------------------------------


def _clipped(x: Node, low: Node | None, high: Node | None) -> Node:
    if low is not None:
        x = ew.maximum(x, low)
    return x if high is None else ew.minimum(x, high)


@op("Clip", since=11)
def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """``x`` raised to ``low``, then lowered to ``high``."""
    bounds = [b for b in (low, high) if b is not None]
    require_same(x, *bounds)

    def build(node: Node, *nodes: Node) -> Node:
        rest = iter(nodes)
        return _clipped(
            node, None if low is None else next(rest), None if high is None else next(rest)
        )

    return apply(build, x, *bounds)


def _clip_by_numbers(x: Tensor, low: float | None, high: float | None) -> Tensor:
    def build(node: Node) -> Node:
        bounds = [None if b is None else ew.literal(b, node) for b in (low, high)]
        return _clipped(node, *bounds)

    return apply(build, x)


_LARGEST = float(np.finfo(np.float32).max)


@op("Clip", since=6)
def clip_6(x: Tensor, *, min: float = -_LARGEST, max: float = _LARGEST) -> Tensor:
    """Before version 11 the limits were attributes."""
    return _clip_by_numbers(x, None if min <= -_LARGEST else min, None if max >= _LARGEST else max)


@op("Clip", since=1)
def clip_1(
    x: Tensor, *, min: float | None = None, max: float | None = None, consumed_inputs: Any = None
) -> Tensor:
    """Before version 6 without defaults."""
    return _clip_by_numbers(x, min, max)


# --- bits ----------------------------------------------------------------------------------------


@op("BitShift", since=11)
def bit_shift(x: Tensor, y: Tensor, *, direction: str) -> Tensor:
    """``x << y`` or ``x >> y``; 0 (or all signs) from the width up."""
    require_same(x, y)
    builds = {"LEFT": ew.shift_left, "RIGHT": ew.shift_right}
    if direction not in builds:
        raise UnsupportedError(f"direction is LEFT or RIGHT, got {direction!r}")
    return apply(builds[direction], x, y)


pairs("BitwiseAnd", ew.bitwise_and, since=18, old=False)
pairs("BitwiseOr", ew.bitwise_or, since=18, old=False)
pairs("BitwiseXor", ew.bitwise_xor, since=18, old=False)
unary("BitwiseNot", ew.bitwise_invert, "Every bit inverted.", since=18, old=None)

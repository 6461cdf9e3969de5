"""Comparisons, logic, and choosing by a condition."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.dtypes import boolean
from tilewright.errors import DTypeError
from tilewright.graph import Node
from tilewright.onnx.ops.common import moves, old_pair, pairs, require_same, unary
from tilewright.onnx.registry import Call, op
from tilewright.ops import elementwise as ew
from tilewright.tensor.core import Tensor, apply

pairs("Greater", ew.gt)
pairs("Less", ew.lt)
pairs("GreaterOrEqual", ew.ge, since=12, old=False)
pairs("LessOrEqual", ew.le, since=12, old=False)
pairs("And", ew.logical_and)
pairs("Or", ew.logical_or)
pairs("Xor", ew.logical_xor)
unary("Not", ew.logical_not, "Where the input is false.", since=1, old=None)


@op("Equal", since=7, raw=True)
def equal(x: Any, y: Any, *, ctx: Call) -> Any:
    """Where two tensors (or arrays of strings) are equal."""
    if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
        return np.asarray(ctx.value(x) == ctx.value(y), bool)
    require_same(x, y)
    return apply(ew.eq, x, y)


op("Equal", since=1)(old_pair(ew.eq))


@op("Where", since=9, raw=True)
@moves(1, 2)
def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """``x`` where the condition holds, else ``y``; the three broadcast."""
    if condition.dtype is not boolean:
        raise DTypeError(f"the condition is bool, got {condition.dtype}")
    require_same(x, y)
    return apply(ew.where, condition, x, y)


@op("IsNaN", since=9)
def is_nan(x: Tensor) -> Tensor:
    """Where an element is not a number."""
    return apply(ew.isnan, x)


@op("IsInf", since=10)
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Where an element is infinite, of the wanted signs."""

    def build(node: Node) -> Node:
        infinite = ew.isinf(node)
        if detect_negative and detect_positive:
            return infinite
        if not detect_negative and not detect_positive:
            return ew.logical_and(infinite, ew.logical_not(infinite))
        zero = ew.literal(0, node)
        sign = ew.lt(node, zero) if detect_negative else ew.gt(node, zero)
        return ew.logical_and(infinite, sign)

    return apply(build, x)

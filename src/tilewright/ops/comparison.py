"""Elementwise ops that compare, choose and work on bits.

Comparisons and predicates give bools and end every gradient. Where a choice ties, its gradient is
shared evenly (``maximum``, ``minimum``), as PyTorch does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, boolean
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape
from tilewright.ops.arithmetic import NUMBERS, by_rules, elementwise, literal, mul, scale
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import broadcast_shapes

__all__ = [
    "bitwise_and",
    "bitwise_invert",
    "bitwise_or",
    "bitwise_xor",
    "clip",
    "copysign",
    "eq",
    "ge",
    "gt",
    "isfinite",
    "isinf",
    "isnan",
    "le",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "lt",
    "maximum",
    "minimum",
    "ne",
    "nextafter",
    "shift_left",
    "shift_right",
    "signbit",
    "where",
    "zero_where",
]

ANY = NUMBERS + "b"

# --- comparisons ---------------------------------------------------------------------------------

elementwise("eq", "{0} == {1}", np.equal, kinds=ANY, result=boolean)
elementwise("ne", "{0} != {1}", np.not_equal, kinds=ANY, result=boolean)
elementwise("lt", "{0} < {1}", np.less, kinds=ANY, result=boolean)
elementwise("le", "{0} <= {1}", np.less_equal, kinds=ANY, result=boolean)
elementwise("gt", "{0} > {1}", np.greater, kinds=ANY, result=boolean)
elementwise("ge", "{0} >= {1}", np.greater_equal, kinds=ANY, result=boolean)
elementwise("isnan", "isnan({0})", np.isnan, kinds=NUMBERS, result=boolean)
elementwise("isinf", "isinf({0})", np.isinf, kinds=NUMBERS, result=boolean)
elementwise("isfinite", "isfinite({0})", np.isfinite, kinds=NUMBERS, result=boolean)
elementwise("signbit", "signbit({0})", np.signbit, result=boolean)


def eq(x: Node, y: Node) -> Node:
    """``x == y``, a bool."""
    return make("eq", x, y)


def ne(x: Node, y: Node) -> Node:
    """``x != y``, a bool; true where one is NaN."""
    return make("ne", x, y)


def lt(x: Node, y: Node) -> Node:
    """``x < y``, a bool."""
    return make("lt", x, y)


def le(x: Node, y: Node) -> Node:
    """``x <= y``, a bool."""
    return make("le", x, y)


def gt(x: Node, y: Node) -> Node:
    """``x > y``, a bool."""
    return make("gt", x, y)


def ge(x: Node, y: Node) -> Node:
    """``x >= y``, a bool."""
    return make("ge", x, y)


def isnan(x: Node) -> Node:
    """Where ``x`` is not a number."""
    return make("isnan", x)


def isinf(x: Node) -> Node:
    """Where ``x`` is infinite."""
    return make("isinf", x)


def isfinite(x: Node) -> Node:
    """Where ``x`` is neither infinite nor NaN."""
    return make("isfinite", x)


def signbit(x: Node) -> Node:
    """Where the sign bit of a float is set (-0.0 too)."""
    return make("signbit", x)


# --- choosing ------------------------------------------------------------------------------------


def _where_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    c, x, y = inputs
    if c.dtype is not boolean or x.dtype is not y.dtype:
        raise ShapeError(
            f"where wants a bool and two operands of one dtype, got {c.dtype}, {x.dtype} and "
            f"{y.dtype}: cast them first"
        )
    return broadcast_shapes(c.shape, x.shape, y.shape), x.dtype


register(
    OpDef(
        "where",
        _where_infer,
        np.where,
        expression="where({0}, {1}, {2})",
        gradient=by_rules(
            (
                None,
                lambda g, z, c, x, y: where(c, g, literal(0, g)),
                lambda g, z, c, x, y: where(c, literal(0, g), g),
            )
        ),
    )
)


def _share(g: Node, x: Node, y: Node, wins: Node) -> Node:
    """``g`` where the operand wins, half of it where ``x`` and ``y`` are equal."""
    return where(eq(x, y), scale(g, 0.5), zero_where(wins, g))


elementwise(
    "maximum",
    "maximum({0}, {1})",
    np.maximum,
    lambda g, z, x, y: _share(g, x, y, lt(x, y)),
    lambda g, z, x, y: _share(g, x, y, lt(y, x)),
    kinds=ANY,
)
elementwise(
    "minimum",
    "minimum({0}, {1})",
    np.minimum,
    lambda g, z, x, y: _share(g, x, y, gt(x, y)),
    lambda g, z, x, y: _share(g, x, y, gt(y, x)),
    kinds=ANY,
)
elementwise(
    "clip",
    "minimum(maximum({0}, {1}), {2})",
    lambda x, low, high: np.minimum(np.maximum(x, low), high),
    lambda g, z, x, low, high: where(logical_and(ge(x, low), le(x, high)), g, literal(0, g)),
    lambda g, z, x, low, high: where(logical_and(lt(x, low), lt(low, high)), g, literal(0, g)),
    lambda g, z, x, low, high: where(logical_or(gt(x, high), gt(low, high)), g, literal(0, g)),
    kinds=NUMBERS,
)


def where(condition: Node, x: Node, y: Node) -> Node:
    """``x`` where ``condition`` (bool) is true, else ``y``; all three broadcast."""
    return make("where", condition, x, y)


def zero_where(condition: Node, x: Node) -> Node:
    """``x``, but 0 where ``condition`` is true."""
    return where(condition, literal(0, x), x)


def maximum(x: Node, y: Node) -> Node:
    """The larger of two; NaN wins. At ties each operand gets half of the gradient."""
    return make("maximum", x, y)


def minimum(x: Node, y: Node) -> Node:
    """The smaller of two; NaN wins. At ties each operand gets half of the gradient."""
    return make("minimum", x, y)


def clip(x: Node, low: Node, high: Node) -> Node:
    """``minimum(maximum(x, low), high)``; on the limits ``x`` gets the gradient."""
    return make("clip", x, low, high)


# --- floats by their bits ------------------------------------------------------------------------

elementwise(
    "copysign",
    "copysign({0}, {1})",
    np.copysign,
    lambda g, z, x, y: mul(g, where(eq(x, z), *_plus_minus(g))),
    None,
)
elementwise("nextafter", "nextafter({0}, {1})", np.nextafter, least_bits=32)


def _plus_minus(like: Node) -> tuple[Node, Node]:
    return literal(1, like), literal(-1, like)


def copysign(x: Node, y: Node) -> Node:
    """``abs(x)`` with the sign of ``y`` (of zeros too)."""
    return make("copysign", x, y)


def nextafter(x: Node, y: Node) -> Node:
    """The number next to ``x`` in the direction of ``y``; floats of 32 and 64 bits."""
    return make("nextafter", x, y)


# --- bools and bits ------------------------------------------------------------------------------


def _logical(symbol: str) -> Any:
    def source(node: Node) -> str:
        x, y = ("{0}", "{1}") if node.inputs[0].dtype is boolean else ("({0} != 0)", "({1} != 0)")
        return f"{x} {symbol} {y}"

    return source


def _logical_not(node: Node) -> str:
    return "~{0}" if node.inputs[0].dtype is boolean else "{0} == 0"


elementwise("logical_and", _logical("&"), np.logical_and, kinds=ANY, result=boolean)
elementwise("logical_or", _logical("|"), np.logical_or, kinds=ANY, result=boolean)
elementwise("logical_xor", _logical("^"), np.logical_xor, kinds=ANY, result=boolean)
elementwise("logical_not", _logical_not, np.logical_not, kinds=ANY, result=boolean)
elementwise("bitwise_and", "{0} & {1}", np.bitwise_and, kinds="iub")
elementwise("bitwise_or", "{0} | {1}", np.bitwise_or, kinds="iub")
elementwise("bitwise_xor", "{0} ^ {1}", np.bitwise_xor, kinds="iub")
elementwise("bitwise_invert", "~{0}", np.invert, kinds="iub")
elementwise("shift_left", "{0} << {1}", np.left_shift, kinds="iu")
elementwise("shift_right", "{0} >> {1}", np.right_shift, kinds="iu")


def logical_and(x: Node, y: Node) -> Node:
    """Where both are true (not zero)."""
    return make("logical_and", x, y)


def logical_or(x: Node, y: Node) -> Node:
    """Where one is true (not zero)."""
    return make("logical_or", x, y)


def logical_xor(x: Node, y: Node) -> Node:
    """Where exactly one is true (not zero)."""
    return make("logical_xor", x, y)


def logical_not(x: Node) -> Node:
    """Where ``x`` is false (zero)."""
    return make("logical_not", x)


def bitwise_and(x: Node, y: Node) -> Node:
    """``x & y`` of integers or bools."""
    return make("bitwise_and", x, y)


def bitwise_or(x: Node, y: Node) -> Node:
    """``x | y`` of integers or bools."""
    return make("bitwise_or", x, y)


def bitwise_xor(x: Node, y: Node) -> Node:
    """``x ^ y`` of integers or bools."""
    return make("bitwise_xor", x, y)


def bitwise_invert(x: Node) -> Node:
    """``~x`` of integers, not of bools."""
    return make("bitwise_invert", x)


def shift_left(x: Node, y: Node) -> Node:
    """``x << y``; 0 from the width up."""
    return make("shift_left", x, y)


def shift_right(x: Node, y: Node) -> Node:
    """``x >> y``, arithmetic for signed dtypes; all sign bits from the width up."""
    return make("shift_right", x, y)

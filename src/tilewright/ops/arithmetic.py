"""Elementwise ops: how one is written down; arithmetic and rounding.

An entry is a line: its name, its expression in the kernel language, its meaning in NumPy, and a
rule per input for the gradient. A rule is ``(g, y, *inputs) -> node`` where ``g`` belongs to the
result ``y``; undoing the broadcasting of the inputs is not its business. Operands have one dtype;
shapes broadcast as in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, f32
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, Size, const_node
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import broadcast_shapes, sum_to
from tilewright.sizes import Real, same

__all__ = [
    "NUMBERS",
    "Rule",
    "abs",
    "add",
    "by_rules",
    "ceil",
    "div",
    "elementwise",
    "floor",
    "floor_divide",
    "in_float64",
    "literal",
    "mul",
    "neg",
    "reciprocal",
    "remainder",
    "round",
    "rsqrt",
    "scale",
    "sign",
    "sqrt",
    "square",
    "sub",
    "trunc",
]

Rule = Callable[..., Node]
NUMBERS: Final = "fiu"
_KINDS: Final = {"f": "floats", "i": "signed integers", "u": "unsigned integers", "b": "bools"}


def literal(value: bool | int | float | Size | Real, like: Node) -> Node:
    """A number of ``like``'s dtype that broadcasts with it, written into the kernel."""
    return const_node(value, like.dtype)


def in_float64(fn: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """``fn`` computed in float64 and rounded once: the meaning of a real function."""

    def reference(x: np.ndarray, *others: np.ndarray, **attrs: Any) -> np.ndarray:
        wide = (np.asarray(v).astype(np.float64) for v in (x, *others))
        return np.asarray(fn(*wide, **attrs)).astype(x.dtype)

    return reference


def elementwise(
    name: str,
    expression: str | Callable[[Node], str],
    reference: Callable[..., Any],
    *rules: Rule | None,
    kinds: str = "f",
    result: DType | None = None,
    least_bits: int = 8,
) -> OpDef:
    """Register an elementwise op.

    Args:
        name: the op's name.
        expression: kernel source over ``{0}``, ``{1}``... and the op's attributes by name, or a
            function from the node to it.
        reference: ``(*arrays, **attrs) -> array``.
        rules: the gradient, one rule per input; None where the op is flat or not differentiable.
            No rules at all: whoever asks for the op's gradient is told that there is none.
        kinds: which dtypes it takes: ``f``, ``i``, ``u``, ``b`` (see ``DType.kind``).
        result: the result's dtype; default that of the inputs.
        least_bits: the narrowest dtype it takes.
    """

    def infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
        dtype = inputs[0].dtype
        shape = inputs[0].shape
        for x in inputs:
            if x.dtype.kind not in kinds or x.dtype is not dtype or x.dtype.bits < least_bits:
                raise _wrong_dtype(name, x.dtype, dtype, kinds, least_bits)
            if x.shape and not same(x.shape, shape):  # numbers are the usual other shape
                shape = broadcast_shapes(shape, x.shape) if shape else x.shape
        return shape, result or dtype

    return register(
        OpDef(
            name,
            infer,
            reference,
            expression=expression,
            gradient=by_rules(rules) if rules else None,
        )
    )


def _wrong_dtype(name: str, got: DType, other: DType, kinds: str, least_bits: int) -> ShapeError:
    if got.kind not in kinds:
        wanted = " or ".join(_KINDS[k] for k in kinds)
        return ShapeError(f"{name} wants {wanted}, got {got}: cast it first")
    if got is not other:
        return ShapeError(
            f"{name} wants operands of one dtype, got {other} and {got}: cast them first"
        )
    return ShapeError(f"{name} wants {least_bits} bits or more, got {got}")


def by_rules(rules: Sequence[Rule | None]) -> Callable[[Node, Node], list[Node | None]]:
    """A table entry's gradient from one rule per input.

    Of 16-bit floats the rule is computed in float32 and rounded once, as the op itself is.
    """

    def gradient(node: Node, g: Node) -> list[Node | None]:
        half = node.dtype.is_float and node.dtype.bits == 16
        wide = [_to(x, f32) if half else x for x in (g, node, *node.inputs)]
        return [
            _to(sum_to(rule(*wide), x.shape), x.dtype)
            if rule is not None and x.dtype.is_float and x.op not in ("const", "scalar")
            else None
            for rule, x in zip(rules, node.inputs, strict=True)
        ]

    return gradient


def _to(x: Node, dtype: DType) -> Node:
    """``x`` as floating-point ``dtype``; what is no float stays."""
    if x.dtype is dtype or not x.dtype.is_float:
        return x
    return make("cast", x, dtype=dtype)


def _whole(fn: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """``fn`` for floats; integers stay as they are."""
    return lambda x: fn(x) if x.dtype.kind == "f" else x


def _scaled(x: np.ndarray, factor: float) -> np.ndarray:
    """16-bit floats are multiplied as float32."""
    return (x * factor if x.dtype == np.float64 else x * np.float32(factor)).astype(x.dtype)


# --- arithmetic ----------------------------------------------------------------------------------

elementwise(
    "add",
    lambda node: "{0} | {1}" if node.dtype.kind == "b" else "{0} + {1}",  # True and True: not 2
    np.add,
    lambda g, z, x, y: g,
    lambda g, z, x, y: g,
    kinds=NUMBERS + "b",
)
elementwise(
    "sub", "{0} - {1}", np.subtract, lambda g, z, x, y: g, lambda g, z, x, y: neg(g), kinds=NUMBERS
)
elementwise(
    "mul",
    "{0} * {1}",
    np.multiply,
    lambda g, z, x, y: mul(g, y),
    lambda g, z, x, y: mul(g, x),
    kinds=NUMBERS + "b",
)
elementwise(
    "div",
    "{0} / {1}",
    np.divide,
    lambda g, z, x, y: div(g, y),
    lambda g, z, x, y: neg(mul(g, div(z, y))),
)
elementwise("neg", "-{0}", np.negative, lambda g, y, x: neg(g), kinds=NUMBERS)
elementwise("abs", "abs({0})", np.abs, lambda g, y, x: mul(g, sign(x)), kinds=NUMBERS)
elementwise("sign", "sign({0})", np.sign, None, kinds=NUMBERS)
elementwise("square", "{0} * {0}", np.square, lambda g, y, x: mul(g, scale(x, 2.0)), kinds=NUMBERS)
elementwise("sqrt", "sqrt({0})", np.sqrt, lambda g, y, x: div(scale(g, 0.5), y))
elementwise(
    "rsqrt",
    "rsqrt({0})",
    in_float64(lambda x: 1 / np.sqrt(x)),
    lambda g, y, x: mul(scale(g, -0.5), mul(y, square(y))),
)
elementwise("reciprocal", "1.0 / {0}", np.reciprocal, lambda g, y, x: neg(mul(g, square(y))))
elementwise("scale", "{0} * {factor!r}", _scaled, lambda g, y, x: scale(g, y.attrs["factor"]))


def add(x: Node, y: Node) -> Node:
    """``x + y``; integers wrap, bools: or."""
    return make("add", x, y)


def sub(x: Node, y: Node) -> Node:
    """``x - y``."""
    return make("sub", x, y)


def mul(x: Node, y: Node) -> Node:
    """``x * y``; integers wrap, bools: and."""
    return make("mul", x, y)


def div(x: Node, y: Node) -> Node:
    """``x / y`` of floats."""
    return make("div", x, y)


def neg(x: Node) -> Node:
    """``-x``."""
    return make("neg", x)


def abs(x: Node) -> Node:
    """The absolute value; its gradient at 0 is 0."""
    return make("abs", x)


def sign(x: Node) -> Node:
    """-1, 0 or 1; NaN for NaN."""
    return make("sign", x)


def square(x: Node) -> Node:
    """``x * x``."""
    return make("square", x)


def sqrt(x: Node) -> Node:
    """The square root."""
    return make("sqrt", x)


def rsqrt(x: Node) -> Node:
    """``1 / sqrt(x)``."""
    return make("rsqrt", x)


def reciprocal(x: Node) -> Node:
    """``1 / x``."""
    return make("reciprocal", x)


def scale(x: Node, factor: float) -> Node:
    """``x * factor`` with a compile-time factor."""
    return make("scale", x, factor=float(factor))


# --- rounding and whole division -----------------------------------------------------------------

elementwise("floor", "floor({0})", _whole(np.floor), None, kinds=NUMBERS)
elementwise("ceil", "ceil({0})", _whole(np.ceil), None, kinds=NUMBERS)
elementwise("round", "round({0})", _whole(np.rint), None, kinds=NUMBERS)
elementwise("trunc", "trunc({0})", _whole(np.trunc), None, kinds=NUMBERS)
elementwise("floor_divide", "floor_divide({0}, {1})", np.floor_divide, None, None, kinds=NUMBERS)
elementwise(
    "remainder",
    "remainder({0}, {1})",
    np.remainder,
    lambda g, z, x, y: g,
    lambda g, z, x, y: neg(mul(g, floor_divide(x, y))),
    kinds=NUMBERS,
)


def floor(x: Node) -> Node:
    """The largest integer not above ``x``, in ``x``'s dtype."""
    return make("floor", x)


def ceil(x: Node) -> Node:
    """The smallest integer not below ``x``, in ``x``'s dtype."""
    return make("ceil", x)


def round(x: Node) -> Node:
    """The nearest integer, ties to even, in ``x``'s dtype."""
    return make("round", x)


def trunc(x: Node) -> Node:
    """``x`` without its fraction, in ``x``'s dtype."""
    return make("trunc", x)


def floor_divide(x: Node, y: Node) -> Node:
    """``floor(x / y)`` as in Python; integers by zero give 0."""
    return make("floor_divide", x, y)


def remainder(x: Node, y: Node) -> Node:
    """``x - floor(x / y) * y``, with the sign of ``y``; integers by zero give 0."""
    return make("remainder", x, y)

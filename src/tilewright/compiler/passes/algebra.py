"""The same numbers cheaper, but for their last bits: powers, divisions, 16-bit arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from tilewright.compiler.fusion import is_elementwise
from tilewright.compiler.passes.rules import RuleTable, number_of, rewrite
from tilewright.dtypes import bf16, f16, f32
from tilewright.graph import Node
from tilewright.ops import elementwise as ew
from tilewright.ops import table
from tilewright.ops.arithmetic import literal

__all__ = ["simplify", "widen"]

_HALF = (f16, bf16)
_POWERS: Final[dict[float, Callable[[Node], Node]]] = {
    1.0: lambda x: x,
    2.0: ew.square,
    3.0: lambda x: ew.mul(ew.square(x), x),
    0.5: ew.sqrt,
    -0.5: ew.rsqrt,
    -1.0: ew.reciprocal,
}


def simplify(roots: Sequence[Node]) -> list[Node]:
    """Powers with small exponents; divisions in norms, softmax and GELU."""
    return rewrite(roots, _SIMPLER)


def widen(roots: Sequence[Node]) -> list[Node]:
    """Elementwise work on 16-bit floats in f32, rounded once at its end, and so are products."""
    return rewrite(roots, _WIDER)


def _pow(node: Node) -> Node | None:
    x, exponent = node.inputs
    power = _POWERS.get(number_of(exponent))  # type: ignore[arg-type]
    if power is None or x.shape != node.shape or not node.dtype.is_float:
        return None
    return power(x)


def _div(node: Node) -> Node | None:
    """Norms and softmax: one division per row. (Others may be about to be rounded to integers,
    where the last bit counts.)"""
    x, y = node.inputs
    if y.op not in ("sqrt", "sum") or y.value is not None or node.dtype in _HALF:
        return None
    if not node.dtype.is_float or x.shape != node.shape:
        return None
    return ew.mul(x, ew.reciprocal(y))


def _erf(node: Node) -> Node | None:
    """GELU: ``erf(x / sqrt 2)``."""
    (inner,) = node.inputs
    if inner.op != "div" or inner.value is not None or inner.dtype in _HALF:
        return None
    x, y = inner.inputs
    divisor = number_of(y)
    if not divisor or x.shape != node.shape:
        return None
    return ew.erf(ew.mul(x, literal(1 / divisor, x)))


def _mul(node: Node) -> Node | None:
    """``(x c) d`` is ``x (c d)``."""
    for inner, number in (node.inputs, node.inputs[::-1]):
        if inner.op != "mul" or inner.value is not None or inner.shape != node.shape:
            continue
        if number_of(number) is None or node.dtype is not f32:
            continue
        for x, other in (inner.inputs, inner.inputs[::-1]):
            if number_of(other) is not None and x.shape == node.shape:
                factor = number_of(other) * number_of(number)  # type: ignore[operator]
                return ew.mul(x, literal(factor, x))
    return None


_SIMPLER: RuleTable = {"pow": [_pow], "div": [_div], "erf": [_erf], "mul": [_mul]}


def _as_wide(node: Node) -> Node | None:
    narrow = [x.dtype in _HALF for x in node.inputs]
    if node.op in ("copy", "bitcast", "broadcast") or not any(narrow) or not is_elementwise(node):
        return None
    inputs = [ew.cast(x, f32) if is_narrow else x for x, is_narrow in zip(node.inputs, narrow)]
    return ew.cast(table.make(node.op, *inputs, **node.attrs), node.dtype)


def _wide_product(node: Node) -> Node | None:
    if node.dtype not in _HALF or "epilogue" in node.attrs:
        return None
    attrs = {**node.attrs, "out_dtype": f32}
    return ew.cast(Node("bmm", node.inputs, node.shape, f32, attrs), node.dtype)


def _unrounded(node: Node) -> Node | None:
    """f32 that was rounded to 16 bits on the way to f32."""
    (x,) = node.inputs
    if node.dtype is not f32 or x.dtype not in _HALF or x.value is not None:
        return None
    if x.op == "cast" and x.inputs[0].dtype is f32:
        return x.inputs[0]
    if x.op == "reshape":  # behind it, perhaps
        return Node("reshape", (ew.cast(x.inputs[0], f32),), x.shape, f32, x.attrs)
    return None


_WIDER: RuleTable = {"cast": [_unrounded], "bmm": [_wide_product], "*": [_as_wide]}

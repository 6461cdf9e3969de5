"""Nothing is done that does nothing: casts, reshapes, permutations, twice the same.

No bit changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilewright.compiler.fusion import pending
from tilewright.compiler.passes.rules import RuleTable, number_of, rewrite
from tilewright.dtypes import DType, bf16, boolean, f16, f32, f64
from tilewright.graph import Node, const_node
from tilewright.ops.creation import cast
from tilewright.ops.views import broadcast, permute, reshape

__all__ = ["share", "tidy"]

_HOLDS = {f16: (f32, f64), bf16: (f32, f64), f32: (f64,)}


def tidy(roots: Sequence[Node]) -> list[Node]:
    """``roots`` without ops that change nothing, neighbours that are one op merged."""
    return rewrite(roots, RULES)


def _reshape(node: Node) -> Node | None:
    (x,) = node.inputs
    if x.shape == node.shape:
        return x
    if x.op == "reshape" and x.value is None:
        return reshape(x.inputs[0], node.shape)
    return None


def _permute(node: Node) -> Node | None:
    (x,) = node.inputs
    axes = node.attrs["axes"]
    if axes == tuple(range(len(axes))):
        return x
    if x.op == "permute" and x.value is None:
        return permute(x.inputs[0], tuple(x.attrs["axes"][a] for a in axes))
    return None


def _broadcast(node: Node) -> Node | None:
    (x,) = node.inputs
    if x.shape == node.shape:
        return x
    if x.op == "broadcast" and x.value is None:
        return broadcast(x.inputs[0], node.shape)
    return None


def _cast(node: Node) -> Node | None:
    (x,) = node.inputs
    if x.dtype is node.dtype:
        return x
    if x.op == "cast" and x.value is None and _is_exact(x):
        return cast(x.inputs[0], node.dtype)
    if x.op == "const" and _is_exact(node):
        return const_node(x.attrs["value"], node.dtype)
    if x.op in ("reshape", "broadcast") and number_of(x) is not None:
        return Node(x.op, (cast(x.inputs[0], node.dtype),), x.shape, node.dtype, x.attrs)
    return None


def _is_exact(node: Node) -> bool:
    source, target = node.inputs[0].dtype, node.dtype
    if source.is_float:
        return target in _HOLDS.get(source, ())
    return source is not boolean and target.kind == source.kind and target.bits >= source.bits


def _same(node: Node) -> Node | None:
    """An identity of values; what differentiation makes of it no longer matters."""
    return node.inputs[0]


def _double(node: Node) -> Node | None:
    (x,) = node.inputs
    return x.inputs[0] if x.op == node.op and x.value is None else None


def _by_one(node: Node) -> Node | None:
    x, y = node.inputs
    for one, other in ((x, y), (y, x)):
        if number_of(one) == 1 and other.shape == node.shape and node.dtype.is_float:
            return other
    return None


def _alone(node: Node) -> Node | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _no_padding(node: Node) -> Node | None:
    return node.inputs[0] if node.inputs[0].shape == node.shape and not _pads(node) else None


def _pads(node: Node) -> bool:
    return any(lo or hi for lo, hi in node.attrs["widths"])


RULES: RuleTable = {
    "reshape": [_reshape],
    "permute": [_permute],
    "broadcast": [_broadcast],
    "cast": [_cast],
    "stop_gradient": [_same],
    "neg": [_double],
    "logical_not": [_double],
    "mul": [_by_one],
    "concat": [_alone],
    "pad": [_no_padding],
}


def share(roots: Sequence[Node]) -> list[Node]:
    """Common subexpressions once."""
    new: dict[Node, Node] = {}
    seen: dict[Any, Node] = {}
    for node in pending(roots):
        if node.value is not None:
            new[node] = node
            continue
        now = node.with_inputs(tuple([new[i] for i in node.inputs]))
        new[node] = seen.setdefault(_key(now), now)
    return [new[root] for root in roots]


def _key(node: Node) -> Any:
    if node.op == "scalar":
        return node
    attrs: list[tuple[str, Any]] = []
    for name, value in node.attrs.items():
        plain = isinstance(value, (float, int, str, bool, tuple, DType, type(None)))
        attrs.append((name, repr(value) if plain else id(value)))
    inputs = tuple([id(i) for i in node.inputs])
    return node.op, node.dtype, tuple(map(repr, node.shape)), inputs, tuple(sorted(attrs))

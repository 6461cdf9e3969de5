"""Reverse-mode differentiation, as a transformation of graphs.

:func:`vjp` walks from outputs to inputs and asks each op's table entry for its part of the chain
rule. What it returns is graph code like any other: it can be compiled, and differentiated again.
Forward mode (:func:`jvp`) is reverse mode twice, since a vjp is linear in its cotangents.

A function can have a gradient of its own (:func:`custom_gradient`), and :func:`checkpoint` is such
a function. Its results are :class:`RuledNode`: ``stop_gradient`` to every compiler and evaluator,
so they cost nothing; only :func:`vjp` sees the rule that they carry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tilewright.dtypes import boolean
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.graph import Node, const_node, shape_of
from tilewright.ops.arithmetic import add
from tilewright.ops.creation import zeros_like
from tilewright.ops.table import get
from tilewright.ops.views import barrier, stop_gradient

__all__ = ["GradientRule", "RuledNode", "checkpoint", "custom_gradient", "jvp", "local_vjp", "vjp"]

Grads = Sequence[Node | None]
Function = Callable[..., Any]
"""``(*nodes) -> a node or a sequence of nodes``."""


@dataclass(eq=False, frozen=True)
class GradientRule:
    """How several nodes together get their gradient.

    Attributes:
        results: the nodes as they were computed (each stands behind a :class:`RuledNode`).
        sources: the nodes that get the gradient.
        pull: ``(rule, outputs, grads) -> one node or None per source``; ``outputs`` are the results
            as :class:`RuledNode`, ``grads`` has None for a result that got no gradient.
    """

    results: tuple[Node, ...]
    sources: tuple[Node, ...]
    pull: Callable[[GradientRule, tuple[Node, ...], tuple[Node | None, ...]], Grads]

    def outputs(self) -> tuple[Node, ...]:
        """The results under this rule."""
        return tuple(RuledNode.of(self, i) for i in range(len(self.results)))


@dataclass(eq=False, slots=True)
class RuledNode(Node):
    """The value of its input, with the gradient that ``rule`` gives it as result ``part``."""

    rule: Any = None
    part: int = 0

    @staticmethod
    def of(rule: GradientRule, part: int) -> RuledNode:
        x = rule.results[part]
        return RuledNode("stop_gradient", (x,), x.shape, x.dtype, {}, x.name, rule=rule, part=part)


# --- the backward pass ---------------------------------------------------------------------------


def vjp(outputs: Sequence[Node], cotangents: Grads, wrt: Sequence[Node]) -> list[Node | None]:
    """The product of ``cotangents`` with the Jacobian of ``outputs`` by each node of ``wrt``.

    Args:
        outputs: float nodes.
        cotangents: one per output, of its shape and dtype; None is zero.
        wrt: any nodes, in the middle of the graph too.

    Returns a node of its shape and dtype for each of ``wrt``; None for those that no output depends
    on in a differentiable way (integers and bools never are).

    Raises :class:`ShapeError` when a cotangent does not match its output, and
    :class:`UnsupportedError` when a path to ``wrt`` leads through an op without gradient.
    """
    return _backward(_ordered(outputs, _flowing), outputs, cotangents, wrt)


def local_vjp(outputs: Sequence[Node], cotangents: Grads, wrt: Sequence[Node]) -> list[Node | None]:
    """:func:`vjp` up to ``wrt``: what lies behind these nodes is not looked at.

    For rules that differentiate a small graph of their own, whatever it hangs on.
    """
    return _backward(_ordered(outputs, _flowing, wrt), outputs, cotangents, wrt)


def _behind(node: Node) -> tuple[Node, ...]:
    """The nodes to which ``node`` hands its gradient on."""
    return node.rule.sources if isinstance(node, RuledNode) else node.inputs


def _ordered(
    roots: Iterable[Node],
    behind: Callable[[Node], tuple[Node, ...]],
    stops: Iterable[Node] = (),
) -> list[Node]:
    """``roots`` and everything ``behind`` them, first things first, up to and with ``stops``."""
    ends = set(stops)
    order: list[Node] = []
    done: set[Node] = set()
    for root in roots:
        stack = [(root, () if root in ends else behind(root), 0)]
        while stack:
            node, sources, i = stack.pop()
            if node in done:
                continue
            while i < len(sources) and sources[i] in done:
                i += 1
            if i < len(sources):
                source = sources[i]
                stack.append((node, sources, i + 1))
                stack.append((source, () if source in ends else behind(source), 0))
                continue
            done.add(node)
            order.append(node)
    return order


def _flowing(node: Node) -> tuple[Node, ...]:
    """What a gradient may flow to: whether the rest is known changes no order of additions."""
    if isinstance(node, RuledNode):
        return _behind(node)
    stops = node.op == "stop_gradient" or not (
        node.dtype.is_float or node.op == "part" or _has_parts(node)
    )
    return () if stops else _behind(node)


def _backward(
    order: Sequence[Node], outputs: Sequence[Node], cotangents: Grads, wrt: Sequence[Node]
) -> list[Node | None]:
    reaches = _reaching(order, set(wrt))
    grads: dict[Node, Node] = {}
    parts: dict[Any, dict[int, Node]] = {}  # of ops and rules with several results
    left: dict[Any, int] = {}  # results of a rule whose gradient is still to come
    for node in order:
        if isinstance(node, RuledNode) and node in reaches:
            left[node.rule] = left.get(node.rule, 0) + 1
    for output, cotangent in zip(outputs, cotangents, strict=True):
        if cotangent is not None:
            _check_cotangent(output, cotangent)
            if output in reaches:
                _accumulate(grads, output, cotangent)
    for node in reversed(order):
        if node not in reaches:
            continue
        g = grads.get(node)
        found: Grads
        if isinstance(node, RuledNode):
            rule = node.rule
            left[rule] -= 1
            if g is not None:
                earlier = parts.setdefault(rule, {})
                before = earlier.get(node.part)
                earlier[node.part] = g if before is None else add(before, g)
            if left[rule] or rule not in parts:
                continue
            given = tuple(parts[rule].get(i) for i in range(len(rule.results)))
            found = rule.pull(rule, rule.outputs(), given)
        elif node.op == "part":
            if g is not None:
                parts.setdefault(node.inputs[0], {})[node.attrs["index"]] = g
            continue
        elif node in parts:
            found = _of_parts(node, parts[node])
        elif g is not None and any(x in reaches for x in node.inputs):
            found = _rule_of(node)(node, g)
        else:
            continue
        for i, (x, gx) in enumerate(zip(_behind(node), found, strict=True)):
            if gx is not None and x in reaches:
                if gx.shape != x.shape or gx.dtype is not x.dtype:
                    _refuse_gradient(node, i, x, gx)
                _accumulate(grads, x, gx)
    return [grads.get(x) for x in wrt]


def _reaching(order: Sequence[Node], wrt: set[Node]) -> set[Node]:
    """The nodes of ``order`` through which a gradient flows to ``wrt``."""
    found: set[Node] = set()
    for node in order:
        flows = node in wrt or any(x in found for x in _behind(node))
        if flows and (node.dtype.is_float or _has_parts(node)):
            found.add(node)
    return found


def _has_parts(node: Node) -> bool:
    return not node.is_leaf and node.op != "part" and get(node.op).infer_parts is not None


def _rule_of(node: Node) -> Callable[[Node, Any], Grads]:
    rule = get(node.op).gradient
    if rule is None:
        label = f" {node.name!r}" if node.name else ""
        raise UnsupportedError(
            f"the op {node.op!r}{label} has no gradient, and the result depends through it on "
            "what is differentiated: put stop_gradient around it if it is meant to be a constant, "
            "or give it a rule with custom_gradient"
        )
    return rule


def _of_parts(node: Node, found: Mapping[int, Node]) -> Grads:
    infer = get(node.op).infer_parts
    assert infer is not None
    count = len(infer(node.inputs, node.attrs))
    return _rule_of(node)(node, tuple(found.get(i) for i in range(count)))


def _check_cotangent(output: Node, cotangent: Node) -> None:
    if cotangent.shape != output.shape or cotangent.dtype is not output.dtype:
        raise ShapeError(
            f"vjp: the cotangent of {output.dtype}{shape_of(output.shape)} has the same shape and "
            f"dtype, got {cotangent.dtype}{shape_of(cotangent.shape)}"
        )


def _refuse_gradient(node: Node, i: int, x: Node, g: Node) -> None:
    raise ShapeError(
        f"the gradient rule of {node.op!r} gave {g.dtype}{shape_of(g.shape)} for input {i}, "
        f"which is {x.dtype}{shape_of(x.shape)}"
    )


def _accumulate(grads: dict[Node, Node], node: Node, grad: Node) -> None:
    grads[node] = add(grads[node], grad) if node in grads else grad


def jvp(outputs: Sequence[Node], wrt: Sequence[Node], tangents: Grads) -> list[Node]:
    """The Jacobian of ``outputs`` by ``wrt`` times ``tangents`` (forward mode).

    ``tangents`` are of the shapes and dtypes of ``wrt``; None is zero. The result has a node of its
    shape and dtype per output. A vjp is linear in its cotangents, so its own vjp is the jvp
    (Townsend 2017, "A new trick for calculating Jacobian vector products").
    """
    dummies = [stop_gradient(zeros_like(y)) for y in outputs]
    pulled = vjp(outputs, dummies, wrt)
    pairs = zip(pulled, tangents, strict=True)
    kept = [(g, t) for g, t in pairs if g is not None and t is not None]
    pushed = vjp([g for g, _ in kept], [t for _, t in kept], dummies)
    return [zeros_like(y) if t is None else t for y, t in zip(outputs, pushed)]


# --- gradients of one's own ----------------------------------------------------------------------


def custom_gradient(fn: Function, rule: Callable[..., Grads]) -> Function:
    """``fn`` with a gradient rule of its own.

    Args:
        fn: ``(*nodes) -> node or nodes``. What it closes over is constant to differentiation.
        rule: ``(inputs, outputs, grads) -> one node or None per input``; each argument is a
            tuple, ``grads`` with None for outputs that got no gradient. For second derivatives the
            rule itself is differentiated.
    """

    def pull(
        self: GradientRule, outputs: tuple[Node, ...], grads: tuple[Node | None, ...]
    ) -> Grads:
        return rule(self.sources, outputs, grads)

    def call(*inputs: Node) -> Any:
        return _ruled(fn(*inputs), inputs, pull)

    return call


def _ruled(result: Any, sources: Sequence[Node], pull: Any) -> Any:
    """``result`` (a node or several) under a rule."""
    if isinstance(result, Node):
        return RuledNode.of(GradientRule((result,), tuple(sources), pull), 0)
    return GradientRule(tuple(result), tuple(sources), pull).outputs()


# --- rematerialisation ---------------------------------------------------------------------------


def checkpoint(fn: Function) -> Function:
    """``fn``, computed a second time for its gradient instead of keeping what is in between.

    The forward pass keeps only the arguments and what ``fn`` closes over (Chen et al. 2016); both
    get their gradients. The second computation starts from barriers behind the gradient that has
    arrived, so it happens when it is needed and is never taken for the first.
    """

    def call(*inputs: Node) -> Any:
        start = const_node(0, boolean).index
        entries = [barrier(x) for x in inputs]
        result = fn(*entries)
        results = [result] if isinstance(result, Node) else list(result)
        return _ruled(result, _sources(results, entries, start), _recomputed)

    return call


def _everything(node: Node) -> tuple[Node, ...]:
    """What ``node`` is computed from, and what its gradient is."""
    if isinstance(node, RuledNode):
        return (*node.inputs, *node.rule.results, *node.rule.sources)
    return node.inputs


def _sources(results: Sequence[Node], entries: Sequence[Node], start: int) -> list[Node]:
    """``entries``, and the nodes older than ``start`` that ``results`` were made from since."""
    older: list[Node] = []

    def behind(node: Node) -> tuple[Node, ...]:
        if node.index >= start:
            return _everything(node)
        if node.op not in ("const", "scalar", "iota"):
            older.append(node)
        return ()

    _ordered(results, behind, entries)
    return [*entries, *dict.fromkeys(older)]


def _recomputed(
    rule: GradientRule, outputs: tuple[Node, ...], grads: tuple[Node | None, ...]
) -> Grads:
    """The gradient by a copy of everything between the rule's sources and its results."""
    arrived = [g for g in grads if g is not None]
    new = {x: barrier(x, *arrived) for x in rule.sources}
    starts = list(new.values())
    rules: dict[GradientRule, GradientRule] = {}
    for node in _ordered(rule.results, _everything, rule.sources):
        if node not in new:
            new[node] = _copied(node, new, rules)
    return local_vjp([new[y] for y in rule.results], grads, starts)


def _copied(node: Node, new: Mapping[Node, Node], rules: dict[GradientRule, GradientRule]) -> Node:
    if node.is_leaf or not node.inputs:
        return node
    if isinstance(node, RuledNode):
        old = node.rule
        if old not in rules:
            results, sources = (tuple(new[x] for x in xs) for xs in (old.results, old.sources))
            rules[old] = GradientRule(results, sources, old.pull)
        return RuledNode.of(rules[old], node.part)
    inputs = tuple(new[x] for x in node.inputs)
    if node.op == "checked":  # once is enough
        return inputs[0]
    return Node(node.op, inputs, node.shape, node.dtype, node.attrs, node.name)

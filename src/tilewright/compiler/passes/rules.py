"""Rewriting a graph by rules: each looks at one node and answers with what is to take its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tilewright.compiler.fusion import pending
from tilewright.graph import Node

__all__ = ["Rule", "RuleTable", "number_of", "rewrite"]

Rule = Callable[[Node], Node | None]
RuleTable = Mapping[str, Sequence[Rule]]
"""Rules by the op that they look at; those of ``*`` are for ops that have none."""

_SWEEPS = 16


def rewrite(roots: Sequence[Node], rules: RuleTable) -> list[Node]:
    """``roots`` with rules applied, inputs first, until none has anything to say.

    Nodes that have a value are left alone. A root that is one already computed stays one.
    """
    roots = list(roots)
    for _ in range(_SWEEPS):
        new: dict[Node, Node] = {}
        changed = False
        for node in pending(roots):
            if node.value is not None or node.is_leaf:
                new[node] = node
                continue
            now = node.with_inputs(tuple([new[i] for i in node.inputs]))
            for rule in rules.get(now.op, rules.get("*", ())):
                found = rule(now)
                if found is not None:
                    now, changed = found, True
                    break
            new[node] = now
        if not changed:
            break
        roots = [new[root] for root in roots]
    return roots


def number_of(node: Node) -> float | int | bool | None:
    """The number that a node is everywhere, if it is a constant of the program."""
    while node.value is None and node.op in ("broadcast", "reshape", "stop_gradient"):
        node = node.inputs[0]
    return node.attrs["value"] if node.op == "const" else None

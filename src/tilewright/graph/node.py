"""Nodes: the one IR between models and programs.

A :class:`Node` is an op, its inputs and its attributes, with a shape (ints or symbolic sizes) and
a dtype. Nodes are immutable; a pass makes new ones with :func:`rewrite`. Leaves are

* ``input``: fed at every step (attrs: ``name``),
* ``weight``: constant data; attrs ``weight`` holds an object the ops room understands,
* ``state``: a named buffer that the program reads and writes in place (a KV cache),
* ``data``: a realised array, its buffer in ``value``,
* ``const``: a number known when the program is compiled (0-d; attrs: ``value``),
* ``scalar``: a number handed to the program when it runs (0-d; attrs: ``value``).

An op that writes into a state says so in its table entry and returns the new version of the state,
so that order is data flow.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tilewright.dtypes import DType
from tilewright.sizes import Real, Shape, Size, shape_of

__all__ = [
    "LEAVES",
    "Graph",
    "Node",
    "const_node",
    "consumers",
    "data_node",
    "input_node",
    "rewrite",
    "scalar_node",
    "state_node",
    "topological",
    "weight_node",
]

LEAVES = frozenset({"input", "weight", "state", "data", "const", "scalar"})


_NEXT = itertools.count()


@dataclass(eq=False, slots=True, weakref_slot=True)
class Node:
    """One operation in a graph. Identity is what distinguishes nodes.

    Nothing of a node changes after it is made, but two notes on it: ``value`` is the buffer that
    holds its result once that has been computed (whoever compiles a graph reads it instead of
    computing the node again), ``owner`` the tensor that has this leaf. ``index`` counts nodes in
    the order in which they were made: inputs come before users. (Not a frozen dataclass, because
    those take three times as long to make.)
    """

    op: str
    inputs: tuple[Node, ...]
    shape: Shape
    dtype: DType
    attrs: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    value: Any = field(default=None, init=False, repr=False)
    owner: Any = field(default=None, init=False, repr=False)  # weak: the tensor that has the leaf
    index: int = field(default_factory=_NEXT.__next__, init=False, repr=False)

    def set_value(self, buffer: Any) -> None:
        """Remember the node's result (the one thing about a node that changes)."""
        self.value = buffer

    def __repr__(self) -> str:
        label = f" {self.name!r}" if self.name else ""
        return f"<{self.op}{label} {self.dtype}{shape_of(self.shape)}>"

    def with_inputs(self, inputs: tuple[Node, ...]) -> Node:
        """The same op on other inputs; this very node when they are the ones it has."""
        if all(a is b for a, b in zip(inputs, self.inputs)):
            return self
        return Node(self.op, inputs, self.shape, self.dtype, self.attrs, self.name)

    @property
    def is_leaf(self) -> bool:
        return self.op in LEAVES


@dataclass(frozen=True)
class Graph:
    """Named outputs and everything they depend on."""

    outputs: Mapping[str, Node]

    def nodes(self) -> list[Node]:
        """Every node, inputs before users; the order depends only on the graph's structure."""
        return topological(self.outputs.values())

    def __str__(self) -> str:
        names: dict[Node, str] = {}
        lines = []
        for node in self.nodes():
            names[node] = f"%{len(names)}"
            attrs = ", ".join(f"{k}={_short(v)}" for k, v in node.attrs.items())
            args = ", ".join(names[i] for i in node.inputs)
            label = f"  # {node.name}" if node.name else ""
            lines.append(
                f"{names[node]} = {node.op}({args})"
                + (f" {{{attrs}}}" if attrs else "")
                + f" : {node.dtype}{shape_of(node.shape)}{label}"
            )
        lines += [f"return {name} = {names[node]}" for name, node in self.outputs.items()]
        return "\n".join(lines)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def input_node(name: str, shape: Shape, dtype: DType) -> Node:
    """A leaf that is fed at every step."""
    return Node("input", (), shape, dtype, {"name": name}, name)


def state_node(name: str, shape: Shape, dtype: DType) -> Node:
    """A leaf whose buffer outlives the step."""
    return Node("state", (), shape, dtype, {"name": name}, name)


def weight_node(name: str, shape: Shape, dtype: DType, weight: Any) -> Node:
    """A leaf with constant data."""
    return Node("weight", (), shape, dtype, {"weight": weight}, name)


def data_node(buffer: Any, name: str = "") -> Node:
    """A leaf for an array in memory (a ``runtime.buffers.Buffer``)."""
    node = Node("data", (), tuple(buffer.shape), buffer.dtype, {}, name)
    node.set_value(buffer)
    return node


def const_node(value: bool | int | float | Size | Real, dtype: DType) -> Node:
    """A 0-d number that the compiled program has in it (or is handed, where it is a size that is
    not known yet)."""
    if isinstance(value, (Size, Real)):
        return scalar_node(value, dtype)
    return Node("const", (), (), dtype, {"value": value})


def scalar_node(value: bool | int | float | Size | Real, dtype: DType) -> Node:
    """A 0-d number that a compiled program is handed each time it runs."""
    return Node("scalar", (), (), dtype, {"value": value})


def topological(roots: Iterable[Node]) -> list[Node]:
    """Every node reachable from ``roots``, inputs first (iterative: graphs may be deep)."""
    order: list[Node] = []
    done: set[Node] = set()
    for root in roots:
        stack: list[tuple[Node, int]] = [(root, 0)]
        while stack:
            node, i = stack.pop()
            if node in done:
                continue
            if i < len(node.inputs):
                stack.append((node, i + 1))
                if node.inputs[i] not in done:
                    stack.append((node.inputs[i], 0))
                continue
            done.add(node)
            order.append(node)
    return order


def consumers(graph: Graph) -> dict[Node, list[Node]]:
    """Who uses each node (graph outputs are not counted)."""
    users: dict[Node, list[Node]] = {}
    for node in graph.nodes():
        for source in dict.fromkeys(node.inputs):
            users.setdefault(source, []).append(node)
    return users


def rewrite(graph: Graph, rule: Callable[[Node], Node]) -> Graph:
    """Rebuild the graph bottom up; ``rule`` sees each node with its inputs already replaced."""
    new: dict[Node, Node] = {}
    for node in graph.nodes():
        new[node] = rule(node.with_inputs(tuple(new[i] for i in node.inputs)))
    return Graph({name: new[node] for name, node in graph.outputs.items()})

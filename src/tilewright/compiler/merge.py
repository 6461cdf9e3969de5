"""Matmuls that read the same rows become one.

Q, K and V (and gate and up) multiply the same activations, so their weights, when they are of one
type, are stacked along N: one launch instead of three, and each activation is read once. The
original results are views of the stacked one. Every output element keeps its own accumulator, so
no bit changes.
"""

from __future__ import annotations

from tilewright.graph import Graph, Node
from tilewright.graph.node import weight_node
from tilewright.ops.movement import columns
from tilewright.ops.table import make
from tilewright.ops.weights import StackedWeight

__all__ = ["merge_matmuls"]


def merge_matmuls(graph: Graph) -> Graph:
    """Stack the weights of matmuls that share their input and weight type."""
    groups: dict[tuple[Node, str], list[Node]] = {}
    for node in graph.nodes():
        if node.op == "matmul" and node.inputs[1].op == "weight":
            key = (node.inputs[0], node.inputs[1].attrs["weight"].type)
            groups.setdefault(key, []).append(node)
    where: dict[Node, list[Node]] = {}
    for members in groups.values():
        if len(members) > 1:
            for member in members:
                where[member] = members

    new: dict[Node, Node] = {}
    stacked: dict[int, Node] = {}
    for node in graph.nodes():
        inputs = tuple(new[i] for i in node.inputs)
        if node not in where:
            new[node] = node.with_inputs(inputs)
            continue
        members = where[node]
        if id(members) not in stacked:
            weights = [m.inputs[1] for m in members]
            weight = StackedWeight(tuple(w.attrs["weight"] for w in weights))
            leaf = weight_node(weight.name, weight.shape, weights[0].dtype, weight)
            stacked[id(members)] = make("matmul", inputs[0], leaf, name=weight.name)
        rows = [m.inputs[1].attrs["weight"].shape[0] for m in members]
        start = sum(rows[: members.index(node)])
        new[node] = columns(stacked[id(members)], start, start + rows[members.index(node)])
    return Graph({name: new[node] for name, node in graph.outputs.items()})

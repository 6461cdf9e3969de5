"""Kernel choice: matmuls on block-quantised weights read int8 activations.

The quantisation of the activations becomes a node of its own, shared by every matmul that reads the
same rows, so that the row fuser can put it into whatever produced them.
"""

from __future__ import annotations

from tilewright.graph import Graph, Node, rewrite
from tilewright.ops.table import make

__all__ = ["quantize_activations"]


def quantize_activations(graph: Graph) -> Graph:
    """Insert ``quantize_rows`` before matmuls whose weight format wants it."""
    from tilewright.ops.linear import wants_quantized

    made: dict[Node, Node] = {}

    def rule(node: Node) -> Node:
        if node.op != "matmul" or not wants_quantized(node.inputs[1].attrs["weight"].type):
            return node
        x = node.inputs[0]
        if x not in made:
            made[x] = make("quantize_rows", x)
        inputs = (made[x], *node.inputs[1:])
        return Node("matmul", inputs, node.shape, node.dtype, node.attrs, node.name)

    return rewrite(graph, rule)

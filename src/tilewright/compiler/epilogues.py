"""Elementwise work after a matmul moves into the matmul.

A chain of elementwise ops that only this matmul feeds (a bias, an activation, a residual) becomes
the matmul's *epilogue*: kernel source that runs on the output tile while it is in registers. Other
operands of the chain become extra inputs. Each op still rounds to float32, as it would alone.
"""

from __future__ import annotations

from tilewright.dtypes import f32
from tilewright.graph import Graph, Node
from tilewright.ops import table
from tilewright.ops.source import Expression

__all__ = ["fuse_epilogues"]


def fuse_epilogues(graph: Graph) -> Graph:
    """Fold single-consumer elementwise chains into their matmul."""
    order = graph.nodes()
    uses: dict[Node, int] = {}
    for node in order:
        for source in set(node.inputs):
            uses[source] = uses.get(source, 0) + 1
    for node in graph.outputs.values():
        uses[node] = uses.get(node, 0) + 2  # an output must be written out as it is

    new: dict[Node, Node] = {}
    for node in order:
        inputs = tuple(new[i] for i in node.inputs)
        host = _host(node, inputs, uses)
        if host is None:
            new[node] = node.with_inputs(inputs)
        else:
            new[node] = _absorb(host, node, inputs)
    return Graph({name: new[node] for name, node in graph.outputs.items()})


def _host(node: Node, inputs: tuple[Node, ...], uses: dict[Node, int]) -> Node | None:
    """The matmul (already rewritten) that can take ``node`` in, if any."""
    if node.is_leaf or node.dtype is not f32 or len(node.shape) != 2:
        return None
    if table.get(node.op).expression is None:
        return None
    if any(x.dtype is not f32 or x.shape not in (node.shape, node.shape[1:]) for x in node.inputs):
        return None
    for old, candidate in reversed(list(zip(node.inputs, inputs))):
        if candidate.op == "matmul" and uses[old] == 1 and candidate.shape == node.shape:
            return candidate
    return None


def _absorb(host: Node, node: Node, inputs: tuple[Node, ...]) -> Node:
    """``host`` with ``node`` appended to its epilogue."""
    x, weight, *extras = host.inputs
    epilogue: Expression = host.attrs.get("epilogue") or Expression.identity("acc")
    operands = []
    for source in inputs:
        if source is host:
            operands.append(epilogue.result)
            continue
        if source not in extras:
            extras.append(source)
        index = extras.index(source)
        rows = "i : i + acc.shape[0], " if len(source.shape) == 2 else ""
        operands.append(f"extras[{index}][{rows}j : j + acc.shape[1]]")
    template = table.get(node.op).source(node)
    epilogue = epilogue.then(template.format(*operands, **node.attrs))
    attrs = {**host.attrs, "epilogue": epilogue}
    return Node("matmul", (x, weight, *extras), host.shape, host.dtype, attrs, host.name)

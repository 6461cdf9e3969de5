"""Values of nodes: what a lazy tensor asks for."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.dtypes import bf16, from_float32
from tilewright.graph import Node, upper_bound
from tilewright.ops.table import evaluate_nodes
from tilewright.runtime.buffers import Buffer, empty

__all__ = ["realize"]


def realize(nodes: Sequence[Node]) -> list[Buffer]:
    """Compute ``nodes`` and remember the results as their values."""
    order = _pending(nodes)
    values = evaluate_nodes(order, {})
    for node in nodes:
        if node.value is None:
            buffer = empty(node.dtype, upper_bound(node.shape))
            result = values[node]
            buffer.numpy()[...] = from_float32(result) if node.dtype is bf16 else result
            node.set_value(buffer)
    return [node.value for node in nodes]


def _pending(nodes: Sequence[Node]) -> list[Node]:
    """What ``nodes`` depend on, inputs first, not looking behind nodes that have a value."""
    order: list[Node] = []
    done: set[Node] = set()
    for root in nodes:
        stack = [(root, 0)]
        while stack:
            node, i = stack.pop()
            if node in done:
                continue
            if node.value is None and i < len(node.inputs):
                stack.append((node, i + 1))
                if node.inputs[i] not in done:
                    stack.append((node.inputs[i], 0))
                continue
            done.add(node)
            order.append(node)
    return order

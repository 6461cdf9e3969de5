"""Constants of a graph and what can be computed from them before it runs.

A constant is a leaf whose memory never changes: weights, scales and zero points of a file. Other
``data`` leaves are inputs, parameters or state, which may. :func:`folded` computes a node that
depends on constants alone, once, by the references: packed weights, offsets and multipliers are
ordinary graph code and cost nothing when the program runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.dtypes import DType, bf16, from_float32
from tilewright.graph import Node, topological
from tilewright.ops import table
from tilewright.runtime.buffers import Buffer, empty, from_array

__all__ = ["constant", "folded", "is_constant", "values"]


def constant(value: Any, dtype: DType | None = None, name: str = "") -> Node:
    """A leaf that holds ``value`` (an array, or a buffer) and never changes.

    ``dtype`` names what NumPy cannot (bf16 as uint16 bit patterns).
    """
    buffer = value
    if not isinstance(value, Buffer):
        array = np.asarray(value)
        if dtype is not None and array.dtype != dtype.storage:
            array = array.astype(dtype.storage)
        source = from_array(array, dtype)
        buffer = empty(source.dtype, source.shape)
        buffer.numpy()[...] = array
    node = Node("data", (), tuple(buffer.shape), buffer.dtype, {"constant": True}, name)
    node.set_value(buffer)
    return node


def is_constant(node: Node) -> bool:
    """Whether the node is a leaf that never changes."""
    return node.op == "const" or bool(node.attrs.get("constant", False))


def folded(node: Node) -> Node:
    """``node`` as a constant, if it depends on constants alone; else itself."""
    if is_constant(node):
        return node
    stack, seen = [node], {node}
    while stack:
        one = stack.pop()
        if one.value is not None or one.is_leaf:
            if not is_constant(one):
                return node
            continue
        for source in one.inputs:
            if source not in seen:
                seen.add(source)
                stack.append(source)
    result = table.evaluate_nodes(topological([node]), {})[node]
    made = empty(node.dtype, np.shape(result))
    made.numpy()[...] = from_float32(result) if node.dtype is bf16 else result
    return constant(made, name=node.name)


def values(node: Node) -> np.ndarray | None:
    """The values of a node that depends on constants alone, else None (bf16 as bit patterns)."""
    known = folded(node)
    if known.op == "const":
        return np.asarray(known.attrs["value"], known.dtype.storage)
    if not is_constant(known):
        return None
    array: np.ndarray = known.value.numpy()
    return array

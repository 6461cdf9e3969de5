"""Weights leave the file and take the form their consumers want.

``matrix``: packed planes for a matmul; ``table``: the file's rows as they are, for look-ups;
``vector``: plain float32. One tensor may be wanted in two forms (tied embeddings). Reading streams:
at no time is more than a chunk of a tensor in memory twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tilewright.graph import Graph, Node, upper_bound
from tilewright.ops import table
from tilewright.ops.packed import block_layout, pack, raw_rows
from tilewright.ops.weights import FileWeight
from tilewright.runtime.buffers import empty, from_array

__all__ = ["Weights", "pack_weights", "weight_bytes"]

Weights = dict[tuple[Node, str], Any]


def _wanted(graph: Graph) -> list[tuple[Node, str]]:
    """(weight leaf, form) pairs, in the graph's order."""
    wanted: dict[tuple[Node, str], None] = {}
    for node in graph.nodes():
        for index, source in enumerate(node.inputs):
            if source.op == "weight":
                wanted[source, table.weight_form(node, index)] = None
    return list(wanted)


def weight_bytes(graph: Graph) -> int:
    """Bytes that the prepared weights will take, before anything is read."""
    total = 0
    for node, form in _wanted(graph):
        weight = node.attrs["weight"]
        if isinstance(weight, np.ndarray) or form == "vector":
            total += math.prod(upper_bound(node.shape)) * 4
        else:
            block, block_bytes = block_layout(weight.type)
            total += weight.shape[0] * weight.shape[1] // block * block_bytes
    return total


def pack_weights(graph: Graph, progress: Callable[[str, float], None] | None = None) -> Weights:
    """Read and prepare every weight, in the form each consumer wants."""
    wanted = _wanted(graph)
    ready: Weights = {}
    for i, (node, form) in enumerate(wanted):
        if progress is not None:
            progress("loading weights", i / len(wanted))
        ready[node, form] = _prepare(node.attrs["weight"], form)
    if progress is not None:
        progress("loading weights", 1.0)
    return ready


def _prepare(weight: Any, form: str) -> Any:
    if isinstance(weight, np.ndarray):
        return _aligned(weight)
    if form == "vector":
        return _aligned(weight.numpy())
    if form == "table":
        assert isinstance(weight, FileWeight)
        return raw_rows([(weight.shape[0], weight.read)], weight.type, weight.shape[1])
    sources = [(part.shape[0], part.read) for part in weight.parts]
    return pack(sources, weight.type, weight.shape[1])


def _aligned(values: np.ndarray) -> Any:
    buffer = empty(from_array(values).dtype, values.shape)
    buffer.numpy()[...] = values
    return buffer

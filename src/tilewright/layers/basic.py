"""Embedding, linear and norms: thin names over ops."""

from __future__ import annotations

from tilewright.graph import Node
from tilewright.ops.elementwise import add
from tilewright.ops.norm import layer_norm, rms_norm
from tilewright.ops.table import make

__all__ = ["embedding", "layer_norm", "linear", "rms_norm"]


def embedding(ids: Node, table: Node) -> Node:
    """Rows of ``table`` (V, D) at ``ids`` (T,): (T, D) float32, whatever the table's type."""
    return make("embedding", ids, table)


def linear(x: Node, weight: Node, bias: Node | None = None) -> Node:
    """``x @ weight.T + bias``: x (T, k), weight (n, k), bias (n,) -> (T, n)."""
    y = make("matmul", x, weight, name=weight.name)
    return y if bias is None else add(y, bias)

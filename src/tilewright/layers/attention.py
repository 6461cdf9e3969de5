"""Causal self-attention over a paged cache, with grouped heads and rotary positions."""

from __future__ import annotations

import math

from tilewright.graph import Node
from tilewright.layers.step import Step
from tilewright.ops.table import make

__all__ = ["attention"]


def attention(
    q: Node, k: Node, v: Node, layer: int, heads: tuple[int, int, int], step: Step
) -> Node:
    """Mix values by ``softmax(q k^T / sqrt(head_dim))`` over each token's own past.

    q (T, n_heads * head_dim), k and v (T, kv_heads * head_dim); ``heads`` is (n_heads, kv_heads,
    head_dim). The step's keys and values are written to the cache first. Returns (T, n_heads *
    head_dim).
    """
    _, kv_heads, head_dim = heads
    keys, values = step.cache(layer, kv_heads, head_dim)
    if step.rope is not None:
        cos, sin = step.rope_tables
        pairing = step.rope.pairing
        q = make("rope", q, cos, sin, step.positions, head_dim=head_dim, pairing=pairing)
        k = make("rope", k, cos, sin, step.positions, head_dim=head_dim, pairing=pairing)
    where = (step.positions, step.sequences, step.page_table)
    keys = make("write_keys", keys, k, *where)
    values = make("write_values", values, v, *where)
    return make(
        "attention",
        q,
        keys,
        values,
        step.positions,
        step.page_table,
        step.tiles,
        scale=1.0 / math.sqrt(head_dim),
    )

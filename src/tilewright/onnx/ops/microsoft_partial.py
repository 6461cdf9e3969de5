"""Attention of com.microsoft over part of what there is: packed batches, sparse blocks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from tilewright.dtypes import i64
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.onnx.ops.attention import Kind, attend, both, heads_first, rotated, visible_band
from tilewright.onnx.ops.gathers import rows_at
from tilewright.onnx.ops.microsoft_attention import MICROSOFT, or_default, written
from tilewright.onnx.registry import op
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import arange
from tilewright.tensor.elementwise import maximum
from tilewright.tensor.manipulation import concat
from tilewright.tensor.searching import searchsorted

# --- packed batches ------------------------------------------------------------------------------


def _same_sequence(total: int, edges: Tensor) -> Tensor:
    """Which of ``total`` tokens belong to one sequence; edges (B + 1,) are where they begin."""
    at = searchsorted(edges.astype(i64), arange(total, dtype=i64), side="right")
    return at.reshape((1, 1, -1, 1)) == at.reshape((1, 1, 1, -1))


@op("PackedMultiHeadAttention", domain=MICROSOFT)
def packed_multi_head_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    bias: Tensor | None,
    offsets: Tensor,
    edges: Tensor,
    attention_bias: Tensor | None = None,
    *,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    scale: float | None = None,
) -> Tensor:
    """Attention inside sequences that lie one after the other: query (tokens, H * D)."""
    if attention_bias is not None:
        raise UnsupportedError("attention_bias of packed sequences is not supported")
    if query.ndim == 4:  # (tokens, H, 3, D)
        query, key, value = (query[:, :, i].reshape((query.shape[0], -1)) for i in range(3))
    if key is None or value is None:
        raise ShapeError("key and value may only be left out of a packed query")
    parts, start = [], 0
    for part in (query, key, value):
        if bias is not None:
            part = part + bias[start : start + part.shape[1]]
            start += part.shape[1]
        parts.append(heads_first(part.reshape((1, *part.shape)), num_heads))
    q, k, v = parts
    kind = Kind(or_default(scale), visible=_same_sequence(q.shape[2], edges))
    return attend(q, k, v, kind, True)[0][0]


@op("PackedAttention", domain=MICROSOFT)
def packed_attention(
    x: Tensor,
    weights: Tensor,
    bias: Tensor,
    offsets: Tensor,
    edges: Tensor,
    attention_bias: Tensor | None = None,
    *,
    num_heads: int,
    qkv_hidden_sizes: tuple[int, ...] | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention with its projection inside sequences that lie one after the other."""
    y = x @ weights + bias
    sizes = qkv_hidden_sizes or (y.shape[1] // 3,) * 3
    edge = (0, sizes[0], sizes[0] + sizes[1], sum(sizes))
    q, k, v = (y[:, a:b] for a, b in itertools.pairwise(edge))
    return packed_multi_head_attention(
        q, k, v, None, offsets, edges, attention_bias, num_heads=num_heads, scale=scale
    )


@op("SparseAttention", domain=MICROSOFT, host=(5, 6))
def sparse_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor,
    past_value: Tensor,
    rows: np.ndarray,
    columns: np.ndarray,
    total: Tensor,
    lengths: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    do_rotary: int = 0,
    kv_num_heads: int,
    num_heads: int,
    rotary_interleaved: int = 0,
    scale: float | None = None,
    sparse_block_size: int,
) -> Any:
    """Causal attention that sees some blocks of keys only; caches have room for all tokens.

    rows (layouts, blocks + 1) and columns (layouts, n) list which blocks a block of queries sees;
    heads take the layouts in turn.
    """
    if key is None or value is None:
        width = query.shape[2] // (num_heads + 2 * kv_num_heads)
        edge = num_heads * width
        key = query[..., edge : edge + kv_num_heads * width]
        value = query[..., edge + kv_num_heads * width :]
        query = query[..., :edge]
    t, room = query.shape[1], past_key.shape[2]
    q, k = heads_first(query, num_heads), heads_first(key, kv_num_heads)
    v = heads_first(value, kv_num_heads)
    start = maximum(lengths.reshape((-1,)).astype(i64) - t, 0)
    at = start.reshape((-1, 1)) + arange(t, dtype=i64).reshape((1, -1))
    if do_rotary:
        if cos is None or sin is None:
            raise ShapeError("do_rotary wants cos_cache and sin_cache")
        c, s = (rows_at(table, at).reshape((at.shape[0], 1, t, -1)) for table in (cos, sin))
        q, k = (rotated(x, c, s, bool(rotary_interleaved), 2 * c.shape[-1]) for x in (q, k))
    k, v = written(past_key, k, start, room), written(past_value, v, start, room)
    layouts, blocks = rows.shape[0], rows.shape[1] - 1
    seen = np.zeros((layouts, blocks, blocks), bool)
    for layout in range(layouts):
        for block in range(blocks):
            part = columns[layout, rows[layout, block] : rows[layout, block + 1]]
            seen[layout, block, part] = True
    keys = np.repeat(seen, sparse_block_size, axis=2)[:, :, :room]
    if keys.shape[2] < room:
        raise ShapeError(f"{blocks} blocks of {sparse_block_size} do not cover {room} keys")
    table = Tensor(np.ascontiguousarray(keys.transpose(1, 0, 2)))  # (blocks, layouts, keys)
    mask = rows_at(table, at // sparse_block_size).permute(0, 2, 1, 3)  # (B, layouts, T, keys)
    if layouts > 1:
        mask = concat([mask] * (num_heads // layouts), axis=1)
    visible = both(mask, visible_band(t, room, start, True))
    return attend(q, k, v, Kind(or_default(scale), visible=visible), True)[0], k, v

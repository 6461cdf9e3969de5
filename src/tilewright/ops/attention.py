"""Causal attention over the paged cache, with grouped queries and ragged batches.

Flash attention (Dao et al. 2022): one pass over the keys of a sequence in ascending blocks of one
page, with a running maximum, sum and weighted values per query. A query row's arithmetic depends on
its own position only: a block that is masked for it leaves its state as it was, bit for bit, so a
token's result is the same in whatever tile, chunk or batch it is computed.

Work comes as tiles (n_tiles, 3) i32 = (sequence, first row, tokens): consecutive tokens of one
sequence, at most :data:`TILE_TOKENS`. One program does one tile and one KV head.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright import lang as tl
from tilewright.dtypes import f32
from tilewright.errors import ShapeError
from tilewright.lang import (
    Array,
    Const,
    arange,
    dot,
    exp,
    expand_dims,
    program_id,
    scratch,
    unroll,
    where,
    zeros,
)
from tilewright.ops.calls import KernelCall
from tilewright.ops.kvcache import PAGE, read_cache
from tilewright.ops.rope import by_heads
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = ["PAGE", "TILE_TOKENS", "attention_calls", "attention_reference", "attention_tiles"]

TILE_TOKENS = 16
_ROWS = 8
_ACCUMULATORS = 16  # registers of 16 lanes that a block of scores or values may take


def attention_tiles(lengths: Sequence[int], tile: int = TILE_TOKENS) -> np.ndarray:
    """Tiles (n, 3) i32 for a batch whose sequences contribute ``lengths`` consecutive tokens."""
    rows: list[tuple[int, int, int]] = []
    first = 0
    for sequence, n in enumerate(lengths):
        rows += [(sequence, first + t, min(tile, n - t)) for t in range(0, n, tile)]
        first += n
    return np.array(rows, np.int32).reshape(-1, 3)


def attention_reference(
    q: np.ndarray,
    positions: np.ndarray,
    sequences: np.ndarray,
    page_table: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    scale: float,
) -> np.ndarray:
    """softmax(q k^T * scale) v in float64, rounded once; q (T, H * head_dim) -> same shape."""
    kv_heads, head_dim = keys.shape[1], keys.shape[2]
    heads = q.shape[1] // head_dim
    group = heads // kv_heads
    out = np.zeros((q.shape[0], heads, head_dim))
    for t, (pos, seq) in enumerate(zip(positions, sequences)):
        k, v = read_cache(keys, values, page_table[seq], int(pos) + 1)
        rows = q[t].reshape(kv_heads, group, head_dim).astype(np.float64)
        scores = np.einsum("hgd,nhd->hgn", rows, k.astype(np.float64)) * scale
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        mixed = np.einsum("hgn,nhd->hgd", weights, v.astype(np.float64))
        out[t] = mixed.reshape(heads, head_dim)
    return out.reshape(q.shape).astype(np.float32)


def _attend_page(
    qs, scores, mixed, tops, totals, limits, keys, values, page, head, first_key, R, HD, KW, DW
):
    """One block of 64 keys for R rows: scratch qs (R, HD) holds the scaled queries, mixed (R, HD)
    the weighted values so far, tops and totals (R,) the running maxima and sums, limits (R,) each
    row's position; scores (R, 64) is working space."""
    for k in unroll(range(0, 64, KW)):
        window = keys[page, head, 0:HD, k : k + KW]
        scores[0:R, k : k + KW] = dot(qs[0:R, 0:HD], window, zeros((R, KW), f32))
    columns = arange(0, 64) + first_key
    before = tops[0:R]
    for r in range(R):
        row = where(columns <= limits[r], scores[r, 0:64], -math.inf)
        scores[r, 0:64] = row
        tops[r] = tl.maximum(tops[r], tl.max(row))
    decay = exp(before - tops[0:R])
    totals[0:R] = totals[0:R] * decay
    for r in range(R):
        weights = exp(scores[r, 0:64] - tops[r])
        scores[r, 0:64] = weights
        totals[r] = totals[r] + tl.sum(weights)
    for d in unroll(range(0, HD, DW)):
        acc = mixed[0:R, d : d + DW] * expand_dims(decay, 1)
        acc = dot(scores[0:R, 0:64], values[page, head, 0:64, d : d + DW], acc)
        mixed[0:R, d : d + DW] = acc


@kernel
def paged_attention(
    q: Array,
    positions: Array,
    page_table: Array,
    tiles: Array,
    keys: Array,
    values: Array,
    out: Array,
    scale: f32,
    G: Const,
    TOKENS: Const,
    HEADS: Const,
    HD: Const,
    KW: Const,
    DW: Const,
):
    """out (T, H, HD) for one tile and one KV head, TOKENS x HEADS query rows at a time.

    Rows past the tile's last token repeat it: they compute and store the same bits again.
    """
    head = program_id(0)
    tile = program_id(1)
    sequence = tiles[tile, 0]
    first = tiles[tile, 1]
    last = first + tiles[tile, 2] - 1
    R = TOKENS * HEADS
    qs = scratch((R, HD), f32)
    scores = scratch((R, 64), f32)
    mixed = scratch((R, HD), f32)
    tops = scratch((R,), f32)
    totals = scratch((R,), f32)
    limits = scratch((R,), tl.i64)
    for token in range(first, last + 1, TOKENS):
        until = positions[tl.minimum(token + TOKENS - 1, last)]
        for g in range(0, G, HEADS):
            for r in range(R):
                row = tl.minimum(token + r // HEADS, last)
                qs[r, 0:HD] = q[row, head * G + g + r % HEADS, 0:HD] * scale
                mixed[r, 0:HD] = zeros((HD,), f32)
                tops[r] = -math.inf
                totals[r] = 0.0
                limits[r] = positions[row].to(tl.i64)
            for block in range(until // 64 + 1):
                # clamped, so that no access below needs a check of its own
                page = tl.maximum(tl.minimum(page_table[sequence, block], keys.shape[0] - 1), 0)
                _attend_page(
                    qs,
                    scores,
                    mixed,
                    tops,
                    totals,
                    limits,
                    keys,
                    values,
                    page,
                    head,
                    block * 64,
                    R,
                    HD,
                    KW,
                    DW,
                )
            for r in range(R):
                row = tl.minimum(token + r // HEADS, last)
                # + 0.0: a masked block may turn -0.0 into 0.0, so zeros are made positive
                out[row, head * G + g + r % HEADS, 0:HD] = mixed[r, 0:HD] / totals[r] + 0.0


def attention_calls(
    q: Buffer,
    positions: Buffer,
    page_table: Buffer,
    tiles: Buffer,
    keys: Buffer,
    values: Buffer,
    out: Buffer,
    *,
    scale: float | None = None,
) -> list[KernelCall]:
    """Attention of every query row over its sequence's cache up to its own position.

    Args:
        q, out: f32 (T, H * head_dim), not overlapping.
        positions: i32 (T,); the cache already holds the keys up to each.
        page_table: i32 (sequences, max_pages).
        tiles: i32 (n_tiles, 3), see :func:`attention_tiles`.
        keys, values: one layer's cache.
        scale: default ``1 / sqrt(head_dim)``.
    """
    kv_heads, head_dim = int(keys.shape[1]), int(keys.shape[2])
    heads = int(q.shape[1]) // head_dim
    if q.shape[1] != heads * head_dim or heads % kv_heads or tuple(q.shape) != tuple(out.shape):
        raise ShapeError(
            f"attention: q {tuple(q.shape)}, out {tuple(out.shape)} with {kv_heads} KV heads of "
            f"{head_dim}: wants equal shapes and whole groups of heads"
        )
    group = heads // kv_heads
    tokens = int(q.shape[0])
    n_tiles = int(tiles.shape[0])
    together = _ROWS if group % _ROWS == 0 else group if group < _ROWS else math.gcd(group, _ROWS)
    many = tokens > n_tiles  # some tile has several tokens
    n_rows = together * (max(1, _ROWS // together) if many else 1)
    vectors = max(1, _ACCUMULATORS // n_rows)
    consts: dict[str, Any] = {
        "G": group,
        "HEADS": together,
        "TOKENS": n_rows // together,
        "HD": head_dim,
        "KW": min(64, 16 * vectors),
        "DW": _width(head_dim, vectors),
    }
    args = (
        by_heads(q, head_dim),
        positions,
        page_table,
        tiles,
        keys.fix(),
        values.fix(),
        by_heads(out, head_dim),
        head_dim**-0.5 if scale is None else scale,
    )
    return [KernelCall(paged_attention, (kv_heads, n_tiles), args, consts)]


def _width(head_dim: int, vectors: int) -> int:
    """Into how wide pieces to cut head_dim: even ones of at most ``vectors`` registers."""
    if head_dim <= 16 * vectors:
        return head_dim
    return next(
        (n for n in range(16 * vectors, 0, -16) if head_dim % n == 0), math.gcd(head_dim, 16)
    )

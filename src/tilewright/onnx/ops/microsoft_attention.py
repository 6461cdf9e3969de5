"""Attention of com.microsoft."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tilewright.dtypes import f32, i32, i64
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.onnx.ops.attention import (
    Kind,
    attend,
    both,
    counted,
    heads_first,
    rotated,
    visible_band,
)
from tilewright.onnx.ops.gathers import rows_at
from tilewright.onnx.registry import Call, op
from tilewright.onnx.symbolic import Sizes
from tilewright.ops import indexing
from tilewright.tensor.core import Tensor, apply
from tilewright.tensor.creation import zeros
from tilewright.tensor.elementwise import clip, logical_and, maximum, where
from tilewright.tensor.manipulation import broadcast_to, concat, pad, stack

MICROSOFT: Final = "com.microsoft"


def _padding(mask: Tensor, queries: int, keys: int, low: float) -> Tensor:
    """What a padding mask adds to the scores: ``low`` where it is zero.

    (B,): lengths; (2B,): ends, then starts; (B, keys), (B, queries, keys), (B, 1, n, n).
    """
    if mask.ndim == 1:
        raise ShapeError("a mask of lengths wants the batch")
    if mask.ndim == 2:
        mask = mask.reshape((mask.shape[0], 1, 1, mask.shape[1]))
    elif mask.ndim == 3:
        mask = mask.reshape((mask.shape[0], 1, *mask.shape[1:]))
    else:
        first = keys - queries
        mask = mask[:, :, first : first + queries, :keys]
    if mask.shape[-1] != keys:
        raise ShapeError(f"a mask for {keys} keys, got {mask.shape}")
    return where(mask > 0, zeros((), dtype=f32), zeros((), dtype=f32) + low)


def padding_bias(
    mask: Tensor | None, batch: int, queries: int, keys: int, low: float
) -> Tensor | None:
    """:func:`_padding`, or that of lengths."""
    if mask is None or mask.ndim != 1:
        return None if mask is None else _padding(mask, queries, keys, low)
    at = counted(keys, mask.dtype).reshape((1, -1))
    if mask.shape[0] == batch:
        seen = at < mask.reshape((-1, 1))
    elif mask.shape[0] == 2 * batch:
        ends, starts = mask[:batch].reshape((-1, 1)), mask[batch:].reshape((-1, 1))
        seen = logical_and(at < ends, at >= starts)
    else:
        raise UnsupportedError(f"a mask of {mask.shape[0]} numbers for a batch of {batch}")
    return _padding(seen.astype(i32), queries, keys, low)


def _summed(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b.astype(a.dtype, copy=False)


def or_default(scale: float | None) -> float | None:
    """A scale; zero stands for the default."""
    return scale or None


@op("Attention", domain=MICROSOFT)
def attention(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_length: Tensor | None = None,
    *,
    do_rotary: int = 0,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    past_present_share_buffer: int = 0,
    qkv_hidden_sizes: tuple[int, ...] | None = None,
    rotary_embedding_dim: int = 0,
    scale: float | None = None,
    unidirectional: int = 0,
    ctx: Call,
) -> Any:
    """Self-attention with its projection: x (B, T, in), weights (in, q + k + v)."""
    if do_rotary or past_present_share_buffer:
        raise UnsupportedError("do_rotary and past_present_share_buffer are for other machines")
    y = x @ weights if bias is None else x @ weights + bias
    kind = mask_filter_value, scale, unidirectional
    return self_attention(y, mask, past, attention_bias, num_heads, qkv_hidden_sizes, *kind, ctx)


def self_attention(
    y: Tensor,
    mask: Tensor | None,
    past: Tensor | None,
    attention_bias: Tensor | None,
    num_heads: int,
    qkv_hidden_sizes: tuple[int, ...] | None,
    mask_filter_value: float,
    scale: float | None,
    unidirectional: int,
    ctx: Call,
) -> Any:
    """Attention of what a projection made: y (B, T, q + k + v)."""
    sizes = qkv_hidden_sizes or (y.shape[2] // 3,) * 3
    if len(sizes) != 3 or sum(sizes) != y.shape[2] or sizes[0] != sizes[1]:
        raise ShapeError(f"hidden sizes {sizes} do not cut {y.shape[2]} columns")
    edges = (0, sizes[0], 2 * sizes[0], y.shape[2])
    q, k, v = (heads_first(y[..., a:b], num_heads) for a, b in itertools.pairwise(edges))
    t, offset = q.shape[2], 0
    if past is not None:
        offset = past.shape[3]
        k, v = concat([past[0], k], axis=2), concat([past[1], v], axis=2)
    keys = k.shape[2]
    added = _summed(padding_bias(mask, q.shape[0], t, keys, mask_filter_value), attention_bias)
    plain = bool(unidirectional) and offset == 0
    band = None if plain else visible_band(t, keys, offset, bool(unidirectional))
    kind = Kind(or_default(scale), causal=plain, visible=band, bias=added)
    result = attend(q, k, v, kind, True)[0]
    return (result, stack([k, v], axis=0)) if ctx.n_outputs > 1 else result


def _projected(
    query: Tensor, key: Tensor | None, value: Tensor | None, bias: Tensor | None, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v (B, H, T, D) of whatever layout they come in; a bias is added before."""
    if query.ndim == 5:  # (B, T, H, 3, D)
        parts = [query[:, :, :, i] for i in range(3)]
    elif key is not None and key.ndim == 5:
        parts = [query, key[:, :, :, 0], key[:, :, :, 1]]
    elif key is None or value is None:
        raise ShapeError("key and value may only be left out of a packed query (B, T, H, 3, D)")
    else:
        parts = [query, key, value]
    start, found = 0, []
    for i, part in enumerate(parts):
        if i and part is (key, value)[i - 1] and part.ndim == 4:
            found.append(part)  # keys or values of an encoder, heads first already
            continue
        if part.ndim == 4:
            part = part.reshape((*part.shape[:2], -1))
        if bias is not None:
            part = part + bias[start : start + part.shape[2]]
            start += part.shape[2]
        found.append(heads_first(part, heads))
    q, k, v = found
    return q, k, v


@op("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    past_length: Tensor | None = None,
    indirection: Tensor | None = None,
    *,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    scale: float | None = None,
    unidirectional: int = 0,
    ctx: Call,
) -> Any:
    """Attention after the projections: (B, T, H * D), packed, or keys with heads first."""
    if indirection is not None or past_length is not None:
        raise UnsupportedError("caches shared between beams are not supported")
    q, k, v = _projected(query, key, value, bias, num_heads)
    t, offset = q.shape[2], 0
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        k, v = concat([past_key, k], axis=2), concat([past_value, v], axis=2)
    keys = k.shape[2]
    added = _summed(padding_bias(mask, q.shape[0], t, keys, mask_filter_value), attention_bias)
    plain = bool(unidirectional) and offset == 0
    band = None if plain else visible_band(t, keys, offset, bool(unidirectional))
    wanted = "weights" if ctx.n_outputs > 3 else ""
    kind = Kind(or_default(scale), causal=plain, visible=band, bias=added, wanted=wanted)
    y, weights = attend(q, k, v, kind, True)
    return (y, k, v, weights)[: ctx.n_outputs]


# --- caches in place -----------------------------------------------------------------------------


def written(cache: Tensor, new: Tensor, start: Tensor, length: int) -> Tensor:
    """A cache (B, H, n, D) as (B, H, length, D), ``new`` (B, H, T, D) at ``start`` (B,)."""
    n, t = cache.shape[2], new.shape[2]
    if n < length:
        cache = pad(cache, [(0, 0), (0, 0), (0, length - n), (0, 0)])
    at = counted(length, start.dtype).reshape((1, 1, -1, 1)) - start.reshape((-1, 1, 1, 1))
    if t == 1:
        return where(at == 0, new, cache)
    inside = logical_and(at >= 0, at < t)
    rows = broadcast_to(clip(at, 0, t - 1), (new.shape[0], new.shape[1], length, 1))
    rows = broadcast_to(rows, (*rows.shape[:3], new.shape[3]))
    return where(inside, apply(indexing.take_along_axis, new, rows, axis=2), cache)


@dataclass(frozen=True)
class _Cached:
    """Keys and values of all that was seen, and where the queries stand.

    Attributes:
        k, v: (B, Hkv, length, D).
        offset: the first query's position, one number or (B,).
    """

    k: Tensor
    v: Tensor
    offset: int | Tensor


def _room(ctx: Call, past: Tensor | None, new: int, total: Any) -> Any:
    """The length of a cache that has room for ``total`` tokens.

    It keeps its length where they fit in (the caller's memory has room), else it grows. This may
    cut the program, so nothing that is needed later may be computed before.
    """
    if past is None or past.shape[2] == 0:
        return new
    n = past.shape[2]
    if isinstance(total, Sizes):
        (wanted,) = total.elements.reshape(-1)
        return n if wanted <= n else wanted
    whole = total if isinstance(total, Tensor) else ctx.trace.tensor(total)
    return max(n, int(ctx.value(maximum(whole, n)).item()))


def _grown(
    k: Tensor,
    v: Tensor,
    past_key: Tensor | None,
    past_value: Tensor | None,
    before: Tensor,
    length: int,
) -> _Cached:
    """Caches with the new keys and values; a batch of one that grows is a concatenation."""
    if past_key is None or past_value is None or past_key.shape[2] == 0:
        return _Cached(k, v, 0)
    n = past_key.shape[2]
    if k.shape[0] == 1 and length == n + k.shape[2]:
        return _Cached(concat([past_key, k], axis=2), concat([past_value, v], axis=2), n)
    return _Cached(
        written(past_key, k, before, length), written(past_value, v, before, length), before
    )


@op("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    last: Tensor,
    total: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    positions: Tensor | None = None,
    attention_bias: Tensor | None = None,
    sink: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    query_lengths: Tensor | None = None,
    *,
    causal: int = 1,
    do_rotary: int = 0,
    k_quant_type: str = "NONE",
    kv_cache_bit_width: int = 0,
    kv_num_heads: int,
    local_window_size: int = -1,
    num_heads: int,
    qk_norm_epsilon: float = 1e-6,
    qk_output: int = 0,
    rotary_interleaved: int = 0,
    scale: float | None = None,
    sliding_window_cache: int = 0,
    smooth_softmax: int = -1,
    softcap: float = 0.0,
    v_quant_type: str = "NONE",
    ctx: Call,
) -> Any:
    """Causal attention of grouped heads with a cache, rotary embeddings, windows and caps.

    query (B, T, H * D) alone may hold keys and values too. ``last`` (B,) is the number of all
    tokens but one. The cache (B, Hkv, n, D) keeps its length if all tokens fit, else it grows.
    """
    if {k_quant_type, v_quant_type} != {"NONE"} or sliding_window_cache:
        raise UnsupportedError("quantised caches and caches of a window are not supported")
    room = _room(ctx, past_key, query.shape[1], total)
    if key is None or value is None:
        if query.shape[2] % (num_heads + 2 * kv_num_heads):
            raise ShapeError(f"{num_heads} + 2 * {kv_num_heads} heads do not cut {query.shape}")
        width = query.shape[2] // (num_heads + 2 * kv_num_heads)
        edge = num_heads * width
        key = query[..., edge : edge + kv_num_heads * width]
        value = query[..., edge + kv_num_heads * width :]
        query = query[..., :edge]
    b, t = query.shape[:2]
    q, k, v = heads_first(query, num_heads), heads_first(key, kv_num_heads), heads_first(
        value, kv_num_heads
    )  # fmt: skip
    if q_norm is not None and k_norm is not None:
        from tilewright.onnx.ops.normalization import layer_norm

        q = layer_norm(q, q_norm, None, -1, qk_norm_epsilon, False)[0]
        k = layer_norm(k, k_norm, None, -1, qk_norm_epsilon, False)[0]
    valid = last.reshape((-1,)).astype(i64) + 1
    new = query_lengths.reshape((-1,)).astype(i64) if query_lengths is not None else t
    before = maximum(valid - new, 0)
    fresh = past_key is None or past_key.shape[2] == 0
    if do_rotary:
        if cos is None or sin is None:
            raise ShapeError("do_rotary wants cos_cache and sin_cache")
        if positions is None or positions.shape != (b, t):
            steps = counted(t, i64).reshape((1, -1))
            positions = steps if fresh else before.reshape((-1, 1)) + steps
        angles = [rows_at(table, positions) for table in (cos, sin)]
        c, s = (a.reshape((a.shape[0], 1, t, -1)) for a in angles)
        width = 2 * c.shape[-1]
        q, k = (rotated(x, c, s, bool(rotary_interleaved), width) for x in (q, k))
    cached = _grown(k, v, past_key, past_value, before, room)
    length = cached.k.shape[2]
    left = local_window_size - 1 if local_window_size > 0 else -1
    plain = bool(causal) and fresh and left < 0
    visible = None if plain else visible_band(t, length, cached.offset, bool(causal), left)
    if not causal and not (fresh and b == 1):
        seen = counted(length, i64).reshape((1, 1, 1, -1)) < valid.reshape((-1, 1, 1, 1))
        visible = both(visible, seen)
    if attention_bias is not None and attention_bias.shape[-1] != length:
        margin = [(0, 0)] * 3 + [(0, max(length - attention_bias.shape[-1], 0))]
        attention_bias = pad(attention_bias, margin)[..., :length]
    if smooth_softmax == 1 and sink is None:
        sink = zeros((num_heads,), dtype=f32)
    kind = Kind(
        scale=or_default(scale),
        causal=plain,
        visible=visible,
        bias=attention_bias,
        softcap=softcap,
        sink=sink,
        wanted=("", "biased", "weights")[qk_output] if ctx.n_outputs > 3 else "",
    )
    y, scores = attend(q, cached.k, cached.v, kind, True)
    return (y, cached.k, cached.v, scores)[: ctx.n_outputs]


@op("DecoderMaskedMultiHeadAttention", domain=MICROSOFT, host=(8,))
def decoder_masked_multi_head_attention(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    past_length: Tensor | None = None,
    beams: np.ndarray | None = None,
    indirection: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    output_qk: int = 0,
    past_present_share_buffer: int = 0,
    scale: float | None = None,
    ctx: Call,
) -> Any:
    """One step of decoding: a query per example, keys and values in caches that may have room."""
    if indirection is not None and (beams is None or int(beams.item()) > 1):
        raise UnsupportedError("caches shared between beams are not supported")
    q, k, v = _projected(query, key, value, bias, num_heads)
    visible = None
    if past_key is not None and past_value is not None:
        if past_present_share_buffer:
            if past_length is None:
                raise ShapeError("a shared buffer wants past_sequence_length")
            start = broadcast_to(past_length.reshape((1,)).astype(i64), (q.shape[0],))
            length = past_key.shape[2]
            k, v = written(past_key, k, start, length), written(past_value, v, start, length)
            visible = visible_band(q.shape[2], length, start, True)
        else:
            k, v = concat([past_key, k], axis=2), concat([past_value, v], axis=2)
    added = None
    if mask is not None:
        if mask.shape[-1] < k.shape[2]:
            mask = pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, k.shape[2] - mask.shape[-1])])
        added = padding_bias(mask, q.shape[0], q.shape[2], k.shape[2], mask_filter_value)
    if attention_bias is not None and attention_bias.shape[-1] < k.shape[2]:
        margin = [(0, 0)] * 3 + [(0, k.shape[2] - attention_bias.shape[-1])]
        attention_bias = pad(attention_bias, margin)
    kind = Kind(
        or_default(scale),
        visible=visible,
        bias=_summed(added, attention_bias),
        wanted="weights" if ctx.n_outputs > 3 else "",
    )
    y, weights = attend(q, k, v, kind, True)
    return (y, k, v, weights)[: ctx.n_outputs]


# --- positions -----------------------------------------------------------------------------------


@op("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(
    x: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """x (B, T, H * D) or (B, H, T, D) turned; positions (B, T), or the first one's alone."""
    b, t = x.shape[0], x.shape[1] if x.ndim == 3 else x.shape[2]
    if positions.size == 1:
        positions = positions.reshape((1, 1)) + counted(t, positions.dtype).reshape((1, -1))
    angles = [rows_at(table, positions.reshape((-1, t))) for table in (cos, sin)]
    if x.ndim == 4:
        c, s = (a.reshape((a.shape[0], 1, t, -1)) for a in angles)
        return rotated(x, c, s, bool(interleaved), 2 * c.shape[-1])
    width = 2 * cos.shape[-1]
    heads = num_heads or x.shape[2] // (rotary_embedding_dim or width)
    if rotary_embedding_dim and not num_heads:
        raise ShapeError("rotary_embedding_dim wants num_heads")
    c, s = (a.reshape((a.shape[0], t, 1, -1)) for a in angles)
    y = rotated(x.reshape((b, t, heads, -1)), c, s, bool(interleaved), width)
    return y.reshape(x.shape)


def _bucket(distance: np.ndarray, buckets: int, most: int, bidirectional: bool) -> np.ndarray:
    """T5's buckets of relative positions (Raffel et al. 2020)."""
    found = np.zeros(distance.shape, np.int64)
    back = -distance
    if bidirectional:
        buckets //= 2
        found += (back < 0) * buckets
        back = np.abs(back)
    else:
        back = np.maximum(back, 0)
    exact = buckets // 2
    far = np.log(np.maximum(back, 1).astype(np.float32) / np.float32(exact))
    far = far / np.float32(np.log(np.float32(most) / np.float32(exact))) * (buckets - exact)
    large = np.minimum(exact + far.astype(np.int64), buckets - 1)
    return np.asarray(found + np.where(back < exact, back, large))


@op("RelativePositionBias", domain=MICROSOFT, host=(1, 2))
def relative_position_bias(
    table: Tensor,
    queries: np.ndarray,
    keys: np.ndarray,
    *,
    is_bidirectional: int = 0,
    max_distance: int,
) -> Tensor:
    """T5's bias of positions: table (buckets, H) -> (1, H, queries, keys)."""
    t, n = int(queries.item()), int(keys.item())
    distance = np.arange(n)[None, :] - np.arange(t)[:, None]
    at = _bucket(distance, table.shape[0], max_distance, bool(is_bidirectional))
    return rows_at(table, Tensor(at[None])).permute(0, 3, 1, 2)


@op("GatedRelativePositionBias", domain=MICROSOFT)
def gated_relative_position_bias(
    query: Tensor,
    query_bias: Tensor,
    rel_pos: Tensor,
    weight: Tensor,
    bias: Tensor,
    eco_a: Tensor,
    token_offset: Tensor | None = None,
    *,
    num_heads: int,
) -> Tensor:
    """WavLM's bias of positions (Chen et al. 2022): gates of the query, per head and position."""
    if token_offset is not None:
        raise UnsupportedError("packed sequences are not supported")
    q = heads_first(query + query_bias, num_heads)
    gates = q @ weight + bias
    b, h, t, _ = gates.shape
    pair = gates.reshape((b, h, t, 2, -1)).sum(axis=-1).sigmoid()
    first, second = pair[..., :1], pair[..., 1:]
    return (first * (second * eco_a - 1.0) + 2.0) * rel_pos

"""Attention and rotary embeddings; :func:`attend` is what every kind of attention here is.

Where only the result is wanted it is flash attention, without the matrix of scores. Caps on the
scores, sinks, the scores themselves as an output, heads of another width for values, take the
matrix, in f32 at least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, bf16, f16, f32, f64, i64
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.graph import scalar_node
from tilewright.nn import functional as F
from tilewright.onnx.ops.gathers import rows_at
from tilewright.onnx.registry import Call, op
from tilewright.ops import elementwise as ew
from tilewright.ops import flash
from tilewright.ops import linear_attention as recurrences
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import full
from tilewright.tensor.elementwise import exp, logical_and, maximum, tanh, where
from tilewright.tensor.manipulation import broadcast_to, concat, pad, stack

__all__ = ["Kind", "attend", "both", "heads_first", "rotated", "visible_band"]


_FEW: Final = 4  # queries, up to which scores are cheaper than blocks of flash attention
_SCORES: Final = 1 << 24  # unless it has more elements


@dataclass(frozen=True)
class Kind:
    """How scores become weights.

    Attributes:
        scale: of the scores; default ``1 / sqrt(head width)``.
        causal: query i sees keys up to i.
        visible: bools that broadcast to (B, H, queries, keys): which keys are seen.
        bias: floats added to the scores, broadcast likewise.
        softcap: c of ``c tanh(score / c)``, before masks; 0 for none.
        sink: (H,) scores of a key that has no value.
        wanted: also return the scores: ``"raw"`` (scaled), ``"capped"``, ``"biased"``, or
            ``"weights"``.
    """

    scale: float | None = None
    causal: bool = False
    visible: Tensor | None = None
    bias: Tensor | None = None
    softcap: float = 0.0
    sink: Tensor | None = None
    wanted: str = ""


def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Where both are true; None is true."""
    if a is None or b is None:
        return b if a is None else a
    return logical_and(a, b)


def heads_first(x: Tensor, heads: int) -> Tensor:
    """(B, T, H * D) -> (B, H, T, D)."""
    if x.ndim != 3 or heads < 1 or x.shape[2] % heads:
        raise ShapeError(f"{heads} heads do not cut {x.shape} (batch, length, heads * width)")
    return x.reshape((*x.shape[:2], heads, x.shape[2] // heads)).permute(0, 2, 1, 3)


def heads_joined(x: Tensor) -> Tensor:
    """(B, H, T, D) -> (B, T, H * D)."""
    b, h, t, d = x.shape
    return x.permute(0, 2, 1, 3).reshape((b, t, h * d))


def counted(n: Any, dtype: DType = i64) -> Tensor:
    """0 to n - 1, also where n is a symbol."""
    return Tensor(ew.iota((n,), 0, dtype))


def visible_band(
    queries: int, keys: int, offset: Any, causal: bool, left: int = -1, right: int = -1
) -> Tensor | None:
    """Which keys queries see that stand at ``offset + i``: (1 or B, 1, queries, keys) or None.

    With ``causal`` none behind the query; ``left`` and ``right``, unless -1, bound the distance.
    ``offset`` may be a tensor, (B,) integers.
    """
    if causal:
        right = 0 if right < 0 else min(right, 0)
    if left < 0 and right < 0:
        return None
    if not isinstance(offset, Tensor):
        if left < 0 and queries == 1 and offset + 1 + right >= keys:
            return None  # one query at the end sees all
        if all(isinstance(n, int) for n in (queries, keys, offset)):
            at = np.arange(queries)[:, None] + offset
            j = np.arange(keys)[None, :]
            seen = np.ones((queries, keys), bool)
            if right >= 0:
                seen &= j <= at + right
            if left >= 0:
                seen &= j >= at - left
            return None if seen.all() else Tensor(seen[None, None])
        offset = Tensor(scalar_node(offset, i64))
    kind = offset.dtype
    row = offset.reshape((-1, 1, 1, 1)) + counted(queries, kind).reshape((1, 1, -1, 1))
    column = counted(keys, kind).reshape((1, 1, 1, -1))
    found = None
    if right >= 0:
        found = column <= row + right
    if left >= 0:
        found = both(found, column >= row - left)
    return found


def attend(
    q: Tensor, k: Tensor, v: Tensor, kind: Kind, joined: bool = False
) -> tuple[Tensor, Tensor | None]:
    """softmax(scale q k^T + bias) v, and the scores if they are wanted.

    q (B, H, T, D), k (B, Hkv, L, D), v (B, Hkv, L, Dv) -> (B, H, T, Dv), or with ``joined``
    (B, T, H * Dv). A query that sees no key gives zeros.
    """
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4 or k.shape[1] < 1 or q.shape[1] % k.shape[1]:
        raise ShapeError(
            f"attention wants q (B, H, T, D), k and v (B, Hkv, L, D), got {q.shape}, {k.shape} and "
            f"{v.shape}"
        )
    scale = q.shape[3] ** -0.5 if kind.scale is None else kind.scale
    simple = not (kind.softcap or kind.wanted) and kind.sink is None
    few = q.shape[2] <= _FEW and q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] <= _SCORES
    simple = simple and not few
    if simple and q.shape[3] == v.shape[3] <= flash.MAX_HEAD_DIM and 0 not in (*q.shape, *k.shape):
        mask = _mask(kind.visible, kind.bias, f64 if q.dtype is f64 else f32)
        layout = "bthd" if joined else "bhtd"
        y = F.attention(q, k, v, mask, causal=kind.causal, scale=scale, layout=layout)
        return (y.reshape((*y.shape[:2], -1)) if joined else y), None
    y, scores = _by_scores(q, k, v, replace(kind, scale=scale))
    return (heads_joined(y) if joined else y), scores


def _mask(visible: Tensor | None, bias: Tensor | None, dtype: DType) -> Tensor | None:
    """Bools, or floats with -inf for what is not seen."""
    if bias is None:
        return _four(visible)
    bias = bias.astype(dtype, copy=False)
    if visible is not None:
        bias = where(visible, bias, full((), -np.inf, dtype=dtype))
    return _four(bias)


def _four(x: Tensor | None) -> Tensor | None:
    return x if x is None or x.ndim == 4 else x.reshape((1,) * (4 - x.ndim) + x.shape)


def _by_scores(q: Tensor, k: Tensor, v: Tensor, kind: Kind) -> tuple[Tensor, Tensor | None]:
    dtype = q.dtype
    wide = f64 if dtype is f64 else f32
    q, k, v = (x.astype(wide, copy=False) for x in (q, k, v))
    b, h, t, d = q.shape
    kv, length = k.shape[1], k.shape[2]
    scores = (q.reshape((b, kv, h // kv * t, d)) @ k.mT).reshape((b, h, t, length)) * kind.scale
    shown = {"raw": scores}
    if kind.softcap:
        scores = tanh(scores / kind.softcap) * kind.softcap
    shown["capped"] = scores
    if kind.bias is not None:
        scores = scores + kind.bias.astype(wide, copy=False)
    seen = kind.visible
    if kind.causal:
        seen = both(seen, visible_band(t, length, 0, True))
    if seen is not None:
        scores = where(seen, scores, full((), -np.inf, dtype=wide))
    shown["biased"] = scores
    top = scores.max(axis=-1, keepdims=True) if length else scores.sum(axis=-1, keepdims=True)
    if kind.sink is not None:
        sink = kind.sink.astype(wide, copy=False).reshape((1, h, 1, 1))
        top = maximum(top, sink)
    top = where(top == -np.inf, 0.0, top)
    weights = exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    if kind.sink is not None:
        total = total + exp(sink - top)
    weights = weights / where(total == 0, 1.0, total)
    shown["weights"] = weights
    y = (weights.reshape((b, kv, h // kv * t, length)) @ v).reshape((b, h, t, v.shape[3]))
    found = shown[kind.wanted].astype(dtype, copy=False) if kind.wanted else None
    return y.astype(dtype, copy=False), found


# --- rotary embeddings ---------------------------------------------------------------------------


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, width: int = 0) -> Tensor:
    """x (..., D) turned by angles: cos and sin broadcast to (..., width / 2).

    Pairs are the halves of the first ``width`` elements (default all), or neighbours.
    """
    width = width or x.shape[-1]
    if width > x.shape[-1] or width % 2 or cos.shape[-1] * 2 != width:
        raise ShapeError(
            f"rotary embeddings of {width} of {x.shape[-1]} elements want half as many angles, got "
            f"{cos.shape[-1]}"
        )
    half = width // 2
    turned, rest = x[..., :width], x[..., width:]
    cos, sin = cos.astype(x.dtype, copy=False), sin.astype(x.dtype, copy=False)
    if interleaved:
        pairs = turned.reshape((*x.shape[:-1], half, 2))
        a, b = pairs[..., 0], pairs[..., 1]
        y = stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(turned.shape)
    else:
        a, b = turned[..., :half], turned[..., half:]
        y = concat([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return y if width == x.shape[-1] else concat([y, rest], axis=-1)


@op("RotaryEmbedding", since=23)
def rotary_embedding(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """x (B, H, T, D) or (B, T, H * D) turned by the angles of its positions (Su et al. 2021)."""
    if positions is not None:
        cos, sin = (rows_at(table, positions) for table in (cos, sin))
    if x.ndim == 3:
        if num_heads < 1:
            raise ShapeError("three axes want num_heads")
        cut = x.reshape((*x.shape[:2], num_heads, -1))
        cos, sin = (a.reshape((a.shape[0], a.shape[1], 1, -1)) for a in (cos, sin))
        y = rotated(cut, cos, sin, bool(interleaved), rotary_embedding_dim)
        return y.reshape(x.shape)
    cos, sin = (a.reshape((a.shape[0], 1, a.shape[1], -1)) for a in (cos, sin))
    return rotated(x, cos, sin, bool(interleaved), rotary_embedding_dim)


# --- Attention -----------------------------------------------------------------------------------

_SHOWN = ("raw", "capped", "biased", "weights")
_FLOATS = {1: f32, 10: f16, 11: f64, 16: bf16}


@op("Attention", since=23)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int = 0,
    left_window_size: int = -1,
    q_num_heads: int = 0,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    ctx: Call,
) -> Any:
    """Attention over q (B, H, T, D) or (B, T, H * D), with a cache that grows or one of lengths."""
    if softmax_precision is not None and softmax_precision not in _FLOATS:
        raise UnsupportedError(f"softmax_precision {softmax_precision} is no float type")
    joined = q.ndim == 3
    if joined:
        q = heads_first(q, q_num_heads)
        k, v = heads_first(k, kv_num_heads), heads_first(v, kv_num_heads)
    if past_key is not None and past_value is not None:
        k, v = concat([past_key, k], axis=2), concat([past_value, v], axis=2)
    t, length = q.shape[2], k.shape[2]
    offset: Any = 0 if past_key is None else past_key.shape[2]
    visible = None
    if lengths is not None:
        if past_key is None:
            offset = lengths - t
        row = counted(length, lengths.dtype).reshape((1, 1, 1, -1))
        visible = row < lengths.reshape((-1, 1, 1, 1))
    bias = None
    if mask is not None:
        if mask.shape[-1] < length:  # what it does not reach is not seen
            missing = length - mask.shape[-1]
            reach = Tensor(np.arange(length) < mask.shape[-1])
            visible = both(visible, reach)
            mask = pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, missing)])
        if mask.dtype.kind == "b":
            visible = both(visible, mask)
        else:
            bias = mask
    windows = left_window_size >= 0 or right_window_size >= 0
    plain = bool(is_causal) and not windows and past_key is None and lengths is None
    if not plain:
        band = visible_band(t, length, offset, bool(is_causal), left_window_size, right_window_size)
        visible = both(visible, band)
    kind = Kind(
        scale=scale,
        causal=plain,
        visible=visible,
        bias=bias,
        softcap=softcap,
        wanted=_SHOWN[qk_matmul_output_mode] if ctx.n_outputs > 3 else "",
    )
    y, scores = attend(q, k, v, kind, joined)
    return (y, k, v, scores)[: ctx.n_outputs]


@op("FlexAttention", since=1, domain="ai.onnx.preview")
def flex_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    prob_mod: Any = None,
    scale: float | None = None,
    score_mod: Any = None,
    softmax_precision: int | None = None,
    ctx: Call,
) -> Tensor:
    """Attention whose scores and weights pass through bodies of the model."""
    if score_mod is None and prob_mod is None:
        return attend(q, k, v, Kind(scale=scale))[0]
    wide = _FLOATS[softmax_precision or (11 if q.dtype is f64 else 1)]
    inside = f64 if wide is f64 else f32
    b, h, t, d = q.shape
    kv, length = k.shape[1], k.shape[2]
    rows = q.astype(inside).reshape((b, kv, h // kv * t, d))
    scores = rows @ k.astype(inside).mT * (d**-0.5 if scale is None else scale)
    scores = ctx.keep(scores.reshape((b, h, t, length)).astype(wide, copy=False))
    change: Callable[[Any, Tensor], Tensor] = lambda body, x: ctx.run(body, [x])[0]  # noqa: E731
    if score_mod is not None:
        scores = change(score_mod, scores)
    weights = F.softmax(scores, axis=-1)
    if prob_mod is not None:
        weights = change(prob_mod, ctx.keep(weights))
    weights = weights.astype(inside, copy=False).reshape((b, kv, h // kv * t, length))
    y = (weights @ v.astype(inside)).reshape((b, h, t, v.shape[3]))
    return y.astype(q.dtype, copy=False)


@op("CausalConvWithState", since=27)
def causal_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    past: Tensor | None = None,
    *,
    activation: str = "none",
) -> Any:
    """A depthwise convolution over (B, C, T) that sees the past only, and what it has to keep."""
    if activation not in ("none", "silu", "swish"):
        raise UnsupportedError(f"activation is none, silu or swish, got {activation!r}")
    reach = w.shape[2] - 1
    if past is None:
        whole = pad(x, [(0, 0), (0, 0), (reach, 0)])
    else:
        whole = concat([past, x], axis=2)
    y = F.conv(whole, w, b, groups=x.shape[1])
    if activation != "none":
        y = F.silu(y)
    return y, whole[:, :, whole.shape[2] - reach :]


_RULES: Final = ("linear", "gated", "delta", "gated_delta")


@op("LinearAttention", since=27)
@op("LinearAttention", domain="com.microsoft")
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    chunk_size: int = 64,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> Any:
    """Attention by a state: q (B, T, H * DK), k (B, T, Hkv * DK), v (B, T, Hkv * DV), that state.

    decay: logarithms of gains, (B, T, Hkv) or (B, T, Hkv * DK); beta (B, T, Hkv) or (B, T, 1).
    """
    if update_rule not in _RULES:
        raise UnsupportedError(f"update_rule is one of {', '.join(_RULES)}, got {update_rule!r}")
    gated, delta = "gated" in update_rule, "delta" in update_rule
    if (gated and decay is None) or (delta and beta is None):
        raise ShapeError(f"update_rule {update_rule!r} wants its decay and beta")
    kind = q.dtype
    wide = f64 if kind is f64 else f32

    def cut(x: Tensor, heads: int) -> Tensor:
        if x.ndim != 3 or x.shape[2] % heads:
            raise ShapeError(f"{heads} heads do not cut {x.shape} (batch, length, heads * width)")
        return x.astype(wide, copy=False).reshape((*x.shape[:2], heads, -1))

    queries, keys, values = cut(q, q_num_heads), cut(k, kv_num_heads), cut(v, kv_num_heads)
    b, t, heads, width = keys.shape
    queries = queries * (scale or width**-0.5)
    gain = update = None
    if gated and decay is not None:
        gain = broadcast_to(exp(cut(decay, heads)), keys.shape)
    if delta and beta is not None:
        update = broadcast_to(beta.astype(wide, copy=False), (b, t, heads))
    if past is None:
        past = full((b, heads, width, values.shape[3]), 0.0, dtype=wide)
    y, last = recurrences.linear_attention(
        queries.node,
        keys.node,
        values.node,
        past.astype(wide, copy=False).node,
        None if gain is None else gain.node,
        None if update is None else update.node,
    )
    joined = Tensor(y).reshape((b, t, -1))
    return joined.astype(kind, copy=False), Tensor(last).astype(kind, copy=False)

"""Attention built of plain ops, with its matrix of scores: where flash attention has no kernels.

These are the gradients that few need: of an additive mask, and of the gradients themselves. Memory
is quadratic in the length here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tilewright.dtypes import boolean, f32, f64, i64
from tilewright.graph import Node, Shape, const_node
from tilewright.ops.arithmetic import add, div, mul, sub
from tilewright.ops.autodiff import vjp
from tilewright.ops.comparison import eq, ge, where
from tilewright.ops.creation import cast, iota
from tilewright.ops.elementwise_math import exp, log
from tilewright.ops.flash_dropout import attention_noise, kept_share
from tilewright.ops.gemm import bmm
from tilewright.ops.reductions import max, sum
from tilewright.ops.views import broadcast, permute, reshape, stop_gradient
from tilewright.sizes import has_value

__all__ = ["attention_composite", "mask_gradient", "second_gradient"]


def attention_composite(
    q: Node,
    k: Node,
    v: Node,
    mask: Node | None,
    *,
    causal: bool,
    scale: float,
    layout: str,
    dropout: float = 0.0,
    key: Node | None = None,
) -> tuple[Node, Node]:
    """(out, lse) as :func:`tilewright.ops.flash.flash_attention`, of plain ops."""
    wide = f64 if q.dtype is f64 else f32
    batch, heads, queries, _ = _numbers(q.shape)
    keys = _numbers(k.shape)[2]
    left, right, values = (cast(x, wide) for x in (q, _for_heads(k, heads), _for_heads(v, heads)))
    scores = mul(bmm(left, permute(right, (0, 1, 3, 2))), const_node(scale, wide))
    shape = (batch, heads, queries, keys)
    hidden = const_node(-math.inf, wide)
    if mask is not None and mask.dtype is boolean:
        scores = where(mask, scores, hidden)
    elif mask is not None:
        scores = add(scores, mask)
    if causal:
        seen = ge(iota(shape, 2, i64), iota(shape, 3, i64))
        scores = where(seen, scores, hidden)
    top = stop_gradient(max(scores, (3,), True))
    top = where(eq(top, hidden), const_node(0.0, wide), top)
    weights = exp(sub(scores, top))
    total = sum(weights, (3,), True)
    empty = eq(total, const_node(0.0, wide))
    safe = where(empty, const_node(1.0, wide), total)
    shares = div(weights, safe)
    if key is not None:
        rate = const_node(1 / kept_share(dropout), wide)
        noise = attention_noise(key, shape, dropout)
        shares = where(noise, mul(shares, rate), const_node(0.0, wide))
    out = cast(bmm(shares, values), q.dtype)
    lse = where(empty, hidden, add(top, log(safe)))
    lse = reshape(lse, shape[:3])
    return (permute(out, (0, 2, 1, 3)) if layout == "bthd" else out), lse


def _numbers(shape: Shape) -> tuple[int, ...]:
    return tuple(n for n in shape if has_value(n))  # the ops have refused symbolic ones


def _for_heads(x: Node, heads: int) -> Node:
    """Keys or values (B, Hkv, T, D) repeated for each query head: (B, H, T, D)."""
    batch, kv_heads, length, head_dim = _numbers(x.shape)
    if kv_heads == heads:
        return x
    wide = reshape(x, (batch, kv_heads, 1, length, head_dim))
    wide = broadcast(wide, (batch, kv_heads, heads // kv_heads, length, head_dim))
    return reshape(wide, (batch, heads, length, head_dim))


def mask_gradient(
    q: Node,
    k: Node,
    v: Node,
    mask: Node,
    dout: Node | None,
    dlse: Node | None,
    *,
    causal: bool,
    scale: float,
    layout: str,
    dropout: float = 0.0,
    key: Node | None = None,
) -> Node | None:
    """Gradient of an additive mask; None for a bool one."""
    if mask.dtype is boolean:
        return None
    mask = stop_gradient(mask)
    results = attention_composite(
        q, k, v, mask, causal=causal, scale=scale, layout=layout, dropout=dropout, key=key
    )
    return vjp(results, [dout, dlse], [mask])[0]


def second_gradient(
    q: Node,
    k: Node,
    v: Node,
    mask: Node | None,
    dout: Node,
    dlse: Node | None,
    grads: Sequence[Node | None],
    *,
    causal: bool,
    scale: float,
    layout: str,
    dropout: float = 0.0,
    key: Node | None = None,
) -> list[Node | None]:
    """``grads``, the cotangents of (dq, dk, dv), pulled back to q, k, v, mask, dout and dlse."""
    # cut off from what they were computed from, whose share is found elsewhere
    given = [None if x is None else stop_gradient(x) for x in (q, k, v, mask, dout, dlse)]
    a, b, c, bias, cotangent, cotangent_lse = given
    assert a is not None
    assert b is not None
    assert c is not None
    results = attention_composite(
        a, b, c, bias, causal=causal, scale=scale, layout=layout, dropout=dropout, key=key
    )
    first = vjp(results, [cotangent, cotangent_lse], [a, b, c])
    pairs = [(x, g) for x, g in zip(first, grads) if x is not None and g is not None]
    wrt = [x for x in given if x is not None]
    second = iter(vjp([x for x, _ in pairs], [g for _, g in pairs], wrt))
    return [None if x is None else next(second) for x in given]

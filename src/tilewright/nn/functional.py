"""Functions of tensors that layers are made of."""

from __future__ import annotations

import math

from tilewright.dtypes import i64
from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.ops import elementwise as ew
from tilewright.ops import flash, indexing, reductions, views
from tilewright.tensor import random
from tilewright.tensor.core import Tensor, apply
from tilewright.tensor.elementwise import rsqrt, where
from tilewright.tensor.linalg import matmul

__all__ = [
    "attention",
    "cross_entropy",
    "dropout",
    "embedding",
    "layer_norm",
    "linear",
    "mse_loss",
    "rms_norm",
]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: x (..., in), weight (out, in), bias (out,) -> (..., out)."""
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(f"linear: x {x.shape} with weight {weight.shape} (out, in)")
    y = matmul(x, weight.mT)
    return y if bias is None else y + bias


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of ``weight`` (n, width): ids of any shape -> (*ids.shape, width)."""
    return apply(lambda w, i: indexing.take(w, i, 0), weight, ids)


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last axis (Ba et al. 2016)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    y = centred * rsqrt(variance + eps)
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis (Zhang & Sennrich 2019)."""
    y = x * rsqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    return y if weight is None else y * weight


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax(q k^T * scale + mask) v without the matrix in memory (Dao et al. 2022).

    Args:
        q: (batch, heads, queries, head_dim).
        k, v: (batch, kv_heads, keys, head_dim); kv_heads divides heads.
        mask: bool (True: may be seen) or float (added), broadcast to (batch, heads, queries, keys).
        causal: query i sees keys 0..i.
        scale: default ``1 / sqrt(head_dim)``.
    """

    def build(*nodes: Node) -> Node:
        return flash.flash_attention(*nodes, causal=causal, scale=scale)[0]

    return apply(build, q, k, v) if mask is None else apply(build, q, k, v, mask)


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Mean negative log likelihood of ``targets``: logits (..., classes), targets (...) integers.

    Targets equal to ``ignore_index`` do not count.
    """
    if logits.shape[:-1] != targets.shape:
        raise ShapeError(f"cross_entropy: logits {logits.shape} with targets {targets.shape}")
    classes = logits.shape[-1]
    rows = math.prod(targets.shape)

    def picked(z: Node, t: Node) -> Node:
        flat = views.reshape(z, (rows, classes))
        ids = views.reshape(ew.cast(t, i64), (rows, 1))
        column = ew.iota((rows, classes), 1, i64)
        hit = ew.eq(column, ids)
        chosen = reductions.sum(ew.where(hit, flat, ew.zeros_like(flat)), (1,))
        return ew.sub(reductions.logsumexp(flat, (1,)), chosen)

    losses = apply(picked, logits, targets)
    counted = targets.reshape((rows,)) != ignore_index
    losses = where(counted, losses, 0.0)
    return losses.sum() / counted.astype(losses.dtype).sum()


def mse_loss(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference."""
    d = x - y
    return (d * d).mean()


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Zero each element with probability ``p`` and scale the others by ``1 / (1 - p)``."""
    if not training or p == 0:
        return x
    keep = random.uniform(x.shape) >= p
    return where(keep, x * (1 / (1 - p)), 0.0)

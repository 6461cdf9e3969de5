"""Functions of tensors that layers are made of.

Losses are in :mod:`tilewright.nn.losses`, rotary embeddings in :mod:`tilewright.nn.rotary`; all are
names of this module too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilewright.dtypes import f32, i64
from tilewright.errors import ShapeError
from tilewright.graph import Node, const_node
from tilewright.nn.losses import (
    binary_cross_entropy_with_logits,
    cosine_embedding_loss,
    cosine_similarity,
    cross_entropy,
    huber_loss,
    kl_div,
    l1_loss,
    mse_loss,
    nll_loss,
    smooth_l1_loss,
)
from tilewright.nn.precision import autocast, cast_operands
from tilewright.nn.rotary import rope
from tilewright.ops import conv as convolutions
from tilewright.ops import elementwise as ew
from tilewright.ops import flash, flash_packed, indexing, norm, pool, views
from tilewright.ops.autodiff import custom_gradient
from tilewright.tensor import random
from tilewright.tensor.bounds import checked_ids
from tilewright.tensor.core import Tensor, apply, cast_node, source, wrap
from tilewright.tensor.elementwise import (
    elu,
    gelu,
    leaky_relu,
    log_sigmoid,
    relu,
    sigmoid,
    silu,
    softplus,
    tanh,
    where,
)
from tilewright.tensor.linalg import matmul
from tilewright.tensor.manipulation import pad
from tilewright.tensor.reductions import log_softmax, softmax
from tilewright.tensor.sparse import sparse_node

__all__ = [
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "attention",
    "attention_packed",
    "autocast",
    "avg_pool",
    "batch_norm",
    "batch_norm_with_statistics",
    "binary_cross_entropy_with_logits",
    "conv",
    "conv_transpose",
    "cosine_embedding_loss",
    "cosine_similarity",
    "cross_entropy",
    "dropout",
    "elu",
    "embedding",
    "gelu",
    "group_norm",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "log_softmax",
    "matmul",
    "max_pool",
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "pad",
    "relu",
    "rms_norm",
    "rope",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "tanh",
    "where",
]

Numbers = int | Sequence[int]
Padding = str | int | Sequence[int | tuple[int, int]]


# linear maps


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: x (..., in), weight (out, in), bias (out,) -> (..., out)."""
    if x.ndim == 0 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(f"linear: x {x.shape} with weight {weight.shape} (out, in)")
    return _biased(matmul(x, weight.mT), bias)


def _biased(y: Tensor, bias: Tensor | None, after: int = 0) -> Tensor:
    """``y + bias`` in the dtype of y; ``after`` axes come after the one of the bias."""
    if bias is None:
        return y
    if bias.dtype is not y.dtype:
        bias = apply(cast_node, bias, dtype=y.dtype)
    return y + (bias.reshape((-1,) + (1,) * after) if after else bias)


def embedding(ids: Tensor, weight: Tensor, sparse: bool = False) -> Tensor:
    """Rows of ``weight`` (n, width): ids of any shape -> (*ids.shape, width).

    With ``sparse`` the gradient of ``weight`` is kept as ids and rows (see
    :mod:`tilewright.tensor.sparse`), which SGD and SparseAdam apply as they are.

    Raises :class:`BoundsError` for an id outside 0 to n - 1, here or when it is computed.
    """
    if not ids.dtype.is_integer:
        raise ShapeError(f"embedding: ids are integers, got {ids.dtype}")

    def build(w: Node, i: Node) -> Node:
        i = i if i.dtype.bits >= 32 and i.dtype.kind == "i" else ew.cast(i, i64)
        if not sparse:
            return indexing.take(w, i, 0)
        n = int(w.shape[0])

        def rule(inputs: Any, outputs: Any, grads: Any) -> list[Node | None]:
            return [sparse_node(i, grads[0], n)]

        return custom_gradient(lambda table: indexing.take(table, i, 0), rule)(w)

    if weight.ndim < 1:
        raise ShapeError(f"embedding: a weight (n, width), got shape {weight.shape}")
    n = weight.shape[0]
    ids = checked_ids(ids, 0, n, "embedding: id", ("axis 0 of a weight ", weight.shape))
    return apply(build, weight, ids)


def one_hot(ids: Tensor, classes: int, dtype: Any = f32) -> Tensor:
    """1 at each id, 0 elsewhere: ids (...) -> (..., classes).

    Raises :class:`BoundsError` for an id outside 0 to classes - 1, here or when it is computed.
    """
    ids = checked_ids(ids, 0, classes, "one_hot: id", f"{classes} classes")

    def build(i: Node) -> Node:
        shape = (*views.sizes_of(i), classes)
        wide = views.reshape(ew.cast(i, i64), (*i.shape, 1))
        return ew.eq(ew.iota(shape, len(shape) - 1, i64), wide)

    return apply(build, ids).astype(dtype)


# convolution and pooling; spatial axes come last


def _padding(padding: Padding, x: Tensor, weight: Tensor, strides: Any, dilation: Any) -> Any:
    if not isinstance(padding, str):
        return padding
    n = x.ndim - 2
    if padding == "valid":
        return 0
    hops, gaps = ([v] * n if isinstance(v, int) else list(v) for v in (strides, dilation))
    if padding != "same" or any(h != 1 for h in hops):
        raise ShapeError(
            f'conv: padding is numbers, "valid", or "same" with stride 1; got {padding!r} with '
            f"stride {strides}"
        )
    return list(convolutions.same_padding(x.shape[2:], weight.shape[2:], hops, gaps))


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Padding = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution over one to three axes: x (N, C, *size), weight (O, C/groups, *kernel).

    bias (O,). padding: zeros around: a number, one per axis, pairs (before, after), ``"valid"`` or
    ``"same"``.
    """
    x, weight = cast_operands(x, weight)
    y = apply(
        convolutions.conv,
        x,
        weight,
        strides=_hashable(stride),
        padding=_hashable(_padding(padding, x, weight, stride, dilation)),
        dilation=_hashable(dilation),
        groups=groups,
    )
    return _biased(y, bias, x.ndim - 2)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers = 0,
    output_padding: Numbers = 0,
    groups: int = 1,
    dilation: Numbers = 1,
) -> Tensor:
    """Transposed convolution: x (N, C, *size), weight (C, O/groups, *kernel), bias (O,)."""
    x, weight = cast_operands(x, weight)
    y = apply(
        convolutions.conv_transpose,
        x,
        weight,
        strides=_hashable(stride),
        padding=_hashable(padding),
        dilation=_hashable(dilation),
        groups=groups,
        output_padding=_hashable(output_padding),
    )
    return _biased(y, bias, x.ndim - 2)


def _hashable(v: Any) -> Any:
    return v if isinstance(v, int) else tuple(_hashable(i) for i in v)


def max_pool(
    x: Tensor,
    kernel: Numbers,
    stride: Numbers | None = None,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest value in each window of x (N, C, *size); the stride is the kernel by default."""
    return apply(
        lambda n: pool.max_pool(n, kernel, stride, padding, dilation, ceil_mode)[0],
        x,
    )


def avg_pool(
    x: Tensor,
    kernel: Numbers,
    stride: Numbers | None = None,
    padding: Numbers = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of x (N, C, *size); the stride is the kernel by default."""
    return apply(
        lambda n: pool.avg_pool(
            n,
            kernel,
            stride,
            padding,
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
        ),
        x,
    )


def adaptive_avg_pool(x: Tensor, size: Numbers) -> Tensor:
    """Means over ``size`` windows per axis of x (N, C, *in), cut as in PyTorch."""
    return apply(pool.adaptive_avg_pool, x, out=_hashable(size))


def adaptive_max_pool(x: Tensor, size: Numbers) -> Tensor:
    """Maxima over ``size`` windows per axis of x (N, C, *in), cut as in PyTorch."""
    return apply(pool.adaptive_max_pool, x, out=_hashable(size))


# normalisation


def normalize(x: Tensor, axis: int | Sequence[int], eps: float, centred: bool = True) -> Tensor:
    """``(x - mean) / sqrt(var + eps)`` over ``axis``; without ``centred`` the mean counts as 0."""
    return apply(norm.normalize, x, axes=_hashable(axis), eps=eps, centred=centred)


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    axes: int = 1,
) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last ``axes`` (Ba et al. 2016).

    weight and bias have the shape of these axes. Statistics are f32 at least; the result has the
    dtype of x.
    """
    return _scaled(x, normalize(x, tuple(range(-axes, 0)), eps), weight, bias)


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis (Zhang & Sennrich 2019)."""
    return _scaled(x, normalize(x, -1, eps, centred=False), weight, None)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Each of ``groups`` groups of channels of x (N, C, ...) normalised (Wu & He 2018)."""
    if x.ndim < 2 or groups < 1 or x.shape[1] % groups:
        raise ShapeError(f"group_norm: {groups} groups do not cut the channels of {x.shape}")
    cut = x.reshape((x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))
    y = normalize(cut, tuple(range(2, cut.ndim)), eps).reshape(x.shape)
    return _scaled(x, y, weight, bias, x.ndim - 2)


def batch_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """x (N, C, ...) normalised per channel (Ioffe & Szegedy 2015).

    With ``mean`` and ``var`` (C,) these are the statistics, else those of the batch are.
    """
    after = x.ndim - 2
    if mean is None or var is None:
        return batch_norm_with_statistics(x, weight, bias, eps)[0]
    scale = (var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (-1,) + (1,) * after
    y = x * scale.reshape(shape) + shift.reshape(shape)
    return y if y.dtype is x.dtype else apply(cast_node, y, dtype=x.dtype)


def batch_norm_with_statistics(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`batch_norm` by the batch's statistics, and these: mean and biased variance (C,)."""
    axes = (0, *range(2, x.ndim))
    y, mean, var = norm.normalize_with_statistics(source(x), axes, eps)
    result = _scaled(x, wrap(y, x), weight, bias, x.ndim - 2)
    channels = (x.shape[1],)
    return result, Tensor(mean).reshape(channels), Tensor(var).reshape(channels)


def _scaled(
    x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, after: int = 0
) -> Tensor:
    """``y * weight + bias`` in the dtype of x."""
    shape = (-1,) + (1,) * after
    if weight is not None:
        y = y * (weight.reshape(shape) if after else weight)
    if bias is not None:
        y = y + (bias.reshape(shape) if after else bias)
    return y if y.dtype is x.dtype else apply(cast_node, y, dtype=x.dtype)


# attention


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    layout: str = "bhtd",
    dropout_p: float = 0.0,
) -> Tensor:
    """softmax(q k^T * scale + mask) v without the matrix in memory (Dao et al. 2022).

    Args:
        q: (batch, heads, queries, head_dim).
        k, v: (batch, kv_heads, keys, head_dim); kv_heads divides heads.
        mask: bool (True: may be seen) or float (added), broadcast to (batch, heads, queries, keys).
        causal: query i sees keys 0..i.
        scale: default ``1 / sqrt(head_dim)``.
        layout: of the result, ``"bhtd"`` as q, or ``"bthd"``: (batch, queries, heads, head_dim).
        dropout_p: with this probability a weight of the softmax is 0, the others are scaled up.
            Which ones is drawn from the default generator and never in memory.
    """
    q, k, v = cast_operands(q, k, v)
    noise = _noise(dropout_p)

    def build(q: Node, k: Node, v: Node, m: Node | None = None) -> Node:
        settings: dict[str, Any] = {"causal": causal, "scale": scale, "layout": layout}
        return flash.flash_attention(q, k, v, m, dropout=dropout_p, key=noise, **settings)[0]

    return apply(build, q, k, v) if mask is None else apply(build, q, k, v, mask)


def _noise(p: float) -> Node | None:
    """The key of an attention's dropout."""
    if p == 0:
        return None
    return views.concat([views.reshape(word, (1,)) for word in random.default().key()], 0)


def attention_packed(
    qkv: Tensor,
    heads: int,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Self-attention on one projection's result: (B, T, H + 2 Hkv, D) -> (B, T, H, D).

    The heads of q come first, then those of k, then those of v. Other arguments as in
    :func:`attention`.
    """
    (qkv,) = cast_operands(qkv)
    noise = _noise(dropout_p)

    def build(x: Node, m: Node | None = None) -> Node:
        settings: dict[str, Any] = {"causal": causal, "scale": scale, "dropout": dropout_p}
        return flash_packed.flash_attention_packed(x, heads, m, key=noise, **settings)[0]

    return apply(build, qkv) if mask is None else apply(build, qkv, mask)


# noise


def dropout(
    x: Tensor, p: float, training: bool = True, axes: Sequence[int] | None = None
) -> Tensor:
    """Zero each element with probability ``p`` and scale the others by ``1 / (1 - p)``.

    ``axes``: only these decide together what is kept (channels: ``(0, 1)``); default all.
    """
    if not 0 <= p <= 1:
        raise ShapeError(f"dropout: p is a probability, got {p}")
    if not training or p == 0:
        return x
    shape = tuple(n if axes is None or i in axes else 1 for i, n in enumerate(x.shape))
    drawn = random.uniform(shape)

    def build(values: Node) -> Node:
        if p == 1:
            return ew.zeros_like(values)
        keep = ew.ge(drawn.node, const_node(float(p), drawn.dtype))
        scaled = ew.mul(values, const_node(1 / (1 - p), values.dtype))
        return ew.where(keep, scaled, const_node(0.0, values.dtype))

    return apply(build, x)

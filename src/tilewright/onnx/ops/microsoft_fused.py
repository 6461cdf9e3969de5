"""Operators of com.microsoft that join several: activations, products, convolutions, norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tilewright.dtypes import f32, i32
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.nn import functional as F
from tilewright.onnx.ops import convolution, linear, normalization
from tilewright.onnx.ops.convolution import Ints
from tilewright.onnx.ops.gathers import rows_at
from tilewright.onnx.registry import Call, op
from tilewright.tensor.core import Tensor
from tilewright.tensor.elementwise import clip, maximum, where
from tilewright.tensor.manipulation import permute_dims

MICROSOFT: Final = "com.microsoft"
Floats = tuple[float, ...] | None


# --- activations ---------------------------------------------------------------------------------

_ACTIVATIONS: Final[dict[str, Callable[..., Tensor]]] = {
    "": lambda x: x,
    "Clip": lambda x, a=-3.4e38, b=3.4e38: clip(x, a, b),
    "Elu": lambda x, a=1.0: F.elu(x, a),
    "FastGelu": lambda x: F.gelu(x, approximate="tanh"),
    "Gelu": lambda x: F.gelu(x),
    "HardSigmoid": lambda x, a=0.2, b=0.5: clip(x * a + b, 0.0, 1.0),
    "HardSwish": lambda x: x * clip(x * (1 / 6) + 0.5, 0.0, 1.0),
    "LeakyRelu": lambda x, a=0.01: F.leaky_relu(x, a),
    "QuickGelu": lambda x, a=1.702: x * F.sigmoid(x * a),
    "Relu": lambda x: F.relu(x),
    "Selu": lambda x, a=1.67326319, g=1.05070102: g * F.elu(x, a),
    "Silu": lambda x: F.silu(x),
    "Sigmoid": lambda x: F.sigmoid(x),
    "Softplus": lambda x: F.softplus(x),
    "Softsign": lambda x: x / (abs(x) + 1.0),
    "Tanh": lambda x: F.tanh(x),
    "ThresholdedRelu": lambda x, a=1.0: where(x > a, x, 0.0),
}


def activated(x: Tensor, name: str | None, *numbers: float | None) -> Tensor:
    """``x`` through an activation by name, with its numbers where they are given."""
    function = _ACTIVATIONS.get(name or "")
    if function is None:
        raise UnsupportedError(f"activation {name!r} is none of {', '.join(_ACTIVATIONS)}")
    return function(x, *(v for v in numbers if v is not None))


@op("Gelu", domain=MICROSOFT)
def gelu(x: Tensor) -> Tensor:
    """``x * (1 + erf(x / sqrt(2))) / 2``."""
    return F.gelu(x)


@op("FastGelu", domain=MICROSOFT)
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """GELU in its tanh form, after a bias."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@op("QuickGelu", domain=MICROSOFT)
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    """``x * sigmoid(alpha x)``."""
    return x * F.sigmoid(x * alpha)


@op("BiasGelu", domain=MICROSOFT)
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """GELU after a bias."""
    return F.gelu(x + bias)


@op("BiasAdd", domain=MICROSOFT)
def bias_add(x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    """``x + bias + skip``."""
    return x + bias + skip


@op("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """The first half of ``x + bias`` times GELU of the second (GEGLU, Shazeer 2020)."""
    y = x + bias
    half = y.shape[-1] // 2
    return y[..., :half] * F.gelu(y[..., half:])


@op("BiasSoftmax", domain=MICROSOFT)
def bias_softmax(x: Tensor, bias: Tensor, *, axis: int = 1, is_inner_broadcast: int) -> Tensor:
    """Softmax over the axes from ``axis`` on, after a bias."""
    first = axis + x.ndim if axis < 0 else axis
    if is_inner_broadcast and bias.ndim < x.ndim:  # the bias has x's first axes
        bias = bias.reshape((*bias.shape, *(1,) * (x.ndim - bias.ndim)))
    y = x + bias
    return F.softmax(y.reshape((*y.shape[:first], -1)), axis=-1).reshape(y.shape)


@op("BiasDropout", domain=MICROSOFT, host=(3, 4))
def bias_dropout(
    x: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    ratio: Any = None,
    training_mode: Any = None,
    *,
    seed: int = 0,
    ctx: Call,
) -> Any:
    """``x + bias + residual`` where nothing is dropped: when no model is trained."""
    if training_mode is not None and bool(training_mode.item()) and ratio is not None:
        raise UnsupportedError("BiasDropout drops nothing here: training_mode has to be false")
    y = x + bias if residual is None else x + bias + residual
    return (y, y == y) if ctx.n_outputs > 1 else y


# --- products ------------------------------------------------------------------------------------


def _turned(x: Tensor, last: int, batch: int) -> Tensor:
    """With the last two axes exchanged, or the first one moved before the last."""
    if x.ndim < 2:
        return x
    order = list(range(x.ndim))
    if batch:
        order = [*order[1:-1], order[0], order[-1]]
    if last:
        order[-1], order[-2] = order[-2], order[-1]
    return permute_dims(x, tuple(order))


@op("FusedMatMul", domain=MICROSOFT)
def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    """``alpha a b``, operands transposed if wanted."""
    y = _turned(a, transA, transBatchA) @ _turned(b, transB, transBatchB)
    return y if alpha == 1 else y * alpha


@op("TransposeMatMul", domain=MICROSOFT)
def transpose_matmul(
    a: Tensor, b: Tensor, *, alpha: float = 1.0, transA: int = 0, transB: int = 0
) -> Tensor:
    """The older name of FusedMatMul."""
    return fused_matmul(a, b, alpha=alpha, transA=transA, transB=transB)


@op("FusedMatMulActivation", domain=MICROSOFT)
def fused_matmul_activation(
    a: Tensor,
    b: Tensor,
    *,
    activation: str,
    activation_alpha: float | None = None,
    activation_axis: int = -1,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    """FusedMatMul and an activation."""
    y = fused_matmul(
        a, b, alpha=alpha, transA=transA, transB=transB, transBatchA=transBatchA,
        transBatchB=transBatchB,
    )  # fmt: skip
    if activation == "Softmax":
        return F.softmax(y, axis=activation_axis)
    return activated(y, activation, activation_alpha, activation_beta, activation_gamma)


@op("FusedGemm", domain=MICROSOFT)
def fused_gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    activation: str | None = None,
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Gemm and an activation."""
    y = linear.gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return activated(y, activation, activation_alpha, activation_beta, activation_gamma)


@op("GemmFastGelu", domain=MICROSOFT)
def gemm_fast_gelu(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """A product, a bias and GELU in its tanh form."""
    return fast_gelu(x @ w, bias)


# --- convolutions --------------------------------------------------------------------------------


@op("FusedConv", domain=MICROSOFT)
def fused_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    z: Tensor | None = None,
    *,
    activation: str | None = None,
    activation_params: Floats = None,
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Tensor:
    """Convolution, sum and activation."""
    y = convolution.convolve(x, w, b, auto_pad, dilations, group, kernel_shape, pads, strides)
    return activated(y if z is None else y + z, activation, *(activation_params or ()))


def channels_first(x: Tensor) -> Tensor:
    """(N, *size, C) as (N, C, *size)."""
    return permute_dims(x, (0, x.ndim - 1, *range(1, x.ndim - 1)))


def channels_last(x: Tensor) -> Tensor:
    """(N, C, *size) as (N, *size, C)."""
    return permute_dims(x, (0, *range(2, x.ndim), 1))


@op("NhwcConv", domain=MICROSOFT)
def nhwc_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Tensor:
    """Conv with channels last, also in the weight (O, *kernel, C / group)."""
    y = convolution.convolve(
        channels_first(x), channels_first(w), b, auto_pad, dilations, group, kernel_shape, pads,
        strides,
    )  # fmt: skip
    return channels_last(y)


@op("NhwcFusedConv", domain=MICROSOFT)
def nhwc_fused_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    z: Tensor | None = None,
    *,
    activation: str | None = None,
    activation_params: Floats = None,
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Tensor:
    """FusedConv with channels last in x, z and the result, not in the weight."""
    y = channels_last(
        convolution.convolve(
            channels_first(x), w, b, auto_pad, dilations, group, kernel_shape, pads, strides
        )
    )
    return activated(y if z is None else y + z, activation, *(activation_params or ()))


# --- norms ---------------------------------------------------------------------------------------


@op("LayerNormalization", since=1)
@op("LayerNormalization", domain=MICROSOFT)
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    ctx: Call,
) -> Any:
    """LayerNormalization before the standard had it."""
    found = normalization.layer_norm(x, scale, bias, axis, epsilon, True)
    return found[0] if ctx.n_outputs < 2 else found[: ctx.n_outputs]


@op("SimplifiedLayerNormalization", since=1)
@op("SimplifiedLayerNormalization", domain=MICROSOFT)
def simplified_layer_normalization(
    x: Tensor,
    scale: Tensor,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    ctx: Call,
) -> Any:
    """RMS normalisation over the axes from ``axis`` on."""
    y, _, deviation = normalization.layer_norm(x, scale, None, axis, epsilon, False)
    return (y, deviation) if ctx.n_outputs > 1 else y


def _skipped(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    centred: bool,
    count: int,
) -> Any:
    wide = f32 if x.dtype.bits < 32 else x.dtype
    total = x.astype(wide, copy=False) + skip.astype(wide, copy=False)
    if bias is not None:
        total = total + bias.astype(wide, copy=False)
    y, mean, deviation = normalization.layer_norm(total, gamma, beta, -1, epsilon, centred)
    outs = (y.astype(x.dtype, copy=False), mean, deviation, total.astype(x.dtype, copy=False))
    return outs[: max(count, 1)]


@op("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    ctx: Call,
) -> Any:
    """Layer normalisation of ``x + skip + bias``, statistics, and that sum."""
    return _skipped(x, skip, gamma, beta, bias, epsilon, True, ctx.n_outputs)


@op("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_simplified_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    ctx: Call,
) -> Any:
    """RMS normalisation of ``x + skip + bias``, statistics, and that sum."""
    return _skipped(x, skip, gamma, None, bias, epsilon, False, ctx.n_outputs)


@op("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(
    ids: Tensor,
    segment_ids: Tensor | None,
    words: Tensor,
    places: Tensor,
    segments: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 0,
    ctx: Call,
) -> Any:
    """The sum of embeddings of words, positions and segments, normalised; lengths of the mask."""
    s = ids.shape[1]

    total = rows_at(words, ids)
    total = total + (places[:s] if position_ids is None else rows_at(places, position_ids))
    if segment_ids is not None and segments is not None:
        total = total + rows_at(segments, segment_ids)
    y = normalization.layer_norm(total, gamma, beta, -1, epsilon, True)[0]
    lengths = (ids * 0 if mask is None else (mask == 1).astype(ids.dtype)).sum(axis=1)
    return (y, lengths.astype(i32), total)[: ctx.n_outputs]


def _grouped(
    x: Tensor, gamma: Tensor, beta: Tensor, groups: int, epsilon: float, silu: int, last: int
) -> Tensor:
    if silu not in (0, 1):
        raise UnsupportedError(f"activation is 0 (none) or 1 (SiLU), got {silu}")
    if x.ndim != 4:
        raise ShapeError(f"an image has four axes, got {x.shape}")
    y = channels_first(x) if last else x
    y = normalization.group_normalization(y, gamma, beta, num_groups=groups, epsilon=epsilon)
    y = F.silu(y) if silu else y
    return channels_last(y) if last else y


@op("GroupNorm", domain=MICROSOFT)
def group_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    activation: int,
    channels_last: int = 1,
    epsilon: float = 1e-5,
    groups: int,
) -> Tensor:
    """Group normalisation, channels last, and SiLU."""
    return _grouped(x, gamma, beta, groups, epsilon, activation, channels_last)


@op("SkipGroupNorm", domain=MICROSOFT)
def skip_group_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    skip: Tensor,
    bias: Tensor | None = None,
    *,
    activation: int,
    channels_last: int = 1,
    epsilon: float = 1e-5,
    groups: int,
    ctx: Call,
) -> Any:
    """GroupNorm of ``x + skip + bias``, and that sum."""
    if skip.ndim == 2:
        skip = skip.reshape((skip.shape[0], 1, 1, skip.shape[1]))
    total = x + skip
    if bias is not None:
        total = total + bias
    y = _grouped(total, gamma, beta, groups, epsilon, activation, channels_last)
    return (y, total) if ctx.n_outputs > 1 else y


# --- distances -----------------------------------------------------------------------------------


@op("CDist", domain=MICROSOFT)
def cdist(a: Tensor, b: Tensor, *, metric: str = "sqeuclidean") -> Tensor:
    """Distances of the rows of a (m, k) from those of b (n, k)."""
    if metric not in ("sqeuclidean", "euclidean"):
        raise UnsupportedError(f"metric is sqeuclidean or euclidean, got {metric!r}")
    rows = (a * a).sum(axis=1, keepdims=True)
    columns = (b * b).sum(axis=1).reshape((1, -1))
    square = maximum(rows + columns - (a @ b.mT) * 2.0, 0.0)
    return square if metric == "sqeuclidean" else square.sqrt()

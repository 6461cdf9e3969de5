"""Other operators of com.microsoft, and experimental ones that the standard once had."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from tilewright.dtypes import boolean, f32
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.nn import functional as F
from tilewright.onnx.ops import attention, convolution, creation, gathers, pooling, regions, shapes
from tilewright.onnx.ops.convolution import Ints
from tilewright.onnx.ops.gathers import rows_at
from tilewright.onnx.ops.microsoft_fused import activated, channels_first, channels_last
from tilewright.onnx.ops.signal import transform
from tilewright.onnx.registry import Call, op
from tilewright.ops import indexing, views, windows
from tilewright.tensor.core import Tensor, apply
from tilewright.tensor.elementwise import clip, isfinite, isinf, isnan, minimum
from tilewright.tensor.manipulation import broadcast_to, concat, expand_dims, moveaxis
from tilewright.tensor.sorting import topk

MICROSOFT: Final = "com.microsoft"

# what the standard took over later
op("Trilu", domain=MICROSOFT, host=(1,))(creation.trilu)
op("GatherND", domain=MICROSOFT, raw=True)(gathers.gather_nd)
op("GridSample", domain=MICROSOFT)(regions.grid_sample)
op("CausalConvWithState", domain=MICROSOFT)(attention.causal_conv)


@op("Pad", domain=MICROSOFT, host=(1, 2), raw=True)
def pad(
    x: Any, pads: np.ndarray, value: np.ndarray | None = None, *, mode: str = "constant"
) -> Any:
    """Pad with its widths as an input, before the standard had it."""
    return shapes.pad(x, pads, value, mode=mode)


@op("Range", domain=MICROSOFT, host=(0, 1, 2))
def range_(start: np.ndarray, limit: np.ndarray, delta: np.ndarray | None = None) -> np.ndarray:
    """Range, by ones unless told otherwise."""
    return creation.range_(start, limit, np.ones((), start.dtype) if delta is None else delta)


@op("ExpandDims", domain=MICROSOFT, host=(1,))
def expand(x: Tensor, axis: np.ndarray) -> Tensor:
    """A new axis of size one."""
    return expand_dims(x, axis=int(axis.item()))


@op("Inverse", domain=MICROSOFT, boundary=True)
def inverse(x: np.ndarray) -> np.ndarray:
    """The inverses of square matrices."""
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ShapeError(f"square matrices have inverses, got {x.shape}")
    wide = x.astype(np.float64) if x.dtype == np.float64 else x.astype(np.float32)
    try:
        return np.linalg.inv(wide).astype(x.dtype)
    except np.linalg.LinAlgError:
        raise ShapeError(f"one of the matrices {x.shape} has no inverse") from None


@op("IsAllFinite", domain=MICROSOFT)
def is_all_finite(*xs: Tensor, isinf_only: int = 0, isnan_only: int = 0) -> Tensor:
    """Whether no element is infinite or NaN (or only one of these is looked for)."""
    if isinf_only:
        each = [~isinf(x) for x in xs]
    else:
        each = [~isnan(x) if isnan_only else isfinite(x) for x in xs]
    found = each[0].all()
    for one in each[1:]:
        found = found & one.all()
    return found.astype(boolean, copy=False)


@op("UnfoldTensor", domain=MICROSOFT)
def unfold(x: Tensor, *, dim: int = -1, size: int, step: int = 1) -> Tensor:
    """Windows along an axis, their elements along a new last one."""
    at = views.normal_axis(dim, x.ndim)
    last = moveaxis(x, at, x.ndim - 1)
    flat = last.reshape((1, math.prod(last.shape[:-1]), last.shape[-1]))
    seen = Tensor(windows.windows(flat.node, (size,), step))[0]
    cut = seen.permute(0, 2, 1).reshape((*last.shape[:-1], -1, size))
    return moveaxis(cut, x.ndim - 1, at)


@op("TorchEmbedding", domain=MICROSOFT)
def torch_embedding(
    table: Tensor,
    ids: Tensor,
    padding_idx: Tensor | None = None,
    scale_grad_by_freq: Tensor | None = None,
) -> Tensor:
    """Rows of a table."""
    return rows_at(table, ids)


@op("Unique", domain=MICROSOFT, boundary=True)
def unique(x: np.ndarray) -> Any:
    """The values of a vector in the order they come, where each stands, how often."""
    values, first, inverse, counts = np.unique(x, True, True, True)
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return values[order], rank[inverse.reshape(-1)].astype(np.int64), counts[order].astype(np.int64)


# --- pooling and convolutions --------------------------------------------------------------------


@op("NhwcMaxPool", domain=MICROSOFT)
def nhwc_max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints = None,
    kernel_shape: tuple[int, ...],
    pads: Ints = None,
    strides: Ints = None,
    ctx: Call,
) -> Tensor:
    """MaxPool with channels last."""
    y: Tensor = pooling.max_pool(
        channels_first(x), auto_pad=auto_pad, ceil_mode=ceil_mode, dilations=dilations,
        kernel_shape=kernel_shape, pads=pads, strides=strides, ctx=ctx,
    )  # fmt: skip
    return channels_last(y)


@op("ConvTransposeWithDynamicPads", domain=MICROSOFT, host=(2,))
def conv_transpose_with_dynamic_pads(
    x: Tensor,
    w: Tensor,
    pads: np.ndarray | None = None,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    output_padding: Ints = None,
    strides: Ints = None,
) -> Tensor:
    """ConvTranspose with its padding as an input."""
    return convolution.conv_transpose(
        x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape,
        output_padding=output_padding, strides=strides,
        pads=None if pads is None else tuple(int(n) for n in pads),
    )  # fmt: skip


@op("CropAndResize", domain=MICROSOFT, boundary=True)
def crop_and_resize(
    x: np.ndarray,
    rois: np.ndarray,
    batch: np.ndarray,
    size: np.ndarray,
    *,
    extrapolation_value: float = 0.0,
    mode: str = "bilinear",
) -> np.ndarray:
    """Regions y1, x1, y2, x2 (fractions) of images in one size, corners on corners."""
    if mode not in ("bilinear", "nearest"):
        raise UnsupportedError(f"mode is bilinear or nearest, got {mode!r}")
    height, width = (int(n) for n in size)
    lines = []
    for first, last, n, out in (
        (rois[:, 0], rois[:, 2], x.shape[2], height),
        (rois[:, 1], rois[:, 3], x.shape[3], width),
    ):
        if out > 1:
            step = (last - first) * (n - 1) / (out - 1)
            at = (first * (n - 1))[:, None] + np.arange(out) * step[:, None]
        else:
            at = (0.5 * (first + last) * (n - 1))[:, None]
        lines.append(at.astype(x.dtype))
    ys, xs = lines[0][:, :, None], lines[1][:, None, :]
    inside = (ys >= 0) & (ys <= x.shape[2] - 1) & (xs >= 0) & (xs <= x.shape[3] - 1)
    ys, xs = np.clip(ys, 0, x.shape[2] - 1), np.clip(xs, 0, x.shape[3] - 1)
    image = batch.astype(np.int64)[:, None, None]

    def at_pixels(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return x[image, :, i.astype(np.int64), j.astype(np.int64)]

    if mode == "nearest":
        found = at_pixels(np.floor(ys + 0.5), np.floor(xs + 0.5))
    else:
        top, left = np.floor(ys), np.floor(xs)
        down, right = np.ceil(ys), np.ceil(xs)
        dy, dx = (ys - top)[..., None], (xs - left)[..., None]
        above = at_pixels(top, left) * (1 - dx) + at_pixels(top, right) * dx
        below = at_pixels(down, left) * (1 - dx) + at_pixels(down, right) * dx
        found = above * (1 - dy) + below * dy
    found = np.where(inside[..., None], found, x.dtype.type(extrapolation_value))
    return np.ascontiguousarray(np.moveaxis(found, -1, 1)).astype(x.dtype)


# --- signals and complex numbers -----------------------------------------------------------------


def _one_sided(onesided: int, normalized: int, signal_ndim: int) -> None:
    if not onesided or normalized or signal_ndim != 1:
        raise UnsupportedError("onesided is 1, normalized 0 and signal_ndim 1")


@op("Rfft", domain=MICROSOFT)
def rfft(x: Tensor, *, normalized: int = 0, onesided: int = 1, signal_ndim: int = 1) -> Tensor:
    """The one-sided transform of the last axis: (..., n) -> (..., n // 2 + 1, 2)."""
    _one_sided(onesided, normalized, signal_ndim)
    return transform(x.reshape((*x.shape, 1)), None, -2, False, True)


@op("Irfft", domain=MICROSOFT)
def irfft(x: Tensor, *, normalized: int = 0, onesided: int = 1, signal_ndim: int) -> Tensor:
    """The inverse of :func:`rfft`, of an even length."""
    _one_sided(onesided, normalized, signal_ndim)
    return transform(x, None, -2, True, True)[..., 0]


def _complex_product(a: Tensor, b: Tensor, sign: float) -> Tensor:
    if a.shape[-1] != 2 or b.shape[-1] != 2:
        raise ShapeError(f"complex numbers lie in pairs, got {a.shape} and {b.shape}")
    x, y = a[..., :1], a[..., 1:]
    u, v = b[..., :1], b[..., 1:] * sign
    return concat([x * u - y * v, x * v + y * u], axis=-1)


@op("ComplexMul", domain=MICROSOFT)
def complex_mul(a: Tensor, b: Tensor) -> Tensor:
    """Products of complex numbers (..., 2)."""
    return _complex_product(a, b, 1.0)


@op("ComplexMulConj", domain=MICROSOFT)
def complex_mul_conj(a: Tensor, b: Tensor) -> Tensor:
    """Products of complex numbers and conjugate ones (..., 2)."""
    return _complex_product(a, b, -1.0)


@op("DynamicTimeWarping", domain=MICROSOFT, boundary=True)
def dynamic_time_warping(x: np.ndarray) -> np.ndarray:
    """The cheapest way through a matrix of costs from corner to corner: (2, steps)."""
    costs: np.ndarray = x.reshape(x.shape[-2:])
    m, n = (int(size) for size in costs.shape)
    total = np.full((m + 1, n + 1), np.inf, costs.dtype)
    total[0, 0] = 0
    came = np.zeros((m + 1, n + 1), np.int8)  # 0: from both, 1: from above, 2: from the left
    for j in range(1, n + 1):
        for i in range(1, m + 1):
            both, above, left = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
            if both < above and both < left:
                way, least = 0, both
            elif above < both and above < left:
                way, least = 1, above
            else:
                way, least = 2, left
            total[i, j] = costs[i - 1, j - 1] + least
            came[i, j] = way
    came[0, :], came[:, 0] = 2, 1
    path: list[tuple[int, int]] = []
    i, j = m, n
    while i > 0 or j > 0:
        path.append((i - 1, j - 1))
        way = came[i, j]
        i, j = i - (way != 2), j - (way != 1)
    return np.array(path[::-1], np.int32).T.copy()


# --- text ----------------------------------------------------------------------------------------


def _rotated(x: np.ndarray, by: int) -> np.ndarray:
    return (x << np.uint32(by)) | (x >> np.uint32(32 - by))


def _murmur(blocks: np.ndarray, tail: np.ndarray, length: int, seed: int) -> np.ndarray:
    """MurmurHash3 (Appleby 2011), 32 bits: blocks (n, words) and what is left (n, bytes)."""
    c1, c2 = np.uint32(0xCC9E2D51), np.uint32(0x1B873593)
    h = np.full(len(blocks), seed, np.uint32)
    with np.errstate(over="ignore"):
        for i in range(blocks.shape[1]):
            h = h ^ (_rotated(blocks[:, i] * c1, 15) * c2)
            h = _rotated(h, 13) * np.uint32(5) + np.uint32(0xE6546B64)
        if tail.shape[1]:
            k = np.zeros(len(blocks), np.uint32)
            for i in range(tail.shape[1]):
                k |= tail[:, i].astype(np.uint32) << np.uint32(8 * i)
            h = h ^ (_rotated(k * c1, 15) * c2)
        h = h ^ np.uint32(length)
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return np.asarray(h ^ (h >> np.uint32(16)))


@op("MurmurHash3", domain=MICROSOFT, boundary=True)
def murmur_hash(x: np.ndarray, *, positive: int = 1, seed: int = 0) -> np.ndarray:
    """A hash of every element's bytes."""
    kind = np.uint32 if positive else np.int32
    seed &= 0xFFFFFFFF
    if x.dtype != object:
        words = np.ascontiguousarray(x.reshape(-1)).view(np.uint32).reshape(x.size, -1)
        found = _murmur(words, np.zeros((x.size, 0), np.uint8), x.dtype.itemsize, seed)
        return found.view(kind).reshape(x.shape)
    made = np.empty(x.size, np.uint32)
    for i, text in enumerate(x.reshape(-1)):
        data = np.frombuffer(str(text).encode(), np.uint8)
        whole = len(data) // 4 * 4
        words = np.ascontiguousarray(data[:whole]).view(np.uint32)
        made[i] = _murmur(words[None], data[None, whole:], len(data), seed)[0]
    return made.view(kind).reshape(x.shape)


@op("NGramRepeatBlock", domain=MICROSOFT, boundary=True)
def ngram_repeat_block(ids: np.ndarray, scores: np.ndarray, *, ngram_size: int) -> np.ndarray:
    """Scores of tokens that would repeat an n-gram become -inf."""
    n = ngram_size
    made = scores.copy()
    if n < 1 or ids.shape[1] < n:
        return made
    grams = np.lib.stride_tricks.sliding_window_view(ids, n, axis=1)
    last = ids[:, ids.shape[1] - n + 1 :]
    for row, seen in enumerate(grams):
        repeated = seen[(seen[:, : n - 1] == last[row]).all(1), n - 1]
        made[row, repeated] = -np.inf
    return made


@op("RemovePadding", domain=MICROSOFT, boundary=True)
def remove_padding(x: np.ndarray, counts: np.ndarray) -> Any:
    """Tokens without padding at the end: those, where they stood, edges, the longest."""
    b, s = x.shape[:2]
    real = (np.arange(s) < counts.reshape(-1, 1)).reshape(-1)
    offsets = np.concatenate([np.flatnonzero(real), np.flatnonzero(~real)]).astype(np.int32)
    edges = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    rows = x.reshape(b * s, *x.shape[2:])[offsets[: edges[-1]]]
    return rows, offsets.reshape(b, s), edges, np.array([counts.max(initial=0)], np.int32)


@op("RestorePadding", domain=MICROSOFT)
def restore_padding(x: Tensor, offsets: Tensor) -> Tensor:
    """Tokens back where they stood; the rest is zero."""
    b, s = offsets.shape
    at = offsets.reshape((-1,))[: x.shape[0]]
    y = apply(indexing.scatter_rows, at, x, n=b * s)
    return y.reshape((b, s, *x.shape[1:]))


# --- mixtures of experts -------------------------------------------------------------------------


def _experts(x: Tensor, w: Tensor, b: Tensor | None, at: Tensor | None, rows: int) -> Tensor:
    """x (rows, in) or (rows, k, in) times the experts' weights (E, out, in).

    With ``at`` (rows, k) every row takes its own experts: (rows, k, out); without all of them take
    every row: (E, rows, out).
    """
    if at is None:
        y = x @ w.mT
        return y if b is None else y + b.reshape((b.shape[0], 1, -1))
    flat = x.reshape((rows * at.shape[1], 1, -1))
    y = flat @ rows_at(w, at.reshape((-1,))).mT
    if b is not None:
        y = y + rows_at(b, at.reshape((-1,))).reshape((-1, 1, b.shape[1]))
    return y.reshape((rows, at.shape[1], -1))


def _gated(
    gate: Tensor, up: Tensor | None, fusion: int, alpha: float, beta: float, limit: float | None
) -> Tensor:
    if up is None:
        half = gate.shape[-1] // 2
        if fusion == 1:
            pairs = gate.reshape((*gate.shape[:-1], half, 2))
            gate, up = pairs[..., 0], pairs[..., 1]
        else:
            gate, up = gate[..., :half], gate[..., half:]
    if limit is not None:
        gate, up = minimum(gate, limit), clip(up, -limit, limit)
    return gate * F.sigmoid(gate * alpha) * (up + beta)


_NAMES: Final = {"relu": "Relu", "gelu": "FastGelu", "silu": "Silu", "identity": ""}


@op("MoE", domain=MICROSOFT)
def mixture_of_experts(
    x: Tensor,
    router: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None = None,
    w3: Tensor | None = None,
    b3: Tensor | None = None,
    *,
    activation_alpha: float = 1.0,
    activation_beta: float = 0.0,
    activation_type: str = "relu",
    k: int = 1,
    normalize_routing_weights: int = 0,
    swiglu_fusion: int = 0,
    swiglu_limit: float | None = None,
    swiglu_limit_after_activation: int = 0,
    use_sparse_mixer: int = 0,
) -> Tensor:
    """The k best experts of each token, weighed by a softmax of the router's scores.

    Few tokens read their experts' weights; where many tokens want most experts anyway, all experts
    take all tokens and the weights decide.
    """
    if use_sparse_mixer or swiglu_limit_after_activation:
        raise UnsupportedError("use_sparse_mixer and limits after the activation are not supported")
    if activation_type not in (*_NAMES, "swiglu"):
        raise UnsupportedError(f"activation_type {activation_type!r} is not supported")
    tokens = x.reshape((-1, x.shape[-1]))
    rows, experts = tokens.shape[0], w1.shape[0]
    weights = F.softmax(router.astype(f32, copy=False), axis=-1)
    best, at = topk(weights, k)
    if normalize_routing_weights:
        best = best / best.sum(axis=-1, keepdims=True)
    chosen = at if rows * k < experts else None
    given = tokens
    if chosen is not None:
        given = broadcast_to(tokens.reshape((rows, 1, -1)), (rows, k, tokens.shape[1]))
    h = _experts(given, w1, b1, chosen, rows)
    other = None if w3 is None else _experts(given, w3, b3, chosen, rows)
    if activation_type == "swiglu":
        h = _gated(h, other, swiglu_fusion, activation_alpha, activation_beta, swiglu_limit)
    else:
        h = activated(h, _NAMES[activation_type])
        h = h if other is None else h * other
    y = _experts(h, w2, b2, chosen, rows)
    if chosen is not None:
        total = (y * best.reshape((rows, k, 1)).astype(y.dtype)).sum(axis=1)
    else:
        every = F.one_hot(at, experts, f32) * best.reshape((rows, k, 1))
        total = (y * every.sum(axis=1).mT.reshape((experts, rows, 1)).astype(y.dtype)).sum(axis=0)
    return total.reshape(x.shape).astype(x.dtype, copy=False)


# --- of old: in the standard's own domain --------------------------------------------------------


@op("Affine")
def affine(x: Tensor, *, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    """``alpha x + beta``."""
    return x * alpha + beta


@op("Scale")
def scale(x: Tensor, *, scale: float = 1.0) -> Tensor:
    """``scale x``."""
    return x * scale


@op("ScaledTanh")
def scaled_tanh(x: Tensor, *, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """``alpha tanh(beta x)``."""
    return F.tanh(x * beta) * alpha


@op("ParametricSoftplus")
def parametric_softplus(x: Tensor, *, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """``alpha log(1 + exp(beta x))``."""
    return F.softplus(x * beta) * alpha


@op("ImageScaler")
def image_scaler(x: Tensor, *, bias: tuple[float, ...] = (), scale: float = 1.0) -> Tensor:
    """``scale x`` plus a number per channel."""
    y = x * scale
    if not bias:
        return y
    return y + Tensor(np.array(bias, x.dtype.storage).reshape(-1, *(1,) * (x.ndim - 2)))


@op("Crop")
def crop(x: Tensor, *, border: tuple[int, ...], scale: tuple[int, ...] | None = None) -> Tensor:
    """Images without borders (left, top, right, bottom), or of a size (height, width)."""
    left, top, right, bottom = border
    if scale is not None:
        bottom, right = x.shape[2] - top - scale[0], x.shape[3] - left - scale[1]
    if min(left, top, right, bottom) < 0:
        raise ShapeError(f"border {border} and scale {scale} do not fit images {x.shape}")
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


@op("DynamicSlice", host=(1, 2, 3), raw=True)
def dynamic_slice(
    x: Any, starts: np.ndarray, ends: np.ndarray, axes: np.ndarray | None = None, *, ctx: Call
) -> Any:
    """Slice with its ends as inputs, before the standard had it."""
    return shapes.slice_(x, starts, ends, axes, ctx=ctx)

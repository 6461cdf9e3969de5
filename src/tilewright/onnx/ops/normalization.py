"""Normalisation."""

from __future__ import annotations

from typing import Any

from tilewright.dtypes import DType, f32, f64
from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.nn import functional as F
from tilewright.onnx.registry import Call, op
from tilewright.ops import images, norm
from tilewright.tensor.core import Tensor, apply


def _channels(v: Tensor, rank: int) -> Tensor:
    """A parameter per channel (axis 1), or per element of one example, against x of ``rank``."""
    return v.reshape((-1, *(1,) * (rank - 2))) if v.ndim < 2 else v


def _by_statistics(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * scale + bias``, folded to one factor and one shift."""
    factor = scale / (var + eps).sqrt()
    shift = bias - mean * factor
    y = x * _channels(factor, x.ndim) + _channels(shift, x.ndim)
    return y.astype(x.dtype, copy=False)


def _trained(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    momentum: float,
    axes: tuple[int, ...],
) -> tuple[Tensor, ...]:
    """The result by the batch's statistics, running mean and variance, and these statistics."""
    y, middle, spread = norm.normalize_with_statistics(x.node, axes, eps)
    normal, found = Tensor(y), [Tensor(n).reshape(mean.shape) for n in (middle, spread)]
    result = normal * _channels(scale, x.ndim) + _channels(bias, x.ndim)
    running = [
        (old * momentum + new * (1.0 - momentum)).astype(old.dtype, copy=False)
        for old, new in zip((mean, var), found)
    ]
    saved = [new.astype(old.dtype, copy=False) for old, new in zip((mean, var), found)]
    return (result.astype(x.dtype, copy=False), *running, *saved)


@op("BatchNormalization", since=14)
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    ctx: Call,
) -> Any:
    """x (N, C, ...) normalised per channel by given statistics, or in training by the batch's."""
    if not training_mode:
        return _by_statistics(x, scale, bias, mean, var, epsilon)
    axes = (0, *range(2, x.ndim))
    return _trained(x, scale, bias, mean, var, epsilon, momentum, axes)[: max(ctx.n_outputs, 1)]


@op("BatchNormalization", since=9)
def batch_normalization_9(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    ctx: Call,
) -> Any:
    """Before version 14 several wanted outputs meant training."""
    axes = (0, *range(2, x.ndim))
    if ctx.n_outputs < 2:
        return _by_statistics(x, scale, bias, mean, var, epsilon)
    return _trained(x, scale, bias, mean, var, epsilon, momentum, axes)[: ctx.n_outputs]


@op("BatchNormalization", since=7)
def batch_normalization_7(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    ctx: Call,
) -> Any:
    """Before version 9 ``spatial=0`` meant statistics per element of an example."""
    if ctx.n_outputs < 2:
        return _by_statistics(x, scale, bias, mean, var, epsilon)
    axes = (0, *range(2, x.ndim)) if spatial else (0,)
    return _trained(x, scale, bias, mean, var, epsilon, momentum, axes)[: ctx.n_outputs]


@op("BatchNormalization", since=1)
def batch_normalization_1(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    is_test: int = 0,
    consumed_inputs: Any = None,
    ctx: Call,
) -> Any:
    """Before version 7 ``is_test`` said whether the given statistics are used."""
    if is_test or ctx.n_outputs < 2:
        return _by_statistics(x, scale, bias, mean, var, epsilon)
    axes = (0, *range(2, x.ndim)) if spatial else (0,)
    return _trained(x, scale, bias, mean, var, epsilon, momentum, axes)[: ctx.n_outputs]


@op("InstanceNormalization")
def instance_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    epsilon: float = 1e-5,
    consumed_inputs: Any = None,
) -> Tensor:
    """Each plane of x (N, C, ...) normalised."""
    return apply(images.instance_norm, x, scale, bias, eps=epsilon)


def stash(stash_type: int) -> DType:
    """The dtype in which statistics are computed (f32 where a 16-bit type is named)."""
    return f64 if stash_type == 11 else f32


@op("GroupNormalization", since=18)
def group_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """Groups of channels normalised; scale and bias per channel (before version 21 per group)."""

    def build(n: Node, weight: Node, shift: Node) -> Node:
        return images.group_norm(n, num_groups, weight, shift, epsilon, stash(stash_type))

    return apply(build, x, scale, bias)


def layer_norm(
    x: Tensor, scale: Tensor | None, bias: Tensor | None, axis: int, eps: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised from ``axis`` on, scaled and shifted in f32 at least; mean and 1 / deviation."""
    first = axis + x.ndim if axis < 0 else axis
    if not 0 <= first < max(x.ndim, 1):
        raise ShapeError(f"axis {axis} is not one of x {x.shape}")
    wide = x if x.dtype.bits >= 32 else x.astype(f32)
    axes = tuple(range(first, x.ndim))
    y, mean, var = norm.normalize_with_statistics(wide.node, axes, eps, centred)
    result = Tensor(y)
    if scale is not None:
        result = result * scale.astype(wide.dtype, copy=False)
    if bias is not None:
        result = result + bias.astype(wide.dtype, copy=False)
    deviation = (Tensor(var) + eps).rsqrt()
    return result.astype(x.dtype, copy=False), Tensor(mean), deviation


@op("LayerNormalization", since=17)
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
    """x normalised over the axes from ``axis`` on (Ba et al. 2016)."""
    found = layer_norm(x, scale, bias, axis, epsilon, True)
    return found[0] if ctx.n_outputs < 2 else found[: ctx.n_outputs]


@op("RMSNormalization", since=23)
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """``x / sqrt(mean(x^2) + epsilon) * scale`` over the axes from ``axis`` on."""
    return layer_norm(x, scale, None, axis, epsilon, False)[0]


@op("LRN")
def lrn(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """Channels divided by a power of their neighbourhood's energy (Krizhevsky et al. 2012)."""
    return apply(images.local_response_norm, x, size=size, alpha=alpha, beta=beta, bias=bias)


@op("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """x over its L1 or L2 norm along ``axis``; zeros stay zero."""
    if p not in (1, 2):
        raise ShapeError(f"LpNormalization: p is 1 or 2, got {p}")
    if p == 1:
        size = abs(x).sum(axis=axis, keepdims=True)
    else:
        size = (x * x).sum(axis=axis, keepdims=True).sqrt()
    return F.where(size == 0, 0.0, x / size)


@op("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, *, axes: tuple[int, ...] = (0, 2, 3)) -> Tensor:
    """``(x - mean) / (deviation + 1e-9)`` over ``axes``."""
    mean = x.mean(axis=tuple(axes), keepdims=True)
    near = x - mean
    return near / ((near * near).mean(axis=tuple(axes), keepdims=True).sqrt() + 1e-9)

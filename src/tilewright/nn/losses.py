"""Loss functions, named and defined as in PyTorch; computed in f32 at least."""

from __future__ import annotations

import math

from tilewright.dtypes import i64
from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.nn.precision import widened
from tilewright.ops import elementwise as ew
from tilewright.ops import indexing, reductions, views
from tilewright.tensor.bounds import checked_ids
from tilewright.tensor.core import Tensor, apply
from tilewright.tensor.elementwise import abs as absolute
from tilewright.tensor.elementwise import clip, exp, log, maximum, relu, softplus, where

__all__ = [
    "binary_cross_entropy_with_logits",
    "cosine_embedding_loss",
    "cosine_similarity",
    "cross_entropy",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "mse_loss",
    "nll_loss",
    "smooth_l1_loss",
]


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return losses.mean()
    if reduction == "sum":
        return losses.sum()
    if reduction == "none":
        return losses
    raise ValueError(f'reduction is "mean", "sum" or "none", got {reduction!r}')


def _paired(name: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != y.shape:
        raise ShapeError(f"{name}: the two have one shape, got {x.shape} and {y.shape}")
    return widened(x), widened(y)


def _at_targets(scores: Node, targets: Node) -> Node:
    """``scores[i, targets[i]]`` of (rows, classes) scores; 0 where the target is ignored.

    By comparison, not by a gather: then it is one pass with its neighbours, and so is its gradient.
    """
    column = ew.iota(views.sizes_of(scores), 1, i64)
    ids = views.reshape(ew.cast(targets, i64), (*targets.shape, 1))
    return reductions.sum(ew.where(ew.eq(column, ids), scores, ew.zeros_like(scores)), (1,))


def _targets(op: str, targets: Tensor, classes: int, ignored: int) -> Tensor:
    """``targets``, each of them a class or ``ignored``."""
    return checked_ids(targets, 0, classes, f"{op}: target", f"{classes} classes", ignored)


def _weight_of(weight: Tensor, classes: Tensor) -> Tensor:
    """The weight of each class, which are known to exist."""
    return apply(indexing.take, weight, classes.astype(i64), axis=0)


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Negative log likelihood of ``targets`` under softmax(logits).

    Args:
        logits: (..., classes): unlike PyTorch's, the classes are always the last axis.
        targets: (...) integers, or (..., classes) probabilities.
        weight: (classes,), of each class.
        ignore_index: integer targets equal to it do not count.
        label_smoothing: this share of the target is spread evenly over the classes.
        reduction: ``"mean"`` (weighted by the targets' weights), ``"sum"`` or ``"none"``.

    Raises :class:`BoundsError` for a target that is no class, here or when it is computed.
    """
    logits = widened(logits)
    classes = logits.shape[-1] if logits.ndim else 0
    if not targets.dtype.is_integer:
        return _soft_cross_entropy(logits, targets, weight, label_smoothing, reduction)
    if logits.ndim == 0 or logits.shape[:-1] != targets.shape:
        raise ShapeError(
            f"cross_entropy: logits {logits.shape} (..., classes) with targets {targets.shape}"
        )
    targets = _targets("cross_entropy", targets, classes, ignore_index)
    rows = math.prod(targets.shape)
    flat, ids = logits.reshape((rows, classes)), targets.reshape((rows,))

    def nll(z: Node, t: Node) -> Node:
        return ew.sub(reductions.logsumexp(z, (1,)), _at_targets(z, t))

    counted = ids != ignore_index
    losses = where(counted, apply(nll, flat, ids), 0.0)
    weights = counted.astype(losses.dtype)
    if weight is not None:
        weight = widened(weight)
        weights = where(counted, _weight_of(weight, where(counted, ids, 0)), 0.0)
        losses = losses * weights
    if label_smoothing:
        every = flat.log_softmax(1)
        even = -(every if weight is None else every * weight).sum(axis=1)
        even = where(counted, even, 0.0)
        losses = losses * (1 - label_smoothing) + even * (label_smoothing / classes)
    if reduction == "mean":
        return losses.sum() / weights.sum()
    return _reduced(losses.reshape(targets.shape), reduction)


def _soft_cross_entropy(
    logits: Tensor, targets: Tensor, weight: Tensor | None, smoothing: float, reduction: str
) -> Tensor:
    logits, targets = _paired("cross_entropy", logits, targets)
    if smoothing:
        targets = targets * (1 - smoothing) + smoothing / logits.shape[-1]
    terms = logits.log_softmax(-1) * targets
    if weight is not None:
        terms = terms * weight
    losses = -terms.sum(axis=-1)
    return _reduced(losses, reduction)


def nll_loss(
    log_probs: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """``-log_probs`` at ``targets``: (..., classes) and (...) integers; as in cross_entropy."""
    if log_probs.ndim == 0 or log_probs.shape[:-1] != targets.shape:
        raise ShapeError(f"nll_loss: log_probs {log_probs.shape} with targets {targets.shape}")
    targets = _targets("nll_loss", targets, log_probs.shape[-1], ignore_index)
    rows = math.prod(targets.shape)
    flat, ids = widened(log_probs).reshape((rows, log_probs.shape[-1])), targets.reshape((rows,))
    counted = ids != ignore_index
    losses = -apply(_at_targets, flat, ids)
    weights = counted.astype(losses.dtype)
    if weight is not None:
        weights = where(counted, _weight_of(weight, where(counted, ids, 0)), 0.0)
    losses = where(counted, losses * weights, 0.0)
    if reduction == "mean":
        return losses.sum() / weights.sum()
    return _reduced(losses.reshape(targets.shape), reduction)


def mse_loss(x: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """Squared differences."""
    x, y = _paired("mse_loss", x, y)
    d = x - y
    return _reduced(d * d, reduction)


def l1_loss(x: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """Absolute differences."""
    x, y = _paired("l1_loss", x, y)
    return _reduced(absolute(x - y), reduction)


def huber_loss(x: Tensor, y: Tensor, delta: float = 1.0, reduction: str = "mean") -> Tensor:
    """``d^2 / 2`` within ``delta``, else ``delta * (|d| - delta / 2)`` (Huber 1964)."""
    x, y = _paired("huber_loss", x, y)
    d = x - y
    near = clip(d, -delta, delta)
    return _reduced(near * (d - near * 0.5), reduction)


def smooth_l1_loss(x: Tensor, y: Tensor, beta: float = 1.0, reduction: str = "mean") -> Tensor:
    """:func:`huber_loss` over ``beta``; the absolute difference for ``beta = 0``."""
    if beta == 0:
        return l1_loss(x, y, reduction)
    return huber_loss(x, y, beta, reduction) / beta


def binary_cross_entropy_with_logits(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``-(t log s + (1 - t) log(1 - s))`` with ``s = sigmoid(logits)``, without overflow."""
    z, t = _paired("binary_cross_entropy_with_logits", logits, targets)
    if pos_weight is None:
        losses = relu(z) - z * t + softplus(-absolute(z))
    else:
        losses = (1.0 - t) * z + (t * (pos_weight - 1.0) + 1.0) * softplus(-z)
    return _reduced(losses if weight is None else losses * weight, reduction)


def kl_div(
    log_probs: Tensor, targets: Tensor, log_target: bool = False, reduction: str = "batchmean"
) -> Tensor:
    """``targets * (log(targets) - log_probs)``; ``"batchmean"`` divides the sum by the rows.

    0 where a target is 0. ``log_target``: the targets are logarithms.
    """
    x, t = _paired("kl_div", log_probs, targets)
    if log_target:
        losses = exp(t) * (t - x)
    else:
        some = t > 0.0
        losses = where(some, t * (log(where(some, t, 1.0)) - x), 0.0)
    if reduction == "batchmean":
        return losses.sum() / x.shape[0]
    return _reduced(losses, reduction)


def cosine_similarity(x: Tensor, y: Tensor, axis: int = -1, eps: float = 1e-8) -> Tensor:
    """``x . y / (|x| |y|)`` along ``axis``; each length counts as ``eps`` at least."""
    x, y = widened(x), widened(y)
    small = eps * eps
    dot = (x * y).sum(axis=axis)
    lengths = [maximum((v * v).sum(axis=axis), _like(small, v)).sqrt() for v in (x, y)]
    return dot / (lengths[0] * lengths[1])


def _like(value: float, x: Tensor) -> Tensor:
    from tilewright.tensor.creation import asarray

    return asarray(value, dtype=x.dtype)


def cosine_embedding_loss(
    x: Tensor, y: Tensor, signs: Tensor, margin: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """``1 - cos`` where ``signs`` is 1, ``max(0, cos - margin)`` where it is -1."""
    cos = cosine_similarity(x, y)
    return _reduced(where(signs > 0, 1.0 - cos, relu(cos - margin)), reduction)

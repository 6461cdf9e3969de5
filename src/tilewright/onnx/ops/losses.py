"""Losses."""

from __future__ import annotations

from typing import Any

from tilewright.errors import ShapeError
from tilewright.nn import functional as F
from tilewright.onnx.ops.gathers import rows_at
from tilewright.onnx.registry import Call, op
from tilewright.ops import indexing
from tilewright.tensor.core import Tensor, apply
from tilewright.tensor.elementwise import where
from tilewright.tensor.manipulation import expand_dims, squeeze


def _nll(
    logs: Tensor, target: Tensor, weight: Tensor | None, ignore: int | None, reduction: str
) -> Tensor:
    """``-weight[t] * logs[n, t, ...]``; what is ignored neither counts nor weighs."""
    if target.ndim != logs.ndim - 1:
        raise ShapeError(
            f"scores (N, C, ...) want targets (N, ...), got {logs.shape}, {target.shape}"
        )
    safe = target if ignore is None else where(target == ignore, target * 0, target)
    picked = squeeze(apply(indexing.take_along_axis, logs, expand_dims(safe, axis=1), axis=1), 1)
    weights = None
    if weight is not None:
        weights = rows_at(weight, safe)
    if ignore is not None:
        used = (target != ignore).astype(logs.dtype)
        weights = used if weights is None else weights * used
    loss = -picked if weights is None else -picked * weights
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction != "mean":
        raise ShapeError(f"reduction is none, sum or mean, got {reduction!r}")
    return loss.mean() if weights is None else loss.sum() / weights.sum()


@op("NegativeLogLikelihoodLoss", since=12)
def nll_loss(
    logs: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The negative logarithm of what the right classes were given: logs (N, C, ...)."""
    return _nll(logs, target, weight, ignore_index, reduction)


@op("SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy_loss(
    scores: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
    ctx: Call,
) -> Any:
    """:func:`nll_loss` of the log-softmax of scores (N, C, ...), and that."""
    logs = F.log_softmax(scores, axis=1)
    loss = _nll(logs, labels, weights, ignore_index, reduction)
    return (loss, logs) if ctx.n_outputs > 1 else loss

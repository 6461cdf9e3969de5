"""What the operators of ``ai.onnx.ml`` share: inputs as floats, scores, labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from tilewright.dtypes import f32, f64
from tilewright.errors import FormatError, UnsupportedError
from tilewright.graph import Node
from tilewright.onnx.ops.common import tensor_of
from tilewright.onnx.registry import Call
from tilewright.ops import elementwise as ew
from tilewright.ops import indexing, reductions
from tilewright.tensor.core import Tensor, apply

__all__ = ["DOMAIN", "as_rows", "labelled", "labels_of", "transformed"]

DOMAIN: Final = "ai.onnx.ml"


def as_rows(x: Tensor) -> Tensor:
    """(N, F) in float32, float64 as it is; a vector is one row."""
    if x.dtype is not f64:
        x = apply(ew.cast, x, dtype=f32)
    return x.reshape((1, -1)) if x.ndim == 1 else x


def labels_of(integers: Sequence[int] | None, strings: Sequence[str] | None) -> np.ndarray | None:
    """The labels of classes, of which there is one kind; None when there are none."""
    if integers and strings:
        raise FormatError("classes are labelled by integers or by strings, not both")
    if strings:
        return np.array(strings, object)
    return np.array(integers, np.int64) if integers else None


def labelled(
    call: Call, labels: np.ndarray | None, places: Tensor, scores: Tensor
) -> tuple[Any, Tensor]:
    """The label of each class number, strings on the host; and the scores."""
    if labels is None:
        return places, scores
    if labels.dtype == object:
        call.keep(scores)  # what is there before the program is cut
        return labels[call.value(places)], scores
    return apply(indexing.take, tensor_of(labels), places), scores


def transformed(scores: Node, how: str) -> Node:
    """Scores (N, C) by ``post_transform``, the formulas of the standard's runtimes."""
    if how in ("", "NONE"):
        return scores
    if how == "LOGISTIC":
        return ew.sigmoid(scores)
    if how == "SOFTMAX":
        return reductions.softmax(scores, 1)
    if how == "SOFTMAX_ZERO":
        return _softmax_zero(scores)
    if how == "PROBIT":
        return _probit(scores)
    raise UnsupportedError(f"post_transform {how!r} is not known")


def _softmax_zero(scores: Node) -> Node:
    """Softmax that leaves scores of (nearly) 0 where they are."""
    top = reductions.max(scores, 1, keepdims=True)
    small = ew.le(ew.abs(scores), ew.literal(1e-7, scores))
    powers = ew.where(small, ew.mul(scores, ew.exp(ew.neg(top))), ew.exp(ew.sub(scores, top)))
    total = reductions.sum(powers, 1, keepdims=True)
    nothing = ew.eq(total, ew.literal(0, total))
    return ew.where(nothing, ew.literal(0.5, scores), ew.div(powers, total))


def _probit(scores: Node) -> Node:
    """``sqrt(2) erfinv(2 x - 1)`` by Winitzki's approximation (2008), which runtimes use."""
    x = ew.sub(ew.mul(scores, ew.literal(2, scores)), ew.literal(1, scores))
    one = ew.literal(1, x)
    inside = ew.mul(ew.sub(one, x), ew.add(one, x))
    log = ew.log(inside)
    half = ew.add(ew.literal(2 / (math.pi * 0.147), x), ew.mul(log, ew.literal(0.5, x)))
    root = ew.sqrt(ew.sub(ew.square(half), ew.mul(log, ew.literal(1 / 0.147, x))))
    size = ew.mul(ew.sqrt(ew.sub(root, half)), ew.literal(1.41421356, x))
    found = ew.copysign(size, x)
    return ew.where(ew.eq(inside, ew.literal(0, x)), ew.literal(0, x), found)

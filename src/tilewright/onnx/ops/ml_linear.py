"""Linear models and support vector machines of ``ai.onnx.ml``, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from tilewright.dtypes import f32, i64
from tilewright.errors import FormatError, ShapeError, UnsupportedError
from tilewright.graph import Node
from tilewright.onnx.ops.common import tensor_of
from tilewright.onnx.ops.ml_common import DOMAIN, labelled, labels_of, transformed
from tilewright.onnx.registry import Call, op
from tilewright.ops import coupling, reductions, views
from tilewright.ops import elementwise as ew
from tilewright.ops.gemm import bmm
from tilewright.tensor.core import Tensor, apply


def _rows(x: Tensor) -> Tensor:
    """(N, F) in float32; a vector is one row."""
    wide = apply(ew.cast, x, dtype=f32)
    return wide.reshape((1, -1)) if x.ndim == 1 else wide


def _constant(values: Any) -> Node:
    return tensor_of(np.asarray(values, np.float32)).node


def _linear(x: Node, coefficients: np.ndarray, intercepts: Sequence[float]) -> Node:
    """x (N, F) times coefficients (targets, F), plus intercepts."""
    if coefficients.shape[1] != x.shape[1]:
        raise ShapeError(f"coefficients are for {coefficients.shape[1]} features, got {x.shape[1]}")
    scores = bmm(x, _constant(np.ascontiguousarray(coefficients.T)))
    return ew.add(scores, _constant(intercepts)) if len(intercepts) else scores


def _matrix(values: Sequence[float], rows: int, what: str) -> np.ndarray:
    if rows < 1 or len(values) % rows:
        raise FormatError(f"{len(values)} {what} cannot be cut into {rows} rows")
    return np.asarray(values, np.float32).reshape(rows, -1)


@op("LinearRegressor", domain=DOMAIN)
def linear_regressor(
    x: Tensor,
    *,
    coefficients: Sequence[float] = (),
    intercepts: Sequence[float] = (),
    post_transform: str = "NONE",
    targets: int = 1,
) -> Tensor:
    """``x @ coefficients^T + intercepts``: (N, targets)."""
    table = _matrix(coefficients, targets, "coefficients")
    return apply(lambda n: transformed(_linear(n, table, intercepts), post_transform), _rows(x))


@op("LinearClassifier", domain=DOMAIN)
def linear_classifier(
    x: Tensor,
    *,
    classlabels_ints: Sequence[int] | None = None,
    classlabels_strings: Sequence[str] | None = None,
    coefficients: Sequence[float],
    intercepts: Sequence[float] = (),
    multi_class: int = 0,
    post_transform: str = "NONE",
    ctx: Call,
) -> tuple[Any, Tensor]:
    """The label of the class with the greatest score, and the scores.

    One row of coefficients with two labels scores the second; the first gets its negative.
    """
    rows = _rows(x)
    labels = labels_of(classlabels_ints, classlabels_strings)
    count = len(coefficients) // max(rows.shape[1], 1)
    table = _matrix(coefficients, max(count, 1), "coefficients")
    scores = apply(_linear, rows, coefficients=table, intercepts=intercepts)
    if count == 1 and (labels is None or len(labels) < 2):
        found = apply(lambda node: transformed(node, post_transform), scores)
        limit = 0.0 if post_transform == "NONE" else 0.5

        def chosen(node: Node) -> Node:
            flat = views.reshape(node, (rows.shape[0],))
            return ew.cast(ew.ge(flat, ew.literal(limit, flat)), labels_type)

        labels_type = tensor_of(np.zeros(1, np.int64)).dtype
        if labels is not None:
            nothing = np.array("", object) if labels.dtype == object else np.array(0)
            labels = np.array([nothing.item(), labels[0]], labels.dtype)
        return labelled(ctx, labels, apply(chosen, found), found)
    if count == 1:
        scores = apply(lambda node: views.concat([ew.neg(node), node], 1), scores)
    found = apply(lambda node: transformed(node, post_transform), scores)
    places = apply(lambda node: reductions.argmax(node, 1), scores)
    return labelled(ctx, labels, places, found)


# --- support vector machines ---------------------------------------------------------------------


def _kernel(x: Node, vectors: np.ndarray, kind: str, params: Sequence[float]) -> Node:
    """The kernel of each row of x (N, F) and each of vectors (S, F): (N, S)."""
    if vectors.shape[1] != x.shape[1]:
        raise ShapeError(f"support vectors have {vectors.shape[1]} features, got {x.shape[1]}")
    gamma, coef0, degree = (*params, 0.0, 0.0, 0.0)[:3]
    products = bmm(x, _constant(np.ascontiguousarray(vectors.T)))
    if kind == "LINEAR":
        return products
    if kind == "RBF":
        own = reductions.sum(ew.square(x), 1, keepdims=True)
        theirs = _constant((vectors.astype(np.float64) ** 2).sum(1))
        distance = ew.sub(ew.add(own, theirs), ew.mul(products, ew.literal(2, products)))
        distance = ew.maximum(distance, ew.literal(0, distance))
        return ew.exp(ew.mul(distance, ew.literal(-gamma, distance)))
    moved = ew.add(ew.mul(products, ew.literal(gamma, products)), ew.literal(coef0, products))
    if kind == "POLY":
        return ew.pow(moved, ew.literal(degree, moved))
    if kind == "SIGMOID":
        return ew.tanh(moved)
    raise UnsupportedError(f"kernel_type is LINEAR, POLY, RBF or SIGMOID, got {kind!r}")


@op("SVMRegressor", domain=DOMAIN)
def svm_regressor(
    x: Tensor,
    *,
    coefficients: Sequence[float] = (),
    kernel_params: Sequence[float] = (),
    kernel_type: str = "LINEAR",
    n_supports: int = 0,
    one_class: int = 0,
    post_transform: str = "NONE",
    rho: Sequence[float] = (0.0,),
    support_vectors: Sequence[float] = (),
) -> Tensor:
    """The weighted sum of kernels and ``rho``: (N, 1); with ``one_class`` its sign."""

    def build(node: Node) -> Node:
        if n_supports:
            vectors = _matrix(support_vectors, n_supports, "numbers of support vectors")
            node = _kernel(node, vectors, kernel_type, kernel_params)
        score = _linear(node, _matrix(coefficients, 1, "coefficients"), rho[:1])
        if one_class:
            inside = ew.gt(score, ew.literal(0, score))
            return ew.where(inside, ew.literal(1, score), ew.literal(-1, score))
        return transformed(score, post_transform)

    return apply(build, _rows(x))


@op("SVMClassifier", domain=DOMAIN)
def svm_classifier(
    x: Tensor,
    *,
    classlabels_ints: Sequence[int] | None = None,
    classlabels_strings: Sequence[str] | None = None,
    coefficients: Sequence[float] = (),
    kernel_params: Sequence[float] = (),
    kernel_type: str = "LINEAR",
    post_transform: str = "NONE",
    prob_a: Sequence[float] = (),
    prob_b: Sequence[float] = (),
    rho: Sequence[float] = (0.0,),
    support_vectors: Sequence[float] = (),
    vectors_per_class: Sequence[int] = (),
    ctx: Call,
) -> tuple[Any, Tensor]:
    """The label that wins most duels of two classes, and the duels' scores (or probabilities)."""
    rows = _rows(x)
    labels = labels_of(classlabels_ints, classlabels_strings)
    classes = max(0 if labels is None else len(labels), 1)
    positive = min(coefficients, default=0) >= 0
    vectors = sum(vectors_per_class)
    if not vectors:
        table = _matrix(coefficients, classes, "coefficients")
        scores = apply(_linear, rows, coefficients=table, intercepts=[rho[0]] * classes)
        best = scores
    else:
        duels, votes = _duels(coefficients, vectors_per_class)
        if len(rho) != duels.shape[0]:
            raise FormatError(f"{duels.shape[0]} duels of classes have {len(rho)} numbers rho")
        support = _matrix(support_vectors, vectors, "numbers of support vectors")

        def fight(node: Node) -> Node:
            return _linear(_kernel(node, support, kernel_type, kernel_params), duels, rho)

        scores = apply(fight, rows)
        best = apply(lambda node: _counted(node, votes), scores)
        if prob_a:
            scores = apply(lambda n: coupling.coupled(_shares(n, prob_a, prob_b), classes), scores)
    places = apply(lambda node: reductions.argmax(node, 1), best)
    several = scores.shape[1] > 1
    found = apply(lambda n: transformed(n, post_transform), scores) if several else scores
    if len(rho) == 1:
        places, labels = _of_one_score(best, places, labels, bool(prob_a), positive)
        if not several:
            found = apply(lambda node: _pair(node, classes == 2, post_transform), scores)
    return labelled(ctx, labels, places, found)


def _duels(coefficients: Sequence[float], counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """For each pair of classes the weights of all vectors, and who gets the vote.

    The weights of class i's vectors against class j are row ``j - 1`` (i < j), or row ``j``.
    """
    table = _matrix(coefficients, len(counts) - 1, "coefficients")
    ends = np.cumsum(counts)
    starts = ends - np.asarray(counts)
    pairs = list(combinations(range(len(counts)), 2))
    duels = np.zeros((len(pairs), table.shape[1]), np.float32)
    votes = np.zeros((2, len(pairs), len(counts)), np.float32)
    for duel, (i, j) in enumerate(pairs):
        duels[duel, starts[i] : ends[i]] = table[j - 1, starts[i] : ends[i]]
        duels[duel, starts[j] : ends[j]] = table[i, starts[j] : ends[j]]
        votes[0, duel, i] = votes[1, duel, j] = 1
    return duels, votes


def _counted(scores: Node, votes: np.ndarray) -> Node:
    """How many duels each class wins."""
    won = ew.cast(ew.gt(scores, ew.literal(0, scores)), f32)
    lost = ew.sub(ew.literal(1, won), won)
    return ew.add(bmm(won, _constant(votes[0])), bmm(lost, _constant(votes[1])))


def _shares(scores: Node, a: Sequence[float], b: Sequence[float]) -> Node:
    """The probability that the first class of each duel wins (Platt 1999)."""
    line = ew.add(ew.mul(scores, _constant(a)), _constant(b))
    return ew.clip(ew.sigmoid(ew.neg(line)), ew.literal(1e-7, line), ew.literal(1 - 1e-7, line))


def _of_one_score(
    best: Tensor, places: Tensor, labels: np.ndarray | None, probable: bool, positive: bool
) -> tuple[Tensor, np.ndarray | None]:
    """Which of two classes a machine with one duel (or one score) means."""
    if labels is not None and len(labels) == 2:
        if best.shape[1] == 1 and not probable:
            limit = 0.5 if positive else 0.0
            places = apply(lambda n: _above(n, limit), best)
        return places, labels
    if labels is None or len(labels) < 2:
        above = apply(lambda n: _above(reductions.max(n, 1, keepdims=True), 0.0), best)
        return above, None
    return places, labels


def _above(score: Node, limit: float) -> Node:
    flat = views.reshape(score, (score.shape[0],))
    return ew.cast(ew.gt(flat, ew.literal(limit, flat)), i64)


def _pair(score: Node, two: bool, how: str) -> Node:
    """One score (N, 1) as those of two classes."""
    if how == "PROBIT":
        return transformed(score, how)
    if not two:
        return score
    return transformed(views.concat([ew.neg(score), score], 1), how)

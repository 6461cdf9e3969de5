"""Tree ensembles of ``ai.onnx.ml``: classifiers, regressors, and the operator that replaces both.

Every comparison becomes ``x <= threshold``: the others by exchanging branches, by the next smaller
threshold, equality by two nodes, membership by a search tree. Trees run as one kernel
(:mod:`tilewright.ops.forest`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np

from tilewright.dtypes import f32
from tilewright.errors import FormatError, ShapeError, UnsupportedError
from tilewright.formats.onnx import NodeDef
from tilewright.graph import Node
from tilewright.onnx.ops.common import tensor_of
from tilewright.onnx.ops.ml_common import DOMAIN, as_rows, labelled, labels_of, transformed
from tilewright.onnx.registry import Call, op
from tilewright.ops import elementwise as ew
from tilewright.ops import reductions, views
from tilewright.ops.forest import forest
from tilewright.tensor.core import Tensor, apply

_MODES: Final = (
    "BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ",
    "BRANCH_MEMBER", "LEAF",
)  # fmt: skip
_LEQ, _LT, _GTE, _GT, _EQ, _NEQ, _MEMBER, _LEAF = range(8)
_TRANSFORMS: Final = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
_AGGREGATES: Final = ("AVERAGE", "SUM", "MIN", "MAX")


@dataclass
class _Trees:
    """Nodes of all trees; branches are numbers of nodes, leaves lead to themselves."""

    mode: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    yes: np.ndarray
    no: np.ndarray
    missing: np.ndarray
    roots: np.ndarray

    def append(self, **columns: Any) -> np.ndarray:
        """More nodes; returns their numbers."""
        count = len(columns["feature"])
        first = len(self.mode)
        for name in ("mode", "feature", "threshold", "yes", "no", "missing"):
            old = getattr(self, name)
            new = np.broadcast_to(np.asarray(columns[name]), (count,)).astype(old.dtype)
            setattr(self, name, np.concatenate([old, new]))
        return np.arange(first, first + count)


def _members(trees: _Trees, values: Sequence[np.ndarray]) -> None:
    """Membership nodes become search trees over their values."""
    places = np.flatnonzero(trees.mode == _MEMBER)
    if len(places) != len(values):
        raise FormatError(f"{len(places)} nodes ask for members, {len(values)} sets are given")
    for at, members in zip(places.tolist(), values):
        _search(trees, at, np.unique(members), trees.yes[at], trees.no[at], trees.missing[at])


def _search(trees: _Trees, at: int, members: np.ndarray, yes: int, no: int, missing: int) -> None:
    """Node ``at`` asks whether an element is one of ``members`` (sorted)."""
    trees.mode[at] = _EQ
    if len(members) < 2:  # the last one decides where missing values go
        trees.threshold[at] = members[0] if len(members) else np.nan
        trees.missing[at] = missing
        return
    half = len(members) // 2
    feature = trees.feature[at]
    low, high = trees.append(
        mode=_EQ, feature=[feature, feature], threshold=0, yes=yes, no=no, missing=0
    )
    trees.mode[at] = _LEQ
    trees.threshold[at], trees.missing[at] = members[half - 1], 0
    trees.yes[at], trees.no[at] = low, high
    _search(trees, low, members[:half], yes, no, missing)
    _search(trees, high, members[half:], yes, no, missing)


def _only_at_most(trees: _Trees) -> None:
    """Every node asks for ``x <= threshold``."""
    trees.missing[trees.mode == _NEQ] = 1  # a missing value is not equal to anything
    swap = np.isin(trees.mode, (_GT, _GTE, _NEQ))
    trees.yes, trees.no = np.where(swap, trees.no, trees.yes), np.where(swap, trees.yes, trees.no)
    trees.missing = np.where(swap, 1 - trees.missing, trees.missing)
    less = np.isin(trees.mode, (_LT, _GTE))
    trees.threshold = np.where(less, _just_below(trees.threshold), trees.threshold)
    equal = np.flatnonzero(np.isin(trees.mode, (_EQ, _NEQ)))
    if len(equal):  # at most the threshold, and then not below it
        below = trees.append(
            mode=_LEQ,
            feature=trees.feature[equal],
            threshold=_just_below(trees.threshold[equal]),
            yes=trees.no[equal],
            no=trees.yes[equal],
            missing=0,
        )
        trees.yes[equal] = below


def _just_below(threshold: np.ndarray) -> np.ndarray:
    """The next smaller numbers: ``x < t`` is ``x <= these``; below -inf there is nothing."""
    lowest = threshold == -np.inf
    return np.where(lowest, np.nan, np.nextafter(threshold, threshold.dtype.type(-np.inf)))


def _depths(trees: _Trees) -> np.ndarray:
    """How deep each tree is."""
    depths = np.zeros(len(trees.roots), np.int64)
    level, tree = trees.roots.copy(), np.arange(len(trees.roots))
    for depth in range(len(trees.mode) + 1):
        inner = trees.yes[level] != level
        level, tree = level[inner], tree[inner]
        if not len(level):
            return depths
        depths[tree] = depth + 1
        level = np.concatenate([trees.yes[level], trees.no[level]])
        tree = np.concatenate([tree, tree])
        level, kept = np.unique(level, return_index=True)
        tree = tree[kept]
    raise FormatError("the nodes of a tree lie in a circle")


@dataclass
class _Votes:
    """What leaves give: for each vote the node, the target and the weight."""

    node: np.ndarray
    target: np.ndarray
    weight: np.ndarray


@dataclass
class _Forest:
    """An ensemble as the kernel takes it."""

    tables: dict[str, Node]
    targets: int
    aggregate: str
    trees: int
    features: int
    votes: str
    missing: bool
    depth: int

    def run(self, x: Tensor) -> Tensor:
        """The aggregated votes: (N, targets), in the dtype of x (N, F)."""
        if x.shape[1] < self.features:
            raise ShapeError(f"nodes ask for {self.features} features, got {x.shape[1]}")
        return apply(self._run, x)

    def _run(self, x: Node) -> Node:
        join = {"MIN": "min", "MAX": "max"}.get(self.aggregate, "add")
        found = forest(x, self.tables, self.targets, join, self.votes, self.missing, self.depth)
        if join != "add":  # a target that got no vote
            found = ew.where(ew.isinf(found), ew.literal(0, found), found)
        if self.aggregate == "AVERAGE":
            found = ew.div(found, ew.literal(self.trees, found))
        return found


def _planted(
    trees: _Trees, votes: _Votes, targets: int, aggregate: str, storage: np.dtype
) -> _Forest:
    """The kernel's tables for trees and their votes."""
    if aggregate not in _AGGREGATES:
        raise UnsupportedError(f"aggregate_function {aggregate!r} is not known")
    if not np.isin(trees.mode, range(8)).all():
        raise UnsupportedError("a node compares in a way that is not known")
    if votes.target.size and not 0 <= votes.target.min() <= votes.target.max() < targets:
        raise FormatError(f"votes are for targets up to {votes.target.max()} of {targets}")
    if trees.feature.size and trees.feature.min() < 0:
        raise FormatError("a node asks for a feature below 0")
    _only_at_most(trees)
    depths = _depths(trees)
    count = len(trees.mode)
    order = np.argsort(votes.node, kind="stable")
    node, target = votes.node[order], votes.target[order]
    weight = votes.weight[order].astype(storage)
    starts = np.searchsorted(node, np.arange(count + 1))
    leaves = trees.yes == np.arange(count)
    given = np.diff(starts)[leaves]
    order_of = np.tile(np.arange(targets), len(given))
    kind = "pairs"
    if np.all(given == targets) and np.array_equal(target, order_of):
        kind = "single" if targets == 1 else "dense"
    if kind == "single":
        spread = np.zeros(count, storage)
        spread[node] = weight
        weight = spread
    columns = {
        "feature": trees.feature, "threshold": trees.threshold.astype(storage), "yes": trees.yes,
        "no": trees.no, "missing": trees.missing, "roots": trees.roots, "depths": depths,
        "weight": weight, "target": target, "starts": starts,
    }  # fmt: skip
    tables = {
        k: tensor_of(v if k in ("threshold", "weight") else v.astype(np.int32)).node
        for k, v in columns.items()
    }
    return _Forest(
        tables,
        targets,
        aggregate,
        len(trees.roots),
        int(trees.feature.max(initial=-1)) + 1,
        kind,
        bool(trees.missing.any()),
        int(depths.max(initial=0)),
    )


_PLANTED: Final[WeakKeyDictionary[NodeDef, dict[np.dtype, _Forest]]] = WeakKeyDictionary()


def _once(call: Call, x: Tensor, plant: Callable[[np.dtype], _Forest]) -> _Forest:
    """The forest of a node for elements like those of x, made once."""
    kept = _PLANTED.setdefault(call.node, {})
    storage = x.dtype.storage
    if storage not in kept:
        kept[storage] = plant(storage)
    return kept[storage]


# --- the operators -------------------------------------------------------------------------------


@op("TreeEnsemble", since=5, domain=DOMAIN)
def tree_ensemble(
    x: Tensor,
    *,
    leaf_targetids: Sequence[int],
    leaf_weights: np.ndarray,
    nodes_falseleafs: Sequence[int],
    nodes_falsenodeids: Sequence[int],
    nodes_featureids: Sequence[int],
    nodes_modes: np.ndarray,
    nodes_splits: np.ndarray,
    nodes_trueleafs: Sequence[int],
    nodes_truenodeids: Sequence[int],
    tree_roots: Sequence[int],
    aggregate_function: int = 1,
    membership_values: np.ndarray | None = None,
    n_targets: int | None = None,
    nodes_hitrates: np.ndarray | None = None,
    nodes_missing_value_tracks_true: Sequence[int] | None = None,
    post_transform: int = 0,
    ctx: Call,
) -> Tensor:
    """Nodes and leaves are numbered apart; a tree of one leaf is a node whose branches are it."""
    kind = x.dtype
    rows = as_rows(x)
    if not 0 <= aggregate_function < 4 or not 0 <= post_transform < 5:
        raise UnsupportedError("aggregate_function or post_transform is not known")

    def plant(storage: np.dtype) -> _Forest:
        inner, leaves = len(nodes_modes), len(leaf_weights)
        numbers = np.arange(inner, inner + leaves)
        yes = np.where(nodes_trueleafs, np.add(nodes_truenodeids, inner), nodes_truenodeids)
        no = np.where(nodes_falseleafs, np.add(nodes_falsenodeids, inner), nodes_falsenodeids)
        both = np.concatenate([yes, no])
        if both.size and not 0 <= both.min() <= both.max() < inner + leaves:
            raise FormatError("a branch leads to a node that does not exist")
        missing = nodes_missing_value_tracks_true or (0,) * inner
        nothing = np.zeros(leaves, np.int64)
        trees = _Trees(
            np.concatenate([nodes_modes.astype(np.int64), np.full(leaves, _LEAF)]),
            np.concatenate([np.asarray(nodes_featureids, np.int64), nothing]),
            np.concatenate([nodes_splits.astype(storage), np.zeros(leaves, storage)]),
            np.concatenate([yes.astype(np.int64), numbers]),
            np.concatenate([no.astype(np.int64), numbers]),
            np.concatenate([np.asarray(missing, np.int64), nothing]),
            np.asarray(tree_roots, np.int64),
        )
        if membership_values is not None or (trees.mode == _MEMBER).any():
            _members(trees, _sets(membership_values))
        targets = n_targets or int(max(leaf_targetids, default=0)) + 1
        votes = _Votes(numbers, np.asarray(leaf_targetids, np.int64), leaf_weights)
        return _planted(trees, votes, targets, _AGGREGATES[aggregate_function], storage)

    found = _once(ctx, rows, plant).run(rows)
    how = _TRANSFORMS[post_transform]
    return apply(lambda node: ew.cast(transformed(node, how), kind), found)


def _sets(values: np.ndarray | None) -> list[np.ndarray]:
    """Sets of numbers that are separated by NaN."""
    flat = np.zeros(0) if values is None else values.reshape(-1)
    ends = np.flatnonzero(np.isnan(flat))
    return [part[~np.isnan(part)] for part in np.split(flat, ends + 1)[: len(ends)]]


def _from_ids(
    ids: dict[str, Any], storage: np.dtype, votes: tuple[Any, Any, Any, Any]
) -> tuple[_Trees, _Votes]:
    """Trees whose nodes are named by a tree's and a node's id; votes by the same."""
    tree, node = (np.asarray(ids[k], np.int64) for k in ("nodes_treeids", "nodes_nodeids"))
    if not len(tree):
        raise FormatError("an ensemble has no nodes")
    width = int(node.max()) + 1
    keys = tree * width + node
    order = np.argsort(keys, kind="stable")

    def find(trees: np.ndarray, nodes: np.ndarray) -> np.ndarray:
        wanted = np.asarray(trees, np.int64) * width + np.asarray(nodes, np.int64)
        at = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
        if not np.array_equal(keys[order][at], wanted):
            raise FormatError("a branch or a vote is of a node that does not exist")
        return order[at]

    names = ids["nodes_modes"]
    unknown = sorted(set(names) - set(_MODES))
    if unknown:
        raise UnsupportedError(f"nodes_modes {unknown} are not known")
    number = {name: i for i, name in enumerate(_MODES)}
    mode = np.array([number[name] for name in names], np.int64)
    itself = np.arange(len(mode))
    inner = mode != _LEAF
    yes, no = itself.copy(), itself.copy()
    yes[inner] = find(tree[inner], np.asarray(ids["nodes_truenodeids"])[inner])
    no[inner] = find(tree[inner], np.asarray(ids["nodes_falsenodeids"])[inner])
    _, first = np.unique(tree, return_index=True)
    trees = _Trees(
        mode,
        np.where(inner, np.asarray(ids["nodes_featureids"], np.int64), 0),
        _numbers(ids, "nodes_values", storage),
        yes,
        no,
        np.asarray(ids["nodes_missing_value_tracks_true"] or np.zeros(len(mode)), np.int64),
        first,
    )
    of_tree, of_node, target, weight = votes
    return trees, _Votes(find(of_tree, of_node), np.asarray(target, np.int64), weight)


def _numbers(ids: dict[str, Any], name: str, storage: np.dtype | None = None) -> np.ndarray:
    """An attribute that may be given as a tensor (of doubles) instead."""
    array = ids.get(f"{name}_as_tensor")
    found = np.asarray(ids[name] or (), np.float32) if array is None else array.reshape(-1)
    return found if storage is None else found.astype(storage)


@op("TreeEnsembleRegressor", domain=DOMAIN)
def tree_ensemble_regressor(
    x: Tensor,
    *,
    aggregate_function: str = "SUM",
    base_values: Sequence[float] | None = None,
    base_values_as_tensor: np.ndarray | None = None,
    n_targets: int = 1,
    nodes_falsenodeids: Sequence[int] = (),
    nodes_featureids: Sequence[int] = (),
    nodes_hitrates: Sequence[float] | None = None,
    nodes_hitrates_as_tensor: np.ndarray | None = None,
    nodes_missing_value_tracks_true: Sequence[int] | None = None,
    nodes_modes: Sequence[str] = (),
    nodes_nodeids: Sequence[int] = (),
    nodes_treeids: Sequence[int] = (),
    nodes_truenodeids: Sequence[int] = (),
    nodes_values: Sequence[float] | None = None,
    nodes_values_as_tensor: np.ndarray | None = None,
    post_transform: str = "NONE",
    target_ids: Sequence[int] = (),
    target_nodeids: Sequence[int] = (),
    target_treeids: Sequence[int] = (),
    target_weights: Sequence[float] | None = None,
    target_weights_as_tensor: np.ndarray | None = None,
    ctx: Call,
) -> Tensor:
    """Sums (or means, least, greatest) of what the leaves give each target, float32."""
    given = locals()
    rows = as_rows(x)

    def plant(storage: np.dtype) -> _Forest:
        weights = _numbers(given, "target_weights")
        named = (target_treeids, target_nodeids, target_ids, weights)
        trees, votes = _from_ids(given, storage, named)
        return _planted(trees, votes, n_targets, aggregate_function, storage)

    found = _once(ctx, rows, plant).run(rows)
    base = _numbers(given, "base_values", rows.dtype.storage)

    def finish(node: Node) -> Node:
        if base.size:
            node = ew.add(node, tensor_of(base).node)
        return ew.cast(transformed(node, post_transform), f32)

    return apply(finish, found)


@op("TreeEnsembleClassifier", domain=DOMAIN)
def tree_ensemble_classifier(
    x: Tensor,
    *,
    base_values: Sequence[float] | None = None,
    base_values_as_tensor: np.ndarray | None = None,
    class_ids: Sequence[int] = (),
    class_nodeids: Sequence[int] = (),
    class_treeids: Sequence[int] = (),
    class_weights: Sequence[float] | None = None,
    class_weights_as_tensor: np.ndarray | None = None,
    classlabels_int64s: Sequence[int] | None = None,
    classlabels_strings: Sequence[str] | None = None,
    nodes_falsenodeids: Sequence[int] = (),
    nodes_featureids: Sequence[int] = (),
    nodes_hitrates: Sequence[float] | None = None,
    nodes_hitrates_as_tensor: np.ndarray | None = None,
    nodes_missing_value_tracks_true: Sequence[int] | None = None,
    nodes_modes: Sequence[str] = (),
    nodes_nodeids: Sequence[int] = (),
    nodes_treeids: Sequence[int] = (),
    nodes_truenodeids: Sequence[int] = (),
    nodes_values: Sequence[float] | None = None,
    nodes_values_as_tensor: np.ndarray | None = None,
    post_transform: str = "NONE",
    ctx: Call,
) -> tuple[Any, ...]:
    """The label of the class with the greatest score, and the scores (N, classes), float32."""
    given = locals()
    rows = as_rows(x)
    labels = labels_of(classlabels_int64s, classlabels_strings)
    if labels is None:
        raise FormatError("a classifier has labels of its classes")
    weights = _numbers(given, "class_weights")
    binary = len(set(class_ids)) == 1 and len(labels) <= 2

    def plant(storage: np.dtype) -> _Forest:
        named = (class_treeids, class_nodeids, class_ids, weights)
        trees, votes = _from_ids(given, storage, named)
        if binary:
            votes.target = np.zeros_like(votes.target)
        return _planted(trees, votes, 1 if binary else len(labels), "SUM", storage)

    scores = _once(ctx, rows, plant).run(rows)
    base = _numbers(given, "base_values", rows.dtype.storage)
    if base.size:
        scores = apply(lambda node: ew.add(node, tensor_of(base).node), scores)
    if binary:
        return _of_two_classes(ctx, labels, scores, bool(np.all(weights >= 0)), post_transform)
    found = apply(lambda node: ew.cast(transformed(node, post_transform), f32), scores)
    places = apply(lambda node: reductions.argmax(node, 1), scores)
    return labelled(ctx, labels, places, found)


def _of_two_classes(
    call: Call, labels: np.ndarray, score: Tensor, positive: bool, how: str
) -> tuple[Any, Tensor]:
    """One score (N, 1) for two classes: a probability when all weights are positive."""
    limit = 0.5 if positive else 0.0

    def spread(node: Node) -> Node:
        one = ew.cast(node, f32)
        if how == "PROBIT" or (positive and how == "NONE"):
            pair = [ew.sub(ew.literal(1, one), one), one]
        else:
            pair = [ew.neg(one), one]
        both = views.concat(pair, 1)
        return transformed(both, how)

    found = apply(spread, score)
    flat = apply(lambda node: views.reshape(node, (score.shape[0],)), score)
    chosen = apply(lambda node: ew.gt(node, ew.literal(limit, node)), flat)
    if len(labels) == 1:
        if labels.dtype == object:
            raise UnsupportedError("one label of two classes is no string")
        labels = np.array([0 if labels[0] else 1, labels[0]], np.int64)
    places = chosen.astype("int64")
    return labelled(call, labels, places, found)

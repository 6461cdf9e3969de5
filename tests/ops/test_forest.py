"""Forests: kernels against the reference, missing values, several targets, few and many rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.ops.node_calls import check, compiled, interpreted, leaf, reference, with_threads

from tilewright.dtypes import DType, f32, f64, i32
from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.ops.forest import forest


def grown(rng: np.random.Generator, trees: int, depth: int, features: int) -> dict[str, Any]:
    """Random trees; some branches end early."""
    feature, threshold, yes, no, roots, depths, leaves = [], [], [], [], [], [], []

    def node(left: int) -> tuple[int, int]:
        at = len(feature)
        feature.append(int(rng.integers(features)))
        threshold.append(float(np.round(rng.standard_normal(), 1)))
        yes.append(at)
        no.append(at)
        if left == 0 or rng.random() < 0.2:
            leaves.append(at)
            return at, 0
        yes[at], a = node(left - 1)
        no[at], b = node(left - 1)
        return at, 1 + max(a, b)

    for _ in range(trees):
        root, deep = node(depth)
        roots.append(root)
        depths.append(deep)
    made: dict[str, Any] = {
        "feature": feature, "threshold": threshold, "yes": yes, "no": no, "roots": roots,
        "depths": depths, "missing": rng.integers(0, 2, len(feature)), "leaves": leaves,
    }  # fmt: skip
    return made


def with_pairs(rng: np.random.Generator, made: dict[str, Any], targets: int) -> dict[str, Any]:
    """Zero to three weights at each leaf."""
    counts = np.zeros(len(made["feature"]), int)
    counts[made["leaves"]] = rng.integers(0, 4, len(made["leaves"]))
    total = int(counts.sum())
    starts = np.concatenate([[0], np.cumsum(counts)])
    return made | {
        "starts": starts,
        "target": rng.integers(0, targets, total),
        "weight": rng.standard_normal(total),
    }


def nodes(made: dict[str, Any], dtype: DType) -> dict[str, Node]:
    return {
        k: leaf(v, dtype if k in ("threshold", "weight") else i32)
        for k, v in made.items()
        if k != "leaves"
    }


def rows(rng: np.random.Generator, n: int, features: int) -> np.ndarray:
    x = np.round(rng.standard_normal((n, features)), 1)
    x[rng.random(x.shape) < 0.1] = np.nan
    return x


@pytest.mark.parametrize("n", [0, 1, 5, 9, 70])
@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize(("trees", "depth"), [(1, 0), (3, 2), (50, 6)])
def test_one_target(n: int, dtype: DType, trees: int, depth: int) -> None:
    rng = np.random.default_rng(n + depth)
    made = grown(rng, trees, depth, 7)
    made |= {"weight": rng.standard_normal(len(made["feature"])), "target": [0], "starts": [0]}
    x = leaf(rows(rng, n, 7), dtype)
    deep = max(made["depths"])
    for join in ("add", "max", "min"):
        check(forest(x, nodes(made, dtype), 1, join, votes="single", depth=deep))


@pytest.mark.parametrize("n", [1, 40])
@pytest.mark.parametrize("targets", [2, 13])
def test_every_leaf_votes_for_all(n: int, targets: int) -> None:
    rng = np.random.default_rng(n)
    made = grown(rng, 10, 4, 5)
    counts = np.zeros(len(made["feature"]), int)
    counts[made["leaves"]] = targets
    made |= {
        "starts": np.concatenate([[0], np.cumsum(counts)]),
        "target": np.tile(np.arange(targets), len(made["leaves"])),
        "weight": rng.standard_normal(counts.sum()),
    }
    x, deep = leaf(rows(rng, n, 5), f32), max(made["depths"])
    dense = forest(x, nodes(made, f32), targets, votes="dense", depth=deep)
    check(dense)
    pairs = forest(x, nodes(made, f32), targets, depth=deep)
    np.testing.assert_array_equal(compiled(dense), compiled(pairs))


@pytest.mark.parametrize("n", [1, 4, 40])
@pytest.mark.parametrize("join", ["add", "max", "min"])
def test_several_targets(n: int, join: str) -> None:
    rng = np.random.default_rng(n)
    made = with_pairs(rng, grown(rng, 20, 4, 5), 6)
    x = leaf(rows(rng, n, 5), f32)
    check(forest(x, nodes(made, f32), 6, join, depth=max(made["depths"])))


def test_the_same_bits_for_any_number_of_rows_and_threads() -> None:
    rng = np.random.default_rng(3)
    made = with_pairs(rng, grown(rng, 40, 5, 5), 3)
    tables, x, deep = nodes(made, f32), rows(rng, 50, 5), max(made["depths"])
    every = forest(leaf(x, f32), tables, 3, depth=deep)
    whole = with_threads(2, lambda: compiled(every))
    np.testing.assert_array_equal(whole, with_threads(1, lambda: compiled(every)))
    for at in (slice(0, 1), slice(3, 9), slice(10, 31)):
        part = compiled(forest(leaf(x[at], f32), tables, 3, depth=deep))
        np.testing.assert_array_equal(part, whole[at])


def test_many_rows_walk_in_longer_spans() -> None:
    rng = np.random.default_rng(6)
    made = with_pairs(rng, grown(rng, 5, 3, 4), 2)
    check(forest(leaf(rows(rng, 5000, 4), f32), nodes(made, f32), 2, depth=max(made["depths"])))
    made |= {"weight": rng.standard_normal(len(made["feature"]))}
    x, deep = leaf(rows(rng, 5000, 4), f32), max(made["depths"])
    check(forest(x, nodes(made, f32), 1, votes="single", depth=deep))


def test_without_missing_values() -> None:
    rng = np.random.default_rng(4)
    made = with_pairs(rng, grown(rng, 5, 3, 4), 2) | {"missing": [0] * 200}
    x = leaf(rng.standard_normal((20, 4)), f32)
    made["missing"] = np.zeros(len(made["feature"]))
    plain = forest(x, nodes(made, f32), 2, missing=False, depth=max(made["depths"]))
    np.testing.assert_array_equal(
        compiled(plain), reference(forest(x, nodes(made, f32), 2, depth=max(made["depths"])))
    )
    np.testing.assert_array_equal(interpreted(plain), reference(plain))


def test_refusals() -> None:
    rng = np.random.default_rng(5)
    tables = nodes(with_pairs(rng, grown(rng, 2, 2, 3), 2), f32)
    with pytest.raises(ShapeError, match=r"rows \(N, F\)"):
        forest(leaf(np.zeros(3), f32), tables, 2)
    with pytest.raises(ShapeError, match="threshold"):
        forest(leaf(np.zeros((2, 3)), f64), tables, 2)
    with pytest.raises(ShapeError, match="join"):
        forest(leaf(np.zeros((2, 3)), f32), tables, 2, "mean")

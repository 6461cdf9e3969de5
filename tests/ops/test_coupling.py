"""Coupling of pairwise probabilities: kernel against reference, a case with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
from tests.ops.node_calls import LAYOUTS, check, compiled, interpreted, leaf, reference

from tilewright.dtypes import f32, f64
from tilewright.errors import ShapeError
from tilewright.ops.coupling import coupled


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_agrees_with_the_reference(classes: int, rows: int, layout: str) -> None:
    rng = np.random.default_rng(classes)
    shares = rng.uniform(0.02, 0.98, (rows, classes * (classes - 1) // 2))
    check(coupled(leaf(shares, f32, layout), classes), rtol=1e-6, atol=1e-7)


def test_consistent_pairs_give_their_probabilities_back() -> None:
    """Shares r_ij = p_i / (p_i + p_j) of one distribution have it as their fixed point."""
    p = np.array([0.5, 0.3, 0.15, 0.05])
    i, j = np.triu_indices(4, 1)
    node = coupled(leaf((p[i] / (p[i] + p[j]))[None], f32), 4)
    for found in (reference(node), compiled(node), interpreted(node)):
        np.testing.assert_allclose(found[0], p, atol=2e-3)
        np.testing.assert_allclose(found.sum(), 1, rtol=1e-6)


def test_refusals() -> None:
    with pytest.raises(ShapeError, match=r"\(N, 3\)"):
        coupled(leaf(np.zeros((2, 2)), f32), 3)
    with pytest.raises(ShapeError, match="f32"):
        coupled(leaf(np.zeros((2, 3)), f64), 3)

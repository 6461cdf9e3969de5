"""Muon: orthogonalised momentum."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.errors import ShapeError
from tilewright.optim import Muon
from tilewright.optim.muon import orthogonalised
from tilewright.tensor.core import Tensor


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_singular_values_are_pushed_towards_one(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 1e-3
    y = orthogonalised(Tensor(x)).numpy()
    values = np.linalg.svd(y, compute_uv=False)
    assert values.min() > 0.3
    assert values.max() < 1.3
    left, _, right = np.linalg.svd(x, full_matrices=False)
    product = left.T @ y @ right.T
    assert np.abs(product - np.diag(np.diag(product))).max() < 1e-3


def test_a_step_has_the_size_it_says() -> None:
    p = Tensor(np.zeros((40, 60), np.float32), requires_grad=True)
    optimizer = Muon([p], lr=0.1)
    (
        p * Tensor(np.random.default_rng(1).standard_normal((40, 60)).astype(np.float32))
    ).sum().backward()
    optimizer.step()
    assert 0.01 < float(np.sqrt((p.numpy() ** 2).mean())) < 0.03  # AdamW's 0.2 times lr


def test_only_matrices() -> None:
    with pytest.raises(ShapeError, match="matrices"):
        Muon([Tensor(np.zeros(3, np.float32), requires_grad=True)])

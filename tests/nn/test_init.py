"""Initialisers: moments and bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tilewright.errors import ShapeError
from tilewright.nn import Parameter, init
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import zeros


def weight(*shape: int) -> Tensor:
    return Parameter(zeros(shape or (120, 80, 3)))


@pytest.mark.parametrize(
    ("fill", "std", "bound"),
    [
        (lambda w: init.uniform_(w, -2, 4), math.sqrt(3), 4),
        (lambda w: init.normal_(w, 1, 0.5), 0.5, math.inf),
        (init.xavier_uniform_, math.sqrt(2 / 600), math.sqrt(6 / 600)),
        (init.xavier_normal_, math.sqrt(2 / 600), math.inf),
        (lambda w: init.kaiming_uniform_(w, math.sqrt(5)), 1 / math.sqrt(720), 1 / math.sqrt(240)),
        (lambda w: init.kaiming_normal_(w, mode="fan_out"), math.sqrt(2 / 360), math.inf),
        (
            lambda w: init.kaiming_normal_(w, nonlinearity="tanh"),
            5 / 3 / math.sqrt(240),
            math.inf,
        ),
        (
            lambda w: init.trunc_normal_(w, 0, 2, -2, 2),
            2 * math.sqrt(1 - 2 * 0.24197072 / 0.68268949),
            2,
        ),
    ],
)
def test_moments_and_bounds(fill: object, std: float, bound: float) -> None:
    w = weight()
    assert fill(w) is w  # type: ignore[operator]
    assert w.requires_grad
    a = w.numpy().astype(np.float64)
    assert np.abs(a).max() <= bound * (1 + 1e-6)
    assert abs(a.std() / std - 1) < 0.02
    if bound < math.inf:
        assert np.abs(a).max() > 0.98 * bound


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (6, 2, 3)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    a = init.orthogonal_(weight(*shape), 2.0).numpy().reshape(shape[0], -1).astype(np.float64)
    gram = a @ a.T if a.shape[0] <= a.shape[1] else a.T @ a
    np.testing.assert_allclose(gram, 4 * np.eye(len(gram)), atol=1e-5)


def test_what_has_no_fans_or_gain() -> None:
    with pytest.raises(ShapeError, match="two axes"):
        init.xavier_normal_(weight(3))
    with pytest.raises(ValueError, match="gain"):
        init.gain("step")
    assert init.gain("leaky_relu", 1.0) == 1.0
    assert (init.ones_(weight(3)).numpy() == 1).all()

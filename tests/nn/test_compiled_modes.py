"""Compiled functions and modules' modes: ``train()`` and ``eval()`` between calls."""

from __future__ import annotations

import numpy as np

import tilewright as tw
from tilewright import nn


def test_a_compiled_function_follows_the_mode_of_its_modules() -> None:
    """Two programs, each found again; in evaluation nothing is dropped."""
    tw.random.seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 3))
    run = tw.compile(lambda x: model(x))
    x = tw.random.normal((8, 4)).realize()
    first, second = run(x).numpy(), run(x).numpy()
    assert (first != second).any()
    for _ in range(2):
        model.eval()
        np.testing.assert_array_equal(run(x).numpy(), model(x).numpy())
        model.train()
        assert (run(x).numpy() != run(x).numpy()).any()
    assert run.programs == 2


def test_a_mode_that_the_function_sets_itself_is_its_own() -> None:
    """It is part of the trace, whatever it was before."""
    model = nn.Sequential(nn.Dropout(0.5))

    @tw.compile
    def predict(x: tw.Tensor) -> tw.Tensor:
        model.eval()
        try:
            result: tw.Tensor = model(x)
        finally:
            model.train()
        return result

    for _ in range(3):
        assert predict(tw.ones(16)).tolist() == [1.0] * 16
    model.eval()
    assert predict(tw.ones(16)).tolist() == [1.0] * 16
    assert predict.programs == 1


def test_running_statistics_are_used_once_training_is_over() -> None:
    norm = nn.BatchNorm1d(3)
    run = tw.compile(lambda x: norm(x))
    x = tw.random.normal((32, 3), generator=tw.random.Generator(1)) * 2 + 5
    run(x)
    norm.eval()
    moved = norm.running_mean.numpy()
    np.testing.assert_array_equal(run(x).numpy(), norm(x).numpy())
    np.testing.assert_array_equal(norm.running_mean.numpy(), moved)

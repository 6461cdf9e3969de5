"""Compiled functions and modules' modes: ``train()`` and ``eval()`` between calls."""

from __future__ import annotations

import numpy as np

import tilewright as tw
from tilewright import nn, optim


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


def test_a_parameter_that_is_frozen_between_steps_stays_as_it_is() -> None:
    """And moves again once it requires gradients again."""
    layer = nn.Linear(4, 2)
    optimizer = optim.SGD(layer.parameters(), lr=0.1)

    @tw.compile
    def step(x: tw.Tensor) -> tw.Tensor:
        optimizer.zero_grad()
        loss = tw.square(layer(x)).sum()
        loss.backward()
        optimizer.step()
        return loss

    x = tw.ones((3, 4))
    for frozen in (False, True, False):
        layer.weight.requires_grad = not frozen
        before = [t.tolist() for t in (layer.weight, layer.bias)]
        step(x)
        step(x)
        after = [t.tolist() for t in (layer.weight, layer.bias)]
        assert (before[0] == after[0]) is frozen
        assert before[1] != after[1]

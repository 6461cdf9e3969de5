"""Recurrent layers beyond what PyTorch shows: second derivatives, precision, dropout, length."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright import asarray, grad, nn
from tilewright.dtypes import f64
from tilewright.errors import ShapeError
from tilewright.nn import functional as F
from tilewright.tensor.compiled import compile
from tilewright.tensor.core import Tensor


def x(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_gradients_of_gradients_are_differences_of_gradients(kind: type) -> None:
    layer = kind(3, 4).to(f64)
    first, along, up = (asarray(x(4, 2, 3, seed=s)) for s in range(3))

    def loss(a: Tensor) -> Tensor:
        return (layer(a)[0] ** 2).sum()

    def slope(a: Tensor) -> Tensor:
        return (grad(loss)(a) * up).sum()

    exact = float((grad(slope)(first) * along).sum().item())
    step = 1e-5
    plus, minus = (slope(first + along * s).item() for s in (step, -step))
    assert exact == pytest.approx((plus - minus) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_bf16_products_stay_near_and_gradients_f32(kind: type) -> None:
    layer = kind(8, 16)
    rows = asarray(x(12, 4, 8).astype(np.float32))

    def run() -> tuple[np.ndarray, list[np.ndarray]]:
        layer.zero_grad()
        y, _ = layer(rows)
        (y.float() ** 2).sum().backward()
        return y.float().numpy(), [p.grad.numpy() for p in layer.parameters()]

    exact, wanted = run()
    with nn.autocast():
        near, found = run()
    assert 0 < np.abs(near - exact).max() < 0.03
    for p, a, b in zip(layer.parameters(), found, wanted):
        assert str(p.grad.dtype) == "f32"
        assert np.abs(a - b).max() < 0.05 * np.abs(b).max() + 0.02


def test_a_compiled_step_has_the_bits_of_the_dynamic_one_with_dropout_between() -> None:
    from tilewright.tensor import random

    rows = asarray(x(5, 2, 3).astype(np.float32))

    def gradients(compiled: bool) -> list[np.ndarray]:
        random.seed(4)
        layer = nn.LSTM(3, 4, 2, dropout=0.5)

        def step(a: Tensor) -> Tensor:
            layer.zero_grad()
            loss = F.mse_loss(layer(a)[0], layer(a)[0] * 0.5)
            loss.backward()
            return loss

        loss = (compile(step) if compiled else step)(rows)
        return [loss.numpy(), *[p.grad.numpy() for p in layer.parameters()]]

    for a, b in zip(gradients(False), gradients(True)):
        np.testing.assert_array_equal(a, b)


def test_what_has_another_number_of_axes_is_refused() -> None:
    with pytest.raises(ShapeError, match="GRU wants x"):
        nn.GRU(3, 4)(asarray(x(2, 3).astype(np.float32)))

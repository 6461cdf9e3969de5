"""Muon: momentum of matrices, orthogonalised (Jordan et al. 2024)."""

from __future__ import annotations

from typing import Any

from tilewright.errors import ShapeError
from tilewright.optim.optimizer import Optimizer, Params, State, Step
from tilewright.tensor.core import Tensor
from tilewright.tensor.elementwise import sqrt

__all__ = ["Muon", "orthogonalised"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(x: Tensor, iterations: int = 5) -> Tensor:
    """A matrix with the singular vectors of ``x`` and singular values near one (0.7 to 1.2).

    Newton-Schulz iterations with the quintic polynomial of Jordan et al. (2024).
    """
    if x.ndim != 2:
        raise ShapeError(f"orthogonalised wants a matrix, got shape {x.shape}")
    a, b, c = _COEFFICIENTS
    tall = x.shape[0] > x.shape[1]
    y = x.mT if tall else x
    y = y / (sqrt((y * y).sum()) + 1e-7)
    for _ in range(iterations):
        gram = y @ y.mT
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    return y.mT if tall else y


class Muon(Optimizer):
    """For the matrices inside a network; give embeddings, heads and vectors to another optimiser.

    The update is scaled by ``0.2 sqrt(max(m, n))``, which gives it AdamW's usual root mean square
    (Liu et al. 2025, arXiv:2502.16982), so that AdamW's learning rates serve.

    Args:
        momentum: of the running mean of gradients; the update looks one step ahead (Nesterov).
        iterations: of Newton-Schulz.
    """

    slots = ("momentum",)

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.95,
        iterations: int = 5,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.momentum, self.iterations = momentum, iterations
        super().__init__(params, lr, weight_decay, **kwargs)
        for name, p in zip(self.names, self.params):
            if p.ndim != 2:
                raise ShapeError(f"Muon takes matrices; parameter {name} has shape {p.shape}")

    def rule(self, x: Tensor, g: Tensor, state: State, step: Step) -> Tensor:
        beta = self.option(step, "momentum")
        mean = state["momentum"].assign(state["momentum"] * beta + g * (1 - beta))
        ahead = g * (1 - beta) + mean * beta
        scale = 0.2 * max(x.shape) ** 0.5
        return orthogonalised(ahead, self.iterations) * (step.lr * scale)

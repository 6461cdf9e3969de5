"""The update rules."""

from __future__ import annotations

from typing import Any

from tilewright.optim.optimizer import Optimizer, Params
from tilewright.tensor.core import Tensor
from tilewright.tensor.elementwise import sign, sqrt

__all__ = ["SGD", "Adam", "AdamW", "Lion"]


class SGD(Optimizer):
    """Stochastic gradient descent with momentum as in PyTorch: ``b = momentum * b + g``.

    Args:
        nesterov: step along ``g + momentum * b`` (Sutskever et al. 2013).
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.slots = ("momentum",) if momentum else ()
        self.momentum, self.nesterov = momentum, nesterov
        super().__init__(params, lr, weight_decay, **kwargs)

    def rule(self, x: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
        if self.momentum:
            b = state["momentum"].assign(state["momentum"] * self.momentum + g)
            g = g + b * self.momentum if self.nesterov else b
        return x - g * self._lr


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), bias-corrected; ``weight_decay`` is decoupled (AdamW)."""

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.betas, self.eps = betas, eps
        super().__init__(params, lr, weight_decay, **kwargs)

    def rule(self, x: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
        b1, b2 = self.betas
        m = state["exp_avg"].assign(state["exp_avg"] * b1 + g * (1 - b1))
        v = state["exp_avg_sq"].assign(state["exp_avg_sq"] * b2 + g * g * (1 - b2))
        m_hat = m / (1.0 - b1**self.steps)
        v_hat = v / (1.0 - b2**self.steps)
        return x - self._lr * m_hat / (sqrt(v_hat) + self.eps)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), by default 0.01."""

    def __init__(
        self, params: Params, lr: float | Tensor = 1e-3, weight_decay: float = 0.01, **kwargs: Any
    ) -> None:
        super().__init__(params, lr, weight_decay=weight_decay, **kwargs)


class Lion(Optimizer):
    """Lion (Chen et al. 2023): the sign of an interpolated momentum."""

    slots = ("exp_avg",)

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.betas = betas
        super().__init__(params, lr, weight_decay, **kwargs)

    def rule(self, x: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
        b1, b2 = self.betas
        m = state["exp_avg"]
        direction = sign(m * b1 + g * (1 - b1))
        state["exp_avg"].assign(m * b2 + g * (1 - b2))
        return x - direction * self._lr

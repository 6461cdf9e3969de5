"""Layers with parameters; names and initial values as in PyTorch."""

from __future__ import annotations

import math

from tilewright.nn import functional as F
from tilewright.nn.module import Module, Parameter
from tilewright.tensor import random
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import ones, zeros

__all__ = ["Dropout", "Embedding", "LayerNorm", "Linear", "RMSNorm"]


class Linear(Module):
    """``x @ weight.T + bias``; weight (out, in), bias (out,), uniform within 1/sqrt(in)."""

    def __init__(self, n_in: int, n_out: int, bias: bool = True) -> None:
        bound = 1 / math.sqrt(n_in) if n_in else 0.0
        self.weight = Parameter(random.uniform((n_out, n_in), low=-bound, high=bound))
        self.bias = Parameter(random.uniform((n_out,), low=-bound, high=bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Embedding(Module):
    """Rows of ``weight`` (n, width), standard normal."""

    def __init__(self, n: int, width: int) -> None:
        self.weight = Parameter(random.normal((n, width)))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class LayerNorm(Module):
    """Normalisation over the last axis; weight and bias (width,)."""

    def __init__(self, width: int, eps: float = 1e-5, bias: bool = True) -> None:
        self.weight = Parameter(ones((width,)))
        self.bias = Parameter(zeros((width,))) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(Module):
    """Root-mean-square normalisation over the last axis; weight (width,)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        self.weight = Parameter(ones((width,)))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight, self.eps)


class Dropout(Module):
    """Zeroes elements with probability ``p`` while training."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)

"""Dense layers, embeddings, normalisation, dropout, activations: as in PyTorch.

Names of parameters, initial distributions and meanings are PyTorch's; so state dicts go both ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tilewright.errors import ShapeError
from tilewright.nn import functional as F
from tilewright.nn.module import Module, Parameter
from tilewright.tensor import random
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import ones, zeros

__all__ = [
    "ELU",
    "GELU",
    "Activation",
    "Dropout",
    "Dropout2d",
    "Embedding",
    "Flatten",
    "GroupNorm",
    "Identity",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "RMSNorm",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "uniform_parameter",
]


def uniform_parameter(shape: Sequence[int], fan_in: int) -> Tensor:
    """Uniform within ``1 / sqrt(fan_in)``: PyTorch's default for weights and biases."""
    bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
    return Parameter(random.uniform(tuple(shape), low=-bound, high=bound))


class Linear(Module):
    """``x @ weight.T + bias``; weight (out, in), bias (out,), uniform within 1/sqrt(in)."""

    def __init__(self, n_in: int, n_out: int, bias: bool = True) -> None:
        self.weight = uniform_parameter((n_out, n_in), n_in)
        self.bias = uniform_parameter((n_out,), n_in) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Embedding(Module):
    """Rows of ``weight`` (n, width), standard normal.

    Args:
        padding_idx: a row that starts as zeros and gets no gradient.
        sparse: keep the gradient as ids and rows; see :func:`tilewright.nn.functional.embedding`.
    """

    def __init__(
        self, n: int, width: int, padding_idx: int | None = None, sparse: bool = False
    ) -> None:
        if padding_idx is not None and not -n <= padding_idx < n:
            raise ShapeError(f"Embedding: padding_idx {padding_idx} of {n} rows")
        weight = random.normal((n, width))
        self.padding_idx = None if padding_idx is None else padding_idx % n
        if self.padding_idx is not None:
            weight = F.where(_rows(n) == self.padding_idx, 0.0, weight)
        self.weight = Parameter(weight)
        self.sparse = sparse

    def forward(self, ids: Tensor) -> Tensor:
        y = F.embedding(ids, self.weight, self.sparse)
        if self.padding_idx is None:
            return y
        at = (ids == self.padding_idx).unsqueeze(-1)
        return F.where(at, y.detach(), y)


def _rows(n: int) -> Tensor:
    from tilewright.tensor.creation import arange

    return arange(n).reshape((n, 1))


class LayerNorm(Module):
    """Normalisation over the last axes; weight and bias of ``shape`` (a size: the last axis)."""

    def __init__(self, shape: int | Sequence[int], eps: float = 1e-5, bias: bool = True) -> None:
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        self.weight = Parameter(ones(sizes))
        self.bias = Parameter(zeros(sizes)) if bias else None
        self.eps, self.axes = eps, len(sizes)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias, self.eps, self.axes)


class RMSNorm(Module):
    """Root-mean-square normalisation over the last axis; weight (width,)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        self.weight = Parameter(ones((width,)))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight, self.eps)


class GroupNorm(Module):
    """Groups of channels of x (N, C, ...) normalised; weight and bias (C,)."""

    def __init__(self, groups: int, channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        if groups < 1 or channels % groups:
            raise ShapeError(f"GroupNorm: {groups} groups do not cut {channels} channels")
        self.weight = Parameter(ones((channels,))) if affine else None
        self.bias = Parameter(zeros((channels,))) if affine else None
        self.groups, self.eps = groups, eps

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)


class Dropout(Module):
    """Zeroes elements with probability ``p`` while training."""

    axes: tuple[int, ...] | None = None

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training, self.axes)


class Dropout2d(Dropout):
    """Zeroes whole channels of x (N, C, ...) with probability ``p`` while training."""

    axes = (0, 1)


class Flatten(Module):
    """The axes from ``start`` to ``end`` (inclusive) as one."""

    def __init__(self, start: int = 1, end: int = -1) -> None:
        self.start, self.end = start, end

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(self.start, self.end)


class Identity(Module):
    """Its argument."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Activation(Module):
    """A function of one tensor as a module, with its options."""

    def __init__(self, function: Callable[..., Tensor], **options: Any) -> None:
        self.function, self.options = function, options

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **self.options)


class ReLU(Activation):
    """``max(x, 0)``."""

    def __init__(self) -> None:
        super().__init__(F.relu)


class GELU(Activation):
    """GELU, exact, or in its tanh form (``approximate="tanh"``)."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__(F.gelu, approximate=approximate)


class SiLU(Activation):
    """``x * sigmoid(x)``."""

    def __init__(self) -> None:
        super().__init__(F.silu)


class Sigmoid(Activation):
    """``1 / (1 + exp(-x))``."""

    def __init__(self) -> None:
        super().__init__(F.sigmoid)


class Tanh(Activation):
    """Hyperbolic tangent."""

    def __init__(self) -> None:
        super().__init__(F.tanh)


class LeakyReLU(Activation):
    """``x`` where positive, else ``slope * x``."""

    def __init__(self, slope: float = 0.01) -> None:
        super().__init__(F.leaky_relu, slope=slope)


class ELU(Activation):
    """``x`` where positive, else ``alpha * (exp(x) - 1)``."""

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(F.elu, alpha=alpha)


class Softplus(Activation):
    """``log(1 + exp(x))``."""

    def __init__(self) -> None:
        super().__init__(F.softplus)


class Softmax(Activation):
    """Softmax along ``axis``."""

    def __init__(self, axis: int = -1) -> None:
        super().__init__(F.softmax, axis=axis)

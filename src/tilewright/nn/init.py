"""Initial values of parameters: each function assigns a tensor and returns it.

Fan-in and fan-out are those of PyTorch: of a weight (out, in, *kernel), ``in * prod(kernel)`` and
``out * prod(kernel)``.
"""

from __future__ import annotations

import math

from tilewright.errors import ShapeError
from tilewright.tensor import random
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import asarray, full
from tilewright.tensor.random import Generator

__all__ = [
    "constant_",
    "fans",
    "gain",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]


def fans(x: Tensor) -> tuple[int, int]:
    """(fan-in, fan-out) of a weight with two axes at least."""
    if x.ndim < 2:
        raise ShapeError(f"fan-in and fan-out want two axes at least, got shape {x.shape}")
    field = math.prod(x.shape[2:])
    return x.shape[1] * field, x.shape[0] * field


def gain(nonlinearity: str, param: float = 0.01) -> float:
    """What keeps the variance through a nonlinearity; ``param`` is leaky_relu's slope."""
    gains = {
        "linear": 1.0,
        "sigmoid": 1.0,
        "tanh": 5 / 3,
        "relu": math.sqrt(2),
        "leaky_relu": math.sqrt(2 / (1 + param * param)),
        "selu": 0.75,
    }
    if nonlinearity not in gains:
        raise ValueError(f"gain: one of {', '.join(gains)}, got {nonlinearity!r}")
    return gains[nonlinearity]


def constant_(x: Tensor, value: float) -> Tensor:
    """Every element ``value``."""
    return x.assign(full(x.shape, value, dtype=x.dtype))


def zeros_(x: Tensor) -> Tensor:
    """Zeros."""
    return constant_(x, 0)


def ones_(x: Tensor) -> Tensor:
    """Ones."""
    return constant_(x, 1)


def uniform_(
    x: Tensor, low: float = 0.0, high: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Uniform in [low, high)."""
    return x.assign(random.uniform(x.shape, low=low, high=high, generator=generator))


def normal_(
    x: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Normal."""
    return x.assign(random.normal(x.shape, mean=mean, std=std, generator=generator))


def trunc_normal_(
    x: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    low: float = -2.0,
    high: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:
    """Normal, given that it lies in [low, high] (values, as in PyTorch, not deviations)."""
    return x.assign(
        random.truncated_normal(
            x.shape,
            mean=mean,
            std=std,
            low=(low - mean) / std,
            high=(high - mean) / std,
            generator=generator,
        )
    )


def xavier_uniform_(x: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Uniform with variance ``2 / (fan_in + fan_out)`` (Glorot & Bengio 2010)."""
    bound = gain * math.sqrt(6 / max(sum(fans(x)), 1))
    return uniform_(x, -bound, bound, generator)


def xavier_normal_(x: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Normal with variance ``2 / (fan_in + fan_out)`` (Glorot & Bengio 2010)."""
    return normal_(x, 0.0, gain * math.sqrt(2 / max(sum(fans(x)), 1)), generator)


def _kaiming(x: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f'mode is "fan_in" or "fan_out", got {mode!r}')
    fan = fans(x)[mode == "fan_out"]
    return gain(nonlinearity, a) / math.sqrt(max(fan, 1))


def kaiming_uniform_(
    x: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Uniform with variance ``gain^2 / fan`` (He et al. 2015); ``a``: leaky_relu's slope."""
    bound = math.sqrt(3) * _kaiming(x, a, mode, nonlinearity)
    return uniform_(x, -bound, bound, generator)


def kaiming_normal_(
    x: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Normal with variance ``gain^2 / fan`` (He et al. 2015); ``a``: leaky_relu's slope."""
    return normal_(x, 0.0, _kaiming(x, a, mode, nonlinearity), generator)


def orthogonal_(x: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Rows (or columns, of which there are fewer) orthonormal (Saxe et al. 2014).

    x as a matrix (first axis, all others), from the QR decomposition of a normal one, on the host.
    """
    import numpy as np

    if x.ndim < 2:
        raise ShapeError(f"orthogonal_ wants two axes at least, got shape {x.shape}")
    rows, columns = x.shape[0], math.prod(x.shape[1:])
    drawn = random.normal((max(rows, columns), min(rows, columns)), generator=generator)
    q, r = np.linalg.qr(drawn.numpy().astype(np.float64))
    q = q * np.sign(np.diag(r))
    matrix = (q.T if rows < columns else q) * gain
    return x.assign(asarray(np.ascontiguousarray(matrix.reshape(x.shape).astype(np.float32))))

"""The real functions of the kernel language: their names, and what they mean.

Each is one op of the tile IR on floats. Its meaning is a NumPy function of float64, rounded to the
op's dtype; special values are those of C99's Annex F, which are NumPy's and the Array API's. A
target gives every name of these tables code of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np

__all__ = ["BINARY_FUNCTIONS", "UNARY_FUNCTIONS"]

_erf: Final = np.frompyfunc(math.erf, 1, 1)
_erfc: Final = np.frompyfunc(math.erfc, 1, 1)


def _float64(values: Any) -> np.ndarray:
    return np.asarray(values).astype(np.float64)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, e) / (1.0 + e))


def _erfinv(x: np.ndarray) -> np.ndarray:
    """Winitzki's approximation (2008, relative error 2e-3), then three of Halley's steps.

    Beyond a half the equation is solved for the complement, which keeps the relative accuracy.
    """
    size = np.abs(x)
    inside = np.where(size < 1, size, 0.0)
    log = np.log1p(-inside * inside)
    t = 2 / (math.pi * 0.147) + log / 2
    z = np.sqrt(np.sqrt(t * t - log / 0.147) - t)
    for _ in range(3):
        error = np.where(
            inside < 0.5, _float64(_erf(z)) - inside, (1 - inside) - _float64(_erfc(z))
        )
        step = error * (math.sqrt(math.pi) / 2) * np.exp(z * z)
        z = z - step / (1 + z * step)
    z = np.where(inside < 1e-8, inside * (math.sqrt(math.pi) / 2), z)
    out = np.where(size < 1, z, np.where(size == 1, np.inf, np.nan))
    return np.asarray(np.copysign(out, x))


def _lgamma_one(x: float) -> float:
    if math.isinf(x) or (x <= 0 and x == math.floor(x)):
        return math.inf
    try:
        return math.lgamma(x)
    except OverflowError:
        return math.inf


_lgamma: Final = np.frompyfunc(_lgamma_one, 1, 1)

UNARY_FUNCTIONS: Final[dict[str, Callable[[np.ndarray], Any]]] = {
    "acos": np.arccos,
    "acosh": np.arccosh,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "cos": np.cos,
    "cosh": np.cosh,
    "erf": lambda x: _float64(_erf(x)),
    "erfinv": _erfinv,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "lgamma": lambda x: _float64(_lgamma(x)),
    "log": np.log,
    "log10": np.log10,
    "log1p": np.log1p,
    "log2": np.log2,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "sigmoid": _sigmoid,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "tan": np.tan,
    "tanh": np.tanh,
}
"""Float tile to float tile of the same dtype."""

BINARY_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "atan2": np.arctan2,
    "hypot": np.hypot,
    "pow": np.power,
}
"""Two float tiles to one of the same dtype; ``pow`` takes integers too."""

"""Elementwise ops: float32 in, float32 out, NumPy broadcasting of a row vector or a scalar.

Each is an expression in the kernel language, so the row fuser and the matmul's epilogue can put it
anywhere. Formulas: SiLU (Elfwing et al. 2017), GELU (Hendrycks & Gimpel 2016; ``gelu`` is the tanh
form that GPT-2 uses, ``gelu_erf`` the exact one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, promote
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.ops.table import OpDef, make, register

__all__ = [
    "add",
    "elementwise_op",
    "gelu",
    "gelu_erf",
    "mul",
    "relu",
    "scale",
    "sigmoid",
    "silu",
    "sub",
    "tanh",
]

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
_GELU = (
    f"0.5 * {{0}} * (1.0 + tanh({SQRT_2_OVER_PI!r} * ({{0}} + 0.044715 * {{0}} * {{0}} * {{0}})))"
)


def _infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    """Equal shapes, or one operand that is a suffix of the other (a row vector)."""
    first = inputs[0]
    for other in inputs[1:]:
        big, small = (first, other) if len(first.shape) >= len(other.shape) else (other, first)
        if big.shape[len(big.shape) - len(small.shape) :] != small.shape:
            raise ShapeError(
                f"shapes {shape_of(first.shape)} and {shape_of(other.shape)} do not fit: "
                "they must be equal, or one the trailing axes of the other"
            )
        first = big
    dtype = inputs[0].dtype
    for other in inputs[1:]:
        dtype = promote(dtype, other.dtype)
    return first.shape, dtype


def elementwise_op(name: str, expression: str, reference: Callable[..., np.ndarray]) -> OpDef:
    """Register an elementwise op.

    ``expression`` is kernel source over ``{0}``, ``{1}``... and the op's attributes by name;
    ``reference(*arrays, **attrs)`` is its meaning in NumPy, float32 in and out.
    """
    return register(OpDef(name, _infer, reference, expression=expression))


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _np_gelu(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    inner = SQRT_2_OVER_PI * (wide + 0.044715 * wide**3)
    return (0.5 * wide * (1 + np.tanh(inner))).astype(x.dtype)


def _np_gelu_erf(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    return (0.5 * wide * (1 + _erf(wide / math.sqrt(2)))).astype(x.dtype)


def _np_sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(x.dtype)


elementwise_op("add", "{0} + {1}", np.add)
elementwise_op("sub", "{0} - {1}", np.subtract)
elementwise_op("mul", "{0} * {1}", np.multiply)
elementwise_op("relu", "maximum({0}, 0.0)", lambda x: np.maximum(x, 0))
elementwise_op("tanh", "tanh({0})", np.tanh)
elementwise_op("sigmoid", "sigmoid({0})", _np_sigmoid)
elementwise_op("silu", "{0} * sigmoid({0})", lambda x: (x * _np_sigmoid(x)).astype(x.dtype))
elementwise_op("gelu", _GELU, _np_gelu)
elementwise_op("gelu_erf", f"0.5 * {{0}} * (1.0 + erf({{0}} * {math.sqrt(0.5)!r}))", _np_gelu_erf)
elementwise_op("scale", "{0} * {factor}", lambda x, factor: x * np.float32(factor))


def add(x: Node, y: Node) -> Node:
    """``x + y``."""
    return make("add", x, y)


def sub(x: Node, y: Node) -> Node:
    """``x - y``."""
    return make("sub", x, y)


def mul(x: Node, y: Node) -> Node:
    """``x * y``."""
    return make("mul", x, y)


def relu(x: Node) -> Node:
    """``max(x, 0)``."""
    return make("relu", x)


def tanh(x: Node) -> Node:
    """Hyperbolic tangent."""
    return make("tanh", x)


def sigmoid(x: Node) -> Node:
    """``1 / (1 + exp(-x))``."""
    return make("sigmoid", x)


def silu(x: Node) -> Node:
    """``x * sigmoid(x)``."""
    return make("silu", x)


def gelu(x: Node) -> Node:
    """GELU, tanh form: ``0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))``."""
    return make("gelu", x)


def gelu_erf(x: Node) -> Node:
    """GELU, exact: ``0.5 x (1 + erf(x / sqrt 2))``."""
    return make("gelu_erf", x)


def scale(x: Node, factor: float) -> Node:
    """``x * factor`` with a compile-time factor."""
    return make("scale", x, factor=float(factor))

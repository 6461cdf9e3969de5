"""Operators that every model has: constants, shapes, casts, views."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tilewright.errors import FormatError, ShapeError
from tilewright.onnx.ops.common import moves
from tilewright.onnx.registry import op
from tilewright.onnx.symbolic import settled, shape_value
from tilewright.tensor import manipulation
from tilewright.tensor.core import Tensor


@op("Constant")
def constant(
    *,
    value: np.ndarray | None = None,
    sparse_value: np.ndarray | None = None,
    value_float: float | None = None,
    value_floats: tuple[float, ...] | None = None,
    value_int: int | None = None,
    value_ints: tuple[int, ...] | None = None,
    value_string: str | None = None,
    value_strings: tuple[str, ...] | None = None,
) -> np.ndarray:
    """An array that stands in the model."""
    for array in (value, sparse_value):
        if array is not None:
            return array
    for number, dtype in (
        (value_float, np.float32), (value_floats, np.float32), (value_int, np.int64),
        (value_ints, np.int64), (value_string, object), (value_strings, object),
    ):  # fmt: skip
        if number is not None:
            return np.array(number, dtype)
    raise FormatError("a constant has no value")


@op("Identity", raw=True)
def identity(x: Any) -> Any:
    """The input."""
    return x


@op("Shape", raw=True)
def shape(x: Any, *, start: int = 0, end: int | None = None) -> Any:
    """Sizes of axes ``start`` to ``end``."""
    return shape_value(x.shape[start:end])


@op("Size", raw=True)
def size(x: Any) -> Any:
    """Number of elements."""
    return settled(math.prod(x.shape))


@op("Reshape", since=5, host=(1,), raw=True)
@moves(0)
def reshape(x: Tensor, shape: np.ndarray, *, allowzero: int = 0) -> Tensor:
    """Other sizes for the same elements: 0 keeps an axis (unless ``allowzero``), -1 is found."""
    return _reshaped(x, shape.reshape(-1).tolist(), allowzero)


@op("Reshape", since=1, raw=True)
@moves(0)
def reshape_1(x: Tensor, *, shape: tuple[int, ...], consumed_inputs: Any = None) -> Tensor:
    """Before version 5 the shape was an attribute."""
    return _reshaped(x, list(shape), 0)


def _reshaped(x: Tensor, sizes: list[int], allowzero: int) -> Tensor:
    if not allowzero:
        if any(n == 0 and i >= x.ndim for i, n in enumerate(sizes)):
            raise ShapeError(f"shape {sizes} keeps an axis that {x.shape} does not have")
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    return manipulation.reshape(x, tuple(sizes))


@op("Transpose", raw=True)
@moves(0)
def transpose(x: Tensor, *, perm: tuple[int, ...] | None = None) -> Tensor:
    """Axes in another order; without ``perm`` reversed."""
    return manipulation.permute_dims(x, perm or tuple(reversed(range(x.ndim))))

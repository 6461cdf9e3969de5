"""Arrays from nothing (indices, constants) and changes of dtype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, bf16, boolean, from_float32, i64, to_float32
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, const_node
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import broadcast, normal_axis

__all__ = ["bitcast", "cast", "full", "iota", "ones", "ones_like", "zeros", "zeros_like"]


# --- creation ------------------------------------------------------------------------------------


def _iota_reference(shape: tuple[int, ...], axis: int, dtype: DType) -> np.ndarray:
    line = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    kind = np.dtype(np.float32) if dtype is bf16 else dtype.storage
    return np.broadcast_to(line.astype(kind), shape)


register(
    OpDef(
        "iota",
        lambda inputs, attrs: (attrs["shape"], attrs["dtype"]),
        _iota_reference,
        gradient=lambda node, g: [],
    )
)


def iota(shape: Sequence[int], axis: int = 0, dtype: DType = i64) -> Node:
    """An array whose elements are their own index along ``axis``."""
    sizes = tuple(shape)
    if dtype is boolean:
        raise ShapeError("iota counts in numbers, got bool")
    return make("iota", shape=sizes, axis=normal_axis(axis, len(sizes)), dtype=dtype)


def full(shape: Sequence[int], value: bool | int | float, dtype: DType) -> Node:
    """``value`` everywhere. It becomes part of the program: use few different ones, else
    broadcast a ``graph.scalar_node``."""
    return broadcast(const_node(value, dtype), shape)


def zeros(shape: Sequence[int], dtype: DType) -> Node:
    """Zeros."""
    return full(shape, 0, dtype)


def ones(shape: Sequence[int], dtype: DType) -> Node:
    """Ones."""
    return full(shape, 1, dtype)


def zeros_like(x: Node) -> Node:
    """Zeros of ``x``'s shape and dtype."""
    return full(x.shape, 0, x.dtype)  # type: ignore[arg-type]


def ones_like(x: Node) -> Node:
    """Ones of ``x``'s shape and dtype."""
    return full(x.shape, 1, x.dtype)  # type: ignore[arg-type]


# --- dtypes --------------------------------------------------------------------------------------


def _spelled(dtype: DType) -> str:
    """The dtype's name in the kernel language."""
    return "boolean" if dtype is boolean else dtype.name


def _cast_reference(x: np.ndarray, dtype: DType) -> np.ndarray:
    if dtype is bf16:
        return x.astype(np.float32)  # rounded to bf16 by whoever evaluates
    if not dtype.is_integer or x.dtype.kind != "f":
        return x.astype(dtype.storage)
    limits = np.iinfo(dtype.storage)
    whole = np.trunc(np.where(np.isnan(x), 0, x)).astype(np.float64)
    low, high = whole <= limits.min, whole >= limits.max
    inside = np.where(low | high, 0, whole).astype(dtype.storage)
    return np.where(low, limits.min, np.where(high, limits.max, inside)).astype(dtype.storage)


register(
    OpDef(
        "cast",
        lambda inputs, attrs: (inputs[0].shape, attrs["dtype"]),
        _cast_reference,
        expression=lambda node: f"cast({{0}}, {_spelled(node.dtype)})",
        gradient=lambda node, g: [cast(g, node.inputs[0].dtype)],
    )
)


def cast(x: Node, dtype: DType) -> Node:
    """``x`` as ``dtype``: to float rounds to nearest even; float to integer truncates and
    saturates, NaN becomes 0; integer to integer wraps; to bool is ``x != 0``."""
    return x if x.dtype is dtype else make("cast", x, dtype=dtype)


def _bitcast_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    (x,) = inputs
    dtype = attrs["dtype"]
    if x.dtype.bits != dtype.bits or boolean in (x.dtype, dtype):
        raise ShapeError(f"bitcast keeps the width, and takes no bools: got {x.dtype} as {dtype}")
    return x.shape, dtype


def _bitcast_reference(x: np.ndarray, source: DType, dtype: DType) -> np.ndarray:
    bits = from_float32(x) if source is bf16 else np.ascontiguousarray(x).reshape(x.shape)
    return to_float32(bits.view(np.uint16)) if dtype is bf16 else bits.view(dtype.storage)


def _bitcast_source(node: Node) -> str:
    """A 16-bit float comes widened to f32: first back to its own bits."""
    return f"bitcast(cast({{0}}, {_spelled(node.attrs['source'])}), {_spelled(node.dtype)})"


register(
    OpDef("bitcast", _bitcast_infer, _bitcast_reference, expression=_bitcast_source, gradient=None)
)


def bitcast(x: Node, dtype: DType) -> Node:
    """The bits of ``x`` as another dtype of the same width; no gradient."""
    return x if x.dtype is dtype else make("bitcast", x, source=x.dtype, dtype=dtype)

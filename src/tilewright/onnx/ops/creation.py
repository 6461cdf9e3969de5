"""Tensors from shapes and numbers: constants, ranges, identities, triangles, one-hot codes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tilewright.dtypes import i64
from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.onnx.ops.common import tensor_of, tensor_type
from tilewright.onnx.registry import op
from tilewright.onnx.values import BFLOAT16, is_tensor_dtype
from tilewright.ops import elementwise as ew
from tilewright.ops import views
from tilewright.sizes import whole
from tilewright.tensor.core import Tensor, apply


@op("ConstantOfShape", since=9, host=(0,), raw=True)
def constant_of_shape(shape: np.ndarray, *, value: np.ndarray | None = None) -> Any:
    """One number everywhere; float32 zero by default."""
    number = np.zeros(1, np.float32) if value is None else value
    sizes = tuple(whole(n) for n in shape.reshape(-1))
    if number.size != 1:
        raise ShapeError(f"wants one number, got {number.shape}")
    if not is_tensor_dtype(number.dtype):
        return np.full(sizes, number.reshape(()), number.dtype)
    return apply(views.broadcast, tensor_of(number.reshape(())), shape=sizes)


@op("Range", since=11, host=(0, 1, 2))
def range_(
    start: np.ndarray, limit: np.ndarray, delta: np.ndarray, *, stash_type: int = 1
) -> np.ndarray:
    """``start + i * delta`` up to but without ``limit``."""
    first, last, step = (v.reshape(()) for v in (start, limit, delta))
    dtype = first.dtype
    if dtype.kind in "iu":
        count = max(0, -(-(int(last) - int(first)) // int(step)))
        return np.asarray(int(first) + np.arange(count) * int(step)).astype(dtype)
    half = dtype == np.float16 or dtype == BFLOAT16
    wide = np.dtype(np.float32) if half and stash_type else dtype
    first, last, step = (v.astype(wide) for v in (first, last, step))
    count = max(0, math.ceil((float(last) - float(first)) / float(step)))
    return np.asarray(first + np.arange(count).astype(wide) * step).astype(dtype)


@op("EyeLike", since=9)
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """Ones on the ``k``-th diagonal, in the shape of a matrix."""
    if x.ndim != 2:
        raise ShapeError(f"wants a matrix, got {x.shape}")
    kind = x.dtype if dtype is None else tensor_type(dtype)
    rows = ew.iota(x.shape, 0)
    columns = ew.iota(x.shape, 1)
    ones = ew.eq(ew.add(rows, ew.literal(k, rows)), columns)
    return Tensor(ew.cast(ones, kind))


@op("Trilu", since=14, host=(1,))
def trilu(x: Tensor, k: np.ndarray | None = None, *, upper: int = 1) -> Tensor:
    """The upper (or lower) triangle of each matrix from (to) the ``k``-th diagonal."""
    at = 0 if k is None else int(k.reshape(()))

    def build(node: Node) -> Node:
        rank = x.ndim
        rows, columns = ew.iota(x.shape, rank - 2), ew.iota(x.shape, rank - 1)
        diagonal = ew.add(rows, ew.literal(at, rows))
        kept = ew.ge(columns, diagonal) if upper else ew.le(columns, diagonal)
        return ew.where(kept, node, ew.literal(0, node))

    if x.ndim < 2:
        raise ShapeError(f"wants matrices, got {x.shape}")
    return apply(build, x)


@op("OneHot", since=9, host=(1,))
def one_hot(indices: Tensor, depth: np.ndarray, values: Tensor, *, axis: int = -1) -> Tensor:
    """``values[1]`` at each index along a new axis, ``values[0]`` elsewhere."""
    n = int(depth.reshape(()))
    at = views.normal_axis(axis, indices.ndim + 1)
    if values.shape != (2,):
        raise ShapeError(f"wants values [off, on], got {values.shape}")

    def build(ids: Node, pair: Node) -> Node:
        ids = ew.cast(ids, i64)
        depth = ew.literal(n, ids)
        ids = ew.where(ew.lt(ids, ew.literal(0, ids)), ew.add(ids, depth), ids)
        places = ew.iota((*indices.shape[:at], n, *indices.shape[at:]), at)
        chosen = ew.eq(places, views.expand_dims(ids, at))
        off, on = (views.reshape(v, ()) for v in views.split(pair, [1, 1], 0))
        return ew.where(chosen, on, off)

    return apply(build, indices, values)

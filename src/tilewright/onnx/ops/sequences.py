"""Sequences (lists of values) and optionals (a value or None)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.errors import FormatError, ShapeError
from tilewright.formats.onnx import Graph
from tilewright.onnx.ops.common import as_tensors
from tilewright.onnx.registry import Call, op
from tilewright.ops import views
from tilewright.tensor import manipulation


def _place(position: np.ndarray, count: int, what: str) -> int:
    at = int(position.reshape(()))
    if not -count <= at < count:
        raise ShapeError(f"{what} {at} of {count} values does not exist")
    return at % count


@op("SequenceConstruct", since=11, raw=True)
def sequence_construct(*values: Any) -> list[Any]:
    """The inputs, in order."""
    return list(values)


@op("SequenceEmpty", since=11)
def sequence_empty(*, dtype: int = 1) -> list[Any]:
    """A sequence of nothing."""
    return []


@op("SequenceAt", since=11, host=(1,), raw=True)
def sequence_at(values: list[Any], position: np.ndarray) -> Any:
    """The value at a position, from the end if it is negative."""
    return values[_place(position, len(values), "value")]


@op("SequenceInsert", since=11, host=(2,), raw=True)
def sequence_insert(values: list[Any], value: Any, position: np.ndarray | None = None) -> list[Any]:
    """With one more value before a position (at the end by default)."""
    at = len(values)
    if position is not None:
        at = int(position.reshape(()))
        if not -len(values) <= at <= len(values):
            raise ShapeError(f"position {at} of {len(values)} values does not exist")
        at += len(values) if at < 0 else 0
    return [*values[:at], value, *values[at:]]


@op("SequenceErase", since=11, host=(1,), raw=True)
def sequence_erase(values: list[Any], position: np.ndarray | None = None) -> list[Any]:
    """Without the value at a position (the last by default)."""
    if position is None:
        position = np.array(-1)
    at = _place(position, len(values), "value")
    return [*values[:at], *values[at + 1 :]]


@op("SequenceLength", since=11, raw=True)
def sequence_length(values: list[Any]) -> np.ndarray:
    """How many values there are."""
    return np.array(len(values), np.int64)


@op("SequenceMap", since=17, raw=True)
def sequence_map(first: list[Any], *others: Any, body: Graph, ctx: Call) -> Any:
    """A body's results for each value of the first sequence (and of the others)."""
    rows: list[list[Any]] = [[] for _ in body.outputs]
    for i, value in enumerate(first):
        more = [o[i] if isinstance(o, list) else o for o in others]
        for row, result in zip(rows, ctx.run(body, [value, *more])):
            row.append(result)
    return tuple(rows)


@op("SplitToSequence", since=11, host=(1,), raw=True)
def split_to_sequence(
    x: Any, split: np.ndarray | None = None, *, axis: int = 0, keepdims: int = 1
) -> list[Any]:
    """Pieces along an axis: of the sizes ``split``, of one size, or single slices."""
    at = views.normal_axis(axis, x.ndim)
    n = x.shape[at]
    if split is None:
        sizes = [1] * n
    elif split.ndim == 0:
        size = int(split)
        if size < 1:
            raise ShapeError(f"pieces have at least one element, got {size}")
        sizes = [min(size, n - i) for i in range(0, n, size)]
    else:
        sizes = split.tolist()
    if sum(sizes) != n or min(sizes, default=0) < 0:
        raise ShapeError(f"pieces of {sizes} do not make axis {axis} of {x.shape}")
    pieces: list[Any]
    if isinstance(x, np.ndarray):
        pieces = np.split(x, np.cumsum(sizes)[:-1].astype(int), at) if sizes else []
    else:
        pieces = list(manipulation.split(x, sizes, axis=at))
    if split is None and not keepdims:
        return [p.squeeze(at) for p in pieces]
    return pieces


@op("ConcatFromSequence", since=11, raw=True)
def concat_from_sequence(values: list[Any], *, axis: int, new_axis: int = 0) -> Any:
    """The values one after the other along an axis, or along a new one."""
    if not values:
        raise ShapeError("an empty sequence cannot be concatenated")
    tensors = as_tensors(values)
    if tensors is None:
        return np.stack(values, axis) if new_axis else np.concatenate(values, axis)
    join = manipulation.stack if new_axis else manipulation.concat
    return join(tensors, axis=axis)


# --- optionals -----------------------------------------------------------------------------------


@op("Optional", since=15, raw=True)
def optional(value: Any = None, *, type: Any = None) -> Any:
    """A value that may be missing."""
    return value


@op("OptionalHasElement", since=15, raw=True)
def optional_has_element(value: Any = None) -> np.ndarray:
    """Whether there is a value."""
    return np.array(value is not None)


@op("OptionalGetElement", since=15, raw=True)
def optional_get_element(value: Any = None) -> Any:
    """The value of an optional."""
    if value is None:
        raise FormatError("the optional is empty")
    return value

"""What gathers and scatters share: checks, sums in order, and which of several updates stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, bf16, boolean, f16, f32, i32, i64
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.graph import Node, Shape, const_node, shape_of
from tilewright.ops import elementwise, views
from tilewright.ops.calls import KernelCall
from tilewright.ops.layout_kernels import copy_calls, zero_calls
from tilewright.sizes import has_value

__all__ = [
    "MODES",
    "accumulator",
    "axis_of",
    "check_ids",
    "check_updates",
    "is_inside",
    "marks_for",
    "places_along",
    "positions",
    "put_in_order",
    "reduced_gradient",
    "scattered",
    "size_of",
    "sum_dtype",
    "where_last",
    "zeros_of",
]


MODES: Final[dict[str, Any]] = {
    "set": None, "add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum,
}  # fmt: skip
"""What becomes of an element and its updates."""


def axis_of(op: str, x: Node, axis: int) -> int:
    """``axis`` counted from the front; :class:`ShapeError` when x has none there."""
    rank = len(x.shape)
    if not -rank <= axis < rank:
        raise ShapeError(f"{op}: axis {axis} of {x.dtype}{shape_of(x.shape)} does not exist")
    return axis % rank


def check_ids(op: str, ids: Node) -> None:
    """Refuse ids that are not i32 or i64."""
    if ids.dtype not in (i32, i64):
        raise ShapeError(f"{op} wants ids of i32 or i64, got {ids.dtype}{shape_of(ids.shape)}")


def check_updates(op: str, updates: Node, shape: Sequence[Any], dtype: DType, mode: str) -> None:
    """Refuse updates of another shape or dtype, bools but with "set", unknown modes."""
    if mode not in MODES:
        raise ShapeError(f"{op}: the mode is {', '.join(map(repr, MODES))}, got {mode!r}")
    if mode != "set" and dtype is boolean:
        raise ShapeError(f"{op}: bools can only be set, mode {mode!r} wants another dtype")
    if tuple(updates.shape) != tuple(shape) or updates.dtype is not dtype:
        raise ShapeError(
            f"{op} wants updates {dtype}{shape_of(tuple(shape))}, "
            f"got {updates.dtype}{shape_of(updates.shape)}"
        )


def wide(dtype: DType) -> DType:
    """The dtype that sums are kept in."""
    return f32 if dtype in (f16, bf16) else dtype


def sum_dtype(x: np.ndarray) -> Any:
    """The NumPy dtype that references keep sums in."""
    return np.float32 if x.dtype == np.float16 else x.dtype


def accumulator(node: Node) -> Sequence[tuple[DType, Shape]]:
    """Memory for the sums (and products) of 16-bit floats."""
    sums = node.attrs.get("mode", "add") in ("add", "mul")
    return ((f32, node.shape),) if sums and wide(node.dtype) is not node.dtype else ()


def scattered(base: Any | None, out: Any, workspace: Sequence[Any], run: Any) -> list[KernelCall]:
    """``run(total)`` between the start values (``base``, else zeros) and ``out``."""
    total = workspace[0] if workspace else out
    calls = zero_calls(total) if base is None else copy_calls(base, total)
    calls += run(total)
    if workspace:
        calls += copy_calls(total, out)
    return calls


def is_inside(ids: np.ndarray, n: int) -> np.ndarray:
    """Which ids name one of n elements."""
    return np.asarray((ids >= 0) & (ids < n))


def put_in_order(
    out: np.ndarray, index: tuple[np.ndarray, ...], rows: np.ndarray, mode: str
) -> np.ndarray:
    """``out[index] = rows`` (or ``+=``, ...) row by row, in order, without what is outside."""
    out = np.ascontiguousarray(out)
    flat = rows.reshape(index[0].size, *rows.shape[index[0].ndim :])
    places = [i.ravel() for i in index]
    inside = np.ones(len(flat), bool)
    for i, n in zip(places, out.shape):
        inside &= is_inside(i, n)
    at = tuple(i[inside] for i in places)
    if mode != "set":
        MODES[mode].at(out, at, flat[inside])
    else:
        for *place, row in zip(*at, flat[inside]):
            out[tuple(place)] = row
    return out


def size_of(x: Node, axis: int) -> int:
    """The size of an axis, which must be known."""
    n = x.shape[axis]
    if not has_value(n):
        raise ShapeError(f"axis {axis} of {x.dtype}{shape_of(x.shape)} has no size yet")
    return n


# --- which of several updates of one place stays -------------------------------------------------


def places_along(x: Node, axis: int) -> Node:
    """The index along ``axis`` at each element of ``x``."""
    return elementwise.iota([size_of(x, a) for a in range(len(x.shape))], axis, i32)


def positions(updates: Node, axis: int, axes: int) -> Node:
    """The number of each update in the order they are written: ascending along ``axes`` axes."""
    total = zeros_of(updates, i32)
    for a in range(axis, axis + axes):
        size = const_node(size_of(updates, a), i32)
        total = elementwise.add(elementwise.mul(total, size), places_along(updates, a))
    return total


def marks_for(like: Node) -> Node:
    """Minus one everywhere: no update has been here."""
    return views.broadcast(const_node(-1, i32), like.shape)


def zeros_of(like: Node, dtype: DType | None = None) -> Node:
    """Zeros of the shape (and dtype) of ``like``."""
    return views.broadcast(const_node(0, dtype or like.dtype), like.shape)


def where_last(marks: Node, places: Node, grad: Node) -> Node:
    """``grad`` where the update's own number is still there."""
    return elementwise.where(elementwise.eq(marks, places), grad, zeros_of(grad))


def reduced_gradient(
    node: Node,
    grad: Node,
    take: Callable[[Node], Node],
    add: Callable[[Node, Node], Node],
) -> Sequence[Node | None]:
    """The gradient of modes ``max`` and ``min``: shared evenly by all that are the extreme.

    ``take(y)`` is y where the updates go; ``add(y, updates)`` is y with updates added there.
    """
    x, _, updates = node.inputs
    if node.attrs["mode"] == "mul":
        raise UnsupportedError(f"{node.op} with mode 'mul' has no gradient")
    kind = wide(x.dtype)
    first = elementwise.cast(elementwise.eq(x, node), kind)
    others = elementwise.cast(elementwise.eq(updates, take(node)), kind)
    share = elementwise.div(elementwise.cast(grad, kind), add(first, others))
    to_x = elementwise.mul(share, first)
    to_updates = elementwise.mul(take(share), others)
    return elementwise.cast(to_x, x.dtype), None, elementwise.cast(to_updates, x.dtype)

"""Arrays in memory and the windows that kernels read and write.

``x[row, j : j + BLOCK]`` reads a window: ``row`` and ``j`` may be runtime values, the length
``BLOCK`` is a constant. An integer tile as an index gathers, as a target it scatters. Every access
is total: an element outside the array reads as zero (or ``load``'s ``fill``) and is never written.
Negative indices lie outside too; they do not count from the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.dtypes import DType, boolean, i64
from tilewright.errors import KernelError
from tilewright.lang.engine import current
from tilewright.lang.ir import ArrayType, At, Axis, Gather, TileType, Window, access_shape
from tilewright.lang.tile import Tile, as_index, as_tile, broadcast, cast, describe

__all__ = ["Array", "Shape", "Span"]


@dataclass(frozen=True, eq=False)
class Span:
    """A slice whose length is known although its start may not be; ``open`` ends at the edge."""

    start: Any
    length: int
    step: int = 1


class Shape(Sequence[Any]):
    """An array's sizes: Python ints where they are static, i64 scalars where they are not."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __len__(self) -> int:
        return self._array.type.ndim

    def __getitem__(self, axis: Any) -> Any:
        if isinstance(axis, slice):
            return tuple(self[a] for a in range(len(self))[axis])
        if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
            raise KernelError(f"shape[...] wants a compile-time integer, got {describe(axis)}")
        if not -len(self) <= axis < len(self):
            raise KernelError(f"axis {axis} is out of range for an array with {len(self)} axes")
        at = int(axis) % len(self)
        size = self._array.type.shape[at]
        if size is not None:
            return size
        return current().emit("dim", (self._array,), (TileType(i64),), axis=at)[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[a] for a in range(len(self)))

    def __repr__(self) -> str:
        return "(" + ", ".join("?" if n is None else str(n) for n in self._array.type.shape) + ")"


class Array:
    """An array argument (or ``scratch``); index it to read or write a window.

    ``data`` belongs to the engine: an IR value while parsing, an ndarray while interpreting
    (bf16 as uint16 bit patterns).
    """

    __slots__ = ("data", "name", "type")

    def __init__(self, data: Any, type: ArrayType, name: str = "") -> None:
        self.data = data
        self.type = type
        self.name = name

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def ndim(self) -> int:
        return self.type.ndim

    @property
    def shape(self) -> Any:
        return Shape(self)

    def numpy(self) -> np.ndarray:
        """The memory, while interpreting; for debugging."""
        if not isinstance(self.data, np.ndarray):
            raise KernelError("an array has values only while the kernel is interpreted")
        return self.data

    def __len__(self) -> int:
        size = self.type.shape[0] if self.type.shape else None
        if size is None:
            raise KernelError("len() wants a size known at compile time: use x.shape[0]")
        return size

    def __bool__(self) -> bool:
        raise KernelError(f"{describe(self)} has no truth value")

    def __iter__(self) -> Any:
        raise KernelError("an array cannot be iterated: loop over range(x.shape[0]) and index it")

    def __repr__(self) -> str:
        return f"<{self.name or 'array'}: {self.type}>"

    def __getitem__(self, key: Any) -> Tile:
        axes, index = resolve(self, key)
        shape = access_shape(axes, [t.shape for t in index])
        result = TileType(self.dtype, shape)
        tile = current().emit("load", (self, *index), (result,), axes=axes, fill=0)[0]
        tile.origin = (self, key)
        return tile

    def __setitem__(self, key: Any, value: Any) -> None:
        axes, index = resolve(self, key)
        shape = access_shape(axes, [t.shape for t in index])
        if isinstance(value, Tile):
            if value.dtype.is_float and not self.dtype.is_float and self.dtype is not boolean:
                raise KernelError(
                    f"storing {describe(value)} into an array of {self.dtype} would truncate it: "
                    f"say so with .to({self.dtype})"
                )
            tile = cast(value, self.dtype)
        else:
            tile = as_tile(value, self.dtype)
        target = Tile(None, self.dtype, shape)
        if broadcast("store", tile, target) != shape:
            raise KernelError(f"a value of shape {tile.shape} does not fit a window of {shape}")
        current().emit("store", (self, *index, tile), (), axes=axes)

    def _no_arithmetic(self, *_: Any) -> Any:
        raise KernelError(
            f"{describe(self)} is memory, not a tile: read a window of it, x[i : i + N]"
        )

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _no_arithmetic
    __hash__ = object.__hash__
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _no_arithmetic
    __truediv__ = __rtruediv__ = __floordiv__ = __mod__ = __neg__ = _no_arithmetic


def resolve(array: Array, key: Any) -> tuple[tuple[Axis, ...], tuple[Tile, ...]]:
    """The addressing of ``array[key]``: one axis descriptor and one index operand per axis."""
    keys = list(key) if isinstance(key, tuple) else [key]
    at = next((i for i, k in enumerate(keys) if k is Ellipsis), None)
    if at is not None:
        keys[at : at + 1] = [slice(None)] * (array.ndim - len(keys) + 1)
    if any(k is None for k in keys):
        raise KernelError("an array takes no None index: read the window, then tile[:, None]")
    if len(keys) != array.ndim:
        raise KernelError(
            f"{array.name or 'the array'} has {array.ndim} axes, {len(keys)} are indexed: "
            "every axis wants an index or a slice"
        )
    axes: list[Axis] = []
    index: list[Tile] = []
    for axis, k in enumerate(keys):
        if isinstance(k, (slice, Span)):
            span = k if isinstance(k, Span) else _span(array, axis, k)
            axes.append(Window(span.length, span.step))
            index.append(as_index(span.start))
        elif isinstance(k, Tile) and k.shape:
            if not k.dtype.is_integer:
                raise KernelError(f"a gather wants an integer tile, got {describe(k)}")
            axes.append(Gather())
            index.append(k)
        else:
            axes.append(At())
            index.append(as_index(k))
    _check_gathers(axes, index)
    return tuple(axes), tuple(index)


def _check_gathers(axes: list[Axis], index: list[Tile]) -> None:
    places = [i for i, a in enumerate(axes) if isinstance(a, Gather)]
    if len(places) > 1:
        broadcast("gather", *(index[i] for i in places))
        if any(isinstance(a, Window) for a in axes[places[0] : places[-1]]):
            raise KernelError("gathered axes must be adjacent, a slice stands between them")


def _span(array: Array, axis: int, key: slice) -> Span:
    step = 1 if key.step is None else key.step
    if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or step < 1:
        raise KernelError(
            f"a window's step must be a positive compile-time integer, got {describe(step)}"
        )
    start = 0 if key.start is None else key.start
    stop = key.stop
    if stop is None:
        stop = array.type.shape[axis]
        if stop is None:
            raise KernelError(
                f"axis {axis} of {array.name or 'the array'} has no size known at compile time: "
                "give the window a constant length, j : j + BLOCK"
            )
    return make_span(start, stop, int(step))


def make_span(start: Any, stop: Any, step: int = 1) -> Span:
    """``start : stop : step`` when ``stop - start`` is a compile-time constant."""
    for bound in (start, stop):
        if isinstance(bound, Tile) and (bound.shape or not bound.dtype.is_integer):
            raise KernelError(f"a slice wants integer scalars, got {describe(bound)}")
        if not isinstance(bound, (Tile, int, np.integer)) or isinstance(bound, bool):
            raise KernelError(f"a slice wants integers, got {describe(bound)}")
    distance = current().distance(start, stop)
    if distance is None:
        raise KernelError(
            "the length of a window must be a compile-time constant: "
            "write start : start + LENGTH with LENGTH a number or a Const parameter"
        )
    if distance < 1:
        raise KernelError(f"a window must be at least one element long, got length {distance}")
    return Span(start, -(-distance // step), step)

"""Buffers: typed, strided views of 64-byte aligned memory that kernels read and write."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, from_numpy
from tilewright.errors import ShapeError
from tilewright.sizes import whole

__all__ = [
    "ALIGN",
    "Buffer",
    "address_of",
    "dense_strides",
    "empty",
    "from_array",
    "padded_strides",
    "zeros",
]

ALIGN: Final = 64


@dataclass(eq=False, slots=True, weakref_slot=True)
class Buffer:
    """An array in memory. Not to be changed (and no frozen dataclass: those are slow to make).

    Attributes:
        dtype: element type; bf16 is stored as uint16 bit patterns.
        shape: sizes. While a program for many sizes is built they may be symbolic, as strides and
            pointer are then (see :mod:`tilewright.sizes`); such a buffer has no memory of its own.
        strides: distances between neighbours along each axis, in elements.
        pointer: address of the element at index 0, 0, ...
        owner: what keeps the memory alive.
        fixed: sizes and strides of the axes from this one on are the same in every use (packed
            weights, caches): kernels are specialised for them, which saves address arithmetic
            and bounds checks. ``None``: only for a unit stride of the last axis.
    """

    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    pointer: int
    owner: Any = field(default=None, repr=False)
    fixed: int | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements, padding not counted."""
        return self.size * self.dtype.nbytes

    def fix(self, first: int = 1) -> Buffer:
        """The same buffer, its axes from ``first`` on ``fixed``."""
        return replace(self, fixed=first)

    def numpy(self) -> np.ndarray:
        """The same memory as an ndarray (bf16 as uint16); it keeps the memory alive."""
        return np.asarray(_Interface(self))

    def view(
        self,
        shape: Sequence[int],
        strides: Sequence[int] | None = None,
        offset: int = 0,
        dtype: DType | None = None,
    ) -> Buffer:
        """Another look at the same memory.

        Args:
            shape: sizes of the view.
            strides: in elements of ``dtype``; default C-contiguous.
            offset: where the view starts, in elements of ``dtype`` from this buffer's start.
            dtype: default this buffer's.

        Raises :class:`ShapeError` when the view would leave the bytes this buffer spans.
        """
        kind = dtype or self.dtype
        sizes = tuple([whole(n) for n in shape])
        steps = dense_strides(sizes) if strides is None else tuple([whole(s) for s in strides])
        if len(steps) != len(sizes):
            raise ShapeError(f"a view of shape {sizes} wants {len(sizes)} strides, got {steps}")
        low, high = _span(sizes, steps)
        mine = _span(self.shape, self.strides)
        start, stop = (offset + low) * kind.nbytes, (offset + high) * kind.nbytes
        if high > low and not (
            mine[0] * self.dtype.nbytes <= start and stop <= mine[1] * self.dtype.nbytes
        ):
            raise ShapeError(
                f"a view {kind}{sizes} with strides {steps} at offset {offset} covers bytes "
                f"{start} to {stop} of a buffer {self.dtype}{self.shape} with strides "
                f"{self.strides}"
            )
        return Buffer(kind, sizes, steps, self.pointer + offset * kind.nbytes, self.owner)


def _data_field() -> Any:
    """How to read the address of an array's memory quickly.

    NumPy's C interface fixes where it stands: right after the object's head. Asked by name it takes
    ten times as long, as an object is made for the answer.
    """
    read = ctypes.c_void_p.from_address
    head = object.__basicsize__
    if sys.implementation.name != "cpython":
        return lambda array: array.ctypes.data
    for probe in (np.empty(3), np.empty((2, 2), np.int8)[:, 1:]):
        if read(id(probe) + head).value != probe.ctypes.data:
            return lambda array: array.ctypes.data
    return lambda array: read(id(array) + head).value or 0


address_of: Final = _data_field()
"""The address of an array's first element."""


def empty(dtype: DType, shape: Sequence[int], pad_rows: bool = False) -> Buffer:
    """Uninitialised memory, 64-byte aligned; ``pad_rows`` lays it out by :func:`padded_strides`."""
    return _allocate(np.empty, dtype, shape, pad_rows)


def zeros(dtype: DType, shape: Sequence[int], pad_rows: bool = False) -> Buffer:
    """Like :func:`empty`, zeroed (padding too)."""
    return _allocate(np.zeros, dtype, shape, pad_rows)


def from_array(array: np.ndarray, dtype: DType | None = None) -> Buffer:
    """The memory of ``array`` as a buffer, without a copy.

    ``dtype`` names what NumPy cannot: ``bf16`` for uint16 bit patterns.

    Raises :class:`ShapeError` when the dtypes do not match or a stride is not whole elements.
    """
    try:
        kind = dtype or from_numpy(array.dtype)
    except KeyError:
        raise ShapeError(f"no buffer holds elements of NumPy dtype {array.dtype}") from None
    if kind.storage != array.dtype:
        raise ShapeError(f"a buffer of {kind} stores {kind.storage}, the array is {array.dtype}")
    if any(step % array.itemsize for step in array.strides):
        raise ShapeError(
            f"byte strides {array.strides} are not whole elements of {array.itemsize} bytes"
        )
    strides = tuple(step // array.itemsize for step in array.strides)
    return Buffer(kind, array.shape, strides, address_of(array), array)


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides (elements) of a C-contiguous array."""
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def padded_strides(shape: Sequence[int], dtype: DType) -> tuple[int, ...]:
    """Strides (elements) of a row-major array whose rows do not fall on the same cache sets.

    A row of a multiple of 2048 bytes gets 64 bytes more: rows that lie such a distance apart share
    the few sets of the L1 cache they map to, and a tile of a dozen rows would evict itself.
    """
    if len(shape) < 2:
        return dense_strides(shape)
    row = shape[-1]
    if row > 0 and row * dtype.nbytes % 2048 == 0:
        row += ALIGN // dtype.nbytes
    strides = [1, row]
    for n in reversed(shape[1:-1]):
        strides.append(strides[-1] * n)
    return tuple(reversed(strides))


@dataclass(frozen=True)
class _Interface:
    buffer: Buffer

    @property
    def __array_interface__(self) -> dict[str, Any]:
        b = self.buffer
        return {
            "version": 3,
            "shape": b.shape,
            "typestr": b.dtype.storage.str,
            "strides": tuple(s * b.dtype.nbytes for s in b.strides),
            "data": (b.pointer, False),
        }


def _allocate(make: Any, dtype: DType, shape: Sequence[int], pad_rows: bool) -> Buffer:
    sizes = tuple(int(n) for n in shape)
    if any(n < 0 for n in sizes):
        raise ShapeError(f"a buffer has no negative sizes, got {sizes}")
    strides = padded_strides(sizes, dtype) if pad_rows else dense_strides(sizes)
    # whole rows: the last one has its padding too
    count = sizes[0] * strides[0] if sizes else 1
    raw = make(count * dtype.nbytes + ALIGN, np.uint8)
    pointer = raw.ctypes.data + -raw.ctypes.data % ALIGN
    return Buffer(dtype, sizes, strides, pointer, raw)


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int]:
    """The elements (low, high) relative to the first one that an array touches."""
    if 0 in shape:
        return 0, 0
    reach = [(n - 1) * s for n, s in zip(shape, strides)]
    return sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach) + 1

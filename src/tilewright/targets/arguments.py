"""Argument blocks: how a launch hands its grid, arrays and scalars to compiled code.

A block is 64-bit slots::

    g0 g1 g2                            the grid
    pointer shape[ndim] strides[ndim]   of each array (sizes and strides in elements)
    value                               of each scalar

in the order of the kernel's runtime parameters; a variadic parameter stands for its arrays, one
after the other. Integer scalars are extended to 64 bits; f32 sits in the low four bytes of its
slot, f16 and bf16 in the low two, bool is 0 or 1.
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, bf16, boolean, f16, f32, f64, from_float32
from tilewright.errors import ShapeError
from tilewright.lang.ir import ArrayType, TileType

__all__ = [
    "MOST_PROGRAMS",
    "Grid",
    "Packer",
    "Parameter",
    "View",
    "grid_of",
    "runtime_parameters",
    "unpack",
]

Grid = int | Sequence[int]
Parameter = tuple[str, ArrayType | TileType | tuple[ArrayType, ...]]

_F32: Final = struct.Struct("<f")
_U32: Final = struct.Struct("<I")
MOST_PROGRAMS: Final = (1 << 28) - 1


@dataclass(frozen=True)
class View:
    """An array in memory that somebody else keeps alive; strides in elements."""

    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    pointer: int

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.storage.str,
            "strides": tuple(s * self.dtype.nbytes for s in self.strides),
            "data": (self.pointer, False),
        }

    def numpy(self) -> np.ndarray:
        """The same memory as an ndarray (bf16 as uint16)."""
        return np.asarray(self)


def grid_of(grid: Grid, kernel: str = "launch") -> tuple[int, int, int]:
    """``grid`` as three sizes; missing ones are 1.

    Raises :class:`ShapeError` for more than three, a negative one, or 2**28 programs and more.
    """
    try:
        if isinstance(grid, Sequence):
            sizes = tuple(map(operator.index, grid))
        else:
            sizes = (operator.index(grid),)
    except TypeError:
        sizes = ()
    if not 1 <= len(sizes) <= 3 or any(g < 0 for g in sizes):
        raise ShapeError(f"{kernel}: a grid is one to three sizes >= 0, got {grid!r}")
    if math.prod(sizes) > MOST_PROGRAMS:
        raise ShapeError(
            f"{kernel}: grid {sizes} has {math.prod(sizes)} programs, at most {MOST_PROGRAMS} "
            "fit one launch; give each program more work"
        )
    return (*sizes, 1, 1)[:3]  # type: ignore[return-value]


def runtime_parameters(kernel: Any, signature: Any) -> list[Parameter]:
    """Names and types of what is passed at run time, in order: constants left out."""
    return [item for p, item in zip(kernel.parameters, signature.items) if p.kind != "const"]


class Packer:
    """Packs the runtime arguments of one specialised kernel; checks them on the way.

    Args:
        kernel: name for messages.
        parameters: name and type of each runtime parameter, in order.
        stores: runtime parameters (by flat array position) that the kernel writes.
    """

    def __init__(
        self, kernel: str, parameters: Iterable[Parameter], stores: Iterable[int] = ()
    ) -> None:
        self.kernel = kernel
        self.parameters = list(parameters)
        self.stores = frozenset(stores)
        self._flat: list[_Array | _Scalar] = []
        self._variadic = any(isinstance(kind, tuple) for _, kind in self.parameters)
        for name, kind in self.parameters:
            if isinstance(kind, tuple):
                for i, one in enumerate(kind):
                    self._add(f"{name}[{i}]", one)
            else:
                self._add(name, kind)
        self.slots = 3 + sum(item.slots for item in self._flat)

    def _add(self, name: str, kind: ArrayType | TileType) -> None:
        where = f"{self.kernel}: argument {name!r}"
        if isinstance(kind, ArrayType):
            self._flat.append(_Array(where, kind, len(self._flat) in self.stores))
        else:
            self._flat.append(_Scalar(where, kind.dtype))

    def values(self, grid: Grid, args: Sequence[Any]) -> list[int]:
        """The slots as signed 64-bit integers.

        Raises :class:`ShapeError` when an argument does not fit the signature.
        """
        out = list(grid_of(grid, self.kernel))
        if len(args) != len(self.parameters):
            names = ", ".join(name for name, _ in self.parameters)
            raise ShapeError(
                f"{self.kernel}: wants {len(self.parameters)} runtime arguments ({names}), "
                f"got {len(args)}"
            )
        for item, value in zip(self._flat, self._flatten(args) if self._variadic else args):
            item.pack(value, out)
        return out

    def pack(self, grid: Grid, args: Sequence[Any]) -> np.ndarray:
        """The slots as an int64 array; see :meth:`values`."""
        return np.array(self.values(grid, args), np.int64)

    def _flatten(self, args: Sequence[Any]) -> list[Any]:
        flat: list[Any] = []
        for (name, kind), value in zip(self.parameters, args):
            if not isinstance(kind, tuple):
                flat.append(value)
                continue
            if not isinstance(value, (tuple, list)) or len(value) != len(kind):
                got = f"{len(value)}" if isinstance(value, (tuple, list)) else f"{value!r}"
                raise ShapeError(
                    f"{self.kernel}: argument {name!r} wants a tuple of {len(kind)} arrays, "
                    f"got {got}"
                )
            flat.extend(value)
        return flat


def unpack(
    parameters: Iterable[Parameter], slots: np.ndarray
) -> tuple[tuple[int, int, int], list[Any]]:
    """The grid and the arguments that a block holds: views of arrays, Python scalars."""
    values = [int(v) for v in slots]
    at = 3

    def take(kind: ArrayType | TileType) -> Any:
        nonlocal at
        if isinstance(kind, TileType):
            at += 1
            return _scalar_of(values[at - 1], kind.dtype)
        n = kind.ndim
        pointer, *sizes = values[at : at + 1 + 2 * n]
        at += 1 + 2 * n
        return View(kind.dtype, tuple(sizes[:n]), tuple(sizes[n:]), pointer)

    args: list[Any] = []
    for _, kind in parameters:
        args.append(tuple(take(k) for k in kind) if isinstance(kind, tuple) else take(kind))
    return (values[0], values[1], values[2]), args


class _Array:
    """One array parameter."""

    def __init__(self, where: str, kind: ArrayType, stored: bool) -> None:
        self.where = where
        self.kind = kind
        self.stored = stored
        self.ndim = kind.ndim
        self.slots = 1 + 2 * kind.ndim
        self._nbytes = kind.dtype.nbytes
        self._storage = kind.dtype.storage
        self._sizes = [(i, n) for i, n in enumerate(kind.shape) if n is not None]
        self._strides = [(i, n) for i, n in enumerate(kind.strides) if n is not None]
        self._in_elements: dict[tuple[int, ...], tuple[int, ...]] = {}

    def pack(self, value: Any, out: list[int]) -> None:
        strides: Sequence[int]
        if isinstance(value, np.ndarray):
            dtype = value.dtype
            if dtype is not self._storage and dtype != self._storage:
                raise self._misfit(value)
            pointer = value.ctypes.data
            strides = self._in_elements.get(value.strides, ())
            if (not strides and value.ndim) or pointer % self._nbytes:
                strides = self._elements(value)
            if self.stored and not value.flags.writeable:
                raise ShapeError(f"{self.where} is written by the kernel, the array is read-only")
        else:
            try:
                if value.dtype is not self.kind.dtype:
                    raise self._misfit(value)
                pointer, strides = value.pointer, value.strides
            except AttributeError:
                raise self._misfit(value) from None
        shape = value.shape
        if len(shape) != self.ndim:
            raise self._misfit(value)
        for axis, n in self._sizes:
            if shape[axis] != n:
                raise self._misfit(value)
        for axis, n in self._strides:
            if strides[axis] != n and shape[axis] > 1:
                raise self._misfit(value)
        out.append(pointer)
        out += shape
        out += strides

    def _elements(self, value: np.ndarray) -> tuple[int, ...]:
        """The array's strides in elements, remembered: most launches bring the same ones."""
        nbytes = self._nbytes
        if value.ctypes.data % nbytes or any(s % nbytes for s in value.strides):
            raise ShapeError(
                f"{self.where}: elements of {nbytes} bytes lie at address {value.ctypes.data:#x} "
                f"with byte strides {value.strides}, wants whole elements; pass a copy"
            )
        strides = tuple(s // nbytes for s in value.strides)
        if len(self._in_elements) < 256:
            self._in_elements[value.strides] = strides
        return strides

    def _misfit(self, value: Any) -> ShapeError:
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            strides = tuple(value.strides)
            if isinstance(value, np.ndarray):
                strides = tuple(s // value.itemsize for s in strides)
            got = f"{value.dtype}{list(value.shape)} with strides {strides} (elements)"
        else:
            got = f"{type(value).__name__} {value!r}"
        return ShapeError(f"{self.where} is {got}, the kernel was compiled for {self.kind}")


class _Scalar:
    """One scalar parameter."""

    slots = 1

    def __init__(self, where: str, dtype: DType) -> None:
        self.where = where
        self.dtype = dtype

    def pack(self, value: Any, out: list[int]) -> None:
        dtype = self.dtype
        try:
            if dtype is f32:
                try:
                    out.append(_U32.unpack(_F32.pack(value))[0])
                except (OverflowError, struct.error):
                    out.append(_bits("<I", "<f", float(value)))
            elif dtype.is_float:
                out.append(_float_bits(float(value), dtype))
            elif dtype is boolean:
                out.append(int(bool(value)))
            else:
                out.append(self._integer(value.__index__()))
        except (TypeError, ValueError, AttributeError):
            raise ShapeError(f"{self.where} wants {dtype}, got {value!r}") from None

    def _integer(self, value: int) -> int:
        bits = self.dtype.bits
        low, high = (-(1 << bits - 1), 1 << bits - 1) if self.dtype.is_signed else (0, 1 << bits)
        if not low <= value < high:
            raise ShapeError(f"{self.where}: {value} does not fit {self.dtype}")
        return value - (1 << 64) if value >= 1 << 63 else value


def _bits(integer: str, floating: str, value: float) -> int:
    try:
        raw = struct.pack(floating, value)
    except OverflowError:  # beyond the largest finite value
        raw = struct.pack(floating, math.copysign(math.inf, value))
    return struct.unpack(integer, raw)[0]


def _float_bits(value: float, dtype: DType) -> int:
    if dtype is f64:
        return _bits("<q", "<d", value)
    if dtype is f16:
        with np.errstate(over="ignore"):
            return int(np.float16(value).view(np.uint16))
    return int(from_float32(np.array([_round_f32(value)], np.float32))[0])


def _round_f32(value: float) -> float:
    return struct.unpack("<f", struct.pack("<I", _bits("<I", "<f", value)))[0]


def _scalar_of(slot: int, dtype: DType) -> bool | int | float:
    if dtype is boolean:
        return bool(slot & 1)
    if not dtype.is_float:
        return slot % (1 << 64) if dtype.kind == "u" else slot
    raw = slot.to_bytes(8, "little", signed=True)
    if dtype is bf16:
        return struct.unpack("<f", b"\0\0" + raw[:2])[0]
    code = {64: "<d", 32: "<f", 16: "<e"}[dtype.bits]
    return struct.unpack(code, raw[: dtype.nbytes])[0]

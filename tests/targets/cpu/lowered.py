"""Compiling and calling hand-built tile IR on NumPy arrays, without the launch machinery."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.dtypes import DType
from tilewright.lang import ir
from tilewright.targets.cpu.codegen import assembly, compile_object
from tilewright.targets.cpu.loader import process_loader
from tilewright.targets.cpu.lower import lower, symbol_name
from tilewright.targets.cpu.machine import Machine

_SCALAR = {"f32": "<f4", "f64": "<f8"}


def aligned(shape: Sequence[int], dtype: object) -> np.ndarray:
    """A zeroed array on a 64-byte boundary."""
    n = int(np.prod(shape)) * np.dtype(dtype).itemsize  # type: ignore[call-overload]
    raw = np.zeros(n + 64, np.uint8)
    at = -raw.ctypes.data % 64
    return raw[at : at + n].view(dtype).reshape(shape)


def pack(grid: Sequence[int], args: Sequence[object], dtypes: Sequence[DType]) -> np.ndarray:
    """The argument block."""
    slots: list[bytes] = [int(g).to_bytes(8, "little") for g in (*grid, 1, 1, 1)[:3]]
    for arg, dtype in zip(args, dtypes):
        if isinstance(arg, np.ndarray):
            strides = [s // arg.itemsize for s in arg.strides]
            for n in (arg.ctypes.data, *arg.shape, *strides):
                slots.append(int(n).to_bytes(8, "little", signed=True))
        elif dtype.is_float:
            slots.append(np.array(arg, dtype.storage).tobytes().ljust(8, b"\0"))
        else:
            slots.append(int(arg).to_bytes(8, "little", signed=int(arg) < 0))  # type: ignore
    return np.frombuffer(b"".join(slots), np.uint8).copy()


@dataclass(frozen=True)
class Compiled:
    """A kernel in this process; call ``compiled[grid](*args)``."""

    fn: ir.Function
    machine: Machine
    llvm: str
    address: int

    @property
    def asm(self) -> str:
        return assembly(self.llvm, self.machine)

    def __getitem__(self, grid: int | tuple[int, ...]) -> Callable[..., None]:
        grid = grid if isinstance(grid, tuple) else (grid,)

        def launch(*args: object, lo: int = 0, hi: int | None = None) -> None:
            block = pack(grid, args, [p.dtype for p in self.fn.params])
            f = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(
                self.address
            )
            f(block.ctypes.data, lo, int(np.prod(grid)) if hi is None else hi)

        return launch


def build(fn: ir.Function, machine: Machine | None = None) -> Compiled:
    """Lower, compile and load ``fn``."""
    machine = machine or Machine.detect_host()
    ir.verify(fn)
    text = lower(fn, machine)
    data = compile_object(text, machine).data
    return Compiled(fn, machine, text, process_loader().load(data, symbol_name(fn.name)))

"""The CPU target: kernels compiled to machine code, kept in memory and on disk."""

from __future__ import annotations

import ctypes
import json
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from tilewright.config import Settings, physical_cores
from tilewright.lang.ir import Function
from tilewright.targets.arguments import Grid, Packer, runtime_parameters
from tilewright.targets.cpu.cache import DiskCache, cache_key
from tilewright.targets.cpu.codegen import CodeObject, compile_object
from tilewright.targets.cpu.loader import process_loader
from tilewright.targets.cpu.machine import Machine

__all__ = ["CPUExecutable", "CPUTarget", "CompileCounts"]

_CALL: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


@dataclass(frozen=True)
class CPUExecutable:
    """Machine code of one kernel for one signature, loaded into this process.

    Attributes:
        name: the kernel's name.
        signature: what it was compiled for.
        address: of ``void f(void *args, int64 lo, int64 hi)``.
        packer: packs and checks its arguments.
        key: its key in the disk cache.
        data: its object file.
    """

    name: str
    signature: Any
    address: int
    packer: Packer = field(repr=False)
    key: str
    data: bytes = field(repr=False)

    def pack(self, grid: Grid, args: Sequence[Any]) -> np.ndarray:
        """The argument block; see :mod:`tilewright.targets.arguments`."""
        return self.packer.pack(grid, args)

    def run(self, slots: np.ndarray) -> None:
        """Run every program of the packed launch on the calling thread."""
        programs = int(slots[0]) * int(slots[1]) * int(slots[2])
        if programs:
            _CALL(self.address)(slots.ctypes.data, 0, programs)


@dataclass
class CompileCounts:
    """Where a target's executables came from.

    Attributes:
        compiled: built from source by this target.
        disk: read from the disk cache.
        seconds: spent on either, summed over the threads that worked on it.
    """

    compiled: int = 0
    disk: int = 0
    seconds: float = 0.0


class CPUTarget:
    """Compiles kernels for one :class:`Machine`. Thread-safe.

    Args:
        machine: default the host, or what ``TILEWRIGHT_CPU`` names.
        settings: default from the environment.
    """

    name = "cpu"

    def __init__(self, machine: Machine | None = None, settings: Settings | None = None) -> None:
        settings = settings or Settings.from_environment()
        self.machine = machine or Machine.detect(settings)
        self.cache = DiskCache(settings.cache_dir)
        self.counts = CompileCounts()
        self._threads = max(1, min(settings.threads, physical_cores()))
        self._lock = threading.Lock()
        self._known: dict[tuple[Any, Any], CPUExecutable] = {}
        self._by_key: dict[str, CPUExecutable] = {}

    def compile(self, kernel: Any, signature: Any) -> CPUExecutable:
        """Machine code of ``kernel`` (a ``KernelFunction``) for ``signature``.

        From memory, else from the disk cache, else built and stored there. What the kernel's
        globals and inline functions are is settled when a kernel object first meets a signature;
        the disk cache knows every version apart.

        Raises:
            KernelError: the kernel's source is wrong.
            CompileError: it cannot be lowered for this CPU.
        """
        known = self._known.get((kernel, signature))
        if known is not None:
            return known
        key = self._key(kernel, signature)
        made = self._by_key.get(key) or self._load(kernel, signature, key)
        if made is None:
            made = self._build(kernel, signature, key)
        return self._remember(kernel, signature, made)

    def compile_many(self, items: Iterable[tuple[Any, Any]]) -> list[CPUExecutable]:
        """Compile (kernel, signature) pairs; results in their order.

        What no cache has is built on several threads.
        """
        wanted = list(items)
        missing: dict[str, tuple[Any, Any]] = {}
        for kernel, signature in dict.fromkeys(wanted):
            if (kernel, signature) in self._known:
                continue
            key = self._key(kernel, signature)
            found = self._by_key.get(key) or self._load(kernel, signature, key)
            if found is None:
                missing[key] = kernel, signature
            else:
                self._remember(kernel, signature, found)
        if len(missing) > 1 and self._threads > 1:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(min(self._threads, len(missing))) as threads:
                futures = [
                    (threads.submit(self._build, *item, key), item) for key, item in missing.items()
                ]
                for future, item in futures:
                    self._remember(*item, future.result())
        return [self.compile(kernel, signature) for kernel, signature in wanted]

    def lower(self, kernel: Any, signature: Any) -> str:
        """The LLVM text of ``kernel`` before optimisation."""
        from tilewright.targets.cpu.lower import lower

        return lower(kernel.ir(signature), self.machine)

    def code(self, kernel: Any, signature: Any) -> CodeObject:
        """Freshly compiled code, past every cache: for looking at its LLVM text and assembly."""
        return compile_object(self.lower(kernel, signature), self.machine)

    def _key(self, kernel: Any, signature: Any) -> str:
        return cache_key(self.machine, kernel.fingerprint(signature), str(signature))

    def _remember(self, kernel: Any, signature: Any, made: CPUExecutable) -> CPUExecutable:
        with self._lock:
            made = self._by_key.setdefault(made.key, made)
            self._known[kernel, signature] = made
        return made

    def _load(self, kernel: Any, signature: Any, key: str) -> CPUExecutable | None:
        """From the disk cache, or ``None``."""
        start = time.perf_counter()
        entry = self.cache.get(key)
        if entry is None:
            return None
        made = self._executable(kernel, signature, key, entry)
        with self._lock:
            self.counts.disk += 1
            self.counts.seconds += time.perf_counter() - start
        return made

    def _build(self, kernel: Any, signature: Any, key: str) -> CPUExecutable:
        """From source, and into the disk cache."""
        from tilewright.targets.cpu.lower import lower, symbol_name

        start = time.perf_counter()
        function = kernel.ir(signature)
        data = compile_object(lower(function, self.machine), self.machine).data
        about = {"symbol": symbol_name(function.name), "stores": stored_parameters(function)}
        entry = json.dumps(about).encode() + b"\n" + data
        self.cache.put(key, entry)
        made = self._executable(kernel, signature, key, entry)
        with self._lock:
            self.counts.compiled += 1
            self.counts.seconds += time.perf_counter() - start
        return made

    def _executable(self, kernel: Any, signature: Any, key: str, entry: bytes) -> CPUExecutable:
        """Load an entry of the disk cache: a line of JSON, then the object file."""
        line, _, data = entry.partition(b"\n")
        about = json.loads(line)
        address = process_loader().load(data, about["symbol"])
        packer = Packer(kernel.name, runtime_parameters(kernel, signature), about["stores"])
        return CPUExecutable(kernel.name, signature, address, packer, key, data)


def stored_parameters(function: Function) -> list[int]:
    """Positions of the parameters that ``function`` writes."""
    written = {op.operands[0] for op in function.body.walk() if op.name == "store"}
    return [i for i, parameter in enumerate(function.params) if parameter in written]

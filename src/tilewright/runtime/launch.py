"""Launching kernels from Python: ``kernel[grid](arrays..., scalars..., CONSTANT=...)``."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, overload

import numpy as np

from tilewright.config import Settings
from tilewright.lang.function import KernelFunction
from tilewright.targets.arguments import Grid, Packer
from tilewright.targets.cpu.pool import Pool
from tilewright.targets.cpu.target import CPUTarget

__all__ = ["Inspection", "Kernel", "default_pool", "default_target", "kernel", "pool_of"]


@dataclass(frozen=True)
class Inspection:
    """One specialisation of a kernel at each stage.

    Attributes:
        ir: the tile IR.
        llvm: the LLVM IR, optimised.
        asm: the assembly.
    """

    ir: str
    llvm: str
    asm: str


class Kernel(KernelFunction):
    """A kernel that launches on the CPU; what ``@tilewright.kernel`` makes.

    ``kernel[grid](*args, **constants)`` runs ``grid`` programs (an int, or up to three) over NumPy
    arrays and :class:`tilewright.runtime.buffers.Buffer`. The first call with new dtypes or
    constants compiles, later ones launch in some microseconds: what the kernel's globals and inline
    functions are is settled by that first call.
    """

    def __init__(self, fn: Callable[..., Any], configs: Mapping[str, Any] | None = None) -> None:
        super().__init__(fn, configs)
        self._calls: dict[tuple[Any, ...], tuple[int, Packer, Pool]] = {}
        self._runtime = [i for i, p in enumerate(self.parameters) if p.kind != "const"]
        self._kinds = [p.kind for p in self.parameters]

    @classmethod
    def from_source(
        cls, text: str, name: str, env: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Kernel:
        """See :meth:`KernelFunction.from_source`."""
        made = super().from_source(text, name, env, **kwargs)
        assert isinstance(made, Kernel)
        return made

    def __getitem__(self, grid: Grid) -> Callable[..., None]:
        """The kernel bound to a grid, ready to be called."""

        def launch(*args: Any, **kwargs: Any) -> None:
            self._launch(grid, self.bind(args, kwargs))

        return launch

    def inspect(self, *args: Any, **kwargs: Any) -> Inspection:
        """What ``kernel[grid](*args, **kwargs)`` would run; nothing is run.

        An array argument may also be a :class:`tilewright.lang.ir.ArrayType`, a scalar argument a
        :class:`tilewright.lang.ir.TileType`.
        """
        signature = self.signature(args, kwargs)
        code = default_target().code(self, signature)
        return Inspection(str(self.ir(signature)), code.optimised(), code.asm())

    def _launch(self, grid: Grid, values: list[Any]) -> None:
        environment = _environment()
        key: tuple[Any, ...] = (environment, *map(_token, self._kinds, values))
        try:
            call = self._calls.get(key)
        except TypeError:  # a constant that cannot be hashed
            call, key = None, ()
        if call is None:
            target, pool = _defaults(environment)
            made = target.compile(self, self.signature(tuple(values)))
            call = made.address, made.packer, pool
            if key:
                self._calls[key] = call
        address, packer, pool = call
        slots = packer.values(grid, [values[i] for i in self._runtime])
        programs = slots[0] * slots[1] * slots[2]
        if programs:
            block = array("q", slots)
            row = array("q", (address, block.buffer_info()[0], programs, 1))
            pool.run(row.buffer_info()[0], 1)


@overload
def kernel(fn: Callable[..., Any], /) -> Kernel: ...


@overload
def kernel(
    *, configs: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., Any]], Kernel]: ...


def kernel(
    fn: Callable[..., Any] | None = None, /, *, configs: Mapping[str, Any] | None = None
) -> Kernel | Callable[[Callable[..., Any]], Kernel]:
    """Make a :class:`Kernel` of a Python function; see :mod:`tilewright.lang`.

    Used bare, or with tuning constants per target: ``@kernel(configs={"cpu": {"BLOCK": 64}})``.
    """
    if fn is None:
        return lambda function: Kernel(function, configs)
    return Kernel(fn, configs)


def default_target() -> CPUTarget:
    """The CPU target that the environment variables ask for."""
    return _defaults(_environment())[0]


def default_pool() -> Pool:
    """The pool with the number of threads that the environment variables ask for."""
    return _defaults(_environment())[1]


def pool_of(threads: int | None) -> Pool:
    """The pool of ``threads`` workers, shared by whoever asks; None: the default one."""
    if threads is None:
        return default_pool()
    return _pool_of(threads)


@lru_cache(maxsize=16)
def _pool_of(threads: int) -> Pool:
    return Pool(threads)


def _environment() -> tuple[str, str]:
    """What decides between default targets and pools."""
    if _RAW_ENVIRONMENT is not None:  # what os.environ wraps; asked at every dynamic step
        cpu = _RAW_ENVIRONMENT.get(_CPU)
        threads = _RAW_ENVIRONMENT.get(_THREADS)
        if cpu is None and threads is None:
            return "", ""
    get = os.environ.get
    return get("TILEWRIGHT_CPU", ""), get("TILEWRIGHT_THREADS", "")


_RAW_ENVIRONMENT = getattr(os.environ, "_data", None)
_CPU, _THREADS = map(os.environ.encodekey, ("TILEWRIGHT_CPU", "TILEWRIGHT_THREADS"))


@lru_cache(maxsize=16)
def _defaults(environment: tuple[str, str]) -> tuple[CPUTarget, Pool]:
    settings = Settings.from_environment()
    target = CPUTarget(settings=settings)
    return target, _pool_of(settings.threads)


def _token(kind: str, value: Any) -> Any:
    """What of an argument decides the specialisation, cheaply: equal tokens, equal signatures."""
    if kind == "array":
        if isinstance(value, np.ndarray):
            strides = value.strides
            unit = bool(strides) and (strides[-1] == value.itemsize or value.shape[-1] <= 1)
            return value.dtype, len(strides), unit
        if hasattr(value, "pointer"):
            strides = value.strides
            first = getattr(value, "fixed", None)
            if first is not None:
                return value.dtype, first, value.shape[first:], strides[first:]
            unit = bool(strides) and (strides[-1] == 1 or value.shape[-1] <= 1)
            return value.dtype, len(strides), unit
        return value
    if kind == "scalar":
        return None
    if kind == "arrays" and isinstance(value, (tuple, list)):
        return tuple(_token("array", one) for one in value)
    if isinstance(value, float):
        return float, repr(value)  # 0.0 is not -0.0, and nan is nan
    if isinstance(value, (bool, int, str)) or callable(value):
        return type(value), value
    return type(value), repr(value), value

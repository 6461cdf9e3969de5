"""What every target offers: compile a kernel for a signature, run what was compiled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from tilewright.targets.arguments import Grid

__all__ = ["Executable", "Target"]


class Executable(Protocol):
    """A kernel compiled for one signature."""

    @property
    def name(self) -> str:
        """The kernel's name."""

    @property
    def address(self) -> int:
        """Of ``void f(void *args, int64 lo, int64 hi)``; 0 when there is no machine code."""

    def pack(self, grid: Grid, args: Sequence[Any]) -> np.ndarray:
        """The argument block, int64: grid, then the runtime arguments (variadic ones a tuple).

        Raises :class:`tilewright.errors.ShapeError` when an argument does not fit.
        """

    def run(self, slots: np.ndarray) -> None:
        """Run every program of the packed launch on the calling thread."""


class Target(Protocol):
    """A place where kernels run on host memory."""

    @property
    def name(self) -> str:
        """Short name: ``cpu``, ``numpy``."""

    def compile(self, kernel: Any, signature: Any) -> Executable:
        """Compile ``kernel`` (a ``KernelFunction``) for ``signature``, or find it compiled.

        Raises :class:`tilewright.errors.KernelError` for a bad kernel and
        :class:`tilewright.errors.CompileError` for one that this target cannot express.
        """

    def compile_many(self, items: Iterable[tuple[Any, Any]]) -> list[Executable]:
        """Compile (kernel, signature) pairs, several at a time; results in their order."""

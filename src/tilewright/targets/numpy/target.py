"""Runs kernels as plain Python over NumPy, behind the interface of every target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.targets.arguments import Grid, Packer, runtime_parameters, unpack

__all__ = ["NumPyExecutable", "NumPyTarget"]


@dataclass(frozen=True)
class NumPyExecutable:
    """A kernel with its signature; ``address`` is 0: there is no machine code."""

    kernel: Any
    signature: Any
    packer: Packer
    address: int = 0

    @property
    def name(self) -> str:
        return self.kernel.name

    def pack(self, grid: Grid, args: Sequence[Any]) -> np.ndarray:
        """The argument block; see :mod:`tilewright.targets.arguments`."""
        return self.packer.pack(grid, args)

    def run(self, slots: np.ndarray) -> None:
        """Interpret every program of the packed launch, in ascending order."""
        grid, args = unpack(self.packer.parameters, slots)
        if 0 in grid:
            return
        runtime = iter(args)
        call = [
            item if parameter.kind == "const" else next(runtime)
            for parameter, (_, item) in zip(self.kernel.parameters, self.signature.items)
        ]
        self.kernel.interpret(grid, self.signature)(*call)


class NumPyTarget:
    """Interprets kernels; exact, slow, and good for debugging whole programs."""

    name = "numpy"

    def compile(self, kernel: Any, signature: Any) -> NumPyExecutable:
        """Nothing is compiled; the kernel is checked by running it."""
        return NumPyExecutable(
            kernel, signature, Packer(kernel.name, runtime_parameters(kernel, signature))
        )

    def compile_many(self, items: Iterable[tuple[Any, Any]]) -> list[NumPyExecutable]:
        """One executable for each (kernel, signature)."""
        return [self.compile(kernel, signature) for kernel, signature in items]

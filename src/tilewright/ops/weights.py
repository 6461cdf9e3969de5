"""Constant data of a graph: where it comes from and in which form an op wants it.

A weight leaf holds a *source* (:class:`FileWeight`, :class:`StackedWeight` or a NumPy array), which
can be read row by row. The compiler's ``pack_weights`` pass turns each into what its consumers
asked for: a packed matrix, a table of raw rows, or a plain float32 vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["FileWeight", "StackedWeight", "WeightSource"]


@dataclass(frozen=True)
class FileWeight:
    """A tensor in a file.

    Attributes:
        name: the tensor's name.
        shape: outermost first; a matrix is (rows, k).
        type: ggml type name, ``"Q8_0"``.
        read: ``(start_row, stop_row) -> uint8 (rows, row_bytes)``, the file's bytes.
        dequantize: ``() -> float32`` of ``shape``; the meaning of the bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    read: Callable[[int, int], np.ndarray]
    dequantize: Callable[[], np.ndarray]

    @property
    def parts(self) -> tuple[FileWeight, ...]:
        return (self,)

    def numpy(self) -> np.ndarray:
        """The values in float32."""
        return self.dequantize()


@dataclass(frozen=True)
class StackedWeight:
    """Several matrices of one type and width, one below the other."""

    parts: tuple[FileWeight, ...]

    @cached_property
    def name(self) -> str:
        return "+".join(p.name for p in self.parts)

    @property
    def type(self) -> str:
        return self.parts[0].type

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(p.shape[0] for p in self.parts), self.parts[0].shape[1])

    def numpy(self) -> np.ndarray:
        """The values in float32."""
        return np.concatenate([p.dequantize() for p in self.parts])


WeightSource = FileWeight | StackedWeight

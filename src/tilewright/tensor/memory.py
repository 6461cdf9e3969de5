"""Arrays over the memory of buffers."""

from __future__ import annotations

import numpy as np

from tilewright.dtypes import bf16, to_float32
from tilewright.runtime.buffers import Buffer

__all__ = ["array_of", "bits_of"]


def array_of(buffer: Buffer, writable: bool = False) -> np.ndarray:
    """The memory of ``buffer`` as an ndarray; bf16 as a float32 copy."""
    if buffer.dtype is bf16:
        return to_float32(buffer.numpy())
    return np.asarray(_View(buffer, writable))


def bits_of(buffer: Buffer, writable: bool = False) -> np.ndarray:
    """The memory of ``buffer`` as an ndarray of its storage dtype (uint16 for bf16)."""
    return np.asarray(_View(buffer, writable))


class _View:
    """What NumPy asks for an array over a buffer's memory (it keeps the buffer alive)."""

    __slots__ = ("__array_interface__", "buffer")

    def __init__(self, buffer: Buffer, writable: bool) -> None:
        width = buffer.dtype.nbytes
        self.buffer = buffer
        self.__array_interface__ = {
            "version": 3,
            "shape": buffer.shape,
            "typestr": buffer.dtype.storage.str,
            "strides": tuple([s * width for s in buffer.strides]),
            "data": (buffer.pointer, not writable),
        }

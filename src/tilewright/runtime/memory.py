"""Memory for results: aligned blocks that are used again.

Fresh pages cost as much as filling them does, so a block that nobody holds any more goes to a free
list of its size instead of back to the system, up to :data:`KEPT_BYTES` in all.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

__all__ = ["KEPT_BYTES", "Memory", "take"]

KEPT_BYTES: Final = 1 << 30
_ALIGN: Final = 64
_PAGE: Final = 4096


class Memory:
    """A block of memory; whoever holds it keeps it from being used again.

    Attributes:
        pointer: address, a multiple of 64.
        nbytes: usable bytes.
    """

    __slots__ = ("__weakref__", "_raw", "nbytes", "pointer")

    def __init__(self, raw: Any, pointer: int, nbytes: int) -> None:
        self._raw = raw
        self.pointer = pointer
        self.nbytes = nbytes

    def __del__(self) -> None:
        free = _FREE
        if free is not None and free.bytes + self.nbytes <= KEPT_BYTES:
            free.bytes += self.nbytes
            free.blocks.setdefault(self.nbytes, []).append((self._raw, self.pointer))


class _FreeList:
    """Blocks by size. Lists of Python append and pop atomically; the sum may be off by a block."""

    def __init__(self) -> None:
        self.blocks: dict[int, list[tuple[Any, int]]] = {}
        self.bytes = 0


_FREE: _FreeList | None = _FreeList()


def take(nbytes: int) -> Memory:
    """A block of at least ``nbytes`` bytes; what is in it is whatever was there."""
    if nbytes <= _PAGE:
        size = -(-nbytes // _ALIGN) * _ALIGN or _ALIGN
    else:
        step = max(_PAGE, 1 << nbytes.bit_length() - 5)
        size = -(-nbytes // step) * step
    free = _FREE
    if free is not None:
        found = free.blocks.get(size)
        if found:
            try:
                raw, pointer = found.pop()
            except IndexError:  # another thread was quicker
                pass
            else:
                free.bytes -= size
                return Memory(raw, pointer, size)
    raw = np.empty(size + _ALIGN, np.uint8)
    address = raw.ctypes.data
    return Memory(raw, address + -address % _ALIGN, size)

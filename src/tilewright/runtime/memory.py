"""Memory for results: aligned blocks that are used again.

Fresh pages cost as much as filling them does, so a block that nobody holds any more goes to a free
list of its size instead of back to the system, up to :data:`KEPT_BYTES` in all.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from tilewright.errors import OutOfMemoryError

__all__ = ["KEPT_BYTES", "Memory", "available_bytes", "require", "take"]

KEPT_BYTES: Final = 1 << 30
_ALIGN: Final = 64
_PAGE: Final = 4096
_LARGE: Final = 1 << 26  # what is asked for before it is taken


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
    require(size, "memory for a result")
    raw = np.empty(size + _ALIGN, np.uint8)
    address = raw.ctypes.data
    return Memory(raw, address + -address % _ALIGN, size)


def require(nbytes: int, what: str) -> None:
    """Raise :class:`OutOfMemoryError` with both numbers when ``nbytes`` are not there."""
    if nbytes < _LARGE:
        return
    free = available_bytes()
    if free is not None and nbytes > free:
        raise OutOfMemoryError(
            f"{what} takes {nbytes / 1e6:.0f} MB, {free / 1e6:.0f} MB are available"
        )


def available_bytes() -> int | None:
    """Bytes that can be taken without swapping, as the kernel estimates; None if unknown.

    What is kept for use again counts; a limit of the process's address space is respected.
    """
    found: list[int] = []
    try:
        import resource  # not everywhere

        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    found.append(int(line.split()[1]) * 1024)
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            with open("/proc/self/statm") as file:
                found.append(limit - int(file.read().split()[0]) * resource.getpagesize())
    except (ImportError, OSError):
        pass
    if not found:
        return None
    return max(min(found), 0) + (_FREE.bytes if _FREE is not None else 0)

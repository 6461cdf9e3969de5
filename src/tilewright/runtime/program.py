"""Programs: launches bound to their arguments, laid out once, executed without Python in between.

A :class:`LaunchTable` is one block of 64-bit integers: a row for each launch (see
:mod:`tilewright.targets.cpu.pool`), then each launch's argument block
(:mod:`tilewright.targets.arguments`). A step that differs from the last one in a few sizes or
pointers rewrites just those integers, with :meth:`LaunchTable.update` or directly::

    table.memory[indices] = values          # indices from programs_at() and slot_at()
    table.run(pool)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tilewright.errors import ShapeError
from tilewright.targets.arguments import Grid, grid_of
from tilewright.targets.base import Executable
from tilewright.targets.cpu.pool import Pool

__all__ = ["Launch", "LaunchTable", "TimedPool"]

_ROW: Final = 4
_LINE: Final = 8  # int64 per cache line


@dataclass(frozen=True)
class Launch:
    """One kernel run.

    Attributes:
        executable: the compiled kernel.
        grid: one to three sizes; a zero runs nothing.
        args: runtime arguments in order; a variadic parameter takes a tuple of arrays.
        smallest: programs worth giving to a thread at once: at most this many stay on one.
    """

    executable: Executable
    grid: Grid
    args: Sequence[Any]
    smallest: int = 1


class LaunchTable:
    """Launches in order, packed for execution; keeps their arguments alive.

    Attributes:
        launches: what was packed. An update replaces its entry.
        memory: int64; rows, then argument blocks, each on a cache line of its own.
        slots: the same memory.
    """

    def __init__(self, launches: Sequence[Launch]) -> None:
        self.launches = list(launches)
        blocks = [launch.executable.pack(launch.grid, launch.args) for launch in self.launches]
        at = _round_up(_ROW * len(blocks))
        self._offsets: list[int] = []
        self._sizes = [len(block) for block in blocks]
        for block in blocks:
            self._offsets.append(at)
            at += _round_up(len(block))
        raw = np.zeros(at + _LINE, np.int64)
        first = (-raw.ctypes.data % 64) // 8
        self.memory = raw[first : first + at]
        self.slots: Any = memoryview(self.memory.data)  # sets single slots faster than NumPy does
        self._address = self.memory.ctypes.data
        self._native = all(launch.executable.address for launch in self.launches)
        for i, (launch, block) in enumerate(zip(self.launches, blocks)):
            self.args(i)[:] = block
            self.memory[_ROW * i : _ROW * (i + 1)] = (
                launch.executable.address,
                self._address + 8 * self._offsets[i],
                _programs(block),
                launch.smallest,
            )

    def __len__(self) -> int:
        return len(self.launches)

    def programs_at(self, launch: int) -> int:
        """Index in ``memory`` of the number of programs (the product of the grid)."""
        return _ROW * launch + 2

    def slot_at(self, launch: int, slot: int = 0) -> int:
        """Index in ``memory`` of a slot of a launch's argument block (0 to 2: the grid)."""
        if not 0 <= slot < self._sizes[launch]:
            raise IndexError(f"launch {launch} has {self._sizes[launch]} slots, not {slot}")
        return self._offsets[launch] + slot

    def args(self, launch: int) -> np.ndarray:
        """A launch's argument block, to read or to rewrite in place."""
        at = self._offsets[launch]
        return self.memory[at : at + self._sizes[launch]]

    def update(
        self, launch: int, grid: Grid | None = None, args: Sequence[Any] | None = None
    ) -> None:
        """Give one launch another grid or other arguments of the same signature.

        Raises :class:`ShapeError` when they do not fit; the launch then stays as it was.
        """
        old = self.launches[launch]
        new = Launch(
            old.executable,
            old.grid if grid is None else grid,
            old.args if args is None else args,
            old.smallest,
        )
        if args is None:
            self.args(launch)[:3] = grid_of(new.grid, old.executable.name)
        else:
            self.args(launch)[:] = new.executable.pack(new.grid, new.args)
        self.memory[self.programs_at(launch)] = _programs(self.args(launch))
        self.launches[launch] = new

    def run(self, pool: Pool | None = None) -> None:
        """Execute every launch in order; returns when all have completed.

        ``pool`` may be missing only for a target without machine code.
        """
        if self._native and pool is not None:
            pool.run(self._address, len(self.launches))
            return
        if self._native and self.launches:
            raise ShapeError("a table of compiled launches runs on a pool, got none")
        for i, launch in enumerate(self.launches):
            if self.memory[self.programs_at(i)] > 0:
                launch.executable.run(self.args(i))


class TimedPool:
    """Runs launches one by one on another pool and notes the seconds of each.

    Attributes:
        seconds: of every launch so far, in order.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.seconds: list[float] = []

    def run(self, address: int, count: int) -> None:
        """As :meth:`Pool.run`."""
        for i in range(count):
            start = time.perf_counter()
            self.pool.run(address + 8 * _ROW * i, 1)
            self.seconds.append(time.perf_counter() - start)


def _programs(block: np.ndarray) -> int:
    return int(block[0]) * int(block[1]) * int(block[2])


def _round_up(n: int) -> int:
    return -(-n // _LINE) * _LINE

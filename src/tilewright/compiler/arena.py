"""Where temporary results lie while a static program runs: one arena, shared by lifetime."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence

import numpy as np

from tilewright.compiler.builder import Storage
from tilewright.compiler.memory import best_fit
from tilewright.runtime.buffers import ALIGN
from tilewright.sizes import Size

__all__ = ["Arena", "columns"]


def columns(rows: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs as two arrays."""
    pairs = np.array(rows, np.int64).reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


class Arena:
    """Where temporary storages lie, by lifetime: plans that serve every size they have room for."""

    def __init__(self, storages: Sequence[Storage]) -> None:
        used = [s for s in storages if s.kind == "temporary" and s.last >= 0]
        self.storages = sorted(used, key=lambda s: s.first)
        self._plans: list[tuple[np.ndarray, np.ndarray, int]] = []  # rooms, offsets, total
        self._order: list[int] = []  # of the first plan, from the bottom up

    def settle(self, places: dict[int, int], count: int) -> None:
        """``places`` says where the value of a size stands, ``count`` how many storages are."""
        sizes = [s.nbytes for s in self.storages]
        self._fixed = np.array([0 if isinstance(n, Size) else n for n in sizes], np.int64)
        moving = [(i, places[id(n)]) for i, n in enumerate(sizes) if isinstance(n, Size)]
        self._at, self._by = columns(moving)
        # by number of the storage where its offset stands; -1, for none, reads a zero
        self.numbering = np.full(count + 1, len(self.storages), np.int64)
        for i, storage in enumerate(self.storages):
            self.numbering[storage.number] = i

    def _rooms(self, values: np.ndarray) -> np.ndarray:
        rooms = self._fixed.copy()
        rooms[self._at] = values[self._by]
        return np.maximum(-(-rooms // ALIGN) * ALIGN, ALIGN)

    def plan(
        self, values: np.ndarray, grown: Callable[[], np.ndarray] | None
    ) -> tuple[np.ndarray, int]:
        """Offsets (one more than storages: a zero) and the arena's size.

        ``grown`` gives the values at somewhat larger sizes, to have room for those as well.
        """
        rooms = self._rooms(values)
        wanted = int(rooms.sum())
        for had, offsets, total in self._plans:
            if wanted * 3 >= int(had.sum()) and bool((rooms <= had).all()):
                return offsets, total
        if grown is not None:
            rooms = np.maximum(rooms, self._rooms(grown()))
        place = self._stacked if self._order else self._packed
        offsets, total = place(rooms.tolist())
        self._plans = [*self._plans[-15:], (rooms, offsets, total)]
        return offsets, total

    def _packed(self, rooms: list[int]) -> tuple[np.ndarray, int]:
        total = 0
        busy: list[tuple[int, int]] = []  # (start, end) of what is alive, ascending
        ends: list[tuple[int, tuple[int, int]]] = []  # a heap: last call, (start, end)
        offsets = np.zeros(len(rooms) + 1, np.int64)
        for i, (storage, room) in enumerate(zip(self.storages, rooms)):
            while ends and ends[0][0] < storage.first:
                del busy[bisect_left(busy, heapq.heappop(ends)[1])]
            offset = best_fit(busy, room)
            place = offset, offset + room
            insort(busy, place)
            heapq.heappush(ends, (storage.last, place))
            offsets[i] = offset
            total = max(total, place[1])
        self._order = np.argsort(offsets[:-1], kind="stable").tolist()
        return offsets, total

    def _stacked(self, rooms: list[int]) -> tuple[np.ndarray, int]:
        """In the order of the first plan, each as low as those that are alive beneath it allow."""
        top = np.zeros(max((s.last for s in self.storages), default=0) + 1, np.int64)  # per call
        offsets = np.zeros(len(rooms) + 1, np.int64)
        for i in self._order:
            alive = top[self.storages[i].first : self.storages[i].last + 1]
            offsets[i] = at = alive.max()
            alive[:] = at + rooms[i]
        return offsets, int(top.max())

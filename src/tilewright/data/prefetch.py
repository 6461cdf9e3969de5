"""Batches made ahead of time, by a thread."""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

__all__ = ["Prefetch"]

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Runs a loader in a thread, up to ``depth`` batches ahead; an iterator and context manager.

    `state` is that of the batch given out last, as if there were no prefetching. An exception in
    the loader is raised here, where its batch would have come. Closing (or dropping) it ends the
    thread; the loader then stands wherever it got to, so `restore` it before using it again.
    """

    def __init__(self, loader: Iterable[T], depth: int = 2) -> None:
        if depth < 1:
            raise ValueError(f"depth is {depth}, wanted at least 1")
        self._loader = loader
        self._depth = depth
        self._state: dict[str, Any] | None = _state(loader)
        self._closed = False
        self._start()

    def _start(self) -> None:
        self._queue: queue.Queue[tuple[str, Any, Any]] = queue.Queue(self._depth)
        self._stop: list[bool] = []
        self._ended: BaseException | None = None
        # The thread must not hold this object, or dropping it would never end the thread. A list
        # has no lock that a collector, running anywhere at any time, could find taken.
        self._thread = threading.Thread(
            target=_produce,
            args=(self._loader, self._queue, self._stop),
            name="tilewright-prefetch",
            daemon=True,
        )
        self._finalizer = weakref.finalize(self, self._stop.append, True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._closed:
            raise ValueError("this Prefetch is closed")
        if self._ended is not None:
            raise self._ended
        kind, value, state = self._queue.get()
        if kind == "batch":
            self._state = state
            batch: T = value
            return batch
        self._ended = StopIteration() if kind == "end" else value
        raise self._ended

    def state(self) -> dict[str, Any]:
        """Where the loader stood after the last batch that was given out.

        Raises `TypeError` when the loader has no state.
        """
        if self._state is None:
            raise TypeError(f"{type(self._loader).__name__} has no state() to resume from")
        return self._state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go where ``state`` says; batches made ahead are dropped. Raises as the loader."""
        self._halt()
        self._loader.restore(state)  # type: ignore[attr-defined]
        self._state = _state(self._loader)
        self._closed = False
        self._start()

    def close(self) -> None:
        """End the thread and wait for it; closing twice is fine."""
        self._closed = True
        self._halt()

    def _halt(self) -> None:
        self._finalizer()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):  # the thread may be waiting for room
                self._queue.get_nowait()
            self._thread.join(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _state(loader: Any) -> dict[str, Any] | None:
    method = getattr(loader, "state", None)
    found: dict[str, Any] | None = None if method is None else method()
    return found


def _produce(
    loader: Iterable[Any], out: queue.Queue[tuple[str, Any, Any]], stop: list[bool]
) -> None:
    """The thread: batches into the queue until ``stop`` has something in it."""

    def put(item: tuple[str, Any, Any]) -> None:
        while not stop:
            with contextlib.suppress(queue.Full):
                out.put(item, timeout=0.1)
                return

    try:
        for batch in loader:
            put(("batch", batch, _state(loader)))
            if stop:
                return
        put(("end", None, None))
    except BaseException as error:  # whatever it is, it belongs to the consumer
        put(("error", error, None))

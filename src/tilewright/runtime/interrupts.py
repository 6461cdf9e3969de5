"""Ctrl-C waits while several things change that belong together.

Python runs a signal's handler between any two calls, and the one of SIGINT raises. Memory that a
program has written and tensors that name it must not come apart there.
"""

from __future__ import annotations

# what the module `signal` wraps with enums, which take ten times as long
import _signal  # type: ignore[import-not-found]
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Final

__all__ = ["Held"]

_NAMES: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2")
_NUMBERS: Final = tuple(int(getattr(signal, n)) for n in _NAMES if hasattr(signal, n))


class Held:
    """A block in which handlers of signals wait; a context manager.

    What arrived meanwhile is handled at the end, so a ``KeyboardInterrupt`` comes out of the block
    when all of it has been done. Outside the main thread, where no handler runs, nothing changes.

    Attributes:
        open: while this is true handlers run at once (for a part that may take long).
    """

    __slots__ = ("_arrived", "_old", "open")

    def __init__(self, open: bool = False) -> None:
        self.open = open
        self._old: dict[int, Any] = {}
        self._arrived: list[int] = []

    def __enter__(self) -> Held:
        if threading.current_thread() is not threading.main_thread():
            return self
        found = {n: _signal.getsignal(n) for n in _NUMBERS}
        self._old = {n: handler for n, handler in found.items() if callable(handler)}
        for n in self._old:
            _signal.signal(n, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.open:
            self._old[number](number, frame)
        elif number not in self._arrived:
            self._arrived.append(number)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.open = True  # from here on handlers may raise: a later call of _receive passes on
        for n, handler in self._old.items():
            if _signal.getsignal(n) == self._receive:  # else the block has put another there
                _signal.signal(n, handler)
        for n in self._arrived:
            self._old[n](n, None)

"""How a run is going, for the person who watches it.

On a terminal one line rewrites itself; into a file or a pipe go plain lines, now and then.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TextIO

__all__ = ["Progress", "duration", "short_count"]

_SPEED_WINDOW_S: Final = 10.0


class Progress:
    """Step, loss, tokens per second and time left; a context manager.

    Args:
        total: steps of the whole run.
        done: steps done before this sitting.
        stream: default stderr.
        unit: what `update` counts, ``"tok"``; ``None`` shows steps per second instead.
        terminal: whether the stream is one; default: find out.
        every_s: at most how often a line is shown; default 0.1 s on a terminal, 10 s otherwise.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        stream: TextIO | None = None,
        unit: str | None = "tok",
        terminal: bool | None = None,
        every_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        if terminal is None:
            capable = os.name == "posix" and os.environ.get("TERM") not in (None, "dumb")
            terminal = capable and self._stream.isatty()
        self._terminal = terminal
        self._every = (0.1 if terminal else 10.0) if every_s is None else every_s
        self._clock = clock
        self._total = total
        self._unit = unit
        self._shown = -math.inf
        self._dirty = False
        # (time, step, tokens so far) of the last seconds: what speed and time left come from
        self._window: deque[tuple[float, int, int]] = deque([(clock(), done, 0)])
        self._compiling = True  # the first step of a sitting says nothing about the others
        self._tokens = 0
        self._line = ""

    def update(self, step: int, *, tokens: int = 0, **values: float) -> None:
        """``step`` steps are done; ``tokens`` were seen since the last call.

        ``values`` are shown in their order: ``loss=2.31, lr=3e-4``.
        """
        now = self._clock()
        self._tokens += tokens
        self._window.append((now, step, self._tokens))
        if self._compiling and len(self._window) > 2:
            self._window.popleft()
            self._compiling = False
        while len(self._window) > 2 and now - self._window[1][0] > _SPEED_WINDOW_S:
            self._window.popleft()
        if now - self._shown < self._every and step < self._total:
            return
        self._shown = now
        width = len(str(self._total))
        parts = [f"step {step:>{width}}/{self._total}"]
        parts += [f"{name} {_number(name, value)}" for name, value in values.items()]
        parts += self._speed(now, step)
        self._line = "  ".join(parts)
        self._show()

    def tokens_per_s(self) -> float:
        """Tokens per second of the last seconds; 0 before the first update."""
        (begin, _, before), (end, _, after) = self._window[0], self._window[-1]
        return (after - before) / (end - begin) if end > begin else 0.0

    def _speed(self, now: float, step: int) -> list[str]:
        begin, first, _ = self._window[0]
        if now <= begin or step <= first or (self._compiling and step < self._total):
            return []
        per_s = (step - first) / (now - begin)
        speed = f"{per_s:.3g} step/s"
        if self._unit is not None and self._tokens:
            speed = f"{short_count(self.tokens_per_s())} {self._unit}/s"
        left = max(self._total - step, 0) / per_s
        return [speed, f"ETA {duration(left)}" if left else "done"]

    def note(self, text: str) -> None:
        """Put a line of its own above the progress line."""
        if self._dirty:
            self._stream.write("\r\x1b[K")
            self._dirty = False
        self._stream.write(text + "\n")
        if self._terminal and self._line:
            self._show()
        self._stream.flush()

    def _show(self) -> None:
        if not self._terminal:
            self._stream.write(self._line + "\n")
        else:
            try:
                room = os.get_terminal_size(self._stream.fileno()).columns - 1
            except (OSError, ValueError):
                room = 79
            self._stream.write(f"\r{self._line[:room]}\x1b[K")
            self._dirty = True
        self._stream.flush()

    def close(self) -> None:
        """End the line, so that what comes next begins on its own; closing twice is fine."""
        if self._dirty:
            self._stream.write("\n")
            self._stream.flush()
            self._dirty = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _number(name: str, value: float) -> str:
    if name == "lr" or (value and abs(value) < 1e-3):
        return f"{value:.2e}"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def short_count(value: float) -> str:
    """``987``, ``12.3k``, ``4.56M``: three digits."""
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * scale:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """``0:42``, ``3:05``, ``2:03:04``, ``3d 04h``."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    minutes, s = divmod(whole, 60)
    hours, m = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d {hours % 24:02d}h"
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"

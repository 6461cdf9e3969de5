"""What commands share: errors in one line, loading with progress, and tables."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

import typer

from tilewright.errors import TilewrightError
from tilewright.generate.model import Model, load

__all__ = ["Progress", "error_line", "gigabytes", "guarded", "load_model", "table"]

P = ParamSpec("P")
R = TypeVar("R")


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """The command, ending with one line and status 1 on an expected error, 130 on Ctrl-C.

    Expected are tilewright's own errors, a value out of range (`ValueError`) and what the system
    refuses (`OSError`). Everything else passes: it is a bug, and its traceback is wanted.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (TilewrightError, ValueError, OSError) as error:
            print(f"tilewright: {error_line(error)}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            raise typer.Exit(130) from None

    return run


def error_line(error: BaseException) -> str:
    """The error as people read it: the system's own errors as ``path: what is wrong``."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


class Progress:
    """One line on stderr that rewrites itself; silent when stderr is no (capable) terminal."""

    def __init__(self, enabled: bool = True) -> None:
        capable = sys.stderr is not None and sys.stderr.isatty() and os.name == "posix"
        self.enabled = enabled and capable and os.environ.get("TERM") not in (None, "dumb")
        self._shown = 0.0
        self._dirty = False

    def __call__(self, what: str, fraction: float) -> None:
        now = time.monotonic()
        if not self.enabled or now - self._shown < 0.1:
            return
        self._shown = now
        self.say(f"{what} {fraction:4.0%}")

    def say(self, text: str) -> None:
        """Show ``text`` until something else is shown."""
        if self.enabled:
            self._dirty = True
            sys.stderr.write(f"\r{text}\x1b[K")
            sys.stderr.flush()

    def done(self) -> None:
        """Take the line away."""
        if self._dirty:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def load_model(
    path: Path | None, *, threads: int | None, context: int | None, quiet: bool = False
) -> Model:
    """Load with a progress line; notes and the memory plan go to stderr."""
    progress = Progress(enabled=not quiet)
    try:
        model = load(path, threads=threads, context=context, max_sequences=1, progress=progress)
    finally:
        progress.done()
    if not quiet:
        parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in model.plan.items())
        print(f"{model.config.summary()}; {parts}", file=sys.stderr)
    for note in model.notes:
        print(f"note: {note}", file=sys.stderr)
    return model


def gigabytes(size: float) -> str:
    """``1.2 GB``, ``34.5 MB``, ``678 B``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} B"


def table(rows: Iterable[Sequence[object]]) -> str:
    """Columns padded to equal width, two spaces apart."""
    cells = [[str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))] if cells else []
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in cells]
    return "\n".join(lines)

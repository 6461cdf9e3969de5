"""The record of a run: one JSON object per line, on the disk as soon as it is known.

::

    {"step": 10, "loss": 4.1705, "lr": 0.0003, "tokens_per_s": 51234.5, "wall": 3.21}
    {"step": 10, "val_loss": 4.2011, "wall": 3.40}

``wall`` counts seconds of training, over all sittings of a run. JSON has no NaN: numbers that are
not finite stand as the texts "NaN", "Infinity" and "-Infinity", and `read_record` turns them back.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self

from tilewright.errors import FormatError, TrainingError

__all__ = ["Record", "read_record", "series"]

_NOT_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Record:
    """A record open for writing; a context manager.

    ``resume_at=None`` begins a new record and refuses to write over an old one. ``resume_at=step``
    goes on with an old one: what it says about later steps is of a past that will be repeated, and
    is cut off, as is a last line that a killed process left half written.

    Raises:
        TrainingError: the file exists (new), or cannot be written to.
        FormatError: an old record is damaged before its last line.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume_at: int | None = None) -> None:
        self.path = os.fspath(path)
        end, wall = 0, 0.0
        try:
            if resume_at is not None and os.path.exists(self.path):
                for after, entry in _entries(self.path):
                    if entry["step"] > resume_at:
                        break
                    end = after
                    wall = max(wall, float(entry.get("wall", 0.0)))
            mode = "xb" if resume_at is None else "ab"
            self._file = open(self.path, mode, buffering=0)  # noqa: SIM115
            self._file.truncate(end)
        except FileExistsError:
            raise TrainingError(
                f"{self.path} exists: resume that run, or choose another folder"
            ) from None
        except OSError as error:
            raise self._failed(error) from error
        self._begin = time.monotonic() - wall

    def log(self, step: int, **values: Any) -> None:
        """Write one line: ``step``, the values, and ``wall`` unless it is among them.

        Values: numbers (NumPy's too), texts, bools, None, and lists and tables of them.

        Raises:
            TrainingError: the disk said no; what was written before is whole.
        """
        entry = {"step": int(step), **{k: _plain(v) for k, v in values.items()}}
        entry.setdefault("wall", round(self.wall, 3))
        line = (json.dumps(entry, allow_nan=False) + "\n").encode()
        end = os.lseek(self._file.fileno(), 0, os.SEEK_END)
        try:
            done = 0
            while done < len(line):
                done += self._file.write(line[done:]) or 0
        except OSError as error:
            self._file.truncate(end)
            raise self._failed(error) from error

    @property
    def wall(self) -> float:
        """Seconds of training so far, earlier sittings included."""
        return time.monotonic() - self._begin

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _failed(self, error: OSError) -> TrainingError:
        return TrainingError(
            f"{self.path}: the run's record cannot be written: {error.strerror or error}"
        )


def read_record(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The entries in order; an unfinished last line is left out.

    Raises:
        FormatError: naming the line that is damaged.
        OSError: the file cannot be read.
    """
    return [entry for _, entry in _entries(path)]


def series(entries: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of the entries that have ``key``."""
    there = [entry for entry in entries if key in entry]
    return [entry["step"] for entry in there], [float(entry[key]) for entry in there]


def _entries(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(byte after the line, entry) of each complete line."""
    end = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                entry = json.loads(line)
                fits = isinstance(entry, dict) and type(entry.get("step")) is int
            except (ValueError, RecursionError):
                fits = False
            if not fits:
                raise FormatError(
                    f"line {number} is no record of a step: {line[:60]!r}; repair the file, or "
                    "move it away to begin a new record",
                    path=path,
                    offset=end - len(line),
                )
            yield end, {k: _back(v) for k, v in entry.items()}


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()  # NumPy's numbers and arrays
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


def _back(value: Any) -> Any:
    if isinstance(value, str):
        return _NOT_FINITE.get(value, value)
    if isinstance(value, list):
        return [_back(item) for item in value]
    if isinstance(value, dict):
        return {k: _back(v) for k, v in value.items()}
    return value

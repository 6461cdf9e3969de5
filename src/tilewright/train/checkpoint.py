"""Checkpoints: one safetensors file each, written atomically, checked when read.

A run's folder has ``step-00000100.safetensors`` and so on. A file has its name only when it is
complete and on the disk, so a process killed at any moment leaves the last good checkpoint as it
was; every file carries a checksum, so one that the disk damaged later is noticed and passed over.

The file's metadata holds ``tilewright.checkpoint``, a JSON object of ``version``, ``step``,
``metric`` and ``state``, and ``tilewright.checksum``, the CRC-32 of that text, of the tensors'
names, dtypes and shapes, and of their bytes.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any, Final, Literal, Self

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import FormatError, TrainingError, UnsupportedError
from tilewright.formats.atomic import remove_leftovers, sync_folder
from tilewright.formats.safetensors import (
    Array,
    SafetensorsFile,
    open_safetensors,
    storage_order,
    stored_chunks,
    write_safetensors,
)

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "best_checkpoint",
    "checkpoint_path",
    "latest_checkpoint",
    "list_checkpoints",
    "load_checkpoint",
    "save_checkpoint",
    "verify_checkpoint",
]

_VERSION: Final = 1
_CONTENT: Final = "tilewright.checkpoint"
_CHECKSUM: Final = "tilewright.checksum"
_NAME: Final = re.compile(r"step-(\d{8,})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """What `load_checkpoint` read.

    Attributes:
        path: the file.
        step: optimiser steps done when it was saved.
        tensors: arrays by name; bfloat16 as uint16 bit patterns.
        dtypes: the element type of each tensor (tells bfloat16 from uint16).
        state: everything else, as JSON has it.
        metric: what the best checkpoint is chosen by, such as the validation loss; or None.
    """

    path: str
    step: int
    tensors: dict[str, np.ndarray] = field(repr=False)
    dtypes: dict[str, DType] = field(repr=False)
    state: dict[str, Any] = field(repr=False)
    metric: float | None = None


def save_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Array],
    state: Mapping[str, Any],
    *,
    step: int,
    metric: float | None = None,
) -> None:
    """Write one checkpoint, atomically and durably.

    ``tensors``: arrays by name, bfloat16 as ``(uint16 bit patterns, dtypes.bf16)``. ``state``: what
    JSON can say (text keys); floats come back exactly.

    Raises:
        TrainingError: ``state`` is not JSON, or the disk said no; an old file stays as it was.
        UnsupportedError, ShapeError, FormatError: a tensor that cannot be stored.
    """
    content = {"version": _VERSION, "step": int(step), "metric": metric, "state": dict(state)}
    try:
        text = json.dumps(content)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"the checkpoint's state is not JSON: {error}") from error
    checksum = zlib.crc32(text.encode())
    for name, dtype, array in storage_order(tensors):
        checksum = zlib.crc32(_described(name, dtype, array.shape), checksum)
        for chunk in stored_chunks(array, dtype):
            checksum = zlib.crc32(chunk.data, checksum)
    try:
        write_safetensors(path, tensors, {_CONTENT: text, _CHECKSUM: f"{checksum:08x}"})
    except OSError as error:
        size = sum(array.nbytes for _, _, array in storage_order(tensors))
        raise TrainingError(
            f"{os.fspath(path)}: the checkpoint of step {step} ({size / 1e6:.1f} MB) could not be "
            f"written: {error.strerror or error}"
        ) from error


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read one checkpoint and check it.

    Raises:
        FormatError: not a checkpoint, or damaged.
        OSError: it cannot be opened.
    """
    with open_safetensors(path) as file:
        content, text, wanted = _content(file)
        checksum = zlib.crc32(text.encode())
        tensors = {}
        for info in _by_offset(file):
            array = file.read(info.name)
            checksum = zlib.crc32(_described(info.name, info.dtype, info.shape), checksum)
            for chunk in stored_chunks(array, info.dtype):
                checksum = zlib.crc32(chunk.data, checksum)
            tensors[info.name] = array
        _compare(file, checksum, wanted)
        return Checkpoint(
            file.path,
            content["step"],
            tensors,
            {name: info.dtype for name, info in file.tensors.items()},
            content["state"],
            content["metric"],
        )


def verify_checkpoint(path: str | os.PathLike[str]) -> None:
    """Raise `FormatError` unless the file is a checkpoint as it was written; little memory."""
    with open_safetensors(path) as file:
        _, text, wanted = _content(file)
        checksum = zlib.crc32(text.encode())
        for info in _by_offset(file):
            checksum = zlib.crc32(_described(info.name, info.dtype, info.shape), checksum)
            for chunk in file.raw_chunks(info.name):
                checksum = zlib.crc32(chunk.data, checksum)
        _compare(file, checksum, wanted)


def _described(name: str, dtype: DType, shape: tuple[int, ...]) -> bytes:
    return json.dumps([name, dtype.name, list(shape)]).encode()


def _by_offset(file: SafetensorsFile) -> Iterable[Any]:
    """Tensors in the order they were written in: empty ones share an offset with others."""
    return sorted(file.tensors.values(), key=lambda i: (-i.dtype.bits, i.name))


def _compare(file: SafetensorsFile, checksum: int, wanted: str) -> None:
    if f"{checksum:08x}" != wanted:
        raise FormatError(
            f"the checkpoint is damaged: its checksum is {checksum:08x}, written was {wanted[:20]}",
            path=file.path,
        )


def _content(file: SafetensorsFile) -> tuple[dict[str, Any], str, str]:
    """(version, step, metric and state; their text; the checksum) of the file's metadata."""
    text, checksum = file.metadata.get(_CONTENT), file.metadata.get(_CHECKSUM)
    if text is None or checksum is None:
        raise FormatError(
            f"is not a checkpoint: the metadata has no {_CONTENT!r} and {_CHECKSUM!r}",
            path=file.path,
        )
    try:
        content = json.loads(text)
        if content["version"] != _VERSION:
            raise FormatError(
                f"is a checkpoint of version {content['version']!r:.20}, supported is {_VERSION}",
                path=file.path,
            )
        fits = (
            type(content["step"]) is int
            and isinstance(content["state"], dict)
            and (content["metric"] is None or isinstance(content["metric"], float | int))
        )
        if fits:
            return content, text, checksum
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise FormatError(f"is a damaged checkpoint: {_CONTENT!r} makes no sense", path=file.path)


def checkpoint_path(folder: str | os.PathLike[str], step: int) -> str:
    """Where the checkpoint of ``step`` lies in a run's folder."""
    return os.path.join(folder, f"step-{step:08d}.safetensors")


def list_checkpoints(folder: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """(step, path) of the checkpoints in a folder, the earliest first; unchecked.

    A folder that does not exist has none.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    matches = [(int(m[1]), os.path.join(folder, n)) for n in names if (m := _NAME.fullmatch(n))]
    return sorted(matches)


def latest_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint | None:
    """The last checkpoint that is whole; None when the folder has none.

    A damaged one is passed over with a warning that names it.

    Raises:
        FormatError: there are checkpoints, and all of them are damaged.
    """
    first: Exception | None = None
    for _, path in reversed(list_checkpoints(folder)):
        try:
            found = load_checkpoint(path)
        except (FormatError, UnsupportedError, OSError) as error:  # the disk may fail to read, too
            first = first or error
            warnings.warn(f"{error}; taking the one before", stacklevel=2)
        else:
            return found
    if first is not None:
        raise FormatError(f"every checkpoint is damaged; of the last: {first}", path=folder)
    return None


def best_checkpoint(
    folder: str | os.PathLike[str], mode: Literal["min", "max"] = "min"
) -> str | None:
    """The path of the checkpoint with the lowest (or highest) metric; None if none has one.

    Only headers are read; of equal ones the earliest wins.
    """
    best: tuple[float, str] | None = None
    for _, path in list_checkpoints(folder):
        metric = _metric(path)
        if metric is None:
            continue
        key = metric if mode == "min" else -metric
        if best is None or key < best[0]:
            best = key, path
    return None if best is None else best[1]


def _metric(path: str) -> float | None:
    try:
        with open_safetensors(path) as file:
            metric = _content(file)[0]["metric"]
    except (FormatError, OSError):
        return None
    return None if metric is None or math.isnan(metric) else float(metric)


class Checkpoints:
    """The checkpoints of one run, for writing; a context manager.

    Keeps the last ``keep`` and the best by metric, and deletes others only when a new one is on
    the disk. Holds a lock on the folder until closed, so that two processes cannot train in it.

    Raises:
        TrainingError: another process trains in this folder, or it cannot be written to.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int = 3,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}, at least one checkpoint must stay")
        self.folder = os.fspath(folder)
        self.keep = keep
        self.mode: Literal["min", "max"] = mode
        try:
            os.makedirs(self.folder, exist_ok=True)
            self._lock = _lock_folder(self.folder)
            remove_leftovers(self.folder, _NAME)
        except OSError as error:
            raise TrainingError(
                f"{self.folder}: cannot train in this folder: {error.strerror or error}"
            ) from error

    def save(
        self,
        step: int,
        tensors: Mapping[str, Array],
        state: Mapping[str, Any],
        *,
        metric: float | None = None,
    ) -> str:
        """Write the checkpoint of ``step``; returns its path.

        Checkpoints of later steps, which a run that was resumed from an earlier one leaves behind,
        are set aside by `rewind`.

        Raises:
            TrainingError: the disk said no; the message names the last good checkpoint.
        """
        self.rewind(step)
        path = checkpoint_path(self.folder, step)
        try:
            save_checkpoint(path, tensors, state, step=step, metric=metric)
        except TrainingError as error:
            there = list_checkpoints(self.folder)
            last = f"the last good checkpoint is {there[-1][1]}" if there else "there is none yet"
            raise TrainingError(f"{error}; {last}") from error
        self._prune()
        return path

    def latest(self) -> Checkpoint | None:
        """See `latest_checkpoint`."""
        return latest_checkpoint(self.folder)

    def best(self) -> str | None:
        """See `best_checkpoint`."""
        return best_checkpoint(self.folder, self.mode)

    def rewind(self, step: int) -> list[str]:
        """Give checkpoints of steps after ``step`` the ending ``.abandoned``; returns new paths.

        A run that goes on from ``step`` makes its own later ones, and `latest` must not find those
        of another past.
        """
        renamed = []
        for later, path in list_checkpoints(self.folder):
            if later > step:
                os.replace(path, path + ".abandoned")
                renamed.append(path + ".abandoned")
        if renamed:
            sync_folder(self.folder)
        return renamed

    def _prune(self) -> None:
        there = [path for _, path in list_checkpoints(self.folder)]
        best = self.best() if len(there) > self.keep else None
        for path in there[: -self.keep]:
            if path != best:
                os.unlink(path)

    def close(self) -> None:
        """Release the folder; closing twice is fine."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _lock_folder(folder: str) -> IO[bytes]:
    """The open lock file. The system drops the lock with the process, however that ends."""
    lock = open(os.path.join(folder, ".lock"), "ab")  # noqa: SIM115
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows
        pass
    except OSError:
        lock.close()
        raise TrainingError(
            f"{folder}: another process is training in this folder; wait for it, or choose another"
        ) from None
    return lock

"""Files that appear under their names only when they are complete and on the disk.

Until then a file is a hidden ``.NAME.*.tmp`` beside its place, which nothing reads; a process
killed half way leaves that behind, and the old file, if there was one, untouched.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

__all__ = ["AtomicFiles", "atomic_file", "remove_leftovers", "sync_folder"]

_TEMPORARY: Final = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.tmp")


class AtomicFiles:
    """Files written under temporary names; leaving without an exception gives them their own.

    Several files cannot change at once, so old ones are removed before the first new one gets its
    name: at no moment do old and new files of one set stand side by side.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._temporary: list[str] = []
        self._files: list[BinaryIO] = []

    def __enter__(self) -> list[BinaryIO]:
        try:
            for path in self._paths:
                folder, name = os.path.split(path)
                temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.tmp")
                self._files.append(open(temporary, "xb", buffering=1 << 20))
                self._temporary.append(temporary)
        except BaseException:
            self._discard()
            raise
        return self._files

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            for file in self._files:
                file.flush()
                os.fsync(file.fileno())
                file.close()
            if len(self._paths) > 1:
                for path in self._paths:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
            for temporary, path in zip(self._temporary, self._paths):
                os.replace(temporary, path)
            sync_folder(os.path.dirname(self._paths[0]))
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        for file in self._files:
            with contextlib.suppress(OSError):  # a full disk fails the last flush again
                file.close()
        for temporary in self._temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write to, which takes the place of ``path`` when the block ends well.

    Raises `OSError` naming ``path`` when the disk says no. Whatever is raised inside, the old file
    stays as it was and nothing is left behind.
    """
    target = os.fspath(path)
    try:
        with AtomicFiles([target]) as (file,):
            yield file
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, target) from error
        raise


def remove_leftovers(folder: str | os.PathLike[str], pattern: re.Pattern[str]) -> list[str]:
    """Remove temporary files that killed writers left in ``folder``; returns their paths.

    Only files that were to get a name matching all of ``pattern`` go. The caller makes sure that
    nobody is writing such a file now.
    """
    removed = []
    for name in sorted(os.listdir(folder)):
        match = _TEMPORARY.fullmatch(name)
        if match and pattern.fullmatch(match["name"]):
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
                removed.append(path)
    return removed


def sync_folder(folder: str) -> None:
    """Make renames in ``folder`` last through a power cut, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

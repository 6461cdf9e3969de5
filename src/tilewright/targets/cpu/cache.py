"""Compiled kernels on disk, shared by every process of the user.

An entry is one file: a header (magic, SHA-256 and length of what follows) and the object code. It
is written to a temporary file in the same folder and renamed into place, so a reader sees all of it
or nothing; the checksum catches what a crash, a full disk or a bad sector leaves behind. A bad
entry is deleted and reported as missing: it is rebuilt, never trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final

from tilewright.targets.cpu.machine import Machine

__all__ = ["DiskCache", "cache_key", "code_fingerprint"]

_MAGIC: Final = b"tilewright-object-1\n"
_HEADER: Final = len(_MAGIC) + 32 + 8
_STALE_SECONDS: Final = 3600.0
_TOUCH_SECONDS: Final = 86400.0


class DiskCache:
    """Byte strings under hexadecimal keys in ``folder``; ``None`` stores nothing.

    A folder that cannot be written is warned about once (:class:`RuntimeWarning`); the caller then
    lives with what it has in memory. Pruning keeps the folder under ``limit`` bytes, oldest use
    first.
    """

    def __init__(self, folder: Path | None, limit: int = 1 << 29) -> None:
        self.folder = None if folder is None else folder / "kernels"
        self.limit = limit
        self._pruned = False
        self._broken = False

    def path(self, key: str) -> Path:
        """Where the entry ``key`` lives."""
        if self.folder is None:
            raise ValueError("this cache has no folder")
        return self.folder / key[:2] / f"{key}.o"

    def get(self, key: str) -> bytes | None:
        """The entry's bytes, or ``None`` when it is missing or damaged (then it is deleted)."""
        if self.folder is None:
            return None
        path = self.path(key)
        try:
            with path.open("rb") as file:
                raw = file.read()
                age = time.time() - os.fstat(file.fileno()).st_mtime
        except OSError:
            return None
        data = raw[_HEADER:]
        if raw[:_HEADER] != _header(data):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        if age > _TOUCH_SECONDS:  # its time of last use, for pruning
            with contextlib.suppress(OSError):
                os.utime(path)
        return data

    def put(self, key: str, data: bytes) -> None:
        """Store ``data``; failing to do so only warns."""
        if self.folder is None or self._broken:
            return
        path = self.path(key)
        part = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.write_bytes(_header(data) + data)
                os.replace(part, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    part.unlink()
                raise
        except OSError as error:
            self._broken = True
            warnings.warn(
                f"cannot keep compiled kernels in {self.folder} ({error.strerror or error}); they "
                "will be compiled again by every process. Set TILEWRIGHT_CACHE to a folder that "
                "can be written, or to 'off'",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        if not self._pruned:
            self._pruned = True
            self.prune()

    def prune(self) -> int:
        """Delete abandoned temporary files and the entries used longest ago, down to ``limit``.

        Returns the bytes that remain.
        """
        if self.folder is None:
            return 0
        entries: list[tuple[float, int, Path]] = []
        now = time.time()
        for path in self._files():
            try:
                stat = path.stat()
                if path.suffix == ".part":
                    if now - stat.st_mtime > _STALE_SECONDS:
                        path.unlink()
                    continue
            except OSError:
                continue
            entries.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries, key=lambda entry: entry[0]):
            if total <= self.limit:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size
        return total

    def _files(self) -> Iterable[Path]:
        assert self.folder is not None
        with contextlib.suppress(OSError):
            for path in self.folder.glob("??/*"):
                if path.suffix in (".o", ".part"):
                    yield path


def cache_key(machine: Machine, *parts: str) -> str:
    """SHA-256 over ``parts``, the CPU with its features, and every version that shapes the code."""
    digest = hashlib.sha256()
    for part in (code_fingerprint(), machine.triple, machine.cpu, machine.features, *parts):
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """Hash of what turns kernels into machine code: the LLVM in use and our own sources.

    Sources rather than a version number: a development tree changes without changing its version.
    """
    import llvmlite
    import llvmlite.binding as llvm

    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256(f"llvmlite {llvmlite.__version__} {llvm.llvm_version_info}".encode())
    sources = [root / "dtypes.py", *(root / "lang").rglob("*.py"), *_cpu_sources(root)]
    for path in sorted(sources):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _cpu_sources(root: Path) -> list[Path]:
    return list((root / "targets" / "cpu").rglob("*.py"))


def _header(data: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(data).digest() + len(data).to_bytes(8, "little")

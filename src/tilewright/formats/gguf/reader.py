"""Open GGUF files, single or split, and read their tensors.

:func:`open_gguf` reads and checks the header only. Tensor data is read when asked for, into fresh
memory, in as large or small pieces as the caller likes; nothing is mapped, so what a load has in
memory is what it asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from tilewright.errors import FormatError, ShapeError, UnsupportedError
from tilewright.formats.gguf import quants
from tilewright.formats.gguf.header import (
    Budget,
    Header,
    MetadataType,
    SourceFile,
    TensorInfo,
    read_header,
)

__all__ = ["GGUFFile", "open_gguf"]

_SHARD_NAME: Final = re.compile(r"(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf")
_SPLIT_NO: Final = "split.no"
_SPLIT_COUNT: Final = "split.count"
_SPLIT_TENSORS: Final = "split.tensors.count"
_CHUNK_BYTES: Final = 4 << 20


class GGUFFile:
    """An open GGUF model; a context manager. Made by :func:`open_gguf`.

    Attributes:
        path: the file that was opened.
        paths: all files, in shard order; just ``[path]`` for a model in one file.
        version: GGUF version, 2 or 3.
        metadata: key to value. Numbers, bools and strings are Python's; a number array is a NumPy
            array of its stored dtype, a string array a ``list[str]``, a nested array a ``list``.
        metadata_types: key to stored type.
        tensors: name to :class:`TensorInfo`, in file order (shard after shard).
        alignment: of the tensor data, in bytes.
    """

    def __init__(self, path: str, files: list[SourceFile], headers: list[Header]) -> None:
        first = headers[0]
        self.path = path
        self.paths = [file.path for file in files]
        self.version = first.version
        self.alignment = first.alignment
        self.metadata: dict[str, Any] = dict(first.metadata)
        self.metadata_types: dict[str, MetadataType] = dict(first.metadata_types)
        self.tensors: dict[str, TensorInfo] = {
            info.name: info for header in headers for info in header.tensors
        }
        self._files = files

    @property
    def nbytes(self) -> int:
        """Size of all files together."""
        return sum(file.size for file in self._files)

    def read_raw(self, name: str) -> np.ndarray:
        """All bytes of a tensor as stored: uint8, shape ``(*shape[:-1], row_nbytes)``.

        Raises:
            KeyError: no such tensor.
            FormatError: the file has become shorter since it was opened.
        """
        info = self._info(name)
        raw = np.empty((*info.shape[:-1], info.row_nbytes), np.uint8)
        self._files[info.shard].read_into(info.offset, raw)
        return raw

    def read_rows(
        self, name: str, start: int, stop: int, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Rows ``start`` to ``stop`` of a tensor as stored: uint8 ``(stop - start, row_nbytes)``.

        Rows run along the last axis, all other axes flattened: there are ``info.n_rows``. With
        ``out`` (uint8, C-contiguous, of that size) no memory is taken.

        Raises:
            KeyError: no such tensor.
            ShapeError: rows that do not exist, or an ``out`` that does not fit.
            FormatError: the file has become shorter since it was opened.
        """
        info = self._info(name)
        if not 0 <= start <= stop <= info.n_rows:
            raise ShapeError(
                f"read_rows({name!r}): rows {start}:{stop} were asked for, 0:{info.n_rows} exist"
            )
        shape = (stop - start, info.row_nbytes)
        if out is None:
            out = np.empty(shape, np.uint8)
        elif out.dtype != np.uint8 or out.size != shape[0] * shape[1] or not out.flags.c_contiguous:
            raise ShapeError(
                f"read_rows({name!r}): out must be C-contiguous uint8 of shape {shape}, "
                f"got {out.dtype} {out.shape}"
            )
        self._files[info.shard].read_into(info.offset + start * info.row_nbytes, out)
        return out.reshape(shape)

    def iter_rows(
        self, name: str, chunk_bytes: int = _CHUNK_BYTES
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The tensor's rows in order as ``(first_row, uint8 (rows, row_nbytes))`` chunks.

        A chunk holds at least one row and otherwise at most ``chunk_bytes``. All chunks share one
        buffer: a chunk is valid until the next one is asked for.
        """
        info = self._info(name)
        rows = max(1, min(info.n_rows, chunk_bytes // info.row_nbytes))
        buffer = np.empty((rows, info.row_nbytes), np.uint8)
        for start in range(0, info.n_rows, rows):
            stop = min(start + rows, info.n_rows)
            yield start, self.read_rows(name, start, stop, buffer[: stop - start])

    def dequantize(self, name: str) -> np.ndarray:
        """The tensor's values: float32 in ``info.shape``; takes little memory besides the result.

        Raises:
            KeyError: no such tensor.
            UnsupportedError: its type has no dequantiser; the message names both.
            FormatError: the file has become shorter since it was opened.
        """
        info = self._info(name)
        return self.dequantize_rows(name, 0, info.n_rows).reshape(info.shape)

    def dequantize_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Values of rows ``start`` to ``stop``: float32 ``(stop - start, shape[-1])``.

        Raises:
            as :meth:`read_rows` and :meth:`dequantize`.
        """
        info = self._info(name)
        if not quants.can_dequantize(info.type):
            raise UnsupportedError(
                f"{self.paths[info.shard]}, tensor {name!r}: {quants.why_not(info.type)}"
            )
        if not 0 <= start <= stop <= info.n_rows:
            raise ShapeError(
                f"dequantize_rows({name!r}): rows {start}:{stop} were asked for, "
                f"0:{info.n_rows} exist"
            )
        length = info.shape[-1] if info.shape else 1
        values = np.empty((stop - start, length), np.float32)
        rows = max(1, min(stop - start, _CHUNK_BYTES // info.row_nbytes))
        buffer = np.empty((rows, info.row_nbytes), np.uint8)
        for first in range(start, stop, rows):
            last = min(first + rows, stop)
            raw = self.read_rows(name, first, last, buffer[: last - first])
            quants.dequantize(raw, info.type, out=values[first - start : last - start])
        return values

    def close(self) -> None:
        """Close the files; reading afterwards is an error, the header stays."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<GGUFFile {self.path!r}: {len(self.tensors)} tensors, {len(self.metadata)} metadata "
            f"entries, {len(self.paths)} file(s)>"
        )

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise KeyError(f"{self.path} has no tensor {name!r}") from None


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open a GGUF model and check its header(s); any shard of a split model opens all of it.

    Raises:
        FileNotFoundError, PermissionError, ...: ``path`` itself cannot be opened.
        FormatError: the file, or a shard that belongs to it, is missing, damaged, truncated or
            inconsistent; also GGUF version 1 and big-endian files.
    """
    path = os.fspath(path)
    budget = Budget()
    files: list[SourceFile] = []
    try:
        files.append(SourceFile(path))
        header = read_header(files[0], budget)
        count = _split_number(header, _SPLIT_COUNT, path, default=1)
        if count <= 1:
            return GGUFFile(path, files, [header])
        shard_paths = _shard_paths(path, header, count)
        files.pop().close()
        headers = []
        budget = Budget()
        for shard, shard_path in enumerate(shard_paths):
            files.append(SourceFile(shard_path))
            headers.append(read_header(files[-1], budget, shard))
        _check_shards(shard_paths, headers, count)
        return GGUFFile(path, files, headers)
    except BaseException:
        for file in files:
            file.close()
        raise


def _split_number(header: Header, key: str, path: str, default: int | None = None) -> int:
    value = header.metadata.get(key, default)
    if type(value) is not int or value < 0:
        raise FormatError(
            f"{key} must be a non-negative integer in every shard of a split model, "
            f"it is {'missing' if value is None else repr(value)[:80]}",
            path=path,
        )
    return value


def _shard_paths(path: str, header: Header, count: int) -> list[str]:
    """The names of all shards, from the name and metadata of one of them; all exist."""
    folder, name = os.path.split(path)
    number = _split_number(header, _SPLIT_NO, path)
    match = _SHARD_NAME.fullmatch(name)
    if count > 99999 or match is None or int(match["count"]) != count:
        raise FormatError(
            f"the metadata says shard {number + 1} of {count}, so the file name should end in "
            f"-{number + 1:05d}-of-{count:05d}.gguf for the other shards to be found",
            path=path,
        )
    if int(match["no"]) != number + 1:
        raise FormatError(
            f"the name says shard {int(match['no'])}, the metadata ({_SPLIT_NO} = {number}) says "
            f"shard {number + 1}",
            path=path,
        )
    names = [f"{match['stem']}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]
    present = set(os.listdir(folder or "."))
    missing = [shard for shard in names if shard not in present]
    if missing:
        listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise FormatError(
            f"{len(missing)} of the model's {count} shards are missing in its folder: {listed}",
            path=path,
        )
    return [os.path.join(folder, shard) for shard in names]


def _check_shards(paths: list[str], headers: list[Header], count: int) -> None:
    tensors: dict[str, int] = {}
    total = _split_number(headers[0], _SPLIT_TENSORS, paths[0])
    for shard, (path, header) in enumerate(zip(paths, headers)):
        for key, wanted in ((_SPLIT_NO, shard), (_SPLIT_COUNT, count), (_SPLIT_TENSORS, total)):
            got = _split_number(header, key, path)
            if got != wanted:
                raise FormatError(f"{key} is {got}, the other shards say {wanted}", path=path)
        for key, value in header.metadata.items():
            if shard and not key.startswith("split.") and not _agrees(headers[0], key, value):
                raise FormatError(
                    f"metadata {key[:80]!r} differs from the first shard's; the shards belong to "
                    "different models",
                    path=path,
                )
        for info in header.tensors:
            if info.name in tensors:
                raise FormatError(
                    f"is also in {paths[tensors[info.name]]}", path=path, tensor=info.name[:80]
                )
            tensors[info.name] = shard
    if len(tensors) != total:
        raise FormatError(
            f"the shards hold {len(tensors)} tensors together, {_SPLIT_TENSORS} says {total}",
            path=paths[0],
        )


def _agrees(first: Header, key: str, value: object) -> bool:
    """Later shards may repeat the first one's metadata (some tools do), not add to or alter it."""
    if key == "general.alignment":  # concerns each file for itself
        return True
    return key in first.metadata and _equal(first.metadata[key], value)


def _equal(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b))
    return type(a) is type(b) and bool(a == b)

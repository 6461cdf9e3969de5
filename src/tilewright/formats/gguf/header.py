"""Parse a GGUF header: metadata and tensor infos, trusting nothing.

Layout (ggml's ``docs/gguf.md``, versions 2 and 3, little-endian)::

    magic "GGUF"  version u32  tensor_count u64  kv_count u64
    kv_count     x { key string, type u32, value }
    tensor_count x { name string, n_dims u32, dims u64[n_dims], type u32, offset u64 }
    padding to general.alignment
    tensor data: each at data start + offset, in whole multiples of the alignment

A string is a u64 length and UTF-8 bytes; an array is an item type u32, a count u64 and the items.

Every count is compared with the bytes that are left in the file, and charged to a memory
:class:`Budget`, before anything is allocated. The file is read, never mapped: a file that shrinks
underneath gives an error, not a bus error.
"""

from __future__ import annotations

import math
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

import numpy as np

from tilewright.errors import FormatError
from tilewright.formats.gguf.types import GGMLType, ValueType

__all__ = ["Budget", "Header", "MetadataType", "SourceFile", "TensorInfo", "read_header"]

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32
MAX_DIMS: Final = 4
MAX_ARRAY_DEPTH: Final = 4
MAX_KEY_BYTES: Final = 65535
MAX_HEADER_MEMORY: Final = 128 << 20
"""Bytes a header may take once decoded. The largest vocabularies in use (262 thousand tokens
with 515 thousand merges) take about 80 MiB; a file that asks for more is refused."""

# What one decoded object costs besides its payload. For strings this is what CPython takes; the
# others are charged more, because reading them takes longer than storing them.
_STRING_COST: Final = 72
_ENTRY_COST: Final = 2048
_ARRAY_COST: Final = 512
_TENSOR_COST: Final = 2048
_WINDOW: Final = 1 << 18

_U32: Final = Struct("<I")
_U64: Final = Struct("<Q")
_MIN_ENTRY_BYTES: Final = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES: Final = 8 + 1 + 4 + 4 + 8


@dataclass(frozen=True)
class MetadataType:
    """Stored type of a metadata value; ``item`` is the item type of an array."""

    type: ValueType
    item: ValueType | None = None

    def __str__(self) -> str:
        return self.type.name if self.item is None else f"{self.type.name}[{self.item.name}]"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies.

    Attributes:
        name: unique in the file (and over all shards).
        shape: NumPy order, outermost first: ggml's dims reversed. ``()`` is a single value.
        type: element type.
        offset: absolute, in bytes from the start of its file.
        nbytes: bytes of data, padding not included.
        shard: index of the file that holds it (0 unless the model is split).
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    offset: int
    nbytes: int
    shard: int = 0

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def n_rows(self) -> int:
        """Rows along the last axis: the product of all other dims."""
        return math.prod(self.shape[:-1])

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row (the last axis)."""
        return self.nbytes // self.n_rows


@dataclass(frozen=True)
class Header:
    """Everything a GGUF file says before its tensor data; ``data_offset`` is where that starts."""

    version: int
    metadata: dict[str, Any]
    metadata_types: dict[str, MetadataType]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_offset: int


class Budget:
    """Counts decoded bytes; one budget covers all shards of a model."""

    def __init__(self, limit: int = MAX_HEADER_MEMORY) -> None:
        self.limit = limit
        self.left = limit

    def charge(self, nbytes: int, what: Callable[[], str], path: str, offset: int) -> None:
        """Take ``nbytes``; FormatError when the header asks for more than the limit in all."""
        if nbytes > self.left:
            raise FormatError(
                f"{what()} would bring the decoded header to more than {self.limit >> 20} MiB, "
                "the most tilewright accepts; the file is damaged or hostile",
                path=path,
                offset=offset,
            )
        self.left -= nbytes


class SourceFile:
    """An open regular file, read at absolute offsets; safe to use from several threads."""

    def __init__(self, path: str) -> None:
        self.path = path
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FormatError("is not a regular file", path=path)
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self._lock = threading.Lock()
        self.size = os.fstat(self._file.fileno()).st_size

    def read_into(self, offset: int, out: np.ndarray) -> None:
        """Fill ``out`` (contiguous) from ``offset``; FormatError when the file ends before."""
        view = out.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):
            got = self._read_some(offset + done, view[done:])
            if got == 0:
                raise FormatError(
                    f"the file ended {len(view) - done} bytes early; it had {self.size} bytes "
                    "when it was opened, and something has shortened it since",
                    path=self.path,
                    offset=offset + done,
                )
            done += got

    def _read_some(self, offset: int, view: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [view], offset)
        with self._lock:  # Windows has no positional read
            self._file.seek(offset)
            return self._file.readinto(view) or 0

    def close(self) -> None:
        self._file.close()


class _Cursor:
    """Reads forward through the header with a small window of the file in memory."""

    def __init__(self, file: SourceFile, budget: Budget) -> None:
        self.file = file
        self.budget = budget
        self.path = file.path
        self.size = file.size
        self.window = b""
        self.start = 0  # file offset of window[0]
        self.at = 0  # position in the window

    @property
    def offset(self) -> int:
        return self.start + self.at

    @property
    def left(self) -> int:
        return self.size - self.offset

    def error(self, message: str, offset: int | None = None) -> FormatError:
        return FormatError(
            message, path=self.path, offset=self.offset if offset is None else offset
        )

    def need(self, nbytes: int, what: Callable[[], str]) -> None:
        """FormatError unless the file has ``nbytes`` more bytes."""
        if nbytes > self.left:
            raise self.error(
                f"{what()} needs {nbytes} bytes, but the file ends after {self.left} more "
                f"(at {self.size}): truncated or damaged"
            )

    def _fill(self, nbytes: int, what: Callable[[], str]) -> None:
        self.need(nbytes, what)
        offset = self.offset
        buffer = np.empty(min(max(nbytes, _WINDOW), self.size - offset), np.uint8)
        self.file.read_into(offset, buffer)
        self.window, self.start, self.at = buffer.tobytes(), offset, 0

    def take(self, nbytes: int, what: Callable[[], str]) -> bytes:
        if self.at + nbytes > len(self.window):
            self._fill(nbytes, what)
        end = self.at + nbytes
        data = self.window[self.at : end]
        self.at = end
        return data

    def u32(self, what: Callable[[], str]) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: Callable[[], str]) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def string(self, what: Callable[[], str], limit: int | None = None) -> str:
        length = self.u64(what)
        if limit is not None and length > limit:
            raise self.error(f"{what()} is {length} bytes long, at most {limit} are allowed")
        self.need(length, what)
        self.budget.charge(_STRING_COST + 4 * length, what, self.path, self.offset)
        data = self.take(length, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(
                f"{what()} is not valid UTF-8: byte {error.start} of {length} ({error.reason})",
                self.offset - length,
            ) from None

    def strings(self, count: int, what: Callable[[], str]) -> list[str]:
        """``count`` strings. The loop every vocabulary goes through, so it works on locals."""
        self.need(8 * count, what)
        self.budget.charge(_STRING_COST * count, what, self.path, self.offset)
        unpack = _U64.unpack_from
        result: list[str] = []
        append = result.append
        window, at = self.window, self.at
        payload = 0
        try:
            for _ in range(count):
                if at + 8 > len(window):
                    self.at = at
                    self._fill(8, what)
                    window, at = self.window, self.at
                (length,) = unpack(window, at)
                at += 8
                end = at + length
                if end > len(window):
                    self.at = at
                    self.need(length, what)
                    self.budget.charge(4 * length, what, self.path, self.offset)
                    self._fill(length, what)
                    window, at = self.window, self.at
                    end = at + length
                else:
                    payload += length
                append(window[at:end].decode("utf-8"))
                at = end
                if payload > _WINDOW:
                    self.budget.charge(4 * payload, what, self.path, self.start + at)
                    payload = 0
        except UnicodeDecodeError as error:
            raise self.error(
                f"{what()}: item {len(result)} is not valid UTF-8: byte {error.start} "
                f"({error.reason})",
                self.start + at,
            ) from None
        self.at = at
        self.budget.charge(4 * payload, what, self.path, self.offset)
        return result

    def numbers(self, count: int, dtype: np.dtype, what: Callable[[], str]) -> np.ndarray:
        """``count`` numbers straight from the file into a new array."""
        self.need(count * dtype.itemsize, what)
        self.budget.charge(_ARRAY_COST + count * dtype.itemsize, what, self.path, self.offset)
        is_bool = dtype == np.bool_
        values = np.empty(count, np.uint8 if is_bool else dtype)
        end = self.at + values.nbytes
        if end <= len(self.window):
            values[:] = np.frombuffer(self.window, values.dtype, count, self.at)
            self.at = end
        else:
            offset = self.offset
            self.file.read_into(offset, values)
            self.window, self.start, self.at = b"", offset + values.nbytes, 0
        if is_bool:
            if count and int(values.max()) > 1:
                first = int(np.argmax(values > 1))
                raise self.error(f"{what()}: item {first} is not a bool: {values[first]}")
            return values.view(np.bool_)
        return values

    def skip_to(self, offset: int) -> None:
        self.window, self.start, self.at = b"", offset, 0


def read_header(file: SourceFile, budget: Budget, shard: int = 0) -> Header:
    """Read and check the header of one file.

    Raises:
        FormatError: anything in it that is not so; the message has path, offset and expectation.
    """
    cursor = _Cursor(file, budget)
    version = _read_version(cursor)
    tensor_count = cursor.u64(lambda: "the tensor count")
    kv_count = cursor.u64(lambda: "the metadata count")
    _check_count(cursor, kv_count, _MIN_ENTRY_BYTES, _ENTRY_COST, "metadata entries")
    _check_count(cursor, tensor_count, _MIN_TENSOR_BYTES, _TENSOR_COST, "tensors")

    metadata: dict[str, Any] = {}
    types: dict[str, MetadataType] = {}
    for index in range(kv_count):
        key = _read_key(cursor, index, metadata)
        metadata[key], types[key] = _read_value(cursor, key)
    alignment = _alignment(cursor, metadata, types)

    infos: dict[str, tuple[tuple[int, ...], GGMLType, int, int]] = {}
    for index in range(tensor_count):
        name = _read_name(cursor, index, infos)
        infos[name] = _read_tensor_info(cursor, name, alignment)
    data_offset = -(-cursor.offset // alignment) * alignment
    tensors = tuple(
        TensorInfo(name, shape, type_, data_offset + offset, nbytes, shard)
        for name, (shape, type_, offset, nbytes) in infos.items()
    )
    _check_layout(cursor, tensors, data_offset, alignment)
    return Header(version, metadata, types, tensors, alignment, data_offset)


def _read_version(cursor: _Cursor) -> int:
    if cursor.size < 4 or (magic := cursor.take(4, lambda: "the magic")) != MAGIC:
        got = f"starts with {cursor.window[:4]!r}, not {MAGIC!r}" if cursor.size else "is empty"
        raise cursor.error(f"not a GGUF file: it {got}", 0)
    del magic
    version = cursor.u32(lambda: "the version")
    if version in VERSIONS:
        return version
    if version == 1:
        raise cursor.error(
            "GGUF version 1 is not supported (versions 2 and 3 are); convert the file anew", 4
        )
    if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
        raise cursor.error(
            "the file is big-endian, which is not supported; convert it with "
            "gguf_convert_endian.py of the gguf package",
            4,
        )
    raise cursor.error(f"unknown GGUF version {version}; versions 2 and 3 are supported", 4)


def _check_count(cursor: _Cursor, count: int, nbytes: int, cost: int, what: str) -> None:
    describe = f"{count} {what}".__str__
    cursor.need(count * nbytes, describe)
    cursor.budget.charge(count * cost, describe, cursor.path, cursor.offset)


def _quote(text: str) -> str:
    """``text`` in quotes, cut to a length that suits an error message."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _read_key(cursor: _Cursor, index: int, seen: dict[str, Any]) -> str:
    offset = cursor.offset
    key = cursor.string(lambda: f"the key of metadata entry {index}", MAX_KEY_BYTES)
    if not key:
        raise cursor.error(f"metadata entry {index} has an empty key", offset)
    if key in seen:
        raise cursor.error(f"the metadata key {_quote(key)} is given twice", offset)
    return key


def _read_name(cursor: _Cursor, index: int, seen: dict[str, Any]) -> str:
    offset = cursor.offset
    name = cursor.string(lambda: f"the name of tensor {index}", MAX_KEY_BYTES)
    if not name:
        raise cursor.error(f"tensor {index} has an empty name", offset)
    if name in seen:
        raise cursor.error(f"the tensor name {_quote(name)} is given twice", offset)
    return name


def _value_type(cursor: _Cursor, what: Callable[[], str]) -> ValueType:
    offset = cursor.offset
    number = cursor.u32(what)
    try:
        return ValueType(number)
    except ValueError:
        last = max(ValueType)
        raise cursor.error(
            f"{what()} has value type {number}; types 0 to {last} exist", offset
        ) from None


def _read_value(cursor: _Cursor, key: str) -> tuple[Any, MetadataType]:
    def what() -> str:
        return f"metadata {_quote(key)}"

    value_type = _value_type(cursor, what)
    if value_type is ValueType.STRING:
        return cursor.string(what), MetadataType(value_type)
    if value_type is ValueType.ARRAY:
        value, item = _read_array(cursor, what, 1)
        return value, MetadataType(value_type, item)
    dtype = value_type.numpy
    assert dtype is not None
    data = cursor.take(dtype.itemsize, what)
    if value_type is ValueType.BOOL:
        if data[0] > 1:
            raise cursor.error(f"{what()} is a bool with the value {data[0]}", cursor.offset - 1)
        return bool(data[0]), MetadataType(value_type)
    return np.frombuffer(data, dtype)[0].item(), MetadataType(value_type)


def _read_array(cursor: _Cursor, what: Callable[[], str], depth: int) -> tuple[Any, ValueType]:
    if depth > MAX_ARRAY_DEPTH:
        raise cursor.error(f"{what()} nests arrays deeper than {MAX_ARRAY_DEPTH}")
    item = _value_type(cursor, what)
    count = cursor.u64(what)
    if item is ValueType.STRING:
        return cursor.strings(count, what), item
    if item is ValueType.ARRAY:
        cursor.need(12 * count, what)
        cursor.budget.charge(_ARRAY_COST * count, what, cursor.path, cursor.offset)
        return [_read_array(cursor, what, depth + 1)[0] for _ in range(count)], item
    dtype = item.numpy
    assert dtype is not None
    return cursor.numbers(count, dtype, what), item


def _alignment(cursor: _Cursor, metadata: dict[str, Any], types: dict[str, MetadataType]) -> int:
    key = "general.alignment"
    if key not in metadata:
        return DEFAULT_ALIGNMENT
    value = metadata[key]
    if types[key].type is not ValueType.UINT32:
        raise cursor.error(f"{key} must be a UINT32, it is a {types[key]}")
    if value == 0 or value & (value - 1):
        raise cursor.error(f"{key} must be a power of two, it is {value}")
    return int(value)


def _read_tensor_info(
    cursor: _Cursor, name: str, alignment: int
) -> tuple[tuple[int, ...], GGMLType, int, int]:
    """(shape, type, offset from the data start, nbytes) of the tensor called ``name``."""

    def what() -> str:
        return "the tensor info"

    start = cursor.offset

    def error(message: str) -> FormatError:
        return FormatError(message, path=cursor.path, offset=start, tensor=name[:80])

    n_dims = cursor.u32(what)
    if n_dims > MAX_DIMS:
        raise error(f"has {n_dims} dims, at most {MAX_DIMS} are allowed")
    dims = [cursor.u64(what) for _ in range(n_dims)]
    type_number = cursor.u32(what)
    offset = cursor.u64(what)
    shape = tuple(reversed(dims))
    if 0 in dims:
        raise error(f"has the shape {shape}; no dim may be zero")
    if math.prod(dims) >= 1 << 63:
        raise error(f"has the shape {shape}: more than 2**63 values")
    try:
        type_ = GGMLType(type_number)
    except ValueError:
        raise error(
            f"has ggml type {type_number}, which is unknown (types 0 to {max(GGMLType)} are)"
        ) from None
    try:
        nbytes = math.prod(dims[1:]) * type_.row_nbytes(dims[0] if dims else 1)
    except ValueError as reason:
        raise error(str(reason)) from None
    if offset % alignment:
        raise error(f"starts at data offset {offset}, not a multiple of {alignment}")
    return shape, type_, offset, nbytes


def _check_layout(
    cursor: _Cursor, tensors: tuple[TensorInfo, ...], data_offset: int, alignment: int
) -> None:
    """The tensors must cover the data section: no overlap, no gap, nothing behind the last.

    ggml writes files this way and refuses others. It is also what catches a damaged shape, type
    or offset: nearly every such change alters a tensor's extent.
    """
    expected = data_offset
    previous = ""
    for info in sorted(tensors, key=lambda info: info.offset):
        if info.offset != expected:
            relation = f"overlaps {_quote(previous)}" if info.offset < expected else "leaves a gap"
            raise FormatError(
                f"{info.type.name} {info.shape} starts at byte {info.offset} and {relation}: the "
                f"data before it ends at {expected}",
                path=cursor.path,
                tensor=info.name[:80],
            )
        if info.offset + info.nbytes > cursor.size:
            raise FormatError(
                f"{info.type.name} {info.shape} takes bytes {info.offset} to "
                f"{info.offset + info.nbytes}, but the file ends at {cursor.size}: truncated or "
                "damaged",
                path=cursor.path,
                tensor=info.name[:80],
            )
        expected = -(-(info.offset + info.nbytes) // alignment) * alignment
        previous = info.name
    if tensors and cursor.size > expected:
        raise cursor.error(
            f"{cursor.size - expected} bytes after the last tensor belong to no tensor", expected
        )

"""safetensors: named arrays in one file. Reader and atomic writer.

Layout (https://github.com/huggingface/safetensors, "Format")::

    length of the header, u64, little-endian
    header: JSON {name: {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ..,
                  "__metadata__": {text: text}}
    data: the tensors, little-endian, C order, without holes or overlaps

The file is read, never mapped: one that shrinks underneath gives an error, not a bus error. NumPy
has no bfloat16, so BF16 is read as ``uint16`` bit patterns, and written from
``(uint16 array, dtypes.bf16)``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import numpy as np

from tilewright import dtypes
from tilewright.dtypes import DType
from tilewright.errors import FormatError, ShapeError, UnsupportedError
from tilewright.formats.atomic import atomic_file
from tilewright.formats.gguf.header import SourceFile

__all__ = [
    "Array",
    "SafetensorsFile",
    "TensorInfo",
    "open_safetensors",
    "read_safetensors",
    "storage_order",
    "stored_chunks",
    "write_safetensors",
]

Array = np.ndarray | tuple[np.ndarray, DType]
"""What is written: an array, or ``(uint16 array, bf16)``."""

MAX_HEADER_BYTES: Final = 100 << 20  # the limit of the format's own library
MAX_DIMS: Final = 64  # NumPy's limit
_CHUNK_BYTES: Final = 4 << 20
_METADATA: Final = "__metadata__"
_DTYPES: Final = {
    "F64": dtypes.f64,
    "F32": dtypes.f32,
    "F16": dtypes.f16,
    "BF16": dtypes.bf16,
    "I64": dtypes.i64,
    "I32": dtypes.i32,
    "I16": dtypes.i16,
    "I8": dtypes.i8,
    "U64": dtypes.u64,
    "U32": dtypes.u32,
    "U16": dtypes.u16,
    "U8": dtypes.u8,
    "BOOL": dtypes.boolean,
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
# Known to the format, not to tilewright: their sizes are checked, their values are not read.
_FOREIGN_BITS: Final = {
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
    "C64": 64,
}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: ``nbytes`` bytes at ``offset``, counted from the file's start.

    ``stored`` is the file's name for the element type, such as ``"BF16"``; ``shard`` counts the
    files of a model from 0.
    """

    name: str
    stored: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    shard: int = 0

    @property
    def dtype(self) -> DType:
        """The element type; `UnsupportedError` for one that tilewright does not have."""
        try:
            return _DTYPES[self.stored]
        except KeyError:
            raise UnsupportedError(
                f"tensor {self.name!r} is {self.stored}, which tilewright does not have; "
                f"supported are {', '.join(_DTYPES)}"
            ) from None


class SafetensorsFile:
    """An open file, or the files of a model in several; a context manager.

    Made by `open_safetensors`.

    Attributes:
        path: what was opened.
        paths: all files, by shard.
        metadata: the header's own entries, text to text (of several files, those of all).
        tensors: name to `TensorInfo`, in the order of the header.
    """

    def __init__(
        self,
        path: str,
        files: list[SourceFile],
        metadata: dict[str, str],
        tensors: dict[str, TensorInfo],
    ) -> None:
        self.path = path
        self.paths = [file.path for file in files]
        self.metadata = metadata
        self.tensors = tensors
        self._files = files

    def read(self, name: str) -> np.ndarray:
        """A tensor in fresh memory, of the dtype's storage (uint16 bit patterns for BF16).

        Raises:
            KeyError: no such tensor.
            UnsupportedError: an element type that tilewright does not have.
            FormatError: the file has become shorter, or a BOOL is neither 0 nor 1.
        """
        info = self._info(name)
        stored = info.dtype.storage
        if info.dtype is not dtypes.boolean:
            out = np.empty(info.shape, stored.newbyteorder("<"))
            self._files[info.shard].read_into(info.offset, out)
            return out.astype(stored, copy=False)
        raw = np.empty(info.shape, np.uint8)
        self._files[info.shard].read_into(info.offset, raw)
        if raw.size and raw.max() > 1:
            bad = int(np.flatnonzero(raw.reshape(-1) > 1)[0])
            raise FormatError(
                f"a BOOL is {raw.reshape(-1)[bad]}, wanted 0 or 1",
                path=self.paths[info.shard],
                tensor=name,
                offset=info.offset + bad,
            )
        return raw.view(np.bool_)

    def raw_chunks(self, name: str) -> Iterator[np.ndarray]:
        """The tensor's stored bytes in pieces, uint8; a piece is valid until the next is asked."""
        info = self._info(name)
        room = np.empty(min(info.nbytes, _CHUNK_BYTES), np.uint8)
        for start in range(0, info.nbytes, _CHUNK_BYTES):
            chunk = room[: min(_CHUNK_BYTES, info.nbytes - start)]
            self._files[info.shard].read_into(info.offset + start, chunk)
            yield chunk

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise KeyError(
                f"{self.path} has no tensor {name!r}; it has {', '.join(list(self.tensors)[:8])}"
                + (", ..." if len(self.tensors) > 8 else "")
            ) from None

    def close(self) -> None:
        """Close all files; closing twice is fine."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_safetensors(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Open a file and check its header; no tensor is read.

    A path that ends in ``.json`` is the index of a model in several files
    (``model.safetensors.index.json``, whose ``weight_map`` says which file has which tensor).

    Raises:
        FormatError: the header is damaged, or lies: sizes that do not fit shape and dtype,
            overlaps, holes, offsets outside the file, bytes after the last tensor; or the index
            and the files disagree.
        OSError: a file cannot be opened.
    """
    name = os.fspath(path)
    weight_map = _read_index(name) if name.endswith(".json") else None
    shards = [name]
    if weight_map is not None:
        folder = os.path.dirname(name)
        shards = [os.path.join(folder, shard) for shard in sorted(set(weight_map.values()))]
    files: list[SourceFile] = []
    metadata: dict[str, str] = {}
    tensors: dict[str, TensorInfo] = {}
    try:
        for number, shard in enumerate(shards):
            files.append(SourceFile(shard))
            entries, found = _read_header(files[-1])
            metadata.update(entries)
            for info in found.values():
                if weight_map is not None:
                    listed = weight_map.get(info.name)
                    if listed != os.path.basename(shard):
                        where = "nowhere" if listed is None else f"in {listed}"
                        raise FormatError(f"{name} has it {where}", path=shard, tensor=info.name)
                tensors[info.name] = replace(info, shard=number)
        missing = next((t for t in weight_map or () if t not in tensors), None)
        if weight_map is not None and missing is not None:
            raise FormatError(f"is not in {weight_map[missing]}", path=name, tensor=missing)
    except BaseException:
        for file in files:
            file.close()
        raise
    return SafetensorsFile(name, files, metadata, tensors)


def _read_index(path: str) -> dict[str, str]:
    """The ``weight_map`` of an index: tensor to file name."""
    with open(path, "rb") as file:
        text = file.read(MAX_HEADER_BYTES + 1)
    if len(text) > MAX_HEADER_BYTES:
        raise FormatError(f"has more than {MAX_HEADER_BYTES} bytes", path=path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"is not JSON: {str(error)[:100]}", path=path) from None
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found:
        raise FormatError("has no 'weight_map'", path=path)
    for tensor, name in found.items():
        if not isinstance(name, str) or not name or os.path.basename(name) != name:
            raise FormatError(f"its file {name!r:.80} is no plain name", path=path, tensor=tensor)
    return found


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Every tensor of a file by its name; BF16 as uint16 bit patterns. Raises as the reader."""
    with open_safetensors(path) as file:
        return {name: file.read(name) for name in file.tensors}


def _read_header(file: SourceFile) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    def wrong(message: str, tensor: str | None = None, offset: int | None = None) -> FormatError:
        return FormatError(message, path=file.path, tensor=tensor, offset=offset)

    if file.size < 8:
        raise wrong(f"has {file.size} bytes, a safetensors file has at least 8")
    prefix = np.empty(1, "<u8")
    file.read_into(0, prefix)
    length = int(prefix[0])
    if length > MAX_HEADER_BYTES or length > file.size - 8:
        raise wrong(
            f"says that its header has {length} bytes; the file has {file.size}, and headers have "
            f"at most {MAX_HEADER_BYTES}. Damaged, cut short, or not a safetensors file",
            offset=0,
        )
    raw = np.empty(length, np.uint8)
    file.read_into(8, raw)
    header = _parse_json(raw.tobytes(), wrong)
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise wrong(f"{_METADATA!r} is not a table of texts")
    start = 8 + length
    tensors = {
        name: _read_info(name, entry, start, file.size - start, wrong)
        for name, entry in header.items()
    }
    end, before = start, "the header"
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            what = "overlaps" if info.offset < end else "leaves a hole after"
            raise wrong(f"{what} {before}, which ends at byte {end}", info.name, info.offset)
        end, before = info.offset + info.nbytes, f"tensor {info.name!r}"
    if end != file.size:
        raise wrong(f"{file.size - end} bytes follow the last tensor", offset=end)
    return metadata, tensors


def _parse_json(text: bytes, wrong: Any) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
            raise wrong(f"the header has {twice!r} twice")
        return found

    if not text.startswith(b"{"):
        raise wrong("the header does not begin with '{'; not a safetensors file", offset=8)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise wrong("the header is not UTF-8", offset=8 + error.start) from None
    except json.JSONDecodeError as error:
        at = 8 + len(error.doc[: error.pos].encode("utf-8"))
        raise wrong(f"the header is not JSON: {error.msg}", offset=at) from None
    except (RecursionError, ValueError) as error:
        raise wrong(f"the header is not sensible JSON: {error}", offset=8) from None
    assert isinstance(header, dict)
    return header


def _read_info(name: str, entry: Any, start: int, available: int, wrong: Any) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong("its entry should have 'dtype', 'shape' and 'data_offsets'", name)
    stored, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(stored, str) or not (stored in _DTYPES or stored in _FOREIGN_BITS):
        raise wrong(f"unknown dtype {stored!r:.80}", name)
    if not _are_sizes(shape) or len(shape) > MAX_DIMS:
        raise wrong(f"its shape {shape!r:.80} is not a list of at most {MAX_DIMS} sizes", name)
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise wrong(f"its data_offsets {offsets!r:.80} are not two offsets", name)
    begin, end = offsets
    if not begin <= end <= available:
        raise wrong(
            f"its data_offsets [{begin}, {end}] are not within the file's {available} bytes of "
            "data; the file is cut short or damaged",
            name,
        )
    bits = _DTYPES[stored].bits if stored in _DTYPES else _FOREIGN_BITS[stored]
    wanted = math.prod(shape) * bits
    if wanted % 8 or wanted // 8 != end - begin:
        raise wrong(f"{stored} {shape} takes {wanted // 8} bytes, it has {end - begin}", name)
    return TensorInfo(name, stored, tuple(shape), start + begin, end - begin)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a file, atomically: ``path`` has the old content or the whole new one, durably.

    ``tensors``: arrays of any strides by name, bfloat16 as ``(uint16 bit patterns, dtypes.bf16)``.
    The bytes depend on the names and values only, not on the order they come in.

    Raises:
        UnsupportedError: a dtype that the format does not have.
        ShapeError: bf16 bits that are not uint16.
        FormatError: a name or metadata that the format cannot store.
        OSError: the disk said no. Whatever is raised, an old file stays as it was.
    """
    order = storage_order(tensors)
    header: dict[str, Any] = {}
    if metadata:
        for key, value in metadata.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise FormatError(f"metadata {key!r} must be text to text, got {value!r:.80}")
        header[_METADATA] = dict(metadata)
    offset = 0
    for name, dtype, array in order:
        begin, offset = offset, offset + array.size * dtype.nbytes
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, offset],
        }
    try:
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise FormatError(f"a name or metadata is not valid Unicode: {error}") from None
    text += b" " * (-len(text) % 8)  # the data begins aligned
    if len(text) > MAX_HEADER_BYTES:
        raise FormatError(
            f"the header would take {len(text)} bytes, allowed are {MAX_HEADER_BYTES}"
        )
    with atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        _write_data(file, order)


def _write_data(file: BinaryIO, order: Iterable[tuple[str, DType, np.ndarray]]) -> None:
    for _, dtype, array in order:
        for chunk in stored_chunks(array, dtype):
            file.write(chunk.data)


def storage_order(tensors: Mapping[str, Array]) -> list[tuple[str, DType, np.ndarray]]:
    """(name, dtype, array) as they lie in a file: wide elements first, so that all are aligned.

    Raises as `write_safetensors`.
    """
    found = []
    for name, value in tensors.items():
        if not isinstance(name, str) or name == _METADATA:
            raise FormatError(f"a tensor cannot be called {name!r}")
        array, dtype = value if isinstance(value, tuple) else (np.asarray(value), None)
        if dtype is None:
            try:
                dtype = dtypes.from_numpy(array.dtype.newbyteorder("="))
            except KeyError:
                raise UnsupportedError(
                    f"tensor {name!r}: safetensors has no type for NumPy's {array.dtype}"
                ) from None
        elif array.dtype != dtype.storage:
            raise ShapeError(
                f"tensor {name!r}: {dtype} is stored as {dtype.storage}, got {array.dtype}"
            )
        found.append((name, dtype, array))
    return sorted(found, key=lambda item: (-item[1].bits, item[0]))


def stored_chunks(array: np.ndarray, dtype: DType) -> Iterator[np.ndarray]:
    """The bytes of ``array`` as stored, little-endian and C order, as uint8 pieces."""
    stored = dtype.storage.newbyteorder("<")
    flat = np.ascontiguousarray(array, stored).reshape(-1).view(np.uint8)
    for start in range(0, flat.size, _CHUNK_BYTES):
        yield flat[start : start + _CHUNK_BYTES]

"""Write GGUF files: streamed, typed, and atomic.

A file appears under its name only when it is complete and on the disk. Until then it is a hidden
``.NAME.*.tmp`` beside it, which nothing reads; a process killed half way leaves that behind and the
old file, if there was one, untouched.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np

from tilewright.errors import FormatError, ShapeError, UnsupportedError
from tilewright.formats.atomic import AtomicFiles
from tilewright.formats.gguf.header import DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS
from tilewright.formats.gguf.metadata import MetadataValue, encode_metadata, encode_string
from tilewright.formats.gguf.quants import can_quantize, quantize
from tilewright.formats.gguf.types import GGMLType, ValueType

__all__ = [
    "TensorSource",
    "tensor_from_array",
    "tensor_from_raw",
    "tensor_from_rows",
    "write_gguf",
]

_VERSION: Final = 3
_MAX_NAME_BYTES: Final = 63  # ggml keeps tensor names in 64 bytes, with a terminating zero
_CHUNK_BYTES: Final = 4 << 20
_NUMPY_TYPES: Final = {
    np.dtype(np.float32): GGMLType.F32,
    np.dtype(np.float16): GGMLType.F16,
    np.dtype(np.float64): GGMLType.F64,
    np.dtype(np.int8): GGMLType.I8,
    np.dtype(np.int16): GGMLType.I16,
    np.dtype(np.int32): GGMLType.I32,
    np.dtype(np.int64): GGMLType.I64,
}


@dataclass(frozen=True)
class TensorSource:
    """A tensor to be written, its data produced when its turn comes.

    Attributes:
        name: at most 63 bytes of UTF-8.
        shape: NumPy order, outermost first; at most 4 dims, none of them zero.
        type: stored type; rows along the last axis must be whole blocks.
        chunks: gives the stored bytes in order, as uint8 arrays of any size.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    chunks: Callable[[], Iterable[np.ndarray]]

    def __post_init__(self) -> None:
        size = len(self.name.encode("utf-8", "replace"))
        if not 0 < size <= _MAX_NAME_BYTES:
            raise FormatError(
                f"the name has {size} bytes, 1 to {_MAX_NAME_BYTES} are allowed",
                tensor=self.name[:80],
            )
        if len(self.shape) > MAX_DIMS or any(dim < 1 for dim in self.shape):
            raise ShapeError(
                f"tensor {self.name!r}: the shape {self.shape} should have at most {MAX_DIMS} "
                "dims, all of them positive"
            )
        if self.type.layout.removed:
            raise UnsupportedError(f"tensor {self.name!r}: {self.type.name} is no longer written")
        try:
            self.type.row_nbytes(self.shape[-1] if self.shape else 1)
        except ValueError as error:
            raise ShapeError(f"tensor {self.name!r}: {error}") from None

    @property
    def nbytes(self) -> int:
        """Bytes of the stored data."""
        return math.prod(self.shape[:-1]) * self.type.row_nbytes((1, *self.shape)[-1])


def tensor_from_raw(
    name: str, raw: np.ndarray, shape: Sequence[int], type_: GGMLType
) -> TensorSource:
    """A tensor whose stored bytes are at hand: ``raw`` is uint8 of ``(*shape[:-1], row_nbytes)``.

    Raises:
        ShapeError: ``raw`` is not of that size.
    """
    source = TensorSource(name, tuple(shape), type_, lambda: [raw])
    if raw.dtype != np.uint8 or raw.size != source.nbytes:
        raise ShapeError(
            f"tensor {name!r}: {type_.name} {source.shape} wants {source.nbytes} bytes of uint8, "
            f"got {raw.dtype} {raw.shape}"
        )
    return source


def tensor_from_rows(
    name: str,
    shape: Sequence[int],
    type_: GGMLType,
    rows: Callable[[int, int], np.ndarray],
) -> TensorSource:
    """A tensor quantised from values while it is written, a few rows at a time.

    ``rows(start, stop)`` gives the values of these rows, float32 ``(stop - start, shape[-1])``,
    where all axes but the last are flattened. It is asked for all rows once, in order.

    Raises:
        UnsupportedError: tilewright cannot quantise to ``type_``.
    """
    if not can_quantize(type_):
        raise UnsupportedError(f"tensor {name!r}: tilewright does not write {type_.name}")
    shape = tuple(shape)
    length = shape[-1] if shape else 1
    count = math.prod(shape[:-1])

    def chunks() -> Iterator[np.ndarray]:
        step = max(1, _CHUNK_BYTES // (4 * length))
        for start in range(0, count, step):
            stop = min(start + step, count)
            values = rows(start, stop)
            if values.shape != (stop - start, length):
                raise ShapeError(
                    f"tensor {name!r}: rows({start}, {stop}) should give the shape "
                    f"{(stop - start, length)}, it gave {values.shape}"
                )
            yield quantize(values, type_)

    return TensorSource(name, shape, type_, chunks)


def tensor_from_array(name: str, array: np.ndarray, type_: GGMLType | None = None) -> TensorSource:
    """A tensor from an array: stored as it is, or quantised to ``type_`` while it is written.

    Raises:
        UnsupportedError: no ggml type for the array's dtype, or no quantiser for ``type_``.
    """
    own = _NUMPY_TYPES.get(array.dtype.newbyteorder("="))
    if type_ is None and own is None:
        known = ", ".join(str(dtype) for dtype in _NUMPY_TYPES)
        raise UnsupportedError(
            f"tensor {name!r}: no ggml type for NumPy's {array.dtype}; known are {known}"
        )
    if type_ is None or type_ is own:
        assert own is not None

        def chunks() -> Iterator[np.ndarray]:
            stored = array.dtype.newbyteorder("<")
            yield np.ascontiguousarray(array, stored).reshape(-1).view(np.uint8)

        return TensorSource(name, array.shape, own, chunks)
    flat = array.reshape(-1, array.shape[-1] if array.ndim else 1)
    return tensor_from_rows(name, array.shape, type_, lambda start, stop: flat[start:stop])


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray] | Iterable[TensorSource],
    *,
    alignment: int | None = None,
    max_shard_bytes: int | None = None,
    max_shard_tensors: int | None = None,
) -> list[str]:
    """Write a model; returns the paths written, in shard order.

    Args:
        path: the file to write, replaced if it exists. A split model goes to
            ``STEM-00001-of-0000N.gguf`` ... beside it.
        metadata: see :func:`~tilewright.formats.gguf.metadata.encode_metadata` for the types.
        tensors: arrays by name, stored in their own dtype, or sources, in the order to be written.
        alignment: of the tensor data; a power of two. Default: ``general.alignment`` of the
            metadata, or 32. Noted in the metadata when it is not 32.
        max_shard_bytes: begin a new shard before one has more tensor data than this.
        max_shard_tensors: begin a new shard before one has more tensors than this.

    Raises:
        FormatError: metadata or names that GGUF cannot store; a source that gave too little or too
            much data.
        ShapeError, UnsupportedError: an array of a shape or dtype that GGUF cannot store.
        OSError: the disk said no. Whatever is raised, nothing is left behind.
    """
    path = os.fspath(path)
    if isinstance(tensors, Mapping):
        sources = [tensor_from_array(name, array) for name, array in tensors.items()]
    else:
        sources = list(tensors)
    _check_unique(sources)
    metadata = dict(metadata)
    alignment = _settle_alignment(metadata, alignment)
    shards = _split(sources, alignment, max_shard_bytes, max_shard_tensors)
    count = len(shards)
    paths = _shard_paths(path, count)
    with AtomicFiles(paths) as files:
        for number, (file, shard) in enumerate(zip(files, shards)):
            entries = dict(metadata) if number == 0 else _alignment_entry(alignment)
            if count > 1:
                entries["split.no"] = MetadataValue(number, ValueType.UINT16)
                entries["split.count"] = MetadataValue(count, ValueType.UINT16)
                entries["split.tensors.count"] = MetadataValue(len(sources), ValueType.INT32)
            _write_file(file, entries, shard, alignment)
    return paths


def _check_unique(sources: Sequence[TensorSource]) -> None:
    seen = set()
    for source in sources:
        if source.name in seen:
            raise FormatError("is given twice", tensor=source.name)
        seen.add(source.name)


def _settle_alignment(metadata: dict[str, Any], alignment: int | None) -> int:
    """The alignment; the metadata's entry is made to say the same."""
    given = metadata.pop("general.alignment", None)
    if isinstance(given, MetadataValue):
        given = given.value
    if alignment is None:
        alignment = DEFAULT_ALIGNMENT if given is None else int(given)
    elif given is not None and int(given) != alignment:
        raise FormatError(f"alignment is {alignment}, but general.alignment says {given}")
    if not 0 < alignment < 1 << 32 or alignment & (alignment - 1):
        raise FormatError(f"the alignment must be a power of two below 2**32, it is {alignment}")
    metadata.update(_alignment_entry(alignment))
    return alignment


def _alignment_entry(alignment: int) -> dict[str, Any]:
    if alignment == DEFAULT_ALIGNMENT:
        return {}
    return {"general.alignment": MetadataValue(alignment, ValueType.UINT32)}


def _split(
    sources: list[TensorSource],
    alignment: int,
    max_bytes: int | None,
    max_tensors: int | None,
) -> list[list[TensorSource]]:
    shards: list[list[TensorSource]] = [[]]
    size = 0
    for source in sources:
        nbytes = _padded(source.nbytes, alignment)
        full = (max_bytes is not None and size + nbytes > max_bytes) or (
            max_tensors is not None and len(shards[-1]) >= max_tensors
        )
        if full and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(source)
        size += nbytes
    if len(shards) > 65535:
        raise FormatError(f"the limits ask for {len(shards)} shards; GGUF can count 65535")
    return shards


def _shard_paths(path: str, count: int) -> list[str]:
    if count == 1:
        return [path]
    stem = path.removesuffix(".gguf")
    return [f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _write_file(
    file: BinaryIO, metadata: Mapping[str, Any], sources: Sequence[TensorSource], alignment: int
) -> None:
    header = [
        MAGIC,
        struct.pack("<IQQ", _VERSION, len(sources), len(metadata)),
        encode_metadata(metadata),
    ]
    offset = 0
    for source in sources:
        dims = source.shape[::-1]
        header += [
            encode_string(source.name),
            struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, source.type, offset),
        ]
        offset += _padded(source.nbytes, alignment)
    encoded = b"".join(header)
    file.write(encoded)
    if sources:
        file.write(bytes(_padded(len(encoded), alignment) - len(encoded)))
    for source in sources:
        written = 0
        for chunk in source.chunks():
            if chunk.dtype != np.uint8:
                raise ShapeError(f"tensor {source.name!r}: chunks must be uint8, not {chunk.dtype}")
            written += chunk.nbytes
            if written > source.nbytes:
                break
            file.write(np.ascontiguousarray(chunk).data)
        if written != source.nbytes:
            amount = "more" if written > source.nbytes else f"only {written}"
            raise FormatError(
                f"{source.type.name} {source.shape} takes {source.nbytes} bytes, its source gave "
                f"{amount}",
                tensor=source.name,
            )
        file.write(bytes(_padded(source.nbytes, alignment) - source.nbytes))

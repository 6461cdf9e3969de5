"""Tensors of ONNX files as NumPy arrays.

Every size is checked against the bytes that are there before anything is allocated. Element types
that NumPy lacks are those of ``ml_dtypes`` (bfloat16, float8, 4-bit integers ...); strings are
object arrays of ``str``.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Final

import numpy as np

from tilewright.errors import FormatError, UnsupportedError

__all__ = [
    "MAX_DENSE_BYTES",
    "element_name",
    "named_dtype",
    "numpy_dtype",
    "read_tensor",
    "tensor_array",
]

MAX_DENSE_BYTES: Final = 1 << 30
"""The most that a sparse tensor, which names any shape in a few bytes, is written out to."""

_FIELDS: Final = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def element_name(number: int) -> str:
    """The lower-case name of an element type (``"float32"`` is called ``"float"`` by ONNX)."""
    import onnx

    try:
        return onnx.TensorProto.DataType.Name(number).lower()
    except ValueError:
        return f"type {number}"


def numpy_dtype(number: int, what: str) -> np.dtype:
    """The NumPy (or ml_dtypes) dtype of an element type."""
    import onnx

    if number == onnx.TensorProto.STRING:
        return np.dtype(object)
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number))
    except (KeyError, ValueError):
        raise UnsupportedError(
            f"{what} has elements of {element_name(number)}, which the installed onnx does not know"
        ) from None


def named_dtype(name: str, what: str) -> np.dtype:
    """:func:`numpy_dtype` by the type's name, as in :func:`element_name`."""
    import onnx

    return numpy_dtype(onnx.TensorProto.DataType.Value((name or "float").upper()), what)


def tensor_array(
    proto: Any, folder: Path | None, path: object = None, raw_data: memoryview | None = None
) -> np.ndarray:
    """The elements of a ``TensorProto``; external ones are mapped from a file below ``folder``.

    ``raw_data`` is what its field of that name would hold, had it been parsed with the rest (see
    :mod:`tilewright.formats.onnx.wire`); it is copied.

    Raises:
        FormatError: sizes that do not agree with the data, or a file outside the folder.
        UnsupportedError: an element type that is not known.
    """
    import onnx

    name = proto.name or "(unnamed)"
    dims = tuple(proto.dims)
    if len(dims) > 64:  # NumPy's most
        raise FormatError(f"has {len(dims)} axes, at most 64 can be held", path=path, tensor=name)
    if any(n < 0 for n in dims):
        raise FormatError(f"has negative sizes {dims}", path=path, tensor=name)
    if math.prod(n for n in dims if n) >= 1 << 56:  # beside an axis of zero, say
        raise FormatError(f"has sizes {dims}, which no array has", path=path, tensor=name)
    dtype = numpy_dtype(proto.data_type, f"tensor {name!r}")
    count = math.prod(dims)
    bits = _bits(proto.data_type, dtype)
    wanted = -(-count * bits // 8)
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        if dtype.hasobject:
            raise FormatError("strings are never in external files", path=path, tensor=name)
        raw = _external(proto, wanted, folder, path, name)
        return _from_bytes(raw, proto.data_type, dtype, dims, count)
    if raw_data is not None or proto.HasField("raw_data"):
        if dtype.hasobject:
            raise FormatError("strings are never raw data", path=path, tensor=name)
        held = proto.raw_data if raw_data is None else raw_data
        if len(held) != wanted:
            raise FormatError(
                f"{element_name(proto.data_type)}{list(dims)} takes {wanted} bytes, "
                f"{len(held)} are there",
                path=path,
                tensor=name,
            )
        raw = np.frombuffer(held, np.uint8)
        if raw_data is not None:
            raw = raw.copy()
        return _from_bytes(raw, proto.data_type, dtype, dims, count)
    if dtype.hasobject:
        texts = [s.decode("utf-8", "replace") for s in proto.string_data]
        if len(texts) != count:
            raise FormatError(
                f"string{list(dims)} wants {count} strings, {len(texts)} are there",
                path=path,
                tensor=name,
            )
        return np.array(texts, object).reshape(dims)
    numbers = sum(len(getattr(proto, field)) for field in _FIELDS)
    packed = -(-count * bits // 8) if bits < 8 else count * (2 if dtype.kind == "c" else 1)
    if numbers not in (packed, count):
        raise FormatError(
            f"{element_name(proto.data_type)}{list(dims)} wants {count} elements, "
            f"{numbers} are there",
            path=path,
            tensor=name,
        )
    try:
        array: np.ndarray = onnx.numpy_helper.to_array(proto)
    except (ValueError, TypeError, RuntimeError) as error:
        raise FormatError(f"cannot be read: {error}", path=path, tensor=name) from error
    return array.reshape(dims)


def _bits(number: int, dtype: np.dtype) -> int:
    name = element_name(number)
    for bits in (2, 4):
        if name in (f"int{bits}", f"uint{bits}", "float4e2m1" if bits == 4 else ""):
            return bits
    return dtype.itemsize * 8


def _from_bytes(
    raw: np.ndarray, number: int, dtype: np.dtype, dims: tuple[int, ...], count: int
) -> np.ndarray:
    """Little-endian bytes as an array, sub-byte elements one a byte (lowest bits first)."""
    bits = _bits(number, dtype)
    if bits == 8 * dtype.itemsize:
        return raw.view(dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(dims)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = ((raw[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)[:count]
    if element_name(number).startswith("int"):  # sign-extend
        signed = (parts << (8 - bits)).view(np.int8) >> (8 - bits)
        return signed.astype(dtype).reshape(dims)
    if element_name(number).startswith("float"):
        return parts.view(dtype).reshape(dims)
    return parts.astype(dtype).reshape(dims)


def _external(proto: Any, wanted: int, folder: Path | None, path: object, name: str) -> np.ndarray:
    """The bytes of a tensor that lies in another file, mapped read-only."""
    if folder is None:
        raise FormatError(
            "lies in an external file, but the model was not read from a file", tensor=name
        )
    facts = {entry.key: entry.value for entry in proto.external_data}
    location = facts.get("location", "")
    root = folder.resolve()
    try:
        file = (root / location).resolve()
        inside = file.is_relative_to(root) and file != root
    except (OSError, TypeError, ValueError, RuntimeError):  # no UTF-8, a zero, a circle of links
        inside = False
    if not location or not inside:
        raise FormatError(
            f"its external file {location!r} is not inside the model's folder",
            path=path,
            tensor=name,
        )
    try:
        start, length = int(facts.get("offset", 0)), int(facts.get("length", wanted))
    except ValueError:
        raise FormatError(
            f"offset and length of external data are numbers, got {facts}", path=path, tensor=name
        ) from None
    try:
        size = os.stat(file).st_size
    except (OSError, ValueError) as error:
        raise FormatError(
            f"its external file {location!r} cannot be read: {error}", path=path, tensor=name
        ) from error
    if not file.is_file():
        raise FormatError(f"its external file {location!r} is no file", path=path, tensor=name)
    if length != wanted or start < 0 or start + length > size:
        raise FormatError(
            f"takes {wanted} bytes; external data says {length} at byte {start} of {location!r}, "
            f"which has {size}",
            path=path,
            tensor=name,
        )
    if wanted == 0:
        return np.zeros(0, np.uint8)
    return np.memmap(file, np.uint8, "r", start, (wanted,))


def sparse_array(proto: Any, folder: Path | None, path: object = None) -> np.ndarray:
    """A ``SparseTensorProto`` written out, up to :data:`MAX_DENSE_BYTES`."""
    values = tensor_array(proto.values, folder, path)
    where = tensor_array(proto.indices, folder, path)
    name = proto.values.name or "(sparse)"
    if where.dtype != np.int64:
        raise FormatError(f"has indices of {where.dtype}, wants int64", path=path, tensor=name)
    dims = tuple(proto.dims)
    count = math.prod(dims)
    if any(n <= 0 for n in dims) or count * values.itemsize > MAX_DENSE_BYTES:
        raise FormatError(
            f"a sparse tensor of shape {list(dims)} is not written out (at most "
            f"{MAX_DENSE_BYTES} bytes)",
            path=path,
            tensor=name,
        )
    if where.ndim == 2 and where.shape[1] == len(dims):
        inside = bool(((where >= 0) & (where < np.array(dims))).all())
        flat = (where * np.array([math.prod(dims[i + 1 :]) for i in range(len(dims))])).sum(1)
    else:
        flat = where.reshape(-1)
        inside = bool(((flat >= 0) & (flat < count)).all())
    if values.ndim != 1 or len(flat) != len(values) or not inside:
        raise FormatError(
            f"{values.shape} values and {where.shape} indices do not fit {list(dims)}",
            path=path,
            tensor=name,
        )
    made = np.zeros(count, values.dtype)
    made[flat] = values
    return made.reshape(dims)


def read_tensor(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in a ``.pb`` file (a serialised ``TensorProto``)."""
    import onnx
    from google.protobuf.message import DecodeError

    proto = onnx.TensorProto()
    try:
        proto.ParseFromString(Path(path).read_bytes())
    except DecodeError as error:
        raise FormatError(f"is no TensorProto: {error}", path=path) from error
    return tensor_array(proto, Path(path).parent, path)

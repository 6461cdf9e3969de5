"""Encode metadata values as GGUF stores them, choosing types where the caller does not."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.errors import FormatError
from tilewright.formats.gguf.header import MAX_ARRAY_DEPTH, MAX_KEY_BYTES, MetadataType
from tilewright.formats.gguf.types import ValueType

__all__ = ["MetadataValue", "encode_metadata", "encode_string"]


@dataclass(frozen=True)
class MetadataValue:
    """A value with an explicit stored type, where the default would not be the one wanted.

    ``MetadataValue(7, ValueType.UINT64)``, ``MetadataValue([1, 2], MetadataType(ValueType.ARRAY,
    ValueType.UINT32))``. Copying a file's metadata exactly:
    ``{key: MetadataValue(v, gguf.metadata_types[key]) for key, v in gguf.metadata.items()}``.
    """

    value: Any
    type: ValueType | MetadataType


def encode_metadata(metadata: Mapping[str, Any]) -> bytes:
    """All entries, one after the other, as they stand in the file.

    Default types: ``str`` and ``bytes`` (UTF-8) STRING, ``bool`` BOOL, ``float`` FLOAT32, ``int``
    the first of UINT32, INT32, UINT64, INT64 that holds it; NumPy scalars and arrays their own
    type; lists and tuples arrays of their common item type, ints as the first of INT32, UINT32,
    INT64, UINT64 that holds all.

    Raises:
        FormatError: a key or value that GGUF cannot store; the message names the key.
    """
    parts = []
    for key, value in metadata.items():
        encoded_key = key.encode("utf-8")
        if not 0 < len(encoded_key) <= MAX_KEY_BYTES:
            raise FormatError(
                f"metadata key {key[:80]!r} has {len(encoded_key)} bytes, 1 to {MAX_KEY_BYTES} "
                "are allowed"
            )
        try:
            parts += [struct.pack("<Q", len(encoded_key)), encoded_key, _encode_typed(value)]
        except (OverflowError, TypeError, ValueError, struct.error) as error:
            raise FormatError(
                f"metadata {key!r}: GGUF cannot store {type(value).__name__} "
                f"{' '.join(repr(value).split())[:80]}: {error}"
            ) from error
    return b"".join(parts)


def encode_string(text: str | bytes) -> bytes:
    """Length and UTF-8 bytes; ``UnicodeError`` or ``TypeError`` when that is not possible."""
    if isinstance(text, str):
        data = text.encode("utf-8")
    elif isinstance(text, bytes):
        data = text
        data.decode("utf-8")
    else:
        raise TypeError(f"a string is wanted, got {type(text).__name__}")
    return struct.pack("<Q", len(data)) + data


def _encode_typed(value: Any) -> bytes:
    """The type tag(s) and the value."""
    if isinstance(value, MetadataValue):
        wanted = value.type
        if isinstance(wanted, ValueType):
            wanted = MetadataType(wanted)
        value = value.value
    else:
        wanted = _default_type(value)
    tag = struct.pack("<I", wanted.type)
    if wanted.type is ValueType.ARRAY:
        return tag + _encode_array(value, wanted.item)
    return tag + _encode_scalar(value, wanted.type)


def _encode_scalar(value: Any, type_: ValueType) -> bytes:
    if type_ is ValueType.STRING:
        return encode_string(value)
    return _encode_numbers([value], type_)


def _encode_array(value: Any, item: ValueType | None, depth: int = 1) -> bytes:
    if depth > MAX_ARRAY_DEPTH:
        raise ValueError(f"arrays may nest {MAX_ARRAY_DEPTH} deep")
    if isinstance(value, np.ndarray) and value.ndim != 1:
        raise ValueError(f"an array of shape {value.shape}; metadata arrays have one axis")
    if item is None:
        item = _default_item_type(value)
    if item is ValueType.ARRAY:
        body = b"".join(_encode_array(part, None, depth + 1) for part in value)
    elif item is ValueType.STRING:
        body = b"".join(map(encode_string, value))
    else:
        body = _encode_numbers(value, item)
    return struct.pack("<IQ", item, len(value)) + body


def _encode_numbers(values: Any, type_: ValueType) -> bytes:
    dtype = type_.numpy
    if dtype is None:
        raise TypeError(f"an array type must say {type_.name} of what")
    source = np.asarray(values)
    if source.dtype.kind not in "biuf":
        raise TypeError(f"{type_.name} wants numbers")
    if dtype.kind in "iub" and source.dtype.kind == "f":
        raise TypeError(f"{type_.name} wants integers, got floats")
    if (dtype.kind == "b") != (source.dtype.kind == "b") and source.size:
        raise TypeError(f"{type_.name} does not go with values of type {source.dtype}")
    with np.errstate(over="ignore"):
        stored = source.astype(dtype)
    if dtype.kind in "iu":
        fits = np.array_equal(stored, source)
    else:
        fits = np.array_equal(np.isfinite(stored), np.isfinite(source))
    if not fits:
        raise OverflowError(f"out of range for {type_.name}")
    return stored.tobytes()


def _default_type(value: Any) -> MetadataType:
    if isinstance(value, str | bytes):
        return MetadataType(ValueType.STRING)
    if isinstance(value, list | tuple | np.ndarray):
        return MetadataType(ValueType.ARRAY)
    if isinstance(value, np.generic):
        return MetadataType(_numpy_type(value.dtype))
    if isinstance(value, bool):
        return MetadataType(ValueType.BOOL)
    if isinstance(value, float):
        return MetadataType(ValueType.FLOAT32)
    if isinstance(value, int):
        order = (ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64)
        return MetadataType(_first_that_holds(value, value, order))
    raise TypeError("supported are str, bool, int, float, NumPy numbers, and sequences of these")


def _default_item_type(values: Any) -> ValueType:
    if isinstance(values, np.ndarray):
        return _numpy_type(values.dtype)
    if len(values) == 0:
        raise ValueError("an empty list has no item type; use MetadataValue or a NumPy array")
    for kinds, type_ in (
        ((str, bytes), ValueType.STRING),
        ((bool, np.bool_), ValueType.BOOL),
        ((list, tuple, np.ndarray), ValueType.ARRAY),
    ):
        if all(isinstance(v, kinds) for v in values):
            return type_
    if any(isinstance(v, bool | np.bool_ | str | bytes | list | tuple) for v in values):
        raise TypeError("the items are of different types")
    if all(isinstance(v, int | np.integer) for v in values):
        order = (ValueType.INT32, ValueType.UINT32, ValueType.INT64, ValueType.UINT64)
        return _first_that_holds(int(min(values)), int(max(values)), order)
    return ValueType.FLOAT32


def _numpy_type(dtype: np.dtype) -> ValueType:
    if dtype.kind == "U":
        return ValueType.STRING
    for type_ in ValueType:
        if type_.numpy is not None and type_.numpy == dtype.newbyteorder("<"):
            return type_
    raise TypeError(f"no GGUF value type for NumPy's {dtype}")


def _first_that_holds(low: int, high: int, order: tuple[ValueType, ...]) -> ValueType:
    for type_ in order:
        assert type_.numpy is not None
        limits = np.iinfo(type_.numpy)
        if int(limits.min) <= low and high <= int(limits.max):
            return type_
    raise OverflowError("no 64-bit integer type holds it")

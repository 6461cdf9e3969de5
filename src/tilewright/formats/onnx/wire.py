"""Weights left where they are: a model's protobuf without the bytes of its tensors.

Parsing a file of some hundred megabytes copies every weight twice before anybody looks at one. This
walks the top levels of the message (model, graph, initialisers; the encoding is
https://protobuf.dev/programming-guides/encoding/), notes where large ``raw_data`` lie, and gives
the rest to be parsed as usual. Whatever is not plain (groups, two graphs, lengths beyond the end)
is left to the parser: it has the last word on what a valid file is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

__all__ = ["without_weights"]

_GRAPH: Final = 7  # of ModelProto
_INITIALIZER: Final = 5  # of GraphProto
_RAW_DATA: Final = 9  # of TensorProto
_LARGE: Final = 4096

Field = tuple[int, int, int, int]
"""Number, start of the field, start and end of what it holds (of bytes; else both the end)."""


class _OddError(Exception):
    """Not what this module looks into."""


def without_weights(data: memoryview) -> tuple[bytes, dict[int, tuple[int, int]]] | None:
    """The model in ``data`` without large weights, and where those lie.

    Returns:
        bytes to parse, and (start, end) in ``data`` of the raw data of initialisers of the main
        graph, by position; None when the file is better parsed as a whole.
    """
    try:
        return _stripped(data)
    except _OddError:
        return None


def _stripped(data: memoryview) -> tuple[bytes, dict[int, tuple[int, int]]] | None:
    outer: list[bytes | memoryview] = []
    found: dict[int, tuple[int, int]] = {}
    graphs = 0
    for number, begin, start, end in _fields(data, 0, len(data)):
        if number != _GRAPH:
            outer.append(data[begin:end])
            continue
        graphs += 1
        if graphs > 1:  # messages that are merged
            return None
        inner: list[bytes | memoryview] = []
        count = 0
        for number, first, low, high in _fields(data, start, end):
            if number == _INITIALIZER:
                inner.append(_tensor(data, first, low, high, count, found))
                count += 1
            else:
                inner.append(data[first:high])
        body = b"".join(inner)
        outer += [_key(_GRAPH), _varint(len(body)), body]
    return (b"".join(outer), found) if found else None


def _tensor(
    data: memoryview,
    first: int,
    low: int,
    high: int,
    number: int,
    found: dict[int, tuple[int, int]],
) -> bytes | memoryview:
    """An initialiser's field, its raw data taken out if there is much of it."""
    if high - low < _LARGE:
        return data[first:high]
    kept: list[bytes | memoryview] = []
    for field, begin, start, end in _fields(data, low, high):
        if field == _RAW_DATA:
            found[number] = start, end  # the last one counts
        else:
            kept.append(data[begin:end])
    if number not in found:
        return data[first:high]
    body = b"".join(kept)
    return b"".join([_key(_INITIALIZER), _varint(len(body)), body])


def _fields(data: memoryview, at: int, end: int) -> Iterator[Field]:
    while at < end:
        begin = at
        key, at = _read_varint(data, at, end)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise _OddError
        if kind == 0:
            _, at = _read_varint(data, at, end)
            start = at
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            start = at
        elif kind == 2:
            length, start = _read_varint(data, at, end)
            at = start + length
        else:
            raise _OddError
        if at > end:
            raise _OddError
        yield number, begin, start, at


def _read_varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= end or shift > 63:
            raise _OddError
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _key(number: int) -> bytes:
    return _varint(number << 3 | 2)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

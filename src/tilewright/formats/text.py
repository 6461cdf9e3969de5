"""Text files, plain or gzip-compressed, read in pieces and checked on the way."""

from __future__ import annotations

import codecs
import gzip
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, Final, cast

from tilewright.errors import FormatError

__all__ = [
    "open_binary",
    "read_chunks",
    "read_lines",
    "read_text",
    "read_text_pieces",
    "split_text",
]

_GZIP_MAGIC: Final = b"\x1f\x8b"
_CHUNK: Final = 1 << 20
MAX_LINE_BYTES: Final = 64 << 20
"""A longer line is refused: nothing that is read line by line has one."""


def open_binary(path: str | os.PathLike[str]) -> IO[bytes]:
    """The file's bytes, decompressed when it is gzip (told by its first bytes, not by its name).

    Raises:
        FormatError: not a regular file.
        OSError: it cannot be opened.
    """
    name = os.fspath(path)
    if not stat.S_ISREG(os.stat(name).st_mode):
        raise FormatError("is not a regular file", path=name)
    file = open(name, "rb")  # noqa: SIM115
    try:
        compressed = file.peek(2)[:2] == _GZIP_MAGIC
    except BaseException:
        file.close()
        raise
    if not compressed:
        return file
    file.close()
    return cast(IO[bytes], gzip.open(name, "rb"))


def read_chunks(path: str | os.PathLike[str], size: int = _CHUNK) -> Iterator[bytes]:
    """The (decompressed) bytes of a file in pieces of ``size``.

    Raises:
        FormatError: damaged gzip data; the message has the position in the decompressed bytes.
    """
    done = 0
    with open_binary(path) as file:
        while True:
            try:
                chunk = file.read(size)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise FormatError(
                    f"damaged gzip data after {done} decompressed bytes: {error}", path=path
                ) from error
            if not chunk:
                return
            done += len(chunk)
            yield chunk


def read_text(path: str | os.PathLike[str]) -> str:
    """The whole file as text, exactly: no newline is translated, no byte-order mark kept.

    Raises:
        FormatError: it is not UTF-8 (naming the byte and its line), or damaged gzip data.
        OSError: it cannot be read.
    """
    return "".join(_decoded(path, _CHUNK))


def read_text_pieces(path: str | os.PathLike[str], size: int = 1 << 18) -> Iterator[str]:
    """`read_text` in pieces, for files larger than memory; cut as `split_text` cuts.

    Raises as `read_text`, after the pieces before the damage.
    """
    return _cut(_decoded(path, size))


def split_text(text: str, size: int) -> Iterator[str]:
    """The text in pieces of about ``size`` characters, cut where no word of byte-level BPE is.

    Words found in the pieces, and so ids, are those of the whole. Text without such places is one
    piece, however long; an empty text is none.
    """
    return _cut(text[i : i + size] for i in range(0, len(text), size))


def _cut(chunks: Iterable[str]) -> Iterator[str]:
    """Join chunks and cut again at the last safe place of each.

    Safe is a newline between two characters that are no white space: in every pre-tokeniser it is
    a word of its own, or ends one.
    """
    held: list[str] = []
    before = ""  # the last two characters held: a place may lie across two chunks
    for chunk in chunks:
        seen = before + chunk
        newline = seen.rfind("\n", 1, len(seen) - 1)
        while newline > 0 and (seen[newline - 1].isspace() or seen[newline + 1].isspace()):
            newline = seen.rfind("\n", 1, newline)
        cut = newline + 1 - len(before)
        if newline > 0 and cut >= 0:
            yield "".join([*held, chunk[:cut]])
            held = [chunk[cut:]]
        else:
            held.append(chunk)
        before = seen[-2:]
    if any(held):
        yield "".join(held)


def _decoded(path: str | os.PathLike[str], size: int) -> Iterator[str]:
    rest, done, lines, first = b"", 0, 0, True
    chunks = read_chunks(path, size)
    final = False
    while not final:
        chunk = next(chunks, b"")
        final = not chunk
        data = rest + chunk
        try:
            text, used = codecs.utf_8_decode(data, "strict", final)
        except UnicodeDecodeError as error:
            line = lines + data.count(b"\n", 0, error.start) + 1
            raise FormatError(
                f"line {line} is not UTF-8: byte "
                f"0x{data[error.start]:02X} ({error.reason}); convert the file to UTF-8",
                path=path,
                offset=done + error.start,
            ) from None
        rest, done = data[used:], done + used
        lines += text.count("\n")
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        if text:
            yield text


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """The lines as ``(number from 1, bytes without the line's end)``; ``\\n``, ``\\r\\n`` end one.

    Raises:
        FormatError: damaged gzip data, or a line of more than 64 MiB.
    """
    rest = b""
    number = 0
    for chunk in read_chunks(path):
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        if len(rest) > MAX_LINE_BYTES:
            raise FormatError(f"line {number + len(lines) + 1} is longer than 64 MiB", path=path)
        for line in lines:
            number += 1
            yield number, line.removesuffix(b"\r")
    if rest:
        yield number + 1, rest.removesuffix(b"\r")

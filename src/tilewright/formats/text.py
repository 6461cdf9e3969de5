"""Text files, plain or gzip-compressed, read in pieces and checked on the way."""

from __future__ import annotations

import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterator
from typing import IO, Final, cast

from tilewright.errors import FormatError

__all__ = ["open_binary", "read_chunks", "read_lines", "read_text", "split_text"]

_GZIP_MAGIC: Final = b"\x1f\x8b"
_CHUNK: Final = 1 << 20
# A newline between two characters that are no white space is a word of its own (or ends one) in
# every pre-tokeniser of byte-level BPE.
_SAFE_CUT: Final = re.compile(r"(?<=\S\n)(?=\S)")
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
    data = b"".join(read_chunks(path))
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FormatError(
            f"line {line} is not UTF-8: byte 0x{data[error.start]:02X} ({error.reason}); "
            "convert the file to UTF-8",
            path=path,
            offset=error.start,
        ) from None


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


def split_text(text: str, size: int) -> Iterator[str]:
    """The text in pieces of ``size`` characters or more, cut where no word of byte-level BPE is.

    Words found in the pieces, and so ids, are those of the whole. A text without such places is one
    piece; an empty one is none.
    """
    start = 0
    while len(text) - start > size:
        cut = _SAFE_CUT.search(text, start + size)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    if start < len(text):
        yield text[start:]

"""FASTA: sequences of proteins (or nucleotides) as UniProt, NCBI and most tools write them.

A record is a header line, ``>`` and a description, and lines of one-letter codes. Files may be
gzip-compressed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tilewright.errors import FormatError
from tilewright.formats.text import read_lines

__all__ = ["FastaRecord", "read_fasta"]

_NO_CODE: Final = re.compile(rb"[^A-Za-z*.-]")


@dataclass(frozen=True)
class FastaRecord:
    """One sequence.

    Attributes:
        header: the header line without its ``>``.
        sequence: one-letter codes in upper case, gaps (``-``, ``.``) and ``*`` within included.
        line: number of the header line in the file, from 1.
    """

    header: str
    sequence: str
    line: int

    @property
    def identifier(self) -> str:
        """The header's first word: ``sp|P12345|NAME_SPECIES`` in UniProt's files."""
        return self.header.split(maxsplit=1)[0] if self.header.strip() else ""


def read_fasta(
    path: str | os.PathLike[str], *, skip: str | tuple[str, ...] = ()
) -> Iterator[FastaRecord]:
    """The records of a FASTA file, in order, one in memory at a time.

    Lower case (masked regions) becomes upper case. A ``*`` that ends a sequence marks the stop
    codon, is no residue, and is dropped. Empty lines, and comment lines that begin with ``;``, are
    passed over. ``skip``: records whose header begins with one of these are left out, such as
    ``"rev_"`` for decoys.

    Raises:
        FormatError: naming the line: codes before the first header, a record without codes,
            a character that is no code, damaged gzip data; or a file without any record.
        OSError: the file cannot be read.
    """
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    header: str | None = None
    header_line = 0
    parts: list[bytes] = []
    found = False

    def record() -> FastaRecord:
        assert header is not None
        sequence = b"".join(parts).decode("ascii").upper().removesuffix("*")
        if not sequence:
            raise FormatError(f"line {header_line}: the record has no sequence", path=path)
        return FastaRecord(header, sequence, header_line)

    for number, line in read_lines(path):
        if line.startswith(b">"):
            if header is not None:
                complete = record()
                if not complete.header.startswith(skip):
                    yield complete
            header, header_line, parts = _header(line, number, path), number, []
            found = True
            continue
        codes = line.strip()
        if not codes or codes.startswith(b";"):
            continue
        if header is None:
            raise FormatError(
                f"line {number}: wanted a header line beginning with '>', "
                f"got {codes[:40].decode('ascii', 'backslashreplace')!r}; is this a FASTA file?",
                path=path,
            )
        wrong = _NO_CODE.search(codes)
        if wrong:
            raise FormatError(
                f"line {number}, column {line.index(codes) + wrong.start() + 1}: "
                f"{wrong[0].decode('latin-1')!r} is no residue's one-letter code",
                path=path,
            )
        parts.append(codes)
    if header is not None:
        complete = record()
        if not complete.header.startswith(skip):
            yield complete
    if not found:
        raise FormatError("has no record: no line begins with '>'", path=path)


def _header(line: bytes, number: int, path: str | os.PathLike[str]) -> str:
    try:
        return line[1:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"line {number}: the header is not UTF-8 ({error})", path=path) from None

"""Text to token streams: encoded in pieces, kept in files, mapped into memory.

A token file is a one-dimensional ``.npy`` file of uint16 or uint32, which NumPy (and nearly
everything else) reads.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

import numpy as np

from tilewright.errors import FormatError, ShapeError
from tilewright.formats.arrays import npy_header, write_npy_header
from tilewright.formats.atomic import atomic_file
from tilewright.formats.text import read_text, read_text_pieces, split_text

__all__ = [
    "encode_text",
    "open_tokens",
    "split",
    "tokenize_files",
    "tokenize_texts",
    "write_tokens",
]

_PIECE_CHARS: Final = 1 << 18
_SCAN: Final = 1 << 20


class Encoder(Protocol):
    """What is needed of a tokenizer; `tilewright.tokenizers.Tokenizer` has it."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def add_space_prefix(self) -> bool: ...

    def encode(
        self, text: str, add_special: bool = True, parse_special: bool = True
    ) -> list[int]: ...


def encode_text(tokenizer: Encoder, text: str, *, parse_special: bool = False) -> np.ndarray:
    """The ids of a text, without begin and end tokens: uint16, or uint32 for large vocabularies.

    The same ids as ``tokenizer.encode(text, add_special=False, parse_special=parse_special)``, in
    less memory.
    """
    dtype = _dtype_for(tokenizer.vocab_size)
    parts = [
        np.array(tokenizer.encode(piece, False, parse_special), dtype)
        for piece in _pieces(tokenizer, text)
    ]
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def tokenize_files(
    paths: Iterable[str | os.PathLike[str]],
    tokenizer: Encoder,
    out: str | os.PathLike[str],
    *,
    separator: int | None = None,
) -> int:
    """Encode text files (UTF-8, gzip too) one after the other into a token file.

    Returns the number of tokens. ``separator``: an id put after each file, such as that of the
    end-of-text token.

    Raises:
        FormatError: a file is not UTF-8 text (naming the byte); nothing is written.
        OSError: a file cannot be read, or ``out`` cannot be written.
    """

    def chunks() -> Iterator[np.ndarray]:
        for path in paths:
            whole = tokenizer.add_space_prefix
            for piece in [read_text(path)] if whole else read_text_pieces(path, _PIECE_CHARS):
                yield np.array(tokenizer.encode(piece, False, False), dtype)
            if separator is not None:
                yield np.array([separator], dtype)

    dtype = _dtype_for(tokenizer.vocab_size)
    return write_tokens(out, chunks(), tokenizer.vocab_size)


def tokenize_texts(
    texts: Iterable[str],
    tokenizer: Encoder,
    out: str | os.PathLike[str],
    *,
    separator: int | None = None,
) -> int:
    """Encode texts, such as the sequences of `read_fasta`, into a token file; returns its length.

    ``separator``: an id put after each text.

    Raises:
        OSError: ``out`` cannot be written. Whatever is raised, nothing is left behind.
    """

    def chunks() -> Iterator[np.ndarray]:
        for text in texts:
            yield encode_text(tokenizer, text)
            if separator is not None:
                yield np.array([separator], dtype)

    dtype = _dtype_for(tokenizer.vocab_size)
    return write_tokens(out, chunks(), tokenizer.vocab_size)


def write_tokens(
    path: str | os.PathLike[str], chunks: Iterable[np.ndarray], vocab_size: int
) -> int:
    """Write a token file, atomically, from pieces of any size; returns the number of tokens.

    Raises:
        ShapeError: ids outside 0 .. vocab_size - 1, or not 1-D integers.
        OSError: the disk said no; an old file stays as it was.
    """
    dtype = _dtype_for(vocab_size)
    count = 0
    with atomic_file(path) as file:
        file.write(write_npy_header(0, dtype))
        for chunk in chunks:
            if chunk.ndim != 1 or chunk.dtype.kind not in "iu":
                raise ShapeError(f"ids should be 1-D integers, got {chunk.dtype} {chunk.shape}")
            if chunk.size and not (int(chunk.min()) >= 0 and int(chunk.max()) < vocab_size):
                raise ShapeError(
                    f"ids are {chunk.min()} to {chunk.max()}, the vocabulary has 0 to "
                    f"{vocab_size - 1}"
                )
            file.write(chunk.astype(dtype.newbyteorder("<")).tobytes())
            count += chunk.size
        file.seek(0)
        file.write(write_npy_header(count, dtype))
    return count


def open_tokens(path: str | os.PathLike[str], vocab_size: int | None = None) -> np.ndarray:
    """A token file, mapped into memory: 1-D, read-only. With ``vocab_size`` every id is checked.

    Files whose name ends in ``.bin`` are taken as bare uint16, as nanoGPT writes them.

    Raises:
        FormatError: not a token file, damaged, or with an id that the vocabulary does not have
            (naming the byte).
        OSError: it cannot be opened.
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        shape: tuple[int, ...]
        if name.endswith(".bin"):
            dtype, shape, at = np.dtype("<u2"), (size // 2,), 0
        else:
            dtype, shape, _ = npy_header(file, name)
            at = file.tell()
    if len(shape) != 1 or dtype.kind not in "iu":
        raise FormatError(f"holds {dtype} {shape}, wanted 1-D integers", path=name)
    wanted = at + shape[0] * dtype.itemsize
    if wanted != size:
        raise FormatError(
            f"{shape[0]} tokens of {dtype} take {wanted} bytes, the file has {size}; it is damaged "
            "or cut short",
            path=name,
            offset=min(wanted, size),
        )
    if not shape[0]:
        return np.empty(0, dtype)
    tokens: np.ndarray = np.memmap(name, dtype, "r", at, shape)
    if vocab_size is not None:
        for start in range(0, len(tokens), _SCAN):
            part = tokens[start : start + _SCAN]
            wrong = (part >= vocab_size) | (part < 0)
            if wrong.any():
                first = start + int(np.argmax(wrong))
                raise FormatError(
                    f"token {first} is {tokens[first]}, the vocabulary has 0 to {vocab_size - 1}; "
                    "the file is damaged, or was made with another tokenizer",
                    path=name,
                    offset=at + first * dtype.itemsize,
                )
    return tokens


def split(tokens: np.ndarray, fraction: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """(training, validation): the last ``fraction`` is for validation. Views, no copies."""
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}, wanted between 0 and 1")
    cut = int(len(tokens) * (1 - fraction))
    return tokens[:cut], tokens[cut:]


def _dtype_for(vocab_size: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def _pieces(tokenizer: Encoder, text: str) -> Iterator[str]:
    """The text in pieces whose ids, joined, are the ids of the whole."""
    whole = tokenizer.add_space_prefix  # SentencePiece: merges may reach across any character
    return iter([text] if text else []) if whole else split_text(text, _PIECE_CHARS)

"""Text for language models: a tokenizer, a token file, a part for validation."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from tilewright.data.tokens import open_tokens, split, tokenize_files, tokenize_texts
from tilewright.errors import FormatError, TrainingError, UnsupportedError
from tilewright.formats.gguf import open_gguf, write_gguf
from tilewright.tokenizers import Tokenizer, from_metadata
from tilewright.tokenizers.json_file import read_json, write_json
from tilewright.tokenizers.train import END_OF_TEXT, read_corpus, train_bpe, train_characters

__all__ = ["TextData", "find_tokenizer", "prepare_text", "read_tokenizer", "reopen_text"]

_TOKENS: Final = "tokens.npy"
_TOKENIZER: Final = "tokenizer.gguf"


@dataclass(frozen=True)
class TextData:
    """Tokens to learn from.

    Attributes:
        metadata: the tokenizer as GGUF metadata (``tokenizer.*``).
        tokenizer: the same, in use.
        train, validation: 1-D integers, mapped into memory; the last part is for validation.
    """

    metadata: dict[str, Any] = field(repr=False)
    tokenizer: Tokenizer
    train: np.ndarray = field(repr=False)
    validation: np.ndarray = field(repr=False)

    @property
    def vocab_size(self) -> int:
        """Number of tokens there are."""
        return self.tokenizer.vocab_size


def prepare_text(
    files: Sequence[str | os.PathLike[str]],
    tokenizer: str | dict[str, Any],
    folder: str | os.PathLike[str],
    *,
    context: int,
    fraction: float = 0.1,
    fasta: bool = False,
) -> TextData:
    """Make (or read) the tokenizer, encode the files into ``folder/tokens.npy``, split it.

    Args:
        files: UTF-8 text, plain or gzip; with ``fasta`` FASTA files. More than one text (or
            sequence) is separated by the token that ends texts.
        tokenizer: see :func:`find_tokenizer`; or a tokenizer's metadata.
        context: tokens of a window; both parts must hold at least one.
        fraction: the share for validation.

    Raises:
        FormatError: a file is not what it should be; OSError: it cannot be read.
        TrainingError: too little text for the context.
    """
    for name in files:  # a name that is wrong is told before the others are read
        with open(name, "rb"):
            pass
    metadata = tokenizer
    if not isinstance(metadata, dict):
        metadata = find_tokenizer(str(tokenizer), files, fasta=fasta)
    made = from_metadata(metadata)
    os.makedirs(folder, exist_ok=True)
    out = os.path.join(folder, _TOKENS)
    separator = made.eos_id
    if fasta:
        tokenize_texts(read_corpus(files, fasta=True), made, out, separator=separator)
    else:
        tokenize_files(files, made, out, separator=separator if len(files) > 1 else None)
    _write_tokenizer(folder, metadata)
    return _opened(metadata, made, out, context, fraction)


def reopen_text(
    folder: str | os.PathLike[str], *, context: int, fraction: float = 0.1
) -> TextData | None:
    """What :func:`prepare_text` left in a run's folder; None when it did not get that far."""
    path, kept = os.path.join(folder, _TOKENS), os.path.join(folder, _TOKENIZER)
    if not os.path.exists(path) or not os.path.exists(kept):
        return None
    metadata = read_tokenizer(kept)
    try:
        return _opened(metadata, from_metadata(metadata), path, context, fraction)
    except FormatError as error:
        raise FormatError(
            f"{error}; the file only keeps the encoded text: delete it, and it is made again"
        ) from None


def _opened(
    metadata: dict[str, Any], tokenizer: Tokenizer, path: str, context: int, fraction: float
) -> TextData:
    tokens = open_tokens(path, tokenizer.vocab_size)
    train, validation = split(tokens, fraction)
    for part, what in ((train, "training"), (validation, "validation")):
        if len(part) <= context:
            raise TrainingError(
                f"the text has {len(tokens)} tokens, {len(part)} of them for {what}: too few for a "
                f"window of {context} and the token after it; use more text, or a shorter context"
            )
    return TextData(metadata, tokenizer, train, validation)


def find_tokenizer(
    kind: str, files: Sequence[str | os.PathLike[str]], *, fasta: bool = False
) -> dict[str, Any]:
    """A tokenizer's GGUF metadata.

    ``kind``: ``chars`` (the characters of ``files``), ``bpe:N`` (N tokens, learned from them), or
    the path of a tokenizer.json or GGUF file.
    """
    if kind == "chars":
        return train_characters(read_corpus(files, fasta=fasta), special=(END_OF_TEXT,))
    name, _, size = kind.partition(":")
    if name == "bpe" and not os.path.exists(kind):
        if not size.isascii() or not size.isdigit():
            raise ValueError(f"tokenizer {kind!r}: bpe wants a number of tokens, such as bpe:1024")
        return train_bpe(read_corpus(files, fasta=fasta), int(size))
    if not os.path.exists(kind):
        raise ValueError(
            f"tokenizer {kind!r} is unknown: wanted chars, bpe:N, or the path of a tokenizer.json "
            "or GGUF file"
        )
    return read_tokenizer(kind)


def read_tokenizer(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``tokenizer.*`` metadata of a tokenizer.json or a GGUF file."""
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        return read_json(path)
    with open_gguf(path) as model:
        found = {k: v for k, v in model.metadata.items() if k.startswith("tokenizer.")}
    if found.get("tokenizer.ggml.merges") == []:
        found["tokenizer.ggml.merges"] = np.array([], np.str_)  # writable again, being typed
    return found


def _write_tokenizer(folder: str | os.PathLike[str], metadata: dict[str, Any]) -> None:
    """All of it in a GGUF file; for others as a tokenizer.json too, if there is one."""
    path = Path(folder)
    header = {"general.architecture": "llama", "general.type": "vocab", **metadata}
    write_gguf(path / _TOKENIZER, header, {})
    # not byte-level BPE, or a role that the other format has no place for
    with contextlib.suppress(UnsupportedError), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        write_json(path / "tokenizer.json", metadata)

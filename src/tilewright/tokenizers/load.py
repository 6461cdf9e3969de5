"""From a model file's metadata to a `Tokenizer`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tilewright.errors import FormatError
from tilewright.tokenizers.bpe import bpe_encoder, bpe_token_bytes, byte_alphabet, read_merges
from tilewright.tokenizers.pretokenizers import find_pretokenizer
from tilewright.tokenizers.spm import spm_encoder, spm_token_bytes
from tilewright.tokenizers.tokenizer import Tokenizer
from tilewright.tokenizers.vocabulary import Vocabulary, read_vocabulary

__all__ = ["from_gguf", "from_metadata"]


def from_gguf(source: Any) -> Tokenizer:
    """The tokenizer inside a GGUF file: a path, or a file opened by `tilewright.formats.gguf`.

    Raises `FormatError` for a damaged file or tokenizer, `UnsupportedError` for a kind of tokenizer
    (or pre-tokeniser) that tilewright does not have.
    """
    if not isinstance(source, str | os.PathLike):
        metadata: Mapping[str, Any] = source.metadata
        return from_metadata(metadata)
    from tilewright.formats.gguf import open_gguf

    with open_gguf(source) as file:
        try:
            return from_metadata(file.metadata)
        except FormatError as error:
            raise FormatError(str(error), path=source) from error


def from_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that the ``tokenizer.*`` keys of a GGUF file's metadata describe.

    Only data is read and checked here; tables that encoding needs are made by the first `encode`.
    """
    vocabulary = read_vocabulary(metadata)
    return _spm(vocabulary) if vocabulary.model == "llama" else _bpe(vocabulary)


def _spm(vocabulary: Vocabulary) -> Tokenizer:
    return Tokenizer(
        vocabulary,
        make_encoder=lambda: spm_encoder(vocabulary),
        token_bytes=lambda token_id: spm_token_bytes(vocabulary, token_id),
        add_bos=_add_bos(vocabulary, default=vocabulary.bos_id is not None),
    )


def _bpe(vocabulary: Vocabulary) -> Tokenizer:
    pre = find_pretokenizer(vocabulary.pre)
    merges = read_merges(vocabulary)
    byte_of = {c: byte for byte, c in enumerate(byte_alphabet())}
    return Tokenizer(
        vocabulary,
        make_encoder=lambda: bpe_encoder(vocabulary, merges, pre),
        token_bytes=lambda token_id: bpe_token_bytes(vocabulary, token_id, byte_of),
        add_bos=_add_bos(vocabulary, default=pre.add_bos),
    )


def _add_bos(vocabulary: Vocabulary, *, default: bool) -> bool:
    if vocabulary.add_bos is not None:
        return vocabulary.add_bos
    if default and vocabulary.bos_id is None:
        raise FormatError(
            f"pre-tokeniser {vocabulary.pre!r} begins texts with a token, "
            "but there is no 'tokenizer.ggml.bos_token_id'"
        )
    return default

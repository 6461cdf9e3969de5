"""Vocabularies for the tokenizer tests: real ones from the assets, small ones made here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.formats.gguf import open_gguf
from tilewright.tokenizers import Tokenizer, from_metadata
from tilewright.tokenizers.bpe import byte_alphabet

Metadata = dict[str, Any]


@cache
def _read(path: Path) -> Metadata:
    with open_gguf(path) as file:
        return dict(file.metadata)


@pytest.fixture(scope="session")
def vocabulary_file(assets: Path) -> Callable[[str], Path]:
    """The path of one of llama.cpp's vocabulary files, by its short name."""
    return lambda name: assets / "gguf-vocab" / f"ggml-vocab-{name}.gguf"


@pytest.fixture(scope="session")
def metadata_of() -> Callable[[Path], Metadata]:
    """Metadata of a GGUF file; the caller may change it."""
    return lambda path: dict(_read(path))


@pytest.fixture(scope="session")
def tokenizer_of(
    vocabulary_file: Callable[[str], Path], metadata_of: Callable[[Path], Metadata]
) -> Callable[[str], Tokenizer]:
    return cache(lambda name: from_metadata(metadata_of(vocabulary_file(name))))


@pytest.fixture
def spm_metadata() -> Metadata:
    """A small SentencePiece-style vocabulary: three control tokens, all bytes, some pieces."""
    pieces = ["\u2581", *"abcdehlorw!", "\u2581h", "ll", "llo", "\u2581he", "\u2581hello", "wo"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1] * len(pieces), np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


@pytest.fixture
def bpe_metadata() -> Metadata:
    """A small byte-level BPE vocabulary, pre-tokenised as GPT-2's."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or"]
    tokens = [*byte_alphabet(), *(m.replace(" ", "") for m in merges), "<|endoftext|>", "<mark>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 4],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
    }

"""llama.cpp's own tokenizer cases: text in ``.inp``, ids in ``.out``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tilewright.tokenizers import Tokenizer

SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.mark.parametrize("name", ["llama-spm", "phi-3", "gpt-2", "starcoder", "deepseek-coder"])
def test_ids_equal_the_golden_ones(
    name: str,
    vocabulary_file: Callable[[str], Path],
    tokenizer_of: Callable[[str], Tokenizer],
) -> None:
    path = vocabulary_file(name)
    texts = Path(f"{path}.inp").read_bytes().decode().split(SEPARATOR)
    wanted = Path(f"{path}.out").read_text().split("\n")
    assert len(texts) == len(wanted) == 47
    tokenizer = tokenizer_of(name)
    for text, line in zip(texts, wanted):
        ids = tokenizer.encode(text, add_special=False)
        assert ids == [int(word) for word in line.split()], text
        assert tokenizer.decode(ids) == text

"""Byte-level BPE vocabularies."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.errors import UnsupportedError
from tilewright.tokenizers import from_metadata
from tilewright.tokenizers.bpe import byte_alphabet
from tilewright.tokenizers.pretokenizers import pretokenizer_names


def merge_by_definition(word: str, merges: list[str]) -> list[str]:
    """Apply the first merge of the list that fits anywhere, leftmost, until none does."""
    pieces = list(word)
    pairs = [tuple(line.split(" ")) for line in merges]
    while True:
        here = {(a, b): i for i, (a, b) in reversed(list(enumerate(pairwise(pieces))))}
        first = next((pair for pair in pairs if pair in here), None)
        if first is None:
            return pieces
        i = here[first]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def small(pre: str = "gpt-2", **extra: Any) -> dict[str, Any]:
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "a b", "b a", "ab a"]
    tokens = [*byte_alphabet(), *(m.replace(" ", "") for m in merges), "<|endoftext|>", "<mark>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 4],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
        **extra,
    }


@settings(max_examples=200, deadline=None)
@given(words=st.lists(st.text("abhelorw", min_size=1, max_size=15), min_size=1, max_size=4))
def test_merges_follow_the_definition(words: list[str]) -> None:
    metadata = small()
    tokenizer = from_metadata(metadata)
    text = " ".join(words)
    wanted: list[str] = []
    for i, word in enumerate(words):
        wanted += merge_by_definition(f"Ġ{word}" if i else word, metadata["tokenizer.ggml.merges"])
    assert [tokenizer.token_text(i) for i in tokenizer.encode(text)] == wanted


TOKENIZERS = {pre: from_metadata(small(pre)) for pre in pretokenizer_names()}


@settings(max_examples=300, deadline=None)
@given(text=st.text(), pre=st.sampled_from(pretokenizer_names()), special=st.booleans())
def test_decode_undoes_encode(text: str, pre: str, special: bool) -> None:
    tokenizer = TOKENIZERS[pre]
    ids = tokenizer.encode(text, add_special=special, parse_special=special)
    assert tokenizer.decode(ids, skip_special=True) == text


@pytest.mark.parametrize("pre", pretokenizer_names())
def test_long_runs_of_one_kind(pre: str) -> None:
    """Patterns with look-ahead must not give up, or take for ever, on very long runs."""
    for run in (" ", "\n", "a", "1", "!", "é", "日"):
        text = "x" + run * 20_000 + "y"
        assert TOKENIZERS[pre].decode(TOKENIZERS[pre].encode(text), skip_special=True) == text


def test_special_tokens() -> None:
    tokenizer = from_metadata(small())
    end = tokenizer.eos_id
    mark = tokenizer.token_id("<mark>")
    hello = tokenizer.token_id("hello")
    assert end is not None
    assert tokenizer.encode("hello<|endoftext|>hello") == [hello, end, hello]
    assert end not in tokenizer.encode("hello<|endoftext|>hello", parse_special=False)
    assert tokenizer.encode("<mark>hello", parse_special=False) == [mark, hello]
    assert tokenizer.is_special(end)
    assert not tokenizer.is_special(mark or 0)
    assert tokenizer.eos_ids == {end}
    assert tokenizer.decode([end, hello or 0]) == "<|endoftext|>hello"
    assert tokenizer.decode([end, hello or 0], skip_special=True) == "hello"

    both = from_metadata(
        small(**{"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True})
    )
    assert both.encode("hello") == [end, hello, end]
    assert both.encode("") == [end, end]
    assert both.encode("hello", add_special=False) == [hello]
    assert from_metadata(small("llama-bpe")).encode("hello") == [end, hello]


def test_the_longest_special_token_wins_wherever_it_is() -> None:
    metadata = small()
    tokens = metadata["tokenizer.ggml.tokens"]
    tokens += ["<a>", "<a><b>", "b><a>"]
    metadata["tokenizer.ggml.token_type"] += [4, 4, 4]
    tokenizer = from_metadata(metadata)
    assert [tokenizer.token_text(i) for i in tokenizer.encode("<a><b><a>")] == ["<a><b>", "<a>"]
    assert [tokenizer.token_text(i) for i in tokenizer.encode("<a>b><a>")] == ["<a>", "b><a>"]


def test_bytes_of_tokens() -> None:
    tokenizer = from_metadata(small())
    alphabet = byte_alphabet()
    for byte in range(256):
        token_id = tokenizer.token_id(alphabet[byte])
        assert token_id is not None
        assert tokenizer.token_bytes(token_id) == bytes([byte])
    assert tokenizer.decode(tokenizer.encode(" world")) == " world"


def test_words_that_are_tokens_skip_the_merges_where_the_model_says_so() -> None:
    """Llama 3: a word in the vocabulary is one token even if the merges do not lead to it."""
    for pre, wanted in (("gpt-2", ["w", "or", "l", "d"]), ("llama-bpe", ["world"])):
        metadata = small(pre, **{"tokenizer.ggml.add_bos_token": False})
        metadata["tokenizer.ggml.tokens"].append("world")
        metadata["tokenizer.ggml.token_type"].append(1)
        tokenizer = from_metadata(metadata)
        assert [tokenizer.token_text(i) for i in tokenizer.encode("world")] == wanted


def test_missing_bytes_are_reported() -> None:
    metadata = small()
    kept = [i for i, t in enumerate(metadata["tokenizer.ggml.tokens"]) if t != "z"]
    for key in ("tokens", "token_type"):
        values = metadata[f"tokenizer.ggml.{key}"]
        metadata[f"tokenizer.ggml.{key}"] = [values[i] for i in kept]
    for key in ("bos", "eos"):
        metadata[f"tokenizer.ggml.{key}_token_id"] -= 1
    tokenizer = from_metadata(metadata)
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    with pytest.warns(UserWarning, match="no token for the UTF-8 bytes 0x7A"):
        ids = tokenizer.encode("zero")
    assert tokenizer.decode(ids) == "ero"


def test_unknown_pretokenizer_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"'my-own'.*gpt-2"):
        from_metadata(small("my-own"))


def test_lone_surrogates_are_refused() -> None:
    tokenizer = from_metadata(small())
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at index 2"):
        tokenizer.encode("ab\ud800")

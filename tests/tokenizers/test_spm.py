"""SentencePiece-style vocabularies."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.errors import UnsupportedError
from tilewright.tokenizers import Tokenizer, from_metadata

SPACE = "\u2581"


def merge_by_definition(text: str, score_of: dict[str, float]) -> list[str]:
    """Merge the neighbours whose piece has the highest score, the leftmost first, to the end."""
    pieces = list(text)
    while True:
        best = max(
            (
                (score_of[pieces[i] + pieces[i + 1]], -i)
                for i in range(len(pieces) - 1)
                if pieces[i] + pieces[i + 1] in score_of
            ),
            default=None,
        )
        if best is None:
            return pieces
        i = -best[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


alphabet = st.sampled_from(["a", "b", SPACE])
pieces_and_scores = st.dictionaries(
    st.text(alphabet, min_size=1, max_size=5), st.integers(-4, 4), max_size=25
)


@settings(max_examples=400, deadline=None)
@given(pieces=pieces_and_scores, texts=st.lists(st.text("ab c ", max_size=24), max_size=6))
def test_merges_follow_the_definition(pieces: dict[str, int], texts: list[str]) -> None:
    """Random vocabularies, full of ties, of pieces whose parts are missing, of inner spaces."""
    tokens = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 257 + [float(s) for s in pieces.values()],
        "tokenizer.ggml.token_type": [2] + [6] * 256 + [1] * len(pieces),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }
    tokenizer = from_metadata(metadata)
    score_of = {piece: float(score) for piece, score in pieces.items()}
    for text in texts:
        wanted: list[str] = []
        for piece in merge_by_definition(text.replace(" ", SPACE), score_of):
            wanted += [piece] if piece in pieces else [f"<0x{b:02X}>" for b in piece.encode()]
        assert [tokenizer.token_text(i) for i in tokenizer.encode(text)] == wanted


def test_position_decides_among_equal_scores() -> None:
    """No order of the pairs ``a b`` and ``b a`` is right for both texts."""
    tokenizer = from_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["<unk>", "a", "b", "ab", "ba"],
            "tokenizer.ggml.scores": [0.0, -9.0, -9.0, -1.0, -1.0],
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.ggml.add_space_prefix": False,
        }
    )
    for text, wanted in (("aba", ["ab", "a"]), ("bab", ["ba", "b"])):
        assert [tokenizer.token_text(i) for i in tokenizer.encode(text)] == wanted


def test_equals_sentencepiece(assets: Path, tokenizer_of: Callable[[str], Tokenizer]) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    peer = sentencepiece.SentencePieceProcessor(
        model_file=str(assets / "llama2c" / "tokenizer.model")
    )
    tokenizer = tokenizer_of("llama-spm")
    play = (assets / "text" / "tinyshakespeare.txt").read_text()
    rng = random.Random(7)
    texts = [play[i : i + 400] for i in range(0, 200_000, 400)]
    for _ in range(300):
        ranges = rng.choices([(32, 127), (0xA1, 0x500), (0x3041, 0x9FFF), (0x1F300, 0x1FAFF)], k=30)
        texts.append("".join(chr(rng.randrange(*r)) for r in ranges))
        texts.append("".join(rng.choice(" \n\tab--=*é,1") for _ in range(60)))
    for text in texts:
        # the visible space is an ordinary space to both, and no text that anyone writes
        assert tokenizer.encode(text, add_special=False, parse_special=False) == peer.encode(text)
    ids = tokenizer.encode(play)
    assert ids == [1, *peer.encode(play)]
    assert tokenizer.decode(ids, skip_special=True) == play


@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_decode_undoes_encode(text: str) -> None:
    tokenizer = from_metadata(SMALL)
    # SentencePiece writes spaces as a visible character, which is thereby a space itself
    plain = text.replace(SPACE, " ")
    for special in (False, True):
        ids = tokenizer.encode(text, add_special=special, parse_special=False)
        assert tokenizer.decode(ids, skip_special=True) == plain


PIECES = [SPACE, *"abcdehlorw!", f"{SPACE}h", "ll", "llo", f"{SPACE}he", f"{SPACE}hello", "wo"]
SMALL = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [
        *("<unk>", "<s>", "</s>"),
        *(f"<0x{b:02X}>" for b in range(256)),
        *PIECES,
    ],
    "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(PIECES))],
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(PIECES),
}


def test_special_tokens_and_the_prefix_space(spm_metadata: dict[str, Any]) -> None:
    tokenizer = from_metadata(spm_metadata)

    def pieces(text: str, **options: bool) -> list[str]:
        return [tokenizer.token_text(i) for i in tokenizer.encode(text, **options)]

    assert pieces("") == ["<s>"]
    assert pieces("", add_special=False) == []
    assert pieces("hello") == ["<s>", f"{SPACE}hello"]
    assert pieces("hello", add_special=False) == [f"{SPACE}hello"]
    # every text after a special token gets the prefix space
    assert pieces("</s>hello</s></s>a") == [
        *("<s>", "</s>", f"{SPACE}hello", "</s>", "</s>", SPACE, "a"),
    ]
    assert pieces("</s>", parse_special=False)[1:3] == [SPACE, "<0x3C>"]

    spm_metadata["tokenizer.ggml.add_space_prefix"] = False
    spm_metadata["tokenizer.ggml.add_bos_token"] = False
    spm_metadata["tokenizer.ggml.add_eos_token"] = True
    tokenizer = from_metadata(spm_metadata)
    assert pieces("wo") == ["wo", "</s>"]
    assert tokenizer.decode(tokenizer.encode(" wo"), skip_special=True) == " wo"


def test_user_defined_tokens_are_found_even_in_plain_text(spm_metadata: dict[str, Any]) -> None:
    tokens = spm_metadata["tokenizer.ggml.tokens"]
    last = len(tokens) - 1
    tokens[last] = "<mark>"
    spm_metadata["tokenizer.ggml.token_type"][last] = 4
    tokenizer = from_metadata(spm_metadata)
    ids = tokenizer.encode("a<mark>b<s>", parse_special=False)
    assert last in ids
    assert ids.count(1) == 1  # the begin token, and not the "<s>" in the text
    assert not tokenizer.is_special(last)
    assert tokenizer.decode(ids, skip_special=True) == "a<mark> b<s>"


def test_bytes_of_tokens(spm_metadata: dict[str, Any]) -> None:
    tokenizer = from_metadata(spm_metadata)
    assert tokenizer.token_bytes(3 + 0xE2) == b"\xe2"
    hello = tokenizer.token_id(f"{SPACE}hello")
    assert hello is not None
    assert tokenizer.token_bytes(hello) == b" hello"
    assert tokenizer.token_bytes(hello, first=True) == b"hello"
    assert tokenizer.decode([1, hello, hello]) == "<s> hello hello"
    assert tokenizer.decode([1, hello, hello], skip_special=True) == "hello hello"
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match="out of range"):
            tokenizer.token_bytes(wrong)
        with pytest.raises(ValueError, match="out of range"):
            tokenizer.decode([wrong])


def test_a_character_that_cannot_be_written(spm_metadata: dict[str, Any]) -> None:
    """No byte tokens: the unknown token stands in; without one, the error says what is missing."""
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", SPACE, "a"],
        "tokenizer.ggml.scores": [0.0] * 5,
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1],
    }
    assert from_metadata(metadata).encode("aéa") == [1, 3, 4, 0, 4]
    metadata["tokenizer.ggml.unknown_token_id"] = 0xFFFFFFFF
    with pytest.raises(UnsupportedError, match="no token for 'é'"):
        from_metadata(metadata).encode("aéa")


def test_long_text_without_spaces_is_not_quadratic(spm_metadata: dict[str, Any]) -> None:
    tokenizer = from_metadata(spm_metadata)
    text = "lloab" * 40_000
    ids = tokenizer.encode(text, add_special=False)
    assert tokenizer.decode(ids) == text
    assert np.mean([tokenizer.token_text(i) == "llo" for i in ids]) > 0.3

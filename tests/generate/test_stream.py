"""Streaming text: the pieces are the whole, whatever the tokens cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.generate.stream import TextStream
from tilewright.tokenizers import Tokenizer, from_metadata

SPACE = "\u2581"
PIECES = [SPACE, *"abEND", f"{SPACE}a", "ab", "END", "é", "€", "aé", f"{SPACE}{SPACE}", "<mark>"]
TOKENIZER: Tokenizer = from_metadata(
    {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [
            *("<unk>", "<s>", "</s>"),
            *(f"<0x{b:02X}>" for b in range(256)),
            *PIECES,
        ],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(PIECES))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(PIECES) - 1) + [4],
    }
)
ids = st.lists(
    st.one_of(
        st.integers(0, TOKENIZER.vocab_size - 1),
        st.integers(259, TOKENIZER.vocab_size - 1),
        # bytes that begin and continue characters, so that some of them complete
        st.sampled_from([3 + b for b in b"\xc3\xa9\xe2\x82\xac\xf0\x9f\x99\x82\xff "]),
    ),
    max_size=30,
)


def run(stream: TextStream, tokens: list[int]) -> list[str]:
    return [*(stream.push(t) for t in tokens), stream.finish()]


@settings(max_examples=500, deadline=None)
@given(tokens=ids, skip=st.booleans())
def test_the_pieces_are_the_whole(tokens: list[int], skip: bool) -> None:
    pieces = run(TextStream(TOKENIZER, skip_special=skip), tokens)
    assert "".join(pieces) == TOKENIZER.decode(tokens, skip_special=skip)


@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_text_arrives_whole(text: str) -> None:
    text = text.replace(SPACE, " ")
    tokens = TOKENIZER.encode(text, parse_special=False)
    pieces = run(TextStream(TOKENIZER), tokens)
    assert "".join(pieces) == text


@settings(max_examples=300, deadline=None)
@given(before=st.lists(st.integers(259, TOKENIZER.vocab_size - 1), min_size=1), tokens=ids)
def test_a_continuation_joins_what_came_before(before: list[int], tokens: list[int]) -> None:
    pieces = run(TextStream(TOKENIZER, continuation=True), tokens)
    start = TOKENIZER.decode(before, skip_special=True)
    assert start + "".join(pieces) == TOKENIZER.decode([*before, *tokens], skip_special=True)


stops = st.lists(st.text("abEND é", min_size=1, max_size=5), max_size=4)


@settings(max_examples=800, deadline=None)
@given(tokens=ids, stop=stops)
def test_stop_strings(tokens: list[int], stop: list[str]) -> None:
    """The text up to the stop string that is complete first, however it was cut."""
    whole = TOKENIZER.decode(tokens, skip_special=True)
    ends = [(whole.find(s) + len(s), -len(s), s) for s in stop if s in whole]
    stream = TextStream(TOKENIZER, stop)
    pieces = run(stream, tokens)
    if not ends:
        assert "".join(pieces) == whole
        assert not stream.stopped
        assert stream.stop_string is None
    else:
        end, minus_length, found = min(ends)
        assert "".join(pieces) == whole[: end + minus_length]
        assert stream.stopped
        assert stream.stop_string == found


@settings(max_examples=300, deadline=None)
@given(tokens=ids, stop=stops)
def test_no_more_is_held_back_than_needed(tokens: list[int], stop: list[str]) -> None:
    stream = TextStream(TOKENIZER, stop)
    seen = ""
    for n, token in enumerate(tokens, 1):
        seen += stream.push(token)
        if stream.stopped:
            break
        whole = TOKENIZER.decode(tokens[:n], skip_special=True)
        held = whole[len(seen) :].rstrip("\ufffd")  # an unfinished character shows as U+FFFD
        assert whole.startswith(seen)
        assert not held or any(s.startswith(held) for s in stop)


def test_characters_are_never_split() -> None:
    stream = TextStream(TOKENIZER)
    assert [stream.push(3 + b) for b in "🙂".encode()] == ["", "", "", "🙂"]
    assert stream.push(3 + 0xE2) == ""
    assert stream.push(3 + 0x82) == ""
    assert stream.finish() == "\ufffd"


def test_held_back_text_is_released() -> None:
    def ids_of(text: str) -> list[int]:
        found = [TOKENIZER.token_id(c) for c in text]
        assert None not in found
        return [i for i in found if i is not None]

    stream = TextStream(TOKENIZER, "END")
    assert [stream.push(i) for i in ids_of("aENa")] == ["a", "", "", "ENa"]
    assert [stream.push(i) for i in ids_of("EEND")] == ["", "E", "", ""]
    assert stream.stopped
    assert stream.push(ids_of("a")[0]) == ""
    assert stream.finish() == ""

    stream = TextStream(TOKENIZER, ["END"])
    assert [stream.push(i) for i in ids_of("EN")] == ["", ""]
    assert stream.finish() == "EN"
    assert not stream.stopped


def test_empty_stop_strings_are_refused() -> None:
    with pytest.raises(ValueError, match="stop string is empty"):
        TextStream(TOKENIZER, "")
    with pytest.raises(ValueError, match="stop string is empty"):
        TextStream(TOKENIZER, ["a", ""])

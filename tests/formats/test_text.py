"""Text in pieces: exact, cut only where it is safe, and wrong bytes found where they are."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.errors import FormatError
from tilewright.formats.text import read_lines, read_text, read_text_pieces, split_text


@settings(max_examples=300, deadline=None)
@given(st.text("a \n\té", max_size=60), st.integers(1, 9))
def test_pieces_join_to_the_text(text: str, size: int) -> None:
    pieces = list(split_text(text, size))
    assert "".join(pieces) == text
    assert all(pieces)
    for left, right in pairwise(pieces):
        assert left[-1] == "\n"
        assert not left[-2].isspace()
        assert not right[0].isspace()


def test_text_is_cut_wherever_it_may_be() -> None:
    assert list(split_text("ab\ncd\nef\n", 3)) == ["ab\n", "cd\n", "ef\n"]
    assert list(split_text("ab\ncd\nef\n", 4)) == ["ab\n", "cd\n", "ef\n"]
    assert list(split_text("ab\n\ncd \nef", 3)) == ["ab\n\ncd \nef"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 18])
def test_files_in_pieces(size: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    text = "\ufeffx" + "日本\n" * 20 + "\r\nend"
    path.write_bytes(b"\xef\xbb\xbf" + text[1:].encode())
    assert "".join(read_text_pieces(path, size)) == read_text(path) == text[1:]
    path.write_bytes(text[1:].encode() + b"\n\xe6\x97")
    with pytest.raises(FormatError, match=rf"at byte {path.stat().st_size - 2}: line 23 is not"):
        list(read_text_pieces(path, size))


def test_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one\r\n\ntwo\rthree\nlast")
    assert list(read_lines(path)) == [(1, b"one"), (2, b""), (3, b"two\rthree"), (4, b"last")]
    path.write_bytes(b"")
    assert list(read_lines(path)) == []
    monkeypatch.setattr("tilewright.formats.text.MAX_LINE_BYTES", 10)
    path.write_bytes(b"short\n" + b"x" * 11)
    with pytest.raises(FormatError, match="line 2 is longer"):
        list(read_lines(path))

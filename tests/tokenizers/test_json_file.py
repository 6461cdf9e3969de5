"""tokenizer.json and GGUF metadata: there and back, judged by the library and by llama.cpp."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tokenizers.test_llama_cpp import (
    awkward_texts,
    one_name_of_each,
    peer_ids,
    peer_vocabulary,
)

from tilewright.errors import FormatError, UnsupportedError
from tilewright.formats.gguf import write_gguf
from tilewright.tokenizers import from_gguf, from_metadata
from tilewright.tokenizers.json_file import begin_and_end, from_json, read_json, write_json
from tilewright.tokenizers.pretokenizers import find_pretokenizer
from tilewright.tokenizers.train import read_corpus, train_bpe, train_characters

Metadata = dict[str, Any]


def same(a: Metadata, b: Metadata) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def trained(assets: Path) -> Metadata:
    text = (assets / "text" / "tinyshakespeare.txt").read_text()[:200_000]
    return train_bpe([text], 1000, special=("<|endoftext|>", "<|mark|>"))


@pytest.mark.parametrize("add_bos", [False, True])
def test_there_and_back(add_bos: bool, trained: Metadata, tmp_path: Path) -> None:
    metadata = {**trained, "tokenizer.ggml.add_bos_token": add_bos}
    write_json(tmp_path / "t.json", metadata)
    assert same(read_json(tmp_path / "t.json"), metadata)
    write_json(tmp_path / "again.json", read_json(tmp_path / "t.json"))
    assert (tmp_path / "t.json").read_bytes() == (tmp_path / "again.json").read_bytes()


@pytest.mark.parametrize("add_bos", [False, True])
def test_the_library_and_llama_cpp_give_the_same_ids(
    add_bos: bool, trained: Metadata, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp")
    from tokenizers import Tokenizer

    metadata = {**trained, "tokenizer.ggml.add_bos_token": add_bos}
    write_json(tmp_path / "t.json", metadata)
    write_gguf(tmp_path / "t.gguf", {"general.architecture": "llama", **metadata}, {})
    library = Tokenizer.from_file(str(tmp_path / "t.json"))
    ours, other = from_json(tmp_path / "t.json"), from_gguf(tmp_path / "t.gguf")
    with peer_vocabulary(tmp_path / "t.gguf") as vocabulary:
        for text in [*awkward_texts(400), "KING:\n\nNow  is<|endoftext|> the<|mark|>winter\n"]:
            ids = ours.encode(text)
            assert ids == other.encode(text)
            assert ids == library.encode(text).ids
            assert ids == peer_ids(vocabulary, text, True, True)
            assert ours.decode(ids, skip_special=True) == library.decode(ids)


def test_proteins_too(assets: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from tokenizers import Tokenizer

    path = assets / "protein" / "pyhmmer-938293.faa"
    sequences = list(read_corpus([path], fasta=True))[:500]
    metadata = train_bpe(sequences, 400)
    write_json(tmp_path / "t.json", metadata)
    write_gguf(tmp_path / "t.gguf", {"general.architecture": "llama", **metadata}, {})
    library, ours = Tokenizer.from_file(str(tmp_path / "t.json")), from_gguf(tmp_path / "t.gguf")
    with peer_vocabulary(tmp_path / "t.gguf") as vocabulary:
        for sequence in sequences[:50]:
            ids = ours.encode(sequence)
            assert ids == library.encode(sequence).ids == peer_ids(vocabulary, sequence, True, True)
            assert len(ids) < len(sequence)


def test_characters_too(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from tokenizers import Tokenizer

    text = "the quick brown fox, naïve Käse → 日本\n"
    metadata = train_characters([text], special=("<|endoftext|>",))
    write_json(tmp_path / "t.json", metadata)
    write_gguf(tmp_path / "t.gguf", {"general.architecture": "llama", **metadata}, {})
    ids = from_json(tmp_path / "t.json").encode(text)
    assert len(ids) == len(text)
    assert Tokenizer.from_file(str(tmp_path / "t.json")).encode(text).ids == ids
    with peer_vocabulary(tmp_path / "t.gguf") as vocabulary:
        assert peer_ids(vocabulary, text, True, True) == ids


@pytest.mark.parametrize("pre", one_name_of_each())
def test_every_way_of_cutting_text(pre: str, trained: Metadata, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    metadata = {**trained, "tokenizer.ggml.pre": pre}
    write_json(tmp_path / "t.json", metadata)
    back = read_json(tmp_path / "t.json")
    ours = from_metadata(metadata)
    assert from_metadata(back).encode("Don't 1234!") == ours.encode("Don't 1234!")
    library = Tokenizer.from_file(str(tmp_path / "t.json"))
    for text in awkward_texts(100):
        assert library.encode(text, add_special_tokens=False).ids == ours.encode(text, False)
    assert ours.add_bos == from_metadata(back).add_bos


@pytest.mark.parametrize("name", ["gpt-2", "starcoder"])
def test_real_vocabularies(
    name: str,
    tmp_path: Path,
    vocabulary_file: Callable[[str], Path],
    metadata_of: Callable[[Path], Metadata],
) -> None:
    metadata = metadata_of(vocabulary_file(name))
    write_json(tmp_path / "t.json", metadata)
    back = read_json(tmp_path / "t.json")
    for key in ("tokens", "merges", "bos_token_id", "eos_token_id"):
        assert np.array_equal(back[f"tokenizer.ggml.{key}"], metadata[f"tokenizer.ggml.{key}"])
    ours, other = from_metadata(metadata), from_metadata(back)
    for text in awkward_texts(100):
        assert ours.encode(text) == other.encode(text)


def test_a_real_tokenizer_json(assets: Path) -> None:
    from tokenizers import Tokenizer

    path = assets / "tokenizers" / "roberta-base-tokenizer.json"
    with pytest.warns(UserWarning, match=r"'<mask>' has lstrip"):
        ours = from_json(path)
    assert (ours.bos_id, ours.eos_id, ours.add_bos, ours.add_eos) == (0, 2, True, True)
    library = Tokenizer.from_file(str(path))
    for text in awkward_texts(200):
        # by llama.cpp's rules a token of this name is special, whatever the file says
        if "<mask>" not in text and "<|endoftext|>" not in text:
            assert ours.encode(text) == library.encode(text).ids


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tokenizers/t5-small-tokenizer.json", "Unigram"),
        ("tokenizers/phi-3-mini-tokenizer.json", "byte fallback"),
        ("tortoise/tokenizer.json", r"unk_token '\[UNK\]'"),
    ],
)
def test_other_kinds_are_named(name: str, message: str, assets: Path) -> None:
    with pytest.raises(UnsupportedError, match=message) as found:
        read_json(assets / name)
    assert name in str(found.value)


def test_the_files_of_well_known_models_are_recognised(trained: Metadata, tmp_path: Path) -> None:
    """How Llama 3, Qwen 2 and StarCoder write their pre-tokenisers."""
    write_json(tmp_path / "t.json", trained)
    content = json.loads((tmp_path / "t.json").read_text())
    tail = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    head = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    plain = {**byte_level, "use_regex": False}

    def split(pattern: str) -> dict[str, Any]:
        return {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }

    digits = {"type": "Digits", "individual_digits": True}
    for steps, ignore, name in (
        ([split(head + r"\p{N}{1,3}" + tail), plain], True, "llama3"),
        ([split(head + r"\p{N}" + tail), plain], False, "qwen2"),
        ([digits, {**byte_level, "use_regex": True}], False, "starcoder"),
        ([byte_level], False, "gpt-2"),
    ):
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
        content["model"]["ignore_merges"] = ignore
        (tmp_path / "x.json").write_text(json.dumps(content))
        assert read_json(tmp_path / "x.json")["tokenizer.ggml.pre"] == name


def test_ids_that_no_token_has(trained: Metadata, tmp_path: Path) -> None:
    write_json(tmp_path / "t.json", trained)
    content = json.loads((tmp_path / "t.json").read_text())
    content["added_tokens"].append({"id": 1003, "content": "<late>", "special": False})
    (tmp_path / "x.json").write_text(json.dumps(content))
    found = read_json(tmp_path / "x.json")
    assert found["tokenizer.ggml.tokens"][1000:] == [
        "[PAD1000]",
        "[PAD1001]",
        "[PAD1002]",
        "<late>",
    ]
    assert found["tokenizer.ggml.token_type"][1000:].tolist() == [5, 5, 5, 4]
    assert from_metadata(found).encode("a<late>b")[1] == 1003


BREAK: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "list": (lambda c: [c], FormatError, "the file is list, wanted a table"),
    "no model": (lambda c: {**c, "model": None}, FormatError, "'model' is NoneType"),
    "wordpiece": (lambda c: _model(c, type="WordPiece"), UnsupportedError, "'WordPiece'"),
    "vocab": (lambda c: _model(c, vocab=[]), FormatError, "'model.vocab' is list"),
    "id": (lambda c: _model(c, vocab={"a": "1"}), FormatError, "has the id '1'"),
    "negative": (lambda c: _model(c, vocab={"a": -1}), FormatError, "has the id -1"),
    "huge": (lambda c: _model(c, vocab={"a": 10**9}), FormatError, "ids up to 1000000000"),
    "twice": (
        lambda c: _model(c, vocab={"a": 5, "b": 5}),
        FormatError,
        "'a' and 'b' both have id 5",
    ),
    "merge": (lambda c: _model(c, merges=[3]), FormatError, "found 3"),
    "unknown merge": (lambda c: _model(c, merges=["x日 y"]), FormatError, "x日"),
    "space": (lambda c: _model(c, merges=[["a b", "c"]]), UnsupportedError, "has a space"),
    "prefix": (lambda c: _model(c, continuing_subword_prefix="##"), UnsupportedError, "'##'"),
    "normalizer": (lambda c: {**c, "normalizer": {"type": "NFKC"}}, UnsupportedError, "normalises"),
    "no pre": (lambda c: {**c, "pre_tokenizer": None}, UnsupportedError, "cutting text"),
    "pre": (
        lambda c: {**c, "pre_tokenizer": {"type": "Whitespace"}},
        UnsupportedError,
        'cutting text into words: {"type": "Whitespace"}',
    ),
    "prefix space": (
        lambda c: {**c, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        UnsupportedError,
        "cutting text",
    ),
    "post": (lambda c: {**c, "post_processor": {"type": "X"}}, UnsupportedError, "'X'"),
    "template": (
        lambda c: {**c, "post_processor": {"type": "TemplateProcessing", "single": []}},
        UnsupportedError,
        "template",
    ),
    "added": (lambda c: {**c, "added_tokens": [3]}, FormatError, "an added token is int"),
    "added id": (lambda c: {**c, "added_tokens": [{"content": "x"}]}, FormatError, "id None"),
    "absent": (
        lambda c: {
            **c,
            "post_processor": {"type": "BertProcessing", "cls": ["<n>"], "sep": ["<n>"]},
        },
        FormatError,
        "adds '<n>', which is no token",
    ),
}


def _model(content: Any, **changes: Any) -> Any:
    return {**content, "model": {**content["model"], **changes}}


@pytest.mark.parametrize("name", BREAK)
def test_damage_is_named(name: str, trained: Metadata, tmp_path: Path) -> None:
    change, error, message = BREAK[name]
    path = tmp_path / "t.json"
    write_json(path, trained)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(error, match=message) as found:
        from_json(path)
    assert str(path) in str(found.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"GGUF\x03\0\0\0"])
def test_what_is_no_json(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"is not JSON|wanted a table"):
        read_json(path)


def test_what_has_no_place_is_told(trained: Metadata, tmp_path: Path) -> None:
    extra = {**trained, "tokenizer.chat_template": "{{ x }}", "tokenizer.ggml.eos_token_id": 1}
    with pytest.warns(UserWarning, match=r"chat_template, tokenizer.ggml.eos_token_id"):
        write_json(tmp_path / "t.json", extra)


def test_only_byte_level_bpe_is_written(spm_metadata: Metadata, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="SentencePiece"):
        write_json(tmp_path / "t.json", spm_metadata)
    assert not os.listdir(tmp_path)


def test_names_of_begin_and_end() -> None:
    assert begin_and_end(["<|endoftext|>"]) == ("<|endoftext|>", "<|endoftext|>")
    assert begin_and_end(["<pad>", "<s>", "</s>"]) == ("<s>", "</s>")
    assert begin_and_end(["<|x|>"]) == ("<|x|>", "<|x|>")
    assert begin_and_end(["<|x|>", "<|y|>"]) == (None, None)
    assert begin_and_end(["<|x|>", "<|endoftext|>"]) == ("<|endoftext|>", "<|endoftext|>")
    assert begin_and_end([]) == (None, None)


def test_text_in_normal_form(tmp_path: Path) -> None:
    """Qwen2's tokenizer composes characters, but not those of special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, trainers
    from tokenizers import pre_tokenizers as pre

    words = find_pretokenizer("qwen2").patterns[0]
    theirs = Tokenizer(models.BPE())
    theirs.normalizer = normalizers.NFC()
    byte_level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = pre.Sequence([pre.Split(Regex(words), "isolated"), byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False
    )
    theirs.train_from_iterator(["a caf\u00e9 is in it, caf\u00e9"] * 3, trainer)
    marks = ("<|im_start|>", "<e\u0301>")
    theirs.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in marks])
    theirs.save(str(tmp_path / "t.json"))
    ours = from_json(tmp_path / "t.json")
    for text in ("cafe\u0301 <|im_start|>e\u0301", "<e\u0301> <\u00e9>", "caf\u00e9"):
        assert ours.encode(text) == theirs.encode(text).ids
    assert ours.encode("cafe\u0301") == ours.encode("caf\u00e9")
    with pytest.raises(UnsupportedError, match="normalises"):  # GGUF has no place for it
        read_json(tmp_path / "t.json")

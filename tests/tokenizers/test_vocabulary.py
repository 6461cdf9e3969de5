"""Damaged and unusual tokenizer metadata."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tilewright.errors import FormatError, UnsupportedError
from tilewright.formats.gguf import open_gguf, write_gguf
from tilewright.tokenizers import from_gguf, from_metadata

DROP = object()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokens", DROP, r"'tokenizer\.ggml\.tokens' is missing"),
        ("tokens", [], "is empty"),
        ("tokens", 5, "not an array of strings"),
        ("tokens", ["a", b"b"], "not an array of strings"),
        ("tokens", ["a", "\ud800"], "not valid Unicode"),
        ("tokens", ["a", "b", "a"], "'a' twice, as ids 0 and 2"),
        ("scores", DROP, r"'tokenizer\.ggml\.scores' is missing"),
        ("scores", [0.0], "has 1 entries, but 'tokenizer.ggml.tokens' has"),
        ("scores", "abc", "wanted an array of numbers"),
        ("scores", [[1.0], [2.0, 3.0]], "not an array of numbers"),
        ("token_type", [1], "has 1 entries"),
        ("token_type", ["x"], "not an array of numbers"),
        ("eos_token_id", 5000, "is 5000, but the vocabulary has"),
        ("eos_token_id", -7, "is -7, but"),
        ("eos_token_id", "2", "wanted an integer"),
        ("eos_token_id", True, "wanted an integer"),
        ("eot_token_id", 5000, "eot_token_id' is 5000"),
        ("unknown_token_id", 1 << 31, "unknown_token_id"),
        ("add_bos_token", 1, "wanted a boolean"),
        ("model", DROP, r"no tokenizer: the key 'tokenizer\.ggml\.model' is missing"),
        ("model", 3, "wanted a string"),
    ],
)
def test_damage_is_named(
    spm_metadata: dict[str, Any], key: str, value: object, message: str
) -> None:
    if value is DROP:
        del spm_metadata[f"tokenizer.ggml.{key}"]
    else:
        spm_metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(FormatError, match=message):
        from_metadata(spm_metadata)


def test_nan_scores(spm_metadata: dict[str, Any]) -> None:
    spm_metadata["tokenizer.ggml.scores"][260] = np.nan
    with pytest.raises(FormatError, match="NaN for token 260 'a'"):
        from_metadata(spm_metadata)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("h zz", "needs the token 'zz'"),
        ("zz h", "needs the token 'zz'"),
        ("h h", "needs the token 'hh'"),
        ("he", "wanted two tokens"),
        ("", "wanted two tokens"),
        (" he", "wanted two tokens"),
        ("h e l", "wanted two tokens"),
    ],
)
def test_bad_merges(bpe_metadata: dict[str, Any], line: str, message: str) -> None:
    bpe_metadata["tokenizer.ggml.merges"][3] = line
    with pytest.raises(FormatError, match=f"entry 3.*{message}"):
        from_metadata(bpe_metadata)


def test_missing_merges(bpe_metadata: dict[str, Any]) -> None:
    del bpe_metadata["tokenizer.ggml.merges"]
    with pytest.raises(FormatError, match=r"'tokenizer\.ggml\.merges' is missing"):
        from_metadata(bpe_metadata)


def test_a_begin_token_is_asked_for_but_not_given(bpe_metadata: dict[str, Any]) -> None:
    del bpe_metadata["tokenizer.ggml.bos_token_id"]
    bpe_metadata["tokenizer.ggml.add_bos_token"] = True
    with pytest.raises(FormatError, match="add_bos_token' is true, but there is no"):
        from_metadata(bpe_metadata)
    del bpe_metadata["tokenizer.ggml.add_bos_token"]
    bpe_metadata["tokenizer.ggml.pre"] = "llama-bpe"
    with pytest.raises(FormatError, match=r"no 'tokenizer\.ggml\.bos_token_id'"):
        from_metadata(bpe_metadata)


@pytest.mark.parametrize(
    ("model", "words"), [("bert", "WordPiece"), ("t5", "Unigram"), ("other", "'other'")]
)
def test_unsupported_models_are_named(model: str, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        from_metadata({"tokenizer.ggml.model": model})


def test_bert_vocabulary_file(
    vocabulary_file: Callable[[str], Path], metadata_of: Callable[[Path], dict[str, Any]]
) -> None:
    with pytest.raises(UnsupportedError, match="'bert' \\(WordPiece\\) is not supported"):
        from_metadata(metadata_of(vocabulary_file("bert-bge")))


def test_defaults_and_facts(spm_metadata: dict[str, Any]) -> None:
    spm_metadata["tokenizer.chat_template"] = "{{ messages }}"
    spm_metadata["tokenizer.ggml.padding_token_id"] = 0xFFFFFFFF
    tokenizer = from_metadata(spm_metadata)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (1, 2, 0)
    assert tokenizer.pad_id is None
    assert tokenizer.add_bos
    assert not tokenizer.add_eos
    assert tokenizer.add_space_prefix
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.vocab_size == len(spm_metadata["tokenizer.ggml.tokens"])
    assert repr(tokenizer) == f"Tokenizer(SentencePiece-style, {tokenizer.vocab_size} tokens)"


def test_ends_of_generation_are_found_by_text(bpe_metadata: dict[str, Any]) -> None:
    """Chat models end a turn with a token that the file's ``eos`` does not name."""
    bpe_metadata["tokenizer.ggml.tokens"] += ["<|im_end|>", "<|eot_id|>"]
    bpe_metadata["tokenizer.ggml.token_type"] += [1, 3]
    tokenizer = from_metadata(bpe_metadata)
    n = tokenizer.vocab_size
    assert tokenizer.eos_ids == {tokenizer.eos_id, n - 2, n - 1}
    assert tokenizer.is_special(n - 2)
    bpe_metadata["tokenizer.ggml.eot_token_id"] = 5
    assert 5 in from_metadata(bpe_metadata).eos_ids


def test_harmony_messages_do_not_end_the_turn(bpe_metadata: dict[str, Any]) -> None:
    bpe_metadata["tokenizer.ggml.tokens"] += ["<|end|>", "<|return|>", "<|call|>"]
    bpe_metadata["tokenizer.ggml.token_type"] += [3, 3, 3]
    tokenizer = from_metadata(bpe_metadata)
    n = tokenizer.vocab_size
    assert tokenizer.eos_ids == {tokenizer.eos_id, n - 2, n - 1}


def test_phi3_tokens_swallow_white_space(spm_metadata: dict[str, Any]) -> None:
    tokens = spm_metadata["tokenizer.ggml.tokens"]
    tokens[-1] = "<|user|>"
    spm_metadata["tokenizer.ggml.token_type"][-1] = 3
    user = len(tokens) - 1
    text = "<|user|>\n hello"
    plain = from_metadata(spm_metadata)
    assert plain.decode(plain.encode(text)) == "<s><|user|> \n hello"
    phi = from_metadata({**spm_metadata, "general.name": "Phi-3 Mini"})
    assert phi.encode(text) == [1, user, phi.token_id("\u2581hello")]


def test_empty_tokens_get_a_name(spm_metadata: dict[str, Any]) -> None:
    spm_metadata["tokenizer.ggml.tokens"][261] = ""
    tokenizer = from_metadata(spm_metadata)
    assert tokenizer.token_text(261) == "[EMPTY_261]"
    assert 261 not in tokenizer.encode("hello world")


def test_loading_is_fast(
    vocabulary_file: Callable[[str], Path],
    metadata_of: Callable[[Path], dict[str, Any]],
) -> None:
    """32,000 tokens, loaded and used; the limit has room for a busy machine."""
    metadata = metadata_of(vocabulary_file("llama-spm"))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        from_metadata(metadata).encode("Hello")
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.one_of(st.integers(-(2**65), 2**65), st.floats(), st.text(max_size=3)), max_size=4),
    arrays(
        st.sampled_from(["f4", "f8", "i4", "u8", "?"]), st.sampled_from([(), 0, 3, 283, (3, 2)])
    ),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), spm=st.booleans())
def test_any_metadata_loads_or_is_refused(
    data: st.DataObject, spm: bool, spm_metadata: dict[str, Any], bpe_metadata: dict[str, Any]
) -> None:
    """Random values for random keys: a tilewright error, or a tokenizer that works."""
    metadata = dict(spm_metadata if spm else bpe_metadata)
    optional = ["add_bos_token", "add_eos_token", "add_space_prefix", "eot_token_id", "pre"]
    keys = [*metadata, *(f"tokenizer.ggml.{name}" for name in optional), "general.name"]
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=2)):
        metadata[key] = data.draw(anything)
    try:
        tokenizer = from_metadata(metadata)
        ids = tokenizer.encode("hello <s> wörld\n")
    except (FormatError, UnsupportedError):
        return
    assert all(0 <= i < tokenizer.vocab_size for i in [*ids, *tokenizer.eos_ids])
    tokenizer.decode(range(tokenizer.vocab_size))


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "no-tokens.gguf"
    write_gguf(path, {"general.architecture": "llama", "tokenizer.ggml.model": "llama"}, {})
    with pytest.raises(FormatError, match=r"no-tokens\.gguf: 'tokenizer\.ggml\.tokens' is missing"):
        from_gguf(path)


def test_from_gguf(assets: Path) -> None:
    path = assets / "gguf" / "stories260K-f32.gguf"
    with open_gguf(path) as file:
        opened = from_gguf(file)
    for tokenizer in (opened, from_gguf(path), from_gguf(str(path))):
        assert tokenizer.vocab_size == 512
        assert tokenizer.encode("Zoo was") == [1, 410, 469, 347, 286]


def test_importing_is_light() -> None:
    code = (
        "import sys, tilewright.tokenizers as t, tilewright.generate.stream\n"
        "heavy = {'tokenizers', 'llvmlite', 'jinja2', 'tilewright.formats.gguf'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

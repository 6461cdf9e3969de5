"""Training: the library's merges, whatever the order and the threads; characters; bad input."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.errors import FormatError
from tilewright.tokenizers import from_metadata
from tilewright.tokenizers.train import read_corpus, train_bpe, train_characters

TEXTS = ["the cat sat on the mat", "the other cat, the OTHER mat\n\n", "naïve Käse → 日本 日本"]


def merges_of(metadata: dict[str, Any]) -> list[str]:
    return list(metadata["tokenizer.ggml.merges"])


def peer_merges(texts: list[str], vocab_size: int, *, regex: bool) -> list[str]:
    """The library on its own, as its documentation shows it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def test_merges_are_the_librarys(assets: Path) -> None:
    path = assets / "text" / "tinyshakespeare.txt"
    ours = train_bpe(read_corpus([path]), 1257)
    assert merges_of(ours) == peer_merges([path.read_text()], 1256, regex=True)
    assert len(merges_of(ours)) == 1000


def test_protein_merges_are_the_librarys(assets: Path) -> None:
    """Two of the files here, all of them in benchmarks/tokenizer_training.py."""
    names = ("pyhmmer-938293.faa", "ecoli-K12-target-decoy.fasta")
    words: list[str] = []
    for name in names:
        for record in ("\n" + (assets / "protein" / name).read_text()).split("\n>")[1:]:
            header, _, lines = record.partition("\n")
            if not header.startswith("rev_"):
                words.append(lines.replace("\n", ""))
    words = random.Random(1).sample(words, 1500)
    ours = train_bpe((word.rstrip("*") for word in words), 657)
    assert merges_of(ours) == peer_merges(words, 656, regex=False)
    assert len(merges_of(ours)) == 400


def test_what_the_metadata_hold() -> None:
    metadata = train_bpe(TEXTS, 280, special=("<s>", "</s>", "<pad>"), add_bos=True)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert tokens[:3] == ["<s>", "</s>", "<pad>"]
    assert len(tokens) == len(set(tokens)) == 280
    assert metadata["tokenizer.ggml.token_type"].tolist() == [3] * 3 + [1] * 277
    assert len(merges_of(metadata)) == 280 - 259
    tokenizer = from_metadata(metadata)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    for text in [*TEXTS, "unseen \x00 ∑"]:
        ids = tokenizer.encode(text)
        assert ids[0] == 0
        assert tokenizer.decode(ids, skip_special=True) == text
    assert len(tokenizer.encode("the cat")) < 7


def test_neither_order_nor_threads_matter() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcd", k=rng.randrange(1, 9))) for _ in range(3000)]
    first = train_bpe(words, 400)
    for seed in range(3):
        again = random.Random(seed).sample(words, len(words))
        assert merges_of(train_bpe(again, 400)) == merges_of(first)
    program = (
        "import json, sys; from tilewright.tokenizers.train import train_bpe; "
        "print(json.dumps(train_bpe(json.load(sys.stdin), 400)['tokenizer.ggml.merges']))"
    )
    for threads in ("1", "3"):
        output = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(words),
            env={**os.environ, "RAYON_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert json.loads(output) == merges_of(first)


def test_fewer_pairs_than_wanted() -> None:
    assert len(train_bpe(["abab"], 1000)["tokenizer.ggml.tokens"]) == 259
    assert merges_of(train_bpe(["abab", "cd"], 1000, min_frequency=2)) == ["a b"]


def test_characters() -> None:
    metadata = train_characters(TEXTS, special=("<|endoftext|>",))
    tokenizer = from_metadata(metadata)
    characters = sorted(set("".join(TEXTS)))
    for text in TEXTS:
        assert tokenizer.encode(text) == [characters.index(c) for c in text]
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_id == len(characters)
    with pytest.warns(UserWarning, match="no token for the UTF-8 bytes"):
        assert tokenizer.encode("Q") == []


def test_characters_of_ascii_text_are_all_there_is(assets: Path) -> None:
    """The 65 ids that nanoGPT's character-level set-up gives tinyshakespeare."""
    path = assets / "text" / "tinyshakespeare.txt"
    metadata = train_characters(read_corpus([path]))
    assert len(metadata["tokenizer.ggml.tokens"]) == 65
    assert merges_of(metadata) == []
    text = path.read_text()[:3000]
    places = {c: i for i, c in enumerate(sorted(set(path.read_text())))}
    assert from_metadata(metadata).encode(text) == [places[c] for c in text]


@pytest.mark.parametrize(
    ("work", "error", "message"),
    [
        (lambda: train_bpe([], 300), FormatError, "no text"),
        (lambda: train_bpe(["", ""], 300), FormatError, "no text"),
        (lambda: train_characters([""]), FormatError, "no text"),
        (lambda: train_bpe(["a"], 256), ValueError, "the smallest is 257"),
        (lambda: train_bpe(["a"], 300, special=("a", "a")), ValueError, "must differ"),
        (lambda: train_bpe(["a"], 300, special=("x", "y"), add_bos=True), ValueError, "to begin"),
        (lambda: train_characters(["ab"], special=("a",)), ValueError, "a character"),
    ],
)
def test_what_cannot_be_trained(work: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        work()


def test_errors_of_the_texts_come_through() -> None:
    def texts() -> Iterator[str]:
        yield "some text"
        raise FormatError("line 3 is wrong")

    with pytest.raises(FormatError, match="line 3 is wrong"):
        train_bpe(texts(), 300)


def test_a_corpus_of_fasta(tmp_path: Path) -> None:
    path = tmp_path / "a.fasta"
    path.write_text(">one\nMKV\nLL*\n>rev_one\nLLV\n")
    assert list(read_corpus([path], fasta=True)) == ["MKVLL", "LLV"]
    assert list(read_corpus([path, path], fasta=True, skip="rev_")) == ["MKVLL"] * 2
    path.write_text(">one\nMK4\n")
    with pytest.raises(FormatError, match="line 2, column 3"):
        train_bpe(read_corpus([path], fasta=True), 300)


def test_pieces_of_text_have_the_words_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import pre_tokenizers

    monkeypatch.setattr("tilewright.tokenizers.train._PIECE_CHARS", 7)
    rng = np.random.default_rng(3)
    text = "".join(rng.choice(list("ab \n\t.'s1é"), 3000))
    (tmp_path / "text").write_text(text, newline="")
    pieces = list(read_corpus([tmp_path / "text"]))
    assert len(pieces) > 20
    assert "".join(pieces) == text
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True).pre_tokenize_str
    assert [w for piece in pieces for w, _ in split(piece)] == [w for w, _ in split(text)]


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_is_not_kept_waiting() -> None:
    """Training here takes much longer than the test waits."""
    program = (
        "import random\n"
        "from tilewright.tokenizers.train import train_bpe\n"
        "rng = random.Random(0)\n"
        "def texts():\n"
        "    for _ in range(20_000):\n"
        "        yield ''.join(rng.choices('ACDEFGHIKLMNPQRSTVWY', k=400))\n"
        "    print('begun', flush=True)\n"
        "train_bpe(texts(), 60_000)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.3)
    assert process.poll() is None
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.wait(timeout=10)
    assert time.monotonic() - begin < 2
    assert "KeyboardInterrupt" in process.stderr.read()
    process.stdout.close()
    process.stderr.close()

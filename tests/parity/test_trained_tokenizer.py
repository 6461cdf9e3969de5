"""A tokenizer trained here, inside a model file: tilewright and llama.cpp load it and agree."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
from tests.reference import builders, peer

import tilewright
from tilewright.formats.gguf import open_gguf, tensor_from_raw, write_gguf
from tilewright.tokenizers.train import read_corpus, train_bpe, train_characters

llama_cpp = pytest.importorskip("llama_cpp")


@pytest.mark.parametrize("kind", ["words", "proteins", "characters"])
def test_a_model_with_a_trained_tokenizer(kind: str, assets: Path, tmp_path: Path) -> None:
    text = (assets / "text" / "tinyshakespeare.txt").read_text()[:100_000]
    if kind == "words":
        metadata, prompt = train_bpe([text], 512, add_bos=True), "KING:\nWhat is the winter's tale?"
    elif kind == "proteins":
        path = assets / "protein" / "pyhmmer-938293.faa"
        sequences = list(read_corpus([path], fasta=True))[:300]
        metadata, prompt = train_bpe(sequences, 400), sequences[-1][:60]
    else:
        metadata, prompt = train_characters([text], special=("<|endoftext|>",)), "What is it?"
    size = len(metadata["tokenizer.ggml.tokens"])
    plain, path = builders.write_llama(tmp_path / "plain.gguf"), tmp_path / "m.gguf"
    with open_gguf(plain) as file:
        kept = {k: v for k, v in file.metadata.items() if not k.startswith("tokenizer.")}
        tensors = []
        for name, info in file.tensors.items():
            raw, shape = file.read_raw(name), info.shape
            if name in ("token_embd.weight", "output.weight"):  # one row for each token
                raw, shape = raw[:size], (size, shape[1])
            tensors.append(tensor_from_raw(name, np.ascontiguousarray(raw), shape, info.type))
        write_gguf(path, {**kept, "llama.vocab_size": size, **metadata}, tensors)

    model = tilewright.load(path)
    ids = model.tokenizer.encode(prompt)
    assert len(ids) > 5
    with open(os.devnull, "w") as silent, contextlib.redirect_stderr(silent):
        other = llama_cpp.Llama(str(path), n_ctx=256, verbose=False)
    assert other.tokenize(prompt.encode(), add_bos=True, special=True) == ids
    ours, theirs = model.logits(ids), peer.logits(path, ids, f32_cache=True)
    assert ours.shape == theirs.shape == (len(ids), size)
    assert np.array_equal(ours.argmax(-1), theirs.argmax(-1))
    assert model.tokenizer.decode(ids, skip_special=True) == prompt
    other.close()

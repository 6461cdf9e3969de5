"""The model inside the package: small, complete, readable by others, and as good as it says."""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import tilewright
from tilewright import tokenizers
from tilewright.formats.gguf import GGMLType, open_gguf

DEFAULT = Path(str(resources.files("tilewright"))) / "assets" / "default.gguf"
MAX_BYTES = 3_000_000


def test_file_is_small() -> None:
    assert 1_000_000 < DEFAULT.stat().st_size <= MAX_BYTES


def test_metadata_names_a_complete_llama() -> None:
    with open_gguf(DEFAULT) as file:
        keys = file.metadata
        assert keys["general.architecture"] == "llama"
        assert keys["general.license"] == "mit"
        layers, dim = keys["llama.block_count"], keys["llama.embedding_length"]
        heads, kv_heads = (
            keys["llama.attention.head_count"],
            keys["llama.attention.head_count_kv"],
        )
        head_dim, ffn = keys["llama.rope.dimension_count"], keys["llama.feed_forward_length"]
        vocab = keys["llama.vocab_size"]
        assert heads * head_dim == dim
        assert heads % kv_heads == 0
        assert heads > kv_heads, "the default model shows grouped-query attention"
        assert len(keys["tokenizer.ggml.tokens"]) == vocab
        block = {
            "attn_norm": (dim,),
            "attn_q": (dim, dim),
            "attn_k": (kv_heads * head_dim, dim),
            "attn_v": (kv_heads * head_dim, dim),
            "attn_output": (dim, dim),
            "ffn_norm": (dim,),
            "ffn_gate": (ffn, dim),
            "ffn_up": (ffn, dim),
            "ffn_down": (dim, ffn),
        }
        wanted = {"token_embd.weight": (vocab, dim), "output_norm.weight": (dim,)}
        for layer in range(layers):
            wanted |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
        assert {name: info.shape for name, info in file.tensors.items()} == wanted
        for info in file.tensors.values():
            assert info.type is (GGMLType.Q8_0 if len(info.shape) == 2 else GGMLType.F32)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Well, Prince, so Genoa and Lucca are now just family estates of the Buonapartes.",
        "ROMEO:\nBut, soft! what light through yonder window breaks?\n\n",
        "  spaces,\ttabs\r\n and   runs   ",
        "déjà vu, Наташа, 戦争と平和, 🕊\u200d, \x00\x7f",
        "it's 1812; we'll see",
    ],
)
def test_tokenizer_round_trip(text: str) -> None:
    tokenizer = tokenizers.from_gguf(DEFAULT)
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_id
    assert tokenizer.decode(ids[1:]) == text


def test_tokenizer_compresses_english() -> None:
    text = "The countess looked at her daughter and did not answer him for a long time."
    assert len(text) / len(tokenizers.from_gguf(DEFAULT).encode(text, add_special=False)) > 2.5


def test_another_reader_agrees() -> None:
    """The `gguf` package of llama.cpp reads the same keys and the same stored bytes."""
    gguf = pytest.importorskip("gguf")
    theirs = gguf.GGUFReader(DEFAULT)
    with open_gguf(DEFAULT) as file:
        fields = {name for name in theirs.fields if not name.startswith("GGUF.")}
        assert fields == set(file.metadata)
        assert theirs.fields["general.name"].contents() == file.metadata["general.name"]
        assert {t.name for t in theirs.tensors} == set(file.tensors)
        for tensor in theirs.tensors:
            assert tensor.data.tobytes() == file.read_raw(tensor.name).tobytes()


def training_script(project: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "train_default_model", project / "tools" / "train_default_model.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def stated_figures() -> tuple[float, float]:
    """(nats per token, bits per byte) on held-out text, as the file's description has them."""
    with open_gguf(DEFAULT) as file:
        description = file.metadata["general.description"]
    found = re.search(r"([\d.]+) nats per token, ([\d.]+) bits per byte", description)
    assert found is not None, description
    return float(found[1]), float(found[2])


def test_it_has_learnt_the_language() -> None:
    """For comparison: `xz -9e` takes 2.3 bits per byte of the same novel."""
    nats, bits = stated_figures()
    assert 0 < nats < 4
    assert 0 < bits < 1.7


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms of the probabilities, along the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_stated_loss_is_true(project: Path, assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped weights, run by tilewright, reach the stated loss on the held-out text.

    Not to the last digit: the statement is about float32 activations.
    """
    script = training_script(project, monkeypatch)
    _, held_out = script.load_documents(assets / "text")
    model = tilewright.load(DEFAULT, threads=1)
    tokens, _ = script.encode_documents(
        lambda text: model.tokenizer.encode(text, add_special=False), held_out
    )
    losses = []
    for x, y in script.windows(tokens, length=256, limit=64):
        for ids, targets in zip(x.numpy(), y.numpy(), strict=True):
            losses.append(-log_softmax(model.logits(ids))[np.arange(256), targets].mean())
    nats = float(np.mean(losses))
    assert nats == pytest.approx(stated_figures()[0], abs=0.01)
    bits = script.bits_per_byte(nats, tokens, held_out)
    assert bits == pytest.approx(stated_figures()[1], abs=0.01)


def test_inference_computes_what_training_does(
    project: Path, assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Next-token losses on held-out text, by the trained module and by the engine that runs it.

    The engine rounds activations to 8 bits per 32 values, as llama.cpp does, so single logits move
    by a few hundredths; the mean loss over 1,024 tokens hardly moves.
    """
    script = training_script(project, monkeypatch)
    reference, tokenizer = script.load_gguf(DEFAULT)
    _, held_out = script.load_documents(assets / "text")
    model = tilewright.load(DEFAULT, threads=1)
    losses = []
    for document in held_out[:: len(held_out) // 4][:4]:
        ids = tokenizer.encode(document)[:257]
        with tilewright.no_grad():
            wanted = log_softmax(reference(tilewright.asarray([ids[:-1]])).numpy()[0])
        logits = model.logits(ids[:-1])
        assert logits.shape == wanted.shape
        got = log_softmax(logits)
        assert np.abs(got - wanted).mean() < 0.05
        rows = np.arange(len(ids) - 1)
        losses.append((got[rows, ids[1:]].mean(), wanted[rows, ids[1:]].mean()))
    got_loss, wanted_loss = np.mean(losses, 0)
    assert got_loss == pytest.approx(wanted_loss, abs=0.01)


def test_its_text_is_recognisably_language(assets: Path) -> None:
    """Nearly all sampled words are words of the books it was trained on."""
    books = "".join(
        (assets / "text" / name).read_text("utf-8")
        for name in ("war-and-peace.txt", "tinyshakespeare.txt")
    )
    known = set(re.findall(r"[a-z]+", books.lower()))
    model = tilewright.load(DEFAULT, threads=1)
    words: list[str] = []
    for seed in range(4):
        pieces = model.generate("The countess", max_tokens=100, temperature=0.8, seed=seed)
        words += re.findall(r"[a-z]+", "".join(pieces).lower())[:-1]
    assert len(words) > 100
    assert len(set(words)) > 60, "it repeats itself"
    unknown = [word for word in words if word not in known]
    assert len(unknown) < 0.1 * len(words), unknown

"""The model inside the package: small, complete, readable by others, and as good as it says."""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib import resources
from pathlib import Path
from types import ModuleType

import pytest

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
    assert 0 < bits < 1.6


def test_stated_loss_is_true(project: Path, assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights as stored reach the stated loss on the held-out text, in PyTorch."""
    pytest.importorskip("torch")
    script = training_script(project, monkeypatch)
    nats, bits = script.evaluate_file(DEFAULT, assets / "text", "val")
    assert (nats, bits) == pytest.approx(stated_figures(), abs=0.01)

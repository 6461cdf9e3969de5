"""Recipes: what is trained is what the files say, to tilewright and to llama.cpp."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.reference import builders, forward, peer

import tilewright
from tilewright.errors import FormatError, TrainingError, UnsupportedError
from tilewright.formats.gguf import open_gguf
from tilewright.formats.safetensors import read_safetensors
from tilewright.nn.module import Module
from tilewright.nn.transformer import Llama, LlamaConfig
from tilewright.tensor import random
from tilewright.tensor.creation import asarray
from tilewright.tensor.modes import no_grad
from tilewright.train.checkpoint import list_checkpoints, load_checkpoint
from tilewright.train.recipes.adapters import (
    AdaptedDecoder,
    adapter_arrays,
    load_adapters,
    save_adapters,
    target_names,
)
from tilewright.train.recipes.decoders import (
    metadata_from_hugging_face,
    read_decoder,
    write_decoder_safetensors,
)
from tilewright.train.recipes.export import decoder_weights, export_decoder
from tilewright.train.recipes.gpt import make_gpt
from tilewright.train.recipes.images import ImageOptions, affine, read_images
from tilewright.train.recipes.language import (
    LanguageOptions,
    learning_rate,
    sample,
    train_language_model,
)
from tilewright.train.recipes.llama import make_llama
from tilewright.train.recipes.lora import merge, train_lora
from tilewright.train.recipes.mamba import make_mamba
from tilewright.train.recipes.mnist import run_mnist
from tilewright.train.recipes.text import TextData, prepare_text, reopen_text
from tilewright.train.record import read_record, series

TEXT = "the cat sat on the mat, and the dog lay by the door.\n" * 60
OPTIONS = LanguageOptions(
    context=16, batch=4, steps=12, lr=5e-3, warmup=2, evaluate_every=6, checkpoint_every=6, seed=3
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def logits_of(module: Module, ids: list[int]) -> np.ndarray:
    with no_grad():
        found = module.eval()(asarray(np.array([ids], np.int32))).numpy()[0]
    assert isinstance(found, np.ndarray)
    return found


def close(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def make(kind: str, text: TextData) -> Any:
    random.seed(4)
    if kind == "gpt":
        return make_gpt(text.vocab_size, context=16, layers=1, heads=2, width=32, dropout=0.1)
    return make_llama(text.vocab_size, context=16, layers=1, heads=4, kv_heads=2, width=32)


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_a_decoder_from_text_to_model_files(kind: str, file: Path, tmp_path: Path) -> None:
    text = prepare_text([file], "chars", tmp_path, context=16)
    assert text.tokenizer.decode(text.train[:20].tolist()) == TEXT[:20]
    module = make(kind, text)
    results = train_language_model(module, text, OPTIONS, str(tmp_path), quiet=True)
    record = read_record(tmp_path / "record.jsonl")
    losses = series(record, "loss")[1]
    assert losses[-1] < 0.9 * losses[0]
    assert series(record, "val_loss")[0] == [6, 12]
    assert results["val_loss"] == series(record, "val_loss")[1][-1]
    assert [step for step, _ in list_checkpoints(tmp_path / "checkpoints")] == [6, 12]
    found = load_checkpoint(list_checkpoints(tmp_path / "checkpoints")[-1][1])
    assert found.metric == results["val_loss"]

    gguf, tensors = export_decoder(module, text.metadata, tmp_path, "cats")
    model = tilewright.load(gguf)
    ids = text.train[:16].tolist()
    ours = logits_of(module, ids)
    close(model.logits(ids), ours, 1e-5)
    close(forward.logits(gguf, ids), ours, 1e-5)
    assert model.tokenizer.encode("the cat") == text.tokenizer.encode("the cat")
    assert len("".join(model.generate("the", 8, seed=1))) > 0
    if importlib.util.find_spec("llama_cpp"):
        # its GELU is a table of 16-bit floats
        close(peer.logits(gguf, ids, f32_cache=True), ours, 2e-4 if kind == "gpt" else 1e-5)
    # Hugging Face's file, read back, is the GGUF file
    one, two = read_decoder(gguf), read_decoder(tmp_path)
    assert one.config == replace(two.config, norm_eps=one.config.norm_eps)  # rounded in GGUF
    assert one.tensors.keys() == two.tensors.keys()
    for name, array in one.tensors.items():
        np.testing.assert_array_equal(array, two.tensors[name], name)
    stored = read_safetensors(tensors)
    if kind == "gpt":  # (in, out), as GPT-2's files have it
        own = module.state_dict()["transformer.h.0.mlp.c_fc.weight"].numpy()
        np.testing.assert_array_equal(stored["transformer.h.0.mlp.c_fc.weight"], own.T)
    else:  # pairs (i, i + d/2) instead of (2i, 2i + 1)
        own = module.state_dict()["model.layers.0.self_attn.k_proj.weight"].numpy()
        rows = stored["model.layers.0.self_attn.k_proj.weight"].reshape(2, 2, 4, 32)
        np.testing.assert_array_equal(rows.swapaxes(1, 2).reshape(16, 32), own)

    again = reopen_text(tmp_path, context=16)
    assert again is not None
    np.testing.assert_array_equal(again.train, text.train)
    os.truncate(tmp_path / "tokens.npy", 90)
    with pytest.raises(FormatError, match=r"tokens.npy.*delete it, and it is made again"):
        reopen_text(tmp_path, context=16)


def test_resuming_a_recipe_gives_the_same_bits(file: Path, tmp_path: Path) -> None:
    states = []
    for cuts in ([12], [6, 12]):
        folder = tmp_path / str(len(cuts))
        text = prepare_text([file], "chars", folder, context=16)
        for number, steps in enumerate(cuts):
            module = make("gpt", text)
            train_language_model(
                module,
                text,
                OPTIONS,
                str(folder),
                quiet=True,
                resume=number > 0,
                stop_at=steps,
            )
        states.append({k: v.numpy().tobytes() for k, v in module.state_dict().items()})
    assert states[0] == states[1]


def test_bf16_products_learn_too(file: Path, tmp_path: Path) -> None:
    text = prepare_text([file], "chars", tmp_path, context=16)
    options = LanguageOptions(**{**vars(OPTIONS), "precision": "bf16", "steps": 8, "warmup": 0})
    module = make("gpt", text)
    train_language_model(module, text, options, None, quiet=True)
    assert all(p.dtype is tilewright.float32 for p in module.parameters())
    losses = []
    for precision in ("f32", "bf16"):
        one = LanguageOptions(**{**vars(options), "precision": precision, "steps": 1})
        losses.append(train_language_model(make("gpt", text), text, one, None, quiet=True)["loss"])
    assert losses[0] != losses[1]
    assert abs(losses[0] - losses[1]) < 0.01 * losses[0]


def test_half_split_llama_is_exported_in_pairs(file: Path, tmp_path: Path) -> None:
    text = prepare_text([file], "chars", tmp_path, context=16)
    random.seed(4)
    module = Llama(
        LlamaConfig(
            text.vocab_size, 16, n_layer=1, n_head=4, n_kv_head=2, n_embd=32, hidden=64, tied=False
        )
    )
    gguf, _ = export_decoder(module, text.metadata, tmp_path, "halves")
    ids = text.train[:16].tolist()
    close(tilewright.load(gguf).logits(ids), logits_of(module, ids), 1e-5)
    stored = read_safetensors(tmp_path / "model.safetensors")
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(stored[name], tensor.numpy(), name)


def test_a_gpt_whose_gelu_files_cannot_say(file: Path, tmp_path: Path) -> None:
    text = prepare_text([file], "chars", tmp_path, context=16)
    from tilewright.nn.transformer import GPT, GPTConfig

    with pytest.raises(ValueError, match="gelu_tanh"):
        decoder_weights(GPT(GPTConfig(text.vocab_size, 16, 1, 2, 32)), text.metadata, "m")


def test_mamba_learns_and_speaks(file: Path, tmp_path: Path) -> None:
    text = prepare_text([file], "chars", tmp_path, context=16)
    random.seed(4)
    module = make_mamba(text.vocab_size, layers=1, width=16, state=4)
    options = LanguageOptions(**{**vars(OPTIONS), "lr": 2e-2})
    train_language_model(module, text, options, str(tmp_path), quiet=True)
    losses = series(read_record(tmp_path / "record.jsonl"), "loss")[1]
    assert losses[-1] < 0.9 * losses[0]
    prompt = text.train[:4].tolist()
    first = list(sample(module, prompt, 16, 8, seed=1))
    assert first == list(sample(module, prompt, 16, 8, seed=1))
    assert first != list(sample(module, prompt, 16, 8, seed=2))
    greedy = list(sample(module, prompt, 1, 16, temperature=0))
    assert greedy == [int(logits_of(module, prompt)[-1].argmax())]


def test_the_learning_rate_is_nanogpts() -> None:
    rate = learning_rate(LanguageOptions(steps=1000, warmup=100, lr=1e-3))
    assert rate(0) == pytest.approx(1e-5)
    assert rate(99) == pytest.approx(1e-3)
    assert rate(550) == pytest.approx((1e-3 + 1e-4) / 2)
    assert rate(1000) == pytest.approx(1e-4)


# text


def test_tokenizers_of_all_kinds(file: Path, tmp_path: Path) -> None:
    for number, kind in enumerate(["chars", "bpe:270"]):
        text = prepare_text([file], kind, tmp_path / str(number), context=16)
        assert text.tokenizer.decode(text.train[:9].tolist()) == TEXT[: len("the cat s")] or number
    trained = tmp_path / "1" / "tokenizer.json"
    text = prepare_text([file, file], str(trained), tmp_path / "2", context=16)
    assert text.vocab_size == 270
    # two files: the end-of-text token after each
    both = np.concatenate([text.train, text.validation])
    assert (both == text.tokenizer.eos_id).sum() == 2
    again = reopen_text(tmp_path / "2", context=16)
    assert again is not None
    assert again.vocab_size == 270


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("words", "unknown: wanted chars, bpe:N, or the path"),
        ("bpe:", "wants a number"),
        ("bpe:many", "wants a number"),
        ("bpe:10", "no room"),
    ],
)
def test_tokenizers_that_do_not_exist(kind: str, message: str, file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_text([file], kind, tmp_path, context=16)


def test_sequences_from_fasta(tmp_path: Path) -> None:
    path = tmp_path / "s.fasta"
    path.write_text("".join(f">p{i}\nMKVLAAGGIC\nMKV\n" for i in range(40)))
    text = prepare_text([path], "chars", tmp_path, context=16, fasta=True)
    end = text.tokenizer.eos_id
    assert end is not None
    assert text.vocab_size == len(set("MKVLAAGGIC")) + 1
    assert text.tokenizer.decode(text.train[:13].tolist()) == "MKVLAAGGICMKV"
    assert text.train[13] == end
    assert len(text.train) + len(text.validation) == 40 * 14


def test_text_that_is_too_short_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("short")
    with pytest.raises(TrainingError, match="the text has 5 tokens, 4 of them for training: too"):
        prepare_text([path], "chars", tmp_path, context=16)
    path.write_text("a" * 100)
    with pytest.raises(TrainingError, match="10 of them for validation"):
        prepare_text([path], "chars", tmp_path, context=16)
    path.write_bytes(b"abc\xff" * 99)
    with pytest.raises(FormatError, match="at byte 3"):
        prepare_text([path], "chars", tmp_path, context=16)


# images


def test_affine_changes() -> None:
    rng = np.random.default_rng(0)
    images = np.zeros((3, 28, 28), np.float32)
    images[:, 10:18, 12:16] = 1
    still = affine(images, rng, turn=0, shift=0, scale=0)
    np.testing.assert_allclose(still, images, atol=1e-5)
    moved = affine(images, rng)
    assert moved.shape == images.shape
    assert moved.dtype == np.float32
    assert not np.allclose(moved[0], moved[1])
    np.testing.assert_allclose(moved.sum((1, 2)), images.sum((1, 2)), rtol=0.3)
    # a turn by 90 degrees is known exactly
    turned = affine(images, _Fixed(90.0), turn=90, shift=0, scale=0)
    np.testing.assert_allclose(turned[0], np.rot90(images[0], -1), atol=1e-4)


class _Fixed(np.random.Generator):
    def __init__(self, angle: float) -> None:
        super().__init__(np.random.Philox(0))
        self.angle = angle

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        if high == 90:
            return np.full(size, self.angle)
        return np.full(size, (low + high) / 2)


@pytest.mark.parametrize(("model", "least"), [("cnn", 0.8), ("vit", 0.25)])
def test_mnist_is_learned(model: str, least: float, assets: Path, tmp_path: Path) -> None:
    from tilewright.data import load_mnist

    train, test = load_mnist(assets / "mnist")
    np.savez(tmp_path / "train.npz", images=train.images[:1500], labels=train.labels[:1500])
    np.savez(tmp_path / "t10k.npz", images=test.images[:500], labels=test.labels[:500])
    options = ImageOptions(batch=50 if model == "cnn" else 20, epochs=1 if model == "cnn" else 2)
    width = 8 if model == "cnn" else 16
    _, results = run_mnist(
        tmp_path, options, str(tmp_path / "run"), model=model, quiet=True, width=width
    )
    assert results["test_accuracy"] >= least
    assert (tmp_path / "run" / "model.safetensors").exists()
    record = read_record(tmp_path / "run" / "record.jsonl")
    assert "images_per_s" in record[0]


def test_images_from_folders(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    for number in range(12):
        folder = tmp_path / "flat" if number < 6 else tmp_path / "classes" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((20, 30, 3), number * 20, np.uint8)
        pillow.fromarray(pixels).save(folder / f"{number}.png")
    for name in ("flat", "classes"):
        images = read_images(tmp_path / name, 8)
        assert images.train.shape == (5, 8, 8, 3)
        assert images.test.shape == (1, 8, 8, 3)
    (tmp_path / "one").mkdir()
    pillow.fromarray(pixels).save(tmp_path / "one" / "a.png")
    with pytest.raises(TrainingError, match="one image is not enough"):
        read_images(tmp_path / "one", 8)
    (tmp_path / "none").mkdir()
    with pytest.raises(FormatError, match="neither MNIST nor images"):
        read_images(tmp_path / "none", 8)


# adapters

SMALL = {"n_layers": 1, "n_embd": 64, "n_heads": 4, "n_ff": 96, "n_ctx": 32}


def base(arch: str, recipe: str, folder: Path) -> Path:
    kv = 4 if arch == "gpt2" else 2
    shape = builders.Shape(arch=arch, n_kv_heads=kv, **SMALL)  # type: ignore[arg-type]
    return builders.write(folder / f"{arch}.gguf", shape, recipe)


@pytest.mark.parametrize(("arch", "recipe"), [("llama", "q8_0"), ("qwen2", "f32"), ("gpt2", "f16")])
def test_low_rank_fine_tuning(arch: str, recipe: str, file: Path, tmp_path: Path) -> None:
    path = base(arch, recipe, tmp_path)
    weights = read_decoder(path)
    ids = np.random.default_rng(1).integers(0, 512, 24).tolist()
    exact = forward.logits(path, ids)
    close(logits_of(AdaptedDecoder(weights, 4, 8.0, ["all"]), ids), exact, 1e-5)

    folder = tmp_path / "run"
    options = LanguageOptions(
        context=16, batch=4, steps=10, lr=1e-2, warmup=1, weight_decay=0, evaluate_every=0
    )
    module, _ = train_lora(
        path, [file], options, folder, rank=4, alpha=8.0, targets=["all"], quiet=True
    )
    losses = series(read_record(folder / "record.jsonl"), "loss")[1]
    assert losses[-1] < losses[0] - 0.1
    tuned = logits_of(module, ids)
    assert np.abs(tuned - exact).max() > 0.01
    # only adapters are in checkpoints
    saved = load_checkpoint(list_checkpoints(folder / "checkpoints")[-1][1])
    assert all("lora" in k for k in saved.tensors if k.startswith("model."))

    adapters, factor = load_adapters(folder, weights)
    assert factor == 2.0
    for name, (a, b) in adapter_arrays(module).items():
        np.testing.assert_array_equal(adapters[name][0], a)
        np.testing.assert_array_equal(adapters[name][1], b)
    merged = tmp_path / "merged.gguf"
    changed = merge(path, folder, merged)
    assert len(changed) == (4 if arch == "gpt2" else 7)
    close(forward.logits(merged, ids), tuned, 1e-5)
    with open_gguf(path) as before, open_gguf(merged) as after:
        for name in before.tensors:
            if name not in changed:
                assert before.read_raw(name).tobytes() == after.read_raw(name).tobytes()
        assert before.metadata_types == after.metadata_types
    if recipe == "f32":
        close(tilewright.load(merged).logits(ids), tuned, 1e-5)

    # the same through Hugging Face's files: as a base, and as what is written
    hugging = tmp_path / "hf"
    hugging.mkdir()
    write_decoder_safetensors(hugging / "model.safetensors", weights)
    out = tmp_path / "merged"
    out.mkdir()
    assert merge(hugging, folder, out / "model.safetensors") == changed
    other = AdaptedDecoder(read_decoder(out), 1, 1.0)
    close(logits_of(other, ids), tuned, 1e-5)
    if arch != "gpt2":
        stored = read_safetensors(folder / "adapter_model.safetensors")
        prefix = "base_model.model.model.layers.0.self_attn.q_proj"
        original = read_safetensors(hugging / "model.safetensors")
        merged_q = read_safetensors(out / "model.safetensors")
        name = "model.layers.0.self_attn.q_proj.weight"
        product = stored[f"{prefix}.lora_B.weight"] @ stored[f"{prefix}.lora_A.weight"]
        np.testing.assert_allclose(merged_q[name], original[name] + 2 * product, atol=1e-6)


def test_a_base_in_bfloat16(file: Path, tmp_path: Path) -> None:
    path = base("llama", "f32", tmp_path)
    options = LanguageOptions(context=16, batch=4, steps=6, lr=1e-2, warmup=1, precision="bf16")
    module, results = train_lora(path, [file], options, tmp_path / "run", rank=2, quiet=True)
    assert all(p.dtype is tilewright.float32 for p in module.parameters())
    ids = np.arange(24).tolist()
    with open_gguf(merge_into(path, tmp_path)) as merged:
        assert merged.tensors["blk.0.attn_q.weight"].type.name == "F32"
    tuned = logits_of(module, ids)
    exact = forward.logits(tmp_path / "merged.gguf", ids)
    assert np.abs(tuned - exact).max() < 0.03 * np.abs(exact).max()
    assert results["loss"] < 7


def merge_into(path: Path, folder: Path) -> Path:
    merge(path, folder / "run", folder / "merged.gguf")
    return folder / "merged.gguf"


def test_adapters_of_other_kinds_are_refused(tmp_path: Path) -> None:
    weights = read_decoder(base("llama", "f32", tmp_path))
    rows = np.ones((64, 2), np.float32)
    pair = {"blk.0.attn_q": (np.ones((2, 64), np.float32), rows)}
    save_adapters(tmp_path, pair, weights.config, rank=2, alpha=2.0)
    found, factor = load_adapters(tmp_path, weights)
    assert factor == 1.0
    np.testing.assert_array_equal(found["blk.0.attn_q"][1], rows)
    path = tmp_path / "adapter_config.json"
    text = path.read_text()
    path.write_text(text.replace('"use_dora": false', '"use_dora": true'))
    with pytest.raises(UnsupportedError, match="use_dora"):
        load_adapters(tmp_path, weights)
    path.write_text(text.replace('"r": 2', '"r": 3'))
    with pytest.raises(FormatError, match=r"has shape \(2, 64\), wanted \(3, 64\)"):
        load_adapters(tmp_path, weights)
    path.write_text("{")
    with pytest.raises(FormatError, match="does not describe an adapter"):
        load_adapters(tmp_path, weights)
    with pytest.raises(UnsupportedError, match="no matrix is called c_attn; there are"):
        target_names(weights, ["c_attn"])
    assert target_names(weights, ["attention"]) == [
        f"blk.0.attn_{kind}" for kind in ("q", "k", "v", "output")
    ]


def test_hugging_face_settings_that_are_refused() -> None:
    llama = {
        "model_type": "llama",
        "vocab_size": 9,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "max_position_embeddings": 8,
    }
    assert metadata_from_hugging_face(llama)["llama.rope.dimension_count"] == 4
    for change, message in [
        ({"model_type": "bert"}, "model_type 'bert' is not supported"),
        ({"hidden_act": "gelu"}, "activation"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope scaling 'llama3'"),
        ({"use_sliding_window": True}, "sliding-window"),
    ]:
        with pytest.raises(UnsupportedError, match=message):
            metadata_from_hugging_face(llama | change)
    with pytest.raises(FormatError, match="has no 'hidden_size'"):
        metadata_from_hugging_face({k: v for k, v in llama.items() if k != "hidden_size"})

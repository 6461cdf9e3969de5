"""The oracles checked against other people's numbers: a published text, ``gguf``, llama.cpp."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from tests.reference import builders, forward, peer
from tests.reference.quantize import Type, quantize

IDS = np.random.default_rng(1).integers(0, builders.LLAMA.n_vocab, 48).tolist()

# Relative RMS error of normal values after rounding to the type (a property of its bit count).
ROUNDING = {
    "f32": 0, "f16": 3e-4, "bf16": 2e-3, "q8_0": 6e-3, "q6_k": 2.2e-2, "q5_k": 4.2e-2,
    "q5_0": 5e-2, "q5_1": 4.2e-2, "q4_k": 8.5e-2, "q4_1": 8.5e-2, "q4_0": 0.1, "iq4_nl": 0.1,
    "q3_k": 0.2, "q2_k": 0.35,
}  # fmt: skip


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Relative RMS."""
    return float(np.sqrt(np.mean((got - wanted) ** 2) / np.mean(wanted**2)))


def test_a_trained_model_tells_its_published_story(assets: Path) -> None:
    """stories260K at temperature 0: the text in llama2.c's documentation, word for word."""
    text = (assets / "llama2c" / "stories260K.md").read_text()
    golden = text[text.index("Once upon a time") : text.index("Lily's mom said")]
    model = forward.read(assets / "gguf" / "stories260K-f32.gguf")
    tokens = model.metadata["tokenizer.ggml.tokens"]
    ids, story = [1], ""
    while len(story) < 120:
        ids.append(int(forward.logits(model, ids)[-1].argmax()))
        piece = tokens[ids[-1]].replace("\u2581", " ")
        story += chr(int(piece[3:5], 16)) if piece.startswith("<0x") else piece
    assert golden.startswith(story.strip())


@pytest.mark.parametrize("name", builders.TYPES)
def test_quantised_blocks_mean_the_values_they_were_made_from(name: str) -> None:
    values = np.random.default_rng(0).standard_normal((16, 512), np.float32)
    values[3] = 0.0
    data = quantize(values, Type[name.upper()])
    block, size = gguf.GGML_QUANT_SIZES[Type[name.upper()]]
    assert data.nbytes == values.size // block * size
    back = forward.dequantize(data, Type[name.upper()])
    assert np.isfinite(back).all()
    assert not back[3].any()
    assert relative_error(back, values) <= ROUNDING[name]


@pytest.mark.parametrize(
    ("shape", "recipe", "wanted"),
    [
        (builders.GPT2, "q4_k_m", {"token_embd": "Q4_K", "output": "Q6_K", "attn_qkv": "Q5_K"}),
        (builders.LLAMA, "q4_k_m", {"attn_q": "Q4_K", "ffn_down": "Q4_K", "output": "Q6_K"}),
        (builders.SHAPES["stories15m"], "q4_k_m", {"attn_q": "Q5_0", "token_embd": "Q8_0"}),
        (builders.LLAMA, "q5_0", {"attn_q": "Q5_0", "output": "Q5_0"}),
    ],
)
def test_recipes_follow_llama_cpp(
    shape: builders.Shape, recipe: str, wanted: dict[str, str]
) -> None:
    """The first layer of each; ``more bits`` begins with a later one in models this shallow."""
    plan = {t.name: t.kind.name for t in builders.plan_tensors(shape, recipe)}
    first = {n.removeprefix("blk.0.").removesuffix(".weight"): kind for n, kind in plan.items()}
    assert {name: first[name] for name in wanted} == wanted


def test_files_are_reproducible_and_seeds_differ(tmp_path: Path) -> None:
    one, same, other = (
        builders.write_llama(tmp_path / f"{i}.gguf", "q4_k", seed=seed).read_bytes()
        for i, seed in enumerate((0, 0, 1))
    )
    assert one == same != other
    assert [p.suffix for p in tmp_path.iterdir()] == [".gguf"] * 3


LLAMA_VARIANTS = {
    "grouped-query": {},
    "all heads": {"n_kv_heads": 8},
    "tied": {"tied": True},
    "rope base": {"rope_base": 500000.0},
    "rope factors": {"rope_factors": True},
    "rope linear": {"extra": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}},
    "rope yarn": {
        "extra": {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 64,
        }
    },
    "half-split pairing": {"arch": "qwen2"},
}


@pytest.mark.parametrize("variant", LLAMA_VARIANTS)
def test_llama_cpp_agrees_on_llama(variant: str, tmp_path: Path) -> None:
    """float32 rounding is all that lies between: about 6e-7 relative."""
    pytest.importorskip("llama_cpp")
    path = builders.write_llama(tmp_path / "m.gguf", **LLAMA_VARIANTS[variant])
    theirs = peer.logits(path, IDS, f32_cache=True)
    assert relative_error(theirs, forward.logits(path, IDS)) < 3e-6


@pytest.mark.parametrize("tied", [False, True])
def test_llama_cpp_agrees_on_gpt2(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp looks GELU up in a float16 table: 3.5e-4; 5e-5 with that in the oracle."""
    pytest.importorskip("llama_cpp")
    path = builders.write_gpt2(tmp_path / "m.gguf", tied=tied)
    theirs = peer.logits(path, IDS, f32_cache=True)
    assert relative_error(theirs, forward.logits(path, IDS)) < 1e-3
    exact = forward.gelu_tanh

    def tabulated(x: forward.F64) -> forward.F64:
        y = exact(x.astype(np.float16).astype(np.float64)).astype(np.float16).astype(np.float64)
        return np.where(x <= -10, 0.0, np.where(x >= 10, x, y))

    monkeypatch.setattr(forward, "gelu_tanh", tabulated)
    assert relative_error(theirs, forward.logits(path, IDS)) < 1e-4

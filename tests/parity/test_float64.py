"""Logits beside the float64 oracle: architectures, RoPE variants, and every tensor type.

Float32 weights leave only float32 rounding, 1e-4 is generous. Other bounds are what 8-bit
activations (one scale for 32 values) cost these networks; the sharper question, whether llama.cpp
does better on the same file, is asked in ``test_llamacpp.py``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.reference import builders, forward
from tests.reference.errors import errors
from tests.reference.test_reference import LLAMA_VARIANTS

import tilewright

IDS = np.random.default_rng(3).integers(0, builders.LLAMA.n_vocab, 70).tolist()
F32_TOLERANCE = 1e-4
BOUND = {"f32": F32_TOLERANCE, "f16": 2e-3, "bf16": 1.2e-2}
INT8_BOUND = 5e-2


@pytest.mark.parametrize("variant", LLAMA_VARIANTS)
def test_llama_variants(variant: str, tmp_path: Path) -> None:
    path = builders.write_llama(tmp_path / "m.gguf", **LLAMA_VARIANTS[variant])
    difference = errors(tilewright.load(path).logits(IDS), forward.logits(path, IDS))
    assert max(difference.rms, difference.max) < F32_TOLERANCE, difference


@pytest.mark.parametrize("tied", [False, True])
def test_gpt2(tied: bool, tmp_path: Path) -> None:
    path = builders.write_gpt2(tmp_path / "m.gguf", tied=tied)
    difference = errors(tilewright.load(path).logits(IDS), forward.logits(path, IDS))
    assert max(difference.rms, difference.max) < F32_TOLERANCE, difference


@pytest.mark.parametrize("recipe", [*builders.TYPES, *builders.MIXED])
@pytest.mark.parametrize("write", [builders.write_llama, builders.write_gpt2])
def test_every_tensor_type(write: builders.Write, recipe: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", recipe)
    difference = errors(tilewright.load(path).logits(IDS), forward.logits(path, IDS))
    assert max(difference.rms, difference.max) < BOUND.get(recipe, INT8_BOUND), difference


def test_odd_sizes(tmp_path: Path) -> None:
    """Sizes that no tile divides: 3 heads of 32, an odd vocabulary, 37-row remainders."""
    sizes = {"n_embd": 96, "n_heads": 3, "n_kv_heads": 1, "n_ff": 160, "n_vocab": 301}
    for recipe in ("f32", "f16", "q8_0", "q4_0"):
        path = builders.write_llama(tmp_path / f"{recipe}.gguf", recipe, **sizes)
        ids = [i % 301 for i in IDS]
        difference = errors(tilewright.load(path).logits(ids), forward.logits(path, ids))
        assert difference.rms < BOUND.get(recipe, INT8_BOUND), f"{recipe}: {difference}"


def test_a_trained_model(assets: Path) -> None:
    """Real weights have outliers that random ones lack."""
    for name, bound in (("f32", F32_TOLERANCE), ("q8_0", INT8_BOUND), ("q4_0", INT8_BOUND)):
        path = assets / "gguf" / f"stories260K-{name}.gguf"
        ids = [1, *IDS]
        difference = errors(tilewright.load(path).logits(ids), forward.logits(path, ids))
        assert max(difference.rms, difference.max) < bound, f"{name}: {difference}"

"""Logits beside llama.cpp on the same files, both judged by the float64 oracle.

llama.cpp rounds activations to 8 bits for quantised weights, to float16 or bfloat16 for such
weights, and keeps keys and values in float16; what that costs on a file is what we may cost at
most. The two roundings are independent, so equal quality shows as a ratio that scatters around
one: the slack covers that scatter, which is wider for a maximum than for a mean.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.reference import builders, forward, peer
from tests.reference.errors import errors

import tilewright

pytest.importorskip("llama_cpp")

IDS = np.random.default_rng(5).integers(0, builders.LLAMA.n_vocab, 96).tolist()
RMS_SLACK, MAX_SLACK = 1.05, 1.25


@pytest.mark.parametrize("recipe", [*builders.TYPES, *builders.MIXED])
@pytest.mark.parametrize("write", [builders.write_llama, builders.write_gpt2])
def test_within_the_error_of_llama_cpp(write: builders.Write, recipe: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", recipe)
    exact = forward.logits(path, IDS)
    ours = errors(tilewright.load(path, threads=2).logits(IDS), exact)
    theirs = errors(peer.logits(path, IDS), exact)
    assert ours.rms <= theirs.rms * RMS_SLACK, f"ours {ours}; llama.cpp {theirs}"
    assert ours.max <= theirs.max * MAX_SLACK, f"ours {ours}; llama.cpp {theirs}"


def test_float32_agrees_with_llama_cpp_directly(tmp_path: Path) -> None:
    """No oracle between: the same file, float32 throughout, within 1e-4."""
    path = builders.write_llama(tmp_path / "m.gguf")
    theirs = peer.logits(path, IDS, f32_cache=True).astype(np.float64)
    difference = errors(tilewright.load(path).logits(IDS), theirs)
    assert max(difference.rms, difference.max) < 1e-4, difference

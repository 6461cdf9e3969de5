"""Damaged models: ``tilewright.load`` raises one of ours, or loads; nothing else ever escapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.reference import builders

import tilewright
from tilewright.errors import TilewrightError


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("hostile") / "m.gguf"
    builders.write_llama(path, "q8_0", n_embd=64, n_heads=4, n_kv_heads=2, n_ff=96, n_layers=1)
    return path.read_bytes()


def load(data: bytes, path: Path) -> str:
    path.write_bytes(data)
    try:
        model = tilewright.load(path, threads=1, context=64, max_sequences=1)
    except TilewrightError as error:
        return type(error).__name__
    model.tokenizer.encode("some text")
    return "loaded"


def test_bit_flips_in_the_header(model_bytes: bytes, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    header = model_bytes.index(b"output_norm.weight") + 2000
    seen: dict[str, int] = {}
    for _ in range(250):
        data = bytearray(model_bytes)
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(0, header))] ^= 1 << int(rng.integers(0, 8))
        outcome = load(bytes(data), tmp_path / "m.gguf")
        seen[outcome] = seen.get(outcome, 0) + 1
    assert seen.get("FormatError", 0) > 50, seen
    assert seen.get("loaded", 0) > 10, seen


def test_random_bytes_in_metadata_values(model_bytes: bytes, tmp_path: Path) -> None:
    """Whole little-endian words replaced where integers and floats of the configuration stand."""
    words = [0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x7F800000, 0x7FC00000, 0x80000000, 3, 1 << 20]
    keys = [
        b"llama.block_count",
        b"llama.embedding_length",
        b"llama.attention.head_count",
        b"llama.attention.head_count_kv",
        b"llama.context_length",
        b"llama.feed_forward_length",
        b"llama.rope.dimension_count",
        b"llama.attention.layer_norm_rms_epsilon",
        b"tokenizer.ggml.bos_token_id",
        b"tokenizer.ggml.eos_token_id",
    ]
    for key in keys:
        if key not in model_bytes:
            continue
        at = model_bytes.index(key) + len(key) + 4
        for word in words:
            data = bytearray(model_bytes)
            data[at : at + 4] = int(word).to_bytes(4, "little")
            load(bytes(data), tmp_path / "m.gguf")


def test_weights_of_nan_and_infinity_load_and_say_so_when_sampled(
    model_bytes: bytes, tmp_path: Path
) -> None:
    data = bytearray(model_bytes)
    data[-4096:] = b"\xff" * 4096
    path = tmp_path / "m.gguf"
    assert load(bytes(data), path) == "loaded"
    model = tilewright.load(path, threads=1, context=64)
    with pytest.raises(TilewrightError, match="NaN"):
        list(model.generate([1, 2], 3, temperature=0))

from __future__ import annotations

import gguf
import numpy as np
import pytest
from kernel_calls import buffer, file_rows, interpret, run

from tilewright.dtypes import f32
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.ops.dequant import dequantize_rows, lookup_calls
from tilewright.ops.embedding import embedding_calls, embedding_reference
from tilewright.ops.packed import raw_rows
from tilewright.runtime.buffers import empty

TYPES = [
    "F32",
    "F16",
    "BF16",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
]


def oracle(raw: np.ndarray, type: str) -> np.ndarray:
    return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[type])


@pytest.mark.parametrize("type", TYPES)
def test_values_are_ggmls_bit_for_bit(type: str) -> None:
    raw = file_rows(np.random.default_rng(1), type, 40, 1024)
    assert dequantize_rows(raw, type, 1024).tobytes() == oracle(raw, type).tobytes()


@pytest.mark.parametrize("type", [t for t in TYPES if t not in ("F32", "F16", "BF16")])
def test_values_with_any_bits(type: str) -> None:
    """Random bytes everywhere: infinite and NaN scales too."""
    raw = file_rows(np.random.default_rng(2), type, 64, 512)
    raw[:] = np.random.default_rng(3).integers(0, 256, raw.shape, dtype=np.uint8)
    got = dequantize_rows(raw, type, 512)
    with np.errstate(all="ignore"):
        want = oracle(raw, type)
    assert np.array_equal(got, want, equal_nan=True)


@pytest.mark.parametrize("type", TYPES)
def test_interpreter_agrees(type: str) -> None:
    raw = file_rows(np.random.default_rng(4), type, 2, 256)
    y = empty(f32, (1, 256))
    ids = buffer(np.array([1], np.int32))
    interpret(lookup_calls(ids, buffer(raw), type, y))
    assert y.numpy().tobytes() == oracle(raw[1:], type).tobytes()


@pytest.mark.parametrize("type", ["F32", "BF16", "Q8_0", "Q4_K"])
@pytest.mark.parametrize("tokens", [0, 1, 9])
def test_embedding(type: str, tokens: int) -> None:
    rng = np.random.default_rng(5)
    raw = file_rows(rng, type, 50, 768)
    table = raw_rows([(50, lambda a, b: raw[a:b])], type, 768)
    ids = rng.integers(0, 50, tokens).astype(np.int32)
    y = empty(f32, (tokens, 768), pad_rows=True)
    run(embedding_calls(buffer(ids), table, y))
    assert np.array_equal(y.numpy(), embedding_reference(ids, oracle(raw, type)))
    assert np.array_equal(table.numpy(), oracle(raw, type))


@pytest.mark.parametrize("k", [1, 31, 65, 300])
def test_plain_tables_of_any_width(k: int) -> None:
    values = np.random.default_rng(k).standard_normal((7, k)).astype(np.float32)
    got = dequantize_rows(values.view(np.uint8), "F32", k)
    assert got.tobytes() == values.tobytes()


def test_refuses_what_does_not_fit() -> None:
    ids = buffer(np.zeros(2, np.int32))
    raw = buffer(np.zeros((3, 34), np.uint8))
    with pytest.raises(ShapeError, match="34 bytes of Q8_0"):
        lookup_calls(ids, raw, "Q8_0", empty(f32, (2, 64)))
    with pytest.raises(UnsupportedError, match="TQ1_0"):
        lookup_calls(ids, raw, "TQ1_0", empty(f32, (2, 32)))

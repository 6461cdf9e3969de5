"""Quantised types against the gguf package (bit for bit) and against the theory of rounding."""

from __future__ import annotations

import ctypes

import gguf
import numpy as np
import pytest

from tilewright.errors import ShapeError, UnsupportedError
from tilewright.formats.gguf import (
    GGMLType,
    can_dequantize,
    can_quantize,
    dequantize,
    quantize,
    quants,
)

DEQUANTIZED = sorted(quants.formats(), key=int)
QUANTIZED = [type_ for type_ in DEQUANTIZED if can_quantize(type_)]
UNSUPPORTED = [type_ for type_ in GGMLType if type_ not in DEQUANTIZED]

# Types that the gguf package reads or writes; the others have their own test below.
PEER_DEQUANTIZES = [
    type_
    for type_ in DEQUANTIZED
    if type_.name not in ("F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K")
]
PEER_QUANTIZES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]

# Byte offsets of the float16 fields of a block, to make scales finite where a test wants that.
F16_FIELDS = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,),
    "IQ4_XS": (0,), "TQ1_0": (52,), "TQ2_0": (64,), "F16": (0,),
}  # fmt: skip


def random_blocks(type_: GGMLType, rows: int, seed: int, scales: str) -> np.ndarray:
    """uint8 (rows, 3 blocks). ``scales``: any bits, finite values, or subnormal ones."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, 3, type_.type_size), dtype=np.uint8)
    for at in F16_FIELDS.get(type_.name, ()) if scales != "any" else ():
        exponent = 0 if scales == "subnormal" else 30
        bits = rng.integers(0, (exponent << 10) + 1024, (rows, 3), dtype=np.uint16)
        bits |= rng.integers(0, 2, (rows, 3), dtype=np.uint16) << 15
        raw[:, :, at : at + 2] = bits.view(np.uint8).reshape(rows, 3, 2)
    return raw.reshape(rows, -1)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bit for bit, except that any NaN equals any NaN."""
    equal = a.view(np.uint32) == b.view(np.uint32)
    return bool((equal | (np.isnan(a) & np.isnan(b))).all())


@pytest.mark.parametrize("scales", ["finite", "subnormal", "any"])
@pytest.mark.parametrize("type_", PEER_DEQUANTIZES, ids=lambda t: t.name)
def test_dequantize_is_bit_exact(type_: GGMLType, scales: str) -> None:
    raw = random_blocks(type_, 200, seed=int(type_), scales=scales)
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[type_.name])
    got = dequantize(raw, type_)
    assert got.dtype == np.float32
    assert got.shape == (200, 3 * type_.block_size)
    assert same_bits(got, wanted.astype(np.float32))
    if scales != "any" and type_.name in F16_FIELDS:
        assert np.isfinite(got).all()
        assert np.count_nonzero(got) > got.size // 5


@pytest.mark.parametrize("dtype", ["f8", "i1", "i2", "i4", "i8"])
def test_dequantize_plain_numbers(dtype: str) -> None:
    type_ = {"f8": GGMLType.F64, "i1": GGMLType.I8, "i2": GGMLType.I16, "i4": GGMLType.I32}.get(
        dtype, GGMLType.I64
    )
    values = np.arange(-50, 50).astype(dtype).reshape(4, 25)
    got = dequantize(values.view(np.uint8).reshape(4, -1), type_)
    assert np.array_equal(got, values.astype(np.float32))


def test_dequantize_q8_1_and_q8_k() -> None:
    """The layouts for activations: only the scale and the codes give the value."""
    codes = np.arange(-16, 16, dtype=np.int8)
    q8_1 = np.concatenate(
        [np.float16([0.5, 99.0]).view(np.uint8), codes.view(np.uint8)]
    )  # { d, s, qs }
    assert np.array_equal(dequantize(q8_1, GGMLType.Q8_1), codes * np.float32(0.5))
    codes = np.arange(-128, 128, dtype=np.int16).astype(np.int8)
    sums = np.full(16, 7, np.int16)
    q8_k = np.concatenate(
        [np.float32([0.25]).view(np.uint8), codes.view(np.uint8), sums.view(np.uint8)]
    )
    assert np.array_equal(dequantize(q8_k, GGMLType.Q8_K), codes * np.float32(0.25))


def test_dequantize_keeps_the_axes_and_writes_into_out() -> None:
    raw = random_blocks(GGMLType.Q4_K, 6, seed=1, scales="finite").reshape(2, 3, -1)
    wanted = dequantize(raw.reshape(6, -1), GGMLType.Q4_K)
    got = dequantize(raw, GGMLType.Q4_K)
    assert got.shape == (2, 3, 768)
    assert np.array_equal(got.reshape(6, -1), wanted)
    out = np.empty((6, 768), np.float32)
    assert np.shares_memory(dequantize(raw, GGMLType.Q4_K, out=out), out)
    assert np.array_equal(out, wanted)


@pytest.mark.parametrize("blocks", [1, 2047, 2048, 2049, 5000])
def test_chunks_join_without_seams(blocks: int) -> None:
    """More blocks than are converted at a time."""
    values = np.random.default_rng(0).standard_normal(blocks * 32).astype(np.float32)
    raw = quantize(values, GGMLType.Q8_0)
    assert np.array_equal(raw, gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0))
    wanted = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(dequantize(raw, GGMLType.Q8_0), wanted)


@pytest.mark.parametrize("type_", UNSUPPORTED, ids=lambda t: t.name)
def test_types_without_a_dequantiser_are_named(type_: GGMLType) -> None:
    raw = np.zeros((2, type_.type_size), np.uint8)
    with pytest.raises(UnsupportedError, match=rf"\b{type_.name}\b"):
        dequantize(raw, type_)
    assert not can_dequantize(type_)
    assert not can_quantize(type_)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="multiple of 34"):
        dequantize(np.zeros((2, 35), np.uint8), GGMLType.Q8_0)
    with pytest.raises(ShapeError, match="uint8"):
        dequantize(np.zeros((2, 34), np.int8), GGMLType.Q8_0)
    with pytest.raises(ShapeError, match=r"float32 of shape \(2, 32\)"):
        dequantize(np.zeros((2, 34), np.uint8), GGMLType.Q8_0, out=np.empty(63, np.float32))
    with pytest.raises(ShapeError, match="multiple of 256"):
        quantize(np.zeros((2, 128), np.float32), GGMLType.Q4_K)
    with pytest.raises(UnsupportedError, match="IQ2_XS"):
        quantize(np.zeros((2, 256), np.float32), GGMLType.IQ2_XS)


def odd_values() -> np.ndarray:
    """float32 (64, 768): normal rows, and rows that trip a careless quantiser."""
    values = np.random.default_rng(7).standard_normal((64, 768)).astype(np.float32)
    values[0] = 0
    values[1] = 1
    values[2] = -3
    values[3, :300] = 0
    values[4] = np.abs(values[4])
    values[5] = -np.abs(values[5])
    values[6] *= 1e-7
    values[7] *= 1e3
    values[8, ::2] = 0
    values[9] = np.rint(values[9] * 4) / 8  # ties in rounding
    values[10] *= 1e-30  # scales that float16 cannot hold
    return values


@pytest.mark.parametrize("name", PEER_QUANTIZES)
def test_quantize_is_bit_exact(name: str) -> None:
    values = odd_values()
    wanted = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
    assert np.array_equal(quantize(values, GGMLType[name]), wanted.view(np.uint8))


# Root mean square error on normal values, divided by their standard deviation. The bounds are what
# llama.cpp's own quantisers reach, within 2 % (see test_errors_are_as_small_as_ggmls): 0.0718 for
# Q4_K, 0.0177 for Q6_K, ...
NORMAL_RMSE = {
    "F32": 0.0, "F64": 0.0, "F16": 2.1e-4, "BF16": 1.7e-3, "Q4_0": 0.0868, "Q4_1": 0.0790,
    "Q5_0": 0.0431, "Q5_1": 0.0383, "Q8_0": 0.0054, "Q2_K": 0.282, "Q3_K": 0.1545,
    "Q4_K": 0.0726, "Q5_K": 0.0363, "Q6_K": 0.0180, "IQ4_NL": 0.0772,
}  # fmt: skip


@pytest.mark.parametrize("type_", QUANTIZED, ids=lambda t: t.name)
def test_round_trip_error(type_: GGMLType) -> None:
    values = np.random.default_rng(3).standard_normal((256, 1024)).astype(np.float32)
    error = dequantize(quantize(values, type_), type_) - values
    assert np.sqrt(np.mean(error**2)) <= NORMAL_RMSE[type_.name]
    assert abs(error.mean()) < 0.02 * NORMAL_RMSE[type_.name] + 1e-6


@pytest.mark.parametrize("type_", QUANTIZED, ids=lambda t: t.name)
def test_round_trip_of_odd_rows(type_: GGMLType) -> None:
    values = odd_values()
    restored = dequantize(quantize(values, type_), type_)
    assert np.isfinite(restored).all()
    assert not restored[0].any()
    peak = np.abs(values).max(axis=1)
    # The worst of a row: a step of the coarsest type is a third of the range. Rows as small as
    # float16's subnormal scales may vanish.
    worst = np.abs(restored - values).max(axis=1)
    assert (worst <= 0.75 * peak + 1e-6).all()
    assert np.allclose(restored[1], 1, rtol=0.02)
    assert np.allclose(restored[2], -3, rtol=0.02)


@pytest.mark.parametrize("type_", [t for t in QUANTIZED if t.is_quantized], ids=lambda t: t.name)
def test_values_on_the_grid_come_back_unchanged(type_: GGMLType) -> None:
    """Quantising what was dequantised loses next to nothing: the grid was found again."""
    values = np.random.default_rng(5).standard_normal((64, 1024)).astype(np.float32)
    once = dequantize(quantize(values, type_), type_)
    twice = dequantize(quantize(once, type_), type_)
    rmse = np.sqrt(np.mean((twice - once) ** 2))
    assert rmse <= 0.3 * NORMAL_RMSE[type_.name]


@pytest.mark.parametrize(
    "type_", [t for t in QUANTIZED if t.name not in ("F64", "F32")], ids=lambda t: t.name
)
def test_errors_are_as_small_as_ggmls(ggml: ctypes.CDLL, type_: GGMLType) -> None:
    """ggml's own quantiser (no importance matrix) does at most 2 % better on the same values."""
    values = np.random.default_rng(11).standard_normal((64, 1024)).astype(np.float32)
    raw = np.empty((64, type_.row_nbytes(1024)), np.uint8)
    source, target = values.ctypes.data, raw.ctypes.data
    size = ggml.ggml_quantize_chunk(int(type_), source, target, 0, 64, 1024, None)
    assert size == raw.nbytes
    theirs = np.sqrt(np.mean((dequantize(raw, type_) - values) ** 2))
    ours = np.sqrt(np.mean((dequantize(quantize(values, type_), type_) - values) ** 2))
    assert ours <= 1.02 * theirs

from __future__ import annotations

import numpy as np
import pytest
from kernel_calls import buffer, file_rows, interpret, packed, run

from tilewright.dtypes import f32, u8
from tilewright.errors import ShapeError
from tilewright.ops.matmul import matmul_calls
from tilewright.ops.packed import PackedMatrix
from tilewright.ops.quantized import FORMATS, QuantizedRows, quantize_calls, quantize_reference
from tilewright.runtime.buffers import empty

TYPES = ("Q8_0", "Q4_0", "Q4_K", "Q6_K")


def quantized(x: np.ndarray, by=run) -> QuantizedRows:
    out = QuantizedRows(empty(u8, (x.shape[0], QuantizedRows.row_bytes(x.shape[1]))), x.shape[1])
    by(quantize_calls(buffer(x, pad=16), out))
    return out


def same_as_reference(x: np.ndarray, out: QuantizedRows) -> None:
    q, d, s, h = quantize_reference(x)
    assert out.q.numpy().tobytes() == q.tobytes()
    assert out.d.numpy().tobytes() == d.tobytes()
    assert out.s.numpy().tobytes() == s.tobytes()
    assert out.h.numpy().tobytes() == h.tobytes()


@pytest.mark.parametrize("tokens", [0, 1, 2, 33])
@pytest.mark.parametrize("k", [32, 64, 288, 2048])
def test_quantises_as_the_reference(tokens: int, k: int) -> None:
    x = np.random.default_rng(k).standard_normal((tokens, k)).astype(np.float32)
    same_as_reference(x, quantized(x))


def test_quantises_extreme_rows() -> None:
    x = np.zeros((6, 64), np.float32)
    x[1] = 1e-38
    x[2] = 3e38
    x[3, ::2] = -1e30
    x[4, 5] = 1e-20
    x[5] = np.linspace(-127, 127, 64) + 0.5
    same_as_reference(x, quantized(x))


def test_quantises_when_interpreted() -> None:
    x = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    same_as_reference(x, quantized(x, interpret))


def test_a_nan_is_not_lost() -> None:
    x = np.ones((1, 64), np.float32)
    x[0, 3] = np.nan
    values = quantized(x).numpy()
    assert np.isnan(values[0, :32]).all()
    assert np.isfinite(values[0, 32:]).all()


def test_rows_are_aligned_and_off_the_cache_sets() -> None:
    for k in range(32, 12000, 32):
        size = QuantizedRows.row_bytes(k)
        assert size % 64 == 0
        assert size % 1024
        assert size >= k + 12 * k // 32
    with pytest.raises(ShapeError, match="100"):
        QuantizedRows.row_bytes(100)


def exact(matrix: PackedMatrix, x: QuantizedRows) -> np.ndarray:
    """The product of what is stored, in float64."""
    return x.numpy().astype(np.float64) @ matrix.numpy().astype(np.float64).T


def product(matrix: PackedMatrix, x: QuantizedRows, by=run, **more) -> np.ndarray:
    y = empty(f32, (x.rows, matrix.n), pad_rows=True)
    y.numpy()[...] = np.nan
    by(matmul_calls(matrix, x, y, **more))
    return y.numpy().copy()


def close(got: np.ndarray, want: np.ndarray, x: QuantizedRows, matrix: PackedMatrix) -> None:
    """Within the rounding of one f32 accumulator per output."""
    size = np.abs(x.numpy()).astype(np.float64) @ np.abs(matrix.numpy()).astype(np.float64).T
    bound = size * 2.0**-23 * (matrix.k / 8 + 8)
    assert (np.abs(got - want) <= bound + 1e-30).all()


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 7, 8, 9, 33])
@pytest.mark.parametrize(("n", "k"), [(100, 1280)])
def test_product(type: str, tokens: int, n: int, k: int) -> None:
    rng = np.random.default_rng(tokens + n)
    matrix = packed(file_rows(rng, type, n, k), type, k)
    x = quantized(rng.standard_normal((tokens, k)).astype(np.float32) * 3)
    got = product(matrix, x)
    close(got, exact(matrix, x), x, matrix)


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("k", [32, 64, 288])
def test_product_with_short_rows(type: str, k: int) -> None:
    rng = np.random.default_rng(k)
    matrix = packed(file_rows(rng, type, 33, k), type, k)
    for tokens in (1, 5):
        x = quantized(rng.standard_normal((tokens, k)).astype(np.float32))
        close(product(matrix, x), exact(matrix, x), x, matrix)


@pytest.mark.parametrize("type", TYPES)
def test_same_bits_for_any_number_of_tokens(type: str) -> None:
    rng = np.random.default_rng(7)
    k = 2304 if type in ("Q8_0", "Q4_0") else 2560
    matrix = packed(file_rows(rng, type, 70, k), type, k)
    rows = rng.standard_normal((29, k)).astype(np.float32)
    whole = product(matrix, quantized(rows))
    for size in (1, 2, 5, 8, 13):
        for start in range(0, 29, size):
            part = product(matrix, quantized(rows[start : start + size]))
            assert part.tobytes() == whole[start : start + size].tobytes(), (size, start)


@pytest.mark.parametrize("type", TYPES)
def test_extreme_quants_do_not_overflow(type: str) -> None:
    """All bits set or clear in weights, activations at +-127."""
    rng = np.random.default_rng(3)
    raw = file_rows(rng, type, 64, 512)
    values = np.where(np.arange(64) % 2 == 0, np.uint8(0xFF), np.uint8(0))[:, None]
    scales = {"Q8_0": (34, (0, 1)), "Q4_0": (18, (0, 1)), "Q4_K": (144, range(4))}
    nbytes, keep = scales.get(type, (210, (208, 209)))
    blocks = raw.reshape(64, -1, nbytes)
    mask = np.ones(nbytes, bool)
    mask[list(keep)] = False
    blocks[:, :, mask] = values[:, :, None]
    matrix = packed(raw, type, 512)
    x = quantized(np.where(np.arange(3)[:, None] == 1, -5.0, 5.0) * np.ones((3, 512), np.float32))
    close(product(matrix, x), exact(matrix, x), x, matrix)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("tokens", [1, 2])
def test_interpreter_agrees_bit_for_bit(type: str, tokens: int) -> None:
    rng = np.random.default_rng(5)
    matrix = packed(file_rows(rng, type, 3, 256), type, 256)
    x = quantized(rng.standard_normal((tokens, 256)).astype(np.float32))
    assert product(matrix, x, interpret).tobytes() == product(matrix, x).tobytes()


def add_and_scale(acc, i, j, extras):
    residual, bias = extras
    rows, columns = acc.shape
    return acc + residual[i : i + rows, j : j + columns] + bias[j : j + columns]


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("tokens", [1, 2, 17])
def test_epilogue_sees_the_whole_sum(type: str, tokens: int) -> None:
    rng = np.random.default_rng(11)
    matrix = packed(file_rows(rng, type, 50, 1536), type, 1536)
    x = quantized(rng.standard_normal((tokens, 1536)).astype(np.float32))
    residual = rng.standard_normal((tokens, 50)).astype(np.float32)
    bias = rng.standard_normal(50).astype(np.float32)
    plain = product(matrix, x)
    extras = (buffer(residual, pad=14), buffer(bias))
    got = product(matrix, x, epilogue=add_and_scale, extras=extras)
    assert got.tobytes() == (plain + residual + bias).tobytes()


def test_refuses_what_does_not_fit() -> None:
    rng = np.random.default_rng(0)
    matrix = packed(file_rows(rng, "Q8_0", 32, 64), "Q8_0", 64)
    x = quantized(np.ones((2, 64), np.float32))
    with pytest.raises(ShapeError, match=r"wants y \(2, 32\), got \(2, 31\)"):
        matmul_calls(matrix, x, empty(f32, (2, 31)))
    with pytest.raises(ShapeError, match="QuantizedRows"):
        matmul_calls(matrix, empty(f32, (2, 64)), empty(f32, (2, 32)))
    assert set(FORMATS) == {t.lower() for t in TYPES}

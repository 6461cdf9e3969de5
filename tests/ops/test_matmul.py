from __future__ import annotations

import numpy as np
import pytest
from kernel_calls import buffer, file_rows, interpret, packed, run

from tilewright.compiler.realize import realize
from tilewright.dtypes import f32
from tilewright.errors import ShapeError
from tilewright.graph import data_node
from tilewright.ops.gemm import bmm
from tilewright.ops.matmul import matmul_calls, matmul_reference
from tilewright.ops.packed import PackedMatrix
from tilewright.runtime.buffers import empty, from_array

TYPES = ("F32", "F16", "BF16", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "Q2_K", "Q3_K", "Q5_K")


def product(matrix: PackedMatrix, x: np.ndarray, by=run, **more) -> np.ndarray:
    y = empty(f32, (x.shape[0], matrix.n), pad_rows=True)
    y.numpy()[...] = np.nan
    by(matmul_calls(matrix, buffer(x, pad=16), y, **more))
    return y.numpy().copy()


def in_order(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """One accumulator per output, one fused multiply-add per k, k ascending: bit for bit.

    Products of two f32 are exact in float64, and so is their sum with an f32 up to a double
    rounding that is too rare to meet here.
    """
    acc = np.zeros((x.shape[0], w.shape[0]), np.float32)
    for k in range(x.shape[1]):
        wide = x[:, k, None].astype(np.float64) * w[None, :, k].astype(np.float64)
        acc = (wide + acc.astype(np.float64)).astype(np.float32)
    return acc


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("tokens", [1, 33])
def test_product(type: str, tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    matrix = packed(file_rows(rng, type, 70, 768), type, 768)
    x = rng.standard_normal((tokens, 768)).astype(np.float32)
    assert product(matrix, x).tobytes() == in_order(x, matrix.numpy()).tobytes()


@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q5_1"])
@pytest.mark.parametrize("tokens", [0, 2, 3, 7, 8, 9, 141])
def test_token_counts(type: str, tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    matrix = packed(file_rows(rng, type, 70, 768), type, 768)
    x = rng.standard_normal((tokens, 768)).astype(np.float32)
    assert product(matrix, x).tobytes() == in_order(x, matrix.numpy()).tobytes()


@pytest.mark.parametrize("k", [1, 2, 31, 64, 172, 257, 288, 521, 1009])
@pytest.mark.parametrize("tokens", [1, 9, 130])
def test_any_width(k: int, tokens: int) -> None:
    rng = np.random.default_rng(k)
    matrix = packed(file_rows(rng, "F16", 33, k), "F16", k)
    x = rng.standard_normal((tokens, k)).astype(np.float32)
    assert product(matrix, x).tobytes() == in_order(x, matrix.numpy()).tobytes()


@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q5_0"])
@pytest.mark.parametrize("tokens", [1, 2])
def test_interpreter_agrees_bit_for_bit(type: str, tokens: int) -> None:
    rng = np.random.default_rng(5)
    matrix = packed(file_rows(rng, type, 3, 32), type, 32)
    x = rng.standard_normal((tokens, 32)).astype(np.float32)
    assert product(matrix, x, interpret).tobytes() == product(matrix, x).tobytes()


def test_special_values_pass_through() -> None:
    w = np.ones((40, 64), np.float32)
    w[3, 5], w[4, 6], w[5, 7] = np.inf, np.nan, 1e-40
    matrix = packed(w.view(np.uint8), "F32", 64)
    x = np.zeros((9, 64), np.float32)
    x[1, 5] = x[2, 6] = 1
    x[3, 7] = 1
    for tokens in (1, 4, 9):
        got = product(matrix, x[:tokens])
        want = np.full((tokens, 40), 0.0, np.float32)
        want[:, 3] = want[:, 4] = np.nan
        for t in range(1, min(tokens, 4)):
            want[t] = 1
            want[t, 3], want[t, 4] = np.inf if t == 1 else np.nan, np.nan
        if tokens > 3:
            want[3, 5] = 1e-40
        assert np.array_equal(got, want, equal_nan=True)


def gelu_and_add(acc, i, j, extras):
    bias, residual = extras
    rows, columns = acc.shape
    return (acc + bias[j : j + columns]) * 0.5 + residual[i : i + rows, j : j + columns]


@pytest.mark.parametrize("type", ["F32", "F16", "Q5_K"])
@pytest.mark.parametrize("tokens", [1, 3, 16, 130])
def test_epilogue_sees_the_whole_sum(type: str, tokens: int) -> None:
    rng = np.random.default_rng(11)
    matrix = packed(file_rows(rng, type, 50, 1024), type, 1024)
    x = rng.standard_normal((tokens, 1024)).astype(np.float32)
    residual = rng.standard_normal((tokens, 50)).astype(np.float32)
    bias = rng.standard_normal(50).astype(np.float32)
    extras = (buffer(bias), buffer(residual, pad=14))
    got = product(matrix, x, epilogue=gelu_and_add, extras=extras)
    want = (product(matrix, x) + bias) * np.float32(0.5) + residual
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize(
    ("m", "k", "n"),
    [(1, 1, 1), (8, 128, 32), (7, 5, 3), (33, 130, 65), (260, 300, 40), (0, 4, 4), (4, 0, 4)],
)
def test_two_arrays(m: int, k: int, n: int) -> None:
    rng = np.random.default_rng(m)
    a = rng.standard_normal((m, k)).astype(np.float32)
    b = rng.standard_normal((k, n)).astype(np.float32)
    assert of_arrays(a, b).tobytes() == in_order(a, b.T).tobytes()


def test_two_arrays_with_strides() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((70, 40)).astype(np.float32)
    b = rng.standard_normal((80, 90)).astype(np.float32)
    want = in_order(a.T[::2, ::-1], b[:70, ::3].T)
    assert of_arrays(a.T[::2, ::-1], b[:70, ::3]).tobytes() == want.tobytes()


def of_arrays(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product of two arrays (op ``bmm``), which keeps the same contract."""
    node = bmm(data_node(from_array(a)), data_node(from_array(b)))
    return realize([node])[0].numpy()


def test_two_arrays_refused() -> None:
    a = np.zeros((2, 3), np.float32)
    with pytest.raises(ShapeError, match=r"f32\(2, 3\) and f32\(2, 3\)"):
        of_arrays(a, a)
    with pytest.raises(ShapeError, match="f64"):
        of_arrays(a.astype(np.float64), a.T)


def test_reference_is_a_plain_product() -> None:
    x = np.array([[1, 2], [3, 4]], np.float32)
    w = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    assert matmul_reference(x, w).tolist() == [[1, 2, 3], [3, 4, 7]]

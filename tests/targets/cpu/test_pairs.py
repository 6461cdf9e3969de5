"""``dot2``, ``pack2``, ``prefetch`` and transposed blocks: the same on every machine and by the
interpreter, and what their definitions say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright import kernel
from tilewright.dtypes import from_float32, to_float32
from tilewright.errors import KernelError
from tilewright.lang import Array, Const, dot2, pack2, prefetch, program_id

CPUS = pytest.mark.parametrize("cpu", ["", "haswell", "nehalem"])
SMALLEST = np.float32(2.0**-126)  # of the normal range


@kernel
def add_products(c: Array, a: Array, b: Array, y: Array) -> None:
    i = program_id(0) * 16
    y[i : i + 16] = dot2(c[i : i + 16], a[i : i + 16], b[i : i + 16])


@kernel
def make_pairs(first: Array, second: Array, y: Array) -> None:
    i = program_id(0) * 16
    y[i : i + 16] = pack2(first[i : i + 16], second[i : i + 16])


@kernel
def transpose(x: Array, y: Array, R: Const, C: Const) -> None:
    prefetch(x[5:9, 100:120])  # it may lie outside the array
    prefetch(y[0:C, 0:R], write=True, level=2)
    y[0:C, 0:R] = x[0:R, 0:C].T


def words(rng: np.random.Generator, exponents: tuple[int, int], n: int) -> np.ndarray:
    """Pairs of bf16 with biased exponents in a range."""

    def half() -> np.ndarray:
        sign = rng.integers(0, 2, n, dtype=np.uint32) << 15
        exponent = rng.integers(*exponents, n, dtype=np.uint32) << 7
        return np.asarray(sign | exponent | rng.integers(0, 128, n, dtype=np.uint32))

    return np.asarray(half() | (half() << np.uint32(16)))


def halves(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and second of each pair as float32."""
    return to_float32(pairs & 0xFFFF), to_float32(pairs >> 16)


def same(a: np.ndarray, b: np.ndarray) -> Any:
    return (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))


@CPUS
@pytest.mark.parametrize("exponents", [(0, 256), (110, 140), (55, 72)])
def test_dot2_everywhere(
    cpu: str, exponents: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    n = 4096
    a, b = words(rng, exponents, n), words(rng, exponents, n)
    low = max(2 * exponents[0] - 127, 0)
    c = rng.integers(low, min(2 * exponents[1] - 127, 256), n, dtype=np.uint32) << 23
    c = (c | rng.integers(0, 1 << 23, n, dtype=np.uint32)).view(np.float32)
    want, got = np.empty(n, np.float32), np.empty(n, np.float32)
    add_products.interpret(n // 16)(c, a, b, want)
    monkeypatch.setenv("TILEWRIGHT_CPU", cpu)
    add_products[n // 16](c, a, b, got)
    assert same(got, want).all()


def test_dot2_adds_the_second_product_first() -> None:
    rng = np.random.default_rng(0)
    n = 4096
    a, b = words(rng, (110, 140), n), words(rng, (110, 140), n)
    c = rng.standard_normal(n).astype(np.float32)
    got = np.empty(n, np.float32)
    add_products[n // 16](c, a, b, got)
    (a0, a1), (b0, b1) = halves(a), halves(b)
    first = (a1.astype(np.longdouble) * b1 + c).astype(np.float32)
    want = (a0.astype(np.longdouble) * b0 + first).astype(np.float32)
    assert np.array_equal(got, want)
    other = (a0.astype(np.longdouble) * b0 + c).astype(np.float32)
    assert not np.array_equal(got, (a1.astype(np.longdouble) * b1 + other).astype(np.float32))


@CPUS
@pytest.mark.parametrize(
    ("acc", "products", "want"),
    [
        (2.0**-130, [(0, 0), (0, 0)], 0.0),  # an operand below the normal range
        (0.0, [(2.0**-130, 4.0), (0, 0)], 0.0),
        (0.0, [(-(2.0**-65), 2.0**-65), (0, 0)], -0.0),  # a result
        (1.5 * SMALLEST, [(2.0**-63, 2.0**-63), (-(2.0**-63), 2.0**-63)], SMALLEST),  # between
        (-0.0, [(-0.0, 1.0), (-0.0, 1.0)], -0.0),
        (np.inf, [(0, 0), (1, 1)], np.inf),
        (3e38, [(1e38, 3), (0, 0)], np.inf),
    ],
)
def test_dot2_knows_no_subnormals(
    cpu: str, acc: float, products: Any, want: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_CPU", cpu)
    (a0, b0), (a1, b1) = products
    bits = from_float32(np.array([[a0, a1], [b0, b1]], np.float32)).astype(np.uint32)
    a, b = (np.full(16, low | (high << 16), np.uint32) for low, high in bits)
    y = np.empty(16, np.float32)
    add_products[1](np.full(16, acc, np.float32), a, b, y)
    assert same(y, np.full(16, want, np.float32)).all()


@CPUS
def test_pack2(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    n = 4096
    first, second = (rng.integers(0, 2**32, n, np.uint32).view(np.float32) for _ in range(2))
    first[:4] = [1e-39, np.inf, np.nan, -np.inf]
    got, want = np.empty(n, np.uint32), np.empty(n, np.uint32)
    make_pairs.interpret(n // 16)(first, second, want)
    monkeypatch.setenv("TILEWRIGHT_CPU", cpu)
    make_pairs[n // 16](first, second, got)
    assert np.array_equal(got, want)
    tiny = np.abs(second) < SMALLEST
    assert np.array_equal((got >> 16)[~tiny], from_float32(second)[~tiny])
    assert not halves(got)[1][tiny].any()


@CPUS
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (32, 16), (16, 48), (8, 24), (8, 16)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint32, np.float64])
def test_transposed_blocks(
    cpu: str, rows: int, columns: int, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_CPU", cpu)
    x = np.arange(rows * columns).reshape(rows, columns).astype(dtype)
    y = np.zeros((columns, rows), dtype)
    transpose[1](x, y, R=rows, C=columns)
    assert np.array_equal(y, x.T)
    y[...] = 0
    transpose.interpret(1)(x, y, R=rows, C=columns)
    assert np.array_equal(y, x.T)


def test_a_prefetch_shows_in_the_ir_and_the_code() -> None:
    x = np.zeros((64, 64), np.float32)
    shown = transpose.inspect(x, x.copy(), R=16, C=16)
    assert "prefetch=read level=1" in shown.ir
    assert "prefetch=write level=2" in shown.ir
    assert "prefetch" in shown.asm


@kernel
def wrong_dot2(x: Array, y: Array) -> None:
    y[0:8] = dot2(y[0:8], x[0:8], x[0:8])


@kernel
def wrong_pack2(x: Array, y: Array) -> None:
    y[0:8] = pack2(x[0:8], x[0:8])


@kernel
def wrong_prefetch(x: Array, y: Array) -> None:
    tile = x[0:8] + 1
    prefetch(tile)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (wrong_dot2, r"dot2 wants \(f32, u32, u32\), got an f32\[8\] tile, an i32\[8\] tile"),
        (wrong_pack2, r"pack2 wants \(f32, f32\), got an i32\[8\] tile"),
        (wrong_prefetch, "prefetch wants a subscript of an array"),
    ],
)
def test_misuse_is_explained(fn: Any, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        fn[1](np.zeros(8, np.int32), np.zeros(8, np.float32))

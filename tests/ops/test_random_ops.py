"""Random numbers: the generator's known answers, distributions by moments, reproducibility."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from tests.ops.node_calls import leaf, reference, with_threads

from tilewright.compiler.realize import realize
from tilewright.dtypes import (
    DType,
    bf16,
    boolean,
    f16,
    f32,
    f64,
    i8,
    i32,
    i64,
    to_float32,
    u8,
    u32,
    u64,
)
from tilewright.errors import ShapeError
from tilewright.graph import Node, const_node, scalar_node
from tilewright.ops import elementwise, random

N = 1 << 17

# https://github.com/DEShawResearch/random123, tests/kat_vectors: threefry2x32 with 20 rounds
KNOWN = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


def values(*nodes: Node) -> list[np.ndarray]:
    """The nodes computed by kernels."""
    return [to_float32(b.numpy()) if b.dtype is bf16 else b.numpy() for b in realize(nodes)]


def value(node: Node) -> np.ndarray:
    return values(node)[0]


def key(seed: int = 3) -> random.Key:
    return random.key_of(seed)


@pytest.mark.parametrize(("given", "counter", "answer"), KNOWN)
def test_known_answers(
    given: tuple[int, int], counter: tuple[int, int], answer: tuple[int, int]
) -> None:
    assert random.threefry2x32(given, counter) == answer


def test_kernels_compute_what_numpy_does() -> None:
    """Element i is the generator's output for the counter (0, i)."""
    k0, k1 = 0x13198A2E, 0x03707344
    both = random.key_of(k0 << 32 | k1)
    x0, x1 = random.threefry2x32((k0, k1), (0, np.arange(1000)))
    got, wide = values(random.random_bits((10, 100), both), random.random_bits((1000,), both, u64))
    np.testing.assert_array_equal(got.ravel(), x0 ^ x1)
    np.testing.assert_array_equal(wide, x0.astype(np.uint64) << np.uint64(32) | x1)


MAKERS: dict[str, Callable[[Sequence[int], random.Key, DType], Node]] = {
    "uniform": random.uniform,
    "normal": random.normal,
    "exponential": random.exponential,
    "gumbel": random.gumbel,
    "truncated": lambda s, k, d: random.truncated_normal(s, k, -1.5, 2.0, d),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [f32, f64, f16, bf16])
def test_distributions(name: str, dtype: DType) -> None:
    """Mean and variance within five standard errors; 16-bit floats within their rounding too."""
    x = value(MAKERS[name]((2, N // 2), key(), dtype)).astype(np.float64)
    assert np.isfinite(x).all()
    low, high = -1.5, 2.0
    density = [math.exp(-v * v / 2) / math.sqrt(2 * math.pi) for v in (low, high)]
    mass = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
    mean_t = (density[0] - density[1]) / mass
    second = 1 + (low * density[0] - high * density[1]) / mass
    mean, variance = {
        "uniform": (0.5, 1 / 12),
        "normal": (0.0, 1.0),
        "exponential": (1.0, 1.0),
        "gumbel": (np.euler_gamma, math.pi**2 / 6),
        "truncated": (mean_t, second - mean_t**2),
    }[name]
    rounding = {f16: 1e-3, bf16: 4e-3}.get(dtype, 0)
    fourth = np.mean((x - x.mean()) ** 4)
    assert abs(x.mean() - mean) < 5 * math.sqrt(variance / N) + rounding
    assert abs(x.var() - variance) < 5 * math.sqrt((fourth - variance**2) / N) + 2 * rounding
    if name == "uniform":
        assert x.min() >= 0
        assert x.max() < 1
    if name == "truncated":
        assert x.min() >= low
        assert x.max() <= high
    neighbours = np.corrcoef(x.ravel()[:-1], x.ravel()[1:])[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(N)


def test_normal_is_box_and_mullers() -> None:
    for dtype, tight in ((f32, 1e-6), (f64, 1e-13)):
        node = random.normal((N,), key(), dtype)
        wanted = reference(random.normal((N,), key(), dtype))
        np.testing.assert_allclose(value(node), wanted, tight, tight)


def test_normal_tails() -> None:
    """Shares beyond 1, 2, 3 and 4 standard deviations, within five standard errors."""
    x = np.abs(value(random.normal((1 << 20,), key(8))))
    for bound in (1, 2, 3, 4):
        share = math.erfc(bound / math.sqrt(2))
        error = math.sqrt(share / (1 << 20))
        assert abs(np.mean(x > bound) - share) < 5 * error


def test_every_bit_of_a_word_is_fair() -> None:
    bits = value(random.random_bits((N,), key()))
    for b in range(32):
        ones = np.mean(bits >> np.uint32(b) & np.uint32(1))
        assert abs(ones - 0.5) < 5 * 0.5 / math.sqrt(N)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 10, i32), (-3, 4, i8), (0, 256, u8), (5, 6, i64), (-(1 << 31), 1 << 31, i32),
     (0, 3 << 40, i64), (-(1 << 62), 1 << 62, i64), (0, 3 << 62, u64), (-(1 << 63), 1 << 63, i64),
     (0, 1 << 64, u64)],
)  # fmt: skip
def test_randint(low: int, high: int, dtype: DType) -> None:
    """In range, and eight equal parts of the range equally full within five standard errors."""
    x = value(random.randint(low, high, (N,), key(), dtype))
    assert x.dtype == dtype.storage
    place = [int(v) - low for v in x]
    assert min(place) >= 0
    assert max(place) < high - low
    parts = min(8, high - low)
    if (high - low) % parts:
        parts = high - low
    counts = np.bincount([p * parts // (high - low) for p in place], minlength=parts)
    spread = math.sqrt(N * (1 / parts) * (1 - 1 / parts))
    assert np.all(np.abs(counts - N / parts) <= 5 * spread)


def test_randint_of_a_large_span_multiplies_exactly() -> None:
    """floor(span * v / 2**128) of the 128 bits of two derived keys, in Python's integers."""
    span = (1 << 63) - 25
    first, second = random.split(key(), 2)
    a, b = values(random.random_bits((50,), first, u64), random.random_bits((50,), second, u64))
    got = value(random.randint(0, span, (50,), key(), u64))
    wanted = [((int(x) << 64 | int(y)) * span) >> 128 for x, y in zip(a, b)]
    assert [int(v) for v in got] == wanted


def test_bernoulli() -> None:
    flags = value(random.bernoulli((N,), key(), 0.3))
    assert flags.dtype == bool
    assert abs(flags.mean() - 0.3) < 5 * math.sqrt(0.21 / N)
    chance = leaf(np.array([0.0, 1.0, 0.5]), f32)
    rows = value(random.bernoulli((1000, 3), key(), chance))
    assert not rows[:, 0].any()
    assert rows[:, 1].all()
    assert abs(rows[:, 2].mean() - 0.5) < 5 * 0.5 / math.sqrt(1000)


def test_categorical() -> None:
    chances = np.array([0.1, 0.2, 0.0, 0.7])
    with np.errstate(divide="ignore"):
        logits = leaf(np.broadcast_to(np.log(chances), (N, 4)), f32)
    drawn = value(random.categorical(logits, key()))
    shares = np.bincount(drawn, minlength=4) / N
    assert np.all(np.abs(shares - chances) <= 5 * np.sqrt(chances * (1 - chances) / N))


def test_permutation() -> None:
    order = value(random.permutation(1000, key()))
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 5 / math.sqrt(1000)
    assert value(random.permutation(5, key(), i32)).dtype == np.int32


def test_keys() -> None:
    """Derived keys are the generator's words; different ones give unrelated numbers."""
    words = [int(value(w)) for k in random.split(random.key_of(9), 3) for w in k]
    wanted = [int(w) for i in range(3) for w in random.threefry2x32((0, 9), (0, i))]
    assert words == wanted
    data = scalar_node(7, u32)
    folded = [int(value(w)) for w in random.fold_in(random.key_of(9), data)]
    assert folded == [int(w) for w in random.threefry2x32((0, 9), (0, 7))]
    assert folded == [int(value(w)) for w in random.fold_in(random.key_of(9), 7)]
    a, b = (random.normal((N,), k) for k in random.split(key()))
    correlation = np.corrcoef(*values(a, b))[0, 1]
    assert abs(correlation) < 5 / math.sqrt(N)
    large, negative = random.key_of((1 << 64) + 5), random.key_of(-1)
    assert [int(value(w)) for w in large] == [0, 5]
    assert [int(value(w)) for w in negative] == [0xFFFFFFFF, 0xFFFFFFFF]


def test_same_bits_for_any_threads_shape_and_fusion() -> None:
    plain = with_threads(1, lambda: value(random.normal((N,), key())))
    for n in (2, 3, 4):
        again = with_threads(n, lambda: value(random.normal((N,), key())))
        np.testing.assert_array_equal(plain, again)
    np.testing.assert_array_equal(value(random.normal((64, N // 64), key())).ravel(), plain)
    two = const_node(2.0, f32)
    fused = value(elementwise.mul(random.normal((N,), key()), two))
    np.testing.assert_array_equal(fused, plain * 2)
    small = random.normal((100,), key())
    np.testing.assert_array_equal(value(small), plain[:100])


def test_odd_shapes() -> None:
    assert value(random.uniform((), key())).shape == ()
    assert value(random.uniform((3, 0), key())).shape == (3, 0)
    assert value(random.permutation(0, key())).shape == (0,)


def test_errors_name_what_does_not_fit() -> None:
    with pytest.raises(ShapeError, match="are floats, got i32"):
        random.uniform((3,), key(), i32)
    with pytest.raises(ShapeError, match="low < high"):
        random.randint(5, 5, (3,), key())
    with pytest.raises(ShapeError, match="low < high <= "):
        random.randint(0, 300, (3,), key(), u8)
    with pytest.raises(ShapeError, match="makes integers, got bool"):
        random.randint(0, 2, (3,), key(), boolean)
    with pytest.raises(ShapeError, match="up to 2\\*\\*32 elements"):
        random.uniform((1 << 20, 1 << 20), key())
    with pytest.raises(ShapeError, match="low < high, got 1"):
        random.truncated_normal((3,), key(), 1.0, 0.0)

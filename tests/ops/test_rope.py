from __future__ import annotations

import numpy as np
import pytest
from kernel_calls import buffer, interpret, run

from tilewright.dtypes import f32
from tilewright.errors import ShapeError
from tilewright.ops.rope import (
    by_heads,
    rope_calls,
    rope_frequencies,
    rope_reference,
    rope_tables,
    yarn_frequencies,
)
from tilewright.runtime.buffers import empty


def rotated(x: np.ndarray, positions: np.ndarray, dims: int, interleaved: bool, by=run):
    """x (T, heads, head_dim) by the kernel and by the reference."""
    cos, sin = rope_tables(int(positions.max(initial=0)) + 1, rope_frequencies(dims))
    tokens, heads, head_dim = x.shape
    source = buffer(x.reshape(tokens, heads * head_dim), pad=16)
    y = empty(f32, (tokens, heads * head_dim), pad_rows=True)
    calls = rope_calls(
        by_heads(source, head_dim),
        buffer(positions),
        buffer(cos),
        buffer(sin),
        by_heads(y, head_dim),
        interleaved,
    )
    by(calls)
    want = rope_reference(x, positions, cos, sin, interleaved)
    return y.numpy().reshape(x.shape), want


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("head_dim", "dims"), [(8, 8), (48, 48), (64, 32), (80, 32), (128, 128)])
@pytest.mark.parametrize("tokens", [0, 1, 9])
def test_rotates(interleaved: bool, head_dim: int, dims: int, tokens: int) -> None:
    rng = np.random.default_rng(head_dim)
    x = rng.standard_normal((tokens, 3, head_dim)).astype(np.float32)
    positions = rng.integers(0, 3000, tokens).astype(np.int32)
    got, want = rotated(x, positions, dims, interleaved)
    assert np.abs(got - want).max(initial=0) <= 1e-6 * 4
    assert got[..., dims:].tobytes() == x[..., dims:].tobytes()


@pytest.mark.parametrize("interleaved", [True, False])
def test_interpreter_agrees(interleaved: bool) -> None:
    x = np.random.default_rng(0).standard_normal((2, 2, 16)).astype(np.float32)
    positions = np.array([3, 7], np.int32)
    a, _ = rotated(x, positions, 8, interleaved, interpret)
    b, _ = rotated(x, positions, 8, interleaved)
    assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("interleaved", [True, False])
def test_products_depend_on_the_distance_only(interleaved: bool) -> None:
    rng = np.random.default_rng(1)
    q, k = rng.standard_normal((2, 1, 1, 64)).astype(np.float32)
    products = []
    for shift in (0, 5, 1000):
        positions = np.array([17 + shift, 3 + shift], np.int32)
        both, _ = rotated(np.concatenate([q, k]), positions, 64, interleaved)
        products.append(float(both[0, 0] @ both[1, 0]))
    assert np.allclose(products, products[0], atol=1e-4)


def test_frequencies() -> None:
    assert rope_frequencies(4, 100.0).tolist() == pytest.approx([1.0, 0.1])
    assert rope_frequencies(4, 100.0, scale=2.0).tolist() == pytest.approx([0.5, 0.05])
    factors = np.array([1, 8], np.float32)
    assert rope_frequencies(4, 100.0, factors=factors).tolist() == pytest.approx([1.0, 0.0125])
    with pytest.raises(ShapeError, match="pairs"):
        rope_frequencies(3)
    with pytest.raises(ShapeError, match=r"shape \(3,\), wants \(2,\)"):
        rope_frequencies(4, factors=np.ones(3, np.float32))


def test_tables_are_float64_angles_rounded_once() -> None:
    cos, sin = rope_tables(100_000, rope_frequencies(8))
    angle = 99_999 * 10000.0 ** -(2 / 8)
    assert cos[99_999, 1] == np.float32(np.cos(angle))
    assert sin[99_999, 1] == np.float32(np.sin(angle))


def test_yarn_keeps_fast_pairs_and_interpolates_slow_ones() -> None:
    plain = rope_frequencies(128)
    yarn = yarn_frequencies(128, 10000.0, 4.0, 4096)
    assert np.allclose(yarn[:8], plain[:8])
    assert np.allclose(yarn[-8:], plain[-8:] / 4)
    assert (np.diff(yarn / plain) <= 1e-12).all()

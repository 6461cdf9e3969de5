"""Sparse gradients with each row once."""

from __future__ import annotations

import numpy as np
import pytest
from tests.ops.node_calls import LAYOUTS, check, compiled, leaf, random_values, with_threads

from tilewright.dtypes import ALL, DType, bf16, boolean, f32, i32, i64
from tilewright.errors import ShapeError
from tilewright.ops.indexing import scatter_rows
from tilewright.ops.unique_rows import unique_rows


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(13)


@pytest.mark.parametrize("many", [(1,), (9,), (3, 40), (500,), (0,)])
@pytest.mark.parametrize("inner", [(), (5,), (3, 70)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values(
    rng: np.random.Generator, many: tuple[int, ...], inner: tuple[int, ...], layout: str
) -> None:
    for kind in (i32, i64):
        ids = leaf(rng.integers(0, 30, many), kind, layout)
        rows = leaf(random_values(rng, (*many, *inner), f32), f32, layout)
        check(*unique_rows(ids, rows))


@pytest.mark.parametrize("dtype", [d for d in ALL if d is not boolean])
def test_every_dtype(rng: np.random.Generator, dtype: DType) -> None:
    ids = leaf(rng.integers(0, 9, 50), i32)
    check(*unique_rows(ids, leaf(random_values(rng, (50, 4), dtype), dtype)))


def test_the_meaning(rng: np.random.Generator) -> None:
    """Scattering the unique rows is the dense gradient, bit for bit; padding names no row."""
    given = rng.integers(0, 50, 200)
    ids, rows = leaf(given, i32), leaf(rng.standard_normal((200, 7)), f32)
    unique, sums, count = unique_rows(ids, rows)
    names, _, n = compiled(unique, sums, count)
    np.testing.assert_array_equal(names[:n], np.unique(given))
    assert np.all(names[n:] == np.iinfo(np.int32).max)
    dense, again = compiled(scatter_rows(ids, rows, 50), scatter_rows(unique, sums, 50))
    np.testing.assert_array_equal(dense, again)


def test_16_bit_floats_are_rounded_once() -> None:
    ids = leaf(np.zeros(4096), i32)
    _, sums, count = unique_rows(ids, leaf(np.full((4096, 2), 0.25), bf16))
    total, n = compiled(sums, count)
    assert n == 1
    np.testing.assert_array_equal(total[0], [1024.0, 1024.0])


def test_same_bits_for_any_number_of_threads(rng: np.random.Generator) -> None:
    ids = leaf(rng.integers(0, 100, 3000), i32)
    nodes = unique_rows(ids, leaf(rng.standard_normal((3000, 33)), f32))
    results = [with_threads(n, lambda: compiled(*nodes)) for n in (1, 2, 3, 4)]
    for other in results[1:]:
        for one, two in zip(results[0], other):
            np.testing.assert_array_equal(one, two)


def test_errors_name_what_does_not_fit() -> None:
    ids = leaf(np.zeros(3), i32)
    with pytest.raises(ShapeError, match=r"ids \(k..\) and rows \(k.., i..\)"):
        unique_rows(ids, leaf(np.zeros((4, 2)), f32))
    with pytest.raises(ShapeError, match="of i32 or i64"):
        unique_rows(leaf(np.zeros(4), f32), leaf(np.zeros((4, 2)), f32))

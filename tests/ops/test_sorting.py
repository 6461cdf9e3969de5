"""Sorting: kernels against NumPy for every dtype, length, layout and special value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.ops.gradcheck import check_gradient
from tests.ops.gradcheck import compiled as kernels
from tests.ops.node_calls import (
    LAYOUTS,
    check,
    compiled,
    interpreted,
    leaf,
    random_values,
    with_threads,
)

from tilewright.dtypes import ALL, DType, bf16, boolean, f32, f64, i32, i64, u8
from tilewright.errors import ShapeError
from tilewright.ops import sorting

LENGTHS = (1, 2, 17, 64, 65, 700)
SOME = (f32, bf16, i64, u8, boolean)  # floats of two widths, signed, unsigned, bool


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def special(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    """Values with many duplicates; floats with NaN, infinities and both zeros."""
    values = random_values(rng, shape, dtype)
    if dtype.is_float:
        some = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0], values.dtype)
        values = np.where(rng.random(shape) < 0.6, rng.choice(some, shape), values)
    elif dtype is not boolean:
        values = np.where(rng.random(shape) < 0.5, values % np.array(5, values.dtype), values)
    return values


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("n", LENGTHS)
def test_argsort(rng: np.random.Generator, dtype: DType, n: int) -> None:
    x = leaf(special(rng, (3, n), dtype), dtype)
    check(sorting.argsort(x))
    check(sorting.sort(x))


@pytest.mark.parametrize("dtype", SOME)
@pytest.mark.parametrize("n", LENGTHS)
def test_descending(rng: np.random.Generator, dtype: DType, n: int) -> None:
    x = leaf(special(rng, (3, n), dtype), dtype)
    check(sorting.argsort(x, -1, True))
    check(sorting.sort(x, -1, True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "axis"), [((5, 70, 3), 1), ((70, 4), 0), ((2, 3, 9), 0), ((9,), 0)]
)
def test_axes_and_layouts(
    rng: np.random.Generator, layout: str, shape: tuple[int, ...], axis: int
) -> None:
    x = leaf(special(rng, shape, f32), f32, layout)
    check(sorting.argsort(x, axis, dtype=i32))
    check(*sorting.topk(x, 2, axis))
    check(*sorting.topk(x, 3 if shape[axis] > 3 else 2, axis, largest=False))


@pytest.mark.parametrize("dtype", SOME)
@pytest.mark.parametrize("largest", [False, True])
def test_few_of_many(rng: np.random.Generator, dtype: DType, largest: bool) -> None:
    for n, k in ((800, 1), (800, 100), (801, 7), (3000, 50)):
        values = special(rng, (2, n), dtype)
        check(*sorting.topk(leaf(values, dtype), k, -1, largest))
    check(*sorting.topk(leaf(np.ones((2, 500)), dtype), 3, -1, largest))
    values = rng.permutation(1000)
    got, index = compiled(*sorting.topk(leaf(values, i64), 10))
    np.testing.assert_array_equal(got, np.arange(999, 989, -1))
    np.testing.assert_array_equal(values[index], got)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_empty(shape: tuple[int, ...]) -> None:
    x = leaf(np.zeros(shape), f32)
    check(sorting.argsort(x))
    check(*sorting.topk(x, 0))


def test_descending_is_stable() -> None:
    x = leaf(np.array([1.0, 2.0, 1.0, 2.0, np.nan, np.nan]), f32)
    np.testing.assert_array_equal(compiled(sorting.argsort(x, 0, True)), [4, 5, 1, 3, 0, 2])


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("right", [False, True])
def test_searchsorted(rng: np.random.Generator, dtype: DType, right: bool) -> None:
    for n, m in ((1, 5), (7, 40), (64, 3), (1000, 33)):
        x = np.sort(special(rng, (n,), dtype))
        values = np.concatenate([special(rng, (m,), dtype), x[:3]])
        check(sorting.searchsorted(leaf(x, dtype), leaf(values, dtype), right))


def test_searchsorted_shapes(rng: np.random.Generator) -> None:
    x = np.sort(rng.standard_normal((4, 3, 50)))
    values = rng.standard_normal((4, 3, 7))
    for layout in LAYOUTS:
        check(sorting.searchsorted(leaf(x, f64, layout), leaf(values, f64, layout)))
        check(sorting.searchsorted(leaf(x[0, 0], f64, layout), leaf(values, f64, layout)))
    check(sorting.searchsorted(leaf(x[0, 0], f64), leaf(values[0, 0, 0], f64)))
    check(sorting.searchsorted(leaf(np.zeros(0), f64), leaf(values, f64)))
    check(sorting.searchsorted(leaf(x[0, 0], f64), leaf(np.zeros((0, 2)), f64)))


@pytest.mark.parametrize("shape", [(40000,), (50, 1000)])
def test_same_order_for_any_number_of_threads(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    values = rng.integers(0, 500, shape)
    node = sorting.argsort(leaf(values, i32))
    wanted = np.argsort(values, kind="stable")
    for n in (1, 2, 3, 4):
        np.testing.assert_array_equal(with_threads(n, lambda: compiled(node)), wanted)


def test_the_interpreter_agrees(rng: np.random.Generator) -> None:
    short, long = leaf(special(rng, (2, 9), f32), f32), leaf(special(rng, (1, 70), u8), u8)
    for node in (
        sorting.argsort(short),
        sorting.argsort(long, -1, True),
        sorting.topk(long, 3)[1],
        sorting.searchsorted(sorting.sort(leaf(rng.standard_normal(9), f32)), short),
    ):
        np.testing.assert_array_equal(interpreted(node), compiled(node))


def test_errors_name_what_does_not_fit() -> None:
    x = leaf(np.zeros((3, 4)), f32)
    with pytest.raises(ShapeError, match="axis 2 of f32"):
        sorting.sort(x, 2)
    with pytest.raises(ShapeError, match="the 5 first of 4 elements"):
        sorting.topk(x, 5)
    with pytest.raises(ShapeError, match="one dtype"):
        sorting.searchsorted(x, leaf(np.zeros(3), f64))


@pytest.mark.parametrize(("shape", "axis"), [((9,), 0), ((4, 5), 0), ((2, 6, 3), 1)])
def test_gradients(rng: np.random.Generator, shape: tuple[int, ...], axis: int) -> None:
    x = rng.permutation(np.prod(shape)).reshape(shape) * 0.1
    for turned in (False, True):
        check_gradient(
            lambda v, t=turned: sorting.sort(v, axis, t),
            x,
            order=2,
            torch_fn=lambda v, t=turned: torch.sort(v, axis, t).values,
        )
        check_gradient(
            lambda v, t=turned: sorting.topk(v, 3, axis, t)[0],
            x,
            run=kernels,
            torch_fn=lambda v, t=turned: torch.topk(v, 3, axis, t).values,
        )

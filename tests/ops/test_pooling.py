"""Pooling: kernels against references, values and derivatives against PyTorch."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.gradcheck import check_gradient
from tests.ops.gradcheck import compiled as realised
from tests.ops.node_calls import (
    LAYOUTS,
    check,
    compiled,
    leaf,
    random_values,
    reference,
    with_threads,
)

from tilewright.dtypes import DType, bf16, boolean, f16, f32, f64, i8, i32, i64, u8
from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.ops.pool import (
    adaptive_avg_pool,
    adaptive_max_pool,
    avg_pool,
    avg_pool_gradient,
    global_avg_pool,
    global_max_pool,
    max_pool,
    max_pool_gradient,
    max_pool_take,
)

# x, kernel, strides, padding, dilation, ceil_mode
CASES: list[tuple[Any, ...]] = [
    ((2, 3, 9, 10), 2, None, 0, 1, False),
    ((2, 3, 12, 40), 2, 2, 0, 1, False),
    ((2, 3, 9, 10), 3, 2, 1, 1, True),
    ((2, 2, 23, 37), 3, 2, 1, 1, False),
    ((1, 2, 20), 3, 2, 1, 2, True),
    ((1, 2, 50), 4, 3, 2, 1, False),
    ((1, 2, 6, 7, 8), 2, (1, 2, 3), 1, 1, True),
    ((1, 1, 2, 40), (2, 3), 1, (1, 1), 1, False),
    ((2, 2, 7, 7), 7, 1, 0, 1, False),
    ((2, 2, 5, 33), (1, 5), (2, 1), (0, 2), (1, 1), False),
    ((1, 2, 8, 1), (3, 1), (2, 1), (1, 0), 1, False),
]
FLOATS = [f64, f32, f16, bf16]


def pooled(case: tuple[Any, ...], x: Node) -> tuple[Node, Node]:
    return max_pool(x, *case[1:])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_max_pool(case: tuple[Any, ...], layout: str) -> None:
    rng = np.random.default_rng(0)
    values, places = pooled(case, leaf(rng.standard_normal(case[0]), f32, layout))
    check(values, places)
    grad = leaf(rng.integers(-9, 9, values.shape), f32, layout)
    where = leaf(reference(places), i32, layout)
    check(max_pool_gradient(grad, where, case[0][2:]))
    check(max_pool_take(leaf(rng.standard_normal(case[0]), f32, layout), where))


@pytest.mark.parametrize("dtype", [*FLOATS, i8, u8, i32, i64], ids=str)
def test_max_pool_dtypes(dtype: DType) -> None:
    rng = np.random.default_rng(1)
    x = leaf(random_values(rng, (2, 2, 9, 21), dtype), dtype)
    for index_dtype in (i32, i64):
        values, places = max_pool(x, 3, 2, 1, index_dtype=index_dtype)
        check(values, places)
        assert places.dtype is index_dtype
        check(max_pool_take(x, leaf(reference(places), index_dtype)))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_places_that_meet_add_up_in_f32(dtype: DType) -> None:
    """A thousand halves on one place: 16-bit sums would get stuck on the way."""
    grad = leaf(np.full((1, 2, 40, 40), 0.5), dtype)
    places = leaf(np.full((1, 2, 40, 40), 7), i32)
    for size in ((3, 5), (1, 512)):  # rows of 512 may be padded in memory
        node = max_pool_gradient(grad, places, size)
        check(node)
        assert compiled(node)[0, 1].ravel()[7] == 800


def test_equal_values_nan_and_lowest() -> None:
    x = np.zeros((1, 1, 4, 8), np.float32)
    x[0, 0, 1, 1] = x[0, 0, 0, 5] = x[0, 0, 1, 4] = np.nan
    x[0, 0, 2:, 0:2] = -np.inf
    values, places = max_pool(leaf(x, f32), 2)
    got, where = compiled(values), compiled(places)
    np.testing.assert_array_equal(got[0, 0], [[np.nan, 0, np.nan, 0], [-np.inf, 0, 0, 0]])
    np.testing.assert_array_equal(where[0, 0], [[9, 2, 12, 6], [16, 18, 20, 22]])


def test_windows_that_see_only_padding() -> None:
    values, places = max_pool(leaf(np.ones((1, 1, 2)), f32), 1, 1, ((1, 2),))
    check(values, places)
    np.testing.assert_array_equal(compiled(places)[0, 0], [-1, 0, 1, -1, -1])
    grad = leaf(np.ones((1, 1, 5)), f32)
    np.testing.assert_array_equal(compiled(max_pool_gradient(grad, places, (2,)))[0, 0], [1, 1])
    assert compiled(max_pool_take(leaf(np.ones((1, 1, 2)), f32), places)).sum() == 2


def test_places_outside_are_ignored() -> None:
    places = leaf([[[3, -1, 9, 2]]], i64)
    grad = leaf(np.ones((1, 1, 4)), f32)
    check(max_pool_gradient(grad, places, (4,)), max_pool_take(grad, places))
    np.testing.assert_array_equal(
        compiled(max_pool_gradient(grad, places, (4,)))[0, 0], [0, 0, 1, 1]
    )


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_avg_pool(case: tuple[Any, ...], include: bool) -> None:
    rng = np.random.default_rng(2)
    for layout in ("dense", "reversed"):
        node = avg_pool(leaf(rng.standard_normal(case[0]), f32, layout), *case[1:], include)
        check(node, rtol=1e-5, atol=1e-6)
        grad = leaf(rng.standard_normal(node.shape), f32, layout)
        back = avg_pool_gradient(grad, case[0][2:], **node.attrs)
        check(back, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_avg_pool_dtypes(dtype: DType) -> None:
    rng = np.random.default_rng(3)
    tolerance = {f64: 1e-14, f32: 1e-6, f16: 1e-3, bf16: 8e-3}[dtype]
    x = leaf(random_values(rng, (2, 2, 9, 21), dtype), dtype)
    for args in ((3, 2, 1), (2, 2, 0)):
        node = avg_pool(x, *args)
        check(node, rtol=tolerance, atol=tolerance)
        grad = leaf(random_values(rng, node.shape, dtype), dtype)
        check(avg_pool_gradient(grad, (9, 21), **node.attrs), rtol=tolerance, atol=4 * tolerance)


def torch_pool(name: str, rank: int, *args: Any) -> Any:
    from torch.nn import functional

    return getattr(functional, f"{name}{rank}d")(*args)


@pytest.mark.parametrize("case", CASES)
def test_gradients(case: tuple[Any, ...]) -> None:
    shape, kernel, strides, padding, dilation, ceil = case
    rng = np.random.default_rng(4)
    # Values far apart, so that differences do not change who wins.
    x = rng.permutation(int(np.prod(shape))).reshape(shape) * 0.01

    check_gradient(
        lambda x: pooled(case, x)[0],
        x,
        order=2,
        torch_fn=partial(
            lambda x: torch_pool(
                "max_pool", x.ndim - 2, x, kernel, strides, padding, dilation, ceil
            )
        ),
        tolerance=1e-5,
    )
    if dilation != 1 and dilation != (1, 1):
        return
    for include in (True, False):
        check_gradient(
            lambda x, include=include: avg_pool(x, *case[1:], include),
            x,
            order=2,
            torch_fn=lambda x, include=include: torch_pool(
                "avg_pool", x.ndim - 2, x, kernel, strides, padding, ceil, include
            ),
            tolerance=1e-5,
        )


def test_gradients_by_kernels() -> None:
    x = np.random.default_rng(5).permutation(2 * 3 * 7 * 8).reshape(2, 3, 7, 8) * 0.01
    check_gradient(lambda x: max_pool(x, 3, 2, 1)[0], x, order=2, run=realised, tolerance=1e-5)
    check_gradient(lambda x: avg_pool(x, 3, 2, 1), x, order=2, run=realised, tolerance=1e-5)


def test_same_bits_for_threads() -> None:
    rng = np.random.default_rng(6)
    x = leaf(rng.standard_normal((3, 5, 17, 20)), f32)

    def bits() -> list[bytes]:
        values, places = max_pool(x, 3, 2, 1)
        grad = leaf(compiled(values), f32)
        nodes = [
            values,
            max_pool_gradient(grad, leaf(compiled(places), i32), (17, 20)),
            avg_pool(x, 3, 2, 1),
        ]
        return [compiled(n).tobytes() for n in nodes]

    expected = with_threads(1, bits)
    for threads in (2, 3, 4):
        assert with_threads(threads, bits) == expected


@pytest.mark.parametrize(
    ("shape", "out"),
    [((2, 3, 8, 12), 4), ((2, 3, 7, 10), (3, 4)), ((1, 2, 11), 5), ((2, 3, 6, 6), 1)],
)
def test_adaptive(shape: tuple[int, ...], out: Any) -> None:
    x = np.random.default_rng(7).permutation(int(np.prod(shape))).reshape(shape) * 0.01
    for mine, name in ((adaptive_avg_pool, "avg"), (adaptive_max_pool, "max")):
        check_gradient(
            lambda x, mine=mine: mine(x, out),
            x,
            torch_fn=lambda x, name=name: torch_pool(f"adaptive_{name}_pool", x.ndim - 2, x, out),
            tolerance=1e-5,
        )


def test_global() -> None:
    x = np.random.default_rng(8).standard_normal((2, 3, 5, 7))
    node = leaf(x, f64)
    np.testing.assert_allclose(
        reference(global_avg_pool(node)), x.mean((2, 3), keepdims=True), rtol=1e-12
    )
    np.testing.assert_array_equal(compiled(global_max_pool(node)), x.max((2, 3), keepdims=True))


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_any_window(data: st.DataObject) -> None:
    draw = data.draw
    rank = draw(st.integers(1, 2))
    each = partial(lambda low, high: [draw(st.integers(low, high)) for _ in range(rank)])
    kernel, strides, dilation = each(1, 4), each(1, 4), each(1, 2)
    padding = [(draw(st.integers(0, k // 2)), draw(st.integers(0, k // 2))) for k in kernel]
    size = [d * (k - 1) + 1 + draw(st.integers(0, 20)) for k, d in zip(kernel, dilation)]
    shape = (draw(st.integers(0, 2)), draw(st.integers(1, 3)), *size)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    # Few values, so that many are equal; some that are not numbers.
    x = rng.integers(-3, 3, shape).astype(np.float32)
    x[rng.random(shape) < 0.05] = np.nan
    args = (kernel, strides, padding, dilation, draw(st.booleans()))
    layout = draw(st.sampled_from(LAYOUTS))
    values, places = max_pool(leaf(x, f32, layout), *args)
    check(values, places)
    check(max_pool_take(leaf(x, f32, layout), leaf(reference(places), i32)))
    x = np.nan_to_num(x)
    mean = avg_pool(leaf(x, f32, layout), *args, draw(st.booleans()))
    check(mean, rtol=1e-5, atol=1e-6)


def test_errors() -> None:
    x = leaf(np.ones((1, 2, 5, 5)), f32)
    with pytest.raises(ShapeError, match="larger than an axis of 5"):
        max_pool(x, 6)
    with pytest.raises(ShapeError, match="at least one"):
        avg_pool(x, 2, 0)
    with pytest.raises(ShapeError, match="at least zero"):
        avg_pool(x, 2, 2, -1)
    with pytest.raises(ShapeError, match="2 spatial axes want 2 kernel"):
        max_pool(x, (2, 2, 2))
    with pytest.raises(ShapeError, match="wants numbers, got bool"):
        max_pool(leaf(np.ones((1, 1, 4)), boolean), 2)
    with pytest.raises(ShapeError, match="wants floats, got i32"):
        avg_pool(leaf(np.ones((1, 1, 4)), i32), 2)
    with pytest.raises(ShapeError, match="i32 or i64"):
        max_pool_take(x, x)
    with pytest.raises(ShapeError, match="one to three spatial axes"):
        max_pool(leaf(np.ones((1, 2)), f32), ())
    with pytest.raises(ShapeError, match="wants 2 sizes"):
        adaptive_avg_pool(x, (1, 2, 3))

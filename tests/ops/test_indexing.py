"""Gathers and scatters: kernels against references, gradients, layouts, duplicates, threads."""

from __future__ import annotations

from typing import Any

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
    reference,
    with_threads,
)

from tilewright.dtypes import ALL, DType, bf16, boolean, f16, f32, f64, i32, i64
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.graph import Node
from tilewright.ops import indexing
from tilewright.ops.autodiff import vjp

IDS = (i32, i64)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def ids_of(rng: np.random.Generator, n: int, shape: tuple[int, ...], outside: bool) -> np.ndarray:
    """Random ids, some of them twice, and with ``outside`` some that name nothing."""
    return rng.integers(-2 if outside else 0, n + 2 if outside else max(n, 1), shape)


TAKES: list[Any] = [
    ((7,), 0, (5,)),
    ((7,), 0, ()),
    ((7,), 0, (300,)),
    ((9, 130), 0, (4,)),
    ((9, 130), 0, (2, 3)),
    ((9, 130), 1, (6,)),
    ((9, 130), 1, (2, 40)),
    ((3, 5, 4), 1, (2, 2)),
    ((3, 5, 4, 1, 3), 2, (7,)),
    ((3, 0), 0, (4,)),
    ((0, 3), 0, (4,)),
    ((3, 2), 0, (0,)),
    ((2, 3, 1300), 1, (5,)),
]


@pytest.mark.parametrize(("shape", "axis", "many"), TAKES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_take(
    rng: np.random.Generator, shape: tuple[int, ...], axis: int, many: tuple[int, ...], layout: str
) -> None:
    x = leaf(random_values(rng, shape, f32), f32, layout)
    ids = ids_of(rng, shape[axis], many, True)
    for kind in IDS:
        node = indexing.take(x, leaf(ids, kind, layout), axis)
        check(node)
    if shape[axis]:
        good = ids % shape[axis]
        node = indexing.take(x, leaf(good, i64), axis)
        np.testing.assert_array_equal(compiled(node), np.take(x.value.numpy(), good, axis))


@pytest.mark.parametrize("dtype", ALL)
def test_every_dtype(rng: np.random.Generator, dtype: DType) -> None:
    x = leaf(random_values(rng, (6, 37), dtype), dtype)
    ids = leaf(rng.integers(0, 6, (11,)), i32)
    check(indexing.take(x, ids, 0))
    u = leaf(random_values(rng, (11, 37), dtype), dtype)
    check(indexing.scatter(x, ids, u, 0, "set"))
    along = leaf(rng.integers(0, 6, (4, 37)), i64)
    v = leaf(random_values(rng, (4, 37), dtype), dtype)
    check(indexing.take_along_axis(x, along, 0))
    check(indexing.put_along_axis(x, along, v, 0))
    pairs = leaf(np.stack([rng.integers(0, 6, 9), rng.integers(0, 37, 9)], -1), i32)
    w = leaf(random_values(rng, (9,), dtype), dtype)
    check(indexing.gather_nd(x, pairs))
    check(indexing.scatter_nd(x, pairs, w))
    if dtype is not boolean:
        check(indexing.scatter_add(x, ids, u, 0))
        check(indexing.scatter_rows(ids, u, 6))
        check(indexing.put_along_axis(x, along, v, 0, "add"))
        check(indexing.scatter_along_axis(along, v, 6, 0))
        check(indexing.scatter_nd(x, pairs, w, "add"))
        check(indexing.scatter_nd_zeros(pairs, w, (6, 37)))
        for mode in ("mul", "max", "min"):
            check(indexing.scatter(x, ids, u, 0, mode))
            check(indexing.put_along_axis(x, along, v, 0, mode))
            check(indexing.scatter_nd(x, pairs, w, mode))


@pytest.mark.parametrize(("shape", "axis", "many"), TAKES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["set", "add"])
def test_scatter(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    axis: int,
    many: tuple[int, ...],
    layout: str,
    mode: str,
) -> None:
    x = leaf(random_values(rng, shape, f32), f32, layout)
    ids = leaf(ids_of(rng, shape[axis], many, True), i32, layout)
    updates = random_values(rng, (*shape[:axis], *many, *shape[axis + 1 :]), f32)
    u = leaf(updates, f32, layout)
    check(indexing.scatter(x, ids, u, axis, mode))
    check(indexing.scatter_rows(ids, u, shape[axis], axis))


@pytest.mark.parametrize(
    ("shape", "axis", "many"),
    [((7,), 0, (300,)), ((9, 130), 1, (6,)), ((3, 5, 4), 1, (2, 2)), ((3, 0), 0, (4,))],
)
@pytest.mark.parametrize("mode", ["mul", "max", "min"])
def test_scatter_combines(
    rng: np.random.Generator, shape: tuple[int, ...], axis: int, many: tuple[int, ...], mode: str
) -> None:
    x = leaf(random_values(rng, shape, f32), f32)
    ids = leaf(ids_of(rng, shape[axis], many, True), i32)
    u = leaf(random_values(rng, (*shape[:axis], *many, *shape[axis + 1 :]), f32), f32)
    check(indexing.scatter(x, ids, u, axis, mode))


@pytest.mark.parametrize(
    ("shape", "axis", "k"),
    [((7,), 0, 300), ((5, 6), 0, 9), ((5, 6), 1, 9), ((3, 4, 70), 1, 5), ((3, 4, 70), 2, 5),
     ((2, 3, 2, 3), 1, 4), ((2, 0, 3), 1, 2), ((2, 3), 1, 0), ((1, 300), 0, 4)],
)  # fmt: skip
@pytest.mark.parametrize("layout", LAYOUTS)
def test_along_axis(
    rng: np.random.Generator, shape: tuple[int, ...], axis: int, k: int, layout: str
) -> None:
    x = leaf(random_values(rng, shape, f32), f32, layout)
    at = (*shape[:axis], k, *shape[axis + 1 :])
    ids = leaf(ids_of(rng, shape[axis], at, True), i64, layout)
    u = leaf(random_values(rng, at, f32), f32, layout)
    check(indexing.take_along_axis(x, ids, axis))
    check(indexing.put_along_axis(x, ids, u, axis, "set"))
    check(indexing.put_along_axis(x, ids, u, axis, "add"))
    check(indexing.scatter_along_axis(ids, u, shape[axis], axis))


@pytest.mark.parametrize(
    ("shape", "n", "many"),
    [((7,), 1, (20,)), ((5, 6), 1, (4, 2)), ((5, 6), 2, (70,)), ((5, 6), 2, ()),
     ((3, 4, 70), 2, (5,)), ((3, 4, 2, 9), 2, (5, 3)), ((3, 4, 2), 3, (2, 3)),
     ((3, 0), 1, (4,)), ((3, 2), 1, (0,))],
)  # fmt: skip
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nd(
    rng: np.random.Generator, shape: tuple[int, ...], n: int, many: tuple[int, ...], layout: str
) -> None:
    x = leaf(random_values(rng, shape, f32), f32, layout)
    each = [ids_of(rng, size, many, True) for size in shape[:n]]
    ids = leaf(np.stack(each, -1), i32, layout)
    u = leaf(random_values(rng, (*many, *shape[n:]), f32), f32, layout)
    check(indexing.gather_nd(x, ids))
    check(indexing.scatter_nd(x, ids, u, "set"))
    check(indexing.scatter_nd(x, ids, u, "add"))
    check(indexing.scatter_nd_zeros(ids, u, shape))


def test_sums_of_16_bit_floats_are_rounded_once() -> None:
    for dtype in (f16, bf16):
        ids = leaf(np.zeros(4096, np.int32), i32)
        rows = leaf(np.full((4096, 3), 0.25, np.float32), dtype)
        total = compiled(indexing.scatter_rows(ids, rows, 2))
        np.testing.assert_array_equal(total, [[1024.0] * 3, [0.0] * 3])


@pytest.mark.parametrize("width", [1, 5, 384])
def test_same_bits_for_any_number_of_threads(rng: np.random.Generator, width: int) -> None:
    ids = leaf(rng.integers(0, 50, 5000), i32)
    rows = leaf(random_values(rng, (5000, width), f32), f32)
    node = indexing.scatter_rows(ids, rows, 50)
    for n in (1, 2, 3, 4):
        np.testing.assert_array_equal(with_threads(n, lambda: compiled(node)), reference(node))


def test_the_interpreter_agrees(rng: np.random.Generator) -> None:
    x = leaf(random_values(rng, (4, 3, 5), f32), f32, "reversed")
    ids, u = leaf(ids_of(rng, 3, (4,), True), i64), leaf(random_values(rng, (4, 4, 5), f32), f32)
    along = leaf(ids_of(rng, 5, (4, 3, 2), True), i32)
    pairs = leaf(np.stack([ids_of(rng, n, (6,), True) for n in (4, 3)], -1), i32)
    v = leaf(random_values(rng, (6, 5), f32), f32)
    for node in (
        indexing.take(x, ids, 1),
        indexing.scatter(x, ids, u, 1, "add"),
        indexing.take_along_axis(x, along, 2),
        indexing.scatter_along_axis(along, indexing.take_along_axis(x, along, 2), 5, 2),
        indexing.gather_nd(x, pairs),
        indexing.scatter_nd(x, pairs, v),
    ):
        np.testing.assert_array_equal(interpreted(node), reference(node))


def test_errors_name_what_does_not_fit() -> None:
    x = leaf(np.zeros((3, 4), np.float32), f32)
    with pytest.raises(ShapeError, match="ids of i32 or i64, got f32"):
        indexing.take(x, x, 0)
    ids = leaf(np.zeros(2, np.int32), i32)
    with pytest.raises(ShapeError, match="axis 2 of f32"):
        indexing.take(x, ids, 2)
    with pytest.raises(ShapeError, match="updates f32"):
        indexing.scatter(x, ids, leaf(np.zeros((2, 3), np.float32), f32), 0)
    with pytest.raises(ShapeError, match="1 <= n <= 2"):
        indexing.gather_nd(x, leaf(np.zeros((2, 3), np.int32), i32))
    flags = leaf(np.zeros(3, bool), boolean)
    with pytest.raises(ShapeError, match="can only be set"):
        indexing.scatter_add(flags, ids, leaf(np.zeros(2, bool), boolean), 0)


GATHERS: list[Any] = [
    (lambda x, i: indexing.take(x, i, 1), (3, 5, 2), (2, 4), 5, lambda x, i: x[:, i]),
    (lambda x, i: indexing.take(x, i, 0), (6,), (9,), 6, lambda x, i: x[i]),
    (
        lambda x, i: indexing.take_along_axis(x, i, 1),
        (3, 5, 2),
        (3, 4, 2),
        5,
        lambda x, i: torch.gather(x, 1, i),
    ),
    (
        lambda x, i: indexing.take_along_axis(x, i, 1),
        (3, 5, 2),
        (3, 1, 2),
        5,
        lambda x, i: torch.gather(x, 1, i),
    ),
    (
        lambda x, i: indexing.gather_nd(x, i),
        (4, 4, 3),
        (7, 2),
        4,
        lambda x, i: x[i[:, 0], i[:, 1]],
    ),
]


@pytest.mark.parametrize(("ours", "shape", "many", "n", "theirs"), GATHERS)
def test_gradient_of_gathers(
    rng: np.random.Generator,
    ours: Any,
    shape: tuple[int, ...],
    many: tuple[int, ...],
    n: int,
    theirs: Any,
) -> None:
    x, ids = rng.standard_normal(shape), rng.integers(0, n, many)
    check_gradient(ours, x, ids, order=2, torch_fn=theirs)
    check_gradient(ours, x, ids, run=kernels)


@pytest.mark.parametrize("mode", ["set", "add"])
def test_gradient_of_scatters(rng: np.random.Generator, mode: str) -> None:
    """Without repeated ids against torch, with them against differences."""
    x, u = rng.standard_normal((2, 6, 3)), rng.standard_normal((2, 4, 3))
    once, twice = rng.permutation(6)[:4], np.array([1, 4, 1, 1])

    def theirs(x: torch.Tensor, i: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        copy = torch.index_add if mode == "add" else torch.index_copy
        return copy(x, 1, i, u)

    def ours(x: Node, i: Node, u: Node) -> Node:
        return indexing.scatter(x, i, u, 1, mode)

    check_gradient(ours, x, once, u, order=2, torch_fn=theirs)
    check_gradient(ours, x, twice, u, order=2)
    check_gradient(ours, x, twice, u, run=kernels)

    along = rng.integers(0, 6, u.shape)
    check_gradient(lambda x, i, u: indexing.put_along_axis(x, i, u, 1, mode), x, along, u, order=2)
    pairs = np.array([[0, 3], [1, 5], [0, 3], [0, 0]])
    v = rng.standard_normal((4, 3))
    check_gradient(lambda x, i, u: indexing.scatter_nd(x, i, u, mode), x, pairs, v, order=2)
    check_gradient(lambda x, i, u: indexing.scatter_nd(x, i, u, mode), x, pairs, v, run=kernels)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_gradient_of_scattered_extremes(rng: np.random.Generator, mode: str) -> None:
    """Against differences; ties are shared, by all that are the extreme."""
    x, u = rng.standard_normal((2, 6, 3)), rng.standard_normal((2, 4, 3))
    twice = np.array([1, 4, 1, 1])
    check_gradient(lambda x, i, u: indexing.scatter(x, i, u, 1, mode), x, twice, u)
    check_gradient(lambda x, i, u: indexing.scatter(x, i, u, 1, mode), x, twice, u, run=kernels)
    along = rng.integers(0, 6, u.shape)
    check_gradient(lambda x, i, u: indexing.put_along_axis(x, i, u, 1, mode), x, along, u)
    pairs = np.array([[0, 3], [1, 5], [0, 3], [0, 0]])
    v = rng.standard_normal((4, 3))
    check_gradient(lambda x, i, u: indexing.scatter_nd(x, i, u, mode), x, pairs, v)

    ties = leaf(np.ones(2), f64)
    ids, more = leaf(np.array([0, 0, 1]), i64), leaf(np.array([1.0, 1.0, 0.0]), f64)
    node = indexing.scatter(ties, ids, more, 0, "max")
    to_x, to_more = vjp([node], [leaf(np.ones(2), f64)], [ties, more])
    assert to_x is not None
    assert to_more is not None
    np.testing.assert_allclose(reference(to_x), [1 / 3, 1])
    np.testing.assert_allclose(reference(to_more), [1 / 3, 1 / 3, 0])


def test_gradient_of_scattered_products_is_refused() -> None:
    x, ids = leaf(np.ones(2), f64), leaf(np.array([0]), i64)
    node = indexing.scatter(x, ids, leaf(np.ones(1), f64), 0, "mul")
    with pytest.raises(UnsupportedError, match="mode 'mul' has no gradient"):
        vjp([node], [leaf(np.ones(2), f64)], [x])


def test_gradient_of_a_table_is_sparse() -> None:
    """The node of take's gradient holds ids and rows; nothing of the table's size is computed."""
    table = leaf(np.zeros((1000, 4)), f32)
    ids = leaf(np.array([[3, 999], [3, 0]]), i64)
    up = leaf(np.ones((2, 2, 4)), f32)
    (grad,) = vjp([indexing.take(table, ids)], [up], [table])
    assert grad is not None
    assert grad.op == "scatter_rows"
    assert grad.inputs == (ids, up)
    assert grad.shape == table.shape

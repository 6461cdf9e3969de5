"""Scans: kernels against references, gradients, directions, layouts, special values, threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.ops.gradcheck import check_gradient
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

from tilewright.dtypes import ALL, DType, bf16, boolean, f16, f32, f64, i32
from tilewright.errors import ShapeError
from tilewright.ops import scans

SHAPES: list[Any] = [
    ((7,), 0),
    ((1,), 0),
    ((5, 33), 0),
    ((5, 33), 1),
    ((3, 4, 2, 19), 2),
    ((2, 3, 40), 1),
    ((0, 3), 0),
    ((3, 0), 0),
]
SCANS = (scans.cumsum, scans.cumprod)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reverse", [False, True])
def test_shapes_and_layouts(
    rng: np.random.Generator, shape: tuple[int, ...], axis: int, layout: str, reverse: bool
) -> None:
    x = leaf(random_values(rng, shape, f32), f32, layout)
    a = leaf(random_values(rng, shape, f32) / 4, f32, layout)
    start = leaf(random_values(rng, (*shape[:axis], *shape[axis + 1 :]), f32), f32, layout)
    for scan in SCANS:
        check(scan(x, axis, reverse))
    check(*scans.cummax(x, axis, reverse))
    check(*scans.cummin(x, axis, reverse))
    check(scans.logcumsumexp(x, axis, reverse), rtol=1e-5, atol=1e-5)
    check(scans.linear_scan(a, x, None, axis, reverse), rtol=1e-6, atol=1e-6)
    check(scans.linear_scan(a, x, start, axis, reverse), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [d for d in ALL if d is not boolean])
def test_every_dtype(rng: np.random.Generator, dtype: DType) -> None:
    values = random_values(rng, (3, 50), dtype)
    x = leaf(values / 4 if dtype.is_float else values, dtype)
    for scan in SCANS:
        check(scan(x, 1))
    check(*scans.cummax(x, 1))
    check(*scans.cummin(x, 0))
    if dtype.is_float:
        tight = {f16: 2e-3, bf16: 1e-2, f64: 1e-12}.get(dtype, 1e-5)
        check(scans.logcumsumexp(x, 1), rtol=tight, atol=tight)
        check(scans.linear_scan(x, x, None, 0), rtol=tight, atol=tight)


def test_float32_sums_are_numpys_bit_for_bit(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 1000), np.float32)
    x[1, 0] = -0.0
    np.testing.assert_array_equal(compiled(scans.cumsum(leaf(x, f32), 1)), np.cumsum(x, 1))
    assert np.signbit(compiled(scans.cumsum(leaf(x, f32), 1))[1, 0])


def test_16_bit_floats_are_carried_in_float32() -> None:
    ones = leaf(np.ones(4096), bf16)
    total = compiled(scans.cumsum(ones, 0))
    assert total[-1] == 4096
    wanted = np.arange(1, 4097)
    assert np.max(np.abs(total - wanted) / wanted) < 2**-8


def test_special_values_are_torchs() -> None:
    x = np.array([1.0, 3.0, 3.0, -np.inf, np.nan, 5.0, np.nan, 9.0])
    for ours, theirs in ((scans.cummax, torch.cummax), (scans.cummin, torch.cummin)):
        values, index = ours(leaf(x, f64), 0)
        wanted = theirs(torch.tensor(x), 0)
        np.testing.assert_array_equal(compiled(values), wanted.values)
        np.testing.assert_array_equal(compiled(index), wanted.indices)
    x = np.array([-np.inf, -np.inf, 1.0, np.inf, 2.0, -np.inf])
    wanted = torch.logcumsumexp(torch.tensor(x), 0)
    np.testing.assert_allclose(compiled(scans.logcumsumexp(leaf(x, f64), 0)), wanted)
    large = np.array([1000.0, 1001.0, 900.0])
    wanted = torch.logcumsumexp(torch.tensor(large), 0)
    np.testing.assert_allclose(compiled(scans.logcumsumexp(leaf(large, f64), 0)), wanted)


@pytest.mark.parametrize(("shape", "axis"), [((6,), 0), ((3, 5), 0), ((2, 5, 3), 1)])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients(
    rng: np.random.Generator, shape: tuple[int, ...], axis: int, reverse: bool
) -> None:
    def turned(fn: Any) -> Any:
        def run(x: torch.Tensor) -> torch.Tensor:
            return fn(x.flip(axis), axis).flip(axis) if reverse else fn(x, axis)

        return run

    x = rng.standard_normal(shape)
    for ours, theirs in (
        (scans.cumsum, torch.cumsum),
        (scans.cumprod, torch.cumprod),
        (scans.logcumsumexp, torch.logcumsumexp),
        (lambda *a: scans.cummax(*a)[0], lambda x, a: torch.cummax(x, a).values),
        (lambda *a: scans.cummin(*a)[0], lambda x, a: torch.cummin(x, a).values),
    ):
        check_gradient(lambda v, f=ours: f(v, axis, reverse), x, order=2, torch_fn=turned(theirs))


def test_gradient_of_products_with_zeros(rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 6))
    x[0, 2] = x[1, 0] = x[1, 3] = x[2, 5] = 0
    check_gradient(
        lambda v: scans.cumprod(v, 1), x, order=2, torch_fn=lambda v: torch.cumprod(v, 1)
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("started", [False, True])
def test_gradient_of_linear_scan(rng: np.random.Generator, reverse: bool, started: bool) -> None:
    def loop(a: torch.Tensor, b: torch.Tensor, *start: torch.Tensor) -> torch.Tensor:
        steps = range(a.shape[1] - 1, -1, -1) if reverse else range(a.shape[1])
        h = start[0] if start else None
        out = {}
        for t in steps:
            h = b[:, t] if h is None else a[:, t] * h + b[:, t]
            out[t] = h
        return torch.stack([out[t] for t in range(a.shape[1])], 1)

    arrays = [rng.standard_normal((2, 5, 3)), rng.standard_normal((2, 5, 3))]
    if started:
        arrays.append(rng.standard_normal((2, 3)))
    check_gradient(
        lambda a, b, *s: scans.linear_scan(a, b, *(s or (None,)), 1, reverse),
        *arrays,
        order=2,
        torch_fn=loop,
    )


def test_same_bits_for_any_number_of_threads(rng: np.random.Generator) -> None:
    x = leaf(rng.standard_normal((37, 300, 21)), f32)
    a = leaf(rng.random((37, 300, 21)), f32)
    nodes = [scans.cumsum(x, 1), scans.cumsum(x, 2), scans.linear_scan(a, x, None, 1)]
    wanted = [reference(n) for n in nodes[:2]]
    results = [with_threads(n, lambda: compiled(*nodes)) for n in (1, 2, 3, 4)]
    for got in results:
        for one, other in zip(got, results[0]):
            np.testing.assert_array_equal(one, other)
        for one, exact in zip(got, wanted):
            np.testing.assert_array_equal(one, exact)


def test_the_interpreter_agrees(rng: np.random.Generator) -> None:
    x, a = (leaf(rng.standard_normal((3, 18)), f32) for _ in range(2))
    start = leaf(rng.standard_normal(3), f32)
    for node in (
        scans.cumsum(x, 1, True),
        scans.cumprod(x, 0),
        scans.logcumsumexp(x, 1),
        scans.cummax(x, 1, True)[1],
        scans.linear_scan(a, x, start, 1),
    ):
        np.testing.assert_allclose(interpreted(node), compiled(node), rtol=1e-6, atol=1e-6)


def test_errors_name_what_does_not_fit() -> None:
    x = leaf(np.zeros((3, 4)), f32)
    with pytest.raises(ShapeError, match="axis 2 of f32"):
        scans.cumsum(x, 2)
    with pytest.raises(ShapeError, match="wants numbers, got bool"):
        scans.cumsum(leaf(np.zeros(3, bool), boolean), 0)
    with pytest.raises(ShapeError, match="wants floats, got i32"):
        scans.logcumsumexp(leaf(np.zeros(3), i32), 0)
    with pytest.raises(ShapeError, match="one dtype and shape"):
        scans.linear_scan(x, leaf(np.zeros((3, 4)), f64))
    with pytest.raises(ShapeError, match="start of the other axes"):
        scans.linear_scan(x, x, leaf(np.zeros(4), f32), 1)

"""Reductions and what is made of them: values both ways, gradients, ties, zeros, empty axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.ops.gradcheck import check_gradient, compiled, data, referenced, strided

from tilewright import dtypes
from tilewright.dtypes import DType, bf16, boolean, f16, f32, f64
from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.ops import reductions as R
from tilewright.ops.autodiff import vjp
from tilewright.ops.elementwise import ones_like

RUNS = pytest.mark.parametrize("run", [referenced, compiled])

# (axes, keepdims) over three axes
OVER = [(None, False), (1, True), (-1, False), ((0, 2), False), ((), False), ((0, 1), True)]
REDUCED: dict[str, tuple[Callable[..., Node], Callable[..., Any]]] = {
    "sum": (R.sum, np.sum),
    "prod": (R.prod, np.prod),
    "max": (R.max, np.max),
    "min": (R.min, np.min),
}
COMPOSITE: dict[str, tuple[Callable[[Node], Node], Callable[[Any], Any]]] = {
    "mean": (lambda x: R.mean(x, (0, 2)), lambda t: t.mean((0, 2))),
    "mean of all": (R.mean, lambda t: t.mean()),
    "var": (lambda x: R.var(x, -1, 1, True), lambda t: t.var(-1, correction=1, keepdim=True)),
    "var of all": (R.var, lambda t: t.var(correction=0)),
    "softmax": (R.softmax, lambda t: t.softmax(-1)),
    "softmax of axis 0": (lambda x: R.softmax(x, 0), lambda t: t.softmax(0)),
    "log_softmax": (lambda x: R.log_softmax(x, 1), lambda t: t.log_softmax(1)),
    "logsumexp": (lambda x: R.logsumexp(x, (0, 1), True), lambda t: t.logsumexp((0, 1), True)),
    "logsumexp of all": (R.logsumexp, lambda t: t.logsumexp((0, 1, 2))),
}


def example(seed: int = 0, shape: tuple[int, ...] = (3, 4, 5)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize(("axes", "keepdims"), OVER)
def test_gradient(name: str, axes: Any, keepdims: bool) -> None:
    fn = REDUCED[name][0]
    order = 2 if name in ("sum", "prod") else 1
    check_gradient(lambda x: fn(x, axes, keepdims), example(), order=order)


@pytest.mark.parametrize("name", COMPOSITE)
def test_gradient_of_composites(name: str) -> None:
    pytest.importorskip("torch")
    mine, theirs = COMPOSITE[name]
    check_gradient(mine, example(), torch_fn=theirs, order=3)


@pytest.mark.parametrize("name", ["amax", "amin"])
def test_ties_share_evenly_as_in_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    array = np.random.default_rng(1).integers(0, 3, (4, 6, 2)).astype(np.float64)
    x = data(array)
    y = {"amax": R.max, "amin": R.min}[name](x, (0, 1))
    (g,) = referenced(vjp([y], [data(np.array([2.0, 3.0]))], [x]))
    t = torch.tensor(array, requires_grad=True)
    getattr(torch, name)(t, (0, 1)).backward(torch.tensor([2.0, 3.0], dtype=torch.float64))
    np.testing.assert_allclose(g, t.grad.numpy(), rtol=1e-15)


def test_products_with_zeros() -> None:
    """No zero, one, two: the gradient, and its gradient, divide by nothing."""
    array = np.array([[1.0, 2, 3, 4], [0, 2, 3, 4], [0, 2, 0, 4], [0, 0, 0, 4]])
    check_gradient(lambda x: R.prod(x, 1), array, order=3)
    x = data(array)
    y = R.prod(x, 1)
    (g,) = referenced(vjp([y], [ones_like(y)], [x]))
    wanted = [[24, 12, 8, 6], [24, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(g, wanted)


@RUNS
def test_gradients_by_either(run: Any) -> None:
    grads = []
    rng = np.random.default_rng(2)
    for fn, _ in [*REDUCED.values(), *COMPOSITE.values()]:
        x = data(strided(example(3), rng))
        y = fn(x)
        grads.append(vjp([y], [data(rng.standard_normal(y.shape))], [x])[0])
    for got, wanted in zip(run(grads), referenced(grads)):
        np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-13)


# --- values --------------------------------------------------------------------------------------


@RUNS
@pytest.mark.parametrize("dtype", dtypes.ALL, ids=str)
def test_values(dtype: DType, run: Any) -> None:
    rng = np.random.default_rng(4)
    numbers = rng.integers(0, 2 if dtype is boolean else 4, (3, 4, 5)).astype(np.float32)
    x = data(strided(numbers, rng), dtype)
    exact = numbers.astype(bool if dtype is boolean else np.float64)
    nodes, wanted = [], []
    for name, (fn, numpy_fn) in REDUCED.items():
        if dtype is boolean and name in ("sum", "prod"):
            continue
        for axes, keepdims in OVER:
            kept = {"axis": axes, "keepdims": keepdims}
            nodes.append(fn(x, axes, keepdims))
            wanted.append((name, axes, numpy_fn(exact, **kept)))
    for fn, numpy_fn in [(R.argmax, np.argmax), (R.argmin, np.argmin)]:
        for axis in (0, -1):
            nodes.append(fn(x, axis, keepdims=axis == 0))
            wanted.append((numpy_fn.__name__, axis, numpy_fn(exact, axis, keepdims=axis == 0)))
    if dtype is boolean:
        for fn, numpy_fn in [(R.any, np.any), (R.all, np.all)]:
            for axes, keepdims in OVER:
                nodes.append(fn(x, axes, keepdims))
                wanted.append(
                    (numpy_fn.__name__, axes, numpy_fn(exact, axis=axes, keepdims=keepdims))
                )
    for node, got, (name, axes, expected) in zip(nodes, run(nodes), wanted):
        assert node.shape == got.shape
        if dtype.is_integer and name in ("sum", "prod"):
            expected = np.asarray(expected).astype(np.int64).astype(dtype.storage)
        rtol = {f16: 2e-3, bf16: 8e-3}.get(dtype, 1e-6)
        np.testing.assert_allclose(
            got.astype(np.float64), expected, rtol, err_msg=f"{name} over {axes}"
        )


@RUNS
@pytest.mark.parametrize("dtype", [f64, f32, f16, bf16], ids=str)
def test_composites_against_torch(dtype: DType, run: Any) -> None:
    torch = pytest.importorskip("torch")
    x = data(example(5).astype(np.float32), dtype)
    exact = torch.from_numpy(referenced([x])[0].astype(np.float64))
    nodes = [mine(x) for mine, _ in COMPOSITE.values()]
    rtol = {f64: 1e-12, f32: 2e-6, f16: 2e-3, bf16: 1e-2}[dtype]
    for node, got, (name, (_, theirs)) in zip(nodes, run(nodes), COMPOSITE.items()):
        assert node.dtype is dtype
        np.testing.assert_allclose(got, theirs(exact).numpy(), rtol, rtol, err_msg=name)


@RUNS
def test_sums_of_16_bit_floats_round_once(run: Any) -> None:
    """4096 ones: a bf16 accumulator would stop at 256; the mean of f16 does not overflow."""
    many = np.ones(70000, np.float32)
    total, mean = R.sum(data(many[:4096], bf16)), R.mean(data(many * 8, f16))
    got = run([total, mean])
    assert got[0] == 4096
    assert got[1] == 8


@RUNS
def test_extreme_inputs_of_the_composites(run: Any) -> None:
    big = np.array([[1000.0, 0, -1000], [-math.inf, 0, 1], [-math.inf] * 3])
    x = data(big)
    soft, log, lse = run([R.softmax(x), R.log_softmax(x), R.logsumexp(x, 1)])
    np.testing.assert_allclose(soft[0], [1, 0, 0])
    np.testing.assert_allclose(log[0], [0, -1000, -2000])
    np.testing.assert_allclose(lse, [1000, np.log(1 + math.e), -math.inf])
    assert soft[1, 0] == 0
    assert log[1, 0] == -math.inf
    y = R.logsumexp(x, 1)
    (g,) = run(vjp([y], [ones_like(y)], [x]))
    np.testing.assert_allclose(g[:2].sum(1), 1)
    np.testing.assert_array_equal(g[2], 0)
    tall = data(1e8 + np.array([1.0, 2, 3, 4]))
    np.testing.assert_allclose(run([R.var(tall)])[0], 1.25)


@RUNS
def test_nan_spreads_and_is_the_extreme(run: Any) -> None:
    x = data(np.array([[1.0, math.nan, 3], [math.inf, 2, 1]]))
    high, low, at, least = run([R.max(x, 1), R.min(x, 1), R.argmax(x, 1), R.argmin(x, 1)])
    np.testing.assert_array_equal(high, [math.nan, math.inf])
    np.testing.assert_array_equal(low, [math.nan, 1])
    np.testing.assert_array_equal(at, [1, 0])
    np.testing.assert_array_equal(least, [1, 2])


@RUNS
def test_empty_axes(run: Any) -> None:
    x = data(np.zeros((2, 0, 3)))
    none = data(np.zeros((2, 0), bool))
    total, product, any_, all_, nothing, mean = run(
        [R.sum(x, 1), R.prod(x, 1), R.any(none, 1), R.all(none), R.max(x, 0), R.mean(x)]
    )
    np.testing.assert_array_equal(total, np.zeros((2, 3)))
    np.testing.assert_array_equal(product, np.ones((2, 3)))
    np.testing.assert_array_equal(any_, [False, False])
    assert all_ == True  # noqa: E712
    assert nothing.shape == (0, 3)
    assert math.isnan(mean)
    for y in (R.sum(x, 1), R.prod(x, 1), R.mean(x, 0)):
        (g,) = vjp([y], [ones_like(y)], [x])
        assert run([g])[0].shape == (2, 0, 3)
    for fn in (R.max, R.min):
        with pytest.raises(ShapeError, match=r"over axes \(1,\) of \(2, 0, 3\) has no elements"):
            fn(x, 1)
    with pytest.raises(ShapeError, match="has no elements"):
        R.argmax(x, 1)


def test_refusals() -> None:
    with pytest.raises(ShapeError, match="sum does not take bool: cast"):
        R.sum(data(np.zeros(3, bool)))
    with pytest.raises(ShapeError, match="any does not take f64"):
        R.any(data(np.zeros(3)))
    with pytest.raises(ShapeError, match="axis 3 does not exist"):
        R.sum(data(np.zeros(3)), 3)
    with pytest.raises(ShapeError, match="wanted floats, got i64"):
        R.mean(data(np.zeros(3, np.int64)))

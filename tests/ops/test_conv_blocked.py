"""Blocked images: layouts, convolutions and pooling against the plain ops, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.ops.gradcheck import compiled, data
from tests.ops.node_calls import LAYOUTS, check, leaf

from tilewright.dtypes import bf16, f16, f32, f64, i32
from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.ops.blocked import from_blocked, to_blocked
from tilewright.ops.conv import conv
from tilewright.ops.conv_blocked import conv_blocked, depthwise_blocked
from tilewright.ops.pool import avg_pool, max_pool
from tilewright.ops.pool_blocked import pool_blocked, suits
from tilewright.ops.views import sizes_of

# batch, channels, size, outputs, kernel, strides, padding, dilation, groups
CASES: list[tuple[Any, ...]] = [
    (2, 16, (9, 10), 16, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    (1, 20, (7, 7), 37, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    (1, 40, (14, 30), 64, (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 1),
    (1, 32, (15, 17), 48, (3, 3), (2, 2), ((1, 0), (0, 1)), (1, 1), 1),
    (2, 64, (8, 11), 64, (3, 2), (1, 2), ((2, 1), (1, 1)), (2, 3), 2),
    (1, 3, (30, 33), 64, (7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1), 1),
    (1, 1, (28, 28), 8, (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1), 1),
    (1, 5, (1, 50), 16, (1, 3), (1, 1), ((0, 0), (1, 1)), (1, 1), 1),
    (3, 33, (1, 1), 130, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    (1, 16, (5, 5), 64, (3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    (2, 20, (9, 10), 24, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    (1, 12, (6, 50), 40, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    (1, 64, (3, 700), 16, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    (1, 512, (17, 20), 16, (3, 3), (1, 1), ((4, 4), (4, 4)), (4, 4), 1),
    (1, 1024, (9, 20), 16, (3, 3), (1, 1), ((12, 12), (12, 12)), (12, 12), 1),
]


def value(*nodes: Node) -> list[np.ndarray]:
    return compiled(nodes)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 20, 5, 7), (1, 16, 33), (1, 3, 1, 1), (2, 32, 1, 40)])
def test_layouts(shape: tuple[int, ...], layout: str) -> None:
    x = np.random.default_rng(0).integers(-99, 99, shape)
    for dtype in (f32, f16, f64):
        there = to_blocked(leaf(x, dtype, layout))
        check(there, from_blocked(there, shape))
        np.testing.assert_array_equal(value(from_blocked(there, shape))[0], x)


def case_data(case: tuple[Any, ...]) -> tuple[np.ndarray, np.ndarray]:
    n, c, size, o, kernel, *_, groups = case
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, c, *size), np.float32)
    return x, rng.standard_normal((o, c // groups, *kernel), np.float32)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_bits_are_those_of_the_plain_convolution(case: tuple[Any, ...], plain: bool) -> None:
    strides, padding, dilation, groups = case[5:]
    if plain and groups > 1:
        return
    x, w = map(data, case_data(case))
    want = conv(x, w, strides, padding, dilation, groups)
    image = x if plain else to_blocked(x)
    got = from_blocked(conv_blocked(image, w, strides, padding, dilation, groups), want.shape)
    first, second = value(got, want)
    if sizes_of(w)[0] // groups >= 8:  # the plain op takes another order for narrow ones
        np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, second, 1e-4, 1e-4)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("case", [*CASES[:6], *CASES[10:12]])
def test_references(case: tuple[Any, ...], plain: bool) -> None:
    strides, padding, dilation, groups = case[5:]
    if plain and groups > 1:
        return
    x, w = case_data(case)
    for dtype, compute, tolerance in ((f32, None, 1e-4), (f16, None, 2e-3), (f32, bf16, 1e-4)):
        image = leaf(x, dtype)
        image = image if plain else to_blocked(image)
        node = conv_blocked(image, data(w), strides, padding, dilation, groups, compute)
        check(node, rtol=tolerance, atol=20 * tolerance)


@pytest.mark.parametrize(
    "case",
    [
        (2, 20, (9, 10), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
        (1, 16, (14, 30), (3, 3), (2, 2), ((0, 1), (0, 1)), (1, 1)),
        (1, 48, (7, 7), (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1)),
        (2, 20, (5, 50), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
        (1, 16, (9, 60), (3, 3), (2, 2), ((1, 2), (1, 2)), (1, 1)),
        (1, 16, (2, 3), (7, 7), (1, 1), ((3, 3), (3, 3)), (1, 1)),
        (1, 16, (12, 40), (3, 2), (1, 3), ((2, 1), (4, 4)), (2, 3)),
    ],
)
def test_depthwise(case: tuple[Any, ...]) -> None:
    n, c, size, kernel, strides, padding, dilation = case
    rng = np.random.default_rng(0)
    x = data(rng.standard_normal((n, c, *size), np.float32))
    w = data(rng.standard_normal((c, 1, *kernel), np.float32))
    want = conv(x, w, strides, padding, dilation, c)
    blocked = depthwise_blocked(to_blocked(x), w, strides, padding, dilation)
    got, plain = value(from_blocked(blocked, want.shape), want)
    np.testing.assert_array_equal(got, plain)
    check(blocked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((12, 13), {"kernel": 2}),
        ((12, 13), {"kernel": 3, "strides": 2, "padding": 1}),
        ((9, 40), {"kernel": (3, 2), "strides": 2, "padding": ((1, 0), (0, 1)), "ceil_mode": True}),
        ((9, 10), {"kernel": 3, "strides": 1, "padding": 1, "dilation": 2}),
        ((3, 3), {"kernel": 3, "strides": 1, "padding": 1}),
    ],
)
def test_pooling(size: tuple[int, int], settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 20, *size), np.float32)
    x[0, 0, 1, 1] = np.nan
    image = data(x)
    wanted = [(max_pool(image, **settings)[0].inputs[0], max_pool(image, **settings)[0])]
    for include in (False, True):
        node = avg_pool(image, **settings, count_include_pad=include)
        wanted.append((node, node))
    for node, want in wanted:
        if not suits(node):
            assert settings.get("ceil_mode")
            continue
        blocked = pool_blocked(to_blocked(image), node)
        got, plain = value(from_blocked(blocked, want.shape), want)
        np.testing.assert_array_equal(got, plain)
        check(blocked, rtol=1e-6, atol=1e-6)


def test_same_bits_in_any_batch() -> None:
    x, w = case_data((5, 16, (9, 9), 32, (3, 3), 1))
    one = [(1, 1), ((1, 1), (1, 1)), (1, 1)]
    many = value(conv_blocked(to_blocked(data(x)), data(w), *one))[0]
    for i in range(5):
        alone = value(conv_blocked(to_blocked(data(x[i : i + 1])), data(w), *one))[0]
        np.testing.assert_array_equal(alone[0], many[i])


def test_what_does_not_fit_is_refused() -> None:
    x, w = data(np.zeros((1, 20, 5, 5), np.float32)), data(np.zeros((8, 16, 3, 3), np.float32))
    rest = (1, 1), ((0, 0), (0, 0)), (1, 1)
    with pytest.raises(ShapeError, match="conv_blocked"):
        conv_blocked(x, w, *rest)
    with pytest.raises(ShapeError, match="conv_blocked"):
        conv_blocked(to_blocked(data(np.zeros((1, 20, 5, 5), np.int32))), w, *rest)
    with pytest.raises(ShapeError, match="depthwise"):
        depthwise_blocked(to_blocked(x), data(np.zeros((40, 1, 3, 3), np.float32)), *rest)
    with pytest.raises(ShapeError, match="from_blocked"):
        from_blocked(to_blocked(x), (1, 40, 5, 5))
    with pytest.raises(ShapeError, match="to_blocked"):
        to_blocked(leaf(np.zeros((3, 4)), i32))

"""Bytes put together, alternated, requantised and pooled, channels last."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.ops.node_calls import check, compiled, leaf, reference

from tilewright.dtypes import DType, f32, i8, u8
from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.ops.integer_moves import affine_fit, byte_join, byte_max_pool
from tilewright.ops.quantize import rounded

RNG = np.random.default_rng(0)


def images(dtype: DType = u8, channels: int = 60) -> Node:
    return leaf(RNG.integers(0, 256, (2, 3, 5, channels)) - (128 if dtype is i8 else 0), dtype)


def numbers(count: int) -> Node:
    """Scales, zero points, scales, zero points."""
    return leaf(np.tile([0.02, 100.0, 0.03, 90.0], (count, 1)), f32)


def agree(node: Node, real: int) -> None:
    """What only fills a word may be anything."""
    np.testing.assert_array_equal(compiled(node)[..., :real], reference(node)[..., :real])


@pytest.mark.parametrize("how", [("copy", "copy"), ("copy", "exact"), ("affine", "exact")])
@pytest.mark.parametrize("dtype", [u8, i8], ids=str)
def test_joins(how: tuple[str, str], dtype: DType) -> None:
    xs, more = [images(dtype), images(dtype)], numbers(2)
    common: Any = {"dtype": dtype, "how": how}
    for start, stop in ((0, 116), (0, 58), (58, 116)):
        node = byte_join(
            xs, more, channels=(58, 58), alternate=True, start=start, stop=stop, **common
        )
        agree(node, stop - start)
    agree(byte_join(xs, more, channels=(58, 50), alternate=False, start=7, stop=101, **common), 94)


def test_alternating_is_a_channel_shuffle() -> None:
    a, b = images(), images()
    node = byte_join(
        [a, b], numbers(2), channels=(58, 58), alternate=True, start=0, stop=116, dtype=u8,
        how=("copy", "copy"),
    )  # fmt: skip
    x, y = (v.value.numpy()[..., :58] for v in (a, b))
    got = compiled(node)
    np.testing.assert_array_equal(got[..., 0:116:2], x)
    np.testing.assert_array_equal(got[..., 1:116:2], y)


def test_a_fit_gives_the_same_bytes() -> None:
    rng = np.random.default_rng(1)
    found = 0
    q = np.arange(256)
    for _ in range(100):
        sx, sy = rng.uniform(0.003, 0.1, 2).astype(np.float32)
        zx, zy = rng.integers(0, 256, 2).astype(np.uint8)
        fit = affine_fit(sx, zx, sy, zy)
        if fit is None:
            continue
        found += 1
        exact = rounded((q - int(zx)).astype(np.float32) * sx / sy, zy, 0, 255, np.int32)
        sums = (q * np.float64(fit[0]) + np.float64(fit[1])).astype(np.float32)
        np.testing.assert_array_equal(np.clip(np.rint(sums), 0, 255), exact)
    assert found > 90


@pytest.mark.parametrize("dtype", [u8, i8], ids=str)
def test_pooling(dtype: DType) -> None:
    x = images(dtype, 20)
    for kernel, strides, low, out in (
        ((3, 3), (2, 2), (1, 1), (2, 3)),
        ((1, 2), (1, 1), (0, 0), (3, 4)),
    ):
        check(byte_max_pool(x, kernel=kernel, strides=strides, low=low, out=out))


def test_mistakes() -> None:
    with pytest.raises(ShapeError, match="two arrays of equal channels"):
        byte_join(
            [images()], numbers(1), channels=(58,), alternate=True, start=0, stop=58, dtype=u8,
            how=("copy",),
        )  # fmt: skip

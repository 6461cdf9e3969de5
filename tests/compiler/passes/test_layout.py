"""The layout of images and folded normalisations: same values, few conversions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from tests.ops.gradcheck import compiled, data

from tilewright.compiler.fusion import pending
from tilewright.compiler.passes.inference import for_inference
from tilewright.compiler.passes.layout import blocked_images
from tilewright.dtypes import bf16, f16, f32, i32
from tilewright.graph import Node
from tilewright.ops import elementwise as ew
from tilewright.ops import reductions
from tilewright.ops.conv import conv
from tilewright.ops.indexing import take
from tilewright.ops.pool import avg_pool, max_pool
from tilewright.ops.resize import resize
from tilewright.ops.views import broadcast, concat, pad, reshape, sizes_of

RNG = np.random.default_rng(0)


def weight(*shape: int) -> Node:
    return data(RNG.standard_normal(shape, np.float32) / np.float32(np.prod(shape[1:]) ** 0.5))


def channels(n: int) -> Node:
    return data(RNG.random((n, 1, 1)).astype(np.float32) + np.float32(0.5))


def network(x: Node) -> list[Node]:
    """A residual block, a squeeze-and-excite, poolings, depthwise, concatenation, upsampling."""
    h = conv(x, weight(32, 3, 3, 3), 2, 1)
    h = ew.relu(ew.add(ew.mul(ew.add(h, channels(32)), channels(32)), channels(32)))
    h, _ = max_pool(h, 3, 2, 1)
    a = conv(h, weight(32, 1, 3, 3), 1, 1, 1, 32)
    a = ew.clip(a, ew.literal(0.0, a), ew.literal(6.0, a))
    a = ew.add(ew.sub(conv(a, weight(32, 32, 1, 1)), channels(32)), h)
    gate = reductions.mean(a, (2, 3), True)
    gate = ew.sigmoid(conv(gate, weight(32, 32, 1, 1)))
    a = ew.mul(a, gate)
    spot = reductions.max(a, 1, True)
    a = ew.mul(a, broadcast(spot, a.shape))
    b = avg_pool(conv(a, weight(20, 32, 3, 3), 1, 1), 2)
    c = pad(conv(a, weight(16, 32, 2, 2), 2), ((0, 0), (0, 0), (0, 0), (0, 0)), 0)
    joined = concat([c, b], 1)
    ids = data(np.array([0, 0, 1, 1, 2], np.int32))
    up = resize(take(take(joined, ids, 2), ids, 3), [2.0, 1.5], axes=(2, 3), mode="linear")
    flat = reshape(up, (sizes_of(up)[0], -1))
    return [ew.add(up, ew.literal(1.0, up)), reductions.sum(flat, 1), ew.cast(joined, i32)]


@pytest.mark.parametrize("batch", [1, 3])
def test_values_stay(batch: int) -> None:
    x = data(RNG.standard_normal((batch, 3, 33, 30), np.float32))
    roots = network(x)
    want = compiled(roots[:2])
    roots = [Node(r.op, r.inputs, r.shape, r.dtype, r.attrs) for r in roots]
    got = for_inference(roots, lambda node: node is x)
    for one, other in zip(compiled(got[:2]), want):
        np.testing.assert_allclose(one, other, 2e-4, 2e-4)


def test_one_way_in_and_few_out() -> None:
    x = data(RNG.standard_normal((1, 3, 33, 30), np.float32))
    order = pending(for_inference(network(x), lambda node: node is x))
    ops = Counter(n.op for n in order if n.value is None)
    assert ops["conv"] == 0
    assert ops["conv_blocked"] == 5
    assert ops["depthwise_blocked"] == 1
    assert ops["max_pool_blocked"] == ops["avg_pool_blocked"] == 1
    assert ops["from_blocked"] == 5  # what the mean, the maximum, the sum read; two results
    images = [n for n in order if n.op == "to_blocked" and sizes_of(n)[2:4] != (1, 1)]
    assert not images


def test_the_same_bits_without_normalisations() -> None:
    x = data(RNG.standard_normal((2, 16, 12, 12), np.float32))
    y = ew.relu(ew.add(conv(x, weight(24, 16, 3, 3), 1, 1), channels(24)))
    y = ew.add(conv(y, weight(24, 24, 3, 3), 1, 1), y)
    other = blocked_images([y], lambda node: node is x)
    assert other[0] is not y
    np.testing.assert_array_equal(*compiled([other[0], y]))


def test_what_may_be_infinite_beyond_the_last_channel_stays_plain() -> None:
    x = data(RNG.standard_normal((1, 4, 6, 6), np.float32))
    y = conv(x, weight(20, 4, 3, 3))
    y = ew.div(y, channels(20))  # blocked, the zeros beyond would be divided by zeros
    y = conv(y, weight(8, 20, 3, 3))
    want = compiled([Node(y.op, y.inputs, y.shape, y.dtype, y.attrs)])
    got = compiled(blocked_images([y], lambda node: node is x))
    np.testing.assert_allclose(got[0], want[0], 1e-5, 1e-5)


def test_one_dimension_and_groups() -> None:
    x = data(RNG.standard_normal((2, 8, 50), np.float32))
    y = ew.relu(conv(x, weight(32, 8, 5), 2, 2))
    y = conv(y, weight(64, 16, 3), 1, ((1, 2),), 1, 2)
    y = conv(y, weight(64, 1, 3), 1, 1, 1, 64)
    other = blocked_images([y], lambda node: node is x)
    assert not any(n.op == "conv" for n in pending(other))
    np.testing.assert_array_equal(*compiled([other[0], y]))


def test_weights_that_change_stay_where_they_are() -> None:
    x, w = data(RNG.standard_normal((1, 8, 9, 9), np.float32)), weight(16, 8, 3, 3)
    y = conv(x, w)
    assert blocked_images([y], lambda node: node in (x, w))[0].op == "conv"


def test_bf16() -> None:
    x = data(RNG.standard_normal((1, 32, 9, 9), np.float32))
    y = conv(x, weight(16, 32, 3, 3), 1, 1)
    (other,) = blocked_images([y], lambda node: node is x, bf16)
    got, want = compiled([other, y])
    np.testing.assert_allclose(got, want, 0.05, 0.02)
    assert not np.array_equal(got, want)


def test_half_precision_is_rounded_where_it_leaves() -> None:
    x = data(RNG.standard_normal((1, 3, 20, 20)), f16)
    w = [ew.cast(weight(*shape), f16) for shape in ((16, 3, 3, 3), (32, 16, 1, 1), (32, 32, 3, 3))]
    y = ew.relu(ew.add(conv(x, w[0], 2), ew.cast(channels(16), f16)))
    y = conv(max_pool(conv(y, w[1]), 2)[0], w[2], 1, 1)
    y = ew.maximum(ew.mul(ew.cast(ew.cast(y, f32), f16), ew.literal(0.5, y)), ew.literal(0.0, y))
    other = blocked_images([y], lambda node: node is x)
    assert other[0].dtype is f16
    casts = [n for n in pending(other) if n.op == "cast" and n.dtype is f16 and n.shape == y.shape]
    assert casts == other
    got, want = compiled([*other, y])
    np.testing.assert_allclose(got, want, 2e-2, 2e-2)

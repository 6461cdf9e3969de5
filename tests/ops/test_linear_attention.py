"""Linear attention against its reference, for every rule and odd sizes."""

import numpy as np
import pytest

from tilewright.compiler.realize import realize
from tilewright.errors import ShapeError
from tilewright.graph import data_node, topological
from tilewright.ops.linear_attention import linear_attention
from tilewright.ops.table import evaluate_nodes
from tilewright.runtime.buffers import from_array


def leaves(b, t, h, kv, dk, dv, dtype=np.float32):
    rng = np.random.default_rng(0)

    def made(*shape, scale=1.0):
        return data_node(from_array((rng.standard_normal(shape) * scale).astype(dtype)))

    small = max(dk, 1) ** -0.5
    basis = made(b, t, h, dk, scale=small), made(b, t, kv, dk, scale=small), made(b, t, kv, dv)
    gain = data_node(from_array(rng.random((b, t, kv, dk)).astype(dtype)))
    beta = data_node(from_array(rng.random((b, t, kv)).astype(dtype)))
    return [*basis, made(b, kv, dk, dv)], gain, beta


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        ((1, 1, 1, 1, 1, 1), np.float32),
        ((2, 5, 6, 2, 7, 19), np.float32),
        ((1, 9, 4, 4, 16, 32), np.float32),
        ((1, 4, 2, 1, 5, 11), np.float64),
    ],
)
def test_it_is_its_reference(gated, delta, sizes, dtype):
    inputs, gain, beta = leaves(*sizes, dtype)
    outs = linear_attention(*inputs, gain if gated else None, beta if delta else None)
    want = evaluate_nodes(topological(outs), {})
    for out, buffer in zip(outs, realize(list(outs))):
        tol = 1e-12 if dtype is np.float64 else 3e-5
        np.testing.assert_allclose(buffer.numpy(), want[out], rtol=tol, atol=tol)


@pytest.mark.parametrize("empty", range(6))
def test_empty_axes(empty):
    sizes = [2, 3, 4, 2, 5, 6]
    sizes[empty] = 0
    if empty == 3:
        with pytest.raises(ShapeError):
            linear_attention(*leaves(*sizes)[0])
        return
    inputs = leaves(*sizes)[0] if sizes[2] else leaves(2, 3, 0, 2, 5, 6)[0]
    outs = linear_attention(*inputs)
    found = [b.numpy() for b in realize(list(outs))]
    assert not found[0].any() or sizes[4]
    if not sizes[1]:
        np.testing.assert_array_equal(found[1], inputs[3].value.numpy())


def test_what_does_not_fit_is_refused():
    inputs, gain, _ = leaves(1, 2, 2, 2, 3, 4)
    with pytest.raises(ShapeError, match="linear_attention wants"):
        linear_attention(*inputs[:3], gain)

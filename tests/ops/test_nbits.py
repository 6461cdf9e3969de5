"""Products with 2-, 4- and 8-bit weights: kernels beside the reference, rows beside batches."""

from __future__ import annotations

import numpy as np
import pytest
from tests.ops.node_calls import compiled, interpreted, leaf, reference

from tilewright.dtypes import f32
from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.ops.nbits import nbits_matmul, pack_nbits, unpacked_nbits


def product(m: int, k: int, n: int, bits: int, block: int, int8: bool) -> Node:
    rng = np.random.default_rng(m + k + bits)
    q = rng.integers(0, 1 << bits, (n, k))
    scale = rng.uniform(0.01, 0.1, (n, k // block))
    zero = rng.integers(0, 1 << bits, scale.shape).astype(np.float64)
    x = leaf(rng.standard_normal((m, k)), f32)
    packed = pack_nbits(q, scale, zero, bits)
    np.testing.assert_array_equal(unpacked_nbits(packed[0].value.numpy(), bits)[:n], q)
    return nbits_matmul(x, *packed, outputs=n, bits=bits, block=block, int8=int8)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    ("m", "k", "n", "bits", "block"),
    [(1, 128, 70, 4, 32), (3, 96, 64, 8, 32), (13, 128, 65, 4, 64), (7, 256, 10, 2, 128)],
)
def test_products(m: int, k: int, n: int, bits: int, block: int, int8: bool) -> None:
    node = product(m, k, n, bits, block, int8)
    np.testing.assert_allclose(compiled(node), reference(node), rtol=2e-4, atol=2e-4 * k)


def test_blocks_of_sixteen_and_the_interpreter() -> None:
    node = product(2, 32, 5, 4, 16, False)
    np.testing.assert_allclose(compiled(node), reference(node), rtol=2e-4, atol=1e-3)
    np.testing.assert_allclose(compiled(node), interpreted(node), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("int8", [False, True])
def test_a_row_has_the_same_bits_in_any_batch(int8: bool) -> None:
    whole = product(9, 128, 64, 4, 32, int8)
    x = whole.inputs[0].value.numpy()
    together = compiled(whole)
    for rows in ([0], [2, 3, 4], list(range(5))):
        part = nbits_matmul(leaf(x[rows], f32), *whole.inputs[1:], **whole.attrs)
        np.testing.assert_array_equal(compiled(part), together[rows])


def test_mistakes() -> None:
    node = product(1, 64, 8, 4, 32, False)
    with pytest.raises(ShapeError, match="blocks of 48"):
        nbits_matmul(*node.inputs, outputs=8, bits=4, block=48, int8=False)

"""Elementwise work inside products: the bits of separate kernels, and what the references say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tilewright.compiler.fusion import pending
from tilewright.compiler.passes.epilogue import fuse_epilogues
from tilewright.compiler.realize import realize
from tilewright.dtypes import bf16, f32
from tilewright.graph import Node, const_node, data_node
from tilewright.ops import elementwise as ew
from tilewright.ops import reductions, table, views
from tilewright.ops.gemm import bmm
from tilewright.runtime.buffers import from_array

RNG = np.random.default_rng(0)
M, K, N = 70, 90, 75


def leaf(*shape: int) -> Node:
    return data_node(from_array(RNG.standard_normal(shape).astype(np.float32)))


def _gated(y: Node) -> Node:
    return ew.mul(ew.silu(y), bmm(leaf(M, K), leaf(K, N)))


def _bias_gelu_residual(y: Node) -> Node:
    return ew.add(leaf(M, N), ew.gelu_erf(ew.add(y, leaf(N))))


def _by_column(y: Node) -> Node:
    return ew.sub(ew.mul(y, leaf(M, 1)), leaf(1, 1))


def _reshaped(y: Node) -> Node:
    z = ew.relu(ew.add(views.reshape(y, (2, 35, N)), leaf(N)))
    return ew.add(leaf(2, 35, N), ew.mul(z, const_node(0.5, f32)))


def _twice(y: Node) -> Node:
    return ew.mul(y, ew.sigmoid(ew.mul(y, const_node(1.7, f32))))


def _cast(y: Node) -> Node:
    return ew.cast(ew.tanh(ew.add(y, leaf(N))), bf16)


def _number(y: Node) -> Node:
    return ew.mul(y, data_node(from_array(np.array(3.0, np.float32))))


CHAINS = [_gated, _bias_gelu_residual, _by_column, _reshaped, _twice, _cast, _number]


def fused(roots: list[Node]) -> list[Node]:
    return [n for n in fuse_epilogues(roots)[0] if "epilogue" in n.attrs]


def in_steps(root: Node) -> np.ndarray:
    """Every node by a program of its own."""
    for node in pending([root]):
        if node.value is None and node.op != "const":
            realize([node])
    return root.value.numpy()


@pytest.mark.parametrize("chain", CHAINS)
def test_same_bits_as_separate_kernels(chain: Callable[[Node], Node]) -> None:
    a, b = leaf(M, K), leaf(K, N)
    state = RNG.bit_generator.state
    one = chain(bmm(a, b))
    RNG.bit_generator.state = state
    other = chain(bmm(a, b))
    assert len(fused([one])) == 1
    together = realize([one])[0].numpy()
    assert np.array_equal(together, in_steps(other))


@pytest.mark.parametrize("chain", CHAINS)
def test_reference(chain: Callable[[Node], Node]) -> None:
    root = chain(bmm(leaf(M, K), leaf(K, N)))
    order, new = fuse_epilogues([root])
    assert len(fused([root])) == 1
    plain, changed = table.evaluate_nodes(pending([root]), {}), table.evaluate_nodes(order, {})
    assert np.array_equal(plain[root], changed[new[root]])


@pytest.mark.parametrize("batch", [(3,), (2, 1), (2, 2, 2)])
def test_batches(batch: tuple[int, ...]) -> None:
    a, b, state = leaf(*batch, M, K), leaf(*batch[1:], K, N), RNG.bit_generator.state

    def scores() -> Node:
        y = ew.mul(bmm(a, b), const_node(0.125, f32))
        return ew.add(ew.add(y, leaf(batch[0], *(1,) * len(batch), N)), leaf(M, N))

    one = scores()
    RNG.bit_generator.state = state
    assert len(fused([one])) == 1
    assert np.array_equal(realize([one])[0].numpy(), in_steps(scores()))


@pytest.mark.parametrize("m", [1, 5, 17, 600])
def test_every_kernel_has_them(m: int) -> None:
    a, b, bias, more = leaf(m, 900), leaf(900, 330), leaf(330), leaf(m, 330)

    def chain() -> Node:
        y = bmm(a, b, compute=bf16, out_dtype=bf16)
        return ew.add(ew.cast(ew.add(y, ew.cast(bias, bf16)), f32), more)

    one = chain()
    assert len(fused([one])) == 1
    assert np.array_equal(realize([one])[0].numpy(), in_steps(chain()))


def test_what_stays_outside() -> None:
    """What others read, what repeats along rows, small products."""
    y = bmm(leaf(M, K), leaf(K, N))
    assert not fused([y, ew.relu(y)])
    assert not fused([ew.sub(y, reductions.max(y, (1,), True))])
    assert not fused([ew.add(views.reshape(y, (2, 35, N)), leaf(35, N))])
    assert not fused([ew.relu(bmm(leaf(8, 8), leaf(8, 8)))])
    assert not fused([views.permute(y, (1, 0))])
    large = bmm(leaf(200, K), leaf(K, 100))
    # computed on the way by the kernel that adds; as an operand of a product it would be stored
    assert not fused([ew.add(large, ew.exp(leaf(200, 100)))])


def test_only_the_last_value_is_read_elsewhere() -> None:
    y = bmm(leaf(M, K), leaf(K, N))
    h = ew.add(y, leaf(N))
    (node,) = fused([ew.relu(h), h])
    assert [s.op for s in node.attrs["epilogue"].steps] == ["add"]
    (node,) = fused([reductions.sum(ew.relu(h), (0,))])
    assert [s.op for s in node.attrs["epilogue"].steps] == ["add", "relu"]

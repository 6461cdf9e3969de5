"""Compiled tensor graphs: against the ops' references, and the same bits however they are cut."""

from __future__ import annotations

import numpy as np
import pytest
from tests.compiler.random_graphs import EMPTY, HUGE, MANY_AXES, Sizes, random_roots

from tilewright.compiler.fusion import partition, pending
from tilewright.compiler.numbers import scalar_bits
from tilewright.compiler.realize import realize, structure
from tilewright.compiler.static import build
from tilewright.dtypes import f32
from tilewright.graph import Node, data_node, scalar_node
from tilewright.ops import elementwise as ew
from tilewright.ops import gemm, reductions, table, views
from tilewright.runtime.buffers import Buffer, empty, from_array
from tilewright.runtime.launch import default_target, pool_of
from tilewright.runtime.memory import take


def leaf(array: np.ndarray) -> Node:
    return data_node(from_array(array))


def run(roots: list[Node], threads: int) -> list[np.ndarray]:
    """The values of ``roots`` by a program of their own, on ``threads`` threads."""
    order = pending(roots)
    program = build(roots, default_target(), pool_of(threads), order)
    memories = [take(n) for n in program.output_bytes]
    arena = take(program.arena_bytes)
    addresses = [n.value.pointer for n in order if n.value is not None]
    addresses += [m.pointer for m in memories] + [arena.pointer]
    numbers = [
        scalar_bits(order[i].attrs["value"], order[i].dtype) for i in program.scalar_positions
    ]
    program.run(addresses, numbers)
    found = []
    for out in program.outputs:
        pointer = addresses[out.place] + out.offset
        buffer = Buffer(out.dtype, out.shape, out.strides, pointer, (memories, arena))
        found.append(buffer.numpy().copy())
    return found


@pytest.mark.parametrize("block", range(12))
def test_random_graphs_against_references(block: int) -> None:
    for seed in range(block * 10, block * 10 + 10):
        roots = random_roots(seed)
        if not roots:
            continue
        expected = table.evaluate_nodes(pending(roots), {})
        for root, buffer in zip(roots, realize(roots)):
            np.testing.assert_allclose(
                buffer.numpy(), expected[root], rtol=2e-3, atol=2e-3, err_msg=f"seed {seed}"
            )


@pytest.mark.parametrize(("sizes", "seeds"), [(EMPTY, 16), (MANY_AXES, 16), (HUGE, 4)])
def test_graphs_of_unusual_shapes(sizes: Sizes, seeds: int) -> None:
    """Axes without elements, many axes, and arrays that no cache holds."""
    for seed in range(seeds):
        roots = random_roots(seed, sizes)
        if not roots:
            continue
        expected = table.evaluate_nodes(pending(roots), {})
        one, several = run(roots, 1), run(roots, 3)
        realize(roots)
        for root, a, b in zip(roots, one, several):
            np.testing.assert_array_equal(a, b, err_msg=f"seed {seed}")
            np.testing.assert_array_equal(a, root.value.numpy(), err_msg=f"seed {seed}")
            size = max(1.0, float(np.abs(expected[root]).max(initial=0)))
            np.testing.assert_allclose(
                a, expected[root], rtol=2e-3, atol=2e-5 * size, err_msg=f"seed {seed}"
            )


@pytest.mark.parametrize("block", range(6))
def test_fusion_and_threads_change_no_bit(block: int) -> None:
    for seed in range(1000 + block * 8, 1008 + block * 8):
        roots = random_roots(seed)
        if not roots:
            continue
        whole = [run(roots, threads) for threads in (1, 2, 4)]
        for node in pending(roots):  # now every node by itself
            if node.value is None and node.op not in ("const", "scalar"):
                realize([node])
        realize(roots)
        for root, *several in zip(roots, *whole):
            alone = root.value.numpy()
            for one in several:
                np.testing.assert_array_equal(one, alone, err_msg=f"seed {seed}: {root!r}")


def test_strides_change_no_bit_of_a_sum() -> None:
    rng = np.random.default_rng(0)
    for shape, axes in (((5, 7, 300), (1, 2)), ((40, 6, 3), (1, 2)), ((6, 50, 9), (0,))):
        array = rng.standard_normal(shape).astype(np.float32)
        strided = np.empty((*shape[::-1], 2), np.float32).transpose(2, 1, 0, 3)[..., 0]
        strided[...] = array
        first, second = (reductions.sum(leaf(a), axes) for a in (array, strided))
        realize([first])
        realize([second])
        np.testing.assert_array_equal(first.value.numpy(), second.value.numpy())


def test_softmax_is_one_kernel_and_a_norm_with_its_gradient_two() -> None:
    x = leaf(np.ones((6, 50), np.float32))
    root = reductions.softmax(x)
    groups, _ = partition(pending([root]), [root])
    assert len(groups) == 1
    m = ew.add(ew.mul(x, scalar_node(0.9, f32)), ew.mul(ew.tanh(x), scalar_node(0.1, f32)))
    groups, _ = partition(pending([m]), [m])
    assert len(groups) == 1


def test_long_reductions_are_shared_by_programs() -> None:
    rng = np.random.default_rng(1)
    for shape, axes in (((300, 1000), (0, 1)), ((200_000,), (0,)), ((70_000, 3), (0,))):
        array = rng.standard_normal(shape).astype(np.float32)
        node = reductions.sum(leaf(array), axes)
        order = pending([node])
        (group,), _ = partition(order, [node])
        assert group.closed
        realize([node])
        np.testing.assert_allclose(
            node.value.numpy(), array.astype(np.float64).sum(axes), rtol=1e-4, atol=1e-2
        )


def test_structure_is_compiled_once_and_numbers_are_not_part_of_it() -> None:
    def key(value: float, n: int) -> object:
        x = leaf(np.ones(n, np.float32))
        root = ew.mul(x, scalar_node(value, f32))
        return structure(pending([root]), [root])

    assert key(1.0, 5) == key(2.0, 5)
    assert key(1.0, 5) != key(1.0, 6)


def test_views_of_leaves_are_not_copied() -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    x = leaf(array)
    node = views.permute(views.slice_(x, (3, 0), (4, 6), (-1, 1)), (1, 0))
    realize([node])
    assert np.shares_memory(node.value.numpy(), array)
    np.testing.assert_array_equal(node.value.numpy(), array[::-1].T)


def test_memory_comes_back() -> None:
    first = take(1 << 20)
    pointer = first.pointer
    del first
    assert take(1 << 20).pointer == pointer


def test_empty_results_and_empty_sums() -> None:
    x = leaf(np.empty((0, 4), np.float32))
    total, doubled = reductions.sum(x, (0,)), ew.add(x, x)
    realize([total, doubled])
    np.testing.assert_array_equal(total.value.numpy(), np.zeros(4))
    assert doubled.value.shape == (0, 4)
    assert empty(f32, (0,)).size == 0


def test_short_last_axes_are_walked_along_a_longer_one() -> None:
    x = np.random.default_rng(0).standard_normal((2, 9, 5, 130), np.float32)
    apart = views.reshape(leaf(x), (2, 3, 3, 5, 130))
    turned = views.permute(apart, (0, 3, 1, 4, 2))
    y = ew.mul(views.copy(turned), ew.exp(views.broadcast(leaf(x[0, 0, 0, :3].copy()), (3,))))
    (expected,) = (table.evaluate_nodes(pending([y]), {})[n] for n in [y])
    one = run([y], 1)[0]
    np.testing.assert_allclose(one, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(run([y], 2)[0], one)


def test_copies_that_turn_axes_round() -> None:
    x = np.random.default_rng(0).standard_normal((2, 37, 3, 50), np.float32)
    for axes in ((0, 2, 3, 1), (3, 0, 1, 2), (2, 3, 0, 1), (0, 3, 2, 1)):
        y = views.copy(views.permute(leaf(x), axes))
        np.testing.assert_array_equal(run([y], 1)[0], x.transpose(axes))
        z = views.copy(views.permute(leaf(x[:, ::-1, :, 1:]), axes))
        np.testing.assert_array_equal(run([z], 2)[0], x[:, ::-1, :, 1:].transpose(axes))


def test_concatenations_are_written_by_what_makes_their_parts() -> None:
    rng = np.random.default_rng(0)
    a, b, x = (rng.standard_normal(s, np.float32) for s in ((16, 48), (48, 32), (8, 32)))
    first = gemm.bmm(leaf(a), leaf(b))
    second = gemm.bmm(leaf(x), leaf(b[:32]))
    twice = gemm.bmm(leaf(a[:4]), leaf(b))
    both = views.concat([first, second, leaf(x), twice, twice], 0)
    roots = [both, ew.relu(both)]
    program = build(roots, default_target(), pool_of(1), pending(roots))
    names = program.launch_names()
    assert sum("copy" in name for name in names) == 3, names  # x, and what comes twice
    want = np.concatenate([a @ b, x @ b[:32], x, a[:4] @ b, a[:4] @ b])
    for threads in (1, 2):
        got = run(roots, threads)
        np.testing.assert_allclose(got[0], want, 1e-5, 1e-5)
        np.testing.assert_array_equal(got[1], np.maximum(got[0], 0))

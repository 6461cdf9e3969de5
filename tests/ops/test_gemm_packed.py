"""Products with packed constants: the bits of ``bmm`` on the same operands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.compiler.fusion import pending
from tilewright.compiler.realize import realize
from tilewright.compiler.static import build
from tilewright.dtypes import DType, bf16, f16, f32, from_float32, to_float32
from tilewright.errors import ShapeError
from tilewright.graph import Node, data_node
from tilewright.ops import elementwise as ew
from tilewright.ops import table, views
from tilewright.ops.gemm import bmm
from tilewright.ops.gemm_packed import bmm_packed, pack_matrix
from tilewright.runtime.buffers import Buffer, from_array
from tilewright.runtime.launch import default_target, pool_of
from tilewright.runtime.memory import take

RNG = np.random.default_rng(0)


def made(dtype: DType, *shape: int) -> Node:
    x = RNG.standard_normal(shape).astype(np.float32)
    if dtype is bf16:
        return data_node(from_array(from_float32(x), bf16))
    return data_node(from_array(x.astype(dtype.storage)))


def bits(x: Node) -> np.ndarray:
    return np.array(realize([x])[0].numpy())


def turned(x: Node) -> Buffer:
    """The transpose of a leaf's memory."""
    rows, columns = x.value.shape
    return x.value.view((columns, rows), (1, columns))


KINDS: list[tuple[DType, DType, dict[str, Any]]] = [
    (f32, f32, {}),
    (f32, f32, {"compute": bf16}),
    (f32, f32, {"compute": bf16, "out_dtype": bf16}),
    (f16, f16, {}),
    (f16, f16, {"out_dtype": f32}),
    (bf16, bf16, {}),
    (bf16, f32, {"compute": bf16}),
]


@pytest.mark.parametrize(("a_dtype", "b_dtype", "attrs"), KINDS)
@pytest.mark.parametrize("m", [3, 45])
def test_bits_of_bmm(a_dtype: DType, b_dtype: DType, attrs: dict[str, Any], m: int) -> None:
    k, n = 831, 77
    a, rows = made(a_dtype, m, k), made(b_dtype, n, k)
    b = data_node(turned(rows))
    packed = pack_matrix(b.value, attrs.get("compute"))
    node = bmm_packed(a, packed, n, of=b_dtype, **attrs)
    wanted = bmm(a, b, **attrs)
    assert (node.shape, node.dtype) == (wanted.shape, wanted.dtype)
    assert np.array_equal(bits(node), bits(wanted))
    if b_dtype is f16:
        wide = bmm_packed(a, pack_matrix(b.value, wide=True), n, of=b_dtype, **attrs)
        assert np.array_equal(bits(node), bits(wide))
    value = table.evaluate_nodes([a, packed, node], {})[node]
    got = to_float32(bits(node)) if node.dtype is bf16 else bits(node)
    np.testing.assert_allclose(got, value, rtol=2e-2, atol=1e-3 if node.dtype is f32 else 0.3)


@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 40), (5, 16), (64, 10), (400, 33), (1200, 130)])
def test_sizes(k: int, n: int) -> None:
    for m in (1, 9, 70):
        a, b = made(f32, m, k), made(f32, k, n)
        node = bmm_packed(a, pack_matrix(b.value), n, of=f32)
        assert np.array_equal(bits(node), bits(bmm(a, b)))


def test_batches_and_strides() -> None:
    x, b = made(f32, 3, 90, 2, 20), made(f32, 90, 50)
    a = views.permute(x, (0, 2, 3, 1))
    node = bmm_packed(a, pack_matrix(b.value), 50, of=f32)
    assert np.array_equal(bits(node), bits(bmm(a, b)))
    empty = bmm_packed(made(f32, 0, 90), pack_matrix(b.value), 50, of=f32)
    assert bits(empty).shape == (0, 50)


@pytest.mark.parametrize("m", [11, 50])
@pytest.mark.parametrize("compute", [None, bf16])
def test_epilogue(m: int, compute: DType | None) -> None:
    a, b = made(f32, 2, m, 500), made(f32, 500, 90)
    bias, more = made(f32, 90), made(f32, 2, m, 90)
    packed = pack_matrix(b.value, compute)

    def chain(y: Node) -> Node:
        return ew.add(ew.relu(ew.add(y, bias)), more)

    one = chain(bmm_packed(a, packed, 90, of=f32, compute=compute))
    y = bmm(a, b, compute=compute)
    realize([y])
    assert np.array_equal(bits(one), bits(chain(y)))


def test_values_that_are_not_numbers() -> None:
    """Padding with zeros stays outside: infinities and negative zeros come through."""
    a = np.full((9, 33), -0.0, np.float32)
    a[1, 3], a[2, 32] = np.inf, np.nan
    b = RNG.standard_normal((33, 40)).astype(np.float32)
    for m in (1, 3, 9):
        x, w = data_node(from_array(a[:m])), data_node(from_array(b))
        got = bits(bmm_packed(x, pack_matrix(w.value), 40, of=f32))
        assert np.array_equal(got.view(np.uint32), bits(bmm(x, w)).view(np.uint32))


def test_refusals() -> None:
    packed = pack_matrix(made(f32, 30, 40).value)
    with pytest.raises(ShapeError, match="wants b"):
        bmm_packed(made(f32, 3, 31), packed, 400, of=f32)
    with pytest.raises(ShapeError, match="no packed product"):
        bmm_packed(made(f16, 3, 30), packed, 40, of=f32)


@pytest.mark.parametrize("compute", [None, bf16])
def test_any_number_of_threads(compute: DType | None) -> None:
    """Programs whose rows overlap write the same bits."""
    a, b, more = made(f32, 300, 200), made(f32, 200, 70), made(f32, 300, 70)
    found = []
    for threads in (1, 2, 3):
        node = bmm_packed(a, pack_matrix(b.value, compute), 70, of=f32, compute=compute)
        root = ew.add(ew.silu(node), more)
        order = pending([root])
        program = build([root], default_target(), pool_of(threads), order)
        (memory,) = (take(n) for n in program.output_bytes)
        arena = take(program.arena_bytes)
        leaves = [n.value.pointer for n in order if n.value is not None]
        program.run([*leaves, memory.pointer, arena.pointer], [])
        out = program.outputs[0]
        found.append(
            np.array(Buffer(f32, out.shape, out.strides, memory.pointer + out.offset).numpy())
        )
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])

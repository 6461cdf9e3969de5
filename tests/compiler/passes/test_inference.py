"""Passes for inference sessions: what they find, and the same values afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from tilewright.compiler.fusion import pending
from tilewright.compiler.passes.algebra import simplify, widen
from tilewright.compiler.passes.attention import find_attention
from tilewright.compiler.passes.constants import fold, literals, pack
from tilewright.compiler.passes.inference import for_inference
from tilewright.compiler.passes.tidy import share, tidy
from tilewright.compiler.realize import realize
from tilewright.dtypes import DType, bf16, boolean, f16, f32
from tilewright.graph import Node, const_node, data_node
from tilewright.ops import elementwise as ew
from tilewright.ops import reductions, views
from tilewright.ops.comparison import isnan
from tilewright.ops.gemm import bmm
from tilewright.runtime.buffers import from_array

RNG = np.random.default_rng(0)


def leaf(*shape: int, dtype: DType = f32) -> Node:
    x = RNG.standard_normal(shape)
    return data_node(from_array(np.asarray(x > 0 if dtype is boolean else x, dtype.storage)))


def number(value: float, dtype: DType = f32, shape: tuple[int, ...] = ()) -> Node:
    return data_node(from_array(np.full(shape, value, dtype.storage)))


def ops(roots: list[Node]) -> list[str]:
    return [n.op for n in pending(roots) if n.value is None and n.op not in ("const", "part")]


def value(node: Node) -> np.ndarray:
    return np.array(realize([node])[0].numpy())


# --- tidy, share, literals ------------------------------------------------------------------------


def test_tidy() -> None:
    x = leaf(2, 3, 4)
    there = views.permute(views.permute(x, (2, 0, 1)), (1, 2, 0))
    y = views.reshape(views.reshape(there, (6, 4)), (2, 3, 4))
    y = views.stop_gradient(ew.neg(ew.neg(ew.mul(y, const_node(1.0, f32)))))
    assert tidy([y]) == [x]
    half = leaf(5, dtype=f16)
    assert tidy([ew.cast(ew.cast(half, f32), f16)]) == [half]
    rounding = ew.cast(ew.cast(leaf(5), f16), f32)
    assert ops(tidy([rounding])) == ["cast", "cast"]
    (z,) = tidy([views.permute(views.permute(x, (1, 0, 2)), (0, 2, 1))])
    assert z.op == "permute"
    assert z.inputs[0] is x
    assert np.array_equal(value(z), value(x).transpose(1, 0, 2).transpose(0, 2, 1))


def test_share() -> None:
    x = leaf(4)
    one, two = (ew.mul(ew.exp(x), const_node(0.5, f32)) for _ in range(2))
    other = ew.mul(ew.exp(x), const_node(0.25, f32))
    a, b, c = share([one, two, other])
    assert a is b
    assert a.inputs[0] is c.inputs[0]
    assert a is not c


def test_literals() -> None:
    x, changes = leaf(3, 3), number(7.0)
    y = ew.add(ew.mul(x, number(2.5, shape=(1, 1))), changes)
    (z,) = literals([y], lambda n: n in (x, changes))
    assert [n.attrs["value"] for n in pending([z]) if n.op == "const"] == [2.5]
    assert np.array_equal(value(z), value(y))


# --- algebra -------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0, 0.5, -0.5, -1.0])
def test_powers(exponent: float) -> None:
    x = data_node(from_array(RNG.random((4, 5), np.float32) + np.float32(0.1)))
    y = ew.pow(x, const_node(exponent, f32))
    (z,) = simplify([y])
    assert "pow" not in ops([z])
    np.testing.assert_allclose(value(z), value(y), rtol=3e-6)


def test_divisions() -> None:
    x, row = leaf(4, 500), leaf(4, 1)
    y = ew.div(ew.erf(ew.div(x, const_node(math.sqrt(2), f32))), ew.sqrt(ew.square(row)))
    (z,) = simplify([y])
    assert sorted(ops([z])) == ["erf", "mul", "mul", "reciprocal", "sqrt", "square"]
    np.testing.assert_allclose(value(z), value(y), rtol=1e-6, atol=1e-7)
    for kept in (ew.div(x, leaf(4, 500)), ew.div(x, row), ew.div(x, const_node(3.0, f32))):
        assert ops(simplify([kept])) == ["div"]


def test_halves_are_rounded_once() -> None:
    x, w, bias = leaf(40, 60, dtype=f16), leaf(60, 30, dtype=f16), leaf(30, dtype=f16)
    y = ew.gelu_erf(ew.add(views.reshape(bmm(x, w), (2, 20, 30)), bias))
    (z,) = tidy(widen([y]))
    casts = [n for n in pending([z]) if n.op == "cast" and n.dtype is f16]
    assert casts == [z]
    assert z.dtype is f16
    wide = [ew.cast(n, f32) for n in (x, w, bias)]
    exact = value(ew.gelu_erf(ew.add(views.reshape(bmm(*wide[:2]), (2, 20, 30)), wide[2])))
    assert np.array_equal(value(z), exact.astype(np.float16))


# --- attention -----------------------------------------------------------------------------------

B, H, T, S, D = 2, 4, 9, 13, 16


def heads(x: Node) -> Node:
    """(B, T, H * D) as (B, H, T, D)."""
    b, t, width = views.sizes_of(x)
    return views.permute(views.reshape(x, (b, t, width // D, D)), (0, 2, 1, 3))


def turned(x: Node) -> Node:
    return views.permute(x, (*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2))


def _plain() -> Node:
    q, k, v = heads(leaf(B, T, H * D)), heads(leaf(B, S, H * D)), heads(leaf(B, S, H * D))
    scores = ew.mul(bmm(q, turned(k)), const_node(0.25, f32))
    return bmm(reductions.softmax(scores), v)


def _added_mask() -> Node:
    q, k, v = leaf(B, H, T, D), leaf(B, H, S, D), leaf(B, H, S, D)
    scores = ew.div(bmm(q, turned(k)), const_node(4.0, f32))
    return bmm(reductions.softmax(ew.add(leaf(B, 1, 1, S), scores)), v)


def _scaled_after_mask() -> Node:
    q, k, v = leaf(B, H, T, D), leaf(B, H, S, D), leaf(B, H, S, D)
    scores = ew.mul(ew.add(bmm(q, turned(k)), leaf(T, S)), const_node(0.5, f32))
    return bmm(reductions.softmax(scores), v)


def _chosen() -> Node:
    q, k, v = leaf(B, H, T, D), leaf(B, H, S, D), leaf(B, H, S, D)
    low = const_node(-1e9, f32)
    seen = ew.where(leaf(T, S, dtype=boolean), bmm(ew.scale(q, 0.5), turned(k)), low)
    seen = ew.where(leaf(B, 1, 1, S, dtype=boolean), low, seen)
    return bmm(reductions.softmax(seen), v)


def _repeated_heads() -> Node:
    q = leaf(B, H, T, D)

    def repeat(x: Node) -> Node:
        wide = views.broadcast(views.reshape(x, (B, 2, 1, S, D)), (B, 2, H // 2, S, D))
        return views.reshape(wide, (B, H, S, D))

    scores = bmm(q, turned(repeat(leaf(B, 2, S, D))))
    return bmm(reductions.softmax(scores), repeat(leaf(B, 2, S, D)))


def _three_axes() -> Node:
    q, k, v = leaf(H, T, D), leaf(H, S, D), leaf(H, S, D)
    scores = ew.add(ew.scale(bmm(q, turned(k)), 0.25), leaf(H, T, S))
    return bmm(reductions.softmax(scores), v)


def _not_numbers() -> Node:
    q, k, v = leaf(B, H, T, D), leaf(B, H, S, D), leaf(B, H, S, D)
    weights = reductions.softmax(ew.add(bmm(q, turned(k)), leaf(1, 1, T, S)))
    return bmm(ew.where(isnan(weights), const_node(0.0, f32), weights), v)


def _keys_turned_before() -> Node:
    q, kt, v = leaf(B, H, T, D), leaf(B, H, D, S), leaf(B, H, S, D)
    return bmm(reductions.softmax(ew.scale(bmm(q, kt), 0.3)), v)


def _halves() -> Node:
    q, k, v = (leaf(B, H, n, D, dtype=f16) for n in (T, S, S))
    scores = ew.add(ew.mul(bmm(q, turned(k)), const_node(0.25, f16)), leaf(T, S, dtype=f16))
    return bmm(reductions.softmax(scores), v)


FORMS = [
    _plain, _added_mask, _scaled_after_mask, _chosen, _repeated_heads, _three_axes, _not_numbers,
    _keys_turned_before, _halves,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_attention(form: Callable[[], Node]) -> None:
    y = form()
    (z,) = tidy(find_attention(tidy([y])))
    assert "flash_attention" in ops([z])
    assert not {"bmm", "exp"} & set(ops([z]))
    assert (z.shape, z.dtype) == (y.shape, y.dtype)
    tolerance = 2e-5 if y.dtype is f32 else 4e-3
    np.testing.assert_allclose(value(z), value(y), rtol=tolerance, atol=tolerance)


def test_repeated_heads_are_read_once() -> None:
    (z,) = tidy(find_attention(tidy([_repeated_heads()])))
    assert "broadcast" not in ops([z])


def test_rows_of_features_without_a_copy() -> None:
    """(B, H, T, D) that becomes (B, T, H * D) again is written that way."""
    y = views.reshape(views.permute(_plain(), (0, 2, 1, 3)), (B, T, H * D))
    (z,) = tidy(find_attention(tidy([y])))
    assert ops([z])[-1] == "reshape"
    assert z.inputs[0].op == "part"


def test_what_is_no_attention() -> None:
    q, k, v = leaf(B, H, T, D), leaf(B, H, S, D), leaf(B, H, S, D)
    scores = bmm(q, turned(k))
    weights = reductions.softmax(scores)
    both = tidy([bmm(weights, v), weights])  # somebody looks at the weights
    assert "flash_attention" not in ops(find_attention(both))
    across = tidy([bmm(reductions.softmax(scores, 2), v)])
    assert "flash_attention" not in ops(find_attention(across))
    curved = tidy([bmm(reductions.softmax(ew.tanh(scores)), v)])
    assert "flash_attention" not in ops(find_attention(curved))
    wide = leaf(1, 1, T, 300)
    large = tidy(
        [bmm(reductions.softmax(bmm(wide, turned(leaf(1, 1, S, 300)))), leaf(1, 1, S, 300))]
    )
    assert "flash_attention" not in ops(find_attention(large))


# --- constants -----------------------------------------------------------------------------------


def test_constants_are_folded_and_packed() -> None:
    x, w, bias = leaf(2, 50, 60), leaf(70, 60), leaf(70)
    product = bmm(x, views.permute(ew.mul(w, const_node(2.0, f32)), (1, 0)))
    y = ew.relu(ew.add(product, bias))

    def dynamic(node: Node) -> bool:
        return node is x

    fold([y], dynamic)
    kept: dict[object, object] = {}
    (z,) = pack([y], dynamic, kept)  # type: ignore[arg-type]
    assert "bmm_packed" in ops([z])
    assert not {"bmm", "permute"} & set(ops([z]))
    (again,) = pack([y], dynamic, kept)  # type: ignore[arg-type]
    packed = next(n for n in pending([z]) if n.op == "bmm_packed").inputs[1]
    assert packed in pending([again])
    assert len(kept) == 1
    assert np.array_equal(value(z), value(y))
    assert ops(pack([bmm(x, views.permute(w, (1, 0)))], lambda n: True, {})) == ["permute", "bmm"]


def test_the_whole_table() -> None:
    """A block of a transformer, in f32 and with operands rounded to bf16."""
    x, width = leaf(1, 100, H * D), H * D
    weights = [leaf(width, width) for _ in range(4)] + [leaf(width, 128), leaf(128, width)]
    y = x
    q, k, v = (heads(bmm(x, w)) for w in weights[:3])
    out = bmm(reductions.softmax(ew.mul(bmm(q, turned(k)), number(0.02))), v)
    flat = views.reshape(views.permute(out, (0, 2, 1, 3)), (1, 100, width))
    y = ew.add(x, bmm(flat, weights[3]))
    centred = ew.sub(y, reductions.mean(y, (2,), True))
    variance = reductions.mean(ew.pow(centred, number(2.0)), (2,), True)
    h = ew.div(centred, ew.sqrt(ew.add(variance, number(1e-5))))
    up = ew.mul(bmm(ew.mul(h, number(0.1)), weights[4]), number(0.1))
    erf = ew.add(ew.erf(ew.div(up, number(math.sqrt(2)))), number(1.0))
    y = ew.add(y, bmm(ew.mul(ew.mul(up, erf), number(0.5)), weights[5]))
    wanted = value(y)
    for compute, tolerance in ((None, 1e-5), (bf16, 2e-2)):
        (z,) = for_inference([y.with_inputs(y.inputs[::-1])], lambda n: n is x, compute)
        found = ops([z])
        assert found.count("bmm_packed") == 6
        assert found.count("flash_attention") == 1
        assert not {"bmm", "pow"} & set(found)
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(value(z) / scale, wanted / scale, atol=tolerance)

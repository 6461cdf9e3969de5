"""Dropout of attention weights: the same weights in every kernel, and no memory for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_flash import Case, differences, execute, reference, values
from test_flash import leaf as typed

import tilewright as tw
from tilewright import nn, optim
from tilewright.compiler.static import build
from tilewright.dtypes import DType, bf16, f32, f64
from tilewright.errors import ShapeError
from tilewright.graph import Node, data_node
from tilewright.ops.autodiff import vjp
from tilewright.ops.flash import flash_attention
from tilewright.ops.flash_composite import attention_composite
from tilewright.ops.flash_dropout import attention_noise, keep_reference, kept_share
from tilewright.ops.flash_packed import flash_attention_packed
from tilewright.runtime.buffers import from_array
from tilewright.runtime.launch import default_pool, default_target
from tilewright.tensor import random as generator

F = nn.functional


def key_node(*words: int) -> Node:
    return data_node(from_array(np.array(words or (11, 7), np.uint32)))


def leaf(array: np.ndarray) -> Node:
    return data_node(from_array(array))


SHAPES = [
    ((1, 2, 7, 8), (2, 7), {"causal": True}),
    ((2, 4, 70, 16), (2, 70), {"causal": True, "layout": "bthd"}),
    ((1, 3, 33, 64), (1, 130), {}),
    ((2, 2, 131, 64), (2, 61), {"causal": True}),
    ((1, 4, 200, 64), (4, 200), {"causal": True, "scale": 0.3}),
    ((1, 1, 2, 64), (1, 1), {}),
]


@pytest.mark.parametrize(("q", "kv", "attrs"), SHAPES)
def test_results_and_gradients_are_the_definition(q: Any, kv: Any, attrs: dict[str, Any]) -> None:
    Case(q, kv, dropout=0.3, key=key_node(), **attrs).check()


@pytest.mark.parametrize("dtype", [f64, bf16])
def test_dtypes(dtype: DType) -> None:
    Case((1, 4, 100, 64), (2, 100), dtype, causal=True, dropout=0.2, key=key_node()).check()


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_beside_a_mask(kind: str) -> None:
    rng = np.random.default_rng(1)
    mask = rng.standard_normal((2, 1, 40, 50)).astype(np.float32)
    given = mask > -1 if kind == "bool" else mask
    Case((2, 2, 40, 24), (2, 50), mask=given, dropout=0.5, key=key_node()).check()


def test_the_kept_weights_are_random() -> None:
    shape = (3, 4, 101, 150)
    node = attention_noise(key_node(1, 2), shape, 0.3)
    (kept,) = execute([node])
    np.testing.assert_array_equal(kept, keep_reference(np.array([1, 2], np.uint32), shape, 0.3))
    n = kept.size
    assert abs(kept.mean() - 0.7) < 5 * np.sqrt(0.21 / n)
    flat = kept - 0.7
    for axis in range(4):  # neighbours in every direction, halves of pairs among them
        a = np.moveaxis(flat, axis, 0)
        for gap in (1, 2):
            pairs = (a[gap:] * a[:-gap]).mean() / 0.21
            assert abs(pairs) < 5 / np.sqrt(n), (axis, gap)
    other = keep_reference(np.array([1, 3], np.uint32), shape, 0.3)
    assert abs(((other - 0.7) * flat).mean() / 0.21) < 5 / np.sqrt(n)
    nested = keep_reference(np.array([1, 2], np.uint32), shape, 0.5)
    assert np.all(kept >= nested)  # who drops less keeps what is kept elsewhere


def test_on_average_nothing_changes() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (tw.asarray(rng.standard_normal((1, 2, 16, 8), np.float32)) for _ in range(3))
    plain = F.attention(q, k, v, causal=True).numpy()
    generator.seed(5)
    total = np.zeros_like(plain)
    for _ in range(600):
        total += F.attention(q, k, v, causal=True, dropout_p=0.4).numpy()
    np.testing.assert_allclose(total / 600, plain, atol=0.25)
    assert np.abs(total / 600 - plain).mean() < 0.04


@pytest.mark.parametrize("dtype", [f32, bf16])
def test_packed_is_the_same(dtype: DType) -> None:
    case = Case(
        (2, 3, 70, 16), (3, 70), dtype, causal=True, layout="bthd", dropout=0.25, key=key_node()
    )
    want = execute(case.forward())
    stacked = np.concatenate([x.swapaxes(1, 2) for x in case.arrays], axis=2)
    qkv = typed(stacked, dtype)
    parts = flash_attention_packed(qkv, 3, causal=True, dropout=0.25, key=key_node())
    for got, expected in zip(execute(parts), want):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("masked", [False, True])
def test_composite_is_the_same_function(masked: bool) -> None:
    rng = np.random.default_rng(0)
    mask = rng.standard_normal((1, 2, 9, 9)) if masked else None
    case = Case((1, 2, 9, 8), (2, 9), f64, mask, causal=True, dropout=0.4, key=key_node())
    q, k, v = (leaf(x) for x in case.arrays)
    m = None if mask is None else leaf(mask)
    found = attention_composite(
        q, k, v, m, causal=True, scale=8**-0.5, layout="bhtd", dropout=0.4, key=key_node()
    )
    for got, want in zip(values(found), reference(case.forward())):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_gradients_of_gradients_and_of_the_mask() -> None:
    rng = np.random.default_rng(3)
    shape, mask = (1, 2, 6, 4), rng.standard_normal((1, 1, 6, 6))
    arrays = [rng.standard_normal(shape) for _ in range(3)] + [mask]
    weights = [rng.standard_normal(a.shape) for a in arrays]
    g = rng.standard_normal(shape)

    def graph() -> tuple[list[Node], list[Node | None]]:
        nodes = [leaf(a) for a in arrays]
        out, _ = flash_attention(*nodes, causal=True, dropout=0.3, key=key_node())
        return nodes, vjp([out], [leaf(g)], nodes)

    def total() -> float:
        return sum(float((x * w).sum()) for x, w in zip(values(graph()[1]), weights))

    nodes, first = graph()
    wanted = [n for n in first if n is not None]
    assert len(wanted) == 4
    second = vjp(wanted, [leaf(w) for w in weights], nodes)
    places = [0, 5, 17]
    for array, found in zip(arrays, values(second)):
        np.testing.assert_allclose(
            found.ravel()[places], differences(total, array, places), rtol=2e-5, atol=1e-6
        )


def trained(compiled: bool) -> list[bytes]:
    generator.seed(1)
    model = nn.FusedAttention(32, 2, dropout=0.1, weight_dropout=0.3)
    optimizer = optim.SGD(model.named_parameters(), lr=0.1)
    x = tw.random.normal((2, 70, 32)).realize()

    def step() -> tw.Tensor:
        optimizer.zero_grad()
        loss = (model(x) ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss

    run = tw.compile(step) if compiled else step
    losses = [run().numpy().tobytes() for _ in range(4)]
    assert len(set(losses)) == 4
    return [*losses, *(p.numpy().tobytes() for p in model.parameters())]


def test_same_bits_compiled_and_dynamic() -> None:
    assert trained(True) == trained(False)


def test_same_bits_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case((1, 6, 331, 64), (2, 331), causal=True, dropout=0.3, key=key_node())
    seen = set()
    for threads in (1, 2, 3):
        monkeypatch.setenv("TILEWRIGHT_THREADS", str(threads))
        results = [*execute(case.forward()), *execute(case.backward())]
        seen.add(b"".join(x.tobytes() for x in results))
    assert len(seen) == 1


def test_rematerialised_attention_draws_the_same_weights() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, 2, 20, 8)).astype(np.float32) for _ in range(3)]

    def gradients(remat: bool) -> list[bytes]:
        generator.seed(9)
        q, k, v = (nn.Parameter(tw.asarray(a)) for a in arrays)

        def block(q: tw.Tensor, k: tw.Tensor, v: tw.Tensor) -> tw.Tensor:
            return F.attention(q, k, v, causal=True, dropout_p=0.5)

        y = (tw.checkpoint(block) if remat else block)(q, k, v)
        (y * y).sum().backward()
        return [p.grad.numpy().tobytes() for p in (q, k, v)]

    assert gradients(True) == gradients(False)


def test_modules_drop_while_training_only() -> None:
    x = tw.asarray(np.random.default_rng(0).standard_normal((2, 12, 16)).astype(np.float32))
    for made in (
        nn.MultiheadAttention(16, 2, dropout=0.5),
        nn.FusedAttention(16, 2, weight_dropout=0.5),
        nn.Attention(16, 4, 2, dropout=0.5),
    ):
        first, second = made(x).numpy(), made(x).numpy()
        assert np.abs(first - second).max() > 1e-3
        made.eval()
        np.testing.assert_array_equal(made(x).numpy(), made(x).numpy())
    config = nn.GPTConfig(50, 8, 1, 2, 16, dropout=0.3)  # as nanoGPT has it
    assert nn.GPT(config).transformer.h[0].attn.weight_dropout == 0.3


def test_memory_is_linear_in_length() -> None:
    sizes = []
    for length in (512, 1024):
        q, k, v = (leaf(np.zeros((1, 1, length, 16), np.float32)) for _ in range(3))
        out, _ = flash_attention(q, k, v, causal=True, dropout=0.1, key=key_node())
        grads = vjp([out], [leaf(np.zeros(out.shape, np.float32))], [q, k, v])
        program = build([g for g in grads if g is not None], default_target(), default_pool())
        sizes.append(program.arena_bytes + sum(program.output_bytes))
    assert sizes[1] < 2.2 * sizes[0]
    assert sizes[1] < 1024 * 1024


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_probabilities_that_are_none_are_refused(p: float) -> None:
    x = tw.zeros((1, 1, 4, 4))
    with pytest.raises(ShapeError, match="probability in"):
        F.attention(x, x, x, dropout_p=p)


def test_a_probability_without_a_key_is_refused() -> None:
    x = leaf(np.zeros((1, 1, 4, 4), np.float32))
    with pytest.raises(ShapeError, match="without a key"):
        flash_attention(x, x, x, dropout=0.5)
    with pytest.raises(ShapeError, match="with a key"):
        flash_attention(x, x, x, key=key_node())
    with pytest.raises(ShapeError, match="the key is two u32"):
        flash_attention(x, x, x, dropout=0.5, key=leaf(np.zeros(3, np.uint32)))
    assert kept_share(0.2) == round(0.8 * 65536) / 65536

"""Ids that are out of range are refused, wherever they are computed, and nothing has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tilewright as tw
from tilewright import nn, optim
from tilewright.compiler.fusion import pending
from tilewright.errors import BoundsError
from tilewright.graph import Node, const_node, data_node, scalar_node
from tilewright.ops import elementwise as ew
from tilewright.ops import reductions, sorting, views
from tilewright.ops.bounds import check_values, known_range
from tilewright.ops.table import _OPS, evaluate_nodes, get
from tilewright.runtime.buffers import from_array
from tilewright.tensor import random as generator

F = nn.functional


def ids_of(*values: int, dtype: type = np.int64) -> tw.Tensor:
    return tw.asarray(np.array(values, dtype))


def lazily(ids: tw.Tensor) -> tw.Tensor:
    """The same ids, behind floats: nothing is known before they are computed."""
    return (tw.exp2(tw.log2(ids.astype("f64") + 100)) + 0.25).astype("i64") - 100


TABLE = tw.asarray(np.arange(12, dtype=np.float32).reshape(4, 3))
LOGITS = tw.asarray(np.arange(12, dtype=np.float32).reshape(3, 4))

USES: dict[str, tuple[Callable[[tw.Tensor], tw.Tensor], int]] = {
    "embedding: id": (lambda i: F.embedding(i, TABLE), 0),
    "index": (lambda i: TABLE[i], -4),
    "take: index": (lambda i: tw.take(TABLE, i, axis=0), -4),
    "take_along_axis: index": (
        lambda i: tw.take_along_axis(TABLE.mT, i.reshape((1, 3)), axis=1),
        -4,
    ),
    "one_hot: id": (lambda i: F.one_hot(i, 4), 0),
    "cross_entropy: target": (lambda i: F.cross_entropy(LOGITS, i, ignore_index=-7), 0),
    "nll_loss: target": (lambda i: F.nll_loss(LOGITS, i, TABLE[:, 0], ignore_index=-7), 0),
}


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("way", ["dynamic", "lazy", "compiled", "compiled lazily"])
def test_out_of_range_is_an_error_and_the_rest_works(name: str, way: str) -> None:
    use, low = USES[name]
    compiled, hidden = tw.compile(use), tw.compile(lambda i: use(lazily(i)))
    call = {
        "dynamic": lambda i: use(i).numpy(),
        "lazy": lambda i: use(lazily(i)).numpy(),
        "compiled": lambda i: compiled(i).numpy(),
        "compiled lazily": lambda i: hidden(i).numpy(),
    }[way]
    for bad in (ids_of(3, 0, 4), ids_of(3, 0, low - 1), ids_of(1, 0, 1 << 31)):
        with pytest.raises(
            BoundsError, match=f"^{name} {int(bad[2])} at position .*2.* is out of "
        ):
            call(bad)
    for good in (ids_of(3, 0, 1), ids_of(0, low, 3), ids_of(1, 2, 3, dtype=np.int32)):
        np.testing.assert_array_equal(call(good), use(good).numpy())


def test_axes_of_any_size_in_a_compiled_function() -> None:
    take = tw.compile(lambda x, i: tw.take(x, i, axis=0))
    for n in (4, 5, 9, 16):
        x = tw.asarray(np.arange(3.0 * n).reshape(n, 3))
        ids = tw.asarray(np.arange(n)[::-1].copy())
        np.testing.assert_array_equal(take(x, ids).numpy(), x.numpy()[::-1])
        with pytest.raises(BoundsError, match=rf"for axis 0 of \({n}, 3\): it takes -{n} to "):
            take(x, ids + 1)


def test_setitem_refuses_too() -> None:
    def written(x: tw.Tensor, i: tw.Tensor) -> tw.Tensor:
        y = +x
        y[i] = tw.zeros((3,))
        return y

    for f in (written, tw.compile(written), lambda x, i: written(x, lazily(i))):
        assert f(TABLE, ids_of(1, -1)).numpy()[3].tolist() == [0, 0, 0]
        with pytest.raises(BoundsError, match="index -5 at position 1 is out of range for axis 0"):
            f(TABLE, ids_of(1, -5)).numpy()


def test_negative_indices_count_from_the_end() -> None:
    for ids in (ids_of(-1, -4, 2), lazily(ids_of(-1, -4, 2))):
        np.testing.assert_array_equal(TABLE[ids].numpy(), TABLE.numpy()[[-1, -4, 2]])


def test_ignored_targets_count_for_nothing() -> None:
    targets = ids_of(1, -100, 3)
    want = F.cross_entropy(LOGITS[::2], ids_of(1, 3)).item()
    compiled = tw.compile(lambda t: F.cross_entropy(LOGITS, t))
    assert F.cross_entropy(LOGITS, targets).item() == pytest.approx(want)
    assert compiled(targets).item() == F.cross_entropy(LOGITS, targets).item()


def test_no_id_fits_an_axis_without_elements() -> None:
    empty = tw.zeros((0, 3))
    with pytest.raises(BoundsError, match="it has no elements"):
        F.embedding(ids_of(0), empty)
    assert F.embedding(tw.zeros((0,), dtype="i64"), empty).shape == (0, 3)


def test_unsigned_ids_and_ids_of_few_bits() -> None:
    wide = tw.zeros((300, 2))
    assert F.embedding(ids_of(255, dtype=np.uint8), wide).shape == (1, 2)
    with pytest.raises(BoundsError, match="index 255 at position 0"):
        tw.take(TABLE, ids_of(255, dtype=np.uint8), axis=0)
    with pytest.raises(BoundsError, match=f"index {2**64 - 1} at position 0"):
        tw.take(TABLE, tw.asarray(np.array([2**64 - 1], np.uint64)), axis=0)
    with pytest.raises(BoundsError):
        check_values(np.array([-1], np.int8), 0, 1000, "id", "x")


# what a step that is refused leaves


class Model(nn.Module):
    def __init__(self) -> None:
        generator.seed(0)
        self.table = nn.Embedding(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, ids: tw.Tensor, targets: tw.Tensor) -> tw.Tensor:
        return F.cross_entropy(self.head(self.drop(self.norm(self.table(ids)))), targets)


def snapshot(*trees: dict[str, tw.Tensor]) -> list[bytes]:
    state = [t.numpy().tobytes() for tree in trees for t in tree.values()]
    return [*state, generator.default().state.numpy().tobytes()]


@pytest.mark.parametrize("late", [False, True], ids=["ids given", "targets computed late"])
def test_a_compiled_step_with_bad_ids_changes_nothing(late: bool) -> None:
    model = Model()
    optimizer = optim.AdamW(model.named_parameters(), lr=0.1)

    def step(ids: tw.Tensor, targets: tw.Tensor) -> tw.Tensor:
        optimizer.zero_grad()
        if late:  # behind the first layers, whose state is assigned before
            shift = (model.norm(model.table(ids)) * 0.0).sum()
            targets = (targets.astype("f32") + shift).astype("i64")
        loss = model(ids, targets)
        loss.backward()
        optimizer.step()
        return loss

    run = tw.compile(step)
    good = ids_of(0, 5, 2, 3), ids_of(1, 4, 0, 2)
    for _ in range(3):
        run(*good)
    before = snapshot(model.state_dict(), optimizer.state_dict())
    where = "target 5 at position 3" if late else "id 6 at position 1"
    bad = (good[0], ids_of(1, 4, 0, 5)) if late else (ids_of(0, 6, 2, 3), good[1])
    for _ in range(2):
        with pytest.raises(BoundsError, match=where):
            run(*bad)
        assert snapshot(model.state_dict(), optimizer.state_dict()) == before
    again = run(*good)
    assert np.isfinite(again.item())
    assert snapshot(model.state_dict(), optimizer.state_dict()) != before


def test_a_dynamic_step_with_bad_ids_changes_nothing() -> None:
    model = Model()
    optimizer = optim.AdamW(model.named_parameters(), lr=0.1)
    ids, targets = ids_of(0, 5, 2, 3), ids_of(1, 4, 0, 2)
    model(ids, targets).backward()
    optimizer.step()
    optimizer.zero_grad()
    parameters = dict(model.named_parameters())
    before = snapshot(parameters, optimizer.state_dict())[:-1]
    with pytest.raises(BoundsError):
        model(ids, lazily(ids_of(1, 4, 0, 5))).backward()
    assert all(p.grad is None for p in model.parameters())
    optimizer.step()
    grads = tw.grad(lambda w: F.embedding(lazily(ids_of(9)), w).sum())(model.table.weight.detach())
    model.table.weight.grad = grads
    kept = snapshot(parameters, optimizer.state_dict())[:-1]
    with pytest.raises(BoundsError):
        optimizer.step()
    assert snapshot(parameters, optimizer.state_dict())[:-1] == kept
    assert kept[: len(parameters)] == before[: len(parameters)]


def test_rematerialised_lookups_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table = nn.Parameter(tw.asarray(np.arange(12, dtype=np.float32).reshape(4, 3)))
    block = tw.checkpoint(lambda i, w: tw.exp(F.embedding(i, w)))
    entry, looks = get("checked"), []

    def look(*args: Any, **attrs: Any) -> Any:
        looks.append(attrs["what"])
        return entry.reference(*args, **attrs)

    monkeypatch.setitem(_OPS, "checked", replace(entry, reference=look))

    def step(ids: tw.Tensor) -> tw.Tensor:
        loss = block(ids, table).sum()
        loss.backward()
        return loss

    run = tw.compile(step)
    run(ids_of(0, 3))
    assert looks == ["embedding: id"]
    want = np.zeros((4, 3), np.float32)
    want[[0, 3]] = np.exp(table.numpy()[[0, 3]])
    np.testing.assert_allclose(table.grad.numpy(), want, rtol=1e-6)
    with pytest.raises(BoundsError):
        run(ids_of(0, 4))


# what needs no check


def test_what_is_known_to_be_inside_is_not_checked() -> None:
    x = tw.asarray(np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32))
    k = ids_of(-9, 5, 12, 3, 2)
    for ids in (tw.argmax(x, axis=1), tw.topk(x, 2, axis=1)[1], tw.clip(k, 0, 3), k % 4):
        got = F.embedding(ids, TABLE)
        assert not any(n.op == "checked" for n in pending([got.node]))
        compiled = tw.compile(lambda x, i: F.embedding(tw.argmax(x, axis=1) + 0 * i, TABLE))
        compiled(x, ids_of(0))


INTEGERS = st.sampled_from(["i8", "u8", "i32", "i64"])
NUMPY = {"i8": np.int8, "u8": np.uint8, "i32": np.int32, "i64": np.int64}


@st.composite
def integer_graphs(draw: st.DrawFn) -> Node:
    """A few operations on integers, some of which bound their results."""
    dtype = NUMPY[draw(INTEGERS)]
    values = draw(st.lists(st.integers(-128, 127), min_size=6, max_size=6))
    array = np.array(values).astype(dtype)
    node = data_node(from_array(array))
    pool = [node, ew.iota((6,), 0, node.dtype), scalar_node(draw(st.integers(0, 9)), node.dtype)]
    pool.append(const_node(draw(st.integers(1, 9)), node.dtype))
    binary = (ew.add, ew.minimum, ew.maximum, ew.remainder, ew.bitwise_and)
    for _ in range(draw(st.integers(1, 5))):
        a, b, c = (draw(st.sampled_from(pool)) for _ in range(3))
        kind = draw(st.integers(0, 8))
        if kind < 5:
            made = binary[kind](a, b)
        elif kind == 5:
            made = ew.where(ew.lt(a, b), b, c)
        elif kind == 6:
            made = ew.cast(reductions.argmax(views.broadcast(a, (6,)), 0), node.dtype)
        elif kind == 7:
            made = ew.cast(sorting.argsort(views.broadcast(a, (6,))), node.dtype)
        else:
            narrow = ew.cast(a, tw.int8)
            made = ew.cast(narrow, node.dtype)
        pool.append(made)
    return pool[-1]


@settings(max_examples=200, deadline=None)
@given(integer_graphs())
def test_what_is_known_of_a_range_is_true(node: Node) -> None:
    found = known_range(node)
    assert found is not None
    value = evaluate_nodes(pending([node]), {})[node]
    assert found[0] <= int(np.min(value)) <= int(np.max(value)) <= found[1]

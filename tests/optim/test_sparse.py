"""Sparse gradients of tables: never dense, the same numbers, little memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tilewright import asarray, nn
from tilewright.optim import SGD, Adagrad, Optimizer, SparseAdam, clip_grad_norm
from tilewright.tensor.compiled import compile
from tilewright.tensor.core import Tensor
from tilewright.tensor.sparse import sparse_rows

torch = pytest.importorskip("torch")

IDS = np.array([[1, 5, 5], [29, 0, 1]])


def twins(n: int = 30, width: int = 4) -> tuple[nn.Embedding, Any]:
    torch.manual_seed(0)
    torch.sparse.check_sparse_tensor_invariants.disable()  # said so, PyTorch does not warn
    theirs = torch.nn.Embedding(n, width, sparse=True)
    ours = nn.Embedding(n, width, sparse=True)
    ours.load_state_dict({"weight": theirs.weight.detach().numpy().copy()})
    return ours, theirs


def test_gradients_stay_ids_and_rows() -> None:
    ours, theirs = twins()
    for _ in range(2):  # they add up, too
        (ours(asarray(IDS)) ** 2).sum().backward()
        (theirs(torch.from_numpy(IDS)) ** 2).sum().backward()
    grad = ours.weight.grad
    assert grad is not None
    rows = sparse_rows(grad.node)
    assert rows is not None
    assert rows.ids.shape == (12,)
    assert rows.rows.shape == (12, 4)
    assert grad.node.value is None
    np.testing.assert_allclose(grad.numpy(), theirs.weight.grad.to_dense().numpy(), rtol=1e-6)


def test_a_table_that_is_looked_up_twice_in_one_step() -> None:
    ours, _ = twins()
    y = ours(asarray(IDS)).sum() + (ours(asarray(IDS[0])) * 2.0).sum()
    y.backward()
    grad = ours.weight.grad
    assert grad is not None
    assert sparse_rows(grad.node) is not None
    want = np.zeros((30, 4), np.float32)
    np.add.at(want, IDS.ravel(), 1)
    np.add.at(want, IDS[0], 2)
    np.testing.assert_array_equal(grad.numpy(), want)


RULES: dict[str, tuple[Callable[..., Optimizer], Callable[..., Any]]] = {
    "sgd": (lambda p: SGD(p, 0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "sparse adam": (lambda p: SparseAdam(p, 0.1), lambda p: torch.optim.SparseAdam(p, 0.1)),
    "adagrad": (lambda p: Adagrad(p, 0.1), lambda p: torch.optim.Adagrad(p, 0.1)),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_rules_are_torchs(name: str, compiled: bool) -> None:
    ours, theirs = twins()
    optimizer = RULES[name][0](ours.named_parameters())
    peer = RULES[name][1](list(theirs.parameters()))

    def step(ids: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = (ours(ids) ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss

    go = compile(step) if compiled else step
    for i in range(6):
        ids = np.random.default_rng(i).integers(0, 30, (2, 3))
        go(asarray(ids))
        peer.zero_grad()
        (theirs(torch.from_numpy(ids)) ** 2).mean().backward()
        peer.step()
    np.testing.assert_allclose(
        ours.weight.numpy(), theirs.weight.detach().numpy(), rtol=0, atol=1e-6
    )


def test_rules_without_sparse_form_take_the_dense_gradient() -> None:
    from tilewright.optim import AdamW

    ours, theirs = twins()
    dense = torch.nn.Embedding(30, 4)
    dense.load_state_dict(theirs.state_dict())
    mine, peer = AdamW(ours.named_parameters(), 0.1), torch.optim.AdamW(dense.parameters(), 0.1)
    ours(asarray(IDS)).sum().backward()
    dense(torch.from_numpy(IDS)).sum().backward()
    mine.step()
    peer.step()
    np.testing.assert_allclose(ours.weight.numpy(), dense.weight.detach().numpy(), atol=1e-6)


def test_clipping_counts_each_row_once() -> None:
    ours, _ = twins()
    ours(asarray(IDS)).sum().backward()
    assert ours.weight.grad is not None
    dense = ours.weight.grad.numpy().copy()
    ours.zero_grad()
    ours(asarray(IDS)).sum().backward()
    norm = clip_grad_norm([ours.weight], 0.5)
    assert norm.item() == pytest.approx(np.linalg.norm(dense), rel=1e-6)
    grad = ours.weight.grad
    assert grad is not None
    assert sparse_rows(grad.node) is not None
    np.testing.assert_allclose(grad.numpy(), dense * (0.5 / norm.item()), rtol=1e-5)


@pytest.mark.parametrize("kind", [SGD, SparseAdam])
def test_a_compiled_step_has_no_array_of_the_tables_size(kind: type) -> None:
    """Neither for the gradient nor in between: what the program allocates fits in a few rows."""
    table = nn.Embedding(50_000, 32, sparse=True)
    optimizer = kind(table.named_parameters(), 0.1)

    def step(ids: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = (table(ids) ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss

    run = compile(step)
    for i in range(3):
        run(asarray(np.random.default_rng(i).integers(0, 50_000, (8, 16))))
    (entry,) = [e for family in run._families.values() for e in family.entries]
    assert entry.program.arena_bytes < 1 << 20
    assert all(in_place for _, _, in_place in entry.states)
    assert sum(entry.program.output_bytes) < 1 << 10  # the table is changed where it is


def test_a_compiled_function_leaves_ids_and_rows_too() -> None:
    ours, _ = twins()

    @compile
    def gradients(ids: Tensor) -> None:
        (ours(ids) ** 2).sum().backward()

    want = np.zeros((30, 4), np.float32)
    np.add.at(want, IDS.ravel(), 2 * ours.weight.numpy()[IDS.ravel()])
    for _ in range(2):
        ours.weight.grad = None
        gradients(asarray(IDS))
        grad = ours.weight.grad
        assert grad is not None
        assert sparse_rows(grad.node) is not None
        np.testing.assert_array_equal(grad.numpy(), want)
    gradients(asarray(IDS))  # added to one that is there: dense, or each call would have more rows
    np.testing.assert_array_equal(ours.weight.grad.numpy(), 2 * want)

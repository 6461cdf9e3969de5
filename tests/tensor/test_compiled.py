"""Compiled functions: same bits as the dynamic path, state in place, values that stay values."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.errors import TraceError
from tilewright.optim import SGD, AdamW
from tilewright.tensor import random
from tilewright.tensor.autograd import value_and_grad
from tilewright.tensor.compiled import compile
from tilewright.tensor.core import Tensor, realize
from tilewright.tensor.elementwise import exp, log, relu


def parameters(seed: int = 0) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    shapes = [(12, 16), (16,), (16, 5), (5,)]
    return [
        Tensor((rng.standard_normal(s) * 0.3).astype(np.float32), requires_grad=True)
        for s in shapes
    ]


def batch(seed: int, n: int = 8) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    x = Tensor(rng.standard_normal((n, 12)).astype(np.float32))
    y = Tensor(np.eye(5, dtype=np.float32)[rng.integers(0, 5, n)])
    return x, y


def loss_of(params: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    w1, b1, w2, b2 = params
    z = relu(x @ w1 + b1) @ w2 + b2
    z = z - z.max(axis=1, keepdims=True)
    return -((z - log(exp(z).sum(axis=1, keepdims=True))) * y).sum() / x.shape[0]


def trainer(params: list[Tensor], optimizer: object) -> object:
    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()  # type: ignore[attr-defined]
        loss = loss_of(params, x, y)
        loss.backward()
        optimizer.step()  # type: ignore[attr-defined]
        return loss

    return step


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_a_compiled_step_has_the_bits_of_the_dynamic_one(kind: type) -> None:
    first, second = parameters(), parameters()
    one = trainer(first, kind(first, lr=0.05))
    two = compile(trainer(second, kind(second, lr=0.05)))
    for i in range(200):
        a, b = one(*batch(i)), two(*batch(i))  # type: ignore[operator]
        assert a.item() == b.item(), f"step {i}"
    for p, q in zip(first, second):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
    assert two.programs == 1


def test_state_is_overwritten_in_place_only_when_nobody_sees_it() -> None:
    state = Tensor(np.zeros(100, np.float32))
    bump = compile(lambda: state.assign(state + 1.0))
    bump()
    pointer = state.buffer().pointer
    bump()
    assert state.buffer().pointer == pointer
    view, lazy, array = state[10:20], state * 2.0, state.numpy()
    bump()
    assert state.numpy()[0] == 3.0
    assert view.numpy()[0] == 2.0
    assert lazy.numpy()[0] == 4.0
    assert array[0] == 2.0


def test_state_is_not_overwritten_before_a_later_pass_has_read_it() -> None:
    rng = np.random.default_rng(0)
    g = Tensor(rng.standard_normal((64, 192)).astype(np.float32))

    def step(state: Tensor, g: Tensor) -> Tensor:
        state.assign(state * 0.9 + g * 0.1)
        return state / (state * state).sum() ** 0.5

    first, second = (Tensor(np.ones((64, 192), np.float32)) for _ in range(2))
    compiled = compile(lambda g: step(second, g))
    for _ in range(3):
        expected = step(first, g).realize()
        np.testing.assert_array_equal(compiled(g).numpy(), expected.numpy())
        np.testing.assert_array_equal(first.numpy(), second.numpy())


def test_results_of_earlier_calls_stay_what_they_were() -> None:
    double = compile(lambda x: x * 2.0)
    results = [double(Tensor(np.full(4, i, np.float32))) for i in range(5)]
    assert [r.numpy()[0] for r in results] == [0, 2, 4, 6, 8]


def test_inputs_may_come_in_any_layout_and_size() -> None:
    total = compile(lambda x: x.sum(axis=0))
    for shape in ((3, 4), (5, 4), (3, 4)):
        array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        np.testing.assert_array_equal(total(Tensor(array)).numpy(), array.sum(0))
        np.testing.assert_array_equal(
            total(Tensor(array)[::-1, ::2]).numpy(), array[::-1, ::2].sum(0)
        )


def test_trees_go_in_and_out() -> None:
    def swap(pair: dict, *, factor: float) -> dict:
        return {"a": pair["b"] * factor, "b": [pair["a"], 3, None]}

    result = compile(swap)({"a": Tensor([1.0]), "b": Tensor([2.0])}, factor=2.0)
    assert result["a"].item() == 4.0
    assert result["b"][0].item() == 1.0
    assert result["b"][1:] == [3, None]


def test_asking_for_a_value_says_what_to_do() -> None:
    with pytest.raises(TraceError, match="where"):
        compile(lambda x: x if x.sum() > 0 else -x)(Tensor([1.0]))
    with pytest.raises(TraceError, match="item"):
        compile(lambda x: x.item())(Tensor([1.0]))
    with pytest.raises(TraceError, match="NumPy"):
        compile(lambda x: x)(np.ones(3))


def test_a_failed_trace_leaves_everything_as_it_was() -> None:
    state = Tensor([1.0])

    def broken() -> None:
        state.assign(state + 1.0)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        compile(broken)()
    assert state.item() == 1.0


def test_an_argument_that_changes_at_every_call_is_named() -> None:
    scaled = compile(lambda x, factor: x * factor)

    def call_often() -> None:
        for i in range(100):
            scaled(Tensor([1.0]), float(i))

    with pytest.raises(TraceError, match="traced"):
        call_often()


def test_gradients_accumulate_across_calls() -> None:
    params = parameters()
    compiled = compile(lambda x, y: _accumulate(params, x, y))
    for i in range(3):
        compiled(*batch(i))
    found = [p.grad.numpy().copy() for p in params]
    for p in params:
        p.grad = None
    for i in range(3):
        _accumulate(params, *batch(i))
    for p, g in zip(params, found):
        np.testing.assert_array_equal(p.grad.numpy(), g)


def _accumulate(params: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    loss = loss_of(params, x, y)
    loss.backward()
    return loss


def test_random_draws_differ_between_calls_and_equal_the_dynamic_ones() -> None:
    draw = compile(lambda: random.uniform((5,)))
    random.seed(3)
    compiled = [draw().numpy().copy() for _ in range(3)]
    random.seed(3)
    dynamic = [random.uniform((5,)).numpy() for _ in range(3)]
    for a, b in zip(compiled, dynamic):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(compiled[0], compiled[1])


def test_lazy_tensors_outside_are_computed_once() -> None:
    weight = Tensor(np.ones(3, np.float32)) * 2.0
    scaled = compile(lambda x: x * weight)
    assert scaled(Tensor(np.ones(3, np.float32))).numpy()[0] == 2.0
    weight.assign(weight * 5.0)
    assert scaled(Tensor(np.ones(3, np.float32))).numpy()[0] == 10.0


def test_functional_gradients_compile() -> None:
    params = parameters()
    both = value_and_grad(loss_of)
    x, y = batch(0)
    loss, grads = both(params, x, y)
    realize(loss, *grads)
    same_loss, same = compile(both)(params, x, y)
    assert loss.item() == same_loss.item()
    for g, h in zip(grads, same):
        np.testing.assert_array_equal(g.numpy(), h.numpy())


def test_compiled_inside_compiled_is_one_program() -> None:
    inner = compile(lambda x: x + 1.0)
    outer = compile(lambda x: inner(x) * 2.0)
    assert outer(Tensor([1.0])).item() == 4.0
    assert inner.programs == 0


def test_gradients_may_be_made_and_used_by_two_compiled_functions() -> None:
    first, second = parameters(), parameters()
    dynamic = trainer(first, SGD(first, lr=0.1))
    optimizer = SGD(second, lr=0.1)
    gather = compile(lambda x, y: _accumulate(second, x, y))

    def apply() -> None:
        optimizer.step()
        optimizer.zero_grad()

    update = compile(apply)
    for i in range(4):
        expected = dynamic(*batch(i))  # type: ignore[operator]
        assert gather(*batch(i)).item() == expected.item()
        update()
        assert all(p.grad is None for p in second)
    for p, q in zip(first, second):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
    assert (gather.programs, update.programs) == (1, 1)


def test_clearing_gradients_first_does_not_trace_every_call_anew() -> None:
    params = parameters()

    def fresh(x: Tensor, y: Tensor) -> Tensor:
        for p in params:
            p.grad = None
        return _accumulate(params, x, y)

    compiled = compile(fresh)
    for i in range(4):
        compiled(*batch(i))
        found = [p.grad.numpy().copy() for p in params]
        fresh(*batch(i))
        for p, g in zip(params, found):
            np.testing.assert_array_equal(p.grad.numpy(), g)
    assert compiled.programs <= 2

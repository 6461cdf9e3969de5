"""State of compiled functions in places where memory is shared: the dynamic path's bits, always."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright import Tensor
from tilewright.errors import TraceError


def some(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


Case = tuple[Callable[..., Any], list[Tensor], Callable[[int], tuple[Tensor, ...]]]


def no_arguments(i: int) -> tuple[Tensor, ...]:
    return ()


def moved_along() -> Case:
    a, b = some(5), some(5, seed=1)

    def step() -> Tensor:
        a.assign(b)
        b.assign(b + 1.0)
        return a * 1.0

    return step, [a, b], no_arguments


def view_of_the_old_value() -> Case:
    s = some(5, 7)

    def step() -> Tensor:
        old = s[1:]
        s.assign(s * 2.0)
        return old

    return step, [s], no_arguments


def the_old_value_itself() -> Case:
    s = some(5, 7)

    def step() -> Tensor:
        old = s.detach()
        s.assign(s * 2.0)
        return old

    return step, [s], no_arguments


def read_across_and_along() -> Case:
    v, m = some(64), some(64, 64, seed=2)

    def step() -> Tensor:
        v.assign((m * v).sum(axis=1) * 0.1 + v)
        return v * 1.0

    return step, [v], no_arguments


def read_after_another_was_stored() -> Case:
    a, b = some(70), some(70, seed=1)

    def step() -> Tensor:
        t = b * 2.0
        old = a * t
        a.assign(t + 1.0)
        return old * 3.0

    return step, [a, b], no_arguments


def also_an_argument() -> Case:
    s = some(70)

    def step(x: Tensor) -> Tensor:
        s.assign(s + 1.0)
        return tw.cumulative_sum(x * 2.0)

    return step, [s], lambda i: (s,)


def arguments_that_are_one() -> Case:
    s = some(7)

    def step(x: Tensor, y: Tensor) -> Tensor:
        x.assign(x + y)
        return x * y

    return step, [s], lambda i: (s, s if i % 2 else some(7, seed=i))


def assigned_argument() -> Case:
    x = some(5)
    part = x[1:3].realize()

    def step(x: Tensor) -> Tensor:
        x.assign(x + 1.0)
        return x * 2.0

    return step, [x, part], lambda i: (x,)


def assigned_copy() -> Case:
    s = some(5)

    def step() -> Tensor:
        d = s.detach()
        d += 1.0
        return d

    return step, [s], no_arguments


def two_tensors_of_one_value() -> Case:
    a = some(5)
    b = a.reshape((5,))

    def step() -> Tensor:
        b.assign(b + 1.0)
        return b * 2.0

    return step, [a, b], no_arguments


def two_tensors_of_one_lazy_value() -> Case:
    a = some(5) * 2.0
    b = +a
    a.realize()

    def step() -> Tensor:
        a.assign(a + 1.0)
        return b * 2.0

    return step, [a, b], no_arguments


def swapped() -> Case:
    a, b = some(5), some(5, seed=3)

    def step() -> Tensor:
        kept = a.detach()
        a.assign(b)
        b.assign(kept)
        return a - b

    return step, [a, b], no_arguments


def one_value_for_both() -> Case:
    a, b = some(5), some(5, seed=2)

    def step(x: Tensor) -> Tensor:
        a.assign(x)
        b.assign(x)
        return x

    return step, [a, b], lambda i: (some(5, seed=i + 10),)


def part_of_what_is_computed() -> Case:
    s = some(5)

    def step(x: Tensor) -> Tensor:
        s.assign(tw.cumulative_sum(x * 2.0)[:5])
        return s * 1.0

    return step, [s], lambda i: (some(400, seed=i),)


def odd_layouts() -> Case:
    a, b = some(1, 8), some(2, 8, seed=1)

    def step() -> Tensor:
        kept = a.detach()
        a.assign((b * 2.0).max(axis=0, keepdims=True))
        b.assign(tw.flip(b, axis=1) + kept)
        return a * 2.0

    return step, [a, b], no_arguments


CASES = [
    part_of_what_is_computed, odd_layouts,
    moved_along, view_of_the_old_value, the_old_value_itself, read_across_and_along,
    read_after_another_was_stored, also_an_argument, arguments_that_are_one, assigned_argument,
    assigned_copy, two_tensors_of_one_value, two_tensors_of_one_lazy_value, swapped,
    one_value_for_both,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_state_is_what_it_is_without_compilation(case: Callable[[], Case]) -> None:
    found = []
    for compiled in (False, True):
        fn, states, arguments = case()
        step = tw.compile(fn) if compiled else fn
        seen, kept = [], []
        for i in range(4):
            result = step(*arguments(i))
            kept.append((result, result.numpy().copy()))
            seen += [kept[-1][1], *(s.numpy().copy() for s in states)]
        for tensor, values in kept:
            np.testing.assert_array_equal(tensor.numpy(), values)
        found.append(seen)
    for dynamic, same in zip(*found):
        np.testing.assert_array_equal(same, dynamic)


def test_the_new_value_is_returned_when_state_itself_is() -> None:
    state = some(5)
    before = state.numpy().copy()
    other = some(5, seed=1)  # whose value is read whole, so that nothing is done in place

    def step() -> Tensor:
        state.assign(tw.flip(state) + other)
        return state

    compiled = tw.compile(step)
    np.testing.assert_array_equal(compiled().numpy(), before[::-1] + other.numpy())


def test_gradients_arrive_at_arguments() -> None:
    w = some(5)
    w.requires_grad = True

    def step(w: Tensor) -> Tensor:
        loss = (w * w).sum()
        loss.backward()
        return loss

    compiled = tw.compile(step)
    compiled(w)
    np.testing.assert_array_equal(w.grad.numpy(), 2 * w.numpy())
    compiled(w)
    np.testing.assert_array_equal(w.grad.numpy(), 4 * w.numpy())


def test_gradients_pass_what_changes_nothing() -> None:
    w = some(5)
    w.requires_grad = True
    (+w * 2.0 + w.astype(tw.float32)).sum().backward()
    np.testing.assert_array_equal(w.grad.numpy(), np.full(5, 3, np.float32))


def test_nothing_behind_a_stopped_gradient_is_tracked() -> None:
    w = some(5)
    w.requires_grad = True
    lazy = (w * 2.0).detach()
    assert not tw.grad(lambda v: (v * v).sum())(lazy).requires_grad


def test_looking_at_a_leaf_halfway_changes_no_bit_of_its_gradient() -> None:
    found = []
    for look in (False, True):
        w = some(3, 3)
        w.requires_grad = True
        w.assign(w * 0.7 + 0.1)
        first = [tw.tanh(w * float(k)).mean() for k in range(1, 4)]
        if look:
            w.realize()
        second = [tw.exp(w / float(k)).mean() for k in range(1, 4)]
        parts = [x for pair in zip(first, second) for x in pair]
        sum(parts, Tensor(0.0)).backward()
        found.append(w.grad.numpy())
    np.testing.assert_array_equal(*found)


def test_two_truths_are_no_more_than_one() -> None:
    x = Tensor([True, False, True])
    np.testing.assert_array_equal((x + x).astype(tw.float32).numpy(), [1, 0, 1])


def test_state_made_inside_is_refused() -> None:
    made: dict[str, Tensor] = {}

    def step() -> Tensor:
        if "m" not in made:
            made["m"] = tw.zeros((3,))
        made["m"].assign(made["m"] + 1.0)
        return made["m"] * 2.0

    with pytest.raises(TraceError, match="make state outside"):
        tw.compile(step)()


def test_threads_call_one_compiled_function() -> None:
    step = tw.compile(lambda x: tw.cumulative_sum(x.softmax() * 2.0 + 1.0) @ x)
    inputs = [some(200, seed=i) for i in range(4)]
    expected = [step(x).numpy().copy() for x in inputs]
    wrong: list[int] = []

    def call(i: int) -> None:
        for _ in range(200):
            lazy = inputs[i] * 2.0 - 1.0
            if not np.array_equal(step(inputs[i]).numpy(), expected[i]):
                wrong.append(i)
            if not np.array_equal(lazy.numpy(), inputs[i].numpy() * np.float32(2) - np.float32(1)):
                wrong.append(i)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong

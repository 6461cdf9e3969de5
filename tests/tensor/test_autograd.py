"""Differentiation as users ask for it."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.fusion import pending
from tilewright.errors import TraceError
from tilewright.tensor.modes import tracing

F64 = tw.float64


def leaf(values: object) -> tw.Tensor:
    x = tw.asarray(values, dtype=F64)
    x.requires_grad = True
    return x


def test_backward_adds_up() -> None:
    x = leaf([1.0, 2.0])
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2, 4])
    (3 * x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [5, 7])
    x.grad = None
    (x * tw.asarray([2.0, 1.0], dtype=F64)).backward(tw.asarray([1.0, 10.0], dtype=F64))
    np.testing.assert_array_equal(x.grad.numpy(), [2, 10])


def test_backward_computes_what_is_still_looked_at() -> None:
    x = leaf([1.0, 2.0])
    hidden = x * 3
    loss = (hidden * hidden).sum()
    loss.backward()
    assert hidden.node.value is not None
    assert loss.node.value is not None
    assert float(loss) == 45


def test_history_is_released() -> None:
    x = leaf([1.0])
    loss = (x * 2).sum()
    loss.backward()
    with pytest.raises(tw.DTypeError, match="retain_graph"):
        loss.backward()
    loss = (x * 2).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    np.testing.assert_array_equal(x.grad.numpy(), [6])


def test_a_kept_loss_keeps_no_values_alive() -> None:
    x = leaf([1.0])
    losses, old = [], []
    for _ in range(3):
        y = x * 2
        loss = y.sum()
        loss.backward()
        losses.append(loss)
        old.append(weakref.ref(x.node))
        with tw.no_grad():
            x -= 0.1 * x.grad
        tw.realize(x)
        del y, loss
    gc.collect()
    assert [ref() for ref in old] == [None] * 3


def test_realising_in_between_keeps_the_history() -> None:
    x = leaf([1.0, 3.0])
    y = x * x
    assert y.tolist() == [1, 9]
    assert "requires_grad" in repr(y)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2, 6])


def test_no_grad_and_detach_are_constants() -> None:
    x = leaf([2.0])
    with tw.no_grad():
        a = x * x
    assert not a.requires_grad
    (x * a * (x * 3).detach() * tw.stop_gradient(x)).backward()
    np.testing.assert_array_equal(x.grad.numpy(), [4 * 6 * 2])


def test_integers_have_no_gradients() -> None:
    x = leaf([2.0, 5.0])
    assert not (x > 3).requires_grad
    assert not tw.argmax(x).requires_grad
    with pytest.raises(TypeError, match="floating"):
        tw.asarray([1]).requires_grad = True


def test_errors_say_what_to_do() -> None:
    with pytest.raises(TypeError, match="requires_grad"):
        tw.ones((1,)).backward()
    with pytest.raises(tw.ShapeError, match="cotangent"):
        leaf([1.0, 2.0]).backward()
    x = leaf([1.0])
    with pytest.raises(TypeError, match="no_grad"):
        x += 1
    with pytest.raises(TypeError, match="no_grad"):
        x[0] = x * 2
    with pytest.raises(TypeError, match="detach"):
        (x * 2).requires_grad = False


def test_assign_keeps_leaves_and_old_values() -> None:
    x = leaf([1.0, 2.0])
    y = (x * 10).sum()
    x.assign(x * 0 + 5)
    assert x.is_leaf
    assert x.requires_grad
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [10, 10])
    assert float(y) == 30
    with pytest.raises(tw.ShapeError, match="assign"):
        x.assign(tw.ones((3,)))


def test_views_that_change_nothing_leave_the_leaf_its_place() -> None:
    x = leaf([1.0, 2.0])
    same = x.reshape(2)
    tw.realize(same)
    repr(same)
    (same * same).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2, 4])
    lazy = tw.zeros((2,), dtype=F64)
    lazy.requires_grad = True
    loss = (lazy * 3).sum()
    lazy.realize()
    loss.backward()
    np.testing.assert_array_equal(lazy.grad.numpy(), [3, 3])


def test_assigned_state_is_computed_along() -> None:
    """Running statistics, which nobody looks at while training, do not pile up."""
    w = leaf([1.0, 2.0])
    average = tw.zeros((), dtype=F64).realize()
    for _ in range(3):
        hidden = w * 2
        average.assign(average * 0.5 + hidden.mean() * 0.5)
        hidden.sum().backward()
        assert average.node.op == "data"
    assert average.item() == 3 * (0.5 + 0.25 + 0.125)


def test_state_that_nobody_asks_for_keeps_a_short_past() -> None:
    count = tw.zeros((), dtype=F64)
    for _ in range(200):
        count.assign(count + 1)
    assert len(pending([count.node])) < 10
    assert count.item() == 200
    # values that do not rest on the old one are not computed for nothing
    other = tw.zeros((2,))
    first = other.assign(tw.ones((2,)) * 3).node
    other.assign(tw.ones((2,)) * 4)
    assert first.value is None


def test_a_leaf_is_told_apart_from_its_past() -> None:
    """What was computed from a tensor before it became a leaf does not depend on it."""
    x = tw.asarray([3.0], dtype=F64)
    y = x * 2
    x.requires_grad = True
    (x * y).backward()
    np.testing.assert_array_equal(x.grad.numpy(), [6])


# functional


class Pair(NamedTuple):
    first: tw.Tensor
    second: tw.Tensor


@dataclass(frozen=True)
class Layer:
    weight: tw.Tensor
    name: str


def test_grad_of_trees() -> None:
    a, b = tw.asarray([1.0, 2.0], dtype=F64), tw.asarray([3.0, 4.0], dtype=F64)

    def loss(tree: dict) -> tw.Tensor:
        return (tree["p"].first * tree["l"][0].weight).sum() + tree["p"].second.sum() * 2

    tree = {"p": Pair(a, b), "l": [Layer(b, "x")], "n": 3, "none": None, "i": tw.asarray([1])}
    value, grads = tw.value_and_grad(loss)(tree)
    assert float(value) == 11 + 14
    assert not value.requires_grad
    np.testing.assert_array_equal(grads["p"].first.numpy(), b.numpy())
    np.testing.assert_array_equal(grads["p"].second.numpy(), [2, 2])
    np.testing.assert_array_equal(grads["l"][0].weight.numpy(), a.numpy())
    assert (grads["l"][0].name, grads["n"], grads["none"], grads["i"]) == ("x", 3, None, None)


def test_grads_nest() -> None:
    x = tw.asarray([1.0, 2.0], dtype=F64)

    def cube(v: tw.Tensor) -> tw.Tensor:
        return (v * v * v).sum()

    second = tw.grad(lambda v: tw.grad(cube)(v).sum())
    third = tw.grad(lambda v: second(v).sum())
    np.testing.assert_array_equal(second(x).numpy(), [6, 12])
    np.testing.assert_array_equal(third(x).numpy(), [6, 6])
    # an inner gradient by one variable, the outer one by another
    mixed = tw.grad(lambda p: tw.grad(lambda q: (p * q * q).sum())(x).sum())
    np.testing.assert_array_equal(mixed(x).numpy(), [2, 4])


def test_same_value_twice() -> None:
    x = tw.asarray([3.0], dtype=F64)
    a, b = tw.grad(lambda p, q: (p * q * q).sum(), (0, 1))(x, x)
    assert (a.item(), b.item()) == (9, 18)


def test_aux_and_argnums() -> None:
    x = tw.asarray([3.0], dtype=F64)
    gradient, aux = tw.grad(lambda k, v: (v.sum() * k, "aux"), 1, has_aux=True)(2, x)
    assert (gradient.item(), aux) == (2, "aux")


def test_unused_arguments_have_zero_gradients() -> None:
    x = tw.ones((2, 2))
    gradient = tw.grad(lambda a, b: a.sum(), 1)(x, x)
    np.testing.assert_array_equal(gradient.numpy(), np.zeros((2, 2)))


def test_outside_leaves_are_tracked_through_grad() -> None:
    w = leaf([2.0])
    gradient = tw.grad(lambda v: (w * w * v * v).sum())(tw.asarray([3.0], dtype=F64))
    gradient.backward()
    np.testing.assert_array_equal(w.grad.numpy(), [2 * 2 * 2 * 3])


def test_vjp_and_jvp() -> None:
    x, y = tw.asarray([1.0, 2.0], dtype=F64), tw.asarray([3.0, 5.0], dtype=F64)

    def f(a: tw.Tensor, b: tw.Tensor) -> tuple[tw.Tensor, tw.Tensor]:
        return a * b, a.sum()

    (product, total), pull = tw.vjp(f, x, y)
    assert product.tolist() == [3, 10]
    ga, gb = pull((tw.ones((2,), dtype=F64), tw.asarray(10.0, dtype=F64)))
    np.testing.assert_array_equal(ga.numpy(), [13, 15])
    np.testing.assert_array_equal(gb.numpy(), [1, 2])
    (product, total), (dp, dt) = tw.jvp(f, (x, y), (y, x))
    np.testing.assert_array_equal(dp.numpy(), [9 + 1, 25 + 4])
    assert (total.item(), dt.item()) == (3, 8)


def test_checkpoint_changes_no_bit() -> None:
    rng = np.random.default_rng(0)
    w = leaf(rng.standard_normal((4, 4)))
    x = tw.asarray(rng.standard_normal((3, 4)))

    def block(v: tw.Tensor, m: tw.Tensor) -> tw.Tensor:
        return tw.tanh(v @ m) * tw.sin(v)

    results = []
    for f in (block, tw.checkpoint(block)):
        w.grad = None
        loss = (f(f(x, w), w) ** 2).sum()
        loss.backward()
        results.append((loss.item(), w.grad.numpy().copy()))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_custom_gradient() -> None:
    straight = tw.custom_gradient(lambda v: tw.round(v), lambda inputs, outputs, grads: grads)
    x = leaf([0.4, 1.6])
    (straight(x) * x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [0.0 + 0.4, 2.0 + 1.6])


class Recorder:
    def __init__(self) -> None:
        self.assigned: list = []

    def record_assign(self, tensor: tw.Tensor, old: object, new: object) -> None:
        self.assigned.append((tensor, old, new))


def test_traces_hear_of_assignments_and_refuse_values() -> None:
    x = tw.asarray([1.0, 2.0])
    recorder = Recorder()
    with tracing(recorder):
        old = x.node
        x.assign(x + 1)
        x += 1
        x[0] = 5.0
        assert len(recorder.assigned) == 3
        assert recorder.assigned[0][:2] == (x, old)
        y = x * 2
        assert repr(y) == "tensor(shape=(2,), dtype=f32)"
        for ask in (
            y.sum().item,
            y.tolist,
            y.numpy,
            y.realize,
            lambda: bool(y[0] > 1),
            lambda: y[y > 1],
        ):
            with pytest.raises(TraceError, match="traced"):
                ask()
    assert y.tolist() == [10, 8]

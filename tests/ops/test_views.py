"""Views, pads and joins: values both ways on strided operands, and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.gradcheck import check_gradient, compiled, data, referenced, strided

from tilewright.dtypes import bf16, boolean, f16, f32, f64, i8, u16, u64
from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.ops import elementwise as E
from tilewright.ops import table
from tilewright.ops import views as V
from tilewright.runtime.buffers import from_array

Both = Callable[[Any], Any]

# name: (shape of x, ours, torch's or numpy's on an ndarray)
CASES: dict[str, tuple[tuple[int, ...], Callable[[Node], Node], Callable[[np.ndarray], Any]]] = {
    "reshape": ((2, 3, 4), lambda x: V.reshape(x, (4, -1)), lambda a: a.reshape(4, 6)),
    "reshape to 0-d": ((1, 1), lambda x: V.reshape(x, ()), lambda a: a.reshape(())),
    "expand_dims": ((2, 3), lambda x: V.expand_dims(x, -1), lambda a: a[..., None]),
    "squeeze": ((2, 1, 3, 1), lambda x: V.squeeze(x, (1, -1)), lambda a: a[:, 0, :, 0]),
    "permute": ((2, 3, 4), lambda x: V.permute(x, (2, 0, -2)), lambda a: a.transpose(2, 0, 1)),
    "broadcast": (
        (3, 1),
        lambda x: V.broadcast(x, (2, 3, 4)),
        lambda a: np.broadcast_to(a, (2, 3, 4)),
    ),
    "broadcast 0-d": ((), lambda x: V.broadcast(x, (3,)), lambda a: np.broadcast_to(a, (3,))),
    "sum_to": ((2, 3, 4), lambda x: V.sum_to(x, (3, 1)), lambda a: a.sum((0, 2))[:, None]),
    "slice": (
        (7, 5),
        lambda x: V.slice_(x, (1, 0), (3, 5), (2, 1)),
        lambda a: a[1:6:2],
    ),
    "slice back": (
        (7, 9),
        lambda x: V.slice_(x, (5, 8), (3, 4), (-2, -2)),
        lambda a: a[5::-2, 8:0:-2],
    ),
    "slice one": ((7, 5), lambda x: V.slice_(x, (6, 2), (1, 2), (-3, 2)), lambda a: a[6:7, 2::2]),
    "slice none": ((4, 3), lambda x: V.slice_(x, (4, 1), (0, 2)), lambda a: a[4:, 1:]),
    "flip": ((3, 4), lambda x: V.flip(x), lambda a: a[::-1, ::-1]),
    "flip one axis": ((3, 4), lambda x: V.flip(x, -1), lambda a: a[:, ::-1]),
    "pad": (
        (2, 3),
        lambda x: V.pad(x, ((1, 0), (2, 3)), 1),
        lambda a: np.pad(a, ((1, 0), (2, 3)), constant_values=1),
    ),
    "concat": (
        (3, 4),
        lambda x: V.concat([x, V.slice_(x, (1, 0), (2, 4)), x], 0),
        lambda a: np.concatenate([a, a[1:], a], 0),
    ),
    "stack": (
        (3, 4),
        lambda x: V.stack([x, V.flip(x)], -1),
        lambda a: np.stack([a, a[::-1, ::-1]], -1),
    ),
    "split": (
        (3, 6),
        lambda x: E.mul(V.split(x, [2, 4], 1)[0], V.split(x, [4, 2], 1)[1]),
        lambda a: a[:, :2] * a[:, 4:],
    ),
    "copy": ((3, 4), V.copy, lambda a: a),
    "barrier": ((3, 4), lambda x: V.barrier(x, E.mul(x, x)), lambda a: a),
}
RUNS = pytest.mark.parametrize("run", [referenced, compiled])


@pytest.mark.parametrize("name", CASES)
def test_gradient(name: str) -> None:
    shape, fn, _ = CASES[name]
    rng = np.random.default_rng(0)
    check_gradient(lambda x: E.square(fn(x)), rng.standard_normal(shape), order=2)


@RUNS
@pytest.mark.parametrize("dtype", [f64, f32, f16, bf16, i8, u16, u64, boolean], ids=str)
def test_values(dtype: Any, run: Any) -> None:
    rng = np.random.default_rng(1)
    nodes, wanted = [], []
    for name, (shape, fn, numpy_fn) in CASES.items():
        if dtype is boolean and name == "sum_to":
            continue
        values = rng.integers(0, 2, shape).astype(np.float32)
        nodes.append(fn(data(strided(values, rng), dtype)))
        wanted.append((name, numpy_fn(values)))
    for got, node, (name, expected) in zip(run(nodes), nodes, wanted):
        assert node.shape == got.shape, name
        np.testing.assert_array_equal(got.astype(np.float32), expected, err_msg=name)


@RUNS
def test_gradients_by_either(run: Any) -> None:
    from tilewright.ops.autodiff import vjp

    rng = np.random.default_rng(2)
    grads = []
    for shape, fn, _ in CASES.values():
        x = data(strided(rng.standard_normal(shape), rng))
        y = fn(x)
        grads.append(vjp([y], [data(rng.standard_normal(y.shape))], [x])[0])
    for g, w, got in zip(grads, referenced(grads), run(grads)):
        np.testing.assert_allclose(got, w, rtol=1e-13, atol=1e-14, err_msg=str(g))


# --- views move nothing --------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_reshape_is_a_view_exactly_when_numpy_can(choice: st.DataObject) -> None:
    sizes = choice.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), max_size=4))
    memory = np.arange(float(np.prod([2 * n for n in sizes], dtype=int))).reshape(
        [2 * n for n in sizes]
    )
    steps = [choice.draw(st.sampled_from([1, 2, -1])) for _ in sizes]
    array = memory[(..., *(slice(None, None, s) for s in steps))]
    array = array[(..., *(slice(0, n) for n in sizes))]
    if sizes and choice.draw(st.booleans()):
        array = np.broadcast_to(array[:1], array.shape)
    array = np.asarray(array.transpose(choice.draw(st.permutations(range(array.ndim)))))
    rest, new = array.size, []
    while rest > 1 and len(new) < 3:
        n = choice.draw(st.sampled_from([d for d in range(1, rest + 1) if rest % d == 0]))
        new.append(n)
        rest //= n
    new.insert(choice.draw(st.integers(0, len(new))), rest)
    buffer = from_array(array)
    strides = V.reshape_strides(buffer.shape, buffer.strides, new)
    try:
        expected = array.reshape(new, copy=False)
    except ValueError:
        expected = None
    assert (strides is None) == (expected is None)
    if strides is not None:
        np.testing.assert_array_equal(buffer.view(new, strides).numpy(), expected)


@pytest.mark.parametrize(
    "name", ["permute", "broadcast", "slice", "slice back", "slice none", "flip", "expand_dims"]
)
def test_views_share_memory(name: str) -> None:
    shape, fn, numpy_fn = CASES[name]
    array = np.random.default_rng(3).standard_normal(shape)
    node = fn(data(array))
    view = table.get(node.op).view
    assert view is not None
    seen = view(node, node.inputs[0].value).numpy()
    np.testing.assert_array_equal(seen, numpy_fn(array))
    assert seen.size == 0 or np.shares_memory(seen, array)


def test_what_changes_nothing_makes_no_node() -> None:
    x = data(np.zeros((2, 3)))
    assert V.reshape(x, (2, -1)) is x
    assert V.permute(x, (0, 1)) is x
    assert V.broadcast(x, (2, 3)) is x
    assert V.slice_(x, (0, 0), (2, 3)) is x
    assert V.flip(x, ()) is x
    assert V.pad(x, ((0, 0), (0, 0))) is x
    assert V.sum_to(x, (2, 3)) is x
    assert V.concat([x], 1) is x


def refuse(text: str, fn: Callable[[], Any]) -> None:
    with pytest.raises(ShapeError, match=text):
        fn()


def test_refusals_name_shapes() -> None:
    x = data(np.zeros((2, 3)))
    refuse(r"\(2, 3\) has 6 elements, \(4\) has 4", lambda: V.reshape(x, (4,)))
    refuse("no size for -1", lambda: V.reshape(x, (4, -1)))
    refuse("no permutation", lambda: V.permute(x, (0, 0)))
    refuse(r"\(2, 3\) and \(2, 4\) do not broadcast", lambda: V.broadcast(x, (2, 4)))
    refuse(r"\(2, 3\) does not become \(2, 1\)", lambda: V.broadcast(x, (2, 1)))
    refuse("axis 1 has no 3 elements from 1", lambda: V.slice_(x, (0, 1), (2, 3)))
    refuse("wants a start, a size and a step", lambda: V.slice_(x, (0,), (2,)))
    refuse("neither negative", lambda: V.pad(x, ((0, 0), (0, -1))))
    refuse("does not continue", lambda: V.concat([x, data(np.zeros((2, 2)))], 0))
    refuse("at least one", lambda: V.concat([], 0))
    refuse("axis 2 does not exist", lambda: V.flip(x, 2))
    refuse("twice", lambda: V.flip(x, (0, -2)))
    refuse("has size 3", lambda: V.squeeze(x, 1))
    refuse("do not add up", lambda: V.split(x, [1, 1], 1))
    refuse(r"\(3, 1\) does not broadcast to \(2, 3\)|do not broadcast", lambda: V.sum_to(x, (3, 1)))

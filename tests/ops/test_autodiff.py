"""vjp, jvp, checkpoint, custom gradients: what flows where, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.gradcheck import check_gradient, compiled, data, referenced

from tilewright.compiler.static import build
from tilewright.dtypes import bf16, f32, f64, i64
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.graph import Node, topological
from tilewright.ops import elementwise as E
from tilewright.ops import reductions as R
from tilewright.ops import views as V
from tilewright.ops.autodiff import RuledNode, checkpoint, custom_gradient, jvp, vjp
from tilewright.ops.gemm import bmm
from tilewright.ops.norm import layer_norm, normalize, rms_norm
from tilewright.ops.table import OpDef, make_parts, register
from tilewright.runtime.launch import default_pool, default_target

RUNS = pytest.mark.parametrize("run", [referenced, compiled])


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def grad(y: Node, *wrt: Node) -> list[Any]:
    return vjp([y], [E.ones_like(y)], wrt)


# an op with two results, the second of integers, as flash attention or a sort has them
def _two_gradient(node: Node, grads: tuple[Node | None, ...]) -> Sequence[Node | None]:
    (x,) = node.inputs
    found = [E.mul(g, E.cos(x)) if i == 0 else E.scale(g, 3.0) for i, g in _given(grads)]
    return [found[0] if len(found) == 1 else E.add(*found)]


def _given(grads: tuple[Node | None, ...]) -> list[tuple[int, Node]]:
    return [(i, g) for i, g in enumerate(grads) if g is not None]


@pytest.fixture(scope="module")
def two() -> str:
    name = "test_two_results"
    register(
        OpDef(
            name,
            lambda inputs, attrs: (_ for _ in ()).throw(ShapeError("several")),
            lambda x: (np.sin(x), 3 * x, np.sign(x).astype(np.int64)),
            infer_parts=lambda inputs, attrs: [
                (inputs[0].shape, inputs[0].dtype),
                (inputs[0].shape, inputs[0].dtype),
                (inputs[0].shape, i64),
            ],
            gradient=_two_gradient,
        )
    )
    return name


# --- vjp -----------------------------------------------------------------------------------------


def test_sums_over_paths_and_stops_in_the_middle() -> None:
    x, w = data(array(3)), data(array(3, seed=1))
    h = E.mul(x, w)
    y = E.add(E.mul(h, h), h)
    gx, gh, none = grad(y, x, h, data(array(3)))
    wanted = referenced([E.mul(E.add(E.scale(h, 2), E.ones_like(h)), w)])[0]
    assert none is None
    got_x, got_h, hv = referenced([gx, gh, h])
    np.testing.assert_allclose(got_x, wanted)
    np.testing.assert_allclose(got_h, 2 * hv + 1)


def test_the_output_itself_and_given_cotangents() -> None:
    x = data(array(3))
    c = data(array(3, seed=1))
    assert vjp([x], [c], [x]) == [c]
    assert vjp([x, E.neg(x)], [c, None], [x]) == [c]
    twice = vjp([x, x], [c, c], [x])
    np.testing.assert_allclose(referenced([twice[0]])[0], 2 * referenced([c])[0])


def test_integers_bools_and_constants_end_a_path() -> None:
    x = data(array(4))
    steps = E.cast(E.cast(x, i64), f64)
    chosen = E.where(E.gt(x, E.literal(0, x)), x, E.neg(x))
    rounded = E.floor(x)
    y = E.add(E.add(E.mul(steps, x), chosen), E.mul(V.stop_gradient(x), E.add(rounded, x)))
    (g,) = grad(y, x)
    xs = referenced([x])[0]
    np.testing.assert_allclose(referenced([g])[0], np.trunc(xs) + np.sign(xs) + xs)
    ids = data(np.arange(3))
    assert grad(E.cast(ids, f64), ids) == [None]
    assert grad(V.stop_gradient(x), x) == [None]


def test_casts_bring_the_gradient_back_in_the_dtype() -> None:
    x = data(array(4), f32)
    y = E.square(E.cast(x, f64))
    (g,) = grad(y, x)
    assert g.dtype is f32
    np.testing.assert_array_equal(referenced([g])[0], 2 * referenced([x])[0])


def test_ops_with_several_results(two: str) -> None:
    def fn(x: Node) -> list[Node]:
        sine, triple, sign = make_parts(two, x)
        return [E.mul(sine, triple), E.mul(sine, E.cast(sign, f64))]

    def one(x: Node) -> Node:
        return make_parts(two, x)[1]

    check_gradient(fn, array(5) + 3, order=2)
    check_gradient(one, array(5), order=2)


def test_refusals_only_on_the_way() -> None:
    x, other = data(array(3)), data(array(3, seed=1))
    y = E.add(E.mul(x, E.nextafter(other, x)), x)
    with pytest.raises(UnsupportedError, match=r"'nextafter' has no gradient.*stop_gradient"):
        grad(y, x)
    z = E.add(E.mul(x, E.nextafter(other, other)), x)
    (g,) = grad(z, x)
    assert g is not None
    with pytest.raises(ShapeError, match=r"cotangent of f64\(3\).*got f64\(\)"):
        vjp([x], [data(np.zeros(()))], [x])
    with pytest.raises(ShapeError, match=r"got f32\(3\)"):
        vjp([x], [data(np.zeros(3), f32)], [x])


def test_a_rule_that_gives_the_wrong_shape_is_named() -> None:
    wrong = custom_gradient(E.exp, lambda xs, ys, gs: [R.sum(gs[0])])
    x = data(array(3))
    with pytest.raises(ShapeError, match=r"gave f64\(\) for input 0, which is f64\(3\)"):
        grad(wrong(x), x)


def test_deep_graphs_need_no_recursion_and_linear_time() -> None:
    x = data(array(3))
    y = x
    for _ in range(5000):
        y = E.add(y, E.scale(y, 1e-4))
    start = time.perf_counter()
    (g,) = grad(y, x)
    assert time.perf_counter() - start < 3
    np.testing.assert_allclose(referenced([g])[0], 1.0001**5000)


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_random_graphs_of_every_kind_of_op(choice: st.DataObject) -> None:
    """Views, reductions, choices and real functions on one another."""
    shape = (2, 3)

    def step(kind: int, x: Node, y: Node) -> Node:
        kinds = [
            lambda: E.tanh(E.add(x, y)),
            lambda: E.mul(x, E.sigmoid(y)),
            lambda: V.broadcast(R.mean(x, 1, True), shape),
            lambda: R.softmax(E.sub(x, y), 0),
            lambda: V.reshape(V.permute(x, (1, 0)), shape),
            lambda: V.pad(V.slice_(x, (0, 2), (2, 2), (1, -2)), ((0, 0), (1, 0)), 0.5),
            lambda: E.where(E.gt(V.stop_gradient(x), V.stop_gradient(y)), x, E.square(y)),
            lambda: V.concat([V.split(x, [1, 2], 1)[1], V.split(y, [1, 2], 1)[0]], 1),
            lambda: E.pow(E.add(E.square(x), E.ones_like(x)), E.atan(y)),
            lambda: checkpoint(lambda a: E.sin(E.mul(a, y)))(x),
            lambda: E.scale(R.log_softmax(x), 0.3),
        ]
        return kinds[kind]()

    plan = [
        (
            choice.draw(st.integers(0, 10)),
            choice.draw(st.integers(0, 9)),
            choice.draw(st.integers(0, 9)),
        )
        for _ in range(choice.draw(st.integers(2, 5)))
    ]

    def fn(a: Node, b: Node) -> Node:
        values = [a, b]
        for kind, i, j in plan:
            values.append(step(kind, values[i % len(values)], values[j % len(values)]))
        return E.add(values[-1], E.mul(a, b))

    seed = choice.draw(st.integers(0, 100))
    check_gradient(fn, array(2, 3, seed=seed), array(2, 3, seed=seed + 1), order=2, tolerance=1e-5)


# --- jvp -----------------------------------------------------------------------------------------


@RUNS
def test_jvp_against_torch(run: Any) -> None:
    torch = pytest.importorskip("torch")
    a, b, da, db = (array(3, 4, seed=i) for i in range(4))

    def theirs(x: Any, y: Any) -> Any:
        return (x * y).tanh().sum(1), (x + y).softmax(-1)

    x, y = data(a), data(b)
    outs = [R.sum(E.tanh(E.mul(x, y)), 1), R.softmax(E.add(x, y))]
    got = run(jvp(outs, [x, y], [data(da), data(db)]))
    tensors = [torch.from_numpy(v) for v in (a, b, da, db)]
    wanted = torch.autograd.functional.jvp(theirs, tuple(tensors[:2]), tuple(tensors[2:]))[1]
    for mine, peer in zip(got, wanted, strict=True):
        np.testing.assert_allclose(mine, peer.numpy(), rtol=1e-12, atol=1e-14)


def test_jvp_without_dependence_is_zero() -> None:
    x, other = data(array(3)), data(array(2))
    zero, some = jvp([E.exp(other), E.exp(x)], [x], [data(array(3, seed=1))])
    np.testing.assert_array_equal(referenced([zero])[0], np.zeros(2))
    assert np.all(referenced([some])[0] != 0)
    (none,) = jvp([E.exp(x)], [x], [None])
    np.testing.assert_array_equal(referenced([none])[0], np.zeros(3))


# --- custom gradients ----------------------------------------------------------------------------


@RUNS
def test_custom_gradient_replaces_the_ops_own(run: Any) -> None:
    straight = custom_gradient(E.round, lambda xs, ys, gs: [gs[0]])
    x = data(array(4) * 3)
    y = E.square(straight(x))
    (g,) = grad(y, x)
    rounded = np.rint(referenced([x])[0])
    value, slope = run([y, g])
    np.testing.assert_array_equal(value, rounded**2)
    np.testing.assert_array_equal(slope, 2 * rounded)


def test_custom_gradient_of_several_results() -> None:
    calls = []

    def rule(xs: Any, ys: Any, gs: Any) -> list[Node | None]:
        calls.append(gs)
        x, _ = xs
        sine, product = ys
        found: list[Node | None] = [None, None]
        if gs[0] is not None:
            found[0] = E.mul(gs[0], E.cos(x))
        if gs[1] is not None:
            whole = E.div(product, x)  # of the outputs: y
            found[0] = E.add(found[0], E.mul(gs[1], whole)) if found[0] else E.mul(gs[1], whole)
            found[1] = E.mul(gs[1], x)
        assert sine.shape == x.shape
        return found

    fn = custom_gradient(lambda x, y: (E.sin(x), E.mul(x, y)), rule)

    def both(x: Node, y: Node) -> Node:
        sine, product = fn(x, y)
        return E.add(E.mul(sine, product), E.exp(product))

    check_gradient(both, array(3), array(3, seed=1), order=2)
    assert all(len(gs) == 2 for gs in calls)
    x, y = data(array(3)), data(array(3, seed=1))
    calls.clear()
    grad(fn(x, y)[1], x, y)
    assert len(calls) == 1
    assert calls[0][0] is None
    calls.clear()
    sine, product = fn(x, y)
    vjp([sine, product, sine], [E.ones_like(x)] * 3, [x])
    assert len(calls) == 1  # once for all results


def test_what_a_custom_function_closes_over_is_constant() -> None:
    x, w = data(array(3)), data(array(3, seed=1))
    fn = custom_gradient(lambda a: E.mul(a, w), lambda xs, ys, gs: [E.mul(gs[0], w)])
    gx, gw = grad(fn(x), x, w)
    assert gw is None
    assert gx is not None


# --- checkpoint ----------------------------------------------------------------------------------


def mlp(w: Node, b: Node) -> Any:
    return lambda x: E.tanh(E.add(E.mul(E.sin(x), w), b))


def test_checkpoint_gradients_are_those_of_the_function() -> None:
    arrays = [array(2, 3), array(3, seed=1), array(2, 1, seed=2)]

    def plain(x: Node, w: Node, b: Node) -> Node:
        return E.square(mlp(w, b)(mlp(w, b)(x)))

    def saved(x: Node, w: Node, b: Node) -> Node:
        f = mlp(w, b)
        return E.square(checkpoint(lambda v: checkpoint(f)(f(v)))(x))

    leaves = [data(a) for a in arrays]
    for mine, wanted in zip(
        referenced(grad(saved(*leaves), *leaves)), referenced(grad(plain(*leaves), *leaves))
    ):
        np.testing.assert_array_equal(mine, wanted)
    check_gradient(saved, *arrays, order=2)


@RUNS
def test_checkpoint_computes_again_behind_the_gradient(run: Any) -> None:
    """The backward pass reads arguments and captures only, through barriers that wait for g."""
    x, w = data(array(2, 3)), data(array(2, 3, seed=1))
    scaled = E.exp(w)  # closed over, computed before: kept

    def fn(v: Node) -> Node:
        mask = E.gt(E.iota((2, 3), 1, f64), E.literal(0, v))  # made inside: made again
        return E.where(mask, E.sin(E.mul(v, scaled)), E.literal(0, v))

    y = checkpoint(fn)(x)
    c = data(array(2, 3, seed=2))
    gx, gw = vjp([y], [c], [x, w])
    forward = set(topological([y]))
    kept = {
        i
        for n in set(topological([gx])) - forward
        for i in n.inputs
        if i in forward and i.op not in ("iota", "const")
    }
    entry = next(n for n in forward if n.op == "barrier")
    assert kept == {entry, scaled}
    barriers = [n for n in set(topological([gx])) - forward if n.op == "barrier"]
    assert {b.inputs[0] for b in barriers} == {entry, scaled}
    assert all(c in b.inputs[1:] for b in barriers)
    plain = fn(x)
    wanted = vjp([plain], [c], [x, w])
    got, expected = run([y, gx, gw]), run([plain, *wanted])
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-13, atol=1e-15)


def test_checkpoint_saves_memory() -> None:
    """Eight layers of a wide hidden width: the temporary memory of one, not of all."""

    def step(wrap: Any) -> tuple[list[np.ndarray], int]:
        weights = [
            [data(array(*s, seed=i) / 8, f32) for s in [(32, 512), (512, 32)]] for i in range(8)
        ]
        h = data(array(32, 32), f32)
        for up, down in weights:
            h = wrap(lambda v, a=up, b=down: E.add(v, bmm(E.tanh(bmm(v, a)), b)))(h)
        loss = R.mean(E.square(h))
        grads = vjp([loss], [E.ones_like(loss)], [w for pair in weights for w in pair])
        roots = [loss, *(g for g in grads if g is not None)]
        program = build(roots, default_target(), default_pool())
        return compiled(roots), program.arena_bytes

    plain, saved = step(lambda f: f), step(checkpoint)
    for mine, wanted in zip(saved[0], plain[0], strict=True):
        np.testing.assert_array_equal(mine, wanted)
    assert saved[1] < 0.4 * plain[1]


def test_checkpoint_of_several_results_and_rules_inside(two: str) -> None:
    def fn(x: Node, y: Node) -> tuple[Node, Node, Node]:
        sine, triple, sign = make_parts(two, R.softmax(E.mul(x, y)))
        return E.mul(sine, E.cast(sign, f64)), E.add(triple, y), x

    def saved(x: Node, y: Node) -> list[Node]:
        a, b, same = checkpoint(fn)(x, y)
        return [E.mul(a, b), E.square(same)]

    check_gradient(saved, array(2, 3), array(2, 3, seed=1), order=2)
    x, y = data(array(2, 3)), data(array(2, 3, seed=1))
    gx, gy = grad(saved(x, y)[1], x, y)
    assert gy is None
    np.testing.assert_allclose(referenced([gx])[0], 2 * array(2, 3))


def test_checkpoint_without_arguments_gives_its_captures_their_gradient() -> None:
    def saved(w: Node) -> Node:
        early = E.exp(w)
        return checkpoint(lambda: E.mul(E.sin(w), early))()

    check_gradient(saved, array(3), order=2)


def test_results_under_a_rule_cost_nothing() -> None:
    y = R.softmax(data(array(2, 3)))
    assert isinstance(y, RuledNode)
    assert y.op == "stop_gradient"


# --- norms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
def test_norms(shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    x, w, b = array(*shape), array(5, seed=1), array(5, seed=2)
    check_gradient(
        lambda x, w: rms_norm(x, w, 1e-5),
        x,
        w,
        torch_fn=lambda x, w: f.rms_norm(x, (5,), w, 1e-5),
        order=2,
    )
    check_gradient(
        lambda x, w, b: layer_norm(x, w, b, 1e-5),
        x,
        w,
        b,
        torch_fn=lambda x, w, b: f.layer_norm(x, (5,), w, b, 1e-5),
        order=2,
    )


def test_norms_refuse_what_has_no_rows() -> None:
    with pytest.raises(ShapeError, match="float rows"):
        rms_norm(data(np.zeros(())), data(np.zeros(1)), 1e-5)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("axes", [-1, (0, 2), (0, 1, 2)])
def test_normalize(axes: Any, centred: bool) -> None:
    pytest.importorskip("torch")

    def theirs(x: Any) -> Any:
        near = x - x.mean(axes, keepdim=True) if centred else x
        return near * ((near * near).mean(axes, keepdim=True) + 1e-2).rsqrt()

    def mine(x: Node) -> Node:
        return normalize(x, axes, 1e-2, centred)

    x = array(2, 3, 4)
    check_gradient(mine, x, torch_fn=theirs, order=3)
    leaf = data(x)
    (g,) = vjp([mine(leaf)], [data(array(2, 3, 4, seed=1))], [leaf])
    for got, wanted in zip(compiled([mine(leaf), g]), referenced([mine(leaf), g])):
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-14)
    for dtype, tolerance in [(f32, 1e-6), (bf16, 1e-2)]:
        small = data(x.astype(np.float32), dtype)
        y = mine(small)
        assert y.dtype is dtype
        (g,) = vjp([y], [data(array(2, 3, 4, seed=1).astype(np.float32), dtype)], [small])
        exact = referenced([mine(data(referenced([small])[0].astype(np.float64)))])[0]
        np.testing.assert_allclose(compiled([y])[0], exact, tolerance, tolerance)
        assert g.dtype is dtype

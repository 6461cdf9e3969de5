"""Control flow: conditions and trip counts that are known late, long loops, captured values."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

import tilewright.onnx  # noqa: E402
from tilewright.errors import FormatError, ShapeError  # noqa: E402

helper = onnx.helper
F, I, B = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL


def value(name, kind=F, shape=None):
    return helper.make_tensor_value_info(name, kind, shape)


def load(nodes, inputs, outputs, constants=(), opset=17):
    tensors = [onnx.numpy_helper.from_array(v, k) for k, v in dict(constants).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return tilewright.onnx.load(model, threads=1)


def node(op, inputs, outputs, **attrs):
    return helper.make_node(op, inputs.split(), outputs.split(), **attrs)


def loop_of(body_nodes, states, more=(), **loop):
    """A Loop over ``states`` (name, dtype) whose body reads ``i``, ``c``, ``s_in`` ..."""
    body = helper.make_graph(
        body_nodes,
        "body",
        [value("i", I, []), value("c", B, []), *(value(f"{n}_in", k) for n, k in states)],
        [value("go", B, []), *(value(f"{n}_out", k) for n, k in states), *more],
    )
    return helper.make_node("Loop", body=body, **loop)


def test_long_loops_are_programs_that_look_alike():
    step = [
        node("Add", "s_in w", "t"),
        node("MatMul", "t m", "s_out"),
        node("Identity", "c", "go"),
        node("Identity", "s_out", "scan"),
    ]
    loop = loop_of(step, [("s", F)], [value("scan")], inputs=["n", "", "x"], outputs=["y", "all"])
    rng = np.random.default_rng(0)
    w, m = rng.standard_normal(4).astype(np.float32), np.eye(4, dtype=np.float32)[::-1].copy()
    session = load(
        [loop],
        [value("n", I, []), value("x", F, [3, 4])],
        [value("y"), value("all")],
        {"w": w, "m": m},
    )
    x = rng.standard_normal((3, 4)).astype(np.float32)
    for count in (0, 1, 5, 200, 203):
        got = session.run({"n": np.array(count), "x": x})
        s, every = x, []
        for _ in range(count):
            s = (s + w) @ m
            every.append(s)
        np.testing.assert_allclose(got["y"], s, rtol=1e-6)
        if count:
            np.testing.assert_allclose(got["all"], np.stack(every), rtol=1e-6)
        else:
            assert got["all"].shape[0] == 0
    # 200 iterations are pieces of 16, all but the last of one program each: few are compiled.
    assert len(session.plan.shared.programs) < 15


def test_iterations_that_gather_by_their_number_look_alike():
    step = [
        node("Gather", "xs i", "x"),
        node("Add", "s_in x", "s_out"),
        node("Identity", "c", "go"),
        node("Add", "s_out i_f", "scan"),
    ]
    step.insert(0, node("Cast", "i", "i_f", to=F))
    loop = loop_of(step, [("s", F)], [value("scan")], inputs=["n", "", "s"], outputs=["y", "all"])
    session = load(
        [loop],
        [value("n", I, []), value("s", F, [3]), value("xs", F, [None, 3])],
        [value("y"), value("all")],
    )
    rng = np.random.default_rng(0)
    for count in (120, 7):
        xs = rng.standard_normal((count, 3)).astype(np.float32)
        got = session.run({"n": np.array(count), "s": np.zeros(3, np.float32), "xs": xs})
        want = np.cumsum(xs, 0)
        np.testing.assert_allclose(got["y"], want[-1], rtol=1e-4, atol=1e-4)
        steps = np.arange(count)[:, None].astype(np.float32)
        np.testing.assert_allclose(got["all"], want + steps, rtol=1e-4, atol=1e-4)
        if count == 120:
            assert len(session.plan.shared.programs) < 10


def test_a_condition_that_depends_on_data_ends_a_loop():
    step = [
        node("Add", "s_in one", "s_out"),
        node("ReduceSum", "s_out", "total", keepdims=0),
        node("Less", "total limit", "go"),
    ]
    loop = loop_of(step, [("s", F)], [value("i")], inputs=["", "yes", "x"], outputs=["y", "count"])
    session = load(
        [loop],
        [value("x", F, [2]), value("limit", F, [])],
        [value("y"), value("count", I)],
        {"one": np.ones(2, np.float32), "yes": np.array(True)},
    )
    for limit, rounds in ((5, 3), (1, 1), (9.5, 5)):
        got = session.run({"x": np.zeros(2, np.float32), "limit": np.float32(limit)})
        np.testing.assert_array_equal(got["y"], np.full(2, rounds, np.float32))
        np.testing.assert_array_equal(got["count"], np.arange(rounds))


def test_branches_see_what_is_around_them():
    then = helper.make_graph([node("Add", "h x", "t")], "then", [], [value("t")])
    other = helper.make_graph([node("MatMul", "h h", "e")], "else", [], [value("e")])
    nodes = [
        node("Add", "x x", "h"),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
        node("Add", "y h", "z"),
    ]
    session = load(nodes, [value("x", F, [2, 2]), value("c", B, [])], [value("z")])
    x = np.array([[1, 2], [3, 4]], np.float32)
    for c in (True, False, True):
        h = 2 * x
        want = (h + x if c else h @ h) + h
        np.testing.assert_array_equal(session.run({"x": x, "c": np.array(c)})["z"], want)
    with pytest.raises(ShapeError, match="one bool"):
        load(nodes, [value("x", F, [2, 2]), value("c", B)], [value("z")]).run(
            {"x": x, "c": np.array([True, False])}
        )


@pytest.mark.parametrize("length", [3, 100])
def test_scan_goes_along_axes_in_both_directions(length):
    body = helper.make_graph(
        [
            node("Add", "s_in a", "t"),
            node("Add", "t b", "s_out"),
            node("Identity", "s_out", "p"),
            node("Add", "a w", "q"),
        ],
        "body",
        [value("s_in"), value("a"), value("b")],
        [value("s_out"), value("p"), value("q")],
    )
    scan = helper.make_node(
        "Scan", ["s", "x", "y"], ["last", "sums", "others"], body=body, num_scan_inputs=2,
        scan_input_axes=[1, -1], scan_input_directions=[0, 1], scan_output_axes=[0, -1],
        scan_output_directions=[1, 0],
    )  # fmt: skip
    rng = np.random.default_rng(1)
    s, w = rng.standard_normal((2, 3)).astype(np.float32)
    x, y = rng.standard_normal((2, 3, length)).astype(np.float32)
    session = load(
        [scan],
        [value("s", F, [3]), value("x", F, [3, None]), value("y", F, [3, None])],
        [value("last"), value("sums"), value("others")],
        {"w": w},
    )
    got = session.run({"s": s, "x": x, "y": y})
    steps = (s[:, None] + np.cumsum(x + y[:, ::-1], 1)).T
    np.testing.assert_allclose(got["last"], steps[-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["sums"], steps[::-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got["others"], x + w[:, None])
    assert len(session.plan.shared.programs) < 8


def test_bodies_that_do_not_fit_are_refused():
    loop = loop_of([node("Identity", "c", "go"), node("Identity", "s_in", "s_out")], [("s", F)],
                   inputs=["n", "", "x", "x"], outputs=["y", "z"])  # fmt: skip
    session = load([loop], [value("n", I, []), value("x", F, [1])], [value("y")])
    with pytest.raises(FormatError, match="gives 2 values, 3 are due"):
        session.run({"n": np.array(2), "x": np.ones(1, np.float32)})

"""Models with symbolic sizes: one program for many, and a past that stays in the engine."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import helper  # noqa: E402

import tilewright.onnx  # noqa: E402
from tilewright.errors import ShapeError, UnsupportedError  # noqa: E402

F, I = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def programs(session_or_stateful):
    """How many programs for many sizes there are."""
    plan = getattr(session_or_stateful, "plan", None) or session_or_stateful._plan
    return sum(len(f.steps) for f in plan._families.values())


def load(nodes, inputs, outputs, constants=(), **kwargs):
    infos = [helper.make_tensor_value_info(*i) for i in inputs]
    outs = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs]
    tensors = [onnx.numpy_helper.from_array(v, k) for k, v in dict(constants).items()]
    graph = helper.make_graph(nodes, "g", infos, outs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return tilewright.onnx.load(model, **kwargs)


def shape_arithmetic():
    """(b, t, 6) -> (b, 2, t, 3) transposed, by sizes that the graph computes; a mask by Range."""
    node = helper.make_node
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["b"], axis=0),
        node("Gather", ["s", "one"], ["t"], axis=0),
        node("Unsqueeze", ["b", "axis"], ["b1"]),
        node("Unsqueeze", ["t", "axis"], ["t1"]),
        node("Concat", ["b1", "t1", "tail"], ["split"], axis=0),
        node("Reshape", ["x", "split"], ["r"]),
        node("Transpose", ["r"], ["y"], perm=[0, 2, 1, 3]),
        node("Range", ["zero", "t", "one"], ["places"]),
        node("Unsqueeze", ["places", "axis"], ["row"]),
        node("Unsqueeze", ["places", "one1"], ["column"]),
        node("LessOrEqual", ["row", "column"], ["causal"]),
        node("Mul", ["t", "t"], ["tt"]),
        node("Unsqueeze", ["tt", "axis"], ["tt1"]),
        node("Reshape", ["causal", "tt1"], ["flat"]),
    ]
    constants = {
        "zero": np.array(0), "one": np.array(1), "axis": np.array([0]), "one1": np.array([1]),
        "tail": np.array([2, 3]),
    }  # fmt: skip
    outputs = [("y", F), ("flat", onnx.TensorProto.BOOL)]
    return load(nodes, [("x", F, ["b", "t", 6])], outputs, constants)


def test_sizes_that_the_graph_computes_stay_symbols():
    session = shape_arithmetic()
    rng = np.random.default_rng(0)
    for i, (b, t) in enumerate(
        ((2, 5), (3, 7), (4, 9), (2, 40), (7, 3), (1, 3), (3, 1), (2, 0), (3, 7))
    ):
        x = rng.standard_normal((b, t, 6)).astype(np.float32)
        got = session.run({"x": x})
        np.testing.assert_array_equal(got["y"], x.reshape(b, t, 2, 3).transpose(0, 2, 1, 3))
        np.testing.assert_array_equal(got["flat"], np.tri(t, dtype=bool).reshape(-1))
        if i == 4:
            assert 1 <= programs(session) <= 2
            assert all("<=" in text for text in session.assumptions())


def test_bits_are_those_of_a_program_for_one_size():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Softmax", ["r"], ["p"], axis=1),
        helper.make_node("ReduceMean", ["p"], ["m"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    rng = np.random.default_rng(1)
    constants = {
        "w": rng.standard_normal((16, 40)).astype(np.float32),
        "v": rng.standard_normal((40, 8)).astype(np.float32),
    }
    arguments = (nodes, [("x", F, ["b", "t", 16])], [("y", F), ("m", F)], constants)
    many = load(*arguments)
    for b, t in ((2, 3), (2, 5), (2, 6), (2, 100), (5, 33), (9, 64), (2, 3)):
        x = rng.standard_normal((b, t, 16)).astype(np.float32)
        alone = load(*arguments).run({"x": x})
        for name, value in many.run({"x": x}).items():
            np.testing.assert_array_equal(value, alone[name])
    assert programs(many) >= 1


def test_models_whose_shapes_depend_on_data_run_at_every_size():
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Add", ["x", "x"], ["y"]),
    ]
    session = load(nodes, [("x", F, ["n"])], [("places", I), ("y", F)])
    for n in (3, 5, 7, 2):
        x = np.arange(n, dtype=np.float32) % 2
        got = session.run({"x": x})
        np.testing.assert_array_equal(got["places"][0], np.flatnonzero(x))
        np.testing.assert_array_equal(got["y"], 2 * x)
    assert session.assumptions() == ["one size a program: its trace has to be cut"]


def decoder(kept="concat"):
    """Keys and values of a past, one head of attention over all positions."""
    node = helper.make_node
    nodes = [
        node("Concat", ["past_key", "x"], ["present_key"], axis=1),
        node("Neg", ["x"], ["minus"]),
        node("Concat", ["past_value", "minus"], ["present_value"], axis=1),
        node("Transpose", ["present_key"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["x", "kt"], ["scores"]),
        node("Softmax", ["scores"], ["p"], axis=-1),
        node("MatMul", ["p", "present_value"], ["y"]),
    ]
    if kept == "scaled":
        nodes[0] = node("Concat", ["past_key", "x"], ["both"], axis=1)
        nodes.insert(1, node("Neg", ["both"], ["present_key"]))
    shapes = [("x", F, ["b", "s", 8]), *(
        (f"past_{k}", F, ["b", "past", 8]) for k in ("key", "value")
    )]  # fmt: skip
    outputs = [("y", F), ("present_key", F), ("present_value", F)]
    return load(nodes, shapes, outputs, threads=2)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_past_grows_in_place(batch):
    rng = np.random.default_rng(2)
    session = decoder()
    kept = session.stateful(capacity=8)
    assert [s.name for s in kept.inputs] == ["x"]
    assert [s.name for s in kept.outputs] == ["y"]
    past = {n: np.zeros((batch, 0, 8), np.float32) for n in ("past_key", "past_value")}
    for step, n in enumerate((5, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 3, 1, 1)):
        x = rng.standard_normal((batch, n, 8)).astype(np.float32)
        want = session.run({"x": x, **past})
        past = {name: want[name.replace("past", "present")] for name in past}
        got = kept.run({"x": x})
        np.testing.assert_array_equal(got["y"], want["y"])
        assert kept.length == past["past_key"].shape[1]
        if step == 6:
            memory = kept._caches["past_key"].memory.pointer
        if step == 8:
            assert kept._caches["past_key"].memory.pointer == memory
    assert programs(kept) <= 6  # each capacity has programs of its own
    kept.reset(4)
    past = {name: value[:, :4] for name, value in past.items()}
    x = rng.standard_normal((batch, 1, 8)).astype(np.float32)
    np.testing.assert_array_equal(kept.run({"x": x})["y"], session.run({"x": x, **past})["y"])
    kept.reset()
    assert kept.length == 0
    with pytest.raises(ShapeError, match="has 0 positions"):
        kept.reset(3)


def test_what_is_no_past_is_refused():
    with pytest.raises(UnsupportedError, match="no concatenation"):
        decoder("scaled").stateful().run({"x": np.zeros((1, 1, 8), np.float32)})
    kept, x = decoder().stateful(), np.zeros((1, 1, 8), np.float32)
    with pytest.raises(ShapeError, match="is the past, which is kept here"):
        kept.run({"x": x, "past_key": x})
    with pytest.raises(ShapeError, match="no past inputs"):
        load([helper.make_node("Neg", ["x"], ["y"])], [("x", F, [2])], [("y", F)]).stateful()

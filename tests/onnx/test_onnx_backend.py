"""The backend interface, and a share of the standard's own suite through it."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.errors import DTypeError, ShapeError, UnsupportedError

onnx = pytest.importorskip("onnx")
pytest.importorskip("ml_dtypes")
helper = onnx.helper

from tilewright.onnx import backend  # noqa: E402


def value(name, shape, kind=onnx.TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.fixture(scope="module")
def model():
    nodes = [
        helper.make_node("Add", ["x", "y"], ["sum"]),
        helper.make_node("Transpose", ["sum"], ["out-1"], perm=[1, 0]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", ["n", 3]), value("y", [3])],
        [value("sum", None), value("out-1", None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


X = np.arange(6, dtype=np.float32).reshape(2, 3)
Y = np.array([10, 20, 30], np.float32)


def test_inputs_are_given_by_position_or_name(model):
    prepared = backend.prepare(model, "CPU", threads=1)
    for inputs in ([X, Y], (X, Y), {"y": Y, "x": X}):
        results = prepared.run(inputs)
        np.testing.assert_array_equal(results[0], X + Y)
        np.testing.assert_array_equal(results.sum, X + Y)
        np.testing.assert_array_equal(results["out-1"], (X + Y).T)


def test_run_model_takes_bytes(model):
    results = backend.run_model(model.SerializeToString(), [X, Y], "CPU:0")
    np.testing.assert_array_equal(results[1], (X + Y).T)


def test_run_node_makes_a_model_of_one_node():
    node = helper.make_node("Add", ["a", "b"], ["c"])
    (c,) = backend.run_node(node, [X, Y])
    np.testing.assert_array_equal(c, X + Y)
    node = helper.make_node("Transpose", ["a"], ["b"])
    np.testing.assert_array_equal(backend.run_node(node, X)[0], X.T)
    node = helper.make_node("Reshape", ["a"], ["b"], shape=[3, 2])
    np.testing.assert_array_equal(backend.run_node(node, [X], opset_version=1)[0], X.reshape(3, 2))


def test_wrong_calls_are_answered(model):
    prepared = backend.prepare(model)
    with pytest.raises(ShapeError, match=r"1 inputs are given; the model takes x: float32\[n, 3\]"):
        prepared.run([X])
    with pytest.raises(DTypeError, match="wants float32"):
        prepared.run([X.astype(np.float64), Y])
    with pytest.raises(TypeError, match="run takes no 'spam'"):
        prepared.run([X, Y], spam=1)
    with pytest.raises(UnsupportedError, match="CUDA"):
        backend.prepare(model, "CUDA")
    assert not backend.supports_device("CUDA:1")
    assert backend.supports_device("CPU")
    with pytest.raises(ShapeError, match="0 inputs are given; the node takes"):
        backend.run_node(helper.make_node("Add", ["a", "b"], ["c"]), [])


def test_compatible_is_what_can_be_prepared(model):
    assert backend.is_compatible(model)
    strange = onnx.ModelProto()
    strange.CopyFrom(model)
    strange.graph.node[0].op_type = "NoSuchOperator"
    assert not backend.is_compatible(strange)

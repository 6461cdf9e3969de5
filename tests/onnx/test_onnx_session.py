"""Sessions: what they take, what they say about it, programs that are cut."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.errors import DTypeError, FormatError, ShapeError, UnsupportedError

onnx = pytest.importorskip("onnx")
helper = onnx.helper
F, I = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64

import tilewright.onnx  # noqa: E402


def value(name, kind=F, shape=None):
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, inputs, outputs, constants=(), opset=17, **kwargs):
    tensors = [onnx.numpy_helper.from_array(v, k) for k, v in dict(constants).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], **kwargs)


def cut_model():
    nodes = [
        helper.make_node("Add", ["x", "w"], ["a"]),
        helper.make_node("NonZero", ["a"], ["nz"]),
        helper.make_node("Transpose", ["nz"], ["places"]),
        helper.make_node("Transpose", ["a"], ["b"]),
        helper.make_node("MatMul", ["a", "b"], ["y"]),
        helper.make_node("Reshape", ["y", "shape"], ["z"]),
    ]
    inputs = [value("x", F, ["n", 3]), value("shape", I, ["rank"])]
    outputs = [value("z"), value("places", I)]
    return model(nodes, inputs, outputs, {"w": np.array([1, 2, 3], np.float32)})


def test_a_program_is_cut_where_shapes_depend_on_data():
    session = tilewright.onnx.load(cut_model(), threads=2)
    rng = np.random.default_rng(0)
    for n in (2, 1, 5, 2, 0):
        for shape in ([-1], [n, n], [1, -1, 1]):
            if n == 0 and -1 in shape:
                continue
            x = rng.integers(-3, 1, (n, 3)).astype(np.float32)
            got = session.run({"x": x, "shape": np.array(shape, np.int64)})
            a = x + np.array([1, 2, 3], np.float32)
            np.testing.assert_array_equal(got["z"], (a @ a.T).reshape(shape))
            np.testing.assert_array_equal(got["places"], np.argwhere(a))


def test_wrong_inputs_are_answered_with_what_is_wanted():
    session = tilewright.onnx.load(cut_model())
    x, shape = np.zeros((2, 3), np.float32), np.array([-1])
    with pytest.raises(ShapeError, match=r"'shape' is missing: it wants int64\[rank\]"):
        session.run({"x": x})
    with pytest.raises(ShapeError, match="no input 'y'"):
        session.run({"x": x, "shape": shape, "y": x})
    with pytest.raises(ShapeError, match="no input 'w'"):
        session.run({"x": x, "shape": shape, "w": x})
    with pytest.raises(ShapeError, match=r"wants float32\[n, 3\], got float32\[2, 2\]"):
        session.run({"x": x[:, :2], "shape": shape})
    with pytest.raises(DTypeError, match="got float64"):
        session.run({"x": x.astype(np.float64), "shape": shape})
    with pytest.raises(ShapeError, match="no output 'q'"):
        session.run({"x": x, "shape": shape}, ["q"])


def test_results_may_be_kept_and_changed():
    session = tilewright.onnx.load(cut_model())
    feeds = {"x": np.ones((2, 3), np.float32), "shape": np.array([-1])}
    first = session.run(feeds)["z"]
    before = first.copy()
    first += 1
    second = session.run(feeds)["z"]
    np.testing.assert_array_equal(second, before)


def test_everything_that_is_missing_is_named_at_once():
    nodes = [
        helper.make_node("NoSuchOp", ["x"], ["a"], name="first"),
        helper.make_node("Add", ["a", "x"], ["b"], name="fine"),
        helper.make_node("AlsoNot", ["b"], ["y"], name="second", domain="my.domain"),
    ]
    made = model(nodes, [value("x")], [value("y")])
    made.opset_import.append(helper.make_opsetid("my.domain", 3))
    with pytest.raises(UnsupportedError) as info:
        tilewright.onnx.load(made)
    text = str(info.value)
    assert "first: NoSuchOp of ai.onnx opset 17" in text
    assert "second: AlsoNot of my.domain opset 3" in text
    assert "fine" not in text


def test_circles_are_refused():
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("Add", ["a", "x"], ["b"]),
    ]
    with pytest.raises(FormatError, match="circle"):
        tilewright.onnx.load(model(nodes, [value("x")], [value("b")]))


def test_nodes_may_stand_in_any_order():
    nodes = [
        helper.make_node("Add", ["a", "x"], ["b"]),
        helper.make_node("Add", ["x", "x"], ["a"]),
    ]
    session = tilewright.onnx.load(model(nodes, [value("x")], [value("b")]))
    x = np.arange(3, dtype=np.float32)
    np.testing.assert_array_equal(session.run({"x": x})["b"], 3 * x)


def test_functions_are_expanded():
    body = [helper.make_node("Add", ["p", "q"], ["r"]), helper.make_node("Add", ["r", "c"], ["s"])]
    constant = helper.make_node("Constant", [], ["c"])
    attribute = constant.attribute.add()
    attribute.name, attribute.ref_attr_name = "value", "shift"
    attribute.type = onnx.AttributeProto.TENSOR
    function = helper.make_function(
        "mine", "AddShift", ["p", "q"], ["s"], [constant, *body],
        [helper.make_opsetid("", 17)], ["shift"],
    )  # fmt: skip
    shift = onnx.numpy_helper.from_array(np.array([10], np.float32))
    node = helper.make_node("AddShift", ["x", "x"], ["y"], domain="mine", shift=shift)
    made = model([node], [value("x")], [value("y")], functions=[function])
    made.opset_import.append(helper.make_opsetid("mine", 1))
    session = tilewright.onnx.load(made)
    x = np.arange(3, dtype=np.float32)
    np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x + 10)


def test_shortcuts_see_when_inputs_change():
    nodes = [helper.make_node("Add", ["x", "w"], ["y"]), helper.make_node("Identity", ["x"], ["i"])]
    w = np.array([1, 2, 3], np.float32)
    one = tilewright.onnx.load(model(nodes[:1], [value("x")], [value("y")], {"w": w}))
    both = tilewright.onnx.load(model(nodes, [value("x")], [value("y"), value("i")], {"w": w}))
    passed = tilewright.onnx.load(model(nodes[1:], [value("x")], [value("i")]))
    base = np.arange(24, dtype=np.float32).reshape(8, 3)
    frozen = base[:2].copy()
    frozen.flags.writeable = False
    for x in (base[:2], base[:2], base[:4], base[::2], base[:2], frozen, base[:0], base[:2]):
        for _ in range(2):
            np.testing.assert_array_equal(one.run({"x": x})["y"], x + w)
            got = both.run({"x": x})
            np.testing.assert_array_equal(got["y"], x + w)
            np.testing.assert_array_equal(got["i"], x)
            copied = passed.run({"x": x})["i"]
            np.testing.assert_array_equal(copied, x)
            assert not np.shares_memory(copied, x)
            assert not np.shares_memory(got["i"], x)
    with pytest.raises(DTypeError):
        one.run({"x": base.astype(np.int32)})
    with pytest.raises(ShapeError):
        one.run({"z": base})


def test_operators_that_change_nothing_still_read_the_input():
    """A reshape to the same shape, a transpose that moves nothing: no copy of the first run."""
    for node in (
        helper.make_node("Transpose", ["x"], ["y"], perm=[0, 1]),
        helper.make_node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft", transB=1),
    ):
        session = tilewright.onnx.load(model([node], [value("x", F, [2, 3])], [value("y")]))
        for i in range(3):
            x = np.arange(6, dtype=np.float32).reshape(2, 3) + i
            want = x if node.op_type == "Transpose" else x @ x.T
            np.testing.assert_array_equal(session.run({"x": x})["y"], want)


def test_an_input_that_is_only_looked_at_otherwise_is_no_constant():
    nodes = [
        helper.make_node("Reshape", ["x", "same"], ["r"]),
        helper.make_node("Add", ["r", "w"], ["y"]),
    ]
    constants = {"same": np.array([2, 3]), "w": np.array([1, 2, 3], np.float32)}
    session = tilewright.onnx.load(model(nodes, [value("x")], [value("y")], constants))
    for k in range(3):
        x = np.full((2, 3), k, np.float32)
        np.testing.assert_array_equal(session.run({"x": x})["y"], x + constants["w"])

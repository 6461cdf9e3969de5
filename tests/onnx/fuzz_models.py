"""Small models that the fuzzer damages: between them every family of operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

F, I, B = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL
Node = helper.make_node


def value(name: str, shape: Any, kind: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: list[Any],
    inputs: Mapping[str, tuple[Any, ...]],
    outputs: list[str],
    constants: Mapping[str, Any] | None = None,
    opset: int = 21,
    **kwargs: Any,
) -> onnx.ModelProto:
    """A model; ``inputs`` by name: shape, and element type if it is not float."""
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [value(k, *v) for k, v in inputs.items()],
        [onnx.ValueInfoProto(name=o) for o in outputs],
        tensors,
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)]
    imports += [helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, **kwargs)


def body(
    nodes: list[Any], inputs: list[onnx.ValueInfoProto], outputs: list[str]
) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", inputs, [value(o, None) for o in outputs])


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _convolutions() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "b": np.zeros(4, np.float32),
        "s": np.ones(4, np.float32),
        "t": rng.standard_normal((4, 2, 2, 2)).astype(np.float32),
    }
    nodes = [
        Node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], kernel_shape=[3, 3], group=1),
        Node("BatchNormalization", ["c", "s", "b", "b", "s"], ["n"], epsilon=1e-5),
        Node("Relu", ["n"], ["r"]),
        Node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        Node("AveragePool", ["r"], ["a"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        Node("ConvTranspose", ["p", "t"], ["u"], strides=[2, 2], output_padding=[1, 1]),
        Node("GlobalAveragePool", ["u"], ["y"]),
    ]
    return model(nodes, {"x": ([1, 3, 6, 6],)}, ["y", "a"], weights)


def _shapes() -> onnx.ModelProto:
    constants = {
        "shape": ints(2, -1), "starts": ints(0), "ends": ints(3), "axes": ints(1),
        "steps": ints(2), "pads": ints(0, 1, 0, 1), "reps": ints(2, 1), "big": ints(1, 4, 2),
        "idx": ints(0, -1), "sizes": ints(2, 1),
    }  # fmt: skip
    nodes = [
        Node("Reshape", ["x", "shape"], ["r"]),
        Node("Transpose", ["r"], ["t"], perm=[1, 0]),
        Node("Slice", ["r", "starts", "ends", "axes", "steps"], ["s"]),
        Node("Pad", ["s", "pads"], ["p"], mode="reflect"),
        Node("Tile", ["t", "reps"], ["ti"]),
        Node("Expand", ["t", "big"], ["e"]),
        Node("Concat", ["t", "ti"], ["c"], axis=0),
        Node("Gather", ["c", "idx"], ["g"], axis=0),
        Node("Split", ["c", ""], ["s1", "s2"], axis=1, num_outputs=2),
        Node("Unsqueeze", ["g", "axes"], ["un"]),
        Node("Squeeze", ["un"], ["sq"]),
        Node("Flatten", ["e"], ["f"], axis=1),
    ]
    return model(nodes, {"x": ([2, "n"],)}, ["p", "f", "s1", "s2", "sq"], constants)


def _creation() -> onnx.ModelProto:
    constants = {
        "shape": ints(2, 3), "depth": ints(4), "values": np.array([0, 1], np.float32),
        "a": ints(0), "b": ints(6), "c": ints(2), "scales": np.array([1, 1, 2, 1.5], np.float32),
        "k": ints(2), "roi": np.zeros(0, np.float32),
    }  # fmt: skip
    fill = numpy_helper.from_array(np.array([2], np.float32))
    nodes = [
        Node("ConstantOfShape", ["shape"], ["cs"], value=fill),
        Node("Range", ["a", "b", "c"], ["ra"]),
        Node("OneHot", ["ra", "depth", "values"], ["oh"], axis=-1),
        Node("EyeLike", ["cs"], ["eye"], k=1),
        Node("Trilu", ["cs"], ["tri"], upper=1),
        Node("Resize", ["x", "roi", "scales"], ["re"], mode="linear"),
        Node("DepthToSpace", ["x"], ["d"], blocksize=2, mode="CRD"),
        Node("TopK", ["x", "k"], ["tv", "ti"], axis=-1),
        Node("CumSum", ["cs", "a"], ["cu"]),
        Node("RandomNormal", [], ["rn"], shape=[2, 3], seed=1.0),
    ]
    outputs = ["oh", "eye", "tri", "re", "d", "tv", "ti", "cu", "rn"]
    return model(nodes, {"x": ([1, 4, 2, 2],)}, outputs, constants)


def _products() -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    constants = {
        "w": rng.standard_normal((4, 5)).astype(np.float32), "b": np.zeros(5, np.float32),
        "g": np.ones(5, np.float32),
    }  # fmt: skip
    nodes = [
        Node("Gemm", ["x", "w", "b"], ["h"], alpha=0.5, beta=2.0, transB=0),
        Node("LayerNormalization", ["h", "g", "b"], ["n"], axis=-1, epsilon=1e-5),
        Node("Gelu", ["n"], ["e"], approximate="tanh"),
        Node("Softmax", ["e"], ["s"], axis=-1),
        Node("MatMul", ["s", "e2"], ["m"]),
        Node("Transpose", ["e"], ["e2"]),
        Node("Einsum", ["m", "x"], ["y"], equation="ij,jk->ik"),
        Node("ReduceMean", ["y"], ["r"], keepdims=0),
        Node("ArgMax", ["y"], ["a"], axis=1, keepdims=0),
        Node("Clip", ["y"], ["cl"]),
        Node("Cast", ["cl"], ["ca"], to=onnx.TensorProto.FLOAT16),
        Node("Where", ["cond", "x", "x"], ["wh"]),
        Node("Greater", ["x", "x"], ["cond"]),
    ]
    return model(nodes, {"x": ([3, 4],)}, ["r", "a", "ca", "wh"], constants)


def _control() -> onnx.ModelProto:
    scalar = [value("i", [], I), value("c", [], B), value("v", None)]
    step = body(
        [Node("Add", ["v", "x"], ["v2"]), Node("Identity", ["c"], ["c2"]),
         Node("Mul", ["v2", "v2"], ["out"])],
        scalar, ["c2", "v2", "out"],
    )  # fmt: skip
    then = body([Node("Add", ["x", "x"], ["o1"])], [], ["o1"])
    other = body([Node("NonZero", ["x"], ["nz"]), Node("Cast", ["nz"], ["o2"], to=F)], [], ["o2"])
    scan = body(
        [Node("Add", ["st", "el"], ["st2"]), Node("Identity", ["st2"], ["so"])],
        [value("st", None), value("el", None)],
        ["st2", "so"],
    )
    nodes = [
        Node("Loop", ["trips", "go", "x"], ["last", "all"], body=step),
        Node("ReduceSum", ["x"], ["sum"], keepdims=0),
        Node("Cast", ["sum"], ["flag"], to=B),
        Node("If", ["flag"], ["branch"], then_branch=then, else_branch=other),
        Node("Scan", ["zero", "x"], ["end", "outs"], body=scan, num_scan_inputs=1),
    ]
    constants = {
        "trips": np.array(3), "go": np.array(True), "zero": np.zeros(4, np.float32),
    }  # fmt: skip
    return model(nodes, {"x": ([3, 4],)}, ["last", "all", "branch", "end", "outs"], constants)


def _sequences() -> onnx.ModelProto:
    nodes = [
        Node("SplitToSequence", ["x", "parts"], ["seq"], axis=0),
        Node("SequenceAt", ["seq", "at"], ["one"]),
        Node("SequenceInsert", ["seq", "one"], ["more"]),
        Node("ConcatFromSequence", ["more"], ["y"], axis=0),
        Node("SequenceLength", ["more"], ["n"]),
        Node("NonZero", ["y"], ["nz"]),
        Node("Compress", ["y", "keep"], ["co"], axis=0),
        Node("Unique", ["y"], ["un"]),
        Node("NonMaxSuppression", ["boxes", "scores", "most"], ["nms"]),
    ]
    constants = {
        "parts": ints(1, 2), "at": np.array(1), "keep": np.array([True, False, True]),
        "boxes": np.array([[[0, 0, 1, 1], [0, 0, 2, 2]]], np.float32),
        "scores": np.array([[[0.5, 0.6]]], np.float32), "most": ints(3),
    }  # fmt: skip
    return model(nodes, {"x": ([3, 2],)}, ["y", "n", "nz", "co", "un", "nms"], constants)


def _quantised() -> onnx.ModelProto:
    rng = np.random.default_rng(2)
    constants = {
        "s": np.array(0.1, np.float32), "z": np.array(3, np.uint8),
        "w": rng.integers(-9, 9, (4, 3)).astype(np.int8), "ws": np.array(0.02, np.float32),
        "wz": np.array(0, np.int8),
    }  # fmt: skip
    nodes = [
        Node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        Node("QLinearMatMul", ["q", "s", "z", "w", "ws", "wz", "s", "z"], ["qm"]),
        Node("DequantizeLinear", ["qm", "s", "z"], ["y"], axis=0),
        Node("MatMulInteger", ["q", "w", "z", "wz"], ["mi"]),
        Node("DynamicQuantizeLinear", ["x"], ["dq", "ds", "dz"]),
    ]
    return model(nodes, {"x": ([2, 4],)}, ["y", "mi", "dq"], constants)


def _recurrent() -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    constants = {
        "w": rng.standard_normal((1, 12, 2)).astype(np.float32),
        "r": rng.standard_normal((1, 12, 3)).astype(np.float32),
    }
    nodes = [
        Node("LSTM", ["x", "w", "r"], ["y", "h"], hidden_size=3, direction="forward"),
        Node("Squeeze", ["y"], ["z"]),
    ]
    return model(nodes, {"x": ([4, 2, 2],)}, ["z", "h"], constants)


def _functions() -> onnx.ModelProto:
    inner = helper.make_function(
        "mine", "Twice", ["p"], ["q"], [Node("Add", ["p", "p"], ["q"])],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    outer = helper.make_function(
        "mine", "Four", ["p"], ["q"],
        [Node("Twice", ["p"], ["m"], domain="mine"), Node("Twice", ["m"], ["q"], domain="mine")],
        [helper.make_opsetid("", 21), helper.make_opsetid("mine", 1)],
    )  # fmt: skip
    nodes = [Node("Four", ["x"], ["y"], domain="mine")]
    return model(nodes, {"x": (["n"],)}, ["y"], functions=[inner, outer])


def _strings() -> onnx.ModelProto:
    made = model(
        [
            Node("StringNormalizer", ["s"], ["u"], case_change_action="UPPER"),
            Node("StringConcat", ["u", "u"], ["y"]),
            Node("Shape", ["y"], ["n"]),
        ],
        {"s": ([2], onnx.TensorProto.STRING)},
        ["y", "n"],
    )
    made.graph.initializer.append(
        helper.make_tensor("words", onnx.TensorProto.STRING, [2], [b"a", b"\xff"])
    )
    return made


def _stored() -> onnx.ModelProto:
    """Sparse and typed initialisers of several kinds."""
    made = model([Node("Add", ["x", "sp"], ["y"]), Node("Cast", ["h"], ["z"], to=F)],
                 {"x": ([3, 4],)}, ["y", "z"])  # fmt: skip
    values = numpy_helper.from_array(np.array([1, 2], np.float32), "sp")
    where = numpy_helper.from_array(ints(1, 7), "at")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, [3, 4]))
    made.graph.initializer.append(
        helper.make_tensor("h", onnx.TensorProto.FLOAT16, [2], np.array([1, 2], np.float16))
    )
    made.graph.initializer.append(helper.make_tensor("i4", onnx.TensorProto.INT4, [3], [1, -2, 3]))
    return made


SEEDS = {
    f.__name__.lstrip("_"): f
    for f in (
        _convolutions, _shapes, _creation, _products, _control, _sequences, _quantised, _recurrent,
        _functions, _strings, _stored,
    )
}  # fmt: skip

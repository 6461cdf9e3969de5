"""Models of one node, run by tilewright and by onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

import tilewright.onnx

MICROSOFT = "com.microsoft"


def value(name, array):
    """What a graph says of an input: its dtype, and the rank of its shape."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, [None] * array.ndim)


def single(op, feeds, outputs=("y",), opset=17, domain="", constants=(), inputs=None,
           domain_opset=1, **attrs):  # fmt: skip
    """A model of one node: ``feeds`` by name (None leaves an input out), ``outputs`` untyped."""
    constants = dict(constants)
    names = inputs if inputs is not None else [*feeds, *constants]
    present = {k: v for k, v in feeds.items() if v is not None}
    names = [n if n in present or n in constants else "" for n in names]
    node = helper.make_node(op, names, list(outputs), domain=domain, name="node", **attrs)
    graph = helper.make_graph(
        [node],
        "g",
        [value(k, v) for k, v in present.items()],
        [onnx.ValueInfoProto(name=o) for o in outputs if o],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    if domain:
        imports.append(helper.make_opsetid(domain, domain_opset))
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def ours(model, feeds):
    """Outputs by name, of a second run: the first one had the same arrays turned round."""
    session = tilewright.onnx.load(model, threads=2)
    given = {k: v for k, v in feeds.items() if v is not None}
    session.run({k: np.flip(v) for k, v in given.items()})
    return session.run(given)


def theirs(model, feeds):
    """The same by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = {k: v for k, v in feeds.items() if v is not None}
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, given)))


def agree(op, feeds, outputs=("y",), rtol=1e-5, atol=1e-6, **settings):
    """Both give the same; returns tilewright's outputs."""
    model = single(op, feeds, outputs, **settings)
    want, got = theirs(model, feeds), ours(model, feeds)
    for name, array in want.items():
        assert got[name].dtype == array.dtype, (name, got[name].dtype, array.dtype)
        assert got[name].shape == array.shape, (name, got[name].shape, array.shape)
        np.testing.assert_allclose(got[name], array, rtol=rtol, atol=atol, err_msg=name)
    return got

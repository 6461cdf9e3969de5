"""One session, inputs of many sizes: every operator beside onnxruntime at each of them.

From the second size on a session may trace with symbols for sizes; what an operator makes of those
has to be right, and the bits those of a trace at the sizes themselves.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.onnx.oracle import single, theirs

import tilewright.onnx

RNG = np.random.default_rng(0)
SIZES = [(2, 5), (3, 5), (4, 7), (1, 6), (5, 1), (3, 9), (2, 5)]


def f32(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def i64(*values):
    return np.array(values, np.int64)


def x_of(n, m):
    return {"x": f32(n, 4, m)}


CASES = {
    # name: op, feeds by sizes, constants, opset, attributes, outputs
    "softmax": ("Softmax", x_of, {}, 13, {}),
    "softmax of all": ("Softmax", x_of, {}, 11, {"axis": 1}),
    "log softmax": ("LogSoftmax", x_of, {}, 13, {"axis": 2}),
    "hardmax": ("Hardmax", x_of, {}, 13, {"axis": -1}),
    "sum": ("ReduceSum", x_of, {"axes": i64(2)}, 13, {"keepdims": 0}),
    "mean": ("ReduceMean", x_of, {}, 17, {"axes": [0, 2]}),
    "log sum exp": ("ReduceLogSumExp", x_of, {}, 17, {"axes": [0]}),
    "greatest": ("ReduceMax", x_of, {}, 17, {}),
    "argmax": ("ArgMax", x_of, {}, 13, {"axis": 2}),
    "last argmax": ("ArgMax", x_of, {}, 13, {"axis": 2, "select_last_index": 1}),
    "running sum": ("CumSum", x_of, {"axis": np.array(2)}, 14, {"exclusive": 1}),
    "running sum back": ("CumSum", x_of, {"axis": np.array(0)}, 14, {"reverse": 1}),
    "slice": (
        "Slice",
        x_of,
        {"starts": i64(1, -1), "ends": i64(3, -99), "axes": i64(1, 2), "steps": i64(1, -1)},
        13,
        {},
    ),
    "slice off the end": (
        "Slice", x_of, {"starts": i64(-2), "ends": i64(1 << 60), "axes": i64(2)}, 13, {},
    ),
    "flatten": ("Flatten", x_of, {}, 13, {"axis": 1}),
    "unsqueeze": ("Unsqueeze", x_of, {"axes": i64(0, -1)}, 13, {}),
    "expand": ("Expand", x_of, {"shape": i64(2, 1, 1, 1)}, 13, {}),
    "tile": ("Tile", x_of, {"times": i64(2, 1, 2)}, 13, {}),
    "pad": ("Pad", x_of, {"pads": i64(0, 1, 2, 1, 0, 0)}, 13, {}),
    "pad with edges": ("Pad", x_of, {"pads": i64(0, 0, 2, 0, 0, 1)}, 13, {"mode": "edge"}),
    "gather": ("Gather", x_of, {"at": i64(3, 0, 1)}, 13, {"axis": 1}),
    "gather one": ("Gather", x_of, {"at": np.array(-1)}, 13, {"axis": 2}),
    "gather given": (
        "Gather", lambda n, m: {"x": f32(9, 3), "at": RNG.integers(-9, 9, (n, m))}, {}, 13, {},
    ),
    "gather elements": (
        "GatherElements",
        lambda n, m: {"x": f32(n, 4, m), "at": RNG.integers(-4, 4, (n, 6, m))},
        {},
        13,
        {"axis": 1},
    ),
    "gather tuples": (
        "GatherND",
        lambda n, m: {"x": f32(n, 4, m), "at": RNG.integers(-1, 1, (n, 3, 1))},
        {},
        13,
        {"batch_dims": 1},
    ),
    "scatter elements": (
        "ScatterElements",
        lambda n, m: {
            "x": f32(n, 4, m),
            "at": np.argsort(RNG.random((n, 4, m)), 1),
            "updates": f32(n, 4, m),
        },
        {},
        18,
        {"axis": 1},
    ),
    "scatter tuples": (
        "ScatterND",
        lambda n, m: {"x": f32(4, n), "at": i64([0], [2]), "updates": f32(2, n)},
        {},
        18,
        {"reduction": "add"},
    ),
    "one hot": (
        "OneHot",
        lambda n, m: {"at": RNG.integers(-3, 3, (n, m))},
        {"depth": np.array(3), "values": np.array([0, 1], np.float32)},
        11,
        {"axis": 0},
    ),
    "triangle": ("Trilu", x_of, {}, 14, {"upper": 0}),
    "identity matrix": ("EyeLike", lambda n, m: {"x": f32(n, m)}, {}, 9, {"k": 1}),
    "largest": ("TopK", lambda n, m: {"x": f32(m, 5)}, {"k": i64(2)}, 11, {}),
    "reversed": (
        "ReverseSequence",
        lambda n, m: {"x": f32(m, n), "lengths": RNG.integers(1, m + 1, n)},
        {},
        10,
        {},
    ),
    "depth to space": ("DepthToSpace", lambda n, m: {"x": f32(n, 8, m, 3)}, {}, 13,
                       {"blocksize": 2}),
    "space to depth": ("SpaceToDepth", lambda n, m: {"x": f32(n, 1, 2 * m, 4)}, {}, 13,
                       {"blocksize": 2}),
    "product": ("MatMul", lambda n, m: {"a": f32(n, 3, m), "b": f32(m, 4)}, {}, 13, {}),
    "gemm": ("Gemm", lambda n, m: {"a": f32(m, n), "b": f32(m, 4), "c": f32(4)}, {}, 13,
             {"transA": 1, "alpha": 0.5}),
    "einsum": ("Einsum", lambda n, m: {"a": f32(n, 2, m), "b": f32(n, m, 3)}, {}, 13,
               {"equation": "bij,bjk->bik"}),
    "split": ("Split", lambda n, m: {"x": f32(n, 6, m)}, {"sizes": i64(1, 2, 3)}, 13,
              {"axis": 1}),
    "split evenly": ("Split", lambda n, m: {"x": f32(n, 2 * m)}, {}, 13, {"axis": 1}),
    "concat": ("Concat", lambda n, m: {"a": f32(n, m), "b": f32(3, m)}, {}, 13, {"axis": 0}),
    "where": ("Where", lambda n, m: {"c": f32(n, 1) > 0, "a": f32(n, m), "b": f32(m)}, {}, 16, {}),
    "power": ("Pow", lambda n, m: {"a": np.abs(f32(n, m)), "b": f32(m)}, {}, 13, {}),
    "clip": ("Clip", x_of, {"low": np.float32(-0.5).reshape(())}, 13, {}),
    "quotient": ("Div", lambda n, m: {"a": RNG.integers(-9, 9, (n, m)), "b": i64(-2)}, {}, 14, {}),
    "slope": ("PRelu", lambda n, m: {"a": f32(n, 3, m), "b": f32(3, 1)}, {}, 16, {}),
    "not zero": ("NonZero", lambda n, m: {"x": np.round(f32(n, m))}, {}, 13, {}),
    "compress": ("Compress", lambda n, m: {"x": f32(n, m), "c": RNG.random(n) < 0.5}, {}, 11,
                 {"axis": 0}),
    "unique": ("Unique", lambda n, m: {"x": np.round(f32(n * m))}, {}, 11, {}),
}  # fmt: skip

OUTPUTS = {"TopK": ("y", "places")}


@pytest.mark.parametrize("name", CASES)
def test_one_session_at_many_sizes(name):
    op, feeds_of, constants, opset, attrs = CASES[name]
    outputs = OUTPUTS.get(op, ("y",))
    if op == "Split":
        outputs = ("y", "z", "w") if constants else ("y", "z")
    model = single(op, feeds_of(2, 5), outputs, opset=opset, constants=constants, **attrs)
    session = tilewright.onnx.load(model, threads=2)
    for n, m in SIZES:
        if op == "TopK" and m < 2:
            continue
        feeds = feeds_of(n, m)
        got = session.run(feeds)
        fresh = tilewright.onnx.load(model, threads=1).run(feeds)
        for output, want in theirs(model, feeds).items():
            assert got[output].dtype == want.dtype
            assert got[output].shape == want.shape
            np.testing.assert_allclose(got[output], want, rtol=2e-5, atol=1e-6)
            np.testing.assert_array_equal(got[output], fresh[output])

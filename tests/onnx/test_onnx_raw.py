"""What no tensor holds (strings, integers of 4 bits ...), changes of type, random numbers."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ml_dtypes = pytest.importorskip("ml_dtypes")

from tests.onnx.oracle import ours, single  # noqa: E402

import tilewright.onnx  # noqa: E402
from tilewright.errors import ShapeError, UnsupportedError  # noqa: E402

WORDS = np.array([["a", "bb", "ccc"], ["d", "", "ff"]], object)
INT4 = np.arange(-3, 3).reshape(2, 3).astype(ml_dtypes.int4)
FLOAT8 = np.arange(6).reshape(2, 3).astype(ml_dtypes.float8_e4m3fn)


def i64(*values):
    return np.array(values, np.int64)


MOVES = {
    "Reshape": ({"shape": i64(3, 2)}, {}, lambda x: x.reshape(3, 2)),
    "Transpose": ({}, {"perm": [1, 0]}, lambda x: x.T),
    "Flatten": ({}, {"axis": 0}, lambda x: x.reshape(1, 6)),
    "Unsqueeze": ({"axes": i64(1)}, {}, lambda x: x[:, None]),
    "Slice": (
        {"starts": i64(2), "ends": i64(-9), "axes": i64(1), "steps": i64(-1)},
        {},
        lambda x: x[:, ::-1],
    ),
    "Expand": ({"shape": i64(3, 1, 1, 3)}, {}, lambda x: np.broadcast_to(x, (3, 1, 2, 3))),
    "Tile": ({"times": i64(1, 2)}, {}, lambda x: np.tile(x, (1, 2))),
    "Gather": ({"at": i64(2, -3)}, {"axis": 1}, lambda x: x[:, [2, 0]]),
    "GatherElements": ({"at": np.array([[2, 0]])}, {"axis": 1}, lambda x: x[:1, [2, 0]]),
    "GatherND": ({"at": np.array([[1, 2], [0, 0]])}, {}, lambda x: x[[1, 0], [2, 0]]),
    "Compress": ({"c": np.array([False, True])}, {"axis": 0}, lambda x: x[1:]),
    "Identity": ({}, {}, lambda x: x),
    "Concat": ({"other": None}, {"axis": 0}, lambda x: np.concatenate([x, x])),
}


@pytest.mark.parametrize("op", MOVES)
@pytest.mark.parametrize("x", [WORDS, INT4, FLOAT8], ids=["strings", "int4", "float8"])
def test_any_element_is_moved(op, x):
    """Indices that are inputs, too: they are read where the elements are not in a program."""
    others, attrs, fn = MOVES[op]
    feeds = {"x": x} | {k: x if v is None else v for k, v in others.items()}
    got = ours(single(op, feeds, opset=21, **attrs), feeds)["y"]
    assert got.dtype == x.dtype
    np.testing.assert_array_equal(plain(got), plain(fn(x)))


def plain(array):
    return array.astype(str) if array.dtype == object else array.astype(np.float32)


def test_strings_are_chosen_scattered_split_and_padded():
    feeds = {"c": np.array([[True], [False]]), "x": WORDS, "other": WORDS[::-1].copy()}
    got = ours(single("Where", feeds, opset=16), feeds)["y"]
    np.testing.assert_array_equal(got, np.where(feeds["c"], WORDS, WORDS[::-1]))
    feeds = {"x": WORDS, "at": np.array([[1, 0, 0]]), "updates": WORDS[:1].copy()}
    got = ours(single("ScatterElements", feeds, opset=18), feeds)["y"]
    np.testing.assert_array_equal(got, [["a", "bb", "ccc"], ["a", "", "ff"]])
    feeds = {"x": WORDS}
    got = ours(single("Split", feeds, ("y", "z"), opset=18, num_outputs=2), feeds)
    np.testing.assert_array_equal(got["z"], WORDS[1:])
    feeds = {"x": WORDS, "pads": i64(0, 1, 0, 0), "value": np.array("-", object)}
    got = ours(single("Pad", feeds, opset=18), feeds)["y"]
    np.testing.assert_array_equal(got[:, 0], ["-", "-"])
    feeds = {"x": WORDS, "other": WORDS[:1].copy()}
    got = ours(single("Equal", feeds, opset=19), feeds)["y"]
    np.testing.assert_array_equal(got, WORDS[:1] == WORDS)


def test_arithmetic_with_strings_is_refused():
    feeds = {"x": WORDS, "other": WORDS}
    with pytest.raises(UnsupportedError, match="works on numbers"):
        ours(single("Add", feeds), feeds)


# --- changes of type -----------------------------------------------------------------------------


def cast(x, to, **attrs):
    feeds = {"x": x}
    number = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(to)) if to is not object else 8
    return ours(single("Cast", feeds, opset=25, to=number, **attrs), feeds)["y"]


def test_casts_between_numbers():
    x = np.array([-1.7, 0.0, 2.5, 300.0], np.float32)
    np.testing.assert_array_equal(cast(x, np.int32), [-1, 0, 2, 300])
    np.testing.assert_array_equal(cast(x, np.bool_), [True, False, True, True])
    np.testing.assert_array_equal(cast(np.array([200], np.int16), np.int8), [-56])
    half = cast(np.array([1e6, 1 / 3]), np.float16)
    np.testing.assert_array_equal(half, np.array([np.inf, 1 / 3], np.float16))
    brain = cast(np.array([1 / 3], np.float32), ml_dtypes.bfloat16)
    assert brain.dtype == ml_dtypes.bfloat16
    assert brain[0] == ml_dtypes.bfloat16(1 / 3)


def test_casts_to_and_from_strings():
    x = np.array([0.5, -2, 1e-5, np.nan, np.inf, -np.inf, 123456789], np.float32)
    texts = cast(x, object)
    assert texts.tolist() == ["0.5", "-2", "0.00001", "NaN", "INF", "-INF", "123456790"]
    np.testing.assert_array_equal(cast(texts, np.float32), x)
    np.testing.assert_array_equal(cast(np.array(["1", "-3"], object), np.int64), [1, -3])
    np.testing.assert_array_equal(cast(np.array([7, -8]), object), ["7", "-8"])


def test_casts_to_few_bits():
    x = np.array([-9.5, -1, 3, 20, np.nan], np.float32)
    assert cast(x[:4], ml_dtypes.int4).astype(int).tolist() == [7, -1, 3, 4]
    assert cast(x[1:3], ml_dtypes.uint4).astype(int).tolist() == [15, 3]
    wide = np.array([1e6, -1e6, np.inf, np.nan, 0.3], np.float32)
    e4m3, e5m2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
    kept = cast(wide, e4m3).astype(np.float32)
    np.testing.assert_array_equal(kept[:3], [448, -448, 448])
    lost = cast(wide, e4m3, saturate=0).astype(np.float32)
    assert np.isnan(lost[:4]).all()
    kept = cast(wide, e5m2, saturate=0).astype(np.float32)
    np.testing.assert_array_equal(kept[:3], [np.inf, -np.inf, np.inf])
    back = cast(cast(wide[4:], e4m3), np.float32)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, 0.3, rtol=0.07)


# --- random numbers ------------------------------------------------------------------------------


def drawn(op, feeds=None, runs=2, **attrs):
    session = tilewright.onnx.load(single(op, feeds or {}, opset=22, **attrs), threads=1)
    return [session.run(feeds or {})["y"] for _ in range(runs)]


def test_a_seed_fixes_the_numbers():
    attrs = {"shape": [400], "seed": 3.0}
    first, second = drawn("RandomNormal", **attrs)
    np.testing.assert_array_equal(first, second)
    other = drawn("RandomNormal", **attrs | {"seed": 4.0})[0]
    assert (first != other).mean() > 0.9


def test_without_a_seed_every_run_has_other_numbers():
    first, second = drawn("RandomUniform", shape=[400], low=-2.0, high=4.0)
    assert (first != second).mean() > 0.9
    again = drawn("RandomUniform", shape=[400], low=-2.0, high=4.0)
    np.testing.assert_array_equal(first, again[0])  # but every session the same
    assert first.min() >= -2
    assert first.max() < 4
    assert abs(first.mean() - 1) < 0.3


def test_two_operators_draw_different_numbers():
    nodes = [
        onnx.helper.make_node("RandomUniformLike", ["x"], ["a"]),
        onnx.helper.make_node("RandomUniformLike", ["x"], ["b"]),
        onnx.helper.make_node("Sub", ["a", "b"], ["y"]),
    ]
    kind = onnx.helper.make_tensor_value_info("x", 1, [None])
    out = onnx.helper.make_empty_tensor_value_info("y")
    graph = onnx.helper.make_graph(nodes, "g", [kind], [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    session = tilewright.onnx.load(model)
    for n in (50, 70, 90):
        assert (session.run({"x": np.zeros(n, np.float32)})["y"] != 0).mean() > 0.9


def test_distributions():
    (x,) = drawn("RandomNormal", shape=[20000], mean=2.0, scale=3.0, runs=1)
    assert abs(x.mean() - 2) < 0.1
    assert abs(x.std() - 3) < 0.1
    chances = {"x": np.full(20000, 0.3, np.float32)}
    (ones,) = drawn("Bernoulli", chances, runs=1)
    assert abs(ones.mean() - 0.3) < 0.02
    logits = {"x": np.log(np.array([[0.1, 0.2, 0.7]], np.float32))}
    (classes,) = drawn("Multinomial", logits, runs=1, sample_size=20000)
    assert classes.dtype == np.int32
    shares = np.bincount(classes[0], minlength=3) / 20000
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.7], atol=0.02)


def test_dropout_in_training():
    x = np.ones((50, 40), np.float32)
    feeds = {"x": x}
    constants = {"ratio": np.array(0.25, np.float32), "training": np.array(True)}
    model = single("Dropout", feeds, ("y", "mask"), opset=13, constants=constants)
    session = tilewright.onnx.load(model)
    first, second = session.run(feeds), session.run(feeds)
    np.testing.assert_array_equal(first["mask"], first["y"] != 0)
    np.testing.assert_allclose(first["y"][first["mask"]], 1 / 0.75, rtol=1e-6)
    assert abs(first["mask"].mean() - 0.75) < 0.05
    assert (first["mask"] != second["mask"]).any()
    wrong = {"ratio": np.array(1.5, np.float32), "training": np.array(True)}
    session = tilewright.onnx.load(single("Dropout", feeds, opset=13, constants=wrong))
    with pytest.raises(ShapeError, match="ratio"):
        session.run(feeds)

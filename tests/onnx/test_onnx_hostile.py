"""Files that mean harm: refused in words, before memory is taken, without leaving their folder."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time

import numpy as np
import pytest

from tilewright.errors import (
    FormatError,
    OutOfMemoryError,
    ShapeError,
    TilewrightError,
    UnsupportedError,
)

onnx = pytest.importorskip("onnx")
pytest.importorskip("ml_dtypes")
from tests.onnx.fuzz_models import F, Node, body, ints, model, value  # noqa: E402

import tilewright.onnx  # noqa: E402

helper = onnx.helper
HUGE = 1 << 60
ZERO = np.array(0)


def run(made, **feeds):
    return tilewright.onnx.load(made, threads=1).run(feeds)


X = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("node", "constants"),
    [
        (Node("ConstantOfShape", ["s"], ["y"]), {"s": ints(HUGE)}),
        (Node("ConstantOfShape", ["s"], ["y"]), {"s": ints(1 << 20, 1 << 20)}),
        (Node("ConstantOfShape", ["s"], ["y"]), {"s": ints(HUGE, HUGE, HUGE)}),
        (Node("ConstantOfShape", ["s"], ["y"]), {"s": ints(-1)}),
        (Node("Expand", ["x", "s"], ["y"]), {"s": ints(HUGE, 2, 3)}),
        (Node("Tile", ["x", "s"], ["y"]), {"s": ints(HUGE, 1)}),
        (Node("Tile", ["x", "s"], ["y"]), {"s": ints(-1, 1)}),
        (Node("Reshape", ["x", "s"], ["y"]), {"s": ints(HUGE, -1)}),
        (Node("Reshape", ["x", "s"], ["y"]), {"s": ints(-5, -7)}),
        (Node("Pad", ["x", "s"], ["y"]), {"s": ints(HUGE, 0, 0, 0)}),
        (Node("Range", ["a", "b", "c"], ["y"]), {"a": ZERO, "b": np.array(HUGE), "c": np.array(1)}),
        (Node("Range", ["a", "b", "c"], ["y"]), {"a": ZERO, "b": np.array(9), "c": ZERO}),
        (Node("OneHot", ["i", "d", "v"], ["y"]), {"i": ints(0), "d": ints(HUGE), "v": ints(0, 1)}),
        (Node("Resize", ["x", "", "k"], ["y"]), {"k": np.array([1e12, 1e12], np.float32)}),
        (Node("Resize", ["x", "", "k"], ["y"]), {"k": np.array([np.nan, 1], np.float32)}),
        (Node("Resize", ["x", "", "", "s"], ["y"]), {"s": ints(HUGE, 1)}),
        (Node("Transpose", ["x"], ["y"], perm=[0, 7]), {}),
        (Node("Transpose", ["x"], ["y"], perm=[0, 0]), {}),
        (Node("Concat", ["x", "x"], ["y"], axis=HUGE), {}),
        (Node("Cast", ["x"], ["y"], to=99), {}),
        (Node("Gather", ["x", "i"], ["y"], axis=-9), {"i": ints(0)}),
        (Node("RandomNormal", [], ["y"], shape=[HUGE, 2]), {}),
        (Node("EyeLike", ["x"], ["y"], k=HUGE), {}),
    ],
    ids=lambda v: v.op_type if hasattr(v, "op_type") else "",
)  # fmt: skip
def test_absurd_sizes_are_refused_before_memory_is_taken(node, constants):
    made = model([node], {"x": ([2, 3],)}, ["y"], constants)
    start = time.process_time()
    if node.op_type == "EyeLike":  # the diagonal lies beyond the matrix
        assert not run(made, x=X)["y"].any()
    else:
        with pytest.raises(TilewrightError, match=rf"{node.op_type}|MB are available"):
            run(made, x=X)
    assert time.process_time() - start < 5


def test_the_numbers_are_named():
    made = model([Node("ConstantOfShape", ["s"], ["y"])], {}, ["y"], {"s": ints(1 << 40)})
    with pytest.raises(OutOfMemoryError, match=r"4398047 MB, \d+ MB are available"):
        run(made)
    # what decides sizes comes from outside
    made = model(
        [Node("ConstantOfShape", ["s"], ["y"])], {"s": ([1], onnx.TensorProto.INT64)}, ["y"]
    )
    session = tilewright.onnx.load(made)
    assert session.run({"s": ints(4)})["y"].shape == (4,)
    with pytest.raises(OutOfMemoryError, match="MB are available"):
        session.run({"s": ints(1 << 40)})
    assert session.run({"s": ints(5)})["y"].shape == (5,)


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (Node("Transpose", ["x"], ["y"], perm="10"), "'perm' is whole numbers, got '10'"),
        (Node("Transpose", ["x"], ["y"], perm=1.5), "'perm' is whole numbers, got 1.5"),
        (Node("Concat", ["x", "x"], ["y"], axis="0"), "'axis' is a whole number, got '0'"),
        (Node("Concat", ["x", "x"], ["y"], axis=[0]), r"'axis' is a whole number, got \(0,\)"),
        (Node("LeakyRelu", ["x"], ["y"], alpha="much"), "'alpha' is a number, got 'much'"),
        (Node("Concat", ["x", "x"], ["y"]), "attribute 'axis' is missing"),
        (Node("Transpose", ["x"], ["y"], spam=1), "attribute 'spam' is not supported"),
        (Node("MatMul", ["x"], ["y"]), "takes 2 inputs, got 1"),
    ],
)
def test_attributes_have_to_be_what_they_are(node, text):
    with pytest.raises((FormatError, UnsupportedError), match=text):
        tilewright.onnx.load(model([node], {"x": ([2, 3],)}, ["y"]))


def test_inputs_that_are_left_out_are_named():
    with pytest.raises(FormatError, match="input 0 is left out"):
        run(model([Node("Add", ["", "x"], ["y"])], {"x": ([2, 3],)}, ["y"]), x=X)
    with pytest.raises(FormatError, match="reads 'z', which nothing makes"):
        run(model([Node("Add", ["z", "x"], ["y"])], {"x": ([2, 3],)}, ["y"]), x=X)


def test_numbers_that_are_none_run():
    """NaN and infinities in attributes are values like others."""
    nodes = [
        Node("LeakyRelu", ["x"], ["a"], alpha=float("nan")),
        Node("Elu", ["x"], ["b"], alpha=float("inf")),
    ]
    with np.errstate(invalid="ignore"):
        results = run(model(nodes, {"x": ([2],)}, ["a", "b"]), x=np.array([1, -1], np.float32))
    np.testing.assert_array_equal(results["a"], [1, np.nan])
    np.testing.assert_array_equal(results["b"], [1, -np.inf])


# --- external data -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    inside = tmp_path / "model"
    (inside / "sub").mkdir(parents=True)
    np.arange(6, dtype=np.float32).tofile(inside / "w.bin")
    np.arange(6, dtype=np.float32).tofile(inside / "sub" / "w.bin")
    (inside / "link.bin").symlink_to(tmp_path / "secret.bin")
    (inside / "out").symlink_to(tmp_path)
    (inside / "loop").symlink_to(inside / "loop")
    return inside


def external(folder, kind=F, dims=(2, 3), **facts):
    """A model in ``folder`` whose weight lies where ``facts`` say."""
    tensor = onnx.TensorProto(name="w", data_type=kind, dims=dims)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, text in facts.items():
        tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=str(text)))
    made = model([Node("Add", ["x", "w"], ["y"])], {"x": ([2, 3],)}, ["y"])
    made.graph.initializer.append(tensor)
    path = folder / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin", "./sub/../w.bin"])
def test_external_data_inside_the_folder_are_read(folder, location):
    results = run(external(folder, location=location), x=X)
    np.testing.assert_array_equal(results["y"], X + np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "sub/../../secret.bin", "{}/secret.bin", "link.bin", "out/secret.bin", "loop",
     "", ".", "..", "/", "w.bin\0", "a" * 5000, "sub", "nothing.bin"],
)  # fmt: skip
def test_external_data_outside_the_folder_are_not(folder, location):
    path = external(folder, location=location.format(folder.parent))
    with pytest.raises(FormatError, match="external"):
        tilewright.onnx.load(path)


@pytest.mark.parametrize(
    "facts",
    [{"offset": 4}, {"offset": -4}, {"offset": HUGE}, {"offset": "x"}, {"length": 20},
     {"length": HUGE}, {"length": -24}, {"offset": 1 << 70}, {"dims": (HUGE,)}, {"dims": (-2, -3)},
     {"dims": (HUGE, HUGE)}, {"kind": onnx.TensorProto.STRING}, {"kind": 99}],
)  # fmt: skip
def test_external_data_have_to_be_there(folder, facts):
    with pytest.raises((FormatError, UnsupportedError)):
        tilewright.onnx.load(external(folder, **{"location": "w.bin", **facts}))


def test_external_data_need_a_folder(folder):
    data = external(folder, location="w.bin").read_bytes()
    with pytest.raises(FormatError, match="not read from a file"):
        tilewright.onnx.load(data)


# --- weights that claim to be more than they are -------------------------------------------------


def weight(**fields):
    made = model([Node("Identity", ["w"], ["y"])], {}, ["y"])
    made.graph.initializer.append(onnx.TensorProto(name="w", **fields))
    return made


@pytest.mark.parametrize(
    "fields",
    [{"data_type": 1, "dims": [1 << 40], "raw_data": b"\0" * 8},
     {"data_type": 1, "dims": [1 << 40]},
     {"data_type": 1, "dims": [1 << 32, 1 << 32], "float_data": [1.0]},
     {"data_type": 1, "dims": [-1], "raw_data": b"\0" * 4},
     {"data_type": 1, "dims": [0, 1 << 40, 1 << 40], "raw_data": b""},
     {"data_type": 1, "dims": [2], "raw_data": b"\0" * 7},
     {"data_type": 8, "dims": [1 << 40], "string_data": [b"a"]},
     {"data_type": 8, "dims": [1], "raw_data": b"text"},
     {"data_type": 0, "dims": [1], "raw_data": b"text"},
     {"data_type": 1, "dims": [1] * 70, "raw_data": b"\0" * 4}],
)  # fmt: skip
def test_weights_have_to_be_there(fields):
    with pytest.raises((FormatError, UnsupportedError)):
        run(weight(**fields))


def test_sparse_weights_are_not_bombs():
    made = model([Node("Identity", ["w"], ["y"])], {}, ["y"])
    values = onnx.numpy_helper.from_array(np.ones(1, np.float32), "w")
    where = onnx.numpy_helper.from_array(ints(0), "i")
    for dims in ([1 << 40], [1 << 31, 1 << 31], [-1], [0]):
        del made.graph.sparse_initializer[:]
        made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, dims))
        with pytest.raises(FormatError, match="not written out"):
            tilewright.onnx.load(made)


# --- graphs that turn back on themselves ---------------------------------------------------------


def test_functions_that_call_themselves_are_refused():
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("mine", 1)]

    def function(name, calls):
        nodes = [Node(c, ["p"], ["q"], domain="mine") for c in calls]
        return helper.make_function("mine", name, ["p"], ["q"], nodes, imports)

    for functions in (
        [function("A", ["A"])],
        [function("A", ["B"]), function("B", ["A"])],
    ):
        made = model([Node("A", ["x"], ["y"], domain="mine")], {"x": ([2, 3],)}, ["y"])
        made.functions.extend(functions)
        with pytest.raises((UnsupportedError, FormatError)):
            run(made, x=X)


def test_functions_that_double_at_every_level_are_refused():
    """Thirty lines that would expand to a thousand million nodes."""
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("mine", 1)]
    made = model([Node("F30", ["x"], ["y"], domain="mine")], {"x": ([2, 3],)}, ["y"])
    made.functions.append(
        helper.make_function("mine", "F0", ["p"], ["q"], [Node("Neg", ["p"], ["q"])], imports)
    )
    for i in range(1, 31):
        nodes = [
            Node(f"F{i - 1}", ["p"], ["m"], domain="mine"),
            Node(f"F{i - 1}", ["m"], ["q"], domain="mine"),
        ]
        made.functions.append(helper.make_function("mine", f"F{i}", ["p"], ["q"], nodes, imports))
    start = time.process_time()
    with pytest.raises(UnsupportedError, match="nodes"):
        run(made, x=X)
    assert time.process_time() - start < 10


def test_deep_nesting_is_refused():
    graph = body([Node("Identity", ["x"], ["o"])], [], ["o"])
    for _ in range(25):
        nodes = [
            Node(
                "If",
                ["c"],
                ["o"],
                then_branch=graph,
                else_branch=helper.make_graph([], "e", [], []),
            )
        ]
        graph = body(nodes, [], ["o"])
    made = model([Node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)],
                 {"x": ([2, 3],), "c": ([], onnx.TensorProto.BOOL)}, ["y"])  # fmt: skip
    with contextlib.suppress(TilewrightError):
        run(made, x=X, c=np.array(True))
    data = b""
    for _ in range(2000):  # an attribute with a graph with a node with an attribute ...
        data = b"\x0a" + _varint(len(data)) + data
    with pytest.raises(FormatError):
        tilewright.onnx.load(b"\x3a" + _varint(len(data)) + data)


def _varint(n):
    out = bytearray()
    while n >= 128:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def test_types_inside_types_are_refused_or_read():
    kind = onnx.TypeProto()
    kind.tensor_type.elem_type = F
    for _ in range(30):
        outer = onnx.TypeProto()
        outer.sequence_type.elem_type.CopyFrom(kind)
        kind = outer
    made = model([Node("Identity", ["x"], ["y"])], {}, ["y"])
    made.graph.input.append(onnx.ValueInfoProto(name="x", type=kind))
    session = tilewright.onnx.load(made)
    assert session.inputs[0].kind == "sequence"


def test_loops_without_end_are_refused():
    step = body(
        [Node("Add", ["v", "v"], ["v2"]), Node("Identity", ["c"], ["c2"])],
        [value("i", [], 7), value("c", [], 9), value("v", None)],
        ["c2", "v2"],
    )
    true = {"t": np.array(True)}
    for trips in (2**62, 2**31):
        n = {"n": np.array(trips)}
        made = model([Node("Loop", ["n", "", "x"], ["y"], body=step)], {"x": ([2, 3],)}, ["y"], n)
        with pytest.raises(UnsupportedError, match=f"runs {trips} times"):
            run(made, x=X)
    made = model([Node("Loop", ["", "t", "x"], ["y"], body=step)], {"x": ([2, 3],)}, ["y"], true)
    with pytest.raises(UnsupportedError, match="without end"):
        run(made, x=X)
    made = model([Node("Loop", ["n", "", "x"], ["y"], body=step)], {"x": ([2, 3],)}, ["y"],
                 {"n": np.array(-(2**62))})  # fmt: skip
    np.testing.assert_array_equal(run(made, x=X)["y"], X)


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path, tmp_path / "nothing.onnx"):
        with pytest.raises(FormatError, match="cannot be read"):
            tilewright.onnx.load(path)
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(FormatError, match="no graph"):
        tilewright.onnx.load(tmp_path / "empty.onnx")


def test_shapes_that_do_not_fit_are_found_in_tracing():
    made = model([Node("MatMul", ["x", "x"], ["y"])], {"x": ([2, 3],)}, ["y"])
    with pytest.raises(ShapeError, match="MatMul node"):
        run(made, x=X)


def test_damaged_models_by_the_hundred():
    """A share of what ``python -m tests.onnx.fuzz`` does; in a process that has no threads yet."""
    command = [sys.executable, "-m", "tests.onnx.fuzz", "--cases", "300", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 cases, 0 escaped" in done.stdout

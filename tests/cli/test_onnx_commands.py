"""``tilewright onnx`` as a user sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tilewright.cli import build

onnx = pytest.importorskip("onnx")
pytest.importorskip("ml_dtypes")
helper = onnx.helper

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """(status, stdout, stderr) of a command in this process."""

    def call(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            build()(["onnx", *map(str, args)], prog_name="tilewright")
        out, err = capsys.readouterr()
        status = end.value.code or 0
        assert isinstance(status, int)
        return status, out, err

    return call


def value(name, shape, kind=onnx.TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def save(path, nodes, inputs, outputs, constants=None, **kwargs):
    tensors = [onnx.numpy_helper.from_array(v, k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    imports = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=imports, producer_name="tests"), path)
    return path


W = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """``y = x @ w + b``, and its transpose."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Add", ["xw", "b"], ["y"]),
        helper.make_node("Transpose", ["y"], ["y/t:0"]),
    ]
    inputs = [value("x", ["batch", 3]), value("b", [4])]
    return save(
        tmp_path / "m.onnx", nodes, inputs, [value("y", None), value("y/t:0", None)], {"w": W}
    )


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """Two nodes that cannot be run, one that can."""
    nodes = [
        helper.make_node("NoSuchThing", ["x"], ["a"], name="first"),
        helper.make_node("Add", ["a", "a"], ["c"], name="fine"),
        helper.make_node("Other", ["c"], ["y"], name="second", domain="my.domain"),
    ]
    return save(tmp_path / "strange.onnx", nodes, [value("x", [2])], [value("y", None)])


def test_inspect(run: Run, model: Path) -> None:
    status, out, err = run("inspect", model)
    assert status == 0, err
    assert "made by tests" in out
    assert "operator sets ai.onnx 17" in out
    assert "input   x      float  [batch, 3]" in out
    assert "a run with batch = 1: 28 operations, weights 48 B" in out
    report = json.loads(run("inspect", model, "--json", "--dim", "batch=10")[1])
    assert report["inputs"][0] == {
        "name": "x", "kind": "tensor", "type": "float", "shape": ["batch", 3]
    }  # fmt: skip
    assert report["ops"] == {"Add": 1, "MatMul": 1, "Transpose": 1}
    assert report["weights"] == {"tensors": 1, "values": 12, "bytes": 48}
    assert report["estimate"]["by_op"] == {"MatMul": 2 * 10 * 3 * 4, "Add": 40}
    # x is not needed when y is made from xw and b
    assert report["estimate"]["activation_bytes"] == 4 * (4 + 40 + 40)
    assert report["problems"] == []


def test_inspect_names_all_that_is_missing(run: Run, strange: Path) -> None:
    status, out, _ = run("inspect", strange)
    assert status == 1
    assert "cannot be run: 2 nodes" in out
    assert "first   NoSuchThing  ai.onnx    17" in out
    status, out, _ = run("inspect", strange, "--json")
    assert status == 1
    found = json.loads(out)["problems"]
    assert [(p["node"], p["op"], p["domain"]) for p in found] == [
        ("first", "NoSuchThing", ""),
        ("second", "Other", "my.domain"),
    ]
    for command in ("run", "test", "bench"):
        status, _, err = run(command, strange)
        assert status == 1
        assert "NoSuchThing, Other not supported" in err
        assert len(err.splitlines()) == 1


def test_run_reads_and_writes_files(run: Run, model: Path, tmp_path: Path) -> None:
    x, b = np.ones((2, 3), np.float32), np.array([1, 2, 3, 4], np.float32)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "b.pb").write_bytes(onnx.numpy_helper.from_array(b).SerializeToString())
    args = ["run", model, "-i", f"x={tmp_path / 'x.npy'}", "-t", 1]
    folder = tmp_path / "out"
    status, out, err = run(*args, "-i", f"b={tmp_path / 'b.pb'}", "--output", folder, "--profile")
    assert status == 0, err
    np.testing.assert_array_equal(np.load(folder / "y.npy"), x @ W + b)
    np.testing.assert_array_equal(np.load(folder / "y_t_0.npy"), (x @ W + b).T)
    assert "float32[2, 4]  13   25   19" in out
    assert "launches one by one" in out
    assert run(*args, "-i", "b=[1, 2, 3, 4]")[1] == out.split("\n\n")[0] + "\n"


def test_run_says_what_is_wanted(run: Run, model: Path, tmp_path: Path) -> None:
    for args, text in (
        ([], "'x' is missing: it wants float32[batch, 3]"),
        (["-i", "z=[1]"], "no input 'z': it takes x: float32[batch, 3], b: float32[4]"),
        (["-i", "b=[1]", "-i", "b=[2]"], "'b' is given twice"),
        (["-i", "b=nothing.txt"], "neither a file ending in"),
        (["-i", "b=nothing.npy"], "nothing.npy: No such file"),
        (["-i", "b=[[1], [2, 3]]"], "wants float32[4]"),
        (["-i", "b=[1, 2, 3]", "-i", "x=[[1, 2, 3]]"], "'b' wants float32[4], got float32[3]"),
    ):
        status, _, err = run("run", model, *args)
        assert status == 1
        assert text in err
        assert len(err.splitlines()) == 1
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY\x01\x00")
    assert "is no array" in run("run", model, "-i", f"b={tmp_path / 'bad.npy'}")[2]
    (tmp_path / "no.onnx").write_bytes(b"no model at all")
    for command in ("inspect", "run", "test", "bench"):
        status, _, err = run(command, tmp_path / "no.onnx")
        assert (status, len(err.splitlines())) == (1, 1), err


def test_run_prepares_images_and_names_classes(run: Run, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    weights = {"shape": np.array([1, -1]), "w": 2 * np.eye(12, 3, dtype=np.float32)}
    path = save(tmp_path / "m.onnx", nodes, [value("x", [1, 3, 2, 2])], [value("y", None)], weights)
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[:, 2:, 0] = 255  # red on the right half; the middle is taken
    image.fromarray(pixels).save(tmp_path / "i.png")
    (tmp_path / "labels.txt").write_text("left\nright\nbelow\n")
    args = ["run", path, "-i", tmp_path / "i.png", "--output", tmp_path]
    status, out, err = run(*args, "--top", 2, "--labels", tmp_path / "labels.txt")
    assert status == 0, err
    assert out.splitlines()[0].split() == ["0.7870", "1", "right"]  # softmax of 0, 2, 0
    assert "shorter side 2" in err
    assert "middle 2 x 2" in err
    run(*args, "--mean", "1,2,3", "--std", "2", "--scale", "1", "--bgr")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy")[0], [-1, -1, -1])
    steps = {"input_size": [3, 2, 2], "mean": [1, 1, 1], "std": [2, 2, 2]}
    config = {"pretrained_cfg": steps, "label_names": ["a", "b", "c"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    status, out, err = run(*args, "--top", 1)
    assert "b" in out
    assert "mean 1 1 1, std 2 2 2" in err
    np.testing.assert_allclose(np.load(tmp_path / "y.npy")[0], [-1, 0, -1])


def test_test_compares_stored_vectors(run: Run, model: Path, tmp_path: Path) -> None:
    folders = []
    for i, shift in enumerate((0, 0, 1)):
        folder = tmp_path / f"test_data_set_{i}"
        folder.mkdir()
        folders.append(folder)
        x, b = np.full((i + 1, 3), 2, np.float32), np.ones(4, np.float32)
        y = x @ W + b
        arrays = {"input_0": x, "input_1": b, "output_0": y + shift, "output_1": y.T}
        for name, array in arrays.items():
            proto = onnx.numpy_helper.from_array(array)
            (folder / f"{name}.pb").write_bytes(proto.SerializeToString())
    status, out, _ = run("test", model)
    assert status == 1
    assert "test_data_set_1: ok, largest difference 0\ntest_data_set_2: FAILED" in out
    assert "y: 12 of 12 elements differ, by at most 1: first 25.0 instead of 26.0" in out
    assert "2 of 3 passed" in out
    assert run("test", model, tmp_path, "--atol", 2)[0] == 0
    assert run("test", model, folders[0])[1].endswith("1 of 1 passed\n")
    (folders[0] / "input_0.pb").unlink()
    assert "has no input_0.pb" in run("test", model, folders[0])[2]
    assert (
        "no test_data_set"
        in run("test", model, tmp_path / "test_data_set_9")[2]
        + run("test", model, tmp_path.parent)[2]
    )


def test_bench(run: Run, model: Path) -> None:
    pytest.importorskip("onnxruntime")
    status, out, err = run(
        "bench", model, "--vs", "onnxruntime", "--dim", "batch=5", "-r", 2, "-t", 1, "--json"
    )
    assert status == 0, err
    report = json.loads(out)
    assert report["dims"] == {"batch": 5}
    assert report["threads"] == 1
    assert set(report["seconds"]) == {"tilewright", "onnxruntime"}
    assert report["largest_relative_difference"] < 1e-6
    assert (
        "no input has a size called 'bath'; there are 'batch'"
        in run("bench", model, "--dim", "bath=5")[2]
    )
    assert "--dim wants NAME=SIZE" in run("bench", model, "--dim", "batch=-1")[2]


def test_detect_and_transform(run: Run, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.full((10, 20, 3), 100, np.uint8)).save(tmp_path / "i.png")
    constants = {
        "b": np.array([[[0, 0, 0.5, 1]]], np.float32), "s": np.array([[[0.1, 0.9]]], np.float32),
        "zero": np.zeros((), np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0),
        helper.make_node("Mul", ["m", "zero"], ["none"]),
        helper.make_node("Add", ["b", "none"], ["boxes"]),
        helper.make_node("Add", ["s", "none"], ["scores"]),
    ]
    outputs = [value("scores", None), value("boxes", None)]
    path = save(tmp_path / "d.onnx", nodes, [value("x", [1, 3, 8, 8])], outputs, constants)
    (tmp_path / "names.txt").write_text("nothing\nface\n")
    args = ["detect", path, tmp_path / "i.png", "-o", tmp_path / "o.png"]
    status, out, err = run(*args, "--labels", tmp_path / "names.txt")
    assert status == 0, err
    assert out.splitlines()[1].split() == ["face", "0.900", "0.0", "0.0", "10.0", "10.0"]
    with image.open(tmp_path / "o.png") as drawn:
        assert drawn.size == (20, 10)
    (found,) = json.loads(run(*args, "--json")[1])
    assert found["right"] == 10
    assert run(*args, "--threshold", 0.95)[1] == "nothing found\n"

    nodes = [helper.make_node("Sub", ["one", "x"], ["y"])]
    one = {"one": np.ones((), np.float32)}
    path = save(tmp_path / "t.onnx", nodes, [value("x", [1, 3, 8, 8])], [value("y", None)], one)
    status, _, err = run("transform", path, tmp_path / "i.png", tmp_path / "t.png")
    assert status == 0, err
    assert "20 x 10 pixels" in err
    with image.open(tmp_path / "t.png") as made:
        assert (np.asarray(made) == 155).all()
    status, _, err = run("transform", path, tmp_path / "names.txt", tmp_path / "t.png")
    assert (status, err.count("\n")) == (1, 1)

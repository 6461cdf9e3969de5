"""Models parsed without their weights are the models that a whole parse gives."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import helper, numpy_helper  # noqa: E402

from tilewright.errors import FormatError  # noqa: E402
from tilewright.formats.onnx import model as reader  # noqa: E402
from tilewright.formats.onnx.wire import without_weights  # noqa: E402


def proto(seed=0):
    rng = np.random.default_rng(seed)
    arrays = [
        rng.standard_normal((70, 60)).astype(np.float32),
        rng.integers(0, 9, 5),
        rng.standard_normal((3000,)).astype(np.float16),
        np.zeros((0, 4), np.float32),
        rng.integers(-99, 99, (40, 500)).astype(np.int8),
    ]
    nodes = [helper.make_node("Identity", [f"w{i}"], [f"y{i}"]) for i in range(len(arrays))]
    outputs = [helper.make_tensor_value_info(f"y{i}", 1, None) for i in range(len(arrays))]
    tensors = [numpy_helper.from_array(a, f"w{i}") for i, a in enumerate(arrays)]
    graph = helper.make_graph(nodes, "g", [], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), arrays


@pytest.fixture
def mapped(monkeypatch):
    monkeypatch.setattr(reader, "_MAPPED", 1)


def test_the_large_ones_are_left_out_and_all_are_read(tmp_path, mapped):
    made, arrays = proto()
    data = made.SerializeToString()
    rest, places = without_weights(memoryview(data))
    assert sorted(places) == [0, 2, 4]
    assert len(rest) < 2000
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    constants = reader.open_model(path).graph.constants
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(constants[f"w{i}"], array)
        assert constants[f"w{i}"].dtype == array.dtype
    path.write_bytes(b"")  # nothing looks at the file any more
    np.testing.assert_array_equal(constants["w0"], arrays[0])


def test_odd_messages_are_left_to_the_parser():
    made, _ = proto()
    data = made.SerializeToString()
    assert without_weights(memoryview(data + data)) is None  # two graphs, to be merged
    assert without_weights(memoryview(data + b"\x0b")) is None  # a group
    assert without_weights(memoryview(data[:-1])) is None
    assert without_weights(memoryview(b"")) is None
    assert without_weights(memoryview(b"\xff" * 20)) is None


def test_a_wrong_size_is_named(tmp_path, mapped):
    made, _ = proto()
    made.graph.initializer[0].dims[0] = 71
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(FormatError, match=r"'w0'.*takes 17040 bytes, 16800 are there"):
        reader.open_model(path)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_say_what_a_whole_parse_says(tmp_path, mapped, monkeypatch, seed):
    made, _ = proto(seed)
    data = made.SerializeToString()
    rng = np.random.default_rng(seed)
    path = tmp_path / "model.onnx"

    def outcome():
        try:
            constants = reader.open_model(path).graph.constants
        except FormatError as error:
            return type(error)
        return {k: (v.dtype, v.shape, v.tobytes()) for k, v in constants.items()}

    for _ in range(150):
        bad = bytearray(data)
        for at in rng.integers(0, len(bad), 3):
            bad[at] = rng.integers(0, 256)
        if rng.integers(0, 3) == 0:
            bad = bad[: rng.integers(0, len(bad))]
        path.write_bytes(bytes(bad))
        monkeypatch.setattr(reader, "_MAPPED", 1)
        one = outcome()
        monkeypatch.setattr(reader, "_MAPPED", 1 << 40)
        assert one == outcome()

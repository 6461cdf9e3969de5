"""Models that people trained, beside onnxruntime, their own test vectors and their data."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

pytest.importorskip("onnx")

import tilewright.onnx
from tilewright.errors import UnsupportedError
from tilewright.formats.onnx import read_tensor


def peer(path, inputs):
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


@pytest.mark.parametrize(
    ("file", "scale", "tolerance"),
    [
        ("mnist-zoo/mnist-7.onnx", 255, 1e-5),
        ("mnist-zoo/mnist-8.onnx", 255, 1e-5),
        ("mnist-zoo/opt-mnist.onnx", 1, 1e-5),
        ("mnist-burn/mnist.onnx", 1, 1e-5),
        ("super-resolution/super_resolution.onnx", 1, 1e-5),
        ("super-resolution/pytorch_super_resolution.onnx", 1, 1e-5),
        ("super-resolution/bsd300x3-espcn-subpixel-float.onnx", 1, 1e-5),
        ("ultraface/version-RFB-320.onnx", 1, 1e-5),
        # both engines round every layer to fp16, at different places
        ("squeezenet-fp16/SqueezeNet_fp16.onnx", 255, 5e-3),
    ],
)
def test_outputs_are_those_of_onnxruntime(assets, file, scale, tolerance):
    path = assets / "onnx" / file
    session = tilewright.onnx.load(path, threads=2)
    rng = np.random.default_rng(0)
    inputs = {}
    for spec in session.inputs:
        shape = [n if isinstance(n, int) else 1 for n in spec.shape]
        inputs[spec.name] = (rng.random(shape) * scale).astype(spec.dtype)
    for got, want in zip(session.run(inputs).values(), peer(path, inputs)):
        assert got.dtype == want.dtype
        largest = np.abs(want.astype(np.float64)).max()
        np.testing.assert_allclose(got / largest, want / largest, rtol=0, atol=tolerance)


def test_the_test_vectors_of_mnist(assets):
    folder = assets / "onnx/mnist-zoo"
    session = tilewright.onnx.load(folder / "mnist-8.onnx")
    got = session.run({session.inputs[0].name: read_tensor(folder / "test_data_set_0/input_0.pb")})
    want = read_tensor(folder / "test_data_set_0/output_0.pb")
    np.testing.assert_allclose(got[session.outputs[0].name], want, rtol=1e-4, atol=1e-3)


def test_a_model_of_the_first_version_runs(assets):
    """Which onnxruntime refuses: operators of opset 1, attributes without types."""
    folder = assets / "onnx/mnist-zoo"
    old = tilewright.onnx.load(folder / "model-2017.onnx")
    image = read_tensor(folder / "test_data_set_0/input_0.pb")
    scores = next(iter(old.run({old.inputs[0].name: image}).values()))
    want = read_tensor(folder / "test_data_set_0/output_0.pb")
    assert scores.argmax() == want.argmax()


def test_digits_are_read(assets):
    def bytes_of(name, head):
        with gzip.open(assets / "mnist" / name) as file:
            return np.frombuffer(file.read()[head:], np.uint8)

    images = bytes_of("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 1, 28, 28)
    labels = bytes_of("t10k-labels-idx1-ubyte.gz", 8)
    session = tilewright.onnx.load(assets / "onnx/mnist-zoo/mnist-8.onnx")
    name = session.inputs[0].name
    right = 0
    for image, label in zip(images.astype(np.float32), labels):
        (scores,) = session.run({name: image}).values()
        right += int(scores.argmax() == label)
    assert right / len(labels) >= 0.987


def test_operators_of_another_domain_are_named(assets):
    path = assets / "onnx/super-resolution/bsd300x3-espcn-subpixel-quant.onnx"
    with pytest.raises(UnsupportedError, match="8 nodes cannot be run") as info:
        tilewright.onnx.load(path)
    assert str(info.value).count("Quant of onnx.brevitas opset 1") == 8

"""Networks as torch exports them, by both of its exporters, beside onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("transformers")
onnxruntime = pytest.importorskip("onnxruntime")

from tests.reference.onnx_exports import export, feeds  # noqa: E402

import tilewright.onnx  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exports")


def check(path, tolerance, **sizes):
    session = tilewright.onnx.load(path, threads=2)
    theirs = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = feeds(session, **sizes)
    if "past" in sizes:
        total = sizes["past"] + sizes["sequence"]
        inputs["attention_mask"] = np.ones((sizes["batch"], total), np.int64)
    want = theirs.run(None, inputs)
    got = session.run(inputs)
    for name, b in zip(got, want):
        a = got[name]
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        scale = np.abs(b.astype(np.float64)).max() or 1.0
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=tolerance)
    again = session.run(inputs)
    for name, a in got.items():
        np.testing.assert_array_equal(again[name], a)
    alone = tilewright.onnx.load(path, threads=1).run(inputs)
    for name, a in got.items():
        np.testing.assert_array_equal(alone[name], a)


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", ["vit-small", "vit-fp16-small", "resnet-small", "bert-small"])
def test_export(name, dynamo, folder):
    path = export(name, folder, dynamo=dynamo, opset=20 if dynamo else 17)
    sizes = {} if dynamo else {"batch": 2}
    check(path, 4e-3 if "fp16" in name else 1e-5, **sizes, sequence=11)


def test_mobilenet(folder):
    check(export("mobilenet-small", folder), 1e-5, batch=1)


def test_gpt2_with_its_past(folder):
    path = export("gpt2-small", folder)
    check(path, 1e-5, batch=2, sequence=1, past=7)
    check(path, 1e-5, batch=1, sequence=6, past=0)

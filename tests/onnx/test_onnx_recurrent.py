"""RNN, LSTM and GRU beside onnxruntime and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.onnx.cases import run_case, select
from tests.onnx.oracle import agree, ours, single

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


def feeds_of(op, t=5, b=3, width=4, h=6, d=1, lens=False, states=False, peep=False, bias=True):
    rng = np.random.default_rng(0)

    def made(*shape):
        return (rng.standard_normal(shape) * 0.5).astype(np.float32)

    g = GATES[op]
    feeds = {
        "x": made(t, b, width),
        "w": made(d, g * h, width),
        "r": made(d, g * h, h),
        "b": made(d, 2 * g * h) if bias else None,
        "lens": np.array([t, 1, 2, 3, 1][:b], np.int32) if lens else None,
        "h": made(d, b, h) if states else None,
    }
    if op == "LSTM":
        feeds |= {"c": made(d, b, h) if states else None, "p": made(d, 3 * h) if peep else None}
    return feeds


def check(op, opset=14, sizes=None, **attrs):
    sizes = sizes or {}
    feeds = feeds_of(op, **sizes)
    outs = ["y", "y_h", "y_c"] if op == "LSTM" else ["y", "y_h"]
    h = feeds["r"].shape[2]
    agree(op, feeds, outs, opset=opset, rtol=1e-4, atol=1e-5, hidden_size=h, **attrs)


@pytest.mark.parametrize("op", GATES)
def test_directions_lengths_and_states(op):
    for opset in (7, 14):
        check(op, opset)
    both = {"direction": "bidirectional"}
    check(op, sizes={"d": 2, "bias": False}, **both)
    check(op, sizes={"d": 2, "lens": True, "states": True}, **both)
    check(op, sizes={"states": True, "b": 1, "h": 33}, direction="reverse")
    check(op, sizes={"h": 200, "b": 5, "lens": True, "t": 3}, clip=0.4)


def test_what_only_one_of_them_has():
    check("LSTM", sizes={"peep": True, "states": True})
    check("LSTM", sizes={"peep": True, "states": True}, clip=0.2)
    check("LSTM", input_forget=1)
    check("GRU", linear_before_reset=1)
    check("GRU", sizes={"bias": False, "lens": True}, linear_before_reset=1)


def test_activations():
    names = ["HardSigmoid", "LeakyRelu", "Softsign"]
    check("LSTM", activations=names, activation_alpha=[0.3, 0.1], activation_beta=[0.4])
    check("GRU", activations=["Sigmoid", "ScaledTanh"], activation_alpha=[0.8],
          activation_beta=[0.7])  # fmt: skip
    for name in ("Relu", "HardSigmoid", "LeakyRelu", "Softplus"):  # by default alpha and beta
        check("RNN", activations=[name])


@pytest.mark.parametrize("case", [c.name for c in select([], set(GATES))])
def test_cases_of_the_standard(case):
    run_case(next(select([case])))


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_batches_first_and_pytorch(op):
    torch = pytest.importorskip("torch")
    layer = getattr(torch.nn, op)(4, 6, batch_first=True, bidirectional=True)
    h, g = 6, GATES[op]
    order = [0, 3, 1, 2] if op == "LSTM" else [1, 0, 2]

    def gates(v):
        return np.concatenate([v.reshape(g, h, *v.shape[1:])[i] for i in order])

    def parameter(name):
        ends = ("", "_reverse")
        return np.stack([gates(getattr(layer, f"{name}_l0{e}").detach().numpy()) for e in ends])

    x = np.random.default_rng(0).standard_normal((3, 5, 4)).astype(np.float32)
    b = np.concatenate([parameter("bias_ih"), parameter("bias_hh")], 1)
    feeds = {"x": x, "w": parameter("weight_ih"), "r": parameter("weight_hh"), "b": b}
    more = {"linear_before_reset": 1} if op == "GRU" else {}
    model = single(op, feeds, ["y", "h"], opset=14, hidden_size=h, layout=1,
                   direction="bidirectional", **more)  # fmt: skip
    got = ours(model, feeds)
    y, last = layer(torch.from_numpy(x))
    last = last[0] if op == "LSTM" else last
    want = y.detach().numpy().reshape(3, 5, 2, h)
    np.testing.assert_allclose(got["y"], want, rtol=1e-4, atol=1e-5)
    want = last.detach().numpy().transpose(1, 0, 2)
    np.testing.assert_allclose(got["h"], want, rtol=1e-4, atol=1e-5)

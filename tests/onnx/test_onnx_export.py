"""``tilewright.onnx.save``: what is written, run by onnxruntime and by us, is what was meant."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tilewright import nn
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.ops.elementwise import erfinv
from tilewright.tensor.core import apply
from tilewright.train.recipes.mnist import make_cnn

onnx = pytest.importorskip("onnx")
pytest.importorskip("ml_dtypes")

import tilewright.onnx  # noqa: E402

F = nn.functional


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ids(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, n, shape)


def check(tmp_path, fn, *inputs, dynamic_axes=None, others=(), tolerance=2e-5, again=True):
    """Export, compare with onnxruntime and with ourselves; returns the model."""
    runtime = pytest.importorskip("onnxruntime")
    if isinstance(fn, nn.Module):
        fn.eval()
    path = tmp_path / "m.onnx"
    tilewright.onnx.save(fn, inputs, path, dynamic_axes=dynamic_axes)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    for arrays in (inputs, *others):
        want = fn(*(tw.asarray(a) for a in arrays))
        want = [w.numpy() for w in (want if isinstance(want, tuple) else (want,))]
        feeds = dict(zip(names, arrays))
        runs = [session.run(None, feeds)]
        if again:
            runs.append(list(tilewright.onnx.load(path).run(feeds).values()))
        for results in runs:
            assert len(results) == len(want)
            for got, w in zip(results, want):
                assert got.shape == w.shape
                assert got.dtype == w.dtype
                scale = max(1.0, float(np.abs(w.astype(np.float64)).max(initial=0)))
                np.testing.assert_allclose(got, w, rtol=tolerance, atol=tolerance * scale)
    onnx.checker.check_model(path, full_check=True)
    return onnx.load(path)


BATCH = {"x": {0: "batch"}}


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Conv1d(3, 6, 3, dilation=2, groups=3), floats(2, 3, 9)),
        (nn.Conv2d(3, 4, 3, padding=1, stride=2), floats(2, 3, 8, 8)),
        (nn.Conv3d(2, 4, 2), floats(1, 2, 4, 5, 6)),
        (nn.ConvTranspose1d(3, 4, 3, stride=2), floats(2, 3, 5)),
        (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), floats(2, 3, 5, 5)),
        (nn.ConvTranspose3d(2, 2, 2), floats(1, 2, 3, 3, 3)),
        (nn.BatchNorm1d(3), floats(4, 3)),
        (nn.BatchNorm2d(3), floats(2, 3, 5, 5)),
        (nn.BatchNorm3d(2), floats(1, 2, 2, 3, 3)),
        (nn.GroupNorm(2, 4), floats(2, 4, 5, 5)),
        (nn.MaxPool1d(2), floats(2, 3, 8)),
        (nn.MaxPool2d(3, stride=2, padding=1), floats(2, 3, 8, 8)),
        (nn.MaxPool3d(2), floats(1, 2, 4, 4, 4)),
        (nn.AvgPool1d(2), floats(2, 3, 8)),
        (nn.AvgPool2d(3, stride=2, padding=1), floats(2, 3, 8, 8)),
        (nn.AvgPool3d(2), floats(1, 2, 4, 4, 4)),
        (nn.AdaptiveAvgPool1d(2), floats(2, 3, 8)),
        (nn.AdaptiveAvgPool2d(1), floats(2, 3, 8, 8)),
        (nn.AdaptiveMaxPool2d(3), floats(2, 3, 8, 8)),
        (nn.RMSNorm(8), floats(2, 3, 8)),
        (nn.Embedding(10, 4), ids(10, 2, 3)),
        (nn.MLP(8, 16), floats(2, 8)),
        (nn.SwiGLU(8, 16), floats(2, 8)),
        (nn.MoE(8, 16, 4, 2), floats(2, 5, 8)),
        (nn.Llama(nn.LlamaConfig(50, 16, 1, 4, 2, 16, 32)), ids(50, 2, 8)),
        (nn.MambaLM(nn.MambaConfig(50, d_model=16, n_layer=1)), ids(50, 2, 8)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_modules(tmp_path, module, x):
    check(tmp_path, module, x)


def test_activations(tmp_path):
    kinds = (
        nn.ReLU(), nn.GELU(), nn.GELU("tanh"), nn.ELU(), nn.LeakyReLU(), nn.SiLU(), nn.Sigmoid(),
        nn.Tanh(), nn.Softmax(-1), nn.Softplus(), nn.Dropout(0.5), nn.Flatten(), nn.Identity(),
    )  # fmt: skip
    for kind in kinds:
        kind.eval()
    made = check(tmp_path, lambda x: tuple(kind(x) for kind in kinds), floats(2, 3, 4))
    ops = [n.op_type for n in made.graph.node]
    for op in ("Softmax", "Gelu", "Elu", "LeakyRelu", "Softplus"):
        assert op in ops
    assert "ReduceMax" not in ops  # the shift of a softmax is part of it


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_are_unrolled(tmp_path, kind):
    module = kind(3, 4).eval()
    check(tmp_path, lambda x: module(x)[0], floats(2, 5, 3))


def test_dynamic_axes(tmp_path):
    more = [(floats(7, 4),)]
    check(tmp_path, nn.Linear(4, 5), floats(3, 4), dynamic_axes=BATCH, others=more)
    axes = {"x": {0: "batch", 1: "time"}}
    more = [(floats(3, 7, 8),)]
    for module in (nn.LayerNorm(8), nn.Attention(8, 2), nn.FusedAttention(8, 2)):
        check(tmp_path, module, floats(2, 5, 8), dynamic_axes=axes, others=more)
    check(
        tmp_path,
        lambda x: tw.std(x, axis=1) + tw.mean(x, axis=1),
        floats(3, 7),
        dynamic_axes={"x": {0: "n", 1: "m"}},
        others=[(floats(4, 5),)],
    )


def test_a_gpt(tmp_path):
    gpt = nn.GPT(nn.GPTConfig(50, block_size=16, n_layer=2, n_head=2, n_embd=16))
    made = check(
        tmp_path, gpt, ids(50, 2, 8), dynamic_axes={"ids": {0: "batch", 1: "time"}},
        others=[(ids(50, 3, 5),)],
    )  # fmt: skip
    weights = {t.node.value.pointer: name for name, t in reversed(gpt.state_dict().items())}
    assert set(weights.values()) <= {t.name for t in made.graph.initializer}
    shape = made.graph.input[0].type.tensor_type.shape
    assert [d.dim_param for d in shape.dim] == ["batch", "time"]


def test_a_vit(tmp_path):
    vit = nn.ViT(nn.ViTConfig(n_layer=2))
    check(tmp_path, vit, floats(2, 1, 28, 28))


def test_the_mnist_network(tmp_path):
    more = [(floats(5, 1, 28, 28),)]
    check(tmp_path, make_cnn(4), floats(2, 1, 28, 28), dynamic_axes=BATCH, others=more)


def test_an_autoencoder(tmp_path):
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 8),
        nn.Linear(8, 4 * 49), nn.ReLU(),
    )  # fmt: skip
    up = nn.ConvTranspose2d(4, 1, 3, stride=2, padding=1, output_padding=1)

    def run(x):
        return nn.Sigmoid()(up(net(x).reshape((x.shape[0], 4, 7, 7))))

    check(tmp_path, run, floats(3, 1, 14, 14), dynamic_axes=BATCH, others=[(floats(2, 1, 14, 14),)])


def test_functions_of_tensors(tmp_path):
    x = floats(3, 7)
    y = floats(7, seed=1)
    for fn in (
        lambda x, y: x[:, ::2][:, -1] + x[0, 0],
        lambda x, y: tw.sort(x, descending=True),
        lambda x, y: tw.where(x > y, x, tw.exp(y)),
        lambda x, y: tw.cumulative_sum(x, axis=1),
        lambda x, y: (tw.argmax(x, axis=1), tw.any(x > 1, axis=0), tw.all(x < 9)),
        lambda x, y: tw.concat([x, tw.flip(x, axis=1)], axis=0),
        lambda x, y: tw.floor(x / y) + tw.remainder(x, y) + tw.log1p(tw.abs(x)) + tw.expm1(y),
        lambda x, y: tw.matmul(x, y) + tw.prod(y) + tw.max(x) - tw.min(x),
        lambda x, y: tw.take(x, tw.asarray([2, 0]), axis=0),
        lambda x, y: tw.clip(x, -0.5, 0.5) ** 2 + tw.arange(7),
        lambda x, y: x.astype(tw.int32) // 2 + (tw.isfinite(x) & (x != y)).astype(tw.int32),
        lambda x, y: tw.stack([x, x]).reshape((6, 7)).T @ tw.ones((6, 2)),
    ):
        check(tmp_path, fn, x, y)


def test_halves(tmp_path):
    x = floats(4, 4).astype(np.float16)
    check(tmp_path, lambda x: F.softmax(x @ x.T, axis=-1), x, tolerance=3e-3)


def test_attention_with_masks(tmp_path):
    q, k = floats(2, 4, 5, 8), floats(2, 2, 5, 8, seed=1)
    mask = np.tril(np.ones((5, 5), bool))
    mask[3] = False  # a row that sees nothing
    check(tmp_path, lambda q, k, m: F.attention(q, k, k, m), q, k, mask)
    check(tmp_path, lambda q, k: F.attention(q, k, k, causal=True), q, k)


def test_inputs_and_outputs_have_names(tmp_path):
    def fn(left, right):
        return {"total": left + right, "gap": left - right}

    path = tmp_path / "m.onnx"
    tilewright.onnx.save(fn, {"left": floats(2), "right": floats(2)}, path)
    session = tilewright.onnx.load(path)
    assert [s.name for s in session.inputs] == ["left", "right"]
    assert [s.name for s in session.outputs] == ["total", "gap"]
    tilewright.onnx.save(lambda x: x + 1, floats(2), path, output_names=["more"])
    assert list(tilewright.onnx.load(path).run({"x": floats(2)})) == ["more"]


def test_what_cannot_be_exported_is_named(tmp_path):
    path = tmp_path / "m.onnx"
    for module, x in ((nn.Dropout(0.5), floats(2, 3)), (nn.BatchNorm2d(3), floats(2, 3, 4, 4))):
        with pytest.raises(UnsupportedError, match=r"assigns to tensors outside .*: call eval\(\)"):
            tilewright.onnx.save(module, x, path)
    with pytest.raises(UnsupportedError, match="op 'erfinv' cannot be exported"):
        tilewright.onnx.save(lambda x: apply(erfinv, x), floats(2), path)
    with pytest.raises(ShapeError, match="dynamic_axes names 'y'; the inputs are x"):
        tilewright.onnx.save(lambda x: x, floats(2), path, dynamic_axes={"y": {0: "n"}})
    with pytest.raises(ShapeError, match="has no 3"):
        tilewright.onnx.save(lambda x: x, floats(2), path, dynamic_axes={"x": {3: "n"}})
    with pytest.raises(UnsupportedError, match="one size of a dynamic axis only: n is 4"):
        tilewright.onnx.save(
            lambda x: x[: len(range(x.shape[0]))] + 1, floats(4), path, dynamic_axes={"x": {0: "n"}}
        )
    with pytest.raises(UnsupportedError, match="opset is 20 to"):
        tilewright.onnx.save(lambda x: x, floats(2), path, opset=9)
    assert not path.exists()


def test_large_weights_lie_in_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("tilewright.onnx.export.model._EXTERNAL", 1000)
    module = nn.Linear(40, 50)
    path = tmp_path / "m.onnx"
    for _ in range(2):
        tilewright.onnx.save(module, floats(2, 40), path)
        assert (tmp_path / "m.onnx.data").stat().st_size >= 8000
        assert path.stat().st_size < 2000
    got = tilewright.onnx.load(path).run({"x": floats(2, 40)})["output"]
    np.testing.assert_allclose(got, module(tw.asarray(floats(2, 40))).numpy(), rtol=1e-5, atol=1e-5)

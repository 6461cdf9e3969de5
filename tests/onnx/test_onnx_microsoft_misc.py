"""The less usual operators of com.microsoft beside onnxruntime, or NumPy where it has none."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.onnx.oracle import MICROSOFT, agree, ours, single
from tests.onnx.test_onnx_microsoft import angles, check, normal


def alone(op, feeds, outputs=("y",), **settings):
    return ours(single(op, feeds, list(outputs), domain=MICROSOFT, **settings), feeds)


def test_what_the_standard_took_over():
    x = normal(3, 4)
    check("Trilu", {"x": x, "k": np.array(1, np.int64)}, upper=0)
    check("GatherND", {"x": x, "i": np.array([[0, 1], [2, -1]], np.int64)})
    pads = {"constants": {"p": np.array([0, 1, 2, 1], np.int64), "v": np.array([3], np.float32)}}
    check("Pad", {"x": x}, **pads)
    check("ExpandDims", {"x": x}, constants={"a": np.array(-1, np.int32)})
    numbers = {"a": np.array(1, np.float32), "b": np.array(4, np.float32)}
    check("Range", {}, constants=numbers)
    check("Inverse", {"x": normal(2, 3, 3)}, rtol=1e-3, atol=1e-4)
    check("GridSample", {"x": normal(1, 2, 5, 5), "g": normal(1, 3, 2, 2, scale=0.5)}, atol=1e-4)
    check("UnfoldTensor", {"x": normal(3, 9)}, size=4, step=2)
    check("UnfoldTensor", {"x": normal(9, 2, 3)}, size=3, step=1, dim=0)
    got = alone("IsAllFinite", {"x": x, "z": np.array([np.inf], np.float32)})
    assert got["y"].dtype == bool
    assert not got["y"].item()
    assert alone("IsAllFinite", {"x": x})["y"].item()


def test_values_in_order():
    x = np.array([2, 1, 1, 3, 4, 3], np.float32)
    check("Unique", {"x": x}, ["y", "where", "count"])


def test_pools_and_convolutions():
    x = normal(1, 2, 6, 7)
    last = np.random.default_rng(0).integers(-128, 128, (1, 6, 7, 3)).astype(np.int8)
    check("NhwcMaxPool", {"x": last}, kernel_shape=[2, 3], pads=[1, 0, 0, 1])
    w = normal(2, 3, 3, 3, seed=2)
    pads = {"p": np.array([1, 0, 1, 0], np.int64)}
    check("ConvTransposeWithDynamicPads", {"x": x, "w": w}, constants=pads, strides=[2, 1])


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_crops(mode):
    rois = np.array([[0, 0, 1, 1], [0.1, 0.2, 0.5, 0.9], [0.8, -0.2, 0.1, 1.2]], np.float32)
    feeds = {"x": normal(2, 3, 5, 6), "r": rois, "b": np.array([0, 1, 1], np.int32),
             "s": np.array([3, 4], np.int32)}  # fmt: skip
    check("CropAndResize", feeds, mode=mode, extrapolation_value=0.5)
    check("CropAndResize", feeds | {"s": np.array([1, 5], np.int32)}, mode=mode)


def test_signals_and_complex_numbers():
    x = normal(3, 8)
    half = np.fft.rfft(x)
    got = alone("Rfft", {"x": x}, signal_ndim=1)["y"]
    np.testing.assert_allclose(got[..., 0] + 1j * got[..., 1], half, rtol=1e-4, atol=1e-5)
    back = alone("Irfft", {"x": got}, signal_ndim=1)["y"]
    np.testing.assert_allclose(back, x, rtol=1e-4, atol=1e-5)
    a, b = normal(3, 4, 2), normal(3, 4, 2, seed=1)
    for op, other in (("ComplexMul", b), ("ComplexMulConj", b * [1, -1])):
        want = (a[..., 0] + 1j * a[..., 1]) * (other[..., 0] + 1j * other[..., 1])
        got = alone(op, {"a": a, "b": b})["y"]
        np.testing.assert_allclose(got[..., 0] + 1j * got[..., 1], want, rtol=1e-5, atol=1e-6)


def test_warping():
    check("DynamicTimeWarping", {"x": np.abs(normal(5, 8))})


def test_hashes():
    for x in (np.array([[1, -2]], np.int32), np.array([1, 2 ** 40], np.int64),
              np.array([0.5, -1], np.float32), np.array([0.5], np.float64),
              np.array(["", "a", "abcde", "tiles in a row"], object)):  # fmt: skip
        for positive in (0, 1):
            agree("MurmurHash3", {"x": x}, domain=MICROSOFT, positive=positive, seed=7, rtol=0)


def test_repeated_ngrams():
    ids = np.array([[1, 2, 3, 1, 2], [4, 4, 4, 4, 4]], np.int64)
    for n in (1, 2, 3):
        check("NGramRepeatBlock", {"ids": ids, "s": normal(2, 6)}, ngram_size=n)


def test_padding_out_and_in():
    x, counts = normal(3, 4, 2), np.array([2, 4, 1], np.int32)
    outs = ["rows", "at", "edges", "most"]
    got = alone("RemovePadding", {"x": x, "n": counts}, outs)
    rows = np.concatenate([x[i, :n] for i, n in enumerate(counts)])
    np.testing.assert_array_equal(got["rows"], rows)
    np.testing.assert_array_equal(got["edges"], [0, 2, 6, 7])
    assert got["most"].tolist() == [4]
    back = alone("RestorePadding", {"x": got["rows"], "at": got["at"]})["y"]
    real = np.arange(4) < counts[:, None]
    np.testing.assert_array_equal(back, np.where(real[..., None], x, 0))


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("settings", [
    {"activation_type": "relu", "k": 1},
    {"activation_type": "gelu", "k": 2, "normalize_routing_weights": 1},
    {"activation_type": "silu", "k": 2},
    {"activation_type": "swiglu", "k": 2, "swiglu_fusion": 1, "swiglu_limit": 1.0,
     "activation_alpha": 1.7, "activation_beta": 1.0, "normalize_routing_weights": 1},
])  # fmt: skip
def test_mixtures_of_experts(rows, settings):
    fused = 2 if settings["activation_type"] == "swiglu" else 1
    feeds = {
        "x": normal(rows, 8), "p": normal(rows, 4, seed=1), "w1": normal(4, 16 * fused, 8, seed=2),
        "b1": normal(4, 16 * fused, seed=3), "w2": normal(4, 8, 16, seed=4),
        "b2": normal(4, 8, seed=5),
    }  # fmt: skip
    check("MoE", feeds, atol=1e-4, **settings)


def test_sparse_attention():
    rng = np.random.default_rng(0)
    blocks, size, heads, kv, width, t = 4, 16, 4, 2, 16, 20
    seen = np.tril(rng.random((2, blocks, blocks)) > 0.4) | np.eye(blocks, dtype=bool)
    columns = [[j for row in layout for j in np.flatnonzero(row)] for layout in seen]
    most = max(map(len, columns))
    columns = np.array([c + [-1] * (most - len(c)) for c in columns], np.int32)
    rows = np.concatenate([np.zeros((2, 1)), np.cumsum(seen.sum(2), 1)], 1).astype(np.int32)
    cos, sin = angles(width // 2, 64)
    feeds = {
        "q": normal(1, t, heads * width), "k": normal(1, t, kv * width, seed=1),
        "v": normal(1, t, kv * width, seed=2), "pk": np.zeros((1, kv, 64, width), np.float32),
        "pv": np.zeros((1, kv, 64, width), np.float32), "rows": rows, "columns": columns,
        "total": np.array(t, np.int32), "lengths": np.array([t], np.int32), "cos": cos, "sin": sin,
    }  # fmt: skip
    settings = {"num_heads": heads, "kv_num_heads": kv, "sparse_block_size": size, "do_rotary": 1}
    outs = ["y", "k2", "v2"]
    session = single("SparseAttention", feeds, outs, domain=MICROSOFT, **settings)
    import tilewright.onnx

    got = tilewright.onnx.load(session, threads=1).run(feeds)
    q, k, v = (x.reshape(1, t, -1, width).transpose(0, 2, 1, 3)
               for x in (feeds["q"], feeds["k"], feeds["v"]))  # fmt: skip

    def turned(x):
        a, b = x[..., :8], x[..., 8:]
        c, s = cos[:t], sin[:t]
        return np.concatenate([a * c - b * s, a * s + b * c], -1)

    q, k = turned(q), turned(k)
    np.testing.assert_allclose(got["k2"][:, :, :t], k, rtol=1e-5, atol=1e-6)
    at = np.arange(t)
    for h in range(heads):
        mask = seen[h % 2][np.ix_(at // size, at // size)] & (at[None] <= at[:, None])
        s = np.where(mask, q[0, h] @ k[0, h // 2].T / 4, -np.inf)
        p = np.exp(s - s.max(1, keepdims=True))
        want = p / p.sum(1, keepdims=True) @ v[0, h // 2]
        np.testing.assert_allclose(got["y"][0, :, h * width : (h + 1) * width], want, rtol=1e-4,
                                   atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
def test_linear_attention(rule):
    feeds = {
        "q": normal(2, 5, 32, scale=0.3), "k": normal(2, 5, 16, seed=1, scale=0.3),
        "v": normal(2, 5, 12, seed=2), "s": normal(2, 2, 8, 6, seed=3), "d": None, "b": None,
    }  # fmt: skip
    if "gated" in rule:
        feeds["d"] = -np.abs(normal(2, 5, 2, seed=4))
    if "delta" in rule:
        feeds["b"] = np.abs(normal(2, 5, 2, seed=5, scale=0.3))
    settings = {"q_num_heads": 4, "kv_num_heads": 2, "update_rule": rule}
    check("LinearAttention", feeds, ["y", "state"], **settings)


def test_operators_of_old():
    x = normal(1, 2, 5, 5)
    old = {"domain": "", "opset": 7}
    check("Affine", {"x": x}, alpha=2.0, beta=3.0, **old)
    check("Scale", {"x": x}, scale=2.0, **old)
    check("ScaledTanh", {"x": x}, alpha=2.0, beta=0.5, **old)
    check("ParametricSoftplus", {"x": x}, alpha=2.0, beta=0.5, **old)
    check("ImageScaler", {"x": x}, bias=[0.1, 0.2], scale=2.0, **old)
    check("Crop", {"x": x}, border=[1, 1, 2, 0], **old)
    check("Crop", {"x": x}, border=[1, 2, 0, 0], scale=[2, 3], **old)
    ends = {"s": np.array([1, 0], np.int64), "e": np.array([4, 3], np.int64),
            "a": np.array([2, 3], np.int64)}  # fmt: skip
    check("DynamicSlice", {"x": x}, constants=ends, **old)

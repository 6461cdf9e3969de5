"""Operators of com.microsoft beside onnxruntime, or NumPy where its CPU has none."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.onnx.oracle import MICROSOFT, agree, ours, single

from tilewright.errors import UnsupportedError


def normal(*shape, seed=0, scale=1.0):
    made = np.random.default_rng(seed).standard_normal(shape) * scale
    return made.astype(np.float32)


def check(op, feeds, outputs=("y",), **settings):
    settings = {"domain": MICROSOFT, "rtol": 1e-4, "atol": 1e-5} | settings
    return agree(op, feeds, outputs, **settings)


# --- what is fused -------------------------------------------------------------------------------


def test_activations():
    x, b = normal(3, 4, 6), normal(6, seed=1)
    check("Gelu", {"x": x})
    check("FastGelu", {"x": x, "b": b})
    check("FastGelu", {"x": x})
    check("QuickGelu", {"x": x}, alpha=1.2)
    check("BiasGelu", {"x": x, "b": b})
    # onnxruntime's CPU has no BiasSplitGelu and no BiasAdd
    from math import erf, sqrt

    gelu = np.vectorize(lambda v: 0.5 * v * (1 + erf(v / sqrt(2))))
    got = ours(single("BiasSplitGelu", {"x": x, "b": b}, domain=MICROSOFT), {"x": x, "b": b})
    y = x + b
    np.testing.assert_allclose(got["y"], y[..., :3] * gelu(y[..., 3:]), rtol=1e-4, atol=1e-6)
    feeds = {"x": x, "b": b, "s": normal(3, 4, 6, seed=3)}
    got = ours(single("BiasAdd", feeds, domain=MICROSOFT), feeds)
    np.testing.assert_allclose(got["y"], x + b + feeds["s"], rtol=1e-6)


def test_products():
    a, b = normal(2, 3, 4), normal(2, 4, 5, seed=1)
    check("FusedMatMul", {"a": a, "b": b}, alpha=0.5)
    check("FusedMatMul", {"a": a.swapaxes(1, 2).copy(), "b": b.swapaxes(1, 2).copy()}, transA=1,
          transB=1)  # fmt: skip
    moved = np.ascontiguousarray(np.moveaxis(a, 0, 1))
    check("FusedMatMul", {"a": moved, "b": b}, transBatchA=1)
    check("TransposeMatMul", {"a": a[0].T.copy(), "b": b[0]}, transA=1)
    c = normal(5, seed=2)
    for name, numbers in (("Relu", ()), ("LeakyRelu", (0.3,)), ("HardSigmoid", (0.3, 0.4)),
                          ("Elu", (0.7,)), ("Tanh", ())):  # fmt: skip
        more = dict(zip(("activation_alpha", "activation_beta"), numbers))
        check("FusedGemm", {"a": a[0], "b": b[0], "c": c}, activation=name, beta=0.5, **more)


def test_convolutions():
    x, w, b = normal(1, 4, 7, 6), normal(8, 2, 3, 2, seed=1), normal(8, seed=2)
    settings = {"group": 2, "pads": [1, 0, 1, 1], "strides": [2, 1], "kernel_shape": [3, 2]}
    for name, numbers in (("Relu", None), ("Clip", [-0.5, 1.0]), ("LeakyRelu", [0.2])):
        more = {} if numbers is None else {"activation_params": numbers}
        check("FusedConv", {"x": x, "w": w, "b": b}, activation=name, **settings, **more)
    z = normal(1, 8, 4, 6, seed=4)
    check("FusedConv", {"x": x, "w": w, "b": b, "z": z}, activation="Relu", **settings)
    plain = ours(single("FusedConv", {"x": x, "w": w, "b": b}, domain=MICROSOFT, **settings),
                 {"x": x, "w": w, "b": b})["y"]  # fmt: skip
    last = {"x": np.moveaxis(x, 1, -1).copy(), "w": np.moveaxis(w, 1, -1).copy(), "b": b}
    got = ours(single("NhwcConv", last, domain=MICROSOFT, **settings), last)["y"]
    np.testing.assert_allclose(got, np.moveaxis(plain, 1, -1), rtol=1e-5, atol=1e-6)


def test_norms():
    x, skip = normal(2, 5, 8), normal(2, 5, 8, seed=1)
    g, b, bias = normal(3, 8, seed=2)
    for op, given in (
        ("SkipLayerNormalization", {"g": g, "b": b, "bias": bias}),
        ("SkipSimplifiedLayerNormalization", {"g": g, "bias": bias}),
    ):
        outs = ["y", "", "", "sum"]
        check(op, {"x": x, "skip": skip, **given}, outs, epsilon=1e-5)
        check(op, {"x": x, "skip": skip[:1], "g": g}, epsilon=1e-5)
    check("SimplifiedLayerNormalization", {"x": x, "g": g}, domain="", epsilon=1e-6)
    check("LayerNormalization", {"x": x, "g": g, "b": b}, ["y", "m", "d"], domain="", opset=10)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 9, (2, 5)).astype(np.int32)
    tables = {"words": normal(9, 8), "places": normal(6, 8), "segments": normal(2, 8)}
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], np.int32)
    feeds = {"ids": ids, "seg": ids % 2, **tables, "g": g, "b": b, "mask": mask}
    weights = {k: feeds.pop(k) for k in ("words", "places", "segments", "g", "b")}
    order = ["ids", "seg", "words", "places", "segments", "g", "b", "mask", "at"]
    more = {"constants": weights, "inputs": order[:8]}
    check("EmbedLayerNormalization", feeds, ["y", "index", "sum"], **more)
    feeds["at"] = np.array([[0, 1, 2, 3, 4], [5, 4, 3, 2, 1]], np.int32)
    feeds["seg"] = feeds["mask"] = None
    weights.pop("segments")
    more["inputs"] = ["" if n in ("seg", "segments", "mask") else n for n in order]
    check("EmbedLayerNormalization", feeds, ["y", "index"], **more)


def test_group_norms():
    x, skip = normal(2, 3, 4, 8), normal(2, 8, seed=1)
    g, b, bias = normal(3, 8, seed=2)

    def reference(v):
        cut = v.reshape(2, 12, 4, 2)
        mean, var = cut.mean((1, 3), keepdims=True), cut.var((1, 3), keepdims=True)
        y = ((cut - mean) / np.sqrt(var + 1e-5)).reshape(v.shape) * g + b
        return y / (1 + np.exp(-y))

    feeds = {"x": x, "g": g, "b": b}
    settings = {"domain": MICROSOFT, "groups": 4, "activation": 1}
    got = ours(single("GroupNorm", feeds, **settings), feeds)
    np.testing.assert_allclose(got["y"], reference(x), rtol=1e-4, atol=1e-5)
    feeds |= {"skip": skip, "bias": bias}
    got = ours(single("SkipGroupNorm", feeds, ["y", "s"], **settings), feeds)
    total = x + skip[:, None, None] + bias
    np.testing.assert_allclose(got["s"], total, rtol=1e-6)
    np.testing.assert_allclose(got["y"], reference(total), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
def test_distances(metric):
    check("CDist", {"a": normal(5, 3), "b": normal(4, 3, seed=1)}, metric=metric)


# --- attention -----------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", ["", "lengths", "keys", "square"])
@pytest.mark.parametrize("unidirectional", [0, 1])
def test_attention(masked, unidirectional):
    x, w, b = normal(2, 5, 8), normal(8, 24, seed=1), normal(24, seed=2)
    masks = {
        "": None,
        "lengths": np.array([3, 5], np.int32),
        "keys": np.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]], np.int32),
        "square": (np.random.default_rng(0).random((2, 5, 5)) > 0.3).astype(np.int32),
    }
    feeds = {"x": x, "w": w, "b": b, "m": masks[masked]}
    check("Attention", feeds, num_heads=2, unidirectional=unidirectional)


def test_attention_with_a_past():
    x, w, b = normal(2, 3, 8), normal(8, 24, seed=1), normal(24, seed=2)
    past, bias = normal(2, 2, 2, 4, 4, seed=3), normal(1, 2, 3, 7, seed=4)
    mask = np.array([[1] * 7, [0, 0] + [1] * 5], np.int32)
    feeds = {"x": x, "w": w, "b": b, "m": mask, "past": past}
    check("Attention", feeds, ["y", "present"], num_heads=2, unidirectional=1)
    feeds = {"x": x, "w": w, "b": b, "m": None, "past": None, "bias": bias[..., :3].copy()}
    check("Attention", feeds, num_heads=2)
    feeds = {"x": x, "w": w[:, :20].copy(), "b": b[:20].copy()}
    check("Attention", feeds, num_heads=2, qkv_hidden_sizes=[8, 8, 4])


def test_multi_head_attention():
    q, k, v = normal(2, 3, 8), normal(2, 5, 8, seed=1), normal(2, 5, 8, seed=2)
    bias = normal(24, seed=3)
    check("MultiHeadAttention", {"q": q, "k": k, "v": v, "b": bias}, num_heads=2)
    mask = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]], np.int32)
    feeds = {"q": q, "k": k, "v": v, "b": None, "m": mask, "a": normal(2, 2, 3, 5, seed=4)}
    check("MultiHeadAttention", feeds, num_heads=2, scale=0.3)
    feeds |= {"m": np.array([2, 4], np.int32)}
    check("MultiHeadAttention", feeds, num_heads=2)
    heads = {"q": q, "k": normal(2, 2, 5, 4, seed=5), "v": normal(2, 2, 5, 4, seed=6)}
    check("MultiHeadAttention", heads, num_heads=2)
    packed = np.stack([x[:, :3].reshape(2, 3, 2, 4) for x in (q, k, v)], 3)
    parts = {"q": q, "k": k[:, :3].copy(), "v": v[:, :3].copy()}
    want = check("MultiHeadAttention", parts, num_heads=2)["y"]
    feeds = {"q": packed}
    got = ours(single("MultiHeadAttention", feeds, domain=MICROSOFT, num_heads=2), feeds)["y"]
    np.testing.assert_array_equal(got, want)
    feeds = {"q": q, "k": np.ascontiguousarray(packed[..., 1:, :])}
    got = ours(single("MultiHeadAttention", feeds, domain=MICROSOFT, num_heads=2), feeds)["y"]
    np.testing.assert_array_equal(got, want)
    past = {"pk": normal(2, 2, 4, 4, seed=7), "pv": normal(2, 2, 4, 4, seed=8)}
    feeds = {"q": q, "k": k[:, :3].copy(), "v": v[:, :3].copy(), "b": None, "m": None, "a": None}
    check("MultiHeadAttention", feeds | past, ["y", "k2", "v2"], num_heads=2, unidirectional=1)


def angles(width=4, n=16):
    turns = np.arange(n)[:, None] / 10.0 ** (np.arange(width) / width)
    return np.cos(turns).astype(np.float32), np.sin(turns).astype(np.float32)


def grouped(batch, new, before, room=0, heads=4, kv=2, width=16, packed=False, rotary=True):
    """Inputs of GroupQueryAttention: ``before`` tokens in the cache, ``room`` for more."""
    seen = np.broadcast_to(np.asarray(before), (batch,))
    q, k, v = (normal(batch, new, h * width, seed=s) for h, s in ((heads, 1), (kv, 2), (kv, 3)))
    if packed:
        q, k, v = np.concatenate([q, k, v], 2), None, None
    size = int(seen.max()) + room
    cos, sin = angles(width // 2, 64) if rotary else (None, None)
    return {
        "q": q, "k": k, "v": v,
        "pk": normal(batch, kv, size, width, seed=4), "pv": normal(batch, kv, size, width, seed=5),
        "last": (seen + new - 1).astype(np.int32),
        "total": np.array(int(seen.max()) + new, np.int32), "cos": cos, "sin": sin,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [
        ({"batch": 1, "new": 5, "before": 0}, {}),
        ({"batch": 2, "new": 5, "before": 0, "packed": True}, {"local_window_size": 3}),
        ({"batch": 1, "new": 1, "before": 6}, {"softcap": 2.0}),
        ({"batch": 1, "new": 3, "before": 6}, {"local_window_size": 4}),
        ({"batch": 1, "new": 1, "before": 6, "packed": True}, {"rotary_interleaved": 1}),
        ({"batch": 2, "new": 1, "before": 7}, {"smooth_softmax": 1, "scale": 0.2}),
    ],
)
def test_group_query_attention(sizes, settings):
    feeds = grouped(**sizes)
    outs = ["y", "k2", "v2"]
    check("GroupQueryAttention", feeds, outs, num_heads=4, kv_num_heads=2, do_rotary=1, **settings)


def test_group_query_attention_of_ragged_batches_and_biases():
    feeds = grouped(2, 1, [4, 7])
    feeds["pk"][0, :, 4:] = 0
    feeds |= {"at": None, "bias": normal(1, 4, 1, 8, seed=9)}
    settings = {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1}
    model = single("GroupQueryAttention", feeds, ["y", "k2", "v2"], domain=MICROSOFT, **settings)
    got = ours(model, feeds)
    from tests.onnx.oracle import theirs

    want = theirs(model, feeds)
    np.testing.assert_allclose(got["y"], want["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["k2"][0, :, :5], want["k2"][0, :, :5], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["v2"][1], want["v2"][1], rtol=1e-5)


def test_a_cache_with_room_keeps_its_length_and_its_program():
    """Step after step into one buffer equals a cache that grows, and compiles nothing new."""
    settings = {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1, "domain": MICROSOFT}
    outs = ["y", "k2", "v2"]
    start = grouped(1, 4, 0)
    grown = ours(single("GroupQueryAttention", start, outs, **settings), start)
    pad = [(0, 0), (0, 0), (0, 12), (0, 0)]
    buffer = np.pad(grown["k2"], pad), np.pad(grown["v2"], pad)
    cache = grown["k2"], grown["v2"]
    step = grouped(1, 1, 4)
    import tilewright.onnx

    shared = tilewright.onnx.load(single("GroupQueryAttention", step, outs, **settings), threads=1)
    compiled = None
    for i in range(4):
        step = grouped(1, 1, 4 + i)
        given = {k: v for k, v in step.items() if v is not None}
        one = ours(single("GroupQueryAttention", step, outs, **settings),
                   step | {"pk": cache[0], "pv": cache[1]})  # fmt: skip
        two = shared.run(given | {"pk": buffer[0], "pv": buffer[1]})
        np.testing.assert_allclose(one["y"], two["y"], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(one["k2"], two["k2"][:, :, : 5 + i])
        assert two["k2"].shape[2] == 16
        cache, buffer = (one["k2"], one["v2"]), (two["k2"], two["v2"])
        compiled = compiled or len(shared.plan.shared.programs)
        assert len(shared.plan.shared.programs) == compiled


def test_masked_decoding():
    q, k, v = normal(2, 1, 8), normal(2, 1, 8, seed=1), normal(2, 1, 8, seed=2)
    past = {"pk": normal(2, 2, 9, 4, seed=7), "pv": normal(2, 2, 9, 4, seed=8)}
    feeds = {"q": q, "k": k, "v": v, "m": None, "a": None, **past, "n": np.array([5], np.int32)}
    outs = ["y", "k2", "v2"]
    check("DecoderMaskedMultiHeadAttention", feeds, outs, num_heads=2, past_present_share_buffer=1)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embeddings(interleaved):
    cos, sin = angles(4)
    at = np.array([[3, 4, 5], [0, 7, 9]], np.int64)
    feeds = {"x": normal(2, 3, 16), "at": at, "cos": cos, "sin": sin}
    check("RotaryEmbedding", feeds, interleaved=interleaved)
    check("RotaryEmbedding", feeds | {"at": np.array([2], np.int64)}, interleaved=interleaved)
    heads = feeds | {"x": normal(2, 2, 3, 8)}
    check("RotaryEmbedding", heads, interleaved=interleaved)
    partial = feeds | {"x": normal(2, 3, 24)}
    check("RotaryEmbedding", partial, interleaved=interleaved, num_heads=2, rotary_embedding_dim=8)


def test_packed_sequences():
    lengths = [3, 1, 4]
    edges = np.array([0, 3, 4, 8], np.int32)
    x, w, b = normal(8, 6), normal(6, 24, seed=1), normal(24, seed=2)
    feeds = {"x": x, "w": w, "b": b, "at": np.zeros((3, 4), np.int32), "edges": edges}
    got = ours(single("PackedAttention", feeds, domain=MICROSOFT, num_heads=2), feeds)["y"]
    for i, n in enumerate(lengths):
        part = {"x": x[None, edges[i] : edges[i] + n], "w": w, "b": b}
        want = ours(single("Attention", part, domain=MICROSOFT, num_heads=2), part)["y"]
        np.testing.assert_allclose(got[edges[i] : edges[i] + n], want[0], rtol=1e-5, atol=1e-6)


def test_biases_of_positions():
    table = normal(32, 4)
    feeds = {"t": table, "q": np.array([300], np.int64), "k": np.array([300], np.int64)}
    settings = {"domain": MICROSOFT, "max_distance": 128}
    one = ours(single("RelativePositionBias", feeds, **settings), feeds)["y"]
    two = ours(single("RelativePositionBias", feeds, is_bidirectional=1, **settings), feeds)["y"]
    assert one.shape == (1, 4, 300, 300)
    # of 32 buckets half are exact, then logarithmic up to the last; both ways: half of them each
    for back, bucket in ((0, 0), (15, 15), (16, 16), (22, 18), (127, 31), (290, 31), (-5, 0)):
        np.testing.assert_array_equal(one[0, :, 294, 294 - back], table[bucket])
    for back, bucket in ((0, 0), (7, 7), (8, 8), (13, 9), (200, 15), (-3, 19), (-4, 20)):
        np.testing.assert_array_equal(two[0, :, 294, 294 - back], table[bucket])
    q, qb = normal(2, 5, 8), normal(8, seed=1)
    w, b, rel = normal(4, 8, seed=2), normal(8, seed=3), normal(1, 2, 5, 5, seed=4)
    feeds = {"q": q, "qb": qb, "rel": rel, "w": w, "b": b, "eco": normal(1, 2, 1, 1, seed=5)}
    settings = {"domain": MICROSOFT, "num_heads": 2}
    got = ours(single("GatedRelativePositionBias", feeds, **settings), feeds)["y"]
    gates = (q + qb).reshape(2, 5, 2, 4).transpose(0, 2, 1, 3) @ w + b
    gates = 1 / (1 + np.exp(-gates.reshape(2, 2, 5, 2, 4).sum(-1)))
    want = (gates[..., :1] * (gates[..., 1:] * feeds["eco"] - 1) + 2) * rel
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_what_is_missing_says_so():
    x, w, b = normal(1, 2, 8), normal(8, 24), normal(24)
    feeds = {"x": x, "w": w, "b": b}
    model = single("Attention", feeds, domain=MICROSOFT, num_heads=2, do_rotary=1)
    with pytest.raises(UnsupportedError, match="do_rotary"):
        ours(model, feeds)


def decoder_step():
    """GroupQueryAttention as decoders have it: lengths come from the attention mask."""
    import onnx

    helper = onnx.helper
    kinds = onnx.TensorProto
    nodes = [
        helper.make_node("Shape", ["mask"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["n"]),
        helper.make_node("Cast", ["n"], ["total"], to=kinds.INT32),
        helper.make_node("ReduceSum", ["mask", "axes"], ["seen"], keepdims=0),
        helper.make_node("Sub", ["seen", "one"], ["before"]),
        helper.make_node("Cast", ["before"], ["last"], to=kinds.INT32),
        helper.make_node(
            "GroupQueryAttention", ["q", "k", "v", "pk", "pv", "last", "total", "cos", "sin"],
            ["y", "k2", "v2"], domain=MICROSOFT, num_heads=4, kv_num_heads=2, do_rotary=1,
        ),
    ]  # fmt: skip
    cos, sin = angles(8, 64)
    constants = {"one": np.array(1), "axes": np.array([1]), "cos": cos, "sin": sin}
    shapes = {
        "q": ["b", "s", 64], "k": ["b", "s", 32], "v": ["b", "s", 32], "pk": ["b", 2, "p", 16],
        "pv": ["b", 2, "p", 16], "mask": ["b", "t"],
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(k, kinds.INT64 if k == "mask" else kinds.FLOAT, v)
            for k, v in shapes.items()
        ],
        [helper.make_tensor_value_info(k, kinds.FLOAT, None) for k in ("y", "k2", "v2")],
        [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


@pytest.mark.parametrize("room", [0, 20])
def test_one_program_decodes_at_every_length(room):
    from tests.onnx.oracle import theirs

    import tilewright.onnx

    model = decoder_step()
    session = tilewright.onnx.load(model, threads=1)
    compiled = None
    for n in (5, 6, 7, 8, 13):
        feeds = grouped(1, 1, n, room=max(room - n, 0))
        feeds = {k: feeds[k] for k in ("q", "k", "v", "pk", "pv")}
        feeds["mask"] = np.ones((1, n + 1), np.int64)
        got, want = session.run(feeds), theirs(model, feeds)
        np.testing.assert_allclose(got["y"], want["y"], rtol=1e-4, atol=1e-5)
        for name in ("k2", "v2"):
            assert got[name].shape == want[name].shape
            np.testing.assert_allclose(
                got[name][:, :, : n + 1], want[name][:, :, : n + 1], rtol=1e-5, atol=1e-6
            )
        if n == 7:  # one trace at its own sizes, one for many
            compiled = len(session.plan.shared.programs)
    assert len(session.plan.shared.programs) == compiled

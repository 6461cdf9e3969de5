"""Quantised operators and networks beside onnxruntime: the same bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
helper = onnx.helper

import tilewright.onnx as tx  # noqa: E402
from tilewright.compiler.fusion import pending  # noqa: E402
from tilewright.onnx import segment  # noqa: E402

MS = "com.microsoft"


def model_of(
    nodes: Any, inputs: dict[str, np.ndarray], outputs: list[str], weights: Any = None
) -> Any:
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in inputs.items()
    ]
    outs = [helper.make_tensor_value_info(o, onnx.TensorProto.UNDEFINED, None) for o in outputs]
    stored = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", infos, outs, stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def peer(model: Any, inputs: dict[str, np.ndarray], optimised: bool = True) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options).run(None, inputs)


def both(
    op: str, arrays: list[Any], fixed: Any = (), domain: str = MS, outputs: int = 1, **attrs: Any
):
    """(ours, theirs) of one node; ``fixed`` are the arguments that are weights."""
    names = [f"a{i}" if a is not None else "" for i, a in enumerate(arrays)]
    out = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, out, domain=domain, **attrs)
    given = {n: np.asarray(a) for n, a in zip(names, arrays) if a is not None}
    inputs = {n: a for n, a in given.items() if int(n[1:]) not in fixed}
    weights = {n: a for n, a in given.items() if n not in inputs}
    model = model_of([node], inputs, out, weights)
    ours = list(tx.load(model, threads=1).run(inputs).values())
    for info, array in zip(model.graph.output, ours):
        info.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    return ours, peer(model, inputs)


def spied(monkeypatch: Any) -> list[set[str]]:
    """The ops of each program that is compiled from now on."""
    seen: list[set[str]] = []
    original = segment.for_inference

    def spy(roots: Any, dynamic: Any, *more: Any) -> Any:
        made = original(roots, dynamic, *more)
        seen.append({n.op for n in pending(made)})
        return made

    monkeypatch.setattr(segment, "for_inference", spy)
    return seen


def bytes_of(rng: np.random.Generator, shape: Any, dtype: Any = np.uint8) -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def scales(rng: np.random.Generator, n: int, dtype: Any = np.uint8) -> list[np.ndarray]:
    """Scales and zero points in turn."""
    out = []
    for _ in range(n):
        out += [np.float32(rng.uniform(0.01, 0.05)), dtype(rng.integers(100) + 10)]
    return out


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_sums_and_products(op: str, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        sa, za, sb, zb, sy, zy = scales(rng, 3, dtype)
        a, b = bytes_of(rng, (3, 9999), dtype), bytes_of(rng, (3, 9999), dtype)
        ours, theirs = both(op, [a, sa, za, b, sb, zb, sy, zy], range(1, 8))
        np.testing.assert_array_equal(ours[0], theirs[0])


@pytest.mark.parametrize(
    ("op", "attrs", "share"),
    [
        ("QLinearSigmoid", {}, 0.0),
        ("QLinearLeakyRelu", {"alpha": 0.1}, 0.0),
        ("QLinearGlobalAveragePool", {}, 0.0),
        ("QLinearAveragePool", {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1]}, 0.0),
        ("QLinearSoftmax", {"axis": 1, "opset": 13}, 0.002),
    ],
)  # fmt: skip
def test_unary(op: str, attrs: dict[str, Any], share: float) -> None:
    """Equal, or one step apart where theirs takes other roundings in between (a table of exps)."""
    rng = np.random.default_rng(1)
    x = bytes_of(rng, (2, 7, 9, 8))
    sx, zx, sy, zy = scales(rng, 2)
    ours, theirs = both(op, [x, sx, zx, sy, zy], range(1, 5), **attrs)
    assert ours[0].dtype == theirs[0].dtype
    apart = np.abs(ours[0].astype(int) - theirs[0].astype(int))
    assert apart.max() <= 1
    assert (apart > 0).mean() <= share


def test_concat_and_where() -> None:
    rng = np.random.default_rng(2)
    a, b = bytes_of(rng, (2, 3, 5)), bytes_of(rng, (2, 4, 5))
    s = scales(rng, 3)
    ours, theirs = both(
        "QLinearConcat", [*s[:2], a, *s[2:4], b, *s[4:]], (0, 1, 3, 4, 6, 7), axis=1
    )
    np.testing.assert_array_equal(ours[0], theirs[0])
    c = rng.random((2, 3, 5)) < 0.5
    args = [c, a, *s[:2], a[::-1].copy(), *s[2:4], *s[4:]]
    ours, theirs = both("QLinearWhere", args, (2, 3, 5, 6, 7, 8))
    np.testing.assert_array_equal(ours[0], theirs[0])


def test_products() -> None:
    rng = np.random.default_rng(3)
    a, b = bytes_of(rng, (6, 20)), bytes_of(rng, (20, 9), np.int8)
    sa, za, sy, zy = scales(rng, 2)
    sb, zb = rng.random(9).astype(np.float32) / 50, np.zeros(9, np.int8)
    bias = rng.integers(-2000, 2000, 9).astype(np.int32)
    ours, theirs = both("QGemm", [a, sa, za, b, sb, zb, bias, sy, zy], range(1, 9))
    np.testing.assert_array_equal(ours[0], theirs[0])
    ours, theirs = both("QGemm", [a, sa, za, b.T.copy(), sb, zb, bias], range(1, 7), transB=1)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    real = rng.standard_normal(9).astype(np.float32)
    ours, theirs = both("MatMulIntegerToFloat", [a, b, sa, sb, za, zb, real], (1, 3, 5, 6))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    x = rng.standard_normal((2, 6, 20)).astype(np.float32)
    ours, theirs = both("DynamicQuantizeMatMul", [x, b, sb, zb, real], (1, 2, 3, 4))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (3, 4)])
def test_dynamic_quantisation(shape: Any) -> None:
    rng = np.random.default_rng(4)
    for x in (rng.standard_normal(shape), np.zeros(shape), rng.random(shape) + 1):
        ours, theirs = both("DynamicQuantizeLinear", [x.astype(np.float32)], (), "", 3)
        for a, b in zip(ours, theirs):
            np.testing.assert_array_equal(a, b)


def test_quantisation_of_special_values() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9, np.inf, -np.inf, 254.5, 3.5], np.float32)
    for dtype in (np.uint8, np.int8, np.uint16, np.int16):
        for zero in (0, 3):
            ours, theirs = both(
                "QuantizeLinear", [x, np.float32(1), dtype(zero)], (1, 2), domain=""
            )
            np.testing.assert_array_equal(ours[0], theirs[0])


@pytest.mark.parametrize(
    ("bits", "block", "zero", "level", "tolerance"),
    [
        (4, 32, "packed", 0, 1e-5),
        (4, 16, "", 0, 1e-5),
        (8, 32, "packed", 0, 1e-5),
        (2, 64, "float", 0, 1e-5),
        (4, 32, "packed", 4, 1e-4),
        (4, 64, "", 4, 2e-2),  # they round activations per 64, we per 32
    ],
)
def test_matmul_nbits(bits: int, block: int, zero: str, level: int, tolerance: float) -> None:
    rng = np.random.default_rng(7)
    k, n = 130, 70
    blocks = -(-k // block)
    b = rng.integers(0, 256, (n, blocks, block * bits // 8), dtype=np.uint8)
    scale = rng.uniform(0.01, 0.05, (n, blocks)).astype(np.float32)
    zeros: Any = None
    if zero == "packed":
        zeros = rng.integers(0, 256, (n, -(-blocks * bits // 8)), dtype=np.uint8)
    if zero == "float":
        zeros = rng.uniform(0, 1 << bits, (n, blocks)).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    for rows in ((1,), (2, 5)):
        x = rng.standard_normal((*rows, k)).astype(np.float32)
        ours, theirs = both(
            "MatMulNBits", [x, b, scale, zeros, None, bias], range(1, 6), K=k, N=n, bits=bits,
            block_size=block, accuracy_level=level,
        )  # fmt: skip
        bound = tolerance * np.abs(theirs[0]).max()
        np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=bound)


def test_attention_and_lstm() -> None:
    rng = np.random.default_rng(10)
    x, w = bytes_of(rng, (2, 5, 12)), bytes_of(rng, (12, 24), np.int8)
    bias = rng.standard_normal(24).astype(np.float32)
    mask = np.array([5, 3], np.int32)
    args = [x, w, bias, np.float32(0.02), np.float32(0.01), mask, np.uint8(120), np.int8(0)]
    ours, theirs = both("QAttention", args, (1, 2, 3, 4, 6, 7), num_heads=2)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4, atol=1e-4)

    n, h = 6, 8
    sequence = rng.standard_normal((4, 3, n)).astype(np.float32)
    w, r = bytes_of(rng, (1, n, 4 * h), np.int8), bytes_of(rng, (1, h, 4 * h), np.int8)
    b = rng.standard_normal((1, 8 * h)).astype(np.float32)
    scale, zero = np.array([0.005], np.float32), np.zeros(1, np.int8)
    args = [sequence, w, r, b, None, None, None, None, scale, zero, scale, zero]
    ours, theirs = both(
        "DynamicQuantizeLSTM", args, range(1, 12), outputs=3, hidden_size=h, direction="forward"
    )
    for got, wanted in zip(ours, theirs):  # they round inputs and states to bytes in every step
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-2)


def test_gather_block_quantized() -> None:
    rng = np.random.default_rng(8)
    data = rng.integers(0, 256, (20, 32), dtype=np.uint8)
    scale = rng.uniform(0.01, 0.05, (20, 2)).astype(np.float32)
    zero = rng.integers(0, 256, (20, 1), dtype=np.uint8)
    ids = np.array([[3, 0], [19, 3]], np.int64)
    for zeros in (None, zero):
        ours, theirs = both(
            "GatherBlockQuantized", [data, ids, scale, zeros], (0, 2, 3), block_size=32, bits=4,
            gather_axis=0, quantize_axis=1,
        )  # fmt: skip
        np.testing.assert_array_equal(ours[0], theirs[0])


@pytest.mark.parametrize(
    ("kind", "block", "axis"),
    [("INT4", 16, 0), ("UINT4", 32, 0), ("INT4", 0, 1), ("UINT4", 32, 1)],
)
def test_weights_of_four_bits(kind: str, block: int, axis: int, monkeypatch: Any) -> None:
    """DequantizeLinear -> (Transpose ->) MatMul keeps its weights packed."""
    rng = np.random.default_rng(9)
    k, n = 64, 24
    low, high = (-8, 8) if kind == "INT4" else (0, 16)
    turned = block and axis == 1
    shape = (n, k) if turned else (k, n)
    q = rng.integers(low, high, shape)
    sizes = list(shape)
    if block:
        sizes[axis] //= block
    else:
        sizes = [n]
    scale = rng.uniform(0.01, 0.1, sizes).astype(np.float32)
    zero = rng.integers(low, high, sizes)
    tensor = getattr(onnx.TensorProto, kind)
    attrs = {"axis": axis, "block_size": block} if block else {"axis": axis}
    nodes = [helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], **attrs)]
    if turned:
        nodes.append(helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", ["x", "wt" if turned else "w"], ["y"]))
    x = rng.standard_normal((2, 3, k)).astype(np.float32)
    model = model_of(nodes, {"x": x}, ["y"], {"s": scale})
    for name, array in (("q", q), ("z", zero)):
        flat = array.reshape(-1).tolist()
        model.graph.initializer.append(helper.make_tensor(name, tensor, array.shape, flat))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    seen = spied(monkeypatch)
    (ours,) = tx.load(model, threads=1).run({"x": x}).values()
    assert "nbits_matmul" in seen[-1]
    theirs = peer(model, {"x": x}, optimised=False)[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


# --- networks ------------------------------------------------------------------------------------


def network(pool: bool = True) -> Any:
    """Convolutions of every kind, a sum, pooling and a linear layer, in f32."""
    rng = np.random.default_rng(5)
    nodes: list[Any] = []
    weights: dict[str, np.ndarray] = {}

    def weight(array: np.ndarray) -> str:
        weights[f"w{len(weights)}"] = array.astype(np.float32)
        return f"w{len(weights) - 1}"

    def add(op: str, *inputs: str, **attrs: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [f"v{len(nodes)}"], **attrs))
        return f"v{len(nodes) - 1}"

    def conv(x: str, c: int, o: int, k: int, s: int, group: int = 1) -> str:
        w = rng.standard_normal((o, c // group, k, k)) / (k * k * c / group) ** 0.5
        attrs = {"strides": [s, s], "pads": [k // 2] * 4, "group": group, "kernel_shape": [k, k]}
        return add("Conv", x, weight(w), weight(rng.standard_normal(o) / 10), **attrs)

    x = add("Relu", conv("x", 3, 10, 3, 2))
    x = add("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    y = add("Clip", conv(x, 10, 10, 3, 1, 10), weight(np.array(-0.1)), weight(np.array(0.9)))
    y = conv(y, 10, 20, 1, 1)
    x = add("Add", y, conv(x, 10, 20, 3, 1, 2))
    x = add("Sigmoid", x)
    x = add("GlobalAveragePool", x)
    x = add("Flatten", x)
    add("Gemm", x, weight(rng.standard_normal((20, 7))), weight(rng.standard_normal(7)))
    image = {"x": rng.standard_normal((1, 3, 17, 15)).astype(np.float32)}
    model = model_of(nodes, image, [f"v{len(nodes) - 1}"], weights)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return model, image


def quantised(form: str, tmp_path: Any, signed: bool) -> tuple[Any, dict[str, np.ndarray]]:
    quantization = pytest.importorskip("onnxruntime.quantization")
    model, image = network()
    onnx.save(model, tmp_path / "f.onnx")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = [image, {"x": image["x"][..., ::-1].copy()}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    kind = quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8
    quantization.quantize_static(
        str(tmp_path / "f.onnx"), str(tmp_path / "q.onnx"), Reader(),
        quant_format=quantization.QuantFormat[form], per_channel=True, activation_type=kind,
        weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    return onnx.load(tmp_path / "q.onnx"), image


@pytest.mark.parametrize("form", ["QOperator", "QDQ"])
def test_networks(form: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = quantised(form, tmp_path, signed=form == "QDQ")
    seen = spied(monkeypatch)
    (ours,) = tx.load(model, threads=1).run(image).values()
    assert "conv" not in seen[-1]
    assert {"byte_conv", "byte_depthwise", "byte_gemm", "byte_max_pool"} <= seen[-1]
    np.testing.assert_array_equal(ours, peer(model, image)[0])


def test_shufflenet(assets: Any) -> None:
    path = assets / "onnx/shufflenet-int8/shufflenet-v2-12-int8.onnx"
    image = np.random.default_rng(6).standard_normal((1, 3, 224, 224)).astype(np.float32)
    (ours,) = tx.load(path, threads=1).run({"input": image}).values()
    np.testing.assert_array_equal(ours, peer(onnx.load(path), {"input": image})[0])

"""Integer networks to measure: built with onnx, random weights, quantised by onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class Net:
    """A float network, node by node."""

    def __init__(self, size: int, channels: int = 3) -> None:
        from onnx import TensorProto, helper

        self.helper = helper
        self.rng = np.random.default_rng(0)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.input = helper.make_tensor_value_info(
            "x", TensorProto.FLOAT, [1, channels, size, size]
        )

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(op, list(inputs), [name], **attrs))
        return name

    def weight(self, array: np.ndarray) -> str:
        from onnx import numpy_helper

        name = f"w_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def conv(self, x: str, c: int, o: int, k: int, s: int = 1, group: int = 1) -> str:
        w = self.rng.standard_normal((o, c // group, k, k)) * (2 / (k * k * c / group)) ** 0.5
        bias = self.rng.standard_normal(o) * 0.1
        pad = k // 2
        return self.add(
            "Conv", x, self.weight(w), self.weight(bias), kernel_shape=[k, k], strides=[s, s],
            pads=[pad] * 4, group=group,
        )  # fmt: skip

    def linear(self, x: str, k: int, n: int) -> str:
        w = self.rng.standard_normal((k, n)) / k**0.5
        bias = self.rng.standard_normal(n) * 0.1
        return self.add("Gemm", x, self.weight(w), self.weight(bias))

    def save(self, path: Path, output: str) -> None:
        import onnx

        out = self.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
        graph = self.helper.make_graph(self.nodes, "net", [self.input], [out], self.weights)
        model = self.helper.make_model(
            graph, opset_imports=[self.helper.make_opsetid("", 17)], ir_version=9
        )
        onnx.save(onnx.shape_inference.infer_shapes(model), path)


def resnet18(path: Path) -> None:
    """The sizes of ResNet-18 (He et al. 2015), batch norms folded."""
    net = Net(224)
    x = net.add("Relu", net.conv("x", 3, 64, 7, 2))
    x = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for step in (stride, 1):
            y = net.add("Relu", net.conv(x, channels, outputs, 3, step))
            y = net.conv(y, outputs, outputs, 3)
            if step != 1 or channels != outputs:
                x = net.conv(x, channels, outputs, 1, step)
            x = net.add("Relu", net.add("Add", y, x))
            channels = outputs
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    net.save(path, net.linear(x, 512, 1000))


def mobile(path: Path) -> None:
    """The sizes of MobileNet 1.0 (Howard et al. 2017), batch norms folded."""
    net = Net(224)
    x = net.add("Relu", net.conv("x", 3, 32, 3, 2))
    channels = 32
    for outputs, stride in (
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2),
        (1024, 1),
    ):  # fmt: skip
        x = net.add("Relu", net.conv(x, channels, channels, 3, stride, channels))
        x = net.add("Relu", net.conv(x, channels, outputs, 1))
        channels = outputs
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    net.save(path, net.linear(x, 1024, 1000))


def digits(path: Path) -> None:
    """The sizes of the model zoo's MNIST network."""
    net = Net(28, 1)
    x = net.add("Relu", net.conv("x", 1, 8, 5))
    x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("Relu", net.conv(x, 8, 16, 5))
    x = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[3, 3])
    x = net.add("Flatten", x)
    net.save(path, net.linear(x, 256, 10))


NETS = {"resnet18": resnet18, "mobilenet": mobile, "digits": digits}


def quantised(name: str, form: str, folder: Path) -> Path:
    """A network of :data:`NETS` as ``form``, "QOperator" or "QDQ", u8 activations, i8 weights."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    plain, out = folder / f"{name}.onnx", folder / f"{name}-{form}.onnx"
    if out.exists():
        return out
    NETS[name](plain)
    import onnx

    dims = onnx.load(plain).graph.input[0].type.tensor_type.shape.dim
    shape = [d.dim_value for d in dims]
    rng = np.random.default_rng(1)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = 2

        def get_next(self) -> dict[str, np.ndarray] | None:
            self.left -= 1
            return {"x": rng.standard_normal(shape, np.float32)} if self.left >= 0 else None

    quantize_static(
        str(plain), str(out), Reader(), quant_format=QuantFormat[form], per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return out

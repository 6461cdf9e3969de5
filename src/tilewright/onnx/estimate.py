"""What running a model would take, from its file: operations, and memory between nodes.

Shapes are those that onnx infers once the symbolic sizes of the inputs are numbers. Counted are
multiplications and additions of products and convolutions, two for each pair, and one operation per
element that another node makes; what only looks at memory in another way costs nothing. Memory is
the largest sum of values that are needed at the same time. The engine fuses nodes, so that it takes
less than that.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tilewright.formats.onnx import Graph, Model, NodeDef

__all__ = ["Estimate", "estimate", "weight_bytes"]

_SMALL: Final = 1 << 12  # bytes of constants that may be sizes, which inference looks into
_VIEWS: Final = frozenset(
    (
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Identity",
        "Shape",
        "Size",
        "Constant",
        "Dropout",
    )
)
_FREE: Final = _VIEWS | {"Transpose", "Slice", "Split", "Expand"}

_SECONDS: Final = 30.0
_INFER: Final = """
import sys, onnx
model = onnx.load_from_string(sys.stdin.buffer.read())
inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
sys.stdout.buffer.write(inferred.SerializeToString())
"""

Shapes = Mapping[str, tuple[tuple[int, ...], float]]
"""By name of a value its shape and bytes per element."""


@dataclass(frozen=True)
class Estimate:
    """See the module's documentation.

    Attributes:
        dims: what symbolic sizes were taken to be.
        operations: additions and multiplications.
        by_op: the same by operator, the largest first.
        activation_bytes: values between nodes, at most.
        uncounted: nodes whose shapes are not known before the run; the bodies of loops and branches
            are among them.
    """

    dims: dict[str, int]
    operations: int
    by_op: dict[str, int]
    activation_bytes: int
    uncounted: int


def weight_bytes(model: Model) -> tuple[int, int, int]:
    """Tensors, values and bytes of all constants of all graphs."""
    arrays = [a for graph in model.graphs() for a in graph.constants.values()]
    return len(arrays), sum(a.size for a in arrays), sum(a.nbytes for a in arrays)


def estimate(model: Model, dims: Mapping[str, int]) -> Estimate:
    """What one run takes; sizes that ``dims`` does not name are taken as 1."""
    assumed: dict[str, int] = {}
    shapes = _shapes(model, dims, assumed)
    counts: dict[str, int] = {}
    uncounted = 0
    for node in model.graph.nodes:
        n = _operations(node, shapes)
        if n is None:
            uncounted += 1
        else:
            counts[node.op] = counts.get(node.op, 0) + n
    ordered = dict(sorted(((k, v) for k, v in counts.items() if v), key=lambda kv: -kv[1]))
    return Estimate(assumed, sum(counts.values()), ordered, _live(model.graph, shapes), uncounted)


def _shapes(model: Model, dims: Mapping[str, int], assumed: dict[str, int]) -> Shapes:
    import onnx

    graph = onnx.GraphProto(name="shapes")
    constants = model.graph.constants
    graph.node.extend(n.proto for n in model.graph.nodes)
    for info in model.graph.inputs:
        known = info.elements.upper() in _element_types()
        if info.kind != "tensor" or info.shape is None or not known:
            graph.input.append(onnx.ValueInfoProto(name=info.name))
            continue
        sizes = []
        for n in info.shape:
            if isinstance(n, str):
                n = assumed.setdefault(n, dims.get(n, 1))
            sizes.append(1 if n is None else n)
        kind = onnx.TensorProto.DataType.Value(info.elements.upper())
        graph.input.append(onnx.helper.make_tensor_value_info(info.name, kind, sizes))
    for name, array in constants.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        if array.nbytes <= _SMALL and array.dtype != object:
            graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
    graph.output.extend(onnx.ValueInfoProto(name=o.name) for o in model.graph.outputs)
    imports = [onnx.helper.make_opsetid(d, v) for d, v in model.opsets.items()]
    proto = onnx.helper.make_model(graph, opset_imports=imports)
    proto.functions.extend(f.proto for f in model.functions.values())
    inferred = _inferred(proto)
    found: dict[str, tuple[tuple[int, ...], float]] = {}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        tensor = value.type.tensor_type
        if not tensor.HasField("shape") or not tensor.elem_type:
            continue
        shape = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
        if -1 not in shape:
            found[value.name] = tuple(shape), _element_bytes(tensor.elem_type)
    found |= {name: (a.shape, a.itemsize) for name, a in constants.items()}
    return found


def _inferred(proto: Any) -> Any:
    """The graph with the shapes that onnx infers, or as it was.

    In a process of its own: onnx's C++ ends the process on some models that contradict themselves.
    """
    import onnx

    try:
        done = subprocess.run(
            [sys.executable, "-c", _INFER],
            input=proto.SerializeToString(),
            capture_output=True,
            timeout=_SECONDS,
            check=True,
        )
        made = onnx.ModelProto()
        made.ParseFromString(done.stdout)
    except (subprocess.SubprocessError, OSError, ValueError, _protobuf_error()):
        return proto.graph
    return made.graph


def _protobuf_error() -> type[Exception]:
    """What protobuf raises for bytes that are no message."""
    from google.protobuf.message import Error

    return Error


def _element_types() -> frozenset[str]:
    import onnx

    return frozenset(name for name, _ in onnx.TensorProto.DataType.items())


def _element_bytes(kind: int) -> float:
    import onnx

    try:
        return float(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
    except (KeyError, ValueError):
        return 1.0


def _operations(node: NodeDef, shapes: Shapes) -> int | None:
    """Operations of a node; None when its shapes are not known."""
    if node.op in _FREE:
        return 0

    def shape(i: int, of: tuple[str, ...] = node.inputs) -> tuple[int, ...]:
        return shapes[of[i]][0]

    def number(name: str) -> int:
        return int(node.attrs[name])

    try:
        out = math.prod(shape(0, node.outputs))
        match node.op:
            case "Conv" | "FusedConv" | "ConvInteger":
                return 2 * out * math.prod(shape(1)[1:])
            case "QLinearConv" | "NhwcConv":
                return 2 * out * math.prod(shape(3 if node.op == "QLinearConv" else 1)[1:])
            case "ConvTranspose":
                return 2 * math.prod(shape(0)) * math.prod(shape(1)[1:])
            case "MatMul" | "MatMulInteger" | "QLinearMatMul" | "FusedMatMul":
                return 2 * out * shape(0)[-1]
            case "Gemm":
                return 2 * out * shape(0)[0 if node.attrs.get("transA") else -1]
            case "MatMulNBits":
                return 2 * out * number("K")
            case "LSTM" | "GRU" | "RNN":
                steps = math.prod(shape(0)[:2])
                return 2 * steps * (math.prod(shape(1)) + math.prod(shape(2)))
            case "Attention" if not node.domain and len(shape(0)) == 4:
                q, k, v = shape(0), shape(1), shape(2)
                return 2 * math.prod(q[:3]) * k[2] * (q[3] + v[3])
            case "If" | "Loop" | "Scan":
                return None
            case op if op.startswith(("Reduce", "GlobalAverage", "ArgM", "CumSum", "TopK")):
                return math.prod(shape(0))
            case "AveragePool" | "MaxPool":
                return out * math.prod(node.attrs.get("kernel_shape", ()))
        return out
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _live(graph: Graph, shapes: Shapes) -> int:
    """The largest sum of values that are alive at the same time; views are no values."""
    root: dict[str, str] = {}
    last: dict[str, int] = {}
    for node in graph.nodes:
        if node.op in _VIEWS and node.inputs and node.outputs and node.inputs[0]:
            root[node.outputs[0]] = root.get(node.inputs[0], node.inputs[0])
    for name, position in graph.last_use.items():
        source = root.get(name, name)
        last[source] = max(position, last.get(source, -1))
    leaving: dict[int, list[str]] = {}
    for name, position in last.items():
        leaving.setdefault(position, []).append(name)
    sizes = {
        name: math.ceil(math.prod(shapes[name][0]) * shapes[name][1])
        for name in shapes
        if name not in graph.constants and name not in root
    }
    live = sum(sizes.get(v.name, 0) for v in graph.inputs)
    most = live
    for i, node in enumerate(graph.nodes):
        made: list[Any] = [o for o in node.outputs if o in last]
        live += sum(sizes.get(o, 0) for o in made)
        most = max(most, live)
        live -= sum(sizes.get(o, 0) for o in leaving.get(i, ()))
    return most

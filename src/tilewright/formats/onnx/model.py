"""ONNX models as plain data: graphs of nodes, attributes as Python values, weights as arrays.

The ``onnx`` package parses the protobuf; what it gives is checked here (sizes, names, cycles,
external files) and turned into dataclasses that the importer walks.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from tilewright.errors import FormatError, UnsupportedError
from tilewright.formats.onnx.tensors import element_name, sparse_array, tensor_array
from tilewright.formats.onnx.wire import without_weights

__all__ = [
    "Function",
    "Graph",
    "Model",
    "NodeDef",
    "ValueInfo",
    "model_from_bytes",
    "model_of",
    "open_model",
]

_MAPPED: Final = 1 << 20  # files from this size on are mapped
_DEPTH: Final = 64  # graphs inside graphs


@dataclass(frozen=True)
class ValueInfo:
    """What a graph says of a value.

    Attributes:
        name: of the value.
        kind: ``"tensor"``, ``"sequence"``, ``"optional"``, ``"map"`` or ``"unknown"``.
        elements: the element type's name in ONNX (``"float"``, ``"int64"`` ...); of what is in a
            sequence or an optional for those.
        shape: sizes, names of symbolic ones, None for unknown ones; None when nothing is known.
    """

    name: str
    kind: str = "unknown"
    elements: str = ""
    shape: tuple[int | str | None, ...] | None = None

    def __str__(self) -> str:
        sizes = "..."
        if self.shape is not None:
            sizes = ", ".join("?" if n is None else str(n) for n in self.shape)
        text = f"{self.elements}[{sizes}]"
        return text if self.kind == "tensor" else f"{self.kind}({text})"


@dataclass(frozen=True, eq=False)
class NodeDef:
    """One node. ``attrs``: numbers, strings, tuples of those, arrays, :class:`Graph`, :class:`Ref`.

    ``inputs`` and ``outputs`` are names; an empty one is left out.
    """

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    proto: Any = field(repr=False, default=None)

    @property
    def label(self) -> str:
        """How messages call it."""
        kind = self.op if not self.domain else f"{self.domain}.{self.op}"
        return f"{kind} node {self.name or '-> ' + ', '.join(self.outputs)!r}"


@dataclass(frozen=True)
class Ref:
    """An attribute of a function's node that is the function's own attribute."""

    name: str


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in an order that can be executed.

    Attributes:
        inputs: without those that have a default among ``constants``.
        defaults: the inputs that do.
        captured: names of values that come from the graph around this one.
        last_use: for each name the number of the last node that reads it; ``len(nodes)`` if it is
            an output.
    """

    name: str
    nodes: tuple[NodeDef, ...]
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    constants: Mapping[str, np.ndarray]
    defaults: tuple[ValueInfo, ...]
    captured: frozenset[str]
    last_use: Mapping[str, int]
    values: Mapping[str, ValueInfo]


@dataclass(frozen=True, eq=False)
class Function:
    """A function of the model: its body is expanded where it is called."""

    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: tuple[str, ...]
    defaults: Mapping[str, Any]
    graph: Graph
    opsets: Mapping[str, int]
    proto: Any = field(repr=False, default=None)


@dataclass(frozen=True, eq=False)
class Model:
    """A model file."""

    graph: Graph
    opsets: Mapping[str, int]
    functions: Mapping[tuple[str, str], Function]
    ir_version: int
    producer: str
    metadata: Mapping[str, str]
    path: str | None

    def graphs(self) -> Iterator[Graph]:
        """Every graph: the main one, those inside nodes, those of functions."""
        stack = [self.graph, *(f.graph for f in self.functions.values())]
        while stack:
            graph = stack.pop()
            yield graph
            for node in graph.nodes:
                stack += [v for v in node.attrs.values() if isinstance(v, Graph)]


def open_model(path: str | os.PathLike[str]) -> Model:
    """Read ``path``.

    Raises:
        FormatError: the file is no ONNX model, or contradicts itself.
        UnsupportedError: the ``onnx`` package is not installed.
    """
    _package()
    where = Path(path)
    try:
        with open(where, "rb") as file:
            if os.fstat(file.fileno()).st_size < _MAPPED:
                return _parsed(file.read(), where)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _mapped(data, where)
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror or error}", path=path) from error


def _mapped(data: mmap.mmap, path: Path) -> Model:
    """A large file: its weights are copied from the map, once, and not parsed."""
    view = memoryview(data)
    parts: list[memoryview] = []
    try:
        found = without_weights(view)
        if found is None:
            return _parsed(data[:], path)
        rest, places = found
        weights = {i: view[start:end] for i, (start, end) in places.items()}
        parts += weights.values()
        return _parsed(rest, path, weights)
    finally:  # or the map could not be closed
        for part in parts:
            part.release()
        view.release()


def _parsed(
    data: bytes, path: Path | None, weights: Mapping[int, memoryview] | None = None
) -> Model:
    onnx = _package()
    from google.protobuf.message import DecodeError

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise FormatError(f"is no ONNX model: {error}", path=path) from error
    return model_of(proto, path, weights)


def model_from_bytes(data: bytes) -> Model:
    """A model that is in memory. Raises as :func:`open_model`."""
    return _parsed(data, None)


def _package() -> Any:
    try:
        import onnx
    except ImportError:
        raise UnsupportedError(
            "ONNX models need the onnx package: pip install 'tilewright[onnx]'"
        ) from None
    return onnx


def model_of(
    proto: Any, path: Path | None = None, weights: Mapping[int, memoryview] | None = None
) -> Model:
    """A ``ModelProto``; ``path`` is where it came from (external data lie beside it).

    ``weights`` has raw data of initialisers of the main graph that ``proto`` is without.
    """
    _package()
    if not proto.HasField("graph"):
        raise FormatError("has no graph: is it an ONNX model?", path=path)
    opsets = _opsets(proto.opset_import)
    if not opsets and proto.ir_version < 3:
        opsets = {"": 1}
    if not opsets:
        raise FormatError("does not say which operator sets it uses", path=path)
    reader = _Reader(path)
    functions = {}
    for one in proto.functions:
        made = reader.function(one)
        functions[made.domain, made.name] = made
    return Model(
        graph=reader.graph(proto.graph, weights or {}),
        opsets=opsets,
        functions=functions,
        ir_version=proto.ir_version,
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
        metadata={p.key: p.value for p in proto.metadata_props},
        path=None if path is None else str(path),
    )


def domain_of(name: str) -> str:
    """``ai.onnx`` is the default domain, whose name is empty."""
    return "" if name == "ai.onnx" else name


def _opsets(imports: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in imports:
        domain = domain_of(_text(one.domain))
        if not 0 <= one.version < 1 << 31:
            raise FormatError(f"operator set {domain or 'ai.onnx'} has version {one.version}")
        found[domain] = max(one.version, found.get(domain, 0))
    return found


class _Reader:
    """Protobuf messages to dataclasses."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.folder = None if path is None else path.parent
        self.depth = 0

    def graph(self, proto: Any, weights: Mapping[int, memoryview] | None = None) -> Graph:
        self.depth += 1
        if self.depth > _DEPTH:
            raise FormatError(f"graphs lie more than {_DEPTH} deep in each other", path=self.path)
        constants: dict[str, np.ndarray] = {}
        for i, tensor in enumerate(proto.initializer):
            raw = weights.get(i) if weights else None
            constants[_text(tensor.name)] = tensor_array(tensor, self.folder, self.path, raw)
        for tensor in proto.sparse_initializer:
            constants[_text(tensor.values.name)] = sparse_array(tensor, self.folder, self.path)
        inputs = [value_info(v) for v in proto.input]
        nodes = [self.node(n) for n in proto.node]
        values = {v.name: value_info(v) for v in proto.value_info}
        made = self._finish(
            proto.name,
            nodes,
            [v for v in inputs if v.name not in constants],
            [value_info(v) for v in proto.output],
            constants,
            [v for v in inputs if v.name in constants],
            values,
        )
        self.depth -= 1
        return made

    def function(self, proto: Any) -> Function:
        for text in (proto.name, proto.domain, *proto.input, *proto.output, *proto.attribute):
            _text(text)
        nodes = [self.node(n) for n in proto.node]
        defaults = {a.name: self.attribute(a) for a in proto.attribute_proto}
        outputs = [ValueInfo(name) for name in proto.output]
        inputs = [ValueInfo(name) for name in proto.input]
        graph = self._finish(proto.name, nodes, inputs, outputs, {}, [], {})
        if graph.captured:
            raise FormatError(
                f"function {proto.name!r} reads {sorted(graph.captured)}, which it does not make",
                path=self.path,
            )
        return Function(
            domain=domain_of(proto.domain),
            name=proto.name,
            inputs=tuple(proto.input),
            outputs=tuple(proto.output),
            attrs=tuple(proto.attribute),
            defaults=defaults,
            graph=graph,
            opsets=_opsets(proto.opset_import),
            proto=proto,
        )

    def tensor(self, proto: Any) -> np.ndarray:
        return tensor_array(proto, self.folder, self.path)

    def node(self, proto: Any) -> NodeDef:
        attrs = {a.name: self.attribute(a) for a in proto.attribute}
        for text in (proto.op_type, proto.domain, proto.name, *proto.input, *proto.output, *attrs):
            _text(text)
        return NodeDef(
            proto.op_type,
            domain_of(proto.domain),
            proto.name,
            tuple(proto.input),
            tuple(proto.output),
            attrs,
            proto,
        )

    def attribute(self, proto: Any) -> Any:
        import onnx

        if proto.ref_attr_name:
            return Ref(proto.ref_attr_name)
        kinds = onnx.AttributeProto
        kind = proto.type or _guess(proto)
        if kind == kinds.FLOAT:
            return float(proto.f)
        if kind == kinds.INT:
            return int(proto.i)
        if kind == kinds.STRING:
            return proto.s.decode("utf-8", "replace")
        if kind == kinds.TENSOR:
            return self.tensor(proto.t)
        if kind == kinds.GRAPH:
            return self.graph(proto.g)
        if kind == kinds.SPARSE_TENSOR:
            return sparse_array(proto.sparse_tensor, self.folder, self.path)
        if kind == kinds.TYPE_PROTO:
            return _typed("", proto.tp)
        if kind == kinds.FLOATS:
            return tuple(proto.floats)
        if kind == kinds.INTS:
            return tuple(proto.ints)
        if kind == kinds.STRINGS:
            return tuple(s.decode("utf-8", "replace") for s in proto.strings)
        if kind == kinds.TENSORS:
            return tuple(self.tensor(t) for t in proto.tensors)
        if kind == kinds.GRAPHS:
            return tuple(self.graph(g) for g in proto.graphs)
        if kind == kinds.TYPE_PROTOS:
            return tuple(_typed("", t) for t in proto.type_protos)
        raise FormatError(f"attribute {proto.name!r} has an unknown type {kind}", path=self.path)

    def _finish(
        self,
        name: str,
        nodes: list[NodeDef],
        inputs: list[ValueInfo],
        outputs: list[ValueInfo],
        constants: dict[str, np.ndarray],
        defaults: list[ValueInfo],
        values: dict[str, ValueInfo],
    ) -> Graph:
        """Order nodes so that they can run; find what comes from outside, what is last read."""
        known = {v.name for v in (*inputs, *defaults)} | set(constants)
        makers: dict[str, int] = {}
        for i, node in enumerate(nodes):
            for out in node.outputs:
                if not out:
                    continue
                if out in makers or out in known:
                    raise FormatError(
                        f"{node.label} makes {out!r}, which is there already", path=self.path
                    )
                makers[out] = i
        reads = [_reads(node) for node in nodes]
        order = self._sorted(nodes, reads, makers)
        captured = {r for rs in reads for r in rs} | {o.name for o in outputs}
        captured -= known | set(makers)
        last: dict[str, int] = {}
        for position, i in enumerate(order):
            for one in reads[i]:
                last[one] = position
        for out_info in outputs:
            last[out_info.name] = len(nodes)
        return Graph(
            name,
            tuple(nodes[i] for i in order),
            tuple(inputs),
            tuple(outputs),
            constants,
            tuple(defaults),
            frozenset(captured - {""}),
            last,
            values | {v.name: v for v in (*inputs, *outputs, *defaults)},
        )

    def _sorted(
        self, nodes: list[NodeDef], reads: list[set[str]], makers: dict[str, int]
    ) -> list[int]:
        """Positions of nodes, makers before readers: as in the file where that will do."""
        order: list[int] = []
        state = [0] * len(nodes)  # 1: begun, 2: done
        for first in range(len(nodes)):
            stack = [first]
            while stack:
                i = stack[-1]
                if state[i] == 2:
                    stack.pop()
                    continue
                before = sorted({makers[r] for r in reads[i] if r in makers and r})
                waiting = [j for j in before if state[j] != 2]
                if not waiting:
                    state[i] = 2
                    order.append(i)
                    stack.pop()
                    continue
                state[i] = 1
                if any(state[j] == 1 for j in waiting):
                    raise FormatError(
                        f"nodes depend on each other in a circle: {nodes[i].label} is part of it",
                        path=self.path,
                    )
                stack.append(waiting[0])
        return order


def _reads(node: NodeDef) -> set[str]:
    found = {i for i in node.inputs if i}
    for value in node.attrs.values():
        for graph in value if isinstance(value, tuple) else (value,):
            if isinstance(graph, Graph):
                found |= graph.captured
    return found


def _guess(proto: Any) -> int:
    """The type of an attribute in a file from before they said it."""
    import onnx

    kinds = onnx.AttributeProto
    for name, kind in (
        ("f", kinds.FLOAT), ("i", kinds.INT), ("s", kinds.STRING), ("t", kinds.TENSOR),
        ("g", kinds.GRAPH),
    ):  # fmt: skip
        if proto.HasField(name):
            return kind
    for name, kind in (
        ("floats", kinds.FLOATS), ("strings", kinds.STRINGS), ("tensors", kinds.TENSORS),
    ):  # fmt: skip
        if len(getattr(proto, name)):
            return kind
    return kinds.INTS


def _text(name: Any) -> str:
    """A name; protobuf gives bytes for what is not UTF-8."""
    if not isinstance(name, str):
        raise FormatError(f"a name is not UTF-8: {bytes(name)[:60]!r}")
    return name


def value_info(proto: Any) -> ValueInfo:
    """A ``ValueInfoProto``."""
    return _typed(_text(proto.name), proto.type)


def _typed(name: str, proto: Any, depth: int = 0) -> ValueInfo:
    kind = proto.WhichOneof("value")
    if depth > _DEPTH or kind is None:
        return ValueInfo(name)
    if kind in ("tensor_type", "sparse_tensor_type"):
        tensor = getattr(proto, kind)
        shape = None
        if tensor.HasField("shape"):
            shape = tuple(_size(d) for d in tensor.shape.dim)
        return ValueInfo(name, "tensor", element_name(tensor.elem_type), shape)
    if kind == "map_type":
        return ValueInfo(name, "map", element_name(proto.map_type.key_type))
    inner = _typed(name, getattr(proto, kind).elem_type, depth + 1)
    elements = inner.elements if inner.kind == "tensor" else f"{inner.kind}({inner.elements})"
    return ValueInfo(name, kind.removesuffix("_type"), elements, inner.shape)


def _size(dim: Any) -> int | str | None:
    which = dim.WhichOneof("value")
    if which == "dim_value":
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return _text(dim.dim_param) or None if which == "dim_param" else None

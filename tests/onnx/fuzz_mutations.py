"""Damage: to the bytes of a model, and to what they say."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

ABSURD = (
    -(2**63), -(2**31), -7, -2, -1, 0, 1, 2, 3, 17, 255, 2**15, 2**20, 2**31 - 1, 2**31, 2**32 + 1,
    2**40, 2**60, 2**62, 2**63 - 1,
)  # fmt: skip
FLOATS = (float("nan"), float("inf"), float("-inf"), 0.0, -1.0, 1e-45, 1e38, -1e30, 0.5, 1e9)
PLACES = (
    "../secret.bin", "/etc/passwd", "link.bin", "sub/../../secret.bin", "", "w.bin", "w.bin",
    "\0", "nothing.bin", ".", "weights", "a" * 5000,
)  # fmt: skip

Mutation = Callable[[random.Random, onnx.ModelProto], None]


def damaged(rng: random.Random, made: onnx.ModelProto) -> bytes:
    """A model's bytes, after one to four mutations of its content or its bytes."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        rng.choice(MUTATIONS)(rng, made)
    data = bytearray(made.SerializeToString())
    if rng.random() < 0.35:
        for _ in range(rng.choice((1, 1, 2, 5))):
            _damage_bytes(rng, data)
    return bytes(data)


def _damage_bytes(rng: random.Random, data: bytearray) -> None:
    if not data:
        return
    at = rng.randrange(len(data))
    match rng.randrange(6):
        case 0:
            del data[at:]
        case 1:
            data[at] ^= 1 << rng.randrange(8)
        case 2:
            data[at] = rng.randrange(256)
        case 3:
            del data[at : at + rng.randrange(1, 20)]
        case 4:
            data[at:at] = data[at : at + rng.randrange(1, 40)]
        case 5:
            data[at:at] = bytes(rng.choice((0, 0xFF, 0x7F, 0x80)) for _ in range(rng.randrange(9)))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attr in node.attribute:
            if attr.HasField("g"):
                yield from _graphs(attr.g)


def _graph(rng: random.Random, made: onnx.ModelProto) -> onnx.GraphProto:
    return rng.choice(list(_graphs(made.graph)))


def _node(rng: random.Random, made: onnx.ModelProto) -> onnx.NodeProto | None:
    nodes = [n for g in _graphs(made.graph) for n in g.node]
    nodes += [n for f in made.functions for n in f.node]
    return rng.choice(nodes) if nodes else None


def _names(made: onnx.ModelProto) -> list[str]:
    found = {""}
    for graph in _graphs(made.graph):
        found |= {t.name for t in graph.initializer} | {v.name for v in graph.input}
        found |= {o for n in graph.node for o in n.output}
    return sorted(found)


def _attribute(rng: random.Random, made: onnx.ModelProto) -> None:
    """Another value, type or name for an attribute; or none; or one more."""
    node = _node(rng, made)
    if node is None:
        return
    if not node.attribute or rng.random() < 0.1:
        name = rng.choice(("axis", "axes", "to", "shape", "value", "body", "spam", "kernel_shape"))
        node.attribute.append(helper.make_attribute(name, rng.choice(ABSURD)))
        return
    attr = rng.choice(list(node.attribute))
    if rng.random() < 0.1:
        node.attribute.remove(attr)
    elif rng.random() < 0.1:
        attr.name = rng.choice(("axis", "perm", "mode", "", "x" * 300))
    elif rng.random() < 0.3:
        _other_type(rng, attr)
    elif attr.ints:
        values = [rng.choice(ABSURD) if rng.random() < 0.5 else v for v in attr.ints]
        values = values * rng.choice((1, 1, 1, 2, 3)) if rng.random() < 0.3 else values
        del attr.ints[:]
        attr.ints.extend(values[: rng.randrange(len(values) + 1)] if rng.random() < 0.2 else values)
    elif attr.HasField("i"):
        attr.i = rng.choice(ABSURD)
    elif attr.HasField("f"):
        attr.f = rng.choice(FLOATS)
    elif attr.HasField("s"):
        attr.s = rng.choice((b"", b"linear", b"\xff\xfe", b"a" * 4000, b"ij,jk->", b"constant"))
    elif attr.HasField("t"):
        _damage_tensor(rng, attr.t)


def _other_type(rng: random.Random, attr: onnx.AttributeProto) -> None:
    name = attr.name
    value: Any = rng.choice(
        (1, 1.5, b"text", [1, 2], [1.5, float("nan")], [b"a", b"b"],
         numpy_helper.from_array(np.zeros((2, 2), np.float32)),
         helper.make_graph([], "empty", [], []))
    )  # fmt: skip
    attr.CopyFrom(helper.make_attribute(name, value))
    if rng.random() < 0.2:
        attr.type = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13))


def _initializer(rng: random.Random, made: onnx.ModelProto) -> None:
    """Other sizes, types or contents of a weight."""
    graph = _graph(rng, made)
    if graph.sparse_initializer and rng.random() < 0.5:
        sparse = rng.choice(list(graph.sparse_initializer))
        if rng.random() < 0.5:
            _damage_tensor(rng, rng.choice((sparse.values, sparse.indices)))
        else:
            sparse.dims[rng.randrange(len(sparse.dims))] = rng.choice(ABSURD)
    elif graph.initializer:
        _damage_tensor(rng, rng.choice(list(graph.initializer)))


def _damage_tensor(rng: random.Random, tensor: onnx.TensorProto) -> None:
    match rng.randrange(7):
        case 0 if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(ABSURD)
        case 1:
            tensor.dims.extend([rng.choice(ABSURD) for _ in range(rng.choice((1, 1, 70)))])
        case 2:
            tensor.data_type = rng.choice((0, 1, 2, 6, 7, 8, 9, 10, 11, 16, 17, 21, 22, 23, 26, 99))
        case 3:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            facts = {"location": rng.choice(PLACES)}
            if rng.random() < 0.5:
                facts["offset"] = str(rng.choice((*ABSURD, "x", "1e9", "٣")))
            if rng.random() < 0.5:
                facts["length"] = str(rng.choice((*ABSURD, "")))
            del tensor.external_data[:]
            tensor.external_data.extend(
                onnx.StringStringEntryProto(key=k, value=v) for k, v in facts.items()
            )
        case _ if tensor.data_type == onnx.TensorProto.INT64 and tensor.HasField("raw_data"):
            values = np.frombuffer(
                tensor.raw_data[: len(tensor.raw_data) // 8 * 8], np.int64
            ).copy()
            if values.size:
                values[rng.randrange(values.size)] = rng.choice(ABSURD)
                tensor.raw_data = values.tobytes()
        case _ if tensor.data_type == onnx.TensorProto.FLOAT and tensor.HasField("raw_data"):
            floats = np.frombuffer(
                tensor.raw_data[: len(tensor.raw_data) // 4 * 4], np.float32
            ).copy()
            if floats.size:
                floats[rng.randrange(floats.size)] = rng.choice(FLOATS)
                tensor.raw_data = floats.tobytes()
        case _:
            tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]


def _edges(rng: random.Random, made: onnx.ModelProto) -> None:
    """Other inputs or outputs of a node: cycles, values of other types, missing and double ones."""
    node = _node(rng, made)
    if node is None:
        return
    names = _names(made)
    match rng.randrange(6):
        case 0 | 1 if node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(names)
        case 2:
            node.input.append(rng.choice(names))
        case 3 if node.input:
            del node.input[rng.randrange(len(node.input)) :]
        case 4 if node.output:
            node.output[rng.randrange(len(node.output))] = rng.choice([*names, "new"])
        case _:
            node.output.append(rng.choice(names))


def _operator(rng: random.Random, made: onnx.ModelProto) -> None:
    """Another operator in a node's place, or another version of all."""
    node = _node(rng, made)
    schemas = _schemas()
    if node is not None and rng.random() < 0.8:
        schema = rng.choice(schemas)
        node.op_type, node.domain = schema
    else:
        one = rng.choice(list(made.opset_import))
        one.version = rng.choice((0, 1, 6, 9, 11, 13, 18, 22, 25, 999, -1, 2**62))
        if rng.random() < 0.1:
            one.domain = rng.choice(("", "ai.onnx.ml", "x"))


_SCHEMAS: list[tuple[str, str]] = []


def _schemas() -> list[tuple[str, str]]:
    if not _SCHEMAS:
        from tilewright.onnx.registry import operators

        _SCHEMAS.extend((name, domain) for domain, name in operators())
    return _SCHEMAS


def _interface(rng: random.Random, made: onnx.ModelProto) -> None:
    """Other types and shapes of a graph's inputs and outputs."""
    graph = _graph(rng, made)
    values = list(graph.input) + list(graph.output)
    if not values:
        return
    one = rng.choice(values)
    match rng.randrange(6):
        case 0:
            one.type.tensor_type.elem_type = rng.choice((0, 1, 6, 7, 8, 9, 10, 11, 16, 17, 22, 77))
        case 1:
            one.type.tensor_type.shape.dim.add().dim_value = rng.choice(ABSURD)
        case 2 if one.type.tensor_type.shape.dim:
            dims = one.type.tensor_type.shape.dim
            dims[rng.randrange(len(dims))].dim_value = rng.choice(ABSURD)
        case 3:
            one.type.Clear()
        case 4:
            one.name = rng.choice([*_names(made), "unknown"])
        case _:
            kind = onnx.TypeProto()
            for _ in range(rng.choice((1, 2, 90))):
                outer = onnx.TypeProto()
                outer.sequence_type.elem_type.CopyFrom(kind)
                kind = outer
            one.type.CopyFrom(kind)


def _nesting(rng: random.Random, made: onnx.ModelProto) -> None:
    """Graphs inside graphs inside graphs; functions that call each other in a circle."""
    if made.functions and rng.random() < 0.6:
        function = rng.choice(list(made.functions))
        target = rng.choice(list(made.functions))
        for node in function.node:
            node.op_type, node.domain = target.name, target.domain
        if rng.random() < 0.3:
            function.attribute.append("axis")
        return
    graph = helper.make_graph([], "inner", [], [])
    for _ in range(rng.choice((1, 3, 20, 28))):
        node = helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
        if node.ByteSize() > 1 << 16:  # twice the last one each time
            node = helper.make_node("If", ["c"], ["y"], then_branch=graph)
        graph = helper.make_graph([node], "inner", [], [])
    made.graph.node.append(helper.make_node("If", ["c"], ["deep"], then_branch=graph))


def _order(rng: random.Random, made: onnx.ModelProto) -> None:
    """Nodes that are swapped, doubled or gone."""
    graph = _graph(rng, made)
    nodes = list(graph.node)
    if not nodes:
        return
    match rng.randrange(3):
        case 0:
            rng.shuffle(nodes)
        case 1:
            nodes.append(rng.choice(nodes))
        case 2:
            nodes.remove(rng.choice(nodes))
    copies = []
    for node in nodes:
        one = onnx.NodeProto()
        one.CopyFrom(node)
        copies.append(one)
    del graph.node[:]
    graph.node.extend(copies)


MUTATIONS: tuple[Mutation, ...] = (
    _attribute, _attribute, _attribute, _initializer, _initializer, _initializer, _edges, _edges,
    _operator, _operator, _interface, _nesting, _order,
)  # fmt: skip

"""Operators that the standard defines by other operators, expanded from its own definitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from tilewright.dtypes import bf16
from tilewright.formats.onnx import Function, NodeDef
from tilewright.formats.onnx.model import _Reader
from tilewright.tensor.core import Tensor

__all__ = ["has_schema_function", "schema_function"]


def _schema(node: NodeDef, opset: int) -> Any:
    import onnx

    try:
        return onnx.defs.get_schema(node.op, opset, node.domain)
    except onnx.defs.SchemaError:
        return None


def has_schema_function(node: NodeDef, opset: int) -> bool:
    """Whether the standard defines the operator by others."""
    schema = _schema(node, opset)
    return schema is not None and (schema.has_function or schema.has_context_dependent_function)


def schema_function(node: NodeDef, opset: int, args: Sequence[Any]) -> Function | None:
    """The standard's definition of an operator for inputs of these types, if it has one."""
    import onnx

    schema = _schema(node, opset)
    if schema is None:
        return None
    if schema.has_context_dependent_function:
        types = tuple(_type_bytes(a) for a in args)
        body = schema.get_context_dependent_function_with_opset_version(
            schema.since_version, node.proto.SerializeToString(), list(types)
        )
    elif schema.has_function:
        body = schema.get_function_with_opset_version(schema.since_version)
    else:
        return None
    if not body:
        return None
    proto = onnx.FunctionProto()
    proto.ParseFromString(body)
    for name in list(proto.attribute):
        default = schema.attributes[name].default_value if name in schema.attributes else None
        if default is not None and default.name:
            proto.attribute.remove(name)
            proto.attribute_proto.append(default)
    return _read(proto.SerializeToString())


@lru_cache(maxsize=256)
def _read(body: bytes) -> Function:
    """The function; its graph's outputs are those that a definition for this node does make."""
    import onnx

    proto = onnx.FunctionProto()
    proto.ParseFromString(body)
    wanted = tuple(proto.output)
    made = {*proto.input, *(name for node in proto.node for name in node.output)}
    del proto.output[:]
    proto.output.extend(name for name in wanted if name in made)
    return replace(_Reader(None).function(proto), outputs=wanted)


def _type_bytes(value: Any) -> bytes:
    import onnx

    if value is None:
        return onnx.TypeProto().SerializeToString()
    made = onnx.TypeProto()
    if isinstance(value, Tensor):
        if value.dtype is bf16:
            made.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
        else:
            made.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype.storage)
    elif isinstance(value, np.ndarray):
        made.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    for n in value.shape:
        made.tensor_type.shape.dim.add().dim_value = int(n)
    return made.SerializeToString()

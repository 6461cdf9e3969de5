"""Table entries: matmul with a weight, quantisation of its activations, embedding look-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, f32, i32, u8
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.ops.calls import KernelCall
from tilewright.ops.embedding import embedding_calls, embedding_reference
from tilewright.ops.matmul import matmul_calls, matmul_reference
from tilewright.ops.quantized import FORMATS, QuantizedRows, quantize_calls, quantize_reference
from tilewright.ops.table import OpDef, register

__all__ = ["wants_quantized"]


def wants_quantized(weight_type: str) -> bool:
    """Whether matmuls with weights of this ggml type read int8 activations."""
    return weight_type.lower() in FORMATS


def _matmul_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    x, weight = inputs[:2]
    k = x.inputs[0].shape[1] if x.op == "quantize_rows" else x.shape[-1]
    if len(x.shape) != 2 or len(weight.shape) != 2 or weight.shape[1] != k:
        raise ShapeError(
            f"matmul wants x (tokens, k) and weight (n, k), got {shape_of(x.shape)} and "
            f"{shape_of(weight.shape)}"
        )
    return (x.shape[0], weight.shape[0]), f32


def _matmul_reference(x: Any, weight: np.ndarray, *extras: Any, **attrs: Any) -> np.ndarray:
    if attrs or extras:
        raise NotImplementedError("the reference is that of the unfused op")
    return matmul_reference(x, weight)


def _matmul_calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    x, weight, *extras = inputs
    return matmul_calls(weight, x, out, node.attrs.get("epilogue"), extras)


register(
    OpDef(
        "matmul",
        _matmul_infer,
        _matmul_reference,
        calls=_matmul_calls,
        weight_forms={1: "matrix"},
    )
)


def _quantize_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    (x,) = inputs
    if len(x.shape) != 2 or not isinstance(x.shape[1], int) or x.dtype is not f32:
        raise ShapeError(f"quantize_rows wants f32 (tokens, k), got {x.dtype}{shape_of(x.shape)}")
    return (x.shape[0], QuantizedRows.row_bytes(x.shape[1])), u8


def _quantize_reference(x: np.ndarray) -> np.ndarray:
    """The values that survive: float32 (tokens, k)."""
    q, d, _, _ = quantize_reference(x)
    blocks = q.reshape(x.shape[0], -1, 32).astype(np.float32) * d[:, :, None]
    return blocks.reshape(x.shape)


def _wrap(node: Node, buffer: Any) -> Any:
    width: Any = node.attrs.get("k") if node.op == "result" else node.inputs[0].shape[1]
    return buffer if width is None else QuantizedRows(buffer, width)


register(
    OpDef(
        "quantize_rows",
        _quantize_infer,
        _quantize_reference,
        wrap=_wrap,
        calls=lambda node, inputs, out: quantize_calls(inputs[0], out),
    )
)


def _embedding_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    ids, table = inputs
    if len(ids.shape) != 1 or ids.dtype is not i32 or len(table.shape) != 2:
        raise ShapeError(
            f"embedding wants i32 (tokens,) and a table (n, k), got {ids.dtype}"
            f"{shape_of(ids.shape)} and {shape_of(table.shape)}"
        )
    return (ids.shape[0], table.shape[1]), f32


register(
    OpDef(
        "embedding",
        _embedding_infer,
        embedding_reference,
        calls=lambda node, inputs, out: embedding_calls(inputs[0], inputs[1], out),
        weight_forms={1: "table"},
    )
)


def _no_reference(*arrays: Any, **attrs: Any) -> np.ndarray:
    raise NotImplementedError("fused nodes exist only after the compiler's passes")


register(OpDef("result", lambda i, a: (i[0].shape, i[0].dtype), _no_reference, wrap=_wrap))

"""ONNX files: models, their weights (also in external files), single tensors."""

from tilewright.formats.onnx.model import (
    Function,
    Graph,
    Model,
    NodeDef,
    ValueInfo,
    model_from_bytes,
    model_of,
    open_model,
)
from tilewright.formats.onnx.tensors import element_name, read_tensor, tensor_array

__all__ = [
    "Function",
    "Graph",
    "Model",
    "NodeDef",
    "ValueInfo",
    "element_name",
    "model_from_bytes",
    "model_of",
    "open_model",
    "read_tensor",
    "tensor_array",
]

"""GGUF: the file format of llama.cpp's models. Reader, writer and quantised types.

::

    with open_gguf("model.gguf") as gguf:
        gguf.metadata["general.architecture"]
        gguf.tensors["token_embd.weight"].shape
        gguf.dequantize("token_embd.weight")          # float32

    write_gguf("copy.gguf", {"general.architecture": "llama"}, {"weight": array})
"""

from tilewright.formats.gguf.header import MetadataType, TensorInfo
from tilewright.formats.gguf.metadata import MetadataValue
from tilewright.formats.gguf.quants import can_dequantize, can_quantize, dequantize, quantize
from tilewright.formats.gguf.reader import GGUFFile, open_gguf
from tilewright.formats.gguf.types import GGMLType, ValueType
from tilewright.formats.gguf.writer import (
    TensorSource,
    tensor_from_array,
    tensor_from_raw,
    tensor_from_rows,
    write_gguf,
)

__all__ = [
    "GGMLType",
    "GGUFFile",
    "MetadataType",
    "MetadataValue",
    "TensorInfo",
    "TensorSource",
    "ValueType",
    "can_dequantize",
    "can_quantize",
    "dequantize",
    "open_gguf",
    "quantize",
    "tensor_from_array",
    "tensor_from_raw",
    "tensor_from_rows",
    "write_gguf",
]

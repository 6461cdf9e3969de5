"""The operators, by family; importing a family registers it."""

from tilewright.onnx.ops import basic

__all__ = ["basic"]

"""The operators, by family; importing a family registers it."""

from tilewright.onnx.ops import (
    basic,
    control,
    convolution,
    normalization,
    pooling,
    resizing,
)

__all__ = ["basic", "control", "convolution", "normalization", "pooling", "resizing"]

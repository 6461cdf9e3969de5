"""The operators, by family; importing a family registers it."""

from tilewright.onnx.ops import (
    activations,
    arithmetic,
    basic,
    casts,
    control,
    convolution,
    creation,
    gathers,
    linear,
    logic,
    normalization,
    pooling,
    quantization,
    reductions,
    resizing,
    shapes,
)

__all__ = [
    "activations",
    "arithmetic",
    "basic",
    "casts",
    "control",
    "convolution",
    "creation",
    "gathers",
    "linear",
    "logic",
    "normalization",
    "pooling",
    "quantization",
    "reductions",
    "resizing",
    "shapes",
]

"""What models share."""

from tilewright.layers.attention import attention
from tilewright.layers.basic import embedding, layer_norm, linear, rms_norm
from tilewright.layers.rope import Pairing, Rope
from tilewright.layers.step import Step, StepLimits
from tilewright.layers.weights import WeightBook

__all__ = [
    "Pairing",
    "Rope",
    "Step",
    "StepLimits",
    "WeightBook",
    "attention",
    "embedding",
    "layer_norm",
    "linear",
    "rms_norm",
]

"""Neural network layers: modules, functions, losses, initialisers."""

from tilewright.nn import functional
from tilewright.nn.layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm
from tilewright.nn.module import Module, ModuleList, Parameter, Sequential

__all__ = [
    "Dropout",
    "Embedding",
    "LayerNorm",
    "Linear",
    "Module",
    "ModuleList",
    "Parameter",
    "RMSNorm",
    "Sequential",
    "functional",
]

"""tilewright: runs neural networks at the speed of the machine it stands on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilewright.errors import (
    CompileError,
    ContextLengthError,
    FormatError,
    KernelError,
    OutOfMemoryError,
    ShapeError,
    TilewrightError,
    TrainingError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from tilewright import lang, tokenizers
    from tilewright.generate.model import Generation, Model, load
    from tilewright.runtime.launch import Kernel, kernel

__version__ = "0.1.0"

__all__ = [
    "CompileError",
    "ContextLengthError",
    "FormatError",
    "Generation",
    "Kernel",
    "KernelError",
    "Model",
    "OutOfMemoryError",
    "ShapeError",
    "TilewrightError",
    "TrainingError",
    "UnsupportedError",
    "__version__",
    "kernel",
    "lang",
    "load",
    "matmul",
    "tokenizers",
]

# Heavy rooms are imported when first asked for, so that `import tilewright` stays quick.
_LAZY = {
    "Generation": "tilewright.generate.model",
    "Model": "tilewright.generate.model",
    "load": "tilewright.generate.model",
    "Kernel": "tilewright.runtime.launch",
    "kernel": "tilewright.runtime.launch",
    "lang": "",
    "tokenizers": "",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _LAZY:
        # tensors and the functions of the Array API standard
        value = importlib.import_module("tilewright.tensor.api").lookup(name)
        globals()[name] = value
        return value
    module = importlib.import_module(_LAZY[name] or f"tilewright.{name}")
    value = getattr(module, name) if _LAZY[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    from tilewright.tensor.api import names

    return sorted({*__all__, *names()})

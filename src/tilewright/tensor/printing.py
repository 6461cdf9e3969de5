"""Tensors as text, the way NumPy shows arrays.

Showing a tensor computes its value in a program of its own and leaves the tensor as it was: what is
computed from it later is the same with or without having looked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tilewright.compiler.realize import realize
from tilewright.tensor.memory import array_of
from tilewright.tensor.modes import mode

if TYPE_CHECKING:
    from tilewright.tensor.core import Tensor

__all__ = ["text_of"]

_THRESHOLD = 1000  # elements from which a tensor is summarised
_EDGE = 3  # elements shown at each end of an axis then


def text_of(tensor: Tensor) -> str:
    """``tensor([[1., 2.]], dtype=f32)``; only shape and dtype while a function is being traced."""
    node = tensor.node
    notes = f"dtype={node.dtype}"
    if tensor.requires_grad:
        notes += ", requires_grad=True"
    if mode.trace is not None:
        return f"tensor(shape={tensor.shape}, {notes})"
    buffer = node.value
    if buffer is None:
        from tilewright.tensor.core import fresh

        (buffer,) = realize([fresh(node)])
    array = array_of(buffer)
    if array.size == 0:
        return f"tensor([], shape={tensor.shape}, {notes})"
    body = np.array2string(
        array, separator=", ", prefix="tensor(", threshold=_THRESHOLD, edgeitems=_EDGE
    )
    shape = f", shape={tensor.shape}" if array.size > _THRESHOLD else ""
    return f"tensor({body}{shape}, {notes})"

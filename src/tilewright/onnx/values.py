"""What flows along the edges of an ONNX graph while it is traced.

A value is a lazy :class:`~tilewright.tensor.core.Tensor`; an ndarray, whose contents are known (a
constant, a shape, whatever was computed from those alone, and everything that no tensor holds, such
as strings); a list (a sequence); or None (an empty optional).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, bf16, from_numpy, to_float32
from tilewright.graph import data_node
from tilewright.runtime.buffers import Buffer, empty, from_array
from tilewright.tensor.core import Tensor

__all__ = ["BFLOAT16", "array_of_buffer", "buffer_of", "dtype_of", "is_tensor_dtype", "leaf"]


def _bfloat16() -> np.dtype | None:
    try:
        import ml_dtypes
    except ImportError:
        return None
    return np.dtype(ml_dtypes.bfloat16)


BFLOAT16: Final = _bfloat16()
"""The NumPy dtype of bfloat16 arrays; None when ml_dtypes is not installed."""


def dtype_of(dtype: np.dtype) -> DType | None:
    """The element type that a tensor of such an array has; None if there is none."""
    if BFLOAT16 is not None and dtype == BFLOAT16:
        return bf16
    try:
        return from_numpy(dtype)
    except KeyError:
        return None


def is_tensor_dtype(dtype: np.dtype) -> bool:
    """Whether tensors can hold such elements."""
    return dtype_of(dtype) is not None


def buffer_of(array: np.ndarray, copy: bool = False) -> Buffer:
    """``array`` in memory as kernels want it: C-contiguous, in whole elements.

    With ``copy`` memory of its own, 64-byte aligned.
    """
    kind = dtype_of(array.dtype)
    assert kind is not None, f"no tensor holds {array.dtype}"
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if kind is bf16:
        array = array.view(np.uint16)
    if copy:
        made = empty(kind, array.shape)
        made.numpy()[...] = array
        return made
    return from_array(np.ascontiguousarray(array).reshape(array.shape), kind)


def leaf(buffer: Buffer) -> Tensor:
    """A tensor that is this memory, now: another run may put something else in its place."""
    node = data_node(buffer)
    node.attrs = {"varies": True}
    return Tensor(node)


def array_of_buffer(buffer: Buffer) -> np.ndarray:
    """The memory of ``buffer`` as an array (ml_dtypes' bfloat16 for bf16)."""
    array = buffer.numpy()
    if buffer.dtype is not bf16:
        return array
    return to_float32(array) if BFLOAT16 is None else array.view(BFLOAT16)


def describe(value: Any) -> str:
    """A value for messages: ``float32[2, 3]``."""
    if isinstance(value, (list, tuple)):
        return f"sequence of {len(value)}"
    if value is None:
        return "nothing"
    shape = "[" + ", ".join(map(str, value.shape)) + "]"
    return f"{value.dtype}{shape}"

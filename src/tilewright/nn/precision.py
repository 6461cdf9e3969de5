"""Mixed precision: products of matrices, convolutions and attention in 16 bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tilewright.dtypes import DType, bf16, f16, f32
from tilewright.errors import DTypeError
from tilewright.tensor.core import Tensor, apply, cast_node
from tilewright.tensor.modes import mode
from tilewright.tensor.promotion import as_dtype

__all__ = ["autocast", "cast_operands", "widened"]


@contextlib.contextmanager
def autocast(dtype: Any = bf16, enabled: bool = True) -> Iterator[None]:
    """Inside, linear maps, ``@``, convolutions and attention take f32 operands as ``dtype``.

    They multiply 16-bit numbers, add in f32 and give ``dtype``; parameters and their gradients
    stay f32 (the "master" weights). Softmax, normalisation statistics and losses are f32. Which
    operations are cast follows ``torch.autocast``. Only the forward pass belongs inside; each
    gradient is computed as its operation was.

    Args:
        dtype: bf16, or f16 (whose gradients want :class:`tilewright.optim.LossScaler`).
        enabled: False switches an outer ``autocast`` off.
    """
    kind = as_dtype(dtype)
    if kind not in (bf16, f16):
        raise DTypeError(f"autocast computes in bfloat16 or float16, got {kind}")
    before, mode.autocast = mode.autocast, kind if enabled else None
    try:
        yield
    finally:
        mode.autocast = before


def cast_operands(*tensors: Tensor) -> tuple[Tensor, ...]:
    """``tensors`` as operands of a product: f32 (and the other 16-bit float) cast by autocast."""
    kind = mode.autocast
    if kind is None:
        return tensors

    def cast(t: Tensor) -> Tensor:
        return apply(cast_node, t, dtype=kind) if t.dtype in (f32, f16, bf16) else t

    return tuple(t if t.dtype is kind else cast(t) for t in tensors)


def widened(x: Tensor) -> Tensor:
    """16-bit floats as f32: what losses compute in."""
    return apply(cast_node, x, dtype=f32) if _is_narrow(x.dtype) else x


def _is_narrow(dtype: DType) -> bool:
    return dtype in (f16, bf16)

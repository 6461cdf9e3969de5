"""Embedding lookup from a table that keeps the file's rows, whatever their type."""

from __future__ import annotations

import numpy as np

from tilewright.ops.calls import KernelCall
from tilewright.ops.dequant import lookup_calls
from tilewright.ops.packed import PackedMatrix
from tilewright.runtime.buffers import Buffer

__all__ = ["embedding_calls", "embedding_reference"]


def embedding_reference(ids: np.ndarray, table: np.ndarray) -> np.ndarray:
    """``table[ids]``: ids (T,), table (n, k) -> float32 (T, k)."""
    return np.asarray(table, np.float32)[ids]


def embedding_calls(ids: Buffer, table: PackedMatrix, y: Buffer) -> list[KernelCall]:
    """``y[t] = table[ids[t]]``.

    Args:
        ids: i32 (T,). The caller checks their range; a row that is not there reads as zero bytes.
        table: rows from :func:`tilewright.ops.packed.raw_rows`.
        y: f32 (T, k).
    """
    return lookup_calls(ids, table.planes["raw"], table.format, y)

"""What a block format is, and the bit-twiddling that several of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tilewright.formats.gguf.types import GGMLType

__all__ = ["BlockFormat", "f16_bytes", "f16_column", "nibbles", "pack_nibbles"]


@dataclass(frozen=True)
class BlockFormat:
    """How the blocks of one ggml type turn into values and back.

    Attributes:
        type: the ggml type; gives ``block_size`` and ``type_size``.
        dequantize_blocks: uint8 ``(n, type_size)`` -> float32 ``(n, block_size)``.
        quantize_blocks: float32 ``(n, block_size)`` -> uint8 ``(n, type_size)``; ``None`` where
            tilewright reads the type but does not write it.
    """

    type: GGMLType
    dequantize_blocks: Callable[[np.ndarray], np.ndarray]
    quantize_blocks: Callable[[np.ndarray], np.ndarray] | None = None


def f16_column(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 stored at byte ``at`` of each block, as float32 ``(n, 1)``."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def f16_bytes(values: np.ndarray) -> np.ndarray:
    """float32 ``(n, 1)`` rounded to float16, as uint8 ``(n, 2)``."""
    return values.astype(np.float16).view(np.uint8)


def nibbles(packed: np.ndarray, group: int) -> np.ndarray:
    """Unpack 4-bit fields: uint8 ``(n, b)`` -> uint8 ``(n, 2 * b)``.

    Each ``group`` bytes hold ``2 * group`` values: first all low nibbles, then all high ones.
    """
    n, b = packed.shape
    source = packed.reshape(n, b // group, group)
    values = np.empty((n, b // group, 2, group), np.uint8)
    np.bitwise_and(source, 0x0F, out=values[:, :, 0])
    np.right_shift(source, 4, out=values[:, :, 1])
    return values.reshape(n, 2 * b)


def pack_nibbles(values: np.ndarray, group: int) -> np.ndarray:
    """The inverse of :func:`nibbles`: uint8 below 16, ``(n, 2 * b)`` -> ``(n, b)``."""
    n, count = values.shape
    pairs = values.reshape(n, count // (2 * group), 2, group)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(n, count // 2)

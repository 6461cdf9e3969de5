"""The original block types: 32 values that share a float16 scale (and, for ``_1``, a minimum).

Layouts: ``block_q4_0`` ... ``block_q8_1`` in ggml-common.h. The quantisers repeat the arithmetic of
``quantize_row_*_ref`` in ggml-quants.c as the ``gguf`` package renders it, operation by operation,
so the bytes are the same.
"""

from __future__ import annotations

import numpy as np

from tilewright.formats.gguf.blocks import (
    BlockFormat,
    f16_bytes,
    f16_column,
    nibbles,
    pack_nibbles,
)
from tilewright.formats.gguf.types import GGMLType

__all__ = ["FORMATS"]


class Q4_0:
    """``{ f16 d; u8 qs[16]; }``: value = d * (q - 8)."""

    @staticmethod
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        values = nibbles(blocks[:, 2:], 16).astype(np.float32)
        values -= np.float32(8)
        values *= f16_column(blocks, 0)
        return values

    @staticmethod
    def quantize_blocks(values: np.ndarray) -> np.ndarray:
        d, q = _quantize_symmetric(values, 4)
        return np.concatenate([f16_bytes(d), pack_nibbles(q, 16)], axis=1)


class Q4_1:
    """``{ f16 d; f16 m; u8 qs[16]; }``: value = d * q + m."""

    @staticmethod
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        values = nibbles(blocks[:, 4:], 16).astype(np.float32)
        values *= f16_column(blocks, 0)
        values += f16_column(blocks, 2)
        return values

    @staticmethod
    def quantize_blocks(values: np.ndarray) -> np.ndarray:
        d, m, q = _quantize_affine(values, 4)
        return np.concatenate([f16_bytes(d), f16_bytes(m), pack_nibbles(q, 16)], axis=1)


class Q5_0:
    """``{ f16 d; u8 qh[4]; u8 qs[16]; }``: value = d * (q - 16); ``qh`` has the fifth bits."""

    @staticmethod
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        values = _five_bits(blocks[:, 6:], blocks[:, 2:6]).astype(np.float32)
        values -= np.float32(16)
        values *= f16_column(blocks, 0)
        return values

    @staticmethod
    def quantize_blocks(values: np.ndarray) -> np.ndarray:
        d, q = _quantize_symmetric(values, 5)
        return np.concatenate([f16_bytes(d), _fifth_bits(q), pack_nibbles(q & 0x0F, 16)], axis=1)


class Q5_1:
    """``{ f16 d; f16 m; u8 qh[4]; u8 qs[16]; }``: value = d * q + m."""

    @staticmethod
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        values = _five_bits(blocks[:, 8:], blocks[:, 4:8]).astype(np.float32)
        values *= f16_column(blocks, 0)
        values += f16_column(blocks, 2)
        return values

    @staticmethod
    def quantize_blocks(values: np.ndarray) -> np.ndarray:
        d, m, q = _quantize_affine(values, 5)
        fields = [f16_bytes(d), f16_bytes(m), _fifth_bits(q), pack_nibbles(q & 0x0F, 16)]
        return np.concatenate(fields, axis=1)


class Q8_0:
    """``{ f16 d; i8 qs[32]; }``: value = d * q."""

    @staticmethod
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        values = blocks[:, 2:].view(np.int8).astype(np.float32)
        values *= f16_column(blocks, 0)
        return values

    @staticmethod
    def quantize_blocks(values: np.ndarray) -> np.ndarray:
        d = np.abs(values).max(axis=1, keepdims=True) / 127
        q = _round_half_away(values * _inverse(d)).astype(np.int8)
        return np.concatenate([f16_bytes(d), q.view(np.uint8)], axis=1)


class Q8_1:
    """``{ f16 d; f16 s; i8 qs[32]; }``: value = d * q; ``s`` only serves dot products."""

    @staticmethod
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        values = blocks[:, 4:].view(np.int8).astype(np.float32)
        values *= f16_column(blocks, 0)
        return values


def _inverse(d: np.ndarray) -> np.ndarray:
    """1 / d, and 0 where d is 0."""
    return np.where(d == 0, np.float32(0), np.float32(1) / d)


def _round_half_away(values: np.ndarray) -> np.ndarray:
    """C's ``roundf``: halves go away from zero."""
    magnitude = np.abs(values)
    whole = np.floor(magnitude)
    return np.copysign(whole + np.floor(np.float32(2) * (magnitude - whole)), values)


def _quantize_symmetric(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale (n, 1) and codes (n, 32): the value of largest magnitude gets code 0."""
    half = 1 << (bits - 1)
    at = np.abs(values).argmax(axis=1, keepdims=True)
    d = np.take_along_axis(values, at, axis=1) / np.float32(-half)
    codes = np.trunc(values * _inverse(d) + np.float32(half + 0.5))
    return d, codes.astype(np.uint8).clip(0, 2 * half - 1)


def _quantize_affine(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale (n, 1), minimum (n, 1) and codes (n, 32): the minimum gets code 0."""
    top = (1 << bits) - 1
    low = values.min(axis=1, keepdims=True)
    d = (values.max(axis=1, keepdims=True) - low) / np.float32(top)
    codes = np.trunc((values - low) * _inverse(d) + np.float32(0.5))
    return d, low, codes.astype(np.uint8).clip(0, top)


def _five_bits(qs: np.ndarray, qh: np.ndarray) -> np.ndarray:
    """5-bit codes (n, 32) from nibbles (n, 16) and a 32-bit mask of high bits (n, 4)."""
    high = np.unpackbits(qh, axis=1, bitorder="little")
    high <<= 4
    high |= nibbles(qs, 16)
    return high


def _fifth_bits(q: np.ndarray) -> np.ndarray:
    """The high bits of 5-bit codes (n, 32) as a 32-bit mask (n, 4)."""
    return np.packbits(q >> 4, axis=1, bitorder="little")


FORMATS = (
    BlockFormat(GGMLType.Q4_0, Q4_0.dequantize_blocks, Q4_0.quantize_blocks),
    BlockFormat(GGMLType.Q4_1, Q4_1.dequantize_blocks, Q4_1.quantize_blocks),
    BlockFormat(GGMLType.Q5_0, Q5_0.dequantize_blocks, Q5_0.quantize_blocks),
    BlockFormat(GGMLType.Q5_1, Q5_1.dequantize_blocks, Q5_1.quantize_blocks),
    BlockFormat(GGMLType.Q8_0, Q8_0.dequantize_blocks, Q8_0.quantize_blocks),
    BlockFormat(GGMLType.Q8_1, Q8_1.dequantize_blocks),
)

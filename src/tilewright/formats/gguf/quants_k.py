"""The K types: super-blocks of 256 values whose sub-block scales are themselves quantised.

Layouts: ``block_q2_K`` ... ``block_q8_K`` in ggml-common.h. The quantisers are in ``quants_k_fit``.
"""

from __future__ import annotations

import numpy as np

from tilewright.formats.gguf import quants_k_fit as fit
from tilewright.formats.gguf.blocks import (
    BlockFormat,
    f16_bytes,
    f16_column,
    nibbles,
    pack_nibbles,
)
from tilewright.formats.gguf.types import GGMLType

__all__ = ["FORMATS", "pack_scales_6bit", "unpack_scales_6bit"]


class Q2_K:
    """``{ u8 scales[16]; u8 qs[64]; f16 d; f16 dmin; }``: 16 sub-blocks of 16.

    value = (d * scale) * q - (dmin * min); a scale byte has the scale low and the min high.
    """

    @staticmethod
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        n = len(blocks)
        scales = blocks[:, :16]
        d = f16_column(blocks, 80) * (scales & 0x0F).astype(np.float32)
        m = f16_column(blocks, 82) * (scales >> 4).astype(np.float32)
        values = _crumbs(blocks[:, 16:80]).astype(np.float32).reshape(n, 16, 16)
        values *= d[:, :, None]
        values -= m[:, :, None]
        return values.reshape(n, 256)

    @staticmethod
    def quantize_blocks(values: np.ndarray) -> np.ndarray:
        n = len(values)
        d, dmin, sc, m, q = fit.fit_affine(values, sub_block=16, top=3, scale_top=15)
        codes = _pack_crumbs(q.reshape(n, 256))
        return np.concatenate([sc | (m << 4), codes, f16_bytes(d), f16_bytes(dmin)], axis=1)


class Q3_K:
    """``{ u8 hmask[32]; u8 qs[64]; u8 scales[12]; f16 d; }``: 16 sub-blocks of 16.

    value = (d * (scale - 32)) * (q - 4); ``hmask`` has the third bits, scales are 6 bits.
    """

    @staticmethod
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        n = len(blocks)
        packed = blocks[:, 96:108]
        low = nibbles(packed[:, :8], 8)
        high = _crumbs(packed[:, 8:], 4)
        scales = (low | (high << 4)).astype(np.float32) - np.float32(32)
        codes = _crumbs(blocks[:, 32:96])
        codes |= _bit_planes(blocks[:, :32]) << 2
        values = codes.astype(np.float32).reshape(n, 16, 16)
        values -= np.float32(4)
        values *= (f16_column(blocks, 108) * scales)[:, :, None]
        return values.reshape(n, 256)

    @staticmethod
    def quantize_blocks(values: np.ndarray) -> np.ndarray:
        n = len(values)
        d, sc, q = fit.fit_symmetric(values, sub_block=16, half=4, scale_half=32)
        scales = (sc.astype(np.int16) + 32).astype(np.uint8)
        packed = [pack_nibbles(scales & 0x0F, 8), _pack_crumbs(scales >> 4, 4)]
        codes = q.reshape(n, 256)
        fields = [_pack_bit_planes(codes >> 2), _pack_crumbs(codes & 3), *packed, f16_bytes(d)]
        return np.concatenate(fields, axis=1)


class Q4_K:
    """``{ f16 d; f16 dmin; u8 scales[12]; u8 qs[128]; }``: 8 sub-blocks of 32.

    value = (d * scale) * q - (dmin * min), scale and min of 6 bits.
    """

    @staticmethod
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        return _affine_values(blocks, nibbles(blocks[:, 16:], 32))

    @staticmethod
    def quantize_blocks(values: np.ndarray) -> np.ndarray:
        d, dmin, sc, m, q = fit.fit_affine(values, sub_block=32, top=15, scale_top=63)
        codes = pack_nibbles(q.reshape(len(values), 256), 32)
        return np.concatenate([f16_bytes(d), f16_bytes(dmin), pack_scales_6bit(sc, m), codes], 1)


class Q5_K:
    """``{ f16 d; f16 dmin; u8 scales[12]; u8 qh[32]; u8 qs[128]; }``: Q4_K with a fifth bit."""

    @staticmethod
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        codes = _bit_planes(blocks[:, 16:48])
        codes <<= 4
        codes |= nibbles(blocks[:, 48:], 32)
        return _affine_values(blocks, codes)

    @staticmethod
    def quantize_blocks(values: np.ndarray) -> np.ndarray:
        d, dmin, sc, m, q = fit.fit_affine(values, sub_block=32, top=31, scale_top=63)
        codes = q.reshape(len(values), 256)
        planes = [_pack_bit_planes(codes >> 4), pack_nibbles(codes & 0x0F, 32)]
        return np.concatenate(
            [f16_bytes(d), f16_bytes(dmin), pack_scales_6bit(sc, m), *planes], axis=1
        )


class Q6_K:
    """``{ u8 ql[128]; u8 qh[64]; i8 scales[16]; f16 d; }``: 16 sub-blocks of 16.

    value = (d * scale) * (q - 32).
    """

    @staticmethod
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        n = len(blocks)
        scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
        codes = _crumbs(blocks[:, 128:192])
        codes <<= 4
        codes |= nibbles(blocks[:, :128], 64)
        values = codes.astype(np.float32).reshape(n, 16, 16)
        values -= np.float32(32)
        values *= (f16_column(blocks, 208) * scales)[:, :, None]
        return values.reshape(n, 256)

    @staticmethod
    def quantize_blocks(values: np.ndarray) -> np.ndarray:
        d, sc, q = fit.fit_symmetric(values, sub_block=16, half=32, scale_half=128)
        codes = q.reshape(len(values), 256)
        planes = [pack_nibbles(codes & 0x0F, 64), _pack_crumbs(codes >> 4)]
        return np.concatenate([*planes, sc.view(np.uint8), f16_bytes(d)], axis=1)


class Q8_K:
    """``{ f32 d; i8 qs[256]; i16 bsums[16]; }``: value = d * q; the sums serve dot products."""

    @staticmethod
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        values = blocks[:, 4:260].view(np.int8).astype(np.float32)
        values *= np.ascontiguousarray(blocks[:, :4]).view("<f4")
        return values


def unpack_scales_6bit(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and mins (uint8 below 64, both ``(n, 8)``) from the 12 bytes of Q4_K and Q5_K.

    Bytes 0-3: scales 0-3, bytes 4-7: mins 0-3, their top two bits the top bits of scales and mins
    4-7; bytes 8-11: the low nibbles of scales (low half) and mins (high half) 4-7.
    """
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([a & 0x3F, (c & 0x0F) | ((a >> 2) & 0x30)], axis=1)
    mins = np.concatenate([b & 0x3F, (c >> 4) | ((b >> 2) & 0x30)], axis=1)
    return scales, mins


def pack_scales_6bit(scales: np.ndarray, mins: np.ndarray) -> np.ndarray:
    """The inverse of :func:`unpack_scales_6bit`: ``(n, 12)``."""
    high_scales, high_mins = scales[:, 4:], mins[:, 4:]
    return np.concatenate(
        [
            scales[:, :4] | ((high_scales >> 4) << 6),
            mins[:, :4] | ((high_mins >> 4) << 6),
            (high_scales & 0x0F) | ((high_mins & 0x0F) << 4),
        ],
        axis=1,
    )


def _affine_values(blocks: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Values (n, 256) of Q4_K or Q5_K blocks from their codes."""
    n = len(blocks)
    scales, mins = unpack_scales_6bit(blocks[:, 4:16])
    values = codes.astype(np.float32).reshape(n, 8, 32)
    values *= (f16_column(blocks, 0) * scales.astype(np.float32))[:, :, None]
    values -= (f16_column(blocks, 2) * mins.astype(np.float32))[:, :, None]
    return values.reshape(n, 256)


def _crumbs(packed: np.ndarray, group: int = 32) -> np.ndarray:
    """2-bit fields: each ``group`` bytes hold 4 * group values, lowest bits first; (n, 4 * b)."""
    n, b = packed.shape
    source = packed.reshape(n, b // group, group)
    values = np.empty((n, b // group, 4, group), np.uint8)
    for i in range(4):
        np.right_shift(source, 2 * i, out=values[:, :, i])
    values &= 3
    return values.reshape(n, 4 * b)


def _pack_crumbs(values: np.ndarray, group: int = 32) -> np.ndarray:
    n, count = values.shape
    fields = values.reshape(n, count // (4 * group), 4, group)
    packed = fields[:, :, 0].copy()
    for i in range(1, 4):
        packed |= fields[:, :, i] << (2 * i)
    return packed.reshape(n, count // 4)


def _bit_planes(packed: np.ndarray) -> np.ndarray:
    """Bit i of byte j of 32 is value 32 * i + j: uint8 0 or 1, (n, 256)."""
    shifts = np.arange(8, dtype=np.uint8)[None, :, None]
    return ((packed[:, None, :] >> shifts) & np.uint8(1)).reshape(len(packed), 256)


def _pack_bit_planes(bits: np.ndarray) -> np.ndarray:
    planes = bits.reshape(len(bits), 8, 32)
    packed = planes[:, 0].copy()
    for i in range(1, 8):
        packed |= planes[:, i] << i
    return packed


FORMATS = (
    BlockFormat(GGMLType.Q2_K, Q2_K.dequantize_blocks, Q2_K.quantize_blocks),
    BlockFormat(GGMLType.Q3_K, Q3_K.dequantize_blocks, Q3_K.quantize_blocks),
    BlockFormat(GGMLType.Q4_K, Q4_K.dequantize_blocks, Q4_K.quantize_blocks),
    BlockFormat(GGMLType.Q5_K, Q5_K.dequantize_blocks, Q5_K.quantize_blocks),
    BlockFormat(GGMLType.Q6_K, Q6_K.dequantize_blocks, Q6_K.quantize_blocks),
    BlockFormat(GGMLType.Q8_K, Q8_K.dequantize_blocks),
)

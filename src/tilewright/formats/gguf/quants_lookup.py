"""Types whose codes index a table of values, and the ternary ones.

Layouts and tables: ``block_iq4_nl``, ``block_iq4_xs``, ``block_mxfp4``, ``block_nvfp4``,
``block_tq1_0``, ``block_tq2_0``, ``kvalues_iq4nl`` and ``kvalues_mxfp4`` in ggml-common.h. The IQ1,
IQ2 and IQ3 types (codebooks of up to 2,048 vectors) are recognised but not dequantised.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tilewright.formats.gguf.blocks import BlockFormat, f16_bytes, f16_column, nibbles, pack_nibbles
from tilewright.formats.gguf.types import GGMLType

__all__ = ["FORMATS", "IQ4_VALUES"]

IQ4_VALUES: Final = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The 16 values of IQ4_NL and IQ4_XS codes, closer together near zero."""

_FP4_VALUES: Final = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""E2M1 values, doubled to be integers; the scales below are halved in return."""


class IQ4_NL:
    """``{ f16 d; u8 qs[16]; }``: value = d * IQ4_VALUES[q]."""

    @staticmethod
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        values = np.array(IQ4_VALUES, np.float32)[nibbles(blocks[:, 2:], 16)]
        values *= f16_column(blocks, 0)
        return values

    @staticmethod
    def quantize_blocks(values: np.ndarray) -> np.ndarray:
        """Nearest table values; the scale is the best in the least-squares sense of 15 tried.

        As ``quantize_row_iq4_nl_impl`` in ggml-quants.c, each value weighted by its square.
        """
        table = np.array(IQ4_VALUES, np.float32)
        weights = values * values
        at = np.abs(values).argmax(axis=1, keepdims=True)
        peak = np.take_along_axis(values, at, axis=1)
        best = np.zeros_like(peak)
        scale = np.zeros_like(peak)
        for step in range(-7, 8):
            inverse = np.where(peak == 0, 0, (step + table[0]) / peak).astype(np.float32)
            picked = table[_nearest_iq4(values * inverse)]
            wq = weights * picked
            sum_qx = (wq * values).sum(axis=1, keepdims=True)
            sum_qq = (wq * picked).sum(axis=1, keepdims=True)
            gain = np.where(sum_qq > 0, sum_qx * sum_qx / sum_qq, 0)
            better = gain > best
            best = np.where(better, gain, best)
            scale = np.where(better, sum_qx / sum_qq, scale)
        inverse = np.where(scale == 0, 0, 1 / scale).astype(np.float32)
        codes = _nearest_iq4(values * inverse)
        return np.concatenate([f16_bytes(scale), pack_nibbles(codes, 16)], axis=1)


class IQ4_XS:
    """``{ f16 d; u16 scales_h; u8 scales_l[4]; u8 qs[128]; }``: 8 sub-blocks of 32.

    value = (d * (scale - 32)) * IQ4_VALUES[q], scales of 6 bits.
    """

    @staticmethod
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        n = len(blocks)
        high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2")
        high = (high >> np.arange(0, 16, 2, dtype=np.uint16)) & 3
        scales = nibbles(blocks[:, 4:8], 1).astype(np.float32)
        scales += np.float32(16) * high.astype(np.float32) - np.float32(32)
        values = np.array(IQ4_VALUES, np.float32)[nibbles(blocks[:, 8:], 16)].reshape(n, 8, 32)
        values *= (f16_column(blocks, 0) * scales)[:, :, None]
        return values.reshape(n, 256)


class MXFP4:
    """``{ u8 e; u8 qs[16]; }``: value = 2 ** (e - 128) * table[q] (OCP microscaling)."""

    @staticmethod
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        e = blocks[:, :1].astype(np.uint32)
        subnormal = np.uint32(0x00200000) << np.minimum(e, 1)
        bits = np.where(e < 2, subnormal, (np.maximum(e, 1) - 1) << np.uint32(23))
        values = np.array(_FP4_VALUES, np.float32)[nibbles(blocks[:, 1:], 16)]
        values *= bits.astype(np.uint32).view(np.float32)
        return values


class NVFP4:
    """``{ u8 d[4]; u8 qs[32]; }``: 4 sub-blocks of 16, scales in unsigned E4M3."""

    @staticmethod
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        n = len(blocks)
        d = blocks[:, :4]
        exponent = ((d >> 3) & 0x0F).astype(np.int32)
        mantissa = (d & 7).astype(np.float32)
        normal = np.ldexp(1 + mantissa / 8, exponent - 8)
        scales = np.where(exponent == 0, np.ldexp(mantissa, -10), normal)
        scales = np.where((d == 0) | (d == 0x7F), 0, scales).astype(np.float32)
        values = np.array(_FP4_VALUES, np.float32)[nibbles(blocks[:, 4:], 8)].reshape(n, 4, 16)
        values *= scales[:, :, None]
        return values.reshape(n, 64)


class TQ1_0:
    """``{ u8 qs[48]; u8 qh[4]; f16 d; }``: value = d * (trit - 1), five trits to a byte.

    A byte is ceil(256 / 243 * (base-3 number)); multiplying by 3 ** i (mod 256) brings trit i to
    the top, where another multiplication by 3 pushes it out.
    """

    @staticmethod
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        n = len(blocks)
        powers = np.array([1, 3, 9, 27, 81], np.uint8)[None, :, None]
        parts = [
            blocks[:, None, :32] * powers,
            blocks[:, None, 32:48] * powers,
            blocks[:, None, 48:52] * powers[:, :4],
        ]
        shifted = np.concatenate([part.reshape(n, -1) for part in parts], axis=1)
        trits = (shifted.astype(np.uint16) * 3) >> 8
        values = trits.astype(np.float32)
        values -= np.float32(1)
        values *= f16_column(blocks, 52)
        return values


class TQ2_0:
    """``{ u8 qs[64]; f16 d; }``: value = d * (q - 1), q of 2 bits."""

    @staticmethod
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        n = len(blocks)
        shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
        codes = (blocks[:, :64].reshape(n, 2, 1, 32) >> shifts) & np.uint8(3)
        values = codes.reshape(n, 256).astype(np.float32)
        values -= np.float32(1)
        values *= f16_column(blocks, 64)
        return values


def _nearest_iq4(values: np.ndarray) -> np.ndarray:
    """Codes of the nearest IQ4_VALUES, uint8; a value half way between two takes the upper.

    Half way is always a multiple of 1/2, so a table over steps of 1/2 decides.
    """
    levels = np.array(IQ4_VALUES, np.float32)
    edges = (levels[1:] + levels[:-1]) / 2
    lookup = np.searchsorted(edges, np.arange(-256, 256) / 2, side="right").astype(np.uint8)
    return lookup[np.clip(np.floor(2 * values) + 256, 0, 511).astype(np.int16)]


FORMATS = (
    BlockFormat(GGMLType.IQ4_NL, IQ4_NL.dequantize_blocks, IQ4_NL.quantize_blocks),
    BlockFormat(GGMLType.IQ4_XS, IQ4_XS.dequantize_blocks),
    BlockFormat(GGMLType.MXFP4, MXFP4.dequantize_blocks),
    BlockFormat(GGMLType.NVFP4, NVFP4.dequantize_blocks),
    BlockFormat(GGMLType.TQ1_0, TQ1_0.dequantize_blocks),
    BlockFormat(GGMLType.TQ2_0, TQ2_0.dequantize_blocks),
)

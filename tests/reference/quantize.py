"""Round-to-nearest quantisers for the block types that the ``gguf`` package only dequantises.

Not llama.cpp's searching quantisers: a scale (and minimum) per sub-block from the extremes, then
rounding. The blocks are valid and their values close to the weights, which is all the tests and
benchmarks need. Layouts: ``ggml-common.h``; values from ``gguf.quants.dequantize``, which
``test_reference.py`` checks against.
"""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
F32 = NDArray[np.float32]
Type = gguf.GGMLQuantizationType

IQ4_NL_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)


def quantize(weights: F32, kind: Type) -> NDArray[Any]:
    """Blocks of ``weights`` (..., n), n a multiple of the type's block, as (..., bytes) uint8.

    F32 and F16 come back as float arrays of the same shape.
    """
    own = {
        Type.Q2_K: q2_k,
        Type.Q3_K: q3_k,
        Type.Q4_K: q4_k,
        Type.Q5_K: q5_k,
        Type.Q6_K: q6_k,
        Type.IQ4_NL: iq4_nl,
    }
    if kind is Type.F32:
        return np.ascontiguousarray(weights, np.float32)
    if kind is Type.F16:
        return weights.astype(np.float16)
    if kind not in own:
        return gguf.quants.quantize(np.ascontiguousarray(weights, np.float32), kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = own[kind](weights.reshape(-1, block).astype(np.float32))
    return blocks.reshape(*weights.shape[:-1], weights.shape[-1] // block * size)


def half(x: F32) -> tuple[Bytes, F32]:
    """float16 bytes (..., 2) of ``x`` and the float32 values they hold."""
    stored = x.astype(np.float16)
    return stored[..., None].view(np.uint8), stored.astype(np.float32)


def divide(a: F32, b: F32) -> F32:
    return np.divide(
        a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape), np.float32), where=b != 0
    )


def affine(x: F32, top: int, scale_top: int) -> tuple[NDArray[Any], ...]:
    """q * (d * scale) - dmin * minimum for sub-blocks x (blocks, subs, n).

    Returns d and dmin bytes (blocks, 2), scale and minimum (blocks, subs) and q (blocks, subs, n).
    """
    low = np.minimum(x.min(axis=-1), 0)
    step = (np.maximum(x.max(axis=-1), 0) - low) / top
    d_bytes, d = half(step.max(axis=-1) / scale_top)
    m_bytes, m = half((-low).max(axis=-1) / scale_top)
    scale = np.clip(np.rint(divide(step, d[:, None])), 0, scale_top)
    minimum = np.clip(np.rint(divide(-low, m[:, None])), 0, scale_top)
    shifted = x + (m[:, None] * minimum)[..., None]
    q = np.clip(np.rint(divide(shifted, (d[:, None] * scale)[..., None])), 0, top)
    return d_bytes, m_bytes, scale.astype(np.uint8), minimum.astype(np.uint8), q.astype(np.uint8)


def symmetric(x: F32, low: int, high: int, scale_top: int) -> tuple[NDArray[Any], ...]:
    """q * (d * scale), q in low..high: d bytes, int8 scale (blocks, subs), int8 q.

    The extreme of a sub-block falls on ``low``, so scales have both signs as in real files.
    """
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    step = extreme / low
    d_bytes, d = half(np.abs(step).max(axis=-1) / scale_top)
    scale = np.clip(np.rint(divide(step, d[:, None])), -scale_top, scale_top)
    q = np.clip(np.rint(divide(x, (d[:, None] * scale)[..., None])), low, high)
    return d_bytes, scale.astype(np.int8), q.astype(np.int8)


def six_bit_pairs(scale: Bytes, minimum: Bytes) -> Bytes:
    """Eight 6-bit scales and minimums in the 12 bytes of Q4_K and Q5_K."""
    first = scale[:, :4] | (scale[:, 4:] >> 4) << 6
    second = minimum[:, :4] | (minimum[:, 4:] >> 4) << 6
    third = (scale[:, 4:] & 15) | (minimum[:, 4:] & 15) << 4
    return np.concatenate([first, second, third], axis=1)


def two_bits(q: Bytes) -> Bytes:
    """(blocks, 256) values 0..3 -> (blocks, 64): byte l of a half holds l, l+32, l+64, l+96."""
    q = q.reshape(-1, 2, 4, 32)
    return (q[:, :, 0] | q[:, :, 1] << 2 | q[:, :, 2] << 4 | q[:, :, 3] << 6).reshape(-1, 64)


def nibbles(q: Bytes) -> Bytes:
    """(blocks, 256) values 0..15 -> (blocks, 128): low nibbles 0..31 and high 32..63 of each 64."""
    q = q.reshape(-1, 4, 2, 32)
    return (q[:, :, 0] | q[:, :, 1] << 4).reshape(-1, 128)


def q2_k(x: F32) -> Bytes:
    d, m, scale, minimum, q = affine(x.reshape(-1, 16, 16), top=3, scale_top=15)
    return np.concatenate([scale | minimum << 4, two_bits(q), d, m], axis=1)


def q3_k(x: F32) -> Bytes:
    d, scale, q = symmetric(x.reshape(-1, 16, 16), -4, 3, scale_top=31)
    level = (q + 4).astype(np.uint8).reshape(-1, 8, 32)
    mask = np.bitwise_or.reduce((level >> 2) << np.arange(8, dtype=np.uint8)[None, :, None], axis=1)
    s = (scale + 32).astype(np.uint8)
    low = (s[:, :8] & 15) | (s[:, 8:] & 15) << 4
    top = (s >> 4).reshape(-1, 4, 4)
    high = top[:, 0] | top[:, 1] << 2 | top[:, 2] << 4 | top[:, 3] << 6
    return np.concatenate([mask, two_bits(level & 3), low, high, d], axis=1)


def q4_k(x: F32) -> Bytes:
    d, m, scale, minimum, q = affine(x.reshape(-1, 8, 32), top=15, scale_top=63)
    return np.concatenate([d, m, six_bit_pairs(scale, minimum), nibbles(q)], axis=1)


def q5_k(x: F32) -> Bytes:
    d, m, scale, minimum, q = affine(x.reshape(-1, 8, 32), top=31, scale_top=63)
    high = np.bitwise_or.reduce((q >> 4) << np.arange(8, dtype=np.uint8)[None, :, None], axis=1)
    return np.concatenate([d, m, six_bit_pairs(scale, minimum), high, nibbles(q & 15)], axis=1)


def q6_k(x: F32) -> Bytes:
    d, scale, q = symmetric(x.reshape(-1, 16, 16), -32, 31, scale_top=127)
    level = (q + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = np.stack([level[:, :, 0] & 15 | (level[:, :, 2] & 15) << 4,
                    level[:, :, 1] & 15 | (level[:, :, 3] & 15) << 4], axis=2)  # fmt: skip
    top = level >> 4
    high = top[:, :, 0] | top[:, :, 1] << 2 | top[:, :, 2] << 4 | top[:, :, 3] << 6
    return np.concatenate(
        [low.reshape(-1, 128), high.reshape(-1, 64), scale.view(np.uint8), d], axis=1
    )


def iq4_nl(x: F32) -> Bytes:
    d_bytes, d = half(np.abs(x).max(axis=-1) / 120)
    scaled = divide(x, d[:, None])
    middle = (IQ4_NL_VALUES[1:] + IQ4_NL_VALUES[:-1]) / 2
    q = np.searchsorted(middle, scaled).astype(np.uint8)
    return np.concatenate([d_bytes, q[:, :16] | q[:, 16:] << 4], axis=1)

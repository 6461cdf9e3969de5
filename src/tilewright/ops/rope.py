"""Rotary position embedding (Su et al. 2021) and the step from the QKV product to the cache.

Angles are computed in float64 once, at load, into f32 tables of cosines and sines
(positions, rotary_dim / 2). ``interleaved`` rotates the pairs (2i, 2i + 1), as llama's GGUF weights
want; otherwise the pairs are (i, i + rotary_dim / 2), as in GPT-NeoX. Dimensions past
``rotary_dim`` pass unchanged.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

import math

import numpy as np

from tilewright.errors import ShapeError
from tilewright.lang import Array, Const, fma, program_id
from tilewright.ops.calls import KernelCall
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = [
    "by_heads",
    "rope_calls",
    "rope_frequencies",
    "rope_reference",
    "rope_tables",
    "rotate_head",
    "store_key",
    "yarn_frequencies",
]


def rope_frequencies(
    rotary_dim: int,
    base: float = 10000.0,
    *,
    scale: float = 1.0,
    factors: np.ndarray | None = None,
) -> np.ndarray:
    """Radians per position of each pair, float64 (rotary_dim / 2,): ``base^(-2i / rotary_dim)``.

    Args:
        rotary_dim: dimensions that rotate, even.
        base: ``rope.freq_base``.
        scale: linear position scaling, the factor positions are divided by (Chen et al. 2023).
        factors: ``rope_freqs.weight`` (rotary_dim / 2,), Llama 3's per-pair divisors.
    """
    if rotary_dim < 2 or rotary_dim % 2:
        raise ShapeError(f"RoPE rotates pairs: {rotary_dim} dimensions are not a number of pairs")
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
    frequencies = np.power(np.float64(base), -exponents) / scale
    if factors is not None:
        if factors.shape != frequencies.shape:
            raise ShapeError(f"rope_freqs has shape {factors.shape}, wants {frequencies.shape}")
        frequencies = frequencies / factors.astype(np.float64)
    return np.asarray(frequencies)


def yarn_frequencies(
    rotary_dim: int,
    base: float,
    factor: float,
    original_context: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> np.ndarray:
    """Frequencies after YaRN (Peng et al. 2023): fast pairs as they are, slow ones interpolated."""
    plain = rope_frequencies(rotary_dim, base)

    def pair(rotations: float) -> float:
        """The pair that turns ``rotations`` times within the original context."""
        turns = original_context / (rotations * 2 * math.pi)
        return rotary_dim * math.log(turns) / (2 * math.log(base))

    low = max(math.floor(pair(beta_fast)), 0)
    high = min(math.ceil(pair(beta_slow)), rotary_dim - 1)
    ramp = (np.arange(rotary_dim // 2) - low) / max(high - low, 0.001)
    keep = 1.0 - np.clip(ramp, 0.0, 1.0)
    return np.asarray(plain / factor * (1 - keep) + plain * keep)


def rope_tables(
    positions: int, frequencies: np.ndarray, magnitude: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin), f32 (positions, pairs); angles in float64.

    ``magnitude`` multiplies both (YaRN's attention factor).
    """
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies[None, :]
    return (
        (np.cos(angles) * magnitude).astype(np.float32),
        (np.sin(angles) * magnitude).astype(np.float32),
    )


def rope_reference(
    x: np.ndarray, positions: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool
) -> np.ndarray:
    """x (T, heads, head_dim) rotated, in float64, rounded once."""
    half = cos.shape[1]
    out = x.astype(np.float64)
    c, s = (t[positions].astype(np.float64)[:, None, :] for t in (cos, sin))
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    a, b = out[..., first].copy(), out[..., second].copy()
    out[..., first] = a * c - b * s
    out[..., second] = a * s + b * c
    return out.astype(np.float32)


def rotate(a, b, c, s):
    """(a, b) turned by the angle of (c, s); inline."""
    return fma(a, c, -(b * s)), fma(a, s, b * c)


def rotate_head(x, y, row, head, pos, cos, sin, HALF, HD, INTERLEAVED):
    """y[row, head] = rotated x[row, head] (rows of HD); inline."""
    c = cos[pos, 0:HALF]
    s = sin[pos, 0:HALF]
    if INTERLEAVED:
        a = x[row, head, 0 : 2 * HALF : 2]
        b = x[row, head, 1 : 2 * HALF + 1 : 2]
        first, second = rotate(a, b, c, s)
        y[row, head, 0 : 2 * HALF : 2] = first
        y[row, head, 1 : 2 * HALF + 1 : 2] = second
    else:
        a = x[row, head, 0:HALF]
        b = x[row, head, HALF : 2 * HALF]
        first, second = rotate(a, b, c, s)
        y[row, head, 0:HALF] = first
        y[row, head, HALF : 2 * HALF] = second
    if 2 * HALF < HD:
        y[row, head, 2 * HALF : HD] = x[row, head, 2 * HALF : HD]


@kernel
def rope(
    x: Array,
    positions: Array,
    cos: Array,
    sin: Array,
    y: Array,
    HALF: Const,
    HD: Const,
    INTERLEAVED: Const,
):
    """Rotate one head of one token per program: x, y (T, heads, HD)."""
    row = program_id(1)
    head = program_id(0)
    rotate_head(x, y, row, head, positions[row], cos, sin, HALF, HD, INTERLEAVED)


def rope_calls(
    x: Buffer, positions: Buffer, cos: Buffer, sin: Buffer, y: Buffer, interleaved: bool
) -> list[KernelCall]:
    """Rotate x (T, heads, head_dim) into y; positions i32 (T,), tables (positions, pairs) f32.

    y must not overlap x.
    """
    tokens, heads, head_dim = x.shape
    consts = {"HALF": cos.shape[1], "HD": head_dim, "INTERLEAVED": interleaved}
    return [KernelCall(rope, (heads, tokens), (x, positions, cos, sin, y), consts)]


# --- the QKV product to rotated queries and the cache --------------------------------------------


def store_key(x, keys, row, head, kv, page, slot, pos, cos, sin, HALF, HD, INTERLEAVED):
    """Rotate x[row, head] straight into the cache's columns; inline."""
    if HALF > 0:
        c = cos[pos, 0:HALF]
        s = sin[pos, 0:HALF]
        if INTERLEAVED:
            a = x[row, head, 0 : 2 * HALF : 2]
            b = x[row, head, 1 : 2 * HALF + 1 : 2]
            first, second = rotate(a, b, c, s)
            keys[page, kv, 0 : 2 * HALF : 2, slot] = first
            keys[page, kv, 1 : 2 * HALF + 1 : 2, slot] = second
        else:
            a = x[row, head, 0:HALF]
            b = x[row, head, HALF : 2 * HALF]
            first, second = rotate(a, b, c, s)
            keys[page, kv, 0:HALF, slot] = first
            keys[page, kv, HALF : 2 * HALF, slot] = second
    if 2 * HALF < HD:
        keys[page, kv, 2 * HALF : HD, slot] = x[row, head, 2 * HALF : HD]


def by_heads(x: Buffer, head_dim: int) -> Buffer:
    """(T, heads * head_dim) seen as (T, heads, head_dim)."""
    heads = int(x.shape[1]) // head_dim
    return x.view((x.shape[0], heads, head_dim), (x.strides[0], head_dim, 1))

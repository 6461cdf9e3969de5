"""The generic way for block formats: dequantise the file's own rows, then multiply in f32.

One inline function per ggml type turns 32 values of a block into f32, with the same operations in
the same order as ggml's ``dequantize_row_*`` (and the ``gguf`` package), so values are equal bit
for bit. They serve embedding lookups of every type and matrix products of the types that have no
integer kernel. Block layouts: ``ggml-common.h``.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.dtypes import DType, bf16, f16, f32, i8, i32, u16, u32
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.lang import (
    Array,
    Arrays,
    Const,
    Inline,
    arange,
    bitcast,
    concatenate,
    dot,
    expand_dims,
    full,
    program_id,
    scratch,
    unroll,
    where,
    zeros,
)
from tilewright.ops.calls import KernelCall
from tilewright.ops.packed import PANEL, PackedMatrix, block_layout
from tilewright.ops.quantized import no_epilogue
from tilewright.runtime.buffers import Buffer, from_array
from tilewright.runtime.launch import kernel

__all__ = [
    "BLOCKS",
    "PLAIN",
    "BlockFormat",
    "dequantize_rows",
    "generic_matmul_calls",
    "lookup_calls",
]

# Each *_part function: values 32 * part .. 32 * part + 31 of the block at byte ``at``, for the R
# rows from ``row`` on: an f32 tile (R, 32). ``part`` is a run-time number: to unroll the eight
# parts of a block takes a second to compile.


def byte(raw, row, R, at):
    """The byte at ``at`` of each row, i32 (R, 1)."""
    return raw[row : row + R, at : at + 1].to(i32)


def half(raw, row, R, at):
    """The f16 at byte ``at`` of each row, as f32 (R, 1)."""
    bits = byte(raw, row, R, at) | (byte(raw, row, R, at + 1) << 8)
    return bitcast(bits.to(u16), f16).to(f32)


def word(raw, row, R, at):
    """The little-endian u32 at byte ``at`` of each row, (R, 1)."""
    low = byte(raw, row, R, at) | (byte(raw, row, R, at + 1) << 8)
    high = byte(raw, row, R, at + 2) | (byte(raw, row, R, at + 3) << 8)
    return bitcast(low | (high << 16), u32)


def signed(raw, row, R, at):
    """The i8 at byte ``at`` of each row, as f32 (R, 1)."""
    return bitcast(raw[row : row + R, at : at + 1], i8).to(f32)


def nibbles(raw, row, R, at):
    """16 bytes -> 32 values: all low nibbles, then all high ones; i32 (R, 32)."""
    q = raw[row : row + R, at : at + 16].to(i32)
    return concatenate((q & 15, q >> 4), 1)


def fifth_bits(raw, row, R, at):
    """Bit i of the u32 at byte ``at`` for value i, worth 16; i32 (R, 32)."""
    bits = word(raw, row, R, at) >> expand_dims(arange(0, 32).to(u32), 0)
    return (bits & 1).to(i32) << 4


def bits_at(raw, row, R, at, shift, mask):
    """32 bytes, shifted right by a run-time amount and masked; i32 (R, 32)."""
    return (raw[row : row + R, at : at + 32].to(i32) >> shift.to(i32)) & mask


def by_sixteen(low, high, q):
    """q (R, 32) f32 times a factor (R, 1) for each half."""
    return concatenate((low * q[:, 0:16], high * q[:, 16:32]), 1)


def q4_0_part(raw, row, R, at, part):
    return half(raw, row, R, at) * (nibbles(raw, row, R, at + 2) - 8).to(f32)


def q4_1_part(raw, row, R, at, part):
    scaled = half(raw, row, R, at) * nibbles(raw, row, R, at + 4).to(f32)
    return scaled + half(raw, row, R, at + 2)


def q5_0_part(raw, row, R, at, part):
    q = (nibbles(raw, row, R, at + 6) | fifth_bits(raw, row, R, at + 2)) - 16
    return half(raw, row, R, at) * q.to(f32)


def q5_1_part(raw, row, R, at, part):
    q = nibbles(raw, row, R, at + 8) | fifth_bits(raw, row, R, at + 4)
    return half(raw, row, R, at) * q.to(f32) + half(raw, row, R, at + 2)


def q8_0_part(raw, row, R, at, part):
    return bitcast(raw[row : row + R, at + 2 : at + 34], i8).to(f32) * half(raw, row, R, at)


IQ4_NL_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def iq4_nl_part(raw, row, R, at, part):
    q = nibbles(raw, row, R, at + 2)
    value = full((R, 32), IQ4_NL_VALUES[0], i32)
    for i in unroll(range(1, 16)):
        value = where(q >= i, IQ4_NL_VALUES[i], value)
    return half(raw, row, R, at) * value.to(f32)


def q2_k_part(raw, row, R, at, part):
    d = half(raw, row, R, at + 80)
    dmin = half(raw, row, R, at + 82)
    a = byte(raw, row, R, at + 2 * part)
    b = byte(raw, row, R, at + 2 * part + 1)
    q = bits_at(raw, row, R, at + 16 + 32 * (part // 4), 2 * (part % 4), 3).to(f32)
    low = (d * (a & 15).to(f32)) * q[:, 0:16] - dmin * (a >> 4).to(f32)
    high = (d * (b & 15).to(f32)) * q[:, 16:32] - dmin * (b >> 4).to(f32)
    return concatenate((low, high), 1)


def q3_k_scale(raw, row, R, at, i):
    """Scale i of 16: six bits, four in bytes 96..103, two in bytes 104..107; f32 (R, 1)."""
    low = (byte(raw, row, R, at + 96 + i % 8) >> (4 * (i // 8)).to(i32)) & 15
    high = (byte(raw, row, R, at + 104 + i % 4) >> (2 * (i // 4)).to(i32)) & 3
    return ((low | (high << 4)) - 32).to(f32)


def q3_k_part(raw, row, R, at, part):
    d = half(raw, row, R, at + 108)
    low = bits_at(raw, row, R, at + 32 + 32 * (part // 4), 2 * (part % 4), 3)
    kept = bits_at(raw, row, R, at, part, 1)  # a set bit means: nothing to subtract
    q = (low - ((kept ^ 1) << 2)).to(f32)
    first = d * q3_k_scale(raw, row, R, at, 2 * part)
    return by_sixteen(first, d * q3_k_scale(raw, row, R, at, 2 * part + 1), q)


def six_bit_scale(raw, row, R, at, part):
    """Scale ``part`` of 8 in the 12 packed bytes at ``at`` (Q4_K, Q5_K); f32 (R, 1)."""
    plain = byte(raw, row, R, at + part % 4)
    low = byte(raw, row, R, at + 8 + part % 4) & 15
    return where(part < 4, plain & 63, low | ((plain >> 2) & 48)).to(f32)


def six_bit_min(raw, row, R, at, part):
    """Minimum ``part`` of 8 in the 12 packed bytes at ``at`` (Q4_K, Q5_K); f32 (R, 1)."""
    plain = byte(raw, row, R, at + 4 + part % 4)
    low = byte(raw, row, R, at + 8 + part % 4) >> 4
    return where(part < 4, plain & 63, low | ((plain >> 2) & 48)).to(f32)


def q4_k_part(raw, row, R, at, part):
    d = half(raw, row, R, at) * six_bit_scale(raw, row, R, at + 4, part)
    m = half(raw, row, R, at + 2) * six_bit_min(raw, row, R, at + 4, part)
    q = bits_at(raw, row, R, at + 16 + 32 * (part // 2), 4 * (part % 2), 15)
    return d * q.to(f32) - m


def q5_k_part(raw, row, R, at, part):
    d = half(raw, row, R, at) * six_bit_scale(raw, row, R, at + 4, part)
    m = half(raw, row, R, at + 2) * six_bit_min(raw, row, R, at + 4, part)
    low = bits_at(raw, row, R, at + 48 + 32 * (part // 2), 4 * (part % 2), 15)
    high = bits_at(raw, row, R, at + 16, part, 1)
    return d * (low | (high << 4)).to(f32) - m


def q6_k_part(raw, row, R, at, part):
    d = half(raw, row, R, at + 208)
    b = part % 4
    low = bits_at(raw, row, R, at + 64 * (part // 4) + 32 * (b % 2), 4 * (b // 2), 15)
    high = bits_at(raw, row, R, at + 128 + 32 * (part // 4), 2 * b, 3)
    q = ((low | (high << 4)) - 32).to(f32)
    first = d * signed(raw, row, R, at + 192 + 2 * part)
    return by_sixteen(first, d * signed(raw, row, R, at + 192 + 2 * part + 1), q)


@dataclass(frozen=True)
class BlockFormat:
    """How to read one block type: values and bytes per block, and the function for 32 values."""

    values: int
    nbytes: int
    part: Callable[..., Any]


_PARTS: Mapping[str, Callable[..., Any]] = {
    "q4_0": q4_0_part,
    "q4_1": q4_1_part,
    "q5_0": q5_0_part,
    "q5_1": q5_1_part,
    "q8_0": q8_0_part,
    "iq4_nl": iq4_nl_part,
    "q2_k": q2_k_part,
    "q3_k": q3_k_part,
    "q4_k": q4_k_part,
    "q5_k": q5_k_part,
    "q6_k": q6_k_part,
}
BLOCKS: Mapping[str, BlockFormat] = {
    name: BlockFormat(*block_layout(name), part) for name, part in _PARTS.items()
}
PLAIN: Mapping[str, DType] = {"f32": f32, "f16": f16, "bf16": bf16}


# --- rows by id ----------------------------------------------------------------------------------


@kernel
def lookup_blocks(ids: Array, raw: Array, y: Array, VALUES: Const, BYTES: Const, part: Inline):
    """One block of row ids[t] of raw (N, row_bytes) per program, as f32 into y (T, K)."""
    t = program_id(1)
    block = program_id(0)
    row = ids[t]
    for p in range(VALUES // 32):
        at = block * VALUES + 32 * p
        y[t : t + 1, at : at + 32] = part(raw, row, 1, block * BYTES, p)


@kernel
def lookup_plain(ids: Array, table: Array, y: Array):
    """256 values of row ids[t] of table (N, K) per program, as f32 into y (T, K)."""
    t = program_id(1)
    start = program_id(0) * 256
    row = ids[t]
    for j in range(start, start + 256, 64):
        y[t, j : j + 64] = table[row, j : j + 64].to(f32)


def lookup_calls(ids: Buffer, raw: Buffer, type: str, y: Buffer) -> list[KernelCall]:
    """``y[t] = dequantised row ids[t]``.

    Args:
        ids: i32 (T,), each within the rows (checked by the caller; others read as zero bytes).
        raw: u8 (N, row_bytes), rows in the file's layout, contiguous.
        type: ggml type name, any case.
        y: f32 (T, K).
    """
    name = type.lower()
    tokens, k = int(y.shape[0]), int(y.shape[1])
    block, nbytes = block_layout(name)
    if k % block or int(raw.shape[1]) != k // block * nbytes or int(ids.shape[0]) != tokens:
        raise ShapeError(
            f"lookup: rows of {raw.shape[1]} bytes of {type} and {ids.shape[0]} ids do not give "
            f"y {tuple(y.shape)}"
        )
    if name in PLAIN:
        dtype = PLAIN[name]
        table = raw.view((raw.shape[0], k), (raw.strides[0] // dtype.nbytes, 1), 0, dtype)
        return [KernelCall(lookup_plain, (-(-k // 256), tokens), (ids, table, y), {})]
    fmt = BLOCKS[name]
    consts = {"VALUES": fmt.values, "BYTES": fmt.nbytes, "part": fmt.part}
    return [KernelCall(lookup_blocks, (k // fmt.values, tokens), (ids, raw, y), consts)]


def dequantize_rows(raw: np.ndarray, type: str, k: int) -> np.ndarray:
    """All rows of raw (N, row_bytes) u8 as float32 (N, k)."""
    rows = np.ascontiguousarray(raw)
    out = np.empty((rows.shape[0], k), np.float32)
    ids = np.arange(rows.shape[0], dtype=np.int32)
    for call in lookup_calls(from_array(ids), from_array(rows), type, from_array(out)):
        call.kernel[call.grid](*call.args, **call.consts)
    return out


# --- matrix product ------------------------------------------------------------------------------


def _tile(x, wide, y, extras, t, n0, k0, K, KC, MT, epilogue):
    """Add k0 : k0 + KC to MT rows of y; partial sums wait in y itself."""
    acc = zeros((MT, 32), f32)
    if k0 > 0:
        acc = y[t : t + MT, n0 : n0 + 32]
    acc = dot(x[t : t + MT, k0 : k0 + KC], wide[0:KC, 0:32], acc)
    if k0 + KC >= K:
        acc = epilogue(acc, t, n0, extras)
    y[t : t + MT, n0 : n0 + 32] = acc


_ROWS = 8  # rows of W that are dequantised and transposed together


@kernel
def generic_matmul(
    x: Array,
    raw: Array,
    y: Array,
    extras: Arrays,
    K: Const,
    KC: Const,
    MT: Const,
    VALUES: Const,
    BYTES: Const,
    ROWS: Const,
    part: Inline,
    epilogue: Inline,
):
    """y (T, N): 32 rows of W per program, KC values at a time in f32 for all tokens."""
    n0 = program_id(0) * 32
    tokens = x.shape[0]
    tiled = tokens // MT * MT
    wide = scratch((KC, 32), f32)
    for k0 in range(0, K, KC):
        for r in range(0, 32, ROWS):
            for b in range(KC // VALUES):
                at = (k0 // VALUES + b) * BYTES
                for p in range(VALUES // 32):
                    k = b * VALUES + 32 * p
                    wide[k : k + 32, r : r + ROWS] = part(raw, n0 + r, ROWS, at, p).T
        for t in range(0, tiled, MT):
            _tile(x, wide, y, extras, t, n0, k0, K, KC, MT, epilogue)
        for t in range(tiled, tokens):
            _tile(x, wide, y, extras, t, n0, k0, K, KC, 1, epilogue)


def generic_matmul_calls(
    weight: PackedMatrix,
    x: Buffer,
    y: Buffer,
    epilogue: Callable[..., Any] | None = None,
    extras: Sequence[Buffer] = (),
) -> list[KernelCall]:
    """``y = epilogue(x @ W^T)`` for any block format; x f32 (T, k), y f32 (T, n)."""
    if weight.format not in BLOCKS:
        raise UnsupportedError(f"no generic product for weights of type {weight.format}")
    fmt = BLOCKS[weight.format]
    tokens = int(x.shape[0])
    blocks = weight.k // fmt.values
    most = max(1, 256 // fmt.values)
    chunk = fmt.values * next(c for c in range(min(most, blocks), 0, -1) if blocks % c == 0)
    consts: dict[str, Any] = {
        "K": weight.k,
        "KC": chunk,
        "MT": 8 if tokens >= 8 else 4 if tokens >= 4 else 1,
        "VALUES": fmt.values,
        "BYTES": fmt.nbytes,
        "ROWS": _ROWS,
        "part": fmt.part,
        "epilogue": epilogue or no_epilogue,
    }
    args = (x, weight.planes["raw"], y, tuple(extras))
    return [KernelCall(generic_matmul, (-(-weight.n // PANEL) if tokens else 0,), args, consts)]

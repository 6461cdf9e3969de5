"""Products with block-quantised weights: activations in int8, dot products exact in int32.

Activations are quantised per 32 values (:class:`QuantizedRows`) and a block's dot product is summed
by ``dot4`` in int32, so its value does not depend on order; it enters the f32 accumulator by one
fused multiply-add with the product of both scales, blocks in ascending order. That sequence is the
same for one token and for many: :data:`FORMATS` holds it once per format, and the matrix-vector
and the matrix-matrix kernel both call it.

Offsets of the formats (128 in ``q8_0``, 8 in ``q4_0``, 32 in ``q6_k``) are taken off exactly, in
integers, through the sums of the activations; the minima of ``q4_k`` by a second multiply-add.
Error: that of rounding activations to 127 levels of their block's largest, the scale being f32.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright import lang as tl
from tilewright.dtypes import DType, f32, i8, i32, u32
from tilewright.errors import ShapeError
from tilewright.lang import (
    Array,
    Arrays,
    Const,
    Inline,
    bitcast,
    dot4,
    expand_dims,
    fma,
    program_id,
    reshape,
    scratch,
    unroll,
    where,
    zeros,
)
from tilewright.ops.calls import KernelCall
from tilewright.ops.packed import PANEL, PackedMatrix
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = [
    "FORMATS",
    "QuantizedRows",
    "quantize_block",
    "quantize_calls",
    "quantize_reference",
    "quantized_matmul_calls",
    "store_quantized",
]

BLOCK = 32
TINY = np.float32(1e-36)  # a block this small counts as zero: 127 / amax would overflow


# --- activations ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuantizedRows:
    """Rows of k values quantised per 32; one u8 buffer (T, row_bytes) with typed views into it.

    Value = ``q * d``. Fields, by byte offset in a row: ``q`` i8 (T, k) at 0, ``d`` f32 (T, k/32),
    ``s`` i32 (T, k/32) sum of the block's quants, ``h`` i32 (T, k/32) sum of its first 16.
    """

    buffer: Buffer
    k: int

    @staticmethod
    def row_bytes(k: int) -> int:
        """Bytes of one row, 64-byte aligned and never a multiple of 1024 (cache sets)."""
        if k % BLOCK:
            raise ShapeError(f"rows of {k} values cannot be quantised in blocks of {BLOCK}")
        size = -(-(k + 3 * 4 * (k // BLOCK)) // 64) * 64
        return size + 64 if size % 1024 == 0 else size

    @property
    def rows(self) -> int:
        return int(self.buffer.shape[0])

    def _field(self, dtype: DType, offset: int, width: int) -> Buffer:
        step = self.buffer.strides[0] // dtype.nbytes
        return self.buffer.view((self.rows, width), (step, 1), offset // dtype.nbytes, dtype)

    @property
    def q(self) -> Buffer:
        return self._field(i8, 0, self.k)

    @property
    def q4(self) -> Buffer:
        """``q`` by fours, i32 (T, k/4)."""
        return self._field(i32, 0, self.k // 4)

    @property
    def d(self) -> Buffer:
        return self._field(f32, self.k, self.k // BLOCK)

    @property
    def s(self) -> Buffer:
        return self._field(i32, self.k + self.k // 8, self.k // BLOCK)

    @property
    def h(self) -> Buffer:
        return self._field(i32, self.k + self.k // 4, self.k // BLOCK)

    def numpy(self) -> np.ndarray:
        """The values, float32 (T, k)."""
        q = self.q.numpy().astype(np.float32).reshape(self.rows, self.k // BLOCK, BLOCK)
        return (q * self.d.numpy()[:, :, None]).reshape(self.rows, self.k)


def quantize_reference(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(q, d, s, h) of float32 ``x`` (T, k): the definition of :func:`quantize_block`."""
    blocks = np.asarray(x, np.float32).reshape(x.shape[0], x.shape[1] // BLOCK, BLOCK)
    amax = np.abs(blocks).max(axis=2, initial=0)
    scale = np.where(amax > TINY, np.float32(127) / np.maximum(amax, TINY), np.float32(0))
    q = np.round(blocks * scale[:, :, None]).astype(np.int8)
    s = q.sum(axis=2, dtype=np.int32)
    h = q[:, :, :16].sum(axis=2, dtype=np.int32)
    d = np.where(amax <= TINY, np.float32(0), amax / np.float32(127))
    return q.reshape(x.shape), d, s, h


def quantize_block(v):
    """(q i8 (n, 32), d f32 (n,), s i32 (n,), h i32 (n,)) of an f32 tile (n, 32); inline."""
    # as integers, the bits of absolute values have the same order, with NaN on top
    bits = tl.max(bitcast(v, i32) & 0x7FFFFFFF, axis=1)
    amax = bitcast(bits, f32)
    inverse = where(amax > TINY, 127.0 / amax, 0.0)
    # adding 1.5 * 2^23 rounds to an integer, half to even, and leaves it in the low bits
    wide = bitcast(v * expand_dims(inverse, 1) + 12582912.0, i32) - 0x4B400000
    d = where(amax <= TINY, 0.0, amax / 127.0)  # a NaN stays one
    return wide.to(i8), d, tl.sum(wide, axis=1), tl.sum(wide[:, 0:16], axis=1)


def store_quantized(v, row, start, q, d, s, h):
    """Quantise tile v (b,), b a multiple of 32, and store it as row[start : start + b]; inline."""
    n = v.shape[0] // 32
    vq, vd, vs, vh = quantize_block(reshape(v, (n, 32)))
    block = start // 32
    q[row, start : start + 32 * n] = reshape(vq, (32 * n,))
    d[row, block : block + n] = vd
    s[row, block : block + n] = vs
    h[row, block : block + n] = vh


@kernel
def quantize_rows(x: Array, q: Array, d: Array, s: Array, h: Array, K: Const):
    """One row of x (T, K) f32 per program into the fields of :class:`QuantizedRows`."""
    row = program_id(0)
    for j in range(0, K, 32):
        store_quantized(x[row, j : j + 32], row, j, q, d, s, h)


def quantize_calls(x: Buffer, out: QuantizedRows) -> list[KernelCall]:
    """Quantise x (T, k) f32 into ``out``."""
    if tuple(x.shape) != (out.rows, out.k):
        raise ShapeError(f"quantize: x is {tuple(x.shape)}, the output ({out.rows}, {out.k})")
    return [KernelCall(quantize_rows, (out.rows,), (x, out.q, out.d, out.s, out.h), {"K": out.k})]


# --- what a block adds to the accumulator, per format --------------------------------------------
#
# decode: one step of STEP values straight from the planes. prepare: unpack K values of a panel from
# k0 on into scratch, once for all tokens. block: 32 values of MT tokens from what prepare returned;
# g counts blocks within the row of x, b within the prepared chunk.


def _offset(s, t, g, MT, factor):
    """(MT, 32) accumulator that starts at -factor * (sum of the block's activations)."""
    return expand_dims(s[t : t + MT, g] * -factor, 1) + zeros((MT, 32), i32)


def _scales(d, t, g, MT, dw):
    return expand_dims(d[t : t + MT, g], 1) * expand_dims(dw, 0)


def _word(q4, t, j, MT):
    """Four quants of each of MT tokens, (MT, 1)."""
    return expand_dims(q4[t : t + MT, j], 1)


def q8_0_decode(acc, q4, d, s, h, planes, panel, g, MT):
    w, dw = planes
    part = _offset(s, 0, g, MT, 128)
    for j in unroll(8):
        part = dot4(part, expand_dims(w[panel, g * 8 + j, 0:32], 0), _word(q4, 0, g * 8 + j, MT))
    return fma(part.to(f32), _scales(d, 0, g, MT, dw[panel, g, 0:32].to(f32)), acc)


def q8_0_prepare(planes, panel, k0, KC):
    return planes


def q8_0_block(acc, q4, d, s, h, t, g, ready, b, panel, k0, MT):
    w, dw = ready
    part = _offset(s, t, g, MT, 128)
    for j in unroll(8):
        part = dot4(part, expand_dims(w[panel, g * 8 + j, 0:32], 0), _word(q4, t, g * 8 + j, MT))
    return fma(part.to(f32), _scales(d, t, g, MT, dw[panel, g, 0:32].to(f32)), acc)


def q4_0_decode(acc, q4, d, s, h, planes, panel, g, MT):
    w, dw = planes
    part = _offset(s, 0, g, MT, 8)
    for j in unroll(4):
        word = expand_dims(w[panel, g * 4 + j, 0:32], 0)
        part = dot4(part, word & 0x0F0F0F0F, _word(q4, 0, g * 8 + j, MT))
        part = dot4(part, (word >> 4) & 0x0F0F0F0F, _word(q4, 0, g * 8 + 4 + j, MT))
    return fma(part.to(f32), _scales(d, 0, g, MT, dw[panel, g, 0:32].to(f32)), acc)


def q4_0_prepare(planes, panel, k0, KC):
    w, dw = planes
    q = scratch((KC // 4, 32), u32)
    scale = scratch((KC // 32, 32), f32)
    for b in range(KC // 32):
        g = k0 // 32 + b
        scale[b, 0:32] = dw[panel, g, 0:32].to(f32)
        for j in unroll(4):
            word = w[panel, g * 4 + j, 0:32]
            q[b * 8 + j, 0:32] = word & 0x0F0F0F0F
            q[b * 8 + 4 + j, 0:32] = (word >> 4) & 0x0F0F0F0F
    return q, scale


def q4_0_block(acc, q4, d, s, h, t, g, ready, b, panel, k0, MT):
    w, dw = ready
    part = _offset(s, t, g, MT, 8)
    for j in unroll(8):
        part = dot4(part, expand_dims(w[b * 8 + j, 0:32], 0), _word(q4, t, g * 8 + j, MT))
    return fma(part.to(f32), _scales(d, t, g, MT, dw[b, 0:32]), acc)


def _add_min(acc, d, s, t, g, MT, minimum):
    """``acc - minimum * (sum of the block's activations)``, rounded once."""
    total = d[t : t + MT, g] * s[t : t + MT, g].to(f32)
    return fma(expand_dims(-total, 1), expand_dims(minimum, 0), acc)


def q4_k_decode(acc, q4, d, s, h, planes, panel, step, MT):
    w, dm, sm = planes
    dw32 = dm[panel, 2 * step, 0:32].to(f32)
    mw32 = dm[panel, 2 * step + 1, 0:32].to(f32)
    for pair in range(4):
        g = step * 8 + 2 * pair
        low = zeros((MT, 32), i32)
        high = zeros((MT, 32), i32)
        for j in unroll(8):
            word = expand_dims(w[panel, step * 32 + pair * 8 + j, 0:32], 0)
            low = dot4(low, word & 0x0F0F0F0F, _word(q4, 0, g * 8 + j, MT))
            high = dot4(high, (word >> 4) & 0x0F0F0F0F, _word(q4, 0, g * 8 + 8 + j, MT))
        acc = fma(low.to(f32), _scales(d, 0, g, MT, dw32 * sm[panel, 2 * g, 0:32].to(f32)), acc)
        acc = _add_min(acc, d, s, 0, g, MT, mw32 * sm[panel, 2 * g + 1, 0:32].to(f32))
        scale = dw32 * sm[panel, 2 * g + 2, 0:32].to(f32)
        acc = fma(high.to(f32), _scales(d, 0, g + 1, MT, scale), acc)
        acc = _add_min(acc, d, s, 0, g + 1, MT, mw32 * sm[panel, 2 * g + 3, 0:32].to(f32))
    return acc


def q4_k_prepare(planes, panel, k0, KC):
    w, dm, sm = planes
    q = scratch((KC // 4, 32), u32)
    scale = scratch((KC // 32, 32), f32)
    minimum = scratch((KC // 32, 32), f32)
    for step in range(KC // 256):
        base = k0 // 256 + step
        dw32 = dm[panel, 2 * base, 0:32].to(f32)
        mw32 = dm[panel, 2 * base + 1, 0:32].to(f32)
        for b in unroll(8):
            scale[step * 8 + b, 0:32] = dw32 * sm[panel, base * 16 + 2 * b, 0:32].to(f32)
            minimum[step * 8 + b, 0:32] = mw32 * sm[panel, base * 16 + 2 * b + 1, 0:32].to(f32)
        for pair in range(4):
            for j in unroll(8):
                word = w[panel, base * 32 + pair * 8 + j, 0:32]
                q[step * 64 + pair * 16 + j, 0:32] = word & 0x0F0F0F0F
                q[step * 64 + pair * 16 + 8 + j, 0:32] = (word >> 4) & 0x0F0F0F0F
    return q, scale, minimum


def q4_k_block(acc, q4, d, s, h, t, g, ready, b, panel, k0, MT):
    w, scale, minimum = ready
    part = zeros((MT, 32), i32)
    for j in unroll(8):
        part = dot4(part, expand_dims(w[b * 8 + j, 0:32], 0), _word(q4, t, g * 8 + j, MT))
    acc = fma(part.to(f32), _scales(d, t, g, MT, scale[b, 0:32]), acc)
    return _add_min(acc, d, s, t, g, MT, minimum[b, 0:32])


def _q6_halves(s, h, t, g, MT):
    """Accumulators of a block's two halves, starting at -32 * (sum of its activations)."""
    first = h[t : t + MT, g]
    second = s[t : t + MT, g] - first
    none = zeros((MT, 32), i32)
    return expand_dims(first * -32, 1) + none, expand_dims(second * -32, 1) + none


def _add_halves(acc, first, second, low_scale, high_scale, d, t, g, MT):
    """Both halves of a block with their own scales (exact products of 19 bits)."""
    part = second.to(f32) * expand_dims(high_scale, 0)
    part = fma(first.to(f32), expand_dims(low_scale, 0), part)
    return fma(part, expand_dims(d[t : t + MT, g], 1), acc)


def q6_k_decode(acc, q4, d, s, h, planes, panel, step, MT):
    wl, wh, sc, dw = planes
    dw32 = dw[panel, step, 0:32].to(f32)
    for half in range(2):
        for block in unroll(4):
            g = step * 8 + half * 4 + block
            first, second = _q6_halves(s, h, 0, g, MT)
            for j in unroll(8):
                low = wl[panel, step * 32 + half * 16 + (block % 2) * 8 + j, 0:32]
                low = (low >> (4 * (block // 2))) & 0x0F0F0F0F
                high = (wh[panel, step * 16 + half * 8 + j, 0:32] >> (2 * block)) & 0x03030303
                word = expand_dims(low | (high << 4), 0)
                if j < 4:
                    first = dot4(first, word, _word(q4, 0, g * 8 + j, MT))
                else:
                    second = dot4(second, word, _word(q4, 0, g * 8 + j, MT))
            low_scale = dw32 * sc[panel, g * 2, 0:32].to(f32)
            high_scale = dw32 * sc[panel, g * 2 + 1, 0:32].to(f32)
            acc = _add_halves(acc, first, second, low_scale, high_scale, d, 0, g, MT)
    return acc


def q6_k_prepare(planes, panel, k0, KC):
    wl, wh, sc, dw = planes
    q = scratch((KC // 4, 32), u32)
    scale = scratch((KC // 16, 32), f32)
    for step in range(KC // 256):
        base = k0 // 256 + step
        dw32 = dw[panel, base, 0:32].to(f32)
        for b in range(16):
            scale[step * 16 + b, 0:32] = dw32 * sc[panel, base * 16 + b, 0:32].to(f32)
        for half in range(2):
            for j in range(8):
                high = wh[panel, base * 16 + half * 8 + j, 0:32]
                for block in unroll(4):
                    low = wl[panel, base * 32 + half * 16 + (block % 2) * 8 + j, 0:32]
                    low = (low >> (4 * (block // 2))) & 0x0F0F0F0F
                    bits = (high >> (2 * block)) & 0x03030303
                    q[step * 64 + half * 32 + block * 8 + j, 0:32] = low | (bits << 4)
    return q, scale


def q6_k_block(acc, q4, d, s, h, t, g, ready, b, panel, k0, MT):
    w, scale = ready
    first, second = _q6_halves(s, h, t, g, MT)
    for j in unroll(4):
        first = dot4(first, expand_dims(w[b * 8 + j, 0:32], 0), _word(q4, t, g * 8 + j, MT))
    for j in unroll(4):
        word = expand_dims(w[b * 8 + 4 + j, 0:32], 0)
        second = dot4(second, word, _word(q4, t, g * 8 + 4 + j, MT))
    return _add_halves(acc, first, second, scale[b * 2, 0:32], scale[b * 2 + 1, 0:32], d, t, g, MT)


@dataclass(frozen=True)
class QuantFormat:
    """Kernel pieces of one weight format; see the comment above them.

    Attributes:
        step: values of k that ``decode`` consumes.
        chunk: values of k that are unpacked at a time (a multiple of ``step``).
        tile: tokens per register tile in the matrix-matrix kernel.
    """

    step: int
    chunk: int
    tile: int
    decode: Callable[..., Any]
    prepare: Callable[..., Any]
    block: Callable[..., Any]


FORMATS: Mapping[str, QuantFormat] = {
    "q8_0": QuantFormat(32, 1024, 6, q8_0_decode, q8_0_prepare, q8_0_block),
    "q4_0": QuantFormat(32, 512, 6, q4_0_decode, q4_0_prepare, q4_0_block),
    "q4_k": QuantFormat(256, 512, 6, q4_k_decode, q4_k_prepare, q4_k_block),
    "q6_k": QuantFormat(256, 512, 4, q6_k_decode, q6_k_prepare, q6_k_block),
}


# --- kernels -------------------------------------------------------------------------------------


@kernel
def matmul_few(
    q4: Array,
    d: Array,
    s: Array,
    h: Array,
    planes: Arrays,
    y: Array,
    extras: Arrays,
    K: Const,
    STEP: Const,
    MT: Const,
    decode: Inline,
    epilogue: Inline,
):
    """y (MT, N) for a few tokens: one panel of 32 rows per program, read once from memory."""
    panel = program_id(0)
    acc = zeros((MT, 32), f32)
    for step in range(K // STEP):
        acc = decode(acc, q4, d, s, h, planes, panel, step, MT)
    y[0:MT, panel * 32 : panel * 32 + 32] = epilogue(acc, 0, panel * 32, extras)


def _tile(q4, d, s, h, ready, y, extras, t, panel, k0, K, KC, MT, block, epilogue):
    """Add k0 : k0 + KC to MT rows of y; partial sums wait in y itself."""
    n0 = panel * 32
    acc = zeros((MT, 32), f32)
    if k0 > 0:
        acc = y[t : t + MT, n0 : n0 + 32]
    for b in range(KC // 32):
        acc = block(acc, q4, d, s, h, t, k0 // 32 + b, ready, b, panel, k0, MT)
    if k0 + KC >= K:
        acc = epilogue(acc, t, n0, extras)
    y[t : t + MT, n0 : n0 + 32] = acc


@kernel
def matmul_chunked(
    q4: Array,
    d: Array,
    s: Array,
    h: Array,
    planes: Arrays,
    y: Array,
    extras: Arrays,
    K: Const,
    KC: Const,
    MT: Const,
    prepare: Inline,
    block: Inline,
    epilogue: Inline,
):
    """y (T, N): one panel per program, unpacked KC values at a time and used for all tokens."""
    panel = program_id(0)
    tokens = q4.shape[0]
    full = tokens // MT * MT
    for k0 in range(0, K, KC):
        ready = prepare(planes, panel, k0, KC)
        for t in range(0, full, MT):
            _tile(q4, d, s, h, ready, y, extras, t, panel, k0, K, KC, MT, block, epilogue)
        for t in range(full, tokens):
            _tile(q4, d, s, h, ready, y, extras, t, panel, k0, K, KC, 1, block, epilogue)


_FEW = 4  # tokens whose accumulators all fit the registers beside the unpacked weights


def no_epilogue(acc, i, j, extras):
    """Store the accumulator as it is."""
    return acc


def _chunk(k: int, fmt: QuantFormat) -> int:
    """The largest divisor of k that is whole steps and at most ``fmt.chunk``."""
    steps = k // fmt.step
    most = fmt.chunk // fmt.step
    return fmt.step * next(c for c in range(min(most, steps), 0, -1) if steps % c == 0)


def quantized_matmul_calls(
    weight: PackedMatrix,
    x: QuantizedRows,
    y: Buffer,
    epilogue: Callable[..., Any] | None = None,
    extras: Sequence[Buffer] = (),
) -> list[KernelCall]:
    """``y = epilogue(x @ W^T)``; y f32 (T, n). y must not overlap x or the extras."""
    fmt = FORMATS[weight.format]
    tokens = x.rows
    args = (x.q4, x.d, x.s, x.h, tuple(weight.planes.values()), y, tuple(extras))
    consts: dict[str, Any] = {"K": weight.k, "epilogue": epilogue or no_epilogue}
    panels = -(-weight.n // PANEL)
    if 0 < tokens <= _FEW:
        consts |= {"STEP": fmt.step, "MT": tokens, "decode": fmt.decode}
        return [KernelCall(matmul_few, (panels,), args, consts)]
    tile = min(fmt.tile, tokens)
    consts |= {"KC": _chunk(weight.k, fmt), "MT": tile, "prepare": fmt.prepare, "block": fmt.block}
    return [KernelCall(matmul_chunked, (panels if tokens else 0,), args, consts)]

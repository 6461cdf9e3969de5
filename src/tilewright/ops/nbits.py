"""Products with weights of 2, 4 or 8 bits, a scale and a zero point per block of k.

``y[m, n] = sum over blocks g of scale[n, g] * sum over k in g of x[m, k] (q[n, k] - zero[n, g])``.
Weights are packed once, in panels of 64 outputs: word j of a panel, u32 (P, K / per word, 64), has
field c of byte b at ``k = j * (32 / bits) + 4 c + b``, so that four neighbours of k are one mask
and shift away from a ``dot4``, and any one of them from an f32. Scales are f32 (P, blocks, 64),
zero points u8 alike (or f32).

In f32, an output is one accumulator per block (a fused multiply-add per k, ascending), less the
zero point times the block's sum of x, which enters the output's accumulator by one fused
multiply-add with the scale. With ``int8`` activations are rounded to 127 levels per 32 (see
:mod:`tilewright.ops.quantized`), and a block's sum is exact. One row or many: the same bits.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels are checked by the kernel language)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright import lang as tl
from tilewright.dtypes import DType, f32, i32, u8, u32
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape
from tilewright.lang import Array, Const, dot4, expand_dims, fma, program_id, scratch, unroll, zeros
from tilewright.ops.calls import KernelCall
from tilewright.ops.constants import constant
from tilewright.ops.quantized import QuantizedRows, quantize_calls, quantize_reference
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import pad, sizes_of
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = ["PANEL", "block_product", "nbits_matmul", "pack_nbits", "unpacked_nbits"]

PANEL = 64
_FEW = 4  # rows that share the unpacking in registers
_TILE = 6
_CHUNK = 256  # k that are unpacked at a time
ONES = 0x01010101


@kernel
def sum_blocks(x: Array, sums: Array, BLOCK: Const):
    """sums (M, blocks): of each block of x (M, K). Grid (M)."""
    row = program_id(0)
    for g in range(sums.shape[1]):
        total = zeros((16,), f32)
        for k in range(0, BLOCK, 16):
            total += x[row, g * BLOCK + k : g * BLOCK + k + 16]
        sums[row, g] = tl.sum(total)


@kernel
def nbits_few(
    x: Array, sums: Array, w: Array, scale: Array, zero: Array, y: Array, MT: Const, BITS: Const,
    BLOCK: Const,
):  # fmt: skip
    """y (MT, N) for few rows: one panel per program, read once."""
    panel = program_id(0)
    acc = zeros((MT, 64), f32)
    words = BLOCK * BITS // 32
    for g in range(scale.shape[1]):
        part = zeros((MT, 64), f32)
        for j in range(words):
            word = w[panel, g * words + j, 0:64]
            for c in unroll(8 // BITS):
                for b in unroll(4):
                    q = ((word >> (8 * b + BITS * c)) & ((1 << BITS) - 1)).to(i32).to(f32)
                    k = g * BLOCK + j * (32 // BITS) + 4 * c + b
                    part = fma(expand_dims(x[0:MT, k], 1), expand_dims(q, 0), part)
        zw, sw = zero[panel, g, 0:64].to(f32), scale[panel, g, 0:64]
        part = fma(expand_dims(sums[0:MT, g], 1), expand_dims(-zw, 0), part)
        acc = fma(part, expand_dims(sw, 0), acc)
    y[0:MT, panel * 64 : panel * 64 + 64] = acc


def nbits_tile(x, sums, q, scale, zero, y, t, panel, g0, half, MT, BLOCK, BLOCKS):
    """Add BLOCKS blocks from g0 on to MT rows and 32 outputs of y; inline."""
    n = panel * 64 + half * 32
    acc = zeros((MT, 32), f32)
    if g0 > 0:
        acc = y[t : t + MT, n : n + 32]
    for b in range(BLOCKS):
        g = g0 + b
        part = zeros((MT, 32), f32)
        for k in range(BLOCK):
            xs = expand_dims(x[t : t + MT, g * BLOCK + k], 1)
            ws = expand_dims(q[b * BLOCK + k, half * 32 : half * 32 + 32], 0)
            part = fma(xs, ws, part)
        zw = zero[panel, g, half * 32 : half * 32 + 32].to(f32)
        sw = scale[panel, g, half * 32 : half * 32 + 32]
        part = fma(expand_dims(sums[t : t + MT, g], 1), expand_dims(-zw, 0), part)
        acc = fma(part, expand_dims(sw, 0), acc)
    y[t : t + MT, n : n + 32] = acc


@kernel
def nbits_many(
    x: Array, sums: Array, w: Array, scale: Array, zero: Array, y: Array, MT: Const, BITS: Const,
    BLOCK: Const, BLOCKS: Const,
):  # fmt: skip
    """y (M, N), partial sums waiting in y: BLOCKS blocks are unpacked at a time for all rows."""
    panel = program_id(0)
    words = BLOCK * BITS // 32
    q = scratch((BLOCK * BLOCKS, 64), f32)
    rows = x.shape[0]
    full = rows // MT * MT
    for g0 in range(0, scale.shape[1], BLOCKS):
        for j in range(words * BLOCKS):
            word = w[panel, g0 * words + j, 0:64]
            for c in unroll(8 // BITS):
                for b in unroll(4):
                    part = ((word >> (8 * b + BITS * c)) & ((1 << BITS) - 1)).to(i32).to(f32)
                    q[j * (32 // BITS) + 4 * c + b, 0:64] = part
        for half in unroll(2):
            for t in range(0, full, MT):
                nbits_tile(x, sums, q, scale, zero, y, t, panel, g0, half, MT, BLOCK, BLOCKS)
            for t in range(full, rows):
                nbits_tile(x, sums, q, scale, zero, y, t, panel, g0, half, 1, BLOCK, BLOCKS)


def byte_blocks(q4, d, s, w, scale, zero, y, t, panel, MT, BITS, BLOCK, L):
    """MT rows of a panel, L outputs at a time; inline."""
    for at_lane in unroll(0, 64, L):
        acc = zeros((MT, L), f32)
        for g in range(scale.shape[1]):
            sw = scale[panel, g, at_lane : at_lane + L]
            zw = zero[panel, g, at_lane : at_lane + L].to(i32)
            for part in range(BLOCK // 32):
                at = g * (BLOCK // 32) + part
                total = expand_dims(s[t : t + MT, at], 1) * expand_dims(-zw, 0)
                for j in unroll(BITS):  # words of 32 values
                    word = w[panel, at * BITS + j, at_lane : at_lane + L]
                    for c in unroll(8 // BITS):
                        if BITS == 8:
                            four = word
                        else:
                            four = (word >> (BITS * c)) & (((1 << BITS) - 1) * ONES)
                        quad = at * 8 + j * (8 // BITS) + c
                        xs = expand_dims(q4[t : t + MT, quad], 1)
                        total = dot4(total, expand_dims(four, 0), xs)
                both = expand_dims(d[t : t + MT, at], 1) * expand_dims(sw, 0)
                acc = fma(total.to(f32), both, acc)
        n = panel * 64 + at_lane
        y[t : t + MT, n : n + L] = acc


@kernel
def nbits_bytes(
    q4: Array,
    d: Array,
    s: Array,
    w: Array,
    scale: Array,
    zero: Array,
    y: Array,
    MT: Const,
    BITS: Const,
    BLOCK: Const,
):
    """y (M, N) from rows quantised per 32: one panel per program."""
    panel = program_id(0)
    rows = q4.shape[0]
    full = rows // MT * MT
    L = 64 if MT <= 3 else 32
    for t in range(0, full, MT):
        byte_blocks(q4, d, s, w, scale, zero, y, t, panel, MT, BITS, BLOCK, L)
    for t in range(full, rows):
        byte_blocks(q4, d, s, w, scale, zero, y, t, panel, 1, BITS, BLOCK, 64)


# --- the table's entry ---------------------------------------------------------------------------


def _infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    x, w, scale, zero = inputs
    bits, block, n = attrs["bits"], attrs["block"], attrs["outputs"]
    if x.dtype is not f32 or w.dtype is not u32 or scale.dtype is not f32 or bits not in (2, 4, 8):
        raise ShapeError(f"nbits_matmul wants f32 x and 2, 4 or 8 bits, got {x!r} and {bits} bits")
    m, k = sizes_of(x)
    panels = -(-n // PANEL)
    if block % 16 or (attrs["int8"] and block % 32) or k % block:
        raise ShapeError(f"nbits_matmul: {k} values in blocks of {block}")
    if w.shape != (panels, k * bits // 32, PANEL):
        raise ShapeError(f"nbits_matmul: weights {w!r} for {n} outputs of {k} values")
    if zero.dtype not in ((u8,) if attrs["int8"] else (u8, f32)):
        raise ShapeError(f"nbits_matmul: zero points {zero!r}")
    if scale.shape != (panels, k // block, PANEL) or zero.shape != scale.shape:
        raise ShapeError(f"nbits_matmul: scales {scale!r} for {k // block} blocks")
    return (m, n), f32


def unpacked_nbits(w: np.ndarray, bits: int) -> np.ndarray:
    """The integers of packed words: int32 (P * 64, K)."""
    fields = np.arange(8 // bits)[:, None] * bits + np.arange(4) * 8
    q = (w[..., None, None] >> fields.astype(np.uint32)) & np.uint32((1 << bits) - 1)
    return q.transpose(0, 2, 1, 3, 4).reshape(w.shape[0] * PANEL, -1).astype(np.int32)


def _reference(x: Any, w: Any, scale: Any, zero: Any, **attrs: Any) -> np.ndarray:
    block, n = attrs["block"], attrs["outputs"]
    q = unpacked_nbits(w, attrs["bits"]).astype(np.float64)
    if attrs["int8"]:
        xq, d, _, _ = quantize_reference(x)
        x = (xq.reshape(*d.shape, 32) * d[:, :, None].astype(np.float64)).reshape(x.shape)
    s, z = (v.transpose(0, 2, 1).reshape(-1, v.shape[1]) for v in (scale, zero.astype(np.float64)))
    real = (q.reshape(q.shape[0], -1, block) - z[:, :, None]) * s[:, :, None].astype(np.float64)
    return (x.astype(np.float64) @ real.reshape(q.shape)[:n].T).astype(np.float32)


def _workspace(node: Node) -> Sequence[tuple[DType, Shape]]:
    x = node.inputs[0]
    m, k = sizes_of(x)
    if node.attrs["int8"]:
        return ((u8, (m, QuantizedRows.row_bytes(k))),)
    return ((f32, (m, k // node.attrs["block"])),)


def _calls(
    node: Node, inputs: Sequence[Buffer], out: Buffer, memory: Sequence[Buffer]
) -> list[KernelCall]:
    x, w, scale, zero = inputs
    m, k = x.shape
    bits, block = node.attrs["bits"], node.attrs["block"]
    panels = w.shape[0] if m else 0
    consts: dict[str, Any] = {"BITS": bits, "BLOCK": block}
    if node.attrs["int8"]:
        rows = QuantizedRows(memory[0], k)
        consts["MT"] = min(_TILE, max(m, 1))
        fields = (rows.q4, rows.d, rows.s, w, scale, zero, out)
        return [*quantize_calls(x, rows), KernelCall(nbits_bytes, (panels,), fields, consts)]
    (sums,) = memory
    calls = [KernelCall(sum_blocks, (m,), (x, sums), {"BLOCK": block})]
    args = (x, sums, w, scale, zero, out)
    if m <= _FEW:
        return [*calls, KernelCall(nbits_few, (panels,), args, {**consts, "MT": max(m, 1)})]
    blocks = scale.shape[1]
    most = max(_CHUNK // block, 1)
    count = next(c for c in range(most, 0, -1) if blocks % c == 0)
    consts |= {"MT": min(_TILE, m), "BLOCKS": count}
    return [*calls, KernelCall(nbits_many, (panels,), args, consts)]


register(OpDef("nbits_matmul", _infer, _reference, calls=_calls, workspace=_workspace))


def nbits_matmul(x: Node, w: Node, scale: Node, zero: Node, **attrs: Any) -> Node:
    """x (M, K) f32 times packed weights: (M, outputs) f32.

    w, scale, zero: :func:`pack_nbits`. Attrs ``outputs``, ``bits``, ``block`` (of k, a multiple of
    16), ``int8``: whether x is rounded to bytes (blocks of multiples of 32, whole zero points).
    """
    return make("nbits_matmul", x, w, scale, zero, **attrs)


def pack_nbits(
    q: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int
) -> tuple[Node, Node, Node]:
    """Weights q (N, K) of ``bits`` bits, scale and zero (N, blocks), as constants in panels."""
    n, k = q.shape
    panels, fields = -(-n // PANEL), 8 // bits
    wide = np.zeros((panels * PANEL, k), np.uint32)
    wide[:n] = q
    cut = wide.reshape(panels, PANEL, -1, fields, 4)
    shifts = (np.arange(fields)[:, None] * bits + np.arange(4) * 8).astype(np.uint32)
    words = np.bitwise_or.reduce((cut << shifts).reshape(*cut.shape[:3], -1), axis=3)

    def spread(v: np.ndarray, dtype: type) -> Node:
        rows = np.zeros((panels * PANEL, v.shape[1]), dtype)
        rows[:n] = v
        return constant(rows.reshape(panels, PANEL, -1).transpose(0, 2, 1))

    whole = bool(((zero >= 0) & (zero <= 255) & (zero == np.rint(zero))).all())
    zeros_ = spread(zero, np.uint8 if whole else np.float32)
    return constant(words.transpose(0, 2, 1)), spread(scale, np.float32), zeros_


def block_product(
    x: Node, q: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int, block: int, int8: bool
) -> Node:
    """x (M, K) times weights q (N, blocks * block) that are known; K may end within a block.

    scale and zero: (N, blocks). ``int8`` is heeded where blocks are multiples of 32.
    """
    more = q.shape[1] - sizes_of(x)[1]
    if more:
        x = pad(x, ((0, 0), (0, more)))
    packed = pack_nbits(q, scale, zero, bits)
    return nbits_matmul(
        x, *packed, outputs=q.shape[0], bits=bits, block=block, int8=int8 and block % 32 == 0
    )

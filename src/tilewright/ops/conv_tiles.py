"""The fast convolution: implicit matrix products over packed weights.

Output channels lie along the lanes and neighbouring output positions are the rows of a register
tile. Elements of x are broadcast straight from memory: what a tap reads is a strided window of x
(padded with zeros first where the padding asks for it), so strides and dilation cost nothing and
no column matrix exists. Weights are packed into panels of neighbouring output channels. The sum of
an output runs over channels, then taps, ascending, one fused multiply-add each.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tilewright import lang as tl
from tilewright.dtypes import DType, f64, u32
from tilewright.lang import (
    Array,
    Const,
    dot,
    dot2,
    expand_dims,
    fma,
    i64,
    prefetch,
    program_id,
    scratch,
    unroll,
    zeros,
)
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_shapes import Geometry, Triple, accumulator, bits_of
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel
from tilewright.sizes import hint

__all__ = [
    "Tiling",
    "pack_weights_calls",
    "packed_shape",
    "pad_calls",
    "pair",
    "step",
    "tile_calls",
    "tiling",
]

_BLOCK = (
    1 << 20
)  # multiply-adds of whole vectors that a program does at most, if it has rows to spare
_PROGRAMS = 32


def taps_inside(h, KH, HEIGHT):
    """The first tap of row ``h`` that reads a row of x and not padding, and the one past the last.

    HEIGHT is (rows of padding before x, rows of x, stride, dilation); inline.
    """
    low, size, stride, dilation = HEIGHT
    first = tl.minimum((tl.maximum(low - h * stride, 0) + (dilation - 1)) // dilation, KH)
    last = (tl.maximum(low + size - h * stride, 0) + (dilation - 1)) // dilation
    return first, tl.minimum(last, KH)


def step(acc, left, right):
    """acc plus one word of each row times one of each column; inline. u32 are pairs of bf16."""
    if left.dtype is u32:
        return dot2(acc, expand_dims(left, 1), expand_dims(right, 0))
    return fma(expand_dims(left, 1), expand_dims(right, 0), acc)


# --- the product ---------------------------------------------------------------------------------


@kernel
def conv_tiles(
    x: Array,
    w: Array,
    y: Array,
    KD: Const,
    KH: Const,
    KW: Const,
    MT: Const,
    NT: Const,
    OUTS: Const,
    ROWS: Const,
    HEIGHT: Const,
    ACC: Const,
):
    """y (B, G, O, OD, OH, OW) from x (B, G, C, KD, KH, OD, OH, OW, KW) and packed w.

    w is (G, panels, C, KD, KH, KW, NT), x a view that shows each tap what it reads. A program
    makes ROWS rows of one panel: grid (OD * OH / ROWS, B, G * panels).
    """
    width = x.shape[7]
    blocks = (y.shape[4] + (ROWS - 1)) // ROWS
    d = program_id(0) // blocks
    first = program_id(0) % blocks * ROWS
    n = program_id(1)
    g = program_id(2) // w.shape[1]
    panel = program_id(2) % w.shape[1]
    o = tl.minimum(panel * NT, y.shape[2] - OUTS)
    tile = scratch((MT, NT), ACC)
    for h in range(first, tl.minimum(first + ROWS, y.shape[4])):
        above, below = taps_inside(h, KH, HEIGHT)
        for i in range(-(-width // MT)):
            at = tl.minimum(i * MT, width - MT)  # the last tile overlaps the one before
            acc = zeros((MT, NT), ACC)
            for c in range(x.shape[2]):
                # The rows that the next row of outputs reads first: too short to be foreseen.
                for kh in unroll(max(KH - HEIGHT[2], 0), KH):
                    prefetch(x[n, g, c, KD - 1, kh, d, h + 1, at, 0], level=2)
                for kd in range(KD):
                    for kh in range(above, below):
                        if x.dtype is not u32:
                            left = x[n, g, c, kd, kh, d, h, at : at + MT, 0:KW]
                            acc = dot(left, w[g, panel, c, kd, kh, 0:KW, 0:NT], acc)
                        elif KW <= 8:
                            for kw in unroll(KW):
                                left = x[n, g, c, kd, kh, d, h, at : at + MT, kw]
                                acc = step(acc, left, w[g, panel, c, kd, kh, kw, 0:NT])
                        else:
                            for kw in range(KW):
                                left = x[n, g, c, kd, kh, d, h, at : at + MT, kw]
                                acc = step(acc, left, w[g, panel, c, kd, kh, kw, 0:NT])
            tile[0:MT, 0:NT] = acc
            for j in range(0, OUTS // 8 * 8, 8):
                y[n, g, o + j : o + j + 8, d, h, at : at + MT] = tile[0:MT, j : j + 8].T
            if OUTS % 8:
                j = OUTS // 8 * 8
                rest = OUTS % 8
                y[n, g, o + j : o + j + rest, d, h, at : at + MT] = tile[0:MT, j : j + rest].T


@dataclass(frozen=True)
class Tiling:
    """How the outputs of a convolution are cut.

    Attributes:
        positions: rows of a tile: neighbouring output positions.
        lanes: columns of a tile: output channels of a panel.
        panels: panels per group; the last one overlaps the one before, or is partly empty.
        outputs: channels that a panel really has.
    """

    positions: int
    lanes: int
    panels: int
    outputs: int


@lru_cache(maxsize=1024)
def tiling(width: int, outputs: int, wide: bool) -> Tiling:
    """The cheapest tile for rows of ``width`` positions and so many output channels.

    A tile of m x v vectors takes about m * v + 2 cycles for each k, but no less than 7 (the
    latency of a multiply-add); ``wide`` elements (f64) fill half as many lanes.
    """
    vector = 8 if wide else 16
    best, best_cost = None, 0.0
    for vectors in (2, 1, 3, 4):
        lanes = vectors * vector
        if vectors > 2 and lanes > outputs:
            continue
        panels = -(-outputs // lanes)
        for m in range(1, min(width, (16, 11, 5, 4)[vectors - 1]) + 1):
            tiles = -(-width // m)
            cost = tiles * panels * max(m * vectors + 2 + (vectors == 1), 7)
            if best is None or cost < best_cost or (cost == best_cost and m < best.positions):
                best, best_cost = Tiling(m, lanes, panels, min(outputs, lanes)), cost
    assert best is not None
    return best


def tile_calls(
    part: Geometry, x: Buffer, packed: Buffer, y: Buffer, rows_of_x: tuple[int, int]
) -> list[KernelCall]:
    """``y`` (B, G, O, OD, OH, OW) from x (B, G, C, D, H, W), whose windows must lie inside x.

    ``packed`` is what :func:`pack_weights_calls` has made. ``part.low`` is zero or negative.
    ``rows_of_x`` says after how many rows of padding, on the axis H, how many real rows of x come.
    """
    cut = tiling(y.shape[5], part.outputs, accumulator(y.dtype) is f64)
    taps, steps = part.kernel, part.dilation
    channels, kernel = part.channels, part.kernel
    _, _, c, d, h, w = x.strides
    offset = -sum(low * s for low, s in zip(part.low, (d, h, w)))
    walk = (part.strides[0] * d, part.strides[1] * h, part.strides[2] * w)
    if part.taps == 1:
        # A product over channels: some of them take the place of the last kernel axis.
        inner = _divisor(channels)
        channels, kernel, taps = channels // inner, (1, 1, inner), (1, 1, inner)
        strides = (c * inner, d, h, *walk, c)
    else:
        strides = (c, steps[0] * d, steps[1] * h, *walk, steps[2] * w)
    seen = x.view(
        (*x.shape[:2], channels, *kernel[:2], *y.shape[3:], kernel[2]),
        (*x.strides[:2], *strides),
        offset,
    ).fix(7)
    weights = packed.view((part.groups, cut.panels, channels, *taps, cut.lanes)).fix(2)
    per_row = -(-y.shape[5] // cut.positions) * cut.positions * cut.lanes // 16
    rows = max(1, min(y.shape[4], _BLOCK // (per_row * part.channels * part.taps)))
    others = y.shape[3] * y.shape[0] * part.groups * cut.panels
    rows = min(rows, -(-y.shape[4] * hint(others) // _PROGRAMS))  # changes no bits
    consts = {
        "KD": taps[0],
        "KH": taps[1],
        "KW": taps[2],
        "MT": cut.positions,
        "NT": cut.lanes,
        "OUTS": cut.outputs,
        "ROWS": rows,
        "HEIGHT": (rows_of_x[0] + part.low[1], rows_of_x[1], part.strides[1], part.dilation[1]),
        "ACC": accumulator(y.dtype),
    }
    grid = (y.shape[3] * -(-y.shape[4] // rows), y.shape[0], part.groups * cut.panels)
    return [KernelCall(conv_tiles, grid, (seen, weights, y), consts)]


def _divisor(channels: int) -> int:
    """The largest divisor of ``channels`` up to 64."""
    return max(n for n in range(1, min(channels, 64) + 1) if channels % n == 0)


def pair(low, high):
    """Two bf16, as u16, in one u32; inline."""
    return low.to(u32) | (high.to(u32) << 16)


# --- preparing the operands ----------------------------------------------------------------------


@kernel
def pack_weights(w: Array, packed: Array, NT: Const, OUTS: Const):
    """w (G, O, C, KD, KH, KW) -> packed (G, panels, C, KD, KH, KW, NT), zeros beyond OUTS.

    Where packed is u32 it has pairs of channels of w, bf16 as u16. Grid (C, panels, G).
    """
    c, panel, g = program_id(0), program_id(1), program_id(2)
    o = tl.minimum(panel * NT, w.shape[1] - OUTS)
    for kd in range(w.shape[3]):
        for kh in range(w.shape[4]):
            for kw in range(w.shape[5]):
                if OUTS < NT:
                    packed[g, panel, c, kd, kh, kw, 0:NT] = zeros((NT,), packed.dtype)
                for j in unroll(OUTS):  # one by one: gathers are slower
                    if packed.dtype is u32:
                        low, high = (
                            w[g, o + j, 2 * c, kd, kh, kw],
                            w[g, o + j, 2 * c + 1, kd, kh, kw],
                        )
                        packed[g, panel, c, kd, kh, kw, j] = pair(low, high)
                    else:
                        packed[g, panel, c, kd, kh, kw, j] = w[g, o + j, c, kd, kh, kw]


def packed_shape(part: Geometry, width: int, dtype: DType) -> tuple[int, ...]:
    """The shape of a part's packed weights; ``width`` is the last size of its result."""
    cut = tiling(width, part.outputs, accumulator(dtype) is f64)
    return (part.groups, cut.panels, part.channels, *part.kernel, cut.lanes)


def pack_weights_calls(part: Geometry, width: int, w: Buffer, packed: Buffer) -> list[KernelCall]:
    """Fill ``packed``, flat memory, with w (G, O, C, KD, KH, KW) of any strides.

    ``part`` counts channels in words of ``packed``.
    """
    shape = packed_shape(part, width, w.dtype)
    w = bits_of(w) if packed.dtype is u32 else w
    consts = {"NT": shape[-1], "OUTS": min(part.outputs, shape[-1])}
    grid = (part.channels, shape[1], part.groups)
    return [KernelCall(pack_weights, grid, (w, packed.view(shape).fix(6)), consts)]


@kernel
def pad_planes(x: Array, padded: Array, low0: i64, low1: i64, low2: i64, N: Const, PAIRS: Const):
    """padded (B, G, C, PD, PH, PW): x (B, G, C, D, H, W) behind ``low`` zeros, zeros after it.

    PAIRS: elements of two "channels" or two "images" of x, bf16 as u16, become one u32; "" says
    they do not. Grid (C, G, B).
    """
    c, g, n = program_id(0), program_id(1), program_id(2)
    for d in range(padded.shape[3]):
        z = d - low0
        for h in range(padded.shape[4]):
            row = h - low1
            for at in range(0, padded.shape[5], N):
                first = at - low2
                if PAIRS == "channels":
                    low = x[n, g, 2 * c, z, row, first : first + N]
                    words = pair(low, x[n, g, 2 * c + 1, z, row, first : first + N])
                elif PAIRS == "images":
                    low = x[2 * n, g, c, z, row, first : first + N]
                    words = pair(low, x[2 * n + 1, g, c, z, row, first : first + N])
                else:
                    words = x[n, g, c, z, row, first : first + N]
                padded[n, g, c, d, h, at : at + N] = words


def pad_calls(x: Buffer, low: Triple, padded: Buffer, pairs: str) -> list[KernelCall]:
    """Fill ``padded`` with x (B, G, C, D, H, W) and zeros around it, in the dtype of ``padded``.

    ``pairs`` ("channels" or "images") says what meets in a word where that is u32.
    """
    b, g, c = padded.shape[:3]
    lanes = 64 if padded.shape[5] > 32 else 32 if padded.shape[5] > 16 else 16
    consts = {"N": lanes, "PAIRS": pairs if padded.dtype is u32 else ""}
    x = bits_of(x) if padded.dtype is u32 else x
    return [KernelCall(pad_planes, (c, g, b), (x, padded.fix(3), *low), consts)]

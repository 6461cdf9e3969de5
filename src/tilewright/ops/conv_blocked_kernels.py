"""The kernels of convolutions and pooling on blocked images (see :mod:`tilewright.ops.blocked`).

Pixels are the rows of a register tile, output channels its lanes; elements of x are broadcast
from memory, weights are read a vector at a time. Where the image has to be padded or converted, a
program first copies what it reads to scratch memory: a few rows of all channels, which every panel
of weights then uses.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from tilewright import lang as tl
from tilewright.lang import (
    Array,
    Arrays,
    Const,
    Inline,
    dot2,
    expand_dims,
    f32,
    fma,
    full,
    pack2,
    program_id,
    scratch,
    u32,
    unroll,
    zeros,
)
from tilewright.runtime.launch import kernel

__all__ = ["conv_blocks", "depthwise_blocks", "depthwise_direct", "no_epilogue", "pool_blocks"]


def no_epilogue(acc, n, o, h, w, extras):
    """Stores the sums as they are."""
    return acc


def _step(acc, left, right):
    """acc (RH, RW, lanes) plus one word of each pixel times one of each channel; inline."""
    if right.dtype is u32:
        return dot2(acc, expand_dims(left, 2), right)
    return fma(expand_dims(left, 2), right, acc)


def _words(x, n, g, b, row, at, N, PAIRS):
    """N pixels of one block of x from (row, at) on, as words of a copy; inline."""
    if x.shape[5] == 1:
        if PAIRS:
            low = x[n, g, 2 * b, row, at : at + N, 0].to(f32)
            return pack2(low, x[n, g, 2 * b + 1, row, at : at + N, 0].to(f32))
        return x[n, g, b, row, at : at + N, 0].to(f32)
    if PAIRS:
        low = x[n, g, b, row, at : at + N, 0:8].to(f32)
        return pack2(low, x[n, g, b, row, at : at + N, 8:16].to(f32))
    return x[n, g, b, row, at : at + N, 0:16].to(f32)


def _put(seen, b, r, i, N, words):
    """Inline: N pixels into a copy."""
    if seen.shape[3] == 1:
        seen[b, r, i : i + N, 0] = words
    else:
        seen[b, r, i : i + N, 0 : seen.shape[3]] = words


def _copied(x, seen, n, g, row, column, LEFT, PAIRS):
    """Fill ``seen`` (blocks, rows, columns, words) with x from (row, column) on; inline.

    LEFT is ``-column`` where the whole width of x is seen, else None: then every pixel is checked.
    """
    N = 16 if x.shape[5] == 1 else 4
    width = 0 if LEFT is None else min(x.shape[4], seen.shape[2] - LEFT)
    SHAPE = (N,) if x.shape[5] == 1 else (N, seen.shape[3])
    for b in range(seen.shape[0]):
        for r in range(seen.shape[1]):
            if width < N:
                for i in range(0, seen.shape[2], N):
                    words = _words(x, n, g, b, row + r, column + i, N, PAIRS)
                    _put(seen, b, r, i, N, words)
            else:
                inside = (row + r >= 0) & (row + r < x.shape[3])
                at_row = tl.minimum(tl.maximum(row + r, 0), x.shape[3] - 1)
                first = tl.where(inside, LEFT, seen.shape[2])
                for i in range(0, first, N):
                    _put(seen, b, r, i, N, zeros(SHAPE, seen.dtype))
                for i in range(LEFT + width, seen.shape[2], N):
                    _put(seen, b, r, i, N, zeros(SHAPE, seen.dtype))
                if inside:
                    for j in range(-(-width // N)):
                        i = tl.minimum(j * N, width - N)
                        words = _words(x, n, g, b, at_row, i, N, PAIRS)
                        _put(seen, b, r, LEFT + i, N, words)


@kernel
def conv_blocks(
    x: Array,
    w: Array,
    y: Array,
    extras: Arrays,
    STRIDES: Const,
    DILATION: Const,
    LOW: Const,
    TILE: Const,
    PIECE: Const,
    SLAB: Const,
    PANELS: Const,
    CHUNK: Const,
    LAST: Const,
    epilogue: Inline,
):
    """y (N, groups * OB, OH, OW, 16) from x (N, groups, B, H, W, inner) and packed w.

    w is (groups, panels, B, inner, KH, KW, lanes), f32, or u32 for pairs of bf16. A program makes
    PIECE (rows, columns) of PANELS panels, in tiles of TILE: grid (OH * OW / PIECE, N, groups *
    panels / PANELS). SLAB is (rows, columns) of the copy of x, or empty: x is read in place. The
    weights of CHUNK blocks of x are used for every tile before the next ones; sums wait in memory.
    The last block has LAST words of channels.
    """
    rows, columns = PIECE
    across = (y.shape[3] + (columns - 1)) // columns
    first = tl.minimum(program_id(0) // across * rows, y.shape[2] - rows)
    left_end = tl.minimum(program_id(0) % across * columns, y.shape[3] - columns)
    n = program_id(1)
    splits = w.shape[1] // PANELS
    g, panel0 = program_id(2) // splits, program_id(2) % splits * PANELS
    V = (w.shape[6] + 15) // 16
    PAIRS = w.dtype is u32
    if len(SLAB):
        seen = scratch((w.shape[2], *SLAB, w.shape[3]), w.dtype)
        row, column = first * STRIDES[0] - LOW[0], left_end * STRIDES[1] - LOW[1]
        LEFT = LOW[1] if columns == y.shape[3] and LOW[1] >= 0 else None
        _copied(x, seen, n, g, row, column, LEFT, PAIRS)
    down, over = -(-rows // TILE[0]), -(-columns // TILE[1])
    sums = scratch((down * over if w.shape[2] > CHUNK else 1, *TILE, w.shape[6]), f32)
    for panel in range(panel0, panel0 + PANELS):
        o = (g * w.shape[1] + panel) * V
        for b0 in range(0, w.shape[2], CHUNK):
            for i in range(down):
                h = tl.minimum(i * TILE[0], rows - TILE[0])
                for j in range(over):
                    at = tl.minimum(j * TILE[1], columns - TILE[1])
                    acc = zeros((*TILE, w.shape[6]), f32)
                    if w.shape[2] > CHUNK and b0 > 0:
                        acc = sums[i * over + j, 0 : TILE[0], 0 : TILE[1], 0 : w.shape[6]]
                    for b in range(b0, tl.minimum(b0 + CHUNK, w.shape[2])):
                        there = w.shape[3]
                        if w.shape[3] > LAST:
                            there = tl.where(b < w.shape[2] - 1, w.shape[3], LAST)
                        for c in range(there):
                            for kh in range(w.shape[4]):
                                for kw in unroll(w.shape[5]):
                                    right = w[g, panel, b, c, kh, kw, 0 : w.shape[6]]
                                    top = h * STRIDES[0] + kh * DILATION[0]
                                    side = at * STRIDES[1] + kw * DILATION[1]
                                    if len(SLAB):
                                        left = seen[
                                            b,
                                            top : top + TILE[0] * STRIDES[0] : STRIDES[0],
                                            side : side + TILE[1] * STRIDES[1] : STRIDES[1],
                                            c,
                                        ]
                                    else:
                                        top = top + first * STRIDES[0]
                                        side = side + left_end * STRIDES[1]
                                        left = x[
                                            n,
                                            g,
                                            b,
                                            top : top + TILE[0] * STRIDES[0] : STRIDES[0],
                                            side : side + TILE[1] * STRIDES[1] : STRIDES[1],
                                            c,
                                        ]
                                    acc = _step(acc, left, right)
                    hh, ww = first + h, left_end + at
                    if w.shape[2] == CHUNK:
                        _store(acc, y, n, o, hh, ww, extras, epilogue)
                    elif b0 + CHUNK < w.shape[2]:
                        sums[i * over + j, 0 : TILE[0], 0 : TILE[1], 0 : w.shape[6]] = acc
                    else:
                        _store(acc, y, n, o, hh, ww, extras, epilogue)


def _store(acc, y, n, o, h, w, extras, epilogue):
    """Finish a tile of neighbouring blocks of channels; inline."""
    rows, columns = acc.shape[0], acc.shape[1]
    for v in unroll(acc.shape[2] // 16):
        part = epilogue(acc[:, :, 16 * v : 16 * v + 16], n, o + v, h, w, extras)
        y[n, o + v, h : h + rows, w : w + columns, 0:16] = part
    if acc.shape[2] % 16:  # half a block, the last: zeros beyond it
        v = acc.shape[2] // 16
        part = epilogue(acc[:, :, 16 * v : 16 * v + 8], n, o + v, h, w, extras)
        y[n, o + v, h : h + rows, w : w + columns, 0:8] = part
        y[n, o + v, h : h + rows, w : w + columns, 8:16] = zeros((rows, columns, 8), y.dtype)


def taps_inside(at, K, LOW, STRIDE, DILATION, size):
    """The first tap of output ``at`` that reads a pixel, and the one past the last; inline."""
    start = at * STRIDE - LOW
    first = tl.minimum((tl.maximum(-start, 0) + (DILATION - 1)) // DILATION, K)
    last = (tl.maximum(size - start, 0) + (DILATION - 1)) // DILATION
    return first, tl.minimum(last, K)


@kernel
def depthwise_blocks(
    x: Array,
    w: Array,
    y: Array,
    extras: Arrays,
    STRIDES: Const,
    DILATION: Const,
    LOW: Const,
    TILE: Const,
    ROWS: Const,
    SLAB: Const,
    epilogue: Inline,
):
    """y (N, B, OH, OW, 16) from x (N, B, 1, H, W, 16), w (B, KH, KW, 16): grid (OH / ROWS, B, N).

    TILE columns are summed at once. SLAB is as in ``conv_blocks``.
    """
    o, n = tl.minimum(program_id(1), w.shape[0] - 1), program_id(2)
    first = tl.minimum(program_id(0) * ROWS, y.shape[2] - ROWS)
    if len(SLAB):
        seen = scratch((1, *SLAB, 16), f32)
        row = first * STRIDES[0] - LOW[0]
        LEFT = LOW[1] if LOW[1] >= 0 else None
        _copied(x, seen, n, o, row, -LOW[1], LEFT, False)
    for h in range(ROWS):
        for i in range(-(-y.shape[3] // TILE)):
            at = tl.minimum(i * TILE, y.shape[3] - TILE)
            acc = zeros((TILE, 16), f32)
            if w.shape[1] * w.shape[2] * TILE <= 80:
                for kh in unroll(w.shape[1]):
                    top = h * STRIDES[0] + kh * DILATION[0]
                    acc = _row_of_taps(
                        x,
                        seen if len(SLAB) else None,
                        w,
                        n,
                        o,
                        first,
                        top,
                        at,
                        kh,
                        acc,
                        STRIDES,
                        DILATION,
                        TILE,
                    )
            else:
                for kh in range(w.shape[1]):
                    top = h * STRIDES[0] + kh * DILATION[0]
                    acc = _row_of_taps(
                        x,
                        seen if len(SLAB) else None,
                        w,
                        n,
                        o,
                        first,
                        top,
                        at,
                        kh,
                        acc,
                        STRIDES,
                        DILATION,
                        TILE,
                    )
            part = epilogue(expand_dims(acc, 0), n, o, first + h, at, extras)
            y[n, o, first + h : first + h + 1, at : at + TILE, 0:16] = part


def _row_of_taps(x, seen, w, n, o, first, top, at, kh, acc, STRIDES, DILATION, TILE):
    """Inline: acc plus the taps of one row of the kernel."""
    for kw in unroll(w.shape[2]):
        side = at * STRIDES[1] + kw * DILATION[1]
        if seen is None:
            top_row = first * STRIDES[0] + top
            part = x[n, o, 0, top_row, side : side + TILE * STRIDES[1] : STRIDES[1], 0:16]
        else:
            part = seen[0, top, side : side + TILE * STRIDES[1] : STRIDES[1], 0:16]
        acc = fma(part.to(f32), w[o, kh, kw, 0:16], acc)
    return acc


@kernel
def depthwise_direct(
    x: Array,
    w: Array,
    y: Array,
    extras: Arrays,
    STRIDES: Const,
    DILATION: Const,
    LOW: Const,
    INNER: Const,
    TILE: Const,
    ROWS: Const,
    epilogue: Inline,
):
    """The same without a copy, for images so wide that their few edge columns do not matter.

    x is (N, B, H, W, 16). INNER are the first output column that sees no padding and the one past
    the last; the others are written out one by one, each with the taps that it has.
    """
    o, n = tl.minimum(program_id(1), w.shape[0] - 1), program_id(2)
    first = tl.minimum(program_id(0) * ROWS, y.shape[2] - ROWS)
    lo, hi = INNER
    for r in range(ROWS):
        h = first + r
        above, below = taps_inside(h, w.shape[1], LOW[0], STRIDES[0], DILATION[0], x.shape[2])
        top = h * STRIDES[0] - LOW[0]
        for i in range(-(-(hi - lo) // TILE)):
            at = tl.minimum(lo + i * TILE, hi - TILE)
            acc = zeros((TILE, 16), f32)
            for kh in range(above, below):
                row = tl.minimum(tl.maximum(top + kh * DILATION[0], 0), x.shape[2] - 1)
                for kw in unroll(w.shape[2]):
                    side = at * STRIDES[1] + (kw * DILATION[1] - LOW[1])
                    seen = x[n, o, row, side : side + TILE * STRIDES[1] : STRIDES[1], 0:16]
                    acc = fma(seen.to(f32), w[o, kh, kw, 0:16], acc)
            part = epilogue(expand_dims(acc, 0), n, o, h, at, extras)
            y[n, o, h : h + 1, at : at + TILE, 0:16] = part
        for i in unroll(lo + y.shape[3] - hi):
            at = i if i < lo else i + (hi - lo)
            acc = zeros((1, 1, 16), f32)
            for kh in range(above, below):
                row = tl.minimum(tl.maximum(top + kh * DILATION[0], 0), x.shape[2] - 1)
                for kw in unroll(w.shape[2]):
                    side = at * STRIDES[1] + kw * DILATION[1] - LOW[1]
                    if side >= 0 and side < x.shape[3]:
                        seen = x[n, o, row, side, 0:16].to(f32)
                        acc = fma(seen, w[o, kh, kw, 0:16], acc)
            y[n, o, h : h + 1, at : at + 1, 0:16] = epilogue(acc, n, o, h, at, extras)


@kernel
def pool_blocks(
    x: Array,
    y: Array,
    KERNEL: Const,
    STRIDES: Const,
    DILATION: Const,
    LOW: Const,
    INNER: Const,
    TILE: Const,
    ROWS: Const,
    MAX: Const,
    DIVISOR: Const,
):
    """y (N, B, OH, OW, 16), maxima or means of windows of x: grid (OH / ROWS, B, N).

    DIVISOR is every window's, or 0: the pixels that it sees count.
    """
    o, n = program_id(1), program_id(2)
    start = program_id(0) * ROWS
    lo, hi = INNER
    WIDE = x.dtype if MAX else f32
    lowest = -tl.inf if MAX else 0.0
    for h in range(start, tl.minimum(start + ROWS, y.shape[2])):
        above, below = taps_inside(h, KERNEL[0], LOW[0], STRIDES[0], DILATION[0], x.shape[2])
        top = h * STRIDES[0] - LOW[0]
        for i in range(-(-(hi - lo) // TILE)):
            at = tl.minimum(lo + i * TILE, hi - TILE)
            acc = full((TILE, 16), lowest, WIDE)
            for kh in range(above, below):
                row = top + kh * DILATION[0]
                for kw in unroll(KERNEL[1]):
                    side = at * STRIDES[1] + (kw * DILATION[1] - LOW[1])
                    seen = x[n, o, row, side : side + TILE * STRIDES[1] : STRIDES[1], 0:16]
                    acc = tl.maximum(acc, seen) if MAX else acc + seen.to(f32)
            if MAX:
                y[n, o, h, at : at + TILE, 0:16] = acc
            elif DIVISOR:
                y[n, o, h, at : at + TILE, 0:16] = (acc / DIVISOR).to(y.dtype)
            else:
                count = (tl.maximum(below - above, 1) * KERNEL[1]).to(f32)
                y[n, o, h, at : at + TILE, 0:16] = (acc / count).to(y.dtype)
        for i in range(lo + y.shape[3] - hi):
            at = tl.where(i < lo, i, i + (hi - lo))
            before, after = taps_inside(at, KERNEL[1], LOW[1], STRIDES[1], DILATION[1], x.shape[3])
            acc = full((16,), lowest, WIDE)
            for kh in range(above, below):
                for kw in range(before, after):
                    side = at * STRIDES[1] - LOW[1] + kw * DILATION[1]
                    seen = x[n, o, top + kh * DILATION[0], side, 0:16]
                    acc = tl.maximum(acc, seen) if MAX else acc + seen.to(f32)
            if MAX:
                y[n, o, h, at, 0:16] = acc
            elif DIVISOR:
                y[n, o, h, at, 0:16] = (acc / DIVISOR).to(y.dtype)
            else:
                count = (tl.maximum(below - above, 0) * tl.maximum(after - before, 0)).to(f32)
                y[n, o, h, at, 0:16] = (acc / tl.maximum(count, 1.0)).to(y.dtype)


# Their loops are written as they shall run; the passes that would look for more take most of the
# time that compiling takes, and find nothing (as fast, measured on the layers of ResNet-50).
for _kernel in (conv_blocks, depthwise_blocks, depthwise_direct, pool_blocks):
    _kernel.light = True

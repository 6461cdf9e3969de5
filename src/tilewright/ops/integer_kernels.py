"""Kernels of 8-bit products and convolutions: exact sums in int32, results made in registers.

Operands meet as *words* of four bytes along k: activations unsigned (signed ones are biased by 128
as they are read, by one xor), weights signed and packed in panels (:mod:`tilewright.ops.panels`).
A tile of rows takes every word of a panel by ``dot4``; what zero points add to the sum is one
number per output, known before (``off``), and, where weights have zero points too, the sum of each
row. Sums are exact in int32 (they wrap, as the definition does), so no order matters.

A result is ``saturate(round_half_even(sum * mult) + zp)``, the product rounded to f32 first: the
clamp comes before the rounding, which then is one addition.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)
# ruff: noqa: B023 (an inline function is part of where it is called)

from __future__ import annotations

from tilewright import lang as tl
from tilewright.dtypes import f32, i8, i32, u8, u32
from tilewright.lang import (
    Array,
    Const,
    bitcast,
    dot4,
    expand_dims,
    i64,
    num_programs,
    program_id,
    scratch,
    unroll,
    where,
    zeros,
)
from tilewright.runtime.launch import kernel

__all__ = ["LANES", "depthwise_bytes", "gemm_bytes", "gemm_rows", "pack_panels", "panel_sums"]

LANES = 64  # outputs of a panel
ROUND = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer, half to even, in the low bits
ONES = 0x01010101
SIGNS = 0x80808080


def narrow(v, zp, dtype):
    """f32 tile to 8 bits: round half to even, add zp (i32), saturate; inline."""
    low = (-128 if dtype is i8 else 0) - zp
    v = where(v < low.to(f32), low.to(f32), v)
    v = where(v > (low + 255).to(f32), (low + 255).to(f32), v)
    return (bitcast(v + ROUND, i32) + zp).to(dtype)


def finish(acc, off, mult, zp, mode):
    """Sums (MR, W) to what is stored; off and mult are (W,); inline."""
    total = acc + expand_dims(off, 0)
    if mode == "i32":
        return total
    scaled = total.to(f32) * expand_dims(mult, 0)
    if mode == "f32":
        return scaled
    return narrow(scaled, zp, i8 if mode == "i8" else u8)


def product(word, panels, g, p, row, MR, L, K4):
    """The sums of MR rows with a panel's first L outputs; ``word(row, k)`` is (MR,) u32; inline."""
    acc = zeros((MR, L), i32)
    for k in range(K4):
        acc = dot4(acc, expand_dims(word(row, k), 1), expand_dims(panels[g, p, k, 0:L], 0))
    return acc


def less_rows(acc, sums, zws, row, MR):
    """What zero points of weights take off: zws (W,) times the sum of each row; inline."""
    return acc - expand_dims(sums[row : row + MR], 1) * expand_dims(zws, 0)


def row_sum(words, K4):
    """The sum of a row's unsigned bytes; ``words(k, n)`` is u32 (n,); inline."""
    total = zeros((16,), i32)
    for k in range(K4 // 16):
        total = dot4(total, words(k * 16, 16), tl.full((16,), ONES, i32))
    out = tl.sum(total)
    if K4 % 16:
        rest = zeros((K4 % 16,), i32)
        out += tl.sum(dot4(rest, words(K4 - K4 % 16, K4 % 16), tl.full((K4 % 16,), ONES, i32)))
    return out


@kernel
def gemm_bytes(
    x: Array,
    panels: Array,
    off: Array,
    mult: Array,
    zws: Array,
    zp: Array,
    y: Array,
    full: i64,
    ROWS: Const,
    MR: Const,
    PANELS: Const,
    TAIL: Const,
    SIGNED: Const,
    ASYM: Const,
    MODE: Const,
):
    """y (G, R, O) = rows of words x (G, R, K4) times panels (G, P, K4, L).

    ASYM is K4 where weights have zero points ``zws``, else 0. Grid (R / ROWS, columns / PANELS, G);
    the first ``full`` panels have all outputs, TAIL outputs stand in one more. R is at least MR.
    """
    g = program_id(2)
    first = program_id(0) * ROWS
    end = tl.minimum(first + ROWS, x.shape[1])
    first = tl.minimum(first, end - MR)
    k4 = panels.shape[2]
    sums = scratch((ROWS + MR if ASYM else 1,), i32)

    def word(row, k):
        seen = x[g, row : row + MR, k]
        return seen ^ SIGNS if SIGNED else seen

    if ASYM:
        for row in range(first, end):

            def words(k, n):
                seen = x[g, row, k : k + n]
                return seen ^ SIGNS if SIGNED else seen

            sums[row - first] = row_sum(words, ASYM)
    zero = zp[0].to(i32)
    start = program_id(1) * PANELS
    for p in range(start, tl.minimum(start + PANELS, full)):
        c = p * 64
        for t in range(first, end, MR):
            row = tl.minimum(t, end - MR)
            acc = product(word, panels, g, p, row, MR, 64, k4)
            if ASYM:
                acc = less_rows(acc, sums, zws[g, c : c + 64], row - first, MR)
            out = finish(acc, off[g, c : c + 64], mult[g, c : c + 64], zero, MODE)
            y[g, row : row + MR, c : c + 64] = out
    if TAIL and program_id(1) == num_programs(1) - 1:
        c = full * 64
        for t in range(first, end, MR):
            row = tl.minimum(t, end - MR)
            wide = product(word, panels, g, full, row, MR, (TAIL + 15) // 16 * 16, k4)
            acc = wide[:, 0:TAIL]
            if ASYM:
                acc = less_rows(acc, sums, zws[g, c : c + TAIL], row - first, MR)
            out = finish(acc, off[g, c : c + TAIL], mult[g, c : c + TAIL], zero, MODE)
            y[g, row : row + MR, c : c + TAIL] = out


def copy_words(a, r, at, line, n, mask):
    """``a[r, at : at + n]`` from ``line(j, m)``, m words from j on, by 64 at a time; inline."""
    for j in range(0, n // 64 * 64, 64):
        a[r, at + j : at + j + 64] = line(j, 64) ^ mask
    if n % 64:
        a[r, at + n // 64 * 64 : at + n] = line(n // 64 * 64, n % 64) ^ mask


def fill_words(a, r, at, n, value):
    """``a[r, at : at + n] = value``; inline."""
    for j in range(0, n // 64 * 64, 64):
        a[r, at + j : at + j + 64] = tl.full((64,), value, u32)
    if n % 64:
        a[r, at + n // 64 * 64 : at + n] = tl.full((n % 64,), value, u32)


def gather_row(a, r, x, n, g, at3, lows, fill, C4, KERNEL, STRIDES, DILATION, MASK):
    """The words that one output position sees, taps in order, into ``a[r]``; inline.

    x (N, D, H, W, G, C4). Positions outside read ``fill``. Indices are clamped before they are
    used, so that every window lies inside and the kernel's body needs no checks.
    """
    KW = KERNEL[2]
    d0, h0 = at3[0] * STRIDES[0] - lows[0], at3[1] * STRIDES[1] - lows[1]
    w0 = at3[2] * STRIDES[2] - lows[2]
    last = x.shape[3] - 1
    for kd in range(KERNEL[0]):
        d = d0 + kd * DILATION[0]
        dc = tl.minimum(tl.maximum(d, 0), x.shape[1] - 1)
        for kh in range(KERNEL[1]):
            h = h0 + kh * DILATION[1]
            hc = tl.minimum(tl.maximum(h, 0), x.shape[2] - 1)
            at = (kd * KERNEL[1] + kh) * (KW * C4)
            if (d == dc) & (h == hc):
                for kw in range(KW):
                    w = w0 + kw * DILATION[2]
                    wc = tl.minimum(tl.maximum(w, 0), last)
                    if w == wc:

                        def line(j, m):
                            return x[n, dc, hc, wc, g, j : j + m]

                        copy_words(a, r, at + kw * C4, line, C4, MASK)
                    else:
                        fill_words(a, r, at + kw * C4, C4, fill)
            else:
                fill_words(a, r, at, KW * C4, fill)


def gather_run(a, r, x, n, at3, w0, lows, fill, C4, KERNEL, STRIDES, DILATION, MASK):
    """:func:`gather_row` where the taps of a line are neighbours and inside; inline."""
    run = KERNEL[2] * C4
    d0, h0 = at3[0] * STRIDES[0] - lows[0], at3[1] * STRIDES[1] - lows[1]
    start = w0 * C4
    for kd in range(KERNEL[0]):
        d = d0 + kd * DILATION[0]
        dc = tl.minimum(tl.maximum(d, 0), x.shape[1] - 1)
        for kh in range(KERNEL[1]):
            h = h0 + kh * DILATION[1]
            hc = tl.minimum(tl.maximum(h, 0), x.shape[2] - 1)
            at = (kd * KERNEL[1] + kh) * run
            if (d == dc) & (h == hc):

                def line(j, m):
                    return x[n, dc, hc, start + j : start + j + m]

                copy_words(a, r, at, line, run, MASK)
            else:
                fill_words(a, r, at, run, fill)


@kernel
def gemm_rows(
    x: Array,
    lines: Array,
    panels: Array,
    off: Array,
    mult: Array,
    zws: Array,
    zx: Array,
    zp: Array,
    y: Array,
    full: i64,
    low0: i64,
    low1: i64,
    low2: i64,
    OUT: Const,
    ACROSS: Const,
    TH: Const,
    TW: Const,
    MR: Const,
    STEP: Const,
    RUN: Const,
    C4: Const,
    KERNEL: Const,
    STRIDES: Const,
    DILATION: Const,
    TAIL: Const,
    SIGNED: Const,
    ASYM: Const,
    MODE: Const,
):
    """A convolution: y (G, N * OD, OH * OW, O) from words x (N, D, H, W, G, C4).

    A program makes TH lines of TW positions (TH is one unless TW is the whole line) of all outputs:
    it collects what each position sees, STEP words a row, zero points where padding is, and
    multiplies that. ``lines`` is x as (N, D, H, W * C4) where RUN says that a line's taps are
    neighbours. Grid (N * OD, tiles, G); ACROSS tiles make a line, OUT is (OD, OH, OW).
    """
    g = program_id(2)
    plane = program_id(0)
    n, od = plane // OUT[0], plane % OUT[0]
    oh0 = program_id(1) // ACROSS * TH
    ow0 = program_id(1) % ACROSS * TW
    width = OUT[2]
    tall = tl.minimum(OUT[1] - oh0, TH)
    wide = tl.minimum(width - ow0, TW)
    a = scratch((TH * TW + MR, STEP), u32)
    sums = scratch((TH * TW + MR if ASYM else 1,), i32)
    k4 = panels.shape[2]
    MASK = SIGNS if SIGNED else 0
    fill = (zx[0].to(i32) & 255).to(u32) * ONES ^ MASK
    inside = x.shape[3] - KERNEL[2]
    lows = (low0, low1, low2)
    for i in range(tall):
        for j in range(wide):
            oh, ow, r = oh0 + i, ow0 + j, i * wide + j
            at3 = (od, oh, ow)
            w0 = ow * STRIDES[2] - low2
            wc = tl.minimum(tl.maximum(w0, 0), inside)
            if RUN and w0 == wc:
                gather_run(a, r, lines, n, at3, wc, lows, fill, C4, KERNEL, STRIDES, DILATION, MASK)
            else:
                gather_row(a, r, x, n, g, at3, lows, fill, C4, KERNEL, STRIDES, DILATION, MASK)
            if ASYM:
                sums[r] = row_sum(lambda k, m: a[r, k : k + m], ASYM)

    def word(row, k):
        return a[row : row + MR, k]

    zero = zp[0].to(i32)
    count = tall * wide
    base = oh0 * width + ow0
    for p in range(full):
        c = p * 64
        for t in range(0, count, MR):
            row = tl.minimum(t, count - MR)
            acc = product(word, panels, g, p, row, MR, 64, k4)
            if ASYM:
                acc = less_rows(acc, sums, zws[g, c : c + 64], row, MR)
            out = finish(acc, off[g, c : c + 64], mult[g, c : c + 64], zero, MODE)
            y[g, plane, base + row : base + row + MR, c : c + 64] = out
    if TAIL:
        c = full * 64
        for t in range(0, count, MR):
            row = tl.minimum(t, count - MR)
            acc = product(word, panels, g, full, row, MR, (TAIL + 15) // 16 * 16, k4)[:, 0:TAIL]
            if ASYM:
                acc = less_rows(acc, sums, zws[g, c : c + TAIL], row, MR)
            out = finish(acc, off[g, c : c + TAIL], mult[g, c : c + TAIL], zero, MODE)
            y[g, plane, base + row : base + row + MR, c : c + TAIL] = out


def slab_line(slab, at, x, n, d, h, left, g, COLUMNS, C4, fill, MASK):
    """``slab[at]``, COLUMNS positions of line (d, h) of x (N, D, H, W, G, C4) from ``left`` on;
    inline. Positions outside hold ``fill``."""
    dc = tl.minimum(tl.maximum(d, 0), x.shape[1] - 1)
    hc = tl.minimum(tl.maximum(h, 0), x.shape[2] - 1)
    edge = tl.full((C4,), fill, u32)
    start = tl.minimum(tl.maximum(-left, 0), COLUMNS)
    stop = tl.maximum(tl.minimum(x.shape[3] - left, COLUMNS), start)
    if (d == dc) & (h == hc):
        for w in range(start):
            slab[at, w, 0:C4] = edge
        for w in range(start, stop):
            wc = tl.minimum(tl.maximum(w + left, 0), x.shape[3] - 1)
            slab[at, w, 0:C4] = x[n, dc, hc, wc, g, 0:C4] ^ MASK
        for w in range(stop, COLUMNS):
            slab[at, w, 0:C4] = edge
    else:
        for w in range(COLUMNS):
            slab[at, w, 0:C4] = edge


def slab_product(slab, line, at, panels, g, p, MR, L, C4, LINES, KERNEL, STRIDES, DILATION, ASYM):
    """Sums (MR, L) of MR neighbours with a panel, and (MR, 16) of what they see; inline.

    The first sees ``slab[line, at]`` at its first tap.
    """
    acc = zeros((MR, L), i32)
    rows = zeros((MR, 16), i32)
    for kd in range(KERNEL[0]):
        for kh in range(KERNEL[1]):
            seen = kd * LINES + line + kh * DILATION[1]
            base = (kd * KERNEL[1] + kh) * (KERNEL[2] * C4)
            for kw in range(KERNEL[2]):
                first = at + kw * DILATION[2]
                for c in range(C4):
                    words = slab[seen, first : first + MR * STRIDES[2] : STRIDES[2], c]
                    words = expand_dims(words, 1)
                    k = base + kw * C4 + c
                    acc = dot4(acc, words, expand_dims(panels[g, p, k, 0:L], 0))
                    if ASYM:
                        rows = dot4(rows, words, tl.full((1, 16), ONES, i32))
    return acc, rows


@kernel
def gemm_slab(
    x: Array,
    panels: Array,
    off: Array,
    mult: Array,
    zws: Array,
    zx: Array,
    zp: Array,
    y: Array,
    full: i64,
    low0: i64,
    low1: i64,
    low2: i64,
    ACROSS: Const,
    TH: Const,
    TW: Const,
    MR: Const,
    LINES: Const,
    COLUMNS: Const,
    C4: Const,
    KERNEL: Const,
    STRIDES: Const,
    DILATION: Const,
    TAIL: Const,
    SIGNED: Const,
    ASYM: Const,
    MODE: Const,
):
    """A convolution: y (G, N, OD, OH, OW, O) from words x (N, D, H, W, G, C4).

    A program makes TH lines of TW positions of all outputs. It copies what they see, padding
    included, LINES of COLUMNS positions for each tap of depth, and multiplies that in place: MR
    neighbours of a line at once. Grid (N * OD, tiles, G); ACROSS tiles make a line. OW is at
    least MR.
    """
    g = program_id(2)
    n, od = program_id(0) // y.shape[2], program_id(0) % y.shape[2]
    oh0 = program_id(1) // ACROSS * TH
    ow0 = program_id(1) % ACROSS * TW
    tall = tl.minimum(y.shape[3] - oh0, TH)
    end = tl.minimum(y.shape[4] - ow0, TW)
    slab = scratch((KERNEL[0] * LINES, COLUMNS + 16 * STRIDES[2], C4), u32)
    MASK = SIGNS if SIGNED else 0
    fill = (zx[0].to(i32) & 255).to(u32) * ONES ^ MASK
    used = (tall - 1) * STRIDES[1] + (KERNEL[1] - 1) * DILATION[1] + 1
    for kd in range(KERNEL[0]):
        d = od * STRIDES[0] + kd * DILATION[0] - low0
        for i in range(used):
            h = oh0 * STRIDES[1] + i - low1
            left = ow0 * STRIDES[2] - low2
            at = kd * LINES + i
            slab_line(slab, at, x, n, d, h, left, g, COLUMNS, C4, fill, MASK)
    zero = zp[0].to(i32)
    for p in range(full):
        c = p * 64
        for i in range(tall):
            for t in range(0, end, MR):
                at = tl.minimum(t, end - MR)
                acc, rows = slab_product(
                    slab, i * STRIDES[1], at * STRIDES[2], panels, g, p, MR, 64, C4, LINES, KERNEL,
                    STRIDES, DILATION, ASYM,
                )  # fmt: skip
                if ASYM:
                    acc = acc - rows[:, 0:1] * expand_dims(zws[g, c : c + 64], 0)
                out = finish(acc, off[g, c : c + 64], mult[g, c : c + 64], zero, MODE)
                ow = ow0 + at
                y[g, n, od, oh0 + i, ow : ow + MR, c : c + 64] = out
    if TAIL:
        c = full * 64
        for i in range(tall):
            for t in range(0, end, MR):
                at = tl.minimum(t, end - MR)
                acc, rows = slab_product(
                    slab, i * STRIDES[1], at * STRIDES[2], panels, g, full, MR,
                    (TAIL + 15) // 16 * 16, C4, LINES, KERNEL, STRIDES, DILATION, ASYM,
                )  # fmt: skip
                acc = acc[:, 0:TAIL]
                if ASYM:
                    acc = acc - rows[:, 0:1] * expand_dims(zws[g, c : c + TAIL], 0)
                out = finish(acc, off[g, c : c + TAIL], mult[g, c : c + TAIL], zero, MODE)
                ow = ow0 + at
                y[g, n, od, oh0 + i, ow : ow + MR, c : c + TAIL] = out


# --- depthwise -----------------------------------------------------------------------------------


@kernel
def depthwise_bytes(
    x: Array,
    words: Array,
    off: Array,
    mult: Array,
    zws: Array,
    zx: Array,
    zp: Array,
    y: Array,
    CB: Const,
    T: Const,
    WIDTH: Const,
    LOW: Const,
    KERNEL: Const,
    STRIDES: Const,
    DILATION: Const,
    SIGNED: Const,
    ASYM: Const,
    MODE: Const,
):
    """y (N, OH, OW, C) from bytes x (N, H, W, C); words i32 (KW, ceil(KH / 4), C).

    A word holds up to four taps of a column of one channel; it is built once and serves every
    output that sees the column. A program makes one line of CB channels: grid (N * OH, C / CB).
    WIDTH: columns that a line sees, padding included. OW is at least T.
    """
    KH, KW = KERNEL
    low1, low2 = LOW
    HW = (KH + 3) // 4
    n, oh = program_id(0) // y.shape[1], program_id(0) % y.shape[1]
    c = program_id(1) * CB
    seen = scratch((HW, WIDTH + T * STRIDES[1], CB), u32)
    MASK = SIGNS if SIGNED else 0
    fill = (zx[0].to(i32) & 255).to(u32)
    edge = tl.full((CB,), fill * ONES ^ MASK, u32)
    h0 = oh * STRIDES[0] - low1
    last = (KH - 1) * DILATION[0]
    right = tl.minimum(x.shape[2], WIDTH - low2)
    for q in unroll(HW):
        taps = min(KH - 4 * q, 4)
        inside = (h0 >= 0) & (h0 + last < x.shape[1])
        for w in range(max(low2, 0)):
            seen[q, w, 0:CB] = edge
        for w in range(tl.maximum(x.shape[2] + low2, 0), WIDTH):
            seen[q, w, 0:CB] = edge
        if inside:
            for w in range(max(-low2, 0), right):
                word = zeros((CB,), u32)
                for t in unroll(taps):
                    h = tl.minimum(tl.maximum(h0 + (4 * q + t) * DILATION[0], 0), x.shape[1] - 1)
                    part = x[n, h, w, c : c + CB].to(u32) & 255
                    word = word | (part << (8 * t))
                seen[q, w + low2, 0:CB] = word ^ MASK
        else:
            for w in range(max(-low2, 0), right):
                word = zeros((CB,), u32)
                for t in unroll(taps):
                    h = h0 + (4 * q + t) * DILATION[0]
                    hc = tl.minimum(tl.maximum(h, 0), x.shape[1] - 1)
                    part = x[n, hc, w, c : c + CB].to(u32) & 255
                    word = word | (where(h == hc, part, fill) << (8 * t))
                seen[q, w + low2, 0:CB] = word ^ MASK
    zero = zp[0].to(i32)
    o, m = off[c : c + CB], mult[c : c + CB]
    for step in range(0, y.shape[2], T):
        t = tl.minimum(step, y.shape[2] - T)
        acc = zeros((T, CB), i32)
        rows = zeros((T, CB), i32)
        for kw in unroll(KW):
            for q in unroll(HW):
                at = t * STRIDES[1] + kw * DILATION[1]
                column = seen[q, at : at + T * STRIDES[1] : STRIDES[1], 0:CB]
                acc = dot4(acc, column, expand_dims(words[kw, q, c : c + CB], 0))
                if ASYM:
                    ones = ONES >> (8 * (4 - min(KH - 4 * q, 4)))
                    rows = dot4(rows, column, tl.full((T, CB), ones, i32))
        if ASYM:
            acc = acc - rows * expand_dims(zws[c : c + CB], 0)
        y[n, oh, t : t + T, c : c + CB] = finish(acc, o, m, zero, MODE)


# --- packing -------------------------------------------------------------------------------------


@kernel
def pack_panels(w: Array, zw: Array, panels: Array, SIGNED: Const):
    """panels i32 (G, P, K4, L) from bytes w (G, K, O); what lies beyond K is ``zw`` (G, O).

    Words hold four k; unsigned bytes get 128 taken off. Grid (K4, P, G).
    """
    k, p, g = program_id(0), program_id(1), program_id(2)
    zero = zw[g, p * 64 : p * 64 + 64].to(i32)
    word = zeros((64,), i32)
    for j in unroll(4):
        part = w[g, 4 * k + j, p * 64 : p * 64 + 64].to(i32)
        part = where(4 * k + j < w.shape[1], part, zero) & 255
        word = word | (part << (8 * j))
    if not SIGNED:
        word = word ^ (SIGNS - (1 << 32))
    panels[g, p, k, 0:64] = word


@kernel
def panel_sums(panels: Array, sums: Array):
    """sums i32 (G, P * L): the sum of each output's weights. Grid (P, G)."""
    p, g = program_id(0), program_id(1)
    total = zeros((64,), i32)
    for k in range(panels.shape[2]):
        total = dot4(total, tl.full((64,), ONES, u32), panels[g, p, k, 0:64])
    sums[g, p * 64 : p * 64 + 64] = total

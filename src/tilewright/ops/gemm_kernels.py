"""Kernels of ``y = a @ b`` for arrays with any strides, batch by batch.

Contract: an output is one accumulator that takes one fused multiply-add per k, k ascending,
whatever the tiles, the strides or the number of threads; with bf16 operands it takes one ``dot2``
per pair of neighbouring k instead. Operands are cut into *words*: an element in the accumulator's
dtype, or a pair of bf16 in a u32.

:func:`gemm_blocked` is the loop nest of Goto and van de Geijn ("Anatomy of high-performance matrix
multiplication", 2008) with the panels chosen for small stacks: a block of ``a`` stays in the L2
cache, a panel of ``b`` in the L1 cache, the 8 x 32 sums in registers. What comes next is prefetched
while the sums are made, because on a shared machine waiting for memory costs more than copying.
:func:`gemm_direct` copies nothing and serves few rows; :func:`gemm_small` is the least code for the
least work, since a program that multiplies small matrices meets many shapes once.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from tilewright.lang import (
    Array,
    Arrays,
    Const,
    Inline,
    bf16,
    bitcast,
    dot2,
    expand_dims,
    f32,
    fma,
    i64,
    load,
    maximum,
    minimum,
    num_programs,
    pack2,
    prefetch,
    program_id,
    scratch,
    u16,
    u32,
    u64,
    unroll,
    where,
    zeros,
)
from tilewright.runtime.launch import kernel

__all__ = [
    "MOST_ROWS",
    "MOST_WORDS",
    "PANEL",
    "ROWS",
    "gemm_blocked",
    "gemm_direct",
    "gemm_panels",
    "gemm_small",
    "no_epilogue",
    "pack_panels",
    "row_words",
]

ROWS = 8  # rows of a tile: with 32 columns its sums take half the registers and hide the latency
PANEL = 32
MOST_ROWS = 384  # of a block with words of 4 bytes, half of that with 8: fills the L2 cache
MOST_WORDS = 400  # of k in a block: a panel's wait in the L1 cache
_UNROLL = 4


def no_epilogue(acc, o, p, i, j, extras):
    """Stores the sums as they are."""
    return acc


# --- words ---------------------------------------------------------------------------------------


def _pair(low, high):
    """Two tiles as bf16 pairs."""
    if low.dtype is f32:
        return pack2(low, high)
    first = bitcast(low.to(bf16), u16).to(u32)
    second = bitcast(high.to(bf16), u16).to(u32)
    return first | (second << 16)


def _halves(both):
    """bf16 pairs of the two f32 in each u64."""
    return _pair(bitcast(both.to(u32), f32), bitcast((both >> 32).to(u32), f32))


def _across(x, o, p, row, column, WIDTH, WORD, PAIRS, FILL):
    """WIDTH words of neighbouring k in a row of x (.., rows, k), from word ``column`` on."""
    if PAIRS and x.dtype is u64:
        return _halves(load(x[o, p, row, column : column + WIDTH], fill=FILL))
    if PAIRS:
        first = column * 2
        low = load(x[o, p, row, first : first + 2 * WIDTH : 2], fill=FILL)
        high = load(x[o, p, row, first + 1 : first + 1 + 2 * WIDTH : 2], fill=FILL)
        return _pair(low, high)
    return load(x[o, p, row, column : column + WIDTH], fill=FILL).to(WORD)


def _down(x, o, p, row, column, WIDTH, WORD, PAIRS, FILL):
    """The words number ``row`` of WIDTH neighbouring columns of x (.., k, columns)."""
    if PAIRS:
        low = load(x[o, p, row * 2, column : column + WIDTH], fill=FILL)
        high = load(x[o, p, row * 2 + 1, column : column + WIDTH], fill=FILL)
        return _pair(low, high)
    return load(x[o, p, row, column : column + WIDTH], fill=FILL).to(WORD)


def _step(acc, left, right):
    """One word of k more: u32 words are pairs of bf16."""
    if left.dtype is u32:
        return dot2(acc, expand_dims(left, 1), expand_dims(right, 0))
    return fma(expand_dims(left, 1), expand_dims(right, 0), acc)


# --- without packing -----------------------------------------------------------------------------


@kernel
def gemm_direct(
    a: Array,
    b: Array,
    y: Array,
    extras: Arrays,
    MT: Const,
    NT: Const,
    ACC: Const,
    PAIRS: Const,
    epilogue: Inline,
):
    """y (b0, b1, m, n) = a (b0, b1, m, k) @ b (b0, b1, k, n): a tile of MT x NT per program.

    With PAIRS elements go two at a time as bf16.
    """
    inner = y.shape[1]
    o = program_id(2) // inner
    p = program_id(2) % inner
    i, j = program_id(1) * MT, program_id(0) * NT
    acc = zeros((MT, NT), ACC)
    if PAIRS:
        for k in range(0, a.shape[3], 2):
            left = _pair(a[o, p, i : i + MT, k], load(a[o, p, i : i + MT, k + 1], fill=-0.0))
            right = _pair(b[o, p, k, j : j + NT], b[o, p, k + 1, j : j + NT])
            acc = _step(acc, left, right)
    else:
        whole = a.shape[3] // _UNROLL * _UNROLL
        for k in range(0, whole, _UNROLL):
            for u in unroll(_UNROLL):
                left = a[o, p, i : i + MT, k + u].to(ACC)
                acc = _step(acc, left, b[o, p, k + u, j : j + NT].to(ACC))
        for k in range(whole, a.shape[3]):
            left = a[o, p, i : i + MT, k].to(ACC)
            acc = _step(acc, left, b[o, p, k, j : j + NT].to(ACC))
    y[o, p, i : i + MT, j : j + NT] = epilogue(acc, o, p, i, j, extras)


@kernel
def row_words(a: Array, words: Array, WORD: Const, PAIRS: Const, FILL: Const):
    """Rows of a (b0, b1, m, k) as words (b0, b1, m, words of k): a row per program."""
    i = program_id(0)
    o = program_id(1) // a.shape[1]
    p = program_id(1) % a.shape[1]
    for k in range(0, words.shape[3], 32):
        words[o, p, i, k : k + 32] = _across(a, o, p, i, k, 32, WORD, PAIRS, FILL)


def _row_words(a, o, p, i, k, MT, ACC, PAIRS):
    """Word number k of MT rows of a (b0, b1, m, k); u32 arrays are pairs, u64 pairs of f32."""
    if PAIRS and a.dtype is u32:
        return a[o, p, i : i + MT, k]
    if PAIRS and a.dtype is u64:
        return _halves(a[o, p, i : i + MT, k])
    if PAIRS:
        odd = load(a[o, p, i : i + MT, 2 * k + 1], fill=-0.0)
        return _pair(a[o, p, i : i + MT, 2 * k], odd)
    return a[o, p, i : i + MT, k].to(ACC)


@kernel
def gemm_panels(
    a: Array,
    b: Array,
    y: Array,
    extras: Arrays,
    rows: u16,
    MT: Const,
    NR: Const,
    ACC: Const,
    PAIRS: Const,
    epilogue: Inline,
):
    """y (b0, b1, m, n) = a (b0, b1, m, k) @ b, packed as (panels, words, NR): a panel of columns
    and ``rows`` rows, MT at a time, per program; m is at least MT.

    The last rows may be made together with some before them, a second time.
    """
    height = rows.to(i64)
    panel, first = program_id(0), program_id(1) * height
    o = program_id(2) // y.shape[1]
    p = program_id(2) % y.shape[1]
    words = a.shape[3]
    if (PAIRS and a.dtype.bits < 32) or (PAIRS and a.dtype is f32):
        words = (a.shape[3] + 1) // 2
    j = panel * NR
    for t in range(first, minimum(first + height, y.shape[2]), MT):
        i = minimum(t, y.shape[2] - MT)
        acc = zeros((MT, NR), ACC)
        whole = words // _UNROLL * _UNROLL
        for k in range(0, whole, _UNROLL):
            for u in unroll(_UNROLL):
                right = b[panel, k + u, 0:NR]
                if not PAIRS:
                    right = right.to(ACC)
                acc = _step(acc, _row_words(a, o, p, i, k + u, MT, ACC, PAIRS), right)
        for k in range(whole, words):
            right = b[panel, k, 0:NR]
            if not PAIRS:
                right = right.to(ACC)
            acc = _step(acc, _row_words(a, o, p, i, k, MT, ACC, PAIRS), right)
        y[o, p, i : i + MT, j : j + NR] = epilogue(acc, o, p, i, j, extras)


@kernel
def gemm_small(
    a: Array,
    b: Array,
    y: Array,
    extras: Arrays,
    MT: Const,
    NT: Const,
    ACC: Const,
    PAIRS: Const,
    epilogue: Inline,
):
    """The same, a (b0, b1, m, k, 1): the last axis makes one specialisation of all strides."""
    o = program_id(2) // y.shape[1]
    p = program_id(2) - o * y.shape[1]
    i, j = program_id(1) * MT, program_id(0) * NT
    acc = zeros((MT, NT), ACC)
    if PAIRS:
        for k in range(0, a.shape[3], 2):
            left = _pair(a[o, p, i : i + MT, k, 0], load(a[o, p, i : i + MT, k + 1, 0], fill=-0.0))
            right = _pair(b[o, p, k, j : j + NT], b[o, p, k + 1, j : j + NT])
            acc = _step(acc, left, right)
    else:
        for k in range(a.shape[3]):
            left = a[o, p, i : i + MT, k, 0].to(ACC)
            acc = _step(acc, left, b[o, p, k, j : j + NT].to(ACC))
    y[o, p, i : i + MT, j : j + NT] = epilogue(acc, o, p, i, j, extras)


# Compiled as generated kernels are, in a seventh of the time: the passes that are left out would
# find nothing to do in these loops (they run as fast, measured at 64 x 64 x 64).
gemm_small.generated = True


# --- packed blocks -------------------------------------------------------------------------------


# Blocks are as large as a launch says, so that new shapes need no new code. Scratch arrays hold
# the largest; what indexes them is bounded by arithmetic that the compiler can follow, which
# spares every access a check.


def _within(i, LIMIT):
    """``i``, which is below LIMIT, so that the compiler knows it too."""
    return (i.to(u64) % LIMIT).to(i64)


def _at_most(n, LIMIT):
    """``n``, which is LIMIT or less, so that the compiler knows a bound it can compute with."""
    return _within(n & 65535, LIMIT + 1)


def _window(k, words, WIDTH):
    """Where to read WIDTH of ``words`` words from k on: the last window is moved back to fit."""
    return maximum(minimum(k, words - WIDTH), 0)


def _pack_panel(b, right, o, p, k0, j, words, NR, WORD, PAIRS, BT):
    """``words`` words of NR columns of b into right (.., NR); b is (.., n, k) when BT."""
    if BT:
        for start in range(0, words, 16):
            k = _window(start, words, 16)
            _pack_square(b, right, o, p, k0 + k, j, _within(k, MOST_WORDS), NR, WORD, PAIRS)
    else:
        for k in range(words):
            right[_within(k, MOST_WORDS), 0:NR] = _down(b, o, p, k0 + k, j, NR, WORD, PAIRS, 0)


def _pack_square(b, right, o, p, k0, j, k, NR, WORD, PAIRS):
    """16 words of k, NR columns, of which b (.., n, k) has the rows."""
    if WORD.bits == 32 and (b.dtype is u64 or not PAIRS):
        WIDTH = min(16, NR)
        for h in unroll(0, NR, WIDTH):
            rows = j + h
            if PAIRS:
                block = _halves(b[o, p, rows : rows + WIDTH, k0 : k0 + 16])
            else:
                block = b[o, p, rows : rows + WIDTH, k0 : k0 + 16].to(WORD)
            right[k : k + 16, h : h + WIDTH] = block.T
    else:
        for n in range(NR):
            right[k : k + 16, n] = _across(b, o, p, j + n, k0, 16, WORD, PAIRS, 0)


@kernel
def pack_panels(
    b: Array, packed: Array, words: u16, NR: Const, WORD: Const, PAIRS: Const, BT: Const
):
    """b (1, 1, k, n), or (1, 1, n, k) when BT, as panels: packed (chunks, panels, words, NR).

    Words of k beyond the end are zero.
    """
    panel, chunk = program_id(0), program_id(1)
    right = scratch((MOST_WORDS + 16, NR), WORD)
    exact = words.to(i64)
    _pack_panel(b, right, 0, 0, chunk * exact, panel * NR, exact, NR, WORD, PAIRS, BT)
    for k in range(_at_most(exact, MOST_WORDS)):
        packed[chunk, panel, k, 0:NR] = right[k, 0:NR]


def _pack_block(a, left, o, p, i0, k0, rows, words, WORD, PAIRS, AT, FILL, LIMIT):
    """``words`` words of ``rows`` rows of a into left (rows, words), or (words, rows) when AT.

    a is (.., k, m) when AT.
    """
    if AT:
        for k in range(words):
            to = _within(k, MOST_WORDS)
            for start in range(0, rows, 32):
                i, at = _within(start, LIMIT), i0 + start
                left[to, i : i + 32] = _down(a, o, p, k0 + k, at, 32, WORD, PAIRS, FILL)
    else:
        for i in range(rows):
            to = _within(i, LIMIT)
            for start in range(0, words, 32):
                at = _window(start, words, 32)
                k = _within(at, MOST_WORDS)
                left[to, k : k + 32] = _across(a, o, p, i0 + i, k0 + at, 32, WORD, PAIRS, FILL)


def _sum(left, right, acc, i, words, MR, NR, AT):
    """acc plus ``words`` words of MR packed rows times a packed panel."""
    whole = words // _UNROLL * _UNROLL
    for k in range(0, whole, _UNROLL):
        for u in unroll(_UNROLL):
            rows = left[k + u, i : i + MR] if AT else left[i : i + MR, k + u]
            acc = _step(acc, rows, right[k + u, 0:NR])
    for k in range(whole, words):
        rows = left[k, i : i + MR] if AT else left[i : i + MR, k]
        acc = _step(acc, rows, right[k, 0:NR])
    return acc


def _sum_prepacked(left, b, chunk, panel, acc, i, words, MR, NR, AT):
    """The same with a panel of b (chunks, panels, words, NR)."""
    whole = words // _UNROLL * _UNROLL
    for k in range(0, whole, _UNROLL):
        for u in unroll(_UNROLL):
            rows = left[k + u, i : i + MR] if AT else left[i : i + MR, k + u]
            acc = _step(acc, rows, b[chunk, panel, k + u, 0:NR].to(left.dtype))
    for k in range(whole, words):
        rows = left[k, i : i + MR] if AT else left[i : i + MR, k]
        acc = _step(acc, rows, b[chunk, panel, k, 0:NR].to(left.dtype))
    return acc


def _prefetch_row(x, o, p, row, start, count, LEVEL):
    """``count`` elements of a row of x."""
    LINE = 512 // x.dtype.bits
    for c in range(0, count, LINE):
        prefetch(x[o, p, row, start + c : start + c + 1], level=LEVEL)


def _prefetch_panel(b, o, p, k0, j, chunk, t, share, words, NR, ELEMENTS, BT, PRE):
    """Share number t, of ``share`` rows, of the panel of b that comes next."""
    first = t * share
    if PRE:
        for u in range(share):
            prefetch(b[chunk, j // NR, first + u, 0:NR])
    else:
        if share > 0:
            if BT:
                for u in range(share):
                    _prefetch_row(b, o, p, j + first + u, k0 * ELEMENTS, words * ELEMENTS, 1)
            else:
                for u in range(share):
                    prefetch(b[o, p, k0 * ELEMENTS + first + u, j : j + NR])


def _prefetch_rows(a, o, p, number, share, i0, k0, rows, words, ELEMENTS, AT):
    """``share`` rows from ``number * share`` on of the block of a that comes next."""
    first = number * share
    if AT:
        if first < words * ELEMENTS:
            for u in range(share):
                _prefetch_row(a, o, p, k0 * ELEMENTS + first + u, i0, rows, 2)
    else:
        if first < rows:
            for u in range(share):
                _prefetch_row(a, o, p, i0 + first + u, k0 * ELEMENTS, words * ELEMENTS, 2)


@kernel
def gemm_blocked(
    a: Array,
    b: Array,
    sums: Array,
    y: Array,
    extras: Arrays,
    rows: u16,
    words: u16,
    panels: u16,
    chunks: u16,
    a_share: u16,
    b_share: u16,
    MR: Const,
    NR: Const,
    ACC: Const,
    WORD: Const,
    A_PAIRS: Const,
    B_PAIRS: Const,
    FILL: Const,
    AT: Const,
    BT: Const,
    PRE: Const,
    epilogue: Inline,
):
    """y (b0, b1, m, n) = a (b0, b1, m, k) @ b (b0, b1, k, n): ``rows`` rows, ``panels`` panels a
    program.

    Args:
        a: (b0, b1, k, m) when AT.
        b: (b0, b1, n, k) when BT, or what :func:`pack_panels` made when PRE.
        sums: like y, in ACC: holds the sums between chunks of k; may be y itself.
        rows: a multiple of MR.
        words: of k in a chunk.
        chunks: how many chunks of k there are.
        a_share, b_share: rows of the next block of a, of the next panel of b, to prefetch with
            each tile.
        WORD: what is multiplied: elements as WORD, or pairs of bf16 when it is u32.
        A_PAIRS, B_PAIRS: the operand's elements have to be paired; u32 arrays are pairs of bf16
            already, u64 arrays are pairs of f32.
        FILL: stands for a beyond the end of k: -0.0, whose product with 0 changes no sum.
    """
    LIMIT = MOST_ROWS * 32 // WORD.bits
    A_ELEMENTS = 2 if A_PAIRS and a.dtype is not u64 else 1
    B_ELEMENTS = 2 if B_PAIRS and b.dtype is not u64 else 1
    if AT:
        left = scratch((MOST_WORDS, LIMIT + 32), WORD)
    else:
        left = scratch((LIMIT + MR, MOST_WORDS + 32), WORD)
    if not PRE:
        right = scratch((MOST_WORDS + 16, NR), WORD)
    inner = y.shape[1]
    o = program_id(2) // inner
    p = program_id(2) % inner
    height, depth = rows.to(i64), words.to(i64)
    bounded = _at_most(depth, MOST_WORDS)
    tiles = height // MR
    i0 = program_id(1) * height
    count = panels.to(i64)
    j0 = program_id(0) * count * NR
    many = chunks.to(i64)
    ahead, across = a_share.to(i64), b_share.to(i64)
    for chunk in range(many):
        k0 = chunk * depth
        _pack_block(a, left, o, p, i0, k0, height, depth, WORD, A_PAIRS, AT, FILL, LIMIT)
        ends = chunk == many - 1
        # What is prefetched: the next chunk, or the first one of the program that follows.
        turn = ends & (program_id(0) == num_programs(0) - 1)
        over = turn & (program_id(1) == num_programs(1) - 1)
        batch = where(over, program_id(2) + 1, program_id(2))
        o2, p2 = batch // inner, batch % inner
        i2, k2 = where(over, 0, where(turn, i0 + height, i0)), where(ends, 0, k0 + depth)
        j2 = where(turn, 0, where(ends, j0 + count * NR, j0))
        chunk2 = where(ends, 0, chunk + 1)
        for panel in range(count):
            j = j0 + panel * NR
            if j < y.shape[3]:
                if not PRE:
                    _pack_panel(b, right, o, p, k0, j, depth, NR, WORD, B_PAIRS, BT)
                # The panel after this one.
                last = panel == count - 1
                o3, p3 = where(last, o2, o), where(last, p2, p)
                k3, j3 = where(last, k2, k0), where(last, j2, j + NR)
                chunk3 = where(last, chunk2, chunk)
                for t in range(tiles):
                    row = i0 + t * MR
                    i = _within(t * MR, LIMIT)
                    if row < y.shape[2]:
                        prefetch(sums[o, p, row + MR : row + 2 * MR, j : j + NR], write=True)
                        _prefetch_panel(
                            b, o3, p3, k3, j3, chunk3, t, across, depth, NR, B_ELEMENTS, BT, PRE
                        )
                        number = panel * tiles + t
                        _prefetch_rows(
                            a, o2, p2, number, ahead, i2, k2, height, depth, A_ELEMENTS, AT
                        )
                        acc = zeros((MR, NR), ACC)
                        if chunk > 0:
                            acc = sums[o, p, row : row + MR, j : j + NR].to(ACC)
                        if PRE:
                            acc = _sum_prepacked(
                                left, b, chunk, j // NR, acc, i, bounded, MR, NR, AT
                            )
                        else:
                            acc = _sum(left, right, acc, i, bounded, MR, NR, AT)
                        if ends:
                            y[o, p, row : row + MR, j : j + NR] = epilogue(
                                acc, o, p, row, j, extras
                            )
                        else:
                            sums[o, p, row : row + MR, j : j + NR] = acc

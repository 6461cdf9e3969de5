"""Kernels of dense flash attention, forward (Dao et al. 2022, Rabe & Staats 2021).

Queries lie on lanes: a block of scores is kept transposed, (keys, queries), so that the running
maximum and the sum of a query are vertical operations, and elements of K and V are broadcast from
memory. Scores are kept in units of log 2: they are scaled by ``scale * log2(e)``, and exponentials
are powers of two.

Operands are cut into *words*: an element in the accumulator's dtype, or with PAIRS two bf16 of
neighbouring elements (or neighbouring rows) in a u32, whose products ``dot2`` adds in one step.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

import math

from tilewright import lang as tl
from tilewright.lang import (
    Array,
    Arrays,
    Const,
    arange,
    bitcast,
    dot,
    dot2,
    exp2,
    expand_dims,
    f64,
    fma,
    i32,
    i64,
    log2,
    num_programs,
    pack2,
    program_id,
    scratch,
    u16,
    u32,
    unroll,
    where,
    zeros,
)
from tilewright.ops.flash_dropout import kept_by_columns, pair_rows
from tilewright.runtime.launch import kernel

__all__ = ["CAUSAL", "EVERYTHING", "LOG2E", "flash_forward"]

CAUSAL = 0
EVERYTHING = 1 << 32  # more than any length

LOG2E = math.log2(math.e)
LN2 = math.log(2.0)


# --- words ---------------------------------------------------------------------------------------


def pair(low, high):
    """Two bf16 tiles as pairs."""
    return bitcast(low, u16).to(u32) | (bitcast(high, u16).to(u32) << 16)


def words_along(x, b, h, t, w, N, T, PAIRS):
    """N words from word w on of row t of x: neighbours in the row make a pair.

    An array of u32 holds pairs already.
    """
    if not PAIRS:
        return x[b, h, t, w : w + N].to(T)
    if x.dtype == u32:
        return x[b, h, t, w : w + N]
    low = x[b, h, t, 2 * w : 2 * w + 2 * N : 2]
    return pair(low, x[b, h, t, 2 * w + 1 : 2 * w + 1 + 2 * N : 2])


def square_of_words(x, b, h, t, w, T, PAIRS):
    """Words w : w + 16 of rows t : t + 16, transposed."""
    if not PAIRS:
        return x[b, h, t : t + 16, w : w + 16].to(T).T
    if x.dtype == u32:
        return x[b, h, t : t + 16, w : w + 16].T
    low = x[b, h, t : t + 16, 2 * w : 2 * w + 32 : 2]
    return pair(low, x[b, h, t : t + 16, 2 * w + 1 : 2 * w + 33 : 2]).T


def pack_rows(x, b, h, t0, to, factor, N, W, T, PAIRS):
    """W words of each of N rows from t0 on, times ``factor``, to ``to`` (N, W); zeros outside."""
    for j in range(N):
        words = words_along(x, b, h, t0 + j, 0, W, T, PAIRS)
        to[j, 0:W] = words if PAIRS else words * factor


def pack_columns(x, b, h, t0, to, factor, N, DP, T, PAIRS):
    """N rows from t0 on for sums over rows: words (N, DP) times ``factor``, or with PAIRS
    (N / 2, DP), two neighbouring rows in a word."""
    if PAIRS:
        for j in range(N // 2):
            low = x[b, h, t0 + 2 * j, 0:DP]
            to[j, 0:DP] = pair(low, x[b, h, t0 + 2 * j + 1, 0:DP])
    else:
        pack_rows(x, b, h, t0, to, factor, N, DP, T, False)


def step(acc, left, right):
    """acc (m, n) plus the product of a column (m,) and a row (n,) of words."""
    if left.dtype == u32:
        return dot2(acc, expand_dims(left, 1), expand_dims(right, 0))
    return fma(expand_dims(left, 1), expand_dims(right, 0), acc)


# --- rows of a tile ------------------------------------------------------------------------------


def larger(a, b):
    """The maximum in one instruction; b where a is NaN (a NaN score shows up in the sum)."""
    return where(a > b, a, b)


def plus(a, b):
    return a + b


def fold_rows(x, combine):
    """The rows of x (a power of two, n) combined in halves: (n,)."""
    rows = x.shape[0]
    if rows == 1:
        return x[0]
    return fold_rows(combine(x[0 : rows // 2], x[rows // 2 : rows]), combine)


# --- forward -------------------------------------------------------------------------------------


def _block(
    ks, vs, st, pt, qt, ot, tops, totals, masks, noise, b, h, g, lane, q0, k0, tk,
    ahead, factor, base, limit, EDGE, DP, W, QW, KB, ROWS, T, PAIRS,
):  # fmt: skip
    """One block of KB keys for QW queries, those from ``lane`` on of group g; q0 is the first.

    With EDGE keys from tk on, and those more than ``ahead`` behind a query, are left out. ``noise``
    has the key of dropout, which does not change the totals.
    """
    before = tops[g, lane : lane + QW]
    top = before
    count = KB
    if EDGE:
        count = tl.minimum(KB, tl.minimum(tk, q0 + QW + ahead) - k0)
    for j in range(0, count, ROWS):
        s = zeros((ROWS, QW), T)
        if PAIRS:
            for w in range(0, W, 4):
                for u in unroll(4):
                    s = step(s, ks[j : j + ROWS, w + u], qt[g, w + u, lane : lane + QW])
            s = s * factor
        else:
            s = dot(ks[j : j + ROWS, 0:W], qt[g, 0:W, lane : lane + QW], s)
        for mask in unroll(masks):
            bias = mask[b, h, k0 + j : k0 + j + ROWS, q0 : q0 + QW]
            if mask.dtype == tl.boolean:
                s = where(bias, s, -math.inf)
            else:
                s = s + bias.to(T) * LOG2E
        if EDGE:
            # the first query that sees each key, counted from q0
            key = k0 + j + arange(ROWS)
            first = where(key < tk, tl.maximum(key - q0 - ahead, 0), QW).to(i32)
            s = where(expand_dims(arange(QW).to(i32), 0) >= expand_dims(first, 1), s, -math.inf)
        st[j : j + ROWS, 0:QW] = s
        top = larger(fold_rows(s, larger), top)
    safe = where(top == -math.inf, 0.0, top)
    decay = exp2(before - safe)
    total = totals[g, lane : lane + QW] * decay
    for j in range(0, count, ROWS):
        p = exp2(st[j : j + ROWS, 0:QW] - expand_dims(safe, 0))
        total = total + fold_rows(p, plus)
        for key in unroll(noise):
            p = where(kept_by_columns(key, base, q0, k0 + j, limit, ROWS, QW), p, 0.0)
        if PAIRS:
            for u in unroll(0, ROWS, 2):
                pt[j // 2 + u // 2, 0:QW] = pack2(p[u], p[u + 1])
        else:
            pt[j : j + ROWS, 0:QW] = p
    tops[g, lane : lane + QW] = top
    totals[g, lane : lane + QW] = total
    words = (count + 1) // 2 if PAIRS else count
    for d in range(0, DP, ROWS):
        acc = ot[g, d : d + ROWS, lane : lane + QW] * expand_dims(decay, 0)
        for j in range(0, words, 4):
            for u in unroll(4):
                acc = step(acc, vs[j + u, d : d + ROWS], pt[j + u, 0:QW])
        ot[g, d : d + ROWS, lane : lane + QW] = acc


@kernel
def flash_forward(
    q: Array,
    k: Array,
    v: Array,
    masks: Arrays,
    noise: Arrays,
    out: Array,
    lse: Array,
    scale: f64,
    group: i64,
    ahead: i64,
    limit: i64,
    DP: Const,
    QW: Const,
    EW: Const,
    GROUPS: Const,
    KB: Const,
    ROWS: Const,
    EROWS: Const,
    T: Const,
    PAIRS: Const,
):
    """out (B, H, Tq, D), lse (B, H, Tq): one block of GROUPS x QW queries of a head per program.

    Query i sees the keys up to i + ``ahead`` (:data:`CAUSAL` or :data:`EVERYTHING`), ``group``
    query heads share a head of k and v, and masks come as (B, H, Tk, Tq). The last block, with the
    most keys under a causal mask, is the first program, so that short ones fill up the end. With
    PAIRS q and k may be arrays of words. ``noise`` has the key of dropout or is empty; of 2**16
    weights ``limit`` are kept.
    """
    first = (num_programs(0) - 1 - program_id(0)) * (QW * GROUPS)
    h = program_id(1)
    b = program_id(2)
    kv = h // group
    tq = q.shape[2]
    tk = k.shape[2]
    base = pair_rows(b, h, q)
    WORD = u32 if PAIRS else T
    W = DP // 2 if PAIRS else DP
    qt = scratch((GROUPS, W, QW), WORD)
    ot = scratch((GROUPS, DP, QW), T)
    tops = scratch((GROUPS, QW), T)
    totals = scratch((GROUPS, QW), T)
    ks = scratch((KB, W), WORD)
    vs = scratch((KB // 2 if PAIRS else KB, DP), WORD)
    st = scratch((KB, QW), T)
    pt = scratch((KB // 2, QW), WORD) if PAIRS else st
    factor = (scale * LOG2E).to(T)
    live = tl.minimum(GROUPS, (tq - first + QW - 1) // QW)  # groups that have queries
    for g in range(live):
        for r in range(0, QW, 16):
            for w in range(0, W, 16):
                words = square_of_words(q, b, h, first + g * QW + r, w, T, PAIRS)
                qt[g, w : w + 16, r : r + 16] = words if PAIRS else words * factor
        for d in range(DP):
            ot[g, d, 0:QW] = zeros((QW,), T)
        tops[g, 0:QW] = tl.full((QW,), -math.inf, T)
        totals[g, 0:QW] = zeros((QW,), T)
    last = tl.minimum(tk, tl.minimum(first + GROUPS * QW, tq) + ahead)
    for k0 in range(0, last, KB):
        pack_rows(k, b, kv, k0, ks, 1.0, KB, W, T, PAIRS)
        pack_columns(v, b, kv, k0, vs, 1.0, KB, DP, T, PAIRS)
        for g in range(tl.maximum(k0 - first - ahead, 0) // QW, live):
            q0 = first + g * QW
            whole = (k0 + KB <= tk) & (k0 + KB <= q0 + 1 + ahead) & (q0 + QW <= tq)
            if whole:
                _block(
                    ks, vs, st, pt, qt, ot, tops, totals, masks, noise, b, h, g, 0, q0, k0, tk,
                    ahead, factor, base, limit, False, DP, W, QW, KB, ROWS, T, PAIRS,
                )  # fmt: skip
            else:
                stop = tl.minimum(QW, tq - q0)
                for e in range(tl.maximum(k0 - q0 - ahead, 0) // EW * EW, stop, EW):
                    _block(
                        ks, vs, st, pt, qt, ot, tops, totals, masks, noise, b, h, g, e, q0 + e,
                        k0, tk, ahead, factor, base, limit, True, DP, W, EW, KB, EROWS, T, PAIRS,
                    )  # fmt: skip
    for g in range(live):
        q0 = first + g * QW
        total = totals[g, 0:QW]
        lse[b, h, q0 : q0 + QW] = (tops[g, 0:QW] + log2(total)) * LN2
        totals[g, 0:QW] = where(total == 0.0, 1.0, total) * (limit.to(T) / 65536.0)
        for r in range(0, QW, 16):
            row = q0 + r
            for d in range(0, DP, 16):
                x = ot[g, d : d + 16, r : r + 16] / expand_dims(totals[g, r : r + 16], 0)
                out[b, h, row : row + 16, d : d + 16] = x.T

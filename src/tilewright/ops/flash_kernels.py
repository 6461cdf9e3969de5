"""Kernels of dense flash attention, forward (Dao et al. 2022, Rabe & Staats 2021).

Queries lie on lanes: a block of scores is kept transposed, (keys, queries), so that the running
maximum and the sum of a query are vertical operations, and elements of K and V are broadcast from
memory. Scores are kept in units of log 2: queries are scaled by ``scale * log2(e)`` once and
exponentials are powers of two.
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
    dot,
    exp2,
    expand_dims,
    f64,
    fma,
    i32,
    i64,
    log2,
    num_programs,
    program_id,
    scratch,
    unroll,
    where,
    zeros,
)
from tilewright.runtime.launch import kernel

__all__ = ["CAUSAL", "EVERYTHING", "LOG2E", "flash_forward"]

CAUSAL = 0
EVERYTHING = 1 << 32  # more than any length

LOG2E = math.log2(math.e)
LN2 = math.log(2.0)


def larger(a, b):
    """The maximum in one instruction; b where a is NaN (a NaN score shows up in the sum)."""
    return where(a > b, a, b)


def fold_rows(x, combine):
    """The rows of x (a power of two, n) combined in halves: (n,)."""
    rows = x.shape[0]
    if rows == 1:
        return x[0]
    return fold_rows(combine(x[0 : rows // 2], x[rows // 2 : rows]), combine)


def plus(a, b):
    return a + b


def _block(
    ks, vs, st, qt, ot, tops, totals, masks, b, h, g, lane, q0, k0, tk,
    ahead, EDGE, DP, QW, KB, ROWS, T,
):  # fmt: skip
    """One block of KB keys for QW queries, those from ``lane`` on of group g; q0 is the first.

    With EDGE keys from tk on, and those more than ``ahead`` behind a query, are left out.
    """
    before = tops[g, lane : lane + QW]
    top = before
    count = KB
    if EDGE:
        count = tl.minimum(KB, tl.minimum(tk, q0 + QW + ahead) - k0)
    for j in range(0, count, ROWS):
        s = dot(ks[j : j + ROWS, 0:DP], qt[g, 0:DP, lane : lane + QW], zeros((ROWS, QW), T))
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
        st[j : j + ROWS, 0:QW] = p
        total = total + fold_rows(p, plus)
    tops[g, lane : lane + QW] = top
    totals[g, lane : lane + QW] = total
    for d in range(0, DP, ROWS):
        acc = ot[g, d : d + ROWS, lane : lane + QW] * expand_dims(decay, 0)
        for j in range(0, count, 4):
            for u in unroll(4):
                x = vs[j + u, d : d + ROWS]
                acc = fma(expand_dims(x, 1), expand_dims(st[j + u, 0:QW], 0), acc)
        ot[g, d : d + ROWS, lane : lane + QW] = acc


def pack_rows(x, b, h, t0, to, factor, T, DP, N):
    """Copy N rows from t0 on, widened, zeros outside, times ``factor``, to ``to`` (N, DP)."""
    for j in range(N):
        to[j, 0:DP] = x[b, h, t0 + j, 0:DP].to(T) * factor


@kernel
def flash_forward(
    q: Array,
    k: Array,
    v: Array,
    masks: Arrays,
    out: Array,
    lse: Array,
    scale: f64,
    group: i64,
    ahead: i64,
    DP: Const,
    QW: Const,
    EW: Const,
    GROUPS: Const,
    KB: Const,
    ROWS: Const,
    T: Const,
):
    """out (B, H, Tq, D), lse (B, H, Tq): one block of GROUPS x QW queries of a head per program.

    Query i sees the keys up to i + ``ahead`` (:data:`CAUSAL` or :data:`EVERYTHING`), ``group``
    query heads share a head of k and v, and masks come as (B, H, Tk, Tq). The last block, with the
    most keys under a causal mask, is the first program, so that short ones fill up the end.
    """
    first = (num_programs(0) - 1 - program_id(0)) * (QW * GROUPS)
    h = program_id(1)
    b = program_id(2)
    kv = h // group
    tq = q.shape[2]
    tk = k.shape[2]
    qt = scratch((GROUPS, DP, QW), T)
    ot = scratch((GROUPS, DP, QW), T)
    tops = scratch((GROUPS, QW), T)
    totals = scratch((GROUPS, QW), T)
    ks = scratch((KB, DP), T)
    vs = scratch((KB, DP), T)
    st = scratch((KB, QW), T)
    for g in range(GROUPS):
        for r in range(0, QW, 8):
            for d in range(0, DP, 16):
                x = q[b, h, first + g * QW + r : first + g * QW + r + 8, d : d + 16].to(T)
                qt[g, d : d + 16, r : r + 8] = x.T * (scale * LOG2E).to(T)
        for d in range(DP):
            ot[g, d, 0:QW] = zeros((QW,), T)
        tops[g, 0:QW] = tl.full((QW,), -math.inf, T)
        totals[g, 0:QW] = zeros((QW,), T)
    last = tl.minimum(tk, tl.minimum(first + GROUPS * QW, tq) + ahead)
    for k0 in range(0, last, KB):
        pack_rows(k, b, kv, k0, ks, 1.0, T, DP, KB)
        pack_rows(v, b, kv, k0, vs, 1.0, T, DP, KB)
        for g in range(tl.maximum(k0 - first - ahead, 0) // QW, GROUPS):
            q0 = first + g * QW
            whole = (k0 + KB <= tk) & (k0 + KB <= q0 + 1 + ahead)
            if whole:
                _block(
                    ks, vs, st, qt, ot, tops, totals, masks, b, h, g, 0, q0, k0, tk,
                    ahead, False, DP, QW, KB, ROWS, T,
                )  # fmt: skip
            else:
                for e in range(tl.maximum(k0 - q0 - ahead, 0) // EW * EW, QW, EW):
                    _block(
                        ks, vs, st, qt, ot, tops, totals, masks, b, h, g, e, q0 + e, k0, tk,
                        ahead, True, DP, EW, KB, 8, T,
                    )  # fmt: skip
    for g in range(GROUPS):
        q0 = first + g * QW
        total = totals[g, 0:QW]
        lse[b, h, q0 : q0 + QW] = (tops[g, 0:QW] + log2(total)) * LN2
        totals[g, 0:QW] = where(total == 0.0, 1.0, total)
        for r in range(0, QW, 8):
            row = q0 + r
            for d in range(0, DP, 16):
                x = ot[g, d : d + 16, r : r + 8] / expand_dims(totals[g, r : r + 8], 0)
                out[b, h, row : row + 8, d : d + 16] = x.T

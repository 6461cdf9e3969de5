"""Kernels of dense flash attention, backward: memory linear in length, one order for every sum.

Probabilities are computed again, block by block, from the forward pass's log-sum-exp::

    P = exp(S - lse)            dP = dO V^T            dS = P * (dP - rowsum(dO * O))
    dV = P^T dO                 dK = scale dS^T Q      dQ = scale dS K

Keys lie on lanes. A program owns a range of keys of one head: it walks its blocks of keys in
ascending order and, inside, the queries in ascending order, keeping dK and dV of the block in
scratch and adding to dQ in memory. Programs that run at the same time own different queries too
(see :func:`flash_backward`), so the order of every sum depends on the shapes alone.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload,index"
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
    i32,
    i64,
    load,
    pack2,
    program_id,
    scratch,
    u32,
    unroll,
    where,
    zeros,
)
from tilewright.ops.flash_dropout import kept_by_rows, pair_rows
from tilewright.ops.flash_kernels import (
    LN2,
    LOG2E,
    pack_columns,
    pack_rows,
    pair,
    square_of_words,
    step,
)
from tilewright.runtime.launch import kernel

__all__ = ["flash_backward", "flash_row_statistics", "round_rows"]


@kernel
def flash_row_statistics(out: Array, dout: Array, lse: Array, dlse: Arrays, stats: Array, T: Const):
    """stats (2, B, H, Tq): lse in units of log 2 (inf for rows without keys) and
    rowsum(dout * out) - dlse; eight rows per program."""
    t = program_id(0) * 8
    h = program_id(1)
    b = program_id(2)
    total = zeros((8, 16), T)
    for d in range(0, out.shape[3], 16):
        x = out[b, h, t : t + 8, d : d + 16].to(T) * dout[b, h, t : t + 8, d : d + 16].to(T)
        total = total + x
    delta = tl.sum(total, axis=1)
    for extra in unroll(dlse):
        delta = delta - extra[b, h, t : t + 8].to(T)
    top = lse[b, h, t : t + 8].to(T)
    stats[0, b, h, t : t + 8] = where(top == -math.inf, math.inf, top * LOG2E)
    stats[1, b, h, t : t + 8] = delta


def _scores(
    qs, dos, kt, vt, pc, dc, dr, masks, noise, stats, b, h, t0, k0, tk, ahead, scale, base, limit,
    c, begin, EDGE, W, L, R, N, T, PAIRS,
):  # fmt: skip
    """P and dS of queries begin : R by keys c : c + L, N queries at a time.

    Words over queries go to ``pc`` and ``dc``, with PAIRS words of dS over keys to ``dr``; there a
    pair is two keys 16 apart, so that whole vectors meet. With EDGE keys from tk on, and those more
    than ``ahead`` behind a query, are left out. With dropout (``noise`` has its key) the words of P
    are those of the weights that were kept, to be divided by their share.
    """
    for r in range(begin, R, N):
        s = zeros((N, L), T)
        if PAIRS:
            for w in range(0, W, 4):
                for u in unroll(4):
                    s = step(s, qs[r : r + N, w + u], kt[w + u, c : c + L])
            s = s * (scale * LOG2E).to(T)
        else:
            s = dot(qs[r : r + N, 0:W], kt[0:W, c : c + L], s)
        for mask in unroll(masks):
            bias = mask[b, h, t0 + r : t0 + r + N, k0 + c : k0 + c + L]
            if mask.dtype == tl.boolean:
                s = where(bias, s, -math.inf)
            else:
                s = s + bias.to(T) * LOG2E
        if EDGE:
            # one past the last key that each query sees, counted from k0 + c
            end = tl.minimum(t0 + r + 1 + ahead + arange(N), tk) - k0 - c
            end = tl.minimum(end, L).to(i32)
            s = where(expand_dims(arange(L).to(i32), 0) < expand_dims(end, 1), s, -math.inf)
        # rows beyond the end have lse = inf and so no probability
        top = load(stats[0, b, h, t0 + r : t0 + r + N], fill=math.inf)
        p = exp2(s - expand_dims(top, 1))
        kept = p
        for key in unroll(noise):
            kept = where(kept_by_rows(key, base, t0 + r, k0 + c, limit, N, L), p, 0.0)
            if not PAIRS:
                dc[r : r + N, c : c + L] = p  # until dS comes here
        _store_columns(pc, kept, r, c, N, L, PAIRS)
        dp = zeros((N, L), T)
        if PAIRS:
            for w in range(0, W, 4):
                for u in unroll(4):
                    dp = step(dp, dos[r : r + N, w + u], vt[w + u, c : c + L])
        else:
            dp = dot(dos[r : r + N, 0:W], vt[0:W, c : c + L], dp)
        delta = stats[1, b, h, t0 + r : t0 + r + N]
        for _ in unroll(noise):  # the gradient of a weight that was dropped is zero
            again = _loaded(pc, kept, r, c, N, L, PAIRS) != 0.0
            dp = where(again, dp / (limit.to(T) / 65536.0), 0.0)
        ds = _loaded(dc if len(noise) else pc, p, r, c, N, L, PAIRS) * (dp - expand_dims(delta, 1))
        if PAIRS:
            ds = ds * scale.to(T)
            for u in unroll(0, L, 32):
                words = pack2(ds[0:N, u : u + 16], ds[0:N, u + 16 : u + 32])
                dr[r : r + N, c // 2 + u // 2 : c // 2 + u // 2 + 16] = words
        _store_columns(dc, ds, r, c, N, L, PAIRS)


def _store_columns(to, x, r, c, N, L, PAIRS):
    """Rows r : r + N of x at lanes c : c + L of ``to``, as words over rows."""
    if PAIRS:
        for u in unroll(0, N, 2):
            to[r // 2 + u // 2, c : c + L] = pack2(x[u], x[u + 1])
    else:
        to[r : r + N, c : c + L] = x


def _loaded(pc, p, r, c, N, L, PAIRS):
    """P again: from memory where it lies there, because two products want all registers."""
    if PAIRS:
        return p
    return pc[r : r + N, c : c + L]


def _transposed_product(x, y, to, c, begin, DP, L, R, N):
    """to (DP, c : c + L) += x^T y over words begin : R of x (R, DP), y (R, keys), N at a time."""
    for d in range(0, DP, N):
        acc = to[d : d + N, c : c + L]
        for r in range(begin, R, 4):
            for u in unroll(4):
                acc = step(acc, x[r + u, d : d + N], y[r + u, c : c + L])
        to[d : d + N, c : c + L] = acc


def _pack_squares(x, b, h, t0, to, N, W, T, PAIRS):
    """Words of rows t0 : t0 + N of x as columns of ``to`` (W, N); zeros outside."""
    for j in range(0, N, 16):
        for w in range(0, W, 16):
            to[w : w + 16, j : j + 16] = square_of_words(x, b, h, t0 + j, w, T, PAIRS)


def _pack_apart(x, b, h, t0, to, N, DP):
    """Rows t0 : t0 + N of x as bf16 pairs of rows 16 apart: ``to`` (N / 2, DP)."""
    for j in range(0, N, 32):
        for i in range(16):
            low = x[b, h, t0 + j + i, 0:DP]
            to[j // 2 + i, 0:DP] = pair(low, x[b, h, t0 + j + i + 16, 0:DP])


def _write_transposed(x, to, b, h, t0, factor, again, DP, N):
    """``to``[b, h, t0 : t0 + N] = factor * x^T for x (DP, N); added to what is there ``again``."""
    for j in range(0, N, 16):
        for d in range(0, DP, 16):
            tile = (x[d : d + 16, j : j + 16] * factor).T
            if again:
                tile = tile + to[b, h, t0 + j : t0 + j + 16, d : d + 16]
            to[b, h, t0 + j : t0 + j + 16, d : d + 16] = tile


@kernel
def round_rows(x: Array, y: Array):
    """y = x, rounded to y's dtype; both (B, H, T, D), eight rows per program."""
    t = program_id(0) * 8
    h = program_id(1)
    b = program_id(2)
    for d in range(0, x.shape[3], 16):
        y[b, h, t : t + 8, d : d + 16] = x[b, h, t : t + 8, d : d + 16]


@kernel
def flash_backward(
    q: Array,
    k: Array,
    v: Array,
    dout: Array,
    rows: Arrays,
    masks: Arrays,
    noise: Arrays,
    stats: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    scale: f64,
    group: i64,
    ahead: i64,
    limit: i64,
    turn: i64,
    pieces: i64,
    size: i64,
    DP: Const,
    DW: Const,
    KB: Const,
    KW: Const,
    EW: Const,
    N: Const,
    EN: Const,
    R: Const,
    T: Const,
    PAIRS: Const,
):
    """dq (B, H, Tq, D), dk and dv (B, Hkv, Tk, D) from stats (2, B, H, Tq).

    ``ahead`` is a multiple of 16; it and ``group`` are those of the forward kernel. With PAIRS q,
    k, v and dout may be arrays of words; ``rows`` has q, k and dout as arrays of elements.
    ``noise`` and ``limit`` (2**16 without dropout) are those of the forward kernel.

    Program (n, h, b) of launch ``turn`` takes piece n of the keys and piece (n + turn) % pieces of
    the queries, ``size`` long each, so no two programs of a launch write to one place. The first
    launch sets the sums, later ones add to them.
    """
    piece = program_id(0)
    kv = program_id(1)
    b = program_id(2)
    first_q = (piece + turn) % pieces * size
    tq = tl.minimum(q.shape[2], first_q + size)
    tk = tl.minimum(k.shape[2], (piece + 1) * size)
    WORD = u32 if PAIRS else T
    W = DP // 2 if PAIRS else DP
    R2 = R // 2 if PAIRS else R
    kt = scratch((W, KB), WORD)
    vt = scratch((W, KB), WORD)
    ks = scratch((KB // 2 if PAIRS else KB, DP), WORD)
    dkt = scratch((DP, KB), T)
    dvt = scratch((DP, KB), T)
    qs = scratch((R, W), WORD)
    dos = scratch((R, W), WORD)
    pc = scratch((R2, KB), WORD)
    dc = scratch((R2, KB), WORD)
    # with PAIRS sums over queries and over keys want other words of the same numbers
    qc = scratch((R2, DP), WORD) if PAIRS else qs
    doc = scratch((R2, DP), WORD) if PAIRS else dos
    dr = scratch((R, KB // 2), WORD) if PAIRS else dc
    if turn == 0:
        for g in range(group):
            for t in range(first_q, tq):
                for d in range(0, DP, 16):
                    dq[b, kv * group + g, t, d : d + 16] = zeros((16,), T)
    for k0 in range(piece * size, tk, KB):
        _pack_squares(k, b, kv, k0, kt, KB, W, T, PAIRS)
        _pack_squares(v, b, kv, k0, vt, KB, W, T, PAIRS)
        if PAIRS:
            _pack_apart(rows[1], b, kv, k0, ks, KB, DP)
        else:
            pack_rows(k, b, kv, k0, ks, scale.to(T), KB, W, T, PAIRS)
        for d in range(DP):
            dkt[d, 0:KB] = zeros((KB,), T)
            dvt[d, 0:KB] = zeros((KB,), T)
        for g in range(group):
            h = kv * group + g
            base = pair_rows(b, h, q)
            for t0 in range(tl.maximum(first_q, tl.maximum(k0 - ahead, 0) // R * R), tq, R):
                pack_rows(q, b, h, t0, qs, (scale * LOG2E).to(T), R, W, T, PAIRS)
                pack_rows(dout, b, h, t0, dos, 1.0, R, W, T, PAIRS)
                if PAIRS:
                    pack_columns(rows[0], b, h, t0, qc, 1.0, R, DP, T, PAIRS)
                    pack_columns(rows[2], b, h, t0, doc, 1.0, R, DP, T, PAIRS)
                if (k0 + KB > tk) | (k0 + KB > t0 + 1 + ahead):
                    for c in range(0, KB, EW):
                        # queries before a key's position have no part in it
                        r0 = tl.minimum(tl.maximum(k0 + c - t0 - ahead, 0), R)
                        _scores(
                            qs, dos, kt, vt, pc, dc, dr, masks, noise, stats, b, h, t0, k0, tk,
                            ahead, scale, base, limit, c, r0, True, W, EW, R, EN, T, PAIRS,
                        )  # fmt: skip
                        first = r0 // 2 if PAIRS else r0
                        _transposed_product(doc, pc, dvt, c, first, DP, EW, R2, EN)
                        _transposed_product(qc, dc, dkt, c, first, DP, EW, R2, EN)
                    for r in range(0, R, EN):
                        keys = tl.minimum(KB, t0 + r + EN + ahead - k0)
                        for d in range(0, DP, DW):
                            acc = dq[b, h, t0 + r : t0 + r + EN, d : d + DW]
                            for j in range(0, keys, EW):
                                acc = _over_keys(acc, dr, ks, r, j, d, EN, EW, DW, PAIRS)
                            dq[b, h, t0 + r : t0 + r + EN, d : d + DW] = acc
                else:
                    for c in range(0, KB, KW):
                        _scores(
                            qs, dos, kt, vt, pc, dc, dr, masks, noise, stats, b, h, t0, k0, tk,
                            ahead, scale, base, limit, c, 0, False, W, KW, R, N, T, PAIRS,
                        )  # fmt: skip
                        _transposed_product(doc, pc, dvt, c, 0, DP, KW, R2, N)
                        _transposed_product(qc, dc, dkt, c, 0, DP, KW, R2, N)
                    for r in range(0, R, N):
                        for d in range(0, DP, DW):
                            acc = dq[b, h, t0 + r : t0 + r + N, d : d + DW]
                            acc = _over_keys(acc, dr, ks, r, 0, d, N, KB, DW, PAIRS)
                            dq[b, h, t0 + r : t0 + r + N, d : d + DW] = acc
        _write_transposed(dkt, dk, b, kv, k0, 1.0 if PAIRS else LN2, turn > 0, DP, KB)
        _write_transposed(dvt, dv, b, kv, k0, 65536.0 / limit.to(T), turn > 0, DP, KB)


def _over_keys(acc, dr, ks, r, j, d, N, KEYS, DW, PAIRS):
    """acc (N, DW) += rows r : r + N of dS times elements d : d + DW of keys j : j + KEYS."""
    if PAIRS:
        for w in range(0, KEYS // 2, 4):
            for u in unroll(4):
                at = j // 2 + w + u
                acc = step(acc, dr[r : r + N, at], ks[at, d : d + DW])
        return acc
    return dot(dr[r : r + N, j : j + KEYS], ks[j : j + KEYS, d : d + DW], acc)

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
    load,
    program_id,
    scratch,
    unroll,
    where,
    zeros,
)
from tilewright.ops.flash_kernels import LN2, LOG2E, pack_rows
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
    qs, dos, kt, vt, ps, dss, masks, stats, b, h, t0, k0, tk, ahead, c, begin, EDGE, DP, W, R, N, T
):
    """P and dS of queries begin : R by keys c : c + W into ps and dss, N queries at a time.

    With EDGE keys from tk on, and those more than ``ahead`` behind a query, are left out.
    """
    for r in range(begin, R, N):
        s = dot(qs[r : r + N, 0:DP], kt[0:DP, c : c + W], zeros((N, W), T))
        for mask in unroll(masks):
            bias = mask[b, h, t0 + r : t0 + r + N, k0 + c : k0 + c + W]
            if mask.dtype == tl.boolean:
                s = where(bias, s, -math.inf)
            else:
                s = s + bias.to(T) * LOG2E
        if EDGE:
            # one past the last key that each query sees, counted from k0 + c
            end = tl.minimum(t0 + r + 1 + ahead + arange(N), tk) - k0 - c
            end = tl.minimum(end, W).to(i32)
            s = where(expand_dims(arange(W).to(i32), 0) < expand_dims(end, 1), s, -math.inf)
        # rows beyond the end have lse = inf and so no probability
        top = load(stats[0, b, h, t0 + r : t0 + r + N], fill=math.inf)
        p = exp2(s - expand_dims(top, 1))
        ps[r : r + N, c : c + W] = p
        dp = dot(dos[r : r + N, 0:DP], vt[0:DP, c : c + W], zeros((N, W), T))
        delta = stats[1, b, h, t0 + r : t0 + r + N]
        dss[r : r + N, c : c + W] = p * (dp - expand_dims(delta, 1))


def _transposed_product(x, y, to, c, begin, DP, W, R, N):
    """to (DP, c : c + W) += x^T y over rows begin : R of x (R, DP), y (R, KB), N at a time."""
    for d in range(0, DP, N):
        acc = to[d : d + N, c : c + W]
        for r in range(begin, R, 4):
            for u in unroll(4):
                left = expand_dims(x[r + u, d : d + N], 1)
                acc = fma(left, expand_dims(y[r + u, c : c + W], 0), acc)
        to[d : d + N, c : c + W] = acc


def _pack_transposed(x, b, h, t0, to, T, DP, N):
    """Rows t0 : t0 + N of x as columns of ``to`` (DP, N), widened, zeros outside."""
    for j in range(0, N, 8):
        for d in range(0, DP, 16):
            to[d : d + 16, j : j + 8] = x[b, h, t0 + j : t0 + j + 8, d : d + 16].to(T).T


def _write_transposed(x, to, b, h, t0, factor, again, DP, N):
    """``to``[b, h, t0 : t0 + N] = factor * x^T for x (DP, N); added to what is there ``again``."""
    for j in range(0, N, 8):
        for d in range(0, DP, 16):
            tile = (x[d : d + 16, j : j + 8] * factor).T
            if again:
                tile = tile + to[b, h, t0 + j : t0 + j + 8, d : d + 16]
            to[b, h, t0 + j : t0 + j + 8, d : d + 16] = tile


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
    masks: Arrays,
    dout: Array,
    stats: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    scale: f64,
    group: i64,
    ahead: i64,
    step: i64,
    pieces: i64,
    size: i64,
    DP: Const,
    DW: Const,
    KB: Const,
    KW: Const,
    EW: Const,
    N: Const,
    R: Const,
    T: Const,
):
    """dq (B, H, Tq, D), dk and dv (B, Hkv, Tk, D) from stats (2, B, H, Tq).

    ``ahead`` is a multiple of 16; it and ``group`` are those of the forward kernel.

    Program (n, h, b) of launch ``step`` takes piece n of the keys and piece (n + step) % pieces of
    the queries, ``size`` long each, so no two programs of a launch write to one place. The first
    launch sets the sums, later ones add to them.
    """
    piece = program_id(0)
    kv = program_id(1)
    b = program_id(2)
    tq = tl.minimum(q.shape[2], ((piece + step) % pieces + 1) * size)
    first_q = (piece + step) % pieces * size
    tk = tl.minimum(k.shape[2], (piece + 1) * size)
    kt = scratch((DP, KB), T)
    vt = scratch((DP, KB), T)
    ks = scratch((KB, DP), T)
    dkt = scratch((DP, KB), T)
    dvt = scratch((DP, KB), T)
    qs = scratch((R, DP), T)
    dos = scratch((R, DP), T)
    ps = scratch((R, KB), T)
    dss = scratch((R, KB), T)
    if step == 0:
        for g in range(group):
            for t in range(first_q, tq):
                for d in range(0, DP, 16):
                    dq[b, kv * group + g, t, d : d + 16] = zeros((16,), T)
    for k0 in range(piece * size, tk, KB):
        _pack_transposed(k, b, kv, k0, kt, T, DP, KB)
        _pack_transposed(v, b, kv, k0, vt, T, DP, KB)
        pack_rows(k, b, kv, k0, ks, scale.to(T), T, DP, KB)
        for d in range(DP):
            dkt[d, 0:KB] = zeros((KB,), T)
            dvt[d, 0:KB] = zeros((KB,), T)
        begin = tl.maximum(first_q, tl.maximum(k0 - ahead, 0) // R * R)
        for g in range(group):
            h = kv * group + g
            for t0 in range(begin, tq, R):
                pack_rows(q, b, h, t0, qs, (scale * LOG2E).to(T), T, DP, R)
                pack_rows(dout, b, h, t0, dos, 1.0, T, DP, R)
                if (k0 + KB > tk) | (k0 + KB > t0 + 1 + ahead):
                    for c in range(0, KB, EW):
                        # queries before a key's position have no part in it
                        r0 = tl.minimum(tl.maximum(k0 + c - t0 - ahead, 0), R)
                        _scores(
                            qs, dos, kt, vt, ps, dss, masks, stats, b, h, t0, k0, tk, ahead, c,
                            r0, True, DP, EW, R, 8, T,
                        )  # fmt: skip
                        _transposed_product(dos, ps, dvt, c, r0, DP, EW, R, 8)
                        _transposed_product(qs, dss, dkt, c, r0, DP, EW, R, 8)
                    for r in range(0, R, 8):
                        keys = tl.minimum(KB, t0 + r + 8 + ahead - k0)
                        for d in range(0, DP, DW):
                            acc = dq[b, h, t0 + r : t0 + r + 8, d : d + DW]
                            for j in range(0, keys, EW):
                                acc = dot(
                                    dss[r : r + 8, j : j + EW], ks[j : j + EW, d : d + DW], acc
                                )
                            dq[b, h, t0 + r : t0 + r + 8, d : d + DW] = acc
                else:
                    for c in range(0, KB, KW):
                        _scores(
                            qs, dos, kt, vt, ps, dss, masks, stats, b, h, t0, k0, tk, ahead, c,
                            0, False, DP, KW, R, N, T,
                        )  # fmt: skip
                        _transposed_product(dos, ps, dvt, c, 0, DP, KW, R, N)
                        _transposed_product(qs, dss, dkt, c, 0, DP, KW, R, N)
                    for r in range(0, R, N):
                        for d in range(0, DP, DW):
                            acc = dq[b, h, t0 + r : t0 + r + N, d : d + DW]
                            acc = dot(dss[r : r + N, 0:KB], ks[0:KB, d : d + DW], acc)
                            dq[b, h, t0 + r : t0 + r + N, d : d + DW] = acc
        _write_transposed(dkt, dk, b, kv, k0, LN2, step > 0, DP, KB)
        _write_transposed(dvt, dv, b, kv, k0, 1.0, step > 0, DP, KB)

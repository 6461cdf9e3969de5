"""The kernels that shaped the language, interpreted against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.lang import (
    Array,
    Const,
    KernelFunction,
    arange,
    dot,
    dot4,
    exp,
    f32,
    fma,
    full,
    i32,
    inf,
    load,
    maximum,
    program_id,
    rsqrt,
    unroll,
    where,
    zeros,
)


@KernelFunction
def rms_norm(x: Array, weight: Array, y: Array, eps: f32, BLOCK: Const):
    row = program_id(0)
    n = x.shape[1]
    total = zeros((BLOCK,), f32)
    for j in range(0, n, BLOCK):
        v = x[row, j : j + BLOCK]
        total = fma(v, v, total)
    scale = rsqrt(sum(total) / n + eps)
    for j in range(0, n, BLOCK):
        y[row, j : j + BLOCK] = x[row, j : j + BLOCK] * scale * weight[j : j + BLOCK]


@KernelFunction
def matmul(a: Array, bp: Array, c: Array, BM: Const, BN: Const):
    i = program_id(1) * BM
    j = program_id(0)
    acc = zeros((BM, BN), f32)
    for k in range(a.shape[1]):
        acc = fma(a[i : i + BM, k][:, None], bp[j, k, 0:BN][None, :], acc)
    c[i : i + BM, j * BN : (j + 1) * BN] = acc


@KernelFunction
def q8(wq: Array, wd: Array, xq: Array, xd: Array, y: Array, G: Const, MT: Const, L: Const):
    nb = program_id(0)
    t0 = program_id(1) * MT
    acc = zeros((MT, L), f32)
    for g in range(G):
        iacc = zeros((MT, L), i32)
        for kk in unroll(8):
            w = wq[nb, g * 8 + kk, 0:L][None, :]
            iacc = dot4(iacc, w, xq[t0 : t0 + MT, g * 8 + kk][:, None])
        scale = xd[t0 : t0 + MT, g][:, None] * wd[nb, g, 0:L][None, :]
        acc = fma(iacc.to(f32), scale, acc)
    y[t0 : t0 + MT, nb * L : nb * L + L] = acc


@KernelFunction
def softmax(x: Array, y: Array, BLOCK: Const):
    row = program_id(0)
    n = x.shape[1]
    largest = full((), -inf, f32)
    for j in range(0, n, BLOCK):
        v = load(x[row, j : j + BLOCK], fill=-inf)
        largest = maximum(largest, max(v))
    total = 0.0
    for j in range(0, n, BLOCK):
        total += sum(exp(load(x[row, j : j + BLOCK], fill=-inf) - largest))
    for j in range(0, n, BLOCK):
        y[row, j : j + BLOCK] = exp(x[row, j : j + BLOCK] - largest) / total


@KernelFunction
def flash(q: Array, k: Array, v: Array, o: Array, scale: f32, M: Const, N: Const, D: Const):
    """Causal attention of M queries: q, v, o (length, D); k (D, length)."""
    i = program_id(0) * M
    queries = q[i : i + M, 0:D] * scale
    acc = zeros((M, D), f32)
    norm = zeros((M,), f32)
    largest = full((M,), -1e30, f32)
    for j in range(0, min(i + M, v.shape[0]), N):
        scores = dot(queries, k[0:D, j : j + N])
        rows = (i + arange(M))[:, None]
        columns = (j + arange(N))[None, :]
        scores = where((columns <= rows) & (columns < v.shape[0]), scores, -inf)
        new = maximum(largest, max(scores, axis=1))
        p = exp(scores - new[:, None])
        shrink = exp(largest - new)
        norm = norm * shrink + sum(p, axis=1)
        acc = dot(p, v[j : j + N, 0:D], acc * shrink[:, None])
        largest = new
    o[i : i + M, 0:D] = acc / norm[:, None]


def test_rms_norm():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 100)).astype("f")
    w = rng.standard_normal(100).astype("f")
    y = np.zeros_like(x)
    rms_norm.interpret((5,))(x, w, y, 1e-5, BLOCK=16)
    want = x / np.sqrt((x.astype("d") ** 2).mean(1, keepdims=True) + 1e-5) * w
    np.testing.assert_allclose(y, want, rtol=2e-6, atol=1e-6)


def test_matmul():
    rng = np.random.default_rng(0)
    m, n, k, bm, bn = 10, 24, 17, 4, 8
    a = rng.standard_normal((m, k)).astype("f")
    b = rng.standard_normal((k, n)).astype("f")
    packed = np.ascontiguousarray(b.reshape(k, n // bn, bn).transpose(1, 0, 2))
    c = np.zeros((m, n), "f")
    matmul.interpret((n // bn, -(-m // bm)))(a, packed, c, BM=bm, BN=bn)
    np.testing.assert_allclose(c, a.astype("d") @ b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 4])
def test_q8(tokens):
    rng = np.random.default_rng(0)
    K, L = 64, 16
    G, N, M = K // 32, 32, tokens * 2
    wq = rng.integers(-100, 100, (N // L, K // 4, L, 4), np.int8)
    wd = rng.random((N // L, G, L), "f")
    xq = rng.integers(-100, 100, (M, K // 4, 4), np.int8)
    xd = rng.random((M, G), "f")
    y = np.zeros((M, N), "f")
    args = (wq.view("i4")[..., 0], wd, xq.view("i4")[..., 0], xd, y)
    q8.interpret((N // L, M // tokens))(*args, G=G, MT=tokens, L=L)
    w = wq.transpose(0, 2, 1, 3).reshape(N, G, 32) * wd.transpose(0, 2, 1).reshape(N, G, 1)
    x = xq.reshape(M, G, 32) * xd[:, :, None]
    np.testing.assert_allclose(y, x.reshape(M, K) @ w.reshape(N, K).T, rtol=1e-4)


def test_softmax():
    x = np.random.default_rng(0).standard_normal((3, 37)).astype("f")
    y = np.zeros_like(x)
    softmax.interpret(3)(x, y, BLOCK=16)
    e = np.exp(x.astype("d") - x.max(1, keepdims=True))
    np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=1e-5)


def test_flash_attention():
    rng = np.random.default_rng(0)
    n, d = 21, 8
    q, k, v = (rng.standard_normal((n, d)).astype("f") for _ in range(3))
    o = np.zeros_like(q)
    flash.interpret(-(-n // 4))(q, np.ascontiguousarray(k.T), v, o, d**-0.5, M=4, N=8, D=d)
    s = q.astype("d") @ k.T * d**-0.5
    s = np.where(np.tri(n, dtype=bool), s, -np.inf)
    p = np.exp(s - s.max(1, keepdims=True))
    np.testing.assert_allclose(o, p / p.sum(1, keepdims=True) @ v, rtol=1e-4, atol=1e-5)

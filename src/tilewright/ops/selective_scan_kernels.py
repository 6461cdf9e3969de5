"""Kernels of the selective state space scan, forward and backward.

An instance owns some channels (lanes) of one sequence and keeps their states, (N, LANES), in
registers. The forward pass stores the states at the start of every chunk of steps; the backward
pass walks the chunks from the last to the first, computes a chunk's states again into a scratch
array, and then goes through its steps backwards.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tilewright import dtypes
from tilewright.dtypes import DType
from tilewright.lang import (
    Array,
    Const,
    exp,
    fma,
    minimum,
    program_id,
    scratch,
    sum,
    zeros,
)
from tilewright.ops.calls import KernelCall
from tilewright.ops.layout_kernels import divide
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = ["backward_calls", "chunk_of", "forward_calls", "lanes_of", "wide"]

_SUM_SPAN: Final = 64


def wide(dtype: DType) -> DType:
    """The dtype to compute in."""
    return dtypes.f64 if dtype is dtypes.f64 else dtypes.f32


def lanes_of(dtype: DType) -> int:
    """Channels per instance."""
    return 8 if dtype is dtypes.f64 else 16


def chunk_of(n: int) -> int:
    """Steps per chunk with ``n`` states: a chunk's states and gains fill about 128 KiB."""
    return max(2, min(64, 1024 // max(n, 1)))


def advance(h, a, x, delta, b, batch, t, j, N, LANES):
    """Inline: gains and states (N, LANES) after step t, and the step's x and delta."""
    now = x[batch, t, j : j + LANES].to(h.dtype)
    width = delta[batch, t, j : j + LANES].to(h.dtype)
    gain = exp(width[None, :] * a)
    given = b[batch, t, 0:N].to(h.dtype)
    return gain, fma(gain, h, given[:, None] * (width * now)[None, :]), now, width


@kernel
def selective_scan_kernel(
    x: Array,
    delta: Array,
    a: Array,
    b: Array,
    c: Array,
    d: Array,
    y: Array,
    states: Array,
    KIND: Const,
    N: Const,
    LANES: Const,
    CHUNK: Const,
):
    """See :func:`forward_calls`."""
    j = program_id(0) * LANES
    batch = program_id(1)
    steps = y.shape[1]
    rates = a[j : j + LANES, 0:N].T.to(KIND)
    skip = d[j : j + LANES].to(KIND)
    h = zeros((N, LANES), KIND)
    for chunk in range(states.shape[1]):
        states[batch, chunk, 0:N, j : j + LANES] = h
        for t in range(chunk * CHUNK, minimum(chunk * CHUNK + CHUNK, steps)):
            _, h, now, _ = advance(h, rates, x, delta, b, batch, t, j, N, LANES)
            mix = c[batch, t, 0:N].to(KIND)
            out = fma(skip, now, sum(mix[:, None] * h, axis=0))
            y[batch, t, j : j + LANES] = out.to(y.dtype)


@kernel
def selective_scan_backward_kernel(
    x: Array,
    delta: Array,
    a: Array,
    b: Array,
    c: Array,
    d: Array,
    states: Array,
    g: Array,
    dx: Array,
    ddelta: Array,
    da: Array,
    db: Array,
    dc: Array,
    dd: Array,
    KIND: Const,
    N: Const,
    LANES: Const,
    CHUNK: Const,
):
    """See :func:`backward_calls`; da, db, dc and dd are this instance's parts of the sums."""
    block = program_id(0)
    j = block * LANES
    batch = program_id(1)
    steps = g.shape[1]
    rates = a[j : j + LANES, 0:N].T.to(KIND)
    skip = d[j : j + LANES].to(KIND)
    before = scratch((CHUNK, N, LANES), KIND)
    gains = scratch((CHUNK, N, LANES), KIND)
    adjoint = zeros((N, LANES), KIND)
    rate_sum = zeros((N, LANES), KIND)
    skip_sum = zeros((LANES,), KIND)
    chunks = states.shape[1]
    for i in range(chunks):
        first = (chunks - 1 - i) * CHUNK
        many = minimum(CHUNK, steps - first)
        h = states[batch, chunks - 1 - i, 0:N, j : j + LANES]
        for s in range(many):
            before[s, 0:N, 0:LANES] = h
            gain, h, _, _ = advance(h, rates, x, delta, b, batch, first + s, j, N, LANES)
            gains[s, 0:N, 0:LANES] = gain
        for s in range(many):
            k = many - 1 - s
            t = first + k
            up = g[batch, t, j : j + LANES].to(KIND)
            now = x[batch, t, j : j + LANES].to(KIND)
            width = delta[batch, t, j : j + LANES].to(KIND)
            given = b[batch, t, 0:N].to(KIND)
            mix = c[batch, t, 0:N].to(KIND)
            gain = gains[k, 0:N, 0:LANES]
            decayed = gain * before[k, 0:N, 0:LANES]
            after = fma(given[:, None], (width * now)[None, :], decayed)
            dc[batch, block, t, 0:N] = sum(after * up[None, :], axis=1)
            adjoint = fma(mix[:, None], up[None, :], adjoint)
            db[batch, block, t, 0:N] = sum(adjoint * (width * now)[None, :], axis=1)
            pull = adjoint * decayed
            rate_sum = fma(pull, width[None, :], rate_sum)
            along = sum(adjoint * given[:, None], axis=0)
            ddelta[batch, t, j : j + LANES] = fma(along, now, sum(pull * rates, axis=0)).to(
                ddelta.dtype
            )
            dx[batch, t, j : j + LANES] = fma(along, width, up * skip).to(dx.dtype)
            skip_sum = fma(up, now, skip_sum)
            adjoint = adjoint * gain
    da[batch, 0:N, j : j + LANES] = rate_sum
    dd[batch, j : j + LANES] = skip_sum


@kernel
def sum_parts_kernel(parts: Array, out: Array, BLOCK: Const):
    """``out[i, w] = sum of parts[i, k, w]`` over k, ascending."""
    j = program_id(0) * BLOCK
    i = program_id(1)
    total = parts[i, 0, j : j + BLOCK]
    for k in range(1, parts.shape[1]):
        total = total + parts[i, k, j : j + BLOCK]
    out[i, j : j + BLOCK] = total.to(out.dtype)


def forward_calls(arrays: Sequence[Buffer], y: Buffer, states: Buffer) -> list[KernelCall]:
    """``y`` and the states at the start of each chunk.

    Args:
        arrays: x (B, T, D), delta (B, T, D), a (D, N), b (B, T, N), c (B, T, N), d (D,).
        y: (B, T, D).
        states: (B, chunks, N, D), f32 or f64.
    """
    if not y.size:
        return []
    kind, n = states.dtype, states.shape[2]
    lanes = lanes_of(kind)
    consts = {"KIND": kind, "N": n, "LANES": lanes, "CHUNK": chunk_of(n)}
    grid = (divide(y.shape[2], lanes), y.shape[0])
    return [KernelCall(selective_scan_kernel, grid, (*arrays, y, states), consts)]


def backward_calls(
    arrays: Sequence[Buffer],
    states: Buffer,
    g: Buffer,
    outs: Sequence[Buffer],
    work: Sequence[Buffer],
) -> list[KernelCall]:
    """The gradients of ``arrays`` into ``outs`` for the gradient ``g`` of y.

    ``work``: parts of da (B, N, D), of db and dc (B, blocks, T, N) and of dd (B, D).
    """
    kind, n = states.dtype, states.shape[2]
    lanes = lanes_of(kind)
    consts = {"KIND": kind, "N": n, "LANES": lanes, "CHUNK": chunk_of(n)}
    dx, ddelta, da, db, dc, dd = outs
    da_parts, db_parts, dc_parts, dd_parts = work
    args = (*arrays, states, g, dx, ddelta, da_parts, db_parts, dc_parts, dd_parts)
    grid = (divide(g.shape[2], lanes), g.shape[0])
    calls = [KernelCall(selective_scan_backward_kernel, grid, args, consts)]
    batches, blocks, steps, _ = db_parts.shape
    width = da_parts.shape[2]
    for parts, out in ((db_parts, db), (dc_parts, dc)):
        calls += _sums(parts.view((batches, blocks, steps * n)), _rows(out, batches, steps * n))
    turned = da.view((n, width), (da.strides[1], da.strides[0]))
    per_state = da_parts.view((n, batches, width), (width, n * width, 1))
    calls += _sums(per_state, turned)
    calls += _sums(dd_parts.view((1, batches, width)), dd.view((1, width), (0, dd.strides[0])))
    return calls


def _rows(out: Buffer, rows: int, width: int) -> Buffer:
    return out.view((rows, width))


def _sums(parts: Buffer, out: Buffer) -> list[KernelCall]:
    grid = (divide(out.shape[1], _SUM_SPAN), out.shape[0])
    return [KernelCall(sum_parts_kernel, grid, (parts, out), {"BLOCK": _SUM_SPAN})]

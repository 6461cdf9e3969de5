"""Kernels of recurrent layers: some steps of some hidden units of some rows of the batch.

A step's products with the state and everything that follows are one kernel: a unit's gates stand in
registers while k ascends. Short layers run all their steps in one launch, each instance for rows of
its own (rows do not see each other); wide ones take a launch per step, cut by units too, because
every unit reads all of the state before. Either way an output is the same sum: first what came
from the inputs, then one fused multiply-add per unit of the state, ascending.

The weights are panels (P, H, gates, WIDTH): a unit's gates for all k in one stream of memory.
States lie in two arrays that take turns. With lengths, a row beyond its own keeps its state and
gives zeros.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from tilewright import lang as tl
from tilewright.dtypes import f64
from tilewright.lang import (
    Array,
    Const,
    dot,
    i64,
    minimum,
    program_id,
    sigmoid,
    tanh,
    unroll,
    where,
    zeros,
)
from tilewright.ops.calls import KernelCall
from tilewright.ops.layout_kernels import copy_calls, divide
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = ["gru_calls", "lstm_calls", "panel_width", "rnn_calls"]

_SMALL: Final = (
    1 << 17
)  # multiplications of one step and instance, up to which steps share a launch


def activate(v, KIND):
    """Inline: an activation; KIND is its name, alpha and beta."""
    name, alpha, beta = KIND[0], KIND[1], KIND[2]
    if name == "sigmoid":
        return sigmoid(v)
    if name == "tanh":
        return tanh(v)
    if name == "relu":
        return tl.maximum(v, 0.0)
    if name == "affine":
        return v * alpha + beta
    if name == "leakyrelu":
        return where(v < 0.0, v * alpha, v)
    if name == "thresholdedrelu":
        return where(v > alpha, v, 0.0)
    if name == "scaledtanh":
        return tanh(v * beta) * alpha
    if name == "hardsigmoid":
        return tl.minimum(tl.maximum(v * alpha + beta, 0.0), 1.0)
    if name == "elu":
        return where(v < 0.0, tl.expm1(v) * alpha, v)
    if name == "softsign":
        return v / (tl.abs(v) + 1.0)
    return tl.maximum(v, 0.0) + tl.log1p(tl.exp(-tl.abs(v)))


def bounded(v, CLIP):
    """Inline: within -CLIP to CLIP, if that is given."""
    if CLIP > 0.0:
        return tl.minimum(tl.maximum(v, -CLIP), CLIP)
    return v


def at_step(s, steps, REVERSE):
    """Inline: which element of the sequence step ``s`` reads."""
    return steps - 1 - s if REVERSE else s


def live(lens, t, b, ROWS, LENGTHS):
    """Inline: which rows have not ended at ``t``, (ROWS, 1)."""
    if LENGTHS:
        return (lens[b : b + ROWS].to(i64) > t)[:, None]
    return True


def kept(alive, new, old, LENGTHS):
    """Inline: the new state of rows that go on."""
    return where(alive, new, old) if LENGTHS else new


@kernel
def rnn_steps(
    x: Array, r: Array, lens: Array, h: Array, y: Array, first: i64, last: i64,
    F: Const, CLIP: Const, REVERSE: Const, LENGTHS: Const, SPAN: Const, ROWS: Const, LANES: Const,
    WIDTH: Const, K: Const,
):  # fmt: skip
    """``h = f(x + h r)`` for steps ``first`` to ``last``."""
    b = program_id(1) * ROWS
    n = h.shape[2]
    for s in range(first, last):
        t = at_step(s, x.shape[0], REVERSE)
        now, to = s % 2, (s + 1) % 2
        alive = live(lens, t, b, ROWS, LENGTHS)
        for p in range(program_id(0) * SPAN, minimum(program_id(0) * SPAN + SPAN, r.shape[0])):
            for at in unroll(0, WIDTH, LANES):
                j = p * WIDTH + at
                acc = x[t, b : b + ROWS, j : j + LANES]
                for k in range(0, n, K):
                    part = h[now, b : b + ROWS, k : k + K]
                    acc = dot(part, r[p, k : k + K, 0, at : at + LANES], acc)
                new = activate(bounded(acc, CLIP), F)
                old = h[now, b : b + ROWS, j : j + LANES]
                h[to, b : b + ROWS, j : j + LANES] = kept(alive, new, old, LENGTHS)
                y[t, b : b + ROWS, j : j + LANES] = kept(alive, new, 0.0 * new, LENGTHS)


@kernel
def lstm_steps(
    x: Array, r: Array, peep: Array, lens: Array, h: Array, c: Array, y: Array,
    first: i64, last: i64,
    F: Const, G: Const, H: Const, CLIP: Const, COUPLED: Const, PEEP: Const, REVERSE: Const,
    LENGTHS: Const, SPAN: Const, ROWS: Const, LANES: Const, WIDTH: Const, K: Const,
):  # fmt: skip
    """Gates input, output, forget, cell; ``c`` is changed in place."""
    b = program_id(1) * ROWS
    n = h.shape[2]
    for s in range(first, last):
        t = at_step(s, x.shape[0], REVERSE)
        now, to = s % 2, (s + 1) % 2
        alive = live(lens, t, b, ROWS, LENGTHS)
        for p in range(program_id(0) * SPAN, minimum(program_id(0) * SPAN + SPAN, r.shape[0])):
            for at in unroll(0, WIDTH, LANES):
                j = p * WIDTH + at
                i = x[t, b : b + ROWS, j : j + LANES]
                o = x[t, b : b + ROWS, n + j : n + j + LANES]
                f = x[t, b : b + ROWS, 2 * n + j : 2 * n + j + LANES]
                g = x[t, b : b + ROWS, 3 * n + j : 3 * n + j + LANES]
                for k in range(0, n, K):
                    part = h[now, b : b + ROWS, k : k + K]
                    i = dot(part, r[p, k : k + K, 0, at : at + LANES], i)
                    o = dot(part, r[p, k : k + K, 1, at : at + LANES], o)
                    f = dot(part, r[p, k : k + K, 2, at : at + LANES], f)
                    g = dot(part, r[p, k : k + K, 3, at : at + LANES], g)
                old = c[b : b + ROWS, j : j + LANES]
                if PEEP:
                    i = tl.fma(peep[0, j : j + LANES][None, :], old, i)
                    f = tl.fma(peep[2, j : j + LANES][None, :], old, f)
                i = activate(bounded(i, CLIP), F)
                f = 1.0 - i if COUPLED else activate(bounded(f, CLIP), F)
                g = activate(bounded(g, CLIP), G)
                cell = tl.fma(f, old, i * g)
                if PEEP:
                    o = tl.fma(peep[1, j : j + LANES][None, :], cell, o)
                new = activate(bounded(o, CLIP), F) * activate(cell, H)
                before = h[now, b : b + ROWS, j : j + LANES]
                c[b : b + ROWS, j : j + LANES] = kept(alive, cell, old, LENGTHS)
                h[to, b : b + ROWS, j : j + LANES] = kept(alive, new, before, LENGTHS)
                y[t, b : b + ROWS, j : j + LANES] = kept(alive, new, 0.0 * new, LENGTHS)


@kernel
def gru_steps(
    x: Array, r: Array, rb: Array, lens: Array, h: Array, y: Array, first: i64, last: i64,
    F: Const, G: Const, CLIP: Const, REVERSE: Const, LENGTHS: Const,
    SPAN: Const, ROWS: Const, LANES: Const, WIDTH: Const, K: Const,
):  # fmt: skip
    """Gates update, reset, hidden; the reset gate after the product (rb is that one's bias)."""
    b = program_id(1) * ROWS
    n = h.shape[2]
    for s in range(first, last):
        t = at_step(s, x.shape[0], REVERSE)
        now, to = s % 2, (s + 1) % 2
        alive = live(lens, t, b, ROWS, LENGTHS)
        for p in range(program_id(0) * SPAN, minimum(program_id(0) * SPAN + SPAN, r.shape[0])):
            for at in unroll(0, WIDTH, LANES):
                j = p * WIDTH + at
                z = x[t, b : b + ROWS, j : j + LANES]
                g = x[t, b : b + ROWS, n + j : n + j + LANES]
                own = x[t, b : b + ROWS, 2 * n + j : 2 * n + j + LANES]
                m = zeros((ROWS, LANES), h.dtype) + rb[j : j + LANES][None, :]
                for k in range(0, n, K):
                    part = h[now, b : b + ROWS, k : k + K]
                    z = dot(part, r[p, k : k + K, 0, at : at + LANES], z)
                    g = dot(part, r[p, k : k + K, 1, at : at + LANES], g)
                    m = dot(part, r[p, k : k + K, 2, at : at + LANES], m)
                z = activate(bounded(z, CLIP), F)
                g = activate(bounded(g, CLIP), F)
                m = activate(bounded(tl.fma(g, m, own), CLIP), G)
                old = h[now, b : b + ROWS, j : j + LANES]
                new = tl.fma(z, old - m, m)
                h[to, b : b + ROWS, j : j + LANES] = kept(alive, new, old, LENGTHS)
                y[t, b : b + ROWS, j : j + LANES] = kept(alive, new, 0.0 * new, LENGTHS)


@kernel
def gru_reset_steps(
    x: Array, r: Array, lens: Array, h: Array, z: Array, reset: Array, y: Array,
    first: i64, last: i64,
    F: Const, G: Const, CLIP: Const, REVERSE: Const, LENGTHS: Const, GATES: Const, REST: Const,
    SPAN: Const, ROWS: Const, LANES: Const, WIDTH: Const, K: Const,
):  # fmt: skip
    """The reset gate before the product: gates of all units first, then what reads them."""
    b = program_id(1) * ROWS
    n = h.shape[2]
    start = program_id(0) * SPAN
    stop = minimum(start + SPAN, r.shape[0])
    for s in range(first, last):
        t = at_step(s, x.shape[0], REVERSE)
        now, to = s % 2, (s + 1) % 2
        alive = live(lens, t, b, ROWS, LENGTHS)
        if GATES:
            for p in range(start, stop):
                for at in unroll(0, WIDTH, LANES):
                    j = p * WIDTH + at
                    u = x[t, b : b + ROWS, j : j + LANES]
                    g = x[t, b : b + ROWS, n + j : n + j + LANES]
                    for k in range(0, n, K):
                        part = h[now, b : b + ROWS, k : k + K]
                        u = dot(part, r[p, k : k + K, 0, at : at + LANES], u)
                        g = dot(part, r[p, k : k + K, 1, at : at + LANES], g)
                    z[b : b + ROWS, j : j + LANES] = activate(bounded(u, CLIP), F)
                    g = activate(bounded(g, CLIP), F)
                    reset[b : b + ROWS, j : j + LANES] = g * h[now, b : b + ROWS, j : j + LANES]
        if REST:
            for p in range(start, stop):
                for at in unroll(0, WIDTH, LANES):
                    j = p * WIDTH + at
                    m = x[t, b : b + ROWS, 2 * n + j : 2 * n + j + LANES]
                    for k in range(0, n, K):
                        part = reset[b : b + ROWS, k : k + K]
                        m = dot(part, r[p, k : k + K, 2, at : at + LANES], m)
                    m = activate(bounded(m, CLIP), G)
                    old = h[now, b : b + ROWS, j : j + LANES]
                    new = tl.fma(z[b : b + ROWS, j : j + LANES], old - m, m)
                    h[to, b : b + ROWS, j : j + LANES] = kept(alive, new, old, LENGTHS)
                    y[t, b : b + ROWS, j : j + LANES] = kept(alive, new, 0.0 * new, LENGTHS)


# --- launches ------------------------------------------------------------------------------------


def panel_width(double: bool) -> int:
    """Units whose weights lie together: two vectors of the widest machine."""
    return 16 if double else 32


def _launches(
    make: Callable[[int, int, tuple[int, int], dict[str, Any]], Sequence[KernelCall]],
    steps: int,
    batch: int,
    units: int,
    gates: int,
    double: bool,
) -> list[KernelCall]:
    """``make(first, last, grid, consts)`` once for all steps, or for each."""
    if not steps * batch * units:
        return []
    rows = 1 if batch == 1 else 2 if batch == 2 else 4
    width = panel_width(double)
    panels = divide(units, width)
    whole = units * units * gates * rows <= _SMALL
    grid = (1 if whole else panels, divide(batch, rows))
    lanes = width if rows == 1 else width // 2
    span = 1 << 30 if whole else 1
    consts = {"SPAN": span, "ROWS": rows, "LANES": lanes, "WIDTH": width, "K": 8}
    if whole:
        return list(make(0, steps, grid, consts))
    return [call for s in range(steps) for call in make(s, s + 1, grid, consts)]


def _shape(x: Buffer, h: Buffer) -> tuple[int, int, int, bool]:
    return x.shape[0], h.shape[1], h.shape[2], x.dtype is f64


def _around(
    steps: int, h0: Buffer, h: Buffer, last: Buffer, calls: list[KernelCall]
) -> list[KernelCall]:
    """``calls`` between copies of the state into its place and out of it."""
    place = h.view(h0.shape)
    turns = steps % 2 * h0.size
    return [*copy_calls(h0, place), *calls, *copy_calls(h.view(h0.shape, None, turns), last)]


def rnn_calls(
    x: Buffer, r: Buffer, h0: Buffer, lens: Buffer | None, outs: Sequence[Buffer], h: Buffer,
    common: dict[str, Any],
) -> list[KernelCall]:  # fmt: skip
    """Launches of a plain layer; h (2, B, H) is workspace, common the constants of the layer."""
    y, last = outs
    steps, batch, units, double = _shape(x, h)

    def make(first: int, stop: int, grid: Any, consts: Any) -> list[KernelCall]:
        args = (x, r, h0 if lens is None else lens, h, y, first, stop)
        return [KernelCall(rnn_steps, grid, args, {**common, **consts})]

    return _around(steps, h0, h, last, _launches(make, steps, batch, units, 1, double))


def lstm_calls(
    x: Buffer, r: Buffer, h0: Buffer, c0: Buffer, peep: Buffer | None, lens: Buffer | None,
    outs: Sequence[Buffer], h: Buffer, common: dict[str, Any],
) -> list[KernelCall]:  # fmt: skip
    """Launches of an LSTM layer; outs are y, h and c at the end."""
    y, last, c = outs
    steps, batch, units, double = _shape(x, h)

    def make(first: int, stop: int, grid: Any, consts: Any) -> list[KernelCall]:
        args = (
            x, r, r if peep is None else peep, h0 if lens is None else lens, h, c, y, first, stop,
        )  # fmt: skip
        return [KernelCall(lstm_steps, grid, args, {**common, **consts})]

    calls = _launches(make, steps, batch, units, 4, double)
    return [*copy_calls(c0, c), *_around(steps, h0, h, last, calls)]


def gru_calls(
    x: Buffer, r: Buffer, h0: Buffer, rb: Buffer | None, lens: Buffer | None,
    outs: Sequence[Buffer], work: Sequence[Buffer], common: dict[str, Any],
) -> list[KernelCall]:  # fmt: skip
    """Launches of a GRU layer; with rb the reset gate comes after the product."""
    y, last = outs
    h, z, reset = work
    steps, batch, units, double = _shape(x, h)
    lengths = h0 if lens is None else lens

    def make(first: int, stop: int, grid: Any, consts: Any) -> list[KernelCall]:
        if rb is not None:
            args: tuple[Any, ...] = (x, r, rb, lengths, h, y, first, stop)
            return [KernelCall(gru_steps, grid, args, {**common, **consts})]
        args = (x, r, lengths, h, z, reset, y, first, stop)
        parts = [(True, True)] if grid[0] == 1 else [(True, False), (False, True)]
        return [
            KernelCall(
                gru_reset_steps, grid, args, {**common, **consts, "GATES": gates, "REST": rest}
            )
            for gates, rest in parts
        ]

    return _around(steps, h0, h, last, _launches(make, steps, batch, units, 3, double))

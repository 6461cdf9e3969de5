"""What a Mamba decoder remembers: the causal convolution and the selective scan over ragged steps.

A step has tokens of several sequences, those of one side by side. State lies in *slots*, two for
each sequence: a token reads the state before it from slot ``read`` (-1: there is none, zeros) and
leaves the state after it in slot ``write``. The first token of a sequence in a step reads the slot
that the last step wrote and writes the other one, so a step that is interrupted can be made again.

Tokens are taken one after the other in each channel, so the result does not depend on how a text is
cut into steps. The arithmetic is that of :mod:`tilewright.ops.selective_scan`. Both ops write their
state input; nobody else reads it within a step.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, f32, i32
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.lang import Array, Const, exp, fma, program_id, sum, unroll
from tilewright.ops.calls import KernelCall
from tilewright.ops.layout_kernels import divide
from tilewright.ops.table import OpDef, make, register
from tilewright.runtime.launch import kernel

__all__ = ["causal_conv_step", "selective_step"]

_LANES: Final = 16


@kernel
def causal_conv_step_kernel(
    x: Array,
    weight: Array,
    bias: Array,
    state: Array,
    read: Array,
    write: Array,
    y: Array,
    K: Const,
    LANES: Const,
):
    """``y[t] = bias + sum_k weight[:, k] * (the last K inputs)[k]``, k ascending."""
    j = program_id(0) * LANES
    taps = x.shape[:0]
    for k in unroll(K):
        taps = (*taps, weight[j : j + LANES, k])
    start = bias[j : j + LANES]
    for t in range(y.shape[0]):
        source = read[t]
        target = write[t]
        window = x.shape[:0]
        for k in unroll(K - 1):
            window = (*window, state[source, k, j : j + LANES])
        window = (*window, x[t, j : j + LANES])
        total = start
        for k in unroll(K):
            total = fma(taps[k], window[k], total)
        y[t, j : j + LANES] = total
        for k in unroll(K - 1):
            state[target, k, j : j + LANES] = window[k + 1]


@kernel
def selective_step_kernel(
    x: Array,
    delta: Array,
    a: Array,
    b: Array,
    c: Array,
    d: Array,
    state: Array,
    read: Array,
    write: Array,
    y: Array,
    N: Const,
    LANES: Const,
):
    """One instance: LANES channels of all tokens."""
    j = program_id(0) * LANES
    rates = a[j : j + LANES, 0:N].T
    skip = d[j : j + LANES]
    for t in range(y.shape[0]):
        h = state[read[t], 0:N, j : j + LANES]
        now = x[t, j : j + LANES]
        width = delta[t, j : j + LANES]
        given = b[t, 0:N]
        h = fma(exp(width[None, :] * rates), h, given[:, None] * (width * now)[None, :])
        state[write[t], 0:N, j : j + LANES] = h
        mix = c[t, 0:N]
        y[t, j : j + LANES] = fma(skip, now, sum(mix[:, None] * h, axis=0))


def _check(op: str, floats: Sequence[Node], slots: Sequence[Node], wanted: Sequence[Any]) -> None:
    tokens = floats[0].shape[0]
    fits = all(tuple(i.shape) == tuple(w) for i, w in zip(floats, wanted, strict=True))
    fits &= all(i.dtype is f32 for i in floats)
    if not fits or any(s.dtype is not i32 or tuple(s.shape) != (tokens,) for s in slots):
        got = ", ".join(f"{i.dtype}{shape_of(i.shape)}" for i in (*floats, *slots))
        asked = ", ".join(str(shape_of(tuple(w))) for w in wanted)
        raise ShapeError(f"{op} wants f32 {asked} and two i32 (tokens,), got {got}")


def _conv_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    x, weight, _, state, *slots = inputs
    width, taps = weight.shape
    wanted = ((x.shape[0], width), (width, taps), (width,), (state.shape[0], taps - 1, width))
    _check("causal_conv_step", inputs[:4], slots, wanted)
    return x.shape, f32


def _conv_reference(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    state: np.ndarray,
    read: np.ndarray,
    write: np.ndarray,
) -> np.ndarray:
    y = np.empty(x.shape, np.float32)
    for t in range(len(x)):
        before = state[read[t]] if read[t] >= 0 else np.zeros_like(state[0])
        window = np.concatenate([before, x[t : t + 1]])
        y[t] = bias + np.einsum("kw,wk->w", window.astype(np.float64), weight)
        state[write[t]] = window[1:]
    return y


def _conv_calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    consts = {"K": inputs[1].shape[1], "LANES": _LANES}
    return [
        KernelCall(causal_conv_step_kernel, (divide(out.shape[1], _LANES),), (*inputs, out), consts)
    ]


register(OpDef("causal_conv_step", _conv_infer, _conv_reference, calls=_conv_calls))


def causal_conv_step(
    x: Node, weight: Node, bias: Node, state: Node, read: Node, write: Node
) -> Node:
    """Each channel's convolution with its own past.

    x (T, W), weight (W, K), bias (W,), state (slots, K - 1, W) the last inputs; read, write (T,)
    i32 slots -> (T, W).
    """
    return make("causal_conv_step", x, weight, bias, state, read, write)


def _scan_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    x, _, a, _, _, _, state, *slots = inputs
    tokens, (width, n) = x.shape[0], a.shape
    rows, states = (tokens, width), (tokens, n)
    wanted = (rows, rows, (width, n), states, states, (width,), (state.shape[0], n, width))
    _check("selective_step", inputs[:7], slots, wanted)
    return x.shape, f32


def _scan_reference(
    x: np.ndarray,
    delta: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    d: np.ndarray,
    state: np.ndarray,
    read: np.ndarray,
    write: np.ndarray,
) -> np.ndarray:
    y = np.empty(x.shape, np.float32)
    for t in range(len(x)):
        h = state[read[t]] if read[t] >= 0 else np.zeros_like(state[0])
        step = delta[t].astype(np.float64)
        h = np.exp(step * a.T) * h + b[t][:, None].astype(np.float64) * (step * x[t])
        state[write[t]] = h
        y[t] = c[t].astype(np.float64) @ h + d * x[t]
    return y


def _scan_calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    consts = {"N": inputs[2].shape[1], "LANES": _LANES}
    return [
        KernelCall(selective_step_kernel, (divide(out.shape[1], _LANES),), (*inputs, out), consts)
    ]


register(OpDef("selective_step", _scan_infer, _scan_reference, calls=_scan_calls))


def selective_step(
    x: Node,
    delta: Node,
    a: Node,
    b: Node,
    c: Node,
    d: Node,
    state: Node,
    read: Node,
    write: Node,
) -> Node:
    """``h = exp(delta a) h + delta b x; y = c . h + d x`` for each token.

    x, delta (T, W), a (W, N), b, c (T, N), d (W,), state (slots, N, W); read, write (T,) i32 slots
    -> (T, W).
    """
    return make("selective_step", x, delta, a, b, c, d, state, read, write)

"""Linear attention: a state per head instead of a matrix of scores.

For each sequence and head of keys, with a state S (DK, DV) and vectors k, v, q of a step::

    S = gain S                            where there are gains (one per row of S)
    S = S + beta k (v - S^T k)^T          the delta rule, where there are betas, else S + k v^T
    y = S^T q

Several heads of queries may read one state. An instance keeps the columns of a state that fill one
vector; the sums over DK take one fused multiply-add per row, ascending. (Katharopoulos et al. 2020;
Yang et al. 2024, gated delta networks; ONNX LinearAttention.) No gradient.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, f32, f64
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.lang import Array, Const, fma, program_id, scratch, unroll, zeros
from tilewright.ops.calls import KernelCall
from tilewright.ops.layout_kernels import copy_calls, divide, zero_calls
from tilewright.ops.table import OpDef, make_parts, register
from tilewright.runtime.launch import kernel

__all__ = ["linear_attention"]

Parts = Sequence[tuple[Shape, DType]]


def linear_attention(
    q: Node,
    k: Node,
    v: Node,
    state: Node,
    gain: Node | None = None,
    beta: Node | None = None,
) -> tuple[Node, Node]:
    """q (B, T, H, DK), k (B, T, Hkv, DK), v (B, T, Hkv, DV) -> y (B, T, H, DV), the last state.

    state (B, Hkv, DK, DV); gain (B, T, Hkv, DK); beta (B, T, Hkv). f32 or f64, all alike; Hkv
    divides H. See the module for the formula; q comes scaled.
    """
    inputs = [n for n in (q, k, v, state, gain, beta) if n is not None]
    attrs: dict[str, Any] = {"gated": gain is not None, "delta": beta is not None}
    y, last = make_parts("linear_attention", *inputs, **attrs)
    return y, last


def _infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> Parts:
    q, k, v, state, *rest = inputs
    got = ", ".join(f"{i.dtype}{shape_of(i.shape)}" for i in inputs)
    good = all(len(i.shape) == 4 for i in (q, k, v, state))
    good = good and all(i.dtype is q.dtype for i in inputs) and q.dtype in (f32, f64)
    if good:
        b, t, h, dk = q.shape
        kv, dv = k.shape[2], v.shape[3]
        wanted: list[Shape] = [(b, t, kv, dk), (b, t, kv, dv), (b, kv, dk, dv)]
        wanted += [(b, t, kv, dk)] * attrs["gated"] + [(b, t, kv)] * attrs["delta"]
        good = all(i.shape == w for i, w in zip((k, v, state, *rest), wanted))
        good = good and isinstance(h, int) and isinstance(kv, int) and kv > 0 and h % kv == 0
        good = good and isinstance(dk, int)
    if not good:
        raise ShapeError(
            "linear_attention wants f32 or f64 q (B, T, H, DK), k (B, T, Hkv, DK), "
            f"v (B, T, Hkv, DV), state (B, Hkv, DK, DV), gains and betas that fit, got {got}"
        )
    return [((*q.shape[:3], dv), q.dtype), (state.shape, q.dtype)]


def _reference(*arrays: np.ndarray, gated: bool, delta: bool) -> tuple[np.ndarray, ...]:
    q, k, v, state, *rest = (a.astype(np.float64) for a in arrays)
    group = q.shape[2] // k.shape[2]
    y = np.zeros((*q.shape[:3], v.shape[3]))
    s = state
    for t in range(q.shape[1]):
        if gated:
            s = s * rest[0][:, t, :, :, None]
        u = v[:, t]
        if delta:
            seen = np.einsum("bhij,bhi->bhj", s, k[:, t])
            u = rest[-1][:, t, :, None] * (u - seen)
        s = s + k[:, t, :, :, None] * u[:, :, None]
        y[:, t] = np.einsum("bhij,bhi->bhj", np.repeat(s, group, 1), q[:, t])
    return y, s


@kernel
def linear_attention_steps(
    q: Array, k: Array, v: Array, state: Array, gain: Array, beta: Array, y: Array, last: Array,
    GATED: Const, DELTA: Const, DK: Const, GROUP: Const, LANES: Const,
):  # fmt: skip
    """All steps of some columns of the state of one head of one sequence."""
    j = program_id(0) * LANES
    h = program_id(1)
    b = program_id(2)
    s = scratch((DK, LANES), y.dtype)
    for i in range(DK):
        s[i, 0:LANES] = state[b, h, i, j : j + LANES]
    for t in range(y.shape[1]):
        u = v[b, t, h, j : j + LANES]
        if GATED or DELTA:
            seen = zeros((LANES,), y.dtype)
            for i in range(DK):
                row = s[i, 0:LANES]
                if GATED:
                    row = row * gain[b, t, h, i]
                    s[i, 0:LANES] = row
                seen = fma(row, k[b, t, h, i], seen)
            if DELTA:
                u = (u - seen) * beta[b, t, h]
        out = zeros((GROUP, LANES), y.dtype)
        for i in range(DK):
            row = fma(u, k[b, t, h, i], s[i, 0:LANES])
            s[i, 0:LANES] = row
            out = fma(q[b, t, h * GROUP : h * GROUP + GROUP, i][:, None], row[None, :], out)
        for g in unroll(GROUP):
            y[b, t, h * GROUP + g, j : j + LANES] = out[g]
    for i in range(DK):
        last[b, h, i, j : j + LANES] = s[i, 0:LANES]


def _calls(node: Node, inputs: Sequence[Any], outs: Sequence[Any]) -> list[KernelCall]:
    q, k, v, state, *rest = inputs
    y, last = outs
    b, kv, dk, dv = state.shape
    if not y.size or not dk:
        return [*zero_calls(y), *copy_calls(state, last)]
    gain = rest[0] if node.attrs["gated"] else k
    beta = rest[-1] if node.attrs["delta"] else k
    lanes = (8 if y.dtype is f64 else 16) * (2 if dv > 16 else 1)  # two chains of sums
    consts = {
        "GATED": node.attrs["gated"], "DELTA": node.attrs["delta"], "DK": dk,
        "GROUP": q.shape[2] // kv, "LANES": lanes,
    }  # fmt: skip
    args = (q, k, v, state, gain, beta, y, last)
    return [KernelCall(linear_attention_steps, (divide(dv, lanes), kv, b), args, consts)]


register(
    OpDef(
        "linear_attention",
        lambda inputs, attrs: _infer(inputs, attrs)[0],
        _reference,
        infer_parts=_infer,
        calls=_calls,
    )
)

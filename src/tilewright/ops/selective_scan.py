"""The selective state space scan of Mamba (Gu & Dao 2023, algorithm 2), fused.

For each sequence and channel, with N states and A, B, C, delta as in the paper (A discretised
exactly, B by Euler's rule, as the paper's own kernel does)::

    h_t = exp(delta_t A) h_(t-1) + delta_t B_t x_t
    y_t = C_t . h_t + D x_t

States live in registers. What is kept for the gradient are the states at the start of each chunk of
steps, about T * D numbers and not T * D * N.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, const_node, shape_of
from tilewright.ops import elementwise, reductions, views
from tilewright.ops.autodiff import local_vjp
from tilewright.ops.calls import KernelCall
from tilewright.ops.layout_kernels import divide, zero_calls
from tilewright.ops.scans import linear_scan
from tilewright.ops.selective_scan_kernels import (
    backward_calls,
    chunk_of,
    forward_calls,
    lanes_of,
    wide,
)
from tilewright.ops.table import OpDef, make_parts, register
from tilewright.sizes import has_value

__all__ = ["selective_scan"]

Parts = Sequence[tuple[Shape, DType]]


def selective_scan(x: Node, delta: Node, a: Node, b: Node, c: Node, d: Node | None = None) -> Node:
    """y (B, T, D) of x (B, T, D), delta (B, T, D), a (D, N), b (B, T, N), c (B, T, N), d (D,).

    Floats of one dtype; 16-bit ones are computed in f32. Gradients of the gradient exist too, at
    the cost of memory for all states.
    """
    skip = views.broadcast(const_node(0, x.dtype), x.shape[-1:]) if d is None else d
    return make_parts("selective_scan", x, delta, a, b, c, skip)[0]


def _infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> Parts:
    x, delta, a, b, c, d = inputs[:6]
    got = ", ".join(f"{i.dtype}{shape_of(i.shape)}" for i in inputs[:6])
    batch, steps, width = x.shape if len(x.shape) == 3 else (0, 0, 0)
    n = a.shape[-1] if a.shape else 0
    wanted = (
        (batch, steps, width),
        (batch, steps, width),
        (width, n),
        (batch, steps, n),
        (batch, steps, n),
        (width,),
    )
    fits = all(i.shape == want for i, want in zip((x, delta, a, b, c, d), wanted))
    if not fits or any(i.dtype is not x.dtype for i in inputs[:6]) or not x.dtype.is_float:
        raise ShapeError(
            "selective_scan wants floats x and delta (B, T, D), a (D, N), b and c (B, T, N), "
            f"d (D,), got {got}"
        )
    if not has_value(steps) or not has_value(n):
        raise ShapeError(f"selective_scan wants sizes that are known, got {got}")
    chunks = divide(steps, chunk_of(n))
    return (x.shape, x.dtype), ((batch, chunks, n, width), wide(x.dtype))


def _states(
    x: np.ndarray, delta: np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gains and states after each step, float64 (B, T, N, D)."""
    x, delta, a, b = (v.astype(np.float64) for v in (x, delta, a, b))
    gains = np.exp(delta[:, :, None, :] * a.T)
    h = np.zeros((x.shape[0], a.shape[1], x.shape[2]))
    states = np.zeros(gains.shape)
    for t in range(x.shape[1]):
        h = gains[:, t] * h + b[:, t, :, None] * (delta[:, t] * x[:, t])[:, None]
        states[:, t] = h
    return gains, states


def _reference(
    x: np.ndarray, delta: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    _, states = _states(x, delta, a, b)
    y = np.einsum("btn,btnd->btd", c.astype(np.float64), states) + d.astype(np.float64) * x
    before = np.concatenate([np.zeros_like(states[:, :1]), states[:, :-1]], 1)
    return y, before[:, :: chunk_of(a.shape[1])]


def _calls(node: Node, inputs: Sequence[Any], outs: Sequence[Any]) -> list[KernelCall]:
    y, states = outs
    return forward_calls(inputs, y, states)


def _backward_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> Parts:
    return [(i.shape, i.dtype) for i in inputs[:6]]


def _backward_reference(
    x: np.ndarray,
    delta: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    d: np.ndarray,
    states: np.ndarray,
    g: np.ndarray,
) -> tuple[np.ndarray, ...]:
    gains, after = _states(x, delta, a, b)
    x, delta, a, b, c, d, g = (v.astype(np.float64) for v in (x, delta, a, b, c, d, g))
    before = np.concatenate([np.zeros_like(after[:, :1]), after[:, :-1]], 1)
    adjoints = np.zeros_like(after)
    p = np.zeros((after.shape[0], *after.shape[2:]))
    for t in range(x.shape[1] - 1, -1, -1):
        p = p + c[:, t, :, None] * g[:, t, None]
        adjoints[:, t] = p
        p = p * gains[:, t]
    pull = adjoints * gains * before
    along = np.einsum("btnd,btn->btd", adjoints, b)
    return (
        along * delta + g * d,
        np.einsum("btnd,dn->btd", pull, a) + along * x,
        np.einsum("btnd,btd->dn", pull, delta),
        np.einsum("btnd,btd->btn", adjoints, delta * x),
        np.einsum("btnd,btd->btn", after, g),
        np.einsum("btd,btd->d", g, x),
    )


def _backward_workspace(node: Node) -> list[tuple[DType, Shape]]:
    x, a = node.inputs[0], node.inputs[2]
    batch, steps, width = views.sizes_of(x)
    n = views.sizes_of(a)[1]
    kind = wide(x.dtype)
    blocks = divide(width, lanes_of(kind))
    return [
        (kind, (batch, n, width)),
        (kind, (batch, blocks, steps, n)),
        (kind, (batch, blocks, steps, n)),
        (kind, (batch, width)),
    ]


def _backward_calls(
    node: Node, inputs: Sequence[Any], outs: Sequence[Any], work: Sequence[Any]
) -> list[KernelCall]:
    *arrays, states, g = inputs
    if not g.size or not states.shape[2]:
        calls = [call for out in outs for call in zero_calls(out)]
        if g.size:
            raise ShapeError("selective_scan without states (N = 0) has no gradient")
        return calls
    return backward_calls(arrays, states, g, outs, work)


def _gradient(node: Node, grads: tuple[Node | None, ...]) -> Sequence[Node | None]:
    g, of_states = grads
    assert of_states is None, "the states of selective_scan are private"
    if g is None:
        return (None,) * 6
    (_, _), (shape, dtype) = _infer(node.inputs, node.attrs)
    states = Node("part", (node,), shape, dtype, {"index": 1})
    return make_parts("selective_scan_backward", *node.inputs, states, g)


def _unfused(x: Node, delta: Node, a: Node, b: Node, c: Node, d: Node) -> Node:
    """The same y from elementwise ops and a linear scan over all states, (B, T, N, D) in memory."""
    batch, steps, width = views.sizes_of(x)
    n = views.sizes_of(a)[1]
    shape = (batch, steps, n, width)

    def channels(v: Node) -> Node:
        return views.broadcast(views.reshape(v, (batch, steps, 1, width)), shape)

    def states(v: Node) -> Node:
        return views.broadcast(views.reshape(v, (batch, steps, n, 1)), shape)

    mul, add = elementwise.mul, elementwise.add
    rates = views.broadcast(views.permute(a, (1, 0)), shape)
    gains = elementwise.exp(mul(channels(delta), rates))
    h = linear_scan(gains, mul(states(b), channels(mul(delta, x))), None, 1)
    return add(reductions.sum(mul(states(c), h), 2), mul(views.broadcast(d, x.shape), x))


def _second_gradient(node: Node, grads: tuple[Node | None, ...]) -> Sequence[Node | None]:
    """By the unfused formula: second derivatives take the memory that the fused scan saves."""
    *inputs, _, g = node.inputs
    first = local_vjp([_unfused(*inputs)], [g], inputs)
    kept = [(f, up) for f, up in zip(first, grads) if f is not None and up is not None]
    *found, of_g = local_vjp([f for f, _ in kept], [up for _, up in kept], [*inputs, g])
    return (*found, None, of_g)


register(
    OpDef(
        "selective_scan",
        lambda inputs, attrs: _infer(inputs, attrs)[0],
        _reference,
        infer_parts=_infer,
        calls=_calls,
        gradient=_gradient,
    )
)
register(
    OpDef(
        "selective_scan_backward",
        lambda inputs, attrs: _backward_infer(inputs, attrs)[0],
        _backward_reference,
        infer_parts=_backward_infer,
        workspace=_backward_workspace,
        calls=_backward_calls,
        gradient=_second_gradient,
    )
)

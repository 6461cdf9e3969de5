"""Flash attention that reads one projection's output in place, and writes its gradient in place.

A projection makes queries, keys and values as rows (H + 2 Hkv) * D of one array. Its three pieces
are views, but their gradients would have to be put together again; here they are written where they
belong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.ops.calls import KernelCall
from tilewright.ops.creation import zeros_like
from tilewright.ops.flash import (
    backward_reference,
    check_mask,
    check_operands,
    checked_dropout,
    extras,
    forward_reference,
    one_or_none,
    remember,
    results_of,
)
from tilewright.ops.flash_composite import mask_gradient, second_gradient
from tilewright.ops.flash_plan import (
    accumulator,
    backward_calls,
    backward_memory,
    by_heads,
    forward_calls,
)
from tilewright.ops.table import OpDef, make, make_parts, register
from tilewright.ops.views import concat, permute, slice_
from tilewright.runtime.buffers import Buffer
from tilewright.sizes import has_value

__all__ = ["flash_attention_packed", "flash_attention_packed_backward"]

_OP = "flash_attention_packed"


def flash_attention_packed(
    qkv: Node,
    heads: int,
    mask: Node | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    key: Node | None = None,
) -> tuple[Node, Node]:
    """Self-attention from one array of queries, keys and values -> (out, lse).

    Args:
        qkv: (B, T, H + 2 Hkv, D): the heads of q, then those of k, then those of v; the rows of a
            projection to (H + 2 Hkv) * D features, seen by heads.
        heads: H.
        mask, causal, scale, dropout, key: as for :func:`tilewright.ops.flash.flash_attention`.

    Returns:
        out (B, T, H, D) of qkv's dtype, and lse (B, H, T).
    """
    if scale is None:
        last = qkv.shape[-1] if qkv.shape else 1
        scale = last**-0.5 if has_value(last) and last > 0 else 1.0
    attrs: dict[str, Any] = {
        "heads": int(heads),
        "causal": bool(causal),
        "scale": float(scale),
        "dropout": checked_dropout(_OP, dropout, key),
    }
    inputs = [n for n in (qkv, mask, key) if n is not None]
    return remember(make_parts(_OP, *inputs, **attrs))


def flash_attention_packed_backward(
    qkv: Node,
    out: Node,
    lse: Node,
    dout: Node,
    dlse: Node | None = None,
    mask: Node | None = None,
    *,
    heads: int,
    causal: bool,
    scale: float,
    dropout: float = 0.0,
    key: Node | None = None,
) -> Node:
    """The gradient of qkv: one array like it, from the results and their cotangents."""
    inputs = [n for n in (qkv, out, lse, dout, dlse, mask, key) if n is not None]
    attrs: dict[str, Any] = {
        "heads": heads,
        "causal": causal,
        "scale": scale,
        "dropout": checked_dropout(_OP, dropout, key),
        "has_dlse": dlse is not None,
    }
    return make(f"{_OP}_backward", *inputs, **attrs)


def _split(qkv: Node, heads: int) -> tuple[Node, Node, Node]:
    """q (B, H, T, D), k and v (B, Hkv, T, D): views."""
    if len(qkv.shape) != 4:
        raise ShapeError(f"{_OP} wants qkv (B, T, H + 2 Hkv, D), got {shape_of(qkv.shape)}")
    batch, length, total, head_dim = qkv.shape
    if not has_value(total) or heads < 1 or total <= heads or (total - heads) % 2:
        raise ShapeError(
            f"{_OP}: qkv {shape_of(qkv.shape)} with {heads} heads: wants (B, T, H + 2 Hkv, D)"
        )
    kv_heads = (total - heads) // 2
    first, count = (0, heads, heads + kv_heads), (heads, kv_heads, kv_heads)
    q, k, v = (
        permute(slice_(qkv, (0, 0, at, 0), (batch, length, n, head_dim)), (0, 2, 1, 3))
        for at, n in zip(first, count)
    )
    return q, k, v


def _infer_parts(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> list[tuple[Shape, DType]]:
    q, k, v = _split(inputs[0], attrs["heads"])
    sizes = check_operands(_OP, (q, k, v), "bthd")
    for mask in extras(inputs[1:], attrs["dropout"])[0]:
        check_mask(_OP, mask, sizes, q.dtype)
    return [(sizes.rows("bthd"), q.dtype), (sizes.scores[:3], accumulator(q.dtype))]


def _infer_backward(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    qkv, out, lse, dout, *rest = inputs
    rows, stats = _infer_parts((qkv, *rest[int(attrs["has_dlse"]) :]), attrs)
    wanted = [rows, stats, rows, stats]
    for node, (shape, dtype) in zip((out, lse, dout, *rest[: int(attrs["has_dlse"])]), wanted):
        if tuple(node.shape) != shape or node.dtype is not dtype:
            raise ShapeError(
                f"{_OP}_backward: got {node.dtype}{shape_of(node.shape)} where "
                f"{dtype}{shape_of(shape)} belongs (qkv, out, lse, dout in this order)"
            )
    return qkv.shape, qkv.dtype


# --- references ----------------------------------------------------------------------------------


def _pieces(qkv: np.ndarray, heads: int) -> list[np.ndarray]:
    """q, k, v as (B, heads, T, D)."""
    kv_heads = (qkv.shape[2] - heads) // 2
    cuts = np.split(qkv, (heads, heads + kv_heads), axis=2)
    return [x.swapaxes(1, 2) for x in cuts]


def _reference(
    qkv: np.ndarray, *rest: np.ndarray, heads: int, **attrs: Any
) -> tuple[np.ndarray, np.ndarray]:
    return forward_reference(*_pieces(qkv, heads), *rest, layout="bthd", **attrs)


def _backward_reference(qkv: np.ndarray, *rest: np.ndarray, heads: int, **attrs: Any) -> np.ndarray:
    grads = backward_reference(*_pieces(qkv, heads), *rest, layout="bthd", **attrs)
    return np.concatenate([g.swapaxes(1, 2) for g in grads], axis=2)


# --- kernels -------------------------------------------------------------------------------------


def _buffers(qkv: Buffer, heads: int) -> tuple[Buffer, Buffer, Buffer]:
    """q, k, v as (B, heads, T, D), in place."""
    batch, length, total, head_dim = qkv.shape
    sb, st, sh, sd = qkv.strides
    kv_heads = (total - heads) // 2
    q, k, v = (
        qkv.view((batch, n, length, head_dim), (sb, sh, st, sd), at * sh)
        for at, n in ((0, heads), (heads, kv_heads), (heads + kv_heads, kv_heads))
    )
    return q, k, v


def _calls(node: Node, inputs: Sequence[Buffer], outs: Sequence[Buffer]) -> list[KernelCall]:
    qkv, *rest = inputs
    attrs = node.attrs
    q, k, v = _buffers(qkv, attrs["heads"])
    out, p = by_heads(outs[0], "bthd"), attrs["dropout"]
    masks, noise = extras(rest, p)
    return forward_calls(q, k, v, masks, out, outs[1], noise, attrs["causal"], attrs["scale"], p)


def _workspace(node: Node) -> Sequence[tuple[DType, Shape]]:
    q, k, _ = _split(node.inputs[0], node.attrs["heads"])
    return backward_memory(q, k)


def _backward_calls(
    node: Node, inputs: Sequence[Buffer], out: Buffer, workspace: Sequence[Buffer]
) -> list[KernelCall]:
    qkv, y, lse, dy, *rest = inputs
    attrs = node.attrs
    n = int(attrs["has_dlse"])
    masks, noise = extras(rest[n:], attrs["dropout"])
    return backward_calls(
        *_buffers(qkv, attrs["heads"]),
        masks,
        by_heads(y, "bthd"),
        lse,
        by_heads(dy, "bthd"),
        rest[:n],
        _buffers(out, attrs["heads"]),
        noise,
        attrs["causal"],
        attrs["scale"],
        attrs["dropout"],
        workspace,
    )


# --- gradients -----------------------------------------------------------------------------------


def _gradient(node: Node, grad: tuple[Node | None, Node | None]) -> Sequence[Node | None]:
    qkv, *rest = node.inputs
    attrs = dict(node.attrs)
    out, lse = results_of(node)
    masks, keys = extras(rest, attrs["dropout"])
    mask, attrs["key"] = one_or_none(masks), one_or_none(keys)
    dout = zeros_like(out) if grad[0] is None else grad[0]
    dqkv = flash_attention_packed_backward(qkv, out, lse, dout, grad[1], mask, **attrs)
    nothing = [None for _ in keys]
    if mask is None:
        return (dqkv, *nothing)
    q, k, v = _split(qkv, attrs.pop("heads"))
    return (dqkv, mask_gradient(q, k, v, mask, *grad, layout="bthd", **attrs), *nothing)


def _backward_gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    qkv, _, _, dout, *rest = node.inputs
    attrs = node.attrs
    n = int(attrs["has_dlse"])
    masks, keys = extras(rest[n:], attrs["dropout"])
    found = second_gradient(
        *_split(qkv, attrs["heads"]),
        one_or_none(masks),
        dout,
        one_or_none(rest[:n]),
        _split(grad, attrs["heads"]),
        causal=attrs["causal"],
        scale=attrs["scale"],
        layout="bthd",
        dropout=attrs["dropout"],
        key=one_or_none(keys),
    )
    pieces = [permute(g, (0, 2, 1, 3)) for g in found[:3] if g is not None]
    extra = ([found[5]] if n else []) + ([found[3]] if masks else []) + [None for _ in keys]
    return concat(pieces, 2) if len(pieces) == 3 else None, None, None, found[4], *extra


register(
    OpDef(
        _OP,
        lambda inputs, attrs: _infer_parts(inputs, attrs)[0],
        _reference,
        infer_parts=_infer_parts,
        calls=_calls,
        gradient=_gradient,
    )
)
register(
    OpDef(
        f"{_OP}_backward",
        _infer_backward,
        _backward_reference,
        calls=_backward_calls,
        workspace=_workspace,
        gradient=_backward_gradient,
    )
)

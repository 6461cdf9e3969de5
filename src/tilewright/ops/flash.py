"""Dense attention for training: softmax(scale q k^T + mask) v without the matrix of scores.

Flash attention (Dao et al. 2022; the backward pass as in their algorithm 4): scores exist one block
at a time, so memory is linear in the length. ``flash_attention`` gives the output and each row's
log-sum-exp, from which ``flash_attention_backward`` computes the probabilities again. Sums run in
one order that depends on shapes alone, so results have the same bits for any number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

import numpy as np

from tilewright.dtypes import DType, bf16, boolean, f16, f32, f64
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.graph import Node, Shape, shape_of
from tilewright.ops.calls import KernelCall
from tilewright.ops.creation import zeros_like
from tilewright.ops.flash_composite import mask_gradient, second_gradient
from tilewright.ops.flash_dropout import check_key, keep_reference, kept_share, threshold_of
from tilewright.ops.flash_plan import (
    Sizes,
    accumulator,
    backward_calls,
    backward_memory,
    by_heads,
    forward_calls,
)
from tilewright.ops.table import OpDef, get, make_parts, register
from tilewright.runtime.buffers import Buffer
from tilewright.sizes import has_value

__all__ = ["MAX_HEAD_DIM", "flash_attention", "flash_attention_backward"]

MAX_HEAD_DIM = 256
_LAYOUTS = ("bhtd", "bthd")
_FLOATS = (f32, f64, f16, bf16)


def flash_attention(
    q: Node,
    k: Node,
    v: Node,
    mask: Node | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    layout: str = "bhtd",
    dropout: float = 0.0,
    key: Node | None = None,
) -> tuple[Node, Node]:
    """softmax(scale q k^T + mask) v -> (out, lse), over the keys.

    Args:
        q: (B, H, Tq, D), f32, f64, f16 or bf16; D at most :data:`MAX_HEAD_DIM`.
        k, v: (B, Hkv, Tk, D) of q's dtype. Hkv divides H: query head h reads head h // (H / Hkv).
        mask: broadcasts to (B, H, Tq, Tk): bool (False: not seen), or f32 (f64) added to the
            scaled scores; -inf hides a key.
        causal: query i sees the keys up to i, counted from the start also where Tq != Tk (as
            ``is_causal`` of ``torch.nn.functional.scaled_dot_product_attention``).
        scale: default ``1 / sqrt(D)``.
        layout: ``"bhtd"`` gives out as (B, H, Tq, D), ``"bthd"`` as (B, Tq, H, D), which the
            projection that follows reads as rows of H * D.
        dropout: with this probability a weight of the softmax is left out, the others are divided
            by the share that stays; ``key`` (2,) u32 says which
            (:mod:`tilewright.ops.flash_dropout`). lse is that without dropout.

    Returns:
        out, of q's dtype, and lse (B, H, Tq), f32 (f64 for f64): log of the sum of exponentials of
        a row's scores. A row that sees no key gives 0, and -inf for lse.

    Scores, exponentials and sums are f32 (f64 for f64 operands) whatever the operands' dtype.

    Raises :class:`ShapeError` for operands that do not fit, :class:`UnsupportedError` for a head
    dimension that is too large.
    """
    attrs = _attrs(q, causal, scale, layout, dropout, key)
    return remember(make_parts("flash_attention", *_given(q, k, v, mask, key), **attrs))


def flash_attention_backward(
    q: Node,
    k: Node,
    v: Node,
    out: Node,
    lse: Node,
    dout: Node,
    dlse: Node | None = None,
    mask: Node | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    layout: str = "bhtd",
    dropout: float = 0.0,
    key: Node | None = None,
) -> tuple[Node, Node, Node]:
    """Gradients (dq, dk, dv) of :func:`flash_attention`, of the shapes and dtypes of q, k, v.

    ``out`` and ``lse`` are its results, ``dout`` (in ``layout``) and ``dlse`` the cotangents; the
    other arguments are those it was called with. Memory beyond the results: two numbers per query
    and head (for 16-bit operands also f32 sums of the size of the results).
    """
    attrs = {**_attrs(q, causal, scale, layout, dropout, key), "has_dlse": dlse is not None}
    inputs = _given(q, k, v, out, lse, dout, dlse, mask, key)
    dq, dk, dv = make_parts("flash_attention_backward", *inputs, **attrs)
    return dq, dk, dv


def _attrs(
    q: Node, causal: bool, scale: float | None, layout: str, dropout: float, key: Node | None
) -> dict[str, Any]:
    if scale is None:
        last = q.shape[-1] if q.shape else 1
        scale = float(max(last, 1)) ** -0.5 if has_value(last) else 1.0
    return {
        "causal": bool(causal),
        "scale": float(scale),
        "layout": layout,
        "dropout": checked_dropout("flash_attention", dropout, key),
    }


def checked_dropout(op: str, p: float, key: Node | None) -> float:
    """The probability, which wants a key if it is not 0."""
    if (p != 0) != (key is not None):
        raise ShapeError(f"{op}: dropout {p} {'without a' if p else 'with a'} key")
    threshold_of(p)
    if key is not None:
        check_key(op, key)
    return float(p)


Extra = TypeVar("Extra", Node, Buffer, np.ndarray)


def extras(rest: Sequence[Extra], dropout: float) -> tuple[list[Extra], list[Extra]]:
    """The optional last operands: the mask and the key of dropout, as lists of one or none."""
    n = len(rest) - int(dropout > 0)
    return list(rest[:n]), list(rest[n:])


def _given(*nodes: Node | None) -> tuple[Node, ...]:
    return tuple(n for n in nodes if n is not None)


# --- shapes --------------------------------------------------------------------------------------


def check_operands(op: str, inputs: Sequence[Node], layout: str) -> Sizes:
    """The sizes of q, k, v; raises when they do not fit each other."""
    q, k, v = inputs[:3]
    got = ", ".join(f"{n.dtype}{shape_of(n.shape)}" for n in (q, k, v))
    if not (len(q.shape) == len(k.shape) == len(v.shape) == 4):
        raise ShapeError(f"{op} wants q (B, H, Tq, D) and k, v (B, Hkv, Tk, D), got {got}")
    batch, heads, queries, head_dim = (_int(op, n) for n in q.shape)
    kv_heads, keys = _int(op, k.shape[1]), _int(op, k.shape[2])
    if k.shape != v.shape or k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ShapeError(f"{op} wants q (B, H, Tq, D) and k, v (B, Hkv, Tk, D), got {got}")
    if not (q.dtype is k.dtype is v.dtype) or q.dtype not in _FLOATS:
        raise ShapeError(f"{op} wants q, k and v of one dtype of {_FLOATS}, got {got}: cast them")
    if kv_heads == 0 or heads == 0 or heads % kv_heads:
        raise ShapeError(f"{op}: {kv_heads} heads of k and v do not divide {heads} of q")
    if head_dim < 1:
        raise ShapeError(f"{op}: a head has at least one element, got {got}")
    if head_dim > MAX_HEAD_DIM:
        raise UnsupportedError(
            f"{op}: heads of {head_dim} elements, at most {MAX_HEAD_DIM} are supported; "
            "build softmax(q @ k^T) @ v from matmul and softmax instead"
        )
    if layout not in _LAYOUTS:
        raise ShapeError(f"{op}: layout is {layout!r}, wants one of {_LAYOUTS}")
    return Sizes(batch, heads, kv_heads, queries, keys, head_dim)


def _int(op: str, n: Any) -> int:
    if not has_value(n):
        raise ShapeError(f"{op} wants sizes that are numbers, got {n}")
    return n


def check_mask(op: str, mask: Node, sizes: Sizes, dtype: DType) -> None:
    wanted = accumulator(dtype)
    if mask.dtype not in (boolean, wanted):
        raise ShapeError(f"{op}: the mask is {mask.dtype}, wants bool or {wanted}")
    shape = (1,) * (4 - len(mask.shape)) + tuple(mask.shape)
    if len(shape) > 4 or any(m not in (1, n) for m, n in zip(shape, sizes.scores)):
        raise ShapeError(
            f"{op}: the mask {shape_of(mask.shape)} does not broadcast to (B, H, Tq, Tk) = "
            f"{sizes.scores}"
        )


def _infer_parts(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> list[tuple[Shape, DType]]:
    op = "flash_attention"
    sizes = check_operands(op, inputs, attrs["layout"])
    dtype = inputs[0].dtype
    for mask in extras(inputs[3:], attrs["dropout"])[0]:
        check_mask(op, mask, sizes, dtype)
    return [(sizes.rows(attrs["layout"]), dtype), (sizes.scores[:3], accumulator(dtype))]


def _infer_backward(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> list[tuple[Shape, DType]]:
    op = "flash_attention_backward"
    sizes = check_operands(op, inputs, attrs["layout"])
    q, k, v, out, lse, dout = inputs[:6]
    rows, stats = sizes.rows(attrs["layout"]), sizes.scores[:3]
    extra = inputs[6:]
    wanted = [(out, rows, q.dtype), (lse, stats, accumulator(q.dtype)), (dout, rows, q.dtype)]
    if attrs["has_dlse"]:
        wanted.append((extra[0], stats, accumulator(q.dtype)))
        extra = extra[1:]
    for node, shape, dtype in wanted:
        if tuple(node.shape) != shape or node.dtype is not dtype:
            raise ShapeError(
                f"{op}: got {node.dtype}{shape_of(node.shape)} where {dtype}{shape} belongs "
                "(q, k, v, out, lse, dout in this order)"
            )
    for mask in extras(extra, attrs["dropout"])[0]:
        check_mask(op, mask, sizes, q.dtype)
    return [(n.shape, n.dtype) for n in (q, k, v)]


# --- references ----------------------------------------------------------------------------------


def _probabilities(
    q: np.ndarray, k: np.ndarray, mask: np.ndarray | None, causal: bool, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (B, H, Tq, Tk) and log-sum-exp (B, H, Tq) in float64."""
    group = q.shape[1] // k.shape[1]
    wide = np.repeat(k.astype(np.float64), group, axis=1)
    scores = q.astype(np.float64) @ wide.swapaxes(2, 3) * scale
    if mask is not None:
        if mask.dtype == np.bool_:
            scores = np.where(mask, scores, -np.inf)
        else:
            scores = scores + mask.astype(np.float64)
    if causal:
        scores = np.where(np.tri(*scores.shape[2:], dtype=np.bool_), scores, -np.inf)
    with np.errstate(all="ignore"):
        top = scores.max(axis=3, keepdims=True, initial=-np.inf)
        weights = np.exp(scores - np.where(np.isneginf(top), 0.0, top))
        total = weights.sum(axis=3, keepdims=True)
        lse = (top + np.log(total))[..., 0]
    return weights / np.where(total == 0, 1.0, total), lse


def forward_reference(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *rest: np.ndarray,
    causal: bool,
    scale: float,
    layout: str,
    dropout: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """In float64, to be rounded once."""
    masks, keys = extras(rest, dropout)
    p, lse = _probabilities(q, k, masks[0] if masks else None, causal, scale)
    for key in keys:
        p = p * keep_reference(key, p.shape, dropout) / kept_share(dropout)
    out = p @ np.repeat(v.astype(np.float64), q.shape[1] // v.shape[1], axis=1)
    return (out.swapaxes(1, 2) if layout == "bthd" else out), lse


def backward_reference(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    lse: np.ndarray,
    dout: np.ndarray,
    *rest: np.ndarray,
    causal: bool,
    scale: float,
    layout: str,
    has_dlse: bool,
    dropout: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In float64, from q, k, v and the cotangents alone."""
    masks, keys = extras(rest[int(has_dlse) :], dropout)
    p, _ = _probabilities(q, k, masks[0] if masks else None, causal, scale)
    kept: Any = 1.0
    for key in keys:
        kept = keep_reference(key, p.shape, dropout) / kept_share(dropout)
    wide_q = q.astype(np.float64)
    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = (np.repeat(x.astype(np.float64), group, axis=1) for x in (k, v))
    grad = dout.astype(np.float64)
    if layout == "bthd":
        grad = grad.swapaxes(1, 2)
    dp = grad @ wide_v.swapaxes(2, 3) * kept
    delta = (p * dp).sum(axis=3)
    if has_dlse:
        delta = delta - rest[0].astype(np.float64)
    ds = p * (dp - delta[..., None]) * scale

    def by_group(x: np.ndarray) -> np.ndarray:
        return np.asarray(x.reshape(k.shape[0], k.shape[1], group, *k.shape[2:]).sum(axis=2))

    dq, dk, dv = ds @ wide_k, ds.swapaxes(2, 3) @ wide_q, (p * kept).swapaxes(2, 3) @ grad
    return dq, by_group(dk), by_group(dv)


# --- kernels -------------------------------------------------------------------------------------


def _calls(node: Node, inputs: Sequence[Buffer], outs: Sequence[Buffer]) -> list[KernelCall]:
    q, k, v, *rest = inputs
    attrs = node.attrs
    out, p = by_heads(outs[0], attrs["layout"]), attrs["dropout"]
    masks, noise = extras(rest, p)
    return forward_calls(q, k, v, masks, out, outs[1], noise, attrs["causal"], attrs["scale"], p)


def _backward_calls(
    node: Node, inputs: Sequence[Buffer], outs: Sequence[Buffer], workspace: Sequence[Buffer]
) -> list[KernelCall]:
    q, k, v, out, lse, dout, *rest = inputs
    attrs = node.attrs
    n = int(attrs["has_dlse"])
    out, dout = (by_heads(x, attrs["layout"]) for x in (out, dout))
    masks, noise = extras(rest[n:], attrs["dropout"])
    return backward_calls(
        q, k, v, masks, out, lse, dout, rest[:n], outs, noise, attrs["causal"], attrs["scale"],
        attrs["dropout"], workspace,
    )  # fmt: skip


# --- gradients -----------------------------------------------------------------------------------

# The results of a forward node, so that its gradient reads those that are already computed.
_RESULTS: WeakKeyDictionary[Node, tuple[ref[Node], ...]] = WeakKeyDictionary()


def remember(parts: tuple[Node, ...]) -> tuple[Node, Node]:
    """(out, lse), so that :func:`results_of` finds them again."""
    out, lse = parts
    _RESULTS[out.inputs[0]] = (ref(out), ref(lse))
    return out, lse


def results_of(node: Node) -> tuple[Node, Node]:
    """(out, lse) of a forward node."""
    found = [one() for one in _RESULTS.get(node, ())] or [None, None]
    kinds = get(node.op).infer_parts
    assert kinds is not None
    out, lse = (
        Node("part", (node,), shape, dtype, {"index": i}, node.name) if part is None else part
        for i, (part, (shape, dtype)) in enumerate(zip(found, kinds(node.inputs, node.attrs)))
    )
    return out, lse


def _gradient(node: Node, grad: tuple[Node | None, Node | None]) -> Sequence[Node | None]:
    q, k, v, *rest = node.inputs
    out, lse = results_of(node)
    dout, dlse = grad
    attrs = node.attrs
    masks, keys = extras(rest, attrs["dropout"])
    mask, key = one_or_none(masks), one_or_none(keys)
    grads: Sequence[Node | None] = flash_attention_backward(
        q, k, v, out, lse, _or_zeros(dout, out), dlse, mask, key=key, **attrs
    )
    if mask is not None:
        grads = (*grads, mask_gradient(q, k, v, mask, dout, dlse, key=key, **attrs))
    return (*grads, *(None for _ in keys))


def one_or_none(nodes: Sequence[Node]) -> Node | None:
    """The one of a list of one or none."""
    return nodes[0] if nodes else None


def _or_zeros(grad: Node | None, like: Node) -> Node:
    return zeros_like(like) if grad is None else grad


def _backward_gradient(node: Node, grads: tuple[Node | None, ...]) -> Sequence[Node | None]:
    """By differentiating the composite twice: out and lse are functions of the other inputs."""
    q, k, v, _, _, dout, *rest = node.inputs
    attrs = dict(node.attrs)
    n = int(attrs.pop("has_dlse"))
    masks, keys = extras(rest[n:], attrs["dropout"])
    mask, key, dlse = (one_or_none(x) for x in (masks, keys, rest[:n]))
    found = second_gradient(q, k, v, mask, dout, dlse, grads, key=key, **attrs)
    gq, gk, gv, g_mask, g_dout, g_dlse = found
    extra = ([g_dlse] if n else []) + ([g_mask] if masks else []) + [None for _ in keys]
    return gq, gk, gv, None, None, g_dout, *extra


register(
    OpDef(
        "flash_attention",
        lambda inputs, attrs: _infer_parts(inputs, attrs)[0],
        forward_reference,
        infer_parts=_infer_parts,
        calls=_calls,
        gradient=_gradient,
    )
)
register(
    OpDef(
        "flash_attention_backward",
        lambda inputs, attrs: _infer_backward(inputs, attrs)[0],
        backward_reference,
        infer_parts=_infer_backward,
        calls=_backward_calls,
        workspace=lambda node: backward_memory(*node.inputs[:2]),
        gradient=_backward_gradient,
    )
)

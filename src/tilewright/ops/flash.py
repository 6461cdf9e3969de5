"""Dense attention for training: softmax(scale q k^T + mask) v without the matrix of scores.

Flash attention (Dao et al. 2022; the backward pass as in their algorithm 4): scores exist one block
at a time, so memory is linear in the length. ``flash_attention`` gives the output and each row's
log-sum-exp, from which ``flash_attention_backward`` computes the probabilities again. Sums run in
one order that depends on shapes alone, so results have the same bits for any number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np

from tilewright.dtypes import DType, bf16, boolean, f16, f32, f64
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.graph import Node, Shape, shape_of
from tilewright.ops.calls import KernelCall
from tilewright.ops.flash_backward_kernels import (
    flash_backward,
    flash_row_statistics,
    round_rows,
)
from tilewright.ops.flash_kernels import flash_forward
from tilewright.ops.table import OpDef, make_parts, register
from tilewright.runtime.buffers import Buffer

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

    Returns:
        out, of q's dtype, and lse (B, H, Tq), f32 (f64 for f64): log of the sum of exponentials of
        a row's scores. A row that sees no key gives 0, and -inf for lse.

    Scores, exponentials and sums are f32 (f64 for f64 operands) whatever the operands' dtype.

    Raises :class:`ShapeError` for operands that do not fit, :class:`UnsupportedError` for a head
    dimension that is too large.
    """
    attrs = _attrs(q, causal, scale, layout)
    out, lse = make_parts("flash_attention", *_given(q, k, v, mask), **attrs)
    _RESULTS[out.inputs[0]] = (ref(out), ref(lse))
    return out, lse


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
) -> tuple[Node, Node, Node]:
    """Gradients (dq, dk, dv) of :func:`flash_attention`, of the shapes and dtypes of q, k, v.

    ``out`` and ``lse`` are its results, ``dout`` (in ``layout``) and ``dlse`` the cotangents; the
    other arguments are those it was called with. Memory beyond the results: two numbers per query
    and head (for 16-bit operands also f32 sums of the size of the results).
    """
    attrs = {**_attrs(q, causal, scale, layout), "has_dlse": dlse is not None}
    inputs = _given(q, k, v, out, lse, dout, dlse, mask)
    dq, dk, dv = make_parts("flash_attention_backward", *inputs, **attrs)
    return dq, dk, dv


def _attrs(q: Node, causal: bool, scale: float | None, layout: str) -> dict[str, Any]:
    if scale is None:
        last = q.shape[-1] if q.shape else 1
        scale = float(max(last, 1)) ** -0.5 if isinstance(last, int) else 1.0
    return {"causal": bool(causal), "scale": float(scale), "layout": layout}


def _given(*nodes: Node | None) -> tuple[Node, ...]:
    return tuple(n for n in nodes if n is not None)


# --- shapes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sizes:
    """B, H, Hkv, Tq, Tk, D of a call."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int

    @property
    def scores(self) -> tuple[int, int, int, int]:
        return self.batch, self.heads, self.queries, self.keys

    def rows(self, layout: str) -> tuple[int, int, int, int]:
        """Shape of the output."""
        if layout == "bthd":
            return self.batch, self.queries, self.heads, self.head_dim
        return self.batch, self.heads, self.queries, self.head_dim


def _sizes(op: str, inputs: Sequence[Node], layout: str) -> _Sizes:
    """Check q, k, v and the layout."""
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
    return _Sizes(batch, heads, kv_heads, queries, keys, head_dim)


def _int(op: str, n: Any) -> int:
    if not isinstance(n, int):
        raise ShapeError(f"{op} wants sizes that are numbers, got {n}")
    return n


def _check_mask(op: str, mask: Node, sizes: _Sizes, dtype: DType) -> None:
    wanted = _accumulator(dtype)
    if mask.dtype not in (boolean, wanted):
        raise ShapeError(f"{op}: the mask is {mask.dtype}, wants bool or {wanted}")
    shape = (1,) * (4 - len(mask.shape)) + tuple(mask.shape)
    if len(shape) > 4 or any(m not in (1, n) for m, n in zip(shape, sizes.scores)):
        raise ShapeError(
            f"{op}: the mask {shape_of(mask.shape)} does not broadcast to (B, H, Tq, Tk) = "
            f"{sizes.scores}"
        )


def _accumulator(dtype: DType) -> DType:
    return f64 if dtype is f64 else f32


def _infer_parts(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> list[tuple[Shape, DType]]:
    op = "flash_attention"
    sizes = _sizes(op, inputs, attrs["layout"])
    dtype = inputs[0].dtype
    if len(inputs) > 3:
        _check_mask(op, inputs[3], sizes, dtype)
    return [(sizes.rows(attrs["layout"]), dtype), (sizes.scores[:3], _accumulator(dtype))]


def _infer_backward(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> list[tuple[Shape, DType]]:
    op = "flash_attention_backward"
    sizes = _sizes(op, inputs, attrs["layout"])
    q, k, v, out, lse, dout = inputs[:6]
    rows, stats = sizes.rows(attrs["layout"]), sizes.scores[:3]
    extra = inputs[6:]
    wanted = [(out, rows, q.dtype), (lse, stats, _accumulator(q.dtype)), (dout, rows, q.dtype)]
    if attrs["has_dlse"]:
        wanted.append((extra[0], stats, _accumulator(q.dtype)))
        extra = extra[1:]
    for node, shape, dtype in wanted:
        if tuple(node.shape) != shape or node.dtype is not dtype:
            raise ShapeError(
                f"{op}: got {node.dtype}{shape_of(node.shape)} where {dtype}{shape} belongs "
                "(q, k, v, out, lse, dout in this order)"
            )
    if extra:
        _check_mask(op, extra[0], sizes, q.dtype)
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


def _reference(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    causal: bool,
    scale: float,
    layout: str,
) -> tuple[np.ndarray, np.ndarray]:
    """In float64, to be rounded once."""
    p, lse = _probabilities(q, k, mask, causal, scale)
    out = p @ np.repeat(v.astype(np.float64), q.shape[1] // v.shape[1], axis=1)
    return (out.swapaxes(1, 2) if layout == "bthd" else out), lse


def _backward_reference(
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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In float64, from q, k, v and the cotangents alone."""
    mask = rest[-1] if len(rest) > has_dlse else None
    p, _ = _probabilities(q, k, mask, causal, scale)
    wide_q = q.astype(np.float64)
    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = (np.repeat(x.astype(np.float64), group, axis=1) for x in (k, v))
    grad = dout.astype(np.float64)
    if layout == "bthd":
        grad = grad.swapaxes(1, 2)
    dp = grad @ wide_v.swapaxes(2, 3)
    delta = (p * dp).sum(axis=3)
    if has_dlse:
        delta = delta - rest[0].astype(np.float64)
    ds = p * (dp - delta[..., None]) * scale

    def by_group(x: np.ndarray) -> np.ndarray:
        return np.asarray(x.reshape(k.shape[0], k.shape[1], group, *k.shape[2:]).sum(axis=2))

    dq, dk, dv = ds @ wide_k, ds.swapaxes(2, 3) @ wide_q, p.swapaxes(2, 3) @ grad
    return dq, by_group(dk), by_group(dv)


# --- kernels -------------------------------------------------------------------------------------

_PROGRAMS = 32  # that a launch should have, to keep several threads evenly busy


def _padded(head_dim: int) -> int:
    return -(-head_dim // 16) * 16


def _by_heads(x: Buffer, layout: str) -> Buffer:
    """(B, H, T, D), whatever the layout."""
    if layout == "bhtd":
        return x
    b, t, h, d = x.shape
    sb, st, sh, sd = x.strides
    return x.view((b, h, t, d), (sb, sh, st, sd))


def _mask_view(mask: Buffer, sizes: _Sizes, transposed: bool) -> Buffer:
    """The mask as (B, H, Tq, Tk), or (B, H, Tk, Tq), broadcast by strides of 0."""
    missing = 4 - len(mask.shape)
    shape = (1,) * missing + mask.shape
    strides = (0,) * missing + mask.strides
    steps = tuple(s if m == n else 0 for s, m, n in zip(strides, shape, sizes.scores))
    if transposed:
        b, h, q, k = sizes.scores
        return mask.view((b, h, k, q), (steps[0], steps[1], steps[3], steps[2]))
    return mask.view(sizes.scores, steps)


def _buffer_sizes(q: Buffer, k: Buffer) -> _Sizes:
    batch, heads, queries, head_dim = q.shape
    return _Sizes(batch, heads, k.shape[1], queries, k.shape[2], head_dim)


def _forward_blocks(sizes: _Sizes, dtype: DType) -> dict[str, int]:
    """Queries on lanes (EW of them at the edge), groups of queries per program, keys per block and
    rows of a register block: measured, and limited by what fits a core's caches.

    How many groups share a block of keys changes no bits, so it may follow the amount of work.
    """
    padded = _padded(sizes.head_dim)
    if dtype is f64:
        width, keys = 32, 32 if padded <= 128 else 16
        groups = 2 if padded <= 64 else 1
    else:
        width, keys = 64, 64 if padded <= 128 else 32
        groups = 4 if padded <= 64 else 2 if padded <= 128 else 1
    heads = max(sizes.batch * sizes.heads, 1)
    while groups > 1 and heads * -(-sizes.queries // (width * groups)) < _PROGRAMS:
        groups //= 2
    return {"QW": width, "EW": 16, "GROUPS": groups, "KB": keys, "ROWS": 4}


def _calls(node: Node, inputs: Sequence[Buffer], outs: Sequence[Buffer]) -> list[KernelCall]:
    q, k, v, *masks = inputs
    sizes = _buffer_sizes(q, k)
    dtype = _accumulator(q.dtype)
    blocks = _forward_blocks(sizes, dtype)
    consts: dict[str, Any] = {
        "G": sizes.heads // sizes.kv_heads,
        "DP": _padded(sizes.head_dim),
        "CAUSAL": node.attrs["causal"],
        "T": dtype,
        **blocks,
    }
    n = -(-sizes.queries // (blocks["QW"] * blocks["GROUPS"]))
    views = tuple(_mask_view(m, sizes, transposed=True) for m in masks)
    args = (q, k, v, views, _by_heads(outs[0], node.attrs["layout"]), outs[1], node.attrs["scale"])
    return [KernelCall(flash_forward, (n, sizes.heads, sizes.batch), args, consts)]


def _backward_workspace(node: Node) -> list[tuple[DType, Shape]]:
    q, k, v = node.inputs[:3]
    dtype = _accumulator(q.dtype)
    memory: list[tuple[DType, Shape]] = [(dtype, (2, *q.shape[:3]))]
    if q.dtype in (f16, bf16):
        memory += [(dtype, x.shape) for x in (q, k, v)]
    return memory


def _backward_blocks(head_dim: int, dtype: DType) -> dict[str, int]:
    """Keys per block, queries per step, and the register blocks: N rows by KW keys (EW at the
    edge) or DW elements of a head."""
    padded = _padded(head_dim)
    narrow = 16 if padded % 32 else 32
    if dtype is f64:
        keys, queries = (32, 32) if padded <= 64 else (32, 16) if padded <= 128 else (16, 16)
        return {"KB": keys, "R": queries, "KW": keys, "EW": 16, "N": 4, "DW": narrow}
    if padded <= 64:
        return {"KB": 64, "R": 64, "KW": 64, "EW": 16, "N": 4, "DW": padded}
    queries = 64 if padded <= 128 else 32
    return {"KB": 32, "R": queries, "KW": 32, "EW": 16, "N": 8, "DW": narrow}


def _backward_calls(
    node: Node, inputs: Sequence[Buffer], outs: Sequence[Buffer], workspace: Sequence[Buffer]
) -> list[KernelCall]:
    q, k, v, out, lse, dout, *rest = inputs
    layout = node.attrs["layout"]
    sizes = _buffer_sizes(q, k)
    dtype = _accumulator(q.dtype)
    blocks = _backward_blocks(sizes.head_dim, dtype)
    dlse = tuple(rest[:1]) if node.attrs["has_dlse"] else ()
    masks = tuple(_mask_view(m, sizes, transposed=False) for m in rest[len(dlse) :])
    stats = workspace[0]
    sums = list(workspace[1:]) or list(outs)
    out, dout = _by_heads(out, layout), _by_heads(dout, layout)
    calls = [
        KernelCall(
            flash_row_statistics,
            (-(-sizes.queries // 8), sizes.heads, sizes.batch),
            (out, dout, lse, dlse, stats),
            {"T": dtype},
        )
    ]
    consts: dict[str, Any] = {
        "G": sizes.heads // sizes.kv_heads,
        "DP": _padded(sizes.head_dim),
        "CAUSAL": node.attrs["causal"],
        "T": dtype,
        **blocks,
    }
    pieces, size = _pieces(sizes, max(blocks["KB"], blocks["R"]))
    for step in range(pieces):
        # under a causal mask no query of an earlier piece sees a later piece's keys
        programs = pieces - step if node.attrs["causal"] else pieces
        calls.append(
            KernelCall(
                flash_backward,
                (programs, sizes.kv_heads, sizes.batch),
                (q, k, v, masks, dout, stats, *sums, node.attrs["scale"], step, pieces, size),
                consts,
            )
        )
    if workspace[1:]:
        for wide, narrow in zip(sums, outs):
            b, h, t, _ = narrow.shape
            calls.append(KernelCall(round_rows, (-(-t // 8), h, b), (wide, narrow)))
    return calls


def _pieces(sizes: _Sizes, block: int) -> tuple[int, int]:
    """Into how many pieces to cut queries and keys, and their length, a multiple of ``block``.

    Depends on shapes alone, and so do the bits of the result.
    """
    blocks = max(-(-max(sizes.queries, sizes.keys) // block), 1)
    wanted = -(-_PROGRAMS // max(sizes.batch * sizes.kv_heads, 1))
    each = -(-blocks // min(wanted, -(-blocks // 2)))
    return -(-blocks // each), each * block


# --- gradients -----------------------------------------------------------------------------------

# The results of a forward node, so that its gradient reads those that are already computed.
_RESULTS: WeakKeyDictionary[Node, tuple[ref[Node], ...]] = WeakKeyDictionary()


def _results(node: Node) -> tuple[Node, Node]:
    """(out, lse) of a ``flash_attention`` node."""
    out, lse = (one() for one in _RESULTS.get(node, (ref(node), ref(node))))
    entry = _infer_parts(node.inputs, node.attrs)
    made = [
        Node("part", (node,), shape, dtype, {"index": i}, node.name)
        for i, (shape, dtype) in enumerate(entry)
    ]
    return (
        made[0] if out is None or out is node else out,
        made[1] if lse is None or lse is node else lse,
    )


def _gradient(node: Node, grad: tuple[Node | None, Node | None]) -> Sequence[Node | None]:
    q, k, v, *masks = node.inputs
    out, lse = _results(node)
    dout, dlse = grad
    if dout is None:
        from tilewright.ops.creation import zeros_like

        dout = zeros_like(out)
    attrs = dict(node.attrs)
    mask = masks[0] if masks else None
    grads = flash_attention_backward(q, k, v, out, lse, dout, dlse, mask, **attrs)
    return (*grads, *(None for _ in masks))


register(
    OpDef(
        "flash_attention",
        lambda inputs, attrs: _infer_parts(inputs, attrs)[0],
        _reference,
        infer_parts=_infer_parts,
        calls=_calls,
        gradient=_gradient,
    )
)
register(
    OpDef(
        "flash_attention_backward",
        lambda inputs, attrs: _infer_backward(inputs, attrs)[0],
        _backward_reference,
        infer_parts=_infer_backward,
        calls=_backward_calls,
        workspace=_backward_workspace,
    )
)

"""How flash attention is launched: sizes, block shapes, and kernel calls on bound buffers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tilewright.dtypes import DType, bf16, f32, f64, u32
from tilewright.graph import Node
from tilewright.ops.calls import KernelCall
from tilewright.ops.flash_backward_kernels import (
    flash_backward,
    flash_row_statistics,
    round_rows,
)
from tilewright.ops.flash_dropout import threshold_of
from tilewright.ops.flash_kernels import CAUSAL, EVERYTHING, flash_forward
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import default_target
from tilewright.sizes import roughly

__all__ = ["Sizes", "accumulator", "backward_calls", "backward_memory", "by_heads", "forward_calls"]


_PROGRAMS = 32  # that a launch should have, to keep several threads evenly busy


@dataclass(frozen=True)
class Sizes:
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

    @classmethod
    def of(cls, q: Buffer | Node, k: Buffer | Node) -> Sizes:
        """Of operands (B, H, Tq, D) and (B, Hkv, Tk, D)."""
        batch, heads, queries, head_dim = q.shape
        kv_heads, keys = k.shape[1:3]
        return cls(batch, int(heads), int(kv_heads), queries, keys, int(head_dim))  # type: ignore[arg-type]


def accumulator(dtype: DType) -> DType:
    """What scores and sums are computed in."""
    return f64 if dtype is f64 else f32


def _padded(head_dim: int, pairs: bool) -> int:
    """Elements of a head that the kernels keep: whole vectors of words."""
    lanes = 32 if pairs else 16
    return -(-head_dim // lanes) * lanes


def _words(x: Buffer) -> Buffer:
    """An array of bf16 as one of pairs where its memory allows; else as it is."""
    pairs, rest = divmod(x.shape[-1], 2)
    odd = any(s % 2 for s, n in zip(x.strides[:-1], x.shape) if n != 1)
    if not _in_pairs(x.dtype) or rest or x.strides[-1] != 1 or odd:
        return x
    return x.view((*x.shape[:-1], pairs), (*(s // 2 for s in x.strides[:-1]), 1), dtype=u32)


def by_heads(x: Buffer, layout: str) -> Buffer:
    """A buffer in ``layout`` as (B, H, T, D)."""
    if layout == "bhtd":
        return x
    b, t, h, d = x.shape
    sb, st, sh, sd = x.strides
    return x.view((b, h, t, d), (sb, sh, st, sd))


def _mask_view(mask: Buffer, sizes: Sizes, transposed: bool) -> Buffer:
    """The mask as (B, H, Tq, Tk), or (B, H, Tk, Tq), broadcast by strides of 0."""
    missing = 4 - len(mask.shape)
    shape = (1,) * missing + mask.shape
    strides = (0,) * missing + mask.strides
    steps = tuple(s if m == n else 0 for s, m, n in zip(strides, shape, sizes.scores))
    if transposed:
        b, h, q, k = sizes.scores
        return mask.view((b, h, k, q), (steps[0], steps[1], steps[3], steps[2]))
    return mask.view(sizes.scores, steps)


def _in_pairs(dtype: DType) -> bool:
    """Whether products go two bf16 at a time: where the machine has the instruction. Elsewhere
    bf16 is widened, like f16, which costs less than to imitate it."""
    return dtype is bf16 and default_target().machine.has_avx512_bf16


def _forward_blocks(sizes: Sizes, dtype: DType, padded: int) -> dict[str, int]:
    """Queries on lanes (EW of them at the edge), groups of queries per program, keys per block, and
    rows of keys in registers (EROWS at the edge): measured with AVX-512, limited by the caches.

    How many groups share a block of keys changes no bits, so it may follow the amount of work.
    """
    if dtype is f64:
        width, keys = 32, 32 if padded <= 128 else 16
        groups = 2 if padded <= 64 else 1
    else:
        width, keys = 64, 64 if padded <= 128 else 32
        groups = 4 if padded <= 64 else 2 if padded <= 128 else 1
    rows = 4
    if default_target().machine.lanes < 16:
        width, groups, rows = width // 2, groups * 2, 2
    heads = max(sizes.batch * sizes.heads, 1)
    while groups > 1 and roughly(heads * -(-sizes.queries // (width * groups)), _PROGRAMS - 1, 4):
        groups //= 2
    return {
        "QW": width, "EW": 16, "GROUPS": groups, "KB": keys, "ROWS": rows, "EROWS": 2 * rows,
    }  # fmt: skip


def forward_calls(
    q: Buffer,
    k: Buffer,
    v: Buffer,
    masks: Sequence[Buffer],
    out: Buffer,
    lse: Buffer,
    noise: Sequence[Buffer],
    causal: bool,
    scale: float,
    dropout: float,
) -> list[KernelCall]:
    """Attention of q (B, H, Tq, D) over k, v (B, Hkv, Tk, D) into out, like q, and lse (B, H, Tq).

    ``masks`` has one mask or none, of any shape that broadcasts to (B, H, Tq, Tk); ``noise`` the
    key of dropout, if there is any.
    """
    sizes = Sizes.of(q, k)
    dtype, pairs = accumulator(q.dtype), _in_pairs(q.dtype)
    padded = _padded(sizes.head_dim, pairs)
    blocks = _forward_blocks(sizes, dtype, padded)
    consts: dict[str, Any] = {"DP": padded, "T": dtype, "PAIRS": pairs, **blocks}
    n = -(-sizes.queries // (blocks["QW"] * blocks["GROUPS"]))
    views = tuple(_mask_view(m, sizes, transposed=True) for m in masks)
    group, ahead = sizes.heads // sizes.kv_heads, CAUSAL if causal else EVERYTHING
    limit = threshold_of(dropout)
    args = (_words(q), _words(k), v, views, tuple(noise), out, lse, scale, group, ahead, limit)
    return [KernelCall(flash_forward, (n, sizes.heads, sizes.batch), args, consts)]


def _backward_blocks(dtype: DType, padded: int, pairs: bool) -> dict[str, int]:
    """Keys per block, queries per step, and the register blocks: N rows by KW keys (EN by EW at the
    edge) or DW elements of a head."""
    narrow = 16 if padded % 32 else 32
    small = default_target().machine.lanes < 16
    edge = {"EW": 32 if pairs else 16, "EN": 4 if small else 8}
    if dtype is f64:
        keys, queries = (32, 32) if padded <= 64 else (32, 16) if padded <= 128 else (16, 16)
        return {"KB": keys, "R": queries, "KW": keys, "N": 2 if small else 4, "DW": narrow, **edge}
    if not small and (padded <= 64 or (pairs and padded <= 128)):
        wide = padded if padded <= 64 else 64 if padded % 64 == 0 else narrow
        return {"KB": 64, "R": 64, "KW": 64, "N": 4, "DW": wide, **edge}
    keys = 64 if padded <= 64 else 32
    queries = 64 if padded <= 128 else 32
    return {"KB": keys, "R": queries, "KW": 32, "N": 2 if small else 8, "DW": narrow, **edge}


def backward_calls(
    q: Buffer,
    k: Buffer,
    v: Buffer,
    masks: Sequence[Buffer],
    out: Buffer,
    lse: Buffer,
    dout: Buffer,
    dlse: Sequence[Buffer],
    grads: Sequence[Buffer],
    noise: Sequence[Buffer],
    causal: bool,
    scale: float,
    dropout: float,
    workspace: Sequence[Buffer],
) -> list[KernelCall]:
    """``grads`` (dq, dk, dv) of :func:`forward_calls` from its results and their cotangents.

    ``dlse`` has one buffer or none; ``workspace`` is what :func:`backward_memory` asks for.
    """
    sizes = Sizes.of(q, k)
    dtype, pairs = accumulator(q.dtype), _in_pairs(q.dtype)
    padded = _padded(sizes.head_dim, pairs)
    blocks = _backward_blocks(dtype, padded, pairs)
    stats, *sums = workspace
    calls = [
        KernelCall(
            flash_row_statistics,
            (-(-sizes.queries // 8), sizes.heads, sizes.batch),
            (out, dout, lse, tuple(dlse), stats),
            {"T": dtype},
        )
    ]
    consts: dict[str, Any] = {"DP": padded, "T": dtype, "PAIRS": pairs, **blocks}
    views = tuple(_mask_view(m, sizes, transposed=False) for m in masks)
    pieces, size = _pieces(sizes, q.dtype)
    group, ahead = sizes.heads // sizes.kv_heads, CAUSAL if causal else EVERYTHING
    results = [*sums, *grads[len(sums) :]]
    words = (_words(q), _words(k), _words(v), _words(dout))
    rows = (q, k, dout) if pairs else ()
    limit = threshold_of(dropout)
    args = (*words, rows, views, tuple(noise), stats, *results, scale, group, ahead, limit)
    for turn in range(pieces):
        # under a causal mask no query of an earlier piece sees a later piece's keys
        programs = pieces - turn if causal else pieces
        calls.append(
            KernelCall(
                flash_backward,
                (programs, sizes.kv_heads, sizes.batch),
                (*args, turn, pieces, size),
                consts,
            )
        )
    for wide, narrow in zip(sums, grads):
        b, h, t, _ = narrow.shape
        calls.append(KernelCall(round_rows, (-(-t // 8), h, b), (wide, narrow)))
    return calls


def backward_memory(q: Node, k: Node) -> list[tuple[DType, tuple[int, ...]]]:
    """The backward pass's workspace: two numbers per query, and sums for results in 16 bits, of dq
    always, of dk and dv where several launches add to them."""
    sizes = Sizes.of(q, k)
    wide = accumulator(q.dtype)
    batch, heads, queries, _ = sizes.scores
    memory: list[tuple[DType, tuple[int, ...]]] = [(wide, (2, batch, heads, queries))]
    if q.dtype is not wide:
        keys = (batch, sizes.kv_heads, sizes.keys, sizes.head_dim)
        memory.append((wide, sizes.rows("bhtd")))
        memory += [(wide, keys)] * 2 if _pieces(sizes, q.dtype)[0] > 1 else []
    return memory


def _pieces(sizes: Sizes, dtype: DType) -> tuple[int, int]:
    """Into how many pieces to cut queries and keys, and their length, whole blocks of both.

    Depends on shapes and dtype alone, and so do the bits of the result.
    """
    pairs = _in_pairs(dtype)
    shape = _backward_blocks(accumulator(dtype), _padded(sizes.head_dim, pairs), pairs)
    block = max(shape["KB"], shape["R"])
    blocks = max(-(-max(sizes.queries, sizes.keys) // block), 1)
    wanted = -(-_PROGRAMS // max(sizes.batch * sizes.kv_heads, 1))
    each = -(-blocks // min(wanted, -(-blocks // 2)))
    return -(-blocks // each), each * block

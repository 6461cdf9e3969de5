"""Which attention weights dropout keeps: a function of a key and a place, never stored.

Threefry-2x32 (:mod:`tilewright.ops.random`) turns the counter (pair of queries, pair of keys) into
64 bits, 16 for each of the four weights where the two meet: the first word is that of the even key,
its lower half that of the even query. A weight is kept when its 16 bits are below a threshold, so
the share that is kept is a multiple of 2**-16, and what is kept is divided by exactly that share.

The forward pass has queries on lanes, the backward pass keys; both make the same bits again, so
memory stays linear in the length, and dropout changes no bit between threads, block sizes or
compiled and dynamic steps.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, boolean
from tilewright.dtypes import u32 as word_type
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.lang import (
    Array,
    Const,
    arange,
    concatenate,
    expand_dims,
    i64,
    program_id,
    reshape,
    u32,
    where,
)
from tilewright.ops.calls import KernelCall
from tilewright.ops.random import threefry2x32, threefry_words
from tilewright.ops.table import OpDef, make, register
from tilewright.runtime.launch import kernel

__all__ = [
    "attention_noise",
    "check_key",
    "keep_reference",
    "kept_by_columns",
    "kept_by_rows",
    "kept_share",
    "pair_rows",
    "threshold_of",
]

_STEPS: Final = 1 << 16


def threshold_of(p: float) -> int:
    """Of 2**16 equally likely values how many keep a weight that is dropped with probability p."""
    found = round((1.0 - p) * _STEPS) if 0.0 <= p < 1.0 else 0
    if not found:
        raise ShapeError(f"dropout of attention weights has a probability in [0, 1), got {p}")
    return found


def kept_share(p: float) -> float:
    """The probability that a weight is kept, which is what the kept ones are divided by."""
    return threshold_of(p) / _STEPS


# --- in kernels ----------------------------------------------------------------------------------


def pair_rows(b, h, q):
    """Number of the first pair of queries of head h in batch b, of q (B, H, Tq, D)."""
    return (b * q.shape[1] + h) * ((q.shape[2] + 1) // 2)


def _interleaved(even, odd):
    """Rows of two tiles (n, m) in turn: (2 n, m)."""
    both = concatenate((expand_dims(even, 1), expand_dims(odd, 1)), 1)
    return reshape(both, (2 * even.shape[0], even.shape[1]))


def kept_by_columns(key, base, q0, k0, limit, ROWS, QW):
    """Which weights of keys k0 : k0 + ROWS by queries q0 : q0 + QW are kept: (ROWS, QW) bool.

    ``base`` is :func:`pair_rows`; q0, k0 and ROWS are even.
    """
    q = (q0 + arange(QW)).to(u32)
    rows = base.to(u32) + (q >> 1)
    columns = (k0 // 2 + arange(ROWS // 2)).to(u32)
    x0, x1 = threefry_words(expand_dims(rows, 0), expand_dims(columns, 1), key[0], key[1])
    bits = _interleaved(x0, x1) >> expand_dims((q & 1) << 4, 0)
    return (bits & 0xFFFF) < limit.to(u32)


def kept_by_rows(key, base, q0, k0, limit, N, L):
    """Which weights of queries q0 : q0 + N by keys k0 : k0 + L are kept: (N, L) bool."""
    k = (k0 + arange(L)).to(u32)
    rows = (base + q0 // 2 + arange(N // 2)).to(u32)
    x0, x1 = threefry_words(expand_dims(rows, 1), expand_dims(k >> 1, 0), key[0], key[1])
    word = where(expand_dims((k & 1) == 1, 0), x1, x0)
    return _interleaved(word & 0xFFFF, word >> 16) < limit.to(u32)


@kernel
def attention_noise_kernel(key: Array, out: Array, limit: i64, N: Const, L: Const):
    """out (B, H, Tq, Tk) bool; N queries of a head per program."""
    q0 = program_id(0) * N
    h = program_id(1)
    b = program_id(2)
    base = pair_rows(b, h, out)
    for k0 in range(0, out.shape[3], L):
        out[b, h, q0 : q0 + N, k0 : k0 + L] = kept_by_rows(key, base, q0, k0, limit, N, L)


# --- as an op ------------------------------------------------------------------------------------


def check_key(op: str, key: Node) -> None:
    """Refuse a key that is not two u32 in a row."""
    if key.dtype is not word_type or tuple(key.shape) != (2,):
        raise ShapeError(f"{op}: the key is two u32, got {key.dtype}{shape_of(key.shape)}")


def keep_reference(key: np.ndarray, shape: Sequence[int], p: float) -> np.ndarray:
    """Which weights (B, H, Tq, Tk) are kept."""
    batch, heads, queries, keys = shape
    q, k = np.arange(queries), np.arange(keys)
    rows = np.arange(batch * heads)[:, None] * ((queries + 1) // 2) + q // 2
    x0, x1 = threefry2x32((key[0], key[1]), (rows[..., None], k // 2))
    word = np.where(k % 2 == 1, x1, x0)
    bits = word >> (16 * (q % 2)).astype(np.uint32)[:, None] & np.uint32(0xFFFF)
    return (bits < threshold_of(p)).reshape(tuple(shape))


def _infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    check_key("attention_noise", inputs[0])
    return attrs["shape"], boolean


def _calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    limit = threshold_of(node.attrs["p"])
    grid = (-(-out.shape[2] // 8), out.shape[1], out.shape[0])
    args = (inputs[0], out, limit)
    return [KernelCall(attention_noise_kernel, grid, args, {"N": 8, "L": 16})]


register(
    OpDef(
        "attention_noise",
        _infer,
        keep_reference,
        calls=_calls,
        gradient=lambda node, grad: (None,),
    )
)


def attention_noise(key: Node, shape: Sequence[int], p: float) -> Node:
    """Which weights of an attention (B, H, Tq, Tk) dropout with probability p keeps, bool.

    key (2,) u32. In memory only where somebody asks: the flash kernels make it piece by piece.
    """
    threshold_of(p)
    return make("attention_noise", key, shape=tuple(shape), p=float(p))

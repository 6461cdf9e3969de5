"""Table entries and kernels around the KV cache: rope, writing keys and values, attention.

``rope``, ``write_keys`` and ``write_values`` are the plain ops; ``split_heads`` is what the
compiler fuses them into: one launch that rotates queries and keys and stores keys and values in
their pages.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.lang import Array, Const, minimum, program_id
from tilewright.ops.attention import attention_calls, attention_reference
from tilewright.ops.calls import KernelCall
from tilewright.ops.kvcache import PAGE
from tilewright.ops.rope import by_heads, rope_calls, rope_reference, rotate_head, store_key
from tilewright.ops.table import OpDef, register
from tilewright.runtime.launch import kernel

__all__: list[str] = []


# --- rope ----------------------------------------------------------------------------------------


def _rope_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    x, cos = inputs[:2]
    width, head_dim = x.shape[-1], attrs["head_dim"]
    if not isinstance(width, int) or width % head_dim or cos.shape[1] * 2 > head_dim:
        raise ShapeError(
            f"rope over heads of {head_dim} does not fit {shape_of(x.shape)} "
            f"with tables {shape_of(cos.shape)}"
        )
    return x.shape, x.dtype


def _rope_reference(
    x: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    positions: np.ndarray,
    *,
    head_dim: int,
    pairing: str,
) -> np.ndarray:
    heads = x.reshape(x.shape[0], -1, head_dim)
    return rope_reference(heads, positions, cos, sin, pairing == "interleaved").reshape(x.shape)


def _rope_calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    x, cos, sin, positions = inputs
    hd = node.attrs["head_dim"]
    interleaved = node.attrs["pairing"] == "interleaved"
    return rope_calls(by_heads(x, hd), positions, cos, sin, by_heads(out, hd), interleaved)


register(OpDef("rope", _rope_infer, _rope_reference, calls=_rope_calls))


# --- writing the cache ---------------------------------------------------------------------------


@kernel
def write_keys_kernel(
    x: Array,
    positions: Array,
    sequences: Array,
    page_table: Array,
    keys: Array,
    HD: Const,
    PAGE: Const,
):
    """One key of one token per program: x (T, heads, HD) into (pages, heads, HD, PAGE)."""
    head = program_id(0)
    row = program_id(1)
    pos = positions[row]
    page = page_table[sequences[row], pos // PAGE]
    keys[page, head, 0:HD, pos % PAGE] = x[row, head, 0:HD]


@kernel
def write_values_kernel(
    x: Array,
    positions: Array,
    sequences: Array,
    page_table: Array,
    values: Array,
    HD: Const,
    PAGE: Const,
):
    """One value of one token per program: x (T, heads, HD) into (pages, heads, PAGE, HD)."""
    head = program_id(0)
    row = program_id(1)
    pos = positions[row]
    page = page_table[sequences[row], pos // PAGE]
    values[page, head, pos % PAGE, 0:HD] = x[row, head, 0:HD]


def _write_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    cache, x = inputs[:2]
    _, heads, a, b = cache.shape
    head_dim = a if b == PAGE and a != PAGE else b if a == PAGE else a
    if x.shape[-1] != heads * head_dim:
        raise ShapeError(f"{shape_of(x.shape)} does not fit a cache {shape_of(cache.shape)}")
    return cache.shape, cache.dtype


def _pages(
    positions: np.ndarray, sequences: np.ndarray, page_table: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return page_table[sequences, positions // PAGE], positions % PAGE


def _write_keys_reference(
    cache: np.ndarray,
    x: np.ndarray,
    positions: np.ndarray,
    sequences: np.ndarray,
    page_table: np.ndarray,
) -> np.ndarray:
    page, slot = _pages(positions, sequences, page_table)
    cache[page, :, :, slot] = x.reshape(x.shape[0], cache.shape[1], cache.shape[2])
    return cache


def _write_values_reference(
    cache: np.ndarray,
    x: np.ndarray,
    positions: np.ndarray,
    sequences: np.ndarray,
    page_table: np.ndarray,
) -> np.ndarray:
    page, slot = _pages(positions, sequences, page_table)
    cache[page, :, slot] = x.reshape(x.shape[0], cache.shape[1], cache.shape[3])
    return cache


def _writer(which: Any, axis: int) -> Any:
    def calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
        cache, x, positions, sequences, page_table = inputs
        hd = int(cache.shape[axis])
        args = (by_heads(x, hd), positions, sequences, page_table, cache)
        grid = (int(cache.shape[1]), int(x.shape[0]))
        return [KernelCall(which, grid, args, {"HD": hd, "PAGE": PAGE})]

    return calls


register(
    OpDef(
        "write_keys",
        _write_infer,
        _write_keys_reference,
        calls=_writer(write_keys_kernel, 2),
        state=0,
    )
)
register(
    OpDef(
        "write_values",
        _write_infer,
        _write_values_reference,
        calls=_writer(write_values_kernel, 3),
        state=0,
    )
)


@kernel
def split_heads_kernel(
    q: Array,
    k: Array,
    v: Array,
    positions: Array,
    sequences: Array,
    page_table: Array,
    cos: Array,
    sin: Array,
    out: Array,
    keys: Array,
    values: Array,
    H: Const,
    HKV: Const,
    HALF: Const,
    HD: Const,
    PAGE: Const,
    INTERLEAVED: Const,
    ROWS: Const,
):
    """ROWS tokens per program: rotated queries to out, rotated keys and values to their page.

    Keys go token by token within a head: they are neighbours in the page's rows, so a cache line
    that was fetched for one takes the next ones too.
    """
    first = program_id(0) * ROWS
    last = minimum(first + ROWS, q.shape[0])
    for row in range(first, last):
        pos = positions[row]
        for head in range(H):
            if HALF > 0:
                rotate_head(q, out, row, head, pos, cos, sin, HALF, HD, INTERLEAVED)
            else:
                out[row, head, 0:HD] = q[row, head, 0:HD]
    for head in range(HKV):
        for row in range(first, last):
            pos = positions[row]
            page = page_table[sequences[row], pos // PAGE]
            slot = pos % PAGE
            store_key(k, keys, row, head, head, page, slot, pos, cos, sin, HALF, HD, INTERLEAVED)
            values[page, head, slot, 0:HD] = v[row, head, 0:HD]


def _split_calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    q, k, v, keys, values, positions, sequences, page_table, *tables = inputs
    hd = int(keys.shape[2])
    cos, sin = tables if tables else (positions, positions)
    tokens = int(q.shape[0])
    rows = 16 if tokens >= 64 else 1
    consts = {
        "H": int(q.shape[1]) // hd,
        "HKV": int(keys.shape[1]),
        "HALF": int(cos.shape[1]) if tables else 0,
        "HD": hd,
        "PAGE": PAGE,
        "INTERLEAVED": node.attrs["pairing"] == "interleaved",
        "ROWS": rows,
    }
    args = (
        *(by_heads(x, hd) for x in (q, k, v)),
        positions,
        sequences,
        page_table,
        cos,
        sin,
        by_heads(out, hd),
        keys.fix(),
        values.fix(),
    )
    return [KernelCall(split_heads_kernel, (-(-tokens // rows),), args, consts)]


def _fused_only(*arrays: Any, **attrs: Any) -> np.ndarray:
    raise NotImplementedError("split_heads exists only after fusion; its parts have references")


register(
    OpDef("split_heads", lambda i, a: (i[0].shape, i[0].dtype), _fused_only, calls=_split_calls)
)


# --- attention -----------------------------------------------------------------------------------


def _attention_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    q, keys, values = inputs[:3]
    _, kv_heads, head_dim, _ = keys.shape
    group = kv_heads * head_dim
    if q.shape[-1] % group or values.shape[1] != kv_heads:
        raise ShapeError(
            f"queries {shape_of(q.shape)} do not divide into groups of {kv_heads} kv heads "
            f"of {head_dim}"
        )
    return q.shape, q.dtype


def _attention_reference(
    q: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    positions: np.ndarray,
    page_table: np.ndarray,
    tiles: np.ndarray,
    *,
    scale: float,
) -> np.ndarray:
    sequences = np.zeros(q.shape[0], np.int32)
    for sequence, first, count in tiles:
        sequences[first : first + count] = sequence
    return attention_reference(q, positions, sequences, page_table, keys, values, scale)


def _attention_calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    q, keys, values, positions, page_table, tiles = inputs
    return attention_calls(
        q, positions, page_table, tiles, keys, values, out, scale=node.attrs["scale"]
    )


register(OpDef("attention", _attention_infer, _attention_reference, calls=_attention_calls))

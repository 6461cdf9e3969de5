"""The paged KV cache: where keys and values lie, and the kernel that writes them.

Keys are stored with the positions on the lanes, K (pages, kv_heads, head_dim, PAGE), so that a
page's scores are one outer product per dimension; values with the dimensions on the lanes,
V (pages, kv_heads, PAGE, head_dim). A page holds :data:`PAGE` consecutive positions of a sequence;
``page_table`` (sequences, max_pages) i32 names the pages in order.
"""

from __future__ import annotations

import numpy as np

from tilewright.dtypes import f32
from tilewright.errors import ShapeError
from tilewright.runtime.buffers import Buffer, zeros

__all__ = ["PAGE", "cache_pages", "read_cache"]

PAGE = 64


def cache_pages(pages: int, kv_heads: int, head_dim: int) -> tuple[Buffer, Buffer]:
    """Zeroed (K, V) buffers of one layer, f32.

    Zeroed because masked positions of a page are multiplied by an exact zero, which only a finite
    number survives.
    """
    if pages < 1 or kv_heads < 1 or head_dim < 1:
        raise ShapeError(f"a cache of {pages} pages, {kv_heads} heads of {head_dim} is empty")
    return (
        zeros(f32, (pages, kv_heads, head_dim, PAGE)).fix(),
        zeros(f32, (pages, kv_heads, PAGE, head_dim)).fix(),
    )


def read_cache(
    keys: np.ndarray, values: np.ndarray, pages: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """K and V of one sequence as (length, kv_heads, head_dim); ``pages`` is its table row."""
    used = pages[: -(-length // PAGE)]
    k = keys[used].transpose(0, 3, 1, 2).reshape(-1, keys.shape[1], keys.shape[2])
    v = values[used].transpose(0, 2, 1, 3).reshape(-1, values.shape[1], values.shape[3])
    return k[:length], v[:length]

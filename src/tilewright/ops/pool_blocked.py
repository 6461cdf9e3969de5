"""Pooling of blocked images (see :mod:`tilewright.ops.blocked`), for inference.

The values of ``max_pool`` and ``avg_pool`` with two spatial axes, bit for bit: taps ascending.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, i32
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.ops.blocked import BLOCK, block, unblock
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_blocked_plan import pool_calls
from tilewright.ops.pool import avg_pool_reference, max_pool_reference, pooled_sizes
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import sizes_of
from tilewright.runtime.buffers import Buffer

__all__ = ["pool_blocked", "suits"]

Attrs = Mapping[str, Any]
_WINDOW = ("kernel", "strides", "padding", "dilation", "ceil_mode")


def suits(node: Node) -> bool:
    """Whether :func:`pool_blocked` computes what the pooling ``node`` does."""
    (x,) = node.inputs
    if len(x.shape) != 4 or not x.dtype.is_float or 0 in sizes_of(x):
        return False
    return node.op == "max_pool" or _divisor(sizes_of(x)[2:], node.attrs) is not None


def pool_blocked(x: Node, node: Node) -> Node:
    """The values of ``node``, a max_pool or avg_pool, for its input as the blocked x."""
    window = {name: node.attrs[name] for name in _WINDOW}
    if node.op == "max_pool":
        return make("max_pool_blocked", x, **window)
    size = sizes_of(node.inputs[0])[2:]
    divisor = _divisor(size, node.attrs)
    assert divisor is not None
    return make("avg_pool_blocked", x, **window, divisor=divisor)


def _divisor(size: Sequence[int], attrs: Attrs) -> int | None:
    """What every sum is divided by; 0: by the pixels it sees; None: it is neither."""
    if attrs.get("divisor"):
        return int(attrs["divisor"])
    inside = counted = True
    for n, out, k, s, d, (low, high) in zip(
        size,
        pooled_sizes("avg_pool", size, attrs),
        *(attrs[name] for name in ("kernel", "strides", "dilation", "padding")),
    ):
        last = (out - 1) * s + (k - 1) * d - low
        inside = inside and low == 0 and last < n
        counted = counted and last < n + high
    count = int(np.prod(attrs["kernel"]))
    if inside or (attrs["count_include_pad"] and counted):
        return count
    return None if attrs["count_include_pad"] else 0


def _infer(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    (x,) = inputs
    sizes = sizes_of(x)
    if len(sizes) != 5 or sizes[4] != BLOCK or not x.dtype.is_float:
        raise ShapeError(f"pooling wants a blocked float image, got {x.dtype}{shape_of(x.shape)}")
    return (*sizes[:2], *pooled_sizes("pool_blocked", sizes[2:4], attrs), BLOCK), x.dtype


def _plain(x: np.ndarray) -> np.ndarray:
    return unblock(x, (x.shape[0], x.shape[1] * BLOCK, *x.shape[2:4]))


def _max_reference(x: np.ndarray, **attrs: Any) -> np.ndarray:
    return block(max_pool_reference(_plain(x), **attrs, index_dtype=i32)[0])


def _avg_reference(x: np.ndarray, divisor: int, **attrs: Any) -> np.ndarray:
    return block(avg_pool_reference(_plain(x), **attrs, divisor=divisor, count_include_pad=False))


def _max_calls(node: Node, inputs: Sequence[Buffer], out: Buffer) -> list[KernelCall]:
    return pool_calls(inputs[0], out, node.attrs, True, 0) if out.size else []


def _avg_calls(node: Node, inputs: Sequence[Buffer], out: Buffer) -> list[KernelCall]:
    return pool_calls(inputs[0], out, node.attrs, False, node.attrs["divisor"]) if out.size else []


register(OpDef("max_pool_blocked", _infer, _max_reference, calls=_max_calls))
register(OpDef("avg_pool_blocked", _infer, _avg_reference, calls=_avg_calls))

"""Running sums and products, differences of neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilewright.errors import ShapeError
from tilewright.graph import Node, const_node
from tilewright.ops import elementwise as ew
from tilewright.ops import scans as ops
from tilewright.ops import views
from tilewright.tensor.core import Tensor, apply
from tilewright.tensor.elementwise import check_tensor
from tilewright.tensor.manipulation import axis_of, concat
from tilewright.tensor.nodes import cast_node
from tilewright.tensor.reductions import total_dtype

__all__ = ["cumulative_prod", "cumulative_sum", "diff"]


def _running(
    name: str,
    build: Callable[..., Node],
    start: int,
    x: Tensor,
    axis: int | None,
    dtype: Any,
    include_initial: bool,
) -> Tensor:
    rank = check_tensor(name, x).ndim
    if axis is None:
        if rank != 1:
            raise ShapeError(f"{name} wants an axis for a tensor of shape {x.shape}")
        axis = 0
    at = axis_of(axis, rank, name)
    wanted = total_dtype(x.dtype, dtype)
    first = (*x.shape[:at], 1, *x.shape[at + 1 :])

    def of_node(node: Node) -> Node:
        node = build(cast_node(node, wanted), at)
        if include_initial:
            initial = views.broadcast(const_node(start, wanted), first)
            node = views.concat([initial, node], at)
        return node

    return apply(of_node, x)


def cumulative_sum(
    x: Tensor, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False
) -> Tensor:
    """The sums of the elements up to each along ``axis``; dtypes as for ``sum``.

    ``include_initial`` puts a 0 in front.
    """
    return _running("cumulative_sum", ops.cumsum, 0, x, axis, dtype, include_initial)


def cumulative_prod(
    x: Tensor, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False
) -> Tensor:
    """The products of the elements up to each along ``axis``; dtypes as for ``prod``.

    ``include_initial`` puts a 1 in front.
    """
    return _running("cumulative_prod", ops.cumprod, 1, x, axis, dtype, include_initial)


def diff(
    x: Tensor,
    /,
    *,
    axis: int = -1,
    n: int = 1,
    prepend: Tensor | None = None,
    append: Tensor | None = None,
) -> Tensor:
    """The differences of neighbours along ``axis``, taken ``n`` times (bool: whether they differ).

    ``prepend`` and ``append`` are joined to ``x`` along ``axis`` first.
    """
    at = axis_of(axis, check_tensor("diff", x).ndim, "diff")
    if n < 0:
        raise ValueError(f"diff: n is not negative, got {n}")
    if n == 0:
        return +x
    parts = [p for p in (prepend, x, append) if p is not None]
    joined = concat(parts, axis=at) if len(parts) > 1 else x

    def step(node: Node) -> Node:
        for _ in range(n):
            count: Any = node.shape[at]
            sizes = (*node.shape[:at], max(count - 1, 0), *node.shape[at + 1 :])
            if count == 0:
                return node
            starts = [0] * len(sizes)
            low = views.slice_(node, starts, sizes)
            starts[at] = 1 if sizes[at] else 0
            high = views.slice_(node, starts, sizes)
            node = ew.ne(high, low) if node.dtype.kind == "b" else ew.sub(high, low)
        return node

    return apply(step, joined)

"""Sparse gradients of tables: ids and rows instead of an array of the table's size.

A sparse gradient is a tensor like any other whose node is ``scatter_rows(ids, rows)`` with the name
``"sparse"``. It is left uncomputed; who looks at its value gets the dense array.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from tilewright.dtypes import i64
from tilewright.graph import Node, data_node
from tilewright.ops import elementwise as ew
from tilewright.ops import indexing, views

__all__ = ["SPARSE", "SparseRows", "settled", "sparse_node", "sparse_rows"]

SPARSE: Final = "sparse"


class SparseRows(NamedTuple):
    """The gradient of a table (n, i..): ``rows`` (m, i..) to be added at ``ids`` (m,)."""

    ids: Node
    rows: Node


def sparse_node(ids: Node, rows: Node, n: int) -> Node:
    """The sparse gradient of a table of ``n`` rows: ids (k..), rows (k.., i..)."""
    dense = indexing.scatter_rows(ids, rows, n)
    return Node(dense.op, dense.inputs, dense.shape, dense.dtype, dense.attrs, SPARSE)


def sparse_rows(node: Node) -> SparseRows | None:
    """Ids and rows of a sparse gradient or of a sum of them, None for any other node."""
    if node.value is not None:
        return None
    if node.op == "add":
        first, second = (sparse_rows(x) for x in node.inputs)
        if first is None or second is None:
            return None
        both = [ew.cast(part.ids, i64) for part in (first, second)]
        return SparseRows(views.concat(both, 0), views.concat([first.rows, second.rows], 0))
    if node.op != "scatter_rows" or node.name != SPARSE:
        return None
    ids, rows = node.inputs
    m = math.prod(views.sizes_of(ids))
    inner = rows.shape[len(ids.shape) :]
    return SparseRows(views.reshape(ids, (m,)), views.reshape(rows, (m, *inner)))


def settled(rows: SparseRows, n: int) -> Node:
    """The gradient of computed ``rows``, without the history of how they were computed."""
    return sparse_node(data_node(rows.ids.value), data_node(rows.rows.value), n)

"""Nodes as the operations of tensors need them: numbers, casts, copies with an identity."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import DTypeError
from tilewright.graph import Node, Size, const_node, data_node, scalar_node
from tilewright.ops import elementwise as ew
from tilewright.sizes import Real
from tilewright.tensor.modes import mode
from tilewright.tensor.promotion import Number

if TYPE_CHECKING:
    from tilewright.tensor.core import Tensor

__all__ = ["apart", "cast_node", "foreign", "fresh", "number_node", "own", "whole_quotient"]


def fresh(node: Node) -> Node:
    """A node of the same value and another identity."""
    # A trace has to see where it comes from; a leaf that varies is other data in the next run.
    if node.value is not None and mode.trace is None and "varies" not in node.attrs:
        return data_node(node.value)
    return Node("reshape", (node,), node.shape, node.dtype, {"shape": node.shape})


def apart(node: Node, tracks: int) -> Node:
    """Like :func:`fresh`, but leading to the node where gradients may want to know (``tracks``)."""
    if node.op == "data" and not tracks:
        return fresh(node)
    return Node("reshape", (node,), node.shape, node.dtype, {"shape": node.shape})


def own(node: Node, tensor: Tensor) -> None:
    """Note that ``tensor`` is the one whose value ``node`` is."""
    node.owner = weakref.ref(tensor)


def number_node(value: Number, dtype: DType) -> Node:
    """A 0-d node of a user's number: of the two bools part of the program, else handed to it."""
    return const_node(value, dtype) if dtype.kind == "b" else scalar_node(value, dtype)


def cast_node(node: Node, dtype: DType) -> Node:
    """``node`` as ``dtype``; a number changes its dtype where it stands."""
    if node.op == "scalar" and dtype.is_float:
        value = node.attrs["value"]
        return scalar_node(value if isinstance(value, (Size, Real)) else float(value), dtype)
    return ew.cast(node, dtype)


def whole_quotient(x: Node, y: Node) -> Node:
    """``floor(x / y)`` as Python has it, but as the standard has it where one is infinite.

    There Python says NaN and -1, the standard the floor of the quotient: infinities and zeros.
    """
    found = ew.floor_divide(x, y)
    if x.dtype.kind != "f":
        return found
    infinite = ew.logical_or(ew.isinf(x), ew.isinf(y))
    return ew.where(infinite, ew.floor(ew.div(x, y)), found)


def foreign(operand: Any) -> Any:
    """``NotImplemented``, so that Python asks the other operand; NumPy arrays are an error."""
    if isinstance(operand, np.ndarray):
        raise DTypeError(
            f"a tensor and a NumPy array of shape {operand.shape} meet in one operation: use "
            "asarray(array) for a tensor, or tensor.numpy() for an array"
        )
    return NotImplemented

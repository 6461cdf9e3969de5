"""Ids are looked at before anything is read by them.

Ids whose values are there, or cost next to nothing to have, are checked where they are used, so
that the error points to the line. Others, and all ids of a function that is being traced, are
checked by the program that computes them, before it overwrites anything.
"""

from __future__ import annotations

from tilewright.compiler.fusion import pending
from tilewright.compiler.realize import realize as realize_nodes
from tilewright.errors import DTypeError
from tilewright.graph import Node
from tilewright.ops import table
from tilewright.ops.bounds import Space, check_values, checked, is_known_inside
from tilewright.tensor.core import Tensor
from tilewright.tensor.modes import mode

__all__ = ["checked_ids"]

_FEW = 16  # nodes that are worth computing on their own for an error in the right place
_AS_THEY_ARE = frozenset({"reshape", "permute", "broadcast", "barrier", "stop_gradient"})


def checked_ids(
    ids: Tensor, low: int, high: int, what: str, of: Space, allowed: int | None = None
) -> Tensor:
    """``ids`` (integers), all elements in [low, high), or ``allowed``.

    Args:
        what, of: for the message: ``"embedding: id"``, ``("axis 0 of ", shape)``.

    Raises :class:`BoundsError`, here or when the value is computed.
    """
    node = ids.node
    if not node.dtype.is_integer:
        raise DTypeError(f"{what}s are integers, got {node.dtype}")
    if is_known_inside(node, low, high):
        return ids
    if mode.trace is not None:
        return Tensor(checked(node, low, high, what, of, allowed))
    base = node
    while base.value is None and base.op in _AS_THEY_ARE and len(base.inputs) == 1:
        base = base.inputs[0]
    if base.value is None and _is_cheap(base):
        realize_nodes([base])
    if base.value is None:
        return Tensor(checked(node, low, high, what, of, allowed))
    check_values(base.value.numpy(), low, high, what, of, allowed)
    return ids


def _is_cheap(node: Node) -> bool:
    """Whether a few operations on integers that are there make ``node``."""
    order = pending([node])
    if len(order) > _FEW or not any(n.value is not None for n in order):
        return False
    for n in order:
        if n.value is not None or n.op in ("const", "scalar", "iota"):
            continue
        if n.is_leaf or n.op == "part" or not (n.dtype.is_integer or n.dtype.kind == "b"):
            return False
        entry = table.get(n.op)
        if entry.expression is None and entry.view is None:
            return False
    return True

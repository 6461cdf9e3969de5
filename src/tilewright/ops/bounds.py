"""Ids that have to lie in a range: who gathers by them would silently read zeros otherwise.

``checked`` is a view of its input that refuses values outside a range. In a program it runs on the
host as soon as its input is there, before anything that depends on it and before any state is
overwritten: a program that refuses has changed nothing. What is known to lie inside (the order of
a sort, the remainder of a division) needs no check: see :func:`known_range`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import BoundsError, DTypeError
from tilewright.graph import Node
from tilewright.ops.table import OpDef, make, register
from tilewright.sizes import has_value

__all__ = ["Space", "check_values", "checked", "is_known_inside", "known_range"]

Range = tuple[int, int]
Space = str | tuple[Any, ...]
_least, _largest = np.minimum.reduce, np.maximum.reduce


def check_values(
    ids: np.ndarray, low: int, high: int, what: str, of: Space, allowed: int | None = None
) -> np.ndarray:
    """``ids``, all of which are in [low, high) or ``allowed``; :class:`BoundsError` otherwise.

    Args:
        what: who asks for what, as ``"embedding: id"``.
        of: what the ids count, as ``"10 classes"``, or pieces of it, ``("axis 0 of ", shape)``.
    """
    if not ids.size:
        return ids
    # reduce() is twice as quick as min() and max() where there are few
    if low < high and low <= int(_least(ids, None)) and int(_largest(ids, None)) < high:
        return ids
    limits = np.iinfo(ids.dtype)
    bad = np.ones(ids.shape, bool)
    if low < high and low <= limits.max and high > limits.min:
        bad = ids < max(low, int(limits.min))
        if high <= limits.max:
            bad |= ids >= high
    if allowed is not None and limits.min <= allowed <= limits.max:
        bad &= ids != allowed
    if not bad.any():
        return ids
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    count = int(np.count_nonzero(bad))
    where = f" at position {first if len(first) > 1 else first[0]}" if first else ""
    more = f" (and {count - 1} more)" if count > 1 else ""
    takes = f"it takes {low} to {high - 1}" if low < high else "it has no elements"
    takes += "" if allowed is None else f", or {allowed} for none"
    space = of if isinstance(of, str) else "".join(map(str, of))
    raise BoundsError(f"{what} {int(ids[first])}{where}{more} is out of range for {space}: {takes}")


def _check_infer(inputs: Sequence[Node], attrs: Any) -> tuple[Any, DType]:
    (x,) = inputs
    if not x.dtype.is_integer:
        raise DTypeError(f"ids are integers, got {x.dtype}")
    return x.shape, x.dtype


register(
    OpDef(
        "checked",
        _check_infer,
        check_values,
        view=lambda node, x: x,
        check=True,
        gradient=lambda node, g: [None],
    )
)


def checked(
    ids: Node, low: int, high: int, what: str, of: Space, allowed: int | None = None
) -> Node:
    """``ids``, refused when one is outside [low, high); see :func:`check_values`."""
    if is_known_inside(ids, low, high):
        return ids
    return make("checked", ids, low=low, high=high, what=what, of=of, allowed=allowed)


# --- what is known without looking ---------------------------------------------------------------


def is_known_inside(ids: Node, low: int, high: int) -> bool:
    """Whether every element of ``ids`` is in [low, high), whatever the leaves hold."""
    found = known_range(ids)
    return 0 in ids.shape or (found is not None and low <= found[0] and found[1] < high)


def known_range(node: Node, depth: int = 8) -> Range | None:
    """The least and the greatest value that elements of an integer node can have, if known."""
    if not (node.dtype.is_integer or node.dtype.kind == "b"):
        return None
    widest = _dtype_range(node.dtype)
    rule = _RULES.get(node.op)
    if rule is None or depth == 0 or node.value is not None:
        return widest
    found = rule(node, depth - 1)
    if found is None or found[0] > found[1] or found[0] < widest[0] or found[1] > widest[1]:
        return widest  # nothing is known, or it may wrap
    return found


def _dtype_range(dtype: DType) -> Range:
    if dtype.kind == "b":
        return 0, 1
    limits = np.iinfo(dtype.storage)
    return int(limits.min), int(limits.max)


def _number(node: Node, depth: int) -> Range | None:
    value = node.attrs["value"]
    value = value if has_value(value) else int(value)
    return value, value


def _below(count: Callable[[Node], Any]) -> Callable[[Node, int], Range | None]:
    """Indices into an axis of ``count(node)`` elements."""

    def rule(node: Node, depth: int) -> Range | None:
        n = count(node)
        return (0, n - 1) if has_value(n) and n > 0 else None

    return rule


def _same(node: Node, depth: int) -> Range | None:
    return known_range(node.inputs[0], depth)


def _same_or_zero(node: Node, depth: int) -> Range | None:
    return _joined([_same(node, depth), (0, 0)])


def _checked(node: Node, depth: int) -> Range | None:
    found = [(node.attrs["low"], node.attrs["high"] - 1)]
    if node.attrs["allowed"] is not None:
        found.append((node.attrs["allowed"], node.attrs["allowed"]))
    return _joined(found)


def _union(node: Node, depth: int) -> Range | None:
    return _joined([known_range(x, depth) for x in node.inputs])


def _chosen(node: Node, depth: int) -> Range | None:
    return _joined([known_range(x, depth) for x in node.inputs[1:]])


def _joined(found: Sequence[Range | None]) -> Range | None:
    known = [r for r in found if r is not None]
    if len(known) < len(found) or not known:
        return None
    return min(r[0] for r in known), max(r[1] for r in known)


def _of_ends(*ends: Callable[..., int]) -> Callable[[Node, int], Range | None]:
    """A function that ascends in each operand, at both ends."""

    def rule(node: Node, depth: int) -> Range | None:
        found = [known_range(x, depth) for x in node.inputs]
        if any(r is None for r in found):
            return None
        low, high = zip(*[r for r in found if r is not None])
        return ends[0](*low), ends[0](*high)

    return rule


def _clipped(x: int, low: int, high: int) -> int:
    return min(max(x, low), high)


def _remainder(node: Node, depth: int) -> Range | None:
    by = known_range(node.inputs[1], depth)
    return (0, by[1] - 1) if by is not None and by[0] > 0 else None


def _masked(node: Node, depth: int) -> Range | None:
    highs = [r[1] for x in node.inputs if (r := known_range(x, depth)) is not None and r[0] >= 0]
    return (0, min(highs)) if highs else None


_RULES: dict[str, Callable[[Node, int], Range | None]] = {
    "const": _number,
    "scalar": _number,
    "iota": _below(lambda node: node.attrs["shape"][node.attrs["axis"]]),
    "argmax": _below(lambda node: node.inputs[0].shape[node.attrs["axis"]]),
    "argmin": _below(lambda node: node.inputs[0].shape[node.attrs["axis"]]),
    "argsort": _below(lambda node: node.inputs[0].shape[node.attrs["axis"]]),
    "where": _chosen,
    "concat": _union,
    "minimum": _of_ends(min),
    "maximum": _of_ends(max),
    "clip": _of_ends(_clipped),
    "add": _of_ends(lambda a, b: a + b),
    "remainder": _remainder,
    "bitwise_and": _masked,
    "take": _same_or_zero,
    "take_along_axis": _same_or_zero,
    "checked": _checked,
    **dict.fromkeys(
        ("cast", "copy", "reshape", "permute", "broadcast", "slice", "barrier", "stop_gradient"),
        _same,
    ),
}

"""Nested structures of tensors: dicts, lists, tuples, dataclasses.

Anything else in them (None, numbers, strings) stays as it is; sizes become numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tilewright.sizes import Real, Size
from tilewright.tensor.core import Tensor

__all__ = ["leaves", "map_tree", "replaced"]


def leaves(tree: Any) -> list[Tensor]:
    """The tensors in ``tree``, dicts in the order of their keys' insertion."""
    found: list[Tensor] = []
    map_tree(lambda x: found.append(x) or x, tree)  # type: ignore[func-returns-value]
    return found


def replaced(tree: Any, new: Iterable[Any]) -> Any:
    """``tree`` with its tensors replaced, in the order of :func:`leaves`."""
    values = iter(new)
    return map_tree(lambda _: next(values), tree)


def map_tree(fn: Callable[[Tensor], Any], tree: Any) -> Any:
    """``tree`` with ``fn`` applied to each tensor."""
    if isinstance(tree, Tensor):
        return fn(tree)
    if isinstance(tree, dict):
        mapped = {k: map_tree(fn, v) for k, v in tree.items()}
        return mapped if type(tree) is dict else type(tree)(mapped)
    if isinstance(tree, Mapping):
        return {k: map_tree(fn, v) for k, v in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tree(fn, v) for v in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_tree(fn, v) for v in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {
            f.name: map_tree(fn, getattr(tree, f.name)) for f in dataclasses.fields(tree) if f.init
        }
        return dataclasses.replace(tree, **fields)
    if isinstance(tree, (Size, Real)):
        return int(tree) if isinstance(tree, Size) else float(tree)
    return tree

"""The weights of one model, by name, each used exactly as its shape says or refused.

A :class:`WeightBook` hands out graph leaves for tensors of a file. It reads nothing: shapes come
from the header. ``finish`` fails if a tensor of the file was never asked for, because a weight that
is not used means a forward pass that is not the model's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tilewright.dtypes import f32
from tilewright.errors import FormatError
from tilewright.graph import Node, weight_node
from tilewright.ops.weights import FileWeight

__all__ = ["WeightBook"]


class WeightBook:
    """Named weights, checked as they are taken.

    Args:
        tensors: every tensor of the file by name.
        path: the file, for messages.
        ignorable: tensors that carry no weights of the forward pass (they may stay unused).
    """

    def __init__(
        self, tensors: Mapping[str, FileWeight], path: object = None, ignorable: Iterable[str] = ()
    ) -> None:
        self.tensors = tensors
        self.path = path
        self.used: set[str] = set(ignorable)
        self._nodes: dict[str, Node] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def matrix(self, name: str, shape: tuple[int, int]) -> Node:
        """A matrix (rows, k) for :func:`linear`."""
        return self._take(name, shape)

    def table(self, name: str, shape: tuple[int, int]) -> Node:
        """A matrix whose rows are looked up."""
        return self._take(name, shape)

    def vector(self, name: str, n: int) -> Node:
        """A vector (n,)."""
        return self._take(name, (n,))

    def optional_vector(self, name: str, n: int) -> Node | None:
        """A vector, or None when the file does not have it."""
        return self._take(name, (n,)) if name in self.tensors else None

    def finish(self) -> None:
        """:class:`FormatError` when a tensor of the file was never used."""
        left = [name for name in self.tensors if name not in self.used]
        if left:
            shown = ", ".join(left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
            raise FormatError(
                f"{len(left)} tensors are not part of this architecture: {shown}", path=self.path
            )

    def _take(self, name: str, shape: tuple[int, ...]) -> Node:
        weight = self.tensors.get(name)
        if weight is None:
            raise FormatError("the tensor is missing", path=self.path, tensor=name)
        if tuple(weight.shape) != shape:
            raise FormatError(
                f"its shape is {tuple(weight.shape)}, the configuration wants {shape}",
                path=self.path,
                tensor=name,
            )
        self.used.add(name)
        if name not in self._nodes:
            self._nodes[name] = weight_node(name, shape, f32, weight)
        return self._nodes[name]

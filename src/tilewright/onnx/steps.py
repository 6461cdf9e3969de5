"""What a trace leaves behind: a tree of programs and of what the host does between them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np

from tilewright.graph import Node
from tilewright.onnx.segment import Segment
from tilewright.onnx.values import array_of_buffer, buffer_of, is_tensor_dtype, leaf
from tilewright.runtime.buffers import Buffer
from tilewright.tensor.core import Tensor

__all__ = [
    "Done",
    "Grown",
    "Number",
    "Numbers",
    "Step",
    "bound",
    "contents_key",
    "flat",
    "flat_buffers",
    "leaves_of",
    "numbered",
    "place_results",
    "results_key",
]

_CHILDREN: Final = 256

Done = dict["Step", tuple[list[Buffer], list[Any]]]
"""What a run has computed: by step the tensors that are alive after it, and the host's results."""


class Numbers(Mapping[Node, int]):
    """The numbers of the tensors that are alive at the beginning of a segment.

    Asked by node. Tensors that look at the same memory have nodes of their own, so what counts of a
    leaf is its buffer.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = list(nodes)
        self._numbers: dict[Any, int] = {}
        for i, node in enumerate(self._nodes):
            self._numbers.setdefault(_identity(node), i)

    def __getitem__(self, node: Node) -> int:
        return self._numbers[_identity(node)]

    def __contains__(self, node: object) -> bool:
        return _identity(node) in self._numbers

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)


def _identity(node: Any) -> Any:
    return node if node.value is None else id(node.value)


@dataclass(eq=False)
class Step:
    """A segment, and what the host does after it.

    Attributes:
        segment: computes tensors from those of the step before; None when there are none.
        carried: for each tensor that is alive after the segment the number of the segment's result,
            or ``~i`` for tensor ``i`` of the step before.
        kept: of a ``"call"`` step the alive tensors that are there after it, before its results.
        wanted: of a ``"contents"`` step the alive tensors whose contents decide what comes next; of
            a ``"call"`` step its arguments, tensors as numbers and arrays.
        function: of a ``"call"`` step.
        children: what came next.
        outputs: of an ``"end"`` step: numbers of alive tensors, known arrays, lists of those.
    """

    kind: str = ""
    segment: Segment | None = None
    carried: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    wanted: tuple[Any, ...] = ()
    function: Callable[..., Any] | None = None
    children: OrderedDict[Any, Step] = field(default_factory=OrderedDict)
    outputs: Any = None

    def alive(self, before: Sequence[Buffer], results: Sequence[Buffer]) -> list[Buffer]:
        """The tensors after the segment."""
        return [results[i] if i >= 0 else before[~i] for i in self.carried]

    def compute(self, before: Sequence[Buffer], done: Done) -> list[Buffer]:
        """Run the segment, unless that was done in this run; returns the tensors after it."""
        found = done.get(self)
        if found is None:
            results = [] if self.segment is None else self.segment.run(before)
            found = done[self] = self.alive(before, results), []
        return found[0]

    def on_host(self, alive: Sequence[Buffer], done: Done) -> list[Any]:
        """What the function of a ``"call"`` step returns, arrays as buffers."""
        results = done[self][1]
        if not results:
            assert self.function is not None
            results += place_results(self.function(*(bound(a, alive) for a in self.wanted)))
        return results

    def after_call(self, alive: Sequence[Buffer], placed: Sequence[Any]) -> list[Buffer]:
        """The tensors after a ``"call"`` step."""
        return [alive[i] for i in self.kept] + flat_buffers(placed)

    def results(self, alive: Sequence[Buffer]) -> list[Any]:
        """The outputs of an ``"end"`` step, in memory that is nobody else's."""
        return [self._own(o, alive) for o in self.outputs]

    def _own(self, value: Any, alive: Sequence[Buffer]) -> Any:
        if isinstance(value, list):
            return [self._own(v, alive) for v in value]
        if type(value) is Grown:
            return alive[value]
        if type(value) is not Number:
            return value.copy() if isinstance(value, np.ndarray) else value
        array = array_of_buffer(alive[value])
        alone = self.carried[value] in self.fresh and array.flags.c_contiguous
        return array if alone else np.array(array, order="C")

    @cached_property
    def fresh(self) -> frozenset[int]:
        """The segment's results that lie in memory of their own."""
        if self.segment is None:
            return frozenset()
        first = len(self.segment.template)
        places = [self.segment.program.outputs[i].place for i in self.segment.places]
        return frozenset(i for i, p in enumerate(places) if p >= first and places.count(p) == 1)

    def child(self, key: Any) -> Step | None:
        """What came next when the host learnt ``key``."""
        found = self.children.get(key)
        if found is not None:
            self.children.move_to_end(key)
        return found

    def add(self, key: Any) -> Step:
        """A new child; the one that was not used for longest goes when there are many."""
        made = self.children[key] = Step()
        if len(self.children) > _CHILDREN:
            self.children.popitem(last=False)
        return made


def contents_key(arrays: Sequence[np.ndarray]) -> Any:
    """What tells apart the contents of arrays."""
    return tuple(
        (a.dtype.str, a.shape, tuple(a.reshape(-1)) if a.dtype == object else a.tobytes())
        for a in arrays
    )


def place_results(results: Sequence[Any]) -> list[Any]:
    """What an operator on the host returned; numeric arrays as buffers."""
    return [_placed(r) for r in results]


def _placed(value: Any) -> Any:
    if isinstance(value, np.ndarray) and is_tensor_dtype(value.dtype):
        return buffer_of(value, copy=True)
    return [_placed(v) for v in value] if isinstance(value, list) else value


def results_key(placed: Any) -> Any:
    """What tells apart results of an operator on the host: sizes, and contents of what is known."""
    if isinstance(placed, Buffer):
        return placed.dtype, placed.shape
    if isinstance(placed, list):
        return tuple(results_key(v) for v in placed)
    if isinstance(placed, np.ndarray):
        return contents_key([placed])
    return repr(placed)


def leaves_of(placed: Any) -> Any:
    if isinstance(placed, Buffer):
        return leaf(placed)
    return [leaves_of(v) for v in placed] if isinstance(placed, list) else placed


def flat_buffers(placed: Any) -> list[Buffer]:
    """Every buffer in a nest of lists."""
    return [b for b in flat(placed) if isinstance(b, Buffer)]


class Number(int):
    """The number of an alive tensor, in a place where other things may stand too."""


class Grown(int):
    """The number of a tensor that lies in an input's memory: an input with more behind it."""


def numbered(value: Any, numbers: Mapping[Node, int]) -> Any:
    if isinstance(value, Tensor):
        return Number(numbers[value.node])
    return [numbered(v, numbers) for v in value] if isinstance(value, list) else value


def bound(value: Any, buffers: Sequence[Buffer]) -> Any:
    """A step's argument or output, as arrays."""
    if type(value) is Number:
        return array_of_buffer(buffers[value])
    return [bound(v, buffers) for v in value] if isinstance(value, list) else value


def flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [one for v in value for one in flat(v)]
    return [value]

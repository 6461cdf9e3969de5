"""A part of a traced graph as one static program."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tilewright.compiler.fusion import pending
from tilewright.compiler.numbers import scalar_bits
from tilewright.compiler.passes.inference import for_inference
from tilewright.compiler.realize import located, structure
from tilewright.compiler.realize import realize as realize_nodes
from tilewright.compiler.static import StaticProgram, build
from tilewright.graph import Node, upper_bound
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.memory import Memory, require, take
from tilewright.runtime.program import LaunchTable, TimedPool

__all__ = ["Arena", "Segment", "fold_constants", "require_memory"]


class Arena:
    """Working memory that the segments of a session take turns in."""

    def __init__(self) -> None:
        self.memory: Memory = take(1)
        self.times: list[tuple[str, float]] | None = None  # a list while launches are timed

    def reserve(self, nbytes: int) -> None:
        """Have at least so many bytes."""
        if self.memory.nbytes < nbytes:
            self.memory = take(nbytes)


def fold_constants(roots: Sequence[Node], dynamic: Mapping[Node, int]) -> None:
    """Compute once what depends on no input, and is read by something that does.

    Broadcasts are left alone: they would make memory of what a kernel reads as one element.
    """
    order = pending(roots)
    constant: dict[Node, bool] = {}
    for node in order:
        constant[node] = (
            node not in dynamic
            if node.value is not None
            else not varies(node) and all(constant[i] for i in node.inputs)
        )
    wanted: list[Node] = []
    for node in order:
        if node.value is not None or constant[node]:
            continue
        for source in node.inputs:
            while source.op == "broadcast" and source.value is None:
                source = source.inputs[0]
            if constant[source] and source.value is None and source.inputs:
                wanted.append(source)
    if wanted:
        realize_nodes(list(dict.fromkeys(wanted)))


def require_memory(order: Sequence[Node]) -> None:
    """Raise :class:`OutOfMemoryError` if a value of the graph is larger than the memory there is.

    Also of values that are never written out whole: nobody would wait for the loops over them.
    """
    largest = max(order, key=_nbytes, default=None)
    if largest is not None and _nbytes(largest) > 1 << 26:
        shape = "x".join(map(str, largest.shape))
        require(_nbytes(largest), f"the result {largest.dtype}[{shape}] of {largest.op}")


def _nbytes(node: Node) -> int:
    return (
        0 if node.value is not None else math.prod(hints(node.shape)) * node.dtype.bits // 8
    )


def varies(node: Node) -> bool:
    """Whether a size that is a symbol says what the node is."""
    if not is_fixed(node.shape):
        return True
    return any(_is_symbolic(v) for v in node.attrs.values())


def _is_symbolic(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_is_symbolic(v) for v in value)
    return isinstance(value, (Size, Real))


class Segment:
    """A program from the tensors that are alive before it to its results.

    Args:
        roots: what to compute.
        dynamic: the leaves that change from run to run, and their numbers.
        target, pool: where to run.
        arena: working memory.
        programs: by structure; one that fits is taken, a new one is added.
        scope: symbols among the sizes; the program is then run with their values.
        grown: for some roots (by position) the leaf that they are with more after it: a
            concatenation that is written behind the leaf, where its strides have room for it.
    """

    def __init__(
        self,
        roots: Sequence[Node],
        dynamic: Mapping[Node, int],
        target: Any,
        pool: Any,
        arena: Arena,
        programs: dict[Any, StaticProgram],
        scope: Scope | None = None,
        grown: Mapping[int, Node] | None = None,
    ) -> None:
        require_memory(pending(roots))
        roots = for_inference(roots, dynamic.__contains__)
        fold_constants(roots, dynamic)
        self.arena = arena
        unique = list(dict.fromkeys(roots))
        order = pending(unique)
        behind = {roots[i]: node for i, node in (grown or {}).items()}
        if scope is not None or behind:
            program = build(unique, target, pool, order, scope=scope, behind=behind)
        else:
            key = structure(order, unique)
            found = programs.get(key)
            program = found or programs.setdefault(key, build(unique, target, pool, order))
        self.program = program
        self.places = [unique.index(r) for r in roots]
        self.owners: list[Any] = []
        self.template: list[int] = []
        self.inputs: list[tuple[int, int]] = []  # (place among the addresses, number)
        for node in order:
            if node.value is None:
                continue
            if node in dynamic:
                self.inputs.append((len(self.template), dynamic[node]))
                self.owners.append(None)
                self.template.append(0)
            else:
                self.owners.append(node.value.owner)
                self.template.append(node.value.pointer)
        self._scalars = [
            (order[i].attrs["value"], order[i].dtype) for i in self.program.scalar_positions
        ]
        require(
            self.program.arena_bytes + sum(self.program.output_bytes) - arena.memory.nbytes,
            "working memory and results",
        )
        self.numbers = [] if scope else [scalar_bits(v, dtype) for v, dtype in self._scalars]
        arena.reserve(self.program.arena_bytes)

    def run(self, alive: Sequence[Buffer], values: tuple[int, ...] = ()) -> list[Buffer]:
        """The roots' values, in memory of their own; ``values`` are those of symbols."""
        sized = self.program.at_values(values)
        numbers = self.numbers
        if values:
            self.arena.reserve(sized.arena_bytes)
            if sized.scalars is None:
                number = sized.number
                sized.scalars = [scalar_bits(number(v), dtype) for v, dtype in self._scalars]
            numbers = sized.scalars
        addresses = self.template.copy()
        owners = self.owners.copy()
        for place, number in self.inputs:
            addresses[place] = alive[number].pointer
            owners[place] = alive[number].owner
        for nbytes in sized.output_bytes:
            memory = take(nbytes)
            owners.append(memory)
            addresses.append(memory.pointer)
        addresses.append(self.arena.memory.pointer)
        if self.arena.times is None:
            self.program.run(addresses, numbers, sized)
        else:
            self._run_timed(addresses, numbers, sized, self.arena.times)
        return [located(sized.outputs[i], addresses, owners) for i in self.places]

    def _run_timed(
        self,
        addresses: list[int],
        numbers: Sequence[int],
        sized: Sized,
        times: list[tuple[str, float]],
    ) -> None:
        pool, timed = self.program.pool, TimedPool(self.program.pool)
        self.program.pool = timed
        try:
            self.program.run(addresses, numbers, sized)
        finally:
            self.program.pool = pool
        tables = [t for t in self.program.segments if isinstance(t, LaunchTable)]
        names = [launch.executable.name for t in tables for launch in t.launches]
        times += zip(names, timed.seconds)

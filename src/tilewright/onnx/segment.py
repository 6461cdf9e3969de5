"""A part of a traced graph as one static program."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tilewright.compiler.fusion import pending
from tilewright.compiler.numbers import scalar_bits
from tilewright.compiler.passes.inference import for_inference
from tilewright.compiler.realize import located, structure
from tilewright.compiler.realize import realize as realize_nodes
from tilewright.compiler.static import Output, Sized, StaticProgram, build
from tilewright.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.graph import Node
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.memory import Memory, require, take
from tilewright.runtime.program import TimedPool
from tilewright.sizes import Scope, hints

__all__ = ["Arena", "Segment", "require_memory"]


_FOLDED: Final = 1 << 14
_PROGRAMS: Final = 1024


class Arena:
    """Working memory that the segments of a session take turns in."""

    def __init__(self) -> None:
        self.memory: Memory = take(1)
        self.times: list[tuple[str, float]] | None = None  # a list while launches are timed

    def reserve(self, nbytes: int) -> None:
        """Have at least so many bytes."""
        if self.memory.nbytes < nbytes:
            self.memory = take(nbytes)


class Shared:
    """What the segments of a model have in common.

    Attributes:
        programs: by structure.
        folded: constants that have been computed, by structure and by what they are made of (kept
            alive here, so that what identifies them stays theirs).
        packed: weights that were packed for products.
        compute: bf16: what operands of products are rounded to.
    """

    def __init__(self, compute: DType | None = None) -> None:
        self.compute = compute
        self.packed: dict[Any, tuple[Any, Node]] = {}
        self.programs: dict[Any, StaticProgram] = {}
        self.folded: dict[Any, tuple[Buffer, list[Buffer]]] = {}

    def fold(self, nodes: Sequence[Node]) -> None:
        """Compute constants, or take what an equal one has given."""
        missing = {}
        for node in nodes:
            order = pending([node])
            leaves = [n.value for n in order if n.value is not None]
            numbers = [repr(n.attrs["value"]) for n in order if n.op == "scalar"]
            key = (structure(order, [node]), tuple(map(id, leaves)), tuple(numbers))
            found = self.folded.get(key)
            if found is None:
                missing[key] = node, leaves
            else:
                node.set_value(found[0])
        realize_nodes([node for node, _ in missing.values()])
        if len(self.folded) > _FOLDED:  # constants that traces make anew are not met again
            self.folded.clear()
        for key, (node, leaves) in missing.items():
            self.folded[key] = node.value, leaves


def require_memory(order: Sequence[Node]) -> None:
    """Raise :class:`OutOfMemoryError` if a value of the graph is larger than the memory there is.

    Also of values that are never written out whole: nobody would wait for the loops over them.
    """
    largest = max(order, key=_nbytes, default=None)
    if largest is not None and _nbytes(largest) > 1 << 26:
        shape = "x".join(map(str, largest.shape))
        require(_nbytes(largest), f"the result {largest.dtype}[{shape}] of {largest.op}")


def _nbytes(node: Node) -> int:
    return 0 if node.value is not None else math.prod(hints(node.shape)) * node.dtype.bits // 8


class FullError(Exception):
    """What is to be written behind an input does not fit its memory; ``wanted``: its new shape."""

    def __init__(self, wanted: tuple[int, ...]) -> None:
        super().__init__(f"{wanted} do not fit")
        self.wanted = wanted


def _first_of(root: Node, leaf: Node) -> Node:
    """The operand of ``root`` that is ``leaf``, if what ``root`` does is to put more behind it."""
    if root.op == "concat":
        first = root.inputs[0]
        while first.value is None and first.op == "reshape" and first.shape == root.inputs[0].shape:
            first = first.inputs[0]
        if first.value is leaf.value:
            return first
    raise UnsupportedError(
        f"an output that is to stay in its input's memory is no concatenation of the input and "
        f"something else, but {root!r}: feed it back yourself"
    )


def require_room(cache: Buffer, grown: Output) -> None:
    """Raise :class:`FullError` unless ``grown`` fits the memory that ``cache`` is a part of."""
    shape, strides = grown.shape, grown.strides
    step: int | None = None
    for n, stride in sorted(zip(shape, strides), key=lambda pair: pair[1]):
        if step is not None and n > 1 and stride < step:
            raise FullError(shape)
        step = stride * n if n > 1 else step
    reach = sum((n - 1) * stride for n, stride in zip(shape, strides)) + 1
    if cache.pointer + reach * cache.dtype.nbytes > cache.owner.pointer + cache.owner.nbytes:
        raise FullError(shape)


class Segment:
    """A program from the tensors that are alive before it to its results.

    Args:
        roots: what to compute.
        dynamic: the leaves that change from run to run, and their numbers.
        target, pool: where to run.
        arena: working memory.
        shared: programs and constants of other segments.
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
        shared: Shared,
        scope: Scope | None = None,
        grown: Mapping[int, Node] | None = None,
    ) -> None:
        require_memory(pending(roots))
        roots = for_inference(
            roots, dynamic.__contains__, shared.compute, shared.packed, shared.fold
        )
        self.arena = arena
        unique = list(dict.fromkeys(roots))
        order = pending(unique)
        behind = {roots[i]: _first_of(roots[i], node) for i, node in (grown or {}).items()}
        self.grown = [(unique.index(root), dynamic[node]) for root, node in behind.items()]
        if scope is not None or behind:
            program = build(unique, target, pool, order, scope=scope, behind=behind)
        else:
            key = structure(order, unique)
            found = shared.programs.get(key)
            if found is None and len(shared.programs) >= _PROGRAMS:
                del shared.programs[next(iter(shared.programs))]
            program = found or shared.programs.setdefault(key, build(unique, target, pool, order))
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
            if sized.arena_bytes > self.arena.memory.nbytes:
                require(sized.arena_bytes + sum(sized.output_bytes), "working memory and results")
            self.arena.reserve(sized.arena_bytes)
            if sized.scalars is None:
                number = sized.number
                sized.scalars = [scalar_bits(number(v), dtype) for v, dtype in self._scalars]
            numbers = sized.scalars
        addresses = self.template.copy()
        owners = self.owners.copy()
        for root, i in self.grown:
            require_room(alive[i], sized.outputs[root])
        for place, i in self.inputs:
            addresses[place] = alive[i].pointer
            owners[place] = alive[i].owner
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
        times += zip(self.program.launch_names(), timed.seconds)

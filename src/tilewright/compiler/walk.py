"""How a generated kernel walks its domain: which arrays it reads, which axes it joins.

Axes of the domain that every operand steps through evenly are walked as one. What decides the
order of a reduction (the lanes' axis, the pieces of a split one) depends on sizes alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tilewright.compiler.fusion import (
    REDUCTIONS,
    Group,
    Map,
    is_transparent,
    map_of_input,
    reduced_axes,
    reduces,
)
from tilewright.graph import Node
from tilewright.runtime.buffers import Buffer

__all__ = ["BLOCK", "SPAN", "Axis", "Operand", "Walk", "pieces"]

BLOCK = 64  # elements per step along the last axis: part of the order of sums
SPAN = 1024  # elements of the last axis that a program takes when nothing is reduced
_NARROW = 32  # a reduced last axis shorter than this is joined with those before it
_PIECES = 64


@dataclass(frozen=True)
class Operand:
    """An array as a kernel sees it: its buffer and a stride for each axis of the domain."""

    buffer: Buffer
    strides: tuple[int, ...]


@dataclass
class Axis:
    """Axes of the domain, ``first`` to ``last``, that are walked as one."""

    first: int
    last: int
    size: int
    reduced: bool


def pieces(group: Group) -> tuple[int, int]:
    """Into how many pieces a split reduction's first axis is cut, and how long each is."""
    assert group.reduced is not None
    first = min(group.reduced)
    n = group.domain[first]
    length = -(-n // _PIECES)
    if first == len(group.domain) - 1:
        length = -(-length // BLOCK) * BLOCK
    return -(-n // length), length


class Walk:
    """What a kernel for some results of a group reads and writes, and in which axes.

    Attributes:
        operands: (name, array) of every value read from memory, by node and map.
        patterns: (name, step along each axis of the domain) of every index pattern.
        scalars: names of the run-time numbers.
        results: (name, array) of every result.
        axes: what is walked, the lanes' axis last; names: their index variables.
    """

    def __init__(
        self,
        group: Group,
        outputs: Sequence[Node],
        buffers: Mapping[Node, Buffer],
        cheap: set[Node],
        split: bool = False,
    ) -> None:
        self.group = group
        self.outputs = list(outputs)
        self.buffers = buffers
        self.cheap = cheap
        self.split = split
        self.domain = group.domain or (1,)
        self.reduced = group.reduced or frozenset()
        self.lane = len(self.domain) - 1
        self.lane_reduced = self.lane in self.reduced
        self.inside = set(group.members)
        self.levels: dict[Node, int] = {}
        self.operands: dict[tuple[Node, Map], tuple[str, Operand]] = {}
        self.patterns: dict[tuple[Node, Map], tuple[str, tuple[int, ...]]] = {}
        self.scalars: dict[Node, str] = {}
        self._collect()
        self.results = [
            (f"y{i}", self._operand(out, group.maps[out], split))
            for i, out in enumerate(self.outputs)
        ]
        self.axes = self._merged()
        self.names = {
            id(axis): f"{'r' if axis.reduced else 'k'}{i}" for i, axis in enumerate(self.axes)
        }
        self.names[id(self.axes[-1])] = "j"

    def _collect(self) -> None:
        """Find every array, index pattern and number that the outputs need."""
        seen: set[tuple[Node, Map]] = set()
        stack = [(out, self.group.maps[out]) for out in self.outputs]
        while stack:
            node, m = stack.pop()
            if (node, m) in seen:
                continue
            seen.add((node, m))
            if node.op == "iota" and (node in self.inside or node in self.cheap):
                name = f"p{len(self.patterns)}"
                self.patterns[node, m] = name, self._pattern(node, m)
            elif node in self.inside or (node in self.cheap and node.inputs):
                stack += [(i, self._input_map(node, i, m)) for i in node.inputs]
            elif is_transparent(node) and node not in self.buffers:
                stack.append((node.inputs[0], map_of_input(node, node.inputs[0], m)))
            elif node.op == "const":
                continue
            elif node.op == "scalar":
                self.scalars.setdefault(node, f"c{len(self.scalars)}")
            else:
                name = f"x{len(self.operands)}"
                self.operands[node, m] = name, self._operand(node, m)

    def _input_map(self, node: Node, source: Node, m: Map) -> Map:
        if node.op not in REDUCTIONS:
            return map_of_input(node, source, m)
        axes = set(reduced_axes(node))
        free = iter(sorted(self.reduced))
        kept = iter([d for d in m if d >= 0])
        return tuple(
            -1 if n == 1 else next(free) if a in axes else next(kept)
            for a, n in enumerate(source.shape)
        )

    def _operand(self, node: Node, m: Map, partial: bool = False) -> Operand:
        buffer = self.buffers[node]
        strides = [0] * len(self.domain)
        if partial:  # the workspace of a split reduction: pieces first
            kept = [d for d in range(len(self.domain)) if d not in self.reduced]
            strides[min(self.reduced)] = buffer.strides[0]
            for d, s in zip(kept, buffer.strides[1:]):
                strides[d] = s
            return Operand(buffer, tuple(strides))
        for d, s in zip(m, buffer.strides):
            if d >= 0:
                strides[d] = s
        return Operand(buffer, tuple(strides))

    def _pattern(self, node: Node, m: Map) -> tuple[int, ...]:
        """How an iota's value grows along each axis of the domain."""
        strides = [0] * len(self.domain)
        axis = node.attrs["axis"]
        step = 1
        for a in reversed(range(len(node.shape))):
            if m[a] >= 0 and axis in (None, a):
                strides[m[a]] = step
            if axis is None:
                step *= node.shape[a]
        return tuple(strides)

    def _merged(self) -> list[Axis]:
        vectors = [o.strides for _, o in self.operands.values()]
        vectors += [o.strides for _, o in self.results]
        vectors += [p for _, p in self.patterns.values()]
        axes: list[Axis] = []
        for d, n in enumerate(self.domain):
            reduced = d in self.reduced
            before = axes[-1] if axes else None
            if (
                before is not None
                and before.reduced == reduced
                and not (d == self.lane and reduced)
                and not (self.split and reduced and before.first == min(self.reduced))
                and all(strides[d - 1] == strides[d] * n for strides in vectors)
            ):
                before.size *= n
                before.last = d
                continue
            axes.append(Axis(d, d, n, reduced))
        if self.lane_reduced:
            while len(axes) > 1 and axes[-2].reduced and axes[-1].size < _NARROW:
                if self.split and axes[-2].first == min(self.reduced):
                    break
                before = axes.pop(-2)
                axes[-1].first = before.first
                axes[-1].size *= before.size
        return axes

    def _stride(self, strides: Sequence[int], axis: Axis) -> int:
        return strides[axis.last]

    def _is_flat(self, strides: Sequence[int], axis: Axis) -> bool:
        """Whether one stride describes all the axes that ``axis`` joins."""
        return all(
            strides[d] == strides[d + 1] * self.domain[d + 1] for d in range(axis.first, axis.last)
        )

    def _grid(self, kept: list[Axis]) -> tuple[int, ...]:
        if self.lane_reduced:
            outer, grid = kept, []
        else:
            outer, lane = kept[:-1], kept[-1]
            step = BLOCK if self.reduced else SPAN
            grid = [-(-lane.size // step)]
        if self.split:
            grid.append(pieces(self.group)[0])
        sizes = [a.size for a in reversed(outer)]
        if len(grid) + len(sizes) > 3:
            return (*grid, math.prod(sizes))
        return (*grid, *sizes) or (1,)

    def _uses(self, operand: Operand) -> list[Axis]:
        return [a for a in self.axes if any(operand.strides[a.first : a.last + 1])]

    def _gathers(self, operand: Operand) -> bool:
        """Whether the lanes do not lie a constant stride apart."""
        return not self._is_flat(operand.strides, self.axes[-1])

    def _below(self, operand: Operand) -> int:
        """How far negative strides reach before the first element."""
        return -sum(min(s, 0) * (n - 1) for s, n in zip(operand.strides, self.domain))

    def _bound(self, operand: Operand, partial: bool = False) -> Buffer:
        """The buffer with one axis per axis of the kernel that it has."""
        buffer = operand.buffer
        if 0 in buffer.shape:  # never read, and nothing may be said of its strides
            rank = 1 if self._gathers(operand) else max(len(self._uses(operand)), 1)
            return buffer.view((0,) * rank, (1,) * rank)
        if not partial and self._gathers(operand):
            reach = sum(abs(s) * (n - 1) for s, n in zip(operand.strides, self.domain))
            return buffer.view((reach + 1,), (1,), -self._below(operand))
        used = self._uses(operand)
        sizes = [a.size for a in used]
        if partial:
            sizes = [pieces(self.group)[0] if a.reduced else a.size for a in used]
        if not used:
            return buffer.view((1,), (1,))
        return buffer.view(sizes, [self._stride(operand.strides, a) for a in used])

    def _level(self, node: Node) -> int:
        """How many reductions, one after the other, lie between the operands and ``node``."""
        if node not in self.inside:
            source = node
            while is_transparent(source) and source not in self.buffers:
                source = source.inputs[0]
            return self._level(source) if source in self.inside else 0
        found = self.levels.get(node)
        if found is None:
            found = max((self._level(i) for i in node.inputs), default=0)
            found = self.levels[node] = found + reduces(node)
        return found

    def _in_loop(self, m: Map) -> bool:
        """Whether a value with this map changes inside a pass."""
        loop = self.reduced if self.reduced else {self.lane}
        return any(d in loop for d in m)

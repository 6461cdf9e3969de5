"""Generated kernels: the source text of a group of fused nodes, and its launches.

A kernel walks a group's domain: kept axes are spread over programs, reduced axes are loops, and the
last axis lies along the lanes, 64 elements at a time. Where nothing is reduced, a program takes a
span of the last axis.

The order of a reduction depends on its shape and axes only. When the last axis is reduced: 64
accumulators, one per lane, the other reduced axes around them in ascending order, and a tree over
the lanes at the end (a last axis of fewer than 32 elements is first joined with reduced axes before
it). When it is kept: one accumulator per result, reduced axes ascending. A long reduction with few
results is cut into at most 64 pieces of its first axis, whose results are then reduced.

The text is ordinary kernel language: it can be printed, interpreted and stepped through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tilewright.compiler.fusion import (
    IDENTITIES,
    REDUCTIONS,
    Group,
    Map,
    is_transparent,
    map_of_input,
    reduced_axes,
    reduces,
)
from tilewright.compiler.source import unique_name
from tilewright.dtypes import DType, bf16, boolean, f16, f32, i32
from tilewright.graph import Node, data_node
from tilewright.ops import table
from tilewright.ops.calls import KernelCall
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import Kernel

__all__ = ["BLOCK", "Scalar", "loop_calls", "split_workspace"]

BLOCK = 64  # elements per step along the last axis: part of the order of sums
_SPAN = 1024  # elements of the last axis that a program takes when nothing is reduced
_NARROW = 32  # a reduced last axis shorter than this is joined with those before it
_PIECES = 64
_WORTH = 8192  # elements that are worth handing to another thread
_HALF = (f16, bf16)


class _Integer(int):
    """A stand-in for an integer that the program is handed when it runs."""

    node: Node


class _Float(float):
    """A stand-in for a floating-point number that the program is handed when it runs."""

    node: Node


Scalar = (_Integer, _Float)
"""The types of run-time numbers among a launch's arguments; ``node`` says which number."""


def _scalar(node: Node) -> _Integer | _Float:
    made = _Float() if node.dtype.is_float else _Integer()
    made.node = node
    return made


@dataclass(frozen=True)
class _Operand:
    """An array as a kernel sees it: its buffer and a stride for each axis of the domain."""

    buffer: Buffer
    strides: tuple[int, ...]


@dataclass
class _Axis:
    """Axes of the domain that are walked as one."""

    first: int
    size: int
    reduced: bool
    index: str = ""


def split_workspace(group: Group) -> tuple[DType, tuple[int, ...]] | None:
    """dtype and shape of the memory that a split reduction needs; None for other groups."""
    if not group.closed:
        return None
    (node,) = group.members
    assert group.reduced is not None
    kept = tuple(n for d, n in enumerate(group.domain) if d not in group.reduced)
    return _accumulator(node), (_pieces(group)[0], *kept)


def _accumulator(node: Node) -> DType:
    dtype = node.inputs[0].dtype
    if node.op in ("any", "all"):
        return boolean
    return f32 if dtype in _HALF and node.op in ("sum", "prod") else dtype


def _pieces(group: Group) -> tuple[int, int]:
    """Into how many pieces a split reduction's first axis is cut, and how long each is."""
    assert group.reduced is not None
    first = min(group.reduced)
    n = group.domain[first]
    length = -(-n // _PIECES)
    if first == len(group.domain) - 1:
        length = -(-length // BLOCK) * BLOCK
    return -(-n // length), length


def loop_calls(
    group: Group,
    outputs: Sequence[Node],
    buffers: Mapping[Node, Buffer],
    cheap: set[Node],
    workspace: Buffer | None = None,
) -> list[KernelCall]:
    """The launches that compute ``outputs`` (members of ``group``) into their buffers.

    ``buffers`` has the memory of every node that the group reads from outside, and of the outputs.
    """
    if 0 in (n for d, n in enumerate(group.domain) if d not in (group.reduced or ())):
        return []
    if not group.closed:
        return [_Kernel(group, outputs, buffers, cheap).call()]
    assert workspace is not None
    (node,) = group.members
    first = _Kernel(group, [node], {**buffers, node: workspace}, cheap, split=True).call()
    partial = data_node(workspace)
    keep = Node(node.op, (partial,), node.shape, node.dtype, {"axes": (0,)})
    return [first, _finish(keep, partial, buffers[node])]


def _finish(node: Node, partial: Node, out: Buffer) -> KernelCall:
    """Reduce the pieces' results."""
    squeezed = tuple(n for n in partial.shape if n != 1)
    assert partial.shape[0] != 1
    shape = tuple(n for n in node.shape if n != 1)
    flat = Node(node.op, (partial,), shape, node.dtype, {"axes": (0,)})
    group = Group(0, squeezed, frozenset({0}), [flat], {flat: tuple(range(1, len(squeezed)))})  # type: ignore[arg-type]
    strides = [s for s, n in zip(out.strides, out.shape) if n != 1]
    sizes = [n for n in out.shape if n != 1]
    view = out.view(sizes, strides)
    return _Kernel(group, [flat], {partial: partial.value, flat: view}, set()).call()


class _Kernel:
    """Writes one kernel and its launch."""

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
        self.operands: dict[tuple[Node, Map], tuple[str, _Operand]] = {}
        self.patterns: dict[tuple[Node, Map], tuple[str, tuple[int, ...]]] = {}
        self.scalars: dict[Node, str] = {}
        self._collect()
        self.results = [
            (f"y{i}", self._operand(out, group.maps[out], split))
            for i, out in enumerate(self.outputs)
        ]
        self.axes = self._merged()
        self.body: list[str] = []
        self.inner: list[str] = []
        self.outer_names: dict[tuple[Node, Map], str] = {}
        self.inner_names: dict[tuple[Node, Map], str] = {}
        self.blocks: set[str] = set()  # names of values with 64 lanes
        self.count = 0
        self.sizes: dict[str, int] = {}

    # --- what is read ----------------------------------------------------------------------------

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

    def _operand(self, node: Node, m: Map, partial: bool = False) -> _Operand:
        buffer = self.buffers[node]
        strides = [0] * len(self.domain)
        if partial:  # the workspace of a split reduction: pieces first
            kept = [d for d in range(len(self.domain)) if d not in self.reduced]
            strides[min(self.reduced)] = buffer.strides[0]
            for d, s in zip(kept, buffer.strides[1:]):
                strides[d] = s
            return _Operand(buffer, tuple(strides))
        for d, s in zip(m, buffer.strides):
            if d >= 0:
                strides[d] = s
        return _Operand(buffer, tuple(strides))

    def _pattern(self, node: Node, m: Map) -> tuple[int, ...]:
        """How an iota's value grows along each axis of the domain."""
        strides = [0] * len(self.domain)
        axis = node.attrs["axis"]
        step = 1
        for a in reversed(range(len(node.shape))):
            if m[a] >= 0 and axis in (None, a):
                strides[m[a]] = step
            if axis is None:
                step *= int(node.shape[a])  # type: ignore[arg-type]
        return tuple(strides)

    # --- axes ------------------------------------------------------------------------------------

    def _merged(self) -> list[_Axis]:
        vectors = [o.strides for _, o in self.operands.values()]
        vectors += [o.strides for _, o in self.results]
        vectors += [p for _, p in self.patterns.values()]
        axes: list[_Axis] = []
        for d, n in enumerate(self.domain):
            reduced = d in self.reduced
            last = axes[-1] if axes else None
            if (
                last is not None
                and last.reduced == reduced
                and not (d == self.lane and reduced)
                and not (self.split and reduced and last.first == min(self.reduced))
                and all(_joins(v, last, d, n) for v in vectors)
            ):
                last.size *= n
                last.first = last.first  # strides are those of the last axis merged
                last.index = f"{d}"
                continue
            axes.append(_Axis(d, n, reduced, f"{d}"))
        if self.lane_reduced:
            while len(axes) > 1 and axes[-2].reduced and axes[-1].size < _NARROW:
                if self.split and axes[-2].first == min(self.reduced):
                    break
                before = axes.pop(-2)
                axes[-1] = _Axis(before.first, before.size * axes[-1].size, True, axes[-1].index)
        return axes

    def _stride(self, strides: Sequence[int], axis: _Axis) -> int:
        return strides[int(axis.index)]

    def _is_flat(self, strides: Sequence[int], axis: _Axis) -> bool:
        """Whether one stride describes all the axes that ``axis`` joins."""
        return all(
            strides[d] == strides[d + 1] * self.domain[d + 1]
            for d in range(axis.first, int(axis.index))
        )

    # --- the text --------------------------------------------------------------------------------

    def call(self) -> KernelCall:
        """The launch of this kernel."""
        text, name = self._render()
        args: list[Any] = [self._bound(o) for _, o in self.operands.values()]
        args += [self._bound(o, self.split) for _, o in self.results]
        args += [_scalar(node) for node in self.scalars]
        args += list(self.sizes.values())
        kept = [a for a in self.axes if not a.reduced]
        grid = self._grid(kept)
        per_program = math.prod(a.size for a in self.axes if a.reduced) * (
            1 if self.lane_reduced else min(self.axes[-1].size, _SPAN)
        )
        smallest = max(1, _WORTH // max(per_program, 1))
        return KernelCall(_kernel(name, text), grid, tuple(args), {}, smallest)

    def _grid(self, kept: list[_Axis]) -> tuple[int, ...]:
        if self.lane_reduced:
            outer, grid = kept, []
        else:
            outer, lane = kept[:-1], kept[-1]
            step = BLOCK if self.reduced else _SPAN
            grid = [-(-lane.size // step)]
        if self.split:
            grid.append(_pieces(self.group)[0])
        sizes = [a.size for a in reversed(outer)]
        if len(grid) + len(sizes) > 3:
            return (*grid, math.prod(sizes))
        return (*grid, *sizes) or (1,)

    def _render(self) -> tuple[str, str]:
        kept = [a for a in self.axes if not a.reduced]
        head = self._program_ids(kept)
        n_levels = max((self._level(m) for m in self.group.members), default=0)
        for level in range(n_levels):
            self._pass(level, [m for m in self.group.members if self._is_level(m, level)])
        if self.split:
            self._store_outer()
        else:
            self._pass(n_levels, [])
            self._store_outer()
        params = [f"{name}: Array" for name, _ in self.operands.values()]
        params += [f"{name}: Array" for name, _ in self.results]
        params += [f"{name}: {node.dtype}" for node, name in self.scalars.items()]
        params += [f"{name}: i64" for name in self.sizes]
        text = "\n".join([*head, *self.body, ""])
        label = "_".join(dict.fromkeys(m.op for m in self.group.members))[:60]
        name = unique_name(f"loop_{label}", ", ".join(params) + text)
        return f"def {name}({', '.join(params)}):\n{text}", name

    def _is_level(self, member: Node, level: int) -> bool:
        return reduces(member) and self._level(member) == level + 1

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

    def _program_ids(self, kept: list[_Axis]) -> list[str]:
        """Lines that find where a program stands; names every axis."""
        lines: list[str] = []
        place = 0
        outer = list(kept)
        for i, axis in enumerate(self.axes):
            axis_index = f"r{i}" if axis.reduced else f"k{i}"
            self._names = getattr(self, "_names", {})
            self._names[id(axis)] = axis_index
        self._names[id(self.axes[-1])] = "j"
        if not self.lane_reduced:
            outer.pop()
            place = 1
            if self.reduced:
                lines.append(f"    j = program_id(0) * {BLOCK}")
            else:
                lines.append(f"    first = program_id(0) * {_SPAN}")
        if self.split:
            lines.append(f"    piece = program_id({place})")
            place += 1
        names = [self._names[id(a)] for a in outer]
        if place + len(outer) > 3:
            lines.append(f"    rest = program_id({place})")
            for axis, name in list(zip(outer, names))[:0:-1]:
                size = self._size(axis)
                lines += [f"    {name} = rest % {size}", f"    rest = rest // {size}"]
            lines.append(f"    {names[0]} = rest")
        else:
            for k, name in enumerate(reversed(names)):
                lines.append(f"    {name} = program_id({place + k})")
        return lines

    def _size(self, axis: _Axis) -> str:
        name = f"n_{self._names[id(axis)]}"
        self.sizes[name] = axis.size
        return name

    def _loops(self) -> tuple[list[str], str]:
        """The loop headers of a pass, and the indent inside them."""
        indent, lines = "    ", []
        split_axis = min(self.reduced) if self.split else -1
        for axis in self.axes:
            is_lane = axis is self.axes[-1]
            if axis.reduced:
                step = f", {BLOCK}" if is_lane else ""
                name, size = self._names[id(axis)], self._size(axis)
                start, stop = "0", size
                if axis.first == split_axis:
                    length = _pieces(self.group)[1]
                    self.sizes["piece_length"] = length
                    start = "piece * piece_length"
                    stop = f"minimum(piece * piece_length + piece_length, {size})"
                lines.append(f"{indent}for {name} in range({start}, {stop}{step}):")
                indent += "    "
            elif is_lane and not self.reduced:
                stop = f"minimum(first + {_SPAN}, {self._size(axis)})"
                lines.append(f"{indent}for j in range(first, {stop}, {BLOCK}):")
                indent += "    "
        return lines, indent

    def _pass(self, level: int, reductions: list[Node]) -> None:
        """One walk over the domain: feed ``reductions``, store what is ready."""
        stores = [
            (name, operand, out)
            for (name, operand), out in zip(self.results, self.outputs)
            if self._in_loop(self.group.maps[out]) and self._level(out) == level and not self.split
        ]
        if not reductions and not stores:
            return
        self.inner, self.inner_names = [], {}
        before: list[str] = []
        after: list[str] = []
        for k, node in enumerate(reductions):
            self._reduction(node, f"a{level}_{k}", before, after)
        for name, operand, out in stores:
            value = self._stored(out, operand)
            self.inner.append(f"{name}[{self._index(operand)}] = {value}")
        headers, indent = self._loops()
        if self.lane_reduced and reductions:
            size = self._size(self.axes[-1])
            self.inner.insert(0, f"mask = arange(0, {BLOCK}) + j < {size}")
        self.body += [f"    {line}" for line in before]
        self.body += headers
        self.body += [indent + line for line in self.inner]
        self.body += [f"    {line}" for line in after]
        for k, node in enumerate(reductions):
            name = f"s{level}_{k}"
            self.outer_names[node, self.group.maps[node]] = name
            if not self.lane_reduced:
                self.blocks.add(name)

    def _store_outer(self) -> None:
        for (name, operand), out in zip(self.results, self.outputs):
            m = self.group.maps[out]
            if self._in_loop(m) and not self.split:
                continue
            value = self._stored(out, operand)
            self.body.append(f"    {name}[{self._index(operand, True)}] = {value}")

    def _stored(self, out: Node, operand: _Operand) -> str:
        """The value of ``out``, as wide as what it is stored to."""
        value = self._value(out, self.group.maps[out])
        if value in self.blocks or self.axes[-1] not in self._uses(operand):
            return value
        if self.split and self.lane_reduced:  # the last axis of what is stored counts pieces
            return value
        return f"broadcast_to({value}, ({BLOCK},))"

    # --- reductions ------------------------------------------------------------------------------

    def _reduction(self, node: Node, acc: str, before: list[str], after: list[str]) -> None:
        """Accumulate ``node`` in ``acc``; the result is named as the pass expects it."""
        source = node.inputs[0]
        v = self._value(source, self._input_map(node, source, self.group.maps[node]))
        result = "s" + acc[1:]
        if source.dtype is boolean and node.op not in ("any", "all"):
            v = f"{v}.to(i32)"
        kind = source.dtype if source.dtype is not boolean else i32
        wide = _accumulator(node)
        if node.op in ("argmax", "argmin"):
            self._arg_reduction(node, acc, v, kind, before, after, result)
            return
        if node.op in ("any", "all"):
            start, hit = ("0", "1") if node.op == "any" else ("1", "0")
            truth = v if source.dtype is boolean else f"({v} != 0)"
            before.append(f"{acc} = full(({BLOCK},), {start}, i32)")
            update = f"where({truth}, {hit if node.op == 'any' else acc}, "
            update += f"{acc if node.op == 'any' else hit})"
            finish = f"{'max' if node.op == 'any' else 'min'}({acc})" if self.lane_reduced else acc
            finish = f"{finish} != 0"
        else:
            name = wide.name if source.dtype is not boolean else "i32"
            before.append(f"{acc} = full(({BLOCK},), {_identity(node.op, kind)}, {name})")
            update = _UPDATES[node.op].format(acc=acc, v=_widened(v, source.dtype, node.op))
            finish = f"{node.op}({acc})" if self.lane_reduced else acc
            target = wide if self.split else node.dtype
            if target is not wide or source.dtype is boolean:
                finish = f"({finish}).to({target})"
        self._update(acc, update)
        after.append(f"{result} = {finish}")

    def _update(self, acc: str, update: str) -> None:
        if self.lane_reduced:
            update = f"where(mask, {update}, {acc})"
        self.inner.append(f"{acc} = {update}")

    def _arg_reduction(
        self,
        node: Node,
        acc: str,
        v: str,
        kind: DType,
        before: list[str],
        after: list[str],
        result: str,
    ) -> None:
        sign, which = (">", "max") if node.op == "argmax" else ("<", "min")
        where = f"{acc}i"
        before.append(f"{acc} = full(({BLOCK},), {_identity(which, kind)}, {kind})")
        before.append(f"{where} = full(({BLOCK},), 0, i64)")
        axis = next((a for a in self.axes if a.reduced), None)
        if axis is None:
            position = "0"
        elif self.lane_reduced:
            position = f"(arange(0, {BLOCK}) + j).to(i64)"
        else:
            position = f"{self._names[id(axis)]}"
        better = f"{acc}b"
        condition = f"({v} {sign} {acc})"
        if kind.is_float:
            condition = f"({condition} | (({v} != {v}) & ({acc} == {acc})))"
        if self.lane_reduced:
            condition = f"({condition} & mask)"
        self.inner.append(f"{better} = {condition}")
        self.inner.append(f"{where} = where({better}, {position}, {where})")
        self.inner.append(f"{acc} = where({better}, {v}, {acc})")
        if not self.lane_reduced:
            after.append(f"{result} = {where}")
            return
        after.append(f"{acc}m = {which}({acc})")
        hit = f"({acc} == {acc}m)"
        if kind.is_float:
            hit = f"where({acc}m == {acc}m, {acc} == {acc}m, {acc} != {acc})"
        after.append(f"{result} = min(where({hit}, {where}, {(1 << 62)}))")

    # --- values ----------------------------------------------------------------------------------

    def _in_loop(self, m: Map) -> bool:
        """Whether a value with this map changes inside a pass."""
        loop = self.reduced if self.reduced else {self.lane}
        return any(d in loop for d in m)

    def _value(self, node: Node, m: Map) -> str:
        """A name for the value, its lines written where they belong."""
        while is_transparent(node) and node not in self.buffers and node not in self.inside:
            source = node.inputs[0]
            node, m = source, map_of_input(node, source, m)
        known = self.outer_names.get((node, m)) or self.inner_names.get((node, m))
        if known is not None:
            return known
        stack = [(node, m)]
        while stack:  # operands first; graphs may be deep
            top, its = stack[-1]
            if (top, its) in self.outer_names or (top, its) in self.inner_names:
                stack.pop()
                continue
            missing = [
                pair
                for pair in self._needs(top, its)
                if pair not in self.outer_names and pair not in self.inner_names
            ]
            if missing:
                stack += missing
                continue
            stack.pop()
            self._define(top, its)
        return self.outer_names.get((node, m)) or self.inner_names[node, m]

    def _needs(self, node: Node, m: Map) -> list[tuple[Node, Map]]:
        """The values that ``node`` is computed from, transparent nodes looked through."""
        if not (node in self.inside or (node in self.cheap and node.inputs)):
            return []
        return [self._through(i, self._input_map(node, i, m)) for i in node.inputs]

    def _through(self, node: Node, m: Map) -> tuple[Node, Map]:
        while is_transparent(node) and node not in self.buffers and node not in self.inside:
            source = node.inputs[0]
            node, m = source, map_of_input(node, source, m)
        return node, m

    def _define(self, node: Node, m: Map) -> None:
        expression, is_block = self._expression(node, m)
        in_loop = self._in_loop(m)
        name = f"v{self.count}"
        self.count += 1
        if in_loop:
            self.inner.append(f"{name} = {expression}")
            self.inner_names[node, m] = name
        else:
            self.body.append(f"    {name} = {expression}")
            self.outer_names[node, m] = name
        if is_block:
            self.blocks.add(name)

    def _expression(self, node: Node, m: Map) -> tuple[str, bool]:
        if node.op == "const":
            return f"full((), {_literal(node.attrs['value'], node.dtype)}, {node.dtype})", False
        if node.op == "scalar":
            return self.scalars[node], False
        if (node, m) in self.patterns:
            return self._pattern_text(node, m)
        if (node, m) in self.operands:
            name, operand = self.operands[node, m]
            return self._load(name, operand)
        names = [self.outer_names.get(p) or self.inner_names[p] for p in self._needs(node, m)]
        is_block = any(name in self.blocks for name in names)
        if node.op == "cast":
            return _cast(names[0], node.inputs[0].dtype, node.dtype), is_block
        if node.op in IDENTITIES or (node.op in REDUCTIONS and node.op in _UPDATES):
            return names[0], is_block
        if node.op in ("any", "all"):  # over axes of size 1
            return _cast(names[0], node.inputs[0].dtype, boolean), is_block
        if node.op in REDUCTIONS:
            return "full((), 0, i64)", False
        wide = [
            f"{name}.to(f32)" if source.dtype in _HALF else name
            for name, source in zip(names, node.inputs)
        ]
        text = table.get(node.op).source(node).format(*wide, **node.attrs)
        if node.dtype in _HALF:
            text = f"({text}).to({node.dtype})"
        return text, is_block

    def _pattern_text(self, node: Node, m: Map) -> tuple[str, bool]:
        name, strides = self.patterns[node, m]
        terms, is_block = [], False
        for i, axis in enumerate(self.axes):
            if not any(strides[axis.first : int(axis.index) + 1]):
                continue
            index = self._names[id(axis)]
            if axis is self.axes[-1]:
                index, is_block = f"(arange(0, {BLOCK}) + j)", True
            terms.append(self._offset(index, strides, axis, f"{name}_{i}"))
        text = " + ".join(terms) or "full((), 0, i64)"
        return f"({text}).to({node.dtype})", is_block

    def _offset(self, index: str, strides: Sequence[int], axis: _Axis, label: str) -> str:
        """``index`` along ``axis`` as a distance in elements."""
        if self._is_flat(strides, axis):
            size = f"{label}_step"
            self.sizes[size] = self._stride(strides, axis)
            return f"{index} * {size}"
        terms, rest = [], f"({index})"
        for d in range(int(axis.index), axis.first - 1, -1):
            step, size = f"{label}_step{d}", f"{label}_size{d}"
            self.sizes[step], self.sizes[size] = strides[d], self.domain[d]
            part = rest if d == axis.first else f"({rest} % {size})"
            terms.append(f"{part} * {step}")
            rest = f"({rest} // {size})"
        return "(" + " + ".join(terms) + ")"

    # --- arrays ----------------------------------------------------------------------------------

    def _uses(self, operand: _Operand) -> list[_Axis]:
        return [a for a in self.axes if any(operand.strides[a.first : int(a.index) + 1])]

    def _gathers(self, operand: _Operand) -> bool:
        """Whether the lanes do not lie a constant stride apart."""
        return not self._is_flat(operand.strides, self.axes[-1])

    def _index(self, operand: _Operand, outer: bool = False) -> str:
        parts = []
        for axis in self._uses(operand):
            if self.split and outer and axis.reduced:
                parts.append("piece")
            elif axis is self.axes[-1]:
                parts.append(f"j : j + {BLOCK}")
            else:
                parts.append(self._names[id(axis)])
        return ", ".join(parts) or "0"

    def _load(self, name: str, operand: _Operand) -> tuple[str, bool]:
        used = self._uses(operand)
        is_block = self.axes[-1] in used
        if not self._gathers(operand):
            return f"{name}[{self._index(operand)}]", is_block
        terms = []
        for i, axis in enumerate(used):
            index = self._names[id(axis)]
            if axis is self.axes[-1]:
                index = f"(arange(0, {BLOCK}) + j)"
            terms.append(self._offset(index, operand.strides, axis, f"{name}_{i}"))
        below = self._below(operand)
        if below:
            self.sizes[f"{name}_below"] = below
            terms.append(f"{name}_below")
        return f"{name}[{' + '.join(terms)}]", is_block

    def _below(self, operand: _Operand) -> int:
        """How far negative strides reach before the first element."""
        return -sum(min(s, 0) * (n - 1) for s, n in zip(operand.strides, self.domain))

    def _bound(self, operand: _Operand, partial: bool = False) -> Buffer:
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
            sizes = [_pieces(self.group)[0] if a.reduced else a.size for a in used]
        if not used:
            return buffer.view((1,), (1,))
        return buffer.view(sizes, [self._stride(operand.strides, a) for a in used])


_UPDATES = {
    "sum": "{acc} + {v}",
    "prod": "{acc} * {v}",
    "max": "maximum({acc}, {v})",
    "min": "minimum({acc}, {v})",
}


def _joins(strides: Sequence[int], last: _Axis, d: int, n: int) -> bool:
    return strides[d - 1] == strides[d] * n


def _widened(v: str, dtype: DType, op: str) -> str:
    return f"{v}.to(f32)" if dtype in _HALF and op in ("sum", "prod") else v


def _identity(op: str, dtype: DType) -> str:
    if op in ("sum", "prod"):
        return "0" if op == "sum" else "1"
    low = op == "max"
    if dtype.is_float:
        return "-inf" if low else "inf"
    bits = dtype.bits
    if dtype.kind == "i":
        return str(-(1 << bits - 1) if low else (1 << bits - 1) - 1)
    return str(0 if low else (1 << bits) - 1)


def _literal(value: Any, dtype: DType) -> str:
    if dtype is boolean:
        return repr(bool(value))
    if not dtype.is_float:
        bits = dtype.bits
        value = int(value) & ((1 << bits) - 1)
        return repr(value - (1 << bits) if dtype.kind == "i" and value >> bits - 1 else value)
    value = float(value)
    return repr(value) if math.isfinite(value) else "nan" if value != value else f"{value}"


def _cast(name: str, source: DType, target: DType) -> str:
    if source is target:
        return name
    if target is boolean:
        return f"({name} != 0)"
    if target in _HALF and source.is_integer:
        return f"{name}.to(f32).to({target})"
    return f"{name}.to({target})"


_KERNELS: dict[str, Kernel] = {}


def _kernel(name: str, text: str) -> Kernel:
    """The kernel of a text; equal text gives the same object."""
    found = _KERNELS.get(text)
    if found is None:
        from tilewright import lang
        from tilewright.ops.random import KERNEL_FUNCTIONS

        names = {k: getattr(lang, k) for k in lang.__all__} | KERNEL_FUNCTIONS
        found = _KERNELS[text] = Kernel.from_source(text, name, names)
    return found

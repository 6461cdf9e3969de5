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
from typing import Any

from tilewright.compiler.fusion import (
    IDENTITIES,
    REDUCTIONS,
    Group,
    Map,
    is_transparent,
    map_of_input,
    reduces,
)
from tilewright.compiler.walk import BLOCK, SPAN, Axis, Operand, Walk, pieces
from tilewright.dtypes import DType, bf16, boolean, f16, f32, i32
from tilewright.graph import Node, data_node
from tilewright.ops.calls import KernelCall
from tilewright.ops.layout_kernels import transpose_calls
from tilewright.ops.source import cast_text, element_text, literal_text, unique_name
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import Kernel
from tilewright.sizes import hints, maximum, minimum, roughly

__all__ = ["BLOCK", "Scalar", "loop_calls", "split_workspace"]

_SHORT = 8  # elements of a last axis that leave most lanes idle...
_LONG = 64  # ...where another axis has this many
_WORTH = 8192  # elements that are worth handing to another thread
_HALF = (f16, bf16)
_KEEPING = IDENTITIES - {"cast"}  # ops whose elements are those of their input


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


def split_workspace(group: Group) -> tuple[DType, tuple[int, ...]] | None:
    """dtype and shape of the memory that a split reduction needs; None for other groups."""
    if not group.closed:
        return None
    (node,) = group.members
    assert group.reduced is not None
    kept = tuple(n for d, n in enumerate(group.domain) if d not in group.reduced)
    return _accumulator(node), (pieces(group)[0], *kept)


def _accumulator(node: Node) -> DType:
    dtype = node.inputs[0].dtype
    if node.op in ("any", "all"):
        return boolean
    return f32 if dtype in _HALF and node.op in ("sum", "prod") else dtype


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
        made = _Kernel(group, outputs, buffers, cheap)
        calls = _transposed(made)
        if calls:
            return calls
        turned = _turned(group, made)
        return [(made if turned is None else _Kernel(turned, outputs, buffers, cheap)).call()]
    assert workspace is not None
    (node,) = group.members
    first = _Kernel(group, [node], {**buffers, node: workspace}, cheap, split=True).call()
    partial = data_node(workspace)
    keep = Node(node.op, (partial,), node.shape, node.dtype, {"axes": (0,)})
    return [first, _finish(keep, partial, buffers[node])]


def _transposed(walk: Walk) -> list[KernelCall]:
    """The launch of a mere copy that turns axes round; empty for anything else."""
    members = walk.group.members
    if len(members) != 1 or members[0].op != "copy" or len(walk.operands) != 1:
        return []
    ((_, read),) = walk.operands.values()
    ((_, place),) = walk.results
    if read.buffer.dtype is not place.buffer.dtype or walk.patterns or walk.scalars:
        return []
    return transpose_calls(walk.domain, read.buffer, read.strides, place.buffer, place.strides)


def _turned(group: Group, walk: Walk) -> Group | None:
    """A group that reduces nothing with a long axis along the lanes, where its last is short."""
    if group.reduced or len(walk.axes) < 2 or not roughly(walk.axes[-1].size, _SHORT - 1, 2):
        return None
    arrays = [hints(o.strides) for _, o in (*walk.operands.values(), *walk.results)]
    long = [a for a in walk.axes if not roughly(a.size, _LONG - 1, 2)]
    if not long:
        return None
    near = min(long, key=lambda axis: sum(abs(strides[axis.last]) for strides in arrays))
    moved = range(near.first, near.last + 1)
    order = [d for d in range(len(group.domain)) if d not in moved] + list(moved)
    at = {d: i for i, d in enumerate(order)}
    maps = {n: tuple(at[d] if d >= 0 else -1 for d in m) for n, m in group.maps.items()}
    domain = tuple(group.domain[d] for d in order)
    return Group(group.number, domain, None, group.members, maps)


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


class _Kernel(Walk):
    """Writes one kernel and its launch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.body: list[str] = []
        self.inner: list[str] = []
        self.outer_names: dict[tuple[Node, Map], str] = {}
        self.inner_names: dict[tuple[Node, Map], str] = {}
        self.blocks: set[str] = set()  # names of values with 64 lanes
        self.count = 0
        self.sizes: dict[str, int] = {}

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
            1 if self.lane_reduced else minimum(self.axes[-1].size, SPAN)
        )
        smallest = maximum(1, _WORTH // maximum(per_program, 1))
        return KernelCall(_kernel(name, text), grid, tuple(args), {}, smallest)

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

    def _program_ids(self, kept: list[Axis]) -> list[str]:
        """Lines that find where a program stands; names every axis."""
        lines: list[str] = []
        place = 0
        outer = list(kept)
        if not self.lane_reduced:
            outer.pop()
            place = 1
            if self.reduced:
                lines.append(f"    j = program_id(0) * {BLOCK}")
            else:
                lines.append(f"    first = program_id(0) * {SPAN}")
        if self.split:
            lines.append(f"    piece = program_id({place})")
            place += 1
        names = [self.names[id(a)] for a in outer]
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

    def _size(self, axis: Axis) -> str:
        name = f"n_{self.names[id(axis)]}"
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
                name, size = self.names[id(axis)], self._size(axis)
                start, stop = "0", size
                if axis.first == split_axis:
                    length = pieces(self.group)[1]
                    self.sizes["piece_length"] = length
                    start = "piece * piece_length"
                    stop = f"minimum(piece * piece_length + piece_length, {size})"
                lines.append(f"{indent}for {name} in range({start}, {stop}{step}):")
                indent += "    "
            elif is_lane and not self.reduced:
                stop = f"minimum(first + {SPAN}, {self._size(axis)})"
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
        # all is read before anything is written: a result may lie over what others are made of
        self.inner += [
            f"{name}[{self._index(operand)}] = {value}"
            for name, operand, value in [(n, o, self._stored(out, o)) for n, o, out in stores]
        ]
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
        stores = [
            (name, operand, self._stored(out, operand))
            for (name, operand), out in zip(self.results, self.outputs)
            if self.split or not self._in_loop(self.group.maps[out])
        ]
        for name, operand, value in stores:
            self.body.append(f"    {name}[{self._index(operand, True)}] = {value}")

    def _stored(self, out: Node, operand: Operand) -> str:
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
            position = f"{self.names[id(axis)]}"
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
            return literal_text(node.attrs["value"], node.dtype), False
        if node.op == "scalar":
            return self.scalars[node], False
        if (node, m) in self.patterns:
            return self._pattern_text(node, m)
        if (node, m) in self.operands:
            name, operand = self.operands[node, m]
            return self._load(name, operand)
        names = [self.outer_names.get(p) or self.inner_names[p] for p in self._needs(node, m)]
        is_block = any(name in self.blocks for name in names)
        if node.op in _KEEPING or (node.op in REDUCTIONS and node.op in _UPDATES):
            return names[0], is_block
        if node.op in ("any", "all"):  # over axes of size 1
            return cast_text(names[0], node.inputs[0].dtype, boolean), is_block
        if node.op in REDUCTIONS:
            return "full((), 0, i64)", False
        return element_text(node, names), is_block

    def _pattern_text(self, node: Node, m: Map) -> tuple[str, bool]:
        name, strides = self.patterns[node, m]
        terms, is_block = [], False
        for i, axis in enumerate(self.axes):
            if not any(strides[axis.first : axis.last + 1]):
                continue
            index = self.names[id(axis)]
            if axis is self.axes[-1]:
                index, is_block = f"(arange(0, {BLOCK}) + j)", True
            terms.append(self._offset(index, strides, axis, f"{name}_{i}"))
        text = " + ".join(terms) or "full((), 0, i64)"
        return f"({text}).to({node.dtype})", is_block

    def _offset(self, index: str, strides: Sequence[int], axis: Axis, label: str) -> str:
        """``index`` along ``axis`` as a distance in elements."""
        if self._is_flat(strides, axis):
            size = f"{label}_step"
            self.sizes[size] = self._stride(strides, axis)
            return f"{index} * {size}"
        terms, rest = [], f"({index})"
        for d in range(axis.last, axis.first - 1, -1):
            step, size = f"{label}_step{d}", f"{label}_size{d}"
            self.sizes[step], self.sizes[size] = strides[d], self.domain[d]
            part = rest if d == axis.first else f"({rest} % {size})"
            terms.append(f"{part} * {step}")
            rest = f"({rest} // {size})"
        return "(" + " + ".join(terms) + ")"

    # --- arrays ----------------------------------------------------------------------------------

    def _index(self, operand: Operand, outer: bool = False) -> str:
        parts = []
        for axis in self._uses(operand):
            if self.split and outer and axis.reduced:
                parts.append("piece")
            elif axis is self.axes[-1]:
                parts.append(f"j : j + {BLOCK}")
            else:
                parts.append(self.names[id(axis)])
        return ", ".join(parts) or "0"

    def _load(self, name: str, operand: Operand) -> tuple[str, bool]:
        used = self._uses(operand)
        is_block = self.axes[-1] in used
        if not self._gathers(operand):
            return f"{name}[{self._index(operand)}]", is_block
        terms = []
        for i, axis in enumerate(used):
            index = self.names[id(axis)]
            if axis is self.axes[-1]:
                index = f"(arange(0, {BLOCK}) + j)"
            terms.append(self._offset(index, operand.strides, axis, f"{name}_{i}"))
        below = self._below(operand)
        if below:
            self.sizes[f"{name}_below"] = below
            terms.append(f"{name}_below")
        return f"{name}[{' + '.join(terms)}]", is_block


_UPDATES = {
    "sum": "{acc} + {v}",
    "prod": "{acc} * {v}",
    "max": "maximum({acc}, {v})",
    "min": "minimum({acc}, {v})",
}


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


_KERNELS: dict[str, Kernel] = {}


def _kernel(name: str, text: str) -> Kernel:
    """The kernel of a text; equal text gives the same object."""
    found = _KERNELS.get(text)
    if found is None:
        from tilewright import lang
        from tilewright.ops.kernel_functions import KERNEL_FUNCTIONS

        names = {k: getattr(lang, k) for k in lang.__all__} | KERNEL_FUNCTIONS
        found = _KERNELS[text] = Kernel.from_source(text, name, names)
    return found

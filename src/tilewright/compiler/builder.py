"""From a graph to launches: what needs memory, in which order, with which arguments.

While a program is built, every array has a made-up address: the number of its storage in the high
bits, the offset in the low ones. Views stay plain arithmetic on buffers, and in the end each
argument tells which storage it points into (:mod:`tilewright.compiler.static`).
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from tilewright.compiler.fusion import Group, is_transparent, partition
from tilewright.compiler.loops import loop_calls, split_workspace
from tilewright.compiler.memory import (
    OFFSET_BITS,
    copies,
    flat_arguments,
    reads_before_writing,
    storage_of,
)
from tilewright.compiler.passes.epilogue import fuse_epilogues
from tilewright.compiler.walk import Walk
from tilewright.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.graph import Node, data_node
from tilewright.ops import table
from tilewright.ops.calls import KernelCall
from tilewright.runtime.buffers import ALIGN, Buffer, dense_strides
from tilewright.sizes import SizeLike, may_be_other, whole

__all__ = ["MIDDLE", "Builder", "HostCall", "Output", "Storage"]

MIDDLE: Final = 1 << (OFFSET_BITS - 1)
"""Offset of a leaf's element 0: negative strides reach below it."""
_PIECEWISE = frozenset({"pad", "concat"})


@dataclass(eq=False)
class Storage:
    """Memory that something is computed into, or that a leaf brings."""

    number: int
    nbytes: SizeLike
    kind: str  # "leaf", "output", "temporary"; "alias": lies over a leaf
    over: int = -1
    first: int = 1 << 60  # calls that use it
    last: int = -1

    @property
    def base(self) -> int:
        return (self.number + 1) << OFFSET_BITS


@dataclass(frozen=True)
class HostCall:
    """An op that NumPy computes between launches."""

    node: Node
    inputs: tuple[Buffer, ...]
    outs: tuple[Buffer, ...]


@dataclass(frozen=True)
class Output:
    """Where a root lies: at which address of the program, at which byte, with which layout."""

    place: int
    offset: int
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(eq=False)
class _Unit:
    """What is computed together: a group, or one other node."""

    index: int
    group: Group | None = None
    node: Node | None = None
    outputs: list[Node] = field(default_factory=list)
    waits: int = 0
    users: list[_Unit] = field(default_factory=list)


class Builder:
    def __init__(
        self,
        order: Sequence[Node],
        roots: Sequence[Node],
        in_place: dict[Node, Node],
        behind: Mapping[Node, Node],
    ) -> None:
        self.given = order
        order, new = fuse_epilogues(roots, order)
        roots = [new[root] for root in roots]
        in_place = {new[root]: leaf for root, leaf in in_place.items()}
        self.behind = {new[root]: leaf for root, leaf in behind.items()}
        self.order = order
        self.storages: list[Storage] = []
        self.buffers: dict[Node, Buffer] = {}
        self.calls: list[KernelCall | HostCall] = []
        self.checked = -1  # the last call that may refuse
        self.generated: dict[int, Callable[[], Walk]] = {}  # by id of a generated kernel's call
        self.parts: dict[Node, list[Node]] = {}
        for node in self.given:
            if node.value is not None:
                self._leaf(node)
        for node in order:
            if node.op == "part":
                self.parts.setdefault(node.inputs[0], []).append(node)
        self.groups, self.cheap = partition(order, roots)
        self.group_of = {m: g for g in self.groups for m in g.members}
        self.stored: set[Node] = set()
        self._mark(roots)
        self.placed: dict[Node, tuple[Node, int]] = {}  # part of which concatenation, from where
        self._place(roots)
        for unit in self._scheduled():
            self._emit(unit)
        self.outputs = [self._output(root) for root in roots]
        self._lifetimes()
        self.in_place = {
            i: leaf
            for i, root in enumerate(roots)
            if (leaf := in_place.get(root)) is not None and self._settle_in_place(root, leaf)
        }

    # --- what needs memory -----------------------------------------------------------------------

    def _mark(self, roots: Sequence[Node]) -> None:
        """Find the nodes whose results have to be in memory."""
        for root in roots:
            self._need(root)
        for node in self.order:
            if node.value is not None or node in self.cheap:
                continue
            if node in self.group_of:
                group = self.group_of[node]
                for source in node.inputs:
                    self._need_outside(source, group)
            elif not is_transparent(node):
                for source in node.inputs:
                    self._need(source)

    def _need(self, node: Node) -> None:
        """``node`` is read from memory: mark what lies behind its views."""
        while node.value is None and not node.is_leaf and node not in self.group_of:
            if node.op == "part" or table.get(node.op).view is None:
                return
            node = node.inputs[0]
        if node in self.group_of:
            self.stored.add(node)

    def _need_outside(self, node: Node, group: Group) -> None:
        while is_transparent(node):
            node = node.inputs[0]
        if node in self.cheap:
            for source in node.inputs:
                self._need_outside(source, group)
        elif self.group_of.get(node) is not group:
            self._need(node)

    def _place(self, roots: Sequence[Node]) -> None:
        """Find what can be computed where a concatenation wants it: one reader, in one piece."""
        users = Counter(i for n in self.order if n.value is None for i in n.inputs)
        users.update(roots)
        for node in self.order:
            if node.op != "concat" or node.value is not None or node in self.behind:
                continue
            axis, at = node.attrs["axis"], 0
            if any(type(n) is not int for n in node.shape) or math.prod(node.shape[:axis]) != 1:
                continue
            for one in node.inputs:
                offset = at * math.prod(node.shape[axis + 1 :])
                aligned = offset * node.dtype.nbytes % ALIGN == 0
                if users[one] == 1 and aligned and self._has_kernel(one):
                    self.placed[one] = node, offset
                at += one.shape[axis]

    def _has_kernel(self, node: Node) -> bool:
        """Whether kernels of the node's own write its one result."""
        if node.value is not None or node.is_leaf or node.op == "part" or node in self.group_of:
            return False
        entry = table.get(node.op)
        if node in self.cheap or node.op in _PIECEWISE or entry.infer_parts is not None:
            return False
        return entry.calls is not None and entry.state is None and entry.wrap is None

    # --- order -----------------------------------------------------------------------------------

    def _scheduled(self) -> list[_Unit]:
        """Units, inputs first; where there is a choice, what was made first."""
        units: dict[Any, _Unit] = {}
        of: dict[Node, _Unit] = {}
        for node in self.order:
            if node.value is not None or node.is_leaf or node in self.cheap:
                continue
            group = self.group_of.get(node)
            if group is not None:
                unit = units.setdefault(group, _Unit(node.index, group))
                of[node] = unit
                if node in self.stored:
                    unit.outputs.append(node)
            elif node.op == "part":
                of[node] = of[node.inputs[0]]
            else:
                first = table.get(node.op).check  # what may be refused is, before more is done
                unit = units[node] = _Unit(-1 if first else node.index, None, node)
                of[node] = unit
        for node in self.order:
            unit_or_none = of.get(node)
            if unit_or_none is None or node.op == "part":
                continue
            for source in self._sources(node, looking_through=node in self.group_of):
                before = of.get(source)
                if before is not None and before is not unit_or_none:
                    before.users.append(unit_or_none)
                    unit_or_none.waits += 1
        ready = [(u.index, u) for u in units.values() if u.waits == 0]
        heap = [(i, n, u) for n, (i, u) in enumerate(ready)]
        heapq.heapify(heap)
        count = len(heap)
        done: list[_Unit] = []
        while heap:
            _, _, unit = heapq.heappop(heap)
            done.append(unit)
            for user in unit.users:
                user.waits -= 1
                if user.waits == 0:
                    heapq.heappush(heap, (user.index, count, user))
                    count += 1
        assert len(done) == len(units), "groups depend on each other in a circle"
        return done

    def _sources(self, node: Node, looking_through: bool) -> list[Node]:
        """Inputs, through cheap nodes and, for members of groups, transparent ones."""
        found: list[Node] = []
        stack = list(node.inputs)
        while stack:
            source = stack.pop()
            if source in self.cheap or (looking_through and is_transparent(source)):
                stack.extend(source.inputs)
            else:
                found.append(source)
        return found

    # --- memory ----------------------------------------------------------------------------------

    def _storage(self, nbytes: SizeLike, kind: str = "temporary") -> Storage:
        storage = Storage(len(self.storages), nbytes, kind)
        self.storages.append(storage)
        return storage

    def _leaf(self, node: Node) -> None:
        value: Buffer = node.value
        storage = self._storage(0, "leaf")
        # the address is that of element 0; negative strides reach below it
        pointer = storage.base + MIDDLE
        self.buffers[node] = Buffer(value.dtype, value.shape, value.strides, pointer)

    def _fresh(self, dtype: DType, shape: Sequence[Any], kind: str = "temporary") -> Buffer:
        sizes = tuple([whole(n) for n in shape])
        storage = self._storage(math.prod(sizes) * dtype.nbytes, kind)
        return Buffer(dtype, sizes, dense_strides(sizes), storage.base)

    def _buffer(self, node: Node) -> Buffer:
        """Where ``node`` lies; makes views, and copies where a view is impossible."""
        found = self.buffers.get(node)
        if found is not None:
            return found
        if node.op in ("const", "scalar"):
            copy = Node("copy", (node,), (), node.dtype)
            made = self._fresh(node.dtype, ())
            group = Group(0, (), None, [copy], {copy: ()})
            self.calls += loop_calls(group, [copy], {copy: made}, self.cheap | {node})
        else:
            view = table.get(node.op).view
            assert view is not None, f"{node!r} has no memory"
            source = self._buffer(node.inputs[0])
            seen = view(node, source)
            if seen is None:
                seen = view(node, self._dense(source))
            made = seen
        self.buffers[node] = made
        return made

    def _dense(self, source: Buffer) -> Buffer:
        """A C-contiguous copy."""
        made = self._fresh(source.dtype, source.shape)
        self._copy(source, made)
        return made

    def _copy(self, source: Buffer, out: Buffer) -> None:
        leaf = data_node(source)
        copy = Node("copy", (leaf,), leaf.shape, leaf.dtype)
        domain = tuple(n for n in source.shape if n != 1)
        along = iter(range(len(domain)))
        m = tuple(-1 if n == 1 else next(along) for n in source.shape)
        group = Group(0, domain, None, [copy], {copy: m})
        self.calls += loop_calls(group, [copy], {leaf: source, copy: out}, set())

    # --- calls -----------------------------------------------------------------------------------

    def _emit(self, unit: _Unit) -> None:
        if unit.group is not None:
            if unit.outputs:
                self._emit_group(unit.group, unit.outputs)
            return
        node = unit.node
        assert node is not None
        entry = table.get(node.op)
        if entry.check:
            self.checked = len(self.calls)
            self.calls.append(HostCall(node, (self._buffer(node.inputs[0]),), ()))
        if entry.view is not None:
            return  # made when somebody reads it
        if node.op in _PIECEWISE:
            self._emit_pieces(node)
            return
        inputs = [self._buffer(i) for i in node.inputs]
        outs: Any
        if entry.infer_parts is not None:
            parts = entry.infer_parts(node.inputs, node.attrs)
            outs = [self._fresh(dtype, shape) for shape, dtype in parts]
            for part in self.parts.get(node, ()):
                self.buffers[part] = outs[part.attrs["index"]]
        else:
            outs = self.buffers[node] = self._result(node)
        if entry.calls is None:
            if not entry.host:
                raise UnsupportedError(f"op {node.op} has no kernel")
            results = tuple(outs) if isinstance(outs, list) else (outs,)
            self.calls.append(HostCall(node, tuple(inputs), results))
            return
        extra = []
        if entry.workspace is not None:
            extra = [[self._fresh(*one) for one in entry.workspace(node)]]
        self.calls += entry.calls(node, inputs, outs, *extra)

    def _result(self, node: Node) -> Buffer:
        """Memory for a result: its own, or part of a concatenation's."""
        if node not in self.placed:
            return self._fresh(node.dtype, node.shape)
        whole_, offset = self.placed[node]
        if whole_ not in self.buffers:
            self.buffers[whole_] = self._fresh(whole_.dtype, whole_.shape)
        return self.buffers[whole_].view(node.shape, None, offset)  # type: ignore[arg-type]

    def _emit_group(self, group: Group, outputs: list[Node]) -> None:
        reads: dict[Node, Buffer] = {}
        for member in group.members:
            stack = list(member.inputs)
            while stack:
                node = stack.pop()
                if is_transparent(node) or node in self.cheap:
                    stack.extend(node.inputs)
                elif self.group_of.get(node) is not group and node.op != "const":
                    reads[node] = self._buffer(node)
        workspace = None
        wanted = split_workspace(group)
        if wanted is not None:
            workspace = self._fresh(*wanted)
        for out in outputs:
            reads[out] = self.buffers[out] = self._fresh(out.dtype, out.shape)
        made = loop_calls(group, outputs, reads, self.cheap, workspace)
        self.calls += made
        if not group.closed:
            walk = partial(Walk, group, outputs, reads, self.cheap)
            self.generated |= {id(call): walk for call in made}

    def _emit_pieces(self, node: Node) -> None:
        """Pads and concatenations: copies into parts of the result."""
        leaf = self.behind.get(node)
        if node in self.buffers:  # some of it has been computed there
            out = self.buffers[node]
        elif leaf is None:
            out = self._fresh(node.dtype, node.shape)
        else:
            cache = self.buffers[leaf]
            out = Buffer(node.dtype, tuple(node.shape), cache.strides, cache.pointer)  # type: ignore[arg-type]
        self.buffers[node] = out
        if node.op == "pad":
            widths = node.attrs["widths"]
            (source,) = (self._buffer(i) for i in node.inputs)
            if any(may_be_other(n) for margins in widths for n in margins):
                fill = Node("const", (), (), node.dtype, {"value": node.attrs["value"]})
                spread = Node("broadcast", (fill,), node.shape, node.dtype, {"shape": node.shape})
                domain = tuple(n for n in out.shape if n != 1)
                along = iter(range(len(domain)))
                m = tuple(-1 if n == 1 else next(along) for n in out.shape)
                copy = Node("copy", (spread,), node.shape, node.dtype)
                group = Group(0, domain, None, [copy], {copy: m})
                self.calls += loop_calls(group, [copy], {copy: out}, {fill, spread})
            start = sum(lo * s for (lo, _), s in zip(widths, out.strides))
            if source.size:
                self._copy(source, out.view(source.shape, out.strides, start))
            return
        axis, at = node.attrs["axis"], 0
        for i, one in enumerate(node.inputs):
            source = self._buffer(one)
            if source.size and one not in self.placed and not (leaf is not None and i == 0):
                self._copy(source, out.view(source.shape, out.strides, at * out.strides[axis]))
            at += source.shape[axis]

    # --- the end ---------------------------------------------------------------------------------

    def _output(self, root: Node) -> Output:
        buffer = self._buffer(root)
        storage = self.storages[storage_of(buffer.pointer)]
        if storage.kind == "temporary":
            storage.kind = "output"
        offset = buffer.pointer - storage.base - (MIDDLE if storage.kind == "leaf" else 0)
        return Output(storage.number, offset, buffer.dtype, buffer.shape, buffer.strides)

    def _settle_in_place(self, root: Node, leaf: Node) -> bool:
        """Let ``root`` be written over ``leaf`` if nobody reads the old value later."""
        old, new = self.buffers[leaf], self.buffers[root]
        ours = self.storages[storage_of(old.pointer)]
        storage = self.storages[storage_of(new.pointer)]
        if storage.kind != "output" or new.pointer != storage.base or ours.last > storage.first:
            return False
        if any(out.place == ours.number for out in self.outputs):  # a view of the old value
            return False
        if storage.nbytes > old.nbytes or storage.first < self.checked:
            return False  # the root is a part of what is computed; the program may yet refuse
        if (old.shape, old.strides, old.dtype) != (new.shape, new.strides, new.dtype):
            return False
        if ours.last == storage.first:  # the kernel that writes reads too
            call = self.calls[storage.first]
            if copies(call, old, new):  # what comes then changes some of it, as rows of a table
                self.calls[storage.first] = replace(call, grid=(0,))
            else:
                walk = self.generated.get(id(call))
                if walk is None or not reads_before_writing(walk(), old, new):
                    return False
        storage.kind, storage.over = "alias", ours.number
        return True

    def _lifetimes(self) -> None:
        for i, call in enumerate(self.calls):
            if isinstance(call, KernelCall):
                args = flat_arguments(call.args)
            else:
                args = [*call.inputs, *call.outs]
            for arg in args:
                if isinstance(arg, Buffer):
                    storage = self.storages[storage_of(arg.pointer)]
                    storage.first = min(storage.first, i)
                    storage.last = max(storage.last, i)

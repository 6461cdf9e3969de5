"""Static programs of tensor graphs: launches bound to memory that is named later.

:class:`~tilewright.compiler.builder.Builder` makes the launches, their arguments at made-up
addresses. Here each argument is turned into a storage and an offset. Temporary storages share one
arena, by lifetime; leaves and outputs get their addresses at every run, by one vectorised addition.

Programs for many sizes
-----------------------
Shapes of leaves may hold symbols of a :class:`tilewright.sizes.Scope`. What the graph and the
kernels' arguments are made of is then expressions, and the scope's guards say for which values of
the symbols they hold. A :class:`Sized` is the program at some values: numbers for all those
expressions, a place in the arena for every temporary. The last ones are kept, so that a size that
was met before costs nothing but writing its numbers into the launch tables. By hand::

    scope = Scope()
    past = scope.symbol("past", 17)                   # a name, and the value while it is traced
    keys = data_node(Buffer(f32, (8, past, 64), (CAPACITY * 64, 64, 1), 0))   # a view of a cache
    roots = [...]                                     # nodes made of keys, by tensors or by ops
    program = build(roots, target, pool, scope=scope)
    if program.holds(past=18):                        # else: trace again
        sized = program.at(past=18)
        program.run([*addresses of leaves, *outputs of sized.output_bytes, arena], numbers, sized)
        sized.outputs                                 # where each root lies, with which shape

Strides of leaves may be numbers while sizes are symbols (a cache of some capacity seen as a view of
its first positions), or dense strides of symbolic sizes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from tilewright.compiler.arena import Arena, columns
from tilewright.compiler.builder import MIDDLE, Builder, HostCall, Output
from tilewright.compiler.fusion import pending
from tilewright.compiler.loops import Scalar
from tilewright.compiler.memory import flat_arguments, storage_of
from tilewright.dtypes import bf16, from_float32, to_float32
from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.ops import table
from tilewright.ops.calls import KernelCall
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.program import Launch, LaunchTable
from tilewright.sizes import Real, Scope, Size, SizeLike, hint, hints, is_fixed
from tilewright.targets.arguments import MOST_PROGRAMS

__all__ = ["Output", "Sized", "StaticProgram", "build"]

_FEW: Final = 24
_KEPT_SLOTS: Final = 1 << 17  # in sizes of a program that are remembered


class Sized:
    """A program at given values of its symbols (of one without symbols: the only one).

    Attributes:
        outputs: where each root lies.
        output_bytes: size of each output storage.
        arena_bytes: temporary memory.
        number: the value of any size of the program, as a function.
        values: of the symbols, in order.
        scalars: the bits of its numbers, for whoever keeps them here.
    """

    __slots__ = (
        "arena_bytes",
        "number",
        "output_bytes",
        "outputs",
        "patches",
        "scalars",
        "slots",
        "values",
    )

    def __init__(self, values: tuple[int, ...], number: Callable[[Any], Any]) -> None:
        self.values = values
        self.number = number
        self.outputs: list[Output] = []
        self.output_bytes: list[int] = []
        self.arena_bytes = 0
        self.scalars: list[int] | None = None
        self.slots: list[Any] = []  # per part: what its symbolic slots hold
        self.patches: list[Any] = []  # per part: (slot, source, offset), as rows or columns


class _Table:
    """A launch table, and which of its slots depend on what."""

    def __init__(self, launches: LaunchTable) -> None:
        self.launches = launches
        self.pointers: list[tuple[int, int, SizeLike, int]] = []  # slot, source, offset, storage
        self.numbers: list[tuple[int, int]] = []  # slot, scalar
        self.sized: list[tuple[int, Size]] = []
        self.programs: list[Size] = []  # products of grids

    def settle(self, places: dict[int, int], storages: np.ndarray) -> None:
        """Turn lists into arrays.

        Args:
            places: where the value of a size stands.
            storages: by number of a temporary storage, where its place in the arena stands.
        """
        self.slots = np.array([slot for slot, *_ in self.pointers], np.int64)
        self.sources = np.array([source for _, source, _, _ in self.pointers], np.int64)
        offsets = [(i, o) for i, (_, _, o, _) in enumerate(self.pointers)]
        self.fixed = np.array([0 if isinstance(o, Size) else o for _, o in offsets], np.int64)
        moving = [(i, places[id(o)]) for i, o in offsets if isinstance(o, Size)]
        self.moving = columns(moving)
        self.storages = storages[[s for *_, s in self.pointers]]
        self.sized_at, self.sized_by = columns([(at, places[id(v)]) for at, v in self.sized])
        self.programs_by = np.array([places[id(v)] for v in self.programs], np.int64)


class StaticProgram:
    """Launches in order, ready to be given addresses and sizes. See :func:`build`.

    Attributes:
        in_place: by number of the root, the leaf that it overwrites.
        scalar_positions: where its numbers stand in the order that it was built from.
        outputs, output_bytes, arena_bytes: of :class:`Sized`, at the sizes that were traced.
        scope: the symbols of its sizes, None if it has none.
        parts: of its segments what depends on sizes.
    """

    def __init__(self, builder: Builder, target: Any, pool: Any, scope: Scope | None) -> None:
        scalars: list[Node] = []
        self.pool = pool
        self.scope = scope
        storages = builder.storages
        fresh = [s for s in storages if s.kind == "output"]
        named = [*(s for s in storages if s.kind == "leaf"), *fresh]
        self._place = {s.number: i for i, s in enumerate(named)}
        self._place |= {s.number: self._place[s.over] for s in storages if s.kind == "alias"}
        self.in_place = builder.in_place
        self._outputs = [replace(o, place=self._place[o.place]) for o in builder.outputs]
        self._output_bytes = [s.nbytes for s in fresh]
        self._arena = Arena(storages)
        self._arena_place = len(named)
        self._storages = storages
        self.parts: list[_Table | HostCall] = []

        calls = [c for c in builder.calls if isinstance(c, KernelCall) and all(c.grid)]
        settled = {id(c): _at_hints(c) for c in calls}
        signed = [(c.kernel, c.kernel.signature(c.args, c.consts)) for c in settled.values()]
        target.compile_many(signed)
        executables = {id(c): target.compile(*s) for c, s in zip(calls, signed)}
        run: list[KernelCall] = []
        for call in [*builder.calls, None]:
            if isinstance(call, KernelCall):
                if all(call.grid):
                    run.append(call)
                continue
            if run:
                self._add_table(run, settled, executables, scalars)
                run = []
            if call is not None:
                self.parts.append(call)
        position = {node: i for i, node in enumerate(builder.given)}
        self.scalar_positions = [position[node] for node in scalars]
        self._at: OrderedDict[tuple[int, ...], Sized] = OrderedDict()
        self._settle([node.attrs["value"] for node in scalars])

    # --- building --------------------------------------------------------------------------------

    def _where(self, pointer: int) -> tuple[int, SizeLike, int]:
        """The source that an address stands for, the offset, and the temporary storage (or -1)."""
        storage = self._storages[storage_of(pointer)]
        offset = pointer - storage.base
        if storage.kind == "temporary":
            return self._arena_place, offset, storage.number
        return self._place[storage.number], offset - (MIDDLE if storage.kind == "leaf" else 0), -1

    def _add_table(
        self,
        calls: list[KernelCall],
        settled: dict[int, KernelCall],
        executables: dict[int, Any],
        scalars: list[Node],
    ) -> None:
        ready = [(executables[id(c)], settled[id(c)]) for c in calls]
        table_ = LaunchTable([Launch(e, c.grid, c.args, c.smallest) for e, c in ready])
        found = _Table(table_)
        for i, call in enumerate(calls):
            at = table_.slot_at(i, 0)
            self._add_sizes(found, at, call.grid)
            programs: SizeLike = 1
            for n in call.grid:
                programs = programs * n
            self._add_sizes(found, table_.programs_at(i), (programs, call.smallest))
            if isinstance(programs, Size):
                found.programs.append(programs)
            at += 3
            for arg in flat_arguments(call.args):
                if isinstance(arg, Buffer):
                    found.pointers.append((at, *self._where(arg.pointer)))
                    self._add_sizes(found, at + 1, (*arg.shape, *arg.strides))
                    at += 1 + 2 * arg.ndim
                    continue
                if isinstance(arg, Scalar):
                    if arg.node not in scalars:
                        scalars.append(arg.node)
                    found.numbers.append((at, scalars.index(arg.node)))
                else:
                    self._add_sizes(found, at, (arg,))
                at += 1
        self.parts.append(found)

    @staticmethod
    def _add_sizes(found: _Table, at: int, sizes: Sequence[Any]) -> None:
        found.sized += [(at + i, n) for i, n in enumerate(sizes) if n.__class__ is Size]

    def _settle(self, numbers: Sequence[Any]) -> None:
        """Collect every size that has to have a value at a run."""
        sizes: dict[int, Size] = {}

        def need(*values: Any) -> None:
            for v in values:
                if v.__class__ is Size:
                    sizes.setdefault(id(v), v)
                elif isinstance(v, (tuple, list)):
                    need(*v)
                elif isinstance(v, Real):
                    need(*v.sizes())

        tables = [part for part in self.parts if isinstance(part, _Table)]
        for found in tables:
            need(*[v for _, v in found.sized], *found.programs)
            need(*[o for _, _, o, _ in found.pointers])
        for part in self.parts:
            if isinstance(part, HostCall):
                need(*part.node.attrs.values())
                for buffer in (*part.inputs, *part.outs):
                    need(*buffer.shape, *buffer.strides, self._where(buffer.pointer)[1])
        for out in self._outputs:
            need(out.offset, *out.shape, *out.strides)
        need(*self._output_bytes, *[s.nbytes for s in self._arena.storages], *numbers)
        self._places = {key: i for i, key in enumerate(sizes)}
        self._arena.settle(self._places, len(self._storages))
        for found in tables:
            found.settle(self._places, self._arena.numbering)
        scope = self.scope
        if scope is None:
            self._values: Any = tuple
            self._holds: Any = lambda: True
            self._names: list[str] = []
            first: tuple[int, ...] = ()
        else:
            self._sizes = list(sizes.values())  # ids are theirs only while they exist
            self._values = scope.values(self._sizes)
            self._holds = scope.holds()
            self._names = scope.symbols
            first = scope.hints()
        slots = sum(len(found.pointers) + len(found.sized) for found in tables)
        self._kept = max(_KEPT_SLOTS // (slots + 50), 16)
        self._current = self.at_values(first)
        self._shown: Sized = self._current
        self.outputs = self._shown.outputs
        self.output_bytes = self._shown.output_bytes
        self.arena_bytes = self._shown.arena_bytes
        self._write(self._current)

    # --- sizes -----------------------------------------------------------------------------------

    def holds(self, **values: int) -> bool:
        """Whether the program is right where its symbols have these values."""
        return bool(self._holds(*[values[name] for name in self._names]))

    def at(self, **values: int) -> Sized:
        """The program where its symbols have these values, which :meth:`holds` is true of."""
        return self.at_values(tuple([values[name] for name in self._names]))

    def holds_at(self, values: Sequence[int]) -> bool:
        """:meth:`holds`, of values in the order of the symbols."""
        return bool(self._holds(*values))

    def at_values(self, values: tuple[int, ...]) -> Sized:
        """:meth:`at`, of values in the order of the symbols."""
        found = self._at.get(values)
        if found is not None:
            self._at.move_to_end(values)
            return found
        made = self._at[values] = self._made(values)
        if len(self._at) > self._kept:
            self._at.popitem(last=False)
        return made

    def _made(self, values: tuple[int, ...]) -> Sized:
        numbers = self._values(*values) if self._names else ()
        places = self._places

        def number(x: Any) -> Any:
            if x.__class__ is Size:
                return numbers[places[id(x)]]
            return x.value(number) if x.__class__ is Real else x

        found = np.array(numbers, np.int64)

        def grown() -> np.ndarray:
            more = [-(-v // (step := 1 << max(v.bit_length() - 2, 0))) * step for v in values]
            return np.array(self._values(*more), np.int64)

        made = Sized(values, number)
        offsets, made.arena_bytes = self._arena.plan(found, grown if self._names else None)
        made.output_bytes = [number(n) for n in self._output_bytes]
        made.outputs = [
            out if is_fixed((out.offset, *out.shape, *out.strides)) else _output_at(out, number)
            for out in self._outputs
        ]
        for one in self.parts:
            if isinstance(one, HostCall):
                made.slots.append(None)
                made.patches.append(offsets)
                continue
            if one.programs and found[one.programs_by].max() >= MOST_PROGRAMS:
                raise ShapeError(
                    f"a launch of {found[one.programs_by].max()} program instances, at most "
                    f"{MOST_PROGRAMS} fit one"
                )
            made.slots.append(found[one.sized_by])
            where = one.fixed + offsets[one.storages]
            at, by = one.moving
            where[at] += found[by]
            if len(where) <= _FEW:  # Python is quicker than three calls of NumPy
                rows = zip(one.slots.tolist(), one.sources.tolist(), where.tolist())
                made.patches.append(list(rows))
            else:
                made.patches.append((one.slots, one.sources, where))
        return made

    def _write(self, sized: Sized) -> None:
        """Put the numbers of ``sized`` into the launch tables."""
        for one, slots in zip(self.parts, sized.slots):
            if isinstance(one, _Table):
                one.launches.memory[one.sized_at] = slots
        self._current = sized

    @property
    def segments(self) -> list[LaunchTable | HostCall]:
        """Launch tables, and calls of the host between them."""
        return [part.launches if isinstance(part, _Table) else part for part in self.parts]

    def launch_names(self) -> list[str]:
        """The kernels that are launched, in order."""
        tables = [part.launches for part in self.parts if isinstance(part, _Table)]
        return [launch.executable.name for table in tables for launch in table.launches]

    # --- running ---------------------------------------------------------------------------------

    def run(
        self, addresses: Sequence[int], numbers: Sequence[int], sized: Sized | None = None
    ) -> None:
        """Execute.

        Args:
            addresses: of every leaf, then of every output storage, then of the arena.
            numbers: the bits of every scalar (:func:`tilewright.compiler.numbers.scalar_bits`).
            sized: at which sizes; default those that were traced.
        """
        if sized is None:
            sized = self._shown
        if sized is not self._current:
            self._write(sized)
        for part, patches in zip(self.parts, sized.patches):
            if part.__class__ is HostCall:
                self._run_host(part, addresses, sized, patches)
                continue
            launches = part.launches  # type: ignore[union-attr]
            if patches.__class__ is list:
                slots = launches.slots
                for slot, source, offset in patches:
                    slots[slot] = addresses[source] + offset
                for slot, number in part.numbers:  # type: ignore[union-attr]
                    slots[slot] = numbers[number]
            else:
                at, sources, offsets = patches
                launches.memory[at] = np.array(addresses, np.int64)[sources] + offsets
                for slot, number in part.numbers:  # type: ignore[union-attr]
                    launches.memory[slot] = numbers[number]
            launches.run(self.pool)

    def _run_host(
        self, call: HostCall, addresses: Sequence[int], sized: Sized, offsets: np.ndarray
    ) -> None:
        number = sized.number

        def real(buffer: Buffer) -> Buffer:
            source, offset, storage = self._where(buffer.pointer)
            pointer = addresses[source] + number(offset)
            if storage >= 0:
                pointer += int(offsets[self._arena.numbering[storage]])
            shape, strides = (tuple(map(number, v)) for v in (buffer.shape, buffer.strides))
            return Buffer(buffer.dtype, shape, strides, pointer)

        arrays = []
        for buffer in call.inputs:
            array = real(buffer).numpy()
            arrays.append(to_float32(array) if buffer.dtype is bf16 else array)
        attrs = {key: _with_numbers(v, number) for key, v in call.node.attrs.items()}
        entry = table.get(call.node.op)
        if entry.check:  # which looks, and computes nothing
            entry.reference(*arrays, **attrs)
            return
        with np.errstate(all="ignore"):
            result = entry.reference(*arrays, **attrs)
        results = result if isinstance(result, tuple) else (result,)
        for out, values in zip(call.outs, results):
            real(out).numpy()[...] = from_float32(values) if out.dtype is bf16 else values


def _output_at(out: Output, number: Callable[[Any], Any]) -> Output:
    shape, strides = (tuple([number(n) for n in sizes]) for sizes in (out.shape, out.strides))
    return Output(out.place, number(out.offset), out.dtype, shape, strides)


def _with_numbers(value: Any, number: Callable[[Any], Any]) -> Any:
    """``value`` with every size in it replaced."""
    if isinstance(value, (Size, Real)):
        return number(value)
    if type(value) in (tuple, list):
        return type(value)([_with_numbers(v, number) for v in value])
    return value


def _at_hints(call: KernelCall) -> KernelCall:
    """``call`` with the numbers of its trace for sizes; what it is compiled for becomes a guard."""

    def settled(arg: Any) -> Any:
        if isinstance(arg, Size):
            return arg.hint
        if isinstance(arg, Buffer):
            return _buffer_at_hints(arg)
        if isinstance(arg, (tuple, list)):
            return tuple([settled(one) for one in arg])
        return arg

    if not _is_symbolic(call):
        return call
    consts = {k: int(v) if v.__class__ is Size else v for k, v in call.consts.items()}
    args = tuple([settled(arg) for arg in call.args])
    return KernelCall(call.kernel, hints(call.grid), args, consts, hint(call.smallest))


def _buffer_at_hints(x: Buffer) -> Buffer:
    if x.fixed is not None:
        for n in (*x.shape[x.fixed :], *x.strides[x.fixed :]):
            int(n)
    elif x.shape:
        bool(x.strides[-1] == 1 or x.shape[-1] <= 1)  # a kernel is made for unit strides
    return Buffer(x.dtype, hints(x.shape), hints(x.strides), hint(x.pointer), x.owner, x.fixed)


def _is_symbolic(call: KernelCall) -> bool:
    parts: list[Any] = [*flat_arguments(call.args), *call.grid, call.smallest]
    for arg in [*parts, *call.consts.values()]:
        if isinstance(arg, Size):
            return True
        if isinstance(arg, Buffer):
            for n in [*arg.shape, *arg.strides, arg.pointer]:
                if isinstance(n, Size):
                    return True
    return False


def build(
    roots: Sequence[Node],
    target: Any,
    pool: Any,
    order: Sequence[Node] | None = None,
    in_place: dict[Node, Node] | None = None,
    scope: Scope | None = None,
    behind: Mapping[Node, Node] | None = None,
) -> StaticProgram:
    """A program that computes ``roots``.

    Args:
        roots: nodes without a value.
        target, pool: where to compile and to run.
        order: :func:`tilewright.compiler.fusion.pending` of ``roots``, if known.
        in_place: for a root the leaf whose memory it is to overwrite (same shape, dense).
        scope: of the symbols in the leaves' shapes, if there are any. It is closed afterwards.
        behind: for a root that concatenates the leaf that is its first operand: the rest is written
            behind the leaf in the leaf's own memory, whose strides have room for it (a cache).
    """
    order = pending(roots) if order is None else order
    builder = Builder(order, roots, in_place or {}, behind or {})
    program = StaticProgram(builder, target, pool, scope)
    if scope is not None:
        scope.open = False
    return program

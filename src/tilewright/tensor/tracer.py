"""Tracing a function into a program, and running the program: what ``compile`` is made of."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from tilewright.compiler.fusion import pending
from tilewright.compiler.numbers import scalar_bits
from tilewright.compiler.realize import located
from tilewright.compiler.realize import realize as realize_nodes
from tilewright.compiler.static import Sized, StaticProgram, build
from tilewright.dtypes import DType, u8
from tilewright.errors import TraceError
from tilewright.graph import Node, data_node
from tilewright.runtime.buffers import Buffer, empty
from tilewright.runtime.interrupts import Held
from tilewright.runtime.launch import default_pool, default_target
from tilewright.runtime.memory import Memory, take
from tilewright.sizes import Scope, shape_of
from tilewright.tensor.core import LEAF, PLAIN, Tensor, own, realize
from tilewright.tensor.modes import mode
from tilewright.tensor.sparse import SparseRows, sparse_node, sparse_rows
from tilewright.tensor.tree import leaves, map_tree, replaced

__all__ = ["Entry", "StaleError", "Tracer"]

# what getrefcount says of an object with one holder, a local name and the call itself
_ALONE: Final = 3
_PAGE: Final = 4096


class _Root(NamedTuple):
    """Which of a program's outputs."""

    number: int


class _Grad(NamedTuple):
    """The gradient that a tensor has when the function is called."""

    tensor: _Holder


class _Rows(NamedTuple):
    """A sparse gradient: where its ids and its rows are, and the rows of the table."""

    ids: Any
    rows: Any
    n: Any


_Holder = int | weakref.ref[Tensor]
"""A tensor: which argument, or one outside."""


def _held(holder: _Holder, tensors: Sequence[Tensor]) -> Tensor:
    tensor = tensors[holder] if isinstance(holder, int) else holder()
    if tensor is None:
        raise TraceError(
            "a tensor that the compiled function uses from outside no longer exists: keep it, and "
            "assign() to it instead of putting another in its place"
        )
    return tensor


class Tracer:
    """Runs a function once without values, and makes a program of what it did."""

    def __init__(
        self,
        fn: Callable[..., Any],
        known: Sequence[tuple[int, int]],
        scope: Scope | None = None,
        buffers: Sequence[Buffer] = (),
    ) -> None:
        self.fn = fn
        self.known = known
        self.scope = scope
        self.buffers = buffers  # of the arguments, with symbols for sizes
        self.stand_ins: dict[Tensor, int] = {}
        self.assigned: dict[Tensor, tuple[Node, int]] = {}
        self.graded: dict[Tensor, Tensor | None] = {}  # gradients before they were replaced
        self.grads_read: dict[Tensor, Tensor | None] = {}
        self.flags: dict[int, tuple[Any, bool | None]] = {}  # by id; None: set here

    # what tensors report while they are traced

    def record_assign(self, tensor: Tensor, old: Node, new: Node) -> None:
        """``tensor`` was given another node."""
        self.assigned.setdefault(tensor, (old, tensor._tracks))

    def record_grad(self, tensor: Tensor, old: Tensor | None) -> None:
        """The ``grad`` of ``tensor`` is about to be replaced."""
        self.graded.setdefault(tensor, old)

    def read_grad(self, tensor: Tensor, grad: Tensor | None) -> None:
        """Somebody looked at the ``grad`` of ``tensor``."""
        if tensor not in self.graded:
            self.grads_read.setdefault(tensor, grad)

    def record_flag(self, owner: Any, value: bool | None) -> None:
        """The mode of a module was looked at (the value), or is about to be set (None)."""
        self.flags.setdefault(id(owner), (owner, value))

    def trace(self, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> Entry:
        placed: list[Tensor] = []
        for i, (t, (first, number)) in enumerate(zip(tensors, self.known)):
            if number >= 0 or first < i:  # from outside as well, or the same one again
                placed.append(t if number >= 0 else placed[first])
                continue
            stand_in = Tensor(data_node(self.buffers[i] if self.buffers else t.node.value))
            stand_in._tracks = LEAF if t._tracks == LEAF else PLAIN
            stand_in.grad = t.grad
            placed.append(stand_in)
            self.stand_ins[stand_in] = i
        at: dict[Node, Any] = {t.node: i for t, i in self.stand_ins.items()}
        start = data_node(empty(u8, (1,))).index
        filled, named = replaced((args, kwargs), placed)
        before = mode.trace
        with Held(open=True) as held:  # the function may take long; to undo what it did may not
            try:
                mode.trace = self
                result = map_tree(lambda t: t, self.fn(*filled, **named))  # sizes to numbers
                held.open = False
                outputs = [t.node for t in leaves(result)]  # before tensors get their old values
                states = self._states(start)
            finally:
                held.open, mode.trace = False, before
                grads, cleared = self._restore(start)
        made = [weakref.ref(t) for t, (old, _) in self.assigned.items() if old.index >= start]
        self.assigned.clear()
        self.graded.clear()
        entry = self._finish(result, outputs, states, grads, at, start)
        entry.cleared = [self._holder(t) for t in cleared]
        entry.grads_read = [
            (self._holder(t), grad is not None)
            for t, grad in self.grads_read.items()
            if t.node.index < start
        ]
        self.grads_read.clear()
        flags = self.flags.values()
        entry.flags = [(weakref.ref(owner), v) for owner, v in flags if v is not None]
        del result, states, grads
        if any(ref() is not None for ref in made):
            gc.collect()  # what only a cycle of references holds is not kept
            for left in (kept for ref in made if (kept := ref()) is not None):
                raise TraceError(
                    f"the compiled function made a {left.dtype} tensor of shape {left.shape}, "
                    "assigned to it and keeps it for later calls, which would not change it: make "
                    "state outside, before the function is called"
                )
        return entry

    def _holder(self, tensor: Tensor) -> _Holder:
        found = self.stand_ins.get(tensor)
        return weakref.ref(tensor) if found is None else found

    def _states(self, start: int) -> list[tuple[Tensor, Node, Node]]:
        """(tensor, old node, new node) of every outside tensor that was assigned."""
        return [
            (tensor, old, tensor.node)
            for tensor, (old, _) in self.assigned.items()
            if old.index < start and tensor.node is not old
        ]

    def _restore(
        self, start: int
    ) -> tuple[list[tuple[Tensor, Tensor | None, Tensor]], list[Tensor]]:
        """Undo what the function did to tensors.

        Returns the gradients that it left, (tensor, old one, new one), and the tensors whose
        gradients it used up or cleared.
        """
        grads, cleared = [], []
        for tensor, old in self.graded.items():
            left, tensor.grad = tensor.grad, old
            first = self.assigned[tensor][0] if tensor in self.assigned else tensor.node
            if first.index >= start:
                continue  # made by the function
            if tensor in self.assigned or left is None:
                cleared.append(tensor)
            elif left is not old:
                grads.append((tensor, old, left))
        for tensor, (node, tracks) in self.assigned.items():
            if node.index < start:
                tensor.node, tensor._tracks = node, tracks
        return grads, cleared

    def _finish(
        self,
        result: Any,
        outputs: list[Node],
        states: list[tuple[Tensor, Node, Node]],
        grads: list[tuple[Tensor, Tensor | None, Tensor]],
        at: dict[Node, Any],
        start: int,
    ) -> Entry:
        roots = outputs + [new for _, _, new in states]
        # a gradient that nothing is added to may stay ids and rows
        sparse = [None if old is not None else sparse_rows(left.node) for _, old, left in grads]
        for rows, (_, _, left) in zip(sparse, grads):
            roots += [left.node] if rows is None else rows
        outside = [
            n for n in _edge(roots, start) if n.value is None and n.op not in ("const", "scalar")
        ]
        if outside:  # what was lazy before the trace is computed once, not in every call
            realize_nodes(outside)
        unique = list(dict.fromkeys(r for r in roots if r.value is None))
        order = pending(unique)
        for t, old in [*self.grads_read.items(), *((t, old) for t, old, _ in grads)]:
            if old is not None and old.node.value is not None:
                at[old.node] = _Grad(self._holder(t))
        bindings: list[Any] = []
        seen: set[Node] = set()
        for node in order:
            if node.value is not None:
                seen.add(node)
                bindings.append(_binding(node, at))
        seen.difference_update(roots)  # what is returned as it was is not overwritten
        aliases = {new: old for _, old, new in states if new.value is None and old in seen}
        program = build(unique, default_target(), default_pool(), order, aliases, self.scope)
        scalars = [(order[i].attrs["value"], order[i].dtype) for i in program.scalar_positions]
        where = {node: i for i, node in enumerate(unique)}
        over = dict(program.in_place)
        program.in_place.clear()  # a leaf that the program held would look as if it were shared

        def place(node: Node) -> Any:
            return _Root(where[node]) if node in where else _binding(node, at)

        def place_of(left: Tensor, rows: SparseRows | None) -> Any:
            if rows is None:
                return place(left.node)
            return _Rows(place(rows.ids), place(rows.rows), left.node.shape[0])

        return Entry(
            program,
            bindings,
            scalars,
            result,
            [place(node) for node in outputs],
            [
                (self._holder(t), place(new), over.get(where.get(new, -1)) is old)
                for t, old, new in states
            ],
            [
                (self._holder(t), old is not None, place_of(left, rows))
                for (t, old, left), rows in zip(grads, sparse)
            ],
        )


def _edge(roots: Sequence[Node], start: int) -> list[Node]:
    """Nodes from before the trace that ``roots`` lead to first."""
    found: dict[Node, None] = {}
    seen: set[Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.index < start:
            found[node] = None
        else:
            stack.extend(node.inputs)
    return list(found)


def _binding(node: Node, at: dict[Node, Any]) -> Any:
    """How a leaf's memory is found at each call: argument, outside tensor, or always the same."""
    if node in at:
        return at[node]
    tensor = None if node.owner is None else node.owner()
    if tensor is not None and (tensor.node is node or tensor.node.value is node.value):
        return weakref.ref(tensor), node.value.strides, node.shape, tensor._tracks == LEAF
    return node.value


class StaleError(Exception):
    """A tensor outside has another layout, or wants gradients otherwise, than when traced."""


class Entry:
    """One program of a compiled function."""

    def __init__(
        self,
        program: StaticProgram,
        bindings: list[Any],
        scalars: list[tuple[Any, DType]],
        result: Any,
        outputs: list[Any],
        states: list[tuple[_Holder, Any, bool]],
        grads: list[tuple[_Holder, bool, Any]],
    ) -> None:
        self.program = program
        self.bindings = bindings
        self.scalars = scalars
        self.outputs = outputs
        self.states = states
        self.grads = grads
        self.flags: list[tuple[weakref.ref[Any], bool]] = []  # modules and their ``training``
        self.grads_read: list[
            tuple[_Holder, bool]
        ] = []  # whose ``grad`` was looked at: was it there
        self.cleared: list[_Holder] = []  # whose ``grad`` is None after a call
        self.arena = take(program.arena_bytes)
        self.spare: list[Memory | None] = [None] * len(program.output_bytes)
        self.pattern: Any = None  # which sizes and strides of arguments it takes
        self.refusal = ""  # why a trace with symbols failed
        # the shape of the result, without the trace in it
        self.result = map_tree(lambda t: Tensor(data_node(_NOTHING)), result)

    def assumptions(self) -> list[str]:
        """What it takes for granted, for people."""
        scope = self.program.scope
        if scope is not None:
            return scope.guard_texts()
        shapes = [shape_of(shape) for shape, *_ in self.pattern]
        return shapes + ([self.refusal] if self.refusal else [])

    def outside(self) -> list[weakref.ref[Tensor]]:
        """The tensors that are no arguments."""
        found = [b[0] for b in self.bindings if type(b) is tuple]
        others = [*self.states, *self.grads, *self.grads_read]
        return found + [h for h, *_ in others if not isinstance(h, int)]

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether what the trace assumed about gradients and modules' modes is still so."""
        for ref, value in self.flags:
            owner = ref()
            if owner is not None and owner.training is not value:
                return False
        assumed = [*self.grads_read, *((holder, had) for holder, had, _ in self.grads)]
        return all((_held(h, tensors).grad is not None) == had for h, had in assumed)

    def run(self, tensors: Sequence[Tensor], sized: Sized) -> Any:
        """Compute, and give tensors their new values: all of it or, when it raises, nothing.

        ``tensors`` are the arguments, whose sizes ``sized`` is for.
        """
        with Held():
            return self._run(tensors, sized)

    def _run(self, tensors: Sequence[Tensor], sized: Sized) -> Any:
        for holder, _, in_place in self.states:
            if in_place:
                _make_own(_held(holder, tensors))
        owners: list[Any] = []
        addresses: list[int] = []
        for binding in self.bindings:
            buffer = self._leaf(binding, tensors)
            owners.append(buffer.owner)
            addresses.append(buffer.pointer)
        for i, nbytes in enumerate(sized.output_bytes):
            memory = self._fresh(i, nbytes)
            owners.append(memory)
            addresses.append(memory.pointer)
        if self.arena.nbytes < sized.arena_bytes:
            self.arena = take(sized.arena_bytes)
        addresses.append(self.arena.pointer)
        scalars = sized.scalars
        if scalars is None:
            number = sized.number
            scalars = sized.scalars = [scalar_bits(number(v), dtype) for v, dtype in self.scalars]
        self.program.run(addresses, scalars, sized)

        def value(place: Any) -> Buffer:
            if type(place) is _Root:
                return located(sized.outputs[place.number], addresses, owners)
            return self._leaf(place, tensors)

        made = []
        for place in self.outputs:
            out = Tensor(data_node(value(place)))
            out._tracks = PLAIN
            own(out.node, out)
            made.append(out)
        left = [
            Tensor(
                sparse_node(data_node(value(place.ids)), data_node(value(place.rows)), place.n)
                if type(place) is _Rows
                else data_node(value(place))
            )
            for _, _, place in self.grads
        ]
        changed = [
            (h, data_node(value(place))) for h, place, in_place in self.states if not in_place
        ]
        for holder, node in changed:
            tensor = _held(holder, tensors)
            own(node, tensor)
            tensor.node = node
        for (holder, _, _), grad in zip(self.grads, left):
            _held(holder, tensors).grad = grad
        for holder in self.cleared:
            _held(holder, tensors).grad = None
        return replaced(self.result, made)

    def _leaf(self, binding: Any, tensors: Sequence[Tensor]) -> Buffer:
        if type(binding) is int:
            return tensors[binding].node.value
        if type(binding) is _Grad:
            grad = _held(binding.tensor, tensors).grad
            assert grad is not None
            realize(grad)
            return grad.node.value
        if type(binding) is tuple:
            ref, strides, shape, trained = binding
            tensor = _held(ref, tensors)
            if tensor.node.value is None:
                realize(tensor)
            buffer: Buffer = tensor.node.value
            if buffer.strides != strides or buffer.shape != shape:
                raise StaleError
            if (tensor._tracks == LEAF) is not trained:  # frozen since, or no longer
                raise StaleError
            return buffer
        return binding

    def _fresh(self, i: int, nbytes: int) -> Memory:
        """Memory for an output: last time's, when it fits and nobody holds it any more."""
        spare = self.spare[i]
        if (
            spare is None
            or sys.getrefcount(spare) > _ALONE
            or not nbytes <= spare.nbytes <= 2 * nbytes + _PAGE
        ):
            spare = self.spare[i] = take(nbytes)
        return spare


_NOTHING: Final = empty(u8, (1,))


def _make_own(tensor: Tensor) -> None:
    """Copy the memory of ``tensor`` if anything else can see it."""
    if tensor.node.value is None:
        realize(tensor)
    node = tensor.node
    buffer = node.value
    owner = buffer.owner
    if (
        sys.getrefcount(node) <= _ALONE
        and sys.getrefcount(buffer) <= _ALONE
        and sys.getrefcount(owner) <= _ALONE
    ):
        return
    reach = sum(s * (n - 1) for s, n in zip(buffer.strides, buffer.shape)) + 1
    copy = empty(buffer.dtype, (reach,)).view(buffer.shape, buffer.strides)
    copy.numpy()[...] = buffer.numpy()  # laid out alike: the program writes it so
    tensor.node = data_node(copy)
    own(tensor.node, tensor)

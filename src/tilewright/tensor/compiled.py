"""``tilewright.compile``: a function of tensors as one static program.

The function runs once with stand-ins for its arguments (a *trace*); what it returned, and every
tensor outside that it assigned to, are the outputs of one program: forward, backward and optimiser
together. Later calls only name the memory anew and run it. Results have the same bits as without.

Tensors that the function assigns to (parameters, moments, random state) are overwritten in place
when nobody else can see their memory; otherwise they get a copy first, so that values taken from
them earlier stay what they were.
"""

from __future__ import annotations

import functools
import gc
import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from tilewright.compiler.fusion import pending
from tilewright.compiler.numbers import scalar_bits
from tilewright.compiler.realize import located
from tilewright.compiler.realize import realize as realize_nodes
from tilewright.compiler.static import StaticProgram, build
from tilewright.dtypes import u8
from tilewright.errors import TraceError
from tilewright.graph import Node, data_node
from tilewright.runtime.buffers import Buffer, empty
from tilewright.runtime.interrupts import Held
from tilewright.runtime.launch import default_pool, default_target
from tilewright.runtime.memory import Memory, take
from tilewright.tensor.core import LEAF, PLAIN, Tensor, own, realize
from tilewright.tensor.modes import mode
from tilewright.tensor.tree import leaves, map_tree, replaced

__all__ = ["Compiled", "compile"]

_MANY: Final = 64  # programs of one function beyond which something is wrong
# what getrefcount says of an object with one holder, a local name and the call itself
_ALONE: Final = 3


def compile(fn: Callable[..., Any]) -> Compiled:
    """``fn`` as a static program, traced at the first call with new shapes and dtypes.

    ``fn`` takes and returns tensors, in dicts, lists, tuples or dataclasses; numbers, strings and
    None among its arguments are part of the trace (each new value is another program: pass what
    changes at every call as a tensor). It may read and assign tensors outside. Asking for a value
    inside raises :class:`tilewright.TraceError`.

    Gradients that ``backward`` leaves in ``grad`` stay there after the call, unless the function
    also assigned the tensor (an optimiser's step): then they are used up and ``grad`` is None.
    """
    return Compiled(fn)


class Compiled:
    """A compiled function; see :func:`compile`.

    Attributes:
        programs: how many programs it consists of so far.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        self._entries: dict[Any, list[_Entry]] = {}
        self._outside: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # by id; with a number
        self._count = itertools.count()
        self._lock = threading.RLock()  # programs have memory of their own, for one run at a time
        functools.update_wrapper(self, fn)

    @property
    def programs(self) -> int:
        return sum(map(len, self._entries.values()))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if mode.trace is not None:
            return self._fn(*args, **kwargs)
        with self._lock:
            return self._call(args, kwargs)

    def _call(self, args: Any, kwargs: Any) -> Any:
        tensors: list[Tensor] = []
        modes = mode.grad, mode.autocast
        key = (id(default_pool()), modes, _describe(args, tensors), _describe(kwargs, tensors))
        lazy = [t for t in tensors if t.node.value is None]
        if lazy:
            realize(*lazy)
        layouts = tuple([(t.node.value.strides, t.node.dtype) for t in tensors])
        known = self._known(tensors)
        entries = self._entries.setdefault((key, layouts, known), [])
        for entry in list(entries):
            if entry.holds(tensors):
                try:
                    return entry.run(tensors)
                except _StaleError:
                    entries.remove(entry)
        if self.programs >= _MANY:
            raise TraceError(
                f"{self.__name__} has been traced {_MANY} times: some argument changes its shape, "  # type: ignore[attr-defined]
                "dtype or value at every call. Pass numbers that change as tensors, and pad or "
                "bucket sizes that change"
            )
        entry = _Tracer(self._fn, known).trace(args, kwargs, tensors)
        for ref in entry.outside():
            tensor = ref()
            if tensor is not None and self._number(tensor) < 0:
                self._outside[id(tensor)] = ref, next(self._count)
        if self._known(tensors) != known:  # an argument is also used from outside
            return self._call(args, kwargs)
        entries.append(entry)
        try:
            return entry.run(tensors)
        except _StaleError:  # never just after the trace, unless arguments change as it runs
            entries.remove(entry)
            raise TraceError(
                "a tensor that the compiled function uses changes its layout while it runs"
            ) from None

    def _number(self, tensor: Tensor) -> int:
        """Which of the tensors that the function uses from outside; -1 if it is none."""
        found = self._outside.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else -1

    def _known(self, tensors: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
        """For each argument where it came first, and its number among tensors from outside."""
        first: dict[int, int] = {}
        return tuple([(first.setdefault(id(t), i), self._number(t)) for i, t in enumerate(tensors)])

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)


def _describe(tree: Any, tensors: list[Tensor]) -> Any:
    """A hashable description of an argument; its tensors are appended to ``tensors``."""
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return Tensor, tree.node.shape, tree._tracks == LEAF
    if isinstance(tree, (list, tuple)):
        return (type(tree), *[_describe(v, tensors) for v in tree])
    if isinstance(tree, dict):
        return (dict, *[(k, _describe(v, tensors)) for k, v in tree.items()])
    if isinstance(tree, np.ndarray):
        raise TraceError(
            "a compiled function takes tensors, got a NumPy array: wrap it (tilewright.asarray)"
        )
    inner = leaves(tree)
    if inner:  # a dataclass of tensors
        tensors += inner
        return type(tree), *[(t.node.shape, t._tracks == LEAF) for t in inner]
    try:
        hash(tree)
    except TypeError:
        raise TraceError(
            f"a compiled function's arguments are tensors and hashable values, got "
            f"{type(tree).__name__}"
        ) from None
    return type(tree), repr(tree) if isinstance(tree, float) else tree


class _Root(NamedTuple):
    """Which of a program's outputs."""

    number: int


class _Grad(NamedTuple):
    """The gradient that a tensor has when the function is called."""

    tensor: _Holder


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


class _Tracer:
    """Runs a function once without values, and makes a program of what it did."""

    def __init__(self, fn: Callable[..., Any], known: Sequence[tuple[int, int]]) -> None:
        self.fn = fn
        self.known = known
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

    def trace(self, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> _Entry:
        placed: list[Tensor] = []
        for i, (t, (first, number)) in enumerate(zip(tensors, self.known)):
            if number >= 0 or first < i:  # from outside as well, or the same one again
                placed.append(t if number >= 0 else placed[first])
                continue
            stand_in = Tensor(data_node(t.node.value))
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
                result = self.fn(*filled, **named)
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
    ) -> _Entry:
        roots = outputs + [new for _, _, new in states]
        roots += [left.node for _, _, left in grads]
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
        program = build(unique, default_target(), default_pool(), order, aliases)
        scalars = [
            scalar_bits(order[i].attrs["value"], order[i].dtype) for i in program.scalar_positions
        ]
        where = {node: i for i, node in enumerate(unique)}
        over = dict(program.in_place)
        program.in_place.clear()  # a leaf that the program held would look as if it were shared

        def place(node: Node) -> Any:
            return _Root(where[node]) if node in where else _binding(node, at)

        return _Entry(
            program,
            bindings,
            scalars,
            result,
            [place(node) for node in outputs],
            [
                (self._holder(t), place(new), over.get(where.get(new, -1)) is old)
                for t, old, new in states
            ],
            [(self._holder(t), old is not None, place(left.node)) for t, old, left in grads],
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


class _StaleError(Exception):
    """A tensor outside has another layout, or wants gradients otherwise, than when traced."""


class _Entry:
    """One program of a compiled function."""

    def __init__(
        self,
        program: StaticProgram,
        bindings: list[Any],
        scalars: list[int],
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
        # the shape of the result, without the trace in it
        self.result = map_tree(lambda t: Tensor(data_node(_NOTHING)), result)

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

    def run(self, tensors: Sequence[Tensor]) -> Any:
        """Compute, and give tensors their new values: all of it or, when it raises, nothing."""
        with Held():
            return self._run(tensors)

    def _run(self, tensors: Sequence[Tensor]) -> Any:
        for holder, _, in_place in self.states:
            if in_place:
                _make_own(_held(holder, tensors))
        owners: list[Any] = []
        addresses: list[int] = []
        for binding in self.bindings:
            buffer = self._leaf(binding, tensors)
            owners.append(buffer.owner)
            addresses.append(buffer.pointer)
        for i in range(len(self.spare)):
            memory = self._fresh(i)
            owners.append(memory)
            addresses.append(memory.pointer)
        addresses.append(self.arena.pointer)
        self.program.run(addresses, self.scalars)

        def value(place: Any) -> Buffer:
            if type(place) is _Root:
                return located(self.program.outputs[place.number], addresses, owners)
            return self._leaf(place, tensors)

        made = []
        for place in self.outputs:
            out = Tensor(data_node(value(place)))
            out._tracks = PLAIN
            own(out.node, out)
            made.append(out)
        left = [Tensor(data_node(value(place))) for _, _, place in self.grads]
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
                raise _StaleError
            if (tensor._tracks == LEAF) is not trained:  # frozen since, or no longer
                raise _StaleError
            return buffer
        return binding

    def _fresh(self, i: int) -> Memory:
        """Memory for an output: last time's, when nobody holds it any more."""
        spare = self.spare[i]
        if spare is None or sys.getrefcount(spare) > _ALONE:
            spare = self.spare[i] = take(self.program.output_bytes[i])
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

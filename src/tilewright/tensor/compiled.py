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
import itertools
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, overload

import numpy as np

from tilewright.compiler.static import Sized
from tilewright.errors import TraceError
from tilewright.runtime.launch import default_pool
from tilewright.tensor.core import LEAF, Tensor, realize
from tilewright.tensor.dynamic import Axes, Dynamic, Layout, Pattern, axis_names, choose
from tilewright.tensor.modes import mode
from tilewright.tensor.tracer import Entry, StaleError, Tracer
from tilewright.tensor.tree import leaves

__all__ = ["Compiled", "compile"]

_MANY: Final = 64  # programs of one function beyond which something is wrong
_SHORTCUTS: Final = 4096  # layouts of arguments whose program is known


@overload
def compile(fn: Callable[..., Any], *, dynamic: Dynamic | None = None) -> Compiled: ...


@overload
def compile(*, dynamic: Dynamic | None = None) -> Callable[[Callable[..., Any]], Compiled]: ...


def compile(
    fn: Callable[..., Any] | None = None, *, dynamic: Dynamic | None = None
) -> Compiled | Callable[[Callable[..., Any]], Compiled]:
    """``fn`` as a static program, traced at the first call with new shapes and dtypes.

    ``fn`` takes and returns tensors, in dicts, lists, tuples or dataclasses; numbers, strings and
    None among its arguments are part of the trace (each new value is another program: pass what
    changes at every call as a tensor). It may read and assign tensors outside. Asking for a value
    inside raises :class:`tilewright.TraceError`.

    An axis of an argument that comes with another size than before becomes a symbol: the function
    is traced once more, and that program serves all sizes for which the trace would have gone the
    same way. What in ``fn`` depends on the number that a size is (a branch, ``range(n)``) narrows
    that down, and makes further programs; sizes 0 and 1 always do.

    Gradients that ``backward`` leaves in ``grad`` stay there after the call, unless the function
    also assigned the tensor (an optimiser's step): then they are used up and ``grad`` is None.

    Args:
        dynamic: axes that are symbols from the first call on: for a parameter's name an axis, a
            tuple of axes, or ``{axis: name}``, where equal names say that the sizes are equal:
            ``{"x": {0: "batch", 1: "time"}, "y": {0: "batch"}}``.
    """
    if fn is None:
        return lambda function: Compiled(function, dynamic)
    return Compiled(fn, dynamic)


class _Family:
    """Calls that differ in sizes and strides only."""

    def __init__(self) -> None:
        self.seen: list[Sequence[Layout]] = []
        self.entries: list[Entry] = []


class Compiled:
    """A compiled function; see :func:`compile`.

    Attributes:
        programs: how many programs it consists of so far.
    """

    def __init__(self, fn: Callable[..., Any], dynamic: Dynamic | None = None) -> None:
        self._fn = fn
        self._dynamic = dynamic
        # a shortcut, by exact layouts: programs, of those with symbols the values
        self._entries: dict[Any, list[tuple[Entry, Sized | tuple[int, ...]]]] = {}
        self._families: dict[Any, _Family] = {}
        self._outside: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # by id; with a number
        self._count = itertools.count()
        self._lock = threading.RLock()  # programs have memory of their own, for one run at a time
        functools.update_wrapper(self, fn)

    @property
    def programs(self) -> int:
        return sum(len(family.entries) for family in self._families.values())

    def assumptions(self) -> list[list[str]]:
        """For each program what it takes for granted: bounds of its symbols and conditions on them.

        Of a program without symbols the shapes of its arguments and, where a trace with symbols was
        tried and failed, why.
        """
        return [entry.assumptions() for f in self._families.values() for entry in f.entries]

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
        layouts = tuple([(t.node.shape, t.node.value.strides, t.node.dtype) for t in tensors])
        known = self._known(tensors)
        exact = key, layouts, known
        for entry, sized in self._entries.get(exact, ()):
            if entry.holds(tensors):
                if sized.__class__ is tuple:
                    sized = entry.program.at_values(sized)
                try:
                    return entry.run(tensors, sized)  # type: ignore[arg-type]
                except StaleError:
                    self._forget(entry)
        kinds = tuple([(len(shape), dtype) for shape, _, dtype in layouts])
        family = self._families.setdefault((key, kinds, known), _Family())
        for entry in list(family.entries):
            fitting = _sized(entry, layouts)
            if fitting is not None and entry.holds(tensors):
                try:
                    result = entry.run(tensors, fitting)
                except StaleError:
                    self._forget(entry)
                else:
                    self._remember(exact, entry, fitting)
                    return result
        if self.programs >= _MANY:
            raise TraceError(
                f"{self.__name__} has been traced {_MANY} times: some argument changes its "  # type: ignore[attr-defined]
                "dtype or value at every call, or the function branches on each size. Pass numbers "
                "that change as tensors, and pad or bucket sizes that it depends on"
            )
        entry = self._traced(args, kwargs, tensors, layouts, known, family)
        for ref in entry.outside():
            tensor = ref()
            if tensor is not None and self._number(tensor) < 0:
                self._outside[id(tensor)] = ref, next(self._count)
        if self._known(tensors) != known:  # an argument is also used from outside
            return self._call(args, kwargs)
        family.seen.append(layouts)
        family.entries.append(entry)
        fitting = _sized(entry, layouts)
        assert fitting is not None, "a trace does not hold for what was traced"
        try:
            result = entry.run(tensors, fitting)
        except StaleError:  # never just after the trace, unless arguments change as it runs
            self._forget(entry)
            raise TraceError(
                "a tensor that the compiled function uses changes its layout while it runs"
            ) from None
        self._remember(exact, entry, fitting)
        return result

    def _traced(
        self,
        args: Any,
        kwargs: Any,
        tensors: Sequence[Tensor],
        layouts: Sequence[Layout],
        known: Sequence[tuple[int, int]],
        family: _Family,
    ) -> Entry:
        """A new program, with symbols where sizes have changed."""
        named: Axes = {}
        if self._dynamic:
            named = axis_names(self._fn, self._dynamic, args, kwargs, tensors)
        names = choose(family.seen, layouts, named)
        fixed = {i for i, (_, number) in enumerate(known) if number >= 0}
        names = {at: name for at, name in names.items() if at[0] not in fixed}
        refusal = ""
        if names:
            pattern = Pattern(layouts, names, tensors)
            tracer = Tracer(self._fn, known, pattern.scope, pattern.buffers)
            try:
                entry = tracer.trace(args, kwargs, tensors)
            except Exception as error:  # what cannot do with symbols is traced at its sizes
                pattern.scope.open = False
                refusal = f"symbols: {type(error).__name__}: {error}"
            else:
                entry.pattern = pattern
                return entry
        entry = Tracer(self._fn, known).trace(args, kwargs, tensors)
        entry.pattern = layouts
        entry.refusal = refusal
        return entry

    def _remember(self, exact: Any, entry: Entry, sized: Sized) -> None:
        if len(self._entries) >= _SHORTCUTS:
            self._entries.clear()
        known = sized.values or sized
        self._entries.setdefault(exact, []).append((entry, known))

    def _forget(self, entry: Entry) -> None:
        for family in self._families.values():
            if entry in family.entries:
                family.entries.remove(entry)
        for exact, found in list(self._entries.items()):
            self._entries[exact] = [pair for pair in found if pair[0] is not entry]

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


def _sized(entry: Entry, layouts: Sequence[Layout]) -> Sized | None:
    """The program of ``entry`` at these sizes, if it serves them."""
    program = entry.program
    if not isinstance(entry.pattern, Pattern):
        return program.at_values(()) if entry.pattern == layouts else None
    values = entry.pattern.match(layouts)
    if values is None or not program.holds_at(values):
        return None
    return program.at_values(values)


def _describe(tree: Any, tensors: list[Tensor]) -> Any:
    """A hashable description of an argument; its tensors are appended to ``tensors``."""
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return Tensor, tree._tracks == LEAF
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
        return type(tree), *[t._tracks == LEAF for t in inner]
    try:
        hash(tree)
    except TypeError:
        raise TraceError(
            f"a compiled function's arguments are tensors and hashable values, got "
            f"{type(tree).__name__}"
        ) from None
    return type(tree), repr(tree) if isinstance(tree, float) else tree

"""Which sizes of a compiled function's arguments are symbols, and which arguments a program takes.

An axis becomes a symbol when a call brings another size of it than an earlier call did, or when the
user said so. Axes that have always changed together are one symbol. Sizes 0 and 1 are never
symbols: they decide what broadcasts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from tilewright.errors import ShapeError, TraceError
from tilewright.runtime.buffers import Buffer
from tilewright.sizes import Scope
from tilewright.tensor.core import Tensor
from tilewright.tensor.tree import leaves

__all__ = ["Axes", "Dynamic", "Layout", "Pattern", "axis_names", "choose"]

Layout = tuple[Any, Any, Any]
"""Shape, strides and dtype of an argument."""
Dynamic = Mapping[str, Any]
Axes = Mapping[tuple[int, int], str]
"""The names of symbolic axes, by (argument, axis)."""

_REMEMBERED: Final = 8  # earlier calls that axes are compared with


class Pattern:
    """What a program with symbols takes: sizes that are numbers or symbols, and strides.

    Attributes:
        scope: the symbols.
        buffers: one per argument, symbols for sizes; dense strides are expressions too.

    Raises :class:`ShapeError` where axes of one name have several sizes.
    """

    def __init__(self, layouts: Sequence[Layout], names: Axes, tensors: Sequence[Tensor]) -> None:
        self.scope = Scope()
        self.buffers: list[Buffer] = []
        self._sizes: list[tuple[int | str, ...]] = []
        self._strides: list[tuple[int, ...] | None] = []  # None: dense in the order below
        self._orders: list[tuple[int, ...]] = []
        for i, ((shape, strides, dtype), tensor) in enumerate(zip(layouts, tensors)):
            labels = [names.get((i, axis)) if n > 1 else None for axis, n in enumerate(shape)]
            sizes: list[Any] = [
                n if label is None else self.scope.symbol(label, n)
                for n, label in zip(shape, labels)
            ]
            for n, size, label in zip(shape, sizes, labels):
                if label is not None and size.hint != n:
                    raise ShapeError(
                        f"axes called {label!r} have one size, got {size.hint} and {n}"
                    )
            order = _order(shape, strides)
            dense = any(labels) and _is_dense(shape, strides, order)
            steps = _steps(sizes, order) if dense else strides
            value = tensor.node.value
            self.buffers.append(
                Buffer(dtype, tuple(sizes), tuple(steps), value.pointer, value.owner)
            )
            self._sizes.append(tuple([label or n for n, label in zip(shape, labels)]))
            self._strides.append(None if dense else strides)
            self._orders.append(order)

    def match(self, layouts: Sequence[Layout]) -> tuple[int, ...] | None:
        """The values of the symbols, in order, if arguments laid out so fit; else None."""
        values: dict[str, int] = {}
        for i, (shape, strides, _) in enumerate(layouts):
            for n, wanted in zip(shape, self._sizes[i]):
                if isinstance(wanted, str):
                    if values.setdefault(wanted, n) != n:
                        return None
                elif n != wanted:
                    return None
            given = self._strides[i]
            if strides != given and (given or not _is_dense(shape, strides, self._orders[i])):
                return None
        return tuple([values[name] for name in self.scope.symbols])


def _order(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The axes from the slowest to the fastest."""
    return tuple(sorted(range(len(shape)), key=lambda a: (-strides[a], a)))


def _is_dense(shape: Sequence[int], strides: Sequence[int], order: Sequence[int]) -> bool:
    step = 1
    for axis in reversed(order):
        if shape[axis] != 1 and strides[axis] != step:
            return False
        step *= shape[axis]
    return True


def _steps(sizes: Sequence[Any], order: Sequence[int]) -> list[Any]:
    steps: list[Any] = [0] * len(sizes)
    step: Any = 1
    for axis in reversed(order):
        steps[axis] = step
        step = step * sizes[axis]
    return steps


def choose(seen: list[Sequence[Layout]], now: Sequence[Layout], named: Axes) -> Axes:
    """The axes to make symbols of, by what earlier calls brought; ``named`` are in any case."""
    past = seen[-_REMEMBERED:]
    found: dict[tuple[int, int], str] = dict(named)
    groups: dict[tuple[int, ...], str] = {}
    for i, (shape, _, _) in enumerate(now):
        for axis, n in enumerate(shape):
            history = (*(layouts[i][0][axis] for layouts in past), n)
            if (i, axis) in found or n < 2 or all(m == n for m in history):
                continue
            found[i, axis] = groups.setdefault(history, f"s{len(groups)}")
    return found


def axis_names(
    fn: Callable[..., Any], dynamic: Dynamic, args: Any, kwargs: Any, tensors: Sequence[Tensor]
) -> Axes:
    """The axes that the user called dynamic. Raises :class:`TraceError` for what does not exist."""
    bound = inspect.signature(fn).bind(*args, **kwargs)
    bound.apply_defaults()
    numbers = {id(t): i for i, t in reversed(list(enumerate(tensors)))}
    found: dict[tuple[int, int], str] = {}
    for name, axes in dynamic.items():
        if name not in bound.arguments:
            raise TraceError(
                f"dynamic names {name!r}, the function's parameters are {list(bound.arguments)}"
            )
        for tensor in leaves(bound.arguments[name]):
            i = numbers[id(tensor)]
            for axis, label in _labels(name, axes):
                if not -tensor.ndim <= axis < tensor.ndim:
                    raise TraceError(
                        f"dynamic names axis {axis} of {name!r}, a tensor of shape {tensor.shape}"
                    )
                at = axis % tensor.ndim
                found[i, at] = label or f"{name}_{i}_{at}"
    return found


def _labels(name: str, axes: Any) -> Iterator[tuple[int, str]]:
    """Axes and the names of their sizes: ``0``, ``(0, 1)`` or ``{0: "batch"}``."""
    if isinstance(axes, Mapping):
        yield from axes.items()
    else:
        for axis in (axes,) if isinstance(axes, int) else axes:
            yield axis, ""

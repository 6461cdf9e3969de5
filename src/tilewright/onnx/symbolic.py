"""Arithmetic on shapes while some sizes are symbols.

Exports compute shapes by operators: ``Shape``, then ``Gather``, ``Concat``, ``Reshape``. In a trace
for one size those are constants. In a trace for many (:mod:`tilewright.sizes`) they are
:class:`Sizes`, int64 arrays whose elements are numbers or symbolic sizes, and the operators here
compute with them. Whatever is not here asks for the numbers, which makes them an assumption of the
trace: right, and good for fewer sizes.
"""

from __future__ import annotations

import operator as py
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from tilewright.dtypes import i64
from tilewright.formats.onnx.tensors import numpy_dtype
from tilewright.graph import scalar_node
from tilewright.ops import views
from tilewright.sizes import Size, maximum, minimum
from tilewright.tensor import creation, manipulation
from tilewright.tensor.core import Tensor

__all__ = ["TAKE_SIZES", "WANT_SIZES", "Sizes", "compute", "settled", "shape_value"]

WANT_SIZES: Final = frozenset({"Reshape", "Expand", "ConstantOfShape", "Slice"})
"""Operators whose inputs on the host may be arrays of sizes that are symbols."""

TAKE_SIZES: Final = frozenset({"GroupQueryAttention"})
"""Operators that take :class:`Sizes` as they are, at any place."""


class Sizes:
    """An int64 array on the host; some of its elements are symbolic sizes.

    Attributes:
        elements: an object array of ints and :class:`Size`.
    """

    dtype = np.dtype(np.int64)

    def __init__(self, elements: np.ndarray) -> None:
        self.elements = elements

    @property
    def shape(self) -> tuple[int, ...]:
        return self.elements.shape

    @property
    def ndim(self) -> int:
        return self.elements.ndim

    def numbers(self) -> np.ndarray:
        """The values of the trace, which it assumes from here on."""
        flat = [int(n) for n in self.elements.reshape(-1)]
        return np.array(flat, np.int64).reshape(self.shape)

    def tensor(self) -> Tensor:
        """The same as a tensor: its elements are handed to the program when it runs."""
        flat = [Tensor(views.reshape(scalar_node(n, i64), (1,))) for n in self.elements.reshape(-1)]
        return manipulation.reshape(manipulation.concat(flat), self.shape)


def settled(elements: Any) -> Any:
    """An object array as :class:`Sizes`, or as plain int64 when every element is a number."""
    array = np.asarray(elements, object)
    if any(isinstance(n, Size) for n in array.reshape(-1)):
        return Sizes(array)
    return array.astype(np.int64)


def shape_value(sizes: Sequence[Any]) -> Any:
    """A shape as a value."""
    made = np.empty(len(sizes), object)
    made[:] = sizes
    return settled(made)


def _pair(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def apply(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        both = np.broadcast(x, y)
        made = np.empty(both.shape, object)
        made.reshape(-1)[:] = [function(a, b) for a, b in both]
        return made

    return apply


def _compare(function: Callable[[Any, Any], bool]) -> Callable[..., Any]:
    def apply(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        both = np.broadcast(x, y)
        return np.array([bool(function(a, b)) for a, b in both], np.bool_).reshape(both.shape)

    return apply


def _quotient(x: Any, y: Any) -> Any:
    """Rounded towards zero, as integers are divided there."""
    if x >= 0 and y > 0:
        return x // y
    return int(np.trunc(int(x) / int(y)))


def _axes(axes: Any) -> tuple[int, ...]:
    return tuple(int(a) for a in np.asarray(axes).reshape(-1))


def _squeeze(x: np.ndarray, axes: Any = None, **attrs: Any) -> np.ndarray:
    axes = attrs.get("axes", axes)
    return np.squeeze(x, None if axes is None else _axes(axes))


def _unsqueeze(x: np.ndarray, axes: Any = None, **attrs: Any) -> np.ndarray:
    return np.expand_dims(x, _axes(attrs.get("axes", axes)))


def _slice(
    x: np.ndarray, starts: Any, ends: Any, axes: Any = None, steps: Any = None
) -> np.ndarray:
    first, last = _axes(starts), _axes(ends)
    along = range(len(first)) if axes is None else _axes(axes)
    hops = [1] * len(first) if steps is None else _axes(steps)
    key: list[Any] = [slice(None)] * x.ndim
    for axis, *part in zip(along, first, last, hops):
        key[axis] = slice(*part)
    return x[tuple(key)]


def _reshape(x: np.ndarray, shape: Any, *, allowzero: int = 0) -> np.ndarray:
    sizes = [x.shape[i] if n == 0 and not allowzero else n for i, n in enumerate(_axes(shape))]
    return x.reshape(sizes)


def _total(function: Callable[[Any, Any], Any], first: int) -> Callable[..., Any]:
    def apply(x: np.ndarray, axes: Any = None, **attrs: Any) -> Any:
        keep = attrs.get("keepdims", 1)
        if x.ndim != 1:
            return NotImplemented
        total: Any = first
        for n in x:
            total = function(total, n)
        made = np.empty((1,) if keep else (), object)
        made[...] = total
        return made

    return apply


def _cast(x: np.ndarray, *, to: int, saturate: int = 1, round_mode: str = "up") -> Any:
    kind = numpy_dtype(to, "the result")
    return x if kind.kind in "iu" and kind.itemsize >= 4 else NotImplemented


def _range(start: np.ndarray, limit: np.ndarray, delta: np.ndarray, **attrs: Any) -> Any:
    first, last, step = (v.reshape(-1)[0] for v in (start, limit, delta))
    return creation.arange(first, last, step, dtype=i64)


_OPERATORS: Final[Mapping[str, Callable[..., Any]]] = {
    "Identity": lambda x: x,
    "Cast": _cast,
    "Add": _pair(py.add),
    "Sub": _pair(py.sub),
    "Mul": _pair(py.mul),
    "Div": _pair(_quotient),
    "Neg": lambda x: -x,
    "Max": _pair(maximum),
    "Min": _pair(minimum),
    "Equal": _compare(py.eq),
    "Less": _compare(py.lt),
    "LessOrEqual": _compare(py.le),
    "Greater": _compare(py.gt),
    "GreaterOrEqual": _compare(py.ge),
    "Gather": lambda x, i, *, axis=0: np.take(x, np.asarray(i, np.int64), axis),
    "Concat": lambda *xs, axis=0: np.concatenate(xs, axis),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Reshape": _reshape,
    "Flatten": lambda x, **_: NotImplemented,
    "Where": lambda c, x, y: np.where(c.astype(bool), x, y),
    "ReduceProd": _total(py.mul, 1),
    "ReduceSum": _total(py.add, 0),
    "Range": _range,
}


_OF_FIRST: Final = frozenset({"Gather", "Squeeze", "Unsqueeze", "Slice", "Reshape"})
"""Operators here whose first input may be sizes; of symbolic indices tensors are made."""


def compute(op: str, args: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    """The result of an operator of which some inputs are :class:`Sizes`.

    ``NotImplemented`` when the operator is not among those here, or an input is a tensor.
    """
    function = _OPERATORS.get(op)
    if function is None or (op in _OF_FIRST and any(isinstance(a, Sizes) for a in args[1:])):
        return NotImplemented
    given: list[Any] = []
    for arg in args:
        if isinstance(arg, Sizes):
            given.append(arg.elements)
        elif arg is None or (isinstance(arg, np.ndarray) and arg.dtype.kind in "iub"):
            given.append(arg if arg is None else arg.astype(object))
        else:
            return NotImplemented
    result = function(*given, **attrs)
    if result is NotImplemented or isinstance(result, Tensor):
        return result
    known = isinstance(result, np.ndarray) and result.dtype == np.bool_
    return result if known else settled(result)

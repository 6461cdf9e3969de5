"""What the families of operators share: tables of them, old broadcasting, raw arrays."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.compiler.fusion import pending
from tilewright.dtypes import DType, f32
from tilewright.errors import DTypeError, ShapeError, UnsupportedError
from tilewright.graph import Node
from tilewright.onnx.registry import Call, op
from tilewright.onnx.values import buffer_of, dtype_of, leaf
from tilewright.ops import elementwise as ew
from tilewright.ops import views
from tilewright.ops.table import evaluate_nodes
from tilewright.tensor.core import Tensor, apply

__all__ = [
    "aligned",
    "as_tensors",
    "axes_in",
    "element_type",
    "fold",
    "moves",
    "old_pair",
    "pairs",
    "require_same",
    "tensor_of",
    "tensor_type",
    "unary",
    "wide",
]

Build = Callable[..., Node]


def unary(name: str, build: Build, doc: str, since: int = 6, old: int | None = 1) -> None:
    """Register an operator of one tensor; ``old`` is the version with ``consumed_inputs``."""

    def function(x: Tensor) -> Tensor:
        return apply(build, x)

    function.__doc__ = doc
    op(name, since=since)(function)
    if old is not None:

        def first(x: Tensor, *, consumed_inputs: Any = None) -> Tensor:
            return apply(build, x)

        op(name, since=old)(first)


def pairs(name: str, build: Build, since: int = 7, old: bool = True) -> None:
    """Register an operator of two tensors that broadcast; before version 7 by attributes."""

    def function(x: Tensor, y: Tensor) -> Tensor:
        require_same(x, y)
        return apply(build, x, y)

    op(name, since=since)(function)
    if old:
        op(name, since=1)(old_pair(build))


def old_pair(build: Build) -> Callable[..., Tensor]:
    """Before version 7: the second operand broadcasts if ``broadcast``, laid at ``axis``."""

    def function(
        x: Tensor,
        y: Tensor,
        *,
        axis: int | None = None,
        broadcast: int = 0,
        consumed_inputs: Any = None,
    ) -> Tensor:
        require_same(x, y)
        if not broadcast and x.shape != y.shape:
            raise ShapeError(f"operands {x.shape} and {y.shape} differ, and broadcast is not set")
        return apply(lambda a, b: build(a, aligned(b, a, axis)), x, y)

    return function


def aligned(y: Node, x: Node, axis: int | None) -> Node:
    """``y`` with axes of size 1 so that its first one lies at ``axis`` of ``x``."""
    if axis is None:
        return y
    behind = len(x.shape) - views.normal_axis(axis, len(x.shape)) - len(y.shape)
    if behind < 0:
        raise ShapeError(f"an operand {y.shape} does not fit {x.shape} from axis {axis} on")
    return views.reshape(y, (*y.shape, *(1,) * behind))


def require_same(*tensors: Tensor) -> None:
    """Raise unless the element types are one: the standard never promotes."""
    for t in tensors[1:]:
        if t.dtype is not tensors[0].dtype:
            raise DTypeError(
                f"operands have one element type, got {tensors[0].dtype} and {t.dtype}"
            )


def fold(build: Build, tensors: Sequence[Tensor]) -> Tensor:
    """``build`` over the tensors from left to right."""
    if not tensors:
        raise ShapeError("wants at least one input")
    require_same(*tensors)
    return apply(lambda *nodes: functools.reduce(build, nodes), *tensors)


def wide(build: Callable[[Node], Node]) -> Callable[[Node], Node]:
    """``build`` with 16-bit floats computed in float32 and rounded once."""

    def function(x: Node) -> Node:
        if x.dtype.is_float and x.dtype.bits == 16:
            return ew.cast(build(ew.cast(x, f32)), x.dtype)
        return build(x)

    return function


def axes_in(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes counted from the front, in the order given, each once."""
    found = tuple(views.normal_axis(int(a), rank) for a in axes)
    if len(set(found)) != len(found):
        raise ShapeError(f"axes {tuple(int(a) for a in axes)} name an axis twice")
    return found


def element_type(number: int) -> np.dtype:
    """The NumPy dtype of an element type's number (object for strings)."""
    from tilewright.formats.onnx.tensors import numpy_dtype

    return numpy_dtype(number, "the result")


def tensor_type(number: int) -> DType:
    """The dtype of an element type's number; :class:`UnsupportedError` if no tensor has it."""
    found = dtype_of(element_type(number))
    if found is None:
        raise UnsupportedError(f"no tensor has elements of {element_type(number)}")
    return found


def tensor_of(array: np.ndarray) -> Tensor:
    """An array as a tensor that depends on no input of the model."""
    return leaf(buffer_of(array))


def as_tensors(values: Sequence[Any]) -> list[Tensor] | None:
    """Values as tensors; None when no tensor holds them."""
    if any(isinstance(v, np.ndarray) and dtype_of(v.dtype) is None for v in values):
        return None
    return [v if isinstance(v, Tensor) else tensor_of(v) for v in values]


# --- elements that no tensor holds ---------------------------------------------------------------


def moves(*which: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """For operators that only move elements: also those of arrays that no tensor holds.

    ``which`` are the positions of inputs whose elements are moved (-1: all). When they are strings,
    4-bit integers and the like, the operator is run on their numbers, and those say what goes
    where. Register the result with ``raw=True``.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        passes_call = "ctx" in inspect.signature(function).parameters

        @functools.wraps(function)
        def wrapper(*args: Any, ctx: Call, **attrs: Any) -> Any:
            extra = {**attrs, "ctx": ctx} if passes_call else attrs
            places = range(len(args)) if -1 in which else which
            moved = [i for i in places if i < len(args) and args[i] is not None]
            if not any(isinstance(args[i], np.ndarray) for i in moved):
                return function(*args, **extra)
            given = list(args)
            start, pieces = 0, []
            for i in moved:
                array = np.asarray(ctx.value(args[i]))
                pieces.append(array.reshape(-1))
                numbers = np.arange(start, start + array.size).reshape(array.shape)
                given[i] = tensor_of(numbers)
                start += array.size
            for i, value in enumerate(args):
                if isinstance(value, Tensor) and i not in moved:
                    given[i] = tensor_of(ctx.value(value))
            source = np.concatenate(pieces)
            result = function(*given, **extra)
            if isinstance(result, tuple):
                return tuple(_taken(source, r) for r in result)
            return _taken(source, result)

        signature = inspect.signature(function)
        if not passes_call:
            call = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY)
            signature = signature.replace(parameters=[*signature.parameters.values(), call])
        wrapper.__signature__ = signature  # type: ignore[attr-defined]
        return wrapper

    return decorate


def _taken(source: np.ndarray, numbers: Any) -> np.ndarray:
    if isinstance(numbers, Tensor):
        numbers = evaluate_nodes(pending([numbers.node]), {})[numbers.node]
    return source[np.asarray(numbers)]

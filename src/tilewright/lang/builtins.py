"""The names a kernel uses. Each is an ordinary function with NumPy semantics.

Tiles are values: every function returns a new one. Python numbers are weak and adopt the dtype of
the tile beside them. In a kernel the plain Python names ``sum max min abs round pow range any all``
mean the functions of this module.
"""

from __future__ import annotations

import builtins as python
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from tilewright.dtypes import f32, i64
from tilewright.errors import KernelError
from tilewright.lang.array import Array
from tilewright.lang.elementwise import (
    abs,
    acos,
    acosh,
    asin,
    asinh,
    atan,
    atan2,
    atanh,
    bitcast,
    ceil,
    cos,
    cosh,
    erf,
    erfinv,
    exp,
    exp2,
    expm1,
    floor,
    fma,
    hypot,
    isnan,
    lgamma,
    log,
    log1p,
    log2,
    log10,
    maximum,
    minimum,
    popcount,
    pow,
    round,
    rsqrt,
    sigmoid,
    sin,
    sinh,
    sqrt,
    tan,
    tanh,
    trunc,
    where,
)
from tilewright.lang.engine import active, builtin, current
from tilewright.lang.ir import ArrayType, TileType
from tilewright.lang.library import (
    copysign,
    floor_divide,
    isfinite,
    isinf,
    logaddexp,
    nextafter,
    reciprocal,
    remainder,
    rotl,
    sign,
    signbit,
    square,
)
from tilewright.lang.movement import (
    as_shape,
    broadcast_to,
    concatenate,
    expand_dims,
    reshape,
    transpose,
)
from tilewright.lang.reductions import (
    all,
    any,
    argmax,
    argmin,
    associative_scan,
    cumsum,
    dot,
    dot2,
    dot4,
    max,
    min,
    pack2,
    prod,
    sum,
)
from tilewright.lang.tile import (
    Tile,
    as_dtype,
    as_tile,
    cast,
    constant,
    describe,
    fold,
    is_number,
    representable,
)

__all__ = [
    "PYTHON_NAMES",
    "Range",
    "Unrolled",
    "abs",
    "acos",
    "acosh",
    "all",
    "any",
    "arange",
    "argmax",
    "argmin",
    "asin",
    "asinh",
    "associative_scan",
    "atan",
    "atan2",
    "atanh",
    "bitcast",
    "broadcast_to",
    "cast",
    "ceil",
    "concatenate",
    "copysign",
    "cos",
    "cosh",
    "cumsum",
    "dot",
    "dot2",
    "dot4",
    "erf",
    "erfinv",
    "exp",
    "exp2",
    "expand_dims",
    "expm1",
    "floor",
    "floor_divide",
    "fma",
    "full",
    "hypot",
    "isfinite",
    "isinf",
    "isnan",
    "lgamma",
    "load",
    "log",
    "log1p",
    "log2",
    "log10",
    "logaddexp",
    "max",
    "maximum",
    "min",
    "minimum",
    "nextafter",
    "num_programs",
    "pack2",
    "popcount",
    "pow",
    "prefetch",
    "prod",
    "program_id",
    "range",
    "reciprocal",
    "remainder",
    "reshape",
    "rotl",
    "round",
    "rsqrt",
    "scratch",
    "sigmoid",
    "sign",
    "signbit",
    "sin",
    "sinh",
    "sqrt",
    "square",
    "sum",
    "tan",
    "tanh",
    "transpose",
    "trunc",
    "unroll",
    "where",
    "zeros",
]

# --- the program instance ------------------------------------------------------------------------


@builtin
def program_id(axis: int) -> Tile:
    """This instance's position on grid axis 0, 1 or 2; an i64 scalar."""
    return current().emit("program_id", (), (TileType(i64),), axis=_grid_axis(axis))[0]


@builtin
def num_programs(axis: int) -> Tile:
    """The grid's size on axis 0, 1 or 2; an i64 scalar."""
    return current().emit("num_programs", (), (TileType(i64),), axis=_grid_axis(axis))[0]


def _grid_axis(axis: Any) -> int:
    if isinstance(axis, (int, np.integer)) and axis in (0, 1, 2):
        return int(axis)
    raise KernelError(f"a grid has the axes 0, 1 and 2, got {describe(axis)}")


class Range:
    """What ``range(...)`` gives inside a kernel: a loop at run time over i64 scalars."""

    def __init__(self, start: Any, stop: Any, step: Any) -> None:
        self.start, self.stop, self.step = start, stop, step

    def __iter__(self) -> Iterator[Tile]:
        return current().steps(self.start, self.stop, self.step)

    def __len__(self) -> int:
        return len(self.constant())

    def constant(self) -> python.range:
        """The Python range, when every bound is known at compile time."""
        bounds = (self.start, self.stop, self.step)
        if python.any(isinstance(b, Tile) for b in bounds):
            raise KernelError("unroll wants a range whose bounds are known at compile time")
        return python.range(*bounds)


class Unrolled:
    """What ``unroll(...)`` gives: the body is repeated at compile time."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


@builtin
def range(*bounds: Any) -> Any:
    """``range(stop)``, ``range(start, stop)`` or ``range(start, stop, step)``: a runtime loop.

    Bounds are integers or integer scalars. A runtime step of zero or less runs no iteration.
    Outside of kernels this is Python's ``range``.
    """
    if not active():
        return python.range(*bounds)
    if not 1 <= len(bounds) <= 3:
        raise KernelError(f"range wants one to three arguments, got {len(bounds)}")
    for bound in bounds:
        if isinstance(bound, Tile):
            if bound.shape or not bound.dtype.is_integer:
                raise KernelError(f"range wants integer scalars, got {describe(bound)}")
        elif isinstance(bound, bool) or not isinstance(bound, (int, np.integer)):
            raise KernelError(f"range wants integers, got {describe(bound)}")
    start, stop = (0, bounds[0]) if len(bounds) == 1 else bounds[:2]
    step = bounds[2] if len(bounds) == 3 else 1
    if not isinstance(step, Tile) and step < 1:
        raise KernelError(f"range wants a positive step, got {step}")
    return Range(start, stop, step)


@builtin
def unroll(*bounds: Any) -> Unrolled:
    """``for i in unroll(...)``: repeats the body at compile time.

    ``bounds`` are those of ``range`` as compile-time integers, or one range, tuple or list; then
    ``i`` is a Python int (or the item), good for shapes, slices and further compile-time choices.
    """
    if len(bounds) == 1 and not is_number(bounds[0]) and not isinstance(bounds[0], Tile):
        items = bounds[0]
        if isinstance(items, Range):
            items = items.constant()
        try:
            return Unrolled(tuple(items))
        except TypeError:
            raise KernelError(f"unroll cannot iterate {describe(items)}") from None
    for bound in bounds:
        if isinstance(bound, bool) or not isinstance(bound, (int, np.integer)):
            raise KernelError(
                f"unroll wants integers known at compile time, got {describe(bound)}: "
                "use range(...) for a runtime loop, or make the bound a Const parameter"
            )
    return Unrolled(fold(python.range, *bounds))


# --- making tiles --------------------------------------------------------------------------------


@builtin
def full(shape: Any, value: Any, dtype: Any = f32) -> Tile:
    """A tile of ``shape`` whose every element is ``value`` (a number or a scalar)."""
    sizes, target = as_shape(shape), as_dtype(dtype)
    if isinstance(value, Tile):
        return broadcast_to(cast(value, target), sizes)
    return constant(value, target, sizes)


@builtin
def zeros(shape: Any, dtype: Any = f32) -> Tile:
    """A tile of zeros."""
    return constant(0, as_dtype(dtype), as_shape(shape))


@builtin
def arange(*bounds: Any) -> Tile:
    """``arange(stop)`` or ``arange(start, stop)``: an i64 tile of consecutive integers."""
    for bound in bounds:
        if isinstance(bound, bool) or not isinstance(bound, (int, np.integer)):
            raise KernelError(
                f"arange wants integers known at compile time, got {describe(bound)}: "
                "add a runtime start afterwards, start + arange(N)"
            )
    if len(bounds) not in (1, 2):
        raise KernelError(f"arange wants one or two arguments, got {len(bounds)}")
    start, stop = (0, bounds[0]) if len(bounds) == 1 else bounds
    if stop <= start:
        raise KernelError(f"arange({start}, {stop}) is empty: a tile has at least one element")
    result = TileType(i64, (int(stop - start),))
    return current().emit("arange", (), (result,), start=int(start), stop=int(stop))[0]


@builtin
def scratch(shape: Any, dtype: Any = f32) -> Array:
    """Memory private to this program instance, to be stored and then loaded with any windows.

    Its contents are undefined until stored (the interpreter fills it with NaN or 0x7f bytes).
    """
    return current().scratch(ArrayType.dense(as_dtype(dtype), as_shape(shape)))


@builtin
def load(window: Tile, fill: Any = 0) -> Tile:
    """``load(x[row, j : j + BLOCK], fill=-inf)``: a window with ``fill`` outside the array.

    The subscript must be written in place: plain ``x[...]`` has already read with zero.
    """
    if not isinstance(window, Tile) or window.origin is None:
        raise KernelError(
            "load wants a subscript of an array written in place, load(x[i : i + N], fill=...)"
        )
    value = as_tile(fill, window.dtype) if isinstance(fill, Tile) else fill
    if isinstance(value, Tile) or not is_number(value):
        raise KernelError(f"fill must be a compile-time number, got {describe(fill)}")
    if isinstance(value, float) and not window.dtype.is_float:
        raise KernelError(f"fill {value!r} is not a value of {window.dtype}")
    return current().reload(window, representable(value, window.dtype))


@builtin
def prefetch(window: Tile, write: bool = False, level: int = 1) -> None:
    """``prefetch(x[row, j : j + BLOCK])``: memory that will be read soon (or written) comes closer.

    ``level`` is the cache it should come to, 1 to 3. A hint: no value depends on it, and the window
    may lie outside its array. The subscript must be written in place.
    """
    if not isinstance(window, Tile) or window.origin is None:
        raise KernelError("prefetch wants a subscript of an array, prefetch(x[i : i + N])")
    if level not in (1, 2, 3):
        raise KernelError(f"prefetch wants level 1, 2 or 3, got {describe(level)}")
    current().prefetch(window, bool(write), int(level))


PYTHON_NAMES: Final[dict[str, Any]] = {
    "sum": sum,
    "max": max,
    "min": min,
    "abs": abs,
    "round": round,
    "pow": pow,
    "any": any,
    "all": all,
    "range": range,
}
"""Python's own names and what they mean inside a kernel."""

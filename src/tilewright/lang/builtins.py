"""The names a kernel uses. Each is an ordinary function with NumPy semantics.

Tiles are values: every function returns a new one. Python numbers are weak and adopt the dtype of
the tile beside them. In a kernel the plain Python names ``sum max min abs round pow range any all``
mean the functions of this module.
"""

from __future__ import annotations

import builtins as python
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import numpy as np

from tilewright.dtypes import DType, boolean, f32, i32, i64, u32
from tilewright.errors import KernelError
from tilewright.lang.array import Array
from tilewright.lang.engine import current
from tilewright.lang.ir import ArrayType, TileType
from tilewright.lang.tile import Number as Number
from tilewright.lang.tile import (
    Tile,
    as_dtype,
    as_shape,
    as_tile,
    binary,
    broadcast,
    cast,
    common_dtype,
    compare,
    constant,
    describe,
    expand_dims,
    float_unary,
    fold,
    is_number,
    normalise_axis,
    power,
    reshape,
    ternary,
    transpose,
    unary,
)

__all__ = [
    "PYTHON_NAMES",
    "Range",
    "Unrolled",
    "abs",
    "all",
    "any",
    "arange",
    "argmax",
    "argmin",
    "associative_scan",
    "bitcast",
    "broadcast_to",
    "cast",
    "ceil",
    "concatenate",
    "cos",
    "cumsum",
    "dot",
    "dot4",
    "erf",
    "exp",
    "exp2",
    "expand_dims",
    "floor",
    "fma",
    "full",
    "isnan",
    "load",
    "log",
    "log2",
    "max",
    "maximum",
    "min",
    "minimum",
    "num_programs",
    "popcount",
    "pow",
    "prod",
    "program_id",
    "range",
    "reshape",
    "round",
    "rsqrt",
    "scratch",
    "sigmoid",
    "sin",
    "sqrt",
    "sum",
    "tanh",
    "transpose",
    "trunc",
    "unroll",
    "where",
    "zeros",
]

_F = TypeVar("_F", bound=Callable[..., Any])


def builtin(fn: _F) -> _F:
    """Mark ``fn`` as part of the kernel language: the parser calls it instead of inlining it."""
    fn.__tile_builtin__ = True  # type: ignore[attr-defined]
    return fn


for _fn in (cast, expand_dims, reshape, transpose):
    builtin(_fn)


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
def range(*bounds: Any) -> Range:
    """``range(stop)``, ``range(start, stop)`` or ``range(start, stop, step)``: a runtime loop.

    Bounds are integers or integer scalars. A step of zero or less runs no iteration.
    """
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
    return current().reload(window, value)


# --- elementwise ---------------------------------------------------------------------------------


@builtin
def fma(x: Any, y: Any, z: Any) -> Tile:
    """``x * y + z`` rounded once; integers wrap."""
    return ternary("fma", x, y, z)


@builtin
def where(condition: Any, x: Any, y: Any) -> Tile:
    """``x`` where ``condition`` is true, else ``y``, element by element; both are evaluated."""
    c = as_tile(condition)
    if c.dtype is not boolean:
        c = compare("ne", c, 0)
    for value in (x, y):
        if not isinstance(value, Tile) and not is_number(value):
            raise KernelError(f"where wants tiles and numbers, got {describe(value)}")
    dtype = common_dtype((x, y))
    a, b = as_tile(x, dtype), as_tile(y, dtype)
    return current().emit("where", (c, a, b), (TileType(dtype, broadcast("where", c, a, b)),))[0]


@builtin
def minimum(x: Any, y: Any) -> Any:
    """The smaller of two, element by element; NaN wins."""
    if is_number(x) and is_number(y):
        return python.min(x, y)
    return binary("min", x, y)


@builtin
def maximum(x: Any, y: Any) -> Any:
    """The larger of two, element by element; NaN wins."""
    if is_number(x) and is_number(y):
        return python.max(x, y)
    return binary("max", x, y)


@builtin
def pow(x: Any, y: Any) -> Any:
    """``x ** y``. Integer tiles take only constant, non-negative powers."""
    return power(x, y)


@builtin
def abs(x: Any) -> Any:
    """The absolute value; the least integer stays as it is."""
    if is_number(x):
        return python.abs(x)
    return unary("abs", cast(x, i64) if isinstance(x, Tile) and x.dtype is boolean else x)


@builtin
def exp(x: Any) -> Tile:
    """e to the power ``x``."""
    return float_unary("exp", x)


@builtin
def exp2(x: Any) -> Tile:
    """2 to the power ``x``."""
    return float_unary("exp2", x)


@builtin
def log(x: Any) -> Tile:
    """The natural logarithm."""
    return float_unary("log", x)


@builtin
def log2(x: Any) -> Tile:
    """The logarithm to base 2."""
    return float_unary("log2", x)


@builtin
def sin(x: Any) -> Tile:
    """The sine of ``x`` radians."""
    return float_unary("sin", x)


@builtin
def cos(x: Any) -> Tile:
    """The cosine of ``x`` radians."""
    return float_unary("cos", x)


@builtin
def tanh(x: Any) -> Tile:
    """The hyperbolic tangent."""
    return float_unary("tanh", x)


@builtin
def erf(x: Any) -> Tile:
    """The error function, 2/sqrt(pi) times the integral of exp(-t*t) from 0 to ``x``."""
    return float_unary("erf", x)


@builtin
def sqrt(x: Any) -> Tile:
    """The square root."""
    return float_unary("sqrt", x)


@builtin
def rsqrt(x: Any) -> Tile:
    """1 / sqrt(x)."""
    return float_unary("rsqrt", x)


@builtin
def sigmoid(x: Any) -> Tile:
    """1 / (1 + exp(-x))."""
    return float_unary("sigmoid", x)


def _rounding(name: str, x: Any) -> Tile:
    tile = as_tile(x)
    return unary(name, tile) if tile.dtype.is_float else tile


@builtin
def floor(x: Any) -> Tile:
    """The largest integer not above ``x``, in ``x``'s dtype."""
    return _rounding("floor", x)


@builtin
def ceil(x: Any) -> Tile:
    """The smallest integer not below ``x``, in ``x``'s dtype."""
    return _rounding("ceil", x)


@builtin
def trunc(x: Any) -> Tile:
    """``x`` without its fraction, in ``x``'s dtype."""
    return _rounding("trunc", x)


@builtin
def round(x: Any) -> Any:
    """The nearest integer, ties to even, in ``x``'s dtype."""
    return python.round(x) if is_number(x) else _rounding("round", x)


@builtin
def isnan(x: Any) -> Tile:
    """Where ``x`` is not a number; a bool tile."""
    tile = as_tile(x)
    if not tile.dtype.is_float:
        return constant(False, boolean, tile.shape)
    return unary("isnan", tile, boolean)


@builtin
def popcount(x: Any) -> Tile:
    """The number of one bits, in ``x``'s integer dtype."""
    tile = as_tile(x)
    if not tile.dtype.is_integer:
        raise KernelError(f"popcount wants an integer, got {describe(tile)}")
    return unary("popcount", tile)


@builtin
def bitcast(x: Any, dtype: Any) -> Tile:
    """The bits of ``x`` as another dtype of the same width."""
    tile, target = as_tile(x), as_dtype(dtype)
    if tile.dtype is target:
        return tile
    if tile.dtype.bits != target.bits or boolean in (tile.dtype, target):
        raise KernelError(
            f"bitcast keeps the width: {tile.dtype} has {tile.dtype.bits} bits, "
            f"{target} has {target.bits}"
        )
    return current().emit("bitcast", (tile,), (TileType(target, tile.shape),))[0]


# --- shapes --------------------------------------------------------------------------------------


@builtin
def broadcast_to(x: Any, shape: Any) -> Tile:
    """``x`` repeated along new axes and axes of size 1 until it has ``shape``."""
    tile, sizes = as_tile(x), as_shape(shape)
    if tile.shape == sizes:
        return tile
    if broadcast("broadcast_to", tile, Tile(None, tile.dtype, sizes)) != sizes:
        raise KernelError(f"broadcast_to: a tile of shape {tile.shape} does not fill {sizes}")
    return current().emit("broadcast", (tile,), (TileType(tile.dtype, sizes),))[0]


@builtin
def concatenate(tiles: Sequence[Any], axis: int = 0) -> Tile:
    """``tiles`` one after the other along ``axis``; the other sizes are equal."""
    if not isinstance(tiles, (tuple, list)) or not tiles:
        raise KernelError(f"concatenate wants a tuple of tiles, got {describe(tiles)}")
    dtype = common_dtype(tiles)
    parts = [as_tile(t, dtype) for t in tiles]
    if not parts[0].shape:
        raise KernelError("concatenate wants tiles, got scalars: give them an axis, x.reshape(1)")
    at = normalise_axis(axis, parts[0].ndim, "concatenate")
    rest = {p.shape[:at] + p.shape[at + 1 :] for p in parts}
    if len(rest) > 1 or len({p.ndim for p in parts}) > 1:
        shapes = " and ".join(str(p.shape) for p in parts)
        raise KernelError(f"concatenate: shapes {shapes} differ in another axis than {at}")
    shape = list(parts[0].shape)
    shape[at] = python.sum(p.shape[at] for p in parts)
    return current().emit("concat", parts, (TileType(dtype, tuple(shape)),), axis=at)[0]


# --- reductions and scans ------------------------------------------------------------------------


def _accumulator(dtype: DType) -> DType:
    """The dtype that sums and products are computed in."""
    if dtype is boolean or (dtype.is_integer and dtype.bits < 32):
        return u32 if dtype.kind == "u" else i32
    return f32 if dtype.is_float and dtype.bits < 32 else dtype


def _reduce(fn: str, x: Any, axis: Any, keepdims: bool, result: DType | None = None) -> Tile:
    tile = as_tile(x)
    if isinstance(axis, tuple):
        axes = sorted((normalise_axis(a, tile.ndim, fn) for a in axis), reverse=True)
        for a in axes:
            tile = _reduce(fn, tile, a, keepdims, result)
        return tile
    if not tile.shape and axis is None and fn not in ("argmax", "argmin"):
        return tile
    if not tile.shape:
        raise KernelError(f"{fn}: a scalar has no axis to reduce")
    at = None if axis is None else normalise_axis(axis, tile.ndim, fn)
    shape = () if at is None else tile.shape[:at] + tile.shape[at + 1 :]
    dtype = tile.dtype if result is None else result
    out = current().emit("reduce", (tile,), (TileType(dtype, shape),), fn=fn, axis=at)[0]
    if keepdims:
        kept = (1,) * tile.ndim if at is None else tile.shape[:at] + (1,) + tile.shape[at + 1 :]
        out = reshape(out, kept)
    return out


def _summed(fn: str, x: Any, axis: Any, keepdims: bool) -> Tile:
    tile = as_tile(x)
    wide = _accumulator(tile.dtype)
    out = _reduce(fn, cast(tile, wide), axis, keepdims)
    return cast(out, tile.dtype) if tile.dtype.is_float else out


@builtin
def sum(x: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    """The sum over ``axis`` (all axes when ``None``). f16 and bf16 are added in f32 and rounded
    once; bools and integers under 32 bits give i32 or u32."""
    if not isinstance(x, Tile):
        return _python("sum", x)
    return _summed("sum", x, axis, keepdims)


@builtin
def prod(x: Any, axis: Any = None, *, keepdims: bool = False) -> Tile:
    """The product over ``axis``, in the dtypes of :func:`sum`."""
    return _summed("prod", x, axis, keepdims)


def _python(name: str, *args: Any) -> Any:
    """Python's own function, for host values that meet a shadowed name."""
    return fold(getattr(python, name), *args)


def _extreme(fn: str, args: tuple[Any, ...], axis: Any, keepdims: bool) -> Any:
    if len(args) == 1 and isinstance(args[0], Tile):
        return _reduce(fn, args[0], axis, keepdims)
    if not python.any(isinstance(a, Tile) for a in args):
        return _python(fn, *args)
    if len(args) == 2 and isinstance(args[0], Tile) and args[0].shape and type(args[1]) is int:
        raise KernelError(
            f"{fn}(tile, {args[1]}) can be read in two ways: "
            f"write {fn}(x, axis={args[1]}) or {fn}imum(x, {args[1]})"
        )
    out = args[0]
    for other in args[1:]:
        out = (minimum if fn == "min" else maximum)(out, other)
    return out


@builtin
def max(*args: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """``max(x, axis=...)``: the largest element (NaN wins). ``max(x, y)``: :func:`maximum`."""
    return _extreme("max", args, axis, keepdims)


@builtin
def min(*args: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """``min(x, axis=...)``: the smallest element (NaN wins). ``min(x, y)``: :func:`minimum`."""
    return _extreme("min", args, axis, keepdims)


def _as_bool(x: Tile) -> Tile:
    return x if x.dtype is boolean else compare("ne", x, 0)


@builtin
def any(x: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    """Whether any element is true (not zero)."""
    return _reduce("any", _as_bool(x), axis, keepdims) if isinstance(x, Tile) else _python("any", x)


@builtin
def all(x: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    """Whether all elements are true (not zero)."""
    return _reduce("all", _as_bool(x), axis, keepdims) if isinstance(x, Tile) else _python("all", x)


@builtin
def argmax(x: Any, axis: Any = None, *, keepdims: bool = False) -> Tile:
    """The position of the first largest element (of the first NaN, if any); i64."""
    return _reduce("argmax", x, axis, keepdims, i64)


@builtin
def argmin(x: Any, axis: Any = None, *, keepdims: bool = False) -> Tile:
    """The position of the first smallest element (of the first NaN, if any); i64."""
    return _reduce("argmin", x, axis, keepdims, i64)


@builtin
def cumsum(x: Any, axis: int = 0, *, reverse: bool = False) -> Tile:
    """The running sum along ``axis`` (from its end when ``reverse``), in the dtypes of sum."""
    tile = as_tile(x)
    if not tile.shape:
        raise KernelError("cumsum: a scalar has no axis")
    at = normalise_axis(axis, tile.ndim, "cumsum")
    wide = cast(tile, _accumulator(tile.dtype))
    attrs = {"fn": "sum", "axis": at, "reverse": bool(reverse)}
    out = current().emit("scan", (wide,), (wide.type,), **attrs)[0]
    return cast(out, tile.dtype) if tile.dtype.is_float else out


@builtin
def associative_scan(
    fn: Callable[..., Any], tiles: Any, axis: int = 0, *, reverse: bool = False
) -> Any:
    """Inclusive scan of ``tiles`` (one tile or a tuple of equal shapes) along ``axis``.

    ``fn(a..., b...)`` combines two elements (scalars) and must be associative; ``a`` is the
    earlier one. Targets may group the elements as they like.
    """
    single = not isinstance(tiles, (tuple, list))
    parts = [as_tile(t) for t in ((tiles,) if single else tiles)]
    if not parts or len({p.shape for p in parts}) != 1:
        shapes = " and ".join(str(p.shape) for p in parts)
        raise KernelError(f"associative_scan wants tiles of one shape, got {shapes or 'none'}")
    at = normalise_axis(axis, parts[0].ndim, "associative_scan")
    out = current().scan_with(fn, parts, at, bool(reverse))
    return out[0] if single else out


# --- products ------------------------------------------------------------------------------------


@builtin
def dot(a: Any, b: Any, acc: Any = None) -> Tile:
    """``acc + a @ b``: (m, k) x (k, n) + (m, n), with one fused multiply-add per k in ascending
    order, in the dtype of ``acc`` (default: zeros of f32, or i32 for integers)."""
    x, y = as_tile(a), as_tile(b)
    for tile in (x, y):
        if tile.ndim != 2:
            raise KernelError(
                f"dot wants tiles with two axes, got {describe(tile)}: add one with [None, :]"
            )
    if x.shape[1] != y.shape[0]:
        raise KernelError(f"dot: shapes {x.shape} and {y.shape}, the inner sizes differ")
    floats = x.dtype.is_float or y.dtype.is_float
    shape = (x.shape[0], y.shape[1])
    if acc is None:
        dtype = common_dtype((x, y))
        if dtype is boolean or dtype.bits < 32:
            dtype = f32 if floats else i32
        total = constant(0, dtype, shape)
    else:
        total = as_tile(acc)
        if total.shape != shape:
            total = broadcast_to(total, shape)
        if floats and not total.dtype.is_float:
            raise KernelError(f"dot of floats cannot add to {describe(total)}")
    return current().emit("dot", (x, y, total), (total.type,))[0]


@builtin
def dot4(acc: Any, a: Any, b: Any) -> Tile:
    """``acc`` plus the four products of the bytes packed in each element of ``a`` and ``b``.

    ``acc`` is i32 and wraps. ``a`` and ``b`` are i32 (signed bytes) or u32 (unsigned bytes); the
    three broadcast against each other.
    """
    total, x, y = as_tile(acc), as_tile(a), as_tile(b)
    if total.dtype is not i32 or x.dtype not in (i32, u32) or y.dtype not in (i32, u32):
        raise KernelError(
            "dot4 wants (i32, i32|u32, i32|u32), got "
            f"{describe(total)}, {describe(x)}, {describe(y)}"
        )
    shape = broadcast("dot4", total, x, y)
    return current().emit("dot4", (total, x, y), (TileType(i32, shape),))[0]


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

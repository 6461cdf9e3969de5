"""Reductions, scans and products of tiles."""

from __future__ import annotations

import builtins as python
from collections.abc import Callable
from typing import Any

from tilewright.dtypes import DType, boolean, f32, i32, i64, u32
from tilewright.errors import KernelError
from tilewright.lang.elementwise import maximum, minimum
from tilewright.lang.engine import builtin, current
from tilewright.lang.ir import TileType
from tilewright.lang.movement import broadcast_to, normalise_axis, reshape
from tilewright.lang.tile import (
    Tile,
    as_tile,
    broadcast,
    cast,
    common_dtype,
    compare,
    constant,
    describe,
    fold,
)

__all__ = [
    "all", "any", "argmax", "argmin", "associative_scan", "cumsum", "dot", "dot2", "dot4", "max",
    "min", "pack2", "prod", "sum",
]  # fmt: skip


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
        return fold(python.sum, x, 0 if axis is None else axis)
    return _summed("sum", x, axis, keepdims)


@builtin
def prod(x: Any, axis: Any = None, *, keepdims: bool = False) -> Tile:
    """The product over ``axis``, in the dtypes of :func:`sum`."""
    return _summed("prod", x, axis, keepdims)


def _extreme(
    fn: str, args: tuple[Any, ...], axis: Any, keepdims: bool, host: dict[str, Any]
) -> Any:
    if len(args) == 1 and isinstance(args[0], Tile):
        return _reduce(fn, args[0], axis, keepdims)
    if not python.any(isinstance(a, Tile) for a in args):
        return fold(lambda: getattr(python, fn)(*args, **host))
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
def max(*args: Any, axis: Any = None, keepdims: bool = False, **host: Any) -> Any:
    """``max(x, axis=...)``: the largest element (NaN wins). ``max(x, y)``: :func:`maximum`."""
    return _extreme("max", args, axis, keepdims, host)


@builtin
def min(*args: Any, axis: Any = None, keepdims: bool = False, **host: Any) -> Any:
    """``min(x, axis=...)``: the smallest element (NaN wins). ``min(x, y)``: :func:`minimum`."""
    return _extreme("min", args, axis, keepdims, host)


def _as_bool(x: Tile) -> Tile:
    return x if x.dtype is boolean else compare("ne", x, 0)


@builtin
def any(x: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    """Whether any element is true (not zero)."""
    if not isinstance(x, Tile):
        return python.any(x)
    return _reduce("any", _as_bool(x), axis, keepdims)


@builtin
def all(x: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    """Whether all elements are true (not zero)."""
    if not isinstance(x, Tile):
        return python.all(x)
    return _reduce("all", _as_bool(x), axis, keepdims)


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
def dot2(acc: Any, a: Any, b: Any) -> Tile:
    """``acc`` plus the two products of the bf16 pairs packed in each element of ``a`` and ``b``.

    ``acc`` is f32; ``a`` and ``b`` are u32, the first of a pair in the low half; the three
    broadcast against each other. Rounding: see the numerics of :mod:`tilewright.lang.ir`.
    """
    total, x, y = as_tile(acc), as_tile(a), as_tile(b)
    if total.dtype is not f32 or x.dtype is not u32 or y.dtype is not u32:
        raise KernelError(
            f"dot2 wants (f32, u32, u32), got {describe(total)}, {describe(x)}, {describe(y)}"
        )
    shape = broadcast("dot2", total, x, y)
    return current().emit("dot2", (total, x, y), (TileType(f32, shape),))[0]


@builtin
def pack2(first: Any, second: Any) -> Tile:
    """Two f32 tiles as bf16 pairs, what ``dot2`` takes: u32 with ``first`` in the low half.

    Rounded to nearest even; what is below the normal range of f32 becomes zero.
    """
    x, y = as_tile(first), as_tile(second)
    if x.dtype is not f32 or y.dtype is not f32:
        raise KernelError(f"pack2 wants (f32, f32), got {describe(x)}, {describe(y)}")
    shape = broadcast("pack2", x, y)
    return current().emit("pack2", (x, y), (TileType(u32, shape),))[0]


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

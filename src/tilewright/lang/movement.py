"""Tiles under other shapes: reshape, transpose, static slices, joins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.errors import KernelError
from tilewright.lang.engine import builtin, current
from tilewright.lang.ir import TileType
from tilewright.lang.tile import Tile, as_tile, broadcast, common_dtype, describe

__all__ = [
    "as_shape",
    "broadcast_to",
    "concatenate",
    "expand_dims",
    "index_tile",
    "normalise_axis",
    "reshape",
    "transpose",
]


def as_shape(shape: Any) -> tuple[int, ...]:
    """A shape from an int or a sequence of positive ints."""
    sizes = (shape,) if isinstance(shape, (int, np.integer, Tile)) else tuple(shape)
    for n in sizes:
        if isinstance(n, Tile):
            raise KernelError(
                "a tile's shape must be known at compile time: make the size a Const parameter"
            )
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
            raise KernelError(f"a tile's shape is made of positive integers, got {sizes}")
    return tuple(int(n) for n in sizes)


def normalise_axis(axis: Any, ndim: int, what: str) -> int:
    """``axis`` counted from the front."""
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise KernelError(f"{what}: the axis must be a compile-time integer, got {describe(axis)}")
    if not -ndim <= axis < ndim:
        raise KernelError(f"{what}: axis {axis} is out of range for a tile with {ndim} axes")
    return int(axis) % ndim


@builtin
def transpose(x: Any, perm: Sequence[int]) -> Tile:
    """The axes of ``x`` in the order ``perm``."""
    tile = as_tile(x)
    order = tuple(normalise_axis(p, tile.ndim, "transpose") for p in perm)
    if sorted(order) != list(range(tile.ndim)):
        raise KernelError(f"transpose: {tuple(perm)} is not an order of {tile.ndim} axes")
    if order == tuple(range(tile.ndim)):
        return tile
    result = TileType(tile.dtype, tuple(tile.shape[p] for p in order))
    return current().emit("transpose", (tile,), (result,), perm=order)[0]


@builtin
def reshape(x: Any, shape: Any) -> Tile:
    """The elements of ``x`` in row-major order under another shape; one size may be -1."""
    tile = as_tile(x)
    sizes = [shape] if isinstance(shape, (int, np.integer)) else list(shape)
    count = math.prod(tile.shape)
    if sizes.count(-1) == 1:
        rest = math.prod(n for n in sizes if n != -1)
        if rest > 0 and count % rest == 0:
            sizes[sizes.index(-1)] = count // rest
    wanted = as_shape(sizes)
    if math.prod(wanted) != count:
        raise KernelError(f"reshape: {tile.shape} has {count} elements, {wanted} has another count")
    if wanted == tile.shape:
        return tile
    return current().emit("reshape", (tile,), (TileType(tile.dtype, wanted),))[0]


@builtin
def expand_dims(x: Any, axis: int) -> Tile:
    """``x`` with a new axis of size 1 at ``axis``."""
    tile = as_tile(x)
    at = normalise_axis(axis, tile.ndim + 1, "expand_dims")
    result = TileType(tile.dtype, tile.shape[:at] + (1,) + tile.shape[at:])
    return current().emit("expand_dims", (tile,), (result,), axis=at)[0]


def index_tile(x: Tile, key: Any) -> Tile:
    """``x[key]`` with compile-time keys: ints, slices, ``None`` and ``...``, as in NumPy."""
    keys = list(key) if isinstance(key, tuple) else [key]
    consumed = sum(1 for k in keys if k is not None and k is not Ellipsis)
    if consumed > x.ndim:
        raise KernelError(f"{x.type} has {x.ndim} axes, {consumed} are indexed")
    at = next((i for i, k in enumerate(keys) if k is Ellipsis), len(keys))
    fill = [slice(None)] * (x.ndim - consumed)
    keys[at : at + 1] = fill
    starts: list[int] = []
    sizes: list[int] = []
    strides: list[int] = []
    for k, n in zip((k for k in keys if k is not None), x.shape):
        start, size, step = _static_key(k, n)
        starts.append(start)
        sizes.append(size)
        strides.append(step)
    out = x
    if any(step > 1 for step in strides):
        out = _strided(out, starts, sizes, strides)
    elif tuple(sizes) != x.shape:
        result = TileType(x.dtype, tuple(sizes))
        out = current().emit("slice", (out,), (result,), starts=tuple(starts))[0]
    if any(k is None or not isinstance(k, slice) for k in keys):
        kept = iter(sizes)
        shape: list[int] = []
        for k in keys:
            if k is None:
                shape.append(1)
            elif isinstance(k, slice):
                shape.append(next(kept))
            else:
                next(kept)
        return _change_rank(out, keys, tuple(shape))
    return out


def _change_rank(x: Tile, keys: list[Any], shape: tuple[int, ...]) -> Tile:
    if all(k is None or isinstance(k, slice) for k in keys):  # only new axes
        for axis, k in enumerate(keys):
            if k is None:
                x = expand_dims(x, axis)
        return x
    return reshape(x, shape) if shape else _to_scalar(x)


def _to_scalar(x: Tile) -> Tile:
    if not x.shape:
        return x
    return current().emit("reshape", (x,), (TileType(x.dtype, ()),))[0]


def _static_key(key: Any, n: int) -> tuple[int, int, int]:
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        if not -n <= key < n:
            raise KernelError(f"index {key} is outside a tile axis of {n} elements")
        return int(key) % n, 1, 1
    if isinstance(key, slice) and all(
        isinstance(v, (int, type(None))) for v in (key.start, key.stop, key.step)
    ):
        start, stop, step = key.indices(n)
        size = len(range(start, stop, step))
        if step < 1 or size < 1:
            raise KernelError(
                f"the slice {key.start}:{key.stop}:{key.step} of a tile axis of {n} elements "
                "must take at least one element, forwards"
            )
        return start, size, step
    raise KernelError(
        "a tile is indexed by compile-time integers, slices and None, got "
        f"{describe(key)}: for runtime positions use where(...), or store to scratch and load"
    )


def _strided(x: Tile, starts: list[int], sizes: list[int], strides: list[int]) -> Tile:
    """A strided slice as reshape and slice, axis by axis (pads nothing: whole strides only)."""
    for axis, (start, size, step) in enumerate(zip(starts, sizes, strides)):
        if start == 0 and size == x.shape[axis] and step == 1:
            continue
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        if step == 1 or size == 1:
            x = _slice_axis(x, axis, start, size)
            continue
        first = start if start + size * step <= x.shape[axis] else x.shape[axis] - size * step
        if first < 0:
            raise KernelError(
                f"a slice with step {step} of a tile axis of {x.shape[axis]} elements needs "
                f"{size * step} of them"
            )
        x = _slice_axis(x, axis, first, size * step)
        x = reshape(x, (*before, size, step, *after))
        x = _slice_axis(x, axis + 1, start - first, 1)
        x = reshape(x, (*before, size, *after))
    return x


def _slice_axis(x: Tile, axis: int, start: int, size: int) -> Tile:
    if size == x.shape[axis]:
        return x
    shape = x.shape[:axis] + (size,) + x.shape[axis + 1 :]
    starts = tuple(start if a == axis else 0 for a in range(x.ndim))
    return current().emit("slice", (x,), (TileType(x.dtype, shape),), starts=starts)[0]


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
    shape[at] = sum(p.shape[at] for p in parts)
    return current().emit("concat", parts, (TileType(dtype, tuple(shape)),), axis=at)[0]

"""Running a kernel as the plain Python function that it is, over NumPy.

Every op takes its value from :mod:`tilewright.lang.evaluate`, so ``print`` and ``breakpoint`` in a
kernel see real values: this is how kernels are debugged, and what other targets are tested
against. Loops are Python loops; expect thousands of ops per second, not millions.
"""

from __future__ import annotations

import builtins
import copy
import dataclasses
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, bf16, boolean, from_float32, i64, to_float32
from tilewright.errors import KernelError
from tilewright.lang.array import Array
from tilewright.lang.builtins import PYTHON_NAMES
from tilewright.lang.engine import activate
from tilewright.lang.evaluate import evaluate, full
from tilewright.lang.ir import ArrayType, At, Axis, Gather, TileType, Window
from tilewright.lang.tile import Tile, as_index, as_tile, describe

__all__ = ["Interpreter", "patched", "run"]

_FAR: Final = 1 << 62  # no array reaches this far: clipping starts here keeps sums inside i64


class Interpreter:
    """Computes ops with NumPy (:class:`tilewright.lang.engine.Engine`)."""

    def __init__(self, grid: tuple[int, int, int]) -> None:
        self.grid = grid
        self.program = (0, 0, 0)

    def emit(
        self,
        name: str,
        operands: Sequence[Tile | Array],
        results: Sequence[TileType],
        **attrs: Any,
    ) -> tuple[Tile, ...]:
        if name == "store":
            array, *index, value = operands
            store(array.data, array.dtype, attrs["axes"], [t.data for t in index], value.data)
            return ()
        result = results[0]
        if name == "load":
            array, *index = operands
            data = load(
                array.data, array.dtype, attrs["axes"], [t.data for t in index], attrs["fill"]
            )
        elif name == "dim":
            data = np.asarray(operands[0].data.shape[attrs["axis"]], np.int64)
        elif name == "program_id":
            data = np.asarray(self.program[attrs["axis"]], np.int64)
        elif name == "num_programs":
            data = np.asarray(self.grid[attrs["axis"]], np.int64)
        else:
            data = evaluate(
                name, [t.data for t in operands], [t.dtype for t in operands], result, attrs
            )
        return (Tile(data, result.dtype, result.shape),)

    def constant(self, value: bool | int | float, dtype: DType, shape: tuple[int, ...]) -> Tile:
        return Tile(full(value, dtype, shape), dtype, shape)

    def scratch(self, array: ArrayType) -> Array:
        shape = tuple(n or 0 for n in array.shape)
        memory = np.empty(shape, array.dtype.storage)
        if array.dtype is bf16:
            memory[...] = 0x7FFF  # a NaN
        elif array.dtype.is_float:
            memory[...] = np.nan
        elif array.dtype is boolean:
            memory[...] = True
        else:
            memory.view(np.uint8)[...] = 0x7F
        return Array(memory, array, "scratch")

    def scan_with(
        self, fn: Callable[..., Any], tiles: Sequence[Tile], axis: int, reverse: bool
    ) -> tuple[Tile, ...]:
        rest = tiles[0].shape[:axis] + tiles[0].shape[axis + 1 :]
        rows = [np.moveaxis(t.data, axis, 0) for t in tiles]
        outs = [np.array(r) for r in rows]
        order = range(len(rows[0]))
        previous: list[Tile] | None = None
        for i in reversed(order) if reverse else order:
            here = [Tile(r[i], t.dtype, rest) for r, t in zip(rows, tiles)]
            if previous is not None:
                found = fn(*previous, *here)
                values = list(found) if isinstance(found, (tuple, list)) else [found]
                here = [as_tile(v, t.dtype) for v, t in zip(values, tiles)]
            for out, tile in zip(outs, here):
                out[i] = tile.data
            previous = here
        return tuple(
            Tile(np.moveaxis(out, 0, axis), t.dtype, t.shape) for out, t in zip(outs, tiles)
        )

    def distance(self, lower: Any, upper: Any) -> int | None:
        ends = [x for x in (lower, upper) if isinstance(x, Tile)]
        length = int(as_index(upper).data) - int(as_index(lower).data)
        bits = min((t.dtype.bits for t in ends), default=64)
        if ends and length < 0:  # the end wrapped around: see Tracer._affine
            length %= 1 << bits
        return length

    def truth(self, tile: Tile) -> bool:
        return bool(tile.data)

    def steps(self, start: Any, stop: Any, step: Any) -> Iterator[Tile]:
        low, high, by = (int(as_index(b).data) for b in (start, stop, step))
        for i in range(low, high, by) if by > 0 else ():
            yield Tile(np.asarray(i, np.int64), i64, ())

    def reload(self, tile: Tile, fill: bool | int | float) -> Tile:
        if tile.origin is None:
            raise KernelError("load wants a subscript of an array")
        array, key = tile.origin
        from tilewright.lang.array import resolve

        axes, index = resolve(array, key)
        data = load(array.data, array.dtype, axes, [t.data for t in index], fill)
        return Tile(data, tile.dtype, tile.shape)

    def prefetch(self, tile: Tile, write: bool, level: int) -> None:
        """Values do not depend on it."""


# --- memory --------------------------------------------------------------------------------------


def _addresses(
    shape: tuple[int, ...], axes: Sequence[Axis], index: Sequence[np.ndarray]
) -> tuple[tuple[np.ndarray, ...], np.ndarray | bool]:
    """Per array axis the element numbers (broadcasting to the window), and which are inside."""
    gathered = [i for a, i in zip(axes, index) if isinstance(a, Gather)]
    common = np.broadcast_shapes(*(g.shape for g in gathered)) if gathered else ()
    ranks: list[int] = []  # the first result axis of each array axis
    rank, placed = 0, -1
    for axis in axes:
        if isinstance(axis, Gather):
            if placed < 0:
                placed = rank
                rank += len(common)
            ranks.append(placed)
        else:
            ranks.append(rank)
            rank += isinstance(axis, Window)
    places: list[np.ndarray] = []
    inside: np.ndarray | bool = True
    for axis, first, values, size in zip(axes, ranks, index, shape):
        if isinstance(axis, Window):
            start = max(-_FAR, min(_FAR, int(values)))
            at = start + axis.step * np.arange(axis.length, dtype=np.int64)
            at = at.reshape((-1,) + (1,) * (rank - first - 1))
        elif isinstance(axis, At):
            at = np.asarray(values, np.int64)
        else:
            at = np.asarray(values).astype(np.int64)
            at = at.reshape(at.shape + (1,) * (rank - first - len(common)))
        ok = (at >= 0) & (at < size)
        if not ok.all():
            inside = inside & ok
            at = np.where(ok, at, 0)
        places.append(at)
    return tuple(places), inside


def _plain(
    shape: tuple[int, ...], axes: Sequence[Axis], index: Sequence[np.ndarray]
) -> tuple[int | slice, ...] | None:
    """Addresses as ints and slices, when nothing is gathered and everything lies inside."""
    out: list[int | slice] = []
    for axis, values, size in zip(axes, index, shape):
        if isinstance(axis, Gather):
            return None
        start = int(values)
        last = start + (axis.length - 1) * axis.step if isinstance(axis, Window) else start
        if start < 0 or last >= size:
            return None
        out.append(slice(start, last + 1, axis.step) if isinstance(axis, Window) else start)
    return tuple(out)


def load(
    memory: np.ndarray,
    dtype: DType,
    axes: Sequence[Axis],
    index: Sequence[np.ndarray],
    fill: bool | int | float,
) -> np.ndarray:
    """The elements that ``axes`` and ``index`` name; ``fill`` where they lie outside."""
    plain = _plain(memory.shape, axes, index)
    if plain is not None:
        raw = np.array(memory[plain])
        return to_float32(raw) if dtype is bf16 else raw
    places, inside = _addresses(memory.shape, axes, index)
    if inside is True:
        raw = np.array(memory[places])
        return to_float32(raw) if dtype is bf16 else raw
    shape = np.broadcast_shapes(*(p.shape for p in places))
    outside = full(fill, dtype, shape)
    if not memory.size or not np.any(inside):
        return outside
    raw = memory[places]
    return np.asarray(np.where(inside, to_float32(raw) if dtype is bf16 else raw, outside))


def store(
    memory: np.ndarray,
    dtype: DType,
    axes: Sequence[Axis],
    index: Sequence[np.ndarray],
    value: np.ndarray,
) -> None:
    """Write ``value`` where it lies inside, in row-major order: the last write to a place wins."""
    if not memory.size:
        return
    plain = _plain(memory.shape, axes, index)
    if plain is not None:
        memory[plain] = from_float32(value) if dtype is bf16 else value
        return
    places, inside = _addresses(memory.shape, axes, index)
    shape = np.broadcast_shapes(*(p.shape for p in places))
    raw = np.broadcast_to(from_float32(value) if dtype is bf16 else value, shape)
    flat = [np.broadcast_to(p, shape).reshape(-1) for p in places]
    values = raw.reshape(-1)
    if inside is not True:
        keep = np.broadcast_to(inside, shape).reshape(-1)
        flat = [f[keep] for f in flat]
        values = values[keep]
    memory[tuple(flat)] = values


# --- Python functions with the kernel language's names -------------------------------------------


class _ModuleView:
    """A module whose functions are patched when they are taken out of it."""

    def __init__(self, module: types.ModuleType, memo: dict[int, Any]) -> None:
        self.__dict__["_module"] = module
        self.__dict__["_memo"] = memo

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return value if hasattr(value, "__tile_builtin__") else patched(value, self._memo)


def patched(value: Any, memo: dict[int, Any]) -> Any:
    """``value`` with every Python function in it seeing ``sum``, ``range``, ... of the language."""
    key = id(value)
    if key in memo:
        return memo[key][0]
    out = value
    inner = getattr(value, "__kernel_function__", value)
    if isinstance(inner, types.FunctionType):
        if not hasattr(inner, "__tile_builtin__"):
            return _patched_function(inner, memo, key)
        return inner
    if isinstance(value, types.BuiltinFunctionType | type):
        out = _PYTHON.get(value, value)
    elif isinstance(value, types.ModuleType):
        name = value.__name__
        plain = name in ("math", "builtins") or name.startswith(("tilewright.lang", "numpy"))
        out = value if plain else _ModuleView(value, memo)
    elif isinstance(value, types.MethodType) and isinstance(value.__func__, types.FunctionType):
        if not isinstance(value.__self__, (Tile, Array)):
            out = types.MethodType(patched(value.__func__, memo), patched(value.__self__, memo))
    elif isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        out = type(value)(patched(v, memo) for v in value)
    elif type(value) is dict:
        out = {k: patched(v, memo) for k, v in value.items()}
    elif dataclasses.is_dataclass(value) and not isinstance(value, (type, DType, ArrayType)):
        out = copy.copy(value)
        for field in dataclasses.fields(value):
            old = getattr(value, field.name)
            new = patched(old, memo)
            if new is not old:
                object.__setattr__(out, field.name, new)
    memo[key] = (out, value)  # keeps value alive, so that its id stays its own
    return out


_PYTHON: Final = {vars(builtins)[name]: fn for name, fn in PYTHON_NAMES.items()}


def _patched_function(fn: types.FunctionType, memo: dict[int, Any], key: int) -> Any:
    names = {"__builtins__": {**vars(builtins), **PYTHON_NAMES}, "__name__": fn.__module__}
    cells = [types.CellType() for _ in fn.__closure__ or ()]
    out = types.FunctionType(fn.__code__, names, fn.__name__, fn.__defaults__, tuple(cells))
    out.__kwdefaults__ = fn.__kwdefaults__
    memo[key] = (out, fn)
    for name in _names(fn.__code__):
        if name in fn.__globals__ and name != "__builtins__":
            names[name] = patched(fn.__globals__[name], memo)
    for cell, old in zip(cells, fn.__closure__ or ()):
        try:
            cell.cell_contents = patched(old.cell_contents, memo)
        except ValueError:  # an empty cell
            continue
    if fn.__defaults__:
        out.__defaults__ = tuple(patched(v, memo) for v in fn.__defaults__)
    return out


def _names(code: types.CodeType) -> set[str]:
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found


# --- running -------------------------------------------------------------------------------------


def run(fn: types.FunctionType, grid: tuple[int, int, int], env: dict[str, Any]) -> None:
    """Run every program instance of ``fn``, one after the other, in the grid's order."""
    engine = Interpreter(grid)
    memo: dict[int, Any] = {}
    function = patched(fn, memo)
    arguments = {name: patched(value, memo) for name, value in env.items()}
    code = fn.__code__
    positional = [arguments.pop(n) for n in code.co_varnames[: code.co_argcount]]
    if code.co_flags & 0x04:  # *args
        at = code.co_argcount + code.co_kwonlyargcount
        positional += arguments.pop(code.co_varnames[at])
    with activate(engine), np.errstate(all="ignore"):
        for z in range(grid[2]):
            for y in range(grid[1]):
                for x in range(grid[0]):
                    engine.program = (x, y, z)
                    result = function(*positional, **arguments)
                    if result is not None:
                        raise KernelError(f"a kernel returns nothing, got {describe(result)}")

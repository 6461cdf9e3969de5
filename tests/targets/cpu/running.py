"""Running tile IR on NumPy arrays op by op: the definition that compiled code is compared with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from tilewright.dtypes import bf16, boolean, from_float32, to_float32
from tilewright.lang import ir
from tilewright.lang.evaluate import evaluate, full

Env = dict[ir.Value, object]


def run(fn: ir.Function, grid: Sequence[int], args: Sequence[object]) -> None:
    """Every program instance of ``fn``, in order; arrays are changed in place."""
    sizes = (*grid, 1, 1, 1)[:3]
    with np.errstate(all="ignore"):
        for p2, p1, p0 in itertools.product(*(range(n) for n in reversed(sizes))):
            env: Env = {
                p: v if isinstance(v, np.ndarray) else np.array(v, p.dtype.storage)
                for p, v in zip(fn.params, args)
            }
            _block(fn.body, env, (p0, p1, p2), sizes)


def _block(
    block: ir.Block, env: Env, program: Sequence[int], sizes: Sequence[int]
) -> list[np.ndarray]:
    for op in block.ops:
        values = [env[v] for v in op.operands]
        if op.name == "yield":
            return values  # type: ignore[return-value]
        env.update(zip(op.results, _op(op, values, env, program, sizes)))
    return []


def _op(
    op: ir.Op, values: list, env: Env, program: Sequence[int], sizes: Sequence[int]
) -> Sequence[object]:
    name, attrs = op.name, op.attrs
    if name in ("program_id", "num_programs"):
        return [np.int64((program if name == "program_id" else sizes)[attrs["axis"]])]
    if name == "dim":
        return [np.int64(values[0].shape[attrs["axis"]])]
    if name == "scratch":
        return [np.zeros(op.result.type.shape, op.result.dtype.storage)]
    if name == "load":
        return [_load(op, values)]
    if name == "store":
        _store(op, values)
        return []
    if name == "for":
        carried = values[3:]
        for iv in range(*(int(v) for v in values[:3])) if values[2] > 0 else ():
            env.update(zip(op.blocks[0].args, [np.int64(iv), *carried]))
            carried = _block(op.blocks[0], env, program, sizes)
        return carried
    if name == "if":
        return _block(op.blocks[0 if values[0] else 1], env, program, sizes)
    if name == "scan_with":
        return _scan_with(op, values, env, program, sizes)
    args = [np.asarray(v) for v in values]
    return [evaluate(name, args, [v.dtype for v in op.operands], op.result.type, attrs)]


def _scan_with(op: ir.Op, values: list, env: Env, program: Sequence[int], sizes: Sequence[int]):
    axis, block = op.attrs["axis"], op.blocks[0]
    outs = [np.array(v) for v in values]
    rows = [np.moveaxis(o, axis, 0) for o in outs]
    rows = [r[::-1] for r in rows] if op.attrs["reverse"] else rows
    for k in range(1, len(rows[0])):
        for place in np.ndindex(rows[0].shape[1:]):
            pair = [r[(k - 1, *place)] for r in rows] + [r[(k, *place)] for r in rows]
            env.update(zip(block.args, pair))
            for r, v in zip(rows, _block(block, env, program, sizes)):
                r[(k, *place)] = v
    return outs


def _places(op: ir.Op, values: list) -> tuple[list[np.ndarray], np.ndarray]:
    """Index arrays (clipped) of every element of an access, and which are inside."""
    array, index = values[0], values[1:]
    axes = op.attrs["axes"]
    shape = ir.access_shape(axes, [np.shape(i) for i in index[: len(axes)]])
    common = np.broadcast_shapes(
        *(np.shape(i) for a, i in zip(axes, index) if isinstance(a, ir.Gather))
    )
    places: list[np.ndarray] = []
    inside = np.ones(shape, bool)
    dim, gathered = 0, -1
    for axis, start, size in zip(axes, index, array.shape):
        if isinstance(axis, ir.At):
            at = np.array(int(start), object)
        elif isinstance(axis, ir.Window):
            at = np.array([int(start) + k * axis.step for k in range(axis.length)], object)
            at = at.reshape([-1 if d == dim else 1 for d in range(len(shape))])
            dim += 1
        else:
            if gathered < 0:
                gathered = dim
                dim += len(common)
            tail = len(shape) - gathered - len(common)
            at = np.broadcast_to(np.asarray(start), common).astype(object)
            at = at.reshape(common + (1,) * tail)
        ok = (at >= 0) & (at < size)
        inside &= np.broadcast_to(np.asarray(ok, bool), shape)
        clipped = np.where(np.asarray(ok, bool), at, 0).astype(np.int64)
        places.append(np.broadcast_to(clipped, shape))
    return places, inside


def _load(op: ir.Op, values: list) -> np.ndarray:
    dtype = op.result.dtype
    places, inside = _places(op, values)
    out = np.array(full(op.attrs.get("fill", 0), dtype, inside.shape))
    if inside.any():
        found = values[0][tuple(p[inside] for p in places)]
        out[inside] = to_float32(found) if dtype is bf16 else found
    return out


def _store(op: ir.Op, values: list) -> None:
    places, inside = _places(op, values)
    value = np.broadcast_to(values[-1], inside.shape)
    dtype = op.operands[-1].dtype
    raw = from_float32(value) if dtype is bf16 else value
    assert dtype is not boolean or raw.dtype == np.bool_
    flat = [p[inside] for p in places]
    for k, x in enumerate(raw[inside]):
        values[0][tuple(int(p[k]) for p in flat)] = x

"""Views, joins, indexing and what is made from nothing, as ONNX nodes."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from tilewright.dtypes import i64
from tilewright.errors import UnsupportedError
from tilewright.graph import Node
from tilewright.onnx.export.writer import Writer, emits
from tilewright.ops.bounds import is_known_inside

_BEFORE_ALL: Final = -(1 << 62)


def _known(sizes: Any) -> bool:
    return all(isinstance(n, int) for n in sizes)


@emits("reshape")
def _reshape(w: Writer, node: Node, x: str) -> Any:
    old, new = node.inputs[0].shape, node.shape
    if _known(new):
        return w.op("Reshape", x, w.shape(new), allowzero=1 if 0 in new else None)
    if 0 not in new:
        target = [
            n if isinstance(n, int) else 0 if i < len(old) and old[i] is n else -1
            for i, n in enumerate(new)
        ]
        if target.count(-1) <= 1:
            return w.op("Reshape", x, w.ints(*target))
    return w.op("Reshape", x, w.shape(new))


@emits("permute")
def _permute(w: Writer, node: Node, x: str) -> Any:
    return w.op("Transpose", x, perm=list(node.attrs["axes"]))


@emits("broadcast")
def _broadcast(w: Writer, node: Node, x: str) -> Any:
    old, new = node.inputs[0].shape, node.shape
    lead = len(new) - len(old)
    sizes = [1 if i >= lead and old[i - lead] is n else n for i, n in enumerate(new)]
    return w.op("Expand", x, w.shape(sizes))


@emits("slice")
def _slice(w: Writer, node: Node, x: str) -> Any:
    starts, sizes, steps = (node.attrs[k] for k in ("starts", "sizes", "steps"))
    firsts, ends, axes, strides = [], [], [], []
    for axis, (n, first, size, step) in enumerate(zip(node.inputs[0].shape, starts, sizes, steps)):
        if isinstance(first, int) and first == 0 and step == 1 and size is n:
            continue
        stop = first + size * step
        if step < 0 and (not isinstance(stop, int) or stop < 0):
            stop = _BEFORE_ALL
        axes.append(axis)
        firsts.append(first)
        ends.append(stop)
        strides.append(step)
    if not axes:
        return x
    return w.op("Slice", x, w.shape(firsts), w.shape(ends), w.ints(*axes), w.shape(strides))


@emits("pad")
def _pad(w: Writer, node: Node, x: str) -> Any:
    widths = node.attrs["widths"]
    pads = w.shape([lo for lo, _ in widths] + [hi for _, hi in widths])
    return w.op("Pad", x, pads, w.constant(node.attrs["value"], node.dtype), mode="constant")


@emits("concat")
def _concat(w: Writer, node: Node, *xs: str) -> Any:
    return w.op("Concat", *xs, axis=node.attrs["axis"])


@emits("iota")
def _iota(w: Writer, node: Node) -> Any:
    shape, axis = node.shape, node.attrs["axis"]
    n = shape[axis]
    if isinstance(n, int):
        line = w.constant(np.arange(n), i64)
    else:
        end = w.op("Squeeze", w.size(n), w.ints(0))
        line = w.op("Range", w.constant(0), end, w.constant(1))
    line = w.cast(line, i64, node.dtype)
    if len(shape) == 1:
        return line
    line = w.op("Reshape", line, w.ints(*(-1 if a == axis else 1 for a in range(len(shape)))))
    return w.op("Expand", line, w.shape(shape))


# --- indexing ------------------------------------------------------------------------------------


@emits("take")
def _take(w: Writer, node: Node, x: str, ids: str) -> Any:
    axis = node.attrs["axis"]
    places, inside = _places(w, node.inputs[1], ids, node.inputs[0].shape[axis])
    if inside:
        return w.op("Gather", x, places, axis=axis)
    return w.op("Gather", _with_zeros(w, node.inputs[0], x, axis), places, axis=axis)


def _places(w: Writer, node: Node, ids: str, n: Any) -> tuple[Any, bool]:
    """Indices as int64, and whether all are inside; those that are not become ``n``."""
    places = w.cast(ids, node.dtype, i64)
    if node.op == "checked" or (isinstance(n, int) and is_known_inside(node, 0, n)):
        return places, True
    end = w.op("Squeeze", w.size(n), w.ints(0))
    outside = w.op("Or", w.op("Less", places, w.constant(0)), w.op("GreaterOrEqual", places, end))
    return w.op("Where", outside, end, places), False


def _with_zeros(w: Writer, node: Node, x: str, axis: int) -> Any:
    """One element more along an axis, for what is read or written outside."""
    rank = len(node.shape)
    pads = [0] * rank + [int(a == axis) for a in range(rank)]
    return w.op("Pad", x, w.ints(*pads), w.constant(0, node.dtype), mode="constant")


def _indices(w: Writer, node: Node, ids: str) -> str:
    kind = node.inputs[1].dtype
    return ids if kind.name in ("i32", "i64") else w.cast(ids, kind, i64)


@emits("take_along_axis")
def _take_along_axis(w: Writer, node: Node, x: str, ids: str) -> Any:
    return w.op("GatherElements", x, _indices(w, node, ids), axis=node.attrs["axis"])


@emits("gather_nd")
def _gather_nd(w: Writer, node: Node, x: str, ids: str) -> Any:
    return w.op("GatherND", x, w.cast(ids, node.inputs[1].dtype, i64))


_MODES: Final = {"set": None, "add": "add", "max": "max", "min": "min", "mul": "mul"}


def _mode(node: Node) -> str | None:
    mode = node.attrs.get("mode", "set")
    if mode not in _MODES:
        raise UnsupportedError(f"{node.op} with mode {mode!r} cannot be exported to ONNX")
    return _MODES[mode]


@emits("scatter_nd")
def _scatter_nd(w: Writer, node: Node, x: str, ids: str, updates: str) -> Any:
    places = w.cast(ids, node.inputs[1].dtype, i64)
    return w.op("ScatterND", x, places, updates, reduction=_mode(node))


@emits("put_along_axis")
def _put_along_axis(w: Writer, node: Node, x: str, ids: str, updates: str) -> Any:
    axis = node.attrs["axis"]
    places = _indices(w, node, ids)
    return w.op("ScatterElements", x, places, updates, axis=axis, reduction=_mode(node))


@emits("scatter")
def _scatter(w: Writer, node: Node, x: str, ids: str, updates: str) -> Any:
    """Rows along the first axis; those with ids outside are left out."""
    if node.attrs["axis"] != 0:
        raise UnsupportedError(
            f"scatter along axis {node.attrs['axis']} cannot be exported to ONNX: move it to 0"
        )
    n = node.shape[0]
    places, inside = _places(w, node.inputs[1], ids, n)
    places = w.op("Unsqueeze", places, w.ints(-1))
    if inside:
        return w.op("ScatterND", x, places, updates, reduction=_mode(node))
    longer = _with_zeros(w, node.inputs[0], x, 0)
    found = w.op("ScatterND", longer, places, updates, reduction=_mode(node))
    return w.op("Slice", found, w.ints(0), w.size(n), w.ints(0))

"""Integer networks keep their channels last.

Integer convolutions make bytes (N, *size, C') behind a ``channels_first`` view, and read what a
``channels_last`` moved. This pass carries the inner layout through what stands between: elementwise
ops and max pooling happen inside the view, and concatenations, slices and channel shuffles of
planes, requantised or not, become one ``byte_join``. Values do not change: everything that is moved
past a quantisation commutes with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tilewright.compiler.fusion import REDUCTIONS, is_elementwise, pending, reduced_axes
from tilewright.dtypes import DType, i8, u8
from tilewright.graph import Node
from tilewright.ops.constants import constant, values
from tilewright.ops.integer_layout import channels_first, quantize_channels_last
from tilewright.ops.integer_moves import affine_fit, byte_join, byte_max_pool
from tilewright.ops.quantize import limits
from tilewright.ops.table import make
from tilewright.ops.views import slice_

__all__ = ["keep_channels_last"]

_Scales = tuple[Node, Node, Node, Node]  # of the bytes, of the result


@dataclass(frozen=True)
class _Part:
    """An array (N, *size, C'), how many channels count, and how they are requantised."""

    source: Node
    channels: int
    scales: _Scales | None = None


@dataclass(frozen=True)
class _Planes:
    """Planes (N, stop - start, *size) as channels of arrays that lie channels last."""

    parts: tuple[_Part, ...]
    alternate: bool
    start: int
    stop: int

    @property
    def total(self) -> int:
        return sum(p.channels for p in self.parts)

    @property
    def is_whole(self) -> bool:
        """Nothing but parts one after the other."""
        return not self.alternate and self.start == 0 and self.stop == self.total


def keep_channels_last(roots: Sequence[Node]) -> list[Node]:
    """``roots`` with integer networks between them in their inner layout."""
    order = pending(roots)
    if not any(node.op == "channels_first" for node in order):
        return list(roots)
    return _Pass(order).run(roots)


class _Pass:
    def __init__(self, order: Sequence[Node]) -> None:
        self.order = order
        self.new: dict[Node, Node] = {}
        self.planes: dict[Node, _Planes] = {}  # of new nodes
        self.joined: dict[_Planes, Node] = {}
        self.parts_used: dict[Node, set[int]] = {}
        for node in order:
            if node.op == "part" and node.value is None:
                self.parts_used.setdefault(node.inputs[0], set()).add(node.attrs["index"])

    def run(self, roots: Sequence[Node]) -> list[Node]:
        for node in self.order:
            if node.value is not None or node.is_leaf:
                self.new[node] = node
                continue
            inputs = tuple(self.new[i] for i in node.inputs)
            made = self._rewritten(node, inputs)
            if made is None:
                made = Node(node.op, inputs, node.shape, node.dtype, node.attrs, node.name)
            found = self._described(made)
            if found is not None:
                self.planes[made] = found
            self.new[node] = made
        return [self.new[r] for r in roots]

    def _rewritten(self, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        if node.op == "channels_last":
            found = self.planes.get(inputs[0])
            return self._moved(inputs[0]) if found is None else self._inner(found)
        if node.op == "part":
            return self._pooled(node, inputs[0])
        if node.op == "slice":
            return self._taken(node, inputs[0])
        if node.op in REDUCTIONS:
            return self._reduced(node, inputs[0])
        if is_elementwise(node) and node.op != "broadcast":
            return self._inside(node, inputs)
        return None

    def _moved(self, x: Node) -> Node | None:
        """A quantisation of few channels that moves them at once."""
        if x.op != "quantize" or x.value is not None or x.dtype not in (u8, i8):
            return None
        source, scale, zero = x.inputs
        few = len(source.shape) > 2 and isinstance(source.shape[1], int) and source.shape[1] <= 4
        whole = (x.attrs["low"], x.attrs["high"]) == limits(x.dtype)
        if not few or not whole or scale.shape or zero.shape or source.shape != x.shape:
            return None
        return quantize_channels_last(source, scale, zero)

    # --- inside the view -------------------------------------------------------------------------

    def _inside(self, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        """An elementwise op of views of one layout and of numbers, below the view."""
        views = [i for i in inputs if i.op == "channels_first"]
        if not views or any(i.shape for i in inputs if i.op != "channels_first"):
            return None
        shape, inner = views[0].shape, views[0].inputs[0].shape
        if any(v.shape != shape or v.inputs[0].shape != inner for v in views):
            return None
        below = tuple(i.inputs[0] if i.op == "channels_first" else i for i in inputs)
        made = Node(node.op, below, inner, node.dtype, node.attrs, node.name)
        return channels_first(made, views[0].attrs["channels"])

    def _taken(self, node: Node, x: Node) -> Node | None:
        """A slice of channels of what is not one array yet, as an array."""
        found = self.planes.get(x)
        if found is None or x.op == "channels_first":
            return None
        cut = _sliced(found, node, x)
        inner = None if cut is None else self._inner(cut)
        count = node.shape[1]
        assert isinstance(count, int)
        return None if inner is None else channels_first(inner, count)

    def _reduced(self, node: Node, x: Node) -> Node | None:
        """A reduction over whole planes."""
        if x.op != "channels_first" or reduced_axes(node) != tuple(range(2, len(x.shape))):
            return None
        inner, channels = x.inputs[0], x.attrs["channels"]
        rank = len(x.shape)
        attrs = dict(node.attrs)
        if "axes" not in attrs:
            return None
        attrs["axes"] = tuple(range(1, rank - 1))
        made = make(node.op, inner, **attrs)
        if attrs.get("keepdims", False):
            return channels_first(made, channels)
        return slice_(made, (0, 0), (made.shape[0], channels))

    def _pooled(self, node: Node, pool: Node) -> Node | None:
        if pool.op != "max_pool" or self.parts_used[node.inputs[0]] != {0}:
            return None
        (x,) = pool.inputs
        attrs, rank = pool.attrs, len(x.shape) - 2
        if x.op != "channels_first" or x.dtype not in (u8, i8) or rank not in (1, 2):
            return None
        if any(d != 1 for d in attrs["dilation"]):
            return None
        low = [p[0] for p in attrs["padding"]]
        size, out = x.shape[2:], node.shape[2:]
        for n, o, k, s, p in zip(size, out, attrs["kernel"], attrs["strides"], low):
            assert isinstance(n, int)
            assert isinstance(o, int)
            if p >= k or (o - 1) * s - p >= n:  # a window that sees padding alone
                return None
        inner = x.inputs[0]
        flat = make("reshape", inner, shape=(inner.shape[0], 1, *inner.shape[1:]))
        made = byte_max_pool(
            inner if rank == 2 else flat,
            kernel=_two(attrs["kernel"], 1),
            strides=_two(attrs["strides"], 1),
            low=_two(low, 0),
            out=_two(out, 1),  # type: ignore[arg-type]
        )
        if rank == 1:
            made = make("reshape", made, shape=(made.shape[0], *made.shape[2:]))
        return channels_first(made, x.attrs["channels"])

    # --- what planes are made of -----------------------------------------------------------------

    def _described(self, node: Node) -> _Planes | None:
        if node.op == "channels_first":
            channels = node.attrs["channels"]
            return _Planes((_Part(node.inputs[0], channels),), False, 0, channels)
        found = [self.planes.get(i) for i in node.inputs]
        first = found[0] if found else None
        if node.op == "concat" and node.attrs["axis"] == 1:
            parts: list[_Part] = []
            for one in found:
                if one is None or not one.is_whole:
                    return None
                parts += one.parts
            return _Planes(tuple(parts), False, 0, sum(p.channels for p in parts))
        if node.op == "reshape":
            return self._shuffled(node)
        if first is None:
            return None
        if node.op == "copy":
            return first
        if node.op == "slice":
            return _sliced(first, node, node.inputs[0])
        if node.op == "quantize":
            return _requantised(first, node)
        return None

    def _shuffled(self, node: Node) -> _Planes | None:
        """(N, g C, ...) -> (N, g, C, ...) -> (N, C, g, ...) -> (N, C g, ...)."""
        swap = node.inputs[0]
        if swap.op != "permute" or swap.inputs[0].op != "reshape" or swap.value is not None:
            return None
        source = swap.inputs[0].inputs[0]
        found = self.planes.get(source)
        rank = len(node.shape)
        if found is None or not found.is_whole or len(found.parts) != 2:
            return None
        g, c = 2, found.parts[0].channels
        if found.parts[1].channels != c or node.shape != source.shape:
            return None
        if swap.inputs[0].shape != (source.shape[0], g, c, *source.shape[2:]):
            return None
        if swap.attrs["axes"] != (0, 2, 1, *range(3, rank + 1)):
            return None
        return replace(found, alternate=True)

    def _inner(self, planes: _Planes) -> Node | None:
        """``planes`` as one array that lies channels last."""
        made = self.joined.get(planes)
        if made is None:
            built = self._join(planes)
            if built is None:
                return None
            made = self.joined[planes] = built
        return made

    def _join(self, planes: _Planes) -> Node | None:
        first = planes.parts[0]
        if len(planes.parts) == 1 and planes.is_whole and first.scales is None:
            return first.source
        if planes.alternate and planes.start % 2:
            return None
        dtype: DType | None = None
        how, numbers = [], []
        for part in planes.parts:
            known = [values(s) for s in part.scales] if part.scales is not None else []
            if any(k is None for k in known) or part.source.dtype not in (u8, i8):
                return None
            kind = part.scales[3].dtype if part.scales is not None else part.source.dtype
            if dtype not in (None, kind):
                return None
            dtype = kind
            way, row = _way([np.asarray(k) for k in known])
            how.append(way)
            numbers.append(row)
        if dtype not in (u8, i8):
            return None
        return byte_join(
            [p.source for p in planes.parts],
            constant(np.array(numbers, np.float32)),
            channels=tuple(p.channels for p in planes.parts),
            alternate=planes.alternate,
            start=planes.start,
            stop=planes.stop,
            dtype=dtype,
            how=tuple(how),
        )


def _two(numbers: Sequence[int], missing: int) -> tuple[int, ...]:
    return (missing,) * (2 - len(numbers)) + tuple(int(n) for n in numbers)


def _sliced(planes: _Planes, node: Node, x: Node) -> _Planes | None:
    starts, steps = node.attrs["starts"], node.attrs["steps"]
    others = [a for a in range(len(x.shape)) if a != 1]
    if any(x.shape[a] != node.shape[a] for a in others) or steps[1] != 1:
        return None
    if any(steps[a] != 1 for a in others if x.shape[a] != 1):
        return None
    count = node.shape[1]
    assert isinstance(count, int)
    if not count:
        return None
    first = planes.start + starts[1]
    return replace(planes, start=first, stop=first + count)


def _requantised(planes: _Planes, node: Node) -> _Planes | None:
    """Planes that were dequantised, moved and quantised again."""
    _, scale, zero = node.inputs
    if scale.shape or zero.shape or node.dtype not in (u8, i8):
        return None
    parts = []
    for part in planes.parts:
        source = part.source
        if part.scales is not None or source.op != "dequantize" or source.value is not None:
            return None
        x, sx, zx = source.inputs
        if sx.shape or zx.shape or x.dtype not in (u8, i8):
            return None
        parts.append(_Part(x, part.channels, (sx, zx, scale, zero)))
    return replace(planes, parts=tuple(parts))


def _way(known: Sequence[np.ndarray]) -> tuple[str, tuple[float, ...]]:
    """How bytes become others, and the numbers that it takes."""
    if not known:
        return "copy", (0.0,) * 4
    sx, zx, sy, zy = known
    if np.array_equal(sx, sy) and np.array_equal(zx, zy) and zx.dtype == zy.dtype:
        return "copy", (0.0,) * 4
    fit = affine_fit(sx, zx, sy, zy)
    if fit is not None:
        return "affine", (float(fit[0]), float(fit[1]), 0.0, 0.0)
    return "exact", (float(sx), float(zx), float(sy), float(zy))

"""Moving elements without computing: views, padding and joining, and each one's transpose.

``reshape``, ``permute``, ``broadcast`` and ``slice`` look at their input's memory; ``pad`` and
``concat`` copy into pieces of their output. The gradient of such an op is the op that puts the
elements back: a slice's is a padding, a broadcast's a sum (:func:`sum_to`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.ops.table import OpDef, make, register
from tilewright.runtime.buffers import dense_strides
from tilewright.sizes import has_value, may_be_other, same

__all__ = [
    "barrier",
    "broadcast",
    "broadcast_shapes",
    "concat",
    "copy",
    "expand_dims",
    "flip",
    "normal_axes",
    "normal_axis",
    "pad",
    "permute",
    "reshape",
    "sizes_of",
    "slice_",
    "split",
    "squeeze",
    "stack",
    "stop_gradient",
    "sum_to",
]

Inputs = Sequence[Node]
Attrs = Mapping[str, Any]


def sizes_of(x: Node) -> tuple[int, ...]:
    """``x``'s shape, of which every size has a value (at least in the trace that made ``x``)."""
    assert all(n.__class__ is int or has_value(n) for n in x.shape), f"{x} has symbolic sizes"
    return cast("tuple[int, ...]", x.shape)


def normal_axis(axis: int, rank: int) -> int:
    """``axis`` counted from the front; :class:`ShapeError` when there is no such axis."""
    if not -rank <= axis < rank:
        raise ShapeError(f"axis {axis} does not exist: there are {rank} axes")
    return axis % rank


def normal_axes(axes: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Axes counted from the front, ascending; ``None`` is all of them."""
    if axes is None:
        return tuple(range(rank))
    given = [axes] if isinstance(axes, (int, np.integer)) else list(axes)
    found = tuple(sorted(normal_axis(a, rank) for a in given))
    if len(set(found)) != len(found):
        raise ShapeError(f"axes {axes} name an axis twice")
    return found


def broadcast_shapes(*shapes: Shape) -> Shape:
    """The shape that all of ``shapes`` broadcast to, by NumPy's rules (sizes may be symbolic)."""
    first = shapes[0] if shapes else ()
    if all(same(shape, first) for shape in shapes):
        return first
    out: list[Any] = []
    for back in range(1, max(map(len, shapes), default=0) + 1):
        size: Any = 1
        for shape in shapes:
            if len(shape) < back or shape[-back] == 1:
                continue
            if size not in (1, shape[-back]):
                listed = " and ".join(shape_of(s) for s in shapes)
                raise ShapeError(
                    f"shapes {listed} do not broadcast: counted from the back, axis {back - 1} "
                    f"has sizes {size} and {shape[-back]}; they must be equal or 1"
                )
            size = shape[-back]
        out.append(size)
    return tuple(reversed(out))


# --- reshape -------------------------------------------------------------------------------------


def _reshape_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    (x,) = inputs
    if math.prod(x.shape) != math.prod(attrs["shape"]):
        raise ShapeError(
            f"reshape: {shape_of(x.shape)} has {math.prod(x.shape)} elements, "
            f"{shape_of(attrs['shape'])} has {math.prod(attrs['shape'])}"
        )
    return attrs["shape"], x.dtype


def reshape_strides(
    shape: Sequence[int], strides: Sequence[int], new: Sequence[int]
) -> tuple[int, ...] | None:
    """Strides that show an array as ``new`` without moving it, or None.

    The old and the new axes are cut into the shortest groups of equal size; every group of old
    axes must be evenly spaced (NumPy's ``_attempt_nocopy_reshape``).
    """
    if 0 in new:
        return dense_strides(new)
    old = [(n, s) for n, s in zip(shape, strides) if n != 1]
    out: list[int] = []
    i = j = 0
    while j < len(new):
        if new[j] == 1:
            out.append(1)
            j += 1
            continue
        first, have, want = i, old[i][0], 1
        start = j
        i += 1
        while want != have:
            if want < have:
                want *= new[j]
                j += 1
            else:
                have *= old[i][0]
                i += 1
        for (_, s), (n, t) in zip(old[first : i - 1], old[first + 1 : i]):
            if s != n * t:
                return None
        step = old[i - 1][1]
        for n in reversed(new[start:j]):
            out.insert(start, step)
            step *= n
    return tuple(out)


def _reshape_view(node: Node, x: Any) -> Any:
    new = node.attrs["shape"]
    strides = reshape_strides(x.shape, x.strides, new)
    return None if strides is None else x.view(new, strides)


register(
    OpDef(
        "reshape",
        _reshape_infer,
        lambda x, shape: np.reshape(x, shape),
        view=_reshape_view,
        gradient=lambda node, g: [reshape(g, node.inputs[0].shape)],
    )
)


def reshape(x: Node, shape: Sequence[Any]) -> Node:
    """The same elements in row-major order; one size may be -1."""
    sizes = tuple(shape)
    if -1 in sizes:
        known = -math.prod(sizes)
        total = math.prod(x.shape)
        if sizes.count(-1) > 1 or known == 0 or total % known:
            raise ShapeError(f"reshape: no size for -1 makes {sizes} of {shape_of(x.shape)}")
        sizes = tuple(total // known if n == -1 else n for n in sizes)
    return x if same(sizes, x.shape) else make("reshape", x, shape=sizes)


def expand_dims(x: Node, axis: int) -> Node:
    """A new axis of size 1 that becomes axis ``axis`` of the result."""
    at = normal_axis(axis, len(x.shape) + 1)
    return reshape(x, (*x.shape[:at], 1, *x.shape[at:]))


def squeeze(x: Node, axes: int | Sequence[int]) -> Node:
    """Without ``axes``, each of which must have size 1."""
    gone = normal_axes(axes, len(x.shape))
    for a in gone:
        if x.shape[a] != 1:
            raise ShapeError(f"squeeze: axis {a} of {shape_of(x.shape)} has size {x.shape[a]}")
    return reshape(x, tuple(n for a, n in enumerate(x.shape) if a not in gone))


# --- permute -------------------------------------------------------------------------------------


def _permute_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    (x,) = inputs
    if sorted(attrs["axes"]) != list(range(len(x.shape))):
        raise ShapeError(
            f"permute: axes {attrs['axes']} are no permutation of those of {shape_of(x.shape)}"
        )
    return tuple(x.shape[a] for a in attrs["axes"]), x.dtype


def _permute_view(node: Node, x: Any) -> Any:
    axes = node.attrs["axes"]
    return x.view([x.shape[a] for a in axes], [x.strides[a] for a in axes])


register(
    OpDef(
        "permute",
        _permute_infer,
        lambda x, axes: np.transpose(x, axes),
        view=_permute_view,
        gradient=lambda node, g: [permute(g, tuple(np.argsort(node.attrs["axes"]).tolist()))],
    )
)


def permute(x: Node, axes: Sequence[int]) -> Node:
    """Axis ``i`` of the result is axis ``axes[i]`` of ``x``."""
    order = tuple(a + len(x.shape) if a < 0 else a for a in axes)
    return x if order == tuple(range(len(x.shape))) else make("permute", x, axes=order)


# --- broadcast and its transpose -----------------------------------------------------------------


def _broadcast_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    (x,) = inputs
    shape = attrs["shape"]
    if broadcast_shapes(x.shape, shape) != shape:
        raise ShapeError(f"broadcast: {shape_of(x.shape)} does not become {shape_of(shape)}")
    return shape, x.dtype


def _broadcast_view(node: Node, x: Any) -> Any:
    shape = node.attrs["shape"]
    lead = len(shape) - len(x.shape)
    steps = [0 if n == 1 else s for n, s in zip(x.shape, x.strides)]
    return x.view(shape, [0] * lead + steps)


register(
    OpDef(
        "broadcast",
        _broadcast_infer,
        lambda x, shape: np.broadcast_to(x, shape),
        view=_broadcast_view,
        gradient=lambda node, g: [sum_to(g, node.inputs[0].shape)],
    )
)


def broadcast(x: Node, shape: Sequence[Any]) -> Node:
    """``x`` repeated along axes of size 1 and new leading axes, without a copy."""
    sizes = tuple(shape)
    return x if same(sizes, x.shape) else make("broadcast", x, shape=sizes)


def sum_to(x: Node, shape: Shape) -> Node:
    """The transpose of ``broadcast``: ``x`` summed over what broadcasting ``shape`` repeated."""
    if same(x.shape, shape):
        return x
    lead = len(x.shape) - len(shape)
    if lead < 0 or broadcast_shapes(x.shape, shape) != x.shape:
        raise ShapeError(f"sum_to: {shape_of(shape)} does not broadcast to {shape_of(x.shape)}")
    axes = tuple(a for a, n in enumerate(x.shape) if a < lead or (shape[a - lead] == 1 and n != 1))
    return reshape(make("sum", x, axes=axes, keepdims=False) if axes else x, shape)


# --- slice and pad -------------------------------------------------------------------------------


def _slice_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    (x,) = inputs
    starts, sizes, steps = attrs["starts"], attrs["sizes"], attrs["steps"]
    if not len(starts) == len(sizes) == len(steps) == len(x.shape):
        raise ShapeError(
            f"slice of {shape_of(x.shape)} wants a start, a size and a step per axis, got "
            f"{starts}, {sizes}, {steps}"
        )
    for axis, (n, first, size, step) in enumerate(zip(x.shape, starts, sizes, steps)):
        last = first + (size - 1) * step
        if step == 0 or size < 0 or (size > 0 and not (0 <= first < n and 0 <= last < n)):
            raise ShapeError(
                f"slice of {shape_of(x.shape)}: axis {axis} has no {size} elements from {first} "
                f"in steps of {step}"
            )
    return sizes, x.dtype


def _slices(starts: Sequence[int], sizes: Sequence[int], steps: Sequence[int]) -> Any:
    out = []
    for first, size, step in zip(starts, sizes, steps):
        stop = first + size * step
        out.append(slice(first, None if stop < 0 else stop, step) if size else slice(0, 0))
    return tuple(out)


def _slice_view(node: Node, x: Any) -> Any:
    starts, sizes, steps = (node.attrs[k] for k in ("starts", "sizes", "steps"))
    offset = 0 if 0 in sizes else sum(a * s for a, s in zip(starts, x.strides))
    return x.view(sizes, [t * s for t, s in zip(steps, x.strides)], offset)


def _slice_gradient(node: Node, g: Node) -> list[Node]:
    """``g`` put where the slice took it from, zeros elsewhere."""
    shape = node.inputs[0].shape
    starts, steps = list(node.attrs["starts"]), list(node.attrs["steps"])
    backwards = [a for a, step in enumerate(steps) if step < 0]
    for a in backwards:
        starts[a] += (g.shape[a] - 1) * steps[a]
        steps[a] = -steps[a]
    if 0 in g.shape:
        return [
            pad(slice_(g, (0,) * len(shape), g.shape), _margins(g.shape, (0,) * len(shape), shape))
        ]
    return [
        pad(
            _spread(flip(g, backwards), steps),
            _margins(_spread_shape(g.shape, steps), starts, shape),
        )
    ]


def _margins(sizes: Shape, starts: Sequence[int], shape: Shape) -> tuple[tuple[Any, Any], ...]:
    return tuple((lo, n - lo - m) for m, lo, n in zip(sizes, starts, shape))


def _spread_shape(shape: Shape, steps: Sequence[int]) -> Shape:
    return tuple((n - 1) * step + 1 for n, step in zip(shape, steps))


def _spread(x: Node, steps: Sequence[int]) -> Node:
    """``steps - 1`` zeros between neighbours along each axis."""
    for axis, step in enumerate(steps):
        n = x.shape[axis]
        if step == 1 or n == 1:
            continue
        apart = reshape(x, (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]))
        margins = [(0, 0)] * len(apart.shape)
        margins[axis + 1] = (0, step - 1)
        wide = reshape(pad(apart, margins), (*x.shape[:axis], n * step, *x.shape[axis + 1 :]))
        sizes = list(wide.shape)
        sizes[axis] = (n - 1) * step + 1
        x = slice_(wide, (0,) * len(sizes), sizes)
    return x


register(
    OpDef(
        "slice",
        _slice_infer,
        lambda x, starts, sizes, steps: x[_slices(starts, sizes, steps)],
        view=_slice_view,
        gradient=_slice_gradient,
    )
)


def slice_(
    x: Node, starts: Sequence[int], sizes: Sequence[Any], steps: Sequence[int] | None = None
) -> Node:
    """Element ``i`` along each axis is ``x``'s element ``start + i * step``, without a copy.

    A step may be negative; ``start`` is then the last place, the first one taken.
    """
    hops = (1,) * len(x.shape) if steps is None else tuple(steps)
    moved = any(map(may_be_other, starts)) or any(t != 1 for t in hops)
    if not moved and same(tuple(sizes), x.shape):
        return x
    return make("slice", x, starts=tuple(starts), sizes=tuple(sizes), steps=hops)


def flip(x: Node, axes: int | Sequence[int] | None = None) -> Node:
    """The elements along ``axes`` (default all) in reverse order, without a copy."""
    shape = sizes_of(x)
    turned = [a for a in normal_axes(axes, len(shape)) if shape[a] > 1]
    starts = [n - 1 if a in turned else 0 for a, n in enumerate(shape)]
    return slice_(x, starts, shape, [-1 if a in turned else 1 for a in range(len(shape))])


def split(x: Node, sizes: Sequence[int], axis: int) -> list[Node]:
    """Consecutive pieces of ``sizes`` along ``axis``, without copies."""
    at = normal_axis(axis, len(x.shape))
    if sum(sizes) != x.shape[at]:
        raise ShapeError(f"split: {tuple(sizes)} do not add up to axis {at} of {shape_of(x.shape)}")
    pieces, start = [], 0
    for size in sizes:
        starts = [start if a == at else 0 for a in range(len(x.shape))]
        pieces.append(slice_(x, starts, (*x.shape[:at], size, *x.shape[at + 1 :])))
        start += size
    return pieces


def _pad_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    (x,) = inputs
    widths = attrs["widths"]
    if len(widths) != len(x.shape) or any(lo < 0 or hi < 0 for lo, hi in widths):
        raise ShapeError(
            f"pad of {shape_of(x.shape)} wants (before, after), neither negative, per axis, "
            f"got {widths}"
        )
    return tuple(n + lo + hi for n, (lo, hi) in zip(x.shape, widths)), x.dtype


register(
    OpDef(
        "pad",
        _pad_infer,
        lambda x, widths, value: np.pad(x, widths, constant_values=value) if widths else x,
        gradient=lambda node, g: [
            slice_(g, [lo for lo, _ in node.attrs["widths"]], node.inputs[0].shape)
        ],
    )
)


def pad(x: Node, widths: Sequence[tuple[int, int]], value: bool | int | float = 0) -> Node:
    """``x`` with ``before`` and ``after`` elements of ``value`` more along each axis."""
    margins = tuple((lo, hi) for lo, hi in widths)
    if len(margins) == len(x.shape) and not any(may_be_other(n) for m in margins for n in m):
        return x
    return make("pad", x, widths=margins, value=value)


# --- concat --------------------------------------------------------------------------------------


def _concat_infer(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    first, axis = inputs[0], attrs["axis"]

    def rest(x: Node) -> Shape:
        return (*x.shape[:axis], *x.shape[axis + 1 :])

    for other in inputs[1:]:
        if (
            other.dtype is not first.dtype
            or len(other.shape) != len(first.shape)
            or rest(other) != rest(first)
        ):
            raise ShapeError(
                f"concat along axis {axis}: {other.dtype}{shape_of(other.shape)} does not "
                f"continue {first.dtype}{shape_of(first.shape)}"
            )
    total = sum(sizes_of(x)[axis] for x in inputs)
    return (*first.shape[:axis], total, *first.shape[axis + 1 :]), first.dtype


def _concat_gradient(node: Node, g: Node) -> list[Node]:
    axis = node.attrs["axis"]
    return split(g, [sizes_of(x)[axis] for x in node.inputs], axis)


register(
    OpDef(
        "concat",
        _concat_infer,
        lambda *xs, axis: np.concatenate(xs, axis),
        gradient=_concat_gradient,
    )
)


def concat(xs: Sequence[Node], axis: int) -> Node:
    """Arrays one after the other along ``axis``; equal dtypes and other sizes."""
    if not xs:
        raise ShapeError("concat wants at least one array")
    at = normal_axis(axis, len(xs[0].shape))
    return xs[0] if len(xs) == 1 else make("concat", *xs, axis=at)


def stack(xs: Sequence[Node], axis: int = 0) -> Node:
    """Arrays of one shape along a new axis."""
    return concat([expand_dims(x, axis) for x in xs], axis)


# --- identities ----------------------------------------------------------------------------------


def _same(inputs: Inputs, attrs: Attrs) -> tuple[Shape, DType]:
    return inputs[0].shape, inputs[0].dtype


register(
    OpDef("copy", _same, lambda x: np.array(x), gradient=lambda node, g: [g], expression="{0}")
)
register(
    OpDef(
        "stop_gradient",
        _same,
        lambda x: x,
        view=lambda node, x: x,
        gradient=lambda node, g: [None],
    )
)
register(
    OpDef(
        "barrier",
        _same,
        lambda x, *after: x,
        view=lambda node, x: x,
        gradient=lambda node, g: [g, *(None for _ in node.inputs[1:])],
    )
)


def copy(x: Node) -> Node:
    """The same values in memory of their own."""
    return make("copy", x)


def stop_gradient(x: Node) -> Node:
    """``x``, a constant to differentiation."""
    return make("stop_gradient", x)


def barrier(x: Node, *after: Node) -> Node:
    """``x``, not to be computed before ``after`` is, nor taken for equal work done elsewhere."""
    return make("barrier", x, *after)

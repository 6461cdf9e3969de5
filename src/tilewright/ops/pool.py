"""Pooling over one to three spatial axes: maxima with their places, averages, and transposes.

``max_pool`` has two results, the maxima and where they stand in the plane (D * H * W) of their
channel. With the places fixed it is a selection, which is linear::

    max_pool_gradient(grad, places)    adds each grad to its place: (N, C, *out) -> (N, C, *size)
    max_pool_take(x, places)           reads each place: (N, C, *size) -> (N, C, *out)

These two are each other's transposes, so derivatives of any order exist; so are ``avg_pool`` and
``avg_pool_gradient``. The gradients go through a plane in a fixed order, without atomics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from tilewright.dtypes import DType, bf16, boolean, f16, f32, i32, i64
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_shapes import Pairs, planes, spatial
from tilewright.ops.pool_averages import average_calls, average_gradient_calls
from tilewright.ops.pool_kernels import max_calls, scatter_calls, take_calls
from tilewright.ops.table import OpDef, make, make_parts, register
from tilewright.runtime.buffers import Buffer
from tilewright.sizes import has_value

__all__ = [
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "avg_pool",
    "avg_pool_gradient",
    "global_avg_pool",
    "global_max_pool",
    "max_pool",
    "max_pool_gradient",
    "max_pool_take",
]

Attrs = Mapping[str, Any]
Numbers = int | Sequence[int]
Padding = int | Sequence[int | tuple[int, int]]


# --- builders ------------------------------------------------------------------------------------


def max_pool(
    x: Node,
    kernel: Numbers,
    strides: Numbers | None = None,
    padding: Padding = 0,
    dilation: Numbers = 1,
    ceil_mode: bool = False,
    index_dtype: DType = i32,
) -> tuple[Node, Node]:
    """The largest value in each window: x (N, C, *size) -> values and places (N, C, *out).

    Args:
        x: floats or integers, one to three spatial axes.
        kernel, dilation: the window, one number or one per axis.
        strides: the distance between windows; default the kernel.
        padding: positions before and after each axis that never win: a number, or per axis a
            number or a pair.
        ceil_mode: a last window that leaves the padded input counts too, if it starts inside the
            input or its padding in front.
        index_dtype: i32 or i64, of the places.

    A place is the position in the channel's plane, row-major; the first of equal values, the last
    NaN (a NaN is the largest, as in PyTorch). A window that sees nothing but padding has the
    dtype's lowest value and the place -1, which receives no gradient.
    """
    attrs = _window_attrs(x, kernel, strides, padding, dilation, ceil_mode)
    values, places = make_parts("max_pool", x, **attrs, index_dtype=index_dtype)
    return values, places


def max_pool_gradient(grad: Node, places: Node, size: Sequence[int]) -> Node:
    """Each of grad (N, C, *out) added to its place: -> (N, C, *size). The rest is zero."""
    return make("max_pool_gradient", grad, places, size=tuple(size))


def max_pool_take(x: Node, places: Node) -> Node:
    """The values of x (N, C, *size) at places (N, C, *out) of its planes; zero where outside."""
    return make("max_pool_take", x, places)


def avg_pool(
    x: Node,
    kernel: Numbers,
    strides: Numbers | None = None,
    padding: Padding = 0,
    dilation: Numbers = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int = 0,
) -> Node:
    """The mean of each window: x (N, C, *size) -> (N, C, *out).

    Arguments as in :func:`max_pool`. The divisor counts the positions inside the input, with
    ``count_include_pad`` also those in the padding, but never what lies beyond it; ``divisor``
    above zero stands for all of them (1: sums). f16 and bf16 are summed in f32.
    """
    attrs = _window_attrs(x, kernel, strides, padding, dilation, ceil_mode)
    more: dict[str, Any] = {"divisor": divisor} if divisor else {}
    return make("avg_pool", x, **attrs, count_include_pad=count_include_pad, **more)


def avg_pool_gradient(grad: Node, size: Sequence[int], **attrs: Any) -> Node:
    """The transpose of :func:`avg_pool`: (N, C, *out) -> (N, C, *size)."""
    return make("avg_pool_gradient", grad, size=tuple(size), **attrs)


def global_avg_pool(x: Node) -> Node:
    """The mean of each plane: (N, C, *size) -> (N, C, 1, ...)."""
    from tilewright.ops.reductions import mean

    return mean(x, tuple(range(2, len(x.shape))), True)


def global_max_pool(x: Node) -> Node:
    """The maximum of each plane: (N, C, *size) -> (N, C, 1, ...)."""
    return max_pool(x, _sizes(x)[2:])[0]


def adaptive_avg_pool(x: Node, out: Numbers) -> Node:
    """Means over ``out`` windows per axis: (N, C, *size) -> (N, C, *out).

    Window i of an axis of n positions covers ``floor(i * n / out)`` up to, not including,
    ``ceil((i + 1) * n / out)``, as in PyTorch.
    """
    return _adaptive(x, out, lambda part, kernel: avg_pool(part, kernel))


def adaptive_max_pool(x: Node, out: Numbers) -> Node:
    """Maxima over ``out`` windows per axis, cut as in :func:`adaptive_avg_pool`."""
    return _adaptive(x, out, lambda part, kernel: max_pool(part, kernel)[0])


def _adaptive(x: Node, out: Numbers, pool: Any) -> Node:
    """One pooling when the windows are even; else axis by axis, the odd windows one by one.

    A mean of means over equally long pieces is the mean, so the axes may go one after the other.
    """
    from tilewright.ops.views import concat, slice_

    rank = len(x.shape) - 2
    wanted = _each(out, rank)
    if len(wanted) != rank or min(wanted, default=1) < 1:
        raise ShapeError(f"adaptive pooling of {shape_of(x.shape)} wants {rank} sizes, got {out}")
    even = tuple(n // w if n % w == 0 else 1 for n, w in zip(_sizes(x)[2:], wanted))
    if max(even) > 1:
        x = pool(x, even)
    for axis, (n, w) in enumerate(zip(_sizes(x)[2:], wanted), 2):
        if n == w:
            continue
        pieces = []
        for i in range(w):
            start, stop = i * n // w, -(-(i + 1) * n // w)
            sizes = _sizes(x)
            starts = tuple(start if a == axis else 0 for a in range(len(sizes)))
            part = slice_(
                x, starts, (*sizes[:axis], stop - start, *sizes[axis + 1 :]), (1,) * len(sizes)
            )
            kernel = tuple(stop - start if a == axis else 1 for a in range(2, len(sizes)))
            pieces.append(pool(part, kernel))
        x = concat(pieces, axis)
    return x


def _each(value: Numbers, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(int(v) for v in value)


def _window_attrs(
    x: Node,
    kernel: Numbers,
    strides: Numbers | None,
    padding: Padding,
    dilation: Numbers,
    ceil_mode: bool,
) -> dict[str, Any]:
    rank = len(x.shape) - 2
    pairs = (padding,) * rank if isinstance(padding, int) else padding
    window = _each(kernel, rank)
    return {
        "kernel": window,
        "strides": window if strides is None else _each(strides, rank),
        "padding": tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in pairs),
        "dilation": _each(dilation, rank),
        "ceil_mode": bool(ceil_mode),
    }


# --- shapes --------------------------------------------------------------------------------------


def _sizes(node: Node) -> tuple[int, ...]:
    sizes = tuple(n for n in node.shape if has_value(n))
    if len(sizes) != len(node.shape):
        raise ShapeError(f"pooling wants known sizes, got {shape_of(node.shape)}")
    return sizes


def pooled_sizes(op: str, size: Sequence[int], attrs: Attrs) -> tuple[int, ...]:
    """How many windows fit each axis; :class:`ShapeError` when there is none."""
    rank = len(size)
    if not 1 <= rank <= 3:
        raise ShapeError(f"{op} wants (N, C, one to three spatial axes), got {rank} spatial ones")
    for name in ("kernel", "strides", "padding", "dilation"):
        if len(attrs[name]) != rank:
            raise ShapeError(f"{op}: {rank} spatial axes want {rank} {name}, got {attrs[name]}")
    if min(*attrs["kernel"], *attrs["strides"], *attrs["dilation"]) < 1:
        raise ShapeError(f"{op}: kernel, strides and dilation are at least one")
    if min(min(p) for p in attrs["padding"]) < 0:
        raise ShapeError(f"{op}: padding is at least zero, got {attrs['padding']}")
    out = []
    for n, k, s, (low, high), d in zip(
        size, attrs["kernel"], attrs["strides"], attrs["padding"], attrs["dilation"]
    ):
        free = n + low + high - d * (k - 1) - 1
        count = (-(-free // s) if attrs["ceil_mode"] else free // s) + 1
        if attrs["ceil_mode"] and (count - 1) * s >= n + low:
            count -= 1
        if count < 1 or free < 0:
            raise ShapeError(
                f"{op}: a window of {k} with dilation {d} is larger than an axis of {n} padded "
                f"by {(low, high)}"
            )
        out.append(count)
    return tuple(out)


def _infer_max(inputs: Sequence[Node], attrs: Attrs) -> Sequence[tuple[Shape, DType]]:
    (x,) = inputs
    if x.dtype is boolean:
        raise ShapeError("max_pool wants numbers, got bool: use a logical reduction")
    if attrs["index_dtype"] not in (i32, i64):
        raise ShapeError(f"max_pool: index_dtype is i32 or i64, got {attrs['index_dtype']}")
    sizes = _sizes(x)
    shape = (*sizes[:2], *pooled_sizes("max_pool", sizes[2:], attrs))
    return (shape, x.dtype), (shape, attrs["index_dtype"])


def _no_single_result(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    raise ShapeError("max_pool has two results: use make_parts")


def _check_places(op: str, values: Node, places: Node) -> None:
    if places.dtype not in (i32, i64):
        raise ShapeError(f"{op}: places are i32 or i64, got {places.dtype}")
    if len(values.shape) != len(places.shape) or values.shape[:2] != places.shape[:2]:
        raise ShapeError(
            f"{op}: {shape_of(values.shape)} and places {shape_of(places.shape)} do not fit"
        )


def _infer_max_gradient(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    grad, places = inputs
    _check_places("max_pool_gradient", grad, places)
    if grad.shape != places.shape or len(attrs["size"]) != len(grad.shape) - 2:
        raise ShapeError(
            f"max_pool_gradient: grad {shape_of(grad.shape)} wants places of that shape and "
            f"{len(grad.shape) - 2} sizes, got {shape_of(places.shape)} and {attrs['size']}"
        )
    return (*grad.shape[:2], *attrs["size"]), grad.dtype


def _infer_take(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    x, places = inputs
    _check_places("max_pool_take", x, places)
    return places.shape, x.dtype


def _infer_average(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    (x,) = inputs
    if not x.dtype.is_float:
        raise ShapeError(f"avg_pool wants floats, got {x.dtype}")
    sizes = _sizes(x)
    return (*sizes[:2], *pooled_sizes("avg_pool", sizes[2:], attrs)), x.dtype


def _infer_average_gradient(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    (grad,) = inputs
    sizes, size = _sizes(grad), tuple(attrs["size"])
    out = pooled_sizes("avg_pool_gradient", size, attrs)
    if sizes[2:] != out:
        raise ShapeError(f"avg_pool_gradient: a result {size} wants grad {out}, got {sizes[2:]}")
    return (*sizes[:2], *size), grad.dtype


# --- references ----------------------------------------------------------------------------------


def _taps(out: Sequence[int], size: Sequence[int], attrs: Attrs) -> Any:
    """For each tap, ascending: the input positions per axis that the windows see, by output."""
    for tap in product(*map(range, attrs["kernel"])):
        yield [
            np.arange(n) * s + k * d - low
            for n, s, k, d, (low, _) in zip(
                out, attrs["strides"], tap, attrs["dilation"], attrs["padding"]
            )
        ]


def _inside(at: Sequence[np.ndarray], size: Sequence[int]) -> np.ndarray:
    """Which of the positions (outer product of the axes) lie in the input."""
    return _outer(np.logical_and, [(a >= 0) & (a < n) for a, n in zip(at, size)])


def _outer(combine: Any, axes: Sequence[np.ndarray]) -> np.ndarray:
    """One array per axis combined to one over all of them."""
    total = np.asarray(axes[0])
    for one in axes[1:]:
        total = combine.outer(total, one)
    return total


def _clipped(at: Sequence[np.ndarray], size: Sequence[int]) -> tuple[Any, ...]:
    """The positions as an index, those outside moved inside."""
    return (..., *np.ix_(*(np.clip(a, 0, max(n - 1, 0)) for a, n in zip(at, size))))


def max_pool_reference(x: np.ndarray, **attrs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Window by window: the first of the largest, or the last NaN."""
    size = x.shape[2:]
    out = pooled_sizes("max_pool", size, attrs)
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    best = np.full((*x.shape[:2], *out), lowest, x.dtype)
    place = np.full(best.shape, -1, np.int64)
    for at in _taps(out, size, attrs):
        where = _clipped(at, size)
        seen = x[where]
        flat = np.ravel_multi_index(where[1:], tuple(size))
        take = _inside(at, size) & ((seen > best) | (seen != seen) | (place < 0))
        best, place = np.where(take, seen, best), np.where(take, flat, place)
    return best, place.astype(attrs["index_dtype"].storage)


def max_pool_gradient_reference(
    grad: np.ndarray, places: np.ndarray, size: tuple[int, ...]
) -> np.ndarray:
    """Sums in float64."""
    rows = grad.shape[0] * grad.shape[1]
    plane = prod(size)
    total = np.zeros((rows, plane))
    flat = places.reshape(rows, prod(places.shape[2:]))
    values = grad.reshape(flat.shape).astype(np.float64)
    valid = (flat >= 0) & (flat < plane)
    row = np.broadcast_to(np.arange(rows)[:, None], flat.shape)
    np.add.at(total, (row[valid], flat[valid]), values[valid])
    return total.reshape(*grad.shape[:2], *size).astype(grad.dtype)


def max_pool_take_reference(x: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Zero for a place outside the plane."""
    rows, plane = x.shape[0] * x.shape[1], prod(x.shape[2:])
    flat = places.reshape(rows, prod(places.shape[2:]))
    valid = (flat >= 0) & (flat < plane)
    if plane == 0:
        return np.zeros(places.shape, x.dtype)
    taken = np.take_along_axis(x.reshape(rows, plane), np.where(valid, flat, 0), 1)
    return np.where(valid, taken, 0).reshape(places.shape).astype(x.dtype)


def _divisors(size: Sequence[int], out: Sequence[int], attrs: Attrs) -> np.ndarray:
    """How many positions each window counts."""
    if attrs.get("divisor"):
        return np.full(tuple(out), float(attrs["divisor"]))
    include = attrs["count_include_pad"]
    counts = []
    for n, o, k, s, d, (low, high) in zip(
        size,
        out,
        attrs["kernel"],
        attrs["strides"],
        attrs["dilation"],
        attrs["padding"],
    ):
        at = np.arange(o)[:, None] * s + np.arange(k) * d - low
        first, last = (-low, n + high) if include else (0, n)
        counts.append(((at >= first) & (at < last)).sum(1))
    return _outer(np.multiply, counts).astype(np.float64)


def avg_pool_reference(x: np.ndarray, **attrs: Any) -> np.ndarray:
    """The sum in float64 over the divisor, rounded once."""
    size = x.shape[2:]
    out = pooled_sizes("avg_pool", size, attrs)
    total = np.zeros((*x.shape[:2], *out))
    for at in _taps(out, size, attrs):
        seen = x[_clipped(at, size)].astype(np.float64)
        total += np.where(_inside(at, size), seen, 0)
    mean: np.ndarray = total / _divisors(size, out, attrs)
    return mean.astype(x.dtype)


def avg_pool_gradient_reference(grad: np.ndarray, **attrs: Any) -> np.ndarray:
    """The transpose, tap by tap, in float64, rounded once."""
    size, out = attrs["size"], grad.shape[2:]
    total = np.zeros((*grad.shape[:2], *size))
    share = grad.astype(np.float64) / _divisors(size, out, attrs)
    for at in _taps(out, size, attrs):
        np.add.at(total, _clipped(at, size), np.where(_inside(at, size), share, 0))
    return total.astype(grad.dtype)


# --- gradients -----------------------------------------------------------------------------------


def _max_gradient(node: Node, grad: tuple[Node | None, Node | None]) -> tuple[Node | None]:
    if grad[0] is None:
        return (None,)
    (x,) = node.inputs
    place = Node("part", (node,), grad[0].shape, node.attrs["index_dtype"], {"index": 1})
    return (max_pool_gradient(grad[0], place, _sizes(x)[2:]),)


def _scatter_gradient(node: Node, grad: Node) -> tuple[Node, None]:
    return max_pool_take(grad, node.inputs[1]), None


def _take_gradient(node: Node, grad: Node) -> tuple[Node, None]:
    x, places = node.inputs
    return max_pool_gradient(grad, places, _sizes(x)[2:]), None


def _average_gradient(node: Node, grad: Node) -> tuple[Node]:
    return (avg_pool_gradient(grad, _sizes(node.inputs[0])[2:], **node.attrs),)


def _average_gradient_gradient(node: Node, grad: Node) -> tuple[Node]:
    attrs = {name: value for name, value in node.attrs.items() if name != "size"}
    return (make("avg_pool", grad, **attrs),)


# --- kernels -------------------------------------------------------------------------------------


def _window(attrs: Attrs) -> dict[str, Any]:
    """The window in canonical form: three axes."""
    return {
        "kernel": spatial(attrs["kernel"]),
        "strides": spatial(attrs["strides"]),
        "dilation": spatial(attrs["dilation"]),
        "low": spatial([low for low, _ in attrs["padding"]], 0),
    }


def _counted(attrs: Attrs) -> tuple[tuple[int, int], ...]:
    """Per axis, how far beyond the input positions count for a mean."""
    pairs: Pairs = attrs["padding"] if attrs["count_include_pad"] else ()
    return ((0, 0),) * (3 - len(pairs)) + tuple(pairs)


def _max_calls(node: Node, inputs: Sequence[Buffer], outs: Sequence[Buffer]) -> list[KernelCall]:
    x, values, places = map(planes, (inputs[0], *outs))
    return max_calls(x, values, places, **_window(node.attrs))


def _scatter_workspace(node: Node) -> Sequence[tuple[DType, Shape]]:
    """Sums of 16-bit floats wait in f32."""
    return ((f32, node.shape),) if node.dtype in (f16, bf16) else ()


def _scatter_calls(
    node: Node, inputs: Sequence[Buffer], out: Buffer, workspace: Sequence[Buffer]
) -> list[KernelCall]:
    grad, places, x = map(planes, (*inputs, out))
    return scatter_calls(grad, places, x, planes(workspace[0]) if workspace else x)


def _take_calls(node: Node, inputs: Sequence[Buffer], out: Buffer) -> list[KernelCall]:
    return take_calls(*map(planes, (*inputs, out)))


def _average_calls(node: Node, inputs: Sequence[Buffer], out: Buffer) -> list[KernelCall]:
    x, y = planes(inputs[0]), planes(out)
    divisor, counted = node.attrs.get("divisor", 0), _counted(node.attrs)
    return average_calls(x, y, **_window(node.attrs), counted=counted, divisor=divisor)


def _average_gradient_calls(node: Node, inputs: Sequence[Buffer], out: Buffer) -> list[KernelCall]:
    y, x = planes(inputs[0]), planes(out)
    divisor, counted = node.attrs.get("divisor", 0), _counted(node.attrs)
    return average_gradient_calls(y, x, **_window(node.attrs), counted=counted, divisor=divisor)


register(
    OpDef(
        "max_pool",
        _no_single_result,
        max_pool_reference,
        infer_parts=_infer_max,
        calls=_max_calls,
        gradient=_max_gradient,
    )
)
register(
    OpDef(
        "max_pool_gradient",
        _infer_max_gradient,
        max_pool_gradient_reference,
        calls=_scatter_calls,
        workspace=_scatter_workspace,
        gradient=_scatter_gradient,
    )
)
register(
    OpDef(
        "max_pool_take",
        _infer_take,
        max_pool_take_reference,
        calls=_take_calls,
        gradient=_take_gradient,
    )
)
register(
    OpDef(
        "avg_pool",
        _infer_average,
        avg_pool_reference,
        calls=_average_calls,
        gradient=_average_gradient,
    )
)
register(
    OpDef(
        "avg_pool_gradient",
        _infer_average_gradient,
        avg_pool_gradient_reference,
        calls=_average_gradient_calls,
        gradient=_average_gradient_gradient,
    )
)

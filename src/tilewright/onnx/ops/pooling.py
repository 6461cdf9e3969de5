"""Pooling over windows, planes and regions."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.dtypes import i32, i64
from tilewright.graph import Node
from tilewright.onnx.ops.convolution import Ints, Pairs, each, pad_pairs
from tilewright.onnx.registry import Call, op
from tilewright.ops import elementwise as ew
from tilewright.ops import images, pool, views
from tilewright.tensor.core import Tensor, apply


def _window(
    x: Tensor, kernel: tuple[int, ...], auto_pad: str, pads: Ints, strides: Ints, dilations: Ints
) -> tuple[tuple[int, ...], tuple[int, ...], Pairs, tuple[int, ...]]:
    """kernel, strides, padding, dilation."""
    rank = x.ndim - 2
    kernel = each(kernel, rank, "numbers in kernel_shape")
    steps, gaps = each(strides, rank, "strides"), each(dilations, rank, "dilations")
    return kernel, steps, pad_pairs(auto_pad, pads, x.shape[2:], kernel, steps, gaps), gaps


@op("MaxPool")
def max_pool(
    x: Tensor,
    *,
    kernel_shape: tuple[int, ...],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints = None,
    pads: Ints = None,
    storage_order: int = 0,
    strides: Ints = None,
    ctx: Call,
) -> Any:
    """The largest value of each window and, if wanted, its place in the whole of x."""
    kernel, steps, pairs, gaps = _window(x, kernel_shape, auto_pad, pads, strides, dilations)
    values, places = pool.max_pool(
        x.node, kernel, steps, pairs, gaps, bool(ceil_mode), i64 if ctx.n_outputs > 1 else i32
    )
    if ctx.n_outputs < 2:
        return Tensor(values)
    return Tensor(values), Tensor(_whole_places(places, x.shape, storage_order))


def _whole_places(places: Node, shape: tuple[int, ...], column_major: int) -> Node:
    """Places in planes as places in the whole tensor (of which planes are row- or column-major)."""
    size = shape[2:]
    if column_major:
        rest, found, stride = places, None, int(np.prod(size))
        for n in reversed(size):  # the last axis runs fastest in a place
            stride //= n
            at = ew.remainder(rest, ew.literal(n, places))
            rest = ew.floor_divide(rest, ew.literal(n, places))
            part = ew.mul(at, ew.literal(stride, places))
            found = part if found is None else ew.add(found, part)
        assert found is not None
        places = found
    planes = shape[0] * shape[1]
    first = ew.mul(ew.iota((planes,), 0, i64), ew.literal(int(np.prod(size)), places))
    lead = views.reshape(first, (shape[0], shape[1], *(1,) * len(size)))
    return ew.add(places, views.broadcast(lead, places.shape))


@op("AveragePool")
def average_pool(
    x: Tensor,
    *,
    kernel_shape: tuple[int, ...],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Tensor:
    """The mean of each window."""
    kernel, steps, pairs, gaps = _window(x, kernel_shape, auto_pad, pads, strides, dilations)
    return apply(
        pool.avg_pool,
        x,
        kernel=kernel,
        strides=steps,
        padding=pairs,
        dilation=gaps,
        ceil_mode=bool(ceil_mode),
        count_include_pad=bool(count_include_pad),
    )


@op("LpPool", since=2)
def lp_pool(
    x: Tensor,
    *,
    kernel_shape: tuple[int, ...],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints = None,
    p: float = 2,
    pads: Ints = None,
    strides: Ints = None,
) -> Tensor:
    """``(sum |x|^p)^(1/p)`` of each window."""
    kernel, steps, pairs, gaps = _window(x, kernel_shape, auto_pad, pads, strides, dilations)
    return apply(
        images.lp_pool,
        x,
        kernel=kernel,
        strides=steps,
        padding=pairs,
        dilation=gaps,
        ceil_mode=bool(ceil_mode),
        p=p,
    )


@op("LpPool", since=1)
def lp_pool_1(
    x: Tensor,
    *,
    kernel_shape: Ints = None,
    auto_pad: str = "NOTSET",
    p: float = 2.0,
    pads: Ints = None,
    strides: Ints = None,
) -> Tensor:
    """Before version 2 the kernel could be left out (the whole plane) and p was a float."""
    kernel = kernel_shape or x.shape[2:]
    return lp_pool(x, kernel_shape=kernel, auto_pad=auto_pad, p=p, pads=pads, strides=strides)


@op("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """The mean of each plane."""
    return apply(pool.global_avg_pool, x)


@op("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """The largest value of each plane."""
    return x.max(axis=tuple(range(2, x.ndim)), keepdims=True)


@op("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: float = 2) -> Tensor:
    """``(sum |x|^p)^(1/p)`` of each plane."""
    axes = tuple(range(2, x.ndim))
    if p == 2:
        return (x * x).sum(axis=axes, keepdims=True).sqrt()
    return (abs(x) ** p).sum(axis=axes, keepdims=True) ** (1.0 / p)


@op("MaxUnpool", host=(2,))
def max_unpool(
    x: Tensor,
    places: Tensor,
    output_shape: np.ndarray | None = None,
    *,
    kernel_shape: tuple[int, ...],
    pads: Ints = None,
    strides: Ints = None,
) -> Tensor:
    """Values put back at the places that MaxPool gave, the rest zero."""
    rank = x.ndim - 2
    steps = each(strides, rank, "strides")
    pairs = pad_pairs("NOTSET", pads, x.shape[2:], kernel_shape, steps, (1,) * rank)
    size = tuple(
        (n - 1) * s - low - high + k
        for n, s, (low, high), k in zip(x.shape[2:], steps, pairs, kernel_shape)
    )
    whole = int(np.prod(size))
    target = size if output_shape is None else tuple(int(n) for n in output_shape)[2:]

    def build(values: Node, at: Node) -> Node:
        at = ew.remainder(at, ew.literal(whole, at))  # places count in the whole tensor
        return images.max_unpool(values, at, size, target)

    return apply(build, x, places)

"""Convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from tilewright.errors import ShapeError, UnsupportedError
from tilewright.graph import Node
from tilewright.onnx.registry import op
from tilewright.ops import conv as convolutions
from tilewright.ops import windows
from tilewright.tensor.core import Tensor, apply

__all__ = ["convolve", "pad_pairs", "transposed"]

Ints = tuple[int, ...] | None
Pairs = tuple[tuple[int, int], ...]


def pad_pairs(
    auto_pad: str,
    pads: Ints,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> Pairs:
    """Padding before and after each spatial axis, as ``auto_pad`` or ``pads`` say."""
    rank = len(size)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        return convolutions.same_padding(size, kernel, strides, dilations, auto_pad == "SAME_UPPER")
    if auto_pad not in ("NOTSET", "VALID", ""):
        raise UnsupportedError(f"auto_pad {auto_pad!r} does not exist")
    if auto_pad == "VALID" or pads is None:
        return ((0, 0),) * rank
    if len(pads) != 2 * rank:
        raise ShapeError(f"{rank} spatial axes want {2 * rank} pads, got {pads}")
    return tuple(zip(pads[:rank], pads[rank:]))


def each(values: Ints, rank: int, what: str) -> tuple[int, ...]:
    """One number per spatial axis; 1 by default."""
    if values is not None and len(values) != rank:
        raise ShapeError(f"{rank} spatial axes want {rank} {what}, got {values}")
    return (1,) * rank if values is None else tuple(values)


def _biased(y: Tensor, b: Tensor | None) -> Tensor:
    return y if b is None else y + b.reshape((-1, *(1,) * (y.ndim - 2)))


def convolve(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    auto_pad: str,
    dilations: Ints,
    group: int,
    kernel_shape: Ints,
    pads: Ints,
    strides: Ints,
) -> Tensor:
    """What Conv does."""
    rank = x.ndim - 2
    if kernel_shape is not None and tuple(kernel_shape) != tuple(w.shape[2:]):
        raise ShapeError(f"kernel_shape {kernel_shape} is not that of the weight {w.shape}")
    steps, gaps = each(strides, rank, "strides"), each(dilations, rank, "dilations")
    pairs = pad_pairs(auto_pad, pads, x.shape[2:], w.shape[2:], steps, gaps)
    y = apply(convolutions.conv, x, w, strides=steps, padding=pairs, dilation=gaps, groups=group)
    return _biased(y, b)


@op("Conv")
def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Tensor:
    """Convolution: x (N, C, *size), w (O, C/group, *kernel), b (O,)."""
    return convolve(x, w, b, auto_pad, dilations, group, kernel_shape, pads, strides)


def transposed(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    more: Sequence[int],
    auto_pad: str,
    pads: Ints,
    output_shape: Ints,
) -> Pairs:
    """Padding (low, high) of a transposed convolution, output padding counted in.

    Where the output's size is given (or is the input's times the stride: SAME), the padding is what
    is too much, more of it at the end for SAME_UPPER, else in front.
    """
    rank = len(size)
    full = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(size, strides, dilations, kernel)]
    if output_shape is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        output_shape = tuple(n * s for n, s in zip(size, strides))
    if output_shape is None:
        pairs = pad_pairs(auto_pad, pads, size, kernel, strides, dilations)
        return tuple((low, high - m) for (low, high), m in zip(pairs, more))
    wanted = output_shape[-rank:]  # some models name batch and channels too
    found = []
    for n, m, out in zip(full, more, wanted):
        total = max(n + m - out, 0)
        low = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
        found.append((low, n - out - low))
    return tuple(found)


@op("ConvTranspose")
def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    output_padding: Ints = None,
    output_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Tensor:
    """Transposed convolution: x (N, C, *size), w (C, O/group, *kernel), b (O,)."""
    rank = x.ndim - 2
    if kernel_shape is not None and tuple(kernel_shape) != tuple(w.shape[2:]):
        raise ShapeError(f"kernel_shape {kernel_shape} is not that of the weight {w.shape}")
    steps, gaps = each(strides, rank, "strides"), each(dilations, rank, "dilations")
    more = (0,) * rank if output_padding is None else output_padding
    if output_shape is not None and len(output_shape) < rank:
        raise ShapeError(f"{rank} spatial axes want {rank} sizes in output_shape")
    pairs = transposed(x.shape[2:], w.shape[2:], steps, gaps, more, auto_pad, pads, output_shape)
    y = apply(
        convolutions.conv_transpose,
        x,
        w,
        strides=steps,
        padding=pairs,
        dilation=gaps,
        groups=group,
    )
    return _biased(y, b)


@op("Col2Im", host=(1, 2))
def col2im(
    x: Tensor,
    image_shape: np.ndarray,
    block_shape: np.ndarray,
    *,
    dilations: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Tensor:
    """Columns (N, C * taps, positions) added up to images (N, C, *image_shape)."""
    size, kernel = [int(n) for n in image_shape], [int(n) for n in block_shape]
    rank = len(size)
    steps, gaps = each(strides, rank, "strides"), each(dilations, rank, "dilations")
    pairs = pad_pairs("NOTSET", pads, size, kernel, steps, gaps)

    def build(n: Node) -> Node:
        if rank <= 3:
            return windows.col2im(n, size, kernel, steps, pairs, gaps)
        raise UnsupportedError(f"Col2Im: one to three image axes, got {rank} ({prod(size)} pixels)")

    return apply(build, x)

"""What image networks are made of beside convolutions and pooling, composed of other ops."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from tilewright.dtypes import DType, f32
from tilewright.errors import ShapeError
from tilewright.graph import Node, shape_of
from tilewright.ops.arithmetic import abs, add, literal, mul, scale, square
from tilewright.ops.creation import cast, zeros
from tilewright.ops.elementwise_math import pow
from tilewright.ops.indexing import put_along_axis
from tilewright.ops.norm import normalize
from tilewright.ops.pool import avg_pool
from tilewright.ops.views import broadcast, pad, permute, reshape, sizes_of

__all__ = [
    "depth_to_space",
    "group_norm",
    "instance_norm",
    "local_response_norm",
    "lp_pool",
    "max_unpool",
    "shuffle_channels",
    "space_to_depth",
]

Numbers = int | Sequence[int]
Padding = int | Sequence[int | tuple[int, int]]


def _image(op: str, x: Node, rank: int | None = None) -> tuple[int, ...]:
    shape = sizes_of(x)
    if len(shape) < 3 or (rank is not None and len(shape) != rank):
        raise ShapeError(f"{op} wants (N, C, spatial axes), got {shape_of(x.shape)}")
    return shape


# --- channels and space --------------------------------------------------------------------------


def depth_to_space(x: Node, block: int, mode: str = "DCR") -> Node:
    """x (N, C, H, W) -> (N, C / block^2, H * block, W * block), ONNX DepthToSpace.

    ``DCR`` reads channels as (block, block, C'), ``CRD`` as (C', block, block), as
    ``torch.nn.PixelShuffle`` does.
    """
    n, c, h, w = _image("depth_to_space", x, 4)
    if block < 1 or c % (block * block) or mode not in ("DCR", "CRD"):
        raise ShapeError(
            f"depth_to_space wants channels divisible by block^2 and mode DCR or CRD, got {c} "
            f"channels, block {block}, mode {mode!r}"
        )
    deep = c // (block * block)
    if mode == "DCR":
        cut = permute(reshape(x, (n, block, block, deep, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        cut = permute(reshape(x, (n, deep, block, block, h, w)), (0, 1, 4, 2, 5, 3))
    return reshape(cut, (n, deep, h * block, w * block))


def space_to_depth(x: Node, block: int) -> Node:
    """x (N, C, H, W) -> (N, C * block^2, H / block, W / block), the inverse of ``DCR``."""
    n, c, h, w = _image("space_to_depth", x, 4)
    if block < 1 or h % block or w % block:
        raise ShapeError(f"space_to_depth: a block of {block} does not cut {h} x {w}")
    cut = reshape(x, (n, c, h // block, block, w // block, block))
    return reshape(permute(cut, (0, 3, 5, 1, 2, 4)), (n, c * block * block, h // block, w // block))


def shuffle_channels(x: Node, groups: int) -> Node:
    """Channels (groups, C / groups) of x (N, C, ...) transposed (ShuffleNet, Zhang et al. 2018)."""
    shape = _image("shuffle_channels", x)
    if groups < 1 or shape[1] % groups:
        raise ShapeError(f"shuffle_channels: {groups} groups do not cut {shape[1]} channels")
    cut = reshape(x, (shape[0], groups, shape[1] // groups, *shape[2:]))
    return reshape(permute(cut, (0, 2, 1, *range(3, len(shape) + 1))), shape)


# --- pooling -------------------------------------------------------------------------------------


def lp_pool(
    x: Node,
    kernel: Numbers,
    strides: Numbers | None = None,
    padding: Padding = 0,
    dilation: Numbers = 1,
    ceil_mode: bool = False,
    p: float = 2,
) -> Node:
    """``(sum of |x|^p over each window)^(1/p)``; arguments as in ``pool.avg_pool``, f32 inside."""
    if p <= 0:
        raise ShapeError(f"lp_pool: p is above zero, got {p}")
    wide = cast(x, f32) if x.dtype.bits < 32 else x
    total = avg_pool(_power(wide, p), kernel, strides, padding, dilation, ceil_mode, divisor=1)
    return cast(_power(total, 1 / p), x.dtype)


def _power(x: Node, p: float) -> Node:
    """|x|^p."""
    if p == 1:
        return abs(x)
    return square(x) if p == 2 else pow(abs(x), literal(float(p), x))


def max_unpool(
    x: Node, places: Node, size: Sequence[int], output_size: Sequence[int] | None = None
) -> Node:
    """x (N, C, *in) put at its places in zeros (N, C, *size), the last of equal places last.

    Args:
        places: of ``max_pool``: positions in the plane of each channel, shaped like x.
        size: the plane that the places count in.
        output_size: the result's plane where that is a larger one: zeros follow on every axis.
    """
    shape = _image("max_unpool", x)
    if places.shape != x.shape or len(size) != len(shape) - 2:
        raise ShapeError(
            f"max_unpool: x {shape_of(x.shape)} wants places of that shape and "
            f"{len(shape) - 2} sizes, got {shape_of(places.shape)} and {tuple(size)}"
        )
    flat = (shape[0] * shape[1], prod(shape[2:]))
    base = zeros((flat[0], prod(size)), x.dtype)
    y = put_along_axis(base, reshape(places, flat), reshape(x, flat), 1)
    y = reshape(y, (*shape[:2], *size))
    more = [n - m for n, m in zip(size if output_size is None else output_size, size)]
    if len(more) != len(size) or min(more) < 0:
        raise ShapeError(f"max_unpool: output_size {output_size} does not hold a plane {size}")
    return pad(y, ((0, 0), (0, 0), *((0, n) for n in more))) if any(more) else y


# --- normalisation -------------------------------------------------------------------------------


def local_response_norm(
    x: Node, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Node:
    """``x / (bias + alpha / size * sum of x^2 over size neighbouring channels)^beta``.

    x (N, C, ...); the window of channel c begins at ``c - (size - 1) // 2``. f32 inside
    (Krizhevsky et al. 2012; ONNX LRN).
    """
    shape = _image("local_response_norm", x)
    if size < 1:
        raise ShapeError(f"local_response_norm: size is at least one, got {size}")
    wide = cast(x, f32) if x.dtype.bits < 32 else x
    rows = reshape(square(wide), (shape[0], 1, shape[1], prod(shape[2:])))
    low = (size - 1) // 2
    total = avg_pool(rows, (size, 1), 1, ((low, size - 1 - low), (0, 0)), divisor=1)
    base = add(scale(reshape(total, shape), alpha / size), literal(bias, wide))
    return cast(mul(wide, pow(base, literal(-beta, wide))), x.dtype)


def group_norm(
    x: Node,
    groups: int,
    weight: Node | None = None,
    bias: Node | None = None,
    eps: float = 1e-5,
    stash: DType = f32,
) -> Node:
    """Each of ``groups`` groups of channels of x (N, C, ...) normalised (Wu & He 2018).

    ``weight`` and ``bias`` are (C,), or (groups,) as in ONNX before opset 21. ``stash`` is what
    16-bit floats are computed in.
    """
    shape = _image("group_norm", x)
    if groups < 1 or shape[1] % groups:
        raise ShapeError(f"group_norm: {groups} groups do not cut {shape[1]} channels")
    wide = cast(x, stash) if x.dtype.bits < 32 else x
    cut = reshape(wide, (shape[0], groups, prod(shape[1:]) // groups))
    y = normalize(cut, 2, eps)
    if weight is not None and sizes_of(weight) == (groups,) and groups != shape[1]:
        spread = (shape[0], groups, 1)
        y = mul(y, broadcast(reshape(cast(weight, wide.dtype), (1, groups, 1)), spread))
        weight = None
        if bias is not None and sizes_of(bias) == (groups,):
            y = add(y, broadcast(reshape(cast(bias, wide.dtype), (1, groups, 1)), spread))
            bias = None
    return cast(_affine(reshape(y, shape), weight, bias), x.dtype)


def _affine(y: Node, *parameters: Any) -> Node:
    """``y * weight + bias`` per channel (axis 1); parameters may be None."""
    for fn, parameter in zip((mul, add), parameters):
        if parameter is not None:
            shape = (1, -1, *(1,) * (len(y.shape) - 2))
            y = fn(y, reshape(cast(parameter, y.dtype), shape))
    return y


def instance_norm(
    x: Node, weight: Node | None = None, bias: Node | None = None, eps: float = 1e-5
) -> Node:
    """Each plane of x (N, C, ...) normalised (Ulyanov et al. 2016); weight, bias (C,)."""
    return group_norm(x, _image("instance_norm", x)[1], weight, bias, eps)

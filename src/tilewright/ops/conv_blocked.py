"""Convolutions of blocked images by packed weights, for inference.

``conv_blocked`` sums like :func:`tilewright.ops.conv.conv`: an output is one accumulator (f32) that
takes one fused multiply-add per channel and tap, channels outermost, then taps, all ascending; so
the bits are the same (terms of padding, which are zero, and of channels beyond C come on top). With
``compute=bf16`` it takes one ``dot2`` per tap and pair of channels, both rounded to bf16: channels
c and c + 8 of a block of 16, c ascending (2 c and 2 c + 1 where x is plain). ``depthwise_blocked``
does the same for one channel per group. Nothing depends on threads, tiles or the batch.

The image is (N, C / 16, H, W, 16) (see :mod:`tilewright.ops.blocked`) or, for the first layer,
plain (N, C, H, W); the result is blocked. Weights are packed once, by graph code, which the
compiler folds to constants. Elementwise work on the result is done before it is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from tilewright.dtypes import DType, bf16, f16, f32, from_float32, to_float32, u16, u32
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, const_node, shape_of
from tilewright.ops.blocked import BLOCK, block, blocks_of, unblock
from tilewright.ops.calls import KernelCall
from tilewright.ops.comparison import bitwise_or, shift_left
from tilewright.ops.conv import conv_reference
from tilewright.ops.conv_blocked_plan import conv_calls, copy_fits, depthwise_calls, tile_of
from tilewright.ops.conv_shapes import output_sizes
from tilewright.ops.creation import bitcast, cast
from tilewright.ops.epilogue import Epilogue
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import copy, pad, permute, reshape, sizes_of, slice_
from tilewright.runtime.buffers import Buffer

__all__ = ["conv_blocked", "depthwise_blocked", "suits", "suits_depthwise"]

Attrs = Mapping[str, Any]
Pairs = tuple[tuple[int, int], ...]

_NONE: Pairs = ((0, 0), (0, 0))
_NARROW = 14  # pixels of a row that fill a register tile


def suits(x: Node, w: Node, groups: int) -> bool:
    """Whether :func:`conv_blocked` computes a convolution of x (N, C, ...) by w well.

    One or two spatial axes, f32 or f16, and groups whose channels fill blocks.
    """
    shape = sizes_of(w)
    whole = groups == 1 or (shape[0] // groups % BLOCK == 0 and shape[1] % BLOCK == 0)
    return len(shape) in (3, 4) and x.dtype in (f32, f16) and whole and 0 not in sizes_of(x)


def suits_depthwise(x: Node, w: Node, groups: int) -> bool:
    """Whether :func:`depthwise_blocked` computes it: one channel in and out per group."""
    shape = sizes_of(w)
    one = groups == shape[0] == sizes_of(x)[1]
    return len(shape) in (3, 4) and x.dtype in (f32, f16) and one and 0 not in sizes_of(x)


def conv_blocked(
    x: Node,
    w: Node,
    strides: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
    groups: int = 1,
    compute: DType | None = None,
) -> Node:
    """x blocked, or plain (N, C, H, W), w (O, C/groups, KH, KW) -> (N, O / 16, OH, OW, 16).

    Two spatial axes. ``compute=bf16`` rounds x and w to bf16 (but not where the taps lie so far
    apart that x is padded first). A plain x wants one group.
    """
    o, c, kh, kw = sizes_of(w)
    blocked = len(x.shape) == 5
    size = sizes_of(x)[2:4]
    out = output_sizes("conv_blocked", size, (kh, kw), strides, padding, dilation)
    fits = copy_fits(
        (out[0], out[1]), (kh, kw), (strides[0], strides[1]), (dilation[0], dilation[1]), c,
        compute is bf16,
    )  # fmt: skip
    if any(map(any, padding)) and (not fits or (max(dilation) > 1 and compute is None)):
        # taps so far apart that programs would copy much more than they make
        wide = ((0, 0), (0, 0), *padding, *(((0, 0),) if blocked else ()))
        return conv_blocked(pad(x, wide), w, strides, _NONE, dilation, groups)
    if (kh, kw, padding) == (1, 1, _NONE) and max(strides) > 1 and blocked and out[1] < _NARROW:
        n, blocks = sizes_of(x)[:2]  # rows of few pixels: they are joined
        few = slice_(x, (0,) * 5, (n, blocks, *out, BLOCK), (1, 1, *strides, 1))
        return conv_blocked(copy(few), w, (1, 1), _NONE, dilation, groups, compute)
    flat = (kh, kw, *strides) == (1, 1, 1, 1) and not any(map(any, padding))
    pairs = compute is bf16
    lanes = tile_of((1, prod(out)) if flat else (out[0], out[1]), kh * kw, o // groups, pairs)[1]
    attrs: dict[str, Any] = {} if compute is None else {"compute": compute}
    return make(
        "conv_blocked",
        x,
        _packed(w, groups, BLOCK if blocked else 1, lanes, pairs),
        channels=c * groups,
        outputs=o,
        strides=tuple(strides),
        padding=padding,
        dilation=tuple(dilation),
        groups=groups,
        **attrs,
    )


def depthwise_blocked(
    x: Node, w: Node, strides: Sequence[int], padding: Pairs, dilation: Sequence[int]
) -> Node:
    """x (N, C / 16, H, W, 16), w (C, 1, KH, KW) -> (N, C / 16, OH, OW, 16)."""
    c, _, kh, kw = sizes_of(w)
    blocks = blocks_of(c)
    wide = pad(cast(w, f32), ((0, blocks * BLOCK - c), (0, 0), (0, 0), (0, 0)))
    rows = permute(reshape(wide, (blocks, BLOCK, kh, kw)), (0, 2, 3, 1))
    return make(
        "depthwise_blocked",
        x,
        copy(rows),
        channels=c,
        strides=tuple(strides),
        padding=padding,
        dilation=tuple(dilation),
    )


def _packed(w: Node, groups: int, inner: int, lanes: int, pairs: bool) -> Node:
    """w (O, C, KH, KW) -> (groups, panels, C / inner, inner, KH, KW, lanes).

    Channels c and c + inner / 2 (or 2 c and 2 c + 1 without blocks) are one u32 with ``pairs``.
    """
    o, c, kh, kw = sizes_of(w)
    per_group = o // groups
    panels = -(-per_group // lanes)
    words = 2 if pairs and inner == 1 else 1
    more = -c % (inner * words), panels * lanes - per_group
    wide = pad(
        reshape(cast(w, f32), (groups, per_group, c, kh, kw)),
        ((0, 0), (0, more[1]), (0, more[0]), (0, 0), (0, 0)),
    )
    deep = c + more[0]
    if not pairs:
        cut = reshape(wide, (groups, panels, lanes, deep // inner, inner, kh, kw))
        return copy(permute(cut, (0, 1, 3, 4, 5, 6, 2)))
    bits = cast(bitcast(copy(cast(wide, bf16)), u16), u32)
    if inner == 1:
        cut = reshape(bits, (groups, panels, lanes, deep // 2, 2, 1, kh, kw))
        cut = permute(cut, (0, 1, 3, 4, 5, 6, 7, 2))
    else:
        cut = reshape(bits, (groups, panels, lanes, deep // inner, 2, inner // 2, kh, kw))
        cut = permute(cut, (0, 1, 3, 4, 5, 6, 7, 2))
    shape = sizes_of(cut)
    low, high = (
        slice_(cut, (0, 0, 0, i, 0, 0, 0, 0), (*shape[:3], 1, *shape[4:]), (1,) * 8) for i in (0, 1)
    )
    both = bitwise_or(low, shift_left(high, const_node(16, u32)))
    return copy(reshape(both, (*shape[:3], *shape[4:])))


def _unpacked(w: np.ndarray, outputs: int, channels: int, plain: bool) -> np.ndarray:
    """The weights (O, C/groups, KH, KW) that ``_packed`` was made of (bf16: what they became)."""
    if w.dtype == np.uint32:
        halves = [to_float32((w >> shift).astype(np.uint16)) for shift in (0, 16)]
        w = np.stack(halves, 3)  # (G, P, CB, 2, words, ...)
        w = w.reshape(*w.shape[:3], -1, *w.shape[5:])
    groups, panels, cb, cl, kh, kw, lanes = w.shape
    wide = w.transpose(0, 1, 6, 2, 3, 4, 5).reshape(groups, panels * lanes, cb * cl, kh, kw)
    cut = wide[:, : outputs // groups, : channels // groups]
    return cut.reshape(outputs, channels // groups, kh, kw)


# --- shapes and references -----------------------------------------------------------------------


def _out(op: str, x: Node, kernel: Sequence[int], attrs: Attrs) -> tuple[int, ...]:
    return output_sizes(
        op, sizes_of(x)[2:4], kernel, attrs["strides"], attrs["padding"], attrs["dilation"]
    )


def _infer(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    x, w = inputs[:2]
    sizes, packed = sizes_of(x), sizes_of(w)
    pairs = attrs.get("compute") is bf16
    if x.dtype not in (f32, f16) or w.dtype is not (u32 if pairs else f32) or len(packed) != 7:
        raise ShapeError(f"conv_blocked wants f32 or f16 and packed weights, got {x.dtype}, {w}")
    blocked = len(sizes) == 5
    wanted = blocks_of(attrs["channels"]) if blocked else attrs["channels"]
    if (not blocked and (len(sizes) != 4 or attrs["groups"] != 1)) or sizes[1] != wanted:
        raise ShapeError(
            f"conv_blocked: {attrs['channels']} channels in {attrs['groups']} groups, got x "
            f"{shape_of(x.shape)}"
        )
    out = _out("conv_blocked", x, packed[4:6], attrs)
    return (sizes[0], blocks_of(attrs["outputs"]), *out, BLOCK), x.dtype


def _infer_depthwise(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    x, w = inputs[:2]
    sizes, packed = sizes_of(x), sizes_of(w)
    if x.dtype not in (f32, f16) or w.dtype is not f32 or len(sizes) != 5 or len(packed) != 4:
        raise ShapeError(f"depthwise_blocked wants a blocked image and weights, got {x}, {w}")
    if sizes[1] != packed[0] or packed[3] != BLOCK:
        raise ShapeError(f"depthwise_blocked: {sizes[1]} blocks of channels, weights {packed}")
    out = _out("depthwise_blocked", x, packed[1:3], attrs)
    return (*sizes[:2], *out, BLOCK), x.dtype


def _reference(
    x: np.ndarray,
    w: np.ndarray,
    *extras: np.ndarray,
    channels: int,
    outputs: int,
    compute: DType | None = None,
    epilogue: Epilogue | None = None,
    **attrs: Any,
) -> np.ndarray:
    plain = x
    if x.ndim == 5:
        plain = unblock(x, (x.shape[0], channels, *x.shape[2:4]))
    if compute is bf16:
        plain = to_float32(from_float32(plain.astype(np.float32)))
    weights = _unpacked(w, outputs, channels, x.ndim == 4)
    y = block(conv_reference(plain.astype(np.float64), weights.astype(np.float64), **attrs))
    return y if epilogue is None else epilogue.evaluate(y, *extras)


def _depthwise_reference(
    x: np.ndarray,
    w: np.ndarray,
    *extras: np.ndarray,
    channels: int,
    epilogue: Epilogue | None = None,
    **attrs: Any,
) -> np.ndarray:
    whole = x.shape[1] * BLOCK
    plain = unblock(x, (x.shape[0], whole, *x.shape[2:4])).astype(np.float64)
    weights = w.transpose(0, 3, 1, 2).reshape(whole, 1, *w.shape[1:3])
    y = block(conv_reference(plain, weights.astype(np.float64), groups=whole, **attrs))
    return y if epilogue is None else epilogue.evaluate(y, *extras)


# --- elementwise work and kernels ----------------------------------------------------------------


def _absorb(node: Node, operand: Node, shape: Shape) -> tuple[str, Shape] | None:
    """Operands of the result's shape, per channel (of one image or all), or one number."""
    if shape != node.shape:
        return None
    own = (1,) * (5 - len(operand.shape)) + tuple(operand.shape)
    if own == node.shape:
        return "full", own
    if own[2:4] != (1, 1):
        return None
    if own[4] == 1:
        return ("number", own) if own[:2] == (1, 1) else None
    if own[1] != node.shape[1]:
        return None
    return ("channel" if own[0] == 1 else "image"), own


def _calls(node: Node, inputs: Sequence[Buffer], out: Buffer) -> list[KernelCall]:
    x, w, *extras = inputs
    return conv_calls(x, w, extras, out, node.attrs) if out.size else []


def _depthwise_calls(node: Node, inputs: Sequence[Buffer], out: Buffer) -> list[KernelCall]:
    x, w, *extras = inputs
    return depthwise_calls(x, w, extras, out, node.attrs) if out.size else []


register(OpDef("conv_blocked", _infer, _reference, calls=_calls, absorb=_absorb))
register(
    OpDef(
        "depthwise_blocked",
        _infer_depthwise,
        _depthwise_reference,
        calls=_depthwise_calls,
        absorb=_absorb,
    )
)

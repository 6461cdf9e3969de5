"""The fast weight gradient: matrix products over positions.

Output channels lie along the lanes again, so the gradient is transposed first, position by
position; the rows of a register tile are input channels, read in place through windows. The tiles
of all taps of an image (of a few, where they are small) are done before the next, while its rows
are in the cache.

An element is summed over the positions of an image, or of a few, in ascending order, one fused
multiply-add each; then over the images of a group, then over the groups. How many there are depends
on shapes only.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from dataclasses import dataclass, replace

from tilewright import lang as tl
from tilewright.dtypes import DType, f64, u32
from tilewright.lang import Array, Const, dot, program_id, unroll, zeros
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_shapes import (
    Geometry,
    accumulator,
    bits_of,
    has_dense_planes,
    is_dense,
    row_of,
)
from tilewright.ops.conv_tiles import Tiling, pair, step, tiling
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel
from tilewright.sizes import minimum

__all__ = ["WeightPlan", "weight_plan", "weight_tile_calls"]

_ALL = 1 << 30  # images of a group, where there is one: what a kernel is compiled for
_PIECE_BYTES = 1 << 17  # what one program writes of a transposed gradient: well inside L2
_POSITIONS = 512  # that a sum runs over before it waits in memory
_PROGRAMS = 64  # enough for the threads of any machine to share evenly


@dataclass(frozen=True)
class WeightPlan:
    """How a weight gradient is cut.

    Attributes:
        tile: rows are input channels, lanes output channels.
        blocks: tiles along the input channels; the last overlaps the one before.
        images: images per group.
        groups: groups of images whose sums are added at the end.
    """

    tile: Tiling
    blocks: int
    images: int
    groups: int

    def transposed_shape(self, whole: Geometry) -> tuple[int, ...]:
        """The gradient with its channels along the lanes."""
        return (whole.batch, whole.groups, self.tile.panels, *whole.out, self.tile.lanes)

    def sums_shape(self, whole: Geometry) -> tuple[int, ...]:
        """The sums of each group of images."""
        rows, lanes = self.tile.positions, self.tile.lanes
        return (
            self.groups,
            whole.groups,
            self.tile.panels,
            self.blocks,
            rows,
            *whole.kernel,
            lanes,
        )


def weight_plan(whole: Geometry, dtype: DType) -> WeightPlan:
    """The cut for these sizes."""
    tile = tiling(whole.channels, whole.outputs, accumulator(dtype) is f64)
    blocks = -(-whole.channels // tile.positions)
    programs = blocks * whole.groups * tile.panels
    images = -(-whole.batch // minimum(whole.batch, -(-_PROGRAMS // programs)))
    return WeightPlan(tile, blocks, images, -(-whole.batch // images))


@kernel
def channels_to_lanes(y: Array, out: Array, NT: Const, OUTS: Const, T: Const, PIECE: Const):
    """y (B, G, O, OD, OH, OW) -> out (B, G, panels, OD, OH, OW, NT), zeros beyond OUTS.

    Where out is u32 it has pairs of images of y, bf16 as u16. Eight channels at a time, so that
    memory is read in few streams: grid (OD * OH * pieces of OW, panels, B * G).
    """
    width = y.shape[5]
    pieces = (width + (PIECE - 1)) // PIECE
    row = program_id(0) // pieces
    first = program_id(0) % pieces * PIECE
    d = row // y.shape[4]
    h = row % y.shape[4]
    panel = program_id(1)
    n = program_id(2) // y.shape[1]
    g = program_id(2) % y.shape[1]
    o = tl.minimum(panel * NT, y.shape[2] - OUTS)
    tiles = (tl.minimum(width - first, PIECE) + (T - 1)) // T
    if OUTS < NT:
        for i in range(tiles):
            at = tl.minimum(first + i * T, width - T)
            for t in unroll(T):
                out[n, g, panel, d, h, at + t, 0:NT] = zeros((NT,), out.dtype)
    for j in range(0, OUTS // 8 * 8, 8):
        for i in range(tiles):
            at = tl.minimum(first + i * T, width - T)
            if out.dtype is u32:
                low = y[2 * n, g, o + j : o + j + 8, d, h, at : at + T]
                block = pair(low, y[2 * n + 1, g, o + j : o + j + 8, d, h, at : at + T])
            else:
                block = y[n, g, o + j : o + j + 8, d, h, at : at + T]
            out[n, g, panel, d, h, at : at + T, j : j + 8] = block.T
    if OUTS % 8:
        j = OUTS // 8 * 8
        for i in range(tiles):
            at = tl.minimum(first + i * T, width - T)
            if out.dtype is u32:
                low = y[2 * n, g, o + j : o + j + OUTS % 8, d, h, at : at + T]
                rest = pair(low, y[2 * n + 1, g, o + j : o + j + OUTS % 8, d, h, at : at + T])
            else:
                rest = y[n, g, o + j : o + j + OUTS % 8, d, h, at : at + T]
            out[n, g, panel, d, h, at : at + T, j : j + OUTS % 8] = rest.T


def _rows_inside(kh, rows, HEIGHT):
    """The first of the output rows whose tap ``kh`` reads x and not padding, and the end; inline.

    HEIGHT is (rows of padding before x, rows of x, stride, dilation).
    """
    low, size, stride, dilation = HEIGHT
    first = (tl.maximum(low - kh * dilation, 0) + (stride - 1)) // stride
    last = (tl.maximum(low + size - kh * dilation, 0) + (stride - 1)) // stride
    return tl.minimum(first, rows), tl.minimum(last, rows)


@kernel
def weight_tiles(
    x: Array,
    y: Array,
    sums: Array,
    IMAGES: Const,
    TOGETHER: Const,
    MT: Const,
    NT: Const,
    HEIGHT: Const,
    ACC: Const,
):
    """sums (S, G, panels, blocks, MT, KD, KH, KW, NT) of x and y.

    x is a view (B, G, C, KD, KH, KW, OD, OH, OW), y (B, G, panels, OD, OH, OW, NT). A program makes
    all taps of MT x NT channels for a group of images: grid (blocks, G * panels, S).
    """
    block = program_id(0)
    panel = program_id(1) % y.shape[2]
    g = program_id(1) // y.shape[2]
    s = program_id(2)
    c = tl.minimum(block * MT, x.shape[2] - MT)
    width = x.shape[8]
    end = tl.minimum(s * IMAGES + IMAGES, x.shape[0])
    for n0 in range(s * IMAGES, end, TOGETHER):
        for kd in range(x.shape[3]):
            for kh in range(x.shape[4]):
                above, below = _rows_inside(kh, x.shape[7], HEIGHT)
                for kw in range(x.shape[5]):
                    acc = zeros((MT, NT), ACC)
                    for n in range(n0, tl.minimum(n0 + TOGETHER, end)):
                        for d in range(x.shape[6]):
                            for h in range(above, below):
                                if x.dtype is not u32:
                                    left = x[n, g, c : c + MT, kd, kh, kw, d, h, 0:width]
                                    acc = dot(left, y[n, g, panel, d, h, 0:width, 0:NT], acc)
                                else:
                                    for i in range(0, width // 4 * 4, 4):
                                        for j in unroll(4):
                                            left = x[n, g, c : c + MT, kd, kh, kw, d, h, i + j]
                                            acc = step(acc, left, y[n, g, panel, d, h, i + j, 0:NT])
                                    for i in range(width // 4 * 4, width):
                                        left = x[n, g, c : c + MT, kd, kh, kw, d, h, i]
                                        acc = step(acc, left, y[n, g, panel, d, h, i, 0:NT])
                    if n0 > s * IMAGES:
                        acc = acc + sums[s, g, panel, block, 0:MT, kd, kh, kw, 0:NT]
                    sums[s, g, panel, block, 0:MT, kd, kh, kw, 0:NT] = acc


def _add_groups(sums, g, panel, block, R, NT):
    """The sums of all groups of images in the place of the first's; inline."""
    for s in range(1, sums.shape[0]):
        for r in range(R):
            row = sums[0, g, panel, block, r, 0:NT]
            sums[0, g, panel, block, r, 0:NT] = row + sums[s, g, panel, block, r, 0:NT]


@kernel
def add_sums(sums: Array, w: Array, R: Const, MT: Const, NT: Const, OUTS: Const):
    """w (G, O, C * taps) from sums (S, G, panels, blocks, R, NT), R being MT * taps.

    Grid (blocks, panels, G).
    """
    block, panel, g = program_id(0), program_id(1), program_id(2)
    k = tl.minimum(block * R, w.shape[2] - R)
    o = tl.minimum(panel * NT, w.shape[1] - OUTS)
    _add_groups(sums, g, panel, block, R, NT)
    for j in range(0, OUTS // 8 * 8, 8):
        for i in range(R // 8):
            tile = sums[0, g, panel, block, i * 8 : i * 8 + 8, j : j + 8]
            w[g, o + j : o + j + 8, k + i * 8 : k + i * 8 + 8] = tile.T
        for r in range(R // 8 * 8, R):
            w[g, o + j : o + j + 8, k + r] = sums[0, g, panel, block, r, j : j + 8]
    for j in range(OUTS // 8 * 8, OUTS):
        for r in range(R):
            w[g, o + j, k + r] = sums[0, g, panel, block, r, j]


@kernel
def add_sums_strided(sums: Array, w: Array, R: Const, MT: Const, NT: Const, OUTS: Const):
    """The same into w (G, O, C, KD, KH, KW) of any strides."""
    block, panel, g = program_id(0), program_id(1), program_id(2)
    c = tl.minimum(block * MT, w.shape[2] - MT)
    o = tl.minimum(panel * NT, w.shape[1] - OUTS)
    _add_groups(sums, g, panel, block, R, NT)
    for j in range(OUTS):
        for m in range(MT):
            for kd in range(w.shape[3]):
                for kh in range(w.shape[4]):
                    for kw in range(w.shape[5]):
                        r = ((m * w.shape[3] + kd) * w.shape[4] + kh) * w.shape[5] + kw
                        w[g, o + j, c + m, kd, kh, kw] = sums[0, g, panel, block, r, j]


def weight_tile_calls(
    whole: Geometry,
    x: Buffer,
    y: Buffer,
    w: Buffer,
    transposed: Buffer,
    sums: Buffer,
    rows_of_x: tuple[int, int],
) -> list[KernelCall]:
    """``w`` (G, O, C, KD, KH, KW) from x (B, G, C, D, H, W) and y (B, G, O, OD, OH, OW).

    Every window must lie inside x. ``whole`` counts images in words of x. ``transposed`` and
    ``sums`` are memory of the shapes that :class:`WeightPlan` says. ``rows_of_x``: after how many
    rows of padding how many of x come.
    """
    plan = weight_plan(whole, w.dtype)
    cut, wide = plan.tile, accumulator(w.dtype)
    lanes = {"NT": cut.lanes, "OUTS": cut.outputs}
    b, g = whole.batch, whole.groups
    turned = transposed.view(plan.transposed_shape(whole)).fix(3)
    y = bits_of(y) if transposed.dtype is u32 else y
    grads = row_of(y) if has_dense_planes(y) else y
    flat = turned.view((*turned.shape[:3], *grads.shape[3:], cut.lanes)).fix(3)
    piece = max(16, _PIECE_BYTES // (cut.lanes * transposed.dtype.nbytes) // 16 * 16)
    height, width = grads.shape[3] * grads.shape[4], grads.shape[5]
    turn = KernelCall(
        channels_to_lanes,
        (height * -(-width // piece), cut.panels, b * g),
        (grads, flat),
        {**lanes, "T": min(width, 16), "PIECE": piece},
    )
    steps = list(x.strides[3:])
    seen = x.view(
        (*x.shape[:3], *whole.kernel, *whole.out),
        (
            *x.strides[:3],
            *(s * d for s, d in zip(steps, whole.dilation)),
            *(s * d for s, d in zip(steps, whole.strides)),
        ),
        -sum(low * s for low, s in zip(whole.low, steps)),
    ).fix(2)
    tile = {"MT": cut.positions, "NT": cut.lanes, "ACC": wide}
    height_of_x = (
        rows_of_x[0] + whole.low[1],
        rows_of_x[1],
        whole.strides[1],
        whole.dilation[1],
    )
    parts = sums.view(plan.sums_shape(whole)).fix(4)
    each = _ALL if plan.groups == 1 else plan.images
    together = min(plan.images, -(-_POSITIONS // whole.positions))
    product = KernelCall(
        weight_tiles,
        (plan.blocks, g * cut.panels, plan.groups),
        (seen, turned, parts),
        {**tile, "IMAGES": each, "TOGETHER": together, "HEIGHT": height_of_x},
    )
    per_block = cut.positions * whole.taps
    rows = parts.view((*parts.shape[:4], per_block, cut.lanes)).fix(4)
    finish = KernelCall(
        add_sums_strided,
        (plan.blocks, cut.panels, g),
        (rows, w),
        {"R": per_block, "MT": cut.positions, **lanes},
    )
    if is_dense(w):
        flat = w.view((g, whole.outputs, whole.channels * whole.taps))
        finish = replace(finish, kernel=add_sums, args=(rows, flat))
    return [turn, product, finish]

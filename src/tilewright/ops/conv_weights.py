"""The fast weight gradient: matrix products over positions.

Output channels lie along the lanes again, so the gradient is transposed first, position by
position; the rows of a register tile are input channels, read in place through windows. The tiles
of all taps of one image are done before the next image, while its rows are in the cache.

An element is summed image by image: over the positions of an image in ascending order, one fused
multiply-add each, then over the images of a group, then over the groups. How many groups there are
depends on shapes only.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tilewright import lang as tl
from tilewright.dtypes import DType, f64
from tilewright.lang import Array, Const, dot, program_id, unroll, zeros
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_shapes import Geometry, accumulator
from tilewright.ops.conv_tiles import Tiling, tiling
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = ["WeightPlan", "weight_plan", "weight_tile_calls"]

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
        tile = (self.tile.positions, self.tile.lanes)
        return (self.groups, whole.groups, self.tile.panels, self.blocks, *whole.kernel, *tile)


def weight_plan(whole: Geometry, dtype: DType) -> WeightPlan:
    """The cut for these sizes."""
    tile = tiling(whole.channels, whole.outputs, accumulator(dtype) is f64)
    blocks = -(-whole.channels // tile.positions)
    programs = blocks * whole.groups * tile.panels
    images = -(-whole.batch // min(whole.batch, -(-_PROGRAMS // programs)))
    return WeightPlan(tile, blocks, images, -(-whole.batch // images))


@kernel
def channels_to_lanes(y: Array, out: Array, NT: Const, OUTS: Const, T: Const):
    """y (B, G, O, OD, OH, OW) -> out (B, G, panels, OD, OH, OW, NT), zeros beyond OUTS.

    Grid (OD * OH, panels, B * G).
    """
    d = program_id(0) // y.shape[4]
    h = program_id(0) % y.shape[4]
    panel = program_id(1)
    n = program_id(2) // y.shape[1]
    g = program_id(2) % y.shape[1]
    o = tl.minimum(panel * NT, y.shape[2] - OUTS)
    width = y.shape[5]
    for i in range((width + (T - 1)) // T):
        at = tl.minimum(i * T, width - T)
        if OUTS < NT:
            out[n, g, panel, d, h, at : at + T, 0:NT] = zeros((T, NT), out.dtype)
        for j in range(0, OUTS // 8 * 8, 8):
            block = y[n, g, o + j : o + j + 8, d, h, at : at + T]
            out[n, g, panel, d, h, at : at + T, j : j + 8] = block.T
        if OUTS % 8:
            j = OUTS // 8 * 8
            rest = y[n, g, o + j : o + j + OUTS % 8, d, h, at : at + T]
            out[n, g, panel, d, h, at : at + T, j : j + OUTS % 8] = rest.T


@kernel
def weight_tiles(
    x: Array,
    y: Array,
    sums: Array,
    IMAGES: Const,
    MT: Const,
    NT: Const,
    ACC: Const,
):
    """sums (S, G, panels, blocks, KD, KH, KW, MT, NT) of x and y.

    x is a view (B, G, C, KD, KH, KW, OD, OH, OW), y (B, G, panels, OD, OH, OW, NT). A program makes
    all taps of MT x NT channels for a group of images: grid (blocks, G * panels, S).
    """
    block = program_id(0)
    panel = program_id(1) % y.shape[2]
    g = program_id(1) // y.shape[2]
    s = program_id(2)
    c = tl.minimum(block * MT, x.shape[2] - MT)
    width = x.shape[8]
    for n in range(s * IMAGES, tl.minimum(s * IMAGES + IMAGES, x.shape[0])):
        for kd in range(x.shape[3]):
            for kh in range(x.shape[4]):
                for kw in range(x.shape[5]):
                    acc = zeros((MT, NT), ACC)
                    for d in range(x.shape[6]):
                        for h in range(x.shape[7]):
                            left = x[n, g, c : c + MT, kd, kh, kw, d, h, 0:width]
                            acc = dot(left, y[n, g, panel, d, h, 0:width, 0:NT], acc)
                    if n > s * IMAGES:
                        acc = acc + sums[s, g, panel, block, kd, kh, kw, 0:MT, 0:NT]
                    sums[s, g, panel, block, kd, kh, kw, 0:MT, 0:NT] = acc


@kernel
def add_sums(sums: Array, w: Array, MT: Const, NT: Const, OUTS: Const, ACC: Const):
    """w (G, O, C, KD, KH, KW) from sums (S, G, panels, blocks, KD, KH, KW, MT, NT).

    Grid (blocks, panels, G).
    """
    block, panel, g = program_id(0), program_id(1), program_id(2)
    c = tl.minimum(block * MT, w.shape[2] - MT)
    o = tl.minimum(panel * NT, w.shape[1] - OUTS)
    for kd in range(w.shape[3]):
        for kh in range(w.shape[4]):
            for kw in range(w.shape[5]):
                for m in range(MT):
                    total = sums[0, g, panel, block, kd, kh, kw, m, 0:NT]
                    for s in range(1, sums.shape[0]):
                        total = total + sums[s, g, panel, block, kd, kh, kw, m, 0:NT]
                    for j in unroll(OUTS):
                        w[g, o + j, c + m, kd, kh, kw] = total[j]


def weight_tile_calls(
    whole: Geometry, x: Buffer, y: Buffer, w: Buffer, transposed: Buffer, sums: Buffer
) -> list[KernelCall]:
    """``w`` (G, O, C, KD, KH, KW) from x (B, G, C, D, H, W) and y (B, G, O, OD, OH, OW).

    Every window must lie inside x. ``transposed`` and ``sums`` are memory of the shapes that
    :class:`WeightPlan` says.
    """
    plan = weight_plan(whole, w.dtype)
    cut, wide = plan.tile, accumulator(w.dtype)
    lanes = {"NT": cut.lanes, "OUTS": cut.outputs}
    b, g = whole.batch, whole.groups
    turned = transposed.view(plan.transposed_shape(whole)).fix(3)
    length = min(whole.out[2], 16)
    turn = KernelCall(
        channels_to_lanes,
        (whole.out[0] * whole.out[1], cut.panels, b * g),
        (y, turned),
        {**lanes, "T": length},
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
    parts = sums.view(plan.sums_shape(whole)).fix(4)
    product = KernelCall(
        weight_tiles,
        (plan.blocks, g * cut.panels, plan.groups),
        (seen, turned, parts),
        {**tile, "IMAGES": plan.images},
    )
    finish = KernelCall(
        add_sums, (plan.blocks, cut.panels, g), (parts, w), {**tile, "OUTS": cut.outputs}
    )
    return [turn, product, finish] if prod(w.shape) else []

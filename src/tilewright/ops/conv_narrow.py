"""The weight gradient of a first layer: few input channels, neighbouring positions along the lanes.

Where there are one to three input channels nothing is gained by transposing the gradient: each
weight is a product of two rows summed over all positions. A tile has the taps of one kernel row for
some output channels, sixteen positions at a time; the lanes are added at the end. Images are cut
into groups, as many as shapes say, whose sums are added in order.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from dataclasses import replace

from tilewright import lang as tl
from tilewright.dtypes import DType, f64
from tilewright.lang import Array, Const, expand_dims, fma, i64, program_id, unroll, zeros
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_shapes import Geometry, accumulator
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel
from tilewright.sizes import minimum

__all__ = ["groups_of", "narrow_weight_calls", "suits"]

_OUTPUTS = (0, 8, 6, 6, 4, 4, 3, 2)  # of a tile, by taps of a kernel row: what registers hold
_PROGRAMS = 64


def suits(part: Geometry) -> bool:
    """Whether this kernel is the way for a gradient of at least eight output channels."""
    taps = part.kernel[2]
    return part.channels < 4 and part.strides[2] == 1 and taps < len(_OUTPUTS)


def groups_of(part: Geometry) -> tuple[int, int]:
    """Groups of images, and images per group."""
    outputs = _OUTPUTS[part.kernel[2]]
    programs = -(-part.outputs // outputs) * part.channels * part.groups
    programs *= part.kernel[0] * part.kernel[1]
    images = -(-part.batch // minimum(part.batch, -(-_PROGRAMS // programs)))
    return -(-part.batch // images), images


@kernel
def weight_outer(
    x: Array,
    y: Array,
    sums: Array,
    images: i64,
    MO: Const,
    STRIDES: Const,
    DILATION: Const,
    N: Const,
    ACC: Const,
):
    """sums (S, G, O, C, KD, KH, KW) from x (B, G, C, PD, PH, KW, PW) and y (B, G, O, OD, OH, OW).

    Grid (O / MO, C * KD * KH, G * S).
    """
    o = tl.minimum(program_id(0) * MO, y.shape[2] - MO)
    kh = program_id(1) % sums.shape[5]
    kd = program_id(1) // sums.shape[5] % sums.shape[4]
    c = program_id(1) // (sums.shape[5] * sums.shape[4])
    g = program_id(2) % y.shape[1]
    s = program_id(2) // y.shape[1]
    taps = x.shape[5]
    acc = zeros((MO, taps, N), ACC)
    for n in range(s * images, tl.minimum(s * images + images, y.shape[0])):
        for d in range(y.shape[3]):
            z = d * STRIDES[0] + kd * DILATION[0]
            for h in range(y.shape[4]):
                row = h * STRIDES[1] + kh * DILATION[1]
                for at in range(0, y.shape[5], N):
                    seen = x[n, g, c, z, row, 0:taps, at : at + N]
                    grad = y[n, g, o : o + MO, d, h, at : at + N].to(ACC)
                    acc = fma(expand_dims(grad, 1), expand_dims(seen, 0), acc)
    total = tl.sum(acc, axis=2)
    for m in unroll(MO):
        for kw in unroll(taps):
            sums[s, g, o + m, c, kd, kh, kw] = total[m, kw]


@kernel
def add_groups(sums: Array, w: Array):
    """w (G, O, C, KD, KH, KW) from sums (S, G, O, C, KD, KH, KW). Grid (C, O, G)."""
    c, o, g = program_id(0), program_id(1), program_id(2)
    for kd in range(w.shape[3]):
        for kh in range(w.shape[4]):
            for kw in range(w.shape[5]):
                total = sums[0, g, o, c, kd, kh, kw]
                for s in range(1, sums.shape[0]):
                    total = total + sums[s, g, o, c, kd, kh, kw]
                w[g, o, c, kd, kh, kw] = total


def narrow_weight_calls(
    part: Geometry, x: Buffer, y: Buffer, w: Buffer, sums: Buffer
) -> list[KernelCall]:
    """``w`` (G, O, C, KD, KH, KW) from x (B, G, C, PD, PH, 1, PW), padded, and y of any strides.

    x is laid out as :func:`tilewright.ops.conv_rows.rows_shape` says; ``sums`` is memory for every
    group's weights.
    """
    groups, images = groups_of(part)
    wide: DType = accumulator(w.dtype)
    outputs = min(_OUTPUTS[part.kernel[2]], part.outputs)
    width = x.shape[6] - (part.kernel[2] - 1) * part.dilation[2]
    seen = x.view((*x.shape[:5], part.kernel[2], width), (*x.strides[:5], part.dilation[2], 1)).fix(
        3
    )
    parts = sums.view((groups, *w.shape))
    consts = {
        "MO": outputs,
        "STRIDES": part.strides,
        "DILATION": part.dilation,
        "N": 8 if wide is f64 else 16,
        "ACC": wide,
    }
    g, o, c, kd, kh, _ = w.shape
    grid = (-(-o // outputs), c * kd * kh, g * groups)
    return [
        KernelCall(weight_outer, grid, (seen, replace(y, fixed=3), parts, images), consts),
        KernelCall(add_groups, (c, o, g), (parts, w)),
    ]

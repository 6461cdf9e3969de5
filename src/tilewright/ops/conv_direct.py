"""Convolution for any dtype, size and stride: the kernels that need no preparation.

One program makes up to :data:`LANES` neighbours along the last spatial axis. Windows read zero
outside the input, which is the padding.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from tilewright import lang as tl
from tilewright.lang import Array, Const, fma, i64, program_id, zeros
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_shapes import Geometry, accumulator
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = ["direct_calls", "direct_weight_calls"]

LANES = 32


@kernel
def conv_direct(
    x: Array,
    w: Array,
    y: Array,
    low0: i64,
    low1: i64,
    low2: i64,
    KERNEL: Const,
    STRIDES: Const,
    DILATION: Const,
    ACC: Const,
    N: Const,
):
    """y (B, G, O, D, H, W) from x (B, G, C, ...) and w (G, O, C, KD, KH, KW).

    A program makes N neighbours of one row: grid (B * G * O, D * H, W / N).
    """
    row = program_id(0)
    o = row % y.shape[2]
    g = row // y.shape[2] % y.shape[1]
    n = row // (y.shape[2] * y.shape[1])
    d = program_id(1) // y.shape[4]
    h = program_id(1) % y.shape[4]
    at = program_id(2) * N
    acc = zeros((N,), ACC)
    for c in range(w.shape[2]):
        for kd in range(KERNEL[0]):
            for kh in range(KERNEL[1]):
                for kw in range(KERNEL[2]):
                    first = at * STRIDES[2] + kw * DILATION[2] - low2
                    seen = x[
                        n,
                        g,
                        c,
                        d * STRIDES[0] + kd * DILATION[0] - low0,
                        h * STRIDES[1] + kh * DILATION[1] - low1,
                        first : first + N * STRIDES[2] : STRIDES[2],
                    ]
                    acc = fma(seen.to(ACC), w[g, o, c, kd, kh, kw].to(ACC), acc)
    y[n, g, o, d, h, at : at + N] = acc


def direct_calls(part: Geometry, x: Buffer, w: Buffer, y: Buffer) -> list[KernelCall]:
    """``y`` (B, G, O, OD, OH, OW) from x (B, G, C, D, H, W) and w (G, O, C, KD, KH, KW)."""
    b, g, o, d, h, width = y.shape
    lanes = min(LANES, 1 << (width - 1).bit_length()) if width else 1
    consts = {
        "KERNEL": part.kernel,
        "STRIDES": part.strides,
        "DILATION": part.dilation,
        "ACC": accumulator(y.dtype),
        "N": lanes,
    }
    grid = (b * g * o, d * h, -(-width // lanes))
    return [KernelCall(conv_direct, grid, (x, w, y, *part.low), consts)]


# --- the weight gradient -----------------------------------------------------------------------


@kernel
def weight_gradient_direct(
    x: Array,
    y: Array,
    w: Array,
    low0: i64,
    low1: i64,
    low2: i64,
    STRIDES: Const,
    DILATION: Const,
    ACC: Const,
    N: Const,
):
    """w (G, O, C, KD, KH, KW) from x (B, G, C, D, H, W) and y (B, G, O, OD, OH, OW).

    A program makes one row of taps of one pair of channels: grid (G * O * C, KD * KH, KW).
    """
    row = program_id(0)
    c = row % w.shape[2]
    o = row // w.shape[2] % w.shape[1]
    g = row // (w.shape[2] * w.shape[1])
    kd = program_id(1) // w.shape[4]
    kh = program_id(1) % w.shape[4]
    kw = program_id(2)
    acc = zeros((N,), ACC)
    for n in range(y.shape[0]):
        for d in range(y.shape[3]):
            for h in range(y.shape[4]):
                for at in range(0, y.shape[5], N):
                    first = at * STRIDES[2] + kw * DILATION[2] - low2
                    seen = x[
                        n,
                        g,
                        c,
                        d * STRIDES[0] + kd * DILATION[0] - low0,
                        h * STRIDES[1] + kh * DILATION[1] - low1,
                        first : first + N * STRIDES[2] : STRIDES[2],
                    ]
                    acc = fma(seen.to(ACC), y[n, g, o, d, h, at : at + N].to(ACC), acc)
    w[g, o, c, kd, kh, kw] = tl.sum(acc)


def direct_weight_calls(part: Geometry, x: Buffer, y: Buffer, w: Buffer) -> list[KernelCall]:
    """``w`` (G, O, C, KD, KH, KW) from x (B, G, C, D, H, W) and y (B, G, O, OD, OH, OW)."""
    g, o, c, kd, kh, kw = w.shape
    consts = {
        "STRIDES": part.strides,
        "DILATION": part.dilation,
        "ACC": accumulator(w.dtype),
        "N": 16,
    }
    grid = (g * o * c, kd * kh, kw)
    return [KernelCall(weight_gradient_direct, grid, (x, y, w, *part.low), consts)]

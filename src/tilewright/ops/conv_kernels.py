"""Convolution for any dtype, size and stride: the kernels that need no preparation.

One program makes up to :data:`LANES` neighbours along the last spatial axis. Windows read zero
outside the input, which is the padding.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from itertools import product
from math import gcd

from tilewright import lang as tl
from tilewright.dtypes import DType, f32, f64
from tilewright.lang import Array, Const, fma, i64, program_id, zeros
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_shapes import Geometry, grouped
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = ["accumulator", "forward_calls", "input_gradient_calls", "weight_gradient_calls"]

LANES = 32


def accumulator(dtype: DType) -> DType:
    """What sums of ``dtype`` are kept in."""
    return f64 if dtype is f64 else f32


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


def forward_calls(shape: Geometry, x: Buffer, w: Buffer, y: Buffer) -> list[KernelCall]:
    """``y = conv(x, w)``: x (N, C, *size), w (O, C/groups, *kernel), y (N, O, *out)."""
    images, weight, out = (
        grouped(x, shape.groups, 1),
        grouped(w, shape.groups, 0),
        grouped(y, shape.groups, 1),
    )
    return [_direct(images, weight, out, shape.low, shape.strides, shape.dilation)]


def _direct(
    x: Buffer,
    w: Buffer,
    y: Buffer,
    low: tuple[int, ...],
    strides: tuple[int, ...],
    dilation: tuple[int, ...],
) -> KernelCall:
    """The general kernel on canonical buffers."""
    b, g, o, d, h, width = y.shape
    lanes = min(LANES, 1 << (width - 1).bit_length()) if width else 1
    consts = {
        "KERNEL": tuple(w.shape[3:]),
        "STRIDES": strides,
        "DILATION": dilation,
        "ACC": accumulator(y.dtype),
        "N": lanes,
    }
    grid = (b * g * o, d * h, -(-width // lanes))
    return KernelCall(conv_direct, grid, (x, w, y, *low), consts)


# --- the input gradient: one small convolution per phase of the stride ----------------------------


def _axis_phases(
    size: int, kernel: int, stride: int, dilation: int, low: int
) -> list[tuple[int, int, int, int, int, int]]:
    """How the positions of one axis of x get their gradient, by position modulo the stride.

    Position i takes y[(i + low - k * dilation) / stride] * w[k] for every tap k that divides. For
    the positions ``first, first + stride, ...`` these are the taps ``tap, tap + step, ...``, and
    the q-th of the positions reads y at ``q + start - j * dilation / common`` for its j-th tap.

    Returns (first position, number of positions, first tap, taps, step between taps, start).
    """
    common = gcd(stride, dilation)
    step = stride // common
    phases = []
    for first in range(min(stride, size)):
        count = -(-(size - first) // stride)
        offset = first + low
        tap = next(
            (k for k in range(min(step, kernel)) if (offset - k * dilation) % stride == 0), -1
        )
        if tap < 0:
            phases.append((first, count, 0, 0, step, 0))
            continue
        taps = -(-(kernel - tap) // step)
        phases.append((first, count, tap, taps, step, (offset - tap * dilation) // stride))
    return phases


def input_gradient_calls(shape: Geometry, y: Buffer, w: Buffer, x: Buffer) -> list[KernelCall]:
    """``x = conv_input_gradient(y, w)``: y (N, O, *out), w (O, C/groups, *kernel), x (N, C, *size).

    Positions of x that are equal modulo the stride form a convolution of y with every
    stride-th tap of w, reversed; its result is a strided view of x.
    """
    grads, weight, out = (
        grouped(y, shape.groups, 1),
        grouped(w, shape.groups, 0),
        grouped(x, shape.groups, 1),
    )
    swapped = (0, 2, 1, 3, 4, 5)  # w (G, C, O, ...): C is what comes out
    axes = [
        _axis_phases(*sizes)
        for sizes in zip(shape.size, shape.kernel, shape.strides, shape.dilation, shape.low)
    ]
    dilation = tuple(d // gcd(s, d) for s, d in zip(shape.strides, shape.dilation))
    calls = []
    for phase in product(*axes):
        sizes = [weight.shape[i] for i in swapped[:3]]
        steps = [weight.strides[i] for i in swapped[:3]]
        offset, low = 0, []
        for axis, (_, _, tap, taps, step, start) in enumerate(phase):
            stride = weight.strides[3 + axis]
            last = tap + step * max(taps - 1, 0)
            offset += last * stride
            sizes.append(taps)
            steps.append(-step * stride)
            low.append((taps - 1) * dilation[axis] - start)
        part = weight.view(sizes, steps, offset)
        target = out.view(
            (*out.shape[:3], *(count for _, count, *_ in phase)),
            (*out.strides[:3], *(t * s for t, s in zip(out.strides[3:], shape.strides))),
            sum(first * t for (first, *_), t in zip(phase, out.strides[3:])),
        )
        calls.append(_direct(grads, part, target, tuple(low), (1, 1, 1), dilation))
    return calls


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


def weight_gradient_calls(shape: Geometry, x: Buffer, y: Buffer, w: Buffer) -> list[KernelCall]:
    """``w = conv_weight_gradient(x, y)``; shapes as in :func:`forward_calls`."""
    images, grads, out = (
        grouped(x, shape.groups, 1),
        grouped(y, shape.groups, 1),
        grouped(w, shape.groups, 0),
    )
    g, o, c, kd, kh, kw = out.shape
    consts = {
        "STRIDES": shape.strides,
        "DILATION": shape.dilation,
        "ACC": accumulator(w.dtype),
        "N": 16,
    }
    args = (images, grads, out, *shape.low)
    return [KernelCall(weight_gradient_direct, (g * o * c, kd * kh, kw), args, consts)]

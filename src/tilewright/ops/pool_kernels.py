"""The kernels of pooling; arrays are (N, C, D, H, W), one program per plane."""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

import math

from tilewright import lang as tl
from tilewright.dtypes import DType, bf16, f16, f32, f64
from tilewright.lang import (
    Array,
    Const,
    arange,
    full,
    i32,
    i64,
    isnan,
    program_id,
    where,
    zeros,
)
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_shapes import Pairs, Triple
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = [
    "average_calls",
    "average_gradient_calls",
    "max_calls",
    "scatter_calls",
    "take_calls",
]

_LANES = 16


def _wide(dtype: DType) -> DType:
    """What comparisons and sums of ``dtype`` are done in."""
    return f32 if dtype in (f16, bf16) else dtype


def _lanes(width: int) -> int:
    return min(_LANES, 1 << max(width - 1, 0).bit_length())


@kernel
def max_pool_planes(
    x: Array,
    values: Array,
    places: Array,
    low0: i64,
    low1: i64,
    low2: i64,
    KERNEL: Const,
    STRIDES: Const,
    DILATION: Const,
    LOWEST: Const,
    WIDE: Const,
    N: Const,
):
    """values and places (B, C, OD, OH, OW) of x (B, C, D, H, W)."""
    c = program_id(0) % x.shape[1]
    n = program_id(0) // x.shape[1]
    for d in range(values.shape[2]):
        for h in range(values.shape[3]):
            for at in range(0, values.shape[4], N):
                best = full((N,), LOWEST, WIDE)
                place = full((N,), -1, i32)
                for kd in range(KERNEL[0]):
                    z = d * STRIDES[0] + kd * DILATION[0] - low0
                    for kh in range(KERNEL[1]):
                        row = h * STRIDES[1] + kh * DILATION[1] - low1
                        rows = (z >= 0) & (z < x.shape[2]) & (row >= 0) & (row < x.shape[3])
                        for kw in range(KERNEL[2]):
                            first = at * STRIDES[2] + kw * DILATION[2] - low2
                            window = x[n, c, z, row, first : first + N * STRIDES[2] : STRIDES[2]]
                            seen = window.to(WIDE)
                            column = first.to(i32) + arange(N).to(i32) * STRIDES[2]
                            inside = (column >= 0) & (column < x.shape[4].to(i32)) & rows
                            better = (seen > best) | (place < 0)
                            if WIDE.is_float:
                                better = better | isnan(seen)
                            better = better & inside
                            flat = ((z * x.shape[3] + row) * x.shape[4]).to(i32) + column
                            best = where(better, seen, best)
                            place = where(better, flat, place)
                values[n, c, d, h, at : at + N] = best.to(values.dtype)
                places[n, c, d, h, at : at + N] = place


def max_calls(
    x: Buffer,
    values: Buffer,
    places: Buffer,
    kernel: Triple,
    strides: Triple,
    dilation: Triple,
    low: Triple,
) -> list[KernelCall]:
    """Maxima and their places."""
    dtype = x.dtype
    lowest = -math.inf if dtype.is_float else -(1 << dtype.bits - 1) if dtype.is_signed else 0
    consts = {
        "KERNEL": kernel,
        "STRIDES": strides,
        "DILATION": dilation,
        "LOWEST": lowest,
        "WIDE": _wide(dtype),
        "N": _lanes(values.shape[4]),
    }
    grid = (x.shape[0] * x.shape[1],)
    return [KernelCall(max_pool_planes, grid, (x, values, places, *low), consts)]


@kernel
def scatter_planes(grad: Array, places: Array, x: Array, total: Array):
    """Each of grad (B, C, OD, OH, OW) added to its place in x (B, C, D, H, W), in order.

    ``total`` is x again, or f32 workspace of its shape.
    """
    c = program_id(0) % x.shape[1]
    n = program_id(0) // x.shape[1]
    plane = x.shape[3] * x.shape[4]
    for d in range(x.shape[2]):
        for h in range(x.shape[3]):
            for w in range(0, x.shape[4], 16):
                total[n, c, d, h, w : w + 16] = zeros((16,), total.dtype)
    for d in range(grad.shape[2]):
        for h in range(grad.shape[3]):
            for w in range(grad.shape[4]):
                at = places[n, c, d, h, w].to(i64)
                z, row, column = at // plane, at % plane // x.shape[4], at % x.shape[4]
                total[n, c, z, row, column] = total[n, c, z, row, column] + grad[n, c, d, h, w].to(
                    total.dtype
                )


def scatter_calls(grad: Buffer, places: Buffer, x: Buffer, total: Buffer) -> list[KernelCall]:
    """``x`` = the sum of grad over its places; ``total`` is x, or f32 memory of its shape."""
    grid = (x.shape[0] * x.shape[1],)
    return [KernelCall(scatter_planes, grid, (grad, places, x, total))]


@kernel
def take_planes(x: Array, places: Array, y: Array):
    """y (B, C, OD, OH, OW): x (B, C, D, H, W) at places; zero where outside."""
    c = program_id(0) % x.shape[1]
    n = program_id(0) // x.shape[1]
    plane = x.shape[3] * x.shape[4]
    for d in range(y.shape[2]):
        for h in range(y.shape[3]):
            for w in range(y.shape[4]):
                at = places[n, c, d, h, w].to(i64)
                y[n, c, d, h, w] = x[n, c, at // plane, at % plane // x.shape[4], at % x.shape[4]]


def take_calls(x: Buffer, places: Buffer, y: Buffer) -> list[KernelCall]:
    """``y`` = x at places."""
    return [KernelCall(take_planes, (x.shape[0] * x.shape[1],), (x, places, y))]


def _counts(at, size, KERNEL, STRIDE, DILATION, LOW, LESS, MORE):
    """How many taps of the windows ``at`` (i32) lie in -LESS .. size + MORE; inline."""
    count = at * 0
    for k in range(KERNEL):
        place = at * STRIDE + k.to(i32) * DILATION - LOW
        count = count + ((place >= -LESS) & (place < size + MORE)).to(i32)
    return count


@kernel
def average_planes(
    x: Array,
    y: Array,
    KERNEL: Const,
    STRIDES: Const,
    DILATION: Const,
    LOW: Const,
    COUNTED: Const,
    WIDE: Const,
    N: Const,
):
    """y (B, C, OD, OH, OW): the means of the windows of x (B, C, D, H, W)."""
    c = program_id(0) % x.shape[1]
    n = program_id(0) // x.shape[1]
    for d in range(y.shape[2]):
        for h in range(y.shape[3]):
            rows = _divisor(d, h, x, KERNEL, STRIDES, DILATION, LOW, COUNTED)
            for at in range(0, y.shape[4], N):
                total = zeros((N,), WIDE)
                for kd in range(KERNEL[0]):
                    for kh in range(KERNEL[1]):
                        for kw in range(KERNEL[2]):
                            first = at * STRIDES[2] + kw * DILATION[2] - LOW[2]
                            seen = x[
                                n,
                                c,
                                d * STRIDES[0] + kd * DILATION[0] - LOW[0],
                                h * STRIDES[1] + kh * DILATION[1] - LOW[1],
                                first : first + N * STRIDES[2] : STRIDES[2],
                            ]
                            total = total + seen.to(WIDE)
                columns = _axis_counts(
                    at.to(i32) + arange(N).to(i32), x, 2, KERNEL, STRIDES, DILATION, LOW, COUNTED
                )
                mean = total / (columns * rows).to(WIDE)
                y[n, c, d, h, at : at + N] = mean.to(y.dtype)


def _axis_counts(at, x, axis, KERNEL, STRIDES, DILATION, LOW, COUNTED):
    return _counts(
        at,
        x.shape[2 + axis].to(i32),
        KERNEL[axis],
        STRIDES[axis],
        DILATION[axis],
        LOW[axis],
        COUNTED[axis][0],
        COUNTED[axis][1],
    )


def _divisor(d, h, x, KERNEL, STRIDES, DILATION, LOW, COUNTED):
    """The part of the divisor that a whole row of windows shares; inline."""
    deep = _axis_counts(d.to(i32), x, 0, KERNEL, STRIDES, DILATION, LOW, COUNTED)
    return deep * _axis_counts(h.to(i32), x, 1, KERNEL, STRIDES, DILATION, LOW, COUNTED)


def average_calls(
    x: Buffer,
    y: Buffer,
    kernel: Triple,
    strides: Triple,
    dilation: Triple,
    low: Triple,
    counted: Pairs,
) -> list[KernelCall]:
    """Means of windows; ``counted`` says how far beyond the input positions count."""
    consts = _average_consts(x.dtype, kernel, strides, dilation, low, counted)
    consts["N"] = _lanes(y.shape[4])
    return [KernelCall(average_planes, (x.shape[0] * x.shape[1],), (x, y), consts)]


def _average_consts(
    dtype: DType,
    kernel: Triple,
    strides: Triple,
    dilation: Triple,
    low: Triple,
    counted: Pairs,
) -> dict[str, object]:
    return {
        "KERNEL": kernel,
        "STRIDES": strides,
        "DILATION": dilation,
        "LOW": low,
        "COUNTED": counted,
        "WIDE": f64 if dtype is f64 else f32,
    }


@kernel
def average_gradient_planes(
    y: Array,
    x: Array,
    KERNEL: Const,
    STRIDES: Const,
    DILATION: Const,
    LOW: Const,
    COUNTED: Const,
    WIDE: Const,
    N: Const,
):
    """x (B, C, D, H, W): every position's shares of the windows y (B, C, OD, OH, OW) it is in."""
    c = program_id(0) % x.shape[1]
    n = program_id(0) // x.shape[1]
    for z in range(x.shape[2]):
        for row in range(x.shape[3]):
            for at in range(0, x.shape[4], N):
                total = zeros((N,), WIDE)
                for kd in range(KERNEL[0]):
                    deep = z + LOW[0] - kd * DILATION[0]
                    d = where(deep % STRIDES[0] == 0, deep // STRIDES[0], -1)
                    for kh in range(KERNEL[1]):
                        high = row + LOW[1] - kh * DILATION[1]
                        h = where(high % STRIDES[1] == 0, high // STRIDES[1], -1)
                        rows = _divisor(d, h, x, KERNEL, STRIDES, DILATION, LOW, COUNTED)
                        for kw in range(KERNEL[2]):
                            wide = (at + LOW[2] - kw * DILATION[2]).to(i32) + arange(N).to(i32)
                            w = where(wide % STRIDES[2] == 0, wide // STRIDES[2], -1)
                            columns = _axis_counts(w, x, 2, KERNEL, STRIDES, DILATION, LOW, COUNTED)
                            divisor = tl.maximum(columns * rows, 1)
                            share = y[n, c, d, h, w].to(WIDE) / divisor.to(WIDE)
                            total = total + share
                x[n, c, z, row, at : at + N] = total.to(x.dtype)


def average_gradient_calls(
    y: Buffer,
    x: Buffer,
    kernel: Triple,
    strides: Triple,
    dilation: Triple,
    low: Triple,
    counted: Pairs,
) -> list[KernelCall]:
    """The transpose of :func:`average_calls`."""
    consts = _average_consts(x.dtype, kernel, strides, dilation, low, counted)
    consts["N"] = _lanes(x.shape[4])
    return [KernelCall(average_gradient_planes, (x.shape[0] * x.shape[1],), (y, x), consts)]

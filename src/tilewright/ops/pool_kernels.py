"""The kernels of max pooling, and what all pooling shares.

Arrays are (N, C, D, H, W); a program does one plane.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload,attr-defined"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

import math
from dataclasses import replace

from tilewright import lang as tl
from tilewright.dtypes import DType, bf16, f16, f32
from tilewright.lang import (
    Array,
    Const,
    arange,
    full,
    i32,
    i64,
    isnan,
    load,
    program_id,
    reshape,
    scratch,
    unroll,
    where,
    zeros,
)
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_shapes import Triple, has_dense_planes, row_of
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = [
    "COPIED_BYTES",
    "LANES",
    "copy_rows",
    "fits",
    "lanes_of",
    "line_of",
    "max_calls",
    "scatter_calls",
    "seen_in",
    "take_calls",
]

LANES = 16
COPIED_BYTES = 192 << 10


def _wide(dtype: DType) -> DType:
    """What comparisons and sums of ``dtype`` are done in."""
    return f32 if dtype in (f16, bf16) else dtype


def lanes_of(width: int) -> int:
    """The widest power of two that a row of ``width`` results can be cut into, up to 16."""
    return min(LANES, 1 << max(width.bit_length() - 1, 0))


def copy_rows(x, rows, n, c, d, h, KERNEL, STRIDES, DILATION, LOW, FILL):
    """The rows of x that the windows of one row (d, h) see, FILL outside, into ``rows``; inline.

    Memory of known size needs no checks, and what was just written is in the cache.
    """
    for kd in range(KERNEL[0]):
        z = d * STRIDES[0] + kd * DILATION[0] - LOW[0]
        for kh in range(KERNEL[1]):
            row = h * STRIDES[1] + kh * DILATION[1] - LOW[1]
            for i in range(0, rows.shape[1], LANES):
                first = i - LOW[2]
                seen = load(x[n, c, z, row, first : first + LANES], fill=FILL)
                rows[kd * KERNEL[1] + kh, i : i + LANES] = seen.to(rows.dtype)


def seen_in(rows, row, first, N, STRIDE):
    """Every STRIDE-th element of a copied row; whole vectors are read and shuffled; inline."""
    if STRIDE == 1:
        return rows[row, first : first + N]
    pairs = reshape(rows[row, first : first + N * STRIDE], (N, STRIDE))
    return pairs[:, 0]


def _first_inside(at, size, KERNEL, STRIDE, DILATION, LOW):
    """The first position inside 0 .. size that the windows ``at`` see, or -1; inline."""
    start = at * STRIDE - LOW
    skipped = (tl.maximum(0 - start, 0) + (DILATION - 1)) // DILATION
    first = start + skipped * DILATION
    return where((skipped < KERNEL) & (first < size), first, -1)


@kernel
def max_pool_planes(
    x: Array,
    values: Array,
    places: Array,
    KERNEL: Const,
    STRIDES: Const,
    DILATION: Const,
    LOW: Const,
    LOWEST: Const,
    WIDE: Const,
    LINE: Const,
    N: Const,
):
    """values and places (B, C, OD, OH, OW) of x (B, C, D, H, W); no row is shorter than N."""
    c = program_id(0) % x.shape[1]
    n = program_id(0) // x.shape[1]
    depth, height, width = x.shape[2].to(i32), x.shape[3].to(i32), x.shape[4].to(i32)
    out_width = values.shape[4]
    rows = scratch((KERNEL[0] * KERNEL[1], LINE), WIDE)
    for d in range(values.shape[2]):
        z0 = _first_inside(d.to(i32), depth, KERNEL[0], STRIDES[0], DILATION[0], LOW[0])
        for h in range(values.shape[3]):
            y0 = _first_inside(h.to(i32), height, KERNEL[1], STRIDES[1], DILATION[1], LOW[1])
            copy_rows(x, rows, n, c, d, h, KERNEL, STRIDES, DILATION, LOW, LOWEST)
            for i in range(-(-out_width // N)):
                at = tl.minimum(i * N, out_width - N)
                columns = at.to(i32) + arange(N).to(i32)
                x0 = _first_inside(columns, width, KERNEL[2], STRIDES[2], DILATION[2], LOW[2])
                best = full((N,), LOWEST, WIDE)
                inside = (x0 >= 0) & ((z0 >= 0) & (y0 >= 0))
                place = where(inside, (z0 * height + y0) * width + x0, -1)
                for kd in range(KERNEL[0]):
                    z = (d * STRIDES[0] + kd * DILATION[0] - LOW[0]).to(i32)
                    for kh in range(KERNEL[1]):
                        row = (h * STRIDES[1] + kh * DILATION[1] - LOW[1]).to(i32)
                        base = columns * STRIDES[2] + ((z * height + row) * width - LOW[2])
                        for kw in unroll(KERNEL[2]):
                            first = at * STRIDES[2] + kw * DILATION[2]
                            seen = seen_in(rows, kd * KERNEL[1] + kh, first, N, STRIDES[2])
                            better = seen > best
                            if WIDE.is_float:
                                better = better | isnan(seen)
                            best = where(better, seen, best)
                            place = where(better, base + kw * DILATION[2], place)
                values[n, c, d, h, at : at + N] = best.to(values.dtype)
                places[n, c, d, h, at : at + N] = place


@kernel
def max_pool_large(
    x: Array,
    values: Array,
    places: Array,
    KERNEL: Const,
    STRIDES: Const,
    DILATION: Const,
    LOW: Const,
    LOWEST: Const,
    WIDE: Const,
):
    """The same window by window, for kernels whose rows do not fit the scratch memory."""
    c = program_id(0) % x.shape[1]
    n = program_id(0) // x.shape[1]
    depth, height, width = x.shape[2].to(i32), x.shape[3].to(i32), x.shape[4].to(i32)
    for d in range(values.shape[2]):
        z0 = _first_inside(d.to(i32), depth, KERNEL[0], STRIDES[0], DILATION[0], LOW[0])
        for h in range(values.shape[3]):
            y0 = _first_inside(h.to(i32), height, KERNEL[1], STRIDES[1], DILATION[1], LOW[1])
            for w in range(values.shape[4]):
                x0 = _first_inside(w.to(i32), width, KERNEL[2], STRIDES[2], DILATION[2], LOW[2])
                best = full((), LOWEST, WIDE)
                inside = (x0 >= 0) & (z0 >= 0) & (y0 >= 0)
                place = where(inside, (z0 * height + y0) * width + x0, -1)
                for kd in range(KERNEL[0]):
                    z = d * STRIDES[0] + kd * DILATION[0] - LOW[0]
                    for kh in range(KERNEL[1]):
                        row = h * STRIDES[1] + kh * DILATION[1] - LOW[1]
                        for kw in range(KERNEL[2]):
                            column = w * STRIDES[2] + kw * DILATION[2] - LOW[2]
                            seen = load(x[n, c, z, row, column], fill=LOWEST).to(WIDE)
                            better = seen > best
                            if WIDE.is_float:
                                better = better | isnan(seen)
                            flat = ((z * x.shape[3] + row) * x.shape[4] + column).to(i32)
                            best = where(better, seen, best)
                            place = where(better, flat, place)
                values[n, c, d, h, w] = best.to(values.dtype)
                places[n, c, d, h, w] = place


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
        "LOW": low,
        "LOWEST": lowest,
        "WIDE": _wide(dtype),
    }
    grid = (x.shape[0] * x.shape[1],)
    outs = (replace(values, fixed=4), replace(places, fixed=4))
    line = line_of(values.shape[4], kernel, strides, dilation)
    if not fits(kernel, line, _wide(dtype)):
        return [KernelCall(max_pool_large, grid, (x, *outs), consts)]
    consts |= {"LINE": line, "N": lanes_of(values.shape[4])}
    return [KernelCall(max_pool_planes, grid, (x, *outs), consts)]


def line_of(width: int, kernel: Triple, strides: Triple, dilation: Triple) -> int:
    """Elements of a row that ``width`` windows see, in whole vectors."""
    seen = width * strides[2] + (kernel[2] - 1) * dilation[2]
    return -(-seen // LANES) * LANES


def fits(kernel: Triple, line: int, dtype: DType) -> bool:
    """Whether copied rows fit the scratch memory and taps the instruction cache."""
    return kernel[0] * kernel[1] * line * dtype.nbytes <= COPIED_BYTES and kernel[2] <= 16


@kernel
def scatter_planes(grad: Array, places: Array, x: Array, total: Array):
    """Each of grad (B, C, OD, OH, OW) added to its place in x (B, C, D * H * W), in order.

    ``total`` is x again, or f32 memory of its shape.
    """
    c = program_id(0) % x.shape[1]
    n = program_id(0) // x.shape[1]
    for i in range(0, x.shape[2], 64):
        total[n, c, i : i + 64] = zeros((64,), total.dtype)
    for d in range(grad.shape[2]):
        for h in range(grad.shape[3]):
            for w in range(grad.shape[4]):
                at = places[n, c, d, h, w].to(i64)
                total[n, c, at] = total[n, c, at] + grad[n, c, d, h, w].to(total.dtype)
    if total.dtype != x.dtype:
        for i in range(0, x.shape[2], 16):
            x[n, c, i : i + 16] = total[n, c, i : i + 16]


@kernel
def scatter_strided(grad: Array, places: Array, x: Array, total: Array):
    """The same into x and total (B, C, D, H, W) of any strides."""
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
                sum_so_far = total[n, c, z, row, column]
                total[n, c, z, row, column] = sum_so_far + grad[n, c, d, h, w].to(total.dtype)
    if total.dtype != x.dtype:
        for d in range(x.shape[2]):
            for h in range(x.shape[3]):
                for w in range(0, x.shape[4], 16):
                    x[n, c, d, h, w : w + 16] = total[n, c, d, h, w : w + 16]


def scatter_calls(grad: Buffer, places: Buffer, x: Buffer, total: Buffer) -> list[KernelCall]:
    """``x`` = the sum of grad over its places; ``total`` is x, or f32 memory of its shape."""
    grid = (x.shape[0] * x.shape[1],)
    if not (has_dense_planes(x) and has_dense_planes(total)):
        return [KernelCall(scatter_strided, grid, (grad, places, x, total))]
    return [KernelCall(scatter_planes, grid, (grad, places, flat_planes(x), flat_planes(total)))]


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


@kernel
def take_flat_planes(x: Array, places: Array, y: Array):
    """The same of x (B, C, D * H * W)."""
    c = program_id(0) % x.shape[1]
    n = program_id(0) // x.shape[1]
    for d in range(y.shape[2]):
        for h in range(y.shape[3]):
            for w in range(y.shape[4]):
                y[n, c, d, h, w] = x[n, c, places[n, c, d, h, w].to(i64)]


def take_calls(x: Buffer, places: Buffer, y: Buffer) -> list[KernelCall]:
    """``y`` = x at places."""
    grid = (x.shape[0] * x.shape[1],)
    if has_dense_planes(x):
        return [KernelCall(take_flat_planes, grid, (flat_planes(x), places, y))]
    return [KernelCall(take_planes, grid, (x, places, y))]


def flat_planes(buffer: Buffer) -> Buffer:
    """(B, C, D, H, W), planes dense, as (B, C, D * H * W)."""
    row = row_of(buffer)
    return row.view((*row.shape[:2], row.shape[4]), (*row.strides[:2], row.strides[4]))

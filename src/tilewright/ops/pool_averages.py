"""The kernels of average pooling; arrays are (N, C, D, H, W), one program per plane."""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload,attr-defined"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tilewright import lang as tl
from tilewright.dtypes import f32, f64
from tilewright.lang import (
    Array,
    Const,
    arange,
    broadcast_to,
    expand_dims,
    full,
    i32,
    program_id,
    reshape,
    scratch,
    unroll,
    where,
    zeros,
)
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_shapes import Pairs, Triple
from tilewright.ops.pool_kernels import (
    COPIED_BYTES,
    LANES,
    copy_rows,
    fits,
    lanes_of,
    line_of,
    seen_in,
)
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = ["average_calls", "average_gradient_calls"]


def _counts(at, size, KERNEL, STRIDE, DILATION, LOW, LESS, MORE):
    """How many taps of the windows ``at`` (i32) lie in -LESS .. size + MORE; inline."""
    count = at * 0
    for k in range(KERNEL):
        place = at * STRIDE + k.to(i32) * DILATION - LOW
        count = count + ((place >= -LESS) & (place < size + MORE)).to(i32)
    return count


def _mean(total, at, d, h, x, KERNEL, STRIDES, DILATION, LOW, COUNTED, DIVISOR, WIDE):
    """The sums of the windows ``at`` (i32) over their counts; inline."""
    if DIVISOR:
        return total / DIVISOR
    rows = _divisor(d, h, x, KERNEL, STRIDES, DILATION, LOW, COUNTED)
    columns = _axis_counts(at, x, 2, KERNEL, STRIDES, DILATION, LOW, COUNTED)
    return total / (columns * rows).to(WIDE)


@kernel
def average_planes(
    x: Array,
    y: Array,
    KERNEL: Const,
    STRIDES: Const,
    DILATION: Const,
    LOW: Const,
    COUNTED: Const,
    DIVISOR: Const,
    WIDE: Const,
    LINE: Const,
    N: Const,
):
    """y (B, C, OD, OH, OW): the means of the windows of x (B, C, D, H, W).

    DIVISOR is every window's count, or 0 when they differ. No row is shorter than N.
    """
    c = program_id(0) % x.shape[1]
    n = program_id(0) // x.shape[1]
    width = y.shape[4]
    rows = scratch((KERNEL[0] * KERNEL[1], LINE), WIDE)
    for d in range(y.shape[2]):
        for h in range(y.shape[3]):
            copy_rows(x, rows, n, c, d, h, KERNEL, STRIDES, DILATION, LOW, 0)
            for i in range(-(-width // N)):
                at = tl.minimum(i * N, width - N)
                total = zeros((N,), WIDE)
                for k in range(KERNEL[0] * KERNEL[1]):
                    for kw in unroll(KERNEL[2]):
                        first = at * STRIDES[2] + kw * DILATION[2]
                        total = total + seen_in(rows, k, first, N, STRIDES[2])
                windows = at.to(i32) + arange(N).to(i32)
                y[n, c, d, h, at : at + N] = _mean(
                    total, windows, d, h, x, KERNEL, STRIDES, DILATION, LOW, COUNTED, DIVISOR, WIDE
                ).to(y.dtype)


@kernel
def average_large(
    x: Array,
    y: Array,
    KERNEL: Const,
    STRIDES: Const,
    DILATION: Const,
    LOW: Const,
    COUNTED: Const,
    DIVISOR: Const,
    WIDE: Const,
):
    """The same window by window, for kernels whose rows do not fit the scratch memory."""
    c = program_id(0) % x.shape[1]
    n = program_id(0) // x.shape[1]
    for d in range(y.shape[2]):
        for h in range(y.shape[3]):
            for w in range(y.shape[4]):
                total = zeros((), WIDE)
                for kd in range(KERNEL[0]):
                    z = d * STRIDES[0] + kd * DILATION[0] - LOW[0]
                    for kh in range(KERNEL[1]):
                        row = h * STRIDES[1] + kh * DILATION[1] - LOW[1]
                        for kw in range(KERNEL[2]):
                            column = w * STRIDES[2] + kw * DILATION[2] - LOW[2]
                            total = total + x[n, c, z, row, column].to(WIDE)
                y[n, c, d, h, w] = _mean(
                    total,
                    w.to(i32),
                    d,
                    h,
                    x,
                    KERNEL,
                    STRIDES,
                    DILATION,
                    LOW,
                    COUNTED,
                    DIVISOR,
                    WIDE,
                ).to(y.dtype)


def _axis_counts(at, x, axis, KERNEL, STRIDES, DILATION, LOW, COUNTED):
    return _counts(
        at,
        full((), x.shape[2 + axis], i32),
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
    divisor: int = 0,
) -> list[KernelCall]:
    """Means of windows; ``counted`` says how far beyond the input positions count.

    ``divisor`` above zero is every window's.
    """
    consts = _average_consts(x, y, kernel, strides, dilation, low, counted)
    consts["DIVISOR"] = divisor or consts["DIVISOR"]
    grid, out = (x.shape[0] * x.shape[1],), replace(y, fixed=4)
    line = line_of(y.shape[4], kernel, strides, dilation)
    if not fits(kernel, line, consts["WIDE"]):
        return [KernelCall(average_large, grid, (x, out), consts)]
    consts |= {"LINE": line, "N": lanes_of(y.shape[4])}
    return [KernelCall(average_planes, grid, (x, out), consts)]


def _average_consts(
    x: Buffer,
    y: Buffer,
    kernel: Triple,
    strides: Triple,
    dilation: Triple,
    low: Triple,
    counted: Pairs,
) -> dict[str, Any]:
    return {
        "KERNEL": kernel,
        "STRIDES": strides,
        "DILATION": dilation,
        "LOW": low,
        "COUNTED": counted,
        "DIVISOR": _common_divisor(x, y, kernel, strides, dilation, low, counted),
        "WIDE": f64 if x.dtype is f64 else f32,
    }


def _common_divisor(
    x: Buffer,
    y: Buffer,
    kernel: Triple,
    strides: Triple,
    dilation: Triple,
    low: Triple,
    counted: Pairs,
) -> int:
    """The number of positions that every window counts; 0 when they do not all count as many."""
    product = 1
    for axis, (less, more) in enumerate(counted):
        last = (kernel[axis] - 1) * dilation[axis]
        end = (y.shape[2 + axis] - 1) * strides[axis] + last - low[axis]
        if low[axis] > less or end >= x.shape[2 + axis] + more:
            return 0
        product *= kernel[axis]
    return product


@kernel
def average_gradient_planes(
    y: Array,
    x: Array,
    KERNEL: Const,
    STRIDES: Const,
    DILATION: Const,
    LOW: Const,
    COUNTED: Const,
    DIVISOR: Const,
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
                        for kw in range(KERNEL[2]):
                            wide = (at + LOW[2] - kw * DILATION[2]).to(i32) + arange(N).to(i32)
                            w = where(wide % STRIDES[2] == 0, wide // STRIDES[2], -1)
                            if DIVISOR:
                                share = y[n, c, d, h, w].to(WIDE) / DIVISOR
                            else:
                                rows = _divisor(d, h, x, KERNEL, STRIDES, DILATION, LOW, COUNTED)
                                columns = _axis_counts(
                                    w, x, 2, KERNEL, STRIDES, DILATION, LOW, COUNTED
                                )
                                divisor = tl.maximum(columns * rows, 1)
                                share = y[n, c, d, h, w].to(WIDE) / divisor.to(WIDE)
                            total = total + share
                x[n, c, z, row, at : at + N] = total.to(x.dtype)


@kernel
def average_gradient_rows(
    y: Array,
    x: Array,
    KERNEL: Const,
    STRIDES: Const,
    DILATION: Const,
    LOW: Const,
    COUNTED: Const,
    DIVISOR: Const,
    WIDE: Const,
    LINE: Const,
    N: Const,
):
    """The same row by row: shares of a row are summed and stand STRIDES apart in memory first.

    No row of y is shorter than N; LINE elements hold one and what lies around it.
    """
    c = program_id(0) % x.shape[1]
    n = program_id(0) // x.shape[1]
    width = y.shape[4]
    reach = (KERNEL[2] - 1) * DILATION[2]
    apart = scratch((LINE,), WIDE)
    for i in range(0, LINE, LANES):
        apart[i : i + LANES] = zeros((LANES,), WIDE)
    for z in range(x.shape[2]):
        for row in range(x.shape[3]):
            for i in range(-(-width // N)):
                at = tl.minimum(i * N, width - N)
                total = zeros((N,), WIDE)
                for kd in range(KERNEL[0]):
                    deep = z + LOW[0] - kd * DILATION[0]
                    d = where(deep % STRIDES[0] == 0, deep // STRIDES[0], -1)
                    for kh in range(KERNEL[1]):
                        high = row + LOW[1] - kh * DILATION[1]
                        h = where(high % STRIDES[1] == 0, high // STRIDES[1], -1)
                        share = y[n, c, d, h, at : at + N].to(WIDE)
                        if DIVISOR == 0:
                            rows = _divisor(d, h, x, KERNEL, STRIDES, DILATION, LOW, COUNTED)
                            share = share / tl.maximum(rows, 1).to(WIDE)
                        total = total + share
                if DIVISOR:
                    total = total / DIVISOR
                else:
                    windows = at.to(i32) + arange(N).to(i32)
                    columns = _axis_counts(windows, x, 2, KERNEL, STRIDES, DILATION, LOW, COUNTED)
                    total = total / tl.maximum(columns, 1).to(WIDE)
                first = at * STRIDES[2] + reach
                apart[first : first + N * STRIDES[2] : STRIDES[2]] = total
            for at in range(0, x.shape[4], LANES):
                total = zeros((LANES,), WIDE)
                for kw in range(KERNEL[2]):
                    first = at + (LOW[2] + reach) - kw * DILATION[2]
                    total = total + apart[first : first + LANES]
                x[n, c, z, row, at : at + LANES] = total.to(x.dtype)


@kernel
def spread_planes(y: Array, x: Array, KERNEL: Const, DIVISOR: Const, WIDE: Const, N: Const):
    """The same for windows side by side, without padding: y / DIVISOR all over each window."""
    c = program_id(0) % x.shape[1]
    n = program_id(0) // x.shape[1]
    for z in range(x.shape[2]):
        for row in range(x.shape[3]):
            d, h = z // KERNEL[0], row // KERNEL[1]
            for at in range(0, x.shape[4] // KERNEL[2] + 1, N):
                share = (y[n, c, d, h, at : at + N].to(WIDE) / DIVISOR).to(x.dtype)
                wide = reshape(
                    broadcast_to(expand_dims(share, 1), (N, KERNEL[2])), (N * KERNEL[2],)
                )
                x[n, c, z, row, at * KERNEL[2] : at * KERNEL[2] + N * KERNEL[2]] = wide


def average_gradient_calls(
    y: Buffer,
    x: Buffer,
    kernel: Triple,
    strides: Triple,
    dilation: Triple,
    low: Triple,
    counted: Pairs,
    divisor: int = 0,
) -> list[KernelCall]:
    """The transpose of :func:`average_calls`."""
    grid = (x.shape[0] * x.shape[1],)
    consts = _average_consts(x, y, kernel, strides, dilation, low, counted)
    inside = consts["DIVISOR"] > 0
    consts["DIVISOR"] = divisor or consts["DIVISOR"]
    side_by_side = kernel == strides and low == (0, 0, 0) and kernel[2] <= 4
    if side_by_side and dilation == (1, 1, 1) and inside:
        chosen = {name: consts[name] for name in ("KERNEL", "DIVISOR", "WIDE")}
        return [KernelCall(spread_planes, grid, (y, x), {**chosen, "N": lanes_of(y.shape[4])})]
    seen = max(y.shape[4] * strides[2], x.shape[4] + low[2] + LANES)
    line = -(-(seen + (kernel[2] - 1) * dilation[2]) // LANES) * LANES
    if line * consts["WIDE"].nbytes <= COPIED_BYTES:
        consts |= {"LINE": line, "N": lanes_of(y.shape[4])}
        planes = replace(y, fixed=4), replace(x, fixed=4)
        return [KernelCall(average_gradient_rows, grid, planes, consts)]
    consts["N"] = lanes_of(x.shape[4])
    return [KernelCall(average_gradient_planes, grid, (y, x), consts)]

"""Convolution with few outputs per group (depthwise ones above all): positions along the lanes.

x is padded with zeros first, up to whole vectors, and where the last stride is not one its columns
are sorted by their remainder, so that neighbouring outputs always read neighbouring elements. A
tile is eight rows of sixteen positions of one output channel.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from dataclasses import replace

from tilewright import lang as tl
from tilewright.dtypes import DType
from tilewright.lang import Array, Const, fma, i64, program_id, reshape, scratch, unroll, zeros
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_shapes import Geometry, accumulator
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = ["row_calls", "row_weight_calls", "rows_shape", "sort_columns_calls"]

_ROWS = 8


def _lanes(part: Geometry) -> int:
    """Columns of a tile; few rows want more of them to hide the latency of a multiply-add."""
    width = part.out[2]
    if part.out[1] < 4 and width > 32:
        return 64
    return 16 if width > 8 else 8


def rows_shape(part: Geometry) -> tuple[int, ...]:
    """The shape of the padded x: (B, G, C, PD, PH, S, PW), S being the last stride.

    Element s, w of a row is column ``w * S + s`` of the padded input.
    """
    lanes = _lanes(part)
    reach = (part.kernel[2] - 1) * part.dilation[2] // part.strides[2]
    row = -(-part.out[2] // lanes) * lanes + reach
    lines = (
        (n - 1) * s + max(k - 1, 0) * d + 1
        for n, s, k, d in zip(part.out[:2], part.strides, part.kernel, part.dilation)
    )
    return (part.batch, part.groups, part.channels, *lines, part.strides[2], row)


@kernel
def sort_columns(x: Array, out: Array, low0: i64, low1: i64, low2: i64, S: Const, N: Const):
    """out (B, G, C, PD, PH, S, PW) from x (B, G, C, D, H, W): zeros around it. Grid (C, G, B)."""
    c, g, n = program_id(0), program_id(1), program_id(2)
    line = scratch((N * S,), out.dtype)  # nothing in it has to be checked
    for d in range(out.shape[3]):
        for h in range(out.shape[4]):
            for at in range(0, out.shape[6], N):
                first = at * S - low2
                if S == 1:
                    row = x[n, g, c, d - low0, h - low1, first : first + N]
                    out[n, g, c, d, h, 0, at : at + N] = row
                else:
                    line[0 : N * S] = x[n, g, c, d - low0, h - low1, first : first + N * S]
                    for s in unroll(S):
                        columns = reshape(line[0 : N * S], (N, S))
                        out[n, g, c, d, h, s, at : at + N] = columns[:, s]


def sort_columns_calls(part: Geometry, x: Buffer, out: Buffer) -> list[KernelCall]:
    """Fill ``out``, of :func:`rows_shape`, with x (B, G, C, D, H, W)."""
    b, g, c = x.shape[:3]
    width = out.shape[6]
    lanes = 64 if part.strides[2] == 1 and width > 32 else 16 if width > 8 else 8
    consts = {"S": part.strides[2], "N": lanes}
    return [KernelCall(sort_columns, (c, g, b), (x, out.fix(3), *part.low), consts)]


@kernel
def conv_rows(
    x: Array,
    w: Array,
    y: Array,
    KERNEL: Const,
    STRIDES: Const,
    DILATION: Const,
    R: Const,
    N: Const,
    DENSE: Const,
    ACC: Const,
):
    """y (B, G, O, OD, OH, OW) from x (B, G, C, PD, PH, S, PW) and w (G, O, C, KD, KH, KW).

    A program makes R rows of one output channel: grid (OD * OH / R, O * G, B).
    """
    blocks = (y.shape[4] + (R - 1)) // R
    d = program_id(0) // blocks
    h = tl.minimum(program_id(0) % blocks * R, y.shape[4] - R)
    o = program_id(1) % y.shape[2]
    g = program_id(1) // y.shape[2]
    n = program_id(2)
    tile = scratch((R, N), ACC)
    for at in range(0, y.shape[5], N):
        acc = zeros((R, N), ACC)
        for c in range(x.shape[2]):
            for kd in range(KERNEL[0]):
                z = d * STRIDES[0] + kd * DILATION[0]
                for kh in range(KERNEL[1]):
                    row = h * STRIDES[1] + kh * DILATION[1]
                    rows = row + R * STRIDES[1]
                    if KERNEL[2] <= 32:
                        for kw in unroll(KERNEL[2]):
                            s, first = kw * DILATION[2] % STRIDES[2], kw * DILATION[2] // STRIDES[2]
                            seen = x[
                                n,
                                g,
                                c,
                                z,
                                row : rows : STRIDES[1],
                                s,
                                at + first : at + first + N,
                            ]
                            acc = fma(w[g, o, c, kd, kh, kw].to(ACC), seen, acc)
                    else:
                        for kw in range(KERNEL[2]):
                            s, first = kw * DILATION[2] % STRIDES[2], kw * DILATION[2] // STRIDES[2]
                            seen = x[
                                n,
                                g,
                                c,
                                z,
                                row : rows : STRIDES[1],
                                s,
                                at + first : at + first + N,
                            ]
                            acc = fma(w[g, o, c, kd, kh, kw].to(ACC), seen, acc)
        if DENSE:
            y[n, g, o, d, h : h + R, at : at + N] = acc
        else:  # by way of memory, so that the sums stay whole vectors
            tile[0:R, 0:N] = acc
            for r in range(R):
                y[n, g, o, d, h + r, at : at + N] = tile[r, 0:N]


def _consts(part: Geometry, dtype: DType) -> dict[str, object]:
    return {
        "STRIDES": part.strides,
        "DILATION": part.dilation,
        "R": min(part.out[1], _ROWS),
        "N": _lanes(part),
        "ACC": accumulator(dtype),
    }


def row_calls(part: Geometry, x: Buffer, w: Buffer, y: Buffer) -> list[KernelCall]:
    """``y`` (B, G, O, OD, OH, OW) from x as :func:`rows_shape` says and w of any strides."""
    consts = {**_consts(part, y.dtype), "KERNEL": part.kernel, "DENSE": y.strides[5] == 1}
    rows = min(part.out[1], _ROWS)
    b, g, o, d, h, _ = y.shape
    args = (x.fix(3), w, replace(y, fixed=3))
    return [KernelCall(conv_rows, (d * -(-h // rows), o * g, b), args, consts)]


@kernel
def weight_rows(
    x: Array,
    y: Array,
    w: Array,
    STRIDES: Const,
    DILATION: Const,
    R: Const,
    N: Const,
    ACC: Const,
):
    """w (G, O, C, KD, KH, KW) from x (B, G, C, PD, PH, S, PW) and y (B, G, O, OD, OH, OW).

    One tap of one pair of channels per program: grid (KD * KH * KW, O * C, G).
    """
    kw = program_id(0) % w.shape[5]
    kh = program_id(0) // w.shape[5] % w.shape[4]
    kd = program_id(0) // (w.shape[5] * w.shape[4])
    c = program_id(1) % w.shape[2]
    o = program_id(1) // w.shape[2]
    g = program_id(2)
    s, first = kw * DILATION[2] % STRIDES[2], kw * DILATION[2] // STRIDES[2]
    total = zeros((R, N), ACC)
    for n in range(y.shape[0]):
        for d in range(y.shape[3]):
            z = d * STRIDES[0] + kd * DILATION[0]
            for h in range(0, y.shape[4] // R * R, R):
                row = h * STRIDES[1] + kh * DILATION[1]
                for at in range(0, y.shape[5], N):
                    start = at + first
                    seen = x[
                        n, g, c, z, row : row + R * STRIDES[1] : STRIDES[1], s, start : start + N
                    ]
                    total = fma(seen, y[n, g, o, d, h : h + R, at : at + N].to(ACC), total)
    acc = tl.sum(total, axis=0)
    for n in range(y.shape[0]):
        for d in range(y.shape[3]):
            z = d * STRIDES[0] + kd * DILATION[0]
            for h in range(y.shape[4] // R * R, y.shape[4]):
                row = h * STRIDES[1] + kh * DILATION[1]
                for at in range(0, y.shape[5], N):
                    seen = x[n, g, c, z, row, s, at + first : at + first + N]
                    acc = fma(seen, y[n, g, o, d, h, at : at + N].to(ACC), acc)
    w[g, o, c, kd, kh, kw] = tl.sum(acc)


def row_weight_calls(part: Geometry, x: Buffer, y: Buffer, w: Buffer) -> list[KernelCall]:
    """``w`` (G, O, C, KD, KH, KW) from x as :func:`rows_shape` says and y of any strides."""
    g, o, c, kd, kh, kw = w.shape
    args = (x.fix(3), replace(y, fixed=3), w)
    consts = _consts(part, w.dtype)
    return [KernelCall(weight_rows, (kd * kh * kw, o * c, g), args, consts)]

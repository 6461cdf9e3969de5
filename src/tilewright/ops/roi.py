"""Pooling over regions of interest whose corners are data: RoiAlign and MaxRoiPool.

How many pixels a region takes is known when the kernel runs, so they are kernels of their own. Sums
run over the samples of a bin, rows outermost, f32 (f64 for f64).
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload,attr-defined"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from tilewright import lang as tl
from tilewright.dtypes import DType, f32, f64, i32
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.lang import Array, Const, arange, fma, full, i64, program_id, scratch, where
from tilewright.ops.calls import KernelCall
from tilewright.ops.creation import cast
from tilewright.ops.layout_kernels import divide
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import reshape, sizes_of
from tilewright.runtime.launch import kernel

__all__ = ["max_roi_pool", "roi_align"]

Attrs = Mapping[str, Any]


def roi_align(
    x: Node,
    rois: Node,
    batch: Node,
    out: Sequence[int],
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
    mode: str = "avg",
    half_pixel: bool = True,
) -> Node:
    """x (N, C, H, W), rois (R, 4) as x1, y1, x2, y2, batch (R,) -> (R, C, *out).

    Args:
        batch: the image of each region, integers.
        sampling_ratio: samples per bin and axis; 0: as many as the bin is long, rounded up.
        spatial_scale: from the regions' coordinates to pixels.
        mode: ``avg``, or ``max`` of the weighted neighbours of all samples.
        half_pixel: pixels have their centres at .5 (ONNX's default since opset 16).

    He et al. 2017; ONNX RoiAlign, ``torchvision.ops.roi_align``. No gradient.
    """
    shape = sizes_of(x)
    if len(shape) != 4 or len(out) != 2 or mode not in ("avg", "max"):
        raise ShapeError(
            f"roi_align wants x (N, C, H, W), two output sizes and mode avg or max, got "
            f"{shape_of(x.shape)}, {tuple(out)} and {mode!r}"
        )
    wide = cast(x, f64 if x.dtype is f64 else f32)
    y = make(
        "roi_align",
        reshape(wide, (*shape[:2], shape[2] * shape[3])),
        cast(rois, wide.dtype),
        cast(batch, i32),
        size=shape[2:],
        out=(int(out[0]), int(out[1])),
        ratio=int(sampling_ratio),
        spatial_scale=float(spatial_scale),
        mode=mode,
        half_pixel=bool(half_pixel),
    )
    return cast(y, x.dtype)


def max_roi_pool(x: Node, rois: Node, out: Sequence[int], spatial_scale: float = 1.0) -> Node:
    """x (N, C, H, W), rois (R, 5) as image, x1, y1, x2, y2 -> (R, C, *out).

    The corners are rounded to whole pixels (halves away from zero), bins overlap by what is left;
    an empty bin is zero. (Girshick 2015, ONNX MaxRoiPool.) No gradient.
    """
    if len(x.shape) != 4 or len(out) != 2:
        raise ShapeError(
            f"max_roi_pool wants x (N, C, H, W) and two output sizes, got {shape_of(x.shape)} "
            f"and {tuple(out)}"
        )
    wide = cast(x, f64 if x.dtype is f64 else f32)
    y = make(
        "max_roi_pool",
        wide,
        cast(rois, wide.dtype),
        out=(int(out[0]), int(out[1])),
        spatial_scale=float(spatial_scale),
    )
    return cast(y, x.dtype)


# --- shapes and references -----------------------------------------------------------------------


def _regions(op: str, rois: Node, width: int) -> Any:
    if len(rois.shape) != 2 or rois.shape[1] != width:
        raise ShapeError(f"{op}: rois want (regions, {width}), got {shape_of(rois.shape)}")
    return rois.shape[0]


def _infer_align(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    x, rois, batch = inputs
    count = _regions("roi_align", rois, 4)
    if batch.shape != (count,):
        raise ShapeError(f"roi_align: {count} regions want as many images, got {batch.shape}")
    return (count, x.shape[1], *attrs["out"]), x.dtype


def _infer_pool(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    x, rois = inputs
    return (_regions("max_roi_pool", rois, 5), x.shape[1], *attrs["out"]), x.dtype


def _align_reference(
    x: np.ndarray,
    rois: np.ndarray,
    batch: np.ndarray,
    size: tuple[int, int],
    out: tuple[int, int],
    ratio: int,
    spatial_scale: float,
    mode: str,
    half_pixel: bool,
) -> np.ndarray:
    """Sample by sample."""
    y = np.zeros((len(rois), x.shape[1], *out))
    images = x.reshape(*x.shape[:2], *size).astype(np.float64)
    for r, (x1, y1, x2, y2) in enumerate(rois.astype(np.float64) * spatial_scale):
        shift = 0.5 if half_pixel else 0.0
        lengths = [y2 - y1, x2 - x1] if half_pixel else [max(y2 - y1, 1.0), max(x2 - x1, 1.0)]
        bins = [n / o for n, o in zip(lengths, out)]
        counts = [ratio if ratio > 0 else int(np.ceil(n / o)) for n, o in zip(lengths, out)]
        for ph, pw in product(*map(range, out)):
            found = [
                _sample(
                    images[batch[r]],
                    y1 - shift + (ph + (iy + 0.5) / counts[0]) * bins[0],
                    x1 - shift + (pw + (ix + 0.5) / counts[1]) * bins[1],
                )
                for iy, ix in product(range(counts[0]), range(counts[1]))
            ]
            if found and mode == "avg":
                y[r, :, ph, pw] = np.sum(found, (0, 1)) / len(found)
            elif found:
                y[r, :, ph, pw] = np.max(found, (0, 1))
    return y.astype(x.dtype)


def _sample(image: np.ndarray, at: float, along: float) -> np.ndarray:
    """The four weighted neighbours (4, C)."""
    height, width = image.shape[1:]
    if not (-1 <= at <= height and -1 <= along <= width):
        return np.zeros((4, image.shape[0]))
    at, along = min(max(at, 0), height - 1), min(max(along, 0), width - 1)
    top, left = int(at), int(along)
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    ly, lx = at - top, along - left
    return np.stack(
        [
            (1 - ly) * (1 - lx) * image[:, top, left],
            (1 - ly) * lx * image[:, top, right],
            ly * (1 - lx) * image[:, below, left],
            ly * lx * image[:, below, right],
        ]
    )


def _away(value: Any) -> Any:
    """Rounded, halves away from zero."""
    return np.sign(value) * np.floor(np.abs(value) + 0.5)


def _pool_reference(
    x: np.ndarray, rois: np.ndarray, out: tuple[int, int], spatial_scale: float
) -> np.ndarray:
    y = np.zeros((len(rois), x.shape[1], *out), x.dtype)
    for r, (image, *corners) in enumerate(rois):
        x1, y1, x2, y2 = _away(np.array(corners) * x.dtype.type(spatial_scale))
        for ph, pw in product(*map(range, out)):
            spans = []
            for i, o, low, high, n in zip((ph, pw), out, (y1, x1), (y2, x2), x.shape[2:]):
                length = x.dtype.type(max(high - low + 1, 1))
                first = np.floor(i * length / o) + low
                last = np.ceil((i + 1) * length / o) + low
                spans.append(slice(*(int(np.clip(v, 0, n)) for v in (first, last))))
            where_: Any = (int(image), slice(None), *spans)
            seen = x[where_]
            if seen.size:
                y[r, :, ph, pw] = seen.max((1, 2))
    return y


# --- kernels -------------------------------------------------------------------------------------


def _neighbours(at, size):
    """The pixels before and after ``at``, the share of the second, and whether ``at`` counts."""
    counts = (at >= -1.0) & (at <= size.to(at.dtype))
    top = (size - 1).to(at.dtype)
    at = tl.minimum(tl.maximum(at, 0.0), top)
    low = tl.floor(at)
    return low.to(i32), tl.minimum(low + 1.0, top).to(i32), at - low, counts


@kernel
def align_regions(
    x: Array,
    rois: Array,
    batch: Array,
    y: Array,
    H: i64,
    W: i64,
    RATIO: Const,
    SCALE: Const,
    MAX: Const,
    HALF: Const,
    CHANNELS: Const,
    N: Const,
):
    """One row of bins of CHANNELS channels: grid (OH, C / CHANNELS, R); x (N, C, H * W)."""
    ph, first, r = program_id(0), program_id(1) * CHANNELS, program_id(2)
    dtype = x.dtype
    shift = 0.5 if HALF else 0.0
    top, left = rois[r, 1] * SCALE - shift, rois[r, 0] * SCALE - shift
    height = rois[r, 3] * SCALE - shift - top
    width = rois[r, 2] * SCALE - shift - left
    if not HALF:
        height, width = tl.maximum(height, 1.0), tl.maximum(width, 1.0)
    bin_h, bin_w = height / y.shape[2].to(dtype), width / y.shape[3].to(dtype)
    if RATIO > 0:
        rows, columns = RATIO, RATIO
        row_step, column_step = bin_h / RATIO, bin_w / RATIO
    else:
        rows, columns = tl.ceil(bin_h).to(i64), tl.ceil(bin_w).to(i64)
        row_step, column_step = bin_h / rows.to(dtype), bin_w / columns.to(dtype)
    n = batch[r]
    sums = scratch((CHANNELS, N), dtype)
    for at in range(0, y.shape[3], N):
        for c in range(CHANNELS):
            sums[c, 0:N] = full((N,), -tl.inf if MAX else 0.0, dtype)
        pw = (at.to(i32) + arange(N).to(i32)).to(dtype)
        for iy in range(rows):
            down = top + ph.to(dtype) * bin_h + (iy.to(dtype) + 0.5) * row_step
            y0, y1, ly, row_counts = _neighbours(down, H)
            for ix in range(columns):
                along = left + pw * bin_w + (ix.to(dtype) + 0.5) * column_step
                x0, x1, lx, counts = _neighbours(along, W)
                counts = counts & row_counts
                w00 = where(counts, (1.0 - ly) * (1.0 - lx), 0.0)
                w01 = where(counts, (1.0 - ly) * lx, 0.0)
                w10 = where(counts, ly * (1.0 - lx), 0.0)
                w11 = where(counts, ly * lx, 0.0)
                upper, lower = y0 * W.to(i32), y1 * W.to(i32)
                for j in range(CHANNELS):
                    c = first + j
                    p00, p01 = x[n, c, upper + x0], x[n, c, upper + x1]
                    p10, p11 = x[n, c, lower + x0], x[n, c, lower + x1]
                    acc = sums[j, 0:N]
                    if MAX:
                        acc = tl.maximum(acc, tl.maximum(w00 * p00, w01 * p01))
                        sums[j, 0:N] = tl.maximum(acc, tl.maximum(w10 * p10, w11 * p11))
                    else:
                        acc = fma(w01, p01, fma(w00, p00, acc))
                        sums[j, 0:N] = fma(w11, p11, fma(w10, p10, acc))
        for j in range(CHANNELS):
            found = sums[j, 0:N]
            if RATIO > 0:
                count = RATIO * RATIO
                total = full((), float(count), dtype)
            else:
                total = (tl.maximum(rows, 0) * tl.maximum(columns, 0)).to(dtype)
            if MAX:
                found = where(total > 0.0, found, 0.0)
            else:
                found = found / tl.maximum(total, 1.0)
            y[r, first + j, ph, at : at + N] = found


def _align_calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    attrs = node.attrs
    channels = min(16, max(out.shape[1], 1))
    consts = {
        "RATIO": max(attrs["ratio"], 0),
        "SCALE": attrs["spatial_scale"],
        "MAX": attrs["mode"] == "max",
        "HALF": attrs["half_pixel"],
        "CHANNELS": channels,
        "N": 16 if out.shape[3] > 8 else 8,
    }
    grid = (out.shape[2], divide(out.shape[1], channels), out.shape[0])
    if not prod(grid) * out.shape[3]:
        return []
    return [KernelCall(align_regions, grid, (*inputs, out, *attrs["size"]), consts)]


def _rounded(value):
    """Halves away from zero; inline."""
    return where(value < 0.0, -tl.floor(0.5 - value), tl.floor(value + 0.5))


@kernel
def max_regions(x: Array, rois: Array, y: Array, SCALE: Const, N: Const):
    """One row of bins of one channel: grid (OH, C, R)."""
    ph, c, r = program_id(0), program_id(1), program_id(2)
    dtype = x.dtype
    n = rois[r, 0].to(i64)
    left, top = _rounded(rois[r, 1] * SCALE), _rounded(rois[r, 2] * SCALE)
    right, bottom = _rounded(rois[r, 3] * SCALE), _rounded(rois[r, 4] * SCALE)
    height, width = tl.maximum(bottom - top + 1.0, 1.0), tl.maximum(right - left + 1.0, 1.0)
    row, rows = ph.to(dtype), y.shape[2].to(dtype)
    h0 = tl.maximum((tl.floor(row * height / rows) + top).to(i64), 0)
    h1 = tl.minimum((tl.ceil((row + 1.0) * height / rows) + top).to(i64), x.shape[2])
    for pw in range(y.shape[3]):
        column, columns = pw.to(dtype), y.shape[3].to(dtype)
        w0 = tl.maximum((tl.floor(column * width / columns) + left).to(i64), 0)
        w1 = tl.minimum((tl.ceil((column + 1.0) * width / columns) + left).to(i64), x.shape[3])
        best = full((N,), -tl.inf, dtype)
        for h in range(h0, h1):
            for w in range(w0, w1, N):
                inside = w.to(i32) + arange(N).to(i32) < w1.to(i32)
                best = tl.maximum(best, where(inside, x[n, c, h, w : w + N], -tl.inf))
        found = tl.max(best)
        y[r, c, ph, pw] = where((h0 < h1) & (w0 < w1), found, 0.0)


def _pool_calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    grid = (out.shape[2], out.shape[1], out.shape[0])
    consts = {"SCALE": node.attrs["spatial_scale"], "N": 16}
    return [KernelCall(max_regions, grid, (*inputs, out), consts)] if prod(grid) else []


register(OpDef("roi_align", _infer_align, _align_reference, calls=_align_calls))
register(OpDef("max_roi_pool", _infer_pool, _pool_reference, calls=_pool_calls))

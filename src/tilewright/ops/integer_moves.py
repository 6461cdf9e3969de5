"""Channels last: bytes put together from several arrays, interleaved, requantised; and pooled.

``byte_join`` makes channels ``start`` to ``stop`` of arrays (N, *size, C') that stand one after the
other or, two of them, alternate channel by channel (a channel shuffle). Each array can be
requantised on the way: exactly, ``quantize(dequantize(q))``, or by one multiply-add, where
:func:`affine_fit` found one that gives the same bytes for all 256.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload,index"
# (the bodies of kernels are checked by the kernel language)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from tilewright import lang as tl
from tilewright.dtypes import DType, f32, i8, i32, u8, u16
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape
from tilewright.lang import Array, Arrays, Const, bitcast, fma, i64, program_id, unroll, where
from tilewright.ops.calls import KernelCall
from tilewright.ops.integer import words_of
from tilewright.ops.quantize import round_to, rounded
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import sizes_of
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = ["affine_fit", "byte_join", "byte_max_pool"]

Attrs = Mapping[str, Any]
_BYTES = (u8, i8)


def requantised(q, numbers, part, how, dtype):
    """An i32 tile of bytes of array ``part`` as the result's, i32 too; inline."""
    low, high = (-128, 127) if dtype is i8 else (0, 255)
    if how == "affine":
        v = fma(q.to(f32), numbers[part, 0], numbers[part, 1])
        v = where(v < low * 1.0, low * 1.0, v)
        v = where(v > high * 1.0, high * 1.0, v)
        return bitcast(v + 12582912.0, i32) - 0x4B400000
    if how == "exact":
        v = (q - numbers[part, 1].to(i32)).to(f32) * numbers[part, 0] / numbers[part, 2]
        return round_to(v, numbers[part, 3].to(i32), low, high, i32)
    return q


@kernel
def join_bytes(xs: Arrays, numbers: Array, y: Array, ROWS: Const, PIECES: Const, HOW: Const):
    """Rows y (R, C') of pieces (array, first channel, channels, place) of xs (R, C'...)."""
    first = program_id(0) * ROWS
    for row in range(first, tl.minimum(first + ROWS, y.shape[0])):
        for piece in unroll(PIECES):
            part, start, count, place = piece
            x, how = xs[part], HOW[part]
            for j in unroll(0, count, 64):
                n = min(64, count - j)
                at = start + j
                if how == "copy":
                    y[row, place + j : place + j + n] = x[row, at : at + n]
                else:
                    q = requantised(x[row, at : at + n].to(i32), numbers, part, how, y.dtype)
                    y[row, place + j : place + j + n] = q.to(y.dtype)


@kernel
def alternate_bytes(
    xs: Arrays,
    numbers: Array,
    y: Array,
    ROWS: Const,
    FIRST: Const,
    COUNT: Const,
    HOW: Const,
    D: Const,
):
    """Rows y (R, C' / 2) of u16: channel FIRST + i of both arrays side by side, COUNT times."""
    first = program_id(0) * ROWS
    for row in range(first, tl.minimum(first + ROWS, y.shape[0])):
        for j in unroll(0, COUNT, 64):
            n = min(64, COUNT - j)
            at = FIRST + j
            a = requantised(xs[0][row, at : at + n].to(i32), numbers, 0, HOW[0], D)
            b = requantised(xs[1][row, at : at + n].to(i32), numbers, 1, HOW[1], D)
            y[row, j : j + n] = ((a & 255) | ((b & 255) << 8)).to(u16)


# --- byte_join -----------------------------------------------------------------------------------


def _chosen(attrs: Attrs) -> list[tuple[int, int, int, int]]:
    """Pieces (array, first channel, channels, place in the result) of a join that does not
    alternate."""
    start, stop, pieces, at = attrs["start"], attrs["stop"], [], 0
    for part, count in enumerate(attrs["channels"]):
        low, high = max(start - at, 0), min(stop - at, count)
        if low < high:
            pieces.append((part, low, high - low, at + low - start))
        at += count
    return pieces


def _join_infer(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    *xs, numbers = inputs
    first, channels = xs[0], attrs["channels"]
    if len(xs) != len(channels) or len(attrs["how"]) != len(xs) or numbers.dtype is not f32:
        raise ShapeError(f"byte_join of {len(xs)} arrays: {attrs}")
    for x, count in zip(xs, channels):
        if x.dtype not in _BYTES or x.shape[:-1] != first.shape[:-1]:
            raise ShapeError(f"byte_join wants bytes of one size, got {xs}")
        if not 0 < count <= sizes_of(x)[-1]:
            raise ShapeError(f"byte_join: {x!r} has no {count} channels")
    if attrs["alternate"] and (len(xs) != 2 or channels[0] != channels[1] or attrs["start"] % 2):
        raise ShapeError(f"byte_join: two arrays of equal channels alternate, got {channels}")
    if not 0 <= attrs["start"] < attrs["stop"] <= sum(channels):
        raise ShapeError(f"byte_join: no channels {attrs['start']} to {attrs['stop']}")
    return (*first.shape[:-1], 4 * words_of(attrs["stop"] - attrs["start"])), attrs["dtype"]


def _join_reference(*inputs: np.ndarray, **attrs: Any) -> np.ndarray:
    *xs, numbers = inputs
    info = np.iinfo(attrs["dtype"].storage)
    parts = []
    for x, count, how, (a, b, c, d) in zip(xs, attrs["channels"], attrs["how"], numbers):
        q = x[..., :count].astype(np.int32)
        if how == "affine":
            v = (q.astype(np.float64) * np.float64(a) + np.float64(b)).astype(np.float32)
            q = rounded(v, 0, int(info.min), int(info.max), np.int32)
        elif how == "exact":
            v = (q - np.int32(b)).astype(np.float32) * a / c
            q = rounded(v, int(d), int(info.min), int(info.max), np.int32)
        parts.append(q)
    if attrs["alternate"]:
        whole = np.stack(parts, -1).reshape(*parts[0].shape[:-1], -1)
    else:
        whole = np.concatenate(parts, -1)
    cut = whole[..., attrs["start"] : attrs["stop"]].astype(info.dtype)
    return np.pad(cut, [(0, 0)] * (cut.ndim - 1) + [(0, -cut.shape[-1] % 4)])


def _rows(buffer: Buffer) -> Buffer:
    """A dense buffer as rows along its last axis."""
    return buffer.view((prod(buffer.shape[:-1]), buffer.shape[-1]))


def _join_calls(node: Node, inputs: Sequence[Buffer], out: Buffer) -> list[KernelCall]:
    *xs, numbers = inputs
    attrs = node.attrs
    arrays = tuple(_rows(x) for x in xs)
    rows = prod(out.shape[:-1])
    block = max(1, min(64, 8192 // max(out.shape[-1], 1)))
    grid = (-(-rows // block),)
    if attrs["alternate"]:
        y = out.view((rows, out.shape[-1] // 2), None, 0, u16)
        consts = {
            "ROWS": block,
            "FIRST": attrs["start"] // 2,
            "COUNT": -(-(attrs["stop"] - attrs["start"]) // 2),
            "HOW": attrs["how"],
            "D": attrs["dtype"],
        }
        return [KernelCall(alternate_bytes, grid, (arrays, numbers, y), consts)]
    consts = {"ROWS": block, "PIECES": tuple(_chosen(attrs)), "HOW": attrs["how"]}
    return [KernelCall(join_bytes, grid, (arrays, numbers, _rows(out)), consts)]


register(OpDef("byte_join", _join_infer, _join_reference, calls=_join_calls))


def byte_join(xs: Sequence[Node], numbers: Node, **attrs: Any) -> Node:
    """Channels of xs (N, *size, C') in one array (see the module).

    Attrs: ``channels`` of each array, ``alternate``, ``start`` and ``stop`` in what they make,
    ``dtype`` of the result, ``how`` each is requantised: "copy", "affine" with numbers
    (factor, term, 0, 0), or "exact" with (scale, zero point, result's scale, its zero point).
    numbers: f32 (arrays, 4).
    """
    return make("byte_join", *xs, numbers, **attrs)


def affine_fit(
    sx: np.ndarray, zx: np.ndarray, sy: np.ndarray, zy: np.ndarray
) -> tuple[np.float32, np.float32] | None:
    """(m, b) such that round(q m + b), fused and saturated, requantises all 256 bytes exactly."""
    info = np.iinfo(zx.dtype)
    q = np.arange(info.min, info.max + 1, dtype=np.int32)
    low, high = int(np.iinfo(zy.dtype).min), int(np.iinfo(zy.dtype).max)
    with np.errstate(all="ignore"):
        exact = (q - zx.astype(np.int32)).astype(np.float32) * np.float32(sx) / np.float32(sy)
        wanted = rounded(exact, zy, low, high, np.int32)
        m = np.float32(np.float64(sx) / np.float64(sy))
        middle = np.float32(np.float64(zy) - np.float64(zx) * np.float64(m))
        far = np.float32(np.inf)
        for b in (middle, np.nextafter(middle, far), np.nextafter(middle, -far)):
            v = (q.astype(np.float64) * np.float64(m) + np.float64(b)).astype(np.float32)
            if np.array_equal(rounded(v, 0, low, high, np.int32), wanted):
                return m, np.float32(b)
    return None


# --- pooling -------------------------------------------------------------------------------------


@kernel
def max_bytes(x: Array, y: Array, low0: i64, low1: i64, CB: Const, KERNEL: Const, STRIDES: Const):
    """y (N, OH, OW, C') from x (N, H, W, C'): a place in the padding is its neighbour's inside,
    which the window sees too. Grid (N * OH, C' / CB)."""
    n, oh = program_id(0) // y.shape[1], program_id(0) % y.shape[1]
    c = program_id(1) * CB
    h0 = oh * STRIDES[0] - low0
    for ow in range(y.shape[2]):
        w0 = ow * STRIDES[1] - low1
        top = tl.full((CB,), -128 if y.dtype is i8 else 0, y.dtype)
        for kh in unroll(KERNEL[0]):
            h = tl.minimum(tl.maximum(h0 + kh, 0), x.shape[1] - 1)
            for kw in unroll(KERNEL[1]):
                w = tl.minimum(tl.maximum(w0 + kw, 0), x.shape[2] - 1)
                top = tl.maximum(top, x[n, h, w, c : c + CB])
        y[n, oh, ow, c : c + CB] = top


def _pool_infer(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    (x,) = inputs
    if x.dtype not in _BYTES or len(x.shape) != 4:
        raise ShapeError(f"byte_max_pool wants bytes (N, H, W, C'), got {x!r}")
    return (x.shape[0], *attrs["out"], x.shape[3]), x.dtype


def _pool_reference(x: np.ndarray, **attrs: Any) -> np.ndarray:
    (kh, kw), (sh, sw), (oh, ow), (lh, lw) = (attrs[k] for k in ("kernel", "strides", "out", "low"))
    y = np.full((x.shape[0], oh, ow, x.shape[3]), np.iinfo(x.dtype).min, x.dtype)
    for i in range(kh):
        for j in range(kw):
            h = np.clip(np.arange(oh) * sh + i - lh, 0, x.shape[1] - 1)
            w = np.clip(np.arange(ow) * sw + j - lw, 0, x.shape[2] - 1)
            y = np.maximum(y, x[:, h][:, :, w])
    return y


def _pool_calls(node: Node, inputs: Sequence[Buffer], out: Buffer) -> list[KernelCall]:
    (x,) = inputs
    lanes = next(n for n in (64, 32, 16, 8, 4) if n <= max(out.shape[3], 4))
    consts = {"CB": lanes, "KERNEL": node.attrs["kernel"], "STRIDES": node.attrs["strides"]}
    grid = (out.shape[0] * out.shape[1], -(-out.shape[3] // lanes))
    return [KernelCall(max_bytes, grid, (x, out, *node.attrs["low"]), consts)]


register(OpDef("byte_max_pool", _pool_infer, _pool_reference, calls=_pool_calls))


def byte_max_pool(x: Node, **attrs: Any) -> Node:
    """The largest of each window of x (N, H, W, C').

    Attrs ``kernel``, ``strides``, ``low`` (padding in front), ``out``: two numbers each. Every
    window sees something of x.
    """
    return make("byte_max_pool", x, **attrs)

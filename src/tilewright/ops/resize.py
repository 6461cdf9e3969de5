"""Resizing: nearest, linear and cubic interpolation along any axes, with every rule of ONNX.

Interpolation is separable. Along one axis output o is ``sum over k of weight[o, k] * x[id[o, k]]``;
the two tables depend on sizes and settings only, are made once, and ``resample`` applies them, k
ascending, one fused multiply-add each, in f32 (f64 for f64). The gradient is ``resample`` by the
transposed tables. Axes that shrink most come first; the last two axes of an image are resized at
once (``resize_image``). Other nearest neighbours are a gather (``take``).

Formulas: ONNX "Resize" (opset 19); cubic: Keys 1981, "Cubic convolution interpolation".
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, f32, f64, i32
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, data_node, shape_of
from tilewright.lang import Array, Const, fma, minimum, program_id, unroll, zeros
from tilewright.ops.calls import KernelCall
from tilewright.ops.comparison import where
from tilewright.ops.creation import cast, full
from tilewright.ops.indexing import take
from tilewright.ops.layout_kernels import block_for, divide
from tilewright.ops.resize_image import MOST_COLUMNS, resize_image
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import broadcast, normal_axis, reshape, sizes_of
from tilewright.runtime.buffers import from_array
from tilewright.runtime.launch import kernel

__all__ = ["COORDINATES", "NEAREST", "Axis", "axis_tables", "resample", "resize"]

Attrs = Mapping[str, Any]

COORDINATES: Final = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
)
NEAREST: Final = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@dataclass(frozen=True)
class Axis:
    """How one axis is resized.

    Attributes:
        size, out: elements before and after.
        scale: ``out / size`` before ``out`` was rounded.
        roi: first and last position of the region of ``tf_crop_and_resize``, as fractions.
    """

    size: int
    out: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


def resize(
    x: Node,
    scales: Sequence[float] | None = None,
    sizes: Sequence[int] | None = None,
    *,
    axes: Sequence[int] | None = None,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: bool = False,
    antialias: bool = False,
    extrapolation_value: float = 0.0,
    roi: Sequence[float] | None = None,
    keep_aspect_ratio_policy: str = "stretch",
) -> Node:
    """``x`` resized along ``axes`` (default all); the attributes are ONNX's.

    Args:
        scales, sizes: one of the two, a number per axis. ``out = floor(size * scale)``, in f32.
        mode: ``nearest`` (any dtype), ``linear`` or ``cubic`` (integers are computed in f32 and
            truncated).
        coordinate_transformation_mode: where output o lies in x; one of :data:`COORDINATES`.
        nearest_mode: one of :data:`NEAREST`.
        exclude_outside: weights outside x are zero, the others are scaled up.
        antialias: linear and cubic kernels are stretched by ``1 / scale`` when that is above one.
        extrapolation_value: what ``tf_crop_and_resize`` gives outside x.
        roi: for ``tf_crop_and_resize`` the starts, then the ends of all ``axes``, as fractions.
        keep_aspect_ratio_policy: ``stretch``, ``not_larger`` or ``not_smaller`` than ``sizes``.

    Raises :class:`ShapeError` for settings that do not exist or numbers that do not fit.
    """
    shape = sizes_of(x)
    along = tuple(normal_axis(a, len(shape)) for a in (range(len(shape)) if axes is None else axes))
    _check_settings(mode, coordinate_transformation_mode, nearest_mode, antialias)
    plans = _axes(shape, along, scales, sizes, keep_aspect_ratio_policy, roi)
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    changed = [(a, p) for a, p in zip(along, plans) if crop or (p.out, p.scale) != (p.size, 1.0)]
    if any(p.size == 0 and p.out for _, p in changed):
        raise ShapeError(f"resize: an empty axis of {shape_of(x.shape)} has nothing to interpolate")
    wide = x
    if mode != "nearest":
        wide = cast(x, f64 if x.dtype is f64 else f32)
    if {a for a, _ in changed} == {2, 3} and len(shape) == 4 and shape[3] <= MOST_COLUMNS:
        settings = (coordinate_transformation_mode, float(cubic_coeff_a), bool(exclude_outside))
        wide = _image(wide, dict(changed), mode, nearest_mode, *settings, bool(antialias))
        return cast(_extrapolated(wide, changed, extrapolation_value) if crop else wide, x.dtype)
    for axis, plan in sorted(changed, key=lambda one: one[1].out / max(one[1].size, 1)):
        if mode == "nearest":
            ids = _nearest_ids(plan, coordinate_transformation_mode, nearest_mode)
            wide = take(wide, data_node(ids), axis)
            continue
        wide = _along(
            wide,
            axis,
            *_buffers(
                plan,
                mode,
                coordinate_transformation_mode,
                float(cubic_coeff_a),
                bool(exclude_outside),
                bool(antialias),
                wide.dtype is f64,
            ),
        )
    if crop:
        wide = _extrapolated(wide, changed, extrapolation_value)
    return cast(wide, x.dtype)


def _check_settings(mode: str, coordinates: str, nearest: str, antialias: bool) -> None:
    for name, value, known in (
        ("mode", mode, ("nearest", "linear", "cubic")),
        ("coordinate_transformation_mode", coordinates, COORDINATES),
        ("nearest_mode", nearest, NEAREST),
    ):
        if value not in known:
            raise ShapeError(f"resize: {name} is one of {', '.join(known)}, got {value!r}")
    if antialias and mode == "nearest":
        raise ShapeError("resize: antialias wants mode linear or cubic, got nearest")


def _axes(
    shape: Sequence[int],
    along: Sequence[int],
    scales: Sequence[float] | None,
    sizes: Sequence[int] | None,
    policy: str,
    roi: Sequence[float] | None,
) -> list[Axis]:
    given = scales if sizes is None else sizes
    if (scales is None) == (sizes is None) or given is None or len(given) != len(along):
        raise ShapeError(
            f"resize wants either scales or sizes, one for each of {len(along)} axes, got scales "
            f"{scales} and sizes {sizes}"
        )
    if roi is not None and len(roi) not in (0, 2 * len(along)):
        raise ShapeError(f"resize: roi wants {2 * len(along)} numbers, got {len(roi)}")
    n = [shape[a] for a in along]
    if sizes is not None:
        outs = [int(s) for s in sizes]
        ratios = [o / max(m, 1) for o, m in zip(outs, n)]
        if policy in ("not_larger", "not_smaller") and outs:
            common = min(ratios) if policy == "not_larger" else max(ratios)
            ratios = [common] * len(n)
            outs = [math.floor(common * m + 0.5) for m in n]
        elif policy not in ("stretch", "not_larger", "not_smaller"):
            raise ShapeError(
                "resize: keep_aspect_ratio_policy is stretch, not_larger or not_smaller, got "
                f"{policy!r}"
            )
    else:
        assert scales is not None
        ratios = [float(s) for s in scales]
        if not all(0 < s < math.inf for s in ratios):
            raise ShapeError(f"resize: scales are above zero, got {list(scales)}")
        # in f32, as scales are in ONNX: 30 by 2.3 is 69 there
        outs = [math.floor(np.float32(m) * np.float32(s)) for m, s in zip(n, ratios)]
    if min(outs, default=0) < 0:
        raise ShapeError(f"resize: sizes are at least zero, got {outs}")
    ends = list(zip(roi[: len(n)], roi[len(n) :])) if roi else [(0.0, 1.0)] * len(n)
    return [Axis(m, o, s, (float(a), float(b))) for m, o, s, (a, b) in zip(n, outs, ratios, ends)]


# --- tables --------------------------------------------------------------------------------------


def _positions(axis: Axis, coordinates: str, kind: Any = np.float64) -> np.ndarray:
    """Where the outputs lie in x, computed in ``kind``.

    Nearest neighbours take f32, as onnxruntime and PyTorch do: ``17 / 1.7`` is ten there, and below
    it for the f32 number nearest to 1.7 otherwise.
    """
    o = np.arange(axis.out, dtype=kind)
    exact = axis.scale * axis.size  # the output's length before rounding
    if coordinates == "align_corners":
        return o * 0 if exact == 1 else o * (axis.size - 1) / (exact - 1)
    if coordinates == "asymmetric":
        return o / axis.scale
    if coordinates == "tf_half_pixel_for_nn":
        return (o + 0.5) / axis.scale
    if coordinates == "tf_crop_and_resize":
        start, end = axis.roi
        if exact == 1:
            return o * 0 + (end - start) * (axis.size - 1) / 2 + start * (axis.size - 1)
        return o * (end - start) * (axis.size - 1) / (exact - 1) + start * (axis.size - 1)
    if coordinates == "pytorch_half_pixel" and exact == 1:
        return o * 0 - 0.5
    at = (o + 0.5) / axis.scale - 0.5
    if coordinates == "half_pixel_symmetric":
        at += axis.size / 2 * (1 - axis.out / exact)
    return at


def _cubic(t: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel at distances ``t``."""
    t = np.abs(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((t - 5) * t + 8) * t * a - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def axis_tables(
    axis: Axis, mode: str, coordinates: str, a: float, exclude: bool, antialias: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (i32) and weights (f64), both (out, taps), of linear or cubic interpolation."""
    at = _positions(axis, coordinates)
    left = np.ceil(at) - 1  # the pixel on the left counts as near when the position is whole
    reach = 1 if mode == "linear" else 2
    scale = min(axis.scale, 1.0) if antialias else 1.0
    first = math.floor(-reach / scale) + 1
    offsets = np.arange(first, 2 - first)
    distance = (offsets - (at - left)[:, None]) * scale
    weights = np.clip(1 - np.abs(distance), 0, 1) if mode == "linear" else _cubic(distance, a)
    ids = (left[:, None] + offsets).astype(np.int64)
    if antialias:
        weights /= weights.sum(1, keepdims=True)
    if exclude:
        weights = np.where((ids >= 0) & (ids < axis.size), weights, 0.0)
        total = weights.sum(1, keepdims=True)
        weights /= np.where(total == 0, 1.0, total)  # nothing inside: tf_crop_and_resize only
    return np.clip(ids, 0, axis.size - 1).astype(np.int32), weights


@lru_cache(maxsize=256)
def _buffers(
    axis: Axis, mode: str, coordinates: str, a: float, exclude: bool, antialias: bool, wide: bool
) -> tuple[Any, Any]:
    ids, weights = axis_tables(axis, mode, coordinates, a, exclude, antialias)
    return from_array(ids), from_array(weights.astype(np.float64 if wide else np.float32))


@lru_cache(maxsize=256)
def _nearest_ids(axis: Axis, coordinates: str, nearest: str) -> Any:
    at = _positions(axis, coordinates, np.float32)
    rounded = {
        "round_prefer_floor": lambda: np.ceil(at - 0.5),
        "round_prefer_ceil": lambda: np.floor(at + 0.5),
        "floor": lambda: np.floor(at),
        "ceil": lambda: np.ceil(at),
    }[nearest]()
    return from_array(np.clip(rounded, 0, axis.size - 1).astype(np.int32))


def _extrapolated(x: Node, changed: Sequence[tuple[int, Axis]], value: float) -> Node:
    """``value`` where a position of ``tf_crop_and_resize`` lies outside."""
    shape = sizes_of(x)
    for axis, plan in changed:
        at = _positions(plan, "tf_crop_and_resize")
        inside = (at >= 0) & (at <= plan.size - 1)
        if inside.all():
            continue
        line = tuple(plan.out if a == axis else 1 for a in range(len(shape)))
        keep = broadcast(reshape(data_node(from_array(inside)), line), shape)
        x = where(keep, x, full(shape, int(value) if x.dtype.is_integer else value, x.dtype))
    return x


def _image(
    x: Node,
    plans: Mapping[int, Axis],
    mode: str,
    nearest: str,
    coordinates: str,
    a: float,
    exclude: bool,
    antialias: bool,
) -> Node:
    """Both axes of an image in one pass."""
    if mode == "nearest":
        ids = [_nearest_ids(plans[axis], coordinates, nearest) for axis in (2, 3)]
        return resize_image(x, *(data_node(i.view((1, *i.shape))) for i in ids))
    made = [
        _buffers(plans[axis], mode, coordinates, a, exclude, antialias, x.dtype is f64)
        for axis in (2, 3)
    ]
    rows, columns = (data_node(ids.view(ids.shape[::-1], ids.strides[::-1])) for ids, _ in made)
    high, wide = (data_node(w.view(w.shape[::-1], w.strides[::-1])) for _, w in made)
    return resize_image(x, rows, copied(columns), high, copied(wide))


def copied(table: Node) -> Node:
    """A small table laid out densely."""
    return data_node(from_array(np.ascontiguousarray(table.value.numpy())))


def back_along(x: Node, axis: int, ids: Node, weights: Node | None, n: int) -> Node:
    """The transpose of one axis of ``resize_image``: tables (K, out), n elements in the end."""
    positions = ids.value.numpy().T
    shares = np.ones(positions.shape, np.float64) if weights is None else weights.value.numpy().T
    back, turned = _transposed(positions, shares.astype(x.dtype.storage), n)
    return _along(x, axis, from_array(back), from_array(turned))


# --- the op --------------------------------------------------------------------------------------


def _along(x: Node, axis: int, ids: Any, weights: Any) -> Node:
    shape = sizes_of(x)
    cut = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
    y = resample(reshape(x, cut), data_node(ids), data_node(weights))
    return reshape(y, (*shape[:axis], ids.shape[0], *shape[axis + 1 :]))


def resample(x: Node, ids: Node, weights: Node) -> Node:
    """``y[a, o, i] = sum over k of weights[o, k] * x[a, ids[o, k], i]``: (A, N, I) -> (A, O, I).

    x is f32 or f64, weights (O, K) of its dtype, ids (O, K) i32 within the axis. Differentiable in
    x where ids and weights are data.
    """
    return make("resample", x, ids, weights)


def _infer(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    x, ids, weights = inputs
    if x.dtype not in (f32, f64) or weights.dtype is not x.dtype or ids.dtype is not i32:
        raise ShapeError(
            f"resample wants f32 or f64, i32 ids and weights of x's dtype, got {x.dtype}, "
            f"{ids.dtype} and {weights.dtype}"
        )
    if len(x.shape) != 3 or len(ids.shape) != 2 or ids.shape != weights.shape:
        raise ShapeError(
            f"resample wants x (A, N, I), ids and weights (O, K), got {shape_of(x.shape)}, "
            f"{shape_of(ids.shape)} and {shape_of(weights.shape)}"
        )
    return (x.shape[0], ids.shape[0], x.shape[2]), x.dtype


def _reference(x: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total = np.zeros((x.shape[0], ids.shape[0], x.shape[2]))
    for k in range(ids.shape[1]):
        total += weights[:, k, None].astype(np.float64) * x[:, ids[:, k]]
    return total.astype(x.dtype)


def _gradient(node: Node, grad: Node) -> tuple[Node, None, None]:
    x, ids, weights = node.inputs
    if ids.value is None or weights.value is None:
        raise ShapeError("resample is differentiable where ids and weights are data")
    turned = _transposed(ids.value.numpy(), weights.value.numpy(), sizes_of(x)[1])
    return resample(grad, *(data_node(from_array(a)) for a in turned)), None, None


def _transposed(ids: np.ndarray, weights: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The tables of the transposed map, padded with weights of zero."""
    taps = ids.shape[1]
    order = np.argsort(ids.ravel(), kind="stable")
    source = ids.ravel()[order]
    counts = np.bincount(source, minlength=n)
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = int(counts.max(initial=1))
    back = np.zeros((n, width), np.int32)
    shares = np.zeros((n, width), weights.dtype)
    back[source, place] = order // max(taps, 1)
    shares[source, place] = weights.ravel()[order]
    return back, shares


@kernel
def resample_rows(
    x: Array, ids: Array, weights: Array, y: Array, K: Const, SPAN: Const, BLOCK: Const
):
    """Lanes along I: grid (I / SPAN, O, A). K is 0 where it is known at run time only."""
    o, a = program_id(1), program_id(2)
    start = program_id(0) * SPAN
    for i in range(start, minimum(start + SPAN, y.shape[2]), BLOCK):
        total = zeros((BLOCK,), y.dtype)
        if K:
            for k in unroll(K):
                total = fma(weights[o, k], x[a, ids[o, k], i : i + BLOCK], total)
        else:
            for k in range(ids.shape[1]):
                total = fma(weights[o, k], x[a, ids[o, k], i : i + BLOCK], total)
        y[a, o, i : i + BLOCK] = total


@kernel
def resample_columns(
    x: Array, ids: Array, weights: Array, y: Array, K: Const, ROWS: Const, BLOCK: Const
):
    """Lanes along O (I is 1): x (A, N), y (A, O); grid (O / BLOCK, A / ROWS)."""
    o = program_id(0) * BLOCK
    first = program_id(1) * ROWS
    for a in range(first, minimum(first + ROWS, y.shape[0])):
        total = zeros((BLOCK,), y.dtype)
        if K:
            for k in unroll(K):
                total = fma(weights[o : o + BLOCK, k], x[a, ids[o : o + BLOCK, k]], total)
        else:
            for k in range(ids.shape[1]):
                total = fma(weights[o : o + BLOCK, k], x[a, ids[o : o + BLOCK, k]], total)
        y[a, o : o + BLOCK] = total


def _calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    x, ids, weights = inputs
    if not out.size:
        return []
    taps = ids.shape[1]
    known = taps if taps <= 8 else 0
    if out.shape[2] > 1:
        span = min(out.shape[2], 4096)
        consts = {"K": known, "SPAN": span, "BLOCK": block_for(span)}
        grid = (divide(out.shape[2], span), out.shape[1], out.shape[0])
        return [KernelCall(resample_rows, grid, (x, ids, weights, out), consts, smallest=4)]
    rows = max(1, min(64, divide(out.shape[0], 8)))
    consts = {"K": known, "ROWS": rows, "BLOCK": 16}
    flat = [b.view(b.shape[:2], b.strides[:2]) for b in (x, out)]
    columns = (divide(out.shape[1], 16), divide(out.shape[0], rows))
    args = (flat[0], ids, weights, flat[1])
    return [KernelCall(resample_columns, columns, args, consts, smallest=4)]


register(OpDef("resample", _infer, _reference, calls=_calls, gradient=_gradient))

"""Which kernels run a convolution, and the memory they need meanwhile.

Everything here depends on shapes and dtypes only, never on strides or threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from tilewright.dtypes import DType
from tilewright.graph import Shape
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_direct import direct_calls, direct_weight_calls
from tilewright.ops.conv_narrow import groups_of, narrow_weight_calls
from tilewright.ops.conv_narrow import suits as narrow_suits
from tilewright.ops.conv_points import point_calls
from tilewright.ops.conv_points import suits as points_suit
from tilewright.ops.conv_rows import row_calls, row_weight_calls, rows_shape, sort_columns_calls
from tilewright.ops.conv_shapes import (
    Geometry,
    Triple,
    accumulator,
    by_channels,
    by_images,
    grouped,
    has_dense_planes,
    phases,
    row_of,
    spatial,
)
from tilewright.ops.conv_tiles import pack_weights_calls, packed_shape, pad_calls, tile_calls
from tilewright.ops.conv_weights import weight_plan, weight_tile_calls
from tilewright.runtime.buffers import Buffer

__all__ = [
    "forward_calls",
    "forward_workspace",
    "input_gradient_calls",
    "input_gradient_workspace",
    "weight_gradient_calls",
    "weight_gradient_workspace",
]

Memory = Sequence[tuple[DType, Shape]]


# --- forward -------------------------------------------------------------------------------------


def forward_workspace(whole: Geometry, dtype: DType) -> Memory:
    """Memory that :func:`forward_calls` wants."""
    return _workspace([whole], dtype)


def forward_calls(
    whole: Geometry, x: Buffer, w: Buffer, y: Buffer, workspace: Sequence[Buffer]
) -> list[KernelCall]:
    """``y = conv(x, w)``: x (N, C, *size), w (O, C/groups, *kernel), y (N, O, *out)."""
    groups = whole.groups
    source, weight, out = grouped(x, groups, 1), grouped(w, groups, 0), grouped(y, groups, 1)
    return _calls([(whole, weight, out)], source, workspace)


# --- input gradient ------------------------------------------------------------------------------


def input_gradient_workspace(whole: Geometry, dtype: DType) -> Memory:
    """Memory that :func:`input_gradient_calls` wants."""
    return _workspace([phase.shape for phase in phases(whole)], dtype)


def input_gradient_calls(
    whole: Geometry, y: Buffer, w: Buffer, x: Buffer, workspace: Sequence[Buffer]
) -> list[KernelCall]:
    """``x = conv_input_gradient(y, w)``; shapes as in :func:`forward_calls`."""
    groups = whole.groups
    source, weight, out = grouped(y, groups, 1), grouped(w, groups, 0), grouped(x, groups, 1)
    parts = [
        (phase.shape, phase.weight(weight), phase.target(out, whole.strides))
        for phase in phases(whole)
    ]
    return _calls(parts, source, workspace)


# --- both ----------------------------------------------------------------------------------------


def _works(part: Geometry) -> bool:
    """Whether there is anything to compute but zeros."""
    return 0 not in (part.batch, part.channels, part.taps, part.outputs, part.positions)


def _tiled(part: Geometry) -> bool:
    """Whether the implicit matrix product is the way: there are enough outputs to fill lanes."""
    return part.outputs >= 8


@dataclass(frozen=True)
class _Halo:
    """Zeros that the input needs around it so that every window lies inside: per axis."""

    low: Triple
    high: Triple

    @property
    def any(self) -> bool:
        return max(*self.low, *self.high) > 0


def _halo(parts: Sequence[Geometry]) -> _Halo:
    low, high = [0, 0, 0], [0, 0, 0]
    for p in parts:
        for axis in range(3):
            reach = (p.out[axis] - 1) * p.strides[axis] + (p.kernel[axis] - 1) * p.dilation[axis]
            low[axis] = max(low[axis], p.low[axis])
            high[axis] = max(high[axis], reach - p.low[axis] + 1 - p.size[axis])
    return _Halo(spatial(low), spatial(high))


def _padded_shape(part: Geometry, halo: _Halo) -> tuple[int, ...]:
    sizes = (a + n + b for a, n, b in zip(halo.low, part.size, halo.high))
    return (part.batch, part.groups, part.channels, *sizes)


def _flat(part: Geometry) -> Geometry:
    """A 1 x 1 convolution without strides or padding, its positions in one row."""
    row = (1, 1, part.positions)
    return replace(part, size=row, out=row)


def _flattens(part: Geometry, x: Buffer, y: Buffer) -> bool:
    return (
        part.taps == 1
        and part.strides == (1, 1, 1)
        and part.low == (0, 0, 0)
        and part.size == part.out
        and all(has_dense_planes(b) for b in (x, y))
    )


def _workspace(parts: Sequence[Geometry], dtype: DType) -> Memory:
    """The padded input, if it has to be padded or converted, and packed weights."""
    wide = accumulator(dtype)
    parts = [p for p in parts if _works(p)]
    if not parts:
        return ()
    if not _tiled(parts[0]):
        return ((wide, (max(prod(rows_shape(p)) for p in parts),)),)
    words = [by_channels(p, dtype)[0] for p in parts]
    kind = by_channels(parts[0], dtype)[1]
    halo = _halo(words)
    memory: list[tuple[DType, Shape]] = []
    if halo.any or dtype is not kind:
        memory.append((kind, _padded_shape(words[0], halo)))
    widths = [(p, width) for p in words for width in (p.out[2], p.positions)]
    memory.append((kind, (max(prod(packed_shape(p, n, dtype)) for p, n in widths),)))
    return memory


def _calls(
    parts: Sequence[tuple[Geometry, Buffer, Buffer]], source: Buffer, workspace: Sequence[Buffer]
) -> list[KernelCall]:
    """Convolutions of one source: (sizes, weight, target) each, in canonical form.

    They have the same channels, so the same way suits them all, but for those without any tap.
    """
    calls: list[KernelCall] = []
    working = [p for p in parts if _works(p[0])]
    for part, weight, target in parts:
        if not _works(part):
            calls += direct_calls(part, source, weight, target) if target.size else []
    if working and _tiled(working[0][0]):
        return calls + _tiled_calls(working, source, workspace)
    for part, weight, target in working:
        seen = workspace[0].view(rows_shape(part))
        calls += sort_columns_calls(part, source, seen)
        calls += row_calls(part, seen, weight, target)
    return calls


def _tiled_calls(
    parts: Sequence[tuple[Geometry, Buffer, Buffer]], source: Buffer, workspace: Sequence[Buffer]
) -> list[KernelCall]:
    calls: list[KernelCall] = []
    words = [by_channels(p, source.dtype)[0] for p, _, _ in parts]
    halo, packed = _halo(words), workspace[-1]
    seen, shift = source, (0, 0, 0)
    if halo.any or source.dtype is not packed.dtype:
        seen, shift = workspace[0].view(_padded_shape(words[0], halo)), halo.low
        calls += pad_calls(source, shift, seen, "channels")
    for part, (_, weight, target) in zip(words, parts):
        x, y, rows = seen, target, (shift[1], part.size[1])
        inside = replace(
            part,
            size=spatial(x.shape[3:]),
            low=spatial([low - more for low, more in zip(part.low, shift)]),
        )
        if _flattens(inside, x, y):
            inside, x, y, rows = _flat(inside), row_of(x), row_of(y), (0, 1)
        calls += pack_weights_calls(inside, y.shape[5], weight, packed)
        by_points = inside.taps == 1 and y.shape[3:5] == (1, 1) and x.shape[3:] == y.shape[3:]
        if by_points and points_suit(inside, y.dtype):
            calls += point_calls(inside, x, packed, y)
        else:
            calls += tile_calls(inside, x, packed, y, rows)
    return calls


# --- weight gradient -----------------------------------------------------------------------------


def weight_gradient_workspace(whole: Geometry, dtype: DType) -> Memory:
    """Memory that :func:`weight_gradient_calls` wants."""
    wide = accumulator(dtype)
    if not _works(whole):
        return ()
    if not _tiled(whole):
        return ((wide, (prod(rows_shape(whole)),)),)
    if narrow_suits(whole):
        groups = groups_of(whole)[0]
        weights = whole.groups * whole.outputs * whole.channels * whole.taps
        return (wide, (prod(rows_shape(whole)),)), (wide, (groups * weights,))
    words, kind = by_images(whole, dtype)
    plan, halo = weight_plan(words, dtype), _halo([whole])
    memory: list[tuple[DType, Shape]] = []
    if halo.any or dtype is not kind:
        memory.append((kind, _padded_shape(words, halo)))
    return (
        *memory,
        (kind, (prod(plan.transposed_shape(words)),)),
        (wide, (prod(plan.sums_shape(words)),)),
    )


def weight_gradient_calls(
    whole: Geometry, x: Buffer, y: Buffer, w: Buffer, workspace: Sequence[Buffer]
) -> list[KernelCall]:
    """``w = conv_weight_gradient(x, y)``; shapes as in :func:`forward_calls`."""
    groups = whole.groups
    source, grad, out = grouped(x, groups, 1), grouped(y, groups, 1), grouped(w, groups, 0)
    if not w.size:
        return []
    if not _works(whole):
        return direct_weight_calls(whole, source, grad, out)
    if not _tiled(whole) or narrow_suits(whole):
        seen = workspace[0].view(rows_shape(whole))
        calls = sort_columns_calls(whole, source, seen)
        if _tiled(whole):
            return calls + narrow_weight_calls(whole, seen, grad, out, workspace[1])
        return calls + row_weight_calls(whole, seen, grad, out)
    calls = []
    part, rows = by_images(whole, x.dtype)[0], (0, whole.size[1])
    halo = _halo([part])
    if len(workspace) == 3:
        padded = workspace[0].view(_padded_shape(part, halo))
        calls, source = pad_calls(source, halo.low, padded, "images"), padded
        low = spatial([low - more for low, more in zip(whole.low, halo.low)])
        part = replace(part, size=spatial(source.shape[3:]), low=low)
        rows = (halo.low[1], whole.size[1])
    if _flattens(part, source, grad):
        part, source, grad, rows = _flat(part), row_of(source), row_of(grad), (0, 1)
    transposed, sums = workspace[-2:]
    return calls + weight_tile_calls(part, source, grad, out, transposed, sums, rows)

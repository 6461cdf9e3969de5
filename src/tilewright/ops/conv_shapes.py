"""The sizes of a convolution, brought to one canonical form.

Every convolution, whatever its rank and groups, is looked at as one with three spatial axes and an
explicit group axis: x ``(N, G, C, D, H, W)``, w ``(G, O, C, KD, KH, KW)``, y
``(N, G, O, OD, OH, OW)``, with C and O counted per group. Missing spatial axes have size one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import gcd, prod

from tilewright.dtypes import DType, bf16, f32, f64, u16, u32
from tilewright.errors import ShapeError
from tilewright.runtime.buffers import Buffer, dense_strides

__all__ = [
    "Geometry",
    "Pairs",
    "Triple",
    "conv_extent",
    "grouped",
    "has_dense_planes",
    "is_dense",
    "output_sizes",
    "planes",
    "row_of",
    "spatial",
]

Triple = tuple[int, int, int]
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Geometry:
    """One convolution in canonical form.

    Output position ``o`` reads input position ``o * stride + k * dilation - low`` on every spatial
    axis; positions outside the input read zero.

    Attributes:
        batch, groups: N and G.
        channels, outputs: C and O per group.
        size, kernel, out: sizes of the three spatial axes of x, w and y.
        strides, dilation: steps per output position and per kernel tap.
        low: how many zeros stand before the input (negative: so many elements are left out).
    """

    batch: int
    groups: int
    channels: int
    outputs: int
    size: Triple
    kernel: Triple
    out: Triple
    strides: Triple
    dilation: Triple
    low: Triple

    @property
    def taps(self) -> int:
        """Kernel positions."""
        return self.kernel[0] * self.kernel[1] * self.kernel[2]

    @property
    def positions(self) -> int:
        """Output positions of one channel of one image."""
        return self.out[0] * self.out[1] * self.out[2]

    @property
    def flops(self) -> int:
        """Multiply-adds times two."""
        return (
            2
            * self.batch
            * self.groups
            * self.outputs
            * self.channels
            * (self.taps * self.positions)
        )


def conv_extent(size: int, pair: tuple[int, int], kernel: int, stride: int, dilation: int) -> int:
    """How often a dilated kernel fits along one padded axis; below one when it does not fit."""
    return (size + pair[0] + pair[1] - dilation * (kernel - 1) - 1) // stride + 1


def output_sizes(
    op: str,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """The spatial sizes of a convolution's result.

    Raises :class:`ShapeError` when an attribute has the wrong number of entries, a stride or a
    dilation is below one, or the kernel is larger than the padded input.
    """
    rank = len(kernel)
    for name, value in (("strides", strides), ("padding", padding), ("dilation", dilation)):
        if len(value) != rank:
            raise ShapeError(f"{op}: {rank} spatial axes want {rank} {name}, got {value}")
    if min(strides, default=1) < 1 or min(dilation, default=1) < 1 or min(kernel, default=1) < 1:
        raise ShapeError(
            f"{op}: kernel sizes, strides and dilations are at least one, got kernel "
            f"{tuple(kernel)}, strides {tuple(strides)}, dilation {tuple(dilation)}"
        )
    out = tuple(
        conv_extent(n, p, k, s, d)
        for n, p, k, s, d in zip(size, padding, kernel, strides, dilation)
    )
    if min(out, default=1) < 1:
        raise ShapeError(
            f"{op}: a kernel of {tuple(kernel)} with dilation {tuple(dilation)} is larger than "
            f"the input {tuple(size)} padded by {tuple(padding)}"
        )
    return out


def spatial(values: Sequence[int], fill: int = 1) -> Triple:
    """One to three numbers as three, the missing ones in front."""
    a, b, c = (fill,) * (3 - len(values)) + tuple(values)
    return a, b, c


def planes(buffer: Buffer) -> Buffer:
    """``buffer`` (N, C, *spatial), one to three spatial axes, as (N, C, D, H, W)."""
    missing = 5 - len(buffer.shape)
    shape = (*buffer.shape[:2], *(1,) * missing, *buffer.shape[2:])
    strides = (*buffer.strides[:2], *(0,) * missing, *buffer.strides[2:])
    return Buffer(buffer.dtype, shape, strides, buffer.pointer, buffer.owner)


def grouped(buffer: Buffer, groups: int, axis: int) -> Buffer:
    """``buffer`` of rank three to five with axis 0 or 1 cut into (groups, rest): rank six."""
    wide = planes(buffer)
    rest, step = wide.shape[axis] // groups, wide.strides[axis]
    shape = (*wide.shape[:axis], groups, rest, *wide.shape[axis + 1 :])
    strides = (*wide.strides[:axis], rest * step, step, *wide.strides[axis + 1 :])
    return Buffer(buffer.dtype, shape, strides, buffer.pointer, buffer.owner)


def has_dense_planes(buffer: Buffer) -> bool:
    """Whether the last three axes can be walked with the last one's stride."""
    longer = [(n, s) for n, s in zip(buffer.shape[-3:], buffer.strides[-3:]) if n > 1]
    return all(a[1] == b[0] * b[1] for a, b in pairwise(longer))


def is_dense(buffer: Buffer) -> bool:
    """Whether the buffer is C-contiguous (axes of size one may have any stride)."""
    wanted = dense_strides(buffer.shape)
    return all(n == 1 or a == b for n, a, b in zip(buffer.shape, buffer.strides, wanted))


def row_of(buffer: Buffer) -> Buffer:
    """The last three axes as one row (1, 1, n); they must be dense."""
    lead, sizes, steps = buffer.shape[:-3], buffer.shape[-3:], buffer.strides[-3:]
    # An axis of size one may have any stride: the row's is that of the last longer one.
    step = next((s for n, s in zip(reversed(sizes), reversed(steps)) if n > 1), 1)
    return buffer.view((*lead, 1, 1, prod(sizes)), (*buffer.strides[:-3], 0, 0, step))


def accumulator(dtype: DType) -> DType:
    """What sums of ``dtype`` are kept in."""
    return f64 if dtype is f64 else f32


def word(dtype: DType, pairs: bool) -> DType:
    """What operands are made of in packed memory: pairs of bf16 are one u32."""
    return u32 if pairs and dtype is bf16 else accumulator(dtype)


def by_channels(part: Geometry, dtype: DType) -> tuple[Geometry, DType]:
    """A convolution over packed words, and their dtype: two bf16 channels are one."""
    kind = word(dtype, part.channels > 1)
    return (replace(part, channels=-(-part.channels // 2)) if kind is u32 else part), kind


def by_images(part: Geometry, dtype: DType) -> tuple[Geometry, DType]:
    """The same for sums over images: two bf16 images are one."""
    kind = word(dtype, part.batch > 1)
    return (replace(part, batch=-(-part.batch // 2)) if kind is u32 else part), kind


def bits_of(buffer: Buffer) -> Buffer:
    """bf16 memory as u16, anything else as it is."""
    if buffer.dtype is not bf16:
        return buffer
    return Buffer(u16, buffer.shape, buffer.strides, buffer.pointer, buffer.owner)


# --- the input gradient: one small convolution per phase of the strides ---------------------------


@dataclass(frozen=True)
class Phase:
    """The convolution that makes every stride-th position of an input gradient.

    Attributes:
        shape: its sizes: y's channels in, x's channels out, strides of one.
        first: the position of x that it makes first, on each axis.
        taps: on each axis the first tap that takes part and the distance to the next.
    """

    shape: Geometry
    first: Triple
    taps: tuple[tuple[int, int], ...]

    def weight(self, w: Buffer) -> Buffer:
        """The taps of w (G, O, C, KD, KH, KW) that take part, reversed: (G, C, O, ...)."""
        sizes = [w.shape[i] for i in (0, 2, 1)]
        steps = [w.strides[i] for i in (0, 2, 1)]
        offset = 0
        for count, (first, step), stride in zip(self.shape.kernel, self.taps, w.strides[3:]):
            offset += (first + step * max(count - 1, 0)) * stride
            sizes.append(count)
            steps.append(-step * stride)
        return w.view(sizes, steps, offset)

    def target(self, x: Buffer, strides: Triple) -> Buffer:
        """Where its result goes in x (B, G, C, D, H, W)."""
        return x.view(
            (*x.shape[:3], *self.shape.out),
            (*x.strides[:3], *(t * s for t, s in zip(x.strides[3:], strides))),
            sum(first * t for first, t in zip(self.first, x.strides[3:])),
        )


def phases(whole: Geometry) -> list[Phase]:
    """The convolutions of y that make up ``conv_input_gradient``.

    Position i of x takes ``y[(i + low - k * dilation) / stride] * w[k]`` for every tap k that
    divides. Positions that are equal modulo the stride share their taps, every stride-th of them
    (with ``common = gcd(stride, dilation)``, every ``stride / common``-th); from one tap to the
    next what is read of y moves by ``dilation / common``.
    """
    axes = zip(whole.size, whole.kernel, whole.strides, whole.dilation, whole.low)
    dilation = tuple(d // gcd(s, d) for s, d in zip(whole.strides, whole.dilation))
    found = []
    for each in product(*(_axis_phases(*sizes) for sizes in axes)):
        first, count, taps, low = zip(*(_axis_part(one, d) for one, d in zip(each, dilation)))
        shape = Geometry(
            batch=whole.batch,
            groups=whole.groups,
            channels=whole.outputs,
            outputs=whole.channels,
            size=whole.out,
            kernel=taps,
            out=count,
            strides=(1, 1, 1),
            dilation=spatial(dilation),
            low=low,
        )
        found.append(Phase(shape, first, tuple((a.tap, a.step) for a in each)))
    return found


@dataclass(frozen=True)
class _AxisPhase:
    first: int  # position
    count: int  # positions
    tap: int  # first tap
    taps: int
    step: int  # between taps
    start: int  # where the first tap of the first position reads y


def _axis_phases(size: int, kernel: int, stride: int, dilation: int, low: int) -> list[_AxisPhase]:
    step = stride // gcd(stride, dilation)
    found = []
    for first in range(min(stride, size)):
        count = -(-(size - first) // stride)
        at = first + low
        divides = (k for k in range(min(step, kernel)) if (at - k * dilation) % stride == 0)
        tap = next(divides, -1)
        if tap < 0:  # no tap reaches these positions: zeros
            found.append(_AxisPhase(first, count, 0, 0, step, 0))
            continue
        taps = -(-(kernel - tap) // step)
        start = (at - tap * dilation) // stride
        found.append(_AxisPhase(first, count, tap, taps, step, start))
    return found


def _axis_part(phase: _AxisPhase, dilation: int) -> tuple[int, int, int, int]:
    """First position, positions, taps, and the zeros before y once the taps are reversed."""
    return phase.first, phase.count, phase.taps, (phase.taps - 1) * dilation - phase.start

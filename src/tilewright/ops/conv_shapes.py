"""The sizes of a convolution, brought to one canonical form.

Every convolution, whatever its rank and groups, is looked at as one with three spatial axes and an
explicit group axis: x ``(N, G, C, D, H, W)``, w ``(G, O, C, KD, KH, KW)``, y
``(N, G, O, OD, OH, OW)``, with C and O counted per group. Missing spatial axes have size one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.errors import ShapeError
from tilewright.runtime.buffers import Buffer

__all__ = [
    "Geometry",
    "Pairs",
    "Triple",
    "conv_extent",
    "grouped",
    "output_sizes",
    "planes",
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

"""Tiles as lists of vectors, and bringing them to a common shape.

The chunks of a tile of shape ``(..., C)`` are listed row by row; a row is ``C`` cut into pieces of
``width`` lanes, the last one narrower. ``width == 1`` is a tile of scalars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from tilewright.dtypes import DType
from tilewright.targets.cpu.lowering.emit import Emitter, reg_type

__all__ = ["Tile", "aligned", "broadcast_rows", "chunk_widths", "elements", "from_elements"]


@lru_cache(maxsize=4096)
def chunk_widths(length: int, width: int) -> tuple[int, ...]:
    """How ``length`` elements are cut: ``(16, 16, 5)`` for 37 by 16."""
    if width == 1:
        return (1,) * length
    full, rest = divmod(length, width)
    return (width,) * full + ((rest,) if rest else ())


@lru_cache(maxsize=4096)
def broadcast_rows(source: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...]:
    """For each row of ``target`` (leading axes, row-major) the row of ``source`` it reads."""
    source = (1,) * (len(target) - len(source)) + source
    index = [0]
    stride = prod(source)
    for have, want in zip(source, target):
        stride //= have or 1
        step = 0 if have == 1 else stride
        index = [i + step * k for i in index for k in range(want)]
    return tuple(index)


@dataclass(frozen=True)
class Tile:
    """A value in registers.

    Attributes:
        dtype: element type.
        shape: tile shape; ``()`` is a scalar.
        width: lanes per chunk of the last axis; 1 for scalars.
        vals: LLVM operands, one per chunk.
    """

    dtype: DType
    shape: tuple[int, ...]
    width: int
    vals: Sequence[str]

    @property
    def last(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def element(self) -> str:
        return reg_type(self.dtype)

    @property
    def widths(self) -> tuple[int, ...]:
        """Chunk widths of one row."""
        return chunk_widths(self.last, self.width)

    def rows(self) -> list[Sequence[str]]:
        """The chunks, row by row."""
        n = len(self.widths)
        if n == 0:
            return [() for _ in range(prod(self.shape[:-1]))]
        return [self.vals[i : i + n] for i in range(0, len(self.vals), n)]


def with_width(em: Emitter, tile: Tile, width: int) -> Tile:
    """The same tile cut for ``width`` lanes."""
    if tile.width == width or tile.last <= 1:
        return tile
    return from_elements(em, tile.dtype, tile.shape, width, elements(em, tile))


def elements(em: Emitter, tile: Tile) -> list[str]:
    """Every element as a scalar, row-major."""
    if tile.width == 1:
        return list(tile.vals)
    out: list[str] = []
    for row in tile.rows():
        for value, width in zip(row, tile.widths):
            out += [em.extract(tile.element, value, width, lane) for lane in range(width)]
    return out


def from_elements(
    em: Emitter, dtype: DType, shape: tuple[int, ...], width: int, scalars: Sequence[str]
) -> Tile:
    """A tile from its elements in row-major order."""
    last = shape[-1] if shape else 1
    if width == 1 or last <= 1:
        return Tile(dtype, shape, 1, scalars)
    vals: list[str] = []
    at = 0
    widths = chunk_widths(last, width)
    for _ in range(prod(shape[:-1])):
        for w in widths:
            vals.append(em.pack(reg_type(dtype), scalars[at : at + w]))
            at += w
    return Tile(dtype, shape, width, vals)


def aligned(em: Emitter, tile: Tile, shape: tuple[int, ...], width: int) -> Sequence[str]:
    """``tile`` broadcast to ``shape`` and cut for ``width`` lanes: one operand per chunk."""
    last = shape[-1] if shape else 1
    width = width if last > 1 else 1
    if tile.shape == shape and (tile.width == width or last <= 1):
        return tile.vals
    widths = chunk_widths(last, width)
    rows = broadcast_rows(tile.shape[:-1], shape[:-1])
    if tile.last == last:
        cut = with_width(em, tile, width)
        n = len(widths)
        return [v for r in rows for v in cut.vals[r * n : r * n + n]]
    splats: dict[int, list[str]] = {}
    out: list[str] = []
    for r in rows:
        if r not in splats:
            splats[r] = [em.splat(tile.element, tile.vals[r], w) for w in widths]
        out += splats[r]
    return out

"""Transposing square blocks of 32-bit elements between registers, one shuffle per output vector
and stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.targets.cpu.lowering.context import Context
from tilewright.targets.cpu.lowering.tile import Tile

__all__ = ["fits", "transposed"]

_GROUP = 4  # 32-bit lanes of a 128-bit group, which most shuffles do not leave


def fits(ctx: Context, source: Tile, width: int) -> bool:
    """Whether ``source`` (rows, columns) is whole blocks of as many rows as a vector has lanes."""
    lanes = ctx.machine.lanes
    return (
        lanes in (4, 8, 16)
        and source.width == width == lanes
        and source.dtype.bits == 32
        and all(n > 0 and n % lanes == 0 for n in source.shape)
    )


def transposed(ctx: Context, source: Tile) -> list[str]:
    """The chunks of the transposed tile."""
    lanes = ctx.machine.lanes
    rows, columns = (n // lanes for n in source.shape)
    out = [""] * (rows * columns * lanes)
    for r in range(rows):
        for c in range(columns):
            vectors = [source.vals[(r * lanes + i) * columns + c] for i in range(lanes)]
            for i, vector in enumerate(_block(ctx, source.element, vectors)):
                out[(c * lanes + i) * rows + r] = vector
    return out


def _block(ctx: Context, element: str, rows: Sequence[str]) -> list[str]:
    """A square block: four rows at a time inside 128-bit groups, then whole groups."""
    lanes = len(rows)

    def shuffle(a: str, b: str, pick: Callable[[int], int]) -> str:
        return ctx.em.shuffle(element, lanes, a, b, [pick(i) for i in range(lanes)])

    def halves(a: str, b: str, size: int, high: bool) -> str:
        """The low or high half of each group of a and b, interleaved by ``size`` elements."""

        def pick(i: int) -> int:
            group, at = divmod(i, _GROUP)
            piece, within = divmod(at, size)
            which, number = piece % 2, piece // 2
            lane = group * _GROUP + (_GROUP // 2 if high else 0) + number * size + within
            return which * lanes + lane

        return shuffle(a, b, pick)

    groups: list[list[str]] = []  # columns c, c + 4, ... of four rows, for c in 0 to 3
    for at in range(0, lanes, _GROUP):
        low, high = (halves(rows[at], rows[at + 1], 1, h) for h in (False, True))
        low2, high2 = (halves(rows[at + 2], rows[at + 3], 1, h) for h in (False, True))
        groups.append(
            [halves(x, y, 2, h) for x, y in ((low, low2), (high, high2)) for h in (False, True)]
        )
    out = [""] * lanes
    for column in range(_GROUP):
        for j, vector in enumerate(_across(shuffle, [g[column] for g in groups])):
            out[column + _GROUP * j] = vector
    return out


def _across(
    shuffle: Callable[[str, str, Callable[[int], int]], str], parts: Sequence[str]
) -> list[str]:
    """Group j of every part, for each j."""
    if len(parts) == 1:
        return list(parts)
    lanes = len(parts) * _GROUP

    def alternate(a: str, b: str, odd: int) -> str:
        """Every second group of a, then of b."""

        def pick(i: int) -> int:
            group, at = divmod(i, _GROUP)
            which, number = divmod(group, len(parts) // 2)
            return which * lanes + (2 * number + odd) * _GROUP + at

        return shuffle(a, b, pick)

    if len(parts) == 2:
        return [alternate(parts[0], parts[1], odd) for odd in (0, 1)]
    out = [""] * 4
    for odd in (0, 1):
        first, second = (alternate(parts[i], parts[i + 1], odd) for i in (0, 2))
        out[odd], out[odd + 2] = (alternate(first, second, o) for o in (0, 1))
    return out

"""What lowering one version of a kernel's body carries along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tilewright.dtypes import DType
from tilewright.errors import CompileError
from tilewright.lang import ir
from tilewright.targets.cpu.lowering.emit import Emitter
from tilewright.targets.cpu.lowering.tile import Tile, aligned
from tilewright.targets.cpu.machine import Machine

if TYPE_CHECKING:
    from tilewright.targets.cpu.lowering.bounds import Plan

__all__ = ["ArrayRef", "Context", "Handler", "elementwise", "refuse"]


@dataclass(frozen=True)
class ArrayRef:
    """An array in memory: operands of its pointer, sizes and strides (elements)."""

    dtype: DType
    pointer: str
    shape: tuple[str, ...]
    strides: tuple[str, ...]
    scratch: bool = False


@dataclass
class Context:
    """State of lowering one version of the body.

    Attributes:
        em: where the text goes.
        machine: what it is compiled for.
        plan: which accesses need checks, decided once for all versions.
        checked: whether the checks that the caller could hoist are made here.
        scalars: tiles kept as scalars (:mod:`.layout`).
        deferred: loads that their only user reads straight from memory.
        arrays, tiles: what the IR's values became.
        scratch_bytes, dump: stack memory handed out so far; where unwanted stores go.
        block_width: lanes that each scalar of a ``scan_with`` body stands for.
    """

    em: Emitter
    machine: Machine
    plan: Plan
    checked: bool
    scalars: frozenset[ir.Value]
    deferred: frozenset[ir.Value]
    program: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()
    arrays: dict[ir.Value, ArrayRef] = field(default_factory=dict)
    tiles: dict[ir.Value, Tile] = field(default_factory=dict)
    scratch_bytes: int = 0
    dump: str | None = None
    block_width: int = 1

    def width(self, value: ir.Value) -> int:
        """Lanes per chunk of ``value``."""
        shape = value.shape
        if not shape or shape[-1] <= 1 or value in self.scalars:
            return 1
        return self.machine.lanes

    def tile(self, value: ir.Value) -> Tile:
        return self.tiles[value]

    def scalar(self, value: ir.Value) -> str:
        """The operand of a tile with one element."""
        return self.tiles[value].vals[0]

    def set(self, value: ir.Value, vals: Sequence[str]) -> None:
        """Bind ``value`` to chunks cut for its own width."""
        self.tiles[value] = Tile(value.dtype, value.shape, self.width(value), vals)

    def lanes(self, values: Sequence[ir.Value], width: int) -> list[str]:
        """Scalars of a ``scan_with`` body, each in ``width`` lanes."""
        tiles = [self.tiles[v] for v in values]
        return [
            t.vals[0] if t.width == width else self.em.splat(t.element, t.vals[0], width)
            for t in tiles
        ]

    def operand(self, value: ir.Value, like: ir.Value) -> Sequence[str]:
        """``value`` broadcast and cut like ``like``."""
        return aligned(self.em, self.tiles[value], like.shape, self.width(like))


Handler = Callable[[Context, ir.Op], None]


def elementwise(ctx: Context, op: ir.Op, one: Callable[[Sequence[str], int], str]) -> None:
    """Lower ``op`` chunk by chunk: ``one(operands, width)`` returns the result's operand."""
    result = op.result
    if ctx.block_width > 1 and result.shape == ():
        w = ctx.block_width
        ctx.tiles[result] = Tile(result.dtype, (), w, [one(ctx.lanes(op.operands, w), w)])
        return
    width = ctx.width(result)
    from_ = [ctx.operand(v, result) for v in op.operands]
    widths = Tile(result.dtype, result.shape, width, ()).widths
    n = len(widths)
    vals = [one(chunk, widths[i % n]) for i, chunk in enumerate(zip(*from_))]
    ctx.set(result, vals)


def refuse(op: ir.Op, problem: str) -> CompileError:
    """A :class:`CompileError` that shows the user's line."""
    types = ", ".join(str(v.type) for v in op.operands)
    where = f"\n{op.loc.caret()}" if op.loc else ""
    return CompileError(f"{op.name}({types}): {problem}{where}")

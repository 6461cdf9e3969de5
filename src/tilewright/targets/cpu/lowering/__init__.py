"""Tile IR to LLVM assembly text; :mod:`tilewright.targets.cpu.lower` is the entrance.

How a kernel's values live in a CPU:

* A tile is a list of vectors (:class:`.tile.Tile`): its last axis is cut into chunks of
  ``machine.lanes`` elements whatever the dtype, the last chunk narrower; everything is unrolled.
* A tile whose elements are each broadcast (``a[i : i + 8, k][:, None]``) is kept as scalars
  instead, so that a scalar load and its broadcast become one memory operand (:mod:`.layout`).
* Every access is total. Checks that depend only on program ids, sizes and loop bounds are made
  once per program instance, which then runs code without them (:mod:`.bounds`); the rest are masks
  and selects, never branches around a load (:mod:`.access`).
* f16 and bf16 travel as their bit patterns (``i16``) and are computed in f32 (:mod:`.arith`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilewright.targets.cpu.lowering.context import Handler

__all__ = ["handler_table"]


@lru_cache(maxsize=1)
def handler_table() -> dict[str, Handler]:
    """Which function lowers which op."""
    from tilewright.targets.cpu.lowering import (
        arith,
        control,
        dot,
        elementary,
        memory,
        reduce,
        shape,
    )

    table: dict[str, Handler] = {}
    for module in (shape, memory, arith, elementary, dot, reduce, control):
        table.update(module.HANDLERS)
    return table

"""Elementary functions (written below)."""

from __future__ import annotations

from tilewright.dtypes import DType
from tilewright.targets.cpu.lowering.context import Context


def call(ctx: Context, name: str, dtype: DType, width: int, *args: str) -> str:
    raise NotImplementedError(name)

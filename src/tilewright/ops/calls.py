"""A bound kernel call: what an op hands to the runtime once shapes are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["KernelCall"]


@dataclass(frozen=True)
class KernelCall:
    """Launch ``kernel`` over ``grid`` on bound buffers.

    Attributes:
        kernel: a ``tilewright.runtime.launch.Kernel``.
        grid: up to three sizes; a zero means that nothing runs.
        args: buffers and scalars, in the order of the kernel's runtime parameters.
        consts: the kernel's ``Const`` and ``Inline`` parameters by name.
        smallest: programs worth giving to a thread at once.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    consts: Mapping[str, Any] = field(default_factory=dict)
    smallest: int = 1

"""Elementwise work that a heavy op does on its results before it stores them.

A product's tile is in registers when its sums are complete; a bias, an activation, a residual cost
next to nothing there and a walk over memory anywhere else. An :class:`Epilogue` says what is done:
steps, each an elementwise op of the table, on the value that the op would have stored and on
*extras*, further inputs of the node (after its own). Every step rounds to its own dtype, so the
bits are those of separate kernels.

How an op takes part: its entry has ``absorb``, which says how an operand of such work lies beside
the result (a *kind*, of the op's own choosing) and as which node it is read. Then
``compiler/passes/epilogue.py`` hands the op nodes that have the attribute ``epilogue``, and extras
behind its inputs, in the order of ``epilogue.kinds``. Its ``calls`` asks for the steps as an inline
function of its kernel::

    function = epilogue.function("acc, i, j, extras", {"row": "extras[{0}][j : j + 32]", ...})
    y[i : i + M, j : j + N] = epilogue(acc, i, j, extras)        # in the kernel

where a window of each kind is kernel source that reads extra number ``{0}`` as a tile that
broadcasts with ``acc``, and its ``reference`` passes the result to :meth:`Epilogue.evaluate`.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.dtypes import DType, bf16, from_float32, to_float32
from tilewright.graph import Node
from tilewright.ops import table
from tilewright.ops.source import element_text, inline_function, literal_text

__all__ = ["Epilogue", "Step"]


@dataclass(frozen=True)
class Step:
    """One elementwise op.

    Attributes:
        op: its name; ``const`` is a number (attrs: ``value``).
        operands: numbers of values: 0 is what the host op makes, ``i`` the result of step ``i``
            (from 1 on), ``-e`` extra number ``e - 1``.
        dtypes: of the operands.
        dtype: of the result.
        attrs: of the op.
    """

    op: str
    operands: tuple[int, ...]
    dtypes: tuple[DType, ...]
    dtype: DType
    attrs: Mapping[str, Any]


@dataclass(frozen=True)
class Epilogue:
    """Steps on the value that an op would have stored.

    Attributes:
        dtype: of that value.
        steps: in order; the last one's result is stored.
        kinds: how each extra lies beside the result.
    """

    dtype: DType
    steps: tuple[Step, ...]
    kinds: tuple[str, ...]

    def function(self, parameters: str, windows: Mapping[str, str]) -> Callable[..., Any]:
        """The steps as an inline function of the kernel language.

        Args:
            parameters: of the function; the first is the tile of sums.
            windows: for each kind the source of a tile of extra number ``{0}``.
        """
        sums = parameters.split(",")[0].strip()
        lines = [f"v0 = {sums}.to({self.dtype})"]
        lines += [f"x{e} = {windows[kind].format(e)}" for e, kind in enumerate(self.kinds)]
        for i, step in enumerate(self.steps, 1):
            names = [f"v{o}" if o >= 0 else f"x{-o - 1}" for o in step.operands]
            lines.append(f"v{i} = {_text(step, names)}")
        lines.append(f"return v{len(self.steps)}")
        return inline_function("epilogue", parameters, tuple(lines))

    def evaluate(self, value: np.ndarray, *extras: np.ndarray) -> np.ndarray:
        """The steps by the ops' references; bf16 arrays are f32 that hold what bf16 can."""
        values = [_rounded(value, self.dtype)]
        for step in self.steps:
            operands = [values[o] if o >= 0 else extras[-o - 1] for o in step.operands]
            if step.op == "const":
                result = np.asarray(step.attrs["value"])
            else:
                with np.errstate(all="ignore"):
                    result = table.get(step.op).reference(*operands, **step.attrs)
            values.append(_rounded(result, step.dtype))
        return values[-1]


def _text(step: Step, names: Sequence[str]) -> str:
    if step.op == "const":
        return literal_text(step.attrs["value"], step.dtype)
    if step.op == "copy":
        return names[0]
    operands = tuple(Node("input", (), (), dtype) for dtype in step.dtypes)
    return element_text(Node(step.op, operands, (), step.dtype, step.attrs), names)


def _rounded(x: np.ndarray, dtype: DType) -> np.ndarray:
    if dtype is bf16:
        return to_float32(from_float32(np.asarray(x, np.float32)))
    return np.asarray(x).astype(dtype.storage)

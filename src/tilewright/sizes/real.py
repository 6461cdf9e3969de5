"""``Real``: what becomes of a size in arithmetic with fractions, ``1 / n`` or ``n ** -0.5``."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from tilewright.sizes.size import Size

__all__ = ["Real"]


class Real:
    """A float computed from sizes, anew wherever they have other values.

    It goes into tensors as a number does. Whoever asks for the float, or compares it, gets the one
    of the trace, and its sizes have to be those (see :mod:`tilewright.sizes`).
    """

    __slots__ = ("args", "fn")

    def __init__(self, fn: Callable[..., Any], *args: Any) -> None:
        self.fn = fn
        self.args = args

    def value(self, number: Callable[[Size], int]) -> float:
        """The float, where sizes have the values that ``number`` says."""
        given = []
        for x in self.args:
            if isinstance(x, Real):
                x = x.value(number)
            given.append(number(x) if isinstance(x, Size) else x)
        return float(self.fn(*given))

    def sizes(self) -> list[Size]:
        """What it is computed from."""
        found: list[Size] = []
        for x in self.args:
            found += x.sizes() if isinstance(x, Real) else [x] if isinstance(x, Size) else []
        return found

    def __float__(self) -> float:
        return self.value(int)

    def __add__(self, other: Any) -> Any:
        return combined(operator.add, self, other)

    def __radd__(self, other: Any) -> Any:
        return combined(operator.add, other, self)

    def __sub__(self, other: Any) -> Any:
        return combined(operator.sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return combined(operator.sub, other, self)

    def __mul__(self, other: Any) -> Any:
        return combined(operator.mul, self, other)

    def __rmul__(self, other: Any) -> Any:
        return combined(operator.mul, other, self)

    def __truediv__(self, other: Any) -> Any:
        return combined(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return combined(operator.truediv, other, self)

    def __pow__(self, other: Any) -> Any:
        return combined(operator.pow, self, other)

    def __rpow__(self, other: Any) -> Any:
        return combined(operator.pow, other, self)

    def __neg__(self) -> Real:
        return Real(operator.neg, self)

    def __eq__(self, other: object) -> bool:
        return bool(float(self) == _float(other))

    def __lt__(self, other: Any) -> bool:
        return bool(float(self) < _float(other))

    def __le__(self, other: Any) -> bool:
        return bool(float(self) <= _float(other))

    def __gt__(self, other: Any) -> bool:
        return bool(float(self) > _float(other))

    def __ge__(self, other: Any) -> bool:
        return bool(float(self) >= _float(other))

    def __hash__(self) -> int:
        return hash(float(self))

    def __repr__(self) -> str:
        return f"{self.fn.__name__}({', '.join(map(str, self.args))})"


def combined(fn: Callable[..., Any], x: Any, y: Any) -> Any:
    """``fn(x, y)``, one of which is a size or made of one; NotImplemented for no numbers."""
    for v in (x, y):
        if not isinstance(v, (int, float, np.integer, np.floating, Size, Real)):
            return NotImplemented
    return Real(fn, x, y)


def _float(x: Any) -> Any:
    return float(x) if isinstance(x, (Size, Real)) else x

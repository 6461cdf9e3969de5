"""Symbolic sizes: ``Dim("tokens", 512)`` and affine expressions of dims.

A shape is a tuple of sizes; a size is an ``int`` or a :class:`Size`. One compiled program serves
every value of its symbols up to their bounds; the bounds size the buffers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tilewright.errors import ShapeError

__all__ = ["Dim", "Shape", "Size", "SizeLike", "evaluate", "shape_of", "upper_bound"]


@dataclass(frozen=True)
class Size:
    """``constant + sum(factor * dim)``. Hashable; equal when the expressions are equal."""

    constant: int
    terms: tuple[tuple[str, int, int], ...]  # (dim's name, its upper bound, factor), by name

    def __add__(self, other: SizeLike) -> SizeLike:
        other = _lift(other)
        factors = {name: [bound, factor] for name, bound, factor in self.terms}
        for name, bound, factor in other.terms:
            factors.setdefault(name, [bound, 0])[1] += factor
        terms = tuple((n, b, f) for n, (b, f) in sorted(factors.items()) if f)
        return _simplify(Size(self.constant + other.constant, terms))

    __radd__ = __add__

    def __mul__(self, factor: int) -> SizeLike:
        terms = tuple((n, b, f * factor) for n, b, f in self.terms if f * factor)
        return _simplify(Size(self.constant * factor, terms))

    __rmul__ = __mul__

    def __sub__(self, other: SizeLike) -> SizeLike:
        return self + _lift(other) * -1

    def __rsub__(self, other: SizeLike) -> SizeLike:
        return self * -1 + other

    def evaluate(self, values: Mapping[str, int]) -> int:
        """The size when each dim has its value; :class:`ShapeError` if one is missing or large."""
        total = self.constant
        for name, bound, factor in self.terms:
            if name not in values:
                raise ShapeError(f"no value for dim {name!r}; have {sorted(values)}")
            if not 0 <= values[name] <= bound:
                raise ShapeError(f"dim {name!r} is {values[name]}, its range is 0..{bound}")
            total += factor * values[name]
        return total

    @property
    def upper(self) -> int:
        """The largest value, with every dim between 0 and its bound."""
        return self.constant + sum(max(b * f, 0) for _, b, f in self.terms)

    def __str__(self) -> str:
        parts = [n if f == 1 else f"{f}*{n}" for n, _, f in self.terms]
        if self.constant or not parts:
            parts.append(str(self.constant))
        return " + ".join(parts)


SizeLike = int | Size
Shape = tuple[SizeLike, ...]


def Dim(name: str, upper: int) -> Size:
    """A symbol with values in ``0..upper``."""
    return Size(0, ((name, upper, 1),))


def _lift(value: SizeLike) -> Size:
    return value if isinstance(value, Size) else Size(int(value), ())


def _simplify(size: Size) -> SizeLike:
    return size if size.terms else size.constant


def evaluate(shape: Iterable[SizeLike], values: Mapping[str, int]) -> tuple[int, ...]:
    """The concrete shape under ``values``."""
    return tuple(s.evaluate(values) if isinstance(s, Size) else s for s in shape)


def upper_bound(shape: Iterable[SizeLike]) -> tuple[int, ...]:
    """The largest shape: what a buffer must hold."""
    return tuple(s.upper if isinstance(s, Size) else s for s in shape)


def shape_of(shape: Iterable[SizeLike]) -> str:
    """``(tokens, 2048)``, for messages."""
    return "(" + ", ".join(str(s) for s in shape) + ")"

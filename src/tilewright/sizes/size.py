"""``Size``: whole-number expressions, and arithmetic on them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import numpy as np

if TYPE_CHECKING:
    from tilewright.sizes.scope import Scope

__all__ = [
    "OPERATIONS",
    "Monomial",
    "Shape",
    "Size",
    "SizeLike",
    "Terms",
    "applied",
    "evaluate",
    "has_value",
    "hint",
    "hints",
    "is_fixed",
    "key_of",
    "length_of",
    "maximum",
    "may_be_other",
    "minimum",
    "roughly",
    "same",
    "shape_of",
    "slice_indices",
    "upper_bound",
    "whole",
]

Monomial = tuple[int, ...]  # numbers of atoms, ascending; a square has its atom twice
Terms = tuple[tuple[Monomial, int], ...]  # with factors other than 0, by monomial

OPERATIONS: Final[dict[str, Callable[[int, int], int]]] = {
    "//": operator.floordiv,
    "%": operator.mod,
    "min": min,
    "max": max,
}


class Size:
    """A polynomial over the atoms of its scope. Immutable; made by arithmetic on symbols."""

    __slots__ = ("hint", "scope", "terms")

    scope: Scope
    terms: Terms
    hint: int

    # --- arithmetic ------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Any:
        y = _operand(other)
        if y is None:
            return _as_number(self, other, operator.add)
        return self.scope.sum(self, y, 1)

    def __radd__(self, other: Any) -> Any:
        return self + other

    def __sub__(self, other: Any) -> Any:
        y = _operand(other)
        if y is None:
            return _as_number(self, other, operator.sub)
        return self.scope.sum(self, y, -1)

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __neg__(self) -> Any:
        return self.scope.product(self, -1)

    def __pos__(self) -> Size:
        return self

    def __mul__(self, other: Any) -> Any:
        y = _operand(other)
        if y is None:
            return _as_number(self, other, operator.mul)
        return self.scope.product(self, y)

    def __rmul__(self, other: Any) -> Any:
        return self * other

    def __floordiv__(self, other: Any) -> Any:
        y = _operand(other)
        return _as_number(self, other, operator.floordiv) if y is None else _quotient(self, y)

    def __rfloordiv__(self, other: Any) -> Any:
        y = _operand(other)
        return NotImplemented if y is None else _quotient(y, self)

    def __mod__(self, other: Any) -> Any:
        y = _operand(other)
        return _as_number(self, other, operator.mod) if y is None else _remainder(self, y)

    def __rmod__(self, other: Any) -> Any:
        y = _operand(other)
        return NotImplemented if y is None else _remainder(y, self)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __truediv__(self, other: Any) -> Any:
        return _fraction(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return _fraction(operator.truediv, other, self)

    def __pow__(self, other: Any) -> Any:
        if other.__class__ is int and 0 <= other <= 4:
            result: Any = 1
            for _ in range(other):
                result = result * self
            return result
        return _fraction(operator.pow, self, other)

    def __rpow__(self, other: Any) -> Any:
        return _fraction(operator.pow, other, self)

    def __abs__(self) -> Any:
        return self if self >= 0 else -self

    # --- questions -------------------------------------------------------------------------------

    def __eq__(self, other: object) -> Any:
        if self is other:
            return True
        y = _operand(other)
        if y is None:
            return int(self) == other if isinstance(other, (float, np.generic)) else NotImplemented
        if not self.scope.open or (y.__class__ is Size and y.scope is not self.scope):
            return False  # of another trace: in a cache's key, say
        return self.scope.is_zero(self.scope.sum(self, y, -1))

    def __ne__(self, other: object) -> Any:
        equal = self == other
        return NotImplemented if equal is NotImplemented else not equal

    def __ge__(self, other: Any) -> Any:
        return self._is_positive(other, 1, 0)

    def __gt__(self, other: Any) -> Any:
        return self._is_positive(other, 1, -1)

    def __le__(self, other: Any) -> Any:
        return self._is_positive(other, -1, 0)

    def __lt__(self, other: Any) -> Any:
        return self._is_positive(other, -1, -1)

    def _is_positive(self, other: Any, sign: int, more: int) -> Any:
        """Whether ``sign * (self - other) + more >= 0``."""
        y = _operand(other)
        if y is None:
            if not isinstance(other, (float, np.floating)):
                return NotImplemented
            y = _bound(other, sign)
            if y is None:
                n = int(self)
                return sign * (n - float(other)) > 0 or (more == 0 and n == other)
        difference = self.scope.sum(self, y, -1)
        return self.scope.is_natural(sign * difference + more)

    def __bool__(self) -> bool:
        return not self.scope.is_zero(self)

    def __hash__(self) -> int:
        return hash(self.terms) if self.scope.free else hash(self.scope.number_of(self))

    def __index__(self) -> int:
        return self.scope.number_of(self)

    __int__ = __index__

    def __float__(self) -> float:
        return float(self.scope.number_of(self))

    def bit_length(self) -> int:
        """Of the number that it is."""
        return int(self).bit_length()

    def __str__(self) -> str:
        return self.scope.text(self.terms)

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec else str(self)

    # --- values ----------------------------------------------------------------------------------

    def evaluate(self, values: Mapping[str, int]) -> int:
        """The size when each symbol has its value; :class:`ShapeError` if one does not fit."""
        return self.scope.evaluate(self, values)

    @property
    def upper(self) -> int:
        """The largest value within the symbols' bounds."""
        return int(self.scope.span(self.terms)[1])


SizeLike = int | Size
Shape = tuple[SizeLike, ...]


# --- what shapes are made of ---------------------------------------------------------------------


def whole(n: Any) -> Any:
    """``n`` as an int, or the size that it is."""
    return n if n.__class__ is int or n.__class__ is Size else operator.index(n)


def has_value(n: Any) -> TypeGuard[int]:
    """Whether ``n`` is a whole number, or stands for one in a trace."""
    return isinstance(n, int) or (n.__class__ is Size and not n.scope.free)


def hint(n: Any) -> Any:
    """The value of a size when it was traced; no guard: for choices that decide no result."""
    return n.hint if n.__class__ is Size else n


def hints(sizes: Iterable[Any]) -> tuple[Any, ...]:
    """:func:`hint` of each."""
    return tuple([n.hint if n.__class__ is Size else n for n in sizes])


def minimum(x: Any, y: Any) -> Any:
    """The smaller of two sizes, without a guard."""
    return _extreme("min", x, y)


def maximum(x: Any, y: Any) -> Any:
    """The larger of two sizes, without a guard."""
    return _extreme("max", x, y)


def length_of(first: Any, stop: Any, step: Any) -> Any:
    """``len(range(first, stop, step))``."""
    count = (stop - first + step - 1) // step if step > 0 else (first - stop - step - 1) // -step
    return count if count > 0 else 0


def slice_indices(key: slice, n: Any) -> tuple[Any, Any, Any]:
    """``key.indices(n)``."""
    step = 1 if key.step is None else key.step
    if is_fixed((n, *(v for v in (key.start, key.stop, step) if v is not None))):
        return key.indices(n)
    if step == 0:
        raise ValueError("slice step cannot be zero")
    low, high = (0, n) if step > 0 else (-1, n - 1)

    def end(v: Any, default: Any) -> Any:
        if v is None:
            return default
        if v < 0:
            return v + n if v + n >= low else low
        return v if v <= high else high

    first = end(key.start, low if step > 0 else high)
    return first, end(key.stop, high if step > 0 else low), step


def applied(fn: Callable[..., int], *args: SizeLike, low: float = -inf, high: float = inf) -> Any:
    """``fn`` of sizes, in ``low..high``: computed anew whenever they have other values."""
    for x in args:
        if x.__class__ is Size:
            return x.scope.operation(fn, args, low, high)
    return fn(*args)


def roughly(x: Any, limit: int, slack: int = 8) -> bool:
    """Whether ``x <= limit``, for choices between what is right either way and fast one way.

    The guard leaves room: no more than ``slack`` times beyond the limit on the other side.
    """
    if x.__class__ is not Size:
        return bool(x <= limit)
    if x.hint <= limit:
        return bool(x <= limit * slack)
    return bool(x <= limit // slack)  # no, and not near it either


def same(a: Shape, b: Shape) -> bool:
    """Whether two shapes are equal for all values of their symbols, without a guard: for what may
    be left out where nothing changes."""
    if a is b:
        return True
    if len(a) != len(b):
        return False
    for n in a + b:
        if n.__class__ is Size:
            return key_of(a) == key_of(b)
    return a == b


def may_be_other(n: Any, than: int = 0) -> bool:
    """Whether ``n`` is another number or might be one, without a guard."""
    return bool(n.__class__ is Size or n != than)


def key_of(shape: Shape) -> tuple[Any, ...]:
    """A key for a dictionary, equal for equal expressions; a size as such has to be its number."""
    return tuple([n.terms if n.__class__ is Size else n for n in shape])


def is_fixed(*shapes: Shape) -> bool:
    """Whether all sizes are plain numbers."""
    for shape in shapes:
        for n in shape:
            if n.__class__ is not int:
                return False
    return True


def _extreme(op: str, x: SizeLike, y: SizeLike) -> SizeLike:
    size = x if x.__class__ is Size else y
    if size.__class__ is not Size:
        return OPERATIONS[op](x, y)  # type: ignore[arg-type]
    scope = size.scope
    low, high = scope.span(scope.terms_of(scope.sum(x, y, -1)))
    if low >= 0 or high <= 0:
        return x if (low >= 0) == (op == "max") else y
    (a, b), (c, d) = (scope.span(scope.terms_of(v)) for v in (x, y))
    pick = OPERATIONS[op]
    return scope.operation(op, (x, y), pick(a, c), pick(b, d))  # type: ignore[arg-type]


def evaluate(shape: Iterable[SizeLike], values: Mapping[str, int]) -> tuple[int, ...]:
    """The concrete shape under ``values``."""
    return tuple(s.evaluate(values) if isinstance(s, Size) else s for s in shape)


def upper_bound(shape: Iterable[SizeLike]) -> tuple[int, ...]:
    """The largest shape: what a buffer must hold."""
    return tuple(s.upper if isinstance(s, Size) else s for s in shape)


def shape_of(shape: Iterable[SizeLike]) -> str:
    """``(tokens, 2048)``, for messages."""
    return "(" + ", ".join(str(s) for s in shape) + ")"


# --- arithmetic ----------------------------------------------------------------------------------


def _operand(x: Any) -> Any:
    """``x`` if it is a size or a whole number, else None."""
    if x.__class__ is int or x.__class__ is Size:
        return x
    return int(x) if isinstance(x, (int, np.integer)) else None


def _as_number(x: Size, other: Any, operation: Callable[[Any, Any], Any]) -> Any:
    """``operation`` of a size and what is no whole number."""
    if isinstance(other, (float, np.floating)):
        if operation in (operator.floordiv, operator.mod):
            return operation(int(x), other)
        return _fraction(operation, x, other)
    return NotImplemented


def _fraction(operation: Callable[[Any, Any], Any], x: Any, y: Any) -> Any:
    """``operation``, whose result is a float."""
    from tilewright.sizes.real import combined

    size = x if isinstance(x, Size) else y
    if size.scope.free:
        raise TypeError(f"the size {size} has no value yet")
    return combined(operation, x, y)


def _bound(other: Any, sign: int) -> int | None:
    """The whole number that comparing with ``other`` amounts to, if there is one."""
    value = float(other)
    return int(value) if value.is_integer() else None


def _quotient(x: SizeLike, y: SizeLike) -> SizeLike:
    """``x // y``: what divides evenly leaves the quotient, the rest is an atom."""
    scope: Scope = x.scope if isinstance(x, Size) else y.scope  # type: ignore[union-attr]
    if y == 0:
        raise ZeroDivisionError("a size is divided by 0")
    even, rest = _divided(scope, x, y)
    if rest.__class__ is not Size and y.__class__ is not Size:
        return even + rest // y
    if rest.__class__ is not Size and rest == 0:
        return even
    low, high = -inf, inf
    if y > 0:
        (a, b), (c, d) = (scope.span(scope.terms_of(v)) for v in (rest, y))
        if a >= 0 and b < c:
            return even
        low = _floor(a, c if a < 0 else d)
        high = _floor(b, d if b < 0 else c)
    return even + scope.operation("//", (rest, y), low, high)


def _floor(a: float, b: float) -> float:
    """``a // b`` of ends of ranges, ``b`` positive."""
    if abs(a) == inf:
        return a
    return (-1 if a < 0 else 0) if b == inf else a // b


def _remainder(x: SizeLike, y: SizeLike) -> SizeLike:
    """``x % y``."""
    scope: Scope = x.scope if isinstance(x, Size) else y.scope  # type: ignore[union-attr]
    if y == 0:
        raise ZeroDivisionError("a size is divided by 0")
    _, rest = _divided(scope, x, y)
    if rest.__class__ is not Size and rest == 0:
        return 0
    if rest.__class__ is not Size and y.__class__ is not Size:
        return rest % y
    if y > 0:
        a, b = scope.span(scope.terms_of(rest))
        c, d = scope.span(scope.terms_of(y))
        if a >= 0 and b < c:
            return rest
        return scope.operation("%", (rest, y), 0, min(d - 1, b) if a >= 0 else d - 1)
    return scope.operation("%", (rest, y), -inf, 0)


def _divided(scope: Scope, x: SizeLike, y: SizeLike) -> tuple[SizeLike, SizeLike]:
    """``q, r`` with ``x = q * y + r``, ``r`` without what divides evenly."""
    divisor = scope.terms_of(y)
    if len(divisor) == 1:
        ((lead, factor),) = divisor
        even: dict[Monomial, int] = {}
        rest: dict[Monomial, int] = {}
        for monomial, f in scope.terms_of(x):
            part = _divided_monomial(monomial, lead)
            times = 0 if part is None else abs(f) // abs(factor)
            if (f < 0) != (factor < 0):
                times = -times
            if part is not None:
                even[part] = times
            rest[monomial] = f - times * factor
        return scope.made(even), scope.made(rest)
    lead, factor = max(divisor, key=_degree)  # of use when it comes out even
    quotient: Any = 0
    left: Any = x
    while left.__class__ is Size or left != 0:
        monomial, f = max(scope.terms_of(left), key=_degree)
        part = _divided_monomial(monomial, lead)
        if part is None or f % factor:
            return 0, x
        one = scope.made({part: f // factor})
        quotient, left = quotient + one, left - one * y
    return quotient, 0


def _degree(term: tuple[Monomial, int]) -> tuple[int, Monomial]:
    """An order of monomials that multiplication keeps."""
    return len(term[0]), term[0]


def _divided_monomial(monomial: Monomial, by: Monomial) -> Monomial | None:
    """``monomial`` without the atoms of ``by``; None if it lacks one."""
    left = list(monomial)
    for atom in by:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)

"""``Scope``: the symbols of a trace, and what has been assumed about them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final

from tilewright.errors import ShapeError, TraceError
from tilewright.sizes.size import OPERATIONS, Monomial, Size, SizeLike, Terms, hints

__all__ = ["Dim", "Scope"]

Range = tuple[float, float]


@dataclass(eq=False)
class Atom:
    """A symbol (``op`` is empty), or an operation on sizes that no polynomial expresses."""

    name: str
    low: float
    high: float
    hint: int = 0
    op: str | Callable[..., int] = ""
    args: tuple[SizeLike, ...] = ()

    def evaluate(self, args: Iterable[int]) -> int:
        """The operation's result."""
        fn = OPERATIONS[self.op] if isinstance(self.op, str) else self.op
        return fn(*args)


class Scope:
    """The symbols of one trace, what is made of them, and what has been assumed about them.

    Attributes:
        open: whether the trace is still going on; afterwards its sizes answer nothing.
        free: the scope of :func:`Dim`, without hints.
        guards: (expression, kind), each true at the hints: ``"=="`` is zero, ``"!="`` is not,
            ``">="`` is not negative.
        symbols: names, in the order of making.
    """

    def __init__(self, free: bool = False) -> None:
        self.free = free
        self.open = True
        self.guards: dict[tuple[Terms, str], None] = {}
        self.symbols: list[str] = []
        self._atoms: list[Atom] = []
        self._by_name: dict[Any, int] = {}
        self._interned: dict[Terms, Size] = {}
        self._ranges: dict[Terms, Range] = {}
        self._pinned: dict[int, int] = {}  # atoms with one value
        self._known: dict[Terms, int] = {}  # least values of polynomials without constants

    def symbol(self, name: str, value: int, low: int = 2, high: float = inf) -> Size:
        """A symbol whose values lie in ``low..high``; ``value`` is its hint."""
        key = (name, low, high)
        at = self._by_name.get(key)
        if at is None:
            at = self._by_name[key] = len(self._atoms)
            self._atoms.append(Atom(name, low, high, value))
            self.symbols.append(name)
        return self.size((((at,), 1),))  # type: ignore[return-value]

    # --- polynomials -----------------------------------------------------------------------------

    def size(self, terms: Terms) -> SizeLike:
        if not terms:
            return 0
        if len(terms) == 1 and not terms[0][0]:
            return terms[0][1]
        found = self._interned.get(terms)
        if found is None:
            found = self._interned[terms] = Size()
            found.scope, found.terms = self, terms
            found.hint = sum(f * self._product_of_hints(m) for m, f in terms)
        return found

    def _product_of_hints(self, monomial: Monomial) -> int:
        n = 1
        for atom in monomial:
            n *= self._atoms[atom].hint
        return n

    def made(self, factors: Mapping[Monomial, int]) -> SizeLike:
        """The size of monomials and their factors."""
        if self._pinned:
            factors = self._substituted(factors)
        return self.size(tuple(sorted([(m, f) for m, f in factors.items() if f])))

    def _substituted(self, factors: Mapping[Monomial, int]) -> dict[Monomial, int]:
        """With the numbers of atoms that can have only one value."""
        pinned, out = self._pinned, dict[Monomial, int]()
        for monomial, factor in factors.items():
            rest = []
            for number in monomial:
                if number in pinned:
                    factor *= pinned[number]
                else:
                    rest.append(number)
            key = tuple(rest)
            out[key] = out.get(key, 0) + factor
        return out

    def terms_of(self, x: SizeLike) -> Terms:
        """The terms of a number or of a size of this scope."""
        if x.__class__ is Size:
            if x.scope is not self or not self.open:
                raise TraceError(
                    f"the size {x} was read while a function was traced and is used outside of "
                    "that trace, where it has no value: return it from the function instead"
                )
            return x.terms
        return (((), x),) if x else ()  # type: ignore[return-value]

    def sum(self, x: SizeLike, y: SizeLike, sign: int) -> SizeLike:
        """``x + sign * y``."""
        factors = dict(self.terms_of(x))
        for m, f in self.terms_of(y):
            factors[m] = factors.get(m, 0) + sign * f
        return self.made(factors)

    def product(self, x: SizeLike, y: SizeLike) -> SizeLike:
        """``x * y``."""
        factors: dict[Monomial, int] = {}
        others = self.terms_of(y)
        for m, f in self.terms_of(x):
            for n, g in others:
                both = tuple(sorted((*m, *n))) if m and n else m or n
                factors[both] = factors.get(both, 0) + f * g
        return self.made(factors)

    def operation(
        self, op: str | Callable[..., int], args: tuple[SizeLike, ...], low: float, high: float
    ) -> SizeLike:
        """An atom for ``op`` of sizes, with values in ``low..high``."""
        key = op, *map(self.terms_of, args)
        at = self._by_name.get(key)
        if at is None:
            made = Atom("", low, high, 0, op, args)
            if not self.free:
                made.hint = made.evaluate(hints(args))
            at = self._by_name[key] = len(self._atoms)
            self._atoms.append(made)
        return self.size((((at,), 1),))

    # --- ranges ----------------------------------------------------------------------------------

    def span(self, terms: Terms) -> Range:
        """The least and the largest value that are not known to be impossible."""
        found = self._ranges.get(terms)
        if found is None:
            low, high = self._plain_span(terms)
            if low < 0 < high or low == 0 or high == 0:  # worth a closer look
                near = self._shifted_span(terms)
                low, high = max(low, near[0]), min(high, near[1])
            constant, rest = _without_constant(terms)
            known = self._known.get(rest)
            if known is not None:
                low = max(low, known + constant)
            known = self._known.get(tuple((m, -f) for m, f in rest))
            if known is not None:
                high = min(high, constant - known)
            found = self._ranges[terms] = low, high
        return found

    def _plain_span(self, terms: Terms) -> Range:
        low: float = 0
        high: float = 0
        for monomial, factor in terms:
            a: float = 1
            b: float = 1
            for number in monomial:
                atom = self._atoms[number]
                ends = [_times(x, y) for x in (a, b) for y in (atom.low, atom.high)]
                a, b = min(ends), max(ends)
            a, b = sorted((_times(a, factor), _times(b, factor)))
            low, high = low + a, high + b
        return low, high

    def _shifted_span(self, terms: Terms) -> Range:
        """With every atom written as its least value and something that is not negative."""
        total: dict[Monomial, int] = {}
        for monomial, factor in terms:
            parts: dict[Monomial, int] = {(): factor}
            for number in monomial:
                low = self._atoms[number].low
                if low == -inf:
                    return -inf, inf
                grown: dict[Monomial, int] = {}
                for m, f in parts.items():
                    grown[m] = grown.get(m, 0) + f * int(low)
                    more = tuple(sorted((*m, number)))
                    grown[more] = grown.get(more, 0) + f
                parts = grown
            for m, f in parts.items():
                total[m] = total.get(m, 0) + f
        constant = total.pop((), 0)
        rest = list(total.values())
        return (
            constant if all(f >= 0 for f in rest) else -inf,
            constant if all(f <= 0 for f in rest) else inf,
        )

    # --- questions -------------------------------------------------------------------------------

    def is_zero(self, x: SizeLike) -> bool:
        """Whether ``x`` is 0; noted if that is not always so."""
        if x.__class__ is not Size:
            return x == 0
        low, high = self.span(self.terms_of(x))
        if low > 0 or high < 0:
            return False
        if low == high == 0:
            return True
        if self.free:
            return False
        self._note(x, "==" if x.hint == 0 else "!=")
        return x.hint == 0

    def is_natural(self, x: SizeLike) -> bool:
        """Whether ``x`` is not negative; noted if that is not always so."""
        if x.__class__ is not Size:
            return x >= 0
        low, high = self.span(self.terms_of(x))
        if low >= 0:
            return True
        if high < 0:
            return False
        if self.free:
            raise TypeError(f"whether {x} is negative depends on values that are not known yet")
        if x.hint >= 0:
            self._note(x, ">=")
            return True
        self._note(-x - 1, ">=")
        return False

    def number_of(self, x: Size) -> int:
        """The value of ``x``; noted that it has to be this one."""
        if self.free:
            raise TypeError(f"the size {x} has no value yet")
        self.is_zero(self.sum(x, x.hint, -1))
        return x.hint

    def _note(self, x: Size, kind: str) -> None:
        """Remember that ``x`` is zero, is not, or is not negative."""
        constant, rest = _without_constant(x.terms)
        if len(rest) == 1 and len(rest[0][0]) == 1 and kind != "!=":
            (((number,), factor),) = rest
            atom = self._atoms[number]
            if kind == "==" or factor > 0:
                atom.low = max(atom.low, -(constant // factor) if factor > 0 else atom.hint)
            if kind == "==" or factor < 0:
                atom.high = min(atom.high, constant // -factor if factor < 0 else atom.hint)
            if atom.low == atom.high:
                self._pinned[number] = int(atom.low)
            if atom.op:
                self.guards[x.terms, kind] = None
        else:
            self.guards[x.terms, kind] = None
            if kind != "!=":
                self._known[rest] = max(self._known.get(rest, -constant), -constant)
            if kind == "==":
                turned = tuple((m, -f) for m, f in rest)
                self._known[turned] = max(self._known.get(turned, constant), constant)
        self._ranges.clear()

    # --- values ----------------------------------------------------------------------------------

    def evaluate(self, x: Size, values: Mapping[str, int]) -> int:
        """``x`` where each symbol has the value that ``values`` says."""
        return sum(f * self._value(m, values) for m, f in x.terms)

    def _value(self, monomial: Monomial, values: Mapping[str, int]) -> int:
        n = 1
        for number in monomial:
            atom = self._atoms[number]
            if atom.op:
                n *= atom.evaluate(
                    [v.evaluate(values) if isinstance(v, Size) else v for v in atom.args]
                )
                continue
            if atom.name not in values:
                raise ShapeError(f"no value for dim {atom.name!r}; have {sorted(values)}")
            if not atom.low <= values[atom.name] <= atom.high:
                raise ShapeError(
                    f"dim {atom.name!r} is {values[atom.name]}, its range is "
                    f"{atom.low}..{atom.high}"
                )
            n *= values[atom.name]
        return n

    def text(self, terms: Terms) -> str:
        """The expression, for people."""
        return self._spelled(terms, lambda atom: atom.name) or "0"

    def _spelled(self, terms: Terms, name: Callable[[Atom], str]) -> str:
        parts = []
        for m, f in sorted(terms, key=lambda term: not term[0]):
            atoms = [self._atom_text(number, name) for number in m]
            parts.append("*".join(([str(f)] if f != 1 or not m else []) + atoms))
        return " + ".join(parts)

    def _atom_text(self, number: int, name: Callable[[Atom], str]) -> str:
        atom = self._atoms[number]
        if not atom.op:
            return name(atom)
        args = [self._spelled(v.terms, name) if isinstance(v, Size) else str(v) for v in atom.args]
        if atom.op in ("//", "%"):
            return f"(({args[0]}) {atom.op} ({args[1]}))"
        called = atom.op if isinstance(atom.op, str) else f"f{number}"
        return f"{called}({', '.join(args)})"

    def holds(self) -> Callable[..., bool]:
        """A function of the symbols' values, in order: whether every guard is true of them."""
        names = self._python_names()
        lines = []
        for number in self._by_name.values():
            atom = self._atoms[number]
            if not atom.op:
                high = "" if atom.high == inf else f" <= {int(atom.high)}"
                lines.append(f"{int(atom.low)} <= {names[number]}{high}")
        for terms, kind in self.guards:
            lines.append(f"{self._spelled(terms, self._python_name)} {kind} 0")
        return self._function(" and ".join(lines) or "True")

    def values(self, sizes: Sequence[Size]) -> Callable[..., tuple[int, ...]]:
        """A function of the symbols' values, in order: those of ``sizes``."""
        texts = [self._spelled(size.terms, self._python_name) for size in sizes]
        return self._function(f"({', '.join(texts)}{',' if len(texts) == 1 else ''})")

    def hints(self) -> tuple[int, ...]:
        """The symbols' hints, in order."""
        return tuple([atom.hint for atom in self._atoms if not atom.op])

    def guard_texts(self) -> list[str]:
        """Bounds and guards, for people."""
        found = []
        for atom in self._atoms:
            if not atom.op:
                found.append(f"{atom.low} <= {atom.name} <= {atom.high}")
        return found + [f"{self.text(terms)} {kind} 0" for terms, kind in self.guards]

    def _python_names(self) -> dict[int, str]:
        return {n: self._python_name(a) for n, a in enumerate(self._atoms) if not a.op}

    def _python_name(self, atom: Atom) -> str:
        return f"s{self._atoms.index(atom)}"

    def _function(self, expression: str) -> Callable[..., Any]:
        names = ", ".join(self._python_names().values())
        called: dict[str, Any] = {"min": min, "max": max}
        called |= {f"f{n}": a.op for n, a in enumerate(self._atoms) if callable(a.op)}
        made: Callable[..., Any] = eval(f"lambda {names}: {expression}", called)
        return made


_FREE: Final = Scope(free=True)


def Dim(name: str, upper: int) -> Size:
    """A symbol with values in ``0..upper``."""
    return _FREE.symbol(name, 0, 0, upper)


def _without_constant(terms: Terms) -> tuple[int, Terms]:
    """The constant, and the other terms."""
    if terms and not terms[0][0]:
        return terms[0][1], terms[1:]
    return 0, terms


def _times(x: float, y: float) -> float:
    return 0 if x == 0 or y == 0 else x * y

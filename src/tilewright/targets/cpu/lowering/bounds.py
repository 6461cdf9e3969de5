"""Which accesses can leave their array, and which of those checks one test per program replaces.

For every axis of every access the start's smallest and largest value are sought as expressions of
what is known when a program instance begins: its program ids, sizes, scalar arguments, constants,
and the bounds of the loops around it.

* Found, and inside by arithmetic on constants alone: no check at all.
* Found, but with run-time sizes in it: *hoisted*. The instance evaluates it once and, if all of
  them hold, runs a version of the body without those checks; otherwise the version with them.
* Not found (the start was loaded from memory): checked in place, in both versions.

The expressions are exact: every leaf is tested to be below 2^40 in size (a program with a larger
one runs the checked version), and an expression that could exceed 2^62 is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tilewright.dtypes import boolean, i64
from tilewright.lang import ir
from tilewright.targets.cpu.lowering.context import ArrayRef
from tilewright.targets.cpu.lowering.emit import Emitter, is_literal

__all__ = ["Check", "Plan", "analyse"]

_LEAF_BITS = 40
_MAX_BITS = 62
_PROGRAM_BITS = 28  # a launch with more programs is refused


@dataclass(frozen=True)
class Check:
    """What one axis of one access needs.

    Attributes:
        hoisted: the instance's entry test covers it; needed only when that test failed.
        nonnegative: a start below zero is impossible.
    """

    hoisted: bool
    nonnegative: bool


@dataclass
class Plan:
    """The outcome.

    Attributes:
        checks: per (access, axis); absent when the axis is always inside.
        condition: operand (i1) of the conjunction of all hoisted tests; None when there is none.
        endless: loops whose counter might pass the largest i64 before it reaches the end.
    """

    checks: dict[tuple[ir.Op, int], Check] = field(default_factory=dict)
    condition: str | None = None
    endless: set[ir.Op] = field(default_factory=set)

    def check(self, op: ir.Op, axis: int, checked: bool) -> Check | None:
        """The check that ``axis`` of ``op`` needs in the (un)checked version."""
        found = self.checks.get((op, axis))
        if found is None or (found.hoisted and not checked):
            return None
        # What is known about signs may rest on the entry test, which has failed here.
        return Check(found.hoisted, False) if checked else found


@dataclass(frozen=True)
class Range:
    """Smallest and largest value (operands in the entry code; None when unknown).

    Attributes:
        bits: the value's size stays below ``2**bits``; None: it may be anything, so that
            arithmetic on it may wrap and nothing follows from a single known end.
        nonnegative: never below zero, even where ``lo`` is not a literal.
    """

    lo: str | None
    hi: str | None
    bits: int | None = None
    nonnegative: bool = False

    @property
    def exact(self) -> bool:
        return self.lo is not None and self.lo == self.hi


_UNKNOWN = Range(None, None)


def analyse(
    fn: ir.Function,
    em: Emitter,
    arrays: dict[ir.Value, ArrayRef],
    scalars: dict[ir.Value, str],
    program: tuple[str, ...],
    grid: tuple[str, ...],
) -> Plan:
    """Examine ``fn``; ``em`` (the code that starts an instance) receives the hoisted tests."""
    return _Analysis(em, arrays, scalars, program, grid).run(fn)


def _literal(text: str | None) -> int | None:
    return int(text) if text is not None and is_literal(text) else None


class _Analysis:
    def __init__(
        self,
        em: Emitter,
        arrays: dict[ir.Value, ArrayRef],
        scalars: dict[ir.Value, str],
        program: tuple[str, ...],
        grid: tuple[str, ...],
    ) -> None:
        self.em = em
        self.arrays = dict(arrays)
        self.scalars = scalars
        self.program = program
        self.grid = grid
        self.ranges: dict[ir.Value, Range] = {}
        self.loops: dict[ir.Value, ir.Op] = {}
        self.tests: dict[tuple[str, str, str], None] = {}

    def run(self, fn: ir.Function) -> Plan:
        plan = Plan()
        for op in fn.body.walk():
            if op.name == "for":
                self.loops[op.blocks[0].args[0]] = op
            elif op.name == "scratch":
                kind = op.result.type
                assert isinstance(kind, ir.ArrayType)
                shape = tuple(str(n) for n in kind.shape)
                self.arrays[op.result] = ArrayRef(kind.dtype, "", shape, (), scratch=True)
            elif op.name in ("load", "store") and "prefetch" not in op.attrs:
                self.access(plan, op)
        plan.endless = {op for iv, op in self.loops.items() if self.range(iv).bits is None}
        condition: str | None = None
        for predicate, a, b in self.tests:
            condition = self.em.both(condition, self.em.op(f"icmp {predicate} i64 {a}, {b}"))
        plan.condition = condition
        return plan

    def access(self, plan: Plan, op: ir.Op) -> None:
        array = self.arrays[op.operands[0]]
        for number, (axis, start) in enumerate(zip(op.attrs["axes"], op.operands[1:])):
            size = array.shape[number]
            if isinstance(axis, ir.Gather):
                if start.shape != ():
                    plan.checks[op, number] = Check(hoisted=False, nonnegative=False)
                    continue
                reach = 0
            else:
                reach = (axis.length - 1) * axis.step if isinstance(axis, ir.Window) else 0
                if isinstance(axis, ir.Window) and axis.length == 0:
                    continue
            found = self.range(start)
            tests: list[tuple[str, str, str]] = []
            below = self.lower(found, min(reach, 0), tests)
            above = self.upper(found, max(reach, 0), size, tests)
            if below is None or above is None:
                plan.checks[op, number] = Check(False, found.nonnegative and reach >= 0)
            elif tests:
                self.tests.update(dict.fromkeys(tests))
                plan.checks[op, number] = Check(True, found.nonnegative and reach >= 0)

    def lower(self, r: Range, reach: int, tests: list[tuple[str, str, str]]) -> bool | None:
        """True: never below zero, or the test was added; None: unknown."""
        if r.nonnegative and reach == 0:
            return True
        if r.lo is None:
            return None
        known = _literal(r.lo)
        if known is not None:
            return True if known + reach >= 0 else None
        tests.append(("sge", self.em.add(r.lo, str(reach)), "0"))
        return True

    def upper(
        self, r: Range, reach: int, size: str, tests: list[tuple[str, str, str]]
    ) -> bool | None:
        if r.hi is None:
            return None
        known, limit = _literal(r.hi), _literal(size)
        if known is not None and limit is not None:
            return True if known + reach < limit else None
        tests.append(("slt", self.em.add(r.hi, str(reach)), size))
        return True

    # --- ranges ---

    def range(self, value: ir.Value) -> Range:
        """The range of an integer scalar."""
        if value not in self.ranges:
            found = self.compute(value)
            width = value.dtype.bits - (1 if value.dtype.is_signed else 0)
            if found.bits is not None and found.bits > min(width, _MAX_BITS):
                found = _UNKNOWN  # might have wrapped
            if found.bits is None and width < _MAX_BITS and value.dtype.is_integer:
                nonnegative = found.nonnegative or not value.dtype.is_signed
                found = Range(found.lo, found.hi, width, nonnegative)
            self.ranges[value] = found
        return self.ranges[value]

    def compute(self, value: ir.Value) -> Range:
        if value.shape != () or not (value.dtype.is_integer or value.dtype is boolean):
            return _UNKNOWN
        if value in self.loops:
            return self.induction(self.loops[value])
        op = value.op
        if op is None:
            return self.parameter(value)
        rule: Callable[[ir.Op], Range] | None = getattr(self, "_" + op.name, None)
        return rule(op) if rule else _UNKNOWN

    def bounded(self, op: ir.Op) -> tuple[Range, Range, int] | None:
        """Both operands and the larger size, if arithmetic on them can be followed."""
        a, b = (self.range(v) for v in op.operands)
        if a.bits is None or b.bits is None:
            return None
        return a, b, max(a.bits, b.bits)

    def leaf(self, operand: str, nonnegative: bool, bits: int = _LEAF_BITS) -> Range:
        known = _literal(operand)
        if known is not None:
            return Range(operand, operand, max(known.bit_length(), 1), known >= 0)
        return Range(operand, operand, bits, nonnegative)

    def guarded(self, operand: str, nonnegative: bool) -> Range:
        """A run-time leaf, tested at entry to be small."""
        if not is_literal(operand):
            self.tests["slt", operand, str(1 << _LEAF_BITS)] = None
            if not nonnegative:
                self.tests["sgt", operand, str(-(1 << _LEAF_BITS))] = None
        return self.leaf(operand, nonnegative)

    def parameter(self, value: ir.Value) -> Range:
        operand = self.scalars.get(value)
        if operand is None or value.dtype is boolean:
            return _UNKNOWN
        op = "sext" if value.dtype.is_signed else "zext"
        if value.dtype.bits < 64:
            wide = self.em.op(f"{op} i{value.dtype.bits} {operand} to i64")
            bits = value.dtype.bits - (1 if value.dtype.is_signed else 0)
            return self.leaf(wide, not value.dtype.is_signed, bits)
        return self.guarded(operand, False) if value.dtype is i64 else _UNKNOWN

    def induction(self, op: ir.Op) -> Range:
        lo, hi, step = (self.range(v) for v in op.operands[:3])
        by = _literal(step.lo) if step.exact else None
        if not by or by < 0:
            return _UNKNOWN
        top = None
        if hi.hi is not None:
            top = self.em.add(hi.hi, "-1")
            if by > 1 and lo.exact and lo.lo is not None:
                # The last value that is reached, not merely one below the end.
                span = self.sub(top, lo.lo)
                known = _literal(span)
                if known is not None:
                    span = str(max(known, 0) // by * by)
                else:
                    span = self.em.call("llvm.smax.i64", "i64", [("i64", span), ("i64", "0")])
                    span = self.em.mul(self.em.op(f"udiv i64 {span}, {by}"), str(by))
                top = self.em.add(lo.lo, span)
        if top is None or lo.lo is None or lo.bits is None or hi.bits is None:
            return Range(lo.lo, top, None, lo.nonnegative)
        return Range(lo.lo, top, max(lo.bits, hi.bits) + 1, lo.nonnegative)

    def sub(self, a: str, b: str) -> str:
        known_a, known_b = _literal(a), _literal(b)
        if known_b is not None:
            return self.em.add(a, str(-known_b))
        if known_a is not None and known_b is not None:
            return str(known_a - known_b)
        return self.em.op(f"sub i64 {a}, {b}")

    def _constant(self, op: ir.Op) -> Range:
        return self.leaf(str(int(op.attrs["value"])), False)

    def _program_id(self, op: ir.Op) -> Range:
        return self.leaf(self.program[op.attrs["axis"]], True, _PROGRAM_BITS)

    def _num_programs(self, op: ir.Op) -> Range:
        return self.guarded(self.grid[op.attrs["axis"]], True)

    def _dim(self, op: ir.Op) -> Range:
        return self.guarded(self.arrays[op.operands[0]].shape[op.attrs["axis"]], True)

    def _add(self, op: ir.Op) -> Range:
        known = self.bounded(op)
        if known is None:
            return _UNKNOWN
        a, b, bits = known
        lo = self.em.add(a.lo, b.lo) if a.lo is not None and b.lo is not None else None
        hi = self.em.add(a.hi, b.hi) if a.hi is not None and b.hi is not None else None
        return Range(lo, hi, bits + 1, a.nonnegative and b.nonnegative)

    def _sub(self, op: ir.Op) -> Range:
        known = self.bounded(op)
        if known is None:
            return _UNKNOWN
        a, b, bits = known
        lo = self.sub(a.lo, b.hi) if a.lo is not None and b.hi is not None else None
        hi = self.sub(a.hi, b.lo) if a.hi is not None and b.lo is not None else None
        least = _literal(lo)
        return Range(lo, hi, bits + 1, least is not None and least >= 0)

    def _mul(self, op: ir.Op) -> Range:
        known = self.bounded(op)
        if known is None:
            return _UNKNOWN
        a, b, _ = known
        if _literal(a.lo) is not None and a.exact:
            a, b = b, a
        factor = _literal(b.lo) if b.exact else None
        bits = (a.bits or 0) + (b.bits or 0)
        if bits > _MAX_BITS:
            return _UNKNOWN
        if factor is not None and factor < 0:
            lo = self.em.mul(a.hi, str(factor)) if a.hi is not None else None
            hi = self.em.mul(a.lo, str(factor)) if a.lo is not None else None
            return Range(lo, hi, bits)
        if factor is None and not (a.nonnegative and b.nonnegative):
            return Range(None, None, bits)
        lo = self.em.mul(a.lo, b.lo) if a.lo is not None and b.lo is not None else None
        hi = self.em.mul(a.hi, b.hi) if a.hi is not None and b.hi is not None else None
        return Range(lo, hi, bits, a.nonnegative and b.nonnegative)

    def _floordiv(self, op: ir.Op) -> Range:
        a, b = (self.range(v) for v in op.operands)
        if not (a.nonnegative and b.nonnegative) or a.hi is None or b.lo is None:
            return _UNKNOWN
        by = _literal(b.lo)
        if by is not None and by > 0 and b.exact:
            lo = None if a.lo is None else self.quotient(a.lo, b.lo)
            return Range(lo, self.quotient(a.hi, b.lo), a.bits, True)
        # A run-time divisor may be zero, and the quotient is zero then.
        divisor = self.em.call("llvm.smax.i64", "i64", [("i64", b.lo), ("i64", "1")])
        return Range("0", self.em.op(f"udiv i64 {a.hi}, {divisor}"), a.bits, True)

    def quotient(self, a: str, b: str) -> str:
        known = _literal(a)
        return str(known // int(b)) if known is not None else self.em.op(f"udiv i64 {a}, {b}")

    def _mod(self, op: ir.Op) -> Range:
        a, b = (self.range(v) for v in op.operands)
        by = _literal(b.lo) if b.exact else None
        if by is not None and by > 0:
            if a.exact and a.nonnegative and a.lo is not None:
                known = _literal(a.lo)
                rest = (
                    str(known % by) if known is not None else self.em.op(f"urem i64 {a.lo}, {by}")
                )
                return Range(rest, rest, b.bits, True)
            return Range("0", str(by - 1), b.bits, True)
        if b.nonnegative and b.hi is not None:
            top = self.em.add(b.hi, "-1")
            top = self.em.call("llvm.smax.i64", "i64", [("i64", top), ("i64", "0")])
            return Range("0", top, b.bits, True)
        return _UNKNOWN

    def _min(self, op: ir.Op) -> Range:
        return self.extreme(op, "min")

    def _max(self, op: ir.Op) -> Range:
        return self.extreme(op, "max")

    def extreme(self, op: ir.Op, which: str) -> Range:
        a, b = (self.range(v) for v in op.operands)
        if not op.result.dtype.is_signed:
            return _UNKNOWN
        both = a.nonnegative and b.nonnegative
        either = a.nonnegative or b.nonnegative
        # One side alone bounds the result on one side.
        one_side = {"lo": which == "max", "hi": which == "min"}
        ends: dict[str, str | None] = {}
        for end in ("lo", "hi"):
            x, y = getattr(a, end), getattr(b, end)
            if x is None or y is None:
                ends[end] = (x if x is not None else y) if one_side[end] else None
            elif is_literal(x) and is_literal(y):
                ends[end] = str((min if which == "min" else max)(int(x), int(y)))
            else:
                ends[end] = self.em.call(f"llvm.s{which}.i64", "i64", [("i64", x), ("i64", y)])
        # With both ends known the value's size is theirs; otherwise it is the larger operand's.
        sizes = [r.bits for r in (a, b) if r.bits is not None]
        whole = len(sizes) == 2 or (ends["lo"] is not None and ends["hi"] is not None)
        bits = max(sizes, default=None) if whole else None
        return Range(ends["lo"], ends["hi"], bits, both or (which == "max" and either))

    def _shl(self, op: ir.Op) -> Range:
        a, b = (self.range(v) for v in op.operands)
        by = _literal(b.lo) if b.exact else None
        if by is None or not 0 <= by < 40 or a.bits is None or a.bits + by > _MAX_BITS:
            return _UNKNOWN
        factor = str(1 << by)
        lo = None if a.lo is None else self.em.mul(a.lo, factor)
        hi = None if a.hi is None else self.em.mul(a.hi, factor)
        return Range(lo, hi, a.bits + by, a.nonnegative)

    def _shr(self, op: ir.Op) -> Range:
        a, b = (self.range(v) for v in op.operands)
        by = _literal(b.lo) if b.exact else None
        if by is None or not 0 <= by < 40 or not a.nonnegative:
            return _UNKNOWN
        lo = None if a.lo is None else self.quotient(a.lo, str(1 << by))
        hi = None if a.hi is None else self.quotient(a.hi, str(1 << by))
        return Range(lo, hi, a.bits, True)

    def _cast(self, op: ir.Op) -> Range:
        source, result = op.operands[0].dtype, op.result.dtype
        if not source.is_integer:
            return _UNKNOWN
        found = self.range(op.operands[0])
        room = result.bits - (1 if result.is_signed else 0)
        fits = (found.bits is not None and found.bits <= room) or (
            source.is_signed == result.is_signed and result.bits >= source.bits
        )
        if not fits or (not result.is_signed and not found.nonnegative):
            return _UNKNOWN
        return found

"""Short names for vector instructions, so that :mod:`.mathlib` reads like the formulas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.dtypes import DType, f32
from tilewright.targets.cpu.lowering.emit import Emitter, literal, reg_type, vec
from tilewright.targets.cpu.machine import Machine

__all__ = ["Vector"]


@dataclass(frozen=True)
class Vector:
    """Operations on ``width`` lanes of f32 or f64 and on integers of the same size."""

    em: Emitter
    machine: Machine
    dtype: DType
    width: int

    @property
    def type(self) -> str:
        return vec(reg_type(self.dtype), self.width)

    @property
    def itype(self) -> str:
        return vec(f"i{self.dtype.bits}", self.width)

    @property
    def flag(self) -> str:
        return vec("i1", self.width)

    def like(self, dtype: DType) -> Vector:
        return Vector(self.em, self.machine, dtype, self.width)

    def constant(self, value: float) -> str:
        text = literal(value, self.dtype)
        return text if self.width == 1 else f"splat ({reg_type(self.dtype)} {text})"

    def icon(self, value: int) -> str:
        return str(value) if self.width == 1 else f"splat (i{self.dtype.bits} {value})"

    # --- floats ---

    def add(self, a: str, b: str) -> str:
        return self.em.op(f"fadd {self.type} {a}, {b}")

    def sub(self, a: str, b: str) -> str:
        return self.em.op(f"fsub {self.type} {a}, {b}")

    def mul(self, a: str, b: str) -> str:
        return self.em.op(f"fmul {self.type} {a}, {b}")

    def div(self, a: str, b: str) -> str:
        return self.em.op(f"fdiv {self.type} {a}, {b}")

    def neg(self, a: str) -> str:
        return self.em.op(f"fneg {self.type} {a}")

    def fma(self, a: str, b: str, c: str) -> str:
        """Fused where the machine can; the formulas tolerate two roundings."""
        if self.machine.has_fma:
            return self.intrinsic("fma", a, b, c)
        return self.add(self.mul(a, b), c)

    def polynomial(self, x: str, coefficients: tuple[float, ...]) -> str:
        """Horner's scheme; the constant term comes first."""
        out = self.constant(coefficients[-1])
        for c in reversed(coefficients[:-1]):
            out = self.fma(out, x, self.constant(c))
        return out

    def selected_polynomial(
        self, x: str, choices: Sequence[tuple[str | None, tuple[float, ...]]]
    ) -> str:
        """Per lane the polynomial of the first condition that holds (None always does).

        All have equally many coefficients, the constant term first.
        """

        def coefficient(k: int) -> str:
            out = self.constant(choices[-1][1][k])
            for condition, coefficients in reversed(choices[:-1]):
                assert condition is not None
                out = self.select(condition, self.constant(coefficients[k]), out)
            return out

        degree = len(choices[0][1]) - 1
        out = coefficient(degree)
        for k in reversed(range(degree)):
            out = self.fma(out, x, coefficient(k))
        return out

    def intrinsic(self, stem: str, *args: str) -> str:
        return self.em.intrinsic(stem, reg_type(self.dtype), self.width, *args)

    def abs(self, a: str) -> str:
        return self.intrinsic("fabs", a)

    def copysign(self, size: str, sign: str) -> str:
        return self.intrinsic("copysign", size, sign)

    def compare(self, how: str, a: str, b: str) -> str:
        return self.em.op(f"fcmp {how} {self.type} {a}, {b}")

    def select(self, condition: str, a: str, b: str) -> str:
        return self.em.op(f"select {self.flag} {condition}, {self.type} {a}, {self.type} {b}")

    # --- sums and products with their errors ---

    def two_sum(self, a: str, b: str) -> tuple[str, str]:
        """``a + b`` and what its rounding lost (Knuth)."""
        total = self.add(a, b)
        kept = self.sub(total, a)
        return total, self.add(self.sub(a, self.sub(total, kept)), self.sub(b, kept))

    def ordered_sum(self, a: str, b: str) -> tuple[str, str]:
        """``a + b`` and what its rounding lost, for |a| >= |b| or a = 0 (Dekker)."""
        total = self.add(a, b)
        return total, self.add(self.sub(a, total), b)

    def two_product(self, a: str, b: str) -> tuple[str, str]:
        """``a * b`` and what its rounding lost (f64; Dekker and Veltkamp without an FMA)."""
        product = self.mul(a, b)
        if self.machine.has_fma:
            return product, self.fma(a, b, self.neg(product))
        (a1, a2), (b1, b2) = self._halves(a), self._halves(b)
        error = self.sub(self.mul(a1, b1), product)
        error = self.add(self.add(error, self.mul(a1, b2)), self.mul(a2, b1))
        return product, self.add(error, self.mul(a2, b2))

    def _halves(self, a: str) -> tuple[str, str]:
        shifted = self.mul(a, self.constant(134217729.0))  # 2^27 + 1
        high = self.sub(shifted, self.sub(shifted, a))
        return high, self.sub(a, high)

    def remainder_of(self, a: str, quotient: str, b: str) -> str:
        """``a - quotient * b`` rounded once, where that is small against ``a``."""
        if self.machine.has_fma:
            return self.fma(self.neg(quotient), b, a)
        high, low = self.two_product(quotient, b)
        return self.sub(self.sub(a, high), low)

    # --- bits ---

    def bits(self, a: str) -> str:
        return self.em.op(f"bitcast {self.type} {a} to {self.itype}")

    def unbits(self, a: str) -> str:
        return self.em.op(f"bitcast {self.itype} {a} to {self.type}")

    def iadd(self, a: str, b: str) -> str:
        return self.em.op(f"add {self.itype} {a}, {b}")

    def isub(self, a: str, b: str) -> str:
        return self.em.op(f"sub {self.itype} {a}, {b}")

    def iand(self, a: str, b: str) -> str:
        return self.em.op(f"and {self.itype} {a}, {b}")

    def lshr(self, a: str, b: str) -> str:
        return self.em.op(f"lshr {self.itype} {a}, {b}")

    def iselect(self, condition: str, a: str, b: str) -> str:
        return self.em.op(f"select {self.flag} {condition}, {self.itype} {a}, {self.itype} {b}")

    def shl(self, a: str, b: str) -> str:
        return self.em.op(f"shl {self.itype} {a}, {b}")

    def ashr(self, a: str, b: str) -> str:
        return self.em.op(f"ashr {self.itype} {a}, {b}")

    def to_float(self, a: str) -> str:
        return self.em.op(f"sitofp {self.itype} {a} to {self.type}")

    def exponent_to_float(self, a: str) -> str:
        """A small i64 as f64 without the 64-bit conversion that older machines lack."""
        shifted = self.iadd(a, self.icon(0x4338000000000000))
        return self.sub(self.unbits(shifted), self.constant(6755399441055744.0))

    # --- conditions ---

    def any(self, condition: str) -> str:
        """Whether a condition holds in any lane (i1)."""
        if self.width == 1:
            return condition
        name = f"llvm.vector.reduce.or.v{self.width}i1"
        return self.em.call(name, "i1", [(self.flag, condition)])

    def either(self, a: str, b: str) -> str:
        return self.em.op(f"or {self.flag} {a}, {b}")

    def both(self, a: str, b: str) -> str:
        return self.em.op(f"and {self.flag} {a}, {b}")

    def differ(self, a: str, b: str) -> str:
        return self.em.op(f"xor {self.flag} {a}, {b}")

    def invert(self, a: str) -> str:
        ones = "true" if self.width == 1 else "splat (i1 true)"
        return self.em.op(f"xor {self.flag} {a}, {ones}")

    def negative(self, a: str) -> str:
        """Whether the sign bit is set (so -0.0 counts)."""
        return self.em.op(f"icmp slt {self.itype} {self.bits(a)}, {self.icon(0)}")

    # --- between f32 and f64 ---

    def widened(self, a: str) -> str:
        """An f32 operand in this (f64) vector."""
        return self.em.op(f"fpext {vec(reg_type(f32), self.width)} {a} to {self.type}")

    def narrowed(self, a: str) -> str:
        """An operand of this (f64) vector as f32."""
        return self.em.op(f"fptrunc {self.type} {a} to {vec(reg_type(f32), self.width)}")

"""Writing LLVM assembly: one module's declarations and one function's body at a time.

Text is written directly because it is several times faster than building an object graph first,
and the front end's time is part of every cold start.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

from tilewright.dtypes import DType, boolean, f16, f32, f64, from_float32
from tilewright.errors import CompileError

__all__ = [
    "Emitter",
    "Module",
    "is_literal",
    "literal",
    "mem_type",
    "reg_type",
    "vec",
]

_REG = {"f32": "float", "f64": "double", "f16": "i16", "bf16": "i16", "bool": "i1"}
_SHORT = {"float": "f32", "double": "f64"}


def reg_type(dtype: DType) -> str:
    """LLVM's type of one element in a register; 16-bit floats are their bit patterns."""
    return _REG.get(dtype.name, f"i{dtype.bits}")


def mem_type(dtype: DType) -> str:
    """LLVM's type of one element in memory."""
    return "i8" if dtype is boolean else reg_type(dtype)


def vec(element: str, width: int) -> str:
    """``<width x element>``; a single element is a scalar."""
    return element if width == 1 else f"<{width} x {element}>"


def mangle(element: str, width: int) -> str:
    """The suffix of an overloaded intrinsic: ``v16f32``, ``i64``."""
    name = _SHORT.get(element, element if element != "ptr" else "p0")
    return name if width == 1 else f"v{width}{name}"


def literal(value: bool | int | float, dtype: DType) -> str:
    """``value`` as an LLVM constant of ``dtype``, rounded or wrapped into it."""
    if dtype is boolean:
        return "true" if value else "false"
    if dtype.is_float:
        x = float(value)
        if dtype is f64:
            return _hex(x)
        if dtype is f32:
            return _hex(round_f32(x))
        if dtype is f16:
            import numpy as np

            with np.errstate(over="ignore"):
                return str(int(np.float16(x).view(np.uint16)))
        import numpy as np

        return str(int(from_float32(np.asarray(round_f32(x), np.float32))))
    if isinstance(value, float) and not math.isfinite(value):
        raise CompileError(f"constant {value} does not fit {dtype}")
    n = int(value) & ((1 << dtype.bits) - 1)
    return str(n - (1 << dtype.bits) if n >> (dtype.bits - 1) else n)


def round_f32(x: float) -> float:
    """``x`` rounded to the nearest f32 (overflow gives an infinity)."""
    try:
        return struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)


def _hex(x: float) -> str:
    return f"0x{struct.unpack('<Q', struct.pack('<d', x))[0]:016X}"


def is_literal(operand: str) -> bool:
    """Whether ``operand`` is a scalar constant rather than a register."""
    return operand[0] != "%"


class Module:
    """The declarations, constants and helper functions that function bodies ask for."""

    def __init__(self) -> None:
        self._declared: dict[str, str] = {}
        self._globals: dict[str, str] = {}
        self._helpers: dict[str, str] = {}

    def declare(self, name: str, result: str, args: Sequence[str]) -> str:
        """``@name``, declared."""
        if name not in self._declared:
            self._declared[name] = f"declare {result} @{name}({', '.join(args)})"
        return f"@{name}"

    def constant(self, name: str, type: str, value: str, align: int = 64) -> str:
        """``@name``, a private constant."""
        if name not in self._globals:
            self._globals[name] = f"@{name} = private constant {type} {value}, align {align}"
        return f"@{name}"

    def has_helper(self, name: str) -> bool:
        return name in self._helpers

    def helper(self, name: str, text: str) -> None:
        """Add an internal function's whole text."""
        self._helpers[name] = text

    def text(self, functions: Iterable[str]) -> str:
        """The module."""
        parts = [*self._globals.values(), *functions, *self._helpers.values()]
        return "\n\n".join([*parts, "\n".join(self._declared.values())]) + "\n"


class Emitter:
    """One function's body. Operands are strings: ``%v12`` or a literal."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.lines: list[str] = []
        self.allocas: list[str] = []
        self.block = "entry"
        self._count = 0
        self._known: list[dict[tuple[object, ...], object]] = [{}]

    # --- text ---

    def name(self) -> str:
        self._count += 1
        return f"%v{self._count}"

    def op(self, text: str) -> str:
        """Append ``%new = text``; returns ``%new``."""
        self._count += 1
        name = f"%v{self._count}"
        self.lines.append(f"  {name} = {text}")
        return name

    def do(self, text: str) -> None:
        """Append an instruction without a result."""
        self.lines.append("  " + text)

    def label(self, hint: str) -> str:
        self._count += 1
        return f"{hint}{self._count}"

    def start(self, label: str) -> None:
        """Begin basic block ``label``."""
        self.lines.append(f"{label}:")
        self.block = label

    def jump(self, label: str) -> None:
        self.do(f"br label %{label}")

    def branch(self, condition: str, yes: str, no: str) -> None:
        self.do(f"br i1 {condition}, label %{yes}, label %{no}")

    def phi(self, type: str, value: str, block: str) -> tuple[str, int]:
        """A phi with its first incoming value; complete it with :meth:`add_incoming`."""
        name = self.op(f"phi {type} [ {value}, %{block} ]")
        return name, len(self.lines) - 1

    def add_incoming(self, line: int, value: str, block: str) -> None:
        self.lines[line] += f", [ {value}, %{block} ]"

    def alloca(self, type: str, count: int, align: int = 64) -> str:
        """Stack memory of the whole function."""
        name = self.name()
        self.allocas.append(f"  {name} = alloca {type}, i64 {count}, align {align}")
        return name

    def body(self) -> str:
        return "\n".join(["entry:", *self.allocas, *self.lines])

    # --- values that are known in this block and in the ones it dominates ---

    def enter(self) -> None:
        """Open a scope: what is remembered inside is forgotten at :meth:`leave`."""
        self._known.append({})

    def leave(self) -> None:
        self._known.pop()

    def recall(self, key: tuple[object, ...]) -> object | None:
        for scope in reversed(self._known):
            if key in scope:
                return scope[key]
        return None

    def remember(self, key: tuple[object, ...], value: object) -> None:
        self._known[-1][key] = value

    # --- instructions ---

    def call(
        self, name: str, result: str, args: Sequence[tuple[str, str]], attribute: str = ""
    ) -> str:
        """Call ``@name`` with (type, operand) pairs, declaring it if it is not a helper."""
        if not self.module.has_helper(name):
            self.module.declare(name, result, [t for t, _ in args])
        text = ", ".join(f"{t} {v}" for t, v in args)
        return self.op(f"call {result} @{name}({text}) {attribute}".rstrip())

    def intrinsic(self, stem: str, element: str, width: int, *args: str) -> str:
        """``llvm.STEM.vNT(args)`` where all arguments and the result share one type."""
        type = vec(element, width)
        name = f"llvm.{stem}.{mangle(element, width)}"
        return self.call(name, type, [(type, a) for a in args])

    def splat(self, element: str, operand: str, width: int) -> str:
        """A scalar in every lane."""
        if width == 1:
            return operand
        type = vec(element, width)
        if is_literal(operand):
            return f"splat ({element} {operand})"
        key = ("splat", operand, width)
        found = self.recall(key)
        if found is None:
            one = self.op(f"insertelement {type} poison, {element} {operand}, i64 0")
            found = self.op(
                f"shufflevector {type} {one}, {type} poison, <{width} x i32> zeroinitializer"
            )
            self.remember(key, found)
        return str(found)

    def extract(self, element: str, vector: str, width: int, lane: int) -> str:
        """One lane; a scalar is its own only lane."""
        if width == 1:
            return vector
        if vector.startswith("splat"):
            return vector[vector.index(" ", 7) + 1 : -1]
        if vector == "zeroinitializer":
            return "0x0000000000000000" if element in _SHORT else "0"
        key = ("lane", vector, lane)
        found = self.recall(key)
        if found is None:
            found = self.op(f"extractelement {vec(element, width)} {vector}, i64 {lane}")
            self.remember(key, found)
        return str(found)

    def pack(self, element: str, scalars: Sequence[str]) -> str:
        """A vector with the given lanes."""
        width = len(scalars)
        if width == 1:
            return scalars[0]
        if all(s == scalars[0] for s in scalars):
            return self.splat(element, scalars[0], width)
        type = vec(element, width)
        if all(is_literal(s) for s in scalars):
            return "<" + ", ".join(f"{element} {s}" for s in scalars) + ">"
        key = ("pack", *scalars)
        found = self.recall(key)
        if found is None:
            found = "poison"
            for lane, s in enumerate(scalars):
                found = self.op(f"insertelement {type} {found}, {element} {s}, i64 {lane}")
            self.remember(key, found)
        return str(found)

    def shuffle(self, element: str, width: int, a: str, b: str, lanes: Sequence[int]) -> str:
        """Chosen lanes of ``a`` followed by ``b``, both ``width`` wide (at least 2)."""
        type = vec(element, width)
        mask = ", ".join("i32 poison" if n < 0 else f"i32 {n}" for n in lanes)
        return self.op(f"shufflevector {type} {a}, {type} {b}, <{len(lanes)} x i32> <{mask}>")

    def iota(self, width: int, element: str = "i64", start: int = 0, step: int = 1) -> str:
        """``start, start + step, ...`` as a literal."""
        return _iota(width, element, start, step)

    # --- i64 address arithmetic, folding literals ---

    def add(self, a: str, b: str) -> str:
        if a == "0":
            return b
        if b == "0":
            return a
        if is_literal(a) and is_literal(b):
            return _wrap(int(a) + int(b))
        return self._shared("add", a, b)

    def mul(self, a: str, b: str) -> str:
        if a == "1":
            return b
        if b == "1":
            return a
        if "0" in (a, b):
            return "0"
        if is_literal(a) and is_literal(b):
            return _wrap(int(a) * int(b))
        return self._shared("mul", a, b)

    def _shared(self, op: str, a: str, b: str) -> str:
        key = (op, a, b)
        found = self.recall(key)
        if found is None:
            found = self.op(f"{op} i64 {a}, {b}")
            self.remember(key, found)
        return str(found)

    def gep(self, element: str, pointer: str, offset: str) -> str:
        """``pointer + offset`` elements."""
        if offset == "0":
            return pointer
        key = ("gep", element, pointer, offset)
        found = self.recall(key)
        if found is None:
            found = self.op(f"getelementptr {element}, ptr {pointer}, i64 {offset}")
            self.remember(key, found)
        return str(found)

    def both(self, a: str | None, b: str | None) -> str | None:
        """Conjunction of two i1 conditions; None is always true."""
        if a is None or a == "true":
            return b
        if b is None or b == "true":
            return a
        return self.op(f"and i1 {a}, {b}")


@lru_cache(maxsize=256)
def _iota(width: int, element: str, start: int, step: int) -> str:
    if width == 1:
        return str(start)
    return "<" + ", ".join(f"{element} {start + step * i}" for i in range(width)) + ">"


def _wrap(n: int) -> str:
    n &= (1 << 64) - 1
    return str(n - (1 << 64) if n >> 63 else n)

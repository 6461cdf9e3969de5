"""Generated kernel source: expressions in sequence, and functions made from text.

Fused kernels are ordinary kernel-language source, so they can be printed, read, interpreted and
stepped through like written ones.
"""

from __future__ import annotations

import functools
import hashlib
import linecache
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tilewright import lang
from tilewright.dtypes import DType, bf16, boolean, f16
from tilewright.graph import Node
from tilewright.ops import table

__all__ = [
    "Expression",
    "cast_text",
    "element_text",
    "inline_function",
    "literal_text",
    "unique_name",
]

_HALF = (f16, bf16)


@dataclass(frozen=True)
class Expression:
    """Assignments in order and the name (or expression) of the last value."""

    lines: tuple[str, ...]
    result: str

    @classmethod
    def identity(cls, name: str) -> Expression:
        return cls((), name)

    def then(self, expression: str) -> Expression:
        """One more assignment; its value is the new result."""
        name = f"v{len(self.lines)}"
        return Expression((*self.lines, f"{name} = {expression}"), name)


def unique_name(prefix: str, text: str) -> str:
    """``prefix`` with a digest of ``text``: equal source, equal name."""
    return f"{prefix}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@functools.lru_cache(maxsize=256)
def inline_function(prefix: str, params: str, body: tuple[str, ...]) -> Callable[..., Any]:
    """An inline function from its body's lines; equal text gives the same object."""
    joined = "\n".join(f"    {line}" for line in body)
    name = unique_name(prefix, params + joined)
    text = f"def {name}({params}):\n{joined}\n"
    filename = f"<tilewright {name}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    from tilewright.ops.kernel_functions import KERNEL_FUNCTIONS

    namespace: dict[str, Any] = {k: getattr(lang, k) for k in lang.__all__} | KERNEL_FUNCTIONS
    exec(compile(text, filename, "exec"), namespace)
    return namespace[name]


def element_text(node: Node, names: Sequence[str]) -> str:
    """An elementwise node as an expression of its operands, which are called ``names``.

    16-bit floats are computed in f32 and rounded to the node's dtype.
    """
    if node.op == "cast":
        return cast_text(names[0], node.inputs[0].dtype, node.dtype)
    wide = [
        f"{name}.to(f32)" if source.dtype in _HALF else name
        for name, source in zip(names, node.inputs)
    ]
    text = table.get(node.op).source(node).format(*wide, **node.attrs)
    return f"({text}).to({node.dtype})" if node.dtype in _HALF else text


def literal_text(value: Any, dtype: DType) -> str:
    """A number as a tile without axes."""
    return f"full((), {_number(value, dtype)}, {dtype})"


def _number(value: Any, dtype: DType) -> str:
    if dtype is boolean:
        return repr(bool(value))
    if not dtype.is_float:
        bits = dtype.bits
        value = int(value) & ((1 << bits) - 1)
        return repr(value - (1 << bits) if dtype.kind == "i" and value >> bits - 1 else value)
    value = float(value)
    return repr(value) if math.isfinite(value) else "nan" if value != value else f"{value}"


def cast_text(name: str, source: DType, target: DType) -> str:
    """``name`` of dtype ``source`` converted to ``target``."""
    if source is target:
        return name
    if target is boolean:
        return f"({name} != 0)"
    if target in _HALF and source.is_integer:
        return f"{name}.to(f32).to({target})"
    return f"{name}.to({target})"

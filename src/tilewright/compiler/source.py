"""Generated kernel source: expressions in sequence, and functions made from text.

Fused kernels are ordinary kernel-language source, so they can be printed, read, interpreted and
stepped through like written ones.
"""

from __future__ import annotations

import functools
import hashlib
import linecache
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tilewright import lang

__all__ = ["Expression", "inline_function", "unique_name"]


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
    from tilewright.ops.random import KERNEL_FUNCTIONS

    namespace: dict[str, Any] = {k: getattr(lang, k) for k in lang.__all__} | KERNEL_FUNCTIONS
    exec(compile(text, filename, "exec"), namespace)
    return namespace[name]

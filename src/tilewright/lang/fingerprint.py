"""The identity of a kernel's source, for cache keys: no parsing, microseconds once warm."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import types
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from tilewright.dtypes import DType
from tilewright.errors import KernelError
from tilewright.lang.lines import source_lines

__all__ = ["constant_text", "fingerprint"]


_OPAQUE_MODULES: Final = ("tilewright.lang", "tilewright.dtypes", "math", "numpy", "builtins")


def fingerprint(fn: types.FunctionType, constants: Sequence[Any] = ()) -> str:
    """sha256 (hex) of the source of ``fn`` and of all that it and ``constants`` can reach.

    Functions are followed through globals, closures, defaults and containers; values are read at
    every call, so a changed global changes the fingerprint.
    """
    collector = _Collector()
    text = [collector.value(fn), *(collector.value(c) for c in constants)]
    digest = hashlib.sha256()
    for part in (*text, *collector.parts):
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def constant_text(value: Any) -> str:
    """``value`` as deterministic text; functions by name and fingerprint."""
    collector = _Collector()
    text = collector.value(value)
    if not collector.parts:
        return text
    digest = hashlib.sha256("\0".join(collector.parts).encode()).hexdigest()[:16]
    return f"{text}#{digest}"


@lru_cache(maxsize=4096)
def _source(code: types.CodeType, filename: str) -> tuple[str, tuple[str, ...]]:
    """A function's source text and the names its code looks up, nested functions included."""
    names: dict[str, None] = {}

    def collect(c: types.CodeType) -> None:
        names.update(dict.fromkeys(c.co_names))
        for constant in c.co_consts:
            if isinstance(constant, types.CodeType):
                collect(constant)

    collect(code)
    try:
        first, lines = source_lines(code, filename)
        text = "".join(lines)
    except KernelError:  # no source: it cannot be inlined, but its code identifies it
        first, text = code.co_firstlineno, repr((code.co_code, code.co_names))
    if code.co_name == "<lambda>":  # several may share a line
        places = [(a - first, c) for a, _, c, _ in code.co_positions() if a is not None]
        text += repr(places)
    text = hashlib.sha256(text.encode()).hexdigest()
    return text, tuple(sorted(names))


class _Collector:
    def __init__(self) -> None:
        self.parts: list[str] = []
        self.seen: dict[Any, str] = {}
        self.names: tuple[str, ...] | None = None  # what the function at hand looks up

    def value(self, value: Any) -> str:
        """A short text for ``value``; the functions in it go to ``parts``, once each."""
        if value is None or isinstance(value, (bool, int, float, str, bytes)):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, DType):
            return f"dtype {value.name}"
        inner = getattr(value, "__kernel_function__", value)
        if isinstance(inner, types.FunctionType):
            if hasattr(inner, "__tile_builtin__"):
                return f"builtin {inner.__name__}"
            return self.function(inner)
        if isinstance(value, (tuple, list)):
            return f"{type(value).__name__}({', '.join(self.value(v) for v in value)})"
        if isinstance(value, dict):
            pairs = ", ".join(f"{self.value(k)}: {self.value(v)}" for k, v in value.items())
            return f"dict({pairs})"
        if isinstance(value, enum.Enum):
            return f"enum {value}"
        if isinstance(value, types.MethodType):
            return f"method {self.value(value.__func__)} of {self.value(value.__self__)}"
        if isinstance(value, types.ModuleType):
            if value.__name__.startswith(_OPAQUE_MODULES):
                return f"module {value.__name__}"
            return self.members(value, value.__name__, vars(value))
        if isinstance(value, type):
            return self.members(value, value.__qualname__, vars(value))
        if hasattr(value, "__dict__"):
            return self.members(value, type(value).__qualname__, vars(type(value)) | vars(value))
        return f"{type(value).__qualname__} {getattr(value, '__qualname__', '')}"

    def members(self, value: Any, name: str, inside: Mapping[str, Any]) -> str:
        """An object by those of its attributes that can matter."""
        key = (id(value), self.names)
        if key not in self.seen:
            self.seen[key] = f"{name} again"
            if self.names is not None and not dataclasses.is_dataclass(value):
                chosen = [n for n in self.names if n in inside]
            else:
                chosen = sorted(n for n in inside if not n.startswith("__"))
            described = ", ".join(f"{n}={self.value(inside[n])}" for n in chosen)
            self.seen[key] = f"{name}({described})"
        return self.seen[key]

    def function(self, fn: types.FunctionType) -> str:
        key = id(fn)
        if key in self.seen:
            return self.seen[key]
        label = self.seen[key] = f"function {fn.__name__} {len(self.seen)}"
        text, names = _source(fn.__code__, fn.__code__.co_filename)
        outer, self.names = self.names, names
        scope = fn.__globals__
        captured = [f"{name}={self.value(scope[name])}" for name in names if name in scope]
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or ()):
            try:
                captured.append(f"{name}={self.value(cell.cell_contents)}")
            except ValueError:
                captured.append(f"{name} empty")
        captured += [self.value(v) for v in fn.__defaults__ or ()]
        captured += [f"{k}={self.value(v)}" for k, v in (fn.__kwdefaults__ or {}).items()]
        self.parts.append("\n".join((label, text, *captured)))
        self.names = outer
        return label

"""The identity of a kernel's source, for cache keys: no parsing, microseconds once warm."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import types
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tilewright.dtypes import DType
from tilewright.lang.source import source_lines

__all__ = ["constant_text", "fingerprint"]


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
    _, lines = source_lines(code, filename)
    names: dict[str, None] = {}

    def collect(c: types.CodeType) -> None:
        names.update(dict.fromkeys(c.co_names))
        for constant in c.co_consts:
            if isinstance(constant, types.CodeType):
                collect(constant)

    collect(code)
    where = ""
    if code.co_name == "<lambda>":  # several may share a line
        columns = [p[2] for p in code.co_positions() if p[2] is not None]
        where = f"@{min(columns, default=0)}"
    text = hashlib.sha256(("".join(lines) + where).encode()).hexdigest()
    return text, tuple(sorted(names))


class _Collector:
    def __init__(self) -> None:
        self.parts: list[str] = []
        self.seen: dict[int, str] = {}

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
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self.dataclass(value)
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__}"
        name = getattr(value, "__qualname__", None)
        return f"{type(value).__qualname__} {name}" if name else type(value).__qualname__

    def dataclass(self, value: Any) -> str:
        key = id(value)
        if key not in self.seen:
            self.seen[key] = f"{type(value).__qualname__} again"
            fields = ", ".join(
                f"{f.name}={self.value(getattr(value, f.name))}" for f in dataclasses.fields(value)
            )
            methods = ", ".join(
                self.value(m) for m in vars(type(value)).values() if _written_by_hand(m)
            )
            self.seen[key] = f"{type(value).__qualname__}({fields}; {methods})"
        return self.seen[key]

    def function(self, fn: types.FunctionType) -> str:
        key = id(fn)
        if key in self.seen:
            return self.seen[key]
        label = self.seen[key] = f"function {fn.__name__} {len(self.seen)}"
        text, names = _source(fn.__code__, fn.__code__.co_filename)
        captured: list[str] = []
        scope = fn.__globals__
        modules: list[types.ModuleType] = []
        for name in names:
            if name in scope:
                value = scope[name]
                if isinstance(value, types.ModuleType):
                    modules.append(value)
                captured.append(f"{name}={self.value(value)}")
        for module in modules:
            if module.__name__.startswith(("tilewright.lang", "math", "numpy")):
                continue
            inside = vars(module)
            captured += [
                f"{module.__name__}.{n}={self.value(inside[n])}" for n in names if n in inside
            ]
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or ()):
            try:
                captured.append(f"{name}={self.value(cell.cell_contents)}")
            except ValueError:
                captured.append(f"{name} empty")
        captured += [self.value(v) for v in fn.__defaults__ or ()]
        captured += [f"{k}={self.value(v)}" for k, v in (fn.__kwdefaults__ or {}).items()]
        self.parts.append("\n".join((label, text, *captured)))
        return label


def _written_by_hand(member: Any) -> bool:
    """Whether a class attribute is a function with source (dataclasses generate some without)."""
    return isinstance(member, types.FunctionType) and not member.__code__.co_filename.startswith(
        "<str"
    )

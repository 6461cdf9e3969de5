"""The source text of kernel functions: syntax tree, lines, and places for error messages."""

from __future__ import annotations

import ast
import linecache
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any, Final

from tilewright.errors import KernelError
from tilewright.lang.ir import Location
from tilewright.lang.lines import source_lines
from tilewright.lang.liveness import Facts, analyse

__all__ = ["LocatedError", "Source", "located", "source_of"]

FunctionNode = ast.FunctionDef | ast.Lambda


class LocatedError(KernelError):
    """A kernel error whose message already shows the user's line."""


def located(error: KernelError, location: Location) -> LocatedError:
    """``error`` with the user's line and a caret below it."""
    return LocatedError(f"{error}\n{location.caret()}")


@dataclass(frozen=True, eq=False)
class Source:
    """One function's syntax tree with what the parser needs to know about it."""

    filename: str
    node: FunctionNode
    facts: Facts

    def nested(self, node: FunctionNode) -> Source:
        """The source of a function defined inside this one."""
        cached: Source | None = getattr(node, "_source", None)
        if cached is None:
            cached = Source(self.filename, node, analyse(node))
            node._source = cached  # type: ignore[union-attr]
        return cached

    def location(self, node: Any) -> Location:
        """The place of ``node`` in the file (columns count characters, from zero)."""
        cached: Location | None = getattr(node, "_location", None)
        if cached is None:
            line = getattr(node, "lineno", 1)
            text = linecache.getline(self.filename, line).rstrip("\n")
            column = len(text.encode()[: getattr(node, "col_offset", 0)].decode(errors="ignore"))
            cached = Location(self.filename, line, column, text)
            node._location = cached
        return cached


def source_of(fn: Callable[..., Any]) -> Source:
    """The :class:`Source` of a Python function; ``KernelError`` when its text is out of reach."""
    if not isinstance(fn, FunctionType):
        raise KernelError(f"wanted a Python function, got {type(fn).__name__}")
    return _load(fn.__code__, fn.__code__.co_filename)


_PARSING: Final = threading.Lock()


def _parse(text: str) -> ast.Module:
    """CPython before 3.12 counts the depth of a tree for all threads together, and fails."""
    with _PARSING:
        return ast.parse(text)


@lru_cache(maxsize=1024)
def _load(code: CodeType, filename: str) -> Source:
    node: FunctionNode
    if code.co_name == "<lambda>":
        node = _find_lambda(code, filename)
    else:
        first, lines = source_lines(code, filename)
        indented = lines[0][:1].isspace()
        tree = _parse(("if 1:\n" if indented else "") + "".join(lines))
        body: Any = tree.body[0]
        node = body.body[0] if indented else body
        ast.increment_lineno(tree, first - 1 - (1 if indented else 0))
        if isinstance(node, ast.AsyncFunctionDef):
            raise KernelError(f"{code.co_name}: a kernel is a plain function (not async)")
        if not isinstance(node, ast.FunctionDef) or node.name != code.co_name:
            raise KernelError(
                f"{code.co_name}: line {first} of {filename} holds something else now; the file "
                "was changed after it was imported, so start the process again"
            )
    return Source(filename, node, analyse(node))


def _find_lambda(code: CodeType, filename: str) -> ast.Lambda:
    linecache.checkcache(filename)
    text = "".join(linecache.getlines(filename))
    spots = {
        (line, column)
        for line, _, column, _ in code.co_positions()
        if line is not None and column is not None
    }
    best: ast.Lambda | None = None
    best_hits = 0
    if text:
        for node in _lambdas(text):
            inside = {
                (n.lineno, n.col_offset) for n in ast.walk(node.body) if isinstance(n, ast.expr)
            }
            hits = len(spots & inside) if spots & {(node.body.lineno, node.body.col_offset)} else 0
            if hits > best_hits:
                best, best_hits = node, hits
    if best is None:
        raise KernelError(
            f"the source of the lambda at {filename}:{code.co_firstlineno} is not available"
        )
    return best


@lru_cache(maxsize=16)
def _lambdas(text: str) -> tuple[ast.Lambda, ...]:
    return tuple(n for n in ast.walk(_parse(text)) if isinstance(n, ast.Lambda))

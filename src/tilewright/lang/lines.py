"""The source lines of a Python function, from its code object: no parsing."""

from __future__ import annotations

import linecache
from types import CodeType

from tilewright.errors import KernelError

__all__ = ["source_lines"]


def source_lines(code: CodeType, filename: str) -> tuple[int, list[str]]:
    """The definition's first line number and its lines, decorators included.

    The end is the last line that has code, plus what is indented below it: the compiler drops
    dead statements, the syntax tree must not.
    """
    linecache.checkcache(filename)
    everything = linecache.getlines(filename)
    first = code.co_firstlineno
    if not everything or first > len(everything):
        raise KernelError(
            f"the source of {code.co_name!r} ({filename}) is not available: define the kernel in a "
            "file, or from text with KernelFunction.from_source"
        )
    last = _last_line(code)
    if last > len(everything):
        raise KernelError(
            f"{code.co_name}: {filename} is shorter now than when it was imported; the file was "
            "changed, so start the process again"
        )
    indent = _indent(everything[first - 1])
    while last < len(everything):
        line = everything[last]
        if line.strip() and _indent(line) <= indent and line.strip()[0] not in ")]}":
            break
        last += 1
    while not everything[last - 1].strip():
        last -= 1
    return first, everything[first - 1 : last]


def _last_line(code: CodeType) -> int:
    last = code.co_firstlineno
    for _, end, _, _ in code.co_positions():
        if end is not None and end > last:
            last = end
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            last = max(last, _last_line(constant))
    return last


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())

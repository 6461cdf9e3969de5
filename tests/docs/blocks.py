"""Documents as programs: their code blocks, run from top to bottom.

Python blocks of a document share one namespace. A block fenced ``output`` right after one states
what it prints (``...`` stands for anything). Every line of a ``sh`` block is a ``tilewright``
command; they run in their places between the programs, or all together.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tilewright.cli import build

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```\n?", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, its first line's number, the output it promises."""

    language: str
    text: str
    line: int
    output: str | None = None


def blocks_of(text: str) -> list[Block]:
    """Every fenced block, an ``output`` block joined to the one before it."""
    found: list[Block] = []
    end = 0
    for match in _FENCE.finditer(text):
        language, body = match[1], match[2]
        if language == "output":
            last = found.pop()
            assert text[end : match.start()].strip() == "", "an output block follows its program"
            found.append(Block(last.language, last.text, last.line, body))
        else:
            found.append(Block(language, body, text[: match.start()].count("\n") + 2))
        end = match.end()
    return found


def run_document(
    path: Path, folder: Path, *, only: str | None = None, commands: bool = False
) -> int:
    """Run the Python blocks of ``path`` (below the heading ``only``); the number of blocks.

    With ``commands`` those in ``sh`` blocks run too, and count.

    A block becomes a file in ``folder``, so that kernels find their source and tracebacks show it.
    """
    text = path.read_text("utf-8")
    name = f"{path.stem.lower()}_document"
    module = types.ModuleType(name)
    sys.modules[name] = module
    count = 0
    try:
        for block in _below(text, only):
            if commands and block.language == "sh":
                for line in _joined(block.text):
                    _run_command(line)
                count += 1
            if block.language != "python":
                continue
            file = folder / f"{path.stem.lower()}_line_{block.line}.py"
            file.write_text(block.text, "utf-8")
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.text, str(file), "exec"), module.__dict__)
            if block.output is not None:
                _compare(printed.getvalue(), block.output, f"{path.name}, line {block.line}")
            count += 1
    finally:
        del sys.modules[name]
    return count


def run_commands(path: Path) -> int:
    """Run the ``tilewright`` commands in ``sh`` blocks, with no input; how many there were."""
    count = 0
    for line in _commands(path.read_text("utf-8")):
        _run_command(line)
        count += 1
    return count


def _run_command(line: str) -> None:
    words = shlex.split(line, comments=True)
    assert words[0] == "tilewright", line
    with pytest.raises(SystemExit) as end:
        build()(words[1:], prog_name="tilewright")
    assert not end.value.code, line


def _commands(text: str) -> Iterator[str]:
    for block in blocks_of(text):
        if block.language == "sh":
            yield from _joined(block.text)


def _joined(text: str) -> list[str]:
    """Lines, those that end in a backslash with their next."""
    return text.replace("\\\n", " ").splitlines()


def _below(text: str, heading: str | None) -> list[Block]:
    if heading is None:
        return blocks_of(text)
    sections = re.split(r"(?m)^(?=## )", text)
    chosen = [s for s in sections if s.startswith(f"## {heading}\n")]
    assert len(chosen) == 1, f"no section {heading!r}"
    return blocks_of(chosen[0])


def _compare(printed: str, promised: str, where: str) -> None:
    pattern = ".*?".join(re.escape(part) for part in promised.strip().split("..."))
    assert re.fullmatch(pattern, printed.strip(), re.S), (
        f"{where} prints\n{printed}\nand promises\n{promised}"
    )

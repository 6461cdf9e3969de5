"""``tilewright inspect``: what is in a file, and what running it would take."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tilewright.cli.common import gigabytes, table
from tilewright.errors import TilewrightError
from tilewright.formats.gguf import GGUFFile, open_gguf
from tilewright.generate.model import plan_file

__all__ = ["inspect"]


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file.")],
    context: Annotated[
        int | None,
        typer.Option(
            "-c",
            "--context",
            metavar="N",
            min=1,
            help="For the plan.  [default: the model's, up to 4096]",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON object.")] = False,
) -> None:
    """Show a model file's metadata, tensors, types and memory plan; no weight is read."""
    with open_gguf(file) as gguf:
        try:
            plan, problem = plan_file(gguf, context), None
        except TilewrightError as error:
            plan, problem = {}, str(error)
        if as_json:
            print(json.dumps(_report(file, gguf, plan, problem)))
        else:
            _show(file, gguf, plan, problem)


def _types(gguf: GGUFFile) -> dict[str, dict[str, int]]:
    """Tensors and bytes of each type."""
    tensors: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for info in gguf.tensors.values():
        tensors[info.type.name] += 1
        sizes[info.type.name] += info.nbytes
    return {name: {"tensors": tensors[name], "bytes": sizes[name]} for name in tensors}


def _report(file: Path, gguf: GGUFFile, plan: dict[str, int], problem: str | None) -> object:
    return {
        "path": str(file),
        "version": gguf.version,
        "metadata": {key: _plain(value) for key, value in gguf.metadata.items()},
        "tensors": [
            {
                "name": name,
                "type": info.type.name,
                "shape": list(info.shape),
                "bytes": info.nbytes,
                "offset": info.offset,
            }
            for name, info in gguf.tensors.items()
        ],
        "types": _types(gguf),
        "plan": plan,
        "problem": problem,
    }


def _show(file: Path, gguf: GGUFFile, plan: dict[str, int], problem: str | None) -> None:
    parameters = sum(math.prod(info.shape) for info in gguf.tensors.values())
    print(
        f"{file}: GGUF version {gguf.version}, {len(gguf.tensors)} tensors, {parameters:,} values\n"
    )
    print(table([(key, _short(value)) for key, value in gguf.metadata.items()]), end="\n\n")
    if gguf.tensors:
        rows = [
            (name, info.type.name, "x".join(map(str, info.shape)), gigabytes(info.nbytes))
            for name, info in gguf.tensors.items()
        ]
        print(table(rows), end="\n\n")
        types = [(t, v["tensors"], gigabytes(v["bytes"])) for t, v in _types(gguf).items()]
        print(table([("type", "tensors", "size"), *types]), end="\n\n")
    if problem:
        print(f"cannot be run: {problem}")
    else:
        print("memory plan: " + ", ".join(f"{k} {gigabytes(v)}" for k, v in plan.items()))


def _plain(value: Any) -> Any:
    """JSON's view of a metadata value; NaN and infinities, which JSON lacks, as text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: Any) -> str:
    """One line: control characters escaped, long lists and texts cut."""
    if isinstance(value, list | tuple | np.ndarray):
        head = ", ".join(repr(v) if isinstance(v, str) else str(v) for v in value[:5])
        return f"[{head}{', ...' if len(value) > 5 else ''}] ({len(value)})"
    text = repr(value)[1:-1] if isinstance(value, str) else str(value)
    return text if len(text) <= 70 else text[:67] + "..."

"""``tilewright inspect``: what is in a file, and what running it would take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tilewright.cli.common import gigabytes, table
from tilewright.errors import TilewrightError
from tilewright.formats.gguf import open_gguf
from tilewright.generate.model import plan_file

__all__ = ["inspect"]


def inspect(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")],
    context: Annotated[
        int | None, typer.Option("-c", "--context", min=1, help="Context for the memory plan.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON object.")] = False,
) -> None:
    """Show a model file's metadata, tensors, types and memory plan; no weight is read."""
    with open_gguf(file) as gguf:
        tensors = [
            {
                "name": name,
                "type": info.type.name,
                "shape": list(info.shape),
                "bytes": info.nbytes,
                "offset": info.offset,
            }
            for name, info in gguf.tensors.items()
        ]
        types: dict[str, dict[str, int]] = {}
        for t in tensors:
            entry = types.setdefault(str(t["type"]), {"tensors": 0, "bytes": 0})
            entry["tensors"] += 1
            entry["bytes"] += int(t["bytes"])  # type: ignore[call-overload]
        try:
            plan: dict[str, Any] = plan_file(gguf, context)
            problem = None
        except TilewrightError as error:
            plan, problem = {}, str(error)
        report = {
            "path": str(file),
            "version": gguf.version,
            "metadata": {k: _plain(v) for k, v in gguf.metadata.items()},
            "tensors": tensors,
            "types": types,
            "plan": plan,
            "problem": problem,
        }
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False))
        return
    typer.echo(f"{file}: GGUF version {report['version']}\n")
    typer.echo(table([(k, _short(v)) for k, v in report["metadata"].items()]))  # type: ignore[attr-defined]
    typer.echo("")
    rows = [
        (t["name"], t["type"], "x".join(map(str, t["shape"])), gigabytes(t["bytes"]))
        for t in tensors
    ]  # type: ignore[arg-type]
    typer.echo(table(rows))
    typer.echo("")
    typer.echo(table([(k, v["tensors"], gigabytes(v["bytes"])) for k, v in types.items()]))
    typer.echo("")
    if problem:
        typer.echo(f"cannot be run: {problem}")
    else:
        typer.echo("memory plan: " + ", ".join(f"{k} {gigabytes(v)}" for k, v in plan.items()))


def _plain(value: Any) -> Any:
    """JSON's view of a metadata value."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    if isinstance(value, list):
        head = ", ".join(str(v) for v in value[:5])
        return f"[{head}{', ...' if len(value) > 5 else ''}] ({len(value)})"
    text = str(value).replace("\n", "\\n")
    return text if len(text) <= 70 else text[:67] + "..."

"""``tilewright doctor``: what was found on this machine, and whether it works."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from tilewright.cli.common import error_line, table
from tilewright.errors import TilewrightError

__all__ = ["doctor"]


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Check the installation: versions, CPU, kernel cache, the shipped model, measured peaks.

    Status 1 when something is wrong.
    """
    import numpy as np

    from tilewright.config import Settings
    from tilewright.generate.model import load
    from tilewright.targets.cpu.machine import Machine
    from tilewright.targets.cpu.probe import Probe

    settings = Settings.from_environment()
    machine = Machine.detect()
    report: dict[str, Any] = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        **{name: _version(name) for name in ("tilewright", "numpy", "llvmlite", "tokenizers")},
        "cpu": machine.cpu,
        "f32 lanes": machine.lanes,
        "int8 dot product (VNNI)": machine.has_vnni,
        "threads": settings.threads,
        "kernel cache": str(settings.cache_dir) if settings.cache_dir else "off (in memory)",
    }
    problems: list[str] = []
    try:
        model = load(None, max_sequences=1)
        finite = bool(np.isfinite(model.logits([1, 2, 3])).all())
        report["default model"] = "runs" if finite else "gives numbers that are not finite"
        if not finite:
            problems.append("the default model gives numbers that are not finite")
    except (TilewrightError, OSError) as error:
        problems.append(f"the default model does not run: {error_line(error)}")
        report["default model"] = "fails"
    for threads in sorted({1, settings.threads}):
        with Probe(threads) as probe:
            peaks = probe.peaks()
        report[f"peak f32, {threads} threads"] = f"{peaks.fma_gflops:.0f} GFLOP/s"
        report[f"peak int8, {threads} threads"] = f"{2 * peaks.dot4_gmacs:.0f} GOP/s"
        report[f"memory read, {threads} threads"] = f"{peaks.read_gbytes:.1f} GB/s"
    report["problems"] = problems
    if as_json:
        print(json.dumps(report))
    else:
        print(table([(k, v) for k, v in report.items() if k != "problems"]))
        print("no problems found" if not problems else "\n".join(problems))
    if problems:
        raise typer.Exit(1)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"

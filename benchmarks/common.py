"""What the benchmarks share: timing, medians, the machine's description, JSON reports."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Median and extremes of repeated measurements."""

    median: float
    min: float
    max: float
    n: int

    def __str__(self) -> str:
        return f"{self.median:.4g} [{self.min:.4g}..{self.max:.4g}]"


def spread(values: Sequence[float]) -> Spread:
    """Median, min and max of at least one value."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def time_once(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def best_of(work: Callable[[], object], *, at_least_s: float = 0.2, rounds: int = 5) -> Spread:
    """Seconds per call over ``rounds`` rounds, each long enough for the clock.

    The first call is not measured: it compiles, allocates, and warms caches.
    """
    work()
    once = max(time_once(work), 1e-9)
    calls = max(1, int(at_least_s / once))
    rounds_s = [time_once(lambda: [work() for _ in range(calls)]) / calls for _ in range(rounds)]
    return spread(rounds_s)


def peak_rss_bytes(pid: int | None = None) -> int:
    """Highest resident set of a process so far (Linux ``VmHWM``)."""
    return _status_bytes(pid, "VmHWM")


def anonymous_rss_bytes(pid: int | None = None) -> int:
    """Resident memory that is not file pages: what a mapped model does not count towards."""
    return _status_bytes(pid, "RssAnon")


def _status_bytes(pid: int | None, field: str) -> int:
    status = Path(f"/proc/{pid or 'self'}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def machine() -> dict[str, Any]:
    """CPU, cores, load and versions: what a figure needs beside it to be read later."""
    from importlib.metadata import version

    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(
            (part.strip() for part in line.split(":", 1))
            for line in info.read_text().split("\n\n")[0].splitlines()
            if ":" in line
        )
        name = fields.get("model name", platform.machine())
        return f"{name} (family {fields.get('cpu family')}, model {fields.get('model')})"
    return platform.processor() or platform.machine()


def ceilings(threads: int) -> dict[str, float]:
    """The machine's limits, measured now by tilewright's own probe with ``threads`` threads."""
    from tilewright.targets.cpu.probe import Probe

    with Probe(threads) as probe:
        return asdict(probe.peaks())


def write_report(path: str | None, report: dict[str, Any]) -> None:
    """Write a report as JSON, dataclasses included; no path: nothing."""
    if path:
        Path(path).write_text(json.dumps(report, indent=1, default=_jsonable) + "\n")


def _jsonable(value: Any) -> Any:
    if isinstance(value, Spread):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} does not go into a JSON report")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns aligned for reading in a terminal."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "| " + " | ".join(str(c).ljust(w) for c, w in zip(row, widths)) + " |"
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])

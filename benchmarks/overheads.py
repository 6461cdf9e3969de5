"""What is paid around the arithmetic: a step's dispatch, the import, the first token.

    python -m benchmarks.overheads -t 2 -r 9 --json OUT

- an empty step: a launch table of one kernel with next to nothing to do, run on the worker pool;
  the difference that further launches make is the cost of one launch and its barrier;
- ``import tilewright`` in a fresh process, less an interpreter that imports nothing;
- from process start to the first byte of the answer of ``tilewright run``, with a cache that is
  empty (kernels are compiled) and with the cache that this leaves behind.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Spread, best_of, machine, spread, time_once, write_report
from tilewright.lang import Array, program_id
from tilewright.runtime.launch import kernel
from tilewright.runtime.program import Launch, LaunchTable
from tilewright.targets.cpu.pool import Pool
from tilewright.targets.cpu.target import CPUTarget

LAUNCHES = (1, 8, 64)
PROMPT = "Once upon a time"


@kernel
def touch(y: Array):
    """One store for each program."""
    i = program_id(0)
    y[i] = 1.0


def empty_step(threads: int) -> dict[str, Spread]:
    """Seconds of running tables of 1, 8 and 64 trivial launches."""

    from tilewright.lang import program_id
    from tilewright.runtime.launch import kernel

    @kernel
    def touch(y: Array):
        """One store for each program."""
        i = program_id(0)
        y[i] = 1.0

    y = np.zeros(threads, np.float32)
    executable = CPUTarget().compile(touch, touch.signature((y,), {}))
    results = {}
    with Pool(threads) as pool:
        for n in LAUNCHES:
            launches = LaunchTable([Launch(executable, (threads,), (y,))] * n)
            results[f"{n}_launches"] = best_of(partial(launches.run, pool))
    if not y.all():
        raise SystemExit("the kernel did not run")
    return results


def import_seconds(rounds: int) -> dict[str, Spread]:
    """Fresh interpreters that import tilewright, and that import nothing."""
    code = {"import_tilewright": "import tilewright", "bare_interpreter": "pass"}
    for text in code.values():
        run_python(text)  # writes the byte code
    times: dict[str, list[float]] = {name: [] for name in code}
    for _ in range(rounds):
        for name, text in code.items():
            times[name].append(time_once(partial(run_python, text)))
    net = [a - b for a, b in zip(times["import_tilewright"], times["bare_interpreter"])]
    return {name: spread(t) for name, t in times.items()} | {"import_alone": spread(net)}


def run_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def first_token(model: str | None, threads: int, rounds: int) -> dict[str, Spread]:
    """Seconds from starting ``tilewright run`` to its first byte past the prompt."""
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(max(1, rounds // 3)):
        with tempfile.TemporaryDirectory() as cache:
            times["cold"].append(until_first_token(model, threads, cache))
            times["warm"] += [until_first_token(model, threads, cache) for _ in range(3)]
    return {name: spread(t) for name, t in times.items()}


def until_first_token(model: str | None, threads: int, cache: str) -> float:
    command = [sys.executable, "-m", "tilewright", "run", *([model] if model else [])]
    command += ["-p", PROMPT, "-n", "16", "-t", str(threads), "--temp", "0"]
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"TILEWRIGHT_CACHE": cache},
    )
    assert process.stdout is not None
    seen = b""
    while len(seen.strip()) <= len(PROMPT):
        piece = os.read(process.stdout.fileno(), 4096)
        if not piece:
            error = process.communicate()[1].decode()
            raise SystemExit(f"tilewright run ended without an answer: {seen!r}\n{error}")
        seen += piece
    seconds = time.perf_counter() - start
    process.communicate()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a GGUF file; default: the one that ships")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--rounds", type=int, default=9)
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args()
    model = str(options.model) if options.model else None
    report: dict[str, Any] = {
        "machine": machine(),
        "threads": options.threads,
        "empty_step_seconds": empty_step(options.threads),
        "import_seconds": import_seconds(options.rounds),
        "first_token_seconds": first_token(model, options.threads, options.rounds),
    }
    write_report(options.json, report)
    for name, s in report["empty_step_seconds"].items():
        print(
            f"step of {name:<12} {s.median * 1e6:8.2f} us  [{s.min * 1e6:.2f}..{s.max * 1e6:.2f}]"
        )
    for group in ("import_seconds", "first_token_seconds"):
        for name, s in report[group].items():
            print(f"{name:<20} {s.median:8.3f} s   [{s.min:.3f}..{s.max:.3f}]")
    print(f"load average before: {report['machine']['load_average']}")


if __name__ == "__main__":
    main()

"""How long an ONNX model takes to load and to run for the first time, in new processes.

::

    python -m benchmarks.onnx_load MODEL.onnx -r 3 [-t 2] [--json OUT]

*Cold*: no compiled kernel is on disk. *Warm*: all are. The time of a run itself is given beside
that of the first one, which traces, compiles and packs. Importing is not part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile

from benchmarks.common import machine, spread, table, write_report

_CHILD = """
import json, sys, time
import numpy as np
import tilewright.onnx
from tests.reference.onnx_exports import feeds

path, threads = sys.argv[1], int(sys.argv[2])
from tilewright.onnx.registry import operators; operators()
times = [time.perf_counter()]
session = tilewright.onnx.load(path, threads=threads)
inputs = feeds(session)
times.append(time.perf_counter())
for _ in range(3):
    session.run(inputs)
    times.append(time.perf_counter())
print(json.dumps([b - a for a, b in zip(times, times[1:])]))
"""


def measure(path: str, threads: int, cache: str) -> list[float]:
    """Seconds of loading, of the first run, and of two more, in a process of its own."""
    env = {**os.environ, "TILEWRIGHT_CACHE": cache}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, path, str(threads)],
        env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--json")
    args = parser.parse_args()
    report = {"machine": machine()}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("cold", "warm"):
            found = []
            for i in range(args.rounds):
                cache = os.path.join(folder, str(i) if kind == "cold" else "0")
                found.append(measure(args.model, args.threads, cache))
            load, first, _, run = ([one[i] for one in found] for i in range(4))
            both = [a + b for a, b in zip(load, first)]
            names = ("load", "first", "sum", "run")
            report[kind] = {n: spread(v) for n, v in zip(names, (load, first, both, run))}
            rows.append([kind, *(str(spread(v)) for v in (load, first, both, run))])
    print(table(["kernels on disk", "load s", "first run s", "both s", "a later run s"], rows))
    write_report(args.json, report)


if __name__ == "__main__":
    main()

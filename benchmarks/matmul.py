"""float32 matrix products beside NumPy and the multiply-add peak, taking turns in one run.

    python -m benchmarks.matmul --sizes 1024,2048,4096 -t 2 -r 5 --json OUT

The peak is measured before and after every size; the share is of the better of the two, because a
shared machine only ever slows a measurement down. Ours is the dynamic path of tensors, packing both
operands included. NumPy uses the threads its BLAS was built for,
limited to ``-t``.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.common import ceilings, machine, spread, table, write_report

PAUSE_SECONDS = 0.3  # a BLAS's threads spin for a while after a call, on the other's core


def measure(n: int, rounds: int, threads: int, clock: Callable[[], float]) -> dict[str, Any]:
    """GFLOP/s of both on square matrices of size n, and the peak around them."""
    import numpy as np

    import tilewright

    rng = np.random.default_rng(n)
    a, b = (rng.standard_normal((n, n), np.float32) for _ in range(2))
    out = np.empty((n, n), np.float32)
    x, y = tilewright.asarray(a), tilewright.asarray(b)
    contenders: dict[str, Callable[[], Any]] = {
        "tilewright": lambda: (x @ y).numpy(),
        "numpy": lambda: np.matmul(a, b, out=out),
    }
    expected = a[:4].astype(np.float64) @ b
    for name, work in contenders.items():
        error = np.abs(work()[:4] - expected).max() / np.abs(expected).max()
        if error > 1e-5:
            raise SystemExit(f"{name} is wrong at {n}: relative error {error:.1e}")
    time.sleep(PAUSE_SECONDS)
    before = ceilings(threads)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            time.sleep(PAUSE_SECONDS)
            work()
            start = clock()
            work()
            seconds[name].append(clock() - start)
    time.sleep(PAUSE_SECONDS)
    after = ceilings(threads)
    gflops = {name: spread([2e-9 * n**3 / s for s in times]) for name, times in seconds.items()}
    peak = max(before["fma_gflops"], after["fma_gflops"])
    ratio = [theirs / ours for ours, theirs in zip(seconds["tilewright"], seconds["numpy"])]
    return {
        "n": n,
        "gflops": gflops,
        "fma_peak_gflops": peak,
        "share_of_peak": gflops["tilewright"].median / peak,
        "best_share_of_peak": gflops["tilewright"].max / peak,
        "ratio_to_numpy": spread(ratio),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1024,2048,4096")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--rounds", type=int, default=9)
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="one thread and its CPU time: what the code can do when neighbours take the rest",
    )
    options = parser.parse_args()
    if options.cpu_time:
        options.threads = 1
    for variable in ("TILEWRIGHT_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(options.threads)  # both read it when they are first imported

    clock = time.thread_time if options.cpu_time else time.perf_counter
    sizes = [int(n) for n in options.sizes.split(",")]
    results = [measure(n, options.rounds, options.threads, clock) for n in sizes]
    write_report(options.json, {"machine": machine(), "threads": options.threads, "f32": results})
    header = ["n", "tilewright GFLOP/s", "numpy GFLOP/s", "FMA peak", "share of peak", "ratio"]
    rows = [
        [
            str(r["n"]),
            str(r["gflops"]["tilewright"]),
            str(r["gflops"]["numpy"]),
            f"{r['fma_peak_gflops']:.0f}",
            f"{r['share_of_peak']:.0%} (best {r['best_share_of_peak']:.0%})",
            str(r["ratio_to_numpy"]),
        ]
        for r in results
    ]
    print(table(header, rows))


if __name__ == "__main__":
    main()

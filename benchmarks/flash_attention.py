"""Attention beside torch, taking turns in one run: flash and with the whole matrix of scores.

    python -m benchmarks.flash_attention -t 2 -r 7 --json OUT
    python -m benchmarks.flash_attention --cpu-time --shapes 1x12x4096x64

Forward, and forward with backward, of causal f32 attention. The share of peak counts the products
that the causal mask leaves, 4 B H T (T + 1) / 2 D operations forward and 2.5 times as many
backward, against the multiply-add peak measured around them. Extra memory is what a process's
resident set grows by at most during one forward and backward pass, less inputs, results and
gradients; each contender is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import ceilings, machine, peak_rss_bytes, spread, table, write_report

PAUSE_SECONDS = 0.2  # the other's threads spin for a while after a call
CONTENDERS = ("tilewright", "torch", "torch naive")

Shape = tuple[int, int, int, int]
Work = dict[str, Callable[[], object]]


def operands(shape: Shape) -> list[Any]:
    """q, k, v and the output's cotangent, (B, H, T, D)."""
    import numpy as np

    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32) for _ in range(4)]


def tilewright_work(arrays: list[Any]) -> Work:
    """The graph's op through the compiler, as a tensor program runs it."""
    from tilewright.compiler.realize import realize
    from tilewright.graph import data_node
    from tilewright.ops.autodiff import vjp
    from tilewright.ops.flash import flash_attention
    from tilewright.runtime.buffers import from_array

    q, k, v, dout = (data_node(from_array(a)) for a in arrays)

    def forward() -> object:
        return realize(list(flash_attention(q, k, v, causal=True)))

    def both() -> object:
        out, _ = flash_attention(q, k, v, causal=True)
        grads = [g for g in vjp([out], [dout], [q, k, v]) if g is not None]
        return [b.numpy() for b in realize([out, *grads])]

    return {"forward": forward, "forward and backward": both}


def torch_work(arrays: list[Any], naive: bool) -> Work:
    """torch's fused attention, or softmax(q k^T) v with its scores in memory."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    q, k, v, dout = (torch.from_numpy(a) for a in arrays)
    length, head_dim = q.shape[2:]
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1) if naive else None

    def attend() -> Any:
        if hidden is None:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores = (q @ k.transpose(2, 3)) * head_dim**-0.5
        return torch.softmax(scores.masked_fill(hidden, float("-inf")), 3) @ v

    def forward() -> object:
        with torch.no_grad():
            return attend()

    def both() -> object:
        for x in (q, k, v):
            x.requires_grad_()
        out = attend()
        grads = torch.autograd.grad(out, (q, k, v), dout)
        return [x.detach().numpy() for x in (out, *grads)]

    return {"forward": forward, "forward and backward": both}


def make(contender: str, arrays: list[Any]) -> Work:
    if contender == "tilewright":
        return tilewright_work(arrays)
    return torch_work(arrays, contender == "torch naive")


def measure(shape: Shape, rounds: int, threads: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Seconds of each contender on one shape, its share of peak, ratios, and extra memory."""
    import numpy as np

    arrays = operands(shape)
    works = {name: make(name, arrays) for name in CONTENDERS}
    results: dict[str, Any] = {}
    expected: Any = works["torch"]["forward and backward"]()
    for name, work in works.items():
        work["forward"]()
        got: Any = work["forward and backward"]()
        error = max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in zip(got, expected))
        if error > 1e-4:
            raise SystemExit(f"{name} is wrong at {shape}: relative error {error:.1e}")
    peak = ceilings(threads)["fma_gflops"]
    seconds: dict[str, dict[str, list[float]]] = {}
    for kind in ("forward", "forward and backward"):
        seconds[kind] = {name: [] for name in CONTENDERS}
        for i in range(rounds):
            for name in CONTENDERS:
                if name == "torch naive" and i >= max(2, rounds // 3):
                    continue  # slow, and only for orientation
                time.sleep(PAUSE_SECONDS)
                start = clock()
                works[name][kind]()
                seconds[kind][name].append(clock() - start)
    peak = max(peak, ceilings(threads)["fma_gflops"])
    batch, heads, length, head_dim = shape
    operations = 4 * batch * heads * length * (length + 1) / 2 * head_dim
    for kind, times in seconds.items():
        work_of_kind = operations if kind == "forward" else 3.5 * operations
        ours = times["tilewright"]
        results[kind] = {
            "milliseconds": {n: spread([1e3 * s for s in t]) for n, t in times.items()},
            "share_of_peak": {
                n: 1e-9 * work_of_kind / spread(t).median / peak for n, t in times.items()
            },
            "best_share_of_peak": 1e-9 * work_of_kind / min(ours) / peak,
            "ratio_to_torch": spread([b / a for a, b in zip(ours, times["torch"])]),
            "ratio_to_naive": spread(times["torch naive"]).median / spread(ours).median,
        }
    memory = {name: memory_of(name, shape, threads) for name in CONTENDERS}
    return {
        "shape": shape,
        "fma_peak_gflops": peak,
        "extra_mebibytes": memory,
        "extra_memory_of_naive": memory["tilewright"] / memory["torch naive"],
        **results,
    }


def memory_of(contender: str, shape: Shape, threads: int) -> float:
    """Extra memory of one pass in MiB, measured in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.flash_attention", "--memory-of", contender]
    command += ["--shapes", "x".join(map(str, shape)), "-t", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout))


def extra_memory(contender: str, shape: Shape) -> float:
    """Growth of this process's resident set during one pass beyond the results, in MiB."""
    small = make(contender, operands((1, 2, 128, shape[3])))
    small["forward and backward"]()  # threads, libraries, compiled kernels
    arrays = operands(shape)
    work = make(contender, arrays)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = peak_rss_bytes()
    results: Any = work["forward and backward"]()
    grown = peak_rss_bytes() - before
    return (grown - sum(x.nbytes for x in results)) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="1x12x4096x64,16x6x256x64,1x12x1024x128")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--rounds", type=int, default=7)
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--memory-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="one thread and its CPU time: what the code can do when neighbours take the rest",
    )
    options = parser.parse_args()
    if options.cpu_time:
        options.threads = 1
    for variable in ("TILEWRIGHT_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(options.threads)  # read when the libraries are first imported

    shapes = []
    for text in options.shapes.split(","):
        b, h, t, d = (int(n) for n in text.split("x"))
        shapes.append((b, h, t, d))
    if options.memory_of:
        print(json.dumps(extra_memory(options.memory_of, shapes[0])))
        return
    # torch computes its gradients on a thread of its own, so its CPU time is the process's
    clock = time.process_time if options.cpu_time else time.perf_counter
    results = [measure(s, options.rounds, options.threads, clock) for s in shapes]
    write_report(options.json, {"machine": machine(), "threads": options.threads, "f32": results})
    header = ["B x H x T x D", "pass", *(f"{n} ms" for n in CONTENDERS), "share of peak"]
    header += ["torch's time / ours", "naive's", "extra MiB (torch, naive)"]
    rows = []
    for r in results:
        for kind in ("forward", "forward and backward"):
            of = r[kind]
            share = of["share_of_peak"]["tilewright"]
            extra = r["extra_mebibytes"]
            rows.append(
                [
                    "x".join(map(str, r["shape"])),
                    kind,
                    *(str(of["milliseconds"][n]) for n in CONTENDERS),
                    f"{share:.0%} (best {of['best_share_of_peak']:.0%})",
                    str(of["ratio_to_torch"]),
                    f"{of['ratio_to_naive']:.1f}",
                    " ".join(f"{extra[n]:.1f}" for n in CONTENDERS),
                ]
            )
    print(table(header, rows))


if __name__ == "__main__":
    main()

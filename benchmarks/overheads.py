"""What is paid around the arithmetic: a step's dispatch, the import, the first token.

    python -m benchmarks.overheads -t 2 -r 9 --json OUT

- an empty step: a launch table of one kernel with next to nothing to do, run on the worker pool;
  the difference that further launches make is the cost of one launch and its barrier;
- ``import tilewright`` in a fresh process, less an interpreter that imports nothing;
- an ONNX session's run of a model that does next to nothing;
- compiled functions of sizes that change, on one thread by its own processor time: a small training
  step with sizes that are part of the program, with symbols at one size, at two sizes in turn, at a
  new size each time; a step of attention over a cache that has grown by one; what a new size costs
  a program of hundreds of launches before it runs (numbers for its tables, a place for every
  temporary result, which for sizes in one range are the same);
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
from collections.abc import Callable
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


def sizes_seconds(rounds: int) -> dict[str, Spread]:
    """Seconds of calls of compiled functions; run in a process whose pool has one thread."""
    from tilewright import asarray, compile, nn, optim

    rng = np.random.default_rng(0)
    functional = nn.functional

    def times(call: Callable[[int], object], count: int = 400) -> Spread:
        for i in range(8):
            call(i)
        found = []
        for _ in range(rounds):
            start = time.thread_time()
            for i in range(count):
                call(i)
            found.append((time.thread_time() - start) / count)
        return spread(found)

    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(8, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, 1))
    sgd = optim.SGD(model.named_parameters(), lr=1e-3)

    def small(x: Any) -> Any:
        sgd.zero_grad()
        loss = model(x).sum()
        loss.backward()
        sgd.step()
        return loss

    xs = [asarray(rng.random((4 + n, 8), np.float32)) for n in range(60)]
    fixed, many = compile(small), compile(small, dynamic={"x": 0})
    results = {
        "small step, fixed size": times(lambda i: fixed(xs[0])),
        "... with symbols": times(lambda i: many(xs[0])),
        "... two sizes in turn": times(lambda i: many(xs[i % 2])),
    }
    new = []
    for _ in range(rounds):
        many = compile(small, dynamic={"x": 0})
        many(xs[0])
        start = time.thread_time()
        for x in xs[1:]:
            many(x)
        new.append((time.thread_time() - start) / len(xs[1:]))
        assert many.programs <= 3
    results["... a new size each time"] = spread(new)

    cache = asarray(rng.random((1, 8, 512, 64), np.float32))
    q = asarray(rng.random((1, 8, 1, 64), np.float32))
    views = [cache[:, :, :past].realize() for past in range(2, 500)]

    def attend(q: Any, keys: Any) -> Any:
        return functional.softmax(q @ keys.mT / 8.0, axis=-1) @ keys

    def grown(decode: Any) -> float:
        start = time.thread_time()
        for keys in views:
            decode(q, keys)
        return (time.thread_time() - start) / len(views)

    new, again = [], []
    for _ in range(rounds):
        decode = compile(attend, dynamic={"keys": 2})
        decode(q, views[0])
        new.append(grown(decode))
        again.append(grown(decode))
    assert decode.programs <= 4
    results["cache of 2 to 499, sizes new"] = spread(new)
    results["... and met before"] = spread(again)

    gpt = nn.GPT(nn.GPTConfig(65, block_size=128, n_layer=8, n_head=2, n_embd=32, dropout=0.1))
    adamw = optim.AdamW(gpt.named_parameters(), lr=1e-3)

    def large(x: Any, y: Any) -> Any:
        adamw.zero_grad()
        loss = functional.cross_entropy(gpt(x).reshape(-1, 65), y.reshape(-1))
        loss.backward()
        adamw.step()
        return loss

    step = compile(large, dynamic={"x": {0: "b", 1: "t"}, "y": {0: "b", 1: "t"}})
    x, y = (asarray(rng.integers(0, 65, (4, 32))) for _ in range(2))
    step(x, y)
    ((program, *_),) = [
        [entry.program for entry in family.entries] for family in step._families.values()
    ]
    launches = sum(len(table) for table in program.segments if isinstance(table, LaunchTable))
    each = []
    for length in range(33, 128):
        start = time.thread_time()
        assert program.holds_at((4, length))
        program.at_values((4, length))
        each.append(time.thread_time() - start)
    results[f"new size of {launches} launches"] = spread(each)
    return results


def in_one_thread(rounds: int) -> dict[str, Spread]:
    """:func:`sizes_seconds` in a fresh process with one worker."""
    code = f"from benchmarks.overheads import sizes_seconds as f; print(f({rounds}))"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"TILEWRIGHT_THREADS": "1"}
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    results: dict[str, Spread] = eval(found.stdout, {"Spread": Spread})
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


def onnx_runs(threads: int) -> dict[str, Spread]:
    """Seconds of ``Session.run`` of models with one node."""
    from onnx import TensorProto, helper

    import tilewright.onnx

    found = {}
    for op, inputs in (("Identity", ["x"]), ("Add", ["x", "x"])):
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 784]) for n in "xy"]
        graph = helper.make_graph(
            [helper.make_node(op, inputs, ["y"])], "g", *([v] for v in values)
        )
        session = tilewright.onnx.load(helper.make_model(graph), threads=threads)
        feeds = {"x": np.ones((1, 784), np.float32)}
        found[f"an ONNX model of one {op}"] = best_of(partial(session.run, feeds))
    return found


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
        "onnx_seconds": onnx_runs(options.threads),
        "sizes_seconds": in_one_thread(options.rounds),
        "import_seconds": import_seconds(options.rounds),
        "first_token_seconds": first_token(model, options.threads, options.rounds),
    }
    write_report(options.json, report)
    for name, s in report["empty_step_seconds"].items():
        print(
            f"step of {name:<12} {s.median * 1e6:8.2f} us  [{s.min * 1e6:.2f}..{s.max * 1e6:.2f}]"
        )
    for name, s in (report["onnx_seconds"] | report["sizes_seconds"]).items():
        print(f"{name:<32} {s.median * 1e6:8.2f} us  [{s.min * 1e6:.2f}..{s.max * 1e6:.2f}]")
    for group in ("import_seconds", "first_token_seconds"):
        for name, s in report[group].items():
            print(f"{name:<20} {s.median:8.3f} s   [{s.min:.3f}..{s.max:.3f}]")
    print(f"load average before: {report['machine']['load_average']}")


if __name__ == "__main__":
    main()

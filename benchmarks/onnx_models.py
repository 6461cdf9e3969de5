"""ONNX models beside onnxruntime and OpenVINO: the time of one run, in turns.

::

    python -m benchmarks.onnx_models --models FOLDER -t 2 -r 15 [--only vit,resnet50] [--json OUT]
    python -m benchmarks.onnx_models --models FOLDER --cpu-time   # one thread, its processor time

Networks are exported from torch and transformers (random weights, real sizes) into FOLDER; models
with weights come from ../shared/assets/onnx where that is there. Outputs are compared before
anything is timed. ``--precision bf16`` rounds the operands of products to bf16 here, and lets
OpenVINO do the same.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tests.reference.onnx_exports import NETWORKS, export, feeds

from benchmarks.common import Spread, ceilings, machine, spread, table, write_report

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets" / "onnx"
FILES = {
    "mnist-8": "mnist-zoo/mnist-8.onnx",
    "mnist-burn": "mnist-burn/mnist.onnx",
    "squeezenet-fp16": "squeezenet-fp16/SqueezeNet_fp16.onnx",
    "shufflenet-int8": "shufflenet-int8/shufflenet-v2-12-int8.onnx",
    "super-resolution": "super-resolution/super_resolution.onnx",
    "ultraface": "ultraface/version-RFB-320.onnx",
}
SIZES = {"bert": {"batch": 1, "sequence": 128}, "gpt2": {"batch": 1, "sequence": 1, "past": 128}}


def runners(
    path: Path, threads: int, precision: str, sizes: dict[str, int], peers: list[str]
) -> dict[str, tuple[Callable[[], Any], float]]:
    """For each engine a function that runs once, and the seconds that loading took."""
    import tilewright.onnx

    kwargs = {} if precision == "f32" else {"precision": precision}
    begin = time.perf_counter()
    session = tilewright.onnx.load(path, threads=threads, **kwargs)
    inputs = feeds(session, **sizes)
    if "attention_mask" in inputs and "past" in sizes:
        total = sizes["past"] + sizes["sequence"]
        inputs["attention_mask"] = np.ones((sizes["batch"], total), np.int64)
    session.run(inputs)
    made: dict[str, tuple[Callable[[], Any], float]] = {
        "tilewright": (lambda: session.run(inputs), time.perf_counter() - begin)
    }
    if "onnxruntime" in peers:
        import onnxruntime

        begin = time.perf_counter()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        theirs = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        names = [o.name for o in theirs.get_outputs()]
        theirs.run(names, inputs)
        made["onnxruntime"] = (lambda: theirs.run(names, inputs), time.perf_counter() - begin)
    if "openvino" in peers:
        import openvino

        begin = time.perf_counter()
        core = openvino.Core()
        hint = {"f32": "f32", "bf16": "bf16"}[precision]
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
        try:
            compiled = core.compile_model(
                str(path), "CPU", {**settings, "PERFORMANCE_HINT": "LATENCY"}
            )
        except RuntimeError:  # operators of com.microsoft that it does not convert
            return made
        request = compiled.create_infer_request()
        request.infer(inputs)
        made["openvino"] = (lambda: request.infer(inputs), time.perf_counter() - begin)
    return made


def cpu_seconds() -> float:
    """Processor time of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(
    made: dict[str, tuple[Callable[[], Any], float]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds per run of each engine, in turns; short runs are repeated within a round."""
    times: dict[str, list[float]] = {name: [] for name in made}
    repeat = {}
    for name, (run, _) in made.items():
        run()
        begin = time.perf_counter()
        run()
        repeat[name] = max(1, min(2000, int(0.02 / (time.perf_counter() - begin + 1e-9))))
    for _ in range(rounds):
        for name, (run, _) in made.items():
            time.sleep(0.05)  # the last engine's threads may still be looking for work
            run()
            begin = clock()
            for _ in range(repeat[name]):
                run()
            times[name].append((clock() - begin) / repeat[name])
    return times


def agreement(path: Path, threads: int, sizes: dict[str, int]) -> float:
    """The largest difference from onnxruntime, relative to the largest value of the output."""
    import onnxruntime

    import tilewright.onnx

    session = tilewright.onnx.load(path, threads=threads)
    inputs = feeds(session, **sizes)
    if "attention_mask" in inputs and "past" in sizes:
        total = sizes["past"] + sizes["sequence"]
        inputs["attention_mask"] = np.ones((sizes["batch"], total), np.int64)
    theirs = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    want = theirs.run(None, inputs)
    got = list(session.run(inputs).values())
    worst = 0.0
    for a, b in zip(got, want):
        scale = float(np.abs(b.astype(np.float64)).max()) or 1.0
        worst = max(worst, float(np.abs(a.astype(np.float64) - b).max()) / scale)
    return worst


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", required=True, help="folder for the exported networks")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-r", "--rounds", type=int, default=15)
    parser.add_argument("--only", default="")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--peers", default="onnxruntime,openvino")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()
    os.makedirs(args.models, exist_ok=True)
    threads = 1 if args.cpu_time else args.threads
    clock = cpu_seconds if args.cpu_time else time.perf_counter
    wanted = [n for n in NETWORKS if "small" not in n]
    wanted += [n for n, f in FILES.items() if (ASSETS / f).exists()]
    if args.only:
        wanted = args.only.split(",")
    report: dict[str, Any] = {"machine": machine(), "ceilings": ceilings(threads), "models": {}}
    rows = []
    for name in wanted:
        path = ASSETS / FILES[name] if name in FILES else export(name, args.models)
        sizes = SIZES.get(name, {"batch": 1})
        apart = agreement(path, threads, sizes)
        made = runners(path, threads, args.precision, sizes, args.peers.split(","))
        times = measure(made, args.rounds, clock)
        ours = times["tilewright"]
        found: dict[str, Spread] = {e: spread([1e3 * t for t in ts]) for e, ts in times.items()}
        ratios = {
            e: spread([b / a for a, b in zip(ours, ts)])
            for e, ts in times.items()
            if e != "tilewright"
        }
        report["models"][name] = {
            "ms": found, "ratios": ratios, "apart": apart,
            "load_s": {e: seconds for e, (_, seconds) in made.items()},
        }  # fmt: skip
        beside = [
            f"{found[e]} ({ratios[e].median:.2f})" if e in found else ""
            for e in ("onnxruntime", "openvino")
        ]
        loading = f"{made['tilewright'][1]:.2f}"
        rows.append([name, str(found["tilewright"]), *beside, f"{apart:.1e}", loading])
        print("  ".join(rows[-1]), flush=True)
    print()
    print(table(["model", "tilewright ms", "onnxruntime", "openvino", "apart", "load s"], rows))
    write_report(args.json, report)


if __name__ == "__main__":
    main()

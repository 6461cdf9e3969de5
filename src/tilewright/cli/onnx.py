"""``tilewright onnx``: look into ONNX models, run them, check them, time them."""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tilewright.cli.common import gigabytes, guarded, table
from tilewright.cli.onnx_values import (
    dims_of,
    image_steps,
    labels_of,
    random_inputs,
    read_inputs,
    save_outputs,
    summaries,
    top_classes,
)
from tilewright.errors import UnsupportedError

__all__ = ["bench", "commands", "compare", "inspect", "load_model", "run"]

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "-t", "--threads", metavar="N", min=1, help="Worker threads.  [default: one per core]"
    ),
]
Dims = Annotated[
    list[str] | None,
    typer.Option("--dim", metavar="NAME=N", help="A symbolic size.  [default: 1, 0 for a past]"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Everything as one JSON object.")]


def commands() -> typer.Typer:
    """The subcommands as a `typer.Typer`."""
    app = typer.Typer(
        help="Look into ONNX models, run them, check them, time them.", no_args_is_help=True
    )
    from tilewright.cli.onnx_images import detect, transform

    for name, command in (
        ("inspect", inspect), ("run", run), ("test", compare), ("bench", bench),
        ("detect", detect), ("transform", transform),
    ):  # fmt: skip
        app.command(name)(guarded(command))
    return app


def inspect(model: ModelFile, dim: Dims = None, as_json: AsJson = False) -> None:
    """Show inputs, outputs, operators, weights, what a run takes, and all that cannot be run.

    The exit status is 1 when something in the model is not supported.
    """
    from tilewright.formats.onnx import open_model
    from tilewright.onnx.check import problems
    from tilewright.onnx.estimate import estimate, weight_bytes

    read = open_model(model)
    found = problems(read)
    need = estimate(read, dims_of(dim))
    tensors, values, size = weight_bytes(read)
    ops = Counter(
        f"{n.domain}.{n.op}" if n.domain else n.op for g in read.graphs() for n in g.nodes
    )
    report = {
        "path": str(model),
        "ir_version": read.ir_version,
        "producer": read.producer,
        "opsets": {d or "ai.onnx": v for d, v in read.opsets.items()},
        "metadata": dict(read.metadata),
        "inputs": [_value_info(v) for v in read.graph.inputs],
        "outputs": [_value_info(v) for v in read.graph.outputs],
        "functions": [f"{d}.{n}" if d else n for d, n in read.functions],
        "ops": dict(sorted(ops.items(), key=lambda kv: (-kv[1], kv[0]))),
        "weights": {"tensors": tensors, "values": values, "bytes": size},
        "estimate": asdict(need),
        "problems": [asdict(p) for p in found],
    }
    if as_json:
        print(json.dumps(report))
    else:
        _show(report)
    if found:
        raise typer.Exit(1)


def load_model(model: Path, threads: int | None) -> Any:
    """A session; of what cannot be run the operators alone, for one line."""
    from tilewright.formats.onnx import open_model
    from tilewright.onnx.check import problems
    from tilewright.onnx.session import Session

    read = open_model(model)
    found = Counter(p.op for p in problems(read))
    if found:
        ops = ", ".join(f"{op} ({n})" if n > 1 else op for op, n in found.most_common())
        raise UnsupportedError(
            f"{model} cannot be run: {ops} not supported; `tilewright onnx inspect` says where"
        )
    return Session(read, threads)


def _value_info(info: Any) -> dict[str, Any]:
    shape = None if info.shape is None else list(info.shape)
    return {"name": info.name, "kind": info.kind, "type": info.elements, "shape": shape}


def _show(report: dict[str, Any]) -> None:
    opsets = ", ".join(f"{d} {v}" for d, v in report["opsets"].items())
    print(f"{report['path']}: ONNX IR version {report['ir_version']}, operator sets {opsets}")
    if report["producer"]:
        print(f"made by {report['producer']}")
    weights, need = report["weights"], report["estimate"]
    nodes = sum(report["ops"].values())
    print(
        f"{nodes} nodes, {weights['tensors']} weight tensors, {weights['values']:,} values, "
        f"{gigabytes(weights['bytes'])}\n"
    )
    rows: list[tuple[Any, ...]] = [("", "name", "type", "shape")]
    for what in ("inputs", "outputs"):
        for v in report[what]:
            shape = "?" if v["shape"] is None else ", ".join(_size(n) for n in v["shape"])
            kind = v["type"] if v["kind"] == "tensor" else f"{v['kind']} {v['type']}".strip()
            rows.append((what.removesuffix("s"), v["name"], kind, f"[{shape}]"))
    print(table(rows), end="\n\n")
    operations = need["by_op"]
    rows = [("operator", "nodes", "operations")]
    for op, n in report["ops"].items():
        rows.append((op, str(n), _count(operations[op]) if op in operations else ""))
    print(table(rows), end="\n\n")
    if report["functions"]:
        print(f"functions: {', '.join(report['functions'])}\n")
    dims = ", ".join(f"{k} = {v}" for k, v in need["dims"].items())
    print(
        f"a run{' with ' + dims if dims else ''}: {_count(need['operations'])} operations, "
        f"weights {gigabytes(weights['bytes'])}, values between nodes at most "
        f"{gigabytes(need['activation_bytes'])}"
        + (f" (not counting {need['uncounted']} nodes)" if need["uncounted"] else "")
    )
    if report["problems"]:
        rows = [("node", "operator", "domain", "opset", "why")]
        for p in report["problems"]:
            rows.append((p["node"], p["op"], p["domain"] or "ai.onnx", p["opset"], p["reason"]))
        print(f"\ncannot be run: {len(report['problems'])} nodes are not supported\n{table(rows)}")


def _size(n: int | str | None) -> str:
    return "?" if n is None else str(n)


def _count(n: float) -> str:
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= scale:
            return f"{n / scale:.2f} {unit}"
    return str(int(n))


def run(
    model: ModelFile,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "-i",
            "--input",
            metavar="NAME=FILE",
            help=".npy, .pb (a TensorProto), an image, or numbers such as [[1, 2]].",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each output as NAME.npy.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Show the N likeliest classes.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names of classes, one a line.")
    ] = None,
    preprocess: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="preprocessor_config.json or timm's config.json.  [default: beside the model]",
        ),
    ] = None,
    normalize: Annotated[
        str | None, typer.Option(help="Of images: none, half, imagenet, clip.")
    ] = None,
    mean: Annotated[str | None, typer.Option(metavar="A,B,C", help="Of images.")] = None,
    std: Annotated[str | None, typer.Option(metavar="A,B,C", help="Of images.")] = None,
    scale: Annotated[
        float | None, typer.Option(help="Of pixels, which are 0 to 255.  [default: 1/255]")
    ] = None,
    bgr: Annotated[bool, typer.Option("--bgr", help="Images with blue first.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also where time goes, by kernel.")
    ] = False,
    threads: Threads = None,
) -> None:
    """Run a model once on inputs from files."""
    session = load_model(model, threads)
    steps = image_steps(model, preprocess, normalize, mean, std, scale, bgr)
    feeds = read_inputs(session, inputs or [], steps)
    start = time.perf_counter()
    results = session.run(feeds)
    print(f"first run, with compilation: {time.perf_counter() - start:.3f} s", file=sys.stderr)
    if top is None:
        print(summaries(results))
    else:
        scores = next((v for v in results.values() if isinstance(v, np.ndarray)), None)
        if scores is None or scores.dtype == object or not scores.size:
            raise UnsupportedError("--top wants an output of scores; the model has none")
        print(top_classes(scores, top, labels_of(model, labels)))
    if output is not None:
        for path in save_outputs(results, output):
            print(f"wrote {path}", file=sys.stderr)
    if profile:
        _show_profile(session.profile(feeds))


def _show_profile(times: list[tuple[str, float]]) -> None:
    total = sum(seconds for _, seconds in times)
    by_name: dict[str, list[float]] = {}
    for name, seconds in times:
        by_name.setdefault(name, []).append(seconds)
    rows: list[tuple[Any, ...]] = [("kernel", "launches", "ms", "share")]
    for name, launches in sorted(by_name.items(), key=lambda kv: -sum(kv[1])):
        spent = sum(launches)
        rows.append((name, len(launches), f"{spent * 1e3:.3f}", f"{spent / total:.1%}"))
    print(f"\n{table(rows)}\nall {total * 1e3:.3f} ms, launches one by one")


def compare(
    model: ModelFile,
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TESTDIR]",
            help="Holds test_data_set_* folders, or is one.  [default: the model's folder]",
        ),
    ] = None,
    rtol: Annotated[float, typer.Option(min=0.0, help="Relative tolerance.")] = 1e-3,
    atol: Annotated[float, typer.Option(min=0.0, help="Absolute tolerance.")] = 1e-5,
    threads: Threads = None,
) -> None:
    """Run a model's stored inputs and compare with its stored outputs.

    An output may differ by atol + rtol * |expected|. The exit status is 1 when one differs more.
    """
    from tilewright.onnx.vectors import difference, find_vectors, named, read_vector

    session = load_model(model, threads)
    failed = 0
    paths = find_vectors(model.parent if data is None else data)
    for path in paths:
        vector = read_vector(path, session.inputs, session.outputs)
        results = list(session.run(named(session.inputs, vector.inputs)).values())
        largest, wrong = 0.0, []
        for spec, got, want in zip(session.outputs, results, vector.outputs):
            gap, text = difference(got, want, rtol, atol)
            largest = max(largest, gap)
            if text:
                wrong.append(f"  {spec.name}: {text}")
        failed += bool(wrong)
        print(f"{path.name}: " + ("FAILED" if wrong else f"ok, largest difference {largest:.3g}"))
        for line in wrong:
            print(line)
    print(f"{len(paths) - failed} of {len(paths)} passed")
    if failed:
        raise typer.Exit(1)


def bench(
    model: ModelFile,
    dim: Dims = None,
    against: Annotated[
        str | None, typer.Option("--vs", metavar="PEER", help="Also time onnxruntime, in turns.")
    ] = None,
    repetitions: Annotated[
        int, typer.Option("-r", "--repetitions", metavar="N", min=1, help="Rounds.")
    ] = 7,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Time runs on random inputs: medians of rounds of 0.2 s, the peer and we in turns."""
    if against not in (None, "onnxruntime"):
        raise UnsupportedError(f"--vs knows onnxruntime, got {against!r}")
    start = time.perf_counter()
    session = load_model(model, threads)
    loaded = time.perf_counter() - start
    feeds, dims = random_inputs(session, dims_of(dim))
    start = time.perf_counter()
    ours = session.run(feeds)
    first = time.perf_counter() - start
    works: dict[str, Callable[[], Any]] = {"tilewright": lambda: session.run(feeds)}
    gap = None
    if against:
        peer = _onnxruntime(model, session.pool.threads)
        theirs = peer.run(None, feeds)
        works["onnxruntime"] = lambda: peer.run(None, feeds)
        gap = max((_gap(a, b) for a, b in zip(ours.values(), theirs)), default=0.0)
    rounds = _rounds(works, repetitions)
    report = {
        "model": str(model),
        "threads": session.pool.threads,
        "dims": dims,
        "load_s": loaded,
        "first_run_s": first,
        "seconds": {
            name: {"median": statistics.median(s), "min": min(s), "max": max(s), "rounds": len(s)}
            for name, s in rounds.items()
        },
        "largest_relative_difference": gap,
    }
    if as_json:
        print(json.dumps(report))
        return
    rows: list[tuple[str, ...]] = [("", "median", "min", "max")]
    for name, s in rounds.items():
        rows.append((name, *(_time(v) for v in (statistics.median(s), min(s), max(s)))))
    print(table(rows))
    if against:
        ratio = statistics.median(rounds[against]) / statistics.median(rounds["tilewright"])
        print(f"{ratio:.2f} times as fast; results differ by at most {gap:.2g} of the largest")
    shown = ", ".join(f"{k} = {v}" for k, v in dims.items())
    print(
        f"{report['threads']} threads{', ' + shown if shown else ''}; "
        f"loaded in {loaded:.2f} s, first run {first:.2f} s"
    )


def _onnxruntime(model: Path, threads: int) -> Any:
    """A session of the peer; looked up by name, since nothing of tilewright depends on it."""
    try:
        peer = importlib.import_module("onnxruntime")
    except ImportError:
        raise UnsupportedError("onnxruntime is not installed: pip install onnxruntime") from None
    options = peer.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return peer.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has an exception class for each status code
        raise UnsupportedError(f"onnxruntime cannot load it: {error}") from None


def _rounds(works: dict[str, Callable[[], Any]], count: int) -> dict[str, list[float]]:
    """Seconds per call of each piece of work in every round."""
    calls = {}
    for name, work in works.items():
        work()
        start = time.perf_counter()
        work()
        calls[name] = max(1, int(0.2 / max(time.perf_counter() - start, 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(count):
        for name, work in works.items():
            time.sleep(0.02)  # the other's threads stop spinning
            work()
            start = time.perf_counter()
            for _ in range(calls[name]):
                work()
            found[name].append((time.perf_counter() - start) / calls[name])
    return found


def _gap(got: Any, want: Any) -> float:
    """The largest difference as a share of the largest value."""
    if not isinstance(got, np.ndarray) or got.dtype.kind not in "fiub" or not got.size:
        return 0.0
    a, b = got.astype(np.float64), np.asarray(want).astype(np.float64)
    return float(np.nanmax(np.abs(a - b)) / max(float(np.nanmax(np.abs(b))), 1e-30))


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"

"""Convolutions and pooling beside PyTorch and the multiply-add peak, taking turns in one run.

    python -m benchmarks.conv -t 2 -r 5 --json OUT [--only mnist] [--cpu-time]

Forward, input gradient and weight gradient of each shape, without the allocation of results on our
side (a compiled program has none); PyTorch is called the way its autograd does. ``--cpu-time``
measures one thread by the CPU time it used, which neighbours on a shared machine do not add to.
The share of peak is of the better of two measurements of the peak, before and after.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.common import ceilings, machine, spread, table, write_report
from tilewright import kernel
from tilewright.lang import Array, Const, fma, full, i64

PAUSE_SECONDS = 0.05  # PyTorch's threads spin for a while after a call


@dataclass(frozen=True)
class Case:
    """One convolution of square planes."""

    name: str
    batch: int
    channels: int
    size: int
    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1


CASES = (
    Case("mnist conv1", 64, 1, 28, 32, 3),
    Case("mnist conv2", 64, 32, 26, 64, 3),
    Case("mnist conv1 same", 64, 1, 28, 32, 5, 1, 2),
    Case("mnist conv2 same", 64, 32, 14, 64, 5, 1, 2),
    Case("resnet stem", 8, 3, 224, 64, 7, 2, 3),
    Case("resnet 64 3x3", 8, 64, 56, 64, 3, 1, 1),
    Case("resnet 128 3x3", 8, 128, 28, 128, 3, 1, 1),
    Case("resnet 256 3x3", 8, 256, 14, 256, 3, 1, 1),
    Case("resnet 512 3x3", 8, 512, 7, 512, 3, 1, 1),
    Case("resnet 64-256 1x1", 8, 64, 56, 256, 1),
    Case("resnet 256-64 1x1", 8, 256, 56, 64, 1),
    Case("resnet 1024-256 1x1", 8, 1024, 14, 256, 1),
    Case("resnet 3x3 stride 2", 8, 128, 56, 128, 3, 2, 1),
    Case("depthwise 3x3", 8, 144, 56, 144, 3, 1, 1, 144),
    Case("depthwise 3x3 stride 2", 8, 96, 112, 96, 3, 2, 1, 96),
)

POOLS = (("mnist pool 2x2", (64, 64, 24, 24), 2, 2, 0), ("resnet pool", (8, 64, 112, 112), 3, 2, 1))


@kernel
def chains(y: Array, steps: i64, MT: Const, NT: Const):
    """Independent multiply-adds in registers, as many as a tile of a product has."""
    acc = full((MT, NT), 1.0)
    for _ in range(steps):
        acc = fma(acc, 0.5, acc)
    y[0:MT, 0:NT] = acc


def bound(node: Any, *arrays: Any) -> tuple[Callable[[], None], Any]:
    """A node's kernel calls on these arrays, ready to run, and the (first) result's buffer."""
    from tilewright.ops import table as ops
    from tilewright.runtime.buffers import empty, from_array

    op = node.inputs[0] if node.op == "part" else node
    entry = ops.get(op.op)
    assert entry.calls is not None
    if entry.infer_parts is not None:
        outs = [empty(d, s) for s, d in entry.infer_parts(op.inputs, op.attrs)]
        args: list[Any] = [op, [from_array(a) for a in arrays], outs]
    else:
        outs = [empty(node.dtype, node.shape)]
        args = [op, [from_array(a) for a in arrays], outs[0]]
    if entry.workspace is not None:
        args.append([empty(d, s) for d, s in entry.workspace(op)])
    calls = entry.calls(*args)

    def run() -> None:
        for call in calls:
            call.kernel[call.grid](*call.args, **call.consts)

    return run, outs


def conv_work(case: Case) -> dict[str, tuple[int, Callable[[], Any], Callable[[], Any], Any]]:
    """For each of the three ops: operations, ours, PyTorch's, and a check of the two."""
    import numpy as np
    import torch

    from tilewright.dtypes import f32
    from tilewright.graph import input_node
    from tilewright.ops.conv import conv, conv_input_gradient, conv_weight_gradient

    rng = np.random.default_rng(0)
    c, o, g, k, n = case.channels, case.outputs, case.groups, case.kernel, case.size
    x = rng.standard_normal((case.batch, c, n, n), np.float32)
    w = rng.standard_normal((o, c // g, k, k), np.float32)
    leaf = lambda a: input_node("x", a.shape, f32)  # noqa: E731
    forward = conv(leaf(x), leaf(w), case.stride, case.padding, 1, g)
    y = rng.standard_normal(forward.shape, np.float32)
    attrs = {a: forward.attrs[a] for a in ("strides", "padding", "dilation", "groups")}
    nodes = {
        "forward": (forward, x, w),
        "input gradient": (
            conv_input_gradient(leaf(y), leaf(w), x.shape[2:], **attrs),
            y,
            w,
        ),
        "weight gradient": (
            conv_weight_gradient(leaf(x), leaf(y), w.shape[2:], **attrs),
            x,
            y,
        ),
    }
    tx, tw, ty = map(torch.from_numpy, (x, w, y))

    def backward(*wanted: bool) -> Any:
        return torch.ops.aten.convolution_backward(
            ty,
            tx,
            tw,
            None,
            [case.stride] * 2,
            [case.padding] * 2,
            [1, 1],
            False,
            [0, 0],
            g,
            list(wanted),
        )

    theirs: dict[str, Callable[[], Any]] = {
        "forward": lambda: torch.conv2d(tx, tw, None, case.stride, case.padding, 1, g),
        "input gradient": lambda: backward(True, False, False)[0],
        "weight gradient": lambda: backward(False, True, False)[1],
    }
    flops = 2 * y.size * (c // g) * k * k
    out = {}
    for name, (node, *arrays) in nodes.items():
        ours, result = bound(node, *arrays)
        out[name] = (flops, ours, theirs[name], result)
    return out


def pool_work(shape: tuple[int, ...], kernel: int, stride: int, padding: int) -> dict[str, Any]:
    """Max pooling and its gradient, as :func:`conv_work`."""
    import numpy as np
    import torch

    from tilewright.dtypes import f32, i32
    from tilewright.graph import input_node
    from tilewright.ops.pool import max_pool, max_pool_gradient

    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, np.float32)
    values, _ = max_pool(input_node("x", shape, f32), kernel, stride, padding)
    ours, outs = bound(values, x)
    ours()
    grad = rng.standard_normal(outs[0].shape, np.float32)
    places = outs[1].numpy()
    node = max_pool_gradient(
        input_node("g", grad.shape, f32), input_node("p", grad.shape, i32), shape[2:]
    )
    back, dx = bound(node, grad, places)
    tx, tg = torch.from_numpy(x), torch.from_numpy(grad)
    index = torch.from_numpy(places.astype(np.int64))
    window = [[kernel] * 2, [stride] * 2, [padding] * 2, [1, 1], False]

    def theirs() -> Any:
        return torch.ops.aten.max_pool2d_with_indices(tx, *window)[0]

    def their_back() -> Any:
        return torch.ops.aten.max_pool2d_with_indices_backward(tg, tx, *window, index)

    return {"forward": (0, ours, theirs, outs), "input gradient": (0, back, their_back, dx)}


def measure(
    name: str, work: dict[str, Any], rounds: int, peak: float, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """Seconds of both for each op of ``work``."""
    import numpy as np

    found = []
    for op, (flops, ours, theirs, result) in work.items():
        ours()
        expected = theirs().numpy()
        scale = np.abs(expected).max()
        error = np.abs(result[0].numpy() - expected).max() / scale
        if not error < 2e-4:
            raise SystemExit(f"{name}, {op}: differs from PyTorch by {error:.1e}")
        seconds: dict[str, list[float]] = {"tilewright": [], "torch": []}
        for _ in range(rounds):
            for who, call in (("tilewright", ours), ("torch", theirs)):
                time.sleep(PAUSE_SECONDS)
                call()
                once = _seconds(call, 1, clock)
                seconds[who].append(_seconds(call, max(1, int(0.02 / max(once, 1e-6))), clock))
        best = min(seconds["tilewright"])
        found.append(
            {
                "case": name,
                "op": op,
                "flops": flops,
                "seconds": {who: spread(times) for who, times in seconds.items()},
                "gflops": flops / best / 1e9,
                "share_of_peak": flops / best / 1e9 / peak,
                "ratio_to_torch": min(seconds["torch"]) / best,
            }
        )
    return found


def peak_gflops(threads: int, clock: Callable[[], float] | None) -> float:
    """The multiply-add ceiling by the wall clock, or of one thread by its CPU time."""
    if clock is None:
        return ceilings(threads)["fma_gflops"]
    import numpy as np

    steps = 1 << 20
    out = np.empty((8, 32), np.float32)

    def work() -> None:
        chains[1](out, steps, MT=8, NT=32)

    work()
    return max(2 * out.size * steps / _seconds(work, 1, clock) / 1e9 for _ in range(9))


def _seconds(call: Callable[[], Any], times: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(times):
        call()
    return (clock() - start) / times


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--cpu-time", action="store_true", help="one thread and its CPU time")
    options = parser.parse_args()
    if options.cpu_time:
        options.threads = 1
    os.environ["TILEWRIGHT_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    clock = time.thread_time if options.cpu_time else time.perf_counter
    cpu = clock if options.cpu_time else None
    before = peak_gflops(options.threads, cpu)
    results: list[dict[str, Any]] = []
    for case in CASES:
        if options.only in case.name:
            results += measure(case.name, conv_work(case), options.rounds, before, clock)
            results[-1]["sizes"] = asdict(case)
    for name, *sizes in POOLS:
        if options.only in name:
            results += measure(name, pool_work(*sizes), options.rounds, before, clock)  # type: ignore[arg-type]
    peak = max(before, peak_gflops(options.threads, cpu))
    for r in results:
        r["share_of_peak"] = r["gflops"] / peak
    write_report(
        options.json,
        {
            "machine": machine(),
            "threads": options.threads,
            "clock": "cpu" if options.cpu_time else "wall",
            "fma_peak_gflops": peak,
            "results": results,
        },
    )
    header = ["case", "op", "tilewright ms", "GFLOP/s", "share of peak", "torch ms", "torch / ours"]
    rows = [
        [
            r["case"],
            r["op"],
            f"{r['seconds']['tilewright'].min * 1e3:.3f}",
            f"{r['gflops']:.0f}" if r["flops"] else "-",
            f"{r['share_of_peak']:.0%}" if r["flops"] else "-",
            f"{r['seconds']['torch'].min * 1e3:.3f}",
            f"{r['ratio_to_torch']:.2f}",
        ]
        for r in results
    ]
    print(table(header, rows))


if __name__ == "__main__":
    main()

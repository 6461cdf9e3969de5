"""The matrix products of a GPT's training step beside PyTorch and the multiply-add peak.

    python -m benchmarks.gemm_training -r 7 --json OUT

The model is 6 x 384 with 4,096 tokens a step: forward products (x W), gradients of inputs (g W^T)
and of weights (x^T g), and attention-sized stacks. Everything runs on one thread and is judged by
that thread's CPU time, packing included: on a shared machine it is what the code can do when
neighbours take the rest. The peak is measured before and after each product by the same clock; bf16
is measured against twice the f32 peak. torch is given the same views, transposed ones included.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.common import machine, spread, table, write_report

TOKENS, WIDTH, VOCABULARY = 4096, 384, 65


@dataclass(frozen=True)
class Product:
    """``a (m, k) @ b (k, n)``; a turned operand is the transpose of a row-major array."""

    name: str
    m: int
    k: int
    n: int
    a_turned: bool = False
    b_turned: bool = False
    batch: int = 0

    @property
    def gflop(self) -> float:
        return 2e-9 * max(self.batch, 1) * self.m * self.k * self.n


def products() -> list[Product]:
    found = []
    layers = [("qkv", 3 * WIDTH, WIDTH), ("proj", WIDTH, WIDTH)]
    layers += [("up", 4 * WIDTH, WIDTH), ("down", WIDTH, 4 * WIDTH), ("head", VOCABULARY, WIDTH)]
    for name, n, k in layers:
        found += [
            Product(f"{name}: x W", TOKENS, k, n),
            Product(f"{name}: g W^T", TOKENS, n, k, b_turned=True),
            Product(f"{name}: x^T g", k, TOKENS, n, a_turned=True),
        ]
    return [
        *found,
        Product("stack: q k^T", 256, 64, 256, b_turned=True, batch=96),
        Product("stack: p v", 256, 256, 64, batch=96),
        Product("mlp: x W", 128, 784, 256),
        Product("mlp: x^T g", 784, 128, 256, a_turned=True),
    ]


def peak_gflops() -> float:
    """f32 multiply-adds of one thread by its CPU time."""
    from tilewright.targets.cpu.probe import Probe

    with Probe(1, clock=time.thread_time) as probe:
        return probe.fma_gflops()


def operands(product: Product) -> tuple[Any, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    lead = (product.batch,) if product.batch else ()

    def array(rows: int, columns: int, turned: bool) -> Any:
        shape = (*lead, columns, rows) if turned else (*lead, rows, columns)
        x = rng.standard_normal(shape, np.float32)
        return np.swapaxes(x, -1, -2) if turned else x

    a = array(product.m, product.k, product.a_turned)
    return a, array(product.k, product.n, product.b_turned)


def ours(a: Any, b: Any, kind: str) -> tuple[Callable[[], None], Any]:
    """The compiled product and its output: kind ``f32``, ``bf16``, or ``mixed`` (f32 to bf16)."""
    from tilewright.dtypes import bf16, f32
    from tilewright.graph import data_node
    from tilewright.ops import table as ops
    from tilewright.ops.gemm import bmm
    from tilewright.runtime.buffers import empty, from_array
    from tilewright.runtime.launch import default_pool, default_target
    from tilewright.runtime.program import Launch, LaunchTable

    leaves = [data_node(_as(x, kind, bf16, from_array)) for x in (a, b)]
    node = bmm(*leaves, compute=None if kind == "f32" else bf16, out_dtype=f32)
    entry = ops.get("bmm")
    assert entry.calls is not None
    assert entry.workspace is not None
    out = empty(f32, node.shape)
    spare = [empty(dtype, shape) for dtype, shape in entry.workspace(node)]
    calls = entry.calls(node, [leaf.value for leaf in leaves], out, spare)
    target = default_target()
    launches = [
        Launch(target.compile(c.kernel, c.kernel.signature(c.args, c.consts)), c.grid, c.args)
        for c in calls
    ]
    program, pool = LaunchTable(launches), default_pool()
    return lambda: program.run(pool), out.numpy()


def _as(x: Any, kind: str, bf16: Any, from_array: Any) -> Any:
    import numpy as np

    from tilewright.dtypes import from_float32

    if kind != "bf16":
        return from_array(x)
    bits = np.empty_like(x, np.uint16)  # keeps the order of the axes
    bits[...] = from_float32(x)
    return from_array(bits, bf16)


def theirs(a: Any, b: Any, kind: str) -> Callable[[], object]:
    import torch

    left, right = torch.from_numpy(a), torch.from_numpy(b)
    if kind == "bf16":
        left, right = left.bfloat16(), right.bfloat16()
    out = torch.matmul(left, right)
    return lambda: torch.matmul(left, right, out=out)


def measure(product: Product, rounds: int) -> dict[str, Any]:
    """CPU seconds of every contender, taking turns, and the peak around them."""
    import numpy as np

    a, b = operands(product)
    expected = a[..., :4, :].astype(np.float64) @ b
    contenders: dict[str, Callable[[], object]] = {}
    for kind, tolerance in (("f32", 1e-5), ("bf16", 2e-2), ("mixed", 2e-2)):
        work, out = ours(a, b, kind)
        work()
        error = np.abs(out[..., :4, :] - expected).max() / np.abs(expected).max()
        if error > tolerance:
            raise SystemExit(f"{product.name} in {kind} is wrong: relative error {error:.1e}")
        contenders[f"tilewright {kind}"] = work
    for kind in ("f32", "bf16"):
        contenders[f"torch {kind}"] = theirs(a, b, kind)
    for work in contenders.values():
        work()
    before = peak_gflops()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    repeats = max(1, int(0.5 / product.gflop))
    for _ in range(rounds):
        for name, work in contenders.items():
            start = time.thread_time()
            for _ in range(repeats):
                work()
            seconds[name].append((time.thread_time() - start) / repeats)
    peak = max(before, peak_gflops())
    share = {
        name: spread([product.gflop / s / (peak if "f32" in name else 2 * peak) for s in times])
        for name, times in seconds.items()
    }

    def ratio(mine: str, other: str) -> Any:
        return spread([b / a for a, b in zip(seconds[mine], seconds[other])])

    return {
        "name": product.name,
        "shape": [product.batch, product.m, product.k, product.n],
        "fma_peak_gflops": peak,
        "seconds": {name: spread(times) for name, times in seconds.items()},
        "share_of_peak": share,
        "torch_over_tilewright_f32": ratio("tilewright f32", "torch f32"),
        "torch_over_tilewright_bf16": ratio("tilewright bf16", "torch bf16"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-r", "--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="products whose name contains this")
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args()
    for variable in ("TILEWRIGHT_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"  # read when the libraries are first imported
    import torch

    torch.set_num_threads(1)
    chosen = [p for p in products() if options.only in p.name]
    results = [measure(p, options.rounds) for p in chosen]
    report = {"machine": machine(), "torch": torch.__version__, "products": results}
    write_report(options.json, report)
    names = list(results[0]["share_of_peak"]) if results else []
    header = ["product", "shape", *(f"{n}, of peak" for n in names), "f32 x", "bf16 x"]
    rows = []
    for r in results:
        share = [f"{r['share_of_peak'][n].median:.0%}" for n in names]
        ratios = [f"{r[f'torch_over_tilewright_{k}'].median:.2f}" for k in ("f32", "bf16")]
        rows.append([r["name"], "x".join(map(str, r["shape"])), *share, *ratios])
    print(table(header, rows))


if __name__ == "__main__":
    main()

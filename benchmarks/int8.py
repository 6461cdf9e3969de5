"""Integer networks and weight-only products beside onnxruntime, one thread, processor time.

    python -m benchmarks.int8 [--assets ../shared/assets] [--json FILE] [--only NAME ...]

Networks: shufflenet (when the assets are there), ResNet-18, MobileNet and a digits network of
random weights (:mod:`benchmarks.int8_models`), in operator and in QDQ form; MatMulNBits of one and
of many rows. Both engines run in turns in one process; the best of several rounds of process time
counts. The outputs are compared: the share of equal elements and the largest difference.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TILEWRIGHT_THREADS", "1")

from benchmarks.common import machine, table, write_report
from benchmarks.int8_models import NETS, quantised

SHUFFLENET = "onnx/shufflenet-int8/shufflenet-v2-12-int8.onnx"


def cpu_ms(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Best milliseconds of processor time per call of both, in turns."""
    best = [float("inf")] * 2
    calls = [1, 1]
    for i, run in enumerate((ours, theirs)):
        run()
        start = time.process_time()
        run()
        calls[i] = max(1, int(0.05 / max(time.process_time() - start, 1e-6)))
    for _ in range(rounds):
        for i, run in enumerate((ours, theirs)):
            start = time.process_time()
            for _ in range(calls[i]):
                run()
            best[i] = min(best[i], (time.process_time() - start) / calls[i])
    return best[0] * 1e3, best[1] * 1e3


def session(model: bytes) -> Any:
    """onnxruntime's, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options)


def compare(name: str, model: bytes, feeds: dict[str, np.ndarray], rounds: int) -> dict[str, Any]:
    """One model in both engines."""
    import tilewright.onnx

    mine, peer = tilewright.onnx.load(model, threads=1), session(model)
    (got,) = mine.run(feeds).values()
    (wanted,) = peer.run(None, feeds)
    a, b = cpu_ms(lambda: mine.run(feeds), lambda: peer.run(None, feeds), rounds)
    return {
        "name": name,
        "tilewright_ms": a,
        "onnxruntime_ms": b,
        "equal": float((got == wanted).mean()),
        "difference": float(np.abs(got.astype(np.float64) - wanted).max() / np.abs(wanted).max()),
    }


def nbits_model(m: int, k: int, n: int, bits: int, block: int, level: int) -> Any:
    """MatMulNBits with random weights."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {
        "b": rng.integers(0, 256, (n, k // block, block * bits // 8), dtype=np.uint8),
        "s": rng.uniform(0.01, 0.05, (n, k // block)).astype(np.float32),
    }
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=k, N=n, bits=bits,
        block_size=block, accuracy_level=level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [m, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [m, n])],
        [numpy_helper.from_array(v, name) for name, v in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def cases(assets: Path, folder: Path) -> list[tuple[str, Callable[[], tuple[bytes, Any]]]]:
    """(name, function that makes the model and its inputs)."""
    rng = np.random.default_rng(2)
    found: list[tuple[str, Callable[[], tuple[bytes, Any]]]] = []

    def image(size: int, channels: int) -> np.ndarray:
        return rng.standard_normal((1, channels, size, size)).astype(np.float32)

    if (assets / SHUFFLENET).exists():
        model = (assets / SHUFFLENET).read_bytes()
        found.append(("shufflenet", lambda: (model, {"input": image(224, 3)})))
    for net in NETS:
        for form in ("QOperator", "QDQ"):

            def make(net: str = net, form: str = form) -> tuple[bytes, Any]:
                size = (28, 1) if net == "digits" else (224, 3)
                return quantised(net, form, folder).read_bytes(), {"x": image(*size)}

            found.append((f"{net} {form}", make))
    for m, bits, level in ((1, 4, 0), (1, 4, 4), (1, 8, 4), (64, 4, 0), (64, 4, 4)):

        def product(m: int = m, bits: int = bits, level: int = level) -> tuple[bytes, Any]:
            x = rng.standard_normal((m, 4096)).astype(np.float32)
            return nbits_model(m, 4096, 4096, bits, 32, level).SerializeToString(), {"x": x}

        found.append((f"{bits}-bit 4096 x 4096, {m} rows, level {level}", product))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--assets", type=Path, default=Path("../shared/assets"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, make in cases(args.assets, Path(folder)):
            if args.only and not any(part in name for part in args.only):
                continue
            model, feeds = make()
            rows.append(compare(name, model, feeds, args.rounds))
    print(
        table(
            ("model", "tilewright ms", "onnxruntime ms", "ratio", "equal", "largest difference"),
            [
                (
                    r["name"], f"{r['tilewright_ms']:.3f}", f"{r['onnxruntime_ms']:.3f}",
                    f"{r['onnxruntime_ms'] / r['tilewright_ms']:.2f}", f"{100 * r['equal']:.2f} %",
                    f"{r['difference']:.1e}",
                )
                for r in rows
            ],
        )
    )  # fmt: skip
    write_report(args.json, {"machine": machine(), "results": rows})


if __name__ == "__main__":
    main()

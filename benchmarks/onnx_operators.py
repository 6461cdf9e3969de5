"""Single ONNX operators of neural networks beside onnxruntime.

::

    python -m benchmarks.onnx_operators [--only REGEX] [--seconds S] [--json OUT]

One thread each; processor time of the process, the best of many runs, both engines in one process
and on the same arrays. What is measured is a session's run: feeds in, arrays out.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import machine, table, write_report

MICROSOFT = "com.microsoft"
Arrays = dict[str, np.ndarray]


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    """Numbers to compute with."""
    made = np.random.default_rng(sum(shape)).standard_normal(shape) * scale
    return made.astype(np.float32)


def single(op: str, feeds: Arrays, constants: Arrays, outputs: int, **settings: Any) -> Any:
    """A model of one node."""
    from onnx import ValueInfoProto, helper, numpy_helper

    domain, opset = settings.pop("domain", ""), settings.pop("opset", 17)
    order = settings.pop("inputs", [*feeds, *constants])
    names = [f"y{i}" for i in range(outputs)]
    values = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), [None] * v.ndim)
        for k, v in feeds.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(op, order, names, domain=domain, **settings)],
        "g",
        values,
        [ValueInfoProto(name=n) for n in names],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def recurrent(op: str, gates: int, t: int, b: int, i: int, h: int) -> tuple[Any, ...]:
    """An LSTM or GRU with constant weights."""
    weights = {
        "w": normal(1, gates * h, i, scale=0.1), "r": normal(1, gates * h, h, scale=0.1),
        "b": normal(1, 2 * gates * h, scale=0.1),
    }  # fmt: skip
    more = {"linear_before_reset": 1} if op == "GRU" else {}
    return op, {"x": normal(t, b, i)}, weights, 1, {"hidden_size": h, "opset": 14, **more}


def grouped(new: int, before: int) -> tuple[Any, ...]:
    """Grouped-query attention of 32 heads of 64 over 8 heads of keys."""
    turns = np.arange(2048)[:, None] / 10.0 ** (np.arange(32) / 32)
    feeds = {
        "q": normal(1, new, 2048), "k": normal(1, new, 512), "v": normal(1, new, 512),
        "pk": normal(1, 8, before, 64), "pv": normal(1, 8, before, 64),
        "last": np.array([before + new - 1], np.int32), "total": np.array(before + new, np.int32),
        "cos": np.cos(turns).astype(np.float32), "sin": np.sin(turns).astype(np.float32),
    }  # fmt: skip
    settings = {"domain": MICROSOFT, "num_heads": 32, "kv_num_heads": 8, "do_rotary": 1}
    return "GroupQueryAttention", feeds, {}, 3, settings


def boxes(count: int, classes: int, power: int) -> tuple[Any, ...]:
    """Boxes of a twentieth of the image, scores that are mostly low for a high power."""
    rng = np.random.default_rng(0)
    places = rng.random((1, count, 4)).astype(np.float32)
    places[..., 2:] = places[..., :2] + 0.05
    scores = (rng.random((1, classes, count)) ** power).astype(np.float32)
    limits = {
        "most": np.array([100]), "iou": np.array([0.5], np.float32),
        "score": np.array([0.25], np.float32),
    }  # fmt: skip
    return "NonMaxSuppression", {"boxes": places, "scores": scores}, limits, 1, {}


def cases() -> dict[str, tuple[Any, ...]]:
    """By name: operator, feeds, constants, number of outputs, settings."""
    image, tokens = normal(1, 64, 112, 112), normal(1, 384, 768)
    channels = {k: np.abs(normal(64)) for k in ("s", "b", "m", "v")}
    width = {"g": normal(768), "b": normal(768)}
    double = {"s": np.array([1, 1, 2, 2], np.float32)}
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    heads = {n: normal(1, 12, 384, 64) for n in ("q", "k", "v")}
    return {
        "LSTM 100 x 1 x 256": recurrent("LSTM", 4, 100, 1, 256, 256),
        "LSTM 50 x 16 x 256": recurrent("LSTM", 4, 50, 16, 256, 256),
        "LSTM 100 x 1 x 1024": recurrent("LSTM", 4, 100, 1, 512, 1024),
        "GRU 100 x 1 x 256": recurrent("GRU", 3, 100, 1, 256, 256),
        "MaxPool 3/2": ("MaxPool", {"x": image}, {}, 1, window),
        "AveragePool 3/2": ("AveragePool", {"x": image}, {}, 1, window),
        "GlobalAveragePool": ("GlobalAveragePool", {"x": normal(1, 2048, 7, 7)}, {}, 1, {}),
        "BatchNormalization": ("BatchNormalization", {"x": image}, channels, 1, {"opset": 15}),
        "InstanceNormalization": (
            "InstanceNormalization", {"x": image}, {k: channels[k] for k in "sb"}, 1, {},
        ),
        "GroupNormalization": (
            "GroupNormalization", {"x": image}, {k: channels[k] for k in "sb"}, 1,
            {"opset": 21, "num_groups": 8},
        ),
        "LayerNormalization": ("LayerNormalization", {"x": tokens}, width, 1, {}),
        "SkipLayerNormalization": (
            "SkipLayerNormalization", {"x": tokens, "skip": tokens}, width, 1,
            {"domain": MICROSOFT},
        ),
        "LRN": ("LRN", {"x": normal(1, 96, 55, 55)}, {}, 1, {"size": 5}),
        "Resize nearest": (
            "Resize", {"x": normal(1, 128, 40, 40)}, double, 1,
            {"inputs": ["x", "", "s"], "coordinate_transformation_mode": "asymmetric",
             "nearest_mode": "floor"},
        ),
        "Resize linear": (
            "Resize", {"x": normal(1, 64, 64, 64)}, double, 1,
            {"inputs": ["x", "", "s"], "mode": "linear"},
        ),
        "ConvTranspose 4/2": (
            "ConvTranspose", {"x": normal(1, 128, 32, 32)}, {"w": normal(128, 64, 4, 4)}, 1,
            {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        ),
        "GridSample": (
            "GridSample", {"x": normal(1, 32, 64, 64), "g": normal(1, 64, 64, 2)}, {}, 1, {},
        ),
        "NonMaxSuppression, 1 class": boxes(8400, 1, 1),
        "NonMaxSuppression, 80 classes": boxes(2000, 80, 8),
        "DFT 64 x 1024": ("DFT", {"x": normal(64, 1024, 1)}, {}, 1, {"onesided": 1}),
        "STFT 400/160 of 16000": (
            "STFT", {"x": normal(1, 16000, 1)}, {"step": np.array(160), "w": normal(400)}, 1, {},
        ),
        "Attention, BERT base": (
            "Attention", {"x": tokens}, {"w": normal(768, 2304, scale=0.05), "b": normal(2304)}, 1,
            {"domain": MICROSOFT, "num_heads": 12},
        ),
        "Attention, causal": ("Attention", heads, {}, 1, {"opset": 23, "is_causal": 1}),
        "GroupQueryAttention, prompt 512": grouped(512, 0),
        "GroupQueryAttention, token 512": grouped(1, 511),
    }  # fmt: skip


def best(run: Callable[[], object], seconds: float) -> float:
    """Milliseconds of processor time."""
    run()
    run()
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end or len(times) < 5:
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times) * 1e3


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose names match")
    parser.add_argument("--seconds", type=float, default=1.0, help="per case and engine")
    parser.add_argument("--json", help="write the figures there")
    options = parser.parse_args()
    import onnxruntime

    import tilewright.onnx

    rows, report = [], {}
    for name, (op, feeds, constants, outputs, settings) in cases().items():
        if not re.search(options.only, name):
            continue
        model = single(op, feeds, constants, outputs, **settings)
        ours = tilewright.onnx.load(model, threads=1)
        chosen = onnxruntime.SessionOptions()
        chosen.intra_op_num_threads = 1
        theirs = onnxruntime.InferenceSession(
            model.SerializeToString(), chosen, providers=["CPUExecutionProvider"]
        )
        a = best(lambda s=ours, f=feeds: s.run(f), options.seconds)  # type: ignore[misc]
        b = best(lambda s=theirs, f=feeds: s.run(None, f), options.seconds)  # type: ignore[misc]
        report[name] = {"tilewright_ms": a, "onnxruntime_ms": b}
        rows.append([name, f"{a:.3f}", f"{b:.3f}", f"{b / a:.2f}"])
    print(table(["one thread", "tilewright ms", "onnxruntime ms", "ratio"], rows))
    write_report(options.json, {"machine": machine(), "operators": report})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

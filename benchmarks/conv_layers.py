"""The convolutions of ResNet-50 and MobileNetV2 at rest, layer by layer, five ways.

    python -m benchmarks.conv_layers [--net resnet50,mobilenet] [--only 3x3] [-r 5] [--json OUT]

One image, one thread, weights that do not change; processor time, the best of several rounds in
which all take turns (neighbours on a shared machine do not add to it). The ways are

- ours: ``conv_blocked`` and ``depthwise_blocked`` on blocked images by packed weights, what a
  session runs (``--bf16``: with bf16 operands);
- naive: the definition, a loop over channels and taps for a row of outputs, in twenty lines of the
  kernel language below. It is what one writes first, and reads x once per output channel;
- im2col: windows copied to a matrix, then one matrix product. The copy writes every pixel as often
  as the kernel has taps, which costs memory and time that the product cannot win back;
- onnxruntime: a model of one Conv node (it lays the image out anew, before and after);
- torch: ``torch.nn.functional.conv2d``.

The share of the peak is that of ours: multiply-adds times two over the multiply-add peak of one
thread, measured in the same run. Totals weigh each layer by how often the network has it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import machine, table, write_report
from benchmarks.conv import peak_gflops
from tilewright import kernel
from tilewright.lang import Array, Const, f32, fma, program_id, zeros

Layer = tuple[int, int, int, int, int, int]  # channels, size, outputs, kernel, stride, groups


@kernel
def naive_conv(x: Array, w: Array, y: Array, STRIDE: Const, PAD: Const, GROUPS: Const, N: Const):
    """y (O, OH, OW) from x (C, H, W) and w (O, C / GROUPS, K, K): grid (OH, O)."""
    h, o = program_id(0), program_id(1)
    first = o // (w.shape[0] // GROUPS) * w.shape[1]
    for at in range(0, y.shape[2], N):
        acc = zeros((N,), f32)
        for c in range(w.shape[1]):
            for kh in range(w.shape[2]):
                for kw in range(w.shape[3]):
                    side = at * STRIDE + kw - PAD
                    row = h * STRIDE + kh - PAD
                    seen = x[first + c, row, side : side + N * STRIDE : STRIDE]
                    acc = fma(w[o, c, kh, kw], seen, acc)
        y[o, h, at : at + N] = acc


def resnet50() -> Counter[Layer]:
    """ResNet-50's convolutions (He et al. 2015, stride in the 3 x 3) and how often each comes."""
    found: Counter[Layer] = Counter({(3, 224, 64, 7, 2, 1): 1})
    channels, size = 64, 56
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(blocks):
            step = stride if i == 0 else 1
            found[channels, size, width, 1, 1, 1] += 1
            found[width, size, width, 3, step, 1] += 1
            if i == 0:
                found[channels, size, 4 * width, 1, step, 1] += 1
            size, channels = size // step, 4 * width
            found[width, size, channels, 1, 1, 1] += 1
    return found


def mobilenet() -> Counter[Layer]:
    """MobileNetV2's convolutions (Sandler et al. 2018)."""
    found: Counter[Layer] = Counter({(3, 224, 32, 3, 2, 1): 1})
    channels, size = 32, 112
    for widen, width, blocks, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):  # fmt: skip
        for i in range(blocks):
            step, hidden = stride if i == 0 else 1, channels * widen
            if widen > 1:
                found[channels, size, hidden, 1, 1, 1] += 1
            found[hidden, size, hidden, 3, step, hidden] += 1
            size, channels = size // step, width
            found[hidden, size, channels, 1, 1, 1] += 1
    found[channels, size, 1280, 1, 1, 1] += 1
    return found


NETS = {"resnet50": resnet50, "mobilenet": mobilenet}


def name_of(layer: Layer) -> str:
    """How a layer is called in the table."""
    c, size, o, k, stride, groups = layer
    kind = f"{k}x{k}" if groups == 1 else f"depthwise {k}x{k}"
    return f"{kind}{f' stride {stride}' if stride > 1 else ''} {c}-{o} at {size}"


def runners(layer: Layer, bf16: bool) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """For each way, what runs the layer once, and what then gives the result (O, OH, OW)."""
    import onnxruntime
    import torch
    from onnx import TensorProto, helper, numpy_helper

    from tilewright.compiler.realize import realize
    from tilewright.dtypes import bf16 as half
    from tilewright.dtypes import f32 as single
    from tilewright.graph import Node, data_node
    from tilewright.ops import gemm, table, views
    from tilewright.ops.blocked import block, unblock
    from tilewright.ops.conv_blocked import conv_blocked, depthwise_blocked
    from tilewright.ops.windows import im2col
    from tilewright.runtime.buffers import empty

    c, size, o, k, stride, groups = layer
    pad = k // 2
    out = (size + 2 * pad - k) // stride + 1
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, c, size, size), np.float32)
    w = rng.standard_normal((o, c // groups, k, k), np.float32) / np.float32(c**0.5)

    def placed(array: np.ndarray) -> Node:
        memory = empty(single, array.shape)
        memory.numpy()[...] = array
        return data_node(memory)

    def called(node: Node) -> tuple[Callable[[], None], Any]:
        """A node's kernels, its inputs computed before."""
        realize([i for i in node.inputs if i.value is None])
        entry, result = table.get(node.op), empty(node.dtype, node.shape)
        assert entry.calls is not None
        work = [] if entry.workspace is None else [empty(d, s) for d, s in entry.workspace(node)]
        args = ([i.value for i in node.inputs], result, *([work] if entry.workspace else []))
        calls = entry.calls(node, *args)

        def run() -> None:
            for call in calls:
                call.kernel[call.grid](*call.args, **call.consts)

        return run, result

    window = (stride, stride), ((pad, pad), (pad, pad)), (1, 1)
    image = placed(x if c < 16 else block(x))
    if groups > 1:
        node = depthwise_blocked(image, placed(w), *window)
    else:
        node = conv_blocked(image, placed(w), *window, 1, half if bf16 else None)
    ours, blocked = called(node)
    made: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "ours": (ours, lambda: unblock(blocked.numpy(), (1, o, out, out))[0])
    }

    plain, weights = placed(x), placed(w)
    naive = empty(single, (o, out, out))
    arrays = (plain.value.view((c, size, size)), weights.value, naive)
    consts = {"STRIDE": stride, "PAD": pad, "GROUPS": groups, "N": 64 if out > 32 else 16}
    made["naive"] = (lambda: naive_conv[out, o](*arrays, **consts), naive.numpy)
    if groups == 1:
        matrix = views.reshape(weights, (o, c * k * k))
        held: list[Any] = []

        def product() -> None:
            fresh = views.copy(im2col(data_node(plain.value), (k, k), stride, pad))
            held[:] = realize([gemm.bmm(matrix, fresh)])

        made["im2col"] = (product, lambda: held[0].numpy().reshape(o, out, out))

    conv = helper.make_node(
        "Conv", ["x", "w"], ["y"], pads=[pad] * 4, strides=[stride] * 2, group=groups
    )
    graph = helper.make_graph(
        [conv],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, o, out, out))],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = min(model.ir_version, 10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    made["onnxruntime"] = (
        lambda: session.run(None, {"x": x}),
        lambda: session.run(None, {"x": x})[0][0],
    )
    tx, tw = torch.from_numpy(x), torch.from_numpy(w)

    def torch_conv() -> Any:
        with torch.inference_mode():
            return torch.nn.functional.conv2d(tx, tw, None, stride, pad, 1, groups)

    made["torch"] = (torch_conv, lambda: torch_conv()[0].numpy())
    return made


def measure(layer: Layer, rounds: int, bf16: bool) -> dict[str, float]:
    """Seconds of each way, which first have to agree."""
    made = runners(layer, bf16)
    want = made["torch"][1]()
    for way, (run, result) in made.items():
        run()
        apart = np.abs(result() - want).max() / np.abs(want).max()
        if apart > (0.02 if bf16 and way == "ours" else 1e-4):
            raise SystemExit(f"{name_of(layer)}: {way} is {apart:.1e} apart from torch")
    best = dict.fromkeys(made, float("inf"))
    repeat = dict.fromkeys(made, 1)
    for _ in range(rounds):
        for way, (run, _) in made.items():
            run()
            begin = time.thread_time()
            for _ in range(repeat[way]):
                run()
            once = (time.thread_time() - begin) / repeat[way]
            best[way] = min(best[way], once)
            repeat[way] = max(1, min(50, int(0.005 / max(once, 1e-6))))
    return best


def main() -> None:
    """Read the command line and run."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", default="resnet50,mobilenet")
    parser.add_argument("--only", default="", help="layers whose name contains this")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--bf16", action="store_true", help="ours with bf16 operands")
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args()
    os.environ["TILEWRIGHT_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    peak = peak_gflops(1, time.thread_time)
    report: dict[str, Any] = {"machine": machine(), "fma_peak_gflops": peak, "layers": []}
    ways = ("ours", "naive", "im2col", "onnxruntime", "torch")
    for net in options.net.split(","):
        rows, totals, work = [], dict.fromkeys(ways, 0.0), 0.0
        for layer, times in NETS[net]().items():
            if options.only not in name_of(layer):
                continue
            seconds = measure(layer, options.rounds, options.bf16)
            c, size, o, k, stride, groups = layer
            flops = 2 * (size // stride) ** 2 * o * (c // groups) * k * k
            work += times * flops
            for way in ways:
                totals[way] += times * seconds.get(way, 0.0)
            share = flops / seconds["ours"] / 1e9 / peak
            us = [f"{seconds[way] * 1e6:.0f}" if way in seconds else "" for way in ways]
            rows.append([name_of(layer), str(times), *us, f"{share:.0%}"])
            report["layers"].append(
                {"net": net, "layer": layer, "times": times, "seconds": seconds, "share": share}
            )
        sums = [f"{totals[way] * 1e6:.0f}" for way in ways]
        share = work / max(totals["ours"], 1e-12) / 1e9 / peak
        rows.append([f"{net}, all", "", *sums, f"{share:.0%}"])
        print(table(["layer, us", "times", *ways, "ours of peak"], rows), flush=True)
        print()
    print(f"multiply-add peak of one thread: {peak:.0f} GFLOP/s")
    write_report(options.json, report)


if __name__ == "__main__":
    main()

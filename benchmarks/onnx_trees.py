"""Tree ensembles of ai.onnx.ml beside onnxruntime: one thread, its processor time.

::

    python -m benchmarks.onnx_trees [--rows 1,100,10000] [--json OUT]

Full binary trees with random features and thresholds. Outputs are compared before anything is
timed; times are the best of several, in turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, helper

import tilewright.onnx
from benchmarks.common import machine, table, write_report

FEATURES = 30
ENSEMBLES = [(100, 6, 1), (500, 8, 1), (100, 10, 10)]  # trees, depth, classes (1: a regressor)


def ensemble(trees: int, depth: int, classes: int) -> ModelProto:
    """A model of full trees."""
    rng = np.random.default_rng(0)
    count, inner = 2 ** (depth + 1) - 1, 2**depth - 1
    place = np.arange(count)
    nodes = {
        "treeids": np.repeat(np.arange(trees), count),
        "nodeids": np.tile(place, trees),
        "featureids": rng.integers(0, FEATURES, count * trees),
        "values": rng.standard_normal(count * trees).astype(np.float32),
        "truenodeids": np.tile(np.where(place < inner, 2 * place + 1, 0), trees),
        "falsenodeids": np.tile(np.where(place < inner, 2 * place + 2, 0), trees),
    }
    attrs: dict[str, Any] = {f"nodes_{k}": v.tolist() for k, v in nodes.items()}
    attrs["nodes_modes"] = (["BRANCH_LEQ"] * inner + ["LEAF"] * (count - inner)) * trees
    leaves = trees * (count - inner)
    votes = {
        "treeids": np.repeat(np.arange(trees), (count - inner) * classes),
        "nodeids": np.tile(np.repeat(place[inner:], classes), trees),
        "ids": np.tile(np.arange(classes), leaves),
        "weights": rng.random(leaves * classes).astype(np.float32),
    }
    kind = "target" if classes == 1 else "class"
    attrs |= {f"{kind}_{k}": v.tolist() for k, v in votes.items()}
    op, outputs = "TreeEnsembleRegressor", ["y"]
    if classes == 1:
        attrs["n_targets"] = 1
    else:
        op, outputs = "TreeEnsembleClassifier", ["label", "y"]
        attrs["classlabels_int64s"] = list(range(classes))
    node = helper.make_node(op, ["x"], outputs, domain="ai.onnx.ml", **attrs)
    inputs = [helper.make_tensor_value_info("x", 1, ["n", FEATURES])]
    values = [helper.make_empty_tensor_value_info(o) for o in outputs]
    graph = helper.make_graph([node], "trees", inputs, values)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def processor_seconds(work: Callable[[], object]) -> float:
    """Best of several calls."""
    work()
    start = time.process_time()
    work()
    calls = max(1, int(0.02 / max(time.process_time() - start, 1e-6)))
    best = float("inf")
    for _ in range(7):
        start = time.process_time()
        for _ in range(calls):
            work()
        best = min(best, (time.process_time() - start) / calls)
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="1,100,10000", help="batch sizes")
    parser.add_argument("--json", help="write a report")
    options = parser.parse_args()
    results = []
    for trees, depth, classes in ENSEMBLES:
        model = ensemble(trees, depth, classes)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        theirs = onnxruntime.InferenceSession(model.SerializeToString(), settings)
        ours = tilewright.onnx.load(model, threads=1)
        for rows in map(int, options.rows.split(",")):
            x = np.random.default_rng(1).standard_normal((rows, FEATURES)).astype(np.float32)
            feeds = {"x": x}
            want = theirs.run(["y"], feeds)[0]
            np.testing.assert_allclose(ours.run(feeds)["y"], want, rtol=1e-4, atol=1e-5)
            a = processor_seconds(partial(ours.run, feeds))
            b = processor_seconds(partial(theirs.run, None, feeds))
            results.append(
                {"trees": trees, "depth": depth, "classes": classes, "rows": rows,
                 "tilewright_us": a * 1e6, "onnxruntime_us": b * 1e6}
            )  # fmt: skip
    heads = ["trees", "depth", "classes", "rows", "tilewright us", "onnxruntime us", "ratio"]
    print(table(heads, [
        [str(r["trees"]), str(r["depth"]), str(r["classes"]), str(r["rows"]),
         f"{r['tilewright_us']:.0f}", f"{r['onnxruntime_us']:.0f}",
         f"{r['onnxruntime_us'] / r['tilewright_us']:.2f}"]
        for r in results
    ]))  # fmt: skip
    if options.json:
        write_report(options.json, {"machine": machine(), "results": results})


if __name__ == "__main__":
    main()

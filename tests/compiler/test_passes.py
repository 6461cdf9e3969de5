"""Each pass keeps the meaning of the graph; fused and unfused programs give the same bits."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.compiler import CompileOptions, compile_graph, run_passes
from tilewright.compiler.memory import plan_memory
from tilewright.compiler.merge import merge_matmuls
from tilewright.dtypes import f32, i32
from tilewright.graph import Dim, Graph, Node, input_node, upper_bound, weight_node
from tilewright.ops import table
from tilewright.ops.elementwise import add, gelu, mul, relu, scale, silu
from tilewright.ops.movement import take_rows
from tilewright.ops.norm import layer_norm, rms_norm
from tilewright.ops.table import evaluate, make
from tilewright.ops.weights import FileWeight

TOKENS = Dim("tokens", 40)


def weight(name: str, n: int, k: int, seed: int) -> Node:
    values = np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)
    source = FileWeight(
        name, (n, k), "F32", lambda a, b: values[a:b].view(np.uint8), lambda: values
    )
    return weight_node(name, (n, k), f32, source)


def vector(name: str, n: int, seed: int) -> Node:
    values = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    return weight_node(name, (n,), f32, values)


def mlp(width: int, hidden: int) -> Graph:
    """Norm, gated MLP, residual, layer norm: something of everything the passes look for."""
    x = input_node("x", (TOKENS, width), f32)
    h = rms_norm(x, vector("w1", width, 1), 1e-5)
    gate = make("matmul", h, weight("gate", hidden, width, 2))
    up = make("matmul", h, weight("up", hidden, width, 3))
    y = make("matmul", mul(silu(gate), up), weight("down", width, hidden, 4))
    x = add(x, add(y, vector("bias", width, 5)))
    z = layer_norm(scale(x, 0.5), vector("w2", width, 6), vector("b2", width, 7), 1e-6)
    out = make("matmul", z, weight("out", 48, width, 8))
    return Graph({"y": gelu(out), "stream": x})


def run(graph: Graph, feeds: dict[str, np.ndarray], dims: dict[str, int], fuse: bool) -> dict:
    program = compile_graph(graph, CompileOptions(threads=2, fuse=fuse))
    for name, array in feeds.items():
        program.inputs[name].numpy()[: array.shape[0]] = array
    program.run(dims)
    rows = dims["tokens"]
    return {name: b.numpy()[:rows].copy() for name, b in program.outputs.items()}


@pytest.mark.parametrize("width", [64, 96, 200])
@pytest.mark.parametrize("tokens", [1, 2, 9, 40])
def test_programs_agree_with_the_references_fused_or_not(width: int, tokens: int) -> None:
    graph = mlp(width, 160)
    x = np.random.default_rng(0).standard_normal((tokens, width)).astype(np.float32)
    want = evaluate(graph, {"x": x})
    fused = run(graph, {"x": x}, {"tokens": tokens}, fuse=True)
    plain = run(graph, {"x": x}, {"tokens": tokens}, fuse=False)
    for name in want:
        np.testing.assert_array_equal(fused[name], plain[name])
        assert np.abs(fused[name] - want[name]).max() < 2e-6 * np.abs(want[name]).max()


def test_zero_tokens_run() -> None:
    x = np.zeros((0, 64), np.float32)
    assert run(mlp(64, 64), {"x": x}, {"tokens": 0}, fuse=True)["y"].shape == (0, 48)


def test_fusion_leaves_few_launches() -> None:
    graph = run_passes(mlp(64, 128))
    ops = [n.op for n in graph.nodes() if not n.is_leaf and n.op not in ("result", "columns")]
    # norm; gate+up; silu*mul; down+bias+residual; scale+norm; out+gelu
    assert ops == ["rows", "matmul", "rows", "matmul", "rows", "matmul"]


def test_merge_needs_the_same_rows_and_type() -> None:
    x = input_node("x", (TOKENS, 32), f32)
    a, b = (make("matmul", x, weight(n, 16, 32, i)) for i, n in enumerate("ab"))
    c = make("matmul", relu(x), weight("c", 16, 32, 9))
    merged = merge_matmuls(Graph({"a": a, "b": b, "c": c}))
    matmuls = [n for n in merged.nodes() if n.op == "matmul"]
    assert sorted(n.inputs[1].shape[0] for n in matmuls) == [16, 32]
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)}
    for name, want in evaluate(Graph({"a": a, "b": b, "c": c}), feeds).items():
        np.testing.assert_array_equal(evaluate(merged, feeds)[name], want)


def test_a_matmul_that_is_an_output_is_not_absorbed() -> None:
    x = input_node("x", (TOKENS, 32), f32)
    y = make("matmul", x, weight("w", 16, 32, 0))
    graph = Graph({"y": y, "z": relu(y)})
    feed = {"x": np.random.default_rng(2).standard_normal((5, 32)).astype(np.float32)}
    got = run(graph, feed, {"tokens": 5}, fuse=True)
    want = evaluate(graph, feed)
    np.testing.assert_allclose(got["y"], want["y"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got["z"], np.maximum(got["y"], 0))


def test_row_groups_do_not_make_cycles() -> None:
    """a -> matmul -> b with both joined to c: c may share a kernel with only one of them."""
    x = input_node("x", (TOKENS, 32), f32)
    a = relu(x)
    b = silu(make("matmul", a, weight("w", 32, 32, 3)))
    c = add(a, b)
    d = rms_norm(add(c, a), vector("v", 32, 4), 1e-5)
    graph = Graph({"d": d, "c": c})
    feed = {"x": np.random.default_rng(3).standard_normal((4, 32)).astype(np.float32)}
    got, want = run(graph, feed, {"tokens": 4}, fuse=True), evaluate(graph, feed)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-5)


def test_take_rows() -> None:
    x = input_node("x", (TOKENS, 300), f32)
    rows = input_node("rows", (Dim("tokens", 40),), i32)
    graph = Graph({"y": take_rows(x, rows)})
    feed = {
        "x": np.random.default_rng(4).standard_normal((6, 300)).astype(np.float32),
        "rows": np.array([5, 0, 0, 3, 2, 1], np.int32),
    }
    got = run(graph, feed, {"tokens": 6}, fuse=True)
    np.testing.assert_array_equal(got["y"], feed["x"][feed["rows"]])


def test_memory_plan_never_lets_live_results_overlap() -> None:
    graph = run_passes(mlp(128, 512))
    plan = plan_memory(graph)
    order = graph.nodes()
    place = {n: i for i, n in enumerate(order)}

    def root(node: Node) -> Node:
        while not node.is_leaf and node.op not in ("rows", "result") and table.get(node.op).view:
            node = node.inputs[0]
        return node

    first: dict[Node, int] = {}
    last: dict[Node, int] = {}
    for node in order:
        if node in plan.offsets:
            first[node] = place[node.inputs[0]] if node.op == "result" else place[node]
        for source in node.inputs:
            last[root(source)] = place[node]
    for node in graph.outputs.values():
        last[root(node)] = len(order)
    spans = []
    for node, offset in plan.offsets.items():
        rows = upper_bound(node.shape)[0]
        size = rows * plan.strides[node][0] * node.dtype.nbytes
        assert offset % 64 == 0
        assert offset + size <= plan.arena_bytes
        spans.append((first[node], last.get(node, first[node]), offset, offset + size, node))
    for i, a in enumerate(spans):
        for b in spans[i + 1 :]:
            alive_together = a[0] <= b[1] and b[0] <= a[1]
            assert not (alive_together and a[2] < b[3] and b[2] < a[3]), (a, b)
    total = sum(s[3] - s[2] for s in spans)
    assert plan.arena_bytes < total

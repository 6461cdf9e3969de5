"""The ops that a Mamba decoder keeps its state with, against their NumPy definitions."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.compiler import CompileOptions, compile_graph
from tilewright.dtypes import f32, i32
from tilewright.errors import ShapeError
from tilewright.graph import Dim, Graph, Node, input_node, state_node
from tilewright.ops.recurrent_steps import causal_conv_step, selective_step
from tilewright.ops.table import evaluate

T = 9
# tokens of three sequences: the first goes on, the second begins, the third goes on; one is alone
READ = np.array([0, 1, 1, -1, 5, 5, 5, 6, 3], np.int32)
WRITE = np.array([1, 1, 1, 5, 5, 5, 5, 7, 2], np.int32)


CONV, SCAN = ("x", "weight", "bias"), ("x", "delta", "a", "b", "c", "d")


def slots(nodes: dict[str, Node]) -> tuple[Node, Node]:
    return nodes["read"], nodes["write"]


def inputs(**shapes: tuple[int, ...]) -> dict[str, Node]:
    tokens = Dim("tokens", T)
    named = {
        n: input_node(n, tuple(tokens if s == T else s for s in shape), f32)
        for n, shape in shapes.items()
    }
    return named | {n: input_node(n, (tokens,), i32) for n in ("read", "write")}


def check(y: Node, shapes: dict[str, tuple[int, ...]], state: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    graph = Graph({"y": y})
    values = {n: rng.standard_normal(s, np.float32) for n, s in shapes.items()}
    values |= {"read": READ, "write": WRITE, "state": rng.standard_normal(state, np.float32)}
    program = compile_graph(graph, CompileOptions(threads=2))
    for name, buffer in program.inputs.items():
        buffer.numpy()[...] = values[name]
    program.states["state"].numpy()[...] = values["state"]
    start = values["state"].copy()
    program.run({"tokens": T})
    want = evaluate(graph, values)["y"]
    np.testing.assert_allclose(program.outputs["y"].numpy(), want, rtol=2e-5, atol=2e-5)
    after = program.states["state"].numpy()
    np.testing.assert_allclose(after, values["state"], rtol=2e-5, atol=2e-5)
    untouched = sorted(set(range(len(start))) - set(WRITE.tolist()))
    np.testing.assert_array_equal(after[untouched], start[untouched])


@pytest.mark.parametrize(("width", "taps"), [(1, 2), (16, 4), (37, 3)])
def test_the_convolution_is_its_reference(width: int, taps: int) -> None:
    shapes = {"x": (T, width), "weight": (width, taps), "bias": (width,)}
    nodes = inputs(**shapes)
    state = state_node("state", (8, taps - 1, width), f32)
    y = causal_conv_step(
        nodes["x"], nodes["weight"], nodes["bias"], state, nodes["read"], nodes["write"]
    )
    check(y, shapes, (8, taps - 1, width))


@pytest.mark.parametrize(("width", "n"), [(1, 1), (16, 16), (37, 5)])
def test_the_scan_is_its_reference(width: int, n: int) -> None:
    rows, states = (T, width), (T, n)
    shapes = {"x": rows, "delta": rows, "a": (width, n), "b": states, "c": states, "d": (width,)}
    nodes = inputs(**shapes)
    state = state_node("state", (8, n, width), f32)
    y = selective_step(
        *(nodes[k] for k in ("x", "delta", "a", "b", "c", "d")),
        state,
        nodes["read"],
        nodes["write"],
    )
    check(y, shapes, (8, n, width))


def test_shapes_that_do_not_fit_are_refused() -> None:
    nodes = inputs(x=(T, 4), weight=(4, 3), bias=(5,))
    state = state_node("state", (8, 2, 4), f32)
    with pytest.raises(ShapeError, match="causal_conv_step wants f32"):
        causal_conv_step(
            nodes["x"], nodes["weight"], nodes["bias"], state, nodes["read"], nodes["write"]
        )

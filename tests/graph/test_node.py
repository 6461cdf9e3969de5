"""Nodes, order and rewriting."""

from tilewright.dtypes import f32
from tilewright.graph import Graph, Node, consumers, input_node, rewrite, topological
from tilewright.ops.elementwise import add, mul, silu


def _chain(depth: int) -> tuple[Node, Node]:
    x = input_node("x", (4, 8), f32)
    y = x
    for _ in range(depth):
        y = add(y, x)
    return x, y


def test_deep_graphs_do_not_recurse() -> None:
    x, y = _chain(20_000)
    order = topological([y])
    assert len(order) == 20_001
    assert order[0] is x
    assert order[-1] is y


def test_inputs_come_before_users() -> None:
    x = input_node("x", (2, 2), f32)
    a, b = silu(x), mul(x, x)
    c = add(a, b)
    order = Graph({"y": c}).nodes()
    place = {node: i for i, node in enumerate(order)}
    assert all(place[i] < place[n] for n in order for i in n.inputs)
    assert set(consumers(Graph({"y": c}))[x]) == {a, b}


def test_rewrite_keeps_what_does_not_change() -> None:
    x = input_node("x", (2, 2), f32)
    a = silu(x)
    graph = Graph({"y": add(a, a)})
    assert rewrite(graph, lambda n: n).outputs["y"] is graph.outputs["y"]
    doubled = rewrite(graph, lambda n: mul(*n.inputs) if n.op == "add" else n)
    assert doubled.outputs["y"].op == "mul"
    assert doubled.outputs["y"].inputs == (a, a)


def test_printing_names_ops_shapes_and_outputs() -> None:
    x = input_node("x", (2, 3), f32)
    text = str(Graph({"y": silu(x)}))
    assert "%1 = silu(%0) : f32(2, 3)" in text
    assert "return y = %1" in text

"""The graph: nodes and symbolic sizes."""

from tilewright.graph.dims import Dim, Shape, Size, SizeLike, evaluate, shape_of, upper_bound
from tilewright.graph.node import (
    Graph,
    Node,
    consumers,
    input_node,
    rewrite,
    state_node,
    topological,
    weight_node,
)

__all__ = [
    "Dim",
    "Graph",
    "Node",
    "Shape",
    "Size",
    "SizeLike",
    "consumers",
    "evaluate",
    "input_node",
    "rewrite",
    "shape_of",
    "state_node",
    "topological",
    "upper_bound",
    "weight_node",
]

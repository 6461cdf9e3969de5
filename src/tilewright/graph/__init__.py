"""The graph: nodes and symbolic sizes."""

from tilewright.graph.dims import Dim, Shape, Size, SizeLike, evaluate, shape_of, upper_bound
from tilewright.graph.node import (
    Graph,
    Node,
    const_node,
    consumers,
    data_node,
    input_node,
    rewrite,
    scalar_node,
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
    "const_node",
    "consumers",
    "data_node",
    "evaluate",
    "input_node",
    "rewrite",
    "scalar_node",
    "shape_of",
    "state_node",
    "topological",
    "upper_bound",
    "weight_node",
]

"""The graph: nodes; their sizes are those of :mod:`tilewright.sizes`."""

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
from tilewright.sizes import Dim, Shape, Size, SizeLike, evaluate, shape_of, upper_bound

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

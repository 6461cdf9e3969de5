"""RoPE and the cache writes of one attention become one launch.

``attention(rope(q), write_keys(keys, rope(k)), write_values(values, v))`` turns into
``attention(split_heads(q, k, v, ...), keys, values)``: the same rotations and copies, side by side.
"""

from __future__ import annotations

from tilewright.graph import Graph, Node, rewrite
from tilewright.ops.table import make

__all__ = ["fuse_cache_write"]


def fuse_cache_write(graph: Graph) -> Graph:
    """Fuse where the pattern fits and nobody else reads the parts."""
    uses: dict[tuple[str, str], int] = {}
    for node in graph.nodes():
        for source in node.inputs:
            if source.op in ("write_keys", "write_values"):
                key = (source.op, source.inputs[0].name)
                uses[key] = uses.get(key, 0) + 1

    def rule(node: Node) -> Node:
        if node.op != "attention":
            return node
        q, keys, values, *rest = node.inputs
        if keys.op != "write_keys" or values.op != "write_values":
            return node
        if any(uses[n.op, n.inputs[0].name] != 1 for n in (keys, values)):
            return node
        key_state, k, *where = keys.inputs
        value_state, v, *also = values.inputs
        if where != also or (q.op == "rope") != (k.op == "rope"):
            return node
        tables: tuple[Node, ...] = ()
        pairing = ""
        if q.op == "rope":
            if q.attrs != k.attrs or q.inputs[1:] != k.inputs[1:]:
                return node
            tables, pairing = q.inputs[1:3], q.attrs["pairing"]
            q, k = q.inputs[0], k.inputs[0]
        split = make(
            "split_heads", q, k, v, key_state, value_state, *where, *tables, pairing=pairing
        )
        return make("attention", split, key_state, value_state, *rest, **node.attrs)

    return rewrite(graph, rule)

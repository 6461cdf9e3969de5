"""``precision="bf16"``: operands of products are rounded to bf16, sums stay f32.

An operand that is computed is rounded where it is made, in the kernel that stores it, which halves
what is written and read; a constant one when it is packed. Results stay f32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.compiler.fusion import pending
from tilewright.dtypes import bf16, f32
from tilewright.graph import Node
from tilewright.ops import elementwise as ew
from tilewright.ops.flash import flash_attention

__all__ = ["narrow"]


def narrow(roots: Sequence[Node], dynamic: Callable[[Node], bool]) -> list[Node]:
    """``roots`` with f32 products and attention in bf16."""
    new: dict[Node, Node] = {}
    rounded: dict[Node, Node] = {}

    def operand(x: Node) -> Node:
        """``x`` rounded where it is made: before views, so that its kernel can do it."""
        if x.dtype is not f32 or (x.value is not None and not dynamic(x)):
            return x
        if x not in rounded:
            if x.value is None and x.op in ("reshape", "permute"):
                inner = operand(x.inputs[0])
                rounded[x] = Node(x.op, (inner,), x.shape, inner.dtype, x.attrs)
            else:
                rounded[x] = ew.cast(x, bf16)
        return rounded[x]

    for node in pending(roots):
        if node.value is not None or node.is_leaf:
            new[node] = node
            continue
        now = node.with_inputs(tuple([new[i] for i in node.inputs]))
        if now.op == "bmm" and _takes_bf16(now):
            a, b = (operand(x) for x in now.inputs)
            attrs = {"compute": bf16, "out_dtype": f32}
            now = Node("bmm", (a, b), now.shape, f32, attrs, now.name)
        elif now.op == "part" and now.inputs[0].op == "flash_attention":
            now = _attention(now, operand)
        new[node] = now
    return [new[root] for root in roots]


def _takes_bf16(node: Node) -> bool:
    a, b = node.inputs[:2]
    return a.dtype is b.dtype is node.dtype is f32 and not node.attrs and len(node.inputs) == 2


def _attention(part: Node, operand: object) -> Node:
    assert callable(operand)
    node = part.inputs[0]
    q, k, v, *mask = node.inputs
    if part.attrs["index"] != 0 or q.dtype is not f32:
        return part
    narrowed = [operand(x) for x in (q, k, v)]
    narrowed = [ew.cast(x, bf16) for x in narrowed]
    out = flash_attention(*narrowed, *mask, **node.attrs)[0]
    return ew.cast(out, f32)

"""softmax(scale q k^T + mask) v, found in its parts, becomes flash attention.

Exporters write it as two products with scaling (of either operand or of the scores), masks (added,
or chosen by a condition), a softmax and, where groups of query heads share keys, repeated keys and
values between. Its bits change, and rows that see no key at all are 0 instead of NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

from tilewright.compiler.fusion import pending
from tilewright.compiler.passes.rules import number_of
from tilewright.dtypes import bf16, f16, f32, f64
from tilewright.graph import Node, const_node
from tilewright.ops import elementwise as ew
from tilewright.ops.flash import MAX_HEAD_DIM, flash_attention
from tilewright.ops.views import permute, reshape

__all__ = ["find_attention"]

_FLOATS = (f16, bf16, f32, f64)


def find_attention(roots: Sequence[Node]) -> list[Node]:
    """``roots`` with flash attention wherever one of its forms is found."""
    roots = list(roots)
    order = pending(roots)
    users: dict[Node, int] = {}
    for node in order:
        if node.value is None:
            for source in node.inputs:
                users[source] = users.get(source, 0) + 1
    for root in roots:
        users[root] = users.get(root, 0) + 1
    new: dict[Node, Node] = {}
    for node in order:
        if node.value is not None or node.is_leaf:
            new[node] = node
            continue
        found = _Match(users).of(node) if node.op == "bmm" else None
        if found is None:
            new[node] = node.with_inputs(tuple([new[i] for i in node.inputs]))
        else:
            new[node] = _built(node, found, new)
    return [new[root] for root in roots]


@dataclass
class _Parts:
    """What a product was found to be."""

    q: Node
    k: Node  # (..., keys, head) or, if ``turned``, (..., head, keys)
    v: Node
    scale: float
    masks: list[tuple[Node, float]] = field(default_factory=list)  # added, after such a factor
    chosen: list[tuple[Node, bool, float]] = field(default_factory=list)  # condition, seen, else


class _Match:
    def __init__(self, users: dict[Node, int]) -> None:
        self.users = users

    def of(self, node: Node) -> _Parts | None:
        """The parts of ``node``, a product of weights and values, if that is what it is."""
        if "epilogue" in node.attrs or not _is_plain(node):
            return None
        weights, v = node.inputs
        if self.users[weights] > 1:  # somebody wants the weights themselves
            return None
        scores = self._softmax(weights)
        if scores is None or len(node.shape) not in (3, 4):
            return None
        scale = 1.0
        masks: list[tuple[Node, float]] = []
        chosen: list[tuple[Node, bool, float]] = []
        rank = len(node.shape)
        while True:
            if scores.value is not None or scores.is_leaf:
                return None
            if scores.op == "bmm":
                break
            if scores.op == "cast" and _floats(scores, scores.inputs[0]):
                scores = scores.inputs[0]
            elif scores.op == "reshape":
                if scores.shape != scores.inputs[0].shape:
                    return None
                scores = scores.inputs[0]
            elif scores.op == "scale":
                scale *= scores.attrs["factor"]
                scores = scores.inputs[0]
            elif scores.op in ("mul", "div"):
                x, y = scores.inputs
                if scores.op == "mul" and number_of(x) is not None:
                    x, y = y, x
                number = number_of(y)
                if number is None or x.shape != scores.shape or (scores.op == "div" and not number):
                    return None
                scale *= float(number) if scores.op == "mul" else 1 / float(number)
                scores = x
            elif scores.op == "add":
                x, y = scores.inputs
                if not _leads_to_scores(x, scores):
                    x, y = y, x
                if not _leads_to_scores(x, scores):
                    return None
                masks.append((y, scale))
                scores = x
            elif scores.op == "where":
                condition, x, y = scores.inputs
                seen = number_of(y) is not None
                inner, number = (x, number_of(y)) if seen else (y, number_of(x))
                if number is None or inner.shape != scores.shape:
                    return None
                chosen.append((condition, seen, scale * float(number)))
                scores = inner
            else:
                return None
        if not _is_plain(scores) or len(scores.shape) != rank or "epilogue" in scores.attrs:
            return None
        q, k = scores.inputs
        return _fitting(_Parts(q, k, v, scale, masks, chosen), node)

    def _softmax(self, weights: Node) -> Node | None:
        """The scores whose softmax along the last axis ``weights`` is."""
        weights = _through(weights)
        if weights.op == "where":  # rows that saw nothing were made 0
            condition, x, y = weights.inputs
            if condition.op == "isnan" and number_of(x) == 0 and condition.inputs[0] is y:
                weights = _through(y)
        if weights.op == "div":
            powers, total = weights.inputs
        elif weights.op == "mul" and weights.inputs[1].op == "reciprocal":
            powers, total = weights.inputs[0], weights.inputs[1].inputs[0]
        else:
            return None
        last = (len(weights.shape) - 1,)
        if powers.op != "exp" or total.op != "sum" or total.inputs[0] is not powers:
            return None
        if total.attrs["axes"] != last or not total.attrs.get("keepdims"):
            return None
        shifted = powers.inputs[0]
        if shifted.op != "sub":
            return None
        scores, top = shifted.inputs
        if top.op == "where":
            condition, x, y = top.inputs
            if condition.op != "isfinite" or condition.inputs[0] is not x or number_of(y) != 0:
                return None
            top = x
        if top.op != "max" or top.inputs[0] is not scores or top.attrs["axes"] != last:
            return None
        if any(n.value is not None for n in (weights, powers, total, shifted, top)):
            return None
        return scores


def _leads_to_scores(node: Node, outer: Node) -> bool:
    """Whether ``node`` is the operand of ``outer`` that the scores come through."""
    if node.shape != outer.shape:
        return False
    for _ in range(16):
        if node.value is not None or node.is_leaf:
            return False
        if node.op == "bmm":
            return True
        if node.op in ("cast", "reshape", "scale"):
            node = node.inputs[0]
        elif node.op in ("mul", "div", "add", "where"):
            inner = [i for i in node.inputs if i.shape == node.shape]
            if len(inner) != 1:
                return any(_leads_to_scores(i, node) for i in inner)
            node = inner[0]
        else:
            return False
    return False


def _through(node: Node) -> Node:
    while node.value is None and (
        (node.op == "cast" and _floats(node, node.inputs[0]))
        or (node.op in ("reshape", "stop_gradient") and node.shape == node.inputs[0].shape)
    ):
        node = node.inputs[0]
    return node


def _floats(*nodes: Node) -> bool:
    return all(n.dtype in _FLOATS for n in nodes)


def _is_plain(node: Node) -> bool:
    """A product that rounds its operands to nothing shorter."""
    return node.attrs.get("compute") is None and _floats(node, *node.inputs)


def _fitting(parts: _Parts, node: Node) -> _Parts | None:
    """``parts``, with repeated heads taken back, if the kernels can take them."""
    q, kt, v = parts.q, parts.k, parts.v
    rank = len(node.shape)
    if len(kt.shape) != rank:
        return None
    k = kt.inputs[0] if _swaps_last(kt) else permute(kt, (*range(rank - 2), rank - 1, rank - 2))
    if k.op == "permute" and k.value is None and k.inputs[0].op == "permute":
        inner = k.inputs[0]
        if inner.value is None:
            axes = tuple(inner.attrs["axes"][a] for a in k.attrs["axes"])
            same = axes == tuple(range(rank))
            k = inner.inputs[0] if same else permute(inner.inputs[0], axes)
    if not (q.dtype is k.dtype is v.dtype) or {len(x.shape) for x in (q, k, v)} != {rank}:
        return None
    if rank == 4:
        k, v = _ungrouped(k), _ungrouped(v)
    if not all(isinstance(n, int) for x in (q, k, v) for n in (x.shape[-3], x.shape[-1])):
        return None
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
        return None
    heads, shared = int(q.shape[-3]), int(k.shape[-3])
    if rank == 3 and heads != shared:
        return None
    if shared == 0 or heads % shared or not 0 < int(q.shape[-1]) <= MAX_HEAD_DIM:
        return None
    if node.shape[:-1] != q.shape[:-1]:
        return None
    return _Parts(q, k, v, parts.scale, parts.masks, parts.chosen)


def _swaps_last(node: Node) -> bool:
    n = len(node.shape)
    return (
        node.value is None
        and node.op == "permute"
        and node.attrs["axes"] == (*range(n - 2), n - 1, n - 2)
    )


def _ungrouped(x: Node) -> Node:
    """Keys or values (B, Hkv, T, D) that were repeated for each query head of a group."""
    if x.op != "reshape" or x.value is not None:
        return x
    wide = x.inputs[0]
    if wide.op != "broadcast" or wide.value is not None or len(wide.shape) != 5:
        return x
    one = wide.inputs[0]
    b, h, _, t, d = wide.shape
    if one.shape != (b, h, 1, t, d) or x.shape[0] != b or x.shape[2:] != (t, d):
        return x
    return reshape(one, (b, h, t, d))


def _built(node: Node, parts: _Parts, new: dict[Node, Node]) -> Node:
    """The attention in the place of ``node``."""
    wide = f64 if parts.q.dtype is f64 else f32
    memo: dict[Node, Node] = {}

    def renewed(x: Node) -> Node:
        """``x``, or a view that was made here, over the new graph."""
        if x in new:
            return new[x]
        if x not in memo:
            memo[x] = x.with_inputs(tuple([renewed(i) for i in x.inputs]))
        return memo[x]

    q, k, v = (renewed(x) for x in (parts.q, parts.k, parts.v))
    added: list[Node] = []
    for one, factor in parts.masks:
        more = ew.cast(renewed(one), wide)
        added.append(more if factor == 1 else ew.scale(more, factor))
    for condition, seen, number in parts.chosen:
        zero, hidden = const_node(0.0, wide), const_node(number, wide)
        added.append(ew.where(renewed(condition), *((zero, hidden) if seen else (hidden, zero))))
    mask = functools.reduce(ew.add, added) if added else None
    if len(node.shape) == 3:
        q, k, v = (reshape(x, (1, *x.shape)) for x in (q, k, v))
    if mask is not None:
        mask = reshape(mask, (*(1,) * (4 - len(mask.shape)), *mask.shape))
    out = flash_attention(q, k, v, mask, scale=parts.scale, layout="bthd")[0]
    made = reshape(permute(out, (0, 2, 1, 3)), node.shape)
    return ew.cast(made, node.dtype)

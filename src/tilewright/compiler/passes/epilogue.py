"""Elementwise work moves into the heavy op whose results it starts from.

A *region* grows from an op that can take such work (its entry has ``absorb``): elementwise nodes,
and reshapes between them, whose operands are values of the region or lie beside its result as the
op allows. Of what is found the largest part counts of which only one value is read elsewhere; it
becomes the node's epilogue (see :mod:`tilewright.ops.epilogue`), and that value the node's result.
No bit changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tilewright.compiler.fusion import cheap_nodes, is_elementwise, is_transparent, pending
from tilewright.graph import Node, Shape
from tilewright.ops import table
from tilewright.ops.epilogue import Epilogue, Step
from tilewright.ops.views import reshape
from tilewright.sizes import has_value, hint, key_of

__all__ = ["fuse_epilogues"]

_MOST = 32  # steps


@dataclass(eq=False)
class _Region:
    """What one op takes over: members in order, the last of them its result."""

    host: Node
    members: list[Node] = field(default_factory=list)


def fuse_epilogues(
    roots: Sequence[Node], order: Sequence[Node] | None = None
) -> tuple[list[Node], dict[Node, Node]]:
    """``roots`` with elementwise work inside the ops that can take it.

    Returns the nodes in order of creation and the new node of each old one that is still there.
    ``order`` is :func:`~tilewright.compiler.fusion.pending` of ``roots``, if known.
    """
    order = pending(roots) if order is None else order
    regions = _Search(order, roots).regions
    if not regions:
        return list(order), {node: node for node in order}
    inner = {m for r in regions for m in (r.host, *r.members[:-1])}
    whole = {r.members[-1]: r for r in regions}
    new: dict[Node, Node] = {}
    made: list[Node] = []
    for node in order:
        if node.value is not None or node.is_leaf:
            new[node] = node
        elif node in whole:
            new[node] = _fused(whole[node], new, made)
        elif node in inner:
            continue
        else:
            inputs = tuple([new[i] for i in node.inputs])
            # made anew even where nothing changed: the order of creation stays what it was
            new[node] = Node(node.op, inputs, node.shape, node.dtype, node.attrs, node.name)
        made.append(new[node])
    return made, new


class _Search:
    def __init__(self, order: Sequence[Node], roots: Iterable[Node]) -> None:
        self.cheap = cheap_nodes(order)
        self.users: dict[Node, list[Node]] = {}
        self.kept = set(roots)
        self.taken: set[Node] = set()  # inside a region
        self.results: set[Node] = set()  # of regions
        for node in order:
            if node.value is None:
                for source in dict.fromkeys(node.inputs):
                    self.users.setdefault(source, []).append(node)
        self.regions: list[_Region] = []
        for node in order:
            if node.value is None and not node.is_leaf and node.op != "part":
                absorb = table.get(node.op).absorb
                wanted = absorb is not None and absorb(node, node, node.shape) is not None
                if wanted and "epilogue" not in node.attrs:
                    self._grow(node)

    def _grow(self, host: Node) -> None:
        found: dict[Node, None] = {}
        work = list(self.users.get(host, ()))
        values = {host}
        while work and len(found) < _MOST:
            work.sort(key=lambda n: n.index, reverse=True)
            node = work.pop()
            if node not in values and self._belongs(host, node, values):
                found[node] = None
                values.add(node)
                work += self.users.get(node, ())
        members = self._closed(host, list(found))
        while members and (members[-1].op == "reshape" or _widens(members[-1])):
            members.pop()
        if any(m.op != "reshape" for m in members):
            self.regions.append(_Region(host, members))
            self.taken.update(members)
            self.results.add(members[-1])

    def _belongs(self, host: Node, node: Node, values: set[Node]) -> bool:
        if node in self.taken or node in self.cheap or node.value is not None:
            return False
        if node.op == "reshape":
            return _keeps_last(node)
        if not is_elementwise(node) or node.op == "broadcast":
            return False
        absorb = table.get(host.op).absorb
        assert absorb is not None
        for source in node.inputs:
            if source in values:
                if source.shape != node.shape:
                    return False
            elif _number(source) is None and (
                absorb(host, source, node.shape) is None or not self._lies_ready(source, node)
            ):
                return False
        return True

    def _lies_ready(self, source: Node, user: Node) -> bool:
        """Whether ``source`` is in memory anyway: fusing must not put off what was computed on the
        way."""
        while is_transparent(source) or source.op == "reshape":
            if source.value is not None:
                return True
            source = source.inputs[0]
        if source.value is not None or source.shape == () or source in self.results:
            return True
        if source in self.cheap:
            return False
        small = 1
        for n in source.shape:
            small = small * hint(n) if has_value(n) else 1 << 30
        return not is_elementwise(source) or len(self.users[source]) > 1 or small <= 1 << 14

    def _closed(self, host: Node, found: list[Node]) -> list[Node]:
        """The longest part of ``found`` of which only the last value is read elsewhere."""
        inside = {host, *found}
        if host in self.kept:
            return []
        for last in reversed(found):
            part: set[Node] = set()
            stack = [last]
            while stack:
                node = stack.pop()
                if node not in part:
                    part.add(node)
                    stack += [i for i in node.inputs if i in inside] if node is not host else []
            part.discard(last)
            if not any(n in self.kept or any(u not in part and u is not last
                       for u in self.users.get(n, ())) for n in part):  # fmt: skip
                return [n for n in found if n in part] + [last]
        return []


def _keeps_last(node: Node) -> bool:
    """Whether a reshape leaves the last axis as it is."""
    old, new = node.inputs[0].shape, node.shape
    return bool(old) and bool(new) and old[-1] == new[-1]


def _widens(node: Node) -> bool:
    """Whether a cast makes more bytes, which whoever reads them may do as well."""
    return node.op == "cast" and node.dtype.bits > node.inputs[0].dtype.bits


def _number(node: Node) -> Node | None:
    """The ``const`` behind a node that is one number everywhere."""
    while is_transparent(node):
        node = node.inputs[0]
    return node if node.op == "const" else None


def _fused(region: _Region, new: dict[Node, Node], made: list[Node]) -> Node:
    """The region's op with an epilogue; new nodes in between are appended to ``made``."""
    host = region.host
    absorb = table.get(host.op).absorb
    assert absorb is not None
    at: dict[Node, int] = {host: 0}
    steps: list[Step] = []
    kinds: list[str] = []
    extras: list[Node] = []
    places: dict[tuple[Node, str, Any], int] = {}

    def place(source: Node, shape: Shape) -> int:
        if source in at:
            return at[source]
        const = _number(source)
        if const is not None:
            steps.append(Step("const", (), (), const.dtype, const.attrs))
            return len(steps)
        bound = absorb(host, source, shape)
        assert bound is not None
        key = (source, bound[0], key_of(bound[1]))
        if key not in places:
            kinds.append(bound[0])
            shaped = reshape(new[source], bound[1])
            if shaped is not new[source]:
                made.append(shaped)
            extras.append(shaped)
            places[key] = len(extras)
        return -places[key]

    for node in region.members:
        if node.op == "reshape":
            at[node] = at[node.inputs[0]]
            continue
        operands = tuple([place(source, node.shape) for source in node.inputs])
        dtypes = tuple([source.dtype for source in node.inputs])
        steps.append(Step(node.op, operands, dtypes, node.dtype, node.attrs))
        at[node] = len(steps)
    attrs: dict[str, Any] = dict(host.attrs)
    attrs["epilogue"] = Epilogue(host.dtype, tuple(steps), tuple(kinds))
    inputs = (*(new[i] for i in host.inputs), *extras)
    last = region.members[-1]
    fused = Node(host.op, inputs, host.shape, last.dtype, attrs, last.name or host.name)
    result = reshape(fused, last.shape)
    if result is not fused:
        made.append(fused)
    return result

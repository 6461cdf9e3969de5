"""Which nodes of a tensor graph share a generated kernel.

A :class:`Group` walks one *domain* (the shape of its full-sized members, axes of size 1 left out).
Its members are elementwise results over the whole domain, reductions over one set of its axes, and
elementwise results of what is left after reducing. Softmax, a normalisation and its gradient, an
optimiser's update are one group each. Shape changes that only add or drop axes of size 1, and
broadcasts, are looked through. What costs nothing but arithmetic (numbers, index patterns, random
bits) belongs to no group: every kernel that needs it computes it.

Grouping never changes a bit: every op rounds to its own dtype, and the order of a reduction depends
on its shape and axes alone (see :mod:`tilewright.compiler.loops`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tilewright.graph import Node, Shape
from tilewright.ops import table
from tilewright.sizes import same

__all__ = [
    "IDENTITIES",
    "REDUCTIONS",
    "Group",
    "Map",
    "is_elementwise",
    "is_split",
    "is_transparent",
    "map_of_input",
    "map_of_reduced",
    "partition",
    "pending",
    "reduced_axes",
    "reduces",
]

Map = tuple[int, ...]
"""For each axis of a node the axis of the domain that it runs along; -1 for axes of size 1."""

REDUCTIONS = frozenset({"sum", "prod", "max", "min", "any", "all", "argmax", "argmin"})
_INDICES = frozenset({"argmax", "argmin"})
IDENTITIES = frozenset({"copy", "broadcast", "cast"})
_HUGE = 1 << 15  # a reduction over more elements than this is split over programs


@dataclass(eq=False)
class Group:
    """Nodes that one kernel computes.

    Attributes:
        number: position in the list of groups.
        domain: sizes that the kernel walks.
        reduced: the domain's axes that its reductions sum over; None when nothing is reduced.
        members: nodes in order of creation.
        maps: how each member's axes lie in the domain.
        reads: groups (bits) that this one reads directly.
        closed: takes no further members (its results are finished in a second kernel).
        into: the group that has taken its members over, if any.
    """

    number: int
    domain: tuple[int, ...]
    reduced: frozenset[int] | None = None
    members: list[Node] = field(default_factory=list)
    maps: dict[Node, Map] = field(default_factory=dict)
    reads: int = 0
    closed: bool = False
    into: Group | None = None

    def is_full(self, m: Map) -> bool:
        """Whether a value with this map has the whole domain."""
        return sum(d >= 0 for d in m) == len(self.domain)


def pending(roots: Iterable[Node]) -> list[Node]:
    """What ``roots`` depend on, in order of creation; nodes that have a value are leaves."""
    seen: set[Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            if node.value is None:
                stack.extend(node.inputs)
    return sorted(seen, key=_index)


def _index(node: Node) -> int:
    return node.index


def is_elementwise(node: Node) -> bool:
    """Whether the node is an expression of its inputs' elements."""
    if node.value is not None or node.is_leaf or node.op == "part":
        return False
    if node.op in REDUCTIONS:
        return False
    return node.op in IDENTITIES or table.get(node.op).expression is not None


def is_transparent(node: Node) -> bool:
    """Whether a kernel can read the node's input in its place, with another map."""
    if node.value is not None:
        return False
    if node.op in ("broadcast", "stop_gradient"):
        return True
    return node.op == "reshape" and same(_squeezed(node.shape), _squeezed(node.inputs[0].shape))


def _squeezed(shape: Shape) -> Shape:
    return tuple([n for n in shape if n != 1])


def map_of_input(node: Node, source: Node, m: Map) -> Map:
    """The map of ``source``, an operand of the elementwise or transparent ``node``."""
    if node.op == "reshape":
        along = iter([d for d, n in zip(m, node.shape) if n != 1])
        return tuple(-1 if n == 1 else next(along) for n in source.shape)
    shift = len(node.shape) - len(source.shape)
    return tuple(-1 if n == 1 else m[a + shift] for a, n in enumerate(source.shape))


def _map_of_user(node: Node, source: Node, m: Map) -> Map | None:
    """The map of ``node`` when its operand ``source`` has ``m``; -2 marks axes still unknown."""
    if node.op == "reshape":
        along = iter([d for d, n in zip(m, source.shape) if n != 1])
        return tuple(-1 if n == 1 else next(along) for n in node.shape)
    shift = len(node.shape) - len(source.shape)
    known = (-2,) * shift + tuple(-2 if d < 0 else d for d in m)
    return tuple(-1 if n == 1 else d for n, d in zip(node.shape, known))


def reduced_axes(node: Node) -> tuple[int, ...]:
    """The axes that a reduction runs over."""
    axis = node.attrs.get("axes", node.attrs.get("axis"))
    return (axis,) if isinstance(axis, int) else tuple(axis)


def reduces(node: Node) -> bool:
    """Whether the node is a reduction over more than axes of size 1."""
    if node.op not in REDUCTIONS:
        return False
    shape = node.inputs[0].shape
    return any(shape[a] != 1 for a in reduced_axes(node))


def map_of_reduced(node: Node, full: Map) -> Map:
    """The map of a reduction whose operand has the map ``full``."""
    axes = set(reduced_axes(node))
    if node.attrs.get("keepdims", False):
        return tuple(-1 if a in axes else d for a, d in enumerate(full))
    return tuple(d for a, d in enumerate(full) if a not in axes)


def cheap_nodes(order: Sequence[Node]) -> set[Node]:
    """Elementwise nodes that read no array: kernels recompute them instead of loading them."""
    cheap: set[Node] = set()
    for node in order:
        if node.op in ("const", "scalar"):
            cheap.add(node)
        elif node.value is None and (
            node.op == "iota" or is_elementwise(node) or is_transparent(node)
        ):
            free = (i in cheap or (i.value is not None and i.shape == ()) for i in node.inputs)
            if all(free):
                cheap.add(node)
    return cheap


def partition(order: Sequence[Node], roots: Iterable[Node]) -> tuple[list[Group], set[Node]]:
    """Groups, and the cheap nodes that belong to none.

    ``order`` is :func:`pending` of ``roots``.
    """
    cheap = cheap_nodes(order)
    cheap -= _wanted_in_memory(order, roots, cheap)
    return _Partition(cheap).run(order), cheap


def _wanted_in_memory(order: Sequence[Node], roots: Iterable[Node], cheap: set[Node]) -> set[Node]:
    """Cheap nodes that something other than a generated kernel reads."""
    wanted = {r for r in roots if r in cheap}
    for node in order:
        generated = is_elementwise(node) or is_transparent(node) or node.op in REDUCTIONS
        if node.value is None and not (generated and node.op != "part"):
            wanted |= {i for i in node.inputs if i in cheap}
    stack = list(wanted)
    while stack:  # behind a transparent node lies the memory itself
        node = stack.pop()
        if is_transparent(node) and node.inputs[0] in cheap and node.inputs[0] not in wanted:
            wanted.add(node.inputs[0])
            stack.append(node.inputs[0])
    return wanted


class _Partition:
    """Greedy: a node joins the group of an operand when the maps agree and no cycle arises."""

    def __init__(self, cheap: set[Node]) -> None:
        self.cheap = cheap
        self.groups: list[Group] = []
        self.of: dict[Node, Group] = {}
        self.above: dict[Node, int] = {}  # groups (bits) that a node is computed from
        self.maps: dict[Node, tuple[Group, Map]] = {}  # members and transparent nodes behind them

    def run(self, order: Sequence[Node]) -> list[Group]:
        for node in order:
            above = 0
            if node.value is None:
                for source in node.inputs:
                    above |= self.above[source]
            self.above[node] = above
            if node in self.cheap or node.value is not None or node.is_leaf or node.op == "part":
                continue
            if is_transparent(node):
                found = self.maps.get(node.inputs[0])
                if found is not None:
                    m = self._extended(found[0], _map_of_user(node, node.inputs[0], found[1]), node)
                    if m is not None:
                        self.maps[node] = found[0], m
            elif node.op in REDUCTIONS:
                self._place_reduction(node)
            elif is_elementwise(node) or node.op == "iota":
                self._place_elementwise(node)
        return [g for g in self.groups if g.into is None]

    def _closure(self, bits: int) -> int:
        """``bits`` and every group those read, through any path."""
        seen = 0
        while bits:
            low = bits & -bits
            seen |= low
            bits = (bits | self.groups[low.bit_length() - 1].reads) & ~seen
        return seen

    def _extended(self, group: Group, m: Map | None, node: Node) -> Map | None:
        """``m`` with its unknown axes filled in, if ``node`` then fits the domain."""
        if m is None:
            return None
        if -2 in m:
            used = set(m)
            free = [d for d in range(len(group.domain)) if d not in used]
            if m.count(-2) != len(free):
                return None
            rest = iter(free)
            m = tuple(next(rest) if d == -2 else d for d in m)
            if any(n != group.domain[d] for n, d in zip(node.shape, m) if d >= 0):
                return None
        along = [d for d in m if d >= 0]
        if len(along) == len(group.domain):
            return m
        if group.reduced is None:
            return None
        return m if set(along) == set(range(len(group.domain))) - group.reduced else None

    def _fits(self, node: Node, group: Group, m: Map) -> bool:
        """Whether every operand from the same group is read where it stands, without a cycle."""
        outside = 0
        for source in node.inputs:
            if source in self.cheap:
                continue
            found = self.maps.get(source)
            if found is not None and found[0] is group:
                if found[1] != map_of_input(node, source, m):
                    return False
            else:
                outside |= self.above[source]
        return not (self._closure(outside) >> group.number) & 1

    def _add(self, node: Node, group: Group, m: Map) -> None:
        group.members.append(node)
        group.maps[node] = m
        own = 1 << group.number
        group.reads |= self.above[node] & ~own
        self.above[node] = own
        self.of[node] = group
        self.maps[node] = group, m

    def _new(self, domain: tuple[int, ...]) -> Group:
        group = Group(len(self.groups), domain)
        self.groups.append(group)
        return group

    def _place_elementwise(self, node: Node) -> None:
        for source in reversed(node.inputs):
            found = self.maps.get(source)
            if found is None or found[0].closed:
                continue
            group = found[0]
            m = self._extended(group, _map_of_user(node, source, found[1]), node)
            if m is not None and self._fits(node, group, m):
                self._add(node, group, m)
                for other in node.inputs:
                    self._merge(node, other)
                return
        shape = [n for n in node.shape if n != 1]
        group = self._new(tuple(shape))  # type: ignore[arg-type]
        self._add(node, group, _natural(node))

    def _merge(self, node: Node, source: Node) -> None:
        """Let the group of ``source``, which ``node`` reads, and that of ``node`` be one."""
        found, here = self.maps.get(source), self.maps.get(node)
        if found is None or here is None or found[0] is here[0] or source in self.cheap:
            return
        if found[0].closed or here[0].closed:
            return
        wanted = map_of_input(node, source, here[1])
        for one, its, other, theirs in (
            (found[0], found[1], here[0], wanted),
            (here[0], wanted, found[0], found[1]),
        ):
            along = {a: b for a, b in zip(its, theirs) if a >= 0}
            if self._walks_with(one, other, along) and self._take_over(other, one, along):
                return

    @staticmethod
    def _walks_with(one: Group, other: Group, along: dict[int, int]) -> bool:
        """Whether members of ``one``, axes renamed by ``along``, can be members of ``other``."""
        if len(along) != len(one.domain) or len(set(along.values())) != len(along):
            return False
        axes = set(along.values())
        if axes == set(range(len(other.domain))):
            if one.reduced is None or other.reduced is None:
                return True
            return frozenset(along[d] for d in one.reduced) == other.reduced
        kept = set(range(len(other.domain))) - (other.reduced or frozenset())
        return one.reduced is None and other.reduced is not None and axes == kept

    def _take_over(self, group: Group, other: Group, along: dict[int, int]) -> bool:
        """Make the members of ``other`` members of ``group``, unless a cycle would arise."""
        bits = 1 << group.number | 1 << other.number
        moved = {n: tuple(along[d] if d >= 0 else -1 for d in m) for n, m in other.maps.items()}
        members = sorted([*group.members, *other.members], key=_index)
        maps = group.maps | moved
        outside = 0
        for member in members:
            for operand in member.inputs:
                if operand in self.cheap:
                    continue
                where = self.maps.get(operand)
                if where is None or where[0] not in (group, other):
                    outside |= self.above[operand]
                    continue
                its = where[1]
                if where[0] is other:
                    its = tuple(along[d] if d >= 0 else -1 for d in its)
                if member.op not in REDUCTIONS and its != map_of_input(
                    member, operand, maps[member]
                ):
                    return False
        if self._closure(outside) & bits:
            return False  # something between the two would have to run in their midst
        for node, (its_group, m) in list(self.maps.items()):
            if its_group is other:
                self.maps[node] = group, tuple(along[d] if d >= 0 else -1 for d in m)
        if other.reduced is not None:
            group.reduced = frozenset(along[d] for d in other.reduced)
        group.members, group.maps = members, maps
        group.reads = (group.reads | other.reads) & ~bits
        other.into, other.reads = group, 1 << group.number
        return True

    def _place_reduction(self, node: Node) -> None:
        (source,) = node.inputs
        axes = reduced_axes(node)
        found = self.maps.get(source)
        if found is not None and not found[0].closed and source.shape:
            group, full = found
            reduced = frozenset(full[a] for a in axes if full[a] >= 0)
            if (
                group.is_full(full)
                and group.reduced in (None, reduced)
                and (node.op in _INDICES or not is_split(group.domain, reduced))
                and reduced
            ):
                group.reduced = reduced
                self._add(node, group, map_of_reduced(node, full))
                return
        domain = tuple(n for n in source.shape if n != 1)
        group = self._new(domain)  # type: ignore[arg-type]
        full = _natural(source)
        reduced = frozenset(full[a] for a in axes if full[a] >= 0)
        group.reduced = reduced or None
        self._add(node, group, map_of_reduced(node, full))
        group.closed = node.op not in _INDICES and is_split(group.domain, reduced)


def is_split(domain: tuple[int, ...], reduced: frozenset[int]) -> bool:
    """Whether a reduction is so long, and its results so few, that programs share one result.

    Depends on sizes only: it decides the order of additions.
    """
    kept = long = 1
    for d, n in enumerate(domain):
        if d in reduced:
            long *= n
        else:
            kept *= n
    return long > _HUGE and kept < 256


def _natural(node: Node) -> Map:
    """The map of a node whose shape is the domain."""
    count = 0
    m = []
    for n in node.shape:
        m.append(-1 if n == 1 else count)
        count += n != 1
    return tuple(m)

"""Row-wise work becomes one generated kernel.

Elementwise ops, norms and activation quantisation over the same (tokens, width) rows are grouped;
a group is one kernel whose program instance handles a row: one pass over the row for each row
statistic (a mean, a sum of squares), then one pass that computes and stores what the rest of the
graph needs. Values are recomputed in each pass rather than stored. Each op keeps its own rounding
and each statistic its own order, so a fused group gives the same bits as its ops alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tilewright.dtypes import f32
from tilewright.graph import Graph, Node, Shape
from tilewright.ops import table
from tilewright.ops.source import unique_name

__all__ = ["BLOCK", "fuse_rows"]

BLOCK = 64  # elements per step of a pass; part of the summation order, so the same everywhere


@dataclass(eq=False)
class _Group:
    shape: Shape
    members: list[Node] = field(default_factory=list)
    depends: set[int] = field(default_factory=set)  # ids of groups this one reads, directly


def fuse_rows(graph: Graph, merge: bool = True) -> Graph:
    """Replace row-wise ops by generated kernels; ``merge=False`` keeps one op per kernel."""
    order = graph.nodes()
    groups = _partition(order, merge)
    members = {node: group for group in groups for node in group.members}
    needed = _needed_outside(graph, order, members)

    new: dict[Node, Node] = {}
    done: set[int] = set()

    def build(node: Node) -> None:
        """Rewrite ``node`` and, first, whatever it reads (a group is built as a whole)."""
        stack = [node]
        while stack:
            top = stack[-1]
            if top in new or (top in members and id(members[top]) in done):
                stack.pop()
                continue
            group = members.get(top)
            reads = _externals(group.members) if group else list(top.inputs)
            missing = [r for r in reads if r not in new]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            if group is None:
                new[top] = top.with_inputs(tuple(new[i] for i in top.inputs))
            else:
                _emit(group, needed, new)
                done.add(id(group))

    for node in graph.outputs.values():
        build(node)
    return Graph({name: new[node] for name, node in graph.outputs.items()})


# --- which ops share a kernel --------------------------------------------------------------------


def _is_candidate(node: Node) -> bool:
    if node.is_leaf:
        return False
    entry = table.get(node.op)
    source = node.inputs[0] if node.op == "quantize_rows" else node
    return (entry.is_rowwise or node.op == "quantize_rows") and (
        len(source.shape) == 2
        and isinstance(source.shape[1], int)
        and source.dtype is f32
        and all(x.dtype is f32 and x.shape in (source.shape, source.shape[1:]) for x in node.inputs)
    )


def _partition(order: list[Node], merge: bool) -> list[_Group]:
    groups: list[_Group] = []
    depends: dict[Node, set[int]] = {}  # groups a node is computed from, through any path
    of: dict[Node, int] = {}

    def closure(start: set[int]) -> set[int]:
        seen, stack = set(start), list(start)
        while stack:
            for other in groups[stack.pop()].depends:
                if other not in seen:
                    seen.add(other)
                    stack.append(other)
        return seen

    for node in order:
        above: set[int] = set()
        for source in node.inputs:
            above |= depends[source]
        if not _is_candidate(node):
            depends[node] = above
            continue
        shape = node.inputs[0].shape if node.op == "quantize_rows" else node.shape
        chosen = None
        for source in reversed(node.inputs) if merge else ():
            g = of.get(source)
            if g is None or groups[g].shape != shape:
                continue
            outside: set[int] = set()
            for other in node.inputs:
                if of.get(other) != g:
                    outside |= depends[other]
            if g not in closure(outside):
                chosen = g
                break
        if chosen is None:
            chosen = len(groups)
            groups.append(_Group(shape))
        group = groups[chosen]
        group.members.append(node)
        group.depends |= above - {chosen}
        of[node] = chosen
        depends[node] = above | {chosen}
    return groups


def _needed_outside(graph: Graph, order: list[Node], members: dict[Node, _Group]) -> set[Node]:
    needed = set(graph.outputs.values())
    for node in order:
        for source in node.inputs:
            if members.get(source) is not members.get(node):
                needed.add(source)
    return needed


def _externals(members: list[Node]) -> list[Node]:
    inside = set(members)
    return list(dict.fromkeys(i for m in members for i in m.inputs if i not in inside))


# --- the kernel's source -------------------------------------------------------------------------


def _emit(group: _Group, needed: set[Node], new: dict[Node, Node]) -> None:
    externals = _externals(group.members)
    outputs = [m for m in group.members if m in needed]
    text, name = _Source(group, externals, outputs).render()
    stats = any(table.get(m.op).stats for m in group.members)
    fused = Node(
        "rows",
        tuple(new[e] for e in externals),
        group.shape,
        f32,
        {"source": text, "kernel": name, "has_stats": stats},
        "+".join(m.op for m in group.members),
    )
    for i, out in enumerate(outputs):
        attrs: dict[str, Any] = {"index": i}
        if out.op == "quantize_rows":
            attrs["k"] = group.shape[1]
        new[out] = Node("result", (fused,), out.shape, out.dtype, attrs, out.name)


class _Source:
    """Writes one group's kernel."""

    def __init__(self, group: _Group, externals: list[Node], outputs: list[Node]) -> None:
        self.members = group.members
        width = group.shape[1]
        assert isinstance(width, int)
        self.n = width
        self.outputs = outputs
        self.params = {node: f"x{i}" for i, node in enumerate(externals)}
        self.inside = set(group.members)
        self.lines: list[str] = []
        self.stats: dict[Node, list[str]] = {}
        self.values: dict[Node, str] = {}  # names valid in the loop being written

    def render(self) -> tuple[str, str]:
        """The source text and the kernel's name."""
        for member in self.members:
            entry = table.get(member.op)
            self.stats[member] = []
            for i, stat in enumerate(entry.stats):
                self._statistic(member, i, stat)
        self._final_pass()
        results = []
        for i, out in enumerate(self.outputs):
            names = "qdsh" if out.op == "quantize_rows" else "y"
            results += [f"{letter}{i}" for letter in names]
        params = ", ".join(f"{p}: Array" for p in [*self.params.values(), *results])
        body = "\n".join(self.lines)
        name = unique_name("rows_" + "_".join(dict.fromkeys(m.op for m in self.members)), body)
        has_stats = any(self.stats.values())
        head = [
            f"def {name}({params}{'' if has_stats else ', SPAN: Const'}):",
            "    row = program_id(0)",
        ]
        if not has_stats:
            head.append("    first = program_id(1) * SPAN")
        return "\n".join([*head, body, ""]), name

    def _range(self) -> str:
        if any(table.get(m.op).stats for m in self.members):
            return f"range(0, {self.n}, {BLOCK})"
        return f"range(first, minimum(first + SPAN, {self.n}), {BLOCK})"

    def _statistic(self, member: Node, i: int, stat: table.RowStat) -> None:
        acc = f"acc{self.members.index(member)}_{i}"
        self.lines.append(f"    {acc} = zeros(({BLOCK},), f32)")
        self.lines.append(f"    for j in {self._range()}:")
        self.values = {}
        x = self._value(member.inputs[0])
        fields = self._fields(member, x, acc)
        update = stat.update.format(**fields)
        if stat.centred and self.n % BLOCK:
            update = f"where(arange(0, {BLOCK}) + j < {self.n}, {update}, {acc})"
        self.lines.append(f"        {acc} = {update}")
        name = f"s{self.members.index(member)}_{i}"
        self.lines.append(f"    {name} = {stat.finish.format(**fields)}")
        self.stats[member].append(name)

    def _fields(self, member: Node, x: str, acc: str = "") -> dict[str, object]:
        stats = {f"s{k}": name for k, name in enumerate(self.stats[member])}
        return {"x": x, "acc": acc, "n": self.n, **stats, **member.attrs}

    def _final_pass(self) -> None:
        self.lines.append(f"    for j in {self._range()}:")
        self.values = {}
        for i, out in enumerate(self.outputs):
            if out.op == "quantize_rows":
                x = self._value(out.inputs[0])
                fields = f"q{i}, d{i}, s{i}, h{i}"
                self.lines.append(f"        store_quantized({x}, row, j, {fields})")
            else:
                self.lines.append(f"        y{i}[row, j : j + {BLOCK}] = {self._value(out)}")

    def _value(self, node: Node) -> str:
        """A name for ``node``'s block at j in the loop being written."""
        if node in self.values:
            return self.values[node]
        if node not in self.inside:
            param = self.params[node]
            row = "row, " if len(node.shape) == 2 else ""
            expression = f"{param}[{row}j : j + {BLOCK}]"
        else:
            entry = table.get(node.op)
            operands = [self._value(i) for i in node.inputs]
            if entry.row_map is not None:
                fields = self._fields(node, operands[0])
                expression = entry.row_map.format(*operands[1:], **fields)
            else:
                expression = entry.source(node).format(*operands, **node.attrs)
        name = f"v{len(self.values)}"
        self.lines.append(f"        {name} = {expression}")
        self.values[node] = name
        return name

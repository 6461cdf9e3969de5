"""Which names matter where: the facts about a function body that runtime control flow needs.

A loop carries the names that its body assigns and that are read later (in the next iteration or
after the loop). This is the classical backward analysis over the syntax tree.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Facts", "analyse"]

Names = frozenset[str]
_NONE: Names = frozenset()


@dataclass(eq=False)
class Facts:
    """Per statement (by ``id`` of its node).

    Attributes:
        assigned: names that a ``for`` body or the branches of an ``if`` assign, in source order.
        head: names live at the start of an iteration of a ``for``.
        after: names live after an ``if`` or a ``for``.
        returns: whether an ``if`` or ``for`` contains a ``return``.
        captured: names that a nested function or lambda reads; always live.
        bound: every name assigned anywhere in the function, parameters included.
    """

    assigned: dict[int, tuple[str, ...]] = field(default_factory=dict)
    head: dict[int, Names] = field(default_factory=dict)
    after: dict[int, Names] = field(default_factory=dict)
    returns: dict[int, bool] = field(default_factory=dict)
    captured: Names = _NONE
    bound: Names = _NONE


def analyse(node: ast.FunctionDef | ast.Lambda) -> Facts:
    """The facts about one function; nested functions are analysed when they are parsed."""
    facts = Facts()
    parameters = {a.arg for a in _parameters(node.args)}
    if isinstance(node, ast.Lambda):
        facts.bound = frozenset(parameters)
        return facts
    captured: set[str] = set()
    for statement in node.body:
        for n in ast.walk(statement):
            if isinstance(n, (ast.FunctionDef, ast.Lambda)):
                captured |= _loads(n)
    facts.captured = frozenset(captured)
    facts.bound = frozenset(parameters | set(_assigned(node.body)))
    _Liveness(facts).block(node.body, facts.captured)
    return facts


def _parameters(args: ast.arguments) -> list[ast.arg]:
    extra = [a for a in (args.vararg, args.kwarg) if a is not None]
    return [*args.posonlyargs, *args.args, *args.kwonlyargs, *extra]


def _loads(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _targets(target: ast.expr) -> Iterable[str]:
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, (ast.Tuple, ast.List)):
        for element in target.elts:
            yield from _targets(element)


def _assigned(statements: Iterable[ast.stmt]) -> dict[str, None]:
    """Names assigned by ``statements`` (an ordered set)."""
    names: dict[str, None] = {}
    for s in statements:
        if isinstance(s, ast.Assign):
            for target in s.targets:
                names.update(dict.fromkeys(_targets(target)))
        elif isinstance(s, (ast.AugAssign, ast.AnnAssign)):
            names.update(dict.fromkeys(_targets(s.target)))
        elif isinstance(s, ast.For):
            names.update(dict.fromkeys(_targets(s.target)))
            names.update(_assigned(s.body))
        elif isinstance(s, ast.If):
            names.update(_assigned(s.body))
            names.update(_assigned(s.orelse))
        elif isinstance(s, ast.FunctionDef):
            names[s.name] = None
    return names


def _contains_return(node: ast.stmt) -> bool:
    if isinstance(node, ast.Return):
        return True
    if isinstance(node, (ast.If, ast.For)):
        return any(_contains_return(s) for s in (*node.body, *node.orelse))
    return False


class _Liveness:
    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.uses: dict[int, Names] = {}
        self.loops: list[Names] = []  # what is live where break and continue go

    def block(self, statements: list[ast.stmt], live: Names) -> Names:
        for statement in reversed(statements):
            live = self.statement(statement, live)
        return live

    def use(self, node: ast.AST) -> Names:
        found = self.uses.get(id(node))
        if found is None:
            found = self.uses[id(node)] = frozenset(_loads(node))
        return found

    def statement(self, s: ast.stmt, live: Names) -> Names:
        if isinstance(s, ast.If):
            return self.conditional(s, live)
        if isinstance(s, ast.For):
            return self.loop(s, live)
        if isinstance(s, ast.Assign):
            for target in s.targets:
                live = live - frozenset(_targets(target))
            return live | self.use(s)
        if isinstance(s, ast.AugAssign):
            return live | self.use(s) | frozenset(_targets(s.target))
        if isinstance(s, ast.FunctionDef):
            return live - {s.name}
        if isinstance(s, ast.Return):
            return self.facts.captured | self.use(s)
        if isinstance(s, (ast.Break, ast.Continue)):
            return self.loops[-1] if self.loops else live
        return live | self.use(s)

    def conditional(self, s: ast.If, live: Names) -> Names:
        key = id(s)
        if key not in self.facts.assigned:
            self.facts.assigned[key] = tuple(_assigned([s]))
            self.facts.returns[key] = _contains_return(s)
        self.facts.after[key] = live | self.facts.after.get(key, _NONE)
        return self.block(s.body, live) | self.block(s.orelse, live) | self.use(s.test)

    def loop(self, s: ast.For, live: Names) -> Names:
        key = id(s)
        if key not in self.facts.assigned:
            self.facts.assigned[key] = tuple(_assigned(s.body))
            self.facts.returns[key] = _contains_return(s)
        target = frozenset(_targets(s.target))
        head = live
        while True:
            self.loops.append(head)
            start = (self.block(s.body, head) - target) | live
            self.loops.pop()
            if start <= head:
                break
            head = head | start
        self.facts.head[key] = head | self.facts.head.get(key, _NONE)
        self.facts.after[key] = live | self.facts.after.get(key, _NONE)
        return head | self.use(s.iter)

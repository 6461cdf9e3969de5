"""Runtime control flow: loops and conditionals as IR blocks, and the values they carry.

A runtime ``for`` carries the variables that its body assigns and that are read later; a runtime
``if`` yields the variables that its branches assign. Variables are tiles, numbers and tuples of
them; numbers become tiles where a value is decided at run time.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from typing import Any

from tilewright.dtypes import boolean, f32, i64
from tilewright.errors import KernelError
from tilewright.lang.builtins import Range
from tilewright.lang.calls import Unbound
from tilewright.lang.expressions import Expressions
from tilewright.lang.ir import Block, TileType, Value
from tilewright.lang.source import located
from tilewright.lang.tile import Tile, as_index, as_tile, describe, is_number

__all__ = ["Control", "name_value"]


class Control(Expressions):
    """Emits ``if`` and ``for``; :class:`tilewright.lang.parse.Statements` executes the bodies."""

    constants: frozenset[str] = frozenset()  # names of Const parameters

    def body(self, statements: Sequence[ast.stmt]) -> None:
        """Execute the body of a runtime loop."""
        raise NotImplementedError

    # --- if ---

    def choose(
        self, flag: Tile, node: ast.AST, then: Callable[[], Any], otherwise: Callable[[], Any]
    ) -> Any:
        blocks, values = [], []
        for thunk in (then, otherwise):
            block = Block()
            with self.tracer.inside(block):
                values.append(thunk())
            blocks.append(block)
        return self.merge(flag, blocks, [("the value", (values[0], values[1]))], node)[0]

    def merge(
        self,
        flag: Tile,
        blocks: Sequence[Block],
        pairs: Sequence[tuple[str, tuple[Any, Any]]],
        node: ast.AST,
    ) -> list[Any]:
        """Close the two branches and emit the ``if``; one result per pair."""
        ends: tuple[list[Tile], list[Tile]] = ([], [])
        plans: list[Callable[[list[Tile]], Any]] = []
        for name, (a, b) in pairs:
            plans.append(self._plan(name, a, b, blocks, ends))
        for block, values in zip(blocks, ends):
            with self.tracer.inside(block):
                self.tracer.finish(values)
        if not ends[0] and not any(len(block.ops) > 1 for block in blocks):
            return [plan([]) for plan in plans]  # nothing but two empty yields
        self.here(node)
        types_ = [v.type for v in ends[0]]
        op = self.tracer.builder.emit("if", (flag.data,), types_, tuple(blocks))
        results = [Tile(v, t.dtype, t.shape) for v, t in zip(op.results, types_)]
        for (name, _), tile in zip(pairs, results):
            if name.isidentifier():
                name_value(tile, name)
        return [plan(results) for plan in plans]

    def _plan(
        self,
        name: str,
        a: Any,
        b: Any,
        blocks: Sequence[Block],
        ends: tuple[list[Tile], list[Tile]],
    ) -> Callable[[list[Tile]], Any]:
        """How to make one value out of the branches' ``a`` and ``b``."""
        if a is b or (is_number(a) and type(a) is type(b) and repr(a) == repr(b)):
            return lambda results: a
        if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
            parts = [
                self._plan(f"{name}[{i}]", x, y, blocks, ends) for i, (x, y) in enumerate(zip(a, b))
            ]
            return lambda results: tuple(p(results) for p in parts)
        for value in (a, b):
            if not isinstance(value, Tile) and not is_number(value):
                raise KernelError(
                    f"{name} is {describe(a)} in one branch of a runtime `if` and {describe(b)} "
                    "in the other: only tiles and numbers can be chosen at run time"
                )
        strong = next((v.dtype for v in (a, b) if isinstance(v, Tile)), None)
        with self.tracer.inside(blocks[0]):
            left = as_tile(a, strong if not isinstance(a, Tile) else None)
        with self.tracer.inside(blocks[1]):
            right = as_tile(b, (strong or left.dtype) if not isinstance(b, Tile) else None)
        if left.type != right.type:
            raise KernelError(
                f"{name} is {describe(left)} in one branch of a runtime `if` and "
                f"{describe(right)} in the other: make both the same type"
            )
        position = len(ends[0])
        ends[0].append(left)
        ends[1].append(right)
        return lambda results: results[position]

    # --- for ---

    def runtime_loop(self, node: ast.For, bounds: Range) -> None:
        if not isinstance(node.target, ast.Name):
            raise located(
                KernelError("a runtime loop has one variable"), self.source.location(node.target)
            )
        if node.target.id in self.constants:
            raise located(
                KernelError(f"{node.target.id!r} is a Const parameter and cannot be assigned"),
                self.source.location(node.target),
            )
        self.here(node)
        limits = [as_index(b) for b in (bounds.start, bounds.stop, bounds.step)]
        facts = self.source.facts
        head = facts.head[id(node)] | facts.captured
        names = [
            n
            for n in facts.assigned[id(node)]
            if n in head and n in self.env and not isinstance(self.env[n], Unbound)
        ]
        carried = self._carried(node, names)
        self.here(node)
        leaves, rebuild = _flatten(carried)
        inits = [as_tile(v) for v in leaves]
        body, end = self._loop_body(node, inits, rebuild, names)
        self._check_carried(carried, end, node)
        with self.tracer.inside(body):
            last = _flatten({n: end[n] for n in carried})[0]
            ends = [as_tile(v, t.dtype) for v, t in zip(last, inits)]
            self.tracer.finish(ends)
        self.here(node)
        op = self.tracer.builder.emit(
            "for", [t.data for t in (*limits, *inits)], [t.type for t in inits], (body,)
        )
        results = [Tile(v, v.dtype, v.shape) for v in op.results]
        for name in (node.target.id, *facts.assigned[id(node)]):
            if name not in names:
                self.env[name] = Unbound(
                    f"{name!r} is assigned only inside a runtime loop, which may run no "
                    "iteration: give it a value before the loop"
                )
        for name, value in rebuild(results).items():
            name_value(value, name)
            self.env[name] = value
        for name in names:
            if name not in carried:
                self.env[name] = end[name]

    def _loop_body(
        self,
        node: ast.For,
        inits: Sequence[Tile],
        rebuild: Callable[[Sequence[Tile]], dict[str, Any]],
        names: Sequence[str],
    ) -> tuple[Block, dict[str, Any]]:
        """Parse the body once with carried values of the types of ``inits``."""
        assert isinstance(node.target, ast.Name)
        index = Value(TileType(i64), node.target.id)
        args = [Value(t.type) for t in inits]
        body = Block([index, *args])
        outer = self.env
        self.env = dict(outer)
        for name, value in rebuild([Tile(v, v.dtype, v.shape) for v in args]).items():
            name_value(value, name)
            self.env[name] = value
        self.env[node.target.id] = Tile(index, i64, ())
        try:
            with self.tracer.inside(body):
                self.body(node.body)
            end = {n: self.env.get(n) for n in names}
        finally:
            self.env = outer
        return body, end

    def _carried(self, node: ast.For, names: Sequence[str]) -> dict[str, Any]:
        """The initial values that the loop carries, weak numbers given the dtype they turn into.

        A variable that is a Python number before the loop takes the dtype that the first iteration
        gives it. Finding out means parsing the body with the number in place; a number that no
        iteration changes stays a compile-time constant.
        """
        carried = {n: self.env[n] for n in names if _is_runtime(self.env[n])}
        weak = [n for n in names if n not in carried]
        loc = self.tracer.builder.loc
        while weak:
            with self.tracer.inside(Block()):
                leaves, rebuild = _flatten(carried)
                inits = [as_tile(v) for v in leaves]
                end: dict[str, Any] | None = None
                saved = dict(self.env)
                try:
                    end = self._loop_body(node, inits, rebuild, names)[1]
                except KernelError:
                    self.env = saved
            self.tracer.builder.loc = loc
            changed = [n for n in weak if end is None or not _same(self.env[n], end[n])]
            if not changed:
                break
            for name in changed:
                self._refuse_float_counter(node, name, None if end is None else end[name])
                carried[name] = _typed(self.env[name], None if end is None else end[name])
                weak.remove(name)
        return {n: carried[n] for n in names if n in carried}

    def _refuse_float_counter(self, node: ast.For, name: str, end: Any) -> None:
        """Python would add up in double precision what the kernel adds up in f32."""
        if is_number(self.env[name]) and isinstance(end, float):
            raise located(
                KernelError(
                    f"{name!r} is a Python number that each iteration changes to another one "
                    f"({self.env[name]!r}, then {end!r}): give it a dtype before the loop, "
                    f"{name} = cast({self.env[name]!r}, f32)"
                ),
                self._last_assignment(node, name),
            )

    def _check_carried(self, start: dict[str, Any], end: dict[str, Any], node: ast.For) -> None:
        for name, value in start.items():
            a, _ = _flatten({name: value})
            try:
                b, _ = _flatten({name: end[name]})
            except KernelError:
                b = []
            same = len(a) == len(b) and all(
                x.type == y.type if isinstance(y, Tile) else not x.shape for x, y in zip(a, b)
            )
            if not same:
                raise located(
                    KernelError(
                        f"{name!r} changes its type in the loop: it is {describe(value)} before "
                        f"and {describe(end[name])} after an iteration; make both the same, with "
                        "zeros(shape, dtype), full(...) or .to(dtype)"
                    ),
                    self._last_assignment(node, name),
                )

    def _last_assignment(self, node: ast.For, name: str) -> Any:
        place: ast.AST = node
        for n in ast.walk(node):
            if isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Store):
                place = n
        return self.source.location(place)


def name_value(value: Any, name: str) -> None:
    """Call an IR value as the user does, the first time it gets a name."""
    if isinstance(value, Tile) and not value.data.name:
        op = value.data.op
        if op is None or op.name != "constant":  # constants are shared
            value.data.name = name


def _is_runtime(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(_is_runtime(v) for v in value)
    return isinstance(value, Tile)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b))
    return a is b or (type(a) is type(b) and is_number(a) and repr(a) == repr(b))


def _typed(start: Any, end: Any) -> Any:
    """``start`` with its numbers as tiles of the dtype they have after an iteration."""
    if isinstance(start, tuple):
        ends = end if isinstance(end, tuple) and len(end) == len(start) else (None,) * len(start)
        return tuple(_typed(a, b) for a, b in zip(start, ends))
    if not is_number(start):
        return start
    if isinstance(end, Tile):
        return as_tile(start, None if _loses(start, end) else end.dtype)
    wide = (
        f32 if isinstance(start, float) or isinstance(end, float)
        else boolean if isinstance(start, bool) and (end is None or isinstance(end, bool))
        else i64
    )  # fmt: skip
    return as_tile(start, wide)


def _loses(start: Any, end: Tile) -> bool:
    return isinstance(start, float) and not end.dtype.is_float and not math.isnan(start)


def _flatten(values: dict[str, Any]) -> tuple[list[Any], Callable[[Sequence[Any]], dict[str, Any]]]:
    """The tiles and numbers in ``values`` (tuples are opened) and how to put them back."""
    leaves: list[Any] = []

    def shape(value: Any, name: str) -> Any:
        if isinstance(value, tuple):
            return tuple(shape(v, name) for v in value)
        if not isinstance(value, Tile) and not is_number(value):
            raise KernelError(
                f"{name!r} is {describe(value)}: a runtime loop can carry only tiles and numbers"
            )
        leaves.append(value)
        return len(leaves) - 1

    plan = {name: shape(value, name) for name, value in values.items()}

    def rebuild(items: Sequence[Any]) -> dict[str, Any]:
        def one(p: Any) -> Any:
            return tuple(one(x) for x in p) if isinstance(p, tuple) else items[p]

        return {name: one(p) for name, p in plan.items()}

    return leaves, rebuild

"""Python syntax tree -> tile IR: the statements of a kernel.

Values known at compile time stay Python objects; everything else becomes IR. A kernel's frame
(:class:`Statements`) keeps its variables in ``env``; runtime loops and conditionals open blocks and
carry the variables that their bodies change.
"""

from __future__ import annotations

import ast
import math
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tilewright.dtypes import boolean, f32, i64
from tilewright.errors import KernelError
from tilewright.lang.array import Array
from tilewright.lang.builtins import Range, Unrolled
from tilewright.lang.calls import LocalFunction, Unbound, native
from tilewright.lang.engine import activate
from tilewright.lang.expressions import _BINARY, Expressions
from tilewright.lang.ir import Block, Function, TileType, Value, verify
from tilewright.lang.source import LocatedError, located, source_of
from tilewright.lang.tile import Tile, as_index, as_tile, describe, is_number
from tilewright.lang.trace import Tracer

__all__ = ["parse"]

_WANTED: Final[dict[type, str]] = {
    ast.While: "`while` is not part of the kernel language: use `for ... in range(...)`",
    ast.Try: "`try` is not part of the kernel language: every access is safe, nothing raises",
    ast.With: "`with` is not part of the kernel language",
    ast.ClassDef: "classes are defined outside of kernels",
    ast.Import: "import outside of the kernel",
    ast.ImportFrom: "import outside of the kernel",
    ast.Global: "a kernel cannot assign globals: store results into an array",
    ast.Nonlocal: "a nested function cannot assign outer variables: return the value instead",
    ast.Delete: "`del` is not part of the kernel language",
    ast.AnnAssign: "annotated assignment is not part of the kernel language: "
    "make a typed scalar with cast(0, f32)",
    ast.Match: "`match` is not part of the kernel language: use `if` on compile-time values",
    ast.AsyncFunctionDef: "async functions are not part of the kernel language",
    ast.AsyncFor: "`async for` is not part of the kernel language",
    ast.AsyncWith: "`async with` is not part of the kernel language",
}


@dataclass(frozen=True)
class Returned:
    """A block ended in ``return value``."""

    value: Any


NEXT: Final = "next"
BREAK: Final = "break"
CONTINUE: Final = "continue"
Flow = Returned | str
Continuation = tuple[ast.stmt, ...] | None
"""The statements that follow the current block; ``None`` inside loops, where none may return."""


def parse(
    fn: types.FunctionType, name: str, env: dict[str, Any], params: Sequence[Value]
) -> Function:
    """The IR of kernel ``fn`` with its parameters bound as in ``env``.

    ``env`` holds arrays and tiles over ``params``, and compile-time constants. Raises
    :class:`KernelError` with the user's line and a caret.
    """
    body = Block()
    tracer = Tracer(body)
    source = source_of(fn)
    frame = Statements(tracer, source, fn, env)
    frame.constants = frozenset(n for n, v in env.items() if not isinstance(v, (Tile, Array)))
    with activate(tracer):
        value = frame.run()
    if value is not None:
        raise located(
            KernelError(f"a kernel returns nothing, this one returns {describe(value)}: store it"),
            source.location(source.node),
        )
    tracer.complete(body)
    function = Function(name, list(params), body)
    verify(function)
    return function


class Statements(Expressions):
    """Executes the statements of one function."""

    constants: frozenset[str] = frozenset()

    def run(self) -> Any:
        node = self.source.node
        if isinstance(node, ast.Lambda):
            return self.eval(node.body)
        flow = self.block(node.body, ())
        return flow.value if isinstance(flow, Returned) else None

    # --- blocks of statements ---

    def block(self, statements: Sequence[ast.stmt], then: Continuation) -> Flow:
        """Execute ``statements``; ``then`` is what follows them."""
        for i, statement in enumerate(statements):
            try:
                if isinstance(statement, ast.If):
                    rest = None if then is None else (*statements[i + 1 :], *then)
                    flow = self.stmt_If(statement, rest)
                else:
                    method = getattr(self, "stmt_" + type(statement).__name__, None)
                    if method is None:
                        kind = type(statement).__name__
                        raise KernelError(
                            _WANTED.get(type(statement), f"{kind} is not part of the language")
                        )
                    flow = method(statement)
            except LocatedError:
                raise
            except KernelError as error:
                raise located(error, self.source.location(statement)) from error
            if flow is not None and flow is not NEXT:
                return flow
        return NEXT

    def stmt_Pass(self, node: ast.Pass) -> None:
        pass

    def stmt_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # docstrings
            self.eval(node.value)

    def stmt_Return(self, node: ast.Return) -> Flow:
        return Returned(None if node.value is None else self.eval(node.value))

    def stmt_Break(self, node: ast.Break) -> Flow:
        return BREAK

    def stmt_Continue(self, node: ast.Continue) -> Flow:
        return CONTINUE

    def stmt_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.decorator_list:
            raise KernelError("a nested function takes no decorators")
        self.env[node.name] = LocalFunction(node, self)

    def stmt_Assert(self, node: ast.Assert) -> None:
        test = self.eval(node.test)
        if isinstance(test, Tile):
            raise KernelError("assert wants a compile-time condition, this one is a runtime value")
        if not test:
            said = "" if node.msg is None else f": {self.eval(node.msg)}"
            raise KernelError(f"assertion failed{said}")

    def stmt_Raise(self, node: ast.Raise) -> None:
        said = "" if node.exc is None else ast.unparse(node.exc)
        if isinstance(node.exc, ast.Call) and node.exc.args:
            said = str(self.eval(node.exc.args[0]))
        raise KernelError(f"the kernel raises: {said}")

    # --- assignment ---

    def stmt_Assign(self, node: ast.Assign) -> None:
        value = self.eval(node.value)
        for target in node.targets:
            self.assign(target, value)

    def assign(self, target: ast.expr, value: Any) -> None:
        """Bind a name, unpack a tuple or store into an array."""
        if isinstance(target, ast.Name):
            self.bind_name(target, value)
        elif isinstance(target, (ast.Tuple, ast.List)):
            self.unpack(target, value)
        elif isinstance(target, ast.Subscript):
            self.store(target, value)
        else:
            raise located(
                KernelError("assign to names and to windows of arrays only"),
                self.source.location(target),
            )

    def bind_name(self, target: ast.Name, value: Any) -> None:
        if target.id in self.constants:
            raise located(
                KernelError(f"{target.id!r} is a Const parameter and cannot be assigned"),
                self.source.location(target),
            )
        _name(value, target.id)
        self.env[target.id] = value

    def unpack(self, target: ast.Tuple | ast.List, value: Any) -> None:
        if isinstance(value, Tile):
            raise located(
                KernelError(f"{describe(value)} cannot be unpacked"), self.source.location(target)
            )
        items = native(tuple, value)
        if any(isinstance(t, ast.Starred) for t in target.elts):
            raise located(
                KernelError("`*` in an assignment is not part of the kernel language"),
                self.source.location(target),
            )
        if len(items) != len(target.elts):
            raise located(
                KernelError(f"{len(items)} values for {len(target.elts)} names"),
                self.source.location(target),
            )
        for element, item in zip(target.elts, items):
            self.assign(element, item)

    def store(self, target: ast.Subscript, value: Any) -> None:
        array = self.eval(target.value)
        self._store(target, array, self.key(array, target.slice), value)

    def _store(self, target: ast.Subscript, array: Any, key: Any, value: Any) -> None:
        if not isinstance(array, Array):
            hint = (
                ": tiles are values, use where(...) or scratch" if isinstance(array, Tile) else ""
            )
            raise located(
                KernelError(f"only arrays can be stored into, this is {describe(array)}{hint}"),
                self.source.location(target),
            )
        self.here(target)
        try:
            array[key] = value
        except LocatedError:
            raise
        except KernelError as error:
            raise located(error, self.source.location(target)) from error

    def stmt_AugAssign(self, node: ast.AugAssign) -> None:
        operation = _BINARY[type(node.op)]
        target = node.target
        if isinstance(target, ast.Name):
            old = self.eval(ast.copy_location(ast.Name(target.id, ast.Load()), target))
            value = self.eval(node.value)
            self.here(node)
            self.bind_name(target, native(operation, old, value))
        elif isinstance(target, ast.Subscript):
            array = self.eval(target.value)
            key = self.key(array, target.slice)
            self.here(target)
            old = native(lambda: array[key])
            value = self.eval(node.value)
            self.here(node)
            self._store(target, array, key, native(operation, old, value))
        else:
            raise KernelError("assign to names and to windows of arrays only")

    # --- if ---

    def stmt_If(self, node: ast.If, rest: Continuation) -> Flow:
        test = self.eval(node.test)
        if not isinstance(test, Tile):
            if isinstance(test, Array):
                raise KernelError(f"{describe(test)} has no truth value")
            return self.block(node.body if test else node.orelse, rest)
        self.here(node)
        flag = self.condition(test, "if")
        if self.source.facts.returns[id(node)]:
            return self.returning_if(node, flag, rest)
        outer = dict(self.env)
        names = self.source.facts.assigned[id(node)]
        live = self.source.facts.after[id(node)] | self.source.facts.captured
        blocks, envs = [], []
        for statements in (node.body, node.orelse):
            self.env = dict(outer)
            block = Block()
            with self.tracer.inside(block):
                if self.block(statements, None) is not NEXT:
                    raise KernelError(
                        "break and continue work at compile time only: this `if` is decided at "
                        "run time"
                    )
            blocks.append(block)
            envs.append(self.env)
        self.env = outer
        pairs: dict[str, tuple[Any, Any]] = {}
        for name in names:
            a, b = (env.get(name, _NOWHERE) for env in envs)
            if a is b:
                if a is not _NOWHERE:
                    self.env[name] = a
            elif name not in live:
                self.env[name] = Unbound(f"{name!r} has no value after the `if` that assigned it")
            elif isinstance(a, Unbound) or isinstance(b, Unbound):
                self.env[name] = Unbound(
                    f"{name!r} is assigned in one branch of a runtime `if` only: "
                    "give it a value before"
                )
            else:
                pairs[name] = (a, b)
        merged = self.merge(flag, blocks, list(pairs.items()), node)
        self.env.update(zip(pairs, merged))
        return NEXT

    def returning_if(self, node: ast.If, flag: Tile, rest: Continuation) -> Flow:
        """A runtime ``if`` with a ``return`` inside: what follows moves into its branches."""
        if rest is None:
            raise KernelError(
                "return inside a runtime loop or `if` in a loop is not part of the language: "
                "carry a value out of the loop and return after it"
            )
        outer = dict(self.env)
        blocks, values = [], []
        for statements in (node.body, node.orelse):
            self.env = dict(outer)
            block = Block()
            with self.tracer.inside(block):
                flow = self.block((*statements, *rest), ())
            blocks.append(block)
            values.append(flow.value if isinstance(flow, Returned) else None)
        self.env = outer
        return Returned(self.merge(flag, blocks, [("the value", (values[0], values[1]))], node)[0])

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
        self.here(node)
        types_ = [v.type for v in ends[0]]
        op = self.tracer.builder.emit("if", (flag.data,), types_, tuple(blocks))
        results = [Tile(v, t.dtype, t.shape) for v, t in zip(op.results, types_)]
        for (name, _), tile in zip(pairs, results):
            if name.isidentifier():
                _name(tile, name)
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

    def stmt_For(self, node: ast.For) -> Flow:
        if node.orelse:
            raise KernelError("`for ... else` is not part of the kernel language")
        items = self.eval(node.iter)
        if isinstance(items, Unrolled):
            return self.unrolled(node, items)
        if isinstance(items, Range):
            if self.source.facts.returns[id(node)]:
                raise KernelError(
                    "return inside a runtime loop is not part of the language: "
                    "carry a value out of the loop and return after it"
                )
            self.runtime_loop(node, items)
            return NEXT
        raise located(
            KernelError(
                f"a loop runs over range(...) or unroll(...), this is {describe(items)}: "
                "unroll(...) takes compile-time sequences"
            ),
            self.source.location(node.iter),
        )

    def unrolled(self, node: ast.For, items: Unrolled) -> Flow:
        for item in items:
            self.assign(node.target, item)
            flow = self.block(node.body, None)
            if isinstance(flow, Returned):
                return flow
            if flow is BREAK:
                break
        return NEXT

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
            _name(value, name)
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
            _name(value, name)
            self.env[name] = value
        self.env[node.target.id] = Tile(index, i64, ())
        try:
            with self.tracer.inside(body):
                if self.block(node.body, None) is not NEXT:
                    raise KernelError("break and continue work in unroll(...) only")
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


_NOWHERE: Final = Unbound("has no value")


def _name(value: Any, name: str) -> None:
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

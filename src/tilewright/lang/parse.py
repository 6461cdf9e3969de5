"""Python syntax tree -> tile IR: the statements of a kernel.

Values known at compile time stay Python objects; everything else becomes IR. A kernel's frame
(:class:`Statements`) keeps its variables in ``env``; runtime loops and conditionals open blocks and
carry the variables that their bodies change.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tilewright.errors import KernelError
from tilewright.lang.array import Array
from tilewright.lang.builtins import Range, Unrolled
from tilewright.lang.calls import LocalFunction, Unbound, native
from tilewright.lang.control import Control, name_value
from tilewright.lang.engine import activate
from tilewright.lang.expressions import OPERATORS
from tilewright.lang.ir import Block, Function, Value, verify
from tilewright.lang.source import LocatedError, located, source_of
from tilewright.lang.tile import Tile, describe
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


class Statements(Control):
    """Executes the statements of one function."""

    def run(self) -> Any:
        node = self.source.node
        if isinstance(node, ast.Lambda):
            return self.eval(node.body)
        flow = self.block(node.body, ())
        return flow.value if isinstance(flow, Returned) else None

    def body(self, statements: Sequence[ast.stmt]) -> None:
        if self.block(statements, None) is not NEXT:
            raise KernelError("break and continue work in unroll(...) only")

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
        name_value(value, target.id)
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
        operation = OPERATORS[type(node.op)]
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


_NOWHERE: Final = Unbound("has no value")

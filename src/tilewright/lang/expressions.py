"""Expressions of the kernel language: syntax tree in, compile-time values and tiles out."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any, Final

from tilewright.dtypes import DType, boolean
from tilewright.errors import KernelError
from tilewright.lang.array import Array, Span, make_span
from tilewright.lang.calls import Caller, LocalFunction, Unbound, native
from tilewright.lang.source import LocatedError, located
from tilewright.lang.tile import Tile, compare, describe, is_number

__all__ = ["OPERATORS", "Expressions"]

OPERATORS: Final[dict[type, Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.MatMult: operator.matmul,
}
_UNARY: Final[dict[type, Callable[[Any], Any]]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}
_COMPARE: Final[dict[type, Callable[[Any, Any], Any]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_SILENT: Final = frozenset(("print", "breakpoint"))
_INSTEAD: Final = "use `for ... in unroll(...)`"
_WANTED: Final[dict[type, str]] = {
    ast.ListComp: f"comprehensions are not part of the kernel language: {_INSTEAD}",
    ast.SetComp: f"comprehensions are not part of the kernel language: {_INSTEAD}",
    ast.DictComp: f"comprehensions are not part of the kernel language: {_INSTEAD}",
    ast.GeneratorExp: f"generator expressions are not part of the kernel language: {_INSTEAD}",
    ast.JoinedStr: "f-strings are not part of the kernel language",
    ast.NamedExpr: "`:=` is not part of the kernel language: assign in a statement of its own",
    ast.Await: "`await` is not part of the kernel language",
    ast.Yield: "`yield` is not part of the kernel language: store results into an array",
    ast.Starred: "`*` unpacking is not part of the kernel language here",
}


class Expressions(Caller):
    """Evaluates expressions; one instance per function being parsed."""

    def eval(self, node: ast.expr) -> Any:
        """The value of ``node``: a tile, an array or a compile-time Python object."""
        method = _METHODS.get(type(node))
        try:
            if method is None:
                kind = type(node).__name__
                raise KernelError(
                    _WANTED.get(type(node), f"{kind} is not part of the kernel language")
                )
            return method(self, node)
        except LocatedError:
            raise
        except KernelError as error:
            raise located(error, self.source.location(node)) from error

    def here(self, node: ast.AST) -> None:
        """Stamp the ops that follow with the place of ``node``."""
        self.tracer.builder.loc = self.source.location(node)

    def eval_Constant(self, node: ast.Constant) -> Any:
        if isinstance(node.value, complex):
            raise KernelError("complex numbers are not part of the kernel language")
        return node.value

    def eval_Name(self, node: ast.Name) -> Any:
        value = self.lookup(node.id)
        if isinstance(value, Unbound):
            raise KernelError(value.reason)
        return value

    def eval_Tuple(self, node: ast.Tuple) -> Any:
        return tuple(self.elements(node.elts))

    def eval_List(self, node: ast.List) -> Any:
        return list(self.elements(node.elts))

    def elements(self, nodes: list[ast.expr]) -> list[Any]:
        out: list[Any] = []
        for element in nodes:
            if isinstance(element, ast.Starred):
                out.extend(native(tuple, self.eval(element.value)))
            else:
                out.append(self.eval(element))
        return out

    def eval_Dict(self, node: ast.Dict) -> Any:
        if any(k is None for k in node.keys):
            raise KernelError("`**` unpacking is not part of the kernel language here")
        keys = [self.eval(k) for k in node.keys if k is not None]
        return native(lambda: dict(zip(keys, (self.eval(v) for v in node.values))))

    def eval_BinOp(self, node: ast.BinOp) -> Any:
        left, right = self.eval(node.left), self.eval(node.right)
        self.here(node)
        return native(OPERATORS[type(node.op)], left, right)

    def eval_UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self.eval(node.operand)
        self.here(node)
        if isinstance(node.op, ast.Not):
            if isinstance(value, Tile):
                return ~self.condition(value, "not")
            return not value
        return native(_UNARY[type(node.op)], value)

    def condition(self, value: Tile, what: str) -> Tile:
        """A runtime scalar as bool."""
        if value.shape:
            instead = {"and": " & ", "or": " | ", "not": " ~ "}.get(what)
            hint = f"use{instead}on tiles" if instead else "use where(...), any(...) or all(...)"
            raise KernelError(f"`{what}` wants a scalar, got {describe(value)}: {hint}")
        return value if value.dtype is boolean else compare("ne", value, 0)

    def eval_BoolOp(self, node: ast.BoolOp) -> Any:
        conjunction = isinstance(node.op, ast.And)
        what = "and" if conjunction else "or"
        runtime: Tile | None = None
        value: Any = None
        for part in node.values:
            value = self.eval(part)
            self.here(node)
            if isinstance(value, Tile):
                if value.dtype is not boolean and not value.shape:
                    raise KernelError(
                        f"`{what}` gives one of its operands, which is decided at run time here: "
                        f"compare {describe(value)} first, x != 0"
                    )
                value = self.condition(value, what)
                if runtime is not None:
                    value = (runtime & value) if conjunction else (runtime | value)
                runtime = value
            elif bool(value) is not conjunction:  # decides at compile time
                return value if runtime is None else (not conjunction)
        return value if runtime is None else runtime

    def eval_Compare(self, node: ast.Compare) -> Any:
        left = self.eval(node.left)
        out: Any = None
        for op, right_node in zip(node.ops, node.comparators):
            right = self.eval(right_node)
            self.here(node)
            if isinstance(op, (ast.In, ast.NotIn)) and isinstance(left, Tile):
                raise KernelError(f"`in` wants compile-time values, got {describe(left)}")
            value = native(_COMPARE[type(op)], left, right)
            if out is None:
                out = value
            elif isinstance(out, Tile) and isinstance(value, Tile):
                if out.shape or value.shape:
                    raise KernelError("a chain of comparisons on tiles: write (a < b) & (b < c)")
                out = out & value
            elif isinstance(out, Tile):
                out = out if value else False
            else:
                out = value if out else False
            if out is False:
                return False
            left = right
        return out

    def eval_IfExp(self, node: ast.IfExp) -> Any:
        test = self.eval(node.test)
        if not isinstance(test, Tile):
            return self.eval(node.body if test else node.orelse)
        self.here(node)
        flag = self.condition(test, "if")
        return self.choose(flag, node, lambda: self.eval(node.body), lambda: self.eval(node.orelse))

    def choose(
        self,
        flag: Tile,
        node: ast.AST,
        then: Callable[[], Any],
        otherwise: Callable[[], Any],
    ) -> Any:
        """An ``if`` op whose branches compute one value each."""
        raise NotImplementedError

    def eval_Lambda(self, node: ast.Lambda) -> Any:
        return LocalFunction(node, self)

    def eval_Attribute(self, node: ast.Attribute) -> Any:
        value = self.eval(node.value)
        self.here(node)
        if isinstance(value, (Tile, Array)) and not _public(value, node.attr):
            kind = "a tile" if isinstance(value, Tile) else "an array"
            names = ", ".join(n for n in dir(value) if _public(value, n))
            raise KernelError(f"{kind} has no attribute {node.attr!r} (it has {names})")
        if isinstance(value, LocalFunction) or node.attr.startswith("__"):
            raise KernelError(f"{node.attr!r} of {describe(value)} is out of reach in a kernel")
        return native(getattr, value, node.attr)

    def eval_Subscript(self, node: ast.Subscript) -> Any:
        value = self.eval(node.value)
        key = self.key(value, node.slice)
        self.here(node)
        if isinstance(value, (str, int, float, DType)) or callable(value):
            raise KernelError(f"{describe(value)} cannot be indexed")
        if isinstance(key, Tile) and not isinstance(value, (Array, Tile)):
            raise KernelError(
                f"{describe(value)} is indexed at compile time, the index {describe(key)} is known "
                "only at run time"
            )
        return native(operator.getitem, value, key)

    def key(self, value: Any, node: ast.expr) -> Any:
        """A subscript's key; slices of arrays become spans."""
        nodes = node.elts if isinstance(node, ast.Tuple) else [node]
        keys: list[Any] = []
        for part in nodes:
            if isinstance(part, ast.Slice):
                keys.append(self.span(value, part))
            elif isinstance(part, ast.Starred):
                keys.extend(native(tuple, self.eval(part.value)))
            else:
                keys.append(self.eval(part))
        return tuple(keys) if isinstance(node, ast.Tuple) else keys[0]

    def span(self, value: Any, node: ast.Slice) -> Span | slice:
        lower = None if node.lower is None else self.eval(node.lower)
        mark = self.tracer.mark()
        upper = None if node.upper is None else self.eval(node.upper)
        step = None if node.step is None else self.eval(node.step)
        if not isinstance(value, Array) or upper is None:
            return slice(lower, upper, step)
        try:
            if not isinstance(step, (int, type(None))) or isinstance(step, bool):
                raise KernelError(
                    f"a window's step must be a compile-time integer, got {describe(step)}"
                )
            if step is not None and step < 1:
                raise KernelError(f"a window's step must be positive, got {step}")
            span = make_span(0 if lower is None else lower, upper, step or 1)
        except KernelError as error:
            raise located(error, self.source.location(node)) from error
        self.tracer.forget(mark)
        return span

    def eval_Call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Name) and node.func.id in _SILENT:
            return None  # for the interpreter only
        fn = self.eval(node.func)
        args = self.elements(node.args)
        kwargs: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                kwargs.update(native(dict, self.eval(keyword.value)))
            else:
                kwargs[keyword.arg] = self.eval(keyword.value)
        self.here(node)
        return self.call(fn, args, kwargs, node)


def _public(value: Any, name: str) -> bool:
    hidden = ("data", "origin", "name", "numpy", "type")
    return not name.startswith("_") and name not in hidden and hasattr(type(value), name)


def is_compile_time(value: Any) -> bool:
    """Whether ``value`` holds no tile or array."""
    if isinstance(value, (tuple, list)):
        return all(is_compile_time(v) for v in value)
    return is_number(value) or not isinstance(value, (Tile, Array, Unbound))


_METHODS: Final[dict[type, Callable[[Expressions, Any], Any]]] = {
    getattr(ast, name.removeprefix("eval_")): method
    for name, method in vars(Expressions).items()
    if name.startswith("eval_")
}

"""Names and calls while parsing a kernel: what a name means, and inlining of functions."""

from __future__ import annotations

import ast
import builtins
import types
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import KernelError
from tilewright.lang.array import Array
from tilewright.lang.builtins import PYTHON_NAMES
from tilewright.lang.source import LocatedError, Source, source_of
from tilewright.lang.tile import Tile, describe
from tilewright.lang.trace import Tracer

__all__ = ["Caller", "LocalFunction", "Unbound", "bind", "free_value", "native", "python_function"]

_MAX_DEPTH: Final = 32
_NATIVE_ERRORS: Final = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
_CONSTANT_FUNCTIONS: Final = frozenset(
    (
        "len", "int", "float", "bool", "str", "tuple", "list", "dict", "enumerate", "zip",
        "reversed", "sorted", "isinstance", "divmod", "getattr", "hasattr", "repr", "type", "slice",
    )
)  # fmt: skip
_ON_TILES: Final = {
    "int": "use .to(i64)",
    "float": "use .to(f32)",
    "bool": "compare it, x != 0",
    "divmod": "use // and %",
}


class Unbound:
    """A name that is assigned somewhere but has no value here."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class LocalFunction:
    """A lambda or a function defined inside a kernel, with the frame it closes over."""

    def __init__(self, node: ast.Lambda | ast.FunctionDef, frame: Any) -> None:
        self.node = node
        self.frame = frame
        self.defaults = [frame.eval(d) for d in node.args.defaults]
        self.kw_defaults = {
            a.arg: frame.eval(d)
            for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults)
            if d is not None
        }
        self.__name__ = getattr(node, "name", "<lambda>")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.frame.inline_local(self, args, kwargs)


def native(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``fn``; what Python raises at compile time becomes a :class:`KernelError`."""
    try:
        return fn(*args, **kwargs)
    except KernelError:
        raise
    except _NATIVE_ERRORS as error:
        text = str(error) if not isinstance(error, KeyError) else f"no key {error}"
        raise KernelError(text or type(error).__name__) from error


def python_function(value: Any) -> types.FunctionType | None:
    """The Python function behind ``value`` (itself, or a kernel's), if it is to be inlined."""
    fn = getattr(value, "__kernel_function__", value)
    if isinstance(fn, types.FunctionType) and not hasattr(fn, "__tile_builtin__"):
        return fn
    return None


def bind(
    name: str,
    args_node: ast.arguments,
    defaults: Sequence[Any],
    kw_defaults: dict[str, Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """Parameters and their values, by Python's rules for calls."""
    names = [a.arg for a in (*args_node.posonlyargs, *args_node.args)]
    env: dict[str, Any] = dict(zip(names, args))
    if len(args) > len(names) and args_node.vararg is None:
        raise KernelError(f"{name}() takes {len(names)} arguments, got {len(args)}")
    if args_node.vararg is not None:
        env[args_node.vararg.arg] = tuple(args[len(names) :])
    extra: dict[str, Any] = {}
    keywords = {a.arg for a in (*args_node.args, *args_node.kwonlyargs)}
    for key, value in kwargs.items():
        if key in env:
            raise KernelError(f"{name}() got {key!r} twice")
        if key in keywords:
            env[key] = value
        elif args_node.kwarg is not None:
            extra[key] = value
        else:
            raise KernelError(f"{name}() has no parameter {key!r} (it has {', '.join(names)})")
    if args_node.kwarg is not None:
        env[args_node.kwarg.arg] = extra
    for parameter, value in zip(reversed(names), reversed(defaults)):
        env.setdefault(parameter, value)
    for parameter, value in kw_defaults.items():
        env.setdefault(parameter, value)
    missing = [n for n in (*names, *(a.arg for a in args_node.kwonlyargs)) if n not in env]
    if missing:
        raise KernelError(f"{name}() is called without {', '.join(map(repr, missing))}")
    return env


def free_value(fn: types.FunctionType, name: str) -> Any:
    """What ``name`` means outside of ``fn``'s own variables; ``LookupError`` when nothing."""
    if name in fn.__code__.co_freevars and fn.__closure__ is not None:
        cell = fn.__closure__[fn.__code__.co_freevars.index(name)]
        try:
            return cell.cell_contents
        except ValueError:
            raise LookupError(name) from None
    if name in fn.__globals__:
        return fn.__globals__[name]
    if name in PYTHON_NAMES:
        return PYTHON_NAMES[name]
    return vars(builtins)[name]


_PYTHON_FUNCTIONS: Final = {vars(builtins)[name]: fn for name, fn in PYTHON_NAMES.items()}


class Caller:
    """A frame: one function being parsed, its variables, and what it can call."""

    def __init__(
        self,
        tracer: Tracer,
        source: Source,
        fn: types.FunctionType | None,
        env: dict[str, Any],
        parent: Caller | None = None,
    ) -> None:
        self.tracer = tracer
        self.source = source
        self.fn = fn
        self.env = env
        self.parent = parent  # the enclosing frame of a nested function

    # --- names ---

    def lookup(self, name: str) -> Any:
        """The value of a name by Python's scoping rules."""
        if name in self.env:
            return self.env[name]
        if name in self.source.facts.bound:
            raise KernelError(f"{name!r} is used before it is assigned")
        if self.parent is not None:
            return self.parent.lookup(name)
        if self.fn is not None:
            try:
                value = free_value(self.fn, name)
            except LookupError:
                raise KernelError(self._unknown(name)) from None
            if isinstance(value, np.ndarray) or hasattr(value, "pointer"):
                raise KernelError(
                    f"{name!r} is an array outside the kernel: pass it as an argument"
                )
            return value
        raise KernelError(self._unknown(name))

    def _unknown(self, name: str) -> str:
        from difflib import get_close_matches

        known = {*self.env, *PYTHON_NAMES}
        if self.fn is not None:
            known |= {n for n in self.fn.__globals__ if not n.startswith("__")}
        close = get_close_matches(name, sorted(known), 1)
        return f"{name!r} is not defined" + (f": did you mean {close[0]!r}?" if close else "")

    # --- calls ---

    def call(self, fn: Any, args: list[Any], kwargs: dict[str, Any], node: ast.AST) -> Any:
        """``fn(*args, **kwargs)``: a builtin is called, a Python function is inlined."""
        if isinstance(fn, LocalFunction):
            return self._traced(node, fn, args, kwargs)
        if isinstance(fn, (types.BuiltinFunctionType, type)):
            fn = _PYTHON_FUNCTIONS.get(fn, fn)
        target = python_function(fn)
        if target is not None:
            return self._traced(node, lambda *a, **k: self.inline(target, a, k), args, kwargs)
        owner = getattr(fn, "__self__", None)
        if hasattr(getattr(fn, "__kernel_function__", fn), "__tile_builtin__") or isinstance(
            owner, (Tile, Array)
        ):
            return native(fn, *(self._callable(a) for a in args), **kwargs)
        if isinstance(fn, types.MethodType) and isinstance(fn.__func__, types.FunctionType):
            bound = fn.__func__
            return self._traced(
                node, lambda *a, **k: self.inline(bound, (owner, *a), k), args, kwargs
            )
        return self._call_native(fn, args, kwargs)

    def _callable(self, value: Any) -> Any:
        """A function that a builtin can call back."""
        if isinstance(value, (types.BuiltinFunctionType, type)):
            return _PYTHON_FUNCTIONS.get(value, value)
        target = python_function(value)
        if target is None or isinstance(value, LocalFunction):
            return value
        return lambda *args: self.inline(target, args, {})

    def _traced(self, node: ast.AST, fn: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        loc = self.tracer.builder.loc
        try:
            return fn(*args, **kwargs)
        except LocatedError as error:
            if str(error).count("\ncalled from\n") >= 4:
                raise
            caller = self.source.location(node)
            raise LocatedError(f"{error}\ncalled from\n{caller.caret()}") from error
        finally:
            self.tracer.builder.loc = loc

    def _call_native(self, fn: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Calls that Python itself answers at compile time."""
        name = getattr(fn, "__name__", "")
        module = getattr(fn, "__module__", None)
        if isinstance(fn, DType):
            raise KernelError(f"{fn} is a dtype, not a function: cast(x, {fn}) or x.to({fn})")
        if not callable(fn):
            raise KernelError(f"{describe(fn)} cannot be called")
        everything = [*args, *kwargs.values()]
        tiles = [v for v in everything if isinstance(v, Tile)]
        if module == "builtins" and name in _CONSTANT_FUNCTIONS:
            if tiles and name in _ON_TILES:
                raise KernelError(
                    f"{name}() wants a compile-time value, got {describe(tiles[0])}: "
                    f"{_ON_TILES[name]}"
                )
            if name == "sorted" and tiles:
                raise KernelError("sorted() wants compile-time values")
            return native(fn, *args, **kwargs)
        if module == "math" or isinstance(
            getattr(fn, "__self__", None), (str, tuple, list, dict, int, float)
        ):
            if tiles:
                raise KernelError(
                    f"{name}() wants compile-time values, got {describe(tiles[0])}: "
                    "the tile functions are in tilewright.lang"
                )
            return native(fn, *args, **kwargs)
        raise KernelError(
            f"{name or describe(fn)} cannot be called in a kernel: "
            "it is neither a function of tilewright.lang nor written in Python"
        )

    def inline(self, fn: types.FunctionType, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Parse the body of ``fn`` in place, with its parameters bound to ``args``."""
        source = source_of(fn)
        defaults = list(fn.__defaults__ or ())
        env = bind(fn.__name__, source.node.args, defaults, fn.__kwdefaults__ or {}, args, kwargs)
        return self._enter(source, fn, env, None)

    def inline_local(self, fn: LocalFunction, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Parse a nested function in place; it sees this frame's variables."""
        source = self.source.nested(fn.node)
        env = bind(fn.__name__, fn.node.args, fn.defaults, fn.kw_defaults, args, kwargs)
        return self._enter(source, None, env, self)

    def _enter(
        self,
        source: Source,
        fn: types.FunctionType | None,
        env: dict[str, Any],
        parent: Caller | None,
    ) -> Any:
        if self.tracer.depth >= _MAX_DEPTH:
            raise KernelError("functions are inlined, so recursion must end at compile time")
        self.tracer.depth += 1
        try:
            return type(self)(self.tracer, source, fn, env, parent).run()
        finally:
            self.tracer.depth -= 1

    def run(self) -> Any:
        """Parse the body; the value it returns."""
        raise NotImplementedError

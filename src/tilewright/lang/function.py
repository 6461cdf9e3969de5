"""Kernel functions: their parameters, their signatures, their IR, their fingerprint."""

from __future__ import annotations

import hashlib
import inspect
import linecache
import types
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from tilewright.dtypes import DType, bf16, from_numpy
from tilewright.errors import KernelError
from tilewright.lang.array import Array
from tilewright.lang.fingerprint import constant_text, fingerprint
from tilewright.lang.ir import ArrayType, Function, TileType, Value
from tilewright.lang.tile import Tile, is_number, round_float

__all__ = ["Arrays", "Bf16Array", "Const", "Inline", "KernelFunction", "Signature", "bf16_array"]


class Const:
    """Annotation of a compile-time parameter: a number, a dtype, a string, a function, ..."""


class Arrays:
    """Annotation of a parameter that is a tuple of arrays."""


Inline = Const
"""Annotation of a parameter that is a function to be inlined; the same as :class:`Const`."""


class Bf16Array:
    """A bf16 array over ``uint16`` bit patterns (NumPy has no such dtype)."""

    def __init__(self, bits: np.ndarray) -> None:
        if bits.dtype != np.uint16:
            raise KernelError(f"bf16_array wants uint16 bit patterns, got {bits.dtype}")
        self.bits = bits
        self.dtype = bf16
        self.shape = bits.shape
        self.strides = tuple(s // 2 for s in bits.strides)
        self.pointer = bits.ctypes.data

    def numpy(self) -> np.ndarray:
        """The bit patterns."""
        return self.bits


def bf16_array(bits: np.ndarray) -> Bf16Array:
    """A kernel argument of dtype bf16 from its bit patterns (uint16, any shape and strides)."""
    return Bf16Array(bits)


class Signature:
    """What a kernel is specialised for: per parameter, in order, an :class:`ArrayType`, a tuple of
    them, a :class:`TileType` (a runtime scalar) or a compile-time constant.

    Hashable; constants of different Python types are different (1, 1.0 and True). ``str`` is
    deterministic across processes and names inline functions by their fingerprints.
    """

    __slots__ = ("_hash", "_key", "_text", "items")

    def __init__(self, items: tuple[tuple[str, Any], ...]) -> None:
        self.items = items
        self._key = tuple(_key(value) for _, value in items)
        self._hash = hash(self._key)
        self._text: str | None = None

    def __getitem__(self, name: str) -> Any:
        for key, value in self.items:
            if key == name:
                return value
        raise KeyError(name)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Signature) and self._hash == other._hash and self._key == other._key
        )

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        if self._text is None:
            self._text = ", ".join(f"{name}: {_text(value)}" for name, value in self.items)
        return self._text

    def __repr__(self) -> str:
        return f"<Signature {self}>"


def _key(value: Any) -> Any:
    if isinstance(value, (ArrayType, TileType, DType, types.FunctionType)):
        return value
    if isinstance(value, float):
        return (float, repr(value))
    if isinstance(value, (tuple, list)):
        return (type(value), tuple(_key(v) for v in value))
    if isinstance(value, dict):
        return (dict, tuple((_key(k), _key(v)) for k, v in value.items()))
    try:
        hash(value)
    except TypeError:
        return (type(value), constant_text(value))
    return (type(value), value)


def _text(value: Any) -> str:
    if isinstance(value, (ArrayType, TileType)):
        return str(value)
    if isinstance(value, tuple) and value and all(isinstance(v, ArrayType) for v in value):
        return "(" + ", ".join(map(str, value)) + ")"
    return constant_text(value)


@lru_cache(maxsize=4096)
def _array_type(dtype: DType, ndim: int, unit: bool) -> ArrayType:
    strides: tuple[int | None, ...] = (None,) * ndim
    return ArrayType(dtype, (None,) * ndim, strides[:-1] + (1,) if unit else strides)


def array_type(value: Any, name: str) -> ArrayType:
    """The default typing of an array argument: sizes at run time, unit last stride if it is 1.

    A buffer's axes from ``buffer.fixed`` on have compile-time sizes and strides.
    """
    if isinstance(value, ArrayType):
        return value
    if isinstance(value, np.ndarray):
        try:
            dtype = from_numpy(value.dtype)
        except KeyError:
            raise KernelError(
                f"argument {name!r}: arrays of {value.dtype} are not supported"
            ) from None
        itemsize = value.itemsize
        strides = value.strides
        for s in strides:
            if s % itemsize:
                raise KernelError(
                    f"argument {name!r}: strides {strides} are not whole elements of {itemsize} "
                    "bytes; copy the array"
                )
        unit = bool(strides) and (strides[-1] == itemsize or value.shape[-1] <= 1)
        return _array_type(dtype, value.ndim, unit)
    dtype_ = getattr(value, "dtype", None)
    if isinstance(dtype_, DType) and hasattr(value, "strides"):
        shape, strides = value.shape, value.strides
        first = getattr(value, "fixed", None)
        if first is not None:
            free = (None,) * first
            return ArrayType(dtype_, (*free, *shape[first:]), (*free, *strides[first:]))
        unit = bool(strides) and (strides[-1] == 1 or shape[-1] <= 1)
        return _array_type(dtype_, len(shape), unit)
    raise KernelError(
        f"argument {name!r}: wanted an array (np.ndarray or a tilewright buffer), "
        f"got {type(value).__name__}"
    )


class _Parameter:
    __slots__ = ("default", "dtype", "kind", "name")

    def __init__(self, name: str, kind: str, dtype: DType | None, default: Any) -> None:
        self.name = name
        self.kind = kind  # "array", "arrays", "scalar" or "const"
        self.dtype = dtype
        self.default = default


_EMPTY = inspect.Parameter.empty


class KernelFunction:
    """A kernel: one Python function that describes one program instance.

    Every parameter is annotated: ``Array``, ``Arrays`` (a tuple of arrays), ``Const`` (known at
    compile time) or a dtype such as ``f32`` (a runtime scalar). ``configs`` holds tuning constants
    per target and is not interpreted here.
    """

    def __init__(self, fn: Callable[..., Any], configs: Mapping[str, Any] | None = None) -> None:
        if not isinstance(fn, types.FunctionType):
            raise KernelError(f"a kernel is a plain Python function, got {type(fn).__name__}")
        self.fn = fn
        self.name = fn.__name__
        self.configs = dict(configs or {})
        self.parameters = _parameters(fn)
        self.__name__ = fn.__name__
        self.__qualname__ = fn.__qualname__
        self.__doc__ = fn.__doc__
        self.__module__ = fn.__module__
        self._by_name = {p.name: p for p in self.parameters}
        self.generated = False
        self.light = False

    @classmethod
    def from_source(
        cls, text: str, name: str, env: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> KernelFunction:
        """The kernel called ``name`` that ``text`` defines, with ``env`` as its globals.

        The text is registered with :mod:`linecache`, so that errors and tracebacks show it.
        """
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        filename = f"<tilewright {name} {digest}>"
        lines = text.splitlines(keepends=True)
        linecache.cache[filename] = (len(text), None, lines, filename)
        scope: dict[str, Any] = dict(env or {})
        scope.setdefault("__name__", "tilewright.generated")
        exec(compile(text, filename, "exec"), scope)
        fn = scope.get(name)
        if not isinstance(fn, types.FunctionType):
            raise KernelError(f"the source text defines no function {name!r}")
        made = cls(fn, **kwargs)
        made.generated = True
        return made

    @property
    def __kernel_function__(self) -> types.FunctionType:
        return self.fn

    def __repr__(self) -> str:
        return f"<kernel {self.name}>"

    # --- arguments ---

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """One value per parameter, by Python's rules; ``KernelError`` when they do not fit."""
        parameters = self.parameters
        if len(args) == len(parameters) and not kwargs:
            return list(args)
        values: list[Any] = list(args)
        if len(args) > len(parameters):
            last = parameters[-1] if parameters else None
            if last is None or last.default is not _VARIADIC:
                raise KernelError(
                    f"{self.name} takes {len(parameters)} arguments "
                    f"({', '.join(self._by_name)}), got {len(args)}"
                )
        if parameters and parameters[-1].default is _VARIADIC:
            n = len(parameters) - 1
            values = [*args[:n], *([tuple(args[n:])] if len(args) >= n else [])]
        used = 0
        for p in parameters[len(values) :]:
            if p.name in kwargs:
                values.append(kwargs[p.name])
                used += 1
            elif p.default is _VARIADIC:
                values.append(())
            elif p.default is not _EMPTY:
                values.append(p.default)
            else:
                kind = "Const " if p.kind == "const" else ""
                raise KernelError(f"{self.name} is called without its {kind}argument {p.name!r}")
        if used != len(kwargs):
            for key in kwargs:
                if key not in self._by_name:
                    raise KernelError(
                        f"{self.name} has no parameter {key!r} (it has {', '.join(self._by_name)})"
                    )
                if [p.name for p in parameters].index(key) < len(args):
                    raise KernelError(f"{self.name} got {key!r} twice")
        return values

    def signature(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
    ) -> Signature:
        """What a call with these arguments specialises the kernel for."""
        items: list[tuple[str, Any]] = []
        for p, value in zip(self.parameters, self.bind(args, kwargs or {})):
            if p.kind == "array":
                items.append((p.name, array_type(value, p.name)))
            elif p.kind == "const":
                items.append((p.name, _as_const(value, p.name)))
            elif p.kind == "scalar":
                assert p.dtype is not None
                if not isinstance(value, TileType):
                    check_scalar(value, p.dtype, p.name)
                items.append((p.name, TileType(p.dtype)))
            else:
                if not isinstance(value, (tuple, list)):
                    raise KernelError(
                        f"argument {p.name!r}: wanted a tuple of arrays, got {type(value).__name__}"
                    )
                parts = tuple(array_type(v, f"{p.name}[{i}]") for i, v in enumerate(value))
                items.append((p.name, parts))
        return Signature(tuple(items))

    # --- what it compiles to ---

    def ir(self, signature: Signature) -> Function:
        """The tile IR for ``signature``, verified; :class:`KernelError` shows the user's line."""
        from tilewright.lang.parse import parse  # a program from the cache needs no parser

        params: list[Value] = []
        env: dict[str, Any] = {}

        def parameter(type_: ArrayType | TileType, name: str) -> Any:
            value = Value(type_, name)
            params.append(value)
            if isinstance(type_, ArrayType):
                return Array(value, type_, name)
            return Tile(value, type_.dtype, type_.shape)

        for p, (name, item) in zip(self.parameters, signature.items):
            if p.kind in ("array", "scalar"):
                env[name] = parameter(item, name)
            elif p.kind == "arrays":
                env[name] = tuple(parameter(t, f"{name}.{i}") for i, t in enumerate(item))
            else:
                env[name] = item
        function = parse(self.fn, self.name, env, params)
        function.generated, function.light = self.generated, self.light
        return function

    def fingerprint(self, signature: Signature | None = None) -> str:
        """sha256 (hex) over the source of the kernel and of everything it can reach.

        Covers inline functions and global constants transitively; with a ``signature`` the
        functions passed as ``Const`` too (``str(signature)`` names those by fingerprint as well).
        """
        constants: tuple[Any, ...] = ()
        if signature is not None:
            constants = tuple(
                value
                for p, (_, value) in zip(self.parameters, signature.items)
                if p.kind == "const"
            )
        return fingerprint(self.fn, constants)

    # --- the interpreter ---

    def interpret(
        self, grid: int | tuple[int, ...], signature: Signature | None = None
    ) -> Callable[..., None]:
        """``kernel.interpret(grid)(*args, **consts)`` runs the kernel as plain Python over NumPy.

        Arrays are written in place, as by a launch; ``print`` and ``breakpoint`` work inside. The
        kernel is parsed first, so that what a target would refuse is refused here too. One thing
        differs: a variable that starts as a Python integer stays one here for as long as only
        Python integers meet it, where a target makes it an i64 scalar.
        """
        from tilewright.lang.evaluate import full
        from tilewright.lang.interpret import run

        sizes = normalise_grid(grid)

        def interpreted(*args: Any, **kwargs: Any) -> None:
            actual = self.signature(args, kwargs) if signature is None else signature
            self.ir(actual)
            env: dict[str, Any] = {}
            values = self.bind(args, kwargs)
            for p, value, (_, item) in zip(self.parameters, values, actual.items):
                if p.kind == "array":
                    env[p.name] = _host_array(value, item, p.name)
                elif p.kind == "arrays":
                    env[p.name] = tuple(
                        _host_array(v, t, f"{p.name}[{i}]")
                        for i, (v, t) in enumerate(zip(value, item))
                    )
                elif p.kind == "scalar":
                    env[p.name] = Tile(
                        full(_rounded(value, item.dtype), item.dtype, ()), item.dtype, ()
                    )
                else:
                    env[p.name] = item
            run(self.fn, sizes, env)

        return interpreted


_VARIADIC: Any = object()


def _declared(fn: types.FunctionType) -> Iterator[tuple[str, str, Any]]:
    """Name, kind ("", "*" or "**") and default of each parameter, in the order of a signature."""
    code = fn.__code__
    names, n, keywords = code.co_varnames, code.co_argcount, code.co_kwonlyargcount
    defaults = fn.__defaults__ or ()
    for i, name in enumerate(names[:n]):
        at = i - n + len(defaults)
        yield name, "", defaults[at] if at >= 0 else _EMPTY
    rest = n + keywords
    if code.co_flags & inspect.CO_VARARGS:
        yield names[rest], "*", _EMPTY
        rest += 1
    for name in names[n : n + keywords]:
        yield name, "", (fn.__kwdefaults__ or {}).get(name, _EMPTY)
    if code.co_flags & inspect.CO_VARKEYWORDS:
        yield names[rest], "**", _EMPTY


def _parameters(fn: types.FunctionType) -> tuple[_Parameter, ...]:
    out: list[_Parameter] = []
    for name, stars, default in _declared(fn):
        written = annotation = fn.__annotations__.get(name, _EMPTY)
        if isinstance(annotation, str):
            annotation = _resolve(fn, annotation)
        if stars == "*" and annotation in (Array, Arrays):
            annotation, default = Arrays, _VARIADIC
        elif stars:
            raise KernelError(f"{fn.__name__}: `*{name}` is not supported, use {name}: Arrays")
        if isinstance(annotation, DType):
            out.append(_Parameter(name, "scalar", annotation, default))
        elif annotation is Array:
            out.append(_Parameter(name, "array", None, default))
        elif annotation is Arrays:
            out.append(_Parameter(name, "arrays", None, default))
        elif annotation is Const:
            out.append(_Parameter(name, "const", None, default))
        else:
            got = "none" if annotation is _EMPTY else repr(written)
            raise KernelError(
                f"{fn.__name__}: parameter {name!r} wants an annotation: Array, Arrays, Const or "
                f"a dtype such as f32 for a runtime scalar; it has {got}"
            )
    return tuple(out)


def _resolve(fn: types.FunctionType, annotation: str) -> Any:
    """A string annotation (``from __future__ import annotations``) as an object."""
    if annotation in fn.__globals__ and annotation not in fn.__code__.co_freevars:
        return fn.__globals__[annotation]
    names = dict(fn.__globals__)
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or ()):
        try:
            names[name] = cell.cell_contents
        except ValueError:
            continue
    try:
        return eval(annotation, names)
    except (NameError, AttributeError, SyntaxError, TypeError):
        return annotation


def _as_const(value: Any, name: str) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        raise KernelError(f"argument {name!r} is Const, an array cannot be known at compile time")
    return getattr(value, "__kernel_function__", value)


def check_scalar(value: Any, dtype: DType, name: str) -> None:
    """Refuse a runtime scalar that ``dtype`` cannot hold."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    ok = is_number(value)
    if ok and dtype.is_integer:
        ok = not isinstance(value, (float, np.floating))
        if ok:
            low = -(1 << (dtype.bits - 1)) if dtype.kind == "i" else 0
            if not low <= int(value) < low + (1 << dtype.bits):
                raise KernelError(f"argument {name!r}: {value} does not fit {dtype}")
    if not ok:
        raise KernelError(
            f"argument {name!r}: wanted a number of {dtype}, got {value!r} ({type(value).__name__})"
        )


def _rounded(value: Any, dtype: DType) -> Any:
    return round_float(float(value), dtype) if dtype.is_float else value


def normalise_grid(grid: int | tuple[int, ...]) -> tuple[int, int, int]:
    """A grid as three sizes; missing ones are 1."""
    sizes = (grid,) if isinstance(grid, (int, np.integer)) else tuple(grid)
    if not 1 <= len(sizes) <= 3 or any(int(n) != n or n < 0 for n in sizes):
        raise KernelError(f"a grid is one to three sizes, got {grid!r}")
    out = [int(n) for n in sizes] + [1] * (3 - len(sizes))
    return out[0], out[1], out[2]


def _host_array(value: Any, type_: ArrayType, name: str) -> Array:
    """The memory of an array argument, checked against what ``type_`` says of its shape."""
    if isinstance(value, np.ndarray):
        memory = value
    elif hasattr(value, "numpy"):
        memory = value.numpy()
    else:
        raise KernelError(f"argument {name!r}: the interpreter wants an array with memory")
    if memory.ndim != type_.ndim or any(
        n is not None and n != size for n, size in zip(type_.shape, memory.shape)
    ):
        raise KernelError(f"argument {name!r}: wanted {type_}, got an array of {memory.shape}")
    return Array(memory, type_, name)

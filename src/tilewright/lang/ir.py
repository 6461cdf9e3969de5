"""Tile IR: what a kernel means, between its Python source and a target's code.

A :class:`Function` describes one program instance of a kernel. It is in SSA form with structured
control flow: a :class:`Block` is a list of :class:`Op`; loops and conditionals are ops that hold
blocks. Every value is an array in memory (:class:`ArrayType`) or a tile (:class:`TileType`) whose
shape is known at compile time; a scalar is a tile of shape ``()``.

Op table (``name``: operands -> result; attributes in braces)::

    constant                       -> tile            {value}; every element is value
    program_id, num_programs       -> i64             {axis}
    dim         array              -> i64             {axis}
    scratch                        -> array           static shape; contents undefined until stored
    load        array, index...    -> tile            {axes, fill}
    store       array, index..., value                {axes}
    arange                         -> i64 (n,)        {start, stop}
    cast        x                  -> tile            result dtype; float->int truncates, saturating
    bitcast     x                  -> tile            same width
    UNARY       x                  -> same type       (isnan: -> bool)
    BINARY      x, y               -> same dtype, broadcast shape
    COMPARE     x, y               -> bool, broadcast shape
    fma         x, y, z            -> x*y + z rounded once, broadcast shape
    where       c, x, y            -> broadcast shape
    expand_dims x                  -> tile            {axis}
    reshape     x                  -> tile            row-major order kept
    broadcast   x                  -> tile
    transpose   x                  -> tile            {perm}
    slice       x                  -> tile            {starts}; sizes from the result type
    concat      x...               -> tile            {axis}
    reduce      x                  -> tile            {fn, axis}; axis None reduces everything
    scan        x                  -> tile            {fn, axis, reverse}; inclusive
    scan_with   x...               -> tiles           {axis, reverse}; block combines two elements
    dot         a, b, acc          -> acc's type      (m,k) x (k,n) + (m,n)
    dot4        acc, a, b          -> i32             four packed byte products added to acc
    for         lo, hi, step, init... -> carried...   block(iv, carried...) ends in yield
    if          cond, (blocks)     -> values          two blocks, each ends in yield
    yield       x...

``axes`` of load and store has one entry per array axis, and each axis has one index operand:

* ``At()`` - the operand is an i64 scalar; the axis disappears.
* ``Window(length, step)`` - the operand is the i64 start; the axis has ``length`` elements.
* ``Gather()`` - the operand is an integer tile. All gathered axes are adjacent, their tiles
  broadcast against each other (as in NumPy), and their common shape stands at the first one's place.

Every access is total: an element outside the array (negative indices too) reads as ``fill`` and
is never written. Stores happen in row-major order, so the last of several writes to one place wins.

Numerics. Every op rounds to its own dtype; nothing is contracted or reassociated, so a fused
multiply-add exists only where the source says ``fma`` or ``dot``. ``dot`` accumulates in the dtype
of ``acc`` with one fused multiply-add per k in ascending order, whatever the tile sizes: that order
is a contract. ``dot4`` is exact in int32 (wrapping); an operand of dtype u32 holds unsigned bytes,
one of dtype i32 signed bytes. The order of a float ``reduce`` depends only on the length of the
reduced axis and the target, never on the other axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tilewright.dtypes import DType, boolean, i32, i64, u32
from tilewright.errors import KernelError

__all__ = [
    "BINARY",
    "COMPARE",
    "REDUCTIONS",
    "UNARY",
    "ArrayType",
    "At",
    "Axis",
    "Block",
    "Builder",
    "Function",
    "Gather",
    "Location",
    "Op",
    "TileType",
    "Type",
    "Value",
    "Window",
    "broadcast_shapes",
    "verify",
]

UNARY: Final = frozenset(
    [
        "neg",
        "not",
        "abs",
        "exp",
        "exp2",
        "log",
        "log2",
        "sin",
        "cos",
        "tanh",
        "erf",
        "sqrt",
        "rsqrt",
        "sigmoid",
        "floor",
        "ceil",
        "round",
        "trunc",
        "isnan",
        "popcount",
    ]
)
BINARY: Final = frozenset(
    [
        "add",
        "sub",
        "mul",
        "div",
        "floordiv",
        "mod",
        "min",
        "max",
        "pow",
        "and",
        "or",
        "xor",
        "shl",
        "shr",
    ]
)
COMPARE: Final = frozenset(["lt", "le", "gt", "ge", "eq", "ne"])
REDUCTIONS: Final = frozenset(["sum", "prod", "max", "min", "any", "all", "argmax", "argmin"])


# --- types ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TileType:
    """A value with a compile-time shape; shape ``()`` is a scalar."""

    dtype: DType
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.dtype.name}[{','.join(map(str, self.shape))}]"
            if self.shape
            else (self.dtype.name)
        )


@dataclass(frozen=True)
class ArrayType:
    """An array in memory. ``None`` in ``shape`` or ``strides`` (in elements): known at run time."""

    dtype: DType
    shape: tuple[int | None, ...]
    strides: tuple[int | None, ...]

    @classmethod
    def of(cls, dtype: DType, ndim: int) -> ArrayType:
        """All sizes at run time, unit stride on the last axis."""
        return cls(dtype, (None,) * ndim, (None,) * (ndim - 1) + (1,) if ndim else ())

    @classmethod
    def dense(cls, dtype: DType, shape: Sequence[int]) -> ArrayType:
        """A C-contiguous array whose sizes are known at compile time."""
        strides: list[int] = []
        step = 1
        for n in reversed(shape):
            strides.insert(0, step)
            step *= n
        return cls(dtype, tuple(shape), tuple(strides))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __str__(self) -> str:
        def one(n: int | None) -> str:
            return "?" if n is None else str(n)

        shape = ",".join(map(one, self.shape))
        return f"array<{self.dtype.name}[{shape}]:{','.join(map(one, self.strides))}>"


Type = TileType | ArrayType


# --- addressing ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class At:
    """One element of the axis; the axis disappears."""


@dataclass(frozen=True)
class Window:
    """``length`` elements from the start operand, ``step`` apart."""

    length: int
    step: int = 1


@dataclass(frozen=True)
class Gather:
    """The elements an integer tile names."""


Axis = At | Window | Gather


# --- values, ops, blocks -------------------------------------------------------------------------


@dataclass(frozen=True)
class Location:
    """A place in the user's source, for error messages."""

    filename: str
    line: int
    column: int
    text: str

    def caret(self) -> str:
        """The source line with a caret below the column."""
        stripped = self.text.lstrip()
        shift = len(self.text) - len(stripped)
        marker = " " * max(self.column - shift, 0) + "^"
        return f"  {self.filename}:{self.line}\n    {stripped.rstrip()}\n    {marker}"


@dataclass(eq=False)
class Value:
    """One SSA value: an op's result, a block's argument or a function's parameter."""

    type: Type
    name: str = ""
    op: Op | None = None

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The tile's shape; arrays have none at compile time."""
        if not isinstance(self.type, TileType):
            raise TypeError(f"{self.type} has no compile-time shape")
        return self.type.shape


@dataclass(eq=False)
class Op:
    """One operation; ``blocks`` only for ``for``, ``if`` and ``scan_with``."""

    name: str
    operands: tuple[Value, ...]
    attrs: dict[str, Any]
    results: tuple[Value, ...]
    blocks: tuple[Block, ...] = ()
    loc: Location | None = None

    @property
    def result(self) -> Value:
        return self.results[0]


@dataclass(eq=False)
class Block:
    """A straight list of ops with its arguments."""

    args: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)

    def walk(self) -> Iterator[Op]:
        """Every op, outer before inner, in source order."""
        for op in self.ops:
            yield op
            for block in op.blocks:
                yield from block.walk()


@dataclass(eq=False)
class Function:
    """A kernel, specialised: runtime parameters only (compile-time constants are gone)."""

    name: str
    params: list[Value]
    body: Block

    def __str__(self) -> str:
        return _Printer().function(self)


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """NumPy's broadcast of ``shapes``; ``ValueError`` when they do not fit."""
    rank = max((len(s) for s in shapes), default=0)
    out: list[int] = []
    for axis in range(rank):
        sizes = {s[axis - rank + len(s)] for s in shapes if axis - rank + len(s) >= 0} - {1}
        if len(sizes) > 1:
            raise ValueError(f"shapes {' and '.join(map(str, shapes))} do not broadcast")
        out.append(sizes.pop() if sizes else 1)
    return tuple(out)


class Builder:
    """Appends ops to a block; ``loc`` is stamped on each."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.loc: Location | None = None

    def emit(
        self,
        name: str,
        operands: Sequence[Value] = (),
        results: Sequence[Type] = (),
        blocks: Sequence[Block] = (),
        **attrs: Any,
    ) -> Op:
        """Append one op and return it; its results are ``op.results``."""
        values = tuple(Value(t) for t in results)
        op = Op(name, tuple(operands), attrs, values, tuple(blocks), self.loc)
        for value in values:
            value.op = op
        self.block.ops.append(op)
        return op

    def constant(self, value: bool | int | float, dtype: DType) -> Value:
        """A scalar constant."""
        return self.emit("constant", (), (TileType(dtype),), value=value).result


# --- printer -------------------------------------------------------------------------------------


class _Printer:
    def __init__(self) -> None:
        self.names: dict[Value, str] = {}
        self.taken: set[str] = set()

    def name(self, value: Value) -> str:
        if value not in self.names:
            base = value.name or str(len(self.names))
            name, n = base, 1
            while name in self.taken:
                name, n = f"{base}.{n}", n + 1
            self.taken.add(name)
            self.names[value] = name
        return "%" + self.names[value]

    def function(self, fn: Function) -> str:
        params = ", ".join(f"{self.name(p)}: {p.type}" for p in fn.params)
        return "\n".join([f"kernel {fn.name}({params}) {{", *self.block(fn.body, "  "), "}"])

    def block(self, block: Block, indent: str) -> list[str]:
        lines: list[str] = []
        for op in block.ops:
            lines += self.op(op, indent)
        return lines

    def op(self, op: Op, indent: str) -> list[str]:
        head = ", ".join(self.name(r) for r in op.results)
        types = ", ".join(str(r.type) for r in op.results)
        operands = list(op.operands)
        if op.name in ("load", "store"):
            array, *rest = operands
            axes = op.attrs["axes"]
            index = ", ".join(
                self.name(v)
                + (
                    f":+{a.length}" + (f":{a.step}" if a.step != 1 else "")
                    if isinstance(a, Window)
                    else ""
                )
                for a, v in zip(axes, rest)
            )
            body = f"{op.name} {self.name(array)}[{index}]"
            if op.name == "store":
                body += f" = {self.name(rest[-1])}"
            elif op.attrs.get("fill", 0):
                body += f" fill={op.attrs['fill']}"
        else:
            body = " ".join([op.name, ", ".join(self.name(v) for v in operands)]).rstrip()
            attrs = ", ".join(f"{k}={v}" for k, v in op.attrs.items())
            body += f" {{{attrs}}}" if attrs else ""
        line = indent + (f"{head} = " if head else "") + body + (f" : {types}" if types else "")
        if not op.blocks:
            return [line]
        lines = [line + " {"]
        for i, block in enumerate(op.blocks):
            if i:
                lines.append(indent + "} else {")
            if block.args:
                args = ", ".join(f"{self.name(a)}: {a.type}" for a in block.args)
                lines.append(f"{indent}  ^({args}):")
            lines += self.block(block, indent + "  ")
        return [*lines, indent + "}"]


# --- verifier ------------------------------------------------------------------------------------


def verify(fn: Function) -> None:
    """Check every op against the table above; :class:`KernelError` naming the first bad one."""
    _verify_block(fn.body, set(fn.params))


def _verify_block(block: Block, outer: set[Value]) -> None:
    known = outer | set(block.args)
    for op in block.ops:
        for operand in op.operands:
            if operand not in known:
                raise _bad(op, "uses a value that is not defined before it")
        problem = _check(op)
        if problem:
            raise _bad(op, problem)
        for inner in op.blocks:
            _verify_block(inner, known)
        known |= set(op.results)


def _bad(op: Op, problem: str) -> KernelError:
    types = ", ".join(str(v.type) for v in op.operands)
    where = f"\n{op.loc.caret()}" if op.loc else ""
    return KernelError(f"{op.name}({types}): {problem}{where}")


def _check(op: Op) -> str:
    """What is wrong with ``op``, or an empty string."""
    tiles = [v for v in op.operands if isinstance(v.type, TileType)]
    result = op.results[0].type if op.results else None
    if op.name in BINARY or op.name in COMPARE or op.name == "fma":
        if len({t.dtype for t in tiles}) != 1:
            return "operands must share one dtype"
        return _check_broadcast(op, [t.shape for t in tiles])
    if op.name == "where":
        if tiles[0].dtype is not boolean or tiles[1].dtype is not tiles[2].dtype:
            return "wants (bool, x, y) with x and y of one dtype"
        return _check_broadcast(op, [t.shape for t in tiles])
    if op.name in ("load", "store"):
        return _check_access(op)
    if op.name == "dot":
        (m, k), (k2, n) = tiles[0].shape, tiles[1].shape
        if k != k2 or tiles[2].shape != (m, n):
            return "wants (m,k), (k,n), (m,n)"
    if op.name == "dot4":
        if tiles[0].dtype is not i32 or any(t.dtype not in (i32, u32) for t in tiles[1:]):
            return "wants (i32, i32|u32, i32|u32)"
        return _check_broadcast(op, [t.shape for t in tiles])
    if op.name == "for":
        carried = [v.type for v in op.operands[3:]]
        body = op.blocks[0]
        ends = [v.type for v in body.ops[-1].operands] if body.ops else None
        if [a.type for a in body.args[1:]] != carried or ends != carried:
            return "carried values change their type"
    if op.name == "if" and any(
        [v.type for v in b.ops[-1].operands] != [r.type for r in op.results] for b in op.blocks
    ):
        return "the two branches yield different types"
    if op.name in ("reshape", "cast", "bitcast") and isinstance(result, TileType):
        if _count(result.shape) != _count(tiles[0].shape):
            return f"{_count(tiles[0].shape)} elements become {_count(result.shape)}"
        if op.name == "bitcast" and tiles[0].dtype.bits != result.dtype.bits:
            return "bitcast keeps the width"
    return ""


def _check_broadcast(op: Op, shapes: list[tuple[int, ...]]) -> str:
    try:
        want = broadcast_shapes(*shapes)
    except ValueError as error:
        return str(error)
    got = op.result.shape
    return "" if got == want else f"result has shape {got}, operands broadcast to {want}"


def _check_access(op: Op) -> str:
    array = op.operands[0].type
    if not isinstance(array, ArrayType):
        return "first operand must be an array"
    axes: tuple[Axis, ...] = op.attrs["axes"]
    index = op.operands[1 : 1 + len(axes)]
    if len(axes) != array.ndim or len(index) != array.ndim:
        return f"array has {array.ndim} axes, {len(axes)} are indexed"
    for axis, value in zip(axes, index):
        if isinstance(axis, Gather):
            if not value.dtype.is_integer:
                return "a gather wants an integer tile"
        elif value.type != TileType(i64):
            return "an index or window start must be an i64 scalar"
    shape = access_shape(axes, [v.shape if isinstance(v.type, TileType) else () for v in index])
    if op.name == "load":
        ok = op.result.type == TileType(array.dtype, shape)
        return "" if ok else f"reads {array.dtype}{shape}, result says {op.result.type}"
    value = op.operands[-1]
    ok = value.dtype is array.dtype and broadcast_shapes(value.shape, shape) == shape
    return "" if ok else f"stores {value.type} into a {array.dtype}{shape} window"


def access_shape(axes: Sequence[Axis], index: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a load, from its axes and the shapes of its index operands."""
    gathered = [s for a, s in zip(axes, index) if isinstance(a, Gather)]
    common = broadcast_shapes(*gathered) if gathered else ()
    shape: list[int] = []
    placed = False
    for axis in axes:
        if isinstance(axis, Window):
            shape.append(axis.length)
        elif isinstance(axis, Gather) and not placed:
            shape.extend(common)
            placed = True
    return tuple(shape)


def _count(shape: tuple[int, ...]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n

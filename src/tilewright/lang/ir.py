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
* ``Window(length, step)`` - the operand is the i64 start; the axis has ``length`` elements,
  ``step`` (positive) apart.
* ``Gather()`` - the operand is an integer tile. No window stands between two gathered axes, their
  tiles broadcast against each other (as in NumPy), and their common shape stands at the first one's
  place.

Every access is total: an element outside the array (negative indices too) reads as ``fill`` and
is never written. Stores happen in row-major order, so the last of several writes to one place wins.

``for`` runs its block for ``iv = lo, lo + step, ...`` while ``iv < hi``; a step of zero or less runs
no iteration. Inner blocks (of ``scan_with`` too) may use any value defined before the op.

Numerics. Every op rounds to its own dtype; nothing is contracted or reassociated, so a fused
multiply-add exists only where the source says ``fma`` or ``dot``. ``dot`` accumulates in the dtype
of ``acc`` with one fused multiply-add per k in ascending order, whatever the tile sizes: that order
is a contract; ``a`` and ``b`` may have other dtypes and are converted to that of ``acc`` first.
``dot4`` is exact in int32 (wrapping); an operand of dtype u32 holds unsigned bytes, one of dtype i32
signed bytes. The order of a float ``reduce`` depends only on the length of the reduced axis and the
target, never on the other axes; a float ``scan`` runs in sequence.

Edge cases, the same on every target:

* Integers wrap around: ``add sub mul neg abs fma``, sums and products.
* ``floordiv`` and ``mod`` take integers and round towards minus infinity, as in Python. Division by
  zero gives 0, and so does the remainder. ``MIN // -1`` is ``MIN``, ``MIN % -1`` is 0.
* ``shl`` and ``shr`` read the amount as unsigned; from the width up, ``shl`` gives 0, ``shr`` gives
  0 or the sign's fill (-1 for negative signed values). ``shr`` is arithmetic on signed dtypes.
* ``min`` and ``max`` give NaN when either operand is NaN, also as reductions and scans; which of
  -0.0 and +0.0 they give is unspecified. Comparisons with NaN are false, ``ne`` is true.
* ``round`` takes ties to even. ``neg`` and ``abs`` only touch the sign bit.
* ``argmax`` and ``argmin`` give i64, the first extreme; a NaN counts as the extreme.
* ``cast``: float to integer truncates and saturates, NaN becomes 0; integer to integer wraps; to
  bool is ``x != 0``; to float rounds to nearest even, once.
* ``div pow`` and ``exp .. sigmoid`` take floats; ``and or xor not`` integers and bools; ``shl shr
  popcount`` integers; ``sum prod`` no bools; ``any all`` bools.
* ``reduce`` over one element (or of a scan's first element) is that element, unrounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
        from tilewright.lang.printing import print_function

        return print_function(self)


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


_FLOAT_ONLY: Final = frozenset(
    [
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
        "div",
        "pow",
    ]
)
_INTEGER_ONLY: Final = frozenset(["floordiv", "mod", "shl", "shr", "popcount"])
_NO_FLOAT: Final = frozenset(["and", "or", "xor", "not"])
_NO_BOOL: Final = frozenset(["neg", "abs", "add", "sub", "mul", "fma", "min", "max"])


def _check(op: Op) -> str:
    """What is wrong with ``op``, or an empty string."""
    name = op.name
    check = _CHECKS.get(name)
    if check is not None:
        return check(op)
    if name in UNARY:
        x, out = op.operands[0], op.result.type
        want = TileType(boolean, x.shape) if name == "isnan" else x.type
        return _check_dtype(name, x.dtype) or ("" if out == want else f"result must be {want}")
    if name in BINARY or name in COMPARE or name == "fma":
        dtype = op.operands[0].dtype
        if any(v.dtype is not dtype for v in op.operands):
            return "operands must share one dtype"
        want_dtype = boolean if name in COMPARE else dtype
        if op.result.dtype is not want_dtype:
            return f"result must be {want_dtype}"
        return _check_dtype(name, dtype) or _check_broadcast(op, [v.shape for v in op.operands])
    return "no such op"


def _check_dtype(name: str, dtype: DType) -> str:
    if name in _FLOAT_ONLY and not dtype.is_float:
        return "wants floats"
    if name in _INTEGER_ONLY and not dtype.is_integer:
        return "wants integers"
    if name in _NO_FLOAT and dtype.is_float:
        return "wants integers or bools"
    if name in _NO_BOOL and dtype is boolean:
        return "wants numbers, not bools"
    return ""


def _check_where(op: Op) -> str:
    c, x, y = op.operands
    if c.dtype is not boolean or x.dtype is not y.dtype or op.result.dtype is not x.dtype:
        return "wants (bool, x, y) with x and y of one dtype"
    return _check_broadcast(op, [v.shape for v in op.operands])


def _check_dot(op: Op) -> str:
    a, b, acc = (v.shape for v in op.operands)
    if len(a) != 2 or len(b) != 2 or a[1] != b[0] or acc != (a[0], b[1]):
        return "wants (m,k), (k,n), (m,n)"
    if op.operands[2].dtype is boolean:
        return "cannot accumulate in bool"
    return "" if op.result.type == op.operands[2].type else "result must have acc's type"


def _check_dot4(op: Op) -> str:
    if op.operands[0].dtype is not i32 or any(v.dtype not in (i32, u32) for v in op.operands[1:]):
        return "wants (i32, i32|u32, i32|u32)"
    return _check_broadcast(op, [v.shape for v in op.operands])


def _check_for(op: Op) -> str:
    carried = [v.type for v in op.operands[3:]]
    body = op.blocks[0]
    if any(v.type != TileType(i64) for v in op.operands[:3]):
        return "bounds and step must be i64 scalars"
    if not body.ops or body.ops[-1].name != "yield":
        return "the body must end in yield"
    ends = [v.type for v in body.ops[-1].operands]
    if [a.type for a in body.args[1:]] != carried or ends != carried:
        return "carried values change their type"
    return "" if [r.type for r in op.results] == carried else "results must have the carried types"


def _check_if(op: Op) -> str:
    if op.operands[0].type != TileType(boolean):
        return "the condition must be a bool scalar"
    for block in op.blocks:
        if not block.ops or block.ops[-1].name != "yield":
            return "a branch must end in yield"
        if [v.type for v in block.ops[-1].operands] != [r.type for r in op.results]:
            return "the two branches yield different types"
    return ""


def _check_scan_with(op: Op) -> str:
    scalars = [TileType(v.dtype) for v in op.operands]
    block = op.blocks[0]
    if [a.type for a in block.args] != scalars * 2:
        return "the block must take two scalars per operand"
    if not block.ops or [v.type for v in block.ops[-1].operands] != scalars:
        return "the block must yield one scalar per operand"
    return "" if [r.type for r in op.results] == [v.type for v in op.operands] else "types differ"


def _check_reduce(op: Op) -> str:
    x, fn, axis = op.operands[0], op.attrs["fn"], op.attrs["axis"]
    if fn not in REDUCTIONS:
        return f"there is no reduction {fn!r}"
    if axis is not None and not 0 <= axis < len(x.shape):
        return f"axis {axis} is out of range"
    if fn in ("any", "all") and x.dtype is not boolean:
        return "wants bools"
    if fn in ("sum", "prod") and x.dtype is boolean:
        return "wants numbers, not bools"
    shape = () if axis is None else x.shape[:axis] + x.shape[axis + 1 :]
    want = TileType(i64 if fn in ("argmax", "argmin") else x.dtype, shape)
    return "" if op.result.type == want else f"result must be {want}"


def _check_scan(op: Op) -> str:
    x = op.operands[0]
    if op.attrs["fn"] not in ("sum", "prod", "max", "min"):
        return f"there is no scan {op.attrs['fn']!r}"
    if not 0 <= op.attrs["axis"] < len(x.shape):
        return f"axis {op.attrs['axis']} is out of range"
    return "" if op.result.type == x.type else "result must have the operand's type"


def _check_reshape(op: Op) -> str:
    x, out = op.operands[0], op.result
    if x.dtype is not out.dtype:
        return "keeps the dtype"
    if _count(x.shape) != _count(out.shape):
        return f"{_count(x.shape)} elements become {_count(out.shape)}"
    if op.name == "expand_dims":
        axis = op.attrs["axis"]
        if out.shape != x.shape[:axis] + (1,) + x.shape[axis:]:
            return f"result has shape {out.shape}"
    return ""


def _check_conversion(op: Op) -> str:
    x, out = op.operands[0], op.result
    if x.shape != out.shape:
        return f"shape {x.shape} becomes {out.shape}"
    if op.name == "bitcast" and (x.dtype.bits != out.dtype.bits or boolean in (x.dtype, out.dtype)):
        return "bitcast keeps the width"
    return ""


def _check_movement(op: Op) -> str:
    shapes = [v.shape for v in op.operands]
    out = op.result.shape
    if any(v.dtype is not op.result.dtype for v in op.operands):
        return "keeps the dtype"
    if op.name == "broadcast":
        return "" if broadcast_shapes(shapes[0], out) == out else f"does not fill {out}"
    if op.name == "transpose":
        perm = op.attrs["perm"]
        ok = sorted(perm) == list(range(len(shapes[0])))
        return "" if ok and out == tuple(shapes[0][p] for p in perm) else f"perm {perm}, got {out}"
    if op.name == "slice":
        starts = op.attrs["starts"]
        ok = len(starts) == len(out) == len(shapes[0]) and all(
            s >= 0 and n >= 1 and s + n <= size for s, n, size in zip(starts, out, shapes[0])
        )
        return "" if ok else f"starts {starts}, got {out}"
    axis = op.attrs["axis"]
    rest = {s[:axis] + s[axis + 1 :] for s in (*shapes, out)}
    total = sum(s[axis] for s in shapes)
    return "" if len(rest) == 1 and out[axis] == total else f"parts {shapes} do not make {out}"


def _check_source(op: Op) -> str:
    out = op.results[0].type
    if op.name == "scratch":
        ok = isinstance(out, ArrayType) and None not in out.shape
        return "" if ok else "wants a static shape"
    if op.name == "arange":
        n = op.attrs["stop"] - op.attrs["start"]
        return "" if out == TileType(i64, (n,)) and n >= 1 else "result must be i64 (n,)"
    if op.name == "constant":
        return "" if isinstance(out, TileType) else "result must be a tile"
    return "" if out == TileType(i64) else "result must be an i64 scalar"


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


def _check_yield(op: Op) -> str:
    return "" if all(isinstance(v.type, TileType) for v in op.operands) else "yields tiles only"


_CHECKS: Final[dict[str, Callable[[Op], str]]] = {
    **dict.fromkeys(["load", "store"], _check_access),
    **dict.fromkeys(["reshape", "expand_dims"], _check_reshape),
    **dict.fromkeys(["cast", "bitcast"], _check_conversion),
    **dict.fromkeys(["broadcast", "transpose", "slice", "concat"], _check_movement),
    **dict.fromkeys(
        ["constant", "arange", "scratch", "dim", "program_id", "num_programs"], _check_source
    ),
    "where": _check_where,
    "dot": _check_dot,
    "dot4": _check_dot4,
    "for": _check_for,
    "if": _check_if,
    "scan_with": _check_scan_with,
    "reduce": _check_reduce,
    "scan": _check_scan,
    "yield": _check_yield,
}


def _count(shape: tuple[int, ...]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n

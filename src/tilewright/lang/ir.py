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
    load        array, index...    -> tile            {axes, fill}; with {prefetch: "read" or
                                                      "write", level} a hint: the result is unused
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
    dot2        acc, a, b          -> f32             two packed bf16 products added to acc
    pack2       x, y               -> u32             two f32 as a bf16 pair
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

``for`` runs its block for ``iv = lo, lo + step, ...`` while ``iv < hi``; a step of zero or less
runs no iteration. Inner blocks (of ``scan_with`` too) may use any value defined before the op.

Numerics. Every op rounds to its own dtype; nothing is contracted or reassociated, so a fused
multiply-add exists only where the source says ``fma`` or ``dot``. ``dot`` accumulates in the dtype
of ``acc`` with one fused multiply-add per k in ascending order, whatever the tile sizes: that order
is a contract; ``a`` and ``b`` may have other dtypes and are converted to that of ``acc`` first.
``dot2`` takes bf16 pairs packed in u32, the first in the low half, and is what the instruction
VDPBF16PS does: the second product is added to ``acc`` with one rounding (to nearest even), then the
first one; operands and results below the normal range count as zeros of their sign.
``pack2`` makes such a pair, x in the low half, rounding to nearest even; subnormals become zeros.
``dot4`` is exact in int32 (wrapping); an operand of dtype u32 holds unsigned bytes, one of dtype
i32 signed bytes. The order of a float ``reduce`` depends only on the length of the reduced axis and
the target, never on the other axes; a float ``scan`` runs in sequence.

Edge cases, the same on every target:

* Integers wrap around: ``add sub mul neg abs fma``, sums and products.
* ``floordiv`` and ``mod`` round towards minus infinity, as in Python. Integers: division by zero
  gives 0, and so does the remainder; ``MIN // -1`` is ``MIN``, ``MIN % -1`` is 0. Floats: ``mod``
  is exact but for one rounding and has the divisor's sign, ``floordiv`` is what NumPy makes of it.
* ``shl`` and ``shr`` read the amount as unsigned; from the width up, ``shl`` gives 0, ``shr`` gives
  0 or the sign's fill (-1 for negative signed values). ``shr`` is arithmetic on signed dtypes.
* ``min`` and ``max`` give NaN when either operand is NaN, also as reductions and scans; which of
  -0.0 and +0.0 they give is unspecified. Comparisons with NaN are false, ``ne`` is true.
* ``round`` takes ties to even. ``neg`` and ``abs`` only touch the sign bit.
* ``argmax`` and ``argmin`` give i64, the first extreme; a NaN counts as the extreme.
* ``cast``: float to integer truncates and saturates, NaN becomes 0; integer to integer wraps; to
  bool is ``x != 0``; to float rounds to nearest even, once.
* ``div`` and the functions of :mod:`tilewright.lang.functions` take floats, ``pow`` integers too
  (it wraps; a negative power of x is 1 / x**n without its fraction, 0 for x = 0); ``and or xor
  not`` take integers and bools; ``shl shr popcount`` integers; ``sum prod`` no bools; ``any all``
  bools.
* ``reduce`` over one element (or of a scan's first element) is that element, unrounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tilewright.dtypes import DType
from tilewright.lang.functions import BINARY_FUNCTIONS, UNARY_FUNCTIONS

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
    "access_shape",
    "broadcast_shapes",
    "verify",
]

UNARY: Final = frozenset(
    ["neg", "not", "abs", "floor", "ceil", "round", "trunc", "isnan", "popcount", *UNARY_FUNCTIONS]
)
BINARY: Final = frozenset(
    [
        *("add", "sub", "mul", "div", "floordiv", "mod", "min", "max"),
        *("and", "or", "xor", "shl", "shr"),
        *BINARY_FUNCTIONS,
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
    """A kernel, specialised: runtime parameters only (compile-time constants are gone).

    ``generated`` says that a program wrote its source: such kernels are many and most of them are
    small, so that a target does well to compile them quickly. ``light`` says that this kernel is,
    whatever its size: its loops are written as they shall run.
    """

    name: str
    params: list[Value]
    body: Block
    generated: bool = False
    light: bool = False

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


def verify(fn: Function) -> None:
    """Check every op against the table above; :class:`KernelError` naming the first bad one."""
    from tilewright.lang.verifier import check_function

    check_function(fn)

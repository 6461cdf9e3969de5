"""The kernel language: Python functions over arrays, tiles and scalars.

A kernel describes one program instance; a grid runs many::

    @tilewright.kernel
    def rms_norm(x: Array, weight: Array, y: Array, eps: f32, BLOCK: Const):
        row = program_id(0)
        n = x.shape[1]
        total = zeros((BLOCK,), f32)
        for j in range(0, n, BLOCK):
            v = x[row, j : j + BLOCK]       # a window: BLOCK wide, zero beyond the end
            total = fma(v, v, total)
        scale = rsqrt(sum(total) / n + eps)
        for j in range(0, n, BLOCK):
            y[row, j : j + BLOCK] = x[row, j : j + BLOCK] * scale * weight[j : j + BLOCK]

Parameters. ``Array`` is memory, ``Arrays`` a tuple of arrays (``for e in unroll(extras)``,
``len(extras)``), a dtype such as ``f32`` a runtime scalar, ``Const`` (or ``Inline``) anything known
at compile time: a number, a string, a dtype, a function, a dataclass of those.

Windows. ``x[i, j : j + N]`` reads a tile; starts may be runtime values, lengths are constants that
the parser finds by itself (``i * N : (i + 1) * N``). ``x[ids, 0:4]`` with an integer tile gathers,
as a target it scatters. Nothing outside an array is read or written: windows read zero there, or
``load(x[i, j : j + N], fill=-inf)``. Negative indices are outside too; they do not wrap around.

Tiles are values: ``t[0] = 1`` is refused, ``where(...)`` and ``scratch`` serve. Their shapes and
indices are compile-time constants (``t[:, None]``, ``t[0:8]``, ``t[..., ::2]``, ``t.T``).

Dtypes. Two dtypes meet by :func:`tilewright.dtypes.promote`: a float wins over any integer and
keeps its width. Python numbers are weak: they take the dtype of the tile beside them (a float
beside an integer tile makes f32), alone they become i64 or f32 once they must be a tile. Integers
divide to f32. Stores convert by themselves, except from float to integer: say ``.to(i32)``.

Control flow. ``for ... in range(...)`` runs at run time, ``unroll(...)`` at compile time, where the
variable is a Python number. ``if``, conditional expressions, ``and``, ``or`` and ``not`` decide at
compile time when they can, else at run time, on scalars. Loops carry the variables that they
change; these keep their dtype and shape. ``return`` is fine anywhere but inside a runtime loop,
``break`` and ``continue`` in ``unroll``. Functions, nested functions and lambdas are inlined, so
recursion must end at compile time. ``print`` and ``breakpoint`` work when a kernel is interpreted
(``kernel.interpret(grid)(...)``) and vanish when it is compiled.

Numbers are what :mod:`tilewright.lang.ir` says: every op rounds to its own dtype, in the order that
is written, and an FMA is written ``fma`` or ``dot``.
"""

from __future__ import annotations

from math import inf, nan
from typing import TYPE_CHECKING, Any, TypeAlias

from tilewright.lang.array import Array
from tilewright.lang.builtins import (
    abs,
    acos,
    acosh,
    all,
    any,
    arange,
    argmax,
    argmin,
    asin,
    asinh,
    associative_scan,
    atan,
    atan2,
    atanh,
    bitcast,
    broadcast_to,
    cast,
    ceil,
    concatenate,
    copysign,
    cos,
    cosh,
    cumsum,
    dot,
    dot2,
    dot4,
    erf,
    erfinv,
    exp,
    exp2,
    expand_dims,
    expm1,
    floor,
    floor_divide,
    fma,
    full,
    hypot,
    isfinite,
    isinf,
    isnan,
    lgamma,
    load,
    log,
    log1p,
    log2,
    log10,
    logaddexp,
    max,
    maximum,
    min,
    minimum,
    nextafter,
    num_programs,
    pack2,
    popcount,
    pow,
    prefetch,
    prod,
    program_id,
    range,
    reciprocal,
    remainder,
    reshape,
    rotl,
    round,
    rsqrt,
    scratch,
    sigmoid,
    sign,
    signbit,
    sin,
    sinh,
    sqrt,
    square,
    sum,
    tan,
    tanh,
    transpose,
    trunc,
    unroll,
    where,
    zeros,
)
from tilewright.lang.function import Arrays, KernelFunction, Signature, bf16_array
from tilewright.lang.tile import Tile

if TYPE_CHECKING:
    # In a kernel a dtype is a value and an annotation, and a Const parameter is whatever is
    # passed; a static checker has no notion of either.
    Const: TypeAlias = Any
    Inline: TypeAlias = Any
    bf16: TypeAlias = Any
    boolean: TypeAlias = Any
    f16: TypeAlias = Any
    f32: TypeAlias = Any
    f64: TypeAlias = Any
    i8: TypeAlias = Any
    i16: TypeAlias = Any
    i32: TypeAlias = Any
    i64: TypeAlias = Any
    u8: TypeAlias = Any
    u16: TypeAlias = Any
    u32: TypeAlias = Any
    u64: TypeAlias = Any
else:
    from tilewright.dtypes import (
        bf16,
        boolean,
        f16,
        f32,
        f64,
        i8,
        i16,
        i32,
        i64,
        u8,
        u16,
        u32,
        u64,
    )
    from tilewright.lang.function import Const, Inline

__all__ = [
    "Array", "Arrays", "Const", "Inline", "KernelFunction", "Signature", "Tile", "abs", "acos",
    "acosh", "all", "any", "arange", "argmax", "argmin", "asin", "asinh", "associative_scan",
    "atan", "atan2", "atanh", "bf16", "bf16_array", "bitcast", "boolean", "broadcast_to",
    "cast", "ceil", "concatenate", "copysign", "cos", "cosh", "cumsum", "dot", "dot2", "dot4",
    "erf", "erfinv", "exp", "exp2", "expand_dims", "expm1", "f16", "f32", "f64", "floor",
    "floor_divide", "fma", "full", "hypot", "i8", "i16", "i32", "i64", "inf", "isfinite",
    "isinf", "isnan", "lgamma", "load", "log", "log1p", "log2", "log10", "logaddexp", "max",
    "maximum", "min", "minimum", "nan", "nextafter", "num_programs", "pack2", "popcount", "pow",
    "prefetch", "prod", "program_id", "range", "reciprocal", "remainder", "reshape", "rotl",
    "round", "rsqrt",
    "scratch", "sigmoid", "sign", "signbit", "sin", "sinh", "sqrt", "square", "sum", "tan",
    "tanh", "transpose", "trunc", "u8", "u16", "u32", "u64", "unroll", "where", "zeros",
]  # fmt: skip

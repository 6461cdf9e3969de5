"""Tiles, and the typing rules of the ops on them.

A :class:`Tile` has a dtype and a shape known at compile time; shape ``()`` is a scalar. Python
numbers are *weak*: next to a tile they adopt its dtype (a float next to an integer tile makes f32,
an int next to a bool tile i64); alone a float becomes f32, an int i64, a bool bool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tilewright.dtypes import DType, boolean, f16, f32, f64, i64, promote
from tilewright.errors import KernelError
from tilewright.lang.engine import builtin, current
from tilewright.lang.ir import TileType, broadcast_shapes

if TYPE_CHECKING:
    from tilewright.lang.array import Array

__all__ = [
    "Number",
    "Tile",
    "as_dtype",
    "as_index",
    "as_tile",
    "binary",
    "bitwise_not",
    "broadcast",
    "cast",
    "common_dtype",
    "compare",
    "constant",
    "describe",
    "float_binary",
    "float_unary",
    "fold",
    "is_number",
    "negative",
    "power",
    "representable",
    "round_float",
    "ternary",
    "unary",
]

Number = bool | int | float

_SYMBOL: Final = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "floordiv": "//",
    "mod": "%",
    "and": "&",
    "or": "|",
    "xor": "^",
    "shl": "<<",
    "shr": ">>",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
}
_PLAIN: Final = frozenset(("add", "sub", "mul", "min", "max"))
_KEEPS: Final = {"add": 0, "or": 0, "mul": 1}
_BITWISE: Final = frozenset(("and", "or", "xor"))
_SHIFTS: Final = frozenset(("shl", "shr"))
_FLOAT_MAX: Final = {"f16": 65504.0, "bf16": 3.3895313892515355e38, "f32": 3.4028234663852886e38}


class Tile:
    """A value with a compile-time dtype and shape. NumPy's operators and broadcasting apply.

    ``data`` belongs to the engine: an :class:`tilewright.lang.ir.Value` while parsing, an ndarray
    while interpreting (bf16 as float32 values).
    """

    __slots__ = ("data", "dtype", "origin", "shape")
    __array_ufunc__ = None  # NumPy scalars on the left defer to the reflected operators

    def __init__(self, data: Any, dtype: DType, shape: tuple[int, ...]) -> None:
        self.data = data
        self.dtype = dtype
        self.shape = shape
        self.origin: tuple[Array, Any] | None = None

    @property
    def type(self) -> TileType:
        return TileType(self.dtype, self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def T(self) -> Tile:
        """The tile with its axes in reverse order."""
        from tilewright.lang.movement import transpose

        return transpose(self, tuple(reversed(range(self.ndim))))

    def to(self, dtype: Any) -> Tile:
        """The tile converted to ``dtype``; float to integer truncates and saturates."""
        return cast(self, dtype)

    def reshape(self, *shape: Any) -> Tile:
        """The same elements in row-major order; one size may be -1."""
        from tilewright.lang.movement import reshape

        return reshape(self, shape[0] if len(shape) == 1 else shape)

    def numpy(self) -> np.ndarray:
        """The values, while interpreting; for debugging."""
        if not isinstance(self.data, np.ndarray):
            raise KernelError("a tile has values only while the kernel is interpreted")
        return self.data

    def __repr__(self) -> str:
        if isinstance(self.data, np.ndarray):
            return f"{self.type} {np.array2string(self.data, threshold=64)}"
        return f"<tile {self.type}>"

    def __len__(self) -> int:
        if not self.shape:
            raise KernelError("a scalar has no length")
        return self.shape[0]

    def __bool__(self) -> bool:
        if self.shape:
            raise KernelError(
                f"the truth of a {self.type} tile is not one value: "
                "use any(...), all(...), where(...) or the operators & | ~"
            )
        return current().truth(self)

    def __iter__(self) -> Any:
        raise KernelError("a tile cannot be iterated: use unroll(n) and constant slices")

    def __getitem__(self, key: Any) -> Tile:
        from tilewright.lang.movement import index_tile

        return index_tile(self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        raise KernelError("tiles are values and cannot be stored into: use where(...) or scratch")

    def __add__(self, other: Any) -> Tile:
        return binary("add", self, other)

    def __radd__(self, other: Any) -> Tile:
        return binary("add", other, self)

    def __sub__(self, other: Any) -> Tile:
        return binary("sub", self, other)

    def __rsub__(self, other: Any) -> Tile:
        return binary("sub", other, self)

    def __mul__(self, other: Any) -> Tile:
        return binary("mul", self, other)

    def __rmul__(self, other: Any) -> Tile:
        return binary("mul", other, self)

    def __truediv__(self, other: Any) -> Tile:
        return binary("div", self, other)

    def __rtruediv__(self, other: Any) -> Tile:
        return binary("div", other, self)

    def __floordiv__(self, other: Any) -> Tile:
        return binary("floordiv", self, other)

    def __rfloordiv__(self, other: Any) -> Tile:
        return binary("floordiv", other, self)

    def __mod__(self, other: Any) -> Tile:
        return binary("mod", self, other)

    def __rmod__(self, other: Any) -> Tile:
        return binary("mod", other, self)

    def __pow__(self, other: Any) -> Tile:
        return power(self, other)

    def __rpow__(self, other: Any) -> Tile:
        return power(other, self)

    def __matmul__(self, other: Any) -> Tile:
        from tilewright.lang.builtins import dot

        return dot(self, other)

    def __and__(self, other: Any) -> Tile:
        return binary("and", self, other)

    def __rand__(self, other: Any) -> Tile:
        return binary("and", other, self)

    def __or__(self, other: Any) -> Tile:
        return binary("or", self, other)

    def __ror__(self, other: Any) -> Tile:
        return binary("or", other, self)

    def __xor__(self, other: Any) -> Tile:
        return binary("xor", self, other)

    def __rxor__(self, other: Any) -> Tile:
        return binary("xor", other, self)

    def __lshift__(self, other: Any) -> Tile:
        return binary("shl", self, other)

    def __rlshift__(self, other: Any) -> Tile:
        return binary("shl", other, self)

    def __rshift__(self, other: Any) -> Tile:
        return binary("shr", self, other)

    def __rrshift__(self, other: Any) -> Tile:
        return binary("shr", other, self)

    def __lt__(self, other: Any) -> Tile:
        return compare("lt", self, other)

    def __le__(self, other: Any) -> Tile:
        return compare("le", self, other)

    def __gt__(self, other: Any) -> Tile:
        return compare("gt", self, other)

    def __ge__(self, other: Any) -> Tile:
        return compare("ge", self, other)

    def __eq__(self, other: object) -> Tile:  # type: ignore[override]
        return compare("eq", self, other)

    def __ne__(self, other: object) -> Tile:  # type: ignore[override]
        return compare("ne", self, other)

    __hash__ = object.__hash__

    def __neg__(self) -> Tile:
        return negative(self)

    def __pos__(self) -> Tile:
        return self

    def __invert__(self) -> Tile:
        return bitwise_not(self)

    def __abs__(self) -> Tile:
        return unary("abs", self)


# --- numbers, dtypes, shapes ---------------------------------------------------------------------


def is_number(x: object) -> bool:
    """Whether ``x`` is a weak Python (or NumPy) number."""
    return isinstance(x, (bool, int, float, np.generic))


def describe(x: object) -> str:
    """``x`` as an error message names it."""
    if isinstance(x, Tile):
        article = "an" if x.dtype.kind in "fi" else "a"
        return f"{article} {x.type} {'tile' if x.shape else 'scalar'}"
    kind = getattr(x, "type", None)
    if kind is not None and type(x).__name__ == "Array":
        return f"an {kind}"
    if is_number(x) or isinstance(x, str):
        return f"{x!r}"
    if callable(x):
        return f"the function {getattr(x, '__name__', x)!r}"
    return f"a {type(x).__name__}"


def as_dtype(dtype: Any) -> DType:
    """A :class:`DType` from itself, or from Python's ``bool``."""
    if isinstance(dtype, DType):
        return dtype
    if dtype is bool:
        return boolean
    raise KernelError(f"wanted a dtype (f32, i8, ...), got {describe(dtype)}")


def common_dtype(values: Sequence[Any]) -> DType:
    """The dtype in which ``values`` (tiles and weak numbers) meet."""
    strong: DType | None = None
    weak = 0
    for value in values:
        if isinstance(value, Tile):
            strong = value.dtype if strong is None else promote(strong, value.dtype)
        elif isinstance(value, (bool, np.bool_)):
            weak = max(weak, 1)
        elif isinstance(value, (int, np.integer)):
            weak = max(weak, 2)
        else:
            weak = 3
    if strong is None:
        return (boolean, boolean, i64, f32)[weak]
    if weak == 3 and not strong.is_float:
        return f32
    if weak == 2 and strong is boolean:
        return i64
    return strong


def constant(value: Any, dtype: DType, shape: tuple[int, ...] = (), *, bits: bool = False) -> Tile:
    """A weak number as a tile of ``dtype``; ``bits`` lets 0xFF stand for -1 in an i8 mask."""
    return current().constant(representable(value, dtype, bits), dtype, shape)


def representable(value: Any, dtype: DType, bits: bool = False) -> Number:
    """``value`` as a Python number that ``dtype`` holds exactly; floats are rounded to it."""
    if isinstance(value, np.generic):
        value = value.item()
    if dtype is boolean:
        return bool(value)
    if dtype.is_float:
        try:
            number = float(value)
        except OverflowError:
            raise KernelError(f"a constant of {len(str(value))} digits is too large") from None
        if math.isinf(number) or math.isnan(number) or dtype is f64:
            return number
        if abs(number) > _FLOAT_MAX[dtype.name] and math.isinf(round_float(number, dtype)):
            raise KernelError(f"the constant {value!r} is too large for {dtype}")
        return round_float(number, dtype)
    if isinstance(value, float):
        raise KernelError(f"the constant {value!r} is not an integer, wanted {dtype}")
    number = int(value)
    low = -(1 << (dtype.bits - 1)) if dtype.kind == "i" else 0
    high = (1 << (dtype.bits - 1)) - 1 if dtype.kind == "i" else (1 << dtype.bits) - 1
    if bits and -(1 << (dtype.bits - 1)) <= number < (1 << dtype.bits):
        number &= (1 << dtype.bits) - 1
        return number if number <= high else number - (1 << dtype.bits)
    if not low <= number <= high:
        raise KernelError(f"the constant {value!r} does not fit {dtype} ({low}..{high})")
    return number


def round_float(value: float, dtype: DType) -> float:
    """``value`` rounded to the nearest ``dtype`` (ties to even), as a Python float."""
    if dtype is f64:
        return value
    with np.errstate(over="ignore"):
        if dtype is f32:
            return float(np.float32(value))
        if dtype is f16:
            return float(np.float16(value))
    _, exponent = math.frexp(value)  # bf16: eight significant bits, f32's exponents
    exponent = max(exponent, -125)
    return math.ldexp(round(math.ldexp(value, 8 - exponent)), exponent - 8)


def as_tile(x: Any, dtype: DType | None = None, *, bits: bool = False) -> Tile:
    """``x`` as a tile: tiles are converted to ``dtype``, numbers become constants."""
    if isinstance(x, Tile):
        return x if dtype is None or x.dtype is dtype else cast(x, dtype)
    if not is_number(x):
        hint = ": read a window of it, x[i : i + N]" if type(x).__name__ == "Array" else ""
        raise KernelError(f"wanted a tile or a number, got {describe(x)}{hint}")
    return constant(x, common_dtype([x]) if dtype is None else dtype, bits=bits)


def as_index(x: Any) -> Tile:
    """``x`` as an i64 scalar."""
    if isinstance(x, Tile):
        if x.shape or not x.dtype.is_integer:
            raise KernelError(f"wanted an integer scalar, got {describe(x)}")
        return cast(x, i64)
    if isinstance(x, (float, bool, np.bool_)) or not is_number(x):
        raise KernelError(f"wanted an integer, got {describe(x)}")
    return constant(x, i64)


def broadcast(what: str, *tiles: Tile) -> tuple[int, ...]:
    """The shape that ``tiles`` broadcast to; the error names every shape."""
    first = tiles[0].shape
    if all(t.shape == first for t in tiles):
        return first
    try:
        return broadcast_shapes(*(t.shape for t in tiles))
    except ValueError:
        shapes = " and ".join(str(t.shape) for t in tiles)
        raise KernelError(f"{what}: shapes {shapes} do not broadcast") from None


def _numbers(*values: Any) -> bool:
    return not any(isinstance(v, Tile) for v in values) and all(is_number(v) for v in values)


def fold(fn: Any, *values: Any) -> Any:
    """``fn`` of Python numbers, at compile time; its errors become kernel errors."""
    try:
        return fn(*values)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise KernelError(f"{error}, in a compile-time expression") from error


def _operands(what: str, *values: Any) -> None:
    for value in values:
        if not isinstance(value, Tile) and not is_number(value):
            hint = ": read a window of it, x[i : i + N]" if type(value).__name__ == "Array" else ""
            raise KernelError(f"{what} wants tiles and numbers, got {describe(value)}{hint}")


# --- elementwise ops -----------------------------------------------------------------------------


def binary(name: str, x: Any, y: Any) -> Tile:
    """One of the IR's BINARY ops with promotion: the rules of the operators ``+ - * / // % ...``.

    ``/`` on integers gives f32; ``//`` and ``%`` are NumPy's ``floor_divide`` and ``remainder``;
    arithmetic on two bools is done in i64.
    """
    if (
        name in _PLAIN
        and type(x) is Tile
        and type(y) is Tile
        and x.dtype is y.dtype is not boolean
        and x.shape == y.shape
    ):  # most of what kernels say
        return current().emit(name, (x, y), (x.type,))[0]
    what = _SYMBOL.get(name, name)
    _operands(what, x, y)
    dtype = common_dtype((x, y))
    if name == "div":
        if not dtype.is_float:
            dtype = f32
    elif name in _BITWISE:
        if dtype.is_float:
            raise KernelError(f"{what} wants integers or bools, got {describe(x)}, {describe(y)}")
    elif name in _SHIFTS:
        if not dtype.is_integer:
            raise KernelError(f"{what} wants integers, got {describe(x)} and {describe(y)}")
    elif dtype is boolean:
        if name in ("min", "max"):
            name = "and" if name == "min" else "or"
        else:
            dtype = i64
    if dtype.is_integer and (same := _neutral(name, x, y, dtype)) is not None:
        return same
    bits = name in _BITWISE
    a, b = as_tile(x, dtype, bits=bits), as_tile(y, dtype, bits=bits)
    shape = broadcast(what, a, b)
    return current().emit(name, (a, b), (TileType(dtype, shape),))[0]


def _neutral(name: str, x: Any, y: Any, dtype: DType) -> Tile | None:
    """The other operand of ``i + 0``, ``i * 1`` and the like: index arithmetic is full of them."""
    if isinstance(x, Tile) and x.dtype is dtype and type(y) is int:
        if y == 0 and name in ("add", "sub", "shl", "shr", "or"):
            return x
        if y == 1 and name in ("mul", "floordiv"):
            return x
    elif isinstance(y, Tile) and y.dtype is dtype and type(x) is int and name in _KEEPS:
        return y if x == _KEEPS[name] else None
    return None


def compare(name: str, x: Any, y: Any) -> Tile:
    """One of the IR's COMPARE ops with promotion; a bool tile."""
    what = _SYMBOL[name]
    _operands(what, x, y)
    dtype = common_dtype((x, y))
    a, b = as_tile(x, dtype), as_tile(y, dtype)
    shape = broadcast(what, a, b)
    return current().emit(name, (a, b), (TileType(boolean, shape),))[0]


def ternary(name: str, x: Any, y: Any, z: Any) -> Tile:
    """``fma`` with promotion over its three operands."""
    _operands(name, x, y, z)
    dtype = common_dtype((x, y, z))
    if dtype is boolean:
        dtype = i64
    tiles = tuple(as_tile(v, dtype) for v in (x, y, z))
    return current().emit(name, tiles, (TileType(dtype, broadcast(name, *tiles)),))[0]


def unary(name: str, x: Any, result: DType | None = None) -> Tile:
    """One of the IR's UNARY ops, dtype kept (or ``result``)."""
    _operands(name, x)
    tile = as_tile(x)
    out = TileType(tile.dtype if result is None else result, tile.shape)
    return current().emit(name, (tile,), (out,))[0]


def float_unary(name: str, x: Any) -> Tile:
    """A UNARY op that is defined on floats; integers and bools become f32 first."""
    _operands(name, x)
    tile = as_tile(x)
    if not tile.dtype.is_float:
        tile = cast(tile, f32)
    return current().emit(name, (tile,), (tile.type,))[0]


def float_binary(name: str, x: Any, y: Any) -> Tile:
    """A BINARY op that is defined on floats; integers and bools become f32 first."""
    _operands(name, x, y)
    dtype = common_dtype((x, y))
    if not dtype.is_float:
        dtype = f32
    a, b = as_tile(x, dtype), as_tile(y, dtype)
    return current().emit(name, (a, b), (TileType(dtype, broadcast(name, a, b)),))[0]


def negative(x: Tile) -> Tile:
    """``-x``; integers wrap around."""
    return unary("neg", cast(x, i64) if x.dtype is boolean else x)


def bitwise_not(x: Tile) -> Tile:
    """``~x``: logical on bools, bitwise on integers."""
    if x.dtype.is_float:
        raise KernelError(f"~ wants an integer or a bool, got {describe(x)}")
    return unary("not", x)


def power(x: Any, y: Any) -> Any:
    """``x ** y``: floats by ``pow``, integers by squaring (they wrap; see the IR's ``pow``)."""
    if _numbers(x, y):
        return fold(lambda a, b: a**b, x, y)
    _operands("**", x, y)
    if isinstance(y, int) and not isinstance(y, bool) and isinstance(x, Tile):
        if y == 2:
            return binary("mul", x, x)
        if x.dtype.is_integer:
            if y < 0:
                raise KernelError("an integer to a negative power: convert it to a float first")
            result: Tile | None = None
            square = x
            while y:
                if y & 1:
                    result = square if result is None else binary("mul", result, square)
                y >>= 1
                if y:
                    square = binary("mul", square, square)
            return constant(1, x.dtype, x.shape) if result is None else result
    return binary("pow", x, y)


@builtin
def cast(x: Any, dtype: Any) -> Tile:
    """``x`` as ``dtype``: to float rounds to nearest even; float to integer truncates, saturates
    and takes NaN to 0; integer to integer wraps; to bool is ``x != 0``."""
    target = as_dtype(dtype)
    if not isinstance(x, Tile):
        if isinstance(x, float) and target.is_integer:
            return cast(constant(x, f64), target)
        return as_tile(x, target)
    if x.dtype is target:
        return x
    return current().emit("cast", (x,), (TileType(target, x.shape),))[0]

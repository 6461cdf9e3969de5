"""Functions of the elements: the standard's, and the activations of networks.

Operands broadcast and are promoted; one of two may be a Python number. Functions of real numbers
turn integers and bool into float32 first. Special values are those of the standard (IEEE 754,
Annex F of C99).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tilewright.dtypes import boolean
from tilewright.errors import DTypeError
from tilewright.graph import Node, scalar_node
from tilewright.ops import elementwise as ew
from tilewright.tensor.core import Build, Tensor, apply, binary
from tilewright.tensor.nodes import cast_node, whole_quotient
from tilewright.tensor.promotion import DEFAULT_FLOAT, RANGES, Number


def check_tensor(name: str, x: Any) -> Tensor:
    """``x``, if it is a tensor."""
    if not isinstance(x, Tensor):
        raise DTypeError(f"{name} wants a tensor, got {type(x).__name__}: use asarray() first")
    return x


def floating(node: Node) -> Node:
    """``node``, integers and bool as the default float."""
    return node if node.dtype.kind == "f" else cast_node(node, DEFAULT_FLOAT)


def _real(name: str, build: Callable[[Node], Node], doc: str) -> Callable[[Tensor], Tensor]:
    """A function of real numbers."""

    def of_real(node: Node) -> Node:
        return build(floating(node))

    def function(x: Tensor, /) -> Tensor:
        return apply(of_real, check_tensor(name, x))

    return _named(function, name, doc)


def _number(name: str, build: Callable[[Node], Node], doc: str) -> Callable[[Tensor], Tensor]:
    """A function that is defined for the dtypes its op takes."""

    def function(x: Tensor, /) -> Tensor:
        return apply(build, check_tensor(name, x))

    return _named(function, name, doc)


def _rounding(name: str, build: Callable[[Node], Node], doc: str) -> Callable[[Tensor], Tensor]:
    """A function that leaves integers as they are."""

    def function(x: Tensor, /) -> Tensor:
        if check_tensor(name, x).dtype.kind != "f":
            return +x
        return apply(build, x)

    return _named(function, name, doc)


def _pair(
    name: str, build: Build, doc: str, floating: bool = False
) -> Callable[[Tensor | Number, Tensor | Number], Tensor]:
    """A function of two operands."""

    def function(x1: Tensor | Number, x2: Tensor | Number, /) -> Tensor:
        result: Any = NotImplemented
        if isinstance(x1, Tensor):
            result = binary(build, x1, x2, floating=floating)
        elif isinstance(x2, Tensor):
            result = binary(build, x2, x1, swap=True, floating=floating)
        if result is NotImplemented:
            raise DTypeError(
                f"{name} wants two tensors, or one and a number, got "
                f"{type(x1).__name__} and {type(x2).__name__}: use asarray() first"
            )
        return result

    return _named(function, name, doc)


def _named(function: Any, name: str, doc: str) -> Any:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return function


# one operand

acos = _real("acos", ew.acos, "Inverse cosine, in radians.")
acosh = _real("acosh", ew.acosh, "Inverse hyperbolic cosine.")
asin = _real("asin", ew.asin, "Inverse sine, in radians.")
asinh = _real("asinh", ew.asinh, "Inverse hyperbolic sine.")
atan = _real("atan", ew.atan, "Inverse tangent, in radians.")
atanh = _real("atanh", ew.atanh, "Inverse hyperbolic tangent.")
cos = _real("cos", ew.cos, "Cosine of radians.")
cosh = _real("cosh", ew.cosh, "Hyperbolic cosine.")
erf = _real("erf", ew.erf, "The error function.")
exp = _real("exp", ew.exp, "e to the power of each element.")
exp2 = _real("exp2", ew.exp2, "2 to the power of each element.")
expm1 = _real("expm1", ew.expm1, "``exp(x) - 1``, accurate near 0.")
log = _real("log", ew.log, "Natural logarithm.")
log10 = _real("log10", ew.log10, "Logarithm to base 10.")
log1p = _real("log1p", ew.log1p, "``log(1 + x)``, accurate near 0.")
log2 = _real("log2", ew.log2, "Logarithm to base 2.")
reciprocal = _real("reciprocal", ew.reciprocal, "``1 / x``.")
rsqrt = _real("rsqrt", ew.rsqrt, "``1 / sqrt(x)``.")
sin = _real("sin", ew.sin, "Sine of radians.")
sinh = _real("sinh", ew.sinh, "Hyperbolic sine.")
sqrt = _real("sqrt", ew.sqrt, "Square root.")
tan = _real("tan", ew.tan, "Tangent of radians.")
tanh = _real("tanh", ew.tanh, "Hyperbolic tangent.")

ceil = _rounding("ceil", ew.ceil, "The least integer that is not less.")
floor = _rounding("floor", ew.floor, "The greatest integer that is not greater.")
round = _rounding("round", ew.round, "The nearest integer, the even one of two.")
trunc = _rounding("trunc", ew.trunc, "The integer part.")

abs = _number("abs", ew.abs, "Absolute values (the least signed integer stays as it is).")
negative = _number("negative", ew.neg, "``-x``; unsigned integers wrap around.")
sign = _number("sign", ew.sign, "-1, 0 or 1; NaN for NaN.")
square = _number("square", ew.square, "``x * x``.")
bitwise_invert = _number(
    "bitwise_invert", ew.bitwise_invert, "Every bit inverted; ``not`` for bool."
)

# two operands

add = _pair("add", ew.add, "``x1 + x2``.")
atan2 = _pair("atan2", ew.atan2, "The angle of the point (x2, x1), in radians.", floating=True)
bitwise_and = _pair("bitwise_and", ew.bitwise_and, "``x1 & x2``, of integers or bool.")
bitwise_left_shift = _pair("bitwise_left_shift", ew.shift_left, "``x1 << x2``, of integers.")
bitwise_or = _pair("bitwise_or", ew.bitwise_or, "``x1 | x2``, of integers or bool.")
bitwise_right_shift = _pair(
    "bitwise_right_shift", ew.shift_right, "``x1 >> x2``, of integers; the sign is kept."
)
bitwise_xor = _pair("bitwise_xor", ew.bitwise_xor, "``x1 ^ x2``, of integers or bool.")
copysign = _pair("copysign", ew.copysign, "``x1`` with the sign of ``x2``.", floating=True)
divide = _pair("divide", ew.div, "``x1 / x2``; integers as float32.", floating=True)
equal = _pair("equal", ew.eq, "``x1 == x2``.")
floor_divide = _pair("floor_divide", whole_quotient, "``floor(x1 / x2)``; 0 for integers over 0.")
greater = _pair("greater", ew.gt, "``x1 > x2``.")
greater_equal = _pair("greater_equal", ew.ge, "``x1 >= x2``.")
hypot = _pair("hypot", ew.hypot, "``sqrt(x1**2 + x2**2)`` without overflow.", floating=True)
less = _pair("less", ew.lt, "``x1 < x2``.")
less_equal = _pair("less_equal", ew.le, "``x1 <= x2``.")
logaddexp = _pair("logaddexp", ew.logaddexp, "``log(exp(x1) + exp(x2))``.", floating=True)
maximum = _pair("maximum", ew.maximum, "The greater of two; NaN if either is.")
minimum = _pair("minimum", ew.minimum, "The less of two; NaN if either is.")
multiply = _pair("multiply", ew.mul, "``x1 * x2``.")
nextafter = _pair(
    "nextafter", ew.nextafter, "The next representable number from x1 towards x2.", floating=True
)
not_equal = _pair("not_equal", ew.ne, "``x1 != x2``.")
pow = _pair("pow", ew.pow, "``x1 ** x2``.")
remainder = _pair("remainder", ew.remainder, "``x1 - floor(x1 / x2) * x2``: the sign is x2's.")
subtract = _pair("subtract", ew.sub, "``x1 - x2``.")


def _logical(name: str, build: Build, doc: str) -> Any:
    def of_truth(a: Node, b: Node) -> Node:
        return build(cast_node(a, boolean), cast_node(b, boolean))

    return _pair(name, of_truth, doc)


logical_and = _logical("logical_and", ew.logical_and, "``x1 and x2``; numbers are true unless 0.")
logical_or = _logical("logical_or", ew.logical_or, "``x1 or x2``; numbers are true unless 0.")
logical_xor = _logical("logical_xor", ew.logical_xor, "Whether one of x1 and x2 is true.")
logical_not = _number(
    "logical_not", lambda node: ew.logical_not(cast_node(node, boolean)), "``not x``."
)


def positive(x: Tensor, /) -> Tensor:
    """``+x``."""
    return +check_tensor("positive", x)


def _test(name: str, build: Callable[[Node], Node], integers: Build, doc: str) -> Any:
    def of_any(node: Node) -> Node:
        return build(node) if node.dtype.kind == "f" else integers(node, node)

    return _number(name, of_any, doc)


isfinite = _test(
    "isfinite", ew.isfinite, ew.eq, "Whether each element is neither infinite nor NaN."
)
isinf = _test("isinf", ew.isinf, ew.ne, "Whether each element is infinite.")
isnan = _test("isnan", ew.isnan, ew.ne, "Whether each element is NaN.")


def signbit(x: Tensor, /) -> Tensor:
    """Whether the sign bit is set (also of -0 and NaN)."""
    check_tensor("signbit", x)
    if x.dtype.kind == "f":
        return apply(ew.signbit, x)
    return x < 0 if x.dtype.kind == "i" else apply(lambda node: ew.ne(node, node), x)


def real(x: Tensor, /) -> Tensor:
    """The real part: the tensor itself, for all of them are real."""
    return +check_tensor("real", x)


def imag(x: Tensor, /) -> Tensor:
    """The imaginary part: zeros, for all tensors are real."""
    return apply(ew.zeros_like, check_tensor("imag", x))


def conj(x: Tensor, /) -> Tensor:
    """The complex conjugate: the tensor itself, for all of them are real."""
    return +check_tensor("conj", x)


def clip(
    x: Tensor,
    /,
    min: Tensor | Number | None = None,
    max: Tensor | Number | None = None,
) -> Tensor:
    """``x`` raised to ``min``, then lowered to ``max``, in the dtype of ``x``; NaN stays NaN.

    The bounds are of the kind of ``x`` and broadcast with it. On a bound the gradient is that of
    ``x``.
    """
    dtype = check_tensor("clip", x).dtype
    if dtype.kind == "b":
        raise DTypeError("clip wants numbers, got bool")
    if min is None and max is None:
        return +x
    lowest, highest = RANGES.get(dtype, (-math.inf, math.inf))
    low = _bound(x, lowest if min is None else min)
    high = _bound(x, highest if max is None else max)
    return apply(ew.clip, x, low, high)


def _bound(x: Tensor, bound: Tensor | Number) -> Tensor:
    """A bound in the dtype of ``x``."""
    dtype = x.dtype
    if isinstance(bound, Tensor):
        if bound.dtype is dtype:
            return bound
        if (bound.dtype.kind == "f") != (dtype.kind == "f"):
            raise DTypeError(f"clip: a bound of {bound.dtype} is of another kind than {dtype}")
        return apply(cast_node, bound, dtype=dtype)
    if isinstance(bound, float) and dtype.is_integer:
        raise DTypeError(f"clip: a bound of {bound!r} is of another kind than {dtype}")
    if dtype.is_integer:
        low, high = RANGES[dtype]
        bound = low if bound < low else high if bound > high else bound
    return Tensor(scalar_node(bound, dtype))


def where(condition: Tensor, x1: Tensor | Number, x2: Tensor | Number, /) -> Tensor:
    """``x1`` where ``condition`` holds, ``x2`` elsewhere; the three broadcast."""
    chosen = cast_node(check_tensor("where", condition).node, boolean)

    def build(a: Node, b: Node) -> Node:
        return ew.where(chosen, a, b)

    result: Any = NotImplemented
    if isinstance(x1, Tensor):
        result = binary(build, x1, x2)
    elif isinstance(x2, Tensor):
        result = binary(build, x2, x1, swap=True)
    if result is NotImplemented:
        raise DTypeError(
            "where chooses from two tensors, or one and a number, got "
            f"{type(x1).__name__} and {type(x2).__name__}: use asarray() first"
        )
    return result


# networks

relu = _real("relu", ew.relu, "``max(x, 0)``; its gradient at 0 is 0.")
sigmoid = _real("sigmoid", ew.sigmoid, "``1 / (1 + exp(-x))``.")
silu = _real("silu", ew.silu, "``x * sigmoid(x)``.")
softplus = _real("softplus", ew.softplus, "``log(1 + exp(x))`` without overflow.")
log_sigmoid = _real("log_sigmoid", ew.log_sigmoid, "``log(sigmoid(x))`` without underflow.")


def gelu(x: Tensor, /, *, approximate: str = "none") -> Tensor:
    """GELU: exact (``"none"``), or in its tanh form (``"tanh"``)."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f'gelu: approximate is "none" or "tanh", got {approximate!r}')
    return apply(ew.gelu_erf if approximate == "none" else ew.gelu, check_tensor("gelu", x))


def leaky_relu(x: Tensor, /, slope: float = 0.01) -> Tensor:
    """``x`` where it is positive, else ``slope * x``."""
    return apply(ew.leaky_relu, check_tensor("leaky_relu", x), slope=slope)


def elu(x: Tensor, /, alpha: float = 1.0) -> Tensor:
    """``x`` where it is positive, else ``alpha * (exp(x) - 1)``."""
    return apply(ew.elu, check_tensor("elu", x), alpha=alpha)

"""Elementwise ops, casts and reductions as ONNX nodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from tilewright.dtypes import boolean, f32, i32, i64
from tilewright.graph import Node
from tilewright.onnx.export.writer import ELEMENTWISE, KINDS, TABLE, Emit, Writer, emits

_SAME: Final = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "neg": "Neg", "abs": "Abs", "sign": "Sign",
    "sqrt": "Sqrt", "reciprocal": "Reciprocal", "exp": "Exp", "log": "Log", "sin": "Sin",
    "cos": "Cos", "tan": "Tan", "asin": "Asin", "acos": "Acos", "atan": "Atan", "sinh": "Sinh",
    "cosh": "Cosh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh", "tanh": "Tanh",
    "erf": "Erf", "sigmoid": "Sigmoid", "relu": "Relu", "softplus": "Softplus", "floor": "Floor",
    "ceil": "Ceil", "round": "Round", "maximum": "Max", "minimum": "Min", "pow": "Pow",
    "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual",
    "isnan": "IsNaN", "isinf": "IsInf", "where": "Where", "bitwise_and": "BitwiseAnd",
    "bitwise_or": "BitwiseOr", "bitwise_xor": "BitwiseXor", "bitwise_invert": "BitwiseNot",
}  # fmt: skip
_OF_BOOLS: Final = {
    "add": "Or", "mul": "And", "maximum": "Or", "minimum": "And", "bitwise_and": "And",
    "bitwise_or": "Or", "bitwise_xor": "Xor", "bitwise_invert": "Not",
}  # fmt: skip


def elementwise(*ops: str) -> Callable[[Emit], Emit]:
    """Register how elementwise ops are written; they get operands before broadcasting."""

    def register(function: Emit) -> Emit:
        ELEMENTWISE.add(function)
        return emits(*ops)(function)

    return register


@elementwise(*_SAME)
def _plain(w: Writer, node: Node, *xs: str) -> Any:
    bools = node.inputs[0].dtype is boolean
    return w.op(_OF_BOOLS[node.op] if bools and node.op in _OF_BOOLS else _SAME[node.op], *xs)


def _like(w: Writer, node: Node, value: float) -> str:
    return w.constant(value, node.dtype)


@elementwise("div")
def _div(w: Writer, node: Node, x: str, y: str) -> Any:
    softmax = _softmax(w, node)
    return w.op("Div", x, y) if softmax is None else softmax


def _softmax(w: Writer, node: Node) -> Any:
    """A quotient of exponentials and their sum is a Softmax."""
    top, bottom = node.inputs
    if bottom.op == "broadcast":
        bottom = bottom.inputs[0]
    if top.op != "exp" or bottom.op != "sum" or bottom.inputs[0] is not top:
        return None
    axes = bottom.attrs["axes"]
    if len(axes) != 1 or not bottom.attrs["keepdims"]:
        return None
    return w.op("Softmax", w.name(_unshifted(top.inputs[0])), axis=axes[0])


def _unshifted(x: Node) -> Node:
    """Without the subtraction of the largest element, which Softmax does itself."""
    if x.op != "sub":
        return x
    source, top = x.inputs
    if top.op == "broadcast":
        top = top.inputs[0]
    if top.op == "where" and top.inputs[1].op == "max":
        top = top.inputs[1]
    return source if top.op == "max" and top.inputs[0] is source else x


@elementwise("square")
def _square(w: Writer, node: Node, x: str) -> Any:
    return w.op("Mul", x, x)


@elementwise("rsqrt")
def _rsqrt(w: Writer, node: Node, x: str) -> Any:
    return w.op("Reciprocal", w.op("Sqrt", x))


@elementwise("scale")
def _scale(w: Writer, node: Node, x: str) -> Any:
    return w.op("Mul", x, _like(w, node, node.attrs["factor"]))


@elementwise("ne")
def _ne(w: Writer, node: Node, x: str, y: str) -> Any:
    return w.op("Not", w.op("Equal", x, y))


@elementwise("isfinite")
def _isfinite(w: Writer, node: Node, x: str) -> Any:
    return w.op("Not", w.op("Or", w.op("IsInf", x), w.op("IsNaN", x)))


@elementwise("trunc")
def _trunc(w: Writer, node: Node, x: str) -> Any:
    return w.op("Mul", w.op("Sign", x), w.op("Floor", w.op("Abs", x)))


@elementwise("exp2")
def _exp2(w: Writer, node: Node, x: str) -> Any:
    return w.op("Pow", _like(w, node, 2), x)


@elementwise("log2", "log10")
def _log_of_base(w: Writer, node: Node, x: str) -> Any:
    base = math.log(2 if node.op == "log2" else 10)
    return w.op("Div", w.op("Log", x), _like(w, node, base))


@elementwise("log1p")
def _log1p(w: Writer, node: Node, x: str) -> Any:
    return w.op("Log", w.op("Add", x, _like(w, node, 1)))


@elementwise("expm1")
def _expm1(w: Writer, node: Node, x: str) -> Any:
    return w.op("Sub", w.op("Exp", x), _like(w, node, 1))


@elementwise("floor_divide")
def _floor_divide(w: Writer, node: Node, x: str, y: str) -> Any:
    if node.dtype.is_float:
        return w.op("Floor", w.op("Div", x, y))
    return w.op("Div", w.op("Sub", x, w.op("Mod", x, y)), y)


@elementwise("remainder")
def _remainder(w: Writer, node: Node, x: str, y: str) -> Any:
    if not node.dtype.is_float:
        return w.op("Mod", x, y)
    return w.op("Sub", x, w.op("Mul", y, w.op("Floor", w.op("Div", x, y))))


@elementwise("clip")
def _clip(w: Writer, node: Node, x: str, low: str, high: str) -> Any:
    return w.op("Min", w.op("Max", x, low), high)


@elementwise("logical_and", "logical_or", "logical_xor", "logical_not")
def _logical(w: Writer, node: Node, *xs: str) -> Any:
    bools = [w.cast(x, i.dtype, boolean) for x, i in zip(xs, node.inputs)]
    return w.op(node.op.removeprefix("logical_").capitalize(), *bools)


@elementwise("silu")
def _silu(w: Writer, node: Node, x: str) -> Any:
    return w.op("Mul", x, w.op("Sigmoid", x))


@elementwise("gelu", "gelu_erf")
def _gelu(w: Writer, node: Node, x: str) -> Any:
    return w.op("Gelu", x, approximate="tanh" if node.op == "gelu" else "none")


@elementwise("leaky_relu")
def _leaky_relu(w: Writer, node: Node, x: str) -> Any:
    return w.op("LeakyRelu", x, alpha=float(node.attrs["slope"]))


@elementwise("elu")
def _elu(w: Writer, node: Node, x: str) -> Any:
    return w.op("Elu", x, alpha=float(node.attrs["alpha"]))


@elementwise("logaddexp")
def _logaddexp(w: Writer, node: Node, x: str, y: str) -> Any:
    gap = w.op("Neg", w.op("Abs", w.op("Sub", x, y)))
    return w.op("Add", w.op("Max", x, y), w.op("Softplus", gap))


@elementwise("hypot")
def _hypot(w: Writer, node: Node, x: str, y: str) -> Any:
    return w.op("Sqrt", w.op("Add", w.op("Mul", x, x), w.op("Mul", y, y)))


@elementwise("cast")
def _cast(w: Writer, node: Node, x: str) -> Any:
    return w.cast(x, node.inputs[0].dtype, node.dtype)


@elementwise("copy", "stop_gradient", "barrier", "checked")
def _identity(w: Writer, node: Node, x: str, *after: str) -> Any:
    return x


# --- reductions ----------------------------------------------------------------------------------


@emits("sum", "prod", "max", "min")
def _reduce(w: Writer, node: Node, x: str) -> Any:
    kind = {"sum": "ReduceSum", "prod": "ReduceProd", "max": "ReduceMax", "min": "ReduceMin"}
    axes, keep = node.attrs["axes"], int(node.attrs["keepdims"])
    return w.op(kind[node.op], x, w.ints(*axes), keepdims=keep, noop_with_empty_axes=1)


@emits("any", "all")
def _reduce_bools(w: Writer, node: Node, x: str) -> Any:
    kind = "ReduceMax" if node.op == "any" else "ReduceMin"
    axes, keep = node.attrs["axes"], int(node.attrs["keepdims"])
    number = w.cast(x, node.inputs[0].dtype, i32)
    found = w.op(kind, number, w.ints(*axes), keepdims=keep, noop_with_empty_axes=1)
    return w.cast(found, i32, boolean)


@emits("argmax", "argmin")
def _arg(w: Writer, node: Node, x: str) -> Any:
    kind = "ArgMax" if node.op == "argmax" else "ArgMin"
    keep = int(node.attrs["keepdims"])
    return w.cast(w.op(kind, x, axis=node.attrs["axis"], keepdims=keep), i64, node.dtype)


@emits("cumsum")
def _cumsum(w: Writer, node: Node, x: str) -> Any:
    return w.op("CumSum", x, w.constant(node.attrs["axis"]), reverse=int(node.attrs["reverse"]))


@emits("argsort")
def _argsort(w: Writer, node: Node, x: str) -> Any:
    axis, k = node.attrs["axis"], node.attrs["k"]
    source = node.inputs[0]
    if source.dtype is boolean:
        x = w.cast(x, boolean, i32)
    count = w.size(source.shape[axis] if k is None else k)
    largest = int(node.attrs["descending"])
    _, places = w.op("TopK", x, count, outputs=2, axis=axis, largest=largest, sorted=1)
    return w.cast(places, i64, node.dtype)


# --- norms ---------------------------------------------------------------------------------------


@emits("layer_norm")
def _layer_norm(w: Writer, node: Node, x: str, weight: str, bias: str) -> Any:
    return w.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=node.attrs["eps"])


@emits("rms_norm")
def _rms_norm(w: Writer, node: Node, x: str, weight: str) -> Any:
    kind = node.inputs[0].dtype
    wide = w.cast(x, kind, f32) if kind.bits == 16 else x
    used = f32 if kind.bits == 16 else kind
    mean = w.op("ReduceMean", w.op("Mul", wide, wide), w.ints(-1), keepdims=1)
    root = w.op("Sqrt", w.op("Add", mean, w.constant(node.attrs["eps"], used)))
    return w.op("Mul", w.cast(w.op("Div", wide, root), used, kind), weight)


assert set(_SAME) <= set(TABLE)
assert i64 in KINDS

"""Reductions over axes, and what is made of them: mean, variance, softmax and relatives.

A reduction keeps its dtype (``any``, ``all``: bool; ``argmax``, ``argmin``: i64). Sums and products
of 16-bit floats accumulate in f32 and are rounded once. The composites compute 16-bit floats in f32
throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, boolean, f32, i64
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.ops.arithmetic import add, div, literal, mul, scale, square, sub
from tilewright.ops.autodiff import custom_gradient, local_vjp
from tilewright.ops.comparison import eq, isfinite, where
from tilewright.ops.creation import cast
from tilewright.ops.elementwise_math import exp, log
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import (
    broadcast,
    normal_axes,
    normal_axis,
    pad,
    permute,
    reshape,
    sizes_of,
    split,
    sum_to,
)
from tilewright.sizes import has_value, maximum

__all__ = [
    "all",
    "any",
    "argmax",
    "argmin",
    "log_softmax",
    "logsumexp",
    "max",
    "mean",
    "min",
    "prod",
    "softmax",
    "sum",
    "sum_to",
    "var",
]

Axes = int | Sequence[int] | None


def _reduced(shape: Shape, axes: Sequence[int], keepdims: bool) -> Shape:
    if keepdims:
        return tuple(1 if a in axes else n for a, n in enumerate(shape))
    return tuple(n for a, n in enumerate(shape) if a not in axes)


def _register(
    name: str,
    reference: Callable[..., Any],
    gradient: Callable[[Node, Node], Sequence[Node | None]] | None,
    *,
    kinds: str,
    result: DType | None = None,
    identity: bool = True,
) -> None:
    """Register a reduction; without ``identity`` it has no value over an empty axis."""

    def infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
        (x,) = inputs
        axes = attrs["axes"] if "axes" in attrs else (attrs["axis"],)
        if x.dtype.kind not in kinds:
            raise ShapeError(f"{name} does not take {x.dtype}: cast it first")
        if not identity and 0 in (x.shape[a] for a in axes):
            raise ShapeError(f"{name} over axes {axes} of {shape_of(x.shape)} has no elements")
        return _reduced(x.shape, axes, attrs["keepdims"]), result or x.dtype

    register(OpDef(name, infer, reference, gradient=gradient))


def _accumulated(fn: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Floats are accumulated in float64 and rounded once; integers wrap."""

    def reference(x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> np.ndarray:
        wide = np.float64 if x.dtype.kind == "f" else x.dtype
        return np.asarray(fn(x, axis=axes, keepdims=keepdims, dtype=wide)).astype(x.dtype)

    return reference


def _plain(fn: Callable[..., Any]) -> Callable[..., np.ndarray]:
    return lambda x, axes, keepdims: fn(x, axis=axes, keepdims=keepdims)


def _restored(g: Node, node: Node) -> Node:
    """``g`` (or the result) with the reduced axes back, of size 1."""
    return reshape(g, _reduced(node.inputs[0].shape, node.attrs["axes"], True))


def _sum_gradient(node: Node, g: Node) -> list[Node]:
    return [broadcast(_restored(g, node), node.inputs[0].shape)]


def _extreme_gradient(node: Node, g: Node) -> list[Node]:
    """Shared evenly by all elements that are the extreme."""
    (x,) = node.inputs
    chosen = eq(x, _restored(node, node))
    count = sum(cast(chosen, x.dtype if x.dtype.bits > 16 else f32), node.attrs["axes"], True)
    return [mul(div(_restored(g, node), cast(count, x.dtype)), cast(chosen, x.dtype))]


def _prod_gradient(node: Node, g: Node) -> list[Node | None]:
    """The gradient of a tree of products: no division, so zeros do no harm."""
    (x,) = node.inputs
    axes = node.attrs["axes"]
    rest = [a for a in range(len(x.shape)) if a not in axes]
    tree = reshape(permute(x, (*axes, *rest)), (-1, *(x.shape[a] for a in rest)))
    if 0 in x.shape:
        return [broadcast(literal(0, x), x.shape)]
    while (n := sizes_of(tree)[0]) > 1:
        half = (n + 1) // 2
        even = pad(tree, [(0, n % 2), *((0, 0) for _ in rest)], 1)
        low, high = split(even, [half, half], 0)
        tree = mul(low, high)
    return local_vjp([reshape(tree, node.shape)], [g], [x])


_register("sum", _accumulated(np.sum), _sum_gradient, kinds="fiu")
_register("prod", _accumulated(np.prod), _prod_gradient, kinds="fiu")
_register("max", _plain(np.max), _extreme_gradient, kinds="fiub", identity=False)
_register("min", _plain(np.min), _extreme_gradient, kinds="fiub", identity=False)
_register("any", _plain(np.any), None, kinds="b", result=boolean)
_register("all", _plain(np.all), None, kinds="b", result=boolean)
_register("argmax", np.argmax, None, kinds="fiub", result=i64, identity=False)
_register("argmin", np.argmin, None, kinds="fiub", result=i64, identity=False)


def _reduce(op: str, x: Node, axes: Axes, keepdims: bool) -> Node:
    return make(op, x, axes=normal_axes(axes, len(x.shape)), keepdims=bool(keepdims))


def sum(x: Node, axes: Axes = None, keepdims: bool = False) -> Node:
    """The sum over ``axes`` (default all); 0 over none. Integers wrap."""
    return _reduce("sum", x, axes, keepdims)


def prod(x: Node, axes: Axes = None, keepdims: bool = False) -> Node:
    """The product over ``axes`` (default all); 1 over none. Integers wrap."""
    return _reduce("prod", x, axes, keepdims)


def max(x: Node, axes: Axes = None, keepdims: bool = False) -> Node:
    """The largest element; NaN if there is one. Ties share the gradient evenly."""
    return _reduce("max", x, axes, keepdims)


def min(x: Node, axes: Axes = None, keepdims: bool = False) -> Node:
    """The smallest element; NaN if there is one. Ties share the gradient evenly."""
    return _reduce("min", x, axes, keepdims)


def any(x: Node, axes: Axes = None, keepdims: bool = False) -> Node:
    """Whether an element of a bool array is true; false over none."""
    return _reduce("any", x, axes, keepdims)


def all(x: Node, axes: Axes = None, keepdims: bool = False) -> Node:
    """Whether every element of a bool array is true; true over none."""
    return _reduce("all", x, axes, keepdims)


def argmax(x: Node, axis: int, keepdims: bool = False) -> Node:
    """The index (i64) of the first largest element along ``axis``; of the first NaN if any."""
    return make("argmax", x, axis=normal_axis(axis, len(x.shape)), keepdims=bool(keepdims))


def argmin(x: Node, axis: int, keepdims: bool = False) -> Node:
    """The index (i64) of the first smallest element along ``axis``; of the first NaN if any."""
    return make("argmin", x, axis=normal_axis(axis, len(x.shape)), keepdims=bool(keepdims))


# --- composites ----------------------------------------------------------------------------------


def _wide(x: Node) -> Node:
    """16-bit floats as f32."""
    if not x.dtype.is_float:
        raise ShapeError(f"wanted floats, got {x.dtype}: cast it first")
    return cast(x, f32) if x.dtype.bits == 16 else x


def _count(x: Node, axes: Sequence[int]) -> int:
    return math.prod(sizes_of(x)[a] for a in axes)


def mean(x: Node, axes: Axes = None, keepdims: bool = False) -> Node:
    """The mean over ``axes`` (default all) of a float array; NaN over none."""
    over = normal_axes(axes, len(x.shape))
    total = sum(_wide(x), over, keepdims)
    return cast(div(total, literal(_count(x, over), total)), x.dtype)


def var(x: Node, axes: Axes = None, correction: float = 0, keepdims: bool = False) -> Node:
    """The variance over ``axes``: the sum of squared distances from the mean over
    ``count - correction`` (two passes, so a large mean costs no digits)."""
    over = normal_axes(axes, len(x.shape))
    freedom = _freedom(_count(x, over), correction)

    def forward(x: Node) -> Node:
        wide = _wide(x)
        total = sum(square(sub(wide, mean(wide, over, True))), over, keepdims)
        return cast(div(total, literal(freedom, total)), x.dtype)

    def rule(inputs: Any, outputs: Any, grads: Any) -> list[Node]:
        wide = _wide(inputs[0])
        g = reshape(_wide(grads[0]), _reduced(x.shape, over, True))
        centred = sub(wide, mean(wide, over, True))
        slope = div(scale(centred, 2.0), literal(freedom, centred))
        return [cast(mul(g, slope), x.dtype)]

    return custom_gradient(forward, rule)(x)


def _freedom(count: Any, correction: float) -> Any:
    """``count - correction``, not below 0."""
    if has_value(count) and not isinstance(count, int) and correction == int(correction):
        return maximum(count - int(correction), 0)
    return float(np.maximum(count - correction, 0))


def _shifted(x: Node, axes: tuple[int, ...]) -> tuple[Node, Node]:
    """``x`` minus its maximum, and the maximum (0 where that is infinite)."""
    top = max(x, axes, True)
    top = where(isfinite(top), top, literal(0, top))
    return sub(x, top), top


def softmax(x: Node, axis: int = -1) -> Node:
    """``exp(x) / sum(exp(x))`` along ``axis``, without overflow; NaN where all is ``-inf``."""
    axes = (normal_axis(axis, len(x.shape)),)

    def forward(x: Node) -> Node:
        powers = exp(_shifted(_wide(x), axes)[0])
        return cast(div(powers, sum(powers, axes, True)), x.dtype)

    def rule(inputs: Any, outputs: Any, grads: Any) -> list[Node]:
        y, g = _wide(outputs[0]), _wide(grads[0])
        return [cast(mul(y, sub(g, sum(mul(g, y), axes, True))), x.dtype)]

    return custom_gradient(forward, rule)(x)


def log_softmax(x: Node, axis: int = -1) -> Node:
    """``log(softmax(x))`` along ``axis``, without underflow."""
    axes = (normal_axis(axis, len(x.shape)),)

    def forward(x: Node) -> Node:
        shifted = _shifted(_wide(x), axes)[0]
        return cast(sub(shifted, log(sum(exp(shifted), axes, True))), x.dtype)

    def rule(inputs: Any, outputs: Any, grads: Any) -> list[Node]:
        y, g = _wide(outputs[0]), _wide(grads[0])
        return [cast(sub(g, mul(exp(y), sum(g, axes, True))), x.dtype)]

    return custom_gradient(forward, rule)(x)


def logsumexp(x: Node, axes: Axes = None, keepdims: bool = False) -> Node:
    """``log(sum(exp(x)))`` over ``axes``, without overflow; ``-inf`` where all is ``-inf``."""
    over = normal_axes(axes, len(x.shape))

    def forward(x: Node) -> Node:
        shifted, top = _shifted(_wide(x), over)
        total = add(log(sum(exp(shifted), over, True)), top)
        return cast(reshape(total, _reduced(x.shape, over, keepdims)), x.dtype)

    def rule(inputs: Any, outputs: Any, grads: Any) -> list[Node]:
        kept = _reduced(x.shape, over, True)
        y, g = (reshape(_wide(v), kept) for v in (outputs[0], grads[0]))
        y = where(isfinite(y), y, literal(0, y))
        return [cast(mul(g, exp(sub(_wide(inputs[0]), y))), x.dtype)]

    return custom_gradient(forward, rule)(x)

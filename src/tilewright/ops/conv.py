"""Convolution over one to three spatial axes, its two gradients, and transposed convolution.

What deep learning calls convolution is a cross-correlation. On every spatial axis::

    y[n, o, p] = sum over c, k of x[n, c, p * stride + k * dilation - low] * w[o, c, k]

with zeros outside x. The map is linear in x and in w, so its gradients are the transposed maps::

    conv(x, w)                   x (N, C, *size), w (O, C/groups, *kernel) -> y (N, O, *out)
    conv_input_gradient(y, w)    the transpose in x: (N, O, *out) -> (N, C, *size)
    conv_weight_gradient(x, y)   the transpose in w: -> (O, C/groups, *kernel)

Each one's gradient is made of the other two, so derivatives of any order exist. A transposed
convolution ("deconvolution") is ``conv_input_gradient`` of an input of the right size.

Rounding: f64 is summed in f64, f32, f16 and bf16 in f32 and rounded once. An output of ``conv`` and
of ``conv_input_gradient`` is one accumulator that takes one fused multiply-add per channel and tap,
channels outermost, then taps in ascending order of the index in w (descending for the input
gradient); bf16 takes one ``dot2`` per tap and pair of channels where a group has eight outputs or
more. ``conv_weight_gradient`` sums over the positions of some images (bf16: of pairs of images),
then over the images of a group, then over groups, all as the shapes say. No order depends on
threads, tiles or strides. Terms that padding would make zero may be left out: an infinite weight on
padding gives no NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_plan import (
    forward_calls,
    forward_workspace,
    input_gradient_calls,
    input_gradient_workspace,
    weight_gradient_calls,
    weight_gradient_workspace,
)
from tilewright.ops.conv_shapes import Geometry, Pairs, output_sizes, spatial
from tilewright.ops.table import OpDef, make, register
from tilewright.runtime.buffers import Buffer
from tilewright.sizes import has_value

__all__ = [
    "conv",
    "conv_input_gradient",
    "conv_transpose",
    "conv_weight_gradient",
    "same_padding",
]

Attrs = Mapping[str, Any]


# --- builders ------------------------------------------------------------------------------------


def conv(
    x: Node,
    w: Node,
    strides: int | Sequence[int] = 1,
    padding: int | Sequence[int | tuple[int, int]] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Node:
    """Convolution: x (N, C, *size), w (O, C/groups, *kernel) -> (N, O, *out).

    Args:
        x, w: of the same float dtype, with one to three spatial axes.
        strides, dilation: one number, or one per spatial axis.
        padding: zeros before and after each axis: one number for all, or per axis a number or a
            pair ``(low, high)``. A negative number leaves elements out.
        groups: channels are cut into so many groups that do not see each other; ``groups == C`` is
            a depthwise convolution.

    ``out = (size + low + high - dilation * (kernel - 1) - 1) // stride + 1`` on each axis.
    Raises :class:`ShapeError` when sizes do not fit. Formula: Dumoulin & Visin 2016, "A guide to
    convolution arithmetic for deep learning".
    """
    rank = len(w.shape) - 2
    return make(
        "conv",
        x,
        w,
        strides=_each(strides, rank),
        padding=_pairs(padding, rank),
        dilation=_each(dilation, rank),
        groups=groups,
    )


def conv_transpose(
    x: Node,
    w: Node,
    strides: int | Sequence[int] = 1,
    padding: int | Sequence[int | tuple[int, int]] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    output_padding: int | Sequence[int] = 0,
) -> Node:
    """Transposed convolution: x (N, C, *in), w (C, O/groups, *kernel) -> (N, O, *out).

    ``out = (in - 1) * stride - low - high + dilation * (kernel - 1) + 1 + output_padding`` on each
    axis; arguments as in :func:`conv`. This is the gradient of a convolution of the result with
    respect to its input, w being laid out as in PyTorch and ONNX.
    """
    rank = len(w.shape) - 2
    steps, pairs, dilations = _each(strides, rank), _pairs(padding, rank), _each(dilation, rank)
    extra = _each(output_padding, rank)
    # More output is the same map with that much less padding at the end.
    pairs = tuple((low, high - more) for (low, high), more in zip(pairs, extra))
    size = tuple(
        (n - 1) * s - low - high + d * (k - 1) + 1
        for n, s, (low, high), d, k in zip(_sizes(x, 2), steps, pairs, dilations, _sizes(w, 2))
    )
    return make(
        "conv_input_gradient",
        x,
        w,
        size=size,
        strides=steps,
        padding=pairs,
        dilation=dilations,
        groups=groups,
    )


def conv_input_gradient(
    y: Node,
    w: Node,
    size: Sequence[int],
    strides: int | Sequence[int] = 1,
    padding: int | Sequence[int | tuple[int, int]] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Node:
    """The transpose of :func:`conv` in x: (N, O, *out) and (O, C/groups, *kernel) to (N, C, *size).

    ``size`` is the spatial shape of the convolution's input; the other arguments are its own.
    """
    rank = len(w.shape) - 2
    return make(
        "conv_input_gradient",
        y,
        w,
        size=tuple(size),
        strides=_each(strides, rank),
        padding=_pairs(padding, rank),
        dilation=_each(dilation, rank),
        groups=groups,
    )


def conv_weight_gradient(
    x: Node,
    y: Node,
    kernel: Sequence[int],
    strides: int | Sequence[int] = 1,
    padding: int | Sequence[int | tuple[int, int]] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Node:
    """The transpose of :func:`conv` in w: (N, C, *size) and (N, O, *out) to (O, C/groups, *kernel).

    ``kernel`` is the spatial shape of the convolution's weight; the other arguments are its own.
    """
    rank = len(kernel)
    return make(
        "conv_weight_gradient",
        x,
        y,
        kernel=tuple(kernel),
        strides=_each(strides, rank),
        padding=_pairs(padding, rank),
        dilation=_each(dilation, rank),
        groups=groups,
    )


def same_padding(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
    upper: bool = True,
) -> Pairs:
    """The padding with which ``out = ceil(size / stride)``, an odd zero going to the end.

    ``upper=False`` puts it in front. (TensorFlow's "SAME", ONNX's SAME_UPPER and SAME_LOWER.)
    """
    pairs = []
    for n, k, s, d in zip(size, kernel, strides, dilation):
        total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        small, large = total // 2, total - total // 2
        pairs.append((small, large) if upper else (large, small))
    return tuple(pairs)


def _sizes(node: Node, first: int = 0) -> tuple[int, ...]:
    """The node's sizes from axis ``first`` on; ShapeError when one is symbolic."""
    sizes = tuple(n for n in node.shape[first:] if has_value(n))
    if len(sizes) != len(node.shape[first:]):
        raise ShapeError(f"convolution wants known sizes, got {shape_of(node.shape)}")
    return sizes


def _each(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(int(v) for v in value)


def _pairs(value: int | Sequence[int | tuple[int, int]], rank: int) -> Pairs:
    each = (value,) * rank if isinstance(value, int) else value
    return tuple((v, v) if isinstance(v, int) else (int(v[0]), int(v[1])) for v in each)


# --- shapes --------------------------------------------------------------------------------------


def _check(op: str, names: str, inputs: Sequence[Node], rank: int) -> None:
    a, b = inputs
    if a.dtype is not b.dtype or not a.dtype.is_float:
        raise ShapeError(f"{op}: {names} want one float dtype, got {a.dtype} and {b.dtype}")
    if not 1 <= rank <= 3 or len(a.shape) != rank + 2 or len(b.shape) != rank + 2:
        raise ShapeError(
            f"{op}: {names} want two axes and one to three spatial ones each, got shapes "
            f"{shape_of(a.shape)} and {shape_of(b.shape)}"
        )


def _check_channels(op: str, c: int, o: int, w: Sequence[int], groups: int) -> None:
    if groups < 1 or c % groups or o % groups or tuple(w[:2]) != (o, c // groups):
        raise ShapeError(
            f"{op}: {c} channels to {o} in {groups} groups want a weight "
            f"({o}, {c}/{groups}, ...), got {tuple(w)}"
        )


def _infer_conv(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    _check("conv", "x and w", inputs, len(inputs[1].shape) - 2)
    x, w = map(_sizes, inputs)
    _check_channels("conv", x[1], w[0], w, attrs["groups"])
    return (x[0], w[0], *_out("conv", x[2:], w[2:], attrs)), inputs[0].dtype


def _infer_input_gradient(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    op = "conv_input_gradient"
    _check(op, "y and w", inputs, len(inputs[1].shape) - 2)
    y, w = map(_sizes, inputs)
    c, size = w[1] * attrs["groups"], tuple(attrs["size"])
    _check_channels(op, c, y[1], w, attrs["groups"])
    if len(size) != len(w) - 2 or min(size) < 0:
        raise ShapeError(f"{op}: size wants {len(w) - 2} numbers of at least 0, got {size}")
    out = _out(op, size, w[2:], attrs)
    if out != y[2:]:
        raise ShapeError(f"{op}: a result of {size} wants y to be {out}, got {y[2:]}")
    return (y[0], c, *size), inputs[0].dtype


def _infer_weight_gradient(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    op = "conv_weight_gradient"
    kernel, groups = tuple(attrs["kernel"]), attrs["groups"]
    _check(op, "x and y", inputs, len(kernel))
    x, y = map(_sizes, inputs)
    w = (y[1], x[1] // max(groups, 1), *kernel)
    _check_channels(op, x[1], y[1], w, groups)
    out = _out(op, x[2:], kernel, attrs)
    if (x[0], *out) != (y[0], *y[2:]):
        raise ShapeError(f"{op}: x {x} and a kernel {kernel} want y {(x[0], y[1], *out)}, got {y}")
    return w, inputs[0].dtype


def _out(op: str, size: Sequence[int], kernel: Sequence[int], attrs: Attrs) -> tuple[int, ...]:
    return output_sizes(op, size, kernel, attrs["strides"], attrs["padding"], attrs["dilation"])


def geometry(x: Sequence[int], w: Sequence[int], out: Sequence[int], attrs: Attrs) -> Geometry:
    """The canonical form of a convolution of shapes x and w to spatial sizes ``out``."""
    groups = attrs["groups"]
    return Geometry(
        batch=x[0],
        groups=groups,
        channels=w[1],
        outputs=w[0] // groups,
        size=spatial(x[2:]),
        kernel=spatial(w[2:]),
        out=spatial(out),
        strides=spatial(attrs["strides"]),
        dilation=spatial(attrs["dilation"]),
        low=spatial([low for low, _ in attrs["padding"]], 0),
    )


def _geometry(node: Node) -> Geometry:
    """The convolution behind a node of any of the three ops."""
    a, b, result = _sizes(node.inputs[0]), _sizes(node.inputs[1]), _sizes(node)
    x, w, y = {
        "conv": (a, b, result),
        "conv_input_gradient": (result, b, a),
        "conv_weight_gradient": (a, result, b),
    }[node.op]
    return geometry(x, w, y[2:], node.attrs)


# --- references ----------------------------------------------------------------------------------


def _padded(x: np.ndarray, padding: Pairs) -> np.ndarray:
    """x in float64 with zeros around its spatial axes (less of it where padding is negative)."""
    grow = [(0, 0), (0, 0), *((max(low, 0), max(high, 0)) for low, high in padding)]
    wide = np.pad(x.astype(np.float64), grow)
    cut = [slice(None)] * 2
    cut += [
        slice(max(-low, 0), n - max(-high, 0)) for (low, high), n in zip(padding, wide.shape[2:])
    ]
    return wide[tuple(cut)]


def _tap(tap: Sequence[int], out: Sequence[int], attrs: Attrs) -> tuple[Any, ...]:
    """Where the outputs find tap ``tap`` in the padded input."""
    steps = zip(tap, out, attrs["strides"], attrs["dilation"])
    return (..., *(slice(k * d, k * d + (n - 1) * s + 1, s) for k, n, s, d in steps))


def _at(w: np.ndarray, tap: Sequence[int]) -> Any:
    """One tap of every pair of channels."""
    index: tuple[Any, ...] = (..., *tap)
    return w[index]


def _flat(a: np.ndarray) -> np.ndarray:
    return a.reshape(*a.shape[:3], prod(a.shape[3:]))


def _grouped(a: np.ndarray, groups: int) -> np.ndarray:
    return a.reshape(a.shape[0], groups, a.shape[1] // groups, *a.shape[2:])


def conv_reference(x: np.ndarray, w: np.ndarray, **attrs: Any) -> np.ndarray:
    """The sum over taps in float64, rounded once."""
    groups, padding = attrs["groups"], attrs["padding"]
    out = output_sizes(
        "conv", x.shape[2:], w.shape[2:], attrs["strides"], padding, attrs["dilation"]
    )
    wide = _padded(x, padding)
    total = np.zeros((x.shape[0], groups, w.shape[0] // groups, *out))
    split = w.reshape(groups, -1, *w.shape[1:]).astype(np.float64)
    for tap in product(*map(range, w.shape[2:])):
        seen = _grouped(wide[_tap(tap, out, attrs)], groups)
        total += np.einsum("ngc...,goc->ngo...", seen, _at(split, tap))
    return total.reshape(x.shape[0], w.shape[0], *out).astype(x.dtype)


def conv_input_gradient_reference(y: np.ndarray, w: np.ndarray, **attrs: Any) -> np.ndarray:
    """The transpose, tap by tap, in float64, rounded once."""
    groups, padding, size = attrs["groups"], attrs["padding"], attrs["size"]
    channels = w.shape[1] * groups
    # Room for what padding adds; what negative padding left out receives nothing.
    wide = np.zeros(
        (y.shape[0], channels, *(n + low + high for n, (low, high) in zip(size, padding)))
    )
    split = w.reshape(groups, -1, *w.shape[1:]).astype(np.float64)
    grad = _grouped(y.astype(np.float64), groups)
    for tap in product(*map(range, w.shape[2:])):
        part = np.einsum("ngo...,goc->ngc...", grad, _at(split, tap))
        wide[_tap(tap, y.shape[2:], attrs)] += part.reshape(y.shape[0], channels, *y.shape[2:])
    return _padded(wide, tuple((-low, -high) for low, high in padding)).astype(y.dtype)


def conv_weight_gradient_reference(x: np.ndarray, y: np.ndarray, **attrs: Any) -> np.ndarray:
    """The transpose, tap by tap, in float64, rounded once."""
    groups, kernel = attrs["groups"], attrs["kernel"]
    wide = _padded(x, attrs["padding"])
    grad = _grouped(y.astype(np.float64), groups)
    total = np.zeros((groups, y.shape[1] // groups, x.shape[1] // groups, *kernel))
    for tap in product(*map(range, kernel)):
        seen = _grouped(wide[_tap(tap, y.shape[2:], attrs)], groups)
        index: tuple[Any, ...] = (..., *tap)
        total[index] = np.einsum("ngcp,ngop->goc", _flat(seen), _flat(grad))
    return total.reshape(y.shape[1], -1, *kernel).astype(x.dtype)


# --- gradients: each op's is made of the other two ---------------------------------------------


def _common(node: Node) -> dict[str, Any]:
    return {name: node.attrs[name] for name in ("strides", "padding", "dilation", "groups")}


def _conv_gradient(node: Node, grad: Node) -> tuple[Node, Node]:
    x, w = node.inputs
    same = _common(node)
    return (
        conv_input_gradient(grad, w, _sizes(x, 2), **same),
        conv_weight_gradient(x, grad, _sizes(w, 2), **same),
    )


def _input_gradient_gradient(node: Node, grad: Node) -> tuple[Node, Node]:
    y, w = node.inputs
    same = _common(node)
    return conv(grad, w, **same), conv_weight_gradient(grad, y, _sizes(w, 2), **same)


def _weight_gradient_gradient(node: Node, grad: Node) -> tuple[Node, Node]:
    x, y = node.inputs
    same = _common(node)
    return conv_input_gradient(y, grad, _sizes(x, 2), **same), conv(x, grad, **same)


# --- kernels -------------------------------------------------------------------------------------

Buffers = Sequence[Buffer]


def _conv_calls(node: Node, inputs: Buffers, out: Buffer, memory: Buffers) -> list[KernelCall]:
    x, w = inputs
    return forward_calls(_geometry(node), x, w, out, memory)


def _input_gradient_calls(
    node: Node, inputs: Buffers, out: Buffer, memory: Buffers
) -> list[KernelCall]:
    y, w = inputs
    return input_gradient_calls(_geometry(node), y, w, out, memory)


def _weight_gradient_calls(
    node: Node, inputs: Buffers, out: Buffer, memory: Buffers
) -> list[KernelCall]:
    x, y = inputs
    return weight_gradient_calls(_geometry(node), x, y, out, memory)


register(
    OpDef(
        "conv",
        _infer_conv,
        conv_reference,
        calls=_conv_calls,
        workspace=lambda node: forward_workspace(_geometry(node), node.dtype),
        gradient=_conv_gradient,
    )
)
register(
    OpDef(
        "conv_input_gradient",
        _infer_input_gradient,
        conv_input_gradient_reference,
        calls=_input_gradient_calls,
        workspace=lambda node: input_gradient_workspace(_geometry(node), node.dtype),
        gradient=_input_gradient_gradient,
    )
)
register(
    OpDef(
        "conv_weight_gradient",
        _infer_weight_gradient,
        conv_weight_gradient_reference,
        calls=_weight_gradient_calls,
        workspace=lambda node: weight_gradient_workspace(_geometry(node), node.dtype),
        gradient=_weight_gradient_gradient,
    )
)

"""Normalisation, statistics in float32 (float64 for float64).

``rms_norm`` and ``layer_norm`` are ops over the last axis that decoders' graphs have (the compiler
fuses them with rows of other work); tensors use :func:`normalize`.

RMSNorm: Zhang & Sennrich 2019. LayerNorm: Ba et al. 2016, with the mean taken first and the
variance from the centred values (two passes), which keeps its digits when the mean is large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, f32
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.ops.arithmetic import add, literal, mul, rsqrt, scale, square, sub
from tilewright.ops.autodiff import custom_gradient
from tilewright.ops.creation import cast
from tilewright.ops.reductions import mean
from tilewright.ops.table import OpDef, RowStat, make, register
from tilewright.ops.views import normal_axes, sizes_of, stop_gradient, sum_to

__all__ = ["layer_norm", "normalize", "normalize_with_statistics", "rms_norm"]


def _infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    x, *vectors = inputs
    if not x.shape or not x.dtype.is_float:
        raise ShapeError(f"norm wants float rows, got {x.dtype}{shape_of(x.shape)}")
    for v in vectors:
        if v.shape != x.shape[-1:]:
            raise ShapeError(
                f"norm over {shape_of(x.shape)} wants vectors of {shape_of(x.shape[-1:])}, "
                f"got {shape_of(v.shape)}"
            )
    return x.shape, x.dtype


def _rms_reference(x: np.ndarray, weight: np.ndarray, *, eps: float) -> np.ndarray:
    wide = x.astype(np.float64)
    scale = 1 / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale * weight).astype(x.dtype)


def _layer_reference(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, eps: float
) -> np.ndarray:
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    scale = 1 / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return (centred * scale * weight + bias).astype(x.dtype)


def _wide(x: Node) -> Node:
    return cast(x, f32) if x.dtype.bits == 16 else x


def _mean(x: Node) -> Node:
    return mean(x, -1, keepdims=True)


def _scale(centred: Node, eps: float) -> Node:
    """``1 / sqrt(mean(centred^2) + eps)``."""
    return rsqrt(add(_mean(square(centred)), literal(eps, centred)))


def _rms_gradient(node: Node, grad: Node) -> list[Node]:
    """With ``h = x r``: dx = r (gw - h mean(gw h)), dw = sum(g h)."""
    x, weight, g = (_wide(v) for v in (*node.inputs, grad))
    r = _scale(x, node.attrs["eps"])
    h, gw = mul(x, r), mul(g, weight)
    dx = mul(r, sub(gw, mul(h, _mean(mul(gw, h)))))
    return _as_inputs(node, dx, mul(g, h))


def _layer_gradient(node: Node, grad: Node) -> list[Node]:
    """With ``h = (x - mean) r``: dx = r (gw - mean(gw) - h mean(gw h)), dw = sum(g h)."""
    x, weight, _, g = (_wide(v) for v in (*node.inputs, grad))
    centred = sub(x, _mean(x))
    r = _scale(centred, node.attrs["eps"])
    h, gw = mul(centred, r), mul(g, weight)
    dx = mul(r, sub(sub(gw, _mean(gw)), mul(h, _mean(mul(gw, h)))))
    return _as_inputs(node, dx, mul(g, h), g)


def _as_inputs(node: Node, *grads: Node) -> list[Node]:
    """Summed to the inputs' shapes, in their dtypes."""
    return [cast(sum_to(g, x.shape), x.dtype) for x, g in zip(node.inputs, grads)]


register(
    OpDef(
        "rms_norm",
        _infer,
        _rms_reference,
        gradient=_rms_gradient,
        stats=(RowStat("fma({x}, {x}, {acc})", "rsqrt(sum({acc}) / {n}.0 + {eps!r})"),),
        row_map="{x} * {s0} * {0}",
    )
)
register(
    OpDef(
        "layer_norm",
        _infer,
        _layer_reference,
        gradient=_layer_gradient,
        stats=(
            RowStat("{acc} + {x}", "sum({acc}) / {n}.0"),
            RowStat(
                "fma({x} - {s0}, {x} - {s0}, {acc})",
                "rsqrt(sum({acc}) / {n}.0 + {eps!r})",
                centred=True,
            ),
        ),
        row_map="({x} - {s0}) * {s1} * {0} + {1}",
    )
)


def rms_norm(x: Node, weight: Node, eps: float, name: str = "") -> Node:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis. x (..., n), weight (n,)."""
    return make("rms_norm", x, weight, eps=float(eps), name=name)


def layer_norm(x: Node, weight: Node, bias: Node, eps: float, name: str = "") -> Node:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last axis."""
    return make("layer_norm", x, weight, bias, eps=float(eps), name=name)


def normalize(x: Node, axes: int | Sequence[int], eps: float, centred: bool = True) -> Node:
    """``(x - mean) / sqrt(var + eps)`` over ``axes``; without ``centred`` the mean counts as 0.

    What layer, group, batch and RMS normalisation are made of, for any shape and float dtype, in
    f32 at least. The gradient needs only the result and one scale per group: with ``r = 1 /
    sqrt(var + eps)`` it is ``dx = r (g - mean(g) - y mean(g y))``.
    """
    return normalize_with_statistics(x, axes, eps, centred)[0]


def normalize_with_statistics(
    x: Node, axes: int | Sequence[int], eps: float, centred: bool = True
) -> tuple[Node, Node, Node]:
    """:func:`normalize`, and the mean and the (biased) variance it used, with ``axes`` kept.

    The statistics are f32 at least and constants to differentiation.
    """
    over = normal_axes(axes, len(x.shape))
    count = math.prod(sizes_of(x)[a] for a in over)

    def forward(x: Node) -> tuple[Node, ...]:
        wide = _wide(x)
        middle = mean(wide, over, True)
        near = sub(wide, middle) if centred else wide
        var = mean(square(near), over, True)
        r = rsqrt(add(var, literal(eps, near)))
        return cast(mul(near, r), x.dtype), r, middle, var

    def rule(inputs: Any, outputs: Any, grads: Any) -> list[Node | None]:
        y, r = _wide(outputs[0]), outputs[1]
        g, g_r = grads[:2]
        found: Node | None = None
        if g is not None:
            g = _wide(g)
            inner = sub(g, mul(y, mean(mul(g, y), over, True)))
            found = mul(r, sub(inner, mean(g, over, True)) if centred else inner)
        if g_r is not None:  # in second derivatives: dr = -r^2 mean(y dx)
            more = mul(scale(mul(g_r, square(r)), -1 / max(count, 1)), y)
            found = more if found is None else add(found, more)
        return [None if found is None else cast(found, x.dtype)]

    y, _, middle, var = custom_gradient(forward, rule)(x)
    return y, stop_gradient(middle), stop_gradient(var)

"""Normalisation over the last axis, statistics in float32 (float64 for float64).

RMSNorm: Zhang & Sennrich 2019. LayerNorm: Ba et al. 2016, with the mean taken first and the
variance from the centred values (two passes), which keeps its digits when the mean is large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, f32
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.ops.arithmetic import add, literal, mul, rsqrt, square, sub
from tilewright.ops.creation import cast
from tilewright.ops.reductions import mean
from tilewright.ops.table import OpDef, RowStat, make, register
from tilewright.ops.views import sum_to

__all__ = ["layer_norm", "rms_norm"]


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

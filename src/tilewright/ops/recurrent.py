"""Recurrent layers as ONNX has them: one direction of an RNN, LSTM or GRU.

What depends on the inputs alone, ``x W^T + b`` for all steps, is a product before the op; the op
runs the steps (:mod:`tilewright.ops.recurrent_kernels`). Activations are ONNX's, with their alpha
and beta. For training use the layers of ``tilewright.nn``: these ops have no gradient.

Formulas: ONNX "RNN", "LSTM" (Hochreiter & Schmidhuber 1997, peepholes of Gers et al. 2002), "GRU"
(Cho et al. 2014).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, f32, f64
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.ops.recurrent_kernels import gru_calls, lstm_calls, panel_width, rnn_calls
from tilewright.ops.table import OpDef, make, make_parts, register
from tilewright.ops.views import pad, permute, reshape, sizes_of

__all__ = ["ACTIVATIONS", "gru", "lstm", "rnn"]

Attrs = Mapping[str, Any]
Activation = tuple[str, float, float]
"""Name (lower case), alpha, beta."""

Parts = Sequence[tuple[Shape, DType]]

ACTIVATIONS: Final[dict[str, Callable[[np.ndarray, float, float], np.ndarray]]] = {
    "affine": lambda v, a, b: a * v + b,
    "elu": lambda v, a, b: np.where(v < 0, a * np.expm1(v), v),
    "hardsigmoid": lambda v, a, b: np.clip(a * v + b, 0, 1),
    "leakyrelu": lambda v, a, b: np.where(v < 0, a * v, v),
    "relu": lambda v, a, b: np.maximum(v, 0),
    "scaledtanh": lambda v, a, b: a * np.tanh(b * v),
    "sigmoid": lambda v, a, b: 0.5 * np.tanh(0.5 * v) + 0.5,
    "softplus": lambda v, a, b: np.logaddexp(v, 0),
    "softsign": lambda v, a, b: v / (1 + np.abs(v)),
    "tanh": lambda v, a, b: np.tanh(v),
    "thresholdedrelu": lambda v, a, b: np.where(v > a, v, 0),
}


def rnn(
    x: Node,
    r: Node,
    h: Node,
    lens: Node | None = None,
    *,
    activation: Activation = ("tanh", 0.0, 0.0),
    clip: float = 0.0,
    reverse: bool = False,
) -> tuple[Node, Node]:
    """``h = f(x + h r^T)``: x (T, B, H), r (H, H), h (B, H) -> all h (T, B, H), the last (B, H).

    Args:
        x: what comes from the inputs; f32 or f64, as everything else.
        lens: (B,) integers: a row that has ended keeps its state, its outputs are zero.
        clip: bounds what goes into the activation, if above zero (of an LSTM into those of the
            gates and the cell's input, as onnxruntime has it).
        reverse: the last element first (of each row's own ones).
    """
    attrs = _attrs(activations=(activation,), clip=clip, reverse=reverse, lens=lens)
    y, last = make_parts("rnn", x, _packed(r, 1), h, *_given(lens), **attrs)
    return y, last


def lstm(
    x: Node,
    r: Node,
    h: Node,
    c: Node,
    peep: Node | None = None,
    lens: Node | None = None,
    *,
    activations: Sequence[Activation] = (
        ("sigmoid", 0.0, 0.0),
        ("tanh", 0.0, 0.0),
        ("tanh", 0.0, 0.0),
    ),
    clip: float = 0.0,
    coupled: bool = False,
    reverse: bool = False,
) -> tuple[Node, Node, Node]:
    """x (T, B, 4H), r (4H, H), states (B, H) -> all h (T, B, H), the last h and c (B, H).

    The gates are input, output, forget and cell, in this order. peep (3, H): peepholes of input,
    output and forget gate. activations: of the gates, the cell's input, the cell's output.
    coupled: the forget gate is one minus the input gate. Others as in :func:`rnn`.
    """
    attrs = _attrs(activations=tuple(activations), clip=clip, reverse=reverse, lens=lens)
    attrs |= {"coupled": bool(coupled), "peep": peep is not None}
    y, last, cell = make_parts("lstm", x, _packed(r, 4), h, c, *_given(peep, lens), **attrs)
    return y, last, cell


def gru(
    x: Node,
    r: Node,
    h: Node,
    bias: Node | None = None,
    lens: Node | None = None,
    *,
    activations: Sequence[Activation] = (("sigmoid", 0.0, 0.0), ("tanh", 0.0, 0.0)),
    clip: float = 0.0,
    reverse: bool = False,
) -> tuple[Node, Node]:
    """x (T, B, 3H), r (3H, H), h (B, H) -> all h (T, B, H), the last one (B, H).

    The gates are update, reset and hidden. bias (H,): the reset gate is applied after the product
    ``h r^T + bias`` (``linear_before_reset``), without it before. Others as in :func:`rnn`.
    """
    attrs = _attrs(activations=tuple(activations), clip=clip, reverse=reverse, lens=lens)
    attrs["after"] = bias is not None
    y, last = make_parts("gru", x, _packed(r, 3), h, *_given(bias, lens), **attrs)
    return y, last


def _packed(r: Node, gates: int) -> Node:
    """r (gates * H, H) as panels (P, H, gates, WIDTH) of WIDTH units each, the last one filled up.

    Along the lanes lie a step's outputs, so that the state's elements are broadcast.
    """
    rows, h = sizes_of(r) if len(r.shape) == 2 else (-1, 0)
    if rows != gates * h:
        raise ShapeError(f"weights of a state want ({gates} H, H), got {shape_of(r.shape)}")
    width = panel_width(r.dtype is f64)
    panels = -(-h // width)
    apart = pad(reshape(r, (gates, h, h)), ((0, 0), (0, panels * width - h), (0, 0)))
    cut = permute(reshape(apart, (gates, panels, width, h)), (1, 3, 0, 2))
    return make("copy", cut)


def _unpacked(r: np.ndarray) -> np.ndarray:
    """Panels as (H, gates * H) in float64."""
    panels, h, gates, width = r.shape
    flat = r.astype(np.float64).transpose(1, 2, 0, 3).reshape(h, gates, panels * width)
    return flat[:, :, :h].reshape(h, gates * h)


def _given(*nodes: Node | None) -> tuple[Node, ...]:
    return tuple(n for n in nodes if n is not None)


def _attrs(
    activations: Sequence[Activation], clip: float, reverse: bool, lens: Node | None
) -> dict[str, Any]:
    for name, _, _ in activations:
        if name not in ACTIVATIONS:
            raise ShapeError(
                f"a recurrent layer's activation is one of {', '.join(ACTIVATIONS)}, got {name!r}"
            )
    return {
        "activations": tuple((n, float(a), float(b)) for n, a, b in activations),
        "clip": float(clip),
        "reverse": bool(reverse),
        "lens": lens is not None,
    }


# --- shapes --------------------------------------------------------------------------------------


def _infer(op: str, gates: int, states: int) -> Any:
    def infer(inputs: Sequence[Node], attrs: Attrs) -> Parts:
        x, r, *rest = inputs
        got = ", ".join(f"{i.dtype}{shape_of(i.shape)}" for i in inputs)
        t, b, width = x.shape if len(x.shape) == 3 else (0, 0, -1)
        h = sizes_of(r)[1]
        lanes = panel_width(x.dtype is f64)
        wanted: list[Shape] = [(-(-h // lanes), h, gates, lanes), *[(b, h)] * states]
        if attrs.get("peep"):
            wanted.append((3, h))
        if attrs.get("after"):
            wanted.append((h,))
        floats = [r, *rest[: len(wanted) - 1]]
        good = x.dtype in (f32, f64) and width == gates * h
        good = good and all(n.shape == w for n, w in zip(floats, wanted))
        good = good and all(n.dtype is x.dtype for n in floats)
        if attrs["lens"]:
            good = good and rest[-1].shape == (b,) and rest[-1].dtype.is_integer
        if not good:
            raise ShapeError(
                f"{op} wants f32 or f64: x (T, B, {gates} H), r ({gates} H, H), states (B, H) and "
                f"integer lengths (B,), got (r in panels) {got}"
            )
        return [((t, b, h), x.dtype), *[((b, h), x.dtype)] * states]

    return infer


def _work(count: int) -> Any:
    def workspace(node: Node) -> list[tuple[DType, Shape]]:
        h = node.inputs[2]
        state = (h.dtype, h.shape)
        return [(h.dtype, (2, *h.shape)), *[state] * count]

    return workspace


# --- references ----------------------------------------------------------------------------------


def _sequence(
    x: np.ndarray, states: list[np.ndarray], lens: np.ndarray | None, attrs: Attrs, step: Any
) -> tuple[np.ndarray, ...]:
    """Run ``step(x[t], states)`` over time in float64."""
    states = [s.astype(np.float64) for s in states]
    y = np.zeros((*x.shape[:2], states[0].shape[1]))
    order = range(x.shape[0])
    for t in reversed(order) if attrs["reverse"] else order:
        new = step(x[t].astype(np.float64), states)
        live = np.full((x.shape[1], 1), True) if lens is None else (lens > t)[:, None]
        y[t] = np.where(live, new[0], 0)
        states = [np.where(live, n, s) for n, s in zip(new, states)]
    return (y, *states)


def _activator(attrs: Attrs) -> Callable[[int, np.ndarray], np.ndarray]:
    clip = attrs["clip"]

    def run(i: int, v: np.ndarray) -> np.ndarray:
        name, alpha, beta = attrs["activations"][i]
        return ACTIVATIONS[name](np.clip(v, -clip, clip) if clip > 0 and i < 2 else v, alpha, beta)

    return run


def _rnn_reference(
    x: np.ndarray, r: np.ndarray, h: np.ndarray, *rest: np.ndarray, **attrs: Any
) -> tuple[np.ndarray, ...]:
    run, wide = _activator(attrs), _unpacked(r)
    lens = rest[-1] if attrs["lens"] else None
    return _sequence(x, [h], lens, attrs, lambda v, s: [run(0, v + s[0] @ wide)])


def _lstm_reference(
    x: np.ndarray, r: np.ndarray, h: np.ndarray, c: np.ndarray, *rest: np.ndarray, **attrs: Any
) -> tuple[np.ndarray, ...]:
    run, wide = _activator(attrs), _unpacked(r)
    lens = rest[-1] if attrs["lens"] else None
    peep = rest[0].astype(np.float64) if attrs["peep"] else np.zeros((3, r.shape[1]))

    def step(v: np.ndarray, s: list[np.ndarray]) -> list[np.ndarray]:
        i, o, f, g = np.split(v + s[0] @ wide, 4, axis=1)
        i = run(0, i + peep[0] * s[1])
        f = 1 - i if attrs["coupled"] else run(0, f + peep[2] * s[1])
        cell = f * s[1] + i * run(1, g)
        return [run(0, o + peep[1] * cell) * run(2, cell), cell]

    return _sequence(x, [h, c], lens, attrs, step)


def _gru_reference(
    x: np.ndarray, r: np.ndarray, h: np.ndarray, *rest: np.ndarray, **attrs: Any
) -> tuple[np.ndarray, ...]:
    run, wide = _activator(attrs), _unpacked(r)
    lens = rest[-1] if attrs["lens"] else None
    n = r.shape[1]

    def step(v: np.ndarray, s: list[np.ndarray]) -> list[np.ndarray]:
        gates = run(0, v[:, : 2 * n] + s[0] @ wide[:, : 2 * n])
        z, reset = gates[:, :n], gates[:, n:]
        if attrs["after"]:
            part = reset * (s[0] @ wide[:, 2 * n :] + rest[0])
        else:
            part = (reset * s[0]) @ wide[:, 2 * n :]
        m = run(1, v[:, 2 * n :] + part)
        return [m + z * (s[0] - m)]

    return _sequence(x, [h], lens, attrs, step)


# --- table entries -------------------------------------------------------------------------------


def _common(attrs: Attrs, *names: str) -> dict[str, Any]:
    kinds = dict(zip(names, attrs["activations"]))
    return {
        **kinds,
        "CLIP": attrs["clip"],
        "REVERSE": attrs["reverse"],
        "LENGTHS": attrs["lens"],
    }


def _rnn_calls(node: Node, inputs: Any, outs: Any, work: Any) -> Any:
    x, r, h0 = inputs[:3]
    lens = inputs[3] if node.attrs["lens"] else None
    return rnn_calls(x, r, h0, lens, outs, work[0], _common(node.attrs, "F"))


def _lstm_calls(node: Node, inputs: Any, outs: Any, work: Any) -> Any:
    x, r, h0, c0 = inputs[:4]
    attrs = node.attrs
    peep = inputs[4] if attrs["peep"] else None
    lens = inputs[-1] if attrs["lens"] else None
    common = {**_common(attrs, "F", "G", "H"), "COUPLED": attrs["coupled"], "PEEP": attrs["peep"]}
    return lstm_calls(x, r, h0, c0, peep, lens, outs, work[0], common)


def _gru_calls(node: Node, inputs: Any, outs: Any, work: Any) -> Any:
    x, r, h0 = inputs[:3]
    bias = inputs[3] if node.attrs["after"] else None
    lens = inputs[-1] if node.attrs["lens"] else None
    return gru_calls(x, r, h0, bias, lens, outs, work, _common(node.attrs, "F", "G"))


for _name, _gates, _states, _reference, _calls, _extra in (
    ("rnn", 1, 1, _rnn_reference, _rnn_calls, 0),
    ("lstm", 4, 2, _lstm_reference, _lstm_calls, 0),
    ("gru", 3, 1, _gru_reference, _gru_calls, 2),
):
    _inferred = _infer(_name, _gates, _states)
    register(
        OpDef(
            _name,
            lambda inputs, attrs, infer=_inferred: infer(inputs, attrs)[0],  # type: ignore[misc]
            _reference,
            infer_parts=_inferred,
            calls=_calls,
            workspace=_work(_extra),
        )
    )

"""RNN, LSTM and GRU.

One product makes what comes from the inputs for all steps; the steps are one op per direction
(:mod:`tilewright.ops.recurrent`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from tilewright.dtypes import f32
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.onnx.registry import op
from tilewright.ops import recurrent
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import zeros
from tilewright.tensor.manipulation import stack

Floats = tuple[float, ...] | None
Strings = tuple[str, ...] | None

_ALPHA: Final = {
    "affine": 1.0, "leakyrelu": 0.01, "thresholdedrelu": 1.0, "scaledtanh": 1.0,
    "hardsigmoid": 0.2, "elu": 1.0,
}  # fmt: skip
_BETA: Final = {"affine": 0.0, "scaledtanh": 1.0, "hardsigmoid": 0.5}
_DIRECTIONS: Final = {"forward": 1, "foward": 1, "reverse": 1, "bidirectional": 2}


def _activations(
    names: Strings, alphas: Floats, betas: Floats, default: Sequence[str], directions: int
) -> list[tuple[recurrent.Activation, ...]]:
    """For each direction its activations; alphas and betas go to those that have one, in order."""
    every = list(names) if names else list(default) * directions
    if len(every) != len(default) * directions:
        raise ShapeError(f"{len(default) * directions} activations are wanted, got {every}")
    first, second = iter(alphas or ()), iter(betas or ())
    found = []
    for name in (n.lower() for n in every):
        if name not in recurrent.ACTIVATIONS:
            raise UnsupportedError(f"there is no activation {name!r}")
        alpha = next(first, _ALPHA[name]) if name in _ALPHA else 0.0
        beta = next(second, _BETA[name]) if name in _BETA else 0.0
        found.append((name, float(alpha), float(beta)))
    per = len(default)
    return [tuple(found[i * per : (i + 1) * per]) for i in range(directions)]


Layer = Callable[[int, Tensor, Tensor, tuple[Tensor, ...], bool], tuple[Any, ...]]


def _run(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    states: Sequence[Tensor | None],
    direction: str,
    hidden_size: int | None,
    layout: int,
    biases: Callable[[int], Tensor | None],
    layer: Layer,
) -> Any:
    """All directions: y (T, D, B, H) and the states at the end (D, B, H), or batch first."""
    if direction not in _DIRECTIONS:
        raise UnsupportedError(f"direction is forward, reverse or bidirectional, got {direction!r}")
    count = _DIRECTIONS[direction]
    if w.ndim != 3 or r.ndim != 3 or w.shape[0] != count or r.shape[0] != count:
        raise ShapeError(f"{direction}: weights of {count} directions, got {w.shape}, {r.shape}")
    if hidden_size is not None and hidden_size != r.shape[2]:
        raise ShapeError(f"hidden_size is {hidden_size}, the weights say {r.shape[2]}")
    kind = x.dtype
    wide = kind if kind.bits >= 32 else f32
    if layout:
        x = x.permute(1, 0, 2)
        states = [None if s is None else s.permute(1, 0, 2) for s in states]
    steps, batch = x.shape[:2]
    rows = x.astype(wide, copy=False).reshape((steps * batch, x.shape[2]))
    found = []
    for d in range(count):
        inputs = rows @ w[d].astype(wide, copy=False).mT
        bias = biases(d)
        if bias is not None:
            inputs = inputs + bias.astype(wide, copy=False)
        inputs = inputs.reshape((steps, batch, w.shape[1]))
        start = tuple(
            zeros((batch, r.shape[2]), dtype=wide) if s is None else s[d].astype(wide, copy=False)
            for s in states
        )
        backwards = direction == "reverse" or d == 1
        found.append(layer(d, inputs, r[d].astype(wide, copy=False), start, backwards))
    y, *last = [stack([Tensor(n) for n in part], axis=0) for part in zip(*found)]
    y = y.permute(2, 1, 0, 3) if layout else y.permute(1, 0, 2, 3)
    if layout:
        last = [s.permute(1, 0, 2) for s in last]
    return tuple(v.astype(kind, copy=False) for v in (y, *last))


def _both(b: Tensor | None, width: int) -> Callable[[int], Tensor | None]:
    """The sum of the input's and the state's bias (D, 2 * width)."""
    return lambda d: None if b is None else b[d, :width] + b[d, width:]


def _node(x: Tensor | None) -> Any:
    return None if x is None else x.node


@op("RNN", since=1)
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Floats = None,
    activation_beta: Floats = None,
    activations: Strings = None,
    clip: float = 0.0,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    output_sequence: int = 1,
) -> Any:
    """``h = f(W x + R h + b)`` over a sequence x (T, B, features)."""
    kinds = _activations(
        activations, activation_alpha, activation_beta, ("Tanh",), _DIRECTIONS.get(direction, 1)
    )

    def layer(d: int, inputs: Tensor, rec: Tensor, start: Any, backwards: bool) -> Any:
        return recurrent.rnn(
            inputs.node,
            rec.node,
            start[0].node,
            _node(lens),
            activation=kinds[d][0],
            clip=clip,
            reverse=backwards,
        )

    biases = _both(b, r.shape[-1])
    return _run(x, w, r, [initial_h], direction, hidden_size, layout, biases, layer)


@op("LSTM", since=1)
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    activation_alpha: Floats = None,
    activation_beta: Floats = None,
    activations: Strings = None,
    clip: float = 0.0,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
    output_sequence: int = 1,
) -> Any:
    """Long short-term memory: gates input, output, forget, cell; p are peepholes (D, 3H)."""
    names = ("Sigmoid", "Tanh", "Tanh")
    kinds = _activations(
        activations, activation_alpha, activation_beta, names, _DIRECTIONS.get(direction, 1)
    )
    n = r.shape[-1]

    def layer(d: int, inputs: Tensor, rec: Tensor, start: Any, backwards: bool) -> Any:
        return recurrent.lstm(
            inputs.node,
            rec.node,
            start[0].node,
            start[1].node,
            None if p is None else p[d].astype(rec.dtype, copy=False).reshape((3, n)).node,
            _node(lens),
            activations=kinds[d],
            clip=clip,
            coupled=bool(input_forget),
            reverse=backwards,
        )

    states = [initial_h, initial_c]
    return _run(x, w, r, states, direction, hidden_size, layout, _both(b, 4 * n), layer)


@op("GRU", since=1)
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Floats = None,
    activation_beta: Floats = None,
    activations: Strings = None,
    clip: float = 0.0,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
    output_sequence: int = 1,
) -> Any:
    """Gated recurrent units: gates update, reset, hidden."""
    kinds = _activations(
        activations, activation_alpha, activation_beta, ("Sigmoid", "Tanh"),
        _DIRECTIONS.get(direction, 1),
    )  # fmt: skip
    n = r.shape[-1]

    def biases(d: int) -> Tensor | None:
        """With the reset gate after the product the hidden gate's own bias stays apart."""
        if b is None or not linear_before_reset:
            return _both(b, 3 * n)(d)
        of_state = b[d, 3 * n : 5 * n]
        return b[d, : 3 * n] + _padded(of_state, n)

    def layer(d: int, inputs: Tensor, rec: Tensor, start: Any, backwards: bool) -> Any:
        after = None
        if linear_before_reset:
            after = zeros((n,), dtype=rec.dtype) if b is None else b[d, 5 * n :]
            after = after.astype(rec.dtype, copy=False)
        return recurrent.gru(
            inputs.node,
            rec.node,
            start[0].node,
            _node(after),
            _node(lens),
            activations=kinds[d],
            clip=clip,
            reverse=backwards,
        )

    return _run(x, w, r, [initial_h], direction, hidden_size, layout, biases, layer)


def _padded(x: Tensor, n: int) -> Tensor:
    from tilewright.tensor.manipulation import pad

    return pad(x, [(0, n)])

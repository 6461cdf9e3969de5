"""Recurrent layers with PyTorch's parameters: ``weight_ih_l0``, ``weight_hh_l0``, ...

The products with the inputs are made for all steps at once; what is left for each step is one
product with the state. So it is backwards: gates are computed again for all steps at once (only the
states are kept), the weights' gradients are one product each.
"""

from __future__ import annotations

from typing import Any

from tilewright.dtypes import bf16
from tilewright.errors import ShapeError
from tilewright.nn import functional as F
from tilewright.nn.layers import uniform_parameter
from tilewright.nn.module import Module
from tilewright.nn.precision import autocast
from tilewright.tensor.autograd import custom_gradient
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import zeros
from tilewright.tensor.manipulation import concat, flip, split, stack
from tilewright.tensor.modes import mode

__all__ = ["GRU", "LSTM"]

State = tuple[Tensor, ...]


class _Recurrent(Module):
    """What recurrent layers share.

    Args:
        input_size, hidden_size: features of a step's input, and of the state.
        num_layers: layers, each reading the one before.
        bias: whether there are biases.
        batch_first: x is (B, T, features) and not (T, B, features).
        dropout: on the output of every layer but the last, while training.
        bidirectional: a second set of weights (``_reverse``) goes from the end; outputs are joined.

    Weights are uniform within ``1 / sqrt(hidden_size)``.
    """

    gates = 0
    states = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        self.hidden_size, self.num_layers, self.batch_first = hidden_size, num_layers, batch_first
        self.dropout, self.bidirectional = dropout, bidirectional
        rows = self.gates * hidden_size
        ends = ("", "_reverse") if bidirectional else ("",)
        self.bias = bias
        for layer in range(num_layers):
            features = input_size if layer == 0 else hidden_size * len(ends)
            for end in ends:
                shapes: dict[str, tuple[int, ...]] = {
                    "weight_ih": (rows, features),
                    "weight_hh": (rows, hidden_size),
                }
                if bias:
                    shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
                for name, shape in shapes.items():
                    setattr(self, f"{name}_l{layer}{end}", uniform_parameter(shape, hidden_size))

    def forward(self, x: Tensor, state: Any = None) -> Any:
        """x (T, B, features) -> (outputs (T, B, hidden), state at the end).

        A state is (layers, B, hidden) (for LSTM a pair of them), zeros by default; layers and
        directions count together, as in PyTorch.
        """
        if x.ndim != 3:
            raise ShapeError(f"{type(self).__name__} wants x (T, B, features), got {x.shape}")
        if self.batch_first:
            x = x.permute(1, 0, 2)
        batch = x.shape[1]
        ends = ("", "_reverse") if self.bidirectional else ("",)
        count = self.num_layers * len(ends)
        if state is None:
            starts: State = (zeros((count, batch, self.hidden_size), dtype=x.dtype),) * self.states
        else:
            starts = (state,) if isinstance(state, Tensor) else tuple(state)
        last: list[State] = []
        for layer in range(self.num_layers):
            outputs = []
            for end in ends:
                start = tuple(s[len(last)] for s in starts)
                found, final = self._run(x, f"_l{layer}{end}", start, end == "_reverse")
                outputs.append(found)
                last.append(final)
            x = outputs[0] if len(outputs) == 1 else concat(outputs, axis=-1)
            if layer + 1 < self.num_layers:
                x = F.dropout(x, self.dropout, self.training)
        final_states = tuple(stack(list(s), axis=0) for s in zip(*last))
        if self.batch_first:
            x = x.permute(1, 0, 2)
        return x, final_states if self.states > 1 else final_states[0]

    def _run(self, x: Tensor, suffix: str, state: State, reverse: bool) -> tuple[Tensor, State]:
        bias_ih = getattr(self, f"bias_ih{suffix}") if self.bias else None
        weight_hh = getattr(self, f"weight_hh{suffix}")
        inputs = F.linear(x, getattr(self, f"weight_ih{suffix}"), bias_ih)
        if reverse:
            inputs = flip(inputs, axis=0)
        if self.bias:
            bias_hh = getattr(self, f"bias_hh{suffix}")
        else:
            bias_hh = zeros((weight_hh.shape[0],), dtype=weight_hh.dtype)
        precision = mode.autocast

        def backward(inputs: State, outputs: State, grads: Any) -> list[Tensor]:
            with autocast(precision or bf16, enabled=precision is not None):
                return self._backward(inputs, outputs, grads)

        run = custom_gradient(self._forward, backward)
        found: tuple[Tensor, ...] = run(inputs, weight_hh, bias_hh, *state)
        last = tuple(states[-1] for states in found)
        return (flip(found[0], axis=0) if reverse else found[0]), last

    def _forward(
        self, inputs: Tensor, weight: Tensor, bias: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        """The states after each step, (T, B, hidden) each."""
        found: list[State] = []
        for t in range(inputs.shape[0]):
            state = self._step(inputs[t], F.linear(state[0], weight, bias), state)
            found.append(state)
        return tuple(stack(list(states), axis=0) for states in zip(*found))

    def _step(self, from_input: Tensor, from_state: Tensor, state: State) -> State:
        raise NotImplementedError

    def _backward(self, inputs: State, outputs: State, grads: Any) -> list[Tensor]:
        """Backpropagation through time: gates of all steps at once, then a chain of products."""
        raise NotImplementedError


def _before(start: Tensor, states: Tensor) -> Tensor:
    """The state before each step."""
    return concat([start.unsqueeze(0), states[:-1]], axis=0)


def _total(grad: Tensor | None, t: int, carried: Tensor) -> Tensor:
    return carried if grad is None else carried + grad[t]


def _parameters(da: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias, from those of all steps' gates (T, B, rows)."""
    rows = da.reshape((-1, da.shape[-1]))
    weight = F.matmul(rows.mT, before.reshape((-1, before.shape[-1])).astype(rows.dtype))
    return weight, rows.sum(axis=0)


class GRU(_Recurrent):
    """Gated recurrent units (Cho et al. 2014), the reset gate after the product, as in cuDNN."""

    gates = 3

    def _step(self, from_input: Tensor, from_state: Tensor, state: State) -> State:
        (h,) = state
        r_x, z_x, n_x = split(from_input, self.hidden_size, axis=-1)
        r_h, z_h, n_h = split(from_state, self.hidden_size, axis=-1)
        r, z = F.sigmoid(r_x + r_h), F.sigmoid(z_x + z_h)
        n = F.tanh(n_x + r * n_h)
        return (n + z * (h - n),)

    def _backward(self, inputs: State, outputs: State, grads: Any) -> list[Tensor]:
        """A gate's gradient is the state's times a factor that is known for all steps at once."""
        x, weight, bias, start = inputs
        before = _before(start, outputs[0])
        r_x, z_x, n_x = split(x, self.hidden_size, axis=-1)
        r_h, z_h, n_h = split(F.linear(before, weight, bias), self.hidden_size, axis=-1)
        r, z = F.sigmoid(r_x + r_h), F.sigmoid(z_x + z_h)
        n = F.tanh(n_x + r * n_h)
        of_n = (1.0 - z) * (1.0 - n * n)
        of_z = (before - n) * z * (1.0 - z)
        of_r = of_n * n_h * r * (1.0 - r)
        of_state = stack([of_r, of_z, of_n * r], axis=2)
        carried = start * 0.0
        found: list[Tensor] = []
        for t in reversed(range(x.shape[0])):
            dh = _total(grads[0], t, carried)
            found.append(dh)
            da = (dh.unsqueeze(1) * of_state[t]).reshape((*dh.shape[:-1], -1))
            carried = dh * z[t] + F.matmul(da, weight)
        every = stack(found[::-1], axis=0)
        da = (every.unsqueeze(2) * of_state).reshape(x.shape)
        dx = (every.unsqueeze(2) * stack([of_r, of_z, of_n], axis=2)).reshape(x.shape)
        return _as_inputs(inputs, dx, *_parameters(da, before), carried)


class LSTM(_Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997), gates input, forget, cell, output."""

    gates = 4
    states = 2

    def _step(self, from_input: Tensor, from_state: Tensor, state: State) -> State:
        _, c = state
        i, f, g, o = split(from_input + from_state, self.hidden_size, axis=-1)
        c = F.sigmoid(f) * c + F.sigmoid(i) * F.tanh(g)
        return F.sigmoid(o) * F.tanh(c), c

    def _backward(self, inputs: State, outputs: State, grads: Any) -> list[Tensor]:
        """As in GRU; input, forget and cell gates follow the cell, the output gate the state."""
        x, weight, bias, start, start_c = inputs
        before, before_c = _before(start, outputs[0]), _before(start_c, outputs[1])
        gates = x + F.linear(before, weight, bias)
        i, f, g, o = split(gates, self.hidden_size, axis=-1)
        i, f, g, o = F.sigmoid(i), F.sigmoid(f), F.tanh(g), F.sigmoid(o)
        squashed = F.tanh(outputs[1])
        to_cell = o * (1.0 - squashed * squashed)
        of_cell = stack(
            [g * i * (1.0 - i), before_c * f * (1.0 - f), i * (1.0 - g * g)],
            axis=2,
        )
        of_o = squashed * o * (1.0 - o)
        dh_next, dc_next = start * 0.0, start_c * 0.0
        found: list[Tensor] = []
        for t in reversed(range(x.shape[0])):
            dh = _total(grads[0], t, dh_next)
            dc = _total(grads[1], t, dc_next + dh * to_cell[t])
            three = dc.unsqueeze(1) * of_cell[t]
            da = concat([three, (dh * of_o[t]).unsqueeze(1)], axis=1)
            da = da.reshape((dh.shape[0], -1))
            found.append(da)
            dh_next, dc_next = F.matmul(da, weight), dc * f[t]
        every = stack(found[::-1], axis=0)
        return _as_inputs(inputs, every, *_parameters(every, before), dh_next, dc_next)


def _as_inputs(inputs: State, *grads: Tensor) -> list[Tensor]:
    return [g.astype(x.dtype, copy=False) for g, x in zip(grads, inputs, strict=True)]

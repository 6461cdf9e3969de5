"""Recurrent layers with PyTorch's parameters: ``weight_ih_l0``, ``weight_hh_l0``, ...

The products with the inputs are made for all steps at once; what is left for each step is one
product with the state.
"""

from __future__ import annotations

from typing import Any

from tilewright.errors import ShapeError
from tilewright.nn import functional as F
from tilewright.nn.layers import uniform_parameter
from tilewright.nn.module import Module
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import zeros
from tilewright.tensor.manipulation import concat, split, stack

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
        bias_hh = getattr(self, f"bias_hh{suffix}") if self.bias else None
        weight_hh = getattr(self, f"weight_hh{suffix}")
        inputs = F.linear(x, getattr(self, f"weight_ih{suffix}"), bias_ih)
        found: list[Tensor] = []
        order = range(x.shape[0])
        for t in reversed(order) if reverse else order:
            state = self._step(inputs[t], F.linear(state[0], weight_hh, bias_hh), state)
            found.append(state[0])
        if reverse:
            found.reverse()
        return stack(found, axis=0), state

    def _step(self, from_input: Tensor, from_state: Tensor, state: State) -> State:
        raise NotImplementedError


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


class LSTM(_Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997), gates input, forget, cell, output."""

    gates = 4
    states = 2

    def _step(self, from_input: Tensor, from_state: Tensor, state: State) -> State:
        _, c = state
        i, f, g, o = split(from_input + from_state, self.hidden_size, axis=-1)
        c = F.sigmoid(f) * c + F.sigmoid(i) * F.tanh(g)
        return F.sigmoid(o) * F.tanh(c), c

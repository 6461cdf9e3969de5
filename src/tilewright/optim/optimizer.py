"""Optimisers: rules that change parameters by their gradients.

Every number that changes from step to step (the learning rate, the count of steps) is a tensor, so
that a compiled step stays one program. The state is float32 whatever the parameters are; with
``master=True`` parameters of 16 bits keep a float32 copy that the rule works on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tilewright.dtypes import DType, f32
from tilewright.errors import FormatError, ShapeError
from tilewright.tensor.core import Tensor, realize
from tilewright.tensor.creation import asarray, zeros
from tilewright.tensor.data_types import astype
from tilewright.tensor.modes import mode, no_grad

__all__ = ["Optimizer"]

Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]]


class Optimizer:
    """The base of all optimisers.

    Args:
        params: tensors, or (name, tensor) pairs (``module.named_parameters()``), whose names then
            name the state in :meth:`state_dict`.
        lr: learning rate; a tensor is shared and may be assigned from outside.
        weight_decay: decoupled (Loshchilov & Hutter 2019): ``p -= lr * weight_decay * p``.
        decay_vectors: whether parameters of fewer than two axes decay as well.
    """

    slots: tuple[str, ...] = ()
    """Names of the state tensors per parameter."""

    def __init__(
        self,
        params: Params,
        lr: float | Tensor,
        weight_decay: float = 0.0,
        decay_vectors: bool = True,
    ) -> None:
        named = [p if isinstance(p, tuple) else (str(i), p) for i, p in enumerate(params)]
        self.names = [name for name, _ in named]
        self.params: list[Tensor] = [p for _, p in named]
        if not self.params:
            raise ShapeError(f"{type(self).__name__} got no parameters")
        for name, p in named:
            if not p.requires_grad:
                raise ShapeError(f"parameter {name} does not require gradients")
        self._lr = lr if isinstance(lr, Tensor) else asarray(np.float32(lr))
        self.weight_decay = weight_decay
        self.decay_vectors = decay_vectors
        self.steps = asarray(np.float32(0))
        self.state = [{slot: self.initial(slot, p) for slot in self.slots} for p in self.params]

    def initial(self, slot: str, p: Tensor) -> Tensor:
        """What a state tensor starts as."""
        return zeros(p.shape, dtype=self.state_dtype(p))

    @staticmethod
    def state_dtype(p: Tensor) -> DType:
        """float32 for 16-bit parameters, else the parameter's own."""
        return f32 if p.dtype.bits < 32 else p.dtype

    @property
    def lr(self) -> Tensor:
        """The learning rate, a 0-d tensor; assigning a number changes its value."""
        return self._lr

    @lr.setter
    def lr(self, value: float | Tensor) -> None:
        self._lr.assign(value if isinstance(value, Tensor) else asarray(np.float32(value)))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.params:
            p.grad = None

    def step(self) -> None:
        """Change every parameter that has a gradient; computes all in one program."""
        with no_grad():
            self.steps.assign(self.steps + 1.0)
            changed = [self.steps]
            for p, state in zip(self.params, self.state):
                if p.grad is None:
                    continue
                x, g = self._wide(p), self._wide(p.grad)
                new = self.rule(x, g, state)
                if self.weight_decay and (self.decay_vectors or p.ndim > 1):
                    new = new - x * (self._lr * self.weight_decay)
                p.assign(new)
                changed += [p, *state.values()]
            if mode.trace is None:
                realize(*changed)

    def rule(self, x: Tensor, g: Tensor, state: dict[str, Tensor]) -> Tensor:
        """The new value of a parameter ``x`` with gradient ``g``; assigns its ``state``."""
        raise NotImplementedError

    @staticmethod
    def _wide(x: Tensor) -> Tensor:
        x = x.detach()
        return astype(x, f32) if x.dtype.bits < 32 else x

    def state_dict(self) -> dict[str, Tensor]:
        """Every state tensor by ``slot.parameter``, the count of steps and the learning rate."""
        named = {
            f"{slot}.{name}": tensor
            for name, state in zip(self.names, self.state)
            for slot, tensor in state.items()
        }
        return {"steps": self.steps, "lr": self._lr, **named}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Assign what :meth:`state_dict` gave; names and shapes have to fit."""
        own = self.state_dict()
        if set(own) != set(state):
            odd = sorted(set(own) ^ set(state))
            raise FormatError(f"optimiser state does not fit; odd names: {', '.join(odd[:8])}")
        for name, tensor in own.items():
            if tuple(state[name].shape) != tensor.shape:
                raise ShapeError(
                    f"optimiser state {name}: shape {tuple(state[name].shape)}, wanted "
                    f"{tensor.shape}"
                )
        for name, tensor in own.items():
            value = state[name]
            tensor.assign(value if isinstance(value, Tensor) else asarray(value))

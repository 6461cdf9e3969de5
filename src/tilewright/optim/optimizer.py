"""Optimisers: rules that change parameters by their gradients.

Every number that changes from step to step (the learning rate, the count of steps) is a tensor, so
that a compiled step stays one program. The state is float32 whatever the parameters are; with
``master=True`` parameters of 16 bits keep a float32 copy that the rule works on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.dtypes import DType, f32
from tilewright.errors import FormatError, ShapeError, TraceError, UnsupportedError
from tilewright.runtime.interrupts import Held
from tilewright.tensor.core import Tensor, own, realize
from tilewright.tensor.creation import asarray, zeros
from tilewright.tensor.data_types import astype
from tilewright.tensor.elementwise import where
from tilewright.tensor.modes import mode, no_grad
from tilewright.tensor.sparse import SparseRows, sparse_rows

__all__ = ["Group", "Optimizer", "Params", "State"]

Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Mapping[str, Any]]
State = dict[str, Tensor]


@dataclass
class Group:
    """Parameters that are treated alike.

    Attributes:
        lr_scale: factor on the optimiser's learning rate.
        weight_decay: see :class:`Optimizer`.
        options: other settings of the rule, overriding the optimiser's.
    """

    params: list[Tensor]
    names: list[str]
    lr_scale: float = 1.0
    weight_decay: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Step:
    """What a rule is told about a step.

    Attributes:
        lr: the group's learning rate, 0-d.
        count: the number of this step, from 1, 0-d f32.
        shared: what a rule computes once per step (per group) and not per parameter.
    """

    lr: Tensor
    count: Tensor
    group: Group
    shared: dict[Any, Any] = field(default_factory=dict)


class Optimizer:
    """The base of all optimisers.

    Args:
        params: tensors, or (name, tensor) pairs (``module.named_parameters()``), whose names then
            name the state in :meth:`state_dict`; or groups of them: dicts with ``params`` and any
            of ``lr``, ``lr_scale`` (a factor on the optimiser's ``lr``), ``weight_decay`` and the
            rule's own settings.
        lr: learning rate; a tensor is shared and may be assigned from outside. A group's own
            ``lr`` is kept in proportion to it when it is changed.
        weight_decay: decoupled (Loshchilov & Hutter 2019): ``p -= lr * weight_decay * p``; for
            rules that say so it is added to the gradient instead.
        decay_vectors: whether parameters of fewer than two axes decay as well.
        master: keep a float32 copy of parameters of 16 bits, which the rule changes.

    Attributes:
        groups: the parameters with their settings.
        steps: how many steps were made, 0-d f32.
    """

    slots: tuple[str, ...] = ()
    """Names of the state tensors per parameter."""
    decoupled = True
    """Whether weight decay is no part of the gradient."""
    takes_sparse = False
    """Whether :meth:`sparse_rule` exists."""

    def __init__(
        self,
        params: Params,
        lr: float | Tensor,
        weight_decay: float = 0.0,
        decay_vectors: bool = True,
        master: bool = False,
    ) -> None:
        if hasattr(params, "named_parameters"):
            raise ShapeError(
                f"{type(self).__name__} wants parameters, got {type(params).__name__}: pass its "
                "named_parameters()"
            )
        self.groups = _groups(list(params), lr, weight_decay)
        if not self.params:
            raise ShapeError(f"{type(self).__name__} got no parameters")
        seen: set[int] = set()
        for name, p in zip(self.names, self.params):
            if not p.requires_grad:
                raise ShapeError(f"parameter {name} does not require gradients")
            if id(p) in seen:
                raise ShapeError(f"parameter {name} is there twice")
            seen.add(id(p))
        self._lr = lr if isinstance(lr, Tensor) else asarray(np.float32(lr))
        self.weight_decay = weight_decay
        self.decay_vectors = decay_vectors
        self.steps = asarray(np.float32(0))
        self.state: list[State] = []
        if mode.trace is None:
            realize(*self.params)
        for p in self.params:
            state = {slot: self.initial(slot, p) for slot in self.slots_of(p)}
            if master and p.dtype.bits < 32:
                state["master"] = astype(p.detach(), f32)
            self.state.append(state)
        if mode.trace is None:
            realize(*[t for state in self.state for t in state.values()])

    @property
    def params(self) -> list[Tensor]:
        """Every parameter, group by group."""
        return [p for group in self.groups for p in group.params]

    @property
    def names(self) -> list[str]:
        """The parameters' names."""
        return [name for group in self.groups for name in group.names]

    def slots_of(self, p: Tensor) -> tuple[str, ...]:
        """Names of the state tensors that parameter ``p`` has."""
        return self.slots

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
        if mode.trace is not None and not isinstance(value, Tensor):
            raise TraceError(
                "lr is set to a number while a step is being traced, where it would stay the same "
                "in every step: set it outside of the compiled function, or to a tensor"
            )
        self._lr.assign(value if isinstance(value, Tensor) else asarray(np.float32(value)))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.params:
            p.grad = None

    def step(self, skip: Tensor | None = None) -> None:
        """Change every parameter that has a gradient; computes all in one program, or raises and
        leaves everything as it was.

        ``skip``: a 0-d bool tensor; where it is true nothing changes, the count of steps neither
        (:class:`tilewright.optim.LossScaler` gives it).
        """
        state = [self.steps, *self.params, *(t for own in self.state for t in own.values())]
        before = [t.node for t in state]
        changed = self._stepped(skip)
        if mode.trace is not None:
            return
        try:
            realize(*changed)
        except BaseException:  # an id out of range, an interrupt: the step was not made
            with Held():
                for t, node in zip(state, before):
                    own(node, t)
                    t.node = node
            raise

    def _stepped(self, skip: Tensor | None) -> list[Tensor]:
        """Assign every new value; returns what was assigned. An interrupt waits meanwhile."""
        with Held(), no_grad():
            old_count = +self.steps
            count = old_count + 1.0
            self.steps.assign(_kept(skip, old_count, count))
            changed = [self.steps]
            states = iter(self.state)
            for group in self.groups:
                lr = self._lr if group.lr_scale == 1 else self._lr * group.lr_scale
                step = Step(lr, count, group)
                for p in group.params:
                    state = next(states)
                    if p.grad is not None:
                        self._change(p, state, step, skip)
                        changed += [p, *state.values()]
            return changed

    def _change(self, p: Tensor, state: State, step: Step, skip: Tensor | None) -> None:
        assert p.grad is not None
        rows = sparse_rows(p.grad.node)
        master = state.get("master")
        x = self._wide(p) if master is None else +master
        before = {} if skip is None else {slot: +t for slot, t in state.items()}
        if rows is not None and self.takes_sparse and master is None and p.dtype.bits >= 32:
            new = self.sparse_rule(x, rows, state, step)
        else:
            g = self._wide(p.grad)
            decay = step.group.weight_decay if self.decay_vectors or p.ndim > 1 else 0.0
            if decay and not self.decoupled:
                g = g + x * decay
            change = self.rule(x, g, state, step)
            new = (x * (1.0 - step.lr * decay) if decay and self.decoupled else x) - change
        if skip is not None:
            new = where(skip, x, new)
            for slot, old in before.items():
                state[slot].assign(where(skip, old, state[slot]))
        if master is not None:
            master.assign(new)
        p.assign(new)

    def rule(self, x: Tensor, g: Tensor, state: State, step: Step) -> Tensor:
        """What is to be subtracted from a parameter ``x`` with gradient ``g``; assigns ``state``.

        Decoupled weight decay comes on top of it.
        """
        raise NotImplementedError

    def sparse_rule(self, x: Tensor, rows: SparseRows, state: State, step: Step) -> Tensor:
        """The new value of a table of which some rows have a gradient; assigns ``state``."""
        raise UnsupportedError(f"{type(self).__name__} has no rule for sparse gradients")

    def option(self, step: Step, name: str) -> Any:
        """A setting of the rule: the group's, or the optimiser's own attribute."""
        return step.group.options.get(name, getattr(self, name))

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


def _kept(skip: Tensor | None, old: Tensor, new: Tensor) -> Tensor:
    return new if skip is None else where(skip, old, new)


def _groups(params: list[Any], lr: float | Tensor, weight_decay: float) -> list[Group]:
    if not params or not isinstance(params[0], Mapping):
        params = [{"params": params}]
    groups = []
    start = 0
    for given in params:
        if not isinstance(given, Mapping) or "params" not in given:
            raise ShapeError('parameter groups are dicts with "params", or there are none')
        settings = dict(given)
        listed = list(settings.pop("params"))
        named = [p if isinstance(p, tuple) else (str(start + i), p) for i, p in enumerate(listed)]
        start += len(named)
        scale = float(settings.pop("lr_scale", 1.0))
        own = settings.pop("lr", None)
        if own is not None:
            if isinstance(lr, Tensor) or not lr:
                raise ShapeError(
                    "a group's lr is relative to the optimiser's: that has to be a number other "
                    "than 0; or give the group lr_scale"
                )
            scale *= own / lr
        decay = float(settings.pop("weight_decay", weight_decay))
        groups.append(Group([p for _, p in named], [n for n, _ in named], scale, decay, settings))
    return groups

"""Exponential moving averages of weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tilewright.errors import FormatError
from tilewright.runtime.interrupts import Held
from tilewright.tensor.core import Tensor, realize
from tilewright.tensor.creation import asarray
from tilewright.tensor.modes import mode, no_grad

__all__ = ["EMA"]


class EMA:
    """``average = decay * average + (1 - decay) * parameter`` after each step.

    Args:
        params: (name, tensor) pairs, ``module.named_parameters()``.
        decay: towards 1 the average is over more steps, about ``1 / (1 - decay)``.

    Averages are f32 at least.
    """

    def __init__(self, params: Iterable[tuple[str, Tensor]], decay: float = 0.999) -> None:
        self.decay = decay
        self.params = dict(params)
        self.averages = {
            name: p.detach().astype("f32" if p.dtype.bits < 32 else p.dtype)
            for name, p in self.params.items()
        }
        realize(*self.params.values(), *self.averages.values())

    def update(self) -> None:
        """Move the averages towards the parameters; may be part of a compiled step."""
        with Held(), no_grad():
            for name, p in self.params.items():
                average = self.averages[name]
                average.assign(average + (p.detach().astype(average.dtype) - average) * self._rate)
        if mode.trace is None:
            realize(*self.averages.values())

    @property
    def _rate(self) -> float:
        return 1 - self.decay

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters have the averaged values (to validate, to save)."""
        kept = {name: p.detach() for name, p in self.params.items()}
        realize(*kept.values())
        with Held(open=True) as held:
            try:
                held.open = False
                for name, p in self.params.items():
                    p.assign(self.averages[name])
                held.open = True
                yield
            finally:
                held.open = False
                for name, p in self.params.items():
                    p.assign(kept[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the parameters' names."""
        return dict(self.averages)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Assign what :meth:`state_dict` gave."""
        if set(state) != set(self.averages):
            odd = sorted(set(state) ^ set(self.averages))
            raise FormatError(f"averages do not fit; odd names: {', '.join(odd[:8])}")
        for name, average in self.averages.items():
            value = state[name]
            average.assign(value if isinstance(value, Tensor) else asarray(value))

"""Learning-rate schedules: functions of the step (from 0) that give a float.

``optimizer.lr = schedule(step)`` before a step; the learning rate is a tensor, so a compiled step
stays the program it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "inverse_sqrt",
    "linear",
    "one_cycle",
    "warmup",
]

Schedule = Callable[[int], float]


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {least} at least, got {value}")


def constant(lr: float) -> Schedule:
    """``lr`` always."""
    return lambda step: lr


def warmup(schedule: Schedule, steps: int) -> Schedule:
    """From ``schedule(0) / steps`` up to ``schedule(0)`` in ``steps`` steps, then ``schedule``.

    ``schedule`` starts from its step 0 when the warm-up is over.
    """
    _at_least("warmup: steps", steps, 0)

    def at(step: int) -> float:
        if step < steps:
            return schedule(0) * (step + 1) / steps
        return schedule(step - steps)

    return at


def linear(lr: float, steps: int, end: float = 0.0) -> Schedule:
    """A straight line from ``lr`` to ``end``, reached at ``steps`` and kept."""
    _at_least("linear: steps", steps, 1)
    return lambda step: lr + (end - lr) * min(max(step, 0) / steps, 1.0)


def cosine(lr: float, steps: int, end: float = 0.0) -> Schedule:
    """Half a cosine from ``lr`` to ``end`` (Loshchilov & Hutter 2017), reached at ``steps``."""
    _at_least("cosine: steps", steps, 1)

    def at(step: int) -> float:
        share = min(max(step, 0) / steps, 1.0)
        return end + (lr - end) * 0.5 * (1 + math.cos(math.pi * share))

    return at


def one_cycle(
    lr: float,
    steps: int,
    rise: float = 0.3,
    start_factor: float = 1 / 25,
    end_factor: float = 1e-4 / 25,
) -> Schedule:
    """Half a cosine up to ``lr`` in the share ``rise`` of ``steps``, another one down.

    From ``lr * start_factor`` to ``lr * end_factor`` at the last step, ``steps - 1`` (Smith & Topin
    2018; ``torch.optim.lr_scheduler.OneCycleLR`` with its defaults).
    """
    _at_least("one_cycle: steps", steps, 1)
    top = rise * steps - 1

    def at(step: int) -> float:
        step = min(max(step, 0), steps - 1)
        if step <= top:
            low, high, share = lr * start_factor, lr, step / top if top > 0 else 1.0
        else:
            low, high, share = lr, lr * end_factor, (step - top) / (steps - 1 - top)
        return high + (low - high) * 0.5 * (1 + math.cos(math.pi * share))

    return at


def inverse_sqrt(lr: float, warmup_steps: int) -> Schedule:
    """Linear warm-up to ``lr`` in ``warmup_steps``, then ``lr * sqrt(warmup_steps / step)``.

    Vaswani et al. 2017, with the peak given.
    """
    _at_least("inverse_sqrt: warmup_steps", warmup_steps, 1)

    def at(step: int) -> float:
        n = max(step, 0) + 1
        return lr * min(n / warmup_steps, math.sqrt(warmup_steps / n))

    return at

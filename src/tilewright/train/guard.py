"""What stops a run: a loss that is no number, and people who press Ctrl-C."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from tilewright.errors import TrainingError

__all__ = ["Interrupts", "check_loss"]


def check_loss(
    step: int, loss: float, *, lr: float | None = None, checkpoint: str | None = None
) -> None:
    """Raise `TrainingError` when the loss of ``step`` is not finite.

    Call it before the step's update is recorded or saved, so that no checkpoint holds the damage.
    ``checkpoint``: path of the last good one, for the message.
    """
    if math.isfinite(loss):
        return
    rate = "" if lr is None else f" (it was {lr:.3g})"
    last = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was saved"
    raise TrainingError(
        f"step {step}: the loss is {loss}; training stops here. Usual causes: a learning rate that "
        f"is too high{rate}, no warm-up, no gradient clipping, or data with values that are not "
        f"finite. {last[0].upper()}{last[1:]}"
    )


class Interrupts:
    """Ctrl-C (and SIGTERM) become a request to stop after the current step; a context manager.

    A second Ctrl-C raises `KeyboardInterrupt` at once. Outside the main thread, where Python
    receives no signals, nothing changes. ``on_request`` is called at the first signal, with its
    name; it must be quick and is for telling people that they were heard.

    ::

        with Interrupts() as interrupts:
            while step < last and not interrupts.requested:
                ...
    """

    def __init__(self, on_request: Callable[[str], None] | None = None) -> None:
        self.requested: str | None = None
        """The signal's name (``"SIGINT"``) once there was one."""
        self._on_request = on_request
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
        if self._on_request is not None:
            self._on_request(self.requested)

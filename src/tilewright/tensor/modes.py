"""What a thread is doing: whether operations track gradients, and the trace that is active."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

from tilewright.dtypes import DType
from tilewright.errors import TraceError
from tilewright.graph import Node

if TYPE_CHECKING:
    from tilewright.tensor.core import Tensor

__all__ = ["Trace", "mode", "no_grad", "realize_along", "trace_error", "tracing"]


class Trace(Protocol):
    """What is told when a tensor changes while a function is being traced."""

    def record_assign(self, tensor: Tensor, old: Node, new: Node) -> None: ...

    def record_grad(self, tensor: Tensor, old: Tensor | None) -> None: ...

    def read_grad(self, tensor: Tensor, grad: Tensor | None) -> None: ...

    def record_flag(self, owner: Any, value: bool | None) -> None: ...


class _Mode(threading.local):
    """The modes of one thread."""

    grad: bool = True
    trace: Trace | None = None

    def __init__(self) -> None:
        self.assigned: list[weakref.ref[Tensor]] = []  # state whose new value nobody asked for yet

    def take_assigned(self) -> list[Tensor]:
        """The state that was assigned and not computed; it is not remembered any longer."""
        refs, self.assigned = self.assigned, []
        found = {id(t): t for t in (ref() for ref in refs) if t is not None}
        return [t for t in found.values() if t.node.value is None]

    autocast: DType | None = None  # what products take their f32 operands as
    along: list[weakref.ref[Tensor]] | None = None  # to be computed with the next values asked for


mode: Final = _Mode()


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Operations inside track no gradients."""
    before, mode.grad = mode.grad, False
    try:
        yield
    finally:
        mode.grad = before


@contextlib.contextmanager
def tracing(trace: Trace) -> Iterator[None]:
    """Inside, nothing is realised (:class:`TraceError`) and ``trace`` hears of assignments."""
    before, mode.trace = mode.trace, trace
    try:
        yield
    finally:
        mode.trace = before


def trace_error(what: str, tensor: Tensor) -> TraceError:
    """The error of asking for a value while a function is being traced."""
    return TraceError(
        f"{what} asks for the value of a {tensor.dtype} tensor of shape {tensor.shape} while a "
        "function is being traced, and there are no values yet. Return the tensor and look at it "
        "outside, use where() instead of a branch on a value, or do not compile the function."
    )


def realize_along(tensor: Tensor) -> None:
    """Compute ``tensor`` together with whatever is computed next.

    For state that changes as a by-product (running statistics): on its own it would cost the work
    it shares with the rest a second time, and left alone it would keep its history alive.
    """
    if mode.trace is None:
        mode.along = [*(mode.along or ()), weakref.ref(tensor)]

"""Ctrl-C at any moment: state is old or new, never between, and the next call works."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright import nn, optim
from tilewright.runtime.interrupts import Held
from tilewright.tensor import random as generator


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    """SIGINT raises, also where the tests were started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Events:
    """Counts the moments at which Python may run a handler; sends SIGINT at one of them.

    Those are the starts of functions and the returns of C functions.
    """

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def __call__(self, frame: Any, event: str, arg: Any) -> None:
        if event not in ("call", "c_return") or frame.f_code.co_name in ("__del__", "<genexpr>"):
            return  # Python loses what is raised while it finalises
        self.count += 1
        if self.count == self.at:
            signal.raise_signal(signal.SIGINT)


def interrupted(fn: Callable[[], Any], at: int) -> tuple[bool, int]:
    """Whether ``fn`` was interrupted at event ``at``, and how many events there were."""
    events = Events(at)
    sys.setprofile(events)
    try:
        fn()
    except KeyboardInterrupt:
        return True, events.count
    finally:
        sys.setprofile(None)
    return False, events.count


class Training:
    """A small network with everything that changes in a step."""

    def __init__(self, compiled: bool) -> None:
        generator.seed(3)
        self.module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.GELU())
        self.optimizer = optim.AdamW(self.module.named_parameters(), lr=0.1)
        self.x = tw.asarray(np.linspace(-1, 1, 15, dtype=np.float32).reshape(5, 3))
        self.a, self.b = tw.ones((4,)).realize(), tw.zeros((4,)).realize()
        self.free = nn.Parameter(tw.ones((4,)))  # nobody uses its gradient up
        self.free.grad = tw.zeros((4,)).realize()
        self.run = tw.compile(self.step) if compiled else self.step

    def step(self) -> tw.Tensor:
        self.optimizer.zero_grad()
        loss = (self.module(self.x) ** 2).mean() + (self.free * self.free).sum()
        loss.backward()
        self.optimizer.step()
        old = +self.a  # each is read after the other was assigned: neither is written in place
        self.a.assign(self.b + 1.0)
        self.b.assign(old * 2.0 + self.a)
        return loss

    def state(self, running: bool = True) -> bytes:
        tensors = {**self.module.state_dict(), **self.optimizer.state_dict()}
        tensors["key"] = generator.default().state
        tensors |= {"a": self.a, "b": self.b, "grad": self.free.grad}
        kept = [t.numpy().tobytes() for name, t in tensors.items() if running or name in _OWN]
        return b"".join(kept)


_OWN = (
    "0.weight",
    "0.bias",
    "2.weight",
    "2.bias",
    "steps",
    "exp_avg.0.weight",
    "exp_avg_sq.2.bias",
)


def states_of(steps: int, compiled: bool, **options: Any) -> list[bytes]:
    training = Training(compiled)
    found = [training.state(**options)]
    for _ in range(steps):
        training.run()
        found.append(training.state(**options))
    return found


@pytest.mark.parametrize("shared", [False, True], ids=["in place", "seen by others"])
def test_a_compiled_step_is_whole_wherever_it_is_interrupted(shared: bool) -> None:
    steps = 400
    want = states_of(steps, compiled=True)
    training = Training(compiled=True)
    training.run()
    training.run()  # traced again: state has the layout that a step gives it
    done, at, interrupts, kept = 2, 0, 0, []
    while True:
        at += 1
        if shared:  # the next call may not write over these
            kept = [training.module.state_dict()["0.weight"].detach(), generator.default().state]
        before = training.state()
        raised, events = interrupted(training.run, at)
        assert raised or at > events
        after = training.state()
        assert before == want[done]
        assert after in (before, want[done + 1])
        done += after != before
        interrupts += raised
        if not raised:
            break
        assert done < steps
    assert min(interrupts, 2 * done) > 50, "the hook saw too little"
    assert training.state() == want[done]
    del kept


def test_tracing_undoes_what_it_did_when_it_is_interrupted() -> None:
    (start, first, *_) = want = states_of(2, compiled=True)
    _, events = interrupted(Training(compiled=True).run, -1)
    for at in random.Random(0).sample(range(1, events), 15):
        training = Training(compiled=True)
        raised, _ = interrupted(training.run, at)
        assert raised
        state = training.state()
        assert state in (start, first)
        training.run()
        assert training.state() == want[1 if state == start else 2]


def test_a_dynamic_step_leaves_parameters_and_moments_of_one_step() -> None:
    """What a layer assigns on the way (running means, the key) is not part of it."""
    want = states_of(1, compiled=False, running=False)  # the programs are known then
    _, events = interrupted(Training(compiled=False).run, -1)
    for at in random.Random(0).sample(range(1, events), 20):
        training = Training(compiled=False)
        interrupted(training.run, at)
        assert training.state(running=False) in want
        training.run()  # works
        training.state()


def test_gradients_are_all_there_or_none_when_backward_is_interrupted() -> None:
    def network() -> tuple[nn.Module, tw.Tensor]:
        generator.seed(3)
        module = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
        return module, (module(tw.ones((5, 3))) ** 2).sum()

    module, loss = network()
    _, events = interrupted(loss.backward, -1)
    want = [p.grad.numpy() for p in module.parameters() if p.grad is not None]
    assert len(want) == 4
    for at in random.Random(1).sample(range(1, events), 60):
        module, loss = network()
        interrupted(loss.backward, at)
        got = [p.grad for p in module.parameters()]
        assert all(g is None for g in got) or all(g is not None for g in got)
        if got[0] is None:
            loss.backward()
        for p, g in zip(module.parameters(), want):
            np.testing.assert_array_equal(p.grad.numpy(), g)


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_timer_that_raises_finds_no_gap_either() -> None:
    steps = 1200
    want = states_of(steps, compiled=True)
    training = Training(compiled=True)
    training.run()
    done, raised, draw = 1, 0, random.Random(5)
    start = time.monotonic()
    for _ in range(steps - 1):
        try:
            with alarm(draw.uniform(2e-6, 250e-6)):
                training.run()
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            raised += 1
        state = training.state()
        assert state in (want[done], want[done + 1])
        done += state == want[done + 1]
        if time.monotonic() - start > 5:
            break
    assert raised > 5


def test_signals_wait_for_the_end_of_the_block() -> None:
    order = []

    def run() -> None:
        with Held():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            order.append("inside")
        order.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert order == ["inside"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_open_block_passes_signals_on_and_blocks_nest() -> None:
    with pytest.raises(KeyboardInterrupt), Held(open=True):
        signal.raise_signal(signal.SIGINT)
    order = []

    def run() -> None:
        with Held():
            with Held():
                signal.raise_signal(signal.SIGINT)
            order.append("inner")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert order == ["inner"]


def test_a_handler_that_the_block_installs_stays() -> None:
    def other(number: int, frame: Any) -> None: ...

    with Held():
        signal.signal(signal.SIGINT, other)
    assert signal.getsignal(signal.SIGINT) is other


def test_other_threads_hold_nothing() -> None:
    seen = []

    def run() -> None:
        with Held():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]

"""Progress on terminals and in pipes; losses that are no numbers; Ctrl-C."""

from __future__ import annotations

import io
import math
import os
import signal
import threading

import pytest

from tilewright.errors import TrainingError
from tilewright.train.guard import Interrupts, check_loss
from tilewright.train.progress import Progress, duration, short_count


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_in_a_pipe() -> None:
    clock, out = Clock(), io.StringIO()
    with Progress(40, stream=out, clock=clock) as progress:
        for step in range(1, 41):
            clock.now += 1
            progress.update(step, tokens=2000, loss=4.0 / step, lr=3e-4)
    lines = out.getvalue().splitlines()
    assert lines[0] == "step  1/40  loss 4.0000  lr 3.00e-04"
    assert lines[1] == "step 11/40  loss 0.3636  lr 3.00e-04  2k tok/s  ETA 0:29"
    assert lines[-1] == "step 40/40  loss 0.1000  lr 3.00e-04  2k tok/s  done"
    assert len(lines) == 5
    assert "\x1b" not in out.getvalue()
    assert progress.tokens_per_s() == 2000


def test_one_line_on_a_terminal() -> None:
    clock, out = Clock(), io.StringIO()
    with Progress(1000, done=500, stream=out, terminal=True, clock=clock, unit=None) as progress:
        for step in range(501, 521):
            clock.now += 0.05
            progress.update(step, loss=1e-4)
        progress.note("saved")
    text = out.getvalue()
    assert 7 <= text.count("\r") <= 12  # at most ten a second, and the note's two
    assert "step  501/1000  loss 1.00e-04\x1b" in text
    assert "step  504/1000  loss 1.00e-04  20 step/s  ETA 0:25" in text
    assert "\r\x1b[Ksaved\n\rstep" in text
    assert text.endswith("\n")


def test_the_first_step_which_compiles_does_not_count_for_the_speed() -> None:
    clock, out = Clock(), io.StringIO()
    with Progress(100, stream=out, every_s=0, clock=clock) as progress:
        for step in range(1, 4):
            clock.now += 30 if step == 1 else 0.5
            progress.update(step, tokens=100)
    lines = out.getvalue().splitlines()
    assert lines[0] == "step   1/100"
    assert lines[2] == "step   3/100  200 tok/s  ETA 0:48"


def test_speed_follows_the_last_seconds() -> None:
    clock, out = Clock(), io.StringIO()
    progress = Progress(10_000, stream=out, every_s=0, clock=clock)
    for step in range(1, 101):
        clock.now += 1.0 if step <= 50 else 0.5
        progress.update(step, tokens=100)
    assert progress.tokens_per_s() == pytest.approx(200)


def test_what_a_narrow_terminal_has_no_room_for_is_cut() -> None:
    primary, secondary = os.openpty()
    with os.fdopen(secondary, "w") as out:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(out, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
        with Progress(10, stream=out, terminal=True) as progress:
            progress.update(3, loss=1.0)
        shown = b""
        while not shown.endswith(b"\n"):  # a terminal may hand on what it got so far
            shown += os.read(primary, 1000)
        assert shown == b"\rstep  3/10  loss 1.\x1b[K\r\n"
    os.close(primary)


def test_durations_and_counts() -> None:
    assert [duration(s) for s in (0.4, 59.6, 3599, 3600, 200_000, math.inf)] == [
        *("0:00", "1:00", "59:59", "1:00:00", "2d 07h", "?"),
    ]
    assert [short_count(n) for n in (0, 9.87, 999.4, 999.7, 12345, 4.56e6, 2e9)] == [
        *("0", "9.87", "999", "1k", "12.3k", "4.56M", "2G"),
    ]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number(loss: float) -> None:
    with pytest.raises(TrainingError, match=r"step 7: .*0\.0003.*The last good checkpoint is a/b"):
        check_loss(7, loss, lr=3e-4, checkpoint="a/b")
    with pytest.raises(TrainingError, match="No checkpoint was saved"):
        check_loss(7, loss)
    check_loss(7, 1e300)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_asks_and_the_second_stops(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    heard: list[str] = []
    with Interrupts(heard.append) as interrupts:
        assert interrupts.requested is None
        signal.raise_signal(number)
        assert interrupts.requested == number.name
        assert heard == [number.name]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_interrupts_change_nothing() -> None:
    handlers = []

    def work() -> None:
        with Interrupts():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]

"""Schedules against their formulas and PyTorch's."""

from __future__ import annotations

import math

import pytest

from tilewright.optim import schedules

torch = pytest.importorskip("torch")


def torchs(make: object, steps: int, lr: float = 1.0) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
    schedule = make(optimizer)  # type: ignore[operator]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def close(schedule: schedules.Schedule, wanted: list[float]) -> None:
    for i, want in enumerate(wanted):
        assert math.isclose(schedule(i), want, rel_tol=1e-9, abs_tol=1e-15), i


def test_cosine_is_torchs() -> None:
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR
    close(
        schedules.cosine(0.3, 20, 0.01),
        torchs(lambda o: scheduler(o, 20, 0.01), 20, 0.3),
    )
    assert schedules.cosine(0.3, 20, 0.01)(999) == pytest.approx(0.01)


@pytest.mark.parametrize("steps", [3, 10, 33])
def test_one_cycle_is_torchs(steps: int) -> None:
    scheduler = torch.optim.lr_scheduler.OneCycleLR
    wanted = torchs(lambda o: scheduler(o, 0.3, steps, cycle_momentum=False), steps - 1)
    close(schedules.one_cycle(0.3, steps), wanted)
    assert schedules.one_cycle(0.3, steps)(steps - 1) == pytest.approx(0.3 / 25 * 1e-4)


def test_linear_is_torchs() -> None:
    scheduler = torch.optim.lr_scheduler.LinearLR
    close(
        schedules.linear(0.5, 10, 0.05),
        torchs(lambda o: scheduler(o, 1.0, 0.1, 10), 15, 0.5),
    )


def test_warmup_then_the_rest() -> None:
    schedule = schedules.warmup(schedules.cosine(1.0, 10), 4)
    assert [schedule(i) for i in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert schedule(9) == pytest.approx(0.5)
    assert schedule(14) == pytest.approx(0)
    assert schedules.warmup(schedules.constant(0.1), 0)(0) == 0.1


def test_inverse_square_root() -> None:
    schedule = schedules.inverse_sqrt(1.0, 4)
    assert [schedule(i) for i in (0, 1, 3, 15)] == [0.25, 0.5, 1.0, 0.5]


def test_lengths_are_checked() -> None:
    with pytest.raises(ValueError, match="steps"):
        schedules.cosine(1.0, 0)

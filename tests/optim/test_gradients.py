"""Clipping, accumulation, loss scaling, averages: dynamic and compiled."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright import asarray, nn
from tilewright.dtypes import f16, f32
from tilewright.errors import FormatError, ShapeError
from tilewright.nn import functional as F
from tilewright.optim import (
    EMA,
    SGD,
    AdamW,
    LossScaler,
    accumulate,
    clip_grad_norm,
    clip_grad_value,
    grad_norm,
)
from tilewright.tensor.compiled import compile
from tilewright.tensor.core import Tensor

torch = pytest.importorskip("torch")


def x(*shape: int, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), np.float32)


def graded() -> tuple[list[Tensor], list[object]]:
    mine, peers = [], []
    for i, shape in enumerate([(3, 4), (5,), (), (2,)]):
        p, q = Tensor(x(*shape), requires_grad=True), torch.from_numpy(x(*shape).copy())
        if i < 3:
            g = np.asarray(x(*shape, seed=i + 1) * 3)
            p.grad, q.grad = asarray(g), torch.from_numpy(g.copy())
        mine.append(p)
        peers.append(q)
    return mine, peers


@pytest.mark.parametrize("limit", [0.5, 1e4])
def test_clipping_is_torchs(limit: float) -> None:
    mine, peers = graded()
    norm = clip_grad_norm(mine, limit)
    want = torch.nn.utils.clip_grad_norm_(peers, limit)
    assert norm.item() == pytest.approx(want.item(), rel=1e-6)
    for p, q in zip(mine[:3], peers):
        assert p.grad is not None
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-6)  # type: ignore[attr-defined]
    assert mine[3].grad is None
    assert grad_norm(mine).item() == pytest.approx(min(limit, want.item()), rel=1e-5)
    clip_grad_value(mine, 0.1)
    torch.nn.utils.clip_grad_value_(peers, 0.1)
    for p, q in zip(mine[:3], peers):
        assert p.grad is not None
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-6)  # type: ignore[attr-defined]


def model_and_batch() -> tuple[nn.Module, Tensor, Tensor]:
    nn_model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    state = {n: x(*p.shape, seed=i) * 0.3 for i, (n, p) in enumerate(nn_model.named_parameters())}
    nn_model.load_state_dict(state)
    return nn_model, asarray(x(8, 6)), asarray(np.arange(8) % 3)


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    model, rows, targets = model_and_batch()
    whole = F.cross_entropy(model(rows), targets)
    whole.backward()
    want = [p.grad.numpy() for p in model.parameters()]  # type: ignore[union-attr]

    def loss_of(batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["x"]), batch["y"])

    def step(x: Tensor, y: Tensor) -> Tensor:
        model.zero_grad()
        return accumulate(loss_of, model.parameters(), 4, {"x": x, "y": y})

    dynamic = step(rows, targets)
    first = [p.grad.numpy() for p in model.parameters()]  # type: ignore[union-attr]
    model.zero_grad()
    compiled = compile(step)(rows, targets)
    second = [p.grad.numpy() for p in model.parameters()]  # type: ignore[union-attr]
    assert dynamic.item() == pytest.approx(whole.item(), rel=1e-6)
    assert compiled.item() == dynamic.item()
    for a, b, c in zip(want, first, second):
        np.testing.assert_allclose(b, a, atol=1e-6)
        np.testing.assert_array_equal(c, b)
    with pytest.raises(ShapeError, match="3 pieces"):
        accumulate(loss_of, model.parameters(), 3, {"x": rows, "y": targets})


def test_accumulation_in_a_compiled_step_needs_the_memory_of_one_piece() -> None:
    def arena(parts: int) -> int:
        model = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(6)])
        optimizer = SGD(model.named_parameters(), 0.1)

        def step(rows: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = accumulate(lambda b: (model(b) ** 2).mean(), optimizer.params, parts, rows)
            optimizer.step()
            return loss

        run = compile(step)
        run(asarray(x(4096, 64)))
        (entry,) = [e for family in run._families.values() for e in family.entries]
        return entry.program.arena_bytes

    assert arena(8) < 0.35 * arena(1)


def test_loss_scaling_saves_what_float16_would_lose() -> None:
    def trained(scaled: bool) -> np.ndarray:
        w = asarray(np.full((4, 4), 0.5, np.float32))
        w.requires_grad = True
        optimizer, scaler = SGD([w], 1.0), LossScaler(2.0**14)
        with nn.autocast(f16):
            y = F.linear(asarray(np.full((1, 4), 1e-2, np.float32)), w)
            loss = (y.astype(f32) * 1e-7).sum()
        (scaler.scale(loss) if scaled else loss).backward()
        if scaled:
            scaler.step(optimizer)
        else:
            optimizer.step()
        return 0.5 - w.numpy().astype(np.float64)

    assert not trained(False).any()
    np.testing.assert_allclose(trained(True)[0, 0], 0, atol=1e-6)


def test_a_step_with_overflow_is_skipped_and_the_scale_moves() -> None:
    def run(compiled: bool) -> list[list[float]]:
        p = Tensor(np.ones(3, np.float32), requires_grad=True)
        optimizer, scaler = AdamW([p], 0.1), LossScaler(8.0, interval=2)

        def step(rows: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = (p * rows).sum()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            return loss

        go = compile(step) if compiled else step
        found = []
        for value in (1.0, np.inf, 1.0, 1.0, np.nan, 1.0):
            go(asarray(np.full(3, value, np.float32)))
            found.append(
                [
                    p.numpy()[0].item(),
                    scaler.factor.item(),
                    scaler.good.item(),
                    optimizer.steps.item(),
                ]
            )
        return found

    dynamic = run(False)
    assert run(True) == dynamic
    assert [row[1] for row in dynamic] == [8, 4, 4, 8, 4, 4]
    assert [row[3] for row in dynamic] == [1, 1, 2, 3, 3, 4]
    assert dynamic[0][0] == dynamic[1][0] != dynamic[2][0]
    scaler = LossScaler()
    scaler.load_state_dict({"scale": np.float32(3), "good": np.float32(1)})
    assert scaler.factor.item() == 3


def test_averages_follow_and_can_be_put_in() -> None:
    p = Tensor(np.zeros(2, np.float32), requires_grad=True)
    ema = EMA([("p", p)], 0.9)
    want = 0.0
    for i in range(5):
        p.assign(asarray(np.full(2, i, np.float32)))
        ema.update()
        want = 0.9 * want + 0.1 * i
    np.testing.assert_allclose(ema.averages["p"].numpy(), want, rtol=1e-6)
    with ema.applied():
        np.testing.assert_allclose(p.numpy(), want, rtol=1e-6)
        assert p.requires_grad
    np.testing.assert_array_equal(p.numpy(), 4)
    other = EMA([("p", p)])
    other.load_state_dict(ema.state_dict())
    np.testing.assert_array_equal(other.averages["p"].numpy(), ema.averages["p"].numpy())
    with pytest.raises(FormatError, match="q"):
        other.load_state_dict({"q": p})

"""Every rule against torch.optim, groups, masters, state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tilewright import asarray, nn
from tilewright.dtypes import bf16, f32
from tilewright.errors import FormatError, ShapeError, TraceError
from tilewright.optim import SGD, Adafactor, Adagrad, Adam, AdamW, Lion, Optimizer, SparseAdam
from tilewright.tensor.compiled import compile
from tilewright.tensor.core import Tensor

torch = pytest.importorskip("torch")
to = torch.optim

SHAPES = [(7, 5), (5,), (2, 3, 4), ()]


def x(*shape: int, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), np.float32)


def pairs() -> tuple[list[Tensor], list[Any]]:
    arrays = [x(*s, seed=i) for i, s in enumerate(SHAPES)]
    ours = [Tensor(a, requires_grad=True) for a in arrays]
    return ours, [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]


def run(ours: Any, theirs: Any, mine: list[Tensor], peers: list[Any], steps: int = 12) -> None:
    for i in range(steps):
        for j, (p, q) in enumerate(zip(mine, peers)):
            g = x(*p.shape, seed=100 * i + j)
            p.grad, q.grad = asarray(g), torch.from_numpy(g.copy())
        ours.step()
        theirs.step()
    for p, q in zip(mine, peers):
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=0, atol=3e-6)


RULES: dict[str, tuple[Callable[..., Optimizer], Callable[..., Any]]] = {
    "sgd": (lambda p: SGD(p, 0.1), lambda p: to.SGD(p, 0.1)),
    "sgd momentum": (
        lambda p: SGD(p, 0.1, 0.9, weight_decay=0.01, coupled=True),
        lambda p: to.SGD(p, 0.1, 0.9, weight_decay=0.01),
    ),
    "sgd nesterov": (
        lambda p: SGD(p, 0.1, 0.9, nesterov=True),
        lambda p: to.SGD(p, 0.1, 0.9, nesterov=True),
    ),
    "adam": (lambda p: Adam(p, 0.02), lambda p: to.Adam(p, 0.02)),
    "adam coupled": (
        lambda p: Adam(p, 0.02, weight_decay=0.1, coupled=True),
        lambda p: to.Adam(p, 0.02, weight_decay=0.1),
    ),
    "adam without averages": (
        lambda p: Adam(p, 0.02, betas=(0.0, 0.5)),
        lambda p: to.Adam(p, 0.02, betas=(0.0, 0.5)),
    ),
    "adamw": (
        lambda p: AdamW(p, 0.02, 0.1, betas=(0.9, 0.95)),
        lambda p: to.AdamW(p, 0.02, (0.9, 0.95), weight_decay=0.1),
    ),
    "adagrad": (lambda p: Adagrad(p, 0.1), lambda p: to.Adagrad(p, 0.1)),
    "adafactor": (lambda p: Adafactor(p, 0.05), lambda p: to.Adafactor(p, 0.05)),
    "adafactor decay": (
        lambda p: Adafactor(p, 0.05, weight_decay=0.1),
        lambda p: to.Adafactor(p, 0.05, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_rule_is_torchs(name: str) -> None:
    mine, peers = pairs()
    ours, theirs = (make(ps) for make, ps in zip(RULES[name], (mine, peers)))
    run(ours, theirs, mine, peers)


def test_lion_is_the_papers() -> None:
    p = Tensor(x(6, 4), requires_grad=True)
    optimizer = Lion([p], 0.01, (0.9, 0.99), weight_decay=0.1)
    want, m = x(6, 4).astype(np.float64), np.zeros((6, 4))
    for i in range(10):
        g = x(6, 4, seed=i + 1)
        p.grad = asarray(g)
        optimizer.step()
        update = np.sign(0.9 * m + 0.1 * g)
        m = 0.99 * m + 0.01 * g
        want = want - 0.01 * (update + 0.1 * want)
    np.testing.assert_allclose(p.numpy(), want, atol=1e-6)


def test_the_first_step_of_adam_has_all_its_digits() -> None:
    """1 - 0.999 in float32 has five digits only; the correction must not be made of it."""
    p = Tensor(np.zeros(3, np.float32), requires_grad=True)
    p.grad = asarray(np.array([1e-3, 1.0, 1e3], np.float32))
    Adam([p], 1.0, eps=0.0).step()
    np.testing.assert_allclose(p.numpy(), -1, rtol=3e-7)


def test_groups_have_their_own_rates_decays_and_settings() -> None:
    mine, peers = pairs()
    groups = [
        {"params": mine[:1], "lr": 0.04, "weight_decay": 0.2, "betas": (0.8, 0.9)},
        {"params": mine[1:]},
    ]
    theirs = [
        {"params": peers[:1], "lr": 0.04, "weight_decay": 0.2, "betas": (0.8, 0.9)},
        {"params": peers[1:]},
    ]
    ours = AdamW(groups, 0.02, 0.0)
    peer = to.AdamW(theirs, 0.02, weight_decay=0.0)
    run(ours, peer, mine, peers)
    ours.lr = 0.01  # the group keeps twice the rate
    for group, lr in zip(peer.param_groups, (0.02, 0.01)):
        group["lr"] = lr
    run(ours, peer, mine, peers)
    with pytest.raises(ShapeError, match="lr_scale"):
        SGD([{"params": mine, "lr": 1.0}], asarray(np.float32(0.1)))
    with pytest.raises(ShapeError, match='"params"'):
        SGD([{"weights": mine}], 0.1)


def test_vectors_may_be_left_out_of_weight_decay() -> None:
    model = nn.Linear(3, 4)
    optimizer = AdamW(model.named_parameters(), 0.1, 0.5, decay_vectors=False)
    before = {n: p.numpy().copy() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = asarray(np.zeros(p.shape, np.float32))
    optimizer.step()
    after = {n: p.numpy() for n, p in model.named_parameters()}
    np.testing.assert_array_equal(after["bias"], before["bias"])
    np.testing.assert_allclose(after["weight"], before["weight"] * 0.95, rtol=1e-6)


def test_bf16_parameters_with_a_master_move_by_less_than_they_can_show() -> None:
    for master in (True, False):
        p = asarray(np.ones(4, np.float32)).astype(bf16)
        p.requires_grad = True
        optimizer = SGD([p], 1e-3, master=master)
        for _ in range(10):
            p.grad = asarray(np.ones(4, np.float32)).astype(bf16)
            optimizer.step()
        assert p.dtype is bf16
        if master:
            kept = optimizer.state[0]["master"]
            assert kept.dtype is f32
            np.testing.assert_allclose(kept.numpy(), 0.99, rtol=1e-5)
            np.testing.assert_array_equal(p.numpy(), kept.astype(bf16).numpy())
        else:
            np.testing.assert_array_equal(p.numpy(), 1)


def test_state_goes_out_and_in() -> None:
    mine, _ = pairs()
    named = [(f"p{i}", p) for i, p in enumerate(mine)]
    first = AdamW(named, 0.1)
    for i, p in enumerate(mine):
        p.grad = asarray(x(*p.shape, seed=i))
    first.step()
    first.lr = 0.05
    state = {name: t.numpy().copy() for name, t in first.state_dict().items()}
    assert set(state) == {"steps", "lr"} | {
        f"{slot}.p{i}" for slot in ("exp_avg", "exp_avg_sq") for i in range(4)
    }
    copies = [(n, Tensor(p.numpy(), requires_grad=True)) for n, p in named]
    second = AdamW(copies, 0.1)
    second.load_state_dict(state)
    for (_, p), (_, q) in zip(named, copies):
        p.grad = q.grad = asarray(x(*p.shape, seed=9))
    first.step()
    second.step()
    for (_, p), (_, q) in zip(named, copies):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
    with pytest.raises(FormatError, match=r"exp_avg\.p0"):
        second.load_state_dict({k: v for k, v in state.items() if k != "exp_avg.p0"})
    with pytest.raises(ShapeError, match=r"exp_avg\.p0"):
        second.load_state_dict({**state, "exp_avg.p0": np.zeros(3, np.float32)})


def test_what_optimisers_refuse() -> None:
    with pytest.raises(ShapeError, match="no parameters"):
        SGD([], 0.1)
    with pytest.raises(ShapeError, match="does not require"):
        SGD([asarray(x(3))], 0.1)
    p = Tensor(x(3), requires_grad=True)
    with pytest.raises(ShapeError, match="twice"):
        SGD([p, p], 0.1)
    with pytest.raises(ValueError, match="every row"):
        SparseAdam([p], weight_decay=0.1)
    optimizer = SGD([p], 0.1)

    def step() -> Tensor:
        optimizer.lr = 0.5
        return p * 1.0

    with pytest.raises(TraceError, match="outside"):
        compile(step)()

"""Loss curves: the same bits dynamic and compiled, the same numbers as PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.nn.test_attention_layers import TorchGPT
from tests.nn.torch_twins import load_from_torch, torch
from tests.ops.node_calls import with_threads

from tilewright import asarray, nn
from tilewright.dtypes import DType, bf16, f16
from tilewright.nn import functional as F
from tilewright.optim import EMA, AdamW, LossScaler, clip_grad_norm, schedules
from tilewright.tensor import random
from tilewright.tensor.compiled import compile
from tilewright.tensor.core import Tensor

TEXT = np.frombuffer(
    b"the quick brown fox jumps over the lazy dog. pack my box with five dozen jugs. " * 40,
    np.uint8,
)
VOCABULARY = {c: i for i, c in enumerate(np.unique(TEXT))}
STREAM = np.array([VOCABULARY[c] for c in TEXT])


def batch(i: int, rows: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    at = np.random.default_rng(i).integers(0, len(STREAM) - steps - 1, rows)
    picked = at[:, None] + np.arange(steps)
    return STREAM[picked], STREAM[picked + 1]


def curve(compiled: bool, steps: int) -> tuple[list[float], list[np.ndarray], int]:
    random.seed(5)
    config = nn.GPTConfig(len(VOCABULARY), 16, 2, 2, 32, dropout=0.1)
    model = nn.GPT(config)
    named = list(model.named_parameters())
    groups = [
        {"params": [p for p in named if p[1].ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in named if p[1].ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, 3e-3)
    ema = EMA(named, 0.99)
    schedule = schedules.warmup(schedules.cosine(3e-3, steps), 10)

    def step(ids: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(ids), targets)
        loss.backward()
        clip_grad_norm(optimizer.params, 1.0)
        optimizer.step()
        ema.update()
        return loss

    go = compile(step) if compiled else step
    losses = []
    for i in range(steps):
        optimizer.lr = schedule(i)
        ids, targets = batch(i, 8, 16)
        losses.append(go(asarray(ids), asarray(targets)).item())
    state = [*model.parameters(), *ema.averages.values(), *optimizer.state_dict().values()]
    return losses, [t.numpy() for t in state], go.programs if compiled else 1  # type: ignore[attr-defined]


def test_dynamic_and_compiled_training_have_the_same_bits_for_200_steps() -> None:
    dynamic, state, _ = curve(False, 200)
    compiled, other, programs = curve(True, 200)
    assert dynamic == compiled
    assert programs == 1
    for a, b in zip(state, other):
        np.testing.assert_array_equal(a, b)
    assert np.mean(dynamic[-20:]) < 0.6 * dynamic[0]  # it does learn


def torch_curve(theirs: Any, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(theirs.parameters(), 1e-3, (0.9, 0.95), weight_decay=0.1)
    schedule = schedules.warmup(schedules.cosine(1e-3, steps), 10)
    losses = []
    for i in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule(i)
        ids, targets = (torch.from_numpy(a) for a in batch(i, 8, 12))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(theirs(ids).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_follows_pytorch_for_50_steps() -> None:
    torch.manual_seed(0)
    theirs = TorchGPT(len(VOCABULARY))
    with torch.no_grad():
        for p in theirs.parameters():
            if p.ndim > 1:
                p.mul_(0.3)
    ours = nn.GPT(nn.GPTConfig(len(VOCABULARY), 12, 2, 4, 32))
    load_from_torch(ours, theirs)
    optimizer = AdamW(ours.named_parameters(), 1e-3, 0.1, betas=(0.9, 0.95))
    schedule = schedules.warmup(schedules.cosine(1e-3, 50), 10)

    def step(ids: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(ours(ids), targets)
        loss.backward()
        clip_grad_norm(optimizer.params, 1.0)
        optimizer.step()
        return loss

    go = compile(step)
    losses = []
    for i in range(50):
        optimizer.lr = schedule(i)
        losses.append(go(*map(asarray, batch(i, 8, 12))).item())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # its threads and ours would wait for each other's cores
    try:
        wanted = torch_curve(theirs, 50)
    finally:
        torch.set_num_threads(threads)
    assert wanted[-1] < 0.8 * wanted[0]
    np.testing.assert_allclose(losses, wanted, rtol=0, atol=1e-4)


def test_training_has_the_same_bits_on_any_number_of_threads() -> None:
    one, state, _ = with_threads(1, lambda: curve(True, 12))
    three, other, _ = with_threads(3, lambda: curve(True, 12))
    assert one == three
    for a, b in zip(state, other):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("dtype", "near"), [(bf16, 0.05), (f16, 0.02)])
def test_mixed_precision_training_stays_near(dtype: DType, near: float) -> None:
    """16-bit products with f32 masters; f16 with its losses scaled."""

    def trained(mixed: bool) -> list[float]:
        random.seed(5)
        model = nn.GPT(nn.GPTConfig(len(VOCABULARY), 16, 2, 2, 32))
        optimizer, scaler = AdamW(model.named_parameters(), 3e-3), LossScaler(1024.0)

        def step(ids: Tensor, targets: Tensor) -> Tensor:
            optimizer.zero_grad()
            with nn.autocast(dtype, enabled=mixed):
                loss = F.cross_entropy(model(ids), targets)
            scaler.scale(loss).backward()
            scaler.unscale(optimizer.params)
            clip_grad_norm(optimizer.params, 1.0)
            scaler.step(optimizer)
            return loss

        go = compile(step)
        return [go(*map(asarray, batch(i, 8, 16))).item() for i in range(40)]

    exact, mixed = trained(False), trained(True)
    assert exact != mixed
    assert exact[-1] < 0.8 * exact[0]
    np.testing.assert_allclose(mixed, exact, atol=near)

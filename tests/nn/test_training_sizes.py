"""Training steps of networks, compiled, at batches and lengths that change from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright import Tensor, nn, optim

F = nn.functional


def gpt() -> nn.Module:
    config = nn.GPTConfig(
        vocab_size=65, block_size=128, n_layer=2, n_head=2, n_embd=32, dropout=0.1
    )
    return nn.GPT(config)


def llama() -> nn.Module:
    config = nn.LlamaConfig(
        vocab_size=65, block_size=128, n_layer=2, n_head=4, n_kv_head=2, n_embd=32
    )
    return nn.Llama(config)


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(8),
        nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 12 * 12, 10),
    )  # fmt: skip


def tokens(batch: int, length: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(batch * 1000 + length)
    x, y = (tw.asarray(rng.integers(0, 65, (batch, length))) for _ in range(2))
    return x, y


def images(batch: int, side: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(batch)
    x = tw.asarray(rng.standard_normal((batch, 1, side, side), np.float32))
    return x, tw.asarray(rng.integers(0, 10, batch))


def train(
    make: Callable[[], nn.Module],
    data: Callable[[int, int], tuple[Tensor, Tensor]],
    shapes: list[tuple[int, int]],
    compiled: bool,
) -> tuple[list[bytes], Any]:
    """Losses and parameters, as bytes; and the compiled step."""
    tw.random.seed(0)
    model = make()
    optimizer = optim.AdamW(model.named_parameters(), lr=1e-3)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        logits = model(x)
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))
        loss.backward()
        optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        return loss

    run: Any = tw.compile(step) if compiled else step
    found = [run(*data(*shape)).numpy().tobytes() for shape in shapes]
    return found + [p.numpy().tobytes() for p in model.parameters()], run


TEXTS = [(4, 16), (3, 20), (2, 64), (5, 33), (8, 8), (6, 40), (9, 7), (3, 20)]


@pytest.mark.parametrize(
    ("make", "data", "shapes", "most"),
    [
        (gpt, tokens, TEXTS, 2),
        (llama, tokens, TEXTS, 3),  # products that are small at few tokens
        # sums of more than 32768 elements go another way: from 42 images on
        (cnn, images, [(n, 28) for n in (32, 7, 2, 41, 3, 42, 64)], 3),
    ],
    ids=["gpt", "llama", "cnn"],
)
def test_few_programs_train_with_the_bits_of_the_dynamic_path(
    make: Callable[[], nn.Module],
    data: Callable[[int, int], tuple[Tensor, Tensor]],
    shapes: list[tuple[int, int]],
    most: int,
) -> None:
    found, run = train(make, data, shapes, compiled=True)
    assert found == train(make, data, shapes, compiled=False)[0]
    assert run.programs <= most, run.assumptions()

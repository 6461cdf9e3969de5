"""A small Mamba learns to count: what comes after two numbers that are a step apart.

python examples/train_mamba.py [STEPS]

For text there is ``tilewright train mamba``, and ``tilewright train llama`` for attention.
"""

from __future__ import annotations

import sys

import numpy as np

import tilewright
from tilewright import nn, optim
from tilewright.nn import functional as F

NUMBERS = 16


def counting(rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
    """Rows that count in steps of 1 to 5 from anywhere, modulo NUMBERS: int32 (rows, length)."""
    start, step = rng.integers(0, NUMBERS, (rows, 1)), rng.integers(1, 6, (rows, 1))
    return ((start + step * np.arange(length)) % NUMBERS).astype(np.int32)


def main(arguments: list[str]) -> None:
    """Train, then go on with a row."""
    steps = int(arguments[0]) if arguments else 120
    rng = np.random.default_rng(1)
    tilewright.random.seed(1)
    model = nn.MambaLM(nn.MambaConfig(NUMBERS, d_model=32, n_layer=2, d_state=4))
    optimizer = optim.AdamW(model.named_parameters(), lr=1e-2, decay_vectors=False)

    @tilewright.compile
    def step(rows: tilewright.Tensor) -> tilewright.Tensor:
        loss = F.cross_entropy(model(rows[:, :-1])[:, 1:], rows[:, 2:])
        loss.backward()
        optimizer.step()
        return loss

    for number in range(1, steps + 1):
        loss = step(tilewright.asarray(counting(rng, 32, 12)))
        if number % 40 == 0 or number == steps:
            print(f"step {number}: loss {loss.item():.4f}")

    said = [2, 5]
    with tilewright.no_grad():
        while len(said) < 10:  # what comes later changes nothing, so one shape will do
            row = np.array([said + [0] * (10 - len(said))], np.int32)
            odds = model(tilewright.asarray(row)).numpy()[0, len(said) - 1]
            said.append(int(odds.argmax()))
    print(*said)


if __name__ == "__main__":
    main(sys.argv[1:])

"""A character-level GPT from a text, in its smallest form: data, model, step, samples.

python examples/train_gpt.py [TEXT.txt] [STEPS]

The whole recipe, with checkpoints and model files, is ``tilewright train gpt``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import tilewright
from tilewright import nn, optim
from tilewright.data import RandomWindows
from tilewright.nn import functional as F

SAMPLE = "to be or not to be, that is the question; whether tis nobler in the mind to suffer. "
CONTEXT = 32


def main(arguments: list[str]) -> None:
    """Train, then let the model speak."""
    text = Path(arguments[0]).read_text("utf-8") if arguments else SAMPLE * 20
    steps = int(arguments[1]) if len(arguments) > 1 else 60
    letters = sorted(set(text))
    ids = np.array([letters.index(c) for c in text], np.uint16)
    batches = RandomWindows(ids, batch=16, context=CONTEXT, seed=1)

    tilewright.random.seed(1)
    config = nn.GPTConfig(len(letters), CONTEXT, n_layer=2, n_head=2, n_embd=64)
    model = nn.GPT(config)
    optimizer = optim.AdamW(model.named_parameters(), lr=3e-3, decay_vectors=False)

    @tilewright.compile
    def step(x: tilewright.Tensor, y: tilewright.Tensor) -> tilewright.Tensor:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optim.clip_grad_norm(optimizer.params, 1.0)
        optimizer.step()
        return loss

    for number in range(1, steps + 1):
        x, y = next(batches)
        loss = step(tilewright.asarray(x), tilewright.asarray(y))
        if number % 20 == 0 or number == steps:
            print(f"step {number}: loss {loss.item():.3f}")

    said = list(ids[:CONTEXT])
    with tilewright.no_grad():
        for _ in range(60):
            row = tilewright.asarray(np.array([said[-CONTEXT:]], np.int32))
            said.append(int(model(row)[0, -1].argmax().item()))
    print("".join(letters[i] for i in said))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Several sequences in one step: the same bits as each alone.

    python examples/batch.py [MODEL.gguf]

A step takes a ragged batch: some tokens for each of some sequences, over one paged cache.
"""

from __future__ import annotations

import sys

import numpy as np

import tilewright
from tilewright.generate.engine import Work


def main(arguments: list[str]) -> None:
    """Greedy continuations of three prompts, in step with one another."""
    prompts = ["The prince", "Natasha laughed and", "At the gates of Moscow the"]
    model = tilewright.load(arguments[0] if arguments else None, max_sequences=len(prompts))
    engine = model.engine
    ids = [model.tokenizer.encode(prompt) for prompt in prompts]
    sequences = [engine.open() for _ in prompts]

    new = ids
    for _ in range(16):
        step = [Work(sequence, tokens) for sequence, tokens in zip(sequences, new)]
        chosen = engine.step(step).argmax(axis=1)  # (sequences, vocab) -> (sequences,)
        new = [[int(token)] for token in chosen]
        ids = [old + tokens for old, tokens in zip(ids, new)]
    for sequence in sequences:
        engine.close(sequence)

    for prompt, tokens in zip(prompts, ids):
        print(repr(model.tokenizer.decode(tokens, skip_special=True)))
        alone = model.generate(prompt, max_tokens=16, temperature=0)
        list(alone)
        assert np.array_equal(tokens[-16:][: len(alone.ids)], alone.ids)


if __name__ == "__main__":
    main(sys.argv[1:])

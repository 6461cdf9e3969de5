"""Prefill and decode speed of a loaded model, and what it means against the machine."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np

from tilewright.generate.engine import Work
from tilewright.generate.model import Model

__all__ = ["Speed", "decode_bytes", "measure"]


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one kind of work, over several repetitions."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, rates: list[float]) -> Speed:
        return cls(statistics.median(rates), min(rates), max(rates))


def measure(
    model: Model, prompt: int, generate: int, repetitions: int, context: int = 128
) -> tuple[Speed | None, Speed | None]:
    """(prefill of ``prompt`` tokens, decode of ``generate`` tokens after ``context`` of them).

    Ids are seeded random ones: speed does not depend on them. A warm-up of both comes first, so
    compiling is not counted. None for a part that is switched off with 0.
    """
    engine = model.engine
    rng = np.random.default_rng(0)
    ids = rng.integers(0, model.config.vocab_size, max(prompt, context, 1)).astype(np.int32)
    rates: tuple[list[float], list[float]] = ([], [])
    for repetition in range(repetitions + 1):
        if prompt:
            sequence = engine.open()
            start = time.perf_counter()
            engine.feed(sequence, ids[:prompt])
            seconds = time.perf_counter() - start
            engine.close(sequence)
            if repetition:
                rates[0].append(prompt / seconds)
        if generate:
            sequence = engine.open()
            engine.feed(sequence, ids[:context])
            steps = generate if repetition else 2
            start = time.perf_counter()
            for i in range(steps):
                engine.step([Work(sequence, ids[i % len(ids) : i % len(ids) + 1])])
            seconds = time.perf_counter() - start
            engine.close(sequence)
            if repetition:
                rates[1].append(steps / seconds)
    return (
        Speed.of(rates[0]) if rates[0] else None,
        Speed.of(rates[1]) if rates[1] else None,
    )


def decode_bytes(model: Model, context: int) -> int:
    """Bytes that one decoded token must read: every matrix once, and the cache so far."""
    return model.matrix_bytes + model.config.memory_bytes(context)

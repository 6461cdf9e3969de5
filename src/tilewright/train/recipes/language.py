"""What recipes for language models share: options, the run itself, samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.data.loader import RandomWindows, Windows
from tilewright.dtypes import bf16
from tilewright.nn import functional as F
from tilewright.nn.module import Module
from tilewright.nn.precision import autocast
from tilewright.optim import AdamW, clip_grad_norm, schedules
from tilewright.tensor.compiled import compile
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import asarray
from tilewright.tensor.modes import no_grad
from tilewright.train.loop import RunOptions, Trainer
from tilewright.train.recipes.text import TextData

__all__ = [
    "LanguageOptions",
    "evaluation",
    "language_loss",
    "learning_rate",
    "sample",
    "train_language_model",
]


@dataclass(frozen=True)
class LanguageOptions:
    """How a language model is trained; the defaults are those of nanoGPT for Shakespeare.

    Attributes:
        context: tokens of a window.
        batch: windows of a batch; ``accumulate`` of them make a step.
        steps: of the optimiser.
        lr: AdamW's learning rate after ``warmup`` steps; a cosine brings it down to ``min_lr``
            (default a tenth) at the last.
        beta2: AdamW's second decay rate; the first is 0.9.
        weight_decay: of matrices.
        clip: the most that the norm of the gradients may be; 0: no limit.
        precision: ``"f32"``, or ``"bf16"`` for products of matrices and attention.
        evaluate_every: steps between measurements of the validation loss; 0: never.
        evaluate_batches: at most so many batches, from the beginning of the validation text.
        seed: of initial weights, dropout and the order of windows.
    """

    context: int = 256
    batch: int = 64
    accumulate: int = 1
    steps: int = 5000
    lr: float = 1e-3
    min_lr: float | None = None
    warmup: int = 100
    beta2: float = 0.99
    weight_decay: float = 0.1
    clip: float = 1.0
    precision: str = "f32"
    evaluate_every: int = 250
    evaluate_batches: int = 50
    checkpoint_every: int = 250
    log_every: int = 1
    seed: int = 1337

    def __post_init__(self) -> None:
        if self.precision not in ("f32", "bf16"):
            raise ValueError(f"precision is f32 or bf16, got {self.precision!r}")
        for name in ("context", "batch", "accumulate", "evaluate_batches", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is 1 at least, got {getattr(self, name)}")
        for name in ("steps", "warmup", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is 0 at least, got {getattr(self, name)}")


def learning_rate(options: LanguageOptions) -> schedules.Schedule:
    """Warm-up, then a cosine."""
    low = options.lr / 10 if options.min_lr is None else options.min_lr
    rest = max(options.steps - options.warmup, 1)
    return schedules.warmup(schedules.cosine(options.lr, rest, low), options.warmup)


def language_loss(precision: str) -> Callable[[Module, Tensor, Tensor], Tensor]:
    """``(module, ids, next ids) -> mean cross entropy`` in nats per token."""

    def loss(module: Module, x: Tensor, y: Tensor) -> Tensor:
        computing: AbstractContextManager[None] = nullcontext()
        if precision == "bf16":
            computing = autocast(bf16)
        with computing:
            logits = module(x)
        return F.cross_entropy(logits, y)

    return loss


def evaluation(
    loss: Callable[..., Tensor], tokens: np.ndarray, batch: int, context: int, most: int
) -> Callable[[Module], Mapping[str, float]]:
    """A function that gives a module's mean loss over windows of ``tokens``, ``val_loss``."""
    batch = min(batch, (len(tokens) - 1) // context)
    windows = Windows(tokens, batch, context, drop_last=True)
    compiled: dict[int, Callable[..., Tensor]] = {}

    def measure(module: Module) -> Mapping[str, float]:
        if id(module) not in compiled:
            compiled[id(module)] = compile(lambda x, y: loss(module, x, y))
        losses = []
        with no_grad():
            for number, (x, y) in enumerate(windows):
                if number == most:
                    break
                losses.append(float(compiled[id(module)](asarray(x), asarray(y)).item()))
        return {"val_loss": math.fsum(losses) / len(losses)}

    return measure


def train_language_model(
    module: Module,
    text: TextData,
    options: LanguageOptions,
    folder: str | None,
    *,
    resume: bool = False,
    quiet: bool = False,
    describe: Mapping[str, Any] | None = None,
    trained: Sequence[tuple[str, Tensor]] | None = None,
    state: Module | None = None,
    stop_at: int | None = None,
) -> dict[str, float]:
    """Train; returns the last losses. See :class:`tilewright.train.loop.Trainer`.

    Ctrl-C raises `KeyboardInterrupt` once the step is finished and a checkpoint saved.

    Args:
        trained: the parameters to train; default all of ``module``.
        state: what checkpoints save; default ``module``.
        stop_at: end this sitting at a step before the last.
    """
    loss = language_loss(options.precision)
    optimizer = AdamW(
        list(module.named_parameters()) if trained is None else trained,
        lr=options.lr,
        betas=(0.9, options.beta2),
        weight_decay=options.weight_decay,
        decay_vectors=False,
    )
    loader = RandomWindows(text.train, options.batch, options.context, seed=options.seed)
    trainer = Trainer(
        module,
        optimizer,
        loss,
        loader,
        RunOptions(
            folder,
            options.steps if stop_at is None else min(stop_at, options.steps),
            accumulate=options.accumulate,
            evaluate_every=options.evaluate_every,
            checkpoint_every=options.checkpoint_every or max(options.steps, 1),
            log_every=options.log_every,
            resume=resume,
            quiet=quiet,
        ),
        schedule=learning_rate(options),
        clip=(lambda params: clip_grad_norm(params, options.clip)) if options.clip else None,
        evaluate=evaluation(
            loss, text.validation, options.batch, options.context, options.evaluate_batches
        ),
        describe=describe,
        state=state,
    )
    results = trainer.fit()
    if trainer.interrupted:
        raise KeyboardInterrupt
    return results


def sample(
    module: Module,
    prompt: Sequence[int],
    count: int,
    context: int,
    *,
    temperature: float = 0.8,
    top_k: int = 40,
    seed: int = 0,
) -> Iterator[int]:
    """``count`` tokens after ``prompt``, each from a whole pass over the last ``context`` ones.

    For models that have no faster way here; `tilewright.load` is for those that do.
    """
    step = compile(lambda ids, at: module(ids)[0, at])
    rng = np.random.default_rng(seed)
    ids = list(prompt)
    module.eval()
    with no_grad():
        for _ in range(count):
            last = ids[-context:]
            row = np.zeros((1, context), np.int32)
            row[0, : len(last)] = last
            at = asarray(np.int64(len(last) - 1))
            logits = step(asarray(row), at).numpy().astype(np.float64)
            if temperature <= 0:
                ids.append(int(logits.argmax()))
            else:
                kept = np.argsort(-logits, kind="stable")[: top_k or None]
                scaled = np.exp((logits[kept] - logits[kept[0]]) / temperature)
                ids.append(int(kept[np.searchsorted(scaled.cumsum() / scaled.sum(), rng.random())]))
            yield ids[-1]

"""The training loop: compiled steps, records, checkpoints, and a clean end whatever happens.

A run lives in a folder: ``record.jsonl``, ``loss.png`` and ``checkpoints``. Resuming continues bit
for bit: parameters, optimiser state, random state and the loader's position are all saved.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.data.loader import Loader
from tilewright.data.prefetch import Prefetch
from tilewright.dtypes import bf16
from tilewright.errors import BoundsError, TrainingError
from tilewright.nn.module import Module
from tilewright.optim.optimizer import Optimizer
from tilewright.tensor import random
from tilewright.tensor.compiled import compile
from tilewright.tensor.core import Tensor, realize
from tilewright.tensor.creation import asarray, zeros
from tilewright.tensor.modes import no_grad
from tilewright.train.checkpoint import Checkpoint, Checkpoints, list_checkpoints
from tilewright.train.guard import Interrupts, check_loss
from tilewright.train.plot import plot_record
from tilewright.train.progress import Progress
from tilewright.train.record import Record

__all__ = ["RunOptions", "Trainer", "tensors_of"]

Batch = Sequence[np.ndarray]
LossFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class RunOptions:
    """What a run does besides the steps.

    Attributes:
        folder: where its files go; None keeps nothing on the disk.
        steps: optimiser steps of the whole run.
        accumulate: batches per step; their gradients are averaged.
        evaluate_every: steps between evaluations (and one at the end); 0: never.
        checkpoint_every: steps between checkpoints (and one at the end); 0: at the end only.
        keep: how many of the last checkpoints stay; the best one always does.
        log_every: steps between entries of the record.
        resume: go on from the folder's last good checkpoint, if there is one.
        compiled: False runs every step dynamically: the same bits, more slowly.
        quiet: no progress line.
        counts: what batches are counted in, for speeds: ``"tokens"``, ``"images"``.
    """

    folder: str | None
    steps: int
    accumulate: int = 1
    evaluate_every: int = 0
    checkpoint_every: int = 250
    keep: int = 3
    log_every: int = 1
    resume: bool = False
    compiled: bool = True
    quiet: bool = False
    counts: str = "tokens"


class Trainer:
    """Trains a module.

    Args:
        module: what is trained.
        optimizer: changes its parameters; its learning rate follows ``schedule``.
        loss: ``(module, *batch) -> 0-d tensor``.
        loader: gives batches, tuples of arrays; has ``state()`` and ``restore()``.
        options: see :class:`RunOptions`.
        schedule: the learning rate of a step, counted from 0.
        clip: called with the parameters once their gradients are there; part of the step.
        after_step: called after the update, part of the step (a moving average of weights).
        evaluate: ``module -> {"val_loss": ...}``, with the module in evaluation mode.
        extra_state: further tensors to save and restore, by name.
        describe: JSON that checkpoints carry along (the configuration that rebuilds the module).
        tokens: what a batch counts for in the progress line; default its first array's size.
        state: the module whose tensors checkpoints save; default ``module``.

    Attributes:
        step: steps done.
        losses: of the steps done in this sitting.
        interrupted: the signal's name when Ctrl-C (or SIGTERM) ended :meth:`fit` early.
    """

    def __init__(
        self,
        module: Module,
        optimizer: Optimizer,
        loss: LossFunction,
        loader: Loader[Any],
        options: RunOptions,
        *,
        schedule: Callable[[int], float] | None = None,
        clip: Callable[[list[Tensor]], Any] | None = None,
        after_step: Callable[[], None] | None = None,
        evaluate: Callable[[Module], Mapping[str, float]] | None = None,
        extra_state: Mapping[str, Tensor] | None = None,
        describe: Mapping[str, Any] | None = None,
        tokens: Callable[[Batch], int] | None = None,
        state: Module | None = None,
    ) -> None:
        if options.steps < 0 or options.accumulate < 1:
            raise TrainingError(
                f"a run wants steps >= 0 and accumulate >= 1, got {options.steps} and "
                f"{options.accumulate}"
            )
        self.module, self.optimizer, self.loader, self.options = module, optimizer, loader, options
        self._loss = loss
        self._schedule, self._clip, self._after = schedule, clip, after_step
        self._evaluate = evaluate
        self._extra = dict(extra_state or {})
        self._describe = dict(describe or {})
        self._state = module if state is None else state
        self._tokens = tokens or (lambda batch: int(np.asarray(batch[0]).size))
        self.step = 0
        self.interrupted: str | None = None
        self.losses: list[float] = []
        self._whole = compile(self._whole_step) if options.compiled else self._whole_step
        self._gather = compile(self._gradients) if options.compiled else self._gradients
        self._update = compile(self._apply_sums) if options.compiled else self._apply_sums
        # where the gradients of a step's batches add up; zeros between steps
        self._sums: list[Tensor] = []
        if options.accumulate > 1:
            self._sums = [zeros(p.shape, dtype=p.dtype) for p in optimizer.params]
            realize(*self._sums)

    # what a step is made of

    def _gradients(self, *batch: Tensor) -> Tensor:
        """Add a batch's gradients, over the number of batches, to the sums."""
        self.optimizer.zero_grad()
        loss = self._loss(self.module, *batch)
        (loss / self.options.accumulate).backward()
        with no_grad():
            for p, total in zip(self.optimizer.params, self._sums):
                if p.grad is not None:
                    total.assign(total + p.grad.detach())
        self.optimizer.zero_grad()
        return loss

    def _apply_sums(self) -> None:
        for p, total in zip(self.optimizer.params, self._sums):
            p.grad = total.detach()
        self._apply()
        for total in self._sums:
            total.assign(zeros(total.shape, dtype=total.dtype))

    def _apply(self) -> None:
        if self._clip is not None:
            self._clip(self.optimizer.params)
        self.optimizer.step()
        if self._after is not None:
            self._after()
        self.optimizer.zero_grad()

    def _whole_step(self, *batch: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = self._loss(self.module, *batch)
        loss.backward()
        self._apply()
        return loss

    def _one(self, batches: Iterator[Batch]) -> tuple[float, int]:
        """Do one step; the mean loss and what its batches count for."""
        if self._schedule is not None:
            self.optimizer.lr = self._schedule(self.step)
        if self.options.accumulate == 1:
            batch = self._next(batches)
            loss = self._whole(*[asarray(a, copy=False) for a in batch])
            return float(loss.item()), self._tokens(batch)
        total, count = 0.0, 0
        try:
            for _ in range(self.options.accumulate):
                batch = self._next(batches)
                total += float(self._gather(*[asarray(a, copy=False) for a in batch]).item())
                count += self._tokens(batch)
        except BaseException:  # the next step begins with none of this one's gradients
            for part in self._sums:
                part.assign(zeros(part.shape, dtype=part.dtype))
            raise
        self._update()
        return total / self.options.accumulate, count

    def _next(self, batches: Iterator[Batch]) -> Batch:
        batch = next(batches, None)
        if batch is None:
            raise TrainingError(
                f"the data ended after step {self.step} of {self.options.steps}: a loader for "
                "training goes on without end (epochs=None)"
            )
        if isinstance(batch, Mapping) or not isinstance(batch, Sequence):
            raise TrainingError(
                f"batches are tuples of arrays, the loader gave a {type(batch).__name__}: give it "
                "a tuple of arrays, or a transform that makes one"
            )
        return batch

    # the run

    def fit(self) -> dict[str, float]:
        """Train to the end (or Ctrl-C); returns the last loss and evaluation.

        After Ctrl-C the step that runs is finished and a checkpoint saved; see ``interrupted``.

        Raises:
            TrainingError: the loss is not finite, a batch has ids that the model does not have, or
                the disk said no; checkpoints stay as they were.
        """
        if self.options.folder is None:
            with Interrupts() as interrupts:
                return self._run(interrupts, None, None)
        folder = self.options.folder
        with Checkpoints(os.path.join(folder, "checkpoints"), keep=self.options.keep) as saved:
            found = saved.latest() if self.options.resume else None
            if found is not None:
                self._restore(found)
            elif not self.options.resume and list_checkpoints(saved.folder):
                raise TrainingError(
                    f"{folder} holds a run already: resume it, or choose another folder"
                )
            begun = self.step if self.options.resume else None
            with Record(os.path.join(folder, "record.jsonl"), resume_at=begun) as record:

                def heard(name: str) -> None:
                    print(f"\n{name}: stopping after this step", file=sys.stderr)

                with Interrupts(heard) as interrupts:
                    results = self._run(interrupts, saved, record)
                if self.interrupted:
                    print(f"stopped at step {self.step}; resume the run to go on", file=sys.stderr)
        if self.losses or found is not None:
            plot_record(os.path.join(folder, "record.jsonl"), os.path.join(folder, "loss.png"))
        return results

    def _run(
        self, interrupts: Interrupts, saved: Checkpoints | None, record: Record | None
    ) -> dict[str, float]:
        options, results = self.options, {}
        unit = "tok" if options.counts == "tokens" else options.counts
        self.module.train()
        with (
            open(os.devnull, "w") if options.quiet else nullcontext(sys.stderr) as stream,
            Progress(options.steps, done=self.step, stream=stream, unit=unit) as progress,
            Prefetch(self.loader) as batches,
        ):
            last_saved = self.step if saved is not None and self.step else -1
            while self.step < options.steps and interrupts.requested is None:
                try:
                    loss, count = self._one(batches)
                except BoundsError as error:  # a label or a token that the model does not have
                    raise TrainingError(
                        f"step {self.step + 1}: {error}; nothing was changed by this step. The "
                        f"data does not fit the model; {_last_good(saved)}"
                    ) from error
                if not math.isfinite(loss):
                    self._refuse(loss, saved)
                self.step += 1
                self.losses.append(loss)
                results["loss"] = loss
                progress.update(self.step, tokens=count, loss=loss)
                ending = self.step == options.steps
                shown: dict[str, float] = {}
                if options.evaluate_every and (ending or self.step % options.evaluate_every == 0):
                    shown = self._evaluated()
                    results |= shown
                    words = "  ".join(f"{k} {v:.4f}" for k, v in shown.items())
                    if words:
                        progress.note(f"step {self.step}: {words}")
                if record is not None and (ending or shown or self.step % options.log_every == 0):
                    lr = float(self.optimizer.lr.item())
                    speed = {f"{options.counts}_per_s": progress.tokens_per_s()}
                    record.log(self.step, loss=loss, lr=lr, **speed, **shown)
                every = options.checkpoint_every or options.steps
                if saved is not None and (ending or self.step % every == 0):
                    self._save(saved, batches.state(), shown.get("val_loss"))
                    last_saved = self.step
            if saved is not None and last_saved != self.step and self.step:
                self._save(saved, batches.state(), None)
        if self.step < options.steps:
            self.interrupted = interrupts.requested
        return results

    def _refuse(self, loss: float, saved: Checkpoints | None) -> None:
        last = list_checkpoints(saved.folder) if saved is not None else []
        path = last[-1][1] if last else None
        check_loss(self.step + 1, loss, lr=float(self.optimizer.lr.item()), checkpoint=path)

    def _evaluated(self) -> dict[str, float]:
        if self._evaluate is None:
            return {}
        self.module.eval()
        try:
            return dict(self._evaluate(self.module))
        finally:
            self.module.train()

    # state

    def _tensors(self) -> dict[str, Tensor]:
        found = {f"model.{k}": v for k, v in self._state.state_dict().items()}
        found |= {f"optimizer.{k}": v for k, v in self.optimizer.state_dict().items()}
        found |= {f"extra.{k}": v for k, v in self._extra.items()}
        found["random.state"] = random.default().state
        return found

    def _save(self, saved: Checkpoints, position: Any, metric: float | None) -> None:
        state = {"loader": position, "describe": self._describe}
        tensors = tensors_of(self._tensors())
        odd = next(
            (k for k, v in tensors.items() if k.startswith("model.") and not _finite(v)), None
        )
        if odd is not None:  # the loss was computed before the update, and could not tell
            raise TrainingError(
                f"step {self.step}: {odd.removeprefix('model.')} has values that are not finite "
                f"after the update, so no checkpoint was written; {_last_good(saved)}. The "
                f"learning rate was "
                f"{float(self.optimizer.lr.item()):.3g}"
            )
        saved.save(self.step, tensors, state, metric=metric)

    def _restore(self, found: Checkpoint) -> None:
        own = self._tensors()
        odd = sorted(set(own) ^ set(found.tensors))
        if odd:
            raise TrainingError(
                f"{found.path} is of another model or optimiser; odd names: {', '.join(odd[:6])}"
            )
        for name, tensor in own.items():
            array = found.tensors[name]
            value = asarray(array, copy=True)
            if found.dtypes[name] is bf16:
                from tilewright.tensor.creation import from_numpy

                value = from_numpy(array, bf16)
            if value.shape != tensor.shape:
                raise TrainingError(
                    f"{found.path}: {name} has shape {value.shape}, the model wants {tensor.shape}"
                )
            tensor.assign(value)
        self.loader.restore(found.state["loader"])
        self.step = found.step


def _last_good(saved: Checkpoints | None) -> str:
    there = list_checkpoints(saved.folder) if saved is not None else []
    return f"the last good checkpoint is {there[-1][1]}" if there else "there is no checkpoint yet"


def _finite(value: Any) -> bool:
    """Whether every number of an array, as `tensors_of` gives it, is finite."""
    if isinstance(value, tuple):  # bfloat16 bits: the exponent of infinities and NaNs is all ones
        return not ((value[0] & 0x7F80) == 0x7F80).any()
    return value.dtype.kind != "f" or bool(np.isfinite(value).all())


def tensors_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arrays as checkpoints want them: bfloat16 as bits with its dtype."""
    arrays: dict[str, Any] = {}
    for name, tensor in state.items():
        array = np.ascontiguousarray(tensor.realize().buffer().numpy()).reshape(tensor.shape)
        arrays[name] = (array, bf16) if tensor.dtype is bf16 else array
    return arrays

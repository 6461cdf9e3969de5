"""The training loop: the same bits however a run is computed, cut, or killed; clean ends."""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.data.loader import Batches
from tilewright.errors import TrainingError
from tilewright.nn import functional as F
from tilewright.nn.layers import Dropout, Linear, ReLU
from tilewright.nn.module import Module, Sequential
from tilewright.optim import EMA, AdamW, clip_grad_norm, schedules
from tilewright.tensor import random
from tilewright.tensor.core import Tensor
from tilewright.train.checkpoint import latest_checkpoint, list_checkpoints
from tilewright.train.loop import RunOptions, Trainer
from tilewright.train.record import read_record

rng = np.random.default_rng(3)
X = rng.standard_normal((96, 12)).astype(np.float32)
Y = (X @ rng.standard_normal((12, 5)).astype(np.float32)).argmax(1).astype(np.int32)


def loss_of(module: Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(module(x), y)


def trainer(
    folder: Path | None, steps: int = 12, *, batch: int = 16, p: float = 0.2, **options: Any
) -> Trainer:
    """A small classifier with everything that has state: dropout, AdamW, averages, a schedule."""
    random.seed(11)
    module = Sequential(Linear(12, 32), ReLU(), Dropout(p), Linear(32, 5)).realize()
    average = EMA(module.named_parameters(), 0.9)
    settings = {"checkpoint_every": 4, "quiet": True, **options}
    return Trainer(
        module,
        AdamW(module.named_parameters(), lr=1e-2),
        loss_of,
        Batches((X, Y), batch, seed=5),
        RunOptions(None if folder is None else str(folder), steps, **settings),
        schedule=schedules.warmup(schedules.cosine(1e-2, 20, 1e-3), 3),
        clip=lambda params: clip_grad_norm(params, 1.0),
        after_step=average.update,
        extra_state={f"average.{k}": v for k, v in average.state_dict().items()},
        evaluate=lambda m: {"val_loss": float(loss_of(m, Tensor(X), Tensor(Y)).item())},
    )


def bits(one: Trainer) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in one._tensors().items()}


def test_compiled_and_dynamic_steps_have_the_same_bits() -> None:
    one = trainer(None)
    one.fit()
    two = trainer(None, compiled=False)
    two.fit()
    assert one.losses == two.losses
    assert bits(one) == bits(two)
    assert one.losses[-1] < one.losses[0]


def test_any_number_of_threads_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for threads in (1, 2, 3, 4):
        monkeypatch.setenv("TILEWRIGHT_THREADS", str(threads))
        one = trainer(None, 6)
        one.fit()
        found.append((one.losses, bits(one)))
    assert all(other == found[0] for other in found[1:])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resuming_gives_the_bits_of_a_run_that_was_not_cut(tmp_path: Path, accumulate: int) -> None:
    whole = trainer(tmp_path / "whole", accumulate=accumulate, evaluate_every=5)
    results = whole.fit()
    wanted = bits(whole)
    trainer(tmp_path / "cut", 7, accumulate=accumulate, evaluate_every=5).fit()
    rest = trainer(tmp_path / "cut", accumulate=accumulate, evaluate_every=5, resume=True)
    assert rest.fit() == results
    assert bits(rest) == wanted
    assert rest.losses == whole.losses[7:]
    records = [
        [(e["step"], e["loss"], e["lr"]) for e in read_record(tmp_path / name / "record.jsonl")]
        for name in ("whole", "cut")
    ]
    assert records[0] == records[1]
    assert (tmp_path / "cut" / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_accumulated_batches_make_the_step_of_one_big_batch() -> None:
    big = trainer(None, 5, batch=32, p=0.0)
    big.fit()
    small = trainer(None, 5, batch=8, p=0.0, accumulate=4)
    # the same examples in the same order, in smaller batches
    small.loader = Batches((X, Y), 8, seed=5)
    small.fit()
    for name in ("model.0.weight", "model.3.bias"):
        np.testing.assert_allclose(
            small._tensors()[name].numpy(), big._tensors()[name].numpy(), atol=2e-6
        )
    np.testing.assert_allclose(small.losses, big.losses, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"compiled": False}, {"accumulate": 2}])
def test_a_label_that_does_not_exist_ends_the_run(tmp_path: Path, options: dict[str, Any]) -> None:
    options = {"checkpoint_every": 2, **options}
    one = trainer(tmp_path, 12, **options)
    batches = iter(Batches((X, Y), 16, seed=5))
    fifth = [next(batches) for _ in range(5)][-1][0]
    labels = Y.copy()
    labels[np.flatnonzero((fifth[3] == X).all(1))] = 5
    one.loader = Batches((X, labels), 16, seed=5)
    step, last = (3, 2) if "accumulate" in options else (5, 4)
    wanted = rf"step {step}: .*target 5 at position 3 .*step-0000000{last}"
    with pytest.raises(TrainingError, match=wanted):
        one.fit()
    found = latest_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert found.step == last
    clean = trainer(None, step - 1, **options)
    clean.fit()
    left, wanted_bits = bits(one), bits(clean)
    assert left.pop("optimizer.lr") != wanted_bits.pop("optimizer.lr")  # of the step that failed
    assert left == wanted_bits
    assert all(not total.numpy().any() for total in one._sums)


def test_a_loss_that_is_not_a_number_ends_the_run(tmp_path: Path) -> None:
    one = trainer(tmp_path, 12)
    schedule = one._schedule
    assert schedule is not None
    one._schedule = lambda step: math.inf if step == 6 else schedule(step)
    with pytest.raises(TrainingError, match=r"step 8: the loss is nan.*step-00000004"):
        one.fit()
    found = latest_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert found.step == 4
    assert all(np.isfinite(t).all() for t in found.tensors.values())
    rest = trainer(tmp_path, 12, resume=True)
    rest.fit()
    after = bits(rest)
    whole = trainer(None, 12)
    whole.fit()
    assert after == bits(whole)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_weights_that_are_not_numbers_are_not_saved(tmp_path: Path, dtype: str) -> None:
    """The update of step 3 ruins them; its own loss was fine."""
    random.seed(11)
    module = Sequential(Linear(12, 5)).to(dtype).realize()
    one = Trainer(
        module,
        AdamW(module.named_parameters(), lr=1e-2),
        lambda m, x, y: loss_of(m, x.astype(dtype), y),
        Batches((X, Y), 16, seed=5),
        RunOptions(str(tmp_path), 12, checkpoint_every=1, quiet=True),
        schedule=lambda step: math.inf if step == 2 else 1e-2,
    )
    with pytest.raises(TrainingError, match=r"step 3: 0\.weight has .*not finite.*step-00000002"):
        one.fit()
    assert [step for step, _ in list_checkpoints(tmp_path / "checkpoints")] == [1, 2]


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    trainer(tmp_path, 4).fit()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, old[1]))
    try:
        with pytest.raises(TrainingError, match=r"step 8.*last good checkpoint is .*step-00000004"):
            trainer(tmp_path, 12, resume=True, log_every=100).fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    found = latest_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert found.step == 4
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_that_holds_a_run(tmp_path: Path) -> None:
    trainer(tmp_path, 2).fit()
    with pytest.raises(TrainingError, match="holds a run already"):
        trainer(tmp_path, 2).fit()


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    trainer(tmp_path, 2).fit()
    other = trainer(tmp_path, 4, resume=True)
    other._extra = {}
    with pytest.raises(TrainingError, match="another model or optimiser; odd names: extra"):
        other.fit()


def test_data_that_end_too_soon() -> None:
    one = trainer(None, 12)
    one.loader = Batches((X, Y), 16, epochs=1)
    with pytest.raises(TrainingError, match="ended after step 6 of 12"):
        one.fit()


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.train.test_loop import trainer
one = trainer(Path(sys.argv[1]), int(sys.argv[2]), resume=True, checkpoint_every=5)
take = one._one
def slowly(batches):
    if one.step % 3 == 0:
        print(one.step, flush=True)
    return take(batches)
one._one = slowly
one.fit()
print("interrupted" if one.interrupted else "done", flush=True)
"""


def start(folder: Path, steps: int, project: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", RUN, str(folder), str(steps), str(project)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TILEWRIGHT_THREADS": "1"},
    )


def read_until(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().isdigit() and int(line) >= step:
            return
    assert process.stderr is not None
    pytest.fail(f"the run ended before step {step}: {process.stderr.read()[-2000:]}")


def test_killed_and_interrupted_runs_end_with_the_same_bits(tmp_path: Path, project: Path) -> None:
    steps = 900
    for at, how in ((30, signal.SIGKILL), (90, signal.SIGINT)):
        with start(tmp_path, steps, project) as process:
            read_until(process, at)
            if how is signal.SIGKILL:
                time.sleep(0.02)  # anywhere: in a step, in a checkpoint, in a line of the record
            process.send_signal(how)
            out, err = process.communicate(timeout=120)
        if how is signal.SIGINT:
            assert process.returncode == 0, err
            assert "interrupted" in out
            assert "stopping after this step" in err
            assert "resume the run" in err
            stopped = int(err.split("stopped at step ")[1].split(";")[0])
            assert list_checkpoints(tmp_path / "checkpoints")[-1][0] == stopped
        else:
            assert process.returncode == -signal.SIGKILL
    rest = trainer(tmp_path, steps, resume=True, checkpoint_every=0)
    rest.fit()
    after = bits(rest)
    whole = trainer(None, steps)
    whole.fit()
    assert after == bits(whole)
    record = read_record(tmp_path / "record.jsonl")
    assert [(e["step"], e["loss"]) for e in record] == list(enumerate(whole.losses, 1))

"""The pieces together: a run that is killed again and again ends with the bits of one that is not.

The model is a table of bigram logits trained by SGD in NumPy, small enough to be killed often. It
reads through `Prefetch`, saves with `Checkpoints`, and writes a `Record`, as a training loop does.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tilewright.train.checkpoint import latest_checkpoint
from tilewright.train.record import read_record

STEPS = 300

RUN = """
import sys
import numpy as np
from tilewright.data import Prefetch, RandomWindows, open_tokens
from tilewright.train.checkpoint import Checkpoints
from tilewright.train.guard import check_loss
from tilewright.train.record import Record

folder, steps = sys.argv[1], int(sys.argv[2])
tokens = open_tokens(folder + "/tokens.npy", vocab_size=32)
loader = Prefetch(RandomWindows(tokens, 4, 16, seed=5), depth=3)
with Checkpoints(folder + "/run", keep=2) as checkpoints, loader:
    table, velocity, step = np.zeros((32, 32), np.float32), np.zeros((32, 32), np.float32), 0
    found = checkpoints.latest()
    if found is not None:
        table, velocity, step = found.tensors["table"], found.tensors["velocity"], found.step
        loader.restore(found.state["data"])
    record = Record(folder + "/run/record.jsonl", resume_at=step)
    print("ready", flush=True)
    while step < steps:
        x, y = next(loader)
        logits = table[x.ravel()]
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        loss = float(-np.log(weights[np.arange(x.size), y.ravel()]).mean())
        check_loss(step, loss)
        weights[np.arange(x.size), y.ravel()] -= 1
        gradient = np.zeros_like(table)
        np.add.at(gradient, x.ravel(), weights / x.size)
        velocity = np.float32(0.9) * velocity - np.float32(0.3) * gradient
        table = table + velocity
        step += 1
        record.log(step, loss=loss)
        if step % 10 == 0 or step == steps:
            state = {"data": loader.state()}
            checkpoints.save(step, {"table": table, "velocity": velocity}, state, metric=loss)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", RUN, str(folder), str(STEPS)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    stream = np.cumsum(np.random.default_rng(1).integers(0, 3, 5000)) % 32
    results = []
    kills = 0
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        np.save(folder / "tokens.npy", stream.astype(np.uint16))
        chance = random.Random(2)
        while True:
            process = start(folder)
            if name == "killed" and kills < 8:
                time.sleep(chance.uniform(0, 0.06))
                process.kill()
                kills += 1
            status = process.wait(timeout=60)
            assert process.stdout is not None
            process.stdout.close()
            if status == 0:
                break
        found = latest_checkpoint(folder / "run")
        assert found is not None
        record = [(e["step"], e["loss"]) for e in read_record(folder / "run" / "record.jsonl")]
        assert [step for step, _ in record] == list(range(1, STEPS + 1))
        results.append((found.step, found.tensors, record))
    (steps, whole, losses), (_, killed, other_losses) = results
    assert steps == STEPS
    assert losses == other_losses
    assert losses[-1][1] < 0.6 * losses[0][1]  # it did learn
    for tensor in whole:
        assert whole[tensor].tobytes() == killed[tensor].tobytes()

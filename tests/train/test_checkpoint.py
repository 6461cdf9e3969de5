"""Checkpoints survive damage, full disks, and being killed at any moment."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright import dtypes
from tilewright.errors import FormatError, TrainingError
from tilewright.formats.safetensors import read_safetensors, write_safetensors
from tilewright.train.checkpoint import (
    Checkpoints,
    best_checkpoint,
    checkpoint_path,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from tilewright.train.record import Record, read_record

STATE: dict[str, Any] = {
    "rng": {"key": 2**127 + 1, "at": [1, 2]},
    "lr": 0.1 + 0.2,
    "text": "é",
    "none": None,
}


def tensors(step: int, size: int = 100) -> dict[str, Any]:
    return {
        "weight": np.full((size, 3), step, np.float32),
        "half": (np.arange(7, dtype=np.uint16) + step, dtypes.bf16),
        "empty": np.zeros((0, 2), np.float32),
        "none": np.zeros((3, 0), np.float32),
        "count": np.int64(step),
    }


def steps(folder: Path) -> list[int]:
    return [step for step, _ in list_checkpoints(folder)]


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, tensors(5), STATE, step=5, metric=1.25)
    verify_checkpoint(path)
    found = load_checkpoint(path)
    assert (found.step, found.metric, found.state) == (5, 1.25, STATE)
    assert found.dtypes["half"] is dtypes.bf16
    assert found.dtypes["weight"] is dtypes.f32
    for name, wanted in tensors(5).items():
        array = wanted[0] if isinstance(wanted, tuple) else wanted
        assert np.array_equal(found.tensors[name], array)
        assert found.tensors[name].dtype == array.dtype
    assert read_safetensors(path).keys() == tensors(5).keys()  # any reader can have the tensors


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, tensors(5, size=2), {"a": 1}, step=5)
    good = path.read_bytes()
    unnoticed = []
    for at in range(len(good)):
        for flip in (1, 0x80):
            path.write_bytes(good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :])
            try:
                load_checkpoint(path)
            except FormatError:
                with pytest.raises(FormatError):
                    verify_checkpoint(path)
            else:
                unnoticed.append(at)
    assert unnoticed == []
    for size in range(0, len(good), 7):
        path.write_bytes(good[:size])
        with pytest.raises(FormatError):
            load_checkpoint(path)


def test_not_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    write_safetensors(path, {"a": np.zeros(2)})
    with pytest.raises(FormatError, match="is not a checkpoint"):
        load_checkpoint(path)
    for text in ("[]", "{", '{"version": 2}', '{"version": 1, "step": "a", "state": 1}'):
        write_safetensors(
            path, {}, {"tilewright.checkpoint": text, "tilewright.checksum": "00000000"}
        )
        with pytest.raises(FormatError, match=r"version|makes no sense"):
            load_checkpoint(path)


def test_a_state_that_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not JSON"):
        save_checkpoint(tmp_path / "a", {}, {"array": np.zeros(2)}, step=1)
    assert not os.listdir(tmp_path)


def test_last_ones_and_the_best_stay(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        metrics = [3.0, 1.0, 2.0, float("nan"), 2.5, None, 1.0]
        for step, metric in enumerate(metrics, 1):
            path = checkpoints.save(step, tensors(step), {}, metric=metric)
            assert path == checkpoint_path(tmp_path, step)
            assert steps(tmp_path)[-1] == step
        assert steps(tmp_path) == [2, 6, 7]
        assert checkpoints.best() == checkpoint_path(tmp_path, 2)
        last = checkpoints.latest()
        assert last is not None
        assert last.step == 7
    assert best_checkpoint(tmp_path, "max") == checkpoint_path(tmp_path, 2)
    os.unlink(checkpoint_path(tmp_path, 2))
    assert best_checkpoint(tmp_path) == checkpoint_path(tmp_path, 7)


def test_highest_is_best(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1, mode="max") as checkpoints:
        for step, metric in ((1, 0.5), (2, 0.9), (3, 0.7)):
            checkpoints.save(step, tensors(step), {}, metric=metric)
    assert steps(tmp_path) == [2, 3]


def test_no_folder_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nil") is None
    assert best_checkpoint(tmp_path) is None
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpoints(tmp_path, keep=0)


def test_damaged_ones_are_passed_over(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, tensors(step), {})
    path = Path(checkpoint_path(tmp_path, 3))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.truncate(checkpoint_path(tmp_path, 2), 100)
    with pytest.warns(UserWarning, match="taking the one before") as warned:
        found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    assert ["step-00000003" in str(warned[0].message), "step-00000002" in str(warned[1].message)]
    os.truncate(checkpoint_path(tmp_path, 1), 0)
    with (
        pytest.warns(UserWarning, match="taking the one before"),
        pytest.raises(FormatError, match="every checkpoint is damaged"),
    ):
        latest_checkpoint(tmp_path)


def test_going_back_sets_later_ones_aside(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(10, tensors(10), {})
        checkpoints.save(5, tensors(5), {})
        assert steps(tmp_path) == [5]
        found = checkpoints.latest()
        assert found is not None
        assert found.step == 5
    abandoned = checkpoint_path(tmp_path, 10) + ".abandoned"
    assert load_checkpoint(abandoned).step == 10


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with Checkpoints(tmp_path), pytest.raises(TrainingError, match="another process"):
        Checkpoints(tmp_path)
    Checkpoints(tmp_path).close()
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(TrainingError, match="cannot train in this folder"):
        Checkpoints(file)


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: the system refuses half way."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tensors(1), {})
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, old[1]))
        try:
            with pytest.raises(TrainingError, match=r"step 2 .*last good checkpoint is .*00001"):
                checkpoints.save(2, tensors(2, size=1 << 20), {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            signal.signal(signal.SIGXFSZ, handler)
        assert steps(tmp_path) == [1]
        assert not list(tmp_path.glob(".*.tmp"))
        found = checkpoints.latest()
        assert found is not None
        assert found.step == 1


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_no_space_at_any_call(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            with pytest.raises(TrainingError, match=r"No space left.*there is none yet"):
                checkpoints.save(1, tensors(1), {})
        assert steps(tmp_path) == []
        checkpoints.save(1, tensors(1), {})
        assert steps(tmp_path) == [1]


def test_interrupted_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tensors(1), {})
        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(2, tensors(2), {})
        assert steps(tmp_path) == [1]
        assert not list(tmp_path.glob(".*.tmp"))


RUN = """
import sys
import numpy as np
from tilewright.train.checkpoint import Checkpoints
from tilewright.train.record import Record

folder = sys.argv[1]
with Checkpoints(folder, keep=2) as checkpoints:
    found = checkpoints.latest()
    step = found.step if found else 0
    if found:
        assert (found.tensors["weight"] == step).all() and found.state == {"step": step}
    record = Record(folder + "/record.jsonl", resume_at=step)
    print("ready", flush=True)
    while True:
        step += 1
        record.log(step, loss=1.0 / step)
        if step % 3 == 0:
            checkpoints.save(
                step, {"weight": np.full(60_000, step, np.float32)}, {"step": step}, metric=-step
            )
            print(step, flush=True)
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Ten runs in one folder, each resumed from the one before and killed without warning."""
    rng = random.Random(4)
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", RUN, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", "the run could not be resumed"
        time.sleep(rng.uniform(0, 0.08))
        process.kill()
        said = [int(line) for line in process.stdout.read().split()]
        process.wait()
        process.stdout.close()
        found = latest_checkpoint(tmp_path)  # every file under its own name is whole: no warning
        if said:
            assert found is not None
            assert found.step >= said[-1]
        if found is not None:
            assert (found.tensors["weight"] == found.step).all()
            logged = [entry["step"] for entry in read_record(tmp_path / "record.jsonl")]
            assert logged == list(range(1, len(logged) + 1))
            assert len(logged) >= found.step
    assert found is not None
    Checkpoints(tmp_path).close()
    assert not list(tmp_path.glob(".step*.tmp")), "left-overs of killed writers are cleared"
    with Record(tmp_path / "record.jsonl", resume_at=found.step):
        pass
    assert read_record(tmp_path / "record.jsonl")[-1]["step"] == found.step

"""The record of a run: written at once, resumed exactly, readable whatever happened."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from tilewright.errors import FormatError, TrainingError
from tilewright.train.record import Record, read_record, series


def test_lines_are_on_the_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Record(path) as record:
        record.log(1, loss=np.float32(0.5), lr=3e-4, tokens_per_s=1e5)
        assert json.loads(path.read_text()).keys() == {
            *("step", "loss", "lr", "tokens_per_s", "wall")
        }
        record.log(2, val_loss=[1.5, math.inf], note="Grüße", wall=7.0)
        entries = read_record(path)
    assert [e["step"] for e in entries] == [1, 2]
    assert entries[0]["loss"] == 0.5
    assert 0 <= entries[0]["wall"] < 5
    assert entries[1] == {"step": 2, "val_loss": [1.5, math.inf], "note": "Grüße", "wall": 7.0}


def test_what_json_lacks(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Record(path) as record:
        record.log(1, loss=float("nan"), low=-np.inf, high={"x": (math.inf, 1)}, wall=0)
    strict = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert strict == {
        "step": 1,
        "loss": "NaN",
        "low": "-Infinity",
        "high": {"x": ["Infinity", 1]},
        "wall": 0,
    }
    entry = read_record(path)[0]
    assert math.isnan(entry["loss"])
    assert (entry["low"], entry["high"]) == (-math.inf, {"x": [math.inf, 1]})


def test_series(tmp_path: Path) -> None:
    entries = [{"step": 1, "loss": 3}, {"step": 1, "val_loss": 4.0}, {"step": 2, "loss": 2.5}]
    assert series(entries, "loss") == ([1, 2], [3.0, 2.5])
    assert series(entries, "nil") == ([], [])


def test_resuming_cuts_off_what_will_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Record(path) as record:
        for step in range(1, 8):
            record.log(step, loss=1 / step, wall=100.0 * step)
            record.log(step, val_loss=step, wall=100.0 * step)
    with path.open("ab") as file:
        file.write(b'{"step": 8, "lo')
    assert len(read_record(path)) == 14
    with Record(path, resume_at=5) as record:
        assert 500 <= record.wall < 505
        record.log(6, loss=9.0)
    entries = read_record(path)
    assert [e["step"] for e in entries] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert entries[-1]["loss"] == 9.0
    assert 500 <= entries[-1]["wall"] < 505
    with Record(path, resume_at=0):
        assert path.read_bytes() == b""


def test_resuming_without_a_record_begins_one(tmp_path: Path) -> None:
    with Record(tmp_path / "r", resume_at=3) as record:
        record.log(4, loss=1.0)
    assert len(read_record(tmp_path / "r")) == 1


def test_an_old_record_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "r"
    Record(path).close()
    with pytest.raises(TrainingError, match="exists: resume"):
        Record(path)
    with pytest.raises(TrainingError, match="cannot be written"):
        Record(tmp_path / "nil" / "r")


@pytest.mark.parametrize("damage", [b"{}\n", b"\xff\n", b"[1]\n", b'{"step": "1"}\n', b"\n"])
def test_damage_is_named(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_bytes(b'{"step": 1}\n' + damage + b'{"step": 3}\n')
    with pytest.raises(FormatError, match="line 2 is no record"):
        read_record(path)
    with pytest.raises(FormatError, match="line 2 is no record"):
        Record(path, resume_at=3)


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with Record(path) as record:
        record.log(1, loss=1.0)
        size = path.stat().st_size
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, old[1]))  # half a line fits
        try:
            with pytest.raises(TrainingError, match=os.strerror(errno.EFBIG)):
                record.log(2, loss=1.0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            signal.signal(signal.SIGXFSZ, handler)
        assert path.stat().st_size == size
        record.log(2, loss=3.0)
    assert [e["step"] for e in read_record(path)] == [1, 2]

"""Files appear whole or not at all; what killed writers leave is cleared away."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from tilewright.formats.atomic import atomic_file, remove_leftovers


def test_the_new_content_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_whatever_is_raised_the_old_content_stays(
    error: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_the_systems_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nil"), atomic_file(tmp_path / "nil" / "a"):
        pass
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*/a'"),
        atomic_file(tmp_path / "a"),
    ):
        raise full
    assert not os.listdir(tmp_path)


def test_left_overs(tmp_path: Path) -> None:
    hexes = "0123456789abcdef"
    names = [f".step-1.bin.{hexes}.tmp", f".other.bin.{hexes}.tmp", "step-1.bin", ".step-1.bin.tmp"]
    for name in names:
        (tmp_path / name).touch()
    removed = remove_leftovers(tmp_path, re.compile(r"step-\d+\.bin"))
    assert removed == [str(tmp_path / names[0])]
    assert sorted(os.listdir(tmp_path)) == sorted(names[1:])

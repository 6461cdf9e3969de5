"""The disk cache: atomic, checked, shared by processes."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from tilewright.targets.cpu.cache import DiskCache, cache_key, code_fingerprint
from tilewright.targets.cpu.machine import Machine

KEY = "ab" + "0" * 62
DATA = bytes(range(256)) * 40


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_round_trip(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    assert cache.get(KEY) is None
    cache.put(KEY, DATA)
    cache.put(KEY[::-1], b"")
    again = DiskCache(tmp_path)
    assert again.get(KEY) == DATA
    assert again.get(KEY[::-1]) == b""
    assert [p.suffix for p in files(tmp_path)] == [".o", ".o"]


def test_no_folder_keeps_nothing() -> None:
    cache = DiskCache(None)
    cache.put(KEY, DATA)
    assert cache.get(KEY) is None
    assert cache.prune() == 0


def test_damage_is_detected_and_rebuilt(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    cache.put(KEY, DATA)
    path = cache.path(KEY)
    whole = path.read_bytes()
    damaged = [whole[:n] for n in (0, 1, 19, 40, 59, 60, 61, len(whole) - 1)]
    damaged += [whole + b"x", b"\0" * len(whole)]
    for position in (0, 25, 55, 60, 61, len(whole) // 2, len(whole) - 1):
        damaged.append(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
    for raw in damaged:
        path.write_bytes(raw)
        assert cache.get(KEY) is None
        assert not path.exists()
        cache.put(KEY, DATA)
        assert cache.get(KEY) == DATA


def test_unwritable_folder_warns_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"not a folder")
    cache = DiskCache(tmp_path / "file")
    with pytest.warns(RuntimeWarning, match="TILEWRIGHT_CACHE"):
        cache.put(KEY, DATA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put(KEY, DATA)
        assert cache.get(KEY) is None


def test_prune_drops_what_was_used_longest_ago(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, limit=3 * (len(DATA) + 60))
    keys = [f"{i:02x}" * 32 for i in range(6)]
    now = time.time()
    for i, key in enumerate(keys):
        cache.put(key, DATA)
        if cache.path(key).exists():
            os.utime(cache.path(key), (now - 3 * 86400 + i, now - 3 * 86400 + i))
    assert cache.get(keys[0]) == DATA  # a use: now the youngest
    young, old = cache.path(keys[5]), cache.path(keys[4])
    for part, age in ((young, 10), (old, 7200)):
        temporary = part.with_name(part.name + ".1-x.part")
        temporary.write_bytes(b"half")
        os.utime(temporary, (now - age, now - age))
    assert cache.prune() <= cache.limit
    kept = [i for i, key in enumerate(keys) if cache.get(key) is not None]
    assert kept == [0, 4, 5]
    parts = [p.name for p in files(tmp_path) if p.suffix == ".part"]
    assert parts == [young.name + ".1-x.part"]  # maybe still being written


def test_key_depends_on_every_part() -> None:
    host = Machine.detect_host()
    oldest = Machine.from_name("x86-64" if host.arch == "x86_64" else "generic")
    keys = [
        cache_key(host, "a", "b"),
        cache_key(host, "ab", ""),
        cache_key(host, "a", "c"),
        cache_key(oldest, "a", "b"),
    ]
    assert len(set(keys)) == 4
    assert cache_key(host, "a", "b") == keys[0]
    assert len(code_fingerprint()) == 64


WRITER = """
import sys
from pathlib import Path
from tilewright.targets.cpu.cache import DiskCache
cache, seed, count = DiskCache(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
key, i, hits = "cd" * 32, 0, 0
print("ready", flush=True)
while i < count:
    cache.put(key, bytes([seed]) * (20000 + 1000 * seed))
    data = cache.get(key)
    # whoever wrote it, it is one writer's whole data
    assert data is None or (len(set(data)) == 1 and len(data) == 20000 + 1000 * data[0]), len(data)
    hits += data is not None
    i += 1
assert hits > 0
"""


def writer(folder: Path, seed: int, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "error", "-c", WRITER, str(folder), str(seed), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_eight_processes_write_and_read_one_key(tmp_path: Path) -> None:
    processes = [writer(tmp_path, seed, 40) for seed in range(8)]
    for process in processes:
        _, problem = process.communicate(timeout=60)
        assert process.returncode == 0, problem
    assert [p.suffix for p in files(tmp_path)] == [".o"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_kill_during_writes_leaves_nothing_to_trust(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    for seed in range(6):
        process = writer(tmp_path, seed, 10**9)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.005 * seed)
        process.kill()
        process.communicate()
        data = cache.get("cd" * 32)
        assert data is None or (len(set(data)) == 1 and len(data) == 20000 + 1000 * data[0])
    cache.put("cd" * 32, DATA)
    assert cache.get("cd" * 32) == DATA

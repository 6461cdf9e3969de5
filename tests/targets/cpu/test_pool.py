"""The worker pool: every program exactly once, in order, on any number of threads."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tilewright.errors import UnsupportedError
from tilewright.targets.cpu.cache import DiskCache
from tilewright.targets.cpu.codegen import compile_object
from tilewright.targets.cpu.loader import process_loader
from tilewright.targets.cpu.machine import Machine
from tilewright.targets.cpu.pool import MAX_PROGRAMS, Pool
from tilewright.targets.cpu.pool_code import pool_llvm

# count: adds one to counters[p] for each of its programs, without atomics: a program that ran twice
# at once would be lost. check: writes into errors when a counter is not what the launch expects.
KERNELS = """
define void @count(ptr %args, i64 %lo, i64 %hi) {
entry:
  %counters = load ptr, ptr %args
  br label %loop
loop:
  %i = phi i64 [ %lo, %entry ], [ %next, %loop ]
  %p = getelementptr i64, ptr %counters, i64 %i
  %v = load i64, ptr %p
  %w = add i64 %v, 1
  store i64 %w, ptr %p
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %hi
  br i1 %more, label %loop, label %exit
exit:
  ret void
}

define void @copy_reversed(ptr %args, i64 %lo, i64 %hi) {
entry:
  %from = load ptr, ptr %args
  %a1 = getelementptr ptr, ptr %args, i64 1
  %to = load ptr, ptr %a1
  %a2 = getelementptr i64, ptr %args, i64 2
  %n = load i64, ptr %a2
  br label %loop
loop:
  %i = phi i64 [ %lo, %entry ], [ %next, %loop ]
  %last = sub i64 %n, 1
  %mirror = sub i64 %last, %i
  %p = getelementptr i64, ptr %from, i64 %mirror
  %v = load i64, ptr %p
  %w = add i64 %v, 1
  %q = getelementptr i64, ptr %to, i64 %i
  store i64 %w, ptr %q
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %hi
  br i1 %more, label %loop, label %exit
exit:
  ret void
}

declare i32 @usleep(i32)
define void @sleep(ptr %args, i64 %lo, i64 %hi) {
entry:
  br label %loop
loop:
  %i = phi i64 [ %lo, %entry ], [ %next, %loop ]
  %t = load i32, ptr %args
  %r = call i32 @usleep(i32 %t)
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %hi
  br i1 %more, label %loop, label %exit
exit:
  ret void
}
"""


@pytest.fixture(scope="module")
def code() -> dict[str, int]:
    data = compile_object(KERNELS, Machine.detect_host()).data
    return process_loader().load_all(data, ("count", "copy_reversed", "sleep"))


@pytest.fixture(params=[1, 2, 3, 4, 9])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    with Pool(request.param) as pool:
        yield pool


class Counters:
    """A table of ``count`` launches over one row of counters each."""

    def __init__(self, function: int, sizes: list[int], smallest: int = 1) -> None:
        self.sizes = sizes
        self.values = np.zeros((len(sizes), max([*sizes, 1])), np.int64)
        self.args = np.array([row.ctypes.data for row in self.values], np.int64)
        self.table = np.array(
            [[function, self.args.ctypes.data + 8 * i, n, smallest] for i, n in enumerate(sizes)],
            np.int64,
        ).reshape(len(sizes), 4)

    def run(self, pool: Pool) -> None:
        pool.run(self.table.ctypes.data, len(self.sizes))

    def check(self, runs: int) -> None:
        for row, n in zip(self.values, self.sizes):
            assert (row[:n] == runs).all()
            assert not row[n:].any()


SIZES = [
    [],
    [0],
    [1],
    [0, 0, 3, 0],
    [2, 1, 5, 0, 64, 1, 1, 1000, 7],
    [1] * 50,
    [17] * 50,
    [100_000, 3],
]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: f"{len(s)}x{max([0, *s])}")
@pytest.mark.parametrize("smallest", [0, 1, 16])
def test_every_program_runs_once(
    code: dict[str, int], pool: Pool, sizes: list[int], smallest: int
) -> None:
    counters = Counters(code["count"], sizes, smallest)
    for _ in range(200):
        counters.run(pool)
    counters.check(200)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_stress(code: dict[str, int], threads: int) -> None:
    """200,000 launches."""
    counters = Counters(code["count"], [8, 2, 64, 3, 1, 31, 5, 2] * 25)
    with Pool(threads) as pool:
        for _ in range(1000):
            counters.run(pool)
    counters.check(1000)


def test_launches_wait_for_the_ones_before(code: dict[str, int], pool: Pool) -> None:
    """Each launch reverses what the one before wrote; any overlap would show."""
    n, steps = 333, 40
    a, b = np.arange(n), np.zeros(n, np.int64)
    args = np.array(
        [[a.ctypes.data, b.ctypes.data, n], [b.ctypes.data, a.ctypes.data, n]], np.int64
    )
    rows = [[code["copy_reversed"], args.ctypes.data + 24 * (i % 2), n, 1] for i in range(steps)]
    table = np.array(rows, np.int64)
    for run in range(1, 100):
        pool.run(table.ctypes.data, steps)
        assert (a == np.arange(n) + steps * run).all()


@pytest.mark.parametrize("futex", [True, False])
def test_parked_workers_wake_up(code: dict[str, int], futex: bool) -> None:
    microseconds = np.array([20_000], np.int64)
    table = np.array([[code["sleep"], microseconds.ctypes.data, 4, 1]], np.int64)
    with Pool(4, futex=futex) as pool:
        pool.run(table.ctypes.data, 1)
        for _ in range(3):
            time.sleep(0.02)  # long enough for everybody to park
            start = time.perf_counter()
            pool.run(table.ctypes.data, 1)
            # Four sleeps of 20 ms: about 20 ms when four threads take part, 80 when none woke.
            assert time.perf_counter() - start < 0.07


def test_a_parked_caller_wakes_up(code: dict[str, int]) -> None:
    microseconds = np.array([30_000], np.int64)
    table = np.array([[code["sleep"], microseconds.ctypes.data, 5, 1]] * 2, np.int64)
    with Pool(3) as pool:
        for _ in range(3):
            pool.run(table.ctypes.data, 2)


def test_empty_step_latency(code: dict[str, int]) -> None:
    counters = Counters(code["count"], [8, 8, 8, 8])
    with Pool(2) as pool:
        counters.run(pool)
        best = float("inf")
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(50):
                counters.run(pool)
            best = min(best, (time.perf_counter() - start) / 50)
    assert best < 15e-6


def test_callers_from_several_threads_queue(code: dict[str, int]) -> None:
    tables = [Counters(code["count"], [64, 3, 0, 17]) for _ in range(4)]
    with Pool(3) as pool:

        def work(counters: Counters) -> None:
            for _ in range(300):
                counters.run(pool)

        threads = [threading.Thread(target=work, args=(t,)) for t in tables]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for counters in tables:
        counters.check(300)


def test_nobody_waits_for_a_worker_that_got_no_core(
    code: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that never run at all delay nothing: the caller does what nobody claims."""
    monkeypatch.setattr(threading.Thread, "start", lambda thread: None)
    monkeypatch.setattr(threading.Thread, "join", lambda thread: None)
    counters = Counters(code["count"], [64, 1, 1000, 0, 7] * 10)
    with Pool(4) as pool:
        for _ in range(20):
            counters.run(pool)
    counters.check(20)


def test_close_and_use_again(code: dict[str, int]) -> None:
    counters = Counters(code["count"], [100] * 4)
    pool = Pool(3)
    before = threading.active_count()
    for _ in range(3):
        counters.run(pool)
        assert threading.active_count() == before + 2
        pool.close()
        assert threading.active_count() == before
    pool.close()
    counters.check(3)


def test_a_dead_pool_takes_its_workers_along(code: dict[str, int]) -> None:
    before = threading.active_count()
    pool = Pool(4)
    Counters(code["count"], [100]).run(pool)
    del pool
    assert threading.active_count() == before


def test_a_thread_that_does_not_start(
    code: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = Counters(code["count"], [100])
    before = threading.active_count()
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == "tilewright-3":
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    pool = Pool(5)
    with pytest.raises(RuntimeError, match="can't start"):
        counters.run(pool)
    assert threading.active_count() == before
    monkeypatch.undo()
    counters.run(pool)
    counters.check(1)
    pool.close()


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_bad_thread_counts(threads: int) -> None:
    with pytest.raises(UnsupportedError, match="1 to 256 threads"):
        Pool(threads)


def test_programs_are_claimed_up_to_the_last(code: dict[str, int]) -> None:
    """The count of programs is packed into the claim word: its largest value works."""
    no_operation = "define void @nothing(ptr %a, i64 %lo, i64 %hi) {\n  ret void\n}"
    data = compile_object(no_operation, Machine.detect_host()).data
    address = process_loader().load(data, "nothing")
    table = np.array([[address, 0, MAX_PROGRAMS, 1]] * 3, np.int64)
    with Pool(2) as pool:
        pool.run(table.ctypes.data, 3)


@pytest.mark.parametrize("arch", ["x86_64", "aarch64", "riscv64", "unknown"])
@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_text_for_other_platforms_parses(arch: str, platform: str) -> None:
    import llvmlite.binding as llvm

    llvm.parse_assembly(pool_llvm(arch, platform), llvm.create_context()).verify()


SETUP = f"""
import numpy as np, os, sys, time
from tilewright.targets.cpu.codegen import compile_object
from tilewright.targets.cpu.loader import process_loader
from tilewright.targets.cpu.machine import Machine
from tilewright.targets.cpu.pool import Pool
code = compile_object({KERNELS!r}, Machine.detect_host()).data
fns = process_loader().load_all(code, ("count", "sleep"))
values = np.zeros(100, np.int64)
args = np.array([values.ctypes.data, 50_000], np.int64)
count = np.array([[fns["count"], args.ctypes.data, 100, 1]] * 3, np.int64)
sleep = np.array([[fns["sleep"], args.ctypes.data + 8, 60, 1]], np.int64)
pool = Pool(3)
pool.run(count.ctypes.data, 3)
"""


def python(code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SETUP + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "ending", ["", "time.sleep(0.01)", "sys.exit(0)", "keep = [pool]; keep.append(keep)"]
)
def test_interpreter_exit_is_clean(ending: str) -> None:
    process = python(ending)
    out, problem = process.communicate(timeout=30)
    assert (process.returncode, out, problem) == (0, "", "")


def test_exception_ends_the_process() -> None:
    process = python("raise SystemError('as expected')")
    _, problem = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "as expected" in problem


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_during_a_run() -> None:
    process = python("print('go', flush=True)\npool.run(sleep.ctypes.data, 1)\ntime.sleep(20)")
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, problem = process.communicate(timeout=15)
    assert "KeyboardInterrupt" in problem


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_workers_of_its_own() -> None:
    process = python(
        """
import threading, warnings
warnings.simplefilter("ignore")
child = os.fork()
assert child or threading.active_count() == 1
pool.run(count.ctypes.data, 3)
assert (values == 6).all(), values
assert threading.active_count() == 3
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    )
    _, problem = process.communicate(timeout=30)
    assert (process.returncode, problem) == (0, "")


def test_the_pools_code_is_cached(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    environment = {**os.environ, "TILEWRIGHT_CACHE": str(folder)}
    script = "from tilewright.targets.cpu.pool import Pool\nPool(2)"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script], env=environment, check=True)
        assert len(list(folder.rglob("*.o"))) == 1
    cache = DiskCache(folder)
    (entry,) = folder.rglob("*.o")
    assert cache.get(entry.stem) is not None
    entry.write_bytes(b"garbage")
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert cache.get(entry.stem) is not None


def test_ctypes_releases_the_interpreter_during_a_run(code: dict[str, int]) -> None:
    microseconds = np.array([100_000], np.int64)
    table = np.array([[code["sleep"], microseconds.ctypes.data, 1, 1]], np.int64)
    with Pool(1) as pool:
        thread = threading.Thread(target=pool.run, args=(table.ctypes.data, 1))
        thread.start()
        ticks = 0
        while thread.is_alive():
            ticks += 1
        assert ticks > 100

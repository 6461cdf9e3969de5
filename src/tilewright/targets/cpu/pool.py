"""The worker pool: runs launch tables on several threads without Python in between.

A launch table is rows of four 64-bit integers::

    function    address of  void f(void *args, int64 lo, int64 hi): runs programs lo..hi-1
    arguments   address of the argument block
    programs    how many programs the launch has, up to 2**28 - 1; 0 is allowed
    smallest    programs worth claiming at once; a launch of at most this many stays on one thread

Rows run in order; each starts when every program of the one before has completed. Programs are
independent, so the number of threads never changes a result.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from tilewright.config import MAX_THREADS, Settings
from tilewright.errors import UnsupportedError
from tilewright.targets.cpu.cache import DiskCache, cache_key
from tilewright.targets.cpu.codegen import compile_object
from tilewright.targets.cpu.loader import process_loader
from tilewright.targets.cpu.machine import Machine
from tilewright.targets.cpu.pool_code import CONTROL_BYTES, COUNT_BITS, OFFSETS, SYMBOLS, pool_llvm

__all__ = ["MAX_PROGRAMS", "Pool"]

MAX_PROGRAMS: Final = (1 << COUNT_BITS) - 1

_SPIN_MICROSECONDS: Final = 10.0
_IDLE_MICROSECONDS: Final = 200.0
_PATIENCE_MICROSECONDS: Final = 1000.0
_YIELD_MICROSECONDS: Final = 0.5
_STACK_BYTES: Final = 8 << 20


class Pool:
    """``threads`` threads, the calling one among them, that run launch tables.

    Worker threads start with the first run that could use them and stop with :meth:`close`, with
    the pool's death or at interpreter exit. One table runs at a time; concurrent callers queue.
    After ``fork`` the child's pools start workers of their own.

    Args:
        threads: 1 to 256. More than there are cores works, slowly.
        futex: park on a futex where the system has one; ``False`` parks in short sleeps.
    """

    def __init__(self, threads: int, *, futex: bool = True) -> None:
        if not 1 <= threads <= MAX_THREADS:
            raise UnsupportedError(f"a pool wants 1 to {MAX_THREADS} threads, got {threads}")
        self.threads = threads
        self._code = _pool_code(futex, Settings.from_environment().cache_dir)
        self._lock = threading.Lock()
        self._control: np.ndarray | None = None
        self._address = 0
        self._stop: weakref.finalize[..., Pool] | None = None

    def run(self, table: int, entries: int) -> None:
        """Run the ``entries`` rows at address ``table``; returns when all have completed.

        The caller keeps the table, the argument blocks and everything they point at alive.
        """
        with self._lock:
            if self.threads == 1:
                self._code.serial(table, entries)
                return
            if self._control is None:
                self._start()
            self._code.run(self._address, table, entries)

    def close(self) -> None:
        """Stop the workers. A later run starts new ones."""
        with self._lock:
            if self._stop is not None:
                self._stop()
                self._stop = None
            self._control = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        raw = np.zeros(CONTROL_BYTES + 64, np.uint8)
        offset = -raw.ctypes.data % 64
        control = raw[offset : offset + CONTROL_BYTES].view(np.int64)
        # With more threads than cores, whoever waits must let the others run at once.
        crowded = self.threads > _usable_cpus()
        spins = 0 if crowded else int(_SPIN_MICROSECONDS / self._code.pause_microseconds)

        def limit(microseconds: float) -> int:
            after_spins = max(microseconds - _SPIN_MICROSECONDS, 0.0)
            return spins + int(after_spins / _YIELD_MICROSECONDS)

        for name, value in (
            ("finished", 1),
            # A claim takes this share of the programs nobody has claimed.
            ("share", 4 * self.threads),
            ("spins", spins),
            ("idle", limit(_IDLE_MICROSECONDS)),
            ("patience", limit(_PATIENCE_MICROSECONDS)),
        ):
            control[OFFSETS[name] // 8] = value
        address = control.ctypes.data
        workers = [
            # Daemons: they stand in machine code, and must not keep an interpreter from exiting.
            threading.Thread(
                target=self._code.worker, args=(address,), name=f"tilewright-{i}", daemon=True
            )
            for i in range(1, self.threads)
        ]
        before = threading.stack_size(_STACK_BYTES)
        try:
            for worker in workers:
                worker.start()
        except RuntimeError:  # no more threads to be had: send those that started home
            _stop_workers(self._code, control, [w for w in workers if w.ident is not None])
            raise
        finally:
            threading.stack_size(before)
        self._control, self._address = control, address
        self._stop = weakref.finalize(self, _stop_workers, self._code, control, workers)
        _pools().add(self)

    def _forget_workers(self) -> None:
        """In a forked child: the workers stayed behind in the parent."""
        self._lock = threading.Lock()
        self._control = None
        if self._stop is not None:
            self._stop.detach()
            self._stop = None


@dataclass(frozen=True)
class _PoolCode:
    run: Callable[[int, int, int], None]
    worker: Callable[[int], None]
    serial: Callable[[int, int], None]
    stop: Callable[[int], None]
    pause_microseconds: float


@lru_cache(maxsize=4)
def _pool_code(futex: bool, cache_dir: Path | None) -> _PoolCode:
    machine = Machine.detect_host()
    text = pool_llvm(machine.arch, futex=futex)
    cache = DiskCache(cache_dir)
    key = cache_key(machine, "pool", text)
    data = cache.get(key)
    if data is None:
        data = compile_object(text, machine).data
        cache.put(key, data)
    addresses = process_loader().load_all(data, SYMBOLS)

    def function(name: str, *kinds: Any) -> Callable[..., Any]:
        return ctypes.CFUNCTYPE(None, *kinds)(addresses[name])

    spin = function("tilewright_spin", ctypes.c_int64)
    pointer = ctypes.c_void_p
    return _PoolCode(
        run=function("tilewright_run", pointer, pointer, ctypes.c_int64),
        worker=function("tilewright_worker", pointer),
        serial=function("tilewright_serial", pointer, ctypes.c_int64),
        stop=function("tilewright_stop", pointer),
        pause_microseconds=_pause_microseconds(spin),
    )


def _pause_microseconds(spin: Callable[[int], None]) -> float:
    """How long one look-and-pause takes; the best of a few tries, as the machine may be busy."""
    count, best = 2000, float("inf")
    for _ in range(3):
        start = time.perf_counter()
        spin(count)
        best = min(best, time.perf_counter() - start)
    return max(best / count * 1e6, 1e-3)


def _stop_workers(code: _PoolCode, control: np.ndarray, workers: list[threading.Thread]) -> None:
    code.stop(control.ctypes.data)
    for worker in workers:
        worker.join()


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=1)
def _pools() -> weakref.WeakSet[Pool]:
    """The pools with workers, to be told about a fork."""
    pools: weakref.WeakSet[Pool] = weakref.WeakSet()

    def after_fork() -> None:
        for pool in list(pools):
            pool._forget_workers()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=after_fork)
    return pools

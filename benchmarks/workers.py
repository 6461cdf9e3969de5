"""Work in processes of its own, that may crash, hang or eat memory without ending the run."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """How a piece of work ended.

    Attributes:
        kind: ``"done"``, ``"crash"`` (the process ended) or ``"time"``.
        result: what it returned, when done.
        text: what happened, when not.
    """

    kind: str
    result: Any = None
    text: str = ""


@dataclass(frozen=True)
class Limits:
    """What a process may take.

    Attributes:
        seconds: of wall-clock time for one case.
        cpu_seconds: of processor time for one case; None for any.
        more_bytes: of address space beyond what the process begins with.
        cases: after so many a process makes way for a fresh one.
    """

    seconds: float = 60.0
    cpu_seconds: int | None = None
    more_bytes: int = 12 << 30
    cases: int = 250


def _serve(work: Callable[[Any], Any], connection: Any, limits: Limits) -> None:
    """A worker process: cases in, results out. What they print goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    room = pages * resource.getpagesize() + limits.more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while (case := connection.recv()) is not None:
        if limits.cpu_seconds is not None:
            used = resource.getrusage(resource.RUSAGE_SELF)
            most = int(used.ru_utime + used.ru_stime) + 1 + limits.cpu_seconds
            resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))
        connection.send(work(case))
    os._exit(0)


class _Worker:
    """A process that works, and the case it is at."""

    def __init__(self, work: Callable[[Any], Any], limits: Limits) -> None:
        context = multiprocessing.get_context("fork")
        self.limits = limits
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, theirs, limits), daemon=True)
        self.process.start()
        theirs.close()
        self.case: Any = None
        self.since = 0.0
        self.served = 0

    def start(self, case: Any) -> None:
        """Give it a case."""
        self.case, self.since = case, time.monotonic()
        self.served += 1
        self.connection.send(case)

    def outcome(self) -> Outcome | None:
        """How its case ended; None while it is running."""
        try:
            if self.connection.poll():
                return Outcome("done", self.connection.recv())
        except (EOFError, OSError):
            self.process.join()
            status = self.process.exitcode
            if status == -24:  # SIGXCPU
                return Outcome("time", text=f"not done after {self.limits.cpu_seconds} CPU seconds")
            return Outcome("crash", text=f"the process ended with status {status}")
        if time.monotonic() - self.since > self.limits.seconds:
            self.stop()
            return Outcome("time", text=f"not done after {self.limits.seconds:g} s")
        return None

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_all(
    work: Callable[[Any], Any], cases: Sequence[Any], jobs: int = 1, limits: Limits | None = None
) -> Iterator[tuple[Any, Outcome]]:
    """``work(case)`` for every case, in forks of this process; outcomes as they come."""
    limits = limits or Limits()
    waiting = list(reversed(cases))
    workers: list[_Worker] = []
    try:
        while waiting or any(w.case is not None for w in workers):
            for worker in list(workers):
                found = None if worker.case is None else worker.outcome()
                if found is None:
                    continue
                yield worker.case, found
                worker.case = None
                if found.kind != "done" or worker.served >= limits.cases:
                    worker.stop()
                    workers.remove(worker)
            while waiting and len(workers) < jobs:
                workers.append(_Worker(work, limits))
            for worker in workers:
                if worker.case is None and waiting:
                    worker.start(waiting.pop())
            busy = [w.connection for w in workers if w.case is not None]
            multiprocessing.connection.wait(busy, timeout=0.5)
    finally:
        for worker in workers:
            worker.stop()

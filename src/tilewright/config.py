"""Settings: one frozen object; environment variables only mirror its fields.

=====================  ===============  ===========================================================
variable               field            meaning
=====================  ===============  ===========================================================
``TILEWRIGHT_THREADS`` ``threads``      worker threads; default: the physical cores this process may
                                        use (affinity and container quota counted)
``TILEWRIGHT_CACHE``   ``cache_dir``    folder for compiled kernels; ``off`` keeps them in memory
``TILEWRIGHT_CPU``     ``cpu``          compile for this CPU (``haswell``, ``x86-64-v3``), instead
                                        of the one found
=====================  ===============  ===========================================================
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tilewright.errors import UnsupportedError

__all__ = ["MAX_THREADS", "Settings", "default_cache_dir", "physical_cores"]

MAX_THREADS = 256


@dataclass(frozen=True)
class Settings:
    """What a user can set.

    Attributes:
        threads: worker threads, 1 to 256, the calling one included.
        cache_dir: folder of compiled kernels; ``None`` keeps them in memory only.
        cpu: LLVM name of the CPU to compile for; empty for the one found.
    """

    threads: int
    cache_dir: Path | None
    cpu: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= MAX_THREADS:
            raise UnsupportedError(
                f"threads (TILEWRIGHT_THREADS) is {self.threads}, wants 1 to {MAX_THREADS}"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """The settings that the environment variables (default ``os.environ``) ask for.

        Raises :class:`UnsupportedError` when ``TILEWRIGHT_THREADS`` is no number in range.
        """
        env = os.environ if environment is None else environment
        threads = env.get("TILEWRIGHT_THREADS", "").strip()
        if threads and not threads.isdecimal():
            raise UnsupportedError(
                f"TILEWRIGHT_THREADS is {threads!r}, wants a whole number from 1 to {MAX_THREADS}"
            )
        cache = env.get("TILEWRIGHT_CACHE", "").strip()
        if cache.lower() in ("off", "0", "none"):
            cache_dir = None
        else:
            cache_dir = Path(cache).expanduser() if cache else default_cache_dir(env)
        return cls(
            threads=int(threads) if threads else physical_cores(),
            cache_dir=cache_dir,
            cpu=env.get("TILEWRIGHT_CPU", "").strip().lower(),
        )


def default_cache_dir(environment: Mapping[str, str] | None = None) -> Path | None:
    """Where this system keeps caches: ``~/.cache/tilewright``, or its macOS or Windows relative.

    ``None`` when the user has no home folder.
    """
    env = os.environ if environment is None else environment
    try:
        if sys.platform == "win32":
            base = Path(env.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return base / "tilewright"


def physical_cores() -> int:
    """Physical cores this process may use, at least 1, at most :data:`MAX_THREADS`.

    SMT siblings count once: two hyperthreads share the vector units that kernels saturate.
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
    else:
        cpus = list(range(os.cpu_count() or 1))
    cores = {_core_of(cpu) for cpu in cpus}
    return max(1, min(len(cores), _container_quota(), MAX_THREADS))


def _core_of(cpu: int) -> tuple[str, str]:
    """(package, core) of a logical CPU; each is its own core where the system does not say."""
    topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    try:
        package = (topology / "physical_package_id").read_text().strip()
        return package, (topology / "core_id").read_text().strip()
    except OSError:
        return "", str(cpu)


def _container_quota() -> int:
    """CPUs a cgroup (v2) grants, rounded up; :data:`MAX_THREADS` when there is no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]
        if quota == "max":
            return MAX_THREADS
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return MAX_THREADS

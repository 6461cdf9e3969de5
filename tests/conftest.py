"""Fixtures that every room's tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_is_heard() -> Iterator[None]:
    """Shells start what runs in the background with SIGINT ignored, and children inherit that: the
    programs that tests interrupt would not hear of it."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture(scope="session")
def project() -> Path:
    """The project root."""
    return PROJECT


@pytest.fixture(scope="session")
def assets() -> Path:
    """Third-party model files and texts beside the project; tests skip where they are absent."""
    path = PROJECT.parent / "shared" / "assets"
    if not path.is_dir():
        pytest.skip(f"no test assets at {path}")
    return path

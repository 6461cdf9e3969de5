"""Fixtures that every room's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


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

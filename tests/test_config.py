"""Settings: what the environment variables mean."""

from pathlib import Path

import pytest

from tilewright.config import MAX_THREADS, Settings, default_cache_dir, physical_cores
from tilewright.errors import UnsupportedError


def test_defaults() -> None:
    settings = Settings.from_environment({"HOME": "/home/someone"})
    assert settings.threads == physical_cores() >= 1
    assert settings.cpu == ""
    assert settings.cache_dir == default_cache_dir({})
    assert settings.cache_dir is not None
    assert settings.cache_dir.name == "tilewright"


def test_variables() -> None:
    settings = Settings.from_environment(
        {"TILEWRIGHT_THREADS": " 3 ", "TILEWRIGHT_CACHE": "/x/y", "TILEWRIGHT_CPU": "Haswell"}
    )
    assert settings == Settings(3, Path("/x/y"), "haswell")


@pytest.mark.parametrize("value", ["off", "OFF", "0", "none"])
def test_cache_off(value: str) -> None:
    assert Settings.from_environment({"TILEWRIGHT_CACHE": value}).cache_dir is None


def test_cache_home_is_expanded() -> None:
    cache_dir = Settings.from_environment({"TILEWRIGHT_CACHE": "~/kernels"}).cache_dir
    assert cache_dir == Path.home() / "kernels"


@pytest.mark.parametrize("value", ["zero", "-1", "1.5", "0", str(MAX_THREADS + 1)])
def test_bad_threads_say_what_is_wanted(value: str) -> None:
    with pytest.raises(UnsupportedError, match=r"TILEWRIGHT_THREADS.*1 to 256"):
        Settings.from_environment({"TILEWRIGHT_THREADS": value})

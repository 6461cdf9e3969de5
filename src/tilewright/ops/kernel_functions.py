"""Inline functions that elementwise expressions may call by name; generated kernels import them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["KERNEL_FUNCTIONS", "kernel_function"]

KERNEL_FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""By name."""

F = TypeVar("F", bound=Callable[..., Any])


def kernel_function(function: F) -> F:
    """Let expressions call ``function``, a function of the kernel language."""
    name = function.__name__
    if name in KERNEL_FUNCTIONS:
        raise ValueError(f"two kernel functions are called {name!r}")
    KERNEL_FUNCTIONS[name] = function
    return function

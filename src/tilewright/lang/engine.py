"""What a tile function asks of the world around it: record an op, or compute it.

The functions of :mod:`tilewright.lang.builtins` hold the typing rules once. They hand every op of
:mod:`tilewright.lang.ir` to the current :class:`Engine`: the parser's engine appends it to a
block, the interpreter's computes it with NumPy. So both always agree on types and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tilewright.dtypes import DType
from tilewright.errors import KernelError

if TYPE_CHECKING:
    from tilewright.lang.array import Array
    from tilewright.lang.ir import ArrayType, TileType
    from tilewright.lang.tile import Tile

__all__ = ["Engine", "activate", "active", "builtin", "current"]


class Engine(Protocol):
    """Receives the ops of one kernel, already typed and checked."""

    def emit(
        self,
        name: str,
        operands: Sequence[Tile | Array],
        results: Sequence[TileType],
        **attrs: Any,
    ) -> tuple[Tile, ...]:
        """Record or compute one op of the table in :mod:`tilewright.lang.ir`."""

    def constant(self, value: bool | int | float, dtype: DType, shape: tuple[int, ...]) -> Tile:
        """A tile whose every element is ``value``, already representable in ``dtype``."""

    def scratch(self, array: ArrayType) -> Array:
        """Memory of this program instance; its contents are undefined until stored."""

    def scan_with(
        self, fn: Callable[..., Any], tiles: Sequence[Tile], axis: int, reverse: bool
    ) -> tuple[Tile, ...]:
        """Inclusive scan along ``axis``; ``fn(a..., b...)`` combines two elements."""

    def distance(self, lower: Any, upper: Any) -> int | None:
        """``upper - lower`` if that is a compile-time constant."""

    def truth(self, tile: Tile) -> bool:
        """The truth of a runtime scalar, where Python itself asks for it."""

    def steps(self, start: Any, stop: Any, step: Any) -> Iterator[Tile]:
        """The values of a runtime loop, where Python itself iterates."""

    def reload(self, tile: Tile, fill: bool | int | float) -> Tile:
        """The window load that made ``tile``, with ``fill`` outside the array."""

    def prefetch(self, tile: Tile, write: bool, level: int) -> None:
        """Turn the window load that made ``tile`` into a wish to have its memory close."""


_CURRENT: ContextVar[Engine] = ContextVar("tilewright.lang.engine")


def current() -> Engine:
    """The engine of the kernel being parsed or interpreted; ``KernelError`` outside of one."""
    try:
        return _CURRENT.get()
    except LookupError:
        raise KernelError(
            "tile functions work only inside a kernel: "
            "decorate the function with @tilewright.kernel and launch it with kernel[grid](...)"
        ) from None


def active() -> bool:
    """Whether a kernel is being parsed or interpreted."""
    return _CURRENT.get(None) is not None


@contextmanager
def activate(engine: Engine) -> Iterator[None]:
    """Make ``engine`` the current one."""
    token = _CURRENT.set(engine)
    try:
        yield
    finally:
        _CURRENT.reset(token)


_F = TypeVar("_F", bound=Callable[..., Any])


def builtin(fn: _F) -> _F:
    """Mark ``fn`` as part of the kernel language: the parser calls it instead of inlining it."""
    fn.__tile_builtin__ = True  # type: ignore[attr-defined]
    return fn

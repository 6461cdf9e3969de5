"""Every exception that tilewright raises on purpose.

::

    TilewrightError
    ├── FormatError        a file (or bytes) is damaged, truncated or inconsistent
    ├── UnsupportedError   well-formed, but something in it is not supported
    ├── ShapeError         shapes or dtypes of arguments do not fit together
    ├── KernelError        a kernel's source is wrong; carries the user's line with a caret
    ├── CompileError       a kernel or graph could not be lowered for a target
    ├── ContextLengthError a sequence does not fit the model's (or the cache's) context
    ├── OutOfMemoryError   the memory plan does not fit; the message has the numbers
    ├── DTypeError         an operation is not defined for these dtypes (a TypeError too)
    ├── BoundsError        an index or an axis is out of range (an IndexError too)
    ├── TraceError         something asked for a value while a function is being traced
    └── TrainingError      a training run cannot go on; the message says what is still good

Catching ``TilewrightError`` catches all of them. Anything else that escapes is a bug.
"""

from __future__ import annotations

__all__ = [
    "BoundsError",
    "CompileError",
    "ContextLengthError",
    "DTypeError",
    "FormatError",
    "KernelError",
    "OutOfMemoryError",
    "ShapeError",
    "TilewrightError",
    "TraceError",
    "TrainingError",
    "UnsupportedError",
]


class TilewrightError(Exception):
    """Base class of everything tilewright raises on purpose."""


class FormatError(TilewrightError):
    """A file is damaged or lies about itself.

    ``path``, ``offset`` (bytes from the file's start) and ``tensor`` say where, when known; they
    are part of the message too.
    """

    def __init__(
        self,
        message: str,
        *,
        path: object = None,
        offset: int | None = None,
        tensor: str | None = None,
    ) -> None:
        self.path = None if path is None else str(path)
        self.offset = offset
        self.tensor = tensor
        where = [
            self.path or "",
            "" if tensor is None else f"tensor {tensor!r}",
            "" if offset is None else f"at byte {offset}",
        ]
        prefix = ", ".join(part for part in where if part)
        super().__init__(f"{prefix}: {message}" if prefix else message)


class UnsupportedError(TilewrightError):
    """The input is well-formed but needs something tilewright does not have."""


class ShapeError(TilewrightError):
    """Shapes or dtypes do not fit; the message names the op, what it got and what it wanted."""


class KernelError(TilewrightError):
    """A kernel's source is wrong. The message shows the user's source line with a caret."""


class CompileError(TilewrightError):
    """A kernel or a graph could not be lowered for a target."""


class ContextLengthError(TilewrightError):
    """A sequence does not fit the context; the message says how many tokens there is room for."""


class OutOfMemoryError(TilewrightError):
    """The memory plan does not fit what is available; the message has the numbers."""


class DTypeError(TilewrightError, TypeError):
    """An operation is not defined for these dtypes; the message says which it takes."""


class BoundsError(TilewrightError, IndexError):
    """An index or an axis is out of range; the message has the range."""


class TraceError(TilewrightError):
    """A value was asked for while a function is being traced, when there are none yet.

    The message says who asked, and what to do instead.
    """


class TrainingError(TilewrightError):
    """A training run cannot begin or go on: a loss that is not a number, a full disk, a run folder
    that does not fit. The message says what is still good, such as the last checkpoint."""

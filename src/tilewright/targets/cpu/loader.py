"""Object file bytes -> the address of a function in this process.

Code stays mapped until the process ends: a launch table may hold its address, and a worker thread
may stand in it, longer than Python can tell.
"""

from __future__ import annotations

import itertools
import sys
import threading
from functools import lru_cache
from typing import Any

from tilewright.errors import CompileError
from tilewright.targets.cpu.codegen import target_machine
from tilewright.targets.cpu.machine import Machine

__all__ = ["Loader", "process_loader"]


class Loader:
    """Links object files into the process. Thread-safe.

    Calls to the C library (``fmaf``, ``memset``, ...) resolve to the symbols of this process.
    """

    def __init__(self) -> None:
        import llvmlite.binding as llvm

        host = Machine.detect_host()
        # JITLink gives an object's code and constants one piece of memory, so that 32-bit offsets
        # between them always reach, however large the mapped models around them are.
        jit = llvm.create_lljit_compiler(
            target_machine(host), use_jit_link=sys.platform != "win32", suppress_errors=True
        )
        jit._owned = True  # never disposed: see the module's docstring
        self._jit: Any = jit
        self._names = itertools.count()
        self._lock = threading.Lock()

    def load(self, data: bytes, symbol: str) -> int:
        """Link ``data`` and return the address of ``symbol``, which it defines.

        Raises :class:`CompileError` when it does not link, or calls what nobody defines.
        """
        return self.load_all(data, (symbol,))[symbol]

    def load_all(self, data: bytes, symbols: tuple[str, ...]) -> dict[str, int]:
        """Link ``data`` and return the addresses of several ``symbols``."""
        import llvmlite.binding as llvm

        library = llvm.JITLibraryBuilder().add_object_img(data).add_current_process()
        for symbol in symbols:
            library.export_symbol(symbol)
        with self._lock:
            try:
                tracker = library.link(self._jit, f"tilewright.{next(self._names)}")
            except RuntimeError as error:
                raise CompileError(f"cannot link {', '.join(symbols)}: {error}") from error
        tracker.detach()
        return {symbol: tracker[symbol] for symbol in symbols}


@lru_cache(maxsize=1)
def process_loader() -> Loader:
    """The one loader of this process."""
    return Loader()

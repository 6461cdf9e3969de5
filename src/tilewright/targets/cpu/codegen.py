"""LLVM assembly text -> optimised machine code, in process.

Every call works in an LLVM context of its own, and the two long steps (optimise, emit) run without
llvmlite's global lock and without the GIL, so several threads compile at the same time.

Numerics: no fast-math, and ``fmul`` followed by ``fadd`` is never contracted. What the text says is
what runs.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tilewright.errors import CompileError
from tilewright.targets.cpu.machine import Machine

__all__ = ["LIGHT", "CodeObject", "assembly", "compile_object", "optimise"]


LIGHT = "; light\n"
"""First line of a module that is as good as the passes would make it: only calls are inlined.

The passes cost more than all else for a small kernel, and leave its loops as they find them; what
they would do across a loop (hoisting, strength reduction) code generation does anyway.
"""


@dataclass(frozen=True)
class CodeObject:
    """Machine code of one LLVM module.

    Attributes:
        data: a relocatable object file (ELF, Mach-O or COFF), ready for the loader.
        llvm: the LLVM text it was compiled from (not optimised).
        machine: what it was compiled for.
        opt: optimisation level, 0 to 3.
    """

    data: bytes
    llvm: str
    machine: Machine
    opt: int = 3

    def optimised(self) -> str:
        """The optimised LLVM text (recomputed)."""
        return optimise(self.llvm, self.machine, self.opt)

    def asm(self) -> str:
        """The assembly (recomputed)."""
        return assembly(self.llvm, self.machine, self.opt)


def compile_object(llvm_text: str, machine: Machine, opt: int = 3) -> CodeObject:
    """Parse, verify and optimise ``llvm_text`` and emit an object file for ``machine``.

    Raises :class:`CompileError` with LLVM's message and the line it complains about.
    """
    module, tm = _optimised_module(llvm_text, machine, opt)
    return CodeObject(_emit(tm, module, as_object=True), llvm_text, machine, opt)


def optimise(llvm_text: str, machine: Machine, opt: int = 3) -> str:
    """The LLVM text after optimisation."""
    return str(_optimised_module(llvm_text, machine, opt)[0])


def assembly(llvm_text: str, machine: Machine, opt: int = 3) -> str:
    """The assembly that ``machine`` would run."""
    module, tm = _optimised_module(llvm_text, machine, opt)
    return _emit(tm, module, as_object=False).decode()


@lru_cache(maxsize=1)
def _initialise() -> None:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def target_machine(machine: Machine, opt: int = 3) -> Any:
    """A fresh llvmlite ``TargetMachine`` (they are not shared between threads)."""
    import llvmlite.binding as llvm

    _initialise()
    # Position independent and small: constants are reached relative to the instruction pointer,
    # wherever in the address space the loader places the code (always in one piece).
    triple = machine.triple + ("-elf" if sys.platform == "win32" else "")
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=machine.cpu, features=machine.features, opt=opt, reloc="pic", codemodel="small"
    )


class _PerThread(threading.local):
    """Target machines with their data layouts: a thread uses its own again and again."""

    def __init__(self) -> None:
        self.machines: dict[tuple[str, str, str, int], tuple[Any, str]] = {}


_PER_THREAD = _PerThread()


def _kept_target_machine(machine: Machine, opt: int) -> tuple[Any, str]:
    key = (machine.triple, machine.cpu, machine.features, opt)
    found = _PER_THREAD.machines.get(key)
    if found is None:
        tm = target_machine(machine, opt)
        found = _PER_THREAD.machines[key] = tm, str(tm.target_data)
    return found


def _optimised_module(llvm_text: str, machine: Machine, opt: int) -> tuple[Any, Any]:
    import llvmlite.binding as llvm

    light = llvm_text.startswith(LIGHT)
    tm, layout = _kept_target_machine(machine, min(opt, 1) if light else opt)
    try:
        module = llvm.parse_assembly(llvm_text, llvm.create_context())
        module.triple = tm.triple
        module.data_layout = layout
        module.verify()
    except RuntimeError as error:
        raise CompileError(_explain(str(error), llvm_text)) from error
    # Kernels arrive as vectors with their loops already unrolled as far as it pays: looking for
    # more vectors only costs compile time, and unrolling more only costs instruction cache.
    tuning = llvm.create_pipeline_tuning_options(speed_level=0 if light else opt)
    tuning.loop_vectorization = False
    tuning.slp_vectorization = False
    tuning.loop_interleaving = False
    tuning.loop_unrolling = False
    builder = llvm.create_pass_builder(tm, tuning)
    passes = builder.getModulePassManager()
    _unlocked("LLVMPY_RunNewModulePassManager")(passes, module, builder)
    return module, tm


def _emit(tm: Any, module: Any, as_object: bool) -> bytes:
    from llvmlite.binding import ffi

    with ffi.OutputString() as problem:
        buffer = _unlocked("LLVMPY_TargetMachineEmitToMemory")(tm, module, int(as_object), problem)
        if not buffer:
            raise CompileError(f"LLVM could not emit code: {problem}")
    try:
        start = ffi.lib.LLVMPY_GetBufferStart(buffer)
        return ctypes.string_at(start, ffi.lib.LLVMPY_GetBufferSize(buffer))
    finally:
        ffi.lib.LLVMPY_DisposeMemoryBuffer(buffer)


def _unlocked(name: str) -> Callable[..., Any]:
    """An LLVM entry point without llvmlite's process-wide lock.

    Safe because every compile has its own context, module and target machine, which is all that
    LLVM asks for; the lock would serialise compiles that could share the cores.
    """
    from llvmlite.binding import ffi

    locked = getattr(ffi.lib, name)
    return getattr(locked, "_cfn", locked)


def _explain(message: str, llvm_text: str) -> str:
    """LLVM's complaint with the lines around the place it names."""
    lines = llvm_text.splitlines()
    for word in message.replace(",", ":").split(":"):
        if word.strip().isdecimal() and 0 < int(word) <= len(lines):
            at = int(word) - 1
            shown = itertools.islice(enumerate(lines, 1), max(at - 2, 0), at + 3)
            context = "\n".join(f"{n:6} | {line}" for n, line in shown)
            return f"LLVM rejects the module: {message}\n{context}"
    return f"LLVM rejects the module: {message}"

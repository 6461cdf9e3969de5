"""What this machine can do: multiply-add peaks and memory bandwidth, measured.

``tilewright doctor`` and ``tilewright bench`` set their figures against these. Each measurement
takes well under a second; the best of a few passes counts, since a shared machine only ever slows
a pass down.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from tilewright.config import Settings
from tilewright.targets.cpu.cache import DiskCache, cache_key
from tilewright.targets.cpu.codegen import compile_object
from tilewright.targets.cpu.loader import process_loader
from tilewright.targets.cpu.machine import Machine
from tilewright.targets.cpu.pool import Pool

__all__ = ["Peaks", "Probe", "measure"]

_PROGRAMS: Final = 64
_ITERATIONS: Final = 20_000
_CHUNK: Final = 1 << 20
_READ_BYTES: Final = 256 << 20


@dataclass(frozen=True)
class Peaks:
    """Figures of one machine at one number of threads.

    Attributes:
        threads: how many threads measured together.
        fma_gflops: f32 multiply-adds from registers, 10^9 operations/s (an fma counts as two).
        dot4_gmacs: int8 multiply-accumulates from registers, 10^9/s, with the instruction that
            ``dot4`` uses on this CPU.
        read_gbytes: streaming reads of memory too large for the caches, 10^9 bytes/s.
    """

    threads: int
    fma_gflops: float
    dot4_gmacs: float
    read_gbytes: float


class Probe:
    """Measures one machine with one number of threads; also a context manager.

    ``clock`` gives seconds; ``time.thread_time`` with one thread leaves out what others take.
    """

    def __init__(
        self,
        threads: int,
        machine: Machine | None = None,
        cache: DiskCache | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.clock = clock
        self.machine = machine or Machine.detect()
        cache = cache or DiskCache(Settings.from_environment().cache_dir)
        self.pool = Pool(threads)
        text = probe_llvm(self.machine)
        key = cache_key(self.machine, "probe", text)
        data = cache.get(key)
        if data is None:
            data = compile_object(text, self.machine).data
            cache.put(key, data)
        self._code = process_loader().load_all(data, ("probe_fma", "probe_dot4", "probe_read"))
        self._sink = np.zeros(1 << 16, np.uint8)

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()

    def fma_gflops(self) -> float:
        """f32 multiply-adds, 10^9 floating-point operations/s."""
        lanes, rows = self.machine.lanes, _accumulators(self.machine)
        args = np.array([self._sink.ctypes.data, _ITERATIONS], np.int64)
        operations = 2 * lanes * rows * _ITERATIONS * _PROGRAMS
        return operations / self._best("probe_fma", args, _PROGRAMS) / 1e9

    def dot4_gmacs(self) -> float:
        """int8 multiply-accumulates, 10^9/s."""
        rows = _accumulators(self.machine)
        args = np.array([self._sink.ctypes.data, _ITERATIONS], np.int64)
        products = _dot(self.machine)[1] * rows * _ITERATIONS * _PROGRAMS
        return products / self._best("probe_dot4", args, _PROGRAMS) / 1e9

    def read_gbytes(self, nbytes: int = _READ_BYTES) -> float:
        """Streaming reads of ``nbytes`` (rounded down to whole mebibytes), 10^9 bytes/s."""
        chunks = max(nbytes // _CHUNK, 1)
        data = np.empty(chunks * _CHUNK + 64, np.uint8)
        data.fill(1)  # pages exist only once they are written
        start = data.ctypes.data + -data.ctypes.data % 64
        args = np.array([self._sink.ctypes.data, start], np.int64)
        return chunks * _CHUNK / self._best("probe_read", args, chunks) / 1e9

    def peaks(self) -> Peaks:
        """All three."""
        return Peaks(self.pool.threads, self.fma_gflops(), self.dot4_gmacs(), self.read_gbytes())

    def _best(self, symbol: str, args: np.ndarray, programs: int, passes: int = 6) -> float:
        """Seconds of the fastest pass."""
        table = np.array([[self._code[symbol], args.ctypes.data, programs, 1]], np.int64)
        best = float("inf")
        deadline = time.perf_counter() + 0.5
        for _ in range(passes):
            begin = self.clock()
            self.pool.run(table.ctypes.data, 1)
            best = min(best, self.clock() - begin)
            if time.perf_counter() > deadline:
                break
        return best


def measure(threads: int | None = None) -> tuple[Peaks, Peaks]:
    """The peaks of one thread and of ``threads`` (default: the settings')."""
    many = threads or Settings.from_environment().threads
    with Probe(1) as probe:
        one = probe.peaks()
    if many == 1:
        return one, one
    with Probe(many) as probe:
        return one, probe.peaks()


def probe_llvm(machine: Machine) -> str:
    """The three measuring loops, each ``void (ptr args, i64 lo, i64 hi)``."""
    lanes = machine.lanes
    vector = f"<{lanes} x float>"
    fma = _loop(
        "probe_fma",
        vector,
        _accumulators(machine),
        # |x * 0.999 + y| stays bounded: neither infinities nor denormals slow it down
        f"%new@ = call {vector} @llvm.fma.v{lanes}f32({vector} %acc@, {vector} %x, {vector} %y)",
        f"%x = {_splat(vector, 'float', '0x3FEFF7CEE0000000')}\n"
        f"  %y = {_splat(vector, 'float', '0x3F50624DE0000000')}",
    )
    integers = f"<{machine.vector_bits // 32} x i32>"
    dot = _loop("probe_dot4", integers, _accumulators(machine), _dot(machine)[0], "")
    declarations = [
        f"declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})",
        _dot(machine)[2],
    ]
    return "\n".join([*declarations, fma, dot, _READ.replace("VECTOR", integers)])


def _accumulators(machine: Machine) -> int:
    """Independent chains: enough to cover the latency, few enough to stay in registers."""
    return 24 if machine.vector_registers == 32 else 12


def _dot(machine: Machine) -> tuple[str, int, str]:
    """One accumulation of byte products: LLVM text, products per instruction, declaration."""
    n = machine.vector_bits // 8
    words, i32s = f"<{n} x i8>", f"<{n // 4} x i32>"
    if machine.has_vnni or (machine.has_avx_vnni and machine.vector_bits == 256):
        name = "llvm.x86.avx512.vpdpbusd." + str(machine.vector_bits)
        text = f"%new@ = call {i32s} @{name}({i32s} %acc@, {words} %bytes, {words} %bytes)"
        return text, n, f"declare {i32s} @{name}({i32s}, {words}, {words})"
    half = f"<{n // 2} x i16>"
    pairs = {512: "avx512.pmaddw.d.512", 256: "avx2.pmadd.wd", 128: "sse2.pmadd.wd"}
    if machine.arch == "x86_64":
        # the bytes are widened to 16 bits first: half as many products, then an addition
        name = "llvm.x86." + pairs[machine.vector_bits]
        text = (
            f"%low@ = bitcast {i32s} %acc@ to {half}\n"
            f"  %sum@ = call {i32s} @{name}({half} %low@, {half} %halves)\n"
            f"  %new@ = add {i32s} %acc@, %sum@"
        )
        return text, n // 2, f"declare {i32s} @{name}({half}, {half})"
    if machine.has_dotprod:
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        text = f"%new@ = call {i32s} @{name}({i32s} %acc@, {words} %bytes, {words} %bytes)"
        return text, n, f"declare {i32s} @{name}({i32s}, {words}, {words})"
    text = f"%mul@ = mul {i32s} %acc@, %words\n  %new@ = add {i32s} %mul@, %words"
    return text, n // 4, ""


def _splat(vector: str, element: str, value: str) -> str:
    lanes = int(vector.split()[0][1:])
    constant = "<" + ", ".join([f"{element} {value}"] * lanes) + ">"
    return f"select i1 %opaque, {vector} {constant}, {vector} {constant}"


def _loop(name: str, vector: str, chains: int, step: str, setup: str) -> str:
    """A loop of independent dependency chains; args: where to put the result, iterations."""
    numbers = range(chains)
    phis = "\n".join(
        f"  %acc{i} = phi {vector} [ %start{i}, %outer ], [ %new{i}, %loop ]" for i in numbers
    )
    lanes = int(vector.split()[0][1:])
    element = vector.split()[2][:-1]
    starts = []
    for i in numbers:
        # no chain may start at the fixed point of its step, or LLVM would drop it
        literal = f"{i + 2}.0" if element == "float" else str(i + 3)
        starts.append(f"  %start{i} = {_splat(vector, element, literal)}")
    steps = "\n".join("  " + _numbered(step, i) for i in numbers)
    stores = "\n".join(
        f"  %slot{i} = getelementptr {vector}, ptr %mine, i64 {i}\n"
        f"  store {vector} %new{i}, ptr %slot{i}, align 4"
        for i in numbers
    )
    n = lanes
    return f"""
define void @{name}(ptr %args, i64 %lo, i64 %hi) {{
entry:
  %sink = load ptr, ptr %args
  %a1 = getelementptr i64, ptr %args, i64 1
  %iterations = load i64, ptr %a1
  %opaque = icmp eq i64 %iterations, 0
  %data = load <{n} x i32>, ptr %sink, align 4
  %bytes = bitcast <{n} x i32> %data to <{n * 4} x i8>
  %halves = bitcast <{n} x i32> %data to <{n * 2} x i16>
  %words = or <{n} x i32> %data, %data
  {setup}
  br label %outer
outer:
  %program = phi i64 [ %lo, %entry ], [ %program.next, %done ]
{chr(10).join(starts)}
  br label %loop
loop:
  %i = phi i64 [ 0, %outer ], [ %i.next, %loop ]
{phis}
{steps}
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, %iterations
  br i1 %more, label %loop, label %done
done:
  %offset = shl i64 %lo, 12
  %within = and i64 %offset, 32767
  %past = add i64 %within, 4096
  %mine = getelementptr i8, ptr %sink, i64 %past
{stores}
  %program.next = add i64 %program, 1
  %again = icmp slt i64 %program.next, %hi
  br i1 %again, label %outer, label %exit
exit:
  ret void
}}
"""


def _numbered(step: str, i: int) -> str:
    """``step`` with the values of chain ``i``: ``%acc@`` becomes ``%acc3``."""
    for value in ("acc", "new", "low", "sum", "mul"):
        step = step.replace(f"%{value}@", f"%{value}{i}")
    return step


# Program p reads mebibyte p with four independent chains.
_READ: Final = """
define void @probe_read(ptr %args, i64 %lo, i64 %hi) {
entry:
  %sink = load ptr, ptr %args
  %a1 = getelementptr ptr, ptr %args, i64 1
  %data = load ptr, ptr %a1
  %first = shl i64 %lo, 20
  %last = shl i64 %hi, 20
  %start = getelementptr i8, ptr %data, i64 %first
  %end = getelementptr i8, ptr %data, i64 %last
  br label %loop
loop:
  %p = phi ptr [ %start, %entry ], [ %p.next, %loop ]
  %s0 = phi VECTOR [ zeroinitializer, %entry ], [ %t0, %loop ]
  %s1 = phi VECTOR [ zeroinitializer, %entry ], [ %t1, %loop ]
  %s2 = phi VECTOR [ zeroinitializer, %entry ], [ %t2, %loop ]
  %s3 = phi VECTOR [ zeroinitializer, %entry ], [ %t3, %loop ]
  %p1 = getelementptr VECTOR, ptr %p, i64 1
  %p2 = getelementptr VECTOR, ptr %p, i64 2
  %p3 = getelementptr VECTOR, ptr %p, i64 3
  %v0 = load VECTOR, ptr %p, align 16
  %v1 = load VECTOR, ptr %p1, align 16
  %v2 = load VECTOR, ptr %p2, align 16
  %v3 = load VECTOR, ptr %p3, align 16
  %t0 = xor VECTOR %s0, %v0
  %t1 = xor VECTOR %s1, %v1
  %t2 = xor VECTOR %s2, %v2
  %t3 = xor VECTOR %s3, %v3
  %p.next = getelementptr VECTOR, ptr %p, i64 4
  %more = icmp ult ptr %p.next, %end
  br i1 %more, label %loop, label %exit
exit:
  %u0 = or VECTOR %t0, %t1
  %u1 = or VECTOR %t2, %t3
  %u = or VECTOR %u0, %u1
  %offset = shl i64 %lo, 12
  %within = and i64 %offset, 32767
  %past = add i64 %within, 4096
  %mine = getelementptr i8, ptr %sink, i64 %past
  store VECTOR %u, ptr %mine, align 4
  ret void
}
"""

"""The CPU to compile for: its name, features and vector width.

``Machine.detect()`` finds the host's; ``TILEWRIGHT_CPU`` (:class:`tilewright.config.Settings`) asks
for less, for example ``haswell``. A named CPU gets exactly that CPU's features, never the host's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from tilewright.config import Settings
from tilewright.errors import UnsupportedError

__all__ = ["Machine", "cpu_names"]

_V1: Final = frozenset({"sse2"})
_V2: Final = _V1 | {"ssse3", "sse4.1", "sse4.2", "popcnt"}
_AVX: Final = _V2 | {"avx"}
_V3: Final = _AVX | {"avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt"}
_V4: Final = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_VNNI: Final = _V4 | {"avx512vnni"}
_ICE: Final = _VNNI | {"avx512vbmi", "avx512vbmi2", "avx512ifma", "avx512vpopcntdq", "gfni"}
_SPR: Final = _ICE | {"avx512bf16", "avx512fp16", "avxvnni", "amx-tile", "amx-int8", "amx-bf16"}
_NEON: Final = frozenset({"neon"})
_DOT: Final = _NEON | {"dotprod", "fullfp16"}
_I8MM: Final = _DOT | {"i8mm", "bf16"}

# The features lowering asks about, per LLVM CPU name; LLVM itself knows the rest from the name.
_X86: Final[dict[str, frozenset[str]]] = {
    "x86-64": _V1,
    "x86-64-v2": _V2,
    "x86-64-v3": _V3,
    "x86-64-v4": _V4,
    "nehalem": _V2,
    "westmere": _V2,
    "silvermont": _V2,
    "goldmont": _V2,
    "tremont": _V2,
    "sandybridge": _AVX,
    "ivybridge": _AVX | {"f16c"},
    "haswell": _V3,
    "broadwell": _V3,
    "skylake": _V3,
    "gracemont": _V3 | {"avxvnni", "gfni"},
    "alderlake": _V3 | {"avxvnni", "gfni"},
    "raptorlake": _V3 | {"avxvnni", "gfni"},
    "meteorlake": _V3 | {"avxvnni", "gfni"},
    "arrowlake": _V3 | {"avxvnni", "gfni", "avxvnniint8"},
    "lunarlake": _V3 | {"avxvnni", "gfni", "avxvnniint8"},
    "sierraforest": _V3 | {"avxvnni", "gfni", "avxvnniint8"},
    "skylake-avx512": _V4,
    "cascadelake": _VNNI,
    "cooperlake": _VNNI | {"avx512bf16"},
    "cannonlake": _V4 | {"avx512vbmi", "avx512ifma"},
    "icelake-client": _ICE,
    "icelake-server": _ICE,
    "tigerlake": _ICE,
    "rocketlake": _ICE,
    "sapphirerapids": _SPR,
    "emeraldrapids": _SPR,
    "graniterapids": _SPR,
    "znver1": _V3,
    "znver2": _V3,
    "znver3": _V3,
    "znver4": _ICE | {"avx512bf16"},
    "znver5": _ICE | {"avx512bf16", "avxvnni"},
}
_ARM: Final[dict[str, frozenset[str]]] = {
    "generic": _NEON,
    "cortex-a53": _NEON,
    "cortex-a57": _NEON,
    "cortex-a72": _NEON,
    "cortex-a76": _DOT,
    "neoverse-n1": _DOT,
    "neoverse-n2": _I8MM,
    "neoverse-v1": _I8MM,
    "neoverse-v2": _I8MM,
    "apple-m1": _DOT,
    "apple-m2": _I8MM,
    "apple-m3": _I8MM,
    "apple-m4": _I8MM,
}


@dataclass(frozen=True)
class Machine:
    """A CPU as code generation sees it.

    Attributes:
        cpu: LLVM's CPU name (``znver4``).
        features: LLVM's feature string (``+avx512f,-amx-tile``); empty for a named CPU, whose
            features LLVM derives from the name.
        triple: LLVM target triple.
        flags: the names of the features it has, as far as lowering cares (``avx2``, ``fma``).
        named: it was asked for by name rather than found.
    """

    cpu: str
    features: str
    triple: str
    flags: frozenset[str]
    named: bool = False

    @classmethod
    def detect(cls, settings: Settings | None = None) -> Machine:
        """The host, or the CPU that ``settings.cpu`` (``TILEWRIGHT_CPU``) names.

        Raises :class:`UnsupportedError` for an unknown name, and for a CPU that has vector features
        the host lacks: its code would stop with an illegal instruction.
        """
        cpu = (settings or Settings.from_environment()).cpu
        host = _host()
        if not cpu or cpu == "native":
            return host
        machine = cls.from_name(cpu)
        missing = sorted(machine.flags - host.flags)
        if missing:
            raise UnsupportedError(
                f"cpu {cpu!r} (TILEWRIGHT_CPU) needs {', '.join(missing)}, which this machine's "
                f"CPU ({host.cpu}) lacks; choose an older one, for example x86-64-v3 or x86-64-v2"
            )
        return machine

    @classmethod
    def from_name(cls, cpu: str) -> Machine:
        """The CPU called ``cpu``, whether or not this machine can run its code.

        Raises :class:`UnsupportedError` listing known names.
        """
        triple = _host().triple
        table = _table(triple)
        if cpu not in table:
            known = ", ".join(table)
            raise UnsupportedError(f"unknown cpu {cpu!r} (TILEWRIGHT_CPU); known: {known}")
        # Some CPUs are tuned to avoid 512-bit vectors; our tiles are written for them.
        features = "-prefer-256-bit" if "avx512f" in table[cpu] else ""
        return cls(cpu, features, triple, table[cpu], named=True)

    @classmethod
    def detect_host(cls) -> Machine:
        """The machine this process runs on, whatever the settings ask for."""
        return _host()

    @property
    def arch(self) -> str:
        """``x86_64``, ``aarch64``, ... (the triple's first part, spelled one way)."""
        arch = self.triple.split("-", 1)[0]
        return {"arm64": "aarch64", "amd64": "x86_64"}.get(arch, arch)

    @property
    def vector_bits(self) -> int:
        """Width of a vector register that integer and float code may use: 128, 256 or 512."""
        return 512 if self.has_avx512 else 256 if "avx2" in self.flags else 128

    @property
    def lanes(self) -> int:
        """f32 elements per vector register: 16 with AVX-512, 8 with AVX2, otherwise 4."""
        return self.vector_bits // 32

    @property
    def vector_registers(self) -> int:
        """How many vector registers a kernel can keep its tiles in."""
        return 32 if self.has_avx512 or self.arch == "aarch64" else 16

    @property
    def has_avx512(self) -> bool:
        """AVX-512 F, BW, DQ and VL together (Skylake-X and later)."""
        return {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= self.flags

    @property
    def has_avx2(self) -> bool:
        return "avx2" in self.flags

    @property
    def has_fma(self) -> bool:
        """Hardware fused multiply-add; without it ``fma`` calls the C library and is slow."""
        return "fma" in self.flags or self.arch == "aarch64"

    @property
    def has_f16c(self) -> bool:
        """Hardware conversion between f16 and f32."""
        return "f16c" in self.flags or self.arch == "aarch64"

    @property
    def has_vnni(self) -> bool:
        """AVX-512 VNNI: ``vpdpbusd`` on 512-bit registers."""
        return "avx512vnni" in self.flags and self.has_avx512

    @property
    def has_avx_vnni(self) -> bool:
        """``vpdpbusd`` on 256-bit registers without AVX-512 (Alder Lake)."""
        return "avxvnni" in self.flags

    @property
    def has_avx512_bf16(self) -> bool:
        """``vdpbf16ps`` and hardware f32 to bf16 conversion."""
        return "avx512bf16" in self.flags and self.has_avx512

    @property
    def has_dotprod(self) -> bool:
        """Arm ``sdot``/``udot``."""
        return "dotprod" in self.flags


def cpu_names(triple: str | None = None) -> tuple[str, ...]:
    """The CPU names that ``TILEWRIGHT_CPU`` accepts on this architecture."""
    return tuple(_table(triple or _host().triple))


def _table(triple: str) -> dict[str, frozenset[str]]:
    return _ARM if triple.startswith(("aarch64", "arm64")) else _X86


@lru_cache(maxsize=1)
def _host() -> Machine:
    import llvmlite.binding as llvm

    found = llvm.get_host_cpu_features()
    triple = llvm.get_process_triple()
    # Feature names are sorted so that the string, part of every cache key, never varies.
    features = ",".join(("+" if on else "-") + name for name, on in sorted(found.items()))
    flags = frozenset(name for name, on in found.items() if on)
    if triple.startswith(("aarch64", "arm64")):
        flags |= {"neon"}
    if "avx512f" in flags:
        features += ",-prefer-256-bit"
    return Machine(llvm.get_host_cpu_name(), features, triple, flags)

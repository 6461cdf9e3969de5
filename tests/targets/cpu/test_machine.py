"""CPU detection and the TILEWRIGHT_CPU override."""

import re

import pytest

from tilewright.config import Settings
from tilewright.errors import UnsupportedError
from tilewright.targets.cpu.codegen import assembly
from tilewright.targets.cpu.machine import Machine, cpu_names

HOST = Machine.detect_host()
x86 = pytest.mark.skipif(HOST.arch != "x86_64", reason="names x86 CPUs")

ADD = """
define void @add(ptr %a) {
  %x = load <16 x float>, ptr %a, align 4
  %y = fadd <16 x float> %x, %x
  store <16 x float> %y, ptr %a, align 4
  ret void
}
"""


def settings(cpu: str) -> Settings:
    return Settings(threads=1, cache_dir=None, cpu=cpu)


def test_host() -> None:
    machine = Machine.detect(settings(""))
    assert machine == HOST == Machine.detect(settings("native"))
    assert machine.cpu
    assert machine.lanes in (4, 8, 16)
    assert machine.lanes * 32 == machine.vector_bits
    assert not machine.named


def test_environment_names_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    oldest = cpu_names()[0]
    monkeypatch.setenv("TILEWRIGHT_CPU", oldest)
    assert Machine.detect().cpu == oldest


@x86
@pytest.mark.parametrize(
    ("cpu", "lanes", "vnni", "f16c", "fma"),
    [
        ("x86-64", 4, False, False, False),
        ("x86-64-v2", 4, False, False, False),
        ("sandybridge", 4, False, False, False),
        ("ivybridge", 4, False, True, False),
        ("haswell", 8, False, True, True),
        ("x86-64-v3", 8, False, True, True),
        ("skylake-avx512", 16, False, True, True),
        ("cascadelake", 16, True, True, True),
        ("znver4", 16, True, True, True),
    ],
)
def test_named(cpu: str, lanes: int, vnni: bool, f16c: bool, fma: bool) -> None:
    machine = Machine.from_name(cpu)
    got = (machine.lanes, machine.has_vnni, machine.has_f16c, machine.has_fma)
    assert got == (lanes, vnni, f16c, fma)
    assert machine.vector_registers == (32 if lanes == 16 else 16)


@x86
@pytest.mark.parametrize("cpu", cpu_names("x86_64-unknown-linux-gnu"))
def test_llvm_agrees_with_the_table(cpu: str) -> None:
    """Every name means something to LLVM, and LLVM gives it the vectors that we count on."""
    machine = Machine.from_name(cpu)
    code = assembly(ADD, machine)
    widest = next(w for w in ("zmm", "ymm", "xmm") if w in code)
    want = {512: "zmm", 256: "ymm", 128: "ymm" if "avx" in machine.flags else "xmm"}
    assert widest == want[machine.vector_bits]


@x86
def test_override_does_not_leak_host_features() -> None:
    code = assembly(ADD, Machine.from_name("x86-64-v2"))
    assert not re.search(r"[yz]mm|\bv[a-z]+ps\b", code)


@pytest.mark.parametrize("cpu", ["hasswell", "386", "+avx2"])
def test_unknown_name_lists_known_ones(cpu: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"unknown cpu {re.escape(repr(cpu))}.*known: "):
        Machine.detect(settings(cpu))


@x86
def test_a_cpu_beyond_the_host_is_refused() -> None:
    if "amx-tile" in HOST.flags:
        pytest.skip("the host has everything that the table knows")
    with pytest.raises(UnsupportedError, match=r"sapphirerapids.*lacks"):
        Machine.detect(settings("sapphirerapids"))

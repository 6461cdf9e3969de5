"""Machine probes: plausible figures, quickly, on every kind of CPU."""

import time

import pytest

from tilewright.errors import UnsupportedError
from tilewright.targets.cpu.codegen import assembly
from tilewright.targets.cpu.machine import Machine
from tilewright.targets.cpu.probe import Probe, measure, probe_llvm

HOST = Machine.detect_host()


def test_measure() -> None:
    start = time.perf_counter()
    one, two = measure(2)
    assert time.perf_counter() - start < 6
    assert (one.threads, two.threads) == (1, 2)
    for peaks in (one, two):
        # between a slow laptop core and anything that exists
        assert 1 < peaks.read_gbytes < 2000
        assert peaks.dot4_gmacs > 1
        if HOST.has_fma:
            assert 5 < peaks.fma_gflops < 1e5


@pytest.mark.skipif(HOST.arch != "x86_64", reason="names x86 instructions")
@pytest.mark.parametrize(
    ("cpu", "dot"),
    [
        ("znver4", "vpdpbusd"),
        ("skylake-avx512", "vpmaddwd"),
        ("alderlake", "vpdpbusd"),
        ("haswell", "vpmaddwd"),
        ("x86-64-v2", "pmaddwd"),
    ],
)
def test_the_instructions_that_kernels_use(cpu: str, dot: str) -> None:
    machine = Machine.from_name(cpu)
    code = assembly(probe_llvm(machine), machine)
    chains = 24 if machine.vector_registers == 32 else 12
    assert code.count(f"\t{dot}\t") == chains
    if machine.has_fma:
        assert code.count("vfmadd") == chains
    assert "Spill" not in code


@pytest.mark.skipif(HOST.arch != "x86_64", reason="names x86 CPUs")
def test_a_named_cpu_is_measured_as_such() -> None:
    try:
        machine = Machine.from_name("haswell")
        if machine.flags - HOST.flags:
            raise UnsupportedError("older than Haswell")
    except UnsupportedError:
        pytest.skip("the host is older than Haswell")
    with Probe(1, machine) as probe:
        assert probe.fma_gflops() > 5
        assert probe.read_gbytes(8 << 20) > 1

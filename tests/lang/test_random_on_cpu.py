"""Random kernels compiled for CPUs of several generations agree with the interpreter."""

from __future__ import annotations

import dataclasses

import pytest
from random_kernels import random_case

from tilewright.config import Settings
from tilewright.targets.cpu.machine import Machine
from tilewright.targets.cpu.target import CPUTarget


@pytest.fixture(scope="module", params=["host", "haswell", "x86-64-v2"])
def target(request, tmp_path_factory):
    settings = dataclasses.replace(
        Settings.from_environment(), cache_dir=tmp_path_factory.mktemp("cache")
    )
    if request.param == "host":
        return CPUTarget(settings=settings)
    if Machine.detect(Settings.from_environment()).arch != "x86_64":
        pytest.skip(f"{request.param} code does not run here")
    return CPUTarget(Machine.from_name(request.param), settings)


@pytest.mark.parametrize("seed", range(3000, 3012))
def test_compiled_kernels_agree_with_the_interpreter(target, seed):
    case = random_case(seed)
    want, got = case.arguments(), case.arguments()
    case.kernel.interpret(case.grid)(*want)
    executable = target.compile(case.kernel, case.kernel.signature(got))
    executable.run(executable.pack(case.grid, got))
    case.check(want, got)

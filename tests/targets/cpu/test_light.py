"""Small generated kernels: compiled without the costly passes, to the same results."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from lowered import build

from tilewright import lang
from tilewright.lang import KernelFunction
from tilewright.targets.cpu.codegen import LIGHT
from tilewright.targets.cpu.lower import lower
from tilewright.targets.cpu.machine import Machine

NAMES = {name: getattr(lang, name) for name in lang.__all__}
TEXT = """
def kernel(x: Array, z: Array, y: Array, B: Const):
    i = program_id(1)
    j = program_id(0) * B
    v = exp(x[i, j : j + B]) * z[j : j + B]
    y[i, j : j + B] = where(v > 1.0, v, tanh(v))
    y[i, y.shape[1] - 1] = sum(v)
"""
HOST = Machine.detect_host()
MACHINES = [HOST, *([Machine.from_name("haswell")] if HOST.arch == "x86_64" else [])]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.cpu)
def test_same_bits_as_with_all_passes(machine: Machine, dtype: type) -> None:
    if not machine.flags <= HOST.flags:
        pytest.skip("this machine cannot run it")
    rng = np.random.default_rng(0)
    kernel = KernelFunction.from_source(TEXT, "kernel", NAMES)
    for rows, columns in ((3, 100), (2, 64), (1, 5)):
        x = rng.normal(size=(rows, columns)).astype(dtype)
        z = rng.normal(size=columns).astype(dtype)
        function = kernel.ir(kernel.signature((x, z, np.empty_like(x)), {"B": 24}))
        assert lower(function, machine).startswith(LIGHT)
        outs = []
        for fn in (function, replace(function, generated=False)):
            y = np.zeros((rows, columns + 1), dtype)
            grid = (-(-columns // 24), rows)
            build(fn, machine)[grid](x, z, y)
            outs.append(y)
        assert outs[0][:, :-1].any()
        np.testing.assert_array_equal(outs[0], outs[1])


def test_only_small_generated_kernels_are_light() -> None:
    generated = KernelFunction.from_source(TEXT, "kernel", NAMES)
    x = np.empty((2, 64), np.float32)
    signature = generated.signature((x, x[0], x), {"B": 16})
    assert generated.ir(signature).generated
    large = generated.signature((x, x[0], x), {"B": 16 * 512})
    assert not lower(generated.ir(large), HOST).startswith(LIGHT)
    written = KernelFunction(generated.fn)
    assert not lower(written.ir(signature), HOST).startswith(LIGHT)
    dots = "def kernel(a: Array, c: Array):\n    c[0:8, 0:8] = dot(a[0:8, 0:8], a[0:8, 0:8])\n"
    product = KernelFunction.from_source(dots, "kernel", NAMES)
    x = np.empty((8, 8), np.float32)
    assert not lower(product.ir(product.signature((x, x))), HOST).startswith(LIGHT)

"""Launching kernels from Python."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from tilewright.dtypes import bf16, f32, from_float32, i32, to_float32
from tilewright.errors import KernelError, ShapeError
from tilewright.lang.array import Array
from tilewright.lang.builtins import minimum, program_id, unroll, zeros
from tilewright.lang.function import Arrays, Const, Inline, bf16_array
from tilewright.lang.ir import ArrayType, TileType
from tilewright.runtime.buffers import from_array
from tilewright.runtime.buffers import zeros as zero_buffer
from tilewright.runtime.launch import Kernel, default_pool, default_target, kernel, pool_of

CEILING = 6.0


def clipped(v: Any) -> Any:
    return minimum(v, CEILING)


@kernel
def scale(x: Array, y: Array, shift: f32, BLOCK: Const, epilogue: Inline):
    i = program_id(0) * BLOCK
    y[i : i + BLOCK] = epilogue(x[i : i + BLOCK] * 2) + shift


@kernel(configs={"cpu": {"BLOCK": 16}})
def add_all(y: Array, n: i32, xs: Arrays, BLOCK: Const):
    """Sums the arrays."""
    i = program_id(0) * BLOCK
    total = zeros((BLOCK,), f32)
    for x in unroll(xs):
        total = total + x[i : i + BLOCK].to(f32)
    y[i : i + BLOCK] = total * n


@kernel
def where_am_i(y: Array):
    i, j, k = program_id(0), program_id(1), program_id(2)
    y[k, j, i] = i + 10 * j + 100 * k


def test_arrays_scalars_constants_and_functions() -> None:
    x = np.arange(100, dtype=np.float32)
    y = np.zeros(100, np.float32)
    scale[7](x, y, 0.5, 16, clipped)
    np.testing.assert_array_equal(y, np.minimum(2 * x, 6) + np.float32(0.5))
    scale[(7,)](x, y=y, shift=-1, BLOCK=16, epilogue=lambda v: v)
    np.testing.assert_array_equal(y, 2 * x - 1)


def test_constants_of_different_types_are_different() -> None:
    @kernel
    def divide(y: Array, by: Const):
        y[0] = 7 // by if isinstance(by, int) else 7 / by

    y = np.zeros(1, np.float32)
    got = []
    for by in (2, 2.0, True, 2):
        divide[1](y, by)
        got.append(float(y[0]))
    assert got == [3, 3.5, 7, 3]


def test_strided_arrays_buffers_and_bf16() -> None:
    x = np.arange(64, dtype=np.float32)
    out = np.zeros((64, 2), np.float32)
    scale[4](x[::-1], out[:, 1], 0, 16, clipped)
    np.testing.assert_array_equal(out[:, 1], np.minimum(2 * x[::-1], 6))
    assert not out[:, 0].any()

    buffer = zero_buffer(f32, (64,))
    scale[4](from_array(x), buffer, 0, 16, clipped)
    np.testing.assert_array_equal(buffer.numpy(), np.minimum(2 * x, 6))

    bits = from_float32(x)
    y = np.zeros(64, np.float32)
    scale[4](bf16_array(bits), y, 0, 16, lambda v: v.to(f32))
    np.testing.assert_array_equal(y, 2 * to_float32(bits))
    scale[4](from_array(bits, bf16), y, 1, 16, lambda v: v.to(f32))
    np.testing.assert_array_equal(y, 2 * to_float32(bits) + 1)


def test_variadic_arrays() -> None:
    parts = [np.full(20, n, np.float32) for n in (1, 2, 3)]
    y = np.zeros(20, np.float32)
    add_all[2](y, 10, (parts[0], parts[1].astype(np.int32), parts[2]), 16)
    assert (y == 60).all()
    add_all[2](y, 10, (), 16)
    assert not y.any()
    assert add_all.configs == {"cpu": {"BLOCK": 16}}
    assert add_all.__doc__ == "Sums the arrays."


def test_three_dimensional_grid() -> None:
    y = np.full((4, 3, 2), -1, np.int64)
    where_am_i[2, 3, 4](y)
    k, j, i = np.indices(y.shape)
    assert (y == i + 10 * j + 100 * k).all()
    y[:] = -1
    where_am_i[2, 0, 4](y)
    assert (y == -1).all()


def test_the_interpreter_agrees() -> None:
    x = np.linspace(-3, 9, 77, dtype=np.float32)
    compiled, interpreted = np.zeros(77, np.float32), np.zeros(77, np.float32)
    scale[5](x, compiled, 0.25, 16, clipped)
    scale.interpret(5)(x, interpreted, 0.25, 16, clipped)
    np.testing.assert_array_equal(compiled, interpreted)


def test_wrong_arguments() -> None:
    x = np.zeros(16, np.float32)
    with pytest.raises(KernelError, match=r"without its argument 'shift'"):
        scale[1](x, x)
    with pytest.raises(KernelError, match="no parameter 'gamma'"):
        scale[1](x, x, 1.0, 16, clipped, gamma=1)
    scale[1](x, x.copy(), 1.0, 16, clipped)
    with pytest.raises(ShapeError, match=r"scale: argument 'shift' wants f32"):
        scale[1](x, x.copy(), "much", 16, clipped)
    with pytest.raises(ShapeError, match="one to three sizes"):
        scale[1, 1, 1, 1](x, x.copy(), 1.0, 16, clipped)
    frozen = np.zeros(16, np.float32)
    frozen.flags.writeable = False
    scale[1](frozen, x, 1.0, 16, clipped)
    with pytest.raises(ShapeError, match=r"'y' is written by the kernel"):
        scale[1](x, frozen, 1.0, 16, clipped)
    with pytest.raises(KernelError):
        scale[1](x, "no array", 1.0, 16, clipped)


def test_one_specialisation_per_signature() -> None:
    fresh = Kernel(scale.fn)
    x, y = np.zeros(16, np.float32), np.zeros(16, np.float32)
    fresh[1](x, y, 1.0, 8, clipped)
    counts = default_target().counts
    before = counts.compiled + counts.disk
    for n in range(3, 9):
        fresh[2](x[:n], y[:n], float(n), 8, clipped)  # sizes and scalars do not matter
    Kernel(scale.fn)[1](x, y, 1.0, 8, clipped)
    assert counts.compiled + counts.disk == before
    fresh[1](x[::2], y[::2], 1.0, 8, clipped)
    assert counts.compiled + counts.disk == before + 1


def test_inspect() -> None:
    x = np.zeros(16, np.float32)
    seen = scale.inspect(x, x, 1.0, 16, clipped)
    assert "kernel scale(%x: array<f32[?]:1>" in seen.ir
    assert "define void @scale" in seen.llvm
    assert "scale:" in seen.asm
    types = (ArrayType.of(f32, 1), ArrayType.of(f32, 1), TileType(f32), 16, clipped)
    assert scale.inspect(*types) == seen


def test_launch_overhead() -> None:
    x, y = np.zeros(16, np.float32), np.zeros(16, np.float32)
    launch = scale[1]
    launch(x, y, 1.0, 16, clipped)
    best = float("inf")
    for _ in range(30):
        start = time.perf_counter()
        for _ in range(30):
            launch(x, y, 1.0, 16, clipped)
        best = min(best, (time.perf_counter() - start) / 30)
    assert best < 60e-6  # about 12 us on an idle machine


def test_environment_chooses_threads_and_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_THREADS", "3")
    assert default_pool().threads == 3
    assert default_pool() is pool_of(None) is pool_of(3)
    assert pool_of(2).threads == 2
    host = default_target().machine
    monkeypatch.setenv("TILEWRIGHT_CPU", "x86-64-v2" if host.arch == "x86_64" else "generic")
    x = np.arange(50, dtype=np.float32)
    y = np.zeros(50, np.float32)
    assert default_target().machine.named
    scale[4](x, y, 0.5, 16, clipped)
    np.testing.assert_array_equal(y, np.minimum(2 * x, 6) + np.float32(0.5))


PROGRAM = """
import sys
import numpy as np
from tilewright.lang.array import Array
from tilewright.lang.builtins import program_id
from tilewright.runtime.launch import default_target, kernel

@kernel
def double(x: Array, y: Array):
    i = program_id(0) * 16
    y[i : i + 16] = x[i : i + 16] * 2

x, y = np.arange(40, dtype=np.float32), np.zeros(40, np.float32)
double[3](x, y)
assert (y == 2 * x).all()
counts = default_target().counts
print(counts.compiled, counts.disk)
"""


def test_a_second_process_compiles_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", str(script)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert [run(), run()] == ["1 0", "0 1"]
    entries = sorted((tmp_path / "cache").rglob("*.o"))
    assert len(entries) == 2  # the kernel and the pool
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-7])
    assert [run(), run()] == ["1 0", "0 1"]
    monkeypatch.setenv("TILEWRIGHT_CACHE", "off")
    assert [run(), run()] == ["1 0", "1 0"]

"""Launch tables: packing, updating in place, running on pools and on the NumPy target."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from tilewright.dtypes import bf16, f32, from_float32, i64
from tilewright.errors import ShapeError
from tilewright.lang.array import Array
from tilewright.lang.builtins import program_id, unroll
from tilewright.lang.function import Arrays, Const, KernelFunction
from tilewright.runtime.buffers import empty, from_array
from tilewright.runtime.program import Launch, LaunchTable
from tilewright.targets.base import Target
from tilewright.targets.cpu.pool import Pool
from tilewright.targets.cpu.target import CPUTarget
from tilewright.targets.numpy import NumPyTarget


def _axpy(x: Array, y: Array, a: f32, BLOCK: Const):
    i = program_id(0) * BLOCK
    y[i : i + BLOCK] = y[i : i + BLOCK] + a * x[i : i + BLOCK].to(f32)


def _prefix(x: Array, n: i64, more: Arrays):
    """x[i + 1] = x[i] + 1, which only works program after program, launch after launch."""
    i = program_id(0) + n
    x[i + 1] = x[i] + 1
    for m in unroll(more):
        m[i] = i


axpy, prefix = KernelFunction(_axpy), KernelFunction(_prefix)


@pytest.fixture(scope="module", params=["cpu", "numpy"])
def target(request: pytest.FixtureRequest) -> Target:
    return CPUTarget() if request.param == "cpu" else NumPyTarget()


@pytest.fixture(scope="module")
def pool() -> Any:
    with Pool(3) as pool:
        yield pool


def launch(target: Target, grid: Any, args: Any, smallest: int = 1, **constants: Any) -> Launch:
    k = axpy if constants else prefix
    executable = target.compile(k, k.signature(args, constants))
    return Launch(executable, grid, args, smallest)


def test_launches_run_in_order(target: Target, pool: Pool) -> None:
    x = np.zeros(41, np.float32)
    seen = np.zeros(40, np.int64)
    table = LaunchTable([launch(target, 1, (x, i, (seen,))) for i in range(40)])
    assert len(table) == 40
    table.run(pool)
    assert (x == np.arange(41)).all()
    assert (seen == np.arange(40)).all()


def test_many_programs_and_empty_grids(target: Target, pool: Pool) -> None:
    x, y = np.arange(1000, dtype=np.float32), np.zeros(1000, np.float32)
    steps = [
        launch(target, 63, (x, y, 1.0), BLOCK=16),
        launch(target, 0, (x, y, 100.0), BLOCK=16),
        launch(target, (63, 1, 1), (x, y, 2.0), smallest=8, BLOCK=16),
        launch(target, 63, (x[::-1], y, 1.0), BLOCK=16),
    ]
    LaunchTable(steps).run(pool)
    np.testing.assert_array_equal(y, x + 2 * x + x[::-1])
    LaunchTable([]).run(pool)


def test_arguments_stay_alive(target: Target, pool: Pool) -> None:
    y = empty(f32, (64,))
    y.numpy()[:] = 1

    def build() -> LaunchTable:
        x = from_array(from_float32(np.full(64, 3, np.float32)), bf16)
        return LaunchTable([launch(target, 4, (x, y, 1.0), BLOCK=16)])

    table = build()
    garbage = [np.full(64, 0xFFFF, np.uint16) for _ in range(100)]
    table.run(pool)
    assert (y.numpy() == 4).all()
    assert len(garbage) == 100


def test_update(target: Target, pool: Pool) -> None:
    x, y = np.ones(64, np.float32), np.zeros(64, np.float32)
    other = np.full(64, 5, np.float32)
    table = LaunchTable([launch(target, 4, (x, y, 1.0), BLOCK=16)] * 2)
    table.update(0, grid=2)
    table.update(1, args=(other, y, 2.0))
    table.run(pool)
    assert y.tolist() == [11.0] * 32 + [10.0] * 32
    table.update(1, grid=0, args=(x, y, 7.0))
    table.run(pool)
    assert y.tolist() == [12.0] * 32 + [10.0] * 32
    before = table.memory.copy()
    with pytest.raises(ShapeError, match="'x' is float64"):
        table.update(1, grid=4, args=(x.astype(np.float64), y, 1.0))
    with pytest.raises(ShapeError, match="one to three"):
        table.update(1, grid=-1)
    assert (table.memory == before).all()
    assert table.launches[1].grid == 0


def test_rewriting_the_memory_directly(target: Target, pool: Pool) -> None:
    x, y = np.ones(64, np.float32), np.zeros(64, np.float32)
    table = LaunchTable([launch(target, 4, (x, y, 1.0), BLOCK=16)] * 3)
    # the first two launches: half the grid, and half of x's length (slot 4)
    index = [table.programs_at(0), table.slot_at(0), table.slot_at(1, 4)]
    table.memory[index] = [2, 2, 32]
    table.run(pool)
    assert y.tolist() == [3.0] * 32 + [1.0] * 32
    assert table.args(1)[4] == 32
    with pytest.raises(IndexError, match="slots"):
        table.slot_at(0, 100)


def test_a_compiled_table_wants_a_pool() -> None:
    x = np.ones(16, np.float32)
    table = LaunchTable([launch(CPUTarget(), 1, (x, x.copy(), 1.0), BLOCK=16)])
    with pytest.raises(ShapeError, match="runs on a pool"):
        table.run()


def test_empty_step_overhead() -> None:
    """A step of a few trivial launches on two threads, called from Python."""
    target = CPUTarget()
    x, y = np.ones(128, np.float32), np.zeros(128, np.float32)
    table = LaunchTable([launch(target, 8, (x, y, 0.0), BLOCK=16)] * 4)
    best = float("inf")
    with Pool(2) as pool:
        for _ in range(30):
            start = time.perf_counter()
            for _ in range(30):
                table.run(pool)
            best = min(best, (time.perf_counter() - start) / 30)
    assert best < 15e-6


def test_compile_many_finds_duplicates_and_keeps_the_order() -> None:
    target = CPUTarget()
    x = np.ones(16, np.float32)
    items = [(axpy, axpy.signature((x, x, 1.0), {"BLOCK": n})) for n in (8, 16, 8, 32, 16)]
    made = target.compile_many(items)
    assert [m.signature["BLOCK"] for m in made] == [8, 16, 8, 32, 16]
    assert made[0] is made[2]
    assert target.counts.compiled + target.counts.disk == 3
    assert target.compile_many([]) == []


def test_compile_many_reports_the_users_error() -> None:
    from tilewright.errors import KernelError

    def _bad(x: Array, BLOCK: Const):
        x[0] = zeros_of_nothing(BLOCK)  # type: ignore[name-defined]  # noqa: F821

    bad, target = KernelFunction(_bad), CPUTarget()
    x = np.ones(16, np.float32)
    items = [(axpy, axpy.signature((x, x, 1.0), {"BLOCK": 4}))]
    items += [(bad, bad.signature((x,), {"BLOCK": n})) for n in (1, 2)]
    with pytest.raises(KernelError, match="zeros_of_nothing"):
        target.compile_many(items)


def test_a_changed_source_or_global_is_another_kernel() -> None:
    source = "def times(x: Array):\n    x[0] = x[0] * FACTOR\n"
    target = CPUTarget()
    x = np.ones(1, np.float32)

    def run(text: str, factor: float) -> float:
        times = KernelFunction.from_source(text, "times", {"Array": Array, "FACTOR": factor})
        executable = target.compile(times, times.signature((x,)))
        executable.run(executable.pack(1, (x,)))
        return float(x[0])

    assert [run(source, 3.0), run(source, 5.0), run(source, 3.0)] == [3, 15, 45]
    assert run(source.replace("*", "+"), 3.0) == 48
    assert target.counts.compiled + target.counts.disk == 3

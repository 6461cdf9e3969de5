"""Loads and stores are total: windows at every offset, gathers, scatters, strides, empty arrays.

Arrays under test sit between guard elements; a guard that changes is a write outside.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from building import Writer, array, at, dense, gather, scalar, strided, window
from lowered import build
from running import run
from test_math import MACHINES, OLDER

from tilewright.dtypes import DType, bf16, boolean, f16, f32, f64, i8, i32, i64, u8
from tilewright.errors import CompileError
from tilewright.lang import ir
from tilewright.targets.cpu.lower import lower
from tilewright.targets.cpu.machine import Machine

every_machine = pytest.mark.parametrize("machine", [*MACHINES, *OLDER], ids=lambda m: m.cpu)
machines = pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.cpu)
GUARD = 80


def guarded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A copy of ``x`` (contiguous) with guards around it, and the whole buffer."""
    pad = GUARD * max(int(np.prod(x.shape[1:])), 1)
    whole = np.full(x.size + 2 * pad, 77).astype(x.dtype)
    view = whole[pad : pad + x.size].reshape(x.shape)
    view[...] = x
    return view, whole


def check(fn: ir.Function, machine: Machine, args: list, grid: tuple[int, ...] = (1,)) -> None:
    """Compiled and interpreted runs agree, and nothing outside the arrays changes."""
    compiled = build(fn, machine)
    check_with(compiled, fn, args, grid)


def check_with(compiled, fn: ir.Function, args: list, grid: tuple[int, ...]) -> None:
    pairs = [guarded(a) if isinstance(a, np.ndarray) else (a, None) for a in args]
    compiled[grid](*[a for a, _ in pairs])
    wanted = [guarded(a) if isinstance(a, np.ndarray) else (a, None) for a in args]
    run(fn, grid, [a for a, _ in wanted])
    for (_, got), (_, want) in zip(pairs, wanted):
        if got is not None:
            np.testing.assert_array_equal(got, want)


def values(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    if dtype is boolean:
        return rng.random(shape) < 0.5
    if dtype is bf16:
        return rng.integers(0, 30000, shape).astype(np.uint16)
    return rng.integers(0, 100, shape).astype(dtype.storage)


@machines
@pytest.mark.parametrize(
    "dtype", [f32, f16, bf16, f64, i8, i32, i64, boolean], ids=lambda d: d.name
)
def test_window_at_any_offset(dtype: DType, machine: Machine) -> None:
    """A copy whose window starts anywhere, the start being a runtime scalar."""
    n = 21
    params = [array(dtype, 1), array(dtype, 1), array(dtype, 1), scalar(i64), scalar(i64)]
    w = Writer(f"copy_{dtype.name}", params)
    x = w.load(params[0], [window(n, params[3])], fill=1)
    w.store(params[1], [window(n, w.const(0))], x)
    w.store(params[2], [window(n, params[4])], x)
    compiled = build(w.fn, machine)
    rng = np.random.default_rng(0)
    big = 2**63 - 1
    for size in (0, 1, 5, 21, 40):
        for start in (0, 1, 19, 20, -1, -20, -21, 22, 40, big, -big - 1, big - 20, 2**40):
            x = values(rng, dtype, (size,))
            out, other = values(rng, dtype, (n,)), values(rng, dtype, (size,))
            check_with(compiled, w.fn, [x, out, other, start, start], (1,))


@every_machine
def test_rows_and_columns_at_the_edges(machine: Machine) -> None:
    """Two-dimensional tiles over a grid that does not divide the array."""
    bm, bn = 3, 18
    params = [array(f32, 2), array(f32, 2), array(i8, 2)]
    w = Writer("edges", params)
    i, j = w.mul(w.pid(1), w.const(bm)), w.mul(w.pid(0), w.const(bn))
    tile = w.load(params[0], [window(bm, i), window(bn, j)])
    w.store(params[1], [window(bm, i), window(bn, j)], w.add(tile, w.const(1.0, f32)))
    w.store(params[2], [window(bm, i), window(bn, j)], w.cast(tile, i8))
    compiled = build(w.fn, machine)
    assert "edge" in compiled.llvm  # inner tiles run without masks
    rng = np.random.default_rng(0)
    for shape in [(6, 36), (7, 40), (1, 1), (2, 17), (3, 19), (0, 5), (4, 0)]:
        x = values(rng, f32, shape)
        grid = (max(-(-shape[1] // bn), 1), max(-(-shape[0] // bm), 1))
        check_with(compiled, w.fn, [x, np.zeros_like(x), np.zeros(shape, np.int8)], grid)


@machines
def test_static_shapes_need_no_checks(machine: Machine) -> None:
    params = [dense(f32, 4, 48), dense(f32, 4, 48)]
    w = Writer("static", params)

    def body(i: ir.Value) -> list[ir.Value]:
        x = w.load(params[0], [at(i), window(48, w.const(0))])
        w.store(params[1], [at(i), window(48, w.const(0))], x)
        return []

    w.loop(0, 4, 1, [], body)
    compiled = build(w.fn, machine)
    assert "edge" not in compiled.llvm
    assert "masked" not in compiled.llvm
    x = np.random.default_rng(0).normal(size=(4, 48)).astype("f")
    check_with(compiled, w.fn, [x, np.zeros_like(x)], (1,))


@machines
def test_strided_windows_and_transposed_arrays(machine: Machine) -> None:
    params = [strided(f32, 2), strided(f32, 2), scalar(i64)]
    w = Writer("strided", params)
    x = w.load(params[0], [window(5, params[2]), window(19, w.const(1), 2)])
    w.store(params[1], [window(5, w.const(0)), window(19, params[2])], x)
    compiled = build(w.fn, machine)
    rng = np.random.default_rng(0)
    for source in (
        rng.normal(size=(6, 40)).astype("f"),
        rng.normal(size=(40, 6)).astype("f").T,
        rng.normal(size=(12, 80)).astype("f")[::2, ::2],
        rng.normal(size=(6, 40)).astype("f")[::-1, ::-1],
        np.broadcast_to(rng.normal(size=(6, 1)).astype("f"), (6, 40)),
    ):
        for start in (0, 2, -3):
            out = np.zeros((20, 5), "f").T
            want = np.zeros((20, 5), "f").T
            compiled[1](source, out, start)
            run(w.fn, (1,), [source, want, start])
            np.testing.assert_array_equal(out, want)


@every_machine
@pytest.mark.parametrize("index", [i32, i64, u8], ids=lambda d: d.name)
@pytest.mark.parametrize("dtype", [f32, i8, boolean], ids=lambda d: d.name)
def test_gather_and_scatter(index: DType, dtype: DType, machine: Machine) -> None:
    """Rows by an index, single elements by an index, and two indices that broadcast."""
    params = [array(dtype, 2), array(index, 1), array(dtype, 2), array(dtype, 1), array(dtype, 2),
              array(dtype, 2), array(dtype, 1)]  # fmt: skip
    table, ids, rows, picks, pairs, target, flat = params
    w = Writer("gather", params)
    zero = w.const(0)
    five = w.load(ids, [window(5, zero)])
    many = w.load(ids, [window(19, zero)])
    got = w.load(table, [gather(five), window(18, zero)], fill=1)
    w.store(rows, [window(5, zero), window(18, zero)], got)
    w.store(picks, [window(19, zero)], w.load(table, [at(w.const(3)), gather(many)]))
    both = w.load(table, [gather(w.expand(five, 1)), gather(w.expand(many, 0))])
    w.store(pairs, [window(5, zero), window(19, zero)], both)
    w.store(target, [gather(five), window(18, zero)], got)
    # The last of several writes to one place wins.
    w.store(flat, [gather(many)], w.load(table, [at(zero), window(19, zero)]))
    rng = np.random.default_rng(0)
    high = 12
    indices = rng.integers(0 if index.kind == "u" else -4, high, 19).astype(index.storage)
    indices[:3] = [2, 2, 2]
    indices[4] = np.iinfo(index.storage).max
    indices[9] = np.iinfo(index.storage).min
    args = [values(rng, dtype, (8, 20)), indices]
    args += [values(rng, dtype, s) for s in [(5, 18), (19,), (5, 19), (8, 20), (7,)]]
    check(w.fn, machine, args)


@machines
def test_gathered_windows_in_the_middle(machine: Machine) -> None:
    """Paged access: pages[table[i], head, :, d0:d1] with an index loaded from memory."""
    params = [array(f32, 4), array(i32, 1), array(f32, 2)]
    pages, table, out = params
    w = Writer("paged", params)
    page = w.cast(w.load(table, [at(w.pid())]), i64)
    tile = w.load(pages, [at(page), at(w.const(1)), window(4, w.const(0)), window(20, w.const(0))])
    w.store(out, [at(w.pid()), window(20, w.const(0))], w.reduce("max", tile, 0))
    rng = np.random.default_rng(0)
    x = values(rng, f32, (3, 2, 4, 20))
    check(w.fn, machine, [x, np.array([2, -1, 7, 0, 1], np.int32), np.zeros((5, 20), "f")], (5,))


@machines
def test_scalars_of_every_dtype(machine: Machine) -> None:
    params = [scalar(f32), scalar(f64), scalar(i32), scalar(i8), scalar(u8), scalar(boolean),
              array(f64, 1)]  # fmt: skip
    w = Writer("scalars", params)
    for k, p in enumerate(params[:-1]):
        w.store(params[-1], [at(w.const(k))], w.cast(p, f64))
    out = np.zeros(6)
    build(w.fn, machine)[1](0.1, 0.1, -5, -128, 200, True, out)
    np.testing.assert_array_equal(out, [np.float32(0.1), 0.1, -5, -128, 200, 1])


@machines
def test_grid_is_walked_in_any_pieces(machine: Machine) -> None:
    params = [array(i64, 4)]
    w = Writer("grid", params)
    ids = [w.pid(a) for a in range(3)]
    for k, value in enumerate([*ids, w.emit("num_programs", (), ir.TileType(i64), axis=1)]):
        w.store(params[0], [at(w.const(k)), *[at(v) for v in ids]], w.add(value, w.const(1)))
    grid = (3, 4, 5)
    compiled = build(w.fn, machine)
    want = np.zeros((4, *grid), np.int64)
    run(w.fn, grid, [want])
    for cuts in ([0, 60], [0, 1, 7, 59, 60], list(range(61)), [0, 0, 60, 60]):
        out = np.zeros_like(want)
        for lo, hi in itertools.pairwise(cuts):
            compiled[grid](out, lo=lo, hi=hi)
        np.testing.assert_array_equal(out, want)


@every_machine
def test_in_place(machine: Machine) -> None:
    """The same array as source and target: loads come before stores, as written."""
    params = [array(f32, 1), array(f32, 1)]
    w = Writer("in_place", params)
    start = w.mul(w.pid(), w.const(40))
    x = w.load(params[0], [window(40, start)])
    flipped = w.concat(0, w.slice(x, (20,), (20,)), w.slice(x, (0,), (20,)))
    w.store(params[1], [window(40, start)], flipped)
    x = np.arange(80).astype("f")
    want = np.concatenate([np.roll(x[:40], 20), np.roll(x[40:], 20)])
    build(w.fn, machine)[2](x, x)
    np.testing.assert_array_equal(x, want)


@machines
def test_scratch_and_conditionals(machine: Machine) -> None:
    params = [array(f32, 2), array(f32, 2), scalar(i64)]
    w = Writer("scratch", params)
    zero = w.const(0)
    memory = w.b.emit("scratch", (), (ir.ArrayType.dense(f32, (7, 24)),)).result
    x = w.load(params[0], [window(7, zero), window(24, zero)])
    w.store(memory, [window(7, zero), window(24, zero)], x)
    total = w.const(0.0, f32, (24,))

    def body(i: ir.Value, acc: ir.Value) -> list[ir.Value]:
        row = w.load(memory, [at(i), window(24, zero)])
        odd = w.binary("eq", w.binary("mod", i, w.const(2)), w.const(1))
        return list(
            w.branch(odd, lambda: [w.add(acc, row)], lambda: [w.mul(acc, w.const(0.5, f32))])
        )

    (total,) = w.loop(0, params[2], 1, [total], body)
    w.store(params[1], [at(zero), window(24, zero)], total)
    x = np.random.default_rng(0).normal(size=(7, 24)).astype("f")
    compiled = build(w.fn, machine)
    for n in (0, 1, 7, 9, -3):
        check_with(compiled, w.fn, [x, np.zeros((1, 24), "f"), n], (1,))


@machines
def test_loops_of_every_kind(machine: Machine) -> None:
    params = [array(i64, 1), scalar(i64), scalar(i64), scalar(i64)]
    w = Writer("loops", params)
    one = w.const(1)

    def count(lo, hi, step) -> ir.Value:
        body = lambda i, n, s: [w.add(n, one), w.add(s, i)]  # noqa: E731
        n, s = w.loop(lo, hi, step, [w.const(0), w.const(0)], body)
        return w.add(w.mul(n, w.const(1000)), s)

    results = [count(0, 5, 1), count(3, 3, 1), count(2, 11, 4), count(0, 5, 0), count(5, 0, -1),
               count(*params[1:]), count(0, params[2], 3), count(params[1], 10, 1)]  # fmt: skip
    for k, value in enumerate(results):
        w.store(params[0], [at(w.const(k))], value)
    compiled = build(w.fn, machine)
    for lo, hi, step in [(0, 7, 2), (0, 7, 0), (7, 0, -1), (-3, 4, 1), (4, 4, 1), (5, 4, 9)]:
        check_with(compiled, w.fn, [np.zeros(8, np.int64), lo, hi, step], (1,))


@machines
def test_starts_computed_from_hostile_numbers(machine: Machine) -> None:
    """Arithmetic on indices that were loaded may wrap around; no conclusion may rest on it."""
    params = [array(f32, 1), array(i64, 1), array(f32, 2)]
    source, numbers, out = params
    w = Writer("hostile", params)
    zero, five, n = w.const(0), w.const(5), w.const(40)
    x = w.load(numbers, [at(w.pid())])
    high = w.binary("sub", w.binary("min", x, n), w.const(-(2**63) + 45))
    starts = [
        w.add(w.binary("max", x, zero), five),
        w.binary("sub", w.binary("min", x, n), five),
        w.mul(w.binary("max", x, zero), w.const(8)),
        w.binary("shl", w.binary("max", x, zero), w.const(3)),
        w.binary("min", w.binary("max", w.add(x, five), zero), w.const(30)),
        w.binary("mod", x, n),
        w.binary("floordiv", w.binary("max", x, five), w.const(3)),
        w.add(w.cast(w.cast(x, i32), i64), five),
        w.cast(w.add(w.cast(x, i32), w.const(2**31 - 1, i32)), i64),
        w.binary("shr", x, w.const(2)),
        w.unary("neg", w.binary("min", x, zero)),
        high,
    ]
    for k, start in enumerate(starts):
        w.store(out, [at(w.const(k)), window(20, zero)], w.load(source, [window(20, start)]))
        w.store(source, [window(20, start)], w.const(float(-k), f32, (20,)))

    # A loop near the largest number: its counter must not come round to the array again.
    def body(i: ir.Value) -> list[ir.Value]:
        w.store(source, [window(20, i)], w.const(7.0, f32, (20,)))
        return []

    w.loop(w.binary("max", w.binary("sub", high, w.const(3)), zero), high, 4, [], body)
    compiled = build(w.fn, machine)
    rng = np.random.default_rng(0)
    hostile = [0, 1, 5, 30, 39, 41, -1, -5, -40, 2**63 - 1, -(2**63), 2**63 - 5, -(2**63) + 4,
               2**60, 2**61 + 1, 2**31, 2**31 - 1, -(2**31), 2**32 - 5, 2**62]  # fmt: skip
    for number in hostile:
        args = [values(rng, f32, (45,)), np.array([number]), np.zeros((len(starts), 20), "f")]
        check_with(compiled, w.fn, args, (1,))


def test_too_much_scratch_is_refused() -> None:
    w = Writer("huge", [array(f32, 1)])
    w.b.emit("scratch", (), (ir.ArrayType.dense(f32, (500, 500)),))
    with pytest.raises(CompileError, match="1000000 bytes"):
        lower(w.fn, Machine.detect_host())


@pytest.mark.parametrize("cpu", ["sandybridge", "haswell", "skylake-avx512", "alderlake"])
def test_other_x86_machines_compile(cpu: str) -> None:
    """Code is emitted for machines that need not be this one."""
    from tilewright.targets.cpu.codegen import compile_object

    params = [array(f32, 2), array(i8, 2), array(i32, 2), array(f16, 2)]
    w = Writer("emit", params)
    zero, start = w.const(0), w.mul(w.pid(), w.const(40))
    x, y, z, h = (w.load(p, [window(4, zero), window(40, start)]) for p in params)
    packed = w.emit("dot4", (z, z, z), z.type)
    out = w.add(
        w.unary("exp", x), w.add(w.cast(y, f32), w.add(w.cast(packed, f32), w.cast(h, f32)))
    )
    w.store(params[0], [window(4, zero), window(40, start)], out)
    machine = Machine.from_name(cpu)
    if Machine.detect_host().arch != "x86_64":
        pytest.skip("x86 names are known on x86 only")
    assert len(compile_object(lower(w.fn, machine), machine).data) > 1000


def test_aarch64_compiles_without_library_calls() -> None:
    """Every kind of op for an Arm server, as assembly: there is nothing here to run it."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    flags = frozenset({"neon", "dotprod", "fullfp16"})
    machine = Machine("neoverse-n1", "", "aarch64-unknown-linux-gnu", flags)
    assert machine.lanes == 4
    params = [array(f32, 2), array(f32, 2), array(i32, 2), array(f16, 2), array(bf16, 2)]
    w = Writer("arm", params)
    zero, start = w.const(0), w.mul(w.pid(), w.const(10))
    x, y, z, h, b = (w.load(p, [window(10, zero), window(10, start)]) for p in params)
    total = w.dot(x, y, w.cast(h, f32))
    for name in ("exp", "log", "sin", "tanh", "erf", "sqrt", "round"):
        total = w.add(total, w.unary(name, x))
    total = w.add(total, w.cast(w.emit("dot4", (z, z, z), z.type), f32))
    total = w.add(total, w.expand(w.reduce("sum", w.cast(b, f32), 1), 1))
    w.store(params[0], [window(10, zero), window(10, start)], total)
    w.store(params[3], [window(10, zero), window(10, start)], w.cast(total, f16))
    w.store(params[4], [window(10, zero), window(10, start)], w.cast(total, bf16))
    module = llvm.parse_assembly(lower(w.fn, machine))
    module.verify()
    target = llvm.Target.from_triple(machine.triple)
    asm = target.create_target_machine(cpu=machine.cpu, opt=2).emit_assembly(module)
    assert "fmla" in asm
    calls = {line.split()[1] for line in asm.splitlines() if line.startswith("\tbl\t")}
    assert {name for name in calls if not name.startswith(("tw.", "arm."))} == set()

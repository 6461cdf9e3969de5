"""What kernels may say: control flow, inline functions, tuples of arrays, scans, scratch."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from ir_evaluator import run_ir

from tilewright import lang
from tilewright import lang as tl
from tilewright.lang import (
    Array,
    Arrays,
    Const,
    Inline,
    KernelFunction,
    arange,
    associative_scan,
    concatenate,
    cumsum,
    dot,
    exp,
    f32,
    full,
    i32,
    i64,
    maximum,
    num_programs,
    program_id,
    range,
    scratch,
    unroll,
    where,
    zeros,
)

NAMES = {name: getattr(lang, name) for name in lang.__all__}


def copied(a: Any) -> Any:
    if isinstance(a, tuple):
        return tuple(map(copied, a))
    return a.copy() if isinstance(a, np.ndarray) else a


def run(fn: Any, grid: Any, *args: Any, **consts: Any) -> None:
    """Interpret; the IR must give the same bits."""
    kernel = fn if isinstance(fn, KernelFunction) else KernelFunction(fn)
    copies = tuple(map(copied, args))
    kernel.interpret(grid)(*args, **consts)
    run_ir(kernel, (grid,) if isinstance(grid, int) else grid, copies, **consts)
    for a, b in zip(args, copies):
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
        elif isinstance(a, tuple) and a and isinstance(a[0], np.ndarray):
            for x, y in zip(a, b):
                np.testing.assert_array_equal(x, y)


def text(body: str, parameters: str = "x: Array, y: Array, n: i64", **env: Any) -> KernelFunction:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return KernelFunction.from_source(
        f"def kernel({parameters}):\n{lines}", "kernel", {**NAMES, **env}
    )


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


# --- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "window",
    [
        "i : i + 4",
        "i : 4 + i",
        "i + 1 : i + 5",
        "i - 3 : i + 1",
        "4 * i : 4 * (i + 1)",
        "i * 4 : i * 4 + 4",
        "i // 2 * 3 : i // 2 * 3 + 4",
        "(i + n) * 2 - i : 2 * n + i + 4",
        "n * i : i * n + 4",
        "-2 : 2",
        ":4",
        "n : n + 4",
        "-i : 4 - i",
        "min(i, n) : min(i, n) + 4",
        "y.shape[0] - 4 : y.shape[0]",
        "k[i] : k[i] + 4",
        "i : i + 8 : 2",
        "i : i + 7 : 2",
    ],
)
def test_window_lengths_are_found_symbolically(window):
    kernel = text(
        f"i = program_id(0)\ny[i, 0:4] = x[{window}]", "x: Array, y: Array, k: Array, n: i64"
    )
    x, k = floats(20), np.arange(3, dtype=np.int32) * 5
    y = np.zeros((3, 4), np.float32)
    run(kernel, 3, x, y, k, 7)
    padded = np.concatenate([np.zeros(50, "f"), x, np.zeros(50, "f")])
    for i in (0, 1, 2):
        scope = {"i": i, "n": 7, "k": k.tolist(), "y": y, "min": min}
        start, stop, step = (*[eval(p or "0", scope) for p in window.split(":")], 1)[:3]
        np.testing.assert_array_equal(y[i], padded[50 + start : 50 + stop : step])


def test_windows_outside_read_fill_and_write_nothing():
    def kernel(x: Array, y: Array):
        i = program_id(0)
        y[i, 0:6] = tl.load(x[i - 1, -2:4], fill=-1.5)
        x[i + 1, 3:9] = 9.0

    x = floats(3, 5)
    before = x.copy()
    y = np.full((4, 6), 7.0, np.float32)
    run(kernel, (1,), x, y)
    np.testing.assert_array_equal(y[0], -1.5)
    before[1, 3:] = 9
    np.testing.assert_array_equal(x, before)


def test_huge_indices_are_outside():
    kernel = text("y[0:4] = x[n : n + 4]\nx[n : n + 4] = 5.0\nx[-n : 4 - n] = 5.0")
    x, y = floats(5), np.ones(4, np.float32)
    before = x.copy()
    run(kernel, 1, x, y, (1 << 63) - 1)
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(x, before)


def test_negative_indices_do_not_wrap():
    kernel = text("y[0] = x[-1]\ny[-1] = 3.0")
    x, y = np.ones(4, np.float32), np.full(4, 7, np.float32)
    run(kernel, 1, x, y, 0)
    np.testing.assert_array_equal(y, [0, 7, 7, 7])


def test_gather_and_scatter():
    def kernel(table: Array, ids: Array, out: Array, back: Array):
        rows = ids[0:4]
        out[0:4, 0:3] = table[rows, 1:4]
        out[ids[0:2], 3] = table[rows[0:2], ids[2:4]]
        back[rows] = arange(4).to(f32) + 1.0
        back[rows[:, None] * 0 + 7 + arange(2)] = 5.0

    table = floats(6, 5)
    ids = np.array([2, -1, 2, 5], np.int32)
    out, back = np.zeros((4, 4), np.float32), np.zeros(9, np.float32)
    run(kernel, 1, table, ids, out, back)
    want = np.where((ids >= 0)[:, None], table[ids, 1:4], 0)
    np.testing.assert_array_equal(out[:, :3], want)
    np.testing.assert_array_equal(back, [0, 0, 3, 0, 0, 4, 0, 5, 5])  # the last write wins


def test_gathers_broadcast_against_each_other():
    def kernel(x: Array, y: Array):
        rows, columns = arange(3) * 2, arange(4) + 1
        y[0:3, 0:4, 0:2] = x[rows[:, None], columns[None, :], 0:2]

    x, y = floats(5, 6, 2), np.zeros((3, 4, 2), np.float32)
    run(kernel, 1, x, y)
    np.testing.assert_array_equal(y, x[np.arange(3)[:, None] * 2, np.arange(4) + 1])


def test_strided_and_reversed_arrays():
    def kernel(x: Array, y: Array):
        y[0:3, 0:4] = x[0:3, 1:5]

    x, y = floats(6, 12)[::-2, ::2], np.zeros((4, 3), np.float32).T
    run(KernelFunction(kernel), 1, x, y)
    np.testing.assert_array_equal(y, x[0:3, 1:5])


def test_zero_sized_and_zero_dimensional_arrays():
    def kernel(x: Array, y: Array, z: Array):
        y[0:3] = tl.load(x[0:3], fill=2)
        x[0:3] = 1.0
        z[()] = z[()] + 1.0

    y, z = np.zeros(3, np.float32), np.array(4, np.float32)
    KernelFunction(kernel).interpret(1)(np.zeros(0, np.float32), y, z)
    np.testing.assert_array_equal(y, 2)
    assert z == 5


def test_full_slices_of_static_axes():
    from tilewright.dtypes import f32 as single
    from tilewright.lang.ir import ArrayType

    kernel = text("y[i, :] = x[:, 2] + x.shape[0]\ni = 0", "x: Array, y: Array")
    kernel = text("y[0, :] = x[:, 2] + x.shape[0]\ny[1, 1:] = x[1:, 0]", "x: Array, y: Array")
    signature = kernel.signature((ArrayType.dense(single, (4, 3)), ArrayType.dense(single, (2, 4))))
    x, y = floats(4, 3), np.zeros((2, 4), np.float32)
    kernel.interpret(1, signature)(x, y)
    np.testing.assert_array_equal(y, [x[:, 2] + 4, [0, *x[1:, 0]]])
    assert "dim" not in str(kernel.ir(signature))


def test_augmented_assignment_of_windows():
    kernel = text("y[0:4] += x[0:4]\ny[1] *= 2.0\ny[0:2] -= 1")
    x, y = floats(4), floats(4)
    want = y + x
    want[1] *= 2
    want[:2] -= 1
    run(kernel, 1, x, y, 0)
    np.testing.assert_array_equal(y, want)


def test_unused_index_arithmetic_leaves_no_ops():
    ir = str(text("y[n * 8 : n * 8 + 4] = x[n * 8 : (n + 1) * 8 - 4]").ir(
        text("pass").signature((floats(4), floats(4), 1))
    ))  # fmt: skip
    assert ir.count(" mul ") == 2
    assert " add " not in ir


# --- control flow --------------------------------------------------------------------------------


def test_runtime_loop_carries_what_it_must():
    kernel = text(
        """
v = x[0:4]
total = zeros((4,), f32)
last = 0
for j in range(1, n):
    v = x[j : j + 4]        # assigned before it is read: not carried
    total = total + v
    last = j
v = x[0:2]                   # another shape, later
y[0:4] = total
y[4] = last.to(f32)
y[5:7] = v
"""
    )
    x, y = floats(12), np.zeros(8, np.float32)
    run(kernel, 1, x, y, 5)
    want = np.zeros(4, "f")
    for j in (1, 2, 3, 4):
        want = want + x[j : j + 4]
    np.testing.assert_array_equal(y[:4], want)
    assert y[4] == 4
    ir = str(kernel.ir(kernel.signature((x, y, 5))))
    assert "%total" in ir
    assert "%last" in ir
    loop = next(line for line in ir.splitlines() if " for " in line)
    assert loop.split("=")[0].count("%") == 2  # total and last


def test_loops_that_run_no_iteration():
    kernel = text(
        "t = x[0:2]\nfor j in range(n, 3):\n    t = t + 1.0\n"
        "for j in range(0, 9, n):\n    t = t * 2.0\ny[0:2] = t"
    )
    x = floats(2)
    for n, times in [(3, 3), (9, 1), (-1, 0)]:
        y = np.zeros(2, np.float32)
        run(kernel, 1, x, y, n)
        want = x + (4.0 if n == -1 else 0.0)
        np.testing.assert_allclose(y, want * 2.0**times, rtol=1e-6)


@pytest.mark.parametrize(
    ("start", "update", "dtype"),
    [
        ("0.0", "t + x[j]", "f32"),
        ("0", "t + ids[j]", "i32"),
        ("0", "t + j", "i64"),
        ("True", "t & (x[j] > 0)", "bool"),
        ("0", "t + x[j]", "f32"),
        ("-inf", "maximum(t, x[j].to(f16))", "f16"),
        ("1", "t * 2.5 + 0.0 * x[j]", "f32"),
    ],
)
def test_numbers_carried_by_loops_take_the_dtype_of_the_first_iteration(start, update, dtype):
    spelled = "boolean" if dtype == "bool" else dtype
    kernel = text(
        f"t = {start}\nfor j in range(n):\n    t = {update}\n"
        f"assert t.dtype is {spelled}\ny[0] = t.to(f32)",
        "x: Array, ids: Array, y: Array, n: i64",
    )
    y = np.zeros(1, np.float32)
    run(kernel, 1, floats(6), np.arange(6, dtype=np.int32), y, 5)
    t: Any = eval(start, {"inf": np.inf})
    x, ids = floats(6), np.arange(6)
    for j in (0, 1, 2, 3, 4):
        t = eval(
            update.replace(".to(f16)", ""), {"t": t, "x": x, "ids": ids, "j": j, "maximum": max}
        )
    np.testing.assert_allclose(y[0], float(t), rtol=1e-3)


def test_numbers_that_loops_do_not_change_stay_constants():
    kernel = text(
        """
width = 4
first = 1
total = zeros((4,), f32)
for j in range(n):
    width = 4
    total = total + x[j : j + width]
    for k in range(2):
        total = total + x[k : k + width]
    if first == 1:
        total = total * 2.0
    first = 0
y[0:width] = total
"""
    )
    x, y = floats(12), np.zeros(4, np.float32)
    run(kernel, 1, x, y, 3)
    want = np.zeros(4, "f")
    for j in (0, 1, 2):
        want = want + x[j : j + 4] + x[0:4] + x[1:5]
        want = want * (2 if j == 0 else 1)
    np.testing.assert_allclose(y, want, rtol=1e-6)


def test_swapped_variables():
    kernel = text(
        "a = cast(0, f32)\nb = cast(1, f32)\nfor j in range(n):\n    a, b = b, a + b\n"
        "y[0] = a\ny[1] = b"
    )
    y = np.zeros(2, np.float32)
    run(kernel, 1, floats(1), y, 10)
    np.testing.assert_array_equal(y, [55, 89])


def test_tuples_of_tiles_are_carried():
    kernel = text(
        """
acc = (zeros((2,), f32), zeros((2,), f32), 0)
for j in range(n):
    acc = (acc[0] + x[j : j + 2], acc[1] + 1.0, acc[2] + 1 + 0 * j)
y[0:2] = acc[0]
y[2:4] = acc[1]
y[4] = acc[2].to(f32)
"""
    )
    x, y = floats(8), np.zeros(5, np.float32)
    run(kernel, 1, x, y, 3)
    np.testing.assert_allclose(y, [*(x[0:2] + x[1:3] + x[2:4]), 3, 3, 3], rtol=1e-6)


def test_nested_loops():
    kernel = text(
        """
total = 0.0
for j in range(n):
    row = 0.0
    for k in range(j):
        row += x[k]
    total += row
y[0] = total
"""
    )
    x, y = floats(8), np.zeros(1, np.float32)
    run(kernel, 1, x, y, 6)
    np.testing.assert_allclose(y[0], sum(x[:j].sum() for j in (0, 1, 2, 3, 4, 5)), rtol=1e-5)


def test_runtime_if():
    kernel = text(
        """
i = program_id(0)
v = x[i]
if v > 0 and not (i == n):
    w = v * 2.0
    y[i] = w
elif i == n:
    w = 100.0
else:
    w = -v
    v = 0.0
y[i + 10] = w
y[i + 20] = v if i > 1 else 1
if n:
    y[i + 30] = 1.0
"""
    )
    x = np.array([1, -2, 3, -4, 5], np.float32)
    y = np.zeros(40, np.float32)
    run(kernel, 5, x, y, 2)
    np.testing.assert_array_equal(y[:5], [2, 0, 0, 0, 10])
    np.testing.assert_array_equal(y[10:15], [2, 2, 100, 4, 10])
    np.testing.assert_array_equal(y[20:25], [1, 1, 3, 0, 5])
    np.testing.assert_array_equal(y[30:35], 1)


def test_early_return():
    kernel = text(
        """
i = program_id(0)
if i >= n:
    return
y[i] = pick(x[i])
if i == 1:
    if FLAG:
        return
y[i] += 100.0
""",
        pick=pick,
        FLAG=True,
    )
    x, y = np.array([1, -2, 3, -4, 5], np.float32), np.zeros(5, np.float32)
    run(kernel, 5, x, y, 4)
    np.testing.assert_array_equal(y, [101, 2, 103, 104, 0])


def pick(v):
    """An inline function with early returns on runtime values."""
    if v > 0:
        return v
    elif v == 0:  # noqa: RET505
        return 1.0
    doubled = v * -2.0
    return doubled / 2


def test_unroll():
    kernel = text(
        """
total = zeros((4,), f32)
for j in unroll(1, 9, 2):
    if j == 5:
        continue
    if j > 6:
        break
    total = total + x[j : j + 4] * j
for a, b in unroll(zip((0, 1), (2.0, 3.0))):
    total = total + x[a] * b
for j in unroll(range(2)):
    total = total + j
for j in unroll((5, 6)):
    total = total + j
y[0:4] = total
assert j == 6
"""
    )
    x, y = floats(12), np.zeros(4, np.float32)
    run(kernel, 1, x, y, 0)
    want = x[1:5] + x[3:7] * 3 + x[0] * 2 + x[1] * 3 + 12
    np.testing.assert_allclose(y, want, rtol=1e-5)


def test_compile_time_choices():
    kernel = text(
        """
if MODE == "double" and x.dtype is f32:
    v = x[0:4] * 2.0
else:
    v = undefined_name
if BIAS is not None:
    v = v + BIAS[0:4]
y[0:B] = v[0:B] if B < 4 else v
assert isinstance(B, int), "B is a number"
z = (1, 2, 3)[1] + len((1, 2)) + max(2, B) + abs(-1) + 7 // 2 + 2**3 + int(2.5)
y[4] = z
""",
        "x: Array, y: Array, MODE: Const, BIAS: Const, B: Const = 3",
    )
    x, y = floats(4), np.zeros(5, np.float32)
    run(kernel, 1, x, y, MODE="double", BIAS=None)
    np.testing.assert_array_equal(y[:3], x[:3] * 2)
    assert y[4] == 2 + 2 + 3 + 1 + 3 + 8 + 2


def test_program_ids_and_grid():
    def kernel(y: Array):
        i, j, k = program_id(0), program_id(1), program_id(2)
        a, b = num_programs(0), num_programs(1)
        y[i + a * (j + b * k)] = (i * 100 + j * 10 + k).to(f32)

    y = np.zeros(24, np.float32)
    run(kernel, (2, 3, 4), y)
    want = [i * 100 + j * 10 + k for k in (0, 1, 2, 3) for j in (0, 1, 2) for i in (0, 1)]
    np.testing.assert_array_equal(y, want)


# --- functions -----------------------------------------------------------------------------------


SLOPE = 0.25


def leaky(v, slope=SLOPE):
    return where(v > 0, v, v * slope)


def scaled(factor):
    def scale(v):
        return v * factor

    return scale


@dataclass(frozen=True)
class Format:
    """A quantisation format, as kernels are handed one."""

    block: int
    unpack: Any

    def bytes(self, n):
        return n // self.block


def test_inline_functions_and_closures():
    def kernel(x: Array, y: Array, epilogue: Inline, extra: Const, B: Const):
        half = 0.5

        def local(v, w=1.0, *, bias=0.0):
            return (v + w) * half + bias

        v = x[0:B]
        y[0:B] = epilogue(v)
        y[B : 2 * B] = extra[1](local(v, bias=2.0))
        y[2 * B : 3 * B] = (lambda a, b: a - b)(v, leaky(v, slope=0.5))
        y[3 * B : 4 * B] = TABLE["relu"](v) if "relu" in TABLE else v

    x, y = floats(4), np.zeros(16, np.float32)
    run(kernel, 1, x, y, leaky, (1, scaled(3.0)), 4)
    np.testing.assert_allclose(y[:4], np.where(x > 0, x, x * np.float32(0.25)))
    np.testing.assert_allclose(y[4:8], ((x + 1) * 0.5 + 2) * 3, rtol=1e-6)
    np.testing.assert_allclose(y[8:12], np.where(x > 0, 0, x * 0.5))
    np.testing.assert_array_equal(y[12:], np.maximum(x, 0))


TABLE = {"relu": lambda v: maximum(v, 0.0), "gelu": lambda v: v * tl.sigmoid(1.702 * v)}


def test_constants_with_structure():
    def kernel(x: Array, y: Array, fmt: Const):
        n = fmt.block
        for j in range(0, fmt.bytes(16)):
            y[j * n : (j + 1) * n] = fmt.unpack(x[j * n : (j + 1) * n])

    x, y = floats(16), np.zeros(16, np.float32)
    run(kernel, 1, x, y, Format(4, lambda v: v + sum(v)))
    want = (x.reshape(4, 4) + x.reshape(4, 4).sum(1, keepdims=True)).reshape(-1)
    np.testing.assert_allclose(y, want, rtol=1e-6)
    other = dataclasses.replace(Format(4, abs), block=8)
    run(kernel, 1, x, y, other)
    np.testing.assert_array_equal(y, np.abs(x))


def test_kernels_can_be_inlined():
    inner = KernelFunction(double_row)

    def kernel(x: Array, y: Array):
        inner(x, y, program_id(0), B=4)

    x, y = floats(3, 4), np.zeros((3, 4), np.float32)
    run(kernel, 3, x, y)
    np.testing.assert_array_equal(y, x * 2)


def double_row(x: Array, y: Array, row: i64, B: Const):
    y[row, 0:B] = x[row, 0:B] * 2.0


def test_lambdas_on_one_line():
    fs = (lambda v: v + 1.0, lambda v: v * 3.0)
    x = floats(4)
    for f, want in zip(fs, (x + 1, x * 3)):
        y = np.zeros(4, np.float32)
        run(text("y[0:4] = f(x[0:4])", "x: Array, y: Array, f: Const"), 1, x, y, f)
        np.testing.assert_array_equal(y, want)


def test_recursion_that_ends_at_compile_time():
    kernel = text("y[0] = tree(x, 0, 8)", tree=tree)
    x, y = floats(8), np.zeros(1, np.float32)
    run(kernel, 1, x, y, 0)
    np.testing.assert_allclose(y[0], x.sum(), rtol=1e-6)


def tree(x, low, n):
    if n == 1:
        return x[low]
    return tree(x, low, n // 2) + tree(x, low + n // 2, n // 2)


def test_builtins_by_module_name_and_python_name():
    def kernel(x: Array, y: Array):
        v = x[0:4]
        y[0] = sum(v)
        y[1] = tl.sum(v)
        y[2] = max(v)
        y[3] = min(abs(v))
        y[4:8] = round(max(v, 0.0))
        for j in tl.range(2):
            y[8 + j] = pow(v[0], 2)

    x, y = floats(4), np.zeros(10, np.float32)
    run(kernel, 1, x, y)
    np.testing.assert_allclose(y[:4], [x.sum(), x.sum(), x.max(), np.abs(x).min()], rtol=1e-6)
    np.testing.assert_array_equal(y[4:8], np.rint(np.maximum(x, 0)))
    np.testing.assert_array_equal(y[8:], x[0] * x[0])


def test_print_and_host_builtins(capsys):
    kernel = text("v = x[0:2]\nprint('v is', v)\ny[0:2] = v")
    x, y = np.array([1, 2], np.float32), np.zeros(2, np.float32)
    kernel.interpret(1)(x, y, 0)
    assert capsys.readouterr().out == "v is f32[2] [1. 2.]\n"


def test_breakpoint_stops_with_real_values(monkeypatch):
    seen = []

    def hook():
        frame = sys._getframe(1)
        seen.append(frame.f_locals["v"].numpy().tolist())

    monkeypatch.setattr(sys, "breakpointhook", hook)
    kernel = text(
        "for j in range(2):\n    v = x[j : j + 2]\n    breakpoint()\n    y[j : j + 2] = v"
    )
    x, y = np.array([1, 2, 3], np.float32), np.zeros(3, np.float32)
    kernel.interpret(1)(x, y, 0)
    assert seen == [[1, 2], [2, 3]]


# --- tuples of arrays ----------------------------------------------------------------------------


def test_arrays_parameter():
    def kernel(y: Array, extras: Arrays, B: Const):
        total = zeros((B,), f32)
        for e in unroll(extras):
            total = total + e[0:B].to(f32)
        y[0:B] = total + len(extras)
        if len(extras) > 1:
            extras[1][0:B] = 1

    x, k, y = floats(4), np.arange(4, dtype=np.int32), np.zeros(4, np.float32)
    want = x + k.astype("f") + 2
    run(kernel, 1, y, (x, k), B=4)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(k, 1)
    run(kernel, 1, y, (), B=4)
    np.testing.assert_array_equal(y, 0)
    names = [p.name for p in KernelFunction(kernel).ir(
        KernelFunction(kernel).signature((y, (x, k)), {"B": 4})).params]  # fmt: skip
    assert names == ["y", "extras.0", "extras.1"]


def test_variadic_arrays():
    def kernel(y: Array, *extras: Array):
        for e in unroll(extras):
            y[0:4] += e[0:4]

    x, y = floats(4), np.zeros(4, np.float32)
    KernelFunction(kernel).interpret(1)(y, x, x)
    np.testing.assert_array_equal(y, x + x)


# --- reductions, scans, movement, scratch --------------------------------------------------------


def test_reductions_with_axes():
    def kernel(x: Array, y: Array):
        v = x[0:3, 0:5]
        y[0, 0:3] = sum(v, axis=1)
        y[1, 0:5] = max(v, axis=-2)
        y[2, 0:3] = v[:, 0] - sum(v, 1, keepdims=True)[:, 0]
        y[3, 0] = sum(v, axis=(0, 1))
        y[3, 1] = tl.prod(v)
        y[3, 2] = tl.argmax(v).to(f32)
        y[4, 0:5] = tl.argmin(v, axis=0).to(f32)
        y[5, 0:5] = tl.any(v > 1.0, axis=0).to(f32)
        y[5, 5] = tl.all(v > -9.0).to(f32)

    x, y = floats(3, 5), np.zeros((6, 6), np.float32)
    run(kernel, 1, x, y)
    np.testing.assert_allclose(y[0, :3], x.sum(1), rtol=1e-6)
    np.testing.assert_array_equal(y[1, :5], x.max(0))
    np.testing.assert_allclose(y[2, :3], x[:, 0] - x.sum(1), rtol=1e-5)
    np.testing.assert_allclose(y[3, :3], [x.sum(), x.prod(), x.argmax()], rtol=1e-5)
    np.testing.assert_array_equal(y[4, :5], x.argmin(0))
    np.testing.assert_array_equal(y[5], [*(x > 1).any(0), True])


def test_scans():
    def kernel(x: Array, y: Array, k: Array):
        v = x[0:3, 0:5]
        y[0, 0:3, 0:5] = cumsum(v, axis=1)
        y[1, 0:3, 0:5] = cumsum(v, 0, reverse=True)
        # a linear recurrence h = a*h + b as a scan over pairs
        a, b = associative_scan(
            lambda a1, b1, a2, b2: (a1 * a2, b1 * a2 + b2), (v * 0.5, v), axis=1
        )
        y[2, 0:3, 0:5] = b + a * 0.0
        k[0:6] = associative_scan(lambda p, q: maximum(p, q), k[0:6], reverse=True)

    x, y = floats(3, 5), np.zeros((3, 3, 5), np.float32)
    k = np.array([1, 5, 2, 4, 3, 0], np.int32)
    run(kernel, 1, x, y, k)
    np.testing.assert_allclose(y[0], np.cumsum(x, 1), rtol=1e-6)
    np.testing.assert_allclose(y[1], np.cumsum(x[::-1], 0)[::-1], rtol=1e-6)
    h = np.zeros(3)
    for t in (0, 1, 2, 3, 4):
        h = x[:, t] * 0.5 * h + x[:, t]
        np.testing.assert_allclose(y[2, :, t], h, rtol=1e-5)
    np.testing.assert_array_equal(k, [5, 5, 4, 4, 3, 0])


def test_movement():
    def kernel(x: Array, y: Array):
        v = x[0:4, 0:6]
        y[0, 0:24] = v.T.reshape(24)
        y[1, 0:24] = tl.reshape(tl.transpose(v[None], (2, 0, 1)), -1)
        y[2, 0:8] = v[1:3, 2:].reshape(-1)
        y[3, 0:6] = v[2]
        y[4, 0:4] = v[..., -1]
        y[5, 0:6] = v[::2, 1::2].reshape(6)
        y[6, 0:12] = concatenate((v[0], v[1] + 1))
        y[7, 0:12] = tl.broadcast_to(v[0:1, 0:3], (4, 3)).reshape(-1)
        y[8, 0] = v[3, 5]
        y[9, 0:2] = v[1:4:2, 4]

    x, y = floats(4, 6), np.zeros((10, 24), np.float32)
    run(kernel, 1, x, y)
    np.testing.assert_array_equal(y[0], x.T.reshape(-1))
    np.testing.assert_array_equal(y[1], x.T.reshape(-1))
    np.testing.assert_array_equal(y[2, :8], x[1:3, 2:].reshape(-1))
    np.testing.assert_array_equal(y[3, :6], x[2])
    np.testing.assert_array_equal(y[4, :4], x[:, -1])
    np.testing.assert_array_equal(y[5, :6], x[::2, 1::2].reshape(-1))
    np.testing.assert_array_equal(y[6, :12], [*x[0], *(x[1] + 1)])
    np.testing.assert_array_equal(y[7, :12], np.tile(x[0, :3], 4))
    assert y[8, 0] == x[3, 5]
    np.testing.assert_array_equal(y[9, :2], x[1:4:2, 4])


def test_scratch():
    def kernel(x: Array, y: Array):
        s = scratch((2, 8), f32)
        s[0, 0:4] = x[0:4]
        y[0:8] = s[0, 2:10]
        flags = scratch((4,), i32)
        y[8:12] = where(flags[0:4] == 0x7F7F7F7F, 1.0, 0.0)

    x, y = floats(4), np.zeros(12, np.float32)
    run(kernel, 1, x, y)
    np.testing.assert_array_equal(y[:2], x[2:])
    assert np.isnan(y[2:6]).all()  # never stored
    np.testing.assert_array_equal(y[6:8], 0)  # outside
    np.testing.assert_array_equal(y[8:], 1)


def test_dot_runs_over_k_in_order():
    def kernel(a: Array, b: Array, c: Array):
        c[0:2, 0:3] = dot(a[0:2, 0:7], b[0:7, 0:3], full((2, 3), 0.5, f32))
        c[2:4, 0:3] = a[0:2, 0:7] @ b[0:7, 0:3]

    rng = np.random.default_rng(0)
    a = (rng.standard_normal((2, 7)) * 10.0 ** rng.integers(-4, 5, (2, 7))).astype(np.float32)
    b, c = floats(7, 3), np.zeros((4, 3), np.float32)
    run(kernel, 1, a, b, c)
    from tilewright.dtypes import f32 as single
    from tilewright.lang.evaluate import fused_multiply_add

    want = np.full((2, 3), 0.5, np.float32)
    for k in (0, 1, 2, 3, 4, 5, 6):
        want = fused_multiply_add(single, a[:, k : k + 1], b[k : k + 1], want)
    np.testing.assert_array_equal(c[:2], want)
    np.testing.assert_allclose(c[2:], a @ b, rtol=1e-4)


@pytest.mark.parametrize(("left", "right"), [("i32", "i32"), ("u32", "i32"), ("i32", "u32")])
def test_dot4(left, right):
    kernel = text(
        f"y[0:6] = dot4(y[0:6], x[0:6].to({left}), z[0:6].to({right}))",
        "x: Array, z: Array, y: Array",
    )
    rng = np.random.default_rng(0)
    x, z = (rng.integers(0, 256, (6, 4), np.uint8) for _ in (0, 1))
    y = np.array([0, 1, 2**31 - 1, -(2**31), 5, 6], np.int32)
    kinds = [np.uint8 if k == "u32" else np.int8 for k in (left, right)]
    products = x.view(kinds[0]).astype("i8") * z.view(kinds[1]).astype("i8")
    want = (y + products.sum(1)).astype(np.int32)
    run(kernel, 1, x.view(np.int32)[:, 0], z.view(np.int32)[:, 0], y)
    np.testing.assert_array_equal(y, want)


def test_exp_of_load_with_fill():
    kernel = text("y[0:8] = exp(load(x[0:8], fill=-inf))")
    x, y = floats(5), np.ones(8, np.float32)
    run(kernel, 1, x, y, 0)
    np.testing.assert_allclose(y, [*np.exp(x), 0, 0, 0], rtol=1e-6)
    assert exp is tl.exp

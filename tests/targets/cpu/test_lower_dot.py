"""``dot``: k ascending with one fused multiply-add each, wherever the operands live."""

from __future__ import annotations

import numpy as np
import pytest
from building import Writer, array, at, strided, window
from lowered import build
from test_lower_ops import compare
from test_math import MACHINES, OLDER

from tilewright.dtypes import DType, bf16, boolean, f16, f32, f64, from_float32, i8, i32, i64
from tilewright.lang import ir
from tilewright.targets.cpu.machine import Machine

every_machine = pytest.mark.parametrize("machine", [*MACHINES, *OLDER], ids=lambda m: m.cpu)
machines = pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.cpu)


def values(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    if dtype is boolean:
        return rng.random(shape) < 0.5
    x = rng.normal(0, 1, shape) if dtype.is_float else rng.integers(-9, 9, shape)
    return from_float32(x.astype("f")) if dtype is bf16 else x.astype(dtype.storage)


def product(
    m: int, k: int, n: int, kinds: tuple[DType, DType, DType], how: str, offset: int = 0
) -> ir.Function:
    """acc + a b with operands from memory, from registers, cast, or hanging over an edge."""
    da, db, dc = kinds
    kind = strided if how == "strided" else array
    params = [kind(da, 2), kind(db, 2), array(dc, 2)]
    w = Writer(f"dot_{how}", params)
    start = w.mul(w.pid(), w.const(max(m - offset, 1)))
    zero = w.const(0)
    a = w.load(params[0], [window(m, start), window(k, zero)])
    b = w.load(params[1], [window(k, zero), window(n, zero)])
    if how == "registers":
        a, b = (w.unary("neg", w.unary("neg", v)) for v in (a, b))
    if how == "cast":
        a, b = (w.cast(v, dc) for v in (a, b))
    if how == "stored between":
        # Overwrites what was loaded: the dot must see the old values.
        w.store(params[0], [window(m, start), window(k, zero)], w.const(0, da, (m, k)))
    acc = w.load(params[2], [window(m, start), window(n, zero)])
    w.store(params[2], [window(m, start), window(n, zero)], w.dot(a, b, acc))
    return w.fn


SHAPES = [(1, 1, 1), (2, 3, 5), (3, 7, 16), (8, 16, 48), (5, 37, 33), (17, 9, 100), (1, 64, 20),
          (4, 100, 1), (9, 1, 40)]  # fmt: skip


@machines
@pytest.mark.parametrize("how", ["memory", "registers", "strided", "stored between"])
def test_f32(how: str, machine: Machine) -> None:
    rng = np.random.default_rng(0)
    for m, k, n in SHAPES if how in ("memory", "registers") else SHAPES[1::3]:
        a, b, c = (values(rng, f32, s) for s in [(m, k), (k, n), (m, n)])
        compare(product(m, k, n, (f32, f32, f32), how), machine, [a, b, c])


@every_machine
def test_windows_over_the_edge(machine: Machine) -> None:
    rng = np.random.default_rng(0)
    for m, k, n in [(4, 20, 18), (8, 5, 48)]:
        fn = product(m, k, n, (f32, f32, f32), "edge")
        for rows, inner, columns in [(7, k, n), (3, k - 3, n - 5), (1, 1, 1), (0, k, n)]:
            a, b, c = (values(rng, f32, s) for s in [(rows, inner), (inner, columns), (rows, n)])
            compare(fn, machine, [a, b, c], (2,))


@every_machine
@pytest.mark.parametrize(
    "kinds",
    [(f16, f16, f32), (bf16, f32, f32), (f32, bf16, f32), (f64, f32, f64), (i8, i8, i32),
     (boolean, i32, i64), (f16, f16, f16), (bf16, bf16, bf16)],
    ids=lambda k: "-".join(d.name for d in k),
)  # fmt: skip
def test_dtypes(kinds: tuple[DType, DType, DType], machine: Machine) -> None:
    rng = np.random.default_rng(0)
    for (m, k, n), how in [((5, 21, 18), "memory"), ((3, 4, 33), "cast")]:
        a, b, c = (values(rng, d, s) for d, s in zip(kinds, [(m, k), (k, n), (m, n)]))
        compare(product(m, k, n, kinds, how), machine, [a, b, c])


@machines
def test_loop_carried_accumulator_and_probabilities_in_registers(machine: Machine) -> None:
    """The shape of flash attention: scores from memory, then a dot whose left side is computed."""
    m, d, block = 6, 20, 16
    params = [array(f32, 2), array(f32, 2), array(f32, 2), array(f32, 2)]
    q, k, v, o = params
    w = Writer("attention", params)
    zero = w.const(0)
    queries = w.load(q, [window(m, zero), window(d, zero)])

    def body(j: ir.Value, acc: ir.Value, norm: ir.Value) -> list[ir.Value]:
        keys = w.load(k, [window(d, zero), window(block, j)])
        scores = w.dot(queries, keys, w.const(0.0, f32, (m, block)))
        p = w.fma(scores, scores, w.const(0.5, f32))
        value = w.load(v, [window(block, j), window(d, zero)])
        return [w.dot(p, value, acc), w.add(norm, w.reduce("max", p, 1))]

    init = [w.const(0.0, f32, (m, d)), w.const(0.0, f32, (m,))]
    acc, norm = w.loop(0, w.dim(v, 0), block, init, body)
    w.store(o, [window(m, zero), window(d, zero)], w.binary("div", acc, w.expand(norm, 1)))
    rng = np.random.default_rng(0)
    for length in (48, 41, 5):
        args = [values(rng, f32, s) for s in [(m, d), (d, length), (length, d), (m, d)]]
        compare(w.fn, machine, args)


@machines
def test_tile_size_does_not_change_a_bit(machine: Machine) -> None:
    rng = np.random.default_rng(0)
    rows, k, columns = 12, 70, 64
    a, b = values(rng, f32, (rows, k)), values(rng, f32, (k, columns))
    seen = []
    for m, n, step in [(12, 64, 70), (1, 64, 7), (4, 16, 10), (5, 48, 16), (12, 8, 1)]:
        params = [array(f32, 2), array(f32, 2), array(f32, 2)]
        w = Writer("tiles", params)
        i, j = w.mul(w.pid(0), w.const(m)), w.mul(w.pid(1), w.const(n))

        def body(kk: ir.Value, acc: ir.Value, w=w, i=i, j=j, m=m, n=n, step=step, params=params):
            x = w.load(params[0], [window(m, i), window(step, kk)])
            y = w.load(params[1], [window(step, kk), window(n, j)])
            return [w.dot(x, y, acc)]

        (acc,) = w.loop(0, k, step, [w.const(0.0, f32, (m, n))], body)
        w.store(params[2], [window(m, i), window(n, j)], acc)
        out = np.zeros((rows, columns), "f")
        build(w.fn, machine)[-(-rows // m), -(-columns // n)](a, b, out)
        seen.append(out.copy())
    assert all(np.array_equal(seen[0], other) for other in seen[1:])
    np.testing.assert_allclose(seen[0], a.astype("d") @ b, rtol=1e-4, atol=1e-5)


def spilled(asm: str) -> int:
    """Vector stores to the stack, which is how a spill looks."""
    return sum(
        1
        for line in asm.splitlines()
        if line.strip().startswith(("vmovups", "vmovaps", "vmovdqa64", "vmovdqu64"))
        and "zmm" in line.split(",")[0]
        and "(%rsp)" in line
    )


@pytest.mark.skipif(not Machine.detect_host().has_avx512, reason="looks at AVX-512 registers")
@pytest.mark.parametrize(("m", "n"), [(8, 48), (12, 32), (4, 96), (14, 32)])
def test_accumulators_stay_in_registers(m: int, n: int) -> None:
    w = Writer("kernel", [array(f32, 2), array(f32, 3), array(f32, 2)])
    a, b, c = w.fn.params
    i, j = w.mul(w.pid(1), w.const(m)), w.pid(0)

    def body(k: ir.Value, acc: ir.Value) -> list[ir.Value]:
        x = w.load(a, [window(m, i), window(64, k)])
        y = w.load(b, [at(j), window(64, k), window(n, w.const(0))])
        return [w.dot(x, y, acc)]

    (acc,) = w.loop(0, w.dim(a, 1), 64, [w.const(0.0, f32, (m, n))], body)
    w.store(c, [window(m, i), window(n, w.mul(j, w.const(n)))], acc)
    compiled = build(w.fn)
    fast = compiled.asm.split("kernel.checked")[0]
    assert "vfmadd" in compiled.asm
    assert spilled(fast) == 0

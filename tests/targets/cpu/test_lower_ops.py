"""Every op, in every dtype it takes, against the interpreter's definition."""

from __future__ import annotations

import numpy as np
import pytest
from building import Writer, array, at, scalar, window
from lowered import build
from running import run
from test_math import MACHINES, OLDER

from tilewright.dtypes import (
    ALL,
    DType,
    bf16,
    boolean,
    f16,
    f32,
    f64,
    from_float32,
    i32,
    i64,
    to_float32,
    u8,
    u16,
    u32,
    u64,
)  # fmt: skip
from tilewright.lang import ir
from tilewright.targets.cpu.machine import Machine

FLOATS = [d for d in ALL if d.is_float]
INTEGERS = [d for d in ALL if d.is_integer]
every_machine = pytest.mark.parametrize("machine", [*MACHINES, *OLDER], ids=lambda m: m.cpu)
machines = pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.cpu)


def dtypes(of: list[DType] | tuple[DType, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("dtype", of, ids=lambda d: d.name)


SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 65504.0, 65520.0,
           3.4e38, 1e-40, 6e-8, 2.0**31, -(2.0**31), 2.0**63, 255.5, -0.5, 128.0, 3e9]  # fmt: skip


def samples(dtype: DType, n: int, seed: int = 0) -> np.ndarray:
    """``n`` values in storage form, special ones first."""
    rng = np.random.default_rng(seed)
    if dtype is boolean:
        return rng.random(n) < 0.5
    if dtype.is_float:
        x = np.concatenate([SPECIAL, rng.normal(0, 1, n) * np.exp(rng.normal(0, 3, n))])
        x = rng.permutation(x[: max(n, 23)])[:n] if n < 23 else x[:n]
        with np.errstate(all="ignore"):
            return from_float32(x.astype("f")) if dtype is bf16 else x.astype(dtype.storage)
    info = np.iinfo(dtype.storage)
    edge = np.array([0, 1, info.max, info.min, info.max - 1, 2, 3, 7], dtype.storage)
    body = rng.integers(info.min, info.max, n, dtype.storage, endpoint=True)
    small = (rng.integers(0, 40, n) - (20 if dtype.is_signed else 0)).astype(dtype.storage)
    return np.concatenate([edge, np.where(rng.random(n) < 0.5, body, small)])[:n]


def wide(x: np.ndarray, dtype: DType) -> np.ndarray:
    return to_float32(x) if dtype is bf16 else x


def same(got: np.ndarray, want: np.ndarray, dtype: DType, rtol: float = 0.0) -> None:
    """Equal values (signs of zero too, unless a tolerance is given), NaN where NaN is due."""
    a, b = wide(got, dtype), wide(want, dtype)
    if dtype.is_float:
        assert np.array_equal(np.isnan(a), np.isnan(b)), np.argwhere(np.isnan(a) != np.isnan(b))[:5]
    if rtol:
        np.testing.assert_allclose(a.astype("d"), b.astype("d"), rtol=rtol, atol=rtol)
        return
    np.testing.assert_array_equal(a, b)
    if dtype.is_float:
        ok = ~np.isnan(b)
        np.testing.assert_array_equal(np.signbit(a)[ok], np.signbit(b)[ok])


def compare(
    fn: ir.Function, machine: Machine, args: list, grid: tuple[int, ...] = (1,), rtol: float = 0.0
) -> None:
    """Compiled and interpreted runs leave the same arrays behind."""
    mine = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
    build(fn, machine)[grid](*mine)
    theirs = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
    run(fn, grid, theirs)
    for param, got, want in zip(fn.params, mine, theirs):
        if isinstance(got, np.ndarray):
            same(got, want, param.dtype, rtol)


N = 53  # 3 x 16 + 5, 6 x 8 + 5, 13 x 4 + 1


def pairs(dtype: DType) -> tuple[np.ndarray, np.ndarray]:
    """Every special value against every other, as far as they fit."""
    x, y = samples(dtype, 23), samples(dtype, 23, 1)
    a, b = np.meshgrid(x, np.concatenate([y, x]))
    return a.reshape(-1), b.reshape(-1)


BINARY_OF = {
    **dict.fromkeys(["add", "sub", "mul", "min", "max"], FLOATS + INTEGERS),
    "div": FLOATS,
    **dict.fromkeys(["floordiv", "mod", "shl", "shr"], INTEGERS),
    **{name: [*INTEGERS, boolean] for name in ("and", "or", "xor")},
    **{name: list(ALL) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
}


@machines
@pytest.mark.parametrize("name", BINARY_OF)
def test_binary(name: str, machine: Machine) -> None:
    """All dtypes of one op in one kernel, to compile less often."""
    chosen = BINARY_OF[name]
    params: list[ir.Value] = []
    args: list[np.ndarray] = []
    w = Writer(name, params)
    start = w.mul(w.pid(), w.const(N))
    for dtype in chosen:
        x, y = pairs(dtype)
        result = boolean if name in ir.COMPARE else dtype
        a, b, out = array(dtype, 1), array(dtype, 1), array(result, 1)
        w.fn.params += [a, b, out]
        args += [x, y, np.zeros(len(x), result.storage)]
        p, q = (w.load(v, [window(N, start)]) for v in (a, b))
        w.store(out, [window(N, start)], w.binary(name, p, q))
    grid = -(-max(len(a) for a in args) // N)
    if name in ("min", "max"):
        # Which zero they give is not specified.
        args = [np.where(a == 0, np.abs(a), a) if a.dtype.kind == "f" else a for a in args]
        for k, dtype in enumerate(chosen):
            if dtype is bf16:
                args[3 * k] = np.where(args[3 * k] == 0x8000, 0, args[3 * k]).astype(np.uint16)
                args[3 * k + 1] = np.where(args[3 * k + 1] == 0x8000, 0, args[3 * k + 1]).astype(
                    np.uint16
                )
    compare(w.fn, machine, args, (grid,))


UNARY_OF = {
    **dict.fromkeys(["neg", "abs"], FLOATS + INTEGERS),
    **dict.fromkeys(["floor", "ceil", "round", "trunc", "isnan", "sqrt"], FLOATS),
    "not": [*INTEGERS, boolean],
    "popcount": INTEGERS,
}


@machines
@pytest.mark.parametrize("name", UNARY_OF)
def test_unary(name: str, machine: Machine) -> None:
    w = Writer(name, [])
    args: list[np.ndarray] = []
    for dtype in UNARY_OF[name]:
        result = boolean if name == "isnan" else dtype
        a, out = array(dtype, 1), array(result, 1)
        w.fn.params += [a, out]
        args += [samples(dtype, N), np.zeros(N, result.storage)]
        x = w.load(a, [window(N, w.const(0))])
        w.store(out, [window(N, w.const(0))], w.unary(name, x))
    compare(w.fn, machine, args)


@every_machine
@dtypes(list(ALL))
def test_cast(dtype: DType, machine: Machine) -> None:
    """From one dtype to all others."""
    source = array(dtype, 1)
    w = Writer(f"cast_{dtype.name}", [source])
    n = 4 * N - 3
    args = [samples(dtype, n)]
    start = w.mul(w.pid(), w.const(N))
    x = w.load(source, [window(N, start)])
    for target in ALL:
        out = array(target, 1)
        w.fn.params.append(out)
        args.append(np.zeros(n, target.storage))
        w.store(out, [window(N, start)], w.cast(x, target))
    compare(w.fn, machine, args, (4,))


@every_machine
def test_half_casts_exhaustively(machine: Machine) -> None:
    bits = np.arange(1 << 16).astype(np.uint16)
    for dtype in (f16, bf16):
        one = Writer(f"up_{dtype.name}", [array(dtype, 1), array(f32, 1)])
        start = one.mul(one.pid(), one.const(64))
        x = one.load(one.fn.params[0], [window(64, start)])
        one.store(one.fn.params[1], [window(64, start)], one.cast(x, f32))
        out = np.zeros(1 << 16, "f")
        source = bits.view(np.float16) if dtype is f16 else bits
        build(one.fn, machine)[1024](source, out)
        same(out, source.astype("f") if dtype is f16 else to_float32(bits), f32)
        # And back, from values on, just below and just above every rounding boundary.
        with np.errstate(all="ignore"):
            middle = (out[:-1].astype("d") + out[1:]) / 2
            near = np.concatenate(
                [out[:-1], middle.astype("f"), np.nextafter(middle.astype("f"), np.float32(np.inf)),
                 np.nextafter(middle.astype("f"), np.float32(-np.inf))]
            )  # fmt: skip
        near = np.resize(near, -(-len(near) // 64) * 64).astype("f")
        two = Writer(f"down_{dtype.name}", [array(f32, 1), array(dtype, 1)])
        start = two.mul(two.pid(), two.const(64))
        x = two.load(two.fn.params[0], [window(64, start)])
        two.store(two.fn.params[1], [window(64, start)], two.cast(x, dtype))
        got = np.zeros(len(near), dtype.storage)
        build(two.fn, machine)[len(near) // 64](near, got)
        with np.errstate(all="ignore"):
            same(got, near.astype(np.float16) if dtype is f16 else from_float32(near), dtype)


@every_machine
@dtypes(FLOATS + INTEGERS)
def test_fma_where_bitcast(dtype: DType, machine: Machine) -> None:
    x, y = pairs(dtype)
    n = len(x)
    z = np.resize(samples(dtype, 29, 3), n)
    c = np.random.default_rng(5).random(n) < 0.5
    unsigned = {16: u16, 32: u32, 64: u64, 8: u8}[dtype.bits]
    params = [array(d, 1) for d in (dtype, dtype, dtype, boolean, dtype, dtype, unsigned)]
    w = Writer(f"mix_{dtype.name}", params)
    start = w.mul(w.pid(), w.const(N))
    a, b, d, e = (w.load(p, [window(N, start)]) for p in params[:4])
    w.store(params[4], [window(N, start)], w.fma(a, b, d))
    w.store(params[5], [window(N, start)], w.where(e, a, b))
    w.store(params[6], [window(N, start)], w.unary("bitcast", a, unsigned))
    outs = [np.zeros(n, d.storage) for d in (dtype, dtype, unsigned)]
    compare(w.fn, machine, [x, y, z, c, *outs], (-(-n // N),))


LENGTHS = [1, 2, 3, 5, 8, 16, 17, 31, 37, 48, 64, 100]
REDUCE_OF = {
    **dict.fromkeys(["sum", "prod", "max", "min", "argmax", "argmin"], FLOATS + INTEGERS),
    **{name: [boolean] for name in ("any", "all")},
}


@machines
@pytest.mark.parametrize("fn", REDUCE_OF)
def test_reduce(fn: str, machine: Machine) -> None:
    """Every dtype over some length, along the last axis, another one, and all of them."""
    rng = np.random.default_rng(0)
    chosen = REDUCE_OF[fn]
    for k, n in enumerate(LENGTHS):
        dtype = chosen[k % len(chosen)]
        result = i64 if fn.startswith("arg") else dtype
        shape = [(n,), (3, n), (n, 5), (2, n, 3), (2, 2, n)][k % 5]
        axis = shape.index(n, 2 if k % 5 == 4 else 0)
        x = reducible(rng, fn, dtype, shape)
        w = Writer(f"reduce_{fn}", [array(dtype, len(shape))])
        zero = w.const(0)
        args = [x]
        tile = w.load(w.fn.params[0], [window(s, zero) for s in shape])
        for which in (axis, None):
            out = w.reduce(fn, tile, which, result)
            target = array(result, len(out.shape))
            w.fn.params.append(target)
            args.append(np.zeros(out.shape, result.storage))
            w.store(target, [window(s, zero) for s in out.shape], out)
        compare(w.fn, machine, args, rtol=1e-2 if fn in ("sum", "prod") else 0)


def reducible(
    rng: np.random.Generator, fn: str, dtype: DType, shape: tuple[int, ...]
) -> np.ndarray:
    """Values whose sums and products stay small; ties and NaN for the extremes."""
    if dtype.is_integer or dtype is boolean:
        return rng.integers(0, 5 if dtype.is_integer else 2, shape).astype(dtype.storage)
    x = rng.normal(0, 0.3, shape) + (1 if fn == "prod" else 0)
    if fn in ("argmax", "argmin", "max", "min"):
        x = np.where(rng.random(shape) < 0.03, np.nan, np.round(4 * x))
    return from_float32(x.astype("f")) if dtype is bf16 else x.astype(dtype.storage)


@machines
def test_reduce_f32_is_accurate_and_in_the_documented_order(machine: Machine) -> None:
    """The order is a function of the axis's length only, wherever the axis stands."""
    rng = np.random.default_rng(0)
    lanes = machine.lanes
    for n in (1, 3, 15, 16, 17, 40, 129):
        params = [array(f32, 1), array(f32, 2), array(f32, 2), *[array(f32, 1)] * 0]
        outs = [array(f32, 1) for _ in range(3)]
        w = Writer(f"order_{n}", [*params, *outs])
        zero = w.const(0)
        flat = w.load(params[0], [window(n, zero)])
        rows = w.load(params[1], [window(3, zero), window(n, zero)])
        columns = w.load(params[2], [window(n, zero), window(5, zero)])
        w.store(outs[0], [at(zero)], w.reduce("sum", flat, 0))
        w.store(outs[1], [window(3, zero)], w.reduce("sum", rows, 1))
        w.store(outs[2], [window(5, zero)], w.reduce("sum", columns, 0))
        x = rng.normal(0, 1, n).astype("f")
        got = [np.zeros(k, "f") for k in (1, 3, 5)]
        build(w.fn, machine)[1](x, np.tile(x, (3, 1)), np.tile(x[:, None], (1, 5)), *got)
        partial = [np.float32(v) for v in x[:lanes]]
        for k in range(lanes, n):
            partial[k % lanes] += x[k]
        half = 1 << (len(partial) - 1).bit_length()
        while half > 1:
            half //= 2
            for k in range(half):
                if k + half < len(partial):
                    partial[k] = partial[k] + partial[k + half]
            partial = partial[:half]
        for values in got:
            assert (values == partial[0]).all(), n


@machines
@dtypes([f32, f16, bf16, f64, i32, u8, i64])
def test_scan(dtype: DType, machine: Machine) -> None:
    rng = np.random.default_rng(0)
    w = Writer(f"scan_{dtype.name}", [])
    args: list[np.ndarray] = []
    zero = w.const(0)
    cases = [((37,), 0, "sum"), ((3, 20), 1, "max"), ((7, 20), 0, "sum"), ((2, 5, 17), 1, "min"),
             ((4, 3), 1, "prod"), ((1,), 0, "sum"), ((6, 1), 0, "sum")]  # fmt: skip
    for k, (shape, axis, fn) in enumerate(cases):
        x = rng.normal(0, 1, shape) if dtype.is_float else rng.integers(0, 9, shape)
        x = from_float32(x.astype("f")) if dtype is bf16 else x.astype(dtype.storage)
        source, out = array(dtype, len(shape)), array(dtype, len(shape))
        w.fn.params += [source, out]
        args += [x, np.zeros_like(x)]
        tile = w.load(source, [window(s, zero) for s in shape])
        scanned = w.scan(fn, tile, axis, reverse=k % 2 == 1)
        w.store(out, [window(s, zero) for s in shape], scanned)
    compare(w.fn, machine, args)


@machines
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("reverse", [False, True])
def test_scan_with(axis: int, reverse: bool, machine: Machine) -> None:
    """The linear recurrence h = a h + b, and a block that uses a value from outside."""
    shape = (5, 21)
    params = [array(f32, 2) for _ in range(4)] + [scalar(f32)]
    w = Writer("recurrence", params)
    zero = w.const(0)
    a, b = (w.load(p, [window(s, zero) for s in shape]) for p in params[:2])
    args = [ir.Value(ir.TileType(f32)) for _ in range(4)]
    block = w.block(
        args, lambda: [w.mul(args[0], args[2]), w.fma(args[2], w.mul(args[1], params[4]), args[3])]
    )
    op = w.b.emit("scan_with", (a, b), (a.type, b.type), [block], axis=axis, reverse=reverse)
    for p, value in zip(params[2:4], op.results):
        w.store(p, [window(s, zero) for s in shape], value)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0.5, 1, (2, *shape)).astype("f")
    compare(w.fn, machine, [x, y, np.zeros_like(x), np.zeros_like(x), 0.75])


@every_machine
def test_movement(machine: Machine) -> None:
    """Reshape, transpose, slice, concatenate, broadcast, expand in odd sizes."""
    rng = np.random.default_rng(0)
    w = Writer("movement", [])
    args: list[np.ndarray] = []
    zero = w.const(0)

    def source(*shape: int) -> ir.Value:
        param = array(i32, len(shape))
        w.fn.params.append(param)
        args.append(rng.integers(-99, 99, shape).astype(np.int32))
        return w.load(param, [window(s, zero) for s in shape])

    def keep(value: ir.Value) -> None:
        param = array(i32, len(value.shape))
        w.fn.params.append(param)
        args.append(np.zeros(value.shape, np.int32))
        w.store(param, [window(s, zero) for s in value.shape], value)

    x = source(4, 32)
    for shape in [(128,), (8, 16), (2, 2, 32), (32, 4), (4, 32, 1), (16, 8), (1, 128), (2, 64)]:
        keep(w.reshape(x, *shape))
    y = source(3, 5, 18)
    for perm in [(0, 2, 1), (2, 0, 1), (1, 0, 2), (2, 1, 0)]:
        keep(w.transpose(y, *perm))
    keep(w.slice(x, (1, 16), (2, 16)))
    keep(w.slice(x, (0, 16), (4, 5)))
    keep(w.slice(x, (2, 3), (1, 20)))
    keep(w.slice(x, (0, 16), (4, 1)))
    keep(w.slice(y, (1, 1, 0), (2, 3, 17)))
    keep(w.slice(y, (0, 4, 17), (3, 1, 1)))
    keep(w.concat(0, x, source(2, 32)))
    keep(w.concat(1, x, source(4, 7)))
    keep(w.concat(1, source(4, 7), x))
    keep(w.concat(1, source(3, 2, 18), y))
    keep(w.concat(0, source(1), source(1), source(3)))
    keep(w.broadcast(source(1, 5), 3, 5))
    keep(w.broadcast(source(3, 1), 3, 21))
    keep(w.broadcast(source(7), 2, 3, 7))
    keep(w.add(w.expand(source(6), 1), w.expand(source(19), 0)))
    keep(w.add(w.expand(source(6), 0), source(4, 1)))
    column = w.expand(w.reduce("sum", x, 1), 1)
    keep(w.mul(x, column))
    keep(w.cast(w.arange(-3, 18), i32))
    keep(w.const(7, i32, (3, 21)))
    compare(w.fn, machine, args)


@every_machine
def test_dot4_signs(machine: Machine) -> None:
    rng = np.random.default_rng(0)
    w = Writer("dot4", [])
    args: list[np.ndarray] = []
    zero = w.const(0)
    extreme = np.array([0x7F7F7F7F, 0x80808080, 0xFFFFFFFF, 0x80FF7F01], np.uint32)
    for left in (i32, u32):
        for right in (i32, u32):
            for n in (1, 4, 21, 32):
                shapes = [(2, n), (1, n), (2, 1)]
                params = [array(i32, 2), array(left, 2), array(right, 2), array(i32, 2)]
                tiles = [
                    w.load(p, [window(s, zero) for s in shape]) for p, shape in zip(params, shapes)
                ]
                out = w.emit("dot4", tiles, ir.TileType(i32, (2, n)))
                w.store(params[3], [window(2, zero), window(n, zero)], out)
                w.fn.params += params
                for k, shape in enumerate(shapes):
                    bits = rng.integers(0, 1 << 32, shape, np.uint64).astype(np.uint32)
                    if k:
                        bits.reshape(-1)[:4] = extreme[: bits.size]
                    args.append(bits.view(params[k].dtype.storage))
                args.append(np.zeros((2, n), np.int32))
    compare(w.fn, machine, args)

"""Accuracy of the elementary functions, against NumPy's float64 (whose error does not show)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from building import Writer, array, window
from lowered import Compiled, build

from tilewright.dtypes import DType, bf16, f16, f32, from_float32, to_float32
from tilewright.targets.cpu.machine import Machine

BLOCK = 37  # two whole vectors and a tail on every machine
Reference = Callable[..., np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


FUNCTIONS: dict[str, tuple[Reference, float]] = {
    "exp": (np.exp, 1.0),
    "exp2": (np.exp2, 1.0),
    "expm1": (np.expm1, 1.7),
    "log": (np.log, 1.0),
    "log1p": (np.log1p, 1.0),
    "log2": (np.log2, 1.0),
    "sin": (np.sin, 1.5),
    "cos": (np.cos, 1.5),
    "tanh": (np.tanh, 2.5),
    "erf": (np.vectorize(math.erf, otypes=[float]), 1.5),
    "sigmoid": (sigmoid, 2.5),
    "sqrt": (np.sqrt, 0.5),
    "rsqrt": (lambda x: 1.0 / np.sqrt(x), 1.5),
}


def named(*names: str) -> list[Machine]:
    """CPUs whose code this machine can run."""
    host = Machine.detect_host()
    found = [Machine.from_name(n) for n in names] if host.arch == "x86_64" else []
    return [m for m in found if m.flags < host.flags]


MACHINES = [Machine.detect_host(), *named("haswell")]
OLDER = named("x86-64-v2")  # without AVX, fused multiply-add and f16 conversion
every_machine = pytest.mark.parametrize("machine", [*MACHINES, *OLDER], ids=lambda m: m.cpu)


def elementwise(name: str, dtype: DType, machine: Machine, operands: int = 1) -> Compiled:
    params = [array(dtype, 1) for _ in range(operands + 1)]
    w = Writer(f"{name}_{dtype.name}", params)
    start = w.mul(w.pid(), w.const(BLOCK))
    args = [w.load(p, [window(BLOCK, start)]) for p in params[:-1]]
    out = w.unary(name, *args) if operands == 1 else w.binary(name, *args)
    w.store(params[-1], [window(BLOCK, start)], out)
    return build(w.fn, machine)


def apply(kernel: Compiled, *args: np.ndarray) -> np.ndarray:
    out = np.empty_like(args[0])
    kernel[-(-len(out) // BLOCK)](*args, out)
    return out


def every_float(stride: int) -> np.ndarray:
    """f32 values over the whole range, and around every power of two and the special values."""
    bits = np.arange(0, 1 << 32, stride, dtype=np.uint64)
    powers = np.arange(0, 1 << 32, 1 << 23, dtype=np.uint64)
    near = np.concatenate([(powers + d) % (1 << 32) for d in (0, 1, 2, (1 << 32) - 1)])
    return np.concatenate([bits, near]).astype(np.uint32).view(np.float32)


def ulp_error(got: np.ndarray, exact: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """Distance in units of the last place of the exact value, at least those of subnormals."""
    info = np.finfo(dtype)
    with np.errstate(all="ignore"):
        exponent = np.floor(np.log2(np.abs(exact)))
        exponent = np.clip(exponent, info.minexp, info.maxexp - 1)
        exponent = np.where(np.isfinite(exponent), exponent, info.minexp)
        return np.abs(got.astype(np.float64) - exact) / np.exp2(exponent - info.nmant)


def check(x: tuple[np.ndarray, ...], got: np.ndarray, exact: np.ndarray, limit: float) -> None:
    with np.errstate(all="ignore"):
        rounded = exact.astype(np.float32)
    nan = np.isnan(exact)
    assert np.array_equal(np.isnan(got), nan), [v[np.isnan(got) != nan][:5] for v in x]
    infinite = np.isinf(rounded) | np.isinf(got)
    same = infinite & (got == rounded)
    # At the very edge of overflow a result within the bound may fall on either side.
    edge = infinite & ~same & (np.abs(exact) > np.finfo(np.float32).max * (1 - 2e-7))
    assert not np.any(infinite & ~same & ~edge), [v[infinite & ~same & ~edge][:5] for v in x]
    error = np.where(nan | infinite, 0.0, ulp_error(got, exact))
    worst = int(np.argmax(error))
    assert error[worst] <= limit, (
        f"{error[worst]:.3f} ulp at {[v[worst] for v in x]}: {got[worst]} for {exact[worst]}"
    )


@every_machine
@pytest.mark.parametrize("name", FUNCTIONS)
def test_f32_accuracy(name: str, machine: Machine) -> None:
    reference, limit = FUNCTIONS[name]
    x = every_float(40_009 if name != "erf" else 400_009)
    if name in ("sin", "cos"):
        x = np.concatenate([x, np.linspace(-100, 100, 100_001, dtype=np.float32)])
    if name not in ("sin", "cos", "sqrt", "rsqrt"):
        x = np.concatenate([x, np.linspace(-12, 12, 20_001, dtype=np.float32)])
        x = np.concatenate([x, np.linspace(0.5, 2, 20_001, dtype=np.float32)])
    with np.errstate(all="ignore"):
        exact = np.asarray(reference(x.astype(np.float64)))
    got = apply(elementwise(name, f32, machine), x)
    check((x,), got, exact, limit if machine.has_fma else limit + 1)


def test_exact_values() -> None:
    machine = Machine.detect_host()
    zeros = np.array([0.0, -0.0], np.float32)
    assert (apply(elementwise("exp", f32, machine), zeros) == 1).all()
    whole = np.arange(-149, 128).astype(np.float32)
    powers = np.ldexp(np.float32(1), np.arange(-149, 128)).astype(np.float32)
    assert (apply(elementwise("exp2", f32, machine), whole) == powers).all()
    assert (apply(elementwise("log2", f32, machine), powers) == whole).all()
    assert apply(elementwise("log", f32, machine), np.ones(1, np.float32))[0] == 0
    for name in ("sin", "tanh", "erf"):
        got = apply(elementwise(name, f32, machine), zeros)
        assert np.array_equal(got.view(np.int32), zeros.view(np.int32)), name
    assert (apply(elementwise("cos", f32, machine), zeros) == 1).all()
    assert (apply(elementwise("sigmoid", f32, machine), zeros) == 0.5).all()


@every_machine
def test_pow(machine: Machine) -> None:
    rng = np.random.default_rng(0)
    special = np.array(
        [0.0, -0.0, 1, -1, 2, -2, 3, -3, 0.5, -0.5, 1.5, np.inf, -np.inf, np.nan, 1e38, -1e38,
         1e-40, -1e-40, 2.0**24 + 2, 2.0**24 - 1, 1 - 2.0**-24, 1 + 2.0**-23],
        np.float32,
    )  # fmt: skip
    a, b = (v.reshape(-1) for v in np.meshgrid(special, special))
    x = np.concatenate([a, np.exp(rng.uniform(-80, 80, 100_000)).astype(np.float32)])
    y = np.concatenate([b, rng.uniform(-5, 5, 100_000).astype(np.float32)])
    near = rng.uniform(0.9, 1.1, 50_000).astype(np.float32)
    x, y = np.concatenate([x, near]), np.concatenate([y, rng.uniform(-800, 800, 50_000)])
    y = y.astype(np.float32)
    with np.errstate(all="ignore"):
        exact = np.power(x.astype(np.float64), y.astype(np.float64))
    got = apply(elementwise("pow", f32, machine, 2), x, y)
    check((x, y), got, exact, 1.0)
    assert np.array_equal(np.signbit(got[got == 0]), np.signbit(exact[got == 0]))


@every_machine
@pytest.mark.parametrize("dtype", [f16, bf16], ids=lambda d: d.name)
@pytest.mark.parametrize("name", ["exp", "tanh", "sigmoid", "rsqrt", "log", "sin", "tan", "erfinv"])
def test_half_precision_is_f32_rounded(name: str, dtype: DType, machine: Machine) -> None:
    bits = np.arange(1 << 16).astype(np.uint16)
    x = bits.view(np.float16) if dtype is f16 else bits
    wide = x.astype(np.float32) if dtype is f16 else to_float32(bits)
    single = apply(elementwise(name, f32, machine), wide)
    with np.errstate(all="ignore"):
        want = single.astype(np.float16) if dtype is f16 else from_float32(single)
    got = apply(elementwise(name, dtype, machine), x)
    nan = np.isnan(single)
    assert np.array_equal(got.view(np.uint16)[~nan], want.view(np.uint16)[~nan])
    back = got.astype(np.float32) if dtype is f16 else to_float32(got)
    assert np.array_equal(np.isnan(back), nan)


@pytest.mark.parametrize("name", ["exp", "log", "sin", "tanh", "erf", "sigmoid", "exp2", "log2"])
def test_position_in_the_tile_does_not_matter(name: str) -> None:
    """The same value gives the same bits in every lane, in tails and under masks."""
    machine = Machine.detect_host()
    kernel = elementwise(name, f32, machine)
    x = np.float32(np.random.default_rng(2).normal(0, 9, 3 * BLOCK + 5))
    whole = apply(kernel, x)
    for shift in (1, 7, 16, 36):
        assert np.array_equal(
            apply(kernel, x[shift:].copy()).view(np.int32), whole[shift:].view(np.int32)
        )

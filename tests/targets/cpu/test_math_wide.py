"""Accuracy of the functions that are computed in f64, for f64 and for f32.

The exact values come from NumPy's 80-bit functions, or from multiple precision where it has none.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from test_math import MACHINES, OLDER, apply, elementwise

from tilewright.dtypes import DType, f32, f64
from tilewright.targets.cpu.machine import Machine

Exact = np.longdouble
pytestmark = pytest.mark.skipif(
    np.finfo(Exact).nmant < 60, reason="this machine's long double is no wider than f64"
)
every_machine = pytest.mark.parametrize("machine", [*MACHINES, *OLDER], ids=lambda m: m.cpu)
TYPES = {f32: np.float32, f64: np.float64}


def sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


# name: (exact function, bound for f64)
UNARY: dict[str, tuple[Callable[..., np.ndarray], float]] = {
    "exp": (np.exp, 1.0),
    "exp2": (np.exp2, 1.2),
    "expm1": (np.expm1, 1.2),
    "log": (np.log, 1.0),
    "log2": (np.log2, 1.0),
    "log10": (np.log10, 1.0),
    "log1p": (np.log1p, 1.0),
    "sin": (np.sin, 1.0),
    "cos": (np.cos, 1.0),
    "tan": (np.tan, 1.0),
    "asin": (np.arcsin, 1.0),
    "acos": (np.arccos, 1.0),
    "atan": (np.arctan, 1.6),
    "sinh": (np.sinh, 2.0),
    "cosh": (np.cosh, 1.5),
    "tanh": (np.tanh, 2.1),
    "asinh": (np.arcsinh, 1.5),
    "acosh": (np.arccosh, 2.0),
    "atanh": (np.arctanh, 1.0),
    "sigmoid": (sigmoid, 2.1),
}
# Those that test_math has.
IN_F32 = {"exp", "exp2", "expm1", "log", "log1p", "log2", "sin", "cos", "tanh", "sigmoid"}
BINARY: dict[str, tuple[Callable[..., np.ndarray], float]] = {
    "pow": (np.power, 0.8),
    "atan2": (np.arctan2, 1.6),
    "hypot": (np.hypot, 0.55),
}


def samples(dtype: DType, n: int, seed: int) -> np.ndarray:
    """Random bits, ordinary sizes, and what lies close to 1."""
    rng = np.random.default_rng(seed)
    kind = TYPES[dtype]
    whole = np.int64 if dtype is f64 else np.int32
    info = np.iinfo(whole)
    parts = [
        rng.integers(info.min, info.max, n, dtype=whole).view(kind),
        rng.uniform(-1, 1, n),
        rng.uniform(-12, 12, n),
        rng.uniform(-800, 800, n),
        np.exp(rng.uniform(-40, 40, n)) * rng.choice([-1, 1], n),
        1 + rng.uniform(-1, 1, n) * 2.0 ** -rng.integers(1, 40, n),
        special(kind),
    ]
    return np.concatenate([p.astype(kind) for p in parts])


def special(kind: type) -> np.ndarray:
    info = np.finfo(kind)
    values = [0.0, 1, 2, 3, 0.5, 1.5, np.inf, info.max, info.tiny, info.smallest_subnormal]
    return np.array([*values, *(-v for v in values), np.nan], kind)


def check(args: tuple[np.ndarray, ...], got: np.ndarray, exact: np.ndarray, limit: float) -> None:
    kind = got.dtype.type
    info = np.finfo(kind)
    with np.errstate(all="ignore"):
        rounded = exact.astype(kind)
        exponent = np.floor(np.log2(np.abs(exact)))
        exponent = np.where(np.isfinite(exponent), exponent, info.minexp)
        exponent = np.clip(exponent, info.minexp, info.maxexp - 1)
        error = np.abs(got.astype(Exact) - exact) / np.exp2(exponent - info.nmant)
    nan = np.isnan(exact)
    wrong = np.isnan(got) != nan
    assert not wrong.any(), [a[wrong][:5] for a in args]
    infinite = (np.isinf(rounded) | np.isinf(got)) & ~nan
    # At the very edge of overflow a result within the bound may fall on either side.
    edge = np.abs(exact) > info.max * (1 - 4 * Exact(info.eps))
    wrong = infinite & (got != rounded) & ~edge
    assert not wrong.any(), ([a[wrong][:5] for a in args], got[wrong][:5], exact[wrong][:5])
    zero = (rounded == 0) & (got == 0)
    wrong = zero & (np.signbit(rounded) != np.signbit(got))
    assert not wrong.any(), [a[wrong][:5] for a in args]
    error = np.where(nan | infinite, 0, error)
    worst = int(np.argmax(error))
    assert error[worst] <= limit, (
        f"{float(error[worst]):.3f} ulp at {[a[worst] for a in args]}: {got[worst]}"
    )


@every_machine
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(n, d) for n in UNARY for d in TYPES if d is f64 or n not in IN_F32],
    ids=lambda v: getattr(v, "name", v),
)
def test_unary_accuracy(name: str, dtype: DType, machine: Machine) -> None:
    reference, limit = UNARY[name]
    x = samples(dtype, 6000, 0)
    with np.errstate(all="ignore"):
        exact = reference(x.astype(Exact))
    check((x,), apply(elementwise(name, dtype, machine), x), exact, 0.51 if dtype is f32 else limit)


@every_machine
@pytest.mark.parametrize("dtype", TYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("name", BINARY)
def test_binary_accuracy(name: str, dtype: DType, machine: Machine) -> None:
    reference, limit = BINARY[name]
    rng = np.random.default_rng(1)
    kind = TYPES[dtype]
    x = samples(dtype, 3000, 2)
    y = rng.permutation(samples(dtype, 3000, 3))
    p, q = (v.reshape(-1) for v in np.meshgrid(special(kind), special(kind)))
    base, power = rng.uniform(0.9, 1.1, 6000), rng.uniform(-5000, 5000, 6000)
    large, small = np.exp(rng.uniform(-80, 80, 6000)), rng.uniform(-5, 5, 6000)
    x = np.concatenate([x, p, base.astype(kind), large.astype(kind)])
    y = np.concatenate([y, q, power.astype(kind), small.astype(kind)])
    with np.errstate(all="ignore"):
        exact = reference(x.astype(Exact), y.astype(Exact))
    got = apply(elementwise(name, dtype, machine, 2), x, y)
    bound = (1.0 if name == "pow" else 0.51) if dtype is f32 else limit
    check((x, y), got, exact, bound)


def precisely(fn: Callable[..., object], x: np.ndarray) -> np.ndarray:
    """``fn`` of every element in multiple precision, as long doubles."""
    mpmath = pytest.importorskip("mpmath")
    out = np.empty(x.shape, Exact)
    with mpmath.workprec(150):
        for i, value in enumerate(x):
            exact = fn(mpmath, mpmath.mpf(float(value)))
            high = float(exact)
            out[i] = Exact(high) + Exact(float(exact - high))
    return out


@every_machine
def test_erf(machine: Machine) -> None:
    rng = np.random.default_rng(4)
    x = np.concatenate([rng.uniform(-7, 7, 800), rng.normal(0, 1e-3, 100), [0.84375, 1.7, 3.2, 6]])
    exact = precisely(lambda mp, v: mp.erf(v), x)
    check((x,), apply(elementwise("erf", f64, machine), x), exact, 1.0)


@every_machine
@pytest.mark.parametrize("dtype", TYPES, ids=lambda d: d.name)
def test_erfinv(dtype: DType, machine: Machine) -> None:
    rng = np.random.default_rng(5)
    near = rng.choice([-1, 1], 200) * (1 - 2.0 ** -rng.uniform(1, 50 if dtype is f64 else 22, 200))
    x = np.concatenate([rng.uniform(-1, 1, 500), rng.normal(0, 1e-5, 100), near])
    x = x.astype(TYPES[dtype])
    x = x[np.abs(x) < 1]
    exact = precisely(lambda mp, v: mp.erfinv(v), x)
    kernel = elementwise("erfinv", dtype, machine)
    check((x,), apply(kernel, x), exact, 0.51 if dtype is f32 else 2.6)
    ends = np.array([1, -1, 1.5, -np.inf, np.nan, 0.0, -0.0], x.dtype)
    got = apply(kernel, ends)
    np.testing.assert_array_equal(got, [np.inf, -np.inf, np.nan, np.nan, np.nan, 0, 0])
    assert list(np.signbit(got[-2:])) == [False, True]


@every_machine
def test_lgamma(machine: Machine) -> None:
    rng = np.random.default_rng(6)
    x = np.concatenate([rng.uniform(1e-3, 30, 400), np.exp(rng.uniform(-300, 300, 200))])
    x = np.concatenate([x, 1 + rng.normal(0, 1e-9, 50), 2 + rng.normal(0, 1e-9, 50)])
    exact = precisely(lambda mp, v: mp.loggamma(v), x)
    kernel = elementwise("lgamma", f64, machine)
    check((x,), apply(kernel, x), exact, 3.5)
    negative = rng.uniform(-30, 0, 400)
    exact = precisely(lambda mp, v: mp.log(abs(mp.gamma(v))), negative)
    error = np.abs(apply(kernel, negative) - exact) / np.maximum(1, np.abs(exact))
    assert error.max() < 4 * 2.0**-52
    ends = np.array([0.0, -0.0, -1, -2, 1, 2, np.inf, -np.inf, np.nan])
    want = [np.inf] * 4 + [0, 0, np.inf, np.inf, np.nan]
    np.testing.assert_array_equal(apply(kernel, ends), want)


@every_machine
@pytest.mark.parametrize("dtype", TYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("name", ["mod", "floordiv"])
def test_division_is_numpys(name: str, dtype: DType, machine: Machine) -> None:
    """Bit for bit, quotients of any size."""
    kind = TYPES[dtype]
    rng = np.random.default_rng(7)
    x, y = samples(dtype, 4000, 8), rng.permutation(samples(dtype, 4000, 9))
    p, q = (v.reshape(-1) for v in np.meshgrid(special(kind), special(kind)))
    whole = rng.integers(-50, 50, (2, 2000)).astype(kind)
    x, y = np.concatenate([x, p, whole[0]]), np.concatenate([y, q, whole[1]])
    with np.errstate(all="ignore"):
        want = np.remainder(x, y) if name == "mod" else np.floor_divide(x, y)
    got = apply(elementwise(name, dtype, machine, 2), x, y)
    same = (got == want) & (np.signbit(got) == np.signbit(want))
    wrong = ~(same | (np.isnan(got) & np.isnan(want)))
    assert not wrong.any(), (x[wrong][:5], y[wrong][:5], got[wrong][:5], want[wrong][:5])


@pytest.mark.parametrize("name", ["exp", "tan", "log1p", "erfinv", "acosh"])
@pytest.mark.parametrize("dtype", TYPES, ids=lambda d: d.name)
def test_position_in_the_tile_does_not_matter(name: str, dtype: DType) -> None:
    kernel = elementwise(name, dtype, Machine.detect_host())
    x = np.random.default_rng(10).uniform(-3, 3, 120).astype(TYPES[dtype])
    whole = apply(kernel, x)
    for shift in (1, 5, 8, 16, 33):
        np.testing.assert_array_equal(apply(kernel, x[shift:].copy()), whole[shift:])


def test_no_c_library_is_called() -> None:
    from tilewright.lang.functions import BINARY_FUNCTIONS, UNARY_FUNCTIONS

    for name in [*UNARY_FUNCTIONS, *BINARY_FUNCTIONS, "mod"]:
        for dtype in TYPES:
            operands = 1 if name in UNARY_FUNCTIONS else 2
            text = elementwise(name, dtype, Machine.detect_host(), operands).llvm
            outside = [line for line in text.splitlines() if line.startswith("declare")]
            assert all("@llvm." in line for line in outside), (name, outside)

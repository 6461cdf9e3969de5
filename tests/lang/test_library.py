"""Functions written in the kernel language, and integer powers: interpreted and compiled."""

from __future__ import annotations

import numpy as np
import pytest
from test_ops import FLOATS, INTEGERS, NAMES, apply, extremes, grid, pack, unpack

from tilewright.errors import KernelError
from tilewright.runtime.launch import Kernel


def compiled(expression: str, *operands: np.ndarray, dtypes: tuple[str, ...], result: str):
    """What :func:`apply` interprets, on the CPU, in blocks that do not divide the length."""
    names = "xyz"[: len(operands)]
    text = "\n".join(
        [
            f"def kernel({', '.join(f'{a}_: Array' for a in names)}, out: Array):",
            "    i = program_id(0) * 24",
            *[f"    {a} = {a}_[i : i + 24]" for a in names],
            f"    out[i : i + 24] = {expression}",
        ]
    )
    kernel = Kernel.from_source(text + "\n", "kernel", NAMES)
    arrays = [pack(v, d) for v, d in zip(operands, dtypes)]
    out = pack(np.zeros(len(operands[0])), result)
    kernel[-(-len(operands[0]) // 24)](*arrays, out)
    return unpack(out)


def both(expression: str, *operands: np.ndarray, dtype: str, result: str | None = None):
    """The value of ``expression``, which interpreter and CPU must agree on to the bit."""
    types = (dtype,) * len(operands)
    result = result or dtype
    want = apply(expression, *operands, dtypes=types, result=result)
    got = compiled(expression, *operands, dtypes=types, result=result)
    same = (
        (got == want) & (np.signbit(got) == np.signbit(want))
        if got.dtype.kind == "f"
        else (got == want)
    )
    bad = ~(same | ((got != got) & (want != want)))
    assert not bad.any(), ([v[bad][:5] for v in operands], got[bad][:5], want[bad][:5])
    return got


def assert_equal(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_array_equal(got, want)
    if got.dtype.kind == "f":
        number = ~np.isnan(got)
        np.testing.assert_array_equal(np.signbit(got)[number], np.signbit(want)[number])


@pytest.mark.parametrize("dtype", FLOATS)
def test_predicates(dtype: str) -> None:
    x = extremes(dtype)
    for name in ("isnan", "isinf", "isfinite", "signbit"):
        got = both(f"{name}(x)", x, dtype=dtype, result="bool")
        np.testing.assert_array_equal(got, getattr(np, name)(x))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_predicates_of_integers(dtype: str) -> None:
    x = extremes(dtype)
    np.testing.assert_array_equal(both("signbit(x)", x, dtype=dtype, result="bool"), x < 0)
    assert both("isfinite(x)", x, dtype=dtype, result="bool").all()
    assert not both("isinf(x)", x, dtype=dtype, result="bool").any()


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_sign_and_square(dtype: str) -> None:
    x = extremes(dtype)
    with np.errstate(all="ignore"):
        assert_equal(both("sign(x)", x, dtype=dtype), np.sign(x).astype(x.dtype))
        if dtype != "bf16":
            assert_equal(both("square(x)", x, dtype=dtype), np.square(x))


@pytest.mark.parametrize("dtype", ["f16", "f32", "f64"])
def test_copysign_nextafter_reciprocal(dtype: str) -> None:
    x, y = grid(dtype)
    with np.errstate(all="ignore"):
        assert_equal(both("copysign(x, y)", x, y, dtype=dtype), np.copysign(x, y))
        want = np.nextafter(x, y)
        want = np.where(x == y, y, want)  # C's nextafter; NumPy's for f16 gives x
        assert_equal(both("nextafter(x, y)", x, y, dtype=dtype), want)
        assert_equal(both("reciprocal(x)", x, dtype=dtype), 1 / x)


def test_nextafter_of_bf16() -> None:
    x = np.array([1.0, 1.0, 0.0, -0.0, 3.3895314e38, np.inf, -1.0])
    y = np.array([2.0, 0.0, 1.0, -1.0, np.inf, 0.0, np.inf])
    least = 2.0**-133
    want = [1.0078125, 0.99609375, least, -least, np.inf, 3.3895314e38, -0.99609375]
    got = both("nextafter(x, y)", x, y, dtype="bf16")
    np.testing.assert_array_equal(got, np.array(want, np.float32))


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_logaddexp(dtype: str) -> None:
    x, y = grid(dtype)
    rng = np.random.default_rng(0)
    x = np.concatenate([x, rng.uniform(-800, 800, 500).astype(x.dtype)])
    y = np.concatenate([y, (x[-500:] + rng.normal(0, 10, 500)).astype(x.dtype)])
    with np.errstate(all="ignore"):
        want = np.logaddexp(x.astype(np.longdouble), y.astype(np.longdouble))
    for run in (apply, compiled):
        got = run("logaddexp(x, y)", x, y, dtypes=(dtype, dtype), result=dtype)
        with np.errstate(all="ignore"):
            scale = np.maximum(np.maximum(np.abs(x), np.abs(y)), np.abs(want))
            error = np.abs(got - want) / scale
            close = (error < 2 * np.finfo(x.dtype).eps) | (got == want.astype(x.dtype))
        assert (close | (np.isnan(got) & np.isnan(want))).all()


@pytest.mark.parametrize("dtype", ["f16", "f32", "f64"])
def test_float_division_is_numpys(dtype: str) -> None:
    x, y = grid(dtype)
    with np.errstate(all="ignore"):
        assert_equal(both("floor_divide(x, y)", x, y, dtype=dtype), np.floor_divide(x, y))
        assert_equal(both("remainder(x, y)", x, y, dtype=dtype), np.remainder(x, y))
        assert_equal(both("x // 0.7", x, dtype=dtype), np.floor_divide(x, x.dtype.type(0.7)))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_division_never_traps(dtype: str) -> None:
    x, y = grid(dtype)
    quotient = both("floor_divide(x, y)", x, y, dtype=dtype)
    rest = both("remainder(x, y)", x, y, dtype=dtype)
    bits = 8 * x.itemsize
    for a, b, q, r in zip(x.tolist(), y.tolist(), quotient.tolist(), rest.tolist()):
        assert ((a // b if b else 0) - q) % (1 << bits) == 0, (a, b, q)
        assert r == (a % b if b else 0), (a, b, r)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_powers_wrap(dtype: str) -> None:
    x, y = grid(dtype)
    got = both("pow(x, y)", x, y, dtype=dtype)
    bits = 8 * x.itemsize
    for a, b, r in zip(x.tolist(), y.tolist(), got.tolist()):
        if b >= 0:
            assert (pow(a, b, 1 << bits) - r) % (1 << bits) == 0, (a, b, r)
        else:
            assert r == (a ** (b % 2) if a in (1, -1) else 0), (a, b, r)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_rotl(dtype: str) -> None:
    x = extremes(dtype)
    bits = 8 * x.itemsize
    unsigned = x.view(f"u{x.itemsize}").tolist()
    for n in (0, 1, 5, bits - 1, bits, bits + 3, -1):
        got = both(f"rotl(x, {n})", x, dtype=dtype).view(f"u{x.itemsize}")
        k = n % bits
        assert got.tolist() == [((v << k) | (v >> (bits - k))) % (1 << bits) for v in unsigned]


def test_rotl_is_one_instruction() -> None:
    from tilewright.targets.cpu.machine import Machine

    if not Machine.detect_host().has_avx512:
        pytest.skip("rotations of vectors are an AVX-512 instruction")
    text = "def kernel(x: Array):\n    x[0:16] = rotl(x[0:16], 13)\n"
    kernel = Kernel.from_source(text, "kernel", NAMES)
    assert "vprold\t$13" in kernel.inspect(np.zeros(16, np.uint32)).asm


def test_errors() -> None:
    x = np.zeros(4)
    with pytest.raises(KernelError, match="rotl wants an integer"):
        apply("rotl(x, 1)", x, dtypes=("f32",), result="f32")
    with pytest.raises(KernelError, match="compile-time amount"):
        apply("rotl(x, x)", x, dtypes=("i32",), result="i32")
    with pytest.raises(KernelError, match="do not broadcast"):
        apply("copysign(x, zeros((3,), f32))", x, dtypes=("f32",), result="f32")

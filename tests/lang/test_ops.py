"""Every elementwise op against NumPy over extreme values, and the op table's edge cases."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright import lang
from tilewright.dtypes import ALL, bf16, boolean, by_name, from_float32, to_float32
from tilewright.errors import KernelError
from tilewright.lang import KernelFunction, bf16_array
from tilewright.lang.evaluate import fused_multiply_add
from tilewright.lang.ir import COMPARE

NAMES = {name: getattr(lang, name) for name in lang.__all__}
FLOATS = ("f16", "bf16", "f32", "f64")
INTEGERS = ("i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64")
SYMBOLS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}


def apply(expression: str, *operands: np.ndarray | lang.Tile, dtypes: tuple[str, ...], result: str):
    """Interpret ``expression`` of x, y, z (1-D, whole) and return its values."""
    n = len(operands[0])
    names = "xyz"[: len(operands)]
    lines = [f"    {a} = {a}_[0:{n}]" for a in names]
    text = "\n".join(
        [
            f"def kernel({', '.join(f'{a}_: Array' for a in names)}, out: Array):",
            *lines,
            f"    out[0:{n}] = {expression}",
        ]
    )
    kernel = KernelFunction.from_source(text + "\n", "kernel", NAMES)
    arrays = [pack(v, d) for v, d in zip(operands, dtypes)]
    out = pack(np.zeros(n), result)
    kernel.interpret(1)(*arrays, out)
    return unpack(out)


def pack(values, dtype: str):
    if dtype == "bf16":
        return bf16_array(from_float32(np.asarray(values, np.float32)))
    with np.errstate(all="ignore"):
        return np.asarray(values).astype(by_name(dtype).storage)


def unpack(array):
    return to_float32(array.bits) if hasattr(array, "bits") else array


def extremes(dtype: str) -> np.ndarray:
    """Values with nothing ordinary about them, and a few that are."""
    d = by_name(dtype)
    if d is boolean:
        return np.array([False, True, True, False])
    if d.is_float:
        small = {"f16": 6e-8, "bf16": 1e-40, "f32": 1e-45, "f64": 5e-324}[dtype]
        big = {"f16": 65504.0, "bf16": 3.38e38, "f32": 3.4e38, "f64": 1.7e308}[dtype]
        values = [0.0, -0.0, 1, -1, 0.5, 2.5, 3.5, -2.5, small, -small, big, -big, 7.3, 1e-3]
        values += [np.inf, -np.inf, np.nan]
        with np.errstate(all="ignore"):
            return unpack(pack(np.array(values), dtype))
    info = np.iinfo(d.storage)
    values = [0, 1, 2, 3, 5, 7, 63, 64, 100, info.max, info.max - 1, info.min, info.min + 1]
    if info.min < 0:
        values += [-1, -2, -7, -100]
    return np.array(values, d.storage)


def grid(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    v = extremes(dtype)
    return np.repeat(v, len(v)), np.tile(v, len(v))


def assert_same(got, want):
    got, want = np.asarray(got), np.asarray(want)
    bad = ~((got == want) | ((got != got) & (want != want)))
    assert not bad.any(), (np.nonzero(bad)[0][:5], got[bad][:5], want[bad][:5])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", ["+", "-", "*", "/"])
def test_float_arithmetic(op, dtype):
    x, y = grid(dtype)
    got = apply(f"x {op} y", x, y, dtypes=(dtype, dtype), result=dtype)
    with np.errstate(all="ignore"):
        want = eval(f"x.astype('f8') {op} y.astype('f8')")
        want = unpack(pack(want, dtype))
    assert_same(got, want)
    assert got.dtype == unpack(pack(x, dtype)).dtype


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("op", ["+", "-", "*", "//", "%", "&", "|", "^"])
def test_integer_arithmetic_wraps(op, dtype):
    x, y = grid(dtype)
    got = apply(f"x {op} y", x, y, dtypes=(dtype, dtype), result=dtype)
    bits = by_name(dtype).bits
    for a, b, r in zip(x.tolist(), y.tolist(), got.tolist()):
        exact = 0 if op in ("//", "%") and b == 0 else eval(f"a {op} b")
        assert (exact - r) % (1 << bits) == 0, (a, b, r)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_shifts_read_the_amount_as_unsigned(dtype):
    x, y = grid(dtype)
    bits = by_name(dtype).bits
    left = apply("x << y", x, y, dtypes=(dtype, dtype), result=dtype)
    right = apply("x >> y", x, y, dtypes=(dtype, dtype), result=dtype)
    for a, b, shl, shr in zip(x.tolist(), y.tolist(), left.tolist(), right.tolist()):
        amount = b % (1 << bits)
        exact = a << amount if amount < bits else 0
        assert (exact - shl) % (1 << bits) == 0
        assert shr == a >> min(amount, bits)


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
@pytest.mark.parametrize("op", sorted(COMPARE))
def test_compare(op, dtype):
    x, y = grid(dtype)
    got = apply(f"x {SYMBOLS[op]} y", x, y, dtypes=(dtype, dtype), result="bool")
    want = [eval(f"a {SYMBOLS[op]} b") for a, b in zip(x.tolist(), y.tolist())]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
@pytest.mark.parametrize("op", ["minimum", "maximum"])
def test_minimum_and_maximum_keep_nan(op, dtype):
    x, y = grid(dtype)
    got = apply(f"{op}(x, y)", x, y, dtypes=(dtype, dtype), result=dtype)
    choose = min if op == "minimum" else max
    want = [a if a != a else b if b != b else choose(a, b) for a, b in zip(x.tolist(), y.tolist())]
    assert_same(got, np.array(want, got.dtype))


REFERENCE = {
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf, otypes=[float]),
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sigmoid": lambda x: np.where(x > 0, 1 / (1 + np.exp(-x)), np.exp(x) / (1 + np.exp(x))),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", sorted(REFERENCE))
def test_functions_are_rounded_from_float64(op, dtype):
    x = extremes(dtype)
    got = apply(f"{op}(x)", x, dtypes=(dtype,), result=dtype)
    with np.errstate(all="ignore"):
        want = REFERENCE[op](x.astype(np.float64))
        if op == "sigmoid":
            want[np.isposinf(x)], want[np.isneginf(x) | (x < -1e4)] = 1, 0
        want = unpack(pack(want, dtype))
    if dtype == "f64":
        np.testing.assert_allclose(got, want, rtol=1e-15)
    else:
        assert_same(got, want)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rounding(dtype):
    x = extremes(dtype)
    for op, fn in [("floor", np.floor), ("ceil", np.ceil), ("trunc", np.trunc), ("round", np.rint)]:
        assert_same(apply(f"{op}(x)", x, dtypes=(dtype,), result=dtype), fn(x))
    for op, fn in [("abs(x)", np.abs), ("-x", np.negative)]:
        got = apply(op, x, dtypes=(dtype,), result=dtype)
        assert_same(got, fn(x))
        np.testing.assert_array_equal(np.signbit(got), np.signbit(fn(x)))
    np.testing.assert_array_equal(apply("isnan(x)", x, dtypes=(dtype,), result="bool"), np.isnan(x))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_unary(dtype):
    x = extremes(dtype)
    bits = by_name(dtype).bits
    ops = {
        "-x": lambda v: -v,
        "~x": lambda v: ~v,
        "abs(x)": abs,
        "popcount(x)": lambda v: (v % (1 << bits)).bit_count(),
        "floor(x)": int,
        "x ** 3": lambda v: v**3,
        "x ** 0": lambda v: 1,
    }
    for text, fn in ops.items():
        got = apply(text, x, dtypes=(dtype,), result=dtype)
        assert all((fn(a) - r) % (1 << bits) == 0 for a, r in zip(x.tolist(), got.tolist())), text


def _cast(value, target: str):
    """``value`` (a Python number) as ``target``, from the definition."""
    d = by_name(target)
    if d is boolean:
        return value != 0
    if d.is_integer:
        info = np.iinfo(d.storage)
        if isinstance(value, float):
            if value != value:
                return 0
            return (
                max(info.min, min(info.max, int(value)))
                if math.isfinite(value)
                else (info.max if value > 0 else info.min)
            )
        return (int(value) - info.min) % (1 << d.bits) + info.min
    return _nearest(value, target)


DIGITS = {  # significant bits, least exponent, exponent beyond the largest value
    "f64": (53, -1074, 1024),
    "f32": (24, -149, 128),
    "f16": (11, -24, 16),
    "bf16": (8, -133, 128),
}


def _nearest(value, target: str) -> float:
    """Rounded to nearest even by exact arithmetic."""
    digits, least, most = DIGITS[target]
    if isinstance(value, float) and (not math.isfinite(value) or value == 0):
        return value
    exact = Fraction(value)
    exponent = max(math.frexp(value)[1] - digits, least)
    scaled = exact / Fraction(2) ** exponent
    rounded = round(scaled) * Fraction(2) ** exponent
    if abs(rounded) >= 2**most:
        return math.inf if rounded > 0 else -math.inf
    return float(rounded)


@pytest.mark.parametrize("target", [d.name for d in ALL])
@pytest.mark.parametrize("source", [d.name for d in ALL])
def test_cast(source, target):
    x = extremes(source)
    if source in ("i64", "u64"):  # ties that go wrong when rounded twice
        ties = [(1 << 56) + (1 << 48) + 1, (1 << 40) + (1 << 16), (1 << 54) + (1 << 30) + 1]
        x = np.append(x, np.array(ties, x.dtype))
    if source == "f64":
        x = np.append(x, [1 + 2.0**-24 + 2.0**-50, 1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-11 + 2.0**-45])
    got = apply(f"x.to({target})", x, dtypes=(source,), result=target)
    want = [_cast(v, target) for v in x.tolist()]
    assert_same(got, np.array(want, got.dtype))


def test_constants_are_cast_like_tiles():
    x = np.zeros(1)
    for text, want in [("cast(3.9, i32)", 3), ("cast(1e30, i8)", 127), ("cast(-7, f32)", -7)]:
        assert apply(f"x + {text}", x, dtypes=("f64",), result="f64")[0] == want


def test_bitcast():
    x = extremes("f32")
    got = apply("bitcast(x, i32)", x, dtypes=("f32",), result="i32")
    np.testing.assert_array_equal(got, x.view(np.int32))
    back = apply(
        "bitcast(bitcast(x, u16) + 0, bf16)", extremes("bf16"), dtypes=("bf16",), result="bf16"
    )
    assert_same(back, extremes("bf16"))


# --- fma -----------------------------------------------------------------------------------------


def _exact_fma(x: float, y: float, z: float, dtype: str) -> float:
    if not all(map(math.isfinite, (x, y, z))):
        return x * y + z
    exact = Fraction(x) * Fraction(y) + Fraction(z)
    if exact == 0:
        return 0.0
    digits, least, most = DIGITS[dtype]
    size = abs(exact)
    top = size.numerator.bit_length() - size.denominator.bit_length()
    top += size >= Fraction(2) ** top
    exponent = max(top - digits, least)
    rounded = round(exact / Fraction(2) ** exponent) * Fraction(2) ** exponent
    if abs(rounded) >= 2**most:
        return math.inf if rounded > 0 else -math.inf
    return float(rounded)


@pytest.mark.parametrize("dtype", FLOATS)
def test_fma_is_rounded_once(dtype):
    rng = np.random.default_rng(1)
    n = 400
    scale = 2.0 ** rng.integers(-12, 12, (3, n))
    x, y, z = unpack(pack(rng.standard_normal((3, n)) * scale, dtype)).astype(np.float64)
    z = np.where(rng.random(n) < 0.5, -x * y * (1 + rng.integers(-3, 3, n) * 2.0**-9), z)
    x, y, z = (unpack(pack(v, dtype)) for v in (x, y, z))
    got = apply("fma(x, y, z)", x, y, z, dtypes=(dtype,) * 3, result=dtype)
    want = [_exact_fma(*v, dtype) for v in zip(x.tolist(), y.tolist(), z.tolist())]
    assert_same(got, np.array(want))
    if dtype == "f32":
        assert (got != x * y + z).any()  # the test sees double rounding


def test_fma_double_rounding_cases():
    # x*y + z lies a hair beside the midpoint of two f32, and float64 rounds it onto the midpoint
    hair = 2.0**-15
    x = np.float32([1 + hair, 1 + hair, 1 + hair, -1 - hair, 1.0])
    y = np.float32([(1 - hair) * 2.0**-24] * 4 + [2.0**-24])
    z = np.float32([1 + 2.0**-23, 1.0, -1 - 2.0**-23, -1 - 2.0**-23, 1.0])
    for shift in (0, -100, 100, -126):
        scale = np.float32(2.0) ** np.float32(shift)
        got = fused_multiply_add(by_name("f32"), x, y * scale, z * scale)
        want = [
            _exact_fma(*v, "f32") for v in zip(*(a.tolist() for a in (x, y * scale, z * scale)))
        ]
        np.testing.assert_array_equal(got, np.array(want))
        if shift == 0:
            wide = x.astype("f8") * y + z
            assert (wide.astype("f4") != got).any()  # what a sum in float64 gets wrong


@given(st.tuples(*[st.floats(width=32)] * 3))
@settings(max_examples=200, deadline=None)
def test_fma_any_float(values):
    x, y, z = (np.array([v], np.float32) for v in values)
    with np.errstate(all="ignore"):
        got = fused_multiply_add(by_name("f32"), x, y, z)
    assert_same(got, np.array([_exact_fma(*values, "f32")], np.float64).astype(np.float32))


def test_fma_of_integers_wraps():
    x, y = grid("i32")
    got = apply("fma(x, y, 7)", x, y, dtypes=("i32", "i32"), result="i32")
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(got, x * y + np.int32(7))


# --- dtypes of results ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "dtype"),
    [
        ("x + 1", "i32"),
        ("x + 1.5", "f32"),
        ("x / x", "f32"),
        ("x / 2", "f32"),
        ("x // 2", "i32"),
        ("x * y", "f16"),
        ("y * 2.5", "f16"),
        ("y + z", "f32"),
        ("y / 3", "f16"),
        ("z // 2.0", "bf16"),
        ("x > 0", "bool"),
        ("(x > 0) + 1", "i64"),
        ("(x > 0) + (x > 1)", "i64"),
        ("(x > 0) * y", "f16"),
        ("(x > 0) & True", "bool"),
        ("~(x > 0)", "bool"),
        ("-(x > 0)", "i64"),
        ("exp(x)", "f32"),
        ("exp(y)", "f16"),
        ("where(x > 0, 1, 2)", "i64"),
        ("where(x > 0, 1, 2.0)", "f32"),
        ("where(x > 0, y, -inf)", "f16"),
        ("sum(y)", "f16"),
        ("sum(x > 0)", "i32"),
        ("sum(x.to(i8))", "i32"),
        ("sum(x.to(u8))", "u32"),
        ("sum(x.to(i64))", "i64"),
        ("max(x.to(i8))", "i8"),
        ("argmax(y)", "i64"),
        ("any(x)", "bool"),
        ("cumsum(y)", "f16"),
        ("cumsum(x.to(i8))", "i32"),
        ("x ** 2", "i32"),
        ("y ** 2", "f16"),
        ("2.0 ** y", "f16"),
        ("x & 0xFFFFFFFF", "i32"),
        ("x.to(i8) & 0xFF", "i8"),
        ("x << 3", "i32"),
        ("x.to(u8) >> x", "i32"),
        ("abs(x)", "i32"),
        ("arange(4) + x", "i64"),
        ("program_id(0)", "i64"),
        ("a.shape[0]", "i64"),
        ("dot(z[None, :], y[:, None])", "f32"),
        ("dot(x[None, :], x[:, None])", "i32"),
        ("dot(y[None, :], y[:, None])", "f32"),
        ("dot(y[None, :], y[:, None], zeros((1, 1), f16))", "f16"),
        ("minimum(x, 3)", "i32"),
        ("maximum(y, 3)", "f16"),
        ("isnan(x)", "bool"),
    ],
)
def test_result_dtype(expression, dtype):
    text = f"""
def kernel(a: Array, b: Array, c: Array):
    x = a[0:4]
    y = b[0:4]
    z = c[0:4]
    v = {expression}
    assert v.dtype is {"boolean" if dtype == "bool" else dtype}, v.dtype
"""
    kernel = KernelFunction.from_source(text, "kernel", NAMES)
    args = (np.ones(4, np.int32), np.ones(4, np.float16), bf16_array(np.ones(4, np.uint16)))
    kernel.interpret(1)(*args)


def test_integer_mask_literals_wrap_only_in_bit_ops():
    x = np.array([-1, 5], np.int8)
    np.testing.assert_array_equal(apply("x & 0xFE", x, dtypes=("i8",), result="i8"), [-2, 4])
    with pytest.raises(KernelError, match="254 does not fit i8"):
        apply("x + 0xFE", x, dtypes=("i8",), result="i8")


def test_bf16_is_rounded_after_every_op():
    x = np.full(3, 1.0)
    got = apply("(x + 0.001) * 256 - 256", x, dtypes=("bf16",), result="bf16")
    np.testing.assert_array_equal(got, 0)
    assert bf16.bits == 16

"""Properties: random expressions and windows against NumPy written independently."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright import lang
from tilewright.lang import KernelFunction
from tilewright.lang.ir import verify

NAMES = {name: getattr(lang, name) for name in lang.__all__}
SETTINGS = settings(max_examples=80, deadline=None)


@st.composite
def expressions(draw, depth=4):
    """An f32 expression over x and y, as text that means the same to NumPy."""
    if depth == 0 or draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(["x", "y"]))
    a = draw(expressions(depth=depth - 1))
    b = draw(st.one_of(expressions(depth=depth - 1), st.sampled_from(["1.5", "3", "0.1", "-2"])))
    if draw(st.booleans()):
        a, b = b, a
    x = a if "x" in a or "y" in a else b
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return f"({a} {draw(st.sampled_from('+-*/'))} {b})"
    if kind == 1:
        return f"{draw(st.sampled_from(['minimum', 'maximum']))}({a}, {b})"
    if kind == 2:
        c = draw(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]))
        return f"where({a} {c} {b}, {a}, {b})"
    return f"{draw(st.sampled_from(['-', 'abs', 'floor', 'sqrt', 'x - ']))}({x})"


@given(expressions(), st.integers(0, 2**31))
@SETTINGS
def test_elementwise_expressions(text, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, 1)).astype(np.float32)
    y = rng.standard_normal((1, 5)).astype(np.float32)
    source = (
        "def kernel(a: Array, b: Array, out: Array):\n"
        "    x = a[0:3, 0:1]\n    y = b[0:1, 0:5]\n"
        f"    out[0:3, 0:5] = {text}\n"
    )
    kernel = KernelFunction.from_source(source, "kernel", NAMES)
    out = np.zeros((3, 5), np.float32)
    scope = {
        "x": x, "y": y, "where": np.where, "minimum": np.minimum, "maximum": np.maximum,
        "abs": np.abs, "floor": np.floor, "sqrt": np.sqrt,
    }  # fmt: skip
    with np.errstate(all="ignore"):
        want = eval(text, scope)
    assert want.dtype == np.float32
    kernel.interpret(1)(x, y, out)
    np.testing.assert_array_equal(out, np.broadcast_to(want, (3, 5)))
    ir = kernel.ir(kernel.signature((x, y, out)))
    verify(ir)
    assert str(ir).startswith("kernel kernel(")


@given(
    shape=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    starts=st.tuples(st.integers(-12, 12), st.integers(-12, 12)),
    lengths=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    steps=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    fill=st.sampled_from([0.0, -1.5, np.inf]),
    flip=st.booleans(),
)
@SETTINGS
def test_windows_against_padded_arrays(shape, starts, lengths, steps, fill, flip):
    x = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape) + 1
    if flip:
        x = np.asfortranarray(x)[::-1, ::-1]
    (a, b), (m, n), (s, t) = starts, lengths, steps
    window = f"a : a + {m * s} : {s}, b : b + {n * t} : {t}"
    source = (
        "def kernel(x: Array, y: Array, z: Array, a: i64, b: i64):\n"
        f"    y[0:{m}, 0:{n}] = load(x[{window}], fill={fill})\n"
        f"    z[{window}] = y[0:{m}, 0:{n}] + 0.5\n"
    )
    kernel = KernelFunction.from_source(source, "kernel", NAMES)
    y, z = np.zeros((m, n), np.float32), np.zeros(shape, np.float32)
    kernel.interpret(1)(x, y, z, a, b)
    pad = 60
    big = np.full((shape[0] + 2 * pad, shape[1] + 2 * pad), fill, np.float32)
    big[pad : pad + shape[0], pad : pad + shape[1]] = x
    rows = slice(pad + a, pad + a + m * s, s)
    columns = slice(pad + b, pad + b + n * t, t)
    np.testing.assert_array_equal(y, big[rows, columns])
    target = np.zeros_like(big)
    target[rows, columns] = y + np.float32(0.5)
    np.testing.assert_array_equal(z, target[pad : pad + shape[0], pad : pad + shape[1]])


@given(
    size=st.integers(0, 12),
    ids=st.lists(st.integers(-3, 15), min_size=1, max_size=20),
    dtype=st.sampled_from([np.int8, np.int32, np.int64, np.uint8, np.uint64]),
)
@SETTINGS
def test_gather_and_scatter_against_loops(size, ids, dtype):
    index = np.array(ids).astype(dtype)
    x = np.arange(size, dtype=np.float32) + 1
    n = len(ids)
    source = (
        "def kernel(x: Array, ids: Array, y: Array, z: Array):\n"
        f"    k = ids[0:{n}]\n    y[0:{n}] = x[k]\n    z[k] = arange({n}).to(f32) + 1.0\n"
    )
    kernel = KernelFunction.from_source(source, "kernel", NAMES)
    y, z = np.zeros(n, np.float32), np.zeros(size, np.float32)
    kernel.interpret(1)(x, index, y, z)
    want = np.zeros(size, np.float32)
    for place, k in enumerate(index.tolist()):
        inside = 0 <= k < size
        assert y[place] == (x[k] if inside else 0)
        if inside:
            want[k] = place + 1
    np.testing.assert_array_equal(z, want)

"""Elementwise ops: generated from the op table, one line per op.

Values: the kernels against the references on every dtype, strided and broadcast operands and
special values. Gradients: against differences and torch (see ``gradcheck``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.gradcheck import check_gradient, compiled, data, referenced, strided

from tilewright import dtypes
from tilewright.dtypes import DType, bf16, boolean, f16, f32, f64, i8, i16, i32, i64, u8, u16, u64
from tilewright.errors import ShapeError
from tilewright.graph import Node, const_node, scalar_node
from tilewright.ops import elementwise as E
from tilewright.ops import table

Domain = tuple[float, float]
ALL_REALS: Domain = (-3.0, 3.0)
POSITIVE: Domain = (0.2, 4.0)
INNER: Domain = (-0.9, 0.9)


@dataclass(frozen=True)
class Case:
    """How one op is tried: its operands' domains, attributes, the peer, the order of gradients."""

    domains: tuple[Domain, ...] = (ALL_REALS,)
    torch: str | Callable[..., Any] | None = None  # a name in torch, "" is the op's own
    order: int = 2
    attrs: dict[str, Any] = field(default_factory=dict)


def torch_functional(name: str, **kwargs: Any) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        import torch

        return getattr(torch.nn.functional, name)(*args, **kwargs)

    return call


def torch_clamp(*args: Any) -> Any:
    import torch

    return torch.clamp(*torch.broadcast_tensors(*args))  # alone its gradient does not broadcast


TWO, THREE = (ALL_REALS,) * 2, (ALL_REALS,) * 3
AWAY: Domain = (0.5, 2.5)

CASES = {
    "abs": Case(torch=""),
    "acos": Case((INNER,), ""),
    "acosh": Case(((1.2, 4.0),), ""),
    "add": Case(TWO, ""),
    "asin": Case((INNER,), ""),
    "asinh": Case(torch=""),
    "atan": Case(torch=""),
    "atan2": Case(TWO, ""),
    "atanh": Case((INNER,), ""),
    "ceil": Case(torch=""),
    "clip": Case(THREE, torch_clamp),
    "copysign": Case(TWO, ""),
    "cos": Case(torch=""),
    "cosh": Case(torch=""),
    "div": Case((ALL_REALS, AWAY), ""),
    "elu": Case(torch=torch_functional("elu", alpha=1.5), attrs={"alpha": 1.5}),
    "erf": Case(torch=""),
    "erfinv": Case((INNER,), ""),
    "exp": Case(torch=""),
    "exp2": Case(torch=""),
    "expm1": Case(torch=""),
    "floor": Case(torch=""),
    "floor_divide": Case((ALL_REALS, AWAY), lambda x, y: (x / y).floor()),
    "gelu": Case(torch=torch_functional("gelu", approximate="tanh")),
    "gelu_erf": Case(torch=torch_functional("gelu")),
    "hypot": Case(TWO, ""),
    "leaky_relu": Case(
        torch=torch_functional("leaky_relu", negative_slope=0.3), attrs={"slope": 0.3}
    ),
    "log": Case((POSITIVE,), ""),
    "log10": Case((POSITIVE,), ""),
    "log1p": Case((INNER,), ""),
    "log2": Case((POSITIVE,), ""),
    "logaddexp": Case(TWO, ""),
    "maximum": Case(TWO, ""),
    "minimum": Case(TWO, ""),
    "mul": Case(TWO, ""),
    "neg": Case(torch=""),
    "pow": Case((POSITIVE, ALL_REALS), ""),
    "reciprocal": Case((AWAY,), ""),
    "relu": Case(torch=""),
    "remainder": Case((ALL_REALS, AWAY), "", order=1),
    "round": Case(torch=""),
    "rsqrt": Case((POSITIVE,), ""),
    "scale": Case(torch=lambda x: x * -0.7, attrs={"factor": -0.7}),
    "sigmoid": Case(torch=""),
    "sign": Case(torch=""),
    "silu": Case(torch=torch_functional("silu")),
    "sin": Case(torch=""),
    "sinh": Case(torch=""),
    "softplus": Case(torch=torch_functional("softplus")),
    "sqrt": Case((POSITIVE,), ""),
    "square": Case(torch=""),
    "sub": Case(TWO, ""),
    "tan": Case((INNER,), ""),
    "tanh": Case(torch=""),
    "trunc": Case(torch=""),
}
PREDICATES = ["isfinite", "isinf", "isnan", "signbit"]
COMPARISONS = ["eq", "ge", "gt", "le", "lt", "ne"]
LOGICAL = ["logical_and", "logical_or", "logical_xor"]
BITWISE = ["bitwise_and", "bitwise_or", "bitwise_xor"]
SHIFTS = ["shift_left", "shift_right"]
OTHERS = ["bitcast", "bitwise_invert", "cast", "copy", "logical_not", "nextafter", "stop_gradient"]
OTHERS += ["where"]

FLOATS = [f64, f32, f16, bf16]
INTEGERS = [d for d in dtypes.ALL if d.is_integer]
SHAPES = {1: [(5, 7)], 2: [(5, 7), (7,)], 3: [(3, 1, 7), (5, 1), ()]}


def test_every_elementwise_op_of_the_family_is_tried() -> None:
    mine = {
        name for name in dir(E) if name in table.names() and table.get(name).expression is not None
    }
    assert {"copy", "stop_gradient"} <= set(table.names())
    tried = {*CASES, *PREDICATES, *COMPARISONS, *LOGICAL, *BITWISE, *SHIFTS, *OTHERS}
    assert mine - tried == set()
    assert all(name in table.names() for name in tried)


def draw(rng: np.random.Generator, domain: Domain, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(rng.uniform(*domain, shape))


def operands(case: Case, seed: int = 0, same: bool = False) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = SHAPES[len(case.domains)]
    if same:
        shapes = [shapes[0]] * len(shapes)
    return [draw(rng, d, s) for d, s in zip(case.domains, shapes)]


def apply(op: str, *nodes: Node) -> Node:
    return table.make(op, *nodes, **CASES[op].attrs)


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", CASES)
def test_gradient(op: str) -> None:
    case = CASES[op]
    peer = case.torch
    if isinstance(peer, str):
        torch = pytest.importorskip("torch")
        peer = getattr(torch, peer or op)
    check_gradient(lambda *xs: apply(op, *xs), *operands(case), torch_fn=peer, order=case.order)


def test_gradients_by_kernels() -> None:
    """All ops' gradients in one program, f64, on strided operands; see the reference test."""
    from tilewright.ops.autodiff import vjp

    rng = np.random.default_rng(1)
    grads: list[tuple[str, Node]] = []
    for op, case in CASES.items():
        leaves = [data(strided(a, rng)) for a in operands(case)]
        y = apply(op, *leaves)
        found = vjp([y], [data(rng.standard_normal(y.shape))], leaves)
        grads += [(op, g) for g in found if g is not None]
    wanted = referenced([g for _, g in grads])
    for (op, g), w, got in zip(grads, wanted, compiled([g for _, g in grads])):
        assert got.shape == g.shape
        np.testing.assert_allclose(got, w, rtol=1e-12, atol=1e-13, err_msg=op)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_gradient_of_chains(choice: st.DataObject) -> None:
    """Random expressions: several uses of a value, broadcasting, second order."""
    smooth = ["tanh", "sin", "sigmoid", "gelu", "softplus", "atan", "erf", "asinh", "square"]
    binary = ["add", "sub", "mul", "hypot", "logaddexp", "atan2"]
    places = st.integers(0, 9)
    steps = [
        (choice.draw(st.sampled_from(smooth + binary)), choice.draw(places), choice.draw(places))
        for _ in range(choice.draw(st.integers(2, 6)))
    ]

    def fn(*leaves: Node) -> Node:
        values = list(leaves)
        for op, i, j in steps:
            x, y = values[i % len(values)], values[j % len(values)]
            values.append(table.make(op, *((x, y) if op in binary else (x,))))
        total = values[-1]
        for leaf in leaves:
            total = E.add(total, E.square(leaf))
        return total

    rng = np.random.default_rng(choice.draw(st.integers(0, 1000)))
    arrays = [rng.uniform(0.3, 1.5, s) for s in [(2, 3), (3,), (2, 1)]]
    check_gradient(fn, *arrays, order=2, tolerance=3e-6)


@pytest.mark.parametrize("op", ["maximum", "minimum", "clip"])
def test_ties_share_the_gradient_as_in_torch(op: str) -> None:
    torch = pytest.importorskip("torch")
    from tilewright.ops.autodiff import vjp

    arrays = [np.array([1.0, 2, 3, 2, math.nan]), np.array([1.0, 1, 1, 2, 1])]
    arrays += [np.array([1.0, 3, 3, 2, 2])] * (op == "clip")
    leaves = [data(a) for a in arrays]
    y = table.make(op, *leaves)
    got = referenced([g for g in vjp([y], [data(np.arange(1.0, 6))], leaves) if g is not None])
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    peer = getattr(torch, "clamp" if op == "clip" else op)(*tensors)
    peer.backward(torch.arange(1.0, 6, dtype=torch.float64))
    keep = slice(0, 4) if op == "clip" else slice(None)  # torch hands NaN's gradient on
    for mine, tensor in zip(got, tensors, strict=True):
        np.testing.assert_array_equal(mine[keep], tensor.grad.numpy()[keep])


def test_gradients_at_corners() -> None:
    """abs and relu at 0, pow at 0, where over an infinite branch: finite, and as in torch."""
    torch = pytest.importorskip("torch")
    from tilewright.ops.autodiff import vjp

    x, zero = np.array([0.0, 0, 0, 2, 4]), np.array([0.0, 1, 2, 0, 0.5])

    def run(fn: Callable[..., Node], *arrays: np.ndarray) -> list[np.ndarray]:
        leaves = [data(a) for a in arrays]
        y = fn(*leaves)
        return referenced([g for g in vjp([y], [E.ones_like(y)], leaves) if g is not None])

    def peer(fn: Callable[..., Any], *arrays: np.ndarray) -> list[np.ndarray]:
        tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        fn(*tensors).sum().backward()
        return [t.grad.numpy() for t in tensors]

    def guarded(v: Node) -> Node:
        positive = E.gt(v, E.literal(0, v))
        return E.where(positive, E.log(E.where(positive, v, E.literal(1, v))), v)

    pairs: list[tuple[Any, Any, tuple[np.ndarray, ...]]] = [
        (E.abs, torch.abs, (x,)),
        (E.relu, torch.relu, (x,)),
        (E.pow, torch.pow, (x, zero)),
        (E.hypot, lambda a, b: torch.hypot(a, b), (x + 1, zero)),
        (guarded, lambda v: torch.where(v > 0, torch.where(v > 0, v, 1).log(), v), (x,)),
    ]
    for mine, theirs, arrays in pairs:
        for got, wanted in zip(run(mine, *arrays), peer(theirs, *arrays), strict=True):
            np.testing.assert_array_equal(got, wanted)
    for fn in (E.hypot, E.atan2):
        for g in run(fn, np.zeros(1), np.zeros(1)):
            np.testing.assert_array_equal(g, 0)
    infinite = np.array([math.inf, -math.inf])
    np.testing.assert_array_equal(run(E.logaddexp, infinite, infinite)[0], 0.5)


# --- values --------------------------------------------------------------------------------------


def close(name: str, dtype: DType, got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    if got.dtype.kind == "f":
        rtol = {f64: 4e-15, f32: 2e-6, f16: 2e-3, bf16: 1.6e-2}[dtype]
        atol = 4 * float(np.finfo(got.dtype).tiny)
        if name.startswith("gelu"):  # 1 + tanh and 1 + erf cancel
            atol = rtol
        np.testing.assert_allclose(got, wanted, rtol, atol, err_msg=name)
    else:
        np.testing.assert_array_equal(got, wanted, err_msg=name)


def agree(named: list[tuple[str, Node]]) -> None:
    """The kernels of all nodes, in one program, give what the references say."""
    nodes = [n for _, n in named]
    for (name, node), wanted, got in zip(named, referenced(nodes), compiled(nodes)):
        close(f"{name} of {node.inputs[0].dtype}", node.dtype, got, wanted)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_float_values(dtype: DType) -> None:
    rng = np.random.default_rng(2)
    named = []
    for op, case in CASES.items():
        arrays = [strided(a.astype(np.float32), rng) for a in operands(case)]
        named.append((op, apply(op, *(data(a, dtype) for a in arrays))))
    for op in [*COMPARISONS, *LOGICAL]:
        x, y = (rng.integers(-2, 3, s).astype(np.float32) for s in [(4, 1, 3), (5, 1)])
        named.append((op, table.make(op, data(x, dtype), data(y, dtype))))
    agree(named)


SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 3.5, -2.5, 88.0, -100.0, 1e-3]
SPECIAL += [math.inf, -math.inf, math.nan, 6e4, 2**-14]


@pytest.mark.parametrize("dtype", [f64, f32, bf16], ids=str)
def test_special_values(dtype: DType) -> None:
    values = np.array(SPECIAL, np.float32)
    named = []
    for op, case in CASES.items():
        shapes = [(-1, 1, 1), (-1, 1), (-1,)][: len(case.domains)]
        named.append((op, apply(op, *(data(values.reshape(s), dtype) for s in shapes))))
    named += [(op, table.make(op, data(values, dtype))) for op in [*PREDICATES, "logical_not"]]
    for op in [*COMPARISONS, *LOGICAL]:
        named.append((op, table.make(op, data(values[:, None], dtype), data(values, dtype))))
    if dtype is not bf16:
        x, y = data(values[:, None], dtype), data(values, dtype)
        named.append(("nextafter", E.nextafter(x, y)))
    agree(named)


def extremes(dtype: DType) -> np.ndarray:
    limits = np.iinfo(dtype.storage)
    small = [0, 1, 2, 3, 7, dtype.bits - 1, limits.max, limits.max - 1, limits.max // 2]
    small += [limits.min, limits.min + 1, -1 % 256 if dtype.kind == "u" else -1]
    return np.array(small, dtype.storage)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integer_values(dtype: DType) -> None:
    """Wrapping, division by zero, shifts by the width: what NumPy says, or the reference."""
    x = extremes(dtype)
    rows, line = data(x[:, None]), data(x)
    named = [(op, table.make(op, rows, line)) for op in [*COMPARISONS, *LOGICAL, *BITWISE]]
    for op in ["add", "sub", "mul", "maximum", "minimum", "floor_divide", "remainder"]:
        named.append((op, table.make(op, rows, line)))
    for op in ["neg", "abs", "sign", "square", "floor", "ceil", "round", "trunc"]:
        named.append((op, table.make(op, line)))
    for op in ["isnan", "isinf", "isfinite", "logical_not", "bitwise_invert"]:
        named.append((op, table.make(op, line)))
    named.append(("clip", E.clip(line, data(x[3:4]), data(x[4:5]))))
    shifts = data(np.array([0, 1, dtype.bits - 1, dtype.bits, 100], dtype.storage))
    named += [(op, table.make(op, rows, shifts)) for op in SHIFTS]
    named.append(("pow", E.pow(rows, data(np.array([0, 1, 2, 5, 100], dtype.storage)))))
    agree(named)


def test_bool_values() -> None:
    x = data(np.array([[True], [False]]))
    y = data(np.array([True, False]))
    ops = [*COMPARISONS, *LOGICAL, *BITWISE, "maximum", "minimum", "add", "mul"]
    named = [(op, table.make(op, x, y)) for op in ops]
    named += [(op, table.make(op, y)) for op in ["logical_not", "bitwise_invert"]]
    named.append(("where", E.where(x, y, data(np.array([[False], [True]])))))
    agree(named)


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=str)
def test_where_and_casts(dtype: DType) -> None:
    rng = np.random.default_rng(3)
    numbers = np.array([*SPECIAL, 200.0, -200.0, 40000.0, 3e9, -3e9, 1e19, -1e19], np.float32)
    if not dtype.is_float:
        numbers = rng.integers(0, 2 if dtype is boolean else 100, 23)
    x = data(numbers, dtype)
    c = data(numbers > 0.7)
    named = [("where", E.where(c, x, data(numbers[::-1], dtype)))]
    named += [(f"cast to {to}", E.cast(x, to)) for to in dtypes.ALL if to is not dtype]
    same = [d for d in dtypes.ALL if d.bits == dtype.bits and d is not dtype]
    if dtype is not boolean:
        named += [(f"bitcast to {d}", E.bitcast(x, d)) for d in same if d is not boolean]
    agree(named)


def test_references_against_torch() -> None:
    torch = pytest.importorskip("torch")
    for op, case in CASES.items():
        peer = getattr(torch, case.torch or op) if isinstance(case.torch, str) else case.torch
        arrays = [a.astype(np.float32) for a in operands(case)]
        (got,) = referenced([apply(op, *map(data, arrays))])
        wanted = peer(*(torch.from_numpy(a) for a in arrays)).numpy()
        np.testing.assert_allclose(got, wanted, rtol=3e-6, atol=1e-6, err_msg=op)


def test_creation() -> None:
    named = [
        ("iota", E.add(E.iota((3, 4), 1, d), E.iota((3, 4), 0, d)))
        for d in dtypes.ALL
        if d is not boolean
    ]
    named.append(("full", table.make("copy", E.full((2, 0, 3), 7, i16))))
    named.append(("full", table.make("copy", E.full((2, 3), -1.5, f16))))
    agree(named)
    total, ones = referenced([E.iota((3, 4), -1, i32), E.ones((2, 3), u8)])
    np.testing.assert_array_equal(total, np.tile(np.arange(4), (3, 1)))
    np.testing.assert_array_equal(ones, np.ones((2, 3), np.uint8))


def test_numbers_meet_arrays() -> None:
    x = data(np.arange(6.0).reshape(2, 3))
    named = [
        ("add", E.add(x, const_node(2.5, f64))),
        ("mul", E.mul(scalar_node(-3.0, f64), x)),
        ("mul", E.mul(scalar_node(-3.0, f64), const_node(2.0, f64))),
    ]
    agree(named)


def test_bit_ops_of_16_bit_floats_keep_their_bits() -> None:
    bits = np.array([0x3C00, 0x8001, 0x7BFF, 0x0001], np.uint16)
    for dtype in (f16, bf16):
        back = E.bitcast(E.bitcast(data(bits), dtype), i16)
        for run in (referenced, compiled):
            np.testing.assert_array_equal(run([back])[0].view(np.uint16), bits)


# --- refusals ------------------------------------------------------------------------------------


def refuse(text: str, op: str, *nodes: Node, **attrs: Any) -> None:
    with pytest.raises(ShapeError, match=text):
        table.make(op, *nodes, **attrs)


def test_refusals_say_what_to_do() -> None:
    x, y = data(np.zeros((2, 3))), data(np.zeros((2, 3), np.float32))
    refuse("one dtype, got f64 and f32: cast", "add", x, y)
    refuse(r"\(2, 3\) and \(4\) do not broadcast", "mul", x, data(np.zeros(4)))
    refuse("exp wants floats, got i64: cast", "exp", data(np.zeros(3, np.int64)))
    refuse("signed integers or unsigned", "shift_left", x, x)
    refuse("where wants a bool", "where", x, x, x)
    refuse("keeps the width", "bitcast", x, source=f64, dtype=i32)
    refuse("nextafter wants 32 bits or more, got f16", "nextafter", *[E.cast(x, f16)] * 2)
    assert {i8, i64, u16, u64} <= set(dtypes.ALL)

"""Products of arrays: values, bits, strides, dtypes, gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import interpret, run
from tests.ops.gradcheck import check_gradient, compiled, data, referenced, strided

from tilewright.dtypes import DType, bf16, f16, f32, f64, from_float32, i8, i32, to_float32, u16
from tilewright.errors import ShapeError
from tilewright.graph import Node
from tilewright.ops import gemm_calls, table
from tilewright.ops.elementwise import cast
from tilewright.ops.epilogue import Epilogue, Step
from tilewright.ops.gemm import bmm
from tilewright.runtime.buffers import Buffer, empty, from_array


def launched(node: Node, *, by: Any = run, pad: bool = False, extras: Any = ()) -> np.ndarray:
    """The product by its kernels, from the values of its inputs; bf16 as float32."""
    entry = table.get("bmm")
    assert entry.calls is not None
    assert entry.workspace is not None
    out = empty(node.dtype, node.shape, pad_rows=pad)
    out.numpy()[...] = np.array(-1).astype(node.dtype.storage)
    spare = [empty(dtype, shape) for dtype, shape in entry.workspace(node)]
    by(entry.calls(node, [*(i.value for i in node.inputs), *extras], out, spare))
    values = out.numpy().copy()
    return to_float32(values) if node.dtype is bf16 else values


def random(rng: np.random.Generator, dtype: DType, *shape: int) -> np.ndarray:
    if dtype.is_integer:
        info = np.iinfo(dtype.storage)
        return rng.integers(info.min, info.max, shape, dtype.storage, endpoint=True)
    return rng.standard_normal(shape)


def turned(x: np.ndarray) -> np.ndarray:
    """The same values, the other one of the last two axes contiguous."""
    return np.swapaxes(np.ascontiguousarray(np.swapaxes(x, -1, -2)), -1, -2)


def in_order(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One f32 accumulator, one fused multiply-add per k, k ascending.

    Products of f32 are exact in float64 and so, but for a double rounding that is too rare to meet
    here, are the sums.
    """
    acc = np.zeros((*a.shape[:-1], b.shape[-1]), np.float32)
    for k in range(a.shape[-1]):
        with np.errstate(invalid="ignore"):
            product = a[..., :, k, None].astype(np.float64) * b[..., None, k, :]
            acc = (product + acc).astype(np.float32)
    return acc


def in_pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The same for bf16 operands: pairs of k, of each the second product first."""
    if a.shape[-1] % 2:
        a = np.concatenate([a, np.zeros_like(a[..., :1])], -1)
        b = np.concatenate([b, np.zeros_like(b[..., :1, :])], -2)
    order = np.arange(a.shape[-1]).reshape(-1, 2)[:, ::-1].ravel()
    return in_order(a[..., order], b[..., order, :])


def rounded(x: np.ndarray) -> np.ndarray:
    return to_float32(from_float32(x.astype(np.float32)))


DTYPES = [f32, f64, f16, bf16, i8, u16, i32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("a", "b"),
    [((3, 5), (5, 4)), ((70, 33), (33, 41)), ((2, 1, 4, 7), (3, 7, 2)), ((1, 40), (40, 9))],
)
def test_values(dtype: DType, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    x, y = random(rng, dtype, *a), random(rng, dtype, *b)
    node = bmm(data(x, dtype), data(y, dtype))
    assert node.dtype is dtype
    want = referenced([node])[0]
    got = launched(node)
    assert got.shape == want.shape
    if dtype.is_integer:
        assert np.array_equal(got, want)
    else:
        close = {f64: 1e-13, f32: 1e-6, f16: 2e-3, bf16: 1e-2}[dtype]
        np.testing.assert_allclose(got, want, rtol=0, atol=close * max(1, np.abs(want).max()))


@pytest.mark.parametrize("a_turned", [False, True])
@pytest.mark.parametrize("b_turned", [False, True])
@pytest.mark.parametrize(
    ("m", "k", "n"), [(40, 700, 50), (9, 1, 33), (600, 9, 40), (65, 130, 17), (200, 801, 24)]
)
def test_order_of_sums(m: int, k: int, n: int, a_turned: bool, b_turned: bool) -> None:
    rng = np.random.default_rng(m)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (k, n)))
    left, right = (turned(x) if flag else x for x, flag in ((a, a_turned), (b, b_turned)))
    assert np.array_equal(launched(bmm(data(left), data(right))), in_order(a, b))


@pytest.mark.parametrize("a_turned", [False, True])
@pytest.mark.parametrize("b_turned", [False, True])
@pytest.mark.parametrize("source", [f32, bf16], ids=str)
@pytest.mark.parametrize(("m", "k", "n"), [(40, 1602, 50), (70, 65, 40), (600, 20, 33)])
def test_order_of_pairs(
    m: int, k: int, n: int, source: DType, a_turned: bool, b_turned: bool
) -> None:
    rng = np.random.default_rng(m)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (k, n)))
    want = in_pairs(rounded(a), rounded(b))
    left, right = (turned(x) if flag else x for x, flag in ((a, a_turned), (b, b_turned)))
    leaves = [stored(x, source) for x in (left, right)]
    node = bmm(*leaves, compute=bf16, out_dtype=f32)
    assert node.dtype is f32
    assert np.array_equal(launched(node), want)
    node = bmm(*leaves, compute=bf16, out_dtype=bf16)
    assert np.array_equal(launched(node), rounded(want))


def stored(x: np.ndarray, dtype: DType) -> Node:
    """A leaf with the strides of ``x``."""
    if dtype is f32:
        return data(x)
    bits = np.empty_like(x, np.uint16)  # keeps the order of the axes
    bits[...] = from_float32(x)
    assert bits.strides[-1] * 2 == x.strides[-1]
    return data_of(from_array(bits, bf16))


def data_of(buffer: Buffer) -> Node:
    from tilewright.graph import data_node

    return data_node(buffer)


def test_one_operand_may_be_bf16_already() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((33, 70)), rng.standard_normal((70, 40))
    node = bmm(data(a, bf16), data(b, f32), compute=bf16)
    assert node.dtype is f32
    assert np.array_equal(launched(node), in_pairs(rounded(a), rounded(b)))
    assert np.abs(launched(node) - referenced([node])[0]).max() < 1e-5


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([f32, f32, bf16]), st.booleans())
def test_strides_and_batches(seed: int, dtype: DType, padded: bool) -> None:
    check_strides_and_batches(seed, dtype, padded)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([f32, f32, bf16]), st.booleans())
def test_strides_and_batches_by_the_other_kernels(seed: int, dtype: DType, padded: bool) -> None:
    """The same sizes by the kernels that are meant for larger ones: the same bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemm_calls, "_SMALL", -1)
        check_strides_and_batches(seed, dtype, padded)


def check_strides_and_batches(seed: int, dtype: DType, padded: bool) -> None:
    rng = np.random.default_rng(seed)
    m, k, n = (int(rng.choice([1, 2, 17, 40])) for _ in range(3))
    batch = tuple(int(rng.choice([1, 2, 3])) for _ in range(rng.integers(0, 4)))
    cut = rng.integers(0, len(batch) + 1)
    thin = tuple(s if rng.integers(2) else 1 for s in batch)
    a = rounded(rng.standard_normal((*batch, m, k)))
    b = rounded(rng.standard_normal((*thin[cut:], k, n)))
    views = []
    for x in (a, b):
        view = strided(x if dtype is f32 else from_float32(x), rng)
        views.append(data_of(from_array(view, dtype)))
    node = bmm(*views, out_dtype=f32)
    want = (in_order if dtype is f32 else in_pairs)(a, b)
    assert np.array_equal(launched(node, pad=padded), want)


def test_stride_of_zero() -> None:
    rng = np.random.default_rng(0)
    row, column = rng.standard_normal((2, 90)).astype(np.float32)
    a = np.broadcast_to(row, (70, 90))
    b = np.broadcast_to(column[:, None], (90, 80))
    assert np.array_equal(launched(bmm(data(a), data(b))), in_order(a, b))


@pytest.mark.parametrize(
    ("a", "b"),
    [((0, 3), (3, 4)), ((3, 0), (0, 4)), ((3, 4), (4, 0)), ((0, 2, 3), (3, 4)), ((600, 0), (0, 9))],
)
@pytest.mark.parametrize("dtype", [f32, bf16, i8], ids=str)
def test_empty(a: tuple[int, ...], b: tuple[int, ...], dtype: DType) -> None:
    node = bmm(data(np.zeros(a), dtype), data(np.zeros(b), dtype))
    got = launched(node)
    assert got.shape == referenced([node])[0].shape
    assert not got.any()


@pytest.mark.parametrize("dtype", [f32, bf16], ids=str)
@pytest.mark.parametrize(("m", "k", "n"), [(1, 777, 300), (300, 777, 1), (5, 777, 70)])
def test_thin(m: int, k: int, n: int, dtype: DType) -> None:
    rng = np.random.default_rng(m)
    a, b = rounded(rng.standard_normal((m, k))), rounded(rng.standard_normal((k, n)))
    want = (in_order if dtype is f32 else in_pairs)(a, b)
    for left in (a, turned(a)):
        for right in (b, turned(b)):
            node = bmm(stored(left, dtype), stored(right, dtype), out_dtype=f32)
            assert np.array_equal(launched(node), want)


@pytest.mark.parametrize("threads", ["1", "2", "3"])
def test_any_number_of_threads(threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((1100, 420), (420, 130)))
    monkeypatch.setenv("TILEWRIGHT_THREADS", threads)
    assert np.array_equal(launched(bmm(data(a), data(b))), in_order(a, b))


@pytest.mark.parametrize("dtype", [f32, bf16], ids=str)
def test_another_machine_has_the_same_bits(dtype: DType, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((70, 90)), rng.standard_normal((90, 50))
    node = bmm(data(a, dtype), data(b, dtype), out_dtype=f32)
    here = launched(node)
    monkeypatch.setenv("TILEWRIGHT_CPU", "haswell")
    assert np.array_equal(launched(node), here)


@pytest.mark.parametrize("dtype", [f32, bf16, i8], ids=str)
@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("small", [True, False])
def test_interpreter_agrees(
    dtype: DType, turn: bool, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        monkeypatch.setattr(gemm_calls, "_SMALL", -1)
    rng = np.random.default_rng(0)
    a, b = random(rng, dtype, 9, 20), random(rng, dtype, 20, 6)
    leaves = [data(x, dtype) for x in (a, b)]
    if turn:
        buffers = [x.value for x in reversed(leaves)]
        leaves = [data_of(x.view(x.shape[::-1], x.strides[::-1])) for x in buffers]
    node = bmm(*leaves)
    assert np.array_equal(launched(node, by=interpret), launched(node))


def test_special_values() -> None:
    a = np.zeros((70, 200), np.float32)
    b = np.ones((200, 90), np.float32)
    a[1, 2], a[2, 3], b[4, 5], b[0, 6] = np.inf, np.nan, -np.inf, 1e-40
    a[3, 4] = 1
    a[4, 0] = 1
    for left in (a, turned(a)):
        got = launched(bmm(data(left), data(b)))
        want = in_order(a, b)
        assert np.array_equal(got, want, equal_nan=True)
        assert got[4, 6] == np.float32(1e-40)
        assert got[3, 5] == -np.inf


def test_negative_zero_is_kept_where_k_is_padded() -> None:
    tiny = np.float32(1e-30)
    a, b = np.zeros((70, 401), np.float32), np.zeros((401, 90), np.float32)
    a[:, 0], b[0] = tiny, -tiny  # a product that rounds to -0.0
    a[:, 1:], b[1:] = -0.0, 0.0
    for left, right in ((a, b), (turned(a), turned(b))):
        got = launched(bmm(data(left), data(right)))
        assert np.array_equal(np.signbit(got), np.signbit(in_order(a, b)))
        assert np.signbit(got).all()


def test_small_products_share_kernels() -> None:
    """Per dtype one kernel where the rows of b are in one piece and one where they are not."""
    rng = np.random.default_rng(0)
    seen = set()
    entry = table.get("bmm")
    assert entry.calls is not None
    assert entry.workspace is not None
    for _ in range(200):
        dtype = [f32, f64][rng.integers(2)]
        m, k, n = (int(x) for x in rng.integers(0, 10, 3))
        batch = tuple(int(x) for x in rng.integers(0, 4, rng.integers(0, 3)))
        a, b = rng.standard_normal((*batch, m, k)), rng.standard_normal((*batch[1:], k, n))
        a, b = (x.astype(dtype.storage) for x in (a, b))
        a, b = (turned(x) if rng.integers(2) else x for x in (a, b))
        node = bmm(data(a, dtype), data(b, dtype))
        out = empty(dtype, node.shape)
        assert not entry.workspace(node)
        for call in entry.calls(node, [i.value for i in node.inputs], out, []):
            seen.add((call.kernel.name, call.kernel.signature(call.args, call.consts)))
    assert len(seen) <= 4
    assert {name for name, _ in seen} == {"gemm_small"}


def test_large_products_share_kernels() -> None:
    """Sizes are arguments: what is compiled depends on dtypes, strides and a few classes."""
    rng = np.random.default_rng(0)
    entry = table.get("bmm")
    assert entry.calls is not None
    assert entry.workspace is not None
    seen = set()
    for _ in range(100):
        m, k, n = (int(x) for x in rng.integers(1, 1500, 3))
        node = bmm(data_of(empty(f32, (m, k))), data_of(empty(f32, (k, n))))
        spare = [empty(dtype, shape) for dtype, shape in entry.workspace(node)]
        out = empty(f32, node.shape)
        for call in entry.calls(node, [i.value for i in node.inputs], out, spare):
            seen.add((call.kernel.name, call.kernel.signature(call.args, call.consts)))
    assert len(seen) <= 12, sorted(name for name, _ in seen)


@pytest.mark.parametrize(("m", "k", "n"), [(40, 30, 50), (600, 820, 70), (100, 90, 3)])
def test_epilogue(m: int, k: int, n: int) -> None:
    """((a @ b + bias) * 2 + residual; more in tests/compiler/passes/test_epilogue.py."""
    rng = np.random.default_rng(0)
    a, b, residual = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (k, n), (m, n)))
    bias = rng.standard_normal((1, n)).astype(np.float32)
    plain = bmm(data(a), data(b))
    steps = [("add", (0, -1)), ("const", ()), ("mul", (1, 2)), ("add", (3, -2))]
    epilogue = Epilogue(
        f32,
        tuple(Step(op, at, (f32,) * len(at), f32, {"value": 2.0} if not at else {})
              for op, at in steps),
        ("row", "full"),
    )  # fmt: skip
    node = Node("bmm", plain.inputs, plain.shape, plain.dtype, {"epilogue": epilogue})
    got = launched(node, extras=(from_array(bias), from_array(residual)))
    assert np.array_equal(got, (in_order(a, b) + bias) * np.float32(2) + residual)


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((3, 4), (2, 1, 4, 2)), ((2, 1, 3, 2), (5, 2, 1))],
)
@pytest.mark.parametrize("by", [referenced, compiled])
def test_gradient(a: tuple[int, ...], b: tuple[int, ...], by: Any) -> None:
    import torch

    rng = np.random.default_rng(0)
    arrays = rng.standard_normal(a), rng.standard_normal(b)
    check_gradient(bmm, *arrays, order=2, torch_fn=torch.matmul, run=by)


@pytest.mark.parametrize(("a", "b"), [(bf16, bf16), (f32, bf16), (f32, f32)])
def test_gradient_of_mixed_precision(a: DType, b: DType) -> None:
    """Each operand's gradient has its dtype, and is what bf16 operands of the product give."""
    from tilewright.ops.autodiff import vjp

    rng = np.random.default_rng(0)
    x, w, g = (rng.standard_normal(s) for s in ((40, 30), (30, 20), (40, 20)))
    left, right, cotangent = data(x, a), data(w, b), data(g, f32)
    y = bmm(left, right, compute=bf16, out_dtype=f32)
    for by in (referenced, compiled):
        dx, dw = (n for n in vjp([y], [cotangent], [left, right]))
        assert dx is not None
        assert dw is not None
        assert (dx.dtype, dw.dtype) == (a, b)
        got_x, got_w = by([dx, dw])
        scale = 1e-2 if bf16 in (a, b) else 1e-5
        np.testing.assert_allclose(got_x, rounded(g) @ rounded(w).T, atol=scale * 10)
        np.testing.assert_allclose(got_w, rounded(x).T @ rounded(g), atol=scale * 10)


def test_casts_before_a_product() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((40, 30)), rng.standard_normal((30, 20))
    node = bmm(cast(data(x, f32), bf16), cast(data(w, f32), bf16), out_dtype=f32)
    assert np.array_equal(compiled([node])[0], in_pairs(rounded(x), rounded(w)))


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "attrs", "message"),
    [
        ((f32, (2, 3)), (f32, (4, 5)), {}, r"f32\(2, 3\) and f32\(4, 5\)"),
        ((f32, (3,)), (f32, (3, 5)), {}, r"\(\.\.\., m, k\)"),
        ((f32, (2, 2, 3)), (f32, (3, 3, 5)), {}, "batch axes do not broadcast"),
        ((f32, (2, 3)), (f64, (3, 5)), {}, "one numeric dtype"),
        ((f32, (2, 3)), (bf16, (3, 5)), {}, "one numeric dtype"),
        ((f64, (2, 3)), (f64, (3, 5)), {"compute": bf16}, "compute=bf16 wants f32 or bf16"),
        ((i32, (2, 3)), (i32, (3, 5)), {"out_dtype": f32}, "out_dtype=f32 does not go"),
    ],
)
def test_refused(a: Any, b: Any, attrs: dict[str, Any], message: str) -> None:
    leaves = [data(np.zeros(shape), dtype) for dtype, shape in (a, b)]
    with pytest.raises(ShapeError, match=message):
        bmm(*leaves, **attrs)


def test_bools_are_refused() -> None:
    flags = data(np.zeros((2, 2), bool))
    with pytest.raises(ShapeError, match="numeric dtype"):
        bmm(flags, flags)

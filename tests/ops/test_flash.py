from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from kernel_calls import interpret, run

from tilewright.compiler.realize import realize
from tilewright.dtypes import DType, bf16, f16, f32, f64, from_float32, i64, to_float32
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.graph import Node, data_node, input_node
from tilewright.ops import table
from tilewright.ops.autodiff import vjp
from tilewright.ops.flash import MAX_HEAD_DIM, flash_attention, flash_attention_backward
from tilewright.ops.flash_composite import attention_composite
from tilewright.ops.flash_packed import flash_attention_packed, flash_attention_packed_backward
from tilewright.runtime.buffers import Buffer, empty, from_array

TOLERANCE = {f32: 4e-6, f64: 1e-13, f16: 2e-3, bf16: 1.6e-2}


def leaf(values: np.ndarray, dtype: DType | None = None) -> Node:
    """A leaf with these values, whatever their strides (bf16: rounded, dense)."""
    if dtype is bf16:
        wide = np.ascontiguousarray(values, np.float32)
        return data_node(from_array(from_float32(wide).reshape(values.shape), bf16))
    return data_node(from_array(values))


def execute(parts: Sequence[Node], by: Callable[..., None] = run) -> list[np.ndarray]:
    """The results of one op by its kernels, called directly; NaN everywhere before."""
    node = parts[0].inputs[0] if parts[0].op == "part" else parts[0]
    entry = table.get(node.op)
    assert entry.calls is not None
    outs = [_fresh(p.dtype, p.shape) for p in parts]
    extra = []
    if entry.workspace is not None:
        extra = [[_fresh(dtype, shape) for dtype, shape in entry.workspace(node)]]
    target = outs if entry.infer_parts else outs[0]
    by(entry.calls(node, [i.value for i in node.inputs], target, *extra))
    return [_wide(o) for o in outs]


def _fresh(dtype: DType, shape: Any) -> Buffer:
    buffer = empty(dtype, shape)
    buffer.numpy()[...] = 0x7FC0 if dtype is bf16 else np.nan
    return buffer


def _wide(buffer: Buffer) -> np.ndarray:
    return to_float32(buffer.numpy()) if buffer.dtype is bf16 else buffer.numpy()


def reference(parts: Sequence[Node]) -> list[np.ndarray]:
    """The definition's results, in float64."""
    node = parts[0].inputs[0] if parts[0].op == "part" else parts[0]
    result = table.evaluate_nodes([*node.inputs, node], {})[node]
    return [np.asarray(x, np.float64) for x in (result if isinstance(result, tuple) else [result])]


def normal(rng: np.random.Generator, shape: Sequence[int], dtype: DType = f32) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32 if dtype is bf16 else dtype.storage)


class Case:
    """Random operands of one call."""

    def __init__(
        self,
        q: tuple[int, int, int, int],
        kv: tuple[int, int],
        dtype: DType = f32,
        mask: np.ndarray | None = None,
        seed: int = 0,
        **attrs: Any,
    ) -> None:
        rng = np.random.default_rng(seed)
        batch, heads, tq, dim = q
        shape = (batch, kv[0], kv[1], dim)
        self.dtype = dtype
        self.arrays = [normal(rng, s, dtype) for s in (q, shape, shape)]
        rows = q if attrs.get("layout", "bhtd") == "bhtd" else (batch, tq, heads, dim)
        self.dout = normal(rng, rows, dtype)
        self.dlse = normal(rng, q[:3], f64 if dtype is f64 else f32)
        self.mask = mask
        self.attrs = attrs

    def forward(self) -> tuple[Node, ...]:
        mask = None if self.mask is None else leaf(self.mask)
        return flash_attention(*(leaf(a, self.dtype) for a in self.arrays), mask, **self.attrs)

    def backward(self, with_dlse: bool = False) -> tuple[Node, ...]:
        """On the forward kernels' results."""
        parts = self.forward()
        q, k, v, *rest = parts[0].inputs[0].inputs
        masks = [] if self.mask is None else rest[:1]
        out, lse = execute(parts)
        dlse = leaf(self.dlse) if with_dlse else None
        results = leaf(out, self.dtype), leaf(lse), leaf(self.dout, self.dtype), dlse
        return flash_attention_backward(q, k, v, *results, *masks, **self.attrs)

    def check(self, factor: float = 1.0) -> None:
        for parts in (self.forward(), self.backward(), self.backward(with_dlse=True)):
            close(execute(parts), reference(parts), TOLERANCE[self.dtype] * factor)


def close(got: Sequence[np.ndarray], want: Sequence[np.ndarray], tolerance: float = 4e-6) -> None:
    """Equal within ``tolerance`` of the largest element (and of 1)."""
    for x, y in zip(got, want, strict=True):
        assert x.shape == y.shape
        size = max(1.0, np.abs(y[np.isfinite(y)]).max(initial=0))
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * size)


# --- against the definition ----------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [1, 20, 64, 128, 256])
def test_head_widths(head_dim: int) -> None:
    Case((1, 2, 70, head_dim), (2, 70), causal=True).check()


@pytest.mark.parametrize("causal", [False, True])
def test_lengths(causal: bool) -> None:
    for tq, tk in itertools.product((1, 7, 64, 129), (1, 33, 64, 200)):
        # with a single key dP - rowsum(dO O) is 0 but for the rounding of numbers of up to 30
        Case((2, 2, tq, 64), (1, tk), causal=causal, seed=tq + tk).check(5.0 if tk == 1 else 1.0)


def test_long_enough_for_every_path() -> None:
    Case((1, 1, 515, 64), (1, 515), causal=True).check()
    Case((1, 2, 300, 16), (2, 700), causal=False).check()
    Case((9, 8, 130, 16), (4, 130), causal=True).check()  # many heads: one piece each


@pytest.mark.parametrize("group", [1, 2, 3, 8])
def test_grouped_heads(group: int) -> None:
    Case((2, 2 * group, 40, 64), (2, 50), causal=group > 2).check()


@pytest.mark.parametrize(
    ("dtype", "head_dim"),
    [(f64, 24), (f64, 130), (f16, 24), (bf16, 24), (bf16, 64), (bf16, 130), (bf16, 7)],
)
def test_dtypes(dtype: DType, head_dim: int) -> None:
    Case((2, 4, 140, head_dim), (2, 140), dtype, causal=True).check()


@pytest.mark.parametrize("dtype", [f32, bf16])
def test_interpreter_agrees(dtype: DType) -> None:
    """It also fills scratch memory with NaN, so nothing is read before it is written."""
    case = Case((1, 2, 21, 8), (1, 19), dtype, causal=True)
    for parts in (case.forward(), case.backward()):
        close(execute(parts, interpret), execute(parts), 1e-6 if dtype is f32 else 8e-3)


def test_layout_and_scale() -> None:
    Case((2, 3, 70, 64), (3, 70), causal=True, layout="bthd", scale=0.3).check()


def test_empty_arrays() -> None:
    Case((0, 2, 5, 16), (2, 5)).check()
    Case((2, 2, 0, 16), (2, 5)).check()
    case = Case((2, 2, 5, 16), (2, 0))
    case.check()
    out, lse = execute(case.forward())
    assert (out == 0).all()
    assert (lse == -np.inf).all()


MASKS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "pairs": lambda rng: rng.random((1, 1, 70, 90)) < 0.6,
    "padding": lambda rng: np.arange(90) < rng.integers(1, 90, (2, 1, 1, 1)),
    "by head, transposed": lambda rng: (rng.random((90, 70, 4)) < 0.5).transpose(2, 1, 0),
    "one row": lambda rng: rng.random(90) < 0.5,
    "bias": lambda rng: normal(rng, (4, 70, 90)),
    "slopes": lambda rng: normal(rng, (2, 4, 1, 90)),
    "bias that hides": lambda rng: np.where(
        rng.random((70, 90)) < 0.5, np.float32(-np.inf), normal(rng, (70, 90))
    ).astype(np.float32),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(name: str) -> None:
    mask = MASKS[name](np.random.default_rng(3))
    for causal in (False, True):
        Case((2, 4, 70, 64), (2, 90), mask=mask, causal=causal).check()


@pytest.mark.parametrize("kind", ["bool", "-inf"])
def test_rows_that_see_nothing(kind: str) -> None:
    seen = np.random.default_rng(0).random((70, 80)) < 0.5
    seen[[0, 17, 69]] = False
    mask = seen if kind == "bool" else np.where(seen, 0, -np.inf).astype(np.float32)
    case = Case((1, 2, 70, 64), (2, 80), mask=mask)
    case.check()
    out, lse = execute(case.forward())
    assert (out[:, :, [0, 17, 69]] == 0).all()
    assert (lse[:, :, [0, 17, 69]] == -np.inf).all()
    dq, dk, dv = execute(case.backward())
    assert (dq[:, :, [0, 17, 69]] == 0).all()
    assert np.isfinite(dk).all()
    assert np.isfinite(dv).all()


@pytest.mark.parametrize("spread", [1e-20, 30.0, 1e4])
def test_extreme_scores(spread: float) -> None:
    """Scores of up to 1e5: a softmax that is nearly one-hot must neither overflow nor vanish."""
    case = Case((1, 2, 90, 32), (2, 90), causal=True)
    case.arrays[0] *= spread
    out, lse = execute(case.forward())
    want_out, want_lse = reference(case.forward())
    size = max(np.abs(want_lse).max(), 1.0)
    np.testing.assert_allclose(lse, want_lse, rtol=0, atol=1e-6 * size)
    # an f32 score of this size is off by size * 2^-24 and so is its probability, relatively
    np.testing.assert_allclose(out, want_out, rtol=0, atol=1e-6 * size)
    for got, want in zip(execute(case.backward()), reference(case.backward())):
        bound = max(np.abs(want).max(), 1.0)
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * size * bound)


def test_what_is_hidden_has_no_influence() -> None:
    """Huge and infinite keys behind the causal mask change no bit; a NaN that is seen shows."""
    case = Case((1, 2, 100, 64), (2, 100), causal=True)
    clean = execute(case.forward())
    for array in case.arrays[1:]:
        array[:, :, 60:] = 3e38
    spoiled = execute(case.forward())
    for x, y in zip(clean, spoiled):
        assert x[:, :, :60].tobytes() == y[:, :, :60].tobytes()
    case.arrays[1][0, 0, 30, 5] = np.nan
    out, lse = execute(case.forward())
    assert np.isnan(out[0, 0, 30:60]).all()
    assert np.isnan(lse[0, 0, 30:60]).all()
    assert np.isfinite(out[0, 0, :30]).all()


def strided(rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """q, k, v of shape (2, 3, 75, 32) with odd strides."""
    packed = normal(rng, (2, 75, 3, 3, 32)).transpose(2, 0, 3, 1, 4)
    backwards = [normal(rng, (2, 3, 75, 32))[:, :, ::-1, ::-1] for _ in range(3)]
    columns = [normal(rng, (32, 2, 3, 75)).transpose(1, 2, 3, 0) for _ in range(3)]
    every_other = [normal(rng, (2, 3, 150, 64))[:, :, ::2, ::2] for _ in range(3)]
    repeated = [np.broadcast_to(normal(rng, (2, 1, 75, 32)), (2, 3, 75, 32)) for _ in range(3)]
    return {
        "one projection": list(packed),
        "backwards": backwards,
        "columns": columns,
        "every other": every_other,
        "repeated": repeated,
    }


@pytest.mark.parametrize("name", strided(np.random.default_rng(0)))
def test_strides(name: str) -> None:
    dense = Case((2, 3, 75, 32), (3, 75), causal=True)
    dense.arrays = strided(np.random.default_rng(5))[name]
    odd = Case((2, 3, 75, 32), (3, 75), causal=True)
    odd.arrays = dense.arrays
    dense.arrays = [np.ascontiguousarray(x) for x in dense.arrays]
    odd.dout = np.asfortranarray(odd.dout)
    odd.check()
    for one, two in ((dense.forward(), odd.forward()), (dense.backward(), odd.backward())):
        for x, y in zip(execute(one), execute(two)):
            assert x.tobytes() == y.tobytes()


def test_bf16_has_the_same_bits_in_any_layout() -> None:
    """Rows that cannot be read as pairs of elements give what others give."""
    rng = np.random.default_rng(9)
    dense = [from_float32(normal(rng, (2, 3, 75, 32))) for _ in range(4)]
    wide = np.zeros((2, 3, 75, 33), np.uint16)

    def odd(values: np.ndarray) -> Buffer:
        place = wide.copy()
        place[..., 1:] = values
        return from_array(place[..., 1:], bf16)

    def results(make: Callable[[np.ndarray], Buffer]) -> list[np.ndarray]:
        q, k, v, dout = (data_node(make(x)) for x in dense)
        out, lse = flash_attention(q, k, v, causal=True)
        y, s = execute((out, lse))
        given = (leaf(y, bf16), leaf(s), dout)
        return [y, s, *execute(flash_attention_backward(q, k, v, *given, causal=True))]

    for x, y in zip(results(lambda a: from_array(a, bf16)), results(odd), strict=True):
        assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("heads", [1, 6])
def test_same_bits_for_any_number_of_threads(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case((1, heads, 331, 64), (1, 331), causal=True)
    seen = set()
    for threads in (1, 2, 3, 4):
        monkeypatch.setenv("TILEWRIGHT_THREADS", str(threads))
        results = [*execute(case.forward()), *execute(case.backward())]
        seen.add(b"".join(x.tobytes() for x in results))
    assert len(seen) == 1


def test_same_bits_in_any_batch() -> None:
    """A sequence's output does not depend on how many share the launch."""
    many = Case((12, 4, 200, 64), (4, 200), causal=True)
    one = Case((1, 4, 200, 64), (4, 200), causal=True)
    one.arrays = [x[7:8] for x in many.arrays]
    for x, y in zip(execute(many.forward()), execute(one.forward())):
        assert x[7].tobytes() == y[0].tobytes()


# --- packed --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (4, 2)])
@pytest.mark.parametrize("dtype", [f32, bf16])
def test_packed_is_the_same(heads: int, kv_heads: int, dtype: DType) -> None:
    rng = np.random.default_rng(1)
    qkv = normal(rng, (2, 90, heads + 2 * kv_heads, 64), dtype)
    dout, dlse = normal(rng, (2, 90, heads, 64), dtype), normal(rng, (2, heads, 90))
    cuts = np.split(qkv, (heads, heads + kv_heads), axis=2)
    q, k, v = (leaf(x.transpose(0, 2, 1, 3), dtype) for x in cuts)
    parts = flash_attention_packed(leaf(qkv, dtype), heads, causal=True)
    apart = flash_attention(q, k, v, causal=True, layout="bthd")
    got, want = execute(parts), execute(apart)
    for x, y in zip(got, want, strict=True):
        assert x.tobytes() == y.tobytes()
    close(got, reference(parts), TOLERANCE[dtype])
    results = (leaf(got[0], dtype), leaf(got[1]), leaf(dout, dtype), leaf(dlse))
    attrs: dict[str, Any] = {"causal": True, "scale": 0.125}
    grad = flash_attention_packed_backward(leaf(qkv, dtype), *results, heads=heads, **attrs)
    grads = flash_attention_backward(q, k, v, *results, layout="bthd", **attrs)
    together = np.concatenate([g.transpose(0, 2, 1, 3) for g in execute(grads)], axis=2)
    assert execute([grad])[0].tobytes() == together.tobytes()
    close(execute([grad]), reference([grad]), TOLERANCE[dtype])


# --- gradients -----------------------------------------------------------------------------------


def values(nodes: Sequence[Node | None]) -> list[np.ndarray]:
    kept = [n for n in nodes if n is not None]
    assert len(kept) == len(nodes)
    return [b.numpy().copy() for b in realize(kept)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_composite_is_the_same_function(causal: bool, masked: bool) -> None:
    rng = np.random.default_rng(2)
    q, k, v = (leaf(normal(rng, (2, h, 13, 8), f64)) for h in (4, 2, 2))
    mask = leaf(rng.random((2, 1, 13, 13)) < 0.4) if masked else None
    attrs: dict[str, Any] = {"causal": causal, "scale": 0.4, "layout": "bthd"}
    plain = attention_composite(q, k, v, mask, **attrs)
    close(values(plain), reference(flash_attention(q, k, v, mask, **attrs)), 1e-13)


def test_gradient_rule_uses_the_kernels() -> None:
    case = Case((1, 2, 33, 16), (2, 33), causal=True)
    out, lse = case.forward()
    leaves = out.inputs[0].inputs
    grads = vjp([out, lse], [leaf(case.dout), leaf(case.dlse)], leaves)
    ops = {g.inputs[0].op for g in grads if g is not None}
    assert ops == {"flash_attention_backward"}
    assert grads[0] is not None
    assert grads[0].inputs[0].inputs[3:5] == (out, lse)  # not computed a second time
    close(values(grads), reference(case.backward(with_dlse=True)))
    only_lse = vjp([lse], [leaf(case.dlse)], leaves)
    case.dout[...] = 0
    close(values(only_lse), reference(case.backward(with_dlse=True)))


def differences(f: Callable[[], float], x: np.ndarray, at: Sequence[int]) -> list[float]:
    """Central differences of f by some elements of x, which it reads."""
    found = []
    for i in at:
        flat = x.reshape(-1)
        old, step = flat[i], 1e-6
        flat[i] = old + step
        high = f()
        flat[i] = old - step
        low = f()
        flat[i] = old
        found.append((high - low) / (2 * step))
    return found


@pytest.mark.parametrize("masked", [False, True])
def test_second_order(masked: bool) -> None:
    """Gradients of <gradients, random>, by everything, against differences of the kernels."""
    rng = np.random.default_rng(4)
    arrays = [normal(rng, s, f64) for s in ((1, 4, 7, 5), (1, 2, 7, 5), (1, 2, 7, 5))]
    dout, bias = normal(rng, (1, 4, 7, 5), f64), normal(rng, (4, 7, 7), f64)
    weights = [normal(rng, a.shape, f64) for a in arrays]
    attrs: dict[str, Any] = {"causal": True}

    def first() -> tuple[list[Node], list[Node | None]]:
        leaves = [leaf(a) for a in arrays]
        inputs = [*leaves, leaf(bias)] if masked else leaves
        out, _ = flash_attention(*inputs, **attrs)
        cotangent = leaf(dout)
        grads = vjp([out], [cotangent], leaves)
        return [*inputs, cotangent], grads

    def total() -> float:
        return sum(float((g * w).sum()) for g, w in zip(values(first()[1]), weights))

    wrt, grads = first()
    second = values(vjp([g for g in grads if g is not None], [leaf(w) for w in weights], wrt))
    sources = [*arrays, *([bias] if masked else []), dout]
    for x, g in zip(sources, second, strict=True):
        at = rng.choice(x.size, 6, replace=False).tolist()
        np.testing.assert_allclose(g.reshape(-1)[at], differences(total, x, at), atol=2e-7)


def test_gradient_of_an_additive_mask() -> None:
    rng = np.random.default_rng(6)
    case = Case((2, 2, 9, 8), (1, 9), f64, mask=normal(rng, (2, 1, 9), f64), causal=True)
    out, lse = case.forward()
    inputs = out.inputs[0].inputs
    (got,) = values(vjp([out, lse], [leaf(case.dout), leaf(case.dlse)], inputs[3:]))

    def total() -> float:
        y, s = execute(case.forward())
        return float((y * case.dout).sum() + (s * case.dlse).sum())

    assert case.mask is not None
    at = range(case.mask.size)
    np.testing.assert_allclose(got.reshape(-1), differences(total, case.mask, at), atol=1e-7)


def test_second_order_of_packed() -> None:
    rng = np.random.default_rng(7)
    qkv, dout = normal(rng, (1, 6, 4, 5), f64), normal(rng, (1, 6, 2, 5), f64)
    weight = normal(rng, qkv.shape, f64)

    def first() -> tuple[Node, Node, Node]:
        x, g = leaf(qkv), leaf(dout)
        out, _ = flash_attention_packed(x, 2, causal=True)
        (grad,) = vjp([out], [g], [x])
        assert grad is not None
        return x, g, grad

    def total() -> float:
        return float((values([first()[2]])[0] * weight).sum())

    x, g, grad = first()
    assert grad.op == "flash_attention_packed_backward"
    for array, found in zip((qkv, dout), values(vjp([grad], [leaf(weight)], [x, g]))):
        at = rng.choice(array.size, 8, replace=False).tolist()
        np.testing.assert_allclose(found.reshape(-1)[at], differences(total, array, at), atol=2e-7)


# --- against torch -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "causal"), [(None, False), (None, True), ("bool", False), ("bias", False)]
)
def test_agrees_with_torch(kind: str | None, causal: bool) -> None:
    """torch takes a mask or is_causal, not both."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(8)
    mask = {
        None: None,
        "bool": rng.random((2, 1, 150, 170)) < 0.7,
        "bias": normal(rng, (6, 150, 170)),
    }[kind]
    case = Case((2, 6, 150, 64), (3, 170), mask=mask, causal=causal)
    tensors = [torch.tensor(x, requires_grad=True) for x in case.arrays]
    out = torch.nn.functional.scaled_dot_product_attention(
        *tensors,
        None if mask is None else torch.tensor(mask),
        is_causal=causal,
        enable_gqa=True,
    )
    grads = torch.autograd.grad(out, tensors, torch.tensor(case.dout))
    # both round in f32, in another order
    close(execute(case.forward())[:1], [out.detach().numpy()], 2e-6)
    close(execute(case.backward()), [g.numpy() for g in grads], 4e-6)


# --- memory and errors ---------------------------------------------------------------------------


def test_memory_is_linear_in_length() -> None:
    """The backward pass's workspace is below 1 % of one matrix of probabilities."""
    shape = (1, 12, 4096, 64)
    q, k, v = (input_node(n, shape, f32) for n in "qkv")
    out, lse = flash_attention(q, k, v, causal=True)
    assert table.get("flash_attention").workspace is None
    parts = flash_attention_backward(q, k, v, out, lse, out, causal=True)
    workspace = table.get("flash_attention_backward").workspace
    assert workspace is not None
    memory = workspace(parts[0].inputs[0])
    used = sum(int(np.prod(shape)) * dtype.nbytes for dtype, shape in memory)
    assert used <= 0.01 * 12 * 4096 * 4096 * 4


def test_refuses_what_does_not_fit() -> None:
    def node(*shape: int, dtype: DType = f32) -> Node:
        return input_node("x", shape, dtype)

    q, k = node(2, 4, 5, 8), node(2, 2, 6, 8)
    with pytest.raises(ShapeError, match=r"k, v \(B, Hkv, Tk, D\)"):
        flash_attention(q, k, node(2, 2, 7, 8))
    with pytest.raises(ShapeError, match="3 heads of k and v do not divide 4"):
        flash_attention(q, node(2, 3, 6, 8), node(2, 3, 6, 8))
    with pytest.raises(ShapeError, match="cast them"):
        flash_attention(q, k, node(2, 2, 6, 8, dtype=f64))
    with pytest.raises(ShapeError, match="of one dtype"):
        flash_attention(*(node(2, 2, 6, 8, dtype=i64) for _ in range(3)))
    with pytest.raises(ShapeError, match="does not broadcast"):
        flash_attention(q, k, k, node(5, 5))
    with pytest.raises(ShapeError, match="wants bool or f32"):
        flash_attention(q, k, k, node(5, 6, dtype=f64))
    with pytest.raises(ShapeError, match="layout is 'thd'"):
        flash_attention(q, k, k, layout="thd")
    with pytest.raises(UnsupportedError, match="at most 256"):
        flash_attention(*(node(1, 1, 2, MAX_HEAD_DIM + 1) for _ in range(3)))
    out, lse = flash_attention(q, k, k)
    with pytest.raises(ShapeError, match="in this order"):
        flash_attention_backward(q, k, k, out, lse, lse)
    with pytest.raises(ShapeError, match=r"\(B, T, H \+ 2 Hkv, D\)"):
        flash_attention_packed(node(2, 5, 4, 8), 3)

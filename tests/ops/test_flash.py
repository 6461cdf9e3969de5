from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from kernel_calls import run

from tilewright.dtypes import DType, bf16, boolean, f16, f32, f64, from_float32, to_float32
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.graph import Node, data_node, input_node
from tilewright.ops import table
from tilewright.ops.flash import MAX_HEAD_DIM, flash_attention, flash_attention_backward
from tilewright.runtime.buffers import Buffer, empty, from_array

TOLERANCE = {f32: 4e-6, f64: 1e-13, f16: 2e-3, bf16: 1.6e-2}


def data(values: np.ndarray, dtype: DType) -> Node:
    """A leaf with these values, whatever their strides."""
    if dtype is bf16:
        wide = np.ascontiguousarray(values, np.float32)
        return data_node(from_array(from_float32(wide).reshape(values.shape), bf16))
    return data_node(from_array(values))


def execute(parts: tuple[Node, ...]) -> list[np.ndarray]:
    """The results of an op by its kernels; NaN everywhere before."""
    node = parts[0].inputs[0]
    entry = table.get(node.op)
    assert entry.calls is not None
    outs = [_fresh(p.dtype, p.shape) for p in parts]
    extra = []
    if entry.workspace is not None:
        extra = [[_fresh(dtype, shape) for dtype, shape in entry.workspace(node)]]
    run(entry.calls(node, [i.value for i in node.inputs], outs, *extra))
    return [_wide(o) for o in outs]


def _fresh(dtype: DType, shape: Any) -> Buffer:
    buffer = empty(dtype, shape)
    buffer.numpy()[...] = 0x7FC0 if dtype is bf16 else np.nan
    return buffer


def _wide(buffer: Buffer) -> np.ndarray:
    return to_float32(buffer.numpy()) if buffer.dtype is bf16 else buffer.numpy()


def reference(parts: tuple[Node, ...]) -> list[np.ndarray]:
    node = parts[0].inputs[0]
    values = table.evaluate_nodes([*node.inputs, node], {})
    return [np.asarray(x, np.float64) for x in values[node]]


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32 if dtype is bf16 else dtype.storage)


class Case:
    """Random operands of one call."""

    def __init__(
        self,
        q: tuple[int, int, int, int],
        kv: tuple[int, int],
        dtype: DType = f32,
        mask: np.ndarray | None = None,
        spread: float = 1.0,
        seed: int = 0,
        **attrs: Any,
    ) -> None:
        rng = np.random.default_rng(seed)
        batch, heads, tq, dim = q
        shape = (batch, kv[0], kv[1], dim)
        self.dtype = dtype
        self.arrays = [normal(rng, s, dtype) for s in (q, shape, shape)]
        self.arrays[0] *= spread
        rows = q if attrs.get("layout", "bhtd") == "bhtd" else (batch, tq, heads, dim)
        self.dout = normal(rng, rows, dtype)
        self.dlse = normal(rng, q[:3], f64 if dtype is f64 else f32)
        self.mask = mask
        self.attrs = attrs

    def forward(self) -> tuple[Node, ...]:
        nodes = [data(a, self.dtype) for a in self.arrays]
        mask = None if self.mask is None else data_node(from_array(self.mask))
        return flash_attention(*nodes, mask, **self.attrs)

    def backward(self, with_dlse: bool = False) -> tuple[Node, ...]:
        """On the forward kernels' results."""
        out, lse = self.forward()
        q, k, v, *masks = out.inputs[0].inputs
        got_out, got_lse = execute((out, lse))
        dlse = data_node(from_array(self.dlse)) if with_dlse else None
        return flash_attention_backward(
            q,
            k,
            v,
            data(got_out, self.dtype),
            data_node(from_array(got_lse)),
            data(self.dout, self.dtype),
            dlse,
            *masks,
            **self.attrs,
        )

    def check(self, factor: float = 1.0) -> None:
        tolerance = TOLERANCE[self.dtype] * factor
        for parts in (self.forward(), self.backward(), self.backward(with_dlse=True)):
            for got, want in zip(execute(parts), reference(parts), strict=True):
                assert got.shape == want.shape
                scale = max(1.0, np.abs(want[np.isfinite(want)]).max(initial=0))
                np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [1, 16, 20, 64, 100, 128, 256])
def test_head_widths(head_dim: int, causal: bool) -> None:
    Case((1, 2, 70, head_dim), (2, 70), causal=causal).check()


@pytest.mark.parametrize("causal", [False, True])
def test_lengths(causal: bool) -> None:
    for tq, tk in itertools.product((1, 7, 64, 129), (1, 33, 64, 200)):
        Case((2, 2, tq, 32), (1, tk), causal=causal, seed=tq + tk).check()

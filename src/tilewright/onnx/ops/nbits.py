"""com.microsoft's operators on blocks of few bits: MatMulNBits, GatherBlockQuantized."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.dtypes import bf16, f32, to_float32
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.onnx.ops.quantization import node_of
from tilewright.onnx.registry import Call, op
from tilewright.ops.arithmetic import add
from tilewright.ops.constants import constant
from tilewright.ops.creation import cast
from tilewright.ops.gemm import bmm
from tilewright.ops.nbits import block_product
from tilewright.ops.views import permute, reshape, sizes_of
from tilewright.tensor.core import Tensor

MS = "com.microsoft"


def unpacked(array: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The integers in the bytes along the last axis, low bits first: ``count`` of them."""
    fields = np.arange(0, 8, bits, dtype=np.uint8)
    q = (array[..., None] >> fields) & np.uint8((1 << bits) - 1)
    return q.reshape(*array.shape[:-1], -1)[..., :count]


def _floats(ctx: Call, value: Tensor) -> np.ndarray:
    array = ctx.value(value)
    return to_float32(array.view(np.uint16)) if value.dtype is bf16 else array.astype(np.float32)


def _zeros(ctx: Call, zero: Tensor | None, n: int, blocks: int, bits: int) -> np.ndarray:
    """Zero points (N, blocks) in f32: packed like weights, as numbers, or the middle."""
    if zero is None:
        return np.full((n, blocks), 1 << (bits - 1), np.float32)
    if zero.dtype.is_float:
        return _floats(ctx, zero).reshape(n, blocks)
    packed = ctx.value(zero).astype(np.uint8).reshape(n, -1)
    return unpacked(packed, bits, blocks).astype(np.float32)


@op("MatMulNBits", domain=MS)
def matmul_nbits(
    a: Tensor, b: Tensor, scales: Tensor, zero_points: Tensor | None = None,
    g_idx: Tensor | None = None, bias: Tensor | None = None, *, K: int, N: int, bits: int = 4,
    block_size: int, accuracy_level: int = 0, weight_prepacked: int = 0, ctx: Call,
) -> Tensor:  # fmt: skip
    """a (..., K) times weights (N, K) of ``bits`` bits in blocks of k, plus a bias.

    ``accuracy_level`` 4 allows activations in bytes; they are then rounded per 32.
    """
    if bits not in (2, 4, 8) or block_size < 16 or block_size & (block_size - 1):
        raise UnsupportedError(f"MatMulNBits with {bits} bits in blocks of {block_size}")
    if weight_prepacked:
        raise UnsupportedError("MatMulNBits with weights packed for one machine")
    for name, value in (("B", b), ("scales", scales), ("zero_points", zero_points)):
        if value is not None and not ctx.trace.is_constant(value.node):
            raise UnsupportedError(f"MatMulNBits whose {name} depends on the model's inputs")
    if a.shape[-1] != K:
        raise ShapeError(f"MatMulNBits of K = {K}: A has shape {a.shape}")
    blocks = -(-K // block_size)
    q = unpacked(ctx.value(b).reshape(N, -1), bits, blocks * block_size)
    scale = _floats(ctx, scales).reshape(N, blocks)
    zero = _zeros(ctx, zero_points, N, blocks, bits)
    x = reshape(cast(a.node, f32), (-1, K))
    if g_idx is not None:
        groups = ctx.value(g_idx)[:K]
        real = (q[:, :K].astype(np.float32) - zero[:, groups]) * scale[:, groups]
        y = bmm(x, permute(constant(real), (1, 0)))
    else:
        whole = bool(((zero >= 0) & (zero < 256) & (zero == np.rint(zero))).all())
        y = block_product(x, q, scale, zero, bits, block_size, accuracy_level == 4 and whole)
    if bias is not None:
        y = add(y, cast(node_of(ctx, bias), f32))
    return Tensor(cast(reshape(y, (*a.shape[:-1], N)), a.dtype))


@op("GatherBlockQuantized", domain=MS, raw=True)
def gather_block_quantized(
    data: Any, indices: Tensor, scales: Tensor, zero_points: Any = None, *, bits: int = 4,
    block_size: int = 128, gather_axis: int = 0, quantize_axis: int = 1, ctx: Call,
) -> Tensor:  # fmt: skip
    """Rows of a constant table that is quantised in blocks, dequantised: those that are taken."""
    from tilewright.onnx.ops.quantization import per_axis, small_array
    from tilewright.ops.indexing import take
    from tilewright.ops.quantize import dequantize

    if isinstance(data, np.ndarray):  # int4 or uint4
        q = small_array(data)
    elif data.dtype.name == "u8" and ctx.trace.is_constant(data.node):
        stored = ctx.value(data)
        count = stored.shape[-1] * 8 // bits
        q = unpacked(stored, bits, count)
    else:
        raise UnsupportedError("GatherBlockQuantized of a table that is no constant")
    rank = q.ndim
    axis, blocked = gather_axis % rank, quantize_axis % rank
    if axis == blocked:
        raise ShapeError("GatherBlockQuantized: the axis of the blocks cannot be that of the rows")
    table = constant(q)
    scale = cast(node_of(ctx, scales), f32)
    if zero_points is None:
        middle = 0 if q.dtype == np.int8 else 1 << (bits - 1)
        zero = constant(np.full(sizes_of(scale), middle, q.dtype))
    elif isinstance(zero_points, np.ndarray):
        zero = constant(small_array(zero_points))
    else:
        count = sizes_of(scale)[-1]
        zero = constant(unpacked(ctx.value(zero_points), bits, count))
    parts = [take(v, indices.node, axis) for v in (table, scale, zero)]
    at = blocked if blocked < axis else blocked + indices.ndim - 1
    rows = parts[0]
    s, z = (per_axis(v, rows, at, block_size) for v in parts[1:])
    return Tensor(cast(dequantize(rows, s, z), scales.dtype))

"""Table entry: ``bmm``, the product of two arrays of matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, bf16, boolean, f16, f32
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.ops.calls import KernelCall
from tilewright.ops.gemm_kernels import direct_calls, split_batches
from tilewright.ops.table import OpDef, make, register

__all__ = ["bmm"]


def bmm(
    a: Node,
    b: Node,
    *,
    out_dtype: DType | None = None,
    compute: DType | None = None,
) -> Node:
    """``a @ b``: a (*batch, m, k), b (*batch, k, n) -> (*batch, m, n).

    Batch axes broadcast as in NumPy; operands need two axes at least. Each output is one
    accumulator that takes one fused multiply-add per k, k ascending: f32 for f16, bf16 and f32
    operands, the operands' own dtype for f64 and integers, which wrap around.

    Args:
        out_dtype: f32 instead of the operands' dtype for f16 and bf16 operands, or bf16: the
            accumulator is rounded to it once.
        compute: bf16 rounds f32 operands to bf16 while they are read (mixed precision); then one
            operand may be bf16 already.

    Raises :class:`ShapeError` for operands that do not fit.
    """
    attrs: dict[str, Any] = {}
    if compute is bf16 and not (a.dtype is b.dtype is bf16):
        attrs["compute"] = compute
    if out_dtype is not None and out_dtype is not _out_dtype(a, b):
        attrs["out_dtype"] = out_dtype
    return make("bmm", a, b, **attrs)


def _out_dtype(a: Node, b: Node) -> DType:
    return a.dtype if a.dtype is b.dtype else f32


def _accumulator(dtype: DType) -> DType:
    return f32 if dtype in (f16, bf16) else dtype


def _infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    a, b = inputs[:2]
    got = f"{a.dtype}{shape_of(a.shape)} and {b.dtype}{shape_of(b.shape)}"
    if len(a.shape) < 2 or len(b.shape) < 2 or a.shape[-1] != b.shape[-2]:
        raise ShapeError(f"bmm wants a (..., m, k) and b (..., k, n), got {got}")
    mixed = attrs.get("compute") is bf16 and {a.dtype, b.dtype} <= {f32, bf16}
    if (a.dtype is not b.dtype and not mixed) or boolean in (a.dtype, b.dtype):
        raise ShapeError(f"bmm wants two arrays of one numeric dtype, got {got}: cast one")
    if attrs.get("compute") not in (None, bf16) or (attrs.get("compute") and not mixed):
        raise ShapeError(
            f"bmm: compute={attrs['compute']} wants f32 or bf16 operands and bf16, got {got}"
        )
    try:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[arg-type]
    except ValueError:
        raise ShapeError(f"bmm: the batch axes do not broadcast, got {got}") from None
    dtype = attrs.get("out_dtype") or _out_dtype(a, b)
    if dtype is not _out_dtype(a, b) and not (
        dtype in (f32, f16, bf16) and {a.dtype, b.dtype} <= {f32, f16, bf16}
    ):
        raise ShapeError(f"bmm: out_dtype={dtype} does not go with {got}")
    return (*batch, a.shape[-2], b.shape[-1]), dtype


def _reference(
    a: np.ndarray,
    b: np.ndarray,
    out_dtype: DType | None = None,
    compute: DType | None = None,
) -> np.ndarray:
    """In float64 (integers in their own dtype), to be rounded once by the caller."""
    if compute is bf16:
        a, b = (_rounded(x) for x in (a, b))
    if a.dtype.kind == "f":
        a, b = a.astype(np.float64), b.astype(np.float64)
    product = np.asarray(a @ b)
    if out_dtype is not None and product.dtype.kind == "f":
        return product.astype(np.float32 if out_dtype is bf16 else out_dtype.storage)
    return product


def _rounded(x: np.ndarray) -> np.ndarray:
    """f32 values rounded to what bf16 can hold."""
    from tilewright.dtypes import from_float32, to_float32

    return to_float32(from_float32(x))


def _calls(node: Node, inputs: Sequence[Any], out: Any) -> list[KernelCall]:
    a, b, *extras = inputs
    accumulate = _accumulator(a.dtype)
    via = bf16 if node.attrs.get("compute") is bf16 else accumulate
    calls: list[KernelCall] = []
    for one, two, y in split_batches(a, b, out):
        calls += direct_calls(one, two, y, accumulate, via, node.attrs.get("epilogue"), extras)
    return calls


def _gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    """da = g @ b^T and db = a^T @ g, summed over the batch axes that were broadcast."""
    a, b = node.inputs[:2]
    compute = bf16 if bf16 in (a.dtype, b.dtype, node.attrs.get("compute")) else None
    da = bmm(grad, _transposed(b), out_dtype=a.dtype, compute=compute)
    db = bmm(_transposed(a), grad, out_dtype=b.dtype, compute=compute)
    return _sum_to(da, a.shape), _sum_to(db, b.shape)


def _transposed(x: Node) -> Node:
    from tilewright.ops.views import permute

    n = len(x.shape)
    return permute(x, (*range(n - 2), n - 1, n - 2))


def _sum_to(x: Node, shape: Shape) -> Node:
    from tilewright.ops.reductions import sum_to

    return x if x.shape == shape else sum_to(x, shape)


register(OpDef("bmm", _infer, _reference, calls=_calls, gradient=_gradient))

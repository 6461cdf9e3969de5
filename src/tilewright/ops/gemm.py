"""Table entry: ``bmm``, the product of two arrays of matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import numpy as np

from tilewright.dtypes import DType, bf16, boolean, f16, f32, from_float32, to_float32
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.ops.calls import KernelCall
from tilewright.ops.epilogue import Epilogue
from tilewright.ops.gemm_calls import Plan, is_small, plan_product, product_calls, workspace_of
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import broadcast_shapes, permute, sum_to
from tilewright.sizes import hint, is_fixed

__all__ = ["absorbed", "bmm", "product_reference"]


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


def _infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    a, b = inputs[:2]
    compute, out_dtype = attrs.get("compute"), attrs.get("out_dtype")
    infer = _inferred if is_fixed(a.shape, b.shape) else _inferred.__wrapped__
    return infer(a.shape, a.dtype, b.shape, b.dtype, compute, out_dtype)


@lru_cache(maxsize=1024)
def _inferred(
    a: Shape, a_dtype: DType, b: Shape, b_dtype: DType, compute: Any, out_dtype: Any
) -> tuple[Shape, DType]:
    got = f"{a_dtype}{shape_of(a)} and {b_dtype}{shape_of(b)}"
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        raise ShapeError(f"bmm wants a (..., m, k) and b (..., k, n), got {got}")
    mixed = compute is bf16 and {a_dtype, b_dtype} <= {f32, bf16}
    if (a_dtype is not b_dtype and not mixed) or boolean in (a_dtype, b_dtype):
        raise ShapeError(f"bmm wants two arrays of one numeric dtype, got {got}: cast one")
    if compute not in (None, bf16) or (compute and not mixed):
        raise ShapeError(f"bmm: compute={compute} wants f32 or bf16 operands and bf16, got {got}")
    try:
        batch = broadcast_shapes(a[:-2], b[:-2])
    except ShapeError:
        raise ShapeError(f"bmm: the batch axes do not broadcast, got {got}") from None
    plain = a_dtype if a_dtype is b_dtype else f32
    dtype = out_dtype or plain
    if dtype is not plain and not (
        dtype in (f32, f16, bf16) and {a_dtype, b_dtype} <= {f32, f16, bf16}
    ):
        raise ShapeError(f"bmm: out_dtype={dtype} does not go with {got}")
    return (*batch, a[-2], b[-1]), dtype


def product_reference(
    a: np.ndarray,
    b: np.ndarray,
    *extras: np.ndarray,
    out_dtype: DType | None = None,
    compute: DType | None = None,
    epilogue: Epilogue | None = None,
) -> np.ndarray:
    """``bmm`` in float64 (integers in their own dtype), to be rounded once by the caller."""
    if epilogue is not None:
        product = product_reference(a, b, out_dtype=out_dtype, compute=compute)
        return epilogue.evaluate(product, *extras)
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
    return to_float32(from_float32(x))


def _is_turned(node: Node) -> bool:
    """Whether y^T = b^T a^T is made instead, so that lanes run along the longer axis.

    With more than one column that pays only where columns of y are written rarely.
    """
    m, n, k = map(hint, _sizes(node))
    if node.attrs.get("epilogue") is not None or m < 2 * n:
        return False
    if n == 1:
        return True
    a, b = node.inputs[:2]
    wasteful = 16 < n < 96 and n % 16 != 0 and k > 2 * m
    return wasteful and not is_small(m, k, n, (a.dtype, b.dtype))


def _sizes(node: Node) -> tuple[int, int, int]:
    """m, n and k."""
    m, n, k = node.shape[-2], node.shape[-1], node.inputs[0].shape[-1]
    return cast(int, m), cast(int, n), cast(int, k)


def _plan(node: Node) -> Plan:
    a, b = node.inputs[:2]
    m, n, k = _sizes(node)
    if _is_turned(node):
        m, n, a, b = n, m, b, a
    batch = math.prod(cast(tuple[int, ...], node.shape[:-2]))
    dtypes = (a.dtype, b.dtype, node.dtype)
    plan = plan_product(m, k, n, batch, dtypes, node.attrs.get("compute"))
    # Columns of the output would be read and written again for every chunk.
    if not _is_turned(node):
        return plan
    return replace(plan, keep_sums=not plan.small and plan.chunks > 1)


def _workspace(node: Node) -> Sequence[tuple[DType, Shape]]:
    plan = _plan(node)
    return workspace_of(plan, node.shape[:-2])  # type: ignore[arg-type]


def _calls(
    node: Node, inputs: Sequence[Any], out: Any, workspace: Sequence[Any] = ()
) -> list[KernelCall]:
    a, b, *extras = inputs
    if _is_turned(node):
        a, b, out = _swapped(b), _swapped(a), _swapped(out)
    epilogue = node.attrs.get("epilogue")
    return product_calls(_plan(node), a, b, out, workspace, epilogue, extras)


def _swapped(x: Any) -> Any:
    """A buffer with its last two axes exchanged."""
    n = x.ndim - 2
    return x.view(
        (*x.shape[:n], x.shape[-1], x.shape[-2]), (*x.strides[:n], x.strides[-1], x.strides[-2])
    )


def _gradient(node: Node, grad: Node) -> Sequence[Node | None]:
    """da = g @ b^T and db = a^T @ g, summed over the batch axes that were broadcast."""
    a, b = node.inputs[:2]
    compute = bf16 if bf16 in (a.dtype, b.dtype, node.attrs.get("compute")) else None
    # of a transposed view (a weight's, mostly) the gradient is made transposed, so that it lies in
    # memory as what it is added to does
    if _is_transposed(a):
        at = bmm(b, _transposed(grad), out_dtype=a.dtype, compute=compute)
        da = _transposed(sum_to(at, _transposed(a).shape))
    else:
        da = sum_to(bmm(grad, _transposed(b), out_dtype=a.dtype, compute=compute), a.shape)
    if _is_transposed(b):
        bt = bmm(_transposed(grad), a, out_dtype=b.dtype, compute=compute)
        db = _transposed(sum_to(bt, _transposed(b).shape))
    else:
        db = sum_to(bmm(_transposed(a), grad, out_dtype=b.dtype, compute=compute), b.shape)
    return da, db


def _is_transposed(x: Node) -> bool:
    n = len(x.shape)
    return x.op == "permute" and x.attrs["axes"] == (*range(n - 2), n - 1, n - 2)


def _transposed(x: Node) -> Node:
    n = len(x.shape)
    return permute(x, (*range(n - 2), n - 1, n - 2))


def _absorb(node: Node, operand: Node, shape: Shape) -> tuple[str, Shape] | None:
    small = is_small(*_sizes(node), [x.dtype for x in node.inputs[:2]])
    return None if small or _is_turned(node) else absorbed(node, operand, shape)


def absorbed(node: Node, operand: Node, shape: Shape) -> tuple[str, Shape] | None:
    """``absorb`` of products: operands that are of the result's shape, or constant along rows,
    columns or both (kinds ``full``, ``row``, ``column``, ``number``)."""
    rank = len(node.shape)
    own = (1,) * (len(shape) - len(operand.shape)) + tuple(operand.shape)
    if shape != node.shape:
        if any(n != 1 for n in node.shape[:-2]) or shape[-1] != node.shape[-1]:
            return None
        if any(n != 1 for n in own[:-1]):
            if own[:-1] != shape[:-1]:
                return None  # rows that repeat
            own = (*(1,) * (rank - 2), *node.shape[-2:-1], own[-1])
        else:
            own = (*(1,) * (rank - 1), own[-1])
    m, n = own[-2:]
    return ("number" if n == 1 else "row") if m == 1 else ("column" if n == 1 else "full"), own


register(
    OpDef(
        "bmm",
        _infer,
        product_reference,
        calls=_calls,
        workspace=_workspace,
        gradient=_gradient,
        absorb=_absorb,
    )
)

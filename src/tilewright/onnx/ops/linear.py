"""Matrix products and what goes with them."""

from __future__ import annotations

from tilewright.dtypes import f32
from tilewright.graph import Node
from tilewright.onnx.ops.common import require_same
from tilewright.onnx.registry import op
from tilewright.ops import determinant, views
from tilewright.ops import elementwise as ew
from tilewright.ops.gemm import bmm
from tilewright.tensor import linalg
from tilewright.tensor.core import Tensor, apply


@op("MatMul")
def matmul(x: Tensor, y: Tensor) -> Tensor:
    """As NumPy's: matrices, stacks of matrices, vectors."""
    require_same(x, y)
    return linalg.matmul(x, y)


def _gemm(
    a: Node, b: Node, c: Node | None, alpha: float, beta: float, trans_a: int, trans_b: int
) -> Node:
    if trans_a:
        a = views.permute(a, (1, 0))
    if trans_b:
        b = views.permute(b, (1, 0))
    wide = a.dtype.is_float and a.dtype.bits == 16 and (alpha != 1 or c is not None)
    product = bmm(a, b, out_dtype=f32) if wide else bmm(a, b)
    if alpha != 1:
        product = _scaled(product, alpha)
    if c is not None and beta != 0:
        term = ew.cast(c, product.dtype)
        product = ew.add(product, term if beta == 1 else _scaled(term, beta))
    return ew.cast(product, a.dtype)


def _scaled(x: Node, factor: float) -> Node:
    if x.dtype.is_float:
        return ew.scale(x, factor)
    return ew.cast(ew.scale(ew.cast(x, f32), factor), x.dtype)


@op("Gemm", since=7)
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """``alpha a b + beta c``, a and b transposed if wanted; c broadcasts."""
    terms = [a, b] if c is None else [a, b, c]
    require_same(*terms)
    return apply(
        lambda x, y, z=None: _gemm(x, y, z, alpha, beta, transA, transB),
        *terms,
    )


@op("Gemm", since=1)
def gemm_1(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    broadcast: int = 0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Before version 7 c broadcast only if ``broadcast`` said so."""
    return gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)


@op("Det", since=11)
def det(x: Tensor) -> Tensor:
    """The determinants of square matrices."""
    return apply(determinant.det, x)


@op("Einsum", since=12)
def einsum(*xs: Tensor, equation: str) -> Tensor:
    """Sums of products by the letters of axes."""
    require_same(*xs)
    return linalg.einsum(equation, *xs)

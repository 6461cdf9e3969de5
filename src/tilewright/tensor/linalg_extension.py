"""The ``linalg`` extension of the Array API standard 2024.12: ``tilewright.linalg``.

Products, norms, traces, diagonals and determinants are graph operations like any other.
Decompositions and what rests on them (``cholesky`` to ``svdvals`` without ``det``) are LAPACK's,
run on the host by NumPy where they are called: their arguments are realised, and they have no
gradient (which is an error, not a constant).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tilewright.dtypes import f32, f64
from tilewright.errors import DTypeError, ShapeError, UnsupportedError
from tilewright.graph import Node
from tilewright.ops import determinant, views
from tilewright.ops import elementwise as ew
from tilewright.tensor import elementwise, reductions
from tilewright.tensor.core import Tensor, apply
from tilewright.tensor.creation import from_numpy
from tilewright.tensor.data_types import astype
from tilewright.tensor.elementwise import check_tensor
from tilewright.tensor.linalg import matmul, matrix_transpose, outer, tensordot, vecdot
from tilewright.tensor.manipulation import axis_of
from tilewright.tensor.memory import array_of
from tilewright.tensor.methods import Axes
from tilewright.tensor.modes import mode
from tilewright.tensor.promotion import promoted
from tilewright.tensor.reductions import total_dtype

__all__ = [
    "EighResult",
    "QRResult",
    "SVDResult",
    "SlogdetResult",
    "cholesky",
    "cross",
    "det",
    "diagonal",
    "eigh",
    "eigvalsh",
    "inv",
    "matmul",
    "matrix_norm",
    "matrix_power",
    "matrix_rank",
    "matrix_transpose",
    "outer",
    "pinv",
    "qr",
    "slogdet",
    "solve",
    "svd",
    "svdvals",
    "tensordot",
    "trace",
    "vecdot",
    "vector_norm",
]


class EighResult(NamedTuple):
    """The result of :func:`eigh`."""

    eigenvalues: Tensor
    eigenvectors: Tensor


class QRResult(NamedTuple):
    """The result of :func:`qr`."""

    Q: Tensor
    R: Tensor


class SlogdetResult(NamedTuple):
    """The result of :func:`slogdet`."""

    sign: Tensor
    logabsdet: Tensor


class SVDResult(NamedTuple):
    """The result of :func:`svd`."""

    U: Tensor
    S: Tensor
    Vh: Tensor


# graph operations


def cross(x1: Tensor, x2: Tensor, /, *, axis: int = -1) -> Tensor:
    """The cross product of vectors of three elements along ``axis``; other axes broadcast."""
    a, b = check_tensor("cross", x1), check_tensor("cross", x2)
    rank = min(a.ndim, b.ndim)
    if not -rank <= axis < max(rank, 0):
        raise ShapeError(f"cross: axis {axis} of shapes {a.shape} and {b.shape}")
    if a.shape[axis] != 3 or b.shape[axis] != 3:
        raise ShapeError(f"cross wants 3 elements along axis {axis}, got {a.shape}, {b.shape}")
    dtype = promoted(a.dtype, b.dtype)

    def build(p: Node, q: Node) -> Node:
        p, q = ew.cast(p, dtype), ew.cast(q, dtype)
        shape = views.broadcast_shapes(p.shape, q.shape)
        at = axis_of(axis, len(shape), "cross")

        def part(node: Node, i: int) -> Node:
            node = views.broadcast(node, shape)
            starts, sizes = [0] * len(shape), list(shape)
            starts[at], sizes[at] = i, 1
            return views.slice_(node, starts, sizes)

        return views.concat(
            [
                ew.sub(
                    ew.mul(part(p, (i + 1) % 3), part(q, (i + 2) % 3)),
                    ew.mul(part(p, (i + 2) % 3), part(q, (i + 1) % 3)),
                )
                for i in range(3)
            ],
            at,
        )

    return apply(build, a, b)


def diagonal(x: Tensor, /, *, offset: int = 0) -> Tensor:
    """The ``offset``-th diagonals of matrices, a view: (..., m, n) gives (..., length)."""
    *lead, m, n = _matrices("diagonal", x).shape
    row, column = max(-offset, 0), max(offset, 0)
    length = max(min(m - row, n - column), 0)

    def build(node: Node) -> Node:
        if length == 0:
            return views.slice_(
                views.reshape(node, (*lead, m * n)), (0,) * (len(lead) + 1), (*lead, 0)
            )
        flat = views.reshape(node, (*lead, m * n))
        starts = (*(0 for _ in lead), row * n + column)
        steps = (*(1 for _ in lead), n + 1 if length > 1 else 1)
        return views.slice_(flat, starts, (*lead, length), steps)

    return apply(build, x)


def trace(x: Tensor, /, *, offset: int = 0, dtype: Any = None) -> Tensor:
    """The sum of the ``offset``-th diagonal of each matrix; dtypes as for ``sum``."""
    wanted = total_dtype(x.dtype, dtype)
    return reductions.sum(diagonal(astype(x, wanted, copy=False), offset=offset), axis=-1)


def vector_norm(
    x: Tensor, /, *, axis: Axes = None, keepdims: bool = False, ord: int | float = 2
) -> Tensor:
    """The ``ord``-norm over ``axis`` (default all): ``sum(abs(x) ** ord) ** (1 / ord)``.

    ``inf`` and ``-inf`` are the greatest and the least absolute value, 0 counts what is not zero.
    """
    _real("vector_norm", x)
    size = elementwise.abs(x)
    if ord == math.inf:
        return reductions.max(size, axis=axis, keepdims=keepdims)
    if ord == -math.inf:
        return reductions.min(size, axis=axis, keepdims=keepdims)
    if ord == 0:
        return astype(reductions.sum(x != 0, axis=axis, keepdims=keepdims), x.dtype)
    if ord == 1:
        return reductions.sum(size, axis=axis, keepdims=keepdims)
    if ord == 2:
        return elementwise.sqrt(reductions.sum(x * x, axis=axis, keepdims=keepdims))
    return reductions.sum(size**ord, axis=axis, keepdims=keepdims) ** (1.0 / ord)


def matrix_norm(
    x: Tensor, /, *, keepdims: bool = False, ord: int | float | str | None = "fro"
) -> Tensor:
    """A norm of each matrix: Frobenius (``"fro"``), nuclear (``"nuc"``), the greatest or least sum
    of a row (``inf``, ``-inf``) or a column (1, -1), or singular value (2, -2)."""
    _real("matrix_norm", _matrices("matrix_norm", x))
    if ord in ("fro", None):
        return vector_norm(x, axis=(-2, -1), keepdims=keepdims)
    if ord in (1, -1, math.inf, -math.inf):
        inner = -2 if abs(ord) == 1 else -1
        sums = reductions.sum(elementwise.abs(x), axis=inner, keepdims=True)
        best = reductions.max if ord > 0 else reductions.min
        found = best(sums, axis=(-2, -1), keepdims=True)
    elif ord in (2, -2, "nuc"):
        values = svdvals(x)
        pick: Callable[..., Tensor] = (
            reductions.sum if ord == "nuc" else reductions.max if ord == 2 else reductions.min
        )
        found = pick(values, axis=-1, keepdims=True)
        found = apply(views.reshape, found, shape=(*found.shape, 1))
    else:
        raise ValueError(f"matrix_norm: there is no norm {ord!r}")
    return found if keepdims else apply(views.reshape, found, shape=x.shape[:-2])


def matrix_power(x: Tensor, n: int, /) -> Tensor:
    """Square matrices multiplied by themselves ``n`` times; inverted first if ``n`` is negative."""
    _square("matrix_power", x)
    if n < 0:
        return matrix_power(inv(x), -n)
    result: Tensor | None = None
    power = x
    while n:
        if n & 1:
            result = power if result is None else matmul(result, power)
        n >>= 1
        if n:
            power = matmul(power, power)
    if result is not None:
        return +result if result is x else result
    size = x.shape[-1]
    identity = ew.cast(ew.eq(ew.iota((size, size), 0), ew.iota((size, size), 1)), x.dtype)
    return Tensor(views.broadcast(identity, x.shape))


# LAPACK's, on the host


def _matrices(name: str, x: Tensor) -> Tensor:
    if check_tensor(name, x).ndim < 2:
        raise ShapeError(f"{name} wants matrices, got shape {x.shape}")
    return x


def _square(name: str, x: Tensor) -> Tensor:
    if _matrices(name, x).shape[-1] != x.shape[-2]:
        raise ShapeError(f"{name} wants square matrices, got shape {x.shape}")
    return x


def _real(name: str, x: Tensor) -> Tensor:
    if not check_tensor(name, x).dtype.is_float:
        raise DTypeError(f"{name} wants floating-point numbers, got {x.dtype}")
    return x


def _host(name: str, x: Tensor) -> np.ndarray:
    """The value of ``x``, float32 or float64."""
    if _real(name, x)._tracks and mode.grad:
        raise UnsupportedError(f"{name} has no gradient: use detach() or tilewright.no_grad()")
    if x.dtype not in (f32, f64):
        raise DTypeError(f"{name} wants float32 or float64, got {x.dtype}: use astype()")
    return array_of(x.buffer(f"linalg.{name}()"))


def _solved(name: str, fn: Callable[[], Any]) -> Any:
    try:
        return fn()
    except np.linalg.LinAlgError as error:
        raise ShapeError(f"{name}: {error}") from None


def _tensor(array: Any) -> Tensor:
    return from_numpy(np.asarray(array))


def cholesky(x: Tensor, /, *, upper: bool = False) -> Tensor:
    """The triangle L with ``x = L L^T`` of symmetric positive-definite matrices (or U = L^T)."""
    array = _host("cholesky", _square("cholesky", x))
    found = _tensor(_solved("cholesky", lambda: np.linalg.cholesky(array)))
    return found.mT if upper else found


def det(x: Tensor, /) -> Tensor:
    """The determinants of square matrices."""
    return apply(determinant.det, _square("det", x))


def slogdet(x: Tensor, /) -> SlogdetResult:
    """The sign and the logarithm of the absolute value of the determinants."""
    sign, log = np.linalg.slogdet(_host("slogdet", _square("slogdet", x)))
    return SlogdetResult(_tensor(sign), _tensor(log))


def eigh(x: Tensor, /) -> EighResult:
    """Eigenvalues, ascending, and eigenvectors (columns) of symmetric matrices."""
    array = _host("eigh", _square("eigh", x))
    values, vectors = _solved("eigh", lambda: np.linalg.eigh(array))
    return EighResult(_tensor(values), _tensor(vectors))


def eigvalsh(x: Tensor, /) -> Tensor:
    """Eigenvalues, ascending, of symmetric matrices."""
    array = _host("eigvalsh", _square("eigvalsh", x))
    return _tensor(_solved("eigvalsh", lambda: np.linalg.eigvalsh(array)))


def inv(x: Tensor, /) -> Tensor:
    """The inverses of square matrices; :class:`ShapeError` if one is singular."""
    array = _host("inv", _square("inv", x))
    return _tensor(_solved("inv", lambda: np.linalg.inv(array)))


def matrix_rank(x: Tensor, /, *, rtol: float | Tensor | None = None) -> Tensor:
    """How many singular values exceed ``rtol`` times the greatest (int64).

    The default of ``rtol`` is ``max(m, n)`` times the dtype's epsilon.
    """
    array = _host("matrix_rank", _matrices("matrix_rank", x))
    values = np.linalg.svd(array, compute_uv=False)
    if values.shape[-1] == 0:
        return _tensor(np.zeros(array.shape[:-2], np.int64))
    if rtol is None:
        rtol = max(array.shape[-2:]) * float(np.finfo(array.dtype).eps)
    bound = array_of(rtol.buffer("rtol")) if isinstance(rtol, Tensor) else np.asarray(rtol)
    limits = values.max(axis=-1) * bound
    return _tensor((values > limits[..., None]).sum(axis=-1, dtype=np.int64))


def pinv(x: Tensor, /, *, rtol: float | Tensor | None = None) -> Tensor:
    """The Moore-Penrose inverses; singular values up to ``rtol`` times the greatest count as 0."""
    array = _host("pinv", _matrices("pinv", x))
    if rtol is None:
        rtol = max(array.shape[-2:]) * float(np.finfo(array.dtype).eps)
    bound = array_of(rtol.buffer("rtol")) if isinstance(rtol, Tensor) else rtol
    return _tensor(_solved("pinv", lambda: np.linalg.pinv(array, rcond=bound)))


def qr(x: Tensor, /, *, mode: str = "reduced") -> QRResult:
    """``x = Q R`` with orthonormal columns in Q and an upper triangle R.

    ``mode`` is ``"reduced"`` ((m, k) and (k, n), k the less of m and n) or ``"complete"``.
    """
    if mode not in ("reduced", "complete"):
        raise ValueError(f'qr: mode is "reduced" or "complete", got {mode!r}')
    array = _host("qr", _matrices("qr", x))
    q, r = np.linalg.qr(array, mode=mode)  # type: ignore[call-overload]
    return QRResult(_tensor(q), _tensor(r))


def solve(x1: Tensor, x2: Tensor, /) -> Tensor:
    """The x with ``x1 @ x = x2``, of square matrices and a vector or matrices of columns."""
    a, b = _host("solve", _square("solve", x1)), _host("solve", x2)
    dtype = np.result_type(a, b)
    a, b = a.astype(dtype), b.astype(dtype)
    if b.ndim == 1:
        return _tensor(_solved("solve", lambda: np.linalg.solve(a, b[:, None])[..., 0]))
    return _tensor(_solved("solve", lambda: np.linalg.solve(a, b)))


def svd(x: Tensor, /, *, full_matrices: bool = True) -> SVDResult:
    """``x = U diag(S) Vh``, singular values descending."""
    array = _host("svd", _matrices("svd", x))
    u, s, vh = _solved("svd", lambda: np.linalg.svd(array, full_matrices=full_matrices))
    return SVDResult(_tensor(u), _tensor(s), _tensor(vh))


def svdvals(x: Tensor, /) -> Tensor:
    """Singular values, descending."""
    array = _host("svdvals", _matrices("svdvals", x))
    return _tensor(_solved("svdvals", lambda: np.linalg.svd(array, compute_uv=False)))

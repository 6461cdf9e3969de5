"""Products of matrices and vectors, norms, Einstein sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tilewright.dtypes import bf16, f16, f32
from tilewright.errors import DTypeError, ShapeError
from tilewright.graph import Node
from tilewright.ops import elementwise as ew
from tilewright.ops import reductions, views
from tilewright.ops.gemm import bmm
from tilewright.tensor.core import Tensor, source, wrap
from tilewright.tensor.elementwise import check_tensor
from tilewright.tensor.manipulation import axis_of, matrix_transpose
from tilewright.tensor.methods import Axes
from tilewright.tensor.modes import mode
from tilewright.tensor.nodes import cast_node
from tilewright.tensor.promotion import promoted

__all__ = ["einsum", "matmul", "matrix_transpose", "norm", "outer", "tensordot", "vecdot"]


def _pair(name: str, x1: Tensor, x2: Tensor) -> tuple[Node, Node]:
    """The nodes of two numeric tensors in their common dtype."""
    a, b = source(check_tensor(name, x1)), source(check_tensor(name, x2))
    if a.dtype is not b.dtype:
        dtype = promoted(a.dtype, b.dtype)
        a, b = cast_node(a, dtype), cast_node(b, dtype)
    if a.dtype.kind == "b":
        raise DTypeError(f"{name} wants numbers, got bool: use astype() first")
    return a, b


_NARROWED = (f32, f16, bf16)  # what autocast casts


def _operands(x1: Tensor, x2: Tensor) -> tuple[Node, Node]:
    """The nodes of a product, in a common dtype or as autocast wants them."""
    kind = mode.autocast
    if kind is None or x1.dtype not in _NARROWED or x2.dtype not in _NARROWED:
        return _pair("matmul", x1, x2)
    a, b = source(x1), source(x2)
    if kind is bf16 and f16 not in (a.dtype, b.dtype):
        return a, b  # f32 is rounded to bf16 while it is read
    return cast_node(a, kind), cast_node(b, kind)


def _product(a: Node, b: Node) -> Node:
    if mode.autocast is bf16 and {a.dtype, b.dtype} <= {f32, bf16}:
        return bmm(a, b, compute=bf16, out_dtype=bf16)
    return bmm(a, b)


def matmul(x1: Tensor, x2: Tensor, /) -> Tensor:
    """The product of matrices, stacks of matrices and vectors.

    (..., m, k) times (..., k, n) gives (..., m, n), stacks broadcast; a vector on the left is a
    row, on the right a column, and its axis is gone from the result.
    """
    a, b = _operands(x1, x2)
    if not a.shape or not b.shape:
        raise ShapeError(f"matmul wants axes, got shapes {a.shape} and {b.shape}: use multiply()")
    row, column = len(a.shape) == 1, len(b.shape) == 1
    if row:
        a = views.reshape(a, (1, *a.shape))
    if column:
        b = views.reshape(b, (*b.shape, 1))
    if a.shape[-1] != b.shape[-2]:
        raise ShapeError(
            f"matmul: the last axis of {x1.shape} and the "
            f"{'only' if column else 'second last'} axis of {x2.shape} differ in size"
        )
    stack = a.shape[:-1]
    if len(stack) > 1 and len(b.shape) == 2:
        # one tall product: its gradient for b is one product too, not a stack to be summed
        rows: Any = 1
        for n in stack:
            rows *= n
        tall = _product(views.reshape(a, (rows, a.shape[-1])), b)
        node = views.reshape(tall, (*stack, b.shape[-1]))
    else:
        node = _product(a, b)
    if row or column:
        kept = (
            node.shape[:-2]
            + (() if row else node.shape[-2:-1])
            + (() if column else node.shape[-1:])
        )
        node = views.reshape(node, kept)
    return wrap(node, x1, x2)


def outer(x1: Tensor, x2: Tensor, /) -> Tensor:
    """Every element of a vector times every element of another."""
    a, b = _pair("outer", x1, x2)
    if len(a.shape) != 1 or len(b.shape) != 1:
        raise ShapeError(f"outer wants two vectors, got shapes {a.shape} and {b.shape}")
    return wrap(ew.mul(views.reshape(a, (*a.shape, 1)), b), x1, x2)


def vecdot(x1: Tensor, x2: Tensor, /, *, axis: int = -1) -> Tensor:
    """The sum of products along ``axis`` (counted from the back), the other axes broadcast."""
    a, b = _pair("vecdot", x1, x2)
    shortest = min(len(a.shape), len(b.shape))
    if not -shortest <= axis <= -1:
        raise ShapeError(f"vecdot: axis {axis} is not in the range -{shortest} to -1")
    if a.shape[axis] != b.shape[axis]:
        raise ShapeError(f"vecdot: axis {axis} of {a.shape} and {b.shape} differ in size")
    return wrap(reductions.sum(ew.mul(a, b), (axis,)), x1, x2)


def norm(
    x: Tensor, /, *, axis: Axes = None, keepdims: bool = False, ord: int | float = 2
) -> Tensor:
    """The length of vectors over ``axis`` (default: of all elements); see ``vector_norm``."""
    from tilewright.tensor.linalg_extension import vector_norm

    return vector_norm(x, axis=axis, keepdims=keepdims, ord=ord)


def tensordot(
    x1: Tensor, x2: Tensor, /, *, axes: int | tuple[Sequence[int], Sequence[int]] = 2
) -> Tensor:
    """Sums of products over the last ``axes`` of ``x1`` and the first ``axes`` of ``x2``.

    ``axes`` may be two sequences that say which axes of ``x1`` meet which of ``x2``.
    """
    a, b = _pair("tensordot", x1, x2)
    if isinstance(axes, int):
        if axes < 0 or axes > min(len(a.shape), len(b.shape)):
            raise ShapeError(f"tensordot: {axes} axes of {a.shape} and {b.shape}")
        left = list(range(len(a.shape) - axes, len(a.shape)))
        right = list(range(axes))
    else:
        left = [axis_of(i, len(a.shape), "tensordot") for i in axes[0]]
        right = [axis_of(i, len(b.shape), "tensordot") for i in axes[1]]
    if [a.shape[i] for i in left] != [b.shape[i] for i in right]:
        raise ShapeError(f"tensordot: axes {left} of {a.shape} do not match {right} of {b.shape}")
    rows = [i for i in range(len(a.shape)) if i not in left]
    columns = [i for i in range(len(b.shape)) if i not in right]
    depth = _count(a, left)
    first = views.reshape(views.permute(a, rows + left), (_count(a, rows), depth))
    second = views.reshape(views.permute(b, right + columns), (depth, _count(b, columns)))
    shape = tuple(a.shape[i] for i in rows) + tuple(b.shape[i] for i in columns)
    return wrap(views.reshape(bmm(first, second), shape), x1, x2)


def _count(node: Node, axes: Sequence[int]) -> int:
    return math.prod([node.shape[i] for i in axes])  # type: ignore[misc]


# Einstein sums


def einsum(equation: str, /, *operands: Tensor) -> Tensor:
    """Sums of products by the letters of axes: ``einsum("bij,bjk->bik", x, y)``.

    A letter that is not in the result is summed over; a letter that occurs twice in one operand
    takes its diagonal; ``...`` stands for further axes, which broadcast. Without ``->`` the result
    has the letters that occur once, in alphabetical order. Operands are contracted in pairs, the
    pair with the smallest result first.
    """
    inputs, output = _parse(equation, operands)
    dtype = operands[0].dtype
    for x in operands[1:]:
        dtype = promoted(dtype, x.dtype)
    terms = [
        _diagonals(cast_node(source(check_tensor("einsum", x)), dtype), letters)
        for x, letters in zip(operands, inputs)
    ]
    while len(terms) > 1:
        i, j = min(
            ((i, j) for i in range(len(terms)) for j in range(i + 1, len(terms))),
            key=lambda pair: _result_size(terms, pair, output),
        )
        kept = set(output).union(*(t[1] for k, t in enumerate(terms) if k not in (i, j)))
        joined = _contract(terms[i], terms[j], kept)
        terms = [t for k, t in enumerate(terms) if k not in (i, j)] + [joined]
    node, letters = _summed(terms[0], set(output))
    node = views.permute(node, [letters.index(c) for c in output])
    return wrap(node, *operands)


Term = tuple[Node, str]


def _parse(equation: str, operands: Sequence[Tensor]) -> tuple[list[str], str]:
    """The letters of each operand's axes and of the result's, ``...`` written as digits."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    inputs = left.split(",")
    if len(inputs) != len(operands) or not operands:
        raise ShapeError(f"einsum {equation!r} is about {len(inputs)} tensors, got {len(operands)}")
    most = 0
    for letters, x in zip(inputs, operands):
        extra = x.ndim - len(letters.replace("...", ""))
        if extra < 0 or (extra and "..." not in letters):
            raise ShapeError(f"einsum {equation!r}: {letters!r} for shape {x.shape}")
        most = max(most, extra) if "..." in letters else most
    if most > 10:
        raise ShapeError(f"einsum {equation!r}: '...' stands for {most} axes, at most 10")
    dots = "0123456789"[:most]
    named = [
        t.replace("...", dots[most - (x.ndim - len(t.replace("...", ""))) :])
        for t, x in zip(inputs, operands)
    ]
    if arrow:
        output = right.replace("...", dots)
    else:
        every = "".join(named)
        output = dots + "".join(sorted(c for c in set(every) - set(dots) if every.count(c) == 1))
    unknown = set(output) - set("".join(named))
    if unknown or len(set(output)) != len(output):
        raise ShapeError(
            f"einsum {equation!r}: the result has {sorted(unknown) or 'an axis twice'}"
        )
    if not all(c.isalpha() or c in dots for c in "".join(named)):
        raise ShapeError(f"einsum {equation!r}: axes are named by letters")
    return named, output


def _diagonals(node: Node, letters: str) -> Term:
    """``node`` with each letter once."""
    for c in dict.fromkeys(letters):
        while letters.count(c) > 1:
            i = letters.index(c)
            j = letters.index(c, i + 1)
            n: Any = node.shape[i]
            if node.shape[j] != n:
                raise ShapeError(f"einsum: axis {c!r} has sizes {n} and {node.shape[j]}")
            rest = [k for k in range(len(letters)) if k not in (i, j)]
            node = views.permute(node, [i, j, *rest])
            node = views.reshape(node, (n * n, *node.shape[2:]))
            node = views.slice_(
                node,
                (0,) * len(node.shape),
                (n, *node.shape[1:]),
                (n + 1, *(1 for _ in rest)),
            )
            letters = c + "".join(letters[k] for k in rest)
    return node, letters


def _summed(term: Term, kept: set[str]) -> Term:
    """``term`` summed over the letters nobody needs."""
    node, letters = term
    gone = tuple(i for i, c in enumerate(letters) if c not in kept)
    if not gone:
        return term
    return reductions.sum(node, gone), "".join(c for c in letters if c in kept)


def _result_size(terms: Sequence[Term], pair: tuple[int, int], output: str) -> int:
    sizes: dict[str, int] = {}
    for k in pair:
        for c, n in zip(terms[k][1], terms[k][0].shape):
            sizes[c] = max(n, sizes.get(c, 1))  # type: ignore[assignment]
    others = set(output).union(*(t[1] for k, t in enumerate(terms) if k not in pair))
    return math.prod(n for c, n in sizes.items() if c in others)


def _contract(first: Term, second: Term, kept: set[str]) -> Term:
    """The product of two terms, summed over the letters that nobody else needs."""
    a, la = _summed(first, kept | set(second[1]))
    b, lb = _summed(second, kept | set(first[1]))
    sizes: dict[str, Any] = {}
    for c, n in [*zip(la, a.shape), *zip(lb, b.shape)]:
        if sizes.setdefault(c, n) != n and 1 not in (n, sizes[c]):
            raise ShapeError(f"einsum: axis {c!r} has sizes {sizes[c]} and {n}")
        sizes[c] = n if sizes[c] == 1 else sizes[c]
    a = _stretched(a, la, sizes)
    b = _stretched(b, lb, sizes)
    batch = [c for c in la if c in lb and c in kept]
    inner = [c for c in la if c in lb and c not in kept]
    rows = [c for c in la if c not in lb]
    columns = [c for c in lb if c not in la]
    if not inner and (not rows or not columns or a.dtype.kind == "b"):
        return _multiplied(a, la, b, lb)
    left = views.permute(a, [la.index(c) for c in (*batch, *rows, *inner)])
    right = views.permute(b, [lb.index(c) for c in (*batch, *inner, *columns)])

    def count(letters: Sequence[str]) -> Any:
        return math.prod(sizes[c] for c in letters)

    lead = tuple(left.shape[: len(batch)])
    left = views.reshape(left, (*lead, count(rows), count(inner)))
    right = views.reshape(right, (*right.shape[: len(batch)], count(inner), count(columns)))
    product = bmm(left, right)
    shape = tuple(sizes[c] for c in (*batch, *rows, *columns))
    return views.reshape(product, shape), "".join((*batch, *rows, *columns))


def _stretched(node: Node, letters: str, sizes: Any) -> Node:
    """``node`` with axes of size 1 broadcast where a ``...`` of the other operand is longer."""
    return views.broadcast(node, tuple(sizes[c] for c in letters))


def _multiplied(a: Node, la: str, b: Node, lb: str) -> Term:
    """The product of two terms without a sum."""
    letters = la + "".join(c for c in lb if c not in la)
    a = views.reshape(a, (*a.shape, *(1 for c in letters if c not in la)))
    order = [lb.index(c) for c in letters if c in lb]
    b = views.permute(b, order)
    at = iter(b.shape)
    b = views.reshape(b, tuple(next(at) if c in lb else 1 for c in letters))
    return ew.mul(a, b), letters

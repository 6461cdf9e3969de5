"""What does not change from run to run: computed once, written into kernels, packed for products.

Constants are values that are not among the leaves which change. Computing and packing change no
bit: the same kernels run earlier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.compiler.fusion import pending
from tilewright.compiler.passes.rules import number_of
from tilewright.compiler.realize import realize
from tilewright.dtypes import bf16, f16, to_float32
from tilewright.graph import Node, const_node
from tilewright.ops.gemm_calls import is_small
from tilewright.ops.gemm_packed import bmm_packed, can_pack, pack_matrix
from tilewright.ops.views import reshape
from tilewright.runtime.buffers import Buffer
from tilewright.sizes import Real, Size, is_fixed

__all__ = ["fold", "literals", "pack", "varies"]

_WIDE_ROWS = 64  # from which f16 weights are packed as f32
_VIEWS = frozenset({"permute", "slice", "broadcast"})


def literals(roots: Sequence[Node], dynamic: Callable[[Node], bool]) -> list[Node]:
    """Constants of one element become numbers of the program."""
    new: dict[Node, Node] = {}
    kept = set(roots)
    for node in pending(roots):
        value = node.value
        if value is None:
            new[node] = node.with_inputs(tuple([new[i] for i in node.inputs]))
        elif dynamic(node) or node in kept or value.size != 1 or len(node.shape) > 8:
            new[node] = node
        else:
            new[node] = reshape(const_node(_number(value), node.dtype), node.shape)
    return [new[root] for root in roots]


def _number(value: Buffer) -> Any:
    array = value.numpy()
    one = to_float32(array) if value.dtype is bf16 else array
    return np.asarray(one).reshape(()).item()


def fold(
    roots: Sequence[Node],
    dynamic: Callable[[Node], bool],
    compute: Callable[[list[Node]], object] = realize,
) -> None:
    """Compute once what depends on constants alone, and is read by something that does not.

    Broadcasts are left alone: they would make memory of what a kernel reads as one element.
    ``compute`` gives nodes their values.
    """
    order = pending(roots)
    constant: dict[Node, bool] = {}
    for node in order:
        constant[node] = (
            not dynamic(node)
            if node.value is not None
            else not varies(node) and all(constant[i] for i in node.inputs)
        )
    wanted: list[Node] = []
    for node in order:
        if node.value is not None or constant[node]:
            continue
        for source in node.inputs:
            while source.op == "broadcast" and source.value is None:
                source = source.inputs[0]
            computed = constant[source] and source.value is None and bool(source.inputs)
            if computed and number_of(source) is None:
                wanted.append(source)
    if wanted:
        compute(list(dict.fromkeys(wanted)))


def varies(node: Node) -> bool:
    """Whether a size that is a symbol says what the node is."""
    if not is_fixed(node.shape):
        return True
    return any(_is_symbolic(v) for v in node.attrs.values())


def _is_symbolic(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_is_symbolic(v) for v in value)
    return isinstance(value, (Size, Real))


def pack(
    roots: Sequence[Node], dynamic: Callable[[Node], bool], packed: dict[Any, tuple[Any, Node]]
) -> list[Node]:
    """Products whose right operand is a constant read it packed.

    ``packed`` keeps what was packed for the next program, with the memory that it was made from.
    """
    new: dict[Node, Node] = {}
    for node in pending(roots):
        if node.value is not None:
            new[node] = node
            continue
        now = node.with_inputs(tuple([new[i] for i in node.inputs]))
        if now.op == "bmm" and now.inputs[1].value is not None and not dynamic(now.inputs[1]):
            now = _packed(now, packed)
        new[node] = now
    return [new[root] for root in roots]


def _packed(node: Node, packed: dict[Any, tuple[Any, Node]]) -> Node:
    a, b = node.inputs[:2]
    compute = node.attrs.get("compute")
    sizes = (*a.shape[-1:], *b.shape)
    if (
        any(not isinstance(n, int) or n == 0 for n in sizes)
        or "epilogue" in node.attrs
        or any(n != 1 for n in b.shape[:-2])
        or len(b.shape) > len(a.shape)
        or not can_pack(a.dtype, b.dtype, compute)
    ):
        return node
    k, n = b.value.shape[-2:]
    is_view = a.op in _VIEWS and a.value is None
    m: Any = a.shape[-2] if is_view else math.prod(a.shape[:-1])
    if is_small(m, k, n, (a.dtype, b.dtype)):
        return node
    buffer: Buffer = b.value
    matrix = buffer.view((k, n), buffer.strides[-2:])
    wide = b.dtype is f16 and isinstance(m, int) and m >= _WIDE_ROWS
    key = (matrix.pointer, matrix.strides, matrix.shape, matrix.dtype, compute, wide)
    if key not in packed:
        packed[key] = buffer.owner, pack_matrix(matrix, compute, wide)
    if not is_view and len(a.shape) > 2:
        a = reshape(a, (m, k))
    made = bmm_packed(
        a, packed[key][1], n, of=b.dtype, out_dtype=node.attrs.get("out_dtype"), compute=compute
    )
    return reshape(made, node.shape)

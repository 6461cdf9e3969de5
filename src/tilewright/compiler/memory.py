"""Memory plan: where in one arena each intermediate result lives.

Sizes are those of the largest shapes, so the plan holds for every step. Two results may share bytes
when the last reader of one runs before the other is written. Offsets are found best fit, largest
first among those that start earliest, and aligned to 64 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from tilewright.compiler.walk import Walk
from tilewright.graph import Graph, Node, upper_bound
from tilewright.ops import table
from tilewright.ops.calls import KernelCall
from tilewright.ops.layout_kernels import copy_kernel
from tilewright.runtime.buffers import ALIGN, Buffer, padded_strides
from tilewright.sizes import SizeLike, hint

__all__ = [
    "OFFSET_BITS",
    "MemoryPlan",
    "best_fit",
    "copies",
    "flat_arguments",
    "is_alias",
    "plan_memory",
    "reads_before_writing",
    "storage_of",
]

OFFSET_BITS: Final = 44  # of a made-up address: offsets up to 16 TiB, the storage's number above


@dataclass(frozen=True)
class MemoryPlan:
    """Offsets (bytes) and strides (elements) of every result, and the arena's size in bytes."""

    offsets: dict[Node, int]
    strides: dict[Node, tuple[int, ...]]
    arena_bytes: int


def is_alias(node: Node) -> bool:
    """Whether the node's bytes belong to one of its inputs."""
    if node.is_leaf or node.op == "rows":
        return False
    entry = table.get(node.op)
    return entry.view is not None or entry.state is not None


def plan_memory(graph: Graph) -> MemoryPlan:
    """Assign an offset to every node that needs memory of its own."""
    order = graph.nodes()
    position = {node: i for i, node in enumerate(order)}
    last_use: dict[Node, int] = {}
    for node in reversed(order):
        end = last_use.get(node, position[node])
        for source in node.inputs:
            # a view, or a result of a fused kernel, keeps what it points into alive
            reach = max(end, position[node]) if is_alias(node) else position[node]
            last_use[source] = max(last_use.get(source, 0), reach)
    for node in graph.outputs.values():
        source = node
        while is_alias(source):
            source = source.inputs[0]
        last_use[source] = last_use[node] = len(order)

    offsets: dict[Node, int] = {}
    strides: dict[Node, tuple[int, ...]] = {}
    live: list[tuple[int, int, int]] = []  # (offset, end, last use)
    total = 0
    for node in order:
        if node.is_leaf or node.op == "rows" or is_alias(node):
            continue
        # the fused kernel writes its results where it stands in the order
        start = position[node.inputs[0]] if node.op == "result" else position[node]
        shape = upper_bound(node.shape)
        strides[node] = padded_strides(shape, node.dtype)
        size = shape[0] * strides[node][0] * node.dtype.nbytes if shape else node.dtype.nbytes
        size = -(-size // ALIGN) * ALIGN
        busy = sorted((o, e) for o, e, last in live if last >= start)
        offset = best_fit(busy, size)
        offsets[node] = offset
        end = last_use.get(node, position[node])
        live.append((offset, offset + size, end))
        total = max(total, offset + size)
    return MemoryPlan(offsets, strides, total)


def best_fit(busy: list[tuple[int, int]], size: int) -> int:
    """The start of the smallest gap that holds ``size``; behind everything if none does."""
    best, best_gap, cursor = -1, 0, 0
    for start, end in busy:
        gap = start - cursor
        if gap >= size and (best < 0 or gap < best_gap):
            best, best_gap = cursor, gap
        cursor = max(cursor, end)
    return best if best >= 0 else cursor


def storage_of(pointer: SizeLike) -> int:
    """The number of the storage that a made-up address points into."""
    number: int = hint(pointer) >> OFFSET_BITS
    return number - 1


def flat_arguments(args: Sequence[Any]) -> list[Any]:
    """A kernel's arguments with those that are sequences taken apart."""
    flat: list[Any] = []
    for arg in args:
        if isinstance(arg, (tuple, list)):
            flat.extend(arg)
        else:
            flat.append(arg)
    return flat


def reads_before_writing(walk: Walk, old: Buffer, new: Buffer) -> bool:
    """Whether a generated kernel may write ``new`` over the ``old`` that it reads.

    True of those that read each element where they write it and nowhere else. A kernel that reduces
    walks its domain several times and computes anew what it needs, while results of the whole
    domain are stored as soon as they are known: not those.
    """
    group = walk.group
    stored = [
        (out, place)
        for out, (_, place) in zip(walk.outputs, walk.results)
        if place.buffer.pointer == new.pointer
    ]
    if len(stored) != 1:
        return False
    ((out, place),) = stored
    if group.reduced is not None and group.is_full(group.maps[out]):
        return False
    return all(
        (read.buffer.pointer, read.buffer.dtype, read.strides)
        == (old.pointer, old.dtype, place.strides)
        for _, read in walk.operands.values()
        if storage_of(read.buffer.pointer) == storage_of(old.pointer)
    )


def copies(call: object, old: Buffer, new: Buffer) -> TypeGuard[KernelCall]:
    """Whether all that ``call`` does is to copy ``old`` to ``new``, laid out alike."""
    if not isinstance(call, KernelCall) or call.kernel is not copy_kernel:
        return False
    source, target = call.args
    alike = (source.dtype, source.shape, source.strides) == (
        target.dtype,
        target.shape,
        target.strides,
    )
    ends = (source.pointer, target.pointer) == (old.pointer, new.pointer)
    return alike and ends and source.size == old.size

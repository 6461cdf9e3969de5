"""Values of nodes: what a lazy tensor asks for.

Graphs that have the same structure (ops, attributes, shapes, dtypes, strides of the leaves, which
results are wanted) share one program; leaves and run-time numbers are named anew at each run.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

from tilewright.compiler.fusion import pending
from tilewright.compiler.numbers import scalar_bits
from tilewright.compiler.static import Output, StaticProgram, build
from tilewright.graph import Node
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import default_pool, default_target
from tilewright.runtime.memory import Memory, take

__all__ = ["Realizer", "realize", "structure"]

_KEPT: Final = 1024


def realize(nodes: Sequence[Node]) -> list[Buffer]:
    """Compute ``nodes`` and remember the results as their values."""
    missing = [n for n in nodes if n.value is None]
    if missing:
        _REALIZER.run(list(dict.fromkeys(missing)))
    return [n.value for n in nodes]


def structure(order: Sequence[Node], roots: Sequence[Node]) -> tuple[Any, ...]:
    """What decides the program of a graph, hashable; ``order`` is :func:`pending` of ``roots``."""
    at: dict[Node, int] = {}
    key: list[Any] = []
    for i, node in enumerate(order):
        at[node] = i
        value = node.value
        if value is not None:
            key.append((value.dtype, value.shape, value.strides))
        elif node.op == "scalar":
            key.append(node.dtype)
        elif node.op == "const":
            key.append((node.dtype, repr(node.attrs["value"])))
        else:
            attrs = tuple([repr(v) if type(v) is float else v for v in node.attrs.values()])
            inputs = tuple([at[i] for i in node.inputs])
            key.append((node.op, node.dtype, node.shape, attrs, inputs))
    key.append(tuple([at[r] for r in roots]))
    return tuple(key)


class Realizer:
    """Programs by structure, and the working memory that they take turns in."""

    def __init__(self) -> None:
        self._programs: OrderedDict[tuple[Any, ...], StaticProgram] = OrderedDict()
        self._lock = threading.RLock()
        self._arena: Memory = take(1)

    def run(self, roots: list[Node]) -> None:
        """Compute ``roots``, none of which has a value yet."""
        with self._lock:
            order = pending(roots)
            pool = default_pool()
            key = (id(pool), *structure(order, roots))
            program = self._programs.get(key)
            if program is None:
                program = build(roots, default_target(), pool, order)
                self._programs[key] = program
                if len(self._programs) > _KEPT:
                    self._programs.popitem(last=False)
            else:
                self._programs.move_to_end(key)
            self._execute(program, order, roots)

    def _execute(self, program: StaticProgram, order: list[Node], roots: list[Node]) -> None:
        owners: list[Any] = []
        addresses: list[int] = []
        for node in order:
            value = node.value
            if value is not None:
                owners.append(value.owner)
                addresses.append(value.pointer)
        for nbytes in program.output_bytes:
            memory = take(nbytes)
            owners.append(memory)
            addresses.append(memory.pointer)
        if self._arena.nbytes < program.arena_bytes:
            self._arena = take(program.arena_bytes)
        addresses.append(self._arena.pointer)
        numbers = []
        for i in program.scalar_positions:
            node = order[i]
            numbers.append(scalar_bits(node.attrs["value"], node.dtype))
        program.run(addresses, numbers)
        for root, out in zip(roots, program.outputs):
            root.value = located(out, addresses, owners)


def located(out: Output, addresses: Sequence[int], owners: Sequence[Any]) -> Buffer:
    """The buffer of a root, once its storage has an address."""
    place = out.place
    return Buffer(out.dtype, out.shape, out.strides, addresses[place] + out.offset, owners[place])


_REALIZER = Realizer()

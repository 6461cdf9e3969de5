"""A program: a compiled graph with its memory, run without Python in between.

``run(dims)`` looks up (or builds, once per tuple of sizes) the launch table for these sizes and
hands it to the worker pool: one call, all kernels. Inputs are filled in place beforehand, states
live on between runs, outputs are read in place afterwards.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from tilewright.compiler.memory import MemoryPlan, is_alias
from tilewright.compiler.pack import Weights
from tilewright.dtypes import u8
from tilewright.graph import Graph, Node, evaluate, upper_bound
from tilewright.ops import table
from tilewright.ops.calls import KernelCall
from tilewright.ops.source import inline_function
from tilewright.runtime.buffers import Buffer, empty, zeros
from tilewright.runtime.launch import Kernel
from tilewright.runtime.program import Launch, LaunchTable

__all__ = ["Program", "kernel_calls", "rows_kernel"]

_TABLES_KEPT = 64
_SPAN = 512  # columns of a row that one program instance of a row kernel takes, at most


class Program:
    """See the module. Made by :func:`tilewright.compiler.compile_graph`.

    Attributes:
        graph: after all passes; ``print(program.graph)`` shows it.
        inputs, states, outputs: buffers by name, at their largest shapes.
        compile_seconds: spent so far on getting kernels, from the cache or compiled.
    """

    def __init__(
        self, graph: Graph, plan: MemoryPlan, weights: Weights, target: Any, pool: Any
    ) -> None:
        self.graph = graph
        self.plan = plan
        self.weights = weights
        self.target = target
        self.pool = pool
        self.order = graph.nodes()
        self.compile_seconds = 0.0
        self.inputs: dict[str, Buffer] = {}
        self.states: dict[str, Buffer] = {}
        for node in self.order:
            if node.op in ("input", "state"):
                store = self.inputs if node.op == "input" else self.states
                store[node.attrs["name"]] = zeros(node.dtype, upper_bound(node.shape))
        self._arena = empty(u8, (max(plan.arena_bytes, 1),))
        self._tables: OrderedDict[tuple[tuple[str, int], ...], LaunchTable] = OrderedDict()
        self.outputs = {
            name: self._bound(node, upper_bound(node.shape)) for name, node in graph.outputs.items()
        }

    def run(self, dims: Mapping[str, int]) -> None:
        """Execute one step with these sizes."""
        key = tuple(sorted(dims.items()))
        found = self._tables.get(key)
        if found is None:
            found = self._tables[key] = self.bind(dims)
            if len(self._tables) > _TABLES_KEPT:
                self._tables.popitem(last=False)
        else:
            self._tables.move_to_end(key)
        found.run(self.pool)

    def bind(self, dims: Mapping[str, int]) -> LaunchTable:
        """The launch table for these sizes; kernels that are missing are compiled together."""
        calls = [c for c in kernel_calls(self, dims) if all(c.grid)]
        kernels = [(c.kernel, c.kernel.signature(c.args, c.consts)) for c in calls]
        start = time.perf_counter()
        self.target.compile_many(kernels)
        self.compile_seconds += time.perf_counter() - start
        return LaunchTable(
            [
                Launch(self.target.compile(kernel, signature), call.grid, call.args)
                for (kernel, signature), call in zip(kernels, calls)
            ]
        )

    def matrices(self) -> list[Any]:
        """The packed matrices that matmuls read."""
        return [w for (_, form), w in self.weights.items() if form == "matrix"]

    def plan_bytes(self) -> dict[str, int]:
        """Bytes of weights, state and working memory."""
        weights = 0
        for item in {id(w): w for w in self.weights.values()}.values():
            weights += item.nbytes
        return {
            "weights": weights,
            "state": sum(b.nbytes for b in self.states.values()),
            "working memory": self.plan.arena_bytes,
        }

    def _bound(self, node: Node, shape: tuple[int, ...]) -> Buffer:
        """The node's own memory, seen with a concrete shape."""
        return self._arena.view(
            shape, self.plan.strides[node], self.plan.offsets[node] // node.dtype.nbytes, node.dtype
        )


def kernel_calls(program: Program, dims: Mapping[str, int]) -> list[KernelCall]:
    """What has to be launched, in order, when the symbols have these values."""
    values: dict[Node, Any] = {}
    results: dict[Node, list[Node]] = {}
    for node in program.order:
        if node.op == "result":
            results.setdefault(node.inputs[0], []).append(node)
    calls: list[KernelCall] = []
    for node in program.order:
        shape = evaluate(node.shape, dims)
        if node.op in ("weight", "result"):  # results are bound with their kernel
            continue
        if node.is_leaf:
            store = program.inputs if node.op == "input" else program.states
            buffer = store[node.attrs["name"]]
            values[node] = buffer.view(shape, buffer.strides)
            continue
        inputs = [
            program.weights[i, table.weight_form(node, n)] if i.op == "weight" else values[i]
            for n, i in enumerate(node.inputs)
        ]
        if node.op == "rows":
            outs = sorted(results[node], key=lambda r: r.attrs["index"])
            for out in outs:
                values[out] = _wrapped(out, program._bound(out, evaluate(out.shape, dims)))
            calls.append(_rows_call(node, inputs, [values[o] for o in outs], shape))
            continue
        entry = table.get(node.op)
        if entry.view is not None:
            values[node] = entry.view(node, inputs[0])
            continue
        if is_alias(node):
            assert entry.state is not None
            values[node] = inputs[entry.state]
        else:
            values[node] = _wrapped(node, program._bound(node, shape))
        assert entry.calls is not None, f"op {node.op} has no kernels"
        calls += entry.calls(_with_inline(node), inputs, values[node])
    return calls


def _wrapped(node: Node, buffer: Buffer) -> Any:
    wrap = table.get(node.op).wrap
    return wrap(node, buffer) if wrap is not None else buffer


def _with_inline(node: Node) -> Node:
    """The node with its epilogue as a function the kernel can call."""
    epilogue = node.attrs.get("epilogue")
    if epilogue is None:
        return node
    body = (*epilogue.lines, f"return {epilogue.result}")
    function = inline_function("epilogue", "acc, i, j, extras", body)
    attrs = {**node.attrs, "epilogue": function}
    return Node(node.op, node.inputs, node.shape, node.dtype, attrs, node.name)


_ROW_KERNELS: dict[str, Kernel] = {}


def rows_kernel(name: str, source: str) -> Kernel:
    """The kernel of a fused row group; equal source gives the same object."""
    if source not in _ROW_KERNELS:
        from tilewright import lang
        from tilewright.ops.quantized import store_quantized

        names = {k: getattr(lang, k) for k in lang.__all__}
        names["store_quantized"] = store_quantized
        _ROW_KERNELS[source] = Kernel.from_source(source, name, names)
    return _ROW_KERNELS[source]


def _rows_call(
    node: Node, inputs: list[Any], outs: list[Any], shape: tuple[int, ...]
) -> KernelCall:
    kernel = rows_kernel(node.attrs["kernel"], node.attrs["source"])
    args: list[Any] = list(inputs)
    for out in outs:
        args += [out.q, out.d, out.s, out.h] if hasattr(out, "q") else [out]
    rows, width = shape
    if node.attrs["has_stats"]:
        return KernelCall(kernel, (rows,), tuple(args))
    return KernelCall(kernel, (rows, -(-width // _SPAN)), tuple(args), {"SPAN": _SPAN})

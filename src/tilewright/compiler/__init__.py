"""Graph -> program. ``compile_graph`` is the table of contents: its passes run top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tilewright.compiler.cache_write import fuse_cache_write
from tilewright.compiler.choose import quantize_activations
from tilewright.compiler.epilogues import fuse_epilogues
from tilewright.compiler.memory import MemoryPlan, plan_memory
from tilewright.compiler.merge import merge_matmuls
from tilewright.compiler.pack import pack_weights, weight_bytes
from tilewright.compiler.program import Program
from tilewright.compiler.rows import fuse_rows
from tilewright.graph import Graph, upper_bound

__all__ = ["CompileOptions", "Program", "compile_graph", "memory_needs", "run_passes"]


@dataclass(frozen=True)
class CompileOptions:
    """How to compile.

    Attributes:
        threads: workers, the calling thread included; None takes the configured number.
        fuse: False keeps one kernel per op: the same bits, more launches.
        progress: called with (what, fraction done) while weights load.
    """

    threads: int | None = None
    fuse: bool = True
    progress: Callable[[str, float], None] | None = None


def compile_graph(
    graph: Graph,
    options: CompileOptions | None = None,
    before_memory: Callable[[dict[str, int]], None] | None = None,
) -> Program:
    """Compile ``graph`` for the CPU.

    ``before_memory`` sees the planned bytes (weights, state, working memory) before anything large
    is allocated or read, and may raise.
    """
    from tilewright.runtime.launch import default_target, pool_of

    options = options or CompileOptions()
    graph = run_passes(graph, options.fuse)
    plan = plan_memory(graph)
    if before_memory is not None:
        before_memory(_needs(graph, plan))
    weights = pack_weights(graph, options.progress)
    return Program(graph, plan, weights, default_target(), pool_of(options.threads))


def run_passes(graph: Graph, fuse: bool = True) -> Graph:
    """Every graph-to-graph pass, in order."""
    if fuse:
        graph = merge_matmuls(graph)
    graph = quantize_activations(graph)
    if fuse:
        graph = fuse_epilogues(graph)
        graph = fuse_cache_write(graph)
    return fuse_rows(graph, merge=fuse)


def memory_needs(graph: Graph) -> dict[str, int]:
    """Bytes of weights, state and working memory that ``graph`` will take; nothing is read."""
    graph = run_passes(graph)
    return _needs(graph, plan_memory(graph))


def _needs(graph: Graph, plan: MemoryPlan) -> dict[str, int]:
    return {
        "weights": weight_bytes(graph),
        "state": _state_bytes(graph),
        "working memory": plan.arena_bytes,
    }


def _state_bytes(graph: Graph) -> int:
    states = [node for node in graph.nodes() if node.op == "state"]
    return sum(math.prod(upper_bound(n.shape)) * n.dtype.nbytes for n in states)

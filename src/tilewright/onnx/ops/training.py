"""Gradients and optimisers inside models (``ai.onnx.preview.training``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from tilewright.errors import FormatError, UnsupportedError
from tilewright.formats.onnx import Graph
from tilewright.formats.onnx.model import ValueInfo
from tilewright.onnx.registry import Call, op
from tilewright.ops import elementwise as ew
from tilewright.ops.autodiff import local_vjp
from tilewright.tensor.core import Tensor

DOMAIN: Final = "ai.onnx.preview.training"


def _between(graph: Graph, given: set[str], wanted: str) -> Graph:
    """The nodes that lead from ``given`` to ``wanted``, as a graph of their own."""
    makers = {out: node for node in graph.nodes for out in node.outputs if out}
    needed, stack = set(), [wanted]
    while stack:
        name = stack.pop()
        if name in given or name not in makers:
            continue
        node = makers[name]
        if id(node) not in needed:
            needed.add(id(node))
            stack += [i for i in node.inputs if i]
    nodes = tuple(n for n in graph.nodes if id(n) in needed)
    last = {name: i for i, n in enumerate(nodes) for name in n.inputs}
    return replace(
        graph,
        name=f"{graph.name}: {wanted}",
        nodes=nodes,
        inputs=tuple(ValueInfo(n) for n in sorted(given)),
        outputs=(ValueInfo(wanted),),
        last_use={**last, wanted: len(nodes)},
    )


@op("Gradient", domain=DOMAIN)
def gradient(
    *inputs: Tensor,
    xs: tuple[str, ...],
    y: str,
    zs: tuple[str, ...] = (),
    ctx: Call,
) -> Any:
    """Derivatives of the sum of the value called ``y`` by those called ``xs``.

    The inputs are what xs and then zs (which are constant here) are taken to be; the graph's nodes
    from them to y are computed from these.
    """
    names = (*xs, *zs)
    if len(inputs) != len(names):
        raise FormatError(f"{len(names)} names want as many inputs, got {len(inputs)}")
    values = {n: Tensor(ew.mul(v.node, ew.ones_like(v.node))) if n in xs else v
              for n, v in zip(names, inputs)}  # fmt: skip
    trace = ctx.trace
    assert trace.scope is not None
    graph = _between(trace.scope.graph, set(names), y)
    step = trace.step
    (result,) = trace.run_graph(graph, [values[v.name] for v in graph.inputs], trace.scope)
    if trace.step is not step:
        raise UnsupportedError(f"the way from {', '.join(xs)} to {y} is computed in several parts")
    nodes = [values[n].node for n in xs]
    if not isinstance(result, Tensor):
        return tuple(Tensor(ew.zeros_like(n)) for n in nodes)
    found = local_vjp([result.node], [ew.ones_like(result.node)], nodes)
    return tuple(Tensor(ew.zeros_like(n) if g is None else g) for g, n in zip(found, nodes))


def _update(
    values: Sequence[Tensor], parts: int, rule: Callable[..., tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Inputs X.., G.., H.. (each as many) to new X.., H..."""
    if len(values) % parts or not values:
        raise FormatError(f"{len(values)} inputs are no multiple of {parts}")
    n = len(values) // parts
    made = [rule(*values[i::n]) for i in range(n)]
    return tuple(one for part in zip(*made) for one in part)


def _steps(t: Tensor, like: Tensor) -> Tensor:
    return t.astype(like.dtype).reshape(())


@op("Adagrad", domain=DOMAIN)
def adagrad(
    rate: Tensor,
    t: Tensor,
    *values: Tensor,
    decay_factor: float = 0.0,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
) -> Any:
    """Duchi et al. 2011, with a decaying rate and an L2 penalty."""
    r = rate.reshape(()) / (1.0 + _steps(t, rate) * decay_factor)

    def rule(x: Tensor, g: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        g = norm_coefficient * x + g
        h = h + g * g
        return x - r.astype(x.dtype) * g / (h.sqrt() + epsilon), h

    return _update(values, 3, rule)


@op("Adam", domain=DOMAIN)
def adam(
    rate: Tensor,
    t: Tensor,
    *values: Tensor,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> Any:
    """Kingma & Ba 2015, the correction of the bias in the rate, from the second step on."""
    from tilewright.tensor.elementwise import where

    steps = _steps(t, rate)
    corrected = rate.reshape(()) * (1.0 - beta**steps).sqrt() / (1.0 - alpha**steps)
    r = where(steps > 0, corrected, rate.reshape(()))

    def rule(x: Tensor, g: Tensor, v: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        g = norm_coefficient * x + g
        v = alpha * v + (1.0 - alpha) * g
        h = beta * h + (1.0 - beta) * g * g
        x = x - r.astype(x.dtype) * v / (h.sqrt() + epsilon)
        return (1.0 - norm_coefficient_post) * x, v, h

    return _update(values, 4, rule)


@op("Momentum", domain=DOMAIN)
def momentum(
    rate: Tensor,
    t: Tensor,
    *values: Tensor,
    alpha: float,
    beta: float,
    mode: str,
    norm_coefficient: float,
) -> Any:
    """Stochastic gradient descent with momentum, Nesterov's if ``mode`` says so."""
    from tilewright.tensor.elementwise import where

    if mode not in ("standard", "nesterov"):
        raise FormatError(f"mode is standard or nesterov, got {mode!r}")
    r = rate.reshape(())
    fresh = where(_steps(t, rate) > 0, r * 0.0 + beta, r * 0.0 + 1.0)

    def rule(x: Tensor, g: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        g = norm_coefficient * x + g
        v = alpha * v + fresh.astype(x.dtype) * g
        step = g + alpha * v if mode == "nesterov" else v
        return x - r.astype(x.dtype) * step, v

    return _update(values, 3, rule)

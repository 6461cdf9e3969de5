"""Reverse-mode differentiation, as a transformation of graphs.

:func:`vjp` walks from outputs to inputs and asks each op's table entry for its part of the chain
rule. What it returns is graph code like any other: it can be compiled, and differentiated again.
Forward mode (:func:`jvp`) is reverse mode twice, since the first result is linear in the
cotangents.

Two ops exist for the sake of differentiation: ``checkpoint`` and ``custom_gradient``. Their inputs
begin with the results of the forward computation, their parts are these results unchanged, and only
the gradient differs. A compiler replaces their parts by what :func:`resolve` says and need not know
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tilewright.dtypes import DType
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.graph import Node, Shape, shape_of, topological
from tilewright.ops.arithmetic import add
from tilewright.ops.creation import zeros_like
from tilewright.ops.table import OpDef, get, make_parts, register
from tilewright.ops.views import barrier, stop_gradient

__all__ = ["checkpoint", "custom_gradient", "jvp", "local_vjp", "resolve", "vjp"]

Function = Callable[..., Node | Sequence[Node]]
Rule = Callable[
    [tuple[Node, ...], tuple[Node, ...], tuple[Node | None, ...]], Sequence[Node | None]
]


def vjp(
    outputs: Sequence[Node], cotangents: Sequence[Node | None], wrt: Sequence[Node]
) -> list[Node | None]:
    """The product of ``cotangents`` with the Jacobian of ``outputs`` by each node of ``wrt``.

    Args:
        outputs: float nodes.
        cotangents: one per output, of its shape and dtype; None is zero.
        wrt: any nodes, in the middle of the graph too.

    Returns a node of its shape and dtype for each of ``wrt``; None for those that no output depends
    on in a differentiable way (integers and bools never are).

    Raises :class:`ShapeError` when a cotangent does not match its output, and
    :class:`UnsupportedError` when a path to ``wrt`` leads through an op without gradient.
    """
    return _backward(topological(outputs), outputs, cotangents, wrt)


def local_vjp(
    outputs: Sequence[Node], cotangents: Sequence[Node | None], wrt: Sequence[Node]
) -> list[Node | None]:
    """:func:`vjp` where no node of ``wrt`` is computed from another: nothing behind them is looked
    at, which is what a rule that differentiates a small graph of its own wants."""
    return _backward(_between(outputs, wrt), outputs, cotangents, wrt)


def _between(outputs: Sequence[Node], stops: Sequence[Node]) -> list[Node]:
    """What ``outputs`` depend on, inputs first, up to and with ``stops``."""
    ends = set(stops)
    order: list[Node] = []
    done: set[Node] = set()
    for root in outputs:
        stack = [(root, 0)]
        while stack:
            node, i = stack.pop()
            if node in done:
                continue
            if i < len(node.inputs) and node not in ends:
                stack.append((node, i + 1))
                if node.inputs[i] not in done:
                    stack.append((node.inputs[i], 0))
                continue
            done.add(node)
            order.append(node)
    return order


def _backward(
    order: Sequence[Node],
    outputs: Sequence[Node],
    cotangents: Sequence[Node | None],
    wrt: Sequence[Node],
) -> list[Node | None]:
    reaches = _reaching(order, set(wrt))
    grads: dict[Node, Node] = {}
    parts: dict[Node, dict[int, Node]] = {}  # by op with several results: its parts' gradients
    for output, cotangent in zip(outputs, cotangents, strict=True):
        if cotangent is not None:
            _check_cotangent(output, cotangent)
            if output in reaches:
                _accumulate(grads, output, cotangent)
    for node in reversed(order):
        if node not in reaches or (node not in grads and node not in parts):
            continue
        if node.op == "part":
            parts.setdefault(node.inputs[0], {})[node.attrs["index"]] = grads[node]
            continue
        if not any(x in reaches for x in node.inputs):
            continue
        for x, g in zip(node.inputs, _pull_back(node, grads, parts), strict=True):
            if g is not None and x in reaches:
                _accumulate(grads, x, g)
    return [grads.get(x) for x in wrt]


def _reaching(order: Sequence[Node], wrt: set[Node]) -> set[Node]:
    """The nodes of ``order`` through which a gradient flows to ``wrt``."""
    found: set[Node] = set()
    for node in order:
        flows = node in wrt or any(x in found for x in node.inputs)
        if flows and (node.dtype.is_float or _several(node)):
            found.add(node)
    return found


def _several(node: Node) -> bool:
    return not node.is_leaf and node.op != "part" and get(node.op).infer_parts is not None


def _check_cotangent(output: Node, cotangent: Node) -> None:
    if cotangent.shape != output.shape or cotangent.dtype is not output.dtype:
        raise ShapeError(
            f"vjp: the cotangent of {output.dtype}{shape_of(output.shape)} has the same shape and "
            f"dtype, got {cotangent.dtype}{shape_of(cotangent.shape)}"
        )


def _accumulate(grads: dict[Node, Node], node: Node, grad: Node) -> None:
    grads[node] = add(grads[node], grad) if node in grads else grad


def _pull_back(
    node: Node, grads: Mapping[Node, Node], parts: Mapping[Node, Mapping[int, Node]]
) -> Sequence[Node | None]:
    """What ``node``'s table entry makes of its gradient, checked."""
    entry = get(node.op)
    if entry.gradient is None:
        label = f" {node.name!r}" if node.name else ""
        raise UnsupportedError(
            f"the op {node.op!r}{label} has no gradient, and the result depends through it on "
            "what is differentiated: put stop_gradient around it if it is meant to be a constant, "
            "or give it a rule with custom_gradient"
        )
    if node in parts:
        assert entry.infer_parts is not None
        count = len(entry.infer_parts(node.inputs, node.attrs))
        found = entry.gradient(node, tuple(parts[node].get(i) for i in range(count)))
    else:
        found = entry.gradient(node, grads[node])
    for i, (x, g) in enumerate(zip(node.inputs, found, strict=True)):
        if g is not None and (g.shape != x.shape or g.dtype is not x.dtype):
            raise ShapeError(
                f"the gradient rule of {node.op!r} gave {g.dtype}{shape_of(g.shape)} for input {i},"
                f" which is {x.dtype}{shape_of(x.shape)}"
            )
    return found


def jvp(
    outputs: Sequence[Node], wrt: Sequence[Node], tangents: Sequence[Node | None]
) -> list[Node]:
    """The Jacobian of ``outputs`` by ``wrt`` times ``tangents`` (forward mode).

    ``tangents`` are of the shapes and dtypes of ``wrt``; None is zero. The result has a node of its
    shape and dtype per output. The vjp is linear in its cotangents, so its own vjp is the jvp
    (Townsend 2017, "A new trick for calculating Jacobian vector products").
    """
    dummies = [stop_gradient(zeros_like(y)) for y in outputs]
    pulled = vjp(outputs, dummies, wrt)
    kept = [
        (g, t) for g, t in zip(pulled, tangents, strict=True) if g is not None and t is not None
    ]
    pushed = vjp([g for g, _ in kept], [t for _, t in kept], dummies)
    return [zeros_like(y) if t is None else t for y, t in zip(outputs, pushed)]


# --- results with a gradient of their own --------------------------------------------------------


def _forward_parts(
    inputs: Sequence[Node], attrs: Mapping[str, Any]
) -> Sequence[tuple[Shape, DType]]:
    return [(x.shape, x.dtype) for x in inputs[: attrs["outputs"]]]


def _no_single_result(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    raise ShapeError("has several results: use make_parts")


def _register(name: str, gradient: Callable[[Node, Any], Sequence[Node | None]]) -> None:
    register(
        OpDef(
            name,
            _no_single_result,
            lambda *arrays, outputs, **attrs: tuple(arrays[:outputs]),
            infer_parts=_forward_parts,
            gradient=gradient,
        )
    )


def resolve(node: Node) -> Node:
    """``node``, or the node whose value it has if it is there for differentiation only."""
    while True:
        if node.op == "part" and node.inputs[0].op in ("checkpoint", "custom_gradient"):
            node = node.inputs[0].inputs[node.attrs["index"]]
        elif node.op == "stop_gradient":
            node = node.inputs[0]
        else:
            return node


def _wrapped(fn: Function, inputs: Sequence[Node], wrap: Callable[[list[Node]], Any]) -> Any:
    """``fn(*inputs)`` with its results replaced by what ``wrap`` makes of them."""
    result = fn(*inputs)
    single = isinstance(result, Node)
    parts = wrap([result] if isinstance(result, Node) else list(result))
    return parts[0] if single else tuple(parts)


def custom_gradient(fn: Function, rule: Rule) -> Function:
    """``fn`` with a gradient rule of its own.

    Args:
        fn: ``(*nodes) -> node or nodes``. What it closes over is constant to differentiation.
        rule: ``(inputs, outputs, grads) -> one node or None per input``; each argument is a
            tuple, ``grads`` with None for outputs that got no gradient.
    """

    def call(*inputs: Node) -> Any:
        return _wrapped(
            fn,
            inputs,
            lambda outs: make_parts(
                "custom_gradient", *outs, *inputs, outputs=len(outs), rule=rule
            ),
        )

    return call


def _custom_gradient(node: Node, grads: tuple[Node | None, ...]) -> list[Node | None]:
    count = node.attrs["outputs"]
    outs = tuple(
        Node("part", (node,), y.shape, y.dtype, {"index": i})
        for i, y in enumerate(node.inputs[:count])
    )
    found = node.attrs["rule"](node.inputs[count:], outs, grads)
    return [*(None for _ in outs), *found]


_register("custom_gradient", _custom_gradient)


# --- rematerialisation ---------------------------------------------------------------------------

SMALL: Final = 64  # bytes: a leaf up to here (a random key) is not worth keeping results for


def checkpoint(fn: Function) -> Function:
    """``fn``, computed a second time for its gradient instead of keeping what is in between.

    The forward pass keeps only the arguments and what ``fn`` closes over (Chen et al. 2016). The
    second computation starts from barriers behind the gradient that has arrived, so it happens
    when it is needed and is never merged with the first. What depends on no array at all (masks of
    indices, random numbers from a key) is computed again too.
    """

    def call(*inputs: Node) -> Any:
        entries = [barrier(x) for x in inputs]
        return _wrapped(fn, entries, lambda outs: _checkpointed(outs, entries))

    return call


def _checkpointed(outs: list[Node], entries: list[Node]) -> tuple[Node, ...]:
    """``outs`` as parts of an op that remembers where their computation begins."""
    again: set[Node] = set()  # what to compute a second time: it depends on an entry
    generated: set[Node] = set()  # or on no array
    order = _between(outs, entries)
    for node in order:
        if any(x in again or x in entries for x in node.inputs):
            again.add(node)
        elif _is_small(node) or (not node.is_leaf and all(x in generated for x in node.inputs)):
            generated.add(node)
    sources = list(entries)
    seen = set(entries)
    stack = [x for x in outs if x not in seen]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in again or (node in generated and not node.is_leaf):
            stack.extend(node.inputs)
        elif node.op not in ("const", "scalar"):
            sources.append(node)
    return make_parts("checkpoint", *outs, *sources, outputs=len(outs))


def _is_small(node: Node) -> bool:
    if node.op == "data":
        return bool(node.value.nbytes <= SMALL)
    return node.op in ("const", "scalar")


def _checkpoint_gradient(node: Node, grads: tuple[Node | None, ...]) -> list[Node | None]:
    count = node.attrs["outputs"]
    outs, sources = node.inputs[:count], node.inputs[count:]
    arrived = [g for g in grads if g is not None]
    new = {x: barrier(x, *arrived) for x in sources}
    starts = [new[x] for x in sources]
    for old in _between(outs, sources):
        if old not in new:
            new[old] = (
                old
                if old.is_leaf
                else Node(
                    old.op,
                    tuple(new[x] for x in old.inputs),
                    old.shape,
                    old.dtype,
                    old.attrs,
                    old.name,
                )
            )
    return [*(None for _ in outs), *local_vjp([new[y] for y in outs], grads, starts)]


_register("checkpoint", _checkpoint_gradient)

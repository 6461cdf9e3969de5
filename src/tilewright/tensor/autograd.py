"""Differentiation of tensors: ``backward``, and the functional transformations.

``backward`` walks from a loss to the leaves that require gradients and realises the loss and all
gradients in one program. ``grad``, ``value_and_grad``, ``vjp`` and ``jvp`` transform functions,
realise nothing, and nest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from tilewright.errors import DTypeError, ShapeError
from tilewright.graph import Node, const_node, topological
from tilewright.ops import autodiff, views
from tilewright.ops import elementwise as ew
from tilewright.runtime.interrupts import Held
from tilewright.tensor.core import DERIVED, LEAF, PLAIN, VARIABLE, Tensor, realize
from tilewright.tensor.modes import mode
from tilewright.tensor.nodes import own
from tilewright.tensor.sparse import SparseRows, settled, sparse_rows
from tilewright.tensor.tree import leaves, map_tree, replaced

__all__ = [
    "backward",
    "checkpoint",
    "custom_gradient",
    "grad",
    "jvp",
    "stop_gradient",
    "value_and_grad",
    "vjp",
]


def backward(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor | None] | None = None,
    *,
    retain_graph: bool = False,
) -> None:
    """Add to ``grad`` of every leaf the gradient of ``outputs``, weighted by ``cotangents``.

    Computes the outputs and the gradients in one program (inside a trace: when the trace runs).
    Tensors on the way that somebody still refers to are computed along, so that looking at them
    afterwards costs nothing; so is state that was assigned meanwhile (running statistics).

    Args:
        cotangents: one per output, of its shape; None is 1 and wants an output of one element.
        retain_graph: keep the outputs' history, so that ``backward`` can be called again.
    """
    weights = [None] * len(outputs) if cotangents is None else cotangents
    seeds = [_cotangent(y, c) for y, c in zip(outputs, weights, strict=True)]
    for y in outputs:
        if y._tracks == PLAIN:
            raise DTypeError(
                f"backward: this {y.dtype} tensor of shape {y.shape} was not computed from a tensor"
                " that requires gradients (set requires_grad), or an earlier backward() has "
                "released its history (pass retain_graph=True to it)"
            )
    roots = [y.node for y in outputs]
    reached: dict[Node, Tensor] = {}
    alive: list[Tensor] = []
    for node in topological(roots):
        tensor = None if node.owner is None else node.owner()
        if tensor is None:
            continue
        if tensor._tracks == LEAF:
            reached[node] = tensor
        elif tensor._tracks == DERIVED and tensor.node is node and node.value is None:
            alive.append(tensor)
    # a leaf that was assigned to has several nodes: their gradients are added up in the order of
    # their making, which does not depend on what has been computed meanwhile
    wrt = sorted(reached, key=lambda node: node.index)
    found = autodiff.vjp(roots, seeds, wrt)
    fresh: dict[Tensor, Node] = {}
    for tensor, gradient in zip([reached[node] for node in wrt], found):
        if gradient is not None:
            fresh[tensor] = ew.add(fresh[tensor], gradient) if tensor in fresh else gradient
    found_grads: dict[Tensor, Tensor] = {}
    for tensor, node in fresh.items():
        old = tensor.grad
        found_grads[tensor] = Tensor(node if old is None else ew.add(old.node, node))
    if mode.trace is None:
        _realize_gradients(list(found_grads.values()), [*outputs, *alive, *mode.take_assigned()])
    with Held():  # all of the gradients, or (when something was refused) none
        for tensor, grad in found_grads.items():
            tensor.grad = grad
        if not retain_graph:
            for y in outputs:
                if y._tracks == DERIVED:
                    y._tracks = PLAIN
                    if mode.trace is None:
                        realize(y)  # forgets the history


def _realize_gradients(grads: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Compute ``grads`` and ``others`` in one program; sparse ones stay so."""
    wanted, sparse = list(others), []
    for grad in grads:
        parts = sparse_rows(grad.node)
        if parts is None:
            wanted.append(grad)
        else:
            pair = Tensor(parts.ids), Tensor(parts.rows)
            wanted += pair
            sparse.append((grad, pair))
    realize(*wanted)
    for grad, (ids, rows) in sparse:
        node = settled(SparseRows(ids.node, rows.node), grad.shape[0])
        own(node, grad)
        grad.node = node


def _cotangent(output: Tensor, cotangent: Tensor | None) -> Node:
    if not output.dtype.is_float:
        raise DTypeError(f"only floating-point tensors have gradients, this one is {output.dtype}")
    if cotangent is None:
        if output.size != 1:
            raise ShapeError(
                f"the gradient of a tensor of shape {output.shape} wants a cotangent of that "
                "shape; only a tensor of one element has 1 as the default"
            )
        return views.broadcast(const_node(1.0, output.dtype), output.shape)
    if cotangent.shape != output.shape:
        raise ShapeError(f"a cotangent of shape {cotangent.shape} for an output of {output.shape}")
    return ew.cast(cotangent.node, output.dtype)


# transformations of functions


def _variables(tree: Any) -> tuple[Any, list[Tensor]]:
    """``tree`` with its floating-point tensors replaced by ones that can be told apart."""
    inner: list[Tensor] = []

    def variable(x: Tensor) -> Tensor:
        if not x.dtype.is_float:
            return x
        node = x.node  # a node of its own, that leads to the one it stands for
        node = Node("reshape", (node,), node.shape, node.dtype, {"shape": node.shape})
        fresh = Tensor(node)
        fresh._tracks = VARIABLE
        own(node, fresh)
        inner.append(fresh)
        return fresh

    return map_tree(variable, tree), inner


def _tracked_outside(roots: Sequence[Node], inner: Sequence[Tensor]) -> bool:
    """Whether ``roots`` depend on a leaf or an outer transformation's variable."""
    mine = {id(t) for t in inner}
    stack = list(roots)
    seen = set(stack)
    while stack:
        node = stack.pop()
        tensor = None if node.owner is None else node.owner()
        if tensor is not None and tensor._tracks in (LEAF, VARIABLE) and id(tensor) not in mine:
            return True
        if node.op != "stop_gradient":
            stack += [i for i in node.inputs if i not in seen]
            seen.update(node.inputs)
    return False


def _settled(tree: Any, tracked: bool) -> Any:
    """``tree`` with the history of its tensors known to matter, or not."""

    def settle(x: Tensor) -> Tensor:
        if not x._tracks and not tracked:
            return x
        result = Tensor(x.node)
        result._tracks = DERIVED if tracked and x.dtype.is_float else PLAIN
        return result

    return map_tree(settle, tree)


def value_and_grad(
    fn: Callable[..., Any], argnums: int | Sequence[int] = 0, *, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that returns ``(fn(...), gradients)``.

    Args:
        fn: returns a floating-point tensor of one element; with ``has_aux`` a pair of it and
            anything else.
        argnums: which arguments are differentiated: trees of tensors. The gradients have the
            tree's structure, None for integers and bool, zeros where ``fn`` does not depend on a
            tensor. For a sequence of positions the gradients are a tuple.
    """
    several = not isinstance(argnums, int)
    positions: tuple[int, ...] = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(fn)
    def transformed(*args: Any, **kwargs: Any) -> Any:
        given = [args[i] for i in positions]
        variables, inner = _variables(given)
        changed = list(args)
        for i, v in zip(positions, variables):
            changed[i] = v
        before, mode.grad = mode.grad, True
        try:
            result = fn(*changed, **kwargs)
        finally:
            mode.grad = before
        loss, aux = result if has_aux else (result, None)
        if not isinstance(loss, Tensor):
            raise DTypeError(f"grad: the function returns a tensor, got {type(loss).__name__}")
        found = autodiff.vjp([loss.node], [_cotangent(loss, None)], [v.node for v in inner])
        tracked = _tracked_outside([loss.node], inner)
        grads = iter(
            [Tensor(ew.zeros_like(v.node) if g is None else g) for g, v in zip(found, inner)]
        )
        picked = _settled(
            [map_tree(lambda x: next(grads) if x.dtype.is_float else None, t) for t in given],
            tracked,
        )
        value = _settled((loss, aux) if has_aux else loss, tracked)
        return value, (tuple(picked) if several else picked[0])

    return transformed


def grad(
    fn: Callable[..., Any], argnums: int | Sequence[int] = 0, *, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that returns the gradients of ``fn``; see :func:`value_and_grad`.

    With ``has_aux`` it returns ``(gradients, aux)``.
    """
    both = value_and_grad(fn, argnums, has_aux=has_aux)

    @functools.wraps(fn)
    def transformed(*args: Any, **kwargs: Any) -> Any:
        value, gradients = both(*args, **kwargs)
        return (gradients, value[1]) if has_aux else gradients

    return transformed


def vjp(fn: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """``(fn(*primals), pull)`` where ``pull(cotangents)`` gives one gradient per primal.

    ``cotangents`` has the structure of the result; ``pull`` may be called any number of times.
    """
    variables, inner = _variables(list(primals))
    result = fn(*variables)
    outputs = [y for y in leaves(result) if y.dtype.is_float]
    tracked = _tracked_outside([y.node for y in outputs], inner)

    def pull(cotangents: Any) -> tuple[Any, ...]:
        given = [c for c, y in zip(leaves(cotangents), leaves(result)) if y.dtype.is_float]
        if len(given) != len(outputs):
            raise ShapeError(f"vjp: {len(given)} cotangents for {len(outputs)} results")
        seeds = [_cotangent(y, c) for y, c in zip(outputs, given)]
        found = autodiff.vjp([y.node for y in outputs], seeds, [v.node for v in inner])
        carries = tracked or any(c._tracks for c in given)
        grads = iter(
            [Tensor(ew.zeros_like(v.node) if g is None else g) for g, v in zip(found, inner)]
        )
        return tuple(
            _settled(map_tree(lambda x: next(grads) if x.dtype.is_float else None, p), carries)
            for p in primals
        )

    return _settled(result, tracked), pull


def jvp(fn: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """``(fn(*primals), derivative)`` along ``tangents``, which have the structure of ``primals``.

    Tangents of integers and bool are ignored; the derivative of such results is zeros.
    """
    variables, inner = _variables(list(primals))
    result = fn(*variables)
    given = [t for t, p in zip(leaves(list(tangents)), leaves(list(primals))) if p.dtype.is_float]
    if len(given) != len(inner):
        raise ShapeError(f"jvp: {len(given)} tangents for {len(inner)} primals")
    for t, v in zip(given, inner):
        if t.shape != v.shape:
            raise ShapeError(f"jvp: a tangent of shape {t.shape} for a primal of {v.shape}")
    outputs = [y for y in leaves(result) if y.dtype.is_float]
    seeds = [ew.cast(t.node, v.dtype) for t, v in zip(given, inner)]
    pushed = iter(autodiff.jvp([y.node for y in outputs], [v.node for v in inner], seeds))
    tracked = _tracked_outside([y.node for y in outputs], inner) or any(t._tracks for t in given)

    def derivative(y: Tensor) -> Tensor:
        return Tensor(next(pushed) if y.dtype.is_float else ew.zeros_like(y.node))

    return _settled(result, tracked), _settled(map_tree(derivative, result), tracked)


def stop_gradient(tree: Any) -> Any:
    """The tensors of ``tree`` as constants to differentiation."""
    return map_tree(lambda x: x.detach(), tree)


def _on_nodes(fn: Callable[..., Any], args: Sequence[Any], transform: Callable[[Any], Any]) -> Any:
    """``fn(*args)`` as a function of nodes that ``transform`` has changed."""
    inputs = leaves(list(args))
    structure: list[Any] = []

    def of_nodes(*nodes: Node) -> tuple[Node, ...]:
        given = []
        for x, node in zip(inputs, nodes):
            inside = Tensor(node)
            inside._tracks = x._tracks and DERIVED
            given.append(inside)
        result = fn(*replaced(list(args), given))
        structure.append(result)
        return tuple([y.node for y in leaves(result)])

    nodes = transform(of_nodes)(*[x.node for x in inputs])
    results = leaves(structure[0])
    made = []
    for node, y in zip(nodes, results):
        outer = Tensor(node)
        outer._tracks = y._tracks
        made.append(outer)
    return replaced(structure[0], made)


def checkpoint(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` with its intermediate values computed again for the gradient instead of kept.

    The results and the gradients have the same bits as without.
    """

    @functools.wraps(fn)
    def transformed(*args: Any, **kwargs: Any) -> Any:
        return _on_nodes(functools.partial(fn, **kwargs), args, autodiff.checkpoint)

    return transformed


def custom_gradient(
    fn: Callable[..., Any], rule: Callable[..., Sequence[Tensor | None]]
) -> Callable[..., Any]:
    """``fn`` with a gradient of its own.

    Args:
        fn: tensors (or trees of them) to tensors. What it closes over is constant.
        rule: ``(inputs, outputs, grads) -> one tensor or None per input``: three tuples of
            tensors, ``grads`` with None for results that got no gradient.
    """

    def node_rule(
        inputs: tuple[Node, ...], outputs: tuple[Node, ...], grads: tuple[Node | None, ...]
    ) -> list[Node | None]:
        found = rule(
            tuple([Tensor(n) for n in inputs]),
            tuple([Tensor(n) for n in outputs]),
            tuple([None if g is None else Tensor(g) for g in grads]),
        )
        return [None if g is None else g.node for g in found]

    @functools.wraps(fn)
    def transformed(*args: Any, **kwargs: Any) -> Any:
        return _on_nodes(
            functools.partial(fn, **kwargs),
            args,
            lambda of_nodes: autodiff.custom_gradient(of_nodes, node_rule),
        )

    return transformed

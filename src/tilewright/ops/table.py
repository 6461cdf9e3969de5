"""The op table: one entry per op, in the file of its family.

An entry says what the op's result looks like (``infer``), what it means (``reference``, NumPy),
and how a target runs it: an elementwise ``expression``, row statistics (norms), a view, or kernel
calls. ``make`` builds a checked node; ``evaluate`` runs a whole graph by the references alone,
which is the oracle that compiled programs are tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.dtypes import DType, bf16, from_float32, to_float32
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.graph import Graph, Node, Shape, shape_of
from tilewright.ops.calls import KernelCall

__all__ = [
    "OpDef",
    "RowStat",
    "evaluate",
    "evaluate_nodes",
    "get",
    "make",
    "make_parts",
    "names",
    "register",
    "weight_form",
]

Inputs = Sequence[Node]
Attrs = Mapping[str, Any]


@dataclass(frozen=True)
class RowStat:
    """One reduction over a row of x, as kernel source.

    ``update`` folds a block into the accumulator tile: it may name ``{x}`` (the block), ``{acc}``
    and earlier statistics ``{s0}``, ``{s1}``...; ``finish`` turns the accumulator into a scalar
    and may name ``{acc}``, ``{n}`` (the row's length) and the op's attributes. ``centred`` says
    that the block is not zero beyond the row's end and has to be masked.
    """

    update: str
    finish: str
    centred: bool = False


@dataclass(frozen=True)
class OpDef:
    """What the engine knows about one op.

    Attributes:
        name: the field's usual name.
        infer: ``(inputs, attrs) -> (shape, dtype)``; raises :class:`ShapeError`.
        reference: ``(*arrays, **attrs) -> array``: the definition, in NumPy.
        expression: kernel source of an elementwise op over ``{0}``, ``{1}``..., or a function from
            the node to it.
        stats, row_map: row statistics, then an elementwise map over ``{x}``, ``{s0}``, ``{0}``...
            (``{0}`` is the first input after x).
        view: ``(node, bound input) -> bound output`` for ops that move no data; None when these
            strides do not allow it, and the input is copied first.
        calls: ``(node, bound inputs, bound output) -> kernel calls``; with ``workspace`` a fourth
            argument, the list of its buffers.
        workspace: ``node -> ((dtype, shape), ...)``: memory that the kernels need meanwhile.
        infer_parts: for ops with several results, instead of ``infer``: ``(inputs, attrs) ->
            ((shape, dtype), ...)``; ``calls`` then gets a list of outputs and ``reference`` returns
            a tuple. See :func:`make_parts`.
        gradient: ``(node, grad) -> one node or None per input``: the product of ``grad`` (of the
            node's shape; a tuple with Nones for several results) with the op's Jacobian, as graph
            code. Absent: the op has no gradient.
        host: the op runs its reference on the host, between programs.
        absorb: for ops that do elementwise work on their results (:mod:`tilewright.ops.epilogue`):
            ``(node, operand, shape) -> (kind, shape)``, how ``operand`` lies beside the result and
            the shape in which it becomes an input; None where that is impossible or not worth it.
            The operand broadcasts to ``shape``, the node's own or a reshape of it that keeps the
            last axis. Asked with the node itself as operand: whether it takes such work at all.
        check: a view whose reference may refuse its input: it runs on the host as soon as the input
            is there, before what depends on it and before any state is overwritten.
        wrap: turns the output's plain buffer into what ``calls`` wants (quantised rows).
        state: index of the input whose buffer is written in place and is the result.
        weight_forms: in which form weight inputs are wanted, by input index: ``matrix`` or
            ``table``; anything else is a ``vector``.
    """

    name: str
    infer: Callable[[Inputs, Attrs], tuple[Shape, DType]]
    reference: Callable[..., Any]
    expression: str | Callable[[Node], str] | None = None
    stats: tuple[RowStat, ...] = ()
    row_map: str | None = None
    view: Callable[[Node, Any], Any] | None = None
    calls: Callable[..., list[KernelCall]] | None = None
    workspace: Callable[[Node], Sequence[tuple[DType, Shape]]] | None = None
    infer_parts: Callable[[Inputs, Attrs], Sequence[tuple[Shape, DType]]] | None = None
    gradient: Callable[[Node, Any], Sequence[Node | None]] | None = None
    host: bool = False
    absorb: Callable[[Node, Node, Shape], tuple[str, Shape] | None] | None = None
    check: bool = False
    wrap: Callable[[Node, Any], Any] | None = None
    state: int | None = None
    weight_forms: Mapping[int, str] = field(default_factory=dict)

    def source(self, node: Node) -> str:
        """The expression's template for ``node``."""
        assert self.expression is not None
        return self.expression if isinstance(self.expression, str) else self.expression(node)

    @property
    def is_rowwise(self) -> bool:
        """Whether the row fuser can generate code for it."""
        return self.expression is not None or self.row_map is not None


_OPS: dict[str, OpDef] = {}


def register(op: OpDef) -> OpDef:
    """Add an entry; a second one of the same name is a mistake."""
    if op.name in _OPS:
        raise ValueError(f"op {op.name!r} is registered twice")
    _OPS[op.name] = op
    return op


def get(name: str) -> OpDef:
    """The entry called ``name``; :class:`UnsupportedError` when there is none."""
    if name not in _OPS:
        raise UnsupportedError(f"no op is called {name!r}; known: {', '.join(sorted(_OPS))}")
    return _OPS[name]


def weight_form(node: Node, index: int) -> str:
    """In which form ``node`` wants its weight input ``index``."""
    if node.op not in _OPS:
        return "vector"
    return _OPS[node.op].weight_forms.get(index, "vector")


def names() -> list[str]:
    """Every op's name, sorted."""
    return sorted(_OPS)


def make(op: str, *inputs: Node, name: str = "", **attrs: Any) -> Node:
    """A node of ``op``, its shape and dtype inferred and checked."""
    entry = get(op)
    shape, dtype = _checked(op, inputs, lambda: entry.infer(inputs, attrs))
    return Node(op, tuple(inputs), shape, dtype, attrs, name)


def make_parts(op: str, *inputs: Node, name: str = "", **attrs: Any) -> tuple[Node, ...]:
    """The results of an op that has several, as nodes of op ``part``, in order."""
    entry = get(op)
    assert entry.infer_parts is not None, f"{op} has one result: use make"
    infer = entry.infer_parts
    parts = _checked(op, inputs, lambda: infer(inputs, attrs))
    node = Node(op, tuple(inputs), (), parts[0][1], attrs, name)
    return tuple(
        Node("part", (node,), shape, dtype, {"index": i}, name)
        for i, (shape, dtype) in enumerate(parts)
    )


def _checked(op: str, inputs: Inputs, infer: Callable[[], Any]) -> Any:
    """What ``infer`` says, any error of it a :class:`ShapeError` that names the op."""
    try:
        return infer()
    except ShapeError:
        raise
    except (ValueError, IndexError, TypeError) as error:
        got = ", ".join(f"{i.dtype}{shape_of(i.shape)}" for i in inputs)
        raise ShapeError(f"{op}({got}): {error}") from error


def evaluate(graph: Graph, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run ``graph`` by the ops' references, node by node.

    ``leaves`` has an array for every input and state by name; weights bring their own
    (``weight.numpy()``, or the array itself). Arrays of states are updated in place.
    """
    values = evaluate_nodes(graph.nodes(), leaves)
    return {name: values[node] for name, node in graph.outputs.items()}


def evaluate_nodes(order: Iterable[Node], leaves: Mapping[str, np.ndarray]) -> dict[Node, Any]:
    """The value of each node of ``order`` (inputs before users) by the ops' references.

    A bf16 value is a float32 array that holds only what bf16 can.
    """
    values: dict[Node, Any] = {}
    for node in order:
        values[node] = _evaluate(node, values, leaves)
    return values


def _evaluate(node: Node, values: Mapping[Node, Any], leaves: Mapping[str, np.ndarray]) -> Any:
    if node.value is not None:
        array = node.value.numpy()
        return to_float32(array) if node.dtype is bf16 else array
    if node.op == "weight":
        weight = node.attrs["weight"]
        return weight if isinstance(weight, np.ndarray) else weight.numpy()
    if node.op in ("const", "scalar"):
        return _rounded(node, np.asarray(node.attrs["value"]))
    if node.is_leaf:
        return leaves[node.attrs["name"]]
    if node.op == "part":
        return _rounded(node, values[node.inputs[0]][node.attrs["index"]])
    entry = get(node.op)
    with np.errstate(all="ignore"):
        result = entry.reference(*(values[i] for i in node.inputs), **node.attrs)
    if entry.state is not None or entry.wrap is not None or isinstance(result, tuple):
        return result
    return _rounded(node, result)


def _rounded(node: Node, result: Any) -> Any:
    """``result`` as an array of the node's dtype."""
    if node.dtype is bf16:
        return to_float32(from_float32(np.asarray(result, np.float32)))
    if node.op in ("const", "scalar") and node.dtype.is_integer:
        return np.asarray(result).astype(node.dtype.storage)  # wraps
    return np.asarray(result, node.dtype.storage)

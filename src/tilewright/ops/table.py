"""The op table: one entry per op, in the file of its family.

An entry says what the op's result looks like (``infer``), what it means (``reference``, NumPy),
and how a target runs it: an elementwise ``expression``, row statistics (norms), a view, or kernel
calls. ``make`` builds a checked node; ``evaluate`` runs a whole graph by the references alone,
which is the oracle that compiled programs are tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.graph import Graph, Node, Shape, shape_of
from tilewright.ops.calls import KernelCall

__all__ = ["OpDef", "RowStat", "evaluate", "get", "make", "names", "register", "weight_form"]

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
        expression: kernel source of an elementwise op over ``{0}``, ``{1}``...
        stats, row_map: row statistics, then an elementwise map over ``{x}``, ``{s0}``, ``{0}``...
            (``{0}`` is the first input after x).
        view: ``(node, bound input) -> bound output`` for ops that move no data.
        calls: ``(node, bound inputs, bound output) -> kernel calls``.
        wrap: turns the output's plain buffer into what ``calls`` wants (quantised rows).
        state: index of the input whose buffer is written in place and is the result.
        weight_forms: in which form weight inputs are wanted, by input index: ``matrix`` or
            ``table``; anything else is a ``vector``.
    """

    name: str
    infer: Callable[[Inputs, Attrs], tuple[Shape, DType]]
    reference: Callable[..., np.ndarray]
    expression: str | None = None
    stats: tuple[RowStat, ...] = ()
    row_map: str | None = None
    view: Callable[[Node, Any], Any] | None = None
    calls: Callable[[Node, Sequence[Any], Any], list[KernelCall]] | None = None
    wrap: Callable[[Node, Any], Any] | None = None
    state: int | None = None
    weight_forms: Mapping[int, str] = field(default_factory=dict)

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
    try:
        shape, dtype = entry.infer(inputs, attrs)
    except ShapeError:
        raise
    except (ValueError, IndexError, TypeError) as error:
        got = ", ".join(f"{i.dtype}{shape_of(i.shape)}" for i in inputs)
        raise ShapeError(f"{op}({got}): {error}") from error
    return Node(op, tuple(inputs), shape, dtype, attrs, name)


def evaluate(graph: Graph, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run ``graph`` by the ops' references, node by node.

    ``leaves`` has an array for every input and state by name; weights bring their own
    (``weight.numpy()``, or the array itself). Arrays of states are updated in place.
    """
    values: dict[Node, Any] = {}
    for node in graph.nodes():
        if node.op == "weight":
            weight = node.attrs["weight"]
            values[node] = weight if isinstance(weight, np.ndarray) else weight.numpy()
        elif node.is_leaf:
            values[node] = leaves[node.attrs["name"]]
        else:
            arrays = [values[i] for i in node.inputs]
            values[node] = get(node.op).reference(*arrays, **node.attrs)
    return {name: values[node] for name, node in graph.outputs.items()}

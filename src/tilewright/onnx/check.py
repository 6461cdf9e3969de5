"""What of a model is not supported: all of it, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tilewright.errors import FormatError, TilewrightError, UnsupportedError
from tilewright.formats.onnx import Graph, Model, NodeDef
from tilewright.formats.onnx.model import Ref
from tilewright.onnx.guards import check_call
from tilewright.onnx.registry import find
from tilewright.onnx.schema import has_schema_function

__all__ = ["Problem", "problems", "require_supported"]

_NODES: Final = 1 << 18  # once functions are expanded
_DEPTH: Final = 64  # functions that call functions


@dataclass(frozen=True)
class Problem:
    """A node that cannot be run, and why."""

    node: str
    op: str
    domain: str
    opset: int
    reason: str

    def __str__(self) -> str:
        where = self.domain or "ai.onnx"
        return f"{self.node}: {self.op} of {where} opset {self.opset}: {self.reason}"


def problems(model: Model) -> list[Problem]:
    """Every node that is not supported, in the order of the file."""
    found: list[Problem] = []
    _graph(model, model.graph, model.opsets, found)
    for function in model.functions.values():
        _graph(model, function.graph, {**model.opsets, **function.opsets}, found)
    return found


def require_supported(model: Model) -> None:
    """Raise :class:`UnsupportedError` with every problem, if there is one.

    A function that calls itself is a :class:`FormatError`.
    """
    nodes = _expanded(model)
    if nodes > _NODES:
        raise UnsupportedError(
            f"{model.path or 'the model'}: its functions expand to {nodes} nodes, at most {_NODES} "
            "can be run"
        )
    found = problems(model)
    if found:
        lines = "\n".join(f"  {p}" for p in found)
        count = "one node" if len(found) == 1 else f"{len(found)} nodes"
        raise UnsupportedError(f"{model.path or 'the model'}: {count} cannot be run:\n{lines}")


def _expanded(model: Model) -> int:
    """How many nodes there are once functions are written out."""
    counts: dict[tuple[str, str], int] = {}
    open_: set[tuple[str, str]] = set()

    def of_graph(graph: Graph) -> int:
        total = 0
        for node in graph.nodes:
            key = node.domain, node.op
            total += of_function(key) if key in model.functions else 1
            for value in node.attrs.values():
                for inner in value if isinstance(value, tuple) else (value,):
                    total += of_graph(inner) if isinstance(inner, Graph) else 0
        return total

    def of_function(key: tuple[str, str]) -> int:
        if key in open_ or len(open_) > _DEPTH:
            what = "calls itself" if key in open_ else f"lies more than {_DEPTH} calls deep"
            raise FormatError(f"function {key[1]!r} {what}", path=model.path)
        if key not in counts:
            open_.add(key)
            counts[key] = of_graph(model.functions[key].graph)
            open_.remove(key)
        return counts[key]

    return of_graph(model.graph)


def _graph(model: Model, graph: Graph, opsets: Mapping[str, int], found: list[Problem]) -> None:
    for node in graph.nodes:
        reason = _reason(model, node, opsets)
        opset = opsets.get(node.domain, 0)
        if reason:
            name = node.name or f"-> {', '.join(node.outputs)}"
            found.append(Problem(name, node.op, node.domain, opset, reason))
        for value in node.attrs.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, Graph):
                    _graph(model, inner, opsets, found)


def _reason(model: Model, node: NodeDef, opsets: Mapping[str, int]) -> str:
    if (node.domain, node.op) in model.functions:
        return ""
    if node.domain not in opsets and node.domain != "com.microsoft":
        return "its operator set is not imported by the model"
    opset = opsets.get(node.domain, 1)
    operator = find(node.domain, node.op, opset)
    if operator is None:
        return "" if has_schema_function(node, opset) else "there is no such operator here"
    attrs = {k: v for k, v in node.attrs.items() if not isinstance(v, Ref)}
    try:
        check_call(
            operator,
            node,
            {**dict.fromkeys(operator.required), **attrs}
            if len(attrs) < len(node.attrs)
            else attrs,
        )
    except TilewrightError as error:
        return str(error)
    return ""

"""Which ONNX operators there are: a decorator, and a table by domain, name and version.

An operator is a function from tensors to tensors (or to a tuple of them)::

    @op("Elu", since=6)
    def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
        return tilewright.elu(x, alpha)

Positional parameters are the node's inputs (an optional one that is left out is None), keyword-only
ones its attributes, with the specification's defaults; one without a default has to be there. A
parameter called ``ctx`` gets the :class:`Call`: how many outputs are wanted, the version of the
operator set, the bodies of control flow. ``since`` is the version of the operator set from which on
the function applies, until the next one that is registered.

What an operator has to know before it can be traced (shapes, axes, repetitions) are inputs named in
``host``: they arrive as NumPy arrays. If such a value depends on the model's inputs, the program is
cut there, and what comes after is compiled once per value. An operator whose result's *shape*
depends on data, or that is about strings, is ``boundary``: it runs in NumPy between programs.
"""

from __future__ import annotations

import bisect
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.formats.onnx import Graph, NodeDef

if TYPE_CHECKING:
    from tilewright.onnx.trace import Trace
    from tilewright.ops.random import Key

__all__ = ["Call", "Operator", "find", "op", "operators"]


@dataclass(frozen=True)
class Operator:
    """One version of an operator.

    Attributes:
        function: see the module's documentation.
        host: inputs (by position) whose contents are wanted; -1 stands for all.
        boundary: takes and returns NumPy arrays, between programs.
        raw: may be given what no tensor holds (strings, float8, sequences, None).
        fold: its result for known inputs is computed while tracing, where it is small.
        inputs: least and largest number of inputs.
        needed: inputs (by position) that are never None.
        attrs: names of the attributes; required: those without a default; kinds: their types, as
            they stand in the function's source.
    """

    name: str
    domain: str
    since: int
    function: Callable[..., Any]
    host: frozenset[int]
    boundary: bool
    raw: bool
    fold: bool
    inputs: tuple[int, int]
    needed: frozenset[int]
    attrs: frozenset[str]
    required: frozenset[str]
    wants_call: bool
    kinds: Mapping[str, str]

    def wants_host(self, position: int) -> bool:
        """Whether the contents of this input are wanted."""
        return position in self.host or -1 in self.host


_TABLE: dict[tuple[str, str], list[Operator]] = {}
_MANY = 1 << 30


def op(
    name: str,
    since: int = 1,
    domain: str = "",
    host: Sequence[int] = (),
    boundary: bool = False,
    raw: bool = False,
    fold: bool = True,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the operator ``name`` of ``domain`` from opset ``since`` on."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        low = high = 0
        needed = set()
        attrs, required, kinds = set(), set(), {}
        wants_call = False
        for p in inspect.signature(function).parameters.values():
            if p.kind is p.VAR_POSITIONAL:
                high = _MANY
            elif p.kind is p.KEYWORD_ONLY:
                if p.name == "ctx":
                    wants_call = True
                    continue
                attrs.add(p.name.rstrip("_"))
                kinds[p.name.rstrip("_")] = str(p.annotation)
                if p.default is p.empty:
                    required.add(p.name.rstrip("_"))
            else:
                if p.default is p.empty and "None" not in str(p.annotation):
                    needed.add(high)
                high += 1
                low += p.default is p.empty
        made = Operator(
            name, domain, since, function, frozenset(host), boundary, raw or boundary, fold,
            (low, high), frozenset(needed), frozenset(attrs), frozenset(required), wants_call,
            kinds,
        )  # fmt: skip
        versions = _TABLE.setdefault((domain, name), [])
        if any(v.since == since for v in versions):
            raise ValueError(f"{domain or 'ai.onnx'}.{name} since {since} is registered twice")
        bisect.insort(versions, made, key=lambda v: v.since)
        return function

    return register


def find(domain: str, name: str, opset: int) -> Operator | None:
    """The version of an operator that ``opset`` means; None when there is none."""
    _load()
    found = None
    for version in _TABLE.get((domain, name), ()):
        if version.since <= opset:
            found = version
    return found


def operators() -> dict[tuple[str, str], list[Operator]]:
    """Every operator's versions, by (domain, name)."""
    _load()
    return {key: list(versions) for key, versions in sorted(_TABLE.items())}


def _load() -> None:
    import tilewright.onnx.ops  # noqa: F401 (registers)


@dataclass(frozen=True)
class Call:
    """What an operator may want to know beside its inputs and attributes."""

    node: NodeDef
    opset: int
    n_outputs: int
    trace: Trace

    def run(self, graph: Graph, inputs: Sequence[Any]) -> list[Any]:
        """The outputs of a body, which may read values of the graphs around it."""
        return self.trace.run_body(graph, inputs)

    def value(self, value: Any) -> np.ndarray:
        """The contents of a value; cuts the program if they depend on the model's inputs."""
        return self.trace.contents([value])[0]

    def constant(self, value: Any) -> np.ndarray | None:
        """The contents of a value that depends on no input of the model, else None."""
        return self.trace.constant_of(value)

    def random_key(self, seed: float | None) -> Key:
        """The key of random numbers: of ``seed``, or another one for each operator and run."""
        from tilewright.ops.random import fold_in, key_of

        if seed is not None:
            return key_of(int(np.float32(seed).view(np.uint32)))
        assert self.trace.run_number is not None
        self.trace.drawn += 1
        return fold_in(key_of(self.trace.drawn), self.trace.run_number.node)

    def keep(self, value: Any) -> Any:
        """Tell the trace of a tensor that outlives this operator's own expressions."""
        return self.trace.keep(value)

    def known(self, value: Any) -> Any:
        """A constant's contents where they are few; otherwise the value itself."""
        return self.trace.folded(value)

    def cut(self) -> None:
        """Let a new program begin here: what follows looks like what came before."""
        self.trace.cut()

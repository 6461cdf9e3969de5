"""From an ONNX graph to lazy tensors, and from those to steps that run again.

A :class:`Trace` walks a graph's nodes for inputs of given shapes, calling the operators' functions.
What they return is lazy, so that at the end the outputs are one graph, and one program. Where an
operator has to know a value that depends on the model's inputs, or computes something whose shape
depends on data, the trace is *cut*: everything that is still wanted is computed, and the next
segment begins with it.

The steps of a trace are remembered as a tree (:class:`Step`): each has a program, and its children
are what came next, by what the host learnt at the cut. Another run with inputs of the same shapes
walks down the tree without Python between the launches; where it meets something new, the trace is
replayed up to there (without computing anything) and goes on.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tilewright.compiler.fusion import pending
from tilewright.compiler.passes.constants import varies
from tilewright.dtypes import bf16, from_float32
from tilewright.errors import FormatError, TilewrightError, UnsupportedError
from tilewright.formats.onnx import Graph, NodeDef
from tilewright.formats.onnx.model import Ref
from tilewright.graph import Node, upper_bound
from tilewright.onnx.guards import check_call, check_inputs, computed
from tilewright.onnx.registry import Call, Operator, find
from tilewright.onnx.segment import require_memory
from tilewright.onnx.steps import (
    Done,
    Grown,
    Numbers,
    Step,
    contents_key,
    flat,
    leaves_of,
    numbered,
    results_key,
)
from tilewright.onnx.symbolic import TAKE_SIZES, WANT_SIZES, Sizes, compute
from tilewright.onnx.values import (
    BFLOAT16,
    array_of_buffer,
    buffer_of,
    describe,
    is_tensor_dtype,
    leaf,
)
from tilewright.ops.table import evaluate_nodes
from tilewright.runtime.buffers import Buffer
from tilewright.sizes import Scope
from tilewright.tensor.core import Tensor
from tilewright.tensor.modes import no_grad

if TYPE_CHECKING:
    from tilewright.onnx.plan import Plan

__all__ = ["CutError", "Trace"]

_SMALL: Final = 1 << 14  # constants of up to so many elements are computed on the spot
_DEPTH: Final = 100


class _Scope:
    """Values by name: of one graph, and behind it those of the graphs around."""

    def __init__(self, graph: Graph, parent: _Scope | None) -> None:
        self.graph = graph
        self.parent = parent
        self.values: dict[str, Any] = {}

    def lookup(self, name: str) -> Any:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            if name in scope.graph.constants:
                return scope.graph.constants[name]
            scope = scope.parent
        raise FormatError(f"graph {self.graph.name!r} reads {name!r}, which nothing makes")


class CutError(Exception):
    """A trace with symbolic sizes would have to be cut."""


class Trace:
    """One walk over a model's graph. See the module's documentation.

    Args:
        plan: whose model it is, and where programs are kept.
        root: the step to fill in, or to replay.
        scope: symbols among the sizes of inputs. Such a trace has one segment: where it would have
            to be cut, :class:`CutError` says that it cannot be.
        inputs: values of the graph's inputs: a :class:`Buffer` becomes a tensor, arrays (strings
            and the like) are known, lists are sequences.
        done: what steps have computed in this run already: alive tensors, results on the host.
    """

    def __init__(
        self,
        plan: Plan,
        root: Step,
        inputs: Sequence[Any],
        done: Done,
        scope: Scope | None = None,
    ) -> None:
        self.plan = plan
        self.symbols = scope
        self.step = root
        self.done = done
        self.fed: list[Node] = []  # the leaves of inputs
        self.buffers: list[Buffer] = []  # of the tensors that were alive at the last cut
        self.leaves: list[weakref.ref[Tensor]] = []
        self.made: list[weakref.ref[Tensor]] = []
        self.dynamic = Numbers([])  # of this segment's leaves
        self.hidden: set[Node] = set()  # constants that are not to be looked at
        self.gone: weakref.WeakSet[Node] = weakref.WeakSet()  # those of the segments before
        self.constant: dict[Node, bool] = {}
        self.scope: _Scope | None = None
        self.opsets: list[dict[str, int]] = [dict(plan.model.opsets)]
        self.bindings: list[dict[str, Any]] = []  # attributes of the functions being expanded
        self.depth = 0
        self.grown: dict[Tensor, Node] = {}  # outputs that are inputs with more behind them
        self.inputs = [self._input(v) for v in inputs]
        self._begin([t for t in flat(self.inputs) if isinstance(t, Tensor)])
        self.run_number: Tensor | None = self.inputs.pop() if plan.draws else None
        self.drawn = 0  # how many operators have asked for random numbers

    def _input(self, value: Any) -> Any:
        if isinstance(value, Buffer):
            self.buffers.append(value)
            made = leaf(Buffer(value.dtype, value.shape, value.strides, value.pointer, value.owner))
            self.fed.append(made.node)
            return made
        return [self._input(v) for v in value] if isinstance(value, list) else value

    def run(self) -> Any:
        """Walk the graph to its end; returns the outputs, computed."""
        inputs, self.inputs = self.inputs, []
        with no_grad():
            results = self.run_graph(self.plan.model.graph, inputs, None)
            del inputs
            return self._end(results)

    # --- walking ---------------------------------------------------------------------------------

    def run_graph(self, graph: Graph, inputs: Sequence[Any], parent: _Scope | None) -> list[Any]:
        """The values of a graph's outputs."""
        if self.depth >= _DEPTH:
            raise UnsupportedError(f"graphs and functions are called more than {_DEPTH} deep")
        outside, self.scope = self.scope, _Scope(graph, parent)
        self.depth += 1
        scope = self.scope
        names = [v.name for v in graph.inputs]
        scope.values.update(zip(names, inputs))
        del inputs
        try:
            for i, node in enumerate(graph.nodes):
                self._node(node, scope)
                for name in node.inputs:
                    if graph.last_use.get(name) == i:
                        scope.values.pop(name, None)
                for name in node.outputs:
                    if name not in graph.last_use:
                        scope.values.pop(name, None)
            return [scope.lookup(v.name) for v in graph.outputs]
        finally:
            self.scope = outside
            self.depth -= 1

    def run_body(self, graph: Graph, inputs: Sequence[Any]) -> list[Any]:
        """The outputs of a graph inside a node: it sees what is around it."""
        if len(inputs) != len(graph.inputs):
            raise FormatError(
                f"body {graph.name!r} takes {len(graph.inputs)} values, it is given {len(inputs)}"
            )
        return self.run_graph(graph, inputs, self.scope)

    def _node(self, node: NodeDef, scope: _Scope) -> None:
        try:
            results = self._results(node, scope)
        except TilewrightError as error:
            if not getattr(error, "onnx_node", None):
                error.onnx_node = node.label  # type: ignore[attr-defined]
                error.args = (f"{node.label}: {error}", *error.args[1:])
            raise
        for name, value in zip(node.outputs, results):
            if name:
                scope.values[name] = self.keep(value)

    def keep(self, value: Any) -> Any:
        """Remember a tensor, so that a cut computes it while somebody holds it."""
        for one in flat(value):
            if isinstance(one, Tensor):
                self.made.append(weakref.ref(one))
        return value

    def _results(self, node: NodeDef, scope: _Scope) -> Sequence[Any]:
        function = self.plan.model.functions.get((node.domain, node.op))
        args = [scope.lookup(name) if name else None for name in node.inputs]
        attrs = self._attrs(node)
        if function is not None:
            return self._expand(function, args, attrs)
        opset = self.opsets[-1].get(node.domain, 1)
        operator = find(node.domain, node.op, opset)
        if operator is None:
            return self._expand_schema(node, opset, args, attrs)
        call = Call(node, opset, len(node.outputs), self)
        return self.call(operator, call, args, attrs)

    def _attrs(self, node: NodeDef) -> dict[str, Any]:
        attrs = dict(node.attrs)
        if self.bindings:
            for name, value in node.attrs.items():
                if isinstance(value, Ref):
                    bound = self.bindings[-1].get(value.name)
                    if bound is None:
                        del attrs[name]
                    else:
                        attrs[name] = bound
        return attrs

    def call(
        self, operator: Operator, call: Call, args: Sequence[Any], attrs: dict[str, Any]
    ) -> Sequence[Any]:
        """The results of one operator."""
        check_call(operator, call.node, attrs)
        keywords = {_python_name(operator, k): v for k, v in attrs.items()}
        if operator.wants_call:
            keywords["ctx"] = call
        while args and args[-1] is None:
            args = args[:-1]
        check_inputs(operator, args)
        if any(isinstance(a, Sizes) for a in args):
            found = NotImplemented if call.node.domain else compute(call.node.op, args, attrs)
            if found is not NotImplemented:
                return (found,)
            args = [self._from_sizes(operator, i, a) for i, a in enumerate(args)]
        if operator.boundary:
            return self._boundary(operator, args, keywords)
        known = all(not _has_tensor(a) for a in args)
        wanted = [i for i, a in enumerate(args) if operator.wants_host(i) and a is not None]
        if wanted:
            args = list(args)
            for i, array in zip(wanted, self.contents([args[i] for i in wanted])):
                args[i] = array
        given = [
            a if operator.wants_host(i) else self._argument(operator, i, a)
            for i, a in enumerate(args)
        ]
        results = _as_tuple(computed(operator, given, keywords))
        return tuple(self.folded(r) for r in results) if known and operator.fold else results

    def _from_sizes(self, operator: Operator, position: int, value: Any) -> Any:
        """What an operator is given for an array of symbolic sizes."""
        if not isinstance(value, Sizes) or operator.name in TAKE_SIZES:
            return value
        if operator.wants_host(position):
            return value.elements if operator.name in WANT_SIZES else value.numbers()
        return value.numbers() if operator.boundary else value.tensor()

    def _argument(self, operator: Operator, position: int, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            if is_tensor_dtype(value.dtype):
                return value if operator.raw and value.dtype == object else self.tensor(value)
            if not operator.raw:
                raise UnsupportedError(
                    f"input {position} is {describe(value)}: this operator works on numbers"
                )
        return value

    def tensor(self, array: np.ndarray) -> Tensor:
        """A constant as a tensor; the same one for the same array."""
        return self.plan.constant(array)

    def hide(self, array: np.ndarray) -> Tensor:
        """A constant that operators do not look at, so that a loop's iterations look alike."""
        made = leaf(buffer_of(array))
        self.hidden.add(made.node)
        return made

    def folded(self, value: Any) -> Any:
        """A constant's contents, where they are few."""
        if isinstance(value, list):
            return [self.folded(v) for v in value]
        if not isinstance(value, Tensor) or not self.is_constant(value.node):
            return value
        order = pending([value.node])
        if not self.hidden.isdisjoint(order):
            return value
        if any(math.prod(upper_bound(n.shape)) > _SMALL for n in order):
            return value
        array = evaluate_nodes(order, {})[value.node]
        if value.dtype is bf16:
            return from_float32(array).view(BFLOAT16)
        return np.asarray(array)

    def is_constant(self, node: Node) -> bool:
        """Whether a node depends on none of the model's inputs."""
        memo, stack = self.constant, [node]
        while stack:
            one = stack[-1]
            if one in memo:
                stack.pop()
            elif one in self.dynamic or varies(one):
                memo[one] = False
            elif one in self.gone:
                raise TilewrightError("internal: a tensor was made before a cut and is not kept")
            else:
                missing = [i for i in one.inputs if i not in memo] if one.value is None else []
                if missing:
                    stack += missing
                else:
                    memo[one] = one.value is not None or all(memo[i] for i in one.inputs)
        return memo[node]

    # --- functions -------------------------------------------------------------------------------

    def _expand(self, function: Any, args: Sequence[Any], attrs: dict[str, Any]) -> list[Any]:
        if len(args) > len(function.inputs):
            raise FormatError(
                f"function {function.name!r} takes {len(function.inputs)} inputs, got {len(args)}"
            )
        args = [*args, *[None] * (len(function.inputs) - len(args))]
        missing = set(function.attrs) - set(attrs)
        self.bindings.append({**function.defaults, **attrs} | dict.fromkeys(missing))
        self.opsets.append({**self.opsets[0], **function.opsets})
        try:
            return self.run_graph(function.graph, args, None)
        finally:
            self.bindings.pop()
            self.opsets.pop()

    def _expand_schema(
        self, node: NodeDef, opset: int, args: Sequence[Any], attrs: dict[str, Any]
    ) -> list[Any]:
        """An operator that the standard itself defines by others."""
        from tilewright.onnx.schema import schema_function

        function = schema_function(node, opset, args)
        if function is None:
            raise UnsupportedError(
                f"operator {node.op} of {node.domain or 'ai.onnx'} opset {opset} is not supported"
            )
        found = dict(
            zip([v.name for v in function.graph.outputs], self._expand(function, args, attrs))
        )
        return [found.get(name) for name in function.outputs]

    # --- cuts ------------------------------------------------------------------------------------

    def _begin(self, alive: list[Tensor]) -> None:
        self.gone.update(self.dynamic)
        self.leaves = [weakref.ref(t) for t in alive]
        self.dynamic = Numbers([t.node for t in alive])
        self.made = []
        self.constant = {}

    def contents(self, values: Sequence[Any]) -> list[np.ndarray]:
        """The contents of values, as arrays."""
        found = [self._folded_fully(v) for v in values]
        wanted = [v for v in found if isinstance(v, Tensor)]
        if not wanted:
            return found
        self._cut(wanted)
        if not self.step.kind:
            self.step.kind = "contents"
            self.step.wanted = tuple(self.dynamic[t.node] for t in wanted)
        arrays = [array_of_buffer(self.buffers[i]).copy() for i in self.step.wanted]
        self._descend(contents_key(arrays))
        rest = iter(arrays)
        return [next(rest) if isinstance(v, Tensor) else v for v in found]

    def cut(self) -> None:
        """Begin a new segment, as if the contents of nothing were wanted."""
        self._cut([])
        self.step.kind = "contents"
        self._descend(contents_key([]))

    def _is_hidden(self, value: Any) -> bool:
        if not self.hidden or not isinstance(value, Tensor) or not self.is_constant(value.node):
            return False
        return not self.hidden.isdisjoint(pending([value.node]))

    def constant_of(self, value: Any) -> np.ndarray | None:
        """The contents of a value, if it depends on no input and nothing hidden."""
        if self._is_hidden(value):
            return None
        found = self._folded_fully(value)
        return found if isinstance(found, np.ndarray) else None

    def _folded_fully(self, value: Any) -> Any:
        """A value's contents if it is constant, however large."""
        if isinstance(value, Tensor) and self.is_constant(value.node):
            from tilewright.compiler.realize import realize

            if value.node.value is None:
                require_memory(pending([value.node]))
                realize([value.node])
            return array_of_buffer(value.node.value)
        return value

    def _boundary(
        self, operator: Operator, args: Sequence[Any], keywords: dict[str, Any]
    ) -> Sequence[Any]:
        """An operator between programs."""
        found = [self._folded_fully(a) for a in args]
        tensors = [t for t in flat(found) if isinstance(t, Tensor)]
        if not tensors:
            return _as_tuple(computed(operator, found, keywords))
        self._cut(tensors)
        if not self.step.kind:
            self.step.kind = "call"
            self.step.wanted = tuple(numbered(a, self.dynamic) for a in found)
            self.step.function = lambda *a: _as_tuple(computed(operator, a, keywords))
            self.step.kept = tuple(range(len(self.buffers)))
        placed = self.step.on_host(self.buffers, self.done)
        alive = [ref() for ref in self.leaves]
        self.buffers = self.step.after_call(self.buffers, placed)
        self._descend(results_key(placed))
        made = [leaves_of(value) for value in placed]
        alive += [t for t in flat(made) if isinstance(t, Tensor)]
        self._begin([t for t in alive if t is not None])
        return made

    def _descend(self, key: Any) -> None:
        self.step = self.step.child(key) or self.step.add(key)

    def _cut(self, wanted: Sequence[Tensor], ending: bool = False) -> None:
        """Compute everything that is alive; the tensors become leaves of the next segment."""
        if self.symbols is not None and not ending:
            raise CutError
        alive: dict[int, Tensor] = {}
        for ref in (*self.leaves, *self.made, *map(weakref.ref, wanted)):
            tensor = ref()
            if tensor is not None and not self.is_constant(tensor.node):
                alive.setdefault(id(tensor), tensor)
        tensors = list(alive.values())
        lazy = [t for t in tensors if t.node not in self.dynamic]
        step = self.step
        if not step.kind:
            nodes = [t.node for t in lazy]
            grown = {i: self.grown[t] for i, t in enumerate(lazy) if t in self.grown}
            step.segment = (
                self.plan.segment(nodes, self.dynamic, self.symbols, grown) if lazy else None
            )
            results = iter(range(len(lazy)))
            step.carried = tuple(
                ~self.dynamic[t.node] if t.node in self.dynamic else next(results) for t in tensors
            )
        elif len(step.carried) != len(tensors):
            raise TilewrightError("internal: a trace does not repeat itself")
        if self.symbols is not None:  # nothing is computed: there are no numbers yet
            self.dynamic = Numbers([t.node for t in tensors])
            return
        self.buffers = step.compute(self.buffers, self.done)
        for tensor, buffer in zip(tensors, self.buffers):
            tensor.node = leaf(buffer).node
        self._begin(tensors)

    def _end(self, results: list[Any]) -> Any:
        results = [r.numbers() if isinstance(r, Sizes) else r for r in results]
        self.grown = {results[out]: self.fed[i] for i, out in self.plan.grown}
        lazy = [t for t in flat(results) if isinstance(t, Tensor)]
        varying = [t for t in lazy if not self.is_constant(t.node)]
        self._cut(varying, ending=True)
        if not self.step.kind:
            self.step.kind = "end"
            outputs = [numbered(self._fixed(r), self.dynamic) for r in results]
            for _, out in self.plan.grown:
                outputs[out] = Grown(outputs[out])
            self.step.outputs = outputs
        return [] if self.symbols is not None else self.step.results(self.buffers)

    def _fixed(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._fixed(v) for v in value]
        return self._folded_fully(value)


def _has_tensor(value: Any) -> bool:
    return any(isinstance(v, Tensor) for v in flat(value))


def _as_tuple(results: Any) -> Sequence[Any]:
    return results if isinstance(results, tuple) else (results,)


def _python_name(operator: Operator, attr: str) -> str:
    return attr if attr not in ("else", "lambda", "from", "is", "in") else attr + "_"

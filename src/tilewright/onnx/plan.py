"""A model's steps, by what its inputs look like."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType
from tilewright.formats.onnx import Model, NodeDef
from tilewright.graph import Node
from tilewright.onnx.quick import Run, quick_run
from tilewright.onnx.segment import Arena, Segment, Shared
from tilewright.onnx.steps import Done, Step, contents_key, results_key
from tilewright.onnx.trace import CutError, Trace
from tilewright.onnx.values import array_of_buffer, buffer_of, leaf
from tilewright.runtime.buffers import Buffer, from_array
from tilewright.runtime.launch import default_target
from tilewright.sizes import Scope
from tilewright.tensor.core import Tensor
from tilewright.tensor.dynamic import Pattern, choose

__all__ = ["Plan"]

_KEPT: Final = 64  # shapes of inputs
_SEEN: Final = 8  # sizes that a new one is compared with
_RANDOM: Final = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"]
    + ["RandomUniformLike"]
)


@dataclass(eq=False)
class _Family:
    """Inputs of the same ranks and element types.

    Attributes:
        steps: for many sizes each, newest first.
        seen: sizes of the last runs that needed a step.
        own: sizes that have a step of their own.
        reason: why no step can be for many sizes; empty when one can.
    """

    steps: list[tuple[Pattern, Step]] = field(default_factory=list)
    seen: deque[Any] = field(default_factory=lambda: deque(maxlen=_SEEN))
    own: set[Any] = field(default_factory=set)
    reason: str = ""


class Plan:
    """What has been compiled of a model.

    Args:
        model: what to run.
        pool: the threads.
        grown: (input, output) by position: an output that is the input with more behind it and
            stays in the input's memory (see :mod:`tilewright.onnx.stateful`).
        like: a plan of the same model, whose constants are used.
        compute: bf16: what operands of products are rounded to.
    """

    def __init__(
        self,
        model: Model,
        pool: Any,
        grown: Sequence[tuple[int, int]] = (),
        like: Plan | None = None,
        compute: DType | None = None,
    ) -> None:
        self.grown = tuple(grown)
        self.model = model
        self.pool = pool
        self.arena = Arena()
        self._roots: OrderedDict[Any, Step] = OrderedDict()
        self._families: dict[Any, _Family] = {}
        self.shared: Shared = Shared(compute) if like is None else like.shared
        self._constants: dict[int, tuple[np.ndarray, Tensor]] = (
            {} if like is None else like._constants
        )
        self.draws: bool = any(_draws(node) for graph in model.graphs() for node in graph.nodes)
        self._runs = 0

    def constant(self, array: np.ndarray) -> Tensor:
        """A tensor over a constant array, one per array."""
        found = self._constants.get(id(array))
        if found is None:
            found = self._constants[id(array)] = array, leaf(buffer_of(array))
        return found[1]

    def segment(
        self,
        roots: Sequence[Node],
        dynamic: Mapping[Node, int],
        scope: Scope | None = None,
        grown: Mapping[int, Node] | None = None,
    ) -> Segment:
        """A program for ``roots``; segments that look alike (of a loop) share one."""
        return Segment(
            roots, dynamic, default_target(), self.pool, self.arena, self.shared, scope, grown
        )

    def _root(self, inputs: Sequence[Any]) -> Step:
        """Where runs with inputs of these sizes begin."""
        key = results_key(list(inputs)), layouts(inputs)
        root = self._roots.get(key)
        if root is None:
            root = self._roots[key] = Step()
            if len(self._roots) > _KEPT:
                self._roots.popitem(last=False)
        else:
            self._roots.move_to_end(key)
        return root

    def _many(self, inputs: Sequence[Any]) -> tuple[Step, tuple[int, ...]] | None:
        """A step for many sizes that these inputs fit, and their symbols' values.

        One is made when inputs of other sizes have been seen. None when the sizes have a step of
        their own, when they are the first ones, or when a trace for many sizes is impossible.
        """
        if not all(isinstance(v, Buffer) for v in inputs):
            return None
        layouts = [(b.shape, b.strides, b.dtype) for b in inputs]
        exact = tuple(layouts)
        kind = tuple((len(b.shape), b.dtype) for b in inputs)
        found = self._families.setdefault(kind, _Family())
        if exact in found.own:
            return None
        for pattern, step in found.steps:
            values = pattern.match(layouts)
            if values is not None and step.segment.program.holds_at(values):  # type: ignore[union-attr]
                return step, values
        axes = choose(list(found.seen), layouts, {}) if found.seen and not found.reason else {}
        found.seen.append(layouts)
        if axes:
            try:
                made = self._trace_many(inputs, layouts, axes)
            except Exception as error:  # what cannot do with symbols is traced at its sizes
                found.reason = str(error) or "its trace has to be cut"
            else:
                found.steps.insert(0, made)
                del found.steps[_KEPT:]
                values = made[0].match(layouts)
                assert values is not None
                return made[1], values
        if len(found.own) < _KEPT:
            found.own.add(exact)
        return None

    def assumptions(self) -> list[str]:
        """For each family of inputs what its steps for many sizes assume, or why there are none."""
        found = []
        for family in self._families.values():
            found += [" and ".join(p.scope.guard_texts()) for p, _ in family.steps]
            if family.reason:
                found.append(f"one size a program: {family.reason}")
        return found

    def _trace_many(self, inputs: Sequence[Any], layouts: Any, axes: Any) -> tuple[Pattern, Step]:
        pattern = Pattern(layouts, axes, [leaf(b) for b in inputs])
        step = Step()
        try:
            Trace(self, step, pattern.buffers, {}, pattern.scope).run()
        finally:
            pattern.scope.open = False
        if step.segment is None:
            raise CutError
        return pattern, step

    def quick(
        self, inputs: Sequence[Any], names: Sequence[str], outputs: Sequence[str]
    ) -> Run | None:
        """A shortcut for runs with such inputs, if there is one (:mod:`tilewright.onnx.quick`)."""
        return None if self.draws else quick_run(self._root(inputs), inputs, names, outputs)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """The outputs' values: arrays, lists of arrays (sequences) or None.

        ``inputs``: buffers, arrays of what no tensor holds, lists of those.
        """
        if self.draws:  # one more input, from which random numbers come
            inputs = [*inputs, from_array(np.array(self._runs, np.uint32))]
            self._runs = (self._runs + 1) & 0xFFFFFFFF
        many = self._many(inputs)
        if many is not None:
            end, values = many
            assert end.segment is not None
            results = end.segment.run(inputs, values)
            return end.results(end.alive(inputs, results))
        root = self._root(inputs)
        done: Done = {}
        step: Step | None = root
        alive = flatten(inputs)
        while step is not None and step.kind:
            alive = step.compute(alive, done)
            if step.kind == "end":
                return step.results(alive)
            if step.kind == "contents":
                arrays = [array_of_buffer(alive[i]) for i in step.wanted]
                step = step.child(contents_key(arrays))
            else:
                placed = step.on_host(alive, done)
                alive = step.after_call(alive, placed)
                step = step.child(results_key(placed))
        return Trace(self, root, inputs, done).run()


def _draws(node: NodeDef) -> bool:
    """Whether a node wants other random numbers in every run."""
    if node.domain or node.attrs.get("seed") is not None:
        return False
    if node.op == "Dropout":
        return (len(node.inputs) > 2 and node.inputs[2] != "") or node.attrs.get("is_test") == 0
    return node.op in _RANDOM


def layouts(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Strides of the tensors among ``inputs``."""
    return tuple(b.strides for b in flatten(inputs))


def flatten(inputs: Any) -> list[Buffer]:
    """The tensors in a nest of lists."""
    if isinstance(inputs, (list, tuple)):
        return [b for v in inputs for b in flatten(v)]
    return [inputs] if isinstance(inputs, Buffer) else []

"""Runs of small models: the checks and addresses of a run that is like one before, and no more.

A model of a few microseconds is slower to ask than to compute. When a whole run is one program, its
inputs are plain arrays and its outputs memory of their own, this is what is left to do: see that
the inputs look as they did, write addresses into the launch table, go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import bf16
from tilewright.onnx.steps import Number, Step
from tilewright.runtime.buffers import Buffer, address_of, dense_strides

__all__ = ["quick_run"]

Run = Callable[[Mapping[str, Any]], "dict[str, np.ndarray] | None"]


def quick_run(
    step: Step, inputs: Sequence[Any], names: Sequence[str], outputs: Sequence[str]
) -> Run | None:
    """A function from feeds to results, None from it when the feeds look otherwise.

    Args:
        step: what ran for these inputs.
        inputs: as the plan took them.
        names, outputs: of the model's inputs and outputs.

    Returns None when the run is not of that simple kind.
    """
    segment = step.segment
    if step.kind != "end" or not step.outputs:
        return None
    if not all(isinstance(b, Buffer) and b.dtype is not bf16 for b in inputs):
        return None
    if segment is None:
        return _copies(step, inputs, names, outputs)
    program = segment.program
    first = len(segment.template)
    made: list[tuple[str, tuple[int, ...], np.dtype, int]] = []
    for name, out in zip(outputs, step.outputs):
        if type(out) is not Number or step.carried[out] < 0:
            return None
        place = program.outputs[segment.places[step.carried[out]]]
        dense = dense_strides(place.shape)
        if place.place < first or place.offset or place.strides != dense or place.dtype is bf16:
            return None
        made.append((name, place.shape, place.dtype.storage, place.place))
    if sorted(m[3] for m in made) != list(range(first, first + len(program.output_bytes))):
        return None
    if any(
        np.prod(shape, dtype=np.int64) * dtype.itemsize < program.output_bytes[at - first]
        for _, shape, dtype, at in made
    ):
        return None
    places = {number: place for place, number in segment.inputs}
    wanted = [
        (name, buffer.shape, buffer.dtype.storage, places.get(i))
        for i, (name, buffer) in enumerate(zip(names, inputs))
    ]
    count = len(wanted)
    template = [*segment.template, *(0 for _ in made), 0]
    arena, numbers, array = segment.arena, segment.numbers, np.ndarray
    run, empty = program.run, np.empty

    def call(feeds: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        if len(feeds) != count:
            return None
        addresses = template.copy()
        for name, shape, dtype, place in wanted:
            value = feeds.get(name)
            if (
                type(value) is not array
                or value.shape != shape
                or value.dtype != dtype
                or not value.flags.c_contiguous
            ):
                return None
            if place is not None:
                addresses[place] = address_of(value)
        results = {}
        for name, shape, dtype, place in made:
            out = results[name] = empty(shape, dtype)
            addresses[place] = address_of(out)
        addresses[-1] = arena.memory.pointer
        run(addresses, numbers)
        return results

    return call


def _copies(
    step: Step, inputs: Sequence[Any], names: Sequence[str], outputs: Sequence[str]
) -> Run | None:
    """The shortcut for a model whose outputs are inputs."""
    if not all(type(o) is Number for o in step.outputs):
        return None
    wanted = [(name, b.shape, b.dtype.storage) for name, b in zip(names, inputs)]
    sources = [(out, names[~step.carried[o]]) for out, o in zip(outputs, step.outputs)]

    def call(feeds: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        if len(feeds) != len(wanted):
            return None
        for name, shape, dtype in wanted:
            value = feeds.get(name)
            if type(value) is not np.ndarray or value.shape != shape or value.dtype != dtype:
                return None
        return {out: np.array(feeds[name], order="C") for out, name in sources}

    return call

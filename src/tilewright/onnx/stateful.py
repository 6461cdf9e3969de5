"""Models with a past: what comes out as ``present`` goes in as ``past``, without a copy.

A decoder's graph takes the keys and values of earlier tokens and returns them with those of the new
ones behind. Fed by hand that copies the whole past in every step. A :class:`Stateful` keeps each
pair in one block of memory with room to spare: the input is a view of its first positions, and the
concatenation only writes what is new. Programs are for any length (:mod:`tilewright.sizes`), so a
step compiles nothing once a few lengths have been seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import ShapeError
from tilewright.onnx.plan import Plan
from tilewright.onnx.segment import FullError
from tilewright.onnx.values import dtype_of
from tilewright.runtime.buffers import Buffer, dense_strides
from tilewright.runtime.memory import take

if TYPE_CHECKING:
    from tilewright.onnx.session import Session, ValueSpec

__all__ = ["Stateful", "past_pairs"]


def past_pairs(inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, str]:
    """Which outputs are fed back into which inputs, by the names that exports use.

    ``past_key_values.0.key`` and ``present.0.key``; ``past_0`` and ``present_0``; ``past`` and
    ``present``.
    """
    found = {}
    for name in inputs:
        for old, new in (
            ("past_key_values", "present"), ("past_key_values", "present_key_values"),
            ("past_key", "present_key"), ("past_value", "present_value"), ("past", "present"),
        ):  # fmt: skip
            if name.startswith(old) and new + name[len(old) :] in outputs:
                found[name] = new + name[len(old) :]
                break
    return found


class _Cache:
    """One pair's memory: a tensor whose axis ``axis`` has room for ``capacity``."""

    def __init__(self, dtype: DType, shape: Sequence[int], axis: int, capacity: int) -> None:
        self.dtype = dtype
        self.axis = axis
        self.shape = [capacity if a == axis else n for a, n in enumerate(shape)]
        self.strides = dense_strides(self.shape)
        self.memory = take(int(np.prod(self.shape)) * dtype.nbytes)
        self.length = 0

    def view(self) -> Buffer:
        """What the model takes: the positions that are filled."""
        shape = tuple(self.length if a == self.axis else n for a, n in enumerate(self.shape))
        return Buffer(self.dtype, shape, self.strides, self.memory.pointer, self.memory)

    def grow(self, capacity: int) -> None:
        """Move to a larger block."""
        if capacity <= self.shape[self.axis]:
            return
        old = self.view().numpy()
        made = _Cache(self.dtype, self.shape, self.axis, capacity)
        made.length = self.length
        made.view().numpy()[...] = old
        self.shape, self.strides, self.memory = made.shape, made.strides, made.memory


class Stateful:
    """A session that keeps its past; made by :meth:`Session.stateful`.

    Attributes:
        pairs: outputs by the inputs that they are fed back into.
        inputs, outputs: what is left of the session's.
    """

    def __init__(self, session: Session, pairs: Mapping[str, str] | None, capacity: int) -> None:
        names = [s.name for s in session.inputs]
        outputs = [s.name for s in session.outputs]
        self.pairs = past_pairs(names, outputs) if pairs is None else dict(pairs)
        wrong = [n for pair in self.pairs.items() for n in pair if n not in (*names, *outputs)]
        if wrong or not self.pairs:
            raise ShapeError(
                f"the model has no {', '.join(map(repr, wrong)) or 'past inputs'}: its inputs are "
                f"{', '.join(names)}, its outputs {', '.join(outputs)}"
            )
        self._session = session
        self._capacity = capacity
        grown = [(names.index(a), outputs.index(b)) for a, b in self.pairs.items()]
        self._plan = Plan(session.model, session.pool, grown, like=session.plan)
        self.inputs = tuple(s for s in session.inputs if s.name not in self.pairs)
        fed_back = set(self.pairs.values())
        self.outputs = tuple(s for s in session.outputs if s.name not in fed_back)
        self._caches: dict[str, _Cache] = {}

    @property
    def length(self) -> int:
        """How many positions the past has."""
        return max((c.length for c in self._caches.values()), default=0)

    def reset(self, length: int = 0) -> None:
        """Forget the past, or all of it but its first ``length`` positions."""
        if length > self.length:
            raise ShapeError(f"the past has {self.length} positions, not {length}")
        for cache in self._caches.values():
            cache.length = length
        if not length:
            self._caches = {}

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """One step: as :meth:`Session.run`, without the inputs and outputs that are the past."""
        session = self._session
        with session.lock:
            given = session.checked(feeds, self.inputs)
            if not self._caches:
                self._begin(given)
            while True:
                values = [
                    self._caches[s.name].view() if s.name in self._caches else given[s.name]
                    for s in session.inputs
                ]
                try:
                    results = self._plan.run(values)
                except FullError as error:
                    self._make_room(error.wanted)
                    continue
                break
            found = dict(zip([s.name for s in session.outputs], results))
            for name, present in self.pairs.items():
                cache = self._caches[name]
                cache.length = found.pop(present).shape[cache.axis]
        wanted = list(found) if outputs is None else outputs
        missing = [n for n in wanted if n not in found]
        if missing:
            raise ShapeError(f"there is no output {', '.join(map(repr, missing))} to be had")
        return {name: found[name] for name in wanted}

    def _begin(self, given: Mapping[str, Any]) -> None:
        """Make empty caches, in sizes that fit the other inputs."""
        sizes: dict[str, int] = {}
        for spec in self.inputs:
            for n, label in zip(given[spec.name].shape, spec.shape or ()):
                if isinstance(label, str):
                    sizes.setdefault(label, n)
        for spec in self._session.inputs:
            if spec.name in self.pairs:
                axis = _growing_axis(spec)
                shape = [
                    n if isinstance(n, int) else sizes.get(n or "", 1) for n in spec.shape or ()
                ]
                dtype = dtype_of(np.dtype(spec.dtype))
                assert dtype is not None
                self._caches[spec.name] = _Cache(dtype, shape, axis, self._capacity)

    def _make_room(self, wanted: Sequence[int]) -> None:
        for cache in self._caches.values():
            most = max(wanted[cache.axis], self._capacity)
            cache.grow(1 << (most - 1).bit_length())


def _growing_axis(spec: ValueSpec) -> int:
    """The axis along which a past grows: the symbolic one that is not the batch."""
    if spec.shape is None:
        raise ShapeError(f"the model does not say which shape its input {spec.name!r} has")
    free = [a for a, n in enumerate(spec.shape) if not isinstance(n, int)]
    named = [a for a in free if "past" in str(spec.shape[a])]
    later = named or [a for a in free if a > 0]
    if len(later) != 1:
        raise ShapeError(f"along which axis does input {spec.name!r} ({spec}) grow?")
    return later[0]

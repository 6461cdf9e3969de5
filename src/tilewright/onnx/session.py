"""``tilewright.onnx.load``: a model as something that runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, bf16
from tilewright.errors import DTypeError, ShapeError, UnsupportedError
from tilewright.formats.onnx import Model, ValueInfo, model_from_bytes, model_of, open_model
from tilewright.onnx.check import require_supported
from tilewright.onnx.plan import Plan
from tilewright.onnx.quick import Run
from tilewright.onnx.stateful import Stateful
from tilewright.onnx.values import buffer_of, describe, is_tensor_dtype
from tilewright.runtime.launch import pool_of

__all__ = ["Session", "ValueSpec", "load"]

_PRECISIONS: Final[dict[str | None, DType | None]] = {None: None, "f32": None, "bf16": bf16}
_NUMPY: Final = {
    "float": "float32", "double": "float64", "string": "object",
    "float8e4m3fn": "float8_e4m3fn", "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2", "float8e5m2fnuz": "float8_e5m2fnuz",
    "float4e2m1": "float4_e2m1fn", "float8e8m0": "float8_e8m0fnu",
}  # fmt: skip


@dataclass(frozen=True)
class ValueSpec:
    """An input or output of a model.

    Attributes:
        name: of the value.
        dtype: NumPy's name of the element type (``"float32"``, ``"int64"``, ``"bfloat16"`` ...;
            ``"object"`` for strings); empty when the model does not say.
        shape: sizes, names of symbolic ones, None for unknown ones; None when nothing is known.
        kind: ``"tensor"``, ``"sequence"``, ``"optional"`` or ``"map"``.
        optional: whether it may be left out (the model has a default).
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None
    kind: str = "tensor"
    optional: bool = False

    def __str__(self) -> str:
        sizes = "[...]"
        if self.shape is not None:
            sizes = "[" + ", ".join("?" if n is None else str(n) for n in self.shape) + "]"
        text = f"{self.dtype or '?'}{sizes}"
        return text if self.kind == "tensor" else f"{self.kind}({text})"


def _spec(info: ValueInfo, optional: bool = False) -> ValueSpec:
    kind = "tensor" if info.kind == "unknown" else info.kind
    return ValueSpec(
        info.name, _NUMPY.get(info.elements, info.elements), info.shape, kind, optional
    )


def load(
    model: str | os.PathLike[str] | bytes | Any,
    device: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
) -> Session:
    """A model, ready to run.

    Args:
        model: path of an ``.onnx`` file, its bytes, or an ``onnx.ModelProto``.
        device: ``"cpu"`` or None, which means it.
        threads: how many to use; default one per core (``TILEWRIGHT_THREADS``).
        precision: ``"f32"`` (None) computes as the model says; ``"bf16"`` rounds the operands of
            f32 products, attention and convolutions to bf16, with f32 sums: about twice as fast
            where the CPU has the instructions.

    Raises:
        FormatError: the file is damaged or contradicts itself.
        UnsupportedError: something in it cannot be run; the message names every such node.
    """
    if device not in (None, "auto", "cpu"):
        raise UnsupportedError(f'there is one device, "cpu"; got {device!r}')
    if isinstance(model, (str, os.PathLike)):
        read = open_model(model)
    elif isinstance(model, (bytes, bytearray)):
        read = model_from_bytes(bytes(model))
    else:
        read = model_of(model)
    return Session(read, threads, precision)


class Session:
    """A model that runs: ``session.run({"input": array})``.

    Attributes:
        inputs, outputs: what it takes and gives (:class:`ValueSpec`), in the model's order.
        model: what was read.
        plan, pool, lock: what has been compiled, the threads, and who may use them.
    """

    def __init__(
        self, model: Model, threads: int | None = None, precision: str | None = None
    ) -> None:
        if precision not in _PRECISIONS:
            wanted = ", ".join(repr(p) for p in _PRECISIONS if p)
            raise UnsupportedError(f"precision is one of {wanted}, got {precision!r}")
        require_supported(model)
        self.model = model
        self.inputs: tuple[ValueSpec, ...] = tuple(_spec(v) for v in model.graph.inputs)
        self.outputs: tuple[ValueSpec, ...] = tuple(_spec(v) for v in model.graph.outputs)
        self._optional = {v.name: _spec(v, True) for v in model.graph.defaults}
        self.pool = pool_of(threads)
        self.plan = Plan(model, self.pool, compute=_PRECISIONS[precision])
        self._quick: Run | None = None
        self.lock = threading.Lock()

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Compute the outputs.

        Args:
            feeds: an array (or what NumPy makes one of) for every input; lists for sequences, None
                for an empty optional.
            outputs: names of those that are wanted; default all.

        Returns:
            by name an array, a list (a sequence) or None (an empty optional).

        Raises:
            ShapeError: an input is missing, unknown, or has another rank or size than the model
                says; :class:`DTypeError`: another element type.
        """
        with self.lock:
            if self._quick is not None and outputs is None:
                results = self._quick(feeds)
                if results is not None:
                    return results
            wanted = self._wanted(outputs)
            names = [s.name for s in self.outputs]
            inputs = self._checked(feeds)
            values = self.plan.run(inputs)
            self._quick = self.plan.quick(inputs, [s.name for s in self.inputs], names)
        found = dict(zip(names, values))
        return {name: found[name] for name in wanted}

    def assumptions(self) -> list[str]:
        """What programs for many sizes assume of them, and why models have none for many sizes.

        A program is made for many sizes when a second size of an input is met. Where that cannot be
        (a trace that is cut, an operator that asks for the number), every size is compiled.
        """
        with self.lock:
            return self.plan.assumptions()

    def stateful(self, pairs: Mapping[str, str] | None = None, capacity: int = 1024) -> Stateful:
        """This model with its past kept inside: see :mod:`tilewright.onnx.stateful`.

        Args:
            pairs: which outputs are fed back into which inputs, by input; default by their names
                (``past_key_values.*`` and ``present.*`` ...).
            capacity: positions to have room for at first; more are made when they are needed.
        """
        return Stateful(self, pairs, capacity)

    def profile(self, feeds: Mapping[str, Any]) -> list[tuple[str, float]]:
        """Run once more to see where time goes: a name and seconds for every launch of a kernel.

        Launches run one by one, so that each has the cost of a beginning and an end of its own. The
        last entry is what passed outside of kernels, in Python and NumPy. Raises as :meth:`run`.
        """
        with self.lock:
            self.plan.run(self._checked(feeds))  # compiled, and memory touched
            times: list[tuple[str, float]] = []
            self.plan.arena.times = times
            start = time.perf_counter()
            try:
                self.plan.run(self._checked(feeds))
            finally:
                self.plan.arena.times = None
            whole = time.perf_counter() - start
        return [*times, ("(outside of kernels)", max(whole - sum(s for _, s in times), 0.0))]

    def _wanted(self, outputs: Sequence[str] | None) -> Sequence[str]:
        names = [s.name for s in self.outputs]
        if outputs is None:
            return names
        unknown = [o for o in outputs if o not in names]
        if unknown:
            raise ShapeError(
                f"the model has no output {', '.join(map(repr, unknown))}; it has "
                f"{', '.join(map(repr, names))}"
            )
        return outputs

    def _checked(self, feeds: Mapping[str, Any]) -> list[Any]:
        return list(self.checked(feeds, self.inputs).values())

    def checked(self, feeds: Mapping[str, Any], specs: Sequence[ValueSpec]) -> dict[str, Any]:
        """What is fed, as the plan takes it. Raises as :meth:`run` unless it is for ``specs``."""
        if len(feeds) != len(specs) or any(s.name not in feeds for s in specs):
            self._refuse(feeds, specs)
        sizes: dict[str, tuple[int, str]] = {}
        return {spec.name: _fed(spec, feeds[spec.name], sizes) for spec in specs}

    def _refuse(self, feeds: Mapping[str, Any], specs: Sequence[ValueSpec]) -> None:
        known = {s.name for s in specs}
        missing = [s for s in specs if s.name not in feeds]
        extra = [n for n in feeds if n not in known]
        lines = []
        for spec in missing:
            lines.append(f"input {spec.name!r} is missing: it wants {spec}{_empty_hint(spec)}")
        for name in extra:
            if name in self._optional:
                lines.append(
                    f"input {name!r} is a weight of the model ({self._optional[name]}) and is not "
                    "to be given"
                )
            elif any(s.name == name for s in self.inputs):
                lines.append(f"input {name!r} is the past, which is kept here")
            else:
                lines.append(f"the model has no input {name!r}")
        wants = ", ".join(f"{s.name}: {s}" for s in specs)
        raise ShapeError("; ".join(lines) + f". The model takes {wants or 'no inputs'}")


def _empty_hint(spec: ValueSpec) -> str:
    """For a cache of past keys or values: what an empty one looks like."""
    if "past" not in spec.name or spec.shape is None or len(spec.shape) < 3:
        return ""
    grows = [isinstance(n, str) and ("past" in n or "seq" in n) for n in spec.shape]
    sizes = [n if isinstance(n, int) else 0 if empty else 1 for n, empty in zip(spec.shape, grows)]
    if 0 not in sizes:
        sizes[-2] = 0
    return f"; an empty one is numpy.zeros({tuple(sizes)}, numpy.{spec.dtype})"


def _fed(spec: ValueSpec, value: Any, sizes: dict[str, tuple[int, str]]) -> Any:
    if spec.kind == "optional" and value is None:
        return None
    if spec.kind == "map" and isinstance(value, Mapping):
        return dict(value)
    if spec.kind == "sequence" or (isinstance(value, (list, tuple)) and spec.kind != "tensor"):
        inner = ValueSpec(spec.name, spec.dtype, None)
        if spec.dtype.startswith("sequence("):  # of an optional
            elements = spec.dtype[len("sequence(") : -1]
            inner = ValueSpec(spec.name, _NUMPY.get(elements, elements), None)
        return [_fed(inner, v, sizes) for v in value]
    array = value if type(value) is np.ndarray else _as_array(spec, value)
    if spec.dtype and array.dtype.name != spec.dtype:
        array = _cast(spec, array)
    if spec.shape is not None and not _fits(spec, array.shape, sizes):
        raise ShapeError(
            f"input {spec.name!r} wants {spec}, got {describe(array)}{_clash(spec, array, sizes)}"
        )
    return buffer_of(array) if is_tensor_dtype(array.dtype) else array


def _as_array(spec: ValueSpec, value: Any) -> np.ndarray:
    if spec.dtype == "object":
        return np.asarray(value, object)
    array = np.asarray(value)
    if isinstance(value, (bool, int, float, list, tuple)) and spec.dtype:
        return array.astype(spec.dtype)
    return array


def _cast(spec: ValueSpec, array: np.ndarray) -> np.ndarray:
    if spec.dtype == "object" and array.dtype.kind in "US":
        return array.astype(object)
    raise DTypeError(
        f"input {spec.name!r} wants {spec}, got {describe(array)}: convert it "
        f"(array.astype({spec.dtype!r}))"
    )


def _fits(spec: ValueSpec, shape: tuple[int, ...], sizes: dict[str, tuple[int, str]]) -> bool:
    assert spec.shape is not None
    if len(shape) != len(spec.shape):
        return False
    for n, wanted in zip(shape, spec.shape):
        if isinstance(wanted, int):
            if n != wanted:
                return False
        elif wanted is not None and sizes.setdefault(wanted, (n, spec.name))[0] != n:
            return False
    return True


def _clash(spec: ValueSpec, array: np.ndarray, sizes: dict[str, tuple[int, str]]) -> str:
    assert spec.shape is not None
    for n, wanted in zip(array.shape, spec.shape):
        if isinstance(wanted, str) and wanted in sizes and sizes[wanted][0] != n:
            return f" ({wanted} is {sizes[wanted][0]} in input {sizes[wanted][1]!r})"
    return ""

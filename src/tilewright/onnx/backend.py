"""The standard's interface for what runs models, ``onnx.backend.base``.

::

    from tilewright.onnx import backend
    prepared = backend.prepare(onnx.load("model.onnx"))
    results = prepared.run([array])        # by position, or {name: array}

The module itself can be handed to ``onnx.backend.test.BackendTest``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep, namedtupledict

from tilewright.errors import FormatError, ShapeError, UnsupportedError
from tilewright.onnx.session import Session, load

__all__ = [
    "PreparedModel", "TilewrightBackend", "is_compatible", "prepare", "run_model", "run_node",
    "supports_device",
]  # fmt: skip


class PreparedModel(BackendRep):
    """A model that is ready to run.

    Attributes:
        session: what runs it (:class:`tilewright.onnx.Session`).
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs, in the model's order; each is an attribute too, by its name.

        Args:
            inputs: values of all inputs: in the model's order, by name, or the value itself when
                there is one input.
            kwargs: the interface allows any; there are none here, so :class:`TypeError` for them.

        Raises:
            ShapeError, DTypeError: see :meth:`tilewright.onnx.Session.run`.
        """
        if kwargs:
            raise TypeError(f"run takes no {', '.join(map(repr, kwargs))}")
        results = self.session.run(self._feeds(inputs))
        return namedtupledict("Outputs", list(results))(*results.values())

    def _feeds(self, inputs: Any) -> Mapping[str, Any]:
        if isinstance(inputs, Mapping):
            return inputs
        specs = self.session.inputs
        if not isinstance(inputs, (list, tuple)):
            inputs = [inputs]
        if len(inputs) != len(specs):
            wants = ", ".join(f"{s.name}: {s}" for s in specs) or "nothing"
            raise ShapeError(f"{len(inputs)} inputs are given; the model takes {wants}")
        return {s.name: v for s, v in zip(specs, inputs)}


class TilewrightBackend(Backend):
    """See the module's documentation; everything is a class method."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether ``device`` (``"CPU"``, ``"CUDA:1"`` ...) is one that models run on."""
        return device.split(":")[0].upper() == "CPU"

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether the model can be run."""
        try:
            cls.prepare(model, device, **kwargs)
        except (UnsupportedError, FormatError):
            return False
        return True

    @classmethod
    def prepare(
        cls,
        model: onnx.ModelProto | bytes | str | os.PathLike[str],
        device: str = "CPU",
        threads: int | None = None,
        **kwargs: Any,
    ) -> PreparedModel:
        """A model as something that runs.

        Args:
            model: a ``ModelProto``, its bytes, or the path of a file.
            device: ``"CPU"``.
            threads: how many to use; default one per core.
            kwargs: the interface allows any; others are refused with :class:`TypeError`.

        Raises:
            FormatError: the model contradicts itself.
            UnsupportedError: another device; or the model holds what cannot be run.
        """
        if kwargs:
            raise TypeError(f"prepare takes no {', '.join(map(repr, kwargs))}")
        if not cls.supports_device(device):
            raise UnsupportedError(f'there is one device, "CPU"; got {device!r}')
        return PreparedModel(load(model, threads=threads))

    @classmethod
    def run_model(
        cls, model: Any, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """The outputs of a model: :meth:`prepare`, then :meth:`PreparedModel.run`."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(  # type: ignore[override]
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype, tuple[int, ...]]] | None = None,
        opset_version: int | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """The outputs of one node.

        Args:
            node: a ``NodeProto``.
            inputs: arrays (lists of arrays for sequences) for the inputs that are not left out: in
                order, by name, or the array itself when there is one.
            outputs_info: dtypes and shapes; what is computed says them itself.
            opset_version: of the node's domain; default the newest that onnx knows.
        """
        names = [n for n in dict.fromkeys(node.input) if n]
        if not isinstance(inputs, Mapping):
            given = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
            if len(given) != len(names):
                raise ShapeError(f"{len(given)} inputs are given; the node takes {names}")
            inputs = dict(zip(names, given))
        untyped = [onnx.ValueInfoProto(name=n) for n in names]
        results = [onnx.ValueInfoProto(name=n) for n in node.output if n]
        graph = onnx.helper.make_graph([node], "node", untyped, results)
        versions = {"": onnx.defs.onnx_opset_version(), "ai.onnx.ml": onnx_ml_version()}
        versions.setdefault(node.domain, 1)
        if opset_version is not None:
            versions[node.domain] = opset_version
        imports = [onnx.helper.make_opsetid(d, v) for d, v in versions.items()]
        model = onnx.helper.make_model(graph, opset_imports=imports)
        return cls.run_model(model, inputs, device, **kwargs)


def onnx_ml_version() -> int:
    """The newest version of ai.onnx.ml that the onnx package defines."""
    return max(
        (s.since_version for s in onnx.defs.get_all_schemas_with_history()
         if s.domain == "ai.onnx.ml"), default=1,
    )  # fmt: skip


is_compatible = TilewrightBackend.is_compatible
prepare = TilewrightBackend.prepare
run_model = TilewrightBackend.run_model
run_node = TilewrightBackend.run_node
supports_device = TilewrightBackend.supports_device

"""Stored inputs and outputs of models: ``test_data_set_*`` folders of ``.pb`` files, ``.npz``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import FormatError, ShapeError
from tilewright.formats.onnx import tensor_array
from tilewright.onnx.session import ValueSpec
from tilewright.onnx.values import BFLOAT16, describe

__all__ = ["Vector", "difference", "find_vectors", "read_array", "read_value", "read_vector"]


@dataclass(frozen=True)
class Vector:
    """Inputs of a model, and the outputs that they should have, in the model's order."""

    inputs: list[Any]
    outputs: list[Any]


def read_array(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in a ``.npy`` file.

    Raises FormatError when it is none, or is one of objects.
    """
    with open(path, "rb") as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, EOFError, MemoryError, OverflowError) as error:
            raise FormatError(f"is no array: {error}", path=path) from error


def read_value(path: str | os.PathLike[str], kind: str = "tensor") -> Any:
    """A serialised value: an array, a list of arrays for ``"sequence"``, perhaps None for
    ``"optional"``.

    Raises FormatError when the bytes are no such value.
    """
    import onnx
    from google.protobuf.message import DecodeError

    made: Any = {"sequence": onnx.SequenceProto, "optional": onnx.OptionalProto}.get(
        kind, onnx.TensorProto
    )()
    try:
        made.ParseFromString(Path(path).read_bytes())
    except DecodeError as error:
        raise FormatError(f"is no {type(made).__name__}: {error}", path=path) from error
    return _value(made, Path(path))


def _value(proto: Any, path: Path) -> Any:
    import onnx

    if isinstance(proto, onnx.TensorProto):
        return tensor_array(proto, path.parent, path)
    if isinstance(proto, onnx.SequenceProto):
        if proto.elem_type == onnx.SequenceProto.SEQUENCE:
            return [_value(v, path) for v in proto.sequence_values]
        if proto.elem_type not in (onnx.SequenceProto.TENSOR, onnx.SequenceProto.UNDEFINED):
            raise FormatError("is a sequence of what is neither tensors nor sequences", path=path)
        return [_value(v, path) for v in proto.tensor_values]
    if proto.elem_type == onnx.OptionalProto.TENSOR and proto.HasField("tensor_value"):
        return _value(proto.tensor_value, path)
    if proto.elem_type == onnx.OptionalProto.SEQUENCE and proto.HasField("sequence_value"):
        return _value(proto.sequence_value, path)
    return None


def find_vectors(folder: str | os.PathLike[str]) -> list[Path]:
    """The test data in ``folder``, or ``folder`` itself if it holds an ``input_0.pb``.

    Raises FormatError when there are none.
    """
    root = Path(folder)
    if root.is_file() and root.suffix == ".npz":
        return [root]
    if not root.is_dir():
        raise FormatError("is no folder", path=root)
    if any(root.glob("input_*.pb")) or any(root.glob("output_*.pb")):
        return [root]
    found = [p for p in root.glob("test_data*") if p.is_dir() or p.suffix == ".npz"]
    if not found:
        raise FormatError("holds no test_data_set_* folders and no input_0.pb", path=root)
    return sorted(found, key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)])


def read_vector(path: Path, inputs: Sequence[ValueSpec], outputs: Sequence[ValueSpec]) -> Vector:
    """The test data at ``path``, as :func:`find_vectors` gives it.

    Raises FormatError when a file is missing or damaged.
    """
    if path.suffix == ".npz":
        return _read_npz(path)
    return Vector(_read_all(path, "input", inputs), _read_all(path, "output", outputs))


def _read_all(folder: Path, what: str, specs: Sequence[ValueSpec]) -> list[Any]:
    count = len(list(folder.glob(f"{what}_*.pb")))
    if count > len(specs):
        raise FormatError(f"holds {count} {what}s, the model has {len(specs)}", path=folder)
    paths = [folder / f"{what}_{i}.pb" for i in range(count)]
    missing = [p.name for p in paths if not p.is_file()]
    if missing:
        raise FormatError(f"has no {', '.join(missing)}", path=folder)
    return [read_value(p, s.kind) for p, s in zip(paths, specs)]


def _read_npz(path: Path) -> Vector:
    """Arrays ``inputs`` and ``outputs``, one model input or output after the other."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return Vector(list(file["inputs"]), list(file["outputs"]))
    except (ValueError, KeyError, EOFError, OSError) as error:
        raise FormatError(f"holds no test data: {error}", path=path) from error


def difference(got: Any, want: Any, rtol: float, atol: float) -> tuple[float, str]:
    """The largest absolute difference of two values, and what is wrong if they do not agree.

    They agree when ``|got - want| <= atol + rtol * |want|`` everywhere; strings, integers and NaN
    have to be the same.
    """
    if isinstance(want, list) or isinstance(got, list) or want is None or got is None:
        if not isinstance(want, list) or not isinstance(got, list) or len(want) != len(got):
            same = want is None and got is None
            return 0.0, "" if same else f"{describe(got)} instead of {describe(want)}"
        found = [difference(g, w, rtol, atol) for g, w in zip(got, want)]
        wrong = next((f"element {i}: {t}" for i, (_, t) in enumerate(found) if t), "")
        return max((d for d, _ in found), default=0.0), wrong
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf"), f"{describe(got)} instead of {describe(want)}"
    if got.dtype.kind in "OSU" or not got.size:
        wrong = got != want
    else:
        if got.dtype.kind == "V" or got.dtype == BFLOAT16:
            got, want = got.astype(np.float32), want.astype(np.float32)
        wide = np.complex128 if got.dtype.kind == "c" else np.float64
        g, w = got.astype(wide), want.astype(wide)
        with np.errstate(invalid="ignore", over="ignore"):
            wrong = ~np.isclose(g, w, rtol=rtol, atol=atol, equal_nan=True)
            gaps = np.abs(g - w)
        gaps = gaps[np.isfinite(gaps)]
        largest = float(gaps.max()) if gaps.size else 0.0
        if not wrong.any():
            return largest, ""
        return largest, (
            f"{int(wrong.sum())} of {wrong.size} elements differ, by at most {largest:.3g}: first "
            f"{got[wrong][0]} instead of {want[wrong][0]}"
        )
    if not wrong.any():
        return 0.0, ""
    return float("inf"), f"{got[wrong][0]!r} instead of {want[wrong][0]!r}"


def named(specs: Sequence[ValueSpec], values: Sequence[Any]) -> dict[str, Any]:
    """Values by the names of a model's inputs.

    Raises ShapeError when there are more values than names.
    """
    if len(values) > len(specs):
        raise ShapeError(f"{len(values)} values are given for {len(specs)} inputs")
    return {s.name: v for s, v in zip(specs, values)}

"""What the ``onnx`` commands read and write: inputs from files, outputs to files and tables."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tilewright.cli.common import table
from tilewright.errors import FormatError, ShapeError, UnsupportedError
from tilewright.onnx.pipelines.images import (
    NORMALISATIONS,
    Preprocess,
    find_config,
    find_labels,
    read_config,
    read_labels,
)
from tilewright.onnx.pipelines.vision import probabilities
from tilewright.onnx.session import Session, ValueSpec
from tilewright.onnx.vectors import read_array, read_value

__all__ = [
    "dims_of", "image_steps", "labels_of", "random_inputs", "read_inputs", "save_outputs",
    "summaries", "top_classes",
]  # fmt: skip

_IMAGES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".tif", ".tiff")


def read_inputs(session: Session, given: Sequence[str], steps: Preprocess) -> dict[str, Any]:
    """Values from ``name=FILE`` (only ``FILE`` when the model has one input) or ``name=[1, 2]``.

    Raises:
        ShapeError: a name that the model does not have, or one that is given twice.
        FormatError: a file that cannot be read as what its ending says.
    """
    specs = {s.name: s for s in session.inputs}
    feeds: dict[str, Any] = {}
    for text in given:
        name, separator, source = text.partition("=")
        if not separator or (name not in specs and len(specs) == 1 and Path(text).exists()):
            name, source = (next(iter(specs)), text) if len(specs) == 1 else ("", text)
        if name not in specs:
            wants = ", ".join(f"{s.name}: {s}" for s in session.inputs)
            raise ShapeError(
                f"the model has no input {name!r}: it takes {wants or 'none'} (--input NAME=FILE)"
            )
        if name in feeds:
            raise ShapeError(f"input {name!r} is given twice")
        feeds[name] = _read_one(specs[name], source, steps)
    return feeds


def _read_one(spec: ValueSpec, source: str, steps: Preprocess) -> Any:
    ending = Path(source).suffix.lower()
    if ending == ".npy":
        return read_array(source)
    if ending == ".pb":
        return read_value(source, spec.kind)
    if ending in _IMAGES:
        fitted = steps.to_fit(spec.shape, spec.dtype)
        print(f"{source}: {fitted}", file=sys.stderr)
        return fitted(source)
    try:
        values = json.loads(source)
    except ValueError:
        raise FormatError(
            f"{source!r} is neither a file ending in .npy, .pb, .png, .jpg nor numbers such as "
            f"[[1, 2]]; input {spec.name!r} wants {spec}"
        ) from None
    try:
        array = np.array(values, object if spec.dtype == "object" else None)
        return array.astype(spec.dtype) if spec.dtype else array
    except (ValueError, TypeError, OverflowError) as error:
        raise ShapeError(f"input {spec.name!r} wants {spec}, got {source}: {error}") from None


def image_steps(
    model: Path,
    config: Path | None,
    normalize: str | None,
    mean: str | None,
    std: str | None,
    scale: float | None,
    bgr: bool,
) -> Preprocess:
    """How images are prepared: from a file, from one beside the model, then from options."""
    found = config or find_config(model)
    changes: dict[str, Any] = {}
    if found is None:
        steps = Preprocess()
    else:
        steps = read_config(found)
    if normalize is not None:
        if normalize not in NORMALISATIONS:
            raise UnsupportedError(
                f"--normalize is one of {', '.join(NORMALISATIONS)}, got {normalize!r}"
            )
        changes["mean"], changes["std"] = NORMALISATIONS[normalize]
    if mean is not None:
        changes["mean"] = _numbers("--mean", mean)
    if std is not None:
        changes["std"] = _numbers("--std", std)
    if scale is not None:
        changes["scale"] = scale
    if bgr:
        changes["channels"] = "BGR"
    fields = {**{k: getattr(steps, k) for k in steps.__dataclass_fields__}, **changes}
    return Preprocess(**fields)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(v) for v in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3):
        raise ValueError(f"{option} wants one number or three such as 0.5,0.5,0.5, got {text!r}")
    return values


def dims_of(given: Sequence[str] | None) -> dict[str, int]:
    """Symbolic sizes from ``name=3``."""
    dims = {}
    for text in given or ():
        name, _, value = text.rpartition("=")
        if not name or not value.isdecimal() or int(value) >= 1 << 31:
            raise ValueError(f"--dim wants NAME=SIZE such as batch=1, got {text!r}")
        dims[name] = int(value)
    return dims


def random_inputs(
    session: Session, dims: Mapping[str, int], seed: int = 0
) -> tuple[dict[str, Any], dict[str, int]]:
    """Random values for every input, and what symbolic sizes were taken to be.

    Floats are normal; integers are 0 or 1 (indices that are always valid); what is named like a
    mask is all ones. Sizes that ``dims`` does not name are 1, 0 for lengths of a past.

    Raises:
        ShapeError: an input whose shape the model does not say.
        UnsupportedError: an input that is no tensor of numbers.
    """
    rng = np.random.default_rng(seed)
    unknown = [n for n in dims if not any(n in (s.shape or ()) for s in session.inputs)]
    if unknown:
        known = sorted({n for s in session.inputs for n in s.shape or () if isinstance(n, str)})
        raise ShapeError(
            f"no input has a size called {', '.join(map(repr, unknown))}; there "
            + (f"are {', '.join(map(repr, known))}" if known else "is none with a name")
        )
    feeds: dict[str, Any] = {}
    assumed: dict[str, int] = {}
    for spec in session.inputs:
        if spec.kind != "tensor" or not spec.dtype or spec.dtype == "object":
            raise UnsupportedError(f"input {spec.name!r} is {spec}: no random values for that")
        if spec.shape is None:
            raise ShapeError(f"the model does not say which shape input {spec.name!r} has")
        shape: list[int] = []
        for n in spec.shape:
            if isinstance(n, str):
                assumed[n] = dims.get(n, 0 if "past" in n and "+" not in n else 1)
            shape.append(assumed[n] if isinstance(n, str) else 1 if n is None else n)
        feeds[spec.name] = _random(rng, spec, shape)
    return feeds, assumed


def _random(rng: np.random.Generator, spec: ValueSpec, shape: list[int]) -> np.ndarray:
    if "mask" in spec.name:
        return np.ones(shape, spec.dtype)
    if spec.dtype.startswith(("int", "uint", "bool")):
        return rng.integers(0, 2, shape).astype(spec.dtype)
    if spec.dtype.startswith("complex"):
        return rng.standard_normal(shape).astype(spec.dtype)
    values = rng.standard_normal(shape, np.float32)
    if spec.dtype in ("float16", "float32", "float64"):
        return values.astype(spec.dtype)
    import ml_dtypes

    return values.astype(np.dtype(getattr(ml_dtypes, spec.dtype)))


def summaries(results: Mapping[str, Any]) -> str:
    """One line for each output: name, type, smallest, largest, mean."""
    rows: list[tuple[str, ...]] = [("output", "type", "min", "max", "mean")]
    for name, value in results.items():
        if not isinstance(value, np.ndarray):
            rows.append((name, "nothing" if value is None else f"sequence of {len(value)}", *"   "))
            continue
        kind = f"{value.dtype}[{', '.join(map(str, value.shape))}]"
        if value.dtype == object or not value.size or value.dtype.kind == "c":
            rows.append((name, kind, "", "", ""))
            continue
        wide = value.astype(np.float64)
        rows.append((name, kind, *(f"{f(wide):.6g}" for f in (np.min, np.max, np.mean))))
    return table(rows)


def save_outputs(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Each output as ``NAME.npy`` (``NAME_0.npy`` ... for a sequence) in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, value in results.items():
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "output"
        values = {f"{stem}_{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {}
        for one, array in (values or {stem: value}).items():
            if not isinstance(array, np.ndarray) or array.dtype == object:
                raise UnsupportedError(f"output {name!r} is no array of numbers: not written")
            path = folder / f"{one}.npy"
            if path in written:
                path = folder / f"{one}-{len(written)}.npy"
            np.save(path, array, allow_pickle=False)
            written.append(path)
    return written


def labels_of(model: Path, labels: Path | None) -> list[str] | None:
    """Names of classes: from a file, or from ``config.json`` beside the model."""
    return read_labels(labels) if labels is not None else find_labels(model)


def top_classes(value: np.ndarray, count: int, labels: Sequence[str] | None) -> str:
    """The likeliest classes of the first row of scores or probabilities."""
    if value.ndim > 1 and value.size != value.shape[0] * value.shape[1]:
        raise ShapeError(f"--top wants one score for each class, got shape {list(value.shape)}")
    scores = value.reshape(-1, value.shape[1] if value.ndim > 1 else value.size)[0]
    likely = probabilities(scores)
    order = np.argsort(-scores, kind="stable")[:count]
    names = labels if labels is not None and len(labels) == len(scores) else None
    if labels is not None and names is None:
        raise ShapeError(f"{len(labels)} labels for {len(scores)} classes")
    rows = [(f"{likely[i]:.4f}", i, "" if names is None else names[i]) for i in order]
    return table(rows)

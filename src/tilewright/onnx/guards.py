"""What stands between a model and an operator's function: attributes, inputs, and its mistakes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from tilewright.errors import FormatError, OutOfMemoryError, ShapeError, UnsupportedError
from tilewright.formats.onnx import Graph, NodeDef
from tilewright.onnx.registry import Operator
from tilewright.onnx.values import describe
from tilewright.tensor.core import Tensor

__all__ = ["check_call", "check_inputs", "computed"]

_KINDS: Final[Mapping[str, tuple[type, type | None, str]]] = {
    "int": (int, None, "a whole number"),
    "float": (float, None, "a number"),
    "str": (str, None, "a text"),
    "np.ndarray": (np.ndarray, None, "a tensor"),
    "Graph": (Graph, None, "a graph"),
    "Ints": (tuple, int, "whole numbers"),
    "tuple[int, ...]": (tuple, int, "whole numbers"),
    "Sequence[int]": (tuple, int, "whole numbers"),
    "tuple[float, ...]": (tuple, float, "numbers"),
    "tuple[str, ...]": (tuple, str, "texts"),
}


def check_call(operator: Operator, node: NodeDef, attrs: Mapping[str, Any]) -> None:
    """Raise unless the operator takes such attributes, and so many inputs.

    An attribute that is None is not known yet, and taken to be right.
    """
    unknown = sorted(set(attrs) - operator.attrs)
    if unknown:
        raise UnsupportedError(
            f"attribute {', '.join(map(repr, unknown))} is not supported "
            f"(known: {', '.join(sorted(operator.attrs)) or 'none'})"
        )
    missing = sorted(operator.required - set(attrs))
    if missing:
        raise FormatError(f"attribute {', '.join(map(repr, missing))} is missing")
    for name, value in attrs.items():
        _check_kind(name, operator.kinds.get(name, "Any"), value)
    low, high = operator.inputs
    if not low <= len(node.inputs) <= high:
        most = f"{low} to {high}" if high < 1 << 29 else f"{low} or more"
        wants = str(low) if low == high else most
        raise FormatError(f"takes {wants} inputs, got {len(node.inputs)}")


def _check_kind(name: str, annotation: str, value: Any) -> None:
    """``annotation`` as it stands in the function's source; what is not known is not checked."""
    kinds = [_KINDS.get(one.strip()) for one in annotation.split("|") if one.strip() != "None"]
    if value is None or None in kinds:
        return
    for kind in kinds:
        assert kind is not None
        wanted, inner, _ = kind
        if wanted is tuple and isinstance(value, (tuple, list)):
            if all(_is(v, inner) for v in value):
                return
        elif _is(value, wanted):
            return
    wants = " or ".join(kind[2] for kind in kinds if kind is not None)
    got = f"{value!r:.60}" if isinstance(value, (int, float, str, tuple)) else type(value).__name__
    raise FormatError(f"attribute {name!r} is {wants}, got {got}")


def _is(value: Any, wanted: type | None) -> bool:
    if wanted is float:
        return isinstance(value, (int, float))
    return wanted is None or isinstance(value, wanted)


def check_inputs(operator: Operator, args: Sequence[Any]) -> None:
    """Raise unless inputs that have to be there are, and are tensors where those are wanted."""
    for i, value in enumerate(args):
        if isinstance(value, list) and (not operator.raw or i in operator.host):
            raise FormatError(f"input {i} is a {describe(value)}, a tensor is wanted")
    if operator.raw:
        return
    for i in sorted(operator.needed):
        if i >= len(args) or args[i] is None:
            raise FormatError(f"input {i} is left out, or an empty optional")


def computed(operator: Operator, args: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """``operator``'s results.

    What NumPy and Python say of values that make no sense (sizes beyond 64 bits, axes that are not
    there, numbers that are none) becomes a :class:`FormatError`, with the exception as its cause.
    """
    try:
        with np.errstate(all="ignore"):  # infinities and NaN are values like others
            results = operator.function(*args, **keywords)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        strange = any(a is None or isinstance(a, list) for a in args)
        if isinstance(error, AttributeError) and not strange:
            raise  # nothing was given that lacks attributes of tensors: a mistake of ours
        got = ", ".join(_summary(a) for a in args)
        raise FormatError(
            f"cannot be computed from ({got}): {type(error).__name__}: {error}"
        ) from error
    except MemoryError as error:
        raise OutOfMemoryError(f"does not fit into memory: {error}") from error
    for one in results if isinstance(results, tuple) else (results,):
        if isinstance(one, Tensor):
            _check_sizes(one.shape)
    return results


def _check_sizes(shape: Sequence[Any]) -> None:
    known = [n for n in shape if isinstance(n, int)]  # symbols take notes of questions
    if any(n < 0 for n in known):
        raise ShapeError(f"a result has negative sizes: {list(shape)}")
    if 0 in known and math.prod(n for n in known if n) >= 1 << 56:  # else memory is lacking
        raise ShapeError(f"a result has sizes {list(shape)}, which no array has")


def _summary(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size <= 8:
        return f"{value.dtype}{value.tolist()}"
    return describe(value)

"""Features of ``ai.onnx.ml``: scaled, normalised, encoded, joined, looked up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import f32, i64
from tilewright.errors import FormatError, ShapeError, UnsupportedError
from tilewright.graph import Node
from tilewright.onnx.ops.common import moves, tensor_of
from tilewright.onnx.ops.ml_common import DOMAIN, labels_of
from tilewright.onnx.registry import Call, op
from tilewright.onnx.values import is_tensor_dtype
from tilewright.ops import elementwise as ew
from tilewright.ops import indexing, reductions, sorting, views
from tilewright.tensor import manipulation
from tilewright.tensor.core import Tensor, apply


def _row(values: Sequence[float], x: Tensor, what: str) -> Node:
    """Numbers for each feature, or one for all."""
    width = x.shape[-1] if x.ndim else 1
    if len(values) not in (1, width):
        raise ShapeError(f"{len(values)} numbers of {what} for {width} features")
    array = np.asarray(values, x.dtype.storage)
    return tensor_of(array.reshape(()) if len(values) == 1 else array).node


@op("Scaler", domain=DOMAIN)
def scaler(
    x: Tensor, *, offset: Sequence[float] = (0.0,), scale: Sequence[float] = (1.0,)
) -> Tensor:
    """``(x - offset) * scale``, float32."""
    wide = apply(ew.cast, x, dtype=f32)
    low, factor = _row(offset, wide, "offset"), _row(scale, wide, "scale")
    return apply(lambda node: ew.mul(ew.sub(node, low), factor), wide)


@op("Binarizer", domain=DOMAIN)
def binarizer(x: Tensor, *, threshold: float = 0.0) -> Tensor:
    """1 where an element exceeds the threshold, else 0."""

    def build(node: Node) -> Node:
        limit = int(np.floor(threshold)) if node.dtype.is_integer else threshold
        return ew.cast(ew.gt(node, ew.literal(limit, node)), node.dtype)

    return apply(build, x)


@op("Normalizer", domain=DOMAIN)
def normalizer(x: Tensor, *, norm: str = "MAX") -> Tensor:
    """Rows divided by their greatest element, the sum of their absolute values, or their length."""

    def build(node: Node) -> Node:
        node = ew.cast(node, f32)
        axis = len(node.shape) - 1
        if norm == "MAX":
            size = reductions.max(ew.abs(node), axis, keepdims=True)
        elif norm == "L1":
            size = reductions.sum(ew.abs(node), axis, keepdims=True)
        elif norm == "L2":
            size = ew.sqrt(reductions.sum(ew.square(node), axis, keepdims=True))
        else:
            raise UnsupportedError(f"norm is MAX, L1 or L2, got {norm!r}")
        nothing = ew.eq(size, ew.literal(0, size))
        return ew.div(node, ew.where(nothing, ew.literal(1, size), size))

    return apply(build, x)


@op("Imputer", domain=DOMAIN)
def imputer(
    x: Tensor,
    *,
    imputed_value_floats: Sequence[float] = (),
    imputed_value_int64s: Sequence[int] = (),
    replaced_value_float: float = 0.0,
    replaced_value_int64: int = 0,
) -> Tensor:
    """Elements that equal one value (or are NaN) replaced, by feature."""
    if x.dtype.is_integer:
        values: Sequence[float] = imputed_value_int64s
        old: float = replaced_value_int64
    else:
        values, old = imputed_value_floats, replaced_value_float
    if not values:
        raise FormatError("there are no values to be put in")
    new = _row(values, x, "imputed values")

    def build(node: Node) -> Node:
        gone = ew.isnan(node) if np.isnan(old) else ew.eq(node, ew.literal(old, node))
        return ew.where(gone, new, node)

    return apply(build, x)


@op("FeatureVectorizer", domain=DOMAIN)
def feature_vectorizer(*xs: Tensor, inputdimensions: Sequence[int] = ()) -> Tensor:
    """Rows side by side, float32; a vector is one row."""
    rows = []
    for i, x in enumerate(xs):
        flat = x.reshape((1, -1)) if x.ndim < 2 else x.reshape((x.shape[0], -1))
        if i < len(inputdimensions) and flat.shape[1] != inputdimensions[i]:
            raise ShapeError(f"input {i} has {flat.shape[1]} features, not {inputdimensions[i]}")
        rows.append(apply(ew.cast, flat, dtype=f32))
    return manipulation.concat(rows, axis=1)


@op("ArrayFeatureExtractor", domain=DOMAIN, raw=True)
@moves(0)
def array_feature_extractor(x: Tensor, indices: Tensor) -> Tensor:
    """The elements at ``indices`` of the last axis; a vector is one row."""
    rows = x.reshape((1, -1)) if x.ndim == 1 else x
    flat = indices.reshape((-1,))
    return apply(indexing.take, rows, flat, axis=rows.ndim - 1)


# --- tables --------------------------------------------------------------------------------------


def looked_up(call: Call, x: Any, keys: np.ndarray, values: np.ndarray, default: np.ndarray) -> Any:
    """``values[i]`` where an element is ``keys[i]`` (the last one), else ``default``."""
    if len(keys) != len(values):
        raise FormatError(f"{len(keys)} keys have {len(values)} values")
    if isinstance(x, Tensor) and is_tensor_dtype(values.dtype):
        return _looked_up_in_graph(x, keys, values, default)
    array = call.value(x)
    if keys.dtype == object or keys.dtype.kind in "iu":
        table = dict(zip(keys.tolist(), range(len(keys))))
        places = [table.get(v, len(keys)) for v in array.reshape(-1).tolist()]
    else:
        table = {_bits(k): i for i, k in enumerate(keys)}
        places = [table.get(_bits(v), len(keys)) for v in array.astype(keys.dtype).reshape(-1)]
    every = np.append(values, default.reshape(1).astype(values.dtype))
    return every[np.array(places, np.int64)].reshape(array.shape)


def _bits(value: Any) -> Any:
    """A float as a key: every NaN is one, and so are both zeros."""
    return "NaN" if np.isnan(value) else float(value)


def _looked_up_in_graph(
    x: Tensor, keys: np.ndarray, values: np.ndarray, default: np.ndarray
) -> Tensor:
    kind = x.dtype.storage
    keys = keys.astype(kind)
    known, last = np.unique(keys[::-1], return_index=True)
    values = values[::-1][last]
    missing = np.isnan(known) if kind.kind == "f" else np.zeros(len(known), bool)
    for_missing = values[missing][0] if missing.any() else default
    known, values = known[~missing], values[~missing]

    def build(node: Node) -> Node:
        fill = tensor_of(np.asarray(default, values.dtype).reshape(())).node
        if len(known):
            table, results = tensor_of(known).node, tensor_of(values).node
            at = sorting.searchsorted(table, node)
            at = ew.minimum(at, ew.literal(len(known) - 1, at))
            hit = ew.eq(indexing.take(table, at), node)
            found = ew.where(hit, indexing.take(results, at), fill)
        else:
            found = views.broadcast(fill, node.shape)
        if node.dtype.is_float and missing.any():
            number = tensor_of(np.asarray(for_missing, values.dtype).reshape(())).node
            found = ew.where(ew.isnan(node), number, found)
        return found

    return apply(build, x)


def _array(*choices: tuple[Any, Any]) -> np.ndarray | None:
    """The one list that is given, with its element type."""
    for values, dtype in choices:
        if values is not None and len(values):
            return np.array(values, dtype)
    return None


@op("LabelEncoder", since=2, domain=DOMAIN, raw=True)
def label_encoder(
    x: Any,
    *,
    default_float: float = -0.0,
    default_int64: int = -1,
    default_string: str = "_Unused",
    default_tensor: np.ndarray | None = None,
    keys_floats: Sequence[float] | None = None,
    keys_int64s: Sequence[int] | None = None,
    keys_strings: Sequence[str] | None = None,
    keys_tensor: np.ndarray | None = None,
    values_floats: Sequence[float] | None = None,
    values_int64s: Sequence[int] | None = None,
    values_strings: Sequence[str] | None = None,
    values_tensor: np.ndarray | None = None,
    ctx: Call,
) -> Any:
    """Each element's value by a table of keys."""
    keys, values = keys_tensor, values_tensor
    if keys is None:
        keys = _array((keys_strings, object), (keys_int64s, np.int64), (keys_floats, np.float32))
    if values is None:
        values = _array(
            (values_strings, object), (values_int64s, np.int64), (values_floats, np.float32)
        )
    if keys is None or values is None:
        raise FormatError("wants keys and values")
    default: Any = default_tensor
    if default is None:
        kinds = {"O": default_string, "i": default_int64, "f": default_float}
        default = np.array(kinds[values.dtype.kind], values.dtype)
    return looked_up(ctx, x, keys.reshape(-1), values.reshape(-1), np.asarray(default))


@op("LabelEncoder", since=1, domain=DOMAIN, raw=True)
def label_encoder_1(
    x: Any,
    *,
    classes_strings: Sequence[str] = (),
    default_int64: int = -1,
    default_string: str = "_Unused",
    ctx: Call,
) -> Any:
    """In version 1 between strings and their places."""
    numbers = np.arange(len(classes_strings))
    return _either_way(ctx, x, classes_strings, numbers, default_int64, default_string)


@op("CategoryMapper", domain=DOMAIN, raw=True)
def category_mapper(
    x: Any,
    *,
    cats_int64s: Sequence[int] = (),
    cats_strings: Sequence[str] = (),
    default_int64: int = -1,
    default_string: str = "_Unused",
    ctx: Call,
) -> Any:
    """Strings to integers, or integers to strings, by two lists."""
    numbers = np.array(cats_int64s, np.int64)
    return _either_way(ctx, x, cats_strings, numbers, default_int64, default_string)


def _either_way(
    call: Call,
    x: Any,
    strings: Sequence[str],
    numbers: np.ndarray,
    default_number: int,
    default_string: str,
) -> Any:
    names = np.array(strings, object)
    if isinstance(x, np.ndarray) and x.dtype == object:
        return looked_up(call, x, names, numbers, np.array(default_number))
    return looked_up(call, x, numbers, names, np.array(default_string, object))


@op("OneHotEncoder", domain=DOMAIN, raw=True)
def one_hot_encoder(
    x: Any,
    *,
    cats_int64s: Sequence[int] | None = None,
    cats_strings: Sequence[str] | None = None,
    zeros: int = 1,
    ctx: Call,
) -> Any:
    """A new last axis with 1 at each element's category; zeros for what is none of them."""
    categories = labels_of(cats_int64s, cats_strings)
    if categories is None:
        raise FormatError("there are no categories")
    if not zeros:
        array = ctx.value(x)
        kinds = array if array.dtype == object else array.astype(np.int64)
        if not np.isin(kinds.astype(categories.dtype), categories).all():
            raise FormatError("an element is in no category, and zeros=0 forbids that")
    if isinstance(x, np.ndarray) and x.dtype == object:
        hit = x[..., None].astype(str) == categories.astype(str)
        return hit.astype(np.float32)
    table = tensor_of(categories.astype(np.int64)).node

    def build(node: Node) -> Node:
        whole = views.expand_dims(ew.cast(node, i64), len(node.shape))
        return ew.cast(ew.eq(whole, table), f32)

    return apply(build, x)


# --- maps ----------------------------------------------------------------------------------------


@op("ZipMap", domain=DOMAIN, boundary=True)
def zip_map(
    x: np.ndarray,
    *,
    classlabels_int64s: Sequence[int] | None = None,
    classlabels_strings: Sequence[str] | None = None,
) -> list[Any]:
    """A dictionary from label to number for each row."""
    labels = labels_of(classlabels_int64s, classlabels_strings)
    rows = x.reshape(1, -1) if x.ndim == 1 else x
    if labels is None or rows.shape[1] != len(labels):
        raise ShapeError(
            f"{0 if labels is None else len(labels)} labels of {rows.shape[1]} columns"
        )
    names = labels.tolist()
    return [dict(zip(names, row)) for row in rows.tolist()]


@op("DictVectorizer", domain=DOMAIN, raw=True)
def dict_vectorizer(
    x: dict[Any, Any],
    *,
    int64_vocabulary: Sequence[int] | None = None,
    string_vocabulary: Sequence[str] | None = None,
) -> np.ndarray:
    """The values of a dictionary in the order of a vocabulary, [1, C]; 0 or "" for what lacks."""
    words = labels_of(int64_vocabulary, string_vocabulary)
    if words is None:
        raise FormatError("there is no vocabulary")
    known = set(words.tolist())
    strange = [k for k in x if k not in known]
    if strange:
        raise FormatError(f"the vocabulary has no {strange[0]!r}")
    example = np.asarray(next(iter(x.values()), 0.0))
    if example.dtype.kind in "US":
        return np.array([[x.get(w, "") for w in words.tolist()]], object)
    kind = np.float32 if isinstance(next(iter(x.values()), 0.0), float) else example.dtype
    return np.array([[x.get(w, 0) for w in words.tolist()]], kind)


@op("CastMap", domain=DOMAIN, raw=True)
def cast_map(
    x: dict[int, Any], *, cast_to: str = "TO_FLOAT", map_form: str = "DENSE", max_map: int = 1
) -> np.ndarray:
    """The values of a dictionary by ascending key, [1, C]; ``SPARSE``: the key is the place."""
    kinds: dict[str, Any] = {"TO_FLOAT": np.float32, "TO_INT64": np.int64, "TO_STRING": object}
    if cast_to not in kinds or map_form not in ("DENSE", "SPARSE"):
        raise UnsupportedError(f"cast_to {cast_to!r} or map_form {map_form!r} is not known")
    convert: Any = {"TO_FLOAT": float, "TO_INT64": lambda v: int(float(v)), "TO_STRING": str}
    keys = sorted(x)
    values = [convert[cast_to](x[k]) for k in keys]
    if map_form == "DENSE":
        return np.array([values], kinds[cast_to])
    if keys and not 0 <= keys[0] <= keys[-1] < max_map:
        raise ShapeError(f"keys {keys[0]} to {keys[-1]} do not fit max_map {max_map}")
    found = np.full((1, max_map), "" if cast_to == "TO_STRING" else 0, kinds[cast_to])
    found[0, keys] = values
    return found

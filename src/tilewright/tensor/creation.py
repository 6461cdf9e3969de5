"""Making tensors: from numbers, from other arrays, and filled ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import DType, bf16, boolean, from_float32
from tilewright.errors import DTypeError, ShapeError
from tilewright.graph import Node, data_node, scalar_node
from tilewright.ops import elementwise as ew
from tilewright.ops import views
from tilewright.runtime.buffers import empty as empty_buffer
from tilewright.runtime.buffers import from_array
from tilewright.sizes import Size, has_value, is_fixed, length_of, whole
from tilewright.tensor.core import Tensor, apply
from tilewright.tensor.nodes import cast_node, fresh, number_node, own
from tilewright.tensor.promotion import (
    DEFAULT_FLOAT,
    DEFAULT_INT,
    RANGES,
    Number,
    as_dtype,
    scalar_dtype,
)

__all__ = [
    "arange",
    "asarray",
    "check_device",
    "empty",
    "empty_like",
    "eye",
    "from_dlpack",
    "from_numpy",
    "full",
    "full_like",
    "linspace",
    "meshgrid",
    "ones",
    "ones_like",
    "shape_tuple",
    "tril",
    "triu",
    "zeros",
    "zeros_like",
]


def check_device(device: Any) -> None:
    """Raise ``ValueError`` unless ``device`` is None or ``"cpu"``."""
    if device is not None and device != "cpu":
        raise ValueError(f'there is one device, "cpu"; got {device!r}')


def from_numpy(array: np.ndarray, dtype: DType | None = None, *, copy: bool = True) -> Tensor:
    """A tensor of an ndarray's elements.

    ``dtype`` is the element type when NumPy cannot name it (bf16, given as uint16 bit patterns).
    With ``copy=False`` the tensor looks at the array's memory, whatever its strides; who changes
    the array then changes the tensor.
    """
    if array.dtype.byteorder == ">" or (
        array.dtype.byteorder != "=" and array.dtype.itemsize > 1 and not array.dtype.isnative
    ):
        array = array.astype(array.dtype.newbyteorder("="))
    if copy:
        kind = dtype or _dtype_of(array)
        buffer = empty_buffer(kind, array.shape)
        buffer.numpy()[...] = array
    else:
        buffer = from_array(array, dtype)
    tensor = Tensor(data_node(buffer))
    own(tensor.node, tensor)
    return tensor


def _dtype_of(array: np.ndarray) -> DType:
    try:
        return as_dtype(array.dtype)
    except DTypeError:
        raise DTypeError(
            f"no tensor holds elements of NumPy dtype {array.dtype}: convert the array first"
        ) from None


def asarray(
    obj: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None
) -> Tensor:
    """A tensor of ``obj``: a tensor, a number, (nested) sequences of these, or an array.

    Numbers get the default dtypes (float32, int64, bool). Arrays of other libraries, by DLPack or
    the buffer protocol, are copied unless ``copy=False``: a lazy tensor must not see later changes.

    Args:
        dtype: default that of ``obj``.
        copy: True always copies, False never does (``ValueError`` if it had to), None as needed.
    """
    check_device(device)
    wanted = None if dtype is None else as_dtype(dtype)
    if isinstance(obj, Tensor):
        if wanted is None or obj.dtype is wanted:
            return +obj if copy else obj
        if copy is False:
            raise ValueError(f"a {obj.dtype} tensor as {wanted} needs a copy")
        return apply(cast_node, obj, dtype=wanted)
    if isinstance(obj, np.ndarray) or (
        hasattr(obj, "__array_interface__") and not isinstance(obj, np.generic)
    ):
        return _from_array(np.asarray(obj), wanted, copy)
    if hasattr(obj, "__dlpack__"):
        found = from_dlpack(obj, copy=copy)
        if copy is None:
            found = Tensor(views.copy(found.node)).realize()
        return asarray(found, dtype=wanted, copy=False if copy is False else None)
    if isinstance(obj, (bytes, bytearray, memoryview)) or hasattr(obj, "__buffer__"):
        return _from_array(np.asarray(memoryview(obj)), wanted, copy)
    if copy is False:
        raise ValueError(f"a {type(obj).__name__} has no memory to share: it needs a copy")
    return _from_numbers(obj, wanted)


def _from_array(array: np.ndarray, wanted: DType | None, copy: bool | None) -> Tensor:
    given = _dtype_of(array)
    if wanted is None or wanted is given:
        return from_numpy(array, copy=copy is not False)
    if copy is False:
        raise ValueError(f"a {array.dtype} array as {wanted} needs a copy")
    return from_numpy(array, copy=True).astype(wanted)


def _from_numbers(obj: Any, wanted: DType | None) -> Tensor:
    """A tensor of a number or of nested sequences of numbers and tensors."""
    if isinstance(obj, (list, tuple)) and _has_tensor(obj):
        return _stacked(obj, wanted)
    if isinstance(obj, complex) and not isinstance(obj, (float, int)):
        if obj.imag != 0:
            raise DTypeError(f"no dtype holds {obj!r}: tensors are real numbers or bool")
        obj = obj.real
    if isinstance(obj, np.generic) or not isinstance(obj, (bool, int, float, list, tuple, range)):
        try:
            array = np.asarray(obj)
        except (TypeError, ValueError) as error:
            raise DTypeError(f"asarray takes numbers, sequences and arrays: {error}") from None
        return _from_array(array, wanted, None)
    try:
        array = np.asarray(obj)
    except ValueError as error:
        raise ShapeError(f"asarray: the sequences differ in length ({error})") from None
    except OverflowError:
        array = np.asarray(obj, object)
    if array.dtype.kind not in "bfiuO" or (array.dtype.kind == "O" and not _all_ints(array)):
        raise DTypeError(f"no dtype holds {_example(obj)!r}: tensors are real numbers or bool")
    if array.dtype.kind == "f" and _all_ints(np.asarray(obj, object)):
        array = np.asarray(obj, object)  # ints of both signs, some beyond int64
    return _from_numbers_array(array, wanted)


def _from_numbers_array(array: np.ndarray, wanted: DType | None) -> Tensor:
    kind = array.dtype.kind if array.dtype.kind != "O" else "i"
    dtype = wanted or {"b": boolean, "f": DEFAULT_FLOAT}.get(kind, DEFAULT_INT)
    if dtype.is_integer and kind in "iu" and array.size:
        low, high = RANGES[dtype]
        if int(array.min()) < low or int(array.max()) > high:
            raise OverflowError(
                f"asarray: integers from {array.min()} to {array.max()} do not "
                f"fit {dtype} ({low} to {high})"
            )
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype is bf16:
            return from_numpy(from_float32(array.astype(np.float32)), bf16, copy=True)
        return from_numpy(array.astype(dtype.storage), copy=True)


def _all_ints(array: np.ndarray) -> bool:
    """Whether an array of Python objects has ints only, and some."""
    return array.size > 0 and all(type(v) is int for v in array.flat)


def _has_tensor(items: Sequence[Any]) -> bool:
    return any(
        isinstance(v, Tensor) or (isinstance(v, (list, tuple)) and _has_tensor(v)) for v in items
    )


def _stacked(items: Sequence[Any], wanted: DType | None) -> Tensor:
    from tilewright.tensor.manipulation import stack

    parts = [v if isinstance(v, Tensor) else _from_numbers(v, None) for v in items]
    result = stack(parts)
    return result if wanted is None else result.astype(wanted, copy=False)


def _example(obj: Any) -> Any:
    while isinstance(obj, (list, tuple)) and obj:
        obj = obj[0]
    return obj


def from_dlpack(x: Any, /, *, device: Any = None, copy: bool | None = None) -> Tensor:
    """A tensor over the memory of another library's array, without a copy.

    Raises ``BufferError`` when the memory is not on the cpu, or cannot be described.
    """
    from tilewright.tensor.dlpack import load

    check_device(device)
    if isinstance(x, Tensor):
        return +x if copy else x
    return load(x, copy=copy)


def shape_tuple(shape: int | Sequence[int]) -> tuple[int, ...]:
    """Sizes as a tuple; one may be given without."""
    sizes: Any = (shape,) if hasattr(shape, "__index__") else shape
    out = tuple([whole(n) for n in sizes])
    if any(n < 0 for n in out):
        raise ShapeError(f"sizes are not negative, got {out}")
    return out


def filled(shape: tuple[int, ...], value: Number, dtype: DType) -> Node:
    """A node of equal numbers; the number is handed over at run time."""
    number = number_node(value, dtype)
    if not shape:  # a tensor may become state, a bare number not
        return fresh(number)
    return views.broadcast(number, shape)


def full(
    shape: int | Sequence[int], fill_value: Number, *, dtype: Any = None, device: Any = None
) -> Tensor:
    """``fill_value`` everywhere; the default dtype is that of the number's kind."""
    check_device(device)
    if isinstance(fill_value, (Tensor, np.generic)):
        fill_value = fill_value.item()
    if dtype is None:
        kinds = {bool: boolean, int: DEFAULT_INT, float: DEFAULT_FLOAT, Size: DEFAULT_INT}
        if type(fill_value) not in kinds:
            raise DTypeError(f"full wants a bool, an int or a float, got {fill_value!r}")
        kind = kinds[type(fill_value)]
    else:
        kind = as_dtype(dtype)
    if kind.is_integer and has_value(fill_value):
        scalar_dtype(fill_value, kind)  # raises when it does not fit
    return Tensor(filled(shape_tuple(shape), fill_value, kind))


def zeros(shape: int | Sequence[int], *, dtype: Any = None, device: Any = None) -> Tensor:
    """Zeros, float32 by default."""
    check_device(device)
    kind = DEFAULT_FLOAT if dtype is None else as_dtype(dtype)
    return Tensor(filled(shape_tuple(shape), 0, kind))


def ones(shape: int | Sequence[int], *, dtype: Any = None, device: Any = None) -> Tensor:
    """Ones, float32 by default."""
    check_device(device)
    kind = DEFAULT_FLOAT if dtype is None else as_dtype(dtype)
    return Tensor(filled(shape_tuple(shape), 1, kind))


def empty(shape: int | Sequence[int], *, dtype: Any = None, device: Any = None) -> Tensor:
    """Zeros: no tensor shows memory that nobody wrote."""
    return zeros(shape, dtype=dtype, device=device)


def full_like(x: Tensor, /, fill_value: Number, *, dtype: Any = None, device: Any = None) -> Tensor:
    """``fill_value`` everywhere, in the shape (and dtype) of ``x``."""
    return full(x.shape, fill_value, dtype=x.dtype if dtype is None else dtype, device=device)


def zeros_like(x: Tensor, /, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Zeros in the shape (and dtype) of ``x``."""
    return zeros(x.shape, dtype=x.dtype if dtype is None else dtype, device=device)


def ones_like(x: Tensor, /, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Ones in the shape (and dtype) of ``x``."""
    return ones(x.shape, dtype=x.dtype if dtype is None else dtype, device=device)


def empty_like(x: Tensor, /, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Zeros in the shape (and dtype) of ``x``."""
    return zeros_like(x, dtype=dtype, device=device)


def _number(value: Any) -> Number:
    return value.item() if isinstance(value, (Tensor, np.generic)) else value


def arange(
    start: int | float,
    /,
    stop: int | float | None = None,
    step: int | float = 1,
    *,
    dtype: Any = None,
    device: Any = None,
) -> Tensor:
    """``start, start + step, ...`` up to but without ``stop``; ``arange(n)`` starts at 0.

    int64 if all are ints, float32 otherwise. Element ``i`` is ``start + i * step``, computed in
    float64 (integers exactly) and rounded once.
    """
    check_device(device)
    first, last, hop = _number(start), None if stop is None else _number(stop), _number(step)
    if last is None:
        first, last = 0, first
    if hop == 0:
        raise ValueError("arange: the step is 0")
    integral = all(has_value(v) for v in (first, last, hop))
    if dtype is None:
        kind = DEFAULT_INT if integral else DEFAULT_FLOAT
    else:
        kind = as_dtype(dtype)
    if integral:
        count = length_of(first, last, hop)
    else:
        count = max(0, math.ceil((last - first) / hop))
    if kind.is_integer and integral:
        if count:
            end = first + (count - 1) * hop
            for value in (first, end):
                if not RANGES[kind][0] <= value <= RANGES[kind][1]:
                    raise OverflowError(f"arange: {value} does not fit {kind}")
        return Tensor(_progression(whole(first), whole(hop), count, kind))
    if integral and kind.bits >= 32 and not is_fixed((first, last, hop)):  # type: ignore[arg-type]
        exact = _progression(whole(first), whole(hop), count, DEFAULT_INT)
        return Tensor(cast_node(exact, kind))
    # few programs ask for these; their last bit matters more than where they are computed
    values = first + np.arange(count, dtype=np.float64) * hop
    return from_numpy(values, copy=False).astype(kind)


def _progression(first: int, hop: int, count: int, dtype: DType) -> Node:
    """Integers ``first + i * hop`` computed by the engine, modulo the width of ``dtype``."""
    node = ew.iota((count,), 0, dtype)
    if hop != 1:
        node = ew.mul(node, scalar_node(_wrapped(hop, dtype), dtype))
    return ew.add(node, scalar_node(first, dtype)) if first else node


def _wrapped(value: int, dtype: DType) -> int:
    low, _ = RANGES[dtype]
    return (value - low) % (1 << dtype.bits) + low


def linspace(
    start: int | float,
    stop: int | float,
    /,
    num: int,
    *,
    dtype: Any = None,
    device: Any = None,
    endpoint: bool = True,
) -> Tensor:
    """``num`` evenly spaced numbers from ``start`` to ``stop``, computed in float64, rounded once.

    ``endpoint=False`` leaves ``stop`` out (the spacing becomes ``(stop - start) / num``).
    """
    check_device(device)
    if num < 0:
        raise ValueError(f"linspace: num is not negative, got {num}")
    kind = DEFAULT_FLOAT if dtype is None else as_dtype(dtype)
    first, last = _number(start), _number(stop)
    values = np.linspace(first, last, num, endpoint=endpoint, dtype=np.float64)
    if kind.is_integer and num and isinstance(first, int):
        exact = values.astype(kind.storage)
        exact[0] = first
        if endpoint and num > 1 and isinstance(last, int):
            exact[-1] = last
        return from_numpy(exact, copy=False)
    return from_numpy(values, copy=False).astype(kind)


def eye(
    n_rows: int,
    n_cols: int | None = None,
    /,
    *,
    k: int = 0,
    dtype: Any = None,
    device: Any = None,
) -> Tensor:
    """Ones on the ``k``-th diagonal (above the main one if positive), zeros elsewhere."""
    check_device(device)
    kind = DEFAULT_FLOAT if dtype is None else as_dtype(dtype)
    shape = shape_tuple((n_rows, n_rows if n_cols is None else n_cols))
    return Tensor(cast_node(ew.eq(_diagonal(shape), scalar_node(k, DEFAULT_INT)), kind))


def _diagonal(shape: tuple[int, ...]) -> Node:
    """Which diagonal each element of a matrix lies on: column minus row."""
    return ew.sub(ew.iota(shape[-2:], 1, DEFAULT_INT), ew.iota(shape[-2:], 0, DEFAULT_INT))


def _triangle(x: Tensor, k: int, lower: bool) -> Tensor:
    if x.ndim < 2:
        raise ShapeError(f"a triangle is of matrices, the tensor has shape {x.shape}")
    bound = scalar_node(k, DEFAULT_INT)
    diagonal = _diagonal(x.shape)
    kept = ew.le(diagonal, bound) if lower else ew.ge(diagonal, bound)

    def build(node: Node) -> Node:
        return ew.where(kept, node, number_node(0, node.dtype))

    return apply(build, x)


def tril(x: Tensor, /, *, k: int = 0) -> Tensor:
    """The lower triangle of each matrix (up to diagonal ``k``), zeros above."""
    return _triangle(x, k, True)


def triu(x: Tensor, /, *, k: int = 0) -> Tensor:
    """The upper triangle of each matrix (from diagonal ``k``), zeros below."""
    return _triangle(x, k, False)


def meshgrid(*arrays: Tensor, indexing: str = "xy") -> tuple[Tensor, ...]:
    """Coordinate tensors of a grid from one vector per axis.

    ``"xy"`` (Cartesian) exchanges the first two axes, ``"ij"`` (matrix) does not.
    """
    if indexing not in ("xy", "ij"):
        raise ValueError(f'meshgrid: indexing is "xy" or "ij", got {indexing!r}')
    for x in arrays:
        if x.ndim != 1:
            raise ShapeError(f"meshgrid wants vectors, got shape {x.shape}")
        if x.dtype is not arrays[0].dtype:
            raise DTypeError(
                "meshgrid wants vectors of one dtype, got "
                + ", ".join(str(a.dtype) for a in arrays)
            )
    order = list(range(len(arrays)))
    if indexing == "xy" and len(arrays) > 1:
        order[0], order[1] = 1, 0
    shape = [0] * len(arrays)
    for i, x in zip(order, arrays):
        shape[i] = x.shape[0]

    def spread(node: Node, axis: int) -> Node:
        sizes = [1] * len(shape)
        sizes[axis] = shape[axis]
        return views.broadcast(views.reshape(node, tuple(sizes)), tuple(shape))

    return tuple(apply(spread, x, axis=axis) for axis, x in zip(order, arrays))

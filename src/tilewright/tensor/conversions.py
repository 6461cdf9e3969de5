"""Values of tensors as what Python and NumPy know: numbers, lists, arrays, text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import DTypeError, ShapeError
from tilewright.tensor.memory import array_of

if TYPE_CHECKING:
    from tilewright.tensor.core import Tensor

__all__ = ["Conversions"]


class Conversions:
    """What asks a tensor for its value; all of it realises the tensor."""

    __slots__ = ()

    def numpy(self: Any) -> np.ndarray:
        """The value as a read-only ndarray over the same memory (bf16: a float32 copy)."""
        return array_of(self.buffer("numpy()"))

    def __array__(self: Any, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = array_of(self.buffer("a conversion to a NumPy array"))
        if dtype is not None and array.dtype != np.dtype(dtype):
            if copy is False:
                raise ValueError(f"a {self.dtype} tensor as {np.dtype(dtype)} needs a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    def item(self: Any) -> bool | int | float:
        """The value of a tensor of one element, as a Python number."""
        if self.size != 1:
            raise ShapeError(f"item() wants one element, the tensor has shape {self.shape}")
        return array_of(self.buffer("item()")).item()

    def tolist(self: Any) -> Any:
        """The value as (nested) lists of Python numbers; a number if 0-d."""
        return array_of(self.buffer("tolist()")).tolist()

    def __bool__(self: Any) -> bool:
        return bool(self._number("bool()"))

    def __int__(self: Any) -> int:
        return int(self._number("int()"))

    def __float__(self: Any) -> float:
        return float(self._number("float()"))

    def __complex__(self: Any) -> complex:
        return complex(self._number("complex()"))

    def __index__(self: Any) -> int:
        if not self.dtype.is_integer:
            raise DTypeError(f"an index is an integer, this tensor is {self.dtype}")
        return int(self._number("an index"))

    def _number(self: Any, what: str) -> bool | int | float:
        if self.node.shape:
            raise DTypeError(
                f"{what} wants a tensor without axes, this one has shape {self.shape}: "
                "use item() for one element, any() or all() for a truth"
            )
        return array_of(self.buffer(what)).item()

    def __repr__(self: Any) -> str:
        from tilewright.tensor.printing import text_of

        return text_of(self)

    def __format__(self: Any, spec: str) -> str:
        return format(self.item(), spec) if spec and self.ndim == 0 else format(repr(self), spec)

    def __len__(self: Any) -> int:
        if not self.node.shape:
            raise DTypeError("a tensor without axes has no length")
        return self.shape[0]

    def __iter__(self: Any) -> Iterator[Tensor]:
        if not self.node.shape:
            raise DTypeError("a tensor without axes cannot be iterated over")
        return iter([self[i] for i in range(self.shape[0])])

    def __contains__(self: Any, value: Any) -> bool:
        return bool((self == value).any())

    def __reduce__(self: Any) -> Any:
        array = self.buffer("pickling").numpy()
        return _rebuild, (
            np.ascontiguousarray(array).reshape(self.shape),
            self.dtype.name,
            self.requires_grad and self.is_leaf,
        )


def _rebuild(array: np.ndarray, dtype: str, requires_grad: bool) -> Tensor:
    """What unpickles a tensor."""
    from tilewright.dtypes import by_name
    from tilewright.tensor.creation import from_numpy

    tensor = from_numpy(array, by_name(dtype))
    tensor.requires_grad = requires_grad
    return tensor

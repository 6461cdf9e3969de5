"""The functions of the namespace as methods of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tilewright.tensor.promotion import Number

if TYPE_CHECKING:
    from tilewright.tensor.core import Tensor

__all__ = ["Axes", "Methods"]

Axes = int | Sequence[int] | None


class Methods:
    """What tensors offer as methods; each is the function of the same name."""

    __slots__ = ()

    # dtype and shape

    def astype(self: Any, dtype: Any, /, *, copy: bool = True) -> Tensor:
        from tilewright.tensor.data_types import astype

        return astype(self, dtype, copy=copy)

    def float(self: Any) -> Tensor:
        """As f32."""
        return self.astype("f32", copy=False)

    def bfloat16(self: Any) -> Tensor:
        """As bf16."""
        return self.astype("bf16", copy=False)

    def reshape(self: Any, *shape: Any) -> Tensor:
        """With other sizes, given as a tuple or one by one; one may be -1."""
        from tilewright.tensor.manipulation import reshape

        return reshape(self, _sizes(shape))

    def permute(self: Any, *axes: Any) -> Tensor:
        from tilewright.tensor.manipulation import permute_dims

        return permute_dims(self, _sizes(axes))

    def transpose(self: Any, first: int = -2, second: int = -1) -> Tensor:
        """With two axes exchanged."""
        from tilewright.tensor.manipulation import permute_dims

        order = list(range(self.ndim))
        order[first], order[second] = order[second], order[first]
        return permute_dims(self, tuple(order))

    def flatten(self: Any, start: int = 0, end: int = -1) -> Tensor:
        """The axes from ``start`` to ``end`` (inclusive) as one."""
        if self.ndim == 0:
            return self.reshape(1)
        first, last = range(self.ndim)[start], range(self.ndim)[end]
        return self.reshape((*self.shape[:first], -1, *self.shape[last + 1 :]))

    def squeeze(self: Any, axis: int | tuple[int, ...] | None = None) -> Tensor:
        """Without axes of size 1: ``axis``, or all of them."""
        from tilewright.tensor.manipulation import squeeze

        if axis is None:
            axis = tuple(i for i, n in enumerate(self.shape) if n == 1)
        return squeeze(self, axis)

    def unsqueeze(self: Any, axis: int) -> Tensor:
        from tilewright.tensor.manipulation import expand_dims

        return expand_dims(self, axis=axis)

    def broadcast_to(self: Any, *shape: Any) -> Tensor:
        from tilewright.tensor.manipulation import broadcast_to

        return broadcast_to(self, _sizes(shape))

    def flip(self: Any, axis: int | tuple[int, ...] | None = None) -> Tensor:
        from tilewright.tensor.manipulation import flip

        return flip(self, axis=axis)

    # reductions

    def sum(self: Any, axis: Axes = None, *, dtype: Any = None, keepdims: bool = False) -> Tensor:
        from tilewright.tensor.reductions import sum

        return sum(self, axis=axis, dtype=dtype, keepdims=keepdims)

    def prod(self: Any, axis: Axes = None, *, dtype: Any = None, keepdims: bool = False) -> Tensor:
        from tilewright.tensor.reductions import prod

        return prod(self, axis=axis, dtype=dtype, keepdims=keepdims)

    def mean(self: Any, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
        from tilewright.tensor.reductions import mean

        return mean(self, axis=axis, keepdims=keepdims)

    def var(
        self: Any, axis: Axes = None, *, correction: Number = 0, keepdims: bool = False
    ) -> Tensor:
        from tilewright.tensor.reductions import var

        return var(self, axis=axis, correction=correction, keepdims=keepdims)

    def std(
        self: Any, axis: Axes = None, *, correction: Number = 0, keepdims: bool = False
    ) -> Tensor:
        from tilewright.tensor.reductions import std

        return std(self, axis=axis, correction=correction, keepdims=keepdims)

    def max(self: Any, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
        from tilewright.tensor.reductions import max

        return max(self, axis=axis, keepdims=keepdims)

    def min(self: Any, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
        from tilewright.tensor.reductions import min

        return min(self, axis=axis, keepdims=keepdims)

    def any(self: Any, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
        from tilewright.tensor.reductions import any

        return any(self, axis=axis, keepdims=keepdims)

    def all(self: Any, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
        from tilewright.tensor.reductions import all

        return all(self, axis=axis, keepdims=keepdims)

    def argmax(self: Any, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
        from tilewright.tensor.reductions import argmax

        return argmax(self, axis=axis, keepdims=keepdims)

    def argmin(self: Any, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
        from tilewright.tensor.reductions import argmin

        return argmin(self, axis=axis, keepdims=keepdims)

    def softmax(self: Any, axis: int = -1) -> Tensor:
        from tilewright.tensor.reductions import softmax

        return softmax(self, axis=axis)

    def log_softmax(self: Any, axis: int = -1) -> Tensor:
        from tilewright.tensor.reductions import log_softmax

        return log_softmax(self, axis=axis)

    def cumsum(self: Any, axis: int | None = None) -> Tensor:
        from tilewright.tensor.scans import cumulative_sum

        return cumulative_sum(self, axis=axis)

    # element by element

    def exp(self: Any) -> Tensor:
        from tilewright.tensor.elementwise import exp

        return exp(self)

    def log(self: Any) -> Tensor:
        from tilewright.tensor.elementwise import log

        return log(self)

    def sqrt(self: Any) -> Tensor:
        from tilewright.tensor.elementwise import sqrt

        return sqrt(self)

    def rsqrt(self: Any) -> Tensor:
        from tilewright.tensor.elementwise import rsqrt

        return rsqrt(self)

    def square(self: Any) -> Tensor:
        from tilewright.tensor.elementwise import square

        return square(self)

    def abs(self: Any) -> Tensor:
        return self.__abs__()

    def sin(self: Any) -> Tensor:
        from tilewright.tensor.elementwise import sin

        return sin(self)

    def cos(self: Any) -> Tensor:
        from tilewright.tensor.elementwise import cos

        return cos(self)

    def tanh(self: Any) -> Tensor:
        from tilewright.tensor.elementwise import tanh

        return tanh(self)

    def sigmoid(self: Any) -> Tensor:
        from tilewright.tensor.elementwise import sigmoid

        return sigmoid(self)

    def relu(self: Any) -> Tensor:
        from tilewright.tensor.elementwise import relu

        return relu(self)

    def silu(self: Any) -> Tensor:
        from tilewright.tensor.elementwise import silu

        return silu(self)

    def gelu(self: Any, approximate: str = "none") -> Tensor:
        from tilewright.tensor.elementwise import gelu

        return gelu(self, approximate=approximate)

    def clip(self: Any, min: Any = None, max: Any = None) -> Tensor:
        from tilewright.tensor.elementwise import clip

        return clip(self, min, max)

    # protocols of the Array API standard

    def __array_namespace__(self: Any, *, api_version: str | None = None) -> Any:
        """The module that has the functions of the standard: ``tilewright``."""
        from tilewright.tensor.info import namespace

        return namespace(api_version)

    def to_device(self: Any, device: Any, /, *, stream: int | Any | None = None) -> Tensor:
        """The tensor on ``device``: ``"cpu"`` is the only one."""
        from tilewright.tensor.creation import check_device

        if stream is not None:
            raise ValueError(f"the cpu device has no streams, got {stream!r}")
        check_device(device)
        return self

    def __dlpack__(
        self: Any,
        *,
        stream: int | Any | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        from tilewright.tensor.dlpack import export

        return export(self, stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self: Any) -> tuple[Any, int]:
        """``(kDLCPU, 0)``."""
        from tilewright.tensor.dlpack import DLDeviceType

        return DLDeviceType.CPU, 0

    # parts

    def __getitem__(self: Any, key: Any, /) -> Tensor:
        from tilewright.tensor.indexing import getitem

        return getitem(self, key)

    def __setitem__(self: Any, key: Any, value: Any, /) -> None:
        from tilewright.tensor.indexing import setitem

        setitem(self, key, value)


def _sizes(given: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes given as one sequence or one by one."""
    if len(given) == 1 and not hasattr(given[0], "__index__"):
        return tuple(given[0])
    return given

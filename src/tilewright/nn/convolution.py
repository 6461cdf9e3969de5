"""Convolutions, pooling, batch normalisation: as in PyTorch, channels second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tilewright.dtypes import i64
from tilewright.errors import ShapeError
from tilewright.nn import functional as F
from tilewright.nn.layers import uniform_parameter
from tilewright.nn.module import Module, Parameter
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import ones, zeros
from tilewright.tensor.modes import no_grad, realize_along

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
]

Numbers = int | Sequence[int]


def _sizes(value: Any, n: int) -> tuple[Any, ...]:
    sizes = (value,) * n if isinstance(value, int) else tuple(value)
    if len(sizes) != n:
        raise ShapeError(f"a number or {n} of them, one per axis; got {value!r}")
    return sizes


class _Conv(Module):
    """What convolutions share; weight (O, C/groups, *kernel), uniform within 1/sqrt(fan in)."""

    axes = 0

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: Numbers,
        stride: Numbers = 1,
        padding: str | Numbers = 0,
        dilation: Numbers = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        if groups < 1 or channels_in % groups or channels_out % groups:
            raise ShapeError(
                f"{type(self).__name__}: {groups} groups do not cut {channels_in} and "
                f"{channels_out} channels"
            )
        size = _sizes(kernel, self.axes)
        fan_in = channels_in // groups * math.prod(size)
        self.weight = uniform_parameter((channels_out, channels_in // groups, *size), fan_in)
        self.bias = uniform_parameter((channels_out,), fan_in) if bias else None
        self.stride, self.dilation = _sizes(stride, self.axes), _sizes(dilation, self.axes)
        self.padding = padding if isinstance(padding, str) else _sizes(padding, self.axes)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return F.conv(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class Conv1d(_Conv):
    """x (N, C, L), weight (O, C/groups, kernel)."""

    axes = 1


class Conv2d(_Conv):
    """x (N, C, H, W), weight (O, C/groups, *kernel)."""

    axes = 2


class Conv3d(_Conv):
    """x (N, C, D, H, W), weight (O, C/groups, *kernel)."""

    axes = 3


class _ConvTranspose(Module):
    """What transposed convolutions share; weight (C, O/groups, *kernel)."""

    axes = 0

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: Numbers,
        stride: Numbers = 1,
        padding: Numbers = 0,
        output_padding: Numbers = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Numbers = 1,
    ) -> None:
        if groups < 1 or channels_in % groups or channels_out % groups:
            raise ShapeError(
                f"{type(self).__name__}: {groups} groups do not cut {channels_in} and "
                f"{channels_out} channels"
            )
        size = _sizes(kernel, self.axes)
        fan_in = channels_out // groups * math.prod(size)  # of axis 1, as PyTorch counts it
        self.weight = uniform_parameter((channels_in, channels_out // groups, *size), fan_in)
        self.bias = uniform_parameter((channels_out,), fan_in) if bias else None
        self.stride, self.padding = _sizes(stride, self.axes), _sizes(padding, self.axes)
        self.output_padding = _sizes(output_padding, self.axes)
        self.dilation, self.groups = _sizes(dilation, self.axes), groups

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose(
            x,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
        )


class ConvTranspose1d(_ConvTranspose):
    """x (N, C, L), weight (C, O/groups, kernel)."""

    axes = 1


class ConvTranspose2d(_ConvTranspose):
    """x (N, C, H, W), weight (C, O/groups, *kernel)."""

    axes = 2


class ConvTranspose3d(_ConvTranspose):
    """x (N, C, D, H, W), weight (C, O/groups, *kernel)."""

    axes = 3


class _BatchNorm(Module):
    """What batch normalisations share.

    While training, the batch's own statistics are used and ``running_mean`` and ``running_var``
    (unbiased) move towards them by ``momentum`` (None: they are plain averages over all batches);
    otherwise the running ones are used.
    """

    ranks: tuple[int, ...] = ()

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        self.weight = Parameter(ones((channels,))) if affine else None
        self.bias = Parameter(zeros((channels,))) if affine else None
        self.running_mean = zeros((channels,)) if track_running_stats else None
        self.running_var = ones((channels,)) if track_running_stats else None
        self.num_batches_tracked = zeros((), dtype=i64) if track_running_stats else None
        self.eps, self.momentum = eps, momentum

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim not in self.ranks:
            raise ShapeError(
                f"{type(self).__name__} wants {' or '.join(map(str, self.ranks))} axes, got "
                f"shape {x.shape}"
            )
        if not self.training and self.running_mean is not None:
            return F.batch_norm(
                x, self.weight, self.bias, self.running_mean, self.running_var, self.eps
            )
        y, mean, var = F.batch_norm_with_statistics(x, self.weight, self.bias, self.eps)
        if self.training and self.running_mean is not None:
            n = math.prod(x.shape) // max(x.shape[1], 1)
            self._track(mean, var * (n / max(n - 1, 1)))
        return y

    def _track(self, batch_mean: Tensor, batch_var: Tensor) -> None:
        mean, var, count = self.running_mean, self.running_var, self.num_batches_tracked
        assert mean is not None
        assert var is not None
        assert count is not None
        with no_grad():
            count.assign(count + 1)
            step: Any = self.momentum
            if step is None:
                step = 1.0 / count.astype(mean.dtype)
            mean.assign(mean * (1.0 - step) + batch_mean * step)
            var.assign(var * (1.0 - step) + batch_var * step)
            for tensor in (count, mean, var):
                realize_along(tensor)


class BatchNorm1d(_BatchNorm):
    """x (N, C) or (N, C, L), per channel."""

    ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    """x (N, C, H, W), per channel."""

    ranks = (4,)


class BatchNorm3d(_BatchNorm):
    """x (N, C, D, H, W), per channel."""

    ranks = (5,)


class _MaxPool(Module):
    """What maximum poolings share."""

    axes = 0

    def __init__(
        self,
        kernel: Numbers,
        stride: Numbers | None = None,
        padding: Numbers = 0,
        dilation: Numbers = 1,
        ceil_mode: bool = False,
    ) -> None:
        self.kernel = _sizes(kernel, self.axes)
        self.stride = self.kernel if stride is None else _sizes(stride, self.axes)
        self.padding, self.dilation = _sizes(padding, self.axes), _sizes(dilation, self.axes)
        self.ceil_mode = ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool(x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)


class MaxPool1d(_MaxPool):
    """The largest of each window of x (N, C, L)."""

    axes = 1


class MaxPool2d(_MaxPool):
    """The largest of each window of x (N, C, H, W)."""

    axes = 2


class MaxPool3d(_MaxPool):
    """The largest of each window of x (N, C, D, H, W)."""

    axes = 3


class _AvgPool(Module):
    """What average poolings share."""

    axes = 0

    def __init__(
        self,
        kernel: Numbers,
        stride: Numbers | None = None,
        padding: Numbers = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        self.kernel = _sizes(kernel, self.axes)
        self.stride = self.kernel if stride is None else _sizes(stride, self.axes)
        self.padding = _sizes(padding, self.axes)
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool(
            x, self.kernel, self.stride, self.padding, self.ceil_mode, self.count_include_pad
        )


class AvgPool1d(_AvgPool):
    """The mean of each window of x (N, C, L)."""

    axes = 1


class AvgPool2d(_AvgPool):
    """The mean of each window of x (N, C, H, W)."""

    axes = 2


class AvgPool3d(_AvgPool):
    """The mean of each window of x (N, C, D, H, W)."""

    axes = 3


class AdaptiveAvgPool1d(Module):
    """Means over ``size`` windows of x (N, C, L)."""

    def __init__(self, size: int) -> None:
        self.size = (size,)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool(x, self.size)


class AdaptiveAvgPool2d(Module):
    """Means over ``size`` windows per axis of x (N, C, H, W)."""

    def __init__(self, size: Numbers) -> None:
        self.size = _sizes(size, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool(x, self.size)


class AdaptiveMaxPool2d(Module):
    """Maxima over ``size`` windows per axis of x (N, C, H, W)."""

    def __init__(self, size: Numbers) -> None:
        self.size = _sizes(size, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_max_pool(x, self.size)

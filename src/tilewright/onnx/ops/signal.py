"""Signals: Fourier transforms, windows, mel filters."""

from __future__ import annotations

import numpy as np

from tilewright.dtypes import f32
from tilewright.errors import ShapeError
from tilewright.formats.onnx.tensors import numpy_dtype
from tilewright.graph import Node
from tilewright.onnx.registry import op
from tilewright.ops import fourier, windows
from tilewright.tensor.core import Tensor
from tilewright.tensor.manipulation import moveaxis, pad, stack


def _parts(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Real and imaginary part of (..., 1) or (..., 2), in f32 at least."""
    if x.ndim < 2 or x.shape[-1] not in (1, 2):
        raise ShapeError(f"a signal is (..., 1) or (..., 2), got {x.shape}")
    wide = x if x.dtype.bits >= 32 else x.astype(f32)
    return wide[..., 0], wide[..., 1] if x.shape[-1] == 2 else None


def _fitted(x: Tensor, n: int) -> Tensor:
    """The last axis cut to n elements, or filled with zeros."""
    have = x.shape[-1]
    if have >= n:
        return x[..., :n]
    return pad(x, [(0, 0)] * (x.ndim - 1) + [(0, n - have)])


def transform(x: Tensor, length: int | None, axis: int, inverse: bool, onesided: bool) -> Tensor:
    """What DFT does."""
    at = axis + x.ndim if axis < 0 else axis
    if not 0 <= at < x.ndim - 1:
        raise ShapeError(f"axis {axis} is none of the signal's {x.ndim - 1}, the last is the parts")
    re, im = _parts(moveaxis(x, at, x.ndim - 2))
    kind = x.dtype
    if onesided and inverse:
        if im is None:
            raise ShapeError("a one-sided inverse transform wants complex input")
        n = 2 * (re.shape[-1] - 1) if length is None else length
        found = [Tensor(fourier.inverse_real_dft(re.node, im.node, n))]
    else:
        n = re.shape[-1] if length is None else length
        re, im = _fitted(re, n), None if im is None else _fitted(im, n)
        if onesided and im is not None:
            raise ShapeError("a one-sided transform wants real input")
        if onesided:
            found = [Tensor(part) for part in fourier.real_dft(re.node)]
        else:
            other: Node | None = None if im is None else im.node
            found = [Tensor(part) for part in fourier.dft(re.node, other, inverse)]
    y = moveaxis(stack(found, axis=-1), x.ndim - 2, at)
    return y.astype(kind, copy=False)


@op("DFT", since=20, host=(1, 2))
def dft(
    x: Tensor,
    length: np.ndarray | None = None,
    axis: np.ndarray | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """The discrete Fourier transform along an axis of (..., 1 or 2)."""
    n = None if length is None else int(length.item())
    return transform(x, n, -2 if axis is None else int(axis.item()), bool(inverse), bool(onesided))


@op("DFT", since=17, host=(1,))
def dft_17(
    x: Tensor,
    length: np.ndarray | None = None,
    *,
    axis: int = 1,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """Before version 20 the axis was an attribute."""
    n = None if length is None else int(length.item())
    return transform(x, n, axis, bool(inverse), bool(onesided))


@op("STFT", since=17, host=(1, 3))
def stft(
    signal: Tensor,
    step: np.ndarray,
    window: Tensor | None = None,
    length: np.ndarray | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """Transforms of windows of a signal (N, L, 1 or 2), ``step`` apart: (N, frames, bins, 2)."""
    re, im = _parts(signal if signal.ndim == 3 else signal.reshape((*signal.shape, 1)))
    if length is not None:
        n = int(length.item())
    else:
        n = re.shape[1] if window is None else window.shape[0]
    if window is not None and tuple(window.shape) != (n,):
        raise ShapeError(f"frames of {n} want a window of as many, got {window.shape}")
    if n > re.shape[1] or int(step.item()) < 1:
        raise ShapeError(f"frames of {n} every {step} do not fit a signal of {re.shape[1]}")

    def frames(part: Tensor) -> Node:
        seen = windows.windows(part.reshape((part.shape[0], 1, -1)).node, (n,), int(step.item()))
        rows = Tensor(seen)[:, 0].permute(0, 2, 1)
        return (rows if window is None else rows * window.astype(rows.dtype, copy=False)).node

    if im is not None:
        found = fourier.dft(frames(re), frames(im))
    elif onesided:
        found = fourier.real_dft(frames(re))
    else:
        found = fourier.dft(frames(re))
    return stack([Tensor(part) for part in found], axis=-1).astype(signal.dtype, copy=False)


def _window(size: np.ndarray, periodic: int, datatype: int, parts: tuple[float, ...]) -> np.ndarray:
    """``sum of (-1)^k parts[k] cos(2 pi k i / n)``, n one less than the size if not periodic."""
    count = int(size.item())
    n = count if periodic else count - 1
    with np.errstate(all="ignore"):
        turns = np.arange(count) * (2 * np.pi) / n
        total = sum((-1) ** k * a * np.cos(k * turns) for k, a in enumerate(parts))
    return np.asarray(total).astype(numpy_dtype(datatype, "a window"))


@op("HannWindow", since=17, host=(0,))
def hann(size: np.ndarray, *, output_datatype: int = 1, periodic: int = 1) -> np.ndarray:
    """Hann's window."""
    return _window(size, periodic, output_datatype, (0.5, 0.5))


@op("HammingWindow", since=17, host=(0,))
def hamming(size: np.ndarray, *, output_datatype: int = 1, periodic: int = 1) -> np.ndarray:
    """Hamming's window."""
    return _window(size, periodic, output_datatype, (25 / 46, 21 / 46))


@op("BlackmanWindow", since=17, host=(0,))
def blackman(size: np.ndarray, *, output_datatype: int = 1, periodic: int = 1) -> np.ndarray:
    """Blackman's window."""
    return _window(size, periodic, output_datatype, (0.42, 0.5, 0.08))


@op("MelWeightMatrix", since=17, host=(-1,))
def mel_weight_matrix(
    bins: np.ndarray,
    length: np.ndarray,
    rate: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    *,
    output_datatype: int = 1,
) -> np.ndarray:
    """Triangles that are evenly spaced on the mel scale: (length // 2 + 1, bins)."""
    count, n, hertz = int(bins.item()), int(length.item()), float(rate.item())
    spectrum = n // 2 + 1
    ends = [2595 * np.log10(1 + float(edge.item()) / 700) for edge in (low, high)]
    mels = np.arange(count + 2) * ((ends[1] - ends[0]) / (count + 2)) + ends[0]
    edges = (((10 ** (mels / 2595) - 1) * 700 * (n + 1)) // hertz).astype(np.int64)
    table = np.zeros((spectrum, count), np.float64)
    at = np.arange(spectrum)
    for i in range(count):
        first, middle, last = edges[i : i + 3]
        rising = (at >= first) & (at <= middle)
        if middle == first:
            if 0 <= middle < spectrum:
                table[middle, i] = 1
        else:
            table[rising, i] = (at[rising] - first) / (middle - first)
        falling = (at >= middle) & (at < last)
        if last > middle:
            table[falling, i] = (last - at[falling]) / (last - middle)
    return table.astype(numpy_dtype(output_datatype, "MelWeightMatrix"))

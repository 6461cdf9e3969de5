"""Discrete Fourier transforms along the last axis, composed of products and elementwise ops.

Real and imaginary parts are nodes of their own. A length of up to ``_DIRECT`` is one product with a
table of cosines and sines, made in f64; a longer one is cut into two factors (Cooley & Tukey 1965),
a long prime is a convolution of a length that has factors (Bluestein 1970).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, f64
from tilewright.errors import ShapeError
from tilewright.graph import Node, data_node, shape_of
from tilewright.ops.arithmetic import add, mul, scale, sub
from tilewright.ops.gemm import bmm
from tilewright.ops.views import broadcast, concat, pad, permute, reshape, sizes_of, slice_
from tilewright.runtime.buffers import from_array

__all__ = ["dft", "inverse_real_dft", "real_dft"]

_DIRECT: Final = 512
_PRIME: Final = 2048  # up to here a prime is one product too

Complex = tuple[Node, Node]


def dft(re: Node, im: Node | None = None, inverse: bool = False) -> Complex:
    """``sum over j of x[j] exp(-2 pi i j k / n)`` for each k: real and imaginary parts (..., n).

    Without ``im`` x is real. ``inverse`` turns the sign of the exponent and divides by n.
    """
    _check("dft", re, im)
    n = sizes_of(re)[-1]
    found = _transform(re, im, 1.0 if inverse else -1.0)
    return _scaled(found, 1 / n) if inverse and n else found


def real_dft(x: Node) -> Complex:
    """The first ``n // 2 + 1`` results of :func:`dft` of real x (..., n), which determine all."""
    _check("real_dft", x, None)
    n = sizes_of(x)[-1]
    bins = n // 2 + 1
    if n <= _DIRECT or (_factor(n) == 1 and n <= _PRIME):
        return _direct(x, None, -1.0, bins)
    re, im = _transform(x, None, -1.0)
    return _first(re, bins), _first(im, bins)


def inverse_real_dft(re: Node, im: Node, n: int) -> Node:
    """The real x (..., n) whose :func:`real_dft` is (..., n // 2 + 1); what is beyond is left out.

    Missing bins are zeros. As in ``numpy.fft.irfft`` imaginary parts of the first bin, and of the
    last for an even n, do not count.
    """
    _check("inverse_real_dft", re, im)
    bins = n // 2 + 1
    re, im = (_fitted(v, bins) for v in (re, im))
    if n <= _DIRECT or (_factor(n) == 1 and n <= _PRIME):
        table = data_node(_inverse_table(n, re.dtype is f64))
        return bmm_rows(concat([re, im], len(re.shape) - 1), table)
    count = (n - 1) // 2  # bins that have a conjugate partner
    order = tuple(range(len(re.shape) - 1))
    mirrored = []
    for v, sign in ((re, 1.0), (im, -1.0)):
        part = _slice(v, 1, count)
        mirrored.append(scale(_flipped(part), sign))
    keep = np.ones(bins)
    keep[0] = 0
    if n % 2 == 0:
        keep[-1] = 0
    im = mul(im, _row(keep, im, len(order)))
    whole = [concat([v, m], len(v.shape) - 1) for v, m in zip((re, im), mirrored)]
    return scale(_transform(whole[0], whole[1], 1.0)[0], 1 / n)


def _check(op: str, re: Node, im: Node | None) -> None:
    if not re.dtype.is_float or re.dtype.bits < 32 or not re.shape:
        raise ShapeError(f"{op} wants f32 or f64 with an axis, got {re.dtype}{shape_of(re.shape)}")
    if im is not None and (im.shape != re.shape or im.dtype is not re.dtype):
        raise ShapeError(
            f"{op}: real and imaginary parts are alike, got {re.dtype}{shape_of(re.shape)} and "
            f"{im.dtype}{shape_of(im.shape)}"
        )


# --- helpers -------------------------------------------------------------------------------------


def _slice(x: Node, start: int, length: int) -> Node:
    shape = sizes_of(x)
    starts = (0,) * (len(shape) - 1) + (start,)
    return slice_(x, starts, (*shape[:-1], length), (1,) * len(shape))


def _first(x: Node, length: int) -> Node:
    return _slice(x, 0, length)


def _fitted(x: Node, length: int) -> Node:
    """The last axis cut or filled with zeros."""
    n = sizes_of(x)[-1]
    if n >= length:
        return _first(x, length)
    return pad(x, (*((0, 0),) * (len(x.shape) - 1), (0, length - n)))


def _flipped(x: Node) -> Node:
    from tilewright.ops.views import flip

    return flip(x, (len(x.shape) - 1,))


def _scaled(value: Complex, by: float) -> Complex:
    return scale(value[0], by), scale(value[1], by)


def bmm_rows(x: Node, table: Node) -> Node:
    """x (..., n) times table (n, m)."""
    shape = sizes_of(x)
    rows = reshape(x, (math.prod(shape[:-1]), shape[-1]))
    return reshape(bmm(rows, table), (*shape[:-1], sizes_of(table)[1]))


def _array(values: np.ndarray, dtype: DType) -> Node:
    return data_node(from_array(np.ascontiguousarray(values.astype(dtype.storage)), dtype))


def _row(values: np.ndarray, like: Node, axes: int) -> Node:
    """Numbers along the last axis, for every row of ``like``."""
    shape = (*sizes_of(like)[:axes], len(values))
    return broadcast(_array(values, like.dtype), shape)


def _factor(n: int) -> int:
    """The largest divisor of n that is not above its root."""
    return next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0) if n else 1


# --- direct --------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _table(n: int, bins: int, sign: float, real: bool, double: bool) -> Any:
    """(n or 2n, 2 bins): parts of x to parts of the result."""
    turns = np.outer(np.arange(n), np.arange(bins)) % max(n, 1)
    angle = sign * 2 * np.pi * turns / max(n, 1)
    c, s = np.cos(angle), np.sin(angle)
    top = np.concatenate([c, s], 1)
    whole = top if real else np.concatenate([top, np.concatenate([-s, c], 1)], 0)
    return from_array(np.ascontiguousarray(whole.astype(np.float64 if double else np.float32)))


@lru_cache(maxsize=64)
def _inverse_table(n: int, double: bool) -> Any:
    """(2 bins, n): parts of the first half of a spectrum to a real signal."""
    bins = n // 2 + 1
    turns = np.outer(np.arange(bins), np.arange(n)) % max(n, 1)
    angle = 2 * np.pi * turns / max(n, 1)
    weight = np.full((bins, 1), 2.0)
    weight[0] = 1.0
    if n % 2 == 0:
        weight[-1] = 1.0
    whole = np.concatenate([weight * np.cos(angle), -weight * np.sin(angle)]) / max(n, 1)
    return from_array(np.ascontiguousarray(whole.astype(np.float64 if double else np.float32)))


def _direct(re: Node, im: Node | None, sign: float, bins: int) -> Complex:
    n = sizes_of(re)[-1]
    table = data_node(_table(n, bins, sign, im is None, re.dtype is f64))
    x = re if im is None else concat([re, im], len(re.shape) - 1)
    y = bmm_rows(x, table)
    return _first(y, bins), _slice(y, bins, bins)


# --- long lengths --------------------------------------------------------------------------------


def _transform(re: Node, im: Node | None, sign: float) -> Complex:
    n = sizes_of(re)[-1]
    if n <= _DIRECT:
        return _direct(re, im, sign, n)
    small = _factor(n)
    if small > 1:
        return _cut(re, im, sign, small, n // small)
    return _direct(re, im, sign, n) if n <= _PRIME else _bluestein(re, im, sign)


def _cut(re: Node, im: Node | None, sign: float, a: int, b: int) -> Complex:
    """n = a b: element ``j = b j1 + j2`` goes to ``k = k1 + a k2``.

    Transforms of length a over j1, a rotation by ``j2 k1 / n`` turns, transforms of length b.
    """
    lead = sizes_of(re)[:-1]
    rank = len(lead)
    swap = (*range(rank), rank + 1, rank)

    def columns(v: Node) -> Node:  # (..., j2, j1)
        return permute(reshape(v, (*lead, a, b)), swap)

    re, im = _transform(columns(re), None if im is None else columns(im), sign)
    angle = sign * 2 * np.pi * (np.outer(np.arange(b), np.arange(a)) / (a * b))
    c, s = (broadcast(_array(t, re.dtype), (*lead, b, a)) for t in (np.cos(angle), np.sin(angle)))
    re, im = _product(re, im, c, s)
    re, im = _transform(permute(re, swap), permute(im, swap), sign)  # (..., k1, k2)
    return tuple(reshape(permute(v, swap), (*lead, a * b)) for v in (re, im))  # type: ignore[return-value]


def _product(re: Node, im: Node, c: Node, s: Node) -> Complex:
    return sub(mul(re, c), mul(im, s)), add(mul(re, s), mul(im, c))


def _bluestein(re: Node, im: Node | None, sign: float) -> Complex:
    """With ``jk = (j^2 + k^2 - (k - j)^2) / 2`` a transform is a convolution with a chirp."""
    n = sizes_of(re)[-1]
    m = 1 << (2 * n - 2).bit_length()
    squares = np.arange(n, dtype=np.int64) ** 2 % (2 * n)
    chirp = np.exp(sign * 1j * np.pi * squares / n)
    filter_ = np.zeros(m, np.complex128)
    filter_[:n] = chirp.conj()
    filter_[m - n + 1 :] = chirp[1:][::-1].conj()
    spectrum = np.fft.fft(filter_)
    axes = len(re.shape) - 1
    c, s = _row(chirp.real, re, axes), _row(chirp.imag, re, axes)
    x = (mul(re, c), mul(re, s)) if im is None else _product(re, im, c, s)
    x = _transform(_fitted(x[0], m), _fitted(x[1], m), -1.0)
    wide = _product(*x, _row(spectrum.real, x[0], axes), _row(spectrum.imag, x[0], axes))
    back = _scaled(_transform(*wide, 1.0), 1 / m)
    return _product(_first(back[0], n), _first(back[1], n), c, s)

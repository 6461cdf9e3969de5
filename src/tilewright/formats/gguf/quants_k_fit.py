"""Find scales, minima and codes of K-type super-blocks.

The searches are those of ``make_qkx2_quants`` and ``make_qx_quants`` in ggml-quants.c: try a range
of step sizes, for each round the values to codes, solve for the scale (and minimum) that fit those
codes best in the weighted least-squares sense, and keep the best. Here all sub-blocks go through
the search at once: arrays are ``(values in a sub-block, sub-blocks)`` with the many sub-blocks
last, so that every operation, sums included, runs over long rows.
"""

from __future__ import annotations

import numpy as np

__all__ = ["fit_affine", "fit_symmetric"]

_SUPER_BLOCK = 256


def fit_affine(
    values: np.ndarray, sub_block: int, top: int, scale_top: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fit ``value = (d * scale) * code - (dmin * min)`` with codes of 0 to ``top``.

    Args:
        values: float32 ``(n, 256)``.
        sub_block: values that share a scale and a min.
        top: largest code.
        scale_top: largest scale and min.

    Returns:
        d and dmin, float32 ``(n, 1)``; scales and mins, uint8 ``(n, 256 / sub_block)``; codes,
        uint8 ``(n, 256 / sub_block, sub_block)``.
    """
    n = len(values)
    parts = _SUPER_BLOCK // sub_block
    x = np.ascontiguousarray(values.reshape(n * parts, sub_block).T)
    scale, low = _search_affine(x, top)
    scale, low = scale.reshape(n, parts), low.reshape(n, parts)

    d = scale.max(axis=1, keepdims=True) / np.float32(scale_top)
    dmin = low.max(axis=1, keepdims=True) / np.float32(scale_top)
    scales = np.clip(np.rint(_divide(scale, d)), 0, scale_top).astype(np.uint8)
    mins = np.clip(np.rint(_divide(low, dmin)), 0, scale_top).astype(np.uint8)

    step = (_as_f16(d) * scales).reshape(n, parts, 1)
    shift = (_as_f16(dmin) * mins).reshape(n, parts, 1)
    codes = np.rint(_divide(values.reshape(n, parts, sub_block) + shift, step))
    return d, dmin, scales, mins, np.clip(codes, 0, top).astype(np.uint8)


def fit_symmetric(
    values: np.ndarray, sub_block: int, half: int, scale_half: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit ``value = (d * scale) * (code - half)`` with codes of 0 to ``2 * half - 1``.

    Args:
        values: float32 ``(n, 256)``.
        sub_block: values that share a scale.
        half: the code of zero.
        scale_half: scales go from ``-scale_half`` to ``scale_half - 1``.

    Returns:
        d, float32 ``(n, 1)``; scales, int8 ``(n, 256 / sub_block)``; codes, uint8
        ``(n, 256 / sub_block, sub_block)``.
    """
    n = len(values)
    parts = _SUPER_BLOCK // sub_block
    x = np.ascontiguousarray(values.reshape(n * parts, sub_block).T)
    scale = _search_symmetric(x, half).reshape(n, parts)

    d = _signed_peak(scale, axis=1) / np.float32(-scale_half)
    scales = np.clip(np.rint(_divide(scale, d)), -scale_half, scale_half - 1).astype(np.int8)

    step = (_as_f16(d) * scales).reshape(n, parts, 1)
    codes = np.rint(_divide(values.reshape(n, parts, sub_block), step))
    return d, scales, (np.clip(codes, -half, half - 1) + half).astype(np.uint8)


def _search_affine(x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and minus the minimum of each column of ``x`` (sub_block, m); both at least 0."""
    weight = np.sqrt((x * x).mean(axis=0)) + np.abs(x)
    low = np.minimum(x.min(axis=0), 0)
    span = x.max(axis=0) - low
    above = x - low
    weighted_x = weight * x
    sum_w = weight.sum(axis=0)
    sum_x = weighted_x.sum(axis=0)

    best = np.full(x.shape[1], np.inf, np.float32)
    best_scale = np.zeros_like(best)
    best_low = np.zeros_like(best)
    codes, product = np.empty_like(x), np.empty_like(x)
    for delta in np.linspace(-1.0, 1.0, 21, dtype=np.float32):
        np.multiply(above, _divide(np.float32(top) + delta, span), out=codes)
        np.rint(codes, out=codes)
        np.minimum(codes, np.float32(top), out=codes)
        sum_xl = np.multiply(weighted_x, codes, out=product).sum(axis=0)
        np.multiply(weight, codes, out=product)
        sum_l = product.sum(axis=0)
        sum_ll = np.multiply(product, codes, out=product).sum(axis=0)

        # Weighted least squares for x = scale * code + low, with low <= 0.
        det = sum_w * sum_ll - sum_l * sum_l
        scale = _divide(sum_w * sum_xl - sum_x * sum_l, det)
        fitted_low = _divide(sum_ll * sum_x - sum_l * sum_xl, det)
        positive = fitted_low > 0
        scale = np.where(positive, _divide(sum_xl, sum_ll), scale)
        fitted_low = np.where(positive, 0, fitted_low)
        # The squared error without its constant term, the weighted sum of x * x.
        error = scale * (scale * sum_ll + 2 * (fitted_low * sum_l - sum_xl))
        error += fitted_low * (fitted_low * sum_w - 2 * sum_x)
        better = (det > 0) & (scale > 0) & (error < best)
        best = np.where(better, error, best)
        best_scale = np.where(better, scale, best_scale)
        best_low = np.where(better, fitted_low, best_low)

    unfitted = np.isinf(best)  # constant columns: det is 0 for every candidate
    best_scale = np.where(unfitted, span / np.float32(top), best_scale)
    best_low = np.where(unfitted, low, best_low)
    return best_scale, -best_low


def _search_symmetric(x: np.ndarray, half: int) -> np.ndarray:
    """Scale, of either sign, of each column of ``x`` (sub_block, m)."""
    peak = _signed_peak(x, axis=0)[0]
    weight = x * x
    weighted_x = weight * x
    best = np.zeros(x.shape[1], np.float32)
    best_scale = np.zeros_like(best)
    codes, product = np.empty_like(x), np.empty_like(x)
    for delta in np.linspace(-0.9, 0.9, 19, dtype=np.float32):
        np.multiply(x, _divide(-(np.float32(half) + delta), peak), out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, -half, half - 1, out=codes)
        sum_xl = np.multiply(weighted_x, codes, out=product).sum(axis=0)
        np.multiply(weight, codes, out=product)
        sum_ll = np.multiply(product, codes, out=product).sum(axis=0)
        scale = _divide(sum_xl, sum_ll)
        gain = scale * sum_xl  # by how much this fit lowers the weighted squared error
        better = gain > best
        best = np.where(better, gain, best)
        best_scale = np.where(better, scale, best_scale)
    return best_scale


def _signed_peak(values: np.ndarray, axis: int) -> np.ndarray:
    """The value of largest magnitude along ``axis``, which is kept with length 1."""
    at = np.abs(values).argmax(axis=axis, keepdims=True)
    return np.take_along_axis(values, at, axis=axis)


def _divide(a: np.ndarray | np.float32, b: np.ndarray) -> np.ndarray:
    """a / b in float32, and 0 where b is 0."""
    return np.where(b == 0, np.float32(0), a / b)


def _as_f16(values: np.ndarray) -> np.ndarray:
    """Rounded to float16, which is how the block will store it; as float32."""
    return values.astype(np.float16).astype(np.float32)

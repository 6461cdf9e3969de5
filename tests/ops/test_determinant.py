"""Determinants: kernels against LAPACK, singular and empty matrices, threads."""

from __future__ import annotations

import numpy as np
import pytest
from tests.ops.node_calls import LAYOUTS, check, compiled, leaf, random_values

from tilewright.dtypes import DType, bf16, f16, f32, f64
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.ops.autodiff import vjp
from tilewright.ops.determinant import det

SHAPES = [(1, 1), (3, 3), (2, 5, 5), (2, 3, 4, 4), (33, 33), (0, 2, 2), (2, 0, 0)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_agrees_with_lapack(shape: tuple[int, ...], layout: str) -> None:
    x = np.random.default_rng(1).standard_normal(shape)
    check(det(leaf(x, f64, layout)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [f16, bf16, f32])
def test_element_types(dtype: DType) -> None:
    x = random_values(np.random.default_rng(2), (3, 4, 4), dtype)
    check(det(leaf(x, dtype)), rtol={f32: 1e-6}.get(dtype, 1e-2))


def test_pivots() -> None:
    """Rows have to be exchanged; singular matrices have determinant 0, not NaN."""
    x = np.array([[[0, 2], [3, 4]], [[0, 0], [0, 0]], [[1, 2], [2, 4]], [[0, 1], [0, 2]]], float)
    np.testing.assert_allclose(compiled(det(leaf(x, f64))), [-6, 0, 0, 0], atol=1e-15)


def test_refusals() -> None:
    with pytest.raises(ShapeError, match=r"floats \(..., n, n\)"):
        det(leaf(np.ones((2, 3)), f32))
    x = leaf(np.eye(2), f64)
    with pytest.raises(UnsupportedError, match="det"):
        vjp([det(x)], [leaf(np.ones(()), f64)], [x])

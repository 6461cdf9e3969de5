"""Sliding windows and their sums: kernels against references, values against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.ops.gradcheck import check_gradient, compiled, data
from tests.ops.node_calls import LAYOUTS, check, leaf

from tilewright.dtypes import DType, bf16, f16, f32, f64
from tilewright.errors import ShapeError
from tilewright.ops.windows import col2im, fold, im2col, windows

# size, kernel, strides, padding, dilation
CASES: list[tuple[Any, ...]] = [
    ((9,), (3,), 1, 0, 1),
    ((20,), (3,), 2, 1, 3),
    ((7, 40), (3, 2), (2, 1), ((0, 1), (2, 1)), (1, 2)),
    ((6, 7), (2, 3), 3, 2, 1),
    ((4, 5, 6), (2, 1, 3), (1, 2, 2), 1, (2, 1, 1)),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_windows_and_fold(case: tuple[Any, ...], layout: str) -> None:
    size, kernel, *rest = case
    rng = np.random.default_rng(0)
    x = leaf(rng.integers(-9, 9, (2, 3, *size)), f32, layout)
    seen = windows(x, kernel, *rest)
    check(seen)
    check(fold(leaf(rng.integers(-9, 9, seen.shape), f32, layout), size, *rest))


@pytest.mark.parametrize("dtype", [f64, f16, bf16], ids=str)
def test_fold_dtypes(dtype: DType) -> None:
    x = leaf(np.random.default_rng(0).integers(-9, 9, (1, 2, 3, 3, 8, 20)), dtype)
    check(fold(x, (10, 22)))


def test_empty() -> None:
    check(fold(leaf(np.zeros((0, 2, 3, 5)), f32), (7,)))


@pytest.mark.parametrize("case", CASES[2:4])
def test_torch_agrees(case: tuple[Any, ...]) -> None:
    torch = pytest.importorskip("torch")
    size, kernel, strides, _, dilation = case
    x = np.random.default_rng(0).standard_normal((2, 3, *size), np.float32)
    settings = {"stride": strides, "padding": 1, "dilation": dilation}
    want = torch.nn.functional.unfold(torch.from_numpy(x), kernel, **settings)
    columns = im2col(data(x), kernel, strides, 1, dilation)
    np.testing.assert_array_equal(compiled([columns])[0], want.numpy())
    back = compiled([col2im(data(want.numpy()), size, kernel, strides, 1, dilation)])[0]
    theirs = torch.nn.functional.fold(want, size, kernel, **settings).numpy()
    np.testing.assert_allclose(back, theirs, 1e-6, 1e-6)


def test_gradients() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 2, 5, 6))
    check_gradient(lambda a: windows(a, (3, 2), 2, 1), x, order=2)
    columns = rng.standard_normal((1, 2, 3, 2, 3, 4))
    check_gradient(lambda a: fold(a, (5, 6), 2, 1), columns, order=2)


def test_what_does_not_fit_is_refused() -> None:
    x = data(np.zeros((1, 12, 9), np.float32))
    with pytest.raises(ShapeError, match="9"):
        col2im(x, (5, 5), (2, 2))
    with pytest.raises(ShapeError, match="col2im"):
        col2im(x, (5, 5), (5, 5))
    with pytest.raises(ShapeError, match="windows"):
        windows(x, (2, 2))
    with pytest.raises(ShapeError, match="fold"):
        fold(x, (5,))

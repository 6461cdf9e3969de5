"""Fourier transforms against NumPy's, for lengths of every kind."""

import numpy as np
import pytest
from tests.ops.gradcheck import check_gradient

from tilewright.dtypes import from_numpy
from tilewright.errors import ShapeError
from tilewright.graph import const_node
from tilewright.ops import arithmetic, fourier
from tilewright.tensor.core import Tensor

# small, composite beyond one table, two rounds of cutting, a prime of one table, Bluestein's
LENGTHS = [1, 2, 7, 30, 521, 600, 1024, 2053]


def parts(found):
    return [Tensor(part).numpy() for part in found]


def close(got, want, size):
    scale = max(np.abs(want).max(initial=0), 1e-30)
    np.testing.assert_allclose(got, want, atol=scale * size, rtol=0)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transforms_agree_with_numpy(n, dtype):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((2, 3, n)).astype(dtype)
    y = rng.standard_normal((2, 3, n)).astype(dtype)
    eps = 4e-6 if dtype is np.float32 else 2e-14
    re, im = Tensor(x).node, Tensor(y).node
    for inverse in (False, True):
        want = (np.fft.ifft if inverse else np.fft.fft)(x.astype(np.float64) + 1j * y)
        got = parts(fourier.dft(re, im, inverse))
        close(got[0] + 1j * got[1], want, eps)
        assert got[0].dtype == dtype
    got = parts(fourier.real_dft(re))
    want = np.fft.rfft(x.astype(np.float64))
    close(got[0] + 1j * got[1], want, eps)
    back = Tensor(fourier.inverse_real_dft(Tensor(got[0]).node, Tensor(got[1]).node, n)).numpy()
    close(back, x, eps)


@pytest.mark.parametrize("n", [5, 6, 11, 600])
def test_the_inverse_of_a_half_takes_any_number_of_bins(n):
    rng = np.random.default_rng(0)
    for bins in (1, n // 2 + 1, n // 2 + 3):
        half = rng.standard_normal((2, bins)) + 1j * rng.standard_normal((2, bins))
        re, im = Tensor(half.real.copy()).node, Tensor(half.imag.copy()).node
        got = Tensor(fourier.inverse_real_dft(re, im, n)).numpy()
        close(got, np.fft.irfft(half, n), 1e-13)


def test_gradients():
    x = np.random.default_rng(1).standard_normal((2, 9))

    def power(node):
        re, im = fourier.real_dft(node)
        return arithmetic.add(arithmetic.square(re), arithmetic.square(im))

    check_gradient(power, x, order=2)


def test_only_floats_of_32_bits_and_more():
    with pytest.raises(ShapeError, match="f32 or f64"):
        fourier.dft(Tensor(np.zeros(4, np.float16)).node)
    with pytest.raises(ShapeError, match="with an axis"):
        fourier.dft(const_node(1.0, from_numpy(np.dtype(np.float32))))
    with pytest.raises(ShapeError, match="alike"):
        fourier.dft(Tensor(np.zeros(4, np.float32)).node, Tensor(np.zeros(5, np.float32)).node)

"""Symbolic sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.errors import ShapeError
from tilewright.sizes import Dim, Size, evaluate, shape_of, upper_bound

T, R = Dim("tokens", 512), Dim("rows", 64)
small = st.integers(-5, 5)


@given(small, small, small, st.integers(0, 512), st.integers(0, 64))
def test_affine_arithmetic_agrees_with_numbers(a: int, b: int, c: int, t: int, r: int) -> None:
    size = T * a + R * b + c - T
    value = size.evaluate({"tokens": t, "rows": r}) if isinstance(size, Size) else size
    assert value == t * a + r * b + c - t


def test_equal_expressions_are_equal_and_hash_alike() -> None:
    assert T + R == R + T
    assert hash(T * 2 + 1) == hash(T + T + 1)
    assert T - T == 0
    assert (T + R) - R == T


def test_upper_bound_takes_each_dim_at_its_worst() -> None:
    assert upper_bound((T * 2 + 3, 7, R - T)) == (1027, 7, 64)
    assert evaluate((T, 5), {"tokens": 9}) == (9, 5)


def test_values_out_of_range_or_missing_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"'tokens' is 513, its range is 0\.\.512"):
        T.evaluate({"tokens": 513})
    with pytest.raises(ShapeError, match="no value for dim 'tokens'; have \\['rows'\\]"):
        T.evaluate({"rows": 1})


def test_printing() -> None:
    assert shape_of((T, 2048, T * 2 + 1)) == "(tokens, 2048, 2*tokens + 1)"

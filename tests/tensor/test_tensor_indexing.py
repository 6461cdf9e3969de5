"""Indexing and assignment as NumPy does them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tilewright as tw

RNG = np.random.default_rng(0)
X = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
MASK = X > 30


def ids(*values: Any) -> np.ndarray:
    return np.array(values)


KEYS: list[Any] = [
    0,
    -1,
    (0, 1),
    (slice(None), slice(None, None, -1)),
    (..., 2),
    (None, 0),
    (slice(1, None), ..., slice(0, 4, 2)),
    (slice(5, 1),),
    (slice(3, None, -2), slice(None), slice(-1, None, -3)),
    ids(0, 1, 1),
    (slice(None), ids(0, 2)),
    (ids(0, 1), ids(1, 2)),
    (slice(None), ids(0, 1), ids(1, 2)),
    (ids(0, 1), slice(None), ids(1, 2)),
    (0, slice(None), ids(1, 2)),
    (ids([0, 1], [1, 1]), ids([0], [1])),
    ids(-1, -2),
    MASK,
    (slice(None), MASK[0]),
    (slice(None), slice(None), MASK[0, 0]),
    (0, MASK[0]),
    (..., ids(0, 1)),
    (None, ids(0, 1), None, ids(0, 1)),
    (slice(None), 0, ids(0, 1)),
    (ids(0, 1), 0),
    [0, 1],
    [],
    (slice(None), [True, False, True]),
]


def given_key(key: Any) -> Any:
    if isinstance(key, np.ndarray):
        return tw.asarray(key)
    return tuple(given_key(k) for k in key) if isinstance(key, tuple) else key


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_getitem(key: Any) -> None:
    got, wanted = tw.asarray(X)[given_key(key)], X[key]
    assert got.shape == wanted.shape
    np.testing.assert_array_equal(got.numpy(), wanted)


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_setitem(key: Any) -> None:
    value = RNG.random(X[key].shape, np.float32)
    for given_value, wanted_value in ((tw.asarray(value), value), (7, 7)):
        wanted = X.copy()
        wanted[key] = wanted_value
        x = tw.asarray(X)
        before = x + 0
        x[given_key(key)] = given_value
        np.testing.assert_array_equal(x.numpy(), wanted)
        np.testing.assert_array_equal(before.numpy(), X)  # computed from the old value


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_basic_keys(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    key = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    x = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    tensor = tw.asarray(x)
    wanted = np.asarray(x[key])
    got = tensor[key]
    assert got.shape == wanted.shape
    np.testing.assert_array_equal(got.numpy(), wanted)
    changed = x.copy()
    changed[key] = -1
    tensor[key] = -1
    np.testing.assert_array_equal(tensor.numpy(), changed)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_integer_arrays(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    key = data.draw(hnp.integer_array_indices(shape))
    x = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    got = tw.asarray(x)[tuple(tw.asarray(k) for k in key)]
    np.testing.assert_array_equal(got.numpy(), x[key])


def test_views_do_not_copy() -> None:
    x = tw.asarray(X).realize()
    start = x.node.value.pointer
    for view, offset in (
        (x[1, ::2], 60),
        (x[..., ::-1], 4),
        (x[0].mT, 0),
        (tw.permute_dims(x, (3, 1, 0, 2)), 0),
        (tw.reshape(x[:, 1:], (2, 2, 20)), 20),
        (tw.broadcast_to(x[0, 0, 0], (7, 5)), 0),
    ):
        view.realize()
        assert view.node.value.pointer == start + 4 * offset
        assert view.node.value.owner is x.node.value.owner


@pytest.mark.parametrize(
    "key", [2, -3, (0, 3), (0, 0, 0, 0, 0), (..., ...), 1.5, "a", ids(0, 2), ids(-3), ids(0.5)]
)
def test_out_of_range_is_an_index_error(key: Any) -> None:
    with pytest.raises(IndexError):
        tw.asarray(X)[given_key(key)].realize()


def test_masks_of_other_shapes_are_index_errors() -> None:
    with pytest.raises(IndexError, match="mask"):
        tw.asarray(X)[tw.asarray(MASK[0])]


def test_values_that_do_not_fit() -> None:
    x = tw.zeros((3,), dtype=tw.int8)
    with pytest.raises(TypeError, match="does not fit"):
        x[0] = 1.5
    with pytest.raises(OverflowError, match="300"):
        x[0] = 300
    with pytest.raises(tw.ShapeError):
        x[:2] = tw.ones((3,), dtype=tw.int8)


def test_gradients_pass_through() -> None:
    x = tw.asarray([1.0, 2.0, 3.0], dtype=tw.float64)
    x.requires_grad = True
    y = tw.zeros((3,), dtype=tw.float64)
    y[::2] = x[tw.asarray([1, 1])] * tw.asarray([2.0, 3.0], dtype=tw.float64)
    (y.sum() + x[1:].sum() + x[x > 2].sum()).backward()
    np.testing.assert_array_equal(x.grad.numpy(), [0, 6, 2])

"""Buffers: alignment, padding, views."""

from typing import Any

import numpy as np
import pytest

from tilewright.dtypes import ALL, bf16, f32, i8, i32, u8
from tilewright.errors import ShapeError
from tilewright.runtime.buffers import (
    dense_strides,
    empty,
    from_array,
    padded_strides,
    zeros,
)


@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5), (2, 0, 4), (2, 3, 1024)])
def test_memory(dtype: Any, shape: tuple[int, ...]) -> None:
    buffer = zeros(dtype, shape)
    array = buffer.numpy()
    assert buffer.pointer % 64 == 0
    assert array.dtype == dtype.storage
    assert array.shape == shape == buffer.shape
    assert array.flags.c_contiguous
    assert buffer.nbytes == array.nbytes
    assert not array.any()
    array[...] = 1
    assert (buffer.numpy() == 1).all()


def test_the_view_keeps_the_memory_alive() -> None:
    array = zeros(f32, (1 << 16,)).numpy()
    others = [np.full(1 << 16, 7, np.float32) for _ in range(8)]
    assert not array.any()
    assert len(others) == 8


@pytest.mark.parametrize(
    ("shape", "dtype", "want"),
    [
        ((), f32, ()),
        ((4096,), f32, (1,)),
        ((3, 100), f32, (100, 1)),
        ((3, 512), f32, (528, 1)),
        ((3, 768), f32, (768, 1)),
        ((3, 1024), f32, (1040, 1)),
        ((3, 1024), bf16, (1056, 1)),
        ((3, 2048), i8, (2112, 1)),
        ((2, 3, 1024), f32, (3120, 1040, 1)),
        ((2, 3, 0), f32, (0, 0, 1)),
    ],
)
def test_padded_strides(shape: tuple[int, ...], dtype: Any, want: tuple[int, ...]) -> None:
    assert padded_strides(shape, dtype) == want
    buffer = empty(dtype, shape, pad_rows=True)
    assert buffer.strides == want
    array = buffer.numpy()
    array[...] = 1
    assert array.sum() == np.prod(shape)
    if shape and array.size:
        assert buffer.owner.nbytes >= shape[0] * want[0] * dtype.nbytes


def test_dense_strides() -> None:
    assert dense_strides((2, 3, 4)) == (12, 4, 1)
    assert dense_strides(()) == ()


def test_from_array_shares_memory() -> None:
    array = np.arange(24, dtype=np.int32).reshape(4, 6)[::-2, 1::2]
    buffer = from_array(array)
    assert buffer.strides == (-12, 2)
    assert (buffer.numpy() == array).all()
    buffer.numpy()[0, 0] = 99
    assert array[0, 0] == 99


def test_from_array_names_bf16() -> None:
    bits = np.array([0x3F80], np.uint16)
    assert from_array(bits, bf16).dtype is bf16
    with pytest.raises(ShapeError, match="stores uint16, the array is float32"):
        from_array(np.zeros(1, np.float32), bf16)
    with pytest.raises(ShapeError, match="complex128"):
        from_array(np.zeros(1, complex))
    with pytest.raises(ShapeError, match="not whole elements"):
        from_array(np.zeros(4, [("a", "f4"), ("b", "u1")])["a"])


def test_view() -> None:
    buffer = zeros(i32, (4, 6))
    buffer.numpy()[...] = np.arange(24).reshape(4, 6)
    column = buffer.view((4,), (6,), offset=2)
    assert column.numpy().tolist() == [2, 8, 14, 20]
    flat = buffer.view((96,), dtype=u8)
    assert flat.numpy()[4] == 1
    assert buffer.view((0,), offset=24).numpy().size == 0
    for shape, strides, offset in [((25,), None, 0), ((24,), None, 1), ((2,), (-1,), 0)]:
        with pytest.raises(ShapeError, match="covers bytes"):
            buffer.view(shape, strides, offset)
    with pytest.raises(ShapeError, match="strides"):
        buffer.view((2, 2), (1,))


def test_negative_sizes() -> None:
    with pytest.raises(ShapeError, match="negative"):
        empty(f32, (3, -1))

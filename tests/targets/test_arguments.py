"""Argument blocks: layout, conversions and the checks on the way."""

import struct
from typing import Any

import numpy as np
import pytest

from tilewright.dtypes import bf16, boolean, f16, f32, f64, i8, i32, i64, u8, u64
from tilewright.errors import ShapeError
from tilewright.lang.ir import ArrayType, TileType
from tilewright.runtime.buffers import empty, from_array
from tilewright.targets.arguments import Packer, grid_of, unpack


def scalar(dtype: Any, value: Any) -> int:
    return int(Packer("k", [("s", TileType(dtype))]).pack(1, [value])[3])


@pytest.mark.parametrize(
    ("grid", "want"),
    [
        (5, (5, 1, 1)),
        ((2,), (2, 1, 1)),
        ((2, 3), (2, 3, 1)),
        ([4, 5, 6], (4, 5, 6)),
        (0, (0, 1, 1)),
        (np.int64(3), (3, 1, 1)),
        ((np.int32(3), 2), (3, 2, 1)),
    ],
)
def test_grid(grid: Any, want: tuple[int, int, int]) -> None:
    assert grid_of(grid) == want


@pytest.mark.parametrize("grid", [(), (1, 2, 3, 4), -1, (3, -2), 1.5, "2", (2, 0.5), None])
def test_bad_grid(grid: Any) -> None:
    with pytest.raises(ShapeError, match="one to three sizes"):
        grid_of(grid)


def test_too_many_programs() -> None:
    with pytest.raises(ShapeError, match="more work"):
        grid_of((1 << 14, 1 << 14))
    assert grid_of(((1 << 14) - 1, 1 << 14)) == ((1 << 14) - 1, 1 << 14, 1)


def test_layout() -> None:
    x = np.zeros((6, 10), np.float32)[::2, 1:5]
    y = empty(bf16, (3,))
    signature = [
        ("x", ArrayType.of(f32, 2)),
        ("n", TileType(i64)),
        ("extras", (ArrayType.of(bf16, 1), ArrayType.of(f32, 2))),
        ("none", ()),
        ("eps", TileType(f32)),
    ]
    packer = Packer("k", signature)
    slots = packer.pack((7, 2), [x, -9, (y, x), (), 0.5])
    half = struct.unpack("<I", struct.pack("<f", 0.5))[0]
    array = [x.ctypes.data, 3, 4, 20, 1]
    assert slots.tolist() == [7, 2, 1, *array, -9, y.pointer, 3, 1, *array, half]
    assert packer.slots == len(slots)
    grid, args = unpack(signature, slots)
    assert grid == (7, 2, 1)
    assert args[1] == -9
    assert args[3] == ()
    assert args[4] == 0.5
    assert args[2][0].dtype is bf16
    x[:] = 3
    assert (args[0].numpy() == 3).all()
    assert args[2][1].numpy().strides == x.strides


@pytest.mark.parametrize(
    ("dtype", "value", "slot"),
    [
        (i8, -1, -1),
        (u8, 255, 255),
        (i32, -(2**31), -(2**31)),
        (u64, 2**64 - 1, -1),
        (u64, 2**63, -(2**63)),
        (i64, np.int32(-5), -5),
        (boolean, True, 1),
        (boolean, np.bool_(False), 0),
        (f32, 1, 0x3F800000),
        (f32, -0.0, 0x80000000),
        (f32, 1e300, 0x7F800000),
        (f32, -1e300, 0xFF800000),
        (f32, np.float32(0.1), 0x3DCCCCCD),
        (f64, -2.0, -0x4000000000000000),
        (f16, 1.5, 0x3E00),
        (f16, 1e9, 0x7C00),
        (bf16, 1.00390625, 0x3F80),
        (bf16, -2.0, 0xC000),
        (bf16, 1e300, 0x7F80),
    ],
)
def test_scalars(dtype: Any, value: Any, slot: int) -> None:
    assert scalar(dtype, value) == slot
    _, (back,) = unpack([("s", TileType(dtype))], np.array([1, 1, 1, slot]))
    again = scalar(dtype, back)
    assert again == slot


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(i8, 128), (i8, -129), (u8, -1), (i32, 2**31), (u64, 2**64), (i64, -(2**63) - 1)],
)
def test_integers_that_do_not_fit(dtype: Any, value: int) -> None:
    with pytest.raises(ShapeError, match=r"'s': -?\d+ does not fit"):
        scalar(dtype, value)


@pytest.mark.parametrize(("dtype", "value"), [(i32, 1.5), (i64, "1"), (f32, "x"), (f32, None)])
def test_scalars_of_another_kind(dtype: Any, value: Any) -> None:
    with pytest.raises(ShapeError, match=r"'s' wants"):
        scalar(dtype, value)


BAD_ARRAYS = {
    "dtype": np.zeros((4, 8), np.float64),
    "ndim": np.zeros(8, np.float32),
    "static size": np.zeros((4, 9), np.float32),
    "static stride": np.zeros((4, 16), np.float32)[:, ::2],
    "buffer dtype": empty(i32, (4, 8)),
    "list": [1.0],
    "scalar": 3,
    "none": None,
}


@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_arrays_that_do_not_fit(what: str) -> None:
    packer = Packer("norm", [("x", ArrayType(f32, (None, 8), (None, 1)))])
    with pytest.raises(ShapeError, match=r"norm: argument 'x' is .*compiled for array<f32\[\?,8\]"):
        packer.pack(1, [BAD_ARRAYS[what]])


def test_the_stride_of_a_single_element_is_free() -> None:
    packer = Packer("k", [("x", ArrayType(f32, (None, 1), (None, 1)))])
    column = np.zeros((4, 6), np.float32)[:, :1]
    packer.pack(1, [column[:, ::-1]])
    packer.pack(1, [from_array(column)])


def test_misaligned_elements() -> None:
    packer = Packer("k", [("x", ArrayType.of(f32, 1))])
    raw = np.zeros(65, np.uint8)
    with pytest.raises(ShapeError, match="pass a copy"):
        packer.pack(1, [raw[1:].view(np.float32)])
    fields = np.zeros(4, [("a", "f4"), ("b", "u1")])
    with pytest.raises(ShapeError, match="pass a copy"):
        packer.pack(1, [fields["a"]])


def test_read_only_arrays_may_be_read_but_not_written() -> None:
    signature = [("x", ArrayType.of(f32, 1)), ("y", ArrayType.of(f32, 1))]
    packer = Packer("k", signature, stores=[1])
    frozen, free = np.zeros(3, np.float32), np.zeros(3, np.float32)
    frozen.flags.writeable = False
    packer.pack(1, [frozen, free])
    with pytest.raises(ShapeError, match=r"'y' is written by the kernel"):
        packer.pack(1, [free, frozen])


def test_wrong_number_of_arguments() -> None:
    packer = Packer("k", [("x", ArrayType.of(f32, 1)), ("more", (ArrayType.of(f32, 1),) * 2)])
    x = np.zeros(3, np.float32)
    with pytest.raises(ShapeError, match=r"wants 2 runtime arguments \(x, more\), got 1"):
        packer.pack(1, [x])
    with pytest.raises(ShapeError, match=r"'more' wants a tuple of 2 arrays, got 1"):
        packer.pack(1, [x, (x,)])
    with pytest.raises(ShapeError, match=r"'more' wants a tuple of 2 arrays"):
        packer.pack(1, [x, x])

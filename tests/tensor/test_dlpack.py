"""Sharing memory with NumPy and PyTorch."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.tensor.dlpack import DLDeviceType

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a,
        lambda a: a[::-1, ::2],
        lambda a: a.T[1:],
        lambda a: np.broadcast_to(a[0], (5, 4)),
        lambda a: a[0, 0],
        lambda a: a[:0],
    ],
)
def test_numpy_both_ways(view: Any) -> None:
    array = np.asarray(view(np.arange(12, dtype=np.int16).reshape(3, 4)))
    tensor = tw.from_dlpack(array)
    np.testing.assert_array_equal(tensor.numpy(), array)
    back = np.from_dlpack(tensor)
    np.testing.assert_array_equal(back, array)
    if array.size:
        assert tensor.node.value.pointer == array.ctypes.data == back.ctypes.data
        assert back.strides == array.strides
        assert not back.flags.writeable


NAMES = [
    "bfloat16",
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
]


@pytest.mark.parametrize("name", NAMES)
def test_torch_both_ways(name: str) -> None:
    dtype = getattr(torch, name)
    theirs = torch.arange(6).reshape(2, 3).to(dtype).T
    ours = tw.from_dlpack(theirs)
    assert ours.dtype is getattr(tw, name)
    assert ours.strides == theirs.stride()
    back = torch.from_dlpack(ours)
    assert back.dtype is dtype
    assert back.data_ptr() == theirs.data_ptr() == ours.node.value.pointer
    assert torch.equal(back, theirs)


def test_memory_lives_as_long_as_somebody_looks() -> None:
    array = np.arange(1000.0)
    gone = weakref.ref(array)
    tensor = tw.from_dlpack(array)
    part = tensor[10:20]
    del array, tensor
    gc.collect()
    assert gone() is not None
    assert part.tolist() == list(range(10, 20))
    del part
    gc.collect()
    assert gone() is None
    shared = torch.from_dlpack(tw.arange(5))
    gc.collect()
    assert shared.tolist() == [0, 1, 2, 3, 4]


def test_capsules_that_nobody_takes_are_released() -> None:
    tensor = tw.ones((8,)).realize()
    owner = weakref.ref(tensor.node.value.owner)
    for version in (None, (0, 8), (1, 0), (9, 0)):
        capsule = tensor.__dlpack__(max_version=version)
        wanted = "versioned" if version and version[0] else "dltensor"
        assert wanted in repr(capsule)
        del capsule
    del tensor
    gc.collect()
    assert owner() is None


def test_copies_and_devices() -> None:
    tensor = tw.asarray([1.0, 2.0])
    assert tensor.__dlpack_device__() == (DLDeviceType.CPU, 0)
    copied = np.from_dlpack(tensor, copy=True)
    assert copied.flags.writeable
    copied[0] = 9
    assert tensor.tolist() == [1, 2]
    array = np.arange(3.0)
    ours = tw.from_dlpack(array, copy=True)
    array[0] = 7
    assert ours.tolist() == [0, 1, 2]
    assert tw.from_dlpack(tensor).tolist() == [1, 2]
    with pytest.raises(BufferError, match="cpu"):
        tensor.__dlpack__(dl_device=(2, 0))
    with pytest.raises(ValueError, match="stream"):
        tensor.__dlpack__(stream=1)
    with pytest.raises(ValueError, match="device"):
        tw.from_dlpack(array, device="gpu")
    with pytest.raises(TypeError, match="__dlpack__"):
        tw.from_dlpack([1, 2])
    with pytest.raises(BufferError, match="type code"):
        tw.from_dlpack(np.array([1j]))


def test_read_only_memory_may_be_read() -> None:
    array = np.arange(3.0)
    array.flags.writeable = False
    assert tw.from_dlpack(array).tolist() == [0, 1, 2]

"""DLPack: tensors and the arrays of other libraries over the same memory, both ways.

https://dmlc.github.io/dlpack/latest/c_api.html (version 1 and before).
"""

from __future__ import annotations

import ctypes
import enum
import weakref
from typing import TYPE_CHECKING, Any, Final

from tilewright.dtypes import ALL, DType, bf16
from tilewright.errors import DTypeError
from tilewright.graph import data_node
from tilewright.runtime.buffers import Buffer, dense_strides
from tilewright.runtime.buffers import empty as empty_buffer
from tilewright.tensor.memory import bits_of

if TYPE_CHECKING:
    from tilewright.tensor.core import Tensor

__all__ = ["DLDeviceType", "export", "load"]


class DLDeviceType(enum.IntEnum):
    """Kinds of devices (those the standard's tests and NumPy name)."""

    CPU = 1
    CUDA = 2
    CPU_PINNED = 3
    OPENCL = 4
    VULKAN = 7
    METAL = 8
    VPI = 9
    ROCM = 10
    CUDA_MANAGED = 13
    ONE_API = 14


_VERSION: Final = (1, 0)
_COPIED: Final = 2
_NAME: Final = b"dltensor"
_USED: Final = b"used_dltensor"
_VERSIONED: Final = b"dltensor_versioned"
_VERSIONED_USED: Final = b"used_dltensor_versioned"

# (code, bits) of each dtype: kDLInt 0, kDLUInt 1, kDLFloat 2, kDLBfloat 4, kDLBool 6
_CODES: Final = {"i": 0, "u": 1, "f": 2, "b": 6}
_TYPES: Final = {d: (4 if d is bf16 else _CODES[d.kind], d.bits) for d in ALL}
_FROM_TYPES: Final = {code: d for d, code in _TYPES.items()}


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("index", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class _ManagedVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    ]


_api: Final = ctypes.pythonapi


def _declared(name: str, result: Any, *arguments: Any) -> Any:
    """A function of the C API with a signature of its own (``pythonapi`` is shared)."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, _api))


_capsule_valid = _declared("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_capsule_pointer = _declared(
    "PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p
)
_capsule_rename = _declared("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)


def export(
    tensor: Tensor,
    *,
    stream: Any = None,
    max_version: tuple[int, int] | None = None,
    dl_device: tuple[int, int] | None = None,
    copy: bool | None = None,
) -> Any:
    """A DLPack capsule over the memory of ``tensor``.

    NumPy makes it, for releasing a capsule wants compiled code that may run while an exception is
    on its way; of bf16, which NumPy cannot name, the type is filled in. The consumer sees read-only
    memory if it understands versions (a tensor is a value), unless it asked for a copy.

    Raises ``BufferError`` for another device than the cpu, ``ValueError`` for a stream.
    """
    if stream is not None:
        raise ValueError(f"the cpu device has no streams, got {stream!r}")
    if dl_device is not None and tuple(dl_device) != (int(DLDeviceType.CPU), 0):
        raise BufferError(f"the tensor is on the cpu, (1, 0); asked for device {dl_device}")
    buffer = tensor.buffer("__dlpack__()")
    versioned = max_version is not None and max_version[0] >= 1
    if copy:
        buffer = _copied(buffer)
    array = bits_of(buffer, writable=bool(copy) or not versioned)
    capsule = array.__dlpack__(max_version=_VERSION) if versioned else array.__dlpack__()
    managed = _managed(capsule)
    if buffer.dtype is bf16:
        managed.tensor.dtype.code, managed.tensor.dtype.bits = _TYPES[bf16]
    if copy and versioned:
        managed.flags |= _COPIED
    return capsule


def _copied(buffer: Buffer) -> Buffer:
    copied = empty_buffer(buffer.dtype, buffer.shape)
    copied.numpy()[...] = buffer.numpy()
    return copied


def _managed(capsule: Any) -> Any:
    """The struct that a fresh capsule points to."""
    for name, kind in ((_VERSIONED, _ManagedVersioned), (_NAME, _Managed)):
        if _capsule_valid(capsule, name):
            return kind.from_address(_capsule_pointer(capsule, name))
    raise BufferError("the object's __dlpack__ gave no fresh DLPack capsule")


class _Imported:
    """Another library's memory; tells it when nobody looks at it any more."""

    __slots__ = ("__weakref__", "managed")

    def __init__(self, managed: Any) -> None:
        self.managed = managed
        if managed.deleter:
            finish = weakref.finalize(self, _Deleter(managed.deleter), ctypes.addressof(managed))
            finish.atexit = False


def load(x: Any, *, copy: bool | None = None) -> Tensor:
    """A tensor over the memory of ``x``, which has ``__dlpack__``."""
    from tilewright.tensor.core import Tensor, own

    if not hasattr(x, "__dlpack__") or not hasattr(x, "__dlpack_device__"):
        raise DTypeError(f"from_dlpack wants an object with __dlpack__, got {type(x).__name__}")
    kind, _ = x.__dlpack_device__()
    if int(kind) not in (DLDeviceType.CPU, DLDeviceType.CPU_PINNED):
        raise BufferError(f"the memory is on a device of kind {kind}, not on the cpu")
    buffer = _buffer_of(_capsule_of(x, copy))
    if copy:
        buffer = _copied(buffer)
    tensor = Tensor(data_node(buffer))
    own(tensor.node, tensor)
    return tensor


def _capsule_of(x: Any, copy: bool | None) -> Any:
    """The capsule of ``x``, versioned if its library knows how."""
    try:
        return x.__dlpack__(max_version=_VERSION, copy=False if copy is False else None)
    except TypeError:  # before DLPack 1.0 there was only the stream
        return x.__dlpack__()


def _buffer_of(capsule: Any) -> Buffer:
    managed = _managed(capsule)
    if isinstance(managed, _ManagedVersioned):
        if managed.major != _VERSION[0]:
            raise BufferError(f"DLPack version {managed.major}.{managed.minor} is not known")
        _capsule_rename(capsule, _VERSIONED_USED)
    else:
        _capsule_rename(capsule, _USED)
    owner = _Imported(managed)
    t = managed.tensor
    dtype = _dtype_of(t.dtype)
    rank = t.ndim
    shape = tuple(t.shape[:rank]) if rank else ()
    strides = tuple(t.strides[:rank]) if rank and t.strides else dense_strides(shape)
    pointer = (t.data or 0) + t.byte_offset
    if pointer % dtype.nbytes:
        raise BufferError(f"the memory at {pointer:#x} is not aligned for {dtype}")
    if 0 in shape:
        return empty_buffer(dtype, shape)
    return Buffer(dtype, shape, strides, pointer, owner)


def _dtype_of(given: Any) -> DType:
    dtype = _FROM_TYPES.get((given.code, given.bits))
    if dtype is None or given.lanes != 1:
        raise BufferError(
            f"no tensor holds elements of DLPack type code {given.code}, {given.bits} bits, "
            f"{given.lanes} lanes"
        )
    return dtype

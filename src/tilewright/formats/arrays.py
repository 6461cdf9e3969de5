"""Arrays in files: IDX (the MNIST database), NumPy's ``.npy`` and ``.npz``.

Sizes that a header claims are compared with the file before anything is allocated, and nothing is
unpickled.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from typing import IO, Any, Final

import numpy as np

from tilewright.errors import FormatError, UnsupportedError
from tilewright.formats.text import read_chunks

__all__ = ["npy_header", "read_idx", "read_npy", "read_npz", "write_npy_header"]

_IDX_TYPES: Final[dict[int, np.dtype[Any]]] = {
    0x08: np.dtype(np.uint8),
    0x09: np.dtype(np.int8),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
MAX_ARRAY_BYTES: Final = 16 << 30
"""A compressed file that claims more is refused: it would not fit a machine's memory anyway."""
_NPY_HEADER_BYTES: Final = 128


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """An array in Yann LeCun's IDX format, plain or gzip-compressed, in native byte order.

    Layout: two zero bytes, a type byte, the number of dims, the dims as big-endian u32, the data.

    Raises:
        FormatError: damaged, truncated, or with bytes after the data.
        OSError: it cannot be opened.
    """
    found = bytearray()
    wanted: int | None = None
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    shape: tuple[int, ...] = ()
    for chunk in read_chunks(path):
        found += chunk
        if wanted is None and len(found) >= 4 and len(found) >= 4 + 4 * found[3]:
            dtype, shape = _idx_header(bytes(found[: 4 + 4 * found[3]]), path)
            wanted = 4 + 4 * len(shape) + math.prod(shape) * dtype.itemsize
            if wanted > MAX_ARRAY_BYTES:
                raise FormatError(f"claims {dtype} {shape}, {wanted} bytes", path=path, offset=4)
        if wanted is not None and len(found) > wanted:
            raise FormatError(f"bytes follow the {shape} array", path=path, offset=wanted)
    if wanted is None:
        raise FormatError("is too short to be an IDX file", path=path, offset=len(found))
    if len(found) < wanted:
        raise FormatError(
            f"ends early: {dtype} {shape} takes {wanted} bytes, it has {len(found)}",
            path=path,
            offset=len(found),
        )
    data = np.frombuffer(found, dtype, offset=4 + 4 * len(shape)).reshape(shape)
    return data.astype(dtype.newbyteorder("="), copy=False)


def _idx_header(header: bytes, path: Any) -> tuple[np.dtype, tuple[int, ...]]:
    if header[:2] != b"\0\0" or header[2] not in _IDX_TYPES or not header[3]:
        raise FormatError(
            f"begins with {header[:4].hex(' ')}, an IDX file with 00 00, a type and a number of "
            "dims",
            path=path,
            offset=0,
        )
    return _IDX_TYPES[header[2]], struct.unpack(f">{header[3]}I", header[4:])


def npy_header(file: IO[bytes], path: object) -> tuple[np.dtype, tuple[int, ...], bool]:
    """(dtype, shape, Fortran order) from an open ``.npy`` file, which is left at the data.

    Raises:
        FormatError: damaged, or the array is of Python objects.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise UnsupportedError(f"{path}: .npy version {version} is not supported")
        shape, fortran, dtype = read(file)
    except (UnsupportedError, OSError):
        raise
    except Exception as error:  # NumPy evaluates the header as a literal, which raises anything
        raise FormatError(f"is no NumPy array: {str(error)[:200]}", path=path, offset=0) from None
    if dtype.hasobject:
        raise FormatError("holds Python objects, which are never unpickled", path=path)
    if any(not isinstance(n, int) or n < 0 for n in shape):
        raise FormatError(f"has the shape {shape}", path=path)
    return dtype, shape, fortran


def write_npy_header(count: int, dtype: np.dtype) -> bytes:
    """The header of a one-dimensional ``.npy`` file, always 128 bytes, so that it can be written
    again once the count is known."""
    text = repr({"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": (count,)})
    body = text.ljust(_NPY_HEADER_BYTES - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body.encode("latin-1")


def _read_npy(file: IO[bytes], size: int, path: object) -> np.ndarray:
    """The array of an open ``.npy`` file of ``size`` bytes."""
    dtype, shape, fortran = npy_header(file, path)
    left, wanted = size - file.tell(), math.prod(shape) * dtype.itemsize
    if wanted != left:
        raise FormatError(f"{dtype} {shape} takes {wanted} bytes, {left} follow", path=path)
    data = bytearray()  # grown, not allocated: an archive may lie about a member's size
    while len(data) < wanted:
        piece = file.read(min(wanted - len(data), 1 << 20))
        if not piece:
            raise FormatError(f"the data ends after {len(data)} of {wanted} bytes", path=path)
        data += piece
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array, dtype.newbyteorder("=")) if array.ndim else array


def read_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of a ``.npy`` file. Raises `FormatError` when it is damaged, `OSError`."""
    with open(path, "rb") as file:
        return _read_npy(file, os.fstat(file.fileno()).st_size, path)


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a ``.npz`` file by name; raises `FormatError` naming the member, `OSError`."""
    arrays = {}
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                total = sum(info.file_size for info in archive.infolist())
                if total > MAX_ARRAY_BYTES:
                    raise FormatError(f"claims {total} bytes of arrays", path=path)
                for info in archive.infolist():
                    with archive.open(info) as member:
                        where = f"{os.fspath(path)}[{info.filename}]"
                        array = _read_npy(_Counted(member), info.file_size, where)  # type: ignore[arg-type]
                    arrays[info.filename.removesuffix(".npy")] = array
        except (FormatError, UnsupportedError):
            raise
        except Exception as error:  # what archives lie about raises anything, OSError too
            raise FormatError(f"is a damaged archive: {error}", path=path) from None
    return arrays


class _Counted:
    """A member of an archive that knows how far it was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._at += len(data)
        return data

    def tell(self) -> int:
        return self._at

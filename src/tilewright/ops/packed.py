"""Weight matrices in the layouts that the matrix kernels read.

A :class:`PackedMatrix` holds W (n, k) of ``y = x @ W^T``. Its rows are cut into panels of
:data:`PANEL` = 32; inside a panel the same piece of all 32 rows lies side by side, so that one
vector load brings 16 rows' worth of one k (or of four packed k). What a plane holds, P panels:

=========  =====================================================================================
format     planes
=========  =====================================================================================
``f32``    ``w`` f32 (P, k, 32); likewise ``f16`` and ``bf16``
``q8_0``   ``q`` u32 (P, k/4, 32): four quants biased by 128; ``d`` f16 (P, k/32, 32)
``q4_0``   ``q`` u32 (P, k/8, 32): the file's words, word j of a block holds k = 4j.. in its low
           nibbles and k = 16+4j.. in its high ones; ``d`` f16 (P, k/32, 32)
``q4_k``   ``q`` u32 (P, k/8, 32): word j of 64 values holds k = 4j.. low and k = 32+4j.. high;
           ``dm`` f16 (P, k/128, 32): d, dmin, d, ...; ``sm`` u8 (P, k/16, 32): scale and
           minimum of each 32 values in turn, unpacked from 6 bits
``q6_k``   ``ql`` u32 (P, k/8, 32) and ``qh`` u32 (P, k/16, 32): the file's words; ``sc`` i8
           (P, k/16, 32); ``d`` f16 (P, k/256, 32)
other      ``raw`` u8 (n, row_bytes): the file's rows, dequantised where they are used
=========  =====================================================================================

Rows past n in the last panel are zero. Block layouts follow ``ggml-common.h``.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels are checked by the kernel language)

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.dtypes import DType, bf16, f16, f32, i8, to_float32, u8, u16, u32
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.lang import Array, program_id
from tilewright.runtime.buffers import Buffer, empty
from tilewright.runtime.launch import kernel

__all__ = [
    "BLOCK_SIZES",
    "PANEL",
    "PackedMatrix",
    "RowReader",
    "block_layout",
    "pack",
    "packed_formats",
    "raw_rows",
]

PANEL = 32

RowReader = Callable[[int, int], np.ndarray]
"""``(start_row, stop_row) -> uint8 (rows, row_bytes)`` in the file's layout."""

_CHUNK_BYTES = 1 << 20

# ggml type -> (values per block, bytes per block)
BLOCK_SIZES: Mapping[str, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ4_NL": (32, 18),
}


def block_layout(type: str) -> tuple[int, int]:
    """(values per block, bytes per block) of a ggml type that the kernels can read.

    Raises :class:`UnsupportedError` for any other type.
    """
    if type.upper() not in BLOCK_SIZES:
        raise UnsupportedError(
            f"no kernel reads tensors of type {type.upper()}; readable: {', '.join(BLOCK_SIZES)}"
        )
    return BLOCK_SIZES[type.upper()]


@dataclass(frozen=True)
class PackedMatrix:
    """W (n, k) as planes; see the module's table.

    Attributes:
        format: lower-case ggml type name.
        n: rows, the outputs of ``x @ W^T``.
        k: columns.
        planes: by name, in the order in which kernels take them.
    """

    format: str
    n: int
    k: int
    planes: Mapping[str, Buffer]

    @property
    def nbytes(self) -> int:
        """Bytes of all planes: what one matrix-vector product reads."""
        return sum(p.dtype.nbytes * int(np.prod(p.shape)) for p in self.planes.values())

    @property
    def is_packed(self) -> bool:
        """False where the planes are the file's rows as they are."""
        return "raw" not in self.planes

    def numpy(self) -> np.ndarray:
        """The values, float32 (n, k), exactly as ggml dequantises them."""
        if not self.is_packed:
            from tilewright.ops.dequant import dequantize_rows

            return dequantize_rows(self.planes["raw"].numpy(), self.format, self.k)
        values = _UNPACKERS[self.format]({n: p.numpy() for n, p in self.planes.items()})
        return values.reshape(-1, self.k)[: self.n]


def packed_formats() -> tuple[str, ...]:
    """The formats that have kernels of their own."""
    return tuple(_PLANES)


def pack(sources: Sequence[tuple[int, RowReader]], type: str, k: int) -> PackedMatrix:
    """Stack ``sources`` along n and pack them, reading about a megabyte at a time.

    Args:
        sources: (rows, reader) of each matrix, all of one ``type`` and width ``k``.
        type: ggml type name, any case.
        k: values per row.

    Raises:
        UnsupportedError: no kernel reads the type.
        ShapeError: ``k`` is not whole blocks, or a reader returns something else than its rows.
    """
    block, block_bytes = block_layout(type)
    if k <= 0 or k % block:
        raise ShapeError(f"a row of {k} values is not whole {type} blocks of {block}")
    row_bytes = k // block * block_bytes
    n = sum(rows for rows, _ in sources)
    fmt = type.lower()
    if fmt not in _PLANES:
        return raw_rows(sources, type, k)

    panels = -(-n // PANEL)
    planes = {
        name: empty(dtype, (panels, k // per, PANEL)).fix() for name, dtype, per in _PLANES[fmt]
    }
    if fmt in ("f32", "f16", "bf16"):
        _pack_plain(sources, planes)
        return PackedMatrix(fmt, n, k, planes)
    views = {name: p.numpy() for name, p in planes.items()}
    packer = _PACKERS[fmt]
    step = max(1, _CHUNK_BYTES // (row_bytes * PANEL))

    def put(first: int, rows: np.ndarray) -> None:
        count = rows.shape[0] // PANEL
        packer(rows, {name: v[first : first + count] for name, v in views.items()})

    with ThreadPoolExecutor(2) as pool:  # NumPy copies without the interpreter's lock
        waiting: list[Any] = []
        for first in range(0, panels, step):
            count = min(step, panels - first)
            rows = _gather(sources, first * PANEL, count * PANEL, row_bytes)
            waiting.append(pool.submit(put, first, rows))
            if len(waiting) > 4:
                waiting.pop(0).result()
        for future in waiting:
            future.result()
    return PackedMatrix(fmt, n, k, planes)


def raw_rows(sources: Sequence[tuple[int, RowReader]], type: str, k: int) -> PackedMatrix:
    """The stacked rows as the file has them, in one plane ``raw``: for look-ups by row.

    Arguments and errors as for :func:`pack`.
    """
    block, block_bytes = block_layout(type)
    if k <= 0 or k % block:
        raise ShapeError(f"a row of {k} values is not whole {type} blocks of {block}")
    row_bytes = k // block * block_bytes
    raw = empty(u8, (sum(rows for rows, _ in sources), row_bytes))
    view = raw.numpy()
    step = max(1, _CHUNK_BYTES // row_bytes)
    start = 0
    for rows, reader in sources:
        for r in range(0, rows, step):
            stop = min(r + step, rows)
            view[start + r : start + stop] = _read(reader, r, stop, row_bytes)
        start += rows
    return PackedMatrix(type.lower(), view.shape[0], k, {"raw": raw})


@kernel
def interleave(rows: Array, out: Array):
    """rows (32 * panels, K) -> out (panels, K, 32), one panel per program."""
    panel = program_id(0)
    for k in range(0, rows.shape[1], 16):
        out[panel, k : k + 16, 0:32] = rows[panel * 32 : panel * 32 + 32, k : k + 16].T


def _pack_plain(sources: Sequence[tuple[int, RowReader]], planes: Mapping[str, Buffer]) -> None:
    """Pack plain numbers by the tile kernel: NumPy transposes them at a third of the speed."""
    plane = planes["w"]
    bits = plane.view(plane.shape, plane.strides, 0, {4: u32, 2: u16}[plane.dtype.nbytes])
    panels, k, _ = plane.shape
    row_bytes = k * plane.dtype.nbytes
    step = max(1, _CHUNK_BYTES // (row_bytes * PANEL))
    for first in range(0, panels, step):
        count = min(step, panels - first)
        rows = np.ascontiguousarray(_gather(sources, first * PANEL, count * PANEL, row_bytes)).view(
            bits.dtype.storage
        )
        if rows.ctypes.data % bits.dtype.nbytes:
            rows = rows.copy()
        size = (count, k, PANEL)
        interleave[(count,)](rows, bits.view(size, bits.strides, first * bits.strides[0]))


def _read(reader: RowReader, start: int, stop: int, row_bytes: int) -> np.ndarray:
    rows = reader(start, stop)
    if rows.dtype != np.uint8 or rows.shape != (stop - start, row_bytes):
        raise ShapeError(
            f"a weight's reader gave {rows.dtype}{rows.shape} for rows {start}:{stop}, "
            f"wants uint8({stop - start}, {row_bytes})"
        )
    return rows


def _gather(
    sources: Sequence[tuple[int, RowReader]], start: int, count: int, row_bytes: int
) -> np.ndarray:
    """Rows ``start`` to ``start + count`` of the stack; zeros past its end."""
    pieces: list[np.ndarray] = []
    base, have = 0, 0
    for rows, reader in sources:
        lo, hi = max(start - base, 0), min(start + count - base, rows)
        if lo < hi:
            pieces.append(_read(reader, lo, hi, row_bytes))
            have += hi - lo
        base += rows
    if have < count:
        pieces.append(np.zeros((count - have, row_bytes), np.uint8))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


# --- planes of each format: (name, dtype, values of k per element) -------------------------------

_PLANES: Mapping[str, tuple[tuple[str, DType, int], ...]] = {
    "f32": (("w", f32, 1),),
    "f16": (("w", f16, 1),),
    "bf16": (("w", bf16, 1),),
    "q8_0": (("q", u32, 4), ("d", f16, 32)),
    "q4_0": (("q", u32, 8), ("d", f16, 32)),
    "q4_k": (("q", u32, 8), ("dm", f16, 128), ("sm", u8, 16)),
    "q6_k": (("ql", u32, 8), ("qh", u32, 16), ("sc", i8, 16), ("d", f16, 256)),
}

Planes = Mapping[str, np.ndarray]


def _interleave(field: np.ndarray, dtype: type[np.generic], out: np.ndarray, flip: int = 0) -> None:
    """Bytes (rows, blocks, width) of a field -> ``out`` (panels, elements, 32) of ``dtype``."""
    rows = field.shape[0]
    dense = np.ascontiguousarray(field)
    if flip:
        if dense is field or not dense.flags.writeable:
            dense = dense.copy()
        dense ^= np.uint8(flip)
    words = dense.reshape(rows, -1).view(dtype)
    out[...] = words.reshape(rows // PANEL, PANEL, -1).transpose(0, 2, 1)


def _pack_q8_0(rows: np.ndarray, out: Planes) -> None:
    blocks = rows.reshape(rows.shape[0], -1, 34)
    _interleave(blocks[:, :, :2], np.float16, out["d"])
    _interleave(blocks[:, :, 2:], np.uint32, out["q"], flip=0x80)


def _pack_q4_0(rows: np.ndarray, out: Planes) -> None:
    blocks = rows.reshape(rows.shape[0], -1, 18)
    _interleave(blocks[:, :, :2], np.float16, out["d"])
    _interleave(blocks[:, :, 2:], np.uint32, out["q"])


def _pack_q4_k(rows: np.ndarray, out: Planes) -> None:
    blocks = rows.reshape(rows.shape[0], -1, 144)
    _interleave(blocks[:, :, 0:4], np.float16, out["dm"])
    # six-bit scales and minima: sc[0:4] and m[0:4] in the low bits of bytes 0..3 and 4..7, the
    # others' low nibbles in bytes 8..11 and their high two bits on top of the first eight bytes
    a, b, c = blocks[:, :, 4:8], blocks[:, :, 8:12], blocks[:, :, 12:16]
    sc = np.concatenate([a & 0x3F, (c & 0x0F) | ((a >> 2) & 0x30)], axis=2)
    m = np.concatenate([b & 0x3F, (c >> 4) | ((b >> 2) & 0x30)], axis=2)
    _interleave(np.stack([sc, m], axis=3), np.uint8, out["sm"])
    _interleave(blocks[:, :, 16:], np.uint32, out["q"])


def _pack_q6_k(rows: np.ndarray, out: Planes) -> None:
    blocks = rows.reshape(rows.shape[0], -1, 210)
    _interleave(blocks[:, :, :128], np.uint32, out["ql"])
    _interleave(blocks[:, :, 128:192], np.uint32, out["qh"])
    _interleave(blocks[:, :, 192:208], np.int8, out["sc"])
    _interleave(blocks[:, :, 208:], np.float16, out["d"])


_PACKERS: Mapping[str, Callable[[np.ndarray, Planes], None]] = {
    "q8_0": _pack_q8_0,
    "q4_0": _pack_q4_0,
    "q4_k": _pack_q4_k,
    "q6_k": _pack_q6_k,
}


# --- and back, for references and tests ----------------------------------------------------------


def _rows(plane: np.ndarray) -> np.ndarray:
    """(panels, elements, 32) -> contiguous (rows, elements)."""
    return np.ascontiguousarray(plane.transpose(0, 2, 1)).reshape(-1, plane.shape[1])


def _scale(plane: np.ndarray) -> np.ndarray:
    return _rows(plane).astype(np.float32)[:, :, None]


def _unpack_q8_0(p: Planes) -> np.ndarray:
    d = _scale(p["d"])
    q = (_rows(p["q"]).view(np.uint8) ^ np.uint8(0x80)).view(np.int8)
    return q.reshape(*d.shape[:2], 32).astype(np.float32) * d


def _nibbles(words: np.ndarray, width: int) -> np.ndarray:
    """Words (rows, ...) -> (rows, groups, 2 * width): low nibbles of ``width`` bytes, high ones."""
    groups = words.view(np.uint8).reshape(words.shape[0], -1, 1, width)
    low_high = np.concatenate([groups & 0x0F, groups >> 4], axis=2)
    return low_high.reshape(words.shape[0], -1, 2 * width)


def _unpack_q4_0(p: Planes) -> np.ndarray:
    q = _nibbles(_rows(p["q"]), 16).astype(np.int8) - np.int8(8)
    return _scale(p["d"]) * q.astype(np.float32)


def _unpack_q4_k(p: Planes) -> np.ndarray:
    dm = _rows(p["dm"]).astype(np.float32)
    n = dm.shape[0]
    sm = _rows(p["sm"]).astype(np.float32).reshape(n, -1, 8, 2)
    d, m = (np.reshape(dm[:, i::2, None] * sm[..., i], (n, -1, 1)) for i in (0, 1))
    q = _nibbles(_rows(p["q"]), 32).reshape(n, -1, 32).astype(np.float32)
    return d * q - m


def _unpack_q6_k(p: Planes) -> np.ndarray:
    n = p["d"].shape[0] * PANEL
    low = _rows(p["ql"]).view(np.uint8).reshape(n, -1, 1, 64)
    low = np.concatenate([low & 0x0F, low >> 4], axis=2).reshape(n, -1, 4, 32)
    high = _rows(p["qh"]).view(np.uint8).reshape(n, -1, 1, 32)
    high = (high >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)) & np.uint8(3)
    q = (low | (high << np.uint8(4))).astype(np.int8) - np.int8(32)
    scale = _scale(p["d"]) * _rows(p["sc"]).astype(np.float32).reshape(n, -1, 16)
    return scale.reshape(n, -1, 1) * q.reshape(n, -1, 16).astype(np.float32)


_UNPACKERS: Mapping[str, Callable[[Planes], np.ndarray]] = {
    "f32": lambda p: _rows(p["w"]),
    "f16": lambda p: _rows(p["w"]).astype(np.float32),
    "bf16": lambda p: to_float32(_rows(p["w"])),
    "q8_0": _unpack_q8_0,
    "q4_0": _unpack_q4_0,
    "q4_k": _unpack_q4_k,
    "q6_k": _unpack_q6_k,
}

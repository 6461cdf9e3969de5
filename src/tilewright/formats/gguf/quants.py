"""Dequantise and quantise ggml's types; each type's blocks live in a class of their own.

:func:`dequantize` gives bit for bit what ``gguf.quants.dequantize`` gives, :func:`quantize` bit for
bit what ``gguf.quants.quantize`` gives where that exists.

To add a type: write a class with a ``dequantize_blocks`` (and, if models are to be written in it, a
``quantize_blocks``) in one of the ``quants_*`` modules and name it in that module's ``FORMATS``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import MappingProxyType

import numpy as np

from tilewright.errors import ShapeError, UnsupportedError
from tilewright.formats.gguf.blocks import BlockFormat
from tilewright.formats.gguf.types import GGMLType

__all__ = ["can_dequantize", "can_quantize", "dequantize", "formats", "quantize", "why_not"]

_CHUNK_VALUES = 1 << 16
"""Values converted at a time: small enough for the temporaries to stay in the L2 cache."""


@cache
def formats() -> MappingProxyType[GGMLType, BlockFormat]:
    """Every type that can be dequantised, with its format."""
    from tilewright.formats.gguf import quants_basic, quants_k, quants_lookup, quants_plain

    table: dict[GGMLType, BlockFormat] = {}
    for module in (quants_plain, quants_basic, quants_k, quants_lookup):
        for block_format in module.FORMATS:
            assert block_format.type not in table, block_format.type
            table[block_format.type] = block_format
    return MappingProxyType(table)


def can_dequantize(type_: GGMLType) -> bool:
    """Whether :func:`dequantize` knows the type."""
    return type_ in formats()


def can_quantize(type_: GGMLType) -> bool:
    """Whether :func:`quantize` knows the type."""
    block_format = formats().get(type_)
    return block_format is not None and block_format.quantize_blocks is not None


def why_not(type_: GGMLType) -> str:
    """Why a type cannot be dequantised, for an error message."""
    if type_.layout.removed:
        return (
            f"ggml type {type_.name} was removed from ggml and nothing reads it any more; "
            "convert the model anew"
        )
    known = ", ".join(t.name for t in formats() if t.is_quantized)
    return f"ggml type {type_.name} is not supported; quantised types that are: {known}"


def dequantize(raw: np.ndarray, type_: GGMLType, out: np.ndarray | None = None) -> np.ndarray:
    """Values of stored rows.

    Args:
        raw: uint8, shape ``(..., row_nbytes)``, C-contiguous.
        type_: how ``raw`` is stored.
        out: float32, C-contiguous, of the result's size, to write into.

    Returns:
        float32, shape ``(..., n)`` with ``n = row_nbytes / type_size * block_size``.

    Raises:
        UnsupportedError: there is no dequantiser for the type.
        ShapeError: ``raw`` or ``out`` does not fit.
    """
    block_format = formats().get(type_)
    if block_format is None:
        raise UnsupportedError(why_not(type_))
    blocks_per_row, rest = divmod(raw.shape[-1] if raw.ndim else 0, type_.type_size)
    if raw.dtype != np.uint8 or not raw.flags.c_contiguous or rest or not raw.ndim:
        raise ShapeError(
            f"dequantize: {type_.name} wants C-contiguous uint8 whose last axis is a multiple of "
            f"{type_.type_size} bytes, got {raw.dtype} {raw.shape}"
        )
    shape = (*raw.shape[:-1], blocks_per_row * type_.block_size)
    if out is None:
        out = np.empty(shape, np.float32)
    elif out.dtype != np.float32 or not out.flags.c_contiguous or out.size != np.prod(shape):
        raise ShapeError(
            f"dequantize: out must be C-contiguous float32 of shape {shape}, "
            f"got {out.dtype} {out.shape}"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # scales may be infinite or NaN
        _by_chunks(
            block_format.dequantize_blocks,
            raw.reshape(-1, type_.type_size),
            out.reshape(-1, type_.block_size),
            type_.block_size,
        )
    return out.reshape(shape)


def quantize(values: np.ndarray, type_: GGMLType) -> np.ndarray:
    """Store values as rows of ``type_``.

    Args:
        values: float32 (converted if not), shape ``(..., n)``; ``n`` must be whole blocks. A block
            with a value that is not finite, or whose scale overflows float16, does not survive.
        type_: how to store them.

    Returns:
        uint8, shape ``(..., n / block_size * type_size)``.

    Raises:
        UnsupportedError: there is no quantiser for the type.
        ShapeError: the rows do not divide into blocks.
    """
    block_format = formats().get(type_)
    if block_format is None or block_format.quantize_blocks is None:
        known = ", ".join(t.name for t in formats() if can_quantize(t))
        raise UnsupportedError(f"quantize: cannot write {type_.name}; types that can be: {known}")
    if not values.ndim or values.shape[-1] % type_.block_size:
        raise ShapeError(
            f"quantize: {type_.name} wants rows of a multiple of {type_.block_size} values, "
            f"got the shape {values.shape}"
        )
    values = np.ascontiguousarray(values, np.float32)
    shape = (*values.shape[:-1], values.shape[-1] // type_.block_size * type_.type_size)
    raw = np.empty(shape, np.uint8)
    with np.errstate(all="ignore"):
        _by_chunks(
            block_format.quantize_blocks,
            values.reshape(-1, type_.block_size),
            raw.reshape(-1, type_.type_size),
            type_.block_size,
        )
    return raw


def _by_chunks(
    convert: Callable[[np.ndarray], np.ndarray],
    source: np.ndarray,
    target: np.ndarray,
    block_size: int,
) -> None:
    """``target[i] = convert(source[i])`` over blocks, a cache-sized piece at a time."""
    step = max(1, _CHUNK_VALUES // block_size)
    for start in range(0, len(source), step):
        target[start : start + step] = convert(source[start : start + step])

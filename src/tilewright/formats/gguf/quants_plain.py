"""Types without blocks: floats and integers, one value after the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tilewright import dtypes
from tilewright.formats.gguf.blocks import BlockFormat
from tilewright.formats.gguf.types import GGMLType

__all__ = ["FORMATS"]


def _from_numpy(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    def dequantize_blocks(blocks: np.ndarray) -> np.ndarray:
        return blocks.view(dtype).astype(np.float32)

    return dequantize_blocks


def _to_numpy(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    def quantize_blocks(values: np.ndarray) -> np.ndarray:
        return values.astype(dtype).view(np.uint8)

    return quantize_blocks


def _dequantize_bf16(blocks: np.ndarray) -> np.ndarray:
    return dtypes.to_float32(blocks.view("<u2"))


def _quantize_bf16(values: np.ndarray) -> np.ndarray:
    return dtypes.from_float32(values).astype("<u2").view(np.uint8)


FORMATS = (
    BlockFormat(GGMLType.F32, _from_numpy("<f4"), _to_numpy("<f4")),
    BlockFormat(GGMLType.F16, _from_numpy("<f2"), _to_numpy("<f2")),
    BlockFormat(GGMLType.BF16, _dequantize_bf16, _quantize_bf16),
    BlockFormat(GGMLType.F64, _from_numpy("<f8"), _to_numpy("<f8")),
    BlockFormat(GGMLType.I8, _from_numpy("<i1")),
    BlockFormat(GGMLType.I16, _from_numpy("<i2")),
    BlockFormat(GGMLType.I32, _from_numpy("<i4")),
    BlockFormat(GGMLType.I64, _from_numpy("<i8")),
)

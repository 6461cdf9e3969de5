"""The element types a GGUF file can hold: ggml's tensor types and the metadata value types.

Numbers and block layouts follow ``ggml.h`` and ``ggml-common.h``. A ggml tensor type stores
``block_size`` values of one row in ``type_size`` bytes; a plain type has blocks of one.
Types that ggml has removed keep their numbers and names, so that an old file gets an error that
says what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np

__all__ = ["GGMLType", "TypeLayout", "ValueType"]


class ValueType(IntEnum):
    """Type of a metadata value (``gguf_metadata_value_type``)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12

    @property
    def numpy(self) -> np.dtype | None:
        """Little-endian NumPy dtype of a number or bool; ``None`` for strings and arrays."""
        return _VALUE_DTYPES.get(self)


_VALUE_DTYPES: Final[dict[ValueType, np.dtype]] = {
    ValueType.UINT8: np.dtype("u1"),
    ValueType.INT8: np.dtype("i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("?"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}


class GGMLType(IntEnum):
    """Element type of a tensor (``enum ggml_type``)."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q4_2 = 4
    Q4_3 = 5
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    Q4_0_4_4 = 31
    Q4_0_4_8 = 32
    Q4_0_8_8 = 33
    TQ1_0 = 34
    TQ2_0 = 35
    IQ4_NL_4_4 = 36
    IQ4_NL_4_8 = 37
    IQ4_NL_8_8 = 38
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41

    @property
    def layout(self) -> TypeLayout:
        """Block size, bytes per block and whether ggml has dropped the type."""
        return _LAYOUTS[self]

    @property
    def block_size(self) -> int:
        """Values per block."""
        return _LAYOUTS[self].block_size

    @property
    def type_size(self) -> int:
        """Bytes per block."""
        return _LAYOUTS[self].type_size

    @property
    def is_quantized(self) -> bool:
        """True when values come in blocks that share a scale."""
        return _LAYOUTS[self].block_size > 1

    @property
    def bits_per_value(self) -> float:
        """Storage per value, scales included."""
        return 8 * self.type_size / self.block_size

    def row_nbytes(self, n_values: int) -> int:
        """Bytes of one row of ``n_values`` values; ``n_values`` must be whole blocks.

        Raises:
            ValueError: the row does not divide into blocks.
        """
        blocks, rest = divmod(n_values, self.block_size)
        if rest:
            raise ValueError(
                f"a row of {n_values} values does not divide into {self.name} blocks of "
                f"{self.block_size}"
            )
        return blocks * self.type_size


@dataclass(frozen=True)
class TypeLayout:
    """How a ggml type lies in memory.

    Attributes:
        block_size: values per block.
        type_size: bytes per block.
        removed: ggml once wrote it and no longer reads it.
    """

    block_size: int
    type_size: int
    removed: bool = False


_T = GGMLType
_LAYOUTS: Final = {
    _T.F32: TypeLayout(1, 4),
    _T.F16: TypeLayout(1, 2),
    _T.BF16: TypeLayout(1, 2),
    _T.F64: TypeLayout(1, 8),
    _T.I8: TypeLayout(1, 1),
    _T.I16: TypeLayout(1, 2),
    _T.I32: TypeLayout(1, 4),
    _T.I64: TypeLayout(1, 8),
    _T.Q4_0: TypeLayout(32, 18),
    _T.Q4_1: TypeLayout(32, 20),
    _T.Q5_0: TypeLayout(32, 22),
    _T.Q5_1: TypeLayout(32, 24),
    _T.Q8_0: TypeLayout(32, 34),
    _T.Q8_1: TypeLayout(32, 36),
    _T.Q2_K: TypeLayout(256, 84),
    _T.Q3_K: TypeLayout(256, 110),
    _T.Q4_K: TypeLayout(256, 144),
    _T.Q5_K: TypeLayout(256, 176),
    _T.Q6_K: TypeLayout(256, 210),
    _T.Q8_K: TypeLayout(256, 292),
    _T.IQ1_S: TypeLayout(256, 50),
    _T.IQ1_M: TypeLayout(256, 56),
    _T.IQ2_XXS: TypeLayout(256, 66),
    _T.IQ2_XS: TypeLayout(256, 74),
    _T.IQ2_S: TypeLayout(256, 82),
    _T.IQ3_XXS: TypeLayout(256, 98),
    _T.IQ3_S: TypeLayout(256, 110),
    _T.IQ4_NL: TypeLayout(32, 18),
    _T.IQ4_XS: TypeLayout(256, 136),
    _T.TQ1_0: TypeLayout(256, 54),
    _T.TQ2_0: TypeLayout(256, 66),
    _T.MXFP4: TypeLayout(32, 17),
    _T.NVFP4: TypeLayout(64, 36),
    _T.Q1_0: TypeLayout(128, 18),
    _T.Q4_2: TypeLayout(16, 10, removed=True),
    _T.Q4_3: TypeLayout(16, 12, removed=True),
    _T.Q4_0_4_4: TypeLayout(32, 18, removed=True),
    _T.Q4_0_4_8: TypeLayout(32, 18, removed=True),
    _T.Q4_0_8_8: TypeLayout(32, 18, removed=True),
    _T.IQ4_NL_4_4: TypeLayout(32, 18, removed=True),
    _T.IQ4_NL_4_8: TypeLayout(32, 18, removed=True),
    _T.IQ4_NL_8_8: TypeLayout(32, 18, removed=True),
}

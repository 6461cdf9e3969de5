"""The public names of tensors, by module: what ``tilewright`` offers lazily.

``STANDARD`` is the main namespace of the Array API standard 2024.12, ``EXTENSIONS`` what tilewright
has beyond it.
"""

from __future__ import annotations

import importlib
import math
from typing import Any, Final

from tilewright import dtypes

__all__ = ["CONSTANTS", "DTYPES", "EXTENSIONS", "STANDARD", "lookup", "names"]

API_VERSION: Final = "2024.12"

DTYPES: Final = {
    "bool": dtypes.boolean,
    "int8": dtypes.i8,
    "int16": dtypes.i16,
    "int32": dtypes.i32,
    "int64": dtypes.i64,
    "uint8": dtypes.u8,
    "uint16": dtypes.u16,
    "uint32": dtypes.u32,
    "uint64": dtypes.u64,
    "float16": dtypes.f16,
    "bfloat16": dtypes.bf16,
    "float32": dtypes.f32,
    "float64": dtypes.f64,
}

CONSTANTS: Final[dict[str, Any]] = {
    "__array_api_version__": API_VERSION,
    "e": math.e,
    "inf": math.inf,
    "nan": math.nan,
    "newaxis": None,
    "pi": math.pi,
}

STANDARD: Final = {
    "creation": (
        "arange asarray empty empty_like eye from_dlpack full full_like linspace meshgrid ones "
        "ones_like tril triu zeros zeros_like"
    ),
    "data_types": "astype can_cast finfo iinfo isdtype result_type",
    "elementwise": (
        "abs acos acosh add asin asinh atan atan2 atanh bitwise_and bitwise_invert "
        "bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor ceil clip conj copysign cos "
        "cosh divide equal exp expm1 floor floor_divide greater greater_equal hypot imag isfinite "
        "isinf isnan less less_equal log log10 log1p log2 logaddexp logical_and logical_not "
        "logical_or logical_xor maximum minimum multiply negative nextafter not_equal positive pow "
        "real reciprocal remainder round sign signbit sin sinh sqrt square subtract tan tanh trunc "
        "where"
    ),
    "indexing": "take take_along_axis",
    "info": "__array_namespace_info__",
    "linalg": "matmul matrix_transpose tensordot vecdot",
    "manipulation": (
        "broadcast_arrays broadcast_to concat expand_dims flip moveaxis permute_dims repeat "
        "reshape roll squeeze stack tile unstack"
    ),
    "reductions": ("all any argmax argmin count_nonzero max mean min prod std sum var"),
    "scans": "cumulative_prod cumulative_sum diff",
    "searching": "nonzero searchsorted unique_all unique_counts unique_inverse unique_values",
    "sorting": "argsort sort",
}

EXTENSIONS: Final = {
    "autograd": ("backward checkpoint custom_gradient grad jvp stop_gradient value_and_grad vjp"),
    "compiled": "compile",
    "core": "Tensor realize",
    "creation": "from_numpy",
    "elementwise": ("elu erf exp2 gelu leaky_relu log_sigmoid relu rsqrt sigmoid silu softplus"),
    "linalg": "einsum norm outer",
    "manipulation": "broadcast_shapes pad split",
    "modes": "no_grad",
    "reductions": "log_softmax logsumexp softmax",
    "sorting": "topk",
}

MODULES: Final = ("random",)

_WHERE: Final = {
    name: module
    for table in (STANDARD, EXTENSIONS)
    for module, listed in table.items()
    for name in listed.split()
}


def names() -> list[str]:
    """Every public name."""
    return sorted({*DTYPES, *CONSTANTS, *_WHERE, *MODULES, "linalg"})


def lookup(name: str) -> Any:
    """What ``name`` stands for; ``AttributeError`` if nothing."""
    if name in DTYPES:
        return DTYPES[name]
    if name in CONSTANTS:
        return CONSTANTS[name]
    if name in MODULES:
        return importlib.import_module(f"tilewright.tensor.{name}")
    if name == "linalg":
        return importlib.import_module("tilewright.tensor.linalg_extension")
    if name not in _WHERE:
        raise AttributeError(f"module 'tilewright' has no attribute {name!r}")
    module = importlib.import_module(f"tilewright.tensor.{_WHERE[name]}")
    return getattr(module, name)

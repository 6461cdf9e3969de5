"""tilewright: runs neural networks at the speed of the machine it stands on."""

# ruff: noqa: F401 (names for type checkers)

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tilewright.errors import (
    BoundsError,
    CompileError,
    ContextLengthError,
    DTypeError,
    FormatError,
    KernelError,
    OutOfMemoryError,
    ShapeError,
    TilewrightError,
    TraceError,
    TrainingError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from tilewright import data, lang, nn, onnx, optim, tokenizers, train
    from tilewright.dtypes import (
        bf16 as bfloat16,
    )
    from tilewright.dtypes import (
        boolean as bool,
    )
    from tilewright.dtypes import (
        f16 as float16,
    )
    from tilewright.dtypes import (
        f32 as float32,
    )
    from tilewright.dtypes import (
        f64 as float64,
    )
    from tilewright.dtypes import (
        i8 as int8,
    )
    from tilewright.dtypes import (
        i16 as int16,
    )
    from tilewright.dtypes import (
        i32 as int32,
    )
    from tilewright.dtypes import (
        i64 as int64,
    )
    from tilewright.dtypes import (
        u8 as uint8,
    )
    from tilewright.dtypes import (
        u16 as uint16,
    )
    from tilewright.dtypes import (
        u32 as uint32,
    )
    from tilewright.dtypes import (
        u64 as uint64,
    )
    from tilewright.generate.model import Generation, Model, load
    from tilewright.runtime.launch import Kernel, kernel
    from tilewright.tensor import linalg_extension as linalg
    from tilewright.tensor import random
    from tilewright.tensor.autograd import (
        backward,
        checkpoint,
        custom_gradient,
        grad,
        jvp,
        stop_gradient,
        value_and_grad,
        vjp,
    )
    from tilewright.tensor.compiled import (
        compile,
    )
    from tilewright.tensor.core import (
        Tensor,
        realize,
    )
    from tilewright.tensor.creation import (
        arange,
        asarray,
        empty,
        empty_like,
        eye,
        from_dlpack,
        from_numpy,
        full,
        full_like,
        linspace,
        meshgrid,
        ones,
        ones_like,
        tril,
        triu,
        zeros,
        zeros_like,
    )
    from tilewright.tensor.data_types import (
        astype,
        can_cast,
        finfo,
        iinfo,
        isdtype,
        result_type,
    )
    from tilewright.tensor.elementwise import (
        abs,
        acos,
        acosh,
        add,
        asin,
        asinh,
        atan,
        atan2,
        atanh,
        bitwise_and,
        bitwise_invert,
        bitwise_left_shift,
        bitwise_or,
        bitwise_right_shift,
        bitwise_xor,
        ceil,
        clip,
        conj,
        copysign,
        cos,
        cosh,
        divide,
        elu,
        equal,
        erf,
        exp,
        exp2,
        expm1,
        floor,
        floor_divide,
        gelu,
        greater,
        greater_equal,
        hypot,
        imag,
        isfinite,
        isinf,
        isnan,
        leaky_relu,
        less,
        less_equal,
        log,
        log1p,
        log2,
        log10,
        log_sigmoid,
        logaddexp,
        logical_and,
        logical_not,
        logical_or,
        logical_xor,
        maximum,
        minimum,
        multiply,
        negative,
        nextafter,
        not_equal,
        positive,
        pow,
        real,
        reciprocal,
        relu,
        remainder,
        round,
        rsqrt,
        sigmoid,
        sign,
        signbit,
        silu,
        sin,
        sinh,
        softplus,
        sqrt,
        square,
        subtract,
        tan,
        tanh,
        trunc,
        where,
    )
    from tilewright.tensor.indexing import (
        take,
        take_along_axis,
    )
    from tilewright.tensor.info import (
        __array_namespace_info__,
    )
    from tilewright.tensor.linalg import (
        einsum,
        matmul,
        matrix_transpose,
        norm,
        outer,
        tensordot,
        vecdot,
    )
    from tilewright.tensor.manipulation import (
        broadcast_arrays,
        broadcast_shapes,
        broadcast_to,
        concat,
        expand_dims,
        flip,
        moveaxis,
        pad,
        permute_dims,
        repeat,
        reshape,
        roll,
        split,
        squeeze,
        stack,
        tile,
        unstack,
    )
    from tilewright.tensor.modes import (
        no_grad,
    )
    from tilewright.tensor.reductions import (
        all,
        any,
        argmax,
        argmin,
        count_nonzero,
        log_softmax,
        logsumexp,
        max,
        mean,
        min,
        prod,
        softmax,
        std,
        sum,
        var,
    )
    from tilewright.tensor.scans import (
        cumulative_prod,
        cumulative_sum,
        diff,
    )
    from tilewright.tensor.searching import (
        nonzero,
        searchsorted,
        unique_all,
        unique_counts,
        unique_inverse,
        unique_values,
    )
    from tilewright.tensor.sorting import (
        argsort,
        sort,
        topk,
    )

__version__ = "0.1.0"

# Beyond these there are the functions, dtypes and constants of the Array API standard: dir() lists
# them, but `import *` does not bring names such as `sum` and `bool`.
__all__ = [
    "BoundsError",
    "CompileError",
    "ContextLengthError",
    "DTypeError",
    "FormatError",
    "Generation",
    "Kernel",
    "KernelError",
    "Model",
    "OutOfMemoryError",
    "ShapeError",
    "Tensor",
    "TilewrightError",
    "TraceError",
    "TrainingError",
    "UnsupportedError",
    "__version__",
    "backward",
    "broadcast_shapes",
    "checkpoint",
    "compile",
    "custom_gradient",
    "data",
    "einsum",
    "elu",
    "erf",
    "exp2",
    "from_numpy",
    "gelu",
    "grad",
    "jvp",
    "kernel",
    "lang",
    "leaky_relu",
    "linalg",
    "load",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "nn",
    "no_grad",
    "norm",
    "onnx",
    "optim",
    "outer",
    "pad",
    "random",
    "realize",
    "relu",
    "rsqrt",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "split",
    "stop_gradient",
    "tokenizers",
    "topk",
    "train",
    "value_and_grad",
    "vjp",
]

# Heavy rooms are imported when first asked for, so that `import tilewright` stays quick.
_LAZY = {
    "Generation": "tilewright.generate.model",
    "Model": "tilewright.generate.model",
    "load": "tilewright.generate.model",
    "Kernel": "tilewright.runtime.launch",
    "kernel": "tilewright.runtime.launch",
    "data": "",
    "lang": "",
    "nn": "",
    "onnx": "",
    "optim": "",
    "tokenizers": "",
    "train": "",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        # tensors and the functions of the Array API standard
        value = importlib.import_module("tilewright.tensor.api").lookup(name)
        globals()[name] = value
        return value
    module = importlib.import_module(_LAZY[name] or f"tilewright.{name}")
    value = getattr(module, name) if _LAZY[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    names = importlib.import_module("tilewright.tensor.api").names()
    return sorted({*__all__, *names})

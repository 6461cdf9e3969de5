"""What the kernel tests share: running calls, odd layouts, quantised rows of a file."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tilewright.dtypes import DType, f32
from tilewright.ops.calls import KernelCall
from tilewright.ops.packed import PackedMatrix, block_layout, pack
from tilewright.runtime.buffers import Buffer, empty


def run(calls: Iterable[KernelCall]) -> None:
    """Launch ``calls`` in order on the default target."""
    for call in calls:
        if 0 not in call.grid:
            call.kernel[call.grid](*call.args, **call.consts)


def interpret(calls: Iterable[KernelCall]) -> None:
    """Run ``calls`` by the interpreter, which defines what they mean."""
    for call in calls:
        call.kernel.interpret(call.grid)(*call.args, **call.consts)


def buffer(values: np.ndarray, dtype: DType | None = None, pad: int = 0) -> Buffer:
    """A buffer with these values; ``pad`` elements of NaN (or -1) between rows."""
    kind = dtype or {"f": f32}.get(values.dtype.kind)
    if kind is None:
        from tilewright.dtypes import from_numpy

        kind = from_numpy(values.dtype)
    if pad and values.ndim == 2:
        wide = empty(kind, (values.shape[0], values.shape[1] + pad))
        wide.numpy()[...] = np.nan if kind.is_float else -1
        out = wide.view(values.shape, wide.strides)
    else:
        out = empty(kind, values.shape)
    out.numpy()[...] = values
    return out


def file_rows(rng: np.random.Generator, type: str, n: int, k: int) -> np.ndarray:
    """Random rows (n, row_bytes) of a ggml type with finite, sensible scales."""
    block, nbytes = block_layout(type)
    blocks = n * k // block
    if type == "F32":
        return rng.standard_normal((n, k)).astype(np.float32).view(np.uint8)
    if type == "F16":
        return rng.standard_normal((n, k)).astype(np.float16).view(np.uint8)
    if type == "BF16":
        wide = rng.standard_normal((n, k)).astype(np.float32).view(np.uint32)
        return (wide >> 16).astype(np.uint16).view(np.uint8)
    raw = rng.integers(0, 256, (blocks, nbytes), dtype=np.uint8)
    for at in _SCALES[type]:
        scale = (rng.uniform(0.001, 0.02, blocks) * rng.choice([-1, 1], blocks)).astype(np.float16)
        raw[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
    return raw.reshape(n, -1)


# byte offsets of the f16 scales and minima of a block
_SCALES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "IQ4_NL": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def packed(raw: np.ndarray, type: str, k: int) -> PackedMatrix:
    """``raw`` packed from one source."""
    return pack([(raw.shape[0], lambda start, stop: raw[start:stop])], type, k)

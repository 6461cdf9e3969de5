"""``y = x @ W^T`` with float weights; products of two plain arrays are in ``gemm``.

Contract: an output is one f32 accumulator, one fused multiply-add per k, k ascending, whatever the
tile, the number of tokens or threads. f16 and bf16 weights are widened exactly, so the only
rounding is the accumulator's. Partial sums that wait in memory between chunks of k are f32 too.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.dtypes import f32
from tilewright.errors import ShapeError
from tilewright.lang import (
    Array,
    Arrays,
    Const,
    Inline,
    dot,
    expand_dims,
    fma,
    program_id,
    scratch,
    zeros,
)
from tilewright.ops.calls import KernelCall
from tilewright.ops.packed import PANEL, PackedMatrix
from tilewright.ops.quantized import FORMATS, QuantizedRows, no_epilogue, quantized_matmul_calls
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = ["float_matmul_calls", "matmul_calls", "matmul_reference"]

_CHUNK = 256
_TILE = 8  # tokens whose 8 x 32 sums take half the registers and hide the latency
_MANY = 128  # tokens from which it pays to widen 16-bit weights once for all of them


def matmul_reference(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """``x @ weight.T`` in float64, rounded once: what every kernel here approximates."""
    return (x.astype(np.float64) @ weight.astype(np.float64).T).astype(np.float32)


def _direct(x, w, y, extras, panel, t, K, MT, epilogue):
    """MT rows of y, weights straight from memory; inline."""
    acc = zeros((MT, 32), f32)
    for k in range(K):
        acc = fma(expand_dims(x[t : t + MT, k], 1), expand_dims(w[panel, k, 0:32].to(f32), 0), acc)
    y[t : t + MT, panel * 32 : panel * 32 + 32] = epilogue(acc, t, panel * 32, extras)


@kernel
def float_direct(
    x: Array, w: Array, y: Array, extras: Arrays, K: Const, MT: Const, epilogue: Inline
):
    """y (T, N): one panel of 32 columns per program, MT tokens at a time.

    16-bit weights are widened again for every tile, which pays while there are few tiles.
    """
    panel = program_id(0)
    tokens = x.shape[0]
    tiled = tokens // MT * MT
    for t in range(0, tiled, MT):
        _direct(x, w, y, extras, panel, t, K, MT, epilogue)
    if MT > 1:
        for t in range(tiled, tokens):
            _direct(x, w, y, extras, panel, t, K, 1, epilogue)


def _tile(x, wide, y, extras, t, n0, k0, K, KC, MT, epilogue):
    """Add k0 : k0 + KC to MT rows of y; partial sums wait in y itself."""
    acc = zeros((MT, 32), f32)
    if k0 > 0:
        acc = y[t : t + MT, n0 : n0 + 32]
    acc = dot(x[t : t + MT, k0 : k0 + KC], wide[0:KC, 0:32], acc)
    if k0 + KC >= K:
        acc = epilogue(acc, t, n0, extras)
    y[t : t + MT, n0 : n0 + 32] = acc


def _chunk(x, w, wide, y, extras, panel, k0, K, KC, MT, epilogue):
    """Widen KC values of a panel's rows and use them for every token."""
    tokens = x.shape[0]
    full = tokens // MT * MT
    for k in range(KC):
        wide[k, 0:32] = w[panel, k0 + k, 0:32].to(f32)
    for t in range(0, full, MT):
        _tile(x, wide, y, extras, t, panel * 32, k0, K, KC, MT, epilogue)
    for t in range(full, tokens):
        _tile(x, wide, y, extras, t, panel * 32, k0, K, KC, 1, epilogue)


@kernel
def float_widened(
    x: Array,
    w: Array,
    y: Array,
    extras: Arrays,
    K: Const,
    KC: Const,
    MT: Const,
    epilogue: Inline,
):
    """y (T, N): one panel of 32 columns per program, widened a chunk at a time for all tokens."""
    panel = program_id(0)
    wide = scratch((KC, 32), f32)
    for k0 in range(0, K // KC * KC, KC):
        _chunk(x, w, wide, y, extras, panel, k0, K, KC, MT, epilogue)
    if K % KC:
        _chunk(x, w, wide, y, extras, panel, K // KC * KC, K, K % KC, MT, epilogue)


def float_matmul_calls(
    weight: PackedMatrix,
    x: Buffer,
    y: Buffer,
    epilogue: Callable[..., Any] | None = None,
    extras: Sequence[Buffer] = (),
) -> list[KernelCall]:
    """``y = epilogue(x @ W^T)`` for f32, f16 and bf16 weights; x f32 (T, k), y f32 (T, n)."""
    tokens = int(x.shape[0])
    panels = -(-weight.n // PANEL)
    args = (x, weight.planes["w"], y, tuple(extras))
    consts: dict[str, Any] = {"K": weight.k, "epilogue": epilogue or no_epilogue}
    if weight.format == "f32" or tokens < _MANY:
        consts["MT"] = max(1, min(tokens, _TILE))
        return [KernelCall(float_direct, (panels if tokens else 0,), args, consts)]
    consts |= {"KC": chunk_of(weight.k), "MT": _TILE}
    return [KernelCall(float_widened, (panels,), args, consts)]


def chunk_of(k: int) -> int:
    """Values of k per chunk: an even cut of k into pieces of at most 256."""
    pieces = -(-k // _CHUNK)
    while k % pieces and pieces * 64 <= k:
        pieces += 1
    return k // pieces if k % pieces == 0 else _CHUNK


def matmul_calls(
    weight: PackedMatrix,
    x: Buffer | QuantizedRows,
    y: Buffer,
    epilogue: Callable[..., Any] | None = None,
    extras: Sequence[Buffer] = (),
) -> list[KernelCall]:
    """``y = epilogue(x @ W^T)``: the kernel for this weight's format and number of tokens.

    Args:
        weight: W (n, k).
        x: f32 (T, k); :class:`QuantizedRows` for the formats with integer kernels
            (:data:`tilewright.ops.quantized.FORMATS`).
        y: f32 (T, n). Partial sums live in it, so it must not overlap x or the extras.
        epilogue: inline ``(acc, i, j, extras) -> tile``: acc f32 (rows, 32) stands at y[i:, j:].
        extras: buffers for the epilogue.
    """
    quantized = weight.format in FORMATS
    rows, k = (x.rows, x.k) if isinstance(x, QuantizedRows) else (x.shape[0], x.shape[1])
    if k != weight.k or tuple(y.shape) != (rows, weight.n):
        raise ShapeError(
            f"matmul: x ({rows}, {k}) with W ({weight.n}, {weight.k}) wants "
            f"y ({rows}, {weight.n}), got {tuple(y.shape)}"
        )
    if quantized != isinstance(x, QuantizedRows):
        want = "QuantizedRows" if quantized else "a float32 buffer"
        raise ShapeError(f"matmul: {weight.format} weights take {want}, got {type(x).__name__}")
    if isinstance(x, QuantizedRows):
        return quantized_matmul_calls(weight, x, y, epilogue, extras)
    if not weight.is_packed:
        from tilewright.ops.dequant import generic_matmul_calls

        return generic_matmul_calls(weight, x, y, epilogue, extras)
    return float_matmul_calls(weight, x, y, epilogue, extras)

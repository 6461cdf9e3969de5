"""Products of two arrays with any strides: ``y = a @ b``, batch by batch.

Contract: an output is one accumulator, one fused multiply-add per k, k ascending, whatever the
tile, the strides or the number of threads.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tilewright.dtypes import DType
from tilewright.lang import Array, Arrays, Const, Inline, expand_dims, fma, program_id, zeros
from tilewright.ops.calls import KernelCall
from tilewright.ops.quantized import no_epilogue
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = ["direct_calls", "split_batches"]


@kernel
def gemm_direct(
    a: Array,
    b: Array,
    y: Array,
    extras: Arrays,
    MT: Const,
    NT: Const,
    ACC: Const,
    VIA: Const,
    epilogue: Inline,
):
    """y (b0, b1, m, n) = a (b0, b1, m, k) @ b (b0, b1, k, n): a tile of MT x NT per program.

    Operands are rounded to VIA and widened to ACC.
    """
    inner = y.shape[1]
    outer = program_id(2) // inner
    at = program_id(2) % inner
    i, j = program_id(1) * MT, program_id(0) * NT
    acc = zeros((MT, NT), ACC)
    for k in range(a.shape[3]):
        left = a[outer, at, i : i + MT, k].to(VIA).to(ACC)
        right = b[outer, at, k, j : j + NT].to(VIA).to(ACC)
        acc = fma(expand_dims(left, 1), expand_dims(right, 0), acc)
    y[outer, at, i : i + MT, j : j + NT] = epilogue(acc, i, j, extras)


def direct_calls(
    a: Buffer,
    b: Buffer,
    y: Buffer,
    accumulate: DType,
    via: DType,
    epilogue: Callable[..., Any] | None = None,
    extras: Sequence[Buffer] = (),
) -> list[KernelCall]:
    """``y = epilogue(a @ b)`` without packing; buffers of four axes, see :func:`split_batches`."""
    batch, m, n = y.shape[0] * y.shape[1], y.shape[2], y.shape[3]
    rows = max(1, min(m, 8))
    columns = 32 if accumulate.bits <= 32 else 16
    consts = {
        "MT": rows,
        "NT": columns,
        "ACC": accumulate,
        "VIA": via,
        "epilogue": epilogue or no_epilogue,
    }
    grid = (-(-n // columns), -(-m // rows), batch)
    return [KernelCall(gemm_direct, grid, (a, b, y, tuple(extras)), consts)]


def split_batches(a: Buffer, b: Buffer, y: Buffer) -> list[tuple[Buffer, Buffer, Buffer]]:
    """The same products as triples with two batch axes each.

    ``y`` (*batch, m, n); the batch axes of ``a`` and ``b`` broadcast against it. Neighbouring axes
    that all three can walk with one stride become one; what is left beyond two is looped over here.
    """
    batch = y.shape[:-2]
    sizes: list[int] = []
    steps: list[list[int]] = [[], [], []]
    for axis, size in enumerate(batch):
        if size == 1:
            continue
        each = [_stride(x, axis - len(batch), size) for x in (a, b, y)]
        if sizes and all(s[-1] == e * size for s, e in zip(steps, each)):
            sizes[-1] *= size
            for s, e in zip(steps, each):
                s[-1] = e
            continue
        sizes.append(size)
        for s, e in zip(steps, each):
            s.append(e)
    while len(sizes) < 2:
        sizes.insert(0, 1)
        for s in steps:
            s.insert(0, 0)
    triples: list[tuple[Buffer, Buffer, Buffer]] = []
    offsets = [(0, 0, 0)]
    for size, *each in list(zip(sizes, *steps))[:-2]:
        offsets = [
            (o[0] + i * each[0], o[1] + i * each[1], o[2] + i * each[2])
            for o in offsets
            for i in range(size)
        ]
    for offset in offsets:
        one, two, three = (
            x.view((*sizes[-2:], *x.shape[-2:]), (*s[-2:], *x.strides[-2:]), o)
            for x, s, o in zip((a, b, y), steps, offset)
        )
        triples.append((one, two, three))
    return triples


def _stride(x: Buffer, axis: int, size: int) -> int:
    """Step of ``x`` along batch axis ``axis`` (from the end, of y's batch) of length ``size``."""
    at = x.ndim - 2 + axis
    return x.strides[at] if at >= 0 and x.shape[at] == size else 0

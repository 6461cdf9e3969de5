"""Images with their channels in blocks of 16: (N, ceil(C / 16), H, W, 16), for inference.

A vector register holds 16 channels of one pixel, so convolutions store what they sum without
turning it round, and whatever works pixel by pixel runs at full width on any image size. Channels
beyond C are there, finite, and never read back. The compiler pass ``compiler/passes/layout.py``
decides what is computed in this layout; nobody else needs to know it.

``to_blocked`` and ``from_blocked`` go there and back. Elementwise ops work on blocked arrays as on
any others.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, shape_of
from tilewright.lang import Array, Const, minimum, program_id
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_shapes import has_dense_planes
from tilewright.ops.layout_kernels import as_bits, divide
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import reshape, sizes_of, slice_
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel

__all__ = ["BLOCK", "block", "blocks_of", "from_blocked", "to_blocked", "unblock"]

Attrs = Mapping[str, Any]

BLOCK: Final = 16
_PIECE: Final = 256  # pixels of a block that a program turns round


def blocks_of(channels: int) -> int:
    """How many blocks hold so many channels."""
    return -(-channels // BLOCK)


def to_blocked(x: Node) -> Node:
    """x (N, C, W) or (N, C, H, W) -> (N, ceil(C / 16), H, W, 16), zeros beyond C; H is 1 for W."""
    return make("to_blocked", x)


def from_blocked(x: Node, shape: Sequence[int]) -> Node:
    """The inverse: x (N, blocks, H, W, 16) -> ``shape``, (N, C, W) or (N, C, H, W)."""
    sizes = sizes_of(x)
    if len(sizes) == 5 and sizes[2:4] == (1, 1) and prod(shape[2:]) == 1:
        flat = reshape(x, (sizes[0], sizes[1] * BLOCK))
        return reshape(slice_(flat, (0, 0), (sizes[0], shape[1]), (1, 1)), tuple(shape))
    return make("from_blocked", x, shape=tuple(shape))


def block(x: np.ndarray) -> np.ndarray:
    """:func:`to_blocked` of an array."""
    n, c = x.shape[:2]
    height, width = (1, *x.shape[2:])[-2:]
    wide = np.zeros((n, blocks_of(c) * BLOCK, height, width), x.dtype)
    wide[:, :c] = x.reshape(n, c, height, width)
    return np.ascontiguousarray(
        wide.reshape(n, blocks_of(c), BLOCK, height, width).transpose(0, 1, 3, 4, 2)
    )


def unblock(x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """:func:`from_blocked` of an array."""
    n, blocks, height, width, lanes = x.shape
    wide = x.transpose(0, 1, 4, 2, 3).reshape(n, blocks * lanes, height, width)
    return np.ascontiguousarray(wide[:, : shape[1]]).reshape(tuple(shape))


def _infer_to(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    (x,) = inputs
    sizes = sizes_of(x)
    if len(sizes) not in (3, 4):
        raise ShapeError(f"to_blocked wants (N, C, W) or (N, C, H, W), got {shape_of(x.shape)}")
    return (sizes[0], blocks_of(sizes[1]), *(1, *sizes[2:])[-2:], BLOCK), x.dtype


def _infer_from(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    (x,) = inputs
    sizes, shape = sizes_of(x), attrs["shape"]
    wanted = (shape[0], blocks_of(shape[1]), *(1, *shape[2:])[-2:], BLOCK)
    if len(shape) not in (3, 4) or sizes != wanted:
        raise ShapeError(f"from_blocked: {shape} comes from {wanted}, got {sizes}")
    return shape, x.dtype


# --- kernels -------------------------------------------------------------------------------------


@kernel
def blocked_kernel(x: Array, y: Array, PIECE: Const):
    """y (N, blocks, H, W, 16) from x (N, C, H, W): grid (H * W / PIECE, blocks, N)."""
    pieces = (x.shape[3] + (PIECE - 1)) // PIECE
    h, start = program_id(0) // pieces, program_id(0) % pieces * PIECE
    b, n = program_id(1), program_id(2)
    for p in range(start, minimum(start + PIECE, x.shape[3]), 16):
        y[n, b, h, p : p + 16, 0:16] = x[n, b * 16 : b * 16 + 16, h, p : p + 16].T


@kernel
def plain_kernel(x: Array, y: Array, PIECE: Const):
    """y (N, C, H, W) from x (N, blocks, H, W, 16): grid (H * W / PIECE, blocks, N)."""
    pieces = (y.shape[3] + (PIECE - 1)) // PIECE
    h, start = program_id(0) // pieces, program_id(0) % pieces * PIECE
    b, n = program_id(1), program_id(2)
    for p in range(start, minimum(start + PIECE, y.shape[3]), 16):
        y[n, b * 16 : b * 16 + 16, h, p : p + 16] = x[n, b, h, p : p + 16, 0:16].T


def image(buffer: Buffer) -> Buffer:
    """A plain (N, C, W) or (N, C, H, W) as (N, C, H, W)."""
    if buffer.ndim == 4:
        return buffer
    shape, strides = buffer.shape, buffer.strides
    return buffer.view((*shape[:2], 1, shape[2]), (*strides[:2], 0, strides[2]))


def _rows(plain: Buffer, blocked: Buffer) -> tuple[Buffer, Buffer]:
    """Both with H and W in one row where the plain one's planes are dense."""
    plain = image(plain)
    if not has_dense_planes(plain.view((1, *plain.shape), (0, *plain.strides))) and (
        plain.shape[2] > 1
    ):
        return plain, blocked
    row = prod(plain.shape[2:])
    step = plain.strides[3] if plain.shape[3] > 1 else plain.strides[2]
    flat = plain.view((*plain.shape[:2], 1, row), (*plain.strides[:2], 0, step))
    n, b, h, w, _ = blocked.strides
    one = blocked.view((*blocked.shape[:2], 1, row, BLOCK), (n, b, h, w, 1))
    return flat, one


def _grid(plain: Buffer, blocked: Buffer) -> tuple[int, int, int]:
    pieces = divide(plain.shape[3], _PIECE)
    return plain.shape[2] * pieces, blocked.shape[1], blocked.shape[0]


def _to_calls(node: Node, inputs: Sequence[Buffer], out: Buffer) -> list[KernelCall]:
    x, y = _rows(as_bits(inputs[0]), as_bits(out))
    return [KernelCall(blocked_kernel, _grid(x, y), (x, y.fix(4)), {"PIECE": _PIECE})]


def _from_calls(node: Node, inputs: Sequence[Buffer], out: Buffer) -> list[KernelCall]:
    y, x = _rows(as_bits(out), as_bits(inputs[0]))
    return [KernelCall(plain_kernel, _grid(y, x), (x.fix(4), y), {"PIECE": _PIECE})]


register(
    OpDef(
        "to_blocked",
        _infer_to,
        block,
        calls=_to_calls,
        gradient=lambda node, grad: [from_blocked(grad, sizes_of(node.inputs[0]))],
    )
)
register(
    OpDef(
        "from_blocked",
        _infer_from,
        lambda x, shape: unblock(x, shape),
        calls=_from_calls,
        gradient=lambda node, grad: [to_blocked(grad)],
    )
)

"""1 x 1 convolutions without strides: matrix products over the channels of each position.

A program copies a block of neighbouring positions of all channels next to each other and multiplies
it by every panel of weights (the packing is that of :mod:`tilewright.ops.conv_tiles`), so that x is
read once, in whole lines.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False
# mypy: disable-error-code="valid-type,call-overload"
# (the bodies of kernels and inline functions are checked by the kernel language)

from __future__ import annotations

from functools import lru_cache

from tilewright import lang as tl
from tilewright.dtypes import DType
from tilewright.lang import Array, Const, program_id, scratch, unroll, zeros
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_shapes import Geometry, accumulator
from tilewright.ops.conv_tiles import packed_shape, step
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import kernel
from tilewright.sizes import hint

__all__ = ["point_calls", "suits"]

_BLOCK_BYTES = 160 << 10  # of the copied block: well inside the scratch limit and L2
_PROGRAMS = 32


@kernel
def conv_points(
    x: Array,
    w: Array,
    y: Array,
    C: Const,
    MT: Const,
    NT: Const,
    OUTS: Const,
    PIECE: Const,
    PANELS: Const,
    ACC: Const,
):
    """y (B, G, O, W) from x (B, G, C, W) and w (G, panels, C, NT).

    PIECE positions and PANELS panels per program: grid (W / PIECE, B, G * panels / PANELS).
    """
    splits = (w.shape[1] + (PANELS - 1)) // PANELS
    at = tl.minimum(program_id(0) * PIECE, y.shape[3] - PIECE)
    n = program_id(1)
    g = program_id(2) // splits
    first = program_id(2) % splits * PANELS
    seen = scratch((C, PIECE), w.dtype)
    tile = scratch((MT, NT), ACC)
    for c in range(C):
        seen[c, 0:PIECE] = x[n, g, c, at : at + PIECE]
    for panel in range(first, tl.minimum(first + PANELS, w.shape[1])):
        o = tl.minimum(panel * NT, y.shape[2] - OUTS)
        for i in range(-(-PIECE // MT)):
            t = tl.minimum(i * MT, PIECE - MT)
            acc = zeros((MT, NT), ACC)
            for c0 in range(0, C // 4 * 4, 4):
                for j in unroll(4):
                    acc = step(acc, seen[c0 + j, t : t + MT], w[g, panel, c0 + j, 0:NT])
            for c in range(C // 4 * 4, C):
                acc = step(acc, seen[c, t : t + MT], w[g, panel, c, 0:NT])
            tile[0:MT, 0:NT] = acc
            for j in range(0, OUTS // 8 * 8, 8):
                y[n, g, o + j : o + j + 8, at + t : at + t + MT] = tile[0:MT, j : j + 8].T
            if OUTS % 8:
                j = OUTS // 8 * 8
                rest = tile[0:MT, j : j + OUTS % 8].T
                y[n, g, o + j : o + j + OUTS % 8, at + t : at + t + MT] = rest


def suits(part: Geometry, dtype: DType) -> bool:
    """Whether a block of at least 16 positions of all channels can be copied."""
    return part.channels * 16 * accumulator(dtype).nbytes <= _BLOCK_BYTES


@lru_cache(maxsize=1024)
def _pieces(width: int, vectors: int, most: int) -> tuple[int, int]:
    """Positions per program and per tile for rows of ``width``: the least work in all."""
    best, best_cost = (1, 1), float("inf")
    for m in range(1, min(width, 11 if vectors == 2 else 16 if vectors == 1 else 4) + 1):
        piece = min(width, most // m * m)
        while piece > 0:
            tiles = -(-width // piece) * -(-piece // m)
            turned = 0 if m % 8 == 0 else 2  # tiles of eight rows are quicker to turn round
            cost = tiles * (max(m * vectors + 2 + (vectors == 1), 7) + turned) * (1 + 1 / piece)
            if cost < best_cost:
                best, best_cost = (piece, m), cost
            piece = (piece - 1) // m * m
    return best


def point_calls(part: Geometry, x: Buffer, packed: Buffer, y: Buffer) -> list[KernelCall]:
    """``y`` (B, G, O, 1, 1, W) from x (B, G, C, 1, 1, W) and packed weights."""
    wide = accumulator(y.dtype)
    shape = packed_shape(part, y.shape[5], y.dtype)
    panels, lanes = shape[1], shape[-1]
    most = min(64, _BLOCK_BYTES // (part.channels * wide.nbytes))
    piece, rows = _pieces(y.shape[5], lanes * wide.nbytes // 64, most)
    programs = -(-y.shape[5] // piece) * y.shape[0] * part.groups
    per_program = -(-panels // min(panels, -(-_PROGRAMS // hint(programs))))
    consts = {
        "C": part.channels,
        "MT": rows,
        "NT": lanes,
        "OUTS": min(lanes, part.outputs),
        "PIECE": piece,
        "PANELS": per_program,
        "ACC": wide,
    }
    grid = (-(-y.shape[5] // piece), y.shape[0], part.groups * -(-panels // per_program))
    args = (_row(x), packed.view((part.groups, panels, part.channels, lanes)).fix(2), _row(y))
    return [KernelCall(conv_points, grid, args, consts)]


def _row(buffer: Buffer) -> Buffer:
    """Without the two axes of size one."""
    shape, strides = buffer.shape, buffer.strides
    return buffer.view((*shape[:3], shape[5]), (*strides[:3], strides[5]))

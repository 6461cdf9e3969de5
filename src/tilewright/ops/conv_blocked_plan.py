"""How convolutions and pooling on blocked images are cut into tiles and programs.

Depends on shapes and dtypes only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any, Final

from tilewright.dtypes import f32, u32
from tilewright.ops.blocked import BLOCK
from tilewright.ops.calls import KernelCall
from tilewright.ops.conv_blocked_kernels import (
    conv_blocks,
    depthwise_blocks,
    depthwise_direct,
    no_epilogue,
    pool_blocks,
)
from tilewright.ops.epilogue import Epilogue
from tilewright.ops.layout_kernels import divide
from tilewright.runtime.buffers import Buffer

__all__ = ["conv_calls", "copy_fits", "depthwise_calls", "pool_calls", "tile_of"]

Attrs = Mapping[str, Any]
Pair = tuple[int, int]

_SLAB_BYTES: Final = 256 << 10  # of a program's part of x: it stays in the L2 cache
_CHUNK_BYTES: Final = 128 << 10  # of weights that every tile of a program uses in turn
_PROGRAMS: Final = 16  # that a launch has at least, if there is work for as many
_WORK: Final = 1 << 15  # vector multiply-adds that are worth a second thread
_WINDOWS: Final = {
    "full": "extras[{0}][n, o, h : h + acc.shape[0], w : w + acc.shape[1], 0 : acc.shape[2]]",
    "channel": "extras[{0}][0, o, 0, 0, 0 : acc.shape[2]]",
    "image": "extras[{0}][n, o, 0, 0, 0 : acc.shape[2]]",
    "number": "extras[{0}][0, 0, 0, 0, 0]",
}


@lru_cache(maxsize=1024)
def tile_of(out: Pair, taps: int, outputs: int, pairs: bool = False) -> tuple[Pair, int]:
    """Rows and columns of a register tile, and how many output channels it has, of ``outputs``.

    Per channel and tap a tile of p pixels and v vectors costs p * v cycles and a little more, but
    no less than nine (a multiply-add's latency); with several vectors every element of x is read
    for as many products. Only where there is one tap do more than 16 accumulators stay in
    registers. A ``dot2`` (``pairs``) of a broadcast in memory is slower than one of a register. A
    few channels whose last block is at most half full end in half a vector.
    """
    best, best_cost = ((1, 1), BLOCK), float("inf")
    most = 28 if taps == 1 else 16
    blocks = divide(outputs, BLOCK)
    widths = [v * BLOCK for v in (1, 2, 4) if blocks % v == 0]
    if blocks <= 3 and 0 < outputs % BLOCK <= BLOCK // 2:
        widths = [blocks * BLOCK - BLOCK // 2]
    for lanes in widths:
        v, work = divide(lanes, BLOCK), lanes / BLOCK
        for columns in range(1, min(out[1], most) + 1):
            for rows in range(1, min(out[0], most // columns) + 1):
                pixels = rows * columns
                if pixels * v > most:
                    continue
                cycles = max(pixels * work + 1.0 + 0.8 * (taps > 1 and v == 1), 9 * min(work, 1))
                cycles *= 1.35 if pairs and v == 1 else 1.0
                cycles *= 1.2 if not pairs and taps == 1 and v > 1 else 1.0
                tiles = divide(out[0], rows) * divide(out[1], columns)
                cost = tiles * cycles / work * (1 + 0.002 * rows) * (1.04 if v == 4 else 1)
                if cost < best_cost:
                    best, best_cost = ((rows, columns), lanes), cost
    return best


def copy_fits(
    out: Pair, kernel: Pair, strides: Pair, dilation: Pair, channels: int, pairs: bool
) -> bool:
    """Whether what one tile reads of a padded image fits a program's scratch memory."""
    tile, _ = tile_of(out, prod(kernel), BLOCK, pairs)
    rows, columns = (
        (n - 1) * s + (k - 1) * d + 1 for n, k, s, d in zip(tile, kernel, strides, dilation)
    )
    words = channels // 2 if pairs else channels
    return rows * (columns + 15) * words * 4 <= 2 * _SLAB_BYTES


def _finish(epilogue: Epilogue | None) -> Any:
    if epilogue is None:
        return no_epilogue
    return epilogue.function("acc, n, o, h, w, extras", _WINDOWS)


def _flat(buffer: Buffer) -> Buffer:
    """(N, B, H, W, 16) as (N, B, 1, H * W, 16)."""
    n, b, h, w, lanes = buffer.shape
    if (h, w) == (1, 1):
        return buffer
    return buffer.view((n, b, 1, h * w, lanes))


def conv_calls(
    x: Buffer, w: Buffer, extras: Sequence[Buffer], y: Buffer, attrs: Attrs
) -> list[KernelCall]:
    """``y`` (N, OB, OH, OW, 16) from x, blocked or plain, and packed w."""
    groups, panels, blocks, inner, kh, kw, lanes = w.shape
    strides, dilation = attrs["strides"], attrs["dilation"]
    low = tuple(low for low, _ in attrs["padding"])
    plain = x.ndim == 4
    flat = (kh, kw, *strides) == (1, 1, 1, 1) and not any(map(any, attrs["padding"]))
    if flat:
        y, extras = _flat(y), [_flat(e) for e in extras]
        if plain:
            x, flat = _flat_plain(x)
            assert flat
        else:
            x = _flat(x)
    if plain:
        seen = x.view((x.shape[0], 1, *x.shape[1:], 1), (x.strides[0], 0, *x.strides[1:], 1))
    else:
        per = x.shape[1] // groups
        seen = x.view(
            (x.shape[0], groups, per, *x.shape[2:]),
            (x.strides[0], x.strides[1] * per, *x.strides[1:]),
        )
    out = y.shape[2], y.shape[3]
    tile, wanted = tile_of(out, kh * kw, attrs["outputs"] // groups, w.dtype is u32)
    assert wanted == lanes
    reach = (kh - 1) * dilation[0] + 1, (kw - 1) * dilation[1] + 1
    copies = any(map(any, attrs["padding"])) or x.dtype is not f32 or w.dtype is u32
    shape = tuple(w.shape)
    piece, per_program = _pieces(out, tile, reach, strides, shape, y.shape[0], copies)
    slab: tuple[int, ...] = ()
    if copies:
        slab = _slab(piece, reach, strides, plain)
    consts = {
        "STRIDES": tuple(strides),
        "DILATION": tuple(dilation),
        "LOW": low,
        "TILE": tile,
        "PIECE": piece,
        "SLAB": slab,
        "PANELS": per_program,
        "LAST": inner if plain else min(inner, (attrs["channels"] // groups - 1) % BLOCK + 1),
        "CHUNK": _chunk(blocks, kh * kw * inner * lanes * 4),
        "epilogue": _finish(attrs.get("epilogue")),
    }
    grid = (
        divide(out[0], piece[0]) * divide(out[1], piece[1]),
        y.shape[0],
        groups * (panels // per_program),
    )
    args = (seen.fix(1), w.fix(0), y.fix(1), tuple(e.fix(1) for e in extras))
    return [KernelCall(conv_blocks, grid, args, consts)]


def _chunk(blocks: int, nbytes: int) -> int:
    """Blocks of x whose weights, so many bytes each, stay in the L2 cache for all tiles."""
    if blocks * nbytes <= 2 * _CHUNK_BYTES:
        return blocks
    chunks = divide(blocks * nbytes, _CHUNK_BYTES)
    return divide(blocks, chunks)


def _flat_plain(x: Buffer) -> tuple[Buffer, bool]:
    """A plain image with its pixels in one row."""
    n, c, h, w = x.shape
    dense = h == 1 or w == 1 or x.strides[2] == w * x.strides[3]
    step = x.strides[3] if w > 1 else x.strides[2]
    return x.view((n, c, 1, h * w), (*x.strides[:2], 0, step)), dense


def _slab(piece: Pair, reach: Pair, strides: Sequence[int], plain: bool) -> Pair:
    """Rows and columns of x that a piece reads, columns rounded up to whole copies."""
    unit = 16 if plain else 4
    rows, columns = ((n - 1) * s + r for n, s, r in zip(piece, strides, reach))
    return rows, divide(columns, unit) * unit


def _counts(most: int) -> list[int]:
    """How many tiles a program may take of ``most``: all of them, a half, a third, ..., few."""
    cuts = [*range(1, 65), *(1 << i for i in range(7, most.bit_length()))]
    return sorted({divide(most, cut) for cut in cuts if cut <= most} | set(range(1, min(most, 8))))


@lru_cache(maxsize=1024)
def _pieces(
    out: Pair, tile: Pair, reach: Pair, strides: Pair, w: tuple[int, ...], batch: int, copies: bool
) -> tuple[Pair, int]:
    """Rows and columns of a program, and its panels: the cheapest in cycles.

    A program multiplies its tiles (the last one of a row or column overlaps the one before), copies
    its part of x, and reads its weights, from L2 if they fit. Eight threads should find work.
    """
    groups, panels, blocks, inner, kh, kw, lanes = w
    taps = kh * kw * blocks * inner
    weights = taps * lanes * 4
    best, best_cost = (tile, 1), float("inf")
    flat = out[0] == 1
    most = divide(out[1], tile[1])
    smallest = prod(_slab(tile, reach, strides, inner == 1)) * blocks * inner * 4
    limit = max(2 * _SLAB_BYTES if copies and not flat else _SLAB_BYTES, smallest * copies)
    few = sorted({divide(most, d) for d in (1, 2, 4, most)})
    for across in _counts(most) if flat or most > 16 else few:
        columns = min(out[1], across * tile[1])
        for down in _counts(divide(out[0], tile[0])):
            rows = min(out[0], down * tile[0])
            slab = 0
            if copies:
                slab = blocks * inner * prod(_slab((rows, columns), reach, strides, inner == 1))
            held = columns * rows * blocks * inner * (8 if copies else 4) if flat else 4 * slab
            if held > limit and (rows, columns) != tile:
                continue
            places = divide(out[0], rows) * divide(out[1], columns) * batch * groups
            tiles = divide(rows, tile[0]) * divide(columns, tile[1])
            sums = tiles * tile[0] * tile[1] * lanes // BLOCK * taps
            for splits in (d for d in range(1, panels + 1) if panels % d == 0):
                per = panels // splits
                rate = 1 / 16 if weights * per > _SLAB_BYTES else 1 / 64
                one = per * (sums + tiles * 40 + weights * rate) + slab / 2 + 200
                one += held / (64 if held <= _SLAB_BYTES else 8)
                programs = places * splits
                rounds = 1 if one * programs < _WORK else divide(programs, 8) * 8 / programs
                cost = one * programs * (0.7 + 0.3 * rounds)
                if cost < best_cost:
                    best, best_cost = ((rows, columns), per), cost
    return best


def _inner(size: int, out: int, kernel: int, stride: int, dilation: int, low: int) -> Pair:
    """The outputs along one axis whose windows lie inside: the first and the one past the last."""
    first = min(divide(low, stride), out)
    last = (size + low - (kernel - 1) * dilation - 1) // stride + 1
    return first, max(min(last, out), first)


def _window_consts(
    x: Buffer, y: Buffer, kernel: Sequence[int], attrs: Attrs, most: int
) -> tuple[dict[str, Any], tuple[int, int, int]]:
    strides, dilation = attrs["strides"], attrs["dilation"]
    low = tuple(low for low, _ in attrs["padding"])
    inner = _inner(x.shape[3], y.shape[3], kernel[1], strides[1], dilation[1], low[1])
    width = max(inner[1] - inner[0], 1)
    tile = divide(width, divide(width, most))
    per_row = y.shape[3] * prod(kernel)
    rows = max(1, min(y.shape[2], _WORK // 2 // max(per_row, 1)))
    others = y.shape[0] * y.shape[1]
    rows = min(rows, max(1, divide(y.shape[2] * others, _PROGRAMS)))
    rows = divide(y.shape[2], divide(y.shape[2], rows))
    consts = {
        "STRIDES": tuple(strides),
        "DILATION": tuple(dilation),
        "LOW": low,
        "INNER": inner,
        "TILE": tile,
        "ROWS": rows,
    }
    return consts, (divide(y.shape[2], rows), y.shape[1], y.shape[0])


def depthwise_calls(
    x: Buffer, w: Buffer, extras: Sequence[Buffer], y: Buffer, attrs: Attrs
) -> list[KernelCall]:
    """``y`` (N, B, OH, OW, 16) from x (N, B, H, W, 16) and w (B, KH, KW, 16)."""
    strides, dilation = attrs["strides"], attrs["dilation"]
    reach = tuple((k - 1) * d + 1 for k, d in zip(w.shape[1:3], dilation))
    copies = any(map(any, attrs["padding"]))
    n, blocks, height, width, _ = y.shape
    low, step, size = attrs["padding"][1][0], strides[1], x.shape[3]
    inner = _inner(size, width, w.shape[2], step, dilation[1], low)
    edges = width - (inner[1] - inner[0])
    if copies and edges <= 4 and width >= (10 if step > 1 else 20) * edges:
        consts, grid = _window_consts(x, y, w.shape[1:3], attrs, 8)
        consts["epilogue"] = _finish(attrs.get("epilogue"))
        args = (x.fix(1), w.fix(0), y.fix(1), tuple(e.fix(1) for e in extras))
        return [KernelCall(depthwise_direct, grid, args, consts)]
    tile = divide(width, divide(width, 8))
    row = width * prod(w.shape[1:3]) + (width * strides[1] if copies else 0) + 20
    best, rows = float("inf"), 1
    for count in range(1, height + 1):
        slab = _slab((count, width), (reach[0], reach[1]), strides, False)
        if 64 * prod(slab) > _SLAB_BYTES // 2 and count > 1:
            break
        pieces = divide(height, count)
        programs = pieces * blocks * n
        rounds = 1.0 if programs * count * row < _WORK else divide(programs, 8) * 8 / programs
        cost = pieces * (count * row + 2 * copies * prod(slab) + 200) * (0.7 + 0.3 * rounds)
        if cost < best:
            best, rows = cost, count
    consts = {
        "STRIDES": tuple(strides),
        "DILATION": tuple(dilation),
        "LOW": tuple(low for low, _ in attrs["padding"]),
        "TILE": tile,
        "ROWS": rows,
        "SLAB": _slab((rows, width), (reach[0], reach[1]), strides, False) if copies else (),
        "epilogue": _finish(attrs.get("epilogue")),
    }
    seen = x.view((*x.shape[:2], 1, *x.shape[2:]), (*x.strides[:2], 0, *x.strides[2:]))
    rest = (seen.fix(1), w.fix(0), y.fix(1), tuple(e.fix(1) for e in extras))
    return [KernelCall(depthwise_blocks, (divide(height, rows), blocks, n), rest, consts)]


def pool_calls(x: Buffer, y: Buffer, attrs: Attrs, largest: bool, divisor: int) -> list[KernelCall]:
    """Maxima or means of windows of blocked x."""
    consts, grid = _window_consts(x, y, attrs["kernel"], attrs, 8)
    consts |= {"KERNEL": tuple(attrs["kernel"]), "MAX": largest, "DIVISOR": divisor}
    return [KernelCall(pool_blocks, grid, (x.fix(2), y.fix(2)), consts)]

"""Which kernels make a product of arrays, with which blocks.

What a plan decides depends on shapes, dtypes and the number of threads alone, so that memory can be
planned before there are buffers; strides only choose how operands are read. No choice changes bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tilewright.dtypes import DType, bf16, f32, f64, i32, i64, u32, u64
from tilewright.graph import Shape
from tilewright.ops.calls import KernelCall
from tilewright.ops.epilogue import Epilogue
from tilewright.ops.gemm_kernels import (
    MOST_ROWS,
    MOST_WORDS,
    PANEL,
    ROWS,
    gemm_blocked,
    gemm_direct,
    gemm_panels,
    gemm_small,
    no_epilogue,
    pack_panels,
    row_words,
)
from tilewright.runtime.buffers import Buffer
from tilewright.runtime.launch import default_pool
from tilewright.sizes import applied, hint, is_fixed, maximum, roughly

__all__ = [
    "WINDOWS",
    "Plan",
    "as_words",
    "is_small",
    "pack_call",
    "packed_calls",
    "panel_plan",
    "plan_product",
    "product_calls",
    "split_batches",
    "workspace_of",
]

_MOST_PANELS = 1 << 15  # per program: the kernel takes a u16
_COPY = 8  # copying an element costs as much as so many multiply-adds
_SMALL = 64**3  # multiply-adds, per matrix, that are worth neither packing nor compiling for...
_GATHERED = 8  # ...so many times less where b's rows are not in one piece...
_RARE = 4  # ...so many times more in dtypes that are met rarely
_WORTH = 1 << 18  # multiply-adds that are worth handing to another thread
_FEW_ROWS = 16  # rows over which packing b would not pay
_MOST_PANEL_ROWS = 256  # rows of a that a program multiplies with a packed panel
_PROGRAMS = 4  # that a launch should have per thread, where rows can be split
_PACK_FIRST_ROWS = 192  # rows from which b is packed once for all of them...
_PACK_FIRST_BYTES = 32 << 20  # ...if it then stays in the last cache; twice the rows: anyway
# The tile stands at row i, column j of the product number o, p.
WINDOWS = {
    "full": "extras[{0}][o, p, i : i + acc.shape[0], j : j + acc.shape[1]]",
    "row": "extras[{0}][o, p, 0, j : j + acc.shape[1]]",
    "column": "extras[{0}][o, p, i : i + acc.shape[0], 0:1]",
    "number": "extras[{0}][o, p, 0, 0]",
}
_NO_CHANGE = {u32: 0x80008000, u64: 0x8000000080000000}  # pairs of -0.0


@dataclass(frozen=True)
class Plan:
    """How ``y (m, n) = a (m, k) @ b (k, n)`` is made.

    Attributes:
        accumulate: dtype of the sums.
        word: dtype of what is multiplied; u32 for pairs of bf16.
        rows: of a block of ``a`` (MC); a multiple of ``tile`` rows.
        chunk, chunks: words of k per chunk, and how many.
        panel: columns of a panel of ``b``.
        panels: per program.
        pack_first: ``b`` is packed by a launch of its own.
        keep_sums: the output cannot hold sums between chunks.
        small: so little work that the kernel with the least code does it.
    """

    m: int
    k: int
    n: int
    accumulate: DType
    word: DType
    rows: int
    tile: int
    chunk: int
    chunks: int
    panel: int
    panels: int
    pack_first: bool
    keep_sums: bool
    small: bool

    @property
    def all_panels(self) -> int:
        return -(-self.n // self.panel)


def plan_product(
    m: int,
    k: int,
    n: int,
    batch: int,
    dtypes: tuple[DType, DType, DType],
    compute: DType | None,
    panel: int = 0,
) -> Plan:
    """The plan for ``batch`` products; ``dtypes`` of a, b and y; ``panel``: columns, if given."""
    accumulate = accumulator(dtypes[0])
    pairs = compute is bf16 or dtypes[0] is dtypes[1] is bf16
    word = u32 if pairs else accumulate
    panel = panel or _panel(hint(n), accumulate)
    words = -(-k // 2) if pairs else k
    chunk, chunks = _cut(maximum(words, 1))
    packed_bytes = hint(chunk * chunks * n) * word.nbytes
    small = is_small(m, k, n, dtypes)
    fits = packed_bytes <= _PACK_FIRST_BYTES or hint(m) >= 2 * _PACK_FIRST_ROWS
    can = batch == 1 and not small and fits
    pack_first = can and not roughly(m, _PACK_FIRST_ROWS - 1, 4)
    most = (256 if pack_first else MOST_ROWS) * 4 // accumulate.nbytes
    tile = ROWS if not roughly(m, ROWS) else min(_power_of_two(max(hint(m), 1)), ROWS)
    given = default_pool().threads, most, panel, m, n, batch
    rows = applied(_rows, tile, *given, low=tile, high=max(most, tile))
    panels = applied(_panels, *given, low=1, high=_MOST_PANELS)
    return Plan(
        m, k, n, accumulate, word, rows, tile, chunk, chunks, panel, panels,
        pack_first, not small and dtypes[2] is not accumulate and chunks > 1, small,
    )  # fmt: skip


def _panel(n: int, accumulate: DType) -> int:
    """Columns of a panel for ``n`` columns."""
    panel = PANEL if accumulate.bits == 32 else PANEL // 2
    if n < 3 * panel and 0 < n % panel <= panel // 2:
        panel //= 2  # fewer columns in vain outweigh more reads per multiply-add
    return panel


def panel_plan(k: int, n: int, dtypes: tuple[DType, DType], compute: DType | None) -> Plan:
    """What a packed b (k, n) looks like for any number of rows; ``dtypes`` of a and b."""
    return plan_product(1, k, n, 1, (*dtypes, f32), compute)


def _rows(tile: int, *given: int) -> int:
    return max(_blocks(*given)[0], tile)


def _panels(*given: int) -> int:
    return _blocks(*given)[1]


@lru_cache(maxsize=4096)
def _blocks(threads: int, most: int, panel: int, m: int, n: int, batch: int) -> tuple[int, int]:
    """Rows and panels of a program: what is done soonest by all threads together.

    A program copies its rows of a and its columns of b: few columns per program make the copies of
    a dear, few rows those of b. All programs of a launch take equally long.
    """
    threads = max(2, threads)
    m, all_panels = max(m, 1), max(-(-n // panel), 1)
    fewest = -(-m // most)
    least = -(-all_panels // _MOST_PANELS)
    best: tuple[float, int, int] | None = None
    for blocks in range(fewest, fewest + 4):
        rows = _power_of_two(m)
        if m > ROWS:
            rows = min(most, _round_up(-(-m // blocks), ROWS if m <= 64 else 32))
        for groups in range(least, least + 2 * threads):
            panels = -(-all_panels // groups)
            programs = batch * -(-m // rows) * -(-all_panels // panels)
            columns = panels * panel
            work = rows * columns + _COPY * (rows + columns)
            cost = -(-programs // threads) * work
            if best is None or cost < best[0]:
                best = cost, rows, panels
    assert best is not None
    return best[1:]


def accumulator(dtype: DType) -> DType:
    """In what sums of products of this dtype are held; integers wrap, so signs do not matter."""
    if dtype.is_float:
        return f64 if dtype is f64 else f32
    return i64 if dtype.bits == 64 else i32


def _cut(words: int) -> tuple[int, int]:
    """Words per chunk and chunks: even pieces if there are any, else little padding."""
    fewest = -(-words // MOST_WORDS)
    if words.__class__ is not int:  # a size: what may come out even is not known
        return _round_up(-(-words // fewest), 4), fewest
    for chunks in range(fewest, 2 * fewest + 1):
        if words % chunks == 0 and (words // chunks % 4 == 0 or chunks == 1):
            return words // chunks, chunks
    return _round_up(-(-words // fewest), 4), fewest


def _round_up(n: int, to: int) -> int:
    return -(-n // to) * to


def is_small(m: int, k: int, n: int, dtypes: Sequence[DType]) -> bool:
    """Whether compiling for a product would cost more than it ever saves; dtypes of a and b."""
    return roughly(_work(m, k, n), _most(dtypes))


def _most(dtypes: Sequence[DType]) -> int:
    return _SMALL if {f32, bf16}.issuperset(dtypes[:2]) else _SMALL * _RARE


def _work(m: int, k: int, n: int) -> int:
    """Multiply-adds of the kernel for small products, which takes four rows and many columns."""
    return _round_up(m, 4) * _round_up(n, 16) * k


def _power_of_two(n: int) -> int:
    """The least that is not below ``n``."""
    return 1 << (n - 1).bit_length()


def workspace_of(plan: Plan, batch: Sequence[int]) -> list[tuple[DType, Shape]]:
    """The temporary buffers :func:`product_calls` wants, in order."""
    needed: list[tuple[DType, Shape]] = []
    if plan.pack_first:
        # the kernel sees MOST_WORDS words of each panel: the first of the next one, or room
        words = plan.chunks * plan.all_panels * plan.chunk + MOST_WORDS
        needed.append((plan.word, (words, plan.panel)))
    if plan.keep_sums:
        needed.append((plan.accumulate, (*batch, plan.m, plan.n)))
    return needed


def product_calls(
    plan: Plan,
    a: Buffer,
    b: Buffer,
    y: Buffer,
    workspace: Sequence[Buffer] = (),
    epilogue: Epilogue | None = None,
    extras: Sequence[Buffer] = (),
) -> list[KernelCall]:
    """``y = epilogue(a @ b)``: a (*batch, m, k), b (*batch, k, n), y (*batch, m, n).

    Args:
        workspace: buffers as :func:`workspace_of` lists them.
        epilogue: of kinds ``full``, ``row``, ``column`` and ``number``.
        extras: (*batch, m, n), with sizes of 1 as the kind says and where batches repeat.
    """
    if 0 in y.shape:
        return []
    spare = list(workspace)
    packed = spare.pop(0) if plan.pack_first else None
    sums = spare.pop(0) if plan.keep_sums else y
    calls: list[KernelCall] = []
    finish = no_epilogue
    if epilogue is not None:
        finish = epilogue.function("acc, o, p, i, j, extras", WINDOWS)
    for one, two, *more, between, out in split_batches(a, b, *extras, sums, y):
        rest = tuple(more)
        if _takes_small(plan, two, out):
            calls.append(_small_call(plan, one, two, out, finish, rest))
        elif _is_direct(plan, two):
            calls.append(_direct_call(plan, one, two, out, finish, rest))
        else:
            calls += _blocked_calls(plan, one, two, out, between, packed, finish, rest)
    return calls


def _takes_small(plan: Plan, b: Buffer, y: Buffer) -> bool:
    """Whether the small kernel makes a product that is small; b may be too slow to gather."""
    if not plan.small or not _is_gathered(plan, b):
        return plan.small
    if y.dtype is not plan.accumulate and plan.chunks > 1:
        return True  # no room for sums was asked for
    if not is_fixed((plan.m, plan.k, plan.n)):
        return False  # a program for many sizes is worth compiling for
    return _work(plan.m, plan.k, plan.n) * _GATHERED <= _most((b.dtype,))


def _is_gathered(plan: Plan, b: Buffer) -> bool:
    return b.strides[-1] != 1 and plan.n > 1


def _small_call(
    plan: Plan,
    a: Buffer,
    b: Buffer,
    y: Buffer,
    epilogue: Callable[..., Any],
    extras: tuple[Buffer, ...],
) -> KernelCall:
    """Constants depend on dtypes and on whether b's rows are in one piece: else it is gathered,
    which more rows of a have to pay for."""
    gathered = _is_gathered(plan, b)
    wide = plan.accumulate.bits == 64
    rows = 8 if gathered and not wide else 4
    columns = 16 if gathered or wide else 32
    consts = {
        "MT": rows,
        "NT": columns,
        "ACC": plan.accumulate,
        "PAIRS": plan.word is u32,
        "epilogue": epilogue,
    }
    a = a.view((*a.shape, 1), (*a.strides, 1)).fix(4)
    grid = (-(-plan.n // columns), -(-plan.m // rows), y.shape[0] * y.shape[1])
    smallest = maximum(1, _WORTH // (rows * columns * maximum(plan.k, 1)))
    return KernelCall(gemm_small, grid, (a, b, y, extras), consts, smallest)


def _is_direct(plan: Plan, b: Buffer) -> bool:
    """Whether b's rows can be read where they are, and copying would not pay."""
    return not _is_gathered(plan, b) and roughly(plan.m, _FEW_ROWS, 2)


def _direct_call(
    plan: Plan,
    a: Buffer,
    b: Buffer,
    y: Buffer,
    epilogue: Callable[..., Any],
    extras: tuple[Buffer, ...],
) -> KernelCall:
    m, n = hint(plan.m), hint(plan.n)
    rows = _power_of_two(-(-m // -(-m // ROWS)))  # few sizes: each is compiled
    columns = plan.panel // 2 if n <= plan.panel // 2 else plan.panel
    if m == 1 and n >= 8 * columns:
        columns *= 2
    consts = {
        "MT": rows,
        "NT": columns,
        "ACC": plan.accumulate,
        "PAIRS": plan.word is u32,
        "epilogue": epilogue,
    }
    grid = (-(-plan.n // columns), -(-plan.m // rows), y.shape[0] * y.shape[1])
    return KernelCall(gemm_direct, grid, (a, b, y, extras), consts)


def _blocked_calls(
    plan: Plan,
    a: Buffer,
    b: Buffer,
    y: Buffer,
    sums: Buffer,
    packed: Buffer | None,
    epilogue: Callable[..., Any],
    extras: tuple[Buffer, ...],
) -> list[KernelCall]:
    if packed is not None:
        first = pack_call(plan, b, packed)
        return [first, *packed_calls(plan, a, packed, y, sums, epilogue, extras)]
    b, b_turned = _unit_stride_last(b)
    # The axis that pairs run along is the last one of a, and of b when it is turned.
    b = as_words(plan, b) if b_turned else b
    return [_block_call(plan, a, b, b_turned, False, y, sums, epilogue, extras)]


def _as_panels(plan: Plan, packed: Buffer) -> Buffer:
    """Packed memory as (chunks, panels, words, columns).

    A panel's chunks lie one after the other. The kernel sees MOST_WORDS words of each: the first
    ones of the next, or room behind the last.
    """
    one = plan.chunk * plan.panel
    shape = (plan.chunks, plan.all_panels, MOST_WORDS, plan.panel)
    return packed.view(shape, (one, plan.chunks * one, plan.panel, 1)).fix(2)


def pack_call(plan: Plan, b: Buffer, packed: Buffer) -> KernelCall:
    """Pack b (.., k, n) into memory of (panels * chunks * chunk + MOST_WORDS, panel) words."""
    b = b.view((1, 1, *b.shape[-2:]), (0, 0, *b.strides[-2:]))
    b, turned = _unit_stride_last(b)
    b = as_words(plan, b) if turned else b
    pairs = plan.word is u32 and b.dtype is not u32
    consts = {"NR": plan.panel, "WORD": plan.word, "PAIRS": pairs, "BT": turned}
    grid = (plan.all_panels, plan.chunks)
    return KernelCall(pack_panels, grid, (b, _as_panels(plan, packed), plan.chunk), consts)


def packed_calls(
    plan: Plan,
    a: Buffer,
    packed: Buffer,
    y: Buffer,
    sums: Buffer,
    epilogue: Callable[..., Any],
    extras: tuple[Buffer, ...],
    rows: Buffer | None = None,
) -> list[KernelCall]:
    """``y = epilogue(a @ b)`` with what :func:`pack_call` made of b; two batch axes.

    Rows of a that are what is multiplied are read where they are, which needs no sums in memory
    either: they stay in the L2 cache while panels come by. Others are copied: whole, as words, if
    there are ``rows`` (b0, b1, m, words) for it and a's rows are in one piece, or block by block.
    """
    words = as_words(plan, a)
    if words.strides[-1] == 1 or plan.k == 1:
        calls: list[KernelCall] = []
        if words.dtype is not plan.word:
            if rows is None:
                b = _as_panels(plan, packed)
                return [_block_call(plan, a, b, False, True, y, sums, epilogue, extras)]
            consts = {"WORD": plan.word, "PAIRS": plan.word is u32, "FILL": _fill(plan, words)}
            grid = (plan.m, y.shape[0] * y.shape[1])
            calls.append(KernelCall(row_words, grid, (words, rows), consts))
            words = rows
        return [*calls, _panel_call(plan, words, packed, y, epilogue, extras)]
    b = _as_panels(plan, packed)
    return [_block_call(plan, a, b, False, True, y, sums, epilogue, extras)]


def _panel_call(
    plan: Plan,
    a: Buffer,
    packed: Buffer,
    y: Buffer,
    epilogue: Callable[..., Any],
    extras: tuple[Buffer, ...],
) -> KernelCall:
    words = plan.chunks * plan.chunk
    shape = (plan.all_panels, words, plan.panel)
    panels = packed.view(shape, (words * plan.panel, plan.panel, 1))
    m, batch = plan.m, y.shape[0] * y.shape[1]
    wanted = -(-_PROGRAMS * default_pool().threads // (plan.all_panels * batch))
    blocks = max(-(-m // _MOST_PANEL_ROWS), min(wanted, m // (2 * ROWS)))
    rows = _round_up(-(-m // blocks), ROWS)
    consts = {
        "MT": -(-m // -(-m // ROWS)) if m <= 4 * ROWS else ROWS,
        "NR": plan.panel,
        "ACC": plan.accumulate,
        "PAIRS": plan.word is u32,
        "epilogue": epilogue,
    }
    grid = (plan.all_panels, -(-m // rows), batch)
    smallest = max(1, _WORTH // (min(rows, m) * plan.panel * max(plan.k, 1)))
    return KernelCall(gemm_panels, grid, (a, panels, y, extras, rows), consts, smallest)


def _block_call(
    plan: Plan,
    a: Buffer,
    b: Buffer,
    b_turned: bool,
    is_packed: bool,
    y: Buffer,
    sums: Buffer,
    epilogue: Callable[..., Any],
    extras: tuple[Buffer, ...],
) -> KernelCall:
    a, a_turned = _unit_stride_last(a)
    a = a if a_turned else as_words(plan, a)
    pairs = plan.word is u32
    b_pairs = pairs and b.dtype is not u32
    consts = {
        "NR": plan.panel,
        "WORD": plan.word,
        "MR": plan.tile,
        "ACC": plan.accumulate,
        "A_PAIRS": pairs and a.dtype is not u32,
        "B_PAIRS": b_pairs,
        "FILL": _fill(plan, a),
        "AT": a_turned,
        "BT": b_turned,
        "PRE": is_packed,
        "epilogue": epilogue,
    }
    grid3 = (
        -(-plan.all_panels // plan.panels),
        -(-plan.m // plan.rows),
        y.shape[0] * y.shape[1],
    )
    # What is fetched ahead: elements in rows along the last axis, a share with every tile.
    tiles = hint(plan.rows) // plan.tile
    a_rows, b_rows, chunk = hint(plan.rows), plan.panel, hint(plan.chunk)
    if a_turned:
        a_rows = chunk * (2 if pairs and a.dtype not in (u32, u64) else 1)
    if not b_turned:
        b_rows = chunk * (2 if b_pairs and b.dtype is not u64 else 1)
    a_share = min(2, -(-a_rows // (tiles * hint(plan.panels))))
    b_share = -(-b_rows // tiles) if is_packed or tiles >= 8 else 0
    sizes = (plan.rows, plan.chunk, plan.panels, plan.chunks, a_share, b_share)
    return KernelCall(gemm_blocked, grid3, (a, b, sums, y, extras, *sizes), consts)


def _fill(plan: Plan, a: Buffer) -> float | int:
    """Stands for a beyond the end of k: -0.0, whose product with 0 changes no sum."""
    if a.dtype.is_float:
        return -0.0
    return _NO_CHANGE.get(a.dtype, 0) if plan.word is u32 else 0


def _unit_stride_last(x: Buffer) -> tuple[Buffer, bool]:
    """``x`` with its last two axes swapped if that makes neighbours of the last axis adjacent."""
    rows, columns = x.strides[-2:]
    if columns == 1 and not (rows == 1 and x.shape[-1] == 1):
        return x, False
    if rows != 1:
        return x, False
    shape, strides = list(x.shape), list(x.strides)
    shape[-2:], strides[-2:] = shape[:-3:-1], strides[:-3:-1]
    return x.view(shape, strides), True


def as_words(plan: Plan, x: Buffer) -> Buffer:
    """Rows of bf16 or f32 whose pairs are aligned, as rows of pairs; anything else as it is."""
    even = (
        x.shape[-1] % 2 == 0
        and x.strides[-1] == 1
        and x.pointer % (2 * x.dtype.nbytes) == 0
        and all(s % 2 == 0 for s, n in zip(x.strides[:-1], x.shape) if n != 1)
    )
    if plan.word is not u32 or not even:
        return x
    shape = (*x.shape[:-1], x.shape[-1] // 2)
    pair = u32 if x.dtype is bf16 else u64
    return x.view(shape, (*(s // 2 for s in x.strides[:-1]), 1), dtype=pair)


def split_batches(*buffers: Buffer) -> list[tuple[Buffer, ...]]:
    """The same products as tuples of buffers with two batch axes each.

    The batch axes of every buffer broadcast against those of the last. Neighbouring axes that all
    can walk with one stride become one; what is left beyond two is looped over here.
    """
    batch = buffers[-1].shape[:-2]
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in buffers]
    for axis, size in enumerate(batch):
        if size == 1:
            continue
        each = [_stride(x, axis - len(batch), size) for x in buffers]
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
    outer = [range(size) for size in sizes[:-2]]
    result: list[tuple[Buffer, ...]] = []
    for at in range(math.prod(map(len, outer))):
        index: list[int] = []
        for axis_range in reversed(outer):
            at, i = divmod(at, len(axis_range))
            index.insert(0, i)
        parts = [
            x.view(
                (*sizes[-2:], *x.shape[-2:]),
                (*s[-2:], *x.strides[-2:]),
                sum(i * step for i, step in zip(index, s)),
            )
            for x, s in zip(buffers, steps)
        ]
        result.append(tuple(parts))
    return result


def _stride(x: Buffer, axis: int, size: int) -> int:
    """Step of ``x`` along batch axis ``axis`` (counted from the end of the batch)."""
    at = x.ndim - 2 + axis
    return x.strides[at] if at >= 0 and x.shape[at] == size else 0

"""``dot`` and ``dot4``.

``dot`` keeps a block of the accumulator in registers and walks k in ascending order with one fused
multiply-add per k and output, whatever the block: outputs are independent, so blocking changes
speed only. Operands that were just loaded are read straight from memory (rows of ``b`` as vectors,
elements of ``a`` as broadcasts); operands computed in registers are written to the stack first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from tilewright.dtypes import DType, bf16, boolean, f32, i32, u32
from tilewright.lang import ir
from tilewright.targets.cpu.lowering import arith
from tilewright.targets.cpu.lowering.access import Access
from tilewright.targets.cpu.lowering.arith import cast_tile
from tilewright.targets.cpu.lowering.context import Context, Handler, elementwise
from tilewright.targets.cpu.lowering.control import counted_loop
from tilewright.targets.cpu.lowering.emit import literal, mem_type, reg_type, vec
from tilewright.targets.cpu.lowering.half import from_f32
from tilewright.targets.cpu.lowering.tile import Tile, aligned, chunk_widths

__all__ = ["HANDLERS"]

# k iterations written out per trip of the loop, and when the whole k axis is written out.
_UNROLL = 4
_FULL_UNROLL = 96


@dataclass(frozen=True)
class _Matrix:
    """A (rows, columns) operand in memory; strides are operands in elements."""

    dtype: DType
    pointer: str
    row_stride: str
    column_stride: str

    def at(self, ctx: Context, row: str, column: str) -> str:
        em = ctx.em
        offset = em.add(em.mul(row, self.row_stride), em.mul(column, self.column_stride))
        return em.gep(mem_type(self.dtype), self.pointer, offset)


def _dot(ctx: Context, op: ir.Op) -> None:
    a, b, c = op.operands
    (m, k), n = a.shape, b.shape[1]
    result = op.result
    dtype = result.dtype
    lanes = ctx.machine.lanes
    acc = list(aligned(ctx.em, ctx.tile(c), (m, n), lanes))
    if prod((m, n, k)) == 0:
        ctx.set(result, acc)
        return
    left = _left(ctx, a, dtype)
    right = _right(ctx, b, dtype)
    widths = chunk_widths(n, lanes) if n > 1 else (1,)
    rows, columns = _block(ctx, dtype, m, len(widths))
    out = list(acc)
    full = k * rows * columns <= _FULL_UNROLL
    for c0 in range(0, len(widths), columns):
        chosen = range(c0, min(c0 + columns, len(widths)))
        for r0 in range(0, m, rows):
            block = range(r0, min(r0 + rows, m))
            slots = [r * len(widths) + j for r in block for j in chosen]

            def step(
                at: str, values: Sequence[str], block: range = block, chosen: range = chosen
            ) -> list[str]:
                return _step(ctx, left, right, dtype, at, values, block, chosen, widths)

            values = [out[s] for s in slots]
            types = [vec(reg_type(dtype), widths[j]) for _ in block for j in chosen]
            for s, v in zip(slots, _over_k(ctx, k, types, values, step, full)):
                out[s] = v
    ctx.set(result, out)


def _over_k(
    ctx: Context,
    k: int,
    types: Sequence[str],
    values: list[str],
    step: Callable[[str, Sequence[str]], list[str]],
    full: bool,
) -> list[str]:
    """Apply ``step`` for 0 <= kk < k in order."""
    em = ctx.em
    if full:
        for kk in range(k):
            values = step(str(kk), values)
        return values
    trips, rest = divmod(k, _UNROLL)

    def body(i: str, carried: list[str]) -> list[str]:
        first = em.mul(i, str(_UNROLL))
        for u in range(_UNROLL):
            carried = step(em.add(first, str(u)), carried)
        return carried

    values = counted_loop(ctx, str(trips), types, values, body)
    for kk in range(k - rest, k):
        values = step(str(kk), values)
    return values


def _step(
    ctx: Context,
    left: _Left,
    right: _Right,
    dtype: DType,
    at: str,
    values: Sequence[str],
    rows: range,
    chosen: range,
    widths: Sequence[int],
) -> list[str]:
    loaded = [right(at, j, widths[j]) for j in chosen]
    vectors = [arith.cast_value(ctx, d, dtype, v, widths[j]) for (d, v), j in zip(loaded, chosen)]
    out: list[str] = []
    element = reg_type(dtype)
    for i, r in enumerate(rows):
        scalar = left(r, at)
        for jj, j in enumerate(chosen):
            w = widths[j]
            x = ctx.em.splat(element, scalar, w)
            out.append(arith.fma_value(ctx, dtype, x, vectors[jj], values[i * len(chosen) + jj], w))
    return out


_Left = Callable[[int, str], str]
_Right = Callable[[str, int, int], tuple[DType, str]]


def _block(ctx: Context, dtype: DType, m: int, chunks: int) -> tuple[int, int]:
    """Rows and chunks of the accumulator that stay in registers together.

    Chosen to read as little as possible per multiply-add; one register stays free for the
    broadcast element of ``a``.
    """
    registers = ctx.machine.vector_registers
    each = max(dtype.bits // 32, 1)
    best = (1, 1)
    cost = float("inf")
    for columns in range(1, min(chunks, 6) + 1):
        room = registers // each - columns - (1 if columns > 1 or registers == 16 else 0)
        rows = min(m, room // columns)
        if rows < 1:
            continue
        # Even blocks: 9 rows as 5 + 4 rather than 8 + 1.
        blocks = -(-m // rows)
        rows = -(-m // blocks)
        passes = blocks * (-(-chunks // columns))
        reads = passes * (rows + columns)
        if reads < cost:
            best, cost = (rows, columns), reads
    return best


def _left(ctx: Context, value: ir.Value, dtype: DType) -> _Left:
    """Elements of ``a``, already in the accumulator's dtype."""
    em = ctx.em
    if value in ctx.deferred:
        matrix, cast_from = _window(ctx, value)
        # Converting on the fly would repeat a slow scalar conversion for every block.
        if cast_from is not dtype:
            matrix = _convert(ctx, value, matrix, dtype)
    else:
        tile = ctx.tile(value)
        m, k = value.shape
        if tile.width == 1 and m * k <= 64:
            vals = [arith.cast_value(ctx, tile.dtype, dtype, v, 1) for v in tile.vals]
            if k == 1:
                return lambda r, _: vals[r]
        matrix = _spill(ctx, cast_tile(ctx, tile, dtype))
    element = mem_type(dtype)

    def read(row: int, at: str) -> str:
        pointer = matrix.at(ctx, str(row), at)
        return em.op(f"load {element}, ptr {pointer}, align {dtype.nbytes}")

    return read


def _right(ctx: Context, value: ir.Value, dtype: DType) -> _Right:
    """Row chunks of ``b`` with the dtype they come in."""
    em = ctx.em
    lanes = ctx.machine.lanes
    if value in ctx.deferred and _rows_are_vectors(value):
        matrix, _ = _window(ctx, value)
    else:
        if value in ctx.deferred:
            _load_deferred(ctx, value)
        tile = ctx.tile(value)
        if tile.dtype is boolean:
            tile = cast_tile(ctx, tile, dtype)
        if value.shape[0] == 1:
            vals = aligned(em, tile, value.shape, lanes)
            return lambda _, j, w: (tile.dtype, vals[j])
        matrix = _spill(
            ctx, Tile(tile.dtype, tile.shape, lanes, aligned(em, tile, tile.shape, lanes))
        )
    element = mem_type(matrix.dtype)

    def read(at: str, j: int, width: int) -> tuple[DType, str]:
        pointer = matrix.at(ctx, at, str(j * lanes))
        text = f"load {vec(element, width)}, ptr {pointer}, align {matrix.dtype.nbytes}"
        return matrix.dtype, em.op(text)

    return read


def _rows_are_vectors(value: ir.Value) -> bool:
    source = _source(value)
    kind = source.operands[0].type
    axes = source.attrs["axes"]
    assert isinstance(kind, ir.ArrayType)
    last = max(n for n, a in enumerate(axes) if isinstance(a, ir.Window))
    return kind.strides[last] == 1 and axes[last].step == 1


def _source(value: ir.Value) -> ir.Op:
    """The load behind a deferred value."""
    op = value.op
    assert op is not None
    return op if op.name == "load" else _source(op.operands[0])


def _load_deferred(ctx: Context, value: ir.Value) -> None:
    """Do now what was left to the dot."""
    from tilewright.targets.cpu.lowering.memory import load_tile

    op = value.op
    assert op is not None
    if op.name == "cast":
        _load_deferred(ctx, op.operands[0])
        source = op.operands[0].dtype
        elementwise(ctx, op, lambda v, w: arith.cast_value(ctx, source, value.dtype, v[0], w))
    else:
        ctx.set(value, load_tile(Access(ctx, op), ctx.width(value)))


def _window(ctx: Context, value: ir.Value) -> tuple[_Matrix, DType]:
    """A deferred load as a matrix in memory; one that may leave its array is copied first."""
    load = _source(value)
    access = Access(ctx, load)
    dtype = access.array.dtype
    rows, columns = access.dims
    if access.uniform is None and not any(access.needs_check(d) for d in (rows, columns)):
        strides = [
            ctx.em.mul(access.array.strides[d], str(access.axes[d].step))  # type: ignore[union-attr]
            for d in (rows, columns)
        ]
        return _Matrix(dtype, access.pointer, strides[0], strides[1]), dtype
    return _copy(ctx, access, dtype), dtype


def _copy(ctx: Context, access: Access, dtype: DType) -> _Matrix:
    """Copy a window to the stack row by row, filling what lies outside."""
    em = ctx.em
    m, n = access.shape
    lanes = ctx.machine.lanes
    padded = -(-n // lanes) * lanes
    memory = mem_type(dtype)
    pointer = em.alloca(memory, m * padded)

    def body(i: str, carried: list[str]) -> list[str]:
        row = access.row([i])
        at = 0
        for w in chunk_widths(n, lanes) if n > 1 else (1,):
            if w == 1 or access.contiguous:
                value = access.load_chunk(row, at, w)
            else:
                value = access.gather_chunk(*access.pointers(row, 0, at, w), w)
            target = em.gep(memory, pointer, em.add(em.mul(i, str(padded)), str(at)))
            em.do(f"store {vec(memory, w)} {value}, ptr {target}, align {dtype.nbytes}")
            at += w
        return carried

    counted_loop(ctx, str(m), [], [], body)
    return _Matrix(dtype, pointer, str(padded), "1")


def _convert(ctx: Context, value: ir.Value, matrix: _Matrix, dtype: DType) -> _Matrix:
    """A copy of ``matrix`` on the stack in ``dtype``."""
    em = ctx.em
    m, n = value.shape
    lanes = ctx.machine.lanes
    source, target = mem_type(matrix.dtype), mem_type(dtype)
    pointer = em.alloca(target, m * n)
    vectors = matrix.column_stride == "1"

    def body(i: str, carried: list[str]) -> list[str]:
        at = 0
        for w in chunk_widths(n, lanes) if n > 1 and vectors else (1,) * n:
            place = matrix.at(ctx, i, str(at))
            x = em.op(f"load {vec(source, w)}, ptr {place}, align {matrix.dtype.nbytes}")
            x = arith.cast_value(ctx, matrix.dtype, dtype, x, w)
            to = em.gep(target, pointer, em.add(em.mul(i, str(n)), str(at)))
            em.do(f"store {vec(target, w)} {x}, ptr {to}, align {dtype.nbytes}")
            at += w
        return carried

    counted_loop(ctx, str(m), [], [], body)
    return _Matrix(dtype, pointer, str(n), "1")


def _spill(ctx: Context, tile: Tile) -> _Matrix:
    """Write a tile to the stack, rows padded to whole vectors."""
    em = ctx.em
    m, n = tile.shape
    lanes = ctx.machine.lanes
    padded = -(-n // lanes) * lanes if tile.width > 1 else n
    memory = mem_type(tile.dtype)
    pointer = em.alloca(memory, m * padded)
    for r, row in enumerate(tile.rows()):
        at = r * padded
        for value, w in zip(row, tile.widths):
            target = em.gep(memory, pointer, str(at))
            em.do(f"store {vec(memory, w)} {value}, ptr {target}, align {tile.dtype.nbytes}")
            at += w
    return _Matrix(tile.dtype, pointer, str(padded), "1")


# --- packed bf16 pairs ---


def _dot2(ctx: Context, op: ir.Op) -> None:
    elementwise(ctx, op, lambda v, w: dot2_value(ctx, v[0], v[1], v[2], w))


def dot2_value(ctx: Context, acc: str, a: str, b: str, width: int) -> str:
    """``acc`` plus two bf16 products per lane, rounded and flushed as the IR's numerics say.

    Without the instruction a result in the half unit below the smallest normal number may be that
    number instead of zero: its rounding is not seen.
    """
    em = ctx.em
    if ctx.machine.has_avx512_bf16 and width in (4, 8, 16):
        type, many = vec("float", width), vec("bfloat", 2 * width)
        a, b = (em.op(f"bitcast {vec('i32', width)} {x} to {many}") for x in (a, b))
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * width}"
        return em.call(name, type, [(type, acc), (many, a), (many, b)])
    words = vec("i32", width)
    acc = _without_subnormals(ctx, acc, width)
    for half in ("high", "low"):
        parts: list[str] = []
        for x in (a, b):
            if half == "high":
                bits = em.op(f"and {words} {x}, {literal_all(-65536, width)}")
            else:
                bits = em.op(f"shl {words} {x}, {literal_all(16, width)}")
            value = em.op(f"bitcast {words} {bits} to {vec('float', width)}")
            parts.append(_without_subnormals(ctx, value, width))
        total = arith.fma_value(ctx, f32, parts[0], parts[1], acc, width)
        acc = _without_subnormals(ctx, total, width)
    return acc


def _pack2(ctx: Context, op: ir.Op) -> None:
    elementwise(ctx, op, lambda v, w: pack2_value(ctx, v[0], v[1], w))


def pack2_value(ctx: Context, first: str, second: str, width: int) -> str:
    """A u32 per lane: two f32 rounded to bf16, subnormals as zeros."""
    em = ctx.em
    type, words = vec("float", width), vec("i32", width)
    if ctx.machine.has_avx512_bf16 and width in (4, 8, 16):
        many, halves = vec("bfloat", 2 * width), vec("i16", 2 * width)
        name = f"llvm.x86.avx512bf16.cvtne2ps2bf16.{32 * width}"
        both = em.call(name, many, [(type, second), (type, first)])
        both = em.op(f"bitcast {many} {both} to {halves}")
        order = [i // 2 + width * (i % 2) for i in range(2 * width)]
        both = em.shuffle("i16", 2 * width, both, "poison", order)
        return em.op(f"bitcast {halves} {both} to {words}")
    parts: list[str] = []
    for x in (first, second):
        bits = from_f32(ctx, bf16, _without_subnormals(ctx, x, width), width)
        parts.append(em.op(f"zext {vec('i16', width)} {bits} to {words}"))
    high = em.op(f"shl {words} {parts[1]}, {literal_all(16, width)}")
    return em.op(f"or {words} {parts[0]}, {high}")


def _without_subnormals(ctx: Context, value: str, width: int) -> str:
    """f32 lanes below the normal range become zeros of their sign."""
    em = ctx.em
    type, words, flag = vec("float", width), vec("i32", width), vec("i1", width)
    bits = em.op(f"bitcast {type} {value} to {words}")
    exponent = em.op(f"and {words} {bits}, {literal_all(0x7F800000, width)}")
    tiny = em.op(f"icmp eq {words} {exponent}, {literal_all(0, width)}")
    sign = em.op(f"and {words} {bits}, {literal_all(-0x80000000, width)}")
    bits = em.op(f"select {flag} {tiny}, {words} {sign}, {words} {bits}")
    return em.op(f"bitcast {words} {bits} to {type}")


# --- packed bytes ---


def _dot4(ctx: Context, op: ir.Op) -> None:
    left, right = op.operands[1].dtype, op.operands[2].dtype
    elementwise(ctx, op, lambda v, w: dot4_value(ctx, left, right, v[0], v[1], v[2], w))


def dot4_value(ctx: Context, left: DType, right: DType, acc: str, a: str, b: str, w: int) -> str:
    """``acc`` plus the sum of four byte products per lane, exact in int32 (wrapping)."""
    if left is i32 and right is u32:
        left, right, a, b = right, left, b, a
    # Unsigned by unsigned has no instruction, and LLVM 22 never ends on the detour over vpdpbusd.
    if right is i32 and _vnni_width(ctx, w):
        return _dot4_vnni(ctx, left, acc, a, b, w)
    return _dot4_plain(ctx, left, right, acc, a, b, w)


def _vnni_width(ctx: Context, width: int) -> bool:
    machine = ctx.machine
    if machine.has_vnni:
        return width in (4, 8, 16)
    return machine.has_avx_vnni and width in (4, 8)


def _dot4_vnni(ctx: Context, left: DType, acc: str, a: str, b: str, width: int) -> str:
    em = ctx.em
    type = vec("i32", width)
    if left is i32:
        # Signed times signed: add 128 to the left bytes and take 128 * sum(right) off again.
        ones = literal_all(0x01010101, width)
        a = em.op(f"xor {type} {a}, {literal_all(0x80808080, width)}")
        total = _vpdpbusd(ctx, literal_all(0, width), ones, b, width)
        less = em.op(f"shl {type} {total}, {literal_all(7, width)}")
        acc = em.op(f"sub {type} {acc}, {less}")
        return _vpdpbusd(ctx, acc, a, b, width)
    return _vpdpbusd(ctx, acc, a, b, width)


def literal_all(value: int, width: int) -> str:
    text = literal(value, i32)
    return text if width == 1 else f"splat (i32 {text})"


def _vpdpbusd(ctx: Context, acc: str, a: str, b: str, width: int) -> str:
    """``acc + sum(unsigned bytes of a * signed bytes of b)``."""
    em = ctx.em
    type, many = vec("i32", width), vec("i8", 4 * width)
    a = em.op(f"bitcast {type} {a} to {many}")
    b = em.op(f"bitcast {type} {b} to {many}")
    name = f"llvm.x86.avx512.vpdpbusd.{32 * width}"
    return em.call(name, type, [(type, acc), (many, a), (many, b)])


def _dot4_plain(
    ctx: Context, left: DType, right: DType, acc: str, a: str, b: str, width: int
) -> str:
    em = ctx.em
    type = vec("i32", width)
    pairs = _pair_product(ctx, width)
    if pairs:
        # Even and odd bytes as i16: each vpmaddwd multiplies and adds two of them, exactly.
        total = acc
        many = vec("i16", 2 * width)
        for half in ("even", "odd"):
            x, y = _i16_bytes(ctx, a, left, half, width), _i16_bytes(ctx, b, right, half, width)
            total = em.op(f"add {type} {total}, {em.call(pairs, type, [(many, x), (many, y)])}")
        return total
    total = acc
    for shift in (0, 8, 16, 24):
        x = _byte(ctx, a, shift, left, width)
        y = _byte(ctx, b, shift, right, width)
        product = em.op(f"mul {type} {x}, {y}")
        total = em.op(f"add {type} {total}, {product}")
    return total


def _pair_product(ctx: Context, width: int) -> str:
    """The intrinsic for vpmaddwd on ``width`` results, if the machine has it."""
    machine = ctx.machine
    if machine.arch != "x86_64":
        return ""
    known = {4: "sse2.pmadd.wd"}
    if machine.has_avx2:
        known[8] = "avx2.pmadd.wd"
    if machine.has_avx512:
        known[16] = "avx512.pmaddw.d.512"
    return f"llvm.x86.{known[width]}" if width in known else ""


def _i16_bytes(ctx: Context, value: str, dtype: DType, half: str, width: int) -> str:
    """Bytes 0 and 2 (even) or 1 and 3 (odd) of every lane as i16 pairs."""
    em = ctx.em
    key = ("bytes", half, value, dtype)
    found = em.recall(key)
    if found is None:
        many = vec("i16", 2 * width)
        found = em.op(f"bitcast {vec('i32', width)} {value} to {many}")
        eight = "splat (i16 8)"
        if half == "even":
            found = em.op(f"shl {many} {found}, {eight}")
        found = em.op(f"{'ashr' if dtype is i32 else 'lshr'} {many} {found}, {eight}")
        em.remember(key, found)
    return str(found)


def _byte(ctx: Context, value: str, shift: int, dtype: DType, width: int) -> str:
    em = ctx.em
    type = vec("i32", width)
    up = 24 - shift
    if up:
        value = em.op(f"shl {type} {value}, {literal_all(up, width)}")
    op = "ashr" if dtype is i32 else "lshr"
    return em.op(f"{op} {type} {value}, {literal_all(24, width)}")


HANDLERS: dict[str, Handler] = {"dot": _dot, "dot2": _dot2, "pack2": _pack2, "dot4": _dot4}

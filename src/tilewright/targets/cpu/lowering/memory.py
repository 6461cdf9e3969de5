"""The ops on memory: ``load``, ``store``, ``scratch`` and ``dim``."""

from __future__ import annotations

from math import prod

from tilewright.lang import ir
from tilewright.targets.cpu.lowering.access import Access
from tilewright.targets.cpu.lowering.context import ArrayRef, Context, Handler, refuse
from tilewright.targets.cpu.lowering.emit import mem_type
from tilewright.targets.cpu.lowering.tile import aligned, chunk_widths

__all__ = ["HANDLERS", "load_tile"]

MAX_SCRATCH_BYTES = 768 * 1024  # a thread's stack is 8 MB; both versions of a body may be in it
_LINE_BYTES = 64


def _load(ctx: Context, op: ir.Op) -> None:
    if op.result in ctx.deferred:
        return
    access = Access(ctx, op)
    if "prefetch" in op.attrs:
        _prefetch(ctx, access, op.attrs["prefetch"] == "write", op.attrs["level"])
        return
    ctx.set(op.result, load_tile(access, ctx.width(op.result)))


def _prefetch(ctx: Context, access: Access, write: bool, level: int) -> None:
    """One hint per cache line that a row touches; an address that is not there does no harm."""
    em = ctx.em
    if prod(access.shape) == 0:
        return
    step = _LINE_BYTES // access.array.dtype.nbytes if access.contiguous else 1
    for row in access.rows():
        last = access.shape[-1] if access.shape else 1
        for at in sorted({*range(0, last, step), last - 1}):
            pointer, _ = access.element(row, str(at))
            types = ["ptr", "i32", "i32", "i32"]
            name = em.module.declare("llvm.prefetch.p0", "void", types)
            em.do(f"call void {name}(ptr {pointer}, i32 {int(write)}, i32 {4 - level}, i32 1)")


def load_tile(access: Access, width: int) -> list[str]:
    """Every chunk of a load, cut for ``width`` lanes."""
    shape = access.shape
    if prod(shape) == 0:
        return []
    if shape == ():
        return [access.load_element(access.pointer, access.uniform)]
    vals: list[str] = []
    widths = chunk_widths(shape[-1], width)
    for number, row in enumerate(access.rows()):
        at = 0
        for w in widths:
            if access.dims[-1] >= 0 and (w == 1 or access.contiguous):
                vals.append(access.load_chunk(row, at, w))
            elif w == 1:
                vals.append(_load_gathered(access, number, at))
            else:
                pointers, valid = access.pointers(row, number, at, w)
                vals.append(access.gather_chunk(pointers, valid, w))
            at += w
    return vals


def _full_index(access: Access, row_number: int, at: int) -> list[str]:
    index = [str(at)]
    for size in reversed(access.shape[:-1]):
        row_number, i = divmod(row_number, size)
        index.insert(0, str(i))
    return index


def _load_gathered(access: Access, row_number: int, at: int) -> str:
    return access.load_element(*access.row(_full_index(access, row_number, at)))


def _store(ctx: Context, op: ir.Op) -> None:
    access = Access(ctx, op)
    shape = access.shape
    value = ctx.tile(op.operands[-1])
    if prod(shape) == 0:
        return
    if shape == ():
        access.store_element(access.pointer, access.uniform, value.vals[0])
        return
    # Strided and scattered writes of a tile of scalars need no vectors.
    lanes = ctx.machine.lanes
    width = lanes if access.contiguous or value.width > 1 else 1
    vals = aligned(ctx.em, value, shape, width)
    widths = chunk_widths(shape[-1], width if shape[-1] > 1 else 1)
    n = len(widths)
    for number, row in enumerate(access.rows()):
        at = 0
        for k, w in enumerate(widths):
            x = vals[number * n + k]
            if access.dims[-1] >= 0 and (w == 1 or access.contiguous):
                access.store_chunk(row, at, w, x)
            elif w == 1:
                pointer, inside = access.row(_full_index(access, number, at))
                access.store_element(pointer, inside, x)
            else:
                pointers, valid = access.pointers(row, number, at, w)
                access.scatter_chunk(pointers, valid, w, x)
            at += w


def _scratch(ctx: Context, op: ir.Op) -> None:
    kind = op.result.type
    assert isinstance(kind, ir.ArrayType)
    sizes = [n or 0 for n in kind.shape]
    count = prod(sizes)
    ctx.scratch_bytes += count * kind.dtype.nbytes
    if ctx.scratch_bytes > MAX_SCRATCH_BYTES:
        raise refuse(
            op,
            f"scratch arrays of {ctx.scratch_bytes} bytes in total; at most {MAX_SCRATCH_BYTES} "
            "fit the stack: make the tile smaller or pass an array in",
        )
    pointer = ctx.em.alloca(mem_type(kind.dtype), max(count, 1))
    strides = [str(s) for s in ir.ArrayType.dense(kind.dtype, sizes).strides]
    shape = tuple(str(n) for n in sizes)
    ctx.arrays[op.result] = ArrayRef(kind.dtype, pointer, shape, tuple(strides), scratch=True)


def _dim(ctx: Context, op: ir.Op) -> None:
    ctx.set(op.result, [ctx.arrays[op.operands[0]].shape[op.attrs["axis"]]])


HANDLERS: dict[str, Handler] = {"load": _load, "store": _store, "scratch": _scratch, "dim": _dim}

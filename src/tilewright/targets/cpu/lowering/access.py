"""Loads and stores: windows, single elements, gathers and scatters, all of them total.

An element outside its array is never touched. A whole row outside is read from a constant (or
written to a scratch vector) by selecting the pointer; a vector that may hang over an edge is read
and written under a mask. There are no branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tilewright.dtypes import DType, boolean
from tilewright.lang import ir
from tilewright.targets.cpu.lowering.context import Context
from tilewright.targets.cpu.lowering.emit import (
    is_literal,
    literal,
    mangle,
    mem_type,
    reg_type,
    vec,
)
from tilewright.targets.cpu.lowering.tile import Tile, aligned, broadcast_rows, chunk_widths

__all__ = ["Access", "to_i64"]


class Access:
    """One load or store, its addresses and conditions.

    Result axes are addressed by *index operands* (literals or registers), so that a row can be
    reached from unrolled code and from a loop alike.
    """

    def __init__(self, ctx: Context, op: ir.Op) -> None:
        self.ctx = ctx
        self.op = op
        self.array = ctx.arrays[op.operands[0]]
        self.memory = mem_type(self.array.dtype)
        self.axes: tuple[ir.Axis, ...] = op.attrs["axes"]
        self.starts = op.operands[1 : 1 + len(self.axes)]
        index_shapes = [v.shape for v in self.starts]
        self.shape = ir.access_shape(self.axes, index_shapes)
        gathered = [s for a, s in zip(self.axes, index_shapes) if isinstance(a, ir.Gather)]
        self.common = ir.broadcast_shapes(*gathered) if gathered else ()
        self.fill = literal(op.attrs.get("fill", 0), self.array.dtype)
        self._layout_axes()
        self._base()

    def _layout_axes(self) -> None:
        """For each result axis: the array axis of its window, or -1 inside the gathered shape."""
        self.dims: list[int] = []
        placed = False
        for number, axis in enumerate(self.axes):
            if isinstance(axis, ir.Window):
                self.dims.append(number)
            elif isinstance(axis, ir.Gather) and not placed:
                self.dims.extend([-1] * len(self.common))
                placed = True
        self.gathers = [
            n for n, a in enumerate(self.axes) if isinstance(a, ir.Gather) and self.common != ()
        ]
        first = self.dims.index(-1) if -1 in self.dims else 0
        self.gather_dims = range(first, first + len(self.common))

    def _base(self) -> None:
        """Pointer of the element at index zero, and the condition all elements share."""
        em = self.ctx.em
        offset = "0"
        self.uniform: str | None = None
        for number, axis in enumerate(self.axes):
            if number in self.gathers:
                continue
            start = self._index(number)
            offset = em.add(offset, em.mul(start, self.array.strides[number]))
            if not isinstance(axis, ir.Window) and self.needs_check(number):
                inside = em.op(f"icmp ult i64 {start}, {self.array.shape[number]}")
                self.uniform = em.both(self.uniform, inside)
        self.pointer = em.gep(self.memory, self.array.pointer, offset)

    def _index(self, number: int) -> str:
        """A scalar index operand as i64."""
        value = self.starts[number]
        return to_i64(self.ctx, value.dtype, self.ctx.scalar(value), 1)

    def needs_check(self, number: int) -> bool:
        """Whether array axis ``number`` may be left in this version of the body."""
        return self.ctx.plan.check(self.op, number, self.ctx.checked) is not None

    @property
    def contiguous(self) -> bool:
        """Whether the last result axis walks memory element by element."""
        number = self.dims[-1] if self.dims else -1
        if number < 0:
            return False
        axis = self.axes[number]
        assert isinstance(axis, ir.Window)
        return self.array.strides[number] == "1" and axis.step == 1

    # --- rows ---

    def row(self, index: Sequence[str]) -> tuple[str, str | None]:
        """Pointer and condition of the row at ``index`` (all result axes but the last)."""
        em = self.ctx.em
        offset, inside = "0", self.uniform
        for dim, i in enumerate(index):
            number = self.dims[dim]
            if number < 0:
                continue
            offset = em.add(offset, self._window_offset(number, i))
            inside = em.both(inside, self._window_inside(number, i))
        if self.gathers and self.gather_dims.stop <= len(index):
            at = [int(index[d]) for d in self.gather_dims]
            for number in self.gathers:
                value = self._gather_scalar(number, at)
                offset = em.add(offset, em.mul(value, self.array.strides[number]))
                if self.needs_check(number):
                    test = em.op(f"icmp ult i64 {value}, {self.array.shape[number]}")
                    inside = em.both(inside, test)
        return em.gep(self.memory, self.pointer, offset), inside

    def rows(self) -> list[tuple[str, str | None]]:
        """All rows in row-major order."""
        out: list[tuple[str, str | None]] = []
        lead = self.shape[:-1]
        for flat in range(prod(lead)):
            index: list[str] = []
            for size in reversed(lead):
                flat, at = divmod(flat, size)
                index.insert(0, str(at))
            out.append(self.row(index))
        return out

    def _window_offset(self, number: int, i: str) -> str:
        axis = self.axes[number]
        assert isinstance(axis, ir.Window)
        em = self.ctx.em
        return em.mul(em.mul(i, str(axis.step)), self.array.strides[number])

    def _window_inside(self, number: int, i: str) -> str | None:
        """Whether element ``i`` of a window is in its array; None when it always is."""
        if not self.needs_check(number):
            return None
        axis = self.axes[number]
        assert isinstance(axis, ir.Window)
        em = self.ctx.em
        key = ("inside", self.op, number, i)
        found = em.recall(key)
        if found is None:
            at = self._saturating(self._index(number), em.mul(i, str(axis.step)))
            found = em.op(f"icmp ult i64 {at}, {self.array.shape[number]}")
            em.remember(key, found)
        return str(found)

    def _saturating(self, a: str, b: str) -> str:
        """``a + b`` that cannot wrap into the array."""
        em = self.ctx.em
        if b == "0" or is_literal(a):
            return em.add(a, b)
        return em.call("llvm.sadd.sat.i64", "i64", [("i64", a), ("i64", b)])

    def _gather_scalar(self, number: int, at: Sequence[int]) -> str:
        tile = self.ctx.tile(self.starts[number])
        flat = 0
        for size, i in zip(self.common, at):
            flat = flat * size + i
        row = broadcast_rows(tile.shape, self.common)[flat]
        width = tile.width
        if width > 1:
            lead, lane = divmod(row, tile.last)
            chunk, lane = divmod(lane, width)
            per_row = len(tile.widths)
            value = tile.vals[lead * per_row + chunk]
            text = self.ctx.em.extract(tile.element, value, tile.widths[chunk], lane)
        else:
            text = tile.vals[row]
        return to_i64(self.ctx, tile.dtype, text, 1)

    # --- single elements ---

    def load_element(self, pointer: str, inside: str | None) -> str:
        em = self.ctx.em
        if inside is not None:
            pointer = em.op(f"select i1 {inside}, ptr {pointer}, ptr {self.filler()}")
        value = em.op(f"load {self.memory}, ptr {pointer}, align {self.array.dtype.nbytes}")
        return em.op(f"icmp ne i8 {value}, 0") if self.array.dtype is boolean else value

    def store_element(self, pointer: str, inside: str | None, value: str) -> None:
        em = self.ctx.em
        if self.array.dtype is boolean:
            value = em.op(f"zext i1 {value} to i8")
        if inside is not None:
            pointer = em.op(f"select i1 {inside}, ptr {pointer}, ptr {self.dump()}")
        em.do(f"store {self.memory} {value}, ptr {pointer}, align {self.array.dtype.nbytes}")

    def element(self, row: tuple[str, str | None], i: str) -> tuple[str, str | None]:
        """Pointer and condition of element ``i`` of a row whose last axis is a window."""
        pointer, inside = row
        if not self.dims:
            return pointer, inside
        em = self.ctx.em
        number = self.dims[-1]
        pointer = em.gep(self.memory, pointer, self._window_offset(number, i))
        return pointer, em.both(inside, self._window_inside(number, i))

    def filler(self) -> str:
        """A constant vector of the fill value."""
        lanes = self.ctx.machine.lanes
        fill = {"false": "0", "true": "1"}.get(self.fill, self.fill)
        tag = fill.replace("-", "m")
        type = vec(self.memory, lanes)
        value = f"splat ({self.memory} {fill})"
        return self.ctx.em.module.constant(f"fill.{self.array.dtype.name}.{tag}", type, value)

    def dump(self) -> str:
        """Stack memory that takes what must not be written."""
        if self.ctx.dump is None:
            self.ctx.dump = self.ctx.em.alloca("i8", 8 * self.ctx.machine.lanes)
        return self.ctx.dump

    # --- chunks of a contiguous last axis ---

    def lanes_inside(self, at: int, width: int) -> tuple[str | None, str] | None:
        """First (None: 0) and one past the last valid lane (i64) of the chunk from ``at`` on."""
        number = self.dims[-1]
        check = self.ctx.plan.check(self.op, number, self.ctx.checked)
        if check is None:
            return None
        em = self.ctx.em
        key = ("lanes", self.op, at, width)
        found = em.recall(key)
        if found is None:
            start = self._index(number)
            size = self.array.shape[number]
            w = str(width)
            rest = em.call("llvm.ssub.sat.i64", "i64", [("i64", size), ("i64", start)])
            rest = em.call("llvm.ssub.sat.i64", "i64", [("i64", rest), ("i64", str(at))])
            high = em.call("llvm.smax.i64", "i64", [("i64", rest), ("i64", "0")])
            high = em.call("llvm.smin.i64", "i64", [("i64", high), ("i64", w)])
            low = None
            if not check.nonnegative:
                begin = em.call("llvm.sadd.sat.i64", "i64", [("i64", start), ("i64", str(at))])
                low = em.call("llvm.ssub.sat.i64", "i64", [("i64", "0"), ("i64", begin)])
                low = em.call("llvm.smax.i64", "i64", [("i64", low), ("i64", "0")])
                low = em.call("llvm.smin.i64", "i64", [("i64", low), ("i64", w)])
            found = (low, high)
            em.remember(key, found)
        return found  # type: ignore[return-value]

    def load_chunk(self, row: tuple[str, str | None], at: int, width: int) -> str:
        """``width`` contiguous elements from element ``at`` of a row."""
        em = self.ctx.em
        if width == 1:
            return self.load_element(*self.element(row, str(at)))
        pointer, inside = row
        pointer = em.gep(self.memory, pointer, str(at))
        type = vec(self.memory, width)
        if self.ctx.machine.has_avx512 and self.needs_check(self.dims[-1]):
            value = self._load_under(pointer, self._lane_mask(inside, at, width), width)
        elif (limits := self.lanes_inside(at, width)) is None:
            if inside is not None:
                pointer = em.op(f"select i1 {inside}, ptr {pointer}, ptr {self.filler()}")
            value = em.op(f"load {type}, ptr {pointer}, align {self.array.dtype.nbytes}")
        else:
            value = self._masked_load(pointer, self._narrowed(limits, inside), width)
        if self.array.dtype is boolean:
            value = em.op(f"icmp ne {type} {value}, zeroinitializer")
        return value

    def store_chunk(self, row: tuple[str, str | None], at: int, width: int, value: str) -> None:
        """Write ``width`` contiguous elements from element ``at`` of a row."""
        em = self.ctx.em
        if width == 1:
            pointer, inside = self.element(row, str(at))
            self.store_element(pointer, inside, value)
            return
        pointer, inside = row
        pointer = em.gep(self.memory, pointer, str(at))
        type = vec(self.memory, width)
        if self.array.dtype is boolean:
            value = em.op(f"zext {vec('i1', width)} {value} to {type}")
        if self.ctx.machine.has_avx512 and self.needs_check(self.dims[-1]):
            self._store_under(pointer, self._lane_mask(inside, at, width), width, value)
        elif (limits := self.lanes_inside(at, width)) is None:
            if inside is not None:
                pointer = em.op(f"select i1 {inside}, ptr {pointer}, ptr {self.dump()}")
            em.do(f"store {type} {value}, ptr {pointer}, align {self.array.dtype.nbytes}")
        else:
            self._masked_store(pointer, self._narrowed(limits, inside), width, value)

    def _narrowed(
        self, limits: tuple[str | None, str], inside: str | None
    ) -> tuple[str | None, str]:
        low, high = limits
        if inside is not None:
            high = self.ctx.em.op(f"select i1 {inside}, i64 {high}, i64 0")
        return low, high

    def _mask(self, limits: tuple[str | None, str], width: int) -> str:
        em = self.ctx.em
        key = ("mask", limits, width)
        found = em.recall(key)
        if found is None:
            type, low = vec("i32", width), limits[0]
            iota = em.iota(width, "i32")
            high = em.splat("i32", em.op(f"trunc i64 {limits[1]} to i32"), width)
            found = em.op(f"icmp ult {type} {iota}, {high}")
            if low is not None:
                first = em.splat("i32", em.op(f"trunc i64 {low} to i32"), width)
                after = em.op(f"icmp uge {type} {iota}, {first}")
                found = em.op(f"and {vec('i1', width)} {found}, {after}")
            em.remember(key, found)
        return str(found)

    def _lane_mask(self, inside: str | None, at: int, width: int) -> str:
        """Which lanes of a chunk lie inside: their numbers, unsigned, are below the size.

        That holds for negative starts and for sums that wrap around too.
        """
        em = self.ctx.em
        number = self.dims[-1]
        start, size = self._index(number), self.array.shape[number]
        key = ("lanes inside", inside, start, size, at, width)
        found = em.recall(key)
        if found is None:
            type = vec("i64", width)
            if inside is not None:
                size = self._size_if(inside, size)
            places = em.recall(("places", start, at, width))
            if places is None:
                first = em.splat("i64", start, width)
                places = em.op(f"add {type} {first}, {em.iota(width, start=at)}")
                em.remember(("places", start, at, width), places)
            found = em.op(f"icmp ult {type} {places}, {em.splat('i64', size, width)}")
            em.remember(key, found)
        return str(found)

    def _size_if(self, inside: str, size: str) -> str:
        """``size``, or 0 in a row that is outside."""
        em = self.ctx.em
        key = ("size if", inside, size)
        found = em.recall(key)
        if found is None:
            found = em.op(f"select i1 {inside}, i64 {size}, i64 0")
            em.remember(key, found)
        return str(found)

    def _has_masks(self) -> bool:
        """Whether the machine masks memory operations on this element type."""
        machine = self.ctx.machine
        return machine.has_avx512 or (machine.has_avx2 and self.array.dtype.bits >= 32)

    def _masked_load(self, pointer: str, limits: tuple[str | None, str], width: int) -> str:
        em = self.ctx.em
        type = vec(self.memory, width)
        fill = {"false": "0", "true": "1"}.get(self.fill, self.fill)
        if not self._has_masks():
            name = _load_helper(self.ctx, self.memory, width, self.array.dtype.nbytes)
            return em.call(
                name,
                type,
                [
                    ("ptr", pointer),
                    ("i64", limits[0] or "0"),
                    ("i64", limits[1]),
                    (self.memory, fill),
                ],
            )
        return self._load_under(pointer, self._mask(limits, width), width)

    def _load_under(self, pointer: str, mask: str, width: int) -> str:
        """A masked load; the other lanes take the fill value."""
        em = self.ctx.em
        type = vec(self.memory, width)
        fill = {"false": "0", "true": "1"}.get(self.fill, self.fill)
        passthru = f"splat ({self.memory} {fill})"
        return em.call(
            f"llvm.masked.load.{mangle(self.memory, width)}.p0",
            type,
            [
                ("ptr", pointer),
                ("i32", str(self.array.dtype.nbytes)),
                (vec("i1", width), mask),
                (type, passthru),
            ],
        )

    def _masked_store(
        self, pointer: str, limits: tuple[str | None, str], width: int, value: str
    ) -> None:
        em = self.ctx.em
        type = vec(self.memory, width)
        if not self._has_masks():
            name = _store_helper(self.ctx, self.memory, width, self.array.dtype.nbytes)
            em.do(
                f"call void @{name}(ptr {pointer}, i64 {limits[0] or '0'}, i64 {limits[1]}, "
                f"{type} {value})"
            )
            return
        self._store_under(pointer, self._mask(limits, width), width, value)

    def _store_under(self, pointer: str, mask: str, width: int, value: str) -> None:
        em = self.ctx.em
        type = vec(self.memory, width)
        name = em.module.declare(
            f"llvm.masked.store.{mangle(self.memory, width)}.p0",
            "void",
            [type, "ptr", "i32", vec("i1", width)],
        )
        em.do(
            f"call void {name}({type} {value}, ptr {pointer}, i32 {self.array.dtype.nbytes}, "
            f"{vec('i1', width)} {mask})"
        )

    # --- chunks whose elements lie anywhere ---

    def pointers(
        self, row: tuple[str, str | None], number_in_rows: int, at: int, width: int
    ) -> tuple[str, str | None]:
        """Pointers (a vector) and conditions of ``width`` elements from ``at`` of a row."""
        em = self.ctx.em
        pointer, inside = row
        type = vec("i64", width)
        offsets = ""
        valid: str | None = None
        if inside is not None:
            valid = em.splat("i1", inside, width)
        if self.dims[-1] >= 0:
            number = self.dims[-1]
            axis = self.axes[number]
            assert isinstance(axis, ir.Window)
            places = em.iota(width, start=at * axis.step, step=axis.step)
            stride = em.splat("i64", self.array.strides[number], width)
            offsets = em.op(f"mul {type} {places}, {stride}")
            if self.needs_check(number):
                start = em.splat("i64", self._index(number), width)
                key = em.call(
                    f"llvm.sadd.sat.{mangle('i64', width)}", type, [(type, start), (type, places)]
                )
                valid = self._both(valid, key, number, width)
        else:
            lead = number_in_rows
            for number in self.gathers:
                tile = self.ctx.tile(self.starts[number])
                chunk = self._gather_chunk(tile, lead, at, width)
                index = to_i64(self.ctx, tile.dtype, chunk, width)
                if self.needs_check(number):
                    valid = self._both(valid, index, number, width)
                stride = em.splat("i64", self.array.strides[number], width)
                step = em.op(f"mul {type} {index}, {stride}")
                offsets = em.op(f"add {type} {offsets}, {step}") if offsets else step
        return em.op(f"getelementptr {self.memory}, ptr {pointer}, {type} {offsets}"), valid

    def _both(self, valid: str | None, index: str, number: int, width: int) -> str:
        em = self.ctx.em
        size = em.splat("i64", self.array.shape[number], width)
        test = em.op(f"icmp ult {vec('i64', width)} {index}, {size}")
        return test if valid is None else em.op(f"and {vec('i1', width)} {valid}, {test}")

    def _gather_chunk(self, tile: Tile, row_number: int, at: int, width: int) -> str:
        """The index operands of one chunk: the gathered shape's last axis is the row."""
        lanes = self.ctx.machine.lanes
        vals = aligned(self.ctx.em, tile, self.common, lanes)
        per_row = len(chunk_widths(self.common[-1], lanes))
        lead = self._gather_row(row_number)
        del width
        return vals[lead * per_row + at // lanes]

    def _gather_row(self, row_number: int) -> int:
        """Which row of the gathered shape the result's row ``row_number`` reads."""
        lead = self.shape[:-1]
        index: list[int] = []
        for size in reversed(lead):
            row_number, at = divmod(row_number, size)
            index.insert(0, at)
        flat = 0
        for dim in list(self.gather_dims)[:-1]:
            flat = flat * self.shape[dim] + index[dim]
        return flat

    def gather_chunk(self, pointers: str, valid: str | None, width: int) -> str:
        em = self.ctx.em
        type, many = vec(self.memory, width), vec("ptr", width)
        if width == 1:
            return self.load_element(pointers, valid)
        if valid is not None:
            filler = em.splat("ptr", self.filler(), width)
            pointers = em.op(
                f"select {vec('i1', width)} {valid}, {many} {pointers}, {many} {filler}"
            )
        value = em.call(
            f"llvm.masked.gather.{mangle(self.memory, width)}.{mangle('ptr', width)}",
            type,
            [
                (many, pointers),
                ("i32", str(self.array.dtype.nbytes)),
                (vec("i1", width), "splat (i1 true)"),
                (type, "poison"),
            ],
        )
        if self.array.dtype is boolean:
            value = em.op(f"icmp ne {type} {value}, zeroinitializer")
        return value

    def scatter_chunk(self, pointers: str, valid: str | None, width: int, value: str) -> None:
        """Write lanes in ascending order, so the last write to one place wins."""
        em = self.ctx.em
        if width == 1:
            self.store_element(pointers, valid, value)
            return
        type, many = vec(self.memory, width), vec("ptr", width)
        if self.array.dtype is boolean:
            value = em.op(f"zext {vec('i1', width)} {value} to {type}")
        if valid is not None:
            dump = em.splat("ptr", self.dump(), width)
            pointers = em.op(f"select {vec('i1', width)} {valid}, {many} {pointers}, {many} {dump}")
        name = em.module.declare(
            f"llvm.masked.scatter.{mangle(self.memory, width)}.{mangle('ptr', width)}",
            "void",
            [type, many, "i32", vec("i1", width)],
        )
        em.do(
            f"call void {name}({type} {value}, {many} {pointers}, "
            f"i32 {self.array.dtype.nbytes}, {vec('i1', width)} splat (i1 true))"
        )


def to_i64(ctx: Context, dtype: DType, value: str, width: int) -> str:
    """An integer index as i64."""
    if dtype.bits == 64:
        return value
    if width == 1 and is_literal(value):
        n = int(value)
        return str(n if dtype.is_signed else n & ((1 << dtype.bits) - 1))
    op = "sext" if dtype.is_signed else "zext"
    return ctx.em.op(f"{op} {vec(reg_type(dtype), width)} {value} to {vec('i64', width)}")


def _load_helper(ctx: Context, memory: str, width: int, nbytes: int) -> str:
    """A function that reads lanes [low, high) one by one, for machines without masked loads."""
    name = f"tw.load.{memory}.{width}"
    type = vec(memory, width)
    if not ctx.em.module.has_helper(name):
        ctx.em.module.helper(
            name,
            f"""define internal {type} @{name}(
  ptr %p, i64 %low, i64 %high, {memory} %fill) noinline {{
entry:
  %buffer = alloca {type}, align 64
  %one = insertelement {type} poison, {memory} %fill, i64 0
  %all = shufflevector {type} %one, {type} poison, <{width} x i32> zeroinitializer
  store {type} %all, ptr %buffer, align 64
  %any = icmp slt i64 %low, %high
  br i1 %any, label %loop, label %done
loop:
  %i = phi i64 [ %low, %entry ], [ %next, %loop ]
  %from = getelementptr {memory}, ptr %p, i64 %i
  %x = load {memory}, ptr %from, align {nbytes}
  %to = getelementptr {memory}, ptr %buffer, i64 %i
  store {memory} %x, ptr %to, align {nbytes}
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %high
  br i1 %more, label %loop, label %done
done:
  %out = load {type}, ptr %buffer, align 64
  ret {type} %out
}}""",
        )
    return name


def _store_helper(ctx: Context, memory: str, width: int, nbytes: int) -> str:
    name = f"tw.store.{memory}.{width}"
    type = vec(memory, width)
    if not ctx.em.module.has_helper(name):
        ctx.em.module.helper(
            name,
            f"""define internal void @{name}(ptr %p, i64 %low, i64 %high, {type} %value) noinline {{
entry:
  %buffer = alloca {type}, align 64
  store {type} %value, ptr %buffer, align 64
  %any = icmp slt i64 %low, %high
  br i1 %any, label %loop, label %done
loop:
  %i = phi i64 [ %low, %entry ], [ %next, %loop ]
  %from = getelementptr {memory}, ptr %buffer, i64 %i
  %x = load {memory}, ptr %from, align {nbytes}
  %to = getelementptr {memory}, ptr %p, i64 %i
  store {memory} %x, ptr %to, align {nbytes}
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %high
  br i1 %more, label %loop, label %done
done:
  ret void
}}""",
        )
    return name

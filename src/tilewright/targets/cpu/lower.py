"""Tile IR -> LLVM assembly.

``lower(fn, machine)`` returns the text of one module with one exported function::

    void NAME(ptr args, i64 lo, i64 hi)

which runs the program instances ``lo <= p < hi`` of the linearised grid,
``p = pid0 + g0 * (pid1 + g1 * pid2)``. ``args`` points at 8-byte slots: ``g0, g1, g2``, then per
parameter in order: an array's pointer, sizes and strides (in elements), or a scalar in one slot.

Arrays may overlap: nothing is assumed about aliasing, and a tile's loads all happen before the
stores that follow them in the source, so in-place kernels mean what they say. (Measured on rms_norm
and on the packed matmul: promising LLVM distinct arrays changes nothing.)

:mod:`.lowering` describes how tiles become registers and how accesses are kept inside arrays.
"""

from __future__ import annotations

import re
from math import prod

from tilewright.lang import ir
from tilewright.targets.cpu.codegen import LIGHT
from tilewright.targets.cpu.lowering import bounds, control, layout
from tilewright.targets.cpu.lowering.context import ArrayRef, Context
from tilewright.targets.cpu.lowering.emit import Emitter, Module, reg_type
from tilewright.targets.cpu.lowering.tile import Tile
from tilewright.targets.cpu.machine import Machine

__all__ = ["lower", "symbol_name"]


def symbol_name(name: str) -> str:
    """``name`` with everything but letters, digits and underscores replaced."""
    clean = re.sub(r"\W", "_", name, flags=re.ASCII)
    return clean if clean and not clean[0].isdigit() else f"k_{clean}"


def lower(fn: ir.Function, machine: Machine) -> str:
    """LLVM assembly of ``fn`` for ``machine``.

    Raises :class:`tilewright.CompileError` for what the target cannot do (too much scratch memory,
    an op on a dtype it has no meaning for), with the user's line.
    """
    name = symbol_name(fn.name)
    module = Module()
    slots = _Slots(fn)
    small = _is_small(fn, machine)
    em = Emitter(module)
    begin, program, done = (em.label(hint) for hint in ("begin", "program", "done"))
    em.branch(em.op("icmp slt i64 %lo, %hi"), begin, done)
    em.start(begin)
    values = slots.load(em)
    grid = tuple(values[:3])
    arrays, scalars = slots.bind(values)
    asked = _asked_axes(fn)
    first = _split(em, grid, asked)
    before = em.block
    em.jump(program)

    # One program instance per trip.
    em.start(program)
    p, p_line = em.phi("i64", "%lo", before)
    pids = [em.phi("i64", value, before) for value in first]
    ids = (*(pid for pid, _ in pids), "0", "0", "0")[:3]
    plan = bounds.analyse(fn, em, arrays, scalars, ids, grid)
    bodies: list[str] = []

    def body(suffix: str, checked: bool) -> None:
        if small:
            em.enter()
            _body_here(fn, machine, em, slots, plan, ids, values, checked)
            em.leave()
            return
        symbol = f"{name}.{suffix}"
        bodies.append(_body(fn, machine, module, slots, plan, symbol, checked))
        arguments = [("i64", pid) for pid in ids] + list(zip(slots.types, values))
        em.do(f"call void @{symbol}({', '.join(f'{t} {v}' for t, v in arguments)})")

    if plan.condition is None:
        body("body", False)
    else:
        fast, slow, joined = (em.label(hint) for hint in ("inside", "edge", "next"))
        em.branch(plan.condition, fast, slow)
        for label, suffix in ((fast, "body"), (slow, "checked")):
            em.start(label)
            body(suffix, label is slow)
            em.jump(joined)
        em.start(joined)
    _advance(em, pids, grid, asked)
    after = em.op(f"add i64 {p}, 1")
    em.add_incoming(p_line, after, em.block)
    em.branch(em.op(f"icmp slt i64 {after}, %hi"), program, done)
    em.start(done)
    em.do("ret void")
    export = f"define void @{name}(ptr %args, i64 %lo, i64 %hi) {{\n{em.body()}\n}}"
    return (LIGHT if small else "") + module.text([export, *bodies])


_SMALL = 256  # vector operations


def _is_small(fn: ir.Function, machine: Machine) -> bool:
    """Whether ``fn`` is straight enough that LLVM's costlier passes find nothing to do.

    The kernels that are generated for a few fused elementwise ops or a reduction are: they are
    many, and each runs for microseconds. Of others the author says so (``kernel.light``).
    """
    if fn.light:
        return True
    if not fn.generated:
        return False
    total = 0
    for op in fn.body.walk():
        if op.name in ("dot", "dot4", "scan_with", "scratch"):
            return False
        for result in op.results:
            if isinstance(result.type, ir.TileType):
                shape = result.type.shape
                total += prod(shape[:-1]) * -(-shape[-1] // machine.lanes) if shape else 1
    return total <= _SMALL


class _Slots:
    """The argument block: LLVM types of its values, and what they mean."""

    def __init__(self, fn: ir.Function) -> None:
        self.fn = fn
        self.types = ["i64"] * 3
        for param in fn.params:
            if isinstance(param.type, ir.ArrayType):
                self.types += ["ptr", *["i64"] * (2 * param.type.ndim)]
            else:
                self.types.append(reg_type(param.type.dtype))

    def load(self, em: Emitter) -> list[str]:
        """Read every slot."""
        out: list[str] = []
        for number, type in enumerate(self.types):
            slot = em.gep("i64", "%args", str(number))
            if type == "i1":
                whole = em.op(f"load i64, ptr {slot}, align 8")
                out.append(em.op(f"icmp ne i64 {whole}, 0"))
            else:
                out.append(em.op(f"load {type}, ptr {slot}, align 8"))
        return out

    def bind(self, values: list[str]) -> tuple[dict[ir.Value, ArrayRef], dict[ir.Value, str]]:
        """Arrays (sizes and strides known at compile time as literals) and scalars."""
        arrays: dict[ir.Value, ArrayRef] = {}
        scalars: dict[ir.Value, str] = {}
        at = 3
        for param in self.fn.params:
            kind = param.type
            if not isinstance(kind, ir.ArrayType):
                scalars[param] = values[at]
                at += 1
                continue
            n = kind.ndim
            shape, strides = values[at + 1 : at + 1 + n], values[at + 1 + n : at + 1 + 2 * n]
            arrays[param] = ArrayRef(
                kind.dtype,
                values[at],
                tuple(v if s is None else str(s) for v, s in zip(shape, kind.shape)),
                tuple(v if s is None else str(s) for v, s in zip(strides, kind.strides)),
            )
            at += 1 + 2 * n
        return arrays, scalars


def _asked_axes(fn: ir.Function) -> int:
    """How many of the grid's axes ``fn`` tells apart: one past the last that it asks for."""
    axes = [op.attrs["axis"] for op in fn.body.walk() if op.name == "program_id"]
    return max(axes, default=-1) + 1


def _split(em: Emitter, grid: tuple[str, ...], asked: int) -> list[str]:
    """Program ids of instance ``%lo`` along the first ``asked`` axes."""
    ids: list[str] = []
    rest = "%lo"
    for axis in range(min(asked, 2)):
        divisor = em.call("llvm.umax.i64", "i64", [("i64", grid[axis]), ("i64", "1")])
        ids.append(em.op(f"urem i64 {rest}, {divisor}"))
        if axis + 1 < asked:
            rest = em.op(f"udiv i64 {rest}, {divisor}")
    return [*ids, rest] if asked == 3 else ids


def _advance(em: Emitter, pids: list[tuple[str, int]], grid: tuple[str, ...], asked: int) -> None:
    """The next instance's program ids: count up, carrying into the next axis."""
    step = "1"
    for axis, (pid, line) in enumerate(pids):
        up = em.op(f"add i64 {pid}, {step}")
        if axis < 2:
            full = em.op(f"icmp eq i64 {up}, {grid[axis]}")
            up = em.op(f"select i1 {full}, i64 0, i64 {up}")
            if axis + 1 < asked:
                step = em.op(f"zext i1 {full} to i64")
        em.add_incoming(line, up, em.block)


def _body(
    fn: ir.Function,
    machine: Machine,
    module: Module,
    slots: _Slots,
    plan: bounds.Plan,
    name: str,
    checked: bool,
) -> str:
    """One version of the program instance as an internal function."""
    em = Emitter(module)
    ids = ("%pid0", "%pid1", "%pid2")
    values = [f"%a{i}" for i in range(len(slots.types))]
    _body_here(fn, machine, em, slots, plan, ids, values, checked)
    em.do("ret void")
    params = [f"i64 {v}" for v in ids] + [f"{t} {v}" for t, v in zip(slots.types, values)]
    return f"define internal void @{name}({', '.join(params)}) noinline {{\n{em.body()}\n}}"


def _body_here(
    fn: ir.Function,
    machine: Machine,
    em: Emitter,
    slots: _Slots,
    plan: bounds.Plan,
    ids: tuple[str, ...],
    values: list[str],
    checked: bool,
) -> None:
    """One version of the program instance where ``em`` stands."""
    ctx = Context(
        em,
        machine,
        plan,
        checked,
        layout.scalar_tiles(fn),
        layout.deferred_loads(fn),
        program=ids,
        grid=tuple(values[:3]),
    )
    arrays, scalars = slots.bind(values)
    ctx.arrays.update(arrays)
    for param, operand in scalars.items():
        ctx.tiles[param] = Tile(param.dtype, (), 1, [operand])
    control.lower_block(ctx, fn.body)

"""Writing tile IR by hand, shortly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tilewright.dtypes import DType, boolean, i64
from tilewright.lang import ir

AT = ir.At()
GATHER = ir.Gather()
Index = Sequence[tuple[ir.Axis, ir.Value]]


def array(dtype: DType, ndim: int) -> ir.Value:
    return ir.Value(ir.ArrayType.of(dtype, ndim))


def strided(dtype: DType, ndim: int) -> ir.Value:
    """An array all of whose strides are known at run time only."""
    return ir.Value(ir.ArrayType(dtype, (None,) * ndim, (None,) * ndim))


def dense(dtype: DType, *shape: int) -> ir.Value:
    return ir.Value(ir.ArrayType.dense(dtype, shape))


def scalar(dtype: DType) -> ir.Value:
    return ir.Value(ir.TileType(dtype))


class Writer:
    """A kernel under construction."""

    def __init__(self, name: str, params: Sequence[ir.Value]) -> None:
        self.fn = ir.Function(name, list(params), ir.Block())
        self.b = ir.Builder(self.fn.body)

    def emit(self, name: str, operands: Sequence[ir.Value], *types: ir.Type, **attrs: Any) -> Any:
        op = self.b.emit(name, operands, types, **attrs)
        return op.results[0] if len(op.results) == 1 else op.results

    def const(self, value: float, dtype: DType = i64, shape: tuple[int, ...] = ()) -> ir.Value:
        return self.emit("constant", (), ir.TileType(dtype, shape), value=value)

    def pid(self, axis: int = 0) -> ir.Value:
        return self.emit("program_id", (), ir.TileType(i64), axis=axis)

    def dim(self, array: ir.Value, axis: int) -> ir.Value:
        return self.emit("dim", (array,), ir.TileType(i64), axis=axis)

    def unary(self, name: str, x: ir.Value, dtype: DType | None = None) -> ir.Value:
        dtype = boolean if name == "isnan" else dtype or x.dtype
        return self.emit(name, (x,), ir.TileType(dtype, x.shape))

    def cast(self, x: ir.Value, dtype: DType) -> ir.Value:
        return self.unary("cast", x, dtype)

    def binary(self, name: str, x: ir.Value, y: ir.Value) -> ir.Value:
        dtype = boolean if name in ir.COMPARE else x.dtype
        return self.emit(name, (x, y), ir.TileType(dtype, ir.broadcast_shapes(x.shape, y.shape)))

    def add(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.binary("add", x, y)

    def mul(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.binary("mul", x, y)

    def fma(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        shape = ir.broadcast_shapes(x.shape, y.shape, z.shape)
        return self.emit("fma", (x, y, z), ir.TileType(x.dtype, shape))

    def where(self, c: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
        shape = ir.broadcast_shapes(c.shape, x.shape, y.shape)
        return self.emit("where", (c, x, y), ir.TileType(x.dtype, shape))

    def expand(self, x: ir.Value, axis: int) -> ir.Value:
        shape = list(x.shape)
        shape.insert(axis, 1)
        return self.emit("expand_dims", (x,), ir.TileType(x.dtype, tuple(shape)), axis=axis)

    def reshape(self, x: ir.Value, *shape: int) -> ir.Value:
        return self.emit("reshape", (x,), ir.TileType(x.dtype, shape))

    def broadcast(self, x: ir.Value, *shape: int) -> ir.Value:
        return self.emit("broadcast", (x,), ir.TileType(x.dtype, shape))

    def transpose(self, x: ir.Value, *perm: int) -> ir.Value:
        shape = tuple(x.shape[p] for p in perm)
        return self.emit("transpose", (x,), ir.TileType(x.dtype, shape), perm=perm)

    def slice(self, x: ir.Value, starts: tuple[int, ...], sizes: tuple[int, ...]) -> ir.Value:
        return self.emit("slice", (x,), ir.TileType(x.dtype, sizes), starts=starts)

    def concat(self, axis: int, *parts: ir.Value) -> ir.Value:
        shape = list(parts[0].shape)
        shape[axis] = sum(p.shape[axis] for p in parts)
        return self.emit("concat", parts, ir.TileType(parts[0].dtype, tuple(shape)), axis=axis)

    def arange(self, start: int, stop: int) -> ir.Value:
        return self.emit("arange", (), ir.TileType(i64, (stop - start,)), start=start, stop=stop)

    def reduce(
        self, fn: str, x: ir.Value, axis: int | None, dtype: DType | None = None
    ) -> ir.Value:
        keep = [n for i, n in enumerate(x.shape) if axis is not None and i != axis % len(x.shape)]
        kind = ir.TileType(dtype or x.dtype, tuple(keep))
        return self.emit("reduce", (x,), kind, fn=fn, axis=axis)

    def scan(self, fn: str, x: ir.Value, axis: int, reverse: bool = False) -> ir.Value:
        return self.emit("scan", (x,), x.type, fn=fn, axis=axis, reverse=reverse)

    def dot(self, a: ir.Value, b: ir.Value, acc: ir.Value) -> ir.Value:
        return self.emit("dot", (a, b, acc), acc.type)

    def load(self, array: ir.Value, index: Index, **attrs: Any) -> ir.Value:
        axes = tuple(a for a, _ in index)
        at = [v for _, v in index]
        shape = ir.access_shape(axes, [v.shape for v in at])
        kind = ir.TileType(array.dtype, shape)
        return self.emit("load", (array, *at), kind, axes=axes, **attrs)

    def store(self, array: ir.Value, index: Index, value: ir.Value) -> None:
        axes = tuple(a for a, _ in index)
        self.b.emit("store", (array, *[v for _, v in index], value), (), axes=axes)

    def loop(
        self,
        lo: ir.Value | int,
        hi: ir.Value | int,
        step: ir.Value | int,
        init: Sequence[ir.Value],
        body: Callable[..., Sequence[ir.Value]],
    ) -> tuple[ir.Value, ...]:
        """``for iv in range(lo, hi, step)``; ``body(iv, *carried)`` returns the next carried."""
        bounds = [self.const(v) if isinstance(v, int) else v for v in (lo, hi, step)]
        args = [ir.Value(ir.TileType(i64)), *(ir.Value(v.type) for v in init)]
        block = self.block(args, lambda: body(*args))
        return self.b.emit("for", (*bounds, *init), [v.type for v in init], [block]).results

    def branch(
        self,
        condition: ir.Value,
        yes: Callable[[], Sequence[ir.Value]],
        no: Callable[[], Sequence[ir.Value]],
    ) -> tuple[ir.Value, ...]:
        blocks = [self.block([], yes), self.block([], no)]
        types = [v.type for v in blocks[0].ops[-1].operands]
        return self.b.emit("if", (condition,), types, blocks).results

    def block(self, args: list[ir.Value], body: Callable[[], Sequence[ir.Value]]) -> ir.Block:
        outer, block = self.b.block, ir.Block(args=args)
        self.b.block = block
        self.b.emit("yield", tuple(body()))
        self.b.block = outer
        return block


def window(length: int, start: ir.Value, step: int = 1) -> tuple[ir.Axis, ir.Value]:
    return ir.Window(length, step), start


def at(index: ir.Value) -> tuple[ir.Axis, ir.Value]:
    return AT, index


def gather(index: ir.Value) -> tuple[ir.Axis, ir.Value]:
    return GATHER, index

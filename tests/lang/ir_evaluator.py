"""Runs tile IR op by op in NumPy: an independent reading of the parser's control flow."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from tilewright.lang.evaluate import evaluate, full
from tilewright.lang.function import KernelFunction
from tilewright.lang.interpret import Interpreter, load, store
from tilewright.lang.ir import Block, Function, Op, Value


def run_ir(
    kernel: KernelFunction, grid: tuple[int, ...], args: tuple[Any, ...], **consts: Any
) -> None:
    """What ``kernel.interpret(grid)(*args, **consts)`` does, by way of the IR."""
    signature = kernel.signature(args, consts)
    function = kernel.ir(signature)
    values: list[Any] = []
    for p, value in zip(kernel.parameters, kernel.bind(args, consts)):
        if p.kind == "array":
            values.append(value.numpy() if hasattr(value, "numpy") else value)
        elif p.kind == "arrays":
            values.extend(value)
        elif p.kind == "scalar":
            assert p.dtype is not None
            values.append(full(value, p.dtype, ()))
    sizes = (*grid, 1, 1)[:3]
    with np.errstate(all="ignore"):
        for z in range(sizes[2]):
            for y in range(sizes[1]):
                for x in range(sizes[0]):
                    _Run((x, y, z), sizes).function(function, values)


class _Run:
    def __init__(self, program: tuple[int, int, int], grid: tuple[int, ...]) -> None:
        self.program = program
        self.grid = grid
        self.env: dict[Value, Any] = {}

    def function(self, fn: Function, values: list[Any]) -> None:
        self.env.update(zip(fn.params, values))
        self.block(fn.body)

    def block(self, block: Block) -> list[Any]:
        for op in block.ops:
            if op.name == "yield":
                return [self.env[v] for v in op.operands]
            self.op(op)
        return []

    def op(self, op: Op) -> None:
        args = [self.env[v] for v in op.operands]
        if op.name == "for":
            low, high, step = (int(a) for a in args[:3])
            carried = args[3:]
            for i in range(low, high, step):
                self.env.update(zip(op.blocks[0].args, [np.int64(i), *carried]))
                carried = self.block(op.blocks[0])
            self.env.update(zip(op.results, carried))
        elif op.name == "if":
            self.env.update(zip(op.results, self.block(op.blocks[0 if bool(args[0]) else 1])))
        elif op.name == "scan_with":
            self.scan(op, args)
        elif op.name == "store":
            array, *index, value = args
            store(array, op.operands[0].dtype, op.attrs["axes"], index, value)
        else:
            self.env[op.result] = self.value(op, args)

    def value(self, op: Op, args: list[Any]) -> Any:
        if op.name == "load":
            return load(args[0], op.operands[0].dtype, op.attrs["axes"], args[1:], op.attrs["fill"])
        if op.name == "dim":
            return np.int64(args[0].shape[op.attrs["axis"]])
        if op.name == "program_id":
            return np.int64(self.program[op.attrs["axis"]])
        if op.name == "num_programs":
            return np.int64(self.grid[op.attrs["axis"]])
        if op.name == "scratch":
            return Interpreter((1, 1, 1)).scratch(op.result.type).data  # type: ignore[arg-type]
        args = [np.asarray(a) for a in args]
        out = evaluate(op.name, args, [v.dtype for v in op.operands], op.result.type, op.attrs)
        assert np.shape(out) == op.result.shape, op.name
        return out

    def scan(self, op: Op, args: list[Any]) -> None:
        axis, reverse = op.attrs["axis"], op.attrs["reverse"]
        rows = [np.moveaxis(a, axis, 0) for a in args]
        outs = [np.array(r) for r in rows]
        flat = [o.reshape(len(o), -1) for o in outs]
        order = range(len(rows[0]))
        order = order[::-1] if reverse else order
        for column in range(flat[0].shape[1]):
            for previous, i in pairwise(order):
                pair = [np.asarray(f[k, column]) for k in (previous, i) for f in flat]
                self.env.update(zip(op.blocks[0].args, pair))
                for f, v in zip(flat, self.block(op.blocks[0])):
                    f[i, column] = v
        for result, out in zip(op.results, outs):
            self.env[result] = np.moveaxis(out, 0, axis)

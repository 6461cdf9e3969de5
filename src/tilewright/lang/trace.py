"""The parser's engine: ops become IR, and index arithmetic is compared symbolically."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType
from tilewright.errors import KernelError
from tilewright.lang.array import Array
from tilewright.lang.ir import ArrayType, Block, Builder, Op, TileType, Value
from tilewright.lang.tile import Tile, as_tile, describe

__all__ = ["Tracer"]

_LINEAR: Final = frozenset(("add", "sub", "mul", "neg", "constant"))
_OPAQUE: Final = frozenset(("for", "if", "scan_with", "scratch"))

Key = tuple[Any, ...]
Affine = tuple[int, dict[Key, int]]


class Tracer:
    """Appends ops to the current block (:class:`tilewright.lang.engine.Engine`)."""

    def __init__(self, body: Block) -> None:
        self.builder = Builder(body)
        self.depth = 0  # of inlined calls
        self._constants: dict[tuple[Any, ...], Tile] = {}
        self._constant_ops: list[Op] = []
        self._epoch = 0  # counts stores: two loads are equal only between the same stores
        self._epochs: dict[Value, int] = {}

    # --- the engine's protocol ---

    def emit(
        self,
        name: str,
        operands: Sequence[Tile | Array],
        results: Sequence[TileType],
        **attrs: Any,
    ) -> tuple[Tile, ...]:
        op = self.builder.emit(name, [v.data for v in operands], results, **attrs)
        if name == "load":
            self._epochs[op.result] = self._epoch
        elif name == "store":
            self._epoch += 1
        return tuple(Tile(v, t.dtype, t.shape) for v, t in zip(op.results, results))

    def constant(self, value: bool | int | float, dtype: DType, shape: tuple[int, ...]) -> Tile:
        key = (repr(value), dtype, shape)  # repr: -0.0 is not 0.0, and 1 is not 1.0
        tile = self._constants.get(key)
        if tile is None:
            result = Value(TileType(dtype, shape))
            op = result.op = Op("constant", (), {"value": value}, (result,))
            self._constant_ops.append(op)
            tile = self._constants[key] = Tile(result, dtype, shape)
        return tile

    def complete(self, body: Block) -> None:
        """Put the constants in front of ``body``: each is defined once, for all blocks."""
        body.ops[:0] = self._constant_ops

    def scratch(self, array: ArrayType) -> Array:
        return Array(self.builder.emit("scratch", (), (array,)).result, array, "scratch")

    def scan_with(
        self, fn: Callable[..., Any], tiles: Sequence[Tile], axis: int, reverse: bool
    ) -> tuple[Tile, ...]:
        elements = [t.dtype for t in tiles]
        block = Block([Value(TileType(d)) for d in (*elements, *elements)])
        with self.inside(block):
            out = fn(*(Tile(v, v.dtype, ()) for v in block.args))
            results = list(out) if isinstance(out, (tuple, list)) else [out]
            if len(results) != len(tiles):
                raise KernelError(
                    f"the combining function returns {len(results)} values, wanted {len(tiles)}"
                )
            ends = [v if isinstance(v, Tile) else as_tile(v, d) for v, d in zip(results, elements)]
            for end, dtype in zip(ends, elements):
                if end.type != TileType(dtype):
                    raise KernelError(
                        f"the combining function returns {describe(end)}, wanted a {dtype} scalar"
                    )
            self.finish(ends)
        self._epoch += 1
        op = self.builder.emit(
            "scan_with",
            [t.data for t in tiles],
            [t.type for t in tiles],
            (block,),
            axis=axis,
            reverse=reverse,
        )
        return tuple(Tile(v, t.dtype, t.shape) for v, t in zip(op.results, tiles))

    def truth(self, tile: Tile) -> bool:
        raise KernelError(
            f"{describe(tile)} is known only at run time, a compile-time value is wanted here"
        )

    def steps(self, start: Any, stop: Any, step: Any) -> Iterator[Tile]:
        raise KernelError("range(...) stands in a `for` statement; elsewhere use unroll(...)")

    def reload(self, tile: Tile, fill: bool | int | float) -> Tile:
        ops = self.builder.block.ops
        if not ops or ops[-1] is not tile.data.op:
            raise KernelError("load wants its subscript written in place: load(x[...], fill=...)")
        dtype = tile.dtype
        ops[-1].attrs["fill"] = float(fill) if dtype.is_float else fill
        return tile

    def prefetch(self, tile: Tile, write: bool, level: int) -> None:
        ops = self.builder.block.ops
        if not ops or ops[-1] is not tile.data.op:
            raise KernelError("prefetch wants its subscript written in place: prefetch(x[...])")
        ops[-1].attrs |= {"prefetch": "write" if write else "read", "level": level}

    def distance(self, lower: Any, upper: Any) -> int | None:
        a, b = self._affine_of(lower), self._affine_of(upper)
        if a[1] != b[1]:
            return None
        return b[0] - a[0]

    # --- blocks ---

    @contextmanager
    def inside(self, block: Block) -> Iterator[None]:
        """Emit into ``block``."""
        outer = self.builder.block
        self.builder.block = block
        try:
            yield
        finally:
            self.builder.block = outer

    def finish(self, values: Sequence[Tile]) -> None:
        """End the current block."""
        self.builder.emit("yield", [v.data for v in values])

    def mark(self) -> int:
        """The current position, for :meth:`forget`."""
        return len(self.builder.block.ops)

    def forget(self, mark: int) -> None:
        """Drop the pure ops emitted since ``mark``: their results are not used."""
        ops = self.builder.block.ops
        if all(op.name not in ("store", "for", "if") for op in ops[mark:]):
            del ops[mark:]

    # --- symbolic comparison of index expressions ---

    def _affine_of(self, x: Any) -> Affine:
        if isinstance(x, Tile):
            return self._affine(x.data)
        if isinstance(x, (int, np.integer)):
            return int(x), {}
        raise KernelError(f"a slice wants integers, got {describe(x)}")

    def _affine(self, value: Value) -> Affine:
        """``value`` as a constant plus a sum of multiples of opaque values.

        Arithmetic in a narrower dtype counts as exact: a window whose end wraps around has the
        length that its source says.
        """
        op = value.op
        scalar = isinstance(value.type, TileType) and not value.type.shape
        if op is None or op.name not in _LINEAR or not scalar or not value.dtype.is_integer:
            return 0, {self._key(value): 1}
        if op.name == "constant":
            return int(op.attrs["value"]), {}
        offset, terms = self._affine(op.operands[0])
        if op.name == "neg":
            return -offset, {k: -c for k, c in terms.items()}
        offset2, terms2 = self._affine(op.operands[1])
        if op.name == "mul":
            if not terms2:
                return offset * offset2, {k: c * offset2 for k, c in terms.items() if c * offset2}
            if not terms:
                return offset * offset2, {k: c * offset for k, c in terms2.items() if c * offset}
            product = ("mul", *sorted((self._frozen(terms, offset), self._frozen(terms2, offset2))))
            return 0, {product: 1}
        sign = 1 if op.name == "add" else -1
        out = dict(terms)
        for k, c in terms2.items():
            out[k] = out.get(k, 0) + sign * c
        return offset + sign * offset2, {k: c for k, c in out.items() if c}

    @staticmethod
    def _frozen(terms: dict[Key, int], offset: int) -> str:
        return repr((offset, sorted((repr(k), c) for k, c in terms.items())))

    def _key(self, value: Value) -> Key:
        """Equal for values that are computed alike."""
        op = value.op
        if op is None or op.name in _OPAQUE:
            return ("value", id(value))
        parts: list[Any] = [op.name, repr(op.attrs), str(value.type)]
        if op.name == "load":
            parts.append(self._epochs.get(value, id(value)))
        for operand in op.operands:
            offset, terms = self._affine(operand)
            parts.append(self._frozen(terms, offset))
        return tuple(parts)

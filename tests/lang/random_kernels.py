"""Random small kernels, for comparing a target with the interpreter.

:func:`random_case` writes the source of a kernel from a seed: windows at odd offsets, gathers,
elementwise chains over many dtypes, reductions, reshapes, loops with carried tiles, runtime
conditionals, scratch. Every intermediate tile is stored, in a row of its own per program::

    case = random_case(seed)
    want, got = case.arguments(), case.arguments()
    case.kernel.interpret(case.grid)(*want)
    launch(case.kernel, case.grid, got)
    case.check(want, got)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright import lang
from tilewright.lang import KernelFunction, bf16_array
from tilewright.lang.ir import broadcast_shapes

FLOATS = ("f32", "f16", "bf16", "f64")
INTEGERS = ("i32", "i8", "i16", "i64", "u8", "u16", "u32", "u64")
DTYPES = FLOATS + INTEGERS

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A kernel with its arguments: inputs per dtype, then the outputs."""

    seed: int
    source: str
    kernel: KernelFunction
    grid: tuple[int, ...]
    inputs: tuple[Any, ...]
    outputs: tuple[str, ...]

    def arguments(self) -> tuple[Any, ...]:
        """Fresh arguments; the outputs are zero."""
        out: list[Any] = []
        for value in self.inputs:
            if isinstance(value, np.ndarray):
                out.append(value.copy())
            elif hasattr(value, "bits"):
                out.append(bf16_array(value.bits.copy()))
            else:
                out.append(value)
        return tuple(out)

    def check(self, want: tuple[Any, ...], got: tuple[Any, ...]) -> None:
        """Assert that two runs agree: bits for exact ops, a tolerance for sums and functions.

        Which of -0.0 and +0.0 ``min`` and ``max`` give is unspecified, so zeros compare equal.
        """
        for name, a, b in zip(self.outputs, want[-len(self.outputs) :], got[-len(self.outputs) :]):
            x, y = _values(a), _values(b)
            if name == "approximate":
                np.testing.assert_allclose(y, x, rtol=2e-5, atol=2e-5, err_msg=self.source)
            else:
                same = (x == y) | ((x != x) & (y != y))
                if not same.all():
                    place = tuple(int(i[0]) for i in np.nonzero(~same))
                    raise AssertionError(
                        f"seed {self.seed}: {name}{place} is {y[place]}, wanted {x[place]}\n"
                        f"{self.source}"
                    )


def _values(array: Any) -> np.ndarray:
    from tilewright.dtypes import to_float32

    return to_float32(array.bits) if hasattr(array, "bits") else array


@dataclass(frozen=True)
class _Tile:
    name: str
    dtype: str
    shape: Shape


class _Writer:
    """Writes statements whose types it keeps track of."""

    def __init__(self, rng: np.random.Generator, dtypes: tuple[str, ...]) -> None:
        self.rng = rng
        self.dtypes = dtypes
        self.lines: list[str] = []
        self.indent = "    "
        self.count = 0
        self.tiles: list[_Tile] = []
        self.columns: dict[str, int] = {}

    def pick(self, items: Any) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def line(self, text: str) -> None:
        self.lines.append(self.indent + text)

    def fresh(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def let(self, expression: str, dtype: str, shape: Shape) -> _Tile:
        tile = _Tile(self.fresh(), dtype, shape)
        self.line(f"{tile.name} = {expression}")
        self.tiles.append(tile)
        return tile

    def shape(self) -> Shape:
        rank = self.pick((0, 1, 1, 1, 2, 2, 3))
        sizes = (1, 2, 3, 4, 5, 8, 16, 17, 24, 33) if rank < 2 else (1, 2, 3, 4, 5, 8, 16)
        return tuple(self.pick(sizes) for _ in range(rank))[:rank] if rank < 3 else (2, 3, 4)

    def some(self, *kinds: str, small: bool = False) -> _Tile:
        """A tile so far (of one of ``kinds``, as spelled in dtype names' first letter)."""
        fits = [
            t
            for t in self.tiles
            if (not kinds or t.dtype[0] in kinds)
            and t.dtype != "bool"
            and (not small or len(t.shape) < 3)
        ]
        return self.pick(fits) if fits else self.load(kinds=kinds)

    # --- statements ---

    def load(self, kinds: tuple[str, ...] = ()) -> _Tile:
        names = [
            d for d in self.dtypes if not kinds or d[0] in kinds or (d[0] == "b" and "f" in kinds)
        ]
        dtype = self.pick(names or ["f32"])
        shape = self.shape()
        if len(shape) > 2:
            shape = shape[:2]
        start = self.pick(("i", "i * 3 - 2", "n", "n - 7", "-3", "5", "i * 8", "ids[i]"))
        array = f"in_{dtype}"
        step = self.pick(("", "", "", ":2"))
        times = 2 if step else 1
        if not shape:
            return self.let(f"{array}[{self.pick(('i', 'n', '2'))}, {start}]", dtype, shape)
        window = f"{start} : {start} + {shape[-1] * times}{step}"
        if len(shape) == 1:
            if self.rng.random() < 0.25:
                ids = f"ids[{start} : {start} + {shape[0]}]"
                expression = self.pick((f"{array}[i, {ids}]", f"{array}[{ids}, 3]"))
                return self.let(expression, dtype, shape)
            row = self.pick(("i", "n", "i - 1"))
            if self.rng.random() < 0.2:
                return self.let(f"load({array}[{row}, {window}], fill=1)", dtype, shape)
            return self.let(f"{array}[{row}, {window}]", dtype, shape)
        rows = self.pick((f"i : i + {shape[0]}", f"0 : {shape[0]}", f"n - 2 : n - 2 + {shape[0]}"))
        if self.rng.random() < 0.2:
            rows = f"ids[i : i + {shape[0]}]"
        return self.let(f"{array}[{rows}, {window}]", dtype, shape)

    def partner(self, t: _Tile) -> tuple[str, Shape]:
        """Something that broadcasts against ``t``, in its dtype."""
        choices: list[tuple[str, Shape]] = []
        for other in self.tiles:
            try:
                shape = broadcast_shapes(t.shape, other.shape)
            except ValueError:
                continue
            if np.prod(shape, dtype=int) > 300 or other.dtype == "bool":
                continue
            name = other.name if other.dtype == t.dtype else f"{other.name}.to({t.dtype})"
            choices.append((name, shape))
            if len(other.shape) == 1 and len(t.shape) == 1 and t.shape[0] * other.shape[0] <= 256:
                column = f"{name}[:, None]" if name == other.name else f"({name})[:, None]"
                choices.append((column, (other.shape[0], t.shape[0])))
        if not choices or self.rng.random() < 0.2:
            return str(self.pick((1, 2, 3, 7))), t.shape
        return self.pick(choices)

    def binary(self) -> _Tile:
        t = self.some()
        other, shape = self.partner(t)
        floating = t.dtype[0] in "fb"
        ops = ["+", "-", "*", "minimum", "maximum"]
        ops += ["/"] if floating else ["//", "%", "&", "|", "^", "<<", ">>"]
        op = self.pick(ops)
        left, right = (t.name, other) if self.rng.random() < 0.7 else (other, t.name)
        text = f"{op}({left}, {right})" if op.isidentifier() else f"{left} {op} {right}"
        return self.let(text, t.dtype, shape)

    def unary(self) -> _Tile:
        t = self.some()
        if t.dtype[0] in "fb":
            fn = self.pick(
                ("-{}", "abs({})", "floor({})", "ceil({})", "round({})", "trunc({})", "sqrt({})")
            )
        else:
            fn = self.pick(("-{}", "abs({})", "~{}", "popcount({})"))
        return self.let(fn.format(t.name), t.dtype, t.shape)

    def fma(self) -> _Tile:
        t = self.some("f", "i")
        a, shape = self.partner(t)
        b, shape2 = self.partner(t)
        try:
            shape = broadcast_shapes(shape, shape2)
        except ValueError:
            b = t.name
        if t.dtype in ("f16", "bf16") or np.prod(shape, dtype=int) > 300:
            return self.binary()
        return self.let(f"fma({t.name}, {a}, {b})", t.dtype, shape)

    def where(self) -> _Tile:
        t = self.some()
        other, shape = self.partner(t)
        op = self.pick(("<", "<=", ">", ">=", "==", "!="))
        mask = f"({t.name} {op} {other})"
        if self.rng.random() < 0.3:
            mask = f"({mask} & ~({t.name} == 1))"
        return self.let(f"where({mask}, {t.name}, {other})", t.dtype, shape)

    def cast(self) -> _Tile:
        t = self.some()
        target = self.pick(self.dtypes)
        return self.let(f"{t.name}.to({target})", target, t.shape)

    def bitcast(self) -> _Tile:
        t = self.some("i", "u")
        target = ("u" if t.dtype[0] == "i" else "i") + t.dtype[1:]
        if target not in self.dtypes:
            return self.cast()
        return self.let(f"bitcast({t.name}, {target})", target, t.shape)

    def movement(self) -> _Tile:
        t = self.some()
        if not t.shape:
            n = self.pick((1, 3, 8))
            return self.let(f"broadcast_to({t.name}, ({n},))", t.dtype, (n,))
        kind = self.pick(("transpose", "reshape", "slice", "concat", "none", "broadcast"))
        n = t.shape[-1]
        if kind == "transpose":
            return self.let(f"{t.name}.T", t.dtype, t.shape[::-1])
        if kind == "reshape":
            return self.let(f"{t.name}.reshape(-1)", t.dtype, (int(np.prod(t.shape)),))
        if kind == "slice":
            start = self.integer(0, n - 1)
            stop = self.integer(start + 1, n)
            return self.let(
                f"{t.name}[..., {start}:{stop}]", t.dtype, (*t.shape[:-1], stop - start)
            )
        if kind == "concat" and np.prod(t.shape) <= 64:
            axis = self.integer(0, len(t.shape) - 1)
            shape = list(t.shape)
            shape[axis] *= 2
            return self.let(f"concatenate(({t.name}, {t.name}), {axis})", t.dtype, tuple(shape))
        if kind == "broadcast" and np.prod(t.shape) <= 64:
            return self.let(f"broadcast_to({t.name}, (3, *{t.shape}))", t.dtype, (3, *t.shape))
        if len(t.shape) > 2:
            return self.let(f"{t.name}[1]", t.dtype, t.shape[1:])
        return self.let(f"{t.name}[:, None]", t.dtype, (t.shape[0], 1, *t.shape[1:]))

    def reduce(self) -> _Tile:
        t = self.some()
        axis = self.pick((None, *range(len(t.shape)))) if t.shape else None
        shape = () if axis is None else t.shape[:axis] + t.shape[axis + 1 :]
        fn = self.pick(("max", "min", "sum", "argmax"))
        if t.dtype[0] in "fb" and fn == "sum":
            self.approximate(f"sum({self.tame(t)}, axis={axis})", shape)
            fn = "max"
        if not t.shape:
            fn = "max"
        dtype = t.dtype
        if fn == "sum" and dtype in ("i8", "i16"):
            dtype = "i32"
        elif fn == "sum" and dtype in ("u8", "u16"):
            dtype = "u32"
        elif fn == "argmax":
            dtype = "i64"
        return self.let(f"{fn}({t.name}, axis={axis})", dtype, shape)

    def scan(self) -> _Tile:
        t = self.some("i", "u")
        if not t.shape:
            return self.binary()
        axis = self.integer(0, len(t.shape) - 1)
        wide = {"i8": "i32", "i16": "i32", "u8": "u32", "u16": "u32"}.get(t.dtype, t.dtype)
        if self.rng.random() < 0.3:
            text = f"associative_scan(lambda a, b: maximum(a, b), {t.name}, {axis})"
            return self.let(text, t.dtype, t.shape)
        return self.let(f"cumsum({t.name}, {axis})", wide, t.shape)

    def dot(self) -> _Tile:
        fits = [t for t in self.tiles if t.dtype == "f32" and len(t.shape) == 2]
        if not fits:
            return self.load(kinds=("f",))
        t = self.pick(fits)
        n = self.pick((1, 4, 16, 19))
        return self.let(
            f"dot({t.name}, in_f32[1 : {1 + t.shape[1]}, 2 : {2 + n}])", "f32", (t.shape[0], n)
        )

    def tame(self, t: _Tile) -> str:
        """``t`` as moderate f32 values: no infinities, no NaN, no cancellation to speak of."""
        return f"where(abs({t.name}.to(f32)) < 100, {t.name}.to(f32), 1.0)"

    def function(self) -> None:
        """A function that targets compute to an accuracy, not to the bit."""
        t = self.some("f", "i", "u")
        name = self.pick(
            ("exp", "exp2", "log", "log2", "sin", "cos", "tanh", "erf", "rsqrt", "sigmoid")
        )
        x = self.tame(t)
        if name in ("log", "log2", "rsqrt"):
            x = f"(abs({x}) + 0.5)"
        elif name in ("exp", "exp2"):
            x = f"minimum({x}, 3.0)"
        self.approximate(f"{name}({x})", t.shape)

    def approximate(self, expression: str, shape: Shape) -> None:
        self.keep("approximate", expression, shape)

    def keep(self, array: str, expression: str, shape: Shape) -> None:
        """Store a value in this program's row of an output."""
        n = int(np.prod(shape, dtype=int))
        at = self.columns.get(array, 0)
        self.columns[array] = at + n
        if shape:
            self.line(f"{array}[i, {at} : {at + n}] = reshape({expression}, -1)")
        else:
            self.line(f"{array}[i, {at}] = {expression}")

    def loop(self) -> _Tile:
        t = self.some(small=True)
        name = self.fresh()
        self.line(f"{name} = {t.name}")
        bounds = self.pick(("3", "n", "1, 9, 3", "n, 2", "i, i + 2"))
        self.line(f"for k{name} in range({bounds}):")
        outer, self.indent = self.tiles, self.indent + "    "
        self.tiles = [*outer, _Tile(name, t.dtype, t.shape)]
        for _ in range(self.integer(1, 3)):
            self.statement(nested=True)
        same = [x for x in self.tiles if x.dtype == t.dtype and x.shape in (t.shape, ())]
        other = self.pick(same).name
        op = self.pick(("{} + {}", "maximum({}, {})", "{} - {} * k"))
        text = op.format(name, other).replace(" * k", f" * k{name}.to({t.dtype})")
        self.line(f"{name} = {text}")
        self.tiles, self.indent = outer, self.indent[:-4]
        tile = _Tile(name, t.dtype, t.shape)
        self.tiles.append(tile)
        return tile

    def conditional(self) -> _Tile:
        t = self.some(small=True)
        name = self.fresh()
        self.line(f"if {self.pick(('i > 0', 'n > 4', 'i == n', 'n'))}:")
        outer, self.indent = self.tiles, self.indent + "    "
        self.tiles = list(outer)
        self.statement(nested=True)
        same = [x for x in self.tiles if x.dtype == t.dtype and x.shape in (t.shape, ())]
        self.line(f"{name} = {t.name} + {self.pick(same).name}")
        self.tiles, self.indent = outer, self.indent[:-4]
        self.line("else:")
        self.line(f"    {name} = {t.name}")
        tile = _Tile(name, t.dtype, t.shape)
        self.tiles.append(tile)
        return tile

    def scratch(self) -> _Tile:
        t = self.some()
        if len(t.shape) != 1:
            return self.movement()
        n = t.shape[0]
        name = f"s{self.fresh()}"
        self.line(f"{name} = scratch(({n + 5},), {t.dtype})")
        self.line(f"{name}[0:{n + 5}] = 3")
        self.line(f"{name}[2 : {2 + n}] = {t.name}")
        if self.rng.random() < 0.5:
            self.line(f"{name}[arange({n}) * 2 % 5] = {t.name} + 1")
        start = self.integer(-2, 6)
        return self.let(f"{name}[{start} : {start + n}]", t.dtype, (n,))

    def statement(self, nested: bool = False) -> None:
        kinds = [self.binary] * 5 + [self.unary] * 2 + [self.load] * 3 + [self.where, self.fma]
        kinds += (
            [self.cast] * 2 + [self.movement] * 3 + [self.reduce, self.scan, self.bitcast, self.dot]
        )
        if not nested:
            kinds += [self.function, self.loop, self.loop, self.conditional, self.scratch]
        before = len(self.tiles)
        while len(self.tiles) == before:
            self.pick(kinds)()
            if not nested and len(self.lines) > 200:
                return


def random_case(seed: int, dtypes: tuple[str, ...] = DTYPES, statements: int = 12) -> Case:
    """The kernel that ``seed`` stands for, over ``dtypes`` (f32 and i64 take part in any case)."""
    rng = np.random.default_rng(seed)
    dtypes = tuple(dict.fromkeys((*dtypes, "f32", "i64")))
    writer = _Writer(rng, dtypes)
    writer.load()
    writer.load()
    while len(writer.tiles) < statements:
        writer.statement()
    for tile in writer.tiles:
        if np.prod(tile.shape, dtype=int) <= 512:
            writer.keep(f"out_{tile.dtype}", tile.name, tile.shape)
    programs = int(rng.integers(1, 4))
    outputs = tuple(sorted(writer.columns))
    parameters = [f"in_{d}: Array" for d in dtypes] + ["ids: Array", "n: i64"]
    parameters += [f"{name}: Array" for name in outputs]
    source = f"def kernel({', '.join(parameters)}):\n    i = program_id(0)\n"
    source += "\n".join(writer.lines) + "\n"
    names = {name: getattr(lang, name) for name in lang.__all__}
    kernel = KernelFunction.from_source(source, "kernel", names)
    inputs: list[Any] = [_input(rng, d) for d in dtypes]
    inputs += [rng.integers(-3, 9, 40).astype(np.int32), int(rng.integers(0, 7))]
    for name in outputs:
        width = writer.columns[name]
        dtype = "f32" if name == "approximate" else name.removeprefix("out_")
        if dtype == "bf16":
            inputs.append(bf16_array(np.zeros((programs, width), np.uint16)))
        else:
            inputs.append(np.zeros((programs, width), _numpy(dtype)))
    return Case(seed, source, kernel, (programs,), tuple(inputs), outputs)


def _numpy(dtype: str) -> np.dtype:
    from tilewright.dtypes import by_name

    return by_name(dtype).storage


def _input(rng: np.random.Generator, dtype: str) -> Any:
    rows, columns = 7, int(rng.integers(20, 45))
    if dtype in FLOATS:
        values = rng.standard_normal((rows, columns)) * 3
        values[rng.random(values.shape) < 0.2] = np.round(values[0, 0])
        if dtype == "bf16":
            from tilewright.dtypes import from_float32

            return bf16_array(from_float32(values.astype(np.float32)))
        return values.astype(_numpy(dtype))
    info = np.iinfo(_numpy(dtype))
    wide = rng.integers(info.min, info.max, (rows, columns), _numpy(dtype), endpoint=True)
    small = rng.integers(0, 9, (rows, columns)).astype(_numpy(dtype))
    return np.where(rng.random((rows, columns)) < 0.5, wide, small)

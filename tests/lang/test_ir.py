"""The IR's types, printer and verifier."""

from __future__ import annotations

from typing import Any

import pytest

from tilewright import lang
from tilewright.dtypes import DType, bf16, boolean, f16, f32, i8, i32, i64, u32
from tilewright.errors import KernelError
from tilewright.lang import KernelFunction
from tilewright.lang.ir import (
    BINARY,
    COMPARE,
    UNARY,
    ArrayType,
    At,
    Block,
    Builder,
    Function,
    Gather,
    Location,
    TileType,
    Value,
    Window,
    broadcast_shapes,
    verify,
)

NAMES = {name: getattr(lang, name) for name in lang.__all__}


def test_printer():
    text = """
def kernel(x: Array, y: Array, n: i64, B: Const):
    i = program_id(0)
    total = zeros((B,), f32)
    for j in range(0, n, B):
        v = load(x[i, j : j + B], fill=-inf)
        if i > 0:
            v = v * 2.0
        total = maximum(total, v)
    y[i, 0 : 2 * B : 2] = total
    y[i, arange(4)] = 0.5
"""
    kernel = KernelFunction.from_source(text, "kernel", NAMES)
    signature = kernel.signature((ArrayType.of(f32, 2), ArrayType.dense(f16, (3, 8)), 1, 4))
    assert str(kernel.ir(signature)) == (
        """\
kernel kernel(%x: array<f32[?,?]:?,1>, %y: array<f16[3,8]:8,1>, %n: i64) {
  %3 = constant {value=0.0} : f32[4]
  %i = program_id {axis=0} : i64
  %total = for 0, %n, 4, %3 : f32[4] {
    ^(%j: i64, %total.1: f32[4]):
    %v = load %x[%i, %j:+4] fill=-inf : f32[4]
    %9 = gt %i, 0 : bool
    %v.1 = if %9 : f32[4] {
      %v.2 = mul %v, 2.0 : f32[4]
      yield %v.2
    } else {
      yield %v
    }
    %total.2 = max %total.1, %v.1 : f32[4]
    yield %total.2
  }
  %13 = cast %total : f16[4]
  store %y[%i, 0:+4:2] = %13
  %14 = arange {start=0, stop=4} : i64[4]
  store %y[%i, %14] = 0.5
}"""
    )


def tile(dtype: DType = f32, *shape: int) -> Value:
    return Value(TileType(dtype, shape))


def array(dtype: DType = f32, *shape: int | None) -> Value:
    return Value(ArrayType(dtype, shape, (None,) * len(shape)))


def complain(
    name: str,
    operands: list[Value],
    results: list[Any],
    blocks: tuple[Block, ...] = (),
    **attrs: Any,
) -> str:
    """What the verifier says about one op whose operands are parameters; "" when nothing."""
    body = Block()
    builder = Builder(body)
    builder.loc = Location("file.py", 3, 4, "    y = bad(x)")
    builder.emit(name, operands, results, blocks, **attrs)
    try:
        verify(Function("kernel", list(operands), body))
    except KernelError as error:
        said = str(error)
    else:
        return ""
    assert said.endswith("  file.py:3\n    y = bad(x)\n    ^")
    return said


def ending(*values: Value, args: tuple[Value, ...] = ()) -> Block:
    block = Block(list(args))
    Builder(block).emit("yield", values)
    return block


T = TileType
S = T(i64)

BAD: list[tuple[str, list[Value], list[Any], dict[str, Any], str]] = [
    ("frobnicate", [tile()], [T(f32)], {}, "no such op"),
    ("add", [tile(f32, 4), tile(f16, 4)], [T(f32, (4,))], {}, "share one dtype"),
    ("add", [tile(f32, 4), tile(f32, 3)], [T(f32, (4,))], {}, "do not broadcast"),
    ("add", [tile(f32, 4), tile(f32, 1)], [T(f32, (1,))], {}, "operands broadcast to (4,)"),
    ("add", [tile(f32), tile(f32)], [T(f16)], {}, "result must be f32"),
    ("add", [tile(boolean), tile(boolean)], [T(boolean)], {}, "not bools"),
    ("lt", [tile(f32), tile(f32)], [T(f32)], {}, "result must be bool"),
    ("div", [tile(i32), tile(i32)], [T(i32)], {}, "wants floats"),
    ("shl", [tile(f32), tile(f32)], [T(f32)], {}, "wants integers"),
    ("shl", [tile(boolean), tile(boolean)], [T(boolean)], {}, "wants integers"),
    ("and", [tile(f32), tile(f32)], [T(f32)], {}, "integers or bools"),
    ("exp", [tile(i32)], [T(i32)], {}, "wants floats"),
    ("neg", [tile(f32, 4)], [T(f32, (3,))], {}, "result must be f32[4]"),
    ("isnan", [tile(f32, 4)], [T(f32, (4,))], {}, "result must be bool[4]"),
    ("fma", [tile(f32), tile(f32), tile(i32)], [T(f32)], {}, "share one dtype"),
    ("where", [tile(i32), tile(f32), tile(f32)], [T(f32)], {}, "wants (bool, x, y)"),
    ("where", [tile(boolean), tile(f32), tile(i32)], [T(f32)], {}, "wants (bool, x, y)"),
    ("where", [tile(boolean, 3), tile(f32), tile(f32, 2)], [T(f32, (3,))], {}, "do not broadcast"),
    ("cast", [tile(f32, 4)], [T(i8, (2,))], {}, "shape (4,) becomes (2,)"),
    ("bitcast", [tile(f32)], [T(i64)], {}, "keeps the width"),
    ("bitcast", [tile(i8)], [T(boolean)], {}, "keeps the width"),
    ("reshape", [tile(f32, 4)], [T(f32, (3,))], {}, "4 elements become 3"),
    ("reshape", [tile(f32, 4)], [T(f16, (4,))], {}, "keeps the dtype"),
    ("expand_dims", [tile(f32, 4)], [T(f32, (4, 1))], {"axis": 0}, "result has shape (4, 1)"),
    ("broadcast", [tile(f32, 3)], [T(f32, (2, 4))], {}, "do not broadcast"),
    ("broadcast", [tile(f32, 3)], [T(f32, (1,))], {}, "does not fill (1,)"),
    ("transpose", [tile(f32, 3, 4)], [T(f32, (3, 4))], {"perm": (1, 0)}, "perm (1, 0)"),
    ("slice", [tile(f32, 4)], [T(f32, (3,))], {"starts": (2,)}, "starts (2,)"),
    ("concat", [tile(f32, 4), tile(f32, 4)], [T(f32, (7,))], {"axis": 0}, "do not make (7,)"),
    ("reduce", [tile(f32, 4)], [T(f32)], {"fn": "mean", "axis": 0}, "no reduction 'mean'"),
    ("reduce", [tile(f32, 4)], [T(f32)], {"fn": "sum", "axis": 1}, "axis 1 is out of range"),
    ("reduce", [tile(f32, 4)], [T(f32)], {"fn": "any", "axis": 0}, "wants bools"),
    ("reduce", [tile(f32, 4)], [T(f32)], {"fn": "argmax", "axis": 0}, "result must be i64"),
    ("scan", [tile(f32, 4)], [T(f32, (4,))], {"fn": "any", "axis": 0}, "no scan 'any'"),
    ("scan", [tile(f32, 4)], [T(f32, (4,))], {"fn": "sum", "axis": 2}, "axis 2 is out of range"),
    ("dot", [tile(f32, 2, 3), tile(f32, 4, 2), tile(f32, 2, 2)], [T(f32, (2, 2))], {}, "(m,k)"),
    (
        "dot",
        [tile(f32, 2, 3), tile(f32, 3, 2), tile(f32, 2, 2)],
        [T(f16, (2, 2))],
        {},
        "acc's type",
    ),
    ("dot4", [tile(f32), tile(i32), tile(i32)], [T(i32)], {}, "wants (i32, i32|u32"),
    ("dim", [array(f32, None)], [T(i32)], {"axis": 0}, "i64 scalar"),
    ("arange", [], [T(i64, (3,))], {"start": 0, "stop": 4}, "result must be i64 (n,)"),
    ("scratch", [], [ArrayType.of(f32, 1)], {}, "wants a static shape"),
    ("load", [tile(f32), tile(i64)], [T(f32)], {"axes": (At(),)}, "must be an array"),
    ("load", [array(f32, 3, 4), tile(i64)], [T(f32)], {"axes": (At(),)}, "2 axes, 1 are indexed"),
    ("load", [array(f32, 3), tile(i32)], [T(f32)], {"axes": (At(),)}, "must be an i64 scalar"),
    ("load", [array(f32, 3), tile(f32, 2)], [T(f32, (2,))], {"axes": (Gather(),)}, "integer tile"),
    ("load", [array(f32, 3), tile(i64)], [T(f32, (2,))], {"axes": (Window(4),)}, "reads f32(4,)"),
    ("store", [array(f32, 3), tile(i64), tile(f16)], [], {"axes": (At(),)}, "stores f16"),
    ("store", [array(f32, 3), tile(i64), tile(f32, 2, 4)], [], {"axes": (Window(4),)}, "stores"),
    ("yield", [array(f32, 3)], [], {}, "yields tiles only"),
]


@pytest.mark.parametrize(
    ("name", "operands", "results", "attrs", "message"), BAD, ids=[f"{b[0]}-{b[4]}" for b in BAD]
)
def test_verifier_refuses(name, operands, results, attrs, message):
    assert message in complain(name, operands, results, **attrs)


def test_verifier_accepts_every_op_of_the_table():
    for name in UNARY:
        dtype = i32 if name in ("not", "popcount") else f32
        assert not complain(
            name, [tile(dtype, 4)], [T(boolean if name == "isnan" else dtype, (4,))]
        )
    for name in BINARY:
        dtype = i32 if name in ("and", "or", "xor", "shl", "shr") else bf16
        assert not complain(name, [tile(dtype, 4, 1), tile(dtype, 3)], [T(dtype, (4, 3))])
    for name in COMPARE:
        assert not complain(name, [tile(u32, 4), tile(u32)], [T(boolean, (4,))])


def test_verifier_checks_blocks():
    carried = tile(f32, 4)
    index = tile(i64)
    bounds = [tile(i64), tile(i64), tile(i64), carried]
    good = ending(carried, args=(index, tile(f32, 4)))
    assert not complain("for", bounds, [T(f32, (4,))], (good,))
    wrong = ending(bounds[0], args=(index, tile(f32, 4)))
    assert "change their type" in complain("for", bounds, [T(f32, (4,))], (wrong,))
    assert "end in yield" in complain(
        "for", bounds, [T(f32, (4,))], (Block([index, tile(f32, 4)]),)
    )
    assert "bounds and step" in complain("for", [tile(i32), *bounds[1:]], [T(f32, (4,))], (good,))
    flag = tile(boolean)
    two = (ending(carried), ending(bounds[0]))
    assert "different types" in complain("if", [flag, carried, bounds[0]], [T(f32, (4,))], two)
    assert "bool scalar" in complain("if", [tile(i32)], [], (ending(), ending()))
    a, b = tile(f32), tile(f32)
    assert not complain("scan_with", [carried], [T(f32, (4,))], (ending(a, args=(a, b)),))
    assert "two scalars" in complain(
        "scan_with", [carried], [T(f32, (4,))], (ending(a, args=(a,)),)
    )


def test_verifier_wants_definitions_before_uses():
    body = Block()
    builder = Builder(body)
    builder.emit("neg", [tile()], [T(f32)])
    with pytest.raises(KernelError, match="not defined before it"):
        verify(Function("kernel", [], body))
    inner = Block()
    value = Builder(inner).emit("program_id", [], [S], axis=0).result
    Builder(inner).emit("yield", [])
    body = Block()
    builder = Builder(body)
    flag = builder.constant(True, boolean)
    builder.emit("if", [flag], [], (inner, ending()))
    builder.emit("neg", [value], [S])
    with pytest.raises(KernelError, match="not defined before it"):
        verify(Function("kernel", [], body))


def test_broadcast_shapes():
    assert broadcast_shapes((4, 1), (3,)) == (4, 3)
    assert broadcast_shapes() == ()
    assert broadcast_shapes((), (2,)) == (2,)
    with pytest.raises(ValueError, match="do not broadcast"):
        broadcast_shapes((4,), (3,))


def test_array_types():
    assert str(ArrayType.of(f32, 2)) == "array<f32[?,?]:?,1>"
    assert ArrayType.dense(i8, (2, 3, 4)).strides == (12, 4, 1)
    assert ArrayType.of(f32, 0) == ArrayType(f32, (), ())


def test_caret_stands_below_the_column():
    lines = Location("f.py", 7, 8, "    y = x + z  ").caret().splitlines()
    assert lines == ["  f.py:7", "    y = x + z", "        ^"]
